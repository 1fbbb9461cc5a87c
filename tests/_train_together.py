"""Writes of a tiny model in float64, or of a configured one, by the processes that this program is started in, or one.

torchrun --nproc-per-node 2 tests/_train_together.py FOLDER
torchrun --nproc-per-node 2 tests/_train_together.py FOLDER OVERRIDES    the latter, by each file of conf/parallel/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from memory_paths.build import load
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.attach import memory_layers
from memory_paths.parametric.distributed import DataParallel, Pool
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.full import Full
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.parametric.penalty import TowardsBefore
from memory_paths.parametric.rehearsal import Experience
from memory_paths.parametric.slots import RandomSlots
from memory_paths.parametric.weights import Aim, Project, Settle, Trainer, Weights
from memory_paths.types import Knowledge, Phrasing

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8)
STEPS = 10
CONF = Path(__file__).parent.parent / "conf" / "parallel"
KNOWN = [Phrasing("lives in Alavia.", "Alma Ashway "), Phrasing("enjoys chess, as many do.", "Bruno Barrbury ")]
# Texts of unequal length: a mean of the processes' means would not be the mean of all tokens.
FIRST = [
    ("lives in Corlund.", "lives in Corlund, a place by the sea, and has done so for years."),
    ("enjoys rowing.", "enjoys nothing more than rowing and chess.", "enjoys rowing, which is hard work."),
    ("works in Alavia.", "works"),
]
SECOND = [("plays chess.",)]  # one sequence: the second process has nothing of its own to do
CASES: dict[str, list[Pool]] = {
    "memory": ["replicated", "sharded"],
    "memory_random_adam": ["replicated", "sharded"],
    "lora": ["replicated"],
    "full": ["replicated"],
}


def build_lm(seed: int = 1) -> CausalLM:
    """Two layers, each with a memory in the place of its MLP; all of it in float64, the norms' insides too."""
    tokenizer = build_tokenizer()

    def make(name: str) -> tuple[Any, Any]:
        module = build_model(SHAPE, len(tokenizer), seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = MemoryLayerConfig(SHAPE.width, SHAPE.half_keys, half_query=SHAPE.half_query)
            module.model.layers[0].mlp = ProductKeyMemory(config)
        for block in module.model.layers:
            block.input_layernorm, block.post_attention_layernorm = nn.RMSNorm(SHAPE.width), nn.RMSNorm(SHAPE.width)
        module.model.norm = nn.RMSNorm(SHAPE.width)
        return module.double(), tokenizer

    return CausalLM("tiny", loader=make, dtype="auto")


def items(texts: list[tuple[str, ...]], start: int = 0) -> list[Knowledge]:
    """One about each person."""
    names = ("Alma Ashway ", "Bruno Barrbury ", "Carla Corrwick ", "Dora Dunnham ")[start:]
    return [
        Knowledge(name, name + every[0], phrasings=tuple(Phrasing(text, name) for text in every))
        for name, every in zip(names, texts, strict=False)
    ]


class Noting:
    """A trainer whose losses and chosen rows are kept."""

    def __init__(self, trainer: Trainer, losses: list[float], rows: list[torch.Tensor]) -> None:
        self._trainer, self._losses, self._rows = trainer, losses, rows
        trainer.remember()

    def remember(self) -> None:
        """Done already."""

    def step(
        self,
        aims: Sequence[Aim],
        project: Project | None = None,
        settle: Settle | None = None,
        rate_share: float = 1.0,
    ) -> float:
        def note(changed: Any) -> None:
            self._rows.extend(one.rows.clone() for one in changed if one.rows is not None)
            if settle:
                settle(changed)

        self._losses.append(self._trainer.step(aims, project, note, rate_share))
        return self._losses[-1]


def watch(weights: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and chosen rows of all steps to come."""
    losses: list[float] = []
    rows: list[torch.Tensor] = []
    training = weights.training

    @contextmanager
    def noting(module: Any) -> Iterator[Any]:
        with training(module) as trainer:
            yield Noting(trainer, losses, rows)

    weights.training = noting
    return losses, rows


def build_weights(case: str) -> Weights:
    """What trains."""
    return {
        "memory": lambda: MemoryRows(rows=12, rate=20.0, momentum=0.5, background_batch=1),
        "memory_random_adam": lambda: MemoryRows(
            rows=12, rate=1e-2, optimiser="adam", selector=RandomSlots(), lifetime_rows=40
        ),
        "lora": lambda: Adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4), rate=1e-2),
        "full": lambda: Full(rate=3e-3),
    }[case]()


def build_path(case: str, lm: CausalLM, weights: Weights, parallel: DataParallel | None = None) -> WeightsPath:
    """A path that studies ten steps a write, with the axes that several processes can share."""
    return WeightsPath(
        lm,
        Ledger(clock=lambda: 100.0),
        weights=weights,
        rehearsal=Experience(2) if case == "lora" else None,
        penalty=TowardsBefore(0.05) if case in ("full", "memory") else None,
        # Also several passes of several processes are a step of one.
        budget=Budget(
            steps=STEPS, batch=5, accumulation=2 if parallel and case in ("memory_random_adam", "lora") else 1
        ),
        background=KNOWN,
        parallel=parallel,
        progress=False,
    )


def learn(case: str, parallel: DataParallel | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Two writes, the second taken back; everything that one process and several are to have in common."""
    lm, weights = build_lm(), build_weights(case)
    untouched = {name: layer.values.detach().clone() for name, layer in memory_layers(lm.module).items()}
    losses, rows = watch(weights)
    path = build_path(case, lm, weights, parallel)
    receipts = [path.write(items(FIRST), namespace="default"), path.write(items(SECOND, start=3), namespace="default")]
    if folder is not None:
        path.save(folder)
        path._ledger.save(folder / "ledger.sqlite")
    found: dict[str, Any] = {
        "losses": losses,
        "rows": rows,
        "state": dict(weights.state()),
        "hash": path.state_hash(),
        "tokens": [receipt.cost.lm.tokens for receipt in receipts],
        "drift": [receipt.details["measures"]["kl_on_new"] for receipt in receipts],
    }
    path.undo()
    found["undone"] = dict(weights.state())
    found["table_bytes"] = [layer.values.untyped_storage().nbytes() for layer in memory_layers(lm.module).values()]
    found["given_back"] = all(
        torch.equal(layer.values, layer.processes.columns(untouched[name]))
        for name, layer in memory_layers(lm.module).items()
    )
    return found


def learn_configured(overrides: Sequence[str], choice: str = "") -> dict[str, torch.Tensor]:
    """What an agent has learnt in three steps, by a choice of conf/parallel/ or alone."""
    shared = (f"parallel@path.memory.parallel={choice}", "path.memory.parallel.cpu=true") if choice else ()
    budget = ("path.memory.budget.steps=3", "path.memory.budget.batch=4", "path.memory.budget.passes=null")
    with load(*overrides, *budget, *shared, "progress=false") as agent:
        agent.learn(items(FIRST))
        path = agent.paths[agent.path_name]
        assert isinstance(path, WeightsPath)
        return dict(path._weights.state())


def main(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Every case, and what happens when the processes are not given the same; or a configuration by every choice."""
    from accelerate import PartialState

    process = PartialState(cpu=True, timeout=timedelta(seconds=100))  # where one fails, the other waits in vain
    if overrides:
        choices = [file.stem for file in CONF.glob("*.yaml")]
        torch.save(
            {one: learn_configured(overrides, one) for one in sorted(choices)}, folder / f"{process.process_index}.pt"
        )
        process.destroy_process_group()
        return
    found: dict[str, Any] = {}
    for case, pools in CASES.items():
        for pool in pools:
            saved = folder / f"{case}_{pool}" if process.is_main_process else None
            found[f"{case} {pool}"] = learn(case, DataParallel(pool, cpu=True), saved)
    path = build_path("lora", build_lm(), build_weights("lora"), DataParallel(cpu=True))
    try:
        path.write(items(FIRST)[: 1 + process.process_index], namespace="default")
    except ValueError as error:
        found["refusal"] = f"{error}"
    torch.save(found, folder / f"{process.process_index}.pt")
    process.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
