"""Any LangChain VectorStore as a bank's index: Chroma, Qdrant, pgvector, whatever a house already runs.

The ledger is the truth. The store gets a document for each version and says which are near; what holds, whose it is
and every text come from the ledger. A store that lags, is lost or holds other documents too costs time and never a
wrong answer. This file knows nothing of prompts, scoring or weights.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.files import read_json, write_durably
from memory_paths.ledger import Change, Ledger
from memory_paths.types import Capabilities, Cost, Knowledge, Query, Reading, Recall, Receipt, Usage

from .held import check_place, check_queries, check_search, found_by, new_folder, receipt, state_hash

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import VectorStore

_log = logging.getLogger(__name__)

GONE = ("forgotten", "evicted", "moved")  # no question recalls these any more, whatever time it asks about
MARK = "memory_paths"  # in a document's metadata: which version of which ledger it is
POSITION = "position.json"
AT_A_TIME = 256  # documents sent to the store in one call
WIDER = 4  # times as many documents are asked for where too few of those that came may be shown
PROBES = 32  # documents looked for when a store is opened, to see whether it is the one that was closed


class VectorStorePath:
    """A path that keeps items in the ledger and finds them by a LangChain VectorStore.

    The store is searched without its own filters, wider and wider until there are enough items that may be shown: a
    store that returns all it has gives min(top_k, those that hold). Scores are 1 / rank, for what a store's own scores
    mean differs from store to store.

    Args:
        lm: The language model that answers. It is not touched.
        ledger: Where the items are.
        store: Any LangChain VectorStore, with ids and metadata. It is lent: close it after the path.
        name: The path's place in the ledger.
        folder: Where it is noted up to where the store has followed the ledger. None: whenever the path is opened,
            every item is sent to the store again, as a store in memory needs it.
        top_k: Most items to offer for a query.
        filter: Gives the store's own filter for a namespace, as `lambda namespace: {"namespace": namespace}`, the
            name in the metadata, where it helps a large store; None: no filter.

    Raises:
        ValueError: A `top_k` below 1, an empty name, or a folder beside a ledger that is in memory.
    """

    capabilities = Capabilities(changes_weights=False, forgets=True, namespaces=True)

    def __init__(
        self,
        lm: Any,
        ledger: Ledger,
        store: VectorStore,
        *,
        name: str = "vector_store",
        folder: str | Path | None = None,
        top_k: int = 8,
        filter: Callable[[str], Any] | None = None,
    ) -> None:
        check_search(top_k)
        check_place(name)
        if folder is not None and ledger.file == ":memory:":
            raise ValueError(
                f"folder {str(folder)!r} notes how far a ledger was followed that is gone; set ledger=FILE"
            )
        self.name = name
        self.top_k = top_k
        self._ledger = ledger
        self._store = store
        self._folder = None if folder is None else Path(folder)
        self._filter = filter
        self._guard = threading.RLock()
        self._numbers: dict[str, int] = {}  # the version that each document is
        self._position = 0
        self._root: str | None = None
        self._unsure = True  # whether the store may have got some of what it is to get next
        self._closed = False
        with self._guard:
            self._open()

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items; they are on disk, if the ledger is in a file, when this returns.

        Where the store cannot be reached the receipt is pending: the items are safe, and `flush` or the next reading
        sends them on.

        Raises:
            ValueError: An id that is active with other content; nothing is stored then.
            LedgerError: The disk is full; nothing is stored then.
        """
        with self._guard:
            self._check_open()
            recorded = self._ledger.record(items, place=self.name, namespace=namespace)
            cost, pending = Cost(), False
            try:
                cost = self._catch_up()
            except Exception as error:  # whatever a store may raise: the items are in the ledger
                _log.warning("path %r could not send items to its store yet: %s", self.name, error)
                pending = True
        return receipt(items, recorded, cost, pending)

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """There is room for everything."""
        self._check_open()

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """The nearest items that hold for each query's namespace, time, kinds and metadata, best first.

        Raises:
            TypeError: Something else than queries.
            ValueError: A query without a namespace.
        """
        check_queries(queries, None, 0)
        with self._guard:
            self._check_open()
            self._catch_up()
            return [self._reading(query) for query in queries]

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids, what they replaced under the same id and what was merged into them, in the ledger and
        in the store.

        Where the store cannot be reached the receipt is pending; the items are recalled no more all the same.
        """
        with self._guard:
            self._check_open()
            gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="forgotten")
            try:
                self._catch_up()
            except Exception as error:
                _log.warning("path %r could not remove items from its store yet: %s", self.name, error)
                return Receipt(gone, pending=True)
            return Receipt(gone)

    def items(self, namespace: str) -> list[Knowledge]:
        """What holds now, in the order of writing."""
        self._check_open()
        return self._ledger.active(place=self.name, namespace=namespace)

    def model(self, lm: Any) -> AbstractContextManager[Any]:
        """The given model, as it is."""
        self._check_open()
        return nullcontext(lm)

    def flush(self) -> None:
        """Send to the store what it has not got, and note up to where it has followed the ledger."""
        with self._guard:
            self._check_open()
            self._catch_up()
            if self._folder is not None:
                self._note(self._folder)

    def rebuild(self) -> None:
        """Remove from the store whatever this ledger ever sent there, and send what may be recalled anew."""
        with self._guard:
            self._check_open()
            self._send_anew()

    def verify(self) -> list[str]:
        """Check the ledger, and the store against it; one line for each problem, none if all is well."""
        with self._guard:
            self._check_open()
            self._catch_up()
            problems = self._ledger.verify()
            missing = self._missing(list(self._numbers))
        return problems + [f"version {self._numbers[document]} is not in the store" for document in missing]

    def state_hash(self) -> str:
        """SHA-256 over the recallable items in order, how they stand, the store's class and `top_k`, in hex."""
        self._check_open()
        return state_hash(self._ledger, self.name, [type(self._store).__qualname__, self.top_k])

    def stored_bytes(self) -> int:
        """Bytes of the items; what the store needs for them is its own to say."""
        self._check_open()
        return self._ledger.stored_bytes(place=self.name)

    def save(self, folder: Path) -> None:
        """Note in an empty or missing folder what the store holds. The items are the ledger's to save: `Ledger.save`.

        Raises:
            FileExistsError: The folder is not empty.
        """
        folder = new_folder(folder)
        with self._guard:
            self._check_open()
            self._catch_up()
            self._note(folder)

    def load(self, folder: Path) -> None:
        """Fill the store anew from the ledger, which has been restored; a saved folder holds no vectors."""
        self.rebuild()

    def close(self) -> None:
        """Note up to where the store has followed the ledger. Closing twice is harmless; the store stays open."""
        with self._guard:
            if self._closed:
                return
            try:
                self.flush()
            except Exception as error:  # the ledger has everything: the next opening only takes longer
                _log.warning("path %r was closed while its store lags: %s", self.name, error)
            finally:
                self._closed = True

    def _open(self) -> None:
        position = self._noted()
        if position is None:
            self._send_anew()
            return
        self._position = position
        known = self._ledger.recallable(place=self.name)
        behind = {change.version for change in self._ledger.changes(place=self.name, after=position)}
        self._numbers = {self._document_id(version): version for version in known if version not in behind}
        if self._missing(list(self._numbers)[-PROBES:]):
            _log.warning("path %r fills its store anew: it did not hold what it should", self.name)
            self._send_anew()
        else:
            self._catch_up()

    def _send_anew(self) -> None:
        ever = [change.version for change in self._ledger.changes(place=self.name) if change.action == "add"]
        for part in _parts([self._document_id(version) for version in ever]):
            self._store.delete(part)
        self._numbers, self._position, self._unsure = {}, 0, False
        self._catch_up()

    def _noted(self) -> int | None:
        """The position that the folder says the store has reached, or None where it does not speak of this ledger."""
        if self._folder is None or not (self._folder / POSITION).is_file():
            return None
        try:
            noted = read_json(self._folder / POSITION)
            if (noted["place"], noted["fingerprint"]) == (self.name, self._ledger.fingerprint(noted["position"])):
                return int(noted["position"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("path %r fills its store anew: %s", self.name, error)
        return None

    def _note(self, folder: Path) -> None:
        noted = {
            "place": self.name,
            "position": self._position,
            "fingerprint": self._ledger.fingerprint(self._position),
        }
        write_durably(folder / POSITION, json.dumps(noted, sort_keys=True).encode(), part="vector_store")

    def _catch_up(self) -> Cost:
        """Send the store what the ledger has had since. Interrupted anywhere, it can be done again."""
        position = self._ledger.position()
        if position == self._position:
            return Cost()
        added: dict[str, Change] = {}
        gone: set[str] = set()
        for change in self._ledger.changes(place=self.name, after=self._position):
            position = max(position, change.position)
            document = self._document_id(change.version)
            if change.action == "add":
                added[document] = change
            elif change.reason in GONE:
                gone.add(document)
        started = time.perf_counter()
        # Where a call failed halfway the store may hold what it is sent now, and not every store overwrites.
        leaving = [*gone, *added] if self._unsure else [document for document in gone if document in self._numbers]
        fresh = [id for id in added if id not in gone and (self._unsure or id not in self._numbers)]
        self._unsure = True
        for part in _parts(leaving):
            self._store.delete(part)
            for document in part:
                self._numbers.pop(document, None)
        for part in _parts(fresh):
            self._store.add_documents([_document(id, added[id]) for id in part], ids=part)
            self._numbers.update({id: added[id].version for id in part})
        self._position, self._unsure = position, False
        return Cost(index=Usage(seconds=time.perf_counter() - started))

    def _reading(self, query: Query) -> Reading:
        started = time.perf_counter()
        standing = set(self._ledger.standing(place=self.name, namespace=query.namespace, as_of=query.as_of).versions)
        limits = {} if self._filter is None else {"filter": self._filter(query.namespace)}
        wanted, asked, found = min(self.top_k, len(standing)), self.top_k, list[Knowledge]()
        while wanted:
            documents = self._store.similarity_search(query.text, k=asked, **limits)
            found = self._admitted(query, documents, standing)
            if len(found) >= wanted or len(documents) < asked:
                break
            asked *= WIDER
        recalls = tuple(Recall(item, 1.0 / rank) for rank, item in enumerate(found[:wanted], start=1))
        return Reading(recalls, Cost(index=Usage(seconds=time.perf_counter() - started)))

    def _admitted(self, query: Query, documents: Sequence[Document], standing: set[int]) -> list[Knowledge]:
        """What of the documents may be shown, with the ledger's word for what they say."""
        numbers = dict.fromkeys(self._numbers.get(str(document.metadata.get(MARK))) for document in documents)
        versions = self._ledger.get(number for number in numbers if number is not None and number in standing)
        return [one.item for one in versions.values() if query.admits(one.item.kind, one.item.metadata)]

    def _document_id(self, version: int) -> str:
        """A UUID, which every store takes for an id, that no other ledger's or path's version has."""
        if self._root is None:
            self._root = self._ledger.fingerprint(1)
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._root}/{self.name}/{version}"))

    def _missing(self, documents: Sequence[str]) -> list[str]:
        """Which of these the store has not got; none where it cannot say."""
        held: set[str | None] = set()
        try:
            for part in _parts(documents):
                held |= {one.id for one in self._store.get_by_ids(part)}
        except NotImplementedError:
            return []
        return [document for document in documents if document not in held]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"path {self.name!r} is closed; open a new one on the same ledger and store")


def _document(id: str, change: Change) -> Document:
    from langchain_core.documents import Document

    item = change.item
    return Document(page_content=found_by(item), metadata={MARK: id, "namespace": change.namespace})


def _parts(documents: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(documents), AT_A_TIME):
        yield list(documents[start : start + AT_A_TIME])
