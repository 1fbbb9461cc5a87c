"""The product-key memory layer: a large table of value vectors of which each token reads a few.

Product keys after Lample et al. 2019 (arXiv 1907.05242), gated output ("Memory+") after Berges et al. 2024
(2412.09764), both from the papers' text. The layer knows nothing of the model that it sits in, nor of how its slots are
chosen for writing.

Shape letters: B batch and positions, flattened; D model width; H heads; N half-keys per codebook; Q width of a
half-query; K slots read per head; R = H * K reads per position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .query_tokens import QueryTokens

QueryNorm = Literal["rms", "layer", "none"]


@dataclass(frozen=True)
class MemoryLayerConfig:
    """Shape of a memory layer.

    Args:
        width: D, the model's hidden size.
        half_keys: N; the table has N * N slots.
        heads: H, independent look-ups per position.
        top_k: K, slots read by each head; at most `half_keys`.
        half_query: Q, the width of each half of a query.
        query_norm: What each half of a query goes through: "rms", "layer" or "none". Lample et al. use BatchNorm, which
            is not to be had: in training it tells a position of later ones, and a token would have another address in
            another batch, so that no statistics of addresses would hold.
        query_tokens: Of how many tokens a query is taken, the last ones up to its own, each weighed by learnt weights
            (`QueryTokens`).
    """

    width: int
    half_keys: int = 128
    heads: int = 4
    top_k: int = 8
    half_query: int = 32
    # Not in the repr, of which hashes are made that name what earlier releases saved; the weights tell it there.
    query_norm: QueryNorm = field(default="rms", repr=False)
    query_tokens: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        for name in ("width", "half_keys", "heads", "top_k", "half_query", "query_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a memory layer must be at least 1, got {getattr(self, name)}")
        if self.top_k > self.half_keys:
            raise ValueError(f"top_k must be at most half_keys ({self.half_keys}), got {self.top_k}")
        if self.query_norm not in get_args(QueryNorm):
            raise ValueError(
                f"query_norm must be one of {', '.join(get_args(QueryNorm))} (BatchNorm would mix positions), got "
                f"{self.query_norm!r}"
            )

    @property
    def slots(self) -> int:
        """Number of slots, N * N."""
        return self.half_keys**2


Read = Callable[[Tensor, Tensor], Tensor]
"""From slots_BR and weights_BR to the weighted sum of these values, [B, width of the table]."""


class Processes(Protocol):
    """Those that have a layer together, each with some columns of its table of values; all call these at once."""

    def total(self, counts: Tensor) -> Tensor:
        """The sum of every process's counts."""
        ...

    def columns(self, values: Tensor) -> Tensor:
        """Of values [..., D], the columns that this process keeps."""
        ...

    def whole(self, columns: Tensor) -> Tensor:
        """The reverse: [..., D] from the columns of every process."""
        ...

    def read(self, read: Read, slots_BR: Tensor, weights_BR: Tensor) -> Tensor:
        """[B, D] of this process's positions; `read` gives some of the columns of any."""
        ...


@dataclass(frozen=True)
class WholeTable:
    """`Processes` that have the whole table each; by default this one alone.

    Args:
        summed: Gives the sum of every process's counts; None: there is no other process.
    """

    summed: Callable[[Tensor], Tensor] | None = None

    def total(self, counts: Tensor) -> Tensor:
        """See `Processes`."""
        return counts if self.summed is None else self.summed(counts)

    def columns(self, values: Tensor) -> Tensor:
        """See `Processes`."""
        return values

    def whole(self, columns: Tensor) -> Tensor:
        """See `Processes`."""
        return columns

    def read(self, read: Read, slots_BR: Tensor, weights_BR: Tensor) -> Tensor:
        """See `Processes`."""
        return read(slots_BR, weights_BR)


_QUERY_NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm, "none": nn.Identity}


