"""The agent as a LangChain Runnable. The only core file that imports langchain-core, and only when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from memory_paths.types import Answer


def question_of(given: Any) -> str:
    """The question in a str, in a mapping's "question", "input" or "messages", or in the last human message of a list
    or a prompt value.

    Raises:
        TypeError: Nothing of these.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        for key in ("question", "input", "messages"):
            if key in given:
                return question_of(given[key])
        raise TypeError(f"a dict needs 'question', 'input' or 'messages', got the keys {sorted(map(str, given))}")
    messages = given.to_messages() if hasattr(given, "to_messages") else given
    if not isinstance(messages, Sequence):
        messages = [messages]
    for message in reversed(messages):
        if isinstance(message, tuple) and message[0] in ("human", "user"):
            return str(message[1])
        if isinstance(message, Mapping) and message.get("role") in ("human", "user"):
            return _words(message["content"])
        if getattr(message, "type", None) == "human":
            return _words(message.content)
    raise TypeError(f"expected a str, a dict with 'question', or messages with a human one; got {type(given).__name__}")


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")


def as_runnable(agent: Any) -> Any:
    """invoke, ainvoke, batch, abatch, stream and astream over an agent; `batch` asks the model in one batch."""
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.runnables.config import run_in_executor

    class AgentRunnable(Runnable[Any, Answer]):
        """See `as_runnable`."""

        name: str | None = "memory_paths"

        def invoke(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Answer:
            """The answer to one question."""

            def answer(given: Any) -> Answer:
                (answered,) = agent.answer([question_of(given)])
                return cast(Answer, answered)

            return self._call_with_config(answer, input, config, **options)

        async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Answer:
            """As `invoke`, without blocking the event loop."""

            async def answer(given: Any) -> Answer:
                (answered,) = await run_in_executor(config, agent.answer, [question_of(given)])
                return cast(Answer, answered)

            return await self._acall_with_config(answer, input, config, **options)

        def batch(
            self,
            inputs: list[Any],
            config: Any = None,
            *,
            return_exceptions: bool = False,
            **options: Any,
        ) -> list[Any]:
            """The answers to several questions, generated in one batch."""

            def answer(given: list[Any]) -> list[Answer | Exception]:
                questions: list[str | Exception] = []
                for one in given:
                    try:
                        questions.append(question_of(one))
                    except TypeError as error:
                        if not return_exceptions:
                            raise
                        questions.append(error)
                answers = iter(agent.answer([question for question in questions if isinstance(question, str)]))
                return [next(answers) if isinstance(question, str) else question for question in questions]

            return list(self._batch_with_config(answer, inputs, config, return_exceptions=return_exceptions, **options))

        async def abatch(
            self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **options: Any
        ) -> list[Any]:
            """As `batch`, without blocking the event loop."""
            return await run_in_executor(
                None, lambda: self.batch(inputs, config, return_exceptions=return_exceptions, **options)
            )

    return AgentRunnable()
