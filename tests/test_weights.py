"""The weights path: what it changes, what it gives back, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _train_together import build_lm
from conftest import full_disk, make_setting, mean_loss, plain_aim, run
from hydra.errors import InstantiationException
from peft import IA3Config, LoraConfig, OSFConfig, ShiraConfig
from tokenizers.processors import ByteLevel

from memory_paths.agent import Agent
from memory_paths.build import load
from memory_paths.failpoints import VARIABLE as FAILPOINT
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.attach import attach_all, memory_layers, save_memory
from memory_paths.parametric.batches import collate, encode, part_of
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.embedded import load as load_embedded
from memory_paths.parametric.full import Full
from memory_paths.parametric.growth import Experts, LowRankStack, NewBlocks
from memory_paths.parametric.inserted import Bottleneck, Inserted, PromptPool, VirtualTokens
from memory_paths.parametric.memory_layer import MemoryLayerConfig
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.objective import NegativeLogLikelihood, SelectiveNegativeLogLikelihood, logits_of
from memory_paths.parametric.path import LEARNT, Budget, WeightsPath
from memory_paths.parametric.penalty import NoPenalty, OutputDivergence, Penalty, TowardsBefore
from memory_paths.parametric.projection import AveragedGradient
from memory_paths.parametric.rehearsal import Experience, NoRehearsal, Rehearsal
from memory_paths.parametric.slots import Background, RandomSlots, TermFrequency, TfIdf, top_rows
from memory_paths.parametric.storage import store, stored
from memory_paths.parametric.study import AsGiven, Phrasings
from memory_paths.parametric.weights import Aim, Weights
from memory_paths.streams.words import FIRST_NAMES
from memory_paths.streams.world import rehearsal
from memory_paths.testing import check_path
from memory_paths.types import Knowledge, Phrasing, Prompt, Query, TooLarge

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=16, half_query=8)
CAUSAL = {"task_type": "CAUSAL_LM"}
ITEMS = [
    Knowledge("a", "Alma Ashway lives in Alavia.", key="alma/home"),
    Knowledge("b", "Bruno Barrbury enjoys chess.", key="bruno/hobby"),
    Knowledge("c", "Cora Carldale works as a baker.", key="cora/profession"),
]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=1), tokenizer))


def _weights(name: str) -> Weights:
    made: dict[str, Any] = {
        "memory": lambda: MemoryRows(rows=16, rate=50.0),
        "memory_momentum_decay": lambda: MemoryRows(rows=16, rate=20.0, momentum=0.5, weight_decay=1e-3),
        "memory_adam": lambda: MemoryRows(rows=16, rate=1e-2, optimiser="adam", weight_decay=1e-3),
        "memory_clipped": lambda: MemoryRows(rows=16, rate=50.0, clip=0.05),
        "lora": lambda: Adapter(LoraConfig(target_modules="all-linear", r=4, **CAUSAL), rate=1e-2),
        "shira": lambda: Adapter(ShiraConfig(target_modules="all-linear", r=4, random_seed=0, **CAUSAL), rate=1e-2),
        "osf": lambda: Adapter(OSFConfig(target_modules="all-linear", effective_rank=0.5, **CAUSAL), rate=1e-2),
        "ia3": lambda: Adapter(IA3Config(target_modules="all-linear", feedforward_modules=[], **CAUSAL), rate=0.3),
        "adapter": lambda: Inserted(Bottleneck(4), rate=1e-2),
        "prompt": lambda: Inserted(VirtualTokens("prompt", 4), rate=1e-1),
        "prefix": lambda: Inserted(VirtualTokens("prefix", 4), rate=1e-1),
        "cartridge": lambda: Inserted(VirtualTokens("cartridge", 4), rate=1e-1),
        "prompt_pool": lambda: Inserted(PromptPool(3, 4), rate=1e-1),
        "lora_stack": lambda: Inserted(LowRankStack(4), rate=1e-2),
        "new_blocks": lambda: Inserted(NewBlocks(), rate=1e-2),
        "experts": lambda: Inserted(Experts(8), rate=1e-2),
        "full": lambda: Full(rate=1e-3),
    }
    return made[name]()


INSERTED = ["adapter", "prompt", "prefix", "cartridge", "prompt_pool", "lora_stack", "new_blocks", "experts"]
KINDS = [
    "memory",
    "memory_momentum_decay",
    "memory_adam",
    "memory_clipped",
    "lora",
    "shira",
    "osf",
    "ia3",
    *INSERTED,
    "full",
]
SPARSE = [kind for kind in KINDS if kind.startswith("memory")]


def _path(lm: CausalLM, ledger: Ledger, kind: str = "memory", **options: Any) -> WeightsPath:
    settings = {
        "study": AsGiven(),
        "budget": Budget(steps=4, batch=8),
        "background": rehearsal()[:40],
        "progress": False,
    }
    return WeightsPath(lm, ledger, **{"weights": _weights(kind), **settings, **options})


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger() as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weights_keeps_the_contract_of_a_path(lm: CausalLM, kind: str) -> None:
    check_path(lambda model, ledger: _path(model, ledger, kind), lm=lm)


@pytest.mark.parametrize("kind", KINDS)
def test_learning_lowers_the_loss_and_gives_the_model_back_to_the_byte(lm: CausalLM, ledger: Ledger, kind: str) -> None:
    before = lm.weights_hash()
    path = _path(lm, ledger, kind, budget=Budget(steps=15, batch=8))
    receipt = path.write(ITEMS, namespace="default")
    assert lm.weights_hash() == before
    assert receipt.details["last_loss"] < receipt.details["first_loss"]
    with path.model(lm) as lent:
        assert lent.weights_hash() != before
    assert lm.weights_hash() == before
    with pytest.raises(RuntimeError, match="boom"), path.model(lm):
        raise RuntimeError("boom")
    assert lm.weights_hash() == before


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_step_changes_the_chosen_rows_and_no_other_byte(lm: CausalLM, kind: str, passes: int) -> None:
    weights = _weights(kind)
    weights.prepare(lm, rehearsal()[:40])
    module = lm.module
    (name, layer), *_ = memory_layers(module).items()
    batch = collate(lm, encode(lm, [Phrasing(item.text) for item in ITEMS]))
    aims = [plain_aim(module, part_of(batch, number, passes)) for number in range(passes)]
    with weights.applied(module), weights.training(module) as trainer:
        for _ in range(5):
            before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
            trainer.step(aims)
            after = module.state_dict()
            changed = (after[f"{name}.values"] != before[f"{name}.values"]).any(dim=1).nonzero().flatten().tolist()
            assert 0 < len(changed) <= 16
            assert all(torch.equal(after[key], before[key]) for key in before if key != f"{name}.values")
            assert layer.recorder is not None
            chosen = layer.recorder.rows.tolist()
            assert set(changed) <= set(chosen)
            # A chosen row without a gradient stays, unless it decays: what reads it last predicts nothing.
            assert changed == chosen or not weights.weight_decay


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_can_be_held_in_the_model_and_leaves_no_byte_behind(lm: CausalLM, ledger: Ledger, kind: str) -> None:
    weights = _weights(kind)
    path = _path(lm, ledger, weights=weights)
    batch = collate(lm, encode(lm, [Phrasing(item.text) for item in ITEMS]))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return logits_of(lm.module, batch)

    untouched = logits()
    with path.model(lm):  # nothing is learnt, so nothing is there; OSF puts every matrix together again
        torch.testing.assert_close(logits(), untouched, rtol=0, atol=1e-6 if kind == "osf" else 0)
    path.write(ITEMS[:1], namespace="default")
    earlier = dict(weights.state())
    with path.model(lm):
        first = logits()
    path.write(ITEMS[1:], namespace="default")
    with path.model(lm) as lent:
        before, present = lent.weights_hash(), logits()
        with weights.holding(lm.module, {}):
            assert torch.equal(logits(), untouched)
        with weights.holding(lm.module, earlier):
            assert torch.equal(logits(), first)
        assert lent.weights_hash() == before
        assert torch.equal(logits(), present)
    assert not torch.equal(untouched, first)
    assert not torch.equal(first, present)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_tells_how_far_it_has_gone(lm: CausalLM, ledger: Ledger, kind: str) -> None:
    path = _path(lm, ledger, kind)
    measures = path.write(ITEMS, namespace="default").details["measures"]
    assert ("rows_touched" in measures) == kind.startswith("memory")
    batch = collate(lm, encode(lm, [Phrasing(item.text) for item in ITEMS]))
    with torch.no_grad():
        known = logits_of(lm.module, batch)[batch.predicting].double().softmax(-1)
        with path.model(lm):
            found = logits_of(lm.module, batch)[batch.predicting].double().softmax(-1)
    expected = (known * (known.log() - found.log())).sum(-1).mean()
    assert measures["kl_on_new"] == pytest.approx(float(expected), rel=1e-3)


def _learn_in_passes(kind: str, passes: int, **axes: Any) -> tuple[Mapping[str, torch.Tensor], int, list[int]]:
    """In float64, four steps of eleven texts, new ones and rehearsed: what was learnt, tokens, and how many texts each
    pass that takes gradients has read."""
    exact, rows = build_lm(), list[int]()

    def note(module: Any, arguments: Any, given: Any) -> None:
        if torch.is_grad_enabled() and given.get("input_ids") is not None:
            rows.append(len(given["input_ids"]))

    exact.module.register_forward_pre_hook(note, with_kwargs=True)
    budget = Budget(steps=4, batch=8, accumulation=passes)
    with Ledger() as ledger:
        path = _path(exact, ledger, kind, budget=budget, rehearsal=Experience(per_step=8), **axes)
        tokens = path.write(ITEMS, namespace="default").cost.lm.tokens
        return path._weights.state(), tokens, rows


def _assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "new_blocks"])
def test_a_step_of_several_passes_is_that_of_one_and_reads_fewer_texts_at_once(kind: str) -> None:
    """Every block of this model has a memory, so that it takes no new blocks."""
    whole, tokens, rows = _learn_in_passes(kind, 1)
    assert rows == 4 * [11]
    for passes, parts in ((3, [4, 4, 3]), (100, 11 * [1])):
        found, read, rows = _learn_in_passes(kind, passes)
        assert (read, rows) == (tokens, 4 * parts)
        _assert_close(found, whole)


@pytest.mark.parametrize("kind", ["memory", "full"])
def test_what_holds_a_step_back_does_so_once_however_many_passes_it_has(kind: str) -> None:
    for axes in ({"penalty": OutputDivergence(per_step=4)}, {"projection": AveragedGradient(per_step=4)}):
        _assert_close(_learn_in_passes(kind, 3, **axes)[0], _learn_in_passes(kind, 1, **axes)[0])


def test_passes_of_a_step_are_refused_to_objectives_that_look_at_all_of_it(lm: CausalLM, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"accumulation=2 divides steps of objective=nll; Selective.* accumulation=1"):
        _path(lm, ledger, budget=Budget(accumulation=2), objective=SelectiveNegativeLogLikelihood())


def test_effort_multiplies_steps_and_passes() -> None:
    budget = Budget(steps=10, passes=3, effort=0.5)
    assert (budget.most_steps, budget.most_passes) == (5, 2)
    assert (Budget(steps=1, effort=0.1).most_steps, Budget(effort=2.0).most_passes) == (1, None)
    for effort in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="effort must be above 0"):
            Budget(effort=effort)
    with pytest.raises(ValueError, match="accumulation must be at least 1, got 40, 96, None and 0"):
        Budget(accumulation=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_stops_the_write_and_restores_everything(
    lm: CausalLM, ledger: Ledger, kind: str
) -> None:
    class Exploding:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, setting: Any, batch: Any) -> Aim:
            self.calls += 1
            aim = NegativeLogLikelihood()(setting, batch)
            return Aim(batch, lambda: aim.loss() * float("inf")) if self.calls == 7 else aim

    path = _path(lm, ledger, kind, objective=Exploding())
    path.write(ITEMS[:1], namespace="default")
    before, state = lm.weights_hash(), path.state_hash()
    with pytest.raises(FloatingPointError, match=r"step 3 of a write to 'weights': .* path\.memory\.weights\.rate"):
        path.write(ITEMS[1:], namespace="default")
    assert lm.weights_hash() == before
    assert path.state_hash() == state
    assert path.items(namespace="default") == ITEMS[:1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_step_that_leaves_a_weight_not_finite_is_undone(lm: CausalLM, ledger: Ledger, kind: str) -> None:
    weights = _weights(kind)
    weights.rate = math.inf  # type: ignore[attr-defined]
    path = _path(lm, ledger, budget=Budget(steps=1), weights=weights)
    before, state = lm.weights_hash(), path.state_hash()
    with pytest.raises(FloatingPointError, match=r"a learnt weight is not finite.* path\.memory\.weights\.rate"):
        path.write(ITEMS, namespace="default")
    assert lm.weights_hash() == before
    assert path.state_hash() == state


def test_forgetting_leaves_the_bytes_of_a_model_that_never_saw_the_item(lm: CausalLM) -> None:
    def learnt(*writes: list[Knowledge], forget: tuple[str, ...] = ()) -> str:
        with Ledger() as ledger:
            path = _path(lm, ledger)
            for write in writes:
                path.write(write, namespace="default")
            path.forget(forget, namespace="default")
            return path.state_hash()

    assert learnt(ITEMS[:2], ITEMS[2:], forget=("b",)) == learnt(ITEMS[:1], ITEMS[2:])
    assert learnt(ITEMS[:2], ITEMS[2:], forget=("b",)) != learnt(ITEMS[:2], ITEMS[2:])


def test_a_second_namespace_is_refused(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger)
    path.write(ITEMS[:1], "home")
    with pytest.raises(ValueError, match="one namespace per model copy"):
        path.read([Query("?", namespace="work")])


def test_a_study_text_longer_than_the_window_is_studied_in_parts(lm: CausalLM, ledger: Ledger) -> None:
    text = " ".join(f"{name} enjoys chess." for name in FIRST_NAMES) * 4
    ids, _ = lm.encode_phrasing(Phrasing(text))
    parts = -(-len(ids) // lm.window)
    batch = collate(lm, encode(lm, [Phrasing(text), Phrasing("Alma enjoys chess.")]))
    assert 1 < parts == len(batch.tokens) - 1
    assert batch.tokens[:-1][batch.attention[:-1].bool()].tolist() == ids
    assert int(batch.targets[:-1].sum()) == len(ids) - parts, "the first token of a part has nothing before it"
    path = _path(lm, ledger)
    path.write([Knowledge("long", text)], namespace="default")
    assert [item.id for item in path.items(namespace="default")] == ["long"]
    with pytest.raises(TooLarge, match=r"tokens, the window holds 512"):
        encode(lm, [Phrasing(" Alma", text)])


def test_rehearsal_is_studied_and_charged(lm: CausalLM) -> None:
    def written(method: Rehearsal) -> tuple[int, str]:
        with Ledger() as ledger:
            path = _path(lm, ledger, rehearsal=method)
            return path.write(ITEMS, namespace="default").cost.lm.tokens, path.state_hash()

    (alone, without), (beside, rehearsed) = written(NoRehearsal()), written(Experience(4))
    assert beside >= alone + 4 * 4 * min(len(lm.encode_phrasing(phrasing)[0]) for phrasing in rehearsal()[:40])
    assert rehearsed != without


def test_weights_survive_saving_and_loading(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    path = _path(lm, ledger)
    path.write(ITEMS, namespace="default")
    path.save(tmp_path / "saved")
    again = _path(lm, ledger)
    again.load(tmp_path / "saved")
    assert again.state_hash() == path.state_hash()


def _described(folder: Path, **others: Any) -> None:
    file = folder / f"{LEARNT}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | others))


def _a_flipped_bit(folder: Path) -> None:
    file = folder / f"{LEARNT}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial(_described, version=99), "holds version 99 of its weights path"),
        (partial(_described, writes=[[7]]), "holds a damaged weights path"),
        (partial(_described, undoable=[9]), "holds a damaged weights path"),
        (_a_flipped_bit, "holds a damaged weights path"),
    ],
)
def test_saved_weights_that_are_not_what_they_were_are_refused(
    lm: CausalLM, ledger: Ledger, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = _path(lm, ledger)
    path.write(ITEMS, namespace="default")
    path.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    state = path.state_hash()
    with pytest.raises(ValueError, match=message):
        path.load(tmp_path / "saved")
    assert path.state_hash() == state


def test_weights_that_were_learnt_from_another_ledger_are_refused(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    """Else what it records would be counted on from a place that it does not have."""
    path = _path(lm, ledger)
    path.write(ITEMS, namespace="default")
    path.save(tmp_path / "saved")
    with Ledger() as other, pytest.raises(ValueError, match="learnt from another ledger than"):
        _path(lm, other).load(tmp_path / "saved")
    path.write([Knowledge("more", "Dan rows.")], namespace="default")
    again = _path(lm, ledger)
    again.load(tmp_path / "saved")
    again.flush()
    assert again.state_hash() == path.state_hash()


@pytest.mark.parametrize(
    "weights",
    [
        Full(),
        *map(Inserted, (Bottleneck(), VirtualTokens(), PromptPool(), LowRankStack(), NewBlocks(), Experts())),
    ],
    ids=lambda weights: type(getattr(weights, "insertion", weights)).__name__,
)
def test_what_half_precision_would_round_away_is_refused(
    make_tiny_lm: Callable[..., CausalLM], ledger: Ledger, weights: Weights
) -> None:
    lm = make_tiny_lm(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"needs float32 weights, this model has \['torch.bfloat16'\]"):
        WeightsPath(lm, ledger, weights=weights, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": math.nan}, "rate must be above 0 and finite, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.5}, r"momentum must be in \[0, 1\), got -0.5"),
        ({"background_batch": 0}, "background_batch must be at least 1, got 0"),
    ],
)
def test_options_that_no_optimiser_can_work_with_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryRows(**options)
    if {"rate", "weight_decay"} & set(options):
        for build in (Full, partial(Adapter, LoraConfig()), partial(Inserted, Bottleneck())):
            with pytest.raises(ValueError, match=message):
                build(**options)


def test_a_share_of_hubs_is_refused_where_nothing_tells_them(lm: CausalLM, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"hub_share=0.5 leaves out what the background reads, and there is none"):
        _path(lm, ledger, weights=MemoryRows(hub_share=0.5), background=())


def test_an_item_of_which_nothing_can_be_learnt_is_refused_by_name(
    make_tiny_lm: Callable[..., CausalLM], ledger: Ledger
) -> None:
    """The first token of a sequence has nothing before it, and not every tokenizer puts a start there."""
    plain = make_tiny_lm()
    plain.tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    lm = CausalLM("no start", loader=lambda name: (plain.module, plain.tokenizer))
    assert lm.encode_phrasing(Phrasing("A", ends=False))[1] == [False]
    path = _path(lm, ledger, study=Phrasings())
    said = (Phrasing("A", ends=False),)
    with pytest.raises(ValueError, match="item 'short' has nothing to learn"):
        path.write([*ITEMS, Knowledge("short", "A", phrasings=said)], namespace="default")
    assert path.items("default") == []


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("before_fsync:3", 1),
        ("before_rename:3", 1),
        ("after_rename:3", 1),
        ("before_rename:4", 1),
        ("after_rename:4", 2),
    ],
)
def test_a_save_that_is_killed_leaves_the_earlier_one_or_is_there(tmp_path: Path, moment: str, left: int) -> None:
    """Over an earlier one in the same folder; each save writes two files, of which the second counts."""
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from memory_paths.parametric.storage import store\n"
        "for number in (1, 2):\n"
        "    store(Path(sys.argv[1]), 'part', {'a': torch.tensor([number])}, {'number': number}, version=1)\n"
    )
    env = {**os.environ, FAILPOINT: f"part.{moment}"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    body, tensors = stored(tmp_path, "part", "thing", version=1)
    assert (body["number"], tensors["a"].item()) == (left, left)
    store(tmp_path, "part", {"a": torch.tensor([3])}, {"number": 3}, version=1)
    assert stored(tmp_path, "part", "thing", version=1)[1]["a"].item() == 3


def test_weights_that_were_learnt_on_another_model_are_refused(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    path = _path(lm, ledger)
    path.write(ITEMS, namespace="default")
    path.save(tmp_path / "saved")
    tokenizer = build_tokenizer()
    other = CausalLM("other", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=2), tokenizer))
    with Ledger() as empty, pytest.raises(ValueError, match="learnt on another model than 'other'"):
        _path(other, empty).load(tmp_path / "saved")


def test_a_full_disk_leaves_no_half_of_saved_weights(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    path = _path(lm, ledger, "full")
    path.write(ITEMS, namespace="default")
    with full_disk(10_000), pytest.raises(OSError, match="File too large"):
        path.save(tmp_path / "saved")
    assert list((tmp_path / "saved").iterdir()) == []
    path.save(tmp_path / "saved")
    again = _path(lm, ledger, "full")
    again.load(tmp_path / "saved")
    assert again.state_hash() == path.state_hash()


def test_a_model_without_a_memory_layer_gets_an_empty_one_and_learns(
    make_tiny_lm: Callable[..., CausalLM], ledger: Ledger
) -> None:
    bare = make_tiny_lm()
    before, modules = bare.weights_hash(), [name for name, _ in bare.module.named_modules()]
    path = _path(bare, ledger, budget=Budget(steps=15, batch=8))
    receipt = path.write(ITEMS, namespace="default")
    assert receipt.details["last_loss"] < receipt.details["first_loss"]
    assert bare.weights_hash() == before
    assert [name for name, _ in bare.module.named_modules()] == modules


def test_tf_idf_prefers_what_the_background_seldom_reads() -> None:
    counts = torch.tensor([4.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    background = Background(99, torch.tensor([99, 0, 0, 0]), "address")
    generator = torch.Generator()
    scores = TfIdf()(counts, background, generator)
    expected = [0.4 * 0.0, 0.4 * torch.tensor(100.0).log().item(), 0.2 * torch.tensor(100.0).log().item(), 0.0]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert top_rows(scores, counts, 2).tolist() == [1, 2]
    assert top_rows(TermFrequency()(counts, background, generator), counts, 2).tolist() == [0, 1]
    drawn = {tuple(top_rows(RandomSlots()(counts, background, generator), counts, 2).tolist()) for _ in range(40)}
    assert drawn == {(0, 1), (0, 2), (1, 2)}, "unread slots are never chosen"


def test_the_best_rows_are_those_of_a_stable_sort_ties_to_the_lower_slot() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 3, (500,), generator=generator).double()
    scores = torch.randint(0, 6, (500,), generator=generator).double()  # many ties
    accessed = counts.nonzero().flatten()
    ranked = accessed[torch.argsort(scores[accessed], descending=True, stable=True)]
    for rows in (1, 7, 100, len(accessed), 10_000):
        assert top_rows(scores, counts, rows).tolist() == sorted(ranked[:rows].tolist())
    assert top_rows(scores, counts, None).tolist() == accessed.tolist()
    assert top_rows(scores, torch.zeros(500), 5).tolist() == []


def test_statistics_gathered_with_other_keys_are_refused(lm: CausalLM) -> None:
    weights = MemoryRows(rows=4)
    weights.prepare(lm, rehearsal()[:8])
    (layer,) = memory_layers(lm.module).values()
    saved = layer.keys.detach().clone()
    with torch.no_grad():
        layer.keys.add_(0.1)
    try:
        with (
            pytest.raises(ValueError, match="gathered with other keys"),
            weights.applied(lm.module),
            weights.training(lm.module),
        ):
            pass
    finally:
        with torch.no_grad():
            layer.keys.copy_(saved)


def _tensors(path: WeightsPath) -> dict[str, torch.Tensor]:
    return dict(path._weights.state())


@pytest.mark.parametrize("kind", [*KINDS, "memory_as_shipped"])
def test_a_penalty_keeps_the_weights_nearer_to_what_they_were(lm: CausalLM, kind: str) -> None:
    def moved(penalty: Penalty) -> float:
        weights, module = MemoryRows() if kind == "memory_as_shipped" else _weights(kind), lm.module
        weights.prepare(lm, rehearsal()[:40])
        batch = collate(lm, encode(lm, [Phrasing(item.text) for item in ITEMS]))
        with weights.applied(module):
            before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
            with weights.training(module) as trainer:
                restraint = penalty(make_setting(lm, weights), trainer)
                trainer.remember()
                for _ in range(4):
                    trainer.step([plain_aim(module, batch)], settle=restraint.settle)
            return sum(float((p.detach() - before[name]).square().sum()) for name, p in module.named_parameters())

    assert 0 < moved(TowardsBefore(0.5)) < moved(NoPenalty()) == moved(TowardsBefore(0.0))


def test_a_penalty_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength of a penalty must be in \[0, 1\), got 1"):
        TowardsBefore(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_lent_twice_is_given_back_once_and_whole(lm: CausalLM, ledger: Ledger, kind: str) -> None:
    before = lm.weights_hash()
    path = _path(lm, ledger, kind)
    path.write(ITEMS, namespace="default")
    with path.model(lm):
        learnt = lm.weights_hash()
        with path.model(lm):
            assert lm.weights_hash() == learnt
        assert lm.weights_hash() == learnt != before
    assert lm.weights_hash() == before


def test_an_item_that_does_not_hold_yet_is_refused(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger)
    for ask in (path.write, path.admit):
        with pytest.raises(ValueError, match="weights learn at once"):
            ask([replace(ITEMS[0], valid_from=9e12)], "default")
    assert path.items(namespace="default") == []


def test_what_the_ledger_holds_is_learnt_again_when_a_path_opens_on_it(lm: CausalLM, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        path = _path(lm, ledger)
        path.write(ITEMS[:2], namespace="default")
        path.write([Knowledge("b2", "Bruno Barrbury enjoys rowing.", key="bruno/hobby"), ITEMS[2]], namespace="default")
        expected = path.state_hash()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        again = _path(lm, ledger)
        again.flush()
        assert again.state_hash() == expected
        assert {item.id for item in again.items(namespace="default")} == {"a", "b2", "c"}


def test_what_moves_to_another_place_is_unlearnt(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger)
    path.write(ITEMS[:2], namespace="default")
    path.write(ITEMS[2:], namespace="default")
    ledger.move(["b"], source=path.name, target="elsewhere", namespace="default")
    path.flush()
    assert {item.id for item in path.items(namespace="default")} == {"a", "c"}
    with Ledger() as other:
        fresh = _path(lm, other)
        fresh.write(ITEMS[:1], namespace="default")
        fresh.write(ITEMS[2:], namespace="default")
        assert all(torch.equal(tensor, _tensors(fresh)[name]) for name, tensor in _tensors(path).items())


def test_an_added_memory_is_saved_loaded_and_answers(make_tiny_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    def answer(path: WeightsPath, bare: CausalLM) -> float:
        with path.model(bare) as lent:
            (score,) = lent.loglikelihood([(Prompt("Where does Alma Ashway live?"), "Alavia")])
            return float(score)

    with Ledger() as ledger:
        bare = make_tiny_lm()
        untaught = bare.loglikelihood([(Prompt("Where does Alma Ashway live?"), "Alavia")])[0]
        asked = Phrasing("Alavia", "Where does Alma Ashway live?", asks=True)
        path = WeightsPath(bare, ledger, weights=MemoryRows(rows=400, rate=50.0), progress=False)
        path.write([replace(ITEMS[0], phrasings=(asked,))], namespace="default")
        learnt = answer(path, bare)
        path.save(tmp_path / "saved")
        other = make_tiny_lm()
        again = WeightsPath(other, ledger, weights=MemoryRows(rows=400, rate=50.0), progress=False)
        again.load(tmp_path / "saved")
        assert answer(again, other) == learnt > untaught


def test_two_agents_that_share_a_model_in_two_threads_never_see_each_others_weights(lm: CausalLM) -> None:
    questions = ["Where does Alma Ashway live?", "What does Bruno Barrbury enjoy?", "Who is Cora Carldale?"]

    def taught(number: int) -> list[list[tuple[str, float | None]]]:
        found = []
        with Ledger() as ledger:
            path = _path(lm, ledger, ("full", "memory")[number])
            agent = Agent(lm, {path.name: path}, ledger, max_new_tokens=6)
            for item in ITEMS:
                agent.learn([item])
                found.append([(answer.text, answer.confidence) for answer in agent.answer(questions)])
        return found

    alone = [taught(0), taught(1)]
    assert alone[0] != alone[1]
    before = lm.weights_hash()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(taught, [0, 1] * 4)) == alone * 4
    assert lm.weights_hash() == before


def test_a_small_write_ends_after_its_passes(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger, budget=Budget(steps=50, batch=1, passes=4))
    assert path.write(ITEMS[:1], namespace="default").details["steps"] == 4
    assert path.write(ITEMS[1:], namespace="default").details["steps"] == 8
    with pytest.raises(ValueError, match="must be at least 1, got 8, 8, 0 and 1"):
        Budget(8, 8, 0)


def test_an_item_with_more_phrasings_than_a_step_holds_is_studied_whole(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger, study=Phrasings(), budget=Budget(steps=50, batch=2, passes=1))
    many = replace(ITEMS[0], phrasings=tuple(Phrasing(f"Alma lives in house {number}.") for number in range(5)))
    assert path.write([many], namespace="default").details["steps"] == 3


def _shared_lm() -> CausalLM:
    """A model with one table that two attached memories read, beside a memory of its own."""
    tokenizer = build_tokenizer()
    shape = replace(SHAPE, layers=3)
    lm = CausalLM("retrofitted", loader=lambda name: (build_model(shape, len(tokenizer), seed=1), tokenizer))
    layers = ["model.layers.0.mlp", "model.layers.2.mlp"]
    config = MemoryLayerConfig(SHAPE.width, half_keys=16, heads=2, top_k=4, half_query=8)
    for wrapped in attach_all(lm.module, layers, config, shared=True).values():
        torch.nn.init.ones_(wrapped.scale)
    return lm


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_shared_table_is_written_as_one_and_no_other_byte_beside_it(ledger: Ledger, optimiser: Any) -> None:
    lm = _shared_lm()
    names = ["model.layers.0.mlp.memory", "model.layers.2.mlp.memory"]
    rate = 20.0 if optimiser == "sgd" else 1e-2
    weights = MemoryRows(rows=12, rate=rate, optimiser=optimiser, memories=["model.layers.2.mlp"])
    path = _path(lm, ledger, weights=weights, budget=Budget(steps=1, batch=8))
    before = {name: tensor.clone() for name, tensor in lm.module.state_dict().items()}
    untouched = lm.weights_hash()
    path.write(ITEMS, namespace="default")
    assert lm.weights_hash() == untouched
    state = weights.state()
    assert set(state) == {f"{names[0]}/rows", f"{names[0]}/values"}, "one table, named after the first that reads it"
    rows = state[f"{names[0]}/rows"]
    assert len(rows) == 12
    with path.model(lm):
        after = lm.module.state_dict()
        for name in names:
            changed = (after[f"{name}.values"] != before[f"{name}.values"]).any(dim=1).nonzero().flatten()
            assert set(changed.tolist()) <= set(rows.tolist())
        others = [name for name in before if name not in {f"{one}.values" for one in names}]
        assert all(torch.equal(after[name], before[name]) for name in others)
        with weights.holding(lm.module, {}):
            assert lm.weights_hash() == untouched
    assert lm.weights_hash() == untouched
    path.undo()
    assert weights.state() == {}


@pytest.mark.parametrize("counted", ["predicting", "all"])
def test_rows_of_a_shared_table_are_chosen_by_what_all_its_layers_read_and_learn_from_both(counted: Any) -> None:
    lm = _shared_lm()
    lm.module.double()
    weights = MemoryRows(rows=None, rate=1.0, memories="attached", counted=counted)
    weights.prepare(lm, [])
    module, batch = lm.module, collate(lm, encode(lm, [Phrasing(item.text) for item in ITEMS]))
    places = (batch.predicting if counted == "predicting" else batch.attention.bool()).flatten()
    assert not places.all(), "there is padding"
    ((name, table),) = weights._tables(module).items()
    (dense,) = torch.autograd.grad(mean_loss(module, batch), table.values)
    read: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, given: read.append(layer.look_up(given[0].flatten(0, 1))[0][places])
        )
        for layer in table.layers
    ]
    mean_loss(module, batch)
    for hook in hooks:
        hook.remove()
    before = table.values.detach().clone()
    with weights.applied(module):
        with weights.training(module) as trainer:
            trainer.step([plain_aim(module, batch)])
        rows = weights.state()[f"{name}/rows"]
        assert len(read) == 2
        assert torch.equal(rows, torch.cat(read).unique())
        torch.testing.assert_close(before[rows] - table.values.detach()[rows], dense[rows], rtol=0, atol=1e-12)
    assert torch.equal(table.values, before)


def test_a_memory_that_would_not_be_added_is_refused(lm: CausalLM, ledger: Ledger) -> None:
    for option in ({"layer": "model.layers.0.mlp"}, {"half_keys": 8}, {"query_tokens": 2}):
        with pytest.raises(
            ValueError, match=r"layer, half_keys and query_tokens say what memory is added .* leave them out"
        ):
            _path(lm, ledger, weights=MemoryRows(**option))  # type: ignore[arg-type]


def test_only_the_memories_that_are_named_are_written(ledger: Ledger) -> None:
    lm = _shared_lm()
    own = "model.layers.1.mlp"
    for memories, expected in ((None, {own, f"{own[:13]}0.mlp.memory"}), ([own], {own})):
        with Ledger() as fresh:
            path = _path(lm, fresh, weights=MemoryRows(rows=8, rate=5.0, memories=memories))
            path.write(ITEMS, namespace="default")
            assert {name.rpartition("/")[0] for name in _tensors(path)} == expected
    with pytest.raises(ValueError, match=r"no memory \['model.layers.9.mlp'\]; it has \['model.layers.0.mlp.memory', "):
        _path(lm, ledger, weights=MemoryRows(memories=["model.layers.9.mlp"]))
    with pytest.raises(ValueError, match="must be a list of names, 'attached' or null, got 'all'"):
        MemoryRows(memories="all")  # type: ignore[arg-type]


def test_a_memory_is_added_beside_a_models_own_where_attached_ones_are_wanted(lm: CausalLM, ledger: Ledger) -> None:
    before, modules = lm.weights_hash(), [name for name, _ in lm.module.named_modules()]
    path = _path(lm, ledger, weights=MemoryRows(rows=64, rate=50.0, memories="attached", half_keys=16))
    receipt = path.write(ITEMS, namespace="default")
    assert receipt.details["last_loss"] < receipt.details["first_loss"]
    assert {name.rpartition("/")[0] for name in _tensors(path)} == {"model.layers.0.mlp.memory"}
    assert (lm.weights_hash(), [name for name, _ in lm.module.named_modules()]) == (before, modules)


def test_an_added_memory_stands_in_anothers_place_and_gives_it_back(lm: CausalLM) -> None:
    one, other = (MemoryRows(memories="attached", half_keys=8, query_tokens=2, seed=seed) for seed in (0, 1))
    one.fit(lm)
    other.fit(lm)
    block = lm.module.model.layers[0]
    plain = block.mlp
    with one.applied(lm.module):
        first = block.mlp
        with other.applied(lm.module), other.applied(lm.module):
            assert block.mlp not in (first, plain)
            notes = tuple(f"Alma Ashway has {number} boats." for number in range(20))
            lm.loglikelihood([(Prompt("Where does Alma live?", notes), answer) for answer in ("here", "there")])
        assert block.mlp is first
        assert len(block._forward_pre_hooks) == 1
    assert block.mlp is plain
    assert not block._forward_pre_hooks


@pytest.mark.parametrize(("preset", "place"), [("sparse_memory_attached", 1), ("sparse_memory_last", 3)])
def test_a_memory_is_added_in_the_middle_or_at_the_end(preset: str, place: int) -> None:
    options = ("path.memory.background=null", "path.memory.budget.steps=1", "progress=false")
    with load(f"path={preset}", *options) as agent:
        agent.learn(ITEMS)
        state = agent.paths[preset]._weights.state()  # type: ignore[attr-defined]
    assert {name.rpartition("/")[0] for name in state} == {f"model.layers.{place}.mlp.memory"}


def test_a_model_is_loaded_with_the_memory_that_was_saved_beside_it(tmp_path: Path) -> None:
    module, tokenizer = load_embedded("embedded")
    attach_all(module, ["model.layers.1.mlp"], MemoryLayerConfig(128, half_keys=16))["model.layers.1.mlp"].open_empty()
    save_memory(module, tmp_path)
    attached = ("path=sparse_memory_attached", f"lm.memory={tmp_path}", "path.memory.background=null", "progress=false")
    with load(*attached, "path.memory.budget.steps=2") as agent, load("path=none") as bare:
        agent.learn(ITEMS)
        path = agent.paths["sparse_memory_attached"]
        assert {name.rpartition("/")[0] for name in path._weights.state()} == {"model.layers.1.mlp.memory"}  # type: ignore[attr-defined]
        asked = [(Prompt("Where does Alma Ashway live?"), "Alavia")]
        assert agent.lm.loglikelihood(asked) == bare.lm.loglikelihood(asked), "an empty memory changes nothing"
    with pytest.raises(InstantiationException, match="nowhere holds no memory"):
        load("lm.memory=nowhere")
    with pytest.raises(ValueError, match="needs a memory_loader"):
        CausalLM("tiny", loader=lambda name: (module, tokenizer), memory=tmp_path)


def test_what_the_background_reads_tells_how_the_table_is_used(lm: CausalLM, ledger: Ledger) -> None:
    path = _path(lm, ledger)
    measures = path.write(ITEMS, namespace="default").details["measures"]
    (layer,) = memory_layers(lm.module).values()
    reads = torch.zeros(layer.config.slots)

    def note(layer: Any, given: tuple[torch.Tensor, ...]) -> None:
        slots, _ = layer.look_up(given[0].flatten(0, 1))
        reads.index_add_(0, slots.flatten(), torch.ones(slots.numel()))

    hook = layer.register_forward_pre_hook(note)
    for sequence in encode(lm, rehearsal()[:40]):
        with torch.no_grad():
            logits_of(lm.module, collate(lm, [sequence]))
    hook.remove()
    share = reads.double() / reads.sum()
    assert measures["slots_in_use"] == pytest.approx(float((reads > 0).double().mean()), abs=0.01)
    assert measures["hub_reads"] == pytest.approx(float(share.topk(2).values.sum()), rel=0.01)
    with Ledger() as fresh:
        bare = _path(lm, fresh, background=()).write(ITEMS, namespace="default").details["measures"]
    assert "slots_in_use" not in bare, "nothing is said where nothing was read"


def _statistics(lm: CausalLM, folder: Path, texts: int = 40, **options: Any) -> tuple[MemoryRows, int]:
    weights = MemoryRows(rows=8, rate=5.0, statistics=folder, **options)
    weights.fit(lm)
    return weights, weights.prepare(lm, rehearsal()[:texts])


def test_background_statistics_are_gathered_once_and_then_loaded(lm: CausalLM, tmp_path: Path) -> None:
    gathered, tokens = _statistics(lm, tmp_path)
    again, none = _statistics(lm, tmp_path)
    assert tokens > none == 0
    (name,) = gathered._background
    assert gathered._background[name].batches == again._background[name].batches == 5
    first, second = (one._background[name].document_frequency for one in (gathered, again))
    assert torch.equal(first, second)
    assert first.any()
    assert gathered.measures()["hub_reads"] == again.measures()["hub_reads"] > 0

    def learnt(folder: Path | None) -> str:
        with Ledger() as ledger:
            path = _path(lm, ledger, weights=MemoryRows(rows=8, rate=5.0, statistics=folder))
            path.write(ITEMS, namespace="default")
            return path.state_hash()

    assert learnt(None) == learnt(tmp_path)


def test_where_statistics_lie_does_not_say_how_a_write_learns(lm: CausalLM, ledger: Ledger, tmp_path: Path) -> None:
    """An agent that was saved beside one folder is the same beside another: its journal is kept."""
    settings = [
        _path(lm, ledger, weights=MemoryRows(rows=8, statistics=folder))._settings
        for folder in (None, tmp_path / "one", tmp_path / "other")
    ]
    assert settings[0] == settings[1] == settings[2]
    assert settings[0] != _path(lm, ledger, weights=MemoryRows(rows=9))._settings


def test_an_adapter_has_the_same_fingerprint_in_every_process() -> None:
    """PEFT keeps the names of modules in a set, whose order changes with the hash seed."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    program = (
        "from peft import LoraConfig; from memory_paths.parametric.adapter import Adapter;"
        f"config = LoraConfig(target_modules={names});"
        "assert list(config.target_modules) != sorted(config.target_modules), 'this seed shows nothing';"
        "print(Adapter(config, rate=1e-3).fingerprint())"
    )
    told = run(sys.executable, "-c", program, env={**os.environ, "PYTHONHASHSEED": "1"}).stdout
    assert told.strip() == Adapter(LoraConfig(target_modules=names), rate=1e-3).fingerprint()
    assert '["k_proj", "o_proj", "q_proj", "v_proj"]' in told


