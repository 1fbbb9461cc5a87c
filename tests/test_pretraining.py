"""The embedded model's making: tokenizer, documents, and a shrunken recipe that learns and resumes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from memory_paths.lm import layout
from memory_paths.parametric import pretraining
from memory_paths.parametric.addressing import consistency_loss
from memory_paths.parametric.curriculum import ABOUT, Batch, Document, DocumentSource, Encoder, pack
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer, load, load_embedded
from memory_paths.parametric.pretraining import Recipe, attention_mask, draw_batch, forward, loss_of, pretrain
from memory_paths.streams.words import FIRST_NAMES, LAST_NAMES, VALUES
from memory_paths.types import Prompt

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8)
RECIPE = Recipe(steps=6, tokens=1024, row=256, addresses=2, warm_up=2, probe_every=3, probed=8, seed=1)


@pytest.fixture(scope="module")
def source() -> DocumentSource:
    return DocumentSource()


@pytest.mark.parametrize(
    "text",
    [
        "Alma Ashway was born in Alavia.",
        " two  spaces\n\nand\ttabs ",
        "naïve café, 東京 🙂",
        "<bos>",
        "a▁b",
        "",
        "\x00\x7f",
    ],
)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_every_word_of_the_world_is_one_token_wherever_it_stands() -> None:
    tokenizer = build_tokenizer()
    for word in (*FIRST_NAMES, *LAST_NAMES, *(value for values in VALUES.values() for value in values)):
        (first,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert tokenizer(f"- {word}", add_special_tokens=False)["input_ids"][-1] == first


def test_documents_are_encoded_as_prompts_are_tokenised(source: DocumentSource) -> None:
    tokenizer = build_tokenizer()
    encoder = Encoder(tokenizer.backend_tokenizer)
    for seed in range(30):
        document = source.open_book(random.Random(seed), 8)
        for asked in document.questions:
            if asked.finishes:
                continue
            (encoded,) = encoder.encode([Document(document.notes, (asked,))])
            prompt = layout(Prompt(asked.question, document.notes))
            assert encoded.tokens[:-1].tolist() == tokenizer(f"{prompt} {asked.answer}")["input_ids"]
            assert encoded.tokens[-1] == tokenizer.eos_token_id
            assert encoded.positions.tolist() == list(range(len(encoded.tokens)))
            answer = tokenizer(f" {asked.answer}", add_special_tokens=False)["input_ids"]
            assert (encoded.weights == 1).sum() == len(asked.answer.split()) + 1
            assert len(answer) >= len(asked.answer.split())


def test_questions_of_one_document_do_not_see_each_other(source: DocumentSource) -> None:
    tokenizer = build_tokenizer()
    encoder = Encoder(tokenizer.backend_tokenizer)
    model = build_model(SHAPE, len(tokenizer), seed=0).eval()
    document = source.open_book(random.Random(3), 6, 6)
    others = [source.closed_book(random.Random(seed)) for seed in range(3)]
    packed = pack(encoder.encode([document, *others]), 512)
    asked = document.questions[2]
    alone = pack(encoder.encode([Document(document.notes, (asked,))]), 512)
    with torch.no_grad():
        together, targets = forward(model, packed, torch.arange(511))
        single, expected = forward(model, alone, torch.arange(511))
    mine = numpy.flatnonzero((packed.segments[0, 1:] == 3) & (packed.documents[0, 1:] == 0))
    there = numpy.flatnonzero(alone.segments[0, 1:] == 1)
    assert torch.equal(targets[mine], expected[there])
    torch.testing.assert_close(together[mine[1:]], single[there[1:]], rtol=1e-4, atol=1e-4)


def test_padding_sees_nothing_of_a_document(source: DocumentSource) -> None:
    tokenizer = build_tokenizer()
    batch = pack(Encoder(tokenizer.backend_tokenizer).encode([source.closed_book(random.Random(0))]), 128)
    mask = attention_mask(batch)[0, 0]
    real = torch.from_numpy(batch.documents[0] >= 0)
    assert not mask[~real][:, real].any()
    assert not mask[real][:, ~real].any()


def test_a_step_has_one_shape_and_depends_on_its_number_alone(source: DocumentSource) -> None:
    encoder = Encoder(build_tokenizer().backend_tokenizer)
    one, again, other = (draw_batch(source, encoder, RECIPE, step, 512) for step in (1, 1, 2))
    assert numpy.array_equal(one.tokens, again.tokens)
    assert one.tokens.shape == other.tokens.shape == (4, 256)
    assert not numpy.array_equal(one.tokens, other.tokens)
    assert set(numpy.unique(one.about)) <= set(range(len(ABOUT)))


def test_a_shrunken_recipe_learns_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(99)
    pretrain(tmp_path / "whole", SHAPE, RECIPE)
    curve = json.loads((tmp_path / "whole" / "curve.json").read_text())
    assert [point["step"] for point in curve] == [3, 6]
    assert curve[-1]["loss"] < curve[0]["loss"]
    torch.manual_seed(100)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "parts", SHAPE, RECIPE, after_step=stop)
    with pytest.raises(ValueError, match=r"of another run.*seed 1 there, 2 here"):
        pretrain(tmp_path / "parts", SHAPE, replace(RECIPE, seed=2))
    pretrain(tmp_path / "parts", SHAPE, RECIPE)
    whole, parts = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    model, tokenizer = load_embedded(tmp_path / "whole" / "model")
    assert model.config.max_position_embeddings == SHAPE.window
    assert len(tokenizer) == model.config.vocab_size


def test_a_start_brings_all_but_the_memory_layer(tmp_path: Path) -> None:
    def saved(folder: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / folder / "model" / "model.safetensors")

    pretrain(tmp_path / "first", SHAPE, replace(RECIPE, steps=2))
    larger = replace(SHAPE, half_keys=16)
    pretrain(tmp_path / "second", larger, replace(RECIPE, steps=0, seed=5), start=tmp_path / "first" / "model")
    first, second = saved("first"), saved("second")
    assert first.keys() == second.keys()
    assert second["model.layers.1.mlp.values"].shape == (256, 32)
    assert all(torch.equal(first[name], second[name]) for name in first if "layers.1.mlp." not in name)
    moved = replace(larger, memory_layer=0)
    pretrain(tmp_path / "third", moved, replace(RECIPE, steps=0), start=tmp_path / "first" / "model")
    third = saved("third")
    assert third["model.layers.0.mlp.values"].shape == (256, 32)
    assert third["model.layers.1.mlp.up_proj.weight"].shape == (48, 32)
    assert all(torch.equal(first[name], third[name]) for name in first if ".mlp." not in name)
    with pytest.raises(ValueError, match="the same shape but for its memory layer"):
        pretrain(tmp_path / "fourth", replace(SHAPE, inner=24), RECIPE, start=tmp_path / "first" / "model")


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []

    def real_then_broken(model: Any, batch: Batch, generator: torch.Generator) -> Any:
        loss, scores = loss_of(model, batch, generator)
        if (tmp_path / "checkpoint.safetensors").exists():
            kept.append((tmp_path / "checkpoint.safetensors").read_bytes())
            return loss * float("nan"), scores
        return loss, scores

    monkeypatch.setattr(pretraining, "loss_of", real_then_broken)
    with pytest.raises(FloatingPointError, match="at step 3"):
        pretrain(tmp_path, SHAPE, RECIPE)
    assert [(tmp_path / "checkpoint.safetensors").read_bytes()] == kept
    assert not (tmp_path / "model").exists()


def test_addresses_are_learnt_in_pretraining(tmp_path: Path) -> None:
    """The same steps with and without the address losses: they alone bring wordings of a fact together."""

    def apart(folder: str, **recipe: float) -> float:
        pretrain(tmp_path / folder, SHAPE, replace(RECIPE, steps=30, addresses=6, probe_every=30, **recipe))
        model, tokenizer = load_embedded(tmp_path / folder / "model")
        encoder, source = Encoder(tokenizer.backend_tokenizer), DocumentSource()
        documents = [source.addresses(random.Random(f"unseen/{seed}")) for seed in range(8)]
        batch = pack(encoder.encode(documents), 512)
        layer = model.model.layers[SHAPE.memory_layer].mlp
        given: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0]))
        with torch.no_grad():
            forward(model, batch, torch.arange(1))
            handle.remove()
            facts = torch.from_numpy(batch.facts).flatten()
            asked = facts.nonzero().flatten()
            return float(consistency_loss(layer.queries(given[0].flatten(0, 1)[asked]), facts[asked]))

    assert apart("with", consistency=1.0) < apart("without", consistency=0.0) - 0.1


def test_a_folder_without_an_embedded_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"embedded\.json is missing"):
        load(str(tmp_path))
