"""Continual learning as five desiderata, each one number in [0, 1] for each path, and their minimum as its score.

After "Defining Continual Learning" (I. Lichkovski, PrimeIntellect, 2026). Who learns continually keeps what was there,
learns one thing after the other, also what is unlike anything before, from little, and puts together what was learnt
apart. What a path reaches is measured against the same model with the right items in its prompt (`oracle`): the model's
own limits are not the path's. Of a model that cannot read, choices among given answers are measured, against the
untouched model and against choosing rightly always. A mean would let one desideratum pay for another, so the score is
the least.

This file reads reports of one world at three distances (`stream.shift`); it knows nothing of runs or pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from memory_paths.evaluation.curves import EFFORT
from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report, flattened
from memory_paths.evaluation.statistics import SHARE, seeds_interval, wilson

FEWEST_STAGES = 8
EXPOSURES = 1000.0
"""How often a path may have to read an item, relative to its own length, until its efficiency is 0."""
DESIDERATA = {
    "preserves": "of what was known before and of reading, the lesser share that is left",
    "sequential": f"right in the end about what {FEWEST_STAGES} or more experiences taught, each seen once",
    "shifted": "the same with strange names and with a strange language, and what is left of prior knowledge then, the "
    "least",
    "efficient": f"1 where an item is read once until nine tenths are right, 0 where {EXPOSURES:.0f} times or never",
    "composes": "right where an answer needs two items of different experiences",
}
_SHIFTS = ("names", "language")


@dataclass(frozen=True)
class Standing:
    """How a path stands by the definition.

    Args:
        path: Its label.
        lm: The language model.
        load: Number of items taught.
        desiderata: By name of `DESIDERATA`, in [0, 1], over seeds.
        score: The least of them for each seed, over seeds.
    """

    path: str
    lm: str
    load: int
    desiderata: Mapping[str, Metric]
    score: Metric

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        found = {name: metric.to_json() for name, metric in self.desiderata.items()}
        return {"path": self.path, "lm": self.lm, "load": self.load, "desiderata": found, "score": self.score.to_json()}


def standings(labelled: Sequence[tuple[Report, str]]) -> tuple[Standing, ...]:
    """How each path stands, best first; empty where there are no runs at several shifts.

    Args:
        labelled: Reports, each with the settings in which it differs from others of its path. Runs of one path at
            several efforts are one path: its efficiency is that of the least effort that is enough, all else that of
            the greatest.
    """
    runs: dict[tuple[str, str, int], dict[str, dict[str, list[Report]]]] = {}
    for report, variant in labelled:
        shift = flattened(report.config).get("stream.shift")
        if shift is None or any(map(report.config.get, ("joint", "alone"))):
            continue
        parts = [part for part in variant.split() if not part.startswith(("budget.effort=", "stream.", "shift="))]
        seeds = runs.setdefault((" ".join([report.path, *parts]), report.lm, report.load), {})
        seeds.setdefault(str(report.config.get("seeds", report.seed)), {}).setdefault(str(shift), []).append(report)
    if not any(len(shifts) > 1 for seeds in runs.values() for shifts in seeds.values()):
        return ()
    found = []
    for (path, lm, load), seeds in runs.items():
        beside = {other: by_seed for (other, *rest), by_seed in runs.items() if rest == [lm, load]}
        by_seed = [
            _of_seed(shifts, {other: of.get(seed, {}) for other, of in beside.items()})
            for seed, shifts in seeds.items()
        ]
        desiderata = {name: _over([each[name] for each in by_seed]) for name in DESIDERATA}
        found.append(Standing(path, lm, load, desiderata, _over([_least(each.values()) for each in by_seed])))
    return tuple(
        sorted(found, key=lambda standing: -(standing.score.value if standing.score.value is not None else -1))
    )


_Shifts = Mapping[str, Sequence[Report]]
"""Runs of a path with one seed by their shift; several where they differ in effort."""


@dataclass(frozen=True)
class _Judged:
    kept: Metric
    learnt: Metric
    composed: Metric
    acquired: Metric


def _of_seed(own: _Shifts, by_path: Mapping[str, _Shifts]) -> dict[str, Metric]:
    """The desiderata of a path's runs, given those of all paths."""

    def control(name: str, shift: str) -> Report | None:
        return _most_effort(by_path.get(name, {}).get(shift))

    oracle = control("oracle", "none")
    if "none" not in own or oracle is None:
        missing = "not run without a shift" if "none" not in own else "the oracle was not run with the same seed"
        return dict.fromkeys(DESIDERATA, undefined(missing))
    judge = _by_answers if _reads(oracle, control("none", "none")) else _by_choices

    def judged(report: Report | None, shift: str) -> _Judged:
        oracle = control("oracle", shift)
        if report is None or oracle is None:
            return _Judged(*[undefined(f"not run with the shift {shift!r}")] * 4)
        return judge(report, oracle, control("none", shift))

    plain, *away = (judged(_most_effort(own.get(shift)), shift) for shift in ("none", *_SHIFTS))
    acquired = {path: judged(_most_effort(of.get("none")), "none").acquired for path, of in by_path.items()}
    goal = acquired["oracle"] if judge is _by_answers else _most(acquired.values())
    stages = len(own["none"][0].matrix) - 1
    return {
        "preserves": plain.kept,
        "sequential": plain.learnt
        if stages >= FEWEST_STAGES
        else undefined(f"{stages} experiences are fewer than {FEWEST_STAGES}"),
        "shifted": _least(figure for each in away for figure in (each.learnt, each.kept)),
        "efficient": _efficiency([(report, judged(report, "none").acquired) for report in own["none"]], goal),
        "composes": plain.composed,
    }


