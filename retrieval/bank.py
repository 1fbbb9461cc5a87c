"""The bank path: items stay outside the model; for a question, the nearest of them are found and shown.

The ledger is the truth. The bank replays it into vectors, filters every search by what the ledger says holds, and
fetches the texts from the ledger: an index that lags, is damaged or is lost costs time and never an answer. This file
knows nothing of prompts, scoring or weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.ledger import Ledger
from memory_paths.types import (
    Capabilities,
    Cost,
    Knowledge,
    Query,
    Reading,
    Recall,
    Receipt,
    Usage,
)

from .encoder import Encoder
from .index import FlatIndex, Manifest, load_generation, save_generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

GONE = ("forgotten", "evicted", "moved")  # no question recalls these any more, whatever time it asks about
SNAPSHOT_FROM = 4096  # vectors; from here on the index is also saved each time it has doubled
FILTERS_KEPT = 64


@dataclass(frozen=True)
class _Filter:
    """The versions that may be recalled at a position of the ledger, while the clock is in [since, until)."""

    allowed: NDArray[np.int64]
    position: int
    since: float
    until: float


class Bank:
    """A path that keeps items in the ledger and finds them again by meaning.

    Args:
        lm: The language model that answers. It is not touched.
        ledger: Where the items are.
        encoder: What turns texts into vectors.
        name: The bank's place in the ledger.
        folder: Where snapshots of the index are kept; one process at a time. None: the index is made anew from the
            ledger whenever the bank is opened.
        top_k: Most items to offer for a query.

    Raises:
        ValueError: A `top_k` below 1, an empty name, or a folder beside a ledger that is in memory.
        RuntimeError: Another bank uses the folder.
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
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if folder is not None and ledger.file == ":memory:":
            raise ValueError(
                f"folder {str(folder)!r} keeps the index alone, and the ledger, which holds the items, is in memory;"
                " set ledger=FILE too"
            )
        if not name:
            raise ValueError("a bank needs a name: it is its place in the ledger")
        self.name = name
        self.top_k = top_k
        self._ledger = ledger
        self._encoder = encoder
        self._folder = None if folder is None else Path(folder)
        self._guard = threading.RLock()
        self._filters: OrderedDict[tuple[str, float | None], _Filter] = OrderedDict()
        self._closed = False
        self._index, self._position = FlatIndex(encoder.manifest.dimension), 0
        self._saved_position, self._unsaved = -1, 0
        self._writer = None if self._folder is None else _lock(self._folder)
        try:
            self._open(self._folder)
        except BaseException:
            self._release()
            raise

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items; they are on disk, if the ledger is in a file, when this returns.

        Writing an id that is active with the same content changes nothing; an item with the key of another one
        supersedes it. `details` of the receipt names the ids that were new and those that were superseded.

        Raises:
            ValueError: An id that is active with other content; nothing is stored then.
            LedgerError: The disk is full; nothing is stored then.
        """
        with self._guard:
            self._check_open()
            recorded = self._ledger.record(items, place=self.name, namespace=namespace)
            cost = self._catch_up()
        details = {
            "written": tuple(item.id for item in recorded.written),
            "superseded": recorded.superseded,
        }
        return Receipt(ids=tuple(item.id for item in items), cost=cost, details=details)

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """A bank has room for everything."""
        self._check_open()

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """The nearest items that hold for each query's namespace and time, best first: min(top_k, those that hold).

        Scores are cosines in [-1, 1]. Queries are encoded together; each reading carries its own tokens and its
        share of the time.
        """
        self._check_open()
        if not queries:
            return []
        texts = [query.text for query in queries]
        started = time.perf_counter()
        vectors = self._encoder.encode_queries(texts)
        encoding = self._encoding(texts, time.perf_counter() - started)
        groups: defaultdict[tuple[str, float | None], list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            groups[query.namespace, query.as_of].append(row)
        readings: dict[int, Reading] = {}
        with self._guard:
            self._check_open()
            self._catch_up()
            for (namespace, as_of), rows in groups.items():
                started = time.perf_counter()
                allowed = self._allowed(namespace, as_of)
                hits = self._index.search(vectors[rows], self.top_k, allowed)
                found = self._ledger.get({version for row in hits for version, _ in row})
                seconds = (time.perf_counter() - started) / len(rows)
                searching = Usage(
                    flops=2.0 * len(allowed) * self._index.dimension,
                    seconds=seconds,
                    bytes=4 * len(allowed) * self._index.dimension,
                )
                for row, row_hits in zip(rows, hits, strict=True):
                    recalls = tuple(Recall(found[version].item, score) for version, score in row_hits)
                    readings[row] = Reading(recalls, Cost(encoder=encoding[row], index=searching))
        return [readings[row] for row in range(len(queries))]

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids and what they replaced under the same id, for questions about the past too."""
        with self._guard:
            self._check_open()
            gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="forgotten")
            self._catch_up()
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
        """Save the index, so that the next opening need not encode. No acknowledged item depends on it.

        Raises:
            OSError: The disk is full; the snapshot before is still there, and the ledger has everything.
        """
        with self._guard:
            self._check_open()
            self._catch_up()
            if self._folder is not None and self._saved_position != self._position:
                self._snapshot(self._folder)
                self._saved_position, self._unsaved = self._position, 0

    def state_hash(self) -> str:
        """SHA-256 over the recallable items in order, how they stand, the encoder and `top_k`, in hex.

        Dates of recording are left out, so that two runs that did the same have the same hash.
        """
        self._check_open()
        digest = hashlib.sha256(json.dumps([self._encoder.manifest.to_dict(), self.top_k], sort_keys=True).encode())
        for version in self._ledger.get(self._ledger.recallable(place=self.name)).values():
            digest.update(json.dumps([version.namespace, version.reason, version.item.content_hash()]).encode())
        return digest.hexdigest()

    def stored_bytes(self) -> int:
        """Bytes of the items and their vectors, without the encoder, which does not grow with them."""
        with self._guard:
            self._check_open()
            self._catch_up()
            vectors = len(self._index) * (4 * self._index.dimension + 8)
        return vectors + self._ledger.stored_bytes(place=self.name)

    def save(self, folder: Path) -> None:
        """Write the index into an empty or missing folder. The items are the ledger's to save: `Ledger.save`.

        Raises:
            FileExistsError: The folder is not empty.
            OSError: The disk is full.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not an empty folder; save the bank into a new one")
        with self._guard:
            self._check_open()
            self._catch_up()
            self._snapshot(folder)

    def load(self, folder: Path) -> None:
        """Take the index from a folder and replay what the ledger has had since.

        Where the index is missing, damaged, or of another encoder or ledger, it is made anew, which only takes longer.
        """
        with self._guard:
            self._check_open()
            self._index, self._position = FlatIndex(self._encoder.manifest.dimension), 0
            self._filters.clear()
            self._open(Path(folder))
            self._saved_position = -1

    def verify(self) -> list[str]:
        """Check the ledger, and the index against it; one line for each problem, none if all is well."""
        with self._guard:
            self._check_open()
            self._catch_up()
            problems = self._ledger.verify()
            stored = set(self._index.ids())
            wanted = set(self._ledger.recallable(place=self.name))
        problems += [f"version {version} is not in the index" for version in sorted(wanted - stored)]
        problems += [f"version {version} should not be in the index" for version in sorted(stored - wanted)]
        return problems

    def close(self) -> None:
        """Save the index and release the folder; the ledger stays open. Closing twice is harmless."""
        with self._guard:
            if self._closed:
                return
            try:
                self.flush()
            except OSError as error:  # the ledger has everything: the next opening only takes longer
                _log.warning("bank %r was closed without a snapshot of its index: %s", self.name, error)
            finally:
                self._closed = True
                self._release()

    def _open(self, folder: Path | None) -> None:
        if folder is not None:
            try:
                self._adopt(folder)
            except FileNotFoundError:
                pass
            except ValueError as error:
                _log.warning("bank %r makes its index anew from the ledger: %s", self.name, error)
        self._saved_position = self._position if len(self._index) else -1
        self._catch_up()
        if self._index.ids() != list(self._ledger.recallable(place=self.name)):
            _log.warning("bank %r makes its index anew: it did not hold what the ledger holds", self.name)
            self._index, self._position = FlatIndex(self._encoder.manifest.dimension), 0
            self._saved_position = -1
            self._catch_up()

    def _adopt(self, folder: Path) -> None:
        index, manifest = load_generation(folder)
        self._check_manifest(folder, manifest)
        self._index, self._position = index, manifest.position
        self._filters.clear()
        self._unsaved = 0

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

    def _catch_up(self) -> Cost:
        """Replay what the ledger has had since. Interrupted anywhere, it can be done again."""
        position = self._ledger.position()
        if position == self._position:
            return Cost()
        added: dict[int, Knowledge] = {}
        gone: set[int] = set()
        for change in self._ledger.changes(place=self.name, after=self._position):
            position = max(position, change.position)
            if change.action == "add":
                added[change.version] = change.item
            elif change.reason in GONE:
                gone.add(change.version)
        fresh = {version: item for version, item in added.items() if version not in gone and version not in self._index}
        texts = [item.text for item in fresh.values()]
        started = time.perf_counter()
        vectors = self._encoder.encode_documents(texts)
        usages = self._encoding(texts, time.perf_counter() - started)
        self._warn_of_cut_texts(usages)
        started = time.perf_counter()
        self._index.remove(sorted(gone))
        self._index.add(list(fresh), vectors)
        indexing = Usage(seconds=time.perf_counter() - started, bytes=int(vectors.nbytes))
        self._position = position
        self._unsaved += len(fresh)
        if self._folder is not None and self._unsaved >= max(SNAPSHOT_FROM, len(self._index) // 2):
            self._snapshot_in_passing()
        return Cost(encoder=sum(usages, Usage()), index=indexing)

    def _snapshot_in_passing(self) -> None:
        try:
            self.flush()
        except OSError as error:
            self._unsaved = 0  # the items are acknowledged and safe; try again when as many more have come
            _log.warning("bank %r could not save its index: %s", self.name, error)

    def _snapshot(self, folder: Path) -> None:
        save_generation(
            self._index,
            folder,
            place=self.name,
            position=self._position,
            fingerprint=self._ledger.fingerprint(self._position) or "",
            encoder=self._encoder.manifest.to_dict(),
        )

    def _allowed(self, namespace: str, as_of: float | None) -> NDArray[np.int64]:
        import numpy as np

        kept, now = self._filters.get((namespace, as_of)), self._ledger.now()
        if kept is None or kept.position != self._position or not kept.since <= now < kept.until:
            standing = self._ledger.standing(place=self.name, namespace=namespace, as_of=as_of)
            allowed = np.asarray([version for version in standing.versions if version in self._index], dtype=np.int64)
            kept = _Filter(allowed, self._position, now, standing.until)
        self._filters[namespace, as_of] = kept
        self._filters.move_to_end((namespace, as_of))
        while len(self._filters) > FILTERS_KEPT:
            self._filters.popitem(last=False)
        return kept.allowed

    def _encoding(self, texts: Sequence[str], seconds: float) -> list[Usage]:
        """The encoder's work on each text; the time is shared out evenly."""
        tokens = self._encoder.count_tokens(texts)
        return [Usage(count, self._encoder.flops_per_token * count, seconds / len(texts)) for count in tokens]

    def _warn_of_cut_texts(self, usages: Sequence[Usage]) -> None:
        limit = self._encoder.manifest.max_tokens
        cut = sum(usage.tokens >= limit for usage in usages) if limit else 0
        if cut:
            _log.warning(
                "%d of %d texts fill the encoder's %d tokens: only that much of each is searched",
                cut,
                len(usages),
                limit,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"bank {self.name!r} is closed; open a new one on the same ledger and folder")

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()


def _lock(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "writer.lock", timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"the bank in {folder} is in use by another process (or another bank of this one); close it there, or"
            " give this bank a folder of its own"
        ) from error
    return lock
