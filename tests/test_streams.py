"""Streams: the biographies world and anybody's JSON lines."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from memory_paths.build import build_stream, compose
from memory_paths.ledger import Ledger
from memory_paths.streams.files import jsonl, texts
from memory_paths.streams.words import FIRST_NAMES, LAST_NAMES, PERSON_ATTRIBUTES, VALUES, WORDINGS
from memory_paths.streams.world import biographies, known_world, passing_facts, rehearsal, split_wordings
from memory_paths.types import Phrasing


@pytest.mark.parametrize("facts", [12, 48, 480])
def test_a_world_teaches_as_many_facts_as_it_says(facts: int) -> None:
    stream = biographies(facts)
    items = [item for experience in stream.experiences for item in experience.items]
    assert len(items) == facts
    assert len({item.id for item in items}) == facts


def test_the_same_seeds_give_the_same_world_and_others_another() -> None:
    assert biographies(48) == biographies(48)
    assert biographies(48, world_seed=1) != biographies(48)
    taught = {item.text for experience in biographies(48).experiences for item in experience.items}
    reordered = {item.text for experience in biographies(48, order_seed=1).experiences for item in experience.items}
    assert taught == reordered


def test_no_evaluated_question_occurs_in_study_text_except_the_trained_wording() -> None:
    stream = biographies(480)
    studied = {
        phrasing.prompt
        for experience in stream.experiences
        for item in experience.items
        for phrasing in item.phrasings
        if phrasing.asks
    }
    asked = Counter(
        (question.kind, question.query.text in studied)
        for experience in stream.experiences
        for question in experience.questions
    )
    assert asked["trained", True] == 480
    assert asked["trained", False] == 0
    assert all(not seen for (kind, seen) in asked if kind != "trained")


def test_second_tier_wordings_occur_in_no_study_text_and_no_other_tier() -> None:
    for wordings in WORDINGS.values():
        assert not set(wordings.new_questions) & set(wordings.questions)
        assert not set(wordings.new_statements) & set(wordings.statements)


def test_scored_people_serve_no_method() -> None:
    known = known_world()
    scored = {fact.subject for fact in known.part_b}
    assert not scored & {fact.subject for fact in known.part_a}
    text = "\n".join(phrasing.prompt + phrasing.completion for phrasing in rehearsal())
    assert not any(name in text for name in scored)


def test_new_people_are_not_known_and_the_untaught_are_neither() -> None:
    stream = biographies(480)
    known = known_world().people
    taught = {item.id.split("/")[0] for experience in stream.experiences for item in experience.items}
    assert not taught & {name.lower().replace(" ", "-") for name in known}
    strangers = {question.cluster for question in stream.unknown}
    assert not strangers & known
    assert not {name.lower().replace(" ", "-") for name in strangers} & taught


def test_a_job_change_supersedes_by_key_and_knows_the_stale_answer() -> None:
    stream = biographies(480)
    by_key = Counter(item.key for experience in stream.experiences for item in experience.items)
    changed = {key for key, count in by_key.items() if count == 2}
    assert len(changed) == 10
    stale = [q for experience in stream.experiences for q in experience.questions if q.stale and q.kind == "direct"]
    assert len(stale) == 10
    for question in stale:
        assert question.targets[0] not in question.stale
        assert question.ids[0].endswith("/employer/2")


def test_two_items_of_a_composition_come_from_different_experiences() -> None:
    stream = biographies(480)
    arrived = {item.id: index for index, step in enumerate(stream.experiences) for item in step.items}
    pairs = [
        q.ids for step in stream.experiences for q in step.questions if q.kind == "composition" and len(q.ids) == 2
    ]
    assert len(pairs) > 10
    assert all(arrived[first] != arrived[second] for first, second in pairs)


def test_reversals_are_asked_only_where_one_person_fits() -> None:
    stream = biographies(480)
    born = Counter(
        fact.value for fact in (*known_world().part_a, *known_world().part_b) if fact.attribute == "birthplace"
    )
    texts_of = {item.id: item.text for step in stream.experiences for item in step.items}
    reversals = [q for step in stream.experiences for q in step.questions if q.kind == "reversal"]
    assert reversals
    for question in reversals:
        (place,) = [town for town in VALUES["birthplace"] if f" {town}" in question.query.text]
        assert born[place] == 0
        assert sum(f" {place}" in text for id, text in texts_of.items() if id.endswith("/birthplace")) == 1


def test_every_name_and_value_is_one_word_and_means_one_thing() -> None:
    lists = [FIRST_NAMES, LAST_NAMES, *(VALUES[name] for name in PERSON_ATTRIBUTES if name not in ("home",))]
    for names in lists:
        assert len(set(names)) == len(names)
        assert all(" " not in name for name in names)
    everything = [name for names in lists for name in names]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("style", ["random", "same", "bank"])
def test_distractors_never_contradict_each_other(style: str) -> None:
    import random

    for seed in range(50):
        facts = passing_facts(random.Random(seed), 12, style)
        assert len(facts) == 12
        assert len({(fact.subject, fact.attribute) for fact in facts}) == 12


def test_wordings_are_split_the_same_way_every_time() -> None:
    fact = known_world().part_a[0]
    split = split_wordings(fact)
    assert split == split_wordings(fact)
    assert len(split.questions) == 3
    assert len(split.held_out) == 2
    assert not set(split.questions) & set(split.held_out)


def test_impossible_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 12, got 5"):
        biographies(5)
    with pytest.raises(ValueError, match="between 1 and the number of new people"):
        biographies(12, experiences=13)


def _write(file: Path, *records: Any) -> Path:
    file.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return file


def test_plain_records_need_no_mapping(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "facts.jsonl",
        {"id": "a", "text": "Ada lives in Rome.", "question": "Where does Ada live?", "answer": "Rome"},
        {"id": "b", "text": "Bo lives in Oslo."},
    )
    stream = jsonl(file, experiences=2)
    assert [item.id for step in stream.experiences for item in step.items] == ["a", "b"]
    (question,) = stream.experiences[0].questions
    assert (question.query.text, question.targets, question.ids) == ("Where does Ada live?", ("Rome",), ("a",))


def test_a_mapping_reaches_into_lists_and_nested_fields(tmp_path: Path) -> None:
    file = tmp_path / "passages.jsonl.gz"
    record = {
        "title": "T",
        "context": "Some text.",
        "port": {"New Question": "N?", "New Answer": "n"},
        "qs": [{"q": "A?", "a": "1", "wrong": ["2", "3"]}, {"q": "B?", "a": "2", "wrong": []}],
    }
    with gzip.open(file, "wt") as opened:
        opened.write(json.dumps(record) + "\n")
    mapping = {
        "item": {"id": "{title}-{line}", "text": "{context}", "kind": "passage"},
        "phrasings": [{"prompt": "{title}:", "completion": " {context}"}],
        "questions": [
            {"each": "qs", "question": "{q}", "answer": "{a}", "choices": "wrong"},
            {"kind": "composition", "question": "{port[New Question]}", "answer": "{port[New Answer]}"},
        ],
    }
    (step,) = jsonl(file, mapping=mapping).experiences
    assert step.items[0].id == "T-1"
    assert step.items[0].phrasings == (Phrasing(" Some text.", "T:"),)
    assert [(q.kind, q.targets[0]) for q in step.questions] == [("direct", "1"), ("direct", "2"), ("composition", "n")]
    assert sorted(step.questions[0].choices) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("zsre", {"trained", "direct", "composition"}),
        ("seal_squad", {"direct"}),
        ("reversal_curse", {"direct", "reversal"}),
        ("tofu", {"direct"}),
        ("wikidyk", {"direct"}),
        ("concept_1k", {"trained", "direct"}),
        ("metatool", {"direct"}),
    ],
)
def test_real_data_teaches_asks_and_brings_a_prior(
    name: str, kinds: set[str], data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_PATHS_DATA", str(data_folder))
    stream = instantiate(compose(f"stream={name}", "++stream.limit=4").stream, _convert_="all")
    items = [item for step in stream.experiences for item in step.items]
    questions = [question for step in stream.experiences for question in step.questions]
    assert len(items) == len({item.id for item in items}) == 4
    assert {question.kind for question in questions} == kinds
    assert {id for question in questions for id in question.ids} == {item.id for item in items}
    assert len(stream.prior) == 50
    assert all(question.query.continues for question in stream.prior)
    assert all(question.query.continues == (name == "reversal_curse") for question in questions)
    assert all(question.query.text and all(question.targets) for question in (*questions, *stream.prior))


@pytest.mark.parametrize("name", ["reversal_curse", "wikidyk", "concept_1k"])
def test_real_questions_have_four_choices_and_wordings_that_are_not_studied(
    name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_PATHS_DATA", str(data_folder))
    stream = instantiate(compose(f"stream={name}", "++stream.limit=30").stream, _convert_="all")
    items = [item for step in stream.experiences for item in step.items]
    asked = [q for step in stream.experiences for q in step.questions if q.kind == "direct"]
    assert {id for question in asked for id in question.ids} == {item.id for item in items}
    studied = {text for item in items for text in (item.text, *(phrasing.prompt for phrasing in item.phrasings))}
    answers = {question.targets[0] for question in asked}
    for question in asked:
        assert question.query.text not in studied
        assert len(set(question.choices)) == 4
        assert question.targets[0] in question.choices
        assert set(question.choices) <= answers
    places = Counter(question.choices.index(question.targets[0]) for question in asked)
    assert min(places[place] for place in range(4)) > len(asked) / 12


def test_wrong_choices_are_other_items_answers_to_the_same_question(tmp_path: Path) -> None:
    records = [
        {"id": name, "text": name, "born": born, "home": f"home of {name}"}
        for name, born in zip("abcd", "5667", strict=True)
    ]
    file = _write(tmp_path / "facts.jsonl", *records)
    spec = [
        {"question": "Where {id}?", "answer": "{home}", "others": 2},
        {"question": "When {id}?", "answer": "{born}", "others": 1},
    ]
    questions = [q for step in jsonl(file, mapping={"questions": spec}).experiences for q in step.questions]
    assert questions == [q for step in jsonl(file, mapping={"questions": spec}).experiences for q in step.questions]
    homes, years = questions[::2], questions[1::2]
    assert all(len(set(q.choices)) == 3 and set(q.choices) <= {r["home"] for r in records} for q in homes)
    assert all(len(set(q.choices)) == 2 and q.targets[0] in q.choices and set(q.choices) <= set("567") for q in years)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"others": 3}, r"facts.jsonl: others must be between 1 and 1, .* to 'q a', got 3; give fewer others, or more"),
        ({"others": 0}, "others must be between 1 and 1"),
        ({"others": 1, "choices": "wrong"}, "not both"),
    ],
)
def test_choices_that_cannot_be_drawn_are_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    file = _write(tmp_path / "facts.jsonl", *({"id": name, "text": name} for name in "ab"))
    with pytest.raises(ValueError, match=message):
        jsonl(file, mapping={"questions": [{"question": "q {id}", "answer": "{id}", **spec}]})


def test_a_configuration_teaches_all_at_once_or_one_experience_alone_and_not_both() -> None:
    small = ("stream.facts=24", "stream.experiences=3")
    whole = build_stream(compose(*small))
    assert build_stream(compose(*small, "alone=2")).experiences[0].items == whole.experiences[1].items
    assert build_stream(compose(*small, "joint=true")) == whole.together()
    with pytest.raises(ValueError, match="joint=true teaches everything at once, alone=2 one experience: choose"):
        build_stream(compose(*small, "joint=true", "alone=2"))
    with pytest.raises(ValueError, match="alone must be the number of an experience, got 'last'"):
        build_stream(compose(*small, "alone=last"))


def test_a_question_asked_twice_is_asked_once_and_accepts_both_answers(tmp_path: Path) -> None:
    record = {"id": "a", "text": "x", "qs": [{"q": "When?", "a": "2014"}, {"q": "When?", "a": "2014."}]}
    file = _write(tmp_path / "facts.jsonl", record)
    (step,) = jsonl(file, mapping={"questions": [{"each": "qs", "question": "{q}", "answer": "{a}"}]}).experiences
    (question,) = step.questions
    assert question.targets == ("2014", "2014.")


def test_groups_of_lines_make_one_item_and_another_file_may_ask(tmp_path: Path) -> None:
    file = _write(tmp_path / "train.jsonl", *({"p": f"say {i}", "c": f" {i // 2}"} for i in range(4)))
    _write(tmp_path / "test.jsonl", {"p": "first", "c": "0"}, {"p": "second", "c": "1"})
    mapping = {
        "group": 2,
        "item": {"id": "{line}", "text": "{p}{c}"},
        "phrasings": [{"prompt": "{p}", "completion": "{c}"}],
        "questions": [{"file": "test.jsonl", "group": 1, "kind": "reversal", "question": "{p}", "answer": "{c}"}],
    }
    stream = jsonl(file, mapping=mapping, experiences=1)
    (step,) = stream.experiences
    assert [item.text for item in step.items] == ["say 0 0", "say 2 1"]
    assert [len(item.phrasings) for item in step.items] == [2, 2]
    assert [(q.query.text, q.targets[0], q.ids[0]) for q in step.questions] == [
        ("first", "0", "1"),
        ("second", "1", "3"),
    ]


def test_lines_of_another_file_find_their_items_by_a_field_in_any_order(tmp_path: Path) -> None:
    file = _write(tmp_path / "tools.jsonl", *({"tool": name, "does": f"it {name}s"} for name in ("cut", "glue")))
    asked = [("glue", "stick it"), ("cut", "halve it"), ("paint", "redden it"), ("glue", "mend it")]
    _write(tmp_path / "asked.jsonl", *({"tool": tool, "query": query} for tool, query in asked))
    ask = {"question": "{query}", "answer": "{tool}", "file": "asked.jsonl", "by": "tool"}
    item = {"id": "{tool}", "text": "{does}"}
    (step,) = jsonl(file, mapping={"item": item, "questions": [ask]}, experiences=1).experiences
    assert [(q.query.text, q.targets, q.ids) for q in step.questions] == [
        ("halve it", ("cut",), ("cut",)),
        ("stick it", ("glue",), ("glue",)),
        ("mend it", ("glue",), ("glue",)),
    ]
    with pytest.raises(ValueError, match="in place of `group`"):
        jsonl(file, mapping={"item": item, "questions": [{**ask, "group": 2}]})
    with pytest.raises(ValueError, match=r"asked.jsonl, line 1: field 'does'"):
        jsonl(file, mapping={"item": item, "questions": [{**ask, "by": "does"}]})


def test_ordinary_texts_come_from_lines_or_from_a_whole_file(tmp_path: Path) -> None:
    lines = _write(tmp_path / "stories.jsonl", {"text": "one"}, {"text": "two"})
    assert [phrasing.completion for phrasing in texts(lines, skip=0)] == ["one", "two"]
    assert [phrasing.completion for phrasing in texts(lines, skip=1)] == ["two"]
    facts = _write(tmp_path / "facts.jsonl", {"id": "a", "text": "x"})
    story = _write(tmp_path / "story.jsonl", {"text": "one two three four"}, {"text": "five six"})
    (question,) = jsonl(facts, texts=story, texts_limit=1).prior
    assert (question.query.text, question.targets) == ("one two", ("three four",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"id": "a", "text": "x"}\n{"id": "b"\n', "line 2: not JSON"),
        ('{"id": "a", "text": "x"}\n{"id": "b"}\n', r"line 2: field 'text'"),
        ("[1]\n", "line 1: expected a JSON object, got list"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "two records have the id 'a'"),
        ('{"id": "a", "text": " "}\n', "line 1: an item needs an id and a text"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line_and_field(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        jsonl(file)


RECORD = '{"id": "a", "text": "Åsa lives in Malmö.", "question": "Where does Åsa live?", "answer": "Malmö"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("facts.jsonl", RECORD.encode("latin-1")),
        ("facts.jsonl.gz", gzip.compress(RECORD.encode())[:-9]),
        ("facts.jsonl.gz", RECORD.encode()),
    ],
    ids=["no UTF-8", "cut off", "not packed"],
)
def test_a_file_that_is_no_whole_text_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no whole file of UTF-8 text"):
        jsonl(tmp_path / name)


def test_a_byte_order_mark_and_a_repeated_record_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(RECORD * 2, encoding="utf-8-sig")
    stream = jsonl(tmp_path / "facts.jsonl", experiences=2)
    with Ledger() as ledger:
        for step in stream.experiences:
            ledger.record(step.items, place="rag", namespace="default")
        assert [item.text for item in ledger.active()] == ["Åsa lives in Malmö."]
    (question,) = {question for step in stream.experiences for question in step.questions}
    assert question.targets == ("Malmö",)


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream.file="):
        jsonl(tmp_path / "nothing.jsonl")


def test_a_mapping_with_unknown_entries_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "facts.jsonl", {"id": "a", "text": "x"})
    with pytest.raises(ValueError, match=r"got \['itm'\]"):
        jsonl(file, mapping={"itm": {}})
    with pytest.raises(ValueError, match="kind of a question must be one of"):
        jsonl(file, mapping={"questions": [{"kind": "odd", "question": "q", "answer": "a"}]})
