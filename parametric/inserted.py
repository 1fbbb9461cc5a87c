"""New modules in a frozen model: bottleneck adapters, and keys and values that stand before every text.

What is put in does nothing until it learns: virtual tokens, which could not but be read, are not there before. PEFT's
prompts, prefixes and cartridges are not used for that reason, and because they move the positions of the text. What
grows with every write, or by whole blocks, is in `growth`. This file knows nothing of what is studied or how a step is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from memory_paths.lm import cache_argument, positions_of
from memory_paths.types import Phrasing

from .adam import AdamTrainer
from .batches import encode
from .weights import Trainer, check_full_precision, check_learnt, check_rate

PLACE = "inserted"
"""Name of the new modules within the model, for as long as they are in it."""


class Insertion(Protocol):
    """What is put into a model, and where."""

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """The new modules, with untrained parameters; those that want no gradient do not train.

        Args:
            module: The model, without them.
            ids: Tokens of what the model knew before; may be empty.
            state: What was learnt, which will be put into them by the names of their parameters.
        """
        ...

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """What is kept of them at the end of a write, by name."""
        ...

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """Hook them in; returns the hooks' handles. A hook does nothing while it is not active."""
        ...


@dataclass
class _Switch:
    on: bool


class Inserted:
    """The weights axes `adapter`, `prompt`, `prefix`, `cartridge`, `prompt_pool`, `lora_stack`, `new_blocks` and
    `experts`: an `Insertion` trains, the model stays frozen.

    Args:
        insertion: What is put in.
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
        seed: Initialisation.
    """

    def __init__(self, insertion: Insertion, *, rate: float = 1e-3, weight_decay: float = 0.0, seed: int = 0) -> None:
        check_rate(rate, weight_decay)
        self.rate = rate
        self.weight_decay = weight_decay
        self.insertion = insertion
        self._seed = seed
        self._ids: tuple[int, ...] = ()
        self._learnt: dict[str, Tensor] = {}
        self._switches: list[_Switch] = []

    backward = 1.0

    def fit(self, lm: Any) -> None:
        """See `Weights`.

        Raises:
            ValueError: The model has no place for it, or its weights are of half precision, in which small steps would
                be rounded away.
        """
        check_full_precision(lm, "what is put into a model trains in its precision and")
        with self.applied(lm.module):
            pass

    def prepare(self, lm: Any, background: Sequence[Phrasing]) -> int:
        """See `Weights`; keeps the first tokens of the background, to begin with."""
        found = [id for sequence in encode(lm, background[:64]) for id in sequence.ids]
        self._ids = tuple(found[: lm.window])
        return 0

    @contextmanager
    def applied(self, module: Any) -> Iterator[None]:
        """See `Weights`."""
        required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            first = next(module.parameters())
            new = self.insertion.build(module, self._ids, self._learnt).to(device=first.device, dtype=first.dtype)
        self._put(new, self._learnt)
        outer, switch = getattr(module, PLACE, None), _Switch(bool(self._learnt))
        with ExitStack() as placed:
            module.add_module(PLACE, new.train(module.training))
            placed.callback(self._remove, module, outer)
            for handle in self.insertion.place(module, new, lambda: switch.on):
                placed.callback(handle.remove)
            self._switches.append(switch)
            placed.callback(self._switches.pop)
            for parameter, _ in required:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter, wanted in required:
                    parameter.requires_grad_(wanted)
                    parameter.grad = None

    @contextmanager
    def holding(self, module: Any, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Weights`."""
        switch, present = self._switches[-1], self._learnt
        was, switch.on = switch.on, False
        try:
            if not state:
                yield
                return
            self._learnt = dict(state)
            with self.applied(module):
                yield
        finally:
            switch.on, self._learnt = was, present

    @contextmanager
    def training(self, module: Any) -> Iterator[Trainer]:
        """See `Weights`."""
        new = getattr(module, PLACE)
        named = ((f"{PLACE}.{name}", parameter) for name, parameter in new.named_parameters())
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        switch = self._switches[-1]
        switch.on = True
        try:
            yield AdamTrainer(parameters, self.rate, self.weight_decay)
            check_learnt(parameters.values())
            self._learnt = self.insertion.learnt(new)
        finally:
            switch.on = bool(self._learnt)

    def measures(self) -> Mapping[str, float]:
        """See `Weights`."""
        return {"weights_changed": float(sum(tensor.numel() for tensor in self._learnt.values()))}

    def fingerprint(self) -> str:
        """See `Weights`."""
        return f"{type(self.insertion).__name__} {sorted(vars(self.insertion).items())} {self._seed}"

    def state(self) -> Mapping[str, Tensor]:
        """See `Weights`: every tensor that was put in, by name."""
        return dict(self._learnt)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Weights`."""
        self._learnt = {name: tensor.clone() for name, tensor in state.items()}

    @staticmethod
    def _put(new: nn.Module, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                if name in state:
                    parameter.copy_(state[name])

    @staticmethod
    def _remove(module: Any, outer: nn.Module | None) -> None:
        del module._modules[PLACE]
        if outer is not None:
            module.add_module(PLACE, outer)


class Bottleneck:
    """An adapter after every attention and MLP: `h + up(gelu(down(h)))` (Houlsby et al. 2019, arXiv 1902.00751). The
    matrix up begins as zero.

    Args:
        width: Of the bottleneck, at least 1.
        after: The last part of the names of the modules that are followed by an adapter.
    """

    def __init__(self, width: int = 16, after: Sequence[str] = ("self_attn", "attn", "attention", "mlp")) -> None:
        if width < 1:
            raise ValueError(f"width of a bottleneck must be at least 1, got {width}")
        self.width = width
        self.after = tuple(after)

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`.

        Raises:
            ValueError: No module has such a name.
        """
        size = module.config.get_text_config().hidden_size
        names = named(module, self.after, "weights.insertion.after")
        adapters = nn.ModuleList()
        for _ in names:
            down, up = nn.Linear(size, self.width), nn.Linear(self.width, size)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            adapters.append(nn.Sequential(down, nn.GELU(), up))
        return adapters

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`."""
        return copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def following(adapter: nn.Module) -> Callable[[Any, Any, Any], Any]:
            def hook(one: Any, given: Any, output: Any) -> Any:
                return with_added(output, adapter) if active() else output

            return hook

        places = zip(named(module, self.after, "weights.insertion.after"), new, strict=True)
        return [module.get_submodule(name).register_forward_hook(following(adapter)) for name, adapter in places]


Form = Literal["prompt", "prefix", "cartridge"]


class VirtualTokens:
    """Tokens before every text that nobody wrote.

    Their keys and values stand before those of the text in every layer; the text keeps its positions. What trains is
    for "prompt" the tokens' embeddings (Lester et al. 2021, arXiv 2104.08691), which begin as those of some tokens of
    the background; for "prefix" the keys and values themselves (Li & Liang 2021, 2101.00190, without its
    reparametrisation), which begin as those of random embeddings; for "cartridge" the same, begun as those of the
    first tokens of the background (Eyuboglu et al. 2025, 2506.06266, who begin with the text that is to be learnt, keep
    its first token as it is and distil from a reader of the whole; `objective=self_distillation` is the nearest to that
    here).

    Args:
        form: What trains.
        tokens: How many, at least 1.
    """

    def __init__(self, form: Form = "prefix", tokens: int = 16) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form of virtual tokens must be one of {', '.join(get_args(Form))}, got {form!r}")
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.form = form
        self.tokens = tokens

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`.

        Raises:
            ValueError: The model keeps no keys and values of its own for each layer.
        """
        table = module.get_input_embeddings().weight
        drawn = torch.randint(len(table), (self.tokens,))
        given = torch.tensor(list(ids)[: self.tokens], dtype=torch.int64)
        shown = torch.cat([given, drawn[len(given) :]]) if self.form == "cartridge" or self.form == "prompt" else drawn
        embedded = table.detach()[shown.to(table.device)][None]
        if self.form == "prefix":
            embedded = torch.randn_like(embedded) * table.detach().std()
        new = nn.ParameterList([nn.Parameter(embedded.clone())])
        if self.form == "prompt":
            return new
        with torch.no_grad():
            layers = _keys_and_values(module, embedded)
        return nn.ParameterList([nn.Parameter(tensor.clone()) for pair in layers for tensor in pair])

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`."""
        return copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def lead(ids: Tensor, mask: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
            return _keys_and_values(module, new[0]) if self.form == "prompt" else _pairs(new)

        return [_before_every_text(module, self.tokens, lead, active)]


class PromptPool:
    """A pool of prompts of virtual tokens, of which every text is given a mixture of its own (L2P, Wang et al. 2022,
    arXiv 2112.08654, in the form of CODA-Prompt, Smith et al. 2023, 2211.13218, without its new prompts for each task,
    its freezing of the old ones and its orthogonality: one pool goes on training).

    A prompt is keys and values for every layer, as in `VirtualTokens("prefix")`. What stands before a text is the sum
    of all prompts, each times the cosine of its key and the text's query, once an attention vector of the prompt has
    weighed the query's features; so the loss alone trains prompts, keys and attention. The query is the mean of the
    input embeddings, which are frozen, of what is given: of a question all that comes before its answer, of a text
    that is studied whole its first token. An answer must not choose its own prompt: it would be there in training
    and missing when it is asked for. Since all of what is given is looked at before the first token is read, the model
    goes without frozen prefixes.

    Args:
        size: Prompts in the pool, at least 1.
        tokens: Of each prompt, at least 1.
    """

    def __init__(self, size: int = 8, tokens: int = 4) -> None:
        if min(size, tokens) < 1:
            raise ValueError(f"size and tokens of a prompt pool must be at least 1, got {size} and {tokens}")
        self.size = size
        self.tokens = tokens

    def build(self, module: Any, ids: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
        """See `Insertion`.

        Raises:
            ValueError: The model keeps no keys and values of its own for each layer.
        """
        table = module.get_input_embeddings().weight.detach()
        with torch.no_grad():
            shown = torch.randn(self.size, self.tokens, table.shape[1]).to(table) * table.std()
            prompts = [tensor for pair in _keys_and_values(module, shown) for tensor in pair]
        return _Pool(torch.randn(self.size, table.shape[1]), prompts)

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`."""
        return copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def lead(ids: Tensor, mask: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
            given, new.given = new.given, None
            if given is not None:
                lengths = torch.tensor(given, device=mask.device).clamp(min=1)
                mask = mask * (mask.cumsum(dim=1) <= lengths[:, None])
            with torch.no_grad():
                embedded = module.get_input_embeddings()(ids)
                query = (embedded * mask[..., None].to(embedded)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return _pairs(new(query.to(embedded)))

        return [_before_every_text(module, self.tokens, lead, active)]


class _Pool(nn.Module):
    """Prompts, each tensor [size, heads, tokens, width]; keys and attention [size, D]."""

    def __init__(self, keys: Tensor, prompts: Sequence[Tensor]) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.attention = nn.Parameter(torch.ones_like(keys))
        self.prompts = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in prompts])
        # How many tokens of each row are given; told by who runs the model (see `memory_paths.lm.tell_given`).
        self.given: Sequence[int] | None = None

    def forward(self, query: Tensor) -> list[Tensor]:
        """Queries [rows, D] to the prompts before them, each tensor [rows, heads, tokens, width]."""
        shares = functional.cosine_similarity(query[:, None] * self.attention, self.keys, dim=-1)
        return [torch.einsum("rm,mhtw->rhtw", shares, tensor) for tensor in self.prompts]

    def flops_per_token(self) -> float:
        """Of reading one prompt, as other virtual tokens are counted: the pool is mixed once for a text."""
        return 2.0 * float(sum(tensor[0].numel() for tensor in self.prompts))


def named(module: Any, parts: Sequence[str], option: str) -> list[str]:
    """Names of the modules whose last part is one of these. A module within another one of these names is a part of
    it: its output is not what goes to the residual.

    Raises:
        ValueError: There are none; `option` says where others can be named.
    """
    found: list[str] = []
    for name, _ in module.named_modules():
        path = name.split(".")
        if path[0] != PLACE and path[-1] in parts and not set(path[:-1]) & set(parts):
            found.append(name)
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no modules named {', '.join(parts)}; name the modules that are meant in "
            f"{option}"
        )
    return found


def with_added(output: Any, more: Callable[[Tensor], Tensor]) -> Any:
    """A module's output and what `more` makes of it."""
    if isinstance(output, tuple):  # attention also gives its weights
        return (output[0] + more(output[0]), *output[1:])
    return output + more(output)


def copied(new: nn.Module) -> dict[str, Tensor]:
    """Every parameter as it is now, by name."""
    return {name: parameter.detach().clone() for name, parameter in new.named_parameters()}


def _pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _before_every_text(
    module: Any,
    tokens: int,
    lead: Callable[[Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]],
    active: Callable[[], bool],
) -> Any:
    """Hook in virtual tokens; returns the handle.

    Args:
        module: The model.
        tokens: How many.
        lead: From a text's ids and mask, both [rows, length], to the keys and values of each layer, each [rows or 1,
            heads, tokens, width].
        active: Whether they are there.
    """
    from transformers.cache_utils import DynamicCache

    leading = [False]  # the model itself may be asked for what stands before
    name = cache_argument(module)

    def hook(one: Any, arguments: Any, given: dict[str, Any]) -> Any:
        if leading[0] or not active():
            return None
        ids, cache = given["input_ids"], given.get(name)
        rows = len(ids)
        mask = given.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        positions = given.get("position_ids")
        if positions is None:
            positions = positions_of(mask)[:, -ids.shape[1] :]
        if cache is None or cache.get_seq_length() == 0:
            cache = DynamicCache(config=one.config) if cache is None else cache
            leading[0] = True
            try:
                layers = lead(ids, mask)
            finally:
                leading[0] = False
            for index, (keys, values) in enumerate(layers):
                cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        mask = torch.cat([mask.new_ones(rows, tokens), mask], dim=1)
        changed = {name: cache, "attention_mask": mask, "position_ids": positions}
        return arguments, {**given, **changed}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _keys_and_values(module: Any, embedded: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, each [rows, heads, tokens, width], after reading embeddings [rows, tokens, D]."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=module.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        raise ValueError(f"{type(module).__name__} does not keep keys and values of every token; use another method")
    layers: Any = list(cache.layers)  # a memory's query_tokens, which are of the text alone, come behind these
    module(inputs_embeds=embedded, use_cache=True, **{cache_argument(module): cache})
    return [(layer.keys, layer.values) for layer in layers]
