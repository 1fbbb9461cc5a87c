"""LoRA by PEFT: low-rank matrices beside every linear layer train, the model's own weights stay frozen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .full import adam_step
from .penalty import Penalty
from .projection import Projection
from .weights import Step, check_learnt


class LowRank:
    """The weights axis `lora`.

    Args:
        rate: Learning rate of AdamW.
        rank: Rank of each pair of matrices.
        alpha: Scale; the update is multiplied by alpha / rank.
        weight_decay: Of AdamW.
        seed: Initialisation.
    """

    def __init__(
        self, *, rate: float = 1e-3, rank: int = 16, alpha: int = 32, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rate = rate
        self.rank = rank
        self.alpha = alpha
        self.weight_decay = weight_decay
        self._seed = seed
        self._learnt: dict[str, Tensor] = {}

    backward = 1.0

    def fit(self, lm: Any) -> None:
        """See `Weights`; any model will do."""

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`; nothing to do."""
        return 0

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`."""
        from peft import LoraConfig, get_peft_model

        required = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
        mode = module.training
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
        )
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # PEFT warns of tied embeddings, which are not targets here
            torch.manual_seed(self._seed)
            wrapped = get_peft_model(module, config)
        module.train(mode)
        try:
            with torch.no_grad():
                for name, parameter in _adapters(module).items():
                    if name in self._learnt:
                        parameter.copy_(self._learnt[name])
            yield
        finally:
            wrapped.unload()
            if hasattr(module, "peft_config"):
                del module.peft_config
            for parameter in module.parameters():
                parameter.requires_grad_(required[id(parameter)])
                parameter.grad = None

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        adapters = _adapters(module)
        present = {name: parameter.detach().clone() for name, parameter in adapters.items()}
        with torch.no_grad():
            try:
                for name, parameter in adapters.items():
                    # The product of both matrices is what counts, and the second one begins as zero.
                    parameter.copy_(state[name]) if state else parameter.zero_()
                yield
            finally:
                for name, parameter in adapters.items():
                    parameter.copy_(present[name])

    @contextmanager
    def training(self, module: Any, penalty: Penalty, projection: Projection) -> Iterator[Step]:
        """See `Weights`."""
        adapters = _adapters(module)
        yield adam_step(list(adapters.values()), self.rate, self.weight_decay, penalty, projection)
        check_learnt(adapters.values())
        self._learnt = {name: parameter.data.clone() for name, parameter in adapters.items()}

    def measures(self) -> Mapping[str, float]:
        """See `Weights`."""
        return {"weights_changed": float(sum(tensor.numel() for tensor in self._learnt.values()))}

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: every adapter matrix by name."""
        return dict(self._learnt)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        self._learnt = {name: tensor.clone() for name, tensor in state.items()}


def _adapters(module: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if "lora_" in name}
