"""Twins of the scenarios about what holds and is changed: knowledge editing, sources with new editions, tools whose
interface changes."""

from __future__ import annotations

from dataclasses import replace

from memory_paths.streams.twin import Twin, another, up_to
from memory_paths.streams.words import COMPOSITIONS, FIRMS, HOBBIES, PERSON_ATTRIBUTES, PROFESSIONS, VALUES
from memory_paths.streams.world import Fact, known_world, question_about
from memory_paths.types import Stream


def editing(experiences: int = 6, *, edits: int = 5, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Known facts are changed. Asked are the new value in a held-out wording (efficacy, kind "direct") and in one of no
    training ("paraphrase"), what follows from a new employer ("one_hop": its seat), and another fact of the same
    person, which must stay ("neighbour"). The old value is stale.

    Args:
        experiences: How many there are.
        edits: Of each.
        world_seed: Which facts are changed, and into what.
        order_seed: In which order edits arrive, and which wordings are asked.
    """
    twin = Twin("editing", world_seed, order_seed)
    seats = known_world().seats
    facts = {(fact.subject, fact.attribute): fact for fact in known_world().part_b}
    people = iter(twin.world.sample(sorted({person for person, _ in facts}), experiences * edits))
    touched = []
    for step in range(experiences):
        lessons = []
        for number in range(edits):
            person, attribute = next(people), ("employer", "home", "profession", "hobby")[number % 4]
            old = facts[person, attribute]
            values = sorted(seats) if attribute == "employer" else VALUES[attribute]
            new = replace(old, value=another(twin.world, values, old.value))
            near = facts[person, another(twin.world, PERSON_ATTRIBUTES, attribute)]
            touched += [old, near]
            lesson = twin.fact_lesson(new, old=old.value)
            beside = [twin.asked(near, "neighbour")]
            if attribute == "employer":
                sits = Fact(person, "seat", seats[new.value])
                beside.append(question_about(twin.order, sits, "one_hop", COMPOSITIONS, ids=(lesson.item.id,)))
            lessons.append(replace(lesson, questions=(*lesson.questions, *beside)))
        twin.add(f"edits {step + 1}", lessons)
    return twin.stream(without=touched)


def retrieval(
    experiences: int = 16, *, sources: int = 2, entries: int = 2, world_seed: int = 0, order_seed: int = 0
) -> Stream:
    """Registers of new people, entry by entry, as a bank of sources would hold them; from the second experience on half
    of them are new editions of earlier ones, all of whose entries change.

    Args:
        experiences: How many there are.
        sources: Registers that arrive in each.
        entries: Of each register, at most five.
        world_seed: What they say.
        order_seed: In which order entries arrive, and which wordings are asked.

    Raises:
        ValueError: More entries than a register has.
    """
    up_to("entries", entries, len(PERSON_ATTRIBUTES) - 1)
    twin = Twin("retrieval", world_seed, order_seed)
    registers: dict[str, tuple[list[Fact], int]] = {}
    for step in range(experiences):
        again = twin.world.sample(sorted(registers), min(len(registers), sources // 2))
        lessons = []
        for person in [*again, *(twin.someone() for _ in range(sources - len(again)))]:
            old, edition = registers.get(
                person, ([Fact(person, one, "") for one in PERSON_ATTRIBUTES[1 : entries + 1]], 0)
            )
            new = [replace(fact, value=another(twin.world, VALUES[fact.attribute], fact.value)) for fact in old]
            registers[person] = new, edition + 1
            lessons += [
                twin.fact_lesson(
                    fact, version=edition + 1, old=before.value, kind="passage", source=f"register of {person}"
                )
                for fact, before in zip(new, old, strict=True)
            ]
        twin.add(f"edition {step + 1}", lessons)
    strangers = [Fact(twin.someone(), one, "") for one in PERSON_ATTRIBUTES[1 : entries + 1] for _ in range(8)]
    return twin.stream(unknown=[twin.asked(fact, "unknown") for fact in strangers])


def tools(experiences: int = 16, *, calls: int = 3, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Which tool (a firm) is to be called for which request (a trade or a pastime). From the third experience on a
    third of what arrives replaces a tool that was taught before: the interface has changed, and the old call is stale.

    Args:
        experiences: How many there are.
        calls: What arrives in each.
        world_seed: Which tool is for what.
        order_seed: In which order they arrive, and which wordings ask for them.
    """
    twin = Twin("tools", world_seed, order_seed)
    free = [firm for firm in FIRMS if firm not in known_world().seats]
    requests = iter(twin.world.sample((*PROFESSIONS, *HOBBIES), experiences * calls))
    now: dict[str, tuple[Fact, int]] = {}
    for step in range(experiences):
        changing = twin.world.sample(sorted(now), calls // 3 if step > 1 else 0)
        lessons = []
        for number in range(calls):
            old, version = (
                now[changing[number]] if number < len(changing) else (Fact(next(requests), "employer", ""), 0)
            )
            fact = replace(old, value=another(twin.world, free, old.value))
            now[fact.key] = fact, version + 1
            lessons.append(twin.fact_lesson(fact, version=version + 1, old=old.value, kind="procedure", source="tools"))
        twin.add(f"version {step + 1}", lessons)
    return twin.stream()
