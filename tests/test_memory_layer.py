"""The product-key memory layer: exact look-up, late selection; attached beside an MLP or in its place, kept beside the
model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, build_module, build_tokenizer
from torch.nn import functional

from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.attach import (
    STORED,
    Mode,
    attach,
    attach_all,
    attached_memories,
    detach,
    load_memory,
    memory_layers,
    memory_tables,
    mlp_name,
    save_memory,
)
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory, SlotRecorder
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.path import WeightsPath
from memory_paths.parametric.slots import slot_usage


@pytest.mark.parametrize("half_keys", [16, 64, 512])
def test_look_up_equals_brute_force_over_every_slot(half_keys: int) -> None:
    torch.manual_seed(0)
    config = MemoryLayerConfig(width=24, half_keys=half_keys, heads=2, top_k=8, half_query=8)
    layer = ProductKeyMemory(config).double()
    hidden = torch.randn(1000, 24, dtype=torch.float64)
    slots, weights = layer.look_up(hidden)
    query = layer.query_norm(layer.query(hidden).view(-1, 2, 2, 8))
    halves = torch.einsum("bhcq,hcnq->bhcn", query, layer.keys)
    for start in range(0, 1000, 50):
        part = halves[start : start + 50]
        every = (part[:, :, 0, :, None] + part[:, :, 1, None, :]).flatten(2)
        score, best = every.topk(8, dim=-1)
        assert torch.equal(slots[start : start + 50].view(50, 2, 8).sort(-1).values, best.sort(-1).values)
        torch.testing.assert_close(
            weights[start : start + 50].view(50, 2, 8), score.softmax(-1), rtol=1e-12, atol=1e-12
        )


def _loss_and_gradient(layer: ProductKeyMemory, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The paper's formula: values * mask + stop_gradient(values) - stop_gradient(values * mask)."""
    mask = torch.zeros(layer.config.slots, 1, dtype=hidden.dtype)
    mask[rows] = 1
    values = layer.values * mask + (layer.values - layer.values * mask).detach()
    slots, weights = layer.look_up(hidden)
    read = functional.embedding_bag(slots, values, per_sample_weights=weights, mode="sum")
    output = layer.output(read * functional.silu(layer.gate(hidden)))
    (gradient,) = torch.autograd.grad(output.square().sum(), layer.values)
    return gradient


def test_compact_gradient_equals_the_papers_mask_formula() -> None:
    torch.manual_seed(1)
    layer = ProductKeyMemory(MemoryLayerConfig(width=16, half_keys=8, heads=2, top_k=4, half_query=4)).double()
    hidden = torch.randn(40, 16, dtype=torch.float64)
    recorder = SlotRecorder(64)
    layer.recorder = recorder
    loss = layer(hidden).square().sum()
    rows = recorder.count().topk(10).indices.sort().values
    recorder.select(rows)
    loss.backward()
    expected = _loss_and_gradient(layer, hidden, rows)
    assert recorder.gradient is not None
    torch.testing.assert_close(recorder.gradient, expected[rows], rtol=0, atol=1e-12)
    assert layer.values.grad is None, "nothing of the table's size may be made"
    others = torch.ones(64, dtype=torch.bool)
    others[rows] = False
    assert not expected[others].any()


def test_a_hundred_steps_end_where_the_papers_mask_formula_ends() -> None:
    """Rows are chosen anew at each step, by the reads of that step; SGD on float64."""
    torch.manual_seed(2)
    compact = ProductKeyMemory(MemoryLayerConfig(width=16, half_keys=8, heads=2, top_k=4, half_query=4)).double()
    masked = deepcopy(compact)
    start = compact.values.detach().clone()
    batches = [torch.randn(24, 16, dtype=torch.float64) for _ in range(100)]
    for hidden in batches:
        recorder = compact.recorder = SlotRecorder(64)
        loss = compact(hidden).square().sum()
        rows = recorder.count().topk(6).indices.sort().values
        recorder.select(rows)
        loss.backward()
        gradient = _loss_and_gradient(masked, hidden, rows)
        assert recorder.gradient is not None
        with torch.no_grad():
            compact.values[rows] -= 0.5 * recorder.gradient
            masked.values -= 0.5 * gradient
        compact.zero_grad()
    torch.testing.assert_close(compact.values, masked.values, rtol=0, atol=1e-10)
    assert (compact.values - start).abs().max() > 0.1


