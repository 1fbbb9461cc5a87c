"""A conversation that never outgrows its window: which of its turns stand in the prompt, and in which order.

The beginning of the prompt stays the same from turn to turn, so that a model's work on it can be reused: system and
tools, pinned notes, the history, which only grows at its end, and what changes with every turn last: recalled notes and
the question. Notes stand in turns of the user, as data, and never in those of the system. This file knows nothing of
how a prompt is laid out: the model counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memory_paths.context import most_tokens
from memory_paths.eviction import check_keep
from memory_paths.lm import one_line
from memory_paths.types import Generates, Generation, Prompt, TooLarge, Turn

LEFT_OUT = Turn("user", "(Earlier turns are left out here.)")


def groups(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Turns that stand or go together: calls of tools with all their results; any other turn by itself.

    Raises:
        ValueError: A result that no call waits for, or a call whose result does not follow it.
    """
    found, waiting = _grouped(turns)
    if waiting:
        raise ValueError(f"the calls {waiting} wait for their results; add these turns first")
    return found


def fit(lm: Generates, prompt: Prompt, *, budget: int, keep: float = 0.7, left_out: int = 0) -> int:
    """How many groups of turns to leave out, the oldest first, so that the laid-out prompt has at most `budget` tokens.

    None, if all fit. Otherwise so many that the history takes at most the share `keep` of its room, for every turn that
    goes changes the prompt's beginning. The system, pinned turns, notes and question stay, and the last group where
    there is no question, since it is what the model goes on from.

    Args:
        lm: The model that will read the prompt; it counts the tokens.
        prompt: With all turns.
        budget: Most tokens of the prompt.
        keep: In (0, 1].
        left_out: How many are left out already and stay so.

    Raises:
        TooLarge: What stays is longer than the budget by itself.
        ValueError: Calls and results that do not match.
    """
    check_keep(keep)
    most = sum(_may_go(prompt))
    left_out = min(left_out, most)

    def tokens(count: int) -> int:
        return lm.count_tokens(without(prompt, count))

    if tokens(left_out) <= budget:
        return left_out
    if (least := tokens(most)) > budget:
        raise TooLarge(
            f"system, tools, pinned turns, notes and question need {least} tokens, the budget is {budget}; give fewer"
            f" or shorter notes, or raise the budget: {prompt.question[:80]!r}"
        )
    wanted = least + keep * (budget - least)
    count = bisect_left(range(most), True, lo=left_out, key=lambda count: tokens(count) <= wanted)
    # Not in every tokenizer do fewer turns always have fewer tokens; what counts is the prompt as it is laid out.
    while tokens(count) > budget:
        count += 1
    return count


def without(prompt: Prompt, count: int) -> Prompt:
    """The prompt without the oldest `count` groups of turns that may go; a turn in their place says so."""
    turns: list[Turn] = []
    left_out = 0
    for group, may_go in zip(groups(prompt.turns), _may_go(prompt), strict=True):
        if may_go and left_out < count:
            turns += [LEFT_OUT] if left_out == 0 else []
            left_out += 1
        else:
            turns += group
    return replace(prompt, turns=tuple(turns))


