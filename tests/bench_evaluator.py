"""`make bench`: the evaluator beside lm-evaluation-harness, same model, tasks and machine, as ratios of times that were
taken in turns within one run. What says how fast is `extra_info` and a printed line; nothing is asserted in seconds."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from memory_paths.agent import Agent
from memory_paths.build import build_agent, compose
from memory_paths.evaluation.harness import Harness, as_harness_model
from memory_paths.lm import CausalLM
from memory_paths.streams.world import biographies

TASKS = Path(__file__).parent / "harness_tasks"
ROUNDS = 3
STAGES = 8
Benchmark = Any


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with build_agent(compose("path=none")) as built:
        yield built


def _theirs(lm: CausalLM, harness: Harness) -> None:
    """The same tasks by lm-evaluation-harness and its own transformers model."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(lm.module, tokenizer=lm.tokenizer, max_length=lm.window, batch_size=lm.batch_size)
    evaluate(lm=model, task_dict=harness._tasks, limit=harness.settings["limit"], bootstrap_iters=0)


def _beside(
    benchmark: Benchmark,
    capsys: pytest.CaptureFixture[str],
    what: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
) -> None:
    """Time both in turns, the other one before each round; say how many times as long the other one takes."""
    own: list[float] = []
    others: list[float] = []

    def before() -> None:
        begin = time.perf_counter()
        theirs()
        others.append(time.perf_counter() - begin)

    def timed() -> None:
        begin = time.perf_counter()
        ours()
        own.append(time.perf_counter() - begin)

    benchmark.pedantic(timed, setup=before, rounds=ROUNDS, warmup_rounds=1)
    ratios = [other / mine for other, mine in zip(others[1:], own[1:], strict=True)]
    benchmark.extra_info[what] = round(statistics.median(ratios), 3)
    with capsys.disabled():
        listed = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
        sys.stdout.write(f"\n{benchmark.group}, {what}: {statistics.median(ratios):.3f} ({listed})\n")


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("task", ["known_last_word", "known_choice", "known_page", "known_answer"])
@pytest.mark.benchmark(group="a static task, beside lm-eval")
def test_static_task(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], agent: Agent, task: str, batch_size: int
) -> None:
    """Long contexts with one continuation, choices of one token, running text, and free answers."""
    agent.lm.batch_size = batch_size
    ours, theirs = Harness([task], folder=TASKS, limit=200), Harness([task], folder=TASKS, limit=200)

    def ask() -> None:
        ours._known.clear()
        ours.ask(agent)

    _beside(benchmark, capsys, f"{task}, batch {batch_size}, times as fast", ask, lambda: _theirs(agent.lm, theirs))
    agent.lm.batch_size = 32


@pytest.mark.benchmark(group="four sentences to choose from after one context, beside lm-eval")
def test_shared_context(benchmark: Benchmark, capsys: pytest.CaptureFixture[str], agent: Agent) -> None:
    ours, theirs = (Harness(["known_notes"], folder=TASKS, limit=150) for _ in range(2))

    def ask() -> None:
        ours._known.clear()
        ours.ask(agent)

    _beside(benchmark, capsys, "times as fast", ask, lambda: _theirs(agent.lm, theirs))


@pytest.mark.benchmark(group="a task after each of 8 stages on 3 paths, beside lm-eval")
def test_matrix(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    """What learning takes is left out. A window and a bank leave the model as it is; it is not asked again."""
    experiences = biographies(6 * STAGES, experiences=STAGES).experiences
    harness = Harness(["known_last_word"], folder=TASKS, limit=60)
    spent = {"ours": 0.0, "theirs": 0.0}
    chosen = (
        ("path=icl",),
        ("path=rag", "encoder@path.memory.encoder=hash"),
        ("path=sparse_memory", "path.memory.budget.steps=20"),
    )
    with ExitStack() as opened:
        agents = [opened.enter_context(build_agent(compose(*overrides))) for overrides in chosen]
        harness.ask(agents[0])
        _theirs(agents[0].lm, harness)
        harness._known.clear()
        for stage in range(STAGES + 1):
            for agent in agents:
                if stage:
                    agent.learn(list(experiences[stage - 1].items))
                    agent.flush()
                begin = time.perf_counter()
                harness.ask(agent)
                spent["ours"] += time.perf_counter() - begin
                begin = time.perf_counter()
                with agent.model() as lm:
                    _theirs(lm, harness)
                spent["theirs"] += time.perf_counter() - begin
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info["times as fast"] = round(spent["theirs"] / spent["ours"], 3)
    with capsys.disabled():
        sys.stdout.write(f"\n{benchmark.group}, times as fast: {spent['theirs'] / spent['ours']:.3f}\n")


@pytest.mark.parametrize("part", ["scoring of tokens", "whole task"])
@pytest.mark.benchmark(group="a static task, beside its bare forward passes")
def test_overhead(benchmark: Benchmark, capsys: pytest.CaptureFixture[str], agent: Agent, part: str) -> None:
    """The passes are recorded and made again without anything around them. The whole task has lm-eval's templates, the
    tokeniser and the harness's records in it, which take as long per document whatever the size of the model."""
    harness = Harness(["known_last_word"], folder=TASKS, limit=200)
    passes: list[dict[str, Any]] = []
    module = agent.lm.module
    hook = module.register_forward_pre_hook(lambda module, args, options: passes.append(options), with_kwargs=True)
    harness.ask(agent)
    hook.remove()
    assert len(passes) > 5
    model = as_harness_model(agent, recall=False)
    requests = [request.args for task in harness._tasks["tasks"].values() for request in task.instances]
    pairs = [model._cut(*pair) for pair in model._pairs(requests)]

    def ask() -> None:
        harness._known.clear()
        harness.ask(agent) if part == "whole task" else agent.lm.score_tokens(pairs)

    def bare() -> None:
        with torch.no_grad():
            for options in passes:
                module(**options)

    _beside(benchmark, capsys, f"{part}, share of its time in bare passes", ask, bare)
