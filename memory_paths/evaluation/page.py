"""The page of a summary: one HTML file that opens with no network, reads on a phone, and follows light and dark.

This file arranges; drawings are in `charts`, figures in `summary`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from memory_paths.evaluation import charts
from memory_paths.evaluation.costs import unit
from memory_paths.evaluation.curves import ANSWERS
from memory_paths.evaluation.summary import (
    CONTROLS,
    Line,
    Summary,
    amount,
    matched_in_words,
    score,
    verdict_parts,
)
from memory_paths.evaluation.table import columns

_MOST_MAPS = 36
_QUANTITIES = (
    ("Tokens per item written", "write", "tokens", ""),
    ("Time per item written", "write", "seconds", "seconds"),
    ("Tokens per question", "read", "tokens", ""),
    ("Time per question", "read", "seconds", "seconds"),
    ("Stored", "", "stored_bytes", "bytes"),
)


def render(summary: Summary) -> str:
    """The whole page as text, at most about a megabyte."""
    from jinja2 import Environment
    from markupsafe import Markup

    numbers = charts.colours([line.label for line in summary.lines])
    families = [
        _family(name, lines, numbers) | {"trade_offs": _trade_offs(summary, name)}
        for name, lines in _families(summary.lines).items()
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["drawing"] = Markup
    single = {len(line.seeds) for line in summary.lines} == {1}
    return environment.from_string(_PAGE).render(
        style=Markup(_STYLE),
        verdict=verdict_parts(summary.lines),
        failures=summary.failures,
        families=families,
        heads=[" ".join(filter(None, column.head)) for column in columns(summary)],
        rows=_rows(summary, numbers, many=len(families) > 1),
        reasons=_reasons(summary),
        seeds="one seed; intervals are over items only" if single else "several seeds",
        break_even=[_pay_off(row) for row in summary.break_even()],
        settings=[_settings(line) for line in summary.lines],
        versions=summary.lines[0].versions if summary.lines else {},
    )


def _families(lines: Sequence[Line]) -> dict[str, list[Line]]:
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        grouped.setdefault(line.family, []).append(line)
    return grouped


def _family(name: str, lines: Sequence[Line], numbers: Mapping[str, int]) -> dict[str, Any]:
    loads = sorted({line.load for line in lines})
    curves = []
    if len(loads) > 1:
        for title, metric in (("retention", "retention"), ("prior knowledge after", "prior_after")):
            series: dict[str, dict[int, Any]] = {}
            for line in lines:
                series.setdefault(line.label, {})[line.load] = line.metric(metric)
            curves.append((title, charts.load_curves(series, numbers, y_title=title)))
    panels = []
    for load in loads:
        points = [
            charts.Point(line.label, line.metric("prior_change"), line.metric("retention"))
            for line in lines
            if line.load == load and line.path not in CONTROLS
        ]
        drawn = [point for point in points if point.x.value is not None and point.y.value is not None]
        if drawn:
            picture = charts.scatter(
                drawn, numbers, x_title="change of prior knowledge", y_title="retention of new items"
            )
            panels.append((f"{load} items", picture))
    maps = [line for line in lines if any(cell is not None for row in line.matrix for cell in row)]
    if len(maps) > _MOST_MAPS:
        maps = [line for line in maps if line.load == loads[-1]][:_MOST_MAPS]
    heavy = [line for line in lines if line.load == loads[-1]]
    return {
        "name": name,
        "load": loads[-1],
        "curves": curves,
        "scatters": panels,
        "maps": [
            (line.label, line.load, charts.heat_map(line.matrix, f"{line.label}, {line.load} items")) for line in maps
        ],
        "costs": [_bars(title, action, measure, kind, heavy, numbers) for title, action, measure, kind in _QUANTITIES],
    }


def _trade_offs(summary: Summary, family: str) -> list[tuple[str, str, list[str]]]:
    """For each load: its title, the drawing of its curves where they are of answers, and forgetting where all have
    learnt equally much in words."""
    panels = []
    for load in sorted({curve.load for curve in summary.curves if curve.family == family}):
        group = [curve for curve in summary.curves if (curve.family, curve.load) == (family, load)]
        means = {curve.label: curve.mean for curve in group if curve.measure == ANSWERS}
        drawing = charts.trade_off(means, charts.colours(list(means))) if means else ""
        panels.append((f"{load} items", drawing, matched_in_words(group)))
    return panels


def _bars(
    title: str, action: str, measure: str, kind: str, lines: Sequence[Line], numbers: Mapping[str, int]
) -> dict[str, Any]:
    """Bars of length in proportion to the amount, so that a path that costs a hundred times as much looks like it."""
    values: list[tuple[Line, float | None]] = []
    for line in lines:
        if action:
            values.append((line, getattr(unit(line.cost, "write" if action == "write" else "read"), measure)))
        else:
            values.append((line, line.cost[measure]))
    most = max((value for _, value in values if value), default=0.0)
    bars = [
        (
            line.label,
            charts.colour(numbers[line.label]),
            round(100 * (value or 0.0) / most, 2) if most else 0,
            amount(value, kind),
        )
        for line, value in values
    ]
    return {"title": title, "bars": bars}


def _rows(summary: Summary, numbers: Mapping[str, int], many: bool) -> list[dict[str, Any]]:
    rows = []
    last = ""
    for line in summary.lines:
        group = f"{line.load} items" + (f", {line.family}" if many else "")
        cells = []
        for column in columns(summary):
            if not column.name:
                cells.append((column.quantity(line), "", "", ""))
                continue
            metric = line.metric(column.name)
            value, interval = score(metric, column.signed)
            shade = (
                f"{metric.value:.2f}" if metric.value is not None and not column.signed and metric.value <= 1 else ""
            )
            cells.append((value, interval, metric.reason, shade))
        rows.append(
            {
                "mark": charts.mark(numbers[line.label]),
                "label": line.label,
                "group": group if group != last else "",
                "cells": cells,
            }
        )
        last = group
    return rows


def _reasons(summary: Summary) -> list[tuple[str, list[str]]]:
    """Why cells are empty: each reason with where it holds."""
    found: dict[str, dict[str, None]] = {}
    for line in summary.lines:
        for column in columns(summary):
            reason = line.metric(column.name).reason if column.name else ""
            if reason:
                found.setdefault(reason, {})[f"{line.label} at {line.load}"] = None
    return [(reason, list(places)) for reason, places in found.items()]


def _pay_off(row: Mapping[str, Any]) -> dict[str, Any]:
    reads = row["reads"]
    value = reads["value"]
    words = (
        f"never: {reads['reason']}"
        if value is None
        else "from the start"
        if value == 0
        else f"after {amount(value)} questions"
    )
    return {**row, "words": words}


def _settings(line: Line) -> tuple[str, str]:
    return f"{line.label}, {line.load} items", json.dumps(line.config, indent=1, ensure_ascii=False, default=str)


_STYLE = """
:root{color-scheme:light dark;--ground:#fbfaf7;--card:#fff;--ink:#1d2126;--soft:#5b6470;--line:#e3e0d8;--heat:#0f6e84;
--on:#fff;
--path-0:#0069a8;--path-1:#b8470a;--path-2:#00704f;--path-3:#97397f;--path-4:#7d5a00;--path-5:#4a4fc4;--path-6:#6b7280;
--path-7:#8a6d5a;--path-8:#5f7a6a}
@media (prefers-color-scheme:dark){:root{--ground:#14171b;--card:#1b1f25;--ink:#e8eaed;--soft:#9aa4b1;--line:#2d333c;
--heat:#4cc3dc;--on:#0d1b20;--path-0:#62b8f5;--path-1:#ff9a5c;--path-2:#41cf9f;--path-3:#ec9cd4;
--path-4:#e2b94d;--path-5:#a5a9ff;--path-6:#a3acb8;--path-7:#cdb09b;--path-8:#9dbdaa}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",
Roboto,
sans-serif}
main{max-width:1280px;margin:0 auto;padding:2rem 1.1rem 4rem}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.12rem;margin:2.6rem 0 .3rem}h3{font-size:.92rem;margin:0 0 .4rem;font-weight:600}
p{margin:.3rem 0 .8rem;max-width:76ch}.soft{color:var(--soft);font-size:.88rem}
.verdict{border-left:4px solid var(--heat);padding:.2rem 0 .2rem 1rem;margin:1.1rem 0;max-width:100ch}
.verdict li{margin:.25rem 0}
.failed{border-left-color:#c0392b}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.82rem}
th,td{padding:.24rem .5rem;text-align:right;white-space:nowrap;vertical-align:middle}
th{font-weight:600;color:var(--soft);border-bottom:1px solid var(--line)}thead th{vertical-align:bottom}
thead th{white-space:normal;line-height:1.2}
tbody th{position:sticky;left:0;background:var(--card);color:var(--ink);text-align:left;border:0}
thead th:first-child{position:sticky;left:0;background:var(--card);text-align:left}
tr.group th{padding-top:.9rem;color:var(--soft);font-size:.78rem;border-bottom:1px solid var(--line)}
td small{display:block;color:var(--soft);font-size:.76rem}td b{font-weight:600}
td.share{background:color-mix(in srgb,var(--heat) calc(var(--share)*26%),transparent)}
.mark{width:.85rem;height:.85rem;vertical-align:-.08rem;margin-right:.35rem;overflow:visible}
.grid-of{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr))}
.grid-of.maps{grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr))}
figure,.card{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem .9rem}
svg{display:block;width:100%;height:auto}svg.mark{display:inline-block;width:.85rem}
svg text{fill:var(--ink);font:11px ui-sans-serif,system-ui,sans-serif}svg text.label,svg text.small{fill:var(--soft)}
svg text.small{font-size:9.5px}svg text.name{font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px}
svg text.cell{font-size:9.5px}svg text.on{fill:var(--on)}
.grid{stroke:var(--line)}.zero{stroke:var(--soft);stroke-dasharray:3 3}.bar{stroke-width:1.6;fill:none;opacity:.55}
.curve{fill:none;stroke-width:2;opacity:.9}.leader{stroke:var(--soft);fill:none;stroke-width:.8}
.point{stroke:var(--card);stroke-width:1}.void{fill:none;stroke:var(--line);stroke-dasharray:2 2}
.ring{stroke:var(--ink);stroke-width:1.3}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:.28rem .6rem;align-items:center;
font-size:.82rem;font-variant-numeric:tabular-nums}
.bars i{display:block;height:.72rem;border-radius:3px}
ul{margin:.3rem 0;padding-left:1.2rem}
details{border:1px solid var(--line);border-radius:8px;margin:.4rem 0;background:var(--card)}
summary{cursor:pointer;padding:.45rem .8rem;font-size:.88rem}
pre{margin:0;padding:.6rem .9rem 1rem;overflow-x:auto;font-size:.76rem}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>memory_paths: where should a model put what it learns?</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>Where should a language model put what it learns?</h1>
<p class="soft">Every path is taught the same items and asked the same questions, in wordings that were not used to
teach them. Scores are shares of exactly right free answers, with 95&nbsp;% intervals; {{ seeds }}.</p>
<div class="verdict"><p>{{ verdict[0] }}:</p><ul>{% for part in verdict[1] %}<li>{{ part }}</li>{% endfor %}</ul></div>
{% if failures %}
<div class="verdict failed"><h3>Runs that failed</h3>
<ul>{% for failure in failures %}<li><b>{{ failure.folder }}</b>: {{ failure.reason }}</li>{% endfor %}</ul></div>
{% endif %}
{% if rows %}
<h2>Table</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Table of all paths and loads">
<table>
<thead><tr><th scope="col">path</th>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
{% if row.group %}<tr class="group"><th scope="rowgroup">{{ row.group }}</th>
<td colspan="{{ heads|length }}"></td></tr>{% endif %}
<tr><th scope="row">{{ row.mark|drawing }}{{ row.label }}</th>
{% for value, interval, reason, shade in row.cells %}
<td{% if shade %} class="share" style="--share:{{ shade }}"{% endif %}{% if reason %} title="{{ reason }}"{% endif %}>
{{ value }}{% if interval %}<small>{{ interval }}</small>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if reasons %}
<details><summary>Why some cells are empty</summary>
<ul>{% for reason, places in reasons %}
<li>{{ reason }} <span class="soft">({{ places|join(", ") }})</span></li>{% endfor %}</ul>
</details>
{% endif %}
{% endif %}
{% for family in families %}
{% if families|length > 1 %}<h1 style="margin-top:3rem">{{ family.name }}</h1>{% endif %}
{% if family.scatters %}
<h2>Learning against forgetting</h2>
<p class="soft">Up: more of the new items is kept. Left of the dashed line: knowledge from before was lost.</p>
<div class="grid-of">
{% for title, drawing in family.scatters %}<figure><h3>{{ title }}</h3>{{ drawing|drawing }}</figure>{% endfor %}
</div>
{% endif %}
{% if family.trade_offs %}
<h2>What learning costs, effort by effort</h2>
<p class="soft">Each mark is one effort, more to the right. A path that forgets little because it learns little is told
apart from one that learns as much and forgets less.</p>
<div class="grid-of">
{% for title, drawing, told in family.trade_offs %}<figure><h3>{{ title }}</h3>{{ drawing|drawing }}
{% for words in told %}<p>{{ words }}</p>{% endfor %}</figure>{% endfor %}
</div>
{% endif %}
{% if family.curves %}
<h2>Load</h2>
<p class="soft">What more items do to each path: a window overflows, a bank confuses, weights overwrite.</p>
<div class="grid-of">
{% for title, drawing in family.curves %}
<figure><h3>{{ title|capitalize }}</h3>{{ drawing|drawing }}</figure>{% endfor %}
</div>
{% endif %}
<h2>Cost at {{ family.load }} items</h2>
<div class="grid-of">
{% for panel in family.costs %}
<div class="card"><h3>{{ panel.title }}</h3><div class="bars">
{% for label, hue, share, value in panel.bars %}
<span>{{ label }}</span><span><i style="width:{{ share }}%;background:{{ hue }}"></i></span><span>{{ value }}</span>
{% endfor %}
</div></div>
{% endfor %}
</div>
{% if family.maps %}
<h2>Accuracy matrices</h2>
<p class="soft">Rows: after so many experiences; row 0 is before any learning. Columns: the experience that is asked
about. Outlined: right after learning it. Percent; dashed cells were not asked.</p>
<div class="grid-of maps">
{% for label, load, drawing in family.maps %}<figure><h3>{{ label }} <span class="soft">{{ load }} items</span></h3>
{{ drawing|drawing }}</figure>{% endfor %}
</div>
{% endif %}
{% endfor %}
{% if break_even %}
<h2>When writing into weights pays off</h2>
<p class="soft">Number of questions after which the dearer write has been earned back by cheaper reads, in FLOPs.</p>
<div class="scroll"><table><thead><tr><th>path</th><th>items</th><th>against</th><th>pays off</th></tr></thead><tbody>
{% for row in break_even %}<tr><th scope="row">{{ row.path }}</th><td>{{ row.load }}</td><td>{{ row.against }}</td>
<td>{{ row.words }}</td></tr>{% endfor %}
</tbody></table></div>
{% endif %}
{% if rows %}
<h2>Settings and versions</h2>
<p class="soft">
{% for name, version in versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}</p>
{% for title, text in settings %}<details><summary>{{ title }}</summary><pre>{{ text }}</pre></details>{% endfor %}
{% endif %}
</main>
</body>
</html>
"""
