"""A ledger's tables on a PostgreSQL server, for a memory that several machines use at once.

They stand in a schema of their own. Writers take turns by an advisory lock, so that versions and the log are numbered
without gaps and in the order of their commits; readers never wait. A transaction is acknowledged once the server has
synced it. This file imports psycopg, of the extra [postgres], and is itself imported where a server is named.
"""

from __future__ import annotations

import logging
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from memory_paths.database import APPLICATION_ID, BUSY_SECONDS, LedgerError, Row, SqliteDatabase, without_password
from memory_paths.failpoints import failpoint

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.errors import LockNotAvailable, ProgramLimitExceeded
    from psycopg.rows import dict_row
except ImportError as error:
    raise ImportError("a ledger on a PostgreSQL server needs: pip install 'memory_paths[postgres]'") from error

_log = logging.getLogger(__name__)

# A column with JSON. PostgreSQL takes nothing out of JSON in which some text has a NUL, which is told here from a
# backslash before the letters u0000.
JSON = r"CAST(replace(replace({}, '\\', '\u005c'), '\u0000', '\ufffd') AS json)"
DEFAULT_SCHEMA = "memory_paths"
DEFAULTS = {"connect_timeout": 10, "application_name": "memory_paths"}
# The server ends the transaction of a client that has gone silent within it, for nobody else could write.
_SETTINGS = f"""SELECT set_config('search_path', %s, false), set_config('lock_timeout', '{BUSY_SECONDS}s', false),
    set_config('idle_in_transaction_session_timeout', '{BUSY_SECONDS}s', false),
    set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false),
    current_setting('fsync') AS fsync, current_setting('server_encoding') AS encoding"""


