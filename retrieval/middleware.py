"""Memory for LangChain's agents: before an agent runs, the bank is asked; after it ran, the bank learns.

What is recalled stands in the user's turn as quoted data, never in the system's, and only in what the model is sent:
the conversation itself never holds it. This file imports langchain and is itself imported only by those who want it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables.config import run_in_executor

from memory_paths.door import plain, stands_in, text_id
from memory_paths.types import Knowledge, Query

from .bank import Bank
from .held import Guard, guarded
from .langchain import Namespace, named
from .memory_tools import MARK, TRUST, marks, memory_tools, quoted
from .postgres import PostgresBank

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
    )
    from langgraph.runtime import Runtime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; `pip install memory_paths[langchain]`") from error

Learner = Callable[[Sequence[BaseMessage]], Sequence[Knowledge]]

QUESTION = ("?", "\uff1f", "\u061f")  # in Chinese and Arabic letters, too
# Where a sentence ends. A period behind an initial or a title such as "Dr." ends none.
END = re.compile(r"(?<=[!?\uff01\uff1f\u3002\u061f])\s*|(?<=\.)(?<!\b[A-Z]\.)(?<!\b[A-Z][a-z]\.)\s+|\n+")
AFTERTHOUGHT = re.compile(r"[^\w?\uff1f\u061f]+$")  # "?!", a closing quote or bracket, a smile
LETTER = re.compile(r"\w")


def episodes(messages: Sequence[BaseMessage]) -> list[Knowledge]:
    """What the user told, word for word, one item of kind "episode" for each message.

    A message of nothing but questions (sentences that end in a question mark) is left out: it tells nothing, and would
    be recalled for the same question in place of its answer. Users may paste what they have from anywhere, so that
    their words are less than trusted (`memory_tools.TRUST`).
    """
    told = [message.text.strip() for message in messages if isinstance(message, HumanMessage)]
    return [
        Knowledge(f"episode-{text_id(json.dumps([text, TRUST]))}", text, "episode", source="conversation", trust=TRUST)
        for text in told
        if not all(AFTERTHOUGHT.sub("", part).endswith(QUESTION) for part in END.split(text) if LETTER.search(part))
    ]


class MemoryState(AgentState[Any]):
    """An agent's state with what its memory did in this run; `memory` is seen by no one else."""

    memory: NotRequired[Annotated[dict[str, list[str]], PrivateStateAttr]]


