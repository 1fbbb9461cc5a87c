"""What is studied again beside the new items."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memory_paths.types import Phrasing


class Rehearsal(Protocol):
    """Where rehearsed phrasings come from."""

    def __call__(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """Phrasings to add to one step's batch."""
        ...


@dataclass(frozen=True)
class NoRehearsal:
    """The new items alone."""

    def __call__(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """See `Rehearsal`."""
        return []


@dataclass(frozen=True)
class Experience:
    """A few phrasings of what the model knew before, drawn anew at every step.

    Args:
        per_step: How many.
    """

    per_step: int = 16

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise ValueError(f"per_step of experience rehearsal must be at least 1, got {self.per_step}")

    def __call__(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """See `Rehearsal`."""
        if not background:
            raise ValueError(
                "rehearsal and projection need phrasings of what the model knew, and there are none: give"
                " lm.background, or choose rehearsal=none and projection=none"
            )
        return generator.sample(list(background), min(self.per_step, len(background)))
