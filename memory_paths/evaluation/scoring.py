"""What one answer is worth, as pure functions of texts; knows nothing of questions, models or figures."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

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
