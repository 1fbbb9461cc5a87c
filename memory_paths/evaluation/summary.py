"""Many runs in one view: collected from their folders, seeds put together, compared in words, written as files.

This file reads reports and nothing else of a run; it knows nothing of models, records or how a page is drawn.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from memory_paths.evaluation.churn import Churn
from memory_paths.evaluation.contrasts import Contrast, adjusted, chances_of_best, contrasts_of
from memory_paths.evaluation.costs import MEASURES, break_even, rescaled, unit
from memory_paths.evaluation.curves import ANSWERS, LIKELIHOODS, Curve, curves_of, matched
from memory_paths.evaluation.desiderata import Standing, reads, standings
from memory_paths.evaluation.matrix import intransigence, learning_transfer
from memory_paths.evaluation.metrics import Metric, Outcome, undefined
from memory_paths.evaluation.records import RECORDS, write_file
from memory_paths.evaluation.report import REPORT, Report, family_name, flattened, read_lines
from memory_paths.evaluation.statistics import DIFFERENCE, SHARE, UNBOUNDED, Bounds, Interval, seeds_interval

LOGGER = logging.getLogger(__name__)
PATH_ORDER = (
    *("none", "oracle", "shuffled", "full_context", "icl", "rag", "rag_bm25", "rag_fusion"),
    *("sparse_memory", "sparse_memory_thorough", "sparse_memory_frequency", "sparse_memory_random"),
    *("sparse_memory_all", "sparse_memory_attached", "sparse_memory_last"),
    *("lora", "full", "full_rehearsal"),
)
_TEXT_PATHS = ("icl", "rag")
CONTROLS = ("none", "oracle", "shuffled", "full_context")
FAILED = "failed.json"
PAGE = "report.html"
_CHANGES = (
    *("backward_transfer", "forgetting", "forgetting_from_maximum", "forgetting_corrected", "forward_transfer"),
    *("prior_change", "skill_change", "neighbour_change", "plasticity", "intransigence", "learning_transfer"),
)
_GAINS = ("loglikelihood_gain", "paraphrase_gain", "prior_gain")
_OTHERS = ("harness_", "general_ability_")
_PERPLEXITIES = ("prior_perplexity_before", "prior_perplexity_after")
_MEASURED = ("decay", "half_life", "kl_on_new", "weights_changed", "rows_touched", "slots_in_use", "hub_reads")
RETRIEVAL = (
    *("recall_at_1", "recall_at_5", "recall_offered", "recall_shown", "reciprocal_rank"),
    *("answer_offered", "answer_shown", "unknown_offered"),
)
_UNREAD = (
    "choice",
    "acquisition_choice",
    "composition_choice",
    *_GAINS,
    *_PERPLEXITIES,
    *_MEASURED,
    "chance",
    *RETRIEVAL,
)
_CLASS = "._target_"
_PLACES = ("file", "folder", "dir", "ledger", "statistics", "progress", "threads", "sinks")


@dataclass(frozen=True)
class Line:
    """What a path did at one load, over all its seeds.

    Args:
        path: Name of the path.
        variant: Settings in which it differs from other runs of the same path and load; empty where there are none.
        load: Number of items taught.
        lm: Name of the language model.
        stream: Name of the stream.
        seeds: Of the runs that went in (their `seeds.order`), one for each.
        metrics: By name; with several seeds the interval is over seeds, with one it is over items only.
        matrix: Mean over seeds, cell by cell; None: not measured.
        cost: Mean over seeds.
        parameters: Of the language model; None where it does not say.
        ages: As in a report, over seeds like the metrics.
        churn: As in a report, added up.
        misses: As in a report, added up.
        outcomes: By the seeds of a run, as in its report.
        config: Settings of the first run.
        versions: Of the first run.
    """

    path: str
    variant: str
    load: int
    lm: str
    stream: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    matrix: list[list[Metric | None]]
    cost: Mapping[str, Any]
    parameters: int | None
    ages: Mapping[str, Metric]
    churn: Mapping[str, Churn]
    misses: Mapping[str, int]
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]]
    config: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def is_control(self) -> bool:
        """Whether it says what others are to be measured against, and is itself no way to remember."""
        return self.path in CONTROLS or _learns_otherwise(self.config)

    @property
    def label(self) -> str:
        """Path and variant."""
        return f"{self.path} {self.variant}".strip()

    @property
    def family(self) -> str:
        """Stream and model, see `report.family_name`."""
        return family_name(self.stream, self.load, self.lm)

    def metric(self, name: str) -> Metric:
        """A figure; undefined where the runs did not measure it."""
        return self.metrics.get(name) or undefined("not measured in these runs")


@dataclass(frozen=True)
class Failure:
    """A run that left no report, and why as far as it is known."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Run:
    """A run with a report: its folder, as seen from that of the summary, and what it is part of."""

    folder: str
    label: str
    load: int
    lm: str
    stream: str
    seed: int


