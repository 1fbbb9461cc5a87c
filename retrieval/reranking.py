"""A second look at what a search has found: question and text are read together, which tells more and takes longer.

This file knows nothing of indexes or the ledger. Heavy libraries are loaded by the constructor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from memory_paths.types import Recall, Usage

from .encoder import quiet_loading


class Reranker(Protocol):
    """Whatever says how well a text answers a question. `name`: another one means that answers may be others."""

    name: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], Usage]:
        """A score for each pair of question and text, higher is better, and what it took."""
        ...


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers, such as cross-encoder/ms-marco-MiniLM-L6-v2.

    Args:
        name: A folder or hub name.
        device: Where it runs.
        batch_size: Pairs at a time.
        max_tokens: Longer pairs are cut here; None: the model's own limit.

    Raises:
        ValueError: No such model, one that gives more than one score for a pair, or a batch size below 1.
    """

    def __init__(self, name: str, *, device: str = "cpu", batch_size: int = 32, max_tokens: int | None = None) -> None:
        if not name:
            raise ValueError("a reranker needs a name: a folder or hub name")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        from sentence_transformers import CrossEncoder

        try:
            with quiet_loading():
                self._model = CrossEncoder(name, device=device, max_length=max_tokens)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"reranker {name!r} is neither the folder of a cross-encoder, nor a hub name that can be reached from"
                f" here: {error}"
            ) from error
        if self._model.num_labels != 1:
            raise ValueError(f"reranker {name!r} gives {self._model.num_labels} scores for a pair, it must give one")
        self._batch_size = batch_size
        self.name = Path(name).name if Path(name).is_dir() else name
        self._flops_per_token = 2.0 * sum(
            weight.numel() for part, weight in self._model.named_parameters() if "embeddings." not in part
        )

    def score(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], Usage]:
        """A score for each pair of question and text, higher is better, and what it took."""
        if not pairs:
            return [], Usage()
        started = time.perf_counter()
        scores = self._model.predict(list(pairs), batch_size=self._batch_size, show_progress_bar=False)
        longest = self._model.max_seq_length
        cut = {"truncation": True, "max_length": longest} if longest else {}
        read = self._model.tokenizer([question for question, _ in pairs], [text for _, text in pairs], **cut)
        tokens = sum(map(len, read["input_ids"]))
        seconds = time.perf_counter() - started
        return [float(score) for score in scores], Usage(tokens, self._flops_per_token * tokens, seconds)


def reranked(
    reranker: Reranker, question: str, recalls: Sequence[Recall], top_k: int
) -> tuple[tuple[Recall, ...], Usage]:
    """The top_k best by the reranker, with its scores, and what that took; among equals the earlier one is first."""
    scores, usage = reranker.score([(question, recall.item.cue or recall.item.text) for recall in recalls])
    judged = [replace(recall, score=score) for recall, score in zip(recalls, scores, strict=True)]
    return tuple(sorted(judged, key=lambda recall: -recall.score)[:top_k]), usage
