"""The one truth: every item, version, namespace, validity and place, in one SQLite file that only ever grows, or, for
several machines, on one PostgreSQL server.

Two tables. `version` holds what was said (a row for each version of an item at a place, with how it stands now);
`change` is the log of what happened, in order, each row chained to the one before it. Rows carry checksums, which are
compared whenever a row is read. A transaction is acknowledged once it is synced.

This file knows nothing of models, indexes, prompts or weights: whatever those keep is a projection that replays
`Ledger.changes` and can be thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from memory_paths.database import Database, Row, SqliteDatabase, check_kind, damage, explained, is_server
from memory_paths.database import LedgerError as LedgerError
from memory_paths.files import sync
from memory_paths.pages import Cell, Pages, shortage, with_log
from memory_paths.types import Knowledge

Action = Literal["add", "remove", "plan"]
Removal = Literal["forgotten", "evicted"]
Reason = Literal["recorded", "superseded", "expired", "forgotten", "evicted", "moved", "planned"]

SCHEMA_VERSION = 2
ERASED = "[erased]"  # stands where a forgotten text stood
PART = 500  # values in one question; SQLite allows 999 in its oldest versions

# Versions whose text may still be recalled: what is held, and, for questions about the past, what was replaced.
# Forgotten, evicted and moved versions are not among them, whatever time is asked about.
RECALLABLE = "reason IN ('', 'superseded', 'expired')"

_UNTIL = "({0} IS NULL OR {0} > ?)"
LAST_CHARACTER = "\U0010ffff"  # behind everything that begins the same, where bytes are compared too

_SCHEMA = """
CREATE TABLE version (
    version     INTEGER PRIMARY KEY,  -- monotonic, never reused: rows are never deleted
    namespace   TEXT NOT NULL,
    place       TEXT NOT NULL,
    id          TEXT NOT NULL,
    key         TEXT NOT NULL,
    content     TEXT NOT NULL,        -- Knowledge.to_json
    recorded_at REAL NOT NULL,
    valid_from  REAL,
    valid_until REAL,
    ended_at    REAL,                 -- while it is held: when its successor, which is written already, begins
    reason      TEXT NOT NULL,        -- why it ended; empty while it is held
    successor   INTEGER,              -- the version that superseded it, or will at ended_at
    checksum    TEXT NOT NULL
);
-- One index for two purposes: the versions of an id, and that it is held at most once at a place.
CREATE UNIQUE INDEX version_id ON version (namespace, id, place, (CASE reason WHEN '' THEN 0 ELSE version END));
CREATE INDEX version_key ON version (namespace, key) WHERE reason = '' AND key <> '';
-- For what arrives late.
CREATE INDEX version_past ON version (namespace, key) WHERE reason = 'superseded' AND key <> '';
CREATE INDEX version_ending ON version (ended_at) WHERE reason = '' AND ended_at IS NOT NULL;
-- For what was merged into another item.
CREATE INDEX version_merged ON version (successor) WHERE reason = 'superseded' AND key = '';
CREATE TABLE change (
    position    INTEGER PRIMARY KEY,
    place       TEXT NOT NULL,
    version     INTEGER NOT NULL,
    action      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    recorded_at REAL NOT NULL,
    checksum    TEXT NOT NULL,
    chain       TEXT NOT NULL         -- hash over the checksums up to here: the identity of this history
);
CREATE INDEX change_place ON change (place, position);
"""
_VERSION = (
    "version, namespace, place, id, key, content, recorded_at, valid_from, valid_until, ended_at, reason, successor"
)
_CHANGE = "position, place, version, action, reason, recorded_at"
_COLUMNS = {"version": f"{_VERSION}, checksum", "change": f"{_CHANGE}, checksum, chain"}  # as the tables have them
_NAMES = {"version": tuple(_VERSION.split(", ")), "change": tuple(_CHANGE.split(", "))}
_LATEST_FIRST = ("forgotten", "evicted", "moved", "expired", "superseded", "")  # how a version may stand
_TIMES = ("recorded_at", "valid_from", "valid_until", "ended_at")


@dataclass(frozen=True)
class Recorded:
    """What `Ledger.record` did: the versions that are new, and the ids that they superseded at once."""

    versions: tuple[Version, ...]
    superseded: tuple[str, ...]

    @property
    def written(self) -> tuple[Knowledge, ...]:
        """The items that became new versions."""
        return tuple(version.item for version in self.versions)


@dataclass(frozen=True)
class Change:
    """One step of the log: a version came to a place ("add") or left it ("remove"), and why; or its end in the future
    has changed ("plan"). `entry` tells how that version stands by now, which may be after this step; `recorded_at` is
    when the step was taken, the same for all steps of one call."""

    position: int
    action: Action
    reason: Reason
    recorded_at: float
    entry: Version

    @property
    def namespace(self) -> str:
        """Whose item it is."""
        return self.entry.namespace

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.entry.version

    @property
    def item(self) -> Knowledge:
        """The item."""
        return self.entry.item


@dataclass(frozen=True)
class Version:
    """One version of an item at one place. `reason` is None while it is held.

    `ended_at` and `superseded_by` are known ahead where a successor is written whose validity has yet to begin.
    """

    version: int
    item: Knowledge
    namespace: str
    place: str
    recorded_at: float
    ended_at: float | None
    reason: Reason | None
    superseded_by: str | None

    @property
    def text(self) -> str:
        """The text of this version."""
        return self.item.text


class _TakenBackError(Exception):
    """Ends a transaction that was only to show what would happen."""


@dataclass(frozen=True)
class Standing:
    """Which versions stand at a time, in the order of writing, and until when that is so if nothing is written."""

    versions: tuple[int, ...]
    until: float


class Ledger:
    """An append-only store of items; threads may share it, and so may processes that open the same file, or, on any
    number of machines, the same server.

    Args:
        file: The SQLite file, made with its folder where it is missing, or ":memory:" for one that is gone on closing,
            or postgresql://USER@HOST:PORT/DATABASE?schema=NAME (see `memory_paths.postgres`).
        clock: Gives the present in seconds since the epoch. Machines that share a server need clocks that agree.

    Raises:
        LedgerError: The file is not a ledger, is damaged, was written by a newer version, or cannot be opened; the
            server cannot be reached.
        ImportError: A server without the extra [postgres].
    """

    def __init__(self, file: str | Path = ":memory:", *, clock: Callable[[], float] = time.time) -> None:
        self._database: Database
        if is_server(file):
            from memory_paths.postgres import PostgresDatabase

            self._database = PostgresDatabase(str(file), _SCHEMA, SCHEMA_VERSION)
        elif "://" in str(file):
            raise LedgerError(f"a ledger is a file or postgresql://..., got {str(file).partition('://')[0]}://...")
        else:
            self._database = SqliteDatabase(file, _SCHEMA, SCHEMA_VERSION)
        self.file = self._database.name
        self._clock = clock
        self._lock = self._database.lock
        self._query = self._database.query

    @property
    def database(self) -> Database:
        """Where the tables are, for projections that live beside them."""
        return self._database

    def record(self, items: Sequence[Knowledge], *, place: str, namespace: str) -> Recorded:
        """Store items at a place, all or none, in one transaction that is on disk when this returns.

        An id that is active here with the same content is left alone. One that was superseded, forgotten or evicted,
        or has expired, starts a new version. An item supersedes what holds under its key in this namespace, at any
        place: at once or, where its own validity begins in the future, from then on; if it is removed before that, the
        other one stays. What is to come under the same key stays too, unless it would begin at the same moment. An
        item whose validity is over supersedes nothing. One that arrives late, its `valid_from` being before that of
        what holds, becomes part of the past: it held from then until the next one began.

        Raises:
            ValueError: An id that is active in this namespace with other content; an empty place or namespace; a text
                that is not Unicode.
            TypeError: Something that is not Knowledge.
            LedgerError: The disk is full or the file cannot be written; nothing of this call is stored then.
        """
        _check_names(place=place, namespace=namespace)
        given = [(item, _content(item)) for item in items]
        with self._transaction():
            return self._recorded(given, place, namespace)

    def foresee(self, items: Sequence[Knowledge], *, place: str, namespace: str) -> tuple[str, ...]:
        """The ids that `record` would give a new version which is still held when it is done, in order: without what is
        recorded already, arrives late, or is superseded by another of these items. Nothing is stored.

        Raises:
            ValueError, TypeError, LedgerError: As `record` would.
        """
        _check_names(place=place, namespace=namespace)
        given = [(item, _content(item)) for item in items]
        with contextlib.suppress(_TakenBackError), self._transaction():
            versions = self._recorded(given, place, namespace).versions
            found = self.get(version.version for version in versions).values()
            held = tuple(version.item.id for version in found if version.reason is None)
            raise _TakenBackError
        return held

    def _recorded(self, given: Sequence[tuple[Knowledge, str]], place: str, namespace: str) -> Recorded:
        written: list[Version] = []
        superseded: list[str] = []
        now = self._settled()
        add = partial(self._add, place=place, namespace=namespace, recorded_at=now, reason="recorded", now=now)
        ids, keys = self._taken([item for item, _ in given], namespace)
        plain: list[tuple[Knowledge, str]] = []  # new under their id and their key: nothing to compare them with
        for item, content in given:
            is_plain = item.id not in ids and item.key not in keys
            ids.add(item.id)
            if item.key:
                keys.add(item.key)
            if is_plain:
                plain.append((item, content))
                continue
            written += add(plain)
            plain = []
            if not self._is_recorded(item, content, place, namespace, now):
                written += add([(item, content)])
                superseded += self._supersede(item, written[-1].version, namespace, now)
        written += add(plain)
        return Recorded(tuple(written), tuple(dict.fromkeys(superseded)))

    def remove(self, ids: Sequence[str], *, place: str, namespace: str, reason: Removal) -> tuple[str, ...]:
        """Stop holding ids at a place, in one transaction. Ids that are not held are ignored.

        Forgetting also covers the versions of these ids at this place that were replaced earlier, so that questions
        about the past do not bring them back, those that were evicted or moved away, wherever that was, so that
        `compact` erases their text too, and what was ended in their favour (`supersede`), in turn. Other ids under the
        same key stay as they are: nothing takes the place of a forgotten item. See `under` for all that was said under
        a key.

        Returns:
            The ids that were held.

        Raises:
            ValueError: An unknown reason, an empty place or namespace.
            TypeError: One string in place of a sequence of ids.
            LedgerError: The file cannot be written; nothing has changed then.
        """
        _check_names(place=place, namespace=namespace)
        ids = check_ids(ids)
        if reason not in get_args(Removal):
            raise ValueError(f"reason must be one of {get_args(Removal)}, got {reason!r}")
        covered = "place = ? AND reason = ''"
        if reason == "forgotten":
            covered = f"((place = ? AND {RECALLABLE}) OR reason IN ('evicted', 'moved'))"
        held = []
        with self._transaction():
            now = self._settled()
            for id in ids:
                rows = self._rows(f"namespace = ? AND id = ? AND {covered} ORDER BY version", namespace, id, place)
                if reason == "forgotten":
                    self._add_merged(rows)
                for row in rows:
                    self._end(row, reason, ended_at=now, now=now, successor=row["successor"])
                    self._replan(row["key"], namespace, now)
                if any(not row["reason"] for row in rows):
                    held.append(id)
        return tuple(held)

    def _add_merged(self, rows: list[Row]) -> None:
        """Add the versions without a key that some of these stand for; one with a key was replaced, by what says
        something else."""
        found = {row["version"] for row in rows}
        for row in rows:
            where = "successor = ? AND reason = 'superseded' AND key = '' ORDER BY version"
            more = [one for one in self._rows(where, row["version"]) if one["version"] not in found]
            found.update(one["version"] for one in more)
            rows += more

    def sweep(self, *, namespace: str, forget: bool = False) -> tuple[str, ...]:
        """End what has expired by now, at every place, in one transaction, so that projections let go of it.

        Args:
            namespace: Whose items.
            forget: Whether it is forgotten as well, together with what had expired and was replaced before: questions
                about the past find it no more, and `compact` erases its text.

        Returns:
            The ids of what was ended or forgotten.
        """
        _check_names(namespace=namespace)
        reason: Reason = "forgotten" if forget else "expired"
        with self._transaction():
            now = self._settled()
            covered = "reason <> 'forgotten'" if forget else "reason = ''"
            rows = self._rows(f"namespace = ? AND valid_until <= ? AND {covered} ORDER BY version", namespace, now)
            for row in rows:
                ended_at = row["ended_at"] if row["reason"] else row["valid_until"]
                self._end(row, reason, ended_at=ended_at, now=now, successor=row["successor"])
                self._replan(row["key"], namespace, now)
        return tuple(dict.fromkeys(row["id"] for row in rows))

    def under(self, keys: Sequence[str], *, namespace: str) -> list[Version]:
        """Every version that was ever written under one of these keys, at every place, in the order of writing; what
        was forgotten without its content. Looks at all versions of the namespace."""
        _check_names(namespace=namespace)
        given = [key for key in check_ids(keys) if key]
        found: list[Version] = []
        for start in range(0, len(given), PART):
            part = given[start : start + PART]
            rows = self._rows(f"namespace = ? AND key IN ({', '.join('?' * len(part))})", namespace, *part)
            found += [_untold(self._version(row)) for row in rows]
        return sorted(found, key=lambda version: version.version)

    def holding(self, key: str, *, namespace: str) -> list[Knowledge]:
        """What is held under a key at any place and has not expired, what is to come included; nothing for an empty
        key."""
        _check_names(namespace=namespace)
        return [Knowledge.from_json(row["content"]) for row in self._sharing(key, namespace, self.now())]

    def move(self, ids: Sequence[str], *, source: str, target: str, namespace: str) -> tuple[str, ...]:
        """Take held items from one place to another, all or none, in one transaction; ids and dates stay.

        An id that is at the target and no longer at the source has been moved already and is left alone.

        Returns:
            The ids that this call moved.

        Raises:
            ValueError: An id that is held at neither place, or a target that is the source.
            LedgerError: The file cannot be written; nothing has changed then.
        """
        _check_names(source=source, target=target, namespace=namespace)
        if source == target:
            raise ValueError(f"items are moved between two places, got {source!r} twice")
        moved = []
        with self._transaction():
            now = self._settled()
            for id in check_ids(ids):
                here, there = (self._held(id, place, namespace) for place in (source, target))
                if here is None and there is None:
                    raise ValueError(f"item {id!r} is held neither at {source!r} nor at {target!r}")
                if here is None:
                    continue
                if there is not None and _expired(there, now):
                    self._end(there, "expired", ended_at=there["valid_until"], now=now)
                    there = None
                self._end(here, "moved", ended_at=now, now=now)
                if there is None:
                    given = [(Knowledge.from_json(here["content"]), here["content"])]
                    self._add(
                        given,
                        place=target,
                        namespace=namespace,
                        recorded_at=here["recorded_at"],
                        reason="moved",
                        now=now,
                    )
                self._replan(here["key"], namespace, now)
                moved.append(id)
        return tuple(moved)

    def supersede(self, successors: Mapping[str, str], *, place: str, namespace: str) -> tuple[str, ...]:
        """End held items in favour of others that are held at the same place, whatever their keys, in one transaction.

        Args:
            successors: By the id that is to end, the id that says the same; pairs of which one is not held are ignored.
            place: Where.
            namespace: Whose items these are.

        Returns:
            The ids that were ended; `reinstate` takes it back.
        """
        _check_names(place=place, namespace=namespace)
        ended = []
        with self._transaction():
            now = self._settled()
            for id, successor in successors.items():
                row, by = (self._held(one, place, namespace) for one in (id, successor))
                if row is not None and by is not None and id != successor:
                    self._end(row, "superseded", ended_at=now, now=now, successor=by["version"])
                    self._replan(row["key"], namespace, now)
                    ended.append(id)
        return tuple(ended)

    def reinstate(self, ids: Sequence[str], *, place: str, namespace: str) -> tuple[str, ...]:
        """Hold superseded items again, as the versions that they were, in one transaction.

        Args:
            ids: Of which the last version at the place was superseded; others are ignored.
            place: Where.
            namespace: Whose items these are.

        Returns:
            The ids that are held again.

        Raises:
            ValueError: Another item holds under the key of one of them by now; nothing has changed then.
        """
        _check_names(place=place, namespace=namespace)
        back = []
        with self._transaction():
            now = self._settled()
            for id in check_ids(ids):
                rows = self._rows("namespace = ? AND place = ? AND id = ? ORDER BY version", namespace, place, id)
                if not rows or rows[-1]["reason"] != "superseded":
                    continue
                if holding := [other["id"] for other in self._sharing(rows[-1]["key"], namespace, now)]:
                    raise ValueError(f"item {id!r} cannot hold again: {holding} hold under its key {rows[-1]['key']!r}")
                self._set(rows[-1], "", ended_at=None, successor=None)
                self._log(place, [rows[-1]["version"]], "add", "recorded", now)
                self._replan(rows[-1]["key"], namespace, now)
                back.append(id)
        return tuple(back)

    def active(
        self, *, place: str | None = None, namespace: str | None = None, as_of: float | None = None
    ) -> list[Knowledge]:
        """The items that hold, in the order of writing; see `standing` for what that means.

        Args:
            place: Only what lives here; None: everywhere, an item that lives at two places being listed once.
            namespace: Only what belongs to it; None: all.
            as_of: Seconds since the epoch; None: now.
        """
        found = self.get(self.standing(place=place, namespace=namespace, as_of=as_of).versions)
        return list({(entry.namespace, entry.item.id): entry.item for entry in found.values()}.values())

    def standing(
        self, *, place: str | None = None, namespace: str | None = None, as_of: float | None = None
    ) -> Standing:
        """The versions that hold: `active` without the texts, for projections that filter by version.

        Now: what is held and valid by the clock. As of a time: what held in the world then by all that is known today,
        from `valid_from` (where there is none, from when it was recorded) until `valid_until` or until it was replaced.
        What was forgotten, evicted or moved away does not come back for any time.
        """
        where, values = _where(place=place, namespace=namespace)
        if as_of is not None:
            where += (
                f" AND {RECALLABLE} AND coalesce(valid_from, recorded_at) <= ?"
                f" AND {_UNTIL.format('ended_at')} AND {_UNTIL.format('valid_until')}"
            )
            values += [float(as_of)] * 3
            return Standing(self._numbers(where, values), math.inf)
        now = self.now()
        held = f"{where} AND reason = '' AND {_UNTIL.format('ended_at')}"
        values.append(now)
        valid = f"{held} AND (valid_from IS NULL OR valid_from <= ?) AND {_UNTIL.format('valid_until')}"
        edges = " UNION ALL ".join(
            f"SELECT min({edge}) AS edge FROM version WHERE {held} AND {edge} > ?"
            for edge in ("valid_from", "valid_until", "ended_at")
        )
        with self._lock:
            versions = self._numbers(valid, [*values, now, now])
            until = [row["edge"] for row in self._query(edges, *[*values, now] * 3) if row["edge"] is not None]
        return Standing(versions, min(until, default=math.inf))

    def recallable(self, *, place: str) -> tuple[int, ...]:
        """All versions at a place that some question may still recall: held, superseded or expired, in order."""
        return self._numbers(f"place = ? AND {RECALLABLE}", [place])

    def held(self, ids: Sequence[str], *, place: str, namespace: str) -> dict[str, Knowledge]:
        """Those of these ids that are held at a place and valid now, in the order asked for."""
        _check_names(place=place, namespace=namespace)
        ids, now = check_ids(ids), self.now()
        found: dict[str, Knowledge] = {}
        for start in range(0, len(ids), PART):
            part = ids[start : start + PART]
            rows = self._rows(
                f"namespace = ? AND place = ? AND id IN ({', '.join('?' * len(part))}) AND reason = ''"
                f" AND {_UNTIL.format('ended_at')} AND (valid_from IS NULL OR valid_from <= ?)"
                f" AND {_UNTIL.format('valid_until')}",
                *(namespace, place, *part, now, now, now),
            )
            found.update((row["id"], Knowledge.from_json(row["content"])) for row in rows)
        return {id: found[id] for id in ids if id in found}

    def numbers(self, ids: Sequence[str], *, place: str, namespace: str) -> dict[str, int]:
        """The numbers of the versions of these ids that are held at a place, which grow in the order of writing."""
        _check_names(place=place, namespace=namespace)
        ids, found = check_ids(ids), dict[str, int]()
        for start in range(0, len(ids), PART):
            part = ids[start : start + PART]
            where = f"namespace = ? AND place = ? AND id IN ({', '.join('?' * len(part))}) AND reason = ''"
            rows = self._query(f"SELECT id, version FROM version WHERE {where}", namespace, place, *part)
            found.update((row["id"], row["version"]) for row in rows)
        return found

    def metadata(self, first: int, last: int, *, place: str, namespace: str | None = None) -> dict[int, dict[str, Any]]:
        """The metadata of every version from one number to another, held or not, in order."""
        where, values = _where(place=place, namespace=namespace)
        rows = self._query(
            f"SELECT version, {self._database.metadata} AS metadata FROM version"
            f" WHERE version BETWEEN ? AND ? AND {where} ORDER BY version",
            *(first, last, *values),
        )
        return {row["version"]: json.loads(row["metadata"] or "{}") for row in rows}

    def get(self, versions: Iterable[int]) -> dict[int, Version]:
        """The versions with these numbers, in the order asked for; unknown numbers are left out."""
        numbers = [int(version) for version in versions]
        found = {}
        for start in range(0, len(numbers), PART):
            part = numbers[start : start + PART]
            for row in self._rows(f"version IN ({', '.join('?' * len(part))})", *part):
                found[row["version"]] = self._version(row)
        return {number: found[number] for number in numbers if number in found}

    def beginning(self, prefix: str, *, place: str, namespace: str) -> list[Version]:
        """The recallable versions at a place whose ids begin so, in the order of writing: what is held, and what that
        replaced."""
        _check_names(place=place, namespace=namespace)
        rows = self._rows(
            f"namespace = ? AND id >= ? AND id < ? AND place = ? AND {RECALLABLE} ORDER BY version",
            namespace,
            prefix,
            prefix + LAST_CHARACTER,
            place,
        )
        return [self._version(row) for row in rows]

    def changes(self, *, place: str, after: int = 0) -> list[Change]:
        """What happened at a place since a position, in order: what a projection replays."""
        with self._lock:
            log = self._query(
                f"SELECT {_CHANGE}, checksum FROM change WHERE place = ? AND position > ? ORDER BY position",
                place,
                after,
            )
            versions = self.get(dict.fromkeys(row["version"] for row in log))
        changes = []
        for row in log:
            self._check(row, "change", row["position"])
            if row["version"] not in versions:
                missing = f"change {row['position']} speaks of a version that is missing"
                raise LedgerError(damage(self.file, missing))
            step = {name: row[name] for name in ("position", "action", "reason", "recorded_at")}
            changes.append(Change(**step, entry=versions[row["version"]]))
        return changes

    def changed(self, *, place: str, after: int, known: Sequence[Version] = ()) -> tuple[list[Version], int]:
        """The versions to which something happened at a place since a position, in order, and the position by now: for
        projections that only ask how a version stands.

        Args:
            place: Where.
            after: Only by later changes.
            known: New versions that `record` gave after that position, in order: where nothing else has happened since
                they need not be read back.
        """
        position = self.position()
        if position - after == len(known):  # each of them is one change
            return list(known), position
        changes = self.changes(place=place, after=after)
        versions = {change.version: change.entry for change in changes}
        return [versions[number] for number in sorted(versions)], max(position, changes[-1].position if changes else 0)

    def namespaces(self, *, place: str, holding: str | None = None) -> tuple[str, ...]:
        """The namespaces that ever had an item at a place, in alphabetical order.

        Args:
            place: Where.
            holding: Only those that hold an item whose id begins so; "": any item.
        """
        statement, values = "SELECT DISTINCT namespace FROM version WHERE place = ?", [place]
        if holding is not None:
            statement += " AND reason = '' AND id >= ? AND id < ?"
            values += [holding, holding + LAST_CHARACTER]
        return tuple(row["namespace"] for row in self._query(f"{statement} ORDER BY namespace", *values))

    def history(self, id: str, *, namespace: str) -> list[Version]:
        """Every version of an item at every place, in the order of writing; what was forgotten without its content."""
        _check_names(namespace=namespace)
        rows = self._rows("namespace = ? AND id = ? ORDER BY version", namespace, id)
        return [_untold(self._version(row)) for row in rows]

    def now(self) -> float:
        """The present by the ledger's clock, in seconds since the epoch."""
        return float(self._clock())

    def moment(self) -> AbstractContextManager[None]:
        """All that is read within is of one moment, whoever writes meanwhile."""
        return self._database.reading()

    def position(self) -> int:
        """Number of the last change, 0 at first; it grows with everything that happens at any place."""
        return int(self._query("SELECT coalesce(max(position), 0) AS position FROM change")[0]["position"])

    def fingerprint(self, position: int) -> str | None:
        """A hash over the whole log up to a position, or None where the log is shorter.

        A projection that keeps it can tell whether it was made from this ledger or from another one.
        """
        if position == 0:
            return ""
        rows = self._query("SELECT chain FROM change WHERE position = ?", position)
        return rows[0]["chain"] if rows else None

    def stored_bytes(self, *, place: str) -> int:
        """Bytes of the recallable items of a place, as stored, without the database's own overhead."""
        length = self._database.bytes_of_content
        size = f"SELECT sum({length}) AS size FROM version WHERE place = ? AND {RECALLABLE}"
        return int(self._query(size, place)[0]["size"] or 0)

    def verify(self) -> list[str]:
        """Check every page, checksum and step of the log; one line for each problem, none if all is well."""
        problems: list[str] = []
        stands: dict[int, str] = {}
        chain, expected = "", 0
        with self.moment():
            try:
                problems += self._database.problems()
                for expected, row in enumerate(self._each("change", f"{_CHANGE}, checksum, chain"), start=1):
                    chain = _sha256(chain + row["checksum"])
                    if row["position"] != expected:
                        problems.append(f"change {expected} is missing")
                        break
                    if row["checksum"] != _checksum([row[name] for name in _NAMES["change"]]) or row["chain"] != chain:
                        problems.append(f"change {expected} does not match its checksum")
                        chain = row["chain"]
                    if row["action"] != "plan":
                        stands[row["version"]] = "" if row["action"] == "add" else row["reason"]
                for expected, row in enumerate(self._each("version", f"{_VERSION}, checksum"), start=1):
                    if row["version"] != expected:
                        problems.append(f"version {expected} is missing")
                        break
                    if row["checksum"] != _checksum([row[name] for name in _NAMES["version"]]):
                        problems.append(f"version {expected} does not match its checksum")
                    if stands.pop(expected, None) != row["reason"]:
                        problems.append(f"version {expected} does not stand as the log says")
            except LedgerError as error:
                return [*problems, str(error)]
        problems.extend(f"version {version} is missing, but the log speaks of it" for version in stands)
        return problems

    def compact(self) -> int:
        """Erase what was forgotten: its text, key and source leave every file of the ledger. Its id and dates stay.

        Of a server, the files of the tables; its log and its backups are in its administrator's hands.

        Returns:
            How many versions were erased.

        Raises:
            LedgerError: Somebody else is reading or writing, or the disk is full. What is erased stays so; call again.
        """
        with self._database.erasing(), self._transaction():
            rows = self._rows("reason = 'forgotten'")
            erased = [row for row in rows if Knowledge.from_json(row["content"]).text != ERASED]
            for row in erased:
                values = {"key": "", "content": Knowledge(row["id"], ERASED).to_json()}
                self._query(
                    "UPDATE version SET key = ?, content = ?, checksum = ? WHERE version = ?",
                    *values.values(),
                    _checksum([values.get(name, row[name]) for name in _NAMES["version"]]),
                    row["version"],
                )
        return len(erased)

    def save(self, file: str | Path) -> None:
        """Write a compact copy of the whole ledger into a new SQLite file, synced, wherever the ledger itself is.

        Raises:
            FileExistsError: The file is there already.
            LedgerError: It cannot be written; no half copy is left then.
        """
        path = Path(file)
        if path.exists():
            raise FileExistsError(f"{path} exists; save the ledger under a new name")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".temporary")
        for ending in ("", "-wal"):  # what a copy that was cut off has left
            path.with_name(temporary.name + ending).unlink(missing_ok=True)
        try:
            self._database.copy(temporary, _COLUMNS)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, file: str | Path) -> None:
        """Take over everything from a file that `save` wrote, all or nothing, into this ledger, which must be empty.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: This ledger holds something already, which is not overwritten.
            LedgerError: The file is not a ledger, is damaged or newer than this program; this ledger stays empty then.
        """
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"there is no saved ledger {path}")
        with self._transaction():
            if self.position():
                raise ValueError(f"the ledger {self.file} is not empty; restore {path} into a new one")
            with (
                explained(str(path)),
                closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as saved,
            ):
                if not check_kind(saved, str(path), SCHEMA_VERSION):
                    raise LedgerError(f"{path} is an empty file; name one that `save` wrote")
                for table, names in _COLUMNS.items():
                    rows = saved.execute(f"SELECT {names} FROM {table}")
                    self._database.insert(table, rows, len(names.split(", ")))
            if problems := self.verify():
                raise LedgerError(damage(str(path), problems[0]))

    def close(self) -> None:
        """Release the file or the server. Closing twice is harmless; any other call afterwards is a LedgerError."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transaction(self) -> AbstractContextManager[None]:
        return self._database.writing()

    def _each(self, table: Literal["version", "change"], names: str) -> Iterator[Row]:
        """All rows in order, without holding them at once."""
        return self._database.each(f"SELECT {names} FROM {table} ORDER BY 1")

    def _last_version(self) -> int:
        return int(self._query("SELECT coalesce(max(version), 0) AS number FROM version")[0]["number"])

    def _numbers(self, where: str, values: list[Any]) -> tuple[int, ...]:
        rows = self._query(f"SELECT version FROM version WHERE {where} ORDER BY version", *values)
        return tuple(row["version"] for row in rows)

    def _rows(self, where: str, *values: Any) -> list[Row]:
        # The successor's id comes along, so that a version can be told without another question.
        rows = self._query(
            f"SELECT {_VERSION}, checksum, (SELECT id FROM version AS other WHERE other.version = version.successor)"
            f" AS successor_id FROM version WHERE {where}",
            *values,
        )
        for row in rows:
            self._check(row, "version", row["version"])
        return rows

    def _check(self, row: Row, table: Literal["version", "change"], number: int) -> None:
        if row["checksum"] != _checksum([row[name] for name in _NAMES[table]]):
            raise LedgerError(damage(self.file, f"{table} {number} does not match its checksum"))

    def _version(self, row: Row) -> Version:
        return Version(
            version=row["version"],
            item=Knowledge.from_json(row["content"]),
            namespace=row["namespace"],
            place=row["place"],
            recorded_at=row["recorded_at"],
            ended_at=row["ended_at"],
            reason=row["reason"] or None,
            superseded_by=row["successor_id"],
        )

    def _held(self, id: str, place: str, namespace: str) -> Row | None:
        rows = self._rows("namespace = ? AND place = ? AND id = ? AND reason = ''", namespace, place, id)
        return rows[0] if rows else None

    def _settled(self) -> float:
        """The present, after what was to be superseded until now has been marked so."""
        now = self.now()
        for row in self._rows("reason = '' AND ended_at <= ? ORDER BY ended_at, version", now):
            self._end(row, "superseded", ended_at=row["ended_at"], now=now, successor=row["successor"])
        return now

    def _replan(self, key: str, namespace: str, now: float) -> None:
        """Each item of a key will be superseded by the next one to begin, if one is to come."""
        rows = self._sharing(key, namespace, now)
        coming = sorted((row for row in rows if _begin(row["valid_from"]) > now), key=lambda row: row["valid_from"])
        for row in rows:
            begin = _begin(row["valid_from"])
            after = next((one for one in coming if one["valid_from"] > begin and one["id"] != row["id"]), None)
            ended_at, successor = (after["valid_from"], after["version"]) if after else (None, None)
            if (row["ended_at"], row["successor"]) != (ended_at, successor):
                self._set(row, "", ended_at=ended_at, successor=successor)
                self._log(row["place"], [row["version"]], "plan", "planned", now)

    def _taken(self, items: Sequence[Knowledge], namespace: str) -> tuple[set[str], set[str]]:
        """The ids and the keys of items that are in use in a namespace already."""
        taken = []
        for name in ("id", "key"):
            values = [value for value in dict.fromkeys(getattr(item, name) for item in items) if value]
            found: set[str] = set()
            for start in range(0, len(values), PART):
                part = values[start : start + PART]
                places = ", ".join("?" * len(part))
                rows = self._query(
                    f"SELECT {name} AS value FROM version WHERE namespace = ? AND {name} IN ({places})"
                    " AND reason = '' AND key <> ''"
                    if name == "key"
                    else f"SELECT id AS value FROM version WHERE namespace = ? AND id IN ({places}) AND reason = ''",
                    namespace,
                    *part,
                )
                found.update(row["value"] for row in rows)
            taken.append(found)
        return taken[0], taken[1]

    def _supersede(self, item: Knowledge, version: int, namespace: str, now: float) -> list[str]:
        """End what a new version replaces; the ids of what is replaced at once."""
        if item.valid_until is not None and item.valid_until <= now:
            return []  # what is over already replaces nothing
        superseded = []
        begin = _begin(item.valid_from)
        sharing = self._sharing(item.key, namespace, now)
        if _is_late(item, sharing, now):
            self._place_in_past(item, version, sharing, namespace, now)
            return []
        for row in sharing:
            other = _begin(row["valid_from"])
            if row["id"] == item.id or (begin != other and max(begin, other) > now):
                continue  # it is the item itself, or one holds until the other begins: see _replan
            start = row["recorded_at"] if row["valid_from"] is None else row["valid_from"]
            end = begin if begin > start else now
            self._end(row, "superseded", ended_at=end, now=now, successor=version)
            superseded.append(row["id"])
        self._replan(item.key, namespace, now)
        return superseded

    def _place_in_past(self, item: Knowledge, version: int, sharing: Sequence[Row], namespace: str, now: float) -> None:
        """End a new version where the next one of its key began, and the one before it where it begins itself."""
        assert item.valid_from is not None, "only what is dated arrives late"
        known = [*sharing, *self._replaced(item.key, namespace)]
        new = next(row for row in known if row["version"] == version)
        later = [row for row in known if _begin(row["valid_from"]) > item.valid_from and row["id"] != item.id]
        after = min(later, key=lambda row: (row["valid_from"], row["version"]))
        self._end(new, "superseded", ended_at=after["valid_from"], now=now, successor=after["version"])
        for row in known:
            start = row["recorded_at"] if row["valid_from"] is None else row["valid_from"]
            if row["reason"] and start <= item.valid_from < row["ended_at"]:
                self._set(row, "superseded", ended_at=item.valid_from, successor=version)
                self._log(row["place"], [row["version"]], "plan", "planned", now)

    def _replaced(self, key: str, namespace: str) -> list[Row]:
        return self._rows("namespace = ? AND key = ? AND key <> '' AND reason = 'superseded'", namespace, key)

    def _is_recorded(self, item: Knowledge, content: str, place: str, namespace: str, now: float) -> bool:
        """Whether the item is active at the place, or has its place in the past there already; an expired version of
        its id is ended on the way."""
        here = False
        for row in self._rows("namespace = ? AND id = ? AND reason = ''", namespace, item.id):
            if _expired(row, now):
                if row["place"] == place:
                    self._end(row, "expired", ended_at=row["valid_until"], now=now)
            elif row["content"] != content:
                raise ValueError(
                    f"item {item.id!r} is active in namespace {namespace!r} (at {row['place']!r}) with other content;"
                    " forget it first, or give the update an id of its own and the same key."
                    f" Stored: {row['content']:.200} Given: {content:.200}"
                )
            else:
                here = here or row["place"] == place
        if here or not _is_late(item, self._sharing(item.key, namespace, now), now):
            return here
        return any((row["content"], row["place"]) == (content, place) for row in self._replaced(item.key, namespace))

    def _sharing(self, key: str, namespace: str, now: float) -> list[Row]:
        """What is held under a key, at any place, and has not expired."""
        if not key:
            return []
        rows = self._rows("namespace = ? AND key = ? AND key <> '' AND reason = ''", namespace, key)
        return [row for row in rows if not _expired(row, now)]

    def _add(
        self,
        given: Sequence[tuple[Knowledge, str]],
        *,
        place: str,
        namespace: str,
        recorded_at: float,
        reason: Reason,
        now: float,
    ) -> list[Version]:
        """New versions of items, each given with its canonical JSON."""
        if not given:
            return []
        first = self._last_version() + 1
        # What the rows share is put into the form of `_checksum` once.
        whose, when, standing = _shared(namespace, place), _shared(recorded_at), _shared(None, "", None)
        rows, versions = [], []
        for number, (item, content) in enumerate(given, start=first):
            since, until = item.valid_from, item.valid_until
            validity = "null,null" if since is None and until is None else _shared(since, until)
            said = f"{_quoted(item.id)},{_quoted(item.key)},{_quoted(content)}"
            checksum = _sha256(f"[{number},{whose},{said},{when},{validity},{standing}]")
            row = (number, namespace, place, item.id, item.key, content, recorded_at, since, until)
            rows.append((*row, None, "", None, checksum))
            versions.append(Version(number, item, namespace, place, recorded_at, None, None, None))
        self._insert("version", rows)
        self._log(place, range(first, first + len(rows)), "add", reason, now)
        return versions

    def _end(self, row: Row, reason: Reason, *, ended_at: float, now: float, successor: int | None = None) -> None:
        self._set(row, reason, ended_at=ended_at, successor=successor)
        self._log(row["place"], [row["version"]], "remove", reason, now)

    def _set(self, row: Row, reason: Reason | Literal[""], *, ended_at: float | None, successor: int | None) -> None:
        ended_at = None if ended_at is None else float(ended_at)
        changed = {"ended_at": ended_at, "reason": reason, "successor": successor}
        self._query(
            "UPDATE version SET ended_at = ?, reason = ?, successor = ?, checksum = ? WHERE version = ?",
            ended_at,
            reason,
            successor,
            _checksum([changed.get(name, row[name]) for name in _NAMES["version"]]),
            row["version"],
        )

    def _log(self, place: str, versions: Sequence[int], action: Action, reason: Reason, now: float) -> None:
        last = self._query("SELECT position, chain FROM change ORDER BY position DESC LIMIT 1")
        before, chain = (last[0]["position"], last[0]["chain"]) if last else (0, "")
        rows = []
        where, what = _shared(place), _shared(action, reason, now)
        for position, version in enumerate(versions, start=before + 1):
            checksum = _sha256(f"[{position},{where},{version},{what}]")
            chain = _sha256(chain + checksum)
            rows.append((position, place, version, action, reason, now, checksum, chain))
        self._insert("change", rows)

    def _insert(self, table: Literal["version", "change"], rows: Sequence[tuple[Any, ...]]) -> None:
        self._database.insert(table, rows, len(rows[0]))


@dataclass(frozen=True)
class Salvaged:
    """What `salvage` did.

    Args:
        saved: Versions that are in the new ledger.
        lost: One line for each version that is not, as far as the log or a later version still tells of it.
        doubts: One line for whatever says that there may have been more, or that a version may stand otherwise.
    """

    saved: int
    lost: tuple[str, ...]
    doubts: tuple[str, ...]


def salvage(damaged: str | Path, file: str | Path) -> Salvaged:
    """Write what can still be trusted of a damaged ledger into a new one: each version that is whole on some page and
    matches its checksum, as it stands, with a new log. Of several states of one version that of which the old log tells
    last is taken; what has ended by the log does not hold again.

    The damaged file and its write-ahead log are not touched, and nobody may be writing to them. Where the log alone is
    left, an empty file is put beside it.

    Args:
        damaged: The ledger.
        file: Where the new one goes.

    Raises:
        FileExistsError: The new file is there already, or what SQLite would take for its log.
        FileNotFoundError: There is no damaged one.
        OSError, LedgerError: No version can be saved, or the disk is full; there is no new file then.
    """
    old, path = Path(damaged).resolve(), Path(file)  # the log of a link lies where the link leads
    for ending in ("", "-wal", "-journal"):
        if (there := path.with_name(path.name + ending)).exists():
            raise FileExistsError(f"{there} exists; salvage into a new file")
    if not old.is_file():
        if not old.with_name(f"{old.name}-wal").is_file():
            raise FileNotFoundError(f"there is no ledger {old}")
        old.touch()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
        whole = with_log(old, Path(folder))
        if not whole.stat().st_size:
            raise LedgerError(f"nothing can be saved of {old}: it is empty")
        with (
            whole.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
            Ledger(Path(folder, "ledger")) as new,
        ):
            done = _salvaged(Pages(data), new)
            if not done.saved:
                raise LedgerError(f"nothing can be saved of {old}: there is no whole version of any item in it")
            new.save(path)
    return replace(done, doubts=(*shortage(old), *done.doubts))


def _salvaged(pages: Pages, new: Ledger) -> Salvaged:
    """Fill an empty ledger."""
    places: dict[tuple[int, str], int] = {}  # of versions, by how they stand there
    unlike: set[int] = set()  # versions that do not match their checksum
    holding: dict[tuple[str, str, str], int] = {}  # the last version that is held under an id
    log: dict[int, tuple[int, int, str]] = {}  # of a version: its first change, its last, and how it stood after that
    last = 0
    for place in pages.rows():
        row = pages.read(place)
        if (version := _stored("version", row)) is not None:
            number, reason = version[0], version[-2]
            last = max(last, number)
            places[number, reason] = place
            if not reason:
                holding[version[1:4]] = max(number, holding.get(version[1:4], 0))
        elif (change := _stored("change", row)) is not None:
            position, _, number, action, reason, _ = change
            last = max(last, number)
            if action != "plan":
                stood = "" if action == "add" else reason
                first, latest, before = log.get(number, (position, 0, ""))
                log[number] = (min(first, position), *max((position, stood), (latest, before)))
        elif row is not None and row.number is not None and len(row.values) > len(_NAMES["version"]):
            unlike.add(row.number)
    seen = {number for number, _ in places}
    names: dict[int, str] = {}  # of versions that were not found, without a checksum
    for place in pages.entries():
        row = pages.read(place)
        if row is not None and len(row.values) == 5 and isinstance(row.values[-1], int):  # of the index version_id
            namespace, id, where, _, number = row.values
            if number not in seen:
                names[number] = f"an index names it item {id!r} of namespace {namespace!r} at {where!r}"
    lost: list[str] = []
    doubts = [f"version {number}: {name}" for number, name in sorted(names.items()) if number > last]
    position, chain = 0, ""
    with new._transaction():
        for number in range(1, last + 1):
            found = [reason for reason in _LATEST_FIRST if (number, reason) in places]
            first, latest, stood = log.get(number, (0, 0, ""))
            # Its arrival alone tells nothing: the log may have lost its end. Nothing undoes forgetting.
            is_told = bool(stood) or first < latest
            stands = stood if is_told and stood in found and "forgotten" not in found else next(iter(found), None)
            version = None if stands is None else _stored("version", pages.read(places[number, stands]))
            why = ""
            if version is None:
                why = "it does not match its checksum" if number in unlike else "it is missing"
            elif not stands and holding[version[1:4]] > number:
                why = f"it was replaced by version {holding[version[1:4]]}, and what is there is older"
            elif stands != stood and (not stands or stood == "forgotten"):
                why = f"it was {stood}, and what is there is older"
            elif stands != "forgotten" and (stands != stood if is_told else len(found) > 1):
                doubts.append(f"version {number} is saved as {stands}, but the log or another row has it otherwise")
            elif not stands and number in unlike:
                doubts.append(f"version {number} is saved as held, but another row of it does not match its checksum")
            if version is None or why:
                lost.append(f"version {number} is lost: {'; '.join(filter(None, (why, names.get(number))))}")
                stand_in = Knowledge(f"lost-{number}", ERASED)
                version = (number, "lost", "lost", stand_in.id, "", stand_in.to_json(), 0.0, None, None, 0.0)
                version = (*version, "forgotten", None)
            new._insert("version", [(*version, _checksum(version))])
            for action, reason in (("add", "recorded"), ("remove", version[-2])):
                if reason:
                    position += 1
                    fields = (position, version[2], number, action, reason, version[6])
                    checksum = _checksum(fields)
                    chain = _sha256(chain + checksum)
                    new._insert("change", [(*fields, checksum, chain)])
    return Salvaged(last - len(lost), tuple(lost), tuple(doubts))


def _stored(table: Literal["version", "change"], row: Cell | None) -> tuple[Any, ...] | None:
    """The fields of a row as its checksum has them; None: it is no row of the table, or does not match it."""
    names = _NAMES[table]
    if row is None or row.number is None or len(row.values) != len(_COLUMNS[table].split(", ")):
        return None
    # SQLite keeps the number of a row beside its values, and a time without a fraction as an integer.
    fields = tuple(
        float(value) if name in _TIMES and isinstance(value, int) else value
        for name, value in zip(names, (row.number, *row.values[1:]), strict=False)
    )
    try:
        return fields if _checksum(fields) == row.values[len(names)] else None
    except TypeError:  # bytes, which no checksum was made of
        return None


_to_json = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii  # what the encoder does with a str


def _checksum(values: Sequence[Any]) -> str:
    return _sha256(_to_json(list(values)))


def _shared(*values: Any) -> str:
    """Some of a row's values as `_checksum` reads them."""
    return _to_json(list(values))[1:-1]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(item: Knowledge) -> str:
    """The canonical JSON of an item that can be recorded."""
    if not isinstance(item, Knowledge):
        raise TypeError(f"a ledger records Knowledge, got {type(item).__name__}: {item!r:.80}")
    content = item.to_json()
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"item {item.id!r} is not valid Unicode ({error.reason}); clean the text") from error
    if item.valid_from != item.valid_from or item.valid_until != item.valid_until:  # as NaN alone does
        raise ValueError(f"item {item.id!r} has a validity that is not a number; give seconds or None")
    return content


