"""Every figure of a report, as pure functions of records and arrays.

This file knows nothing of models, paths or files. A figure that is not defined is a `Metric` without a value and with
a reason; it is never 0, -1 or NaN. In the accuracy matrix R, row i stands for "after i experiences" (row 0: before
any learning) and column j for experience j + 1; a cell that was never measured is NaN inside this file and null
outside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from memory_paths.evaluation.matrix import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from memory_paths.evaluation.scoring import is_abstention
from memory_paths.evaluation.statistics import (
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Bounds,
    cluster_index,
    cluster_interval,
    generator_for,
    mean_interval,
    paired_interval,
)


@dataclass(frozen=True)
class Metric:
    """One figure with its 95 % interval, or the reason why there is none.

    Args:
        value: The figure, or None where it is not defined.
        low: Lower end of the interval; None where nothing bounds it.
        high: Upper end of the interval; None where nothing bounds it.
        n: Number of answers that it rests on.
        reason: Why there is no value; empty where there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"a metric has a value or else a reason, got {self.value!r} and {self.reason!r}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a metric must be finite, got {self.value}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        if self.value is None:
            return {"value": None, "reason": self.reason}
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> Metric:
        """The inverse of `to_json`."""
        return Metric(**given)


def undefined(reason: str) -> Metric:
    """A figure that does not exist, and why."""
    return Metric(None, reason=reason)


@dataclass(frozen=True)
class _MatrixMetric:
    function: Callable[[np.ndarray], np.ndarray]
    bounds: Bounds
    missing: str


MATRIX_METRICS: Mapping[str, _MatrixMetric] = {
    "average_accuracy": _MatrixMetric(average_accuracy, SHARE, "nothing was asked after the last stage"),
    "average_incremental_accuracy": _MatrixMetric(average_incremental_accuracy, SHARE, "nothing taught was asked"),
    "learning_accuracy": _MatrixMetric(learning_accuracy, SHARE, "nothing was asked right after it was taught"),
    "backward_transfer": _MatrixMetric(backward_transfer, DIFFERENCE, "needs an experience that others follow"),
    "forgetting": _MatrixMetric(forgetting, DIFFERENCE, "needs an experience that others follow"),
    "forward_transfer": _MatrixMetric(
        forward_transfer, DIFFERENCE, "needs an experience that was asked before any learning and just before its own"
    ),
}


# Figures of records


@dataclass(frozen=True)
class Rows:
    """Answers as columns of equal length; booleans are 1.0 and 0.0, and NaN where they do not apply."""

    stage: np.ndarray
    experience: np.ndarray
    kind: np.ndarray
    key: np.ndarray
    cluster: np.ndarray
    uniform: np.ndarray
    correct: np.ndarray
    stale: np.ndarray
    held: np.ndarray
    confidence: np.ndarray
    loglikelihood_per_token: np.ndarray
    choice_correct: np.ndarray
    answer: np.ndarray
    ids: np.ndarray
    recalls: np.ndarray
    shown: np.ndarray
    answer_offered: np.ndarray
    answer_shown: np.ndarray
    reason: np.ndarray

    @staticmethod
    def of(columns: Mapping[str, Sequence[Any]]) -> Rows:
        """From columns as lists, as `records.read_records(folder).to_pydict()` gives them; missing ones are empty.

        Raises:
            ValueError: No column `stage`, or `kind`, or `key`.
        """
        absent = {"stage", "kind", "key"} - set(columns)
        if absent:
            raise ValueError(f"records lack the columns {sorted(absent)}")
        size = len(columns["stage"])
        given = {field.name: columns.get(field.name, [None] * size) for field in fields(Rows)}
        numeric = {"stage": -1, "experience": 0, "uniform": True}
        objects = {"kind", "key", "cluster", "answer", "ids", "recalls", "shown", "reason"}
        built: dict[str, np.ndarray] = {}
        for name, column in given.items():
            if name in objects:
                built[name] = np.empty(size, dtype=object)
                built[name][:] = column
            elif name in numeric:
                built[name] = np.array([numeric[name] if entry is None else entry for entry in column]).astype(int)
            else:
                built[name] = np.array([math.nan if entry is None else entry for entry in column], dtype=float)
        own = [cluster or key for cluster, key in zip(built["cluster"], built["key"], strict=True)]
        built["cluster"][:] = own
        built["uniform"] = built["uniform"].astype(bool)
        return Rows(**built)

    def __len__(self) -> int:
        return len(self.stage)


