"""A ledger and a bank on a real PostgreSQL server with pgvector, from one process and from several."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from _write_together import KEYS, OWN, SHARED, own, shared, update
from conftest import Clock
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

import memory_paths
from memory_paths import build
from memory_paths.failpoints import VARIABLE
from memory_paths.ledger import ERASED, Ledger, LedgerError
from memory_paths.retrieval.__main__ import main as look_after
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.langchain import BankVectorStore, EmbeddingsEncoder, EncoderEmbeddings
from memory_paths.retrieval.vector_store import VectorStorePath
from memory_paths.testing import check_path
from memory_paths.types import Knowledge, Query, Receipt

# Where these tests are asked for, as in CI, that they cannot run is a failure.
WANTED = bool(os.environ.get("CI") or os.environ.get("MEMORY_PATHS_POSTGRES"))
for module in ("psycopg", "langchain_postgres"):
    if not WANTED:
        pytest.importorskip(module, reason="needs pip install 'memory_paths[postgres]'")
import psycopg  # noqa: E402

from memory_paths.database import has_password, without_password, without_passwords  # noqa: E402
from memory_paths.retrieval.postgres import PostgresBank  # noqa: E402

WRITER = Path(__file__).with_name("_write_together.py")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server: that in MEMORY_PATHS_POSTGRES, or one that the package pgserver starts."""
    if address := os.environ.get("MEMORY_PATHS_POSTGRES"):
        yield address
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR
        try:
            import pgserver
        except ImportError as error:
            cannot_run(f"no package pgserver: {error}", fail=WANTED and sys.version_info < (3, 13))  # see pyproject
    failed: Exception | None = None
    for _ in range(2):  # a busy machine may not start a server in the ten seconds that it is given
        folder = tempfile.mkdtemp(prefix="postgres-")  # short, for the name of its socket has a limit
        try:
            started = pgserver.get_server(folder, cleanup_mode="delete")
        except Exception as error:
            failed = error
            continue
        yield started.get_uri()
        os.kill(started.get_pid(), signal.SIGQUIT)  # an immediate shutdown: nothing is worth a checkpoint
        started.get_postmaster_info().process.wait(30)
        started.cleanup()
        return
    cannot_run(f"pgserver cannot start a server here: {failed}", fail=WANTED)


def cannot_run(reason: str, *, fail: bool) -> NoReturn:
    if fail:
        pytest.fail(f"{reason}; give the address of a server in MEMORY_PATHS_POSTGRES")
    pytest.skip(reason)


@pytest.fixture
def address(server: str) -> str:
    """A schema of its own on the server."""
    return on(server)


def on(server: str) -> str:
    return f"{server}{'&' if '?' in server else '?'}schema=test_{uuid.uuid4().hex}"


@pytest.fixture
def ledger(address: str) -> Iterator[Ledger]:
    with Ledger(address, clock=Clock(1000.0)) as ledger:
        yield ledger


@pytest.fixture
def bank(ledger: Ledger) -> Iterator[PostgresBank]:
    bank = PostgresBank(None, ledger, HashEncoder(64))
    yield bank
    bank.close()


def ids(bank: Any, query: Query, **options: Any) -> list[str]:
    (reading,) = bank.search([query], **options)
    return [recall.item.id for recall in reading.recalls]


# The contracts


@pytest.mark.parametrize("kind", [PostgresBank, Bank])
def test_a_bank_on_a_server_keeps_the_contract_of_a_path(kind: Any, server: str) -> None:
    check_path(lambda lm, ledger: kind(lm, ledger, HashEncoder(64)), open_ledger=lambda file: Ledger(on(server)))


def test_langchains_own_vector_store_on_a_server_serves_a_ledger_in_a_file(server: str) -> None:
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(server.replace("postgresql://", "postgresql+psycopg://", 1))
    table = f"plain_{uuid.uuid4().hex}"
    engine.init_vectorstore_table(table, 64)
    store = PGVectorStore.create_sync(engine, EncoderEmbeddings(HashEncoder(64)), table)
    check_path(lambda lm, ledger: VectorStorePath(lm, ledger, store))
    asyncio.run(engine.close())


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, ledger: Ledger) -> Iterator[VectorStore]:  # type: ignore[override]
        bank = PostgresBank(None, ledger, EmbeddingsEncoder(self.get_embeddings()))
        yield BankVectorStore(bank, "default")
        bank.close()


