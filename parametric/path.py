"""The weights path: what it learns sits in a model's weights, and nothing stands in the prompt.

A projection of the ledger like every path: what the ledger holds for this place and the weights have not learnt is
learnt
before the next use. Which weights train, on which text, towards which loss and beside what else are axes, given as
objects.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from memory_paths.ledger import Ledger
from memory_paths.types import (
    DEFAULT_NAMESPACE,
    Capabilities,
    Cost,
    Knowledge,
    Phrasing,
    Query,
    Reading,
    Receipt,
    Trains,
    Usage,
)

from .batches import collate
from .objective import NegativeLogLikelihood, Objective
from .rehearsal import NoRehearsal, Rehearsal
from .study import Phrasings, Study
from .weights import Weights

logger = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(frozen=True)
class Budget:
    """How long one write studies.

    Args:
        steps: Optimiser steps for each write.
        batch: Most phrasings of new items in one step.
    """

    steps: int = 80
    batch: int = 96

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps} and {self.batch}")


class WeightsPath:
    """Knowledge in weights; a `MemoryPath`.

    One namespace per model copy: the first write binds it, another one is refused.

    Args:
        lm: A model that trains.
        ledger: The one truth.
        weights: What trains, and how it gets into the model.
        study: How items become training text.
        objective: What a step minimises.
        rehearsal: What is studied again beside the new items; by default nothing.
        budget: Steps and batch size of a write.
        background: Phrasings of what the model knows already, for slot statistics and rehearsal.
        name: The place in the ledger.
        seed: Order of study.
        progress: Whether a write shows a bar (never off a terminal).
    """

    def __init__(
        self,
        lm: Any,
        ledger: Ledger,
        *,
        weights: Weights,
        study: Study | None = None,
        objective: Objective | None = None,
        rehearsal: Rehearsal | None = None,
        budget: Budget | None = None,
        background: Sequence[Phrasing] = (),
        name: str = "weights",
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if not isinstance(lm, Trains):
            raise TypeError(
                f"path {name!r} writes into weights and needs a model that trains; {type(lm).__name__} does not"
            )
        self.name = name
        self.capabilities = Capabilities(changes_weights=True, forgets=True, undoes=False, namespaces=False)
        self._lm = lm
        self._ledger = ledger
        self._weights = weights
        self._study: Study = study if study is not None else Phrasings()
        self._objective: Objective = objective if objective is not None else NegativeLogLikelihood()
        self._rehearsal: Rehearsal = rehearsal if rehearsal is not None else NoRehearsal()
        self._budget = budget if budget is not None else Budget()
        self._background = tuple(background)
        self._seed = seed
        self._progress = progress
        self._prepared = False
        self._closed = False
        # Ids of each write in its order: forgetting replays them without the forgotten ones.
        self._writes: list[list[str]] = []
        self._namespace: str | None = None

    def write(self, items: Sequence[Knowledge], namespace: str = DEFAULT_NAMESPACE) -> Receipt:
        """Learn the items that are new, then record them.

        Raises:
            FloatingPointError: The loss is not finite. The weights are as before and nothing is recorded.
            ValueError: An active id with another text, a second namespace, or a text longer than the window.
        """
        self._bind(namespace)
        self._catch_up()
        held = {item.id: item for item in self.items(namespace)}
        for item in items:
            if item.id in held and held[item.id].content_hash() != item.content_hash():
                raise ValueError(
                    f"item {item.id!r} is active with another text; forget it first, or write the new text under a "
                    "new id with the same key"
                )
        new = list({item.id: item for item in items if item.id not in held}.values())
        before = dict(self._weights.state())
        cost, details = self._learn(new) if new else (Cost(), {})
        try:
            self._ledger.record(items, place=self.name, namespace=namespace)
        except BaseException:
            self._weights.load_state(before)
            raise
        if new:
            self._writes.append([item.id for item in new])
        return Receipt(tuple(item.id for item in items), cost, details=details)

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """Empty readings: the knowledge is in the model."""
        for query in queries:
            self._bind(query.namespace)
        return [Reading() for _ in queries]

    def forget(self, ids: Sequence[str], namespace: str = DEFAULT_NAMESPACE) -> None:
        """Rewind to the untouched model and learn again, write by write, everything but these ids.

        Exact, and as costly as learning it all. The result is what a model would be that never saw the ids.
        """
        self._bind(namespace)
        self._catch_up()
        gone = set(ids) & {item.id for item in self.items(namespace)}
        if not gone:
            return
        known = {item.id: item for item in self._learnt_items()}
        learnt, writes = dict(self._weights.state()), self._writes
        try:
            self._weights.load_state({})
            self._writes = []
            for write in writes:
                if kept := [id for id in write if id not in gone]:
                    self._learn([known[id] for id in kept])
                    self._writes.append(kept)
            self._ledger.remove(sorted(gone), place=self.name, namespace=namespace, reason="forgotten")
        except BaseException:
            self._weights.load_state(learnt)
            self._writes = writes
            raise

    def items(self, namespace: str = DEFAULT_NAMESPACE) -> list[Knowledge]:
        """What the ledger holds active at this place."""
        return self._ledger.active(place=self.name, namespace=namespace)

    @contextmanager
    def model(self, lm: Any) -> Iterator[Any]:
        """The lent model with what was learnt in its weights."""
        self._catch_up()
        with self._weights.applied(lm.module):
            lm.weights_changed()
            try:
                yield lm
            finally:
                lm.weights_changed()

    def flush(self) -> None:
        """Learn what the ledger holds and the weights do not."""
        self._catch_up()

    def state_hash(self) -> str:
        """See `MemoryPath`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._weights.state().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
        for item in self._ledger.active(place=self.name):
            digest.update(item.content_hash().encode())
        return digest.hexdigest()

    def stored_bytes(self) -> int:
        """Bytes of the learnt tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._weights.state().values())

    def save(self, folder: Path) -> None:
        """Write `learnt.safetensors` and `writes.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "learnt.tmp"
        save_file({name: tensor.contiguous() for name, tensor in self._weights.state().items()}, temporary)
        os.replace(temporary, folder / "learnt.safetensors")
        described = {"version": STATE_VERSION, "writes": self._writes, "namespace": self._namespace}
        (folder / "writes.json").write_text(json.dumps(described))

    def load(self, folder: Path) -> None:
        """See `MemoryPath`.

        Raises:
            ValueError: The folder was written by another version.
        """
        described = json.loads((folder / "writes.json").read_text())
        if described["version"] != STATE_VERSION:
            raise ValueError(
                f"{folder} holds version {described['version']} of a weights path; this is {STATE_VERSION}"
            )
        self._weights.load_state(load_file(folder / "learnt.safetensors"))
        self._writes = described["writes"]
        self._namespace = described["namespace"]

    def close(self) -> None:
        """See `MemoryPath`."""
        self._closed = True

    def _bind(self, namespace: str) -> None:
        if self._closed:
            raise RuntimeError(f"path {self.name!r} is closed; open another one")
        if self._namespace is None:
            self._namespace = namespace
        elif namespace != self._namespace:
            raise ValueError(
                f"weights hold one namespace per model copy; this path holds {self._namespace!r} and was given "
                f"{namespace!r}. Build another agent for it, or use path=rag"
            )

    def _learnt_items(self) -> list[Knowledge]:
        """Every item that ever was written here and not forgotten, superseded ones included."""
        learnt: dict[str, Knowledge] = {}
        for change in self._ledger.changes(place=self.name):
            if change.action == "add":
                learnt[change.item.id] = change.item
        return list(learnt.values())

    def _catch_up(self) -> None:
        done = {id for write in self._writes for id in write}
        missing = [item for item in self._ledger.active(place=self.name) if item.id not in done]
        if missing:
            logger.info("learning %d items that the ledger holds and the weights do not", len(missing))
            self._learn(missing)
            self._writes.append([item.id for item in missing])

    def _learn(self, items: Sequence[Knowledge]) -> tuple[Cost, Mapping[str, Any]]:
        lm, module = self._lm, self._lm.module
        if not self._prepared:
            self._weights.prepare(lm, self._background)
            self._prepared = True
        phrasings = self._study(items)
        generator = random.Random(f"{self._seed}/{len(self._writes)}")
        began, tokens, flops, losses = time.perf_counter(), 0, 0.0, []
        order: list[Phrasing] = []
        with self._weights.applied(module):
            lm.weights_changed()
            try:
                with self._weights.training(module) as step:
                    bar = tqdm(
                        range(self._budget.steps), desc=f"{self.name}: studying", leave=False, disable=self._quiet()
                    )
                    for _ in bar:
                        while len(order) < min(self._budget.batch, len(phrasings)):
                            order += generator.sample(phrasings, len(phrasings))
                        chosen, order = order[: self._budget.batch], order[self._budget.batch :]
                        chosen = chosen + self._rehearsal(self._background, generator)
                        batch = collate(lm, chosen)
                        losses.append(step(partial(self._objective, module, batch), batch))
                        tokens += batch.token_count
                        # A backward pass costs two forward passes.
                        flops += 3 * len(chosen) * lm.forward_flops(batch.token_count // len(chosen))
            finally:
                lm.weights_changed()
        usage = Usage(tokens=tokens, flops=flops, seconds=time.perf_counter() - began)
        return Cost(lm=usage), {"first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses)}

    def _quiet(self) -> bool | None:
        return None if self._progress else True