@dataclass(frozen=True)
class Measured:
    """All figures of one run. `matrix` has experiences + 1 rows; a cell that was not measured is None."""

    metrics: dict[str, Metric]
    matrix: list[list[float | None]]


def measure(rows: Rows, *, experiences: int, unknown_threshold: float = 0.5, seed: int = 0) -> Measured:
    """Every metric of a run.

    Args:
        rows: What was asked and answered.
        experiences: How many experiences the stream has; the last stage has this number.
        unknown_threshold: An answer of less confidence counts as an abstention, in [0, 1].
        seed: Of the intervals.
    """
    last = rows.stage == experiences
    first = rows.stage == 0
    direct = rows.kind == "direct"
    own = (rows.stage == rows.experience) & (rows.experience > 0)
    retained = last & direct & rows.uniform
    earliest = rows.experience <= max(1, math.ceil(experiences / 4))

    def share(name: str, mask: np.ndarray, missing: str, values: np.ndarray = rows.correct) -> Metric:
        return _mean_metric(rows, mask, values, missing, (seed, name))

    def change(name: str, kind: str, column: np.ndarray, bounds: Bounds, missing: str) -> Metric:
        return _change(
            rows, first & (rows.kind == kind), last & (rows.kind == kind), column, bounds, missing, (seed, name)
        )

    taught = "nothing taught was asked after the last stage"
    answered = np.array([0.0 if is_abstention(answer or "") else 1.0 for answer in rows.answer])
    answered = np.where(rows.confidence < unknown_threshold, 0.0, answered)
    updates = last & direct & np.isfinite(rows.stale)
    unscored = "log-likelihoods were not recorded before and after"
    metrics = {
        "acquisition": share("acquisition", own & direct, "nothing was asked right after it was taught"),
        "acquisition_trained_wording": share(
            "acquisition_trained_wording",
            own & (rows.kind == "trained"),
            "the stream asks nothing in a studied wording",
        ),
        "retention": share("retention", retained, taught),
        "retention_held": share(
            "retention_held", retained & (rows.held == 1.0), "the path holds none of the items that were asked about"
        ),
        "retention_earliest": share("retention_earliest", retained & earliest, taught),
        **{
            kind: share(kind, last & rows.uniform & (rows.kind == kind), f"the stream has no {kind} questions")
            for kind in ("paraphrase", "composition", "reversal")
        },
        "prior_before": share("prior_before", first & (rows.kind == "prior"), "the stream asks nothing known before"),
        "prior_after": share("prior_after", last & (rows.kind == "prior"), "the stream asks nothing known before"),
        "prior_change": change(
            "prior_change", "prior", rows.correct, DIFFERENCE, "the stream asks nothing known before"
        ),
        "skill_before": share("skill_before", first & (rows.kind == "skill"), "the stream has no reading tasks"),
        "skill_after": share("skill_after", last & (rows.kind == "skill"), "the stream has no reading tasks"),
        "skill_change": change("skill_change", "skill", rows.correct, DIFFERENCE, "the stream has no reading tasks"),
        "stale": share("stale", updates, "the stream updates nothing", rows.stale),
        "updated": share("updated", updates, "the stream updates nothing"),
        "unknown": share(
            "unknown", last & (rows.kind == "unknown"), "the stream asks nothing that is never taught", answered
        ),
    }
    cells = _Cells.of(rows, experiences, direct & (rows.uniform | own) & (rows.experience > 0))
    metrics |= {name: cells.metric(metric, (seed, name)) for name, metric in MATRIX_METRICS.items()}
    refused = np.array([bool(reason) for reason in rows.reason], dtype=bool)
    anything = np.array([float(bool(recalls)) for recalls in rows.recalls])

    def finding(name: str, mask: np.ndarray, values: np.ndarray, missing: str) -> Metric:
        asked = mask & (np.isfinite(values) | refused)
        if not anything.any() and not refused[asked].any():
            return undefined("the path finds nothing to put into the prompt")
        return share(name, asked, missing, values)

    for name, values in _retrieval(rows).items():
        metrics[name] = finding(name, retained, values, "no question that was asked says which items it is about")
    for name in ("answer_offered", "answer_shown"):
        metrics[name] = finding(name, retained, getattr(rows, name), "the records do not say")
    metrics["unknown_offered"] = finding(
        "unknown_offered",
        last & (rows.kind == "unknown"),
        anything,
        "the stream asks nothing that is never taught",
    )
    scored = retained & np.isfinite(rows.choice_correct)
    metrics["choice"] = share("choice", scored, "no choices were scored", rows.choice_correct)
    for name, kind in (("loglikelihood_gain", "direct"), ("paraphrase_gain", "paraphrase"), ("prior_gain", "prior")):
        metrics[name] = change(name, kind, rows.loglikelihood_per_token, UNBOUNDED, unscored)
    for name, stage in (("before", first), ("after", last)):
        asked = stage & (rows.kind == "prior")
        metrics[f"prior_perplexity_{name}"] = _perplexity(rows, asked, unscored, (seed, "prior_perplexity", name))
    return Measured(metrics, cells.table())


