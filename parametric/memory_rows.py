"""Sparse memory finetuning: each step changes at most t rows of a memory layer's values, and not one byte beside them.

After Lin et al. 2025 (arXiv 2510.15103), written from the paper. Slots are chosen after the forward pass, so that
the choice costs no second one. Unlike the paper, which counts the reads of a whole batch, the choice counts only
positions that predict what is new: neither prompts nor rehearsed texts take part in it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .attach import AdditiveMemory, attach, detach, memory_layers, middle_mlp
from .batches import TrainingBatch, collate, encode
from .memory_layer import MemoryLayerConfig, ProductKeyMemory, SlotRecorder
from .penalty import Changed, Penalty
from .projection import Projection
from .slots import Background, Selector, TfIdf, address_hash, gather_background, top_rows
from .weights import LossFunction, Step, check_learnt, finite

logger = logging.getLogger(__name__)


class _Originals:
    """The rows of one table that were changed, with the bytes that they had before."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._seen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        self._rows: list[Tensor] = []
        self._bytes: list[Tensor] = []

    def remember(self, rows: Tensor) -> None:
        """Note the present bytes of those rows that were not noted before."""
        new = rows[~self._seen[rows]]
        self._seen[new] = True
        self._rows.append(new)
        self._bytes.append(self._values.detach()[new].clone())

    def rows(self) -> Tensor:
        """Every row noted, sorted."""
        return self._seen.nonzero().flatten()

    def restore(self) -> None:
        """Put the noted bytes back."""
        with torch.no_grad():
            for rows, originals in zip(self._rows, self._bytes, strict=True):
                self._values[rows] = originals


