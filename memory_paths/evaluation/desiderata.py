"""Continual learning as five desiderata, each one number in [0, 1] for each path, and their minimum as its score.

After "Defining Continual Learning" (I. Lichkovski, PrimeIntellect, 2026). Who learns continually keeps what was there,
learns one thing after the other, also what is unlike anything before, from little, and puts together what was learnt
apart. What a path reaches is measured against the same model with the right items in its prompt (`oracle`): the model's
own limits are not the path's. Of a model that cannot read, choices among given answers are measured, against the
untouched model and against choosing rightly always. A mean would let one desideratum pay for another, so the score is
the least.

This file reads reports of a stream at three distances (`stream.shift`); it knows nothing of runs or pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from memory_paths.evaluation.curves import EFFORT
from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report, family_name, flattened
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
CHOICES = {
    **DESIDERATA,
    "preserves": "how likely ordinary texts are still, for each token",
    "sequential": f"of what the untouched model chose wrongly, the share that is chosen rightly in the end, after "
    f"{FEWEST_STAGES} or more experiences, each seen once",
    "efficient": f"1 where an item is read once until nine tenths of that are, 0 where {EXPOSURES:.0f} times or never",
    "composes": "the same where an answer needs items of different experiences",
}
"""What the desiderata are of a model that cannot read, and so has to choose among answers that are given."""
_SHIFTS = ("names", "language")
Judged = Literal["answers", "choices"]
MEASURED: Mapping[Judged, str] = {
    "answers": "Measured against the same model with the right items in its prompt.",
    "choices": "This model cannot read, so that what it chooses among given answers is measured, against the untouched "
    "model and against choosing rightly always.",
}


@dataclass(frozen=True)
class Standing:
    """How a path stands by the definition.

    Args:
        path: Its label.
        lm: The language model.
        stream: What was taught, without the shift.
        load: Number of items taught.
        judged: By its free answers, see `DESIDERATA`, or, of a model that cannot read, by what it chooses, see
            `CHOICES`.
        desiderata: By name of `DESIDERATA`, in [0, 1], over seeds.
        score: The least of them for each seed, over seeds.
    """

    path: str
    lm: str
    stream: str
    load: int
    judged: Judged
    desiderata: Mapping[str, Metric]
    score: Metric

    @property
    def where(self) -> str:
        """Stream and model, see `report.family_name`."""
        return family_name(self.stream, self.load, self.lm)

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        found = {name: metric.to_json() for name, metric in self.desiderata.items()}
        return {**vars(self), "desiderata": found, "score": self.score.to_json()}


def standings(labelled: Sequence[tuple[Report, str]]) -> tuple[Standing, ...]:
    """How each path stands, by stream and model, best first; empty where there are no runs at several shifts.

    Args:
        labelled: Reports, each with the settings in which it differs from others of its path. Runs of one path at
            several efforts are one path: its efficiency is that of the least effort that is enough, all else that of
            the greatest.
    """
    groups: dict[tuple[str, str, int], dict[str, dict[str, dict[str, list[Report]]]]] = {}
    for report, variant in labelled:
        shift = flattened(report.config).get("stream.shift")
        if shift is None:
            continue
        parts = [part for part in variant.split() if not part.startswith(("budget.effort=", "stream.", "shift="))]
        paths = groups.setdefault((report.lm, report.stream.replace(f"-{shift}", "", 1), report.load), {})
        seeds = paths.setdefault(" ".join([report.path, *parts]), {})
        seeds.setdefault(str(report.config.get("seeds", report.seed)), {}).setdefault(str(shift), []).append(report)
    found = []
    for (lm, stream, load), paths in groups.items():
        if not any(len(shifts) > 1 for seeds in paths.values() for shifts in seeds.values()):
            continue
        judged = _judged(paths)
        for path, seeds in paths.items():
            by_seed = [
                _of_seed(shifts, {other: of.get(seed, {}) for other, of in paths.items()}, judged)
                for seed, shifts in seeds.items()
            ]
            desiderata = {name: _over([each[name] for each in by_seed]) for name in DESIDERATA}
            score = _over([_least(each.values()) for each in by_seed])
            found.append(Standing(path, lm, stream, load, judged, desiderata, score))
    return tuple(
        sorted(
            found,
            key=lambda one: (one.where, one.load, -(one.score.value if one.score.value is not None else -1.0)),
        )
    )


def reads(oracle: Metric, untouched: Metric, skill: Metric) -> bool:
    """Whether a model reads what stands in its prompt; where it does not, free answers say nothing of a path.

    Args:
        oracle: What is retained with the right item in the prompt. It may be little where the model reads: it may not
            believe what it knows otherwise.
        untouched: What is retained without any memory.
        skill: What the untouched model is right about in reading tasks.

    Returns:
        Whether it is right in any reading task or, where none was asked, surely right more often with the right item
        than without. True where that is not known.
    """
    if skill.value is not None:
        return skill.value > 0.0
    if oracle.value is None or untouched.value is None:
        return True
    return (oracle.value if oracle.low is None else oracle.low) > untouched.value


_Shifts = Mapping[str, Sequence[Report]]
"""Runs of a path with one seed by their shift; several where they differ in effort."""


@dataclass(frozen=True)
class _Reached:
    kept: Metric
    learnt: Metric
    composed: Metric
    acquired: Metric


def _judged(paths: Mapping[str, Mapping[str, _Shifts]]) -> Judged:
    """One measure for all seeds and paths of a model and a stream."""

    def figure(path: str, name: str) -> Metric:
        runs = [_most_effort(shifts.get("none")) for shifts in paths.get(path, {}).values()]
        return _over([run.metrics[name] for run in runs if run is not None] or [undefined("not run")])

    able = reads(figure("oracle", "retention"), figure("none", "retention"), figure("none", "skill_before"))
    return "answers" if able else "choices"


def _of_seed(own: _Shifts, by_path: Mapping[str, _Shifts], judged: Judged) -> dict[str, Metric]:
    """The desiderata of a path's runs, given those of all paths with the same seed."""
    control, judge = ("oracle", _by_answers) if judged == "answers" else ("none", _by_choices)

    def reached(report: Report | None, shift: str) -> _Reached:
        reference = _most_effort(by_path.get(control, {}).get(shift))
        if report is None or reference is None:
            who = "it" if report is None else f"{control!r}"
            return _Reached(*[undefined(f"{who} was not run with the same seed and stream.shift={shift}")] * 4)
        return judge(report, reference)

    plain, *away = (reached(_most_effort(own.get(shift)), shift) for shift in ("none", *_SHIFTS))
    runs = own.get("none", ())
    stages = len(runs[0].matrix) - 1 if runs else FEWEST_STAGES
    return {
        "preserves": plain.kept,
        "sequential": plain.learnt
        if stages >= FEWEST_STAGES
        else undefined(f"{stages} experiences are fewer than {FEWEST_STAGES}"),
        "shifted": _least(figure for each in away for figure in (each.learnt, each.kept)),
        "efficient": _efficiency([(report, reached(report, "none").acquired) for report in runs]),
        "composes": plain.composed,
    }


