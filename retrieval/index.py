"""Vectors in FAISS, by row number, searched exactly under a mask. Knows nothing of what the rows stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Hits = list[list[tuple[int, float]]]

FEW = 0.05  # of all rows: so few are compared one by one, for FAISS asks its filter about every row


class FlatIndex:
    """Exact search by inner product (cosine, for rows of length 1).

    Args:
        dimension: Length of a vector.
        data: From `to_bytes`; empty: no vectors.

    Raises:
        ValueError: Bytes that are no vectors of this length.
    """

    def __init__(self, dimension: int, data: bytes = b"") -> None:
        import faiss
        import numpy as np

        if len(data) % (4 * dimension):
            raise ValueError(f"{len(data)} bytes are not vectors of {dimension} float32 values")
        self._index: Any = faiss.IndexFlatIP(dimension)
        self.add(np.frombuffer(data, dtype="<f4").reshape(-1, dimension))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

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
            self._index.add(np.ascontiguousarray(vectors, np.float32))

    def vectors(self, rows: Any) -> Vectors:
        """The vectors of rows (numbers or a mask), float32 [n, dimension]."""
        import numpy as np

        chosen: Vectors = self._stored()[np.asarray(rows) if len(rows) else np.zeros(0, np.int64)]
        return chosen

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.bool_]) -> Hits:
        """The best allowed rows for each query with their scores, best first, the earlier row among equals.

        The filter comes before the search, so min(k, number of allowed rows) come back.

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
        if count <= FEW * len(self):
            rows = np.flatnonzero(allowed)
            scores = queries @ self.vectors(rows).T
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            return _hits(rows[best], np.take_along_axis(scores, best, axis=1))
        return self._filtered(queries, k, None if count == len(self) else allowed)

    def _filtered(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None) -> Hits:
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

    def to_bytes(self) -> bytes:
        """All vectors, row by row, as little-endian float32."""
        return self._stored().astype("<f4", copy=False).tobytes()

    def _stored(self) -> Vectors:
        """A view of FAISS's own memory: void once vectors are added or the index is gone, so it leaves no method."""
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