def test_padded_positions_add_nothing_to_the_counts() -> None:
    layer = ProductKeyMemory(MemoryLayerConfig(width=16, half_keys=8, heads=2, top_k=4, half_query=4))
    recorder = SlotRecorder(64)
    layer.recorder = recorder
    layer(torch.randn(3, 16))
    layer(torch.randn(3, 16))
    recorder.reads, later = recorder.reads[:1], recorder.reads[1:]
    assert recorder.count(torch.tensor([1, 1, 0])).sum() == 2 * 8
    recorder.reads = later
    assert recorder.count().sum() == (2 + 3) * 8, "passes of a step are counted together"
    recorder.clear()
    layer(torch.randn(3, 16))
    assert recorder.count().sum() == 3 * 8, "those of the next step are not"


def test_layers_that_share_a_table_have_one_gradient_that_is_autograds_through_both() -> None:
    torch.manual_seed(4)
    config = MemoryLayerConfig(width=16, half_keys=8, heads=2, top_k=4, half_query=4)
    first = ProductKeyMemory(config).double()
    second = ProductKeyMemory(config, first.values).double()
    assert second.values is first.values
    hidden = torch.randn(40, 16, dtype=torch.float64)

    def loss() -> torch.Tensor:
        middle = hidden + first(hidden)
        return (middle + second(middle)).square().sum()

    (dense,) = torch.autograd.grad(loss(), first.values)
    recorder = first.recorder = second.recorder = SlotRecorder(64, layers=2)
    found = loss()
    loss()  # a second pass of the same step takes no part in the choice
    counts = recorder.count()
    assert counts.sum() == 2 * 40 * 8
    middle = (hidden + first(hidden)).detach()
    slots = torch.cat([first.look_up(hidden)[0], second.look_up(middle)[0]])
    assert torch.equal(counts, torch.bincount(slots.flatten(), minlength=64).double())
    rows = counts.topk(20).indices.sort().values
    recorder.select(rows)
    found.backward()
    assert recorder.gradient is not None
    torch.testing.assert_close(recorder.gradient, dense[rows], rtol=0, atol=1e-12)


def test_a_table_of_another_shape_cannot_be_shared() -> None:
    values = ProductKeyMemory(MemoryLayerConfig(width=16, half_keys=8)).values
    with pytest.raises(ValueError, match="81 slots of width 16 cannot share a table of 64 x 16"):
        ProductKeyMemory(MemoryLayerConfig(width=16, half_keys=9), values)


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
def test_queries_are_normed_as_asked_for(norm: Any) -> None:
    torch.manual_seed(5)
    config = MemoryLayerConfig(width=16, half_keys=8, heads=2, top_k=4, half_query=4, query_norm=norm)
    layer, hidden = ProductKeyMemory(config), torch.randn(10, 16)
    raw = layer.query(hidden).view(10, 2, 2, 4)
    centred = raw - raw.mean(-1, keepdim=True) if norm == "layer" else raw
    expected = raw if norm == "none" else centred / centred.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(layer.queries(hidden), expected, rtol=1e-3, atol=1e-4)


