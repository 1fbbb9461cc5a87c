"""What one answer is worth, as pure functions of texts and log-likelihoods; knows nothing of models or figures.

Each `Scoring` has one definition here, a number in [0, 1]:

    exact       `exact_match`; where there are no targets, `is_abstention`
    entities    `entity_f1`
    chrf        `chrf`
    likelihood  `mean_probability` of the first target, from log-likelihoods
    choice      `preferred` among the choices, from log-likelihoods
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from memory_paths.types import Question, Scoring

LIKELIHOOD_SCORINGS: tuple[Scoring, ...] = ("likelihood", "choice")
NO_NAMES = ("none", "nothing", "nobody")
_LISTING = re.compile(r"[,;\n]|\band\b")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ABSTENTIONS = ("unknown", "not known", "no answer", "unanswerable", "i do not know", "i dont know", "i am not sure")


def normalised(text: str) -> str:
    """Without case, punctuation, articles and surplus white space (SQuAD's rules, punctuation of any script)."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(" " if character == "-" else character for character in lowered)
    plain = "".join(character for character in plain if not unicodedata.category(character).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", plain).split()) or " ".join(lowered.split())


def exact_match(text: str, targets: Iterable[str]) -> bool:
    """Whether the whole answer, normalised, is one of the targets."""
    return normalised(text) in {normalised(target) for target in targets}


def token_f1(text: str, targets: Iterable[str]) -> float:
    """The best harmonic mean of word precision and recall against any target, in [0, 1]."""

    def against(target: str) -> float:
        given, wanted = normalised(text).split(), normalised(target).split()
        common = sum((Counter(given) & Counter(wanted)).values())
        return 2 * common / (len(given) + len(wanted)) if common else 0.0

    return max((against(target) for target in targets), default=0.0)


def stands_in(targets: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether the words of a target, normalised, stand next to one another in a text."""
    within = [f" {normalised(text)} " for text in texts]
    return any(f" {normalised(target)} " in text for target in targets for text in within)


def is_abstention(text: str) -> bool:
    """Whether an answer says in words, or by saying nothing, that it is not known."""
    plain = normalised(text)
    return (
        not any(map(str.isalnum, plain)) or plain in _ABSTENTIONS or plain.startswith(("i do not know", "i dont know"))
    )


def worth(question: Question, text: str) -> float | None:
    """What an answer is worth by its words, in [0, 1]; None where log-likelihoods have to tell."""
    if question.scoring == "exact":
        return float(exact_match(text, question.targets) if question.targets else is_abstention(text))
    if question.scoring == "entities":
        return entity_f1(text, question.targets)
    return chrf(text, question.targets) if question.scoring == "chrf" else None


def worth_by_likelihood(question: Question, likely: Mapping[str, float]) -> float:
    """What a question of one of the `LIKELIHOOD_SCORINGS` is worth, in [0, 1].

    Args:
        question: What was asked.
        likely: By text its log-likelihood per token in nats, of the first target and of all choices.
    """
    if question.scoring == "likelihood":
        return mean_probability(likely[question.targets[0]])
    return preferred(question.targets, {choice: likely[choice] for choice in question.choices})


def listed_entities(text: str) -> frozenset[str]:
    """The names that a text lists, normalised: what stands between commas, semicolons, line ends and the word "and". A
    text that says "none", or that it does not know, lists no name."""
    if is_abstention(text):
        return frozenset()
    names = frozenset(normalised(part) for part in _LISTING.split(text) if part.strip(" .?!"))
    return names - frozenset(NO_NAMES)


def entity_f1(text: str, targets: Iterable[str]) -> float:
    """The harmonic mean of precision and recall of the set of names that a text lists against that which a target
    lists, the best over the targets, in [0, 1]; 1 where both list none. A name counts as a whole, with its type where
    it is told ("town: Oslo"), as in the strict scoring of MUC and CoNLL-2003 by whole spans."""

    def against(target: str) -> float:
        given, wanted = listed_entities(text), listed_entities(target)
        return 2 * len(given & wanted) / (len(given) + len(wanted)) if given or wanted else 1.0

    return max((against(target) for target in targets), default=0.0)


def chrf(text: str, targets: Iterable[str]) -> float:
    """chrF2 of a sentence as sacrebleu computes it (n-grams of 1 to 6 characters without white space, recall weighing
    twice as much; Popovic 2015), divided by 100; the best over the targets."""
    return float(_chrf().sentence_score(text, list(targets)).score) / 100


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def mean_probability(loglikelihood_per_token: float) -> float:
    """The geometric mean of the probabilities of a text's tokens, in [0, 1]: 1 / perplexity."""
    return math.exp(min(0.0, loglikelihood_per_token))


def preferred(targets: Iterable[str], likely: Mapping[str, float]) -> float:
    """1 where the likeliest per token of several texts is a target, 0 where it is not; where several are the likeliest,
    the share of targets among them. Per token, so that a short text has no advantage."""
    best = max(likely.values())
    winners = [text for text, value in likely.items() if value == best]
    return len(set(winners) & set(targets)) / len(winners)


def word_accuracy(text: str, target: str) -> float:
    """The share of a target's words, normalised, that a text has at the same place, in [0, 1]: greedy accuracy of a
    continuation that the model went on with by itself."""
    given, wanted = normalised(text).split(), normalised(target).split()
    return sum(one == other for one, other in zip(given, wanted, strict=False)) / len(wanted) if wanted else 0.0