def history(ledger: Ledger, clock: Clock, seed: int) -> None:
    """Writes of every sort, in two places and two namespaces, with validities that come and go."""
    chance = random.Random(seed)
    for step in range(60):
        clock.now += chance.choice([0.0, 1.0, 7.5])
        place, namespace = chance.choice(["postgres", "shelf"]), chance.choice(["ada", "ben"])
        held = [item.id for item in ledger.active(place=place, namespace=namespace)]
        operation = chance.choice(["record"] * 6 + ["forget", "evict", "move"])
        if operation == "record" or not held:
            edge = [clock.now + chance.uniform(-20, 20) if chance.random() < 0.3 else None for _ in range(2)]
            edges = sorted(edge) if None not in edge else edge
            key = f"key-{chance.randrange(4)}" if chance.random() < 0.6 else ""
            item = Knowledge(
                f"item-{step}",
                f"Sentence {step} speaks of æ, 漢 and a NUL \0.",
                chance.choice(["fact", "passage"]),
                key,
                valid_from=edges[0],
                valid_until=edges[1],
                metadata={"step": step, "words": "a \\u0000 in letters"},
            )
            ledger.record([item], place=place, namespace=namespace)
        elif operation == "move":
            target = {"postgres": "shelf", "shelf": "postgres"}[place]
            ledger.move([chance.choice(held)], source=place, target=target, namespace=namespace)
        else:
            reason: Any = {"forget": "forgotten", "evict": "evicted"}[operation]
            ledger.remove([chance.choice(held)], place=place, namespace=namespace, reason=reason)


@pytest.mark.parametrize("seed", range(2))
def test_the_same_history_leaves_the_same_ledger_in_a_file_and_on_a_server(seed: int, address: str) -> None:
    times = Clock(1000.0), Clock(1000.0)
    with Ledger(clock=times[0]) as file, Ledger(address, clock=times[1]) as served:
        for ledger, clock in zip((file, served), times, strict=True):
            history(ledger, clock, seed)
        assert served.verify() == []
        assert served.fingerprint(served.position()) == file.fingerprint(file.position())
        for wanted in ({"place": "postgres"}, {"place": "shelf", "namespace": "ada"}):
            assert served.standing(**wanted) == file.standing(**wanted)
            for moment in range(990, 1300, 9):
                assert served.standing(**wanted, as_of=moment) == file.standing(**wanted, as_of=moment)
        told = [ledger.metadata(1, 10**9, place="postgres", namespace="ada") for ledger in (file, served)]
        assert told[0] == told[1]
        assert served.stored_bytes(place="postgres") == file.stored_bytes(place="postgres")
        assert served.beginning("item-1", place="shelf", namespace="ben") == file.beginning(
            "item-1", place="shelf", namespace="ben"
        )


@pytest.mark.parametrize("seed", range(2))
def test_a_search_finds_exactly_what_the_ledger_says_holds(seed: int, address: str) -> None:
    clock = Clock(1000.0)
    with Ledger(address, clock=clock) as ledger:
        history(ledger, clock, seed)
        bank = PostgresBank(None, ledger, HashEncoder(64), top_k=100)
        seen = 0
        for namespace in ("ada", "ben"):
            for moment in (None, *range(990, 1300, 15)):
                standing = ledger.standing(place="postgres", namespace=namespace, as_of=moment).versions
                expected = {version.item.id: version.item.kind for version in ledger.get(standing).values()}
                query = Query("Which sentence?", namespace, as_of=moment)
                assert sorted(ids(bank, query)) == sorted(expected)
                facts = Query("Which sentence?", namespace, as_of=moment, kinds=("fact",))
                assert sorted(ids(bank, facts)) == sorted(id for id, kind in expected.items() if kind == "fact")
                seen += len(expected)
        assert seen > 50
        assert bank.verify() == []
        bank.close()


