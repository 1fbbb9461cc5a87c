"""New modules in a frozen model: other architectures, frozen prefixes, and nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES, make_setting, plain_aim
from transformers.cache_utils import DynamicCache

from memory_paths.lm import CausalLM, cache_argument
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.growth import Experts, LowRankStack, NewBlocks
from memory_paths.parametric.inserted import Bottleneck, Inserted, Insertion, PromptPool, VirtualTokens
from memory_paths.parametric.objective import logits_of
from memory_paths.types import Phrasing, Prompt

NOTES = tuple(f"Note {number}: the harbour of town {number} opens at {number} in the morning." for number in range(6))
FORMS = ("prompt", "prefix", "cartridge")
INSERTIONS: dict[str, Insertion] = {
    "adapter": Bottleneck(4),
    "lora_stack": LowRankStack(2),
    "new_blocks": NewBlocks(),
    "experts": Experts(4),
    "prompt_pool": PromptPool(3, 4),
    **{form: VirtualTokens(form) for form in FORMS},  # type: ignore[arg-type]
}


def _trained(lm: CausalLM, insertion: Insertion) -> Inserted:
    weights = Inserted(insertion, rate=0.1)
    weights.prepare(lm, [Phrasing("The known tale of a town by the sea.")])
    batch = collate(lm, encode(lm, [Phrasing("Alma Ashway lives in Alavia."), Phrasing("She rows.")]))
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        for _ in range(3):
            trainer.step([plain_aim(lm.module, batch)])
    return weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("insertion", INSERTIONS.values(), ids=INSERTIONS)
def test_every_architecture_takes_it_in_learns_and_gives_it_back(
    make_tiny_lm: Callable[..., CausalLM], architecture: str, insertion: Insertion
) -> None:
    lm = make_tiny_lm(architecture)
    before, names = lm.weights_hash(), [name for name, _ in lm.module.named_modules()]
    prompts = [Prompt("Where does Alma live?"), Prompt("What does she do, on Mondays, in summer?", NOTES[:1])]
    batch = collate(lm, encode(lm, [Phrasing("Alma Ashway lives in Alavia.")]))
    untouched = lm.generate(prompts, max_new_tokens=6)
    with torch.no_grad():
        plain = logits_of(lm.module, batch)
    weights = _trained(lm, insertion)
    assert lm.weights_hash() == before
    with lm.altered(), weights.applied(lm.module):
        together = lm.generate(prompts, max_new_tokens=6)
        alone = [lm.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
        with weights.holding(lm.module, {}), torch.no_grad():
            assert torch.equal(logits_of(lm.module, batch), plain)
        with torch.no_grad():
            assert not torch.equal(logits_of(lm.module, batch), plain)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.loglikelihood for one in together] != [one.loglikelihood for one in untouched]
    assert [name for name, _ in lm.module.named_modules()] == names
    assert lm.weights_hash() == before
    assert lm.generate(prompts, max_new_tokens=6)[0].token_ids == untouched[0].token_ids


@pytest.mark.parametrize("insertion", INSERTIONS.values(), ids=INSERTIONS)
def test_what_a_model_writes_before_it_learns_is_its_own(
    make_tiny_lm: Callable[..., CausalLM], insertion: Insertion
) -> None:
    lm, weights = make_tiny_lm("llama"), Inserted(insertion)
    blank, seed = [Prompt(" ", continues=True)] * 3, random.Random(0).randrange(2**31)
    own = [one.text for one in lm.generate(blank, max_new_tokens=6, temperature=1.0, seed=seed)]
    with lm.altered(), weights.applied(lm.module), weights.training(lm.module):
        found = make_setting(lm, weights).written(3, max_new_tokens=6, temperature=1.0)
    assert [one.completion for one in found] == own


@pytest.mark.parametrize("kind", [*FORMS, "new_blocks", "experts"])
def test_a_frozen_prefix_changes_nothing(make_tiny_lm: Callable[..., CausalLM], kind: str) -> None:
    lm = make_tiny_lm("llama")
    weights = _trained(lm, INSERTIONS[kind])
    prompts = [Prompt(f"When does the harbour of town {number} open?", NOTES) for number in range(4)]
    with lm.altered(), weights.applied(lm.module):
        first = lm.generate(prompts, max_new_tokens=4)
        (kept,) = lm._prefixes._kept
        assert len(kept.ids) > 0, "the notes are shared, so that they are frozen"
        again = lm.generate(prompts, max_new_tokens=4)
        shorter = lm.generate([Prompt("When?", NOTES[:5])], max_new_tokens=4)
        lm.prefix_cache = False
        plain = lm.generate([*prompts, Prompt("When?", NOTES[:5])], max_new_tokens=4)
    for one, other in zip([*first, *shorter], plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-4)
    assert [one.loglikelihood for one in first] == [one.loglikelihood for one in again]


def test_a_prompt_pool_mixes_for_each_text_the_prompts_that_its_own_words_ask_for(
    make_tiny_lm: Callable[..., CausalLM],
) -> None:
    """Against the definition: the prompt before a text is the sum of the pool's, each times the cosine of its key and
    the mean embedding of the text's tokens, in whatever batch the text is."""
    lm = make_tiny_lm("llama")
    weights = _trained(lm, INSERTIONS["prompt_pool"])
    prompts = [Prompt("When?", NOTES), Prompt("Where does Alma live?"), Prompt("Who?")]
    read: list[list[torch.Tensor]] = []

    def caught(one: torch.nn.Module, given: tuple[torch.Tensor], output: list[torch.Tensor]) -> None:
        read.append(output)

    with lm.altered(), weights.applied(lm.module):
        pool = lm.module.inserted
        pool.register_forward_hook(caught)
        together = lm.generate(prompts, max_new_tokens=4)
        alone = [lm.generate([prompt], max_new_tokens=4)[0] for prompt in prompts]
        assert lm._prefixes._kept == [], "all of a prompt is looked at before its first token is read"
        lm.prefix_cache = False
        plain = lm.generate(prompts, max_new_tokens=4)
        for prompt, mixed in zip(prompts, read[1:4], strict=True):
            query = lm.module.get_input_embeddings()(torch.tensor(lm.token_ids(prompt))).mean(dim=0)
            for index, tensor in enumerate(pool.prompts):
                expected = torch.zeros_like(tensor[0])
                for number in range(3):
                    weighed, key = query * pool.attention[number], pool.keys[number]
                    expected += (weighed @ key / weighed.norm() / key.norm()) * tensor[number]
                torch.testing.assert_close(mixed[index][0], expected)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone] == [one.token_ids for one in plain]
    assert not torch.allclose(read[1][0], read[2][0])
    for row in read[0][0]:  # of the batch, which is sorted by length
        assert any(torch.allclose(row, one[0][0], atol=1e-6) for one in read[1:4])


