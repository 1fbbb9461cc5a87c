"""What is studied again beside the new items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from memory_paths.types import Phrasing

from .setting import Setting, check_known
from .weights import Weights


class Rehearsal(Protocol):
    """Where rehearsed phrasings come from."""

    def __call__(self, setting: Setting) -> Iterator[list[Phrasing]]:
        """Called once for each write. For each step, without end: the phrasings to add to its batch."""
        ...


@dataclass(frozen=True)
class NoRehearsal:
    """The new items alone."""

    def __call__(self, setting: Setting) -> Iterator[list[Phrasing]]:
        """See `Rehearsal`."""
        while True:
            yield []


@dataclass(frozen=True)
class Experience:
    """A few phrasings of what the model knew before, and of what earlier writes taught, drawn anew at every step
    (experience replay, Rolnick et al. 2019, arXiv 1811.11682).

    Args:
        per_step: How many of what the model knew before it learnt anything.
        taught: How many of what earlier writes taught; fewer as long as there are fewer.
    """

    per_step: int = 16
    taught: int = 0

    def __post_init__(self) -> None:
        if min(self.per_step, self.taught) < 0 or not self.per_step + self.taught:
            raise ValueError(
                "per_step and taught of experience rehearsal must be at least 0, and one of them at least 1, got"
                f" {self.per_step} and {self.taught}"
            )

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if self.per_step:
            check_known(background, "rehearsal=experience")

    def __call__(self, setting: Setting) -> Iterator[list[Phrasing]]:
        """See `Rehearsal`.

        Raises:
            ValueError: There is no background to draw from.
        """
        while True:
            drawn = setting.known(self.per_step, "rehearsal=experience") if self.per_step else []
            yield drawn + setting.taught(self.taught)
