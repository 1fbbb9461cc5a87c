"""The summary as one aligned table of plain text. Knows nothing of files and terminals beyond a width in characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from memory_paths.evaluation.costs import unit
from memory_paths.evaluation.desiderata import DESIDERATA, MEASURED, Standing, meanings
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.summary import PATH_ORDER, Line, Summary, amount, is_signed, score


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        head: Its title, in one line or two.
        name: Name of the metric; empty for a quantity.
        meaning: What it says, in one line.
        quantity: Gives the amount where it is no metric.
        kind: Of the quantity: "seconds", "bytes" or empty, see `summary.amount`.
    """

    head: tuple[str, str]
    name: str = ""
    meaning: str = ""
    quantity: Callable[[Line], float | None] = lambda line: None
    kind: str = ""

    @property
    def title(self) -> str:
        """Its title in one line."""
        return " ".join(filter(None, self.head))

    @property
    def signed(self) -> bool:
        """Whether the figure is a difference, which is shown with its sign."""
        return is_signed(self.name)

    def amount(self, line: Line) -> str:
        """A quantity as it is shown."""
        return amount(self.quantity(line), self.kind)


SCORES = (
    Column(("", "acquisition"), "acquisition", "right after it was taught"),
    Column(("", "retention"), "retention", "all that was taught, after the last of it"),
    Column(("", "paraphrase"), "paraphrase", "the same in wordings that occur in no training"),
    Column(("", "composition"), "composition", "needs two items from different experiences, or one and a known fact"),
    Column(("", "reversal"), "reversal", "from the value back to whom it belongs to"),
    Column(("forward", "transfer"), "forward_transfer", "what is not taught yet, beyond the untouched model"),
    Column(("prior", "before"), "prior_before", "what was known before, before any learning"),
    Column(("prior", "after"), "prior_after", "what was known before, after all learning"),
    Column(("skill", "after"), "skill_after", "reading from notes in the prompt, after all learning"),
)
UNREAD_SCORES = (
    Column(("log-lik.", "gain"), "loglikelihood_gain", "of the right answers, in nats per token"),
    Column(("choice", "of 4"), "choice", "the right answer is the likeliest of several"),
    Column(("ppl.", "before"), "prior_perplexity_before", "perplexity of ordinary texts, before any learning"),
    Column(("ppl.", "after"), "prior_perplexity_after", "perplexity of ordinary texts, after all learning"),
)
RETRIEVAL_SCORES = (
    Column(("recall", "at 1"), "recall_at_1", "share of the right items that were found first"),
    Column(("recall", "offered"), "recall_offered", "share of the right items that were found"),
    Column(("recall", "shown"), "recall_shown", "share of the right items that stood in the prompt"),
    Column(("answer", "offered"), "answer_offered", "the answer stands in what was found"),
    Column(("answer", "shown"), "answer_shown", "the answer stood in the prompt"),
)
COSTS = {
    "write_tokens": Column(
        ("tokens", "/write"), meaning="for each item", quantity=lambda line: unit(line.cost, "write").tokens
    ),
    "write_seconds": Column(
        ("time", "/write"),
        meaning="for each item",
        quantity=lambda line: unit(line.cost, "write").seconds,
        kind="seconds",
    ),
    "read_tokens": Column(
        ("tokens", "/read"), meaning="for each question", quantity=lambda line: unit(line.cost, "read").tokens
    ),
    "read_seconds": Column(
        ("time", "/read"),
        meaning="for each question",
        quantity=lambda line: unit(line.cost, "read").seconds,
        kind="seconds",
    ),
    "stored_bytes": Column(
        ("", "stored"), meaning="after the last stage", quantity=lambda line: line.cost["stored_bytes"], kind="bytes"
    ),
}
WORK = {
    "write_flops": Column(
        ("FLOPs", "/write"), meaning="for each item", quantity=lambda line: unit(line.cost, "write").flops
    ),
    "read_flops": Column(
        ("FLOPs", "/read"), meaning="for each question", quantity=lambda line: unit(line.cost, "read").flops
    ),
}