def _by_answers(report: Report, oracle: Report) -> _Reached:
    """Against the same model with the right items in its prompt."""

    def relative(name: str) -> Metric:
        return _ratio(report.metrics[name], oracle.metrics[name])

    kept = _least(
        _ratio(report.metrics[f"{what}_after"], report.metrics[f"{what}_before"]) for what in ("prior", "skill")
    )
    return _Reached(kept, relative("average_accuracy"), relative("composition"), relative("acquisition"))


def _by_choices(report: Report, untouched: Report) -> _Reached:
    """Of what the untouched model chooses wrongly among several answers, by their likelihoods, the share that is chosen
    rightly; and by how much less likely ordinary texts have become, for each token."""

    def figure(of: Report, name: str) -> Metric:
        return of.metrics.get(name) or undefined("not measured: evaluation.likelihoods=true")

    def gained(name: str) -> Metric:
        metric, chance = figure(report, name), figure(untouched, name)
        if metric.value is None or chance.value is None:
            return metric if metric.value is None else chance
        if chance.value == 1.0:
            return undefined("the untouched model chooses rightly already")
        return Metric(min(1.0, max(0.0, (metric.value - chance.value) / (1.0 - chance.value))), n=metric.n)

    kept = _ratio(figure(report, "prior_perplexity_before"), figure(report, "prior_perplexity_after"))
    return _Reached(kept, gained("choice"), gained("composition_choice"), gained("acquisition_choice"))


def _efficiency(runs: Iterable[tuple[Report, Metric]]) -> Metric:
    """By the logarithm of how often an item was read in the cheapest run that acquires nine tenths."""
    enough: list[tuple[float, int]] = []
    lacking = undefined("not run without a shift")
    for report, acquired in runs:
        if acquired.value is None:
            return acquired
        if not report.item_tokens:
            return undefined("the runs do not say how long the items are")
        lacking = Metric(0.0, n=acquired.n)
        if acquired.value >= 0.9:
            enough.append((max(1.0, report.cost["write"]["lm"]["tokens"] / report.item_tokens), acquired.n))
    if not enough:
        return lacking
    exposures, asked = min(enough)
    return Metric(max(0.0, 1 - math.log(exposures, EXPOSURES)), n=asked)


def _ratio(metric: Metric, reference: Metric) -> Metric:
    if metric.value is None or reference.value is None:
        return metric if metric.value is None else reference
    if reference.value == 0.0:
        return undefined("what it is measured against is 0")
    return Metric(min(1.0, metric.value / reference.value), n=metric.n)


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


def meanings(judged: Judged) -> Mapping[str, str]:
    """What each desideratum says, by how it was judged."""
    return DESIDERATA if judged == "answers" else CHOICES
