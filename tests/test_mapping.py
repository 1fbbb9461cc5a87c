"""A mapping reaches what dialogues, attempts, news and dated facts are made of; and the real sets that need it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memory_paths.build import build_stream, compose
from memory_paths.evaluation.plan import Plan
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.streams.files import jsonl
from memory_paths.types import Knowledge, Question, Stream

DIALOGUE = {
    "name": "d",
    "talk": {
        "day_1": [{"n": "1:1", "who": "Ann", "said": "Hello."}, {"n": "1:2", "who": "Bo", "said": "I moved."}],
        "day_1_date": "1:56 pm on 8 May, 2023",
        "day_2": [{"n": "2:1", "who": "Bo", "said": "Look!", "picture": "a red barn"}],
        "day_2_date": "9:00 am on 9 May, 2023",
    },
    "asked": [
        {"q": "Who moved?", "a": "Bo", "turns": ["1:2"], "sort": 4},
        {"q": "What did Bo say, and show?", "a": "both", "turns": ["2:1", "1:2"], "sort": 1},
        {"q": "Where did Ann move?", "turns": [], "sort": 5},
        {"q": "What was said later?", "a": "?", "turns": ["7:7"], "sort": 4},
    ],
}
TALK = {
    "dates": ["%Y", "%I:%M %p on %d %B, %Y"],
    "item": {
        "each": "talk[day_*]",
        "id": "{name}/{n}",
        "kind": "episode",
        "text": [{"match": {"picture": ".+"}, "text": "{who}: {said} [{picture}]"}, "{who}: {said}"],
        "valid_from": "{talk[day_*_date]}",
        "metadata": {"dialogue": "{name}", "turn": "{n}", "place": "{number}"},
    },
    "questions": [
        {
            "each": "asked",
            "match": {"sort": "[1-4]"},
            "question": "{q}",
            "answer": "{a}",
            "where": {"dialogue": "{name}"},
            "about": {"dialogue": "{name}", "turn": {"$in": "{turns}"}},
        },
        {"kind": "unknown", "each": "asked", "match": {"sort": "5"}, "question": "{q}"},
    ],
}
OFFICE = [
    {"of": 7, "from": "2000", "who": ["Cy"], "sort": "start", "ever": ["Ada", "Bo", "Cy"]},
    {"of": 7, "from": "1980", "who": ["Ada", "Ada L."], "sort": "start", "ever": ["Ada", "Bo", "Cy"]},
    {"of": 7, "from": "1990", "who": ["Bo"], "sort": "start", "ever": ["Ada", "Bo", "Cy"]},
    {"of": 7, "from": "1985", "who": ["Ada"], "sort": "sampled"},
    {"of": 7, "from": "1999", "who": ["Bo"], "sort": "sampled"},
    {"of": 7, "from": "1970", "who": ["nobody"], "sort": "sampled"},
]
DATED = {
    "dates": ["%Y"],
    "order": "time",
    "item": {
        "match": {"sort": "start"},
        "id": "{of}/{from}",
        "key": "{of}",
        "text": "The office is held by {who[0]}.",
        "valid_from": "{from}",
        "metadata": {"office": "{of}"},
    },
    "questions": [
        {"match": {"sort": "start"}, "question": "Who holds it?", "answers": "who", "stale": "ever"},
        {
            "match": {"sort": "sampled"},
            "question": "Who held it in {from}?",
            "answers": "who",
            "as_of": "{from}",
            "about": {"office": "{of}"},
        },
    ],
}


def _write(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def _items(stream: Stream) -> list[Knowledge]:
    return [item for step in stream.experiences for item in step.items]


def _questions(stream: Stream) -> list[Question]:
    return [question for step in stream.experiences for question in step.questions]


def test_turns_of_sessions_become_dated_items_and_evidence_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = jsonl(_write(tmp_path / "talks.jsonl", DIALOGUE), mapping=TALK, experiences=3)
    items = _items(stream)
    assert [item.id for item in items] == ["d/1:1", "d/1:2", "d/2:1"]
    assert [item.text for item in items] == ["Ann: Hello.", "Bo: I moved.", "Bo: Look! [a red barn]"]
    assert items[1].valid_from == datetime(2023, 5, 8, 13, 56, tzinfo=UTC).timestamp()
    assert items[2].metadata == {"dialogue": "d", "turn": "2:1", "place": 1}
    asked = _questions(stream)
    assert [(q.query.text, q.ids) for q in asked] == [
        ("Who moved?", ("d/1:2",)),
        ("What did Bo say, and show?", ("d/1:2", "d/2:1")),
    ]
    assert [len(step.questions) for step in stream.experiences] == [0, 1, 1], "asked once all of it is taught"
    assert asked[0].query.where == {"dialogue": "d"}
    (never,) = stream.unknown
    assert (never.query.text, never.targets, never.kind) == ("Where did Ann move?", (), "unknown")
    assert "1 questions are about no item that is taught" in caplog.text


def test_dated_facts_arrive_in_time_and_are_asked_for_now_and_for_then(tmp_path: Path) -> None:
    stream = jsonl(_write(tmp_path / "office.jsonl", *OFFICE), mapping=DATED, experiences=3)
    assert [item.id for item in _items(stream)] == ["7/1980", "7/1990", "7/2000"]
    asked = {question.query.text: question for question in _questions(stream)}
    assert asked["Who held it in 1985?"].ids == ("7/1980",)
    assert asked["Who held it in 1999?"].ids == ("7/1990",)
    assert asked["Who held it in 1999?"].query.as_of == datetime(1999, 1, 1, tzinfo=UTC).timestamp()
    assert "Who held it in 1970?" not in asked
    plan = Plan(stream, samples=10, seed=0, control="oracle")
    last = {ask.question.query.text: ask for ask in plan.asks(3)}
    assert last["Who holds it?"].question.targets == ("Cy",)
    assert last["Who holds it?"].question.stale == ("Ada", "Bo")
    assert last["Who held it in 1985?"].notes == ("The office is held by Ada.",), "what was replaced answers for then"
    with Ledger() as ledger:
        bank = Bank(None, ledger, HashEncoder())
        for step in stream.experiences:
            bank.write(step.items, namespace="default")
        for text, ask in last.items():
            (reading,) = bank.read([_of_default(ask.question)])
            assert tuple(one.item.id for one in reading.recalls) == ask.question.ids, text


def _of_default(question: Question) -> Any:
    from dataclasses import replace

    return replace(question.query, namespace="default")


def test_an_attempt_is_about_earlier_ones_and_never_sees_itself(tmp_path: Path) -> None:
    records = [{"task": task, "trial": trial, "log": f"{task} {trial}"} for task in "ab" for trial in (1, 2, 3)]
    mapping = {
        "item": {"id": "{line}", "text": "{log}", "metadata": {"task": "{task}", "trial": "{trial}"}},
        "questions": [
            {
                "match": {"trial": "[2-9]"},
                "question": "{task}?",
                "answer": "x",
                "where": {"trial": {"$lt": "{trial}"}},
                "about": {"task": "{task}", "trial": {"$lt": "{trial}"}},
            }
        ],
    }
    asked = _questions(jsonl(_write(tmp_path / "tries.jsonl", *records), mapping=mapping))
    assert [question.ids for question in asked] == [("1",), ("1", "2"), ("4",), ("4", "5")]
    own = {("1",): 2, ("1", "2"): 3, ("4",): 2, ("4", "5"): 3}
    assert all(question.query.where == {"trial": {"$lt": own[question.ids]}} for question in asked)
    assert not asked[0].query.admits("fact", {"task": "a", "trial": 2})


def test_patterns_turn_a_question_into_a_sentence_and_the_last_items_stay_untaught(tmp_path: Path) -> None:
    names = ["Rome", "Oslo", "Bonn", "Rome"]
    records = [{"id": str(n), "q": f"Who runs {name}?", "a": [f"M{n}", f"m{n}"]} for n, name in enumerate(names)]
    mapping = {
        "item": {"text": [{"match": {"q": r"Who runs (?P<town>.*)\?"}, "text": "{town} is run by {a[0]}."}]},
        "questions": [{"question": "{q}", "answers": "a"}],
    }
    file = _write(tmp_path / "towns.jsonl", *records)
    stream = jsonl(file, mapping=mapping, untaught=2)
    assert [item.text for item in _items(stream)] == ["Rome is run by M0.", "Oslo is run by M1."]
    assert [question.targets for question in _questions(stream)] == [("M0", "m0"), ("M1", "m1")]
    assert [(q.query.text, q.targets, q.ids) for q in stream.unknown] == [("Who runs Bonn?", (), ())]
    with pytest.raises(ValueError, match="untaught must be between 0 and 3, got 4"):
        jsonl(file, mapping=mapping, untaught=4)
    elsewhere = {**mapping, "questions": [{"question": "{q}", "answers": "a", "file": "towns.jsonl"}]}
    with pytest.raises(ValueError, match="untaught goes with questions from the items' own file"):
        jsonl(file, mapping=elsewhere, untaught=2)


def test_the_number_of_a_choice_gives_the_answer(tmp_path: Path) -> None:
    record = {"id": "a", "text": "x", "q": "Which?", "choices": ["u", "v", "w"], "right": ["2"]}
    spec = {"question": "{q}", "answer": "{right[0]}", "among": "choices"}
    file = _write(tmp_path / "quiz.jsonl", record)
    (question,) = _questions(jsonl(file, mapping={"questions": [spec]}))
    assert question.targets == ("w",)
    assert sorted(question.choices) == ["u", "v", "w"]
    with pytest.raises(ValueError, match=r"line 1: answer must be the number of one of the 3 choices, from 0, got 'a'"):
        jsonl(file, mapping={"questions": [{**spec, "answer": "{id}"}]})


CHAINS = [
    {"chain": name, "links": [{"of": name, "to": f"{name} {n}", "n": n} for n in range(3)], "end": f"{name} end"}
    for name in ("Ann", "Bo", "Cy", "Di")
]
LINKS = {
    "order": "shuffled",
    "item": {
        "each": "links",
        "id": "{chain}/{n}",
        "text": "Link {n} of {of} is {to}.",
        "metadata": {"chain": "{chain}", "link": "{n}"},
    },
    "questions": [
        {
            "each": "links",
            "about": {"chain": "{chain}", "link": "{n}"},
            "question": "What is link {n} of {of}?",
            "answer": "{to}",
            "others": 2,
        },
        {
            "kind": "composition",
            "about": {"chain": "{chain}"},
            "question": "Where does {chain} end?",
            "answer": "{end}",
        },
    ],
}


def test_links_of_a_chain_arrive_in_an_order_of_each_seed_and_the_chain_is_asked_when_all_are_there(
    tmp_path: Path,
) -> None:
    file = _write(tmp_path / "chains.jsonl", *CHAINS)
    first, second = (jsonl(file, mapping=LINKS, experiences=6, order_seed=seed) for seed in (0, 1))
    assert [item.id for item in _items(first)] != [item.id for item in _items(second)]
    assert {item.id for item in _items(first)} == {item.id for item in _items(second)}
    answers = {link["to"] for chain in CHAINS for link in chain["links"]}
    for number, step in enumerate(first.experiences):
        taught = {item.id for earlier in first.experiences[: number + 1] for item in earlier.items}
        for question in step.questions:
            assert set(question.ids) <= taught
            assert set(question.ids) & {item.id for item in step.items}, "not before, and not later"
            if question.kind == "direct":
                assert len(set(question.choices)) == 3
                assert set(question.choices) <= answers
                assert question.targets[0] in question.choices
    whole = [question for question in _questions(first) if question.kind == "composition"]
    assert [len(question.ids) for question in whole] == [3] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": {"each": "nothing"}}, r"line 1: field 'nothing' is missing or no list"),
        ({"item": {"each": "talk[night_*]"}}, r"field 'talk\[night_\*\]' is missing or no list"),
        ({"item": {"match": {"n": "9"}}}, "no record fits match of the mapping's item"),
        ({"item": {"text": [{"match": {"n": "9"}, "text": "x"}]}}, "fits none of the alternatives of item.text"),
        ({"dates": ["%Y"]}, "line 1: '1:56 pm on 8 May, 2023' is no date of the form %Y; give its form in `dates`"),
        ({"order": "size"}, r"order of a mapping must be one of \('file', 'time', 'shuffled'\), got 'size'"),
        ({"questions": [{"question": "q", "answer": "a"}]}, "a question needs about"),
        ({"questions": [{"question": "q", "about": {}, "file": "f", "answer": "a"}]}, "file goes with"),
        ({"questions": [{"question": "q", "answer": "a", "answers": "b"}]}, "answer .* or answers"),
        ({"questions": [{"question": "q", "about": {}}]}, "answer or answers unless its kind is 'unknown'"),
        ({"questions": [{"question": "q", "answer": "a", "kind": "unknown"}]}, "unless its kind is 'unknown'"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_to_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    mapping = {**TALK, **change, "item": {**TALK["item"], **change.get("item", {})}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=message):
        jsonl(_write(tmp_path / "talks.jsonl", DIALOGUE), mapping=mapping)


@pytest.mark.parametrize(
    ("name", "items", "unknown"),
    [
        ("locomo", 2960, 232),
        ("reflexion_trajectories", 164, 0),
        ("situatedqa", 1031, 0),
        ("realtimeqa", 2947, 0),
        ("popqa", 800, 197),
    ],
)
def test_streams_for_banks_say_what_each_question_is_about(
    name: str, items: int, unknown: int, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_PATHS_DATA", str(data_folder))
    if not (data_folder / name).is_dir():
        pytest.skip(f"no folder {data_folder / name}")
    stream = build_stream(compose(f"stream={name}"))
    assert stream.name == name
    taught = {item.id: item for item in _items(stream)}
    assert len(taught) == items
    assert len(stream.unknown) == unknown
    asked = _questions(stream)
    assert len(asked) >= 100
    assert all(question.ids and question.targets and set(question.ids) <= set(taught) for question in asked)
    for question in asked:
        about = [taught[id] for id in question.ids]
        assert all(question.query.admits(item.kind, item.metadata) for item in about)
        if question.query.as_of is not None:
            assert all((item.valid_from or 0) <= question.query.as_of for item in about)
    Plan(stream, samples=10, seed=0)
