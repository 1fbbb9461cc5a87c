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


@dataclass(frozen=True)
class Templates:
    """Each item's own phrasings, and its text in frames of plain words.

    For items that come with their text alone, so that a fact is not learnt as one string of words: the more ways it
    was seen in, the better it is found by others (Allen-Zhu & Li 2024, arXiv 2309.14316).

    Args:
        frames: Each with one `{text}`.

    Raises:
        ValueError: A frame without it, or no frame.
    """

    frames: tuple[str, ...] = ("{text}", "It is known that {text}", "Remember: {text}", "Here is a fact. {text}")

    def __post_init__(self) -> None:
        if not self.frames or any(frame.count("{text}") != 1 for frame in self.frames):
            raise ValueError(f"each frame of study=templates must hold {{text}} once, got {list(self.frames)}")

    def __call__(self, items: Sequence[Knowledge]) -> list[Phrasing]:
        """See `Study`."""
        return [
            phrasing
            for item in items
            for phrasing in (*item.phrasings, *(Phrasing(frame.replace("{text}", item.text)) for frame in self.frames))
        ]