def _reads(oracle: Report, untouched: Report | None) -> bool:
    """Whether the right item in the prompt helps the model at all; where it does not, free answers say nothing."""
    told, without = (report.metrics["retention"] if report else undefined("not run") for report in (oracle, untouched))
    if told.value is None or without.value is None:
        return True
    return (told.value if told.low is None else told.low) > without.value


def _by_answers(report: Report, oracle: Report, untouched: Report | None) -> _Judged:
    """Against the same model with the right items in its prompt."""

    def relative(name: str) -> Metric:
        return _ratio(report.metrics[name], oracle.metrics[name])

    kept = _least(
        _ratio(report.metrics[f"{what}_after"], report.metrics[f"{what}_before"]) for what in ("prior", "skill")
    )
    return _Judged(kept, relative("average_accuracy"), relative("composition"), relative("acquisition"))


def _by_choices(report: Report, oracle: Report, untouched: Report | None) -> _Judged:
    """Of what is left to be gained over the untouched model in choosing the right one of several answers by its
    likelihood, and by how much less likely ordinary texts have become, for each token."""

    def gained(name: str) -> Metric:
        metric = report.metrics.get(name, undefined("not measured"))
        chance = untouched.metrics.get(name, metric) if untouched else metric
        if metric.value is None or chance.value is None:
            return metric if metric.value is None else chance
        if chance.value == 1.0:
            return undefined("the untouched model chooses rightly already")
        return Metric(min(1.0, max(0.0, (metric.value - chance.value) / (1.0 - chance.value))), n=metric.n)

    kept = _ratio(report.metrics["prior_perplexity_before"], report.metrics["prior_perplexity_after"])
    return _Judged(kept, gained("choice"), gained("composition_choice"), gained("choice"))


def _efficiency(runs: Iterable[tuple[Report, Metric]], goal: Metric) -> Metric:
    """By the logarithm of how often an item was read in the cheapest run that reaches nine tenths of the goal."""
    enough = []
    for report, acquired in runs:
        if not goal.value or acquired.value is None or not report.item_tokens:
            return undefined("the runs do not say how long the items are, or nothing was acquired at all")
        if acquired.value >= 0.9 * goal.value:
            enough.append(max(1.0, report.cost["write"]["lm"]["tokens"] / report.item_tokens))
    return Metric(max(0.0, 1 - math.log(min(enough), EXPOSURES)) if enough else 0.0)


def _ratio(metric: Metric, reference: Metric) -> Metric:
    if metric.value is None or reference.value is None:
        return metric if metric.value is None else reference
    if reference.value == 0.0:
        return undefined("what it is measured against is 0")
    return Metric(min(1.0, metric.value / reference.value), n=metric.n)


def _most(metrics: Iterable[Metric]) -> Metric:
    found = [metric for metric in metrics if metric.value is not None]
    return max(found, key=lambda metric: metric.value or 0.0) if found else undefined("nothing was acquired")


def _least(metrics: Iterable[Metric]) -> Metric:
    found = list(metrics)
    lacking = [metric for metric in found if metric.value is None]
    return lacking[0] if lacking else min(found, key=lambda metric: metric.value if metric.value is not None else 0.0)


def _over(metrics: Sequence[Metric]) -> Metric:
    lacking = [metric for metric in metrics if metric.value is None]
    if lacking:
        return lacking[0]
    values = [metric.value for metric in metrics if metric.value is not None]
    if len(values) == 1:
        return metrics[0]
    count = sum(metric.n for metric in metrics)
    interval = seeds_interval(values, bounds=SHARE)
    if interval.high - interval.low < 1e-12:  # seeds that agree exactly still rest on a finite number of answers
        interval = wilson(fmean(values), max(count, len(values)))
    return Metric(fmean(values), interval.low, interval.high, count)


def _most_effort(reports: Sequence[Report] | None) -> Report | None:
    return max(reports, key=lambda report: float(flattened(report.config).get(EFFORT) or 1.0)) if reports else None


def render_standings(found: Sequence[Standing]) -> str:
    """A Markdown table: for each path its desiderata and the least of them, with intervals over seeds."""
    reasons: dict[str, str] = {}

    def cell(metric: Metric) -> str:
        if metric.value is None:
            return f"- {reasons.setdefault(metric.reason, chr(ord('a') + len(reasons)))}"
        within = "" if metric.low is None or metric.high is None else f" [{metric.low:.2f} {metric.high:.2f}]"
        return f"{metric.value:.2f}{within}"

    lines = [f"| path | {' | '.join(DESIDERATA)} | score |", "|---" * (len(DESIDERATA) + 2) + "|"]
    lines += [
        f"| {standing.path} | {' | '.join(cell(standing.desiderata[name]) for name in DESIDERATA)} "
        f"| {cell(standing.score)} |"
        for standing in found
    ]
    notes = [f"{letter}: {reason}  " for reason, letter in reasons.items()]
    return "\n".join([*lines, "", *(f"{name}: {what}  " for name, what in DESIDERATA.items()), *notes])
