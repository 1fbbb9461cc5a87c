"""The agent: learns, answers, forgets and explains, in one namespace, along one path or several behind a router.

It knows nothing of how a path stores what it is given, of configuration, or of who scores its answers.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from memory_paths.context import pack
from memory_paths.files import whole_folder
from memory_paths.ledger import Ledger
from memory_paths.router import Fixed, Router
from memory_paths.types import (
    DEFAULT_NAMESPACE,
    Answer,
    Cost,
    Generates,
    Generation,
    Knowledge,
    MemoryPath,
    Prompt,
    Query,
    Reading,
    Receipt,
    Scores,
    Spills,
    TooLarge,
    Trains,
)

STATE_VERSION = 1


@dataclass(frozen=True)
class Score:
    """How likely a given answer is. `loglikelihood` in nats over `tokens` tokens."""

    loglikelihood: float
    tokens: int


@dataclass(frozen=True)
class Explanation:
    """Where an answer came from. `str()` of it is for people."""

    answer: Answer
    sources: tuple[str, ...]

    def __str__(self) -> str:
        confidence = "unknown" if self.answer.confidence is None else f"{self.answer.confidence:.2f}"
        lines = [f"{self.answer.text!r} by path {self.answer.path!r}, confidence {confidence}"]
        lines += self.sources or ("nothing stood in the prompt: the answer came from the model's weights",)
        return "\n".join(lines)


class Agent:
    """One language model, one ledger, one or more paths. Safe to use from several threads; calls are served one by one.

    Args:
        lm: The language model. It is lent to the paths and comes back unchanged.
        paths: By name, the first one being the default.
        ledger: The one truth that the paths share.
        router: Where items go and who answers.
        namespace: Whose knowledge this is.
        max_new_tokens: Longest answer in tokens.
        config: What built this agent, kept so that `Agent.load` can build it again.

    Raises:
        ValueError: No path at all, one that holds a single namespace and has another one already, or a
            `max_new_tokens` for which the window has no room; or a path spills to one that is not there.
        TypeError: The model cannot generate.
    """

    def __init__(
        self,
        lm: Any,
        paths: Mapping[str, MemoryPath],
        ledger: Ledger,
        *,
        router: Router | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        max_new_tokens: int = 32,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not paths:
            raise ValueError("an agent needs at least one path")
        if not isinstance(lm, Generates):
            raise TypeError(
                f"an agent needs a model that generates; {type(lm).__name__} lacks it (see types.Generates)"
            )
        if not 1 <= max_new_tokens < lm.window:
            raise ValueError(f"max_new_tokens must be from 1 to {lm.window - 1}, got {max_new_tokens}")
        for name, path in paths.items():
            if path.name != name:
                raise ValueError(
                    f"path {path.name!r} is given under the name {name!r}; its name is its place in the ledger"
                )
            if isinstance(path, Spills) and path.spills_to not in (None, *paths):
                raise ValueError(
                    f"path {name!r} spills to {path.spills_to!r}, and this agent has the paths {list(paths)}; add that"
                    " path, as with +path@extra=rag +more_paths.rag='${extra.memory}', or choose another eviction"
                )
            if path.capabilities.namespaces:
                continue
            if others := set(ledger.namespaces(place=name)) - {namespace}:
                raise ValueError(
                    f"path {name!r} holds one namespace and has {sorted(others)} already; this agent is bound to"
                    f" {namespace!r}: give it a path and a ledger of its own"
                )
        self.lm = lm
        self.paths = dict(paths)
        self.ledger = ledger
        self.router: Router = router if router is not None else Fixed()
        self.namespace = namespace
        self.config = dict(config) if config is not None else None
        self._max_new_tokens = max_new_tokens
        self._lock = threading.RLock()

    @property
    def path_name(self) -> str:
        """Name of the default path."""
        return next(iter(self.paths))

    def learn(self, items: str | Knowledge | Sequence[Knowledge | str]) -> Receipt:
        """Store knowledge where the router says.

        Args:
            items: Plain text, or items; a plain text becomes an item whose id is its content's hash.

        Raises:
            TypeError: Something else than texts and items.
            ValueError: An active id with another text, or what the path refuses; nothing of that path is stored then.
        """
        given = [items] if isinstance(items, str | Knowledge) else items
        knowledge = [_as_knowledge(item) for item in given]
        names = list(self.paths)
        groups: dict[str, list[Knowledge]] = {}
        for item in knowledge:
            groups.setdefault(self.router.place(item, names), []).append(item)
        cost, pending, details = Cost(), False, {}
        stored: set[str] = set()
        with self._lock:
            for name, group in groups.items():
                receipt = self.paths[name].write(group, self.namespace)
                cost, pending = cost + receipt.cost, pending or receipt.pending
                details[name] = dict(receipt.details)
                stored.update(receipt.ids)
        ids = tuple(dict.fromkeys(item.id for item in knowledge if item.id in stored))
        return Receipt(ids, cost, pending, details)

    def answer(
        self, queries: str | Sequence[str | Query], *, notes: Sequence[Sequence[str]] | None = None
    ) -> list[Answer]:
        """One answer for each query, in order.

        Args:
            queries: Questions in words, or queries. A query of another namespace is refused; the default one stands
                for the agent's own.
            notes: For each query, texts that stand in the prompt in place of what the path would recall.
        """
        asked = self._queries(queries)
        names = list(self.paths)
        with self._lock:
            served = [tuple(self.router.serve(query, names)) for query in asked]
            answers: list[Answer | None] = [None] * len(asked)
            pending = list(range(len(asked)))
            rank = 0
            while pending:
                groups: dict[str, list[int]] = {}
                for index in pending:
                    groups.setdefault(served[index][rank], []).append(index)
                for name, indices in groups.items():
                    given = None if notes is None else [notes[index] for index in indices]
                    for index, new in zip(indices, self._answer(name, [asked[i] for i in indices], given), strict=True):
                        answers[index] = _better(answers[index], new)
                rank += 1
                pending = [
                    index
                    for index in pending
                    if rank < len(served[index]) and not self.router.content(_given(answers[index]))
                ]
        return [_given(answer) for answer in answers]

    def score(
        self, pairs: Sequence[tuple[str | Query, str]], *, notes: Sequence[Sequence[str]] | None = None
    ) -> list[Score]:
        """How likely each given answer is after its question, asked along the default path.

        Raises:
            TypeError: The model does not score.
            TooLarge: An answer that alone fills the window.
        """
        if not isinstance(self.lm, Scores):
            raise TypeError(f"{type(self.lm).__name__} gives no log-likelihoods")
        queries = self._queries([query for query, _ in pairs])
        path = self.paths[self.path_name]
        with self._lock:
            # A given answer stands in the window beside its prompt, however long it is.
            lengths = self.lm.count_answer_tokens(
                [(query.prompt(), answer) for query, (_, answer) in zip(queries, pairs, strict=True)]
            )
            if (longest := max(lengths, default=0)) >= self.lm.window:
                raise TooLarge(
                    f"an answer to be scored has {longest} tokens, the window holds {self.lm.window}; shorten it"
                )
            prompts, _, _ = self._prompts(path, queries, notes, reserves=lengths)
            given = [(prompt, answer) for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
            with path.model(self.lm) as model:
                likelihoods, tokens = model.loglikelihood(given), model.count_answer_tokens(given)
        return [Score(value, count) for value, count in zip(likelihoods, tokens, strict=True)]

    def forget(self, ids: Sequence[str]) -> Receipt:
        """Stop holding these ids, wherever they live. Ids that are not held are ignored.

        Returns:
            The ids that were held and what it cost: paths into weights may have to learn again what came after them.

        Raises:
            ValueError: An id came to a path that cannot forget; nothing is forgotten then, on any path.
        """
        with self._lock:
            for name in self.paths:
                self._refuse_unforgettable(ids, name)
            receipts = {
                name: path.forget(ids, self.namespace) for name, path in self.paths.items() if path.capabilities.forgets
            }
        gone = {id for receipt in receipts.values() for id in receipt.ids}
        cost = sum((receipt.cost for receipt in receipts.values()), Cost())
        details = {name: dict(receipt.details) for name, receipt in receipts.items() if receipt.ids}
        return Receipt(tuple(id for id in dict.fromkeys(ids) if id in gone), cost, details=details)

    def move(self, ids: Sequence[str], *, source: str, target: str) -> None:
        """Take items from one path to another, ids and history kept. If the target cannot hold them, they stay.

        Raises:
            ValueError: No such path, an id that neither path holds, or a source that cannot forget.
            TooLarge: The target has no room; nothing has changed then.
            Exception: What the target says when it cannot take them in; they are back at the source then.
        """
        for name in (source, target):
            if name not in self.paths:
                raise ValueError(f"this agent has the paths {list(self.paths)}, got {name!r}")
        with self._lock:
            self._refuse_unforgettable(ids, source)
            self.paths[target].admit(self._held(ids, source), self.namespace)
            moved = self.ledger.move(ids, source=source, target=target, namespace=self.namespace)
            try:
                self.paths[target].flush()
            except Exception:
                self.ledger.move(moved, source=target, target=source, namespace=self.namespace)
                raise
            finally:
                self.paths[source].flush()

    def _held(self, ids: Sequence[str], place: str) -> list[Knowledge]:
        """What the ledger holds at a place, valid by now or not."""
        return [
            entry.item
            for id in ids
            for entry in self.ledger.history(id, namespace=self.namespace)
            if entry.place == place and entry.reason is None
        ]

    def items(self) -> list[Knowledge]:
        """What the paths hold now."""
        with self._lock:
            return [item for path in self.paths.values() for item in path.items(self.namespace)]

    def explain(self, answer: Answer) -> Explanation:
        """What stood in the prompt of an answer, and where each piece comes from."""
        sources = []
        for recall in answer.recalls:
            source = f", source {recall.item.source!r}" if recall.item.source else ""
            sources.append(f"- {recall.item.text}  (id {recall.item.id!r}, score {recall.score:.3f}{source})")
        return Explanation(answer, tuple(sources))

    def flush(self) -> None:
        """Complete pending writes."""
        with self._lock:
            for path in self.paths.values():
                path.flush()

    def stored_bytes(self) -> int:
        """Bytes kept beyond the untouched model."""
        with self._lock:
            return sum(path.stored_bytes() for path in self.paths.values())

    def state_hash(self) -> str:
        """Changes when anything that could change an answer does."""
        with self._lock:
            return "/".join(path.state_hash() for path in self.paths.values())

    def weights_hash(self) -> str:
        """SHA-256 of the lent model's weights; empty for a model that does not show them."""
        with self._lock:
            return self.lm.weights_hash() if isinstance(self.lm, Trains) else ""

    def save(self, folder: str | Path) -> None:
        """Write everything that `Agent.load` needs (format version 1); after a crash all of it is there, or nothing.

        Args:
            folder: A new or empty one.

        Raises:
            FileExistsError: The folder holds something already.
            OSError, LedgerError: The disk is full or cannot be written; nothing is left then.
        """
        with self._lock, whole_folder(Path(folder), part="agent") as partial:
            self.flush()
            self.ledger.save(partial / "ledger.sqlite")
            for name, path in self.paths.items():
                path.save(partial / "paths" / name)
            described = {"version": STATE_VERSION, "namespace": self.namespace, "config": self.config}
            (partial / "agent.json").write_text(json.dumps(described, indent=1))

    @staticmethod
    def load(folder: str | Path) -> Agent:
        """The agent that was saved there, built again from the configuration that it was saved with.

        Raises:
            FileNotFoundError: The folder holds no agent.
            ValueError: Another format version, or an agent that was assembled by hand (see
                `memory_paths.build.restore`).
        """
        from memory_paths.build import load_saved

        return load_saved(Path(folder))

    def as_runnable(self) -> Any:
        """This agent as a LangChain Runnable: a str, a dict with "question", or messages in; an `Answer` out."""
        from memory_paths.langchain import as_runnable

        return as_runnable(self)

    def close(self) -> None:
        """Release files and locks."""
        with self._lock, ExitStack() as stack:  # one that fails to close must not keep the others open
            stack.callback(self.ledger.close)
            for path in self.paths.values():
                stack.callback(path.close)

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_unforgettable(self, ids: Sequence[str], name: str) -> None:
        if self.paths[name].capabilities.forgets:
            return
        # By the ledger, for weights that cannot forget still know what was superseded or has expired.
        # What was moved away had not been learnt: a path that cannot forget is never moved from.
        kept = [
            id
            for id in ids
            for entry in self.ledger.history(id, namespace=self.namespace)
            if entry.place == name and entry.reason != "moved"
        ]
        if kept:
            raise ValueError(
                f"path {name!r} cannot forget, and {sorted(set(kept))} came to it; build it anew from a ledger without"
                " them, or keep what may have to be forgotten on a path that can (such as path=rag)"
            )

    def _queries(self, queries: str | Sequence[str | Query]) -> list[Query]:
        given = [queries] if isinstance(queries, str) else queries
        asked = [Query(query, self.namespace) if isinstance(query, str) else query for query in given]
        for query in asked:
            if query.namespace not in ("", self.namespace):
                raise ValueError(
                    f"this agent is bound to namespace {self.namespace!r}, the query says {query.namespace!r}"
                )
        return [replace(query, namespace=self.namespace) for query in asked]

    def _prompts(
        self,
        path: MemoryPath,
        queries: Sequence[Query],
        notes: Sequence[Sequence[str]] | None,
        reserves: Sequence[int] | None = None,
    ) -> tuple[list[Prompt], list[Reading], list[Reading]]:
        """Prompts, what was found for them, and what of it stands in them."""
        if notes is not None:
            prompts = [query.prompt(given) for query, given in zip(queries, notes, strict=True)]
            return prompts, [Reading() for _ in queries], [Reading() for _ in queries]
        least = self._max_new_tokens
        kept = [least] * len(queries) if reserves is None else [max(least, reserve) for reserve in reserves]
        found = path.read(queries)
        shown = [
            replace(
                reading,
                recalls=pack(
                    self.lm,
                    query,
                    reading.recalls,
                    budget=None if reading.budget is None else min(reading.budget, self.lm.window - reserve),
                    reserve=reserve,
                    order=reading.order,
                ),
            )
            for query, reading, reserve in zip(queries, found, kept, strict=True)
        ]
        prompts = [
            query.prompt([recall.item.text for recall in reading.recalls])
            for query, reading in zip(queries, shown, strict=True)
        ]
        return prompts, found, shown

    def _answer(self, name: str, queries: Sequence[Query], notes: Sequence[Sequence[str]] | None) -> list[Answer]:
        path = self.paths[name]
        prompts, found, shown = self._prompts(path, queries, notes)
        with path.model(self.lm) as model:
            generations = model.generate(prompts, max_new_tokens=self._max_new_tokens)
        return [
            Answer(
                text=generation.text,
                path=name,
                recalls=reading.recalls,
                offered=tuple(recall.item.id for recall in offered.recalls),
                confidence=_confidence(generation),
                prompt_hash=generation.prompt_hash,
                cost=reading.cost + Cost(lm=generation.usage),
            )
            for generation, offered, reading in zip(generations, found, shown, strict=True)
        ]


def _as_knowledge(item: Any) -> Knowledge:
    if isinstance(item, Knowledge):
        return item
    if not isinstance(item, str):
        raise TypeError(
            f"an agent learns texts and Knowledge, got {type(item).__name__}: {item!r:.80}; write Knowledge(id, text)"
        )
    import hashlib

    return Knowledge(id=hashlib.sha256(item.encode()).hexdigest()[:16], text=item)


def _confidence(generation: Generation) -> float | None:
    if math.isnan(generation.loglikelihood):
        return None
    return math.exp(generation.loglikelihood / max(1, len(generation.token_ids)))


def _better(old: Answer | None, new: Answer) -> Answer:
    if old is None:
        return new
    surer = old.confidence is not None and (new.confidence or 0.0) < old.confidence
    return replace(old if surer else new, cost=old.cost + new.cost)


def _given(answer: Answer | None) -> Answer:
    assert answer is not None, "every query is served by some path"
    return answer


__all__ = ["Agent", "Explanation", "Score"]