@dataclass(frozen=True)
class Summary:
    """All runs of a folder. `lines` are in order of stream, load and path; `curves` are of the paths that were run at
    several efforts, `standings` of those that were run at several shifts; `runs` are empty where reports were not read
    from folders."""

    lines: tuple[Line, ...]
    failures: tuple[Failure, ...]
    curves: tuple[Curve, ...] = ()
    standings: tuple[Standing, ...] = ()
    runs: tuple[Run, ...] = ()

    @cached_property
    def contrasts(self) -> tuple[Contrast, ...]:
        """The path that keeps most against each other one, and likewise what was known before, for each load; adjusted
        for how many are looked at of a stream, each of which is an experiment by itself."""
        found: dict[str, list[list[Contrast]]] = {}
        for metric in ("retention", "prior"):
            for (family, load), group in _groups(self.lines):
                compared = contrasts_of(family, load, metric, _outcomes(group, metric))
                found.setdefault(family, []).append(compared)
        return tuple(contrast for groups in found.values() for contrast in adjusted(groups))

    @cached_property
    def chances(self) -> list[dict[str, Any]]:
        """For each load, in how many of 10,000 redrawn data sets each path keeps most."""
        found = []
        for (family, load), group in _groups(self.lines):
            chances = chances_of_best(_outcomes(group, "retention"))
            found += [{"family": family, "load": load, "path": path, "best": share} for path, share in chances.items()]
        return found

    @property
    def verdict(self) -> str:
        """What the runs say, in one sentence: who keeps most at each load, ties as ties, who lost prior knowledge."""
        return verdict(self.lines, self.contrasts)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each path and load, as a table for pandas."""
        return [_flat(line) for line in self.lines]

    def break_even(self, parameters: float | None = None) -> list[dict[str, Any]]:
        """For each load, after how many questions a path pays off, in FLOPs, against one that only stores text.

        Args:
            parameters: Of the language model that is meant; None: of the one that was measured.
        """
        found: list[dict[str, Any]] = []
        for (family, load), group in _groups(self.lines):
            contenders = [line for line in group if not line.is_control and line.cost.get("reads")]
            for dear in (line for line in contenders if line.path not in _TEXT_PATHS):
                for other in (line for line in contenders if line.path in _TEXT_PATHS):
                    size = dear.parameters or other.parameters
                    if parameters is not None and size is None:
                        reads = undefined("the runs do not say how large their model is")
                    else:
                        grown = 1.0 if parameters is None or size is None else parameters / size
                        reads = break_even(rescaled(dear.cost, grown), rescaled(other.cost, grown))
                    found.append(
                        {
                            "family": family,
                            "load": load,
                            "path": dear.label,
                            "against": other.label,
                            "reads": reads.to_json(),
                        }
                    )
        return found

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        lines = [
            {
                **{name: value for name, value in vars(line).items() if name != "outcomes"},
                **{
                    part: {name: figure.to_json() for name, figure in getattr(line, part).items()}
                    for part in ("metrics", "ages", "churn")
                },
                "matrix": [[cell and cell.value for cell in row] for row in line.matrix],
                "spread": [[cell and (cell.low, cell.high, cell.n) for cell in row] for row in line.matrix],
            }
            for line in self.lines
        ]
        return {
            "schema": 1,
            "verdict": self.verdict,
            "lines": lines,
            "break_even": self.break_even(),
            "matched": matched(self.curves),
            "definition": [standing.to_json() for standing in self.standings],
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "chances": self.chances,
            "failures": [vars(failure) for failure in self.failures],
        }

    def write(self, folder: str | Path) -> Path:
        """Write summary.json, summary.csv and report.html into a folder.

        Returns:
            The page.
        """
        target = Path(folder)
        content = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_file(target / "summary.json", content.encode())
        write_file(target / "summary.csv", _as_csv(self.rows()).encode())
        return self.write_page(target)

    def write_page(self, folder: str | Path) -> Path:
        """Write report.html alone.

        Returns:
            The page.
        """
        from memory_paths.evaluation.page import render

        page = Path(folder) / PAGE
        write_file(page, render(self, Path(folder)).encode())
        return page


def collect(folder: str | Path, ignore: Sequence[str] = ()) -> Summary:
    """Every run under a folder, however deep, or in a file of `report.write_lines`.

    Args:
        folder: Where to look.
        ignore: Names of settings (such as "weights.counted") in which runs may differ and are one line all the same.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
        ValueError: The file holds something else.
    """
    found, failures = _found(Path(folder))
    names = _model_names({report.lm for _, report in found})
    found = [(name, replace(report, lm=names[report.lm])) for name, report in found]
    reports = [report for _, report in found]
    groups = _same_name(reports)
    labelled = [pair for group in groups for pair in zip(group, _variants(group, ignore), strict=True)]
    in_steps = [(report, variant) for report, variant in labelled if not _learns_otherwise(report.config)]
    lines = _without_reading(summarise(reports, ignore))
    read = {(line.family, line.load) for line in lines if line.metric("acquisition").value is not None}
    curves = tuple(
        curve
        for measure in (ANSWERS, LIKELIHOODS)
        for curve in curves_of(in_steps, measure)
        if ((curve.family, curve.load) in read) == (measure == ANSWERS)
    )
    labels = {id(report): f"{report.path} {variant}".strip() for report, variant in labelled}
    runs = tuple(
        Run(name, labels[id(report)], report.load, report.lm, report.stream, report.seed)
        for name, report in found
        if name
    )
    return Summary(lines, tuple(failures), curves, standings(in_steps), runs)


def _model_names(models: Iterable[str]) -> dict[str, str]:
    """What a page calls each model: one that lies in a folder by the folder's name, if no other has the same."""
    short = {model: Path(model).name if Path(model).is_absolute() else model for model in models}
    times = Counter(short.values())
    return {model: name if times[name] == 1 else model for model, name in short.items()}


