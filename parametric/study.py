"""How items become training text. No question that is evaluated occurs in it: it sees items, never questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memory_paths.types import Knowledge, Phrasing


class Study(Protocol):
    """From items to what is trained on."""

    def __call__(self, items: Sequence[Knowledge]) -> list[Phrasing]:
        """Phrasings to learn, in the order of the items."""
        ...


@dataclass(frozen=True)
class AsGiven:
    """Each item's text, once."""

    def __call__(self, items: Sequence[Knowledge]) -> list[Phrasing]:
        """See `Study`."""
        return [Phrasing(item.text) for item in items]


@dataclass(frozen=True)
class Phrasings:
    """Each item's own phrasings, or its text where it brought none."""

    def __call__(self, items: Sequence[Knowledge]) -> list[Phrasing]:
        """See `Study`."""
        return [phrasing for item in items for phrasing in (item.phrasings or (Phrasing(item.text),))]
