"""Twins of the scenarios that teach a task by examples: text classification, entities, relations, translation,
instructions, alignment. What is asked is an instance that was not among the examples."""

from __future__ import annotations

from collections.abc import Sequence

from memory_paths.streams.twin import Lesson, Twin, another, up_to
from memory_paths.streams.words import (
    CITIES,
    FIRMS,
    HOBBIES,
    LAST_NAMES,
    PERSON_ATTRIBUTES,
    PROFESSIONS,
    TOWNS,
    UNIVERSITIES,
    VALUES,
    WORDINGS,
)
from memory_paths.streams.world import Fact, known_world, split_wordings, state
from memory_paths.types import Knowledge, Phrasing, Query, Question, Stream

LETTERS = (
    "{name} enjoys {cue}.",
    "{name} is fond of {cue}.",
    "In free time {name} likes {cue}.",
    "{name} spends weekends on {cue}.",
)
ROLES = (
    "{name} is on the staff of {firm} as a {cue}.",
    "{name} is employed by {firm} as a {cue}.",
    "{firm} employs {name} as a {cue}.",
    "{firm} has {name} as a {cue}.",
)


def text_classification(
    experiences: int = 16, *, classes: int = 1, cues: int = 3, world_seed: int = 0, order_seed: int = 0
) -> Stream:
    """Which firm a letter is for, by the pastime of its writer, several for each firm. Class-incremental: the
    candidates are the firms of all experiences. Asked are letters of other writers, in a wording not studied for that
    pastime.

    Args:
        experiences: How many there are.
        classes: Firms of each.
        cues: Pastimes for each firm.
        world_seed: Which pastime is for which firm, and who writes.
        order_seed: In which order they arrive.

    Raises:
        ValueError: More firms or pastimes than there are.
    """
    free = [firm for firm in FIRMS if firm not in known_world().seats]
    twin = Twin("text_classification", world_seed, order_seed)
    shape = (experiences, classes, cues)
    return _labelled(twin, shape, free, HOBBIES, LETTERS, "The firm for {cue} is {label}.", "Which firm?")


def relations(
    experiences: int = 14, *, classes: int = 1, cues: int = 4, world_seed: int = 0, order_seed: int = 0
) -> Stream:
    """Which relation joins the two names of a sentence: several words state each, and each goes by the name of the town
    where it is kept on record. Class-incremental, and asked with other names. For the arguments see
    `text_classification`."""
    twin = Twin("relations", world_seed, order_seed)
    shape = (experiences, classes, cues)
    return _labelled(twin, shape, CITIES, PROFESSIONS, ROLES, "The seat of {cue} is {label}.", "Which seat?")


def _labelled(
    twin: Twin,
    shape: tuple[int, int, int],
    labels: Sequence[str],
    cues: Sequence[str],
    texts: Sequence[str],
    rule: str,
    asks: str,
) -> Stream:
    experiences, classes, each = shape
    if experiences * classes > len(labels) or experiences * classes * each > len(cues):
        raise ValueError(
            f"there are {len(labels)} labels and {len(cues)} words to tell them by, {experiences} experiences of"
            f" {classes} classes of {each} words need more; ask for fewer"
        )
    chosen = twin.world.sample(list(labels), experiences * classes)
    words = iter(twin.world.sample(list(cues), len(cues)))

    def text(wording: str, cue: str) -> str:
        return f"{wording.format(name=twin.someone(), cue=cue, firm=twin.world.choice(FIRMS))} {asks}"

    for step in range(experiences):
        lessons = []
        for label in chosen[step * classes : (step + 1) * classes]:
            for _ in range(each):
                cue, wordings = next(words), twin.world.sample(list(texts), len(texts))
                examples = tuple(Phrasing(label, text(wording, cue), asks=True) for wording in wordings[:-1])
                item = Knowledge(
                    f"{twin.name}/{cue}", rule.format(cue=cue, label=label), phrasings=examples, source=twin.name
                )
                query = Query(text(wordings[-1], cue))
                question = Question(query, (label,), "direct", (item.id,), choices=tuple(chosen), cluster=cue)
                lessons.append(Lesson(item, (question,)))
        twin.add(f"classes {step + 1}", lessons)
    return twin.stream(chance=1 / len(chosen))


KINDS = ("firm", "town", "university", "employer", "office", "home")
PLACES = ("{name} is based in {entity}.", "{name} has settled in {entity}.", "{name} has a house in {entity}.")


