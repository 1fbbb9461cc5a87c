"""Queries that are taken of several tokens: the same whatever is cached, padded or packed beside them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import plain_aim
from transformers.cache_utils import StaticCache

from memory_paths.lm import PREFIX_BLOCK, CausalLM
from memory_paths.parametric.attach import attach, detach, load_memory, save_memory
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.curriculum import Document, DocumentSource, Encoder, pack
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer, load_embedded
from memory_paths.parametric.growth import NewBlocks
from memory_paths.parametric.inserted import Inserted, PromptPool, VirtualTokens
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.pretraining import Recipe, forward, pretrain
from memory_paths.parametric.query_tokens import QueryTokens
from memory_paths.parametric.recovery import Material, Recovery, recover
from memory_paths.parametric.slots import address_hash
from memory_paths.types import Phrasing, Prompt

TOKENS = 3
SHAPE = EmbeddedConfig(
    width=32, layers=3, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8, query_tokens=TOKENS
)
NOTES = tuple(f"Alma Ashway has {number} boats." for number in range(20))
Make = Callable[..., CausalLM]


def _model() -> Any:
    """A model whose memory has much to say, and whose earlier tokens have much to say about the query."""
    model = build_model(SHAPE, len(build_tokenizer()), seed=0).eval()
    memory = model.model.layers[1].mlp
    with torch.no_grad():
        memory.values.normal_(generator=torch.Generator().manual_seed(1))
        memory.query_tokens.mix.normal_(generator=torch.Generator().manual_seed(2))
    return model


def _lm(model: Any, **options: Any) -> CausalLM:
    return CausalLM("tiny", loader=lambda name: (copy.deepcopy(model), build_tokenizer()), **options)


def test_the_mix_is_a_causal_convolution_that_starts_with_all_tokens_alike() -> None:
    tokens = QueryTokens(TOKENS, 5)
    hidden = torch.randn(2, 7, 5)
    with torch.no_grad():
        expected = sum(torch.nn.functional.pad(hidden, (0, 0, back, 0))[:, :7] / TOKENS for back in range(TOKENS))
        torch.testing.assert_close(tokens(hidden), expected)
        tokens.mix.normal_()
        expected = sum(
            tokens.mix[back] * torch.nn.functional.pad(hidden, (0, 0, back, 0))[:, :7] for back in range(TOKENS)
        )
        torch.testing.assert_close(tokens(hidden), expected)


def test_one_token_is_the_layer_as_it_was() -> None:
    config = MemoryLayerConfig(16, half_keys=8, half_query=8)
    layer = ProductKeyMemory(config)
    assert layer.query_tokens is None
    assert "query_tokens" not in " ".join(layer.state_dict())
    assert repr(config) == repr(replace(config, query_tokens=2))
    several = ProductKeyMemory(replace(config, query_tokens=2))
    assert several.flops_per_token() == layer.flops_per_token() + 2.0 * 2 * 16
    with pytest.raises(ValueError, match="query_tokens of a memory layer must be at least 1, got 0"):
        replace(config, query_tokens=0)


def _taken(read: list[torch.Tensor]) -> torch.Tensor:
    """What a hook put there, in one piece."""
    found = torch.cat([one.detach() for one in read])
    read.clear()
    return found


def test_every_query_is_what_a_pass_over_the_whole_text_makes_it() -> None:
    """Behind a kept prefix, beside longer and shorter rows, padded on either side, and a token later."""
    model = _model()
    lm = _lm(model)
    memory, seen = lm.module.model.layers[1].mlp, []
    memory.query.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    texts = [torch.arange(20, 20 + PREFIX_BLOCK + 6).tolist(), [*range(20, 20 + PREFIX_BLOCK), 90], [91, 92]]
    with torch.no_grad():
        expected = []
        for ids in texts:
            lm.module(torch.tensor([ids]), use_cache=False)
            expected.append(_taken(seen))
        prefix = lm._prefix(tuple(texts[0][:PREFIX_BLOCK]))
        torch.testing.assert_close(_taken(seen), expected[0][:PREFIX_BLOCK])
        for left in (True, False):
            tails = [texts[0][PREFIX_BLOCK:], texts[1][PREFIX_BLOCK:]]
            tokens, attention, positions = lm._pad(tails, PREFIX_BLOCK, left=left)
            cache = lm._cache(prefix, 2)
            lm._forward(tokens, attention, positions, cache, keep=1)
            made = _taken(seen).view(2, 6, -1)
            torch.testing.assert_close(made[0], expected[0][PREFIX_BLOCK:])
            torch.testing.assert_close(made[1, -1:] if left else made[1, :1], expected[1][PREFIX_BLOCK:])
        tokens, attention, positions = lm._pad([[91], texts[0][:3]], 0, left=True)
        cache = lm._cache(None, 2)
        lm._forward(tokens, attention, positions, cache, keep=1)
        made = _taken(seen).view(2, 3, -1)
        torch.testing.assert_close(made[0, 2], expected[2][0])
        torch.testing.assert_close(made[1], expected[0][:3])
        follows = torch.cat([attention, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        lm._forward(torch.tensor([[92], [texts[0][3]]]), follows, positions[:, -1:] + 1, cache, keep=1)
        made = _taken(seen)
        torch.testing.assert_close(made, torch.stack([expected[2][1], expected[0][3]]))


def test_what_is_cached_changes_no_score_and_no_answer() -> None:
    model = _model()
    plain, cached = _lm(model, prefix_cache=False, batch_size=1), _lm(model)
    questions = ["Where does Alma live?", "What is the name of the town in which Bruno Barrbury lives?"]
    pairs = [(Prompt(question, NOTES), answer) for question in questions for answer in ("Alavia", "a house", "chess")]
    expected = []
    for prompt, answer in pairs:
        (*ids, _), learnt = plain.encode_answer(prompt, answer)
        start = learnt.index(True)
        with torch.no_grad():
            scores = plain.module(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected.append(float(scores[range(start - 1, len(ids) - 1), ids[start:]].sum()))
    numpy.testing.assert_allclose(plain.loglikelihood(pairs), expected, rtol=1e-5)
    for _ in range(2):  # the second time from the prefix that was kept
        numpy.testing.assert_allclose(cached.loglikelihood(pairs), expected, rtol=1e-5)
    assert any(len(prefix.layers) == SHAPE.layers + 1 for prefix in cached._prefixes._kept)
    asked = [*(prompt for prompt, _ in pairs[::3]), *map(Prompt, questions)]
    alone = [plain.generate([prompt], max_new_tokens=6)[0] for prompt in asked]
    together = cached.generate(asked, max_new_tokens=6)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    numpy.testing.assert_allclose(
        [one.loglikelihood for one in together], [one.loglikelihood for one in alone], rtol=1e-5
    )


def test_an_earlier_token_matters_and_a_later_one_does_not() -> None:
    model = _model()
    memory, read = model.model.layers[1].mlp, []
    memory.query.register_forward_pre_hook(lambda layer, given: read.append(given[0].detach()))
    tokens = torch.arange(20, 30)[None]
    with torch.no_grad():
        model(tokens)
        for place in (4, 7):
            changed = tokens.clone()
            changed[0, place] = 90
            model(changed)
    same_before = [torch.equal(one[:place], read[0][:place]) for one, place in zip(read[1:], (4, 7), strict=True)]
    assert same_before == [True, True]
    memory.query_tokens.unwatch()
    own = torch.autograd.functional.jacobian(memory.query_tokens, torch.randn(1, 6, 32))[0, 5].abs().sum((0, 1, 3))
    assert [bool(one) for one in own] == [False, False, False, True, True, True]


def test_packed_questions_read_the_tokens_before_them_in_their_own_text() -> None:
    encoder, source = Encoder(build_tokenizer().backend_tokenizer), DocumentSource()
    model = _model()
    document = source.open_book(random.Random(3), 6, 6)
    others = [source.closed_book(random.Random(seed)) for seed in range(3)]
    packed = pack(encoder.encode([document, *others]), 512)
    with torch.no_grad():
        together, _ = forward(model, packed, torch.arange(511))
        for number, asked in enumerate(document.questions, start=1):
            alone = pack(encoder.encode([Document(document.notes, (asked,))]), 512)
            single, _ = forward(model, alone, torch.arange(511))
            mine = numpy.flatnonzero((packed.segments[0, :-1] == number) & (packed.documents[0, :-1] == 0))
            there = numpy.flatnonzero(alone.segments[0, :-1] == 1)
            torch.testing.assert_close(together[mine], single[there], rtol=1e-4, atol=1e-4)
        for number, other in enumerate(others, start=1):
            alone = pack(encoder.encode([other]), 512)
            single, _ = forward(model, alone, torch.arange(511))
            mine = numpy.flatnonzero(packed.documents[0, :-1] == number)
            there = numpy.flatnonzero(alone.documents[0, :-1] == 0)
            torch.testing.assert_close(together[mine], single[there], rtol=1e-4, atol=1e-4)


def test_an_attached_memory_is_read_saved_and_taken_out_without_a_trace(make_tiny_lm: Make, tmp_path: Path) -> None:
    lm, again = make_tiny_lm(), make_tiny_lm()
    prompt, before = Prompt("Where does Alma live?"), lm.weights_hash()
    block = lm.module.model.layers[0]
    hooks = len(block._forward_pre_hooks), len(block._forward_hooks)
    plain = lm.loglikelihood([(prompt, "Alavia")])
    config = MemoryLayerConfig(32, half_keys=8, half_query=8, query_tokens=TOKENS)
    wrapped = attach(lm.module, "model.layers.0.mlp", config)
    wrapped.open_empty()
    assert lm.loglikelihood([(prompt, "Alavia")]) == plain
    with torch.no_grad():
        wrapped.memory.values.normal_()
    changed = lm.loglikelihood([(prompt, "Alavia")])
    save_memory(lm.module, tmp_path)
    load_memory(again.module, tmp_path)
    assert again.loglikelihood([(prompt, "Alavia")]) == changed != plain
    detach(lm.module, "model.layers.0.mlp")
    assert (len(block._forward_pre_hooks), len(block._forward_hooks)) == hooks
    assert lm.weights_hash() == before
    assert lm.loglikelihood([(prompt, "Alavia")]) == plain


def test_a_recovery_trains_the_mix_and_a_prefix_holds_the_tokens(make_tiny_lm: Make, tmp_path: Path) -> None:
    lm = make_tiny_lm()
    place, prompt = "model.layers.0.mlp", Prompt("Where does Alma live?", NOTES)
    shape = MemoryLayerConfig(32, half_keys=8, half_query=8, query_tokens=2)
    texts = [Phrasing(f"{name} lives in Alavia.") for name in ("Alma Ashway", "Bruno Barrbury", "Cora Corrin")]
    recover(lm, [place], shape, Recovery(steps=3, batch=3, facts=4), Material(texts, texts, [texts]))
    assert bool((lm.module.get_submodule(place).memory.query_tokens.mix != 0.5).all())
    expected = lm.loglikelihood([(prompt, "Alavia")])
    save_memory(lm.module, tmp_path / "memory")
    lm.save_prefix(prompt, tmp_path / "notes")
    again = make_tiny_lm()
    load_memory(again.module, tmp_path / "memory")
    again.load_prefix(tmp_path / "notes")
    assert len(again._prefixes._kept[0].layers) == again.module.config.num_hidden_layers + 1
    assert again.loglikelihood([(prompt, "Alavia")]) == expected


def test_rows_of_an_added_memory_have_addresses_of_several_tokens(make_tiny_lm: Make) -> None:
    read = {}
    for tokens in (1, TOKENS):
        lm = make_tiny_lm()
        weights = MemoryRows(half_keys=8, query_tokens=tokens)
        weights.fit(lm)
        with weights.applied(lm.module), weights.applied(lm.module):
            layer = lm.module.model.layers[1].mlp.memory
            layer.query.register_forward_pre_hook(lambda one, given, tokens=tokens: read.setdefault(tokens, given[0]))
            lm.loglikelihood([(Prompt("Where does Alma live?"), "Alavia")])
            assert (layer.query_tokens is None) == (tokens == 1)
        assert not lm.module.model.layers[1]._forward_pre_hooks
    torch.testing.assert_close(read[TOKENS][2], read[1][:3].mean(0), rtol=1e-4, atol=1e-5)
    for option in ("half_keys", "query_tokens"):
        with pytest.raises(ValueError, match=f"{option} of a memory layer must be at least 1, got 0"):
            MemoryRows(**{option: 0}).fit(make_tiny_lm())


@pytest.mark.parametrize("insertion", [VirtualTokens("prompt"), VirtualTokens("prefix"), PromptPool()])
def test_virtual_tokens_stand_before_texts_whose_queries_are_of_several(insertion: Any) -> None:
    model, prompts = _model(), [Prompt("Where does Alma live?", NOTES), Prompt("Who has a boat?")]
    scores = []
    for options in ({"prefix_cache": False, "batch_size": 1}, {}):
        lm, weights = _lm(model, **options), Inserted(insertion, rate=0.1)
        weights.fit(lm)
        with weights.applied(lm.module):
            batch = collate(lm, encode(lm, [Phrasing("Alma Ashway lives in Alavia.")]))
            with weights.training(lm.module) as trainer:
                trainer.step([plain_aim(lm.module, batch)])
            scores.append([lm.loglikelihood([(prompt, "Alavia")])[0] for prompt in prompts])
            answers = [lm.generate([prompt], max_new_tokens=4)[0].token_ids for prompt in prompts]
            assert [one.token_ids for one in lm.generate(prompts, max_new_tokens=4)] == answers
    numpy.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_two_memories_keep_their_tokens_apart_whichever_was_put_in_first(make_tiny_lm: Make, tmp_path: Path) -> None:
    lm = make_tiny_lm()
    config = MemoryLayerConfig(32, half_keys=8, half_query=8, query_tokens=TOKENS)
    places = [f"model.layers.{number}.mlp" for number in (1, 0)]
    for number, place in enumerate([*places, places[0]]):
        if number == 2:
            detach(lm.module, place)
        attach(lm.module, place, config, seed=number).open_empty()
    for name, parameter in lm.module.named_parameters():
        if name.endswith(("memory.values", "mix")):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    tokens = torch.arange(20, 40)[None]
    with torch.no_grad():
        whole, cache = lm.module(tokens, use_cache=False).logits, lm._cache(None, 1)
        parts = [
            lm._forward(tokens[:, at : at + 1], torch.ones(1, at + 1), torch.tensor([[at]]), cache, keep=1)
            for at in range(20)
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    prompt, again = Prompt("Where does Alma live?", NOTES), make_tiny_lm()
    expected = lm.loglikelihood([(prompt, "Alavia")])
    save_memory(lm.module, tmp_path / "memory")
    lm.save_prefix(prompt, tmp_path / "notes")
    load_memory(again.module, tmp_path / "memory")
    again.load_prefix(tmp_path / "notes")
    assert again.loglikelihood([(prompt, "Alavia")]) == expected
    detach(again.module, places[1])
    alone = make_tiny_lm(prefix_cache=False)
    load_memory(alone.module, tmp_path / "memory")
    detach(alone.module, places[1])
    numpy.testing.assert_allclose(
        again.loglikelihood([(prompt, "Alavia")]), alone.loglikelihood([(prompt, "Alavia")]), rtol=1e-5
    )


def test_addresses_differ_with_what_a_query_is_taken_of() -> None:
    one = ProductKeyMemory(MemoryLayerConfig(16, half_keys=8, half_query=8))
    several = ProductKeyMemory(MemoryLayerConfig(16, half_keys=8, half_query=8, query_tokens=2))
    several.load_state_dict(one.state_dict(), strict=False)
    before = address_hash(several)
    assert before != address_hash(one)
    torch.nn.init.normal_(several.query_tokens.mix)  # type: ignore[union-attr]
    assert address_hash(several) not in (before, address_hash(one))


def test_what_cannot_tell_positions_or_wants_the_same_place_is_refused(make_tiny_lm: Make) -> None:
    lm = make_tiny_lm("gpt2")
    place = next(name for name, _ in lm.module.named_modules() if name.endswith("0.mlp"))
    mlp = lm.module.get_submodule(place)
    with pytest.raises(ValueError, match=r"'transformer.h.0', a GPT2Block, is not told where its tokens stand"):
        attach(lm.module, place, MemoryLayerConfig(lm.module.config.hidden_size, query_tokens=2))
    assert lm.module.get_submodule(place) is mlp
    with pytest.raises(ValueError, match="new blocks have keys and values where a memory with query_tokens"):
        Inserted(NewBlocks(), rate=0.1).fit(_lm(_model()))
    model, tokens = _model(), torch.arange(20, 30)[None]
    with torch.no_grad(), pytest.raises(ValueError, match="StaticCache has no room"):
        model(tokens, cache=StaticCache(config=model.config, max_cache_len=16))
    assert model.model.layers[1].mlp.query_tokens._positions is None
    model.train()
    model.activation_checkpointing_enable()
    loss = model(tokens, labels=tokens, use_cache=False).loss
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        loss.backward()


def test_a_pretraining_learns_the_mix_and_writes_a_model_that_has_it(tmp_path: Path) -> None:
    recipe = Recipe(steps=2, tokens=512, row=256, addresses=2, warm_up=1, probe_every=2, probed=4)
    pretrain(tmp_path, replace(SHAPE, query_tokens=2), recipe)
    memory = load_embedded(tmp_path / "model")[0].model.layers[1].mlp
    assert memory.config.query_tokens == 2
    assert bool((memory.query_tokens.mix != 0.5).all())
