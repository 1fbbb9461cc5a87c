"""The bank as LangGraph's BaseStore: what graphs keep beyond a conversation, durable and searched by meaning.

A namespace of LangGraph's, ("users", "ada"), is the bank's namespace "users.ada". This file imports langgraph and is
itself imported only by those who want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from langchain_core.runnables.config import run_in_executor

from memory_paths.ledger import Version
from memory_paths.types import Knowledge, Query

from .bank import Bank
from .named import Names, current
from .postgres import PostgresBank

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        InvalidNamespaceError,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        get_text_at_path,
        validate_op_namespace,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; `pip install memory_paths[langchain]`") from error

MARK = "memory_paths.langgraph"  # in an item's metadata, beside the value's own names: whether queries find it
FOUND, HIDDEN = "found", "hidden"


class BankStore(BaseStore):
    """A bank as the store of a graph: `create_agent(..., store=BankStore(bank))`.

    Each put is durable when it returns, and replaces what stood under its key in one transaction; the puts of a batch
    into one namespace are one transaction together. `created_at` is when a key was first written since it was last
    deleted. Other items of the bank are not seen through it. An expiry (`ttl`) is refused, as reading does not write.
    What an application stores here passes unread, as trusted.

    Args:
        bank: Where the items are. Who made it closes it.
        fields: Which parts of a value a query is compared with, in LangGraph's path syntax, as one text; ("$",) is the
            whole value. A put may name others in `index`, or False to be found by no query.
    """

    def __init__(self, bank: Bank | PostgresBank, *, fields: Sequence[str] = ("$",)) -> None:
        self.bank = bank
        self._fields = tuple(fields)
        self._names = Names(bank, "entry")

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """The results of operations, in order; all reads see what was there before the writes of the same batch.

        Raises:
            InvalidNamespaceError: An empty namespace to write into, or a label that is empty or holds a period.
            NotImplementedError: A `ttl`.
            TypeError: A value that JSON cannot hold, or something that is no operation.
            ValueError: A filter with a comparison that does not exist.
        """
        ops = list(ops)
        for op in ops:
            _check(op)
        results = [self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        for namespace in dict.fromkeys(namespace for namespace, _ in puts):
            here = [op for op in puts.values() if op.namespace == namespace]
            kept = [self._item(op.key, op.value, op.index) for op in here if op.value is not None]
            if kept:
                self.bank.write(kept, _joined(namespace))
            if gone := [op.key for op in here if op.value is None]:
                self._names.forget(gone, _joined(namespace))
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`, without blocking the event loop."""
        return await run_in_executor(None, self.batch, list(ops))

    def _read(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            versions = self._names.versions(op.key, _joined(op.namespace)) if op.namespace else []
            return Item(**_fields(op.key, versions)) if current(versions) else None
        if isinstance(op, SearchOp):
            return self._search(op)
        if isinstance(op, ListNamespacesOp):
            found = [namespace for namespace in self._namespaces() if _matches(op.match_conditions or (), namespace)]
            cut = list(dict.fromkeys(namespace[: op.max_depth] for namespace in found))
            return cut[op.offset : op.offset + op.limit]
        return None

    def _search(self, op: SearchOp) -> list[SearchItem]:
        depth = len(op.namespace_prefix)
        namespaces = [one for one in self._namespaces() if one[:depth] == op.namespace_prefix]
        ranked = self._ranked(op, namespaces) if op.query else self._listed(op, namespaces)
        return [
            SearchItem(**_fields(name, versions), score=score)
            for name, versions, score in ranked[op.offset : op.offset + op.limit]
        ]

    def _listed(
        self, op: SearchOp, namespaces: Sequence[tuple[str, ...]]
    ) -> list[tuple[str, list[Version], float | None]]:
        return [
            (name, versions, None)
            for namespace in namespaces
            for name, versions in self._names.held(_joined(namespace)).items()
            if _fits(_value(versions), op.filter)
        ]

    def _ranked(
        self, op: SearchOp, namespaces: Sequence[tuple[str, ...]]
    ) -> list[tuple[str, list[Version], float | None]]:
        """What queries find, best first, and behind it what they do not."""
        where, rest = _conditions(op.filter)
        queries = [Query(op.query or "", _joined(one), where={MARK: FOUND} | where) for one in namespaces]
        vectors = np.repeat(self.bank.encoder.encode_queries([op.query or ""]), len(queries), axis=0)
        top_k = op.offset + op.limit
        if rest:  # the bank cannot filter by it: everything is ranked, and what fits is taken
            top_k = max((len(self._names.held(query.namespace)) for query in queries), default=0)
        readings = self.bank.search(queries, top_k=max(1, top_k), vectors=vectors)
        found = [
            (self._names.of(recall.item) or "", query.namespace, recall.score)
            for query, reading in zip(queries, readings, strict=True)
            for recall in reading.recalls
            if _fits(_stripped(recall.item), rest)
        ]
        found.sort(key=lambda hit: -hit[2])
        hits: list[tuple[str, list[Version], float | None]] = [
            (name, self._names.versions(name, namespace), score)
            for name, namespace, score in found[: op.offset + op.limit]
        ]
        if len(hits) < op.offset + op.limit:
            hits += [one for one in self._listed(op, namespaces) if _latest(one[1]).metadata[MARK] == HIDDEN]
        return hits

    def _namespaces(self) -> list[tuple[str, ...]]:
        return sorted(tuple(one.split(".")) for one in self.bank.namespaces(f"{self._names.sort}:"))

    def _item(self, key: str, value: Mapping[str, Any], index: Any) -> Knowledge:
        paths = self._fields if index is None else index or ()
        whole = get_text_at_path(dict(value), "$")[0]
        cue = "\n".join(text for path in paths for text in get_text_at_path(dict(value), path)).strip()
        mark = {MARK: FOUND if cue else HIDDEN}
        return self._names.item(key, whole, kind="fact", cue="" if cue == whole else cue, metadata={**value, **mark})


def _check(op: Op) -> None:
    if not isinstance(op, GetOp | SearchOp | ListNamespacesOp | PutOp):
        raise TypeError(f"a store runs GetOp, SearchOp, ListNamespacesOp and PutOp, got {type(op).__name__}")
    validate_op_namespace(op)
    if isinstance(op, SearchOp):
        _fits({}, op.filter)  # raises for a comparison that does not exist
    if isinstance(op, PutOp):
        if not op.namespace:
            raise InvalidNamespaceError("a namespace to write into needs at least one label")
        if op.ttl is not None:
            raise NotImplementedError(f"BankStore keeps no ttl, got {op.ttl} for key {op.key!r}; leave it out")


def _fields(name: str, versions: Sequence[Version]) -> dict[str, Any]:
    """What LangGraph's Item says of a key; `versions` are those under it, the held one among them."""
    held = current(versions)
    assert held is not None
    return {
        "value": _stripped(held.item),
        "key": name,
        "namespace": tuple(held.namespace.split(".")),
        "created_at": datetime.fromtimestamp(versions[0].recorded_at, UTC),
        "updated_at": datetime.fromtimestamp(held.recorded_at, UTC),
    }


def _latest(versions: Sequence[Version]) -> Knowledge:
    held = current(versions)
    assert held is not None
    return held.item


def _value(versions: Sequence[Version]) -> dict[str, Any]:
    return _stripped(_latest(versions))


def _stripped(item: Knowledge) -> dict[str, Any]:
    return {name: value for name, value in item.metadata.items() if name != MARK}


def _conditions(filter: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A filter's conditions as `Query.where` has them, and those that go deeper into a value than it can."""
    where: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, wanted in (filter or {}).items():
        if not isinstance(wanted, Mapping):
            where[name] = {"$eq": wanted}
        elif any(str(key).startswith("$") for key in wanted):
            where[name] = wanted
        else:
            rest[name] = wanted
    return where, rest


def _fits(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """LangGraph's filter: a value is equal, a mapping of `$` names compares, another mapping is fitted by its names."""
    where, rest = _conditions(filter)
    return (
        isinstance(value, Mapping)
        and Query("", where=where).admits("fact", value)
        and all(_fits(value.get(name), wanted) for name, wanted in rest.items())
    )


def _joined(namespace: Sequence[str]) -> str:
    return ".".join(namespace)


def _matches(conditions: Sequence[MatchCondition], namespace: Sequence[str]) -> bool:
    for condition in conditions:
        path, labels = list(condition.path), list(namespace)
        if condition.match_type == "suffix":
            path, labels = path[::-1], labels[::-1]
        if len(path) > len(labels) or any(
            wanted not in ("*", label) for wanted, label in zip(path, labels, strict=False)
        ):
            return False
    return True
