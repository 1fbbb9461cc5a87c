"""The weights path: what it learns sits in a model's weights, and nothing stands in the prompt.

A projection of the ledger like every path: what the ledger holds for this place and the weights have not learnt is
learnt before the next use. Which weights train, on which text, towards which loss and beside what else are axes, given
as objects.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tqdm.auto import tqdm

from memory_paths.files import write_durably
from memory_paths.ledger import Change, Ledger
from memory_paths.types import (
    DEFAULT_NAMESPACE,
    Capabilities,
    Cost,
    Knowledge,
    Phrasing,
    Query,
    Reading,
    Receipt,
    TooLarge,
    Trains,
    Usage,
)

from .batches import Encoded, TrainingBatch, collate, encode, part_of, share_of
from .distributed import DataParallel
from .journal import Journal, read_patch, size, write_patch
from .memory_rows import MemoryRows
from .merging import Merging, NoMerging
from .objective import Distillation, NegativeLogLikelihood, Objective, divergence, logits_of, token_losses
from .on_policy import PolicyGradient, SelfDistillation
from .penalty import NoPenalty, Penalty
from .projection import NoProjection, Projection
from .rehearsal import NoRehearsal, Rehearsal
from .schedule import Constant, Schedule
from .setting import Demanding, Setting
from .storage import store, stored
from .study import AsGiven, Phrasings, Study
from .weights import Aim, LossFunction, Weights

logger = logging.getLogger(__name__)

STATE_VERSION = 4
DRIFT_SEQUENCES, DRIFT_BATCH = 64, 16
LEARNT, JOURNAL = "learnt", "journal"
PATCH, ITEMS = "patch.safetensors", "items.jsonl"

Forgetting = Literal["exact", "approximate"]


@dataclass(frozen=True)
class Budget:
    """How long one write studies.

    Args:
        steps: Most optimiser steps for each write.
        batch: Most phrasings of new items in one step. An item's phrasings stay together (in groups of so many where
            it has more), as many items as fit: slots are chosen for each step, and fewer items in a step make the
            choice more specific.
        passes: A write ends earlier where it has been over all its items so often; None: it never does.
        effort: Multiplies steps and passes, above 0: the one number that means more or less study for every path.
        accumulation: Forward and backward passes of a step, each with a part of its texts: the same in less memory.
            What a penalty or a projection draws is not divided. For the plain objective alone: others draw texts of
            their own, or choose among those of a whole step.
    """

    steps: int = 40
    batch: int = 96
    passes: int | None = None
    effort: float = 1.0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, 1 if self.passes is None else self.passes, self.accumulation) < 1:
            raise ValueError(
                f"steps, batch, passes and accumulation must be at least 1, got {self.steps}, {self.batch}, "
                f"{self.passes} and {self.accumulation}"
            )
        if not self.effort > 0:
            raise ValueError(f"effort must be above 0, got {self.effort}")

    @property
    def most_steps(self) -> int:
        """Most steps of a write, effort counted in."""
        return max(1, round(self.steps * self.effort))

    @property
    def most_passes(self) -> int | None:
        """Most passes of a write, effort counted in."""
        return None if self.passes is None else max(1, round(self.passes * self.effort))


class WeightsPath:
    """Knowledge in weights; a `MemoryPath`.

    One namespace per model copy: the first write binds it, also one that the ledger remembers; another one is refused.

    Args:
        lm: A model that trains.
        ledger: The one truth.
        weights: What trains, and how it gets into the model.
        study: How items become training text.
        objective: What a step minimises.
        rehearsal: What is studied again beside the new items; by default nothing.
        penalty: What holds the weights back; by default nothing.
        projection: What a step's gradient must not work against; by default nothing.
        schedule: How the learning rate goes over a write; by default it stays.
        merging: What is kept of the way that the weights went in a write; by default all of it.
        budget: Steps and batch size of a write.
        forgetting: "exact": the weights are rewound to before the first write of what is forgotten, and what came after
            is learnt again, so that they are, to the byte, those of a model that never saw it. "approximate": the rows
            that only those writes have changed are put back, and what else these had taught is learnt again; quick,
            and leaves a residue, which the receipt tells. For `weights=memory` alone.
        journal_bytes: Room for what each write has changed; what is forgotten of an older write is relearnt from the
            start.
        background: Phrasings of what the model knows already, for slot statistics and rehearsal.
        name: The place in the ledger.
        seed: Order of study.
        progress: Whether a write shows a bar (never off a terminal).
        parallel: The processes that study together; None: this one alone.

    Raises:
        TypeError: A model that does not train.
        ValueError: Axes that do not go together, or that need phrasings of what the model knows where there are none;
            weights that do not fit the model; an option out of its range.
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
        penalty: Penalty | None = None,
        projection: Projection | None = None,
        schedule: Schedule | None = None,
        merging: Merging | None = None,
        budget: Budget | None = None,
        forgetting: Forgetting = "exact",
        journal_bytes: int = 64 * 2**20,
        background: Sequence[Phrasing] | None = None,
        name: str = "weights",
        seed: int = 0,
        progress: bool = True,
        parallel: DataParallel | None = None,
    ) -> None:
        if not isinstance(lm, Trains):
            raise TypeError(
                f"path {name!r} writes into weights and needs a model that trains; {type(lm).__name__} does not"
            )
        self.name = name
        self.capabilities = Capabilities(changes_weights=True, forgets=True, namespaces=False)
        self._lm = lm
        self._ledger = ledger
        self._weights = weights
        self._study: Study = study if study is not None else Phrasings()
        self._objective: Objective = objective if objective is not None else NegativeLogLikelihood()
        self._rehearsal: Rehearsal = rehearsal if rehearsal is not None else NoRehearsal()
        self._penalty: Penalty = penalty if penalty is not None else NoPenalty()
        self._projection: Projection = projection if projection is not None else NoProjection()
        self._schedule: Schedule = schedule if schedule is not None else Constant()
        self._merging: Merging = merging if merging is not None else NoMerging()
        self._budget = budget if budget is not None else Budget()
        if self._budget.accumulation > 1 and not isinstance(self._objective, NegativeLogLikelihood):
            raise ValueError(
                f"accumulation={self._budget.accumulation} divides steps of objective=nll; "
                f"{type(self._objective).__name__} looks at a whole step: accumulation=1"
            )
        if isinstance(self._study, AsGiven) and _needs_prompts(self._objective, self._rehearsal):
            raise ValueError(
                f"{type(self._objective).__name__} works on the questions and prompts of what is studied, and "
                "study=as_given has none: study=phrasings, or objective=nll"
            )
        for axis in (weights, self._objective, self._rehearsal, self._penalty, self._projection):
            if isinstance(axis, Demanding):
                axis.check(weights, tuple(background or ()))
        if forgetting not in get_args(Forgetting):
            raise ValueError(f"forgetting must be one of {', '.join(get_args(Forgetting))}, got {forgetting!r}")
        if forgetting == "approximate" and not isinstance(weights, MemoryRows):
            raise ValueError(
                "forgetting=approximate puts back the rows of a memory that a write alone has changed, and "
                f"{type(weights).__name__} has none: forgetting=exact, or weights=memory"
            )
        if journal_bytes < 0:
            raise ValueError(f"journal_bytes must be at least 0, got {journal_bytes}")
        self._forgetting = forgetting
        self._journal = Journal(journal_bytes)
        self._owed = Cost()
        self._background = tuple(background or ())
        self._seed = seed
        self._progress = progress
        self._parallel = parallel if parallel is not None and parallel.count > 1 else None
        self._divided = ""
        self._settings = self._hash_of_settings()
        if self._parallel:
            axes = (self._weights, self._objective, self._rehearsal, self._penalty, self._projection, self._merging)
            self._parallel.check(lm, ledger, *axes)
            if self._parallel.pool == "sharded":
                self._divided = lm.weights_hash()  # no process alone could take it afterwards
        with lm.altered():
            self._weights.fit(lm)
            if self._parallel:
                self._objective, self._projection = self._parallel.join(lm, self._weights, self._objective)
        self._applied = False
        self._blocks = 0
        self._texts: dict[str, Sequence[Phrasing]] = {}
        self._prepared = False
        self._closed = False
        # Versions of each write in its order: forgetting replays them without the forgotten ones.
        self._writes: list[list[int]] = []
        self._position = 0
        self._namespace: str | None = None

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Learn the items that are new, then record them; what is over when it comes, since something later holds under
        its key already or comes with it, is recorded alone.

        Raises:
            FloatingPointError: The loss or a weight is not finite. The weights are as before and nothing is recorded.
            ValueError: An active id with another text, an item that does not hold yet or of which nothing can be
                learnt, or a second namespace.
            TooLarge: A phrasing with a prompt that is longer than the window.
        """
        self._check(namespace)
        self._catch_up()
        self._refuse_future(items)
        arriving = set(self._ledger.foresee(items, place=self.name, namespace=namespace))
        new = list({item.id: item for item in items if item.id in arriving}.values())
        before = dict(self._weights.state())
        details = self._learn(new) if new else {}
        self._record(items, new, namespace, before)
        return Receipt(tuple(dict.fromkeys(item.id for item in items)), self._paid(), details=details)

    def _record(
        self,
        items: Sequence[Knowledge],
        learnt: Sequence[Knowledge],
        namespace: str,
        before: Mapping[str, torch.Tensor],
    ) -> None:
        """Acknowledge items of which the weights have just learnt some; if that fails, they are as before. What is
        acknowledged and not noted is learnt by the next catching up."""
        try:
            self._ledger.record(items, place=self.name, namespace=namespace)
            self._namespace = namespace
            calls = filter(None, _arrived(self._ledger.changes(place=self.name, after=self._position)))
            first = next(calls, [])
            if learnt and [change.item.id for change in first] == [item.id for item in learnt]:
                self._note([change.version for change in first], before)
            elif learnt:  # another process has come in between: in its order
                self._weights.load_state(before)
        except BaseException:
            self._weights.load_state(before)
            raise
        self._catch_up()

    def _note(self, versions: list[int], before: Mapping[str, torch.Tensor]) -> None:
        self._journal = self._journal.appended(before, self._weights.state())
        self._writes = [*self._writes, versions]

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """See `MemoryPath`.

        Raises:
            ValueError: A second namespace, or an item that does not hold yet.
            TooLarge: A phrasing with a prompt that is longer than the window.
        """
        self._check(namespace)
        self._refuse_future(items)
        self._studied(items)

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """Empty readings: the knowledge is in the model.

        Raises:
            ValueError: A query of another namespace, about another time (weights have no past), or of some items only.
        """
        for query in queries:
            self._check(query.namespace)
            if query.as_of is not None:
                raise ValueError(
                    f"path {self.name!r} cannot answer as of {query.as_of}: weights keep no past; use path=rag"
                )
            if query.kinds or query.where:
                raise ValueError(
                    f"path {self.name!r} cannot answer from some of its items (kinds {query.kinds}, where"
                    f" {dict(query.where)}): weights answer from all that they learnt; use path=rag"
                )
        return [Reading() for _ in queries]

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids; see the argument `forgetting` for how far the weights do.

        Returns:
            The ids that were held, the cost of what was learnt again, and as `details` `relearnt` (items learnt again)
            and, where something was held, `residue`: by how many nats per target token what was forgotten is likelier
            than to the untouched model. A model that never saw it may find it likelier too, for it has learnt others
            like it: compare with the residue of the exact way.
        """
        self._check(namespace)
        self._catch_up()
        gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="forgotten")
        return self._relearnt(gone, self._catch_up())

    def _relearnt(self, gone: Sequence[str], learnt: Receipt) -> Receipt:
        return Receipt(tuple(gone), self._paid(), details={"relearnt": len(learnt.ids), **learnt.details})

    def _paid(self) -> Cost:
        """What has been learnt since the last receipt, which the next one is to tell."""
        owed, self._owed = self._owed, Cost()
        return owed

    def undo(self, namespace: str = DEFAULT_NAMESPACE) -> Receipt:
        """Take back the last write. The weights are, to the byte, what they were before it, unless something was
        forgotten by approximation meanwhile; what the write superseded stays superseded.

        Raises:
            ValueError: Nothing has been written.
        """
        self._check(namespace)
        self._catch_up()
        if not self._writes:
            raise ValueError(f"path {self.name!r} has no write to undo")
        last = set(self._writes[-1])
        ids = [version.item.id for version in self._ledger.get(last).values()]
        # Not "forgotten": that would reach earlier versions of the same ids, which earlier writes have taught.
        gone = self._ledger.remove(ids, place=self.name, namespace=namespace, reason="evicted")
        return self._relearnt(gone, self._catch_up(undone=last))

    def export_patch(self, folder: str | Path, namespace: str = DEFAULT_NAMESPACE) -> Path:
        """The last write as a folder that `import_patch` carries to another copy of the same model: the rows that it
        changed, in `patch.safetensors`, and its items.

        Raises:
            ValueError: Nothing has been written, the weights are not rows of a memory, or the journal has no more room
                for the write.
        """
        folder = Path(folder)
        self._check(namespace)
        self._catch_up()
        if not self._writes:
            raise ValueError(f"path {self.name!r} has no write to carry")
        after = self._weights.state()
        before = self._journal.rewound(after, len(self._writes) - 1)
        if before is None:
            raise ValueError(
                f"path {self.name!r} does not remember what its last write changed: journal_bytes was too small for "
                "it, or something was forgotten by approximation"
            )
        taught = [version.item for version in self._ledger.get(self._writes[-1]).values()]
        items = "".join(f"{item.to_json()}\n" for item in taught).encode()
        write_durably(folder / ITEMS, items, part="patch")
        write_patch(folder / PATCH, before, after, model=self._basis(), items=items)
        return folder

    def _basis(self) -> str:
        """Hash of all that a state depends on.

        Raises:
            RuntimeError: What was learnt is in the model at the moment.
        """
        if self._applied:
            raise RuntimeError(f"path {self.name!r} has lent its model out; leave the `with` block of model() first")
        model = self._divided or self._lm.weights_hash()
        return hashlib.sha256(f"{model} {self._weights.fingerprint()}".encode()).hexdigest()

    def _hash_of_settings(self) -> str:
        """Hash of what says how a write learns: with another one the same items would lead to other weights."""
        public = {name: value for name, value in vars(self._weights).items() if not name.startswith("_")}
        # Where something lies does not change what it says.
        weights = {name: value for name, value in public.items() if not isinstance(value, Path | None)}
        axes = (self._study, self._objective, self._rehearsal, self._penalty, self._projection, self._schedule)
        said = repr((sorted(weights.items()), axes, self._merging, self._budget, self._seed, self._background))
        return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", said).encode()).hexdigest()

    def import_patch(self, folder: str | Path, namespace: str = DEFAULT_NAMESPACE) -> Receipt:
        """Take in a write of another copy, without learning.

        Raises:
            FileNotFoundError: There is no patch in the folder.
            ValueError: A patch for another model, for rows that are not as they were when it was made, or of items that
                are held here already. Nothing is changed then.
        """
        folder = Path(folder)
        self._check(namespace)
        self._catch_up()
        before = dict(self._weights.state())
        content = (folder / ITEMS).read_bytes() if (folder / ITEMS).is_file() else b""
        after = read_patch(folder / PATCH, before, model=self._basis(), items=content)
        items = [Knowledge.from_json(line) for line in content.decode().split("\n") if line]
        self._refuse_future(items)
        arriving = self._ledger.foresee(items, place=self.name, namespace=namespace)
        if others := [item.id for item in items if item.id not in arriving]:
            raise ValueError(
                f"{folder} carries items that are held here already, or instead of which others hold by now: "
                f"{', '.join(others[:5])}"
            )
        self._weights.load_state(after)
        self._record(items, items, namespace, before)
        return Receipt(tuple(item.id for item in items), self._paid())

    def items(self, namespace: str) -> list[Knowledge]:
        """What the ledger holds active at this place."""
        self._check_open()
        return self._ledger.active(place=self.name, namespace=namespace)

    @contextmanager
    def model(self, lm: Any) -> Iterator[Any]:
        """The lent model with what was learnt in its weights; other threads wait for the model meanwhile."""
        self._check_open()
        with lm.altered():
            if self._applied:
                yield lm
                return
            self._catch_up()
            self._applied = True
            try:
                with self._in_place():
                    yield lm
            finally:
                self._applied = False

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """What was learnt is in the model's weights."""
        with self._weights.applied(self._lm.module):
            self._blocks += 1
            try:
                yield
            finally:
                self._blocks -= 1

    def flush(self) -> None:
        """Learn what the ledger holds and the weights do not; unlearn what it no longer holds."""
        self._check_open()
        self._catch_up()

    def state_hash(self) -> str:
        """See `MemoryPath`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._weights.state().items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        for item in self._held().values():
            digest.update(item.content_hash().encode())
        return digest.hexdigest()

    def stored_bytes(self) -> int:
        """Bytes of the learnt tensors, of the journal, and of the items in the ledger, from which they could be learnt
        again."""
        return size(self._weights.state()) + size(self._journal.state()) + self._ledger.stored_bytes(place=self.name)

    def save(self, folder: Path) -> None:
        """Write the tensors and the journal, with a checksum, the hash of the model that they belong to, and that of
        the ledger's history up to here.

        Raises:
            RuntimeError: What was learnt is in the lent model at the moment (`model`).
            OSError: The disk is full or cannot be written; an earlier save in the folder is as it was.
        """
        self._check_open()
        self._catch_up()
        described = {
            "writes": self._writes,
            "undoable": self._journal.kept,
            "position": self._position,
            "history": self._ledger.fingerprint(self._position),
            "namespace": self._namespace,
            "model": self._basis(),
            "settings": self._settings,
        }
        parts = {LEARNT: self._weights.state(), JOURNAL: self._journal.state()}
        tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        store(folder, LEARNT, tensors, described, version=STATE_VERSION)

    def load(self, folder: Path) -> None:
        """See `MemoryPath`. Where this path would learn in another way than the one that was saved, nothing is rewound
        to what that had learnt: whatever is forgotten later, all is learnt again in this way.

        Raises:
            FileNotFoundError: The folder holds no saved weights path.
            ValueError: Another format version, a damaged file, tensors that were learnt on another model, or beside
                another ledger.
        """
        self._check_open()
        described, tensors = stored(folder, LEARNT, "weights path", version=STATE_VERSION)
        if described["model"] != self._basis():
            raise ValueError(
                f"what {folder} holds was learnt on another model than {self._lm.name!r}, or with other weights than "
                "these; load those"
            )
        if described["history"] != self._ledger.fingerprint(described["position"]):
            raise ValueError(
                f"what {folder} holds was learnt from another ledger than {self._ledger.file}, or from a later "
                "state of it; open that one, or leave the folder out and learn again from this one"
            )
        learnt, journal = (
            {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
            for part in (LEARNT, JOURNAL)
        )
        self._weights.load_state(learnt)
        self._writes, self._position = described["writes"], described["position"]
        kept = described["undoable"] if described["settings"] == self._settings else ()
        self._journal = self._journal.restored(journal if kept else {}, len(self._writes), kept)
        self._namespace = described["namespace"]

    def close(self) -> None:
        """See `MemoryPath`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"path {self.name!r} is closed; open another one")

    def _check(self, namespace: str) -> None:
        self._check_open()
        for change in self._ledger.changes(place=self.name, after=self._position):
            self._namespace = self._namespace or change.namespace
        if self._namespace not in (None, namespace):
            raise ValueError(
                f"weights hold one namespace per model copy; this path holds {self._namespace!r} and was given "
                f"{namespace!r}. Build another agent for it, or use path=rag"
            )

    def _refuse_future(self, items: Sequence[Knowledge]) -> None:
        now = self._ledger.now()
        for item in items:
            if item.valid_from is not None and item.valid_from > now:
                raise ValueError(
                    f"item {item.id!r} holds from {item.valid_from} on, and weights learn at once; write it then, or "
                    "use path=rag"
                )

    def _held(self) -> dict[str, Knowledge]:
        """What the ledger has at this place and has not taken away, valid now or not, by id."""
        held: dict[int, Knowledge] = {}
        for change in self._ledger.changes(place=self.name):
            if change.action == "add":
                held[change.version] = change.item
            elif change.action == "remove":
                held.pop(change.version, None)
        return {item.id: item for item in held.values()}

    def _catch_up(self, undone: Set[int] = frozenset()) -> Receipt:
        """Replay what the ledger says since last time. If learning fails, weights and position are as they were.

        Args:
            undone: Versions that are to be taken back whatever the ledger says.

        Returns:
            The ids that were learnt for it, and, where something was forgotten, its residue.
        """
        changes = self._ledger.changes(place=self.name, after=self._position)
        if not changes and not undone:
            return Receipt(())
        if len(namespaces := {change.namespace for change in changes} | ({self._namespace} - {None})) > 1:
            raise ValueError(
                f"weights hold one namespace per model copy; the ledger has {sorted(map(str, namespaces))} here"
            )
        learnt = {version for write in self._writes for version in write}
        # What is superseded stays: the new text is learnt over it. What is forgotten or moved away must not have been.
        gone = {change.version for change in changes if change.action == "remove" and change.reason != "superseded"}
        gone |= undone
        arrived = [
            [change.version for change in write if change.version not in learnt | gone] for write in _arrived(changes)
        ]
        state, writes, journal = dict(self._weights.state()), self._writes, self._journal
        ids = []
        try:
            taken_back = self._take_back(gone) if gone & learnt else []
            for write in filter(None, (*taken_back, *arrived)):
                before = dict(self._weights.state())
                items = [version.item for version in self._ledger.get(write).values()]
                self._learn(items)
                ids += [item.id for item in items]
                self._note(write, before)
        except BaseException:
            self._weights.load_state(state)
            self._writes, self._journal = writes, journal
            raise
        if changes:
            self._position = changes[-1].position
            self._namespace = changes[-1].namespace
        details = {"residue": self._residue(sorted(gone & learnt))} if gone & learnt else {}
        return Receipt(tuple(ids), details=details)

    def _take_back(self, gone: set[int]) -> list[list[int]]:
        """Take writes with these versions out of the weights; returns what is to be learnt again, write by write."""
        state, journal = self._weights.state(), self._journal
        touched = [place for place, write in enumerate(self._writes) if gone.intersection(write)]
        last = touched == list(range(touched[0], len(self._writes)))  # then nothing else would have to be relearnt
        if self._forgetting == "approximate" and not last and all(journal.separable(place) for place in touched):
            for place in reversed(touched):
                state = journal.without(state, place, touched)
            again = [self._writes[place] for place in touched]
            self._writes = [write for place, write in enumerate(self._writes) if place not in touched]
            self._journal = journal.dropped(len(self._writes))
        else:
            rewound = journal.rewound(state, touched[0])
            first, state = (0, {}) if rewound is None else (touched[0], rewound)
            again, self._writes = self._writes[first:], self._writes[:first]
            self._journal = journal.cut(first)
        self._weights.load_state(state)
        remaining = [[version for version in write if version not in gone] for write in again]
        return [write for write in remaining if write]

    def _residue(self, versions: Sequence[int]) -> float:
        """See `forget`."""
        studied = self._studied([version.item for version in self._ledger.get(versions).values()])
        sequences = [sequence for group in studied for sequence in group]
        drawn = random.Random(f"residue/{self._seed}").sample(sequences, min(DRIFT_SEQUENCES, len(sequences)))
        module = self._lm.module
        gains: list[torch.Tensor] = []
        with self._lm.altered(), self._in_place(), torch.no_grad():
            for start in range(0, len(drawn), DRIFT_BATCH):
                batch = collate(self._lm, drawn[start : start + DRIFT_BATCH])
                with self._weights.holding(module, {}):
                    untouched = token_losses(logits_of(module, batch), batch)
                gains.append(untouched - token_losses(logits_of(module, batch), batch))
        return float(torch.cat(gains).mean())

    def _learn(self, items: Sequence[Knowledge]) -> Mapping[str, Any]:
        """Study, and note what it cost; the details of a receipt come back."""
        lm, module = self._lm, self._lm.module
        studied = self._studied(items)
        if self._parallel:
            self._parallel.agree(self.state_hash(), self._settings, studied)
        began, tokens, flops = time.perf_counter(), 0, 0.0
        if not self._prepared:
            with lm.altered():
                tokens = self._weights.prepare(lm, self._background)
            flops = lm.forward_flops(tokens // max(1, len(self._background))) * len(self._background) if tokens else 0.0
            self._prepared = True
            if self._writes:
                tokens, flops = 0, 0.0  # charged to the first write, in whichever process that was
        total = sum(len(sequences) for sequences in studied)
        losses: list[float] = []
        order: list[list[Encoded]] = []
        begun = 0
        with lm.altered(), self._in_place(), self._weights.training(module) as trainer:
            flops_of = cache(lm.forward_flops)  # walks through all modules, which stay as they are in this block

            def charge(batch: TrainingBatch, passes: float) -> None:
                nonlocal tokens, flops
                count = len(batch.tokens)
                tokens += batch.token_count
                flops += passes * count * flops_of(batch.tokens.shape[1])  # padding is work too

            setting = Setting(
                lm=lm,
                weights=self._weights,
                background=self._background,
                recall=cache(partial(self._taught, {item.key for item in items})),
                generator=random.Random(f"{self._seed}/{len(self._writes)}"),
                before=dict(self._weights.state()),
                charge=charge,
            )
            generator = setting.generator
            # Whatever they draw, the order of study stays the same.
            restraint = self._penalty(self._apart(setting, "penalty"), trainer)
            project = self._projection(self._apart(setting, "projection"), trainer)
            aiming = self._apart(setting, "objective")
            rehearsal = self._rehearsal(setting)
            merge = self._merging(self._apart(setting, "merging"))
            if restraint.settle or merge:
                trainer.remember()
            passes = self._budget.most_passes
            quiet = None if self._progress else True
            for number in tqdm(range(self._budget.most_steps), f"{self.name}: studying", leave=False, disable=quiet):
                gone_over = (begun - len(order) / len(studied)) / passes if passes else 0.0
                chosen: list[Encoded] = []
                while len(chosen) < self._budget.batch and len(chosen) < total:
                    if not order:
                        if begun == passes:
                            break
                        order, begun = generator.sample(studied, len(studied)), begun + 1
                    if chosen and len(chosen) + len(order[-1]) > self._budget.batch:
                        break
                    chosen += order.pop()
                if not chosen:
                    break
                batch = collate(lm, chosen, rehearsed=encode(lm, next(rehearsal)))
                # Both listen to earlier selves first: their passes must not come between a pass and its gradients.
                term = restraint.term(batch) if restraint.term else None
                aims = self._aims(aiming, batch, term)
                rate_share = self._schedule(max(number / self._budget.most_steps, gone_over))
                try:
                    losses.append(trainer.step(aims, project, restraint.settle, rate_share))
                    lm.weights_changed()  # a fused optimiser does not raise the versions of its tensors
                except FloatingPointError as error:
                    raise FloatingPointError(f"step {number + 1} of a write to {self.name!r}: {error}") from error
                for aim in aims:
                    charge(aim.batch, 1 + self._weights.backward)
            if merge:
                trainer.settle(merge)
            seconds = time.perf_counter() - began
            drift = self._drift([sequence for group in studied for sequence in group])
        details = {"first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses)}
        measures = {"kl_on_new": drift, **self._weights.measures()}
        self._owed += Cost(lm=Usage(tokens=tokens, flops=flops, seconds=seconds))
        return {**details, "measures": measures}

    def _aims(self, setting: Setting, batch: TrainingBatch, term: LossFunction | None) -> list[Aim]:
        """The objective on each part of a step, whose losses add up to that of the step."""
        count = min(self._budget.accumulation, len(batch.tokens))
        if count == 1:
            aim = self._objective(setting, batch)
            return [aim if term is None else replace(aim, loss=partial(_sum, aim.loss, term))]
        aims = []
        for number in range(count):
            aim = self._objective(setting, part_of(batch, number, count))
            share = share_of(batch, number, count)
            aims.append(replace(aim, loss=partial(_sum, aim.loss, None if number else term, share)))
        return aims

    def _apart(self, setting: Setting, axis: str) -> Setting:
        return replace(setting, generator=random.Random(f"{axis}/{self._seed}/{len(self._writes)}"))

    def _taught(self, arriving: Set[str]) -> list[Phrasing]:
        """What the writes so far have studied, as far as it is neither forgotten nor superseded by one of them or by
        what arrives now."""
        found = self._ledger.get([version for write in self._writes for version in write])
        latest = {version.item.key or f"\0{number}": version.item for number, version in found.items()}
        kept = [item for item in latest.values() if not item.key or item.key not in arriving]
        return [phrasing for texts in self._study_texts(kept) for phrasing in texts]

    def _study_texts(self, items: Sequence[Knowledge]) -> list[Sequence[Phrasing]]:
        """The study texts of each item. Those that the model writes are the untouched model's, so that an item is
        studied the same whenever it is learnt again."""
        hashes = [item.content_hash() for item in items]
        missing = {of: item for of, item in zip(hashes, items, strict=True) if of not in self._texts}
        if missing:
            with self._lm.altered(), self._weights.holding(self._lm.module, {}) if self._blocks else nullcontext():
                found = self._study(list(missing.values()), self._lm)
            for of, texts in zip(missing, found, strict=True):
                self._texts[of] = texts.phrasings
                self._owed += Cost(lm=texts.usage)
        return [self._texts[of] for of in hashes]

    def _drift(self, sequences: Sequence[Encoded]) -> float:
        """How far the answers' distribution has gone from the untouched model's on what was just studied: the mean
        divergence in nats per target token, which foretells forgetting (Shenfeld et al. 2025, arXiv 2509.04259)."""
        module = self._lm.module
        drawn = random.Random(f"drift/{self._seed}").sample(list(sequences), min(DRIFT_SEQUENCES, len(sequences)))
        found: list[torch.Tensor] = []
        with torch.no_grad():
            for start in range(0, len(drawn), DRIFT_BATCH):
                batch = collate(self._lm, drawn[start : start + DRIFT_BATCH])
                with self._weights.holding(module, {}):
                    known = logits_of(module, batch)[batch.predicting]
                found.append(divergence(known, logits_of(module, batch)[batch.predicting]))
        return float(torch.cat(found).mean())

    def _studied(self, items: Sequence[Knowledge]) -> list[list[Encoded]]:
        """The sequences of each item; an item with more than a step holds is several groups."""
        size = self._budget.batch
        groups = []
        for item, texts in zip(items, self._study_texts(items), strict=True):
            try:
                sequences = encode(self._lm, texts, item.text)
            except TooLarge as error:
                raise TooLarge(f"item {item.id!r}: {error}", items=[item.id]) from error
            if not sequences:
                raise ValueError(f"item {item.id!r} has nothing to learn: each of its study texts is one token or none")
            groups += [sequences[start : start + size] for start in range(0, len(sequences), size)]
        return groups


def _needs_prompts(objective: Objective, rehearsal: Rehearsal) -> bool:
    """Whether an objective has nothing to do in a step where nothing that is studied has a prompt."""
    listens = isinstance(objective, Distillation) and objective.source == "new" and isinstance(rehearsal, NoRehearsal)
    return listens or isinstance(objective, SelfDistillation | PolicyGradient)


def _arrived(changes: Sequence[Change]) -> list[list[Change]]:
    """What came to a place and was to be learnt, call by call; what the same call has superseded was over when it
    came."""
    calls: dict[float, dict[int, Change]] = {}
    for change in changes:
        call = calls.setdefault(change.recorded_at, {})
        if change.action == "add":
            call[change.version] = change
        elif change.action == "remove":
            call.pop(change.version, None)
    return [list(call.values()) for call in calls.values()]


def _sum(loss: LossFunction, term: LossFunction | None, share: float = 1.0) -> torch.Tensor:
    """The loss is called first: slots are chosen by the reads of the first pass that takes gradients."""
    found = share * loss()
    return found if term is None else found + term()


def _bytes(tensor: Any) -> bytes:
    content: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content
