"""Intervals: how far off a figure could be, given which questions and which seeds happened to be drawn.

This file knows nothing of questions, paths or files: it works on arrays of sums and counts by cluster. Questions
about the same person are not independent of one another, so whole clusters are redrawn, never single answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

LEVEL = 0.95
DRAWS = 2000
MINIMUM_CLUSTERS = 30
SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
UNBOUNDED = (-math.inf, math.inf)

Bounds = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included. Infinite where the data say nothing of a figure without bounds."""

    low: float
    high: float

    def clipped(self, bounds: Bounds) -> Interval:
        """The part of it that is possible at all."""
        return Interval(min(max(self.low, bounds[0]), bounds[1]), min(max(self.high, bounds[0]), bounds[1]))

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a point in common."""
        return self.low <= other.high and other.low <= self.high


def generator_for(*names: object) -> np.random.Generator:
    """A generator of its own for each purpose, so that one more figure changes no other."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """Half width of the central `level` of Student's t, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


def wilson(share: float, count: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share in [0, 1] among `count` independent trials; of positive width even at 0 and 1.

    Raises:
        ValueError: No trials, or a share outside [0, 1].
    """
    if count < 1 or not 0.0 <= share <= 1.0:
        raise ValueError(f"wilson needs at least one trial and a share in [0, 1], got {count} and {share}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if share == 0.0 else max(0.0, middle - half)
    high = 1.0 if share == 1.0 else min(1.0, middle + half)
    return Interval(low, high)


def difference_interval(
    successes: int, trials: int, other_successes: int, other_trials: int, level: float = LEVEL
) -> Interval:
    """The interval of the first share less the other one, each of independent trials (Newcombe 1998, "Interval
    estimation for the difference between independent proportions", method 10).

    Raises:
        ValueError: No trials on a side, or more successes than trials.
    """
    share, other = successes / max(1, trials), other_successes / max(1, other_trials)
    first, second = wilson(share, trials, level), wilson(other, other_trials, level)
    return Interval(
        share - other - math.hypot(share - first.low, second.high - other),
        share - other + math.hypot(first.high - share, other - second.low),
    )


def cluster_interval(
    sums: np.ndarray,
    counts: np.ndarray,
    statistic: Statistic,
    *,
    generator: np.random.Generator,
    bounds: Bounds = UNBOUNDED,
    level: float = LEVEL,
) -> Interval:
    """The interval of a statistic of cell means, over the clusters that the answers come in.

    From 30 clusters on a bootstrap of clusters, its percentiles expanded for their number (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", 3.3); below that a jackknife of clusters with Student's t, which for a
    plain mean over clusters of equal size is Student's t over the cluster means. A share or difference that does not
    vary at all from cluster to cluster gets the width of Wilson's interval with one trial a cluster. One cluster says
    nothing: the bounds come back.

    Args:
        sums: Sum of the values, of shape (clusters, cells).
        counts: Number of the values, of shape (clusters, cells).
        statistic: From cell means of shape (..., cells) to figures of shape (...); NaN where it is undefined.
        generator: Where chance comes from.
        bounds: What the figure can be at all.
        level: Nominal coverage, in (0, 1).
    """
    clusters = len(sums)
    if clusters < 2:
        return Interval(*bounds)
    value = float(statistic(_ratio(sums.sum(0), counts.sum(0))))
    if clusters >= MINIMUM_CLUSTERS:
        drawn = generator.integers(clusters, size=(DRAWS, clusters)) + clusters * np.arange(DRAWS)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=DRAWS * clusters).reshape(DRAWS, clusters).astype(float)
        figures = statistic(_ratio(weights @ sums, weights @ counts))
        figures = figures[np.isfinite(figures)]
        expanded = math.sqrt(clusters / (clusters - 1)) * student_quantile(clusters - 1, level)
        tail = NormalDist().cdf(-expanded)
        low, high = (float(edge) for edge in np.quantile(figures, (tail, 1 - tail)))
    else:
        figures = statistic(_ratio(sums.sum(0) - sums, counts.sum(0) - counts))
        figures = figures[np.isfinite(figures)]
        if len(figures) < 2:
            return Interval(*bounds)
        size = len(figures)
        error = math.sqrt((size - 1) / size * float(((figures - figures.mean()) ** 2).sum()))
        half = error * student_quantile(size - 1, level)
        low, high = value - half, value + half
    if high - low < 1e-12:
        return _of_no_variation(value, clusters, bounds, level)
    return Interval(low, high).clipped(bounds)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    generator: np.random.Generator,
    bounds: Bounds = SHARE,
    level: float = LEVEL,
) -> Interval:
    """The interval of the mean of values that come in clusters; see `cluster_interval`.

    Raises:
        ValueError: No values, or not one cluster for each.
    """
    given = np.asarray(values, dtype=float)
    if not len(given) or len(given) != len(clusters):
        raise ValueError(f"one cluster for each value is needed, got {len(given)} values and {len(clusters)} clusters")
    index = cluster_index(clusters)
    sums = np.bincount(index, weights=given)[:, None]
    counts = np.bincount(index).astype(float)[:, None]
    return cluster_interval(sums, counts, lambda means: means[..., 0], generator=generator, bounds=bounds, level=level)


def paired_interval(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    generator: np.random.Generator,
    bounds: Bounds = DIFFERENCE,
    level: float = LEVEL,
) -> Interval:
    """The interval of the mean of `after - before`, question by question: narrower than two separate means."""
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return mean_interval(differences, clusters, generator=generator, bounds=bounds, level=level)


def seeds_interval(values: Sequence[float], *, bounds: Bounds = UNBOUNDED, level: float = LEVEL) -> Interval:
    """Student's t over the figures of several seeds (a percentile bootstrap over five of them covers 85 % only).

    Raises:
        ValueError: Fewer than two seeds.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least two of them, got {len(values)}")
    half = student_quantile(len(values) - 1, level) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half).clipped(bounds)


def cluster_index(clusters: Sequence[object] | np.ndarray) -> np.ndarray:
    """For each entry the number of its cluster, from 0."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(str(cluster), len(numbers)) for cluster in clusters], dtype=int)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
    return ratio


def _of_no_variation(value: float, clusters: int, bounds: Bounds, level: float) -> Interval:
    if bounds == SHARE:
        return wilson(min(max(value, 0.0), 1.0), clusters, level)
    if bounds == DIFFERENCE:
        reach = wilson(0.0, clusters, level).high
        return Interval(value - reach, value + reach).clipped(bounds)
    return Interval(value, value)
