"""How every version at a place stands, in columns: who it belongs to and from when until when it holds.

A row for each version that was ever replayed, in the order of writing; the vectors and words of a bank use the same row
numbers. A filter over a million versions is then a few comparisons of arrays. This file knows nothing of texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, get_args

from memory_paths.ledger import Version
from memory_paths.types import KnowledgeKind

from .generation import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

HELD, PAST, GONE = 0, 1, 2  # what was superseded or has expired is past: questions about the past may recall it
_PAST = ("superseded", "expired")
_KINDS = get_args(KnowledgeKind)
_COLUMNS = [
    ("version", "<i8"),
    ("namespace", "<i4"),
    ("kind", "i1"),
    ("state", "i1"),
    ("holds_from", "<f8"),  # minus infinity where it always held
    ("known_from", "<f8"),  # the same, but when it was recorded where it always held
    ("holds_until", "<f8"),
    ("replaced_at", "<f8"),
]


def is_recallable(entry: Version) -> bool:
    """Whether some question may still recall a version, if only one about the past."""
    return entry.reason is None or entry.reason in _PAST


class Rows:
    """The rows of a place.

    Args:
        data: From `to_bytes`.
        namespaces: From `namespaces`; both empty for no rows.

    Raises:
        ValueError: Bytes that are not rows.
    """

    def __init__(self, data: Buffer = b"", namespaces: Sequence[str] = ()) -> None:
        import numpy as np

        self._table = np.frombuffer(data, dtype=np.dtype(_COLUMNS)).copy()
        self._versions = self._table["version"].copy()  # side by side, for a search in them copies what is not
        self._count = len(self._table)
        self._codes = {name: code for code, name in enumerate(namespaces)}
        rows = self._rows
        in_order = bool(np.all(np.diff(rows["version"]) > 0))
        if not in_order or (len(rows) and int(rows["namespace"].max()) >= len(self._codes)):
            raise ValueError("these rows are not in order, or of a namespace that is not named")

    def __len__(self) -> int:
        return self._count

    @property
    def namespaces(self) -> tuple[str, ...]:
        """By the number that stands for them in the rows."""
        return tuple(self._codes)

    @property
    def versions(self) -> NDArray[np.int64]:
        """The version of each row, ascending."""
        return self._versions[: self._count]

    @property
    def gone(self) -> Mask:
        """Which rows no question may recall any more."""
        gone: Mask = self._rows["state"] == GONE
        return gone

    def among(self, versions: Iterable[int]) -> list[int]:
        """Those of these versions that are rows and not gone yet."""
        import numpy as np

        given = np.unique(np.fromiter(versions, np.int64))
        if not len(given):
            return []
        places = self._places(given)
        there = places >= 0
        there[there] = self._rows["state"][places[there]] != GONE
        return [int(version) for version in given[there]]

    def update(self, entries: Iterable[Version]) -> None:
        """Take over how versions stand. Those above the last row become rows, in order, unless they are gone.

        Raises:
            ValueError: A version that is no row, is not above the last one and is not gone.
        """
        import numpy as np

        given = sorted(entries, key=lambda entry: entry.version)
        places = self._places(np.array([entry.version for entry in given], np.int64))
        last = int(self.versions[-1]) if self._count else 0
        new: list[tuple[float, ...]] = []
        for entry, place in zip(given, places.tolist(), strict=True):
            if place >= 0:
                self._rows[place] = self._row(entry)
            elif not is_recallable(entry):
                continue  # what is gone may have been let go of already
            elif entry.version > last:
                new.append(self._row(entry))
            else:
                raise ValueError(f"version {entry.version} is not above the last row, {last}, and no row of its own")
        if new:
            needed = self._count + len(new)
            if needed > len(self._table):
                room = np.zeros(max(needed, 2 * len(self._table)), dtype=self._table.dtype)
                room[: self._count] = self._rows
                self._table, self._versions = room, room["version"].copy()
            self._table[self._count : needed] = np.array(new, dtype=self._table.dtype)
            self._versions[self._count : needed] = self._table["version"][self._count : needed]
            self._count = needed

    def standing(
        self, namespace: str, *, now: float, as_of: float | None = None, kinds: Sequence[KnowledgeKind] = ()
    ) -> tuple[Mask, float]:
        """The rows that may be recalled, and until when that is so if nothing is written; see `Ledger.standing`."""
        import numpy as np

        rows = self._rows
        mine = rows["namespace"] == self._codes.get(namespace, -1)
        if kinds:
            mine &= np.isin(rows["kind"], [_KINDS.index(kind) for kind in kinds])
        if as_of is not None:
            mine &= (rows["state"] != GONE) & (rows["known_from"] <= as_of)
            return mine & (rows["replaced_at"] > as_of) & (rows["holds_until"] > as_of), math.inf
        mine &= (rows["state"] == HELD) & (rows["replaced_at"] > now)
        edges = [rows[name][mine] for name in ("holds_from", "holds_until", "replaced_at")]
        coming = np.concatenate([edge[edge > now] for edge in edges])
        holds = mine & (rows["holds_from"] <= now) & (rows["holds_until"] > now)
        return holds, float(coming.min(initial=math.inf))

    def share(self, among: Mask, kinds: Sequence[KnowledgeKind]) -> float:
        """Of these rows the share that is of some kinds, in [0, 1]; 0 for no rows."""
        import numpy as np

        found = np.isin(self._rows["kind"][among], [_KINDS.index(kind) for kind in kinds])
        return float(found.mean()) if len(found) else 0.0

    def without(self, dropped: Mask) -> Rows:
        """The other rows, in their order."""
        return Rows(self._rows[~dropped].tobytes(), self.namespaces)

    def to_bytes(self) -> bytes:
        """All rows, to be kept beside `namespaces`."""
        return self._rows.tobytes()

    def _places(self, versions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each version, -1 where there is none."""
        import numpy as np

        if not self._count:
            return np.full(len(versions), -1)
        places = np.searchsorted(self.versions, versions).clip(max=self._count - 1)
        return np.where(self.versions[places] == versions, places, -1)

    @property
    def _rows(self) -> NDArray[np.void]:
        return self._table[: self._count]

    def _row(self, entry: Version) -> tuple[float, ...]:
        item = entry.item
        state = HELD if entry.reason is None else PAST if is_recallable(entry) else GONE
        return (
            entry.version,
            self._codes.setdefault(entry.namespace, len(self._codes)),
            _KINDS.index(item.kind),
            state,
            -math.inf if item.valid_from is None else item.valid_from,
            entry.recorded_at if item.valid_from is None else item.valid_from,
            math.inf if item.valid_until is None else item.valid_until,
            math.inf if entry.ended_at is None else entry.ended_at,
        )
