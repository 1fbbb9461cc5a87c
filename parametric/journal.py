"""What each write has changed: undone last in, first out, to the byte, and carried to another copy as a patch.

States are named tensors (`Weights.state`). A table of rows is a pair of them, `NAME/rows` (int64, sorted) and
`NAME/values`; anything else is kept whole. This file knows nothing of models and of how anything is learnt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from memory_paths.files import write_durably

PATCH_VERSION = 1
PARTS = ("rows", "values", "known")
State = Mapping[str, Tensor]


def change(before: State, after: State) -> dict[str, Tensor]:
    """What leads back from `after` to `before`: of a table the rows that differ, `NAME/rows`, with the values that they
    had, `NAME/values`, and which of them it had at all, `NAME/known` (bool); of anything else the tensor as it was."""
    undone: dict[str, Tensor] = {}
    for name in _tables(after):
        rows, values = after[f"{name}/rows"], after[f"{name}/values"]
        known, earlier = _looked_up(before, name, rows, values)
        differs = ~known | (earlier != values).flatten(1).any(dim=1)
        undone[f"{name}/rows"] = rows[differs]
        undone[f"{name}/values"] = earlier[differs]
        undone[f"{name}/known"] = known[differs]
    tables = _prefixes(_tables(after))
    return undone | {name: tensor for name, tensor in before.items() if not name.startswith(tables)}


def undo(after: State, undone: State) -> dict[str, Tensor]:
    """The state before a change."""
    before: dict[str, Tensor] = {}
    tables = [name for name in _tables(undone) if f"{name}/known" in undone]
    for name in tables:
        changed, known = undone[f"{name}/rows"], undone[f"{name}/known"]
        rows, values = after[f"{name}/rows"], after[f"{name}/values"]
        kept = ~torch.isin(rows, changed)
        together = torch.cat([rows[kept], changed[known]])
        order = together.argsort()
        before[f"{name}/rows"] = together[order]
        before[f"{name}/values"] = torch.cat([values[kept], undone[f"{name}/values"][known]])[order]
    if all(not len(before[f"{name}/rows"]) for name in tables):
        before = {}  # before anything was learnt there was no table
    return before | {name: tensor for name, tensor in undone.items() if not name.startswith(_prefixes(tables))}


def size(tensors: State) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Journal:
    """The changes of the writes, oldest first, as far as there is room for them.

    Args:
        room: Most bytes; the oldest changes are dropped for newer ones. A write whose change was dropped can be learnt
            again from the ledger, but not undone.
        changes: One for each write; None: dropped.
    """

    room: int
    changes: tuple[State | None, ...] = ()

    def appended(self, before: State, after: State) -> Journal:
        """With one write more."""
        changes: list[State | None] = [*self.changes, change(before, after)]
        held = sum(size(one) for one in changes if one is not None)
        for place, one in enumerate(changes):
            if held <= self.room:
                break
            if one is not None:
                held -= size(one)
                changes[place] = None
        return replace(self, changes=tuple(changes))

    def cut(self, writes: int) -> Journal:
        """Of the first `writes` writes alone."""
        return replace(self, changes=self.changes[:writes])

    def dropped(self, writes: int) -> Journal:
        """Of so many writes, none of which can be undone."""
        return replace(self, changes=(None,) * writes)

    def rewound(self, state: State, writes: int) -> dict[str, Tensor] | None:
        """The state after the first `writes` writes, from that after all of them; None if a change was dropped."""
        for one in reversed(self.changes[writes:]):
            if one is None:
                return None
            state = undo(state, one)
        return dict(state)

    def separable(self, write: int) -> bool:
        """Whether a write's change was kept and is one of rows, which can be put back beside those of later writes."""
        one = self.changes[write]
        known = [other is not None for other in self.changes[write:]]
        return bool(one) and all(known) and all(name.rsplit("/", 1)[-1] in PARTS for name in one or {})

    def without(self, state: State, write: int, leaving: Sequence[int] = ()) -> dict[str, Tensor]:
        """A state in which the rows that this write changed, and no later one, are as they were before it.
        Of several that are to leave, the last one first, each with all of them as `leaving`."""
        own = self.changes[write]
        assert own is not None, "only kept changes can be put back"
        alone: dict[str, Tensor] = {}
        for name in _tables(own):
            others = [one for place, one in enumerate(self.changes) if place > write and place not in leaving]
            later = [other[f"{name}/rows"] for other in others if other and f"{name}/rows" in other]
            single = ~torch.isin(own[f"{name}/rows"], torch.cat([own[f"{name}/rows"][:0], *later]))
            alone |= {f"{name}/{part}": own[f"{name}/{part}"][single] for part in PARTS}
        return undo(state, alone)

    def state(self) -> dict[str, Tensor]:
        """All changes as named tensors."""
        return {
            f"{place}:{name}": tensor for place, one in enumerate(self.changes) for name, tensor in (one or {}).items()
        }

    @property
    def kept(self) -> list[int]:
        """Places of the writes that can be undone."""
        return [place for place, one in enumerate(self.changes) if one is not None]

    def restored(self, state: State, writes: int, kept: Sequence[int]) -> Journal:
        """The journal of so many writes whose `state` and `kept` these are."""
        changes: list[dict[str, Tensor] | None] = [{} if place in kept else None for place in range(writes)]
        for key, tensor in state.items():
            place, _, name = key.partition(":")
            entry = changes[int(place)]
            assert entry is not None, "only kept changes have tensors"
            entry[name] = tensor
        return replace(self, changes=tuple(changes))


