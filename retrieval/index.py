"""Vectors by row number, searched under a mask. This file knows nothing of what the rows stand for.

They lie in segments of a fixed size. A full one never changes but to let go of rows, so that a snapshot writes what is
new, and one that comes from a snapshot stays in its file, mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .approximate import InvertedLists
from .generation import Buffer, Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Numbers = NDArray[np.int64]
    Vectors = NDArray[np.float32]
    Hits = list[list[tuple[int, float]]]

SEGMENT = 65_536  # rows
FEW = 0.05  # of all rows: so few are compared one by one, for a whole segment would be compared in vain
FEW_OF_MANY = 20_000  # the same, where there are lists to turn to
RESCORED = 8  # times k: so many of the proposed rows are compared exactly
LAGGING = 0.1  # of the rows that the lists on disk cover: so many more are added again on opening
OUTGROWN = 2  # times the rows that lists were made for: then they are made anew
AT_ONCE = 2048  # rows that lists made apart may lack when they are taken over: these are added while others wait


class VectorIndex:
    """Search by inner product (cosine, for rows of length 1): exact, until inverted lists are made for many rows.

    Args:
        dimension: Length of a vector.
        parts: From `to_parts`, whose checksums were compared.

    Raises:
        ValueError: Parts that are no vectors of this length, or lists of other vectors.
    """

    def __init__(self, dimension: int, parts: Mapping[str, Part] | None = None) -> None:
        import numpy as np

        self.dimension = dimension
        self._segments: list[Vectors] = []  # of the last one only the first rows count
        self._count = 0
        self._lists: InvertedLists | None = None
        self._listed = 0  # rows that the lists in a file cover
        self._files: dict[str, Part] = {}  # parts that lie in files as they are here
        self._erased: list[Numbers] | None = None  # since lists are being made apart
        self._truncated = 0  # how often
        for name, part in sorted((parts or {}).items()):
            if not name.startswith("vectors-"):
                continue
            if name != _segment_name(len(self._segments)) or self._count % SEGMENT:
                raise ValueError(f"part {name!r} does not follow {self._count} vectors")
            if len(part.data) % (4 * dimension):
                raise ValueError(f"{len(part.data)} bytes are not vectors of {dimension} float32 values")
            self._segments.append(np.frombuffer(part.data, dtype="<f4").reshape(-1, dimension))
            self._count += len(self._segments[-1])
            self._files[name] = part
        for name, part in (parts or {}).items():
            if name.startswith("lists-"):
                self._lists, self._listed = InvertedLists(part.data), int(name.removeprefix("lists-"))
                part.let_go()
                if not len(self._lists) <= self._listed <= len(self):
                    raise ValueError(f"{name!r} with {len(self._lists)} rows does not fit {len(self)} vectors")
                self._files[name] = part
                self._add_to_lists(self._listed)

    def __len__(self) -> int:
        return self._count

    @property
    def is_exact(self) -> bool:
        """Whether every search compares with all allowed rows."""
        return self._lists is None

    @property
    def has_outgrown_its_lists(self) -> bool:
        """Whether there are so many more rows than the lists were made for that they should be made anew."""
        return self._lists is not None and len(self) > OUTGROWN * self._lists.made_for

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
        before, given = len(self), np.ascontiguousarray(vectors, np.float32)
        while len(given):
            start = self._count % SEGMENT
            taken, given = given[: SEGMENT - start], given[SEGMENT - start :]
            if start == 0:
                self._segments.append(np.zeros((0, self.dimension), np.float32))
            self._segments[-1] = _with_room(self._segments[-1], start, start + len(taken))
            self._segments[-1][start : start + len(taken)] = taken
            self._files.pop(_segment_name(len(self._segments) - 1), None)
            self._count += len(taken)
        self._add_to_lists(before)

    def truncate(self, count: int) -> None:
        """Let go of all rows from this one on."""
        if count < len(self):
            self._lists = None  # they are made anew
            self._truncated += 1
            self._segments = self._segments[: -(-count // SEGMENT)]
            self._count = count
            self._files.clear()

    def erase(self, rows: Numbers) -> None:
        """Let go of what rows hold, so that nothing of it is left in `to_parts`.

        They keep their numbers, and are not to be allowed in a search any more.
        """
        import numpy as np

        fresh = rows[self.vectors(rows).any(axis=1)]
        for number in np.unique(fresh // SEGMENT).tolist():
            changed = np.array(self._segments[number])
            changed[fresh[fresh // SEGMENT == number] % SEGMENT] = 0.0
            self._segments[number] = changed
            self._files.pop(_segment_name(number), None)
        if self._erased is not None:
            self._erased.append(fresh)
        if self._lists is not None and len(fresh):
            self._lists.remove(fresh)
            self._files.pop(self._lists_name, None)

    def make_lists(self) -> None:
        """Make inverted lists for all rows; from now on a search may miss a row in a hundred."""
        self._files.pop(self._lists_name, None)
        self._lists = InvertedLists.build(len(self), self.vectors) if len(self) else None

    def make_lists_apart(self, alone: AbstractContextManager[Any], wanted: Callable[[], bool]) -> None:
        """The same in a thread of its own, while others search, add and erase: they wait for nothing but the end.

        Args:
            alone: The lock under which others use this index; it is taken for moments.
            wanted: Whether it is still worth it; asked under the lock. Nor is it once rows were truncated.
        """
        import numpy as np

        with alone:
            copy, truncated = self._copy(), self._truncated
            self._erased = []
        try:
            lists = InvertedLists.build(len(copy), copy.vectors)
            covered, lacking = len(copy), len(copy)
            while True:
                with alone:
                    if not wanted() or truncated != self._truncated:
                        return
                    before, lacking = lacking, len(self) - covered
                    # Whoever writes faster than lists take rows up is made to wait for the rest.
                    if lacking <= AT_ONCE or lacking >= before:
                        lists.remove(np.concatenate([np.zeros(0, np.int64), *(self._erased or [])]))
                        self._files.pop(self._lists_name, None)
                        self._lists = lists
                        self._add_to_lists(covered)
                        return
                    copy = self._copy()
                copy._lists = lists
                copy._add_to_lists(covered)
                covered = len(copy)
        finally:
            with alone:
                self._erased = None

    def vectors(self, rows: Any) -> Vectors:
        """The vectors of rows (numbers, or a mask), float32 [n, dimension]."""
        import numpy as np

        numbers = np.asarray(rows if len(rows) else np.zeros(0, np.int64))
        numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers
        chosen = np.empty((len(numbers), self.dimension), np.float32)
        segment = numbers // SEGMENT
        for number in np.unique(segment).tolist():
            here = segment == number
            chosen[here] = self._segments[number][numbers[here] % SEGMENT]
        return chosen

    def search(self, queries: Vectors, k: int, allowed: Mask) -> Hits:
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
        count = int(np.count_nonzero(allowed))
        k = min(k, count)
        if not k or not len(queries):
            return [[] for _ in queries]
        queries = np.ascontiguousarray(queries, np.float32)
        if self._one_by_one(count, k):
            return self._compared(queries, k, np.flatnonzero(allowed))
        restricted = None if count == len(self) else allowed
        if self._lists is None:
            return self._exact(queries, k, restricted)
        proposed = self._lists.propose(queries, RESCORED * k, restricted, count / len(self))
        return [
            self._compared(query, k, np.sort(rows[rows >= 0]))[0]
            if (rows >= 0).sum() >= k
            else self._exact(query, k, restricted)[0]  # the lists that were read hold too few of the allowed rows
            for query, rows in zip(queries[:, None], proposed, strict=True)
        ]

    def compared(self, count: int, k: int) -> int:
        """With about how many vectors a search for the best k of `count` allowed rows compares a query."""
        if self._lists is None or self._one_by_one(count, k):
            return count
        return round(count * self._lists.share_read(count / len(self))) + RESCORED * k

    def _one_by_one(self, count: int, k: int) -> bool:
        return count <= (FEW * len(self) if self._lists is None else max(FEW_OF_MANY, RESCORED * k))

    def _compared(self, queries: Vectors, k: int, rows: Numbers) -> Hits:
        return _best(queries @ self.vectors(rows).T, rows, k)

    def _exact(self, queries: Vectors, k: int, allowed: Mask | None) -> Hits:
        import faiss
        import numpy as np

        found: list[tuple[Vectors, Numbers]] = []
        for number, segment in enumerate(self._segments):
            start = number * SEGMENT
            held = segment[: self._count - start]
            if allowed is None:
                scores, rows = faiss.knn(queries, held, min(k, len(held)), metric=faiss.METRIC_INNER_PRODUCT)
                found.append((scores, rows + start))
                continue
            scores = queries @ held.T
            scores[:, ~allowed[start : start + len(held)]] = -np.inf
            # What is as good as the k-th stays in, so that the earlier row wins among equals.
            least = np.partition(scores, -k, axis=1)[:, -k, None] if k < len(held) else -np.inf
            columns = np.flatnonzero(((scores >= least) & (scores > -np.inf)).any(axis=0))
            found.append((scores[:, columns], np.broadcast_to(columns + start, (len(queries), len(columns)))))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return _best(scores, rows, k)

    def to_parts(self) -> dict[str, Buffer | Part]:
        """Segments ("vectors-0000" and so on), row by row as little-endian float32, and lists, where there are any
        ("lists-N", which cover the first N rows, nearly all; the others are added on opening).

        Void once rows are added or erased. What lies in a file already is given as that file's part."""
        import numpy as np

        parts: dict[str, Buffer | Part] = {}
        for number, segment in enumerate(self._segments):
            name = _segment_name(number)
            held = np.ascontiguousarray(segment[: self._count - number * SEGMENT], "<f4")
            parts[name] = self._files.get(name) or held.reshape(-1).view(np.uint8).data
        if self._lists is not None:
            kept = self._files.get(self._lists_name) if len(self) <= (1 + LAGGING) * self._listed else None
            if kept is None:
                self._listed = len(self)
            parts[self._lists_name] = kept or self._lists.to_bytes()
        return parts

    def rest_on(self, parts: Mapping[str, Part]) -> None:
        """Keep full segments in the files where `to_parts` was written to, in place of memory of one's own."""
        import numpy as np

        self._files = {name: part for name, part in parts.items() if name.startswith(("vectors-", "lists-"))}
        for number in range(self._count // SEGMENT):
            data = parts[_segment_name(number)].data
            self._segments[number] = np.frombuffer(data, dtype="<f4").reshape(-1, self.dimension)

    @property
    def _lists_name(self) -> str:
        return f"lists-{self._listed}"

    def _copy(self) -> VectorIndex:
        """The rows as they are now. The memory is shared: it is written to beyond them alone, until `truncate`."""
        copy = VectorIndex(self.dimension)
        copy._segments, copy._count = list(self._segments), self._count
        return copy

    def _add_to_lists(self, start: int) -> None:
        """Rows from this one on."""
        import numpy as np

        if self._lists is None:
            return
        lists, self._lists = self._lists, None  # should this be interrupted, the lists are made anew
        for begin in range(start, len(self), SEGMENT):
            rows = np.arange(begin, min(begin + SEGMENT, len(self)))
            lists.add(self.vectors(rows), rows)
        self._lists = lists


def _segment_name(number: int) -> str:
    return f"vectors-{number:04d}"


def _with_room(segment: Vectors, count: int, needed: int) -> Vectors:
    """The segment, or a copy of its first rows with room for as many as are needed."""
    import numpy as np

    if needed <= len(segment) and segment.flags.writeable:
        return segment
    room = np.zeros((min(max(needed, 2 * count, 64), SEGMENT), segment.shape[1]), np.float32)
    room[:count] = segment[:count]
    return room


def _best(scores: Vectors, rows: Numbers, k: int) -> Hits:
    """The best k of each row of scores, the lower number among equals."""
    import numpy as np

    rows = np.broadcast_to(rows, scores.shape)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return [
        [(int(row), float(score)) for score, row in zip(some_scores, some_rows, strict=True) if score > -np.inf]
        for some_scores, some_rows in zip(*best, strict=True)
    ]