class MemoryMiddleware(AgentMiddleware[MemoryState, Any, Any]):
    """`create_agent(model, middleware=[MemoryMiddleware(bank, "ada")])`: an agent that remembers.

    The model finds what is nearest to the user's new words ahead of them in their own turn, as quoted data. Answers
    that were given with it say so in their `response_metadata`. After the run the new messages are learnt, without
    those that carry recalled text; an item that only repeats what was recalled is dropped; and of a run in which
    something was forgotten nothing is learnt, so that the request to forget does not bring it back.

    Args:
        bank: Where the items are. Who made it closes it.
        namespace: Whose memory this is: a name, or a function that says it within a run, as
            `lambda: get_runtime().context.user` does.
        top_k: Most items to recall.
        learn: What is to be kept of a run's new messages; None: nothing but what the model stores by `remember`.
            What a learner trusts from `memory_paths.quarantine.TRUSTED` on passes unread: not for what users, models
            or pages said.
        tools: Whether the model gets `remember`, `recall` and `forget`.
        quarantine: Who is let in, of what is learnt and of what the model stores; see `memory_tools`. None: everything,
            unread.

    Raises:
        ValueError: See `memory_tools`.
    """

    state_schema = MemoryState

    def __init__(
        self,
        bank: Bank | PostgresBank,
        namespace: Namespace,
        *,
        top_k: int = 4,
        learn: Learner | None = episodes,
        tools: bool = True,
        quarantine: Guard = "injections",
    ) -> None:
        super().__init__()
        self._quarantine = guarded(bank.ledger, quarantine)
        self.tools = memory_tools(bank, namespace, top_k=top_k, quarantine=self._quarantine) if tools else []
        self._bank = bank
        self._namespace = namespace
        self._top_k = top_k
        self._learn = learn

    def before_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Recall what is near to the user's new words and is not in the conversation already."""
        asked = _new_words(state["messages"])
        recalled: list[str] = []
        if words := "\n".join(message.text for message in asked).strip():
            (reading,) = self._bank.search([Query(words, named(self._namespace))], top_k=self._top_k)
            said = {plain(message.text) for message in state["messages"]}
            recalled = [one.item.id for one in reading.recalls if plain(one.item.text) not in said]
        return {"memory": {"asked": [str(message.id) for message in asked], "recalled": recalled}}

    async def abefore_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any]:
        """As `before_agent`, without blocking the event loop."""
        return await run_in_executor(None, self.before_agent, state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Put what was recalled, as far as it still holds, into the user's turn of what the model is sent."""
        request, used = self._with_notes(request)
        return _marked(handler(request), used)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`, without blocking the event loop."""
        request, used = await run_in_executor(None, self._with_notes, request)
        return _marked(await handler(request), used)

    def after_agent(self, state: MemoryState, runtime: Runtime[Any]) -> None:
        """Learn from the run's new messages."""
        memory = _of_run(state)
        new = _since(state["messages"], memory["asked"])
        if self._learn is None or any(marks(message).get("forgotten") for message in new):
            return
        namespace = named(self._namespace)
        ids = {*memory["recalled"], *(id for message in new for id in marks(message).get("recalled", ()))}
        recalled = [plain(item.text) for item in self._bank.get(sorted(ids), namespace).values()]
        learnt = self._learn([message for message in new if not marks(message)])
        fresh = [item for item in learnt if not any(stands_in(plain(item.text), text) for text in recalled)]
        if self._quarantine is not None:
            fresh, _ = self._quarantine.sift(fresh, namespace)
        if fresh:
            self._bank.write(fresh, namespace)

    async def aafter_agent(self, state: MemoryState, runtime: Runtime[Any]) -> None:
        """As `after_agent`, without blocking the event loop."""
        await run_in_executor(None, self.after_agent, state, runtime)

    def _with_notes(self, request: ModelRequest[Any]) -> tuple[ModelRequest[Any], list[str]]:
        memory = _of_run(request.state)
        held = self._bank.get(memory["recalled"], named(self._namespace)) if memory["recalled"] else {}
        items = [held[id] for id in memory["recalled"] if id in held]
        places = [row for row, message in enumerate(request.messages) if message.id in memory["asked"]]
        if not places:
            return request, []
        messages = list(request.messages)
        message = messages[places[-1]]
        ids = [item.id for item in items]
        if items:
            messages[places[-1]] = message.model_copy(
                update={
                    "content": _ahead(quoted(items), message.content),
                    "additional_kwargs": {**message.additional_kwargs, MARK: {"recalled": ids}},
                }
            )
        by_tool = [id for one in messages[places[-1] + 1 :] for id in marks(one).get("recalled", ())]
        return request.override(messages=messages), list(dict.fromkeys([*ids, *by_tool]))


def _of_run(state: Any) -> dict[str, list[str]]:
    """What `before_agent` noted: the ids of the messages that ask, and of the items that it recalled."""
    return {"asked": [], "recalled": [], **state.get("memory", {})}


def _new_words(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What the user has said since anyone else spoke."""
    first = len(messages)
    while first and isinstance(messages[first - 1], HumanMessage):
        first -= 1
    return list(messages[first:])


def _since(messages: Sequence[BaseMessage], asked: Sequence[str]) -> list[BaseMessage]:
    first = next((row for row, message in enumerate(messages) if message.id in asked), len(messages))
    return list(messages[first:])


def _ahead(notes: str, content: str | list[Any]) -> str | list[Any]:
    return f"{notes}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": notes}, *content]


def _marked(response: ModelResponse[Any], used: Sequence[str]) -> ModelResponse[Any]:
    """The response with its answers saying what was recalled for them."""
    if not used:
        return response
    mark = {MARK: {"recalled": list(used)}}
    result = [
        one.model_copy(update={"response_metadata": {**one.response_metadata, **mark}})
        if isinstance(one, AIMessage)
        else one
        for one in response.result
    ]
    return replace(response, result=result)
