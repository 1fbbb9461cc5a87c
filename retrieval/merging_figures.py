"""`python -m memory_paths.retrieval.merging_figures FOLDER`: how often merges are right, on pairs of real texts.

Pairs that say the same are rephrasings that others wrote: the questions of zsRE's portability set with their answers
(Levy et al. 2017, arXiv 1706.04115; Yao et al. 2023, arXiv 2305.13172) and the patterns of ParaRel (Elazar et al. 2021,
arXiv 2102.01017). Pairs that nearly do are made of the same texts. Half of the sources (facts of ParaRel, records of
zsRE) tune the threshold; only the other half is told. Some ways of negating and of writing dates occur in that half
alone. A second, harder table holds out whole relations of ParaRel with all their patterns.

Beside them stand everyday sentences such as an assistant is told: rephrasings, and forty families of near-misses
(units, times, ratios, roles, ...) to tune on; told are 24 families and rephrasings of another set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_paths.types import Knowledge

from .encoder import Encoder, SentenceEncoder
from .merging import THRESHOLD, WEIGHTS, Merging, cosines, score
from .near_misses import differences

PRECISION, RECALL = 0.99, 0.85  # what is wanted of automatic merges of real texts
RELATIONS = "P17 P30 P37 P47 P103 P108 P136 P138 P178 P190 P264 P276 P361 P407 P449 P530 P937 P1303 P1412".split()
# For the harder table: those that share subjects or objects are in the same half.
HELD_OUT_RELATIONS = "P37 P47 P103 P138 P190 P264 P407 P449 P530 P1412".split()
OTHER_RELATION = {"P103": ("P1412",), "P1412": ("P103",)}  # a native language is not any language that one speaks
SYMMETRIC = ("P47", "P190", "P530")
OTHERWISE = {
    "mother": "father",
    "father": "mother",
    "birth": "death",
    "death": "birth",
    "born": "buried",
    "die": "marry",
    "died": "married",
    "starting": "final",
    "final": "starting",
    "first": "last",
    "north": "south",
    "begin": "end",
    "end": "begin",
    "director": "producer",
    "author": "publisher",
    "created": "destroyed",
    "launched": "cancelled",
    "brother": "sister",
    "spouse": "child",
    "founded": "closed",
    "manufacturer": "owner",
}
MONTHS = (
    "January February March April May June July August September October November December".split()
)  # fmt: skip
FACTS_OF_A_RELATION = 45
EVERYDAY = "everyday/"
# Told beside the figures: another relation between the same two names, and names that change places while the words
# between them change as well. Only who understands the sentence can tell these from a rephrasing.
BEYOND = ("relation", "roles, other words")


@dataclass(frozen=True)
class Pair:
    """Two texts, and whether they say the same. `source` is what they were made of, `kind` how."""

    first: str
    second: str
    same: bool
    kind: str
    source: str
    held_out: bool


def labelled_pairs(folder: Path) -> list[Pair]:
    """Pairs of real texts from the sets `zsre_portability` and `pararel` in a folder, in the same order each time."""
    draw = random.Random(2)
    return [
        *_questions(folder / "zsre_portability" / "zsre.jsonl.gz", draw),
        *_facts(folder / "pararel" / "pararel.jsonl.gz", draw),
        *everyday_pairs(),
    ]


def everyday_pairs() -> list[Pair]:
    """Pairs of everyday sentences, a kind for each family of near-misses."""
    return [
        Pair(
            record["first"],
            record["second"],
            record["same"],
            f"{EVERYDAY}{record['kind']}",
            f"{EVERYDAY}{number if record['same'] else record['kind']}",
            record["held_out"],
        )
        for number, record in enumerate(_records(Path(__file__).with_name("everyday_pairs.jsonl.gz")))
    ]


def _records(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _questions(file: Path, draw: random.Random) -> Iterator[Pair]:
    records = [record for record in _records(file) if record["answers"] and record["src"] != record["rephrase"]]
    for record in records:
        answer = record["answers"][0]
        source = f"zsre/{record['subject']}/{answer}"
        held_out = _is_held_out(source)
        first, second = f"{record['src']} {answer}", f"{record['rephrase']} {answer}"
        yield Pair(first, second, True, "rephrasing", source, held_out)
        other = draw.choice([one for one in records if one["subject"] != record["subject"]])
        near: dict[str, list[str | None]] = {
            "entity": [
                f"{record['rephrase']} {record['alt']}"
                if record["alt"].strip() and record["alt"] not in record["answers"]
                else None,
                second.replace(record["subject"], other["subject"]) if record["subject"] in second else None,
                _near_name(second, record["subject"], other["subject"], draw),
            ],
            "number": [_other_number(draw.choice((first, second)), draw)],
            "negation": [_not_the_answer(draw.choice((record["src"], record["rephrase"])), answer, held_out, draw)],
            "relation": [_otherwise(draw.choice((first, second)))],
        }
        yield from _misses(first, near, source, held_out, draw)


def _facts(file: Path, draw: random.Random) -> Iterator[Pair]:
    relations = {record["relation"]: record for record in _records(file)}
    said = {name: {(fact["s"], fact["o"]) for fact in relations[name]["facts"]} for name in RELATIONS}
    for name in RELATIONS:
        patterns = [entry["pattern"] for entry in relations[name]["patterns"]]
        facts = sorted(said[name])
        for subject, object in draw.sample(facts, min(FACTS_OF_A_RELATION, len(facts))):
            ends = sorted((subject, object)) if name in SYMMETRIC else (subject, object)
            source = "/".join((name, *ends))
            held_out = _is_held_out(source)
            one, two = draw.sample(patterns, 2)
            first, second = _fill(one, subject, object), _fill(two, subject, object)
            if first == second:
                continue
            stamps = _stamps(held_out, draw)
            first, second = (f"{text[:-1]}{stamp}." for text, stamp in zip((first, second), stamps, strict=True))
            yield Pair(first, second, True, "rephrasing", source, held_out)
            other_subject = draw.choice([s for s, o in facts if (s, object) not in said[name]] or [""])
            other_object = draw.choice([o for s, o in facts if (subject, o) not in said[name]])
            made: dict[str, list[str | None]] = {
                "entity": [
                    _fill(draw.choice((one, two)), subject, other_object),
                    _fill(draw.choice((one, two)), other_subject, object) if other_subject else None,
                    _near_name(second, subject, draw.choice(facts)[0], draw),
                ],
                "number": [_other_number(draw.choice((first, second)), draw)],
                "negation": [_negated(draw.choice((first, second)), held_out, draw)],
                "roles": [None if name in SYMMETRIC else _fill(one, object, subject)],
                "roles, other words": [None if name in SYMMETRIC else _fill(two, object, subject)],
                "relation": [
                    _fill(draw.choice(relations[other]["patterns"])["pattern"], subject, object)
                    for other in OTHER_RELATION.get(name, ())
                ],
            }
            yield from _misses(first, made, source, held_out, draw)


def _is_held_out(source: str) -> bool:
    return bool(zlib.crc32(source.encode()) % 2)


def _stamps(held_out: bool, draw: random.Random) -> tuple[str, str]:
    """A date or a count to be put at the end of two texts, written in two ways; nothing for half of them."""
    kind = draw.randrange(4)
    if kind == 0:
        day, month, year = draw.randint(1, 28), draw.randrange(12), draw.randint(1850, 2025)
        ways = [f"{day} {MONTHS[month]} {year}", f"{MONTHS[month]} {day}, {year}", f"{day} {MONTHS[month][:3]} {year}"]
        ways += [f"{year}-{month + 1:02}-{day:02}", f"the {day}th of {MONTHS[month]} {year}"] if held_out else []
        one, two = draw.sample(ways, 2)
        return f", as of {one}", f", as of {two}"
    if kind == 1:
        number = draw.randint(3, 12)
        words = "three four five six seven eight nine ten eleven twelve".split()
        one, two = draw.sample([str(number), words[number - 3]], 2)
        return f", according to {one} sources", f", according to {two} sources"
    return "", ""


def _fill(pattern: str, subject: str, object: str) -> str:
    filled = pattern.replace("[X]", subject).replace("[Y]", object).replace(" .", ".").strip()
    return filled if filled.endswith(".") else f"{filled}."


def _misses(
    first: str, near: Mapping[str, Sequence[str | None]], source: str, held_out: bool, draw: random.Random
) -> Iterator[Pair]:
    """One near-miss of each kind that there is."""
    for kind, texts in near.items():
        if there := [text for text in texts if text and text != first]:
            text = draw.choice(there)
            yield Pair(first, text, False, "date" if kind == "number" and _dated(text) else kind, source, held_out)


def _dated(text: str) -> bool:
    return bool(re.search(rf"\b({'|'.join(MONTHS)})\b", text))


def _near_name(text: str, name: str, other: str, draw: random.Random) -> str | None:
    """The text with one word of a name taken from another name."""
    words, others = name.split(), [word for word in other.split() if word[:1].isupper()]
    places = [place for place, word in enumerate(words) if word[:1].isupper()]
    if len(words) < 2 or not places or not others or name not in text:
        return None
    place, word = draw.choice(places), draw.choice(others)
    if word.lower() in name.lower():
        return None
    return text.replace(name, " ".join([*words[:place], word, *words[place + 1 :]]))


def _other_number(text: str, draw: random.Random) -> str | None:
    """The text with one number, or the month of a date, changed."""
    if (month := re.search(rf"\b({'|'.join(MONTHS)})\b", text)) and draw.random() < 0.4:
        return text.replace(month[0], draw.choice([other for other in MONTHS if other != month[0]]))
    found = list(re.finditer(r"\d+", text))
    if not found:
        return None
    number = draw.choice(found)
    digits = list(number[0])
    place = draw.randrange(len(digits))
    digits[place] = draw.choice([digit for digit in "123456789" if digit != digits[place]])
    return text[: number.start()] + "".join(digits) + text[number.end() :]


def _not_the_answer(question: str, answer: str, held_out: bool, draw: random.Random) -> str:
    forms = (
        (" Not {}", " It was not {}.", " Never {}")
        if not held_out
        else (" It isn't {}.", " No longer {}", " Certainly not {}", " Neither {} nor anything like it")
    )
    return question + draw.choice(forms).format(answer)


def _negated(text: str, held_out: bool, draw: random.Random) -> str:
    if (
        verb := re.search(r" (is|was|has|used|plays|works|worked|borders|shares|maintains|belongs) ", text)
    ) and draw.random() < 0.7:
        said = verb[1]
        if said in ("is", "was", "has"):
            put = draw.choice((f"{said} no longer", f"{said}n't") if held_out else (f"{said} not", f"{said} never"))
        else:
            put = draw.choice(("no longer", "hardly ever") if held_out else ("never", "does not")) + f" {said}"
        return text.replace(verb[0], f" {put} ", 1)
    form = draw.choice(
        (
            "It is false that {}",
            "Nobody would say: {}",
            "{} That is wrong.",
            "It is a fairy tale that {}",
            "{} Only in dreams.",
            "You would err to think that {}",
        )
        if held_out
        else ("It is not true that {}", "{} Not at all.", "It is a myth that {}")
    )
    return form.format(text)


def _otherwise(text: str) -> str | None:
    """The text with one word put for its contrary or its neighbour."""
    words = [word for word in re.findall(r"\w+", text) if word in OTHERWISE]
    return re.sub(rf"\b{words[0]}\b", OTHERWISE[words[0]], text, count=1) if words else None


@dataclass(frozen=True)
class Calibration:
    """Weights of the score (bias, cosine of the texts, cosine of what they do not share) and the threshold."""

    weights: tuple[float, float, float]
    threshold: float


def calibrate(pairs: Sequence[Pair], features: Sequence[tuple[float, float]], *, precision: float) -> Calibration:
    """Logistic regression by Newton's steps, and the smallest score from which on this precision is kept.

    Args:
        pairs: What to tune on, without those that have a veto.
        features: Of each pair, see `memory_paths.retrieval.merging.cosines`.
        precision: In [0, 1].

    Raises:
        ValueError: No threshold gives that precision.
    """
    import numpy as np

    rows = [(1.0, *found, float(pair.same)) for pair, found in zip(pairs, features, strict=True)]
    given, same = np.array(rows)[:, :3], np.array(rows)[:, 3]
    weights, ridge = np.zeros(3), 1e-4 * len(rows) * np.diag([0.0, 1.0, 1.0])
    for _ in range(100):
        likely = 1 / (1 + np.exp(-given @ weights))
        gradient = given.T @ (likely - same) + ridge @ weights
        curvature = (given * (likely * (1 - likely))[:, None]).T @ given + ridge
        weights -= np.linalg.solve(curvature, gradient)
    scores = 1 / (1 + np.exp(-given @ weights))
    order = np.argsort(-scores)
    kept = np.flatnonzero(np.cumsum(same[order]) / np.arange(1, len(rows) + 1) >= precision)
    if not len(kept):
        raise ValueError(f"no threshold gives a precision of {precision} on these {len(rows)} pairs")
    bias, texts, rest = weights.tolist()
    return Calibration((bias, texts, rest), float(scores[order[kept[-1]]]))


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: whether the guard forbade it, and whether it was merged."""

    vetoed: bool
    merged: bool


