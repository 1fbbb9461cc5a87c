"""The metadata of all rows in columns, so that a new filter looks at each distinct value once and reads no item again.

What a filter means is `Query.admits`'s word; this file knows nothing of namespaces, time or kinds.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memory_paths.types import Query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

MISSING = 0  # stands for it where a row has no such name


class Metadata:
    """One column for each name, with a number for each distinct value: four bytes a row."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the metadata of the rows that follow."""
        for row in rows:
            for name, value in row.items():
                if name not in self._columns:
                    self._columns[name] = _Column()
                self._columns[name].put(self._count, value)
            self._count += 1

    def fits(self, where: Mapping[str, Any]) -> Mask:
        """Which rows a query with this `where` admits, [rows]."""
        import numpy as np

        fits = np.ones(self._count, dtype=bool)
        for name, wanted in where.items():
            column = self._columns.get(name) or _Column()
            fits &= column.fits(name, wanted)[column.numbers(self._count)]
        return fits


class _Column:
    def __init__(self) -> None:
        import numpy as np

        self._numbers = np.zeros(64, np.int32)
        self._values: list[Any] = [None]
        # Values that are equal, such as 1 and 1.0, share a number: every comparison treats them alike.
        self._known: dict[Hashable, int] = {}

    def put(self, row: int, value: Any) -> None:
        import numpy as np

        if row >= len(self._numbers):
            room = np.zeros(2 * row, np.int32)
            room[: len(self._numbers)] = self._numbers
            self._numbers = room
        number = self._known.setdefault(_key(value), len(self._values))
        if number == len(self._values):
            self._values.append(value)
        self._numbers[row] = number

    def numbers(self, count: int) -> NDArray[np.int32]:
        """Of the first so many rows."""
        import numpy as np

        known = self._numbers[:count]
        return known if len(known) == count else np.concatenate([known, np.zeros(count - len(known), np.int32)])

    def fits(self, name: str, wanted: Any) -> Mask:
        """By number, whether the value is what is wanted."""
        import numpy as np

        query = Query("", where={name: wanted})
        fits = np.zeros(len(self._values), dtype=bool)
        fits[MISSING] = query.admits("fact", {})
        exact = wanted if isinstance(wanted, list | tuple) else None if isinstance(wanted, Mapping) else [wanted]
        if exact is not None and all(isinstance(one, str | int | float) for one in exact):
            fits[[number for one in exact if (number := self._known.get(one)) is not None]] = True
            return fits
        fits[1:] = [query.admits("fact", {name: value}) for value in self._values[1:]]
        return fits


def _key(value: Any) -> Hashable:
    return ("json", json.dumps(value, sort_keys=True)) if isinstance(value, list | dict) else value
