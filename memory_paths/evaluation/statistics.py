"""Intervals: how far off a figure could be, given which questions and which seeds happened to be drawn.

This file knows nothing of questions, paths or files: it works on arrays of sums and counts by cluster. Questions
about the same person are not independent of one another, so whole clusters are redrawn, never single answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev

import numpy as np

LEVEL = 0.95
POWER = 0.8
DRAWS = 2000
MINIMUM_CLUSTERS = 30
MOST_CLUSTERS = 1000
_CHUNK = 1000
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


def student_quantile(degrees: float, level: float = LEVEL) -> float:
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
    """The interval of one statistic of cell means; see `cluster_intervals`."""
    (interval,) = cluster_intervals(sums, counts, [statistic], generator=generator, bounds=[bounds], level=level)
    return interval


def cluster_intervals(
    sums: np.ndarray,
    counts: np.ndarray,
    statistics: Sequence[Statistic],
    *,
    generator: np.random.Generator,
    bounds: Sequence[Bounds],
    level: float = LEVEL,
) -> list[Interval]:
    """The intervals of statistics of cell means, over the clusters that the answers come in, all from the same draws.

    From 30 clusters on a bootstrap of clusters, of 1,000 random groups where there are more, its percentiles expanded
    for their number (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", 3.3); below that a jackknife of
    clusters with Student's t, which for a plain mean over clusters of equal size is Student's t over the cluster means.
    A share or difference that does not vary at all from cluster to cluster gets the width of Wilson's interval with one
    trial a cluster. One cluster says nothing: the bounds come back.

    Args:
        sums: Sum of the values, of shape (clusters, cells).
        counts: Number of the values, of shape (clusters, cells).
        statistics: Each from cell means of shape (..., cells) to figures of shape (...); NaN where it is undefined.
        generator: Where chance comes from.
        bounds: What each figure can be at all.
        level: Nominal coverage, in (0, 1).
    """
    clusters = len(sums)
    if clusters < 2:
        return [Interval(*edges) for edges in bounds]
    if clusters > MOST_CLUSTERS:  # groups of clusters vary as they do, and there are still many
        order = generator.permutation(clusters)
        starts = np.arange(MOST_CLUSTERS) * clusters // MOST_CLUSTERS
        sums, counts = (np.add.reduceat(each[order], starts, axis=0) for each in (sums, counts))
        clusters = MOST_CLUSTERS
    whole = _ratio(sums.sum(0), counts.sum(0))
    redrawn = clusters >= MINIMUM_CLUSTERS
    if redrawn:
        drawn = generator.integers(clusters, size=(DRAWS, clusters)) + clusters * np.arange(DRAWS)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=DRAWS * clusters).reshape(DRAWS, clusters).astype(float)
        means = _ratio(weights @ sums, weights @ counts)
    else:
        means = _ratio(sums.sum(0) - sums, counts.sum(0) - counts)
    found = []
    for statistic, edges in zip(statistics, bounds, strict=True):
        value, figures = float(statistic(whole)), statistic(means)
        figures = figures[np.isfinite(figures)]
        if len(figures) < 2:
            found.append(Interval(*edges))
            continue
        interval = _percentiles(figures, clusters, level) if redrawn else _jackknife(value, figures, level)
        if interval.high - interval.low < 1e-12:
            found.append(_of_no_variation(value, clusters, edges, level))
        else:
            found.append(interval.clipped(edges))
    return found


def _percentiles(figures: np.ndarray, clusters: int, level: float) -> Interval:
    expanded = math.sqrt(clusters / (clusters - 1)) * student_quantile(clusters - 1, level)
    tail = NormalDist().cdf(-expanded)
    low, high = (float(edge) for edge in np.quantile(figures, (tail, 1 - tail)))
    return Interval(low, high)


def _jackknife(value: float, figures: np.ndarray, level: float) -> Interval:
    size = len(figures)
    error = math.sqrt((size - 1) / size * float(((figures - figures.mean()) ** 2).sum()))
    half = error * student_quantile(size - 1, level)
    return Interval(value - half, value + half)


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
    return over_seeds(values).interval(bounds, level)


@dataclass(frozen=True)
class Estimate:
    """A difference with its standard error and that error's degrees of freedom, for Student's t."""

    value: float
    error: float
    degrees: float

    def floored(self, trials: int) -> Estimate:
        """The same with at least the error that Wilson's interval gives where none of `trials` showed anything: data
        that do not vary at all are few, not certain."""
        least = wilson(0.0, trials).high / NormalDist().inv_cdf(0.5 + LEVEL / 2)
        return replace(self, error=max(self.error, least))

    def interval(self, bounds: Bounds = DIFFERENCE, level: float = LEVEL) -> Interval:
        """Where the difference may lie."""
        half = self.error * student_quantile(self.degrees, level)
        return Interval(self.value - half, self.value + half).clipped(bounds)

    @property
    def p_value(self) -> float:
        """Of no difference, two-sided. 1 where nothing differs, 0 where all differ by the same."""
        from scipy.special import stdtr

        if self.error == 0.0:
            return float(self.value == 0.0)
        return float(2 * stdtr(self.degrees, -abs(self.value) / self.error))

    def minimum_detectable(self, power: float = POWER) -> float:
        """The least true difference that such data would show to differ from none in a share `power` of cases."""
        from scipy.special import stdtrit

        return self.error * (student_quantile(self.degrees) + float(stdtrit(self.degrees, power)))


def over_seeds(differences: Sequence[float]) -> Estimate:
    """From the difference of each seed, where each seed has questions of its own.

    Raises:
        ValueError: Fewer than two seeds.
    """
    _several(differences)
    return Estimate(fmean(differences), stdev(differences) / math.sqrt(len(differences)), len(differences) - 1)


def over_clusters(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """From the sums and counts of the differences of each cluster, both of shape (clusters,): the ratio estimator's
    linearised error.

    Raises:
        ValueError: Fewer than two clusters.
    """
    _several(sums)
    value = float(sums.sum() / counts.sum())
    residuals = (sums - value * counts) / counts.mean()
    error = math.sqrt(float((residuals**2).sum()) / (len(sums) - 1) / len(sums))
    return Estimate(value, error, len(sums) - 1)


def share_over_clusters(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """The interval of a share by Student's t over clusters, for where many are wanted: cheaper than `cluster_interval`.
    Where nothing varies it is Wilson's with one trial a cluster; one cluster says nothing."""
    if len(sums) < 2:
        return Interval(*SHARE)
    estimate = over_clusters(sums, counts)
    if estimate.error < 1e-12:
        return _of_no_variation(estimate.value, len(sums), SHARE, LEVEL)
    return estimate.interval(SHARE)


def over_seeds_and_clusters(means: np.ndarray) -> Estimate:
    """From differences of shape (seeds, clusters) where every seed was asked the same questions: both seeds and
    questions might have been others (two random effects; degrees of freedom by Satterthwaite 1946).

    Raises:
        ValueError: Fewer than two seeds or clusters.
    """
    seeds, clusters = means.shape
    _several(means)
    _several(means[0])
    value, by_seed, by_cluster = float(means.mean()), means.mean(1), means.mean(0)
    rest = means - by_seed[:, None] - by_cluster + value
    squares = (
        clusters * float(((by_seed - value) ** 2).sum()) / (seeds - 1),
        seeds * float(((by_cluster - value) ** 2).sum()) / (clusters - 1),
        float((rest**2).sum()) / ((seeds - 1) * (clusters - 1)),
    )
    degrees = (seeds - 1, clusters - 1, (seeds - 1) * (clusters - 1))
    # Never less than either effect alone would give: the sum of mean squares can come out too small, even below 0.
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    spread = sum(square**2 / free for square, free in zip(squares, degrees, strict=True))
    free = max(1.0, variance**2 / spread) if spread else float(degrees[0])
    return Estimate(value, math.sqrt(variance / (seeds * clusters)), free)


def hierarchical_draws(
    sums: np.ndarray, counts: np.ndarray, *, crossed: bool, generator: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """Means of redrawn data: seeds are redrawn, and within each of them clusters.

    Args:
        sums: Of shape (..., seeds, clusters). What leads, such as paths, is redrawn together, so that it stays paired.
        counts: The number of values in each sum, of the same shape.
        crossed: Whether the clusters are the same for every seed, and so redrawn once for all.
        generator: Where chance comes from.
        draws: How many.

    Returns:
        Of shape (draws, ...). Its spread is that of seeds and clusters together and overstates that of a mean: it is
        meant for what has no error formula, such as which path is best.
    """
    seeds, clusters = sums.shape[-2:]
    lead = sums.shape[:-2]
    flat = np.stack((sums, counts)).reshape(-1, clusters).astype(np.float32).T
    parts = []
    for size in (min(_CHUNK, draws - done) for done in range(0, draws, _CHUNK)):
        chosen = generator.integers(seeds, size=(size, seeds))
        total = np.zeros((size, 2, math.prod(lead)))
        for slot in range(seeds):
            if slot == 0 or not crossed:
                drawn = generator.integers(clusters, size=(size, clusters), dtype=np.int32)
                drawn += clusters * np.arange(size, dtype=np.int32)[:, None]
                weights = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
                each = (weights.astype(np.float32) @ flat).reshape(size, 2, -1, seeds)
            total += each[np.arange(size), :, :, chosen[:, slot]]
        parts.append(_ratio(total[:, 0], total[:, 1]))
    return np.concatenate(parts).reshape(draws, *lead)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values made larger so that the chance of any false finding among them stays at their level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def minimum_detectable(questions: int, clusters: int, *, share: float = 0.5, correlation: float = 0.5) -> float:
    """Before a run: the least difference between two paths' shares of right answers that is found four times in five.

    Args:
        questions: How many are asked of each path, at least 1.
        clusters: About how many things they are, at most as many.
        share: Of right answers that is expected; one half is the worst case.
        correlation: Between answers about the same thing, and between the answers of both paths to the same question.

    Raises:
        ValueError: No question, or more clusters than questions.
    """
    if not 1 <= clusters <= questions:
        raise ValueError(f"there must be from 1 to {questions} clusters of {questions} questions, got {clusters}")
    design = 1 + (questions / clusters - 1) * correlation
    error = math.sqrt(2 * share * (1 - share) * (1 - correlation) * design / questions)
    return min(1.0, Estimate(0.0, error, max(1, clusters - 1)).minimum_detectable())


def _several(of: Sequence[float] | np.ndarray) -> None:
    if len(of) < 2:
        raise ValueError(f"an error needs at least two seeds or clusters, got {len(of)}")


def cluster_index(clusters: Sequence[object] | np.ndarray) -> np.ndarray:
    """For each entry the number of its cluster, from 0."""
    if isinstance(clusters, np.ndarray) and clusters.dtype.kind in "iu":
        return np.unique(clusters, return_inverse=True)[1]
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=int)


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
