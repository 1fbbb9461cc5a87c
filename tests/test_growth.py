"""What grows in a frozen model: it begins unfelt, keeps what earlier writes taught, and has its place in a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, build_tokenizer, plain_aim

from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric import embedded
from memory_paths.parametric.attach import memory_layers
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.growth import Experts, LowRankStack, NewBlocks, shares
from memory_paths.parametric.inserted import Inserted, Insertion
from memory_paths.parametric.objective import logits_of
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.parametric.study import AsGiven
from memory_paths.types import Knowledge, Phrasing, Prompt

TEXTS = [Phrasing("Alma Ashway lives in Alavia."), Phrasing("She rows.")]
OTHERS = [Phrasing("Bruno Barrbury enjoys chess."), Phrasing("He sings.")]
ITEMS = [Knowledge(str(number), phrasing.completion) for number, phrasing in enumerate((*TEXTS, *OTHERS))]
Make = Callable[..., CausalLM]


def _write(lm: CausalLM, weights: Inserted, phrasings: list[Phrasing], steps: int = 3) -> None:
    batch = collate(lm, encode(lm, phrasings))
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        for _ in range(steps):
            trainer.step([plain_aim(lm.module, batch)])


def _logits(lm: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(lm.module, collate(lm, encode(lm, [*TEXTS, *OTHERS])))


def _embedded_lm() -> CausalLM:
    shape = embedded.EmbeddedConfig(width=32, layers=4, attention_heads=2, inner=48, half_keys=8, half_query=8)
    tokenizer = embedded.build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (embedded.build_model(shape, len(tokenizer), seed=1), tokenizer))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("insertion", [NewBlocks(), Experts(4), LowRankStack(2)], ids=lambda one: type(one).__name__)
def test_before_the_first_write_not_a_bit_is_felt_and_only_what_is_new_trains(
    make_tiny_lm: Make, architecture: str, insertion: Insertion
) -> None:
    lm = make_tiny_lm(architecture)
    plain, weights = _logits(lm), Inserted(insertion, rate=0.1)
    weights.fit(lm)
    old = {name: parameter.clone() for name, parameter in lm.module.named_parameters()}
    with weights.applied(lm.module):
        assert torch.equal(_logits(lm), plain)
        batch = collate(lm, encode(lm, TEXTS))
        with weights.training(lm.module) as trainer:
            for _ in range(3):
                trainer.step([plain_aim(lm.module, batch)])
        named = dict(lm.module.named_parameters())
        new = {name for name, parameter in named.items() if parameter.requires_grad}
        assert new == {name for name in named if name.startswith("inserted.") and ".old_" not in name}
        assert all(bool(named[name].grad.any()) for name in new if named[name].grad is not None)
        assert all(torch.equal(named[name], tensor) for name, tensor in old.items())
        assert not torch.allclose(_logits(lm), plain)


# New blocks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_blocks_say_the_same_with_a_cache_and_without(make_tiny_lm: Make, architecture: str) -> None:
    lm = make_tiny_lm(architecture)
    weights = Inserted(NewBlocks(), rate=0.1)
    _write(lm, weights, TEXTS)
    prompt = Prompt("Where does Alma live?")
    untouched = lm.generate([prompt], max_new_tokens=6)[0].token_ids
    with lm.altered(), weights.applied(lm.module):
        answered = lm.generate([prompt], max_new_tokens=6)[0].token_ids
        ids = lm.token_ids(prompt)
        for _ in answered:
            with torch.no_grad():
                ids.append(int(lm.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        tokens = torch.tensor([lm.token_ids(prompt)])
        theirs = lm.module.generate(tokens, do_sample=False, max_new_tokens=len(answered), pad_token_id=0)
    assert list(answered) == ids[-len(answered) :] == theirs[0, tokens.shape[1] :].tolist()
    assert answered != untouched


def test_new_blocks_follow_every_nth_block_and_pass_over_a_memory() -> None:
    lm = _embedded_lm()
    layers = lm.module.model.layers
    memories = {name: id(layer) for name, layer in memory_layers(lm.module).items()}
    for every, sources in ((1, [0, 1, 3]), (2, [1]), (3, [3])):
        weights, flops = Inserted(NewBlocks(every)), lm.forward_flops(5, after=7)
        with weights.applied(lm.module):
            new = lm.module.inserted
            assert [block.self_attn.layer_idx for block in new] == [4 + j for j in range(len(sources))]
            for block, source in zip(new, sources, strict=True):
                for name, parameter in block.named_parameters():
                    ends = name.startswith(("self_attn.o_proj.", "mlp.down_proj."))
                    expected = layers[source].get_parameter(name)
                    assert torch.equal(parameter, torch.zeros_like(parameter) if ends else expected)
            assert {name: id(layer) for name, layer in memory_layers(lm.module).items()} == memories
            # 2 for each of a token's parameters, 4 for each of the tokens that it attends to.
            block_flops = 2 * 5 * sum(parameter.numel() for parameter in new[0].parameters())
            attention = 4 * 32 * (5 * 7 + 5 * 6 / 2)
            assert lm.forward_flops(5, after=7) == pytest.approx(flops + len(sources) * (block_flops + attention))
        assert lm.forward_flops(5, after=7) == flops
    with pytest.raises(
        ValueError, match=r"no 4 decoder blocks without a memory layer; lower weights\.insertion\.every"
    ):
        Inserted(NewBlocks(4)).fit(lm)
    with pytest.raises(ValueError, match="every must be at least 1 block, got 0"):
        NewBlocks(0)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_model_whose_copies_would_be_felt_is_refused(norm_first: bool) -> None:
    """Where a norm follows the sum, as in the first OPT model, no copy is the identity; its MLP's matrices are the
    block's own."""
    import transformers

    tokenizer = build_tokenizer()
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        do_layer_norm_before=norm_first,
        eos_token_id=tokenizer.eos_token_id,
    )
    lm = CausalLM("opt", loader=lambda name: (transformers.OPTForCausalLM(config), tokenizer))
    names, weights = [name for name, _ in lm.module.named_modules()], Inserted(NewBlocks())
    if norm_first:
        weights.fit(lm)
        with weights.applied(lm.module):
            block = lm.module.inserted[0]
            assert block.fc1.weight.any()
            assert not block.fc2.weight.any()
    else:
        with pytest.raises(
            ValueError, match="OPTDecoderLayer whose attention and MLP end in zeros is not the identity"
        ):
            weights.fit(lm)
    assert [name for name, _ in lm.module.named_modules()] == names