def test_the_use_of_slots_is_told_by_shares_hubs_and_divergence() -> None:
    even = slot_usage(torch.full((200,), 3))
    assert (even.in_use, even.hub_share, even.divergence) == pytest.approx((1.0, 0.01, 0.0), abs=1e-12)
    reads = torch.zeros(200, dtype=torch.int64)
    reads[[3, 7, 9]] = torch.tensor([6, 3, 1])
    uneven = slot_usage(reads)
    divergence = sum(share * math.log(share * 200) for share in (0.6, 0.3, 0.1))
    assert (uneven.in_use, uneven.hub_share, uneven.divergence) == pytest.approx((0.015, 0.9, divergence))
    with pytest.raises(ValueError, match="no slot was read"):
        slot_usage(torch.zeros(4))


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of rms, layer, none \(BatchNorm would mix positions\), got 'batch'"):
        MemoryLayerConfig(width=8, query_norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k must be at most half_keys"):
        MemoryLayerConfig(width=8, half_keys=4, top_k=5)
    with pytest.raises(ValueError, match="heads of a memory layer must be at least 1"):
        MemoryLayerConfig(width=8, heads=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("training", [False, True])
def test_an_attached_memory_changes_no_logit_and_detaches_to_the_byte(architecture: str, training: bool) -> None:
    model = build_module(architecture, build_tokenizer()).train(training)
    tokens = torch.arange(40).view(2, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def logits() -> torch.Tensor:
        torch.manual_seed(3)  # dropout, where the model has it
        with torch.no_grad():
            return model(input_ids=tokens).logits

    base = logits()
    layer = mlp_name(model)
    mlp = model.get_submodule(layer)
    wrapped = attach(model, layer, MemoryLayerConfig(width=32, half_keys=8, heads=2, top_k=4, half_query=8))
    assert len(memory_layers(model)) == 1
    assert torch.equal(logits(), base)
    with torch.no_grad():
        wrapped.scale.fill_(1.0)
    assert not torch.equal(logits(), base), "an open gate over random values must show"
    wrapped.open_empty()
    assert torch.equal(logits(), base)
    detach(model, layer)
    assert model.get_submodule(layer) is mlp
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_without_an_mlp_by_that_name_is_refused_with_what_there_is() -> None:
    model = build_module("llama", build_tokenizer())
    with pytest.raises(ValueError, match=r"no module 'model.layers.9.mlp'.*model.layers.1.mlp"):
        attach(model, "model.layers.9.mlp", MemoryLayerConfig(width=32))
    with pytest.raises(ValueError, match="does not map"):
        attach(model, "model.layers.0.mlp", MemoryLayerConfig(width=31))


SMALL = MemoryLayerConfig(width=32, half_keys=8, heads=2, top_k=4, half_query=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_memory_in_the_place_of_an_mlp_gives_back_the_very_mlp(architecture: str) -> None:
    model = build_module(architecture, build_tokenizer()).eval()
    tokens = torch.arange(40).view(2, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        base = model(input_ids=tokens).logits
        layer = mlp_name(model)
        mlp = model.get_submodule(layer)
        wrapped = attach(model, layer, SMALL, mode="replace")
        inner = model.get_submodule(layer)
        hidden = torch.randn(3, 7, 32)
        assert torch.equal(inner(hidden), wrapped.memory(hidden))
        assert not torch.equal(model(input_ids=tokens).logits, base)
        kept = {id(parameter) for parameter in model.parameters()}
        assert not kept & {id(parameter) for parameter in mlp.parameters()}, "an MLP put aside is no part of the model"
        detach(model, layer)
        assert model.get_submodule(layer) is mlp
        assert torch.equal(model(input_ids=tokens).logits, base)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_memories_at_several_places_have_one_table_or_each_its_own() -> None:
    layers = ["model.layers.0.mlp", "model.layers.1.mlp"]
    models = [build_module("llama", build_tokenizer()) for _ in range(3)]
    own = attach_all(models[0], layers, SMALL)
    shared = [attach_all(model, layers, SMALL, shared=True) for model in models[1:]]
    assert [len(memory_tables(model)) for model in models] == [2, 1, 1]
    assert [*memory_tables(models[1])] == ["model.layers.0.mlp.memory"]
    first, second = (wrapped.memory for wrapped in shared[0].values())
    assert first.values is second.values is not shared[1][layers[0]].memory.values, "never shared by two models"
    assert not torch.equal(first.keys, second.keys), "addresses are each layer's own"
    assert len({id(wrapped.memory.values) for wrapped in own.values()}) == 2


def test_where_one_place_takes_no_memory_none_gets_one() -> None:
    model = build_module("llama", build_tokenizer())
    names = [name for name, _ in model.named_modules()]
    for bad, message in (("model.layers.7.mlp", "no module"), ("model.layers.1.mlp.act_fn", "no weights")):
        with pytest.raises(ValueError, match=message):
            attach_all(model, ["model.layers.0.mlp", bad], SMALL)
        assert [name for name, _ in model.named_modules()] == names
    with pytest.raises(ValueError, match="must be one of add, replace, got 'beside'"):
        attach(model, "model.layers.0.mlp", SMALL, mode="beside")  # type: ignore[arg-type]


def _with_memory(mode: Mode, shared: bool, architecture: str = "llama") -> Any:
    model = build_module(architecture, build_tokenizer()).eval()
    layers = [name for name, _ in model.named_modules() if name.endswith("mlp")]
    for wrapped in attach_all(model, layers, SMALL, mode=mode, shared=shared, seed=6).values():
        if mode == "add":
            torch.nn.init.constant_(wrapped.scale, 0.7)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_a_saved_memory_gives_a_copy_of_the_model_the_same_logits(
    tmp_path: Path, mode: Mode, shared: bool, architecture: str
) -> None:
    model = _with_memory(mode, shared, architecture)
    save_memory(model, tmp_path)
    copy = build_module(architecture, build_tokenizer()).eval()
    load_memory(copy, tmp_path)
    assert len(memory_tables(copy)) == (1 if shared else 2)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(copy(input_ids=tokens).logits, model(input_ids=tokens).logits)
    for dtype in (torch.bfloat16, torch.float16):
        half = build_module(architecture, build_tokenizer()).to(dtype)
        assert {one.memory.values.dtype for one in load_memory(half, tmp_path).values()} == {torch.float32}


def _flip(folder: Path) -> None:
    content = bytearray((folder / f"{STORED}.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / f"{STORED}.safetensors").write_bytes(content)


def _described(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        described = json.loads((folder / f"{STORED}.json").read_text())
        (folder / f"{STORED}.json").write_text(json.dumps(described | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (_flip, "llama", "holds a damaged memory: the checksum"),
        (_described(memories=[]), "llama", "holds a damaged memory: the checksum"),
        (_described(version=9), "llama", "holds version 9 of its memory"),
        (lambda folder: None, "gpt2", "stood beside another model"),
        (lambda folder: None, "other weights", "stood beside another model"),
        (lambda folder: None, "short", "does not fit this model: the model has no module 'model.layers.1.mlp'"),
    ],
)
def test_a_saved_memory_that_is_not_what_it_was_or_does_not_fit_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], kind: str, message: str
) -> None:
    save_memory(_with_memory("add", True), tmp_path)
    damage(tmp_path)
    seed = int(kind == "other weights")
    model = build_module(kind if kind == "gpt2" else "llama", build_tokenizer(), seed=seed)
    if kind == "short":
        del model.model.layers[1:]
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        load_memory(model, tmp_path)
    assert [name for name, _ in model.named_modules()] == names


def test_no_memory_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    model = build_module("llama", build_tokenizer())
    with pytest.raises(ValueError, match="no attached memory to save"):
        save_memory(model, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no memory, for memory\.json is missing"):
        load_memory(model, tmp_path)
    assert not attached_memories(model)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


@pytest.mark.parametrize(
    ("kind", "options", "no_other"),
    [
        # The MLP adds the residual itself; so does this one, named ffn; and this one also gives the router's scores.
        (transformers.BloomForCausalLM, {}, "does not map"),
        (transformers.MptForCausalLM, {"d_model": 32, "n_layers": 2, "n_heads": 4}, "does not map"),
        (
            transformers.GptOssForCausalLM,
            {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "num_key_value_heads": 2},
            "gives more than hidden states",
        ),
    ],
)
def test_a_memory_stands_beside_an_mlp_that_takes_or_gives_more_and_cannot_replace_it(
    kind: Any, options: dict[str, int], no_other: str
) -> None:
    model = kind(kind.config_class(**{**SHAPE, **options})).eval()
    place, tokens = mlp_name(model), torch.arange(10)[None]
    with torch.no_grad():
        untouched = model(tokens).logits
        attached = attach(model, place, MemoryLayerConfig(32, 8))
        assert torch.equal(model(tokens).logits, untouched)
        attached.open_empty()
        attached.memory.values.normal_()
        assert not torch.equal(model(tokens).logits, untouched)
        detach(model, place)
        assert torch.equal(model(tokens).logits, untouched)
    with pytest.raises(ValueError, match=no_other):
        attach(model, place, MemoryLayerConfig(32, 8), mode="replace")


def test_a_path_into_an_architecture_that_takes_no_memory_is_refused_and_leaves_the_model_whole() -> None:
    tokenizer = build_tokenizer()
    options = {**SHAPE, "vocab_size": len(tokenizer), "ffn_dim": 48, "word_embed_proj_dim": 32}
    module = transformers.OPTForCausalLM(transformers.OPTConfig(**options))
    lm = CausalLM("strange", loader=lambda name: (module, tokenizer), window=64)
    before, names = lm.weights_hash(), [name for name, _ in module.named_modules()]
    with Ledger() as ledger, pytest.raises(ValueError, match=r"no module named mlp or ffn .*weights\.layer"):
        WeightsPath(lm, ledger, weights=MemoryRows())
    assert (lm.weights_hash(), [name for name, _ in module.named_modules()]) == (before, names)
