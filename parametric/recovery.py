"""`python -m memory_paths.parametric.recovery FOLDER`: attaches a memory to a finished model and trains it alone.

A model that was not pretrained with its memory has no addresses, and where the memory takes an MLP's place it has lost
that too. The recovery trains keys, queries, values and gates on ordinary text while the model itself stays as it was,
and says what was lost and won back in perplexity. Replacing and healing is the form of arXiv 2604.05248; a rate of
their own for values, and gradients clipped by themselves, that of Berges et al. 2024 (2412.09764). This file knows
nothing of how facts are written afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from memory_paths.files import write_durably
from memory_paths.lm import CausalLM, layout
from memory_paths.streams.files import texts as texts_of
from memory_paths.streams.words import PERSON_ATTRIBUTES, VALUES, WORDINGS
from memory_paths.streams.world import (
    Fact,
    known_world,
    near_name,
    near_names,
    passing_facts,
    reading_task,
    rehearsal,
    split_wordings,
    state,
    study_phrasings,
)
from memory_paths.types import Knowledge, Phrasing, Prompt

from .addressing import address_loss, asked_with, balance_loss
from .attach import STORED, Attached, Mode, attach_all, detach, memory_tables, mlp_name, save_memory
from .batches import Encoded, collate, encode
from .embedded import load as load_embedded
from .memory_layer import MemoryLayerConfig, ProductKeyMemory, QueryNorm
from .memory_rows import read_background
from .objective import logits_of, token_losses
from .slots import SlotUsage, slot_usage
from .storage import is_stored

logger = logging.getLogger(__name__)

CARD = "card.json"
ALIKE = 4
"""Facts that stand side by side and are drawn together, since they are easily mistaken for one another."""


@dataclass(frozen=True)
class Recovery:
    """How an attached memory is trained.

    Args:
        steps: Optimiser steps (AdamW without decay); 0: the memory is only attached.
        batch: Texts in a step.
        rate: Peak learning rate, after a tenth of the steps of linear warm-up, of everything but values; it falls
            linearly to zero.
        value_rate_multiplier: The values' rate is so many times the others'.
        clip: Largest norm of the gradient of everything but values.
        value_clip: Largest norm of the values' gradient.
        facts: Facts in a step whose addresses are learnt, each in two wordings.
        consistency: Weight of the loss that gives all wordings of a fact one address, see `addressing.py`.
        balance: Weight of the loss that keeps all half-keys in use.
        seed: Of the memory's first weights and of the order of texts.
    """

    steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    value_rate_multiplier: float = 10.0
    clip: float = 1.0
    value_clip: float = 1.0
    facts: int = 32
    consistency: float = 0.1
    balance: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("facts", ALIKE), ("consistency", 0), ("balance", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a recovery must be at least {least}, got {getattr(self, name)}")
        for name in ("rate", "value_rate_multiplier", "clip", "value_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a recovery must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Material:
    """What a recovery reads.

    Args:
        texts: To be trained on.
        held_out: Perplexity is measured on.
        facts: Wordings of facts, whose addresses are learnt and nothing else: not a word of them. Runs of `ALIKE` facts
            are drawn together.
    """

    texts: Sequence[Phrasing]
    held_out: Sequence[Phrasing]
    facts: Sequence[Sequence[Phrasing]] = ()


@dataclass(frozen=True)
class Card:
    """What a recovery cost and brought.

    Args:
        perplexity: On the held-out texts, of the model `untouched`, with the memory `attached`, and `recovered`.
        usage: How the held-out texts use the slots of all tables together: `attached` and `recovered`.
        trained: Numbers that were trained.
        seconds: Duration of the training.
        base: SHA-256 over the tensors of the model itself, which are the same before and after.
    """

    perplexity: Mapping[str, float]
    usage: Mapping[str, SlotUsage]
    trained: int
    seconds: float
    base: str


def recover(
    lm: Any,
    layers: Sequence[str],
    shape: MemoryLayerConfig,
    recipe: Recovery,
    material: Material,
    *,
    mode: Mode = "add",
    shared: bool = False,
) -> Card:
    """Attach a memory to the model and train it, and no other tensor; it stays attached.

    Args:
        lm: A model that trains; it stays in evaluation mode, without dropout.
        layers: See `attach_all`, also for `shape`, `mode` and `shared`.
        shape: Of each memory.
        recipe: How it is trained.
        material: On what.
        mode: "add" starts with an empty memory at an open gate, which changes no logit; "replace" with an empty place.
        shared: One table for all.

    Raises:
        FloatingPointError: The loss is not finite. The memory is taken out again.
        ValueError: The memory cannot be attached there; or there are no texts.
    """
    training, held_out = encode(lm, material.texts), encode(lm, material.held_out)
    if not held_out or not (training or not recipe.steps):
        raise ValueError("a recovery needs texts to train on and others to measure perplexity on")
    with lm.altered():
        perplexity, usage = {"untouched": _perplexity(lm, held_out)}, {}
        made = attach_all(lm.module, layers, shape, mode=mode, shared=shared, seed=recipe.seed)
        rest, values = _parameters(made)
        base = _base_hash(lm.module, made)
        try:
            for wrapped in made.values():
                wrapped.open_empty()
            perplexity["attached"], usage["attached"] = _perplexity(lm, held_out), _usage(lm, made, held_out)
            began = time.monotonic()
            with _only(lm.module, [*rest, *values]):
                _train(lm, made, rest, values, recipe, training, material.facts)
            seconds = time.monotonic() - began
            perplexity["recovered"], usage["recovered"] = _perplexity(lm, held_out), _usage(lm, made, held_out)
            if not math.isfinite(perplexity["recovered"]):
                raise FloatingPointError(
                    f"the recovered model's perplexity is {perplexity['recovered']}; lower the rate"
                )
            if _base_hash(lm.module, made) != base:
                raise RuntimeError("the recovery has changed a tensor of the model itself; nothing of it may be used")
        except BaseException:
            for layer in made:
                detach(lm.module, layer)
            raise
    trained = sum(parameter.numel() for parameter in (*rest, *values))
    return Card(perplexity, usage, trained, seconds, base)


def _parameters(made: Mapping[str, Attached]) -> tuple[list[Tensor], list[Tensor]]:
    """All that is attached, but for the tables of values; and these, a shared one once."""
    values: dict[int, Tensor] = {id(wrapped.memory.values): wrapped.memory.values for wrapped in made.values()}
    rest: list[Tensor] = [
        parameter
        for wrapped in made.values()
        for name, parameter in wrapped.named_parameters()
        if not name.startswith("mlp.") and id(parameter) not in values
    ]
    return rest, list(values.values())


def _train(
    lm: Any,
    made: Mapping[str, Attached],
    rest: Sequence[Tensor],
    values: Sequence[Tensor],
    recipe: Recovery,
    texts: Sequence[Encoded],
    facts: Sequence[Sequence[Phrasing]],
) -> None:
    optimiser = torch.optim.AdamW(
        [
            {"params": rest, "lr": recipe.rate},
            {"params": values, "lr": recipe.rate * recipe.value_rate_multiplier},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share_of_rate(step, recipe.steps))
    memories = [wrapped.memory for wrapped in made.values()]
    generator = random.Random(f"recovery/{recipe.seed}")
    order: list[Encoded] = []
    for step in tqdm(range(recipe.steps), "recovery", leave=False, disable=None):
        while len(order) < recipe.batch:
            order += generator.sample(list(texts), len(texts))
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        batch = collate(lm, chosen)
        with asked_with(memories) as hidden:
            loss = token_losses(logits_of(lm.module, batch), batch).mean()
        if facts:
            loss = loss + _address_loss(lm, memories, _drawn(facts, recipe.facts, generator), recipe)
        else:  # no wordings to tell apart, but all keys are to be used
            real = batch.attention.flatten().bool()
            loss = (
                loss
                + recipe.balance
                * torch.stack(
                    [
                        balance_loss(one.half_scores(one.queries(hidden[one][real])), one.config.top_k)
                        for one in memories
                    ]
                ).mean()
            )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step + 1} of the recovery; lower the rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, recipe.clip)
        torch.nn.utils.clip_grad_norm_(values, recipe.value_clip)
        optimiser.step()
        schedule.step()


def _share_of_rate(step: int, steps: int) -> float:
    warm_up = max(1, steps // 10)
    return min((step + 1) / warm_up, max(0.0, (steps - step) / max(1, steps - warm_up)))


def _drawn(facts: Sequence[Sequence[Phrasing]], count: int, generator: random.Random) -> list[tuple[int, Phrasing]]:
    """Two wordings of each of `count` facts, with the fact's number."""
    starts = generator.sample(range(0, len(facts), ALIKE), min(count // ALIKE, -(-len(facts) // ALIKE)))
    numbers = [number for start in starts for number in range(start, min(start + ALIKE, len(facts)))]
    return [
        (number, phrasing)
        for number in numbers
        for phrasing in generator.sample(list(facts[number]), min(2, len(facts[number])))
    ]


def _address_loss(
    lm: Any, memories: Sequence[ProductKeyMemory], drawn: Sequence[tuple[int, Phrasing]], recipe: Recovery
) -> Tensor:
    """Of all memories, where the next token is the first that a wording is to teach: there a fact is asked for."""
    numbers, sequences = [], []
    for number, phrasing in drawn:
        found = encode(lm, [phrasing])
        sequences += found
        numbers += [number] * len(found)
    batch = collate(lm, sequences)
    count, length = batch.tokens.shape
    places = torch.arange(count, device=batch.tokens.device) * length + batch.targets.int().argmax(dim=1) - 1
    with asked_with(memories) as hidden:
        logits_of(lm.module, batch)
    facts = torch.tensor(numbers, device=places.device)
    losses = [
        address_loss(memory, hidden[memory][places], facts, recipe.consistency, recipe.balance) for memory in memories
    ]
    return torch.stack(losses).mean()


@contextmanager
def _only(module: Any, trained: Sequence[Tensor]) -> Iterator[None]:
    """Within the block these parameters train and no others."""
    wanted = {id(parameter) for parameter in trained}
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


def _base_hash(module: Any, made: Mapping[str, Attached]) -> str:
    """Over all that is not attached, and over what was put aside for it."""
    rest, values = _parameters(made)
    own = {id(tensor) for tensor in (*rest, *values)}
    tensors = [*module.parameters(), *module.buffers(), *(p for one in made.values() for p in one.mlp.parameters())]
    digest = hashlib.sha256()
    for tensor in tensors:
        if id(tensor) not in own:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _perplexity(lm: Any, sequences: Sequence[Encoded], size: int = 32) -> float:
    """exp of the mean loss per token that is to be learnt."""
    losses = []
    with torch.no_grad():
        for start in range(0, len(sequences), size):
            batch = collate(lm, sequences[start : start + size])
            losses.append(token_losses(logits_of(lm.module, batch), batch).double())
    return math.exp(float(torch.cat(losses).mean()))


def _usage(lm: Any, made: Mapping[str, Attached], sequences: Sequence[Encoded]) -> SlotUsage:
    memories = {id(wrapped.memory) for wrapped in made.values()}
    tables = {name: table for name, table in memory_tables(lm.module).items() if id(table.layers[0]) in memories}
    background, _ = read_background(lm, tables, sequences, size=32)
    return slot_usage(torch.cat([one.reads for one in background.values()]))


def world_material(seed: int = 0, *, reading: int = 3000, strangers: int = 1000, held_out: int = 400) -> Material:
    """For the embedded model: its people of part A, asked for with and without notes, and notes about others to be
    read. Addresses are learnt of people of similar names whom no stream brings. Perplexity is that of answers: half of
    them about part B, of which nothing is trained, in held-out wordings, and half read in notes."""
    generator = random.Random(f"recovery/world/{seed}")
    known = known_world()
    texts = list(rehearsal())
    for number in range(reading):
        noted = passing_facts(generator, generator.randrange(1, 13), generator.choice(("random", "same", "bank")))
        asked, wordings = noted[0], WORDINGS[noted[0].attribute].questions
        if number % 3 == 0:
            asked = generator.choice(known.part_a)
            wordings = split_wordings(asked).questions
        notes = [state(fact, generator.choice(WORDINGS[fact.attribute].statements)) for fact in noted]
        prompt = Prompt(
            generator.choice(wordings).format(name=asked.subject), tuple(generator.sample(notes, len(notes)))
        )
        texts.append(Phrasing(f" {asked.value}", layout(prompt)))
    facts = []
    for first in near_names(generator, strangers // 2, 0.0):
        names = (first, near_name(generator, first))
        for attribute in generator.sample(PERSON_ATTRIBUTES, ALIKE // 2):
            facts += [study_phrasings(Fact(name, attribute, generator.choice(VALUES[attribute]))) for name in names]
    asked_for = []
    for fact in generator.sample(known.part_b, held_out // 2):
        question = generator.choice(split_wordings(fact).held_out).format(name=fact.subject)
        asked_for.append(Phrasing(fact.value, question, asks=True))
    for task in (reading_task(generator, 8) for _ in range(held_out // 2)):
        asked_for.append(Phrasing(f" {task.question.targets[0]}", layout(Prompt(task.question.query.text, task.notes))))
    return Material(texts, asked_for, facts)


def file_material(texts: Path, items: Path | None, *, held_out: int = 50, limit: int = 100_000) -> Material:
    """Texts of a file, see `streams.files.texts`, of which the first ones are held out; phrasings of facts from JSON
    lines of items, `Knowledge.to_json`: those with a prompt, at whose end the fact is asked for."""
    found = texts_of(texts, skip=0, limit=limit)
    if len(found) <= held_out:
        raise ValueError(
            f"{texts} holds {len(found)} texts, of which {held_out} are held out; give more, or fewer of those"
        )
    lines = items.read_text(encoding="utf-8").splitlines() if items is not None else []
    taught = [Knowledge.from_json(line) for line in lines if line.strip()]
    asked = [[one for one in item.phrasings if one.prompt] for item in taught]
    return Material(found[held_out:], found[:held_out], [wordings for wordings in asked if len(wordings) > 1])


def save_card(folder: Path, card: Card, **settings: Any) -> None:
    """Write the card beside the memory, as JSON."""
    content = f"{json.dumps({**asdict(card), **settings}, indent=1)}\n"
    write_durably(folder / CARD, content.encode(), part="memory")


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Attach a memory to a model, train it alone, and save it.")
    parser.add_argument("folder", type=Path, help="where the memory goes, for lm.memory=FOLDER")
    parser.add_argument("--model", default="embedded", help="a folder, a hub name, or 'embedded' (the default)")
    parser.add_argument("--texts", type=Path, help="a text file or JSON lines; by default the embedded model's world")
    parser.add_argument("--items", type=Path, help="items as JSON lines, for the addresses of their phrasings")
    parser.add_argument("--held-out", type=int, default=50, help="so many texts of the file measure perplexity")
    parser.add_argument("--layers", nargs="+", default=["middle"], help="dotted names of MLPs, middle or last")
    parser.add_argument("--mode", choices=get_args(Mode), default="add")
    parser.add_argument("--shared", action="store_true", help="one table of values for all layers")
    parser.add_argument("--query-norm", choices=get_args(QueryNorm), default="rms")
    for name, default in (("half_keys", 64), ("heads", 4), ("top_k", 8), ("half_query", 32), ("query_tokens", 1)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for name, default in asdict(Recovery()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = parser.parse_args()
    if is_stored(arguments.folder, STORED):
        parser.error(f"{arguments.folder} holds a memory already; name another folder")
    is_embedded = arguments.model == "embedded" or (Path(arguments.model) / "embedded.json").is_file()
    if arguments.texts is None and not is_embedded:
        parser.error(f"{arguments.model} needs --texts: what the model can continue")
    if arguments.texts is None and arguments.items is not None:
        parser.error("--items go with --texts; without these the embedded model's own world is read")
    try:
        recipe = Recovery(**{name: getattr(arguments, name) for name in asdict(Recovery())})
        material = (
            world_material(recipe.seed)
            if arguments.texts is None
            else file_material(arguments.texts, arguments.items, held_out=arguments.held_out)
        )
        lm = CausalLM(arguments.model, loader=load_embedded if is_embedded else None)
        shape = MemoryLayerConfig(
            lm.module.config.hidden_size,
            arguments.half_keys,
            arguments.heads,
            arguments.top_k,
            arguments.half_query,
            arguments.query_norm,
            arguments.query_tokens,
        )
        layers = [mlp_name(lm.module, layer) for layer in arguments.layers]
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    card = recover(lm, layers, shape, recipe, material, mode=arguments.mode, shared=arguments.shared)
    save_memory(lm.module, arguments.folder)
    save_card(arguments.folder, card, recipe=asdict(recipe), model=arguments.model, texts=len(material.texts))
    for name, perplexity in card.perplexity.items():
        used = card.usage.get(name)
        told = f"{used.in_use:.0%} of slots in use, hub share {used.hub_share:.2f}" if used else ""
        logger.info(f"{name:10} perplexity {perplexity:8.4g}   {told}")


if __name__ == "__main__":
    main()