@dataclass(frozen=True)
class Counts:
    """Of pairs: how many there are, how many of them say the same, were merged, and were merged rightly."""

    pairs: int
    same: int
    merged: int
    right: int

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs, {self.same} of them the same; merged {self.merged}, {self.right} of them rightly:"
            f" precision {share(self.right, self.merged)}, recall {share(self.right, self.same)}."
        )


def count(pairs: Sequence[Pair], outcomes: Sequence[Outcome], *, everyday: bool) -> Counts:
    """Of everyday sentences or of real texts, those kinds left out that are told beside the figures."""
    counted = [
        (pair.same, outcome.merged)
        for pair, outcome in zip(pairs, outcomes, strict=True)
        if pair.kind not in BEYOND and pair.kind.startswith(EVERYDAY) is everyday
    ]
    return Counts(
        len(counted),
        sum(same for same, _ in counted),
        sum(merged for _, merged in counted),
        sum(same and merged for same, merged in counted),
    )


def table(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> str:
    """A row for each kind of pairs, in Markdown."""
    lines = ["| kind | pairs | vetoed | merged |", "|---|---|---|---|"]
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        rows = [outcome for pair, outcome in zip(pairs, outcomes, strict=True) if pair.kind == kind]
        vetoed, merged = sum(row.vetoed for row in rows), sum(row.merged for row in rows)
        lines.append(f"| {kind}{' (not counted)' * (kind in BEYOND)} | {len(rows)} | {vetoed} | {merged} |")
    return "\n".join(lines)


def in_a_bank(pairs: Sequence[Pair], merging: Merging, encoder: Encoder) -> str:
    """What `Merging.propose` finds when both texts of every pair that says the same are in one bank."""
    from memory_paths.ledger import Ledger

    from .bank import Bank

    sources = {text: pair.source for pair in pairs if pair.same for text in (pair.first, pair.second)}
    with Ledger() as ledger:
        bank = Bank(None, ledger, encoder)
        bank.write([Knowledge(f"{number}", text) for number, text in enumerate(sources)], "figures")
        found = [proposal for proposal in merging.propose(bank, "figures") if proposal.automatic]
        bank.close()
    right = sum(sources[proposal.kept.text] == sources[proposal.dropped.text] for proposal in found)
    wrong = [proposal for proposal in found if sources[proposal.kept.text] != sources[proposal.dropped.text]]
    shown = "".join(f"\n- {one.score:.3f} {one.kept.text!r} and {one.dropped.text!r}" for one in wrong[:5])
    return f"{len(sources)} texts in one bank: {len(found)} pairs merged, precision {share(right, len(found))}.{shown}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune on the one half, print the figures of the other, for either way to halve.

    Returns:
        1 if merges of real texts, held out by source, are right or found less often than is wanted, else 0.
    """
    parser = argparse.ArgumentParser(description="How often merges are right, on labelled pairs of real texts.")
    parser.add_argument("folder", type=Path, help="holds the folders zsre_portability and pararel")
    pairs = labelled_pairs(parser.parse_args(arguments).folder)
    encoder = SentenceEncoder()
    free = [pair for pair in pairs if not differences(pair.first, pair.second)]
    features = dict(zip(free, cosines(encoder, [(pair.first, pair.second) for pair in free]), strict=True))
    halves = {
        "Held out, by source": [pair.held_out for pair in pairs],
        "Held out, by relation": [
            pair.source.split("/")[0] in HELD_OUT_RELATIONS
            or (pair.source.startswith(("zsre/", EVERYDAY)) and pair.held_out)
            for pair in pairs
        ],
    }
    met = dict[str, bool]()
    for name, held_out in halves.items():
        tuning, told = (
            [pair for pair, out in zip(pairs, held_out, strict=True) if out is half] for half in (False, True)
        )
        tuning = [pair for pair in tuning if pair in features and pair.kind not in BEYOND]
        tuned = calibrate(tuning, [features[pair] for pair in tuning], precision=PRECISION)
        outcomes = [
            Outcome(pair not in features, pair in features and score(features[pair], tuned.weights) >= tuned.threshold)
            for pair in told
        ]
        weights = tuple(round(weight, 2) for weight in tuned.weights)
        real, everyday = (count(told, outcomes, everyday=which) for which in (False, True))
        met[name] = real.right >= PRECISION * real.merged and real.right >= RECALL * real.same
        print(f"{name}. Real texts: {real}\n\nEveryday sentences: {everyday}\n\n{table(told, outcomes)}\n")
        print(f"Tuned: {weights}, threshold {tuned.threshold:.3f}.\n", flush=True)
    print(f"In use: {WEIGHTS}, threshold {THRESHOLD}.", flush=True)
    print(in_a_bank([pair for pair in pairs if pair.held_out], Merging(encoder), encoder))
    for name, is_met in met.items():
        print(f"{name}: precision {PRECISION} and recall {RECALL} of real texts {'met' if is_met else 'MISSED'}")
    return 0 if met["Held out, by source"] else 1


def share(part: int, whole: int) -> str:
    """A share with its 95 % interval (Wilson 1927)."""
    if not whole:
        return "-"
    share, z = part / whole, 1.96
    middle, width = share + z * z / (2 * whole), z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole**2))
    low, high = ((middle + sign * width) / (1 + z * z / whole) for sign in (-1, 1))
    return f"{share:.3f} [{low:.3f} {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
