"""What grows in a frozen model: a pair of low-rank matrices or an expert for each write, and new blocks.

Each is an `Insertion` for `Inserted`; nothing of it is felt before it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .inserted import PLACE, copied, named, with_added
from .memory_layer import ProductKeyMemory
from .query_tokens import QueryTokens


class LowRankStack:
    """A pair of low-rank matrices beside every linear layer for each write; those of earlier writes stay as they are.

    With `OrthogonalSubspaces` as penalty it is O-LoRA (Wang et al. 2023, arXiv 2310.14152).

    Args:
        rank: Of each write's matrices, at least 1.
        alpha: Scale; what they add is multiplied by alpha / rank.
    """

    _along: Mapping[str, int] = MappingProxyType({"a": 0, "b": 1})

    def __init__(self, rank: int = 8, alpha: int = 16) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.alpha = alpha

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`."""
        pairs = nn.ModuleList()
        for place, name in enumerate(self._names(module)):
            size_out, size_in = _sizes(module.get_submodule(name))
            new = {
                "a": _begun(state, f"{place}.old_a", place, self.rank, size_in),
                "b": torch.zeros(size_out, self.rank),
            }
            pairs.append(_after_earlier(state, place, new, self._along))
        return pairs

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`: the new pair joins the old ones."""
        return _all_joined(new, self._along)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def beside(pair: Any) -> Callable[[Any, Any, Any], Any]:
            def hook(one: Any, given: Any, output: Any) -> Any:
                if not active():
                    return output
                (hidden,) = given
                joined = _joined(pair, self._along)
                return output + (hidden @ joined["a"].T @ joined["b"].T) * (self.alpha / self.rank)

            return hook

        places = zip(self._names(module), new, strict=True)
        return [module.get_submodule(name).register_forward_hook(beside(pair)) for name, pair in places]

    @staticmethod
    def _names(module: Any) -> list[str]:
        head = id(module.get_output_embeddings())
        return [
            name
            for name, one in module.named_modules()
            if _is_linear(one) and id(one) != head and not name.startswith(f"{PLACE}.")
        ]


class Experts:
    """An expert beside every MLP for each write, and a router that says how much of it a token gets; those of earlier
    writes stay as they are (a growing mixture of experts, after Lifelong-MoE, Chen et al. 2023, arXiv 2305.12281).

    `mlp(x) + sum of p_e(x) * up_e(gelu(down_e(x)))`, where p_e(x) is expert e's share (see `shares`) under the scores
    router_e(x). The MLP itself always runs, with weight 1. The matrix up of a new expert begins as zero, and its row of
    the router too: its share begins as one of n + 1 with n experts in all, so that later experts learn more slowly.

    Args:
        width: Of each expert, at least 1.
        beside: The last part of the names of the modules that experts stand beside.
    """

    _along: Mapping[str, int] = MappingProxyType({"router": 0, "down": 0, "up": 1})

    def __init__(self, width: int = 64, beside: Sequence[str] = ("mlp",)) -> None:
        if width < 1:
            raise ValueError(f"width of an expert must be at least 1, got {width}")
        self.width = width
        self.beside = tuple(beside)

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`.

        Raises:
            ValueError: No module has such a name.
        """
        size = module.config.get_text_config().hidden_size
        grown = nn.ModuleList()
        for place, _ in enumerate(self._names(module)):
            new = {
                "router": torch.zeros(1, size),
                "down": _begun(state, f"{place}.old_down", place, self.width, size),
                "up": torch.zeros(size, self.width),
            }
            grown.append(_after_earlier(state, place, new, self._along))
        return grown

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`: the new expert joins the old ones."""
        return _all_joined(new, self._along)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def beside(experts: Any) -> Callable[[Any, Any, Any], Any]:
            def hook(one: Any, given: Any, output: Any) -> Any:
                if not active():
                    return output
                hidden, *_ = given
                joined = _joined(experts, self._along)
                share = shares((hidden @ joined["router"].T).float()).to(hidden.dtype)
                inner = functional.gelu(hidden @ joined["down"].T) * share.repeat_interleave(self.width, dim=-1)
                return with_added(output, lambda _: inner @ joined["up"].T)

            return hook

        places = zip(self._names(module), new, strict=True)
        return [module.get_submodule(name).register_forward_hook(beside(experts)) for name, experts in places]

    def _names(self, module: Any) -> list[str]:
        return named(module, self.beside, "weights.insertion.beside")


def shares(scores: Tensor) -> Tensor:
    """From scores [..., experts], in the order in which the experts came, to the share of each, of the same shape.

    An expert's share is what a softmax over 0 (for none of them) and the scores of the experts up to it gives it: those
    that come later have no part in it, so that a write never dilutes what an earlier one has taught.
    """
    none = torch.zeros_like(scores[..., :1])
    return (scores - torch.cat([none, scores], dim=-1).logcumsumexp(dim=-1)[..., 1:]).exp()


