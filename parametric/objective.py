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


class NegativeLogLikelihood:
    """Mean cross entropy of the target tokens."""

    def __call__(self, module: Any, batch: TrainingBatch) -> Tensor:
        """See `Objective`."""
        logits = module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False).logits[:, :-1]
        kept = batch.targets[:, 1:]
        return functional.cross_entropy(logits[kept].float(), batch.tokens[:, 1:][kept])