# Filters


def test_filters_of_any_selectivity_come_before_the_search_and_nothing_near_is_missed(bank: PostgresBank) -> None:
    chance = random.Random(5)
    words = [f"word{n}" for n in range(60)]
    items = [
        Knowledge(f"item-{n}", " ".join(chance.choices(words, k=6)), metadata={"n": n, "even": n % 2 == 0})
        for n in range(4000)
    ]
    bank.write(items, "default")
    vectors = bank.encoder.encode_documents([item.text for item in items])
    queries = [" ".join(chance.choices(words, k=4)) for _ in range(10)]
    asked = bank.encoder.encode_queries(queries)
    for where, matching in (
        ({"even": True}, [n for n in range(4000) if n % 2 == 0]),  # 50 %
        ({"n": {"$lt": 40}}, list(range(40))),  # 1 %
        ({"n": [7, 1234, 2345, 3999]}, [7, 1234, 2345, 3999]),  # .1 %
        ({"n": -1}, []),
        ({}, list(range(4000))),
    ):
        readings = bank.search([Query(text, "default", where=where) for text in queries], top_k=10)
        for reading, vector in zip(readings, asked, strict=True):
            found = [int(recall.item.id.removeprefix("item-")) for recall in reading.recalls]
            assert len(found) == min(10, len(matching))
            assert set(found) <= set(matching)
            best = np.sort(vectors[matching] @ vector)[::-1][:10]  # by score, for items may be equally near
            assert np.allclose([recall.score for recall in reading.recalls], best, atol=1e-5), "recall@10 is 1"


def test_a_threshold_and_diversity_do_what_they_do_in_a_bank_of_one_machine(bank: PostgresBank) -> None:
    texts = ["Ada flies planes.", "Ada flies planes!", "Ada flies kites at the sea.", "Ben reads."]
    items = [Knowledge(str(n), text) for n, text in enumerate(texts)]
    bank.write(items, "default")
    with Ledger() as alone:
        other = Bank(None, alone, HashEncoder(64))
        other.write(items, "default")
        query = Query("Ada flies planes", "default")
        assert ids(bank, query, top_k=2, diversity=0.7) == ids(other, query, top_k=2, diversity=0.7)
        assert ids(bank, query, top_k=2) != ids(bank, query, top_k=2, diversity=0.7)
        other.threshold = bank.threshold = 0.5
        assert ids(bank, query) == ids(other, query)
        assert 0 < len(ids(bank, query)) < 4


def test_among_items_that_are_equally_near_the_earlier_ones_are_chosen(bank: PostgresBank) -> None:
    bank.write([Knowledge(f"item-{n}", "Ada flies.") for n in range(40)], "default")
    vectors = bank.encoder.encode_documents(["Ada flies."] * 3)
    bank._vectors.remove([1, 2, 3])
    bank._vectors.add([1, 2, 3], vectors)  # at the end of the table
    assert ids(bank, Query("Who flies?", "default"), top_k=3) == ["item-0", "item-1", "item-2"]


def test_readers_need_not_wait_for_each_others_questions_to_be_encoded(
    bank: PostgresBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.write([Knowledge("a", "Ada flies.")], "default")
    encoding, may_go_on = threading.Event(), threading.Event()
    encode = bank.encoder.encode_queries

    def slowly(texts: Any) -> Any:
        encoding.set()
        assert may_go_on.wait(30)
        return encode(texts)

    monkeypatch.setattr(bank.encoder, "encode_queries", slowly)
    with ThreadPoolExecutor(2) as pool:
        try:
            asking = pool.submit(ids, bank, Query("Who flies?", "default"))
            assert encoding.wait(30)
            assert len(pool.submit(bank.items, "default").result(10)) == 1
        finally:
            may_go_on.set()
        assert asking.result(30) == ["a"]


# Several processes


class Writer:
    """A process with a bank of its own on a server."""

    def __init__(self, address: str, name: str, mode: str, failpoint: str = "") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: failpoint}
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER), address, name, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def rest(self) -> list[str]:
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.process.stdin.close()
        return lines