def columns(summary: Summary) -> tuple[Column, ...]:
    """The columns that this summary fills; likelihoods, and what was found, where likelihoods were recorded."""
    unread = any(line.metric("loglikelihood_gain").value is not None for line in summary.lines)
    beside = (*UNREAD_SCORES, *RETRIEVAL_SCORES) if unread else ()
    filled = [column for column in beside if any(line.metric(column.name).value is not None for line in summary.lines)]
    return (*SCORES, *filled, *COSTS.values())


def render_table(summary: Summary, width: int = 200) -> str:
    """One row for each path and load; where `width` does not hold it, each interval goes below its score.

    Cells without a value bear a letter, and the reason stands below the table.
    """
    shown = columns(summary)
    rows, notes = _cells(summary, shown)
    heads = [("", "path"), ("", "items"), *(column.head for column in shown)]
    text = _aligned(heads, [[(" ".join(filter(None, cell)), "") for cell in row] for row in rows])
    if len(text[0]) > width:
        text = _in_blocks(heads, rows, width)
    return "\n".join([*(line.rstrip() for line in text), *notes])


def render_markdown(summary: Summary, names: Sequence[str] = ()) -> str:
    """The same as a Markdown table.

    Args:
        summary: What to show.
        names: Of the metrics and costs to show; none: the scores of the plain table.

    Raises:
        ValueError: A metric that no run has; the message lists those that there are, and the costs.
    """
    costs = {**COSTS, **WORK}
    known = [*sorted({name for line in summary.lines for name in line.metrics}), *costs]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no run has a metric named {', '.join(unknown)}; there are {', '.join(known)}")
    given = tuple(costs.get(name) or Column((name.replace("_", " "), ""), name) for name in names)
    shown = given or tuple(column for column in columns(summary) if column.name)
    rows, notes = _cells(summary, shown)
    heads = ["path", "items", "seeds", *(column.title for column in shown)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line, ((name, _), (load, _), *cells) in zip(summary.lines, rows, strict=True):
        shown_cells = [" ".join(filter(None, cell)) for cell in cells]
        lines.append(f"| {' | '.join([name, load, str(len(line.seeds)), *shown_cells])} |")
    return "\n".join([*lines, "", *(f"{note}  " for note in notes)]).rstrip()


def pivoted(summary: Summary, name: str) -> tuple[list[str], dict[tuple[str, int], dict[str, Metric]]]:
    """All paths in their order, and one figure of each by stream and load."""
    labels = [line.label for line in summary.lines]
    rows: dict[tuple[str, int], dict[str, Metric]] = {}
    for line in summary.lines:
        rows.setdefault((line.family, line.load), {})[line.label] = line.metric(name)
    return [path for path in dict.fromkeys((*PATH_ORDER, *labels)) if path in labels], rows


def render_pivot(summary: Summary, name: str) -> str:
    """One figure as a Markdown table: a row for each stream and load, a column for each path.

    Raises:
        ValueError: A metric that no run has; the message lists those that there are.
    """
    known = sorted({name for line in summary.lines for name in line.metrics})
    if name not in known:
        raise ValueError(f"no run has a metric named {name}; there are {', '.join(known)}")
    reasons: dict[str, str] = {}

    def shown(metric: Metric) -> str:
        if metric.value is None:
            return f"- {reasons.setdefault(metric.reason, _letter(len(reasons)))}"
        return " ".join(filter(None, score(metric, is_signed(name))))

    paths, rows = pivoted(summary, name)
    lines = [f"| {name.replace('_', ' ')} | items | {' | '.join(paths)} |", "|---" * (len(paths) + 2) + "|"]
    for (family, load), found in rows.items():
        cells = [shown(found[path]) if path in found else "" for path in paths]
        lines.append(f"| {family} | {load} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{letter}: {reason}  " for reason, letter in reasons.items())]).rstrip()


