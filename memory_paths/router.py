"""Which path an item goes to, and which path answers a question. Knows paths by name only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memory_paths.types import Answer, Knowledge, KnowledgeKind, Query


class Router(Protocol):
    """Decides by name among the paths of an agent."""

    def place(self, item: Knowledge, paths: Sequence[str]) -> str:
        """The path that shall hold the item."""
        ...

    def serve(self, query: Query, paths: Sequence[str]) -> Sequence[str]:
        """The paths that may answer, the first choice first; the next one is asked where `content` is False."""
        ...

    def content(self, answer: Answer) -> bool:
        """Whether this answer is good enough, so that no further path is asked."""
        ...


@dataclass(frozen=True)
class Fixed:
    """By kind of item; everything else, and every question, goes to the first path.

    Args:
        by_kind: Name of a path for a kind of item.
        fallback_below: Confidence in [0, 1] under which the next path is asked; 0 never asks a second one.
    """

    by_kind: Mapping[KnowledgeKind, str] = field(default_factory=dict)
    fallback_below: float = 0.0

    def place(self, item: Knowledge, paths: Sequence[str]) -> str:
        """See `Router`.

        Raises:
            ValueError: `by_kind` names a path that the agent does not have.
        """
        name = self.by_kind.get(item.kind, paths[0])
        if name not in paths:
            raise ValueError(f"router sends kind {item.kind!r} to path {name!r}; this agent has {list(paths)}")
        return name

    def serve(self, query: Query, paths: Sequence[str]) -> Sequence[str]:
        """See `Router`."""
        return tuple(paths)

    def content(self, answer: Answer) -> bool:
        """See `Router`."""
        return answer.confidence is None or answer.confidence >= self.fallback_below
