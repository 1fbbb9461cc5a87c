"""What the paths that keep items in a ledger have in common, whatever they find them by: the door of a search, who is
let in, what encoding costs, the hash of what is held, and where it is saved.

This file knows nothing of indexes, stores or locks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memory_paths.ledger import Ledger, Recorded
from memory_paths.quarantine import Quarantine
from memory_paths.types import Cost, Knowledge, Query, Receipt, Usage

from .encoder import Encoder
from .quarantine import Injections

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_log = logging.getLogger(__name__)

CANDIDATES = 4  # times k: so many are found before they are put into another order, and not fewer than
FEWEST_CANDIDATES = 32

Guard = Quarantine | Literal["injections"] | None


def guarded(ledger: Ledger, quarantine: Guard) -> Quarantine | None:
    """The quarantine itself, or the one on the ledger that "injections" stands for.

    Raises:
        ValueError: Another name.
    """
    if not isinstance(quarantine, str):
        return quarantine
    if quarantine != "injections":
        raise ValueError(f"quarantine must be 'injections', a Quarantine, or None to let everything in: {quarantine!r}")
    return Quarantine(ledger, Injections())


def check_place(name: str) -> None:
    """Refuse a path without a name.

    Raises:
        ValueError: It is empty.
    """
    if not name:
        raise ValueError("a path needs a name: it is its place in the ledger")


def check_threshold(threshold: float | None) -> None:
    """Refuse a least cosine that is none.

    Raises:
        ValueError: It is not in [-1, 1] or None.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1] or None, got {threshold}")


def check_search(top_k: int, diversity: float = 0.0) -> None:
    """Refuse options of a search that are out of their range.

    Raises:
        TypeError: A `top_k` that is no whole number, or a `diversity` that is no number.
        ValueError: `top_k` below 1, or `diversity` outside [0, 1].
    """
    if isinstance(top_k, bool) or not isinstance(top_k, Integral):
        raise TypeError(f"top_k must be a whole number, got {top_k!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if isinstance(diversity, bool) or not isinstance(diversity, Real):
        raise TypeError(f"diversity must be a number in [0, 1], got {diversity!r}")
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be in [0, 1], got {diversity}")


def check_queries(queries: Sequence[Query], vectors: Vectors | None, dimension: int) -> None:
    """Refuse what is no query, queries that name no namespace, and vectors that cannot stand for them.

    Raises:
        TypeError: Something else than queries.
        ValueError: See above; vectors are to be [len(queries), dimension] and finite.
    """
    import numpy as np

    if strange := [query for query in queries if not isinstance(query, Query)]:
        raise TypeError(f"a bank is asked [Query(text, namespace)], got {type(strange[0]).__name__}: {queries!r:.80}")
    if any(not query.namespace for query in queries):
        raise ValueError("a query to a bank names its namespace: Query(text, namespace), or ask through an agent")
    if vectors is None:
        return
    if vectors.shape != (len(queries), dimension):
        raise ValueError(f"vectors must be [{len(queries)}, {dimension}], got {list(vectors.shape)}")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite, got NaN or infinity")


def candidates(top_k: int) -> int:
    """How many are found where the best `top_k` of them are chosen by something else."""
    return max(CANDIDATES * top_k, FEWEST_CANDIDATES)


def encoded_queries(encoder: Encoder, queries: Sequence[Query]) -> tuple[Vectors, list[Usage]]:
    """The queries' vectors, float32 [len(queries), dimension], and the encoder's work on each."""
    texts = [query.text for query in queries]
    started = time.perf_counter()
    vectors = encoder.encode_queries(texts)
    seconds = time.perf_counter() - started  # shared out evenly
    tokens = encoder.count_tokens(texts)
    return vectors, [Usage(count, encoder.flops_per_token * count, seconds / len(texts)) for count in tokens]


def encoded_items(encoder: Encoder, items: Sequence[Knowledge]) -> tuple[Vectors, Usage]:
    """The vectors of what items are found by, float32 [len(items), dimension], and the encoder's work on them."""
    texts = [found_by(item) for item in items]
    started = time.perf_counter()
    vectors = encoder.encode_documents(texts)
    seconds = time.perf_counter() - started
    tokens, limit = encoder.count_tokens(texts), encoder.manifest.max_tokens
    if limit and (cut := sum(count >= limit for count in tokens)):
        told = "%d of %d texts fill the encoder's %d tokens: only that much of each is searched"
        _log.warning(told, cut, len(texts), limit)
    return vectors, Usage(sum(tokens), encoder.flops_per_token * sum(tokens), seconds)


def found_by(item: Knowledge) -> str:
    """The text by which an item is found."""
    return item.cue or item.text


def receipt(items: Sequence[Knowledge], recorded: Recorded, cost: Cost, pending: bool = False) -> Receipt:
    """What a write acknowledges. `details` names the ids that were new and those that were superseded."""
    details = {"written": tuple(item.id for item in recorded.written), "superseded": recorded.superseded}
    return Receipt(tuple(item.id for item in items), cost, pending, details)


def state_hash(ledger: Ledger, place: str, described: Sequence[Any]) -> str:
    """SHA-256 over what else could change an answer, as JSON has it, and the recallable items of a place in order and
    how they stand, in hex. Dates of recording are left out, so that two runs that did the same have the same hash."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for version in ledger.get(ledger.recallable(place=place)).values():
        digest.update(json.dumps([version.namespace, version.reason, version.item.content_hash()]).encode())
    return digest.hexdigest()


def new_folder(folder: Path) -> Path:
    """The folder that something is to be saved into, which may be missing still.

    Raises:
        FileExistsError: It is a file, or holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; save into a new one")
    return folder
