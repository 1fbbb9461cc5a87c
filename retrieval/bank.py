"""The bank path: items stay outside the model; for a question, the best of them are found and shown.

The ledger is the truth. The bank replays it into rows, vectors and words, filters every search by what the ledger says
holds, and fetches the texts from the ledger: an index that lags, is damaged or is lost costs time and never an answer.
This file knows nothing of prompts, scoring or weights.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from memory_paths.ledger import ERASED, Ledger, Version
from memory_paths.types import (
    Capabilities,
    Cost,
    Knowledge,
    KnowledgeKind,
    Query,
    Reading,
    Recall,
    Receipt,
    Usage,
)

from .encoder import Encoder
from .fusion import diverse, fuse
from .generation import Buffer, Manifest, Part, load_generation, save_generation
from .held import (
    candidates,
    check_place,
    check_queries,
    check_search,
    check_threshold,
    encoded_items,
    encoded_queries,
    found_by,
    new_folder,
    receipt,
    state_hash,
)
from .index import SEGMENT, VectorIndex
from .metadata import Metadata
from .reranking import Reranker, reranked
from .rows import Rows, is_recallable
from .words import Words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Vectors = NDArray[np.float32]

_log = logging.getLogger(__name__)

Method = Literal["auto", "dense", "bm25", "fusion"]
# Of these kinds the fusion finds more than vectors alone, or as much (notebooks/results/bank_streams.md); of short
# facts about near names it puts fewer first.
TOLD_AT_LENGTH: tuple[KnowledgeKind, ...] = ("passage", "episode")

SNAPSHOT_FROM = 4096  # rows; from here on the index is also saved each time it has doubled
FILTERS_KEPT = 64
MOST_GONE = 0.1  # of all rows: so many that nobody may recall stay where they are, emptied


@dataclass(frozen=True)
class _Filter:
    """The rows that may be recalled at a position of the ledger, while the clock is in [since, until)."""

    allowed: Mask
    position: int
    since: float
    until: float
    at_length: float  # the share of them that is `TOLD_AT_LENGTH`


class Bank:
    """A path that keeps items in the ledger and finds them again by meaning, by their words, or by both.

    Threads may share it. So may processes: each opens the same ledger and, if it likes, the same folder, and sees what
    the others have written.

    Args:
        lm: The language model that answers. It is not touched.
        ledger: Where the items are.
        encoder: What turns texts into vectors.
        name: The bank's place in the ledger.
        folder: Where snapshots of the index are kept. None: the index is made anew from the ledger whenever the bank is
            opened.
        top_k: Most items to offer for a query.
        method: "dense" (by cosine), "bm25" (by shared words), "fusion" (both, by reciprocal rank over the union), or
            "auto": fusion where most of what a query may find are passages and episodes, else dense.
        diversity: In [0, 1]: how much a candidate's likeness to those chosen before it counts against it (MMR); with 1
            nothing else counts but for the first, which is the best.
        reranker: What puts the best candidates of the method, 4 top_k and at least 32, into their final order; None:
            the method's order holds.
        threshold: Least cosine of what is offered, in [-1, 1]; None: whatever is nearest.
        exact_until: Most items that are all compared with a query. Beyond that, inverted lists are made, which takes
            minutes for a million items, and a search then may miss one of the nearest in a hundred. A bank with a
            folder makes them in a thread, when it is opened without them or saves itself while it is written to, and
            compares every item until they are there; `flush`, `save` and `close` wait for them. One without a folder
            makes them in `flush`.

    Raises:
        ValueError: An option out of its range, an empty name, a folder beside a ledger that is in memory, or diversity
            beside a reranker: either decides on the order.
    """

    capabilities = Capabilities(changes_weights=False, forgets=True, namespaces=True)

    def __init__(
        self,
        lm: Any,
        ledger: Ledger,
        encoder: Encoder,
        *,
        name: str = "rag",
        folder: str | Path | None = None,
        top_k: int = 8,
        method: Method = "auto",
        diversity: float = 0.0,
        threshold: float | None = None,
        reranker: Reranker | None = None,
        exact_until: int = 200_000,
    ) -> None:
        if folder is not None and ledger.file == ":memory:":
            raise ValueError(
                f"folder {str(folder)!r} keeps the index alone, and the ledger, which holds the items, is in memory;"
                " set ledger=FILE too"
            )
        check_place(name)
        check_threshold(threshold)
        if exact_until < 1:
            raise ValueError(f"exact_until must be at least 1, got {exact_until}")
        _check_search(top_k, method, diversity, reranker)
        self.name = name
        self.top_k, self.method, self.diversity, self.threshold = top_k, method, diversity, threshold
        self._exact_until = exact_until
        self._ledger = ledger
        self._encoder = encoder
        self.reranker = reranker
        self._folder = None if folder is None else Path(folder)
        self._guard = threading.RLock()
        self._lists_maker: threading.Thread | None = None
        self._closed = False
        self._saved_position = -1
        self._start_anew()
        self._open(self._folder)

    @property
    def ledger(self) -> Ledger:
        """Where the items are."""
        return self._ledger

    @property
    def encoder(self) -> Encoder:
        """What turns texts into this bank's vectors."""
        return self._encoder

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items; they are on disk, if the ledger is in a file, when this returns.

        Writing an id that is active with the same content changes nothing; an item with the key of another one
        supersedes it. `details` of the receipt names the ids that were new and those that were superseded. Where the
        encoder fails the receipt is pending: the items are safe, and `flush` or the next reading encodes them.

        Raises:
            ValueError: An id that is active with other content; nothing is stored then.
            LedgerError: The disk is full; nothing is stored then.
        """
        with self._opened():
            recorded = self._ledger.record(items, place=self.name, namespace=namespace)
            cost, pending = self._catch_up_if_possible(recorded.versions)
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
        method: Method | None = None,
        diversity: float | None = None,
        vectors: Vectors | None = None,
    ) -> list[Reading]:
        """The best items that hold for each query's namespace, time, kinds and metadata, best first.

        Filters come before the search: min(top_k, those that hold) items come back, less those under the `threshold`;
        with "bm25" those that share a word with the query. Scores are cosines in [-1, 1] ("dense"), BM25 scores, or
        sums of reciprocal ranks ("fusion"), or the reranker's. With diversity the order is that of the choice, and
        scores need not fall.
        Queries are encoded together; each reading carries its own tokens and its share of the time.

        Args:
            queries: What is asked.
            top_k: Most items for a query, and so on: in place of the bank's own options.
            method: See `Bank`.
            diversity: See `Bank`.
            vectors: What to search by in place of the queries' texts, float32 [len(queries), dimension] with rows of
                length 1; words are still those of the texts.

        Raises:
            TypeError: Something else than queries, or an option of another type.
            ValueError: A query without a namespace, an option out of its range, or vectors of another shape or that are
                not finite.
        """
        import numpy as np

        top_k = self.top_k if top_k is None else top_k
        method = self.method if method is None else method
        diversity = self.diversity if diversity is None else diversity
        _check_search(top_k, method, diversity, self.reranker)
        check_queries(queries, vectors, self._encoder.manifest.dimension)
        with self._opened():
            pass
        if not queries:
            return []
        encoding = [Usage()] * len(queries)
        if vectors is None and (method != "bm25" or diversity or self.threshold is not None):
            vectors, encoding = encoded_queries(self._encoder, queries)
        wanted = top_k if self.reranker is None else candidates(top_k)
        readings = []
        with self._opened(), self._caught_up():
            for row, query in enumerate(queries):
                started = time.perf_counter()
                standing = self._standing(query)
                allowed = standing.allowed & self._fits(query) if query.where else standing.allowed
                vector = None if vectors is None else vectors[row : row + 1]
                chosen = method
                if method == "auto":
                    chosen = "fusion" if standing.at_length > 0.5 else "dense"
                if chosen != "dense":
                    self._learn_words()
                hits = self._hits(query.text, vector, allowed, wanted, chosen, diversity)
                found = self._ledger.get(int(self._rows.versions[hit]) for hit, _ in hits)
                recalls = tuple(
                    Recall(entry.item, score) for entry, (_, score) in zip(found.values(), hits, strict=True)
                )
                among = 0 if chosen == "bm25" else self._vectors.compared(int(np.count_nonzero(allowed)), wanted)
                values = among * self._vectors.dimension
                searching = Usage(flops=2.0 * values, seconds=time.perf_counter() - started, bytes=4 * values)
                readings.append(Reading(recalls, Cost(encoder=encoding[row], index=searching)))
        return readings if self.reranker is None else self._reranked(self.reranker, queries, readings, top_k)

    def _reranked(
        self, reranker: Reranker, queries: Sequence[Query], readings: Sequence[Reading], top_k: int
    ) -> list[Reading]:
        judged = []
        for query, reading in zip(queries, readings, strict=True):
            recalls, usage = reranked(reranker, query.text, reading.recalls, top_k)
            judged.append(replace(reading, recalls=recalls, cost=reading.cost + Cost(encoder=usage)))
        return judged

    def get(self, ids: Sequence[str], namespace: str) -> dict[str, Knowledge]:
        """Those of these ids that are held and valid now."""
        with self._opened():
            return self._ledger.held(ids, place=self.name, namespace=namespace)

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids, what they replaced under the same id and what was merged into them, for questions
        about the past too."""
        with self._opened():
            gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="forgotten")
            return Receipt(gone, *self._catch_up_if_possible())

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
        """Save the index, so that the next opening need not encode, with inverted lists where there are many items. No
        acknowledged item depends on it.

        Raises:
            OSError: The disk is full; the snapshot before is still there, and the ledger has everything.
        """
        self._wait_for_lists()
        with self._opened():
            self._catch_up()
            self._save()

    def state_hash(self) -> str:
        """SHA-256 over the recallable items in order, how they stand, the encoder and the options, in hex.

        Dates of recording are left out, so that two runs that did the same have the same hash.
        """
        with self._opened():
            options: list[Any] = [self.top_k, self.method, self.diversity, self.threshold]
            options += [] if self.reranker is None else [self.reranker.name]
            return state_hash(self._ledger, self.name, [self._encoder.manifest.to_dict(), options])

    def stored_bytes(self) -> int:
        """Bytes of the items, their vectors and how they stand, without the encoder, which does not grow with them."""
        with self._opened():
            self._catch_up()
            recallable = len(self._rows) - int(self._rows.gone.sum())
            return recallable * (4 * self._vectors.dimension + 8) + self._ledger.stored_bytes(place=self.name)

    def save(self, folder: Path) -> None:
        """Write the index into an empty or missing folder. The items are the ledger's to save: `Ledger.save`.

        Raises:
            FileExistsError: The folder is not empty.
            OSError: The disk is full.
        """
        folder = new_folder(folder)
        self._wait_for_lists()
        with self._opened():
            self._catch_up()
            self._snapshot(folder)

    def load(self, folder: Path) -> None:
        """Take the index from a folder and replay what the ledger has had since.

        Where the index is missing, damaged, or of another encoder or ledger, it is made anew, which only takes longer.
        """
        with self._opened():
            self._start_anew()
            self._open(Path(folder))
            self._saved_position = -1

    def verify(self) -> list[str]:
        """Check the ledger, and the index against it; one line for each problem, none if all is well."""
        with self._opened(), self._caught_up():
            problems = self._ledger.verify()
            stored = set(self._rows.versions[~self._rows.gone].tolist())
            wanted = set(self._ledger.recallable(place=self.name))
            problems += [f"version {version} is not in the index" for version in sorted(wanted - stored)]
            problems += [f"version {version} should not be in the index" for version in sorted(stored - wanted)]
            for namespace in self._ledger.namespaces(place=self.name):
                allowed, _ = self._rows.standing(namespace, now=self._ledger.now())
                standing = self._ledger.standing(place=self.name, namespace=namespace)
                if tuple(self._rows.versions[allowed].tolist()) != standing.versions:
                    problems.append(f"the index and the ledger do not agree on what holds in {namespace!r}")
            if len(self._vectors) != len(self._rows):
                problems.append(f"the index has {len(self._vectors)} vectors for {len(self._rows)} rows")
            if self._words is not None and len(self._words) != len(wanted):
                problems.append(f"the index has the words of {len(self._words)} texts, and there are {len(wanted)}")
        return problems

    def close(self) -> None:
        """Save the index; the ledger stays open. Closing twice is harmless."""
        self._wait_for_lists()
        with self._guard:
            if self._closed:
                return
            try:
                if self._folder is not None:
                    self.flush()
            except OSError as error:  # the ledger has everything: the next opening only takes longer
                _log.warning("bank %r was closed without a snapshot of its index: %s", self.name, error)
            finally:
                self._closed = True

    def _start_anew(self) -> None:
        self._rows, self._vectors = Rows(), VectorIndex(self._encoder.manifest.dimension)
        self._words: Words | None = None
        self._position, self._saved_position, self._unsaved = 0, -1, 0
        self._filters: OrderedDict[Query, _Filter] = OrderedDict()
        self._metadata = Metadata()
        self._fitting: OrderedDict[str, Mask] = OrderedDict()

    def _open(self, folder: Path | None) -> None:
        import numpy as np

        if folder is not None:
            try:
                self._adopt(folder)
            except (FileNotFoundError, ValueError) as error:
                if any(folder.glob("*")):  # in an empty folder there is nothing to be missing
                    _log.warning("bank %r makes its index anew from the ledger: %s", self.name, error)
                self._start_anew()
        self._saved_position = self._position if len(self._rows) else -1
        with self._caught_up():
            recallable = self._ledger.recallable(place=self.name)
            whole = np.array_equal(self._rows.versions[~self._rows.gone], recallable)
        if not whole:
            _log.warning("bank %r makes its index anew: it did not hold what the ledger holds", self.name)
            self._start_anew()
            self._catch_up()
        self._begin_lists()  # whoever wrote may have ended before they were made

    def _adopt(self, folder: Path) -> None:
        import numpy as np

        manifest, parts = load_generation(folder)
        self._check_manifest(folder, manifest)
        self._rows = Rows(parts["rows"].data, manifest.namespaces)
        self._vectors = VectorIndex(self._encoder.manifest.dimension, parts)
        self._words = Words(parts["words"].data) if "words" in parts else None
        recallable = np.count_nonzero(~self._rows.gone)
        if len(self._vectors) != len(self._rows) or (self._words is not None and len(self._words) != recallable):
            raise ValueError(f"{folder} is damaged: its parts do not have the same number of rows")
        self._position = manifest.position

    def _check_manifest(self, folder: Path, manifest: Manifest) -> None:
        if manifest.encoder != self._encoder.manifest.to_dict():
            raise ValueError(
                f"{folder} was made by encoder {manifest.encoder}, and this bank has"
                f" {self._encoder.manifest.to_dict()}; their vectors cannot be compared"
            )
        if manifest.place != self.name:
            raise ValueError(f"{folder} belongs to {manifest.place!r}, and this bank is {self.name!r}")
        if self._ledger.fingerprint(manifest.position) != manifest.fingerprint:
            raise ValueError(f"{folder} was made from another ledger than {self._ledger.file}")

    def _catch_up(self, known: Sequence[Version] = ()) -> Cost:
        """Replay what the ledger has had since, of which some may be at hand. Interrupted anywhere, it can be done
        again."""
        entries, position = self._ledger.changed(place=self.name, after=self._position, known=known)
        return Cost() if position == self._position else self._replay(entries, position)

    def _catch_up_if_possible(self, known: Sequence[Version] = ()) -> tuple[Cost, bool]:
        """What it cost, and whether it is still to be done: what the ledger has acknowledged must not look lost."""
        try:
            return self._catch_up(known), False
        except Exception as error:
            _log.warning("bank %r could not make the vectors of its items yet: %s", self.name, error)
            return Cost(), True

    @contextmanager
    def _caught_up(self) -> Iterator[None]:
        """The bank and all that is read of the ledger are of one moment, whoever writes meanwhile."""
        while True:
            self._catch_up()
            with self._ledger.moment():
                if self._ledger.position() == self._position:
                    yield
                    return

    def _replay(self, entries: Sequence[Version], position: int) -> Cost:
        """Take over how versions stand, given in order."""
        import numpy as np

        last = int(self._rows.versions[-1]) if len(self._rows) else 0
        fresh = [entry for entry in entries if entry.version > last and is_recallable(entry)]
        leaving = {entry.version: entry for entry in entries if entry.version <= last and not is_recallable(entry)}
        gone = [leaving[version] for version in self._rows.among(leaving)]
        vectors, encoding = encoded_items(self._encoder, [entry.item for entry in fresh])
        started = time.perf_counter()
        words, self._words = self._words, None  # should this be interrupted, they are made anew when they are needed
        self._vectors.truncate(len(self._rows))  # an interruption may have left surplus vectors
        self._vectors.add(vectors)
        if any(entry.text == ERASED for entry in gone):
            words = None  # they can be let go of by their text alone, and that was erased
        if words is not None:
            words.add((entry.version, found_by(entry.item)) for entry in fresh)
            words.remove((entry.version, found_by(entry.item)) for entry in gone)
        self._rows.update(entries)
        self._words, self._position = words, position
        self._unsaved += len(fresh)
        indexing = Usage(seconds=time.perf_counter() - started, bytes=int(np.asarray(vectors).nbytes))
        if self._folder is not None and self._unsaved >= max(SNAPSHOT_FROM, len(self._rows) // 2):
            self._snapshot_in_passing()
        return Cost(encoder=encoding, index=indexing)

    def _learn_words(self) -> None:
        """Make the index of words where nobody has asked for it before."""
        if self._words is not None:
            return
        words = Words()
        versions = self._rows.versions[~self._rows.gone]
        for start in range(0, len(versions), SNAPSHOT_FROM):
            found = self._ledger.get(versions[start : start + SNAPSHOT_FROM].tolist())
            words.add((version, found_by(entry.item)) for version, entry in found.items())
        self._words = words
        self._saved_position = -1

    def _hits(
        self, text: str, vector: Vectors | None, allowed: Mask, top_k: int, method: Method, diversity: float
    ) -> list[tuple[int, float]]:
        """Row numbers and scores."""
        import numpy as np

        if method == "dense" and not diversity:
            assert vector is not None, "a dense search has a vector"
            return self._above(self._vectors.search(vector, top_k, allowed)[0])
        count = candidates(top_k)
        by_meaning, by_words = [], []
        if method != "bm25":
            assert vector is not None, "a dense search has a vector"
            by_meaning = self._above(self._vectors.search(vector, count, allowed)[0])
        if method != "dense":
            assert self._words is not None, "words are learnt before they are searched"
            versions = self._rows.versions
            found = self._words.search(text, count, versions[allowed])
            by_words = [(int(np.searchsorted(versions, version)), score) for version, score in found]
            if self.threshold is not None and vector is not None:
                likeness = self._vectors.vectors([row for row, _ in by_words]) @ vector[0]
                by_words = [hit for hit, cosine in zip(by_words, likeness, strict=True) if cosine >= self.threshold]
        hits = fuse(by_meaning, by_words) if method == "fusion" else by_meaning or by_words
        if not diversity:
            return hits[:top_k]
        assert vector is not None, "diversity compares with a vector"
        rows = [row for row, _ in hits]
        chosen = diverse(vector[0], self._vectors.vectors(rows), top_k, diversity)
        return [hits[place] for place in chosen]

    def _above(self, hits: list[tuple[int, float]]) -> list[tuple[int, float]]:
        return hits if self.threshold is None else [hit for hit in hits if hit[1] >= self.threshold]

    def _save(self, *, in_passing: bool = False) -> None:
        if self._folder is None:
            if self._wants_lists():
                self._vectors.make_lists()
            return
        if self._saved_position == self._position and (in_passing or not self._wants_lists()):
            return
        parts = self._snapshot(self._folder, with_lists=not in_passing)
        self._vectors.rest_on(parts)  # after the snapshot, which may put another index in the place of this one
        self._saved_position, self._unsaved = self._position, 0

    def _snapshot_in_passing(self) -> None:
        try:
            self._save(in_passing=True)
        except OSError as error:
            self._unsaved = 0  # the items are acknowledged and safe; try again when as many more have come
            _log.warning("bank %r could not save its index: %s", self.name, error)
        self._begin_lists()

    def _begin_lists(self) -> None:
        if self._folder is not None and self._wants_lists() and self._lists_maker is None:
            self._lists_maker = threading.Thread(target=self._make_lists_apart, args=[self._vectors])
            self._lists_maker.start()

    def _wants_lists(self) -> bool:
        vectors = self._vectors
        return len(vectors) > self._exact_until and (vectors.is_exact or vectors.has_outgrown_its_lists)

    def _make_lists_apart(self, vectors: VectorIndex) -> None:
        try:
            vectors.make_lists_apart(self._guard, lambda: vectors is self._vectors and not self._closed)
        except Exception as error:
            _log.warning("bank %r could not make its lists, flush tries again: %s", self.name, error)
        with self._guard:
            self._lists_maker, self._saved_position = None, -1

    def _wait_for_lists(self) -> None:
        """Not under the guard, which the thread needs to hand the lists over."""
        maker = self._lists_maker
        if maker is not None:
            maker.join()

    def _snapshot(self, folder: Path, *, with_lists: bool = True) -> dict[str, Part]:
        self._compact()
        if self.method in ("bm25", "fusion"):
            self._learn_words()
        if with_lists and self._wants_lists():
            self._vectors.make_lists()
        parts: dict[str, Buffer | Part] = {"rows": self._rows.to_bytes(), **self._vectors.to_parts()}
        if self._words is not None:
            parts["words"] = self._words.to_bytes()
        return save_generation(
            folder,
            parts,
            place=self.name,
            position=self._position,
            fingerprint=self._ledger.fingerprint(self._position) or "",
            encoder=self._encoder.manifest.to_dict(),
            namespaces=list(self._rows.namespaces),
        )

    def _compact(self) -> None:
        """Let go of what no question may recall any more: nothing of it is written to disk.

        A few rows are emptied where they are; once there are many, the others move together, which writes all anew.
        """
        import numpy as np

        gone = self._rows.gone
        if np.count_nonzero(gone) <= MOST_GONE * len(gone):
            self._vectors.erase(np.flatnonzero(gone))
            return
        kept = VectorIndex(self._vectors.dimension)
        for start in range(0, len(gone), SEGMENT):
            kept.add(self._vectors.vectors(start + np.flatnonzero(~gone[start : start + SEGMENT])))
        self._vectors, self._rows, self._metadata = kept, self._rows.without(gone), Metadata()
        self._filters.clear()
        self._fitting.clear()

    def _standing(self, query: Query) -> _Filter:
        """The rows that a query may recall, but for what it says of metadata."""
        # The answer depends on nothing but these of a query.
        group = Query("", query.namespace, query.as_of, kinds=query.kinds)
        kept, now = self._filters.get(group), self._ledger.now()
        if kept is None or kept.position != self._position or not kept.since <= now < kept.until:
            allowed, until = self._rows.standing(query.namespace, now=now, as_of=query.as_of, kinds=query.kinds)
            kept = _Filter(allowed, self._position, now, until, self._rows.share(allowed, TOLD_AT_LENGTH))
        self._filters[group] = kept
        _keep_latest(self._filters, group)
        return kept

    def _fits(self, query: Query) -> Mask:
        """The rows whose metadata a query admits. Contents never change, so that only new rows are looked at."""
        group = json.dumps(dict(query.where), sort_keys=True, default=list)
        known = self._fitting.get(group)
        if known is None or len(known) < len(self._rows):
            while len(self._metadata) < len(self._rows):
                start = len(self._metadata)
                versions = self._rows.versions[start : start + SEGMENT].tolist()
                told = self._ledger.metadata(versions[0], versions[-1], place=self.name)
                self._metadata.extend(told.get(version, {}) for version in versions)
            known = self._metadata.fits(query.where)
        self._fitting[group] = known
        _keep_latest(self._fitting, group)
        return known

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise RuntimeError(f"bank {self.name!r} is closed; open a new one on the same ledger and folder")
            yield


def _keep_latest(kept: OrderedDict[Any, Any], key: Any) -> None:
    kept.move_to_end(key)
    while len(kept) > FILTERS_KEPT:
        kept.popitem(last=False)


def _check_search(top_k: int, method: str, diversity: float, reranker: Reranker | None) -> None:
    check_search(top_k, diversity)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if diversity and reranker is not None:
        raise ValueError(f"a reranker and diversity both decide on the order; take one of them, got {diversity}")
