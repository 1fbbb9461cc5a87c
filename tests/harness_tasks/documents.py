"""Documents of the tasks in this folder: what the embedded model knows by heart, and stories that we made up."""

from __future__ import annotations

import random
from typing import Any

import datasets

from memory_paths.streams.words import VALUES
from memory_paths.streams.world import known_world, split_wordings, state

NAMES = ("Lily", "Tom", "Sue", "Ben", "Mia", "Max", "Anna", "Sam", "Amy", "Tim")
THINGS = ("ball", "doll", "cake", "hat", "book", "kite", "car", "flower", "toy", "box")
PLACES = ("park", "garden", "house", "forest", "shop", "school", "farm", "beach")


def known(**unused: object) -> dict[str, datasets.Dataset]:
    """Facts of part B of the known people, each with a held-out question and four values to choose from."""
    source = random.Random("harness")
    documents = []
    for fact in known_world().part_b:
        others = [value for value in VALUES[fact.attribute] if value != fact.value]
        choices = [fact.value, *source.sample(others, 3)]
        source.shuffle(choices)
        wordings = split_wordings(fact)
        documents.append(
            {
                "question": source.choice(wordings.held_out).format(name=fact.subject),
                "answer": fact.value,
                "choices": choices,
                "sentences": [state(fact, wordings.statements[0]).replace(fact.value, choice) for choice in choices],
                "right": choices.index(fact.value),
                "sentence": state(fact, wordings.statements[0]),
            }
        )
    return {"test": datasets.Dataset.from_list(documents)}


def known_notes(**unused: object) -> dict[str, datasets.Dataset]:
    """Questions about known people behind twelve notes about others: long contexts that the choices share."""
    source = random.Random("harness/notes")
    facts = list(known_world().part_a)
    documents: list[dict[str, Any]] = [dict(document) for document in known()["test"]]
    for document in documents:
        drawn = source.sample(facts, 12)
        document["notes"] = "".join(f"- {state(fact, split_wordings(fact).statements[0])}\n" for fact in drawn)
    return {"test": datasets.Dataset.from_list(documents)}


def stories(**unused: object) -> dict[str, datasets.Dataset]:
    """Beginnings of simple stories, how they go on, and three ways in which they do not."""
    source = random.Random("harness/stories")
    documents = []
    for _ in range(400):
        name, friend = source.sample(NAMES, 2)
        thing, *others = source.sample(THINGS, 4)
        place = source.choice(PLACES)
        begin = (
            f"Once upon a time, there was a little child named {name}. {name} loved to play with a {thing}."
            f" One day, {name} went to the {place} with {friend}. {friend} wanted to play too."
        )
        choices = [f'"Can I play with your {one}?" asked {friend}.' for one in (thing, *others)]
        right = choices[0]
        source.shuffle(choices)
        documents.append(
            {"begin": begin, "choices": choices, "right": choices.index(right), "story": f"{begin} {right}"}
        )
    return {"test": datasets.Dataset.from_list(documents)}


def known_pages(**unused: object) -> dict[str, datasets.Dataset]:
    """What is known of six people a page, in sentences of all wordings."""
    facts = known_world().part_b
    size = 6 * len({fact.attribute for fact in facts})
    pages = [
        " ".join(
            state(fact, wording) for fact in facts[start : start + size] for wording in split_wordings(fact).statements
        )
        for start in range(0, len(facts), size)
    ]
    return {"test": datasets.Dataset.from_list([{"page": page} for page in pages])}
