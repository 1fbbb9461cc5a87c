"""What texts and items pass before any path of an agent sees them.

Texts become items, times to live become dates, what the paths say already is known, and what must not get in is kept
apart. This file knows nothing of paths but their places in the ledger.

What was recalled is never learnt again, whoever gives it back, in this process or after a restart: an item is known if
one that is held says the same words, compared as `plain` does, and it has nothing of its own beside them. A kind (other
than "fact"), key, cue, other phrasings, dates or metadata of which the held one has others, or a higher trust, make it
an item of its own, which is learnt; another id or source do not. A text alone has nothing but its words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from memory_paths.ledger import Ledger
from memory_paths.quarantine import Held, Quarantine
from memory_paths.types import Knowledge, KnowledgeKind

REPEATED = 4  # words from which on a part of a text is its repetition: fewer are an answer of their own
BARE = Knowledge("bare", "What a text alone is.")


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
        self._said: dict[int, dict[str, None]] = {}  # ids by the hash of their words: whatever came to the places
        self._position = 0

    def let_in(self, given: Sequence[Knowledge | str], ttl: float | None = None) -> Arrivals:
        """See the module. The first call reads whatever the ledger has at the places, later ones what came since.

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
        self._follow()
        for one in given:
            item = _as_knowledge(one)
            said_by = self._known_as(item, 0.0 if isinstance(one, str) else item.trust)
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
                    self._said.setdefault(hash(plain(entry.text)), {})[entry.item.id] = None
        self._position = position

    def _known_as(self, item: Knowledge, trust: float) -> str | None:
        """The id of another item that is held and says all that this one says, unless this one's own id is in use."""
        ids = self._said.get(hash(plain(item.text)))
        if not ids or self._holding(item.id) or self._quarantine.find(item.id, self._namespace):
            return None
        for place in self._places:
            for held in self._ledger.held(list(ids), place=place, namespace=self._namespace).values():
                if trust <= held.trust and _adds_nothing(item, held):
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


def _adds_nothing(item: Knowledge, held: Knowledge) -> bool:
    """Whether an item has the words of a held one, and beside them nothing that is not the held one's too."""
    named = ("kind", "key", "cue", "phrasings", "valid_from", "valid_until", "metadata")
    return plain(item.text) == plain(held.text) and all(
        getattr(item, name) in (getattr(BARE, name), getattr(held, name)) for name in named
    )


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
