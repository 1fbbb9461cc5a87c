"""What writing and reading cost: columns of records, their sums by component, when one path pays off against another.

This file knows nothing of models and measures nothing itself; it adds up what the parts counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.types import Cost

COMPONENTS = ("lm", "encoder", "index")
MEASURES = ("tokens", "flops", "seconds")
COLUMNS = (
    "arm",
    "reused",
    "reason",
    *(f"{part}_{name}" for part in COMPONENTS for name in MEASURES),
    "wall_seconds",
    "joules",
)
Measure = Literal["tokens", "flops", "seconds"]
Action = Literal["write", "read"]


def as_columns(cost: Cost) -> dict[str, float]:
    """One column for each component and measure, such as `lm_tokens`."""
    return {f"{part}_{name}": getattr(getattr(cost, part), name) for part in COMPONENTS for name in MEASURES}


def summarise(answers: Mapping[str, Sequence[Any]], writes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The `cost` of report.json.

    Args:
        answers: Columns of the records of answers. Only answers that were really computed, along the path's own
            reading, count.
        writes: Columns of the records of writes.

    Returns:
        `write` and `read`: by component tokens, flops and seconds, in all; `wall_seconds` likewise as the evaluator's
        own clock saw them, and `joules` as the machine counted them (None where it does not); `writes` (items) and
        `reads` (questions): how many they were; `stored_bytes` after the last stage, without what a database adds;
        `skipped`: items that were refused because they fit at no time.
    """
    real = [
        at
        for at, (arm, reused, reason) in enumerate(
            zip(answers["arm"], answers["reused"], answers["reason"], strict=True)
        )
        if arm == "reading" and not reused and not reason
    ]
    written = [at for at, items in enumerate(writes["items"]) if items]
    stored = [size for size in writes["stored_bytes"] if size is not None]
    return {
        "write": _by_component(writes, written),
        "read": _by_component(answers, real),
        "wall_seconds": {
            "write": _total(writes["wall_seconds"], written),
            "read": _total(answers["wall_seconds"], real),
        },
        "joules": {"write": _counted(writes, written), "read": _counted(answers, real)},
        "writes": int(_total(writes["items"], written)),
        "skipped": sum(len(ids or ()) for ids in writes["skipped"]),
        "reads": len(real),
        "stored_bytes": stored[-1] if stored else 0,
    }


@dataclass(frozen=True)
class Unit:
    """What one item costs to write, or one question to read. None where nothing was written or read."""

    tokens: float | None
    flops: float | None
    seconds: float | None


def unit(cost: Mapping[str, Any], action: Action) -> Unit:
    """Cost of one write or one read, all components together; seconds are the evaluator's own clock's."""
    count = cost["writes" if action == "write" else "reads"]
    if not count:
        return Unit(None, None, None)
    parts = cost[action].values()
    return Unit(
        tokens=sum(part["tokens"] for part in parts) / count,
        flops=sum(part["flops"] for part in parts) / count,
        seconds=cost["wall_seconds"][action] / count,
    )


def break_even(dear: Mapping[str, Any], cheap: Mapping[str, Any], measure: Measure = "flops") -> Metric:
    """After how many questions a path that is dear to write has paid off against one that is cheap to write.

    Args:
        dear: `cost` of the path whose writing costs more.
        cheap: `cost` of the path whose writing costs less, over the same items.
        measure: In what to count.
    """
    reads = [getattr(unit(cost, "read"), measure) for cost in (dear, cheap)]
    if None in reads:
        return undefined("one of them answered nothing")
    extra = sum(part[measure] for part in dear["write"].values()) - sum(
        part[measure] for part in cheap["write"].values()
    )
    saved = reads[1] - reads[0]
    if extra <= 0 and saved >= 0:
        return Metric(0.0)
    if saved <= 0:
        return undefined("a question costs it no less, so that it never pays off")
    return Metric(float(math.ceil(extra / saved)))


def rescaled(cost: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same work with a language model of another size: its FLOPs grow with its number of parameters; tokens,
    and the work of encoder and index, do not."""

    def grown(parts: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
        return {**parts, "lm": {**parts["lm"], "flops": parts["lm"]["flops"] * factor}}

    return {**cost, "write": grown(cost["write"]), "read": grown(cost["read"])}


def _counted(columns: Mapping[str, Sequence[Any]], chosen: Sequence[int]) -> float | None:
    counted = [columns["joules"][at] for at in chosen]
    return None if None in counted or not counted else math.fsum(counted)


def _by_component(columns: Mapping[str, Sequence[Any]], chosen: Sequence[int]) -> dict[str, dict[str, float]]:
    return {
        part: {
            "tokens": int(_total(columns[f"{part}_tokens"], chosen)),
            "flops": _total(columns[f"{part}_flops"], chosen),
            "seconds": _total(columns[f"{part}_seconds"], chosen),
        }
        for part in COMPONENTS
    }


def _total(column: Sequence[Any], chosen: Sequence[int]) -> float:
    return math.fsum(column[at] or 0.0 for at in chosen)
