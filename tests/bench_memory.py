"""`make bench`: what a memory layer costs beside what stands in its place, and what a larger table costs.

What is compared runs in turns, one round of each after the other, so that what else the machine does meets both alike;
medians are told. Nothing is asserted in seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from conftest import build_tokenizer, mean_loss, peak_bytes, plain_aim
from torch import Tensor, nn
from torch.nn import functional

from memory_paths.lm import CausalLM
from memory_paths.parametric.adam import AdamTrainer
from memory_paths.parametric.attach import attach, memory_layers
from memory_paths.parametric.batches import TrainingBatch
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory, SlotRecorder
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.slots import Background, TfIdf
from memory_paths.parametric.weights import Aim
from memory_paths.types import Phrasing

Benchmark = Any
FEW, MANY = 65_536, 1_048_576  # slots
# Targets, all of them ratios: an error where one is missed.
DENSE, BAG = 20.0, 0.9  # times as fast as these, at least; the bag is the same work, so that what is below 1 is noise
LARGER_PEAK, LARGER_TIME = 1.05, 1.15  # a step with MANY slots in one with FEW, at most; time without keys
SORT = 2.0  # times as fast a choice of rows as by sorting all slots, at least
WITH_MEMORY = 1.6  # a step of every parameter with a memory in one without, at most
LARGE = MemoryLayerConfig(width=256, half_keys=1024, heads=4, top_k=32, half_query=64)


def beside(benchmark: Benchmark, ours: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Runs both in turns; median seconds of the other in those of ours, which are what the table shows."""
    seconds = []

    def before_each() -> None:
        begun = time.perf_counter()
        other()
        seconds.append(time.perf_counter() - begun)

    benchmark.pedantic(ours, setup=before_each, rounds=rounds, warmup_rounds=1)
    return statistics.median(seconds[1:]) / statistics.median(benchmark.stats.stats.data)


def tell(benchmark: Benchmark, capsys: pytest.CaptureFixture[str], **figures: float) -> None:
    """Into the table's extra information, and onto the terminal."""
    benchmark.extra_info.update(figures)
    with capsys.disabled():
        sys.stdout.write("\n" + "".join(f"{name.replace('_', ' ')}: {value:.4g}\n" for name, value in figures.items()))


