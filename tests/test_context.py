"""The window as a memory: budgets hold to the token, what goes is said, and the contract of paths catches liars."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memory_paths.agent import Agent
from memory_paths.context import InContext, NoMemory, pack
from memory_paths.eviction import Importance, Recency, RecencyOfUse, Refuse, Spill, Summarise
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.testing import EchoLM, check_path
from memory_paths.types import (
    Generates,
    Generation,
    Knowledge,
    MemoryPath,
    Prompt,
    Query,
    Reading,
    Recall,
    Receipt,
    Scores,
    TooLarge,
)

QUERY = Query("Where does Ada live?", "default")


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger() as ledger:
        yield ledger


def item(name: str, words: int = 4, **more: Any) -> Knowledge:
    return Knowledge(name, " ".join([name, *["word"] * (words - 1)]), **more)


def recalls(*texts: str) -> list[Recall]:
    """Best first."""
    return [Recall(Knowledge(f"id-{text[:20]}", text), float(-rank)) for rank, text in enumerate(texts)]


def texts(packed: Sequence[Recall]) -> list[str]:
    return [recall.item.text for recall in packed]


def names(items: Sequence[Knowledge]) -> list[str]:
    return [item.id for item in items]


def rendered(lm: Generates, query: Query, packed: Sequence[Recall]) -> int:
    return lm.count_tokens(Prompt(query.text, tuple(texts(packed))))


def test_all_recalls_stand_in_the_prompt_where_they_fit_the_best_last() -> None:
    assert texts(pack(EchoLM(), QUERY, recalls("best", "good", "fair"))) == ["fair", "good", "best"]


def test_the_order_is_a_choice() -> None:
    given = recalls("1", "2", "3", "4", "5")
    assert texts(pack(EchoLM(), QUERY, given, order="edges_first")) == ["1", "3", "5", "4", "2"]
    written = [replace(recall, score=score) for recall, score in zip(given, (5.0, 1.0, 4.0, 2.0, 3.0), strict=True)]
    assert texts(pack(EchoLM(), QUERY, written, order="chronological")) == ["2", "4", "5", "3", "1"]
    with pytest.raises(ValueError, match=r"relevance_last.*got 'random'"):
        pack(EchoLM(), QUERY, given, order="random")


@pytest.mark.parametrize("model", ["tiny_lm", "stories_lm", "echo"])
def test_a_rendered_prompt_never_exceeds_the_budget_and_no_item_is_cut(
    model: str, request: pytest.FixtureRequest
) -> None:
    lm = EchoLM() if model == "echo" else request.getfixturevalue(model)
    source = random.Random(0)
    pieces = ["on", "in ", " the", "\n", "  ", "é", "日本", "</s>", "<eos>", "- ", "x", "Question:", "🙂", "a" * 40]
    full = 0
    for trial in range(60):
        given = recalls(*("n" + "".join(source.choices(pieces, k=source.randint(1, 25))) for _ in range(8)))
        query = Query("Who " + "".join(source.choices(pieces, k=3)) + "?", "default")
        budget = source.randint(lm.count_tokens(Prompt(query.text)), min(rendered(lm, query, given), lm.window - 32))
        packed = pack(lm, query, given, budget=budget, order=("relevance_last", "edges_first")[trial % 2])
        assert rendered(lm, query, packed) <= budget
        assert set(packed) <= set(given), "whole items, or none of it"
        left_out = [recall for recall in given if recall not in packed]
        full += bool(left_out)
        if left_out and len(packed) + 1 == len(given):
            assert rendered(lm, query, [*reversed(given)]) > budget, "nothing is left out that would have fitted"
    assert full > 20, "budgets were tight, or nothing is tested"


def test_the_budget_is_met_exactly(tiny_lm: CausalLM) -> None:
    given = recalls("Ada lives in Oslo.", "Ben lives in Bergen.")
    exact = rendered(tiny_lm, QUERY, [*reversed(given)])
    assert len(pack(tiny_lm, QUERY, given, budget=exact)) == 2
    assert texts(pack(tiny_lm, QUERY, given, budget=exact - 1)) == ["Ada lives in Oslo."]


def test_a_query_may_ask_for_less_than_the_budget_but_not_for_more() -> None:
    given = recalls("Ada lives in Oslo.", "Ben lives in Bergen.")
    tight = replace(QUERY, token_budget=12)
    assert rendered(EchoLM(), tight, pack(EchoLM(), tight, given)) <= 12
    assert len(pack(EchoLM(), tight, given)) == 1
    greedy = replace(QUERY, token_budget=10_000)
    assert rendered(EchoLM(), greedy, pack(EchoLM(), greedy, given * 300, budget=20)) <= 20


def test_the_window_less_the_reserve_is_the_default_budget() -> None:
    lm = EchoLM(window=60)
    given = recalls(*(f"note {number} word word" for number in range(30)))
    assert rendered(lm, QUERY, pack(lm, QUERY, given)) == 28 - (28 - 7) % 5
    assert rendered(lm, QUERY, pack(lm, QUERY, given, reserve=10)) > 40
    with pytest.raises(ValueError, match="between 1 and 28"):
        pack(lm, QUERY, given, budget=29)
    with pytest.raises(ValueError, match="reserve"):
        pack(lm, QUERY, given, reserve=60)


def test_an_item_that_fits_nowhere_is_skipped_with_a_reason_and_the_next_still_fits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="memory_paths.context")
    given = recalls("long " * 50, "Ada lives in Oslo.")
    assert texts(pack(EchoLM(), QUERY, given, budget=20)) == ["Ada lives in Oslo."]
    assert "'id-long long long long ' is left out: alone" in caplog.text
    assert "the budget is 20" in caplog.text


def test_a_question_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(TooLarge, match="question alone has 6 tokens, the budget is 3"):
        pack(EchoLM(), QUERY, [], budget=3)


def test_a_text_is_not_repeated() -> None:
    given = recalls("same", "same", "other")
    room = rendered(EchoLM(), QUERY, given[1:])
    assert texts(pack(EchoLM(), QUERY, given, budget=room)) == ["other", "same"]


def test_packing_again_counts_single_notes_no_more(tiny_lm: CausalLM) -> None:
    counted: list[Prompt] = []

    class Counting:
        name, window = "counting", 1000

        def count_tokens(self, prompt: Prompt) -> int:
            counted.append(prompt)
            return tiny_lm.count_tokens(prompt)

        def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Any]:
            return []

    lm, given = Counting(), recalls(*(f"note {number}" for number in range(20)))
    pack(lm, QUERY, given)
    counted.clear()
    pack(lm, Query("Who else?", "default"), given)
    assert len(counted) == 2, "the bare question, and the prompt as it is laid out"


@pytest.mark.parametrize(
    "eviction", [None, RecencyOfUse(), Importance(), Refuse(), Summarise(summariser=lambda texts: "in short")]
)
@pytest.mark.parametrize("model", ["echo", "tiny_lm"])
def test_the_context_path_keeps_the_contract(eviction: Any, model: str, request: pytest.FixtureRequest) -> None:
    lm = None if model == "echo" else request.getfixturevalue(model)
    check_path(lambda lm, ledger: InContext(lm, ledger, eviction=eviction), lm=lm)


def test_notes_stand_in_the_order_of_writing_and_earlier_ones_stay_where_they_are(ledger: Ledger) -> None:
    lm = EchoLM()
    path = InContext(lm, ledger)
    prompts = []
    for name in ("one", "two", "three"):
        path.write([item(name)], namespace="default")
        for order in (path.order, "relevance_last"):
            prompts.append(texts(pack(lm, QUERY, path.read([QUERY])[0].recalls, order=order)))
    assert prompts[-1] == prompts[-2] == [item(name).text for name in ("one", "two", "three")]
    assert prompts[0] == prompts[-1][:1]
    assert prompts[2] == prompts[-1][:2]


def notes_path(ledger: Ledger, eviction: Any, room: int, **more: Any) -> InContext:
    """With room for `room` words of notes; an item of n words takes n + 1."""
    lm = EchoLM(window=200)
    return InContext(lm, ledger, budget=room + 3, question_room=0, reserve=0, eviction=eviction, **more)


def test_the_oldest_are_evicted_in_one_chunk_and_the_ledger_says_so(ledger: Ledger) -> None:
    path = notes_path(ledger, Recency(keep=0.7), 50)
    for number in range(10):
        path.write([item(f"n{number}")], namespace="default")
    assert names(path.items(namespace="default")) == [f"n{number}" for number in range(10)], (
        "ten items of five words fill it exactly"
    )
    receipt = path.write([item("n10")], namespace="default")
    assert receipt.ids == ("n10",)
    assert receipt.details["evicted"] == ("n0", "n1", "n2", "n3", "n4")
    assert names(path.items(namespace="default")) == [f"n{number}" for number in range(5, 11)]
    assert ledger.history("n0", namespace="default")[0].reason == "evicted"
    path.write([item("n11")], namespace="default")
    assert len(path.items(namespace="default")) == 7, "the next write finds room"


def test_the_least_trusted_are_evicted_first(ledger: Ledger) -> None:
    path = notes_path(ledger, Importance(keep=0.7), 50)
    path.write([item(f"n{number}", trust=0.1 if number % 2 else 0.9) for number in range(10)], namespace="default")
    path.write([item("new", trust=0.5)], namespace="default")
    assert names(path.items(namespace="default")) == ["n0", "n2", "n4", "n6", "n8", "new"]


def test_what_was_not_used_for_longest_is_evicted_first(ledger: Ledger, tmp_path: Path) -> None:
    path = notes_path(ledger, RecencyOfUse(keep=0.7), 50)
    for number in range(10):
        path.write([item(f"n{number}")], namespace="default")
    before = path.state_hash()
    path.use(["n0", "n2", "never-held"], namespace="default")
    path.write([item("n4")], namespace="default")  # said again
    path.read([QUERY])
    assert path.state_hash() == before, "use changes no answer by itself"
    path.save(tmp_path / "path")
    reopened = notes_path(ledger, RecencyOfUse(keep=0.7), 50)
    reopened.load(tmp_path / "path")
    assert reopened.write([item("new")], namespace="default").details["evicted"] == ("n1", "n3", "n5", "n6", "n7")
    assert names(reopened.items(namespace="default")) == ["n0", "n2", "n4", "n8", "n9", "new"]


def test_importance_is_trust_that_fades_with_disuse() -> None:
    held = [item("old", trust=1.0), item("used", trust=0.6), item("middle", trust=0.6), item("new", trust=0.32)]
    used = {"old": 1, "middle": 2, "new": 3, "used": 4}
    assert names(Importance(half_life=math.inf)(held, used)) == ["new", "middle", "used", "old"]
    assert names(Importance(half_life=1.0)(held, used)) == ["old", "middle", "new", "used"]  # 1/8, .6/4, .32/2, .6
    with pytest.raises(ValueError, match="half_life must be above 0"):
        Importance(half_life=0.0)


def test_what_is_spilled_is_found_by_the_bank_of_the_same_agent(ledger: Ledger) -> None:
    lm = EchoLM(window=200)
    window = InContext(lm, ledger, budget=53, question_room=0, reserve=0, eviction=Spill(place="rag"))
    with Agent(lm, {"icl": window, "rag": Bank(lm, ledger, HashEncoder())}, ledger) as agent:
        facts = [Knowledge(f"n{n}", f"Person{n} lives in town{n}.") for n in range(15)]
        for fact in facts:
            assert agent.learn(fact).ids == (fact.id,), "what moves at once is stored all the same"
        there, here = (names(agent.paths[name].items("default")) for name in ("rag", "icl"))
        assert there == [fact.id for fact in facts[: len(there)]]
        assert there + here == [fact.id for fact in facts]
        assert [entry.reason for entry in ledger.history("n0", namespace="default")] == ["moved", None]
        (reading,) = agent.paths["rag"].read([Query("Where does Person0 live?", "default")])
        assert reading.recalls[0].item == facts[0]
        agent.forget(["n0", facts[-1].id])
        assert {"n0", facts[-1].id}.isdisjoint(item.id for item in agent.items())


def test_an_agent_without_the_path_to_spill_to_is_refused(ledger: Ledger) -> None:
    path = InContext(EchoLM(), ledger, eviction=Spill(place="rag"))
    with pytest.raises(ValueError, match=r"spills to 'rag'.*has the paths \['icl'\]"):
        Agent(EchoLM(), {"icl": path}, ledger)
    with pytest.raises(ValueError, match="cannot spill to itself"):
        InContext(EchoLM(), ledger, eviction=Spill(place="icl"))


def shortly(texts: Sequence[str]) -> str:
    return "in short " + " ".join(text.split()[0] for text in texts)


def summarising(ledger: Ledger, summariser: Any = shortly, **more: Any) -> InContext:
    path = notes_path(ledger, Summarise(summariser=summariser, **more), 50)
    for number in range(11):
        path.write([item(f"n{number}", key=f"k{number}", trust=1 - number / 10)], namespace="default")
    return path


def test_a_summary_stands_for_what_went_and_names_it(ledger: Ledger) -> None:
    path = summarising(ledger)
    assert names(path.items("default"))[:-1] == [f"n{number}" for number in range(5, 11)]
    summary = path.items("default")[-1]
    assert (summary.text, summary.kind, summary.trust) == ("in short n0 n1 n2 n3 n4", "fact", 0.6)
    assert names(path.originals(summary.id, "default")) == ["n0", "n1", "n2", "n3", "n4"]
    assert [one.text for one in path.originals(summary.id, "default")] == [item(f"n{n}").text for n in range(5)]
    with pytest.raises(ValueError, match="no summary 'n5'"):
        path.originals("n5", "default")
    with pytest.raises(ValueError, match="which only summaries have"):
        path.write([item("forged", metadata=dict(summary.metadata))], "default")
    reopened = notes_path(ledger, Summarise(summariser=shortly), 50)
    assert reopened.state_hash() == path.state_hash()


@pytest.mark.parametrize("said", ["", "  \n", "word " * 26, None])
def test_an_empty_or_longer_summary_and_one_that_fails_replace_nothing(
    ledger: Ledger, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def summariser(texts: Sequence[str]) -> str:
        if said is None:
            raise OSError("no network")
        return said

    path = summarising(ledger, summariser)
    assert names(path.items("default")) == [f"n{number}" for number in range(5, 11)]
    assert ledger.history("n0", namespace="default")[-1].reason == "evicted"
    assert ledger.history("n0", namespace="default")[-1].item.text == item("n0").text
    assert ("summary" in caplog.text) is bool(said is None or said.strip())


@pytest.mark.parametrize("change", ["forget", "supersede", "expire", "elsewhere"])
def test_a_summary_goes_when_something_behind_it_no_longer_holds_and_the_rest_comes_back(change: str) -> None:
    now = [10.0]
    with Ledger(clock=lambda: now[0]) as ledger:
        path = notes_path(ledger, Summarise(summariser=shortly, order=Recency(keep=0.4)), 50)
        path.write([item("n0", valid_until=20.0)], "default")
        path.write([item(f"n{number}", key=f"k{number}") for number in range(1, 11)], "default")
        summary = path.items("default")[-1]
        assert path.originals(summary.id, "default")[1].id == "n1"
        if change == "forget":
            assert path.forget(["n1"], "default").ids == ("n1",)
        elif change == "supersede":
            path.write([item("later", key="k1")], "default")
        elif change == "expire":
            now[0] = 30.0
        else:
            ledger.record([item("later", key="k1")], place="rag", namespace="default")
        gone = {"n0"} if change == "expire" else {"n1"}
        shown = path.read([QUERY])[0].recalls
        assert summary.id not in {recall.item.id for recall in shown}, "at once, whoever changed it"
        path.flush()
        behind = [
            original.id
            for one in path.items("default")
            if one.metadata
            for original in path.originals(one.id, "default")
        ]
        held = [*path.items("default"), *ledger.active(place="icl/originals", namespace="default")]
        assert {one.id for one in held} == {*names(path.items("default")), *behind}, "nothing is left behind unseen"
        stay = {f"n{number}" for number in range(11)} - gone | ({"later"} if change == "supersede" else set())
        assert {one.id for one in held if not one.metadata} == stay
        assert not any(id in one.text.split() for one in held for id in gone)


def test_a_summary_of_summaries_reaches_down_to_all_originals(ledger: Ledger) -> None:
    path = summarising(ledger)
    for number in range(11, 40):
        path.write([item(f"n{number}")], "default")
    held = path.items("default")
    summaries = [one for one in held if one.metadata]
    originals = [one for summary in summaries for one in path.originals(summary.id, "default")]
    behind = [one.id for one in originals if not one.metadata]
    assert len(behind) < len(originals), "some stand for summaries in turn"
    assert sorted([*behind, *(one.id for one in held if not one.metadata)]) == sorted(f"n{n}" for n in range(40))
    path.forget(["n0"], "default")
    texts_left = [one.text for one in (*path.items("default"), *ledger.active(namespace="default"))]
    assert not any("n0" in text.split() for text in texts_left)
    path.forget([one.id for one in path.items("default")], "default")
    assert ledger.active(namespace="default") == [], "a summary is forgotten together with what it stands for"


def test_the_model_of_the_window_summarises_where_nothing_else_is_given(ledger: Ledger) -> None:
    lm = EchoLM(window=200)
    path = InContext(
        lm, ledger, budget=60, question_room=0, reserve=0, eviction=Summarise(instruction="Which note is short?")
    )
    path.write([Knowledge("short", "A short note")], "default")
    for number in range(12):
        path.write([item(f"n{number}")], "default")
    assert "A short note" in [one.text for one in path.items("default") if one.metadata], "what it answered"


def test_originals_of_a_summary_may_live_in_the_bank(ledger: Ledger) -> None:
    path = summarising(ledger, place="rag")
    bank = Bank(EchoLM(), ledger, HashEncoder())
    assert names(bank.items("default")) == ["n0", "n1", "n2", "n3", "n4"]
    summary = path.items("default")[-1]
    bank.forget(["n2"], "default")
    assert summary not in path.items("default")
    bank.close()


@pytest.mark.parametrize("eviction", [Recency(), RecencyOfUse(), Importance(), Spill(), Summarise(summariser=shortly)])
def test_random_writes_never_outgrow_the_notes_and_lose_only_what_the_ledger_says(
    tiny_lm: CausalLM, eviction: Any
) -> None:
    source = random.Random(0)
    with Ledger() as ledger:
        path = InContext(tiny_lm, ledger, budget=220, eviction=eviction)
        for step in range(60):
            words = " ".join(source.choices(["on", "the", "日本", "inner", "</s>", "x" * 9], k=source.randint(1, 8)))
            key = f"k{source.randint(0, 20)}" if source.random() < 0.5 else ""
            path.write([Knowledge(f"n{step}", words, key=key, trust=source.random())], "default")
            if source.random() < 0.2:
                path.forget([f"n{source.randint(0, step)}"], "default")
            path.use([f"n{source.randint(0, step)}"], "default")
            notes = tuple(one.text for one in path.items("default"))
            summaries = [one.id for one in path.items("default") if one.metadata]
            behind = {original.id for id in summaries for original in path.originals(id, "default")}
            assert behind == set(names(ledger.active(place="icl/originals", namespace="default")))
            assert tiny_lm.count_tokens(Prompt("", notes)) <= path.note_budget
        reasons = {
            entry.reason for n in range(60) for entry in ledger.history(f"n{n}", namespace="default") if entry.reason
        }
        expected = "moved" if isinstance(eviction, Spill | Summarise) else "evicted"
        assert reasons & {"moved", "evicted"} == {expected}


def test_an_item_that_alone_nearly_fills_the_budget_is_kept(ledger: Ledger) -> None:
    path = notes_path(ledger, Recency(keep=0.5), 50)
    receipt = path.write([item("small"), item("large", words=48)], namespace="default")
    assert receipt.ids == ("large",), "what was evicted at once is not acknowledged"
    assert names(path.items(namespace="default")) == ["large"]


def test_an_item_larger_than_the_budget_is_refused_and_harms_nothing(ledger: Ledger) -> None:
    path = notes_path(ledger, Recency(), 50)
    path.write([item("kept")], namespace="default")
    before = path.state_hash()
    with pytest.raises(TooLarge, match=r"'huge' needs 64 tokens.* has 53 for notes") as refused:
        path.write([item("good"), item("huge", words=60)], namespace="default")
    assert refused.value.items == ("huge",), "the others may be tried again without it"
    assert names(path.items(namespace="default")) == ["kept"]
    assert path.state_hash() == before


def test_a_path_that_refuses_to_evict_refuses_the_write_and_keeps_what_it_has(ledger: Ledger) -> None:
    path = notes_path(ledger, Refuse(), 50)
    path.write([item(f"n{number}") for number in range(10)], namespace="default")
    position = ledger.position()
    with pytest.raises(TooLarge, match=r"11 notes need 58 tokens.* has 53"):
        path.write([item("n10")], namespace="default")
    assert len(path.items(namespace="default")) == 10
    assert ledger.position() == position, "nothing of the refused write reached the ledger"
    ledger.record([item("other")], place="icl", namespace="default")
    with pytest.raises(TooLarge, match="11 notes"):
        notes_path(ledger, Refuse(), 50)


@pytest.mark.parametrize("eviction", [Recency(), Refuse()])
def test_a_path_admits_what_it_could_hold_and_nothing_changes_by_asking(ledger: Ledger, eviction: Any) -> None:
    path = notes_path(ledger, eviction, 50)
    path.write([item("kept")], namespace="default")
    before = path.state_hash()
    path.admit([item(f"n{number}") for number in range(9)], namespace="default")
    with pytest.raises(TooLarge):
        path.admit([item("small"), item("large", words=46)], namespace="default")
    with pytest.raises(TooLarge, match="holds nothing"):
        NoMemory(EchoLM(), ledger).admit([item("small")], namespace="default")
    assert path.state_hash() == before


def test_a_superseding_item_needs_only_the_room_of_its_predecessor(ledger: Ledger) -> None:
    path = notes_path(ledger, Refuse(), 50)
    path.write([item(f"n{number}", key=f"k{number}") for number in range(10)], namespace="default")
    path.write([item("n10", key="k3")], namespace="default")
    assert names(path.items(namespace="default"))[-1] == "n10"
    assert len(path.items(namespace="default")) == 10


def test_a_path_that_refuses_to_evict_leaves_no_note_out_for_a_long_question(ledger: Ledger) -> None:
    path = notes_path(ledger, Refuse(), 50)
    path.write([item(f"n{number}") for number in range(9)], namespace="default")
    assert len(path.read([Query("a b c", "default")])[0].recalls) == 9
    with pytest.raises(TooLarge, match="leave none of them out"):
        path.read([Query("a b c d e f", "default")])
    with pytest.raises(TooLarge, match="budget is 20"):
        path.read([Query("a", "default", token_budget=20)])


def test_room_for_the_question_is_kept_so_that_notes_are_the_same_for_every_question(ledger: Ledger) -> None:
    lm = EchoLM(window=100)
    path = InContext(lm, ledger, reserve=10, question_room=20)
    for number in range(40):
        path.write([item(f"n{number}")], namespace="default")
    packed = [
        texts(pack(lm, query, reading.recalls, reserve=10))
        for queries in [[Query("w " * words, "default") for words in (1, 10, 20)]]
        for query, reading in zip(queries, path.read(queries), strict=True)
    ]
    assert packed[0] == packed[1] == packed[2] == [note.text for note in path.items(namespace="default")]


def test_items_that_came_otherwise_are_evicted_on_flush_and_on_opening(ledger: Ledger) -> None:
    path = notes_path(ledger, Recency(), 50)
    ledger.record([item(f"n{number}") for number in range(11)], place="elsewhere", namespace="default")
    ledger.move([f"n{number}" for number in range(11)], source="elsewhere", target="icl", namespace="default")
    path.flush()
    assert len(path.items(namespace="default")) == 6
    ledger.record([item(f"m{number}") for number in range(5)], place="icl", namespace="default")
    assert len(notes_path(ledger, Recency(), 50).items(namespace="default")) <= 10


def test_evicted_items_are_superseded_elsewhere_as_any_other(ledger: Ledger) -> None:
    path = notes_path(ledger, Recency(), 50)
    path.write([item("old", key="k")], namespace="default")
    ledger.record([item("new", key="k")], place="elsewhere", namespace="default")
    assert path.items(namespace="default") == []


def test_questions_about_the_past_see_the_past() -> None:
    now = [10.0]
    with Ledger(clock=lambda: now[0]) as ledger:
        path = InContext(EchoLM(), ledger)
        path.write([Knowledge("a", "Ada lives in Oslo.", key="ada")], namespace="default")
        now[0] = 20.0
        path.write([Knowledge("b", "Ada lives in Bergen.", key="ada")], namespace="default")
        past, present = path.read([replace(QUERY, as_of=15.0), QUERY])
        assert [recall.item.id for recall in past.recalls] == ["a"]
        assert [recall.item.id for recall in present.recalls] == ["b"]


def test_answers_reuse_the_frozen_notes(make_tiny_lm: Callable[..., CausalLM], ledger: Ledger) -> None:
    lm = make_tiny_lm()
    path = InContext(lm, ledger)
    path.write(
        [Knowledge(f"n{number}", f"Person {number} lives in town {number % 7}.") for number in range(20)],
        namespace="default",
    )
    queries = [Query(f"Where does person {number} live?", "default") for number in range(10)]
    prompts = [
        Prompt(query.text, tuple(texts(pack(lm, query, reading.recalls))))
        for query, reading in zip(queries, path.read(queries), strict=True)
    ]
    read: list[int] = []
    lm.module.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    with path.model(lm) as model:
        model.generate(prompts, max_new_tokens=1)
    assert sum(read) < 0.35 * sum(lm.count_tokens(prompt) for prompt in prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 481}, "between 1 and 480"),
        ({"budget": 0}, "between 1 and 480"),
        ({"budget": 20}, "no room for notes"),
        ({"question_room": -1}, "question_room"),
        ({"reserve": 600}, "reserve"),
        ({"order": "alphabetical"}, "order must be one of"),
    ],
)
def test_an_impossible_budget_is_refused(ledger: Ledger, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InContext(EchoLM(), ledger, **options)


@pytest.mark.parametrize("policy", [Recency, RecencyOfUse, Importance])
def test_a_share_to_keep_outside_0_to_1_is_refused(policy: Any) -> None:
    for keep in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="keep must be in"):
            policy(keep=keep)


def test_a_path_loads_only_beside_the_ledger_that_it_was_saved_with(ledger: Ledger, tmp_path: Path) -> None:
    path = InContext(EchoLM(), ledger)
    path.write([item("one")], namespace="default")
    path.save(tmp_path / "path")
    with pytest.raises(FileExistsError, match="not empty"):
        path.save(tmp_path / "path")
    path.load(tmp_path / "path")
    with pytest.raises(ValueError, match="same options"):
        InContext(EchoLM(), ledger, budget=100).load(tmp_path / "path")
    path.write([item("two")], namespace="default")
    with pytest.raises(ValueError, match="another state"):
        path.load(tmp_path / "path")
    with pytest.raises(FileNotFoundError, match="no saved path"):
        path.load(tmp_path)


def test_no_memory_keeps_nothing(ledger: Ledger, tmp_path: Path) -> None:
    lm = EchoLM()
    path = NoMemory(lm, ledger)
    assert isinstance(path, MemoryPath)
    assert path.write([item("one")], namespace="default") == Receipt(())
    assert path.items(namespace="default") == []
    assert path.read([QUERY, QUERY]) == [Reading(), Reading()]
    assert path.stored_bytes() == ledger.position() == 0
    with path.model(lm) as model:
        assert model is lm
    path.save(tmp_path / "path")
    path.load(tmp_path / "path")


def test_the_echo_model_reads_and_knows_nothing() -> None:
    lm = EchoLM(window=40)
    notes = ("Ben plays the cello.", "Ada lives in Oslo.", "Ada is tall.")
    first, second, third = lm.generate(
        [Prompt("Where does Ada live in?", notes), Prompt("Where?"), Prompt("Why?", notes)]
    )
    assert (first.text, first.stopped) == ("Ada lives in Oslo.", True)
    assert second.text == third.text == "unknown"
    assert lm.generate([Prompt("Who lives in?", notes)], max_new_tokens=2)[0].text == "Ada lives"
    good, bad = lm.loglikelihood([(Prompt("Where does Ada live in?", notes), answer) for answer in ("Oslo", "Bergen")])
    assert good > bad
    assert isinstance(lm, Generates)
    assert isinstance(lm, Scores)
    with pytest.raises(TooLarge, match="holds 40"):
        lm.generate([Prompt("Who?", notes * 5)])


def broken(name: str, replacement: Callable[..., Any]) -> Callable[[Any, Ledger], Any]:
    """An in-context path with one method replaced by `replacement(path, *arguments)`."""

    def make(lm: Any, ledger: Ledger) -> Any:
        path = InContext(lm, ledger)
        members = {member: getattr(path, member) for member in dir(path) if not member.startswith("__")}
        return SimpleNamespace(**{**members, name: lambda *given, **more: replacement(path, *given, **more)})

    return make


def leak(path: InContext, queries: Sequence[Query]) -> list[Reading]:
    return path.read([replace(query, namespace="default") for query in queries])


def reorder(path: InContext, queries: Sequence[Query]) -> list[Reading]:
    return [replace(reading, recalls=reading.recalls[::-1]) for reading in path.read(queries)]


def read_by_position(path: InContext, queries: Sequence[Query]) -> list[Reading]:
    return [replace(reading, recalls=reading.recalls[place:]) for place, reading in enumerate(path.read(queries))]


def recall_what_is_asked_about(path: InContext, queries: Sequence[Query]) -> list[Reading]:
    return [
        replace(reading, recalls=tuple(recall for recall in reading.recalls if recall.item.id in ids))
        for query, reading in zip(queries, path.read(queries), strict=True)
        for ids in [getattr(query, "ids", names(path.items(namespace="default")))]
    ]


def write_one_by_one(path: InContext, items: Sequence[Knowledge], *namespace: str) -> Receipt:
    for one in items:
        path.write([one], *namespace)
    return Receipt(tuple(item.id for item in items))


LIES: dict[str, tuple[str, Callable[..., Any], str]] = {
    "does not forget": ("forget", lambda path, *_: None, r"forget\(\) drops"),
    "forgets everything": (
        "forget",
        lambda path, _, *space: path.forget(names(path.items(*space)), *space),
        "no others",
    ),
    "gives no receipt of forgetting": (
        "forget",
        lambda path, *given: path.forget(*given) and None,
        "gives a receipt",
    ),
    "says it forgot what it never held": (
        "forget",
        lambda path, ids, *space: path.forget(ids, *space) and Receipt(tuple(ids)),
        "of the ids that were held",
    ),
    "acknowledges nothing": (
        "write",
        lambda path, *given: path.write(*given) and Receipt(()),
        "names the ids",
    ),
    "stores half of a refused write": ("write", write_one_by_one, "not even its good items"),
    "ignores namespaces": (
        "write",
        lambda path, items, *_: path.write(items, namespace="default"),
        "namespaces are kept apart or refused: broken by ValueError",
    ),
    "leaks namespaces": ("read", leak, "own namespace only"),
    "recalls in a wrong order": ("read", reorder, "best first"),
    "reads by position": ("read", read_by_position, "neighbours"),
    "reads the ids": ("read", recall_what_is_asked_about, "whatever the ids and targets"),
    "recalls nothing for no query": ("read", lambda path, queries: path.read(queries) or [Reading()], "no reading"),
    "has a constant state": ("state_hash", lambda path: "constant", "changes state_hash"),
    "has no size": ("stored_bytes", lambda path: 0, "bytes"),
    "lists items backwards": ("items", lambda path, *space: path.items(*space)[::-1], "order of writing"),
    "never closes": ("close", lambda path: None, "closed path refuses"),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_contract_names_the_promise_that_a_path_breaks(lie: str) -> None:
    name, replacement, message = LIES[lie]
    with pytest.raises(AssertionError, match=message):
        check_path(broken(name, replacement))


def test_the_contract_notices_a_model_that_was_told_the_targets() -> None:
    class Prompter(InContext):
        """Recalls honestly, and whispers the targets to its model."""

        def read(self, queries: Sequence[Query]) -> list[Reading]:
            self.heard = [getattr(query, "targets", ()) for query in queries]
            return super().read(queries)

        def model(self, lm: EchoLM) -> Any:
            return nullcontext(Prompted(self.heard))

    class Prompted(EchoLM):
        def __init__(self, heard: Sequence[Sequence[str]]) -> None:
            super().__init__()
            self.heard = heard

        def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Generation]:
            said = super().generate(prompts, max_new_tokens=max_new_tokens)
            return [
                replace(each, text=targets[0]) if targets else each
                for each, targets in zip(said, self.heard, strict=True)
            ]

    with pytest.raises(AssertionError, match="the same queries get the same answers"):
        check_path(Prompter)


def test_the_contract_notices_a_model_that_does_not_come_back_as_it_was(make_tiny_lm: Callable[..., CausalLM]) -> None:
    import contextlib

    import torch

    @contextlib.contextmanager
    def careless(path: InContext, lm: CausalLM) -> Iterator[CausalLM]:
        with torch.no_grad():
            next(lm.module.parameters()).add_(1e-3)
            yield lm
            next(lm.module.parameters()).sub_(1e-3)

    with pytest.raises(AssertionError, match="byte-identical"):
        check_path(broken("model", careless), lm=make_tiny_lm())
