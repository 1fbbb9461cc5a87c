"""Twins of continual pretraining: on one domain, one language, one slice of time after the other.

Texts are studied whole. Domains and languages are asked by how likely the model finds the held-out rest of a text
(scoring "likelihood"), slices of time by questions.
"""

from __future__ import annotations

from memory_paths.streams.twin import Lesson, Twin, another
from memory_paths.streams.words import PERSON_ATTRIBUTES, VALUES, WORDINGS
from memory_paths.streams.world import Fact, known_world, split_wordings, state
from memory_paths.types import Knowledge, Phrasing, Query, Question, Stream

YEAR = 365 * 24 * 3600.0
FIRST_YEAR = 30  # after 1970


def vertical(experiences: int = 6, *, texts: int = 6, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Texts of one field after the other (homes, firms, trades, ...), about new people. Given is the beginning of a
    statement in a wording that was not studied for it; its rest is the value.

    Args:
        experiences: Fields, at most six.
        texts: People of each.
        world_seed: What the texts say.
        order_seed: In which order they arrive, and which wordings are asked.

    Raises:
        ValueError: More fields than there are.
    """
    twin = Twin("cpt_vertical", world_seed, order_seed)
    for field in _some(PERSON_ATTRIBUTES, experiences, "fields"):
        lessons = []
        for _ in range(texts):
            fact = Fact(twin.someone(), field, twin.world.choice(VALUES[field]))
            studied = split_wordings(fact).statements
            item = Knowledge(
                f"text/{fact.key}",
                state(fact, studied[0]),
                kind="passage",
                phrasings=tuple(Phrasing(state(fact, wording)) for wording in studied),
                source=field,
            )
            wording = another(twin.order, WORDINGS[field].statements, *studied)
            lessons.append(Lesson(item, (_next(state(fact, wording), fact.value, item),)))
        twin.add(field, lessons)
    return twin.stream()


def language(experiences: int = 6, *, texts: int = 8, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Sentences about known people in invented languages: the words between a name and a value are others, two ways to
    say a thing in each language. A person is studied in one of them and asked in the other, which was studied with
    other people.

    Args:
        experiences: Languages, at most six, each with two attributes.
        texts: Sentences of each, an even number.
        world_seed: What the languages are like, and of whom they speak.
        order_seed: In which order sentences arrive.

    Raises:
        ValueError: More languages than there are.
    """
    twin = Twin("cpt_language", world_seed, order_seed)
    plain = sorted({word for one in WORDINGS.values() for text in one.statements for word in text.strip(".").split()})
    words = [word for word in plain if word.isalpha() and word.islower()]
    for number, first in enumerate(_some(PERSON_ATTRIBUTES, experiences, "languages"), start=1):
        lessons = []
        second = PERSON_ATTRIBUTES[number % len(PERSON_ATTRIBUTES)]
        for attribute in (first, second):
            ways = [" ".join(twin.world.sample(words, 2)) for _ in range(2)]
            known = [fact for fact in known_world().part_a if fact.attribute == attribute]
            for place, fact in enumerate(twin.world.sample(known, texts // 2)):
                said = [f"{fact.subject} {way} {fact.value}." for way in ways]
                item = Knowledge(
                    f"language/{number}/{fact.key}", said[place % 2], kind="passage", source=f"language {number}"
                )
                lessons.append(Lesson(item, (_next(said[1 - place % 2], fact.value, item),)))
        twin.add(f"language {number}", lessons)
    return twin.stream()


def temporal(experiences: int = 6, *, facts: int = 6, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """What holds from one year to the next: each brings new people and, for its first half, changes of what held
    before, whose earlier value is stale from then on.

    Args:
        experiences: Years.
        facts: Facts of each.
        world_seed: What happens.
        order_seed: In which order the facts of a year arrive, and which wordings ask for them.
    """
    twin = Twin("cpt_temporal", world_seed, order_seed)
    now: dict[str, tuple[Fact, int]] = {}
    for year in range(experiences):
        lessons = []
        changing = twin.world.sample(sorted(now), min(len(now), facts // 2))
        for number in range(facts):
            old, version = now[changing[number]] if number < len(changing) else (None, 0)
            person, attribute = (
                (old.subject, old.attribute)
                if old
                else (twin.someone(), ("home", "employer", "profession")[number % 3])
            )
            fact = Fact(person, attribute, another(twin.world, VALUES[attribute], old.value if old else ""))
            now[fact.key] = fact, version + 1
            lessons.append(
                twin.fact_lesson(
                    fact,
                    version=version + 1,
                    old=old.value if old else "",
                    source=f"year {year + 1}",
                    valid_from=(FIRST_YEAR + year) * YEAR,
                )
            )
        twin.add(f"year {year + 1}", lessons)
    return twin.stream()


def _next(text: str, value: str, item: Knowledge) -> Question:
    """How likely a text goes on with its value, which ends it."""
    query = Query(text.removesuffix(f" {value}."), continues=True)
    return Question(query, (value,), "direct", (item.id,), cluster=item.id, scoring="likelihood")


def _some(attributes: tuple[str, ...], count: int, what: str) -> tuple[str, ...]:
    if not 1 <= count <= len(attributes):
        raise ValueError(f"experiences must be between 1 and the number of {what} ({len(attributes)}), got {count}")
    return attributes[:count]
