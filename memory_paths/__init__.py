"""memory_paths: where should a language model put what it learns?

`load("path=rag")` gives an agent; `python -m memory_paths --help` runs evaluations. Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_paths.types import (
    Answer,
    Cost,
    Experience,
    Knowledge,
    Phrasing,
    Query,
    Question,
    Recall,
    Receipt,
    Stream,
)

if TYPE_CHECKING:
    from memory_paths.agent import Agent
    from memory_paths.evaluation.records import load_records


def load(*overrides: str) -> Agent:
    """An agent from configuration: `load("path=rag", "path.memory.top_k=8")`. See `memory_paths.build.load`."""
    from memory_paths.build import load as build_load

    return build_load(*overrides)


def __getattr__(name: str) -> object:
    if name == "Agent":
        from memory_paths.agent import Agent

        return Agent
    if name == "load_records":
        from memory_paths.evaluation.records import load_records

        return load_records
    raise AttributeError(f"module 'memory_paths' has no attribute {name!r}")


__all__ = [
    "Agent",
    "Answer",
    "Cost",
    "Experience",
    "Knowledge",
    "Phrasing",
    "Query",
    "Question",
    "Recall",
    "Receipt",
    "Stream",
    "load",
    "load_records",
]
