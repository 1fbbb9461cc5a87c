"""Choices of eight axes of the paths into weights, so combined that any two meet: some, by MEMORY_PATHS_FULL all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from memory_paths.build import compose, plain
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.types import Knowledge, Phrasing

CONF = Path(__file__).parent.parent / "conf"
AXES = ("weights", "objective", "penalty", "rehearsal", "study", "merging", "projection", "schedule")
CHOICES = {axis: sorted(file.stem for file in (CONF / axis).glob("*.yaml")) for axis in AXES}
ASKING = ("self_distillation", "gkd", "policy_gradient")
Pair = tuple[tuple[str, str], tuple[str, str]]

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8)
KNOWN = [Phrasing("lives in Alavia.", "Alma Ashway "), Phrasing("chess", "What enjoys Bruno?", asks=True)]
ITEMS = [
    Knowledge(
        "alma",
        "Alma Ashway lives in Corlund.",
        phrasings=(
            Phrasing("lives in Corlund.", "Alma Ashway "),
            Phrasing("Corlund", "Where does Alma Ashway live?", asks=True),
        ),
    )
]


def _impossible(chosen: Mapping[str, str]) -> str:
    """What is said of choices that do not go together; nothing of those that do."""
    if chosen.get("penalty") == "orthogonal" and chosen.get("weights", "lora_stack") != "lora_stack":
        return "penalty=orthogonal needs weights=lora_stack"
    listens = chosen.get("objective") == "distil_new" and chosen.get("rehearsal") == "none"
    if chosen.get("study") == "as_given" and (listens or chosen.get("objective") in ASKING):
        return "study=as_given has none"
    return ""


def _pairs(chosen: Mapping[str, str]) -> set[Pair]:
    return set(itertools.combinations(sorted(chosen.items()), 2))


def _every_pair() -> Iterator[Pair]:
    for one, other in itertools.combinations(sorted(CHOICES), 2):
        for pair in itertools.product(CHOICES[one], CHOICES[other]):
            yield tuple(zip((one, other), pair, strict=True))  # type: ignore[misc]


def _covering() -> list[dict[str, str]]:
    """Combinations, each begun with a pair that has not met yet and filled up with what meets most anew."""
    left = sorted(pair for pair in _every_pair() if not _impossible(dict(pair)))
    found = []
    while left:
        chosen = dict(left[0])
        missing = set(left)
        for axis in (axis for axis in AXES if axis not in chosen):
            possible = [{**chosen, axis: choice} for choice in CHOICES[axis]]
            chosen = max((one for one in possible if not _impossible(one)), key=lambda one: len(_pairs(one) & missing))
        found.append(chosen)
        left = [pair for pair in left if pair not in _pairs(chosen)]
    return found


COVERING = _covering()
TRIED = COVERING if os.environ.get("MEMORY_PATHS_FULL") else COVERING[::12]
REFUSED = [
    *(dict(pair) for pair in _every_pair() if _impossible(dict(pair))),
    {"study": "as_given", "objective": "distil_new", "rehearsal": "none"},
]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=1), tokenizer))


@cache
def _described(axis: str, choice: str) -> Mapping[str, Any]:
    described: Mapping[str, Any] = plain(compose("path=lora", f"{axis}@path.memory.{axis}={choice}"))
    return described["path"]["memory"][axis]  # type: ignore[no-any-return]


def _build(lm: CausalLM, ledger: Ledger, chosen: Mapping[str, str]) -> WeightsPath:
    axes = {axis: instantiate(_described(axis, choice), _convert_="all") for axis, choice in chosen.items()}
    return WeightsPath(lm, ledger, **axes, budget=Budget(steps=2, batch=4), background=KNOWN, progress=False)


def _name(chosen: Mapping[str, str]) -> str:
    return " ".join(sorted(chosen.values()))


@pytest.mark.parametrize("chosen", TRIED, ids=_name)
def test_choices_learn_together_and_are_undone(lm: CausalLM, chosen: dict[str, str]) -> None:
    untouched = lm.weights_hash()
    with Ledger() as ledger:
        path = _build(lm, ledger, chosen)
        before = path.state_hash()
        receipt = path.write(ITEMS, namespace="default")
        # Two steps may move so little that rounding gives the divergence its sign; of the same answers it is exactly 0.
        assert receipt.details["measures"]["kl_on_new"] != 0.0, "it has learnt"
        assert all(bool(torch.isfinite(tensor).all()) for tensor in path._weights.state().values())
        assert lm.weights_hash() == untouched
        path.undo()
        assert path.state_hash() == before


@pytest.mark.parametrize("chosen", REFUSED, ids=_name)
def test_choices_that_do_not_go_together_are_refused_with_the_reason(lm: CausalLM, chosen: dict[str, str]) -> None:
    with Ledger() as ledger, pytest.raises(ValueError, match=_impossible(chosen)):
        _build(lm, ledger, {"weights": "lora", **chosen})