class NewBlocks:
    """New decoder blocks between those of the model (LLaMA Pro, Wu et al. 2024, arXiv 2401.02415).

    After every n-th block comes a copy of it whose attention and MLP end in matrices of zero, so that it begins as
    the identity. A block that holds a memory layer is passed over and not counted: a copy would be mostly its table.
    The copies keep their keys and values after those of the model's own blocks.

    Args:
        every: After how many blocks a new one comes, at least 1; the paper puts 8 into 32.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 block, got {every}")
        self.every = every

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`.

        Raises:
            ValueError: The model has no such blocks, fewer than `every`, or such that a copy is not the identity; or
                a memory in it takes its queries of several tokens.
        """
        if any(isinstance(one, QueryTokens) for one in module.modules()):
            raise ValueError(
                "new blocks have keys and values where a memory with query_tokens above 1 keeps its tokens; use "
                "another method"
            )
        blocks = self._blocks(module)
        places = self._places(blocks)
        if not places:
            raise ValueError(
                f"{type(module).__name__} has no {self.every} decoder blocks without a memory layer; lower "
                "weights.insertion.every, or use another method"
            )
        new = nn.ModuleList(_begun_as_identity(blocks[place], len(blocks) + j) for j, place in enumerate(places))
        new.attention_layers = len(new)  # type: ignore[assignment]
        if not state and not module.training:  # dropout would differ from pass to pass
            self._check_identity(module, new)
        return new

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`."""
        return copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""
        from transformers.cache_utils import Cache, DynamicCache

        blocks = self._blocks(module)

        def following(block: nn.Module, place: int, index: int) -> Callable[[Any, Any, Any, Any], Any]:
            def hook(one: Any, arguments: Any, given: Any, output: Any) -> Any:
                if not active():
                    return output
                for cache in (*arguments, *given.values()):
                    # A cache is made for the layers that the config tells of.
                    if isinstance(cache, Cache) and len(cache.layers) == index:
                        cache.layers.append(DynamicCache(config=module.config).layers[place])
                hidden = output[0] if isinstance(output, tuple) else output
                if arguments:
                    found = block(hidden, *arguments[1:], **given)
                else:
                    found = block(**{**given, "hidden_states": hidden})
                return (found[0], *output[1:]) if isinstance(output, tuple) else found

            return hook

        return [
            blocks[place].register_forward_hook(following(block, place, len(blocks) + j), with_kwargs=True)
            for j, (place, block) in enumerate(zip(self._places(blocks), new, strict=True))
        ]

    def _check_identity(self, module: Any, new: nn.Module) -> None:
        probe = torch.arange(4, device=module.get_input_embeddings().weight.device)[None]
        with torch.no_grad():
            before = module(input_ids=probe, use_cache=False).logits
            handles = self.place(module, new.train(module.training), lambda: True)
            try:
                after = module(input_ids=probe, use_cache=False).logits
            finally:
                for handle in handles:
                    handle.remove()
        if not torch.equal(before, after):
            raise ValueError(
                f"a copy of a {type(self._blocks(module)[0]).__name__} whose attention and MLP end in zeros is not the "
                f"identity, so that new blocks would change {type(module).__name__} before they learn; use another "
                "method"
            )

    def _places(self, blocks: nn.ModuleList) -> list[int]:
        plain = [
            place
            for place, block in enumerate(blocks)
            if not any(isinstance(part, ProductKeyMemory) for part in block.modules())
        ]
        return plain[self.every - 1 :: self.every]

    @staticmethod
    def _blocks(module: Any) -> nn.ModuleList:
        """The longest list of modules of one class."""
        found = [
            one
            for name, one in module.named_modules()
            if isinstance(one, nn.ModuleList) and len({type(part) for part in one}) == 1 and name.split(".")[0] != PLACE
        ]
        return max(found, key=len, default=nn.ModuleList())


def _begun_as_identity(block: nn.Module, index: int) -> nn.Module:
    """A copy with layers of its own in the cache from `index` on, and zeros where its attention and its MLP end."""
    new = deepcopy(block)
    for part in new.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        if hasattr(part, "layer_idx"):
            part.layer_idx = index  # type: ignore[assignment]
    new.requires_grad_(True)
    # Some blocks hold the matrices of their MLP themselves.
    own = [part for part in new.children() if _is_linear(part)]
    within = [list(filter(_is_linear, part.modules())) for part in new.children() if not _is_linear(part)]
    for linears in filter(None, (own, *within)):
        for parameter in linears[-1].parameters():
            nn.init.zeros_(parameter)
    return new


def _is_linear(module: nn.Module) -> bool:
    return _sizes(module) != (0, 0)


def _begun(state: Mapping[str, Tensor], earlier: str, place: int, size_out: int, size_in: int) -> Tensor:
    """A random matrix [size_out, size_in], another one for each write; those before it left their own as `earlier`."""
    rows = len(state.get(earlier, ()))
    generator = torch.Generator().manual_seed(torch.initial_seed() + 7919 * rows + place)
    bound: float = size_in**-0.5
    return (2 * torch.rand(size_out, size_in, generator=generator) - 1) * bound


def _after_earlier(
    state: Mapping[str, Tensor], place: int, new: Mapping[str, Tensor], along: Mapping[str, int]
) -> nn.ParameterDict:
    """Of each tensor what earlier writes learnt, frozen, and what this one trains; `along` says in which dimension they
    follow one another."""
    tensors = nn.ParameterDict()
    for name, tensor in new.items():
        earlier = state.get(f"{place}.old_{name}", tensor.narrow(along[name], 0, 0))
        tensors[f"old_{name}"] = nn.Parameter(earlier.clone(), requires_grad=False)
        tensors[f"new_{name}"] = nn.Parameter(tensor)
    return tensors


def _joined(tensors: Any, along: Mapping[str, int]) -> dict[str, Tensor]:
    return {name: torch.cat([tensors[f"old_{name}"], tensors[f"new_{name}"]], dim=dim) for name, dim in along.items()}


def _all_joined(new: Any, along: Mapping[str, int]) -> dict[str, Tensor]:
    """What is kept of all places: the new tensors have become old ones."""
    return {
        f"{place}.old_{name}": tensor.detach()
        for place, tensors in enumerate(new)
        for name, tensor in _joined(tensors, along).items()
    }


def _sizes(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; of anything else, nothing."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (0, 0)
