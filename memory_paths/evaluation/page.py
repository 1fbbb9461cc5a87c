"""The page of a summary: one HTML file that opens with no network, reads on a phone, and follows light and dark.

This file arranges sections, panels and tables; how they look is in `page.html`, drawings are in `charts`, figures in
`summary`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from memory_paths.evaluation import charts
from memory_paths.evaluation.charts import Axis, Point
from memory_paths.evaluation.costs import COMPONENTS, Action, unit
from memory_paths.evaluation.curves import ANSWERS
from memory_paths.evaluation.desiderata import MEASURED, meanings
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.misses import CAUSES
from memory_paths.evaluation.panels import (
    Cell,
    Head,
    Panel,
    Section,
    Table,
    bar_of,
    by_place,
    figure,
    number,
    p_value,
    path_cell,
    share,
    with_bar,
)
from memory_paths.evaluation.summary import (
    PAGE,
    Line,
    Summary,
    amount,
    is_signed,
    matched_in_words,
    verdict_parts,
)
from memory_paths.evaluation.table import columns, pivoted

_MOST_MAPS = 36
_WIDEST_TABLE = 12
_MOST_LOADS = 4
_MOST_FIGURES = 1500
_CHURN = {
    "taught": "What was taught: right after it was taught, and in the end",
    "prior": "What was known before: before any learning, and in the end",
    "skill": "Reading from the prompt: before any learning, and in the end",
}
_OUTCOMES = {
    "kept": "right both times",
    "gained": "wrong at first, right in the end",
    "lost": "right at first, wrong in the end",
    "never": "wrong both times",
}
_WORDS = {
    "better": "better",
    "tied": "tied within 5 points",
    "underpowered": "open: too few questions or seeds",
}
_SIZES = {"of 1 B": 1e9, "of 8 B": 8e9}
_MEASURES = (("tokens", "tokens", ""), ("flops", "FLOPs", ""), ("seconds", "time", "seconds"))


def render(summary: Summary, folder: Path | None = None) -> str:
    """The whole page as text.

    Args:
        summary: What it is about.
        folder: Where the page will lie; it links to the pages of those runs that have one below.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"drawing": Markup, "mark": lambda number: Markup(charts.mark(number))}
    template = files("memory_paths.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    lines = summary.lines
    opening, parts = verdict_parts(lines, summary.contrasts)
    seeds = {len(line.seeds) for line in lines}
    only = lines[0] if len(lines) == 1 else None
    told = [
        _counted(list(dict.fromkeys(line.family for line in lines))),
        _counted([str(load) for load in sorted({line.load for line in lines})]) + " items",
        _counted([str(count) for count in sorted(seeds)]) + (" seed" if seeds == {1} else " seeds"),
    ]
    return environment.from_string(template).render(
        title=f"{only.label}, {only.load} items" if only else "Where should a model put what it learns?",
        told=" · ".join(told) if lines else "",
        single=seeds == {1},
        opening=opening,
        verdict=[_emphasised(part, [line.label for line in lines]) for part in parts],
        failures=summary.failures,
        sections=[section for section in _sections(summary, folder) if section.panels],
        versions=lines[0].versions if lines else {},
    )


def _sections(summary: Summary, folder: Path | None) -> list[Section]:
    numbers = charts.colours([line.label for line in summary.lines])
    families: dict[str, list[Line]] = {}
    for line in summary.lines:
        families.setdefault(line.family, []).append(line)
    sections = [Section("By the definition of continual learning", _DEFINITION, _standings(summary, numbers))]
    if len(families) > 1:
        sections.append(Section("Stream by stream", _STREAMS, _by_stream(summary)))
    for family, lines in families.items():
        own = [
            Section("Learning against forgetting", _LEARNING, _learning(lines, numbers), "grid"),
            Section("What learning costs, effort by effort", _EFFORT, _efforts(summary, family), "grid"),
            Section("All paths", _ALL, _all(summary, lines, numbers)),
            Section("Load", _LOAD, _loads(lines, numbers), "grid"),
            Section("Accuracy matrices", _MAPS, _maps(lines), "maps"),
            Section("Retention by age", _AGES, _ages(lines, numbers), "grid"),
            Section("Cost", _COST, _costs(lines, numbers)),
            Section("Gained and lost", _GAINED, _churn(lines, numbers)),
            Section("Why answers were wrong", _MISSES, _misses(lines, numbers)),
            Section("Which differences are real", _CONTRASTS, _contrasts(summary, family, numbers)),
        ]
        named = len(families) > 1
        sections += [replace(one, title=f"{one.title}: {family}", part=family) if named else one for one in own]
    return [
        *sections,
        Section("When a dear write pays off", _PAYS, _break_even(summary, numbers)),
        Section("Runs", "", _runs(summary, folder, numbers)),
        Section("Settings", _SETTINGS, [_settings(line) for line in summary.lines], "maps"),
    ]


_DEFINITION = "Five desiderata, each in [0, 1]; the score of a path is the least of them, for none can pay for another."
_ACROSS = {
    "retention": "Retention",
    "prior_change": "Change of what was known before",
    "choice": "Chosen rightly among several answers, by likelihood",
    "prior_gain": "Change of how likely ordinary texts are, in nats per token",
}
_STREAMS = "A row for each stream, a column for each path; below, all that there is of each stream by itself."
_LEARNING = (
    "Up: more of the new items is kept. Left of the dotted line: knowledge from before was lost. The dashed line is "
    "the front: no path is both above and to the right of it."
)
_EFFORT = (
    "Each mark is one effort, more to the right. A path that forgets little because it learns little is told apart "
    "from one that learns as much and forgets less."
)
_ALL = "Each score with its 95 % interval, also drawn below it, and the number of answers that it rests on."
_LOAD = "What more items do to each path: a window overflows, a bank confuses, weights overwrite."
_MAPS = (
    "Rows: after so many experiences; row 0 is before any learning. Columns: the experience that is asked about. "
    "Outlined: right after learning it. Percent, mean over seeds; cells with a line were not asked."
)
_AGES = "How much is still there after so many further experiences, and after how many half of it is gone."
_COST = (
    "Means over all items written and all questions asked, by the part that spent it; the evaluator's own clock. Bars "
    "are in proportion within a column."
)
_GAINED = (
    "A net change hides what was gained and lost beneath it. The p-value is of gains and losses being equally likely "
    "(McNemar's test, exact), over all seeds together."
)
_MISSES = "Of all that was taught and asked about in the end: where on its way to the answer each missed one was lost."
_CONTRASTS = (
    "The best path against each other one on the same questions. p is corrected for the number of comparisons of this "
    "stream (Holm), not for the number of streams; the last column is the least true difference that these data would "
    "have shown in four cases of five."
)
_SETTINGS = "All options of each path, of the first of its runs."
_PAYS = (
    "After how many questions the dearer write has been earned back by cheaper reads, in FLOPs; with "
    "this model, and with larger ones."
)


def _standings(summary: Summary, numbers: Mapping[str, int]) -> list[Panel]:
    panels = []
    for (where, load), found in groupby(summary.standings, key=lambda standing: (standing.where, standing.load)):
        group = list(found)
        rows = [
            [
                path_cell(standing.path, numbers),
                *(figure(metric, track=True) for metric in (standing.score, *standing.desiderata.values())),
            ]
            for standing in group
        ]
        told = meanings(group[0].judged)
        heads = [Head("path"), Head("score", "the least of the others"), *(Head(*each) for each in told.items())]
        reasons = [
            f"{name}: {metric.reason} ({standing.path})"
            for standing in group
            for name, metric in standing.desiderata.items()
            if metric.reason
        ]
        title = f"{where}, {load} items"
        table = Table(f"The five desiderata, {title}", heads, [("", rows)], reasons)
        panels.append(Panel(title, words=(MEASURED[group[0].judged],), table=table))
    return panels


def _by_stream(summary: Summary) -> list[Panel]:
    panels = []
    for name, title in _ACROSS.items():
        paths, everywhere = pivoted(summary, name)
        found = {
            place: cells for place, cells in everywhere.items() if any(one.value is not None for one in cells.values())
        }
        heads = [Head("stream"), *(Head(path) for path in paths)]
        rows = [
            [
                Cell(family, family, (f"{load} items",)),
                *(figure(cells[path], is_signed(name)) if path in cells else Cell("") for path in paths),
            ]
            for (family, load), cells in found.items()
        ]
        reasons = dict.fromkeys(
            f"{path}, {family}: {metric.reason}"
            for (family, _), cells in found.items()
            for path, metric in cells.items()
            if metric.reason
        )
        if rows:
            panels.append(Panel(title, table=Table(title, heads, [("", rows)], list(reasons))))
    return panels


def _learning(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    panels = []
    for load in _some(line.load for line in lines):
        points = {
            line.label: Point(line.metric("prior_change"), line.metric("retention"))
            for line in lines
            if line.load == load and not line.is_control
        }
        points = {label: point for label, point in points.items() if point.x.value is not None is not point.y.value}
        if len(points) < 2:
            continue
        x = charts.changes([point.x for point in points.values()])
        series = {label: [point] for label, point in points.items()}
        title = f"Retention of new items against change of prior knowledge, {load} items"
        drawing = charts.chart(title, series, numbers, x, "retention of new items", edge=charts.front(points))
        rows = [[path_cell(label, numbers), figure(at.x, True), figure(at.y)] for label, at in points.items()]
        heads = (Head("path"), Head("change of prior knowledge"), Head("retention"))
        panels.append(Panel(f"{load} items", drawing, table=Table(title, heads, [("", rows)]), folded="As a table"))
    return panels


def _efforts(summary: Summary, family: str) -> list[Panel]:
    panels = []
    curves = [curve for curve in summary.curves if curve.family == family]
    for load in _some(curve.load for curve in curves):
        group = [curve for curve in curves if curve.load == load]
        title = f"Prior knowledge against acquisition, {load} items"
        answers = [curve for curve in group if curve.measure == ANSWERS]
        series = {curve.label: [Point(Metric(x), Metric(1.0 + y)) for x, y in curve.mean] for curve in answers}
        x = Axis("acquisition, effort growing along each line", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
        own = charts.colours(list(series))
        drawing = charts.chart(title, series, own, x, "prior knowledge, 1 less what was lost") if series else ""
        rows = [
            [
                path_cell(curve.label, own),
                number(effort, f"{effort:g}"),
                figure(Metric(learnt, n=len(curve.points))),
                figure(Metric(changed, n=len(curve.points)), True),
            ]
            for curve in answers
            for effort, (learnt, changed) in zip(curve.efforts, curve.mean, strict=True)
        ]
        heads = (Head("path"), Head("effort"), Head("acquisition", "n: seeds"), Head("change of prior knowledge"))
        table = Table(title, heads, [("", rows)]) if rows else None
        panels.append(Panel(f"{load} items", drawing, matched_in_words(group), table, "As a table"))
    return panels


def _all(summary: Summary, lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    """The main table, what its columns mean, and every metric that there is."""
    wanted = columns(summary)
    shown = [column for column in wanted if not column.name or any(_there(line, column.name) for line in lines)]
    groups = []
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for load in _each(line.load for line in lines):
        rows = []
        for line in lines:
            if line.load != load:
                continue
            row = [path_cell(line.label, numbers, f"{len(line.seeds)} seeds" if len(line.seeds) > 1 else "")]
            for column in shown:
                if column.name:
                    row.append(figure(line.metric(column.name), column.signed, track=True))
                else:
                    row.append(number(column.quantity(line), column.amount(line)))
            rows.append(row)
            for column in wanted:
                if column.name and (reason := line.metric(column.name).reason):
                    places = reasons.setdefault((column.title, reason), {})
                    places[f"{line.label} at {load}"] = None
        groups.append((f"{load} items", rows))
    told = [
        f"{title}: {reason} ({'everywhere' if len(places) == len(lines) else ', '.join(places)})"
        for (title, reason), places in reasons.items()
    ]
    heads = [Head("path"), *(Head(column.title, column.meaning) for column in shown)]
    panels = [Panel(table=Table("Scores and costs of all paths", heads, groups, told))]
    some = lines
    if sum(len(line.metrics) for line in lines) > _MOST_FIGURES:
        some = [line for line in lines if line.load == lines[-1].load]
    metrics = list(dict.fromkeys(name for line in some for name in line.metrics))
    every = [
        (
            name.replace("_", " "),
            [
                [
                    path_cell(line.label, numbers),
                    number(line.load, str(line.load)),
                    figure(line.metric(name), is_signed(name)),
                ]
                for line in some
                if _there(line, name)
            ],
        )
        for name in metrics
    ]
    every = [(name, rows) for name, rows in every if rows]
    if every:
        title = "Every figure" + ("" if some is lines else f" at {lines[-1].load} items; the others are in summary.csv")
        table = Table(title, (Head("path"), Head("items"), Head("figure")), every)
        panels.append(Panel(table=table, folded=title))
    return panels


def _loads(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    loads = _each(line.load for line in lines)
    if len(loads) < 2:
        return []
    panels = []
    for words, metric in (("Retention", "retention"), ("Prior knowledge after", "prior_after")):
        series: dict[str, list[Point]] = {}
        for line in lines:
            if _there(line, metric):
                series.setdefault(line.label, []).append(Point(Metric(float(line.load)), line.metric(metric)))
        title = f"{words} by number of items taught"
        x = Axis("items taught", loads[0], loads[-1], tuple(map(float, _some(loads, 6))), logarithmic=True)
        if series:
            table = by_place(title, series, numbers, "{:g} items")
            panels.append(Panel(words, charts.chart(title, series, numbers, x, words.lower()), (), table, "As a table"))
    return panels


def _maps(lines: Sequence[Line]) -> list[Panel]:
    maps = [line for line in lines if any(cell is not None for row in line.matrix for cell in row)]
    if len(maps) > _MOST_MAPS:
        maps = [line for line in maps if line.load == lines[-1].load][:_MOST_MAPS]
    panels = []
    for line in maps:
        title = f"Accuracy matrix of {line.label}"
        drawing = charts.heat_map(line.matrix, f"{title}, percent")
        table = _cells(line, f"{title}, with intervals") if len(line.matrix[0]) <= _WIDEST_TABLE else None
        panels.append(Panel(f"{line.label}, {line.load} items", drawing, table=table, folded="Each cell"))
    return panels


def _cells(line: Line, caption: str) -> Table:
    heads = [Head("stage"), *(Head(str(number)) for number in range(1, len(line.matrix[0]) + 1))]
    rows = [
        [number(float(stage), str(stage)), *(Cell("-") if cell is None else figure(cell) for cell in row)]
        for stage, row in enumerate(line.matrix)
    ]
    return Table(caption, heads, [("", rows)])


def _ages(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    panels = []
    for load in _some(line.load for line in lines if len(line.ages) > 1):
        group = [line for line in lines if line.load == load]
        series = {
            line.label: [
                Point(Metric(float(age)), metric) for age, metric in line.ages.items() if metric.value is not None
            ]
            for line in group
        }
        series = {label: points for label, points in series.items() if points}
        if not series:
            continue
        oldest = max(point.x.value or 0.0 for points in series.values() for point in points)
        ticks = tuple(float(tick) for tick in _some(range(int(oldest) + 1), 9))
        title = f"Retention by age, {load} items"
        x = Axis("experiences learnt since", 0.0, max(oldest, 1.0), ticks)
        drawing = charts.chart(title, series, numbers, x, "retention")
        lives = {line.label: figure(line.metric("half_life")) for line in group}
        table = by_place(title, series, numbers, "{:g} since", (Head("half-life", "in experiences"), lives))
        panels.append(Panel(f"{load} items", drawing, (), table, "As a table, with half-lives"))
    return panels


def _costs(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    heavy = [line for line in lines if line.load == lines[-1].load]
    heads = [Head(part, colour=f"tint-{at}") for at, part in enumerate((*COMPONENTS, "other"))]
    panels = []
    actions: tuple[tuple[Action, str], ...] = (("write", "an item written"), ("read", "a question answered"))
    for action, each in actions:
        most = {measure: max(_total(line, action, measure) for line in heavy) for measure, _, _ in _MEASURES}
        counted = any(_joules(line, action) is not None for line in heavy)
        rows = []
        for line in heavy:
            row = [path_cell(line.label, numbers)]
            for measure, _, kind in _MEASURES:
                whole = getattr(unit(line.cost, action), measure)
                parts = _parts(line, action, measure)
                notes = [
                    f"{name} {amount(part, kind)}" for name, part in parts.items() if part > 0.005 * (whole or 0.0)
                ]
                bar = [(part / most[measure], f"tint-{at}") for at, part in enumerate(parts.values()) if most[measure]]
                cell = number(whole, amount(whole, kind), (" · ".join(notes),) if len(notes) > 1 else ())
                row.append(with_bar(cell, bar))
            count = line.cost[f"{action}s"]
            if counted:
                joules = _joules(line, action)
                row.append(number(joules, "-" if joules is None else f"{amount(joules / count)}J"))
            row.append(number(count, amount(count)))
            if action == "write":
                stored = line.cost["stored_bytes"]
                row.append(number(stored, amount(stored, "bytes")))
            rows.append(row)
        titles = [title for _, title, _ in _MEASURES] + (["energy"] if counted else [])
        titles += ["items", "stored"] if action == "write" else ["questions"]
        title = f"What {each} costs, {lines[-1].load} items taught"
        panels.append(Panel(title, table=Table(title, [Head("path"), *map(Head, titles)], [("", rows)])))
    return [Panel(drawing=_legend(heads)), *panels] if heavy else []


def _churn(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    panels = []
    colours = ("tint-0", "tint-2", "tint-1", "tint-3")
    heads = [Head("path"), Head("questions")]
    heads += [Head(name, meaning, hue) for (name, meaning), hue in zip(_OUTCOMES.items(), colours, strict=True)]
    heads += [Head("p", "of gains and losses being equally likely")]
    loads = _some(line.load for line in lines if line.churn)
    for load in reversed(loads):
        groups = []
        for name, title in _CHURN.items():
            rows = []
            for line in _contenders(lines):
                found = line.churn.get(name) if line.load == load else None
                if found is None:
                    continue
                counts = [getattr(found, outcome) for outcome in _OUTCOMES]
                row = [path_cell(line.label, numbers), bar_of(counts, colours)]
                rows.append([*row, *(number(count, str(count)) for count in counts), p_value(found.p_value)])
            if rows:
                groups.append((title, rows))
        panels.append(_at_load(load, loads, Table(f"Gained and lost, {load} items", heads, groups)))
    return panels


def _misses(lines: Sequence[Line], numbers: Mapping[str, int]) -> list[Panel]:
    panels = []
    causes = ("right", *CAUSES)
    colours = ("tint-0", "tint-3", "tint-7", "tint-5", "tint-1", "tint-6", "tint-4", "tint-2")
    loads = _some(line.load for line in lines if line.misses)
    for load in reversed(loads):
        group = [line for line in _contenders(lines) if line.load == load and line.misses]
        present = [at for at, cause in enumerate(causes) if any(line.misses.get(cause) for line in group)]
        heads = [Head("path"), Head("questions")]
        heads += [Head(causes[at].replace("_", " "), CAUSES.get(causes[at], ""), colours[at]) for at in present]
        rows = []
        for line in group:
            counts = [line.misses.get(causes[at], 0) for at in present]
            bar = bar_of(counts, [colours[at] for at in present])
            rows.append([path_cell(line.label, numbers), bar, *(number(count, str(count)) for count in counts)])
        panels.append(_at_load(load, loads, Table(f"Why answers were wrong, {load} items", heads, [("", rows)])))
    return panels


def _contrasts(summary: Summary, family: str, numbers: Mapping[str, int]) -> list[Panel]:
    found = [contrast for contrast in summary.contrasts if contrast.family == family]
    heads = (
        *(Head("better"), Head("worse"), Head("items"), Head("difference"), Head("verdict")),
        *(Head("p", "of no difference"), Head("p, corrected"), Head("detectable")),
    )
    groups = []
    for metric, title in (("retention", "Retention"), ("prior", "Prior knowledge after")):
        rows = [
            [
                path_cell(contrast.better, numbers),
                path_cell(contrast.worse, numbers),
                number(contrast.load, str(contrast.load)),
                figure(contrast.difference, True),
                Cell(_WORDS[contrast.words], _WORDS[contrast.words]),
                p_value(contrast.p_value),
                p_value(contrast.adjusted_p),
                number(contrast.minimum_detectable, share(contrast.minimum_detectable)),
            ]
            for contrast in found
            if contrast.metric == metric
        ]
        if rows:
            groups.append((title, rows))
    panels = [Panel(table=Table("Paired differences between paths", heads, groups))] if groups else []
    chances = [row for row in summary.chances if row["family"] == family]
    if chances:
        rows = [
            [
                path_cell(row["path"], numbers),
                number(row["load"], str(row["load"])),
                with_bar(number(row["best"], f"{100 * row['best']:.0f} %"), [(row["best"], "tint-0")]),
            ]
            for row in chances
        ]
        title = "In how many of 10,000 redrawn data sets each path keeps most"
        table = Table(title, (Head("path"), Head("items"), Head("keeps most")), [("", rows)])
        panels.append(Panel(table=table, folded=title))
    return panels


def _break_even(summary: Summary, numbers: Mapping[str, int]) -> list[Panel]:
    sizes: dict[str, float | None] = {"pays off": None} | (
        _SIZES if any(line.parameters for line in summary.lines) else {}
    )
    rows = []
    several = len({line.family for line in summary.lines}) > 1
    for found in zip(*(summary.break_even(size) for size in sizes.values()), strict=True):
        load = number(found[0]["load"], str(found[0]["load"]))
        stream = found[0]["family"] if several else ""
        row = [path_cell(found[0]["path"], numbers, stream), load, path_cell(found[0]["against"], numbers)]
        for each in found:
            reads = Metric.from_json(each["reads"])
            after = "never" if reads.value is None else f"after {amount(reads.value)} questions"
            notes = (reads.reason,) if reads.reason and each is found[0] else ()
            row.append(Cell("from the start" if reads.value == 0 else after, reads.value, notes))
        rows.append(row)
    meanings = (
        f"the same work with a language model {size} (billion) parameters" if size != "pays off" else ""
        for size in sizes
    )
    heads = (Head("path"), Head("items"), Head("against"), *map(Head, sizes, meanings))
    return [Panel(table=Table("When a dear write pays off", heads, [("", rows)]))] if rows else []


def _runs(summary: Summary, folder: Path | None, numbers: Mapping[str, int]) -> list[Panel]:
    rows = []
    for run in summary.runs:
        if run.folder == ".":
            continue
        page = f"{run.folder}/{PAGE}"
        there = folder is not None and (folder / page).is_file()
        name = Cell(run.folder, run.folder, link=page if there else "")
        others = [Cell(str(value), value) for value in (run.load, run.seed, run.stream, run.lm)]
        rows.append([name, path_cell(run.label, numbers), *others])
    heads = [Head(title) for title in ("run", "path", "items", "seed", "stream", "model")]
    return [Panel(table=Table("Runs", heads, [("", rows)]))] if rows else []


def _settings(line: Line) -> Panel:
    text = json.dumps(line.config, indent=1, ensure_ascii=False, default=str)
    return Panel(text=text, folded=f"{line.label}, {line.load} items")


# What several sections need


def _legend(heads: Sequence[Head]) -> str:
    keys = "".join(f'<li><i class="{head.colour}"></i>{head.title}</li>' for head in heads)
    return f'<ul class="legend" aria-label="Colours of the bars">{keys}</ul>'


def _parts(line: Line, action: Action, measure: str) -> dict[str, float]:
    """By component what one write or read took; beyond them, what else the clock saw."""
    count = line.cost[f"{action}s"]
    if not count:
        return {}
    parts = {part: line.cost[action].get(part, {}).get(measure, 0.0) / count for part in COMPONENTS}
    rest = line.cost["wall_seconds"][action] / count - sum(parts.values()) if measure == "seconds" else 0.0
    return {**parts, "other": max(0.0, rest)}


def _joules(line: Line, action: Action) -> float | None:
    """What the machine counted, if it did; None also for reports of before it was asked."""
    found: float | None = line.cost.get("joules", {}).get(action)
    return found if line.cost[f"{action}s"] else None


def _total(line: Line, action: Action, measure: str) -> float:
    return sum(_parts(line, action, measure).values())


def _at_load(load: int, loads: Sequence[int], table: Table) -> Panel:
    """A panel of one load, folded away for all but the greatest."""
    title = f"{load} items"
    return Panel(title, table=table) if load == loads[-1] else Panel(table=table, folded=title)


def _contenders(lines: Sequence[Line]) -> Sequence[Line]:
    """All lines but controls, or all where there is nothing else."""
    return [line for line in lines if not line.is_control] or lines


def _there(line: Line, name: str) -> bool:
    return line.metric(name).value is not None


def _each(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values))


def _some(values: Iterable[int], most: int = _MOST_LOADS) -> list[int]:
    """All of them in order, or as many as are to be shown, the ends among them."""
    each = _each(values)
    if len(each) <= most:
        return each
    return [each[round(at * (len(each) - 1) / (most - 1))] for at in range(most)]


def _counted(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _emphasised(text: str, labels: Sequence[str]) -> list[str]:
    """A text in pieces, of which every second one names a path."""
    names = sorted(set(labels), key=len, reverse=True)
    return re.split(rf"(?<![\w.=-])({'|'.join(map(re.escape, names))})(?![\w.=-])", text)
