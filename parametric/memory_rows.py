"""Sparse memory finetuning: each step changes at most t rows of a memory layer's values, and not one byte beside them.

After Lin et al. 2025 (arXiv 2510.15103), written from the paper. Slots are chosen after the forward pass, so that
the choice costs no second one. Unlike the paper, which counts the reads of a whole batch, the choice by default counts
only positions that predict what is new: neither prompts nor rehearsed texts take part in it.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .attach import (
    Attached,
    MemoryTable,
    attach,
    attached_memories,
    detach,
    memory_layers,
    memory_tables,
    mlp_name,
    placed,
)
from .batches import Encoded, collate, encode
from .memory_layer import MemoryLayerConfig, SlotRecorder
from .slots import (
    Background,
    Gathering,
    Selector,
    SlotUsage,
    TfIdf,
    address_hash,
    has_background,
    load_background,
    save_background,
    slot_usage,
    top_rows,
)
from .weights import (
    Aim,
    Changed,
    Gradient,
    LossFunction,
    Project,
    Settle,
    Trainer,
    Weights,
    check_learnt,
    check_rate,
    finite,
)

logger = logging.getLogger(__name__)

Optimiser = Literal["sgd", "adam"]
Counted = Literal["predicting", "all"]


class _Originals:
    """The rows of one table that were changed, with the bytes that they had before."""

    def __init__(self, values: Tensor, outer: _Originals | None = None) -> None:
        self._values = values
        self._outer = outer
        self.seen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        self._rows: list[Tensor] = []
        self._bytes: list[Tensor] = []

    def remember(self, rows: Tensor) -> None:
        """Note the present bytes of those rows that were not noted before."""
        new = rows[~self.seen[rows]]
        self.seen[new] = True
        self._rows.append(new)
        self._bytes.append(self._values.detach()[new].clone())

    def rows(self) -> Tensor:
        """Every row noted, sorted."""
        return self.seen.nonzero().flatten()

    def all_rows(self) -> Tensor:
        """Also those that a block around this one has noted."""
        return self.rows() if self._outer is None else torch.cat([self.rows(), self._outer.all_rows()]).unique()

    def restore(self) -> None:
        """Put the noted bytes back."""
        with torch.no_grad():
            for rows, originals in zip(self._rows, self._bytes, strict=True):
                self._values[rows] = originals

    def restore_all(self) -> None:
        """Also those of blocks around this one: the untouched table."""
        self.restore()
        if self._outer is not None:
            self._outer.restore_all()


class MemoryRows:
    """The weights axis `memory`.

    A model without a memory layer gets one beside its middle MLP (or at `layer`), empty, so that its logits do not
    change until something is learnt; its addresses are then untrained, and learning is accordingly weaker
    (`recovery.py` trains them). Layers that share a table of values are one: their reads are counted together, and its
    rows are chosen once.

    Args:
        rows: t, the most rows that one step may change in each table; None: all that were read.
        rate: Learning rate of plain SGD on the rows, per nat of mean loss.
        optimiser: "sgd", as the paper has it, or "adam", whose moments move only for the rows that are chosen. The
            rate is then how far a number goes in a step: about 1 for the embedded model.
        momentum: Of SGD; a row's momentum moves only when the row is chosen.
        weight_decay: On chosen rows only; decoupled with Adam.
        clip: Largest norm of a step's gradient, of the chosen rows of all tables together; None: any.
        lifetime_rows: Most rows of each table that may ever change; once there are so many, those are changed again.
            None: any number.
        hub_share: Slots that more than this share of the background batches read are never chosen; None: any may be.
        protect_written: Whether rows that an earlier write has changed are left alone.
        selector: How rows are scored.
        counted: Whose reads count: those of positions that predict something new ("predicting"), or, as in the paper,
            of all positions but padding ("all").
        background_batch: Sequences in one background batch, the unit of the document frequency.
        statistics: Folder of the background statistics: loaded from there, without reading the background, or gathered
            and written there where there are none; None: gathered by each process.
        memories: Which of the model's memories may be written: dotted names of memory layers, or of the places where
            they were attached (of several that share a table, any one); "attached": those that were attached later, of
            which an empty one is made where there is none; None: all.
        layer: The MLP that an added memory stands beside: "middle" (None: this one), "last", or its dotted name.
        half_keys: Size of an added memory: half_keys squared slots; by default 64.
        query_tokens: Of how many tokens an added memory takes its queries, see `MemoryLayerConfig`; by default of one.
        seed: For an added memory's addresses and for random selection.
    """

    def __init__(
        self,
        *,
        rows: int | None = 32,
        rate: float = 7000.0,
        optimiser: Optimiser = "sgd",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
        lifetime_rows: int | None = None,
        hub_share: float | None = None,
        protect_written: bool = False,
        selector: Selector | None = None,
        counted: Counted = "predicting",
        background_batch: int = 8,
        statistics: str | Path | None = None,
        memories: Sequence[str] | Literal["attached"] | None = None,
        layer: str | None = None,
        half_keys: int | None = None,
        query_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        check_rate(rate, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if background_batch < 1:
            raise ValueError(f"background_batch must be at least 1, got {background_batch}")
        if optimiser not in get_args(Optimiser):
            raise ValueError(f"optimiser must be one of {', '.join(get_args(Optimiser))}, got {optimiser!r}")
        if counted not in get_args(Counted):
            raise ValueError(f"counted must be one of {', '.join(get_args(Counted))}, got {counted!r}")
        if optimiser == "adam" and momentum:
            raise ValueError(f"momentum is an option of optimiser=sgd; Adam has its own, got momentum={momentum}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be above 0, or null, got {clip}")
        if lifetime_rows is not None and lifetime_rows < (rows or 1):
            raise ValueError(f"lifetime_rows must be at least rows ({rows}), got {lifetime_rows}")
        if hub_share is not None and not 0 <= hub_share <= 1:
            raise ValueError(f"hub_share must be in [0, 1], got {hub_share}")
        if memories is not None and (not memories or (isinstance(memories, str) and memories != "attached")):
            raise ValueError(f"memories must be a list of names, 'attached' or null, got {memories!r}")
        self.rows = rows
        self.rate = rate
        self.optimiser = optimiser
        self.lifetime_rows = lifetime_rows
        self.hub_share = hub_share
        self.protect_written = protect_written
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip = clip
        self.selector: Selector = selector if selector is not None else TfIdf()
        self.counted = counted
        self.background_batch = background_batch
        self.statistics = None if statistics is None else Path(statistics)
        self.memories = memories
        self._layer = layer
        self._half_keys = half_keys
        self._query_tokens = query_tokens
        self.seed = seed
        self._added: Attached | None = None
        self._background: dict[str, Background] = {}
        self._usage: SlotUsage | None = None
        self._learnt: dict[str, tuple[Tensor, Tensor]] = {}
        self._originals: dict[str, _Originals] = {}
        self.backward = 1.0

    @property
    def moments(self) -> int:
        """Tensors that the optimiser keeps for each row that it has moved."""
        return 2 if self.optimiser == "adam" else int(self.momentum > 0)

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if self.hub_share is not None and not background:
            raise ValueError(
                f"hub_share={self.hub_share} leaves out what the background reads, and there is none: give "
                "lm.background, or hub_share=null"
            )

    def fit(self, lm: Any) -> None:
        """See `Weights`. Makes a memory for a model that has none; where it goes in and out is `applied`.

        Raises:
            ValueError: The model's memory is of half precision, in which small steps would be rounded away; it has no
                place for one, or none of the name given; it has one, and another one is described; or statistics that
                were saved belong to something else.
        """
        if tables := self._tables(lm.module):
            narrow = {str(table.values.dtype) for table in tables.values()} - {"torch.float32", "torch.float64"}
            if narrow:
                raise ValueError(f"a memory is written to in float32, this one has {sorted(narrow)}: lm.dtype=float32")
            if any(one is not None for one in (self._layer, self._half_keys, self._query_tokens)):
                raise ValueError(
                    "layer, half_keys and query_tokens say what memory is added to a model that has none to write to; "
                    f"this one has {[*tables]}: leave them out, or choose with memories which are written"
                )
        else:
            self._add(lm)
        self.backward = max(lm.share_after(place) for place in tables or (self._layer,))
        if self.statistics is not None and has_background(self.statistics):
            with self._in_place(lm.module):
                addresses = _addresses(self._tables(lm.module))
            load_background(self.statistics, self._depends(lm), addresses)

    def _add(self, lm: Any) -> None:
        self._layer = mlp_name(lm.module, self._layer or "middle")
        config = MemoryLayerConfig(
            lm.module.config.hidden_size,
            half_keys=64 if self._half_keys is None else self._half_keys,
            query_tokens=1 if self._query_tokens is None else self._query_tokens,
        )
        self._added = attach(lm.module, self._layer, config, seed=self.seed)
        self._added.open_empty()
        detach(lm.module, self._layer)
        kind = "attached " if self.memories == "attached" else ""
        logger.info("the model has no %smemory to write to; one is put beside %s, empty", kind, self._layer)

    def _tables(self, module: Any) -> dict[str, MemoryTable]:
        """The tables that may be written."""
        tables = memory_tables(module)
        if self.memories is None:
            return tables
        layers, attached = memory_layers(module), attached_memories(module)
        wanted = list(attached) if self.memories == "attached" else list(self.memories)
        if unknown := [name for name in wanted if name not in layers and name not in attached]:
            raise ValueError(f"the model has no memory {unknown}; it has {[*layers]}: path.memory.weights.memories")
        chosen = {id(attached[name].memory if name in attached else layers[name]) for name in wanted}
        return {name: table for name, table in tables.items() if chosen & {id(layer) for layer in table.layers}}

    def _depends(self, lm: Any) -> dict[str, str]:
        """What background statistics depend on beside addresses and texts."""
        words = repr(sorted(lm.tokenizer.get_vocab().items()))
        return {
            "weights of the model": lm.weights_hash(),
            "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
            "background_batch": str(self.background_batch),
        }

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`. Gathers the background statistics of every table, or loads them.

        Raises:
            ValueError: Saved statistics were gathered from something else.
        """
        if not background:
            logger.warning("no background texts: slot selection falls back on the batch's own counts")
        sequences = encode(lm, background)
        # Phrasings of a fact stand side by side: in one batch they would count as read in that batch alone.
        random.Random(self.seed).shuffle(sequences)
        depends = {}
        if self.statistics is not None:
            drawn = repr([(list(sequence.ids), list(sequence.learnt)) for sequence in sequences])
            depends = {**self._depends(lm), "texts, window or seed": hashlib.sha256(drawn.encode()).hexdigest()}
        with self._in_place(lm.module):
            tables = self._tables(lm.module)
            if self.statistics is not None and has_background(self.statistics):
                self._keep(load_background(self.statistics, depends, _addresses(tables)))
                return 0
            gathered, tokens = read_background(lm, tables, sequences, self.background_batch)
        if self.statistics is not None:
            save_background(self.statistics, gathered, depends)
        self._keep(gathered)
        return tokens

    def _keep(self, background: Mapping[str, Background]) -> None:
        """Keep of the statistics what selectors ask for; of the reads, which are as large, what they tell of use."""
        reads = torch.cat([one.reads for one in background.values()])
        self._usage = slot_usage(reads) if reads.any() else None
        self._background = {name: one.compact() for name, one in background.items()}

    @contextmanager
    def _in_place(self, module: Any) -> Iterator[None]:
        if self._added is None or self._layer is None:
            yield
            return
        with placed(module, self._layer, self._added):
            yield

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`."""
        with self._in_place(module):
            tables = self._tables(module)
            # Blocks may be nested: each puts back what it found.
            outer = self._originals
            self._originals = {name: _Originals(table.values, outer.get(name)) for name, table in tables.items()}
            try:
                for name, (rows, learnt) in self._learnt.items():
                    values = tables[name].values
                    rows = rows.to(values.device)
                    self._originals[name].remember(rows)
                    with torch.no_grad():
                        values[rows] = tables[name].processes.columns(learnt).to(values.device)
                yield
            finally:
                for originals in self._originals.values():
                    originals.restore()
                self._originals = outer

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        tables = self._tables(module)
        changed = {name: originals.all_rows() for name, originals in self._originals.items()}
        present = {name: tables[name].values.detach()[rows].clone() for name, rows in changed.items()}
        with torch.no_grad():
            others = {name: _Originals(table.values) for name, table in tables.items()}
            try:
                for name, table in tables.items():
                    self._originals[name].restore_all()
                    if f"{name}/rows" in state:
                        rows = state[f"{name}/rows"].to(table.values.device)
                        others[name].remember(rows)
                        table.values[rows] = table.processes.columns(state[f"{name}/values"]).to(table.values.device)
                yield
            finally:
                for name, table in tables.items():
                    others[name].restore()
                    table.values[changed[name]] = present[name]

    @contextmanager
    def training(self, module: Any) -> Iterator[Trainer]:
        """See `Weights`.

        Raises:
            ValueError: The background statistics were gathered with other keys or queries.
        """
        tables = self._tables(module)
        for name, current in _addresses(tables).items():
            if current != self._background[name].address:
                raise ValueError(
                    f"the background statistics of {name!r} were gathered with other keys or queries; "
                    "call prepare on this model first"
                )
        frozen = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for table in tables.values():
            table.values.requires_grad_(True)
        try:
            with _recorded(tables) as recorders:
                yield _RowTrainer(self, tables, recorders)
            changed = {name: originals.rows() for name, originals in self._originals.items()}
            learnt = {
                name: tables[name].processes.whole(tables[name].values.detach()[rows]) for name, rows in changed.items()
            }
            check_learnt(learnt.values())
            # A state lies on the CPU, wherever the model is: it is compared, hashed and carried there.
            self._learnt = {name: (rows.cpu(), learnt[name].cpu().clone()) for name, rows in changed.items()}
        finally:
            for parameter, required in frozen:
                parameter.requires_grad_(required)
                parameter.grad = None

    def _may_change(self, name: str, accessed: Tensor) -> Tensor:
        """Which of the accessed slots may be chosen, bool."""
        background = self._background[name]
        allowed = torch.ones_like(accessed, dtype=torch.bool)
        if self.hub_share is not None and background.batches:
            allowed &= background.document_frequency[accessed] <= self.hub_share * background.batches
        if self.protect_written and name in self._learnt:
            allowed &= ~torch.isin(accessed, self._learnt[name][0].cpu())
        return allowed

    def _chosen(self, name: str, counts: Tensor, generator: torch.Generator) -> Tensor:
        """The rows that a step changes."""
        accessed = counts.nonzero().flatten()
        counts = counts[accessed].double()
        scores = self.selector(counts, self._background[name].among(accessed), generator)
        counts = counts * self._may_change(name, accessed)
        if self.lifetime_rows is None:
            return accessed[top_rows(scores, counts, self.rows)]
        seen = self._originals[name].seen.cpu()
        room, allowed = self.lifetime_rows - int(seen.sum()), seen[accessed]
        fresh = top_rows(scores, counts * ~allowed, room) if room > 0 else accessed[:0]
        allowed[fresh] = True
        return accessed[top_rows(scores, counts * allowed, self.rows)]

    def measures(self) -> Mapping[str, float]:
        """See `Weights`; `rows_touched`: rows of all tables that some write has changed. Where a background was read,
        how it uses the slots of all tables together, see `SlotUsage`: `slots_in_use` and `hub_reads`."""
        measured = {
            "weights_changed": float(sum(values.numel() for _, values in self._learnt.values())),
            "rows_touched": float(sum(len(rows) for rows, _ in self._learnt.values())),
        }
        if self._usage is None:
            return measured
        return measured | {"slots_in_use": self._usage.in_use, "hub_reads": self._usage.hub_share}

    def fingerprint(self) -> str:
        """See `Weights`: the addresses of an added memory; those of the model's own are part of the model."""
        if self._added is not None:
            return f"{self._layer} {address_hash(self._added.memory)}"
        if self.memories is None:
            return "memory"
        return f"memory {self.memories if self.memories == 'attached' else sorted(self.memories)}"

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: for each table, by the name of its first layer, its changed rows (int64) and their values."""
        named = {}
        for name, (rows, learnt) in self._learnt.items():
            named[f"{name}/rows"] = rows
            named[f"{name}/values"] = learnt
        return named

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        names = {name.removesuffix("/rows") for name in state if name.endswith("/rows")}
        self._learnt = {
            name: (state[f"{name}/rows"].cpu().clone(), state[f"{name}/values"].cpu().clone()) for name in names
        }


class _RowTrainer:
    """A `Trainer` of rows: chosen after the forward pass, updated alone, and nothing beside them."""

    def __init__(
        self, weights: MemoryRows, tables: Mapping[str, MemoryTable], recorders: Mapping[str, SlotRecorder]
    ) -> None:
        self._weights = weights
        self._tables = tables
        self._recorders = recorders
        # Another beginning for each write, and the same when it is learnt again.
        written = sum(len(rows) for rows, _ in weights._learnt.values())
        self._generator = torch.Generator().manual_seed(weights.seed + 7919 * written)
        self._moments = {name: _RowMoments(table.values, weights.moments) for name, table in tables.items()}
        self._before: dict[str, _RowMoments] = {}

    def remember(self) -> None:
        """See `Trainer`."""
        self._before = {name: _RowMoments(table.values, 1) for name, table in self._tables.items()}

    def step(
        self,
        aims: Sequence[Aim],
        project: Project | None = None,
        settle: Settle | None = None,
        rate_share: float = 1.0,
    ) -> float:
        """See `Trainer`."""
        value = 0.0
        for number, aim in enumerate(aims, start=1):
            found = aim.loss()
            value += finite(found)
            by = aim.batch.predicting if self._weights.counted == "predicting" else aim.batch.attention
            for name, recorder in self._recorders.items():
                counts = recorder.count(by.flatten())
                if number == len(aims):
                    total = self._tables[name].processes.total(counts)
                    recorder.select(self._weights._chosen(name, total, self._generator))
            found.backward()
        own = {name: recorder.gradient for name, recorder in self._recorders.items()}
        gradients = [
            Gradient(f"{name}.values", gradient, self._recorders[name].rows)
            for name, gradient in own.items()
            if gradient is not None
        ]
        if project:
            project(gradients)
        if self._weights.clip is not None and gradients:
            values_of = [one.values for one in gradients]
            norm = torch.stack([values.norm() for values in values_of]).norm()
            for values in values_of:
                values *= (self._weights.clip / (norm + 1e-6)).clamp(max=1.0)
        for name, recorder in self._recorders.items():
            if (gradient := own[name]) is not None:
                self._weights._originals[name].remember(recorder.rows)
                if self._before:
                    self._before[name].note(recorder.rows, self._tables[name].values)
                self._update(name, recorder.rows, gradient, self._weights.rate * rate_share)
        if settle:
            self._settle(settle, {name: one.rows for name, one in self._recorders.items() if one.gradient is not None})
        for recorder in self._recorders.values():
            recorder.clear()
        return value

    def settle(self, settle: Settle) -> None:
        """See `Trainer`."""
        self._settle(settle, {name: before.rows() for name, before in self._before.items()})

    def gradients(self, loss: LossFunction) -> list[Gradient]:
        """See `Trainer`."""
        found: list[Gradient] = []
        with _recorded(self._tables) as recorders:
            value = loss()
            for recorder in recorders.values():
                recorder.select(torch.cat([read.flatten() for read in recorder.reads]).unique())
            value.backward()
            for name, recorder in recorders.items():
                if recorder.gradient is not None:
                    found.append(Gradient(f"{name}.values", recorder.gradient, recorder.rows))
        return found

    def _update(self, name: str, rows: Tensor, gradient: Tensor, rate: float) -> None:
        weights, values = self._weights, self._tables[name].values
        with torch.no_grad():
            present = values[rows]
            if weights.optimiser == "adam":
                direction = self._moments[name].adam(rows, gradient)
                # Decoupled, as in AdamW.
                values[rows] = present * (1 - rate * weights.weight_decay) - rate * direction
                return
            if weights.weight_decay:
                gradient = gradient + weights.weight_decay * present
            if weights.momentum:
                gradient = self._moments[name].momentum(rows, gradient, weights.momentum)
            values[rows] = present - rate * gradient

    def _settle(self, settle: Settle, moved: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            changed = []
            for name, rows in moved.items():
                present = self._tables[name].values[rows]
                changed.append(Changed(f"{name}.values", present, self._before[name].noted(rows), rows))
            settle(changed)
            for one, (name, rows) in zip(changed, moved.items(), strict=True):
                self._tables[name].values[rows] = one.present


class _RowMoments:
    """An optimiser's memory of the rows that it has moved, and of no others.

    A row's moments change only in steps that choose it: otherwise momentum would go on moving rows that were not.

    Args:
        values: The table, [slots, width].
        count: Tensors for each row.
    """

    def __init__(self, values: Tensor, count: int) -> None:
        # Of the rows that moved, sorted, and where in the store each has its place: nothing is of the table's size.
        self._rows = values.new_empty(0, dtype=torch.int64)
        self._place = values.new_empty(0, dtype=torch.int64)
        self._store = values.new_zeros(0, count, values.shape[1])
        self._steps = values.new_zeros(0, dtype=torch.int64)

    def note(self, rows: Tensor, values: Tensor) -> None:
        """Keep the present values of the rows that are not kept yet."""
        new = self._new(rows)
        at = self._at(new)  # which may put a larger store in its place
        self._store[at, 0] = values.detach()[new]

    def rows(self) -> Tensor:
        """Every row of which something is kept, sorted."""
        return self._rows

    def noted(self, rows: Tensor) -> Tensor:
        """What was kept of them."""
        return self._store[self._at(rows), 0]

    def momentum(self, rows: Tensor, gradient: Tensor, share: float) -> Tensor:
        """The direction of SGD with heavy-ball momentum."""
        at = self._at(rows)
        self._store[at, 0] = share * self._store[at, 0] + gradient
        return self._store[at, 0]

    def adam(self, rows: Tensor, gradient: Tensor, first: float = 0.9, second: float = 0.999) -> Tensor:
        """The direction of Adam, its bias corrected by each row's own number of steps (Kingma & Ba 2015, 1412.6980)."""
        at = self._at(rows)
        self._steps[at] += 1
        steps = self._steps[at][:, None].double()
        self._store[at, 0] = first * self._store[at, 0] + (1 - first) * gradient
        self._store[at, 1] = second * self._store[at, 1] + (1 - second) * gradient.square()
        mean = self._store[at, 0] / (1 - first**steps).to(gradient.dtype)
        square = self._store[at, 1] / (1 - second**steps).to(gradient.dtype)
        return mean / (square.sqrt() + 1e-8)

    def _new(self, rows: Tensor) -> Tensor:
        if not len(self._rows):
            return rows
        at = torch.searchsorted(self._rows, rows).clamp(max=len(self._rows) - 1)
        return rows[self._rows[at] != rows]

    def _at(self, rows: Tensor) -> Tensor:
        new = self._new(rows)
        if len(new):
            used = len(self._rows) + len(new)
            self._rows, order = torch.cat([self._rows, new]).sort()
            places = torch.arange(used - len(new), used, device=rows.device)
            self._place = torch.cat([self._place, places])[order]
            if used > len(self._steps):
                more = max(used, len(self._steps))
                self._steps = torch.cat([self._steps, self._steps.new_zeros(more)])
                self._store = torch.cat([self._store, self._store.new_zeros(more, *self._store.shape[1:])])
        return self._place[torch.searchsorted(self._rows, rows)]


def read_background(
    lm: Any, tables: Mapping[str, MemoryTable], sequences: Sequence[Encoded], size: int
) -> tuple[dict[str, Background], int]:
    """Statistics of what texts read of each table, in batches of `size` sequences, and the number of their tokens."""
    tokens, addresses = 0, _addresses(tables)
    gathered = {name: Gathering(table.slots) for name, table in tables.items()}
    with torch.no_grad(), _recorded(tables, always=True) as recorders:
        for start in range(0, len(sequences), size):
            batch = collate(lm, sequences[start : start + size])
            lm.module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False)
            real = batch.attention.flatten().bool()
            tokens += batch.token_count
            for name, recorder in recorders.items():
                gathered[name].add(torch.cat([read[real] for read in recorder.reads]))
                recorder.clear()
    return {name: one.background(addresses[name]) for name, one in gathered.items()}, tokens


def _addresses(tables: Mapping[str, MemoryTable]) -> dict[str, str]:
    """`address_hash` of each table's layer; of several, of all of them."""
    return {name: " ".join(address_hash(layer) for layer in table.layers) for name, table in tables.items()}


@contextmanager
def _recorded(tables: Mapping[str, MemoryTable], always: bool = False) -> Iterator[dict[str, SlotRecorder]]:
    recorders = {
        name: SlotRecorder(table.slots, table.values.device, always=always, layers=len(table.layers))
        for name, table in tables.items()
    }
    # A gradient that is asked for within a step has recorders of its own.
    outer = [(layer, layer.recorder) for table in tables.values() for layer in table.layers]
    for name, table in tables.items():
        for layer in table.layers:
            layer.recorder = recorders[name]
    try:
        yield recorders
    finally:
        for layer, recorder in outer:
            layer.recorder = recorder
