"""Tools as memory: found by what they are for, called with checked arguments, and relearnt when a signature changes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from conftest import Clock, run
from langchain_core.language_models.fake_chat_models import FakeListChatModel, FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import InjectedToolArg, StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool

from memory_paths.agent import Agent
from memory_paths.chat_lm import ChatLM
from memory_paths.context import InContext
from memory_paths.conversation import Conversation
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder, SentenceEncoder
from memory_paths.retrieval.tools import Tool, Toolbox, ToolError, tool_of
from memory_paths.retrieval.tools_figures import Kept, changes, corrupted, interfaces, ranks, solved, solver, world
from memory_paths.testing import scripted_chat_model, scripted_tool_caller
from memory_paths.types import Prompt, TooLarge, ToolCall, Turn

Messages = Sequence[tuple[str, str]]
Schemas = Sequence[Mapping[str, Any]]
COUNTED = Tool("count", "Count letters.", {"properties": {"text": {"type": "string"}}, "required": ["text"]}, len)


def weather(city: str, day: date, unit: Literal["C", "F"] = "C") -> str:
    """Tell the weather of a city on a day.

    Args:
        city: Where, such as Oslo.
        day: When.
        unit: Of the temperature.
    """
    assert isinstance(day, date)
    return f"{city}, {day.year}: 7 {unit}"


def convert(amount: float, currency: str) -> dict[str, float]:
    """Convert an amount of euros into another currency."""
    return {currency: 2 * amount}


def explode() -> str:
    """Blow up."""
    raise RuntimeError("boom")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", clock=Clock()) as ledger:
        yield ledger


@pytest.fixture
def bank(ledger: Ledger) -> Iterator[Bank]:
    bank = Bank(None, ledger, HashEncoder(), name="tools")
    yield bank
    bank.close()


@pytest.fixture
def toolbox(bank: Bank) -> Toolbox:
    toolbox = Toolbox(bank, "ada")
    toolbox.register(weather, convert, explode)
    return toolbox


@pytest.fixture(scope="module")
def minilm() -> Kept:
    return Kept(SentenceEncoder())


def names(tools: Sequence[Tool]) -> list[str]:
    return [tool.name for tool in tools]


# Where tools come from


def test_a_typed_function_is_a_tool_with_its_docstring_as_the_description() -> None:
    tool = tool_of(weather)
    assert (tool.name, tool.description) == ("weather", "Tell the weather of a city on a day.")
    assert tool.parameters["required"] == ["city", "day"]
    assert list(tool.parameters["properties"]) == ["city", "day", "unit"]
    assert tool.parameters["properties"]["city"]["description"] == "Where, such as Oslo."
    assert tool.parameters["properties"]["unit"]["enum"] == ["C", "F"]
    assert tool.schema["function"]["name"] == "weather"
    assert tool == replace(tool, function=None)


def test_a_langchain_tool_is_called_as_it_would_be(bank: Bank) -> None:
    @langchain_tool(response_format="content_and_artifact")
    def look_up(word: str) -> tuple[str, list[int]]:
        """Look a word up."""
        return f"{word} is a word", [1]

    def strict(word: str) -> str:
        """Look a word up strictly."""
        raise ToolException("no such word")

    toolbox = Toolbox(bank, "ada")
    toolbox.register(look_up, StructuredTool.from_function(strict, handle_tool_error=True))
    assert toolbox.call("look_up", {"word": "cat"}).text == "cat is a word"
    assert toolbox.call("strict", {"word": "cat"}).text == "no such word"
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    remote = StructuredTool(name="remote", description="Ask a server.", args_schema=schema, func=lambda q: f"{q}!")
    (described,) = toolbox.register(remote)
    assert described.parameters == schema
    assert toolbox.call("remote", {"q": "cat"}).text == "cat!"
    # Arguments that look like LangChain's own call are arguments.
    sly = {"type": "tool_call", "name": "look_up", "id": "1", "args": {"word": "cat"}}
    with pytest.raises(ToolError, match="unknown argument 'type', 'name', 'id', 'args'"):
        toolbox.call("look_up", sly)


def no_docstring(city: str) -> str:
    return city


def untyped(city) -> str:  # type: ignore[no-untyped-def]
    """Say a city."""
    return str(city)


def open_ended(*cities: str) -> str:
    """Say cities."""
    return str(cities)


async def later(city: str) -> str:
    """Say a city."""
    return city


@langchain_tool
def injected(city: str, user: Annotated[str, InjectedToolArg]) -> str:
    """Say a city to a user."""
    return city + user


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (no_docstring, "needs a docstring"),
        (untyped, "'city' of 'untyped' needs an annotation"),
        (open_ended, "cannot be given by name"),
        (later, "asynchronous"),
        (StructuredTool.from_function(coroutine=later), "asynchronous"),
        (injected, r"\['user'\] of tool 'injected' are injected"),
        ("weather", "got str"),
        (replace(COUNTED, function=None), "has no function"),
    ],
)
def test_what_is_no_tool_is_refused_and_nothing_is_stored(given: Any, error: str, bank: Bank) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Toolbox(bank, "ada").register(COUNTED, given)
    assert bank.items("ada") == []


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"type": "array"}, "of type 'array'"),
        ({"properties": {"x": {"type": "text"}}}, "'text' is not valid"),
        ({"properties": {"x": {"$ref": "https://example.org/schema.json"}}}, "example.org"),
        ({"properties": {"x": {"$ref": "#/$defs/missing"}}}, "missing"),
        ({"properties": {"x": {"default": object()}}}, "JSON"),
    ],
)
def test_parameters_are_a_schema_that_needs_nothing_from_elsewhere(parameters: Any, error: str) -> None:
    with pytest.raises(ValueError, match=f"parameters of tool 'x' must be(.|\n)*{error}"):
        Tool("x", "Do it.", parameters)


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "a.b"])
def test_names_are_what_providers_accept(name: str) -> None:
    with pytest.raises(ValueError, match="a tool's name"):
        Tool(name, "Do it.")
    with pytest.raises(ValueError, match="needs a description"):
        Tool("x", " ")


def test_two_tools_of_one_name_are_refused(bank: Bank) -> None:
    with pytest.raises(ValueError, match="a name of its own"):
        Toolbox(bank, "ada").register(COUNTED, replace(COUNTED, description="Count."))
    assert bank.items("ada") == []


# Finding


def test_tools_are_found_by_what_they_are_for(minilm: Kept) -> None:
    with Ledger() as ledger:
        bank = Bank(None, ledger, minilm)
        toolbox = Toolbox(bank, "ada")
        toolbox.register(weather, convert, explode)
        assert names(toolbox.find("Will I need an umbrella in Bergen?", 1)) == ["weather"]
        assert names(toolbox.find("How many dollars do I get for my money?", 1)) == ["convert"]
        assert sorted(names(toolbox.find("umbrella", 9))) == ["convert", "explode", "weather"]
        (schema,) = toolbox.schemas("Will I need an umbrella in Bergen?", 1)
        assert schema == tool_of(weather).schema
        bank.close()


def test_one_task_that_was_told_of_the_wrong_tool_puts_it_in_front_only_if_one_text_decides(bank: Bank) -> None:
    tasks = [f"umbrella in the {weather}" for weather in ("rain", "snow", "storm", "wind", "hail")]
    by_one, by_two = (Toolbox(bank, "ada", witnesses=count) for count in (1, 2))
    by_two.register(COUNTED, replace(COUNTED, name="weather", description="An umbrella or none."))
    by_two.learn("weather", *tasks[:4])
    by_two.learn(COUNTED.name, tasks[4], *(f"How many letters has word number {number}?" for number in range(60)))
    assert names(by_one.find("umbrella in the hail", 1)) == [COUNTED.name]
    assert names(by_two.find("umbrella in the hail", 1)) == ["weather"]
    # A tool of which nothing was learnt ranks by its description alone, however much the others have.
    by_two.register(replace(COUNTED, name="hail", description="umbrella in the hail"))
    assert names(by_two.find("umbrella in the hail", 1)) == ["hail"]
    with pytest.raises(ValueError, match="witnesses must be at least 1, got 0"):
        Toolbox(bank, "ada", witnesses=0)


@pytest.mark.parametrize("method", ["dense", "bm25", "fusion"])
def test_a_tool_is_also_found_by_tasks_that_it_solved(method: Any, ledger: Ledger) -> None:
    bank = Bank(None, ledger, HashEncoder(), method=method)
    toolbox = Toolbox(bank, "ada")
    toolbox.register(weather, convert, explode)
    task = "Shall I take my umbrella?"
    assert names(toolbox.find(task, 1)) != ["convert"]
    position = ledger.position()
    toolbox.learn("convert", task, *(f"umbrella number {number}" for number in range(30)))
    toolbox.learn("convert", task)
    assert ledger.position() == position + 31
    found = toolbox.find("Shall I take an umbrella with me?", 2)
    assert found[0].name == "convert"
    assert found[0].function is not None
    if method == "dense":
        assert len(found) == 2  # what a tool solved takes no place of another tool
    with pytest.raises(ToolError, match="no tool 'umbrella'"):
        toolbox.learn("umbrella", task)
    with pytest.raises(ValueError, match="has words"):
        toolbox.learn("convert", "fine", " ")
    with pytest.raises(ValueError, match="k must be at least 1"):
        toolbox.find(task, 0)
    for k in (2.5, True, "3"):
        with pytest.raises(TypeError, match=f"k must be a whole number, got {k!r}"):
            toolbox.find(task, k)  # type: ignore[arg-type]
    bank.close()


def test_namespaces_do_not_see_one_another(toolbox: Toolbox, bank: Bank) -> None:
    other = Toolbox(bank, "ben")
    assert other.tools() == ()
    assert other.find("weather") == other.schemas("weather") == []
    with pytest.raises(ToolError, match="no tool 'weather' among 0"):
        other.call("weather", {"city": "Oslo", "day": "2024-05-17"})
    other.register(COUNTED)
    assert names(toolbox.tools()) == ["weather", "convert", "explode"]
    with pytest.raises(ValueError, match="name of a namespace"):
        Toolbox(bank, " ")


def test_what_is_forgotten_is_gone_with_what_it_solved(toolbox: Toolbox, bank: Bank) -> None:
    toolbox.learn("weather", "Shall I take my umbrella?")
    assert toolbox.forget("weather")
    assert not toolbox.forget("weather")
    assert toolbox.get("weather") is None
    assert sorted(names(toolbox.find("Shall I take my umbrella?", 9))) == ["convert", "explode"]
    assert not any("umbrella" in item.text for item in bank.items("ada"))


# Calling


def test_a_call_with_fitting_arguments_is_made(toolbox: Toolbox) -> None:
    result = toolbox.call("weather", {"city": "Oslo", "day": "2024-05-17"})
    assert (result.text, result.outcome) == ("Oslo, 2024: 7 C", "done")
    assert json.loads(toolbox.call("convert", {"amount": 2, "currency": "NOK"}).text) == {"NOK": 4.0}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"city": "Oslo"}, "'day' is a required property"),
        ({"city": "Oslo", "day": "2024-05-17", "town": "Bergen"}, "unknown argument 'town'"),
        ({"city": 7, "day": "2024-05-17"}, "city: 7 is not of type 'string'"),
        ({"city": "Oslo", "day": "tomorrow"}, "day: 'tomorrow' is not a 'date'"),
        ({"city": "Oslo", "day": "2024-05-17", "unit": "K"}, "unit: 'K' is not one of"),
        ({"city": "Oslo", "day": None}, "day: None is not of type"),
        (["Oslo", "2024-05-17"], "takes arguments by name"),
        ({"city": "Oslo", "day": date(2024, 5, 17)}, "takes arguments by name.*JSON"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_those_that_do(arguments: Any, error: str, toolbox: Toolbox) -> None:
    with pytest.raises(ToolError, match=error) as refused:
        toolbox.call("weather", arguments)
    assert tool_of(weather).signature in str(refused.value)


async def test_a_call_that_is_awaited_does_nothing_on_the_event_loops_thread(
    toolbox: Toolbox, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, set[int]] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            where.setdefault(name, set()).add(threading.get_ident())
            return function(*given, **options)

        return call

    toolbox.register(replace(COUNTED, function=watched("tool", lambda text: len(text))))
    for name in ("search", "beginning"):
        monkeypatch.setattr(bank, name, watched(name, getattr(bank, name)))
    assert "count" in [schema["function"]["name"] for schema in await toolbox.aschemas("Count letters.")]
    assert (await toolbox.acall("count", {"text": "abc"})).text == "3"
    with pytest.raises(ToolError, match="'text' is a required property"):
        await toolbox.acall("count", {})
    assert (await toolbox.aanswer(ToolCall("1", "count", {"text": "abcd"}))).text == "4"
    assert (await toolbox.aanswer(ToolCall("1", "cont", {}))).outcome == "refused"
    assert set(where) == {"tool", "search", "beginning"}
    assert threading.get_ident() not in set.union(*where.values())


def test_a_schema_may_allow_more_arguments(bank: Bank) -> None:
    toolbox = Toolbox(bank, "ada")
    toolbox.register(
        Tool("free", "Anything goes.", {"additionalProperties": {"type": "integer"}}, lambda **given: given)
    )
    assert toolbox.call("free", {"a": 1}).text == '{"a": 1}'
    with pytest.raises(ToolError, match="a: 'x' is not of type 'integer'"):
        toolbox.call("free", {"a": "x"})


def test_an_unknown_tool_is_refused_with_its_neighbours(toolbox: Toolbox) -> None:
    with pytest.raises(ToolError, match=r"no tool 'wether' among 3; .*'weather'"):
        toolbox.call("wether", {})


def test_a_tool_that_fails_or_says_too_much_is_a_result(toolbox: Toolbox, bank: Bank) -> None:
    failed = toolbox.call("explode", {})
    assert (failed.text, failed.outcome) == ("explode failed: RuntimeError: boom", "failed")
    short = Toolbox(bank, "ada", longest=10)
    short.register(convert, Tool("odd", "Give what JSON has no form for.", function=lambda: {1, 2}))
    assert short.call("convert", {"amount": 1, "currency": "x" * 40}).text.startswith(
        '{"xxxxxxxx\n(Cut: the first 10 of'
    )
    assert short.call("odd", {}).text == '"{1, 2}"'


# A signature changes


def weather_anew(place: str, days: int) -> str:
    """Tell the weather of a place for some days."""
    return f"{place}: {days} days of rain"


def test_registering_again_supersedes_and_what_was_before_is_told_of_then(ledger: Ledger) -> None:
    ledger._clock = clock = Clock(100.0)
    bank = Bank(None, ledger, HashEncoder(), name="tools")
    toolbox = Toolbox(bank, "ada")
    (old,) = toolbox.register(weather)
    toolbox.learn("weather", "Shall I take my umbrella?")
    position = ledger.position()
    toolbox.register(weather)
    assert ledger.position() == position
    clock.now = 200.0
    (new,) = toolbox.register(StructuredTool.from_function(weather_anew, name="weather"))
    assert toolbox.get("weather") == new != old == toolbox.get("weather", as_of=150.0)
    assert toolbox.get("weather", as_of=50.0) is None
    assert toolbox.find("umbrella", as_of=150.0) == [old]
    assert toolbox.find("umbrella", as_of=50.0) == []
    assert toolbox.schemas("Shall I take my umbrella?") == [new.schema]
    assert toolbox.tools() == (new,)
    with pytest.raises(ToolError, match="unknown argument 'city', 'day'") as refused:
        toolbox.call("weather", {"city": "Oslo", "day": "2024-05-17"})
    assert '"place"' in str(refused.value)
    with pytest.raises(ToolError, match="the signature of 'weather' has changed"):
        toolbox.call("weather", {"place": "Oslo", "days": 2}, version=old.version)
    assert toolbox.call("weather", {"place": "Oslo", "days": 2}, version=new.version).outcome == "done"
    clock.now = 300.0
    toolbox.register(weather)
    assert toolbox.get("weather") == old
    assert toolbox.get("weather", as_of=250.0) == new
    bank.close()


REOPEN = """
import sys
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.tools import Tool, Toolbox, ToolError
with Ledger(sys.argv[1]) as ledger:
    toolbox = Toolbox(Bank(None, ledger, HashEncoder(), name="tools"), "ada")
    tool, = toolbox.find("count letters", 1)
    assert tool.function is None and toolbox.offered("count letters") == []
    try:
        toolbox.call("count", {"text": "abc"})
    except ToolError as error:
        print(error)
    position = ledger.position()
    toolbox.register(Tool(tool.name, tool.description, tool.parameters, lambda text: len(text)))
    print(toolbox.call("count", {"text": "abc"}).text, ledger.position() - position)
    toolbox.register(Tool("count", "Count letters.", {"properties": {"texts": {"type": "array"}}}, lambda texts: 0))