def write_patch(file: Path, before: State, after: State, *, model: str, items: bytes) -> None:
    """One write as a file: of each row that it changed the place, a checksum of what stood there, and what stands there
    now: width x bytes per number + 16 bytes, and a header.

    Args:
        file: To be written.
        before: State before the write.
        after: State after it; tables only.
        model: Hash of all that a state depends on.
        items: What the write taught, which lies beside the patch.

    Raises:
        ValueError: These weights are not rows of a table, or nothing has changed.
    """
    changed = change(before, after)
    tensors: dict[str, Tensor] = {}
    for name in _tables(after):
        rows = changed[f"{name}/rows"]
        at = torch.searchsorted(after[f"{name}/rows"], rows)
        tensors[f"{name}/rows"] = rows
        tensors[f"{name}/sums"] = _row_sums(changed, name)
        tensors[f"{name}/values"] = after[f"{name}/values"][at].contiguous()
    if set(after) != {f"{name}/{part}" for name in _tables(after) for part in ("rows", "values")}:
        raise ValueError("only rows of a memory can be carried as a patch; these weights are changed all over")
    if not size(tensors):
        raise ValueError("the write has changed nothing, so that there is nothing to carry")
    header = {"version": str(PATCH_VERSION), "model": model, "sha256": _content_sum(tensors, items)}
    write_durably(file, save(tensors, metadata=header), part="patch")


def read_patch(file: Path, present: State, *, model: str, items: bytes) -> dict[str, Tensor]:
    """The state after a patch, from the present one; see `write_patch`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no patch, of another version, for another model, or for rows that are not as they were when it
            was made.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no patch {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {str(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{file} is damaged or no patch: {error}") from error
    if header.get("version") != str(PATCH_VERSION):
        raise ValueError(f"{file} is a patch of version {header.get('version')}; this release reads {PATCH_VERSION}")
    if header["model"] != model:
        raise ValueError(f"{file} is a patch for another model than this one; learn its items here instead")
    if header["sha256"] != _content_sum(tensors, items):
        raise ValueError(f"{file} is damaged, or the items beside it are not those that it was made with")
    found: dict[str, Tensor] = dict(present)
    for name in _tables(tensors):
        rows, values = tensors[f"{name}/rows"], tensors[f"{name}/values"]
        known, earlier = _looked_up(present, name, rows, values)
        here = _row_sums({f"{name}/known": known, f"{name}/values": earlier}, name)
        if differing := int((here != tensors[f"{name}/sums"]).sum()):
            raise ValueError(
                f"{differing} of the {len(rows)} rows that {file} changes are not as they were when it was made; bring "
                "this copy to the same state first, or learn the items here"
            )
        others = ~torch.isin(present.get(f"{name}/rows", rows[:0]), rows)
        together = torch.cat([present.get(f"{name}/rows", rows[:0])[others], rows])
        order = together.argsort()
        found[f"{name}/rows"] = together[order]
        found[f"{name}/values"] = torch.cat([present.get(f"{name}/values", values[:0])[others], values])[order]
    return found


def _content_sum(tensors: State, items: bytes) -> str:
    digest = hashlib.sha256(items)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tables(state: State) -> list[str]:
    return sorted(name.removesuffix("/rows") for name in state if name.endswith("/rows"))


def _prefixes(tables: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}/" for name in tables) or ("\0",)


def _looked_up(state: State, name: str, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the rows a state has, and their values, 0 where it has none."""
    earlier = torch.zeros_like(like)
    held = state.get(f"{name}/rows")
    if held is None or not len(held):
        return torch.zeros(len(rows), dtype=torch.bool), earlier
    place = torch.searchsorted(held, rows).clamp(max=len(held) - 1)
    known = held[place] == rows
    earlier[known] = state[f"{name}/values"][place[known]]
    return known, earlier


def _row_sums(changed: State, name: str) -> Tensor:
    """The first 8 bytes of each row's SHA-256; of a row that the untouched model has, of nothing."""
    sums = []
    for known, values in zip(changed[f"{name}/known"].tolist(), changed[f"{name}/values"], strict=True):
        content = values.contiguous().view(torch.uint8).numpy().tobytes() if known else b""
        sums.append(int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True))
    return torch.tensor(sums, dtype=torch.int64)