def reports_of(folder: str | Path) -> tuple[list[Report], list[Failure]]:
    """The reports of all runs, in the order of their folders, and the runs without one: a run that left records or a
    failed.json but no report is a failure and is named by its folder. See `collect`."""
    found, failures = _found(Path(folder))
    return [report for _, report in found], failures


def _found(root: Path) -> tuple[list[tuple[str, Report]], list[Failure]]:
    """See `reports_of`; each report with its folder below `root`, empty for those of a file."""
    if root.is_file():
        return [("", report) for report in read_lines(root)], []
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder of a run or of a sweep")
    reports: list[tuple[str, Report]] = []
    failures: list[Failure] = []
    for run in sorted(_run_folders(root), key=_natural):
        name = str(run.relative_to(root)) if run != root else str(run)
        try:
            reports.append((str(run.relative_to(root)), Report.read(run)))
        except FileNotFoundError:
            failures.append(Failure(name, _why(run)))
        except ValueError as error:
            failures.append(Failure(name, str(error)))
    if not reports and not failures:
        raise FileNotFoundError(f"no run in {root}: there is no {REPORT} anywhere below it")
    return reports, failures


def summarise(reports: Sequence[Report], ignore: Sequence[str] = ()) -> tuple[Line, ...]:
    """Reports put together by path, settings (but for those to ignore), load, model and stream; seeds become one
    line. Runs of an experience alone are no lines beside the whole, which is measured against them."""
    lines = []
    for group in _same_name(_against_references(reports)):
        variants: dict[str, list[Report]] = {}
        for report, variant in zip(group, _variants(group, ignore), strict=True):
            variants.setdefault(variant, []).append(report)
        lines += [_line(variant, same) for variant, same in variants.items()]
    return tuple(sorted(lines, key=_place))


