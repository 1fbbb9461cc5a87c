"""What texts and items pass before any path of an agent sees them.

Texts become items, times to live become dates, what was only just recalled is known already, and what must not get in
is kept apart. This file knows nothing of paths.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from memory_paths.ledger import Ledger
from memory_paths.quarantine import Held, Quarantine
from memory_paths.types import Knowledge, KnowledgeKind, Recall

RECALLED_KEPT = 1024  # recalled texts that are remembered, the latest ones
REPEATED = 4  # words from which on a part of a text is its repetition: fewer are an answer of their own


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
        ttl: For how many seconds from their writing items of a kind hold; a kind that is not named holds for good.

    Raises:
        ValueError: An unknown kind, or a time to live that is not above 0.
    """

    def __init__(
        self, ledger: Ledger, quarantine: Quarantine, namespace: str, ttl: Mapping[KnowledgeKind, float] | None = None
    ) -> None:
        if strange := set(ttl or ()) - set(get_args(KnowledgeKind)):
            raise ValueError(f"ttl is by kind, one of {get_args(KnowledgeKind)}, got {sorted(strange)}")
        self._ledger = ledger
        self._quarantine = quarantine
        self._namespace = namespace
        self._ttl = {kind: _checked(seconds) for kind, seconds in (ttl or {}).items()}
        self._recalled: OrderedDict[str, str] = OrderedDict()  # ids by text, the latest last

    def let_in(self, given: Sequence[Knowledge | str], ttl: float | None = None) -> Arrivals:
        """See the module.

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
        for one in given:
            item = _as_knowledge(one)
            recalled = self._known_as(one) if isinstance(one, str) else None
            ids.append(recalled or item.id)
            if recalled:
                known.add(recalled)
            else:
                items.append(self._dated(item, ttl))
        passed, held = self._quarantine.sift(items, self._namespace)
        return Arrivals(tuple(dict.fromkeys(ids)), tuple(passed), frozenset(known), tuple(held))

    def note_recalled(self, recalls: Iterable[Recall]) -> None:
        """Remember what was shown to a model, so that its words are not learnt again as a new item."""
        for recall in recalls:
            text = plain(recall.item.text)
            self._recalled[text] = recall.item.id
            self._recalled.move_to_end(text)
        while len(self._recalled) > RECALLED_KEPT:
            self._recalled.popitem(last=False)

    def forget(self, ids: Iterable[str]) -> None:
        """Remember nothing of what was recalled under these ids."""
        gone = set(ids)
        self._recalled = OrderedDict((text, id) for text, id in self._recalled.items() if id not in gone)

    def _known_as(self, text: str) -> str | None:
        """The id of a recalled item that says these words and is held still."""
        id = self._recalled.get(plain(text))
        return id if id is not None and self._holding(id) else None

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