def test_two_processes_that_write_the_same_items_and_others_at_once_leave_the_union(address: str) -> None:
    writers = {name: Writer(address, name, "together") for name in ("ada", "ben")}
    for writer in writers.values():
        assert writer.hear() == "ready"
    for writer in writers.values():
        writer.tell("go")
    for writer in writers.values():
        assert writer.hear() == "written"
    with Ledger(address) as ledger:
        bank = PostgresBank(None, ledger, HashEncoder(64), top_k=1000)
        held = bank.items("default")
        expected = {shared(n).id for n in range(SHARED)} | {own(name, n).id for name in writers for n in range(OWN)}
        assert sorted(item.id for item in held if not item.key) == sorted(expected)
        last_words = {item.key: item for item in held if item.key}
        assert len(last_words) == len([item for item in held if item.key]) == KEYS, "one item holds under each key"
        for n in range(KEYS):
            said = [version for name in writers for version in ledger.history(update(name, n).id, namespace="default")]
            first, second = sorted(said, key=lambda version: version.version)
            assert (first.reason, first.superseded_by, second.reason) == ("superseded", second.item.id, None)
            assert last_words[f"key-{n}"] == second.item
        assert sorted(ids(bank, Query("Who writes?", "default"))) == sorted(item.id for item in held)
        assert bank.verify() == []

        writers["ada"].tell(json.dumps(["shared-7", "ben-3", "nothing"]))
        assert json.loads(writers["ada"].hear()) == ["shared-7", "ben-3"]
        assert not {"shared-7", "ben-3"} & set(ids(bank, Query("Who writes sentence 7?", "default")))
        assert len(bank.items("default")) == len(held) - 2
        writers["ben"].tell(json.dumps(["shared-7", "ada-3"]))
        assert json.loads(writers["ben"].hear()) == ["ada-3"], "what one forgot the other does not hold"
        assert bank.verify() == []
        bank.close()
    assert [writer.rest() for writer in writers.values()] == [[], []]
    assert [writer.process.returncode for writer in writers.values()] == [0, 0]


def test_killed_writers_lose_nothing_that_was_acknowledged_and_stop_nobody(address: str) -> None:
    # The second failpoint lies between the ledger and the index: what it leaves has no vector yet.
    failpoints = {"ada": "", "ben": "ledger.before_commit:6", "cora": "ledger.after_commit:6"}
    writers = {name: Writer(address, name, "until_killed", failpoint) for name, failpoint in failpoints.items()}
    heard = [writers["ada"].hear() for _ in range(25)]
    writers["ada"].process.kill()
    lines = [*heard, *(line for writer in writers.values() for line in writer.rest())]
    assert {writer.process.returncode for writer in writers.values()} == {-signal.SIGKILL}
    tried, done = ({line.split()[1] for line in lines if line.startswith(word)} for word in ("try", "done"))
    assert len(done) >= 15
    with Ledger(address) as ledger:
        held = {item.id for item in ledger.active(place="postgres")}
        assert done <= held <= tried
        assert {id for id in held if id.startswith("cora")} > {id for id in done if id.startswith("cora")}
        bank = PostgresBank(None, ledger, HashEncoder(64), top_k=1000)
        assert set(ids(bank, Query("Who writes?", "default"))) == held
        assert bank.verify() == []
        bank.write([Knowledge("dora", "Dora goes on writing.")], "default")
        bank.close()


