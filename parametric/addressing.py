"""What makes a memory writable: one address for all wordings of a fact, another for every other fact, all keys in use.

A memory layer that is trained for its answers alone reads few slots for everything, and the wordings of one fact reach
different ones: what is written there is found under the trained wording only and overwrites what stood there. Two
losses on the queries mend that while the model is pretrained. They touch no value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .memory_layer import ProductKeyMemory

TEMPERATURE = 0.1


def consistency_loss(query_BH2Q: Tensor, facts_B: Tensor) -> Tensor:
    """How badly a query tells its own fact's other wordings from other facts, in nats.

    Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, equation 2) on the cosine of queries, for each
    head by itself.

    Args:
        query_BH2Q: Half-queries, see `ProductKeyMemory.queries`.
        facts_B: [B] int64; equal numbers are wordings of one fact. A fact with one wording serves as a contrast only.

    Returns:
        A scalar; 0 where no fact has two wordings.
    """
    same_BB = facts_B[:, None] == facts_B[None, :]
    itself_BB = torch.eye(len(facts_B), dtype=torch.bool, device=facts_B.device)
    pairs_BB = same_BB & ~itself_BB
    count_B = pairs_BB.sum(1)
    if not bool(pairs_BB.any()):
        return query_BH2Q.new_zeros(())
    query_HBQ = functional.normalize(query_BH2Q.float().flatten(2), dim=-1).transpose(0, 1)
    likeness_HBB = query_HBQ @ query_HBQ.mT / TEMPERATURE
    log_share_HBB = likeness_HBB.masked_fill(itself_BB, -torch.inf).log_softmax(-1)
    loss_HB = -log_share_HBB.masked_fill(~pairs_BB, 0.0).sum(-1) / count_B.clamp(min=1)
    return loss_HB[:, count_B > 0].mean()


def balance_loss(scores_BH2N: Tensor, top_k: int) -> Tensor:
    """How unevenly half-keys are used: 0 when every one is read equally often, N / top_k - 1 when all read the same.

    After the load-balancing loss of mixtures of experts (Fedus et al. 2021, arXiv 2101.03961, equation 4): share of
    the reads times mean probability, summed. Scores are scaled by their spread, so that shrinking them gains nothing.

    Args:
        scores_BH2N: See `ProductKeyMemory.half_scores`.
        top_k: Half-keys that a head reads of each codebook.
    """
    half_keys = scores_BH2N.shape[-1]
    read_BH2N = torch.zeros_like(scores_BH2N).scatter_(-1, scores_BH2N.topk(top_k, dim=-1).indices, 1.0 / top_k)
    spread_BH21 = scores_BH2N.std(-1, keepdim=True).detach().clamp(min=1e-6)
    probability_BH2N = (2.0 * scores_BH2N / spread_BH21).softmax(-1)
    return half_keys * (read_BH2N.mean(0) * probability_BH2N.mean(0)).sum(-1).mean() - 1.0


@contextmanager
def asked_with(layers: Sequence[ProductKeyMemory]) -> Iterator[dict[ProductKeyMemory, Tensor]]:
    """What each layer makes its queries of, [positions, D], in the last pass within the block."""
    hidden: dict[ProductKeyMemory, Tensor] = {}

    def note(layer: ProductKeyMemory, query: Any, arguments: tuple[Tensor, ...]) -> None:
        hidden[layer] = arguments[0]

    hooks = [layer.query.register_forward_pre_hook(partial(note, layer)) for layer in layers]
    try:
        yield hidden
    finally:
        for hook in hooks:
            hook.remove()


def address_loss(
    layer: ProductKeyMemory, hidden_BD: Tensor, facts_B: Tensor, consistency: float, balance: float
) -> Tensor:
    """The weighted sum of both losses for a layer's input at the positions where facts are asked for."""
    query_BH2Q = layer.queries(hidden_BD)
    evenness = balance_loss(layer.half_scores(query_BH2Q), layer.config.top_k)
    return consistency * consistency_loss(query_BH2Q, facts_B) + balance * evenness
