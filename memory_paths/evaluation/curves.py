"""Learning against forgetting: what a path gives up of what was known for what it learns, as its effort grows.

A method that forgets little because it learnt little is no better for it, so forgetting is read off where the
methods have acquired equally much. This file reads reports; it knows nothing of how they came about or are drawn.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report, family_name, flattened
from memory_paths.evaluation.statistics import DIFFERENCE, UNBOUNDED, Bounds, seeds_interval

EFFORT = "path.memory.budget.effort"
Point = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """What learning and forgetting are read off.

    Args:
        learnt: Name of the metric that says how much was learnt.
        known: Name of the metric that says how what was known before has changed, negative where something is lost.
        levels: Of learning, at which forgetting is compared.
        bounds: Of forgetting.
    """

    learnt: str
    known: str
    levels: tuple[float, ...]
    bounds: Bounds


ANSWERS = Measure("acquisition", "prior_change", (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95), DIFFERENCE)
LIKELIHOODS = Measure("loglikelihood_gain", "prior_gain", (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0), UNBOUNDED)
"""For models that cannot answer in words: both in nats per token, so that prior perplexity has grown by a factor of exp
of what is lost."""


@dataclass(frozen=True)
class Curve:
    """One path at several efforts.

    Args:
        label: Path and what else tells it from the others.
        load: Number of items taught.
        family: Model and stream.
        points: For each seed (what was learnt, change of what was known), in the order of effort.
        efforts: Of the points.
        measure: What the points are of.
    """

    label: str
    load: int
    family: str
    points: Mapping[str, tuple[Point, ...]]
    efforts: tuple[float, ...]
    measure: Measure = ANSWERS

    @property
    def mean(self) -> list[Point]:
        """The points, mean over seeds."""
        columns = zip(*self.points.values(), strict=True)
        return [(fmean(x for x, _ in column), fmean(y for _, y in column)) for column in columns]

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the most learnt that were measured for every seed."""
        measured = [[x for x, _ in points] for points in self.points.values()]
        return max(map(min, measured)), min(map(max, measured))

    def forgetting(self, level: float) -> Metric:
        """How much of what was known is lost (positive where something is) where so much was learnt.

        Interpolated between efforts for each seed; the interval is over seeds. Undefined beyond what was measured.
        """
        least, most = self.reach
        verb = "acquires" if self.measure == ANSWERS else "gains"
        if level > most:
            return undefined(f"it {verb} {most:.2f} at most")
        if level < least:
            return undefined(f"it {verb} {least:.2f} at least")
        lost = [-_at(points, level) for points in self.points.values()]
        if len(lost) == 1:
            return Metric(lost[0], n=1)
        interval = seeds_interval(lost, bounds=self.measure.bounds)
        return Metric(fmean(lost), interval.low, interval.high, len(lost))


def curves_of(labelled: Sequence[tuple[Report, str]], measure: Measure = ANSWERS) -> tuple[Curve, ...]:
    """A curve for each path that was run at two efforts or more.

    Args:
        labelled: Reports, each with the settings in which it differs from others of its path. Efforts that most seeds
            lack are left out, and then seeds that lack an effort.
        measure: What to read off the reports.
    """
    groups: dict[tuple[str, int, str], dict[str, dict[float, Point]]] = {}
    for report, variant in labelled:
        effort = flattened(report.config).get(EFFORT)
        acquired, changed = (report.metrics.get(name) for name in (measure.learnt, measure.known))
        if effort is None or not acquired or not changed or acquired.value is None or changed.value is None:
            continue
        others = " ".join(part for part in variant.split() if not part.startswith("budget.effort="))
        where = family_name(report.stream, report.load, report.lm)
        seed = json.dumps(report.config.get("seeds", report.seed), sort_keys=True)
        by_seed = groups.setdefault((f"{report.path} {others}".strip(), report.load, where), {})
        by_seed.setdefault(seed, {})[float(effort)] = (acquired.value, changed.value)
    curves = []
    for (label, load, family), by_seed in groups.items():
        times = Counter(effort for found in by_seed.values() for effort in found)
        efforts = sorted(effort for effort, count in times.items() if 2 * count >= len(by_seed))
        whole = {seed: found for seed, found in by_seed.items() if set(efforts) <= set(found)}
        if len(efforts) > 1 and whole:
            points = {seed: tuple(found[effort] for effort in efforts) for seed, found in whole.items()}
            curves.append(Curve(label, load, family, points, tuple(efforts), measure))
    return tuple(curves)


def matched(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Forgetting of all curves of a family and load at each level of their measure at which two of them at least are
    defined."""
    rows: list[dict[str, Any]] = []
    for family, load in dict.fromkeys((curve.family, curve.load) for curve in curves):
        group = [curve for curve in curves if (curve.family, curve.load) == (family, load)]
        for level in group[0].measure.levels:
            found = [(curve.label, curve.forgetting(level)) for curve in group]
            if sum(metric.value is not None for _, metric in found) > 1:
                place = {"family": family, "load": load, group[0].measure.learnt: level}
                rows += [{**place, "path": label, "forgetting": metric.to_json()} for label, metric in found]
    return rows


def _at(points: Sequence[Point], level: float) -> float:
    """The change where the curve first comes to a level on its way of growing effort: by monotone cubics through the
    points (Fritsch and Carlson 1980) where more effort always acquires more, straight from point to point elsewhere."""
    from scipy.interpolate import PchipInterpolator

    learnt, changed = zip(*points, strict=True)
    if all(x < next_x for x, next_x in itertools.pairwise(learnt)):
        return float(PchipInterpolator(learnt, changed)(level))
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if min(x, next_x) <= level <= max(x, next_x):
            share = (level - x) / (next_x - x) if next_x != x else 0.0
            return float(np.interp(share, (0.0, 1.0), (y, next_y)))
    return points[-1][1]