def _against_references(reports: Sequence[Report]) -> list[Report]:
    """The same reports with `intransigence` and `learning_transfer` where there are runs that differ in learning
    everything at once, and in learning one experience alone."""
    joint: dict[str, Report] = {}
    alone: dict[str, dict[int, Report]] = {}
    whole: dict[str, list[Report]] = {}
    for report in reports:
        number, run = report.config.get("alone"), _apart_from_references(report)
        if number is not None:
            alone.setdefault(run, {})[int(number)] = report
        elif report.config.get("joint"):
            joint[run] = report
        else:
            whole.setdefault(run, []).append(report)
    found = []
    for report in reports:
        run = _apart_from_references(report)
        if report.config.get("alone") is not None and run in whole:
            continue
        reference = _learns_otherwise(report.config)
        against = {
            "intransigence": _intransigence(report, None if reference else joint.get(run)),
            "learning_transfer": _learning_transfer(report, {} if reference else alone.get(run, {})),
        }
        found.append(replace(report, metrics={**report.metrics, **against}))
    return found


def _learns_otherwise(config: Mapping[str, Any]) -> bool:
    """Whether everything was taught at once, or one experience alone: what learning in steps is measured against."""
    return bool(config.get("joint")) or config.get("alone") is not None


def _apart_from_references(report: Report) -> str:
    named = {"path": report.path, "lm": report.lm, "stream": report.stream, "seed": report.seed}
    rest = {name: value for name, value in flattened(report.config).items() if not _is_place(name)}
    return json.dumps({**named, **rest, "joint": None, "alone": None}, sort_keys=True)


def _intransigence(report: Report, joint: Report | None) -> Metric:
    if joint is None:
        return undefined("no run of it learnt everything at once (joint=true)")
    at_once, learnt = joint.metrics["average_accuracy"], _learnt(report)
    if at_once.value is None or learnt.value is None:
        return at_once if at_once.value is None else learnt
    return Metric(float(intransigence(_as_array(report.matrix), np.array(at_once.value))), n=learnt.n)


def _learning_transfer(report: Report, alone: Mapping[int, Report]) -> Metric:
    learnt, later = _learnt(report), range(2, len(report.matrix))
    if not later or learnt.value is None:
        return undefined("needs an experience that follows another, and was asked right after it was taught")
    if missing := [number for number in later if number not in alone]:
        return undefined(f"no run of it learnt experience {missing[0]} alone (alone={','.join(map(str, later))})")
    if not all(each.spread for each in (report, *alone.values())):
        return undefined("its reports do not say how much was asked of each experience; evaluate anew")
    asked = {number: (report.spread[number][number - 1], alone[number].spread[-1][0]) for number in later}
    for number, cells in asked.items():
        counts = [cell[2] if cell is not None else 0 for cell in cells]
        if counts[0] != counts[1] or not counts[0]:
            return undefined(
                f"of experience {number} {counts[1]} questions were asked alone and {counts[0]} in steps: some need"
                " earlier ones, or evaluation.samples is too small"
            )
    scores = np.array([np.nan, *(alone[number].matrix[-1][0] for number in later)], dtype=float)
    count = sum(whole[2] for whole, _ in asked.values() if whole is not None)
    return Metric(float(learning_transfer(_as_array(report.matrix), scores)), n=count)


def _learnt(report: Report) -> Metric:
    return report.metrics.get("learning_accuracy") or undefined("not measured in this run")


def _as_array(matrix: list[list[float | None]]) -> np.ndarray:
    return np.array(matrix, dtype=float)


def _is_place(name: str) -> bool:
    return any("seed" in part or part in _PLACES for part in name.split("."))


