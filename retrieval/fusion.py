"""Choosing among candidates: two rankings made one, and likeness to what is chosen already held against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DAMPING = 60  # Cormack et al. 2009: rank 1 of one list counts about as much as ranks 60 of two


def fuse(*rankings: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The union of rankings by the sum of reciprocal ranks, 1 / (60 + rank), best first, the lower row among equals.

    Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009). The scores of the rankings count for nothing.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (row, _) in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (DAMPING + rank)
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))


def diverse(query: NDArray[np.float32], candidates: NDArray[np.float32], k: int, diversity: float) -> list[int]:
    """Which candidates to take, in order: each time the one with the highest (1 - diversity) times its cosine to the
    query less diversity times its highest cosine to one taken before.

    Maximal marginal relevance (Carbonell and Goldstein 1998).

    Args:
        query: [dimension], of length 1.
        candidates: [n, dimension], rows of length 1.
        k: Most to take.
        diversity: In [0, 1].
    """
    import numpy as np

    relevance = candidates @ query
    nearest = np.full(len(candidates), -np.inf, dtype=np.float32)
    left = np.ones(len(candidates), dtype=bool)
    taken: list[int] = []
    while left.any() and len(taken) < k:
        held_against = nearest if taken else np.zeros_like(nearest)
        worth = np.where(left, (1 - diversity) * relevance - diversity * held_against, -np.inf)
        taken.append(int(worth.argmax()))
        left[taken[-1]] = False
        nearest = np.maximum(nearest, candidates @ candidates[taken[-1]])
    return taken
