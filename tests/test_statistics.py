"""Intervals: that they cover what they say, that naive ones would not, and what they are at the edges."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from memory_paths.evaluation.statistics import (
    UNBOUNDED,
    Interval,
    cluster_interval,
    difference_interval,
    generator_for,
    hierarchical_draws,
    holm,
    mean_interval,
    minimum_detectable,
    over_clusters,
    over_seeds,
    over_seeds_and_clusters,
    paired_interval,
    seeds_interval,
    student_quantile,
    wilson,
)


def _clustered(
    generator: np.random.Generator, clusters: int, size: int, share: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose chance of being right is drawn once for each cluster, from a beta of strong correlation."""
    chances = generator.beta(2 * share, 2 * (1 - share), clusters)
    answers = (generator.random((clusters, size)) < chances[:, None]).astype(float)
    return answers.ravel(), np.repeat(np.arange(clusters), size)


def _coverage(repeats: int, clusters: int, size: int, *, naive: bool = False) -> float:
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(repeats):
        values, names = _clustered(generator, clusters, size)
        interval = mean_interval(values, np.arange(len(values)) if naive else names, generator=generator)
        covered += interval.low <= 0.6 <= interval.high
    return covered / repeats


@pytest.mark.parametrize(("clusters", "size"), [(30, 10), (84, 5), (12, 6)])
def test_intervals_of_clustered_answers_cover_what_they_say(clusters: int, size: int) -> None:
    assert 0.915 <= _coverage(600, clusters, size) <= 0.98


def test_ignoring_clusters_covers_far_too_little() -> None:
    assert _coverage(80, 30, 10, naive=True) < 0.85


def _covers(kind: str, generator: np.random.Generator) -> bool:
    """Whether one interval of simulated data holds what they were drawn from."""
    if kind == "independent":
        values, truth = (generator.random(200) < 0.6).astype(float), 0.6
        interval = mean_interval(values, np.arange(200), generator=generator)
    elif kind == "clustered":
        values, names = _clustered(generator, 30, 10)
        interval, truth = mean_interval(values, names, generator=generator), 0.6
    elif kind == "paired":
        before, names = _clustered(generator, 40, 5)
        after = np.where(generator.random(before.size) < 0.2, 0.0, before)
        interval, truth = paired_interval(before, after, names, generator=generator), -0.12
    elif kind == "ratio":
        sizes = generator.integers(1, 12, 60)
        sums = generator.binomial(sizes, generator.beta(3, 2, 60)).astype(float)
        interval, truth = (
            cluster_interval(
                np.stack((sums, np.ones(60)), 1),
                np.stack((sizes.astype(float), np.ones(60)), 1),
                lambda means: means[..., 0] / means[..., 1],
                generator=generator,
            ),
            0.6,
        )
    else:
        values = 0.7 + 0.1 * generator.standard_normal(int(kind.split()[0]))
        interval, truth = seeds_interval(values.tolist()), 0.7
    return interval.low <= truth <= interval.high


KINDS = ("independent", "clustered", "paired", "ratio", "3 seeds", "5 seeds")


@pytest.mark.skipif(not os.environ.get("MEMORY_PATHS_FULL"), reason="2,000 data sets of each kind: make proofs")
@pytest.mark.parametrize("kind", KINDS)
def test_nominal_95_percent_intervals_cover_95_percent_of_2000_data_sets(kind: str) -> None:
    generator = np.random.default_rng(11)
    coverage = np.mean([_covers(kind, generator) for _ in range(2000)])
    assert 0.935 <= coverage <= 0.965, coverage


def test_a_paired_interval_is_narrower_than_that_of_two_separate_means_and_covers() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        before, names = _clustered(generator, 40, 5)
        changed = generator.random(before.size) < 0.2
        after = np.where(changed, 0.0, before)
        interval = paired_interval(before, after, names, generator=generator)
        covered += interval.low <= -0.12 <= interval.high
    assert 0.91 <= covered / 300 <= 0.985
    apart = [mean_interval(values, names, generator=generator) for values in (before, after)]
    independent = math.hypot(*(each.high - each.low for each in apart))
    assert interval.high - interval.low < 0.5 * independent


def test_few_clusters_get_students_t_over_their_means() -> None:
    means = np.array([0.2, 0.4, 0.9, 0.5])
    interval = mean_interval(means.repeat(3), np.arange(4).repeat(3), generator=np.random.default_rng(0))
    half = 3.182446305 * means.std(ddof=1) / 2
    assert interval.low == pytest.approx(max(0.0, 0.5 - half), abs=1e-6)
    assert interval.high == pytest.approx(min(1.0, 0.5 + half), abs=1e-6)


