"""Churn: which answers were gained and which lost, where a net change would hide both. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RIGHT = 0.5
"""From what worth on, in [0, 1], an answer counts as right where it is only asked whether it is."""


@dataclass(frozen=True)
class Churn:
    """Questions that were asked twice, by whether they were answered rightly.

    Args:
        gained: Wrong before, right after.
        lost: Right before, wrong after.
        kept: Right both times.
        never: Wrong both times.
    """

    gained: int
    lost: int
    kept: int
    never: int

    def __add__(self, other: Churn) -> Churn:
        return Churn(*(mine + theirs for mine, theirs in zip(self._counts(), other._counts(), strict=True)))

    @property
    def p_value(self) -> float:
        """Of gains and losses being equally likely: McNemar's test, exact and two-sided. 1 where nothing changed."""
        changed = self.gained + self.lost
        fewer = min(self.gained, self.lost)
        ways = sum(math.comb(changed, count) for count in range(fewer + 1))
        return min(1.0, float(2 * ways / 2**changed))

    def to_json(self) -> dict[str, Any]:
        """The counts, and the p-value for readers; `from_json` takes no notice of it."""
        return {**vars(self), "p_value": self.p_value}

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> Churn:
        """The inverse of `to_json`."""
        return Churn(**{name: given[name] for name in ("gained", "lost", "kept", "never")})

    def _counts(self) -> tuple[int, int, int, int]:
        return (self.gained, self.lost, self.kept, self.never)


def churn_between(before: np.ndarray, after: np.ndarray) -> Churn:
    """The churn of the same questions asked twice.

    Args:
        before: What each answer was worth, in [0, 1], of shape (questions,); from one half on it counts as right.
        after: The same, later.
    """
    earlier, later = before >= RIGHT, after >= RIGHT
    return Churn(
        gained=int((~earlier & later).sum()),
        lost=int((earlier & ~later).sum()),
        kept=int((earlier & later).sum()),
        never=int((~earlier & ~later).sum()),
    )
