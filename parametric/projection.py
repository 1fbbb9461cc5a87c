"""What the gradient of a step must not work against: it is projected between the backward pass and the update."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from memory_paths.types import Phrasing

from .rehearsal import Experience


class Projection(Protocol):
    """Changes the gradients of a step in place, seeing those of a reference."""

    def reference(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """The phrasings of one step whose gradients are wanted; none, if no reference is needed."""
        ...

    def project(self, gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Change the gradients in place.

        Args:
            gradients: Of the step's loss, one for each tensor that trains (of a memory: for its chosen rows).
            reference: Of the loss on the reference, with the same weights and in the same order.
        """
        ...


@dataclass(frozen=True)
class NoProjection:
    """The gradient as it is. It is false, so that nobody computes a reference for its sake."""

    def __bool__(self) -> bool:
        return False

    def reference(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """See `Projection`."""
        return []

    def project(self, gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """See `Projection`."""


@dataclass(frozen=True)
class AveragedGradient:
    """A-GEM (Chaudhry et al. 2019, arXiv 1812.00420, equation 11): where the gradient points against the reference's,
    the part along the reference is taken out, so that the step does not raise the reference's loss (to first order).

    Args:
        per_step: Phrasings of what the model knew before, drawn anew at every step.
    """

    per_step: int = 16

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise ValueError(f"per_step of a projection must be at least 1, got {self.per_step}")

    def reference(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
        """See `Projection`.

        Raises:
            ValueError: There is no background to draw from.
        """
        return Experience(self.per_step)(background, generator)

    def project(self, gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """See `Projection`."""
        along = sum(float((one * other).sum()) for one, other in zip(gradients, reference, strict=True))
        length = sum(float((other * other).sum()) for other in reference)
        if along < 0 < length:
            for one, other in zip(gradients, reference, strict=True):
                one.sub_(other, alpha=along / length)
