"""Anybody's facts, passages and questions from JSON lines, by a small mapping; knows nothing of what they are about.

A mapping says with format strings how a record becomes an item and questions: "{title}", "{answers[0]}",
"{portability[New Question]}"; `{line}` is the number of the record, from 1.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from memory_paths.types import Experience, Knowledge, Phrasing, Query, Question, QuestionKind, Stream

CONTINUED_WORDS = 40
DEFAULT_ITEM = {"id": "{id}", "text": "{text}"}
ITEM_FIELDS = ("id", "text", "kind", "key", "source")
QUESTION_FIELDS = ("kind", "question", "answer", "continues", "choices", "others", "each", "file", "group", "by")


@dataclass(frozen=True)
class Plan:
    """How records become items and questions.

    Args:
        item: Format strings for id, text, kind, key and source.
        phrasings: Other ways to say the item: format strings for prompt and completion, and whether the prompt asks.
        questions: Format strings for question and answer, with the kind, and whether the question is no question but
            the beginning of a text (`continues`); `each` names a list field whose entries are asked one by one;
            `choices` a list field of wrong answers; `others` instead how many wrong answers are drawn from what is
            right for the same question about other items; `file` and `group` another file whose n-th group of lines
            asks about the n-th item, or `file` and `by` one whose lines ask about the item with the same value in the
            field `by`, whatever their order.
        group: So many consecutive records are one item: the first gives the text, all of them the phrasings.
    """

    item: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_ITEM))
    phrasings: Sequence[Mapping[str, Any]] = ()
    questions: Sequence[Mapping[str, Any]] = ({"kind": "direct", "question": "{question}", "answer": "{answer}"},)
    group: int = 1


def jsonl(
    file: str | Path,
    *,
    mapping: Mapping[str, Any] | None = None,
    experiences: int = 10,
    limit: int | None = None,
    texts: str | Path | None = None,
    texts_limit: int = 50,
) -> Stream:
    """A stream from a JSON-lines file (plain or .gz).

    Args:
        file: One JSON object on each line.
        mapping: See `Plan`; by default fields id, text, and optionally question and answer.
        experiences: In how many steps the items arrive, in the file's order.
        limit: Only the first so many items.
        texts: Ordinary text that the model can continue, as JSON lines ("text" field) or a plain text file. How likely
            it finds the second half of each after the first is measured before and after, as its prior.
        texts_limit: Only the first so many of them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An empty file, one that is no UTF-8 text, a line that is no JSON object, a field that a record lacks
            (file, line and field are named), the same id twice with different texts, or a mapping with unknown entries.
    """
    source = Path(file)
    plan = _plan(mapping or {})
    groups = _groups(source, plan.group)[:limit]
    items = [_item(plan, group, source) for group in groups]
    seen: dict[str, Knowledge] = {}
    for item in items:
        if seen.setdefault(item.id, item).text != item.text:
            raise ValueError(
                f"{source}: two records have the id {item.id!r} and different texts; make item.id of the mapping unique"
            )
    items = [seen[item.id] for item in items]  # the same record once more differs in its line, which is its source
    asked: list[list[Question]] = [[] for _ in items]
    for spec in plan.questions:
        records = groups
        where = source
        if "file" in spec:
            where = source.parent / spec["file"]
            if "by" in spec:
                records = _records_by(spec["by"], where, groups, source)
            else:
                records = _groups(where, int(spec.get("group", 1)))
        optional = not mapping
        taken = [group if "file" in spec else group[:1] for group in records]
        found = [
            [question for record in group for question in _questions(spec, record, item, where, optional)]
            for item, group in zip(items, taken, strict=False)
        ]
        if "others" in spec:
            found = _with_others(found, int(spec["others"]), where)
        for questions, more in zip(asked, found, strict=False):
            questions += more
    asked = [_merged(questions) for questions in asked]
    if experiences < 1:
        raise ValueError(f"experiences must be at least 1, got {experiences}")
    count = min(experiences, len(items))
    steps = []
    for step in range(count):
        chosen = range(step * len(items) // count, (step + 1) * len(items) // count)
        steps.append(
            Experience(
                f"step {step + 1}",
                tuple(dict.fromkeys(items[index] for index in chosen)),
                tuple(question for index in chosen for question in asked[index]),
            )
        )
    ordinary = _texts(Path(texts))[:texts_limit] if texts is not None else []
    prior = tuple(_continuation(number, text) for number, text in enumerate(ordinary) if len(text.split()) > 1)
    return Stream(name=source.name.split(".")[0], experiences=tuple(steps), prior=prior)


def texts(file: str | Path, *, skip: int = 50, limit: int = 500) -> list[Phrasing]:
    """Ordinary texts as background for the weights path: see `jsonl` for the formats.

    Args:
        file: What the model can continue.
        skip: The first so many are left to `jsonl` to measure the prior on.
        limit: At most so many.

    Raises:
        ValueError: No text is left.
    """
    found = _texts(Path(file))
    if len(found) <= skip:
        raise ValueError(f"{file} holds {len(found)} texts, and the first {skip} are left out; give a smaller skip")
    return [Phrasing(text) for text in found[skip : skip + limit]]


def _plan(mapping: Mapping[str, Any]) -> Plan:
    unknown = set(mapping) - {"item", "phrasings", "questions", "group"}
    if unknown:
        raise ValueError(f"a mapping has item, phrasings, questions and group; got {sorted(unknown)}")
    item = {**DEFAULT_ITEM, **mapping.get("item", {})}
    if set(item) - set(ITEM_FIELDS):
        raise ValueError(f"item of a mapping has {ITEM_FIELDS}, got {sorted(set(item) - set(ITEM_FIELDS))}")
    questions = list(mapping.get("questions", Plan().questions))
    for spec in questions:
        if set(spec) - set(QUESTION_FIELDS):
            raise ValueError(
                f"a question of a mapping has {QUESTION_FIELDS}, got {sorted(set(spec) - set(QUESTION_FIELDS))}"
            )
        if "by" in spec and ("file" not in spec or "group" in spec):
            raise ValueError(
                "`by` of a question says how the lines of its `file` find their items, in place of `group`"
            )
        if "choices" in spec and "others" in spec:
            raise ValueError("a question of a mapping has choices (a field) or others (a number), not both")
        if spec.get("kind", "direct") not in get_args(QuestionKind):
            raise ValueError(f"kind of a question must be one of {get_args(QuestionKind)}, got {spec['kind']!r}")
    return Plan(item, list(mapping.get("phrasings", ())), questions, int(mapping.get("group", 1)))


def _lines(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; give stream.file=<a JSON-lines file>")
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig") as opened:
            yield from opened
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{file} is no whole file of UTF-8 text ({error}); save it as UTF-8, or fetch it again"
        ) from error


def _records(file: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: expected a JSON object, got {type(record).__name__}")
        records.append({**record, "line": number})
    if not records:
        raise ValueError(f"{file} is empty; it needs one JSON object on each line")
    return records


def _groups(file: Path, size: int) -> list[list[dict[str, Any]]]:
    if size < 1:
        raise ValueError(f"group must be at least 1, got {size}")
    records = _records(file)
    return [records[start : start + size] for start in range(0, len(records), size)]


def _records_by(
    name: str, file: Path, groups: Sequence[Sequence[Mapping[str, Any]]], source: Path
) -> list[list[dict[str, Any]]]:
    """For each item the records of a file that have its value in a field."""
    found: dict[str, list[dict[str, Any]]] = {_fill(f"{{{name}}}", group[0], source): [] for group in groups}
    for record in _records(file):
        found.get(_fill(f"{{{name}}}", record, file), []).append(record)
    return [found[_fill(f"{{{name}}}", group[0], source)] for group in groups]


def _fill(template: str, record: Mapping[str, Any], file: Path) -> str:
    try:
        return template.format(**record)
    except (KeyError, IndexError, TypeError) as error:
        fields = sorted(set(record) - {"line"})
        raise ValueError(
            f"{file}, line {record.get('line', '?')}: field {error} of {template!r} is missing; the record has {fields}"
        ) from error


def _item(plan: Plan, group: Sequence[Mapping[str, Any]], file: Path) -> Knowledge:
    filled = {name: _fill(template, group[0], file) for name, template in plan.item.items()}
    try:
        return Knowledge(
            **{"source": f"{file.name}:{group[0]['line']}", **filled},  # type: ignore[arg-type]
            phrasings=tuple(
                Phrasing(
                    _fill(spec["completion"], record, file),
                    _fill(spec.get("prompt", ""), record, file),
                    bool(spec.get("asks")),
                )
                for record in group
                for spec in plan.phrasings
            ),
        )
    except ValueError as error:
        raise ValueError(f"{file}, line {group[0]['line']}: {error}") from error


def _questions(
    spec: Mapping[str, Any], record: Mapping[str, Any], item: Knowledge, file: Path, optional: bool
) -> list[Question]:
    entries = [record]
    if "each" in spec:
        listed = record.get(spec["each"])
        if not isinstance(listed, list):
            raise ValueError(f"{file}, line {record['line']}: field {spec['each']!r} is missing or no list")
        entries = [{**record, **entry} for entry in listed]
    elif optional and "question" not in record:
        return []
    found = []
    for entry in entries:
        answer = _fill(spec["answer"], entry, file).strip()
        choices: tuple[str, ...] = ()
        if "choices" in spec:
            choices = (answer, *(str(choice) for choice in entry.get(spec["choices"], ())))
            choices = tuple(random.Random(f"{item.id}/{answer}").sample(choices, len(choices)))
        found.append(
            Question(
                Query(_fill(spec["question"], entry, file).strip(), continues=bool(spec.get("continues"))),
                (answer,),
                spec.get("kind", "direct"),
                ids=(item.id,),
                choices=choices,
                cluster=item.id,
            )
        )
    return found


def _with_others(asked: Sequence[Sequence[Question]], count: int, file: Path) -> list[list[Question]]:
    """Choices for the n-th question about each item: its answer, and `count` of the n-th answers of other items. All of
    them are taught, so that what was studied is no hint of which one is right."""

    def chosen(question: Question, number: int) -> Question:
        answers = dict.fromkeys(
            row[number].targets[0] for row in asked if number < len(row) and row[0].ids != question.ids
        )
        wrong = [answer for answer in answers if answer not in question.targets]
        if not 0 < count <= len(wrong):
            raise ValueError(
                f"{file}: others must be between 1 and {len(wrong)}, the different answers of other items to "
                f"{question.query.text!r}, got {count}; give fewer others, or more items (limit)"
            )
        generator = random.Random(f"{question.ids[0]}/{question.query.text}")
        choices = [*question.targets[:1], *generator.sample(wrong, count)]
        return replace(question, choices=tuple(generator.sample(choices, len(choices))))

    return [[chosen(question, number) for number, question in enumerate(questions)] for questions in asked]


def _merged(questions: Sequence[Question]) -> list[Question]:
    """A question that a file asks twice of one item is asked once, and each of its answers is accepted."""
    merged: dict[tuple[str, str], Question] = {}
    for question in questions:
        key = (question.kind, question.query.text)
        targets = dict.fromkeys((*merged[key].targets, *question.targets) if key in merged else question.targets)
        merged[key] = replace(merged.get(key, question), targets=tuple(targets))
    return list(merged.values())


def _continuation(number: int, text: str) -> Question:
    """The next words after the first ones: what the model could say before."""
    words = text.split()
    middle = min(len(words) // 2, CONTINUED_WORDS)
    given, target = " ".join(words[:middle]), " ".join(words[middle : 2 * middle])
    return Question(Query(given, continues=True), (target,), "prior", cluster=f"text {number}")


def _texts(file: Path) -> list[str]:
    if ".jsonl" in file.name:
        return [_fill("{text}", record, file) for record in _records(file)]
    return ["".join(_lines(file))]
