"""Which slots of a memory layer a write may change: background statistics, what they tell of the use of a table, and
selectors.

TF-IDF over slot accesses after Lin et al. 2025 (arXiv 2510.15103), from the paper's text: slots that this batch reads
often and that ordinary text reads seldom. Pure functions of counts; this file knows nothing of models beyond their
memory layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .memory_layer import ProductKeyMemory
from .storage import is_stored, store, stored

STATISTICS_VERSION = 2
STORED = "background"


@dataclass(frozen=True)
class Background:
    """In how many background batches each slot was read.

    Args:
        batches: Number of background batches.
        document_frequency: [slots] of whole numbers; how many of them read the slot at least once.
        address: What the statistics depend on, see `address_hash`.
        reads: [slots] int32; how often the slot was read in all of them; empty where that is not known.
        mass: The frequency of every slot of the table plus one, summed; None: these are all its slots.
    """

    batches: int
    document_frequency: Tensor
    address: str
    reads: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    mass: int | None = None

    def with_mass(self) -> Background:
        """The same, and the mass of the table."""
        return replace(self, mass=int(self.document_frequency.sum()) + len(self.document_frequency))

    def compact(self) -> Background:
        """The same, to be kept: without `reads`, which no selector asks for, and, where two bytes hold the number of
        batches, in these."""
        short = self.batches <= torch.iinfo(torch.int16).max
        frequency = self.document_frequency.to(torch.int16) if short else self.document_frequency
        return replace(self, document_frequency=frequency, reads=self.reads[:0])

    def among(self, slots: Tensor) -> Background:
        """The statistics of these slots alone, in their order."""
        whole = self if self.mass is not None else self.with_mass()
        return replace(whole, document_frequency=self.document_frequency[slots])


@dataclass(frozen=True)
class SlotUsage:
    """How a table is used by ordinary text.

    Args:
        in_use: Share of the slots that are read at all, in [0, 1].
        hub_share: Share of all reads that the most-read 1 % of the slots (at least one) take: .01 when all are read
            equally often. Hubs are what a write must leave alone.
        divergence: Kullback-Leibler divergence of the reads from equal use, in nats, in [0, log(slots)]:
            exp(-divergence) is the share of the slots that, equally used, would be as diverse.
    """

    in_use: float
    hub_share: float
    divergence: float


def slot_usage(reads: Tensor) -> SlotUsage:
    """How evenly slots are used, after Lample et al. 2019 (arXiv 1907.05242), who sum weights in place of reads for
    the divergence.

    Args:
        reads: [slots]; how often each was read, all at least 0.

    Raises:
        ValueError: Nothing was read.
    """
    total = float(reads.sum())
    if not total:
        raise ValueError("no slot was read, so that nothing can be said of their use; give background texts")
    share = reads.to(torch.float64) / total
    hubs = share.topk(max(1, len(share) // 100)).values
    divergence = torch.xlogy(share, share).sum() + math.log(len(share))
    return SlotUsage(float((reads > 0).double().mean()), float(hubs.sum()), max(0.0, float(divergence)))


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
    """SHA-256 over keys, weights of the query and shape: while it stays the same, so do a layer's addresses for given
    input."""
    digest = hashlib.sha256(repr(layer.config).encode())
    several = [] if layer.query_tokens is None else [layer.query_tokens.mix]
    for tensor in (layer.keys, layer.query.weight, *layer.query_norm.parameters(), *several):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Gathering:
    """Statistics in the making, of a table of so many slots."""

    def __init__(self, slots: int) -> None:
        self._batches = 0
        self._frequency = torch.zeros(slots, dtype=torch.int32)
        self._reads = torch.zeros(slots, dtype=torch.int32)

    def add(self, read: Tensor) -> None:
        """What one background batch read: slots (int64), of any shape."""
        found, counts = (tensor.cpu() for tensor in read.unique(return_counts=True))
        self._batches += 1
        self._frequency[found] += 1
        self._reads[found] += counts.int()

    def background(self, address: str) -> Background:
        """Of all batches so far."""
        return Background(self._batches, self._frequency, address, self._reads).with_mass()


def save_background(folder: Path, background: Mapping[str, Background], depends: Mapping[str, str]) -> None:
    """Write the statistics of each table into a folder, with what they depend on.

    Args:
        folder: `background.safetensors`, then `background.json` go there.
        background: By the name of the table.
        depends: What must be the same where they are used, by what to call it, such as hashes of texts and tokenizer.
    """
    tensors = {
        f"{name}/{part}": tensor
        for name, one in background.items()
        for part, tensor in (("document_frequency", one.document_frequency), ("reads", one.reads))
    }
    tables = {name: {"batches": one.batches, "address": one.address} for name, one in background.items()}
    store(folder, STORED, tensors, {"depends": dict(depends), "tables": tables}, version=STATISTICS_VERSION)


def has_background(folder: Path) -> bool:
    """Whether statistics have been saved in the folder."""
    return is_stored(folder, STORED)


def load_background(folder: Path, depends: Mapping[str, str], addresses: Mapping[str, str]) -> dict[str, Background]:
    """What `save_background` wrote.

    Args:
        folder: Where.
        depends: What must be the same; what is not named is not compared.
        addresses: `address_hash` of each table that is wanted.

    Raises:
        ValueError: They are damaged, of another version, or were gathered from something else; all that differs is
            named.
    """
    described, tensors = stored(folder, STORED, "set of background statistics", version=STATISTICS_VERSION)
    differing = [name for name, value in depends.items() if described["depends"].get(name) != value]
    tables = described["tables"]
    differing += [
        f"keys and queries of {name!r}" if name in tables else f"a table {name!r}"
        for name, address in addresses.items()
        if tables.get(name, {}).get("address") != address
    ]
    if differing:
        raise ValueError(
            f"the background statistics in {folder} were gathered with other {', other '.join(differing)}; name "
            "another folder, or delete this one to gather them again"
        )
    return {
        name: Background(
            tables[name]["batches"], tensors[f"{name}/document_frequency"], address, tensors[f"{name}/reads"]
        ).with_mass()
        for name, address in addresses.items()
    }
