"""`make bench`: the bank beside the stores that one would pick instead, and beside bare SQLite, which bounds them all.

Vectors of 384 dimensions are given. What is inserted is on disk afterwards as far as each store goes: the bank, SQLite
and Chroma commit, LangChain's FAISS and mem0's FAISS write their files whole.
"""

from __future__ import annotations

import gc
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import EncoderManifest
from memory_paths.types import Knowledge, Query

Benchmark = Any
Vectors = np.ndarray
Insert = Callable[[range], None]
Search = Callable[[Vectors], Any]
DIMENSION, LARGE, SMALL, K = 384, 100_000, 1_000, 10
STORES = ["bank", "LangChain FAISS", "Chroma", "mem0 FAISS"]


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
    opened = Bank(None, Ledger(folder / "ledger.sqlite"), Given(vectors), folder=folder / "index", top_k=K)

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
    """Ids, texts and vectors in one table, with an index, and nothing else."""
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
    "bare SQLite": bare_sqlite,
}


def _single_threaded() -> None:
    import faiss

    faiss.omp_set_num_threads(1)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.benchmark(group="insert 1,000 items durably in one batch")
def test_batch(benchmark: Benchmark, kind: str, tmp_path: Path, vectors: Vectors) -> None:
    made = itertools.count()

    def fresh() -> tuple[tuple[Any, ...], dict[str, Any]]:
        folder = tmp_path / str(next(made))
        folder.mkdir()
        return MAKERS[kind](folder, vectors), {}

    benchmark.pedantic(lambda insert, _: insert(range(SMALL)), setup=fresh, rounds=5)


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.benchmark(group="insert one item durably")
def test_single(benchmark: Benchmark, kind: str, count: int, tmp_path: Path, vectors: Vectors) -> None:
    insert, _ = MAKERS[kind](tmp_path, vectors)
    insert(range(count))
    gc.collect()
    rows = itertools.count(count)

    def one() -> tuple[tuple[Any, ...], dict[str, Any]]:
        row = next(rows)
        return (range(row, row + 1),), {}

    benchmark.extra_info["items before"] = count
    benchmark.pedantic(insert, setup=one, rounds=200 if kind in ("bank", "bare SQLite") else 20, warmup_rounds=3)


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.benchmark(group="the ten nearest of all items, one thread")
def test_nearest(benchmark: Benchmark, kind: str, count: int, tmp_path: Path, vectors: Vectors) -> None:
    _single_threaded()
    insert, search = MAKERS[kind](tmp_path, vectors)
    insert(range(count))
    asked = itertools.count()
    benchmark.extra_info["items"] = count
    benchmark.pedantic(
        search, setup=lambda: ((vectors[-1 - next(asked)],), {}), rounds=200 if count == SMALL else 50, warmup_rounds=3
    )
