"""`make bench`: the bank beside the stores that one would pick instead, and beside bare SQLite, which bounds them all.

Vectors of 384 dimensions are given. What is inserted is on disk afterwards as far as each store goes: the bank, SQLite
and Chroma commit, LangChain's FAISS and mem0's FAISS write their files whole. Of each row the table has the bank's
time; what stands beside it is told below, as a ratio within the run, which has a target; nothing has one in seconds.
"""

from __future__ import annotations

import gc
import itertools
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import EncoderManifest
from memory_paths.retrieval.scale_figures import Target
from memory_paths.types import Knowledge, Query

pytestmark = pytest.mark.timeout(1800)  # 100,000 items take some stores minutes
Benchmark = Any
Vectors = np.ndarray
Call = Callable[[], object]
Insert = Callable[[range], None]
Search = Callable[[Vectors], Any]
DIMENSION, LARGE, SMALL, K = 384, 100_000, 1_000, 10
STORES = ["LangChain FAISS", "Chroma", "mem0 FAISS"]
BARE = "bare SQLite"

# How many times as fast as the other the bank has to be.
AHEAD = Target(1.0, least=True)
IN_MEMORY = "from 1: it answers with objects in memory, the bank with rows of the ledger whose checksums it compares"
TARGETS = {
    ("batch", BARE): Target(0.07, least=True, moved="from .4: two tables with their indexes alone take it to .2"),
    ("single", BARE): Target(0.3, least=True, moved="from .7: .4 ms of its own work stand beside a sync"),
    (f"nearest of {SMALL}", "LangChain FAISS"): Target(0.05, least=True, moved=IN_MEMORY),
    (f"nearest of {SMALL}", "mem0 FAISS"): Target(0.05, least=True, moved=IN_MEMORY),
    (f"nearest of {LARGE}", "LangChain FAISS"): Target(0.7, least=True, moved=IN_MEMORY),
    (f"nearest of {LARGE}", "Chroma"): Target(0.1, least=True, moved="from 1: it is approximate, all is compared here"),
    (f"nearest of {LARGE}", "mem0 FAISS"): Target(0.7, least=True, moved=IN_MEMORY),
}
GROWTH = Target(1.5)  # cost of one item beside `LARGE` in that beside `SMALL`


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """More rows than any store is given, of length 1."""
    made = np.random.default_rng(0).standard_normal((2 * LARGE, DIMENSION)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


class Given:
    """An encoder whose vectors are there already: a text begins with the number of its row."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self.manifest = EncoderManifest("given", DIMENSION, "", 0)
        self.flops_per_token = 0.0

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        return self._vectors[[int(text.split(" ", 1)[0]) for text in texts]]

    encode_queries = encode_documents

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [0] * len(texts)


def text(row: int) -> str:
    return f"{row} is the number of this note, which says a little about some person, place or thing."


def bank(folder: Path, vectors: Vectors) -> tuple[Insert, Search]:
    opened = Bank(
        None, Ledger(folder / "ledger.sqlite"), Given(vectors), folder=folder / "index", top_k=K, method="dense"
    )

    def insert(rows: range) -> None:
        opened.write([Knowledge(str(row), text(row), kind="passage") for row in rows], "default")

    return insert, lambda vector: opened.search([Query("", "default")], vectors=vector[None])


def langchain_faiss(folder: Path, vectors: Vectors) -> tuple[Insert, Search]:
    pytest.importorskip("langchain_community", reason="the extra [bench] brings LangChain's FAISS store")
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    store = FAISS(lambda text: [], faiss.IndexFlatIP(DIMENSION), InMemoryDocstore(), {})

    def insert(rows: range) -> None:
        pairs = [(text(row), vectors[row].tolist()) for row in rows]
        store.add_embeddings(pairs, ids=[str(row) for row in rows])
        store.save_local(str(folder))

    return insert, lambda vector: store.similarity_search_with_score_by_vector(vector.tolist(), k=K)


def chroma(folder: Path, vectors: Vectors) -> tuple[Insert, Search]:
    chromadb = pytest.importorskip("chromadb", reason="the extra [bench] brings Chroma")
    client = chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("notes", metadata={"hnsw:space": "cosine"})

    def insert(rows: range) -> None:
        most = client.get_max_batch_size()
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            collection.add([str(row) for row in part], vectors[part.start : part.stop], documents=list(map(text, part)))

    return insert, lambda vector: collection.query(query_embeddings=[vector], n_results=K)


def mem0_faiss(folder: Path, vectors: Vectors) -> tuple[Insert, Search]:
    pytest.importorskip("mem0", reason="the extra [bench] brings mem0's FAISS store")
    from mem0.vector_stores.faiss import FAISS

    store = FAISS("notes", path=str(folder), distance_strategy="inner_product", embedding_model_dims=DIMENSION)

    def insert(rows: range) -> None:
        payloads = [{"data": text(row)} for row in rows]
        store.insert(vectors[rows.start : rows.stop], payloads, [str(row) for row in rows])

    return insert, lambda vector: store.search("", vector, top_k=K)


def bare_sqlite(folder: Path, vectors: Vectors) -> tuple[Insert, Search]:
    """Ids and texts in one table, with the index of its key, and nothing else."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE item (id TEXT PRIMARY KEY, content TEXT)")

    def insert(rows: range) -> None:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO item VALUES (?, ?)", [(str(row), text(row)) for row in rows])
        connection.execute("COMMIT")

    return insert, lambda vector: connection.execute("SELECT content FROM item WHERE id = '7'").fetchall()


