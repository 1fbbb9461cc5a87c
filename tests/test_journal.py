"""What writes into weights have changed: taken back to the byte, forgotten, carried to another copy."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from memory_paths.agent import Agent
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric import path as weights_path
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.full import Full
from memory_paths.parametric.journal import Journal, change, size, undo
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.path import ITEMS, PATCH, Budget, WeightsPath
from memory_paths.parametric.weights import Weights
from memory_paths.streams.world import rehearsal
from memory_paths.types import Knowledge, Prompt

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=16, half_query=8)
HOMES = ("Alma Ashway lives in Alavia.", "Bruno Barrbury enjoys chess.", "Cora Carldale works as a baker.", "Dan rows.")
ONE, TWO, THREE, FOUR = (Knowledge(text.split()[0].lower(), text) for text in HOMES)
KINDS = ["memory", "adam", "lora", "full"]


def _lm(seed: int = 1) -> CausalLM:
    tokenizer = build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=seed), tokenizer))


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return _lm()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger() as opened:
        yield opened


def _weights(kind: str) -> Weights:
    if kind == "lora":
        return Adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4), rate=1e-2)
    if kind == "full":
        return Full(rate=1e-3)
    return MemoryRows(rows=8, rate=1e-2, optimiser="adam") if kind == "adam" else MemoryRows(rows=8, rate=50.0)


def _path(lm: CausalLM, ledger: Ledger, kind: str = "memory", **options: Any) -> WeightsPath:
    settings: dict[str, Any] = {"budget": Budget(steps=3), "background": rehearsal()[:40], "progress": False}
    return WeightsPath(lm, ledger, **{"weights": _weights(kind), **settings, **options})


def test_what_arrives_late_is_not_learnt_over_what_holds(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    oslo, bergen, paris = (
        Knowledge(city, f"Ada lives in {city}.", key="ada/city", valid_from=year)
        for city, year in (("Oslo", 100.0), ("Bergen", 200.0), ("Paris", 300.0))
    )
    path = _path(lm, ledger)
    path.write([bergen], "default")
    path.write([oslo, ONE], "default")
    path.write([paris], "default")
    assert lessons == [["Bergen"], ["alma"], ["Paris"]]
    assert [item.id for item in path.items("default")] == ["alma", "Paris"]
    again = _path(lm, ledger)
    again.flush()
    assert lessons[3:] == lessons[:3]
    assert _state(again) == _state(path)


def test_a_patch_of_what_is_over_here_is_refused(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    oslo, paris = (
        Knowledge(city, f"Ada lives in {city}.", key="ada/city", valid_from=year)
        for city, year in (("Oslo", 100.0), ("Paris", 300.0))
    )
    path = _path(lm, ledger)
    path.write([oslo], "default")
    folder = path.export_patch(tmp_path / "patch")
    with Ledger() as elsewhere:
        elsewhere.record([paris], place="bank", namespace="default")
        other = _path(lm, elsewhere)
        with pytest.raises(ValueError, match="or instead of which others hold by now: Oslo"):
            other.import_patch(folder)
        assert _state(other) == {}
        assert elsewhere.active() == [paris]


def test_what_replaces_an_item_in_the_same_call_is_learnt_alone(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    first, second = (Knowledge(city, f"Ada lives in {city}.", key="ada/city") for city in ("Oslo", "Paris"))
    path = _path(lm, ledger)
    path.write([first, ONE, second], "default")
    assert lessons == [["alma", "Paris"]]
    again = _path(lm, ledger)
    again.flush()
    assert lessons[1:] == lessons[:1]
    assert _state(again) == _state(path)


def test_what_was_moved_into_weights_in_several_calls_is_learnt_again_in_as_many(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    ledger.record([ONE, TWO, THREE], place="bank", namespace="default")
    path = _path(lm, ledger)
    for ids in (["bruno"], ["alma", "cora"]):
        ledger.move(ids, source="bank", target="weights", namespace="default")
        path.flush()
    assert lessons == [["bruno"], ["alma", "cora"]]
    again = _path(lm, ledger)
    again.flush()
    assert lessons[2:] == lessons[:2]
    assert _state(again) == _state(path)


def test_what_another_process_records_in_between_is_learnt_before_it(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _path(lm, ledger)
    learn = path._learn

    def disturbed(items: Any) -> Any:
        monkeypatch.setattr(path, "_learn", learn)
        ledger.record([TWO], place="weights", namespace="default")
        return learn(items)

    monkeypatch.setattr(path, "_learn", disturbed)
    path.write([ONE], "default")
    assert lessons == [["alma"], ["bruno"], ["alma"]]
    again = _path(lm, ledger)
    again.flush()
    assert lessons[3:] == [["bruno"], ["alma"]]
    assert _state(again) == _state(path)


def _state(path: WeightsPath) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in path._weights.state().items()}


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids of each time that a path really learns."""
    learnt: list[list[str]] = []
    learn = weights_path.WeightsPath._learn

    def noted(self: WeightsPath, items: Any) -> Any:
        learnt.append([item.id for item in items])
        return learn(self, items)

    monkeypatch.setattr(weights_path.WeightsPath, "_learn", noted)
    return learnt


