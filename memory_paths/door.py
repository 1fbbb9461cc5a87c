"""What texts and items pass before any path of an agent sees them.

Texts become items, times to live become dates, what the paths say already is known, and what must not get in is kept
apart. This file knows nothing of paths but their places in the ledger.

What was recalled is never learnt again, whoever gives it back, in this process or after a restart: a text alone is
known if an item that is held for good says the very same, but for space around it and the mark of a list. An item with
an id is one of its own, whatever it says: whoever names it must be able to forget it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from memory_paths.ledger import Ledger
from memory_paths.quarantine import Held, Quarantine
from memory_paths.types import Knowledge, KnowledgeKind

REPEATED = 4  # words from which on a part of a text is its repetition: fewer are an answer of their own
SAID_BY = 8  # items that say the same, the latest ones, among which one that is held is looked for


@dataclass(frozen=True)
class Arrivals:
    """What was given to learn.

    Args:
        ids: Of all of it, in the order given.
        items: What is to be stored.
        known: Ids of what is known already.
        held: What is kept apart.
    """

    ids: tuple[str, ...]
    items: tuple[Knowledge, ...]
    known: frozenset[str]
    held: tuple[Held, ...]


class Door:
    """What an agent's items pass first.

    Args:
        ledger: Where the items will be.
        quarantine: Who is let in.
        namespace: Whose items.
        places: Of the paths in the ledger.
        ttl: For how many seconds from their writing items of a kind hold; a kind that is not named holds for good.

    Raises:
        ValueError: An unknown kind, or a time to live that is not above 0.
    """

    def __init__(
        self,
        ledger: Ledger,
        quarantine: Quarantine,
        namespace: str,
        places: Sequence[str],
        ttl: Mapping[KnowledgeKind, float] | None = None,
    ) -> None:
        if strange := set(ttl or ()) - set(get_args(KnowledgeKind)):
            raise ValueError(f"ttl is by kind, one of {get_args(KnowledgeKind)}, got {sorted(strange)}")
        self._ledger = ledger
        self._quarantine = quarantine
        self._namespace = namespace
        self._places = tuple(places)
        self._ttl = {kind: _checked(seconds) for kind, seconds in (ttl or {}).items()}
        self._said: dict[int, tuple[str, ...]] = {}  # ids by the hash of what they say: whatever came to the places
        self._position = 0

    def let_in(self, given: Sequence[Knowledge | str], ttl: float | None = None) -> Arrivals:
        """See the module. For the first text alone all is read that the ledger has at the places, then what came since.

        Args:
            given: Texts and items.
            ttl: Seconds for which those hold that have no `valid_until`; None: as their kinds say.

        Raises:
            TypeError: Something else than texts and items.
            ValueError: A time to live that is not above 0, or an id that is kept apart with other content.
        """
        if ttl is not None:
            _checked(ttl)
        ids: list[str] = []
        known: set[str] = set()
        items: list[Knowledge] = []
        if any(isinstance(one, str) for one in given):
            self._follow()
        for one in given:
            item = _as_knowledge(one)
            said_by = self._known_as(item) if isinstance(one, str) else None
            ids.append(said_by or item.id)
            if said_by:
                known.add(said_by)
            else:
                items.append(self._dated(item, ttl))
        passed, held = self._quarantine.sift(items, self._namespace)
        return Arrivals(tuple(dict.fromkeys(ids)), tuple(passed), frozenset(known), tuple(held))

    def _follow(self) -> None:
        """Take note of what came to the places, whoever wrote it."""
        position = self._ledger.position()
        if position == self._position:
            return
        for place in self._places:
            if self._position:
                entries, _ = self._ledger.changed(place=place, after=self._position)
            else:
                entries = self._ledger.beginning("", place=place, namespace=self._namespace)
            for entry in entries:
                if entry.namespace == self._namespace:
                    said = hash(said_alone(entry.text))
                    others = (id for id in self._said.get(said, ()) if id != entry.item.id)
                    self._said[said] = (*others, entry.item.id)[-SAID_BY:]
        self._position = position

    def _known_as(self, item: Knowledge) -> str | None:
        """The id of another item that is held and says all that a text alone says, unless its own id is in use."""
        ids = self._said.get(hash(said_alone(item.text)))
        if not ids or self._holding(item.id) or self._quarantine.find(item.id, self._namespace):
            return None
        for place in self._places:
            for held in self._ledger.held(ids, place=place, namespace=self._namespace).values():
                if held.valid_until is None and said_alone(held.text) == said_alone(item.text):
                    return held.id
        return None

    def _holding(self, id: str) -> Knowledge | None:
        now = self._ledger.now()
        for version in self._ledger.history(id, namespace=self._namespace):
            until = version.item.valid_until
            if version.reason is None and version.place != self._quarantine.place and (until is None or until > now):
                return version.item
        return None

    def _dated(self, item: Knowledge, ttl: float | None) -> Knowledge:
        """The item with an end. One that is held already, or kept apart, keeps the end that it has: saying it again
        changes nothing."""
        seconds = self._ttl.get(item.kind) if ttl is None else ttl
        if seconds is None or item.valid_until is not None:
            return item
        apart = self._quarantine.find(item.id, self._namespace)
        for held in (self._holding(item.id), apart.item if apart else None):
            if held is not None and replace(held, valid_until=None) == item:
                return held
        return replace(item, valid_until=max(self._ledger.now(), item.valid_from or 0.0) + seconds)


def said_alone(text: str) -> str:
    """A text as it would be said again: without space around it and the mark of a list, in which notes are shown."""
    return unicodedata.normalize("NFC", text).strip().removeprefix("- ").strip()


def plain(text: str) -> str:
    """A text without letter case, spacing and the mark of a list, for comparison."""
    return " ".join(text.split()).removeprefix("- ").casefold()


def stands_in(text: str, whole: str) -> bool:
    """Whether one plain text is another or, with at least `REPEATED` words, stands in it: whole words of it."""
    if text == whole:
        return True
    if text not in whole or len(text.split()) < REPEATED:
        return False
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", whole) is not None


def text_id(text: str) -> str:
    """The id of an item that is given as a text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_knowledge(item: Any) -> Knowledge:
    if isinstance(item, Knowledge):
        return item
    if not isinstance(item, str):
        raise TypeError(
            f"an agent learns texts and Knowledge, got {type(item).__name__}: {item!r:.80}; write Knowledge(id, text)"
        )
    return Knowledge(text_id(item), item)


def _checked(seconds: float) -> float:
    if not seconds > 0:
        raise ValueError(f"a ttl is a number of seconds above 0, got {seconds}")
    return float(seconds)
