"""The embedded model with a sparse memory, evaluated or used by an application, until it is killed.

Each function is the whole life of one process. `failpoint`, if given, is where that process kills itself, see
`memory_paths.failpoints`; `write.step` is another one, between a study step's forward pass and its backward pass.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memory_paths.agent import Agent
from memory_paths.build import restore, threads
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.failpoints import VARIABLE, failpoint
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.batches import TrainingBatch
from memory_paths.parametric.embedded import load
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.objective import NegativeLogLikelihood
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.parametric.setting import Setting
from memory_paths.parametric.weights import Aim
from memory_paths.streams.world import biographies, rehearsal
from memory_paths.types import Stream

NAME = "sparse_memory"
WRITES, STEPS = 3, 30  # with fewer steps an application would have little to answer
SHORT = 10  # for the evaluation, which only has to be the same
ACKNOWLEDGED, OPENED, LEARNT = "acknowledged.jsonl", "opened.json", "learnt.json"


@dataclass(frozen=True)
class Fragile:
    """The plain objective, with a failpoint in each step."""

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        aim = NegativeLogLikelihood()(setting, batch)

        def loss() -> Any:
            found = aim.loss()
            failpoint("write.step")
            return found

        return Aim(aim.batch, loss)


@cache
def stream() -> Stream:
    return biographies(18, experiences=WRITES)


def begin(point: str) -> None:
    os.environ[VARIABLE] = point
    threads(1)  # products of matrices depend in their last bits on how many there are


def make_agent(ledger: Ledger, steps: int) -> Agent:
    lm = CausalLM("embedded", loader=load)
    path = WeightsPath(
        lm,
        ledger,
        weights=MemoryRows(),
        objective=Fragile(),
        budget=Budget(steps=steps, batch=6),
        background=rehearsal()[:96],
        name=NAME,
        progress=False,
    )
    return Agent(lm, {NAME: path}, ledger)


def evaluate(folder: Path, restoring: bool, point: str = "") -> None:
    """The evaluation of the whole stream; what was learnt lies in `folder/end` afterwards."""
    begin(point)
    with make_agent(Ledger(), SHORT) as agent:
        again = restore if restoring else None
        Evaluator(stream(), folder=folder, samples=4, progress=False, restore=again).run(agent)
        agent.paths[NAME].save(folder / "end")


def serve(folder: Path, point: str = "") -> None:
    """An application: learns each experience of the stream that it does not hold, and saves itself after each. It
    leaves what it found on opening, what was acknowledged, and what it was after each write."""
    begin(point)
    with make_agent(Ledger(folder / "ledger.sqlite"), STEPS) as agent:
        if saves := sorted(folder.glob("save-*")):
            agent.paths[NAME].load(saves[-1] / "paths" / NAME)
        agent.flush()
        note(folder / OPENED, described(agent))
        held = {item.id for item in agent.items()}
        for number, experience in enumerate(stream().experiences):
            if not held.issuperset(item.id for item in experience.items):
                agent.learn(experience.items)
                note(folder / ACKNOWLEDGED, [item.id for item in experience.items])
                note(folder / LEARNT, described(agent))
            if not (save := folder / f"save-{number}").exists():
                agent.save(save)


def described(agent: Agent) -> dict[str, Any]:
    """What is held, the hash of what was learnt, and every answer."""
    questions = [question for step in stream().experiences for question in step.questions if question.kind == "direct"]
    return {
        "held": sorted(item.id for item in agent.items()),
        "state": agent.state_hash(),
        "answers": [answer.text for answer in agent.answer([question.query for question in questions])],
    }


def note(file: Path, said: Any) -> None:
    """One line more."""
    with file.open("a") as lines:
        lines.write(f"{json.dumps(said)}\n")
