"""Several processes that learn as one: two real ones against one, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _train_together import (
    CASES,
    FIRST,
    SHAPE,
    STEPS,
    build_lm,
    build_path,
    build_weights,
    items,
    learn,
    learn_configured,
)
from conftest import run

from memory_paths.ledger import Ledger
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.batches import collate, encode, part_of, share_of
from memory_paths.parametric.distributed import DataParallel
from memory_paths.parametric.inserted import Bottleneck, Inserted
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.merging import NoMerging, Pruning
from memory_paths.parametric.objective import NegativeLogLikelihood, SelectiveNegativeLogLikelihood
from memory_paths.parametric.on_policy import OnPolicy
from memory_paths.parametric.penalty import ElasticWeights, NoPenalty
from memory_paths.parametric.projection import AveragedGradient, NoProjection
from memory_paths.parametric.rehearsal import NoRehearsal
from memory_paths.streams.world import rehearsal
from memory_paths.types import Phrasing

PROGRAM = Path(__file__).with_name("_train_together.py")
RUNS = [(case, pool) for case, pools in CASES.items() for pool in pools]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left, which speak through gloo."""
    folder = tmp_path_factory.mktemp("together")
    _run_two(folder)
    return folder


def _run_two(*arguments: str | Path) -> None:
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(*launch, PROGRAM, *arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> Callable[[str], dict[str, Any]]:
    """What one process learns."""
    known: dict[str, dict[str, Any]] = {}
    return lambda case: known[case] if case in known else known.setdefault(case, learn(case))


def _furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(("case", "pool"), RUNS)
def test_two_processes_learn_what_one_does(
    together: list[dict[str, Any]], alone: Callable[[str], dict[str, Any]], case: str, pool: str
) -> None:
    one = alone(case)
    assert len(one["losses"]) == 2 * STEPS
    assert one["losses"][STEPS - 1] < one["losses"][0]
    for other in (found[f"{case} {pool}"] for found in together):
        assert other["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-10)
        assert len(other["rows"]) == (4 * STEPS if case.startswith("memory") else 0)
        assert all(map(torch.equal, one["rows"], other["rows"]))
        assert _furthest(one["state"], other["state"]) <= 1e-10
        assert _furthest(one["undone"], other["undone"]) <= 1e-10
        assert other["drift"] == pytest.approx(one["drift"], rel=1e-5)
        assert other["tokens"][0] == one["tokens"][0]
        assert other["given_back"]


def test_every_choice_learns_on_the_embedded_model(tmp_path: Path) -> None:
    # Forty texts of the background, not all: every agent of every process reads them.
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps({"text": one.prompt + one.completion}) + "\n" for one in rehearsal()[:40]))
    few = f"++lm.background={{_target_: memory_paths.streams.files.texts, file: {file}, skip: 0}}"
    _learns_as_one(tmp_path, "path=sparse_memory", few)


def test_every_choice_learns_on_a_real_model(tmp_path: Path, stories_folder: Path) -> None:
    _learns_as_one(tmp_path, "path=sparse_memory_attached", "lm=hf", f"lm.name={stories_folder}")


def _learns_as_one(folder: Path, *overrides: str) -> None:
    """By every file of conf/parallel/ and in the models' float32."""
    _run_two(folder, *overrides)
    one = learn_configured(overrides)
    learnt = max(float(tensor.abs().max()) for tensor in one.values() if tensor.is_floating_point())
    assert learnt > 10.0, "untouched rows hold numbers below 1"
    for every in (torch.load(folder / f"{rank}.pt") for rank in range(2)):
        assert sorted(every) == ["replicated", "sharded"]
        for other in every.values():
            assert _furthest(one, other) <= 1e-5 * learnt


