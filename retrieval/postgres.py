"""The bank for several machines: items in a ledger on a PostgreSQL server, vectors beside them by pgvector.

The ledger is the truth. Vectors lie in a table of their own that langchain-postgres makes and searches, through a view
that joins them to the ledger's versions: whose an item is, and when it holds, is the ledger's word at the moment of the
search, and the filter comes before it. A vector that is missing is made by whoever notices; one that is left over is
found by nobody. This file knows nothing of prompts, scoring or weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.ledger import RECALLABLE, Ledger, LedgerError, Version
from memory_paths.types import Capabilities, Cost, Knowledge, Query, Reading, Recall, Receipt, Usage

from .encoder import Encoder
from .fusion import diverse
from .held import (
    candidates,
    check_place,
    check_queries,
    check_search,
    check_threshold,
    encoded_items,
    encoded_queries,
    new_folder,
    receipt,
    state_hash,
)
from .rows import is_recallable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_log = logging.getLogger(__name__)

AT_A_TIME = 256  # texts that are encoded and stored together
WIDER = 4  # times as many are asked for where there may be more as near as the last one
FILTERS_KEPT = 64
LAST_VERSION = 2**62  # behind every version that there will be

# What `Ledger.standing` says, as columns that can be compared with a time.
_VIEW = """SELECT version, version::text AS number, vectors.content, embedding, place, namespace,
    {item} ->> 'kind' AS kind, reason = '' AS held,
    coalesce(valid_from, '-Infinity') AS holds_from, coalesce(valid_from, recorded_at) AS known_from,
    coalesce(valid_until, 'Infinity') AS holds_until, coalesce(ended_at, 'Infinity') AS replaced_at
