"""Files that come into being as a whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from memory_paths.failpoints import failpoint


def write_durably(file: Path, content: bytes, *, part: str) -> None:
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
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    failpoint(f"{part}.after_rename")
