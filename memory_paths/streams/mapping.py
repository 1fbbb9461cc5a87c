"""From one record of a file to the values of an item or a question, as a mapping says; knows nothing of either.

The parts of the language: templates ("{title}", "{answers[0]}"), paths to nested lists ("conversation[session_*]"),
patterns that a record has to fit, dates, and values that keep their type.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

STAR = "*"  # the field in which an entry keeps what the * of its path stood for
_FIELD = re.compile(r"\{[^{}]*\}")


def fill(template: str, record: Record, file: Path) -> str:
    """A template with the record's fields in their places; within a field `*` is what it stood for in `each`.

    Raises:
        ValueError: A field that the record lacks; file, line and field are named.
    """
    try:
        return _starless(template, record).format(**record)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _missing(f"field {error} of {template!r}", record, file) from error


def value(template: Any, record: Record, file: Path) -> Any:
    """Like `fill`, but a template that is one field alone gives what stands there, a number or a list; within mappings
    each value is filled, and what is no text stays as it is."""
    if isinstance(template, Mapping):
        return {name: value(entry, record, file) for name, entry in template.items()}
    if not isinstance(template, str):
        return template
    filled = fill(template, record, file)
    if _FIELD.fullmatch(template):
        return string.Formatter().get_field(_starless(template, record)[1:-1], (), record)[0]
    return filled


def listed(path: str, record: Record, file: Path) -> list[Any]:
    """The list at a path.

    Raises:
        ValueError: There is none; file, line and path are named.
    """
    found: Any = record
    for part in _parts(path):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, list):
        raise _missing(f"field {path!r}", record, file, " or no list")
    return found


def entries(path: str, record: Record, file: Path) -> list[dict[str, Any]]:
    """The entries of a list, or of all lists at a path with `*`, each with the fields of its record too.

    An entry that is no mapping is its field `entry`; `number` counts the entries of a list from 1.

    Args:
        path: "questions", "paragraphs[qas]", or "conversation[session_*]": every field so named that is a list.
        record: Where it begins.
        file: For messages.

    Raises:
        ValueError: No list there; file, line and path are named.
    """
    if STAR not in path:
        return _with_fields(record, listed(path, record, file))
    found = [
        entry for star, content in _matching(_parts(path), record) for entry in _with_fields(record, content, star=star)
    ]
    if not found:
        raise _missing(f"field {path!r}", record, file, " or no list")
    return found


def fitting(patterns: Mapping[str, str], record: Record) -> dict[str, Any] | None:
    """The record with the named groups of the patterns as further fields, or None where it does not fit them.

    Args:
        patterns: By field a regular expression that its whole text has to fit. A field that is missing, or null, fits
            nothing.
        record: What is looked at.
    """
    fields: dict[str, Any] = dict(record)
    for name, pattern in patterns.items():
        found = None if record.get(name) is None else re.fullmatch(str(pattern), str(record[name]), re.DOTALL)
        if found is None:
            return None
        fields |= found.groupdict()
    return fields


def date(text: str, formats: Sequence[str]) -> float | None:
    """Seconds since the epoch of a date in UTC; None for an empty text.

    Args:
        text: A date.
        formats: As `datetime.strptime` has them, tried in this order; none: ISO 8601.

    Raises:
        ValueError: It is in none of these formats.
    """
    if not text.strip():
        return None
    for parse in [_iso] if not formats else [_by(format) for format in formats]:
        try:
            found = parse(text.strip())
        except ValueError:
            continue
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    wanted = " or ".join(formats) or "ISO 8601"
    raise ValueError(f"{text!r} is no date of the form {wanted}; give its form in `dates` of the mapping")


def _starless(template: str, record: Record) -> str:
    if STAR not in record:
        return template
    return _FIELD.sub(lambda field: field[0].replace("*", record[STAR]), template)


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _by(format: str) -> Any:
    return lambda text: datetime.strptime(text, format)


def _parts(path: str) -> list[str]:
    return re.findall(r"[^\[\]]+", path)


def _matching(parts: Sequence[str], inside: Any, star: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every list at a path, with what its * stood for."""
    if not parts:
        if isinstance(inside, list):
            yield star, inside
        return
    if not isinstance(inside, Mapping):
        return
    pattern = re.escape(parts[0]).replace(re.escape(STAR), "(.+)")
    for name in inside:
        if found := re.fullmatch(pattern, name):
            yield from _matching(parts[1:], inside[name], found[1] if found.groups() else star)


def _with_fields(record: Record, content: Sequence[Any], **more: str) -> list[dict[str, Any]]:
    fields = {**record, **({STAR: more["star"]} if more else {})}
    return [
        {**fields, "number": number, **(entry if isinstance(entry, Mapping) else {"entry": entry})}
        for number, entry in enumerate(content, start=1)
    ]


def _missing(what: str, record: Record, file: Path, more: str = "") -> ValueError:
    fields = sorted(set(record) - {"line", STAR})
    return ValueError(f"{file}, line {record.get('line', '?')}: {what} is missing{more}; the record has {fields}")
