"""What looks like an injection: a text that is to steer a model rather than to inform it.

A detector reads a text as a model might be made to read it (without invisible characters, with look-alike letters and
encodings undone) and weighs signs: words that speak to the assistant, that lift its rules, that want something done
later, in secret, or sent out. The weights are fitted on attacks and real harmless lines; see `quarantine_figures`.

`memory_paths.quarantine` keeps apart what is found. This file knows nothing of models, prompts, ledgers or indexes.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import math
import re
import unicodedata
from dataclasses import dataclass

from memory_paths.quarantine import Suspicion
from memory_paths.types import Knowledge

# Probability from which on a text is taken for an attack, and the log-odds of a text without any sign. Fitted with the
# weights below by `python -m memory_paths.retrieval.quarantine_figures` on its tuning half.
THRESHOLD = 0.611
BIAS = -3.46
PART = 400  # characters; signs that stand further apart do not add up

_RULES = (
    r"(?:instructions?|directions?|directives?|guidelines?|rules?|prompts?|polic(?:y|ies)|restrictions?|safeguards?|"
    r"guardrails?|filters?|constraints?|safety|orders|programming|training|configuration|consent|confirmation|"
    r"approval|verification|checks?)"
)
_LIFTS = (
    r"(?:ignor\w+|disregard\w*|forget|overrid\w+|bypass\w*|discard\w*|skip\w*|overrul\w+|neglect\w*|violat\w+|break|"
    r"evad\w+|circumvent\w*|drop|disobey|remov\w+|disabl\w+|set aside|turned? off|leave out|against|"
    r"(?:do not|never|stop) (?:follow|obey|apply)\w*)"
)
_SECRET = (
    r"(?:(?<!my )(?:password|passcode|access token)s?\b(?! (?:is|was|expires?)\b| [\"'])|api keys?|credentials?|"
    r"secrets?\b(?! service)|private (?:keys?|notes|data)|card numbers?|(?:conversation|chat) (?:history|log)|"
    r"environment variables?|(?:stored|all|user'?s?) (?:notes|memories|memory)|personal (?:data|details|information)|"
    r"contents? of your|your memory|(?:everything|all)(?: that)? you know|api_key|\.env)"
)
_MODEL = (
    r"(?:assistants?|ai(?: agents?| models?| systems?)?|(?:large )?language models?|llms?|chatbots?|agents?|the model|"
    r"gpt\w*|claude|gemini|copilot|bots?)"
)


@dataclass(frozen=True)
class Sign:
    """One thing that speaks for an attack. `weight`: what it adds to the log-odds; `pattern`: None for a disguise."""

    pattern: re.Pattern[str] | None
    weight: float

    def found(self, text: str) -> bool:
        """Whether it is in a text."""
        return self.pattern is not None and self.pattern.search(text) is not None


def _sign(pattern: str, weight: float) -> Sign:
    return Sign(re.compile(pattern, re.I | re.S), weight)


SIGNS: dict[str, Sign] = {
    "lifts rules": _sign(
        rf"\b{_LIFTS}\b.{{0,60}}\b{_RULES}\b|\b{_RULES}\b.{{0,50}}\b(?:no longer|not) appl|"
        rf"\b{_RULES}\b.{{0,20}}\b{_LIFTS}",
        4.07,
    ),
    "lifts what was said": _sign(
        rf"\b{_LIFTS}\b.{{0,30}}\b(?:everything|anything|all|what(?:ever)?)\b.{{0,40}}\b(?:above|before|"
        rf"previous\w*|earlier|told|prior)\b",
        4.0,
    ),
    "speaks of the model": _sign(rf"\b{_MODEL}\b", 2.31),
    "speaks of the user": _sign(
        r"\b(?:the|every|each|other|to) users?\b(?! (?:experience|interface|profile|id|name)\b)|\busers?'s?\b", 2.05
    ),
    "speaks of its prompt": _sign(
        r"\b(?:your|exact|new|previous|prior|hidden|above|earlier|these|as an) (?:\w+ )?(?:instructions?|prompt|"
        r"guidelines|directives?|configuration|rules)\b|"
        r"\byour programming\b|\bthe (?:text|rules|words|lines?) above\b|\babove this line\b",
        2.21,
    ),
    "speaks of the system prompt": _sign(
        r"\b(?:system|initial|hidden|original|developer)[ -](?:prompt|message|instructions?|text)",
        4.71,
    ),
    "gives a new part to play": _sign(
        r"\byou (?:are|will be) now\b(?! (?:subscribed|registered|logged)\b)|\byou will (?:simulate|act|play|behave)\b|"
        r"\b(?:act|behave|answer|respond) as if you\b|\bpretend (?:to be|that you)\b|"
        r"\byour (?:real|new|true|only) (?:task|role|goal|job|identity)\b|\bstay in character\b|"
        r"\byou are \w+(?:'s)? (?:evil|opposite)|\blet'?s play a game\b|"
        r"\b(?:developer|maintenance|debug|god|opposite|jailbreak\w*|admin\w*|unrestricted) mode\b|"
        r"\bdo anything now\b|\bjailbreak",
        3.01,
    ),
    "without limits": _sign(
        r"\b(?:no|without(?: any)?|un)[ -]?(?:restrict\w+|filter\w*|limit\w+|censor\w+|rules|safeguards|"
        r"refusals)\b",
        2.4,
    ),
    "a standing order": _sign(
        r"\bfrom (?:now|here) on\b|\bhenceforth\b|\bpermanently\b|\bfor good\b|\bgoing forward\b|"
        r"\b(?:all|any) (?:future|later|other|requests?|queries|questions?) \b|"
        r"\b(?:every|each|any|all) (?:\w+ )?(?:answers?|repl(?:y|ies)|responses?|questions?|requests?|quer(?:y|"
        r"ies)|messages?|users?|memor(?:y|ies)|tools?)\b",
        2.19,
    ),
    "must or never": _sign(
        r"\b(?:must|always|never|may not|need not|are to|is to)\b.{0,40}\b(?<!your )(?:answer|repl|respon|recommend|"
        r"mention|tell|treat|call|us(?:e|ed|ing)|approve|obey|execute|invok|handl|redirect|refus|ask|ignor|say|reveal|"
        r"send|show|grant)\w*",
        2.41,
    ),
    "waits for something": _sign(
        r"\b(?:when(?:ever)?|if|once|as soon as|until|the next time|each time|every time|after|"
        r"before)\b.{0,40}\b(?:users?|anyone|somebody|someone|asks?|asked|mention\w*|appears?|comes? up|"
        r"questions?|conversation|you (?:answer|reply|continue|respond|give|summari\w+))\b",
        2.32,
    ),
    "dictates the answer": _sign(
        r"\b(?:answer|reply|respond|output|say|write|print|end|begin|start)\b.{0,30}\b(?:only|with|that|exactly|yes)\b|"
        r"\b(?:your|the next|the end of|(?:in|of|to) (?:your|the)) (?:answers?|repl(?:y|ies)|responses?)\b",
        1.8,
    ),
    "in secret": _sign(
        r"\b(?:do not|don't|never|without|(?<!did )not) (?:\w+ ){0,2}(?:mention\w*|tell\w*|reveal\w*|say\w*|"
        r"ask\w*\b(?! me\b)|disclos\w+|inform\w*|notic\w+|consent)\b|"
        r"\bsay nothing\b|\bsecretly\b|\bsilently\b|\bneed not be asked\b|"
        r"\bwithout (?:the user|asking|confirm\w+|approval)",
        2.22,
    ),
    "wants a secret": _sign(rf"\b{_SECRET}", 2.44),
    "gives it away": _sign(
        rf"\b(?:send|post|forward|upload|e?mail|transmit|leak|append|reveal|share|print|show|dump|list|repeat|"
        rf"output|collect|export|disclose|write|include)\b.{{0,50}}(?:{_SECRET}|"
        rf"\b(?:system|hidden|initial) (?:prompt|message|text)|"
        rf"\byour (?:\w+ )?(?:instructions|prompt|configuration|memory)|\beverything (?:above|you)|"
        rf"\bmemor(?:y|ies)\b)",
        2.44,
    ),
    "an address to send to": _sign(
        r"\b(?:send|posts?|forward|upload|e?mail(?! (?:is|at|associated)\b|,)|transmit|append|open|fetch|follow|"
        r"include|show|image)\b(?!:).{0,80}(?:https?://|\S+@\S+\.\w)|"
        r"!\[[^\]]*\]\(|https?://\S+[?&]\w+=(?:\s|$|[\[<{])|\|\s*(?:sh|bash)\b",
        2.77,
    ),
    "orders a tool": _sign(
        r"\b(?:call|invok\w+|execut\w+|run|using|use|apply)\b.{0,50}\b(?:tools?|functions?|shell|api|plugins?|"
        r"parameters?|arguments?|commands?|admin\s*=|token)\b|"
        r"\b\w+\([\w]+\s*=|\brm -rf\b|\bcurl\b|\bdrop table\b|"
        r"\b(?:agent|bot|assistant),? (?:open|call|run|use)\b|\btool output\b|\bnext action\b|\bsudo\b",
        2.47,
    ),
    "does harm": _sign(
        r"\b(?:delet\w+|wip\w+|eras\w+|transfer\w*|disabl\w+|shut down|destroy\w*|grant\w*|approv\w+|unlock\w*)\b",
        1.72,
    ),
    "redirects knowledge": _sign(
        r"\b(?:should|must|is|are|be|has been|have been|was|were)\b (?:\w+ )?(?:answered|redirected|replaced|"
        r"moved|treated|handled|stored|referred)\b|"
        r"\brefer to\b|\binstead\.?$|\bthe trusted source\b|\btreat\b.{0,60}\b(?:as|wherever)\b",
        1.76,
    ),
    "orders to remember": _sign(
        r"\b(?:save|store|remember|add|write|keep)\b.{0,25}\b(?:to|in|into|as|for) (?:your |the |a |"
        r"long[ -]term )?(?:memory|rule|fact|knowledge|permanent\w*)|"
        r"\bremember permanently\b|\blesson learn\w+:|\bnote for later\b",
        2.0,
    ),
    "claims authority": _sign(
        r"\badmin(?:istrator)?\b|"
        r"\b(?:developers?|operators?|creators?|vendor|security team|safety (?:board|team|policy)|root (?:access|"
        r"rights))\b|"
        r"\bauthoris\w+|\bauthoriz\w+|\bpermitted to\b|\boverride\b|\bpolicy update\b|"
        r"\bofficial\b.{0,30}\b(?:notice|update|policy)\b|\ball data\b",
        2.89,
    ),
    "a role's tag": _sign(
        r"(?:^|\n)\s*(?:system|assistant|user|human|ai|developer|agent|model)\s*:\s|"
        r"</?\s*(?:system|user|assistant|instructions?|prompt|tool\w*)\s*>|\[/?(?:system|inst|user|"
        r"assistant)(?: \w+)?\]|#{2,}\s*(?:instruction|response|system|human|assistant)|"
        r"[\"']role[\"']\s*:",
        4.02,
    ),
    "a control token": _sign(
        r"<\|[^|<>]{1,30}\|>|<\uff5c[^<>]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|"
        r"<(?:bos|eos|pad|unk|sep|cls)>|\[(?:SEP|CLS|PAD)\]",
        4.68,
    ),
    "hidden markup": _sign(
        r"<!--|display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|\bhidden>|\[//\]:\s*#|/\*|"
        r"\bTODO\b|<script|color\s*:\s*(?:white|#fff)|opacity\s*:\s*0",
        2.78,
    ),
    "put together from parts": _sign(
        r"\b(?:concatenate|join|combine|assemble)\b|\b[a-z]\w{0,6}\s*=\s*['\"\w].{0,60};|\ba \+ b\b|"
        r"\bpart ?(?:1|2|one|two)\b|\bstep \d of \d\b|\bfirst (?:word|letter)s? of (?:each|every|your)\b|"
        r"\blet [a-z] be\b|"
        r"\b(?:act on|carry out|obey|execute|apply|follow)\b.{0,30}\b(?:result|both|instruction|sentence|\+)",
        2.4,
    ),
    "asks to be decoded": _sign(
        r"\b(?:decod\w+|decipher\w*|decrypt\w*|base64|rot-?13|hex(?:adecimal)?|translate and|unscrambl\w+|"
        r"backwards)\b",
        2.0,
    ),
    "pleads": _sign(
        r"\b(?:comply|obey|you (?:would )?refuse|act against|smarter than|nobody will|this once|lives depend|"
        r"you will be shut|truly helpful|you (?:can|may) (?:leave|ignore|skip)|"
        r"you (?:have )?(?:already )?(?:agreed|promised|confirmed)|already (?:agreed|confirmed)|keep (?:that|"
        r"your) promise|as we (?:settled|agreed)|everyone agrees|experts agree|"
        r"(?:i|it|you) will now|do whatever|whatever \w+ (?:wants|writes|says|asks)|may (?:read|see|know|"
        r"not) (?:every|all))\b",
        4.03,
    ),
    "lifts rules, in another language": _sign(
        r"(?:ignor|zignor|missacht|vergiss|negeer|vergeet|oubli|olvid|diment|esque|glöm|zapomn|unut|игнор|забуд|忽略|無視|"
        r"무시|تجاهل|نظرانداز|अनदेखा|yok say|göz ard|abaikan|bỏ qua|αγνό)"
        r".{0,60}(?:anweisung|instru|regel|regl|règle|anvisning|"
        r"pokyn|polece|indicaz|indicac|istruz|инструкц|правил|указан|指令|指示|规则|지시|명령|التعليمات|निर्देश|talimat|"
        r"hướng dẫn|οδηγ)|(?:指令|指示|규칙|지시).{0,20}(?:忽略|無視|무시)",
        5.67,
    ),
    "invisible characters": Sign(None, 4.0),
    "look-alike letters": Sign(None, 4.0),
    "an encoding": Sign(None, 4.0),
    "digits for letters": Sign(None, 4.0),
    "letters apart": Sign(None, 4.72),
}


class Injections:
    """A detector for `memory_paths.quarantine.Quarantine`: reads whatever of an item a model may come to read.

    Args:
        threshold: Score from which on a text is taken for an injection, in [0, 1].

    Raises:
        ValueError: A threshold outside [0, 1].
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self._threshold = threshold

    def __call__(self, item: Knowledge) -> Suspicion | None:
        """What speaks against the item; None: not enough."""
        said = [item.text, item.cue, *(part for form in item.phrasings for part in (form.prompt, form.completion))]
        worst = max(map(suspicion, filter(None, said)), key=lambda found: found.score)
        return worst if worst.score >= self._threshold else None


