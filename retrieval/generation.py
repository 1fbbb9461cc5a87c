"""What a bank keeps on disk: derived files that can be lost without losing anything.

A generation is some files, each named by its checksum, and one manifest that names them. All are written under a
temporary name, synced and renamed, the manifest last: a crash at any moment leaves the generation before it, and a
reader beside a writer sees the one or the other. This file knows nothing of what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_paths.files import read_json, write_durably

Buffer = bytes | memoryview  # what a file holds; large files are mapped, not read

FORMAT = 3
MANIFEST = "manifest.json"
LOCK = "writer.lock"
SUFFIX = ".part"


@dataclass(frozen=True)
class Manifest:
    """What a generation is: which files, of which ledger at which position, by which encoder.

    Args:
        place: Whose projection it is.
        position: The ledger's position up to which it has replayed.
        fingerprint: The ledger's fingerprint at that position.
        encoder: The encoder's manifest.
        namespaces: By the number that stands for them in the rows.
        files: SHA-256 of each part, which also names its file.
        format: Version of this layout.
    """

    place: str
    position: int
    fingerprint: str
    encoder: dict[str, Any]
    namespaces: list[str]
    files: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class Part:
    """What a file of a generation holds, mapped, its SHA-256 in hex, and the device and number of that very file."""

    data: Buffer
    checksum: str
    file: tuple[int, int] | None = None

    def let_go(self) -> None:
        """What was read of the file need not stay in memory; it can be read again all the same."""
        whole = memoryview(self.data).obj
        if isinstance(whole, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            whole.madvise(mmap.MADV_DONTNEED)


def save_generation(folder: Path, parts: Mapping[str, Buffer | Part], **described: Any) -> dict[str, Part]:
    """Write a generation and remove the one before it.

    Args:
        folder: Where; made where it is missing.
        parts: Content by name; what lies in the folder already as this part is not written again.
        described: The other fields of the manifest.

    Returns:
        The parts as they lie there.

    Raises:
        OSError: The disk is full or cannot be written, or another process is writing here; the generation before is
            still there and whole.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=60, fallback_to_soft=False):
        given = {
            name: part if isinstance(part, Part) else Part(part, hashlib.sha256(part).hexdigest())
            for name, part in parts.items()
        }
        files = {name: part.checksum for name, part in given.items()}
        for name, part in given.items():
            file = folder / _name(name, part.checksum)
            if part.file is None or part.file != _identity(file):
                _write(file, part.data)
        manifest = Manifest(**described, files=files)
        _write(folder / MANIFEST, json.dumps(_signed(asdict(manifest)), indent=1, sort_keys=True).encode())
        kept = {_name(part, checksum) for part, checksum in files.items()} | {MANIFEST, LOCK}
        for old in folder.iterdir():  # what a killed save left begins with a dot
            if old.name not in kept and (old.suffix == SUFFIX or old.name.endswith(".partial")):
                old.unlink(missing_ok=True)
        return {name: _mapped(folder / _name(name, checksum), checksum) for name, checksum in files.items()}


def load_generation(folder: Path) -> tuple[Manifest, dict[str, Part]]:
    """Read a generation back, every byte compared with its checksum.

    Raises:
        FileNotFoundError: The folder has no generation.
        ValueError: It is damaged or of another format; the message says how.
    """
    manifest = _manifest(folder)
    while True:
        try:
            return manifest, {part: _read(folder, part, checksum) for part, checksum in manifest.files.items()}
        except ValueError:
            # Another process may have put a newer generation in its place while this one was being read.
            if (newer := _manifest(folder)) == manifest:
                raise
            manifest = newer


def _name(part: str, checksum: str) -> str:
    return f"{part}-{checksum[:16]}{SUFFIX}"


def _manifest(folder: Path) -> Manifest:
    fields = read_json(folder / MANIFEST)
    if fields.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {fields.get('format')!r}, this program reads {FORMAT}")
    checksum = fields.pop("checksum", None)
    if checksum != _signed(fields)["checksum"]:
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not match its own checksum")
    try:
        return Manifest(**fields)
    except TypeError as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error


def _signed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, "checksum": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}


def _read(folder: Path, part: str, checksum: str) -> Part:
    file = folder / Path(_name(part, checksum)).name
    try:
        found = _mapped(file, checksum)
    except OSError as error:
        raise ValueError(f"{folder / MANIFEST} names a file that cannot be read: {error}") from error
    if hashlib.sha256(found.data).hexdigest() != checksum:
        raise ValueError(f"{file} does not match its checksum")
    found.let_go()
    return found


def _mapped(file: Path, checksum: str) -> Part:
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b"")
    return Part(data, checksum, (status.st_dev, status.st_ino))


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _write(file: Path, data: Buffer) -> None:
    try:
        write_durably(file, data, part="index")
    except OSError as error:
        raise OSError(
            error.errno, f"the index could not be written ({error.strerror}); make room on the disk", str(file)
        ) from error
