"""The biographies world: people, firms and cities in plain English, seeded and exact, so that no judge is needed.

The *known* people and firms are the same in every world: the embedded language model has learnt them by heart. A
stream brings new
people and new firms, a few of whom change jobs, and asks in wordings that were never used for the fact in question.
This file knows nothing of models, tokens or paths.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memory_paths.streams.shift import Shift, shifted
from memory_paths.streams.words import (
    COMPOSITIONS,
    FIRMS,
    FIRST_NAMES,
    LAST_NAMES,
    PERSON_ATTRIBUTES,
    VALUES,
    WORDINGS,
)
from memory_paths.types import Experience, Knowledge, Phrasing, Query, Question, QuestionKind, ReadingTask, Stream

KNOWN_PEOPLE = 400
KNOWN_FIRMS = 60
_KNOWN_SEED = "known"


@dataclass(frozen=True)
class Fact:
    """One attribute of one subject. `subject` is a person's full name or a firm's name."""

    subject: str
    attribute: str
    value: str

    @property
    def key(self) -> str:
        """What a later fact must be about to supersede this one."""
        return f"{self.subject.lower().replace(' ', '-')}/{self.attribute}"


@dataclass(frozen=True)
class KnownWorld:
    """What the embedded model knows: part A serves the methods (rehearsal, background), only part B is ever scored."""

    part_a: tuple[Fact, ...]
    part_b: tuple[Fact, ...]
    seats: dict[str, str]

    @functools.cached_property
    def people(self) -> frozenset[str]:
        """Full names of both parts."""
        return frozenset(fact.subject for fact in self.part_a + self.part_b)


@dataclass(frozen=True)
class SplitWordings:
    """Which wordings of an attribute serve for studying one fact, and which only for asking."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def split_wordings(fact: Fact) -> SplitWordings:
    """Three statements and three questions to study, the other two questions held out; fixed for each subject and
    attribute."""
    generator = random.Random(f"wordings/{fact.key}")
    wordings = WORDINGS[fact.attribute]
    statements = generator.sample(wordings.statements, 3)
    questions = generator.sample(wordings.questions, len(wordings.questions))
    return SplitWordings(tuple(statements), tuple(questions[:3]), tuple(questions[3:]))


def state(fact: Fact, wording: str) -> str:
    """The fact as a sentence."""
    return wording.format(name=fact.subject, value=fact.value)


def cloze(fact: Fact, wording: str) -> Phrasing:
    """The sentence with its value as the text to be learnt and all before it as the prompt."""
    prompt, _, rest = wording.partition(" {value}")
    return Phrasing(f" {fact.value}{rest}", prompt.format(name=fact.subject))


Role = Literal["training", "stream", "reading"]


def role(name: str) -> Role:
    """Where people of this full name may occur, known people aside: half of all names in training documents, the
    others in streams but for every eighth, which is for reading tasks."""
    number = zlib.crc32(name.encode()) % 16
    return "training" if number % 2 else "stream" if number else "reading"


def _draw_name(generator: random.Random) -> str:
    return f"{generator.choice(FIRST_NAMES)} {generator.choice(LAST_NAMES)}"


