"""Vectors in FAISS, searched exactly, and kept in files that can be lost without losing anything.

A generation on disk is one file of vectors, named by its checksum, and one manifest that names that file. Both are
written under a temporary name, synced and renamed, the manifest last: a crash at any moment leaves the generation
before it. This file knows nothing of texts, items or what the ids stand for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.files import write_durably

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]

FORMAT = 1
MANIFEST = "manifest.json"


class FlatIndex:
    """Exact search by inner product (cosine, for rows of length 1) over vectors with int64 ids of the caller's.

    Args:
        dimension: Length of a vector.
    """

    def __init__(self, dimension: int) -> None:
        import faiss

        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._ids: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: int) -> bool:
        return id in self._ids

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def ids(self) -> list[int]:
        """All ids, ascending."""
        return sorted(self._ids)

    def add(self, ids: Sequence[int], vectors: Vectors) -> None:
        """Add vectors, float32 [len(ids), dimension].

        Raises:
            ValueError: An id that is there already or comes twice, a shape that does not fit, a value that is not
                finite. Nothing is added then.
        """
        import numpy as np

        if vectors.shape != (len(ids), self.dimension):
            raise ValueError(f"vectors must be [{len(ids)}, {self.dimension}], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector holds a value that is not finite; check the encoder")
        new = set(ids)
        # FAISS takes the same id twice without a word, and then returns both.
        if len(new) < len(ids) or new & self._ids:
            raise ValueError(f"ids must be new, each once; got again: {sorted(new & self._ids) or 'one of these ids'}")
        if new:
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.asarray(list(ids), np.int64))
            self._ids |= new

    def remove(self, ids: Sequence[int]) -> int:
        """Remove ids; those that are not there are ignored. Returns how many were."""
        import numpy as np

        known = sorted(self._ids.intersection(ids))
        if known:
            self._index.remove_ids(np.asarray(known, np.int64))
            self._ids.difference_update(known)
        return len(known)

    def vectors(self, ids: Sequence[int]) -> Vectors:
        """The stored vectors of ids, float32 [len(ids), dimension]. Raises KeyError for an id that is not there."""
        import numpy as np

        if missing := set(ids) - self._ids:
            raise KeyError(f"ids that are not in the index: {sorted(missing)}")
        rows = [self._index.reconstruct(int(id)) for id in ids]
        return np.stack(rows) if rows else np.zeros((0, self.dimension), np.float32)

    def search(self, queries: Vectors, k: int, allowed: Ids) -> list[list[tuple[int, float]]]:
        """The best ids among the allowed ones for each query, with their scores, best first.

        The filter comes before the search, so min(k, number of allowed ids in the index) come back.

        Args:
            queries: float32 [n, dimension].
            k: Most hits for a query, at least 1.
            allowed: Ids that may be returned; others in it are ignored.
        """
        import faiss
        import numpy as np

        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        k = min(k, len(self), len(allowed))
        if not k or not len(queries):
            return [[] for _ in queries]
        bits = np.zeros(int(allowed.max()) + 1, dtype=bool)
        bits[allowed] = True
        bitmap = np.packbits(bits, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
        parameters: Any = faiss.SearchParameters  # the stubs do not know its keywords
        scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), k, params=parameters(sel=selector))
        hits = [
            [(int(id), float(score)) for id, score in zip(row_ids, row_scores, strict=True) if id >= 0]
            for row_ids, row_scores in zip(ids, scores, strict=True)
        ]
        return [sorted(row, key=lambda hit: (-hit[1], hit[0])) for row in hits]

    def to_bytes(self) -> bytes:
        """The index in FAISS's own format."""
        import faiss

        return faiss.serialize_index(self._index).tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> FlatIndex:
        """The inverse of `to_bytes`. The bytes must be trusted: compare their checksum first.

        Raises:
            ValueError: They are not such an index.
        """
        import faiss
        import numpy as np

        limit = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(len(data) + 1)  # no vector in the file is longer than the file
        try:
            inner = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except RuntimeError as error:
            raise ValueError(f"not a FAISS index: {error}") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(limit)
        if not isinstance(inner, faiss.IndexIDMap2) or inner.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"not a flat inner-product index with ids, but {type(inner).__name__}")
        index = FlatIndex(inner.d)
        index._index = inner
        index._ids = set(faiss.vector_to_array(inner.id_map).tolist())
        return index


@dataclass(frozen=True)
class Manifest:
    """What a generation is: which file, of which ledger at which position, by which encoder.

    Args:
        place: Whose projection it is.
        position: The ledger's position up to which it has replayed.
        fingerprint: The ledger's fingerprint at that position.
        encoder: The encoder's manifest.
        dimension: Length of a vector.
        count: Number of vectors.
        file: Name of the file of vectors.
        sha256: Its checksum.
        format: Version of this layout.
    """

    place: str
    position: int
    fingerprint: str
    encoder: dict[str, Any]
    dimension: int
    count: int
    file: str
    sha256: str
    format: int = FORMAT


def save_generation(
    index: FlatIndex, folder: Path, *, place: str, position: int, fingerprint: str, encoder: dict[str, Any]
) -> Manifest:
    """Write a generation and remove the one before it.

    Raises:
        OSError: The disk is full or cannot be written; the generation before is still there and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = index.to_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    file = f"vectors-{checksum[:16]}.faiss"
    manifest = Manifest(place, position, fingerprint, encoder, index.dimension, len(index), file, checksum)
    _write_durably(folder / file, data)
    _write_durably(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, sort_keys=True).encode())
    for old in folder.glob("*vectors-*"):  # what a killed save left begins with a dot
        if old.name != file:
            old.unlink(missing_ok=True)
    return manifest


def load_generation(folder: Path) -> tuple[FlatIndex, Manifest]:
    """Read a generation back, every byte of the vectors compared with its checksum.

    Raises:
        FileNotFoundError: The folder has no generation.
        ValueError: It is damaged or of another format; the message says how.
    """
    text = (folder / MANIFEST).read_bytes()
    try:
        manifest = Manifest(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if manifest.format != FORMAT:
        raise ValueError(f"{folder} has format {manifest.format!r}, this program reads {FORMAT}")
    try:
        data = (folder / Path(manifest.file).name).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder / MANIFEST} names a file that cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise ValueError(f"{folder / manifest.file} does not match its checksum")
    index = FlatIndex.from_bytes(data)
    if len(index) != manifest.count or index.dimension != manifest.dimension:
        raise ValueError(f"{folder / manifest.file} does not hold what the manifest says")
    return index, manifest


def _write_durably(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data, part="index")
    except OSError as error:
        raise OSError(
            error.errno, f"the index could not be written ({error.strerror}); make room on the disk", str(path)
        ) from error
