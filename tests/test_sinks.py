"""Where else figures go: read again from what the sinks left; a sink that fails stops nothing."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from _evaluate_slowly import toy_agent, toy_stream

from memory_paths.__main__ import run
from memory_paths.build import compose
from memory_paths.evaluation import records
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.report import Report
from memory_paths.evaluation.sinks import CSV, Sink, TensorBoard, WandB

STAGES = ["0", "1", "2", "3", "4", "end"]


def _run(folder: Path, sinks: Mapping[str, Sink], samples: int = 16) -> Report:
    with toy_agent() as agent:
        return Evaluator(toy_stream(), folder=folder, samples=samples, progress=False, sinks=sinks).run(agent)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "figures.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


class Broken:
    """A sink that fails at its second stage, and counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, stage: int, figures: Mapping[str, Metric]) -> None:
        self.told.append(f"stage {stage}")
        if stage == 1:
            raise OSError("no space left")

    def end(self, report: Report) -> None:
        self.told.append("end")

    def close(self) -> None:
        self.told.append("close")


def test_the_csv_file_holds_the_figures_of_each_stage_and_of_the_report(tmp_path: Path) -> None:
    report = _run(tmp_path, {"csv": CSV(tmp_path)})
    rows = _rows(tmp_path)
    assert list(dict.fromkeys(row["stage"] for row in rows)) == STAGES
    ended = {row["figure"]: row for row in rows if row["stage"] == "end"}
    assert set(ended) == set(report.metrics)
    for name, metric in report.metrics.items():
        row = ended[name]
        assert (row["value"], row["low"]) == tuple("" if it is None else str(it) for it in (metric.value, metric.low))
    last = {row["figure"]: row for row in rows if row["stage"] == "4"}
    assert [float(last[f"accuracy/{at}"]["value"]) for at in (1, 2, 3, 4)] == pytest.approx(report.matrix[4])
    _run(tmp_path / "few", {"csv": CSV(tmp_path / "few")}, samples=6)
    for stage in (1, 2, 3, 4):
        rows = records.read_records(tmp_path / "few").to_pylist()
        own = [row for row in rows if row["kind"] == "direct" and row["stage"] == row["experience"] == stage]
        (told,) = (
            row for row in _rows(tmp_path / "few") if (row["stage"], row["figure"]) == (str(stage), f"accuracy/{stage}")
        )
        assert int(told["n"]) == len(own), "of its own experience a stage counts what is beside the sample too"
    assert float(last["write/items"]["value"]) > 0
    assert int(last["right/direct"]["n"]) > 0


def test_a_stage_that_is_told_again_after_an_interruption_stands_there_once(tmp_path: Path) -> None:
    first = CSV(tmp_path)
    for stage in (0, 1):
        first.stage(stage, {"right/direct": Metric(0.25)})
    CSV(tmp_path).stage(1, {"right/direct": Metric(0.75)})
    assert [(row["stage"], row["value"]) for row in _rows(tmp_path)] == [("0", "0.25"), ("1", "0.75")]


def test_tensorboard_reads_the_figures_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report = _run(tmp_path, {"tensorboard": TensorBoard(tmp_path)})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    column = events.Scalars("stage/accuracy/1")
    assert [event.step for event in column] == [0, 1, 2, 3, 4]
    assert [event.value for event in column] == pytest.approx([row[0] for row in report.matrix])
    (retention,) = events.Scalars("report/retention")
    assert retention.value == pytest.approx(report.metrics["retention"].value)
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed; it is the extra [wandb]")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _run(tmp_path, {"wandb": WandB(tmp_path)})
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"stage/accuracy/1" in content
    assert b"report/retention" in content


def test_a_sink_that_fails_is_closed_and_left_out_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    with caplog.at_level(logging.WARNING):
        report = _run(tmp_path, {"broken": broken, "csv": CSV(tmp_path)})
    assert broken.told == ["stage 0", "stage 1", "close"]
    assert [record.getMessage() for record in caplog.records if "broken" in record.getMessage()] == [
        "sink broken failed and is told nothing more: OSError: no space left"
    ]
    assert Report.read(tmp_path) == report
    assert {row["stage"] for row in _rows(tmp_path)} == set(STAGES)


def test_sinks_are_closed_when_a_run_fails(tmp_path: Path) -> None:
    told = Broken()
    with toy_agent() as agent:
        agent.learn("Ada lives in Oslo.")
        with pytest.raises(ValueError, match="before any learning"):
            Evaluator(toy_stream(), folder=tmp_path, samples=16, progress=False, sinks={"told": told}).run(agent)
    assert told.told == ["close"]


@pytest.mark.parametrize(("sink", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb")])
def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    sink: type[TensorBoard] | type[WandB], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}: pip install 'memory_paths\[{package}\]'"):
        sink(tmp_path)


def test_sinks_are_chosen_by_configuration_and_a_run_is_the_same_without_them(tmp_path: Path) -> None:
    small = ("path=none", "stream.facts=12", "evaluation.samples=4", "progress=false")
    run(compose(*small, "sink=csv"), tmp_path)
    assert "sinks" not in Report.read(tmp_path).config
    written = (tmp_path / "report.json").stat().st_mtime_ns
    run(compose(*small), tmp_path)
    assert (tmp_path / "report.json").stat().st_mtime_ns == written, "finished already"
    assert "end" in {row["stage"] for row in _rows(tmp_path)}
