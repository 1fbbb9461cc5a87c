"""The model that ships with the package: whole, small, and able to do what its card says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import memory_paths
from memory_paths.agent import Agent
from memory_paths.evaluation.scoring import exact_match
from memory_paths.lm import CausalLM
from memory_paths.parametric.embedded import ASSETS, load
from memory_paths.parametric.examination import Case, known_cases, reading_cases, two_hop_cases, untaught_cases
from memory_paths.streams.world import biographies

ASSET = ASSETS / "embedded"


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM("embedded", loader=load)


def _share(lm: CausalLM, cases: list[Case]) -> float:
    answers = lm.generate([case.prompt for case in cases], max_new_tokens=8)
    return sum(exact_match(a.text, (case.answer,)) for a, case in zip(answers, cases, strict=True)) / len(cases)


def test_the_asset_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 24 * 2**20
    weights = json.loads((ASSET / "embedded.json").read_text())["sha256"]["model.safetensors"]
    assert weights in (ASSET / "card.md").read_text(), "the card is of other weights"


def test_it_knows_its_people_reads_about_others_and_nothing_else(lm: CausalLM) -> None:
    assert _share(lm, known_cases(0, 150)) >= 0.98
    for notes in (1, 5, 12):
        assert _share(lm, known_cases(notes, 150)) >= 0.95
    assert _share(lm, reading_cases(12, 150)) >= 0.97
    assert _share(lm, reading_cases(12, 150, "bank")) >= 0.95
    assert _share(lm, two_hop_cases(150)) >= 0.90
    assert _share(lm, untaught_cases(150)) <= 0.05


def test_the_size_of_a_batch_changes_no_answer(lm: CausalLM) -> None:
    """Also with a memory layer, where rounding might have another slot win."""
    single = CausalLM("embedded", loader=load, batch_size=1, prefix_cache=False)
    prompts = [case.prompt for case in (*known_cases(5, 32), *reading_cases(12, 32))]
    assert [a.text for a in lm.generate(prompts)] == [a.text for a in single.generate(prompts)]
    pairs = [(prompt, "Novaflow") for prompt in prompts]
    assert lm.loglikelihood(pairs) == pytest.approx(single.loglikelihood(pairs), abs=1e-4)


def test_a_damaged_asset_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "embedded"
    shutil.copytree(ASSET, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load(str(copy))


@pytest.fixture(params=["icl", "rag", "sparse_memory", "lora", "full"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    overrides = [f"path={request.param}", "progress=false"]
    if request.param == "rag":
        overrides.append("encoder@path.memory.encoder=hash")
    if request.param in ("sparse_memory", "lora", "full"):
        overrides.append(f"path.memory.budget.steps={120 if request.param == 'sparse_memory' else 30}")
    with memory_paths.load(*overrides) as made:
        yield made


def test_every_path_learns_facts_and_leaves_the_lent_model_as_it_was(agent: Agent, tmp_path: Path) -> None:
    before = agent.weights_hash()
    stream = biographies(12)
    items = [item for step in stream.experiences for item in step.items]
    asked = [question for step in stream.experiences for question in step.questions if question.kind == "direct"]
    agent.learn(items)
    answers = agent.answer([question.query for question in asked])
    right = sum(exact_match(a.text, question.targets) for a, question in zip(answers, asked, strict=True))
    assert right >= 0.7 * len(asked)
    assert agent.weights_hash() == before
    agent.save(tmp_path / "saved")
    with Agent.load(tmp_path / "saved") as again:
        assert again.state_hash() == agent.state_hash()
        assert [a.text for a in again.answer([question.query for question in asked])] == [a.text for a in answers]
