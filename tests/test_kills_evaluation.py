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
from _evaluate_slowly import evaluate

from memory_paths.evaluation.records import record_differences
from memory_paths.failpoints import VARIABLE

PROGRAM = Path(__file__).with_name("_evaluate_slowly.py")
POINTS = ("records.before_fsync", "records.before_rename", "records.after_rename")
FILES = 11  # settings, five stages of two parts; the report would be the twelfth
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
    restoring = kill % 2 == 1
    if kill % 4 < 3:
        process = _start(tmp_path, restoring, f"{POINTS[kill % 3]}:{chance.randint(1, FILES)}")
        assert process.wait(60) == -signal.SIGKILL
    else:
        process = _start(tmp_path, restoring)
        while process.poll() is None and not (tmp_path / "records").exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.7))
        process.kill()
        process.wait(60)
    evaluate(tmp_path, restoring=restoring)
    assert record_differences(whole, tmp_path) == []
    assert (tmp_path / "report.json").exists()
    assert not list((tmp_path / "records").glob("*.parquet.partial"))