def _draw_people(generator: random.Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names.setdefault(_draw_name(generator))
    return list(names)


def new_names(generator: random.Random, count: int, taken: Iterable[str] = ()) -> list[str]:
    """`count` different full names that no training document holds and that are not in `taken` either."""
    used = set(taken)
    names: dict[str, None] = {}
    while len(names) < count:
        name = _draw_name(generator)
        if _may_pass(name, "stream") and name not in used:
            names.setdefault(name)
    return list(names)


@functools.cache
def known_world() -> KnownWorld:
    """The people and firms that every embedded model is trained on; the same for every seed."""
    generator = random.Random(_KNOWN_SEED)
    firms = sorted(generator.sample(FIRMS, KNOWN_FIRMS))
    seats = {firm: generator.choice(VALUES["seat"]) for firm in firms}
    values = {**VALUES, "employer": tuple(firms)}
    people = [
        tuple(Fact(name, attribute, generator.choice(values[attribute])) for attribute in PERSON_ATTRIBUTES)
        for name in _draw_people(generator, KNOWN_PEOPLE)
    ]
    middle = KNOWN_PEOPLE // 2
    return KnownWorld(
        part_a=tuple(fact for person in people[:middle] for fact in person),
        part_b=tuple(fact for person in people[middle:] for fact in person),
        seats=seats,
    )


def study_phrasings(fact: Fact) -> tuple[Phrasing, ...]:
    """Every study wording of a fact: sentences as clozes, then questions with their answer."""
    wordings = split_wordings(fact)
    return tuple(cloze(fact, wording) for wording in wordings.statements) + tuple(
        Phrasing(fact.value, wording.format(name=fact.subject), asks=True) for wording in wordings.questions
    )


def rehearsal() -> tuple[Phrasing, ...]:
    """Study phrasings of part A of the known people: what a method may use to remember what the embedded model knew."""
    return tuple(phrasing for fact in known_world().part_a for phrasing in study_phrasings(fact))


def item_of(fact: Fact, version: int = 1, *, source: str = "biographies", **more: Any) -> Knowledge:
    """A fact to be learnt; a later version has an id of its own and supersedes the earlier ones. `more`: further fields
    of the item."""
    suffix = "" if version == 1 else f"/{version}"
    return Knowledge(
        id=fact.key + suffix,
        text=state(fact, split_wordings(fact).statements[0]),
        key=fact.key,
        phrasings=study_phrasings(fact)[1:],
        source=source,
        **more,
    )


def _choices(generator: random.Random, fact: Fact) -> tuple[str, ...]:
    others = generator.sample([value for value in VALUES[fact.attribute] if value != fact.value], 3)
    choices = [fact.value, *others]
    generator.shuffle(choices)
    return tuple(choices)


def question_about(
    generator: random.Random,
    fact: Fact,
    kind: QuestionKind,
    wordings: Sequence[str],
    *,
    ids: tuple[str, ...] = (),
    stale: tuple[str, ...] = (),
) -> Question:
    """A question about a fact in one of these wordings, with its value and three others to choose from."""
    return Question(
        query=Query(generator.choice(wordings).format(name=fact.subject)),
        targets=() if kind == "unknown" else (fact.value,),
        kind=kind,
        ids=ids,
        stale=stale,
        choices=_choices(generator, fact),
        cluster=fact.subject,
    )


def _new_facts(
    generator: random.Random, facts: int, experiences: int
) -> tuple[list[list[Fact]], list[tuple[int, Fact, Fact]]]:
    """Facts for each experience, and job changes as (experience, old fact, new fact)."""
    known = known_world()
    firm_count, change_count = max(1, facts // 40), facts // 48
    person_facts = facts - firm_count - change_count
    free = [firm for firm in FIRMS if firm not in known.seats]
    firms = generator.sample(free, min(firm_count, len(free)))
    person_facts += firm_count - len(firms)
    names = new_names(generator, -(-person_facts // len(PERSON_ATTRIBUTES)))
    steps: list[list[Fact]] = [[] for _ in range(experiences)]
    firm_step = {firm: index % experiences for index, firm in enumerate(firms)}
    for firm, step in firm_step.items():
        steps[step].append(Fact(firm, "seat", generator.choice(VALUES["seat"])))
    employed: list[tuple[int, Fact]] = []
    for index, name in enumerate(names):
        step = index * experiences // len(names)
        elsewhere = [firm for firm in firms if firm_step[firm] != step] or firms
        for attribute in PERSON_ATTRIBUTES[: person_facts - index * len(PERSON_ATTRIBUTES)]:
            value = generator.choice(VALUES[attribute])
            if attribute == "employer":
                value = generator.choice(elsewhere if generator.random() < 0.5 else sorted(known.seats))
            steps[step].append(Fact(name, attribute, value))
            if attribute == "employer":
                employed.append((step, steps[step][-1]))
    movable = [(step, fact) for step, fact in employed if step < experiences - 1]
    changes = []
    for step, fact in generator.sample(movable, min(change_count, len(movable))):
        value = generator.choice([firm for firm in sorted(known.seats) if firm != fact.value])
        changes.append((generator.randrange(step + 1, experiences), fact, Fact(fact.subject, "employer", value)))
    return steps, changes


def biographies(
    facts: int = 480,
    *,
    experiences: int | None = None,
    world_seed: int = 0,
    order_seed: int = 0,
    reading_notes: int = 12,
    shift: Shift = "none",
) -> Stream:
    """A stream of new people and firms.

    Args:
        facts: Number of new facts in all (job changes included), at least 12.
        experiences: In how many steps they arrive; by default ten, fewer for small loads.
        world_seed: Who lives and works where.
        order_seed: In which order the facts of a step arrive, and which wordings ask for them.
        reading_notes: Notes in each reading task of the skill measure.
        shift: How far it is from what the model was trained on, see `shift.shifted`.

    Raises:
        ValueError: Fewer than 12 facts, an unknown shift, or more experiences than new people.
    """
    if facts < 12:
        raise ValueError(f"facts must be at least 12, got {facts}")
    count = experiences if experiences is not None else max(2, min(10, facts // 12))
    people = -(-(facts - max(1, facts // 40) - facts // 48) // len(PERSON_ATTRIBUTES))
    if not 1 <= count <= people:
        raise ValueError(f"experiences must be between 1 and the number of new people ({people}), got {count}")
    known = known_world()
    generator = random.Random(f"world/{world_seed}/{facts}")
    steps, changes = _new_facts(generator, facts, count)
    wording_generator = random.Random(f"order/{order_seed}/{world_seed}/{facts}")
    changed = {old.key for _, old, _ in changes}
    everything = [fact for step in steps for fact in step]
    step_of = {fact.key: index for index, step in enumerate(steps) for fact in step}
    seats = {fact.subject: fact for fact in everything if fact.attribute == "seat"}
    birthplaces = Counter(
        fact.value for fact in (*everything, *known.part_a, *known.part_b) if fact.attribute == "birthplace"
    )

    def asked(fact: Fact, item: Knowledge, stale: tuple[str, ...] = ()) -> list[Question]:
        wordings = split_wordings(fact)
        ids = (item.id,)
        questions = [
            question_about(wording_generator, fact, "direct", wordings.held_out, ids=ids, stale=stale),
            question_about(wording_generator, fact, "trained", wordings.questions, ids=ids, stale=stale),
            question_about(
                wording_generator, fact, "paraphrase", WORDINGS[fact.attribute].new_questions, ids=ids, stale=stale
            ),
        ]
        if fact.attribute == "birthplace" and birthplaces[fact.value] == 1:
            text = wording_generator.choice(WORDINGS["birthplace"].reversals).format(value=fact.value)
            others = wording_generator.sample([other.subject for other in known.part_b], 3)
            choices = tuple(sorted({fact.subject, *others}))
            questions.append(
                Question(Query(text), (fact.subject,), "reversal", ids, choices=choices, cluster=fact.subject)
            )
        if fact.attribute == "employer" and fact.key not in changed:
            seat = seats.get(fact.value)
            if seat is None or step_of[seat.key] != step_of[fact.key]:
                sits = Fact(fact.subject, "seat", seat.value if seat else known.seats[fact.value])
                both = ids if seat is None else (*ids, seat.key)
                questions.append(question_about(wording_generator, sits, "composition", COMPOSITIONS, ids=both))
        return questions

    arriving: list[Experience] = []
    for index, step in enumerate(steps):
        taught: list[tuple[Fact, Knowledge, tuple[str, ...]]] = [(fact, item_of(fact), ()) for fact in step]
        taught += [(new, item_of(new, 2), (old.value,)) for at, old, new in changes if at == index]
        wording_generator.shuffle(taught)
        questions = [question for fact, item, stale in taught for question in asked(fact, item, stale)]
        arriving.append(Experience(f"step {index + 1}", tuple(item for _, item, _ in taught), tuple(questions)))

    prior_generator = random.Random(f"prior/{order_seed}")
    prior = tuple(
        question_about(prior_generator, fact, "prior", split_wordings(fact).held_out) for fact in known.part_b
    )
    stranger_generator = random.Random(f"strangers/{world_seed}/{facts}")
    strangers = new_names(stranger_generator, 40, {fact.subject for fact in everything})
    unknown = tuple(
        question_about(prior_generator, Fact(name, attribute, ""), "unknown", WORDINGS[attribute].questions)
        for name in strangers
        for attribute in PERSON_ATTRIBUTES
    )
    skill_generator = random.Random(f"skill/{world_seed}")
    stream = Stream(
        name=f"biographies-{facts}" if shift == "none" else f"biographies-{shift}-{facts}",
        experiences=tuple(arriving),
        prior=prior,
        skill=tuple(reading_task(skill_generator, reading_notes) for _ in range(400)),
        unknown=unknown,
        chance=_chance(everything),
    )
    return shifted(stream, shift, world_seed)


def _chance(facts: Sequence[Fact]) -> float:
    by_attribute: dict[str, Counter[str]] = {}
    for fact in facts:
        by_attribute.setdefault(fact.attribute, Counter())[fact.value] += 1
    return sum(counts.most_common(1)[0][1] for counts in by_attribute.values()) / len(facts)


def passing_facts(
    generator: random.Random, count: int, style: str, nearness: float = 1.0, bearers: Role = "training"
) -> list[Fact]:
    """`count` facts of passers-by, people who exist nowhere else, with distractors as hard as `style` makes them.

    Args:
        generator: Where chance comes from.
        count: Number of facts, at least 1.
        style: "random" (any person, any attribute), "same" (one or two attributes for all, many names shared in
            part) or
            "bank" (what a retriever finds: all about one person, and the same attribute of people with a similar name).
        nearness: In [0, 1]; scales how many people share a first or a last name.
        bearers: Whose names they have, see `role`.

    Returns:
        Facts with no (subject, attribute) twice, shuffled.
    """
    facts: dict[tuple[str, str], Fact] = {}

    def add(name: str, attribute: str) -> None:
        facts.setdefault((name, attribute), Fact(name, attribute, generator.choice(VALUES[attribute])))

    if style == "random":
        names = near_names(generator, max(1, round(count * generator.uniform(0.3, 1.0))), 0.0, bearers)
        while len(facts) < count:
            add(generator.choice(names), generator.choice(PERSON_ATTRIBUTES))
    elif style == "same":
        attributes = generator.sample(PERSON_ATTRIBUTES, generator.choice((1, 1, 2)))
        names = near_names(generator, -(-count // len(attributes)), 0.4 * nearness, bearers)
        for name in names:
            for attribute in attributes:
                add(name, attribute)
    elif style == "bank":
        names = near_names(generator, count, 0.8 * nearness, bearers)
        asked = generator.choice(PERSON_ATTRIBUTES)
        about = generator.randrange(1, min(count, len(PERSON_ATTRIBUTES)) + 1)
        add(names[0], asked)
        for attribute in generator.sample(PERSON_ATTRIBUTES, about):
            add(names[0], attribute)
        for name in names[1:]:
            add(name, asked)
    else:
        raise ValueError(f"style must be 'random', 'same' or 'bank', got {style!r}")
    chosen = list(facts.values())[:count]
    generator.shuffle(chosen)
    return chosen


def near_names(generator: random.Random, count: int, share: float, bearers: Role = "training") -> list[str]:
    """Full names of passers-by, of which about `share` have their first or last name in common with an earlier one."""
    names: dict[str, None] = {}
    while len(names) < count:
        if names and generator.random() < share:
            name = near_name(generator, generator.choice(list(names)[: 1 + len(names) // 2]), bearers)
        else:
            name = _draw_name(generator)
        if _may_pass(name, bearers):
            names.setdefault(name)
    return list(names)


def near_name(generator: random.Random, name: str, bearers: Role = "training") -> str:
    """Another full name with the first or the last name of `name`, of nobody who is known."""
    first, last = name.split()
    while True:
        if generator.random() < 0.5:
            near = f"{first} {generator.choice(LAST_NAMES)}"
        else:
            near = f"{generator.choice(FIRST_NAMES)} {last}"
        if near != name and _may_pass(near, bearers):
            return near


def _may_pass(name: str, bearers: Role) -> bool:
    return role(name) == bearers and name not in known_world().people


def reading_task(generator: random.Random, notes: int, style: str = "random") -> ReadingTask:
    """A question about somebody whom no training document and no stream names, with the note that answers it among
    `notes` - 1 others."""
    facts = passing_facts(generator, notes, style, bearers="reading")
    fact = generator.choice(facts)
    texts = tuple(state(other, generator.choice(WORDINGS[other.attribute].statements)) for other in facts)
    return ReadingTask(question_about(generator, fact, "direct", WORDINGS[fact.attribute].questions), texts)
