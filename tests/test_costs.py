"""What is charged against what is counted: tokens exact, floating point operations beside torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memory_paths.build import load
from memory_paths.evaluation.costs import break_even, rescaled
from memory_paths.lm import CausalLM
from memory_paths.streams.world import biographies
from memory_paths.types import Prompt

NOTES = ("Ada Ashford lives in Albach.", "Hugo Carlwick lives in Norgard.") * 3


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    with load("path=none") as agent:
        return agent.lm


def _attention(lm: CausalLM, tokens: int) -> float:
    """What torch does not see of its own fused attention on a CPU: each token attends to itself and all before it."""
    config = lm.module.config
    return 4.0 * config.num_hidden_layers * config.hidden_size * tokens * (tokens + 1) / 2


@pytest.mark.parametrize("tokens", [1, 20, 200])
def test_a_forward_pass_is_charged_what_torch_counts(lm: CausalLM, tokens: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm.module(torch.arange(tokens)[None])
    assert lm.forward_flops(tokens) - _attention(lm, tokens) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_an_answer_is_charged_what_torch_counts_and_every_token(lm: CausalLM) -> None:
    prompt = Prompt("Where does Ada Ashford live?", NOTES)
    with FlopCounterMode(display=False) as counter:
        (answer,) = lm.generate([prompt], max_new_tokens=8)
    tokens = lm.count_tokens(prompt) + len(answer.token_ids)
    assert answer.usage.tokens == tokens
    charged = answer.usage.flops - _attention(lm, tokens - 1)
    assert charged == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("path", ["full", "lora", "sparse_memory"])
def test_a_step_of_training_is_charged_what_torch_counts(path: str) -> None:
    """Between two efforts, so that what a write measures of itself, which is not charged, falls out."""
    charged, counted = [], []
    items = biographies(12).experiences[0].items[:3]
    for effort in (0.02, 0.06):
        # Without what a memory reads first of all, which the counter makes slow.
        with load(f"path={path}", f"++path.memory.budget.effort={effort}", "path.memory.background=[]") as agent:
            with FlopCounterMode(display=False) as counter:
                receipt = agent.learn(list(items))
                agent.flush()
            counted.append(counter.get_total_flops())
            charged.append(receipt.cost.lm.flops)
    assert counted[1] > counted[0]
    assert charged[1] - charged[0] == pytest.approx(counted[1] - counted[0], rel=0.05)


def test_a_larger_model_pays_more_for_its_own_work_alone() -> None:
    def cost(written: float, read: float) -> dict[str, Any]:
        def parts(flops: float) -> dict[str, dict[str, float]]:
            return {"lm": {"flops": flops}, "encoder": {"flops": 50.0}, "index": {"flops": 5.0}}

        return {
            "write": parts(written),
            "read": parts(read * 10),
            "wall_seconds": {"write": 0.0, "read": 0.0},
            "writes": 1,
            "reads": 10,
        }

    def tokens(of: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {part: {"tokens": 1, "seconds": 0.0, **spent} for part, spent in value.items()}
            if name in ("write", "read")
            else value
            for name, value in of.items()
        }

    dear, cheap = tokens(cost(1000.0, 10.0)), tokens(cost(0.0, 30.0))
    grown = rescaled(dear, 100.0)
    assert grown["write"]["lm"]["flops"] == 100_000.0
    assert grown["write"]["encoder"] == dear["write"]["encoder"]
    assert dear["write"]["lm"]["flops"] == 1000.0, "what was given stays"
    assert break_even(dear, cheap).value == 50
    assert break_even(rescaled(dear, 100.0), rescaled(cheap, 100.0)).value == 50, "the encoder is spent by both"