@pytest.mark.parametrize(("case", "pool"), RUNS)
def test_all_processes_end_in_the_same_bytes(together: list[dict[str, Any]], case: str, pool: str) -> None:
    first, second = (found[f"{case} {pool}"] for found in together)
    assert first["hash"] == second["hash"]
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize(("case", "pool"), [one for one in RUNS if one[0] == "memory"])
def test_a_process_keeps_the_whole_table_or_its_columns_alone(
    together: list[dict[str, Any]], case: str, pool: str
) -> None:
    size = SHAPE.half_keys**2 * SHAPE.width * 8
    for found in together:
        assert found[f"{case} {pool}"]["table_bytes"] == [size // 2 if pool == "sharded" else size] * 2


@pytest.mark.parametrize(("case", "pool"), RUNS)
def test_one_process_loads_what_two_have_saved(
    folder: Path, together: list[dict[str, Any]], case: str, pool: str
) -> None:
    weights = build_weights(case)
    path = build_path(case, build_lm(), weights)
    path._ledger.restore(folder / f"{case}_{pool}" / "ledger.sqlite")
    path.load(folder / f"{case}_{pool}")
    assert _furthest(dict(weights.state()), together[0][f"{case} {pool}"]["state"]) == 0.0


def test_processes_that_are_given_different_items_are_refused(together: list[dict[str, Any]]) -> None:
    assert all("learn different things" in found["refusal"] for found in together)


def test_one_process_alone_is_no_different_from_none() -> None:
    hashes = []
    for parallel in (None, DataParallel("sharded", cpu=True)):
        path = build_path("memory", build_lm(), build_weights("memory"), parallel)
        path.write(items(FIRST), namespace="default")
        hashes.append(path.state_hash())
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_the_parts_of_a_step_are_the_step(count: int) -> None:
    lm = build_lm()
    texts = [Phrasing(text, "Alma Ashway ") for every in FIRST for text in every]
    batch = collate(lm, encode(lm, texts[:4]), rehearsed=encode(lm, texts[4:]))
    parts = [part_of(batch, rank, count) for rank in range(count)]
    working = parts[: len(texts)]
    assert sum(len(part.tokens) for part in working) == len(texts)
    assert sum(part.fresh for part in parts) == 4
    assert sum(int(part.predicting.sum()) for part in parts) == int(batch.predicting.sum())
    assert sum(part.token_count for part in working) == batch.token_count
    for rank, part in enumerate(parts):
        own = int(part.targets.sum()) / int(batch.targets.sum())
        assert share_of(batch, rank, count) == (own if rank < len(texts) else 0.0)
        assert part.attention.sum(dim=1).max() == part.tokens.shape[1], "padding that none of them needs"


REFUSED = {
    "weights": (lambda: Inserted(Bottleneck()), "MemoryRows, Adapter, Full"),
    "objective": (SelectiveNegativeLogLikelihood, "NegativeLogLikelihood"),
    "rehearsal": (lambda: OnPolicy(2), "NoRehearsal, Experience"),
    "penalty": (ElasticWeights, "NoPenalty, TowardsBefore"),
    "projection": (lambda: AveragedGradient(2), "NoProjection"),
    "merging": (Pruning, "NoMerging, Interpolation"),
}


def _check(parallel: DataParallel, ledger: Ledger | None = None, **given: Any) -> None:
    axes: dict[str, Any] = {
        "weights": MemoryRows(),
        "objective": NegativeLogLikelihood(),
        "rehearsal": NoRehearsal(),
        "penalty": NoPenalty(),
        "projection": NoProjection(),
        "merging": NoMerging(),
    }
    parallel.check(build_lm(), ledger or Ledger(), **{**axes, **given})


@pytest.mark.parametrize("axis", REFUSED)
def test_what_a_part_of_a_step_does_not_tell_is_refused_with_what_it_does(axis: str) -> None:
    choice, known = REFUSED[axis]
    with pytest.raises(ValueError, match=f"{axis} is one of {known};"):
        _check(DataParallel(cpu=True), **{axis: choice()})


def test_a_ledger_file_and_values_that_are_not_written_to_are_refused(tmp_path: Path) -> None:
    _check(DataParallel("sharded", cpu=True))
    with pytest.raises(ValueError, match="save the agent from one of them"):
        _check(DataParallel(cpu=True), Ledger(tmp_path / "ledger.sqlite"))
    lora = build_weights("lora")
    assert isinstance(lora, Adapter)
    with pytest.raises(ValueError, match="pool=replicated"):
        _check(DataParallel("sharded", cpu=True), weights=lora)
    for alone in ({"statistics": "anywhere"}, {"counted": "all"}):
        with pytest.raises(ValueError, match="statistics=null and counted=predicting"):
            _check(DataParallel(cpu=True), weights=MemoryRows(**alone))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip=null"):
        _check(DataParallel("sharded", cpu=True), weights=MemoryRows(clip=1.0))
    with pytest.raises(ValueError, match="pool must be one of replicated, sharded"):
        DataParallel("halved", cpu=True)  # type: ignore[arg-type]


def test_an_evaluation_that_is_started_in_several_processes_is_refused(tmp_path: Path) -> None:
    program = (sys.executable, "-m", "memory_paths", "path=none", f"hydra.run.dir={tmp_path}")
    assert "one of 2" in run(*program, expect=1, env={**os.environ, "WORLD_SIZE": "2"}).stderr
