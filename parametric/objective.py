"""What a step minimises on the new items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from memory_paths.lm import CausalLM, tell_given
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
    """Mean cross entropy of those target tokens that are worth studying, and of all that is rehearsed beside them.

    With an `expert`, as in RHO-1 (Lin et al. 2024, arXiv 2404.07965): those by which the model lags most behind one
    that is better at such texts, by loss less the expert's loss. Without one, those that an earlier self finds least
    likely, since what it knew well need not be studied; to lag behind an earlier self would be to have forgotten.

    Args:
        share: Of the batch's new target tokens that are kept, in (0, 1]; at least one is.
        reference: The earlier self: "untouched" by any learning, or "before" this write. Not asked with an expert.
        expert: Folder or hub name of a causal language model with the same tokens, which each write loads.
        expert_loader: Gives its module and tokenizer in place of transformers' automatic classes.
    """

    share: float = 0.6
    reference: Earlier = "untouched"
    expert: str | None = None
    expert_loader: Callable[[str], tuple[Any, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of selective likelihood must be in (0, 1], got {self.share}")
        check_earlier(self.reference, "reference")

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`.

        Raises:
            ValueError: The expert's tokens are others.
        """
        passes = 1.0
        if self.expert is None:
            with setting.earlier(self.reference):
                expected = token_losses(logits_of(setting.module, batch), batch)
        else:
            expert = self._expert(setting, self.expert)
            with torch.no_grad():
                expected = token_losses(logits_of(expert.module, batch), batch)
            length = batch.tokens.shape[1]
            passes = expert.forward_flops(length) / setting.lm.forward_flops(length)
        setting.charge(batch, passes)
        new = int(batch.targets[: batch.fresh, 1:].sum())  # the losses come sequence by sequence, new ones first
        count = max(1, round(self.share * new))

        def loss() -> Tensor:
            losses = token_losses(logits_of(setting.module, batch), batch)
            rank = expected if self.expert is None else losses.detach() - expected
            return torch.cat([losses[rank[:new].topk(count).indices], losses[new:]]).mean()

        return Aim(batch, loss)

    def _expert(self, setting: Setting, name: str) -> CausalLM:
        if "expert" not in setting.kept:
            device = str(setting.module.get_input_embeddings().weight.device)
            expert = CausalLM(name, device=device, dtype="auto", loader=self.expert_loader)
            if expert.tokenizer.get_vocab() != setting.lm.tokenizer.get_vocab():
                raise ValueError(
                    f"expert {name!r} has other tokens than {setting.lm.name!r}; take one of the same family"
                )
            setting.kept["expert"] = expert
        found: CausalLM = setting.kept["expert"]
        return found


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
            setting.note(f"distillation of {self.source} texts found none in a step, and only studies")
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
