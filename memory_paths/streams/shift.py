"""The same facts told differently: names of another kind, or another language, to see what strangeness costs.

A shift changes what is taught and asked about it, and leaves alone what was known before: of the biographies world by
the words that its language model has (`shifted`), of anything else by its own words (`reworded`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, get_args

from memory_paths.streams.words import LAST_NAMES, WORDINGS
from memory_paths.types import Experience, Knowledge, Phrasing, Question, Stream

Shift = Literal["none", "names", "language"]
_WORD = re.compile(r"[A-Za-z]+")
_LETTERS = re.compile(r"[^\W\d_]+")
# What stands before the first word of a sentence: no initial, and no title.
_BEGIN = re.compile(r"(^|(?<!\b[A-Z])(?<!\b[DMS][rt])(?<!\bMrs)[.?!])\W*$")
_NAME = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+")


def shifted(stream: Stream, shift: Shift, seed: int = 0) -> Stream:
    """A stream at some distance from what the model was trained on.

    Args:
        stream: In the plain English of the biographies world.
        shift: "none": as it is. "names": people have two last names, as nobody has whom the model knows. "language":
            names likewise, and every other word of the wordings is another one of them, the same one everywhere: a
            language with the words of English and none of its sense.
        seed: Which names, and which words.

    Returns:
        As many items and questions, in the same order, with the same ids. `prior` and `skill` are as they were.

    Raises:
        ValueError: An unknown shift.
    """
    check_shift(shift)
    if shift == "none":
        return stream
    names = _other_names(stream, seed)
    words = _cipher(seed) if shift == "language" else {}

    def told(text: str) -> str:
        for name in _NAME.findall(text):
            text = text.replace(name, names.get(name, name))
        return _WORD.sub(lambda word: words.get(word[0], word[0]), text)

    return _told(stream, told)


def reworded(stream: Stream, shift: Shift, seed: int = 0) -> Stream:
    """Any stream at some distance from what a model was trained on, by other words of its own.

    Args:
        stream: In whatever words.
        shift: "none": as it is. "names": every word that the stream writes with a capital alone, and not only where a
            sentence begins, is another one of them, so that nothing bears the name that it is known by. Acronyms stay.
            "language": every other word is another one too, the same one everywhere: a language with the stream's words
            and none of their sense.
        seed: Which words.

    Returns and raises what `shifted` does.
    """
    check_shift(shift)
    if shift == "none":
        return stream
    texts = list(_texts(stream))
    every = {word for text in texts for word in _LETTERS.findall(text)}
    small = {word for word in every if word == word.lower()}
    found = [(text, word) for text in texts for word in _LETTERS.finditer(text)]
    within = {word[0] for text, word in found if not _BEGIN.search(text[max(0, word.start() - 8) : word.start()])}
    every = {word for word in every if len(word) == 1 or word != word.upper()}
    names = {word for word in within & every if word.lower() not in small}
    generator = random.Random(f"shift/{shift}/{seed}")
    words = _turned(names, generator)
    if shift == "language":
        words |= _turned(small, generator)
        openers = every - names - small
        words |= {word: words[word.lower()].capitalize() for word in openers if word.lower() in small}
        words |= _turned((word for word in openers if word.lower() not in small), generator)
    return _told(stream, lambda text: _LETTERS.sub(lambda word: words.get(word[0], word[0]), text))


def check_shift(shift: str) -> None:
    """Refuses what is no shift.

    Raises:
        ValueError: With those that there are.
    """
    if shift not in get_args(Shift):
        raise ValueError(f"shift must be one of {get_args(Shift)}, got {shift!r}")


def _turned(words: Iterable[str], generator: random.Random) -> dict[str, str]:
    """Another one of them for each, none for itself, if there are several."""
    found = sorted(words)
    order = generator.sample(found, len(found))
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def _texts(stream: Stream) -> Iterator[str]:
    for experience in stream.experiences:
        for item in experience.items:
            yield from (item.text, item.cue)
            for phrasing in item.phrasings:
                yield from (phrasing.prompt, phrasing.completion)
    asked = [*stream.unknown, *(question for experience in stream.experiences for question in experience.questions)]
    for question in asked:
        yield from (question.query.text, *question.targets, *question.stale, *question.choices)


def _told(stream: Stream, told: Callable[[str], str]) -> Stream:
    return replace(
        stream,
        experiences=tuple(_experience(experience, told) for experience in stream.experiences),
        unknown=tuple(_question(question, told) for question in stream.unknown),
    )


def _experience(experience: Experience, told: Callable[[str], str]) -> Experience:
    return Experience(
        experience.name,
        tuple(_item(item, told) for item in experience.items),
        tuple(_question(question, told) for question in experience.questions),
    )


def _item(item: Knowledge, told: Callable[[str], str]) -> Knowledge:
    phrasings = tuple(
        Phrasing(told(phrasing.completion), told(phrasing.prompt), phrasing.asks) for phrasing in item.phrasings
    )
    return replace(item, text=told(item.text), cue=told(item.cue), phrasings=phrasings)


def _question(question: Question, told: Callable[[str], str]) -> Question:
    return replace(
        question,
        query=replace(question.query, text=told(question.query.text)),
        targets=tuple(map(told, question.targets)),
        stale=tuple(map(told, question.stale)),
        choices=tuple(map(told, question.choices)),
    )


def _other_names(stream: Stream, seed: int) -> Mapping[str, str]:
    """Two last names for each person whom the stream tells of."""
    asked = [*stream.unknown, *(question for experience in stream.experiences for question in experience.questions)]
    people = list(dict.fromkeys(question.cluster for question in asked if _NAME.fullmatch(question.cluster)))
    generator = random.Random(f"shift/names/{seed}")
    names: dict[str, None] = {}
    while len(names) < len(people):
        names.setdefault(" ".join(generator.sample(LAST_NAMES, 2)))
    return dict(zip(people, names, strict=True))


def _cipher(seed: int) -> Mapping[str, str]:
    """Another word for each word of the wordings, none for itself; whether it begins a sentence stays visible."""
    texts = [
        text
        for wordings in WORDINGS.values()
        for text in (*wordings.statements, *wordings.questions, *wordings.new_questions)
    ]
    bare = [re.sub(r"\{\w+\}", "", text) for text in texts]
    every = {word for text in bare for word in _WORD.findall(text)}
    generator = random.Random(f"shift/language/{seed}")
    found: dict[str, str] = {}
    for capital in (False, True):
        found |= _turned((word for word in every if word[0].isupper() == capital), generator)
    return found
