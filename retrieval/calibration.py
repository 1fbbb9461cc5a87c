"""A threshold for a bank: the least cosine at which questions that nothing answers are seldom offered anything.

What decides is the cosine of the best note alone. Where questions with and without an answer look alike to the encoder,
`auroc` is near .5, and any threshold that keeps the ones out loses the others as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_paths.types import DEFAULT_NAMESPACE, Query

from .bank import Bank

NOTHING = -1.0  # the cosine of no note at all


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the questions that it was calibrated on.

    Args:
        threshold: For `Bank(threshold=...)`.
        false_offers: Share of the questions without an answer that are offered something all the same.
        upper: No more than this of all such questions, with the confidence asked for.
        kept: Share of the questions with an answer that are still offered something.
        auroc: Chance that a question with an answer has the higher cosine of a pair, in [0, 1]; .5: it tells nothing.
        known: Number of questions with an answer.
        unknown: Number of questions without one.
    """

    threshold: float
    false_offers: float
    upper: float
    kept: float
    auroc: float
    known: int
    unknown: int


def calibrate(
    known: Sequence[float], unknown: Sequence[float], *, false_offers: float = 0.05, confidence: float = 0.95
) -> Calibration:
    """The least threshold under which no more than `false_offers` of the questions without an answer are offered
    anything, with this confidence.

    The threshold lies just above one of the cosines without an answer; the bound is that of Clopper and Pearson (1934)
    for one side, which for an order statistic is exact (Wilks 1941). It holds for questions like those given.

    Args:
        known: For each question with an answer the best cosine, see `best_cosines`.
        unknown: The same for questions that nothing answers.
        false_offers: In (0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: No question with an answer, too few without one for such a bound, or a share outside (0, 1).
    """
    import numpy as np

    for name, given in (("false_offers", false_offers), ("confidence", confidence)):
        if not 0 < given < 1:
            raise ValueError(f"{name} must be in (0, 1), got {given}")
    least = math.ceil(math.log(1 - confidence) / math.log(1 - false_offers))
    if not len(known) or len(unknown) < least:
        raise ValueError(
            f"a bound of {false_offers:g} with confidence {confidence:g} needs at least {least} questions without an"
            f" answer and one with an answer, got {len(unknown)} and {len(known)}"
        )
    answered = np.asarray(known, dtype=np.float32)
    others = np.sort(np.asarray(unknown, dtype=np.float32))[::-1]
    allowed = max(count for count in range(len(others)) if upper_bound(count, len(others), confidence) <= false_offers)
    threshold = min(float(np.nextafter(others[allowed], np.float32(2))), 1.0)
    wrong = int((others >= threshold).sum())
    return Calibration(
        threshold=threshold,
        false_offers=wrong / len(others),
        upper=upper_bound(wrong, len(others), confidence),
        kept=float((answered >= threshold).mean()),
        auroc=auroc(known, unknown),
        known=len(answered),
        unknown=len(others),
    )


def best_cosines(bank: Bank, queries: Sequence[Query]) -> list[float]:
    """For each query the cosine of the best note that holds for it; -1 where there is none.

    Raises:
        ValueError: The bank has a threshold or a reranker already.
    """
    if bank.threshold is not None or bank.reranker is not None:
        raise ValueError("calibrate a bank without threshold and reranker: Bank(..., threshold=None, reranker=None)")
    given = [replace(query, namespace=query.namespace or DEFAULT_NAMESPACE) for query in queries]
    readings = bank.search(given, top_k=1, method="dense", diversity=0.0)
    return [reading.recalls[0].score if reading.recalls else NOTHING for reading in readings]


def upper_bound(count: int, trials: int, confidence: float) -> float:
    """The highest share that still gives `count` or fewer of `trials` with a chance of 1 - confidence."""
    from scipy.special import betaincinv

    return 1.0 if count >= trials else float(betaincinv(count + 1, trials - count, confidence))


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """The area under the receiver's curve: how often the first of a pair is the higher, ties half (Mann and Whitney
    1947)."""
    from scipy.stats import rankdata

    ranks = rankdata([*known, *unknown])[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))