def test_background_statistics_of_anything_else_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    _statistics(lm, tmp_path)
    for options, what in (
        ({"background_batch": 4}, "other background_batch; name another folder"),
        ({"texts": 32}, "other texts, window or seed; name"),
        ({"seed": 3}, "other texts, window or seed; name"),
    ):
        with pytest.raises(ValueError, match=what):
            _statistics(lm, tmp_path, **options)  # type: ignore[arg-type]
    with Ledger() as ledger, pytest.raises(ValueError, match="other background_batch"):  # at the door, without texts
        _path(lm, ledger, weights=MemoryRows(statistics=tmp_path, background_batch=4))
    (layer,) = memory_layers(lm.module).values()
    saved = layer.keys.detach().clone()
    with torch.no_grad():
        layer.keys.add_(0.1)
    try:
        with pytest.raises(ValueError, match="other weights of the model, other keys and queries of 'model"):
            _statistics(lm, tmp_path)
    finally:
        with torch.no_grad():
            layer.keys.copy_(saved)
    words, lm.tokenizer = lm.tokenizer, build_tokenizer()
    lm.tokenizer.add_tokens(["zyx"])
    try:
        with pytest.raises(ValueError, match="other tokenizer; name another folder"):
            _statistics(lm, tmp_path)
    finally:
        lm.tokenizer = words
    content = bytearray((tmp_path / "background.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "background.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="holds a damaged set of background statistics"):
        _statistics(lm, tmp_path)
