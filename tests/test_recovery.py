"""The recovery of an attached memory: what it trains, what it leaves alone, and what its card says."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from memory_paths.lm import CausalLM
from memory_paths.parametric import recovery
from memory_paths.parametric.addressing import consistency_loss
from memory_paths.parametric.attach import attached_memories, detach, load_memory, mlp_name
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.memory_layer import MemoryLayerConfig
from memory_paths.parametric.objective import logits_of, token_losses
from memory_paths.parametric.recovery import Material, Recovery, file_material, recover, world_material
from memory_paths.streams.words import FIRST_NAMES, LAST_NAMES, PERSON_ATTRIBUTES
from memory_paths.streams.world import Fact, known_world, role, split_wordings, study_phrasings
from memory_paths.types import Knowledge, Phrasing

Make = Callable[..., CausalLM]
SHAPE = MemoryLayerConfig(width=32, half_keys=8, heads=2, top_k=4, half_query=8)
TEXTS = [
    Phrasing(f"The {animal} sleeps in the {place}.") for animal in ("cat", "dog", "hen") for place in ("hut", "sun")
]
FACTS = [study_phrasings(Fact("Alma Ashway", attribute, "x")) for attribute in PERSON_ATTRIBUTES[:4]]
MATERIAL = Material(TEXTS, TEXTS[:3], FACTS)


def _digest(module: Any) -> dict[str, str]:
    found = [*module.named_parameters(), *module.named_buffers()]
    return {name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() for name, tensor in found}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_a_recovery_trains_what_was_attached_and_leaves_every_tensor_of_the_model(
    make_tiny_lm: Make, mode: Any, shared: bool
) -> None:
    lm = make_tiny_lm()
    before, base = lm.weights_hash(), _digest(lm.module)
    layers = ["model.layers.0.mlp", "model.layers.1.mlp"]
    card = recover(lm, layers, SHAPE, Recovery(steps=12, batch=6, facts=4), MATERIAL, mode=mode, shared=shared)
    assert card.perplexity["recovered"] < card.perplexity["attached"]
    assert (card.perplexity["attached"] == card.perplexity["untouched"]) == (mode == "add")
    batch = collate(lm, encode(lm, TEXTS[:3]))
    with torch.no_grad():
        expected = math.exp(float(token_losses(logits_of(lm.module, batch), batch).mean()))
    assert card.perplexity["recovered"] == pytest.approx(expected, rel=1e-6)
    memories = [wrapped.memory for wrapped in attached_memories(lm.module).values()]
    tables = {id(memory.values): memory.values for memory in memories}
    assert len(tables) == (1 if shared else 2)
    addresses = sum(p.numel() for memory in memories for name, p in memory.named_parameters() if name != "values")
    gates = 2 if mode == "add" else 0
    assert card.trained == addresses + gates + sum(values.numel() for values in tables.values())
    assert all(values.any() for values in tables.values())
    for layer in layers:
        detach(lm.module, layer)
    assert lm.weights_hash() == before
    assert _digest(lm.module) == base
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.module.parameters())


def test_values_move_at_a_rate_of_their_own(make_tiny_lm: Make) -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""
    lm = make_tiny_lm()
    layer = mlp_name(lm.module)

    def after(steps: int) -> Any:
        card = recover(lm, [layer], SHAPE, Recovery(steps=steps, rate=1e-4, value_rate_multiplier=50.0), MATERIAL)
        assert steps or card.perplexity["recovered"] == card.perplexity["untouched"]
        memory = attached_memories(lm.module)[layer].memory
        detach(lm.module, layer)
        return memory

    before, moved = after(0), after(1)
    for name, rate in (("values", 50e-4), ("keys", 1e-4)):
        step = (getattr(moved, name) - getattr(before, name)).abs().max()
        assert float(step.detach()) == pytest.approx(rate, rel=0.01)
    assert not before.values.any()


def test_wordings_of_a_fact_come_to_be_told_from_other_facts(make_tiny_lm: Make) -> None:
    def confusion(consistency: float) -> float:
        lm = make_tiny_lm()
        recipe = Recovery(steps=30, batch=2, rate=5e-3, consistency=consistency, balance=0.0, facts=4)
        recover(lm, ["model.layers.1.mlp"], SHAPE, recipe, MATERIAL)
        memory = attached_memories(lm.module)["model.layers.1.mlp"].memory
        hidden: list[torch.Tensor] = []
        hook = memory.register_forward_pre_hook(lambda layer, given: hidden.append(given[0]))
        asked = [(number, encode(lm, [one])[0]) for number, fact in enumerate(FACTS) for one in fact]
        with torch.no_grad():
            for _, sequence in asked:
                logits_of(lm.module, collate(lm, [sequence]))
            hook.remove()
            places = [list(sequence.learnt).index(True) - 1 for _, sequence in asked]
            at = torch.stack([one[0, place] for one, place in zip(hidden, places, strict=True)])
            return float(consistency_loss(memory.queries(at), torch.tensor([number for number, _ in asked])))

    assert confusion(1.0) < confusion(0.0) - 1.0


def test_a_loss_that_is_not_finite_takes_the_memory_out_again(make_tiny_lm: Make) -> None:
    lm = make_tiny_lm()
    before = lm.weights_hash()
    with pytest.raises(FloatingPointError, match="at step 2 of the recovery; lower the rate"):
        recover(lm, ["model.layers.1.mlp"], SHAPE, Recovery(steps=4, rate=math.inf), MATERIAL)
    assert lm.weights_hash() == before


def test_what_cannot_be_recovered_is_refused(make_tiny_lm: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="value_rate_multiplier of a recovery must be above 0, got 0"):
        Recovery(value_rate_multiplier=0.0)
    with pytest.raises(ValueError, match="facts of a recovery must be at least 4, got 2"):
        Recovery(facts=2)
    with pytest.raises(ValueError, match="needs texts to train on"):
        recover(make_tiny_lm(), ["model.layers.1.mlp"], SHAPE, Recovery(), Material([], TEXTS))
    (tmp_path / "texts.txt").write_text("One text alone.")
    with pytest.raises(ValueError, match="holds 1 texts, of which 50 are held out"):
        file_material(tmp_path / "texts.txt", None)


def test_the_worlds_material_tells_nothing_of_what_is_scored() -> None:
    material = world_material(reading=60, strangers=40, held_out=20)
    trained = " ".join(f"{one.prompt}{one.completion}" for one in material.texts)
    assert not any(fact.subject in trained for fact in known_world().part_b)
    held_out = {one.prompt for one in material.held_out}
    assert any(split_wordings(fact).held_out[0].format(name=fact.subject) in held_out for fact in known_world().part_b)
    known = {fact.subject for fact in known_world().part_a}
    spoken = [one.prompt for one in (*material.texts, *(one for fact in material.facts for one in fact))]
    words = " ".join(spoken).replace("'s", "").translate(str.maketrans("?,.:", "    ")).split()
    pairs = pairwise(words)
    people = {f"{first} {last}" for first, last in pairs if first in FIRST_NAMES and last in LAST_NAMES}
    assert len(people - known) > 40
    assert all(role(name) == "training" for name in people - known)


def test_the_command_leaves_a_memory_that_loads_and_a_card_beside_it(
    make_tiny_lm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_tiny_lm()
    lm.module.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": one.completion}) + "\n" for one in TEXTS))
    items = [Knowledge(str(number), "A fact.", phrasings=fact) for number, fact in enumerate(FACTS)]
    (tmp_path / "items.jsonl").write_text("".join(f"{item.to_json()}\n" for item in items))
    command = f"recovery {tmp_path}/memory --model {tmp_path}/model --texts {tmp_path}/texts.jsonl --held-out 2"
    command += f" --items {tmp_path}/items.jsonl --steps 3 --batch 4 --half-keys 8 --facts 4"
    command += " --mode replace --layers last"
    monkeypatch.setattr(sys, "argv", command.split())
    recovery.main()
    card = json.loads((tmp_path / "memory" / "card.json").read_text())
    assert set(card["perplexity"]) == {"untouched", "attached", "recovered"}
    assert set(card["usage"]["recovered"]) == {"in_use", "hub_share", "divergence"}
    assert card["recipe"]["steps"] == 3
    copy = CausalLM(str(tmp_path / "model"), memory=tmp_path / "memory", memory_loader=load_memory)
    assert [*attached_memories(copy.module)] == ["model.layers.1.mlp"]
    batch = collate(copy, encode(copy, TEXTS[:2]))
    with torch.no_grad():
        found = math.exp(float(token_losses(logits_of(copy.module, batch), batch).mean()))
    assert found == pytest.approx(card["perplexity"]["recovered"], rel=1e-6)
    with pytest.raises(SystemExit):
        recovery.main()
    monkeypatch.setattr(sys, "argv", ["recovery", str(tmp_path / "other"), "--model", str(tmp_path / "model")])
    with pytest.raises(SystemExit):
        recovery.main()