class PostgresDatabase:
    """Tables in a schema of a PostgreSQL server; any number of machines may share it.

    Args:
        address: postgresql://USER@HOST:PORT/DATABASE as libpq has it, with `schema=NAME` among its options where the
            schema, which is made if it is missing, is not to be "memory_paths". A password is best left to PGPASSWORD
            or ~/.pgpass; one in the address is shown nowhere.
        schema: SQL that makes the tables, as SQLite understands it.
        version: Of the schema; a higher one is refused.

    Raises:
        LedgerError: The server cannot be reached, its database is not in UTF-8, or the schema belongs to another
            program or a newer version.
        ValueError: An address that libpq does not understand, or a schema's name that is no plain word.
    """

    metadata = f"{JSON.format('content')} ->> 'metadata'"
    bytes_of_content = "octet_length(content)"

    def __init__(self, address: str, schema: str, version: int) -> None:
        self.name = without_password(address)
        self.lock = threading.RLock()
        self.connection, self.schema = _understood(address)
        """What psycopg and others connect by, the password included; and the name of the schema."""
        self._made_by = (schema, version)
        self._session: psycopg.Connection[dict[str, Any]] | None = None
        self._closed = False
        self._within = False  # a transaction
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def query(self, statement: str, *values: Any) -> list[Row]:
        """See `Database`. Outside a transaction a connection that has died since it was last used is made anew."""
        with self.lock, self._explained():
            cursor = self._execute(statement.replace("?", "%s"), values)
            return list(cursor.fetchall()) if cursor.description else []

    def each(self, statement: str) -> Iterator[Row]:
        """See `Database`."""
        with self.lock, self._explained(), self._connected().cursor() as cursor:
            yield from cursor.stream(statement)

    def insert(self, table: str, rows: Iterable[Sequence[Any]], width: int, *, unless_there: bool = False) -> None:
        """See `Database`. With `unless_there`, a row whose primary key is taken is left out."""
        statement = f"INSERT INTO {table} VALUES ({', '.join(['%s'] * width)})"
        if unless_there:
            statement += " ON CONFLICT DO NOTHING"
        with self.lock, self._explained(), self._connected().cursor() as cursor:
            cursor.executemany(statement, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Database`. Where the connection breaks at the very end, it is not known whether the transaction is
        stored; the LedgerError says so."""
        with self.lock, self._explained():
            with self._transaction("READ COMMITTED"):
                self._take_turns()
                yield
                failpoint("ledger.before_commit")
            failpoint("ledger.after_commit")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `Database`."""
        with self.lock, self._explained():
            if self._within:
                yield
                return
            with self._transaction("REPEATABLE READ READ ONLY"):
                yield

    @contextmanager
    def erasing(self) -> Iterator[None]:
        """See `Database`. The server's log and its backups have what was erased for as long as they are kept."""
        with self.lock, self._explained():
            yield
            failpoint("ledger.before_vacuum")
            self._execute("VACUUM (FULL) version")

    def problems(self) -> list[str]:
        """None: a server looks after its own pages."""
        return []

    def copy(self, file: Path, tables: Mapping[str, str]) -> None:
        """See `Database`."""
        copied = SqliteDatabase(file, *self._made_by)
        try:
            with self.reading(), copied.writing():
                for table, names in tables.items():
                    rows = (tuple(row.values()) for row in self.each(f"SELECT {names} FROM {table} ORDER BY 1"))
                    copied.insert(table, rows, len(names.split(", ")))
        finally:
            copied.close()
            Path(f"{file}.lock").unlink(missing_ok=True)

    def close(self) -> None:
        """See `Database`."""
        with self.lock:
            self._closed = True
            if self._session is not None:
                self._session.close()

    def _prepare(self) -> None:
        schema, version = self._made_by
        with self._transaction("READ COMMITTED"):
            self._take_turns()
            found = self.query("SELECT tablename FROM pg_tables WHERE schemaname = ?", self.schema)
            if not found:
                if not self.query("SELECT 1 FROM pg_namespace WHERE nspname = ?", self.schema):
                    self._execute(f"CREATE SCHEMA {self.schema}")
                self._execute(_as_postgres(schema), None)  # without values, for there are several statements
                self._execute("CREATE TABLE ledger (application BIGINT NOT NULL, schema_version BIGINT NOT NULL)")
                self._execute("INSERT INTO ledger VALUES (%s, %s)", (APPLICATION_ID, version))
            elif {"tablename": "ledger"} not in found:
                raise LedgerError(
                    f"schema {self.schema!r} of {self.name} belongs to another program; give the ledger a schema of its"
                    " own with ?schema=NAME"
                )
            elif (known := self.query("SELECT schema_version FROM ledger")[0]["schema_version"]) > version:
                raise LedgerError(
                    f"{self.name} has schema version {known}, and this program reads up to {version}; upgrade it"
                )

    def _take_turns(self) -> None:
        """Wait until nobody else writes in this schema; the lock is let go of once the commit can be seen."""
        number = zlib.crc32(self.schema.encode()) - (1 << 31)
        self._execute("SELECT pg_advisory_xact_lock(%s, %s)", (APPLICATION_ID, number))

    @contextmanager
    def _transaction(self, level: str) -> Iterator[None]:
        self._execute(f"BEGIN ISOLATION LEVEL {level}")
        self._within = True
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with suppress(psycopg.Error):  # where the connection is lost, so is the transaction
                self._execute("ROLLBACK")
            raise
        finally:
            self._within = False

    def _execute(self, statement: str, values: Sequence[Any] | None = ()) -> psycopg.Cursor[dict[str, Any]]:
        session = self._connected()
        try:
            return session.execute(statement, values)
        except psycopg.OperationalError:
            if self._within or not session.closed:
                raise
        return self._connected().execute(statement, values)

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        if self._closed:
            raise LedgerError(f"the ledger {self.name} is closed; open it again")
        if self._session is None or (self._session.closed and not self._within):
            self._session = self._connect()
        return self._session

    def _connect(self) -> psycopg.Connection[dict[str, Any]]:
        session = psycopg.connect(**self.connection, autocommit=True, row_factory=dict_row)
        try:
            settings = session.execute(_SETTINGS, (self.schema,)).fetchone() or {}
            if settings["encoding"] != "UTF8":
                raise LedgerError(f"the database of {self.name} is in {settings['encoding']}; make one in UTF8")
        except BaseException:
            session.close()
            raise
        if settings["fsync"] != "on":
            _log.warning("%s runs with fsync off: what it acknowledges may be lost in a power cut", self.name)
        return session

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.DataError, ProgramLimitExceeded) as error:
            raise ValueError(f"{self.name} cannot hold what was given: {_said(error)}; nothing is stored") from error
        except LockNotAvailable as error:
            raise LedgerError(f"{self.name} is being written by somebody else; try again") from error
        except psycopg.Error as error:
            raise LedgerError(
                f"{self.name}: {_said(error)}. All that was acknowledged is kept. Where the connection broke, this call"
                " may be stored or not: make it again, for what is stored already is left alone"
            ) from error


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip()


def _as_postgres(schema: str) -> str:
    # Words are compared by their bytes, as SQLite does; a REAL of PostgreSQL would have half the digits.
    types = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "TEXT": 'TEXT COLLATE "C"'}
    return re.sub(r"\b(INTEGER|REAL|TEXT)\b", lambda match: types[match[1]], schema)


def _understood(address: str) -> tuple[dict[str, Any], str]:
    """What to connect by, and the name of the schema."""
    try:
        parts = urlsplit(address)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        schema = options.pop("schema", DEFAULT_SCHEMA)
        known = urlencode(options, quote_via=quote)
        connection = conninfo_to_dict(f"{parts.scheme}://{parts.netloc}{parts.path}?{known}")
    except (ValueError, psycopg.Error):  # what libpq says of it may hold the password
        raise ValueError(
            f"{without_password(address)} is no address that libpq understands; write"
            " postgresql://USER@HOST:PORT/DATABASE?schema=NAME, with % for the characters that an address cannot have"
        ) from None
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", schema):
        raise ValueError(f"schema must be a word of small letters, digits and _, got {schema!r}")
    return {**DEFAULTS, **connection}, schema
