"""Objectives and rehearsals on what the model says itself: it is asked, and what it answers is studied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from memory_paths.evaluation.scoring import exact_match, token_f1
from memory_paths.types import Generation, Phrasing, Prompt

from .batches import Encoded, TrainingBatch, collate
from .objective import NegativeLogLikelihood, divergence, logits_of, token_losses
from .setting import Setting, check_known
from .weights import Aim, Weights

Teacher = Literal["live", "untouched", "before"]
Reward = Literal["token_f1", "exact_match"]
REWARDS: Mapping[Reward, Callable[[str, Sequence[str]], float]] = {"token_f1": token_f1, "exact_match": exact_match}


@dataclass(frozen=True)
class SelfDistillation:
    """The model answers the study questions itself, and a reader says of each token how likely it would have been: the
    model as well, with the item's text as a note in its prompt. What it reads goes into its weights.

    With `beta` 0 and `on_policy` 1 it is self-distillation finetuning (SDFT, Shenfeld et al. 2026, arXiv 2601.19897;
    its forward divergence), whose teacher there is a moving average of the weights and here one that stands still; with
    others it is generalised knowledge distillation (GKD, Agarwal et al. 2024, 2306.13649, equation 5), whose teacher is
    the reader. Study texts that ask nothing are studied as they stand.

    Args:
        teacher: The reader's weights: those of now ("live"), those before this write, or the untouched ones.
        on_policy: Share of the questions that the model answers itself, in [0, 1]; for the others the answer is given.
        beta: 0: divergence from the reader to the model; 1: from the model to the reader; between: Jensen-Shannon's
            with that weight.
        temperature: Of the sampling, above 0.
        max_new_tokens: Of an answer.
    """

    teacher: Teacher = "untouched"
    on_policy: float = 1.0
    beta: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.teacher not in get_args(Teacher):
            raise ValueError(f"teacher must be one of {', '.join(get_args(Teacher))}, got {self.teacher!r}")
        if not (0 <= self.on_policy <= 1 and 0 <= self.beta <= 1):
            raise ValueError(f"on_policy and beta must be in [0, 1], got {self.on_policy} and {self.beta}")
        _check_sampling(self.temperature, self.max_new_tokens)

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`."""
        asked = [one for one in batch.sequences[: batch.fresh] if one.phrasing.asks and one.text]
        own = [setting.generator.random() < self.on_policy for _ in asked]
        answers = iter(_answers(setting, [one for one, mine in zip(asked, own, strict=True) if mine], self))
        said, read = [], []
        plain = [one for one in batch.sequences[: batch.fresh] if not (one.phrasing.asks and one.text)]
        for one, mine in zip(asked, own, strict=True):
            answer = next(answers) if mine else one.phrasing.completion
            alone = _after(setting, one, answer, ())
            beside = _after(setting, one, answer, (one.text,))
            if len(beside.ids) <= setting.lm.window and sum(alone.learnt) == sum(beside.learnt):
                said.append(alone)
                read.append(beside)
            else:  # there is no room for the note
                plain.append(one)
        if not said:
            return _as_it_stands(setting, batch, self)
        shown, spoken, studied = _joined(setting, said, plain, batch)
        reading = collate(setting.lm, read)
        with torch.no_grad():
            if self.teacher == "live":
                known = logits_of(setting.module, reading)[reading.predicting]
            else:
                with setting.earlier(self.teacher):
                    known = logits_of(setting.module, reading)[reading.predicting]
        setting.charge(reading, 1.0)

        def loss() -> Tensor:
            logits = logits_of(setting.module, shown)
            apart = jensen_shannon(known, logits[spoken.predicting], self.beta).mean()
            return apart if studied is None else apart + token_losses(logits, studied).mean()

        return Aim(shown, loss)


