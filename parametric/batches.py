"""Phrasings as padded batches of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memory_paths.types import Phrasing


@dataclass(frozen=True)
class TrainingBatch:
    """Right-padded, never packed: packing would let one phrasing of an item copy from another.

    Args:
        tokens: [sequences, length] int64.
        attention: [sequences, length] int64, 0 at padding.
        targets: [sequences, length] bool, True where a token is to be learnt.
    """

    tokens: Tensor
    attention: Tensor
    targets: Tensor

    @property
    def token_count(self) -> int:
        """Tokens without padding."""
        return int(self.attention.sum())


def collate(lm: Any, phrasings: Sequence[Phrasing]) -> TrainingBatch:
    """Tokenise and pad; the tensors are where the model's embeddings are.

    A text that is longer than the model's window becomes several sequences, one after another.
    """
    encoded = [
        (ids[start : start + lm.window], [False, *flags[start + 1 : start + lm.window]])
        for ids, flags in (lm.encode_phrasing(phrasing) for phrasing in phrasings)
        for start in range(0, len(ids), lm.window)
        if any(flags[start + 1 : start + lm.window])
    ]
    length = max(len(ids) for ids, _ in encoded)
    tokens = torch.zeros(len(encoded), length, dtype=torch.int64)
    attention = torch.zeros(len(encoded), length, dtype=torch.int64)
    targets = torch.zeros(len(encoded), length, dtype=torch.bool)
    for row, (ids, flags) in enumerate(encoded):
        tokens[row, : len(ids)] = torch.tensor(ids)
        attention[row, : len(ids)] = 1
        targets[row, : len(ids)] = torch.tensor(flags)
    device = lm.module.get_input_embeddings().weight.device
    return TrainingBatch(tokens.to(device), attention.to(device), targets.to(device))
