"""Where else the figures of a run go while it runs: a CSV file, TensorBoard, Weights & Biases, or a class of your own.

A sink only repeats what records and report hold, and one that fails is left out from then on: it never stops a run.
Packages are imported where a sink is made, so that none of them is needed without it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memory_paths.evaluation.costs import COMPONENTS
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.records import write_file
from memory_paths.evaluation.report import Report

LOGGER = logging.getLogger(__name__)
_COLUMNS = ("stage", "figure", "value", "low", "high", "n")
_END = "end"


class Sink(Protocol):
    """What is told the figures of a run. It may raise: it is told nothing more then."""

    def stage(self, stage: int, figures: Mapping[str, Metric]) -> None:
        """The figures of a stage that has just been recorded; once more after an interruption, perhaps."""

    def end(self, report: Report) -> None:
        """The report, after the last stage. Nothing comes after it."""

    def close(self) -> None:
        """Let go of what is open; also of a run that failed."""


class Sinks:
    """Several sinks, told one after another.

    Args:
        sinks: By name.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def stage(self, stage: int, written: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell all of a stage, see `stage_figures`."""
        if self._sinks:
            figures = stage_figures(written, rows)
            self._each(lambda sink: sink.stage(stage, figures))

    def end(self, report: Report) -> None:
        """Tell all of the report."""
        self._each(lambda sink: sink.end(report))

    def close(self) -> None:
        """Close all."""
        self._each(lambda sink: sink.close())

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                tell(sink)
            except Exception as error:
                LOGGER.warning("sink %s failed and is told nothing more: %s: %s", name, type(error).__name__, error)
                del self._sinks[name]
                with contextlib.suppress(Exception):
                    sink.close()


def stage_figures(written: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """What a stage comes to, without intervals.

    Args:
        written: Its row of the records of writes.
        rows: Its rows of the records of answers.

    Returns:
        `right/KIND`, the share of right answers to the questions of a kind, and `accuracy/EXPERIENCE`, its row of the
        accuracy matrix; `write/items`, `write/seconds`, `write/tokens` and `write/flops` of what was learnt;
        `read/seconds`, the mean over the questions that were really asked; `stored_bytes`.
    """
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row.get("correct") is not None:
            shares.setdefault(f"right/{row['kind']}", []).append(float(row["correct"]))
            own = row["stage"] == row["experience"]  # counts in the matrix whether or not it is of the sample
            if row["kind"] == "direct" and row["experience"] and (row["uniform"] or own):
                shares.setdefault(f"accuracy/{row['experience']}", []).append(float(row["correct"]))
    asked = [row["wall_seconds"] for row in rows if row.get("wall_seconds") is not None and not row["reused"]]
    amounts = {
        "write/items": written["items"],
        "write/seconds": written["wall_seconds"],
        **{
            f"write/{measure}": sum(written[f"{part}_{measure}"] or 0.0 for part in COMPONENTS)
            for measure in ("tokens", "flops")
        },
        "stored_bytes": written["stored_bytes"],
    }
    return {
        **{name: Metric(float(np.mean(values)), n=len(values)) for name, values in sorted(shares.items())},
        **({"read/seconds": Metric(float(np.mean(asked)), n=len(asked))} if asked else {}),
        **{name: Metric(float(value)) for name, value in amounts.items() if value is not None},
    }


class CSV:
    """figures.csv in the run's folder: a row for each stage and figure; those of the report have the stage "end".

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / "figures.csv"
        self._rows: list[dict[str, Any]] = []
        if self.file.exists():
            with self.file.open(newline="", encoding="utf-8") as stream:
                self._rows = list(csv.DictReader(stream))

    def stage(self, stage: int, figures: Mapping[str, Metric]) -> None:
        """See `Sink`."""
        self._put(str(stage), figures)

    def end(self, report: Report) -> None:
        """See `Sink`."""
        self._put(_END, report.metrics)

    def close(self) -> None:
        """See `Sink`."""

    def _put(self, stage: str, figures: Mapping[str, Metric]) -> None:
        """In place of what there was for this stage, and the file as a whole or not at all."""
        self._rows = [row for row in self._rows if row["stage"] != stage]
        for name, metric in figures.items():
            figure = (stage, name, metric.value, metric.low, metric.high, metric.n)
            self._rows.append(dict(zip(_COLUMNS, figure, strict=True)))
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, _COLUMNS)
        writer.writeheader()
        writer.writerows(self._rows)
        write_file(self.file, buffer.getvalue().encode())


class TensorBoard:
    """Curves over stages under `tensorboard/` in the run's folder, and the report's figures beside them.

    Args:
        folder: Of the run.

    Raises:
        ImportError: TensorBoard is not installed; the message says how to.
    """

    def __init__(self, folder: str | Path) -> None:
        _package("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"))
        self._last = 0

    def stage(self, stage: int, figures: Mapping[str, Metric]) -> None:
        """See `Sink`."""
        self._last = stage
        for name, metric in figures.items():
            self._writer.add_scalar(f"stage/{name}", metric.value, stage)
        self._writer.flush()

    def end(self, report: Report) -> None:
        """See `Sink`."""
        for name, value in _report_figures(report).items():
            self._writer.add_scalar(f"report/{name}", value, self._last)
        settings = json.dumps(report.config, indent=1, default=str)
        self._writer.add_text("settings", "".join(f"    {line}\n" for line in settings.splitlines()), self._last)

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases under `wandb/` in the run's folder.

    Args:
        folder: Of the run.
        project: What the run belongs to there.
        mode: "offline": kept here until `wandb sync`; "online": sent at once.

    Raises:
        ImportError: wandb is not installed; the message says how to.
    """

    def __init__(self, folder: str | Path, *, project: str = "memory_paths", mode: str = "offline") -> None:
        wandb = _package("wandb", "wandb")
        self._run = wandb.init(project=project, mode=mode, dir=str(folder), name=Path(folder).name)

    def stage(self, stage: int, figures: Mapping[str, Metric]) -> None:
        """See `Sink`."""
        self._run.log({f"stage/{name}": metric.value for name, metric in figures.items()}, step=stage)

    def end(self, report: Report) -> None:
        """See `Sink`."""
        self._run.config.update({"path": report.path, "seed": report.seed, **report.config}, allow_val_change=True)
        self._run.summary.update({f"report/{name}": value for name, value in _report_figures(report).items()})

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


def _report_figures(report: Report) -> dict[str, float]:
    """Every figure that is defined, and the ends of its interval."""
    found: dict[str, float] = {}
    for name, metric in report.metrics.items():
        ends = {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        found |= {end: value for end, value in ends.items() if value is not None}
    return found


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this sink needs the package {name}: pip install 'memory_paths[{extra}]'") from error