@pytest.mark.parametrize("kind", KINDS)
def test_each_write_is_undone_to_the_byte_last_in_first_out(
    lm: CausalLM, ledger: Ledger, kind: str, lessons: list[list[str]]
) -> None:
    path = _path(lm, ledger, kind)
    states = [_state(path)]
    for item in (ONE, TWO, THREE):
        path.write([item], namespace="default")
        states.append(_state(path))
    taught = len(lessons)
    for left in (2, 1, 0):
        receipt = path.undo()
        assert _state(path) == states[left]
        assert receipt.ids == ((ONE, TWO, THREE)[left].id,)
        assert [item.id for item in path.items(namespace="default")] == [item.id for item in (ONE, TWO, THREE)[:left]]
    assert len(lessons) == taught, "nothing was learnt again for it"
    with pytest.raises(ValueError, match="has no write to undo"):
        path.undo()
    path.write([ONE], namespace="default")
    assert _state(path) == states[1]


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_learns_again_only_what_came_after(
    lm: CausalLM, ledger: Ledger, kind: str, lessons: list[list[str]]
) -> None:
    path = _path(lm, ledger, kind)
    for write in ([ONE], [TWO, THREE], [FOUR]):
        path.write(write, namespace="default")
    lessons.clear()
    receipt = path.forget(["bruno", "nobody"], namespace="default")
    assert lessons == [["cora"], ["dan"]]
    assert receipt.ids == ("bruno",)
    assert receipt.details["relearnt"] == 2
    assert receipt.cost.lm.tokens > 0
    with Ledger() as other:
        never = _path(lm, other, kind)
        for write in ([ONE], [THREE], [FOUR]):
            never.write(write, namespace="default")
        assert _state(path) == _state(never)
        assert path.state_hash() == never.state_hash()
    nothing = path.forget(["nobody"], namespace="default")
    assert (nothing.ids, nothing.cost.lm.tokens, nothing.details) == ((), 0, {"relearnt": 0})


def test_what_was_learnt_in_another_way_is_not_rewound_to(lm: CausalLM, tmp_path: Path) -> None:
    """Forgetting ends as a model would that never saw it, and had always learnt as this one does."""
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        path = _path(lm, ledger)
        for item in (ONE, TWO, THREE):
            path.write([item], namespace="default")
        path.save(tmp_path / "path")
    other = {"budget": Budget(steps=3, batch=8)}
    with Ledger(file) as ledger, Ledger() as elsewhere:
        path = _path(lm, ledger, **other)
        path.load(tmp_path / "path")
        path.forget([THREE.id], namespace="default")
        never = _path(lm, elsewhere, **other)
        for item in (ONE, TWO):
            never.write([item], namespace="default")
        assert _state(path) == _state(never)


