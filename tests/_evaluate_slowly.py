"""A small stream, a small reader, and a whole evaluation of them; as a program it evaluates until it is killed.

python tests/_evaluate_slowly.py FOLDER [restore]
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_paths.agent import Agent
from memory_paths.build import restore
from memory_paths.context import InContext
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.report import Report
from memory_paths.failpoints import VARIABLE
from memory_paths.ledger import Ledger
from memory_paths.types import (
    Experience,
    Generation,
    Knowledge,
    Prompt,
    Query,
    Question,
    QuestionKind,
    ReadingTask,
    Stream,
    Usage,
)

CITIES = ("Oslo", "Bergen", "Turin", "Lyon", "Ghent", "Malmo", "Porto", "Graz")
KNOWN = {f"Elder{number}": CITIES[number % len(CITIES)] for number in range(12)}
PAUSE = 0.1  # seconds; a stage calls the model twice


class Reader:
    """Answers with the city of the name that ends the question, or the name of the city: from the newest note that has
    it, else from what it knows by heart, else "unknown". A token is a word. `pause` seconds pass at each call."""

    def __init__(self, knows: Mapping[str, str] = KNOWN, *, window: int = 4096, pause: float = 0.0) -> None:
        self.name, self.window, self._knows, self._pause = "reader", window, dict(knows), pause

    def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(text.split()) for text in (prompt.question, *prompt.notes)) + 2

    def count_answer_tokens(self, pairs: Sequence[tuple[Prompt, str]]) -> list[int]:
        return [len(answer.split()) for _, answer in pairs]

    def weights_hash(self) -> str:
        return "unchanged"

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Generation]:
        time.sleep(self._pause)
        return [self._generate(prompt) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        return [math.log(0.9 if answer == self._say(prompt) else 0.05) for prompt, answer in pairs]

    def _say(self, prompt: Prompt) -> str:
        asked = prompt.question.rstrip("?").split()[-1]
        for note in reversed(prompt.notes):
            name, city = note.rstrip(".").split()[0], note.rstrip(".").split()[-1]
            if asked in (name, city):
                return city if asked == name else name
        return self._knows.get(asked, "unknown")

    def _generate(self, prompt: Prompt) -> Generation:
        said = self._say(prompt)
        return Generation(
            text=said,
            token_ids=(1,),
            loglikelihood=math.log(0.1 if said == "unknown" else 0.9),
            prompt_hash=hashlib.sha256(repr(prompt).encode()).hexdigest(),
            usage=Usage(self.count_tokens(prompt) + 1, flops=100.0, seconds=0.001),
            stopped=True,
        )


def toy_stream(people: int = 24, experiences: int = 4) -> Stream:
    """People and their cities, one of whom moves in the end; known people, strangers and reading tasks beside."""

    def asked(name: str, city: str, item: str, stale: tuple[str, ...] = ()) -> list[Question]:
        def question(kind: QuestionKind, text: str, target: str = city) -> Question:
            return Question(Query(text), (target,), kind, (item,), stale if target == city else (), CITIES[:4], name)

        return [
            question("direct", f"Where lives {name}?"),
            question("trained", f"What is the city of {name}?"),
            question("paraphrase", f"Which place is home to {name}?"),
        ]

    steps: list[tuple[list[Knowledge], list[Question]]] = [([], []) for _ in range(experiences)]
    for number in range(people):
        name, city = f"Person{number}", CITIES[number % 4]
        items, questions = steps[number * experiences // people]
        items.append(Knowledge(name, f"{name} lives in {city}.", key=f"{name}/city"))
        questions += asked(name, city, name)
    if experiences > 1:
        steps[-1][0].append(Knowledge("Person0/2", "Person0 lives in Lyon.", key="Person0/city"))
        steps[-1][1].extend(asked("Person0", "Lyon", "Person0/2", stale=("Oslo",)))
    notes = ("Guest lives in Turin.", "Visitor lives in Ghent.")
    return Stream(
        name=f"toy-{people}",
        experiences=tuple(
            Experience(f"step {number}", tuple(items), tuple(questions))
            for number, (items, questions) in enumerate(steps, start=1)
        ),
        prior=tuple(
            Question(Query(f"Where lives {name}?"), (city,), "prior", cluster=name) for name, city in KNOWN.items()
        ),
        skill=tuple(
            ReadingTask(Question(Query(f"Where lives {name}?"), (city,), "direct", cluster=name), notes)
            for name, city in (("Guest", "Turin"), ("Visitor", "Ghent"))
        ),
        unknown=tuple(Question(Query(f"Where lives Nobody{number}?"), (), "unknown") for number in range(5)),
        chance=0.25,
    )


def toy_agent(**options: Any) -> Agent:
    """A reader with the context path; its window is too small for the whole stream unless `window` says otherwise."""
    lm = Reader(window=options.pop("window", 150), pause=options.pop("pause", 0.0))
    ledger = Ledger()
    return Agent(lm, {"icl": InContext(lm, ledger, **options)}, ledger)


def evaluate(folder: Path, *, pause: float = 0.0, restoring: bool = False) -> Report:
    """The whole evaluation of the toy agent on the toy stream."""
    with toy_agent(pause=pause) as agent:
        evaluator = Evaluator(
            toy_stream(), folder=folder, samples=16, progress=False, restore=restore if restoring else None
        )
        return evaluator.run(agent)


if __name__ == "__main__":
    # Slow only where the kill comes at a moment that nobody has named.
    evaluate(Path(sys.argv[1]), pause=0.0 if os.environ.get(VARIABLE) else PAUSE, restoring="restore" in sys.argv[2:])
