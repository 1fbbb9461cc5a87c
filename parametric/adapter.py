"""Parameter-efficient finetuning by PEFT: small tensors beside or inside the frozen matrices train."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from memory_paths.types import Phrasing

from .adam import AdamTrainer
from .weights import Trainer, check_learnt, check_rate


class Adapter:
    """The weights axes `lora`, `shira`, `ia3`, `osf`, and whatever else PEFT puts into the layers of a model.

    Args:
        config: A `peft.PeftConfig` of a method that changes layers; it is copied for each use.
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
        seed: Initialisation.

    Raises:
        ValueError: A rate that is not above 0, or a method that puts tokens before the text instead.
    """

    def __init__(self, config: Any, *, rate: float = 1e-3, weight_decay: float = 0.0, seed: int = 0) -> None:
        check_rate(rate, weight_decay)
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(f"{type(config).__name__} puts tokens before the text; Adapter changes layers")
        self.rate = rate
        self.weight_decay = weight_decay
        self._config = config
        self._seed = seed
        self._learnt: dict[str, Tensor] = {}
        self._wrapped: Any = None
        self._initial: dict[str, Tensor] = {}

    backward = 1.0

    def fit(self, lm: Any) -> None:
        """See `Weights`.

        Raises:
            ValueError: PEFT cannot put the method into this model.
        """
        name = type(self._config).__name__
        if getattr(self._config, "init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
            raise ValueError(
                f"init_lora_weights={self._config.init_lora_weights!r} changes the model's own weights, which could "
                "not be given back; choose true, false, gaussian or orthogonal"
            )
        before = lm.weights_hash()
        try:
            with self.applied(lm.module):
                pass
        except (ValueError, NotImplementedError, KeyError, TypeError) as error:
            raise ValueError(f"{name} does not fit {lm.name!r}: {error}") from error
        if lm.weights_hash() != before:
            raise ValueError(f"{name} with these options does not give {lm.name!r} back as it was; load the model anew")

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`; nothing to do."""
        return 0

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`."""
        from peft import get_peft_model

        if self._wrapped is not None:  # in a block of its own
            present = {name: parameter.detach().clone() for name, parameter in _trained(module).items()}
            self._put(module, {**self._initial, **self._learnt})
            try:
                yield
            finally:
                self._put(module, present)
            return
        required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        mode = module.training
        try:
            with warnings.catch_warnings(), torch.random.fork_rng():
                warnings.simplefilter("ignore")  # PEFT warns of tied embeddings, which are not targets here
                torch.manual_seed(self._seed)
                self._wrapped = get_peft_model(module, deepcopy(self._config))
            module.train(mode)
            if any(parameter.requires_grad for parameter, _ in required):
                raise ValueError(
                    "it trains weights of the model itself (bias, modules_to_save); leave these options out"
                )
            self._initial = {name: parameter.detach().clone() for name, parameter in _trained(module).items()}
            self._put(module, self._learnt)
            yield
        finally:
            _unwrap(module)
            self._wrapped, self._initial = None, {}
            if hasattr(module, "peft_config"):
                del module.peft_config
            for parameter, wanted in required:
                parameter.requires_grad_(wanted)
                parameter.grad = None

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        if not state:
            required = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
            with self._wrapped.disable_adapter():
                yield
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(required[name])
            return
        present = {name: parameter.detach().clone() for name, parameter in _trained(module).items()}
        self._put(module, state)
        try:
            yield
        finally:
            self._put(module, present)

    @contextmanager
    def training(self, module: Any) -> Iterator[Trainer]:
        """See `Weights`."""
        adapters = _trained(module)
        yield AdamTrainer(adapters, self.rate, self.weight_decay)
        check_learnt(adapters.values())
        self._learnt = {name: parameter.detach().clone() for name, parameter in adapters.items()}

    def measures(self) -> Mapping[str, float]:
        """See `Weights`."""
        return {"weights_changed": float(sum(tensor.numel() for tensor in self._learnt.values()))}

    def fingerprint(self) -> str:
        """See `Weights`."""
        # PEFT makes a set of the names of modules, and the order of a set is another one in every process.
        return f"{json.dumps(self._config.to_dict(), sort_keys=True, default=_plain)} {self._seed}"

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: every tensor of the adapter by name."""
        return dict(self._learnt)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        self._learnt = {name: tensor.clone() for name, tensor in state.items()}

    def _put(self, module: Any, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in _trained(module).items():
                if name in state:
                    parameter.copy_(state[name])


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _unwrap(module: Any) -> None:
    """Every layer of the model's own in its place again, also where PEFT has stopped halfway."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper):
            own = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, own)


def _trained(module: Any) -> dict[str, nn.Parameter]:
    """What PEFT has left to train; the model's own parameters it has frozen."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
