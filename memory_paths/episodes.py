"""An agent as the memory of a conversation: notes for each question, and old turns learnt as episodes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from memory_paths.door import plain, text_id
from memory_paths.types import Knowledge, Prompt, Query, Recall, Turn

if TYPE_CHECKING:
    from memory_paths.agent import Agent

TRUST = {"user": 1.0, "assistant": 1.0, "tool": 0.5}  # what a tool gives may come from anywhere


class Recollection:
    """See `Agent.conversation`; a `memory_paths.conversation.Memory`.

    Args:
        agent: Who recalls and learns.
        name: The source of the episodes.
        episodes: Whether turns that no longer stand in the prompt are learnt.
    """

    def __init__(self, agent: Agent, name: str, *, episodes: bool) -> None:
        self._agent = agent
        self._name = name
        self._episodes = episodes
        self._shown: set[str] = set()  # texts of all notes that stood in a prompt
        self._said = 0  # characters of the turns that were kept so far

    def recall(self, question: str, room: int) -> Sequence[Recall]:
        """See `Memory`."""
        alone = self._agent.lm.count_tokens(Prompt(question))
        most = self._agent.lm.window - 1
        if alone > most:
            return ()
        recalls = self._agent.recall(Query(question), budget=min(alone + room, most))
        self._shown.update(plain(recall.item.text) for recall in recalls)
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

    def keep(self, turns: Sequence[tuple[int, Turn]]) -> None:
        """Learn turns word for word, each with its place in the conversation as `span` (characters of turns that were
        left out, in their order) and in its metadata; none that was said with notes at hand or repeats one."""
        if not self._episodes:
            return
        items = []
        for place, turn in turns:
            first, self._said = self._said, self._said + len(turn.text)
            if turn.text.strip() and not turn.recalled and not self._repeats(turn):
                items.append(
                    Knowledge(
                        f"episode-{text_id(f'{self._name} {place} {turn.text}')}",
                        turn.text,
                        "episode",
                        source=self._name,
                        trust=TRUST[turn.role],
                        span=(first, self._said),
                        metadata={"role": turn.role, "turn": place},
                    )
                )
        if items:
            self._agent.learn(items)

    def _repeats(self, turn: Turn) -> bool:
        """Whether a turn says again what a note said: the user nothing but that, the others that among other things."""
        said = plain(turn.text)
        return any(said in note or (turn.role != "user" and note in said) for note in self._shown)
