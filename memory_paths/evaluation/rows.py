"""Records as columns of numbers and texts: what every figure is computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_paths.evaluation.statistics import cluster_index

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Rows:
    """Answers as columns of equal length; booleans are 1.0 and 0.0, and NaN where they do not apply. Clusters are
    numbers from 0."""

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
    def of(columns: Mapping[str, Sequence[Any]] | pyarrow.Table) -> Rows:
        """From a table as `records.read_records` gives it, or from columns as lists; missing ones are empty.

        Of a table the columns of ids are read for its last stage only: no figure looks at others, and reading them
        takes longer than all figures together.

        Raises:
            ValueError: No column `stage`, or `kind`, or `key`.
        """
        given = columns if isinstance(columns, Mapping) else _of_table(columns)
        absent = {"stage", "kind", "key"} - set(given)
        if absent:
            raise ValueError(f"records lack the columns {sorted(absent)}")
        size = len(given["stage"])
        built: dict[str, np.ndarray] = {}
        for field in fields(Rows):
            column = given.get(field.name)
            if column is None:
                column = [None] * size
            if field.name in _OBJECTS:
                built[field.name] = np.empty(size, dtype=object)
                built[field.name][:] = column
            else:
                built[field.name] = _numbers(column, _WHOLE.get(field.name))
        unnamed = ~built["cluster"].astype(bool)
        built["cluster"][unnamed] = built["key"][unnamed]
        built["cluster"] = cluster_index(built["cluster"])
        built["uniform"] = built["uniform"].astype(bool)
        return Rows(**built)

    def __len__(self) -> int:
        return len(self.stage)


_OBJECTS = {"kind", "key", "cluster", "answer", "ids", "recalls", "shown", "reason"}
_LISTS = ("ids", "recalls", "shown")
_WHOLE = {"stage": -1, "experience": 0, "uniform": 1}


def _numbers(column: Sequence[Any] | np.ndarray, missing: int | None) -> np.ndarray:
    if not isinstance(column, np.ndarray):
        column = np.array([math.nan if entry is None else entry for entry in column], dtype=float)
    return column if missing is None else np.where(np.isfinite(column), column, missing).astype(int)


def _of_table(table: pyarrow.Table) -> dict[str, np.ndarray]:
    import pyarrow.compute as compute

    wanted = [field.name for field in fields(Rows) if field.name in table.column_names]
    found = {}
    for name in wanted:
        column = table[name].combine_chunks()
        if name in _LISTS:
            texts = np.full(len(table), None, dtype=object)
            at = np.flatnonzero(_numbers(compute.cast(table["stage"], "float64").to_numpy(), None) == _last(table))
            texts[at] = [*column.take(at).to_pylist(), None][:-1]
            found[name] = texts
        elif name in _OBJECTS:
            coded = column.dictionary_encode()
            values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
            found[name] = values[compute.fill_null(coded.indices, len(values) - 1).to_numpy()]
        else:
            found[name] = compute.cast(column, "float64").to_numpy(zero_copy_only=False)
    return found


def _last(table: pyarrow.Table) -> int:
    import pyarrow.compute as compute

    return int(compute.max(table["stage"]).as_py() or 0) if len(table) else 0
