"""Vectors in FAISS, by row number, searched under a mask. This file knows nothing of what the rows stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .approximate import InvertedLists
from .generation import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Hits = list[list[tuple[int, float]]]

FEW = 0.05  # of all rows: so few are compared one by one, for FAISS asks its filter about every row
FEW_OF_MANY = 20_000  # the same, where there are lists to turn to
RESCORED = 8  # times k: so many of the proposed rows are compared exactly


class VectorIndex:
    """Search by inner product (cosine, for rows of length 1): exact, until inverted lists are made for many rows.

    Args:
        dimension: Length of a vector.
        vectors: From `to_parts`; empty: no vectors.
        lists: From `to_parts`; None: no lists.

    Raises:
        ValueError: Bytes that are no vectors of this length, or lists of other vectors.
    """

    def __init__(self, dimension: int, vectors: Buffer = b"", lists: Buffer | None = None) -> None:
        import faiss
        import numpy as np

        if len(vectors) % (4 * dimension):
            raise ValueError(f"{len(vectors)} bytes are not vectors of {dimension} float32 values")
        self._index: Any = faiss.IndexFlatIP(dimension)
        self._lists: InvertedLists | None = None
        self.add(np.frombuffer(vectors, dtype="<f4").reshape(-1, dimension))
        if lists is not None:
            self._lists = InvertedLists(lists)
            if len(self._lists) != len(self):
                raise ValueError(f"lists of {len(self._lists)} rows for {len(self)} vectors")

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    @property
    def is_exact(self) -> bool:
        """Whether every search compares with all allowed rows."""
        return self._lists is None

    def add(self, vectors: Vectors) -> None:
        """Append vectors, float32 [n, dimension]; the first one's row number is the length before.

        Raises:
            ValueError: A shape that does not fit, or a value that is not finite. Nothing is added then.
        """
        import numpy as np

        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"vectors must be [n, {self.dimension}], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector holds a value that is not finite; check the encoder")
        if len(vectors):
            given = np.ascontiguousarray(vectors, np.float32)
            lists, self._lists = self._lists, None  # should this be interrupted, the lists are made anew
            self._index.add(given)
            if lists is not None:
                lists.add(given)
                self._lists = lists

    def make_lists(self) -> None:
        """Make inverted lists for all rows; from now on a search may miss a row in a hundred."""
        self._lists = InvertedLists.build(len(self), self.vectors) if len(self) else None

    def vectors(self, rows: Any) -> Vectors:
        """The vectors of rows (numbers or a mask), float32 [n, dimension]."""
        import numpy as np

        chosen: Vectors = self._stored()[np.asarray(rows) if len(rows) else np.zeros(0, np.int64)]
        return chosen

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.bool_]) -> Hits:
        """The best allowed rows for each query with their exact scores, best first, the earlier row among equals.

        The filter comes before the search, so min(k, number of allowed rows) come back, with lists too.

        Args:
            queries: float32 [n, dimension].
            k: Most hits for a query, at least 1.
            allowed: Which rows may be returned, [rows].
        """
        import numpy as np

        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if allowed.shape != (len(self),):
            raise ValueError(f"allowed must say so for each of {len(self)} rows, got shape {list(allowed.shape)}")
        count = int(allowed.sum())
        k = min(k, count)
        if not k or not len(queries):
            return [[] for _ in queries]
        queries = np.ascontiguousarray(queries, np.float32)
        if count <= (FEW * len(self) if self._lists is None else max(FEW_OF_MANY, RESCORED * k)):
            return self._compared(queries, k, np.flatnonzero(allowed))
        restricted = None if count == len(self) else allowed
        if self._lists is None:
            return self._exact(queries, k, restricted)
        proposed = self._lists.propose(queries, RESCORED * k, restricted)
        return [
            self._compared(query, k, np.sort(rows[rows >= 0]))[0]
            if (rows >= 0).sum() >= k
            else self._exact(query, k, restricted)[0]  # the lists that were read hold too few of the allowed rows
            for query, rows in zip(queries[:, None], proposed, strict=True)
        ]

    def _compared(self, queries: Vectors, k: int, rows: NDArray[np.int64]) -> Hits:
        import numpy as np

        scores = queries @ self.vectors(rows).T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return _hits(rows[best], np.take_along_axis(scores, best, axis=1))

    def _exact(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        import faiss
        import numpy as np

        parameters: Any = None
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
            search_parameters: Any = faiss.SearchParameters  # the stubs do not know its keywords
            parameters = search_parameters(sel=selector)
        scores, rows = self._index.search(queries, k, params=parameters)
        return [sorted(row, key=lambda hit: (-hit[1], hit[0])) for row in _hits(rows, scores)]

    def to_parts(self) -> dict[str, Buffer]:
        """ "vectors": row by row, as little-endian float32; "lists", where there are any. Void once rows are added."""
        import numpy as np

        parts: dict[str, Buffer] = {"vectors": self._stored().astype("<f4", copy=False).reshape(-1).view(np.uint8).data}
        if self._lists is not None:
            parts["lists"] = self._lists.to_bytes()
        return parts

    def _stored(self) -> Vectors:
        """A view of FAISS's own memory: void once vectors are added or the index is gone."""
        import faiss
        import numpy as np

        if not len(self):
            return np.zeros((0, self.dimension), np.float32)
        stored: Vectors = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dimension)
        return stored.reshape(len(self), self.dimension)


def _hits(rows: NDArray[np.int64], scores: Vectors) -> Hits:
    return [
        [(int(row), float(score)) for row, score in zip(some_rows, some_scores, strict=True)]
        for some_rows, some_scores in zip(rows, scores, strict=True)
    ]
