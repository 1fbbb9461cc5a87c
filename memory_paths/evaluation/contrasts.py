"""Which path is better than which, question by question: paired differences, corrected for how many were looked at.

This file works on the outcomes that reports carry; it knows nothing of records or of how a page is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from memory_paths.evaluation.metrics import Metric, Outcome
from memory_paths.evaluation.statistics import (
    Estimate,
    generator_for,
    hierarchical_draws,
    holm,
    over_clusters,
    over_seeds,
    over_seeds_and_clusters,
)

TIE = 0.05
"""Two paths tie where the whole interval of their difference is within this."""
DRAWS = 10_000
Words = Literal["better", "tied", "underpowered"]
Outcomes = Mapping[str, Sequence[Outcome]]
"""By seed, what each question's last answer was worth."""


@dataclass(frozen=True)
class Contrast:
    """One path against another on the same questions.

    Args:
        family: Model and stream.
        load: Number of items taught.
        metric: "retention", or "prior" for what was known before, both after the last stage.
        better: The path with the larger share of right answers.
        worse: The other.
        difference: Of their shares, at least 0, with its interval; n is the number of questions of all seeds.
        p_value: Of there being no difference.
        adjusted_p: The same by Holm, for all pairs of paths that were looked at together.
        minimum_detectable: The least true difference that these data would have shown in four cases of five.
        words: "better": adjusted_p is below .05; "tied": the interval is within 5 points of none; "underpowered":
            neither can be said.
    """

    family: str
    load: int
    metric: str
    better: str
    worse: str
    difference: Metric
    p_value: float
    adjusted_p: float
    minimum_detectable: float
    words: Words

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        return {**vars(self), "difference": self.difference.to_json()}


def contrasts_of(family: str, load: int, metric: str, by_path: Mapping[str, Outcomes]) -> list[Contrast]:
    """The path with most right answers against each other one; not yet adjusted for other groups, see `adjusted`."""
    means = {path: _mean(outcomes) for path, outcomes in by_path.items() if any(outcomes.values())}
    if len(means) < 2:
        return []
    best = max(means, key=means.__getitem__)
    found = []
    for path in means:
        compared = None if path == best else _difference(by_path[best], by_path[path])
        if compared is None:
            continue
        estimate, questions = compared
        better, worse = (best, path) if estimate.value >= 0 else (path, best)
        estimate = replace(estimate, value=abs(estimate.value))
        interval = estimate.interval()
        found.append(
            Contrast(
                family,
                load,
                metric,
                better,
                worse,
                Metric(estimate.value, interval.low, interval.high, questions),
                estimate.p_value,
                estimate.p_value,
                min(1.0, estimate.minimum_detectable()),
                "underpowered",
            )
        )
    return found


