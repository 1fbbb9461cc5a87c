"""What holds weights back while they learn: a change to their gradients between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Changing:
    """A tensor that a step is about to change; all three have one shape.

    Args:
        present: Its values.
        before: Its values before this write.
        gradient: Of the loss, to be changed in place.
    """

    present: Tensor
    before: Tensor
    gradient: Tensor


class Penalty(Protocol):
    """Called at every step with all that the step is about to change."""

    def __call__(self, changing: Sequence[Changing]) -> None:
        """Change the gradients in place."""
        ...


def no_penalty() -> None:
    """Nothing holds the weights back."""


@dataclass(frozen=True)
class TowardsBefore:
    """Adds the gradient of strength / 2 times the squared distance to the weights before this write.

    Args:
        strength: At least 0.

    Raises:
        ValueError: A negative strength.
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength of a penalty must be at least 0, got {self.strength}")

    def __call__(self, changing: Sequence[Changing]) -> None:
        """See `Penalty`."""
        for one in changing:
            one.gradient.add_(one.present - one.before, alpha=self.strength)
