"""Frozen prefixes: keys and values of the tokens that prompts begin with, kept between calls and in files.

They are found by exact token ids, the longest common beginning first, and used only with the weights that made them.
This file knows nothing of prompts or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_paths.files import write_durably

FORMAT = 1
# One for each of a few conversations that take turns, or of the programs around one (a judge, a summariser).
KEPT = 4
HEADER = 1 << 20  # bytes; the header of a stored prefix is shorter


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a token prefix, a pair for each layer, each tensor [1, heads, tokens, width].

    `weights` says which weights made it, by a number of this process.
    """

    ids: tuple[int, ...]
    layers: tuple[tuple[Any, Any], ...]
    weights: int

    def cut(self, tokens: int) -> Prefix:
        """Its first tokens."""
        # Virtual tokens, if there are any, stand before all others.
        lead = self.layers[0][0].shape[2] - len(self.ids) if self.layers and tokens else 0
        layers = tuple((k[:, :, : lead + tokens], v[:, :, : lead + tokens]) for k, v in self.layers) if tokens else ()
        return Prefix(self.ids[:tokens], layers, self.weights)


class Prefixes:
    """The prefixes that were used last, `KEPT` of them at most."""

    def __init__(self) -> None:
        self._kept: list[Prefix] = []

    def longest(self, ids: Sequence[int], weights: int, *, block: int) -> Prefix:
        """As much as is known of the beginning of `ids`, in whole blocks; those of other weights are dropped."""
        self._kept = [prefix for prefix in self._kept if prefix.weights == weights]
        best = max(self._kept, key=lambda prefix: common(prefix.ids, ids), default=Prefix((), (), weights))
        if best in self._kept:
            self._touch(best)
        return best.cut(common(best.ids, ids) // block * block)

    def keep(self, prefix: Prefix) -> None:
        """Keep a prefix, in the place of one that it shares more than half of, or of the one unused for longest."""
        shared = [(common(kept.ids, prefix.ids), kept) for kept in self._kept]
        length, nearest = max(shared, key=lambda pair: pair[0], default=(0, None))
        if nearest is not None and 2 * length > len(nearest.ids):
            self._kept = [kept for kept in self._kept if kept is not nearest]
        self._kept = [*self._kept, prefix][-KEPT:]

    def clear(self) -> None:
        """Keep none."""
        self._kept = []

    def _touch(self, prefix: Prefix) -> None:
        self._kept = [*(kept for kept in self._kept if kept is not prefix), prefix]


def write_prefix(file: Path, prefix: Prefix, *, made_by: str) -> None:
    """Store a prefix as safetensors with a checksum, durably.

    Args:
        file: Where; an older one is replaced.
        prefix: Which.
        made_by: What identifies the weights and their type in every process.

    Raises:
        OSError: The disk is full or cannot be written; an older file is untouched.
    """
    import torch
    from safetensors.torch import save

    tensors = {"ids": torch.tensor(prefix.ids)}
    for number, (keys, values) in enumerate(prefix.layers):
        tensors[f"{number}.keys"], tensors[f"{number}.values"] = keys.cpu().contiguous(), values.cpu().contiguous()
    described = {"format": str(FORMAT), "made_by": made_by, "sha256": _checksum(tensors, made_by)}
    write_durably(file, save(tensors, metadata=described), part="prefix")


def read_prefix(file: Path, *, made_by: str, weights: int) -> Prefix:
    """The inverse of `write_prefix`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another format, or was made by other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not file.is_file():
        raise FileNotFoundError(f"there is no stored prefix {file}")
    content = file.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        described = dict(header.get("__metadata__", {}))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged and holds no prefix ({error}); make it anew") from error
    if described.get("format") != str(FORMAT):
        raise ValueError(f"{file} holds format {described.get('format')} of a prefix; this release reads {FORMAT}")
    if described.get("made_by") != made_by:
        raise ValueError(
            f"{file} was made by another model, other weights or another type of numbers: {described.get('made_by')},"
            f" here {made_by}; make it anew"
        )
    if described.get("sha256") != _checksum(tensors, made_by):
        raise ValueError(f"{file} is damaged: it does not match its checksum; make it anew")
    layers = tuple((tensors[f"{n}.keys"], tensors[f"{n}.values"]) for n in range(len(tensors) // 2))
    return Prefix(tuple(tensors["ids"].tolist()), layers, weights)


def stored_prefixes(folder: Path) -> list[Path]:
    """The files of a folder, and of those in it, that `write_prefix` made."""
    found = []
    for file in sorted(folder.rglob("*")):
        try:
            with file.open("rb") as content:
                length = int.from_bytes(content.read(8), "little")
                header = json.loads(content.read(length)) if length < HEADER else {}
        except (OSError, ValueError):
            continue
        if isinstance(header, dict) and {"made_by", "sha256"} <= set(header.get("__metadata__", {})):
            found.append(file)
    return found


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _checksum(tensors: dict[str, Any], made_by: str) -> str:
    import torch

    digest = hashlib.sha256(made_by.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
