"""The ledger loses nothing, brings nothing back, and says clearly what is wrong with its input or its file."""

from __future__ import annotations

import math
import random
import re
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BERGEN, OSLO, Clock, full_disk, run

from memory_paths.database import damage
from memory_paths.ledger import Ledger, LedgerError
from memory_paths.types import Knowledge, Phrasing

TEA = Knowledge("ada-3", "Ada likes tea.")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock):
    with Ledger(tmp_path / "ledger.sqlite", clock=clock) as ledger:
        yield ledger
        assert ledger.verify() == []


def texts(items: list[Knowledge]) -> list[str]:
    return [item.text for item in items]


def test_items_come_back_whole_and_in_order_after_reopening(tmp_path: Path) -> None:
    full = Knowledge(
        "x", "Snowman ☃, 'quotes' and\nlines", "lesson", "k", (Phrasing("a", "b"),), "book", 0.5, 1.0, 4e12
    )
    with Ledger(tmp_path / "deep" / "er" / "ledger.sqlite") as ledger:
        ledger.record([TEA, full], place="rag", namespace="default")
    with Ledger(tmp_path / "deep" / "er" / "ledger.sqlite") as ledger:
        assert ledger.active(place="rag") == [TEA, full]


def test_writing_an_active_id_again_changes_nothing(ledger: Ledger) -> None:
    assert ledger.record([OSLO, OSLO], place="rag", namespace="default").written == (OSLO,)
    position = ledger.position()
    assert ledger.record([OSLO], place="rag", namespace="default").written == ()
    assert ledger.position() == position


@pytest.mark.parametrize("history", range(20))
def test_what_would_be_new_and_held_is_foreseen_and_nothing_stored(ledger: Ledger, clock: Clock, history: int) -> None:
    chance = random.Random(history)
    for step in range(12):
        clock.now += chance.choice([0.5, 5.0])
        ago, ahead = clock.now - chance.uniform(0, 20), clock.now + 3
        validities = [(None, None), (None, ago), (None, ahead), (ago, None), (ahead, None), (ago, ahead)]
        items = []
        for number in range(chance.randint(1, 4)):
            since, until = chance.choice(validities)
            id = f"{step}/{number}" if chance.random() < 0.7 else f"{chance.randrange(6)}"
            text, key = chance.choice(["Said.", "Said.", "Said again."]), chance.choice(["", "a", "b"])
            items.append(Knowledge(id, text, key=key, valid_from=since, valid_until=until))
        position = ledger.position()
        try:
            foreseen = ledger.foresee(items, place="rag", namespace="default")
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                ledger.record(items, place="rag", namespace="default")
            continue
        assert ledger.position() == position
        versions = ledger.record(items, place="rag", namespace="default").versions
        stands = ledger.get(version.version for version in versions).values()
        assert foreseen == tuple(version.item.id for version in stands if version.reason is None)


def test_another_text_under_an_active_id_is_refused_and_nothing_of_the_batch_is_stored(ledger: Ledger) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    with pytest.raises(ValueError, match=r"'ada-1' is active .* with other content"):
        ledger.record([TEA, replace(OSLO, text="Ada lives in Rome.")], place="rag", namespace="default")
    with pytest.raises(ValueError, match="with other content"):
        ledger.record([replace(OSLO, text="Ada lives in Rome.")], place="icl", namespace="default")
    assert ledger.active() == [OSLO]


def test_a_later_item_with_the_same_key_supersedes_at_any_place(ledger: Ledger) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    assert ledger.record([BERGEN], place="icl", namespace="default").superseded == ("ada-1",)
    assert ledger.active() == [BERGEN]
    (old,) = ledger.history("ada-1", namespace="default")
    assert (old.text, old.reason, old.superseded_by, old.place) == (OSLO.text, "superseded", "ada-2", "rag")


def test_oslo_then_bergen_then_oslo_again_ends_in_oslo(ledger: Ledger) -> None:
    for item in (OSLO, BERGEN, OSLO):
        ledger.record([item], place="rag", namespace="default")
    assert ledger.active() == [OSLO]
    assert [version.version for version in ledger.history("ada-1", namespace="default")] == [1, 3]


