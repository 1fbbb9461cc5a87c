"""The agent: learns, answers, forgets and explains, in one namespace, along one path or several behind a router.

It knows nothing of how a path stores what it is given, of configuration, or of who scores its answers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from memory_paths.answering import ask, better, lay_out
from memory_paths.conversation import Conversation
from memory_paths.door import Door
from memory_paths.files import whole_folder
from memory_paths.ledger import Ledger, check_ids
from memory_paths.quarantine import Held, Quarantine
from memory_paths.router import Fixed, Router
from memory_paths.types import (
    DEFAULT_NAMESPACE,
    Answer,
    Cost,
    CountsUse,
    Generates,
    KeepsPrefixes,
    Knowledge,
    KnowledgeKind,
    MemoryPath,
    Query,
    Recall,
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
        quarantine: Who is let in by `learn`; None: everything.
        ttl: For how many seconds from their writing items of a kind hold; a kind that is not named holds for good.
        config: What built this agent, kept so that `Agent.load` can build it again.

    Raises:
        ValueError: No path or namespace at all, a path that holds a single namespace and has another one already, or a
            `max_new_tokens` for which the window has no room; a path spills to one that is not there, or has the
            name of the quarantine's place; or a `ttl` that is not above 0.
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
        quarantine: Quarantine | None = None,
        ttl: Mapping[KnowledgeKind, float] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not paths:
            raise ValueError("an agent needs at least one path")
        if not namespace.strip():
            raise ValueError(f"an agent needs a namespace: whose knowledge is it? Got {namespace!r}")
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
        self._quarantine = Quarantine(ledger, trusted_from=0.0) if quarantine is None else quarantine
        if self._quarantine.place in paths:
            raise ValueError(f"the quarantine has the place {self._quarantine.place!r}; give that path another name")
        self.lm = lm
        self.paths = dict(paths)
        self.ledger = ledger
        self.router: Router = router if router is not None else Fixed()
        self.namespace = namespace
        self.config = dict(config) if config is not None else None
        self._max_new_tokens = max_new_tokens
        self._door = Door(ledger, self._quarantine, namespace, list(paths), ttl)
        self._lock = threading.RLock()

    @property
    def path_name(self) -> str:
        """Name of the default path."""
        return next(iter(self.paths))

    def learn(self, items: str | Knowledge | Sequence[Knowledge | str], *, ttl: float | None = None) -> Receipt:
        """Store knowledge where the router says, unless it has to be kept apart.

        `details` of the receipt has what each path says of its write by the path's name and, where something was kept
        apart, `quarantined`: by id the score and the reasons. A text alone that only says again what is held, such as
        one that was recalled, is not stored once more: the receipt names the item that says it (see
        `memory_paths.door`).

        Args:
            items: Plain text, or items; a plain text becomes an item whose id is its content's hash.
            ttl: Seconds for which those hold that have no `valid_until`; None: as their kinds say.

        Raises:
            TypeError: Something else than texts and items.
            ValueError: An active id with another text, or what the path refuses; nothing of that path is stored then.
                Or a `ttl` that is not above 0, or an id that is kept apart with another text.
        """
        given = [items] if isinstance(items, str | Knowledge) else items
        with self._lock:
            arrived = self._door.let_in(given, ttl)
            receipt = self._store(arrived.items)
        stored = arrived.known.union(receipt.ids)
        details = dict(receipt.details)
        if arrived.held:
            details["quarantined"] = {one.item.id: {"score": one.score, "reasons": one.reasons} for one in arrived.held}
        return replace(receipt, ids=tuple(id for id in arrived.ids if id in stored), details=details)

    def _store(self, items: Sequence[Knowledge]) -> Receipt:
        names = list(self.paths)
        groups: dict[str, list[Knowledge]] = {}
        for item in items:
            groups.setdefault(self.router.place(item, names), []).append(item)
        receipts = {name: self.paths[name].write(group, self.namespace) for name, group in groups.items()}
        return Receipt(
            tuple(dict.fromkeys(id for receipt in receipts.values() for id in receipt.ids)),
            sum((receipt.cost for receipt in receipts.values()), Cost()),
            any(receipt.pending for receipt in receipts.values()),
            {name: dict(receipt.details) for name, receipt in receipts.items()},
        )

    def quarantined(self) -> list[Held]:
        """What is kept apart, in the order of writing, and why."""
        with self._lock:
            return self._quarantine.held(self.namespace)

    def release(self, ids: Sequence[str]) -> Receipt:
        """Learn what was kept apart after all, as it was to be learnt. Interrupted, it can be done again.

        Raises:
            ValueError: An id that is not kept apart, or what a path refuses; it stays where it is then.
        """
        with self._lock:
            receipt = self._store(self._quarantine.items(check_ids(ids), self.namespace))
            self._quarantine.drop(receipt.ids, self.namespace)
        return receipt

    def discard(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Forget what is kept apart under these ids; those that were. `compact` erases their texts."""
        with self._lock:
            return self._quarantine.drop(check_ids(ids), self.namespace)

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
                    questions = [asked[index] for index in indices]
                    new = ask(self.lm, self.paths[name], questions, given, max_new_tokens=self._max_new_tokens)
                    for index, answer in zip(indices, new, strict=True):
                        answers[index] = better(answers[index], answer)
                rank += 1
                pending = [
                    index
                    for index in pending
                    if rank < len(served[index]) and not self.router.content(_given(answers[index]))
                ]
        return list(map(_given, answers))

    def recall(self, query: str | Query, *, budget: int | None = None) -> tuple[Recall, ...]:
        """What would stand in the prompt for a query beside the question, in that order; nothing is asked of a model.

        Args:
            query: A question in words, or a query.
            budget: Most tokens that the laid-out question may have with it; None: the window less `max_new_tokens`.

        Raises:
            TooLarge: The question alone is longer than the budget.
        """
        (asked,) = self._queries([query])
        with self._lock:
            path, reserves = self.paths[self.path_name], [self._max_new_tokens]
            (shown,) = lay_out(self.lm, path, [asked], None, reserves=reserves, budget=budget)
        return shown.recalls

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The model that answers along the default path; other calls of this agent wait meanwhile."""
        with self._lock, self.paths[self.path_name].model(self.lm) as model:
            yield model

    def conversation(
        self,
        *,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        name: str | None = None,
        budget: int | None = None,
        keep: float = 0.7,
        notes: float = 0.5,
        episodes: bool = False,
        summarise: Callable[[Sequence[str]], str] | None = None,
    ) -> Conversation:
        """A dialogue in which each question is answered along the default path.

        What that path recalls stands at the end of the prompt as data; what the answer was drawn from counts as used.

        Args:
            system: Instructions; never put into it what was learnt from elsewhere.
            tools: What the model may call, as JSON schemas.
            name: Its own name, the source of its episodes; None: a random one. Two conversations of one name share
                what they have in common, turn by turn.
            budget: Most tokens of a prompt; None: the window less `max_new_tokens`.
            keep: See `Conversation`.
            notes: See `Conversation`.
            episodes: Whether turns that no longer stand in the prompt are learnt, as items of kind "episode": the
                user's, the assistant's where no note stood in their prompt, and results of tools as an untrusted
                source, as is what the assistant said after one.
            summarise: See `Conversation`.
        """
        from memory_paths.episodes import Recollection

        memory = Recollection(self, name, episodes=episodes)
        options: dict[str, Any] = {"budget": budget, "keep": keep, "notes": notes, "reserve": self._max_new_tokens}
        return Conversation(self.lm, system=system, tools=tools, memory=memory, summarise=summarise, **options)

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
            reserves = [max(self._max_new_tokens, length) for length in lengths]
            laid_out = lay_out(self.lm, path, queries, notes, reserves=reserves)
            given = [(one.prompt, answer) for one, (_, answer) in zip(laid_out, pairs, strict=True)]
            with path.model(self.lm) as model:
                likelihoods, tokens = model.loglikelihood(given), model.count_answer_tokens(given)
        return [Score(value, count) for value, count in zip(likelihoods, tokens, strict=True)]

    def forget(self, ids: Sequence[str] = (), *, keys: Sequence[str] = ()) -> Receipt:
        """Stop holding these ids, wherever they live, in quarantine too. Ids that are not held are ignored.

        An id is forgotten with all its versions, and with what was merged into it (`retrieval.merging`). What it had
        superseded by its key does not come back, but stays for questions about the past (`Query.as_of`), for it says
        something else; give the key to forget that too. What models keep of prompts is dropped. `compact` then erases
        the texts.

        Args:
            ids: Of items.
            keys: Everything that was ever said under them: all ids that had one of these keys, and what is kept apart
                with one of them.

        Returns:
            The ids that were held and what it cost: paths into weights may have to learn again what came after them.

        Raises:
            TypeError: One string in place of ids or keys.
            ValueError: An id came to a path that cannot forget; nothing is forgotten then, on any path.
        """
        with self._lock:
            under = self.ledger.under(keys, namespace=self.namespace) if keys else []
            ids = [*check_ids(ids), *(version.item.id for version in under)]
            # An id that is kept apart may be a trusted item's too, which has another key and stays.
            aside = self._quarantine.under(keys, self.namespace) if keys else []
            for name in self.paths:
                self._refuse_unforgettable(ids, name)
            receipts = {
                name: path.forget(ids, self.namespace) for name, path in self.paths.items() if path.capabilities.forgets
            }
            apart = self._quarantine.drop([*ids, *aside], self.namespace)
            self._drop_derived()
        gone = {id for receipt in receipts.values() for id in receipt.ids}.union(apart)
        cost = sum((receipt.cost for receipt in receipts.values()), Cost())
        details = {name: dict(told) for name, receipt in receipts.items() if any((told := receipt.details).values())}
        return Receipt(tuple(id for id in dict.fromkeys([*ids, *aside]) if id in gone), cost, details=details)

    def sweep(self, *, forget: bool = False) -> tuple[str, ...]:
        """End what has expired, so that every path lets go of it: weights unlearn it. Nothing recalls it anyway.

        Args:
            forget: Whether questions about the past must not find it either, and `compact` is to erase its text.

        Returns:
            The ids of what was ended.

        Raises:
            ValueError: Something is to be forgotten, and a path cannot forget; nothing is ended then.
        """
        with self._lock:
            if forget and (rigid := [name for name, path in self.paths.items() if not path.capabilities.forgets]):
                raise ValueError(f"paths {rigid} cannot forget; sweep with forget=False, and build them anew")
            gone = self.ledger.sweep(namespace=self.namespace, forget=forget)
            self.flush()
            if forget:
                self._drop_derived()
        return gone

    def compact(self) -> int:
        """Erase what was forgotten: its text leaves every file of the ledger and of the paths' indexes.

        Returns:
            How many versions were erased.

        Raises:
            LedgerError: Somebody else is reading or writing, or the disk is full. What is erased stays so; call again.
        """
        with self._lock:
            self.flush()  # before, for an index of words lets go of a text by the text
            erased = self.ledger.compact()
            self.flush()
        return erased

    def use(self, ids: Sequence[str]) -> None:
        """Say that these items were of use, so that paths whose eviction looks at use keep them longer.

        Answering by itself is no use, since an evaluation must not change what is kept; a conversation counts what its
        answers were drawn from. Ids that are not held are ignored.
        """
        ids = check_ids(ids)
        with self._lock:
            for path in self.paths.values():
                if isinstance(path, CountsUse):
                    path.use(ids, self.namespace)

    def _drop_derived(self) -> None:
        """Let go of what is kept beside ledger and paths and might say forgotten words."""
        if isinstance(self.lm, KeepsPrefixes):
            self.lm.drop_prefixes()

    def move(self, ids: Sequence[str], *, source: str, target: str) -> Receipt:
        """Take items from one path to another, ids and history kept. If the target cannot hold them, they stay.

        Returns:
            The ids that were moved, without those that are at the target already.

        Raises:
            ValueError: No such path, an id that neither path holds, or a source that cannot forget.
            TooLarge: The target has no room; nothing has changed then.
            Exception: What the target says when it cannot take them in; they are back at the source then.
        """
        for name in (source, target):
            if name not in self.paths:
                raise ValueError(f"this agent has the paths {list(self.paths)}, got {name!r}")
        ids = check_ids(ids)
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
        return Receipt(moved)

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
        given = [queries] if isinstance(queries, str | Query) else queries
        asked = [Query(query, self.namespace) if isinstance(query, str) else query for query in given]
        for query in asked:
            if not isinstance(query, Query):
                raise TypeError(f"an agent is asked texts and Query, got {type(query).__name__}: {query!r:.80}")
            if query.namespace not in ("", self.namespace):
                raise ValueError(
                    f"this agent is bound to namespace {self.namespace!r}, the query says {query.namespace!r}"
                )
        return [replace(query, namespace=self.namespace) for query in asked]


def _given(answer: Answer | None) -> Answer:
    assert answer is not None, "every query is served by some path"
    return answer


__all__ = ["Agent", "Explanation", "Score"]
