"""What an untrusted source says is kept apart until somebody has looked at it, before any path sees it.

Trust has three tiers. From `TRUSTED` on (the user's own words, files that the application vouches for) an item passes
unread. Below that (pages of the web, mails, results of tools) it is read by a detector, and it may not take the place
of what is trusted. With no trust at all it is always kept apart. What is kept apart is at a place of its own in the
ledger, so that no path recalls it or learns it. This file knows nothing of what makes a text suspicious.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_paths.ledger import Ledger
from memory_paths.types import Knowledge

TRUSTED = 0.8  # trust from which on an item passes unread
UNTRUSTED = 0.0  # trust up to which an item is always kept apart
PLACE = "quarantine"


@dataclass(frozen=True)
class Suspicion:
    """How much something looks like an injection: a probability in [0, 1], and the signs that speak for it."""

    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """An item that is kept apart: the one that was to be learnt, and why it was not."""

    item: Knowledge
    score: float
    reasons: tuple[str, ...]


Detector = Callable[[Knowledge], Suspicion | None]  # None: nothing speaks against the item


class Quarantine:
    """Decides what is let in, and keeps the rest.

    It is kept in an envelope: under an id of its own and without its key, so that it can neither supersede a trusted
    item nor take an id away from one.

    Args:
        ledger: Where it is kept.
        detector: What reads items that are not trusted; None: they are let in unread.
        trusted_from: Trust in [0, 1] from which on an item passes unread; 0 lets everything in.
        held_until: Trust in [0, 1] up to which an item is always kept apart, unless it is trusted.
        place: Its place in the ledger.

    Raises:
        ValueError: A level outside [0, 1].
    """

    def __init__(
        self,
        ledger: Ledger,
        detector: Detector | None = None,
        *,
        trusted_from: float = TRUSTED,
        held_until: float = UNTRUSTED,
        place: str = PLACE,
    ) -> None:
        for name, value in (("trusted_from", trusted_from), ("held_until", held_until)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.place = place
        self._ledger = ledger
        self._detector = detector
        self._trusted_from = trusted_from
        self._held_until = held_until

    def sift(self, items: Sequence[Knowledge], namespace: str) -> tuple[list[Knowledge], list[Held]]:
        """Those of the items that are let in, and the others, which are kept apart from now on.

        What is held already with the same content is let in: somebody has released it, or it was there before.

        Raises:
            ValueError: An id that is kept apart with other content; nothing is kept then.
        """
        passed: list[Knowledge] = []
        kept: list[Held] = []
        new: list[Held] = []
        keys: set[str] = set()  # of what is trusted among the items themselves
        for item in items:
            suspicion = self._suspicion(item, keys, namespace)
            if suspicion is None:
                passed.append(item)
                keys |= {item.key} if item.key and self._trusts(item) else set()
            else:
                known = self.find(item.id, namespace)
                if known is None or known.item != item:
                    known = Held(item, suspicion.score, suspicion.reasons)
                    new.append(known)
                kept.append(known)
        if new:
            self._ledger.record([_envelope(held) for held in new], place=self.place, namespace=namespace)
        return passed, kept

    def held(self, namespace: str) -> list[Held]:
        """What is kept apart, in the order of writing."""
        return [_opened(envelope) for envelope in self._ledger.active(place=self.place, namespace=namespace)]

    def find(self, id: str, namespace: str) -> Held | None:
        """What is kept apart under an id, if anything is."""
        envelope_id = _envelope_id(id)
        held = self._ledger.held([envelope_id], place=self.place, namespace=namespace)
        return _opened(held[envelope_id]) if held else None

    def under(self, keys: Sequence[str], namespace: str) -> list[str]:
        """Ids of what is kept apart that was to be learnt under one of these keys."""
        return [held.item.id for held in self.held(namespace) if held.item.key and held.item.key in keys]

    def items(self, ids: Sequence[str], namespace: str) -> list[Knowledge]:
        """The items with these ids that are kept apart, as they were to be learnt.

        Raises:
            ValueError: An id that is not kept apart.
        """
        items = {held.item.id: held.item for held in self.held(namespace)}
        if strange := [id for id in ids if id not in items]:
            raise ValueError(f"{strange} are not in quarantine; there are {list(items)[:20]}")
        return [items[id] for id in dict.fromkeys(ids)]

    def drop(self, ids: Sequence[str], namespace: str) -> tuple[str, ...]:
        """Forget what is kept apart under these ids; those that were. `Ledger.compact` erases their texts."""
        envelopes = {_envelope_id(id): id for id in ids}
        gone = self._ledger.remove(list(envelopes), place=self.place, namespace=namespace, reason="forgotten")
        return tuple(envelopes[envelope] for envelope in gone)

    def _trusts(self, item: Knowledge) -> bool:
        return item.trust >= self._trusted_from

    def _suspicion(self, item: Knowledge, keys: set[str], namespace: str) -> Suspicion | None:
        if self._trusts(item) or self._is_held(item, namespace):
            return None
        if item.trust <= self._held_until:
            return Suspicion(1.0, ("its source has no trust",))
        if self._detector is not None and (found := self._detector(item)) is not None:
            return found
        others = [one for one in self._ledger.holding(item.key, namespace=namespace) if one.id != item.id]
        if item.key in keys or any(map(self._trusts, others)):
            return Suspicion(1.0, (f"would replace what is trusted under its key {item.key!r}",))
        return None

    def _is_held(self, item: Knowledge, namespace: str) -> bool:
        versions = self._ledger.history(item.id, namespace=namespace)
        return any(version.reason is None and version.item == item for version in versions)


def _envelope_id(id: str) -> str:
    return f"quarantined/{id}"


def _envelope(held: Held) -> Knowledge:
    content = {"item": held.item.to_json(), "score": round(held.score, 6), "reasons": list(held.reasons)}
    return Knowledge(_envelope_id(held.item.id), held.item.text, source=held.item.source, trust=0.0, metadata=content)


def _opened(envelope: Knowledge) -> Held:
    content = envelope.metadata
    return Held(Knowledge.from_json(content["item"]), content["score"], tuple(content["reasons"]))
