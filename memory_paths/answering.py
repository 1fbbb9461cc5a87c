"""From what a path recalls to prompts and answers, along one path. Knows nothing of routing, writing or storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_paths.context import pack
from memory_paths.types import Answer, Cost, Generation, MemoryPath, Prompt, Query, Reading, Recall


@dataclass(frozen=True)
class LaidOut:
    """A prompt; what was found for it; and what of that stands in it, in the order in which it does."""

    prompt: Prompt
    found: Reading
    recalls: tuple[Recall, ...]


def lay_out(
    lm: Any,
    path: MemoryPath,
    queries: Sequence[Query],
    notes: Sequence[Sequence[str]] | None,
    *,
    reserves: Sequence[int],
    budget: int | None = None,
) -> list[LaidOut]:
    """The prompts for queries, with what the path recalls for them or with given notes.

    Args:
        lm: The model that will read them; it counts the tokens.
        path: Asked where no notes are given.
        queries: What is asked.
        notes: For each query, texts in place of what the path would recall.
        reserves: For each query, tokens of the window that are kept free for the answer.
        budget: Most tokens of a prompt, where that is less than the window and the path allow.

    Raises:
        TooLarge: A question alone is longer than the budget.
    """
    if notes is not None:
        given = zip(queries, notes, strict=True)
        return [LaidOut(query.prompt(texts), Reading(), ()) for query, texts in given]
    laid_out = []
    for query, reading, reserve in zip(queries, path.read(queries), reserves, strict=True):
        limits = [most for most in (budget, reading.budget) if most is not None]
        most = min([lm.window - reserve, *limits]) if limits else None
        recalls = pack(lm, query, reading.recalls, budget=most, reserve=reserve, order=reading.order)
        laid_out.append(LaidOut(query.prompt([recall.item.text for recall in recalls]), reading, recalls))
    return laid_out


def ask(
    lm: Any,
    path: MemoryPath,
    queries: Sequence[Query],
    notes: Sequence[Sequence[str]] | None,
    *,
    max_new_tokens: int,
) -> list[Answer]:
    """One answer for each query, in order, by the model that the path answers with."""
    laid_out = lay_out(lm, path, queries, notes, reserves=[max_new_tokens] * len(queries))
    with path.model(lm) as model:
        generations = model.generate([one.prompt for one in laid_out], max_new_tokens=max_new_tokens)
    return [
        Answer(
            text=generation.text,
            path=path.name,
            recalls=one.recalls,
            offered=tuple(recall.item.id for recall in one.found.recalls),
            confidence=_confidence(generation),
            prompt_hash=generation.prompt_hash,
            cost=one.found.cost + Cost(lm=generation.usage),
        )
        for generation, one in zip(generations, laid_out, strict=True)
    ]


def better(old: Answer | None, new: Answer) -> Answer:
    """The surer of two answers to one query, at the cost of both; the new one where nobody knows."""
    if old is None:
        return new
    surer = old.confidence is not None and (new.confidence or 0.0) < old.confidence
    return replace(old if surer else new, cost=old.cost + new.cost)


def _confidence(generation: Generation) -> float | None:
    if math.isnan(generation.loglikelihood):
        return None
    return math.exp(generation.loglikelihood / max(1, len(generation.token_ids)))