FROM version JOIN {table} AS vectors USING (version) WHERE {recallable}"""


class PostgresBank:
    """A path that keeps items in a ledger on a PostgreSQL server and finds them by meaning, with pgvector.

    Any number of processes on any number of machines may have such a bank on one server, all of them writing: each sees
    what the others have written at its next call. They need the same encoder; banks with another one have vectors of
    their own on the same items.

    Every search compares with all items that hold (there is no approximate index), so that nothing near is missed and a
    question takes time in proportion to them.

    Args:
        lm: The language model that answers. It is not touched.
        ledger: On a server: `Ledger("postgresql://...")`.
        encoder: What turns texts into vectors.
        name: The bank's place in the ledger.
        top_k: Most items to offer for a query.
        diversity: In [0, 1]: how much a candidate's likeness to those chosen before it counts against it (MMR); with 1
            nothing else counts but for the first, which is the best.
        threshold: Least cosine of what is offered, in [-1, 1]; None: whatever is nearest.

    Raises:
        ValueError: An option out of its range, an empty name, or a ledger that is not on a server.
        LedgerError: The server has no pgvector, and this user may not install it.
        ImportError: langchain-postgres is not installed.
    """

    capabilities = Capabilities(changes_weights=False, forgets=True, namespaces=True)

    def __init__(
        self,
        lm: Any,
        ledger: Ledger,
        encoder: Encoder,
        *,
        name: str = "postgres",
        top_k: int = 8,
        diversity: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        check_place(name)
        check_threshold(threshold)
        check_search(top_k, diversity)
        self.name = name
        self.top_k, self.diversity, self.threshold = top_k, diversity, threshold
        self._ledger = ledger
        self._encoder = encoder
        self._guard = threading.RLock()
        self._closed = False
        self._fitting: dict[str, tuple[int, set[str]]] = {}
        self._vectors = _Vectors(ledger, encoder, name)
        try:
            self._position = self._fill()
        except BaseException:
            self._vectors.close()
            raise

    @property
    def ledger(self) -> Ledger:
        """Where the items are."""
        return self._ledger

    @property
    def encoder(self) -> Encoder:
        """What turns texts into this bank's vectors."""
        return self._encoder

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items; the server has synced them when this returns.

        Writing an id that is active with the same content changes nothing; an item with the key of another one
        supersedes it. Where the vectors could not be made the receipt is pending: the items are safe, and `flush` or
        the next reading, of whatever machine, makes them.

        Raises:
            ValueError: An id that is active with other content; nothing is stored then.
            LedgerError: The server cannot be reached; see there whether to repeat the call, which is always safe.
        """
        with self._opened():
            recorded = self._ledger.record(items, place=self.name, namespace=namespace)
            cost, pending = Cost(), False
            try:
                cost = self._catch_up(recorded.versions)
            except Exception as error:  # whatever an encoder may raise: the items are in the ledger
                _log.warning("bank %r could not make the vectors of its items yet: %s", self.name, error)
                pending = True
        return receipt(items, recorded, cost, pending)

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """A bank has room for everything."""
        with self._opened():
            pass

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """`search` as the bank was told to."""
        return self.search(queries)

    def search(
        self,
        queries: Sequence[Query],
        *,
        top_k: int | None = None,
        method: str = "dense",
        diversity: float | None = None,
        vectors: Vectors | None = None,
    ) -> list[Reading]:
        """The best items that hold for each query's namespace, time, kinds and metadata, best first.

        Filters come before the search: min(top_k, those that hold) items come back, less those under the `threshold`
        and those that another machine took away, or forgot, while they were fetched.
        Scores are cosines in [-1, 1]; with diversity the order is that of the choice, and scores need not fall.

        Args:
            queries: What is asked.
            top_k: Most items for a query, in place of the bank's own.
            method: "dense"; other methods need a `Bank`, which works on the same ledger.
            diversity: In place of the bank's own.
            vectors: What to search by in place of the queries' texts, float32 [len(queries), dimension] with rows of
                length 1.

        Raises:
            TypeError: Something else than queries, or an option of another type.
            ValueError: A query without a namespace, an option out of its range, vectors of another shape, or vectors
                that are not finite.
        """
        import numpy as np

        top_k = self.top_k if top_k is None else top_k
        diversity = self.diversity if diversity is None else diversity
        if method != "dense":
            raise ValueError(
                f"a bank on a server finds by meaning alone (dense), got {method!r}; path=rag has the others"
            )
        check_search(top_k, diversity)
        check_queries(queries, vectors, self._encoder.manifest.dimension)
        with self._opened():
            pass
        if not queries:
            return []
        encoding = [Usage()] * len(queries)
        if vectors is None:
            vectors, encoding = encoded_queries(self._encoder, queries)
        readings = []
        with self._opened():
            self._catch_up()
            for query, vector, encoded in zip(queries, vectors, encoding, strict=True):
                started = time.perf_counter()
                hits = self._hits(query, np.asarray(vector, np.float32), top_k, diversity)
                found = self._ledger.get(version for version, _ in hits)
                recalls = tuple(
                    Recall(found[version].item, score)
                    for version, score in hits
                    if version in found and self._is_here(found[version])
                )
                readings.append(Reading(recalls, Cost(encoded, Usage(seconds=time.perf_counter() - started))))
        return readings

    def get(self, ids: Sequence[str], namespace: str) -> dict[str, Knowledge]:
        """Those of these ids that are held and valid now."""
        with self._opened():
            return self._ledger.held(ids, place=self.name, namespace=namespace)

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids, what they replaced under the same id and what was merged into them, for questions
        about the past too.

        Where their vectors could not be removed the receipt is pending; the items are recalled no more all the same.
        """
        with self._opened():
            gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="forgotten")
            try:
                return Receipt(gone, self._catch_up())
            except Exception as error:
                _log.warning("bank %r could not remove the vectors of what is forgotten yet: %s", self.name, error)
                return Receipt(gone, pending=True)

    def beginning(self, prefix: str, namespace: str) -> list[Version]:
        """The versions whose ids begin so, in the order of writing: what is held, and what that replaced."""
        with self._opened():
            return self._ledger.beginning(prefix, place=self.name, namespace=namespace)

    def namespaces(self, prefix: str = "") -> tuple[str, ...]:
        """The namespaces that hold something whose id begins so, in alphabetical order."""
        with self._opened():
            return self._ledger.namespaces(place=self.name, holding=prefix)

    def items(self, namespace: str) -> list[Knowledge]:
        """What holds now, in the order of writing."""
        with self._opened():
            return self._ledger.active(place=self.name, namespace=namespace)

    def model(self, lm: Any) -> AbstractContextManager[Any]:
        """The given model, as it is."""
        with self._opened():
            return nullcontext(lm)

    def flush(self) -> None:
        """Make the vectors of what has none yet, whoever wrote it. No acknowledged item depends on it."""
        with self._opened():
            self._catch_up()

    def state_hash(self) -> str:
        """SHA-256 over the recallable items in order, how they stand, the encoder and the options, in hex."""
        with self._opened():
            options = [self.top_k, self.diversity, self.threshold]
            return state_hash(self._ledger, self.name, [self._encoder.manifest.to_dict(), options])

    def stored_bytes(self) -> int:
        """Bytes of the items and their vectors, without the encoder, which does not grow with them."""
        with self._opened():
            count = len(self._ledger.recallable(place=self.name))
            return count * (4 * self._encoder.manifest.dimension + 8) + self._ledger.stored_bytes(place=self.name)

    def save(self, folder: Path) -> None:
        """Make an empty folder. The items are the ledger's to save: `Ledger.save`; vectors are made again from them.

        Raises:
            FileExistsError: The folder is not empty.
        """
        folder = new_folder(folder)
        with self._opened():
            folder.mkdir(parents=True, exist_ok=True)

    def load(self, folder: Path) -> None:
        """Make the vectors of what the ledger, which has been restored, holds."""
        with self._opened():
            self._position = self._fill()

    def verify(self) -> list[str]:
        """Check the ledger, and the vectors against it; one line for each problem, none if all is well."""
        with self._opened():
            self._catch_up()
            problems = self._ledger.verify()
            missing, surplus = self._vectors.compared()
            problems += [f"version {version} has no vector" for version in missing]
            problems += [f"version {version} should have no vector" for version in surplus]
        return problems

    def close(self) -> None:
        """Let go of the server; the ledger stays open. Closing twice is harmless."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._vectors.close()

    def _is_here(self, entry: Version) -> bool:
        """Whether a version that a search has found may be recalled from this place still."""
        return entry.place == self.name and is_recallable(entry)

    def _fill(self) -> int:
        """Make every vector that is missing, remove what is left over; the position from which changes are to be
        followed."""
        position = self._ledger.position()
        missing, surplus = self._vectors.compared()
        self._vectors.remove(surplus)
        self._make(list(self._ledger.get(missing).values()))
        return position

    def _catch_up(self, known: Sequence[Version] = ()) -> Cost:
        """Follow what any machine has written since. Interrupted anywhere, it can be done again."""
        entries, position = self._ledger.changed(place=self.name, after=self._position, known=known)
        if position == self._position:
            return Cost()
        self._vectors.remove([entry.version for entry in entries if not is_recallable(entry)])
        wanted = [entry for entry in entries if is_recallable(entry)]
        mine = {entry.version for entry in known}
        there = self._vectors.among([entry.version for entry in wanted if entry.version not in mine])
        cost = self._make([entry for entry in wanted if entry.version not in there])
        self._position = position
        return cost

    def _make(self, entries: Sequence[Version]) -> Cost:
        from tqdm import tqdm

        cost = Cost()
        with tqdm(total=len(entries), unit=" items", disable=None if len(entries) > AT_A_TIME else True) as bar:
            for start in range(0, len(entries), AT_A_TIME):
                part = entries[start : start + AT_A_TIME]
                vectors, encoding = encoded_items(self._encoder, [entry.item for entry in part])
                started = time.perf_counter()
                self._vectors.add([entry.version for entry in part], vectors)
                storing = Usage(seconds=time.perf_counter() - started, bytes=int(vectors.nbytes))
                cost += Cost(encoder=encoding, index=storing)
                bar.update(len(part))
        return cost

    def _hits(self, query: Query, vector: Vectors, top_k: int, diversity: float) -> list[tuple[int, float]]:
        import numpy as np

        wanted = self._wanted(query)
        if wanted is None:
            return []
        count = candidates(top_k) if diversity else top_k
        hits = self._vectors.nearest(vector, count, wanted)
        if self.threshold is not None:
            hits = [hit for hit in hits if hit[1] >= self.threshold]
        if not diversity:
            return hits
        found = self._vectors.get([version for version, _ in hits])
        hits = [hit for hit in hits if hit[0] in found]
        near = np.array([found[version] for version, _ in hits], np.float32).reshape(-1, len(vector))
        return [hits[place] for place in diverse(vector, near, top_k, diversity)]

    def _wanted(self, query: Query) -> list[dict[str, Any]] | None:
        """What must be true of an item, for langchain-postgres; None: nothing can be found."""
        wanted: list[dict[str, Any]] = [{"place": self.name}, {"namespace": query.namespace}]
        if query.as_of is None:
            now = self._ledger.now()
            wanted += [{"held": True}, {"holds_from": {"$lte": now}}]
        else:
            now = float(query.as_of)
            wanted += [{"known_from": {"$lte": now}}]
        wanted += [{"holds_until": {"$gt": now}}, {"replaced_at": {"$gt": now}}]
        if query.kinds:
            wanted.append({"kind": {"$in": list(query.kinds)}})
        if query.where:
            fits = self._fits(query)
            if not fits:
                return None
            wanted.append({"number": {"$in": list(fits)}})  # words, for PostgreSQL hashes a list of its column's type
        return wanted

    def _fits(self, query: Query) -> set[str]:
        """The numbers of the versions whose metadata a query admits. Contents never change, so that only new versions
        are looked at."""
        group = json.dumps([query.namespace, dict(query.where)], sort_keys=True, default=list)
        after, fits = self._fitting.pop(group, (0, set()))
        admits = replace(query, kinds=()).admits
        told = self._ledger.metadata(after + 1, LAST_VERSION, place=self.name, namespace=query.namespace)
        fits |= {str(version) for version, metadata in told.items() if admits("fact", metadata)}
        self._fitting[group] = (max(told, default=after), fits)
        while len(self._fitting) > FILTERS_KEPT:
            del self._fitting[next(iter(self._fitting))]
        return fits

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise RuntimeError(f"bank {self.name!r} is closed; open a new one on the same ledger")
            yield


class _Vectors:
    """The vectors of one place by one encoder: a table, and the view in which the ledger says which of them count.

    The table has no texts, so that nothing of a forgotten item but a vector can be left in it, by a machine that was
    killed while others forgot; the next bank to be opened removes that too.
    """

    def __init__(self, ledger: Ledger, encoder: Encoder, place: str) -> None:
        try:
            from langchain_postgres import Column, PGEngine, PGVectorStore
            from sqlalchemy.exc import DBAPIError
        except ImportError as error:
            raise ImportError("a bank on a PostgreSQL server needs: pip install 'memory_paths[postgres]'") from error
        from memory_paths.postgres import JSON, PostgresDatabase

        from .langchain import EncoderEmbeddings

        database = ledger.database
        if not isinstance(database, PostgresDatabase):
            raise ValueError(
                f"this bank keeps its vectors beside the ledger on a server, and the ledger is {ledger.file}; set"
                " ledger=postgresql://USER@HOST:PORT/DATABASE (a saved agent comes back by build.restore, into one on"
                " an empty schema)"
            )
        self._ledger, self._database, self._place = ledger, database, place
        self._failure: type[Exception] = DBAPIError
        described = json.dumps([place, encoder.manifest.to_dict()], sort_keys=True)
        self._table = f"vectors_{_short_hash(described)}"
        definition = _VIEW.format(table=self._table, item=JSON.format("version.content"), recallable=RECALLABLE)
        view = f"recallable_{_short_hash(definition)}"  # so that another release may have another view
        self._engine = PGEngine.from_connection_string(
            "postgresql+psycopg://", connect_args=database.connection, pool_pre_ping=True
        )
        columns: dict[str, Any] = {
            "schema_name": database.schema,
            "content_column": "content",
            "embedding_column": "embedding",
        }
        try:
            with database.writing():  # others who open the bank for the first time wait until all of it is there
                if not self._is_there(self._table):
                    self._engine.init_vectorstore_table(
                        self._table,
                        encoder.manifest.dimension,
                        id_column=Column("version", "BIGINT", nullable=False),
                        store_metadata=False,
                        **columns,
                    )
                if not self._is_there(view):
                    database.query(f"CREATE VIEW {view} AS {definition}")
            embeddings = EncoderEmbeddings(encoder)
            self._store, self._searched = (
                PGVectorStore.create_sync(self._engine, embeddings, table, id_column="version", **columns)
                for table in (self._table, view)
            )
        except DBAPIError as error:
            self.close()
            raise LedgerError(
                f"{database.name} cannot keep vectors: {error.orig}; it needs pgvector, installed by somebody who may:"
                " CREATE EXTENSION vector"
            ) from error
        except BaseException:
            self.close()
            raise

    def add(self, versions: Sequence[int], vectors: Vectors) -> None:
        """Store vectors, float32 [len(versions), dimension], of those that have none."""
        # One transaction for all, where `PGVectorStore.add_embeddings` makes one for each.
        rows = [(version, "", str(vector.tolist())) for version, vector in zip(versions, vectors, strict=True)]
        self._database.insert(self._table, rows, 3, unless_there=True)

    def remove(self, versions: Sequence[int]) -> None:
        """Those that are not there are ignored."""
        for start in range(0, len(versions), AT_A_TIME):
            with self._explained():
                self._store.delete(list(versions[start : start + AT_A_TIME]))

    def among(self, versions: Sequence[int]) -> set[int]:
        """Those of these versions that have a vector."""
        found: set[int] = set()
        for start in range(0, len(versions), AT_A_TIME):
            part = [str(version) for version in versions[start : start + AT_A_TIME]]
            with self._explained():
                found |= {int(str(one.id)) for one in self._store.get_by_ids(part)}
        return found

    def get(self, versions: Sequence[int]) -> dict[int, list[float]]:
        """The vectors of those of these versions that have one."""
        marks = ", ".join("?" * len(versions)) or "NULL"
        statement = f"SELECT version, embedding::text AS vector FROM {self._table} WHERE version IN ({marks})"
        return {row["version"]: json.loads(row["vector"]) for row in self._database.query(statement, *versions)}

    def compared(self) -> tuple[list[int], list[int]]:
        """The versions that lack a vector, and those that have one and should not."""
        wanted = set(self._ledger.recallable(place=self._place))
        stored = {row["version"] for row in self._database.query(f"SELECT version FROM {self._table}")}
        return sorted(wanted - stored), sorted(stored - wanted)

    def nearest(self, vector: Vectors, count: int, wanted: list[dict[str, Any]]) -> list[tuple[int, float]]:
        """The nearest versions of which all that is wanted is true, with their cosines, best first; the earlier version
        among equals."""
        asked = count + 1
        while True:  # the server chooses among equals as it likes: all that are as near as the last one are looked at
            with self._explained():
                found = self._searched.similarity_search_with_score_by_vector(
                    vector.tolist(), k=asked, filter={"$and": wanted}
                )
            if len(found) < asked or found[-1][1] > found[count - 1][1]:
                break
            asked *= WIDER
        hits = [(int(str(document.id)), min(1.0, max(-1.0, 1.0 - distance))) for document, distance in found]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:count]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise LedgerError(f"{self._database.name}: {getattr(error, 'orig', error)}; ask again") from error

    def _is_there(self, name: str) -> bool:
        return self._database.query("SELECT to_regclass(?) IS NOT NULL AS there", name)[0]["there"] is True

    def close(self) -> None:
        """Let go of the server."""
        # The caller's thread may run an event loop of its own, in which this cannot be waited for.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, self._engine.close()).result()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
