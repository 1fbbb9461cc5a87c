"""What a step minimises on the new items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from memory_paths.lm import tell_given
from memory_paths.types import Phrasing

from .batches import TrainingBatch
from .setting import Earlier, Setting, check_earlier, check_known
from .weights import Aim, Weights


class Objective(Protocol):
    """From a batch of study texts to a loss."""

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """Called before each step, for each of its parts, while an earlier self may still be listened to."""
        ...


def output_of(module: Any, batch: TrainingBatch, **options: Any) -> Any:
    """What the module makes of a batch."""
    tell_given(module, batch.given)
    return module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False, **options)


def logits_of(module: Any, batch: TrainingBatch) -> Tensor:
    """[sequences, length, vocabulary] of a batch; the position before a token predicts it."""
    logits: Tensor = output_of(module, batch).logits
    return logits


def token_losses(logits: Tensor, batch: TrainingBatch) -> Tensor:
    """Cross entropy of each target token in nats, [targets], float32 or wider, from the logits of the whole batch."""
    kept = batch.targets[:, 1:]
    found = logits[:, :-1][kept]
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return functional.cross_entropy(found, batch.tokens[:, 1:][kept], reduction="none")


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Kullback-Leibler divergence from teacher to student, sum of p * (log p - log q), in nats: [..., vocabulary] to
    [...]."""
    known = teacher.float().log_softmax(dim=-1)
    found = student.float().log_softmax(dim=-1)
    return functional.kl_div(found, known, reduction="none", log_target=True).sum(dim=-1)


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Mean cross entropy of the target tokens."""

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`."""
        return Aim(batch, lambda: token_losses(logits_of(setting.module, batch), batch).mean())


@dataclass(frozen=True)
class SelectiveNegativeLogLikelihood:
    """Mean cross entropy of those target tokens that an earlier self finds least likely: what it knew well need not be
    studied.

    Selection as in RHO-1 (Lin et al. 2024, arXiv 2404.07965), by a reference's loss of each token. RHO-1 ranks by how
    far the model lags behind a reference that is better than it is; an earlier self is no such one, and to lag behind
    it would be to have forgotten, so that its loss alone ranks here.

    Args:
        share: Of the batch's target tokens that are kept, in (0, 1]; at least one is.
        reference: "untouched" by any learning, or "before" this write.
    """

    share: float = 0.6
    reference: Earlier = "untouched"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of selective likelihood must be in (0, 1], got {self.share}")
        check_earlier(self.reference, "reference")

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`."""
        with setting.earlier(self.reference):
            expected = token_losses(logits_of(setting.module, batch), batch)
        setting.charge(batch, 1.0)
        kept = torch.topk(expected, max(1, round(self.share * len(expected)))).indices
        return Aim(batch, lambda: token_losses(logits_of(setting.module, batch), batch)[kept].mean())


Source = Literal["new", "old", "pseudo_old"]
PSEUDO_OLD = 128
"""Texts that the model writes before a write that distils from pseudo-old ones."""


@dataclass(frozen=True)
class Distillation:
    """Cross entropy of the target tokens, and beside it the divergence from an earlier self (learning without
    forgetting, Li & Hoiem 2016, arXiv 1606.09282; distillation as in Hinton et al. 2015, 1503.02531).

    Args:
        source: Where the earlier self is listened to: on the "new" texts, wherever they have nothing to teach (their
            prompts), on "old" ones of the background, at their answers, or on "pseudo_old" ones, which the model itself
            wrote before this write.
        weight: Of the divergence, above 0.
        temperature: Softens both distributions, above 0; the divergence is multiplied by its square.
        per_step: Old or pseudo-old phrasings for each step.
        teacher: "before" this write, or "untouched" by any learning.
    """

    source: Source = "new"
    weight: float = 1.0
    temperature: float = 2.0
    per_step: int = 16
    teacher: Earlier = "before"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(
                f"source of distillation must be one of {', '.join(get_args(Source))}, got {self.source!r}"
            )
        if not min(self.weight, self.temperature, self.per_step) > 0:
            raise ValueError(
                "weight, temperature and per_step of distillation must be above 0, got "
                f"{self.weight}, {self.temperature} and {self.per_step}"
            )
        check_earlier(self.teacher, "teacher")

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if self.source == "old":
            check_known(background, "objective=distil_old")

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`.

        Raises:
            ValueError: Old texts are wanted and there is no background to draw from.
        """
        new = self.source == "new"
        old = [] if new else self._old(setting)
        if not (beside_targets(batch).any() if new else old):
            return NegativeLogLikelihood()(setting, batch)
        shown = batch if new else setting.batch(old)
        with setting.earlier(self.teacher):
            known = logits_of(setting.module, shown)
        setting.charge(shown, 1.0 if new else 2.0 + setting.weights.backward)
        listened = beside_targets(shown) if new else shown.predicting

        def loss() -> Tensor:
            logits = logits_of(setting.module, batch)
            plain = token_losses(logits, batch).mean()
            found = logits if new else logits_of(setting.module, shown)
            apart = divergence(known[listened] / self.temperature, found[listened] / self.temperature).mean()
            return plain + self.weight * self.temperature**2 * apart

        return Aim(batch, loss)

    def _old(self, setting: Setting) -> list[Phrasing]:
        if self.source == "old":
            return setting.known(self.per_step, "objective=distil_old")
        if "pseudo_old" not in setting.kept:
            setting.kept["pseudo_old"] = setting.written(PSEUDO_OLD, max_new_tokens=32, temperature=1.0)
        written = setting.kept["pseudo_old"]
        return setting.generator.sample(written, min(self.per_step, len(written)))


def beside_targets(batch: TrainingBatch) -> Tensor:
    """[sequences, length] bool: positions that predict a token of the text that is not to be learnt."""
    ahead = torch.zeros_like(batch.targets)
    ahead[:, :-1] = batch.attention[:, 1:].bool() & ~batch.targets[:, 1:]
    return ahead
