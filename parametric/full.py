"""Full finetuning: every parameter trains. The baseline that learns anything and forgets most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from memory_paths.types import Phrasing

from .adam import AdamTrainer
from .weights import Trainer, check_full_precision, check_learnt, check_rate


class Full:
    """The weights axis `full`.

    Args:
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(self, *, rate: float = 3e-4, weight_decay: float = 0.0) -> None:
        check_rate(rate, weight_decay)
        self.rate = rate
        self.weight_decay = weight_decay
        self._learnt: dict[str, Tensor] = {}
        self._lent: dict[str, Tensor] = {}

    backward = 2.0

    def fit(self, lm: Any) -> None:
        """See `Weights`.

        Raises:
            ValueError: The model's weights are of half precision, in which small steps would be rounded away.
        """
        check_full_precision(lm, "full finetuning")

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`; nothing to do."""
        return 0

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`. Parameters point to the learnt tensors for as long as the block lasts."""
        lent = {name: parameter.data for name, parameter in module.named_parameters()}
        outer, self._lent = self._lent, self._lent or lent
        try:
            for name, parameter in module.named_parameters():
                parameter.data = self._learnt.get(name, lent[name]).to(lent[name].device, copy=True)
            yield
        finally:
            for name, parameter in module.named_parameters():
                parameter.data = lent[name]
                parameter.grad = None
            self._lent = outer

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        present = {name: parameter.data for name, parameter in module.named_parameters()}
        try:
            for name, parameter in module.named_parameters():
                other = state.get(name, self._lent[name])
                parameter.data = other.to(parameter.device)
            yield
        finally:
            for name, parameter in module.named_parameters():
                parameter.data = present[name]

    @contextmanager
    def training(self, module: Any) -> Iterator[Trainer]:
        """See `Weights`."""
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        yield AdamTrainer(parameters, self.rate, self.weight_decay)
        check_learnt(parameters.values())
        self._learnt = {name: parameter.data.clone() for name, parameter in module.named_parameters()}

    def measures(self) -> Mapping[str, float]:
        """See `Weights`."""
        return {"weights_changed": float(sum(tensor.numel() for tensor in self._learnt.values()))}

    def fingerprint(self) -> str:
        """See `Weights`."""
        return "full"

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: every parameter by name."""
        return dict(self._learnt)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        self._learnt = {name: tensor.clone() for name, tensor in state.items()}
