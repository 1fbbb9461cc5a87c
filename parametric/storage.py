"""Tensors on disk beside a description of them in JSON, checked together: a save over an earlier one is all there or
leaves that one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from memory_paths.files import read_json, sync, write_durably


def is_stored(folder: Path, name: str) -> bool:
    """Whether there is a description of that name in the folder."""
    return (folder / f"{name}.json").is_file()


def store(
    folder: Path, name: str, tensors: Mapping[str, Tensor], described: Mapping[str, Any], *, version: int
) -> None:
    """Write `<name>.safetensors` and `<name>.json` with the version of the format and a checksum of both.

    Raises:
        OSError: The disk is full or cannot be written; what was stored there before is as it was.
    """
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    body = {"version": version, **described}
    body["sha256"] = _checksum(body, content)
    # Until the description names the new tensors, those that it names are there; `stored` looks in both places.
    written, file = folder / f"{name}.new.safetensors", folder / f"{name}.safetensors"
    write_durably(written, content, part=name)
    write_durably(folder / f"{name}.json", f"{json.dumps(body, indent=1)}\n".encode(), part=name)
    os.replace(written, file)
    sync(folder)


def stored(folder: Path, name: str, what: str, *, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors that `store` wrote; `what` they are is told where they are refused.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: They are damaged, or of another version.
    """
    file, described = folder / f"{name}.safetensors", folder / f"{name}.json"
    found = [one for one in (file, folder / f"{name}.new.safetensors") if one.is_file()]
    if not described.is_file() or not found:
        missing = file if described.is_file() else described
        raise FileNotFoundError(f"{folder} holds no {what}, for {missing.name} is missing; make one first")
    body = read_json(folder / f"{name}.json")
    if body.get("version") != version:
        raise ValueError(f"{folder} holds version {body.get('version')} of its {what}; this release reads {version}")
    checksum = body.pop("sha256", None)
    for one in found:
        content = one.read_bytes()
        if _checksum(body, content) == checksum:
            return body, load(content)
    raise ValueError(f"{folder} holds a damaged {what}: the checksum is not the one in {name}.json; make it anew")


def _checksum(body: Mapping[str, Any], content: bytes) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode() + content).hexdigest()
