"""What travels: items and queries keep what they are given, and refuse at the door what they cannot hold."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from memory_paths.types import Knowledge, Phrasing, Query

LESSON = Knowledge(
    "lesson",
    "Sort by price before you compare.",
    kind="lesson",
    phrasings=(Phrasing("Sort first.", "How?", asks=True),),
    cue="Find the cheapest kettle",
    span=(10, 43),
    metadata={"task": 7, "tags": ["shop", "price"], "outcome": "success"},
)


def test_an_item_comes_back_from_its_json_as_it_was() -> None:
    assert Knowledge.from_json(LESSON.to_json()) == LESSON
    assert hash(Knowledge.from_json(LESSON.to_json())) == hash(LESSON)


def test_items_without_cue_span_and_metadata_have_the_json_that_they_always_had() -> None:
    assert Knowledge("a", "Ærø is an island.", valid_from=1).to_json() == (
        '{"id":"a","key":"","kind":"fact","phrasings":[],"source":"","text":"Ærø is an island.","trust":1.0,'
        '"valid_from":1.0,"valid_until":null}'
    )


@pytest.mark.parametrize("word", ['say "no"', "back\\slash", "\x00\x1f\x7f\n\u2028", "Ærø ☃ 🙂", "\ud800", " "])
@pytest.mark.parametrize("edges", [(None, None), (-math.inf, math.inf), (0.1, 1e300), (-7, None)])
def test_an_item_has_the_json_that_sorted_keys_give_it(word: str, edges: tuple[float | None, float | None]) -> None:
    item = Knowledge(f"{word}1", f"{word}2", "lesson", f"{word}3", (), f"{word}4", 1, *edges)
    fields = {name: value for name, value in vars(item).items() if name not in ("cue", "span", "metadata")}
    dumped = json.dumps({**fields, "phrasings": []}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert item.to_json() == dumped


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"cue": 3}, TypeError, "cue of an item must be a str"),
        ({"span": (5, 5)}, ValueError, "must be .first, end."),
        ({"span": (-1, 5)}, ValueError, "must be .first, end."),
        ({"metadata": {"a": object()}}, TypeError, "what JSON can hold"),
        ({"metadata": {"a": float("nan")}}, TypeError, "what JSON can hold"),
        ({"metadata": {3: "a"}}, TypeError, "names must be str"),
    ],
)
def test_what_an_item_cannot_hold_is_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Knowledge("a", "Text.", **fields)


@pytest.mark.parametrize(
    ("where", "admitted"),
    [
        ({}, True),
        ({"task": 7}, True),
        ({"task": 8}, False),
        ({"task": [6, 7]}, True),
        ({"task": {"$gte": 7, "$lt": 8}}, True),
        ({"task": {"$gt": 7}}, False),
        ({"task": {"$ne": 7}}, False),
        ({"task": {"$nin": [1, 2]}}, True),
        ({"task": {"$gt": "a word"}}, False),
        ({"missing": {"$lt": 3}}, False),
        ({"missing": {"$ne": 3}}, True),
        ({"task": 7, "outcome": "failure"}, False),
    ],
)
def test_a_query_admits_what_fits_all_its_conditions(where: dict[str, Any], admitted: bool) -> None:
    assert Query("?", where=where).admits(LESSON.kind, LESSON.metadata) is admitted
    assert Query("?", kinds=("lesson",), where=where).admits(LESSON.kind, LESSON.metadata) is admitted
    assert not Query("?", kinds=("fact",), where=where).admits(LESSON.kind, LESSON.metadata)


def test_a_query_refuses_what_it_cannot_compare_by() -> None:
    with pytest.raises(ValueError, match=r"may compare by .*got \['\$like'\]"):
        Query("?", where={"task": {"$like": 3}})
    for comparison in ("$in", "$nin"):
        for wanted in ("abc", 3, {"a": 1}):
            with pytest.raises(ValueError, match=rf"where\['task'\] needs a list or tuple for \{comparison}, got"):
                Query("?", where={"task": {comparison: wanted}})
    with pytest.raises(ValueError, match="kinds must be among"):
        Query("?", kinds=("rumour",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"text": 3}, TypeError, "text of a query must be a str, got 3"),
        ({"namespace": None}, TypeError, "namespace of a query must be a str, got None"),
        ({"as_of": "yesterday"}, TypeError, "as_of must be seconds since the epoch or None, got 'yesterday'; write"),
        ({"as_of": True}, TypeError, "as_of must be seconds"),
        ({"as_of": math.nan}, ValueError, "as_of must be seconds since the epoch or None, got NaN"),
        ({"token_budget": 2.5}, TypeError, "token_budget must be a whole number or None, got 2.5"),
        ({"token_budget": 0}, ValueError, "token_budget must be at least 1"),
        ({"kinds": "fact"}, TypeError, r"kinds must be a sequence .*, or \(\) for all, got 'fact'"),
        ({"kinds": None}, TypeError, "kinds must be a sequence of kinds, .* got None"),
        ({"where": "abc"}, TypeError, "where must be a mapping from names to values, .*got 'abc'"),
        ({"where": {"a": {1, 2}}}, TypeError, "where of a query must be what JSON can hold"),
        ({"where": {3: "a"}}, TypeError, "names must be str"),
    ],
)
def test_a_query_refuses_at_the_door_what_it_cannot_hold(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Query(**{"text": "?", **fields})


def test_a_query_has_one_form_for_what_means_the_same() -> None:
    given = {"a": [1]}
    query = Query("?", as_of=3, kinds=["fact"], where=given)  # type: ignore[arg-type]
    assert hash(query) == hash(Query("?", as_of=3.0, kinds=("fact",), where={"a": (1,)}))
    assert (query.as_of, type(query.as_of), query.kinds) == (3.0, float, ("fact",))
    given["a"].append(2)
    assert query.where == {"a": [1]}, "what happens to the mapping afterwards changes no query"