def entities(
    experiences: int = 6, *, names: int = 6, examples: int = 3, world_seed: int = 0, order_seed: int = 0
) -> Stream:
    """Which names of a kind a text holds, listed. The names are words that people bear as last names, and so may the
    people of a text; each experience brings those of one more kind. Asked are texts that join names otherwise, up to
    three of them, of one kind or of two.

    Args:
        experiences: Kinds of names, at most six.
        names: Of each kind.
        examples: Texts that are studied with each name.
        world_seed: Which name is of which kind, and what the texts say.
        order_seed: In which order they arrive.

    Raises:
        ValueError: More experiences than there are kinds.
    """
    up_to("experiences", experiences, len(KINDS))
    twin = Twin("entities", world_seed, order_seed)
    pool = iter(twin.world.sample(LAST_NAMES, len(LAST_NAMES)))
    known: list[str] = []
    for kind in KINDS[:experiences]:
        mine = [next(pool) for _ in range(names)]
        items = {
            entity: Knowledge(f"entities/{kind}/{entity}", f"The {kind} is {entity}.", source="entities")
            for entity in mine
        }

        def text(entities: Sequence[str], kind: str = kind) -> str:
            said = (twin.world.choice(PLACES).format(name=twin.someone(), entity=entity) for entity in entities)
            return f"{' '.join(said)} Which {kind}?"

        def scene(
            entity: str, mine: Sequence[str] = mine, known: Sequence[str] = tuple(known)
        ) -> tuple[list[str], list[str]]:
            """The names of a text and, of these, those of the kind."""
            found = [entity, another(twin.world, mine, entity)] if twin.world.random() < 0.5 else [entity]
            others = [twin.world.choice(known)] if known and twin.world.random() < 0.7 else []
            held = twin.world.sample([*found, *others], len(found) + len(others))
            return held, [one for one in held if one in found]

        lessons = []
        for entity, item in items.items():
            shown = [scene(entity) for _ in range(examples)]
            told = tuple(Phrasing(", ".join(found), text(held), asks=True) for held, found in shown)
            held, found = scene(entity)
            ids = tuple(items[one].id for one in found)
            question = Question(
                Query(text(held)), (", ".join(found),), "direct", ids, cluster=entity, scoring="entities"
            )
            lessons.append(Lesson(Knowledge(item.id, item.text, phrasings=told, source=item.source), (question,)))
        known += mine
        twin.add(kind, lessons)
    return twin.stream()


WORD = ("What is the {tongue} for {word}?", "The {tongue} for {word}?")


