"""BM25 over texts, by SQLite's FTS5: an index of words that lives in memory and is kept as one block of bytes.

This file knows nothing of items, namespaces or time: it is told which texts may be found.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .generation import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMMON = 0.2  # of all texts: a word that more of them have tells little, and finding them all takes long


class Words:
    """An inverted index of words, stemmed, without case and accents.

    Args:
        data: From `to_bytes`; None: an empty index.

    Raises:
        ValueError: Bytes that are no such index.
    """

    def __init__(self, data: Buffer | None = None) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if data is None:
            # Without the texts themselves: the ledger has them.
            self._connection.execute(
                "CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61')"
            )
        else:
            self._connection.deserialize(bytes(data))
        try:
            self._count = int(self._connection.execute("SELECT count(*) FROM words_docsize").fetchone()[0])
        except sqlite3.DatabaseError as error:
            raise ValueError(f"these bytes are no index of words: {error}") from error
        self._removed = False

    def __len__(self) -> int:
        return self._count

    def add(self, texts: Iterable[tuple[int, str]]) -> None:
        """Index texts under ids that are new; all or none."""
        with self._transaction():
            self._connection.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", given := list(texts))
        self._count += len(given)

    def remove(self, texts: Iterable[tuple[int, str]]) -> None:
        """Let go of ids, each given with the text that it was added with; all or none."""
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", given := list(texts)
            )
        self._count -= len(given)
        self._removed = self._removed or bool(given)

    def search(self, text: str, k: int, allowed: NDArray[np.int64]) -> list[tuple[int, float]]:
        """The best allowed ids that share a word with a text, with their BM25 scores (higher is better), best first.

        BM25 with k1 = 1.2, b = .75, as FTS5 has it (Robertson and Zaragoza 2009). Words that more than a fifth of all
        texts have are left out where the others give k hits. Counts are over all texts, allowed or not.

        Args:
            text: Any text.
            k: Most hits.
            allowed: Ids that may be found, ascending.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
        if not words or not len(allowed):
            return []
        telling = [word for word in words if self._share(word) <= COMMON] if len(words) > 1 else words
        best = self._best(telling, k, allowed)
        # A text of common words alone, or too few hits: k come back where k share any word at all.
        return best if len(best) == k or len(telling) == len(words) else self._best(words, k, allowed)

    def to_bytes(self) -> bytes:
        """The whole index, for `Words(data)`; of what was removed nothing is left in it."""
        if self._removed:
            self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._connection.execute("VACUUM")
            self._removed = False
        return self._connection.serialize()

    def _best(self, words: Sequence[str], k: int, allowed: NDArray[np.int64]) -> list[tuple[int, float]]:
        import numpy as np

        query = " OR ".join(f'"{word}"' for word in words)
        if not query:
            return []
        found = self._connection.execute(
            "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (query,)
        ).fetchall()
        ids = np.fromiter((id for id, _ in found), np.int64, len(found))
        scores = np.fromiter((score for _, score in found), np.float64, len(found))
        may = allowed[np.minimum(np.searchsorted(allowed, ids), len(allowed) - 1)] == ids
        ids, scores = ids[may], scores[may]
        best = np.lexsort((ids, -scores))[:k]
        return [(int(id), float(score)) for id, score in zip(ids[best], scores[best], strict=True)]

    def _share(self, word: str) -> float:
        (count,) = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
            (f'"{word}"', int(self._count * COMMON) + 1),
        ).fetchone()
        return float(count) / max(self._count, 1)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
