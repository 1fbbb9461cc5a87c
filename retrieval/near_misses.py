"""What forbids taking two texts for one, read from their words: a guard for those who merge what says the same.

Texts that differ in a number, a unit, a date, a name, a negation or in who does what to whom are close in meaning and
must stay two. The guard knows English, and it is careful rather than clever: what it cannot tell is forbidden, and a
rephrasing that it forbids costs a line in a bank and no more.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

SHARED_WORDS = 3  # most words that two parts which changed places may begin or end with alike

_LINKS = frozenset(
    "a an the this that these those it its he him his she her they them their we our us i me my mine you your or and as"
    " then so than there who whom whose which what when where why how do does did done has have had having been being"
    " be is are was were am of in on at to by for from with s".split()
)
_PAST = frozenset(
    "usedto was were had did took found went came gave got held kept left lost made met said saw spoke taught thought"
    " won wrote ran sang began became grew".split()
)
# Words that only name the kind of what stands beside them, or its being there.
_NAMING = frozenset(
    "located situated based named called such common language city town country continent river music genre company"
    " product film book song band please".split()
)
_NOW = frozenset("now currently presently nowadays present".split())
_WAS = frozenset("was were had did".split())
_BE = frozenset("is are was were am be been".split())
# Words that may stand anywhere without a change of who does what to whom; prepositions and forms of "be" may not.
_PREPOSITIONS = frozenset("of in on at to by for from with s".split())
_LIGHT = _LINKS - _BE - _PREPOSITIONS
_NEGATIONS = frozenset(
    "not no never none nobody nothing nowhere neither nor without cannot hardly barely scarcely rarely seldom false"
    " untrue wrong incorrect fail fails failed deny denies denied refuse refuses refused lack lacks lacked stop stops"
    " stopped ceased longer except excluding besides unless unlike former formerly myth lie hoax rumour rumor"
    " disproved refuted debunked mistaken supposedly allegedly alleged maybe perhaps possibly might doubt doubtful"
    " unlikely pretend pretends avoid avoids avoided quit quits forgot forgets forgotten missed skip skips skipped"
    " cancelled canceled instead almost nearly apart doubts doubted".split()
)
# Words of which both texts must have one, or neither.
_MARKS = tuple(
    frozenset(words.split())
    for words in (
        "all every each always everyone everybody everything any",
        "some sometimes several occasionally",
        "most mostly usually often normally generally",
        "only solely just exclusively",
        "few little",
        "many much",
        "half",
        "quarter quarters",
        "both",
        "less fewer",
        "least minimum",
        "maximum",
        "couple",
        "hundreds",
        "thousands",
        "millions",
        "dozens",
        "boundatleast",
        "boundatmost",
        "boundabove",
        "boundbelow",
        "boundroughly",
        "must shall required mandatory obliged compulsory",
        "should ought",
        "may could optional optionally",
        "will",
        "would",
        "plans plan planned intends intended hopes hoped wants wanted considering tries tried applies applied apply",
        "suspect suspects suspected guess guesses guessed think thinks thought believe believes believed",
        "being",
        "getting",
        "off",
        "out",
        "away",
        "back",
        "if",
        "still",
        "already",
        "yet",
        "again",
        "even",
        "equally equal",
        "once",
        "other",
        "next",
        "because",
        "although though despite",
        "until till",
        "since",
        "probably likely apparently reportedly presumably seems appears",
        "certainly definitely surely",
        "percentage",
    )
)
_PERSONS = tuple(
    frozenset(words.split())
    for words in (
        "i me my mine we us our ours",
        "you your yours",
        "he him his himself",
        "she her hers herself",
        "they them their theirs themselves",
    )
)
# Where one text has one of these words and the other, in its place, a rival of it, they are two. Rivals stand in one
# line, with a slash between words that are none to one another.
_RIVALS = """
mother/mum/mom father/dad aunt uncle niece nephew grandmother/grandma grandfather/grandpa cousin brother sister son
    daughter husband wife stepmother stepfather granddaughter grandson
