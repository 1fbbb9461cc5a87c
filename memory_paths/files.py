"""Files and folders that come into being as a whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory_paths.failpoints import failpoint


def write_durably(file: Path, content: bytes | memoryview, *, part: str) -> None:
    """Write under a temporary name, sync, rename, sync the folder: after a crash the file is the old or the new one.

    Args:
        file: Where; its folder is made where it is missing.
        content: What.
        part: Who writes, for the failpoints `<part>.before_fsync`, `.before_rename` and `.after_rename`.

    Raises:
        OSError: The disk is full or cannot be written; the old file, if any, is untouched.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            failpoint(f"{part}.before_fsync")
            os.fsync(stream.fileno())
        failpoint(f"{part}.before_rename")
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync(file.parent)
    failpoint(f"{part}.after_rename")


@contextmanager
def whole_folder(folder: Path, *, part: str) -> Iterator[Path]:
    """A temporary folder to fill, which on leaving is synced and renamed to `folder`: all of it is there, or nothing.

    What a crash leaves is a hidden folder beside it, `.<name>.<random>.partial`, which the next save there removes.

    Args:
        folder: Where; its parent is made where it is missing.
        part: Who writes, for the failpoints `<part>.before_fsync`, `.before_rename` and `.after_rename`.

    Raises:
        FileExistsError: `folder` is a file, or holds something.
        OSError: The disk is full or cannot be written; nothing is left then.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; name a new one, or delete this one first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Eight characters are what tempfile puts there; a star would also match the save of a folder `name.2`.
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{'?' * 8}.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    # One folder inside another, for a temporary folder is readable by its owner alone and a save need not be.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as temporary:
        partial = Path(temporary, folder.name)
        partial.mkdir()
        yield partial
        failpoint(f"{part}.before_fsync")
        for path in (partial, *partial.rglob("*")):
            sync(path)
        failpoint(f"{part}.before_rename")
        partial.replace(folder)
    sync(folder.parent)
    failpoint(f"{part}.after_rename")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds something else; the file is named.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds {type(content).__name__} and no object")
    return content


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
