"""What holds weights back while they learn, after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Changed:
    """A tensor that a step has just changed.

    Args:
        present: Its values, to be changed in place.
        before: Its values before this write, of the same shape.
    """

    present: Tensor
    before: Tensor


class Penalty(Protocol):
    """Called after every step with all that the step has changed."""

    def __call__(self, changed: Sequence[Changed]) -> None:
        """Change the present values in place."""
        ...


@dataclass(frozen=True)
class NoPenalty:
    """Nothing holds the weights back. It is false, so that nobody keeps a copy of the weights for its sake."""

    def __bool__(self) -> bool:
        return False

    def __call__(self, changed: Sequence[Changed]) -> None:
        """See `Penalty`."""


@dataclass(frozen=True)
class TowardsBefore:
    """Takes back a share of the way that the weights have gone since before this write.

    The proximal form of an L2 penalty: its strength means the same for every optimiser and learning rate.

    Args:
        strength: The share, in [0, 1).

    Raises:
        ValueError: A strength outside of it.
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"strength of a penalty must be in [0, 1), got {self.strength}")

    def __call__(self, changed: Sequence[Changed]) -> None:
        """See `Penalty`."""
        for one in changed:
            one.present.lerp_(one.before, self.strength)