def measured_by_path(writes: Mapping[str, Sequence[Any]]) -> dict[str, Metric]:
    """What paths into weights measured of themselves: `kl_on_new`, mean over the writes of how far the answers to what
    was just studied have gone from the untouched model's, in nats per token; `weights_changed` and `rows_touched`, how
    many numbers, and how many rows of a memory, have been free to change by the last write; `slots_in_use` and
    `hub_reads`, which share of a memory's slots the background reads, and which share of its reads the most-read 1 % of
    them take.

    Args:
        writes: Columns of the records of writes. Of several paths what was changed is added up; of the others the
            greatest counts.
    """
    told = [json.loads(text) for text in writes["measures"] if text]

    def figure(name: str, over: Callable[[list[float]], float]) -> Metric:
        each = [[measures[name] for measures in write.values() if name in measures] for write in told]
        found = [over(values) for values in each if values]
        if not found:
            return undefined("the path has no memory layer" if told else "the path does not write into weights")
        return Metric(float(np.mean(found)) if name == "kl_on_new" else found[-1])

    return {
        "kl_on_new": figure("kl_on_new", max),
        "weights_changed": figure("weights_changed", sum),
        "rows_touched": figure("rows_touched", sum),
        "slots_in_use": figure("slots_in_use", max),
        "hub_reads": figure("hub_reads", max),
    }


def recall(ids: Sequence[str], found: Sequence[str]) -> float:
    """Share of the items that a question is about which are among those found; NaN where it is about none."""
    return len(set(ids) & set(found)) / len(set(ids)) if ids else math.nan


def reciprocal_rank(ids: Sequence[str], ranked: Sequence[str]) -> float:
    """1 / the rank of the first item that a question is about, 0 where none was found; NaN where it is about none."""
    wanted = set(ids)
    rank = next((rank for rank, id in enumerate(ranked, start=1) if id in wanted), math.inf)
    return 1.0 / rank if wanted else math.nan


def _retrieval(rows: Rows) -> dict[str, np.ndarray]:
    """By name what finding came to for each row: what was offered first, and in all, and what stood in the prompt."""
    found: dict[str, list[float]] = {}
    for ids, recalls, shown in zip(rows.ids, rows.recalls, rows.shown, strict=True):
        wanted, ranked = ids or (), recalls or ()
        for name, value in {
            "recall_at_1": recall(wanted, ranked[:1]),
            "recall_at_5": recall(wanted, ranked[:5]),
            "recall_offered": recall(wanted, ranked),
            "recall_shown": math.nan if shown is None else recall(wanted, shown),
            "reciprocal_rank": reciprocal_rank(wanted, ranked),
        }.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def _mean_metric(
    rows: Rows, mask: np.ndarray, values: np.ndarray, missing: str, seed: tuple[object, ...], bounds: Bounds = SHARE
) -> Metric:
    chosen = np.flatnonzero(mask)
    if not len(chosen):
        return undefined(missing)
    refused = [reason for reason in rows.reason[chosen] if reason]
    if refused:
        return undefined(refused[0])
    given = values[chosen]
    if not np.isfinite(given).all():
        return undefined("some of its answers were not scored")
    interval = mean_interval(given, rows.cluster[chosen], generator=generator_for(*seed), bounds=bounds)
    return Metric(float(given.mean()), _finite(interval.low), _finite(interval.high), len(chosen))


