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
from dataclasses import dataclass
from typing import Any

import numpy as np

from memory_paths.evaluation.churn import Churn, churn_between
from memory_paths.evaluation.matrix import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    decay,
    forgetting,
    forgetting_from_maximum,
    forward_transfer,
    learning_accuracy,
    plasticity,
    retention_at_age,
)
from memory_paths.evaluation.misses import RELEARNT, misses
from memory_paths.evaluation.rows import Rows
from memory_paths.evaluation.scoring import is_abstention, normalised
from memory_paths.evaluation.statistics import (
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Bounds,
    Statistic,
    cluster_index,
    cluster_intervals,
    generator_for,
    mean_interval,
    paired_interval,
    share_over_clusters,
)

Outcome = tuple[str, int, float]
Spread = tuple[float, float, int]
_SHUFFLES = 200
_RETRIEVAL = ("recall_at_1", "recall_at_5", "recall_offered", "recall_shown", "reciprocal_rank")


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
    "plasticity": _MatrixMetric(plasticity, DIFFERENCE, "needs an experience that was asked just before its own"),
    "forgetting_from_maximum": _MatrixMetric(
        forgetting_from_maximum, DIFFERENCE, "needs an experience that others follow"
    ),
    "decay": _MatrixMetric(decay, (0.0, math.inf), "needs three experiences, and an answer that is right"),
}


# Figures of records


@dataclass(frozen=True)
class Measured:
    """All figures of one run.

    Args:
        metrics: By name.
        matrix: Of experiences + 1 rows; a cell that was not measured is None.
        spread: Of each cell of the matrix: both ends of its interval over clusters, and its number of questions.
        ages: Retention by the number of experiences that were learnt since, from "0" on.
        churn: Of what was known before ("prior"), of reading ("skill"), and of what was taught ("taught": right after
            its own experience against after the last one).
        misses: See `misses.misses`.
        outcomes: Of "retention" and "prior", by question: its key, the number of its cluster, what the last answer to
            it was worth.
    """

    metrics: dict[str, Metric]
    matrix: list[list[float | None]]
    spread: list[list[Spread | None]]
    ages: dict[str, Metric]
    churn: dict[str, Churn]
    misses: dict[str, int]
    outcomes: dict[str, list[Outcome]]


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
    never_taught = last & (rows.kind == "unknown")
    answered = np.full(len(rows), math.nan)
    answered[never_taught] = [not is_abstention(answer or "") for answer in rows.answer[never_taught]]
    answered = np.where(rows.confidence < unknown_threshold, 0.0, answered)
    updates = last & direct & np.isfinite(rows.stale)
    refused = rows.reason.astype(bool)
    unscored = "log-likelihoods were not recorded before and after"
    no_neighbours = "the stream asks nothing known that is close to what is taught"
    same = _unchanged(rows, first, last)
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
            for kind in ("paraphrase", "composition", "reversal", "alias", "one_hop", "two_hop")
        },
        "prior_before": share("prior_before", first & (rows.kind == "prior"), "the stream asks nothing known before"),
        "prior_after": share("prior_after", last & (rows.kind == "prior"), "the stream asks nothing known before"),
        "prior_change": change(
            "prior_change", "prior", rows.correct, DIFFERENCE, "the stream asks nothing known before"
        ),
        "neighbour_after": share("neighbour_after", last & (rows.kind == "neighbour"), no_neighbours),
        "neighbour_change": change("neighbour_change", "neighbour", rows.correct, DIFFERENCE, no_neighbours),
        "unchanged": share(
            "unchanged",
            np.isfinite(same) | (last & refused & ((rows.kind == "prior") | (rows.kind == "neighbour"))),
            "the stream asks nothing known before",
            same,
        ),
        "skill_before": share("skill_before", first & (rows.kind == "skill"), "the stream has no reading tasks"),
        "skill_after": share("skill_after", last & (rows.kind == "skill"), "the stream has no reading tasks"),
        "skill_change": change("skill_change", "skill", rows.correct, DIFFERENCE, "the stream has no reading tasks"),
        "stale": share("stale", updates, "the stream updates nothing", rows.stale),
        "updated": share("updated", updates, "the stream updates nothing"),
        "unknown": share("unknown", never_taught, "the stream asks nothing that is never taught", answered),
        "relearnt": share("relearnt", last & (rows.kind == RELEARNT), "what was missed was not taught once more"),
    }
    cells = _Cells.of(rows, experiences, direct & (rows.uniform | own) & (rows.experience > 0))
    metrics |= cells.metrics(MATRIX_METRICS, seed)
    metrics["half_life"] = _half_life(metrics["decay"])
    metrics["forgetting_corrected"] = _corrected(rows, experiences, metrics["forgetting_from_maximum"], seed)
    ages = cells.metrics({str(age): _at_age(age) for age in range(experiences)}, seed)
    anything = np.array([float(bool(recalls)) for recalls in rows.recalls])

    def finding(name: str, mask: np.ndarray, values: np.ndarray, missing: str) -> Metric:
        asked = mask & (np.isfinite(values) | refused)
        if not anything.any() and not refused[asked].any():
            return undefined("the path finds nothing to put into the prompt")
        return share(name, asked, missing, values)

    for name, values in _retrieval(rows, retained).items():
        metrics[name] = finding(name, retained, values, "no question that was asked says which items it is about")
    for name in ("answer_offered", "answer_shown"):
        metrics[name] = finding(name, retained, getattr(rows, name), "the records do not say")
    metrics["unknown_offered"] = finding(
        "unknown_offered",
        never_taught,
        anything,
        "the stream asks nothing that is never taught",
    )
    composed = last & (rows.kind == "composition")
    for name, asked in (("choice", retained), ("acquisition_choice", own & direct), ("composition_choice", composed)):
        scored = asked & np.isfinite(rows.choice_correct)
        metrics[name] = share(name, scored, "no choices were scored", rows.choice_correct)
    for name, kind in (("loglikelihood_gain", "direct"), ("paraphrase_gain", "paraphrase"), ("prior_gain", "prior")):
        metrics[name] = change(name, kind, rows.loglikelihood_per_token, UNBOUNDED, unscored)
    for name, stage in (("before", first), ("after", last)):
        asked = stage & (rows.kind == "prior")
        metrics[f"prior_perplexity_{name}"] = _perplexity(rows, asked, unscored, (seed, "prior_perplexity", name))
    churn = {
        "prior": _churn(rows, first & (rows.kind == "prior"), last & (rows.kind == "prior")),
        "skill": _churn(rows, first & (rows.kind == "skill"), last & (rows.kind == "skill")),
        "taught": _churn(rows, own & direct & ~last, last & direct),
    }
    return Measured(
        metrics,
        cells.table(),
        cells.spread(),
        ages,
        {name: found for name, found in churn.items() if found is not None},
        misses(rows, experiences=experiences),
        {"retention": _outcomes(rows, retained), "prior": _outcomes(rows, last & (rows.kind == "prior"))},
    )


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


