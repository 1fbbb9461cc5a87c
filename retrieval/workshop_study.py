"""`python -m memory_paths.retrieval.workshop_study`: does a reasoning bank make an agent better, and by its lessons?

The same code runs with and without recall on the orders of a workshop, over several seeds. Two controls put the same
lessons under other tasks: any other (shuffled), or one of another piece. If the gain came from anything but lessons
that fit, it would be there too.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from memory_paths.evaluation.statistics import Interval, seeds_interval
from memory_paths.ledger import Ledger
from memory_paths.types import Knowledge, Query, Reading, Receipt

from .bank import Bank
from .encoder import Encoder, HashEncoder, SentenceEncoder
from .extraction import Extractor
from .judging import Judge
from .reasoning import ReasoningBank
from .scaling import parallel
from .solving import Solver
from .trajectory import Task
from .workshop import Order, Workshop, orders, read_order, rules, scribe, verifier, worker

if TYPE_CHECKING:
    from .encoder import Vectors


@dataclass(frozen=True)
class Arm:
    """One way to run the study.

    Args:
        name: For the table.
        tasks: How many past tasks are recalled; 0: no bank.
        attempts: How many attempts at each order; the best one counts.
        other: Which orders' lessons are put under an order; None: its own.
    """

    name: str
    tasks: int = 1
    attempts: int = 1
    other: str | None = None


ARMS = (
    Arm("no bank", tasks=0),
    Arm("bank"),
    Arm("bank, memories shuffled", other="any"),
    Arm("bank, lessons of another piece", other="another piece"),
    Arm("no bank, best of 3", tasks=0, attempts=3),
    Arm("bank, best of 3", attempts=3),
)


@dataclass(frozen=True)
class Course:
    """What became of a stream of orders.

    Args:
        accepted: Whether each order was accepted, in order.
        fitting: Whether what was shown for each order came from the same piece; None: nothing was shown.
        lessons: How many lessons were stored.
    """

    accepted: tuple[bool, ...]
    fitting: tuple[bool | None, ...]
    lessons: int

    def half(self, second: bool) -> float:
        """Share of accepted orders in the first or the second half."""
        middle = len(self.accepted) // 2
        return fmean(self.accepted[middle:] if second else self.accepted[:middle])


class _Miskeyed:
    """A bank that puts all that an attempt teaches under another order; all else is as in the bank."""

    def __init__(self, bank: Bank, stream: Sequence[Order], other: str, seed: int) -> None:
        self._bank, self._stream, self._other = bank, stream, other
        self._generator = random.Random(f"miskeyed/{seed}")

    @property
    def name(self) -> str:
        """See `Memory`."""
        return self._bank.name

    @property
    def ledger(self) -> Ledger:
        """See `Memory`."""
        return self._bank.ledger

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """See `Memory`."""
        piece = read_order(Task(items[0].cue)).piece
        choices = [order for order in self._stream if self._other == "any" or order.piece != piece]
        task = self._generator.choice(choices).task
        about = {"task": task.id, "wording": task.wording()}
        return self._bank.write(
            [
                replace(item, cue=task.text, metadata={**item.metadata, **about}) if "lesson" in item.metadata else item
                for item in items
            ],
            namespace,
        )

    def search(
        self, queries: Sequence[Query], *, top_k: int, method: Literal["dense"], diversity: float
    ) -> list[Reading]:
        """See `Memory`."""
        return self._bank.search(queries, top_k=top_k, method=method, diversity=diversity)


class Remembering:
    """An encoder that encodes each text once, for studies that show it the same few texts again and again.

    Args:
        encoder: What encodes them.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.manifest, self.flops_per_token = encoder.manifest, encoder.flops_per_token
        self.count_tokens = encoder.count_tokens
        self._encoder = encoder
        self._queries: dict[str, Any] = {}
        self._documents: dict[str, Any] = {}

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """See `Encoder`."""
        return self._remembered(texts, self._queries, self._encoder.encode_queries)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """See `Encoder`."""
        return self._remembered(texts, self._documents, self._encoder.encode_documents)

    def _remembered(self, texts: Sequence[str], known: dict[str, Any], encode: Callable[..., Vectors]) -> Vectors:
        import numpy as np

        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(fresh, encode(fresh), strict=True))
        return np.stack([known[text] for text in texts]) if texts else encode([])