def adjusted(groups: Sequence[Sequence[Contrast]]) -> tuple[Contrast, ...]:
    """All contrasts of an experiment with their p-values adjusted together, and put into words.

    Args:
        groups: Each what `contrasts_of` gave. Who is best was seen in the data, so that every pair of a group's paths
            has been looked at, and counts, not only those of the best.
    """
    contrasts = [contrast for group in groups for contrast in group]
    pairs = sum(len(group) * (len(group) + 1) // 2 for group in groups)
    p_values = holm([*(contrast.p_value for contrast in contrasts), *[1.0] * (pairs - len(contrasts))])
    p_values = p_values[: len(contrasts)]
    return tuple(
        replace(contrast, adjusted_p=p_value, words=_words(contrast, p_value))
        for contrast, p_value in zip(contrasts, p_values, strict=True)
    )


def chances_of_best(by_path: Mapping[str, Outcomes], draws: int = DRAWS) -> dict[str, float]:
    """For each path in how many of `draws` redrawn data sets (seeds, and questions within them) it has most right
    answers, ties shared; empty where they were not all asked the same questions."""
    paths = [path for path, outcomes in by_path.items() if any(outcomes.values())]
    seeds = sorted(set.intersection(*(set(by_path[path]) for path in paths))) if paths else []
    if len(paths) < 2 or not seeds:
        return {}
    keyed = {path: {seed: dict(_by_key(by_path[path][seed])) for seed in seeds} for path in paths}
    if any(set(keyed[path][seed]) != set(keyed[paths[0]][seed]) for path in paths for seed in seeds):
        return {}
    clusters = {seed: {key: cluster for key, cluster, _ in by_path[paths[0]][seed]} for seed in seeds}
    width = 1 + max(cluster for of_seed in clusters.values() for cluster in of_seed.values())
    shape = (len(paths), len(seeds), width)
    sums, counts = np.zeros(shape), np.zeros(shape)
    for at, path in enumerate(paths):
        for place, seed in enumerate(seeds):
            for key, value in keyed[path][seed].items():
                sums[at, place, clusters[seed][key]] += value
                counts[at, place, clusters[seed][key]] += 1
    crossed = all(clusters[seed] == clusters[seeds[0]] for seed in seeds)
    drawn = hierarchical_draws(sums, counts, crossed=crossed, generator=generator_for(*paths), draws=draws)
    winners = drawn >= drawn.max(1, keepdims=True) - 1e-9
    shares = (winners / winners.sum(1, keepdims=True)).mean(0)
    return {path: float(share) for path, share in zip(paths, shares, strict=True)}


def _difference(first: Outcomes, second: Outcomes) -> tuple[Estimate, int] | None:
    """The mean difference over the questions that both were asked, and how many they are; None for too few."""
    seeds: list[dict[str, tuple[int, float]]] = []
    for seed in sorted(set(first) & set(second)):
        others = dict(_by_key(second[seed]))
        paired = {key: (cluster, value - others[key]) for key, cluster, value in first[seed] if key in others}
        if paired:
            seeds.append(paired)
    if not seeds:
        return None
    questions = sum(map(len, seeds))
    same = {key: cluster for key, (cluster, _) in seeds[0].items()}
    crossed = all({key: cluster for key, (cluster, _) in seed.items()} == same for seed in seeds)
    if len(seeds) > 1 and not crossed:
        clusters = sum(len({cluster for cluster, _ in seed.values()}) for seed in seeds)
        means = [float(np.mean([value for _, value in seed.values()])) for seed in seeds]
        return _floored(over_seeds(means), [value for seed in seeds for _, value in seed.values()], clusters), questions
    names = list(same)
    index = np.unique([same[key] for key in names], return_inverse=True)[1]
    if index.max() < 1:
        return None
    values = np.array([[seed[key][1] for key in names] for seed in seeds])
    counts = np.bincount(index)
    if len(seeds) == 1:
        estimate = over_clusters(np.bincount(index, values[0]), counts)
    else:
        estimate = over_seeds_and_clusters(np.array([np.bincount(index, row) / counts for row in values]))
    return _floored(estimate, values.ravel(), len(counts)), questions


def _floored(estimate: Estimate, values: Sequence[float] | np.ndarray, trials: int) -> Estimate:
    """Right and wrong may by chance not vary where nothing is certain; scores that are graded for the most part, and
    vary, speak for themselves."""
    graded = float(np.mean(np.asarray(values) % 1.0 != 0.0)) > 0.5
    return estimate if graded and estimate.error > 0.0 else estimate.floored(trials)


def _by_key(outcomes: Sequence[Outcome]) -> list[tuple[str, float]]:
    return [(key, value) for key, _, value in outcomes]


def _mean(outcomes: Outcomes) -> float:
    return float(np.mean([np.mean([value for _, _, value in found]) for found in outcomes.values() if found]))


def _words(contrast: Contrast, p_value: float) -> Words:
    difference = contrast.difference
    if p_value < 0.05:
        return "better"
    if difference.low is not None and difference.high is not None and max(-difference.low, difference.high) <= TIE:
        return "tied"
    return "underpowered"
