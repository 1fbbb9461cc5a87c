"""How the learning rate goes over a write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The learning rate's course."""

    def __call__(self, progress: float) -> float:
        """The share of the learning rate at a step, for the share of the write that lies behind it, in [0, 1)."""
        ...


@dataclass(frozen=True)
class Constant:
    """The learning rate stays.

    Args:
        factor: Multiplies it, above 0: one number that means faster or slower for all kinds of weights, whose
            own rates differ by orders of magnitude.

    Raises:
        ValueError: A factor that is not above 0.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        return self.factor


@dataclass(frozen=True)
class Rewarming:
    """At each write the learning rate rises again, stays, and falls again (Gupta et al. 2023, arXiv 2308.04014; Ibrahim
    et al. 2024, 2403.08763): linearly up, along half a cosine down.

    Args:
        rising: Share of the write in which it rises from 0, in [0, 1].
        falling: Share of the write at its end in which it falls, in [0, 1 - rising].
        floor: What it falls to, as a share, in [0, 1].
        factor: Multiplies it, as in `Constant`.

    Raises:
        ValueError: A share out of range.
    """

    rising: float = 0.1
    falling: float = 0.9
    floor: float = 0.1
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if min(self.rising, self.falling) < 0 or self.rising + self.falling > 1 + 1e-9 or not 0 <= self.floor <= 1:
            raise ValueError(
                "rising and falling of schedule=rewarming must be at least 0 and at most 1 together, and floor in "
                f"[0, 1], got {self.rising}, {self.falling} and {self.floor}"
            )

    def __call__(self, progress: float) -> float:
        """See `Schedule`. No step has a rate of 0: half of the first hundredth of the rise is the least."""
        if progress < self.rising:
            return self.factor * max(progress / self.rising, 0.005)
        fallen = (progress - (1 - self.falling)) / self.falling if self.falling else 0.0
        return self.factor * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * max(0.0, fallen))))


def _check_factor(factor: float) -> None:
    if not factor > 0:
        raise ValueError(f"factor of a schedule must be above 0, got {factor}")
