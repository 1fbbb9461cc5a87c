"""Where a ledger's tables live: what differs between a SQLite file and a PostgreSQL server, and nothing else.

The ledger's statements are plain SQL with `?` for values; a database runs them, makes transactions of them, one writer
at a time, and says what went wrong. This file knows nothing of items, versions or what the tables are for.
"""

from __future__ import annotations

import re
import shlex
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from memory_paths.failpoints import failpoint
from memory_paths.files import sync

APPLICATION_ID = 0x4D505448  # "MPTH", so that another program's database is recognised and refused
BUSY_SECONDS = 60.0
ROWS_TOGETHER = 20  # in one statement, for a sixth less time; SQLite allows 999 values in its oldest versions
_ADDRESS = re.compile(r"postgres(?:ql)?://[^\s'\"]*")

Row = Mapping[str, Any]


class LedgerError(RuntimeError):
    """The ledger's file or server cannot be used as it is: damaged, full, locked, out of reach, newer than this
    program, or closed."""


class Database(Protocol):
    """Some tables, and how to ask, change and keep them. Threads may share it; errors are `LedgerError`."""

    name: str
    """For messages: the file, ":memory:", or the server's address without a password."""
    lock: threading.RLock
    """Held by whoever needs several answers of one moment, as far as this process goes."""
    metadata: str
    """SQL for the JSON of `metadata` within the JSON of the column `content`."""
    bytes_of_content: str
    """SQL for the length of the column `content` in UTF-8."""

    def query(self, statement: str, *values: Any) -> list[Row]:
        """The rows of an answer."""
        ...

    def each(self, statement: str) -> Iterator[Row]:
        """The rows of an answer, without holding them at once; nothing else may be asked meanwhile."""
        ...

    def insert(self, table: str, rows: Iterable[Sequence[Any]], width: int) -> None:
        """Append rows of `width` values."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """A transaction that no other writer runs beside; on disk when it ends, undone where it ends in an error."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """All answers within are of one moment."""
        ...

    def erasing(self) -> AbstractContextManager[None]:
        """What is overwritten or deleted within is gone from the tables' files afterwards."""
        ...

    def problems(self) -> list[str]:
        """What the database finds wrong with its own pages."""
        ...

    def copy(self, file: Path, tables: Mapping[str, str]) -> None:
        """Write tables, given with the names of their columns, into a new SQLite file."""
        ...

    def close(self) -> None:
        """Closing twice is harmless; any other call afterwards is a LedgerError."""
        ...


