"""What a reasoning bank is about: a task, what an agent thought and did at it, what came of it, and what it teaches.

Data only: frozen dataclasses that know nothing of models, prompts or the bank.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from memory_paths.lm import one_line

Label = Literal["success", "failure", "unknown"]
LONGEST_LESSON = 2000  # characters; what is longer is no lesson but the story itself


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Args:
        text: In words, as the agent is given it. Lessons are found again by it.
        id: Identity; empty: a hash of the text without regard to case and white space.

    Raises:
        ValueError: No text.
    """

    text: str
    id: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a task needs a text")
        if not self.id:
            object.__setattr__(self, "id", self.wording())

    def wording(self) -> str:
        """A hash of the text without regard to case and white space, in hex."""
        return digest(one_line(self.text).casefold())


@dataclass(frozen=True)
class Step:
    """One thought, what was done after it, and what was then to be seen."""

    thought: str
    action: str
    observation: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One attempt at a task.

    Args:
        task: What was to be done.
        steps: In order.
        outcome: The answer with which the agent ended; empty: it gave none.
        beginning: What was to be seen before the first step.
    """

    task: Task
    steps: tuple[Step, ...]
    outcome: str = ""
    beginning: str = ""

    @property
    def id(self) -> str:
        """A hash of all of it, in hex: two attempts with one id are copies of one run."""
        return digest(asdict(self))

    def told(self) -> str:
        """Thoughts and actions without observations, one line each: what lessons are extracted from."""
        lines = [f"{name}: {one_line(text)}" for step in self.steps for name, text in _said(step) if text.strip()]
        return "\n".join([*lines, f"Outcome: {one_line(self.outcome)}"] if self.outcome.strip() else lines)


@dataclass(frozen=True)
class Verdict:
    """Whether an attempt did what was asked.

    Args:
        label: "success", "failure", or "unknown" where nobody could say.
        reason: Why, in words.
        by: Who says so: a program's name, or a model's.

    Raises:
        ValueError: Another label.
    """

    label: Label
    reason: str = ""
    by: str = ""

    def __post_init__(self) -> None:
        if self.label not in get_args(Label):
            raise ValueError(f"a verdict is one of {get_args(Label)}, got {self.label!r}")


@dataclass(frozen=True)
class Lesson:
    """What an attempt teaches (the item of ReasoningBank, arXiv 2509.25140, section 3). White space is made single.

    Args:
        title: What it is about, in a few words.
        description: When it applies, in one sentence.
        content: What to do, in one to three sentences.

    Raises:
        ValueError: An empty field, or more than 2,000 characters in all.
    """

    title: str
    description: str
    content: str

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            object.__setattr__(self, name, one_line(text))
            if not getattr(self, name):
                raise ValueError(f"a lesson needs a {name}")
        if len(self.text) > LONGEST_LESSON:
            raise ValueError(f"a lesson has at most {LONGEST_LESSON} characters, got {len(self.text)}")

    @property
    def text(self) -> str:
        """As it stands in a prompt: one line."""
        return " ".join(part if part[-1] in ".!?" else f"{part}." for part in vars(self).values())

    @property
    def id(self) -> str:
        """A hash of the text, in hex: the same lesson has the same id whatever task it came from."""
        return digest(self.text)


@dataclass(frozen=True)
class Judged:
    """An attempt and what was said of it."""

    trajectory: Trajectory
    verdict: Verdict


def digest(content: Any) -> str:
    """The first 128 bits of SHA-256 over canonical JSON, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _said(step: Step) -> tuple[tuple[str, str], ...]:
    return (("Thought", step.thought), ("Action", step.action))
