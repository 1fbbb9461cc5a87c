"""Two items that say the same become one: proposals with scores, a guard against near-misses, and an undo.

A score says how surely two texts are rephrasings of one another. It is never trusted alone: texts that differ in a
number, a date, a name or a negation are close in meaning and must stay two, so a guard that reads the words may veto
any pair. A merge deletes nothing: the ledger ends the one item as superseded by the other, and holds it again on undo.

This file knows nothing of prompts, weights or how a bank searches.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memory_paths.ledger import Ledger
from memory_paths.types import Knowledge, MemoryPath, Query

from .encoder import Encoder

# Fitted by `python -m memory_paths.retrieval.merging_figures` on its tuning half, for all-MiniLM-L6-v2: the log-odds
# that a pair without a veto says the same, from the cosine of the texts and that of the words that they do not share.
WEIGHTS = (-9.52, 13.15, 3.0)
THRESHOLD = 0.954
SHARED_WORDS = 3  # most words that two parts which changed places may begin or end with alike
# What must be equal besides the text, for one item to stand for both in every search and at every time.
FIELDS = ("kind", "key", "cue", "valid_from", "valid_until", "metadata")

_LINKS = frozenset(
    "a an the this that these those it its he him his she her they them their we our you your me my and or as then so"
    " than there who whom whose which what when where why how do does did done has have had having been being be is are"
    " was were am of in on at to by for from with s".split()
)
_BE = frozenset("is are was were am be been".split())
# Words that may stand anywhere without a change of who does what to whom; prepositions and forms of "be" may not.
_PREPOSITIONS = frozenset("of in on at to by for from with s".split())
_LIGHT = _LINKS - _BE - _PREPOSITIONS
_NEGATIONS = frozenset(
    "not no never none nobody nothing nowhere neither nor without cannot hardly barely scarcely rarely seldom false"
    " untrue wrong incorrect fail fails failed deny denies denied refuse refuses refused lack lacks lacked stopped"
    " ceased longer except unlike former formerly myth lie lies hoax rumour rumor disproved refuted debunked mistaken"
    " supposedly allegedly alleged maybe perhaps possibly might doubt doubtful unlikely pretend pretends".split()
)
_QUANTIFIERS = tuple(
    frozenset(words.split())
    for words in (
        "all every each always",
        "some sometimes several",
        "most mostly usually often",
        "only solely just",
        "few little",
        "many much",
        "half",
        "both",
        "less fewer",
        "least minimum",
        "maximum",
    )
)
_PERSONS = (frozenset("i me my mine we us our ours".split()), frozenset("you your yours".split()))
_OPPOSITES = (
    "mother father dad mum|director producer author publisher|birth death|born died die dead buried married marry|first"
    " last final|start starting begin end ending final|north south east west|northern southern eastern western|before"
    " after|open opened founded closed|brother sister|son daughter|husband wife|male female|man woman|buy bought sell"
    " sold|win won lose lost|increase decrease|rise fall|accept reject|love hate|like dislike|created destroyed|parent"
    " child|married divorced|best worst|high low|highest lowest|largest smallest|left right|up down|inside outside|"
    "early late|allow forbid|enable disable|on off|hot cold|true false|arrive depart"
)
_MONTH_NAMES = "january february march april may june july august september october november december".split()
_MONTHS = {name[:length]: number for number, name in enumerate(_MONTH_NAMES, 1) for length in (3, len(name))}
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
        " eighteen nineteen twenty".split(),
        2,
    )
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES = (
    re.compile(rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_MONTH})\.?,? (?P<year>\d{{4}})\b", re.I),
    re.compile(rf"\b(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})\b", re.I),
    re.compile(r"\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)\b"),
)


@dataclass(frozen=True)
class Proposal:
    """Two items that may say the same.

    Args:
        kept: The one that would stand for both: the more trusted one, or else the one that was there first.
        dropped: The one that would be superseded.
        score: In [0, 1]: how surely their texts are rephrasings of one another; 0 where something forbids it.
        vetoes: What forbids it: "number", "date", "negation", "name", "quantifier", "person", "opposite", "order" (who
            does what to whom), or a field of the items that differs.
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


def merge(ledger: Ledger, proposals: Sequence[Proposal], *, place: str, namespace: str) -> tuple[str, ...]:
    """Let the kept item of each proposal stand for both, and record why; see `undo`.

    A proposal is passed over where an earlier one has taken one of its items away: whatever else says the same is
    found against the kept one by the next `propose`.

    Returns:
        The ids that were dropped.

    Raises:
        ValueError: A proposal with a veto.
    """
    for proposal in proposals:
        if proposal.vetoes:
            pair = f"{proposal.kept.id!r} and {proposal.dropped.id!r}"
            raise ValueError(f"{pair} differ in {', '.join(proposal.vetoes)} and cannot be merged")
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
    records = ledger.active(place=_records(place), namespace=namespace)
    return {str(record.metadata["dropped"]): str(record.metadata["kept"]) for record in records}


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