class Conversation:
    """A dialogue of any length with a model of a given window. For one thread at a time.

    Args:
        lm: The model. It counts the tokens, and answers in `ask`.
        system: Instructions. Never put into it what was learnt from elsewhere: that is for `pin` and notes.
        tools: What the model may call, as JSON schemas.
        budget: Most tokens that a laid-out prompt may have; None: the window less `reserve`.
        reserve: Tokens of the window that are kept free for the answer.
        keep: Share of its room, in (0, 1], to which the history is cut when it outgrows it, in one chunk.

    Raises:
        ValueError: An option out of range.
    """

    def __init__(
        self,
        lm: Generates,
        *,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        budget: int | None = None,
        reserve: int = 32,
        keep: float = 0.7,
    ) -> None:
        check_keep(keep)
        self.budget = most_tokens(lm, budget, reserve)
        self.reserve = reserve
        self._lm = lm
        self._keep = keep
        self._tools = tuple(tools)
        self._system = (Turn("system", system),) if system.strip() else ()
        self._pinned: dict[str, str] = {}
        self._history: tuple[Turn, ...] = ()
        self._left_out = 0

    @property
    def history(self) -> tuple[Turn, ...]:
        """All that was said, also what no longer stands in the prompt."""
        return self._history

    @property
    def left_out(self) -> tuple[Turn, ...]:
        """The turns of the history that no longer stand in the prompt, for whoever would keep them elsewhere."""
        going = [group for group in _grouped(self._history)[0] if not _stays(group)][: self._left_out]
        return tuple(turn for group in going for turn in group)

    def offer(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """What the model may call from now on, as JSON schemas. They stand ahead of all else: a change voids what was
        computed for the prompt before."""
        self._tools = tuple(tools)

    def pin(self, name: str, text: str) -> None:
        """A note that stands ahead of the history, where a change voids what was computed for all after it.

        Args:
            name: Under which it is changed later.
            text: Empty: the note goes.
        """
        self._pinned[name] = one_line(text)
        if not self._pinned[name]:
            del self._pinned[name]

    def add(self, *turns: Turn) -> None:
        """Add turns at the end of the history.

        Raises:
            ValueError: A turn of the system, a result that no call waits for, or another turn while one does; nothing
                is added then.
        """
        if any(turn.role == "system" for turn in turns):
            raise ValueError("a conversation has one turn of the system, given as `system`; pin a note instead")
        history = (*self._history, *turns)
        _grouped(history)
        self._history = history

    def prompt(self, question: str = "", notes: Sequence[str] = ()) -> Prompt:
        """What the model is asked next, within the budget; what has to go for it stays out from then on.

        Args:
            question: The user's next turn. Empty: the model goes on from the last turn, such as a tool's result.
            notes: What was recalled for it; data, whole or not at all.

        Raises:
            TooLarge: It does not fit even without any history.
            ValueError: Nothing to answer, or a call that waits for its result.
        """
        if not question.strip() and not self._history:
            raise ValueError("there is nothing to answer; ask a question, or add a turn")
        pinned = [f"- {one_line(name)}: {text}" for name, text in self._pinned.items()]
        blocks = (Turn("user", "\n".join(["Notes:", *pinned]), pinned=True),) if pinned else ()
        whole = Prompt(question, tuple(notes), turns=(*self._system, *blocks, *self._history), tools=self._tools)
        self._left_out = fit(self._lm, whole, budget=self.budget, keep=self._keep, left_out=self._left_out)
        return without(whole, self._left_out)

    def ask(self, question: str = "", notes: Sequence[str] = ()) -> Generation:
        """The model's greedy answer, of at most `reserve` tokens; question and answer are added, the notes are not.

        An answer with calls waits for their results: `add` them, then ask on without a question.

        Raises:
            TooLarge, ValueError: See `prompt`.
        """
        prompt = self.prompt(question, notes)
        (generation,) = self._lm.generate([prompt], max_new_tokens=max(1, self.reserve))
        asked = [Turn("user", question)] if question.strip() else []
        self.add(*asked, Turn("assistant", generation.text, calls=generation.calls))
        return generation


def _grouped(turns: Sequence[Turn]) -> tuple[list[tuple[Turn, ...]], list[str]]:
    """Groups, and the ids of the calls of the last one that have no result yet."""
    found: list[tuple[Turn, ...]] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "tool":
            if turn.answers not in waiting:
                raise ValueError(f"a result answers call {turn.answers!r}, and the calls that wait are {waiting}")
            waiting.remove(turn.answers)
            found[-1] += (turn,)
        elif waiting:
            raise ValueError(f"the calls {waiting} wait for their results, got a turn of role {turn.role!r}")
        else:
            found.append((turn,))
            waiting = [call.id for call in turn.calls]
    return found, waiting


def _may_go(prompt: Prompt) -> list[bool]:
    """For each group of turns whether it may be left out."""
    may_go = [not _stays(group) for group in groups(prompt.turns)]
    if may_go and not prompt.question.strip():
        may_go[-1] = False
    return may_go


def _stays(group: Sequence[Turn]) -> bool:
    return any(turn.role == "system" or turn.pinned for turn in group)
