"""What a page is made of: cells, tables and panels, which `page` arranges and `page.html` draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memory_paths.evaluation.charts import Point
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.summary import score


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Args:
        text: As it is read.
        sort: What it is sorted by; None: it goes last.
        notes: Smaller, below the text.
        why: Why there is no figure.
        track: Lower end, figure and upper end, in [0, 1], to be drawn below the text.
        bar: Shares of the whole width, each with its colour's name, drawn below the text.
        mark: Number of the path whose mark stands before the text.
        link: Where the text leads.
    """

    text: str
    sort: float | str | None = None
    notes: tuple[str, ...] = ()
    why: str = ""
    track: tuple[float, float, float] | None = None
    bar: tuple[tuple[float, str], ...] = ()
    mark: int | None = None
    link: str = ""


@dataclass(frozen=True)
class Head:
    """The head of a column: its title, what it means, and the colour of its share of a bar, if it has one."""

    title: str
    meaning: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted within each of its groups.

    Args:
        caption: What it shows, for who does not see where it stands.
        heads: Of the columns.
        groups: Rows by the title that stands above them, empty for none.
        reasons: Why cells are empty.
    """

    caption: str
    heads: Sequence[Head]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """A part of a section: a drawing, a table, or words, with the table folded away where `folded` titles it."""

    title: str = ""
    drawing: str = ""
    words: Sequence[str] = ()
    table: Table | None = None
    folded: str = ""
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page: its panels stand side by side where `kind` is "grid" or "maps". Those of one `part` are
    led to as one."""

    title: str
    lead: str
    panels: Sequence[Panel]
    kind: str = ""
    part: str = ""


def path_cell(label: str, numbers: Mapping[str, int], *notes: str) -> Cell:
    """The name of a path with its mark, and below it its settings and notes."""
    path, *variant = label.split(" ")
    return Cell(path, label, (*variant, *filter(None, notes)), mark=numbers.get(label))


def figure(metric: Metric, signed: bool = False, *, track: bool = False) -> Cell:
    """A figure with its interval and its number."""
    if metric.value is None:
        return Cell("-", why=metric.reason)
    value, interval = score(metric, signed)
    notes = (interval, f"n {metric.n}" if metric.n else "")
    drawn = None
    if track and not signed and 0.0 <= metric.value <= 1.0 and metric.low is not None and metric.high is not None:
        drawn = (metric.low, metric.value, metric.high)
    return Cell(value, metric.value, tuple(filter(None, notes)), track=drawn)


def number(value: float | None, text: str, notes: tuple[str, ...] = ()) -> Cell:
    """A quantity; None: it goes last when sorted."""
    return Cell(text, value, notes)


def p_value(value: float) -> Cell:
    """A probability, three digits at most."""
    return Cell("<.001" if value < 0.001 else "1" if value > 0.9995 else f"{value:.3f}".replace("0.", "."), value)


def share(value: float) -> str:
    """A share in words that is as short as a figure."""
    return score(Metric(value))[0] if value <= 1 else ">1"


def bar_of(counts: Sequence[int], colours: Sequence[str]) -> Cell:
    """Counts as one bar, below their sum."""
    whole = sum(counts)
    bar = tuple((count / whole, hue) for count, hue in zip(counts, colours, strict=True) if count)
    return Cell(str(whole), whole, bar=bar)


def with_bar(cell: Cell, bar: Iterable[tuple[float, str]]) -> Cell:
    """A cell with a bar below its text."""
    return Cell(cell.text, cell.sort, cell.notes, bar=tuple(part for part in bar if part[0] > 0))


def by_place(
    title: str,
    series: Mapping[str, Sequence[Point]],
    numbers: Mapping[str, int],
    head: str,
    last: tuple[Head, Mapping[str, Cell]] | None = None,
) -> Table:
    """What a chart of lines shows, as a table of a row for each path, with one more column where there is a `last`."""
    places = sorted({point.x.value for points in series.values() for point in points if point.x.value is not None})
    heads = [Head("path"), *(Head(head.format(place)) for place in places)]
    rows = []
    for label, points in series.items():
        found = {point.x.value: figure(point.y) for point in points}
        rows.append([path_cell(label, numbers), *(found.get(place, Cell("-")) for place in places)])
        if last:
            rows[-1].append(last[1][label])
    return Table(title, [*heads, last[0]] if last else heads, [("", rows)])
