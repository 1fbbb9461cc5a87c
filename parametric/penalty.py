"""What holds weights back while they learn: in the loss, or after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from memory_paths.types import Phrasing

from .batches import TrainingBatch
from .growth import LowRankStack
from .inserted import Inserted
from .objective import divergence, logits_of, output_of, token_losses
from .setting import Earlier, Setting, check_earlier, check_known
from .weights import Changed, Gradient, Settle, Trainer, Weights


@dataclass(frozen=True)
class Restraint:
    """What a penalty does during one write.

    Args:
        term: Called with a batch before its loss is computed, while an earlier self may still be listened to; gives the
            function that is called after it, for a differentiable scalar in nats to be added. None: nothing.
        settle: Called after each step with all that it has changed; None: nothing.
    """

    term: Callable[[TrainingBatch], Callable[[], Tensor]] | None = None
    settle: Settle | None = None


class Penalty(Protocol):
    """What holds the weights back."""

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """Called once for each write, before its first step."""
        ...


@dataclass(frozen=True)
class NoPenalty:
    """Nothing holds the weights back."""

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`."""
        return Restraint()


@dataclass(frozen=True)
class TowardsBefore:
    """Takes back a share of the way that the weights have gone since before this write.

    The proximal form of a penalty on the squared distance from where finetuning began (L2-SP, Li et al. 2018, arXiv
    1802.01483): its strength means the same for every optimiser and learning rate.

    Args:
        strength: The share, in [0, 1).

    Raises:
        ValueError: A strength outside of it.
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"strength of a penalty must be in [0, 1), got {self.strength}")

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`."""

        def settle(changed: Sequence[Changed]) -> None:
            for one in changed:
                one.present.lerp_(one.before, self.strength)

        return Restraint(settle=settle)


@dataclass(frozen=True)
class ElasticWeights:
    """Holds a weight back the more, the more what was known depends on it (EWC, Kirkpatrick et al. 2017, arXiv
    1612.00796).

    The importance of a weight is the diagonal of the empirical Fisher information, the mean over samples of the squared
    gradient of each sample's own log-likelihood (gradients of whole batches would underrate it), taken anew before
    each write and divided by its mean. Applied in proximal form like `TowardsBefore`: a weight of importance f goes
    back by s f / (1 + s f) of its way, which minimises its distance to where the step took it plus s f times that to
    where it was.

    Args:
        strength: s, above 0.
        samples: Phrasings of what the model knew, at least 1.
        taught: Phrasings of what earlier writes taught, beside them.
    """

    strength: float = 0.01
    samples: int = 64
    taught: int = 64

    def __post_init__(self) -> None:
        if not self.strength > 0 or self.samples < 1 or self.taught < 0:
            raise ValueError(
                "of penalty=ewc strength must be above 0, samples at least 1 and taught at least 0, got "
                f"{self.strength}, {self.samples} and {self.taught}"
            )

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        check_known(background, "penalty=ewc")

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`.

        Raises:
            ValueError: There is no background to draw from.
        """
        drawn = setting.known(self.samples, "penalty=ewc")
        drawn += setting.taught(self.taught)
        importance = fisher_information(setting, trainer, [setting.batch([phrasing]) for phrasing in drawn])

        def settle(changed: Sequence[Changed]) -> None:
            for one in changed:
                if one.name not in importance:
                    continue  # nothing of what was known depends on it
                pulled = self.strength * importance[one.name].at(one.rows)
                one.present.lerp_(one.before, pulled / (1 + pulled))

        return Restraint(settle=settle)


def fisher_information(setting: Setting, trainer: Trainer, samples: Sequence[TrainingBatch]) -> dict[str, Gradient]:
    """Diagonal of the empirical Fisher information of the present weights by the name of the tensor, divided by its
    mean over all numbers that any sample depends on; of a table only the rows that some sample reads."""
    squares: dict[str, Gradient] = {}
    for sample in samples:
        for found in trainer.gradients(partial(_negative_log_likelihood, setting, sample)):
            square = replace(found, values=found.values.square())
            squares[found.name] = _sum(squares[found.name], square) if found.name in squares else square
        setting.charge(sample, 1.0 + setting.weights.backward)
    total = sum(float(square.values.sum()) for square in squares.values())
    count = sum(int(square.values.count_nonzero()) for square in squares.values())
    mean = total / max(1, count)
    return {name: replace(square, values=square.values / mean) for name, square in squares.items()} if mean else {}


def _sum(first: Gradient, second: Gradient) -> Gradient:
    if first.rows is None or second.rows is None:
        return replace(first, values=first.values + second.values)
    rows, place = torch.cat([first.rows, second.rows]).unique(return_inverse=True)
    values = first.values.new_zeros(len(rows), first.values.shape[1])
    return replace(first, values=values.index_add_(0, place, torch.cat([first.values, second.values])), rows=rows)


def _negative_log_likelihood(setting: Setting, sample: TrainingBatch) -> Tensor:
    """Of a whole sample: the sum over its tokens, not their mean."""
    return token_losses(logits_of(setting.module, sample), sample).sum()


Where = Literal["new", "known"]


@dataclass(frozen=True)
class OutputDivergence:
    """Adds the divergence from an earlier self's next-token distributions to the model's, KL(earlier || model), in
    which the earlier self weighs the tokens, on given texts. (Finetuning by preferences, Ziegler et al. 2019, arXiv
    1909.08593, penalises the reverse one, on what the model samples.)

    Args:
        strength: Factor of the divergence (nats per position), above 0.
        where: On the texts of the batch ("new"), or on phrasings of what the model "known" before, at their answers.
        per_step: How many of those.
        teacher: "untouched" by any learning, or "before" this write.
    """

    strength: float = 0.1
    where: Where = "known"
    per_step: int = 16
    teacher: Earlier = "untouched"

    def __post_init__(self) -> None:
        _check_function_space(self.strength, self.where, self.per_step, self.teacher, "kl")

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if self.where == "known":
            check_known(background, "penalty=kl")

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`."""

        def term(batch: TrainingBatch) -> Callable[[], Tensor]:
            shown, at = _shown(setting, batch, self.where, self.per_step, "penalty=kl")
            with setting.earlier(self.teacher):
                known = logits_of(setting.module, shown)[at]
            return lambda: self.strength * divergence(known, logits_of(setting.module, shown)[at]).mean()

        return Restraint(term=term)


@dataclass(frozen=True)
class FeatureDistance:
    """Adds the mean squared distance of the last hidden states from those of an earlier self, relative to their size
    (after less-forgetting learning, Jung et al. 2016, arXiv 1607.00122).

    Args:
        strength: Factor of the relative distance, above 0.
        where: On the texts of the batch ("new"), or on phrasings of what the model "known" before.
        per_step: How many of those.
        teacher: "untouched" by any learning, or "before" this write.
    """

    strength: float = 1.0
    where: Where = "known"
    per_step: int = 16
    teacher: Earlier = "untouched"

    def __post_init__(self) -> None:
        _check_function_space(self.strength, self.where, self.per_step, self.teacher, "feature")

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if self.where == "known":
            check_known(background, "penalty=feature")

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`."""

        def features(shown: TrainingBatch, at: Tensor) -> Tensor:
            output = output_of(setting.module, shown, output_hidden_states=True)
            found: Tensor = output.hidden_states[-1][at].float()
            return found

        def term(batch: TrainingBatch) -> Callable[[], Tensor]:
            shown, at = _shown(setting, batch, self.where, self.per_step, "penalty=feature")
            with setting.earlier(self.teacher):
                known = features(shown, at)
            return lambda: self.strength * (features(shown, at) - known).square().mean() / known.square().mean()

        return Restraint(term=term)