class ProductKeyMemory(nn.Module):
    """Maps [..., D] to [..., D] by reading `top_k` of N * N value vectors per head.

    A head's query has two halves; each is scored against its own codebook of N half-keys, and the score of slot (i, j)
    is the sum of the two halves' scores. The best K of the N * N slots are among the K x K pairs of the best halves, so
    the search is exact and costs 2 N + K * K scores instead of N * N.

    Set `recorder` to a `SlotRecorder` while writing: reads are then noted and gradients flow to the recorder's rows
    only.

    Args:
        config: Its shape.
        values: The table, [N * N, D], of another layer, to read the same one; None: one of its own.
    """

    def __init__(self, config: MemoryLayerConfig, values: nn.Parameter | None = None) -> None:
        super().__init__()
        if values is not None and values.shape != (config.slots, config.width):
            raise ValueError(
                f"a memory of {config.slots} slots of width {config.width} cannot share a table of "
                f"{' x '.join(map(str, values.shape))}"
            )
        self.config = config
        width, heads, half_query = config.width, config.heads, config.half_query
        self.query_tokens = QueryTokens(config.query_tokens, width) if config.query_tokens > 1 else None
        self.query = nn.Linear(width, heads * 2 * half_query, bias=False)
        self.query_norm = _QUERY_NORMS[config.query_norm](half_query)
        bound = half_query**-0.5
        self.keys = nn.Parameter(torch.empty(heads, 2, config.half_keys, half_query).uniform_(-bound, bound))
        self.values = nn.Parameter(torch.randn(config.slots, width) * width**-0.5) if values is None else values
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.recorder: SlotRecorder | None = None
        self.processes: Processes = WholeTable()

    def queries(self, hidden_BD: Tensor) -> Tensor:
        """Two normalised half-queries for each head, [B, H, 2, Q]."""
        config = self.config
        query_BH2Q = self.query(hidden_BD).view(-1, config.heads, 2, config.half_query)
        normed_BH2Q: Tensor = self.query_norm(query_BH2Q.to(self.keys.dtype))
        return normed_BH2Q

    def half_scores(self, query_BH2Q: Tensor) -> Tensor:
        """Score of each half-key, [B, H, 2, N], as float32 or wider (under autocast, of autocast's precision)."""
        scores_BH2N = torch.einsum("bhcq,hcnq->bhcn", query_BH2Q, self.keys.to(query_BH2Q.dtype))
        return scores_BH2N.to(torch.promote_types(scores_BH2N.dtype, torch.float32))

    def look_up(self, hidden_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Slots and their weights for each position.

        Returns:
            slots_BR (int64, in [0, N * N)) and weights_BR (a softmax over each head's K scores).
        """
        config = self.config
        scores_BH2N = self.half_scores(self.queries(hidden_BD))
        best_BH2K, index_BH2K = scores_BH2N.topk(config.top_k, dim=-1)
        pair_BHKK = best_BH2K[:, :, 0, :, None] + best_BH2K[:, :, 1, None, :]
        slot_BHKK = index_BH2K[:, :, 0, :, None] * config.half_keys + index_BH2K[:, :, 1, None, :]
        score_BHK, pick_BHK = pair_BHKK.flatten(2).topk(config.top_k, dim=-1)
        slots_BHK = slot_BHKK.flatten(2).gather(2, pick_BHK)
        return slots_BHK.flatten(1), score_BHK.softmax(dim=-1).flatten(1)

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` [..., D] to the memory's contribution [..., D], in the dtype of `hidden`."""
        hidden_BD = hidden.reshape(-1, self.config.width)
        asking = hidden if self.query_tokens is None else self.query_tokens(hidden)
        slots_BR, weights_BR = self.look_up(asking.reshape(-1, self.config.width))
        read: Read = partial(_weighted_sum, self.values)
        if self.recorder is not None and (self.recorder.always or torch.is_grad_enabled()):
            self.recorder.reads.append(slots_BR)
            read = partial(_RecordedRead.apply, self.recorder, self.values)
        read_BD = self.processes.read(read, slots_BR, weights_BR)
        gated_BD = read_BD.to(hidden_BD.dtype) * functional.silu(self.gate(hidden_BD))
        output_BD: Tensor = self.output(gated_BD)
        return output_BD.view(hidden.shape).to(hidden.dtype)

    def flops_per_token(self) -> float:
        """Floating point operations of one position's forward pass, 2 per multiply-add."""
        config = self.config
        look_up = (
            config.width * config.heads * 2 * config.half_query
            + 2 * config.heads * config.half_keys * config.half_query
        )
        reads = config.heads * config.top_k * config.width
        mixed = config.query_tokens * config.width if config.query_tokens > 1 else 0
        return 2.0 * (mixed + look_up + reads + 2 * config.width**2)


class SlotRecorder:
    """Notes which slots a forward pass read, and takes the gradient of a few chosen rows during the backward pass.

    Use: set it as the `recorder` of every layer that reads the table, run the forward pass, call `count` and `select`,
    run the backward pass, read `gradient`, call `clear`. Where a step is several passes, the reads of those that are
    differentiated before the choice wait for it, with their gradients.

    One number a slot serves twice: until the choice it is how often the slot was read, from then on which row of the
    gradient is the slot's.

    Args:
        slots: N * N.
        device: Where the layer's values are.
        always: Note reads also where no gradient is wanted; otherwise those are a teacher's or a sampler's.
        layers: Memory layers that read the table: a forward pass is so many reads.
    """

    def __init__(
        self, slots: int, device: torch.device | str = "cpu", *, always: bool = False, layers: int = 1
    ) -> None:
        self.always = always
        self.layers = layers
        self.reads: list[Tensor] = []
        self.rows = torch.empty(0, dtype=torch.int64, device=device)
        self.gradient: Tensor | None = None
        self._chosen = False
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        # Counts, then places in the gradient, counted from 1.
        self._marks = torch.zeros(slots, dtype=torch.int32, device=device)

    def count(self, position_weights: Tensor | None = None) -> Tensor:
        """Count the reads of a forward pass, the first since the last call: that of the batch; by all layers that read
        the table.

        Args:
            position_weights: [B] of 0 and 1; 0 leaves a position out.

        Returns:
            How often each slot was read in all passes that were counted, [N * N] int32 on the CPU; `select` and
            `clear` take these numbers away.
        """
        for slots_BR in self.reads[: self.layers]:
            if position_weights is None:
                ones = self._marks.new_ones(slots_BR.numel())
            else:
                ones = position_weights.to(self._marks)[:, None].expand_as(slots_BR).reshape(-1)
            self._marks.index_add_(0, slots_BR.reshape(-1), ones)
        self.reads.clear()
        return self._marks.cpu()

    def select(self, rows: Tensor) -> None:
        """Let gradients flow to these rows (int64, [t], no duplicates) and to no others."""
        self.rows = rows.to(self._marks.device)
        self._marks.zero_()
        self._marks[self.rows] = torch.arange(1, len(rows) + 1, dtype=torch.int32, device=self._marks.device)
        self.gradient, self._chosen = None, True
        for waiting in self._waiting:
            self.accumulate(*waiting)
        self._waiting.clear()

    def clear(self) -> None:
        """Forget the reads and the gradient of a step; the next one counts and chooses anew."""
        self.reads.clear()
        self._marks.zero_()
        self._waiting.clear()
        self.gradient, self._chosen = None, False

    def accumulate(self, values: Tensor, slots_BR: Tensor, weights_BR: Tensor, grad_BD: Tensor) -> None:
        """Add sum over reads of weight * gradient into the chosen rows, [t, D]; nothing of size N * N is made."""
        if not self._chosen:
            self._waiting.append((values, slots_BR, weights_BR.detach(), grad_BD))
            return
        place_BR = self._marks[slots_BR]
        chosen = place_BR > 0
        batch_index, _ = chosen.nonzero(as_tuple=True)
        if self.gradient is None:
            self.gradient = values.new_zeros(len(self.rows), values.shape[1])
        contribution = grad_BD.to(values.dtype)[batch_index] * weights_BR.to(values.dtype)[chosen][:, None]
        self.gradient.index_add_(0, place_BR[chosen] - 1, contribution)


def _weighted_sum(values: Tensor, slots_BR: Tensor, weights_BR: Tensor) -> Tensor:
    # Outside autocast: embedding_bag wants values and weights of one dtype, and bf16 values would swallow small
    # updates.
    with torch.autocast(values.device.type, enabled=False):
        weights_BR = weights_BR.to(values.dtype)
        return functional.embedding_bag(slots_BR, values, per_sample_weights=weights_BR, mode="sum")


class _RecordedRead(torch.autograd.Function):
    """The weighted read with late selection: which rows get a gradient is decided after the forward pass.

    Equal to training through `values * mask + stop_gradient(values * (1 - mask))` (Lin et al. 2025, arXiv
    2510.15103) without any temporary of the table's size.
    """

    @staticmethod
    def forward(ctx: Any, recorder: SlotRecorder, values: Tensor, slots_BR: Tensor, weights_BR: Tensor) -> Tensor:
        ctx.save_for_backward(values, slots_BR, weights_BR)
        ctx.recorder = recorder
        return _weighted_sum(values, slots_BR, weights_BR)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor | None]:
        (grad_BD,) = gradients
        values, slots_BR, weights_BR = ctx.saved_tensors
        ctx.recorder.accumulate(values, slots_BR, weights_BR, grad_BD)
        grad_weights_BR = None
        if ctx.needs_input_grad[3]:
            grad_weights_BR = torch.einsum("brd,bd->br", values[slots_BR], grad_BD.to(values.dtype))
        return None, None, None, grad_weights_BR
