"""Records, figures and intervals at a size that a long sweep reaches: seconds, bytes a row, and beside pandas.

MEMORY_PATHS_ROWS (a million where it is not set) says how many answers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_paths.evaluation import records
from memory_paths.evaluation.metrics import Measured, measure
from memory_paths.evaluation.rows import Rows
from memory_paths.evaluation.statistics import hierarchical_draws

ROWS = int(os.environ.get("MEMORY_PATHS_ROWS", "1000000"))
STAGES = 8


def _answers(stage: int, count: int) -> list[dict[str, Any]]:
    """What a bank answers to `count` questions about a quarter as many people."""
    generator = np.random.default_rng(stage)
    right, sure = generator.random(count) < 0.6, generator.random(count)
    rows = []
    for at in range(count):
        person = f"person {at // 4}"
        taught = at % 3 > 0
        rows.append(
            {
                "stage": stage,
                "arm": "reading",
                "key": f"{at:016x}",
                "kind": "direct" if taught else "prior",
                "experience": at % STAGES + 1 if taught else 0,
                "uniform": True,
                "cluster": person,
                "question": f"Where does {person} live?",
                "ids": [f"{person}/home"],
                "targets": ["Oslo"],
                "held": True,
                "answer": "Oslo" if right[at] else "Bergen",
                "correct": bool(right[at]),
                "token_f1": float(right[at]),
                "confidence": float(sure[at]),
                "recalls": [f"{person}/home", f"{person}/work"],
                "shown": [f"{person}/home"],
                "answer_offered": True,
                "answer_shown": True,
                "prompt_hash": f"{stage * count + at:064x}",
                "condition": f"{stage:016x}",
                "reused": False,
                "lm_tokens": 17,
                "lm_flops": 1e6,
                "lm_seconds": float(sure[at]) / 1000,
                "wall_seconds": float(sure[at]) / 900,
            }
        )
    return rows


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for stage in range(STAGES + 1):
        records.write_part(folder, records.ANSWERS, stage, _answers(stage, ROWS // (STAGES + 1)))
    return folder


@pytest.mark.benchmark(group="records: writing")
def test_writing(benchmark: Any, tmp_path: Path) -> None:
    parts = [_answers(stage, ROWS // (STAGES + 1)) for stage in range(STAGES + 1)]

    def write() -> None:
        for stage, rows in enumerate(parts):
            records.write_part(tmp_path, records.ANSWERS, stage, rows)

    benchmark.pedantic(write, rounds=1)
    size = sum(file.stat().st_size for file in (tmp_path / records.RECORDS).iterdir())
    benchmark.extra_info |= {"rows": ROWS, "bytes_a_row": round(size / ROWS, 1)}


@pytest.mark.benchmark(group="records: all figures")
def test_every_figure(benchmark: Any, written: Path) -> None:
    def figures() -> Measured:
        return measure(Rows.of(records.read_records(written)), experiences=STAGES)

    found = benchmark.pedantic(figures, rounds=1)
    assert found.metrics["retention"].value == pytest.approx(0.6, abs=0.02)
    benchmark.extra_info["figures"] = len(found.metrics) + len(found.ages)


@pytest.mark.benchmark(group="records: all figures")
def test_two_means_by_pandas(benchmark: Any, written: Path) -> None:
    """What a user would write instead, for two of the figures and without intervals."""

    def means() -> Any:
        frame = records.read_records(written).to_pandas()
        last = frame[(frame.stage == STAGES) & (frame.kind == "direct")]
        return last.correct.astype(float).mean(), frame.groupby(["stage", "experience"]).correct.mean()

    benchmark.pedantic(means, rounds=1)


@pytest.mark.benchmark(group="statistics: 10,000 draws of 3 paths, 5 seeds, 1,000 questions")
@pytest.mark.parametrize("crossed", [False, True], ids=["own questions", "shared questions"])
def test_redrawing(benchmark: Any, crossed: bool) -> None:
    generator = np.random.default_rng(0)
    answers = (generator.random((3, 5, 1000)) < 0.6).astype(float)
    drawn = benchmark.pedantic(
        lambda: hierarchical_draws(answers, np.ones_like(answers), crossed=crossed, generator=generator, draws=10_000),
        rounds=3,
    )
    assert drawn.shape == (10_000, 3)
