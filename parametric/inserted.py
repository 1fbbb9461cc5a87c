"""New modules in a frozen model: bottleneck adapters, and keys and values that stand before every text.

What is put in does nothing until it learns, except for virtual tokens, which are read from the start. This file knows
nothing of what is studied or how a step is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from memory_paths.types import Phrasing

from .adam import AdamTrainer
from .batches import encode
from .weights import Trainer, check_learnt

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
    on: bool = True


class Inserted:
    """The weights axes `adapter`, `prompt`, `prefix`, `cartridge` and `lora_stack`: an `Insertion` trains, the model
    stays frozen.

    Args:
        insertion: What is put in.
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
        seed: Initialisation.
    """

    def __init__(self, insertion: Insertion, *, rate: float = 1e-3, weight_decay: float = 0.0, seed: int = 0) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        self.rate = rate
        self.weight_decay = weight_decay
        self._insertion = insertion
        self._seed = seed
        self._ids: tuple[int, ...] = ()
        self._learnt: dict[str, Tensor] = {}
        self._switches: list[_Switch] = []

    backward = 1.0

    def fit(self, lm: Any) -> None:
        """See `Weights`.

        Raises:
            ValueError: The model has no place for it.
        """
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
            new = self._insertion.build(module, self._ids, self._learnt).to(device=first.device, dtype=first.dtype)
        self._put(new, self._learnt)
        outer, switch = getattr(module, PLACE, None), _Switch()
        with ExitStack() as placed:
            module.add_module(PLACE, new.train(module.training))
            placed.callback(self._remove, module, outer)
            for handle in self._insertion.place(module, new, lambda: switch.on):
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
        switch.on = False
        try:
            if not state:
                yield
                return
            self._learnt = dict(state)
            with self.applied(module):
                yield
        finally:
            switch.on, self._learnt = True, present

    @contextmanager
    def training(self, module: Any) -> Iterator[Trainer]:
        """See `Weights`."""
        new = getattr(module, PLACE)
        named = ((f"{PLACE}.{name}", parameter) for name, parameter in new.named_parameters())
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        yield AdamTrainer(parameters, self.rate, self.weight_decay)
        check_learnt(parameters.values())
        self._learnt = self._insertion.learnt(new)

    def measures(self) -> Mapping[str, float]:
        """See `Weights`."""
        return {"weights_changed": float(sum(tensor.numel() for tensor in self._learnt.values()))}

    def fingerprint(self) -> str:
        """See `Weights`."""
        return f"{type(self._insertion).__name__} {sorted(vars(self._insertion).items())} {self._seed}"

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
        names = self._names(module)
        if not names:
            raise ValueError(
                f"{type(module).__name__} has no modules named {', '.join(self.after)}; name the modules that adapters "
                "shall follow in weights.insertion.after"
            )
        adapters = nn.ModuleList()
        for _ in names:
            down, up = nn.Linear(size, self.width), nn.Linear(self.width, size)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            adapters.append(nn.Sequential(down, nn.GELU(), up))
        return adapters

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`."""
        return _copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def following(adapter: nn.Module) -> Callable[[Any, Any, Any], Any]:
            def hook(one: Any, given: Any, output: Any) -> Any:
                if not active():
                    return output
                if isinstance(output, tuple):  # attention also gives its weights
                    return (output[0] + adapter(output[0]), *output[1:])
                return output + adapter(output)

            return hook

        places = zip(self._names(module), new, strict=True)
        return [module.get_submodule(name).register_forward_hook(following(adapter)) for name, adapter in places]

    def _names(self, module: Any) -> list[str]:
        # A module within another one of these names is a part of it: its output is not what goes to the residual.
        found: list[str] = []
        for name, _ in module.named_modules():
            parts = name.split(".")
            if parts[0] != PLACE and parts[-1] in self.after and not set(parts[:-1]) & set(self.after):
                found.append(name)
        return found


Form = Literal["prompt", "prefix", "cartridge"]