def differences(first: str, second: str) -> tuple[str, ...]:
    """What forbids taking two texts for one, sorted as in `Proposal.vetoes`; empty if nothing does.

    Dates are compared as dates, and numbers as numbers, however they are written. Words that are written with a capital
    are names; those that begin a text may be others, and are only compared with one another.
    """
    one, two = _Reading(first), _Reading(second)
    names = [one.names_beyond(two), two.names_beyond(one)]
    apart = [{_stem(word) for word in one.beyond(two)}, {_stem(word) for word in two.beyond(one)}]
    found = {
        "number": one.numbers != two.numbers,
        "date": one.months != two.months,
        "negation": one.negations != two.negations or one.remarks_on(two) or two.remarks_on(one),
        "name": any(place for place in (*names[0], *names[1])) or all(names),
        "quantifier": any(bool(group & one.words) != bool(group & two.words) for group in _QUANTIFIERS),
        "person": any(bool(group & one.words) != bool(group & two.words) for group in _PERSONS),
        "opposite": any(
            all(side & {_stem(word) for word in group.split()} for side in apart) for group in _OPPOSITES.split("|")
        ),
        "order": one.shared(two) != two.shared(one) and _exchanged(one.order, two.order),
    }
    return tuple(name for name, differs in found.items() if differs)


def rest(first: str, second: str) -> tuple[str, str]:
    """The words of two texts that the other one does not have in any form, numbers and words of grammar left out."""
    one, two = _Reading(first), _Reading(second)
    return " ".join(one.beyond(two)), " ".join(two.beyond(one))


class _Reading:
    """The words of a text, in the forms in which they are compared."""

    def __init__(self, text: str) -> None:
        plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
        plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
        plain = re.sub(r"n't\b", " not", plain)
        for pattern in _DATES:
            plain = pattern.sub(_date, plain)
        plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
        self.parts = [
            re.findall(r"[^\W_]+", part.lower())
            for sentence in re.split(r"[.!?:]\s", plain)
            for part in re.split(r"(?<=^)((?:It|You|He|She|They|We|I|There)\b.*?)\bthat\b", sentence, maxsplit=1)
        ]
        written = re.findall(r"[^\W_]+(?:\.\d+)?", plain)
        spoken = [word.lower() for word in written]
        numeric = [word in _NUMBER_WORDS or any(sign.isdigit() for sign in word) for word in spoken]
        self.words = frozenset(spoken)
        self.numbers = Counter(
            _NUMBER_WORDS.get(word, word) for word, number in zip(spoken, numeric, strict=True) if number
        )
        self.months = Counter(
            _MONTHS[word] for place, word in enumerate(spoken) if word in _MONTHS and written[place][0].isupper()
        )
        self.negations = sum(word in _NEGATIONS for word in spoken)
        self.content = [word for word, number in zip(spoken, numeric, strict=True) if not number and word not in _LINKS]
        self.stems = [_stem(word) for word in self.content]
        self.names = [
            (place, word)
            for place, word in enumerate(spoken)
            if written[place][0].isupper() and word not in _LINKS and not numeric[place]
        ]
        ordered = re.findall(r"[^\W_]+(?:\.\d+)?|,", plain.lower())
        self.order = ["be" if word in _BE else word for word in ordered if word not in _LIGHT]

    def remarks_on(self, other: _Reading) -> bool:
        """Whether a part of this text shares nothing with the other: "It is ... that", or a sentence of its own."""
        shared = set(other.stems) | {_stem(word) for word in other.words}
        parts = [{_stem(word) for word in part if word not in _LINKS} for part in self.parts]
        return any(part and not part & shared for part in parts)

    def beyond(self, other: _Reading) -> list[str]:
        """Words of content that the other text lacks."""
        spare = Counter(other.stems)
        found = []
        for word in self.content:
            spare[_stem(word)] -= 1
            if spare[_stem(word)] < 0:
                found.append(word)
        return found

    def shared(self, other: _Reading) -> list[str]:
        """The words and numbers that both texts have, words of grammar left out, in the order of this one."""
        both = frozenset(self.order) & frozenset(other.order) - _PREPOSITIONS - {"be", ","}
        return [word for word in self.order if word in both]

    def names_beyond(self, other: _Reading) -> list[int]:
        """Where names stand that the other text has not, or less often, in any spelling; 0 is the beginning."""
        spare = Counter(other.stems)
        spare.subtract(_stem(word) for _, word in self.names)
        return [place for place, word in self.names if spare[_stem(word)] < 0]


def _date(found: re.Match[str]) -> str:
    month = found["month"].lower()
    return f" {found['year']}d{_MONTHS.get(month) or int(month)}d{int(found['day'])} "


def _stem(word: str) -> str:
    """The word without an English ending: crude, and the same for both sides."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _exchanged(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two parts have changed places, and what relates them has not ("A is part of B", "B was part of A")."""
    same_begin, same_end = _common(first, second), _common(first[::-1], second[::-1])
    # The parts may share words ("Oslo Festival is in Oslo"): what is alike at both ends may belong to them, or not.
    for begin in range(max(0, same_begin - SHARED_WORDS), same_begin + 1):
        for end in range(min(same_end, len(first) - begin, len(second) - begin) + 1):
            one, two = first[begin : len(first) - end], second[begin : len(second) - end]
            left, right = _longest(one, two), _longest(two, one)
            between = [one[left : len(one) - right], two[right : len(two) - left]]
            if left and right and all(between) and _same_relation(*between):
                return True
    return False


def _longest(one: Sequence[str], two: Sequence[str]) -> int:
    """How many words at most begin the one and end the other."""
    return next((size for size in range(min(len(one), len(two)) - 1, 0, -1) if one[:size] == two[-size:]), 0)


def _same_relation(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether the words between two parts say that the first is to the second the same; "with" goes both ways."""
    if "with" in one and "with" in two:
        return False
    prepositions = [_PREPOSITIONS.intersection(words) for words in (one, two)]
    return list(one) == list(two) or (bool(prepositions[0]) and prepositions[0] == prepositions[1])


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(two)))


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