def test_versions_and_namespaces_are_found_by_how_ids_begin(ledger: Ledger) -> None:
    other = Knowledge("ada\U0010fffe", "Ada is the last.")
    ledger.record([OSLO, BERGEN, TEA, Knowledge("bob", "Bob is here."), other], place="rag", namespace="default")
    ledger.record([TEA], place="rag", namespace="guest")
    ledger.record([OSLO], place="icl", namespace="elsewhere")
    found = ledger.beginning("ada", place="rag", namespace="default")
    assert [(version.item, version.reason) for version in found] == [
        (OSLO, "superseded"),
        (BERGEN, None),
        (TEA, None),
        (other, None),
    ]
    assert ledger.namespaces(place="rag") == ledger.namespaces(place="rag", holding="") == ("default", "guest")
    assert ledger.namespaces(place="rag", holding="b") == ("default",)
    ledger.remove(["ada-1", "ada-3"], place="rag", namespace="default", reason="forgotten")
    ledger.remove(["ada-3"], place="rag", namespace="guest", reason="forgotten")
    assert [version.item for version in ledger.beginning("ada-", place="rag", namespace="default")] == [BERGEN]
    assert ledger.namespaces(place="rag", holding="") == ("default",)
    assert ledger.namespaces(place="rag") == ("default", "guest")
    with pytest.raises(ValueError, match="namespace must be a non-empty string"):
        ledger.beginning("ada", place="rag", namespace="")


def test_within_one_batch_the_last_item_of_a_key_holds(ledger: Ledger) -> None:
    assert ledger.record([OSLO, TEA, BERGEN], place="rag", namespace="default").superseded == ("ada-1",)
    assert ledger.active() == [TEA, BERGEN]


def test_keys_and_ids_of_another_namespace_are_untouched(ledger: Ledger) -> None:
    ledger.record([OSLO], place="rag", namespace="a")
    ledger.record([BERGEN, replace(OSLO, key="", text="Other text.")], place="rag", namespace="b")
    assert ledger.active(namespace="a") == [OSLO]


