"""Anybody's facts, passages and questions from JSON lines, by a small mapping; knows nothing of what they are about.

A mapping says with format strings how a record becomes items and questions: "{title}", "{answers[0]}",
"{portability[New Question]}"; `{line}` is the number of the record, from 1. See `Plan`, and examples in
`conf/stream/`.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from memory_paths.streams.mapping import date, entries, fill, fitting, listed, value
from memory_paths.streams.shift import Shift, check_shift, reworded
from memory_paths.types import Experience, Knowledge, Phrasing, Query, Question, QuestionKind, Stream

LOGGER = logging.getLogger(__name__)
CONTINUED_WORDS = 40
ORDERS = ("file", "time", "shuffled")
DEFAULT_ITEM = {"id": "{id}", "text": "{text}"}
ITEM_TEXTS = ("id", "kind", "key", "source", "cue")
ITEM_DATES = ("valid_from", "valid_until")
ITEM_FIELDS = (*ITEM_TEXTS, "text", *ITEM_DATES, "metadata", "each", "match")
QUESTION_FIELDS = (
    *("kind", "question", "answer", "answers", "stale", "continues", "choices", "among", "others"),
    *("as_of", "where", "about", "each", "match", "file", "group", "by"),
)


@dataclass(frozen=True)
class Plan:
    """How records become items and questions.

    Args:
        item: Format strings for id, text, kind, key, source, cue, `valid_from` and `valid_until` (dates), and
            `metadata` by name. `text` may also be a list of alternatives, each a format string or a mapping with `text`
            and `match`: the first that fits is taken. `match` names by field a regular expression that its whole text
            has to fit, or the record is no item; the expression's named groups are further fields. `each` names a list,
            or by `*` several lists ("conversation[session_*]"), whose entries are the items; in a format string `*`
            then is what it stood for.
        phrasings: Other ways to say the item: format strings for prompt and completion, and whether the prompt asks.
        questions: Format strings for question and answer, with the kind, and whether the question is no question but
            the beginning of a text (`continues`); `answers` in place of `answer` names a list field, each entry of
            which is accepted, and with neither only an abstention is right; `stale` names a list field of answers, of
            which those not accepted now were right once. `each` names a list field whose entries are asked one by one,
            and `match` says which. `choices` a list field of wrong answers; `among` instead a list field of all of
            them, of which `answer` is the number of the right one, from 0; `others` instead how many wrong answers are
            drawn from what is right for questions of the same entry about other items. `as_of` is a date as of which is
            asked, `where` as `Query.where` has it. `about` says by their metadata, in the same way, which items a
            question is about, with `as_of` those that held then; without it, it is the record's own. A value that is
            one field alone keeps its type: "{trial}", "{evidence}". `file` and `group`: another file whose n-th group
            of lines asks about the n-th item; `file` and `by`: one whose lines ask about the item with the same value
            in the field `by`, whatever their order.
        group: So many consecutive records are one item: the first gives the text, all of them the phrasings.
        dates: How dates are written, as `datetime.strptime` has it, tried in this order; in UTC. None: ISO 8601.
        order: Items arrive in the order of the file, or of `time`: of their `valid_from`, or `shuffled`: in one of
            each order seed.
    """

    item: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_ITEM))
    phrasings: Sequence[Mapping[str, Any]] = ()
    questions: Sequence[Mapping[str, Any]] = ({"kind": "direct", "question": "{question}", "answer": "{answer}"},)
    group: int = 1
    dates: Sequence[str] = ()
    order: str = "file"


def jsonl(
    file: str | Path,
    *,
    mapping: Mapping[str, Any] | None = None,
    experiences: int = 10,
    limit: int | None = None,
    untaught: int = 0,
    texts: str | Path | None = None,
    texts_limit: int = 50,
    name: str | None = None,
    shift: Shift = "none",
    world_seed: int = 0,
    order_seed: int = 0,
) -> Stream:
    """A stream from a JSON-lines file (plain or .gz).

    A question is asked from the step on in which the last of its items arrives. One that is about no item that is
    taught is left out, with a warning that counts them.

    Args:
        file: One JSON object on each line.
        mapping: See `Plan`; by default fields id, text, and optionally question and answer.
        experiences: In how many steps the items arrive.
        limit: Only the first so many items.
        untaught: The last so many items are not taught, and what would be asked of them alone is asked all the same:
            only an abstention is right then (kind "unknown").
        texts: Ordinary text that the model can continue, as JSON lines ("text" field) or a plain text file. How likely
            it finds the second half of each after the first is measured before and after, as its prior.
        texts_limit: Only the first so many of them.
        name: What tables and records call the stream; None: the file's name.
        shift: How far it is from what the model was trained on, see `shift.reworded`.
        world_seed: Of a shift.
        order_seed: Of a shuffled order, from which `limit` and `untaught` then count.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown shift, an empty file, one that is no UTF-8 text, a line that is no JSON object, a field
            that a record lacks (file, line and field are named), the same id twice with different texts, a mapping with
            unknown entries, or one by which no record is an item.
    """
    source = Path(file)
    check_shift(shift)
    plan = _plan(mapping or {})
    groups = _groups(source, plan.group)
    made = _made(plan, groups, source)
    if plan.order == "shuffled":
        made = random.Random(f"{source.name}/order/{order_seed}").sample(made, len(made))
    if not 0 <= untaught < len(made):
        raise ValueError(f"{source}: untaught must be between 0 and {len(made) - 1}, got {untaught}")
    if untaught and any("file" in spec for spec in plan.questions):
        raise ValueError(
            "untaught goes with questions from the items' own file; leave it 0, or file out of the mapping"
        )
    rest = len(made) - untaught
    taught = _Taught(made[:rest][:limit], groups)
    asked: list[list[Question]] = [[] for _ in taught.items]
    unknown: list[Question] = []
    left_out = 0
    for spec in plan.questions:
        found = _found(spec, plan, taught, source, optional=not mapping)
        if "others" in spec and _is_own(spec):
            found = _with_others(found, int(spec["others"]), source)
        for questions, more in zip(asked, found, strict=False):
            questions += more
        if _is_own(spec):
            apart = _found(spec, plan, _Taught(made[rest:], groups), source, optional=not mapping)
            unknown += [_without_answer(question) for questions in apart for question in questions]
            continue
        about = [question for group in groups for question in _questions(spec, plan, group[0], taught, source)]
        unknown += [question for question in about if not question.ids and question.kind == "unknown"]
        left_out += sum(not question.ids and question.kind != "unknown" for question in about)
        about = [question for question in about if question.ids]
        if "others" in spec:
            about = [
                question
                for (question,) in _with_others([[question] for question in about], int(spec["others"]), source)
            ]
        for question in about:
            asked[taught.last(question.ids)].append(question)
    if left_out:
        LOGGER.warning("%s: %d questions are about no item that is taught, and are left out", source, left_out)
    asked = [_merged(questions) for questions in asked]
    known = {question.query.text for questions in asked for question in questions}
    unknown = _merged([question for question in unknown if question.query.text not in known])
    if experiences < 1:
        raise ValueError(f"experiences must be at least 1, got {experiences}")
    count = min(experiences, len(taught.items))
    steps = []
    for step in range(count):
        chosen = range(step * len(taught.items) // count, (step + 1) * len(taught.items) // count)
        steps.append(
            Experience(
                f"step {step + 1}",
                tuple(dict.fromkeys(taught.items[index] for index in chosen)),
                tuple(question for index in chosen for question in asked[index]),
            )
        )
    ordinary = read_texts(Path(texts))[:texts_limit] if texts is not None else []
    prior = tuple(_continuation(number, text) for number, text in enumerate(ordinary) if len(text.split()) > 1)
    called = name or source.name.split(".")[0]
    stream = Stream(
        name=called if shift == "none" else f"{called}-{shift}",
        experiences=tuple(steps),
        prior=prior,
        unknown=tuple(unknown),
    )
    return reworded(stream, shift, world_seed)


def texts(file: str | Path, *, skip: int = 50, limit: int = 500) -> list[Phrasing]:
    """Ordinary texts as background for the weights path: see `jsonl` for the formats.

    Args:
        file: What the model can continue.
        skip: The first so many are left to `jsonl` to measure the prior on.
        limit: At most so many.

    Raises:
        ValueError: No text is left.
    """
    found = read_texts(Path(file))
    if len(found) <= skip:
        raise ValueError(f"{file} holds {len(found)} texts, and the first {skip} are left out; give a smaller skip")
    return [Phrasing(text) for text in found[skip : skip + limit]]


def _plan(mapping: Mapping[str, Any]) -> Plan:
    _check_names("a mapping", mapping, [part.name for part in fields(Plan)])
    item = {**DEFAULT_ITEM, **mapping.get("item", {})}
    _check_names("item of a mapping", item, ITEM_FIELDS)
    questions = list(mapping.get("questions", Plan().questions))
    for spec in questions:
        _check_names("a question of a mapping", spec, QUESTION_FIELDS)
        if sum(name in spec for name in ("choices", "others", "among")) > 1:
            raise ValueError(
                "a question of a mapping has choices (a field), others (a number) or among (a field), not both"
            )
        if "by" in spec and ("file" not in spec or "group" in spec):
            raise ValueError(
                "`by` of a question says how the lines of its `file` find their items, in place of `group`"
            )
        if "answer" in spec and "answers" in spec:
            raise ValueError("a question of a mapping has answer (a format string) or answers (a field), not both")
        if spec.get("kind", "direct") not in get_args(QuestionKind):
            raise ValueError(f"kind of a question must be one of {get_args(QuestionKind)}, got {spec['kind']!r}")
        if "question" not in spec or ("answer" in spec or "answers" in spec) == (spec.get("kind") == "unknown"):
            raise ValueError(
                "a question of a mapping has question, and answer or answers unless its kind is 'unknown'; got"
                f" {dict(spec)}"
            )
        if not _is_own(spec) and "file" in spec:
            raise ValueError("file goes with questions about a record's own item; leave it out, or about")
        if _is_own(spec) and "each" in item:
            raise ValueError(
                "where item has each, a record has many items: a question needs about, to say which of them it is about"
            )
    if (order := mapping.get("order", "file")) not in ORDERS:
        raise ValueError(f"order of a mapping must be one of {ORDERS}, got {order!r}")
    return Plan(
        item,
        list(mapping.get("phrasings", ())),
        questions,
        int(mapping.get("group", 1)),
        list(mapping.get("dates", ())),
        order,
    )


def _check_names(what: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise ValueError(f"{what} has {', '.join(allowed)}; got {unknown}")


def _is_own(spec: Mapping[str, Any]) -> bool:
    """Whether it asks about the item of its own record; else about others, or about none that there is."""
    return "about" not in spec and ("answer" in spec or "answers" in spec)


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


def read_records(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of JSON lines (plain or .gz), each with the number of its line as the field `line`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An empty file, one that is no UTF-8 text, or a line that is no JSON object.
    """
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
    records = read_records(file)
    return [records[start : start + size] for start in range(0, len(records), size)]