def _same_name(reports: Sequence[Report]) -> list[list[Report]]:
    by_name: dict[tuple[str, int, str, str], list[Report]] = {}
    for report in reports:
        by_name.setdefault((report.path, report.load, report.lm, report.stream), []).append(report)
    return list(by_name.values())


def verdict(lines: Sequence[Line], contrasts: Sequence[Contrast] = ()) -> str:
    """See `Summary.verdict`."""
    opening, parts = verdict_parts(lines, contrasts)
    return f"{opening}: {'; '.join(parts)}." if parts else f"{opening}."


def verdict_parts(lines: Sequence[Line], contrasts: Sequence[Contrast] = ()) -> tuple[str, list[str]]:
    """The verdict as what it is about, and one finding for each load: by contrasts where there are any, by whether
    intervals overlap elsewhere."""
    if not lines:
        return "No run was finished, so there is nothing to compare", []
    families = {line.family for line in lines}
    parts = []
    for (family, load), group in _groups(lines):
        where = f"{load} items" + (f" of {family}" if len(families) > 1 else "")
        compared = {
            frozenset((contrast.better, contrast.worse)): contrast.words
            for contrast in contrasts
            if (contrast.family, contrast.load, contrast.metric) == (family, load, "retention")
        }
        parts.append(f"with {where} {_ranking([line for line in group if not line.is_control], compared)}")
    over = (
        "over items only (one seed)"
        if {len(line.seeds) for line in lines} == {1}
        else "over seeds where there are several"
    )
    return f"Retention, with 95 % intervals {over}", parts


def matched_in_words(curves: Sequence[Curve]) -> list[str]:
    """A sentence for each family and load: who forgets how much where all have acquired the same."""
    found = matched(curves)
    told = []
    for (family, load, acquisition, gain), rows in groupby(
        found, key=lambda row: (row["family"], row["load"], row.get("acquisition"), row.get("loglikelihood_gain"))
    ):
        by_path = [(row["path"], Metric.from_json(row["forgetting"])) for row in rows]
        ranked = sorted(by_path, key=lambda pair: pair[1].value if pair[1].value is not None else math.inf)
        words = ", ".join(
            f"{path} {' '.join(score(metric)).strip()}" + (f" ({metric.reason})" if metric.reason else "")
            for path, metric in ranked
        )
        where = f"{load} items of {family}" if len({row["family"] for row in found}) > 1 else f"{load} items"
        told.append(
            f"At an acquisition of {_short(acquisition)} with {where}, the loss of prior knowledge is: {words}."
            if gain is None
            else f"At a gain of {_short(gain)} nats per token with {where}, the loss on prior texts in nats per token "
            f"is: {words}."
        )
    return told


def is_signed(name: str) -> bool:
    """Whether a figure is a change, to be shown with its sign."""
    return name in (*_CHANGES, *_GAINS) or (name.startswith(_OTHERS) and name.endswith("_change"))


def score(metric: Metric, signed: bool = False) -> tuple[str, str]:
    """A figure and its interval for people, such as (".94", "[.91 .96]"); a dash where it is not defined."""
    if metric.value is None:
        return "-", ""
    value = _short(metric.value, signed)
    if metric.low is None or metric.high is None:
        return value, ""
    return value, f"[{_short(metric.low)} {_short(metric.high)}]"


def amount(value: float | None, kind: str = "") -> str:
    """A quantity for people, three digits at most: 1.2k, 34 ms, 5.6 MB."""
    if value is None:
        return "-"
    if kind == "seconds":
        return f"{_digits(value * 1000)}ms" if value < 1 else f"{_digits(value)}s"
    units = ("B", "kB", "MB", "GB", "TB") if kind == "bytes" else ("", "k", "M", "G", "T", "P")
    for name in units[:-1]:
        if abs(value) < 999.5:
            return _digits(value) + name
        value /= 1000
    return _digits(value) + units[-1]