# Experts


def test_a_share_is_a_softmax_over_none_and_the_experts_that_had_come() -> None:
    scores = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = shares(scores)
    for number in range(4):
        there = torch.cat([torch.zeros(7, 1, dtype=torch.float64), scores[:, : number + 1]], dim=1)
        torch.testing.assert_close(found[:, number], there.softmax(dim=1)[:, -1])
    assert torch.equal(shares(torch.cat([scores, torch.full((7, 1), 99.0)], dim=1))[:, :4], found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_expert_dilutes_nothing_that_earlier_writes_taught(make_tiny_lm: Make, architecture: str) -> None:
    lm = make_tiny_lm(architecture)
    weights = Inserted(Experts(4), rate=0.1)
    batch = collate(lm, encode(lm, TEXTS))
    with weights.applied(lm.module):
        with weights.training(lm.module) as trainer:
            for _ in range(3):
                trainer.step([plain_aim(lm.module, batch)])
        taught = _logits(lm)
    first = dict(weights.state())
    with weights.applied(lm.module):
        torch.testing.assert_close(_logits(lm), taught, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for experts in lm.module.inserted:
                experts["new_router"].fill_(50.0)  # whatever share it asks for, it takes from nobody
        torch.testing.assert_close(_logits(lm), taught, rtol=1e-5, atol=1e-5)
    _write(lm, weights, OTHERS)
    second = weights.state()
    for name, tensor in first.items():
        dim = 1 if name.endswith("up") else 0
        assert second[name].shape[dim] == 2 * tensor.shape[dim]
        assert torch.equal(second[name].narrow(dim, 0, tensor.shape[dim]), tensor)
        assert second[name].narrow(dim, tensor.shape[dim], tensor.shape[dim]).any()


def test_an_expert_adds_what_the_formula_says(make_tiny_lm: Make) -> None:
    lm = make_tiny_lm("llama")
    weights = Inserted(Experts(4), rate=0.1)
    for phrasings in (TEXTS, OTHERS):
        _write(lm, weights, phrasings)
    hidden, mlp = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), lm.module.model.layers[0].mlp
    state = weights.state()
    with torch.no_grad():
        expected = mlp(hidden)
        scores = hidden @ state["0.old_router"].T
        for number, share in enumerate(shares(scores).T):
            own = slice(4 * number, 4 * number + 4)
            inner = torch.nn.functional.gelu(hidden @ state["0.old_down"][own].T)
            expected = expected + share[:, None] * (inner @ state["0.old_up"][:, own].T)
        with weights.applied(lm.module):
            torch.testing.assert_close(mlp(hidden), expected)
        assert not torch.allclose(mlp(hidden), expected)
    with pytest.raises(ValueError, match="width of an expert must be at least 1, got 0"):
        Experts(0)
    with pytest.raises(ValueError, match=r"no modules named experts; name .* in weights\.insertion\.beside"):
        Inserted(Experts(beside=["experts"])).fit(lm)


# In a path


@pytest.mark.parametrize("kind", [Experts, LowRankStack, NewBlocks])
def test_what_grows_is_saved_opened_and_forgotten_to_the_byte(kind: Callable[[], Any], tmp_path: Path) -> None:
    lm = _embedded_lm()

    def path(ledger: Ledger) -> WeightsPath:
        options = {"study": AsGiven(), "budget": Budget(steps=2), "progress": False}
        return WeightsPath(lm, ledger, weights=Inserted(kind(), rate=1e-2), **options)

    with Ledger(tmp_path / "ledger.sqlite") as ledger, Ledger() as other:
        written = path(ledger)
        for item in ITEMS[:3]:
            written.write([item], namespace="default")
        written.save(tmp_path / "saved")
        again = path(ledger)
        again.load(tmp_path / "saved")
        taught = written.state_hash()
        assert again.state_hash() == taught
        again.forget([ITEMS[1].id], namespace="default")
        never = path(other)
        for item in (ITEMS[0], ITEMS[2]):
            never.write([item], namespace="default")
        expected = never.state_hash()
        assert again.state_hash() == expected != taught
        again.undo()
        again.write([ITEMS[2]], namespace="default")
        assert again.state_hash() == expected
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        reopened = path(ledger)
        reopened.flush()
        assert reopened.state_hash() == expected