def test_a_perfect_score_still_has_an_interval() -> None:
    interval = mean_interval(np.ones(200), np.arange(200) // 5, generator=np.random.default_rng(0))
    assert interval == wilson(1.0, 40)
    assert interval.high == 1.0
    assert 0.90 < interval.low < 0.95
    unchanged = paired_interval(np.ones(50), np.ones(50), np.arange(50), generator=np.random.default_rng(0))
    assert unchanged.low == -unchanged.high
    assert 0.0 < unchanged.high < 0.1


def test_one_cluster_says_nothing() -> None:
    assert mean_interval([1.0, 0.0], ["a", "a"], generator=np.random.default_rng(0)) == Interval(0.0, 1.0)


def test_wilson_equals_published_values() -> None:
    assert wilson(0.0, 10).low == 0.0
    assert wilson(0.0, 10).high == pytest.approx(0.27753, abs=1e-5)
    assert (wilson(0.5, 10).low, wilson(0.5, 10).high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0.5, 0)


def test_seeds_get_students_t() -> None:
    interval = seeds_interval([0.8, 0.9, 1.0])
    assert interval.high - 0.9 == pytest.approx(4.302652730 * 0.1 / math.sqrt(3), abs=1e-8)
    assert seeds_interval([0.8, 0.9, 1.0], bounds=(0.0, 1.0)).high == 1.0
    assert student_quantile(1) == pytest.approx(12.7062047, abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        seeds_interval([0.5])


def test_the_same_seed_gives_the_same_interval_and_names_keep_generators_apart() -> None:
    values, names = _clustered(np.random.default_rng(1), 40, 5)
    one, other = (mean_interval(values, names, generator=generator_for(0, "retention")) for _ in range(2))
    assert one == other
    assert generator_for(0, "retention").random() != generator_for(0, "acquisition").random()


@pytest.mark.parametrize(("seeds", "by_seed", "by_cluster"), [(3, 0.05, 0.2), (5, 0.05, 0.2), (5, 0.2, 0.1)])
def test_an_error_over_seeds_that_share_their_questions_covers(seeds: int, by_seed: float, by_cluster: float) -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(600):
        means = by_seed * generator.standard_normal((seeds, 1)) + by_cluster * generator.standard_normal((1, 50))
        means = means + 0.3 * generator.standard_normal((seeds, 50))
        interval = over_seeds_and_clusters(means).interval(UNBOUNDED)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.91 <= covered / 600 <= 0.99


def test_an_estimate_says_how_likely_and_how_large() -> None:
    estimate = over_seeds([0.1, 0.2, 0.3])
    assert estimate.p_value == pytest.approx(0.0742, abs=1e-4), "t = 3.464 of two degrees of freedom"
    assert over_seeds([0.0, 0.0]).p_value == 1.0
    assert over_seeds([0.1, 0.1]).p_value == 0.0
    sums, counts = np.array([2.0, 0.0, 1.0]), np.array([4.0, 2.0, 2.0])
    assert over_clusters(sums, counts).value == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match="at least two"):
        over_clusters(np.ones(1), np.ones(1))


def test_what_can_be_detected_is_detected_four_times_in_five() -> None:
    effect = minimum_detectable(400, 400, share=0.5, correlation=0.0)
    generator = np.random.default_rng(2)
    found = 0
    for _ in range(500):
        first = (generator.random(400) < 0.5 + effect / 2).astype(float)
        second = (generator.random(400) < 0.5 - effect / 2).astype(float)
        found += over_clusters(first - second, np.ones(400)).p_value < 0.05
    assert 0.75 <= found / 500 <= 0.86
    assert minimum_detectable(200, 20) > minimum_detectable(200, 200) > minimum_detectable(2000, 2000)
    with pytest.raises(ValueError, match="1 to 10 clusters"):
        minimum_detectable(10, 11)


def test_holm_equals_the_published_procedure() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_redrawing_seeds_and_clusters_keeps_paths_paired_and_spreads_as_it_should() -> None:
    generator = np.random.default_rng(0)
    answers = (generator.random((1, 4, 300)) < 0.6).astype(float)
    both = np.concatenate((answers, answers))
    drawn = hierarchical_draws(both, np.ones_like(both), crossed=True, generator=generator, draws=1500)
    assert drawn.shape == (1500, 2)
    assert np.array_equal(drawn[:, 0], drawn[:, 1]), "two equal paths are equal in every draw"
    assert drawn[:, 0].mean() == pytest.approx(float(answers.mean()), abs=0.003)
    shifted = np.arange(4.0)[None, :, None] + np.zeros((1, 4, 300))
    between = hierarchical_draws(shifted, np.ones_like(shifted), crossed=False, generator=generator, draws=4000)
    assert float(between.std()) == pytest.approx(math.sqrt(1.25 / 4), rel=0.05), "seeds alone vary"


def test_values_without_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="one cluster for each value"):
        mean_interval([1.0, 0.0], ["a"], generator=np.random.default_rng(0))


def test_the_difference_of_two_shares_is_that_of_the_published_examples() -> None:
    """Newcombe 1998, table II, method 10."""
    for counts, low, high in (
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 10), -0.2775, 0.2775),
    ):
        interval = difference_interval(*counts)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        difference_interval(0, 0, 1, 2)