def test_as_of_gives_what_held_then(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    clock.now = 200.0
    ledger.record([BERGEN], place="rag", namespace="default")
    found = {when: ledger.active(as_of=when) for when in (99.0, 100.0, 199.0, 200.0, 1e9)}
    assert found == {99.0: [], 100.0: [OSLO], 199.0: [OSLO], 200.0: [BERGEN], 1e9: [BERGEN]}


def test_validity_bounds_what_is_active_and_says_until_when(ledger: Ledger, clock: Clock) -> None:
    ledger.record(
        [Knowledge("v", "Valid for a while.", valid_from=150.0, valid_until=250.0)], place="rag", namespace="default"
    )
    seen = []
    for clock.now in (149.0, 150.0, 250.0):
        standing = ledger.standing(place="rag")
        seen.append((len(standing.versions), standing.until))
    assert seen == [(0, 150.0), (1, 250.0), (0, math.inf)]
    assert len(ledger.active(as_of=200.0)) == 1


def test_a_successor_valid_from_an_earlier_date_ends_the_old_item_at_that_date(ledger: Ledger, clock: Clock) -> None:
    ledger.record([replace(OSLO, valid_from=10.0)], place="rag", namespace="default")
    ledger.record([replace(BERGEN, valid_from=50.0)], place="rag", namespace="default")
    assert texts(ledger.active(as_of=40.0)) == [OSLO.text]
    assert texts(ledger.active(as_of=60.0)) == [BERGEN.text]


PLANNED = replace(BERGEN, valid_from=150.0)
LATER = Knowledge("ada-4", "Ada lives in Rome.", key="ada/city", valid_from=300.0)


def over_time(ledger: Ledger, clock: Clock, *times: float) -> list[list[str]]:
    """The ids that are active at these times, by the clock and as of them, which must agree."""
    seen = []
    for clock.now in times:
        held = ledger.active()
        assert ledger.standing(as_of=clock.now).versions == ledger.standing().versions
        seen.append([item.id for item in held])
    return seen


def test_an_item_holds_until_its_successor_begins(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    assert ledger.record([PLANNED], place="icl", namespace="default").superseded == ()
    assert (ledger.standing(place="rag").until, ledger.standing(place="icl").until) == (150.0, 150.0)
    assert ledger.active(as_of=149.0) == [OSLO]
    assert ledger.active(as_of=150.0) == [PLANNED]
    assert over_time(ledger, clock, 100.0, 149.0, 150.0, 1e9) == [["ada-1"], ["ada-1"], ["ada-2"], ["ada-2"]]
    assert ledger.standing(place="rag").until == math.inf
    ledger.record([TEA], place="rag", namespace="default")
    (old,) = ledger.history("ada-1", namespace="default")
    assert (old.reason, old.ended_at, old.superseded_by) == ("superseded", 150.0, "ada-2")


def test_writing_again_what_has_a_successor_to_come_changes_nothing_until_it_has_come(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    position = ledger.position()
    assert ledger.record([OSLO, PLANNED], place="rag", namespace="default").written == ()
    assert ledger.position() == position
    assert over_time(ledger, clock, 100.0, 150.0) == [["ada-1"], ["ada-2"]]
    assert ledger.record([OSLO], place="rag", namespace="default").superseded == ("ada-2",)
    assert over_time(ledger, clock, 151.0) == [["ada-1"]]


@pytest.mark.parametrize("reason", ["forgotten", "evicted"])
def test_an_item_stays_if_its_successor_is_removed_before_it_begins(ledger: Ledger, clock: Clock, reason: Any) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    ledger.remove(["ada-2"], place="rag", reason=reason, namespace="default")
    assert ledger.standing().until == math.inf
    assert over_time(ledger, clock, 100.0, 150.0) == [["ada-1"], ["ada-1"]]


def test_removing_a_successor_that_has_begun_does_not_bring_the_old_item_back(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    clock.now = 160.0
    ledger.remove(["ada-2"], place="rag", reason="forgotten", namespace="default")
    assert ledger.active() == []
    assert ledger.active(as_of=140.0) == [OSLO]
    clock.now = 140.0
    assert ledger.active() == [], "also where the clock goes back"


def test_forgetting_an_item_leaves_its_successor_to_come(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    ledger.remove(["ada-1"], place="rag", reason="forgotten", namespace="default")
    assert over_time(ledger, clock, 100.0, 150.0) == [[], ["ada-2"]]


@pytest.mark.parametrize("order", [[PLANNED, LATER], [LATER, PLANNED]])
@pytest.mark.parametrize("gone", ["ada-2", "ada-4"])
def test_of_several_successors_the_next_one_takes_the_place_of_a_forgotten_one(
    ledger: Ledger, clock: Clock, order: list[Knowledge], gone: str
) -> None:
    ledger.record([OSLO, *order], place="rag", namespace="default")
    ledger.remove([gone], place="rag", reason="forgotten", namespace="default")
    left, begin = ("ada-4", 300.0) if gone == "ada-2" else ("ada-2", 150.0)
    assert ledger.standing().until == begin
    assert over_time(ledger, clock, begin - 1, begin, 400.0) == [["ada-1"], [left], [left]]


@pytest.mark.parametrize("order", [[PLANNED, LATER], [LATER, PLANNED]])
def test_each_item_holds_from_its_beginning_to_that_of_the_next(
    ledger: Ledger, clock: Clock, order: list[Knowledge]
) -> None:
    paris = Knowledge("ada-5", "Ada lives in Paris.", key="ada/city")
    ledger.record([OSLO, *order], place="rag", namespace="default")
    assert ledger.record([paris], place="rag", namespace="default").superseded == ("ada-1",)
    assert over_time(ledger, clock, 149.0, 150.0, 300.0) == [["ada-5"], ["ada-2"], ["ada-4"]]


def test_of_two_that_begin_at_one_moment_the_one_written_last_is_to_come(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    assert ledger.record([replace(LATER, valid_from=150.0)], place="rag", namespace="default").superseded == ("ada-2",)
    assert over_time(ledger, clock, 149.0, 150.0) == [["ada-1"], ["ada-4"]]


def test_items_that_move_or_are_copied_keep_what_is_to_come(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO, PLANNED], place="rag", namespace="default")
    ledger.record([OSLO], place="icl", namespace="default")
    ledger.move(["ada-1", "ada-2"], source="rag", target="weights", namespace="default")
    assert [len(ledger.active(place=place)) for place in ("rag", "icl", "weights")] == [0, 1, 1]
    assert ledger.standing(place="icl").until == 150.0
    assert over_time(ledger, clock, 149.0, 150.0) == [["ada-1"], ["ada-2"]]
    clock.now = 149.0
    ledger.remove(["ada-2"], place="weights", reason="forgotten", namespace="default")
    assert over_time(ledger, clock, 149.0, 150.0) == [["ada-1"], ["ada-1"]]


def test_a_successor_to_come_survives_reopening_and_restoring(tmp_path: Path, clock: Clock) -> None:
    with Ledger(tmp_path / "ledger.sqlite", clock=clock) as ledger:
        ledger.record([OSLO, PLANNED], place="rag", namespace="default")
        ledger.save(tmp_path / "saved.sqlite")
    with Ledger(tmp_path / "ledger.sqlite", clock=clock) as ledger, Ledger(clock=clock) as restored:
        restored.restore(tmp_path / "saved.sqlite")
        for one in (ledger, restored):
            assert one.verify() == []
            assert over_time(one, clock, 100.0, 150.0) == [["ada-1"], ["ada-2"]]


def test_an_expired_id_may_be_written_anew(ledger: Ledger, clock: Clock) -> None:
    ledger.record([Knowledge("v", "First.", valid_until=110.0)], place="rag", namespace="default")
    clock.now = 120.0
    ledger.record([Knowledge("v", "Second.")], place="rag", namespace="default")
    assert texts(ledger.active()) == ["Second."]
    assert texts(ledger.active(as_of=105.0)) == ["First."]
    assert [version.reason for version in ledger.history("v", namespace="default")] == ["expired", None]


def test_a_clock_that_goes_back_neither_hides_the_new_nor_brings_back_the_old(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    ledger.record([BERGEN], place="rag", namespace="default")
    clock.now = 50.0
    assert ledger.active() == [BERGEN]


def test_what_is_over_when_it_is_written_replaces_nothing(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO], place="bank", namespace="default")
    past = Knowledge("ada-0", "Ada lived in Rome.", key=OSLO.key, valid_from=10.0, valid_until=20.0)
    assert ledger.record([past], place="bank", namespace="default").superseded == ()
    assert over_time(ledger, clock, 100.0, 1e9) == [[OSLO.id], [OSLO.id]]
    assert [item.id for item in ledger.active(as_of=15.0)] == ["ada-0"]


def test_an_item_moves_to_where_an_expired_version_of_it_is(ledger: Ledger, clock: Clock) -> None:
    ledger.record([Knowledge("pass", "The pass is open.", valid_until=110.0)], place="window", namespace="default")
    clock.now = 120.0
    ledger.record([Knowledge("pass", "The pass is open.", valid_until=300.0)], place="bank", namespace="default")
    ledger.move(["pass"], source="bank", target="window", namespace="default")
    assert [item.valid_until for item in ledger.active(place="window")] == [300.0]
    assert ledger.verify() == []


def test_forgotten_items_do_not_come_back_for_any_time(ledger: Ledger, clock: Clock) -> None:
    for clock.now, item in ((100.0, OSLO), (200.0, BERGEN), (300.0, OSLO)):
        ledger.record([item], place="rag", namespace="default")
    assert ledger.remove(["ada-1", "never-seen"], place="rag", reason="forgotten", namespace="default") == ("ada-1",)
    assert ledger.active() == ledger.active(as_of=150.0) == ledger.active(as_of=350.0) == []
    assert ledger.active(as_of=250.0) == [BERGEN]
    assert len(ledger.recallable(place="rag")) == 1


def test_a_forgotten_id_may_be_written_with_another_text(ledger: Ledger) -> None:
    ledger.record([OSLO], place="rag", namespace="default")
    ledger.remove(["ada-1"], place="rag", reason="forgotten", namespace="default")
    ledger.record([replace(OSLO, text="Ada lives in Rome.")], place="rag", namespace="default")
    assert texts(ledger.active()) == ["Ada lives in Rome."]


def test_removing_at_one_place_leaves_the_other_place_alone(ledger: Ledger) -> None:
    ledger.record([TEA], place="rag", namespace="default")
    ledger.record([TEA], place="icl", namespace="default")
    assert ledger.active() == [TEA]
    assert ledger.remove(["ada-3"], place="rag", reason="evicted", namespace="default") == ("ada-3",)
    assert (ledger.active(place="rag"), ledger.active(place="icl")) == ([], [TEA])


def test_moving_keeps_id_and_date_and_both_places_see_it(ledger: Ledger, clock: Clock) -> None:
    ledger.record([OSLO, TEA], place="rag", namespace="default")
    clock.now = 200.0
    assert ledger.move(["ada-1"], source="rag", target="weights", namespace="default") == ("ada-1",)
    assert (ledger.active(place="rag"), ledger.active(place="weights")) == ([TEA], [OSLO])
    assert ledger.active(place="weights", as_of=150.0) == [OSLO]
    assert ledger.changes(place="rag")[-1].action == "remove"
    assert [change.reason for change in ledger.changes(place="weights")] == ["moved"]
    assert ledger.move(["ada-1"], source="rag", target="weights", namespace="default") == ()


def test_moving_what_is_nowhere_moves_nothing(ledger: Ledger) -> None:
    ledger.record([TEA], place="rag", namespace="default")
    with pytest.raises(ValueError, match="held neither at 'rag' nor at 'icl'"):
        ledger.move(["ada-3", "ghost"], source="rag", target="icl", namespace="default")
    assert ledger.active(place="rag") == [TEA]


def test_replaying_changes_from_any_position_gives_what_is_active(ledger: Ledger) -> None:
    ledger.record([OSLO, TEA], place="rag", namespace="default")
    ledger.record([BERGEN], place="rag", namespace="default")
    ledger.remove(["ada-3"], place="rag", reason="forgotten", namespace="default")
    ledger.record([TEA], place="rag", namespace="default")
    for cut in range(ledger.position() + 1):
        held: dict[int, Knowledge] = {}
        log = ledger.changes(place="rag")
        for change in [one for one in log if one.position <= cut] + ledger.changes(place="rag", after=cut):
            if change.action == "add":
                held[change.version] = change.item
            elif change.action == "remove":
                del held[change.version]
        assert list(held.values()) == ledger.active(place="rag")


def test_version_numbers_are_never_used_again(ledger: Ledger) -> None:
    for _ in range(5):
        ledger.record([TEA], place="rag", namespace="default")
        ledger.remove(["ada-3"], place="rag", reason="forgotten", namespace="default")
    assert [version.version for version in ledger.history("ada-3", namespace="default")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("arguments", [{"place": "", "namespace": "default"}, {"place": "rag", "namespace": " "}])
def test_an_empty_name_is_refused(ledger: Ledger, arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be a non-empty string"):
        ledger.record([TEA], **arguments)


def test_bad_items_are_refused_at_the_door(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="needs an id"):
        Knowledge("", "No id.")
    with pytest.raises(TypeError, match="records Knowledge, got str"):
        ledger.record(["plain text"], place="rag", namespace="default")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not valid Unicode"):
        ledger.record([TEA, Knowledge("half", "half a pair \ud83d")], place="rag", namespace="default")
    with pytest.raises(ValueError, match="not a number"):
        ledger.record([Knowledge("nan", "When?", valid_from=math.nan)], place="rag", namespace="default")
    with pytest.raises(TypeError, match="one string"):
        ledger.remove("ada-3", place="rag", reason="forgotten", namespace="default")
    with pytest.raises(ValueError, match="reason must be one of"):
        ledger.remove(["ada-3"], place="rag", reason="bored", namespace="default")  # type: ignore[arg-type]
    assert ledger.position() == 0


def test_a_full_disk_stores_nothing_and_harms_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record([TEA], place="rag", namespace="default")
    many = [Knowledge(f"big-{number}", "word " * 2000) for number in range(100)]
    with full_disk(200_000), pytest.raises(LedgerError, match="all that was acknowledged is kept"):
        ledger.record(many, place="rag", namespace="default")
    assert ledger.active() == [TEA]
    ledger.record(many, place="rag", namespace="default")
    assert len(ledger.active()) == 101


def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"This is no database at all. " * 100)
    with pytest.raises(LedgerError, match=r"damaged .* repair \S*noise --to NEW"):
        Ledger(tmp_path / "noise")
    assert damage("postgresql://host/d", "why").endswith("is damaged (why); restore it from a copy")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(LedgerError, match="another program"):
        Ledger(tmp_path / "other")
    with pytest.raises(LedgerError, match="is a folder"):
        Ledger(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="schema version 99"):
        Ledger(tmp_path / "ledger.sqlite")


def test_damaged_pages_are_noticed_on_opening(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        ledger.record([Knowledge(f"{number}", "word " * 200) for number in range(50)], place="rag", namespace="default")
    data = bytearray(file.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 64] = b"\xff" * 64
    file.write_bytes(data)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(file)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE version SET content = replace(content, 'Oslo', 'Rome') WHERE version = 1",
        "UPDATE version SET reason = 'forgotten' WHERE version = 2",
        "UPDATE version SET namespace = 'other' WHERE version = 2",
    ],
)
def test_a_changed_row_is_never_silently_used(tmp_path: Path, damage: str) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.record([OSLO, TEA], place="rag", namespace="default")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        raw.execute(damage)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert any("does not match its checksum" in problem for problem in ledger.verify())
        with pytest.raises(LedgerError, match="does not match its checksum"):
            ledger.changes(place="rag")


@pytest.mark.parametrize(("table", "number"), [("version", "version"), ("change", "position")])
@pytest.mark.parametrize("row", [1, 3])
def test_a_missing_row_is_found_by_verify(tmp_path: Path, table: str, number: str, row: int) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.record([replace(TEA, id=str(n)) for n in range(3)], place="rag", namespace="default")
        assert ledger.verify() == []
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        raw.execute(f"DELETE FROM {table} WHERE {number} = {row}")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.verify() != []


def test_a_saved_copy_is_the_same_ledger_and_is_not_overwritten(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record([OSLO, BERGEN, TEA], place="rag", namespace="default")
    ledger.save(tmp_path / "copy" / "ledger.sqlite")
    with Ledger(tmp_path / "copy" / "ledger.sqlite") as copy:
        assert copy.active() == ledger.active()
        assert copy.verify() == []
        assert copy.fingerprint(copy.position()) == ledger.fingerprint(ledger.position())
    with pytest.raises(FileExistsError):
        ledger.save(tmp_path / "copy" / "ledger.sqlite")


def test_an_empty_ledger_takes_over_a_saved_one_whole(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    ledger.record([OSLO, BERGEN, TEA], place="rag", namespace="default")
    ledger.remove(["ada-3"], place="rag", reason="forgotten", namespace="default")
    ledger.save(tmp_path / "saved.sqlite")
    for file in (":memory:", str(tmp_path / "new.sqlite")):
        with Ledger(file, clock=clock) as other:
            other.restore(tmp_path / "saved.sqlite")
            assert other.changes(place="rag") == ledger.changes(place="rag")
            assert other.verify() == []
            assert other.record([TEA], place="rag", namespace="default").written == (TEA,)
            with pytest.raises(ValueError, match="is not empty"):
                other.restore(tmp_path / "saved.sqlite")
    assert Ledger(tmp_path / "new.sqlite").active() == [BERGEN, TEA]


def test_a_damaged_or_foreign_file_is_not_restored(ledger: Ledger, tmp_path: Path) -> None:
    with Ledger() as other:
        other.record([OSLO, TEA], place="rag", namespace="default")
        other.save(tmp_path / "saved.sqlite")
    with sqlite3.connect(tmp_path / "saved.sqlite") as raw:
        raw.execute("DELETE FROM version WHERE version = 2")
    with pytest.raises(LedgerError, match=r"saved\.sqlite is damaged"):
        ledger.restore(tmp_path / "saved.sqlite")
    (tmp_path / "noise").write_bytes(b"This is no database at all. " * 100)
    with pytest.raises(LedgerError, match="noise is damaged"):
        ledger.restore(tmp_path / "noise")
    with pytest.raises(FileNotFoundError):
        ledger.restore(tmp_path / "nothing")
    assert ledger.position() == 0
    ledger.record([TEA], place="rag", namespace="default")


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.record([TEA], place="rag", namespace="default")


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    def write(writer: int) -> None:
        for number in range(20):
            ledger.record([Knowledge(f"{writer}-{number}", "Some text.")], place="rag", namespace="default")
            ledger.active(place="rag")

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.active()) == 80


def test_processes_that_write_the_same_items_leave_each_once(tmp_path: Path) -> None:
    program = (
        "import sys; from memory_paths.ledger import Ledger; from memory_paths.types import Knowledge\n"
        "with Ledger(sys.argv[1]) as ledger:\n"
        "    for number in range(100):\n"
        "        ledger.record([Knowledge(f'{number}', f'Text {number}.')], place='rag', namespace='default')\n"
    )
    file = tmp_path / "ledger.sqlite"
    writers = [subprocess.Popen([sys.executable, "-P", "-c", program, str(file)]) for _ in range(4)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0, 0]
    with Ledger(file) as ledger:
        assert ledger.position() == 100
        assert len(ledger.active()) == 100
        assert ledger.verify() == []


def test_importing_the_ledger_loads_no_heavy_library() -> None:
    program = (
        "import sys, memory_paths.ledger\n"
        "heavy = {'torch', 'faiss', 'transformers', 'sentence_transformers', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run(sys.executable, "-P", "-c", program)


def test_a_batch_leaves_what_its_items_leave_one_by_one(tmp_path: Path) -> None:
    source = random.Random(0)
    batches = [
        [
            Knowledge(
                f"{(number := source.randrange(12))}",
                f"Text {number}.",
                key=source.choice(("", "", "a", "b")) if number > 6 else "ab"[number % 2],
                valid_from=float(source.choice((0, 1500, 2500))) if number % 3 == 0 else None,
            )
            for _ in range(source.randrange(1, 9))
        ]
        for _ in range(60)
    ]
    contents: dict[str, Knowledge] = {}
    batches = [[contents.setdefault(item.id, item) for item in batch] for batch in batches]
    with Ledger(clock=Clock()) as together, Ledger(clock=Clock()) as apart:
        for batch in batches:
            position = together.position()
            recorded = together.record(batch, place="rag", namespace="default")
            singly = [apart.record([item], place="rag", namespace="default") for item in batch]
            assert recorded.written == tuple(item for one in singly for item in one.written)
            assert recorded.superseded == tuple(dict.fromkeys(id for one in singly for id in one.superseded))
            assert together.changes(place="rag") == apart.changes(place="rag")
            changes = together.changes(place="rag", after=position)
            by_now = sorted({change.version: change.entry for change in changes}.items())
            told = [entry for _, entry in by_now], together.position()
            assert together.changed(place="rag", after=position, known=recorded.versions) == told
            assert together.changed(place="rag", after=position) == told
        assert together.position() > 100
        assert together.verify() == apart.verify() == []


def test_what_was_ended_in_favour_of_another_holds_again_as_it_was(ledger: Ledger) -> None:
    ledger.record([TEA, Knowledge("tea", "Ada drinks tea.")], place="rag", namespace="default")
    before = ledger.history("tea", namespace="default")
    assert ledger.supersede({"tea": "ada-3", "ada-3": "nobody"}, place="rag", namespace="default") == ("tea",)
    assert ledger.active() == [TEA]
    assert ledger.history("tea", namespace="default")[0].superseded_by == "ada-3"
    assert ledger.reinstate(["tea", "nobody", "ada-3"], place="rag", namespace="default") == ("tea",)
    assert ledger.history("tea", namespace="default") == before
    ledger.record([OSLO], place="rag", namespace="default")
    ledger.record([BERGEN], place="rag", namespace="default")
    with pytest.raises(ValueError, match=r"'ada-1' cannot hold again: \['ada-2'\] hold under its key"):
        ledger.reinstate(["ada-1"], place="rag", namespace="default")
    assert ledger.verify() == []