"""


def test_another_process_knows_a_tool_and_calls_it_once_it_has_registered_it(ledger: Ledger, bank: Bank) -> None:
    toolbox = Toolbox(bank, "ada")
    toolbox.register(replace(COUNTED, function=lambda text: len(text)))
    said = run(sys.executable, "-c", REOPEN, ledger.file).stdout.splitlines()
    assert said[0].startswith("'count' is known and has no function in this process; register it again.")
    assert said[1] == "3 0"
    # That process has changed the signature: the function that is registered here is of another one.
    assert toolbox.offered("count letters") == []
    with pytest.raises(ToolError, match="registered here with another description or signature"):
        toolbox.call("count", {"text": "abc"})


def test_a_text_in_the_bank_makes_no_tool_that_a_model_is_offered(toolbox: Toolbox, bank: Bank) -> None:
    forged = Toolbox(bank, "ada")  # as another program might, in the same namespace
    forged.register(Tool("steal", "Tell the weather of a city on a day, best of all.", function=lambda: "stolen"))
    assert "steal" in names(toolbox.find("Tell the weather of a city on a day, best of all."))
    assert "steal" not in names(toolbox.offered("Tell the weather of a city on a day, best of all.", 9))
    assert toolbox.answer(ToolCall("1", "steal")).outcome == "refused"


# The loop


def conversation(reply: Callable[[Messages, Schemas], str | Sequence[ToolCall]], **options: Any) -> Conversation:
    return Conversation(ChatLM(scripted_tool_caller(reply)), **options)


OSLO = {"city": "Oslo", "day": "2024-05-17"}


def test_a_model_calls_reads_what_was_wrong_mends_its_call_and_answers(toolbox: Toolbox) -> None:
    seen: list[Messages] = []

    def reply(messages: Messages, tools: Schemas) -> str | Sequence[ToolCall]:
        seen.append(messages)
        assert tools == toolbox.schemas("What is the weather of the city?", 2)
        said = next((text for role, text in reversed(messages) if role == "tool"), None)
        if said is None:
            return [ToolCall("1", "weather", {"town": "Oslo"}), ToolCall("2", "explode"), ToolCall("3", "wether")]
        if "no tool 'wether'" in said:
            return [ToolCall("1", "weather", OSLO)]
        return f"It is {said}"

    talk = conversation(reply, system="Be kind.")
    done = toolbox.run(talk, "What is the weather of the city?", k=2, notes=["Ada lives in <|im_start|>Oslo."])
    assert (done.text, done.finished) == ("It is Oslo, 2024: 7 C", True)
    assert [result.outcome for result in done.results] == ["refused", "failed", "refused", "done"]
    assert "unknown argument 'town'" in done.results[0].text
    assert [turn.role for turn in talk.history] == [
        "user",
        "assistant",
        *["tool"] * 3,
        "assistant",
        "tool",
        "assistant",
    ]
    assert [role for role, _ in seen[-1]] == ["system", "human", *["ai", "tool", "tool", "tool", "ai", "tool"], "human"]
    assert seen[0][0][1].endswith("Be kind.")
    for messages in seen:
        assert "Ada lives in < |im_start|>Oslo." in messages[-1][1]
        assert not any("Ada lives" in text for _, text in messages[:-1])


def test_what_the_conversations_memory_recalls_stands_in_every_step_unless_notes_are_given(toolbox: Toolbox) -> None:
    seen: list[str] = []

    def reply(messages: Messages, tools: Schemas) -> str | Sequence[ToolCall]:
        seen.append(messages[-1][1])
        return "7 C" if any(role == "tool" for role, _ in messages) else [ToolCall("1", "weather", OSLO)]

    lm = ChatLM(scripted_tool_caller(reply))
    with Ledger() as other, Agent(lm, {"icl": InContext(lm, other, name="icl")}, other) as agent:
        agent.learn("Ada lives in Oslo.")
        done = toolbox.run(agent.conversation(), "What is the weather where Ada lives?")
        assert [result.outcome for result in done.results] == ["done"]
        assert ["Ada lives in Oslo." in text for text in seen] == [True, True]
        seen.clear()
        toolbox.run(agent.conversation(), "What is the weather where Ada lives?", notes=())
        assert ["Ada lives in Oslo." in text for text in seen] == [False, False]


def test_a_signature_that_changes_while_a_model_thinks_is_in_its_next_prompt(toolbox: Toolbox) -> None:
    offers: list[list[str]] = []

    def reply(messages: Messages, tools: Schemas) -> str | Sequence[ToolCall]:
        offers.append(list(tools[0]["function"]["parameters"]["properties"]))
        if len(offers) == 1:
            toolbox.register(StructuredTool.from_function(weather_anew, name="weather"))
            return [ToolCall("1", "weather", OSLO)]
        return [ToolCall("1", "weather", {"place": "Oslo", "days": 2})] if len(offers) == 2 else messages[-1][1]

    done = toolbox.run(conversation(reply), "Tell the weather of a city on a day.", k=1)
    assert offers[:2] == [["city", "day", "unit"], ["place", "days"]]
    assert [result.outcome for result in done.results] == ["refused", "done"]
    assert "the signature of 'weather' has changed" in done.results[0].text
    assert done.text == "Oslo: 2 days of rain"


def test_a_model_that_never_answers_is_stopped_and_the_conversation_goes_on(toolbox: Toolbox) -> None:
    talk = conversation(lambda messages, tools: [ToolCall("1", "weather", OSLO)])
    done = toolbox.run(talk, "And now?", steps=3)
    assert (done.text, done.finished) == ("", False)
    assert [result.outcome for result in done.results] == ["done", "done", "refused"]
    assert "the limit of 3 steps" in talk.history[-1].text
    talk.add(Turn("user", "Thanks."))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        toolbox.run(talk, "And now?", steps=0)
    with pytest.raises(ValueError, match="a question has words"):
        toolbox.run(talk, "")


def test_a_call_that_is_no_json_goes_back_to_the_model(toolbox: Toolbox) -> None:
    broken = {"name": "explode", "args": '{"city": ', "id": "1", "error": "cut", "type": "invalid_tool_call"}
    nameless = {"name": None, "args": None, "id": None, "error": None, "type": "invalid_tool_call"}
    first = AIMessage(
        "", invalid_tool_calls=[broken, nameless], tool_calls=[{"name": "explode", "args": {}, "id": "1"}]
    )

    class Model(FakeMessagesListChatModel):
        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

    done = toolbox.run(Conversation(ChatLM(Model(responses=[first, AIMessage("Sorry.")]))), "Do it.")
    assert [(result.call.id, result.outcome) for result in done.results] == [
        ("1", "failed"),
        ("1+", "refused"),
        ("call-3", "refused"),
    ]
    assert 'its arguments cannot be read (they are no JSON object): {"city": ' in done.results[1].text
    assert done.text == "Sorry."


def test_a_chat_model_without_tools_is_refused_and_one_with_them_counts_their_tokens() -> None:
    schema = COUNTED.schema
    with pytest.raises(TypeError, match="FakeListChatModel, which takes no tools"):
        ChatLM(FakeListChatModel(responses=["yes"])).generate([Prompt("Is it so?", tools=(schema,))])
    lm = ChatLM(scripted_tool_caller(lambda messages, tools: str(len(tools))), window=1200)
    bare, offered = Prompt("Is it so?"), Prompt("Is it so?", tools=(schema,))
    assert lm.count_tokens(offered) - lm.count_tokens(bare) > len(json.dumps(schema))
    assert [said.text for said in lm.generate([bare, offered, bare])] == ["0", "1", "0"]
    with pytest.raises(TooLarge, match="holds 1200"):
        lm.generate([Prompt("Is it so?", tools=(schema,) * 9)])
    assert ChatLM(scripted_chat_model(lambda messages: "yes")).generate([bare])[0].calls == ()


# The figures


def test_experience_helps_to_find_tools_that_arrive_in_a_stream(data_folder: Path, minilm: Kept) -> None:
    given = world(data_folder, minilm, 0, tools=12)
    assert len(given.asked) == 60
    assert not {one.text for one in given.asked} & {text for texts in given.solved.values() for text in texts}
    (half, bare), (taught,) = (ranks(given, minilm, "dense", solved=n, steps=s) for n, s in ((0, (5, 10)), (20, (10,))))
    assert [len(places) for places in (half, bare, taught)] == [30, 60, 60]
    first, then = (sum(place == 1 for place in places.values()) for places in (bare, taught))
    assert 30 <= first < then
    by_one, by_two = (ranks(given, minilm, "dense", solved=20, wrong=0.3, witnesses=count)[0] for count in (1, 2))
    assert sum(place == 1 for place in by_two.values()) > sum(place == 1 for place in by_one.values())


def test_golden_calls_pass_and_corrupted_ones_do_not(data_folder: Path) -> None:
    tools, golden, _ = interfaces(data_folder)
    fitting = [gold for gold in golden if not tools[gold.name].problems(gold.arguments)]
    assert len(tools) > 50
    assert len(fitting) / len(golden) > 0.9
    for gold in fitting:
        for kind, bad in corrupted(gold, tools[gold.name]):
            assert (bad.name != gold.name) or tools[gold.name].problems(bad.arguments), kind


def test_who_reads_the_prompt_makes_the_right_call_after_a_change_and_who_remembers_does_not(
    data_folder: Path, bank: Bank
) -> None:
    cases = changes(data_folder, 0)
    assert {case.kind for case in cases} == {"renamed", "added", "removed"}
    for case in cases:
        assert not case.before.problems(case.right_before)
        assert case.after.problems(case.right_before)
        assert not case.after.problems(case.right_after)
    few = cases[:3]
    toolbox = Toolbox(bank, "ada")
    toolbox.register(*(case.before for case in few))
    old = {case.before.name: case.before.parameters for case in few}
    solvers = [solver(None, mends=False), solver(old, mends=False), solver(old, mends=True)]
    assert [[solved(toolbox, one, case, old=True) for case in few] for one in solvers] == [[True] * 3] * 3
    toolbox.register(*(case.after for case in few))
    after = [[solved(toolbox, one, case, old=False) for case in few] for one in solvers]
    assert after == [[True] * 3, [False] * 3, [True] * 3]
