"""Tools as memory: a registry of callable tools, described in the bank and found by what they are for.

An application registers a function; its description and the JSON schema of its arguments become an item of the bank.
Registered with another signature, it supersedes the old one, and the next prompt shows the new one: nothing is trained.
Functions themselves are never stored. What an event loop awaits (`acall` and its like) is done in a thread, by bank and
tool alike. This file is about tools that an agent learns to use; the tools that let a model use the bank (remember,
recall, forget) are in `memory_tools`.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from numbers import Integral
from typing import Any, Literal

from memory_paths.conversation import Conversation
from memory_paths.ledger import Version
from memory_paths.types import Knowledge, Query, ToolCall, Turn

from .bank import Bank
from .named import HASH_LENGTH, Names, current

SORT, USE = "tool", "tool-use"  # with what the ids of descriptions and of solved tasks begin
NAMED = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what the providers of chat models accept
LONGEST_RESULT = 8000  # characters of what a tool gives that a model is shown
LONGEST_COMPLAINT = 300
WITNESSES = 2  # see notebooks/results/tools.md


class ToolError(ValueError):
    """A call that is not made: what was given, what is allowed, and what to do."""


@dataclass(frozen=True)
class Tool:
    """A tool: what it is for, what arguments it takes, and the function behind it, where there is one in this process.

    Two tools are equal that are described alike.

    Args:
        name: Letters, digits, "_" and "-", at most 64: what the providers of chat models accept.
        description: What it is for, in words.
        parameters: JSON schema (2020-12) of an object: its arguments. An argument that it does not name is refused,
            unless it has `additionalProperties`.
        function: Called with the arguments by name; None: the tool is known and cannot be called.

    Raises:
        TypeError: A function that cannot be called, or is asynchronous.
        ValueError: A name or description as above, or parameters that are no such schema or refer to what is not in it.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAMED.fullmatch(self.name):
            raise ValueError(
                f"a tool's name has letters, digits, _ and -, at most 64, got {self.name!r}; give name=..."
            )
        if not isinstance(self.description, str) or not self.description.strip():
            raise ValueError(f"tool {self.name!r} needs a description: it is found by what it is for")
        if self.function is not None and (not callable(self.function) or inspect.iscoroutinefunction(self.function)):
            raise TypeError(f"function of tool {self.name!r} must be callable and not async, got {self.function!r}")
        object.__setattr__(self, "parameters", _checked_schema(self.name, self.parameters))

    @property
    def version(self) -> str:
        """Hash of the parameters, in hex: another one is another signature. The order of names counts for nothing."""
        return hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]

    @property
    def schema(self) -> dict[str, Any]:
        """As chat models take it: for `Prompt.tools`, `Conversation.offer` and LangChain's `bind_tools`."""
        described = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}

    @property
    def signature(self) -> str:
        """The parameters as one line of JSON."""
        return json.dumps(self.parameters, ensure_ascii=False)

    def problems(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with arguments, one line each; none: the tool may be called with them."""
        from jsonschema import Draft202012Validator

        closed = {"unevaluatedProperties": False, **self.parameters}
        checks = Draft202012Validator.FORMAT_CHECKER  # of dates and the like
        validator = Draft202012Validator(closed, registry=_no_other_files(), format_checker=checks)
        lines = []
        for error in validator.iter_errors(dict(arguments)):
            where, what = ".".join(map(str, error.absolute_path)), error.message
            if not where and error.validator in ("unevaluatedProperties", "additionalProperties"):
                unknown = [name for name in arguments if name not in self.parameters["properties"]]
                what = f"unknown argument {', '.join(map(repr, unknown))}"
            lines.append((f"{where}: {what}" if where else what)[:LONGEST_COMPLAINT])
        return lines


@dataclass(frozen=True)
class Result:
    """What became of a call.

    Args:
        call: What was asked for.
        text: What the tool gave, or why it gave nothing; for a tool's turn.
        outcome: "done"; "failed": the function raised; "refused": it was not called.
    """

    call: ToolCall
    text: str
    outcome: Literal["done", "failed", "refused"]


@dataclass(frozen=True)
class Run:
    """What became of a question.

    Args:
        text: The answer; empty where it was not reached.
        results: Of all calls, in order.
        finished: Whether the model answered within its steps.
    """

    text: str
    results: tuple[Result, ...]
    finished: bool


class Toolbox:
    """The tools of one namespace, described in a bank that had best be theirs alone.

    The namespace is the application's choice; nothing that a model says chooses it. A model is offered only what this
    process has registered: a text in the bank makes no tool.

    Args:
        bank: Where the descriptions are. Who made it closes it.
        namespace: Whose tools these are.
        longest: Most characters of a result that a model is shown; it has to fit into the window with all else.
        witnesses: A tool ranks by the mean score of so many of the texts that speak of it, the best ones, or of all
            where there are fewer. With 1, a single task that was told of the wrong tool puts it in front.

    Raises:
        ValueError: An empty namespace, or a `longest` or `witnesses` below 1.
    """

    def __init__(
        self, bank: Bank, namespace: str, *, longest: int = LONGEST_RESULT, witnesses: int = WITNESSES
    ) -> None:
        if not isinstance(namespace, str) or not namespace.strip():
            raise ValueError(f"a toolbox needs the name of a namespace, got {namespace!r}")
        if longest < 1:
            raise ValueError(f"longest must be at least 1 character, got {longest}")
        if witnesses < 1:
            raise ValueError(f"witnesses must be at least 1, got {witnesses}")
        self.namespace = namespace
        self._bank = bank
        self._longest = longest
        self._witnesses = witnesses
        self._names = Names(bank, SORT)
        self._registered: dict[str, Tool] = {}
        self._read: dict[str, Tool] = {}  # by the item's id, which stands for one content: schemas are slow to check

    def register(self, *given: Any) -> tuple[Tool, ...]:
        """Learn tools, or learn them anew; all or none are stored, and those that are described alike change nothing.

        Args:
            given: Each a typed Python function with a docstring, a LangChain `BaseTool`, or a `Tool` with a function.

        Raises:
            TypeError, ValueError: Something that is no such tool, or two of one name; nothing is stored.
        """
        tools = [tool_of(one) for one in given]
        for tool in tools:
            if tool.function is None:
                raise ValueError(f"tool {tool.name!r} has no function to call; give function=...")
        if len({tool.name for tool in tools}) < len(tools):
            raise ValueError(f"each tool needs a name of its own, got {[tool.name for tool in tools]}")
        self._bank.write([self._item(tool) for tool in tools], self.namespace)
        self._registered.update((tool.name, tool) for tool in tools)
        return tuple(tools)

    def learn(self, name: str, *tasks: str) -> None:
        """Remember that a tool was right for these tasks: from now on it is also found by tasks like them.

        That a call was made and did not fail says nothing of the kind: let a test, a judge or the user say it.

        Raises:
            ToolError: An unknown tool.
            ValueError: An empty task; nothing is stored.
        """
        if empty := [task for task in tasks if not task.strip()]:
            raise ValueError(f"a task that {name!r} solved has words, got {empty[0]!r}")
        self._known(name)
        self._bank.write([_use(name, task) for task in tasks], self.namespace)

    def forget(self, name: str) -> bool:
        """Forget a tool with its history and what it solved. Returns whether there was one."""
        used = self._bank.beginning(f"{USE}:{name}#", self.namespace)
        self._bank.forget([version.item.id for version in used], self.namespace)
        self._registered.pop(name, None)
        return bool(self._names.forget([name], self.namespace))

    def tools(self) -> tuple[Tool, ...]:
        """All that are known, in the order in which they were first learnt."""
        held = self._names.held(self.namespace).values()
        return tuple(self._tool(version.item) for versions in held if (version := current(versions)) is not None)

    def get(self, name: str, *, as_of: float | None = None) -> Tool | None:
        """A tool as it is, or as it was at a time in seconds since the epoch; None: there was none."""
        versions = self._names.versions(name, self.namespace)
        version = current(versions) if as_of is None else next((one for one in versions if _stood(one, as_of)), None)
        return None if version is None else self._tool(version.item)

    def find(self, task: str, k: int = 5, *, as_of: float | None = None) -> list[Tool]:
        """At most k tools that fit a task, best first: by their descriptions and by the tasks that they solved.

        The rank of a tool is that of the best texts that speak of it, see `witnesses`. Search is as the bank was told
        to; with "bm25" or a threshold fewer tools may come back.

        Args:
            task: In words.
            k: Most tools.
            as_of: Seconds since the epoch: the tools as they were then.

        Raises:
            TypeError: A k that is no whole number.
            ValueError: k below 1.
        """
        return self._find(task, k, as_of, {"$gt": ""})

    def offered(self, task: str, k: int = 5) -> list[Tool]:
        """The same, of those that can be called here: what a model is to be shown."""
        found = self._find(task, k, None, sorted(self._registered))
        return [tool for tool in found if tool.function is not None]

    def schemas(self, task: str, k: int = 5) -> list[dict[str, Any]]:
        """What `offered` finds, as chat models take it; see `Tool.schema`."""
        return [tool.schema for tool in self.offered(task, k)]

    async def aschemas(self, task: str, k: int = 5) -> list[dict[str, Any]]:
        """As `schemas`, without blocking the event loop."""
        return await asyncio.to_thread(self.schemas, task, k)

    def call(self, name: str, arguments: Mapping[str, Any], *, version: str = "") -> Result:
        """Call a tool with arguments that fit its schema. What the function raises is a result that says so.

        Args:
            name: Of the tool.
            arguments: By name, as JSON has them.
            version: Of the schema that the caller was shown, to be refused if it is stale; empty: any.

        Raises:
            ToolError: An unknown tool, one without a function here, a stale version, or arguments that do not fit.
        """
        tool = self._known(name)
        if tool.function is None:
            raise ToolError(self._why_not_callable(tool))
        if version and version != tool.version:
            raise ToolError(
                f"the signature of {name!r} has changed; nothing was called. Its arguments: {tool.signature}"
            )
        try:
            call = ToolCall("call", name, arguments)
        except TypeError as error:
            raise ToolError(f"{name!r} takes arguments by name: {error}. They are: {tool.signature}") from error
        if problems := tool.problems(call.arguments):
            raise ToolError(f"{name!r} was not called: {'; '.join(problems)}. Its arguments: {tool.signature}")
        try:
            return Result(call, self._shown(tool.function(**call.arguments)), "done")
        except Exception as error:  # the tool's own trouble is for the model to read
            return Result(call, f"{name} failed: {type(error).__name__}: {error}"[: self._longest], "failed")

    async def acall(self, name: str, arguments: Mapping[str, Any], *, version: str = "") -> Result:
        """As `call`, without blocking the event loop."""
        return await asyncio.to_thread(self.call, name, arguments, version=version)

    def answer(self, call: ToolCall, *, version: str = "") -> Result:
        """The same for a model's call: a refusal is a result, too, for the model to mend its call."""
        try:
            if call.problem:
                known = self.get(call.name)
                raise ToolError(f"{call.problem}. {f'Its arguments: {known.signature}' if known else ''}".strip())
            return replace(self.call(call.name, call.arguments, version=version), call=call)
        except ToolError as error:
            return Result(call, f"Refused: {error}", "refused")

    async def aanswer(self, call: ToolCall, *, version: str = "") -> Result:
        """As `answer`, without blocking the event loop."""
        return await asyncio.to_thread(self.answer, call, version=version)

    def run(
        self,
        conversation: Conversation,
        question: str,
        *,
        k: int = 5,
        steps: int = 8,
        notes: Sequence[str] | None = None,
    ) -> Run:
        """Ask a model that may call tools, until it answers.

        At each step it is offered the tools that fit the question, as they are described by then; its calls are
        checked and made, and what they gave is added to the conversation, refusals and failures among it. A registered
        tool that it names without having been offered it is called as well.

        Args:
            conversation: With a model whose generations carry calls, such as `chat_lm.ChatLM`.
            question: Of the user.
            k: Most tools to offer.
            steps: Most replies that the model is asked for. Calls of the last one are not made.
            notes: What was recalled for the question, for the prompt of every step. None: what the conversation's
                memory recalls at each.

        Raises:
            ValueError: k or steps below 1, or an empty question.
            TooLarge: See `Conversation.prompt`.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not question.strip():
            raise ValueError(f"a question has words, got {question!r}")
        results: list[Result] = []
        for step in range(1, steps + 1):
            shown = {tool.name: tool for tool in self.offered(question, k)}
            conversation.offer([tool.schema for tool in shown.values()])
            said = conversation.ask(question if step == 1 else "", notes)
            if not said.calls:
                return Run(said.text, tuple(results), finished=True)
            for call in said.calls:
                if step == steps:
                    result = Result(call, f"Refused: the limit of {steps} steps is reached.", "refused")
                else:
                    result = self.answer(call, version=shown[call.name].version if call.name in shown else "")
                conversation.add(Turn("tool", result.text, answers=call.id))
                results.append(result)
        return Run("", tuple(results), finished=False)

    def _find(self, task: str, k: int, as_of: float | None, named: Any) -> list[Tool]:
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise TypeError(f"k must be a whole number, got {k!r}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        query = Query(task, self.namespace, as_of=as_of, where={"tool": named})
        wanted = 4 * k * self._witnesses
        while True:
            (reading,) = self._bank.search([query], top_k=wanted)
            items = [recall.item for recall in reading.recalls]
            scores: dict[str, list[float]] = {}
            for recall in reading.recalls:
                scores.setdefault(recall.item.metadata["tool"], []).append(recall.score)
            if len(scores) >= k or len(items) < wanted:
                break
            wanted *= 4  # a tool that solved many tasks takes many places
        if len(items) == wanted:  # there are more texts, none of which is better than the last of these
            last = min(recall.score for recall in reading.recalls)
            for name, some in scores.items():
                if len(some) < self._witnesses:
                    told = 1 + len(self._bank.beginning(f"{USE}:{name}#", self.namespace))
                    some += [last] * (min(told, self._witnesses) - len(some))
        best = {name: sorted(some, reverse=True)[: self._witnesses] for name, some in scores.items()}
        names = sorted(best, key=lambda name: -sum(best[name]) / len(best[name]))
        found = {item.metadata["tool"]: self._tool(item) for item in items if self._names.of(item) is not None}
        tools = (found.get(name) or self.get(name, as_of=as_of) for name in names[:k])
        return [tool for tool in tools if tool is not None]

    def _item(self, tool: Tool) -> Knowledge:
        # As text, for the ledger sorts names, and models read arguments in the order in which they were written.
        parameters = json.dumps(tool.parameters, ensure_ascii=False)
        return self._names.item(
            tool.name,
            f"{tool.name}: {tool.description}",
            kind="procedure",
            cue=f"{_spelled(tool.name)}. {tool.description}",
            metadata={
                "tool": tool.name,
                "description": tool.description,
                "parameters": parameters,
                "version": tool.version,
            },
        )

    def _tool(self, item: Knowledge) -> Tool:
        """The tool that an item describes, with its function where the one that is registered here is the same."""
        tool = self._read.get(item.id)
        if tool is None:
            told = item.metadata
            tool = Tool(told["tool"], told["description"], json.loads(told["parameters"]))
            self._read[item.id] = tool
        registered = self._registered.get(tool.name)
        return registered if registered == tool else tool

    def _known(self, name: str) -> Tool:
        if (tool := self.get(name) if isinstance(name, str) else None) is not None:
            return tool
        names = [tool.name for tool in self.tools()]
        near = get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:3]
        raise ToolError(
            f"there is no tool {name!r} among {len(names)}; call one that you are offered"
            f"{f', such as {near}' if near else ''}, or register it"
        )

    def _why_not_callable(self, tool: Tool) -> str:
        if tool.name in self._registered:
            return (
                f"{tool.name!r} was registered here with another description or signature than it has by now; register"
                f" its present function. Its arguments: {tool.signature}"
            )
        return (
            f"{tool.name!r} is known and has no function in this process; register it again. Its arguments:"
            f" {tool.signature}"
        )

    def _shown(self, given: Any) -> str:
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
        if len(text) <= self._longest:
            return text
        return f"{text[: self._longest]}\n(Cut: the first {self._longest} of {len(text)} characters.)"


def tool_of(given: Any) -> Tool:
    """A typed Python function or a LangChain `BaseTool` as a tool; a `Tool` is one already.

    Of a function the name, the docstring and the annotations count; where the docstring describes the arguments in
    Google's style, so does the schema. Arguments are brought to the annotated types before it is called.

    Raises:
        TypeError: Something else, or a function that is asynchronous.
        ValueError: A function without a docstring or annotations, or with arguments that are not called by name.
    """
    if isinstance(given, Tool):
        return given
    from langchain_core.tools import BaseTool, StructuredTool
    from langchain_core.utils.function_calling import convert_to_openai_tool

    if not isinstance(given, BaseTool):
        _check_function(given)
        given = StructuredTool.from_function(given, parse_docstring=True)
    if getattr(given, "coroutine", None) is not None and getattr(given, "func", None) is None:
        raise TypeError(f"tool {given.name!r} is asynchronous alone; give one that can be called")
    described = convert_to_openai_tool(given)["function"]
    parameters = described.get("parameters", {})
    # Only a class of arguments knows more of them than a model is told.
    taken = getattr(given.args_schema, "model_fields", {})
    if injected := [n for n, one in taken.items() if one.is_required() and n not in parameters.get("properties", {})]:
        raise ValueError(
            f"arguments {injected} of tool {given.name!r} are injected by LangChain's agents alone; bind them"
        )

    def function(**arguments: Any) -> Any:
        return given.run(arguments)

    return Tool(described["name"], described["description"], parameters, function)


def _use(name: str, task: str) -> Knowledge:
    number = hashlib.sha256(task.encode()).hexdigest()[:HASH_LENGTH]
    text = f"{task}\nSolved with: {name}"
    return Knowledge(f"{USE}:{name}#{number}", text, "episode", cue=task, metadata={"tool": name})


def _check_function(given: Any) -> None:
    if not (inspect.isfunction(given) or inspect.ismethod(given)):
        raise TypeError(f"a tool is a function, a LangChain BaseTool or a Tool, got {type(given).__name__}")
    if inspect.iscoroutinefunction(given):
        raise TypeError(f"function {given.__name__!r} is asynchronous; give one that can be called")
    if not inspect.getdoc(given):
        raise ValueError(f"function {given.__name__!r} needs a docstring: it is found by what it is for")
    for name, parameter in inspect.signature(given).parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise ValueError(
                f"argument {name!r} of {given.__name__!r} needs an annotation, from which its schema is made"
            )
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ValueError(f"argument {name!r} of {given.__name__!r} cannot be given by name; name each argument")


def _checked_schema(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        schema = {"type": "object", "properties": {}, **json.loads(json.dumps(dict(given), allow_nan=False))}
        Draft202012Validator.check_schema(schema)
        if schema["type"] != "object":
            raise ValueError(f"they are of type {schema['type']!r}")
        resolver = _no_other_files().resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in re.findall(r'"\$(?:dynamicRef|ref)": "([^"]*)"', json.dumps(schema)):
            resolver.lookup(reference)
    except (TypeError, ValueError, SchemaError, Unresolvable) as error:
        said = error.message if isinstance(error, SchemaError) else error
        raise ValueError(
            f"parameters of tool {name!r} must be a JSON schema of an object that refers to nothing outside it: {said}"
        ) from error
    return schema


def _no_other_files() -> Any:
    """What a schema may refer to: itself. By default jsonschema would fetch addresses from the network."""
    from referencing import Registry

    return Registry()


def _stood(version: Version, time: float) -> bool:
    return version.recorded_at <= time and (version.ended_at is None or version.ended_at > time)


def _spelled(name: str) -> str:
    """A name as words, for search: `getWeather_now` is "get Weather now"."""
    return re.sub(r"[_-]+|(?<=[a-z0-9])(?=[A-Z])", " ", name).strip()
