"""AdamW over whole tensors: the trainer of every kind of weights but rows of a memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .weights import Aim, Changed, Gradient, LossFunction, Project, Settle, finite

CLIP_NORM = 1.0


class AdamTrainer:
    """A `Trainer`: gradients projected, then clipped to norm 1, then AdamW.

    Args:
        parameters: What trains, by name.
        rate: Learning rate, above 0.
        weight_decay: Decoupled.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, weight_decay: float) -> None:
        self._parameters = dict(parameters)
        # Fused: on a large table of values the update would otherwise cost a third of the step.
        self._optimiser = torch.optim.AdamW(self._parameters.values(), lr=rate, weight_decay=weight_decay, fused=True)
        self._rate = rate
        self._before: dict[str, Tensor] = {}

    def remember(self) -> None:
        """See `Trainer`."""
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def step(
        self,
        aims: Sequence[Aim],
        project: Project | None = None,
        settle: Settle | None = None,
        rate_share: float = 1.0,
    ) -> float:
        """See `Trainer`."""
        self._optimiser.zero_grad(set_to_none=True)
        value = 0.0
        for aim in aims:
            found = aim.loss()
            value += finite(found)
            found.backward()
        if project:
            own = {name: parameter.grad for name, parameter in self._parameters.items()}
            project([Gradient(name, gradient) for name, gradient in own.items() if gradient is not None])
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), CLIP_NORM)
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * rate_share
        self._optimiser.step()
        if settle:
            self.settle(settle)
        return value

    def settle(self, settle: Settle) -> None:
        """See `Trainer`."""
        settle([Changed(name, parameter.detach(), self._before[name]) for name, parameter in self._parameters.items()])

    def gradients(self, loss: LossFunction) -> list[Gradient]:
        """See `Trainer`."""
        found = torch.autograd.grad(loss(), list(self._parameters.values()), allow_unused=True)
        named = zip(self._parameters, found, strict=True)
        return [Gradient(name, gradient) for name, gradient in named if gradient is not None]
