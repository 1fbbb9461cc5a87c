"""What the embedded model is trained on: documents of the biographies world, packed into rows.

Closed-book documents teach the known people by heart; open-book documents teach reading among distractors, and
answering from memory when the notes do not hold the answer. This file knows nothing of models or optimisers.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer

from memory_paths.lm import layout
from memory_paths.streams.words import (
    COMPOSITIONS,
    FIRMS,
    PERSON_ATTRIBUTES,
    VALUES,
    WORDINGS,
)
from memory_paths.streams.world import Fact, known_world, near_name, near_names, passing_facts, split_wordings, state
from memory_paths.types import Prompt

BACKGROUND_WEIGHT = 0.05
"""Loss weight of every token that is not part of an answer or a value."""

RECITAL_WEIGHT = 0.5
"""Loss weight of a token that is said for the second time."""


@dataclass(frozen=True)
class Asked:
    """A question within a document, or a sentence to be finished. `about` is one of ABOUT.

    Where `fact` names a fact, the last token of the laid-out question is where a memory is asked for it: `addressing`
    wants one address for all wordings of a fact. Without an answer, that is all that the question teaches.
    """

    question: str
    answer: str
    about: str
    finishes: bool = False
    fact: str = ""


@dataclass(frozen=True)
class Document:
    """Notes that several questions share, each answered independently of the others; or sentences to be known by heart.

    A recital says the notes again in another order. Every token of it is learnt, from the next word of a name, which
    is easy, to the
    value that belongs to a name some words before, which is what reading needs: it makes reading appear early and
    surely.
    """

    notes: tuple[str, ...] = ()
    questions: tuple[Asked, ...] = ()
    sentences: tuple[tuple[str, str], ...] = ()
    recital: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedDocument:
    """Tokens of a document with, for each, its loss weight, its segment (0 = shared) and its position.

    `about` numbers what a token's answer tests (index into ABOUT), 0 for tokens of no answer. `facts` numbers the fact
    that a memory is asked for at a token, 0 at most tokens.
    """

    tokens: NDArray[numpy.int64]
    weights: NDArray[numpy.float32]
    segments: NDArray[numpy.int64]
    positions: NDArray[numpy.int64]
    about: NDArray[numpy.int64]
    facts: NDArray[numpy.int64]


@dataclass(frozen=True)
class Batch:
    """Packed rows, each array [rows, length]. `documents` is -1 where a row is padded."""

    tokens: NDArray[numpy.int64]
    weights: NDArray[numpy.float32]
    documents: NDArray[numpy.int64]
    segments: NDArray[numpy.int64]
    positions: NDArray[numpy.int64]
    about: NDArray[numpy.int64]
    facts: NDArray[numpy.int64]


ABOUT = ("", "reading", "memory", "two_hop", "reversal", "closed", "memory_hop", "finishing", "recital")


class _Piece(NamedTuple):
    text: str
    weight: float
    segment: int
    about: str = ""
    ends: bool = False
    fact: str = ""


class Encoder:
    """Turns documents into tokens, exactly as the tokenizer would tokenise the laid-out prompts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Pieces are encoded one by one: the space that the normalizer puts before a text must come once, not per piece.
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.normalizer = None
        self._bos, self._eos = tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("<eos>")

    def encode(self, documents: Sequence[Document]) -> list[EncodedDocument]:
        """One encoded document for each document."""
        pieces = [list(_pieces(document)) for document in documents]
        texts = [piece.text for document in pieces for piece in document]
        encodings = iter(self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return [self._join(document, [next(encodings).ids for _ in document]) for document in pieces]

    def _join(self, pieces: list[_Piece], ids: list[list[int]]) -> EncodedDocument:
        tokens, weights, segments, positions, about, facts = [self._bos], [0.0], [0], [0], [0], [0]
        shared, last_segment = 1, 0
        for piece, encoded in zip(pieces, ids, strict=True):
            new = [*encoded, self._eos] if piece.ends else encoded
            if piece.segment == 0:
                shared = len(tokens) + len(new)
            start = shared if piece.segment != last_segment and piece.segment > 0 else positions[-1] + 1
            last_segment = piece.segment
            tokens += new
            weights += [piece.weight] * len(new)
            segments += [piece.segment] * len(new)
            positions += range(start, start + len(new))
            about += [ABOUT.index(piece.about)] * len(new)
            facts += [0] * (len(new) - 1) + [zlib.crc32(piece.fact.encode())]
        return EncodedDocument(
            numpy.array(tokens),
            numpy.array(weights, dtype=numpy.float32),
            numpy.array(segments),
            numpy.array(positions),
            numpy.array(about),
            numpy.array(facts),
        )


def _pieces(document: Document) -> Iterator[_Piece]:
    for prompt, completion in document.sentences:
        yield _Piece(f" {prompt}", BACKGROUND_WEIGHT, 0)
        yield _Piece(completion, 1.0, 0, "closed")
    if document.notes:
        head, _, _ = layout(Prompt("", document.notes)).rpartition("Question:")
        yield _Piece(f" {head}", BACKGROUND_WEIGHT, 0)
    for note in document.recital:
        first, rest = note.split(" ", 1)
        yield _Piece(f"- {first}", BACKGROUND_WEIGHT, 0)
        yield _Piece(f" {rest}\n", RECITAL_WEIGHT, 0, "recital")
    lead, bullet = ("", "- ") if document.notes else (" ", "")
    for index, asked in enumerate(document.questions, start=1):
        prompt = f"{bullet}{asked.question}" if asked.finishes else layout(Prompt(asked.question))
        yield _Piece(lead + prompt, 0.0, index, fact=asked.fact)
        if asked.answer:
            yield _Piece(f" {asked.answer}", 1.0, index, asked.about, ends=True)


class DocumentSource:
    """Draws documents. `notes_limit` is the most notes in an open-book document, the dial of the curriculum."""

    def __init__(self) -> None:
        world = known_world()
        self._known = (
            world.part_a + world.part_b + tuple(Fact(firm, "seat", city) for firm, city in world.seats.items())
        )
        self._seats = world.seats
        self._people: dict[str, list[Fact]] = {}
        for fact in self._known:
            self._people.setdefault(fact.subject, []).append(fact)
        self._subjects = list(self._people)
        born = [fact for fact in self._known if fact.attribute == "birthplace"]
        places = [fact.value for fact in born]
        self._unique_births = [fact for fact in born if places.count(fact.value) == 1]

    def closed_book(self, generator: random.Random) -> Document:
        """Something about the known people and firms, without notes."""
        kind = generator.random()
        if kind < 0.25:
            facts = self._people[generator.choice(self._subjects)]
            facts = generator.sample(facts, min(len(facts), generator.randrange(1, 4)))
            sentences = []
            for fact in facts:
                wording = generator.choice(split_wordings(fact).statements)
                prompt, _, rest = wording.partition(" {value}")
                sentences.append((prompt.format(name=fact.subject), f" {fact.value}{rest}"))
            return Document(sentences=tuple(sentences))
        if kind < 0.30:
            fact = generator.choice(self._unique_births)
            wording = generator.choice(WORDINGS["birthplace"].reversals)
            return Document(questions=(Asked(wording.format(value=fact.value), fact.subject, "closed"),))
        if kind < 0.35:
            return Document(questions=(self._two_hop_from_memory(generator, "closed"),))
        return Document(questions=(self._ask(generator, generator.choice(self._known), "closed"),))

    def _ask(self, generator: random.Random, fact: Fact, about: str) -> Asked:
        wording = generator.choice(split_wordings(fact).questions)
        return Asked(wording.format(name=fact.subject), fact.value, about)

    def addresses(self, generator: random.Random) -> Document:
        """Two attributes of two people of similar names, each in two wordings and without an answer.

        Half of the pairs have a known person in them, the others are strangers: a memory can only be written to for
        strangers if its addresses for them are as good as for people it was trained on. Nobody that a stream may
        bring is among them, and known people are asked for in their study wordings alone: the addresses of new facts,
        and those of held-out wordings, have to be found without training.
        """
        first = generator.choice(self._subjects) if generator.random() < 0.5 else ""
        if not first or first in FIRMS:
            (first,) = near_names(generator, 1, 0.0)
        second = near_name(generator, first)
        questions = []
        for attribute in generator.sample(PERSON_ATTRIBUTES, 2):
            for name in (first, second):
                fact = Fact(name, attribute, "")
                known = name in self._people
                available = split_wordings(fact) if known else WORDINGS[attribute]
                wordings = available.questions + available.statements
                for wording in generator.sample(wordings, 2):
                    prompt, _, rest = wording.partition(" {value}")
                    finishes = bool(rest)
                    questions.append(Asked(prompt.format(name=name), "", "", finishes, fact.key))
        return Document(questions=tuple(questions))

    def _two_hop_from_memory(self, generator: random.Random, about: str) -> Asked:
        while True:
            fact = generator.choice(self._known)
            if fact.attribute == "employer":
                question = generator.choice(COMPOSITIONS).format(name=fact.subject)
                return Asked(question, self._seats[fact.value], about)

    def open_book(
        self, generator: random.Random, notes_limit: int, notes: int | None = None, nearness: float = 1.0
    ) -> Document:
        """Notes about people who exist nowhere else, and questions about them and about known people."""
        count = notes if notes is not None else self._note_count(generator, notes_limit)
        style = generator.choices(("same", "bank", "random"), (0.65, 0.2, 0.15))[0]
        facts = passing_facts(generator, count, style, nearness)
        remembered: list[Fact] = []
        if generator.random() < 0.5:
            remembered = [generator.choice(self._known) for _ in range(generator.randrange(1, 5))]
            if generator.random() < 0.75 * nearness:
                facts = self._near(generator, facts, remembered[0])
        hop: Asked | None = None
        if generator.random() < 0.35:
            facts, hop = self._with_two_hop(generator, facts)
        texts = [state(fact, generator.choice(WORDINGS[fact.attribute].statements)) for fact in facts]
        asked = []
        for fact in generator.sample(facts, min(len(facts), 6)):
            wording = generator.choice(WORDINGS[fact.attribute].questions)
            asked.append(Asked(wording.format(name=fact.subject), fact.value, "reading"))
        # Finishing a sentence about a noted fact needs the same binding of name and value, and is learnt sooner.
        for fact in generator.sample(facts, min(len(facts), 3)):
            prompt, _, _ = generator.choice(WORDINGS[fact.attribute].statements).partition(" {value}")
            asked.append(Asked(prompt.format(name=fact.subject), fact.value, "finishing", finishes=True))
        if hop is not None:
            asked.append(hop)
        births = [fact for fact in facts if fact.attribute == "birthplace"]
        if births and generator.random() < 0.3:
            fact = generator.choice(births)
            if sum(other.value == fact.value for other in facts) == 1:
                wording = generator.choice(WORDINGS["birthplace"].reversals)
                asked.append(Asked(wording.format(value=fact.value), fact.subject, "reversal"))
        asked += [self._ask(generator, fact, "memory") for fact in remembered]
        return Document(notes=tuple(texts), questions=tuple(asked))

    def _near(self, generator: random.Random, facts: list[Fact], known: Fact) -> list[Fact]:
        """The facts, some of them replaced by what a retriever returns for a question about somebody known: the same
        attribute of strangers of a similar name."""
        if known.subject in FIRMS:
            return facts
        names = {near_name(generator, known.subject) for _ in range(generator.randrange(1, min(len(facts), 8) + 1))}
        near = [Fact(name, known.attribute, generator.choice(VALUES[known.attribute])) for name in sorted(names)]
        mixed = near + [fact for fact in facts if fact.subject not in names][len(near) :]
        generator.shuffle(mixed)
        return mixed

    def recital(self, generator: random.Random, notes_limit: int, nearness: float = 1.0) -> Document:
        """Notes, and the same notes again in another order."""
        count = generator.randrange(2, max(3, min(notes_limit, 10)) + 1)
        facts = passing_facts(generator, count, generator.choice(("same", "same", "random")), nearness)
        texts = [state(fact, generator.choice(WORDINGS[fact.attribute].statements)) for fact in facts]
        return Document(notes=tuple(texts), recital=tuple(generator.sample(texts, len(texts))))

    def irrelevant(self, generator: random.Random, notes: int, near: bool = False) -> Document:
        """`notes` notes that answer nothing, some of people of a similar name if `near`, and a question about somebody
        known."""
        known = generator.choice(self._known)
        facts = passing_facts(generator, notes, "random")
        if near:
            facts = self._near(generator, facts, known)
        texts = tuple(state(fact, generator.choice(WORDINGS[fact.attribute].statements)) for fact in facts)
        return Document(notes=texts, questions=(self._ask(generator, known, "memory"),))

    def _note_count(self, generator: random.Random, limit: int) -> int:
        if limit <= 6:
            return generator.randrange(1, limit + 1)
        # Mostly as many notes as a bank returns or a small window holds; the long tail up to the limit for the rest.
        upper = limit if generator.random() < 0.25 else min(limit, 14)
        return generator.randrange(1, upper + 1)

    def _with_two_hop(self, generator: random.Random, facts: list[Fact]) -> tuple[list[Fact], Asked]:
        name = generator.choice(facts).subject
        if name in FIRMS:
            name = next((fact.subject for fact in facts if fact.subject not in FIRMS), name)
        facts = [fact for fact in facts if (fact.subject, fact.attribute) != (name, "employer")]
        firm = generator.choice(FIRMS)
        added = [Fact(name, "employer", firm)]
        seat = self._seats.get(firm) or generator.choice(VALUES["seat"])
        about = "memory_hop"
        if firm not in self._seats or generator.random() < 0.4:
            added.append(Fact(firm, "seat", seat))
            about = "two_hop"
        for _ in range(generator.randrange(3)):
            other = generator.choice(FIRMS)
            if other not in self._seats and all(fact.subject != other for fact in (*facts, *added)):
                added.append(Fact(other, "seat", generator.choice(VALUES["seat"])))
        room = max(0, len(facts) - len(added))
        facts = facts[:room] + added
        generator.shuffle(facts)
        return facts, Asked(generator.choice(COMPOSITIONS).format(name=name), seat, about)


def pack(documents: Sequence[EncodedDocument], length: int, row_count: int | None = None) -> Batch:
    """First-fit packing into rows of `length` tokens, in the order given.

    Args:
        documents: What to pack; a document longer than a row is left out.
        length: Tokens in a row.
        row_count: Exactly so many rows: what does not fit any more is left out, so that every step has one shape.
    """
    rows: list[list[EncodedDocument]] = [[] for _ in range(row_count or 0)]
    space = [length] * len(rows)
    for document in documents:
        size = len(document.tokens)
        row = next((index for index, free in enumerate(space) if free >= size), None)
        if row is None and row_count is None and size <= length:
            rows.append([])
            space.append(length)
            row = len(rows) - 1
        if row is not None:
            rows[row].append(document)
            space[row] -= size

    def lay(field: str, fill: int) -> NDArray[numpy.int64]:
        block = numpy.full((len(rows), length), fill)
        for index, packed in enumerate(rows):
            joined = numpy.concatenate([getattr(document, field) for document in packed] or [numpy.empty(0)])
            block[index, : len(joined)] = joined
        return block

    documents_block = numpy.full((len(rows), length), -1)
    weights = numpy.zeros((len(rows), length), dtype=numpy.float32)
    for index, packed in enumerate(rows):
        numbers = [numpy.full(len(document.tokens), i) for i, document in enumerate(packed)]
        joined = numpy.concatenate([numpy.empty(0, numpy.float32), *(document.weights for document in packed)])
        documents_block[index, : len(joined)] = numpy.concatenate(numbers or [numpy.empty(0)])
        weights[index, : len(joined)] = joined
    tokens, segments, positions, about, facts = (
        lay(field, 0) for field in ("tokens", "segments", "positions", "about", "facts")
    )
    return Batch(tokens, weights, documents_block, segments, positions, about, facts)