class SqliteDatabase:
    """Tables in a SQLite file; processes of one machine may share it. A transaction is acknowledged once SQLite has
    synced it (WAL, synchronous=FULL).

    Args:
        file: The file, made with its folder where it is missing, or ":memory:".
        schema: What makes the tables.
        version: Of the schema; a file with a higher one is refused.

    Raises:
        LedgerError: The file is not such a database, is damaged, was written by a newer version, or cannot be opened;
            there is a log beside it that SQLite would delete.
    """

    metadata = "json_extract(content, '$.metadata')"
    bytes_of_content = "length(CAST(content AS BLOB))"

    def __init__(self, file: str | Path, schema: str, version: int) -> None:
        self.name = str(file)
        self.lock = threading.RLock()
        self._between_processes: Any = nullcontext()
        if self.name != ":memory:":
            from filelock import FileLock

            path = Path(self.name)
            if path.is_dir():
                raise LedgerError(f"the ledger needs a file, but {path} is a folder; name a file inside it")
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite before 3.51.3 can damage a WAL that two connections reset and write at the same moment.
            self._between_processes = FileLock(
                f"{self.name}.lock",
                timeout=BUSY_SECONDS,
                thread_local=False,
                poll_interval=0.002,
                fallback_to_soft=False,
            )
        with self._locked(), explained(self.name):
            check_log(self.name)
            self._connection = sqlite3.connect(
                self.name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(schema, version)
            except BaseException:
                self._connection.close()
                raise

    def query(self, statement: str, *values: Any) -> list[Row]:
        """See `Database`."""
        with self.lock, explained(self.name):
            return self._connection.execute(statement, values).fetchall()

    def each(self, statement: str) -> Iterator[Row]:
        """See `Database`."""
        with explained(self.name):
            yield from self._connection.execute(statement)

    def insert(self, table: str, rows: Iterable[Sequence[Any]], width: int) -> None:
        """See `Database`."""
        given, row = iter(rows), f"({', '.join('?' * width)})"
        with self.lock, explained(self.name):
            while some := list(islice(given, ROWS_TOGETHER)):
                statement = f"INSERT INTO {table} VALUES {', '.join([row] * len(some))}"
                self._connection.execute(statement, list(chain.from_iterable(some)))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Database`."""
        with self._locked(), explained(self.name):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                failpoint("ledger.before_commit")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            failpoint("ledger.after_commit")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `Database`."""
        with self.lock, explained(self.name):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")

    @contextmanager
    def erasing(self) -> Iterator[None]:
        """See `Database`.

        Raises:
            LedgerError: Somebody else is reading the old pages. What was erased stays so.
        """
        with self._locked(), explained(self.name):
            self._connection.execute("PRAGMA secure_delete = ON")
            try:
                yield
                failpoint("ledger.before_vacuum")
                self._connection.execute("VACUUM")
                if self.name != ":memory:":
                    self._connection.execute("PRAGMA busy_timeout = 1000")
                    (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    if busy:
                        raise LedgerError(
                            f"{self.name} is compact, but somebody is still reading its old pages from the write-ahead"
                            " log; close the others and compact again"
                        )
            finally:
                self._connection.execute("PRAGMA secure_delete = OFF")
                self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")

    def problems(self) -> list[str]:
        """See `Database`."""
        return [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]

    def copy(self, file: Path, tables: Mapping[str, str]) -> None:
        """See `Database`."""
        with self._locked(), explained(self.name):
            self._connection.execute("VACUUM INTO ?", (str(file),))

    def close(self) -> None:
        """See `Database`."""
        with self._locked():
            self._connection.close()

    def _prepare(self, schema: str, version: int) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        is_known = check_kind(connection, self.name, version)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if self.name != ":memory:" and mode != "wal":
            raise LedgerError(f"the file system of {self.name} cannot hold a write-ahead log; use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # only macOS has it: there a plain fsync does not reach the disk
        if not is_known:
            connection.executescript(
                f"BEGIN IMMEDIATE; {schema} PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {version}; COMMIT;"
            )
            if self.name != ":memory:":
                sync(Path(self.name).parent)
        elif (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise LedgerError(damage(self.name, found))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.lock:
            try:
                self._between_processes.__enter__()
            except TimeoutError as error:
                raise LedgerError(f"{self.name} is being written by another process; try again") from error
            except OSError as error:
                raise LedgerError(f"{self.name} cannot be locked for writing: {error}") from error
            try:
                yield
            finally:
                self._between_processes.__exit__(None, None, None)


@contextmanager
def explained(file: str) -> Iterator[None]:
    """SQLite's errors as `LedgerError`, with what to do."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        if "closed" not in str(error):
            raise
        raise LedgerError(f"the ledger {file} is closed; open it again") from error
    except sqlite3.OperationalError as error:
        raise LedgerError(
            f"{file}: {error}. Nothing of this call was stored and all that was acknowledged is kept;"
            " make room on the disk, or check that the file may be written, and try again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise LedgerError(damage(file, str(error))) from error


def check_log(name: str) -> None:
    """Refuse an empty or missing file beside whose name a log lies: SQLite would delete the log, in which everything
    may be.

    Raises:
        LedgerError: It is so; the log is named.
    """
    file = Path(name).resolve()  # SQLite keeps the log of a link where the link leads
    log = file.with_name(f"{file.name}-wal")
    if log.is_file() and log.stat().st_size and not (file.is_file() and file.stat().st_size):
        raise LedgerError(
            f"{file} is empty or missing, and all that is left of it may be in {log}, which SQLite would delete;"
            f" run `{_repair(file)}`, or move the log away to begin anew"
        )


def check_kind(connection: sqlite3.Connection, file: str, version: int) -> bool:
    """Whether a file is such a database (True) or empty (False); anything else is refused."""
    known, application, tables = (
        connection.execute(question).fetchone()[0]
        for question in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
    )
    if tables and application != APPLICATION_ID:
        raise LedgerError(f"{file} is a database of another program; give the ledger a file of its own")
    if known > version:
        raise LedgerError(f"{file} has schema version {known}, and this program reads up to {version}; upgrade it")
    return bool(tables)


def damage(file: str, what: str) -> str:
    """What to say of a damaged database."""
    saved = "" if is_server(file) else f", or save what is whole with `{_repair(file)}`"
    return f"the ledger {file} is damaged ({what}); restore it from a copy{saved}"


def _repair(file: str | Path) -> str:
    return f"python -m memory_paths.retrieval repair {shlex.quote(str(file))} --to NEW"


def is_server(address: str | Path) -> bool:
    """Whether an address is that of a PostgreSQL server."""
    return str(address).startswith(("postgresql://", "postgres://"))


def without_password(address: str) -> str:
    """A server's address as it may be shown and stored; anything else comes back as it is."""
    if not is_server(address):
        return address
    taken = _taken_apart(address)
    if taken is None:
        return "postgresql://..."
    parts, options = taken
    user, at, host = parts.netloc.rpartition("@")
    shown = [(name, value) for name, value in options if not _is_secret(name)]
    query = urlencode(shown, safe="/")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}{'?' if query else ''}{query}"


def has_password(address: str | Path) -> bool:
    """Whether an address is a server's with a password in it, or one of which that cannot be told."""
    if not is_server(address):
        return False
    taken = _taken_apart(str(address))
    if taken is None:
        return True
    parts, options = taken
    user = parts.netloc.rpartition("@")[0]
    return ":" in user or any(_is_secret(name) for name, _ in options)


def without_passwords(text: str) -> str:
    """A text as it may be shown and stored, whatever servers' addresses stand in it."""
    return _ADDRESS.sub(lambda found: without_password(found[0]), text)


def _taken_apart(address: str) -> tuple[SplitResult, list[tuple[str, str]]] | None:
    """A server's address and its options; None: it cannot be told where in it a password would stand."""
    try:
        parts = urlsplit(address)
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return None
    # A password with a bare /, ? or # ends the server's name too early.
    astray = ":" in parts.netloc and "@" not in parts.netloc and "@" in address
    return None if astray else (parts, options)


def _is_secret(option: str) -> bool:
    return "password" in option.lower()
