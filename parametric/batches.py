"""Phrasings as padded batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memory_paths.types import Phrasing, TooLarge


@dataclass(frozen=True)
class Encoded:
    """A sequence to study.

    Args:
        ids: Its tokens.
        learnt: Which of them are to be learnt.
        phrasing: What it says.
        text: Of the item that it says it of; empty where it is of none.
    """

    ids: Sequence[int]
    learnt: Sequence[bool]
    phrasing: Phrasing
    text: str = ""


@dataclass(frozen=True)
class TrainingBatch:
    """Right-padded, never packed: packing would let one phrasing of an item copy from another.

    Args:
        tokens: [sequences, length] int64.
        attention: [sequences, length] int64, 0 at padding.
        targets: [sequences, length] bool, True where a token is to be learnt.
        fresh: Number of sequences, the first ones, that are new; the others are rehearsed.
        sequences: What the rows are of.
    """

    tokens: Tensor
    attention: Tensor
    targets: Tensor
    fresh: int
    sequences: tuple[Encoded, ...] = ()

    @property
    def predicting(self) -> Tensor:
        """[sequences, length] bool: the positions that predict a token of something new that is to be learnt."""
        ahead = torch.zeros_like(self.targets)
        ahead[: self.fresh, :-1] = self.targets[: self.fresh, 1:]
        return ahead

    @property
    def given(self) -> list[int]:
        """How many tokens of each sequence come before the first that is to be learnt; all, where none is."""
        taught = self.targets.any(dim=1)
        return torch.where(taught, self.targets.int().argmax(dim=1), self.attention.sum(dim=1)).tolist()

    @property
    def token_count(self) -> int:
        """Tokens without padding."""
        return int(self.attention.sum())


def encode(lm: Any, phrasings: Iterable[Phrasing], text: str = "") -> list[Encoded]:
    """The phrasings as sequences of at most the model's window.

    A longer text without a prompt becomes several sequences; the first token of each has nothing before it and is not
    learnt.

    Raises:
        TooLarge: A phrasing with a prompt, which cannot be parted from its completion, is longer than the window.
    """
    window, sequences = lm.window, []
    for phrasing in phrasings:
        ids, flags = lm.encode_phrasing(phrasing)
        if phrasing.prompt and len(ids) > window:
            shown = (phrasing.prompt + phrasing.completion)[:60]
            raise TooLarge(f"a study text has {len(ids)} tokens, the window holds {window}; split it: {shown!r}...")
        for start in range(0, len(ids), window):
            learnt = [False, *flags[start + 1 : start + window]]
            if any(learnt):
                sequences.append(Encoded(ids[start : start + window], learnt, phrasing, text))
    return sequences


def collate(lm: Any, sequences: Sequence[Encoded], *, rehearsed: Sequence[Encoded] = ()) -> TrainingBatch:
    """Pad; the tensors are where the model's embeddings are. What is rehearsed comes after the others.

    Raises:
        ValueError: There is no sequence.
    """
    fresh, sequences = len(sequences), [*sequences, *rehearsed]
    if not sequences:
        raise ValueError("there is nothing to learn in these texts: each is one token or none")
    length = max(len(sequence.ids) for sequence in sequences)
    tokens = torch.zeros(len(sequences), length, dtype=torch.int64)
    attention = torch.zeros(len(sequences), length, dtype=torch.int64)
    targets = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        end = len(sequence.ids)
        tokens[row, :end] = torch.tensor(sequence.ids)
        attention[row, :end] = 1
        targets[row, :end] = torch.tensor(sequence.learnt)
    device = lm.module.get_input_embeddings().weight.device
    return TrainingBatch(tokens.to(device), attention.to(device), targets.to(device), fresh, tuple(sequences))


def part_of(batch: TrainingBatch, number: int, count: int) -> TrainingBatch:
    """Every `count`-th sequence of a batch, from the one of this number on, without padding that none of them needs.
    Where there is none it is the first one, as if it were rehearsed: of several processes each must make the same
    passes, and that work is charged like any other."""
    rows = list(range(number, len(batch.tokens), count))
    fresh = sum(row < batch.fresh for row in rows)
    rows = rows or [0]
    length = int(batch.attention[rows].sum(dim=1).max())
    return TrainingBatch(
        batch.tokens[rows, :length],
        batch.attention[rows, :length],
        batch.targets[rows, :length],
        fresh,
        tuple(batch.sequences[row] for row in rows),
    )


def share_of(batch: TrainingBatch, number: int, count: int) -> float:
    """The share of a batch's target tokens that is in this part of it; 0 where the part is another's too."""
    targets = batch.targets[:, 1:]
    return int(targets[number::count].sum()) / int(targets.sum())