def _perplexity(rows: Rows, mask: np.ndarray, missing: str, seed: tuple[object, ...]) -> Metric:
    """exp of minus the mean over questions of the log-likelihood per token of the right answer."""
    scored = mask & np.isfinite(rows.loglikelihood_per_token)
    mean = _mean_metric(rows, scored, rows.loglikelihood_per_token, missing, seed, UNBOUNDED)
    if mean.value is None:
        return mean
    low, high = (None if edge is None else math.exp(-edge) for edge in (mean.high, mean.low))
    return Metric(math.exp(-mean.value), low, high, mean.n)


def _change(
    rows: Rows,
    before: np.ndarray,
    after: np.ndarray,
    values: np.ndarray,
    bounds: Bounds,
    missing: str,
    seed: tuple[object, ...],
) -> Metric:
    """The mean change of the questions that were asked both before any learning and after all of it."""
    asked = before | after
    refused = [reason for reason in rows.reason[asked] if reason]
    earlier = {rows.key[index]: index for index in np.flatnonzero(before & np.isfinite(values))}
    pairs = [
        (earlier[rows.key[at]], at) for at in np.flatnonzero(after & np.isfinite(values)) if rows.key[at] in earlier
    ]
    if refused or not pairs:
        return undefined(refused[0] if refused else missing)
    old, new = (np.array(side) for side in zip(*pairs, strict=True))
    interval = paired_interval(
        values[old], values[new], rows.cluster[new], generator=generator_for(*seed), bounds=bounds
    )
    return Metric(float((values[new] - values[old]).mean()), _finite(interval.low), _finite(interval.high), len(pairs))


@dataclass(frozen=True)
class _Cells:
    """Sums and counts by cluster and cell of the matrix, so that whole clusters can be redrawn."""

    sums: np.ndarray
    counts: np.ndarray
    shape: tuple[int, int]
    reason: str

    @staticmethod
    def of(rows: Rows, experiences: int, mask: np.ndarray) -> _Cells:
        chosen = np.flatnonzero(mask & (rows.experience <= experiences) & (rows.stage <= experiences))
        reasons = [reason for reason in rows.reason[chosen] if reason]
        chosen = chosen[np.isfinite(rows.correct[chosen])]
        shape = (experiences + 1, experiences)
        cluster = cluster_index(rows.cluster[chosen]) if len(chosen) else np.zeros(0, dtype=int)
        cell = rows.stage[chosen] * experiences + rows.experience[chosen] - 1
        size = (int(cluster.max()) + 1 if len(chosen) else 0, shape[0] * shape[1])
        sums, counts = np.zeros(size), np.zeros(size)
        np.add.at(sums, (cluster, cell), rows.correct[chosen])
        np.add.at(counts, (cluster, cell), 1.0)
        return _Cells(sums, counts, shape, reasons[0] if reasons else "")

    def matrix(self) -> np.ndarray:
        sums, counts = self.sums.sum(0), self.counts.sum(0)
        means: np.ndarray = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        return means.reshape(self.shape)

    def table(self) -> list[list[float | None]]:
        return [[_finite(cell) for cell in row] for row in self.matrix().tolist()]

    def metric(self, metric: _MatrixMetric, seed: tuple[object, ...]) -> Metric:
        if self.reason:
            return undefined(self.reason)
        value = float(metric.function(self.matrix()))
        if not math.isfinite(value):
            return undefined(metric.missing)
        interval = cluster_interval(
            self.sums,
            self.counts,
            lambda means: metric.function(means.reshape(*means.shape[:-1], *self.shape)),
            generator=generator_for(*seed),
            bounds=metric.bounds,
        )
        return Metric(value, _finite(interval.low), _finite(interval.high), int(self.counts.sum()))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
