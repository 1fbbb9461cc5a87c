"""The context window as a memory: what fits into a prompt, in which order, and what has to go when it is full.

`pack` fits the recalls of any path into a token budget. `InContext` is the path that knows nothing but the window;
`NoMemory` is the control that keeps nothing. This file knows nothing of how a prompt is laid out: the model counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from memory_paths.eviction import ORIGINALS_AT, SUMMARY_OF, Eviction, Recency, Spill, Summarise
from memory_paths.files import read_json
from memory_paths.ledger import Ledger, Removal, Version
from memory_paths.types import (
    Capabilities,
    Cost,
    Generates,
    Knowledge,
    Prompt,
    Query,
    Reading,
    Recall,
    Receipt,
    TooLarge,
    Usage,
)

logger = logging.getLogger(__name__)

FORMAT = 1


def _edges_first(recalls: Sequence[Recall]) -> list[Recall]:
    return [*recalls[0::2], *reversed(recalls[1::2])]


# From best first to the order in which notes stand in the prompt. What a model makes of a position is a matter of the
# model (Liu et al. 2023, arXiv 2307.03172).
ORDERS: dict[str, Callable[[Sequence[Recall]], list[Recall]]] = {
    "relevance_last": lambda recalls: list(reversed(recalls)),
    "edges_first": _edges_first,
    "chronological": lambda recalls: sorted(recalls, key=lambda recall: recall.score),
}


def pack(
    lm: Generates,
    query: Query,
    recalls: Sequence[Recall],
    *,
    budget: int | None = None,
    reserve: int = 32,
    order: str = "relevance_last",
) -> tuple[Recall, ...]:
    """The recalls that stand in the prompt for a query, in the order in which they stand there.

    The best are taken first; one that does not fit is left out whole, and the next may still fit. A text that is there
    already is not repeated.

    Args:
        lm: The model that will read the prompt; it counts the tokens.
        query: The question; its own `token_budget`, where it is lower, holds.
        recalls: Best first.
        budget: Most tokens that the laid-out prompt may have; None: the window less `reserve`.
        reserve: Tokens of the window that are kept free for the answer.
        order: "relevance_last" (the best next to the question), "edges_first" (the best at both ends), or
            "chronological" (by rising score, for a path whose score is the time of writing).

    Raises:
        TooLarge: The question alone is longer than the budget.
        ValueError: An unknown order, or a budget over the window less the reserve.
    """
    arrange = _arrangement(order)
    most = most_tokens(lm, budget, reserve)
    room = most if query.token_budget is None else min(most, query.token_budget)
    bare = lm.count_tokens(query.prompt())
    if bare > room:
        raise TooLarge(
            f"the question alone has {bare} tokens, the budget is {room}; ask more briefly or raise the budget:"
            f" {query.text[:80]!r}"
        )
    empty = bare + _heading_tokens(lm)
    spent = empty
    chosen: dict[str, Recall] = {}
    for recall in recalls:
        tokens = _note_tokens(lm, recall.item.text)
        if empty + tokens > room:
            logger.info(
                "item %r is left out: alone it needs %d tokens, the budget is %d", recall.item.id, empty + tokens, room
            )
        elif spent + tokens <= room and recall.item.text not in chosen:
            chosen[recall.item.text] = recall
            spent += tokens
    # Tokens of single notes need not add up in every tokenizer; what counts is the prompt as it is laid out.
    while chosen:
        packed = tuple(arrange(list(chosen.values())))
        if lm.count_tokens(query.prompt([recall.item.text for recall in packed])) <= room:
            return packed
        chosen.popitem()
    return ()


class InContext:
    """The path into the context window: every item that is held stands in every prompt, in the order of writing.

    It keeps nothing itself: what it holds is what the ledger has at its place. Notes only ever come at the end, so that
    the model's work on the earlier ones can be reused from question to question. When they outgrow their room, some
    leave, in one chunk, and the ledger says so.

    Args:
        lm: The model whose window it is; it counts the tokens.
        ledger: Where items are recorded.
        name: Of the path, and of its place in the ledger.
        budget: Most tokens that a laid-out prompt may have; None: the window less `reserve`.
        reserve: Tokens of the window that are kept free for the answer.
        question_room: Tokens of the budget that are kept free for a question. A longer question costs the oldest notes,
            for that question.
        eviction: Who goes when the notes outgrow `budget - question_room`, and where to; None: `Recency()`.
        order: How `pack` should arrange the notes.

    Raises:
        ValueError: A budget that is over the window less the reserve, or has no room for notes; an eviction to the
            path's own place.
        TooLarge: The ledger holds more than fits, and the eviction refuses.
    """

    capabilities = Capabilities(changes_weights=False, forgets=True, namespaces=True)

    def __init__(
        self,
        lm: Generates,
        ledger: Ledger,
        *,
        name: str = "icl",
        budget: int | None = None,
        reserve: int = 32,
        question_room: int = 32,
        eviction: Eviction | None = None,
        order: str = "chronological",
    ) -> None:
        _arrangement(order)
        self.name = name
        self.order = order
        self.budget = most_tokens(lm, budget, reserve)
        self.note_budget = self.budget - question_room
        if question_room < 0 or self.note_budget < lm.count_tokens(Prompt("")) + _heading_tokens(lm):
            raise ValueError(
                f"a budget of {self.budget} tokens with a question_room of {question_room} has no room for notes;"
                " raise the budget or lower question_room (at least 0)"
            )
        self._lm = lm
        self._ledger = ledger
        self._eviction: Eviction = Recency() if eviction is None else eviction
        self._originals = f"{name}/originals"
        if self.spills_to == name:
            raise ValueError(f"path {name!r} cannot spill to itself; name another path of the agent")
        # When each item was last written or asked for, by namespace and id.
        self._used: dict[str, dict[str, int]] = {}
        self._lock = threading.RLock()
        self._closed = False
        self.flush()

    @property
    def spills_to(self) -> str | None:
        """Name of the path to which what has no room moves, which the same agent must have; None: there is none."""
        return self._eviction.place if isinstance(self._eviction, Spill | Summarise) else None

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items and, if they outgrow the budget, let some go in one chunk.

        `details` names the superseded, the evicted (no longer held) and the moved (held elsewhere in the ledger).

        Raises:
            TooLarge: An item alone is larger than the budget, or they do not fit and the eviction refuses.
            ValueError: An id that is active with other content, or the metadata of a summary. In any case nothing of
                the call is stored.
        """
        self._check_open()
        started = time.perf_counter()
        with self._lock:
            for item in items:
                if SUMMARY_OF in item.metadata:
                    raise ValueError(f"item {item.id!r} has {SUMMARY_OF!r} in its metadata, which only summaries have")
                if (tokens := self._tokens([item])) > self.note_budget:
                    raise TooLarge(
                        f"item {item.id!r} needs {tokens} tokens, path {self.name!r} has {self.note_budget} for notes;"
                        " split it, raise the budget, or teach it to another path",
                        items=[item.id],
                    )
            self._leaving(self._after(items, namespace), namespace)  # may refuse, before anything is stored
            recorded = self._ledger.record(items, place=self.name, namespace=namespace)
            self._note_use([item.id for item in items], namespace)
            evicted, moved = self._settle(namespace)
        cost = Cost(index=Usage(seconds=time.perf_counter() - started))
        details = {"superseded": recorded.superseded, "evicted": evicted, "moved": moved}
        kept = dict.fromkeys(item.id for item in items if item.id not in evicted)
        return Receipt(tuple(kept), cost, details=details)

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """See `MemoryPath`.

        Raises:
            TooLarge: Some of them would be evicted at once.
        """
        self._check_open()
        leaving = {item.id for item in self._leaving(self._after(items, namespace), namespace)}
        if lost := leaving.intersection(item.id for item in items):
            raise TooLarge(f"path {self.name!r} has no room for {sorted(lost)}; move fewer, or raise its budget")

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """All that is held and that the query admits, the newest first; the score is the place in the order of writing,
        higher for newer.

        Raises:
            TooLarge: The notes and a question do not fit, and the eviction refuses.
        """
        self._check_open()
        held: dict[tuple[str, float | None], tuple[Recall, ...]] = {}
        readings = []
        for query in queries:
            started = time.perf_counter()
            group = (query.namespace, query.as_of)
            if group not in held:
                items = self._holding(query.namespace, query.as_of)
                held[group] = tuple(Recall(item, float(score)) for score, item in enumerate(items))[::-1]
            found = tuple(one for one in held[group] if query.admits(one.item.kind, one.item.metadata))
            self._refuse_overflow(query, [recall.item for recall in reversed(found)], query.namespace)
            cost = Cost(index=Usage(seconds=time.perf_counter() - started))
            readings.append(Reading(found, cost, self.order, self.budget))
        return readings

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids. Ids that are not held are ignored.

        No summary speaks on of what was forgotten; a summary is forgotten together with what it stands for.
        """
        self._check_open()
        with self._lock:
            items = {
                item.id: item
                for place in self._places
                for item in self._ledger.active(place=place, namespace=namespace)
            }
            behind = [original for id in ids if id in items for original in _behind(items[id], items)]
            gone = [
                id
                for place in self._places
                for id in self._ledger.remove([*ids, *behind], place=place, namespace=namespace, reason="forgotten")
            ]
            if self._take_apart(namespace):
                self._settle(namespace)
        return Receipt(tuple(dict.fromkeys(gone)))

    def use(self, ids: Sequence[str], namespace: str) -> None:
        """Say that these were asked for, so that policies that look at use keep them longer.

        Reading by itself is no use: every note stands in every prompt, and an evaluation must not change what is kept.
        Ids that are not held are ignored. Kept by `save`; after a new start without it all count as unused.
        """
        self._check_open()
        with self._lock:
            held = {item.id for item in self._ledger.active(place=self.name, namespace=namespace)}
            self._note_use([id for id in ids if id in held], namespace)

    def originals(self, id: str, namespace: str) -> list[Knowledge]:
        """What a summary stands for, summaries in turn among them, in the order of writing.

        Raises:
            ValueError: The id is not held, or is no summary.
        """
        self._check_open()
        items = {item.id: item for item in self._ledger.active(namespace=namespace)}
        if id not in items or not items[id].metadata.get(SUMMARY_OF):
            raise ValueError(f"path {self.name!r} holds no summary {id!r}; items() lists what it holds")
        behind = set(_behind(items[id], items))
        return [item for item in items.values() if item.id in behind]

    def items(self, namespace: str) -> list[Knowledge]:
        """What this path holds now, in the order of writing."""
        self._check_open()
        return self._holding(namespace)

    def model(self, lm: Any) -> AbstractContextManager[Any]:
        """The given model as it is."""
        self._check_open()
        return nullcontext(lm)

    def flush(self) -> None:
        """Evict what came to this place otherwise than by `write` and does not fit."""
        self._check_open()
        for namespace in dict.fromkeys(version.namespace for version in self._versions()):
            self._settle(namespace)

    def state_hash(self) -> str:
        """SHA-256 of the options and of every item that some question could recall, in hex."""
        self._check_open()
        digest = hashlib.sha256(repr((self.name, self.budget, self.note_budget, self.order, self._eviction)).encode())
        for version in self._versions():
            digest.update(json.dumps([version.namespace, version.reason, version.item.to_json()]).encode())
        return digest.hexdigest()

    def stored_bytes(self) -> int:
        """Bytes of the items, as the ledger stores them, and of what summaries stand for."""
        self._check_open()
        return sum(self._ledger.stored_bytes(place=place) for place in self._places)

    def save(self, folder: Path) -> None:
        """Note which state this is and what was used when; the items themselves are saved with the ledger."""
        self._check_open()
        _save_manifest(folder, self.name, self.state_hash(), used=self._used)

    def load(self, folder: Path) -> None:
        """Check that the ledger, loaded by its owner, holds what it held on saving.

        Raises:
            FileNotFoundError: The folder holds no saved path.
            ValueError: It was saved with another ledger, under another name, or with other options.
        """
        self._check_open()
        self._used = _check_manifest(folder, self.name, self.state_hash()).get("used", {})

    def close(self) -> None:
        """End the use of this path; the ledger stays open, for it belongs to whoever opened it."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"path {self.name!r} is closed; make a new one")

    def _versions(self) -> list[Version]:
        return list(self._ledger.get(self._ledger.recallable(place=self.name)).values())

    def _tokens(self, items: Sequence[Knowledge]) -> int:
        return self._lm.count_tokens(Prompt("", tuple(item.text for item in items)))

    def _after(self, items: Sequence[Knowledge], namespace: str) -> list[Knowledge]:
        """What would stand in the window after a write; what holds at another time does not."""
        held = {item.id: item for item in self._ledger.active(place=self.name, namespace=namespace)}
        now = self._ledger.now()
        for item in items:
            if not (item.valid_from or 0.0) <= now < (math.inf if item.valid_until is None else item.valid_until):
                continue
            held = {id: other for id, other in held.items() if not item.key or other.key != item.key or id == item.id}
            held[item.id] = item
        return list(held.values())

    @property
    def _places(self) -> tuple[str, str]:
        """Where the window's own items are: in sight, and behind summaries."""
        return self.name, self._originals

    def _holding(self, namespace: str, as_of: float | None = None) -> list[Knowledge]:
        """The items in sight, without summaries that no longer hold."""
        items = self._ledger.active(place=self.name, namespace=namespace, as_of=as_of)
        stale = {item.id for item in self._stale(items, namespace)}
        return [item for item in items if item.id not in stale]

    def _stale(self, items: Sequence[Knowledge], namespace: str) -> list[Knowledge]:
        """The summaries among the items that speak of something that no longer holds."""

        @functools.cache
        def held(place: str) -> dict[str, Knowledge]:
            return {item.id: item for item in self._ledger.active(place=place, namespace=namespace)}

        def holds(item: Knowledge) -> bool:
            ids = item.metadata.get(SUMMARY_OF, ())
            archived = held(self._archive(item)) if ids else {}
            return all(id in archived and holds(archived[id]) for id in ids)

        return [item for item in items if not holds(item)]

    def _archive(self, summary: Knowledge) -> str:
        return str(summary.metadata.get(ORIGINALS_AT) or self._originals)

    def _take_apart(self, namespace: str) -> bool:
        """Bring back what is left behind summaries that no longer hold, and drop these; whether there were any."""
        found = False
        while stale := self._stale(self._ledger.active(place=self.name, namespace=namespace), namespace):
            found = True
            for summary in stale:
                place = self._archive(summary)
                kept = {item.id for item in self._ledger.active(place=place, namespace=namespace)}
                back = [id for id in summary.metadata[SUMMARY_OF] if id in kept]
                self._ledger.move(back, source=place, target=self.name, namespace=namespace)
            # Only now: an interruption before it leaves a summary that is taken apart again. Forgotten, for it may
            # quote what was.
            self._ledger.remove([one.id for one in stale], place=self.name, namespace=namespace, reason="forgotten")
        return found

    def _settle(self, namespace: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Let go what does not fit: the ids that are no longer held, and those that moved."""
        evicted: list[str] = []
        moved: list[str] = []
        with self._lock:
            self._take_apart(namespace)
            # More than once where a summary needs room in turn; each is shorter than what it stands for.
            while leaving := self._leaving(self._ledger.active(place=self.name, namespace=namespace), namespace):
                ids = [item.id for item in leaving]
                logger.info("path %r lets %d items of namespace %r go", self.name, len(ids), namespace)
                if place := self._place_for(leaving, namespace):
                    moved += self._ledger.move(ids, source=self.name, target=place, namespace=namespace)
                else:
                    evicted += self._drop(leaving, namespace)
                for id in ids:
                    self._used.get(namespace, {}).pop(id, None)
        return tuple(evicted), tuple(moved)

    def _place_for(self, leaving: Sequence[Knowledge], namespace: str) -> str | None:
        """Where they go; None: nowhere. A summary of them, if there is one, stands in the window on return."""
        if isinstance(self._eviction, Spill):
            return self._eviction.place
        if not isinstance(self._eviction, Summarise):
            return None
        place = self._eviction.place or self._originals
        summary = self._eviction.summary(self._lm, leaving, place)
        if summary is None:
            return None
        longest = sum(_note_tokens(self._lm, item.text) for item in leaving)
        if _note_tokens(self._lm, summary.text) >= longest or self._tokens([summary]) > self.note_budget:
            logger.warning("path %r does not use a summary that is no shorter than what it stands for", self.name)
            return None
        self._ledger.record([summary], place=self.name, namespace=namespace)
        self._note_use([summary.id], namespace)
        return place

    def _drop(self, leaving: Sequence[Knowledge], namespace: str) -> list[str]:
        """Evict items, and with a summary what it stands for."""
        archived = {item.id: item for item in self._ledger.active(place=self._originals, namespace=namespace)}
        behind = [id for item in leaving for id in _behind(item, archived)]
        ids = [*(item.id for item in leaving), *behind]
        # Summaries are forgotten: later nobody could find one from what it stood for, to erase it together with that.
        summaries = {one.id for one in (*leaving, *archived.values()) if SUMMARY_OF in one.metadata}
        parts: tuple[tuple[Removal, list[str]], ...] = (
            ("evicted", [id for id in ids if id not in summaries]),
            ("forgotten", [id for id in ids if id in summaries]),
        )
        gone = [
            self._ledger.remove(part, place=place, namespace=namespace, reason=reason)
            for place in self._places
            for reason, part in parts
        ]
        return [id for removed in gone for id in removed]

    def _note_use(self, ids: Sequence[str], namespace: str) -> None:
        used = self._used.setdefault(namespace, {})
        latest = max(used.values(), default=0)
        used.update({id: latest + 1 + place for place, id in enumerate(ids)})

    def _leaving(self, items: Sequence[Knowledge], namespace: str) -> list[Knowledge]:
        """What has to go so that the rest fits: nothing, or enough to come down to the share that eviction keeps."""
        if (tokens := self._tokens(items)) <= self.note_budget:
            return []
        staying = {item.id: item for item in items}
        for item in self._order(items, namespace):
            enough = tokens <= self._eviction.keep * self.note_budget or len(staying) == 1
            if enough and self._tokens(list(staying.values())) <= self.note_budget:
                break
            del staying[item.id]
            tokens -= _note_tokens(self._lm, item.text)
        if (tokens := self._tokens(list(staying.values()))) > self.note_budget:
            raise TooLarge(
                f"{len(staying)} notes need {tokens} tokens, path {self.name!r} has {self.note_budget} for notes"
                " and may evict none of them"
            )
        return [item for item in items if item.id not in staying]

    def _order(self, items: Sequence[Knowledge], namespace: str) -> list[Knowledge]:
        used = self._used.get(namespace, {})
        return self._eviction(items, {item.id: used.get(item.id, 0) for item in items})

    def _refuse_overflow(self, query: Query, items: Sequence[Knowledge], namespace: str) -> None:
        if not items or self._order(items, namespace):
            return
        room = min(self.budget, query.token_budget or self.budget)
        tokens = self._lm.count_tokens(query.prompt([item.text for item in items]))
        if tokens > room:
            raise TooLarge(
                f"{len(items)} notes and the question need {tokens} tokens, the budget is {room}, and"
                f" path {self.name!r} may leave none of them out"
            )


class NoMemory:
    """The control that keeps nothing: what it is taught is acknowledged by no id, and it recalls nothing.

    Args:
        lm: Not used; every path is made alike.
        ledger: Not used.
        name: Of the path.
    """

    capabilities = Capabilities(changes_weights=False, forgets=True, namespaces=True)

    def __init__(self, lm: Any, ledger: Ledger, *, name: str = "none") -> None:
        self.name = name

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """An empty receipt."""
        return Receipt(())

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """See `MemoryPath`.

        Raises:
            TooLarge: There is anything to hold.
        """
        if items:
            raise TooLarge(f"path {self.name!r} holds nothing; move {[item.id for item in items]} to another path")

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """Empty readings."""
        return [Reading() for _ in queries]

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Nothing is held."""
        return Receipt(())

    def items(self, namespace: str) -> list[Knowledge]:
        """Nothing is held."""
        return []

    def model(self, lm: Any) -> AbstractContextManager[Any]:
        """The given model as it is."""
        return nullcontext(lm)

    def flush(self) -> None:
        """Nothing is pending."""

    def state_hash(self) -> str:
        """Always the same."""
        return hashlib.sha256(b"no memory").hexdigest()

    def stored_bytes(self) -> int:
        """0."""
        return 0

    def save(self, folder: Path) -> None:
        """Note that there is nothing."""
        _save_manifest(folder, self.name, self.state_hash())

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        _check_manifest(folder, self.name, self.state_hash())

    def close(self) -> None:
        """Nothing is open."""


# Tokens that a note adds to a prompt, by model and text; under None, those of the heading above the first note.
_TOKENS: WeakKeyDictionary[Any, dict[str | None, int]] = WeakKeyDictionary()
_REMEMBERED = 1 << 17


def _note_tokens(lm: Generates, note: str) -> int:
    known = _TOKENS.setdefault(lm, {})
    if note not in known:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[note] = lm.count_tokens(Prompt("", (note, note))) - lm.count_tokens(Prompt("", (note,)))
    return known[note]


def _heading_tokens(lm: Generates) -> int:
    known = _TOKENS.setdefault(lm, {})
    if None not in known:
        with_note, without = (lm.count_tokens(Prompt("", notes)) for notes in (("x",), ()))
        known[None] = with_note - without - _note_tokens(lm, "x")
    return known[None]


def most_tokens(lm: Generates, budget: int | None, reserve: int) -> int:
    """Most tokens that a laid-out prompt may have: the budget, or else the window less the reserve.

    Raises:
        ValueError: A reserve outside the window, or a budget over what it leaves.
    """
    if not 0 <= reserve < lm.window:
        raise ValueError(f"reserve must be at least 0 and less than the window of {lm.window} tokens, got {reserve}")
    most = lm.window - reserve
    if budget is not None and not 1 <= budget <= most:
        raise ValueError(
            f"budget must be between 1 and {most} tokens (the window of {lm.window} less the reserve of {reserve}),"
            f" got {budget}"
        )
    return most if budget is None else budget


def _arrangement(order: str) -> Callable[[Sequence[Recall]], list[Recall]]:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {tuple(ORDERS)}, got {order!r}")
    return ORDERS[order]


def _behind(item: Knowledge, items: Mapping[str, Knowledge]) -> list[str]:
    """Ids of all that a summary stands for, those of summaries among them included."""
    ids = item.metadata.get(SUMMARY_OF, ())
    return [*ids, *(id for one in ids if one in items for id in _behind(items[one], items))]


def _save_manifest(folder: Path, name: str, state_hash: str, **more: Any) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; save into an empty or missing folder")
    manifest = {"format": FORMAT, "name": name, "state_hash": state_hash, **more}
    (folder / "path.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _check_manifest(folder: Path, name: str, state_hash: str) -> dict[str, Any]:
    file = Path(folder) / "path.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no saved path: path.json is missing")
    manifest = read_json(file)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file} has format {manifest.get('format')}, this program reads {FORMAT}")
    if (manifest["name"], manifest["state_hash"]) != (name, state_hash):
        raise ValueError(
            f"{file} was saved by path {manifest['name']!r} in another state; open the ledger that was saved with it"
            " and give the same options"
        )
    return manifest
