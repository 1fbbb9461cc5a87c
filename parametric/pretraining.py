"""`python -m memory_paths.parametric.pretraining`: trains the embedded language model from nothing and writes its
folder.

Progress, checkpoints and resumption; how many notes a document holds grows as fast as the model learns to read them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from .addressing import address_loss, asked_with
from .attach import memory_layers
from .curriculum import ABOUT, BACKGROUND_WEIGHT, Batch, Document, DocumentSource, Encoder, pack
from .embedded import EmbeddedConfig, build_model, build_tokenizer, load_embedded, save_embedded
from .memory_layer import ProductKeyMemory

logger = logging.getLogger(__name__)

EOS_ID = 2
NOT_HIDDEN = ("embed", "lm_head", "query_tokens")  # matrices that map no hidden state to another


@dataclass(frozen=True)
class Recipe:
    """How the embedded model is trained.

    Args:
        steps: Optimiser steps.
        tokens: Tokens in a step, before packing.
        row: Tokens in a packed row; every fifth step uses rows half as long again as the window.
        rate: Peak learning rate of AdamW (embeddings, norms, keys).
        matrix_rate: Peak learning rate of Muon (hidden matrices).
        value_rate: Peak learning rate of the memory's values (AdamW).
        warm_up: Steps of linear warm-up.
        decay: Share of the steps, at the end, over which the rates fall linearly to zero.
        open_book: Share of the tokens that address documents leave in open-book documents.
        recitals: Recitals for every eight other open-book documents.
        notes: Most notes in a document at the end of the curriculum.
        growth: Steps after which one more note is admitted, from step 250 on. More notes make guessing among them
            dearer: a model that sees few for too long never learns to match names. 0: all from the start.
        addresses: Documents in a step that teach the memory's addresses and nothing else.
        consistency: Weight of the loss that gives all wordings of a fact one address.
        balance: Weight of the loss that keeps all half-keys in use.
        seed: Initialisation and documents.
        probe_every: Steps between probes and checkpoints.
        probed: Questions of each task in a probe.
    """

    steps: int = 6500
    tokens: int = 4096
    row: int = 256
    rate: float = 2e-3
    matrix_rate: float = 5e-3
    value_rate: float = 6e-3
    warm_up: int = 100
    decay: float = 0.35
    open_book: float = 0.65
    recitals: int = 2
    notes: int = 48
    growth: int = 80
    addresses: int = 10
    consistency: float = 0.1
    balance: float = 0.05
    seed: int = 0
    probe_every: int = 500
    probed: int = 128


def _notes_limit(recipe: Recipe, step: int) -> int:
    """Most notes in a document of the step of this number, from 0 on."""
    return min(recipe.notes, 2 + max(0, step - 251) // recipe.growth) if recipe.growth else recipe.notes


@dataclass
class Progress:
    """What a checkpoint keeps beside weights and optimiser state."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def draw_batch(source: DocumentSource, encoder: Encoder, recipe: Recipe, step: int, window: int) -> Batch:
    """The documents of one step; a function of recipe and step alone, so that a resumed run sees the same."""
    notes_limit = _notes_limit(recipe, step)
    generator = random.Random(f"{recipe.seed}/{step}")
    # Long rows hold the questions of a full window side by side; no token's position passes the window.
    length = window * 3 // 2 if step % 5 == 4 else recipe.row
    limit = min(notes_limit, max(2, length // 14))
    # People of similar names come in once plain names are read: matching two words at once is not how reading begins.
    nearness = min(1.0, max(0.0, (notes_limit - 4) / 8))
    documents = encoder.encode([source.addresses(generator) for _ in range(recipe.addresses)])
    spent = sum(len(document.tokens) for document in documents)
    open_until = spent + (recipe.tokens - spent) * recipe.open_book
    while spent < open_until:
        chunk = encoder.encode(
            [source.open_book(generator, limit, nearness=nearness) for _ in range(8)]
            + [source.recital(generator, limit, nearness) for _ in range(recipe.recitals)]
        )
        documents += chunk
        spent += sum(len(document.tokens) for document in chunk)
    while spent < recipe.tokens:
        chunk = encoder.encode([source.closed_book(generator) for _ in range(16)])
        documents += chunk
        spent += sum(len(document.tokens) for document in chunk)
    return pack(documents, length, recipe.tokens // length)


def attention_mask(batch: Batch) -> Tensor:
    """[rows, 1, length, length], True where a token may look: back within its document, at shared tokens or its own
    segment."""
    documents = torch.from_numpy(batch.documents)
    segments = torch.from_numpy(batch.segments)
    length = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (same & visible & causal)[:, None]


def forward(model: Any, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [kept, vocabulary] and targets [kept] at the positions, numbered in [rows, length - 1], whose next
    token is kept."""
    tokens = torch.from_numpy(batch.tokens)
    hidden = model.model(
        input_ids=tokens,
        attention_mask=attention_mask(batch),
        position_ids=torch.from_numpy(batch.positions),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, :-1].flatten(0, 1)[keep]), tokens[:, 1:].flatten()[keep]


def _next_token_weights(batch: Batch) -> Tensor:
    """Weight of predicting the next token, [rows, length - 1]; 0 where the next token starts another segment or
    document."""
    documents, segments = torch.from_numpy(batch.documents), torch.from_numpy(batch.segments)
    # The first token of a question is not predicted from the last token before it, which belongs to another question.
    follows = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0) & (segments[:, 1:] == segments[:, :-1])
    return torch.from_numpy(batch.weights)[:, 1:] * follows


def loss_of(model: Any, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Weighted cross entropy in nats per token, and right/all answer tokens by what they test.

    Of the tokens of background weight one in ten is drawn, at ten times the weight: the same loss on average for
    less work.
    """
    weights = _next_token_weights(batch)
    light = (weights > 0) & (weights <= BACKGROUND_WEIGHT)
    drawn = torch.rand(weights.shape, generator=generator) < 0.1
    kept = ((weights > BACKGROUND_WEIGHT) | (light & drawn)).flatten().nonzero().flatten()
    # A round number of positions: a matrix product of a new shape is set up anew, which costs more than the product.
    kept = torch.cat([kept, kept.new_zeros(-len(kept) % 512)])
    counted = weights.flatten()[kept]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, targets = forward(model, batch, kept)
    counted = torch.where(counted <= BACKGROUND_WEIGHT, counted * 10, counted)
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    about = torch.from_numpy(batch.about)[:, 1:].flatten()[kept]
    right = logits.argmax(-1) == targets
    about[targets == EOS_ID] = 0  # ending the answer is the easy half
    scores = {}
    for number, name in enumerate(ABOUT[1:], start=1):
        mine = about == number
        scores[name] = (int((right & mine).sum()), int(mine.sum()))
    return (losses * counted).sum() / counted.sum(), scores


def _address_loss(layer: ProductKeyMemory, asked_BD: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """The loss on the addresses of the facts that the batch asks for."""
    facts = torch.from_numpy(batch.facts).flatten()
    asked = facts.nonzero().flatten()
    if not len(asked):
        return torch.zeros(())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return address_loss(layer, asked_BD[asked], facts[asked], recipe.consistency, recipe.balance)


def optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest, the memory's values at a rate of their own and undecayed."""
    matrices, values, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.values"):
            values.append(parameter)
        elif recipe.matrix_rate and parameter.ndim == 2 and not any(one in name for one in NOT_HIDDEN):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    adam = torch.optim.AdamW(
        [
            {"params": rest, "lr": recipe.rate, "peak": recipe.rate},
            {"params": values, "lr": recipe.value_rate, "peak": recipe.value_rate},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    if not matrices:
        return [adam]
    muon = torch.optim.Muon(
        [{"params": matrices, "lr": recipe.matrix_rate, "peak": recipe.matrix_rate}],
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adam, muon]


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak rate at a step: linear warm-up, a plateau, a linear fall to zero."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    start = int(recipe.steps * (1 - recipe.decay))
    return 1.0 if step < start else max(0.0, (recipe.steps - step) / max(1, recipe.steps - start))


def probe(model: Any, source: DocumentSource, encoder: Encoder, window: int, questions: int) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, by task (teacher-forced: a quick look, not a
    result)."""
    generator = random.Random("probe")

    def first(document: Document) -> Document:
        return Document(document.notes, document.questions[:1])

    def hop(document: Document) -> Document:
        return Document(document.notes, tuple(one for one in document.questions if one.about == "two_hop")[:1])

    sets = {
        "closed": [source.closed_book(generator) for _ in range(questions)],
        **{
            f"reading_{n}": [first(source.open_book(generator, n, n)) for _ in range(questions)]
            for n in (6, 12, 24, 40)
        },
        "two_hop_8": [hop(source.open_book(generator, 8, 8)) for _ in range(questions * 4)],
        **{f"known_among_{n}": [source.irrelevant(generator, n) for _ in range(questions)] for n in (1, 5, 12)},
        "known_near_5": [source.irrelevant(generator, 5, near=True) for _ in range(questions)],
    }
    figures = {}
    model.eval()
    with torch.no_grad():
        for name, documents in sets.items():
            asked = [document for document in documents if document.questions]
            right = total = 0
            for start in range(0, len(asked), 64):
                batch = pack(encoder.encode(asked[start : start + 64]), window * 3 // 2)
                weights = _next_token_weights(batch)
                keep = (weights >= 1).flatten().nonzero().flatten()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits, targets = forward(model, batch, keep)
                wrong = torch.zeros(weights.numel(), dtype=torch.bool)
                wrong[keep] = logits.argmax(-1) != targets
                wrong = wrong.view(weights.shape)
                documents_block = torch.from_numpy(batch.documents)[:, 1:]
                for row in range(len(wrong)):
                    for number in documents_block[row].unique():
                        if number >= 0:
                            total += 1
                            right += not bool(wrong[row][documents_block[row] == number].any())
            figures[name] = right / max(1, total)
    model.train()
    return figures


def _save_checkpoint(
    folder: Path, model: Any, optimisers: list[torch.optim.Optimizer], progress: Progress, run: dict[str, Any]
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for number, optimiser in enumerate(optimisers):
        for index, state in optimiser.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimiser/{number}/{index}/{name}"] = torch.as_tensor(value)
    temporary = folder / "checkpoint.tmp"
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        temporary,
        metadata={"progress": json.dumps(asdict(progress)), "run": json.dumps(run)},
    )
    os.replace(temporary, folder / "checkpoint.safetensors")


def _load_checkpoint(file: Path, model: Any, optimisers: list[torch.optim.Optimizer], run: dict[str, Any]) -> Progress:
    with safe_open(file, framework="pt") as opened:
        described = opened.metadata()
    # A run that an earlier release began does not name options that came later.
    begun = {**asdict(EmbeddedConfig()), **json.loads(described["run"])}
    differing = [
        f"{name} {begun.get(name)!r} there, {run.get(name)!r} here"
        for name in sorted(begun.keys() | run.keys())
        if begun.get(name) != run.get(name)
    ]
    if differing:
        raise ValueError(
            f"{file} is of another run ({'; '.join(differing)}); go on with its settings or choose another folder"
        )
    progress = Progress(**json.loads(described["progress"]))
    tensors = load_file(file)
    model.load_state_dict(
        {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")},
        strict=False,
    )
    model.tie_weights()
    for number, optimiser in enumerate(optimisers):
        state = optimiser.state_dict()
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser/{number}/"):
                _, _, index, key = name.split("/")
                state["state"].setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict(state)
    return progress


def _take_over(model: Any, trained: Any) -> None:
    """Everything but the memory layer and, where the other model has its own elsewhere, the MLP that stands there.

    Raises:
        ValueError: The two models differ elsewhere too.
    """
    made_anew = tuple(f"{name}." for one in (model, trained) for name in memory_layers(one))
    mine, other = (
        {name: tensor.shape for name, tensor in one.state_dict().items() if not name.startswith(made_anew)}
        for one in (model, trained)
    )
    if mine != other:
        raise ValueError("the model to start from must have the same shape but for its memory layer")
    model.load_state_dict({name: trained.state_dict()[name] for name in mine}, strict=False)


def pretrain(
    folder: Path,
    config: EmbeddedConfig,
    recipe: Recipe,
    *,
    start: Path | None = None,
    after_step: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train to the end, resuming from a checkpoint in `folder` if there is one, and write the model to `folder`/model.

    Args:
        folder: Where checkpoint, curve and model go.
        config: The model's shape.
        recipe: How it is trained.
        start: Folder of a model to start from. The memory layer is made anew; so is the MLP of the place where that
            model has its memory, if the two places differ.
        after_step: Called with the number of steps done; what it raises ends the run, which can be resumed.

    Returns:
        The last probe's figures.

    Raises:
        FloatingPointError: The loss is not finite; the last checkpoint is left as it was.
        ValueError: The checkpoint in `folder` is of a run with other settings or from another start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    encoder, source = Encoder(tokenizer.backend_tokenizer), DocumentSource()
    model = build_model(config, len(tokenizer), recipe.seed)
    optimisers = optimizers(model, recipe)
    progress = Progress()
    stages: list[Any] = []
    run: dict[str, Any] = {**asdict(config), **asdict(recipe), "start": ""}
    if start is not None:
        run["start"] = json.loads((start / "embedded.json").read_text())["sha256"]["model.safetensors"]
        stages = json.loads((start / "training.json").read_text())["stages"]
        _take_over(model, load_embedded(start)[0])
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        progress = _load_checkpoint(checkpoint, model, optimisers, run)
        logger.info("resuming at step %d", progress.step)
    memory = model.model.layers[config.memory_layer].mlp
    model.train()
    began, before = time.monotonic(), progress.seconds
    bar = tqdm(total=recipe.steps, initial=progress.step, disable=None, desc="pretraining")
    while progress.step < recipe.steps:
        step = progress.step
        batch = draw_batch(source, encoder, recipe, step, config.window)
        with asked_with([memory]) as asked:
            loss, scores = loss_of(model, batch, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
        loss = loss + _address_loss(memory, asked[memory], batch, recipe)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the rates and start again")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(step, recipe)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds = before + time.monotonic() - began
        bar.update()
        if after_step is not None:
            after_step(progress.step)
        if progress.step % recipe.probe_every == 0 or progress.step == recipe.steps:
            figures = {
                "step": float(progress.step),
                "loss": float(loss.detach()),
                "notes_limit": float(_notes_limit(recipe, step)),
                "seconds": progress.seconds,
                **{f"train_{name}": right / all_ for name, (right, all_) in scores.items() if all_},
                **probe(model, source, encoder, config.window, recipe.probed),
            }
            progress.curve.append(figures)
            _save_checkpoint(folder, model, optimisers, progress, run)
            (folder / "curve.json").write_text(json.dumps(progress.curve, indent=1))
            logger.info(" ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    bar.close()
    model.eval()
    save_embedded(folder / "model", config, model, tokenizer)
    stage = {"shape": asdict(config), "recipe": asdict(recipe), "seconds": round(progress.seconds)}
    described = {"stages": [*stages, {**stage, "curve": progress.curve}]}
    (folder / "model" / "training.json").write_text(json.dumps(described, indent=1) + "\n")
    return progress.curve[-1] if progress.curve else {}


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Train the embedded language model.")
    parser.add_argument("folder", type=Path, help="where checkpoints and the model go")
    parser.add_argument("--start", type=Path, help="start from this model, with a new memory layer")
    for cls in (EmbeddedConfig, Recipe):
        for name, default in asdict(cls()).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    config = EmbeddedConfig(**{name: arguments[name] for name in asdict(EmbeddedConfig())})
    recipe = Recipe(**{name: arguments[name] for name in asdict(Recipe())})
    pretrain(arguments["folder"], config, recipe, start=arguments["start"])


__all__ = ["Recipe", "load_embedded", "pretrain"]

if __name__ == "__main__":
    main()