class VirtualTokens:
    """Tokens before every text that nobody wrote.

    Their keys and values stand before those of the text in every layer; the text keeps its positions. What trains is
    for "prompt" the tokens' embeddings (Lester et al. 2021, arXiv 2104.08691), which begin as those of some tokens of
    the background; for "prefix" the keys and values themselves (Li & Liang 2021, 2101.00190, without its
    reparametrisation), which begin as those of random embeddings; for "cartridge" the same, begun as those of the
    first tokens of the background (Eyuboglu et al. 2025, 2506.06266).

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
        return _copied(new)

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""
        from transformers.cache_utils import DynamicCache

        inside = [False]

        def lead() -> list[tuple[Tensor, Tensor]]:
            if self.form != "prompt":
                return list(zip(new[::2], new[1::2], strict=True))
            inside[0] = True
            try:
                return _keys_and_values(module, new[0])
            finally:
                inside[0] = False

        def hook(one: Any, arguments: Any, given: dict[str, Any]) -> Any:
            if inside[0] or not active():
                return None
            ids, cache = given["input_ids"], given.get("past_key_values")
            rows = len(ids)
            mask = given.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            positions = given.get("position_ids")
            if positions is None:
                positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            if cache is None or cache.get_seq_length() == 0:
                cache = DynamicCache(config=one.config) if cache is None else cache
                for index, (keys, values) in enumerate(lead()):
                    cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
            mask = torch.cat([mask.new_ones(rows, self.tokens), mask], dim=1)
            changed = {"past_key_values": cache, "attention_mask": mask, "position_ids": positions}
            return arguments, {**given, **changed}

        return [module.register_forward_pre_hook(hook, with_kwargs=True)]


class LowRankStack:
    """A pair of low-rank matrices beside every linear layer for each write; those of earlier writes stay as they are.

    With `OrthogonalSubspaces` as penalty it is O-LoRA (Wang et al. 2023, arXiv 2310.14152).

    Args:
        rank: Of each write's matrices, at least 1.
        alpha: Scale; what they add is multiplied by alpha / rank.
    """

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
            earlier = (
                state.get(f"{place}.old_a", torch.empty(0, size_in)),
                state.get(f"{place}.old_b", torch.empty(size_out, 0)),
            )
            # Another beginning for each write.
            generator = torch.Generator().manual_seed(torch.initial_seed() + 7919 * len(earlier[0]) + place)
            bound = size_in**-0.5
            new_a = (2 * torch.rand(self.rank, size_in, generator=generator) - 1) * bound
            pairs.append(
                nn.ParameterDict(
                    {
                        "old_a": nn.Parameter(earlier[0].clone(), requires_grad=False),
                        "old_b": nn.Parameter(earlier[1].clone(), requires_grad=False),
                        "new_a": nn.Parameter(new_a),
                        "new_b": nn.Parameter(torch.zeros(size_out, self.rank)),
                    }
                )
            )
        return pairs

    def learnt(self, new: Any) -> dict[str, Tensor]:
        """See `Insertion`: the new pair joins the old ones."""
        kept = {}
        for place, pair in enumerate(new):
            kept[f"{place}.old_a"] = torch.cat([pair["old_a"], pair["new_a"]]).detach()
            kept[f"{place}.old_b"] = torch.cat([pair["old_b"], pair["new_b"]], dim=1).detach()
        return kept

    def place(self, module: Any, new: Any, active: Callable[[], bool]) -> list[Any]:
        """See `Insertion`."""

        def beside(pair: Any) -> Callable[[Any, Any, Any], Any]:
            def hook(one: Any, given: Any, output: Any) -> Any:
                if not active():
                    return output
                (hidden,) = given
                low = torch.cat([pair["old_a"], pair["new_a"]])
                high = torch.cat([pair["old_b"], pair["new_b"]], dim=1)
                return output + (hidden @ low.T @ high.T) * (self.alpha / self.rank)

            return hook

        places = zip(self._names(module), new, strict=True)
        return [module.get_submodule(name).register_forward_hook(beside(pair)) for name, pair in places]

    @staticmethod
    def _names(module: Any) -> list[str]:
        head = id(module.get_output_embeddings())
        return [
            name
            for name, one in module.named_modules()
            if _sizes(one) != (0, 0) and id(one) != head and not name.startswith(f"{PLACE}.")
        ]


def _sizes(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; of anything else, nothing."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (0, 0)


def _copied(new: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in new.named_parameters()}


def _keys_and_values(module: Any, embedded: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, each [1, heads, tokens, width], after reading embeddings [1, tokens, D]."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=module.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        raise ValueError(f"{type(module).__name__} does not keep keys and values of every token; use another method")
    module(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
