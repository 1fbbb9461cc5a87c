"""One agent that several processes teach: each studies its part of every step, and all end in the same state.

A program builds the same agent in every process and makes the same calls in the same order; where one process makes a
call that another does not, both wait until the timeout of `PartialState` is over:

    # learn.py
    from accelerate import PartialState
    from memory_paths.build import load

    process = PartialState()  # without GPUs PartialState(cpu=True)
    sharded = "parallel@path.memory.parallel=sharded"
    with load("path=sparse_memory", sharded, f"lm.device={process.device}") as agent:
        agent.learn(items)
        if process.is_main_process:
            agent.save("learnt")  # of the first process; to be loaded by as many as one likes, or one
    process.destroy_process_group()

    accelerate launch --multi_gpu --num_processes 8 learn.py    eight GPUs of one machine
    torchrun --nproc-per-node 8 learn.py                        the same
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 learn.py
                                                                on each of two machines
    torchrun --nproc-per-node 2 learn.py                        two processes without GPUs, over gloo

It has been tried with gloo on CPUs only. There two processes come to within 1e-10 of what one does in float64; the
order of sums differs, so that it is not the same to the byte.

What works: weights=memory (rows, with every selector and optimiser), lora and whatever PEFT puts into layers, full;
objective=nll; rehearsal none or experience; penalty none or l2; merging none or interpolation; any schedule; any study,
if it gives every process the same texts; forgetting, undo and patches. All else is refused when the path is built,
because a part of a step does not tell what it would do to the whole step. A ledger file is refused too, for every
process keeps the ledger for itself: save the agent instead. `python -m memory_paths` evaluates in one process and
refuses to be started in several.

With pool=sharded the rank r of W keeps values[:, r D / W : (r + 1) D / W] of every memory layer, and each pass through
one, to answer too, is one that all processes make together: ask them all the same. The table of the lent model stays
divided when the path is closed.

Bytes that each process sends, for W processes, B positions in the longest part, N slots of width D, R reads of a
position, t rows, P numbers that train, b bytes a number; an all-reduce counts as a ring's, f = 2 (W - 1) / W of its
size:

    lora, full            f P b for each step
    memory, replicated    f (4 N + t D b) for each step and layer: counts, and gradients of the chosen rows
    memory, sharded       f 4 N for each step and layer, (W - 1) B (R (8 + b) + D b / W) for each forward pass through
                          one, and (W - 1) B D b / W for its backward pass, where an earlier memory trains too
                          (W - 1) B R b more; gradients of values are not sent
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed
from torch.nn import functional

from memory_paths.ledger import Ledger

from .adapter import Adapter
from .attach import memory_layers
from .batches import TrainingBatch, part_of, share_of
from .full import Full
from .memory_layer import Read, WholeTable
from .memory_rows import MemoryRows
from .merging import Interpolation, Merging, NoMerging
from .objective import NegativeLogLikelihood, Objective
from .penalty import NoPenalty, Penalty, TowardsBefore
from .projection import NoProjection, Projection
from .rehearsal import Experience, NoRehearsal, Rehearsal
from .setting import Setting
from .weights import Aim, Gradient, Project, Trainer, Weights

Pool = Literal["replicated", "sharded"]

SUPPORTED: dict[str, tuple[type, ...]] = {
    "weights": (MemoryRows, Adapter, Full),
    "objective": (NegativeLogLikelihood,),
    "rehearsal": (NoRehearsal, Experience),
    "penalty": (NoPenalty, TowardsBefore),
    "projection": (NoProjection,),
    "merging": (NoMerging, Interpolation),
}


class DataParallel:
    """The processes that `torchrun` or `accelerate launch` has started, as one learner.

    Args:
        pool: "replicated": every process has the whole table of values of a memory. "sharded": each has some columns.
        cpu: Leave GPUs alone and talk over gloo.

    Raises:
        ValueError: Another pool.
    """

    def __init__(self, pool: Pool = "replicated", *, cpu: bool = False) -> None:
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        from accelerate import PartialState

        self.pool = pool
        state = PartialState(cpu=cpu or not torch.cuda.is_available())
        self.count = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if self.count > 1 else 0
        self._device = state.device

    def check(
        self,
        lm: Any,
        ledger: Ledger,
        weights: Weights,
        objective: Objective,
        rehearsal: Rehearsal,
        penalty: Penalty,
        projection: Projection,
        merging: Merging,
    ) -> None:
        """Called once, at the door.

        Raises:
            ValueError: Processes cannot share this; see the head of this file.
        """
        given = {
            "weights": weights,
            "objective": objective,
            "rehearsal": rehearsal,
            "penalty": penalty,
            "projection": projection,
            "merging": merging,
        }
        for axis, choice in given.items():
            if not isinstance(choice, SUPPORTED[axis]):
                known = ", ".join(kind.__name__ for kind in SUPPORTED[axis])
                raise ValueError(
                    f"several processes can share a step whose {axis} is one of {known}; what "
                    f"{type(choice).__name__} would do depends on the whole step. Learn in one process: parallel=null"
                )
        if ledger.file != ":memory:":
            raise ValueError(
                f"several processes cannot record the same writes in {ledger.file}: leave the ledger in memory "
                "(ledger=null) and save the agent from one of them"
            )
        if self.pool == "sharded" and not isinstance(weights, MemoryRows):
            raise ValueError(
                f"pool=sharded divides the values that weights=memory writes to, {type(weights).__name__} writes "
                "elsewhere: pool=replicated"
            )
        if isinstance(weights, MemoryRows) and (weights.statistics is not None or weights.counted != "predicting"):
            raise ValueError(
                "several processes gather background statistics anew, and count the reads of positions that predict "
                "something new: statistics=null and counted=predicting"
            )
        if self.pool == "sharded" and isinstance(weights, MemoryRows) and weights.clip is not None:
            raise ValueError(
                "with pool=sharded no process knows the norm of a whole gradient: clip=null, or replicated"
            )
        device = lm.module.get_input_embeddings().weight.device
        if device != self._device and {device.type, self._device.type} != {"cpu"}:  # "cpu" and "cpu:0" are one
            raise ValueError(f"the model is on {device} and this process on {self._device}: lm.device={self._device}")

    def join(self, lm: Any, weights: Weights, objective: Objective) -> tuple[Objective, Projection]:
        """Divide the work: what a step minimises and how its gradients are put together, from now on.

        Raises:
            ValueError: The memory is shared by another path already, or its width is no multiple of the processes.
        """
        shared: Projection = _Sum()
        if isinstance(weights, MemoryRows):
            with weights.applied(lm.module):
                layers = memory_layers(lm.module).values()
                for layer in layers:
                    if layer.processes != WholeTable():
                        raise ValueError(
                            "another path shares this model's memory among processes already; build an agent for each"
                        )
                    if self.pool == "sharded" and layer.config.width % self.count:
                        raise ValueError(
                            f"{self.count} processes cannot share {layer.config.width} columns equally: "
                            "pool=replicated, or another number of processes"
                        )
                for layer in layers:
                    layer.processes = WholeTable(partial(_total, device=self._device))
                    if self.pool == "sharded":
                        layer.processes = _Sharded(self.rank, self.count, self._device)
                        if layer.values.shape[1] == layer.config.width:  # else an earlier layer has the same table
                            layer.values.data = layer.processes.columns(layer.values.data).clone()
                        shared = NoProjection()
        return _PartOfStep(objective, self.rank, self.count), shared

    def agree(self, *facts: object) -> None:
        """Make sure that every process is about to learn the same.

        Raises:
            ValueError: One is not; nothing has been learnt.
        """
        own = hashlib.sha256(repr(facts).encode()).hexdigest()
        every: list[str] = [""] * self.count
        distributed.all_gather_object(every, own)
        if len(set(every)) > 1:
            raise ValueError(
                "the processes are about to learn different things: build the same agent in each and make the same "
                "calls in the same order"
            )


@dataclass(frozen=True)
class _PartOfStep:
    """`Objective`: this process's part of a step; the loss is that of all of it, its gradient that of the part."""

    objective: Objective
    rank: int
    count: int

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`."""
        aim = self.objective(setting, part_of(batch, self.rank, self.count))
        for other in set(range(self.count)) - {self.rank}:
            setting.charge(part_of(batch, other, self.count), 1.0 + setting.weights.backward)
        share = share_of(batch, self.rank, self.count)
        return Aim(aim.batch, lambda: _Total.apply(share * aim.loss()))


@dataclass(frozen=True)
class _Sum:
    """`Projection`: the gradient of every process's part together."""

    def __call__(self, setting: Setting, trainer: Trainer) -> Project:
        """See `Projection`."""

        def project(gradients: Sequence[Gradient]) -> None:
            for sent in [distributed.all_reduce(gradient.values, async_op=True) for gradient in gradients]:
                sent.wait()

        return project


class _Total(torch.autograd.Function):
    """The sum over all processes, of which each differentiates its own term."""

    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        total = term.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Exchange(torch.autograd.Function):
    """[W, ...], one piece for each process, to [W, ...], one piece from each; its own transpose."""

    @staticmethod
    def forward(ctx: Any, pieces: Tensor) -> Tensor:
        found = torch.empty_like(pieces, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(found, pieces.contiguous())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found: Tensor = _Exchange.apply(gradients[0])
        return found


@dataclass(frozen=True)
class _Sharded:
    """`Processes` with some columns each: every one reads its own for all positions, so that it has the gradient of its
    columns over the whole step (as in Berges et al. 2024, arXiv 2412.09764)."""

    rank: int
    count: int
    device: torch.device

    def total(self, counts: Tensor) -> Tensor:
        """See `Processes`."""
        return _total(counts, self.device)

    def columns(self, values: Tensor) -> Tensor:
        """See `Processes`."""
        return values.chunk(self.count, dim=-1)[self.rank]

    def whole(self, columns: Tensor) -> Tensor:
        """See `Processes`."""
        return _joined(_Exchange.apply(columns.expand(self.count, *columns.shape)))

    def read(self, read: Read, slots_BR: Tensor, weights_BR: Tensor) -> Tensor:
        """See `Processes`."""
        positions = len(slots_BR)
        longest = torch.tensor(positions, device=self.device)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        # Padding reads slot 0 with weight 0.
        missing = (0, 0, 0, int(longest) - positions)
        slots_WBR = _Exchange.apply(functional.pad(slots_BR, missing).expand(self.count, -1, -1))
        weights_WBR = _Exchange.apply(functional.pad(weights_BR, missing).expand(self.count, -1, -1))
        columns = read(slots_WBR.flatten(0, 1), weights_WBR.flatten(0, 1))
        return _joined(_Exchange.apply(columns.view(self.count, int(longest), -1)))[:positions]


def _total(counts: Tensor, device: torch.device) -> Tensor:
    found = counts.to(device)
    distributed.all_reduce(found)
    return found.to(counts.device)


def _joined(columns_WBd: Tensor) -> Tensor:
    """[W, B, D / W] to [B, D]."""
    return columns_WBd.transpose(0, 1).flatten(1)