director producer author/writer publisher editor actor
birth/born death/died/die/dead buried married/marry
parent child
married divorced single engaged widowed
male/man/boy female/woman/girl
king queen prince princess
employer employee
teacher student/pupil
doctor patient nurse
landlord tenant
seller/vendor buyer/customer
client supplier
guest host
winner loser
lender borrower
attacker defender
plaintiff defendant
predecessor successor
sender recipient/receiver
first/start/starting/begin last/final/end/ending/finish second
earlier/before later/after
above/over below/under/beneath/underneath
north south east west
northern southern eastern western
northeast northwest southeast southwest
up/upstairs down/downstairs
left right
inside/indoors outside/outdoors
front back/rear/behind
top bottom middle
near far
early late
earliest latest
previous next
past future
yesterday today tomorrow tonight next last
enter leave/exit
arrive/arrival depart/departure/leave
come go
upper lower
ascending descending
clockwise counterclockwise
forward backward
horizontal vertical
open/opened/opening/founded close/closed/closing/shut
lock unlock
buy/bought/purchase sell/sold rent/rented/lease
lend/lent borrow
give/gave/send/sent take/took receive
import export
upload download
win/won/beat lose/lost draw/drew
increase/rise/rose/grow/grew/gain decrease/reduce/fall/fell/drop/shrink/shrank
raise lower
accept/approve reject/decline/refuse
love/like/enjoy hate/dislike/dread/loathe
support oppose
keep/kept drop
compress decompress/unpack
overdrawn/debt credit
upstream downstream
create/build/built destroy/demolish
allow/permit/permitted/tolerate forbid/forbidden/ban/banned/prohibit
enable/activate disable/deactivate
push pull
add remove/subtract
join left/leave
hire fire
pass fail
remember forget/forgot
learn teach/taught
save/earn spend/spent/waste
attack defend
ask answer
encourage discourage
expand contract
freeze melt boil
connect disconnect
install uninstall
lead/led follow
succeed fail
deposit withdraw/withdrew
admit deny
praise criticise/criticize/blame
improve worsen
strengthen weaken
appear disappear
cause prevent
help hinder/harm
arrest release
wake/woke sleep/slept
mount unmount
encrypt decrypt
include/including exclude/excluding/except
best worst
better worse
good bad
high/higher/highest low/lower/lowest
large/big/huge/larger/bigger/largest/biggest small/little/tiny/smaller/smallest
long/longer/longest short/shorter/shortest
old/older/oldest young/younger/youngest new/newer/newest
more less fewer
most least fewest
many few
fast/quick/faster/quicker/fastest/quickest slow/slower/slowest
cheap/cheaper/cheapest expensive/dear/dearer/dearest
hot/hotter/hottest cold/colder/coldest warm/warmer cool/cooler
wide/wider/widest narrow/narrower/narrowest
thick/thicker/thickest thin/thinner/thinnest
heavy/heavier/heaviest light/lighter/lightest
strong/stronger/strongest weak/weaker/weakest
hard/harder/hardest soft/softer/softest easy/easier/easiest
deep/deeper/deepest shallow/shallower
rich/richer/richest poor/poorer/poorest
tall/taller/tallest short/shorter/shortest
loud/louder quiet/quieter
bright/brighter dark/darker dim
wet/wetter dry/drier
full empty
clean dirty
safe/safer dangerous
true false
on off
public private
single double triple
sweet sour bitter salty
fresh stale frozen
raw cooked
alive dead
minimum maximum
minor major
internal external
local remote
online offline
domestic foreign
ancient modern
permanent temporary
positive negative
active passive
guilty innocent
solid liquid gas
vegetarian vegan
manual automatic
even odd
same different
ahead behind
always never sometimes usually/often
monday tuesday wednesday thursday friday saturday sunday weekday weekend
january february march april may june july august september october november december
spring summer autumn/fall winter
morning noon/midday afternoon evening night midnight dawn dusk
breakfast lunch dinner/supper brunch
second minute hour day week fortnight month quarter year decade century/centuries
hourly daily weekday weekend weekly fortnightly monthly quarterly yearly/annual/annually
black white red green blue yellow orange purple/violet pink brown grey/gray beige turquoise silver gold
kitchen bathroom bedroom garage basement/cellar attic balcony garden office hallway lounge library shed porch
piano guitar violin cello flute trumpet drums saxophone clarinet harp bass organ
cat dog bird fish horse rabbit hamster parrot
dollar euro pound yen franc rupee peso crown
millimetre/millimeter centimetre/centimeter metre/meter kilometre/kilometer inch/inches foot/feet yard mile
milligram gram kilogram/kilo tonne/ton ounce pound
millilitre/milliliter litre/liter gallon pint cup teaspoon tablespoon
celsius fahrenheit kelvin
byte bit kilobyte megabyte gigabyte terabyte
get post put delete patch
bus train plane car tram taxi/cab bicycle/bike boat/ship ferry
tea coffee juice water milk beer wine
chicken beef pork lamb fish
peanut walnut almond hazelnut cashew
"""
_MONTH_NAMES = "january february march april may june july august september october november december".split()
_MONTHS = {name[:length]: number for number, name in enumerate(_MONTH_NAMES, 1) for length in (3, len(name))}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_YEAR = r"(?:,? (?P<year>\d{4}))?\b"
_DATES = (
    re.compile(rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_MONTH})\b\.?{_YEAR}", re.I),
    re.compile(rf"\b(?P<month>{_MONTH})\b\.? (?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b{_YEAR}", re.I),
    re.compile(r"\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)\b"),
)
_TIME = re.compile(
    r"\b(?P<hour>[01]?\d|2[0-4])(?:[:.](?P<minute>[0-5]\d))? ?"
    r"(?:(?P<half>[ap])\.?m\b\.?|(?:o'clock )?(?P<part>in the (?:morning|afternoon|evening)|at night)\b)"
    r"|\b(?P<plain_hour>[01]?\d|2[0-4]):(?P<plain_minute>[0-5]\d)\b",
    re.I,
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_COUNTS = {word: number for number, word in enumerate(_SMALL)} | {
    word: number for number, word in zip(range(20, 100, 10), _TENS, strict=True)
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = {
    **{f"{word}th": number for word, number in _COUNTS.items()},
    **{f"{word[:-1]}ieth": number for word, number in _COUNTS.items() if word.endswith("y")},
    **{"second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12},
}
_WORD = "|".join(sorted({*_COUNTS, *_SCALES, *_ORDINALS}, key=len, reverse=True))
_COUNTED = re.compile(rf"\b(?:an? (?={'|'.join(_SCALES)}))?(?:{_WORD})(?:(?: and |[ -])(?:{_WORD})){{0,9}}\b", re.I)
_ROMAN = re.compile(r"\b[IVXL]{2,}\b|(?<=[a-z] )[IVX]\b(?! [a-z])")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50}
# Signs and abbreviations, each with the word for it: what a number counts is compared too.
_UNITS = {
    "mm": "millimetre", "cm": "centimetre", "m": "metre", "km": "kilometre", "kms": "kilometre", "meter": "metre",
    "millimeter": "millimetre", "centimeter": "centimetre", "kilometer": "kilometre", "mi": "mile", "ft": "foot",
    "feet": "foot", "lb": "pound", "lbs": "pound", "oz": "ounce", "mg": "milligram", "g": "gram",
    "gr": "gram", "kg": "kilogram", "kgs": "kilogram", "kilo": "kilogram", "ml": "millilitre", "l": "litre",
    "liter": "litre", "milliliter": "millilitre", "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute",
    "mins": "minute", "sec": "second", "secs": "second", "ms": "millisecond", "kb": "kilobyte", "mb": "megabyte",
    "gb": "gigabyte", "tb": "terabyte", "usd": "dollar", "eur": "euro", "gbp": "pound", "bucks": "dollar",
    "c": "celsius", "f": "fahrenheit", "pct": "percent", "people": "person",
}  # fmt: skip
_SIGNS = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "%": "percent", "°": "degree"}
_BOUNDS = (
    (r"\b(?:at least|no (?:less|fewer) than|not (?:less|fewer) than|a minimum of)\b|>=|≥", "boundatleast"),
    (r"\b(?:at most|no more than|not more than|up to|a maximum of)\b|<=|≤", "boundatmost"),
    (r"(?<=\d)\+|\b(?:or more|or above|or over|or later|or older)\b", "boundatleast"),
    (r"\b(?:or less|or fewer|or under|or earlier|or younger)\b", "boundatmost"),
    (r"\b(?:more than|greater than|over|above|exceeds?|exceeding)\b(?= [$€£]?\d)|>(?= ?\d)", "boundabove"),
    (r"\b(?:(?:less|fewer) than|under|below)\b(?= [$€£]?\d)|<(?= ?\d)", "boundbelow"),
    (r"\b(?:about|around|approximately|roughly|circa|ca\.?)(?= [$€£]?\d)|~ ?(?=\d)", "boundroughly"),
)
_PAST_THE_HOUR = re.compile(
    r"\b(?:an? )?(?P<part>quarter|half|5|10|20|25) (?P<side>past|to) (?P<hour>1[0-2]|[1-9])\b", re.I
)
_ACCENTED = re.compile(r"([A-Za-z])[\u0300-\u036f]+")
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_PHRASES = (
    (r"n't\b", " not"),
    (r"\b(?:has|have|had|needs?|needed) to\b", "must"),
    (r"\b(?:is|are|am) (?:going|about) to\b|'ll\b", " will"),
    (r"\b(\w+)-free\b", r"without \1"),
    (r"\b(non|anti|ex)-(?=\w)", r"\1"),
    (r"\b(\w+)-in-law", r"inlaw\1"),
    (r"\bhalf an hour\b", "30 minutes"),
    (r"° ?f\b", " fahrenheit"),
    (r"° ?c\b", " celsius"),
    (r"\bin the past\b", "formerly"),
    (r"\bas (?!far|long|soon|well|much|many)(\w+) as\b", r"equally \1"),
    (r"\b(?:an|1) hour and a half\b", "90 minutes"),
    (r"(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )\bused to\b", "usedto"),
    (r"\bpercentage points?\b", "percentage"),
    (r"\btwice\b", "2 times"),
    (r"\ba few\b", "several"),
    (r"\ba little\b", "some"),
    *((rf"\b{day[:3]}(?:s|rs?|nes)?\b\.?(?=,? [A-Za-z\d])", day) for day in _DAYS),
)
# What follows such a word, to the next comma, is a clause of its own: the cause, the condition, the later one.
_SUBORDINATE = re.compile(
    r"\b(?:because(?: of)?|if|unless|although|though|before|after|until|when|while|than) (?P<said>[^,.;?!]+)"
)
_REVERSING = "un in im il ir dis non mis de anti ex counter over under".split()
# Addresses, paths, versions, switches and operators: one sign makes another thing of them.
_CODE = re.compile(
    r"[!=<>&|*/%^]{1,3}|--?[a-z][\w-]*|.*[@\\_].+|#.+|\w+[+#]+|v?\d+(?:\.\d+)+|\w+(?:[./]\w+)*/\w.*|\w+\.\w+\.\w[\w.]*"
)
LONGEST = 200  # characters of what stands between spaces; of longer ones only the very same are the same


def differences(first: str, second: str) -> tuple[str, ...]:
    """What forbids taking two texts for one; empty if nothing does.

    It is "number", "date", "negation", "name", "quantifier", "person", "tense", "word" (one put for another),
    "addition" (one says or asks more), "opposite" or "order" (who does what to whom).

    Numbers, times and dates are compared as such, however they are written, with what they count. Words that are
    written with a capital are names; those that begin a text may be others, and are only compared with one another.
    """
    one, two = _Reading(first), _Reading(second)
    names = [one.names_beyond(two), two.names_beyond(one)]
    apart = [one.beyond(two), two.beyond(one)]
    found = {
        "number": one.numbers != two.numbers or _counts_another(one.units, two.units) or one.codes != two.codes,
        "date": one.months != two.months,
        "negation": one.negations != two.negations
        or one.is_over(two)
        or two.is_over(one)
        or one.remarks_on(two)
        or two.remarks_on(one)
        or any(_reversed(word, other) or _reversed(other, word) for word in apart[0] for other in apart[1]),
        "name": any(place for place in (*names[0], *names[1])) or all(names),
        "quantifier": any(bool(group & one.words) != bool(group & two.words) for group in _MARKS),
        "person": set(one.persons) != set(two.persons)
        or (len(one.persons) == len(two.persons) and one.persons != two.persons),
        "tense": _other_tense(one, two) or one.is_now(two) or two.is_now(one),
        "word": _one_word_apart(one, two),
        "addition": _says_more(one, two) or _says_more(two, one) or one.asks != two.asks,
        "opposite": _rivals(*apart)
        or {one.direction, two.direction} == {"to", "from"}
        or {one.junction, two.junction} == {"and", "or"},
        "order": (one.numbers == two.numbers and one.numbers_in_order != two.numbers_in_order)
        or (one.shared(two) != two.shared(one) and _exchanged(one.order, two.order))
        or _turned_round(one, two)
        or _turned_round(two, one)
        or bool(one.owners and two.owners and not one.owners & two.owners)
        or bool(one.condition - two.condition and two.condition - one.condition),
    }
    return tuple(name for name, differs in found.items() if differs)


def rest(first: str, second: str) -> tuple[str, str]:
    """The words of two texts that the other one does not have in any form, numbers and words of grammar left out."""
    one, two = _Reading(first), _Reading(second)
    return " ".join(one.beyond(two)), " ".join(two.beyond(one))


class _Reading:
    """The words of a text, in the forms in which they are compared."""

    def __init__(self, text: str) -> None:
        plain = _written_out(text)
        tokens = [token.strip(".,;:?!\"'()") or token for token in plain.split()]
        self.codes = Counter(token for token in tokens if len(token) > LONGEST or _CODE.fullmatch(token))
        self.question = "?" in text
        self.asks = text.rstrip().endswith("?")
        self.parts = [
            re.findall(r"[^\W_]+", part.lower())
            for sentence in re.split(r"[.!?:]\s", plain)
            for part in re.split(r"(?<=^)((?:It|You|He|She|They|We|I|There)\b.*?)\bthat\b", sentence, maxsplit=1)
        ]
        written = re.findall(r"[^\W_]+(?:[.:/]\d+)*", re.sub(r"(?<![\d.)])[-\u2212](?=\d)", "minus", plain))
        spoken = [word.lower() for word in written]
        numeric = [any(sign.isdigit() for sign in word) for word in spoken]
        self.words = frozenset(spoken)
        self.numbers_in_order = [word for word, number in zip(spoken, numeric, strict=True) if number]
        self.numbers = Counter(self.numbers_in_order)
        # A number behind a name belongs to it.
        self.units = [
            (number, unit.lower())
            for before, number, unit in re.findall(r"(?:(?<=[ (])([^\W\d_]+) )?\b(\d+(?:\.\d+)?) ([^\W\d_]+)", plain)
            if not before[:1].isupper() and unit.lower() not in _LINKS
        ]
        clause = None if "?" in text else _SUBORDINATE.search(plain.lower())
        self.condition = {_stem(word) for word in re.findall(r"[^\W\d_]+", clause["said"])} if clause else frozenset()
        self.condition -= _LINKS
        self.owners = frozenset(re.findall(r"\b([^\W\d_]+)'s?\b", plain.lower()))
        self.months = Counter(
            _MONTHS[word] for place, word in enumerate(spoken) if word in _MONTHS and written[place][0].isupper()
        )
        self.persons = [person for word in spoken for person, group in enumerate(_PERSONS) if word in group]
        self.negations = sum(word in _NEGATIONS for word in spoken)
        # Both of them are neither of them.
        self.direction = "".join(self.words & {"to", "from"})
        self.junction = "".join(self.words & {"and", "or"})
        self.past = any(map(_is_past, spoken))
        self.content = [word for word, number in zip(spoken, numeric, strict=True) if not number and word not in _LINKS]
        self.stems = [_stem(word) for word in self.content]
        self.names = [
            (place, word)
            for place, word in enumerate(spoken)
            if written[place][0].isupper() and word not in _LINKS and not numeric[place]
        ]
        ordered = re.findall(r"[^\W_]+(?:\.\d+)?|,", plain.lower())
        self.order = ["be" if word in _BE else word for word in ordered if word not in _LIGHT]

    def is_over(self, other: _Reading) -> bool:
        """Whether this text says that something used to be so, and the other one that it is."""
        return "usedto" in self.words and "usedto" not in other.words and not other.past

    def is_now(self, other: _Reading) -> bool:
        """Whether this text says that something is so by now, and the other one that it was."""
        return bool(_NOW & self.words) and not _NOW & other.words and other.past and not self.past

    def remarks_on(self, other: _Reading) -> bool:
        """Whether a part of this text shares nothing with the other: "It is ... that", or a sentence of its own."""
        shared = set(other.stems) | {_stem(word) for word in other.words}
        parts = [{_stem(word) for word in part if word not in _LINKS} for part in self.parts]
        return any(part and not part & shared for part in parts)

    def beyond(self, other: _Reading) -> list[str]:
        """Words of content that the other text lacks."""
        spare = Counter(other.stems)
        found = []
        for word in self.content:
            spare[_stem(word)] -= 1
            if spare[_stem(word)] < 0:
                found.append(word)
        return found

    def shared(self, other: _Reading) -> list[str]:
        """The words and numbers that both texts have, words of grammar left out, in the order of this one."""
        both = frozenset(self.order) & frozenset(other.order) - _PREPOSITIONS - {"be", ","}
        return [word for word in self.order if word in both]

    def names_beyond(self, other: _Reading) -> list[int]:
        """Where names stand that the other text has not, or less often, in any spelling; 0 is the beginning."""
        spare = Counter(other.stems)
        spare.subtract(_stem(word) for _, word in self.names)
        return [place for place, word in self.names if spare[_stem(word)] < 0]


def _written_out(text: str) -> str:
    """The text in plain letters, with its numbers, times, dates and bounds in one form each."""
    plain = _ACCENTED.sub(r"\1", unicodedata.normalize("NFKD", text.replace("\u2019", "'")))
    plain = unicodedata.normalize("NFC", plain)
    for phrase, word in _PHRASES:
        plain = re.sub(phrase, word, plain, flags=re.I)
    for pattern in _DATES:
        plain = pattern.sub(_date, plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    plain = re.sub(r"(?<=\d)(?:st|nd|rd)\b", "th", plain)
    plain = _COUNTED.sub(_number, plain)
    plain = re.sub(rf"\b(\d{{1,12}}(?:\.\d{{1,6}})?) ({'|'.join(_SCALES)})\b", _scaled, plain, flags=re.I)
    plain = _ROMAN.sub(_roman, re.sub(r"\bminus (?=\d)", "-", plain))
    plain = re.sub(r"\b(?:noon|midday)\b", "12:00", re.sub(r"\bmidnight\b", "0:00", plain))
    plain = _TIME.sub(_time, _PAST_THE_HOUR.sub(_past_the_hour, plain))
    for bound, word in _BOUNDS:
        plain = re.sub(bound, f" {word} ", plain, flags=re.I)
    for sign, word in _SIGNS.items():
        plain = re.sub(rf"{re.escape(sign)} ?(\d[\d.]*)", rf"\1 {word}", plain).replace(sign, f" {word} ")
    return re.sub(rf"(?<=\d) ?({'|'.join(_UNITS)})\b", lambda unit: f" {_UNITS[unit[1].lower()]}", plain, flags=re.I)


def _date(found: re.Match[str]) -> str:
    month = found["month"].lower()
    return f" {found['year'] or ''}d{_MONTHS.get(month) or int(month)}d{int(found['day'])} "


def _time(found: re.Match[str]) -> str:
    hour, minute = int(found["hour"] or found["plain_hour"]), int(found["minute"] or found["plain_minute"] or 0)
    half = (found["half"] or found["part"] or "").lower()
    late = half.startswith(("p", "in the a", "in the e")) or (half == "at night" and hour > 5)
    if half:
        hour = hour % 12 + 12 * late
    return f" {hour}t{minute:02} "


def _past_the_hour(found: re.Match[str]) -> str:
    part = {"quarter": 15, "half": 30}.get(found["part"].lower()) or int(found["part"])
    minutes = int(found["hour"]) * 60 + (part if found["side"].lower() == "past" else -part)
    return f" {minutes // 60}t{minutes % 60:02} "


def _number(found: re.Match[str]) -> str:
    """Number words as digits; "one" alone and "second" after an article are left, being other words mostly."""
    words = [word for word in re.split(r"[ -]", found[0].lower()) if word not in ("a", "an", "and")]
    if words in (["one"], ["second"]):
        return found[0]
    total, part = 0, 0
    for word in words:
        if word in _SCALES:
            part = (part or 1) * _SCALES[word]
            if _SCALES[word] >= 1000:
                total, part = total + part, 0
        else:
            part += _COUNTS.get(word, _ORDINALS.get(word, 0))
    return f"{total + part}{'th' * (words[-1] in _ORDINALS)}"


def _scaled(found: re.Match[str]) -> str:
    return f"{float(found[1]) * _SCALES[found[2].lower()]:.12g}"


def _roman(found: re.Match[str]) -> str:
    values = [_ROMAN_VALUES[sign] for sign in found[0]]
    return str(sum(-value if value < max(values[place:]) else value for place, value in enumerate(values)))


def _stem(word: str) -> str:
    """The word without an English ending: crude, and the same for both sides."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _counts_another(one: Sequence[tuple[str, str]], two: Sequence[tuple[str, str]]) -> bool:
    """Whether the same number counts one thing here and another there; a number at the end of a text counts none."""
    units = [
        {number: {_stem(unit) for other, unit in side if other == number} for number, _ in side} for side in (one, two)
    ]
    return any(not units[0][number] & units[1][number] for number in units[0].keys() & units[1].keys())


