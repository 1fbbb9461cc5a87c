"""A reasoning bank: an agent that writes down what its attempts teach, and reads it before the next task.

ReasoningBank (Ouyang et al. 2025, arXiv 2509.25140): retrieve, act, judge, extract, append; a stream of tasks, no
ground truth. Lessons are found by the task they came from, never by their own words, and all of a past task's come
together. Where the paper's release departs from it, or harms itself, this does not: verdicts may be "unknown" and teach
nothing then; a task never sees lessons of itself; several attempts are compared only if they differ; lessons that were
shown and did harm are passed over; what was shown is not learnt again; and all of it is in the ledger before `learn`
returns. The file knows nothing of how prompts are worded, how replies are read, or how the bank searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from memory_paths.door import plain, stands_in
from memory_paths.evaluation.statistics import UNBOUNDED, Interval, difference_interval
from memory_paths.ledger import Ledger
from memory_paths.quarantine import Held
from memory_paths.types import Knowledge, KnowledgeKind, Query, Reading, Recall, Receipt

from .extraction import Extraction, check_attempts
from .held import Guard, guarded
from .solving import Environment, Solver
from .trajectory import Judged, Lesson, Task, Trajectory, Verdict, digest

MOST_OF_A_TASK = 64  # lessons of one past task that are shown
NEIGHBOURS = 16  # attempts at similar tasks, beside which a lesson's effect is measured
LEVEL = 0.9  # of the interval that must lie below 0 for a lesson to be passed over
LEAST_SHOWN = 3  # times, before that
SAME = 1e-6  # scores that are no further apart are those of equal texts
TRUST = 0.5  # of what models thought, and wrote down of it: an environment may have told them anything


class Memory(Protocol):
    """The part of `retrieval.bank.Bank` that is used."""

    @property
    def name(self) -> str:
        """Their place in the ledger."""
        ...

    @property
    def ledger(self) -> Ledger:
        """Where the items are, for what is kept apart, and in which order they were written."""
        ...

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """See `types.MemoryPath`."""
        ...

    def search(
        self, queries: Sequence[Query], *, top_k: int, method: Literal["dense"], diversity: float
    ) -> list[Reading]:
        """See `Bank`."""
        ...


@dataclass(frozen=True)
class Attempt:
    """What was done at a task, and the lessons that stood in the prompt meanwhile."""

    trajectory: Trajectory
    shown: tuple[Knowledge, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What became of attempts that were shown a lesson, beside attempts at similar tasks that were not.

    Args:
        shown: Attempts that were shown it and of which it is known how they ended.
        successes: How many of these succeeded.
        others: Attempts that were not.
        other_successes: How many of these succeeded.
        interval: Of the difference of the two shares; (-inf, inf) where one side is empty.
    """

    shown: int
    successes: int
    others: int
    other_successes: int
    interval: Interval

    @property
    def harmful(self) -> bool:
        """Whether it was shown three times or more and its interval lies below 0."""
        return self.shown >= LEAST_SHOWN and self.interval.high < 0


@dataclass(frozen=True)
class Learnt:
    """What came of learning from one attempt or several.

    Args:
        verdicts: One for each attempt, in order.
        lessons: As they are stored; empty where no verdict is known.
        problems: Why there are fewer lessons than there might be.
        extraction: What the lessons were made of; None: nothing could be learnt.
        known: Lessons that were shown and that the extraction only says again.
        held: Lessons and attempts that are kept apart, and why.
    """

    verdicts: tuple[Verdict, ...]
    lessons: tuple[Knowledge, ...] = ()
    problems: tuple[str, ...] = ()
    extraction: Extraction | None = None
    known: tuple[Knowledge, ...] = ()
    held: tuple[Held, ...] = ()


