"""An agent as the memory of a conversation: notes for each question, and old turns learnt as episodes."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from memory_paths.door import plain, stands_in, text_id
from memory_paths.types import Knowledge, Prompt, Query, Recall, Turn

if TYPE_CHECKING:
    from memory_paths.agent import Agent

logger = logging.getLogger(__name__)

RECALLED_KEPT = 1024  # recalled texts that are remembered, the latest ones
TRUST = {"user": 1.0, "assistant": 1.0, "tool": 0.5}  # what a tool gives may come from anywhere


class Recollection:
    """See `Agent.conversation`; a `memory_paths.conversation.Memory`.

    Args:
        agent: Who recalls and learns.
        name: The conversation's own name, the source of its episodes; None: a random one.
        episodes: Whether turns that no longer stand in the prompt are learnt.
    """

    def __init__(self, agent: Agent, name: str | None = None, *, episodes: bool) -> None:
        self._agent = agent
        self._name = f"conversation-{uuid4().hex[:16]}" if name is None else name
        self._episodes = episodes
        self._shown: OrderedDict[str, None] = OrderedDict()  # texts of notes that stood in a prompt, the latest last

    def recall(self, question: str, room: int) -> Sequence[Recall]:
        """See `Memory`."""
        alone = self._agent.lm.count_tokens(Prompt(question))
        most = self._agent.lm.window - 1
        if alone > most:
            return ()
        recalls = self._agent.recall(Query(question), budget=min(alone + room, most))
        for recall in recalls:
            text = plain(recall.item.text)
            self._shown[text] = None
            self._shown.move_to_end(text)
        while len(self._shown) > RECALLED_KEPT:
            self._shown.popitem(last=False)
        return recalls

    def holds(self, item: Knowledge) -> bool:
        """See `Memory`."""
        agent = self._agent
        found = (agent.ledger.held([item.id], place=path, namespace=agent.namespace) for path in agent.paths)
        return any(held.get(item.id) == item for held in found)

    def model(self) -> AbstractContextManager[Any]:
        """See `Memory`."""
        return self._agent.model()

    def use(self, ids: Sequence[str]) -> None:
        """See `Memory`."""
        self._agent.use(ids)

    def keep(self, history: Sequence[Turn], places: Sequence[int]) -> None:
        """Learn turns word for word, each with its place in the conversation as `span` (in characters of the history's
        texts, one after the other) and in its metadata; none that was said with notes at hand or repeats one.

        What the agent refuses is left out and logged. Any other failure is raised: nothing is lost if these turns are
        given again.
        """
        if not self._episodes:
            return
        starts = list(accumulate((len(turn.text) for turn in history), initial=0))
        first_result = next((place for place, turn in enumerate(history) if turn.role == "tool"), len(history))
        items = []
        for place in places:
            turn = history[place]
            if turn.text.strip() and not turn.recalled and not self._repeats(turn):
                # An answer may say what a tool said, whenever that was.
                role = "tool" if turn.role == "assistant" and place > first_result else turn.role
                items.append(self._episode(turn, place, (starts[place], starts[place + 1]), TRUST[role]))
        if not items:
            return
        try:
            self._agent.learn(items)
        except ValueError:  # one is refused, and with it all that go the same way
            for item in items:
                try:
                    self._agent.learn(item)
                except ValueError as error:
                    logger.warning("turn %s of %r is not kept: %s", item.metadata["turn"], self._name, error)

    def _episode(self, turn: Turn, place: int, span: tuple[int, int], trust: float) -> Knowledge:
        """An item whose id says its whole content, so that conversations of one name never contradict each other."""
        content = json.dumps([self._name, place, span, turn.role, trust, turn.text])
        return Knowledge(
            f"episode-{text_id(content)}",
            turn.text,
            "episode",
            source=self._name,
            trust=trust,
            span=span,
            metadata={"role": turn.role, "turn": place},
        )

    def _repeats(self, turn: Turn) -> bool:
        """Whether a turn says again what a note said: the user nothing but that, the others that among other things."""
        said = plain(turn.text)
        return any(stands_in(said, note) or (turn.role != "user" and stands_in(note, said)) for note in self._shown)