def jensen_shannon(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """beta * KL(teacher to mixture) + (1 - beta) * KL(student to mixture), in nats, from logits [..., vocabulary] to
    [...]. The mixture is beta * teacher + (1 - beta) * student; at 0 it is KL(teacher to student), at 1 KL(student to
    teacher)."""
    if beta == 0:
        return divergence(teacher, student)
    if beta == 1:
        return divergence(student, teacher)
    mixture = torch.logsumexp(
        torch.stack(
            [
                teacher.float().log_softmax(-1) + torch.log(torch.tensor(beta)),
                student.float().log_softmax(-1) + torch.log(torch.tensor(1 - beta)),
            ]
        ),
        dim=0,
    )
    return beta * divergence(teacher, mixture) + (1 - beta) * divergence(student, mixture)


@dataclass(frozen=True)
class PolicyGradient:
    """The model answers each study question several times; answers that are better than its others become likelier
    (GRPO, Shao et al. 2024, arXiv 2402.03300, one update for each sample, with DAPO's mean over tokens, 2503.14476).

    The reward is told from the studied answer, in [0, 1]. A question of which all answers are as good teaches nothing:
    it works where the model is right now and then. Unlike the paper's, the loss has no divergence from a reference:
    `penalty=kl` adds one.

    Args:
        reward: "token_f1", the overlap of words, or "exact_match", 1 for the answer itself: for short answers of which
            a part is wrong.
        samples: Answers to each question, at least 2.
        questions: For each step, at least 1.
        temperature: Of the sampling, above 0.
        max_new_tokens: Of an answer.
    """

    reward: Reward = "token_f1"
    samples: int = 8
    questions: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward must be one of {', '.join(REWARDS)}, got {self.reward!r}")
        if self.samples < 2 or self.questions < 1:
            raise ValueError(
                f"samples must be at least 2 and questions at least 1, got {self.samples} and {self.questions}"
            )
        _check_sampling(self.temperature, self.max_new_tokens)

    def __call__(self, setting: Setting, batch: TrainingBatch) -> Aim:
        """See `Objective`. Study texts that ask nothing, and what is rehearsed, are studied as they stand."""
        asked = [one for one in batch.sequences[: batch.fresh] if one.phrasing.asks]
        if not asked:
            return _as_it_stands(setting, batch, self)
        chosen = setting.generator.sample(asked, min(self.questions, len(asked)))
        repeated = [one for one in chosen for _ in range(self.samples)]
        answers = _answers(setting, repeated, self)
        rewards = torch.tensor(
            [
                float(REWARDS[self.reward](answer.text, [one.phrasing.completion]))
                for one, answer in zip(repeated, answers, strict=True)
            ]
        ).view(-1, self.samples)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
        said = [_after(setting, one, answer, ()) for one, answer in zip(repeated, answers, strict=True)]
        plain = [one for one in batch.sequences[: batch.fresh] if not one.phrasing.asks]
        shown, own, studied = _joined(setting, said, plain, batch)
        lengths = own.targets[: len(said), 1:].sum(dim=1)
        gains = advantages.to(lengths.device).repeat_interleave(lengths)

        def loss() -> Tensor:
            logits = logits_of(setting.module, shown)
            losses = token_losses(logits / self.temperature, own)
            # The ratio to the policy that sampled is 1; its gradient is that of the log-likelihood.
            gained = -(torch.exp(losses.detach() - losses) * gains).mean()
            return gained if studied is None else gained + token_losses(logits, studied).mean()

        return Aim(shown, loss)


@dataclass(frozen=True)
class OnPolicy:
    """Before a write the model is asked what it knew; the answers that are right are studied again beside the new items
    (on-policy replay, arXiv 2605.29495).

    Args:
        per_step: Phrasings for each step, at least 1.
        questions: How many are asked before a write, at least 1.
    """

    per_step: int = 16
    questions: int = 256

    def __post_init__(self) -> None:
        if self.per_step < 1 or self.questions < 1:
            raise ValueError(f"per_step and questions must be at least 1, got {self.per_step} and {self.questions}")

    def check(self, weights: Weights, background: Sequence[Phrasing]) -> None:
        """See `Demanding`."""
        check_known(background, "rehearsal=on_policy")
        if not any(one.asks for one in background):
            raise ValueError(
                "rehearsal=on_policy asks what the model knew, and no text of lm.background asks anything: give"
                " phrasings with a prompt, or choose rehearsal=experience"
            )

    def __call__(self, setting: Setting) -> Iterator[list[Phrasing]]:
        """See `Rehearsal`.

        Raises:
            ValueError: There is no background to draw from.
        """
        asked = [one for one in setting.known(self.questions, "rehearsal=on_policy") if one.asks]
        with setting.earlier("before"):
            found = setting.lm.generate([Prompt(one.prompt) for one in asked])
        kept = [
            replace(one, completion=answer.text)
            for one, answer in zip(asked, found, strict=True)
            if exact_match(answer.text, [one.completion])
        ]
        if asked:
            setting.charge(setting.batch(asked), 1.0)
        if not kept:
            setting.note("rehearsal=on_policy found no right answer to what the model knew, and rehearses nothing")
        while True:
            yield setting.generator.sample(kept, min(self.per_step, len(kept)))


@dataclass(frozen=True)
class Generative:
    """Before a write the model, as it is then, writes texts of its own, which are studied beside the new items (LAMOL,
    Sun et al. 2020, arXiv 1909.03329, without its task tokens): rehearsal without any old data.

    Args:
        per_step: Texts for each step, at least 1.
        texts: How many are written before a write, at least 1.
        temperature: Of the sampling, above 0.
        max_new_tokens: Of a text.
    """

    per_step: int = 16
    texts: int = 128
    temperature: float = 1.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.per_step < 1 or self.texts < 1:
            raise ValueError(f"per_step and texts must be at least 1, got {self.per_step} and {self.texts}")
        _check_sampling(self.temperature, self.max_new_tokens)

    def __call__(self, setting: Setting) -> Iterator[list[Phrasing]]:
        """See `Rehearsal`."""
        kept = setting.written(self.texts, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        if not kept:
            setting.note("rehearsal=generative: the model wrote empty texts alone, and nothing is rehearsed")
        while True:
            yield setting.generator.sample(kept, min(self.per_step, len(kept)))


def _answers(setting: Setting, asked: Sequence[Encoded], how: SelfDistillation | PolicyGradient) -> list[Generation]:
    """What the model says to the questions, sampled."""
    found: list[Generation] = setting.lm.generate(
        [Prompt(one.phrasing.prompt) for one in asked],
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        seed=setting.generator.randrange(2**31),
    )
    if asked:
        setting.charge(collate(setting.lm, asked), 1.0)
    return found


def _after(setting: Setting, one: Encoded, answer: str | Generation, notes: tuple[str, ...]) -> Encoded:
    """A question with an answer behind it: with a given one, or with the very tokens that the model said, of which a
    stop is one only where it stopped."""
    prompt = Prompt(one.phrasing.prompt, notes)
    if isinstance(answer, str):
        ids, learnt = setting.lm.encode_answer(prompt, answer)
    else:
        before = setting.lm.token_ids(prompt)
        ids = [*before, *answer.token_ids]
        learnt = [place >= len(before) for place in range(len(ids))]
    return replace(one, ids=ids, learnt=learnt)


def _as_it_stands(setting: Setting, batch: TrainingBatch, objective: SelfDistillation | PolicyGradient) -> Aim:
    setting.note(f"{type(objective).__name__} found no question in a step, and studies its texts as they stand")
    return NegativeLogLikelihood()(setting, batch)


def _joined(
    setting: Setting, said: Sequence[Encoded], plain: Sequence[Encoded], batch: TrainingBatch
) -> tuple[TrainingBatch, TrainingBatch, TrainingBatch | None]:
    """What the model said, new texts to be studied as they stand, and what the batch rehearses: in one batch; and the
    same with the targets of the first alone, and with those of the others, if there are any."""
    shown = collate(setting.lm, [*said, *plain], rehearsed=batch.sequences[batch.fresh :])
    own = shown.targets.clone()
    own[len(said) :] = False
    others = shown.targets & ~own
    return shown, replace(shown, targets=own), replace(shown, targets=others) if others.any() else None


def _check_sampling(temperature: float, max_new_tokens: int) -> None:
    if not temperature > 0 or max_new_tokens < 1:
        raise ValueError(
            f"temperature must be above 0 and max_new_tokens at least 1, got {temperature} and {max_new_tokens}"
        )