class ReasoningBank:
    """Solves tasks with the lessons of earlier ones, and learns from how it went. Bound to one namespace.

    A lesson is stored as Knowledge of kind "lesson": its text is title, description and content in one line, its cue
    the task's text, its source the ids of the trajectories; its metadata hold the task's id and wording, title,
    description, content, outcome, judge, model, and hashes of prompt and model. An attempt is stored as an "episode"
    with what was shown and how it ended. Both have the trust `TRUST`.

    A lesson whose content only says again, as `memory_paths.door.stands_in` has it, what one said that was shown is not
    learnt once more: the attempt names the one that was shown, which from then on comes with its task's lessons too.

    Args:
        bank: Where lessons and attempts are kept.
        solver: What works on tasks; None: attempts come from elsewhere and `solve` is refused.
        judge: Says whether an attempt succeeded, such as a `judging.Judge`.
        extractor: Turns judged attempts into lessons, such as an `extraction.Extractor`.
        namespace: Whose lessons these are: one website, one repository, one model.
        tasks: Whose lessons are shown: so many nearest past tasks. 0: none, and everything else is the same.
        leave_out_task: Whether a task is kept from seeing lessons of itself (same id or same wording), as it must be
            where tasks come again in a measurement.
        feedback: Whether lessons with a negative measured effect are passed over.
        quarantine: Who is let in, of lessons and attempts, on the bank's ledger. "injections": what does not look like
            an injection; None: everything, unread.

    Raises:
        ValueError: An empty namespace, a negative number of tasks, or a quarantine of another name.
    """

    def __init__(
        self,
        bank: Memory,
        *,
        solver: Solver | None = None,
        judge: Callable[[Trajectory], Verdict],
        extractor: Callable[[Sequence[Judged]], Extraction],
        namespace: str,
        tasks: int = 1,
        leave_out_task: bool = True,
        feedback: bool = True,
        quarantine: Guard = "injections",
    ) -> None:
        if not namespace:
            raise ValueError("a reasoning bank needs a namespace: whose lessons these are")
        if tasks < 0:
            raise ValueError(f"tasks must be at least 0, got {tasks}")
        self.namespace = namespace
        self._bank = bank
        self._solver = solver
        self._judge = judge
        self._extractor = extractor
        self._tasks = tasks
        self._leave_out_task = leave_out_task
        self._feedback = feedback
        self._quarantine = guarded(bank.ledger, quarantine)

    def recall(self, task: Task) -> tuple[Knowledge, ...]:
        """All lessons of the nearest past tasks, the nearest task first; none twice, and none that did harm."""
        where: dict[str, Any] = {"wording": {"$ne": task.wording()}} if self._leave_out_task else {}
        passed = [task.id] if self._leave_out_task else []
        others = {**where, "task": {"$nin": passed.copy()}}
        recalled: dict[str, Knowledge] = {}
        found = 0
        while found < self._tasks:
            (nearest,) = self._search([_teaching(task, self.namespace, {**where, "task": {"$nin": passed}})], 1)
            if not nearest:
                break
            past = nearest[0].metadata["task"]
            passed.append(past)
            about = {**where, "task": past}
            queries = [_teaching(task, self.namespace, about, kind) for kind in ("lesson", "episode")]
            own, attempts = self._search(queries, MOST_OF_A_TASK)
            lessons = {one.metadata["lesson"]: one for one in own}
            named = {id for one in attempts for id in one.metadata["lesson"].split()}
            queries = [
                _teaching(task, self.namespace, {**others, "lesson": id}, "lesson")
                for id in sorted(named - lessons.keys())
            ]
            lessons |= {one.metadata["lesson"]: one for elsewhere in self._search(queries, 1) for one in elsewhere}
            if self._feedback:
                effects = self.effects(list(lessons.values()))
                lessons = {id: lessons[id] for id, effect in zip(lessons, effects, strict=True) if not effect.harmful}
            recalled |= lessons
            found += bool(lessons)
        return tuple(recalled.values())

    def solve(self, task: Task, environment: Environment, *, checks: int = 0) -> Attempt:
        """One attempt with what is recalled; nothing is learnt until `learn` is given it.

        Args:
            task: What is to be done.
            environment: Where.
            checks: See `Solver.__call__`.

        Raises:
            RuntimeError: There is no solver, or its model failed.
        """
        if self._solver is None:
            raise RuntimeError("this reasoning bank has no solver; give it one, or make attempts elsewhere")
        shown = self.recall(task)
        return Attempt(self._solver(task, environment, [lesson.text for lesson in shown], checks=checks), shown)

    def judge(self, attempt: Attempt) -> Judged:
        """The attempt's trajectory with what the judge says of it."""
        return Judged(attempt.trajectory, self._judge(attempt.trajectory))

    def learn(self, attempts: Attempt | Sequence[Attempt], *, verdicts: Sequence[Verdict] | None = None) -> Learnt:
        """Judge, extract, and store; what is returned is on disk, if the ledger is in a file.

        One attempt gives at most 3 lessons. Several different ones at one task are compared, and give at most 5; where
        only one of them has a known verdict, it stands alone. A verdict that is unknown gives none.

        Args:
            attempts: One, or several.
            verdicts: What was said of them already, in order; None: the judge is asked.

        Raises:
            ValueError: No attempt, attempts at several tasks, or copies of one run; nothing is stored then.
        """
        given = [attempts] if isinstance(attempts, Attempt) else list(attempts)
        check_attempts([Judged(attempt.trajectory, Verdict("unknown")) for attempt in given])
        if verdicts is None:
            verdicts = [self._judge(attempt.trajectory) for attempt in given]
        judged = [Judged(attempt.trajectory, verdict) for attempt, verdict in zip(given, verdicts, strict=True)]
        known = [one for one in judged if one.verdict.label != "unknown"]
        extraction = self._extractor(known) if known else None
        problems = [one.verdict.reason for one in judged if one.verdict.label == "unknown"]
        lessons: list[Knowledge] = []
        again: dict[str, Knowledge] = {}
        if extraction is not None:
            problems += extraction.problems
            shown = [lesson for attempt in given for lesson in attempt.shown]
            for lesson in extraction.lessons:
                said = plain(lesson.content)
                first = next((one for one in shown if stands_in(said, plain(one.metadata["content"]))), None)
                if first is None:
                    lessons.append(_lesson(lesson, known, extraction))
                else:
                    again[first.metadata["lesson"]] = first
        episodes = [_episode(one, attempt.shown, again) for one, attempt in zip(judged, given, strict=True)]
        passed, held = [*episodes, *lessons], list[Held]()
        if self._quarantine is not None:
            passed, held = self._quarantine.sift(passed, self.namespace)
        if passed:
            self._bank.write(passed, self.namespace)
        stored = tuple(item for item in passed if item.kind == "lesson")
        return Learnt(tuple(verdicts), stored, tuple(problems), extraction, tuple(again.values()), tuple(held))

    def effects(self, lessons: Sequence[Knowledge]) -> list[Effect]:
        """What each lesson did so far, measured among the 16 judged attempts whose tasks are nearest to its own.

        Attempts that it was made from do not count. The same lesson from several tasks is one lesson.
        """
        # One filter for all, which the bank then keeps; a lesson's own attempts are taken out afterwards.
        judged = {"outcome": ["success", "failure"]}
        queries = [Query(lesson.cue, self.namespace, kinds=("episode",), where=judged) for lesson in lessons]
        found = self._search(queries, NEIGHBOURS, [lesson.source.split() for lesson in lessons])
        return [_effect(lesson, episodes) for lesson, episodes in zip(lessons, found, strict=True)]

    def _search(
        self, queries: Sequence[Query], top_k: int, apart: Sequence[Sequence[str]] | None = None
    ) -> list[list[Knowledge]]:
        """For each query the nearest, without those of the sources in `apart`; where more are as near as the last of
        them, such as attempts at one wording, the latest of these."""
        others = [frozenset(sources) for sources in apart] if apart else [frozenset[str]()] * len(queries)
        found: dict[int, list[Knowledge]] = {}
        asked, left = top_k + max(map(len, others), default=0), list(range(len(queries)))
        while left:
            asked *= 2  # to see how far those go on that are as near as the last one
            readings = self._bank.search(
                [queries[number] for number in left], top_k=asked, method="dense", diversity=0.0
            )
            for number, reading in zip(left, readings, strict=True):
                recalls = [recall for recall in reading.recalls if recall.item.source not in others[number]]
                least = recalls[top_k - 1].score if len(recalls) >= top_k else -math.inf
                if len(reading.recalls) < asked or least - recalls[-1].score > SAME:
                    found[number] = self._latest(recalls, least, top_k)
            left = [number for number in left if number not in found]
        return [found[number] for number in range(len(queries))]

    def _latest(self, recalls: Sequence[Recall], least: float, top_k: int) -> list[Knowledge]:
        """The nearest, and then of those with the least score the latest, in the order of writing."""
        nearer = [recall.item for recall in recalls if recall.score > least + SAME]
        tied = [recall.item for recall in recalls if abs(recall.score - least) <= SAME]
        # Not by their scores: equal texts that were encoded in other batches differ in the last digit.
        written = self._bank.ledger.numbers([item.id for item in tied], place=self._bank.name, namespace=self.namespace)
        tied.sort(key=lambda item: written.get(item.id, 0))
        return [*nearer, *tied[max(0, len(tied) - (top_k - len(nearer))) :]]