MAKERS: dict[str, Callable[[Path, Vectors], tuple[Insert, Search]]] = {
    "bank": bank,
    "LangChain FAISS": langchain_faiss,
    "Chroma": chroma,
    "mem0 FAISS": mem0_faiss,
    BARE: bare_sqlite,
}


def _single_threaded() -> None:
    import faiss

    faiss.omp_set_num_threads(1)


def compare(
    benchmark: Benchmark,
    capsys: pytest.CaptureFixture[str],
    ours: Callable[[], Call],
    other: Callable[[], Call],
    *,
    rounds: int,
    kind: str,
    target: Target,
    inverse: bool = False,
) -> None:
    """What `other` and `ours` prepare runs in turns, so that what else the machine does meets both alike; asserts the
    ratio of the medians."""
    seconds = []

    def before_each() -> tuple[tuple[Call], dict[str, Any]]:
        theirs, mine = other(), ours()
        os.sync()  # nobody is to wait for what another one has left to be written
        begun = time.perf_counter()
        theirs()
        seconds.append(time.perf_counter() - begun)
        os.sync()
        return (mine,), {}

    gc.collect()
    benchmark.pedantic(lambda call: call(), setup=before_each, rounds=rounds, warmup_rounds=3)
    bank, beside = statistics.median(benchmark.stats.stats.data), statistics.median(seconds[3:])
    ratio = bank / beside if inverse else beside / bank
    told = f"bank {1000 * bank:.3g} ms, {kind} {1000 * beside:.3g} ms, ratio {target.told(ratio)}"
    benchmark.extra_info["beside"] = told
    with capsys.disabled():
        sys.stdout.write(f"\n{benchmark.group}: {told}\n")
    assert target.met(ratio), told


def inserting(insert: Insert, count: int, batch: int = 1) -> Callable[[], Call]:
    """One batch after the other, beside so many items."""
    insert(range(count))
    rows = itertools.count(count, batch)

    def one() -> Call:
        row = next(rows)
        return lambda: insert(range(row, row + batch))

    return one


def searching(search: Search, vectors: Vectors) -> Callable[[], Call]:
    """One question after the other, none of which is stored."""
    asked = itertools.count(1)

    def one() -> Call:
        vector = vectors[-next(asked)]
        return lambda: search(vector)

    return one


def folder_of(tmp_path: Path, name: str) -> Path:
    (made := tmp_path / name).mkdir()
    return made


@pytest.mark.parametrize("kind", [*STORES, BARE])
@pytest.mark.benchmark(group="insert 1,000 items durably in one batch, beside 1,000 to 18,000")
def test_batch(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], kind: str, tmp_path: Path, vectors: Vectors
) -> None:
    stores = [MAKERS[name](folder_of(tmp_path, name), vectors)[0] for name in ("bank", kind)]
    ours, other = (inserting(insert, SMALL, SMALL) for insert in stores)
    target = TARGETS.get(("batch", kind), AHEAD)
    compare(benchmark, capsys, ours, other, rounds=15, kind=kind, target=target)


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("kind", [*STORES, BARE])
@pytest.mark.benchmark(group="insert one item durably")
def test_single(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], kind: str, count: int, tmp_path: Path, vectors: Vectors
) -> None:
    ours, other = (inserting(MAKERS[name](folder_of(tmp_path, name), vectors)[0], count) for name in ("bank", kind))
    rounds = 200 if kind == BARE else 20
    target = TARGETS.get(("single", kind), AHEAD)
    compare(benchmark, capsys, ours, other, rounds=rounds, kind=f"{kind} beside {count}", target=target)


@pytest.mark.benchmark(group="insert one item durably")
def test_growth(benchmark: Benchmark, capsys: pytest.CaptureFixture[str], tmp_path: Path, vectors: Vectors) -> None:
    large, small = (inserting(bank(folder_of(tmp_path, f"{count}"), vectors)[0], count) for count in (LARGE, SMALL))
    kind = f"beside {LARGE}, beside {SMALL}"
    compare(benchmark, capsys, large, small, rounds=200, kind=kind, target=GROWTH, inverse=True)


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.benchmark(group="the ten nearest of all items, one thread")
def test_nearest(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], kind: str, count: int, tmp_path: Path, vectors: Vectors
) -> None:
    _single_threaded()
    made = {name: MAKERS[name](folder_of(tmp_path, name), vectors) for name in ("bank", kind)}
    for insert, _ in made.values():
        insert(range(count))
    ours, other = (searching(search, vectors) for _, search in made.values())
    rounds = 200 if count == SMALL else 50
    target = TARGETS.get((f"nearest of {count}", kind), AHEAD)
    compare(benchmark, capsys, ours, other, rounds=rounds, kind=f"{kind} of {count}", target=target)
