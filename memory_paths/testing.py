"""For tests, ours and yours: a small honest language model, and the contract that every memory path passes.

`check_path(make)` runs a path through everything that an agent relies on. This file knows no path and no real model.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory_paths.agent import Agent
from memory_paths.ledger import Ledger
from memory_paths.lm import layout, one_line
from memory_paths.types import (
    DEFAULT_NAMESPACE,
    Generation,
    Knowledge,
    MemoryPath,
    Prompt,
    Query,
    Reading,
    TooLarge,
    ToolCall,
    Usage,
)

UNKNOWN = "unknown"


class EchoLM:
    """A model that can read and knows nothing: it answers with the note that shares most words with the question.

    Deterministic; the first note wins a tie; without a shared word the answer is "unknown". A token is a word.

    Args:
        name: For tables.
        window: Most words of prompt and answer together.
    """

    def __init__(self, *, name: str = "echo", window: int = 512) -> None:
        self.name = name
        self.window = window

    def count_tokens(self, prompt: Prompt) -> int:
        """Number of words of the laid-out prompt."""
        return len(layout(prompt).split())

    def count_answer_tokens(self, pairs: Sequence[tuple[Prompt, str]]) -> list[int]:
        """Number of words of each answer."""
        return [len(answer.split()) for _, answer in pairs]

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Generation]:
        """The best note, cut after `max_new_tokens` words.

        Raises:
            TooLarge: A prompt longer than the window.
        """
        return [self._generate(prompt, max_new_tokens) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        """In nats: 1/2 for each word of the answer that the best note has, 1/100 for each that it lacks."""
        scores = []
        for prompt, answer in pairs:
            known = _words(self._best(prompt))
            scores.append(sum(math.log(0.5 if _words(word) <= known else 0.01) for word in answer.split()))
        return scores

    def _best(self, prompt: Prompt) -> str:
        asked = _words(prompt.question)
        best = max(prompt.notes, key=lambda note: len(asked & _words(note)), default="")
        return one_line(best) if asked & _words(best) else UNKNOWN

    def _generate(self, prompt: Prompt, max_new_tokens: int) -> Generation:
        read = self.count_tokens(prompt)
        if read > self.window:
            raise TooLarge(f"a prompt has {read} tokens, the window of {self.name!r} holds {self.window}")
        words = self._best(prompt).split()
        said = words[: min(max_new_tokens, self.window - read)]
        return Generation(
            text=" ".join(said),
            token_ids=tuple(int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) for word in said),
            loglikelihood=len(said) * math.log(0.5),
            prompt_hash=hashlib.sha256(layout(prompt).encode()).hexdigest(),
            usage=Usage(tokens=read + len(said)),
            stopped=len(said) == len(words),
        )


def scripted_chat_model(reply: Callable[[Sequence[tuple[str, str]]], str]) -> Any:
    """A LangChain `BaseChatModel` that says what a function makes of its messages, and sees nothing else.

    Args:
        reply: Is given the messages as (role, text), the roles being "system", "human" and "ai".
    """
    from langchain_core.language_models.chat_models import SimpleChatModel
    from langchain_core.messages import BaseMessage

    class ScriptedChatModel(SimpleChatModel):
        """See `scripted_chat_model`."""

        model: str = "scripted"

        def _call(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any) -> str:
            return reply([(message.type, str(message.text)) for message in messages])

        @property
        def _llm_type(self) -> str:
            return "scripted"

    return ScriptedChatModel()


def scripted_tool_caller(
    reply: Callable[[Sequence[tuple[str, str]], Sequence[Mapping[str, Any]]], str | Sequence[ToolCall]],
) -> Any:
    """A LangChain `BaseChatModel` that says or calls what a function makes of its messages and of the tools it has.

    Args:
        reply: Is given the messages as (role, text), the roles being "system", "human", "ai" and "tool", and the tools
            that are offered, as JSON schemas; it says a text, or what it calls.
    """
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class ScriptedToolCaller(BaseChatModel):
        """See `scripted_tool_caller`."""

        model: str = "scripted"

        def bind_tools(self, tools: Sequence[Any], **options: Any) -> Any:
            return self.bind(tools=list(tools), **options)

        def _generate(
            self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
        ) -> ChatResult:
            said = reply([(message.type, str(message.text)) for message in messages], options.get("tools", ()))
            if isinstance(said, str):
                return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])
            calls = [{"name": call.name, "args": dict(call.arguments), "id": call.id} for call in said]
            return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=calls))])

        @property
        def _llm_type(self) -> str:
            return "scripted"

    return ScriptedToolCaller()


def _words(text: str) -> frozenset[str]:
    return frozenset("".join(c if c.isalnum() else " " for c in text.lower()).split())


ADA = Knowledge("ada", "Ada works as a pilot.", key="ada/work")
BEN = Knowledge("ben", "Ben plays the cello.")
OSLO = Knowledge("cora-oslo", "Cora lives in Oslo.", key="cora/home")
BERGEN = Knowledge("cora-bergen", "Cora lives in Bergen.", key="cora/home")
QUERIES = tuple(
    Query(text, DEFAULT_NAMESPACE)
    for text in ("What does Ada work as?", "What does Ben play?", "Where does Cora live?")
)


class _Poisoned(Query):
    """A query that carries what only the evaluator may know, all of it wrong: a path that peeks gives itself away."""

    ids = (BEN.id,)
    targets = stale = choices = ("poison",)


def check_path(
    make: Callable[[Any, Ledger], MemoryPath], *, lm: Any = None, open_ledger: Callable[[Path], Ledger] = Ledger
) -> None:
    """The contract of a memory path. It is written to, read, reopened and closed a few times, with four short facts.

    Args:
        make: Gives a new path for a model and a ledger, as `lambda lm, ledger: MyPath(lm, ledger)`. It is called
            several times; each path is closed before the next is made, and what a path keeps in files of its own should
            be in a new place each time.
        lm: The model that the paths are given; None: an `EchoLM`. A path that changes weights needs a real one.
        open_ledger: Gives an empty ledger for a file that is not there yet, for paths that need it to be elsewhere.

    Raises:
        AssertionError: A broken promise, in words.
    """
    lm = EchoLM() if lm is None else lm
    promises: tuple[Callable[[_Trial], None], ...] = (
        _has_the_shape_of_a_path,
        _writing_nothing_changes_nothing,
        _what_was_written_is_held_in_order,
        _writing_again_changes_nothing,
        _another_text_under_an_active_id_is_refused,
        _a_later_item_with_the_same_key_supersedes,
        _what_was_forgotten_is_gone,
        _reading_depends_on_the_query_alone,
        _answering_depends_on_the_query_alone,
        _namespaces_are_kept_apart_or_refused,
        _the_lent_model_comes_back_as_it_was,
        _a_new_path_catches_up_with_the_ledger,
        _loading_brings_back_what_was_saved,
        _a_closed_path_refuses,
    )
    for promise in promises:
        with tempfile.TemporaryDirectory(prefix="check_path-") as folder:
            trial = _Trial(make, lm, Path(folder), open_ledger)
            with trial.ledger:
                try:
                    promise(trial)
                except AssertionError:
                    raise
                except Exception as error:
                    words = promise.__name__.strip("_").replace("_", " ")
                    raise AssertionError(f"{words}: broken by {type(error).__name__}: {error}") from error


class _Trial:
    """A ledger of its own for one promise, and paths on it."""

    def __init__(
        self,
        make: Callable[[Any, Ledger], MemoryPath],
        lm: Any,
        folder: Path,
        open_ledger: Callable[[Path], Ledger],
    ) -> None:
        self.make, self.lm, self.folder, self.open_ledger = make, lm, folder, open_ledger
        self.ledger = open_ledger(folder / "ledger.sqlite")

    @contextmanager
    def path(self, *items: Knowledge, ledger: Ledger | None = None) -> Iterator[MemoryPath]:
        """A path that has been taught these items, one write each."""
        path = self.make(self.lm, self.ledger if ledger is None else ledger)
        try:
            for item in items:
                path.write([item], DEFAULT_NAMESPACE)
            path.flush()
            yield path
        finally:
            path.close()


def _has_the_shape_of_a_path(trial: _Trial) -> None:
    with trial.path() as path:
        missing = sorted(name for name in _members() if not hasattr(path, name))
        assert not missing, f"a path has all members of types.MemoryPath; {type(path).__name__} lacks {missing}"
        assert isinstance(path.name, str), "a path has a name"
        assert path.name, "the name of a path is not empty: it is its place in the ledger"


def _writing_nothing_changes_nothing(trial: _Trial) -> None:
    with trial.path(ADA) as path:
        before = path.state_hash()
        assert path.write([], DEFAULT_NAMESPACE).ids == (), "an empty write acknowledges no id"
        path.flush()
        assert path.state_hash() == before, "an empty write changes nothing"
        assert path.read([]) == [], "no query, no reading"
        path.admit([], DEFAULT_NAMESPACE)
        _raises(ValueError, lambda: path.admit([BEN], DEFAULT_NAMESPACE))
        assert path.state_hash() == before, "to be asked whether there is room changes nothing"


def _what_was_written_is_held_in_order(trial: _Trial) -> None:
    with trial.path() as path:
        empty = path.state_hash()
        assert path.items(DEFAULT_NAMESPACE) == [], "a new path on a new ledger holds nothing"
        assert path.write([BEN, ADA], DEFAULT_NAMESPACE).ids == (BEN.id, ADA.id), (
            "a receipt names the ids in the order given"
        )
        path.flush()
        path.write([OSLO], DEFAULT_NAMESPACE)
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [BEN, ADA, OSLO], (
            "items() is what was written, in the order of writing, every field kept"
        )
        assert path.state_hash() != empty, "a write changes state_hash"
        assert path.stored_bytes() > 0, "a path that holds something needs bytes for it"


def _writing_again_changes_nothing(trial: _Trial) -> None:
    with trial.path(ADA, BEN) as path:
        before, readings = path.state_hash(), _recalled(path.read(QUERIES))
        assert path.write([ADA], DEFAULT_NAMESPACE).ids == (ADA.id,), (
            "writing what is there already is acknowledged all the same"
        )
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [ADA, BEN], "writing an active id with the same content changes nothing"
        assert path.state_hash() == before, "writing an active id with the same content leaves state_hash as it was"
        assert _recalled(path.read(QUERIES)) == readings, "writing twice does not change what is recalled"


def _another_text_under_an_active_id_is_refused(trial: _Trial) -> None:
    with trial.path(ADA) as path:
        before = path.state_hash()
        refused = _raises(
            ValueError, lambda: path.write([BEN, Knowledge(ADA.id, "Ada works as a baker.")], DEFAULT_NAMESPACE)
        )
        assert refused, "another text under an active id is refused with ValueError"
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [ADA], (
            "a refused write stores nothing, not even its good items, and harms nothing"
        )
        assert path.state_hash() == before, "a refused write leaves state_hash as it was"


def _a_later_item_with_the_same_key_supersedes(trial: _Trial) -> None:
    with trial.path(OSLO, BERGEN) as path:
        assert path.items(DEFAULT_NAMESPACE) == [BERGEN], "a later item with the same key supersedes the earlier one"
        assert OSLO.id not in _ids(path.read(QUERIES)), "what was superseded is not recalled"
        path.write([OSLO], DEFAULT_NAMESPACE)
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [OSLO], "Oslo, then Bergen, then Oslo again ends in Oslo"
        assert BERGEN.id not in _ids(path.read(QUERIES)), "what was superseded is not recalled"


def _what_was_forgotten_is_gone(trial: _Trial) -> None:
    with trial.path(ADA, BEN) as path:
        if not path.capabilities.forgets:
            return
        before = path.state_hash()
        receipt = path.forget([ADA.id, "never-written"], DEFAULT_NAMESPACE)
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [BEN], (
            "forget() drops the ids it is given and no others, and ignores unknown ones"
        )
        assert receipt is not None, "forget() gives a receipt"
        assert receipt.ids == (ADA.id,), f"forget() gives a receipt of the ids that were held, got {receipt.ids}"
        assert path.state_hash() != before, "forgetting changes state_hash"
        assert ADA.id not in _ids(path.read(QUERIES)), "what was forgotten is not recalled"
        path.write([ADA], DEFAULT_NAMESPACE)
        path.flush()
        assert path.items(DEFAULT_NAMESPACE) == [BEN, ADA], "what was forgotten can be learnt again, as a new version"


def _reading_depends_on_the_query_alone(trial: _Trial) -> None:
    with trial.path(ADA, BEN, OSLO) as path:
        before = path.state_hash()
        plain = path.read(QUERIES)
        assert len(plain) == len(QUERIES), "read() gives one reading for each query"
        for reading in plain:
            scores = [recall.score for recall in reading.recalls]
            assert scores == sorted(scores, reverse=True), "recalls come best first, a higher score being better"
        assert _ids(plain) <= {item.id for item in path.items(DEFAULT_NAMESPACE)}, "only what is held is recalled"
        assert _recalled(path.read(_poisoned())) == _recalled(plain), (
            "the same queries give the same recalls, whatever the ids and targets of their questions"
        )
        alone = [reading for query in QUERIES for reading in path.read([query])]
        # Scores may differ in their last bits, since products of matrices depend on the size of a batch.
        neighbourless = [[recall.item for recall in reading.recalls] for reading in alone]
        together = [[recall.item for recall in reading.recalls] for reading in plain]
        assert neighbourless == together, "what is recalled for a query does not depend on its neighbours"
        assert path.state_hash() == before, "reading changes nothing"


def _answering_depends_on_the_query_alone(trial: _Trial) -> None:
    with trial.path(ADA, BEN, OSLO) as path:
        agent = Agent(trial.lm, {path.name: path}, trial.ledger, max_new_tokens=4)
        plain, poisoned = (
            [(answer.text, answer.prompt_hash, answer.confidence) for answer in agent.answer(queries)]
            for queries in (QUERIES, _poisoned())
        )
        assert plain == poisoned, "the same queries get the same answers to the same prompts, whatever the targets"


def _namespaces_are_kept_apart_or_refused(trial: _Trial) -> None:
    other = "somebody-else"
    theirs = Knowledge(ADA.id, "Ada works as a baker.", key=ADA.key)
    with trial.path(ADA) as path:
        if not path.capabilities.namespaces:
            refused = _raises(ValueError, lambda: path.write([theirs], other))
            assert refused, "a path that holds one namespace refuses another with ValueError"
            assert path.items(DEFAULT_NAMESPACE) == [ADA], "refusing a namespace leaves what is stored as it was"
            return
        path.write([theirs], other)
        path.flush()
        assert (path.items(DEFAULT_NAMESPACE), path.items(other)) == ([ADA], [theirs]), (
            "namespaces are kept apart, ids and keys included"
        )
        mine, foreign = path.read([QUERIES[0], Query(QUERIES[0].text, namespace=other)])
        assert {recall.item.text for recall in mine.recalls} <= {ADA.text}, "a query sees its own namespace only"
        assert {recall.item.text for recall in foreign.recalls} <= {theirs.text}, "a query sees its own namespace only"
        refused = _raises(ValueError, lambda: path.read([Query(QUERIES[0].text)]))
        assert refused, "a query that names no namespace is refused with ValueError"
        if path.capabilities.forgets:
            path.forget([ADA.id], DEFAULT_NAMESPACE)
            assert path.items(other) == [theirs], "forgetting in one namespace leaves the others alone"


def _the_lent_model_comes_back_as_it_was(trial: _Trial) -> None:
    def weights() -> str:
        return str(trial.lm.weights_hash()) if hasattr(trial.lm, "weights_hash") else ""

    before = weights()
    with trial.path(ADA, BEN) as path:
        assert weights() == before, "learning leaves the lent model's weights as they were"
        with path.model(trial.lm) as model:
            generated = model.generate([Prompt("What does Ada work as?")], max_new_tokens=4)
        assert len(generated) == 1, "model(lm) gives a model that generates"
        assert weights() == before, "on leaving model(lm) the lent model is byte-identical"

        def fail() -> None:
            with path.model(trial.lm):
                raise KeyError("an error in the body")

        assert _raises(KeyError, fail), "model(lm) lets errors of the body through"
        assert weights() == before, "the lent model is byte-identical after an error in the body of model(lm) as well"


def _a_new_path_catches_up_with_the_ledger(trial: _Trial) -> None:
    with trial.path(ADA, OSLO, BERGEN):
        pass
    with trial.path() as path:
        assert path.items(DEFAULT_NAMESPACE) == [ADA, BERGEN], (
            "a path that is made anew holds what the ledger has at its place"
        )


def _loading_brings_back_what_was_saved(trial: _Trial) -> None:
    with trial.path(ADA, BEN) as path:
        trial.ledger.save(trial.folder / "saved" / "ledger.sqlite")
        path.save(trial.folder / "saved" / "path")
        saved, items, recalled = path.state_hash(), path.items(DEFAULT_NAMESPACE), _recalled(path.read(QUERIES))
    with trial.open_ledger(trial.folder / "restored.sqlite") as ledger, trial.path(ledger=ledger) as path:
        ledger.restore(trial.folder / "saved" / "ledger.sqlite")
        path.load(trial.folder / "saved" / "path")
        assert path.items(DEFAULT_NAMESPACE) == items, "load() brings back the items that were saved"
        assert path.state_hash() == saved, "load() brings back the state_hash that was saved"
        assert _recalled(path.read(QUERIES)) == recalled, "what was loaded recalls as what was saved did"


def _a_closed_path_refuses(trial: _Trial) -> None:
    path = trial.make(trial.lm, trial.ledger)
    path.close()
    assert _raises(Exception, lambda: path.write([ADA], DEFAULT_NAMESPACE)), "a closed path refuses to write"
    assert _raises(Exception, lambda: path.read(QUERIES)), "a closed path refuses to read"


def _members() -> set[str]:
    return {name for name in {*vars(MemoryPath), *MemoryPath.__annotations__} if not name.startswith("_")}


def _poisoned() -> list[Query]:
    return [_Poisoned(query.text, query.namespace) for query in QUERIES]


def _recalled(readings: Sequence[Reading]) -> list[list[tuple[Knowledge, float]]]:
    return [[(recall.item, recall.score) for recall in reading.recalls] for reading in readings]


def _ids(readings: Sequence[Reading]) -> set[str]:
    return {recall.item.id for reading in readings for recall in reading.recalls}


def _raises(kind: type[Exception], action: Callable[[], Any]) -> bool:
    try:
        action()
    except kind:
        return True
    return False


__all__ = ["EchoLM", "check_path"]
