"""The contract of the weights axis: what trains, how it is put into a model, and how it is taken out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .batches import TrainingBatch

LossFunction = Callable[[], Tensor]
Step = Callable[[LossFunction, TrainingBatch], float]
"""One optimiser step: runs the loss function, changes the weights, returns the loss before the step (nats per
token)."""


class Weights(Protocol):
    """Learnt weights, kept apart from the model that lends itself to them."""

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> None:
        """Called once, on the untouched model, before anything is learnt.

        Raises:
            ValueError: These weights cannot be had in this model.
        """
        ...

    def applied(self, module: Any) -> AbstractContextManager[None]:
        """The module with what was learnt in it; on leaving, every byte is as it was."""
        ...

    def training(self, module: Any) -> AbstractContextManager[Step]:
        """Within `applied`: a run of steps. What they changed is kept if the block ends well, and forgotten if it
        raises."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What was learnt, as named tensors; empty before the first write."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace what was learnt; an empty mapping is the untouched model."""
        ...


def finite(loss: Tensor) -> float:
    """The loss as a float.

    Raises:
        FloatingPointError: It is infinite or not a number.
    """
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise FloatingPointError(f"the loss is {value}; the weights were put back. Lower weights.rate and write again")
    return value