def _retrieval(rows: Rows, asked: np.ndarray) -> dict[str, np.ndarray]:
    """By name what finding came to for each row: what was offered first, and in all, and what stood in the prompt. NaN
    where the row is not among those asked."""
    found = {name: np.full(len(rows), math.nan) for name in _RETRIEVAL}
    for at in np.flatnonzero(asked):
        wanted, ranked, shown = rows.ids[at] or (), rows.recalls[at] or (), rows.shown[at]
        for name, value in {
            "recall_at_1": recall(wanted, ranked[:1]),
            "recall_at_5": recall(wanted, ranked[:5]),
            "recall_offered": recall(wanted, ranked),
            "recall_shown": math.nan if shown is None else recall(wanted, shown),
            "reciprocal_rank": reciprocal_rank(wanted, ranked),
        }.items():
            found[name][at] = value
    return found


def _unchanged(rows: Rows, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """1 or 0 for each answer after all learning to a question about what was known before: whether it is, normalised,
    the answer from before any learning, right or wrong. NaN for other rows."""
    known = (rows.kind == "prior") | (rows.kind == "neighbour")
    answered = known & np.isfinite(rows.correct)
    before = {rows.key[at]: rows.answer[at] for at in np.flatnonzero(first & answered)}
    same = np.full(len(rows), math.nan)
    for at in np.flatnonzero(last & answered):
        if rows.key[at] in before:
            then, now = before[rows.key[at]] or "", rows.answer[at] or ""
            same[at] = then == now or normalised(then) == normalised(now)
    return same


def _outcomes(rows: Rows, mask: np.ndarray) -> list[Outcome]:
    at = np.flatnonzero(mask & np.isfinite(rows.correct))
    at = at[np.argsort(rows.key[at])]  # so that clusters have the same numbers in whatever order they were asked
    clusters = cluster_index(list(rows.cluster[at]))
    return [
        (str(rows.key[place])[:10], int(cluster), round(float(rows.correct[place]), 4))
        for place, cluster in zip(at, clusters, strict=True)
    ]


def _pairs(rows: Rows, before: np.ndarray, after: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the same questions before and after, where both answers have a value."""
    earlier = {rows.key[at]: at for at in np.flatnonzero(before & np.isfinite(values))}
    found = [
        (earlier[rows.key[at]], at) for at in np.flatnonzero(after & np.isfinite(values)) if rows.key[at] in earlier
    ]
    pairs = np.array(found, dtype=int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _churn(rows: Rows, before: np.ndarray, after: np.ndarray) -> Churn | None:
    old, new = _pairs(rows, before, after, rows.correct)
    return churn_between(rows.correct[old], rows.correct[new]) if len(new) else None


def _at_age(age: int) -> _MatrixMetric:
    return _MatrixMetric(
        lambda matrix: retention_at_age(matrix, age), SHARE, f"nothing was asked {age} experiences after it was taught"
    )


def _half_life(rate: Metric) -> Metric:
    """After how many further experiences half of what was retained is: 1 / `decay`."""
    if rate.value is None:
        return rate
    if rate.value == 0.0:
        return undefined("retention does not fall with the number of later experiences")
    low, high = (1 / edge if edge else None for edge in (rate.high, rate.low))
    return Metric(1 / rate.value, low, high, rate.n)


def _corrected(rows: Rows, experiences: int, raw: Metric, seed: int) -> Metric:
    """`forgetting_from_maximum` less what it would be if each question's answers after learning had come in any order:
    the same answers, without a trend."""
    if raw.value is None:
        return raw
    asked = (
        (rows.kind == "direct") & (rows.experience > 0) & (rows.stage >= rows.experience) & np.isfinite(rows.correct)
    )
    at = np.flatnonzero(asked & (rows.uniform | (rows.stage == rows.experience)))
    question = cluster_index(rows.key[at])
    values, stages, experience = rows.correct[at], rows.stage[at], rows.experience[at]
    order = np.lexsort((stages, question))
    generator = generator_for(seed, "forgetting_corrected")
    drawn = []
    for _ in range(max(10, min(_SHUFFLES, _SHUFFLES * 10_000 // max(1, len(at))))):
        shuffled = np.empty(len(at))
        # Both orders have the questions one after another; only the second has each one's answers in their own order.
        shuffled[order] = values[np.lexsort((generator.random(len(at)), question))]
        drawn.append(float(forgetting_from_maximum(_cell_means(stages, experience, shuffled, experiences))))
    chance = float(np.mean(drawn))
    low, high = (None if edge is None else edge - chance for edge in (raw.low, raw.high))
    return Metric(raw.value - chance, low, high, raw.n)


def _cell_means(stages: np.ndarray, experience: np.ndarray, values: np.ndarray, experiences: int) -> np.ndarray:
    shape = (experiences + 1, experiences)
    cell = stages * experiences + experience - 1
    counts = np.bincount(cell, minlength=shape[0] * shape[1])
    sums = np.bincount(cell, values, minlength=shape[0] * shape[1])
    means: np.ndarray = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means.reshape(shape)


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
    scored = mask & (np.isfinite(rows.loglikelihood_per_token) | rows.reason.astype(bool))
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
    old, new = _pairs(rows, before, after, values)
    if refused or not len(new):
        return undefined(refused[0] if refused else missing)
    interval = paired_interval(
        values[old], values[new], rows.cluster[new], generator=generator_for(*seed), bounds=bounds
    )
    return Metric(float((values[new] - values[old]).mean()), _finite(interval.low), _finite(interval.high), len(new))


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

    def spread(self) -> list[list[Spread | None]]:
        """Of each cell that was measured."""
        found: list[Spread | None] = []
        for sums, counts in zip(self.sums.T, self.counts.T, strict=True):
            there = counts > 0
            interval = share_over_clusters(sums[there], counts[there])
            found.append((interval.low, interval.high, int(counts.sum())) if there.any() else None)
        stages, experiences = self.shape
        return [found[stage * experiences : (stage + 1) * experiences] for stage in range(stages)]

    @staticmethod
    def _looked_at(metric: _MatrixMetric, whole: np.ndarray, value: float) -> np.ndarray:
        """Which cells a figure rests on: those without which, or with quite another score in which, it is another."""
        cells = np.arange(whole.size)
        others = np.tile(whole.ravel(), (whole.size, 1))
        others[cells, cells] += 10.0
        changed = metric.function(others.reshape(-1, *whole.shape))
        looked_at: np.ndarray = ~np.isclose(changed, value) & np.isfinite(whole.ravel())
        return looked_at

    def metrics(self, wanted: Mapping[str, _MatrixMetric], seed: int) -> dict[str, Metric]:
        if self.reason:
            return dict.fromkeys(wanted, undefined(self.reason))
        whole, found = self.matrix(), {}

        def of_cells(metric: _MatrixMetric) -> Statistic:
            return lambda means: metric.function(means.reshape(*means.shape[:-1], *self.shape))

        intervals = cluster_intervals(
            self.sums,
            self.counts,
            [of_cells(metric) for metric in wanted.values()],
            generator=generator_for(seed, "matrix"),
            bounds=[metric.bounds for metric in wanted.values()],
        )
        for (name, metric), interval in zip(wanted.items(), intervals, strict=True):
            value = float(metric.function(whole))
            if math.isfinite(value):
                rests_on = int(self.counts.sum(0)[self._looked_at(metric, whole, value)].sum())
                found[name] = Metric(value, _finite(interval.low), _finite(interval.high), rests_on)
            else:
                found[name] = undefined(metric.missing)
        return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
