"""The contract of the weights axis: what trains, how it is put into a model, and how it is taken out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .batches import TrainingBatch
from .penalty import Penalty
from .projection import Projection

LossFunction = Callable[[], Tensor]


class Step(Protocol):
    """One optimiser step."""

    def __call__(self, loss: LossFunction, batch: TrainingBatch, reference: LossFunction | None = None) -> float:
        """Run the loss function and change the weights.

        Args:
            loss: On `batch`.
            batch: What is studied in this step.
            reference: The loss whose gradient a projection wants to see.

        Returns:
            The loss before the step, in nats per token.
        """
        ...


class Weights(Protocol):
    """Learnt weights, kept apart from the model that lends itself to them.

    `backward`: work of a backward pass, in forward passes: 2 where every matrix gets a gradient, 1 where only what
    flows through them does.
    """

    backward: float

    def fit(self, lm: Any) -> None:
        """Called once, at the door, on the untouched model.

        Raises:
            ValueError: These weights cannot be had in this model.
        """
        ...

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """Called once, on the untouched model, before anything is learnt; returns the tokens that it read."""
        ...

    def applied(self, module: Any) -> AbstractContextManager[None]:
        """The module with what was learnt in it; on leaving, every byte is as it was."""
        ...

    def holding(self, module: Any, state: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Within `applied`: the module with another state in it, such as that of a teacher; an empty one is the
        untouched model. Not between a forward pass that is differentiated and its backward pass."""
        ...

    def training(self, module: Any, penalty: Penalty, projection: Projection) -> AbstractContextManager[Step]:
        """Within `applied`: a run of steps. What they changed is kept if the block ends well, and forgotten if it
        raises. A projection sees every gradient, a penalty what every step has changed."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Figures of what was learnt: `weights_changed`, how many numbers differ from the untouched model's or were put
        beside them, and whatever else these weights can tell."""
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
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}; the weights were put back. Lower path.memory.weights.rate")
    return value


def check_learnt(learnt: Iterable[Tensor]) -> None:
    """The last step of a write is followed by no loss, so what it left is looked at.

    Raises:
        FloatingPointError: A learnt value is infinite or not a number.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in learnt if tensor.is_floating_point()):
        raise FloatingPointError(
            "a learnt weight is not finite; the weights were put back. Lower path.memory.weights.rate"
        )