def translation(
    experiences: int = 6, *, languages: int = 3, words: int = 3, world_seed: int = 0, order_seed: int = 0
) -> Stream:
    """Phrases of a trade and a pastime into invented languages, one language after the other, scored by chrF. Words are
    studied alone and in phrases; asked are phrases that join them otherwise.

    Args:
        experiences: How many there are.
        languages: How many follow one another, each for an equal share of the experiences.
        words: Trades, and as many pastimes, of each experience, at least 2.
        world_seed: What the languages are like.
        order_seed: In which order words arrive.
    """
    if words < 2 or not 1 <= languages <= experiences:
        raise ValueError(
            f"words must be at least 2 and languages between 1 and experiences, got {words} and {languages}"
        )
    twin = Twin("translation", world_seed, order_seed)
    tongues = twin.world.sample(UNIVERSITIES, languages)
    targets = iter(twin.world.sample(TOWNS, len(TOWNS)))
    trades = iter(twin.world.sample(PROFESSIONS, len(PROFESSIONS)))
    pastimes = iter(twin.world.sample(HOBBIES, len(HOBBIES)))
    for step in range(experiences):
        tongue = tongues[step * languages // experiences]
        sources = [[next(trades) for _ in range(words)], [next(pastimes) for _ in range(words)]]
        meaning = {word: next(targets) for side in sources for word in side}

        def phrase(at: int, shift: int) -> tuple[tuple[str, str], str, str]:
            pair = (sources[0][at % words], sources[1][(at + shift) % words])  # noqa: B023
            return pair, f"What is the {tongue} for {pair[0]} {pair[1]}?", " ".join(meaning[one] for one in pair)  # noqa: B023

        lessons = []
        for side in range(2):
            for at, word in enumerate(sources[side]):
                told = [
                    Phrasing(meaning[word], wording.format(tongue=tongue, word=word), asks=True) for wording in WORD
                ]
                # A word stands in all phrases but one, which are asked.
                for shift in range(1, words):
                    _, given, wanted = phrase(at if side == 0 else at - shift, shift)
                    told.append(Phrasing(wanted, given, asks=True))
                item = Knowledge(
                    f"translation/{tongue}/{word}",
                    f"The {tongue} for {word} is {meaning[word]}.",
                    phrasings=tuple(told),
                    source=tongue,
                )
                lessons.append(Lesson(item))
        for at in range(words):
            pair, given, wanted = phrase(at, 0)
            ids = tuple(f"translation/{tongue}/{word}" for word in pair)
            question = Question(Query(given), (wanted,), "direct", ids, cluster=pair[0], scoring="chrf")
            lessons[at] = Lesson(lessons[at].item, (question,))
        twin.add(f"{tongue}, part {step + 1}", lessons)
    return twin.stream()


TABLE = (
    "What is the {order} of {given}?",
    "The {order} of {given}?",
    "Which {order} has {given}?",
    "Of {given}, what is the {order}?",
)


def instructions(experiences: int = 9, *, examples: int = 12, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Small skills, each called by a word of its own: a third of them is to look something up in a table (asked in a
    held-out wording), a third to tell one thing about a known person (asked of others), a third to repeat a part of a
    name (asked of others).

    Args:
        experiences: Skills.
        examples: Of each.
        world_seed: What they do, and by which examples they are shown.
        order_seed: In which order examples arrive.
    """
    twin = Twin("instructions", world_seed, order_seed)
    orders = twin.world.sample(UNIVERSITIES, experiences)
    known = known_world()
    for step, order in enumerate(orders):
        lessons = []
        attribute = PERSON_ATTRIBUTES[step % len(PERSON_ATTRIBUTES)]
        seen, held = (
            twin.world.sample([fact for fact in part if fact.attribute == attribute], examples)
            for part in (known.part_a, known.part_b)
        )
        inputs, outputs = twin.world.sample(PROFESSIONS, examples), twin.world.sample(CITIES, examples)
        for number in range(examples):
            wordings = twin.world.sample(TABLE, len(TABLE))
            if step % 3 == 0:
                pairs = [(inputs[number], outputs[number])] * 2
            elif step % 3 == 1:
                pairs = [(fact.subject, fact.value) for fact in (seen[number], held[number])]
            else:
                pairs = [(name, name.split()[step // 3 % 2]) for name in (twin.someone(), twin.someone())]
            (given, wanted), (other, answer) = pairs
            item = Knowledge(
                f"instructions/{order}/{given}",
                f"The {order} of {given} is {wanted}.",
                kind="procedure",
                phrasings=tuple(
                    Phrasing(wanted, wording.format(order=order, given=given), asks=True) for wording in wordings[:-1]
                ),
                source=order,
            )
            asked = Query(wordings[-1].format(order=order, given=other))
            lessons.append(Lesson(item, (Question(asked, (answer,), "direct", (item.id,), cluster=other),)))
        twin.add(f"{order}: {('table', attribute, 'repeat')[step % 3]}", lessons)
    return twin.stream()


def alignment(experiences: int = 6, *, examples: int = 6, world_seed: int = 0, order_seed: int = 0) -> Stream:
    """Which of two replies is preferred, one goal after the other. Two goals of three are what new people like best in
    one respect, each against another thing of its sort; every third is a style, whole sentences about a known person
    against the bare word, asked of people who were not in the examples.

    Args:
        experiences: Goals, at most six.
        examples: Preferences of each.
        world_seed: What is preferred.
        order_seed: In which order they arrive, and which wordings are asked.

    Raises:
        ValueError: More experiences than there are goals.
    """
    up_to("experiences", experiences, len(PERSON_ATTRIBUTES))
    twin = Twin("alignment", world_seed, order_seed)
    known = known_world()
    for step, attribute in enumerate(PERSON_ATTRIBUTES[:experiences]):
        lessons = []
        style = step % 3 == 2
        parts = [
            twin.world.sample([fact for fact in part if fact.attribute == attribute], examples)
            for part in (known.part_a, known.part_b)
        ]
        for number in range(examples):
            if style:
                said = WORDINGS[attribute].new_statements[0]
                studied, fact = parts[0][number], parts[1][number]
                chosen, rejected, shown = state(fact, said), fact.value, state(studied, said)
            else:
                studied = fact = Fact(twin.someone(), attribute, twin.world.choice(VALUES[attribute]))
                chosen, rejected = fact.value, another(twin.world, VALUES[attribute], fact.value)
                shown = chosen
            wordings = split_wordings(studied)
            item = Knowledge(
                f"alignment/{studied.key}",
                state(studied, WORDINGS[attribute].statements[0] if not style else said),
                kind="preference",
                phrasings=tuple(
                    Phrasing(shown, wording.format(name=studied.subject), asks=True) for wording in wordings.questions
                ),
                source=f"goal {step + 1}",
            )
            asked = twin.order.choice(split_wordings(fact).held_out).format(name=fact.subject)
            choices = tuple(twin.world.sample((chosen, rejected), 2))
            question = Question(
                Query(asked), (chosen,), "direct", (item.id,), choices=choices, cluster=fact.subject, scoring="choice"
            )
            lessons.append(Lesson(item, (question,)))
        twin.add(f"{'style' if style else 'preference'}: {attribute}", lessons)
    return twin.stream(chance=0.5)
