"""Approximate search among many vectors: an inverted file of 8-bit codes in FAISS that proposes rows.

It only ever proposes: whoever asks compares the rows with their exact vectors and knows what to do when too few come
back. This file knows nothing of where the exact vectors are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Numbers = NDArray[np.int64]

LISTS = 4  # times the root of the number of rows
TRAINED_ON = 39  # vectors for each list, the least that FAISS is content with
PROBED = 64  # stored vectors that are asked for, to find how many lists have to be read
BLOCK = 65_536  # vectors that are held twice while lists are made
AWAY = 1.5  # how far from what is stored is asked, as a question is: at a cosine of about .55
TARGET = 0.99  # of the ten nearest

_LIMIT = threading.Lock()  # FAISS has one limit for the whole process


class InvertedLists:
    """Rows by the nearest of some centroids, each with its vector in 8 bits a value.

    Args:
        data: From `to_bytes`, whose checksum was compared.

    Raises:
        ValueError: Bytes that are no such index.
    """

    def __init__(self, data: Any) -> None:
        import faiss
        import numpy as np

        with _LIMIT:
            limit = faiss.get_deserialization_vector_byte_limit()
            faiss.set_deserialization_vector_byte_limit(len(data) + 1)  # no vector in the file is longer than the file
            try:
                index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
            except RuntimeError as error:
                raise ValueError(f"not a FAISS index: {error}") from error
            finally:
                faiss.set_deserialization_vector_byte_limit(limit)
        if not isinstance(index, faiss.IndexIVFScalarQuantizer) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"not inverted lists for the inner product, but {type(index).__name__}")
        self._index: Any = index

    @staticmethod
    def build(count: int, vectors: Callable[[Numbers], Vectors], *, seed: int = 0) -> InvertedLists:
        """Make lists for rows 0 to count - 1.

        Four times the root of `count` lists, as FAISS recommends; how many of them a search reads is found by asking
        near stored vectors (other than those that the centroids were trained on, where there are enough).

        Args:
            count: Number of rows.
            vectors: Gives the vectors of rows, float32 [n, dimension], rows of length 1.
            seed: Of the choice of rows to train on.
        """
        import faiss
        import numpy as np

        lists = max(1, min(round(LISTS * math.sqrt(count)), count // TRAINED_ON))
        order = np.random.default_rng(seed).permutation(count)
        sample = vectors(np.sort(order[: lists * TRAINED_ON]))
        index: Any = faiss.index_factory(sample.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.train(sample)
        made = InvertedLists.__new__(InvertedLists)
        made._index = index
        for start in range(0, count, BLOCK):
            rows = np.arange(start, min(count, start + BLOCK))
            made.add(vectors(rows), rows)
        made._calibrate(vectors, order[-PROBED:])
        return made

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def made_for(self) -> float:
        """For how many rows there are as many lists as these."""
        lists = self._index.nlist
        return float(max((lists / LISTS) ** 2, lists * TRAINED_ON))

    def add(self, vectors: Vectors, rows: Numbers) -> None:
        """Add rows that are new, float32 [n, dimension], under their numbers."""
        if len(vectors):
            self._index.add_with_ids(vectors, rows)

    def remove(self, rows: Numbers) -> None:
        """Let go of rows."""
        self._index.remove_ids(rows)

    def propose(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None, share: float = 1.0) -> Numbers:
        """About the best k rows for each query among those allowed, [n, k], -1 where there were no more in the lists
        that were read.

        Args:
            queries: float32 [n, dimension].
            k: Most rows for a query.
            allowed: Which rows may be proposed; None: all.
            share: Of all rows that are allowed, in (0, 1]: the fewer, the more lists are read to find as many of them.
        """
        read = round(self.share_read(share) * self._index.nlist)
        return self._propose(queries, k, allowed, read)

    def share_read(self, share: float) -> float:
        """Of all lists that are read where this share of all rows, in (0, 1], is allowed."""
        return float(min(1.0, math.ceil(self._index.nprobe / share) / self._index.nlist))

    def to_bytes(self) -> memoryview:
        """For `InvertedLists(data)`."""
        import faiss

        data: memoryview = faiss.serialize_index(self._index).data
        return data

    def _propose(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None, read: int) -> Numbers:
        import faiss
        import numpy as np

        parameters: Any = faiss.SearchParametersIVF
        options: dict[str, Any] = {"nprobe": read}
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
        rows: Numbers = self._index.search(queries, k, params=parameters(**options))[1]
        return rows

    def _calibrate(self, vectors: Callable[[Numbers], Vectors], asked: Numbers) -> None:
        """Read as many lists as it takes to find `TARGET` of what reading all of them finds.

        What is stored finds itself and its like at once: it is moved away first, in a direction by chance.
        """
        import numpy as np

        queries, k = vectors(np.sort(asked)), min(10, len(self))
        direction = np.random.default_rng(0).standard_normal(queries.shape).astype(np.float32)
        queries = queries + AWAY * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        lists = int(self._index.nlist)
        everything = self._propose(queries, k, None, lists)
        read = 1
        while read < lists:
            found = self._propose(queries, k, None, read)
            hits = sum(len(np.intersect1d(*rows)) for rows in zip(found, everything, strict=True))
            if hits >= TARGET * everything.size:
                break
            read = math.ceil(read * 1.25)
        self._index.nprobe = min(read, lists)
