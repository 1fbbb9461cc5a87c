"""Which slots of a memory layer a write may change: background statistics and selectors.

TF-IDF over slot accesses after Lin et al. 2025 (arXiv 2510.15103), from the paper's text: slots that this batch reads
often and that ordinary text reads seldom. Pure functions of counts; this file knows nothing of models beyond their
memory layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .memory_layer import ProductKeyMemory


@dataclass(frozen=True)
class Background:
    """In how many background batches each slot was read.

    Args:
        batches: Number of background batches.
        document_frequency: [slots] int64; how many of them read the slot at least once.
        address: What the statistics depend on, see `address_hash`.
        mass: The frequency of every slot of the table plus one, summed; None: these are all its slots.
    """

    batches: int
    document_frequency: Tensor
    address: str
    mass: int | None = None

    def among(self, slots: Tensor) -> Background:
        """The statistics of these slots alone, in their order."""
        mass = int(self.document_frequency.sum()) + len(self.document_frequency) if self.mass is None else self.mass
        return replace(self, document_frequency=self.document_frequency[slots], mass=mass)


class Selector(Protocol):
    """Scores slots by their accesses; the rows with the highest scores may change."""

    def __call__(self, counts: Tensor, background: Background, generator: torch.Generator) -> Tensor:
        """[slots] accesses of this batch to [slots] scores, float64. Slots that were not accessed are never chosen, and
        in a step are not even shown: nothing of the table's size is computed."""
        ...


@dataclass(frozen=True)
class TfIdf:
    """Share of the batch's accesses times log((B + 1) / (background batches with the slot + 1))."""

    def __call__(self, counts: Tensor, background: Background, generator: torch.Generator) -> Tensor:
        """See `Selector`."""
        share = counts / counts.sum().clamp(min=1)
        if not background.batches:
            return share  # nothing is known of ordinary text, and every inverse frequency would be 0
        return share * torch.log((background.batches + 1) / (background.document_frequency.to(torch.float64) + 1))


@dataclass(frozen=True)
class Divergence:
    """A slot's term p log(p / q) of the divergence of the batch's accesses from the background's: p is its share of
    the batch's accesses, q its share of all pairs of a background batch and a slot that it read, one more added for
    each slot (the form of arXiv 2604.05248's prototype)."""

    def __call__(self, counts: Tensor, background: Background, generator: torch.Generator) -> Tensor:
        """See `Selector`."""
        share = counts / counts.sum().clamp(min=1)
        expected = background.document_frequency.to(torch.float64) + 1
        mass = expected.sum() if background.mass is None else background.mass
        return torch.xlogy(share, share / (expected / mass))


@dataclass(frozen=True)
class TermFrequency:
    """The batch's accesses alone: the paper's ablation."""

    def __call__(self, counts: Tensor, background: Background, generator: torch.Generator) -> Tensor:
        """See `Selector`."""
        return counts / counts.sum().clamp(min=1)


@dataclass(frozen=True)
class RandomSlots:
    """Any accessed slots: the floor that a selector must beat."""

    def __call__(self, counts: Tensor, background: Background, generator: torch.Generator) -> Tensor:
        """See `Selector`."""
        return torch.rand(counts.shape, generator=generator, dtype=torch.float64)


def top_rows(scores: Tensor, counts: Tensor, rows: int | None) -> Tensor:
    """The best `rows` accessed slots (None: all of them), ties to the lower slot, sorted by slot; int64."""
    accessed = counts.nonzero().flatten()
    if rows is None or len(accessed) <= rows:
        return accessed
    found = scores[accessed]
    # Not a sort: of half a million accessed slots it would cost more than all the rest of the choice.
    least = found.topk(rows).values[-1]
    above = accessed[found > least]
    ties = accessed[found == least][: rows - len(above)]
    return torch.cat([above, ties]).sort().values


def address_hash(layer: ProductKeyMemory) -> str:
    """SHA-256 over keys, query weights and shape: while it stays the same, so do a layer's addresses for given
    input."""
    digest = hashlib.sha256(repr(layer.config).encode())
    for tensor in (layer.keys, layer.query.weight, layer.query_norm.weight):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def gather_background(accesses: Sequence[Tensor], slots: int, address: str) -> Background:
    """Statistics from the accesses of each background batch (int64 tensors of slots, of any shape)."""
    frequency = torch.zeros(slots, dtype=torch.int64)
    for read in accesses:
        frequency[read.unique().cpu()] += 1
    return Background(len(accesses), frequency, address)
