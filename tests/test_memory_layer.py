"""The product-key memory layer: exact look-up, late selection, additive attachment."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, build_module, build_tokenizer
from torch.nn import functional

from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.attach import attach, detach, memory_layers, middle_mlp
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory, SlotRecorder
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.path import WeightsPath


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
    rows = recorder.counts().topk(10).indices.sort().values
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
        rows = recorder.counts().topk(6).indices.sort().values
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
    whole = recorder.counts()
    part = recorder.counts(torch.tensor([1, 1, 0]))
    assert whole.sum() == 3 * 8
    assert part.sum() == 2 * 8


def test_bad_shapes_are_refused() -> None:
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
    layer = middle_mlp(model)
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


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            transformers.OPTForCausalLM,
            {"ffn_dim": 48, "word_embed_proj_dim": 32},
            r"no module named 'mlp'.*weights\.layer",
        ),
        (transformers.BloomForCausalLM, {}, r"'transformer.h.1.mlp' does not map \[..., 32\] to itself"),
    ],
)
def test_a_path_into_an_architecture_that_takes_no_memory_is_refused_and_leaves_the_model_whole(
    kind: Any, options: dict[str, int], message: str
) -> None:
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    module = kind(kind.config_class(**shape, **options))
    lm = CausalLM("strange", loader=lambda name: (module, tokenizer), window=64)
    before, names = lm.weights_hash(), [name for name, _ in module.named_modules()]
    with Ledger() as ledger, pytest.raises(ValueError, match=message):
        WeightsPath(lm, ledger, weights=MemoryRows())
    assert (lm.weights_hash(), [name for name, _ in module.named_modules()]) == (before, names)
