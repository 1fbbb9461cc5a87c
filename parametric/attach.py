"""Memory layers in a transformers model: finding them, attaching them to a finished model, taking them out again, and
keeping what was attached beside the model.

This file knows nothing of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .memory_layer import MemoryLayerConfig, Processes, ProductKeyMemory
from .query_tokens import check_query_tokens, number_query_tokens
from .storage import store, stored

MEMORY_VERSION = 2
MARKS = 64
STORED = "memory"
NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe")  # of MLPs, in the architectures of transformers

Mode = Literal["add", "replace"]


class AdditiveMemory(nn.Module):
    """An MLP with a memory beside it: `mlp(x) + gate * memory(x)`. At gate 0 the sum is the MLP's output, bit for
    bit."""

    mode: ClassVar[Mode] = "add"

    def __init__(self, mlp: nn.Module, memory: ProductKeyMemory) -> None:
        super().__init__()
        self.mlp = mlp
        self.memory = memory
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, *beside: Any, **options: Any) -> Any:
        """[..., D] to [..., D], or to a tuple of which that is the first: whatever the MLP takes beside the hidden
        states (Bloom: the residual) and gives beside its output (GPT-OSS: the router's scores) is its own."""
        given = self.mlp(hidden, *beside, **options)
        base: Tensor = _output(given)
        # The memory stays in float32 beside a narrower model: small updates of a row would be rounded away.
        added: Tensor = self.memory(hidden.to(self.memory.values.dtype)).to(base.dtype)
        found = base + self.scale.to(base.dtype) * added
        return (found, *given[1:]) if isinstance(given, tuple) else found

    def open_empty(self) -> None:
        """Gate 1 over values of zero: still the MLP's output, but gradients now reach the values."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            self.memory.values.zero_()


class ReplacingMemory(nn.Module):
    """A memory in the place of an MLP, which is kept aside so that `detach` can put it back. It is no part of the model
    meanwhile: neither counted nor hashed, nor moved to another device."""

    mode: ClassVar[Mode] = "replace"

    def __init__(self, mlp: nn.Module, memory: ProductKeyMemory) -> None:
        super().__init__()
        self.memory = memory
        self._aside = (mlp,)  # in a tuple, where torch does not find it

    @property
    def mlp(self) -> nn.Module:
        """What stood here."""
        return self._aside[0]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        read: Tensor = self.memory(hidden.to(self.memory.values.dtype))
        return read.to(hidden.dtype)

    def open_empty(self) -> None:
        """Values of zero: the place gives nothing until some are learnt."""
        with torch.no_grad():
            self.memory.values.zero_()


Attached = AdditiveMemory | ReplacingMemory


def _output(given: Any) -> Tensor:
    output: Tensor = given[0] if isinstance(given, tuple) else given
    return output


@dataclass(frozen=True)
class MemoryTable:
    """A table of values and the memory layers that read it: one, or several that share it."""

    layers: tuple[ProductKeyMemory, ...]

    @property
    def values(self) -> nn.Parameter:
        """[slots, D]."""
        return self.layers[0].values

    @property
    def slots(self) -> int:
        """Number of rows."""
        return self.layers[0].config.slots

    @property
    def processes(self) -> Processes:
        """Those that have the table together."""
        return self.layers[0].processes


def memory_layers(module: nn.Module) -> dict[str, ProductKeyMemory]:
    """Every memory layer of a model by its dotted name, in the order of the model's modules."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, ProductKeyMemory)}


def memory_tables(module: nn.Module) -> dict[str, MemoryTable]:
    """Every table of values by the dotted name of the first layer that reads it, in the order of the modules."""
    readers: dict[int, dict[str, ProductKeyMemory]] = {}
    for name, layer in memory_layers(module).items():
        readers.setdefault(id(layer.values), {})[name] = layer
    return {next(iter(found)): MemoryTable(tuple(found.values())) for found in readers.values()}


def attached_memories(module: nn.Module) -> dict[str, Attached]:
    """What was attached to a model, by the dotted name of the MLP's place."""
    return {name: found for name, found in module.named_modules() if isinstance(found, Attached)}


def attach(
    module: nn.Module,
    layer: str,
    config: MemoryLayerConfig,
    *,
    mode: Mode = "add",
    values: nn.Parameter | None = None,
    seed: int = 0,
) -> Attached:
    """Put a memory beside the MLP named `layer`, at gate 0, or in its place.

    Args:
        module: The model.
        layer: Dotted name of the MLP, such as "model.layers.2.mlp".
        config: The memory's shape.
        mode: "add": the MLP stays and the logits too, until the gate opens (`open_empty`, or training). "replace": the
            MLP is put aside, and the model needs a recovery (`recovery.py`).
        values: The table of another memory, to be shared.
        seed: Of its weights.

    Raises:
        ValueError: There is no such module, it has a memory already, it does not map [..., width] to [..., width], it
            is on another device than the table that it is to share, or the model does not tell what `query_tokens`
            needs, or is read otherwise token by token.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode of an attached memory must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    try:
        mlp = module.get_submodule(layer)
    except AttributeError:
        candidates = _mlps(module) or f"not named {' or '.join(NAMES)}: see named_modules()"
        raise ValueError(
            f"the model has no module {layer!r} to attach a memory to; its MLPs are {candidates}"
        ) from None
    if isinstance(mlp, Attached | ProductKeyMemory):
        raise ValueError(f"module {layer!r} has a memory layer already")
    parameter = next(mlp.parameters(), None)
    if parameter is None:
        raise ValueError(f"module {layer!r} has no weights, so it is no MLP")
    if values is not None and values.device != parameter.device:
        raise ValueError(
            f"module {layer!r} is on {parameter.device} and cannot share a table on {values.device}; give each memory "
            "a table of its own"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        memory = ProductKeyMemory(config, values).to(device=parameter.device)
    probe = torch.zeros(1, 1, config.width, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            # Those that add the residual themselves want it as well, and cannot do without being called.
            given = mlp(probe) if mode == "replace" or _takes_one(mlp) else mlp(probe, probe)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"module {layer!r} does not map [..., {config.width}] to itself: {error}") from error
    if mode == "replace" and isinstance(given, tuple):
        raise ValueError(f"module {layer!r} gives more than hidden states, so that no memory can replace it: mode=add")
    if _output(given).shape != probe.shape:
        raise ValueError(f"module {layer!r} does not map [..., {config.width}] to [..., {config.width}]")
    wrapped = (AdditiveMemory if mode == "add" else ReplacingMemory)(mlp, memory).train(mlp.training)
    _put(module, layer, wrapped)
    if wrapped.memory.query_tokens is not None:
        try:
            check_query_tokens(module, wrapped.memory.query_tokens)
        except BaseException:
            detach(module, layer)
            raise
    return wrapped


def attach_all(
    module: nn.Module,
    layers: Sequence[str],
    config: MemoryLayerConfig,
    *,
    mode: Mode = "add",
    shared: bool = False,
    seed: int = 0,
) -> dict[str, Attached]:
    """A memory at each of several places, or, where one of them takes none, at none.

    Args:
        module: The model.
        layers: Dotted names of MLPs, each once.
        config: Shape of each memory.
        mode: See `attach`.
        shared: One table of values for all of them, each with keys of its own (as Berges et al. 2024 have it);
            otherwise each has a table of its own.
        seed: Of the first; one more for each of the others.

    Raises:
        ValueError: See `attach`.
    """
    made: dict[str, Attached] = {}
    try:
        for number, layer in enumerate(layers):
            values = next(iter(made.values())).memory.values if shared and made else None
            made[layer] = attach(module, layer, config, mode=mode, values=values, seed=seed + number)
    except BaseException:
        _detach_all(module, made)
        raise
    return made


def detach(module: nn.Module, layer: str) -> None:
    """Take the memory at `layer` out again; the MLP is the very object that was there before.

    Raises:
        ValueError: There is none.
    """
    wrapped = module.get_submodule(layer)
    if not isinstance(wrapped, Attached):
        raise ValueError(f"module {layer!r} has no attached memory")
    _take_out(module, layer, wrapped, wrapped.mlp)


@contextmanager
def placed(module: nn.Module, layer: str, wrapped: Attached) -> Iterator[None]:
    """While a memory that was attached to this module, and detached, is in its place again; blocks may be nested."""
    before = module.get_submodule(layer)
    if before is wrapped:
        yield
        return
    _put(module, layer, wrapped)
    try:
        yield
    finally:
        _take_out(module, layer, wrapped, before)


def save_memory(module: nn.Module, folder: Path) -> None:
    """Write what was attached to the model into a folder: `memory.safetensors`, then `memory.json` with places, modes,
    shapes, what tells the model, and the checksum of both. The model itself is not written.

    Raises:
        ValueError: Nothing is attached.
        OSError: The disk is full or cannot be written; no file is left half written.
    """
    if not (found := attached_memories(module)):
        raise ValueError("the model has no attached memory to save; see attach")
    tensors: dict[str, Tensor] = {}
    memories, tables = [], dict[int, str]()
    for layer, wrapped in found.items():
        owner = tables.setdefault(id(wrapped.memory.values), layer)
        shape = asdict(wrapped.memory.config)
        memories.append({"layer": layer, "mode": wrapped.mode, "values_of": owner, "shape": shape})
        tensors |= _own_tensors(layer, wrapped, owner)
    described = {"memories": memories, "model": _marks(module).tolist()}
    store(folder, STORED, tensors, described, version=MEMORY_VERSION)


def load_memory(module: nn.Module, folder: str | Path) -> dict[str, Attached]:
    """Attach what `save_memory` wrote to a copy of the model; in float32, whatever the model is in.

    Raises:
        FileNotFoundError: The folder holds no memory; `python -m memory_paths.parametric.recovery` makes one.
        ValueError: It is damaged, of another version, of a model with other embeddings of its tokens, or does not fit
            this one, which is then as it was.
    """
    folder = Path(folder)
    described, tensors = stored(folder, STORED, "memory", version=MEMORY_VERSION)
    marks, own = torch.tensor(described["model"], dtype=torch.float64), _marks(module)
    if marks.shape != own.shape or not torch.allclose(marks, own, rtol=0, atol=0.01):
        raise ValueError(
            f"the memory in {folder} stood beside another model and would tell this one nothing: lm.name must be that "
            "model, or `python -m memory_paths.parametric.recovery` makes a memory for this one"
        )
    made: dict[str, Attached] = {}
    try:
        for one in described["memories"]:
            layer, owner = one["layer"], one["values_of"]
            values = made[owner].memory.values if owner != layer else None
            made[layer] = attach(module, layer, MemoryLayerConfig(**one["shape"]), mode=one["mode"], values=values)
            with torch.no_grad():
                for name, tensor in _own_tensors(layer, made[layer], owner).items():
                    tensor.copy_(tensors[name])
    except ValueError as error:
        _detach_all(module, made)
        raise ValueError(f"the memory in {folder} does not fit this model: {error}") from error
    return made


def _marks(module: Any) -> Tensor:
    """Numbers that tell a model by its embeddings of the first tokens, about the same in every precision: of each, the
    sum in alternating signs by the norm."""
    embeddings = module.get_input_embeddings().weight.detach()[:MARKS].double().cpu()
    signs = torch.ones(embeddings.shape[1], dtype=torch.float64)
    signs[::2] = -1
    marks: Tensor = embeddings @ signs / embeddings.norm(dim=1).clamp(min=1e-12)
    return marks


def _own_tensors(layer: str, wrapped: Attached, owner: str) -> dict[str, Tensor]:
    """What is saved of a place: not the MLP, and the table only where it is the first to read it."""
    return {
        f"{layer}/{name}": tensor
        for name, tensor in wrapped.state_dict().items()
        if not name.startswith("mlp.") and (owner == layer or name != "memory.values")
    }


def _detach_all(module: nn.Module, made: Mapping[str, Attached]) -> None:
    for layer in made:
        detach(module, layer)


def mlp_name(module: Any, layer: str = "middle") -> str:
    """Dotted name of the MLP that is meant.

    Args:
        module: The model.
        layer: "middle" or "last" of those that have no memory yet (Lample et al. 2019 found the middle best for a
            memory that is trained with the model); any other name is given back.

    Raises:
        ValueError: No such module of the model has one of `NAMES`; name the layer yourself.
    """
    if layer not in ("middle", "last"):
        return layer
    taken = (*memory_layers(module), *attached_memories(module))
    names = [name for name in _mlps(module) if not f"{name}.".startswith(tuple(f"{one}." for one in taken))]
    if not names:
        raise ValueError(
            f"{type(module).__name__} has no module named {' or '.join(NAMES)}; give the memory's place as "
            "weights.layer=<dotted name>"
        )
    return names[-1 if layer == "last" else len(names) // 2]


def _mlps(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] in NAMES]


def _takes_one(mlp: nn.Module) -> bool:
    parameters = inspect.signature(mlp.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.default is one.empty and one.kind in positional for one in parameters) < 2


def _put(module: nn.Module, layer: str, wrapped: Attached) -> None:
    if wrapped.memory.query_tokens is not None:
        wrapped.memory.query_tokens.watch(module, layer)
    module.set_submodule(layer, wrapped)
    number_query_tokens(module)


def _take_out(module: nn.Module, layer: str, wrapped: Attached, before: nn.Module) -> None:
    if wrapped.memory.query_tokens is not None:
        wrapped.memory.query_tokens.unwatch()
    module.set_submodule(layer, before)
    number_query_tokens(module)
