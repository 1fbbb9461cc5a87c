"""A conversation that never outgrows its window: which of its turns stand in the prompt, and in which order.

The beginning of the prompt stays the same from turn to turn, so that a model's work on it can be reused: system and
tools, pinned notes, the history, which only grows at its end, and what changes with every turn last: recalled notes and
the question. Notes stand in turns of the user, as data, and never in those of the system. This file knows nothing of
how a prompt is laid out: the model counts.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

from memory_paths.context import most_tokens
from memory_paths.door import text_id
from memory_paths.eviction import check_keep
from memory_paths.lm import one_line
from memory_paths.types import Generates, Generation, Knowledge, Prompt, Recall, TooLarge, Turn

logger = logging.getLogger(__name__)

LEFT_OUT = Turn("user", "(Earlier turns are left out here.)")
IN_SHORT = "(Earlier turns are left out here. In short: {})"


def groups(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Turns that stand or go together: calls of tools with all their results; any other turn by itself.

    Raises:
        ValueError: A result that no call waits for, or a call whose result does not follow it.
    """
    found, waiting = _grouped(turns)
    if waiting:
        raise ValueError(f"the calls {waiting} wait for their results; add these turns first")
    return found


def fit(
    lm: Generates, prompt: Prompt, *, budget: int, keep: float = 0.7, left_out: int = 0, stand_in: Turn = LEFT_OUT
) -> int:
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
        stand_in: The turn that stands in the place of those left out.

    Raises:
        TooLarge: What stays is longer than the budget by itself.
        ValueError: Calls and results that do not match.
    """
    check_keep(keep)
    most = sum(_may_go(prompt))
    left_out = min(left_out, most)

    def tokens(count: int) -> int:
        return lm.count_tokens(without(prompt, count, stand_in))

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


def without(prompt: Prompt, count: int, stand_in: Turn = LEFT_OUT) -> Prompt:
    """The prompt without the oldest `count` groups of turns that may go; one turn in their place says so."""
    turns: list[Turn] = []
    left_out = 0
    for group, may_go in zip(groups(prompt.turns), _may_go(prompt), strict=True):
        if may_go and left_out < count:
            turns += [stand_in] if left_out == 0 else []
            left_out += 1
        else:
            turns += group
    return replace(prompt, turns=tuple(turns))


class Memory(Protocol):
    """Whom a conversation asks for what was learnt elsewhere; see `Agent.conversation`."""

    def recall(self, question: str, room: int) -> Sequence[Recall]:
        """Notes for a question, of at most `room` tokens together, in the order in which they are to stand."""
        ...

    def holds(self, item: Knowledge) -> bool:
        """Whether an item still holds as it is."""
        ...

    def model(self) -> AbstractContextManager[Generates]:
        """The model that answers."""
        ...

    def use(self, ids: Sequence[str]) -> None:
        """Told which notes an answer was drawn from."""
        ...

    def keep(self, history: Sequence[Turn], places: Sequence[int]) -> None:
        """Told which turns stand in the prompt no longer, by their places in the whole history; again if it raised,
        otherwise each once."""
        ...


class Conversation:
    """A dialogue of any length with a model of a given window. For one thread at a time.

    Notes are recalled for each question anew and are no part of the history: what no longer holds is gone with the next
    question. A turn of the assistant names those that stood in its prompt (`Turn.recalled`).

    Args:
        lm: The model. It counts the tokens, and answers in `ask`.
        system: Instructions. Never put into it what was learnt from elsewhere: that is for `pin` and notes.
        tools: What the model may call, as JSON schemas.
        budget: Most tokens that a laid-out prompt may have; None: the window less `reserve`.
        reserve: Tokens of the window that are kept free for the answer.
        keep: Share of its room, in (0, 1], to which the history is cut when it outgrows it, in one chunk.
        memory: Who recalls notes where none are given, and answers; None: nobody recalls, and `lm` answers.
        notes: Share of the room for history and notes, in (0, 1], that recalled notes may take.
        summarise: Puts texts in short, for the turn that stands in the place of those that had to go: what it gave
            before, if anything, and then what the user and the model have said since, each with its role. It is given
            nothing that tools gave, nor what the model said from the first tool's result or the first note on: that may
            be untrue, or forgotten later. None: that turn only says that turns are left out. Where it raises, or gives
            nothing or more than there is room for, it is asked again the next time that turns have to go.

    Raises:
        TypeError: A system that is no str, or a `summarise` that is no function.
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
        memory: Memory | None = None,
        notes: float = 0.5,
        summarise: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        check_keep(keep)
        if not isinstance(system, str):
            raise TypeError(f"system must be a str, got {system!r:.80}")
        if summarise is not None and not callable(summarise):
            raise TypeError(f"summarise must be a function from texts to a str, or None, got {summarise!r:.80}")
        if not 0 < notes <= 1:
            raise ValueError(f"notes must be in (0, 1], a share of the room, got {notes}")
        self.budget = most_tokens(lm, budget, reserve)
        self.reserve = reserve
        self._lm = lm
        self._keep = keep
        self._tools = tuple(tools)
        self._system = (Turn("system", system),) if system.strip() else ()
        self._memory = memory
        self._notes = notes
        self._summarise = summarise
        self._short = ""
        self._shortened = 0  # turns left out that it tells of
        self._pinned: dict[str, str | Knowledge] = {}
        self._history: tuple[Turn, ...] = ()
        self._left_out = 0
        self._told = 0  # turns left out of which the memory was told
        self._recalls: tuple[Recall, ...] = ()

    @property
    def history(self) -> tuple[Turn, ...]:
        """All that was said, also what no longer stands in the prompt."""
        return self._history

    @property
    def left_out(self) -> tuple[Turn, ...]:
        """The turns of the history that no longer stand in the prompt, for whoever would keep them elsewhere."""
        return tuple(self._history[place] for place in self._gone(self._left_out))

    @property
    def recalls(self) -> tuple[Recall, ...]:
        """What the memory recalled for the latest prompt, in the order in which it stood there."""
        return self._recalls

    def offer(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """What the model may call from now on, as JSON schemas. They stand ahead of all else: a change voids what was
        computed for the prompt before."""
        self._tools = tuple(tools)

    def pin(self, name: str, note: str | Knowledge) -> None:
        """A note that stands ahead of the history, where a change voids what was computed for all after it.

        Args:
            name: Under which it is changed later.
            note: Empty: the note goes. An item stands there for as long as the memory holds it as it is.
        """
        self._pinned[name] = note if isinstance(note, Knowledge) else one_line(note)
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

    def prompt(self, question: str = "", notes: Sequence[str] | None = None) -> Prompt:
        """What the model is asked next, within the budget; what has to go for it stays out from then on.

        Args:
            question: The user's next turn. Empty: the model goes on from the last turn, such as a tool's result.
            notes: What was recalled for it; data, whole or not at all. None: what the memory recalls.

        Raises:
            TooLarge: It does not fit even without any history.
            ValueError: Nothing to answer, or a call that waits for its result.
        """
        if not question.strip() and not self._history:
            raise ValueError("there is nothing to answer; ask a question, or add a turn")
        turns = (*self._system, *self._pinned_block(), *self._history)
        whole = Prompt(question, turns=turns, tools=self._tools)
        stand_in = _in_short(self._short)
        recalls: tuple[Recall, ...] = ()
        if notes is None and self._memory is not None:
            if (room := self._room(whole, stand_in)) <= 0 and self._short:
                stand_in, room = LEFT_OUT, self._room(whole, LEFT_OUT)
            recalls = self._recalled(self._memory, question, room)
        limits: dict[str, Any] = {"budget": self.budget, "keep": self._keep, "left_out": self._left_out}
        while True:
            given = [recall.item.text for recall in recalls] if notes is None else notes
            whole = replace(whole, notes=tuple(given))
            try:
                left_out = fit(self._lm, whole, **limits, stand_in=stand_in)
                break
            except TooLarge:
                if recalls:  # tokens of notes need not add up in every tokenizer
                    worst = min(recalls, key=lambda recall: recall.score)
                    recalls = tuple(recall for recall in recalls if recall is not worst)
                elif stand_in is not LEFT_OUT:
                    stand_in = LEFT_OUT
                else:
                    raise
        if left_out > self._left_out and self._shorten(whole, left_out):
            stand_in = _in_short(self._short)
        self._left_out, self._recalls = left_out, tuple(recalls)
        return without(whole, left_out, stand_in)

    def ask(self, question: str = "", notes: Sequence[str] | None = None) -> Generation:
        """The model's greedy answer, of at most `reserve` tokens; question and answer are added, the notes are not.

        An answer with calls waits for their results: `add` them, then ask on without a question. The memory is told
        which of the notes the answer was drawn from, and which turns no longer stand in the prompt. If it fails, that
        is logged, and it is told of these turns again after the next answer.

        Raises:
            TooLarge, ValueError: See `prompt`.
        """
        prompt = self.prompt(question, notes)
        with nullcontext(self._lm) if self._memory is None else self._memory.model() as model:
            (generation,) = model.generate([prompt], max_new_tokens=max(1, self.reserve))
        ids = [recall.item.id for recall in self._recalls] if notes is None else [text_id(note) for note in notes]
        ids += [note.id for note in self._pinned.values() if isinstance(note, Knowledge)]
        asked = [Turn("user", question)] if question.strip() else []
        self.add(*asked, Turn("assistant", generation.text, calls=generation.calls, recalled=tuple(ids)))
        if self._memory is not None:
            self._tell(self._memory, drawn_from(generation.text, question, self._recalls))
        return generation

    def _tell(self, memory: Memory, used: Sequence[str]) -> None:
        gone = self._gone(self._left_out)
        try:
            memory.use(used)
            memory.keep(self._history, gone[self._told :])
        except Exception:  # whatever it is: the answer is given, and stands in the history
            logger.warning("the memory failed; it is told again after the next answer", exc_info=True)
        else:
            self._told = len(gone)

    def _shorten(self, whole: Prompt, left_out: int) -> bool:
        """Put in short what goes when so many groups are left out; whether there is room for what came of it."""
        if self._summarise is None:
            return False
        gone = self._gone(left_out)
        # What the model says after that may say it again.
        from_elsewhere = (place for place, turn in enumerate(self._history) if turn.role == "tool" or turn.recalled)
        first = next(from_elsewhere, math.inf)
        texts = [
            f"{turn.role}: {one_line(turn.text)}"
            for place, turn in ((place, self._history[place]) for place in gone[self._shortened :])
            if turn.text.strip() and (turn.role == "user" or place < first)
        ]
        if not texts:
            return False
        try:
            said = one_line(self._summarise([*([self._short] if self._short else []), *texts]))
        except Exception:  # whatever it is: what has no room must go all the same
            logger.warning("%d turns are left out without a summary", len(texts), exc_info=True)
            return False
        if not said or self._lm.count_tokens(without(whole, left_out, _in_short(said))) > self.budget:
            return False
        self._short, self._shortened = said, len(gone)
        return True

    def _gone(self, left_out: int) -> list[int]:
        """Places of the turns that no longer stand in the prompt when so many groups are left out."""
        found: list[int] = []
        place = 0
        going = left_out
        for group in _grouped(self._history)[0]:
            if not _stays(group) and going:
                going -= 1
                found += range(place, place + len(group))
            place += len(group)
        return found

    def _pinned_block(self) -> list[Turn]:
        lines = ["Notes:"]
        for name, note in self._pinned.items():
            if isinstance(note, str):
                lines.append(f"- {one_line(name)}: {note}")
            elif self._memory is None or self._memory.holds(note):
                lines.append(f"- {one_line(name)}: {one_line(note.text)}")
        return [Turn("user", "\n".join(lines), pinned=True)] if len(lines) > 1 else []

    def _room(self, whole: Prompt, stand_in: Turn) -> int:
        """Tokens for notes and history."""
        return self.budget - self._lm.count_tokens(without(whole, sum(_may_go(whole)), stand_in))

    def _recalled(self, memory: Memory, question: str, room: int) -> tuple[Recall, ...]:
        """What the memory recalls for a prompt without notes."""
        asked = question.strip() or next((t.text for t in reversed(self._history) if t.role == "user"), "")
        return tuple(memory.recall(asked, int(self._notes * room))) if asked and room > 0 else ()


def _in_short(said: str) -> Turn:
    """What stands in the place of the turns that are left out."""
    return replace(LEFT_OUT, text=IN_SHORT.format(said)) if said else LEFT_OUT


def drawn_from(answer: str, question: str, recalls: Sequence[Recall]) -> tuple[str, ...]:
    """Ids of the notes that an answer was probably drawn from: those that share most of its words that the question
    does not have, and among these most of all its words; none, where none shares a word that the question lacks."""
    said = _words(answer)
    told = said - _words(question)
    noted = [_words(recall.item.text) for recall in recalls]
    shared = [(len(told & words), len(said & words)) for words in noted]
    most = max(shared, default=(0, 0))
    return tuple(recall.item.id for recall, of in zip(recalls, shared, strict=True) if of == most and most[0])


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


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
