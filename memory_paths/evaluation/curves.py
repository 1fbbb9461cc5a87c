"""Learning against forgetting: what a path gives up of what was known for what it learns, as its effort grows.

A method that forgets little because it learnt little is no better for it, so forgetting is read off where the
methods have acquired equally much. This file reads reports; it knows nothing of how they came about or are drawn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report, flattened
from memory_paths.evaluation.statistics import DIFFERENCE, seeds_interval

EFFORT = "path.memory.budget.effort"
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One path at several efforts.

    Args:
        label: Path and what else tells it from the others.
        load: Number of items taught.
        family: Model and stream.
        points: For each seed (acquisition, change of prior knowledge), in the order of effort. The first is that of no
            effort at all: nothing learnt, nothing lost.
        efforts: Of the points after the first.
    """

    label: str
    load: int
    family: str
    points: Mapping[str, tuple[Point, ...]]
    efforts: tuple[float, ...]

    @property
    def mean(self) -> list[Point]:
        """The points, mean over seeds."""
        columns = zip(*self.points.values(), strict=True)
        return [(fmean(x for x, _ in column), fmean(y for _, y in column)) for column in columns]

    @property
    def reach(self) -> float:
        """The highest acquisition that every seed reaches."""
        return min(max(x for x, _ in points) for points in self.points.values())

    def forgetting(self, acquisition: float) -> Metric:
        """How much prior knowledge is lost (a share, positive where something is lost) at this acquisition.

        Interpolated between efforts for each seed; the interval is over seeds.
        """
        if acquisition > self.reach:
            return undefined(f"it acquires {self.reach:.2f} at most")
        lost = [-_at(points, acquisition) for points in self.points.values()]
        if len(lost) == 1:
            return Metric(lost[0], n=1)
        interval = seeds_interval(lost, bounds=DIFFERENCE)
        return Metric(fmean(lost), interval.low, interval.high, len(lost))


def curves_of(labelled: Sequence[tuple[Report, str]]) -> tuple[Curve, ...]:
    """A curve for each path that was run at two efforts or more.

    Args:
        labelled: Reports, each with the settings in which it differs from others of its path. Seeds that lack one of
            the efforts, or a figure, are left out.
    """
    groups: dict[tuple[str, int, str], dict[str, dict[float, Point]]] = {}
    for report, variant in labelled:
        effort = flattened(report.config).get(EFFORT)
        acquired, changed = (report.metrics.get(name) for name in ("acquisition", "prior_change"))
        if effort is None or not acquired or not changed or acquired.value is None or changed.value is None:
            continue
        others = " ".join(part for part in variant.split() if not part.startswith("budget.effort="))
        family = f"{report.stream.removesuffix(f'-{report.load}')} on {report.lm}"
        seed = json.dumps(report.config.get("seeds", report.seed), sort_keys=True)
        by_seed = groups.setdefault((f"{report.path} {others}".strip(), report.load, family), {})
        by_seed.setdefault(seed, {})[float(effort)] = (acquired.value, changed.value)
    curves = []
    for (label, load, family), by_seed in groups.items():
        efforts = sorted({effort for found in by_seed.values() for effort in found})
        whole = {seed: found for seed, found in by_seed.items() if len(found) == len(efforts)}
        if len(efforts) > 1 and whole:
            points = {seed: ((0.0, 0.0), *(found[effort] for effort in efforts)) for seed, found in whole.items()}
            curves.append(Curve(label, load, family, points, tuple(efforts)))
    return tuple(curves)


def matched(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Forgetting of all curves of a family and load at the highest acquisition that each of them reaches."""
    rows: list[dict[str, Any]] = []
    for family, load in dict.fromkeys((curve.family, curve.load) for curve in curves):
        group = [curve for curve in curves if (curve.family, curve.load) == (family, load)]
        level = min(curve.reach for curve in group)
        rows += [
            {
                "family": family,
                "load": load,
                "acquisition": level,
                "path": curve.label,
                "forgetting": curve.forgetting(level).to_json(),
            }
            for curve in group
        ]
    return rows


def _at(points: Sequence[Point], acquisition: float) -> float:
    """The change where the curve first comes to an acquisition on its way of growing effort."""
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if x <= acquisition <= next_x:
            share = (acquisition - x) / (next_x - x) if next_x > x else 0.0
            return float(np.interp(share, (0.0, 1.0), (y, next_y)))
    return points[-1][1]
