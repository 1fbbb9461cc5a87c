"""`kill -9` of an evaluation, at failpoints and at random moments: what it resumes to equals what it would have been.

MEMORY_PATHS_KILLS says how many (20 by default).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _evaluate_slowly import PAUSE, evaluate

from memory_paths.evaluation.records import finished_stages, record_differences
from memory_paths.failpoints import VARIABLE

PROGRAM = Path(__file__).with_name("_evaluate_slowly.py")
STAGES = 5
FILES = 1 + 2 * STAGES  # settings, and two parts a stage; the report would be one more
STEPS = ("before_fsync", "before_rename", "after_rename")
# Where, how often one comes by there, and whether agents are saved; no place: at a random moment.
MOMENTS = (
    *(("", 0, restoring) for restoring in (False, True)),
    *((f"records.{step}", FILES, restoring) for step in STEPS for restoring in (False, True)),
    *((f"agent.{step}", STAGES, True) for step in STEPS),
)
KILLS = int(os.environ.get("MEMORY_PATHS_KILLS", "20"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder)
    return folder


def _start(folder: Path, restoring: bool, failpoint: str = "") -> subprocess.Popen[bytes]:
    program = [sys.executable, str(PROGRAM), str(folder), *(["restore"] if restoring else [])]
    return subprocess.Popen(program, env={**os.environ, VARIABLE: failpoint, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_evaluation_resumes_to_the_same_records(kill: int, whole: Path, tmp_path: Path) -> None:
    chance = random.Random(f"kill/{kill}")
    point, times, restoring = MOMENTS[kill % len(MOMENTS)]
    if point:
        process = _start(tmp_path, restoring, f"{point}:{chance.randint(1, times)}")
    else:
        process = _start(tmp_path, restoring)
        stages = chance.randint(1, STAGES - 1)
        while process.poll() is None and finished_stages(tmp_path) < stages:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, PAUSE))
        process.kill()
    assert process.wait(60) == -signal.SIGKILL, "it was to be killed, and ended by itself"
    evaluate(tmp_path, restoring=restoring)
    assert record_differences(whole, tmp_path) == []
    assert (tmp_path / "report.json").exists()
    assert not list((tmp_path / "records").glob(".*.partial"))
    assert not (tmp_path / "checkpoint").exists()