def _reversed(word: str, other: str) -> bool:
    """Whether one word is the other with a prefix or an ending that turns its meaning round."""
    if word.endswith("less") and len(word) > 6 and other.startswith(word.removesuffix("less")):
        return True
    if word.endswith("ee") and other.endswith(("er", "or")) and word[:-2] == other[:-2]:
        return True
    return len(other) > 3 and any(word == prefix + other for prefix in _REVERSING)


def _rivals(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether the two say different things of a kind."""
    sides = [{_stem(word) for word in side} for side in (one, two)]
    for group in _groups():
        said = [{group[word] for word in side & group.keys()} for side in sides]
        if all(said) and said[0] != said[1]:
            return True
    return False


@cache
def _groups() -> list[dict[str, int]]:
    """For each group of rivals the number of each of its words, in `_stem`'s form; equal for those between slashes."""
    lines = _RIVALS.strip().replace("\n    ", " ").splitlines()
    return [
        {_stem(word): number for number, words in enumerate(line.split()) for word in words.split("/")}
        for line in lines
    ]


def _slot(one: Sequence[str], two: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is left of two texts without what they begin and end alike with."""
    begin = _common(one, two)
    one, two = one[begin:], two[begin:]
    end = _common(one[::-1], two[::-1])
    return one[: len(one) - end], two[: len(two) - end]


def _one_word_apart(one: _Reading, two: _Reading) -> bool:
    """Whether one word stands for another in two texts that are alike: vectors cannot tell a synonym from a rival."""
    left, right = _slot(one.order, two.order)
    if len(left) != 1 or len(right) != 1 or {*left, *right} <= _PREPOSITIONS | {"be", ","}:
        return False
    return not _alike(left[0], right[0])


def _says_more(one: _Reading, two: _Reading) -> bool:
    """Whether a text is the other one with something put in, as "not" is in many languages. Not so where both ask: in
    questions it mostly says what kind of answer is wanted."""
    left, right = _slot(one.order, two.order)
    if left or (one.question and two.question):
        return False
    return any(word in two.content and word not in _NAMING for word in right)


def _other_tense(one: _Reading, two: _Reading) -> bool:
    """Whether texts that are alike say when in another way: "is" and "was", "owns" and "owned"."""
    left, right = _slot(one.order, two.order)
    if not left and not right:
        return bool(one.words & _WAS) != bool(two.words & _WAS)
    return len(left) == len(right) == 1 and _alike(left[0], right[0]) and _is_past(left[0]) != _is_past(right[0])


def _is_past(word: str) -> bool:
    return word in _PAST or word.endswith("ed")


def _alike(one: str, two: str) -> bool:
    """Whether two words are forms of one another, or are known to mean the same."""
    one, two = sorted((_stem(one), _stem(two)), key=len)
    if two == one or (len(one) > 3 and two.startswith(one)):
        return True
    return any(one in group and group[one] == group.get(two) for group in _groups())


def _turned_round(active: _Reading, passive: _Reading) -> bool:
    """Whether of texts in the same words one says that something was done by whom it was done to in the other one."""
    if "by" in active.order or "by" not in passive.order:
        return False
    more, fewer = sorted((active.beyond(passive), passive.beyond(active)), key=len, reverse=True)
    same = all(any(_alike(word, other) for other in fewer) for word in more)
    irregular = len(more) == 1 and not _PREPOSITIONS.intersection(active.order) - set(passive.order)  # "saw", "seen"
    if len(more) != len(fewer) or not (same or irregular):
        return False
    agent = next((word for word in passive.order[passive.order.index("by") + 1 :] if word in passive.content), None)
    patient = next((word for word in passive.order if word in passive.content), None)
    said = active.order
    return agent in said and patient in said and said.index(patient) < said.index(agent)


def _exchanged(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two parts have changed places, and what relates them has not ("A is part of B", "B was part of A")."""
    same_begin, same_end = _common(first, second), _common(first[::-1], second[::-1])
    # The parts may share words ("Oslo Festival is in Oslo"): what is alike at both ends may belong to them, or not.
    for begin in range(max(0, same_begin - SHARED_WORDS), same_begin + 1):
        for end in range(min(same_end, len(first) - begin, len(second) - begin) + 1):
            one, two = first[begin : len(first) - end], second[begin : len(second) - end]
            left, right = _longest(one, two), _longest(two, one)
            between = [one[left : len(one) - right], two[right : len(two) - left]]
            said_to_be = not begin and between == [["be"], ["be"]] and {"s", "of"} & {*one, *two}
            if left and right and all(between) and _same_relation(*between) and not said_to_be:
                return True
    return False


def _longest(one: Sequence[str], two: Sequence[str]) -> int:
    """How many words at most begin the one and end the other."""
    return next((size for size in range(min(len(one), len(two)) - 1, 0, -1) if one[:size] == two[-size:]), 0)


def _same_relation(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether the words between two parts say that the first is to the second the same; "with" goes both ways."""
    if "with" in one and "with" in two:
        return False
    prepositions = [_PREPOSITIONS.intersection(words) for words in (one, two)]
    return list(one) == list(two) or (bool(prepositions[0]) and prepositions[0] == prepositions[1])


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(two)))
