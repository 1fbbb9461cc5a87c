"""What the gradient of a step must not work against: it is projected between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .batches import TrainingBatch
from .objective import logits_of, token_losses
from .setting import Setting, check_known
from .weights import Gradient, Project, Trainer, Weights


class Projection(Protocol):
    """Changes the gradients of a step in place."""

    def __call__(self, setting: Setting, trainer: Trainer) -> Project | None:
        """Called once for each write, before its first step; None where nothing is to be changed."""
        ...


@dataclass(frozen=True)
class NoProjection:
    """The gradient as it is."""

    def __call__(self, setting: Setting, trainer: Trainer) -> Project | None:
        """See `Projection`."""
        return None


@dataclass(frozen=True)
class AveragedGradient:
    """A-GEM (Chaudhry et al. 2019, arXiv 1812.00420, equation 11): where the gradient points against the reference's,
    the part along the reference is taken out, so that a step of SGD does not raise the reference's loss (to first
    order). AdamW, which `lora` and `full` train with, scales each number of a gradient by itself, and keeps this only
    in part.

    Args:
        per_step: Phrasings of what the model knew before, drawn anew at every step.
        taught: Phrasings of what earlier writes taught, beside them.
    """

    per_step: int = 16
    taught: int = 8

    def __post_init__(self) -> None:
        if self.per_step < 1 or self.taught < 0:
            raise ValueError(
                f"per_step of projection=a_gem must be at least 1 and taught at least 0, got {self.per_step} and "
                f"{self.taught}"
            )

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        check_known(background, "projection=a_gem")

    def __call__(self, setting: Setting, trainer: Trainer) -> Project | None:
        """See `Projection`."""

        def project(gradients: Sequence[Gradient]) -> None:
            known = setting.known(self.per_step, "projection=a_gem")
            shown = setting.batch([*known, *setting.taught(self.taught)])
            found = trainer.gradients(lambda: token_losses(logits_of(setting.module, shown), shown).mean())
            setting.charge(shown, 1.0 + setting.weights.backward)
            others = {other.name: other for other in found}
            pairs = [(one.values, others[one.name].at(one.rows)) for one in gradients if one.name in others]
            along = sum(float((own * other).sum()) for own, other in pairs)
            length = sum(float((other * other).sum()) for _, other in pairs)
            if along < 0 < length:
                for own, other in pairs:
                    own.sub_(other, alpha=along / length)

        return project


@dataclass(frozen=True)
class OrthogonalGradient:
    """OGD (Farajtabar et al. 2020, arXiv 1910.07104, the variant of the true logit): the gradient's part in the span
    of the directions in which answers to known questions would change is taken out.

    As with A-GEM this is exact for steps of SGD (the memory's rows) and an inclination for those of AdamW. The
    directions are those of the weights as they are before the write, not, as in the paper, of the weights right
    after each task: nothing has to be kept between writes.

    Args:
        samples: Phrasings of what the model knew, one direction each, at least 1. A direction takes as much room as
            all that trains.
        taught: Phrasings of what earlier writes taught, beside them.
    """

    samples: int = 8
    taught: int = 8

    def __post_init__(self) -> None:
        if self.samples < 1 or self.taught < 0:
            raise ValueError(
                f"samples of projection=ogd must be at least 1 and taught at least 0, got {self.samples} and "
                f"{self.taught}"
            )

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        check_known(background, "projection=ogd")

    def __call__(self, setting: Setting, trainer: Trainer) -> Project | None:
        """See `Projection`.

        Raises:
            ValueError: There is no background to draw from.
        """
        drawn = setting.known(self.samples, "projection=ogd")
        drawn += setting.taught(self.taught)
        directions = []
        for phrasing in drawn:
            shown = setting.batch([phrasing])
            found = trainer.gradients(partial(_true_logits, setting, shown))
            directions.append({one.name: one for one in found})
            setting.charge(shown, 1.0 + setting.weights.backward)
        whole: dict[str, Tensor] = {}

        def basis(gradients: Sequence[Gradient]) -> Tensor:
            """[numbers, directions], orthonormal, at the numbers that these gradients have."""
            columns = [
                [
                    known[one.name].at(one.rows) if one.name in known else torch.zeros_like(one.values)
                    for one in gradients
                ]
                for known in directions
            ]
            matrix = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in columns], dim=1)
            # Of the few by few products of directions: a decomposition of the tall matrix itself would take minutes.
            sizes, turned = torch.linalg.eigh((matrix.T @ matrix).double())
            kept = sizes > sizes.max().clamp(min=1e-300) * 1e-7
            orthonormal: Tensor = matrix @ (turned[:, kept] / sizes[kept].sqrt()).to(matrix.dtype)
            return orthonormal

        def project(gradients: Sequence[Gradient]) -> None:
            dense = all(one.rows is None for one in gradients)
            if not dense or "basis" not in whole:
                whole["basis"] = basis(gradients)
                if dense:
                    directions.clear()
            own = torch.cat([one.values.flatten() for one in gradients])
            own = own - whole["basis"] @ (whole["basis"].T @ own)
            for one, part in zip(gradients, own.split([one.values.numel() for one in gradients]), strict=True):
                one.values.copy_(part.view_as(one.values))

        return project


def _true_logits(setting: Setting, shown: TrainingBatch) -> Tensor:
    """Mean logit of the tokens that are to be answered."""
    kept = shown.targets[:, 1:]
    logits = logits_of(setting.module, shown)[:, :-1][kept]
    return logits.gather(1, shown.tokens[:, 1:][kept][:, None]).mean()