class MemoryRows:
    """The weights axis `memory`.

    A model without a memory layer gets one beside its middle MLP (or at `layer`), empty, so that its logits do not
    change until something is learnt; its addresses are then untrained, and learning is accordingly weaker.

    Args:
        rows: t, the most rows that one step may change in each memory layer.
        rate: Learning rate of plain SGD on the rows, per nat of mean loss.
        momentum: Of SGD; a row's momentum moves only when the row is chosen.
        weight_decay: Of SGD, on chosen rows only.
        selector: How rows are scored.
        background_batch: Sequences in one background batch, the unit of the document frequency.
        layer: Dotted name of the MLP that an added memory stands beside; by default the middle one.
        half_keys: Size of an added memory: half_keys squared slots.
        seed: For an added memory's addresses and for random selection.
    """

    def __init__(
        self,
        *,
        rows: int = 32,
        rate: float = 7000.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        selector: Selector | None = None,
        background_batch: int = 8,
        layer: str | None = None,
        half_keys: int = 64,
        seed: int = 0,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        if rate <= 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        self.rows = rows
        self.rate = rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.selector: Selector = selector if selector is not None else TfIdf()
        self.background_batch = background_batch
        self._layer = layer
        self._half_keys = half_keys
        self._seed = seed
        self._added: AdditiveMemory | None = None
        self._background: dict[str, Background] = {}
        self._learnt: dict[str, tuple[Tensor, Tensor]] = {}
        self._originals: dict[str, _Originals] = {}

    backward = 1.0

    def fit(self, lm: Any) -> None:
        """See `Weights`. Makes a memory for a model that has none; where it goes in and out is `applied`."""
        if memory_layers(lm.module):
            return
        self._layer = self._layer or middle_mlp(lm.module)
        config = MemoryLayerConfig(lm.module.config.hidden_size, self._half_keys)
        self._added = attach(lm.module, self._layer, config, seed=self._seed)
        self._added.open_empty()
        detach(lm.module, self._layer)
        logger.info("the model has no memory layer; writing to an empty one beside %s", self._layer)

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`. Gathers the background statistics of every memory layer."""
        if not background:
            logger.warning("no background texts: slot selection falls back on the batch's own counts")
        tokens = 0
        with self._in_place(lm.module):
            layers = memory_layers(lm.module)
            reads: dict[str, list[Tensor]] = {name: [] for name in layers}
            with torch.no_grad(), _recorded(layers, always=True) as recorders:
                sequences = encode(lm, background)
                # Phrasings of a fact stand side by side: in one batch they would count as read in that batch alone.
                random.Random(self._seed).shuffle(sequences)
                for start in range(0, len(sequences), self.background_batch):
                    batch = collate(lm, sequences[start : start + self.background_batch])
                    lm.module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False)
                    real = batch.attention.flatten().bool()
                    tokens += batch.token_count
                    for name, recorder in recorders.items():
                        reads[name].append(recorder.reads[-1][real])
                        recorder.clear()
            self._background = {
                name: gather_background(reads[name], layer.config.slots, address_hash(layer))
                for name, layer in layers.items()
            }
        return tokens

    @contextmanager
    def _in_place(self, module: Any) -> Iterator[None]:
        if self._added is None or self._layer is None:
            yield
            return
        parent, _, child = self._layer.rpartition(".")
        original = module.get_submodule(self._layer)
        setattr(module.get_submodule(parent), child, self._added)
        try:
            yield
        finally:
            setattr(module.get_submodule(parent), child, original)

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`."""
        with self._in_place(module):
            layers = memory_layers(module)
            # Blocks may be nested: each puts back what it found.
            outer, self._originals = self._originals, {name: _Originals(layer.values) for name, layer in layers.items()}
            try:
                for name, (rows, learnt) in self._learnt.items():
                    values = layers[name].values
                    rows = rows.to(values.device)
                    self._originals[name].remember(rows)
                    with torch.no_grad():
                        values[rows] = learnt.to(values.device)
                yield
            finally:
                for originals in self._originals.values():
                    originals.restore()
                self._originals = outer

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        layers = memory_layers(module)
        changed = {name: originals.rows() for name, originals in self._originals.items()}
        present = {name: layers[name].values.detach()[rows].clone() for name, rows in changed.items()}
        with torch.no_grad():
            others = {name: _Originals(layer.values) for name, layer in layers.items()}
            try:
                for name, layer in layers.items():
                    self._originals[name].restore()
                    if f"{name}/rows" in state:
                        rows = state[f"{name}/rows"].to(layer.values.device)
                        others[name].remember(rows)
                        layer.values[rows] = state[f"{name}/values"].to(layer.values.device)
                yield
            finally:
                for name, layer in layers.items():
                    others[name].restore()
                    layer.values[changed[name]] = present[name]

    @contextmanager
    def training(self, module: Any, penalty: Penalty, projection: Projection) -> Iterator[Step]:
        """See `Weights`."""
        layers = memory_layers(module)
        frozen = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        generator = torch.Generator().manual_seed(self._seed)
        velocity: dict[str, Tensor] = {}
        # A copy of the table, which nothing but a penalty needs.
        before = {name: layer.values.detach().clone() for name, layer in layers.items()} if penalty else {}
        for name, layer in layers.items():
            current = address_hash(layer)
            if current != self._background[name].address:
                raise ValueError(
                    f"the background statistics of {name!r} were gathered with other keys or queries; "
                    "call prepare on this model first"
                )
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for layer in layers.values():
            layer.values.requires_grad_(True)
        try:
            with _recorded(layers) as recorders:

                def step(loss: LossFunction, batch: TrainingBatch, reference: LossFunction | None = None) -> float:
                    found = loss()
                    value = finite(found)
                    predicting = batch.predicting.flatten()
                    for name, recorder in recorders.items():
                        counts = recorder.counts(predicting)
                        scores = self.selector(counts, self._background[name], generator)
                        recorder.select(top_rows(scores, counts, self.rows))
                    found.backward()
                    if reference is not None:
                        _project(projection, list(recorders.values()), reference)
                    for name, recorder in recorders.items():
                        self._update(name, layers[name], recorder, velocity)
                    if penalty:
                        with torch.no_grad():
                            for name, recorder in recorders.items():
                                present = layers[name].values[recorder.rows]
                                penalty([Changed(present, before[name][recorder.rows])])
                                layers[name].values[recorder.rows] = present
                    for recorder in recorders.values():
                        recorder.clear()
                    return value

                yield step
            changed = {name: originals.rows() for name, originals in self._originals.items()}
            check_learnt(layers[name].values.detach()[rows] for name, rows in changed.items())
            self._learnt = {name: (rows, layers[name].values.detach()[rows].clone()) for name, rows in changed.items()}
        finally:
            for parameter, required in frozen:
                parameter.requires_grad_(required)
                parameter.grad = None

    def _update(self, name: str, layer: ProductKeyMemory, recorder: SlotRecorder, velocity: dict[str, Tensor]) -> None:
        if recorder.gradient is None:
            return
        rows, direction = recorder.rows, recorder.gradient
        self._originals[name].remember(rows)
        with torch.no_grad():
            present = layer.values[rows]
            if self.weight_decay:
                direction = direction + self.weight_decay * present
            if self.momentum:
                store = velocity.setdefault(name, torch.zeros_like(layer.values))
                store[rows] = self.momentum * store[rows] + direction
                direction = store[rows]
            layer.values[rows] = present - self.rate * direction

    def measures(self) -> Mapping[str, float]:
        """See `Weights`; `rows_touched`: rows of all memory layers that some write has changed."""
        return {
            "weights_changed": float(sum(values.numel() for _, values in self._learnt.values())),
            "rows_touched": float(sum(len(rows) for rows, _ in self._learnt.values())),
        }

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: for each layer its changed rows (int64) and their values."""
        named = {}
        for name, (rows, learnt) in self._learnt.items():
            named[f"{name}/rows"] = rows
            named[f"{name}/values"] = learnt
        return named

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        names = {name.removesuffix("/rows") for name in state if name.endswith("/rows")}
        self._learnt = {name: (state[f"{name}/rows"].clone(), state[f"{name}/values"].clone()) for name in names}


def _project(projection: Projection, recorders: Sequence[SlotRecorder], reference: LossFunction) -> None:
    own = [recorder.gradient for recorder in recorders]
    for recorder in recorders:
        recorder.gradient = None
    reference().backward()
    pairs = [
        (one, r.gradient) for one, r in zip(own, recorders, strict=True) if one is not None and r.gradient is not None
    ]
    projection.project([one for one, _ in pairs], [other for _, other in pairs])
    for recorder, one in zip(recorders, own, strict=True):
        recorder.gradient = one


@contextmanager
def _recorded(layers: Mapping[str, ProductKeyMemory], always: bool = False) -> Iterator[dict[str, SlotRecorder]]:
    recorders = {
        name: SlotRecorder(layer.config.slots, layer.values.device, always=always) for name, layer in layers.items()
    }
    for name, layer in layers.items():
        layer.recorder = recorders[name]
    try:
        yield recorders
    finally:
        for layer in layers.values():
            layer.recorder = None
