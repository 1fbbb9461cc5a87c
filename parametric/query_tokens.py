"""From which tokens a memory's query is taken: the last few, each weighed by what is learnt.

A query comes of the hidden state of its own position (Lample et al. 2019). Where that holds more of how a question is
worded than of whom it is about, one fact has another address in every wording; the tokens before it are then to have a
say. They are of earlier passes where keys and values are cached, so that what is needed of them is cached beside these:
D numbers and a position for each token.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memory_paths.lm import cache_argument, evaluating


class QueryTokens(nn.Module):
    """Mixes the hidden states of a position and of those before it: a causal convolution for each of the D channels.

    All tokens weigh the same before training. What stands before the first token of a text counts as zero.

    Without `watch`, rows are texts from their first token on, without padding on the left. With it, what the block was
    last told is state of this module: one thread at a time, no gradient checkpointing, no cache but a `DynamicCache`.

    Args:
        tokens: How many; 2 or more.
        width: D.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.full((tokens, width), 1 / tokens))
        self.layer = 0
        self._positions: Tensor | None = None
        self._cache: Any = None
        self._watching: tuple[RemovableHandle, ...] = ()

    def watch(self, module: Any, place: str) -> None:
        """Be told by the block around `place`, a submodule of the model, of positions and cache.

        Raises:
            ValueError: What is around it is not given the positions of its tokens.
        """
        around = place.rpartition(".")[0]
        block = module.get_submodule(around)
        if "position_ids" not in inspect.signature(block.forward).parameters:
            raise ValueError(
                f"module {around!r}, a {type(block).__name__}, is not told where its tokens stand, so that a query can "
                "be taken of its own token only: query_tokens=1"
            )
        self.unwatch()
        # Bound methods, unlike functions within this one, go with a copy of the model to the copy.
        self._watching = (
            block.register_forward_pre_hook(self._see, with_kwargs=True),
            block.register_forward_hook(self._forget, always_call=True),
        )

    def unwatch(self) -> None:
        """The reverse of `watch`."""
        for handle in self._watching:
            handle.remove()
        self._watching = ()

    def _see(self, block: Any, arguments: Any, options: dict[str, Any]) -> None:
        from transformers.cache_utils import Cache, DynamicCache

        positions = options.get("position_ids")
        if not isinstance(positions, Tensor) or positions.ndim != 2:
            raise ValueError(f"a {type(block).__name__} is given no position for each token: query_tokens=1")
        named = [options.get(name) for name in ("cache", "past_key_values", "layer_past")]
        given = [*(one for one in named if one is not None), *(one for one in arguments if isinstance(one, Cache))]
        cache = given[0] if given else None
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(f"a {type(cache).__name__} has no room for the tokens of queries: query_tokens=1")
        self._positions, self._cache = positions, cache

    def _forget(self, block: Any, arguments: Any, output: Any) -> None:
        self._positions = self._cache = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., T, D] to [..., T, D].

        Raises:
            RuntimeError: It is watching its block, and is not called by it.
        """
        if self._watching and self._positions is None:
            raise RuntimeError(
                "a memory with query_tokens above 1 was called outside of its block's pass, as gradient checkpointing "
                "does: turn that off, or take query_tokens=1"
            )
        hidden_BTD = hidden.reshape(-1, *hidden.shape[-2:])
        rows, new, _ = hidden_BTD.shape
        positions = torch.arange(new, device=hidden.device)[None] if self._positions is None else self._positions
        hidden_BSD, positions_BS = self._with_cached(hidden_BTD, positions.to(hidden.device).expand(rows, new))
        before_BS = _before(positions_BS)
        at_BT = torch.arange(hidden_BSD.shape[1], device=hidden.device)[-new:].expand(rows, new)
        mixed_BTD = self.mix[0] * hidden_BTD
        for weight_D in self.mix[1:]:
            at_BT = torch.where(at_BT >= 0, before_BS.gather(1, at_BT.clamp(min=0)), -1)
            taken_BTD = hidden_BSD.gather(1, at_BT.clamp(min=0)[..., None].expand_as(hidden_BTD))
            mixed_BTD = mixed_BTD + weight_D * taken_BTD * (at_BT >= 0)[..., None]
        return mixed_BTD.view(hidden.shape)

    def _with_cached(self, hidden_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Those of earlier passes, and then these."""
        if self._cache is None:
            return hidden_BTD, positions_BT
        from transformers.cache_utils import DynamicLayer

        while len(self._cache.layers) <= self.layer:
            self._cache.layers.append(DynamicLayer())
        # As a layer of keys and values of one head, it is repeated, chosen from and stored as these are.
        keys, values = self._cache.layers[self.layer].update(hidden_BTD[:, None], positions_BT[:, None, :, None])
        return keys[:, 0], values[:, 0, :, 0]


def _before(positions_BS: Tensor) -> Tensor:
    """The place of the token before each, -1 where there is none: the nearest earlier one whose position is one less.

    Nearly always that is the place before. But several questions may stand one after another behind the same notes,
    and padding between what is cached and what is new.
    """
    places_S = torch.arange(positions_BS.shape[1], device=positions_BS.device)
    before_BS = torch.where(positions_BS > 0, places_S - 1, -1)
    apart_BS = torch.zeros_like(positions_BS, dtype=torch.bool)
    apart_BS[:, 1:] = (positions_BS[:, 1:] > 0) & (positions_BS[:, 1:] != positions_BS[:, :-1] + 1)
    row_M, at_M = apart_BS.nonzero(as_tuple=True)
    if len(row_M):
        fits_MS = (positions_BS[row_M] == positions_BS[row_M, at_M][:, None] - 1) & (places_S < at_M[:, None])
        before_BS[row_M, at_M] = torch.where(fits_MS, places_S, -1).amax(1)
    return before_BS


def number_query_tokens(module: Any) -> None:
    """Give those of a model their layers of the cache, behind the ones that its config tells of, in the order of its
    modules: the same in every copy, so that a prefix that one has stored can be read by another."""
    several = (one for one in module.modules() if isinstance(one, QueryTokens))
    for layer, one in enumerate(several):
        one.layer = module.config.get_text_config().num_hidden_layers + layer


def check_query_tokens(module: Any, tokens: QueryTokens) -> None:
    """See that the model, of which `tokens` is a part, is read alike in one pass and token by token.

    Raises:
        ValueError: It is not, or it does not tell positions for every token.
    """
    from transformers.cache_utils import DynamicCache

    seen: list[Tensor] = []
    hook = tokens.register_forward_hook(lambda one, given, output: seen.append(output[0]))
    ids = torch.arange(4, device=module.get_input_embeddings().weight.device)[None]
    cache = DynamicCache(config=module.config)
    try:
        with evaluating(module):
            module(input_ids=ids, use_cache=False)
            for place in range(ids.shape[1]):
                module(input_ids=ids[:, place : place + 1], use_cache=True, **{cache_argument(module): cache})
    finally:
        hook.remove()
    # What is wrong is wrong by far more than half precision rounds.
    whole, parts = seen[0], torch.cat(seen[1:])
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=0, atol=0.05 * float(whole.abs().max())):
        raise ValueError(f"a {type(module).__name__} is read otherwise token by token: query_tokens=1")