def _ranking(contenders: Sequence[Line], compared: Mapping[frozenset[str], str]) -> str:
    ranked = sorted(
        (line for line in contenders if line.metric("retention").value is not None),
        key=lambda line: -_value(line.metric("retention")),
    )
    if not contenders:
        return "only control runs"
    if not ranked:
        gains = sorted(
            (line for line in contenders if line.metric("loglikelihood_gain").value is not None),
            key=lambda line: -_value(line.metric("loglikelihood_gain")),
        )
        if gains:
            told = ", ".join(f"{line.label} {_told(line, 'loglikelihood_gain', signed=True)}" for line in gains)
            return f"no free answers to compare, log-likelihood per token gained {told}"
        return f"no retention to compare ({contenders[0].metric('retention').reason})"
    best = ranked[0]

    def against_best(line: Line) -> str:
        overlapping = "tied" if _interval(line).overlaps(_interval(best)) else "better"
        return "" if line is best else compared.get(frozenset((line.label, best.label)), overlapping)

    found = {line.label: against_best(line) for line in ranked}
    tied = [line for line in ranked if found[line.label] != "better"]
    behind = [line for line in ranked if line not in tied]
    told = " and ".join(f"{line.label} {_told(line)}" for line in tied)
    if len(ranked) == 1:
        words = f"{told}, with nothing to compare it with"
    elif len(tied) > 1:
        words = f"{told} cannot be told apart" if "underpowered" in found.values() else f"{told} tie"
    else:
        words = f"{told} keeps most"
    if behind:
        words += f", ahead of {', '.join(f'{line.label} {_told(line)}' for line in behind)}"
    broke = [line for line in ranked if (line.metric("prior_change").high or 0.0) < 0.0]
    if broke:
        words += ", and prior knowledge fell with " + ", ".join(
            f"{line.label} by {_short(-_value(line.metric('prior_change')))}" for line in broke
        )
    return words


def _told(line: Line, name: str = "retention", signed: bool = False) -> str:
    return " ".join(score(line.metric(name), signed)).strip()


def _interval(line: Line) -> Interval:
    metric = line.metric("retention")
    value = _value(metric)
    return Interval(value if metric.low is None else metric.low, value if metric.high is None else metric.high)


def _value(metric: Metric) -> float:
    assert metric.value is not None, "only defined figures are ranked"
    return metric.value


