"""Which questions are asked after which stage, and with which notes: fixed by stream and seed before anything is asked.

Every question has its place in one order for each kind, stage after stage the same, and a stage asks the beginning of
what is open to it. So the same questions come again (differences between stages are paired), a cap spreads over the
experiences in proportion, and nothing depends on the order of calls. This file knows nothing of agents and answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from memory_paths.evaluation.misses import RELEARNT, WITH_ITEM
from memory_paths.evaluation.records import fingerprint
from memory_paths.types import Knowledge, Question, ReadingTask, Stream

READING, SKILL, PROBE = "reading", "skill", "probe"
Control = Literal["", "oracle", "shuffled"]
LATE_KINDS = ("paraphrase", "composition", "reversal", "alias", "one_hop", "two_hop")
STANDING_KINDS = ("prior", "neighbour", SKILL, "unknown")


@dataclass(frozen=True)
class Ask:
    """One question of one stage.

    Args:
        question: What is asked.
        key: Its identity within the stream.
        kind: What it tests; "skill" for a reading task.
        experience: Number of the experience that it belongs to, from 1; 0: none.
        uniform: Whether it is of the proportional sample of the stage, and not added for one figure only.
        notes: What stands in the prompt in place of what the path would recall; None: what the path recalls.
    """

    question: Question
    key: str
    kind: str
    experience: int = 0
    uniform: bool = True
    notes: tuple[str, ...] | None = None

    @property
    def arm(self) -> str:
        """Whether the path's own way of reading is tested, or the model's skill with given notes, or why an answer was
        missed."""
        return {SKILL: SKILL, WITH_ITEM: PROBE, RELEARNT: PROBE}.get(self.kind, READING)


class Plan:
    """The questions of every stage of a stream.

    Args:
        stream: What is learnt and asked.
        samples: Most questions of a kind and stage, at least 1.
        seed: Of the sample.
        before: Ask every kind before any learning, and not only what the matrix, the prior and the skill need.
        control: "oracle": each question is given the texts of the items that it is about, as far as they were taught
            by then. "shuffled": as many texts, of other items.

    Raises:
        ValueError: An unknown control, a stream without experiences, an experience that teaches nothing, two questions
            that only differ in what they accept, or a question about items that the stream does not have.
    """

    def __init__(self, stream: Stream, *, samples: int, seed: int, before: bool = False, control: Control = "") -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if control not in get_args(Control):
            raise ValueError(f"control must be one of {get_args(Control)}, got {control!r}")
        _check(stream)
        self.stages = len(stream.experiences) + 1
        self._samples, self._before, self._control = samples, before, control
        self._texts = {item.id: item.text for step in stream.experiences for item in step.items}
        self._active = _active_ids(stream)
        self._taught: list[set[str]] = [set()]
        for step in stream.experiences:
            self._taught.append(self._taught[-1] | {item.id for item in step.items})
        self._seed = seed
        asked: dict[str, dict[str, Ask]] = {}
        for number, experience in enumerate(stream.experiences, start=1):
            for question in experience.questions:
                _add(asked, Ask(question, question.key(), question.kind, number))
        for question in (*stream.prior, *stream.unknown):
            _add(asked, Ask(question, question.key(), question.kind))
        for task in stream.skill:
            _add(asked, _reading_ask(task))
        self._ordered = {kind: self._spread(asks.values()) for kind, asks in asked.items()}

    def asks(self, stage: int) -> list[Ask]:
        """Everything that is asked after `stage` experiences (0: before any learning), each question once."""
        last = stage == self.stages - 1
        if stage == 0:
            kinds = ("direct", *STANDING_KINDS) + (("trained", *LATE_KINDS) if self._before else ())
            chosen = [ask for kind in kinds for ask in self._ordered.get(kind, [])[: self._samples]]
        else:
            chosen = self._direct(stage, last)
            own = [ask for ask in self._open("trained", stage) if ask.experience == stage]
            chosen += own[: self._samples]
            if last:
                kinds = (*LATE_KINDS, *STANDING_KINDS)
                chosen += [ask for kind in kinds for ask in self._open(kind, stage)[: self._samples]]
        return [self._with_notes(ask, stage) for ask in chosen]

    def _direct(self, stage: int, last: bool) -> list[Ask]:
        """Own questions first (half of the cap at most while others wait), then a proportional sample of all."""
        waiting = [
            ask
            for ask in self._ordered.get("direct", [])
            if self._is_open(ask, stage) or (not last and ask.experience == stage + 1)
        ]
        others = sum(ask.experience != stage for ask in waiting)
        share = max(self._samples - others, -(-self._samples // 2))
        chosen = {ask.key: replace(ask, uniform=False) for ask in waiting if ask.experience == stage}
        chosen = dict(list(chosen.items())[:share])
        for ask in waiting:
            if ask.key not in chosen and len(chosen) >= self._samples:
                break
            chosen[ask.key] = ask
        if last:
            updates = [ask for ask in waiting if ask.question.stale][: self._samples]
            for ask in updates:
                chosen.setdefault(ask.key, replace(ask, uniform=False))
        return list(chosen.values())

    def _open(self, kind: str, stage: int) -> list[Ask]:
        return [ask for ask in self._ordered.get(kind, []) if self._is_open(ask, stage)]

    def _is_open(self, ask: Ask, stage: int) -> bool:
        """Whether its experience has come and its items are all taught and hold; or it is of none."""
        if ask.experience == 0:
            return True
        return ask.experience <= stage and self._holding(ask.question, stage).issuperset(ask.question.ids)

    def _holding(self, question: Question, stage: int) -> set[str]:
        """Ids that may answer it: what is taught and not superseded, and for a question about the past all of that."""
        return self._active[stage] if question.query.as_of is None else self._taught[stage]

    def _spread(self, asks: Iterable[Ask]) -> list[Ask]:
        """An order of which every beginning holds about the same share of each experience."""

        def chance(ask: Ask) -> str:
            return hashlib.sha256(f"{self._seed}/{ask.kind}/{ask.key}".encode()).hexdigest()

        groups: dict[int, list[Ask]] = {}
        for ask in asks:
            groups.setdefault(ask.experience, []).append(ask)
        placed = [
            ((rank + 0.5) / len(group), chance(ask), ask)
            for group in groups.values()
            for rank, ask in enumerate(sorted(group, key=chance))
        ]
        return [ask for _, _, ask in sorted(placed, key=lambda entry: entry[:2])]

    def _with_notes(self, ask: Ask, stage: int) -> Ask:
        if not self._control or ask.notes is not None:
            return ask
        valid = self._holding(ask.question, stage)
        ids = [id for id in ask.question.ids if id in valid]
        if self._control == "shuffled":
            others = sorted(
                valid - set(ask.question.ids), key=lambda other: fingerprint(str(self._seed), ask.key, other)
            )
            ids = others[: len(ids)]
        return replace(ask, notes=tuple(self._texts[id] for id in ids))

    def with_item(self, missed: Sequence[Ask]) -> list[Ask]:
        """The same questions with the texts of the items that they are about, whatever the path recalls."""
        return [replace(ask, kind=WITH_ITEM, notes=tuple(self._texts[id] for id in ask.question.ids)) for ask in missed]


def stream_hash(stream: Stream) -> str:
    """Changes when anything does that is taught or asked."""
    lines = [stream.name]
    for experience in stream.experiences:
        lines += [experience.name, *(item.to_json() for item in experience.items)]
        lines += [_line(question) for question in experience.questions]
    lines += [_line(question) for question in (*stream.prior, *stream.unknown)]
    lines += [json.dumps([_line(task.question), task.notes]) for task in stream.skill]
    return fingerprint(*lines)


def _line(question: Question) -> str:
    return json.dumps(asdict(question), sort_keys=True)


def _reading_ask(task: ReadingTask) -> Ask:
    key = f"{task.question.key()}-{fingerprint(*task.notes)}"
    return Ask(task.question, key, SKILL, notes=task.notes)


def _add(asked: dict[str, dict[str, Ask]], ask: Ask) -> None:
    there = asked.setdefault(ask.kind, {}).setdefault(ask.key, ask)
    if there.question.targets != ask.question.targets:
        raise ValueError(
            f"two questions of kind {ask.kind!r} about {ask.question.ids} ask {ask.question.query.text!r} but accept "
            f"{there.question.targets} and {ask.question.targets}; give them different ids or words"
        )


def _active_ids(stream: Stream) -> list[set[str]]:
    """Ids that are valid after each stage: what has the same key as a later item is superseded by it."""
    by_key: dict[str, str] = {}
    active: dict[str, Knowledge] = {}
    stages: list[set[str]] = [set()]
    for experience in stream.experiences:
        for item in experience.items:
            if item.key:
                superseded = by_key.get(item.key)
                if superseded not in (None, item.id):
                    active.pop(str(superseded), None)
                by_key[item.key] = item.id
            active[item.id] = item
        stages.append(set(active))
    return stages


def _check(stream: Stream) -> None:
    if not stream.experiences:
        raise ValueError(f"stream {stream.name!r} has no experiences; it must teach something")
    known = {item.id for experience in stream.experiences for item in experience.items}
    for experience in stream.experiences:
        if not experience.items:
            raise ValueError(f"experience {experience.name!r} of stream {stream.name!r} teaches nothing")
        for question in experience.questions:
            missing: Sequence[str] = [id for id in question.ids if id not in known]
            if missing:
                raise ValueError(
                    f"a question of experience {experience.name!r} is about items {list(missing)} that the stream does "
                    f"not teach: {question.query.text!r}"
                )