def _made(plan: Plan, groups: Sequence[Sequence[Mapping[str, Any]]], file: Path) -> list[tuple[int, Knowledge]]:
    """Every item with the number of its group, in the order in which they arrive."""
    made: list[tuple[int, Knowledge]] = []
    for number, group in enumerate(groups):
        parts = entries(plan.item["each"], group[0], file) if "each" in plan.item else [group[0]]
        for part in parts:
            if (record := fitting(plan.item.get("match", {}), part)) is not None:
                made.append((number, _item(plan, record, group, file)))
    if not made:
        raise ValueError(f"{file}: no record fits match of the mapping's item, {dict(plan.item.get('match', {}))}")
    seen: dict[str, Knowledge] = {}
    for _, item in made:
        if seen.setdefault(item.id, item).text != item.text:
            raise ValueError(
                f"{file}: two records have the id {item.id!r} and different texts; make item.id of the mapping unique"
            )
    # The same record once more differs in its line, which is its source.
    made = [(number, seen[item.id]) for number, item in made]
    if plan.order == "time":
        made.sort(key=lambda entry: _begin(entry[1]))
    return made


def _item(plan: Plan, record: Mapping[str, Any], group: Sequence[Mapping[str, Any]], file: Path) -> Knowledge:
    given: dict[str, Any] = {"source": f"{file.name}:{record['line']}"}
    given |= {name: fill(plan.item[name], record, file) for name in ITEM_TEXTS if name in plan.item}
    given["text"] = _text(plan.item["text"], record, file)
    try:
        given |= {
            name: date(fill(plan.item[name], record, file), plan.dates) for name in ITEM_DATES if name in plan.item
        }
        return Knowledge(
            **given,
            metadata=value(plan.item.get("metadata", {}), record, file),
            phrasings=tuple(
                Phrasing(
                    fill(spec["completion"], one, file), fill(spec.get("prompt", ""), one, file), bool(spec.get("asks"))
                )
                for one in (group if "each" not in plan.item else [record])
                for spec in plan.phrasings
            ),
        )
    except ValueError as error:
        raise ValueError(f"{file}, line {record['line']}: {error}") from error


