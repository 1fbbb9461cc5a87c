"""Two items that say the same become one: proposals with scores, a guard against near-misses, and an undo.

A score says how surely two texts are rephrasings of one another. It is never trusted alone: texts that differ in a
number, a date, a name or a negation are close in meaning and must stay two, so a guard that reads the words may veto
any pair. A merge deletes nothing: the ledger ends the one item as superseded by the other, and holds it again on undo.

This file knows nothing of prompts, weights or how a bank searches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memory_paths.ledger import Ledger
from memory_paths.types import Knowledge, MemoryPath, Query

from .encoder import Encoder
from .near_misses import differences, rest

# Fitted by `python -m memory_paths.retrieval.merging_figures` on its tuning half, for all-MiniLM-L6-v2: the log-odds
# that a pair without a veto says the same, from the cosine of the texts and that of the words that they do not share.
WEIGHTS = (-13.65, 16.39, 3.78)
THRESHOLD = 0.845
# What must be equal besides the text, for one item to stand for both in every search and at every time.
FIELDS = ("kind", "key", "cue", "valid_from", "valid_until", "metadata")


@dataclass(frozen=True)
class Proposal:
    """Two items that may say the same.

    Args:
        kept: The one that would stand for both: the more trusted one, or else the one that was there first.
        dropped: The one that would be superseded.
        score: In [0, 1]: how surely their texts are rephrasings of one another; 0 where something forbids it.
        vetoes: What forbids it: what `near_misses.differences` found, or a field of the items that differs.
        automatic: Whether the score is above the threshold and nothing forbids it.
    """

    kept: Knowledge
    dropped: Knowledge
    score: float
    vetoes: tuple[str, ...]
    automatic: bool


class Merging:
    """Finds items that say the same.

    Args:
        encoder: What turns texts into vectors.
        weights: Of the score, see `score`; those for another encoder than "minilm" are others.
        threshold: Score from which on a pair without a veto is merged without being asked about, in [0, 1].

    Raises:
        ValueError: A threshold outside [0, 1].
    """

    def __init__(
        self, encoder: Encoder, *, weights: tuple[float, float, float] = WEIGHTS, threshold: float = THRESHOLD
    ) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self._encoder = encoder
        self._weights = weights
        self._threshold = threshold

    def compare(self, pairs: Sequence[tuple[Knowledge, Knowledge]]) -> list[Proposal]:
        """A proposal for each pair, in order; the first item of a pair is the one that was there first."""
        vetoes = [
            (
                *differences(first.text, second.text),
                *(name for name in FIELDS if getattr(first, name) != getattr(second, name)),
            )
            for first, second in pairs
        ]
        open_to_it = [pair for pair, found in zip(pairs, vetoes, strict=True) if not found]
        found = iter(cosines(self._encoder, [(first.text, second.text) for first, second in open_to_it]))
        proposals = []
        for (first, second), forbidden in zip(pairs, vetoes, strict=True):
            kept, dropped = (second, first) if second.trust > first.trust else (first, second)
            value = 0.0 if forbidden else score(next(found), self._weights)
            proposals.append(Proposal(kept, dropped, value, forbidden, not forbidden and value >= self._threshold))
        return proposals

    def propose(
        self, path: MemoryPath, namespace: str, items: Sequence[Knowledge] | None = None, *, least: float = 0.5
    ) -> list[Proposal]:
        """Pairs of an item and one of the nearest that a path holds, surest first, each pair once.

        Args:
            path: A bank, asked for as many neighbours of an item as it offers for a query.
            namespace: Whose items.
            items: Those that may double others, held already or not; None: all that the path holds.
            least: Pairs of a lower score are left out, and with them all that have a veto.
        """
        held = {item.id: rank for rank, item in enumerate(path.items(namespace))}
        asked = path.items(namespace) if items is None else list(items)
        pairs: dict[frozenset[str], tuple[Knowledge, Knowledge]] = {}
        for item, reading in zip(asked, path.read([Query(item.text, namespace) for item in asked]), strict=True):
            for other in (recall.item for recall in reading.recalls if recall.item.id != item.id):
                first, second = sorted((item, other), key=lambda one: held.get(one.id, len(held)))
                pairs[frozenset((item.id, other.id))] = (first, second)
        found = [proposal for proposal in self.compare(list(pairs.values())) if proposal.score >= least]
        return sorted(found, key=lambda proposal: -proposal.score)


def cosines(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
    """Of each pair of texts the cosine, and that of the words which the other one does not have, see `rest`.

    What only one of them says has nothing to be compared with, and counts as 1: the texts as wholes tell how much it
    adds.
    """
    rests = [rest(first, second) for first, second in pairs]
    texts = list(dict.fromkeys(text for pair in (*pairs, *rests) for text in pair))
    vectors = dict(zip(texts, encoder.encode_documents(texts), strict=True))
    return [
        (float(vectors[first] @ vectors[second]), float(vectors[one] @ vectors[two]) if one and two else 1.0)
        for (first, second), (one, two) in zip(pairs, rests, strict=True)
    ]


def score(cosines: tuple[float, float], weights: tuple[float, float, float] = WEIGHTS) -> float:
    """How surely two texts without a veto say the same, in [0, 1]: logistic in their `cosines`, after a bias."""
    return 1 / (1 + math.exp(-sum(weight * value for weight, value in zip(weights, (1.0, *cosines), strict=True))))


def merge(
    ledger: Ledger, proposals: Sequence[Proposal], *, place: str, namespace: str, reviewed: bool = False
) -> tuple[str, ...]:
    """Let the kept item of each proposal stand for both, and record why; see `undo`.

    A dropped item is among what was replaced, which questions about the past still recall; whoever forgets the kept one
    forgets it too. One that is learnt again under its own id holds again, and is merged no longer.

    A proposal is passed over where an earlier one has taken one of its items away: whatever else says the same is
    found against the kept one by the next `propose`.

    Args:
        ledger: Where the items are.
        proposals: What is to be merged.
        place: Name of the bank.
        namespace: Whose items.
        reviewed: Whether somebody has looked at them: proposals that are not automatic are merged too.

    Returns:
        The ids that were dropped.

    Raises:
        ValueError: A proposal with a veto, or one that is not automatic and was not reviewed; nothing is merged then.
    """
    for proposal in proposals:
        pair = f"{proposal.kept.id!r} and {proposal.dropped.id!r}"
        if proposal.vetoes:
            raise ValueError(f"{pair} differ in {', '.join(proposal.vetoes)} and cannot be merged")
        if not (proposal.automatic or reviewed):
            raise ValueError(
                f"{pair} are not surely the same (score {proposal.score:.3f}); look at them, then give reviewed=True,"
                " or leave them out"
            )
    held = {item.id for item in ledger.active(place=place, namespace=namespace)}
    successors: dict[str, Proposal] = {}
    for proposal in proposals:
        if proposal.kept.id in held and proposal.dropped.id in held:
            successors[proposal.dropped.id] = proposal
            held.remove(proposal.dropped.id)
    # The record comes first: interrupted here, it speaks of an item that is held, and undoing it is harmless.
    records = [_record(proposal) for proposal in successors.values()]
    ledger.remove([record.id for record in records], place=_records(place), namespace=namespace, reason="forgotten")
    ledger.record(records, place=_records(place), namespace=namespace)
    kept = {id: proposal.kept.id for id, proposal in successors.items()}
    return ledger.supersede(kept, place=place, namespace=namespace)


def merged(ledger: Ledger, *, place: str, namespace: str) -> dict[str, str]:
    """The ids that are merged now, each with the id of the item that stands for it, in the order of merging."""
    records = ledger.beginning(_record_id(""), place=_records(place), namespace=namespace)
    pairs = [(str(one.item.metadata["dropped"]), str(one.item.metadata["kept"])) for one in records if not one.reason]
    return {dropped: kept for dropped, kept in pairs if _stands_for(ledger, kept, dropped, place, namespace)}


def _stands_for(ledger: Ledger, kept: str, dropped: str, place: str, namespace: str) -> bool:
    """Whether what was last written under an id was merged, and not written anew, replaced or forgotten since."""
    versions = [one for one in ledger.history(dropped, namespace=namespace) if one.place == place]
    return bool(versions) and (versions[-1].reason, versions[-1].superseded_by) == ("superseded", kept)


def undo(ledger: Ledger, ids: Sequence[str], *, place: str, namespace: str) -> tuple[str, ...]:
    """Hold dropped items again, as if they had never been merged: the bank's state has the same bytes as before.

    Returns:
        The ids that are held again.

    Raises:
        ValueError: An id that was not merged.
    """
    known = merged(ledger, place=place, namespace=namespace)
    if strange := [id for id in ids if id not in known]:
        raise ValueError(f"{strange} were not merged at {place!r}; merged are {list(known)[:20]}")
    back = ledger.reinstate(ids, place=place, namespace=namespace)
    records = [_record_id(id) for id in ids]
    ledger.remove(records, place=_records(place), namespace=namespace, reason="forgotten")
    return back


def _records(place: str) -> str:
    return f"{place}.merges"


def _record_id(dropped: str) -> str:
    return f"merge/{dropped}"


def _record(proposal: Proposal) -> Knowledge:
    kept, dropped = proposal.kept.id, proposal.dropped.id
    return Knowledge(
        _record_id(dropped),
        f"{dropped} says the same as {kept}",
        metadata={"kept": kept, "dropped": dropped, "score": round(proposal.score, 6)},
    )
