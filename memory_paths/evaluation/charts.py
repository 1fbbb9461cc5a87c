"""Drawings of a summary as SVG and HTML text, for a page that needs no network.

Colours are variables of the page's style, so that light and dark come from one drawing; each path has a colour, a
mark and a name beside it, so that nothing hangs on colour alone. This file knows nothing of files and of what a
figure means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.summary import CONTROLS, score

HUES = 6  # colours for contenders; each control has one of its own
_GREATEST_MATRIX = 24
_MARKS = {
    "circle": "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "square": "m-4 -4h8v8h-8z",
    "triangle": "m0 -5.2l5 8.7h-10z",
    "diamond": "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
    "wedge": "m0 5.2l5 -8.7h-10z",
    "cross": "m-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 440, 320, 34, 32, 46
_LETTER, _ROW = 6.6, 13.0  # width of a letter and height of a row of a name

_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """One mark of a chart: figures with their intervals along both axes. `y` is a share."""

    x: Metric
    y: Metric


@dataclass(frozen=True)
class Axis:
    """What runs from left to right."""

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False
    signed: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, in [0, 1]; one beyond an end stands at that end."""
        scale = math.log if self.logarithmic else float
        low, high = scale(self.low), scale(self.high)
        return (scale(min(max(value, self.low), self.high)) - low) / ((high - low) or 1.0)


def colours(labels: Sequence[str]) -> dict[str, int]:
    """A number for each label, the same wherever it occurs, from which come its colour and mark; those of controls are
    negative."""
    contenders = dict.fromkeys(label for label in labels if label.split(" ")[0] not in CONTROLS)
    numbers = {label: place for place, label in enumerate(contenders)}
    for label in labels:
        if label not in numbers:
            numbers[label] = -1 - CONTROLS.index(label.split(" ")[0])
    return numbers


def changes(metrics: Sequence[Metric]) -> Axis:
    """An axis of differences that has room for these."""
    lows = [metric.value if metric.low is None else metric.low for metric in metrics]
    highs = [metric.value if metric.high is None else metric.high for metric in metrics]
    low = min([-0.1, *(max(-1.0, edge) for edge in lows if edge is not None)])
    high = max([0.1, *(min(1.0, edge) for edge in highs if edge is not None)])
    step = 0.1 if high - low <= 0.6 else 0.25
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    ticks = tuple(round(step * at, 2) for at in range(first, last + 1))
    return Axis("change of prior knowledge", ticks[0], ticks[-1], ticks, signed=True)


def front(points: Mapping[str, Point]) -> list[str]:
    """Labels of the points than which no other one is better along one axis and as good along the other, from left to
    right."""

    def both(point: Point) -> tuple[float, float]:
        return (point.x.value or 0.0, point.y.value or 0.0)

    def beaten(mine: tuple[float, float]) -> bool:
        return any(x >= mine[0] and y >= mine[1] and (x, y) != mine for x, y in map(both, points.values()))

    return sorted((label for label in points if not beaten(both(points[label]))), key=lambda label: both(points[label]))


def chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    numbers: Mapping[str, int],
    x: Axis,
    y_title: str,
    *,
    edge: Sequence[str] = (),
) -> str:
    """Marks with both intervals, those of one path joined by a line, the last of them named.

    Args:
        title: What it shows, for who does not see it.
        series: The points of each path, from left to right; all of them have values.
        numbers: As `colours` gives them.
        x: The axis from left to right.
        y_title: Of the axis upwards, which runs from 0 to 1.
        edge: Paths whose single points are the front, from left to right.
    """
    names = [_rows(label) for label in series]
    joined = any(len(points) > 1 for points in series.values())
    right = 14.0
    if joined:
        right += 14 + _LETTER * max((len(row) for rows in names for row in rows), default=0)
    height = max(float(_HEIGHT), _TOP + _BOTTOM + _ROW * sum(map(len, names)))
    floor = height - _BOTTOM

    def across(value: float) -> float:
        inset = 12 if x.logarithmic or not x.signed else 0
        return _LEFT + inset + x.place(value) * (_WIDTH - _LEFT - right - 2 * inset)

    def up(value: float) -> float:
        return floor - min(max(value, 0.0), 1.0) * (floor - _TOP)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">',
        _text(2, 14, y_title, "start"),
        _text((_LEFT + _WIDTH - right) / 2, height - 10, x.title, "middle"),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="rule" d="M{_LEFT} {up(share):.1f}H{_WIDTH - right:.1f}"/>')
        parts.append(_text(_LEFT - 6, up(share) + 4, _tick(share), "end"))
    parts += [_text(across(tick), floor + 17, _tick(tick, x.signed), "middle") for tick in x.ticks]
    if x.signed:
        parts.append(f'<path class="zero" d="M{across(0):.1f} {_TOP}V{floor:.1f}"/>')
    if edge:
        corners = [(across(series[label][0].x.value or 0.0), up(series[label][0].y.value or 0.0)) for label in edge]
        steps = "".join(f"V{top:.1f}H{left:.1f}" for left, top in corners)
        parts.append(f'<path class="front" d="M{_LEFT} {corners[0][1]:.1f}{steps}"/>')
    taken: Counter[tuple[int, int]] = Counter()
    ends = []
    for order, (label, points) in enumerate(series.items()):
        places = []
        for point in points:
            left, top = across(point.x.value or 0.0), up(point.y.value or 0.0)
            here = (round(left / 4), round(top / 4))
            aside = (order - (len(series) - 1) / 2) * min(4.0, 24 / len(series)) if joined else _aside(taken[here])
            taken[here] += 1
            places.append((left + aside, top))
        hue = colour(numbers[label])
        if len(places) > 1:
            line = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
            parts.append(f'<path class="curve" stroke="{hue}" d="M{line}"/>')
        for point, (left, top) in zip(points, places, strict=True):
            parts.append(_cross(point, left, top, hue, across, up) + _marked(label, point, numbers[label], left, top))
        if places:
            left, top = places[-1]
            edge_x = _WIDTH - right - 8 if joined else left
            ends.append((edge_x if abs(left - edge_x) < 24 else left, top, label))
    for left, top, label, start, at in _apart(ends, _WIDTH - 2, _TOP - 8, floor):
        turn = 10 if start else -10
        middle = at + _ROW * len(_rows(label)) / 2
        if abs(middle - top) > 4:
            parts.append(f'<path class="leader" d="M{left + turn / 2:.1f} {top:.1f}L{left + turn:.1f} {middle:.1f}"/>')
        for row, words in enumerate(_rows(label)):
            anchor = "start" if start else "end"
            kind = "name" if not row else "name more"
            parts.append(_text(left + 1.2 * turn, at + _ROW * (row + 0.8), words, anchor, kind, colour(numbers[label])))
    return "".join([*parts, "</svg>"])


def heat_map(matrix: Sequence[Sequence[Metric | None]], title: str) -> str:
    """Accuracy in percent by stage (rows, 0 before any) and experience (columns), as a table that is coloured; the cell
    just after learning is outlined."""
    shown, block = _reduced(matrix)
    columns = max((len(row) for row in shown), default=0)
    heads = "".join(f'<th scope="col">{column * block + 1}</th>' for column in range(columns))
    parts = [
        f'<table class="map{" dense" if columns > 12 else ""}"><caption class="unseen">{escape(title)}</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>"
    ]
    for row, cells in enumerate(shown):
        parts.append(f'<tr><th scope="row">{row * block}</th>')
        for column, value in enumerate(cells):
            if value is None:
                parts.append('<td class="void"></td>')
                continue
            ring = ' class="ring"' if block == 1 and row == column + 1 else ""
            cell = matrix[row][column] if block == 1 else None
            told = f' title="{escape(_told(cell))}"' if cell is not None else ""
            parts.append(f'<td{ring}{told} style="--v:{100 * value:.0f}%">{100 * value:.0f}</td>')
        parts.append("</tr>")
    return "".join([*parts, "</tbody></table>"])


def colour(number: int) -> str:
    """The colour of the path of that number."""
    return f"var(--path-{number % HUES})" if number >= 0 else f"var(--control-{-1 - number})"


def mark(number: int) -> str:
    """The mark of a path alone, for a legend."""
    return f'<svg class="mark" viewBox="0 0 14 14" aria-hidden="true">{_mark(number, 7, 7)}</svg>'


