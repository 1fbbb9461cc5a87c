"""Every choice of every axis learns on the embedded model and on a real one, and changes what it should alone."""

from __future__ import annotations

from collections.abc import Sequence
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
FEW_ROWS = ("path=sparse_memory", "path.memory.weights.rows=12")  # of many, selectors choose the same ones
SMALL = ("path.memory.budget.steps=3", "path.memory.budget.batch=4", "progress=false")
ITEM = Knowledge(
    "alma/town",
    "Alma Ashway lives in Corlund.",
    phrasings=(
        Phrasing(" Corlund.", "Alma Ashway lives in"),
        Phrasing("Corlund", "Where does Alma Ashway live?", asks=True),
    ),
)


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


# Choices that are the presets' own, and what one write of one item does not show: gradients that agree with what was
# known, directions apart from those of earlier writes, and the divergence's choice of its few slots.
SAME = {"phrasings", "nll", "none", "constant", "tf_idf", "a_gem", "orthogonal", "divergence"}
_PLAIN: dict[tuple[str, str], list[torch.Tensor]] = {}


def _learnt(lm: CausalLM, overrides: Sequence[str], background: Sequence[Phrasing]) -> list[torch.Tensor]:
    """What a write leaves to keep."""
    with Ledger() as ledger:
        path = _path(lm, ledger, overrides, background)
        path.write([ITEM], namespace="default")
        return _state(path)


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
        preset = _overrides(axis, choice)[:-1]
        name = (lm.name, preset[0])
        if name not in _PLAIN:
            _PLAIN[name] = _learnt(lm, preset, background)
        same = [torch.equal(*pair) for pair in zip(learnt, _PLAIN[name], strict=True)]
        assert not all(same), "it learns otherwise than without this choice"


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_the_embedded_model(embedded: CausalLM, axis: str, choice: str) -> None:
    _learn(embedded, axis, choice, rehearsal()[:24])


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_a_real_model(stories_lm: CausalLM, data_folder: Path, axis: str, choice: str) -> None:
    known = texts(data_folder / "tinystories" / "stories.jsonl.gz", skip=0, limit=24)
    if choice == "on_policy":  # it asks; what this model knows to answer is what it says
        asked = ["Who is Lily?", "What did Tom see?"]
        said = stories_lm.generate([Prompt(question) for question in asked])
        known = [Phrasing(one.text, question, asks=True) for one, question in zip(said, asked, strict=True)]
    _learn(stories_lm, axis, choice, known)