def render_standings(found: Sequence[Standing]) -> str:
    """How each path stands by the definition of continual learning, as a Markdown table for each stream and model.

    Raises:
        ValueError: There are none.
    """
    if not found:
        raise ValueError(
            "no runs at several distances from what the model knows: run suite=definition, or anything with"
            " stream.shift=none,names,language and path=oracle beside others"
        )
    groups = [list(group) for _, group in groupby(found, key=lambda one: (one.where, one.load))]
    titles = [f"{group[0].where}, {group[0].load} items\n\n" if len(groups) > 1 else "" for group in groups]
    return "\n\n".join(title + _standings(group) for title, group in zip(titles, groups, strict=True))


def _standings(group: Sequence[Standing]) -> str:
    reasons: dict[str, str] = {}
    told = {**meanings(group[0].judged), "score": "the least of these in each seed, mean over seeds"}

    def cell(metric: Metric) -> str:
        if metric.value is None:
            return f"- {reasons.setdefault(metric.reason, _letter(len(reasons)))}"
        return " ".join(filter(None, score(metric)))

    lines = [f"| path | {' | '.join(told)} |", "|---" * (len(told) + 1) + "|"]
    for standing in group:
        figures = [*(standing.desiderata[name] for name in DESIDERATA), standing.score]
        lines.append(f"| {standing.path} | {' | '.join(map(cell, figures))} |")
    notes = [f"{name}: {what}  " for name, what in told.items()]
    notes += [f"{letter}: {reason}  " for reason, letter in reasons.items()]
    return "\n".join([*lines, "", *notes, MEASURED[group[0].judged]])


def _cells(summary: Summary, shown: Sequence[Column]) -> tuple[list[list[tuple[str, str]]], list[str]]:
    """Name, load and columns of each line, a value beside its interval, and what is to be said below them."""
    reasons: dict[str, str] = {}
    families = list(dict.fromkeys(line.family for line in summary.lines))
    rows: list[list[tuple[str, str]]] = []
    for line in summary.lines:
        name = line.label if len(families) == 1 else f"{line.label} · {line.family}"
        cells = [(name, ""), (str(line.load), "")]
        for column in shown:
            if not column.name:
                cells.append((column.amount(line), ""))
                continue
            metric = line.metric(column.name)
            value, interval = score(metric, column.signed)
            if metric.value is None:
                letter = reasons.setdefault(metric.reason, _letter(len(reasons)))
                value = f"- {letter}"
            cells.append((value, interval))
        rows.append(cells)
    notes = [f"{letter}: {reason}" for reason, letter in reasons.items()]
    if {len(line.seeds) for line in summary.lines} == {1}:
        notes.append("One seed: intervals are over items only.")
    return rows, notes


def _in_blocks(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[tuple[str, str]]], width: int) -> list[str]:
    """Intervals below their scores; and where that is too wide as well, the columns in blocks, one below another."""
    blocks: list[list[int]] = [[0, 1]]
    for column in range(2, len(heads)):
        trial = [*blocks[-1], column]
        sizes = [max(len(part) for row in (heads, *rows) for part in row[at]) for at in trial]
        if sum(sizes) + 2 * (len(sizes) - 1) > width and len(blocks[-1]) > 2:
            trial = [0, 1, column]
            blocks.append(trial)
        blocks[-1] = trial
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        lines += _aligned([heads[at] for at in block], [[row[at] for at in block] for row in rows])
    return lines


def _aligned(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    sizes = [max(len(part) for row in (heads, *rows) for part in row[at]) for at in range(len(heads))]

    def laid(cells: Sequence[str]) -> str:
        padded = [cell.rjust(size) for cell, size in zip(cells, sizes, strict=True)]
        padded[0] = cells[0].ljust(sizes[0])
        return "  ".join(padded)

    lines = [laid([head[0] for head in heads]), laid([head[1] for head in heads])]
    lines.append("-" * len(lines[0]))
    load = rows[0][1][0] if rows else ""
    for row in rows:
        if row[1][0] != load:
            load = row[1][0]
            lines.append("")
        lines.append(laid([cell[0] for cell in row]))
        if any(cell[1] for cell in row):
            lines.append(laid([cell[1] for cell in row]))
    return lines


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index - 25}"