@pytest.mark.benchmark(group="layer forward, 1,048,576 slots of width 256, 4 heads, top 32, 256 positions")
def test_layer_beside_a_dense_mlp_of_equal_parameters(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ProductKeyMemory(LARGE)
    inner = sum(parameter.numel() for parameter in memory.parameters()) // (2 * LARGE.width)
    dense = nn.Sequential(nn.Linear(LARGE.width, inner), nn.SiLU(), nn.Linear(inner, LARGE.width))
    hidden = torch.randn(256, LARGE.width)
    with torch.no_grad():
        ratio = beside(benchmark, lambda: memory(hidden), lambda: dense(hidden), rounds=5)
    tell(benchmark, capsys, times_as_fast_as_the_dense_mlp=ratio)
    assert ratio >= DENSE


class PlainMemory(nn.Module):
    """The same look-up and the same output from a memory's own weights, as it is commonly written: every pair of the
    best halves, then nn.EmbeddingBag."""

    def __init__(self, memory: ProductKeyMemory) -> None:
        super().__init__()
        self.memory = memory
        self.values = nn.EmbeddingBag.from_pretrained(memory.values.detach(), mode="sum", freeze=False)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        memory, config = self.memory, self.memory.config
        query_BH2Q = memory.query_norm(memory.query(hidden_BD).view(-1, config.heads, 2, config.half_query))
        scores_BH2N = torch.einsum("bhcq,hcnq->bhcn", query_BH2Q, memory.keys)
        best_BH2K, index_BH2K = scores_BH2N.topk(config.top_k)
        score_BHKK = best_BH2K[:, :, 0, :, None] + best_BH2K[:, :, 1, None, :]
        slot_BHKK = index_BH2K[:, :, 0, :, None] * config.half_keys + index_BH2K[:, :, 1, None, :]
        score_BHK, pick_BHK = score_BHKK.flatten(2).topk(config.top_k)
        slot_BR = slot_BHKK.flatten(2).gather(2, pick_BHK).flatten(1)
        read_BD = self.values(slot_BR, per_sample_weights=score_BHK.softmax(-1).flatten(1))
        output_BD: Tensor = memory.output(read_BD * functional.silu(memory.gate(hidden_BD)))
        return output_BD


@pytest.mark.benchmark(group="layer forward, 1,048,576 slots of width 256, 4 heads, top 32, 256 positions")
def test_layer_beside_plain_embedding_bag(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ProductKeyMemory(LARGE)
    plain = PlainMemory(memory)
    hidden = torch.randn(256, LARGE.width)
    with torch.no_grad():
        torch.testing.assert_close(plain(hidden), memory(hidden), rtol=1e-4, atol=1e-5)
        ratio = beside(benchmark, lambda: memory(hidden), lambda: plain(hidden), rounds=40)
    tell(benchmark, capsys, times_as_fast_as_embedding_bag=ratio)
    assert ratio >= BAG


def base_model() -> CausalLM:
    """A Llama of 100 million parameters with random weights."""
    import transformers

    def load(name: str) -> tuple[Any, Any]:
        tokenizer = build_tokenizer()
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=2560,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return transformers.AutoModelForCausalLM.from_config(config), tokenizer

    return CausalLM("base", loader=load)


def with_memory(slots: int) -> CausalLM:
    """The same with a memory beside its middle MLP."""
    lm = base_model()
    config = MemoryLayerConfig(768, half_keys=round(slots**0.5), heads=4, top_k=32)
    added = attach(lm.module, "model.layers.6.mlp", config)
    with torch.no_grad():
        added.scale.fill_(1.0)
    return lm


def batch_of(sequences: int = 8, length: int = 32) -> TrainingBatch:
    tokens = torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(0))
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    return TrainingBatch(tokens, torch.ones_like(tokens), targets, sequences)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Holds open what a step needs."""
    with ExitStack() as stack:
        yield stack


def background() -> list[Phrasing]:
    return [Phrasing(f"Text {number} is like many others.") for number in range(16)]


@pytest.mark.benchmark(group="step of weights=memory on a model of 100 M parameters, 256 tokens")
def test_step_with_a_larger_table(opened: ExitStack, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    steps, looked_up, peaks = {}, {FEW: [0.0], MANY: [0.0]}, {}
    with torch.random.fork_rng():
        for slots in (FEW, MANY):
            lm, weights, batch = with_memory(slots), MemoryRows(rows=32), batch_of()
            weights.prepare(lm, background())
            steps[slots] = _step(opened, lm, weights, batch, looked_up[slots])
    for slots, step in steps.items():
        step()
        with torch.profiler.profile(profile_memory=True) as profile:
            step()
        peaks[slots] = peak_bytes(profile) / 2**20
        looked_up[slots].clear()
    ratio = beside(benchmark, steps[MANY], steps[FEW], rounds=8)
    apart = {slots: statistics.median(seconds[1:]) for slots, seconds in looked_up.items()}
    many = statistics.median(benchmark.stats.stats.data)
    larger = peaks[MANY] / peaks[FEW]
    longer = (many - apart[MANY]) / (many * ratio - apart[FEW])
    tell(
        benchmark,
        capsys,
        peak_MiB_of_a_step_with_65536_slots=peaks[FEW],
        peak_MiB_of_a_step_with_1048576_slots=peaks[MANY],
        the_same_in_those_with_65536=larger,
        milliseconds_of_key_look_up_with_65536_slots=1e3 * apart[FEW],
        milliseconds_of_key_look_up_with_1048576_slots=1e3 * apart[MANY],
        seconds_of_a_step_with_1048576_slots_in_those_with_65536=1 / ratio,
        the_same_without_the_key_look_up=longer,
    )
    assert larger <= LARGER_PEAK
    assert longer <= LARGER_TIME


def _step(
    opened: ExitStack, lm: CausalLM, weights: MemoryRows, batch: TrainingBatch, looked_up: list[float]
) -> Callable[[], float]:
    """One step of a write; the seconds of its key look-up are appended."""
    (memory,) = memory_layers(lm.module).values()
    plain = memory.look_up

    def timed(hidden_BD: Tensor) -> tuple[Tensor, Tensor]:
        begun = time.perf_counter()
        found = plain(hidden_BD)
        looked_up.append(time.perf_counter() - begun)
        return found

    memory.look_up = timed  # type: ignore[method-assign]
    opened.enter_context(weights.applied(lm.module))
    trainer = opened.enter_context(weights.training(lm.module))
    return lambda: trainer.step([plain_aim(lm.module, batch)])


class FullStep:
    """A step of AdamW on every parameter; of a memory's values the rows that were read most, by SGD."""

    def __init__(self, lm: CausalLM, rows: int = 32) -> None:
        self._lm, self._rows, self._batch = lm, rows, batch_of()
        self._recorders = {name: SlotRecorder(one.config.slots) for name, one in memory_layers(lm.module).items()}
        for name, layer in memory_layers(lm.module).items():
            layer.recorder = self._recorders[name]
        tables = {f"{name}.values" for name in self._recorders}
        dense = {name: one for name, one in lm.module.named_parameters() if name not in tables}
        self._trainer = AdamTrainer(dense, rate=1e-5, weight_decay=0.0)

    def __call__(self) -> None:
        self._trainer.step([Aim(self._batch, self._loss)])
        for name, recorder in self._recorders.items():
            assert recorder.gradient is not None
            with torch.no_grad():
                self._lm.module.get_submodule(name).values[recorder.rows] -= recorder.gradient
            recorder.clear()

    def _loss(self) -> Tensor:
        found: Tensor = mean_loss(self._lm.module, self._batch)
        for recorder in self._recorders.values():
            recorder.select(recorder.count().topk(self._rows).indices)
        return found


@pytest.mark.parametrize("kind", ["of every parameter", "of sparse memory"])
@pytest.mark.benchmark(group="step with one memory layer of 1,048,576 slots, 100 M parameters beside it, 256 tokens")
def test_step_beside_one_without_memory(
    opened: ExitStack, benchmark: Benchmark, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, without = with_memory(MANY), FullStep(base_model())
    ours: Callable[[], object]
    if kind == "of sparse memory":
        weights = MemoryRows(rows=32)
        weights.prepare(lm, background())
        ours = _step(opened, lm, weights, batch_of(), [])
    else:
        ours = FullStep(lm)
    ratio = beside(benchmark, ours, without, rounds=5)
    tell(benchmark, capsys, seconds_in_those_of_a_step_of_every_parameter_without_memory=1 / ratio)
    assert 1 / ratio <= WITH_MEMORY


@pytest.mark.benchmark(group="choice of 500 of 1,048,576 slots by 524,288 reads")
def test_choice_beside_a_plain_sort_of_all_slots(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    recorder = SlotRecorder(MANY)
    reads = torch.randint(0, MANY, (4096, 128), generator=generator)
    background = Background(1000, torch.randint(0, 50, (MANY,), generator=generator).short(), "")
    weights = MemoryRows(rows=500)
    weights._background = {"memory": background}

    def counts() -> Tensor:
        recorder.clear()
        recorder.reads = [reads]
        return recorder.count(torch.ones(4096))

    def choose() -> Tensor:
        return weights._chosen("memory", counts(), generator)

    def sort() -> Tensor:
        counted = counts()
        scores = TfIdf()(counted, background, generator)
        return torch.where(counted > 0, scores, -torch.inf).argsort(descending=True, stable=True)[:500].sort().values

    ratio = beside(benchmark, choose, sort, rounds=15)
    tell(benchmark, capsys, times_as_fast_as_a_plain_sort=ratio)
    assert ratio >= SORT