def test_without_room_in_the_journal_everything_is_learnt_again_to_the_same_bytes(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    small, large = _path(lm, ledger, journal_bytes=0, name="small"), _path(lm, ledger, name="large")
    for path in (small, large):
        for item in (ONE, TWO, THREE):
            path.write([item], namespace="default")
        lessons.clear()
        path.forget(["cora"], namespace="default")
        assert lessons == ([["alma"], ["bruno"]] if path is small else [])
    assert _state(small) == _state(large)


def test_a_full_journal_drops_its_oldest_changes() -> None:
    states = [{"w/rows": torch.arange(n), "w/values": torch.full((n, 4), float(n))} for n in (1, 2, 3)]
    entry = size(change({}, states[0]))
    journal = Journal(room=4 * entry)
    for before, after in zip(({}, *states), states, strict=False):
        journal = journal.appended(before, after)
    assert journal.kept == [2]
    assert journal.rewound(states[2], 1) is None
    rewound = journal.rewound(states[2], 2)
    assert rewound is not None
    assert all(torch.equal(rewound[name], states[1][name]) for name in states[1])


def test_a_change_holds_the_rows_that_differ_and_no_others() -> None:
    before = {"w/rows": torch.tensor([2, 5, 9]), "w/values": torch.tensor([[1.0], [2.0], [3.0]])}
    after = {"w/rows": torch.tensor([2, 5, 7, 9]), "w/values": torch.tensor([[1.0], [4.0], [6.0], [3.0]])}
    undone = change(before, after)
    assert undone["w/rows"].tolist() == [5, 7]
    assert undone["w/known"].tolist() == [True, False]
    back = undo(after, undone)
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert undo(after, change({}, after)) == {}


def test_approximate_forgetting_touches_no_later_write_and_tells_what_is_left(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    exact, quick = _path(lm, ledger, name="exact"), _path(lm, ledger, name="quick", forgetting="approximate")
    residues = {}
    for path in (exact, quick):
        path.write([ONE, TWO], namespace="default")
        path.forget(["bruno"], namespace="default")  # nothing came after it
        path.write([THREE], namespace="default")
        path.write([FOUR], namespace="default")
        lessons.clear()
        state = path._weights.state()
        receipt = path.forget(["alma"], namespace="default")
        residues[path.name] = receipt.details["residue"]
        assert lessons == ([["cora"], ["dan"]] if path is exact else [])
        assert [item.id for item in path.items(namespace="default")] == ["cora", "dan"]
        if path is quick:
            after = path._weights.state()
            assert (
                0
                < len(after[next(name for name in after if name.endswith("/rows"))])
                < len(state[next(name for name in state if name.endswith("/rows"))])
            )
            assert lessons == []
    assert residues["quick"] > residues["exact"]
    lessons.clear()
    quick.forget(["dan"], namespace="default")
    assert lessons == [["cora"]], "what was forgotten by approximation cannot be undone any more: all is learnt again"


def test_a_journal_is_saved_and_loaded(lm: CausalLM, tmp_path: Path, lessons: list[list[str]]) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        path = _path(lm, ledger)
        path.write([ONE], namespace="default")
        first = _state(path)
        path.write([TWO], namespace="default")
        path.save(tmp_path / "saved")
        again = _path(lm, ledger)
        lessons.clear()
        again.load(tmp_path / "saved")
        again.undo()
        assert _state(again) == first
        assert lessons == []
        assert [item.id for item in again.items("default")] == ["alma"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_may_come_while_the_model_is_lent_and_a_save_may_not(
    lm: CausalLM, ledger: Ledger, kind: str, tmp_path: Path
) -> None:
    path, untouched = _path(lm, ledger, kind), lm.weights_hash()
    path.write([ONE], namespace="default")
    with path.model(lm) as lent:
        (before,) = lent.loglikelihood([(Prompt("Bruno"), " enjoys chess.")])
        path.write([TWO], namespace="default")
        (after,) = lent.loglikelihood([(Prompt("Bruno"), " enjoys chess.")])
        assert after == before, "a block sees what was learnt when it began"
        with pytest.raises(RuntimeError, match="has lent its model out"):
            path.save(tmp_path / "saved")
    assert lm.weights_hash() == untouched
    with Ledger() as other:
        outside = _path(lm, other, kind)
        for item in (ONE, TWO):
            outside.write([item], namespace="default")
        assert _state(outside) == _state(path)


@pytest.mark.parametrize("kind", ["memory", "adam"])
def test_a_patch_carries_a_write_to_another_copy_of_the_model(
    lm: CausalLM, ledger: Ledger, tmp_path: Path, kind: str, lessons: list[list[str]]
) -> None:
    path = _path(lm, ledger, kind)
    path.write([ONE], namespace="default")
    path.write([TWO], namespace="default")
    folder = path.export_patch(str(tmp_path / "patch"))
    with Ledger() as elsewhere:
        other = _path(_lm(), elsewhere, kind)
        other.write([ONE], namespace="default")
        first = _state(other)
        lessons.clear()
        receipt = other.import_patch(folder)
        assert lessons == []
        assert receipt.ids == ("bruno",)
        assert other.state_hash() == path.state_hash()
        with pytest.raises(ValueError, match=r"rows that .* changes are not as they were"):
            other.import_patch(folder)
        other.undo()
        assert _state(other) == first
    rows = sum(len(tensor) for name, tensor in load_file(folder / PATCH).items() if name.endswith("/rows"))
    assert rows > 0
    assert (folder / PATCH).stat().st_size <= rows * (SHAPE.width * 4 + 16) + 4096


def test_a_patch_that_does_not_fit_is_refused_and_changes_nothing(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    path = _path(lm, ledger)
    with pytest.raises(ValueError, match="has no write to carry"):
        path.export_patch(tmp_path)
    path.write([ONE], namespace="default")
    path.write([TWO], namespace="default")
    folder = path.export_patch(tmp_path / "patch")
    with Ledger() as elsewhere:
        fresh = _path(lm, elsewhere)
        with pytest.raises(ValueError, match=r"\d+ of the \d+ rows that .* are not as they were when it was made"):
            fresh.import_patch(folder)
        with pytest.raises(FileNotFoundError, match="there is no patch"):
            fresh.import_patch(tmp_path)
        shutil.copytree(folder, tmp_path / "cut")
        content = (folder / PATCH).read_bytes()
        (tmp_path / "cut" / PATCH).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is damaged or no patch"):
            fresh.import_patch(tmp_path / "cut")
        assert fresh.items(namespace="default") == []
        assert _state(fresh) == {}
        stranger = _path(_lm(seed=2), elsewhere, name="stranger")
        with pytest.raises(ValueError, match="a patch for another model"):
            stranger.import_patch(folder)
        held = _path(lm, elsewhere, name="held")
        held.write([ONE], namespace="default")
        items = (folder / ITEMS).read_bytes()
        (folder / ITEMS).write_text(f"{THREE.to_json()}\n")
        state = _state(held)
        with pytest.raises(ValueError, match="is damaged, or the items beside it are not those"):
            held.import_patch(folder)
        (folder / ITEMS).write_bytes(items)
        flipped = bytearray(content)
        flipped[-3] ^= 1
        (folder / PATCH).write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged, or the items beside it are not those"):
            held.import_patch(folder)
        (folder / PATCH).write_bytes(content)
        assert _state(held) == state
    full = _path(lm, ledger, "full", name="full")
    full.write([ONE], namespace="default")
    with pytest.raises(ValueError, match="only rows of a memory can be carried"):
        full.export_patch(tmp_path / "full")


def test_a_state_fits_only_the_addresses_that_it_was_learnt_with(
    make_tiny_lm: Callable[..., CausalLM], ledger: Ledger, tmp_path: Path
) -> None:
    """A memory that was added to a model has addresses of its own, which the model's weights do not tell."""
    lm = make_tiny_lm("llama")

    def path(name: str, **options: Any) -> WeightsPath:
        return _path(lm, ledger, name=name, background=(), weights=MemoryRows(rows=8, rate=5.0, **options))

    first = path("first", half_keys=8)
    first.write([ONE], namespace="default")
    first.write([TWO], namespace="default")
    folder = first.export_patch(tmp_path / "patch")
    first.save(tmp_path / "saved")
    for name, options in (("seed", {"half_keys": 8, "seed": 1}), ("size", {"half_keys": 16})):
        other = path(name, **options)
        other.write([ONE], namespace="default")
        with pytest.raises(ValueError, match="a patch for another model"):
            other.import_patch(folder)
        with pytest.raises(ValueError, match="with other weights than these"):
            other.load(tmp_path / "saved")
    same = path("same", half_keys=8)
    same.write([ONE], namespace="default")
    same.import_patch(folder)
    assert _state(same) == _state(first)


def test_undoing_a_text_that_came_back_takes_back_its_last_write_alone(
    lm: CausalLM, ledger: Ledger, lessons: list[list[str]]
) -> None:
    """Oslo, then Bergen, then Oslo again."""
    oslo, bergen = (Knowledge(town, f"Alma lives in {town}.", key="alma/home") for town in ("Oslo", "Bergen"))
    path = _path(lm, ledger)
    states = []
    for item in (oslo, bergen, oslo):
        path.write([item], namespace="default")
        states.append(_state(path))
    lessons.clear()
    path.undo()
    assert _state(path) == states[1]
    path.undo()
    assert _state(path) == states[0]
    assert lessons == []


def test_what_a_full_disk_or_a_bug_keeps_from_being_noted_is_learnt_once(
    lm: CausalLM, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = _path(lm, ledger, name="broken"), _path(lm, ledger, name="plain")
    plain.write([ONE], namespace="default")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "appended", lambda *given: (_ for _ in ()).throw(RuntimeError("no")))
        with pytest.raises(RuntimeError, match="no"):
            path.write([ONE], namespace="default")
    assert path.items(namespace="default") == [ONE], "it had been acknowledged by the ledger"
    path.flush()
    assert _state(path) == _state(plain)


def test_two_forgotten_writes_of_one_row_leave_nothing_of_either() -> None:
    def table(*values: float) -> dict[str, torch.Tensor]:
        return {"w/rows": torch.arange(len(values)), "w/values": torch.tensor(values)[:, None]}

    states = [{}, table(1.0), table(2.0, 5.0), table(2.0, 5.0, 7.0)]
    journal = Journal(room=2**20)
    for before, after in itertools.pairwise(states):
        journal = journal.appended(before, after)
    state: Any = states[-1]
    for write in (1, 0):
        state = journal.without(state, write, (0, 1))
    assert (state["w/rows"].tolist(), state["w/values"].flatten().tolist()) == ([2], [7.0])


def test_an_agent_tells_what_forgetting_cost(lm: CausalLM, ledger: Ledger) -> None:
    agent = Agent(lm, {"weights": _path(lm, ledger)}, ledger)
    agent.learn([ONE])
    agent.learn([TWO])
    receipt = agent.forget(["alma", "nobody"])
    assert receipt.ids == ("alma",)
    assert receipt.cost.lm.tokens > 0
    assert receipt.details["weights"]["relearnt"] == 1


def test_forgetting_what_was_superseded_is_told_too_for_the_weights_had_learnt_it(lm: CausalLM, ledger: Ledger) -> None:
    agent = Agent(lm, {"weights": _path(lm, ledger)}, ledger)
    agent.learn([replace(ONE, key="alma")])
    agent.learn([replace(TWO, key="alma")])
    receipt = agent.forget([ONE.id])
    assert receipt.ids == (), "it was not held any more"
    assert receipt.cost.lm.tokens > 0
    assert receipt.details["weights"]["relearnt"] == 1
    assert agent.forget(["nobody"]).details == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forgetting": "soon"}, "forgetting must be one of exact, approximate, got 'soon'"),
        ({"journal_bytes": -1}, "journal_bytes must be at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(lm: CausalLM, ledger: Ledger, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _path(lm, ledger, **options)


def test_approximate_forgetting_is_refused_where_there_are_no_rows_to_put_back(lm: CausalLM, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="Full has none: forgetting=exact, or weights=memory"):
        _path(lm, ledger, "full", forgetting="approximate")
