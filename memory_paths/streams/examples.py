"""Streams from other people's task data and texts: what is learnt are examples, what is asked are others that were held
out. `examples` reads tasks with a format each (labels, lists of entities, translations, preferred replies), `passages`
texts for continual pretraining, `sequence` puts such streams one after the other.

For facts with questions about each see `memory_paths.streams.files`; templates are those of `streams.mapping`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_paths.streams.files import read_records, read_texts
from memory_paths.streams.mapping import fill, fitting
from memory_paths.types import Experience, Knowledge, KnowledgeKind, Phrasing, Query, Question, Scoring, Stream


@dataclass(frozen=True)
class _Example:
    """One record, read: in which experience it belongs, by what it is about, what is given and what is wanted."""

    step: str
    label: str
    given: str
    wanted: str
    text: str
    rejected: str


def examples(
    file: str | Path,
    *,
    name: str,
    given: str,
    wanted: str,
    text: str = "{given} {wanted}",
    step: str | None = None,
    label: str | None = None,
    rejected: str | None = None,
    match: Mapping[str, str] | None = None,
    studied: Mapping[str, str] | None = None,
    held_out: Mapping[str, str] | None = None,
    held_out_file: str | Path | None = None,
    tokens: str | None = None,
    tags: str | None = None,
    scoring: Scoring = "exact",
    kind: KnowledgeKind = "procedure",
    experiences: int = 5,
    labels: int = 5,
    each: int = 4,
    asked: int = 2,
    longest: int = 80,
) -> Stream:
    """A stream from examples of one task or several.

    Args:
        file: JSON lines (plain or .gz), one example each.
        name: What tables and records call the stream.
        given: What is asked.
        wanted: The answer.
        text: What a reader of notes sees of an example, with the fields `given` and `wanted`.
        step: What examples of one experience have in common, such as a domain; None: labels are dealt evenly.
        label: By which a question finds the examples that it is about; None: all of its experience.
        rejected: The reply that the answer is to be preferred to, for `scoring="choice"`; without it the choices are
            the answers of all experiences, and class-incremental is what is tested.
        match: By field a regular expression that an example has to fit, or it is left out; named groups are fields.
        studied: The same for those that are studied.
        held_out: The same for those that are asked.
        held_out_file: Where those that are asked are; None: in `file`.
        tokens: A field that is a list of tokens: joined, they are the field `sentence`.
        tags: A field with a BIO tag for each token: what they mark is the field `entities`, as "type: name; ...", or
            "none".
        scoring: See `memory_paths.evaluation.scoring`.
        kind: Of the items.
        experiences: Most experiences.
        labels: Most labels of each.
        each: Most examples that are studied of a label.
        asked: Most examples that are asked of a label.
        longest: Examples with more words than this, what is given with the longer reply, are left out.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A field that a record lacks (file, line and field are named), or nothing to study or to ask.
    """
    source = Path(file)
    read = _Reader(given, wanted, text, step, label, rejected, dict(match or {}), tokens, tags, longest)
    learnt = read(source, studied)
    other = source if held_out_file is None else Path(held_out_file)
    tested = read(other, held_out)
    shown = {one.given for one in learnt}
    tested = [one for one in {one.given: one for one in tested}.values() if one.given not in shown]
    if not learnt or not tested:
        raise ValueError(
            f"{source} gives {len(learnt)} examples to study and {len(tested)} to ask (from {other}, those studied left"
            " out); look at match, studied, held_out and longest"
        )
    steps = _steps(learnt, step is not None, experiences, labels)
    chosen = {one for mine in steps.values() for one in mine}
    answers = tuple(dict.fromkeys(one.wanted for one in learnt if (one.step, one.label) in chosen))
    made = []
    for title, mine in steps.items():
        items: dict[str, list[Knowledge]] = {}
        for pair in mine:
            of_label = list(dict.fromkeys(one for one in learnt if (one.step, one.label) == pair))[:each]
            items[pair[1]] = [
                Knowledge(
                    f"{name}/{title}/{pair[1]}/{number}",
                    one.text,
                    kind=kind,
                    phrasings=(Phrasing(one.wanted, one.given, asks=True),),
                    source=source.name,
                )
                for number, one in enumerate(of_label, start=1)
            ]
        questions = []
        for pair in mine:
            ids = tuple(item.id for item in items[pair[1]])
            for one in [one for one in tested if (one.step, one.label) == pair][:asked]:
                choices: tuple[str, ...] = ()
                if scoring == "choice":
                    choices = tuple(sorted({one.wanted, one.rejected} if rejected else {one.wanted, *answers}))
                if scoring == "choice" and len(choices) < 2:
                    continue
                questions.append(
                    Question(
                        Query(one.given),
                        (one.wanted,),
                        "direct",
                        ids,
                        choices=choices,
                        cluster=one.given,
                        scoring=scoring,
                    )
                )
        if not questions:
            raise ValueError(f"{other} asks nothing about {title!r} of {source}; look at held_out, step and label")
        made.append(Experience(title, tuple(item for group in items.values() for item in group), tuple(questions)))
    return Stream(name, tuple(made), chance=1 / len(answers) if scoring == "choice" and not rejected else None)


def passages(
    sources: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    words: int = 24,
    studied: int = 12,
    asked: int = 6,
    prior: str | Path | None = None,
) -> Stream:
    """A stream of texts: each source is one experience, cut into passages of which some, evenly spread, are taken.
    Every other one is studied; of those between them is asked how likely the second half is after the first.

    Args:
        sources: By name `file` (plain text, or JSON lines with a field "text", plain or .gz), and optionally `match`,
            as in `examples`, and `field` where the text has another name.
        name: What tables and records call the stream.
        words: Of a passage, at least 4.
        studied: Passages of each source that are studied, at most.
        asked: Passages of each source that are asked, at most.
        prior: A file of ordinary text, asked in the same way before and after.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Fewer than 4 words to a passage, or a source that has no two passages.
    """
    if words < 4:
        raise ValueError(f"words must be at least 4, got {words}")
    steps = []
    for title, source in sources.items():
        cut = _cut(source, words, 2 * max(studied, asked))
        if len(cut) < 2:
            raise ValueError(f"source {title!r} ({source['file']}) has fewer than two passages of {words} words")
        items = tuple(
            Knowledge(f"{name}/{title}/{number}", passage, kind="passage", source=title)
            for number, passage in enumerate(cut[::2][:studied], start=1)
        )
        ids = tuple(item.id for item in items)
        steps.append(Experience(title, items, tuple(_halves(passage, ids) for passage in cut[1::2][:asked])))
    before = [] if prior is None else _cut({"file": prior}, words, 2 * asked)
    known = tuple(_halves(passage, (), prior=True) for passage in before)
    return Stream(name, tuple(steps), prior=known)


def sequence(parts: Sequence[Stream], *, name: str) -> Stream:
    """Streams one after the other: what each teaches, and what each asks beside it.

    Raises:
        ValueError: The same item in two of them.
    """
    ids = [item.id for part in parts for step in part.experiences for item in step.items]
    if len(set(ids)) < len(ids):
        twice = sorted({id for id in ids if ids.count(id) > 1})[:3]
        raise ValueError(f"two parts of {name!r} teach {twice}; give their items other names")
    return Stream(
        name,
        tuple(step for part in parts for step in part.experiences),
        prior=tuple(question for part in parts for question in part.prior),
        skill=tuple(task for part in parts for task in part.skill),
        unknown=tuple(question for part in parts for question in part.unknown),
    )


@dataclass(frozen=True)
class _Reader:
    given: str
    wanted: str
    text: str
    step: str | None
    label: str | None
    rejected: str | None
    match: Mapping[str, str]
    tokens: str | None
    tags: str | None
    longest: int

    def __call__(self, file: Path, patterns: Mapping[str, str] | None) -> list[_Example]:
        found = []
        for record in read_records(file):
            fields = fitting({**self.match, **(patterns or {})}, {**record, **self._spans(record)})
            if fields is None:
                continue
            given, wanted = (_line(fill(one, fields, file)) for one in (self.given, self.wanted))
            step, label, rejected = (
                _line(fill(one, fields, file)) if one else "" for one in (self.step, self.label, self.rejected)
            )
            answers = max((wanted, rejected), key=lambda answer: len(answer.split()))
            if not given or not wanted or len(f"{given} {answers}".split()) > self.longest:
                continue
            shown = fill(self.text, {**fields, "given": given, "wanted": wanted}, file)
            found.append(_Example(step, label, given, wanted, shown, rejected))
        return found

    def _spans(self, record: Mapping[str, Any]) -> dict[str, str]:
        if self.tokens is None:
            return {}
        tokens = [str(token) for token in record[self.tokens]]
        return {"sentence": " ".join(tokens), "entities": marked(tokens, record[self.tags] if self.tags else ())}


def marked(tokens: Sequence[str], tags: Iterable[str]) -> str:
    """What BIO tags mark, as "type: name; type: name", each once; "none" where they mark nothing."""
    names: list[tuple[str, list[str]]] = []
    inside = ""
    for token, tag in zip(tokens, tags, strict=False):
        mark, _, type = tag.partition("-")
        if mark == "B" or (mark == "I" and type != inside):
            names.append((type, [token]))
        elif mark == "I":
            names[-1][1].append(token)
        inside = type
    return "; ".join(dict.fromkeys(f"{type}: {' '.join(words)}" for type, words in names)) or "none"


def _steps(learnt: Sequence[_Example], named: bool, experiences: int, labels: int) -> dict[str, list[tuple[str, str]]]:
    """By experience the steps and labels of its examples, in the order in which they first come."""
    pairs = list(dict.fromkeys((one.step, one.label) for one in learnt))
    if named:
        steps: dict[str, list[tuple[str, str]]] = {}
        for pair in pairs:
            steps.setdefault(pair[0], []).append(pair)
        return {title: mine[:labels] for title, mine in list(steps.items())[:experiences]}
    hands = [pairs[start : start + labels] for start in range(0, len(pairs), labels)][:experiences]
    return {f"step {number}": mine for number, mine in enumerate(hands, start=1)}


def _cut(source: Mapping[str, Any], words: int, most: int) -> list[str]:
    """At most so many passages of a source, evenly spread over all of it."""
    passages = []
    for text in read_texts(Path(source["file"]), source.get("match", {}), source.get("field", "text")):
        rest = text.split()
        passages += [" ".join(rest[start : start + words]) for start in range(0, len(rest) - words + 1, words)]
    count = min(most, len(passages))
    return [passages[place * len(passages) // count] for place in range(count)]


def _halves(passage: str, ids: tuple[str, ...], *, prior: bool = False) -> Question:
    words = passage.split()
    middle = len(words) // 2
    given, wanted = " ".join(words[:middle]), " ".join(words[middle:])
    return Question(
        Query(given, continues=True),
        (wanted,),
        "prior" if prior else "direct",
        ids,
        cluster=given,
        scoring="likelihood",
    )


def _line(text: str) -> str:
    return " ".join(text.split())