def _mark(number: int, x: float, y: float) -> str:
    turn = number + number // HUES if number >= 0 else -1 - number  # from the seventh on, other pairs of both
    outline = list(_MARKS.values())[turn % len(_MARKS)]
    return f'<path fill="{colour(number)}" class="point" d="M{x:.1f} {y:.1f}{outline}"/>'


def _marked(label: str, point: Point, number: int, x: float, y: float) -> str:
    told = f"{label}: {' '.join(score(point.y))}, at {' '.join(score(point.x))}"
    return f"<g><title>{escape(told)}</title>{_mark(number, x, y)}</g>"


def _cross(point: Point, left: float, top: float, hue: str, across: _Scale, up: _Scale) -> str:
    drawn = ""
    if point.x.low is not None and point.x.high is not None:
        drawn += f"M{across(point.x.low):.1f} {top:.1f}H{across(point.x.high):.1f}"
    if point.y.low is not None and point.y.high is not None:
        drawn += f"M{left:.1f} {up(point.y.low):.1f}V{up(point.y.high):.1f}"
    return f'<path class="bar" stroke="{hue}" d="{drawn}"/>' if drawn else ""


def _aside(others: int) -> float:
    """How far a mark is moved where others stand at its place: marks at one place stand side by side."""
    return 10.0 * ((others + 1) // 2) * (-1.0 if others % 2 else 1.0)


def _rows(label: str) -> list[str]:
    """A name in rows: the path, and below it each setting in which it differs."""
    return [part if len(part) <= 22 else f"{part[:21]}…" for part in label.split(" ")]


def _apart(
    spots: Sequence[tuple[float, float, str]], right: float, top: float, bottom: float
) -> list[tuple[float, float, str, bool, float]]:
    """Each spot with whether its name starts there or ends there, and the top of its name, so that names do not cover
    one another."""
    boxes = []
    for x, y, label in sorted(spots, key=lambda spot: spot[1]):
        rows = _rows(label)
        wide, tall = 12 + _LETTER * max(map(len, rows)), _ROW * len(rows)
        start = x + wide <= right
        boxes.append((x, y, label, start, (x, x + wide) if start else (x - wide, x), tall))

    def beside(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] < other[1] and other[0] < one[1]

    tops: list[float] = []
    for at, (_, y, _, _, extent, tall) in enumerate(boxes):
        above = [tops[other] + boxes[other][5] for other in range(at) if beside(boxes[other][4], extent)]
        tops.append(max([top, y - tall / 2, *above]))
    for at in reversed(range(len(boxes))):
        below = [tops[other] for other in range(at + 1, len(boxes)) if beside(boxes[other][4], boxes[at][4])]
        tops[at] = min([tops[at], bottom - boxes[at][5], *(edge - boxes[at][5] for edge in below)])
    return [(x, y, label, start, at) for (x, y, label, start, _, _), at in zip(boxes, tops, strict=True)]


def _told(cell: Metric) -> str:
    """A figure in one line, with its interval and its number."""
    return " ".join((*filter(None, score(cell)), *([f"n {cell.n}"] if cell.n else [])))


def _reduced(matrix: Sequence[Sequence[Metric | None]]) -> tuple[list[list[float | None]], int]:
    """At most 24 x 24 cells, and how many rows and columns one stands for: of a larger matrix, means of blocks."""
    rows, columns = len(matrix), max((len(row) for row in matrix), default=0)
    block = max(1, math.ceil(max(rows, columns) / (_GREATEST_MATRIX + 1)))
    if block == 1:
        return [[None if cell is None else cell.value for cell in row] for row in matrix], 1
    reduced: list[list[float | None]] = []
    for row in range(0, rows, block):
        line: list[float | None] = []
        for column in range(0, columns, block):
            cells = [
                cell.value
                for each in matrix[row : row + block]
                for cell in each[column : column + block]
                if cell is not None and cell.value is not None
            ]
            line.append(sum(cells) / len(cells) if cells else None)
        reduced.append(line)
    return reduced, block


def _tick(value: float, signed: bool = False) -> str:
    text = f"{value:+g}" if signed and value else f"{value:g}"
    return text.replace("0.", ".")


def _text(x: float, y: float, words: str, anchor: str, kind: str = "label", fill: str = "") -> str:
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'