def _expired(row: Row, now: float) -> bool:
    return row["valid_until"] is not None and row["valid_until"] <= now


def _untold(version: Version) -> Version:
    if version.reason != "forgotten":
        return version
    return replace(version, item=Knowledge(version.item.id, ERASED))


def _is_late(item: Knowledge, sharing: Sequence[Row], now: float) -> bool:
    """Whether an item begins before one of its key that holds by now, both being dated."""
    begin = item.valid_from
    return begin is not None and any(begin < _begin(row["valid_from"]) <= now for row in sharing)


def _begin(valid_from: float | None) -> float:
    return -math.inf if valid_from is None else valid_from


def _where(**wanted: str | None) -> tuple[str, list[Any]]:
    given = {name: value for name, value in wanted.items() if value is not None}
    _check_names(**given)
    return " AND ".join(["TRUE", *(f"{name} = ?" for name in given)]), list(given.values())


def _check_names(**names: str) -> None:
    for name, value in names.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} must be a non-empty string, got {value!r}")


def check_ids(ids: Sequence[str]) -> list[str]:
    """Distinct ids in their order.

    Raises:
        TypeError: One string, whose characters would pass for ids.
    """
    if isinstance(ids, str):
        raise TypeError(f"ids must be a sequence of ids, got one string {ids!r}; write [{ids!r}]")
    return list(dict.fromkeys(ids))