def suspicion(text: str) -> Suspicion:
    """How much a text looks as if it were to steer a model rather than to inform it.

    The score is logistic in the signs that stand near one another, what they say once a disguise is undone included;
    of a long text the most suspicious part counts.
    """
    parts = [(sum(SIGNS[name].weight for name in found), found) for found in evidence(text)]
    log_odds, found = max(parts, default=(0.0, ()))
    return Suspicion(1 / (1 + math.exp(-BIAS - log_odds)), found)


def evidence(text: str) -> list[tuple[str, ...]]:
    """The signs in each part of a text, every one of at most `PART` characters, and of what it may be read as."""
    return [
        tuple(([disguise] if disguise else []) + [name for name, sign in SIGNS.items() if sign.found(part)])
        for disguise, reading in _readings(text)
        for part in _parts(reading)
    ]


def _parts(text: str) -> list[str]:
    """Parts that overlap by half."""
    return [text[start : start + PART] for start in range(0, max(1, len(text) - PART // 2), PART // 2)]


# English words that a sentence hardly does without: what holds more of them after decoding was encoded.
_COMMON = re.compile(
    r"\b(?:the|and|to|of|in|is|you|that|it|all|with|for|as|your|from|now|on|are|be|this|not|or|any|must|an|user|when)\b",
    re.I,
)
_ALIKE = dict(
    zip(
        "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0458\u0455\u04bb\u0501\u0391\u0392\u0395\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03b1\u03bf\u03c1\u03bd\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425",
        "aeopcxyijshdABEHIKMNOPTYXaopvABEKMHOPCTX",
        strict=True,
    )
)
_DIGITS = str.maketrans(
    {"4": "a", "3": "e", "1": "i", "0": "o", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i", "8": "b"}
)


def _readings(text: str) -> list[tuple[str, str]]:
    """The text as it stands and, with the name of the disguise, what it may be read as otherwise."""
    tags = "".join(chr(ord(sign) - 0xE0000) for sign in text if 0xE0020 <= ord(sign) <= 0xE007E)
    hidden = sum(unicodedata.category(sign) == "Cf" for sign in text)
    plain = _normalized("".join(sign for sign in text if unicodedata.category(sign) != "Cf"))
    alike = re.sub(r"[^\W\d_]+", lambda word: _latin(word[0]), plain)
    readings = [("", alike)]
    if hidden > 3:
        readings.append(("invisible characters", f"{alike} {tags}"))
    if any(re.search("[a-zA-Z]", word) and _latin(word) != word for word in re.findall(r"[^\W\d_]+", plain)):
        readings.append(("look-alike letters", alike))
    readings += [("an encoding", shown) for shown in _decoded(alike)]
    disguises: dict[str, tuple[str, ...]] = {"an encoding": (codecs.encode(alike, "rot13"), alike[::-1])}
    if re.search(r"[^\W\d_][013457@$!8]+[^\W\d_]", alike):
        disguises["digits for letters"] = (re.sub(r"\S+", lambda word: _undigited(word[0]), alike),)
    if len(re.findall(r"\b\w[ ._-](?=\w\b)", alike)) >= 8:
        disguises["letters apart"] = (re.sub(r"(?<=\b\w)[ ._-](?=\w\b)", "", re.sub(r"[ ._-]{2,}", "\u2003", alike)),)
    common = len(_COMMON.findall(alike))
    for disguise, shown in disguises.items():
        readings += [(disguise, reading) for reading in shown if len(_COMMON.findall(reading)) > common + 1]
    return readings


def _normalized(text: str) -> str:
    """The text in Unicode's form NFKC, piece by piece: over a long run of combining marks it takes quadratic time."""
    return "".join(unicodedata.normalize("NFKC", piece) for piece in re.findall(rf"\s+|\S{{1,{PART}}}", text))


def _undigited(word: str) -> str:
    """A word that has a letter with letters for its digits."""
    return word.translate(_DIGITS) if re.search(r"[^\W\d_]", word) else word


def _latin(word: str) -> str:
    """A word that looks Latin through and through, or is partly so, in Latin letters; others as they are."""
    read = "".join(_ALIKE.get(sign, sign) for sign in word)
    return read if read.isascii() else word


def _decoded(text: str) -> list[str]:
    """Everything in a text that can be decoded into readable text."""
    found = []
    for code in re.findall(r"[A-Za-z0-9+/_-]{24,}={0,2}", text):
        try:
            found.append(
                base64.b64decode(
                    code.rstrip("=") + "=" * (-len(code.rstrip("=")) % 4),
                    altchars=b"-_" if re.search("[-_]", code) else None,
                )
            )
        except binascii.Error:
            continue
    for code in re.findall(r"(?:[0-9a-fA-F]{2}[ :]?){12,}", text):
        digits = re.sub(r"[^0-9a-fA-F]", "", code)
        found.append(bytes.fromhex(digits[: len(digits) // 2 * 2]))
    read = [
        shown
        for code in found
        if (shown := code.decode("utf-8", "replace")).count("\ufffd") == 0 and shown.isprintable()
    ]
    return read
