"""The same facts told differently: names of another kind, or another language, to see what strangeness costs.

A shift changes what is taught and asked about it, and leaves alone what was known before. This file knows nothing of
the world that a stream comes from, but for the words that its language model has.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

from memory_paths.streams.words import LAST_NAMES, WORDINGS
from memory_paths.types import Experience, Knowledge, Phrasing, Question, Stream

Shift = Literal["none", "names", "language"]
_WORD = re.compile(r"[A-Za-z]+")
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
    if shift not in get_args(Shift):
        raise ValueError(f"shift must be one of {get_args(Shift)}, got {shift!r}")
    if shift == "none":
        return stream
    names = _other_names(stream, seed)
    words = _cipher(seed) if shift == "language" else {}

    def told(text: str) -> str:
        for name in _NAME.findall(text):
            text = text.replace(name, names.get(name, name))
        return _WORD.sub(lambda word: words.get(word[0], word[0]), text)

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
    return replace(item, text=told(item.text), phrasings=phrasings)


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
    every = sorted({word for text in bare for word in _WORD.findall(text)})
    generator = random.Random(f"shift/language/{seed}")
    found: dict[str, str] = {}
    for capital in (False, True):
        words = [word for word in every if word[0].isupper() == capital]
        order = generator.sample(words, len(words))
        found |= dict(zip(order, [*order[1:], order[0]], strict=True))
    return found
