"""From which tokens a memory's query is taken: the last few, each weighed by what is learnt.

A query comes of the hidden state of its own position (Lample et al. 2019). Where that holds more of how a question is
worded than of whom it is about, one fact has another address in every wording; the tokens before it are then to have a
say. They are of earlier passes where keys and values are cached, so that what is needed of them is cached beside these.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class QueryTokens(nn.Module):
    """Mixes the hidden states of a position and of those before it: a causal convolution for each of the D channels.

    All tokens weigh the same before training. What stands before the first token of a text counts as zero.

    Without `watch`, rows are texts from their first token on, without padding on the left.

    Args:
        tokens: How many; 2 or more.
        width: D.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.full((tokens, width), 1 / tokens))
        self._layer = 0
        self._positions: Tensor | None = None
        self._cache: Any = None
        self._watching: tuple[RemovableHandle, ...] = ()

    def watch(self, module: Any, place: str) -> None:
        """Be told by the block around `place`, a submodule of the model, of positions and cache.

        Raises:
            ValueError: It is not given the positions of its tokens.
        """
        block = module.get_submodule(place.rpartition(".")[0])
        if "position_ids" not in inspect.signature(block.forward).parameters:
            raise ValueError(
                f"{type(block).__name__} does not know where its tokens stand, so that a query can be taken of its own"
                " token only: query_tokens=1"
            )
        others = [one for one in module.modules() if isinstance(one, QueryTokens) and one is not self]
        # What is cached stands after the layers that the config tells of.
        self._layer = module.config.get_text_config().num_hidden_layers + len(others)
        # Bound methods, unlike functions within this one, go with a copy of the model to the copy.
        self._watching = (
            block.register_forward_pre_hook(self._see, with_kwargs=True),
            block.register_forward_hook(self._forget),
        )

    def unwatch(self) -> None:
        """The reverse of `watch`."""
        for handle in self._watching:
            handle.remove()
        self._watching = ()

    def _see(self, block: Any, arguments: Any, options: dict[str, Any]) -> None:
        from transformers.cache_utils import Cache

        self._positions = options["position_ids"]
        self._cache = next((one for one in (*arguments, *options.values()) if isinstance(one, Cache)), None)

    def _forget(self, block: Any, arguments: Any, output: Any) -> None:
        self._positions = self._cache = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., T, D] to [..., T, D]."""
        hidden_BTD = hidden.reshape(-1, *hidden.shape[-2:])
        rows, new, _ = hidden_BTD.shape
        positions = torch.arange(new, device=hidden.device)[None] if self._positions is None else self._positions
        positions_BT = positions.to(hidden.device).expand(rows, new)
        hidden_BSD, follows_BS = self._with_cached(hidden_BTD, positions_BT > 0)
        cached = hidden_BSD.shape[1] - new
        places_S = torch.arange(cached + new, device=hidden.device)
        before_BS = torch.where(follows_BS, places_S - 1, -1)
        before_BS[:, cached:] = _before_in_pack(before_BS[:, cached:], positions_BT, cached)
        mixed_BTD = self.mix[0] * hidden_BTD
        at_BT = places_S[cached:].expand(rows, new)
        for weight_D in self.mix[1:]:
            at_BT = torch.where(at_BT >= 0, before_BS.gather(1, at_BT.clamp(min=0)), -1)
            taken_BTD = hidden_BSD.gather(1, at_BT.clamp(min=0)[..., None].expand_as(hidden_BTD))
            mixed_BTD = mixed_BTD + weight_D * taken_BTD * (at_BT >= 0)[..., None]
        return mixed_BTD.view(hidden.shape)

    def _with_cached(self, hidden_BTD: Tensor, follows_BT: Tensor) -> tuple[Tensor, Tensor]:
        """After those of earlier passes, and whether a token stands before each."""
        if self._cache is None:
            return hidden_BTD, follows_BT
        from transformers.cache_utils import DynamicLayer

        while len(self._cache.layers) <= self._layer:
            self._cache.layers.append(DynamicLayer())
        # As a layer of keys and values of one head, it is repeated, chosen from and stored as these are.
        keys, values = self._cache.layers[self._layer].update(
            hidden_BTD[:, None], follows_BT[:, None, :, None].to(hidden_BTD.dtype)
        )
        return keys[:, 0], values[:, 0, :, 0] > 0


def _before_in_pack(before_BT: Tensor, positions_BT: Tensor, cached: int) -> Tensor:
    """Where several questions stand one after another behind the same notes, the token before the first of each is the
    last of the notes: the nearest whose position is one less."""
    broken_BT = torch.zeros_like(positions_BT, dtype=torch.bool)
    broken_BT[:, 1:] = (positions_BT[:, 1:] > 0) & (positions_BT[:, 1:] != positions_BT[:, :-1] + 1)
    row_M, at_M = broken_BT.nonzero(as_tuple=True)
    places_T = torch.arange(positions_BT.shape[1], device=positions_BT.device)
    fits_MT = (positions_BT[row_M] == positions_BT[row_M, at_M][:, None] - 1) & (places_T < at_M[:, None])
    found_M = torch.where(fits_MT, places_T + cached, -1).amax(1)
    before_BT = before_BT.clone()
    before_BT[row_M, at_M] = found_M
    return before_BT


__all__ = ["QueryTokens"]
