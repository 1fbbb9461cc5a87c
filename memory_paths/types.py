"""What travels between the parts: frozen dataclasses for data, Protocols for behaviour.

This file knows nothing of models, storage, configuration or scoring, and imports only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

KnowledgeKind = Literal["fact", "passage", "procedure", "preference", "episode", "lesson"]
QuestionKind = Literal[
    "direct",  # a held-out wording: known to the model from elsewhere, never used for this item
    "trained",  # a wording that was offered as study text for this item
    "paraphrase",  # a wording that occurs in no training at all
    "composition",  # needs two items, or one item and something known before
    "reversal",  # from the value back to what it was said of
    "alias",  # the item's subject under another name
    "one_hop",  # what follows from the item and one thing known before
    "two_hop",  # what follows from the item and two things known before
    "neighbour",  # known before, close to what is taught, and to stay as it is
    "prior",  # known before any learning
    "unknown",  # never taught; the right answer is an abstention
]
Scoring = Literal[
    "exact",  # the whole answer, normalised, is one of the targets; without targets, it is an abstention
    "entities",  # F1 of the set of names that the answer lists
    "chrf",  # overlap of character n-grams, of translations
    "likelihood",  # how probable the model finds each token of the target, of continuations
    "choice",  # the likeliest of the choices is a target: a label among all labels, a reply preferred to another
]
Role = Literal["system", "user", "assistant", "tool"]
DEFAULT_NAMESPACE = "default"


class TooLarge(ValueError):  # noqa: N818 (what was given, not who is to blame)
    """What is to be learnt or shown does not fit into the model's window, and nothing of it may be left out.

    Args:
        message: What was given and what is allowed.
        items: Ids of items that fit at no time, so that the others may be tried again without them; empty where there
            is only no more room.
    """

    def __init__(self, message: str, items: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.items = tuple(items)


@dataclass(frozen=True)
class Phrasing:
    """One more way to say an item: what is given and what follows from it.

    Args:
        completion: The text to be learnt.
        prompt: The text before it, which is context and not a target; empty for a plain sentence.
        asks: Whether the prompt is a question, to be laid out as the model is asked, with the completion as its answer.
        ends: Whether the text is whole, so that it is learnt to stop behind it.
    """

    completion: str
    prompt: str = ""
    asks: bool = False
    ends: bool = True


@dataclass(frozen=True)
class Knowledge:
    """One item to be learnt.

    Args:
        id: Identity. While an id is active, another text under it is refused; see `key` for updates.
        text: What a person would read. It is data and never an instruction.
        kind: What sort of knowledge it is.
        key: What it is about; a later item with the same key supersedes it. Empty: nothing supersedes it.
        phrasings: Other ways to say it, for paths that learn by study.
        source: Where it comes from.
        trust: In [0, 1].
        valid_from: Seconds since the epoch, or None for "always".
        valid_until: Seconds since the epoch, or None for "for good".
        cue: What it is found by, where that is another text than its own, such as the task that a lesson came from.
        span: Where in the source it stands: its first character and the one after its last, counted from 0.
        metadata: Values by name, as JSON has them, for `Query.where` and for programs. No model sees them.

    Raises:
        TypeError: An id, text, key, source or cue that is no str, or metadata that JSON cannot hold.
        ValueError: An empty id or text, an unknown kind, a trust outside [0, 1], or an empty interval of validity.
    """

    id: str
    text: str
    kind: KnowledgeKind = "fact"
    key: str = ""
    phrasings: tuple[Phrasing, ...] = ()
    source: str = ""
    trust: float = 1.0
    valid_from: float | None = None
    valid_until: float | None = None
    cue: str = ""
    span: tuple[int, int] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        fields = vars(self)
        for name in _WORDS:
            if not isinstance(given := fields[name], str):
                raise TypeError(f"{name} of an item must be a str, got {given!r}; write str(...)")
        # The same content in the same bytes: 1 and 1.0 would be stored as two contents of one id.
        for name in _NUMBERS:
            if (number := fields[name]) is not None and type(number) is not float:
                object.__setattr__(self, name, float(number))
        if not self.id or not self.text.strip():
            raise ValueError(f"an item needs an id and a text, got id={self.id!r}, text={self.text!r}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind of item {self.id!r} must be one of {_KINDS}, got {self.kind!r}")
        if not 0.0 <= self.trust <= 1.0:
            raise ValueError(f"trust of item {self.id!r} must be in [0, 1], got {self.trust}")
        if self.valid_from is not None and self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError(f"item {self.id!r} is valid until {self.valid_until}, before its start {self.valid_from}")
        if self.span is not None:
            object.__setattr__(self, "span", _span(self.id, self.span))
        if self.metadata:
            object.__setattr__(self, "metadata", _as_json(f"metadata of item {self.id!r}", self.metadata))

    def to_json(self) -> str:
        """The item as one line of canonical JSON (sorted keys), the form that is stored and hashed."""
        if self.phrasings or self.cue or self.span or self.metadata:
            fields = {name: value for name, value in vars(self).items() if value or name not in _ADDED_LATER}
            # Without the usual value of what came later, so that what was stored before has the same hash.
            fields["phrasings"] = [
                {name: value for name, value in vars(phrasing).items() if (name, value) != ("ends", True)}
                for phrasing in self.phrasings
            ]
            return _canonical(fields)
        # Most items are plain: the same line, several times faster.
        since = "null" if self.valid_from is None else _canonical(self.valid_from)
        until = "null" if self.valid_until is None else _canonical(self.valid_until)
        return (
            f'{{"id":{_quoted(self.id)},"key":{_quoted(self.key)},"kind":"{self.kind}","phrasings":[],'
            f'"source":{_quoted(self.source)},"text":{_quoted(self.text)},"trust":{self.trust!r},'
            f'"valid_from":{since},"valid_until":{until}}}'
        )

    @staticmethod
    def from_json(line: str) -> Knowledge:
        """The inverse of `to_json`."""
        fields = json.loads(line)
        fields["phrasings"] = tuple(Phrasing(**phrasing) for phrasing in fields.get("phrasings", ()))
        return Knowledge(**fields)

    def content_hash(self) -> str:
        """SHA-256 of `to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_KINDS = get_args(KnowledgeKind)
_WORDS = ("id", "text", "key", "source", "cue")
_NUMBERS = ("trust", "valid_from", "valid_until")
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring  # what the encoder does with a str

# Fields that stand in the JSON only where they say something, so that ledgers from before they existed read the same.
_ADDED_LATER = ("cue", "span", "metadata")


def _span(id: str, span: Sequence[int]) -> tuple[int, int]:
    first, end = span
    if not 0 <= first < end:
        raise ValueError(f"span of item {id!r} must be [first, end) with 0 <= first < end, got {tuple(span)}")
    return int(first), int(end)


def _as_json(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if not all(isinstance(name, str) for name in values):
            raise TypeError("its names must be str")
        return dict(json.loads(json.dumps(dict(values), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be what JSON can hold, got {values!r:.200}: {error}") from error


@dataclass(frozen=True)
class Query:
    """All that a path or an agent ever sees of a question.

    Args:
        text: The question in words.
        namespace: Whose knowledge may be used. Empty: that of the agent which is asked; a path by itself refuses it.
        as_of: Seconds since the epoch: answer as if it were then. None: now.
        token_budget: Most tokens that the prompt may have, or None for the model's own window.
        continues: Whether the text is no question but the beginning of a text, to be continued as it stands.
        kinds: Only items of these kinds; empty: all.
        where: Only items whose metadata fit, by name: a value (equal), a list (one of these), or a mapping from
            comparisons (`$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`) to values. What lacks the name, or
            cannot be compared, fits `$ne` and `$nin` alone.

    Raises:
        TypeError: A text or namespace that is no str, an `as_of` or budget that is no number, kinds that are no
            sequence or one string, or a `where` that is no mapping or that JSON cannot hold.
        ValueError: An `as_of` that is NaN, a budget below 1, an unknown kind or comparison, or `$in` or `$nin` of
            something else than a list or tuple.
    """

    text: str
    namespace: str = ""
    as_of: float | None = None
    token_budget: int | None = None
    continues: bool = False
    kinds: tuple[KnowledgeKind, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, given in (("text", self.text), ("namespace", self.namespace)):
            if not isinstance(given, str):
                raise TypeError(f"{name} of a query must be a str, got {given!r:.80}; write str(...)")
        if self.as_of is not None:
            if isinstance(self.as_of, bool) or not isinstance(self.as_of, Real):
                raise TypeError(
                    f"as_of must be seconds since the epoch or None, got {self.as_of!r:.80}; write datetime.timestamp()"
                )
            if math.isnan(self.as_of):
                raise ValueError("as_of must be seconds since the epoch or None, got NaN")
            object.__setattr__(self, "as_of", float(self.as_of))
        budget = self.token_budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, Integral)):
            raise TypeError(f"token_budget must be a whole number or None, got {budget!r:.80}")
        if budget is not None and budget < 1:
            raise ValueError(f"token_budget must be at least 1, or None for the model's window, got {budget}")
        if isinstance(self.kinds, str) or not isinstance(self.kinds, Iterable):
            raise TypeError(f"kinds must be a sequence of kinds, as ('fact',), or () for all, got {self.kinds!r:.80}")
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if strange := [kind for kind in self.kinds if kind not in _KINDS]:
            raise ValueError(f"kinds must be among {_KINDS}, got {strange}")
        if not isinstance(self.where, Mapping):
            raise TypeError(f"where must be a mapping from names to values, as {{'room': 3}}, got {self.where!r:.80}")
        if self.where:
            object.__setattr__(self, "where", _as_json("where of a query", self.where))
        for name, wanted in self.where.items():
            comparisons = _comparisons(wanted)
            if unknown := set(comparisons) - set(_COMPARISONS):
                raise ValueError(f"where[{name!r}] may compare by {sorted(_COMPARISONS)}, got {sorted(unknown)}")
            for comparison in comparisons.keys() & {"$in", "$nin"}:
                if not isinstance(comparisons[comparison], list | tuple):
                    raise ValueError(
                        f"where[{name!r}] needs a list or tuple for {comparison}, got {comparisons[comparison]!r:.80}"
                    )

    def admits(self, kind: KnowledgeKind, metadata: Mapping[str, Any]) -> bool:
        """Whether an item of this kind with this metadata may be recalled, as far as `kinds` and `where` go."""
        if self.kinds and kind not in self.kinds:
            return False
        return all(
            _COMPARISONS[comparison](metadata.get(name), value)
            for name, wanted in self.where.items()
            for comparison, value in _comparisons(wanted).items()
        )

    def prompt(self, notes: Sequence[str] = ()) -> Prompt:
        """What a model is asked, with these notes before it."""
        return Prompt(self.text, tuple(notes), self.continues)


def _comparisons(wanted: Any) -> Mapping[str, Any]:
    if isinstance(wanted, Mapping):
        return wanted
    return {"$in": wanted} if isinstance(wanted, list | tuple) else {"$eq": wanted}


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(has: Any, wanted: Any) -> bool:
        try:
            return has is not None and bool(compare(has, wanted))
        except TypeError:  # a number beside a word
            return False

    return holds


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda has, wanted: bool(has == wanted),
    "$ne": lambda has, wanted: bool(has != wanted),
    "$in": lambda has, wanted: has in wanted,
    "$nin": lambda has, wanted: has not in wanted,
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
}


@dataclass(frozen=True)
class Question:
    """A query together with what only the evaluator may know.

    Args:
        query: What the agent is asked.
        targets: Accepted answers, the first one being the canonical one. Empty where only an abstention is right.
        kind: What it tests.
        ids: The items that it is about, in the order in which they are needed.
        stale: Answers that were right before an update.
        choices: Four or so answers of the same sort, the canonical target among them; for models that cannot read, and
            what a `scoring` of "choice" is between.
        cluster: What intervals are clustered by (a person, a passage). Empty: each question by itself.
        scoring: What an answer is worth, a number in [0, 1]; see `memory_paths.evaluation.scoring`.

    Raises:
        ValueError: An unknown scoring, one that needs targets and has none, or a choice of fewer than two among which
            a target is.
    """

    query: Query
    targets: tuple[str, ...]
    kind: QuestionKind
    ids: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    cluster: str = ""
    scoring: Scoring = "exact"

    def __post_init__(self) -> None:
        if self.scoring not in get_args(Scoring):
            raise ValueError(f"scoring must be one of {get_args(Scoring)}, got {self.scoring!r}")
        if self.scoring != "exact" and not any(self.targets):
            raise ValueError(f"scoring {self.scoring!r} needs a target; the question {self.query.text!r:.80} has none")
        if self.scoring == "choice" and (len(set(self.choices)) < 2 or not set(self.targets) & set(self.choices)):
            raise ValueError(
                f"scoring 'choice' needs two choices or more, a target among them; {self.query.text!r:.80} has"
                f" {self.choices} and the targets {self.targets}"
            )

    def key(self) -> str:
        """A stable identity of this question within a stream."""
        told = [self.kind, self.query.text, self.ids, *([] if self.scoring == "exact" else [self.scoring])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Usage:
    """What one component spent. `flops` are a model of the work (2 per multiply-add), the rest is counted."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True)
class Cost:
    """What an operation spent, by component."""

    lm: Usage = Usage()
    encoder: Usage = Usage()
    index: Usage = Usage()

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.lm + other.lm, self.encoder + other.encoder, self.index + other.index)


@dataclass(frozen=True)
class Recall:
    """An item that a path offers for a query. `score`: higher is better; comparable only within one read."""

    item: Knowledge
    score: float


@dataclass(frozen=True)
class Reading:
    """What a path offers for one query.

    Args:
        recalls: Best first.
        cost: What finding them cost.
        order: How they should stand in the prompt, see `memory_paths.context.pack`.
        budget: Most tokens that the prompt may have; None: the window less what the answer needs.
    """

    recalls: tuple[Recall, ...] = ()
    cost: Cost = Cost()
    order: str = "relevance_last"
    budget: int | None = None


@dataclass(frozen=True)
class Answer:
    """What an agent says, and why.

    Args:
        text: The answer in words, as the model ended it by itself.
        path: Name of the path that served it.
        recalls: What stood in the prompt beside the question; empty where the knowledge sits in weights.
        offered: Ids of all that the path found, best first, whether or not it fitted into the prompt.
        confidence: Geometric mean probability of the answer's tokens, in [0, 1]; None where it was not computed.
        prompt_hash: SHA-256 of the exact token ids of the prompt.
        cost: What it took.
    """

    text: str
    path: str = ""
    recalls: tuple[Recall, ...] = ()
    offered: tuple[str, ...] = ()
    confidence: float | None = None
    prompt_hash: str = ""
    cost: Cost = Cost()


@dataclass(frozen=True)
class Receipt:
    """An acknowledged write: these ids are stored. `pending`: `flush()` still has to complete it."""

    ids: tuple[str, ...]
    cost: Cost = Cost()
    pending: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experience:
    """One step of a stream: what to learn, then what to ask."""

    name: str
    items: tuple[Knowledge, ...]
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class ReadingTask:
    """A question with the notes that answer it, distractors among them."""

    question: Question
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """A whole course of experiences, with what is asked beside them.

    Args:
        name: Identity for tables and records.
        experiences: In the order in which they arrive.
        prior: Questions about what the model knew before (kind "prior").
        skill: Reading tasks, the notes given: what the model must still be able to do.
        unknown: Questions about what is never taught (kind "unknown").
        chance: Share of right answers of always giving an attribute's most frequent value, in [0, 1]; None: unknown.
    """

    name: str
    experiences: tuple[Experience, ...]
    prior: tuple[Question, ...] = ()
    skill: tuple[ReadingTask, ...] = ()
    unknown: tuple[Question, ...] = ()
    chance: float | None = None

    def together(self) -> Stream:
        """The same with all experiences in one: what joint training sees."""
        items = tuple(item for experience in self.experiences for item in experience.items)
        questions = tuple(question for experience in self.experiences for question in experience.questions)
        return replace(self, experiences=(Experience("all", items, questions),))

    def one(self, number: int) -> Stream:
        """The same with one experience alone, by its number from 1, without the questions that need others too.

        Raises:
            ValueError: There is no such experience.
        """
        if type(number) is not int:
            raise ValueError(f"alone must be the number of an experience, got {number!r}")
        if not 1 <= number <= len(self.experiences):
            raise ValueError(f"alone must be between 1 and {len(self.experiences)}, got {number}")
        experience = self.experiences[number - 1]
        own = {item.id for item in experience.items}
        questions = tuple(question for question in experience.questions if own.issuperset(question.ids))
        return replace(self, experiences=(replace(experience, questions=questions),))


@dataclass(frozen=True)
class ToolCall:
    """What a model asks a tool to do.

    Args:
        id: By which the result says what it answers.
        name: Of the tool.
        arguments: By name, as JSON has them.
        problem: Why the arguments are not what the model wrote, such as text that is no JSON: the call cannot be made.

    Raises:
        TypeError: Arguments that JSON cannot hold.
        ValueError: An empty id or name.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    problem: str = ""

    def __post_init__(self) -> None:
        if not self.id or not self.name:
            raise ValueError(f"a tool call needs an id and a name, got id={self.id!r}, name={self.name!r}")
        object.__setattr__(self, "arguments", _as_json(f"arguments of call {self.id!r}", self.arguments))


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: Whose it is.
        text: What was said, or what the tool gave.
        calls: What tools the assistant calls; their results follow it.
        answers: Id of the call whose result this is, for the role "tool" alone.
        pinned: Whether it stays, however old it is; turns of the system always do.
        recalled: Ids of the notes that stood in the prompt for it, a turn of the assistant: what it repeats of them is
            not to be learnt again.

    Raises:
        ValueError: An unknown role, calls by another role than the assistant, two calls of one id, or a result that
            does not say what it answers.
    """

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    answers: str = ""
    pinned: bool = False
    recalled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role of a turn must be one of {get_args(Role)}, got {self.role!r}")
        if self.calls and self.role != "assistant":
            raise ValueError(f"only the assistant calls tools, got calls in a turn of role {self.role!r}")
        if len({call.id for call in self.calls}) < len(self.calls):
            raise ValueError(f"calls of a turn need ids of their own, got {[call.id for call in self.calls]}")
        if bool(self.answers) is not (self.role == "tool"):
            raise ValueError(
                f"`answers` names the call of a tool's result, and only of that; got role={self.role!r},"
                f" answers={self.answers!r}"
            )


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: a question, and notes that are data. How it is laid out is the model's matter.

    Args:
        question: The question in words. Empty after turns: the model goes on from the last of them.
        notes: Texts that stand before the question, the first one first.
        continues: Whether the question is no question but the beginning of a text, to be continued as it stands.
        turns: What was said before, ahead of the notes.
        tools: What the model may call, as JSON schemas, ahead of all else.
    """

    question: str
    notes: tuple[str, ...] = ()
    continues: bool = False
    turns: tuple[Turn, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)


@dataclass(frozen=True)
class Generation:
    """What a model said to one prompt.

    Args:
        text: Without the token that ended it and without surrounding white space.
        token_ids: The new tokens.
        loglikelihood: Sum over the new tokens, the stop included, in nats; NaN where the model does not tell.
        prompt_hash: SHA-256 of the prompt's token ids.
        usage: Tokens read and written, and the work they took.
        stopped: Whether the model ended by itself (False: the limit on new tokens did).
        calls: What tools it calls, where it was offered some and has a form for calls of its own.
    """

    text: str
    token_ids: tuple[int, ...]
    loglikelihood: float
    prompt_hash: str
    usage: Usage
    stopped: bool
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a path can do, so that an impossible pairing is refused at the door."""

    changes_weights: bool
    forgets: bool
    namespaces: bool


@runtime_checkable
class Generates(Protocol):
    """A language model that answers."""

    name: str
    window: int

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact number of tokens of the laid-out prompt."""
        ...

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Generation]:
        """Greedy answers with a natural stop, one for each prompt, in order."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A language model that says how likely a given answer is."""

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Log-likelihood of each answer after its prompt, in nats, the stop excluded."""
        ...

    def count_answer_tokens(self, pairs: Sequence[tuple[Prompt, str]]) -> list[int]:
        """Over how many tokens `loglikelihood` sums, for each pair."""
        ...


@runtime_checkable
class Trains(Protocol):
    """A language model whose weights are at hand: `module` is a torch module, typed loosely so that torch stays out."""

    name: str
    window: int
    module: Any
    tokenizer: Any

    def encode_phrasing(self, phrasing: Phrasing) -> tuple[list[int], list[bool]]:
        """Token ids of prompt + completion + stop, and which of them are targets."""
        ...

    def encode_answer(self, prompt: Prompt, answer: str) -> tuple[list[int], list[bool]]:
        """Token ids of prompt + answer + stop, and which of them are the answer and its stop."""
        ...

    def forward_flops(self, tokens: int) -> float:
        """Floating point operations of reading `tokens` tokens."""
        ...

    def share_after(self, place: str) -> float:
        """Share of a forward pass's work that is done after the block in which the submodule `place` lies."""
        ...

    def altered(self) -> AbstractContextManager[None]:
        """To be held for as long as the weights are not what they were; other threads wait for the model meanwhile."""
        ...

    def weights_changed(self) -> None:
        """To be called within that after every change of them: nothing that was computed before is used again."""
        ...

    def weights_hash(self) -> str:
        """SHA-256 over every parameter and buffer, in hex."""
        ...


@runtime_checkable
class KeepsPrefixes(Protocol):
    """A language model that keeps what it computed for the beginnings of prompts."""

    def drop_prefixes(self) -> None:
        """Keep none of it, in memory or in files: something that stood in prompts is to be forgotten."""
        ...


@runtime_checkable
class CountsUse(Protocol):
    """A path that keeps longer what was of use."""

    def use(self, ids: Sequence[str], namespace: str) -> None:
        """Say that these were of use. Ids that are not held are ignored."""
        ...


@runtime_checkable
class Spills(Protocol):
    """A path that hands on what it has no more room for."""

    @property
    def spills_to(self) -> str | None:
        """Name of the path that takes it; None: there is none."""
        ...


@runtime_checkable
class MemoryPath(Protocol):
    """Where knowledge goes. Final classes implement it by shape; nothing needs to be inherited.

    Every call carries the namespace. Paths that hold one namespace only refuse another with ValueError.
    """

    name: str
    capabilities: Capabilities

    def write(self, items: Sequence[Knowledge], namespace: str) -> Receipt:
        """Store items. Writing an id that is active with the same content changes nothing.

        Raises:
            TooLarge: An item does not fit. An evaluation goes on then, with this reason in place of figures.
        """
        ...

    def admit(self, items: Sequence[Knowledge], namespace: str) -> None:
        """Asked before items are moved here; changes nothing.

        Raises:
            ValueError: They could not all be held.
        """
        ...

    def read(self, queries: Sequence[Query]) -> list[Reading]:
        """What to show the model for each query; empty readings where knowledge sits in weights."""
        ...

    def forget(self, ids: Sequence[str], namespace: str) -> Receipt:
        """Stop holding these ids. Ids that are not held are ignored; the receipt names those that were."""
        ...

    def items(self, namespace: str) -> list[Knowledge]:
        """What this path holds now, in the order of writing."""
        ...

    def model(self, lm: Any) -> AbstractContextManager[Any]:
        """The model that this path answers with; on leaving, `lm` is byte-identical to what it was."""
        ...

    def flush(self) -> None:
        """Complete pending writes."""
        ...

    def state_hash(self) -> str:
        """SHA-256 of everything that could change an answer, in hex."""
        ...

    def stored_bytes(self) -> int:
        """Bytes that this path needs to keep what it holds, beyond the untouched model."""
        ...

    def save(self, folder: Path) -> None:
        """Write the state into an empty or missing folder."""
        ...

    def load(self, folder: Path) -> None:
        """The inverse of `save`; replaces the present state."""
        ...

    def close(self) -> None:
        """Release files and locks. Further calls are errors."""
        ...