def test_an_answer_has_no_part_in_the_choice_of_its_prompt(make_tiny_lm: Callable[..., CausalLM]) -> None:
    """What stands before an answer is read alike whatever the answer, in training and when it is scored or given."""
    lm = make_tiny_lm("llama")
    weights = _trained(lm, INSERTIONS["prompt_pool"])
    asked = [Phrasing(answer, "Where does Alma live?", asks=True) for answer in ("Alavia", "In a town by the sea")]
    prompt = Prompt("Where does Alma live?")
    length = len(lm.token_ids(prompt))
    with lm.altered(), weights.applied(lm.module), torch.no_grad():
        one, other = (logits_of(lm.module, collate(lm, encode(lm, [phrasing])))[0, :length] for phrasing in asked)
        torch.testing.assert_close(one, other)
        together = logits_of(lm.module, collate(lm, encode(lm, asked)))[:, :length]
        torch.testing.assert_close(together, torch.stack([one, one]))
        tokens = torch.tensor([lm.token_ids(prompt)])
        torch.testing.assert_close(lm.module(input_ids=tokens).logits[0], one)
        ids, learnt = lm.encode_answer(prompt, "Alavia")
        scored = one.new_zeros(())
        for place in range(length, len(ids) - 1):
            assert learnt[place]
            shown = logits_of(lm.module, collate(lm, encode(lm, asked[:1])))[0, place - 1]
            scored += shown.log_softmax(dim=-1)[ids[place]]
        assert lm.loglikelihood([(prompt, "Alavia")])[0] == pytest.approx(float(scored), abs=1e-4)


def test_a_cartridge_begins_as_the_text_that_it_is_made_of(make_tiny_lm: Callable[..., CausalLM]) -> None:
    """Its keys and values are those of the background's first tokens, as the model reads them."""
    lm = make_tiny_lm("llama")
    weights = Inserted(VirtualTokens("cartridge", 8))
    text = Phrasing("The known tale of a town by the sea.")
    weights.prepare(lm, [text])
    ids = list(encode(lm, [text])[0].ids[:8])
    with torch.no_grad():
        cache = DynamicCache(config=lm.module.config)
        lm.module(input_ids=torch.tensor([ids]), use_cache=True, **{cache_argument(lm.module): cache})
        with weights.applied(lm.module):
            new = list(lm.module.inserted)
    for index, layer in enumerate(cache.layers):
        torch.testing.assert_close(new[2 * index], layer.keys)
        torch.testing.assert_close(new[2 * index + 1], layer.values)


def test_options_out_of_range_and_models_without_a_place_are_refused(make_tiny_lm: Callable[..., CausalLM]) -> None:
    with pytest.raises(ValueError, match="width of a bottleneck must be at least 1, got 0"):
        Bottleneck(0)
    with pytest.raises(ValueError, match="size and tokens of a prompt pool must be at least 1, got 8 and 0"):
        PromptPool(8, 0)
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        VirtualTokens("prompt", 0)
    with pytest.raises(
        ValueError, match="form of virtual tokens must be one of prompt, prefix, cartridge, got 'dream'"
    ):
        VirtualTokens("dream")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate must be above 0"):
        Inserted(Bottleneck(), rate=0.0)
    lm = make_tiny_lm("llama")
    with pytest.raises(
        ValueError, match=r"has no modules named nowhere; name the modules .* weights\.insertion\.after"
    ):
        Inserted(Bottleneck(after=["nowhere"])).fit(lm)
    assert not hasattr(lm.module, "inserted")
