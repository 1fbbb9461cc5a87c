"""Drawings of a summary as SVG text, for a page that needs no network and no script.

Colours are variables of the page's style, so that light and dark come from one drawing; each path has a colour, a
mark and a name beside it, so that nothing hangs on colour alone. This file knows nothing of files and of what a
figure means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.summary import CONTROLS

PALETTE = 6  # colours for contenders; each control has one of its own after them
_GREATEST_MATRIX = 24
_MARKS = ("circle", "square", "triangle", "diamond", "wedge", "cross")


@dataclass(frozen=True)
class Point:
    """One mark of a chart: figures with their intervals along both axes, and the path that it stands for."""

    label: str
    x: Metric
    y: Metric


def colour(index: int) -> str:
    """The colour of the path of that number."""
    return f"var(--path-{index})"


def colours(labels: Sequence[str]) -> dict[str, int]:
    """A number for each label, the same wherever it occurs; controls have numbers of their own."""
    contenders = dict.fromkeys(label for label in labels if label.split(" ")[0] not in CONTROLS)
    numbers = {label: place % PALETTE for place, label in enumerate(contenders)}
    for label in labels:
        if label not in numbers:
            numbers[label] = PALETTE + CONTROLS.index(label.split(" ")[0])
    return numbers


def heat_map(matrix: Sequence[Sequence[float | None]], title: str) -> str:
    """Accuracy by stage (rows, 0 before any) and experience (columns); the cell just after learning is outlined."""
    shown = _reduced(matrix)
    columns = max((len(row) for row in shown), default=0)
    size, left, top = 24, 30, 18
    width, height = left + columns * size + 2, top + len(shown) * size + 2
    parts = [_open(width, height, f"Accuracy matrix of {title}", max_width=width * 1.2)]
    written = columns <= 12
    for column in range(columns):
        if written or column % 4 == 0:
            parts.append(_text(left + (column + 0.5) * size, top - 6, str(column + 1), "middle", "small"))
    for row, cells in enumerate(shown):
        y = top + row * size
        if written or row % 4 == 0:
            parts.append(_text(left - 6, y + size / 2 + 4, str(row), "end", "small"))
        for column, value in enumerate(cells):
            x = left + column * size
            ring = ' class="ring"' if row == column + 1 and len(shown) == len(matrix) else ""
            if value is None:
                parts.append(f'<rect class="void" x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 2}"/>')
                continue
            parts.append(
                f'<rect{ring} x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 2}" rx="2" fill="var(--heat)" '
                f'fill-opacity="{0.06 + 0.94 * value:.2f}"/>'
            )
            if written:
                strong = "on" if value > 0.55 else "off"
                parts.append(_text(x + size / 2, y + size / 2 + 3.5, f"{100 * value:.0f}", "middle", f"cell {strong}"))
    return "".join([*parts, "</svg>"])


def scatter(points: Sequence[Point], numbers: Mapping[str, int], *, x_title: str, y_title: str) -> str:
    """Points with both intervals, each named beside its mark. `y` is a share; higher and further right is better."""
    width, height, left, right, top, bottom = 460, 330, 44, 96, 14, 44
    drawn = [point for point in points if point.x.value is not None and point.y.value is not None]
    lowest = min((_low(point.x) for point in drawn), default=-1.0)
    x_low = min(-0.1, math.floor(max(lowest, -1.0) * 10) / 10)
    x_high = max(0.1, math.ceil(max((_high(point.x) for point in drawn), default=0.0) * 10) / 10)

    def across(value: float) -> float:
        return left + (min(max(value, x_low), x_high) - x_low) / (x_high - x_low) * (width - left - right)

    def up(value: float) -> float:
        return height - bottom - min(max(value, 0.0), 1.0) * (height - top - bottom)

    parts = [_open(width, height, f"{y_title} against {x_title}", max_width=560)]
    parts += _share_axis(up, left, width - right, y_title)
    step = 0.1 if x_high - x_low <= 0.6 else 0.2
    tick = math.ceil(round(x_low / step, 6)) * step
    while tick <= x_high + 1e-9:
        parts.append(_text(across(tick), height - bottom + 16, f"{tick:+.1f}" if abs(tick) > 1e-9 else "0", "middle"))
        tick += step
    parts.append(f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{top}" y2="{height - bottom}"/>')
    parts.append(_text((left + width - right) / 2, height - 8, x_title, "middle"))
    spots = []
    for point in drawn:
        x, y, hue = across(point.x.value or 0.0), up(point.y.value or 0.0), colour(numbers[point.label])
        parts.append(
            f'<path class="bar" stroke="{hue}" d="M{across(_low(point.x)):.1f} {y:.1f}H{across(_high(point.x)):.1f}"/>'
        )
        parts.append(
            f'<path class="bar" stroke="{hue}" d="M{x:.1f} {up(_low(point.y)):.1f}V{up(_high(point.y)):.1f}"/>'
        )
        parts.append(_mark(numbers[point.label], x, y))
        spots.append((x, y, point.label))
    for x, y, label, at in _apart(spots, top + 4, height - bottom):
        parts.append(_leader(x, y, at))
        parts.append(_text(x + 10, at + 4, label, "start", "name", colour(numbers[label])))
    return "".join([*parts, "</svg>"])


def trade_off(curves: Mapping[str, Sequence[tuple[float, float]]], numbers: Mapping[str, int]) -> str:
    """One line for each path over its efforts: what it acquires (right) against prior knowledge (up)."""
    width, height, left, right, top, bottom = 460, 330, 44, 120, 14, 44

    def across(value: float) -> float:
        return left + min(max(value, 0.0), 1.0) * (width - left - right)

    def up(value: float) -> float:
        return height - bottom - min(max(value, 0.0), 1.0) * (height - top - bottom)

    parts = [_open(width, height, "prior knowledge against acquisition", max_width=560)]
    parts += _share_axis(up, left, width - right, "prior knowledge, 1 less what was lost")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_text(across(share), height - bottom + 16, f"{share:g}".replace("0.", "."), "middle"))
    parts.append(_text((left + width - right) / 2, height - 8, "acquisition, effort growing along each line", "middle"))
    spots = []
    for label, points in curves.items():
        places = [(across(x), up(1.0 + y)) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="curve" stroke="{colour(numbers[label])}" d="M{path}"/>')
        parts += [_mark(numbers[label], x, y) for x, y in places]
        spots.append((*places[-1], label))
    for x, y, label, at in _apart(spots, top + 4, height - bottom):
        parts.append(_leader(x, y, at))
        parts.append(_text(x + 12, at + 4, label, "start", "name", colour(numbers[label])))
    return "".join([*parts, "</svg>"])


def load_curves(series: dict[str, dict[int, Metric]], numbers: Mapping[str, int], *, y_title: str) -> str:
    """One line for each path over the number of items taught (logarithmic), with intervals; named at its end."""
    loads = sorted({load for points in series.values() for load in points})
    width, height, left, right, top, bottom = 460, 300, 44, 110, 14, 44
    reach = math.log(loads[-1] / loads[0]) or 1.0

    def across(load: int) -> float:
        return left + 12 + math.log(load / loads[0]) / reach * (width - left - right - 24)

    def up(value: float) -> float:
        return height - bottom - min(max(value, 0.0), 1.0) * (height - top - bottom)

    parts = [_open(width, height, f"{y_title} by number of items taught", max_width=560)]
    parts += _share_axis(up, left, width - right, y_title)
    parts += [_text(across(load), height - bottom + 16, str(load), "middle") for load in loads]
    parts.append(_text((left + width - right) / 2, height - 8, "items taught", "middle"))
    spots = []
    for place, (label, by_load) in enumerate(series.items()):
        defined = [(load, by_load[load]) for load in loads if load in by_load and by_load[load].value is not None]
        if not defined:
            continue
        hue, shift = colour(numbers[label]), (place - (len(series) - 1) / 2) * 1.6
        path = "L".join(f"{across(load) + shift:.1f} {up(metric.value or 0.0):.1f}" for load, metric in defined)
        parts.append(f'<path class="curve" stroke="{hue}" d="M{path}"/>')
        for load, metric in defined:
            x = across(load) + shift
            parts.append(
                f'<path class="bar" stroke="{hue}" d="M{x:.1f} {up(_low(metric)):.1f}V{up(_high(metric)):.1f}"/>'
            )
            parts.append(_mark(numbers[label], x, up(metric.value or 0.0)))
        load, metric = defined[-1]
        spots.append((across(load) + shift, up(metric.value or 0.0), label))
    for x, y, label, at in _apart(spots, top + 4, height - bottom):
        parts.append(_leader(x, y, at))
        parts.append(_text(x + 12, at + 4, label, "start", "name", colour(numbers[label])))
    return "".join([*parts, "</svg>"])


def mark(index: int) -> str:
    """The mark of a path alone, for a legend."""
    return f'<svg class="mark" viewBox="0 0 14 14" aria-hidden="true">{_mark(index, 7, 7)}</svg>'


def _reduced(matrix: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """At most 24 x 24 cells: of a larger matrix, means of blocks."""
    rows, columns = len(matrix), max((len(row) for row in matrix), default=0)
    block = max(1, math.ceil(max(rows, columns) / _GREATEST_MATRIX))
    if block == 1:
        return [list(row) for row in matrix]
    reduced: list[list[float | None]] = []
    for row in range(0, rows, block):
        line: list[float | None] = []
        for column in range(0, columns, block):
            cells = [
                cell for each in matrix[row : row + block] for cell in each[column : column + block] if cell is not None
            ]
            line.append(sum(cells) / len(cells) if cells else None)
        reduced.append(line)
    return reduced


def _low(metric: Metric) -> float:
    return metric.low if metric.low is not None else metric.value or 0.0


def _high(metric: Metric) -> float:
    return metric.high if metric.high is not None else metric.value or 0.0


def _apart(
    spots: Sequence[tuple[float, float, str]], top: float, bottom: float
) -> list[tuple[float, float, str, float]]:
    """Each spot with a height for its name, so that names side by side do not cover one another."""
    placed: list[tuple[float, float, str, float]] = []
    for x, y, label in sorted(spots, key=lambda spot: spot[1]):
        at = max(y, top)
        for other_x, _, other_label, other_at in placed:
            beside = x < other_x + 10 + 6.6 * len(other_label) and other_x < x + 10 + 6.6 * len(label)
            if beside and at - other_at < 13:
                at = other_at + 13
        placed.append((x, y, label, at))
    overflow = max((at - bottom for *_, at in placed), default=0.0)
    return [(x, y, label, at - max(0.0, overflow)) for x, y, label, at in placed]


def _share_axis(up: object, left: float, right: float, title: str) -> list[str]:
    assert callable(up), "a scale is a function"
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = up(share)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{share:g}".replace("0.", "."), "end"))
    middle = (up(0.0) + up(1.0)) / 2
    parts.append(
        f'<text class="label" transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(title)}</text>"
    )
    return parts


def _open(width: float, height: float, label: str, *, max_width: float) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{max_width:.0f}px">'
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str = "label", fill: str = "") -> str:
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _leader(x: float, y: float, at: float) -> str:
    return f'<path class="leader" d="M{x + 5:.1f} {y:.1f}L{x + 9:.1f} {at:.1f}"/>' if abs(at - y) > 3 else ""


def _mark(index: int, x: float, y: float) -> str:
    hue = f'fill="{colour(index)}" class="point"'
    kind = _MARKS[index % len(_MARKS)]
    if kind == "circle":
        return f'<circle {hue} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    outlines = {
        "square": "m-4 -4h8v8h-8z",
        "triangle": "m0 -5.2l5 8.7h-10z",
        "diamond": "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
        "wedge": "m0 5.2l5 -8.7h-10z",
        "cross": "m-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    }
    return f'<path {hue} d="M{x:.1f} {y:.1f}{outlines[kind]}"/>'