def course(arm: Arm, seed: int, *, rounds: int = 8, encoder: Encoder | None = None) -> Course:
    """The orders of one seed, one after the other.

    Args:
        arm: How.
        seed: Of the rules, the orders and their sequence, the worker's tries, and the control's choices.
        rounds: How many orders of each of the twelve pieces.
        encoder: What turns orders into vectors; None: a `HashEncoder`.
    """
    hidden, stream = rules(seed), orders(seed, rounds)
    accepted: list[bool] = []
    fitting: list[bool | None] = []
    made_from: dict[str, str] = {}
    with Ledger() as ledger:
        bank = Bank(None, ledger, HashEncoder() if encoder is None else encoder, name="lessons")
        memory = bank if arm.other is None else _Miskeyed(bank, stream, arm.other, seed)
        agent = ReasoningBank(
            memory,
            solver=Solver(worker(seed), steps=8),
            judge=Judge(verifiers=[verifier(hidden)]),
            extractor=Extractor(scribe()),
            namespace="workshop",
            tasks=arm.tasks,
        )
        for order in stream:
            scaled = parallel(agent, order.task, lambda: Workshop(hidden), attempts=arm.attempts)
            accepted.append(scaled.verdict.label == "success")
            sources = {made_from[id] for lesson in scaled.best.shown for id in lesson.source.split()}
            fitting.append(sources == {order.piece} if sources else None)
            made_from |= {attempt.trajectory.id: order.piece for attempt in scaled.attempts}
        lessons = sum(item.kind == "lesson" for item in bank.items("workshop"))
        bank.close()
    return Course(tuple(accepted), tuple(fitting), lessons)


@dataclass(frozen=True)
class Row:
    """An arm's figures over seeds. Shares are in [0, 1]; intervals are Student's t over seeds, 95 %.

    Args:
        arm: Which.
        first: Share of accepted orders in the first half.
        second: In the second half.
        rise: Second less first half.
        gain: Second half, less that of no bank with as many attempts; None for no bank itself.
        fitting: Share of the orders with lessons whose lessons were all of the same piece; None: none had any.
        lessons: Stored in the end, mean.
    """

    arm: Arm
    first: float
    second: float
    rise: Interval
    gain: Interval | None
    fitting: float | None
    lessons: float


def study(
    seeds: Sequence[int], *, rounds: int = 8, encoder: Encoder | None = None, arms: Sequence[Arm] = ARMS
) -> list[Row]:
    """All arms on the same seeds.

    Raises:
        ValueError: Fewer than two seeds, or an arm without one that recalls nothing to be compared with.
    """
    courses = {arm: [course(arm, seed, rounds=rounds, encoder=encoder) for seed in seeds] for arm in arms}
    rows = []
    for arm, made in courses.items():
        beside = next((other for other in arms if (other.tasks, other.attempts) == (0, arm.attempts)), None)
        if beside is None:
            raise ValueError(f"arm {arm.name!r} needs one beside it with tasks=0 and attempts={arm.attempts}")
        shown = [fits for one in made for fits in one.fitting if fits is not None]
        first, second = ([one.half(which) for one in made] for which in (False, True))
        without = [one.half(True) for one in courses[beside]]
        rows.append(
            Row(
                arm,
                fmean(first),
                fmean(second),
                seeds_interval([late - early for early, late in zip(first, second, strict=True)]),
                None if arm is beside else seeds_interval([a - b for a, b in zip(second, without, strict=True)]),
                fmean(shown) if shown else None,
                fmean(one.lessons for one in made),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| | first half | second half | second - first | second half - no bank | lessons that fit | lessons stored |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rise = _difference(row.second - row.first, row.rise)
        gain = "-" if row.gain is None else _difference((row.gain.low + row.gain.high) / 2, row.gain)
        fitting = "-" if row.fitting is None else f"{row.fitting:.2f}"
        cells = [row.arm.name, f"{row.first:.2f}", f"{row.second:.2f}", rise, gain, fitting, f"{row.lessons:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(value: float, interval: Interval) -> str:
    return f"{value:+.2f} [{interval.low:+.2f} {interval.high:+.2f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Does a reasoning bank make an agent better?")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=8, help="orders of each of the twelve pieces")
    parser.add_argument("--encoder", choices=("minilm", "hash"), default="minilm")
    options = parser.parse_args()
    encoder = Remembering(SentenceEncoder() if options.encoder == "minilm" else HashEncoder())
    rows = study(range(options.seeds), rounds=options.rounds, encoder=encoder)
    sys.stdout.write(f"{table(rows)}\n")


if __name__ == "__main__":
    main()
