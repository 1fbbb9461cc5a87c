"""Every choice of every axis learns on the embedded model and on a real one, and changes what it should alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import Linear

from memory_paths.build import compose, plain
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.embedded import load
from memory_paths.parametric.objective import logits_of
from memory_paths.parametric.path import WeightsPath
from memory_paths.parametric.setting import Setting
from memory_paths.streams.files import texts
from memory_paths.streams.world import rehearsal
from memory_paths.types import Knowledge, Phrasing, Prompt

CONF = Path(__file__).parent.parent / "conf"
AXES = ("weights", "study", "objective", "rehearsal", "penalty", "projection", "schedule", "merging", "selector")
CHOICES = [(axis, file.stem) for axis in AXES for file in sorted((CONF / axis).glob("*.yaml"))]
# Of many rows, or among few reads, selectors choose the same ones.
FEW_ROWS = ("path=sparse_memory", "path.memory.weights.rows=12", "path.memory.weights.counted=all")
SMALL = ("path.memory.budget.steps=3", "path.memory.budget.batch=4", "progress=false")
ITEM = Knowledge(
    "alma/town",
    "Alma Ashway lives in Corlund.",
    phrasings=(
        Phrasing(" Corlund.", "Alma Ashway lives in"),
        Phrasing("Corlund", "Where does Alma Ashway live?", asks=True),
    ),
)
OTHER = Knowledge("bruno", "Bruno Barrbury enjoys rowing.")


@pytest.fixture(scope="module")
def embedded() -> CausalLM:
    return CausalLM("embedded", loader=load)


def _overrides(axis: str, choice: str) -> list[str]:
    if axis == "selector":
        return [*FEW_ROWS, f"selector@path.memory.weights.selector={choice}"]
    if choice == "orthogonal":  # it keeps apart what only these weights have
        return ["path=o_lora"]
    return ["path=lora", f"{axis}@path.memory.{axis}={choice}"]


def _trained(lm: CausalLM, choice: str) -> range:
    """How many numbers may have been learnt, from the shapes of the model and what the authors of a method say of it;
    for rows of a memory at most those of three steps."""
    config, own = lm.module.config, dict(lm.module.named_parameters())
    blocks = config.num_hidden_layers
    linear = [
        tuple(one.weight.shape) for name, one in lm.module.named_modules() if isinstance(one, Linear) and "." in name
    ]
    hidden, kept = config.hidden_size, 2 * blocks * config.num_key_value_heads * config.head_dim
    both_sides = sum(map(sum, linear))
    if choice in ("memory", "selector"):
        rows = 32 if choice == "memory" else 12
        return range(rows * hidden, 3 * rows * hidden + 1, hidden)
    exact = {
        "full": sum(tensor.numel() for tensor in own.values()),
        "lora_stack": 8 * both_sides,
        "shira": 16 * both_sides,
        "ia3": sum(out for out, _ in linear),
        "osf": sum(min(shape) // 2 * (sum(shape) + 1) for shape in linear),
        "adapter": 2 * blocks * (2 * 16 * hidden + 16 + hidden),
        "experts": blocks * (2 * 64 * hidden + hidden),
        "prompt": 16 * hidden,
        "prefix": 16 * kept,
        "cartridge": 16 * kept,
        "prompt_pool": 2 * 8 * hidden + 8 * 4 * kept,
        # Of blocks without a memory.
        "new_blocks": sum(
            tensor.numel()
            for name, tensor in own.items()
            if ".layers." in name and f"{'.'.join(name.split('.')[:3])}.mlp.values" not in own
        ),
        "orthogonal": 8 * both_sides,  # with o_lora
    }.get(choice, 16 * both_sides)  # that is lora, which the other axes are tried with
    return range(exact, exact + 1)


_LEARNT: dict[str, list[torch.Tensor]] = {}  # without a choice, which is the same for many
SAME = {"phrasings", "nll", "none", "constant", "tf_idf"}  # the presets' own


def _learnt(
    lm: CausalLM, overrides: Sequence[str], background: Sequence[Phrasing], items: Sequence[Knowledge] = (ITEM,)
) -> list[torch.Tensor]:
    """What writes of one item each leave to keep."""
    with Ledger() as ledger:
        path = _path(lm, ledger, overrides, background)
        for item in items:
            path.write([item], namespace="default")
        return _state(path)


def _plain(lm: CausalLM, axis: str, choice: str) -> tuple[list[str], list[Knowledge]]:
    """What a choice is to differ from, and what is written to see it."""
    if choice == "orthogonal":  # of what an earlier write has read
        return ["path=o_lora", "penalty@path.memory.penalty=none"], [ITEM, OTHER]
    if choice == "policy_gradient":  # of answers some of which are better than others: the model says this now and then
        return ["path=lora"], [replace(ITEM, phrasings=(ITEM.phrasings[0], *_said(lm)))]
    return _overrides(axis, choice)[:-1], [ITEM]


def _path(lm: CausalLM, ledger: Ledger, overrides: Sequence[str], background: Sequence[Phrasing]) -> WeightsPath:
    described = plain(compose(*overrides, *SMALL))["path"]["memory"]
    described = {name: value for name, value in described.items() if name != "background"}
    build = instantiate({**described, "_partial_": True}, lm=lm, ledger=ledger, _convert_="all")
    path: WeightsPath = build(background=background)
    return path


def _state(path: WeightsPath) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(path._weights.state().items())]


def _learn(lm: CausalLM, axis: str, choice: str, background: Sequence[Phrasing]) -> None:
    own = dict(lm.module.named_parameters())
    before, untouched = {name: tensor.detach().clone() for name, tensor in own.items()}, lm.weights_hash()
    sequence = Setting(lm, None, (), tuple, None, {}, print).batch([ITEM.phrasings[0]])  # type: ignore[arg-type]
    with torch.no_grad():
        unlearnt = logits_of(lm.module, sequence)
    with Ledger() as ledger:
        path = _path(lm, ledger, _overrides(axis, choice), background)
        measures = path.write([ITEM], namespace="default").details["measures"]
        assert lm.weights_hash() == untouched
        with path.model(lm):
            changed = {name for name, tensor in own.items() if not torch.equal(tensor, before[name])}
            if choice != "policy_gradient":  # of equally good answers it learns nothing
                with torch.no_grad():
                    assert not torch.equal(logits_of(lm.module, sequence), unlearnt)
        learnt = _state(path)
        assert measures["weights_changed"] in _trained(lm, "selector" if axis == "selector" else choice)
        if choice == "full":
            assert changed
        elif axis == "selector" or choice == "memory":
            assert changed <= {name for name in own if name.endswith("mlp.values")}
        else:
            assert not changed
    assert lm.weights_hash() == untouched
    if axis != "weights" and choice not in SAME:
        plain, items = _plain(lm, axis, choice)
        if items != [ITEM]:
            learnt = _learnt(lm, _overrides(axis, choice), background, items)
        if choice == "policy_gradient":  # which studies what asks nothing as it stands
            items = [replace(one, phrasings=one.phrasings[:1]) for one in items]
        key = f"{lm.name} {plain} {items} {background}"
        if key not in _LEARNT:
            _LEARNT[key] = _learnt(lm, plain, background, items)
        assert not all(map(torch.equal, learnt, _LEARNT[key])), "it learns otherwise than without this choice"


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_the_embedded_model(embedded: CausalLM, axis: str, choice: str) -> None:
    _learn(embedded, axis, choice, _said(embedded) if choice == "a_gem" else rehearsal()[:24])


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_a_real_model(stories_lm: CausalLM, data_folder: Path, axis: str, choice: str) -> None:
    known = texts(data_folder / "tinystories" / "stories.jsonl.gz", skip=0, limit=24)
    # What is asked on policy is what this model knows to answer: what it says.
    _learn(stories_lm, axis, choice, _said(stories_lm) if choice in ("a_gem", "on_policy") else known)


def _said(lm: CausalLM) -> list[Phrasing]:
    """What the model says by itself where the item is to make it say something else."""
    asked = ITEM.phrasings[1]
    (said,) = lm.generate([Prompt(asked.prompt)])
    return [replace(asked, completion=said.text)]
