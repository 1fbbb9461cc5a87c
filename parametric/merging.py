"""What is kept of the way that the weights went in a write: merged with what was before, or pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .setting import Setting
from .weights import Changed, Settle

By = Literal["magnitude", "chance"]


class Merging(Protocol):
    """What happens to the weights at the end of a write."""

    def __call__(self, setting: Setting) -> Settle | None:
        """Called once for each write, before its first step; what it gives is called after the last one with all that
        the write has changed. None: nothing happens."""
        ...


@dataclass(frozen=True)
class NoMerging:
    """All of the way is kept."""

    def __call__(self, setting: Setting) -> None:
        """See `Merging`."""
        return None


@dataclass(frozen=True)
class Interpolation:
    """The weights end between where they were and where the write took them (WiSE-FT, Wortsman et al. 2021, arXiv
    2109.01903). Of low-rank pairs each matrix does, and not their product.

    Args:
        share: Of the way that is kept, in (0, 1].
    """

    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of merging=interpolation must be in (0, 1], got {self.share}")

    def __call__(self, setting: Setting) -> Settle:
        """See `Merging`."""

        def settle(changed: Sequence[Changed]) -> None:
            for one in changed:
                one.present.lerp_(one.before, 1 - self.share)

        return settle


@dataclass(frozen=True)
class Pruning:
    """Only some of the numbers that a write has changed stay changed.

    By "magnitude" those of each tensor that went furthest, ties to the first (the trimming of TIES, Yadav et al. 2023,
    arXiv 2306.01708); by "chance" any, which then go further by 1 / share, so that the sum of all ways stays about the
    same (DARE, Yu et al. 2023, 2311.03099).

    Args:
        share: Of the changed numbers that stays, in (0, 1].
        by: Which ones.
    """

    share: float = 0.2
    by: By = "magnitude"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of merging=pruning must be in (0, 1], got {self.share}")
        if self.by not in get_args(By):
            raise ValueError(f"by of merging=pruning must be one of {', '.join(get_args(By))}, got {self.by!r}")

    def __call__(self, setting: Setting) -> Settle:
        """See `Merging`."""
        generator = torch.Generator().manual_seed(setting.generator.randrange(2**31))

        def settle(changed: Sequence[Changed]) -> None:
            for one in changed:
                way = one.present - one.before
                kept = self._kept(way.flatten(), generator).view(way.shape)
                way = way / self.share if self.by == "chance" else way
                one.present.copy_(torch.where(kept, one.before + way, one.before))

        return settle

    def _kept(self, way: Tensor, generator: torch.Generator) -> Tensor:
        moved = way.nonzero().flatten()
        count = round(self.share * len(moved))
        if self.by == "chance":
            order = torch.randperm(len(moved), generator=generator).to(way.device)
        else:
            order = way[moved].abs().argsort(descending=True, stable=True)
        kept = torch.zeros(len(way), dtype=torch.bool, device=way.device)
        kept[moved[order[:count]]] = True
        return kept
