"""Tensors on disk beside a description of them in JSON, each written durably and checked together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from memory_paths.files import read_json, write_durably


def is_stored(folder: Path, name: str) -> bool:
    """Whether there is a description of that name in the folder."""
    return (folder / f"{name}.json").is_file()


def store(
    folder: Path, name: str, tensors: Mapping[str, Tensor], described: Mapping[str, Any], *, version: int
) -> None:
    """Write `<name>.safetensors`, then `<name>.json` with the version of the format and a checksum of both.

    Raises:
        OSError: The disk is full or cannot be written; no file is left half written.
    """
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    body = {"version": version, **described}
    body["sha256"] = _checksum(body, content)
    write_durably(folder / f"{name}.safetensors", content, part=name)
    write_durably(folder / f"{name}.json", f"{json.dumps(body, indent=1)}\n".encode(), part=name)


def stored(folder: Path, name: str, what: str, *, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors that `store` wrote; `what` they are is told where they are refused.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: They are damaged, or of another version.
    """
    for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {what}, for {file.name} is missing; make one first")
    body = read_json(folder / f"{name}.json")
    if body.get("version") != version:
        raise ValueError(f"{folder} holds version {body.get('version')} of its {what}; this release reads {version}")
    content = (folder / f"{name}.safetensors").read_bytes()
    checksum = body.pop("sha256", None)
    if _checksum(body, content) != checksum:
        raise ValueError(f"{folder} holds a damaged {what}: the checksum is not the one in {name}.json; make it anew")
    return body, load(content)


def _checksum(body: Mapping[str, Any], content: bytes) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode() + content).hexdigest()
