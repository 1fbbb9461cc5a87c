"""How a chat model is asked for a judgement: one system turn that is ours, one human turn that is data.

Any LangChain `BaseChatModel` will do; all that is called is its `invoke` with messages. Temperature is an option of the
model: ReasoningBank (arXiv 2509.25140) judges at 0, solves at 0.7 and extracts at 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from memory_paths.chat_lm import harmless, said

from .trajectory import digest


class ChatModel(Protocol):
    """The part of LangChain's `BaseChatModel` that is used."""

    def invoke(self, input: Any) -> Any:
        """The reply to messages, given as pairs of a role and a text."""
        ...


@dataclass(frozen=True)
class Reply:
    """What a model said, and to what.

    Args:
        text: Without surrounding white space; empty where the model failed.
        prompt_hash: Of the messages, in hex.
        model: Name of the model.
        model_hash: Of the model's class, name and temperature, in hex.
        problem: Why there is no text, in words; empty: there is one.
    """

    text: str
    prompt_hash: str
    model: str
    model_hash: str
    problem: str = ""


def ask(model: ChatModel, system: str, human: str) -> Reply:
    """One reply. A model that fails gives one with a problem and no text: what it was asked for is then unknown.

    Args:
        model: The chat model.
        system: Instructions; nothing that comes from a task, an environment or a memory belongs here.
        human: Data. The spelling of control tokens in it is broken.
    """
    messages = [("system", system), ("human", harmless(human))]
    about = (digest(messages), name_of(model), digest(_description(model)))
    try:
        return Reply(said(model.invoke(messages)), *about)
    except Exception as error:
        return Reply("", *about, problem=f"{type(error).__name__}: {error}")


def name_of(model: ChatModel) -> str:
    """The name under which its provider knows the model, or else that of its class."""
    return str(getattr(model, "model", "") or getattr(model, "model_name", "") or type(model).__name__)


def indented(text: str) -> str:
    """The text with every line but the first set in, so that no line of it poses as one of the prompt's own."""
    return "\n  ".join(text.strip().splitlines())


def _description(model: ChatModel) -> list[str]:
    kind = type(model)
    options = [str(getattr(model, name, "")) for name in ("model", "model_name", "temperature")]
    return [f"{kind.__module__}.{kind.__qualname__}", *options]
