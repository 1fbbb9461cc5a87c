"""Who has to go when the window is full, and what becomes of it. Knows nothing of storage, and of prompts only to ask
for a summary."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from memory_paths.types import Generates, Knowledge, Prompt

logger = logging.getLogger(__name__)

# Names in the metadata of a summary: the ids that it stands for, and the place in the ledger where these are.
SUMMARY_OF, ORIGINALS_AT = "summary_of", "originals_at"


class Eviction(Protocol):
    """Who has to go when the window is full. `keep`: the share of the budget to which it is emptied then, in (0, 1]."""

    @property
    def keep(self) -> float:
        """In chunks, since every eviction changes the prompt's beginning and voids what was computed for it."""
        ...

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """The items (given in the order of writing), the first to go first; none, if none of them may go.

        `used`: for each id when it was last written or asked for, higher is later.
        """
        ...


@dataclass(frozen=True)
class Recency:
    """The oldest go first (first in, first out)."""

    keep: float = 0.7

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        return list(items)


@dataclass(frozen=True)
class RecencyOfUse:
    """What has not been asked for, nor written again, for longest goes first (least recently used)."""

    keep: float = 0.7

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        return sorted(items, key=lambda item: used[item.id])


@dataclass(frozen=True)
class Importance:
    """The least important go first: by trust times recency of use, the longest unused among equals.

    Recency halves with every `half_life` items that were written or used later; after Park et al. 2023 (Generative
    Agents, arXiv 2304.03442), whose recency decays likewise from the last access. `math.inf`: trust alone.
    """

    keep: float = 0.7
    half_life: float = 32.0

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if not self.half_life > 0:
            raise ValueError(f"half_life must be above 0, a number of items, got {self.half_life}")

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        oldest_first = sorted(items, key=lambda item: used[item.id])
        age = {item.id: len(items) - 1 - place for place, item in enumerate(oldest_first)}
        return sorted(oldest_first, key=lambda item: item.trust * 0.5 ** (age[item.id] / self.half_life))


@dataclass(frozen=True)
class Refuse:
    """Nothing goes: what does not fit is refused with TooLarge."""

    keep: ClassVar[float] = 1.0

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        return []


@dataclass(frozen=True)
class Spill:
    """What has to go moves to another path of the same agent, ids, dates and history kept.

    Args:
        place: Name of that path. It has to take in by itself what the ledger has at its place, as a bank does.
        order: Who goes first.
    """

    place: str = "rag"
    order: Eviction = field(default_factory=Recency)

    @property
    def keep(self) -> float:
        """See `Eviction`."""
        return self.order.keep

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        return self.order(items, used)


@dataclass(frozen=True)
class Summarise:
    """A summary takes the place of what has to go, for as long as all that it stands for holds.

    The originals stay in the ledger, at a place of their own, and the summary names them (`InContext.originals`). Once
    one of them is superseded, expires or is forgotten, the summary goes and the others come back. A summary that is
    empty, cut off, or no shorter than its originals is not used; these are then evicted without one.

    Args:
        order: Who goes first.
        place: Path of the same agent to which the originals move; None: they are kept beside the window, unread.
        instruction: What the model is asked about the notes.
        max_new_tokens: Longest summary in tokens.
        summariser: Gives the summary of texts, in place of the window's own model.
    """

    order: Eviction = field(default_factory=Recency)
    place: str | None = None
    instruction: str = "What do these notes say, in one short sentence?"
    max_new_tokens: int = 64
    # Not in the repr, which is part of a path's state: that of a function differs from process to process.
    summariser: Callable[[Sequence[str]], str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")

    @property
    def keep(self) -> float:
        """See `Eviction`."""
        return self.order.keep

    def __call__(self, items: Sequence[Knowledge], used: Mapping[str, int]) -> list[Knowledge]:
        """See `Eviction`."""
        return self.order(items, used)

    def summary(self, lm: Generates, items: Sequence[Knowledge], originals_at: str) -> Knowledge | None:
        """What is to stand for the items, as trusted as the least of them; None: nothing."""
        text = self._said(lm, [item.text for item in items]).strip()
        if not text:
            return None
        ids = [item.id for item in items]
        kinds = {item.kind for item in items}
        return Knowledge(
            f"summary-{hashlib.sha256(repr((ids, text)).encode()).hexdigest()[:16]}",
            text,
            kind=kinds.pop() if len(kinds) == 1 else "passage",
            source="a summary",
            trust=min(item.trust for item in items),
            metadata={SUMMARY_OF: ids, ORIGINALS_AT: originals_at},
        )

    def _said(self, lm: Generates, texts: Sequence[str]) -> str:
        try:
            if self.summariser is not None:
                return self.summariser(texts)
            prompt = Prompt(self.instruction, tuple(texts))
            (said,) = lm.generate([prompt], max_new_tokens=min(self.max_new_tokens, lm.window - 1))
        except Exception as error:  # a window that is full must be emptied all the same
            logger.warning("%d notes are evicted without a summary: %s", len(texts), error)
            return ""
        return said.text if said.stopped else ""


def check_keep(keep: float) -> None:
    """Refuse what is no share of a budget.

    Raises:
        ValueError: Not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], a share of the budget, got {keep}")
