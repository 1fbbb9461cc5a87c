"""How items become training text. No question that is evaluated occurs in it: it sees items, never questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory_paths.types import Knowledge, Phrasing, Prompt, TooLarge, Usage


@dataclass(frozen=True)
class StudyTexts:
    """What is studied of one item.

    Args:
        phrasings: To be learnt.
        usage: What it took the model to write them.
    """

    phrasings: tuple[Phrasing, ...]
    usage: Usage = field(default_factory=Usage)


class Study(Protocol):
    """From items to what is trained on."""

    def __call__(self, items: Sequence[Knowledge], lm: Any) -> list[StudyTexts]:
        """For each item what is studied of it. The same for the same item, whatever others it stands among.

        Args:
            items: What is to be learnt.
            lm: The untouched model.
        """
        ...


@dataclass(frozen=True)
class AsGiven:
    """Each item's text, once."""

    def __call__(self, items: Sequence[Knowledge], lm: Any) -> list[StudyTexts]:
        """See `Study`."""
        return [StudyTexts((Phrasing(item.text),)) for item in items]


@dataclass(frozen=True)
class Phrasings:
    """Each item's own phrasings, or its text where it brought none."""

    def __call__(self, items: Sequence[Knowledge], lm: Any) -> list[StudyTexts]:
        """See `Study`."""
        return [StudyTexts(item.phrasings or (Phrasing(item.text),)) for item in items]


@dataclass(frozen=True)
class Templates:
    """Each item's own phrasings, and its text in frames of plain words.

    For items that come with their text alone, so that a fact is not learnt as one string of words: the more ways it
    was seen in, the better it is found by others (Allen-Zhu & Li 2024, arXiv 2309.14316).

    Args:
        frames: Each with one `{text}`.

    Raises:
        ValueError: A frame without it, or no frame.
    """

    frames: tuple[str, ...] = ("{text}", "It is known that {text}", "Remember: {text}", "Here is a fact. {text}")

    def __post_init__(self) -> None:
        if not self.frames or any(frame.count("{text}") != 1 for frame in self.frames):
            raise ValueError(f"each frame of study=templates must hold {{text}} once, got {list(self.frames)}")

    def __call__(self, items: Sequence[Knowledge], lm: Any) -> list[StudyTexts]:
        """See `Study`."""
        return [
            StudyTexts((*item.phrasings, *(Phrasing(frame.replace("{text}", item.text)) for frame in self.frames)))
            for item in items
        ]


@dataclass(frozen=True)
class SelfEdits:
    """Each item's own phrasings, and what the untouched model writes when it is shown the item and told to draw
    conclusions: the training data of SEAL (Zweiger et al. 2025, arXiv 2506.10943).

    Where SEAL finetunes on each of several edits and keeps those after which the model answers best, the ones kept here
    are those with which as a note it answers the item's own study questions best (or finds its text likeliest, where it
    brought none): that costs a forward pass. What repeats the item's text is no edit, and an item for which there is no
    room in the prompt has none.

    Args:
        instruction: What the model is told; the item's text is a note before it.
        continues: Whether the instruction is no question but the beginning of a text, for a model that goes on with
            texts and follows no instructions.
        edits: How many are sampled for each item, at least 1.
        kept: How many of them are studied at most, at least 1.
        temperature: Of the sampling, above 0.
        max_new_tokens: Of an edit, which ends with its line; behind one that the limit cut off no stop is learnt.
        seed: Of the sampling.

    Raises:
        ValueError: An option out of range.
    """

    instruction: str = "What follows from this?"
    continues: bool = False
    edits: int = 8
    kept: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.edits:
            raise ValueError(f"kept of study=self_edits must be between 1 and edits ({self.edits}), got {self.kept}")
        if not self.instruction or not self.temperature > 0 or self.max_new_tokens < 1:
            raise ValueError(
                "study=self_edits needs an instruction, a temperature above 0 and max_new_tokens of at least 1, got "
                f"{self.instruction!r}, {self.temperature} and {self.max_new_tokens}"
            )

    def __call__(self, items: Sequence[Knowledge], lm: Any) -> list[StudyTexts]:
        """See `Study`."""
        found = []
        for item in items:
            try:
                found.append(self._of(item, lm))
            except TooLarge:
                found.append(StudyTexts(item.phrasings or (Phrasing(item.text),)))
        return found

    def _of(self, item: Knowledge, lm: Any) -> StudyTexts:
        own = item.phrasings or (Phrasing(item.text),)
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{item.content_hash()}".encode()).digest()[:4])
        written = lm.generate(
            [Prompt(self.instruction, (item.text,), self.continues)] * self.edits,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
        )
        usage = sum((one.usage for one in written), Usage())
        lines = {one.text.lstrip("-*0123456789.) "): one.stopped for one in written}  # of a list, perhaps
        edits = [line for line in lines if line and line.rstrip(".") != item.text.rstrip(". ")]
        if len(edits) > self.kept:
            asked = [one for one in own if one.asks]
            pairs = [(edit, Prompt(one.prompt, (edit,)), one.completion) for edit in edits for one in asked] or [
                (edit, Prompt(" ", (edit,), continues=True), item.text) for edit in edits
            ]
            rewards = dict.fromkeys(edits, 0.0)
            for (edit, _, _), found in zip(pairs, lm.loglikelihood([pair[1:] for pair in pairs]), strict=True):
                rewards[edit] += found
            read = [
                lm.count_tokens(prompt) + count
                for (_, prompt, _), count in zip(
                    pairs, lm.count_answer_tokens([pair[1:] for pair in pairs]), strict=True
                )
            ]
            usage += Usage(tokens=sum(read), flops=sum(map(lm.forward_flops, read)))
            edits = sorted(edits, key=rewards.__getitem__, reverse=True)[: self.kept]
        return StudyTexts((*own, *(Phrasing(edit, ends=lines[edit]) for edit in edits)), usage)
