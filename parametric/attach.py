"""Memory layers in a transformers model: finding them, adding one to a finished model, taking it out again.

This file knows nothing of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .memory_layer import MemoryLayerConfig, ProductKeyMemory


class AdditiveMemory(nn.Module):
    """An MLP with a memory beside it: `mlp(x) + gate * memory(x)`. At gate 0 the sum is the MLP's output, bit for
    bit."""

    def __init__(self, mlp: nn.Module, memory: ProductKeyMemory) -> None:
        super().__init__()
        self.mlp = mlp
        self.memory = memory
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        base: Tensor = self.mlp(hidden)
        # The memory stays in float32 beside a narrower model: small updates of a row would be rounded away.
        added: Tensor = self.memory(hidden.to(self.memory.values.dtype)).to(base.dtype)
        return base + self.scale.to(base.dtype) * added

    def open_empty(self) -> None:
        """Gate 1 over values of zero: still the MLP's output, but gradients now reach the values."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            self.memory.values.zero_()


def memory_layers(module: nn.Module) -> dict[str, ProductKeyMemory]:
    """Every memory layer of a model by its dotted name, in the order of the model's modules."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, ProductKeyMemory)}


def attach(module: nn.Module, layer: str, config: MemoryLayerConfig, *, seed: int = 0) -> AdditiveMemory:
    """Put a memory beside the MLP named `layer` (dotted, such as "model.layers.2.mlp"), at gate 0.

    Raises:
        ValueError: There is no such module, it has a memory already, or it does not map [..., width] to [..., width].
    """
    try:
        mlp = module.get_submodule(layer)
    except AttributeError:
        candidates = [name for name, _ in module.named_modules() if name.endswith("mlp")]
        raise ValueError(
            f"the model has no module {layer!r} to attach a memory to; its MLPs are "
            f"{candidates or 'not named mlp: see named_modules()'}"
        ) from None
    if isinstance(mlp, AdditiveMemory | ProductKeyMemory):
        raise ValueError(f"module {layer!r} has a memory layer already")
    parameter = next(mlp.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        memory = ProductKeyMemory(config).to(device=parameter.device)
    probe = torch.zeros(1, 1, config.width, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            fits = mlp(probe).shape == probe.shape
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"module {layer!r} does not map [..., {config.width}] to itself: {error}") from error
    if not fits:
        raise ValueError(f"module {layer!r} does not map [..., {config.width}] to [..., {config.width}]")
    wrapped = AdditiveMemory(mlp, memory).train(mlp.training)
    _replace(module, layer, wrapped)
    return wrapped


def detach(module: nn.Module, layer: str) -> None:
    """Take the memory at `layer` out again; the MLP is the very object that was there before."""
    wrapped = module.get_submodule(layer)
    if not isinstance(wrapped, AdditiveMemory):
        raise ValueError(f"module {layer!r} has no attached memory")
    _replace(module, layer, wrapped.mlp)


def middle_mlp(module: Any) -> str:
    """Dotted name of the MLP in the middle of the model, where Lample et al. (2019) found a memory to work best.

    Raises:
        ValueError: No module of the model is named "mlp"; name the layer yourself.
    """
    names: list[str] = [name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] == "mlp"]
    if not names:
        raise ValueError(
            f"{type(module).__name__} has no module named 'mlp'; give the memory's place as weights.layer=<dotted name>"
        )
    return names[len(names) // 2]


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
