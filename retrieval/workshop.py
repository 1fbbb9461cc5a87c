"""A small text world in which experience pays: a workshop whose pieces each have a hidden way of being made.

An order names a piece, what it is for, and a colour. The piece must be treated in one of four ways and set in one of
three; which, is a rule of the piece that no text of the world tells, until a wrong piece is refused at delivery with
the first reason. The twelve pieces have all twelve rules, one each, shuffled by a seed: another piece's rule says
nothing of one's own.

Beside the world stand two scripted chat models, which see nothing but their prompts: a worker that follows what its
lessons advise, knows nothing of pieces, and tries at random where nobody advises it; and a scribe that writes lessons
in the form that it is asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from memory_paths.testing import scripted_chat_model

from .trajectory import Task, Trajectory, Verdict

TREATMENTS = ("soaking", "smoking", "oiling", "salting")
SETTINGS = ("freezing", "baking", "pressing")
PIECES = {
    "lantern": "that lights the way home at night",
    "cloak": "that keeps rain and wind off the shoulders",
    "barrel": "that holds new wine in the cellar",
    "bell": "that rings out from the church tower",
    "saddle": "that sits well on an old horse",
    "candle": "that burns slowly at the altar",
    "drum": "that sounds far across the dance floor",
    "kettle": "that boils water over an open fire",
    "basket": "that carries eggs to the market",
    "mirror": "that shows a whole face without a flaw",
    "flute": "that plays sweet music in the orchestra",
    "boot": "that stays dry while walking through mud",
}
COLOURS = tuple("red green blue yellow white black grey brown".split())
CUSTOMERS = tuple("miller mayor baker captain doctor widow judge ferryman teacher gardener".split())
WORDINGS = (
    "Make a {colour} {piece} {purpose} for the {customer}.",
    "The {customer} orders a {piece} {purpose}, painted {colour}.",
    "A {piece} {purpose}, in {colour}, is wanted by the {customer}.",
    "Wanted for the {customer}: one {piece} {purpose}, {colour}.",
)


@dataclass(frozen=True)
class Rule:
    """How a piece must be made."""

    treatment: str
    setting: str


@dataclass(frozen=True)
class Order:
    """A task of the workshop, with what its text says."""

    task: Task
    piece: str
    colour: str


def rules(seed: int) -> dict[str, Rule]:
    """The hidden rule of every piece: all twelve pairs, one each."""
    pairs = [Rule(*pair) for pair in product(TREATMENTS, SETTINGS)]
    random.Random(f"rules/{seed}").shuffle(pairs)
    return dict(zip(PIECES, pairs, strict=True))


def orders(seed: int, rounds: int = 8) -> list[Order]:
    """Each piece `rounds` times, in a shuffled order, no two orders with one text.

    Raises:
        ValueError: Less than one round, or more than there are different orders for.
    """
    different = list(product(COLOURS, CUSTOMERS))
    if not 1 <= rounds <= len(different):
        raise ValueError(f"rounds must be from 1 to {len(different)}, got {rounds}")
    generator = random.Random(f"orders/{seed}")
    made = []
    for piece, purpose in PIECES.items():
        for colour, customer in generator.sample(different, rounds):
            wording = generator.choice(WORDINGS)
            text = wording.format(piece=piece, purpose=purpose, colour=colour, customer=customer)
            made.append(Order(Task(text), piece, colour))
    generator.shuffle(made)
    return made


class Workshop:
    """The world, as an `Environment` for one attempt at a time.

    Args:
        hidden: The rule of every piece.
    """

    def __init__(self, hidden: Mapping[str, Rule]) -> None:
        self._hidden = hidden
        self._order = Order(Task("none"), "", "")
        self._done: dict[str, str] = {}
        self.delivery = ""

    def begin(self, task: Task) -> str:
        """A rough piece on the bench, and what can be done with it."""
        self._order, self._done, self.delivery = read_order(task), {}, ""
        return (
            f"On the bench stands a rough {self._order.piece}. It can be treated by {', '.join(TREATMENTS)}; painted in"
            f" any colour; set by {', '.join(SETTINGS)}; then delivered. It can be delivered once."
        )

    def act(self, action: str) -> str:
        """`treat by ...`, `paint ...`, `set by ...` or `deliver`."""
        verb, _, how = action.lower().rstrip(".").replace(" by ", " ").partition(" ")
        if self.delivery:
            return "The piece is no longer here."
        if verb == "deliver":
            self.delivery = self._delivered()
            return self.delivery
        if (verb, how) not in {
            *product(["treat"], TREATMENTS),
            *product(["set"], SETTINGS),
            *product(["paint"], COLOURS),
        }:
            return "Nothing comes of it."
        if verb in self._done:
            return "That has been done, and cannot be undone."
        self._done[verb] = how
        return "Done."

    def _delivered(self) -> str:
        rule = self._hidden[self._order.piece]
        for verb, wanted, words in (
            ("treat", rule.treatment, "treated by"),
            ("set", rule.setting, "set by"),
            ("paint", self._order.colour, "painted"),
        ):
            if self._done.get(verb) != wanted:
                return f"Refused: it should have been {words} {wanted}."
        return "Accepted."


def verifier(hidden: Mapping[str, Rule]) -> Callable[[Trajectory], Verdict]:
    """A program that does the actions of an attempt again and sees whether the piece is accepted; it tells no rule."""

    def workshop(trajectory: Trajectory) -> Verdict:
        world = Workshop(hidden)
        world.begin(trajectory.task)
        for step in trajectory.steps:
            if step.action and not step.action.lower().startswith("finish"):
                world.act(step.action)
        if world.delivery == "Accepted.":
            return Verdict("success", "The customer took the piece.", "workshop")
        return Verdict("failure", "The customer has no piece that is as it should be.", "workshop")

    return workshop


def read_order(task: Task) -> Order:
    """Piece and colour that a task names.

    Raises:
        ValueError: A task that is no order of this workshop.
    """
    words = re.findall(r"\w+", task.text.lower())
    named = [next((word for word in words if word in known), "") for known in (PIECES, COLOURS)]
    if not all(named):
        raise ValueError(f"an order names one of {tuple(PIECES)} and one of {COLOURS}, got {task.text!r}")
    return Order(task, *named)


def worker(seed: int) -> Any:
    """A chat model that makes pieces: it does what its lessons advise, and tries at random where they say nothing."""
    generator = random.Random(f"worker/{seed}")

    def reply(messages: Sequence[tuple[str, str]]) -> str:
        prompt = messages[-1][1]
        lessons, _, told = prompt.rpartition("Task: ")
        done = re.findall(r"^Action: (\w+)", told, re.MULTILINE)
        seen = re.findall(r"^Observation: (.*)", told, re.MULTILINE)
        for verb, options in (("treat", r"treated by ([\w, ]+);"), ("set", r"set by ([\w, ]+);")):
            if verb in done:
                continue
            possible = re.findall(options, seen[0])[0].split(", ")
            advised = [how for how in re.findall(rf"\b{verb.title()} by (\w+)", lessons) if how in possible]
            if advised:
                return f"Thought: A lesson says to {verb} by {advised[0]}.\nAction: {verb} by {advised[0]}"
            how = generator.choice(possible)
            return f"Thought: Nothing tells me how to {verb} it; I try {how}.\nAction: {verb} by {how}"
        if "paint" not in done:
            colour = read_order(Task(told.splitlines()[0])).colour
            return f"Thought: The order says {colour}.\nAction: paint {colour}"
        if "deliver" not in done:
            return "Thought: It is ready.\nAction: deliver"
        return f"Thought: The customer said: {seen[-1]}\nAction: finish"

    return scripted_chat_model(reply)


def scribe() -> Any:
    """A chat model that extracts lessons: of a success what was done, of a failure what should have been done."""

    def reply(messages: Sequence[tuple[str, str]]) -> str:
        advice: dict[str, None] = {}
        for attempt in re.split(r"^Attempt \d+$", messages[-1][1], flags=re.MULTILINE):
            treated, fixed = (re.findall(rf"Action: {verb} by (\w+)", attempt) for verb in ("treat", "set"))
            wrong = re.findall(r"should have been (treated|set|painted) (?:by )?(\w+)", attempt)
            if wrong and wrong[0][0] == "treated":
                advice[f"Treat by {wrong[0][1]}"] = None
            elif wrong and wrong[0][0] == "set":
                advice |= dict.fromkeys([f"Treat by {treated[0]}", f"Set by {wrong[0][1]}"])
            elif treated and fixed:
                advice |= dict.fromkeys([f"Treat by {treated[0]}", f"Set by {fixed[0]}"])
        return "\n".join(
            f"# Memory Item {number}\n## Title\n{what}\n## Description\nWhen a piece of this sort is to be made.\n"
            f"## Content\n{what}: otherwise the customer refuses the piece."
            for number, what in enumerate(advice, 1)
        )

    return scripted_chat_model(reply)
