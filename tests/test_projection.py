"""The projection axis: what a step's gradient must not work against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.full import Full
from memory_paths.parametric.low_rank import LowRank
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.objective import NegativeLogLikelihood
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.parametric.penalty import NoPenalty
from memory_paths.parametric.projection import AveragedGradient, NoProjection, Projection
from memory_paths.parametric.weights import Weights
from memory_paths.streams.world import rehearsal
from memory_paths.types import Knowledge, Phrasing

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8)
KNOWN = [Phrasing("Alma Ashway lives in Alavia."), Phrasing("Bruno Barrbury enjoys chess.")]
NEW = [Phrasing("Alma Ashway lives in Corlund."), Phrasing("Bruno Barrbury enjoys rowing.")]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=1), tokenizer))


def test_only_the_part_against_the_reference_is_taken_out_over_all_tensors_together() -> None:
    reference = [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])]
    against = [torch.tensor([-3.0, 5.0]), torch.tensor([[-1.0]])]
    AveragedGradient().project(against, reference)
    assert torch.equal(against[0], torch.tensor([-2.0, 5.0]))
    assert torch.equal(against[1], torch.tensor([[1.0]]))
    assert sum(float((one * other).sum()) for one, other in zip(against, reference, strict=True)) == 0.0
    along = [torch.tensor([3.0, 5.0]), torch.tensor([[-1.0]])]
    AveragedGradient().project(along, reference)
    assert torch.equal(along[0], torch.tensor([3.0, 5.0])), "a gradient that does no harm is left alone"
    AveragedGradient().project(along, [torch.zeros(2), torch.zeros(1, 1)])
    assert torch.equal(along[0], torch.tensor([3.0, 5.0])), "a reference that wants nothing changes nothing"


@pytest.mark.parametrize(
    "weights",
    [MemoryRows(rows=48, rate=1.0), LowRank(rate=1e-3, rank=4), Full(rate=1e-4)],
    ids=["memory", "lora", "full"],
)
def test_a_projected_step_hands_over_the_gradients_of_both_losses(lm: CausalLM, weights: Weights) -> None:
    """The gradients that a projection is given are those of the two losses, for the tensors that train."""
    seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    class Watching:
        def reference(self, background: Sequence[Phrasing], generator: random.Random) -> list[Phrasing]:
            return []

        def project(self, gradients: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> None:
            seen.append(([one.clone() for one in gradients], [one.clone() for one in reference]))

    weights.prepare(lm, rehearsal()[:8])
    new, known = (collate(lm, encode(lm, phrasings)) for phrasings in (NEW, KNOWN))
    loss = NegativeLogLikelihood()
    with weights.applied(lm.module), weights.training(lm.module, NoPenalty(), Watching()) as step:
        step(partial(loss, lm.module, new), new, partial(loss, lm.module, new))
        step(partial(loss, lm.module, new), new, partial(loss, lm.module, known))
    (same, itself), (own, other) = seen
    assert own
    assert all(torch.allclose(one, two, atol=1e-7) for one, two in zip(same, itself, strict=True))
    assert [one.shape for one in own] == [one.shape for one in other]
    assert any(not torch.allclose(one, two) for one, two in zip(own, other, strict=True))


def test_a_projected_write_harms_what_was_known_less(lm: CausalLM) -> None:
    """First the known texts are learnt, then others that contradict them."""
    first, then = ([Knowledge(one.completion, one.completion) for one in texts] for texts in (KNOWN, NEW))
    known = collate(lm, encode(lm, KNOWN))

    def harm(projection: Projection) -> tuple[float, int]:
        with Ledger() as ledger:
            path = WeightsPath(
                lm,
                ledger,
                weights=Full(rate=3e-3),
                projection=projection,
                budget=Budget(steps=40, batch=8),
                background=KNOWN,
                progress=False,
            )
            path.write(first)
            tokens = path.write(then).cost.lm.tokens
            with path.model(lm) as lent, torch.no_grad():
                return float(NegativeLogLikelihood()(lent.module, known)), tokens

    (free, paid), (held, paid_more) = harm(NoProjection()), harm(AveragedGradient(per_step=2))
    assert held < free
    assert paid_more > paid, "the reference's tokens are charged to the write"


def test_a_projection_without_anything_known_is_refused(lm: CausalLM) -> None:
    with pytest.raises(ValueError, match="per_step of a projection must be at least 1, got 0"):
        AveragedGradient(per_step=0)
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=Full(), projection=AveragedGradient(), progress=False)
        with pytest.raises(ValueError, match=r"give lm\.background, or choose rehearsal=none and projection=none"):
            path.write([Knowledge("a", "Alma Ashway lives in Corlund.")])
        assert path.items() == []
