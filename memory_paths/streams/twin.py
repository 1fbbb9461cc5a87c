"""What the synthetic twins of the survey's twelve scenarios have in common: new names, the seeds of each, and how
lessons become a stream with questions about the known world beside them.

A twin is a small stream in the biographies world's own words, so that the embedded model can read and learn it and that
it runs anywhere: `pretraining` (texts of a domain, a language, a time), `tasks` (what is learnt from examples) and
`knowledge` (what holds, and is changed). Nothing is asked as it was studied: a fact is asked in a held-out wording, a
task on a held-out instance.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from memory_paths.streams.words import WORDINGS
from memory_paths.streams.world import (
    Fact,
    item_of,
    known_world,
    new_names,
    question_about,
    reading_task,
    split_wordings,
)
from memory_paths.types import Experience, Knowledge, Question, QuestionKind, Stream

PRIOR, SKILL, NOTES = 96, 48, 8


@dataclass(frozen=True)
class Lesson:
    """Something to be learnt, and what is asked about it."""

    item: Knowledge
    questions: tuple[Question, ...] = ()


class Twin:
    """Collects the experiences of a twin.

    Args:
        name: Of the stream.
        world_seed: Of what is taught.
        order_seed: In which order lessons arrive, and which held-out wordings are asked.
    """

    def __init__(self, name: str, world_seed: int, order_seed: int) -> None:
        self.name = name
        self.world = random.Random(f"{name}/world/{world_seed}")
        self.order = random.Random(f"{name}/order/{order_seed}/{world_seed}")
        self._steps: list[Experience] = []
        self._taken: set[str] = set()

    def someone(self) -> str:
        """The full name of somebody new, whom no training document knows."""
        (name,) = new_names(self.world, 1, self._taken)
        self._taken.add(name)
        return name

    def asked(self, fact: Fact, kind: QuestionKind = "direct", **told: Any) -> Question:
        """A question about a fact: in a held-out wording, or in one of no training where it is a paraphrase."""
        wordings = WORDINGS[fact.attribute].new_questions if kind == "paraphrase" else split_wordings(fact).held_out
        return question_about(self.order, fact, kind, wordings, **told)

    def fact_lesson(self, fact: Fact, *, version: int = 1, old: str = "", **more: Any) -> Lesson:
        """A fact with both questions about it; `old`: the value that it supersedes; `more`: further of its item."""
        item = item_of(fact, version, **more)
        told: dict[str, Any] = {"ids": (item.id,), "stale": (old,) if old else ()}
        return Lesson(item, (self.asked(fact, **told), self.asked(fact, "paraphrase", **told)))

    def add(self, name: str, lessons: Sequence[Lesson]) -> None:
        """One more experience, its lessons in an order of their own for each seed."""
        shuffled = self.order.sample(list(lessons), len(lessons))
        questions = tuple(question for lesson in shuffled for question in lesson.questions)
        self._steps.append(Experience(name, tuple(lesson.item for lesson in shuffled), questions))

    def stream(
        self, *, without: Iterable[Fact] = (), unknown: Iterable[Question] = (), chance: float | None = None
    ) -> Stream:
        """All of it, with a sample of what the embedded model knows, and with reading tasks.

        Args:
            without: Known facts that are not asked as the prior, because the twin changes them.
            unknown: See `Stream`.
            chance: See `Stream`.
        """
        changed = {fact.key for fact in without}
        known = [fact for fact in known_world().part_b if fact.key not in changed]
        prior = tuple(self.asked(fact, "prior") for fact in self.order.sample(known, PRIOR))
        skill = tuple(reading_task(self.world, NOTES) for _ in range(SKILL))
        return Stream(self.name, tuple(self._steps), prior, skill, tuple(unknown), chance)


def up_to(name: str, given: int, most: int) -> None:
    """Refuses what a twin has not so many of.

    Raises:
        ValueError: Fewer than one, or more than there are.
    """
    if not 1 <= given <= most:
        raise ValueError(f"{name} must be between 1 and {most}, got {given}")


def another(generator: random.Random, values: Iterable[str], *taken: str) -> str:
    """One of the values that is none of those taken."""
    return generator.choice([value for value in values if value not in taken])
