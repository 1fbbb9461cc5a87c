"""Items that say the same become one, near-misses never do, and a merge that is undone leaves no trace in the bank."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from langchain_core.vectorstores import InMemoryVectorStore

from memory_paths.context import InContext
from memory_paths.ledger import Ledger
from memory_paths.retrieval.__main__ import main
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder, SentenceEncoder
from memory_paths.retrieval.langchain import EncoderEmbeddings
from memory_paths.retrieval.merging import Merging, Proposal, merge, merged, undo
from memory_paths.retrieval.merging_figures import Outcome, Pair, calibrate, count, labelled_pairs, share, table
from memory_paths.retrieval.near_misses import differences, rest
from memory_paths.retrieval.vector_store import VectorStorePath
from memory_paths.testing import EchoLM
from memory_paths.types import Knowledge, Query

NAMESPACE = "default"


@pytest.fixture(scope="module")
def merging() -> Merging:
    return Merging(SentenceEncoder())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", clock=Clock()) as ledger:
        yield ledger


def compare(merging: Merging, first: str, second: str, **fields: Any) -> Proposal:
    (found,) = merging.compare([(Knowledge("a", first), Knowledge("b", second, **fields))])
    return found


# The guard


@pytest.mark.parametrize(
    ("first", "second", "veto"),
    [
        ("The bridge has 3 lanes.", "The bridge has 4 lanes.", "number"),
        ("The bridge has three lanes.", "The bridge has four lanes.", "number"),
        ("It costs 1,000 francs.", "It costs 10,000 francs.", "number"),
        ("He died on 4 May 1945.", "He died on 5 May 1945.", "number"),
        ("He died in May.", "He died in June.", "date"),
        ("Ada lives in Oslo.", "Ada does not live in Oslo.", "negation"),
        ("Ada lives in Oslo.", "Ada doesn't live in Oslo.", "negation"),
        ("Ada lives in Oslo.", "Ada no longer lives in Oslo.", "negation"),
        ("Ada lives in Oslo.", "It is claimed that Ada lives in Oslo.", "negation"),
        ("Ada lives in Oslo.", "Ada lives in Oslo. Only in dreams.", "negation"),
        ("Ada lives in Oslo.", "Ada lives in Bergen.", "name"),
        ("Ada lives in Oslo.", "Bob lives in Oslo.", "name"),
        ("Ada Byron lives in Oslo.", "Ada King lives in Oslo.", "name"),
        ("Oslo Festival is in Oslo.", "Oslo Festival is in Bergen.", "name"),
        ("All cats sleep.", "Some cats sleep.", "quantifier"),
        ("I like tea.", "You like tea.", "person"),
        ("Who is the mother of Ada?", "Who is the father of Ada?", "opposite"),
        ("Oslo is part of Norway.", "Norway is part of Oslo.", "order"),
        ("Oslo Festival is located in Oslo.", "Oslo is located in Oslo Festival.", "order"),
        ("The capital of Norway is Oslo.", "The capital of Oslo is Norway.", "order"),
        ("It was -5 degrees.", "It was 5 degrees.", "number"),
        ("They won 3:1.", "They won 1:3.", "number"),
        ("She has twenty-one hens.", "She has twenty-two hens.", "number"),
        ("The office is on the 3rd floor.", "The office is on the fourth floor.", "number"),
        ("Henry IV was crowned.", "Henry VI was crowned.", "number"),
        ("take 3 mg a day", "take 3 g a day", "number"),
        ("the train leaves at 8:15 am", "the train leaves at 8:15 pm", "number"),
        ("run it with --dry-run", "run it with --force", "number"),
        ("write to a.berg@example.org", "write to e.berg@example.org", "number"),
        ("the list has at least 3 names", "the list has at most 3 names", "quantifier"),
        ("the fee is paid if it rains", "the fee is paid even if it rains", "quantifier"),
        ("the mushroom is edible", "the mushroom is inedible", "negation"),
        ("the paint is toxic", "the paint is non-toxic", "negation"),
        ("she is the trainee", "she is the trainer", "negation"),
        ("the pan is harmful", "the pan is harmless", "negation"),
        ("we meet on monday", "we meet on tuesday", "opposite"),
        ("the lamp hangs above the desk", "the lamp hangs below the desk", "opposite"),
        ("the bus goes to Oslo", "the bus goes from Oslo", "opposite"),
        ("she plays the piano", "she plays the harpsichord", "word"),
        ("she owns a boat", "she owned a boat", "tense"),
        ("the mill is a museum", "the mill was a museum", "tense"),
        ("Ada hired Bob.", "Ada was hired by Bob.", "order"),
        ("On Monday Ada saw Bob.", "Ada was seen by Bob on Monday.", "order"),
        ("Ada stayed because Bob left.", "Ada left because Bob stayed.", "order"),
        ("Ada's boss is Bob.", "Bob's boss is Ada.", "order"),
        ("he told her", "she told him", "person"),
        ("Anna is allergic to nuts.", "Anna is allergic to nuts and shellfish.", "addition"),
        ("Die Katze schläft im Haus.", "Die Katze schläft nicht im Haus.", "addition"),
        ("Иван любит кофе.", "Иван не любит кофе.", "addition"),
        ("Is Ada home?", "Ada is home.", "addition"),
        ("I like C", "I like C++", "number"),
        ("かぎ", "かき", "word"),
    ],
)
def test_a_near_miss_is_vetoed_for_what_it_differs_in(first: str, second: str, veto: str) -> None:
    assert veto in differences(first, second)
    assert set(differences(first, second)) == set(differences(second, first))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("He died on 4 May 1945.", "He died on May 4th, 1945."),
        ("He died on 4 May 1945.", "He died on 1945-05-04."),
        ("It costs 1,000 francs.", "It costs 1000 francs."),
        ("There are three bridges.", "There are 3 bridges."),
        ("Zoë's mother tongue is French.", "French is the mother tongue of Zoe."),
        ("Oslo borders with Bergen.", "Bergen borders with Oslo."),
        ("Ada plays the piano.", "Ada is a piano player."),
        ("What war did Ada fight in? World War II", "In what war did Ada fight? World War II"),
        ("She has twenty-one hens.", "She has 21 hens."),
        ("a dozen eggs are left", "12 eggs are left"),
        ("the train leaves at 8:15 pm", "the train leaves at 20:15"),
        ("tea is at a quarter past four", "tea is at 4:15"),
        ("take 3mg a day", "take 3 milligrams a day"),
        ("it costs $5", "it costs 5 dollars"),
        ("the list has at least 3 names", "the list has 3 or more names"),
        ("he has to leave on 4 May", "he must leave on May 4th"),
        ("a big house", "a large house"),
        ("Ada hired Bob.", "Bob was hired by Ada."),
        ("Zoë lives in Oslo.", "Zoe is located in Oslo."),
        ("The fair of 1815 in Oslo was large.", "The 1815 fair in Oslo was large."),
        ("Rice is Ada's favourite food.", "Ada's favourite food is rice."),
    ],
)
def test_another_way_to_write_the_same_is_not_vetoed(first: str, second: str) -> None:
    assert differences(first, second) == ()


@pytest.mark.parametrize("part", ["a", "9", "--", "hundred ", "a.b.", "x/", "if ", "1 ", "a'b", "(", "# "])
def test_a_text_of_whatever_form_is_read(part: str) -> None:
    text = part * (8000 // len(part))
    assert differences(text, text) == ()
    assert differences(text, f"{text} Oslo")


def test_the_rest_is_what_the_other_text_does_not_say() -> None:
    assert rest("Ada works for Apple.", "Ada is employed by Apple.") == ("works", "employed")
    assert rest("statistics is part of statistics", "statistics is part of law") == ("statistics", "law")
    assert rest("Ada lives in Oslo.", "Ada lives in Oslo, 12 years.")[0] == ""


# Proposals


def test_a_rephrasing_is_merged_and_a_neighbour_is_not(merging: Merging) -> None:
    found = compare(merging, "The mother tongue of Ada is Norwegian.", "Ada's native language is Norwegian.")
    assert found.automatic
    assert found.score > 0.9
    assert not compare(merging, "Ada plays the trumpet.", "Ada plays the violin.").automatic
    assert not compare(merging, "A cat sleeps.", "An engine burns fuel.").automatic
    vetoed = compare(merging, "Ada was born in 1815.", "Ada was born in 1816.")
    assert (vetoed.score, vetoed.vetoes, vetoed.automatic) == (0.0, ("number", "word"), False)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "lesson"},
        {"key": "ada/city"},
        {"cue": "where?"},
        {"valid_until": 5.0},
        {"metadata": {"tenant": 2}},
    ],
)
def test_items_that_are_found_or_hold_otherwise_stay_two(merging: Merging, fields: dict[str, Any]) -> None:
    found = compare(merging, "Ada lives in Oslo.", "Ada lives in Oslo!", **fields)
    assert found.vetoes == tuple(fields)
    assert not found.automatic


def test_the_more_trusted_item_is_kept_and_else_the_first(merging: Merging) -> None:
    pair = Knowledge("a", "Ada lives in Oslo.", trust=0.5), Knowledge("b", "Ada lives in Oslo!", trust=0.5)
    (equal,) = merging.compare([pair])
    (trusted,) = merging.compare([(pair[0], replace(pair[1], trust=0.9))])
    assert (equal.kept.id, equal.dropped.id) == ("a", "b")
    assert (trusted.kept.id, trusted.dropped.id) == ("b", "a")


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        Merging(HashEncoder(), threshold=2)


# Merging and undoing

ITEMS = [
    Knowledge("cat", "The cat sleeps on the sofa all day."),
    Knowledge("tongue", "The mother tongue of Ada is Norwegian.", source="mail"),
    Knowledge("bread", "Sourdough rises without any baker's yeast."),
    Knowledge("native", "Ada's native language is Norwegian.", source="chat", trust=0.7),
    Knowledge("tongue-2", "The mother tongue of Ada is Norwegian!"),
    Knowledge("bob", "The mother tongue of Bob is Norwegian."),
]


def state(ledger: Ledger, bank: Bank) -> str:
    """All that the bank tells of itself, and every column of the rows at its place."""
    rows = ledger._rows("place = ? ORDER BY version", bank.name)
    (reading,) = bank.read([Query("What is Ada's mother tongue?", NAMESPACE)])
    return json.dumps(
        [
            bank.state_hash(),
            [item.to_json() for item in bank.items(NAMESPACE)],
            [[recall.item.to_json(), recall.score] for recall in reading.recalls],
            [dict(row) for row in rows],
        ]
    )


def test_merged_items_are_found_once_and_undoing_leaves_the_same_bytes(merging: Merging, ledger: Ledger) -> None:
    bank, merges = Bank(None, ledger, merging._encoder), ledger
    bank.write(ITEMS, NAMESPACE)
    before = state(ledger, bank)
    proposals = [proposal for proposal in merging.propose(bank, NAMESPACE) if proposal.automatic]
    pairs = {frozenset((proposal.kept.id, proposal.dropped.id)) for proposal in proposals}
    assert pairs == {frozenset(pair) for pair in (("tongue", "native"), ("tongue", "tongue-2"), ("native", "tongue-2"))}
    assert [proposal.score for proposal in proposals] == sorted((one.score for one in proposals), reverse=True)

    dropped = merge(merges, proposals, place=bank.name, namespace=NAMESPACE)
    assert set(dropped) == {"native", "tongue-2"}
    assert merged(merges, place=bank.name, namespace=NAMESPACE) == dict.fromkeys(dropped, "tongue")
    assert [item.id for item in bank.items(NAMESPACE)] == ["cat", "tongue", "bread", "bob"]
    assert state(ledger, bank) != before
    assert ledger.history("native", namespace=NAMESPACE)[0].superseded_by == "tongue"

    back = undo(merges, dropped, place=bank.name, namespace=NAMESPACE)
    assert back == dropped
    assert state(ledger, bank) == before
    assert merged(merges, place=bank.name, namespace=NAMESPACE) == {}
    assert (ledger.verify(), bank.verify()) == ([], [])

    reopened = Bank(None, ledger, merging._encoder)
    assert state(ledger, reopened) == before
    assert set(merge(merges, proposals, place=bank.name, namespace=NAMESPACE)) == {"native", "tongue-2"}, "and again"


@pytest.mark.parametrize("kind", ["bank", "vector store", "window"])
def test_what_was_merged_is_forgotten_with_what_stands_for_it(merging: Merging, ledger: Ledger, kind: str) -> None:
    path: Any = Bank(None, ledger, merging._encoder)
    if kind == "vector store":
        path = VectorStorePath(None, ledger, InMemoryVectorStore(EncoderEmbeddings(merging._encoder)))
    elif kind == "window":
        path = InContext(EchoLM(window=1024), ledger)
    whose = {"place": path.name, "namespace": NAMESPACE}
    path.write(ITEMS, NAMESPACE)
    first, second = merging.compare([(ITEMS[1], ITEMS[4]), (ITEMS[1], ITEMS[3])])
    assert merge(ledger, [replace(first, kept=ITEMS[4], dropped=ITEMS[1])], **whose) == ("tongue",)
    assert merge(ledger, [replace(second, kept=ITEMS[3], dropped=ITEMS[4])], **whose, reviewed=True) == ("tongue-2",)
    assert path.forget(["native"], NAMESPACE).ids == ("native",)
    assert merged(ledger, **whose) == {}
    (past,) = path.read([Query("What is Ada's mother tongue?", NAMESPACE, as_of=time.time())])
    assert {recall.item.id for recall in past.recalls} == {"cat", "bread", "bob"}
    assert ledger.compact() >= 3
    assert not [version for version in ledger.history("tongue", namespace=NAMESPACE) if "Norwegian" in version.text]


@pytest.mark.parametrize(
    "again",
    [
        Knowledge("native", "Ada lives in Oslo.", valid_from=1e9),
        Knowledge("native", "Ada lives in Oslo.", key="ada/home"),
        Knowledge("native", "Ada lives in Oslo.", valid_until=2_000.0),
    ],
    ids=["of the future", "replaced by its key", "expired"],
)
def test_what_was_written_under_a_merged_id_since_is_none_of_the_merge(
    merging: Merging, tmp_path: Path, again: Knowledge
) -> None:
    clock = Clock(1_000.0)
    with Ledger(tmp_path / "other.sqlite", clock=clock) as ledger:
        bank = Bank(None, ledger, merging._encoder)
        whose = {"place": bank.name, "namespace": NAMESPACE}
        bank.write(ITEMS, NAMESPACE)
        merge(ledger, merging.compare([(ITEMS[1], ITEMS[3])]), **whose)
        bank.write([again], NAMESPACE)
        if again.key:
            bank.write([Knowledge("home", "Ada lives in Bergen.", key="ada/home")], NAMESPACE)
        clock.now = 3_000.0
        assert merged(ledger, **whose) == {}
        with pytest.raises(ValueError, match="were not merged"):
            undo(ledger, ["native"], **whose)
        before = [one for one in ledger.history("native", namespace=NAMESPACE) if one.text == again.text]
        assert bank.forget(["tongue"], NAMESPACE).ids == ("tongue",)
        kept, gone = ledger.history("native", namespace=NAMESPACE)[-1], ledger.history("native", namespace=NAMESPACE)[0]
        assert [kept] == before, "as it stood"
        assert gone.reason == "forgotten", "what was merged"


def test_an_item_that_is_learnt_again_is_merged_no_longer(merging: Merging, ledger: Ledger) -> None:
    bank = Bank(None, ledger, merging._encoder)
    whose = {"place": bank.name, "namespace": NAMESPACE}
    bank.write(ITEMS, NAMESPACE)
    merge(ledger, merging.compare([(ITEMS[1], ITEMS[3])]), **whose)
    bank.write([ITEMS[3]], NAMESPACE)
    assert merged(ledger, **whose) == {}
    bank.forget(["tongue"], NAMESPACE)
    assert "native" in {item.id for item in bank.items(NAMESPACE)}
    with pytest.raises(ValueError, match="were not merged"):
        undo(ledger, ["native"], **whose)


def test_a_merge_whose_item_has_gone_is_passed_over_and_one_with_a_veto_is_refused(
    merging: Merging, ledger: Ledger
) -> None:
    bank, merges = Bank(None, ledger, HashEncoder()), ledger
    bank.write(ITEMS, NAMESPACE)
    (rightly,) = merging.compare([(ITEMS[1], ITEMS[3])])
    bank.forget(["tongue"], NAMESPACE)
    assert merge(merges, [rightly], place=bank.name, namespace=NAMESPACE) == ()
    assert "native" in {item.id for item in bank.items(NAMESPACE)}
    (vetoed,) = merging.compare([(ITEMS[3], ITEMS[5])])
    with pytest.raises(ValueError, match="'bob' and 'native' differ in name"):
        merge(merges, [vetoed], place=bank.name, namespace=NAMESPACE)
    unsure = replace(rightly, automatic=False)
    with pytest.raises(ValueError, match="not surely the same"):
        merge(merges, [unsure], place=bank.name, namespace=NAMESPACE)
    with pytest.raises(ValueError, match="were not merged"):
        undo(merges, ["cat"], place=bank.name, namespace=NAMESPACE)


def test_what_is_yet_to_be_written_is_proposed_against_what_is_held(merging: Merging, ledger: Ledger) -> None:
    bank = Bank(None, ledger, merging._encoder)
    bank.write(ITEMS[:3], NAMESPACE)
    found = merging.propose(
        bank, NAMESPACE, [Knowledge("new", "Norwegian is Ada's native language."), ITEMS[5]], least=0.0
    )
    assert {(one.kept.id, one.dropped.id) for one in found if one.score > 0.5} == {("tongue", "new")}


def test_the_command_tells_pairs_merges_the_sure_ones_and_takes_it_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "facts.sqlite"
    with Ledger(file) as ledger:
        ledger.record(ITEMS, place="rag", namespace="default")

    def command(*options: str) -> list[Any]:
        assert main(["merge", str(file), *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    told = command()
    assert {(one["kept"]["id"], one["dropped"]["id"]) for one in told if one["automatic"]} >= {("tongue", "native")}
    *again, done = command("--apply")
    assert again == told
    assert set(done["merged"]) == {"native", "tongue-2"}
    assert command("--undo", "native", "tongue-2") == [{"held_again": ["native", "tongue-2"]}]
    assert command() == told
    assert command("--only", "native")[-1] == {"merged": ["native"]}
    with pytest.raises(SystemExit):
        main(["merge", str(file), "--only", "cat"])
    assert "no pair of a score of at least 0.5 would drop ['cat']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge", str(file), "--folder", str(tmp_path / "index")])
    assert "index is damaged or missing" in capsys.readouterr().err
    with Ledger(file) as ledger, closing(Bank(None, ledger, SentenceEncoder(), folder=tmp_path / "index")) as bank:
        bank.flush()
    command("--undo", "native")
    assert command("--folder", str(tmp_path / "index")) == told
    with pytest.raises(SystemExit):
        main(["merge", str(file), "--undo", "bread"])
    assert "were not merged" in capsys.readouterr().err


# The figures


def test_the_labelled_pairs_are_many_and_no_source_is_in_both_halves(data_folder: Path) -> None:
    pairs = labelled_pairs(data_folder)
    assert len(pairs) >= 2000
    assert {"number", "date", "negation", "entity"} <= {pair.kind for pair in pairs if pair.held_out}
    halves = [{pair.source for pair in pairs if pair.held_out is half} for half in (True, False)]
    assert not halves[0] & halves[1]
    assert pairs == labelled_pairs(data_folder)


def test_near_misses_of_real_texts_are_vetoed_and_rephrasings_are_not(data_folder: Path) -> None:
    counted = {"rephrasing": [0, 0], "number": [0, 0], "date": [0, 0], "negation": [0, 0], "entity": [0, 0]}
    for pair in labelled_pairs(data_folder):
        if pair.held_out and pair.kind in counted:
            counted[pair.kind][0] += 1
            counted[pair.kind][1] += bool(differences(pair.first, pair.second))
    vetoed = {kind: count / total for kind, (total, count) in counted.items()}
    assert vetoed["rephrasing"] < 0.1  # the price of what the guard cannot tell from a rival
    assert min(vetoed["number"], vetoed["date"]) == 1.0
    assert min(vetoed["entity"], vetoed["negation"]) > 0.9


def test_the_guard_knows_most_near_misses_of_everyday_sentences(data_folder: Path) -> None:
    pairs = [pair for pair in labelled_pairs(data_folder) if pair.kind.startswith("everyday/") and not pair.same]
    for held_out, least in ((False, 0.95), (True, 0.9)):
        found = [bool(differences(pair.first, pair.second)) for pair in pairs if pair.held_out is held_out]
        assert len(found) >= 700
        assert sum(found) / len(found) > least


def test_the_threshold_is_the_lowest_that_keeps_the_precision() -> None:
    pairs = [Pair("a", "b", same, "made", str(number), False) for number, same in enumerate([1, 1, 0, 1, 1, 0, 0, 0])]
    features = [(1 - number / 10, 1.0) for number in range(8)]
    sure, loose = (calibrate(pairs, features, precision=precision).threshold for precision in (1.0, 0.75))
    weights = calibrate(pairs, features, precision=1.0).weights
    assert weights[1] > 0
    assert sure > loose
    with pytest.raises(ValueError, match="no threshold gives"):
        calibrate([replace(pair, same=not pair.same) for pair in pairs[:2]] + pairs[2:], features, precision=1.01)


def test_the_table_counts_what_was_merged() -> None:
    pairs = [Pair("a", "b", True, "rephrasing", "1", True), Pair("a", "c", False, "entity", "1", True)]
    outcomes = [Outcome(vetoed=False, merged=True), Outcome(vetoed=True, merged=False)]
    assert str(count(pairs, outcomes, everyday=False)).startswith("2 pairs, 1 of them the same; merged 1, 1 of them")
    assert count(pairs, outcomes, everyday=True).pairs == 0
    assert table(pairs, outcomes).splitlines()[-2:] == ["| rephrasing | 1 | 0 | 1 |", "| entity | 1 | 1 | 0 |"]
    assert share(95, 100) == "0.950 [0.888 0.978]"  # Wilson's interval, as in Newcombe 1998