def _teaching(task: Task, namespace: str, where: dict[str, Any], *kinds: KnowledgeKind) -> Query:
    """For lessons, and attempts that name some; of one kind, or of both."""
    return Query(task.text, namespace, kinds=kinds or ("lesson", "episode"), where={"lesson": {"$gt": ""}, **where})


def _effect(lesson: Knowledge, episodes: Sequence[Knowledge]) -> Effect:
    shown: list[bool] = []
    others: list[bool] = []
    for episode in episodes:
        side = shown if lesson.metadata["lesson"] in episode.metadata["shown"] else others
        side.append(episode.metadata["outcome"] == "success")
    counts = (sum(shown), len(shown), sum(others), len(others))
    interval = difference_interval(*counts, level=LEVEL) if shown and others else Interval(*UNBOUNDED)
    return Effect(len(shown), sum(shown), len(others), sum(others), interval)


def _about(task: Task) -> dict[str, Any]:
    return {"task": task.id, "wording": task.wording()}


def _episode(judged: Judged, shown: Sequence[Knowledge], again: Iterable[str]) -> Knowledge:
    trajectory, verdict = judged.trajectory, judged.verdict
    metadata = {
        **_about(trajectory.task),
        "trajectory": trajectory.id,
        "outcome": verdict.label,
        "reason": verdict.reason,
        "judge": verdict.by,
        "shown": sorted({lesson.metadata["lesson"] for lesson in shown}),
    }
    if verdict.label != "unknown" and (named := " ".join(sorted(again))):
        metadata["lesson"] = named
    told = f"Task: {trajectory.task.text}\n{trajectory.told()}\nResult: {verdict.label}"
    task, source = trajectory.task.text, trajectory.id
    return _identified(Knowledge("episode", told, "episode", cue=task, source=source, trust=TRUST, metadata=metadata))


def _lesson(lesson: Lesson, judged: Sequence[Judged], extraction: Extraction) -> Knowledge:
    (task,) = {one.trajectory.task for one in judged}
    metadata = {
        **_about(task),
        **vars(lesson),
        "lesson": lesson.id,
        "outcome": "/".join(sorted({one.verdict.label for one in judged})),
        "judge": "/".join(sorted({one.verdict.by for one in judged})),
        "model": extraction.model,
        "prompt_hash": extraction.prompt_hash,
        "model_hash": extraction.model_hash,
    }
    sources = " ".join(one.trajectory.id for one in judged)
    item = Knowledge("lesson", lesson.text, "lesson", cue=task.text, source=sources, trust=TRUST, metadata=metadata)
    return _identified(item)


def _identified(item: Knowledge) -> Knowledge:
    """With an id by content, so that the same thing learnt twice is one item."""
    return replace(item, id=f"{item.kind}/{digest(item.to_json())}")