def _without_reading(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Where the model does not read, free answers say nothing: they are null with that reason."""
    judged: list[Line] = []
    for _, group in _groups(lines):
        controls = {line.path: line for line in group if line.path in ("none", "oracle")}
        if len(controls) < 2:
            judged += group
            continue
        oracle, none = (controls[path].metric("retention") for path in ("oracle", "none"))
        if reads(oracle, none, controls["none"].metric("skill_before")):
            judged += group
            continue
        reason = (
            f"the model does not read: with the right item in the prompt it answers {' '.join(score(oracle))}, "
            f"without any memory {' '.join(score(none))}"
        )
        for line in group:
            metrics = {
                name: metric
                if name in _UNREAD or name.startswith(_OTHERS) or metric.value is None
                else undefined(reason)
                for name, metric in line.metrics.items()
            }
            ages = {age: undefined(reason) for age in line.ages}
            judged.append(replace(line, metrics=metrics, ages=ages, matrix=[[None] * len(row) for row in line.matrix]))
    return tuple(judged)


def _line(variant: str, reports: Sequence[Report]) -> Line:
    by_seeds = {_seeds_of(report): report for report in reports}
    if len(by_seeds) < len(reports):
        LOGGER.warning("%s: of several runs with the same seeds only the last one counts", reports[0].path)
    kept = sorted(by_seeds.values(), key=lambda report: report.seed)
    first = kept[0]
    return Line(
        path=first.path,
        variant=variant,
        load=first.load,
        lm=first.lm,
        stream=first.stream,
        seeds=tuple(report.seed for report in kept),
        metrics={name: _over_seeds(name, [report.metrics.get(name) for report in kept]) for name in first.metrics},
        parameters=first.parameters,
        ages={age: _over_seeds("", [report.ages.get(age) for report in kept]) for age in first.ages},
        churn={name: _added([report.churn.get(name) for report in kept]) for name in first.churn},
        misses=dict(sum((Counter(report.misses) for report in kept), Counter())),
        outcomes={_seeds_of(report): report.outcomes for report in kept if report.outcomes},
        matrix=_mean_matrix(kept),
        cost=_mean_cost([report.cost for report in kept]),
        config=first.config,
        versions=first.versions,
    )


def _bounds(name: str, values: Sequence[float]) -> Bounds:
    """What a figure can be at all; of a task of somebody else's that is only known of a share."""
    if name in _CHANGES:
        return DIFFERENCE
    if name in _GAINS or (name.startswith(_OTHERS) and name.endswith("_change")):
        return UNBOUNDED
    if name in (*_PERPLEXITIES, *_MEASURED) or (name.startswith(_OTHERS) and max(values) > 1.0):
        return (0.0, math.inf)
    return UNBOUNDED if min(values) < 0.0 else SHARE


def _seeds_of(report: Report) -> str:
    """What tells a run from others of the same settings."""
    return json.dumps(report.config.get("seeds", report.seed), sort_keys=True)


def _over_seeds(name: str, metrics: Sequence[Metric | None]) -> Metric:
    given = [metric for metric in metrics if metric is not None]
    lacking = [metric for metric in given if metric.value is None]
    if lacking or len(given) < len(metrics):
        return lacking[0] if lacking else undefined("not measured with every seed")
    if len(given) == 1:
        return given[0]
    values = [_value(metric) for metric in given]
    interval = seeds_interval(values, bounds=_bounds(name, values))
    low: float | None = interval.low
    high: float | None = interval.high
    if interval.high - interval.low < 1e-12:  # seeds that agree exactly still rest on a finite number of items
        lows, highs = [metric.low for metric in given], [metric.high for metric in given]
        low = None if None in lows else min(edge for edge in lows if edge is not None)
        high = None if None in highs else max(edge for edge in highs if edge is not None)
    return Metric(fmean(values), low, high, sum(metric.n for metric in given))


def _outcomes(group: Sequence[Line], metric: str) -> dict[str, dict[str, Sequence[Outcome]]]:
    return {
        line.label: {seed: found.get(metric, ()) for seed, found in line.outcomes.items()}
        for line in group
        if not line.is_control and line.metric("retention").value is not None
    }


def _added(churns: Sequence[Churn | None]) -> Churn:
    return sum((churn for churn in churns if churn is not None), Churn(0, 0, 0, 0))


def _mean_matrix(reports: Sequence[Report]) -> list[list[Metric | None]]:
    matrices = [_cells(report) for report in reports]
    if len({tuple(map(len, matrix)) for matrix in matrices}) != 1:
        return matrices[0]

    def mean(cells: Iterable[Metric | None]) -> Metric | None:
        there = [cell for cell in cells if cell is not None]
        return _over_seeds("", there) if there else None

    return [[mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _cells(report: Report) -> list[list[Metric | None]]:
    spread = report.spread or [[None] * len(row) for row in report.matrix]
    return [
        [None if value is None else Metric(value, *(cell or ())) for value, cell in zip(*rows, strict=True)]
        for rows in zip(report.matrix, spread, strict=True)
    ]


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: _mean_cost([cost[name] for cost in costs])
        if isinstance(value, Mapping)
        else None
        if any(cost.get(name) is None for cost in costs)
        else fmean(cost[name] for cost in costs)
        for name, value in costs[0].items()
    }


def _variants(reports: Sequence[Report], ignore: Sequence[str]) -> list[str]:
    """For each report the settings in which it differs from the others; seeds, places and those to ignore left out."""
    left_out = set(map(_short_name, ignore))
    settings = [
        {
            name: value
            for name, value in flattened(report.config).items()
            if not _is_place(name) and _short_name(name) not in left_out
        }
        for report in reports
    ]
    names = sorted({name for each in settings for name in each})
    differing = [name for name in names if len({_printed(each, name) for each in settings}) > 1]
    told = _telling(differing, settings)
    whole = [_label(differing, each) for each in settings]
    short = [_label([name for name in differing if told(name, each)], each) for each in settings]
    meant: dict[str, set[str]] = {}
    for label, full in zip(short, whole, strict=True):
        meant.setdefault(label, set()).add(full)
    return [label if len(meant[label]) == 1 else full for label, full in zip(short, whole, strict=True)]


def _telling(
    differing: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> Callable[[str, Mapping[str, Any]], bool]:
    """Whether a variant's name is to tell one of the settings that differ, or whether it goes without saying: a choice
    between classes stands for all that comes with it, and the choice of most variants for itself."""
    classes = [name for name in differing if name.endswith(_CLASS)]
    nodes = {name: name.removesuffix(_CLASS) + "." for name in classes}

    def of(each: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_printed(each, name) for name in names)

    # By each setting: the classes that may stand for it, and what it is with each choice of these.
    standing: dict[str, list[str]] = {}
    values: dict[str, dict[tuple[str, ...], set[str]]] = {}
    for name in differing:
        if name in nodes:
            around = nodes[name]
        else:
            around = min((node for node in nodes.values() if name.startswith(node)), key=len, default=name)
        standing[name] = [one for one in classes if one != name and one.startswith(around)]
        values[name] = {}
        for each in settings:
            values[name].setdefault(of(each, standing[name]), set()).add(_printed(each, name))
    variants = {of(each, differing): each for each in settings}.values()
    usual = {
        name: Counter(_printed(each, name) for each in variants).most_common(1)[0]
        for name in classes
        if all(name in each for each in settings)
    }

    def told(name: str, each: Mapping[str, Any]) -> bool:
        if name in usual and usual[name][0] == _printed(each, name) and 2 * usual[name][1] > len(variants):
            return False
        present = any(one in each for one in standing[name])
        return not present or len(values[name][of(each, standing[name])]) > 1

    return told


def _label(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    return " ".join(
        f"{_short_name(name).removesuffix(_CLASS)}={_printed(settings, name)}" for name in names if name in settings
    )


def _printed(settings: Mapping[str, Any], name: str) -> str:
    """A setting for people: a class by its name alone."""
    value = str(settings.get(name))
    return value.rsplit(".", 1)[-1] if name.endswith(_CLASS) else value


def _short_name(name: str) -> str:
    return name.removeprefix("path.").removeprefix("memory.")


def _run_folders(root: Path) -> set[Path]:
    marks = (REPORT, FAILED, RECORDS, ".hydra")
    found = {file.parent for mark in marks for file in root.rglob(mark)}
    # The folder of a sweep may carry a .hydra of its own.
    return {run for run in found if (run / REPORT).exists() or not any(run in other.parents for other in found)}


def _why(run: Path) -> str:
    try:
        return str(json.loads((run / FAILED).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it left no report: interrupted, or still running"


def _groups(lines: Sequence[Line]) -> list[tuple[tuple[str, int], list[Line]]]:
    ordered = sorted(lines, key=_place)
    return [(key, list(group)) for key, group in groupby(ordered, key=lambda line: (line.family, line.load))]


def _place(line: Line) -> tuple[Any, ...]:
    rank = PATH_ORDER.index(line.path) if line.path in PATH_ORDER else len(PATH_ORDER)
    return (line.family, line.load, rank, line.path, line.variant)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]


def _flat(line: Line) -> dict[str, Any]:
    flat: dict[str, Any] = {name: getattr(line, name) for name in ("path", "variant", "load", "lm", "stream")}
    flat["seeds"] = len(line.seeds)
    for name, metric in line.metrics.items():
        flat |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high, f"{name}_n": metric.n}
        flat[f"{name}_reason"] = metric.reason
    for action in ("write", "read"):
        spent = unit(line.cost, "write" if action == "write" else "read")
        flat |= {f"{measure}_per_{action}": getattr(spent, measure) for measure in MEASURES}
    return flat | {"stored_bytes": line.cost["stored_bytes"]}


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _short(value: float, signed: bool = False) -> str:
    if abs(value) >= 1000:  # a count
        return amount(value)
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    if float(text) == 0.0:
        return ".00"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text[:-1] if text.endswith("0") else text


def _digits(value: float) -> str:
    return f"{value:.0f}" if value == 0 or abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
