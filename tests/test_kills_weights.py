"""`kill -9` while weights learn: what it resumes to has the very bytes of what was never killed.

MEMORY_PATHS_KILLS says how many evaluations are killed (2 by default); a third as many applications are.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from _learn_until_killed import ACKNOWLEDGED, LEARNT, NAME, OPENED, SHORT, STEPS, WRITES, evaluate, serve, stream
from _program import forking

from memory_paths.evaluation.records import finished_stages, record_differences
from memory_paths.evaluation.scoring import exact_match

KILLS = int(os.environ.get("MEMORY_PATHS_KILLS", "2"))
STAGES = WRITES + 1
SAVED = ("learnt.safetensors", "learnt.json")
# Where, how often an evaluation comes by there, and whether agents are saved; no place: at a random moment.
MOMENTS = (
    ("write.step", WRITES * SHORT, False),
    ("agent.before_rename", STAGES, True),
    ("records.before_rename", 2 * STAGES, True),
    ("write.step", WRITES * SHORT, True),
    ("", 0, False),
    ("learnt.before_rename", len(SAVED) * STAGES, True),
    ("ledger.after_commit", WRITES, True),
    ("agent.after_rename", STAGES, True),
    ("", 0, True),
    ("records.after_rename", 2 * STAGES, False),
)
USES = (
    ("write.step", WRITES * STEPS),
    ("ledger.after_commit", WRITES),
    ("learnt.after_rename", len(SAVED) * WRITES),
    ("ledger.before_commit", WRITES),
    ("agent.before_fsync", WRITES),
)


@pytest.fixture(scope="module")
def start() -> Callable[..., BaseProcess]:
    """Begins a function as a process of its own."""

    def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = forking().Process(target=function, args=arguments)
        process.start()
        return process

    return started


def _end(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(start: Callable[..., BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert _end(start(evaluate, folder, False)) == 0
    return folder


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_evaluation_of_sparse_memory_resumes_to_the_same_bytes(
    kill: int, start: Callable[..., BaseProcess], whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(f"kill/{kill}")
    point, times, restoring = MOMENTS[kill % len(MOMENTS)]
    if point:
        process = start(evaluate, tmp_path, restoring, f"{point}:{chance.randint(1, times)}")
    else:
        process = start(evaluate, tmp_path, restoring)
        stages = chance.randint(0, STAGES - 2)
        while process.is_alive() and finished_stages(tmp_path) < stages:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.2))
        process.kill()
    assert _end(process) == -signal.SIGKILL, "it was to be killed, and ended by itself"
    assert _end(start(evaluate, tmp_path, restoring)) == 0
    assert record_differences(whole, tmp_path) == []
    assert _saved(tmp_path / "end") == _saved(whole / "end")


def _saved(folder: Path) -> list[Any]:
    """The bytes of the tensors, and what is said of them but for what has the times of the ledger in it."""
    tensors, described = (folder / name for name in SAVED)
    said = json.loads(described.read_text())
    return [tensors.read_bytes(), {name: value for name, value in said.items() if name not in ("history", "sha256")}]


@pytest.fixture(scope="module")
def used(start: Callable[..., BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an application that was never interrupted."""
    folder = tmp_path_factory.mktemp("used")
    assert _end(start(serve, folder)) == 0
    return folder


def _noted(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("kill", range(-(-KILLS // 3)))
def test_a_killed_application_answers_what_was_acknowledged_and_learns_on_as_if_nothing_had_been(
    kill: int, start: Callable[..., BaseProcess], used: Path, tmp_path: Path
) -> None:
    chance = random.Random(f"use/{kill}")
    point, times = USES[kill % len(USES)]
    assert _end(start(serve, tmp_path, f"{point}:{chance.randint(1, times)}")) == -signal.SIGKILL
    acknowledged = _noted(tmp_path / ACKNOWLEDGED)
    assert _end(start(serve, tmp_path)) == 0

    # What it was before the first write and after each one, had it never been killed.
    never_killed = [*_noted(used / OPENED), *_noted(used / LEARNT)]
    opened = _noted(tmp_path / OPENED)[-1]
    assert set(opened["held"]) >= {id for ids in acknowledged for id in ids}
    assert opened in never_killed[len(acknowledged) : len(acknowledged) + 2], "the last write may not have been told of"
    last = f"save-{WRITES - 1}/paths/{NAME}"
    assert _saved(tmp_path / last) == _saved(used / last)


def test_what_an_application_has_learnt_is_answered(used: Path) -> None:
    """Else two that answer alike would say nothing."""
    first, *_, last = [*_noted(used / OPENED), *_noted(used / LEARNT)]
    questions = [question for step in stream().experiences for question in step.questions if question.kind == "direct"]
    before, after = (
        sum(exact_match(text, question.targets) for text, question in zip(one["answers"], questions, strict=True))
        for one in (first, last)
    )
    assert after - before >= len(questions) / 4