def test_what_one_bank_leaves_undone_another_does(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(address) as first, Ledger(address) as second:
        mine, theirs = (PostgresBank(None, ledger, HashEncoder(64)) for ledger in (first, second))

        def fail(texts: Any) -> Any:
            raise MemoryError("no room for the encoder")

        with monkeypatch.context() as broken:
            broken.setattr(mine.encoder, "encode_documents", fail)
            assert mine.write([Knowledge("a", "Ada flies.")], "default").pending
        assert ids(theirs, Query("Who flies?", "default")) == ["a"]
        mine.flush()
        assert ids(mine, Query("Who flies?", "default")) == ["a"]
        theirs.write([Knowledge("b", "Ben flies.")], "default")
        with monkeypatch.context() as broken:
            broken.setattr(mine.encoder, "encode_documents", fail)  # Ben's vector is there already
            assert not mine.forget(["b"], "default").pending
            theirs._ledger.record([Knowledge("c", "Cora flies.")], place="postgres", namespace="default")
            assert not mine.forget(["c"], "default").pending  # gone before anybody encoded it
            theirs._ledger.record([Knowledge("d", "Dora flies.")], place="postgres", namespace="default")
            assert mine.forget(["a"], "default") == Receipt(("a",), pending=True)  # Dora's vector cannot be made
        assert ids(theirs, Query("Who flies?", "default")) == ["d"]
        mine.forget(["d"], "default")
        theirs._vectors.add([1], HashEncoder(64).encode_documents(["Ada flies."]))  # by one that was slower, and killed
        assert ids(mine, Query("Who flies?", "default")) == [], "a vector that is left over is found by nobody"
        assert mine.verify() == ["version 1 should have no vector"]
        again = PostgresBank(None, first, HashEncoder(64))
        assert again.verify() == []
        for bank in (mine, theirs, again):
            bank.close()


def test_what_another_machine_takes_away_between_search_and_fetch_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(address) as first, Ledger(address) as second:
        bank = PostgresBank(None, first, HashEncoder(64))
        bank.write([Knowledge(id, f"{id} flies.") for id in ("ada", "ben", "cora", "dora")], "default")
        nearest = bank._vectors.nearest

        def meanwhile(*given: Any) -> Any:
            hits = nearest(*given)
            if second.held(["ada"], place="postgres", namespace="default"):
                second.remove(["ada"], place="postgres", namespace="default", reason="forgotten")
                second.compact()
                second.remove(["ben"], place="postgres", namespace="default", reason="evicted")
                second.move(["cora"], source="postgres", target="shelf", namespace="default")
            return hits

        monkeypatch.setattr(bank._vectors, "nearest", meanwhile)
        assert ids(bank, Query("Who flies?", "default")) == ["dora"]
        assert ids(bank, Query("Who flies?", "default")) == ["dora"]
        bank.close()


def test_another_encoder_has_vectors_of_its_own_on_the_same_items(ledger: Ledger, bank: PostgresBank) -> None:
    bank.write([Knowledge("a", "Ada flies."), Knowledge("b", "Ben reads.")], "default")
    wider = PostgresBank(None, ledger, HashEncoder(128))
    wider.write([Knowledge("c", "Cora sings.")], "default")
    assert ids(wider, Query("Who flies?", "default"))[0] == ids(bank, Query("Who flies?", "default"))[0] == "a"
    assert (
        sorted(ids(wider, Query("Who?", "default"))) == sorted(ids(bank, Query("Who?", "default"))) == ["a", "b", "c"]
    )
    wider.close()


# The server


def test_a_server_that_cuts_connections_off_is_asked_again(
    address: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid.uuid4().hex
    with Ledger(f"{address}&application_name={name}") as ledger:
        bank = PostgresBank(None, ledger, HashEncoder(64))
        bank.write([Knowledge("a", "Ada flies.")], "default")

        def cut_off() -> None:
            statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            with psycopg.connect(server, autocommit=True) as other:
                assert other.execute(statement, [name]).fetchall()

        cut_off()
        assert ids(bank, Query("Who flies?", "default")) == ["a"]
        cut_off()
        bank.write([Knowledge("b", "Ben flies.")], "default")

        def now() -> float:
            cut_off()
            return 1000.0

        with monkeypatch.context() as patched:
            patched.setattr(ledger, "now", now)  # asked for within the transaction
            with pytest.raises(LedgerError, match="make it again"):
                bank.write([Knowledge("c", "Cora flies.")], "default")
        assert len(bank.items("default")) == 2
        assert bank.verify() == []
        bank.close()


def test_what_is_acknowledged_is_synced_whatever_the_server_was_told(address: str) -> None:
    with Ledger(f"{address}&options=-csynchronous_commit%3Doff") as ledger:
        assert ledger.database.query("SHOW synchronous_commit") == [{"synchronous_commit": "on"}]


def test_a_writer_waits_for_another_one_and_readers_for_nobody(address: str) -> None:
    with Ledger(address) as first, Ledger(address) as second:
        second.database.query("SET lock_timeout = '50ms'")
        with first.database.writing():
            with pytest.raises(LedgerError, match="being written by somebody else"):
                second.record([Knowledge("a", "Ada flies.")], place="postgres", namespace="default")
            assert second.position() == 0
        second.record([Knowledge("a", "Ada flies.")], place="postgres", namespace="default")
        assert first.position() == 1


def test_a_ledger_goes_from_a_server_into_a_file_and_back(address: str, server: str, tmp_path: Path) -> None:
    clock = Clock(1000.0)
    with Ledger(address, clock=clock) as ledger:
        history(ledger, clock, 1)
        ledger.save(tmp_path / "ledger.sqlite")
        fingerprint = ledger.fingerprint(ledger.position())
        with pytest.raises(ValueError, match="not empty"):
            ledger.restore(tmp_path / "ledger.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]
    with Ledger(tmp_path / "ledger.sqlite") as file, Ledger(on(server)) as back:
        assert (file.verify(), file.fingerprint(file.position())) == ([], fingerprint)
        back.restore(tmp_path / "ledger.sqlite")
        assert (back.verify(), back.fingerprint(back.position())) == ([], fingerprint)


def test_compacting_erases_what_was_forgotten_from_the_tables(address: str, bank: PostgresBank, ledger: Ledger) -> None:
    bank.write([Knowledge("a", "Ada has a secret."), Knowledge("b", "Ben has none.")], "default")
    bank.forget(["a"], "default")
    assert ledger.compact() == 1
    assert [version.text for version in ledger.history("a", namespace="default")] == [ERASED]
    assert bank.verify() == []
    rows = ledger.database.query("SELECT version.*::text AS line FROM version")
    assert "secret" not in str([row["line"] for row in rows])


# The door


def test_what_cannot_be_used_is_refused_at_the_door(server: str, address: str, tmp_path: Path) -> None:
    with Ledger() as file, pytest.raises(ValueError, match="the ledger is :memory:; set ledger=postgresql"):
        PostgresBank(None, file, HashEncoder(64))
    with pytest.raises(LedgerError, match=r"a file or postgresql://\.\.\., got mysql://"):
        Ledger("mysql://user:hush@host/database")
    with pytest.raises(ValueError, match="schema must be a word"):
        Ledger(f"{server}{'&' if '?' in server else '?'}schema=a%20b")
    with Ledger(address) as ledger:
        for options, message in (
            ({"top_k": 0}, "top_k must be at least 1"),
            ({"diversity": 1.1}, "diversity must be in"),
            ({"threshold": 2.0}, "threshold must be a cosine"),
            ({"name": ""}, "needs a name"),
        ):
            with pytest.raises(ValueError, match=message):
                PostgresBank(None, ledger, HashEncoder(64), **options)
        bank = PostgresBank(None, ledger, HashEncoder(64))
        with pytest.raises(ValueError, match="by meaning alone"):
            bank.search([Query("Who?", "default")], method="bm25")
        with pytest.raises(ValueError, match=r"vectors must be \[1, 64\]"):
            bank.search([Query("Who?", "default")], vectors=np.ones((1, 3), np.float32))
        for strange in (np.nan, np.inf):
            with pytest.raises(ValueError, match="vectors must be finite"):
                bank.search([Query("Who?", "default")], vectors=np.full((1, 64), strange, np.float32))
        with pytest.raises(ValueError, match="cannot hold what was given"):
            bank.write([Knowledge("good", "Ada flies."), Knowledge("a\0b", "Ben flies.")], "default")
        assert bank.items("default") == []
        bank.close()
        with pytest.raises(RuntimeError, match="is closed"):
            bank.read([Query("Who?", "default")])
        ledger.database.query("UPDATE ledger SET schema_version = 999")
    with pytest.raises(LedgerError, match="is closed"):
        ledger.position()
    with pytest.raises(LedgerError, match="schema version 999"):
        Ledger(address)
    schema = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as other:
        other.execute(f"CREATE SCHEMA {schema}")
        other.execute(f"CREATE TABLE {schema}.version (of_another_program INTEGER)")
    with pytest.raises(LedgerError, match="belongs to another program"):
        Ledger(f"{server}{'&' if '?' in server else '?'}schema={schema}")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ada:hush@127.0.0.1:1/memory?connect_timeout=2",
        "postgresql://ada@127.0.0.1:1/memory?password=hush",
        "postgresql://ada:hush@127.0.0.1:no-port/memory",
        "postgresql://ada:hush@[/memory",
        "postgresql://ada:hush@host/memory?unheard_of=hush",
        "postgresql://ada:?hush@host/memory",
        "postgresql://ada:1/hush@host/memory",
        "postgres://ada:hu%73h@127.0.0.1:1,127.0.0.1:2/memory?sslpassword=hush",
    ],
)
def test_no_error_shows_a_password(address: str) -> None:
    with pytest.raises((LedgerError, ValueError)) as refused:
        Ledger(address)
    shown = "".join(traceback.format_exception(refused.value)).replace("unheard_of=hush", "")
    assert "postgres" in str(refused.value)
    assert "hush" not in shown.replace(f'"{address}"', "")
    assert "hush" not in without_password(address).replace("unheard_of=hush", "")
    assert has_password(address)
    assert "hush" not in without_passwords(f"an error ('{address}')").replace("unheard_of=hush", "")


@pytest.mark.parametrize(
    "address",
    ["postgresql://ada@host:5432/memory?user=ada@home", "postgresql:///memory", "postgres://a:1,b:2/m", "a:b"],
)
def test_an_address_without_a_password_is_told_from_others(address: str) -> None:
    assert not has_password(address)
    assert "..." not in without_password(address)


def test_an_agent_on_a_server_from_its_configuration(address: str, server: str, tmp_path: Path) -> None:
    options = ("path=postgres", "encoder@path.memory.encoder=hash", "lm=embedded")
    with memory_paths.load(*options, f"ledger='{address}'") as agent:
        agent.learn([Knowledge("a", "Ada lives in Oslo.", key="ada/home")])
        agent.learn([Knowledge("b", "Ada lives in Bergen.", key="ada/home")])
        agent.save(tmp_path / "saved")
    assert "schema=test_" in json.loads((tmp_path / "saved" / "agent.json").read_text())["config"]["ledger"]
    assert build.plain(build.compose("ledger='postgresql://ada:hush@host/memory'"))["ledger"] == (
        "postgresql://ada@host/memory"
    )
    with memory_paths.load(*options, f"ledger='{address}'") as elsewhere:
        assert [item.id for item in elsewhere.items()] == ["b"]
        elsewhere.forget(["b"])
    with memory_paths.load(*options, f"ledger='{on(server)}'") as back:
        build.restore(back, tmp_path / "saved")
        assert [item.id for item in back.items()] == ["b"]
        assert [recall.item.id for recall in back.answer([Query("Where does Ada live?")])[0].recalls] == ["b"]


def test_the_command_line_looks_after_a_server_too(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(Knowledge(f"item-{n}", f"Sentence {n}.").to_json() + "\n" for n in range(7)))
    assert look_after(["import", address, str(file), "--place", "postgres"]) == 0
    assert look_after(["export", address, "--place", "postgres"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == file.read_text().splitlines()
    assert look_after(["verify", address]) == 0
    with pytest.raises(SystemExit):
        look_after(["repair", address, "--to", str(tmp_path / "new.sqlite")])
