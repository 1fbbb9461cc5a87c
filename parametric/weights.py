"""The contract of the weights axis: what trains, how it is put into a model, and how it is taken out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .batches import TrainingBatch

LossFunction = Callable[[], Tensor]


@dataclass(frozen=True)
class Aim:
    """What one forward and backward pass of a step minimises.

    Args:
        batch: What its loss reads first with gradients: of these reads, slots of a memory are chosen.
        loss: Gives the loss, a scalar in nats per target token.
    """

    batch: TrainingBatch
    loss: LossFunction


@dataclass(frozen=True)
class Gradient:
    """The gradient of one tensor that trains.

    Args:
        name: Of the tensor.
        values: Of the tensor's shape, or [rows, width].
        rows: Which rows of a table these are (int64, sorted); None: all of the tensor.
    """

    name: str
    values: Tensor
    rows: Tensor | None = None

    def at(self, rows: Tensor | None) -> Tensor:
        """Its values at these rows of the table (None: at all that it has), 0 where it has none."""
        if self.rows is None or rows is None:
            return self.values
        if not len(self.rows):
            return self.values.new_zeros(len(rows), self.values.shape[1])
        place = torch.searchsorted(self.rows, rows).clamp(max=len(self.rows) - 1)
        return self.values[place] * (self.rows[place] == rows)[:, None]


@dataclass(frozen=True)
class Changed:
    """A tensor, or rows of it, that has just changed.

    Args:
        name: Of the tensor.
        present: The values now, to be changed in place.
        before: The values before this write.
        rows: Which rows of a table these are; None: all of the tensor.
    """

    name: str
    present: Tensor
    before: Tensor
    rows: Tensor | None = None


Project = Callable[[Sequence[Gradient]], None]
"""Changes the gradients of a step in place."""
Settle = Callable[[Sequence[Changed]], None]
"""Changes in place what a step, or a whole write, has changed."""


class Trainer(Protocol):
    """A run of optimiser steps."""

    def remember(self) -> None:
        """Keep what the weights are now: to be called before the first step where something is settled."""
        ...

    def step(
        self,
        aims: Sequence[Aim],
        project: Project | None = None,
        settle: Settle | None = None,
        rate_share: float = 1.0,
    ) -> float:
        """Run the passes and change the weights once, by the sum of their gradients.

        Args:
            aims: What the step minimises, in parts whose losses add up to that of the step.
            project: Called between the backward pass and the update.
            settle: Called after the update with what it has changed.
            rate_share: Multiplies the learning rate.

        Returns:
            The loss before the step, in nats per target token.
        """
        ...

    def settle(self, settle: Settle) -> None:
        """Call it with all that the steps have changed since `remember`."""
        ...

    def gradients(self, loss: LossFunction) -> list[Gradient]:
        """The gradient of a loss for every tensor that trains; of a memory, for every row that was read."""
        ...


class Weights(Protocol):
    """Learnt weights, kept apart from the model that lends itself to them.

    `backward`: work of a backward pass, in forward passes: 2 where every matrix gets a gradient, 1 where only what
    flows through them does, less where it need not flow to the first; known after `fit`.
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
        untouched model. Not between a forward pass that is differentiated and its backward pass, nor between the
        passes of a step."""
        ...

    def training(self, module: Any) -> AbstractContextManager[Trainer]:
        """Within `applied`: a run of steps. What they changed is kept if the block ends well, and forgotten if it
        raises."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Figures of what was learnt: `weights_changed`, how many numbers were free to change so far, in the model or
        put beside it, and whatever else these weights can tell."""
        ...

    def fingerprint(self) -> str:
        """What a state depends on beside the untouched model, such as the addresses of an added memory; two of equal
        fingerprint may exchange states."""
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


def check_rate(rate: float, weight_decay: float) -> None:
    """Refuse what no optimiser can work with.

    Raises:
        ValueError: A rate that is not above 0, or a negative decay.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite, got {rate}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}")


def check_full_precision(lm: Any, what: str) -> None:
    """Refuse a model whose weights would round small steps away.

    Raises:
        ValueError: Some are of half precision.
    """
    if narrow := {str(one.dtype) for one in lm.module.parameters() if one.dtype in (torch.bfloat16, torch.float16)}:
        raise ValueError(f"{what} needs float32 weights, this model has {sorted(narrow)}: lm.dtype=float32")


def check_learnt(learnt: Iterable[Tensor]) -> None:
    """The last step of a write is followed by no loss, so what it left is looked at.

    Raises:
        FloatingPointError: A learnt value is infinite or not a number.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in learnt if tensor.is_floating_point()):
        raise FloatingPointError(
            "a learnt weight is not finite; the weights were put back. Lower path.memory.weights.rate"
        )
