"""`make bench`: what each part costs beside what a user would pick instead. Ratios within one run; nothing is
asserted in seconds."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import build_tokenizer, peak_bytes, plain_aim
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from memory_paths.conversation import fit, without
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.full import Full
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.streams.world import biographies, rehearsal
from memory_paths.testing import EchoLM
from memory_paths.types import Knowledge, Prompt, Query, Turn

Benchmark = Any
ITEMS = [item for experience in biographies(2000).experiences for item in experience.items]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    from memory_paths.build import build_agent, compose

    agent = build_agent(compose("path=none"))
    assert isinstance(agent.lm, CausalLM)
    return agent.lm


@pytest.mark.parametrize("kind", ["bank", "bare SQLite, one commit"])
@pytest.mark.benchmark(group="insert 1,000 items durably (vectors by hashing)")
def test_insert(benchmark: Benchmark, kind: str, tmp_path: Path) -> None:
    made = iter(range(1000))

    def bank() -> tuple[tuple[Any, ...], dict[str, Any]]:
        opened = Bank(EchoLM(), Ledger(tmp_path / f"{next(made)}.sqlite"), HashEncoder())
        return (partial(opened.write, namespace="default"),), {}

    def sqlite() -> tuple[tuple[Any, ...], dict[str, Any]]:
        connection = sqlite3.connect(tmp_path / f"{next(made)}.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE item (id TEXT PRIMARY KEY, content TEXT)")

        def write(items: list[Knowledge]) -> None:
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO item VALUES (?, ?)", [(item.id, item.to_json()) for item in items])
            connection.execute("COMMIT")

        return (write,), {}

    def insert(write: Callable[[list[Knowledge]], Any]) -> None:
        write(ITEMS[:1000])

    benchmark.pedantic(insert, setup=bank if kind == "bank" else sqlite, rounds=5)


@pytest.mark.parametrize("kind", ["bank", "bare FAISS"])
@pytest.mark.benchmark(group="search 200 questions among 2,000 items (vectors by hashing)")
def test_search(benchmark: Benchmark, kind: str) -> None:
    import faiss

    encoder = HashEncoder()
    queries = [Query(item.text, "default") for item in ITEMS[:200]]
    if kind == "bank":
        bank = Bank(EchoLM(), Ledger(), encoder, top_k=8)
        bank.write(ITEMS, namespace="default")
        benchmark.pedantic(bank.read, args=(queries,), rounds=10, warmup_rounds=1)
        return
    index = faiss.IndexFlatIP(encoder.manifest.dimension)
    index.add(encoder.encode_documents([item.text for item in ITEMS]))

    def search() -> numpy.ndarray:
        return index.search(encoder.encode_queries([query.text for query in queries]), 8)[1]

    benchmark.pedantic(search, rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("kind", ["frozen prefix", "whole prompt each time"])
@pytest.mark.benchmark(group="answer 64 questions about the same 30 notes")
def test_answers(benchmark: Benchmark, lm: CausalLM, kind: str) -> None:
    notes = tuple(item.text for item in ITEMS[:30])
    prompts = [Prompt(f"Where does {item.text.split()[0]} live?", notes) for item in ITEMS[:64]]
    lm.prefix_cache = kind == "frozen prefix"
    try:
        benchmark.pedantic(lm.generate, args=(prompts,), kwargs={"max_new_tokens": 4}, rounds=5, warmup_rounds=1)
    finally:
        lm.prefix_cache = True


@pytest.mark.parametrize("kind", ["frozen prefix", "prefix from a file", "whole prompt each time"])
@pytest.mark.benchmark(
    group="first token of an answer in a conversation of 4,096 tokens (Llama, 4 layers of width 256)"
)
def test_prefill(benchmark: Benchmark, kind: str, tmp_path: Path) -> None:
    def load(name: str) -> tuple[Any, Any]:
        tokenizer = build_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            max_position_embeddings=8192,
        )
        return LlamaForCausalLM(config), tokenizer

    lm = CausalLM("random", loader=load, prefix_cache=kind != "whole prompt each time")
    asked = iter(range(1000))
    whole = Prompt("Who?", turns=tuple(Turn("user", item.text) for item in ITEMS[:200]))
    whole = without(whole, fit(lm, whole, budget=3840, keep=1.0))

    def prompt() -> Prompt:
        return replace(whole, question=f"Who was number {next(asked)}?", notes=tuple(i.text for i in ITEMS[500:504]))

    if kind == "prefix from a file":
        lm.save_prefix(whole, tmp_path / "prefix.safetensors")

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kind == "prefix from a file":
            lm.weights_changed()
        return ([prompt()],), {"max_new_tokens": 1}

    def answer(prompts: list[Prompt], **options: Any) -> Any:
        if kind == "prefix from a file":
            lm.load_prefix(tmp_path / "prefix.safetensors")
        return lm.generate(prompts, **options)

    benchmark.pedantic(answer, setup=setup, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("kind", ["sparse memory", "lora", "full"])
@pytest.mark.benchmark(group="one training step on 96 phrasings")
def test_step(benchmark: Benchmark, lm: CausalLM, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"sparse memory": MemoryRows, "lora": _lora, "full": Full}[kind]()
    weights.prepare(lm, rehearsal()[:64])
    batch = collate(lm, encode(lm, rehearsal()[:96]))
    with weights.applied(lm.module), weights.training(lm.module) as trainer:

        def one_step() -> float:
            return trainer.step([plain_aim(lm.module, batch)])

        benchmark.pedantic(one_step, rounds=10, warmup_rounds=2)
        with torch.profiler.profile(profile_memory=True) as profile:
            one_step()
    peak = peak_bytes(profile) / 2**20
    benchmark.extra_info["peak MiB beyond what lay in memory before the step"] = round(peak, 1)
    with capsys.disabled():
        sys.stdout.write(f"\n{kind}: {peak:.1f} MiB at the peak of a step, beyond what lay in memory before it\n")


def _lora() -> Adapter:
    return Adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32))
