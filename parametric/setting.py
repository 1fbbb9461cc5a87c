"""What the axes of a write may draw on: the model, what it knew, what it was taught, its earlier selves, and chance."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from memory_paths.types import Phrasing, Prompt

from .batches import TrainingBatch, collate, encode
from .weights import Weights

logger = logging.getLogger(__name__)

Earlier = Literal["untouched", "before"]
EARLIER: tuple[Earlier, ...] = ("untouched", "before")


@dataclass(frozen=True)
class Setting:
    """One write, as its axes see it.

    Args:
        lm: The model, with what was learnt so far in its weights.
        weights: What trains.
        background: Phrasings of what the model knew before it learnt anything here.
        recall: Gives the phrasings that earlier writes studied, oldest first, without what is superseded.
        generator: All chance of this write.
        before: State of the weights when this write began.
        charge: To be called with a batch and the number of forward passes over it that a step did not make itself.
        kept: What an axis keeps for itself from step to step of this write, by a name of its own.
    """

    lm: Any
    weights: Weights
    background: Sequence[Phrasing]
    recall: Callable[[], Sequence[Phrasing]]
    generator: random.Random
    before: Mapping[str, Tensor]
    charge: Callable[[TrainingBatch, float], None]
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> Any:
        """The torch module that trains."""
        return self.lm.module

    @contextmanager
    def earlier(self, which: Earlier) -> Iterator[None]:
        """The module as it was, without gradients: untouched by any learning, or before this write. To be left before
        a forward pass that is differentiated begins."""
        with torch.no_grad(), self.weights.holding(self.module, {} if which == "untouched" else self.before):
            yield

    def batch(self, phrasings: Sequence[Phrasing]) -> TrainingBatch:
        """Phrasings, laid out for the model."""
        return collate(self.lm, encode(self.lm, phrasings))

    def taught(self, count: int) -> list[Phrasing]:
        """Phrasings of what earlier writes taught, drawn anew; fewer where there are fewer."""
        if not count:
            return []
        recalled = list(self.recall())
        return self.generator.sample(recalled, min(count, len(recalled)))

    def known(self, count: int, what: str) -> list[Phrasing]:
        """Phrasings of what the model knew before, drawn anew; all of them where there are fewer.

        Raises:
            ValueError: There are none.
        """
        check_known(self.background, what)
        return self.generator.sample(list(self.background), min(count, len(self.background)))

    def note(self, told: str) -> None:
        """Log what departs from what was chosen, once for each write."""
        if told not in self.kept:
            self.kept[told] = True
            logger.warning("%s", told)

    def written(self, count: int, *, max_new_tokens: int, temperature: float) -> list[Phrasing]:
        """Texts that the model, as it was before this write, writes by itself; without the empty ones. Behind those
        that the limit cut off no stop is learnt."""
        with self.earlier("before"):
            found = self.lm.generate(
                [Prompt(" ", continues=True)] * count,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=self.generator.randrange(2**31),
            )
        texts = [Phrasing(one.text, ends=one.stopped) for one in found if one.text]
        if texts:
            self.charge(self.batch(texts), 1.0)
        return texts


@runtime_checkable
class Demanding(Protocol):
    """An axis that does not go with everything."""

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """Raise a ValueError, before anything is learnt, if what it needs is not there."""
        ...


def check_known(background: Sequence[Phrasing], what: str) -> None:
    """Refuse to draw on what is not there.

    Raises:
        ValueError: There are no phrasings of what the model knew.
    """
    if not background:
        raise ValueError(
            f"{what} needs phrasings of what the model knew, and there are none: give lm.background, or choose none"
        )


def check_earlier(which: str, option: str) -> None:
    """Refuse what is no earlier self.

    Raises:
        ValueError: With the name of the option.
    """
    if which not in EARLIER:
        raise ValueError(f"{option} must be one of {', '.join(EARLIER)}, got {which!r}")
