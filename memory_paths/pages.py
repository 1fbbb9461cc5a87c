"""What can still be read of a damaged SQLite file, whatever has become of its header, its schema and its trees.

A page says itself whether it holds rows and where, and a row how long it is and of which kinds its values are
(https://www.sqlite.org/fileformat2.html). What is read may be anything, and whoever reads it compares checksums. This
file knows nothing of what the rows mean.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"SQLite format 3\0"
PAGE = 4096  # bytes, where the header does not tell: SQLite's default
_HEADER = 100  # bytes before the first page's own
_ROWS, _ENTRIES, _INNER_ENTRIES = 0x0D, 0x0A, 0x02  # kinds of page: leaf of a table, leaf and inner page of an index
_INTEGERS = (0, 1, 2, 3, 4, 6, 8)  # bytes, by the kind of a value


@dataclass(frozen=True)
class Cell:
    """A row of some table, or an entry of some index. `number`: the row's id; None for an entry."""

    number: int | None
    values: tuple[Any, ...]


class Pages:
    """The pages of a file; see the module.

    Args:
        data: All of it.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._size, reserved = _sizes(data[:_HEADER])
        self._usable = self._size - reserved

    def rows(self) -> Iterator[int]:
        """Where rows of tables begin, in bytes from the start of the file."""
        return self._places(_ROWS)

    def entries(self) -> Iterator[int]:
        """Where entries of indexes begin, in bytes from the start of the file."""
        return self._places(_ENTRIES, _INNER_ENTRIES)

    def read(self, place: int) -> Cell | None:
        """The row or entry that begins there; None: it cannot be read."""
        kind = self._kind(place - place % self._size)
        at = place + 4 if kind == _INNER_ENTRIES else place
        number = None
        try:
            length, at = _varint(self._data, at)
            if kind == _ROWS:
                number, at = _varint(self._data, at)
            return Cell(number, _values(self._payload(at, length, is_row=kind == _ROWS)))
        except (ValueError, IndexError):
            return None

    def _kind(self, start: int) -> int | None:
        head = start or _HEADER
        return self._data[head] if head < len(self._data) else None

    def _places(self, *kinds: int) -> Iterator[int]:
        for start in range(0, len(self._data), self._size):
            if (kind := self._kind(start)) not in kinds:
                continue
            head = start or _HEADER
            first = head + (12 if kind == _INNER_ENTRIES else 8)
            count = int.from_bytes(self._data[head + 3 : head + 5])
            for pointer in range(first, min(first + 2 * count, start + self._size), 2):
                yield start + int.from_bytes(self._data[pointer : pointer + 2])

    def _payload(self, at: int, length: int, *, is_row: bool) -> bytes:
        """What a cell holds, of which all but the beginning may lie on a chain of other pages."""
        if length > len(self._data):
            raise ValueError("longer than the file")
        most = self._usable - 35 if is_row else (self._usable - 12) * 64 // 255 - 23
        here = length
        if length > most:
            least = (self._usable - 12) * 32 // 255 - 23
            here = least + (length - least) % (self._usable - 4)
            here = here if here <= most else least
        payload = bytearray(self._data[at : at + here])
        following = self._data[at + here : at + here + 4]
        while len(payload) < length:
            start = (int.from_bytes(following) - 1) * self._size
            part = self._data[max(start, 0) : max(start, 0) + min(self._usable, 4 + length - len(payload))]
            if start <= 0 or len(part) <= 4:
                raise ValueError("its end is missing")
            payload += part[4:]
            following = part[:4]
        return bytes(payload)


def with_log(file: Path, folder: Path) -> Path:
    """The file with what its write-ahead log has: itself where there is no log, else a copy in a folder. Nobody may be
    writing meanwhile.

    Raises:
        OSError: There is no room for the copy.
    """
    log = file.with_name(f"{file.name}-wal")
    if not log.is_file() or not log.stat().st_size:
        return file
    copy, copied_log = folder / "with_log", folder / "with_log-wal"
    shutil.copyfile(file, copy)
    shutil.copyfile(log, copied_log)
    with copy.open("r+b") as opened:
        size, reserved = _sizes(opened.read(_HEADER))
        opened.seek(0)
        opened.write(_first_page(size, reserved))  # with which SQLite opens the copy, whatever else is in it
        opened.truncate(max(1, -(-file.stat().st_size // size)) * size)
    with closing(sqlite3.connect(copy)) as last:  # who closes as the last one takes in the log
        (pages,) = last.execute("PRAGMA page_count").fetchone()
        os.truncate(copy, max(copy.stat().st_size, pages * size))  # but none that makes the file much longer
    if copied_log.exists():
        raise OSError(f"there is no room in {folder.parent} for a copy of {file} with its write-ahead log")
    return copy


def shortage(file: Path) -> list[str]:
    """What says that pages are missing at the end of a file, or that this cannot be told."""
    with file.open("rb") as opened:
        header = opened.read(_HEADER)
    if header[:16] != MAGIC or len(header) < _HEADER:
        return [f"the header of {file} is damaged, and cannot tell whether its end is there"]
    there, told = file.stat().st_size // _sizes(header)[0], int.from_bytes(header[28:32])
    if header[24:28] != header[92:96] or there >= told:  # where the two differ the header does not tell
        return []
    return [f"{file} ends after {there} of {told} pages"]


def _first_page(size: int, reserved: int) -> bytes:
    """That of a database without tables, as long as its file."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.execute(f"PRAGMA page_size = {size}")
        fresh.execute("PRAGMA user_version = 1")
        page = bytearray(fresh.serialize())
    page[20], page[28:32] = reserved, bytes(4)
    return bytes(page)


def _sizes(header: bytes) -> tuple[int, int]:
    """The bytes of a page, and those at its end that are not used."""
    size = int.from_bytes(header[16:18])
    size = 65536 if size == 1 else size
    if header[:16] != MAGIC or size < 512 or size & (size - 1) or len(header) < _HEADER:
        return PAGE, 0
    return size, header[20]


def _values(record: bytes) -> tuple[Any, ...]:
    end, at = _varint(record, 0)
    kinds = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        width = (kind - 12) // 2 if kind >= 12 else 8 if kind == 7 else 0 if kind > 7 else _INTEGERS[kind]
        part = record[at : at + width]
        if len(part) < width:
            raise ValueError("cut off")
        values.append(_value(kind, part))
        at += width
    return tuple(values)


def _value(kind: int, part: bytes) -> Any:
    if kind == 0:
        return None
    if kind == 7:
        return struct.unpack(">d", part)[0]
    if kind in (8, 9):
        return kind - 8
    if kind < 12:
        return int.from_bytes(part, signed=True)
    return part.decode() if kind % 2 else part


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    number = 0
    for place in range(at, at + 8):
        number = number << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return number, place + 1
    return number << 8 | data[at + 8], at + 9
