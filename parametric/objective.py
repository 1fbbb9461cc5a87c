"""What a step minimises on the new items."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional

from .batches import TrainingBatch


class Objective(Protocol):
    """A differentiable loss of a model on a batch."""

    def __call__(self, module: Any, batch: TrainingBatch) -> Tensor:
        """The loss, a scalar in nats per target token; lower is better."""
        ...


def logits_of(module: Any, batch: TrainingBatch) -> Tensor:
    """[sequences, length, vocabulary] of a batch; the position before a token predicts it."""
    logits: Tensor = module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False).logits
    return logits


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Kullback-Leibler divergence from teacher to student, sum of p * (log p - log q), in nats: [..., vocabulary] to
    [...]."""
    known = teacher.float().log_softmax(dim=-1)
    found = student.float().log_softmax(dim=-1)
    return functional.kl_div(found, known, reduction="none", log_target=True).sum(dim=-1)


class NegativeLogLikelihood:
    """Mean cross entropy of the target tokens."""

    def __call__(self, module: Any, batch: TrainingBatch) -> Tensor:
        """See `Objective`."""
        logits = logits_of(module, batch)[:, :-1]
        kept = batch.targets[:, 1:]
        return functional.cross_entropy(logits[kept].float(), batch.tokens[:, 1:][kept])
