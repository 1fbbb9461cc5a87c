"""Every choice of every axis learns on the embedded model and on a real one, and changes what it should alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from memory_paths.build import compose, plain
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.embedded import load
from memory_paths.parametric.objective import logits_of
from memory_paths.parametric.path import WeightsPath
from memory_paths.parametric.setting import Setting
from memory_paths.streams.files import texts
from memory_paths.streams.world import rehearsal
from memory_paths.types import Knowledge, Phrasing

CONF = Path(__file__).parent.parent / "conf"
AXES = ("weights", "study", "objective", "rehearsal", "penalty", "projection", "schedule", "merging", "selector")
CHOICES = [(axis, file.stem) for axis in AXES for file in sorted((CONF / axis).glob("*.yaml"))]
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
        return ["path=sparse_memory", f"selector@path.memory.weights.selector={choice}"]
    if choice == "orthogonal":  # it keeps apart what only these weights have
        return ["path=o_lora"]
    return ["path=lora", f"{axis}@path.memory.{axis}={choice}"]


def _learn(lm: CausalLM, axis: str, choice: str, background: Sequence[Phrasing]) -> None:
    small = ("path.memory.budget.steps=3", "path.memory.budget.batch=4", "progress=false")
    cfg = plain(compose(*_overrides(axis, choice), *small))
    own = dict(lm.module.named_parameters())
    before, untouched = {name: tensor.detach().clone() for name, tensor in own.items()}, lm.weights_hash()
    sequence = Setting(lm, None, (), tuple, None, {}, print).batch([ITEM.phrasings[0]])  # type: ignore[arg-type]
    with torch.no_grad():
        unlearnt = logits_of(lm.module, sequence)
    with Ledger() as ledger:
        described = {name: value for name, value in cfg["path"]["memory"].items() if name != "background"}
        build = instantiate({**described, "_partial_": True}, lm=lm, ledger=ledger, _convert_="all")
        path: WeightsPath = build(background=background)
        measures = path.write([ITEM], namespace="default").details["measures"]
        assert lm.weights_hash() == untouched
        with path.model(lm):
            changed = {name for name, tensor in own.items() if not torch.equal(tensor, before[name])}
            if choice != "policy_gradient":  # of equally good answers it learns nothing
                with torch.no_grad():
                    assert not torch.equal(logits_of(lm.module, sequence), unlearnt)
        learnt = sum(tensor.numel() for tensor in path._weights.state().values() if tensor.is_floating_point())
        assert measures["weights_changed"] == learnt > 0
        if choice == "full":
            assert changed
        elif axis == "selector" or choice == "memory":
            assert changed <= {name for name in own if name.endswith("mlp.values")}
        else:
            assert not changed
    assert lm.weights_hash() == untouched


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_the_embedded_model(embedded: CausalLM, axis: str, choice: str) -> None:
    _learn(embedded, axis, choice, rehearsal()[:24])


@pytest.mark.parametrize(("axis", "choice"), CHOICES)
def test_every_choice_learns_on_a_real_model(stories_lm: CausalLM, data_folder: Path, axis: str, choice: str) -> None:
    _learn(stories_lm, axis, choice, texts(data_folder / "tinystories" / "stories.jsonl.gz", skip=0, limit=24))