@dataclass(frozen=True)
class OrthogonalSubspaces:
    """Keeps what this write reads apart from what earlier writes read: adds the sum over layers of the absolute
    products of old and new input directions, |A_old A_new^T| (O-LoRA, Wang et al. 2023, arXiv 2310.14152, as in its
    authors' code; equation 7 has their squares). For `weights=lora_stack`.

    Args:
        strength: Factor of the sum, above 0.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength of penalty=orthogonal must be above 0, got {self.strength}")

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        if not (isinstance(weights, Inserted) and isinstance(weights.insertion, LowRankStack)):
            raise ValueError("penalty=orthogonal needs weights=lora_stack, whose writes have subspaces of their own")

    def __call__(self, setting: Setting, trainer: Trainer) -> Restraint:
        """See `Penalty`."""
        pairs = [
            (old, setting.module.get_parameter(name.removesuffix("old_a") + "new_a"))
            for name, old in setting.module.named_parameters()
            if name.rsplit(".", 1)[-1] == "old_a"
        ]

        def overlap() -> Tensor:
            return self.strength * torch.stack([(old @ new.T).abs().sum() for old, new in pairs]).sum()

        return Restraint(term=lambda batch: overlap)


def _shown(
    setting: Setting, batch: TrainingBatch, where: Where, per_step: int, what: str
) -> tuple[TrainingBatch, Tensor]:
    """The batch that a function is compared on, and at which positions."""
    shown = batch if where == "new" else setting.batch(setting.known(per_step, what))
    setting.charge(shown, 2.0 + setting.weights.backward)
    return shown, shown.attention.bool() if where == "new" else shown.predicting


def _check_function_space(strength: float, where: str, per_step: int, teacher: str, name: str) -> None:
    if not strength > 0 or per_step < 1:
        raise ValueError(
            f"strength of penalty={name} must be above 0 and per_step at least 1, got {strength} and {per_step}"
        )
    if where not in get_args(Where):
        raise ValueError(f"where of penalty={name} must be one of {', '.join(get_args(Where))}, got {where!r}")
    check_earlier(teacher, "teacher")