def _text(alternatives: Any, record: Mapping[str, Any], file: Path) -> str:
    if isinstance(alternatives, str):
        return fill(alternatives, record, file)
    for alternative in alternatives:
        if isinstance(alternative, str):
            return fill(alternative, record, file)
        if (fits := fitting(alternative.get("match", {}), record)) is not None:
            return fill(alternative["text"], fits, file)
    raise ValueError(
        f"{file}, line {record['line']}: the record fits none of the alternatives of item.text; end with one that has"
        " no match"
    )


class _Taught:
    """The items of a stream, by group of records and by what their metadata say.

    Args:
        made: In the order in which they arrive, each with the number of its group.
        groups: All records.
    """

    def __init__(self, made: Sequence[tuple[int, Knowledge]], groups: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        self.items = [item for _, item in made]
        self.groups = [groups[number] for number, _ in made]
        self._places = {item.id: place for place, item in enumerate(self.items)}
        self._equal: dict[tuple[str, Any], list[Knowledge]] = {}
        for item in dict.fromkeys(self.items):
            for name, held in item.metadata.items():
                if isinstance(held, str | int | float):
                    self._equal.setdefault((name, held), []).append(item)

    def last(self, ids: Sequence[str]) -> int:
        """The place of the last of them to arrive."""
        return max(self._places[id] for id in ids)

    def about(self, wanted: Mapping[str, Any], as_of: float | None) -> tuple[str, ...]:
        """The ids of those whose metadata fit; with `as_of` of those that held then."""
        query = Query("", where=wanted)
        plain = [(name, given) for name, given in wanted.items() if isinstance(given, str | int | float)]
        candidates = self._equal.get(plain[0], []) if plain else dict.fromkeys(self.items)
        found = [item for item in candidates if query.admits(item.kind, item.metadata)]
        if as_of is None:
            return tuple(item.id for item in found)
        held: dict[str, Knowledge] = {}
        for item in sorted(found, key=_begin):
            if _begin(item) <= as_of < (math.inf if item.valid_until is None else item.valid_until):
                held[item.key or item.id] = item
        return tuple(item.id for item in held.values())


def _begin(item: Knowledge) -> float:
    return -math.inf if item.valid_from is None else item.valid_from


def _found(
    spec: Mapping[str, Any], plan: Plan, taught: _Taught, source: Path, *, optional: bool
) -> list[list[Question]]:
    """What is asked of each item by its own record, or by the lines of another file."""
    if not _is_own(spec):
        return []
    if "file" not in spec:
        return [
            [] if optional and "question" not in group[0] else _questions(spec, plan, group[0], item, source)
            for group, item in zip(taught.groups, taught.items, strict=True)
        ]
    where = source.parent / spec["file"]
    if "by" in spec:
        asking = _records_by(spec["by"], where, taught.groups, source)
    else:
        asking = _groups(where, int(spec.get("group", 1)))
    return [
        [question for record in group for question in _questions(spec, plan, record, item, where)]
        for group, item in zip(asking, taught.items, strict=False)
    ]


def _records_by(
    name: str, file: Path, groups: Sequence[Sequence[Mapping[str, Any]]], source: Path
) -> list[list[dict[str, Any]]]:
    """For each item the records of a file that have its value in a field."""
    wanted = [fill(f"{{{name}}}", group[0], source) for group in groups]
    found: dict[str, list[dict[str, Any]]] = {value: [] for value in wanted}
    for record in read_records(file):
        found.get(fill(f"{{{name}}}", record, file), []).append(record)
    return [found[value] for value in wanted]


def _questions(
    spec: Mapping[str, Any], plan: Plan, record: Mapping[str, Any], subject: Knowledge | _Taught, file: Path
) -> list[Question]:
    """The questions of a record about an item, or about those that `about` finds among what is taught."""
    found = []
    for entry in entries(spec["each"], record, file) if "each" in spec else [record]:
        if (fits := fitting(spec.get("match", {}), entry)) is None:
            continue
        targets = _targets(spec, fits, file)
        kind: QuestionKind = spec.get("kind", "direct")
        try:
            as_of = date(fill(spec.get("as_of", ""), fits, file), plan.dates)
        except ValueError as error:
            raise ValueError(f"{file}, line {record['line']}: {error}") from error
        if isinstance(subject, Knowledge):
            ids: tuple[str, ...] = (subject.id,)
        else:
            ids = subject.about(value(spec["about"], fits, file), as_of) if "about" in spec else ()
        cluster = ids[0] if ids else ""
        choices: tuple[str, ...] = ()
        if "among" in spec or "choices" in spec:
            listing = map(str, listed(spec.get("among") or spec["choices"], fits, file))
            choices = tuple(dict.fromkeys((*targets[:1], *listing)))
            choices = tuple(random.Random(f"{cluster}/{targets[0]}").sample(choices, len(choices)))
        stale = [str(one) for one in listed(spec["stale"], fits, file)] if "stale" in spec else []
        query = Query(
            fill(spec["question"], fits, file).strip(),
            as_of=as_of,
            continues=bool(spec.get("continues")),
            where=value(spec.get("where", {}), fits, file),
        )
        past = tuple(dict.fromkeys(answer for answer in stale if answer not in targets))
        found.append(Question(query, targets, kind, ids=ids, stale=past, choices=choices, cluster=cluster))
    return found


def _targets(spec: Mapping[str, Any], record: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    if "answers" in spec:
        accepted = tuple(dict.fromkeys(str(answer).strip() for answer in listed(spec["answers"], record, file)))
        if not accepted:
            raise ValueError(f"{file}, line {record['line']}: field {spec['answers']!r} accepts no answer")
        return accepted
    if "answer" not in spec:
        return ()
    answer = fill(spec["answer"], record, file).strip()
    if "among" not in spec:
        return (answer,)
    among = listed(spec["among"], record, file)
    if not answer.isdigit() or int(answer) >= len(among):
        raise ValueError(
            f"{file}, line {record['line']}: answer must be the number of one of the {len(among)} {spec['among']}, from"
            f" 0, got {answer!r}"
        )
    return (str(among[int(answer)]).strip(),)


def _without_answer(question: Question) -> Question:
    """The same about what is not taught: nothing but an abstention is right."""
    return Question(question.query, (), "unknown", cluster=question.cluster)


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
    merged: dict[tuple[str, str, tuple[str, ...]], Question] = {}
    for question in questions:
        key = (question.kind, question.query.text, question.ids)
        targets = dict.fromkeys((*merged[key].targets, *question.targets) if key in merged else question.targets)
        merged[key] = replace(merged.get(key, question), targets=tuple(targets))
    return list(merged.values())


def _continuation(number: int, text: str) -> Question:
    """The next words after the first ones: what the model could say before."""
    words = text.split()
    middle = min(len(words) // 2, CONTINUED_WORDS)
    given, target = " ".join(words[:middle]), " ".join(words[middle : 2 * middle])
    return Question(Query(given, continues=True), (target,), "prior", cluster=f"text {number}")


def read_texts(file: Path, match: Mapping[str, str] | None = None, field: str = "text") -> list[str]:
    """The texts of a file: of JSON lines (plain or .gz) a field of each record that fits the patterns, of any other
    the whole. Raises as `read_records` does."""
    if ".jsonl" in file.name:
        found = (fitting(match or {}, record) for record in read_records(file))
        return [fill(f"{{{field}}}", record, file) for record in found if record is not None]
    return ["".join(_lines(file))]
