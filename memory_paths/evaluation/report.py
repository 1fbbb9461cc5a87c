"""The report of one run: its figures, matrix and cost, with the settings and versions that led to them.

This file knows how a report is written and read again; it knows nothing of how the figures came about.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_paths.evaluation.churn import Churn
from memory_paths.evaluation.metrics import Metric, Outcome, Spread
from memory_paths.evaluation.records import write_file

SCHEMA = 1
REPORT = "report.json"
UNTOLD = ("progress", "threads")
"""Settings in which two runs may differ and be the same: who watches, and how fast it goes."""
_PACKAGES = ("memory-paths", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "numpy", "pyarrow")


@dataclass(frozen=True)
class Report:
    """What a run found.

    Args:
        path: Name of the path.
        lm: Name of the language model.
        stream: Name of the stream.
        seed: Of the run.
        load: Number of items that were taught.
        metrics: By name.
        matrix: Accuracy on each experience (columns) after each stage (rows; row 0 is before any learning); None: not
            measured.
        cost: As `costs.summarise` gives it.
        parameters: Of the language model; None where it does not say.
        item_tokens: How long all that was taught is in the model's tokens, each item read once; None where it is not
            known.
        ages: Retention by the number of experiences learnt since, as text from "0" on.
        churn: Of what was known before, of reading, and of what was taught.
        misses: How many questions were answered rightly in the end, and why the others were not, see `misses.misses`.
        outcomes: For paired comparisons: of "retention" and "prior" for each question its key, the number of its
            cluster, and what its answer was worth in the end.
        spread: Of each cell of the matrix: both ends of its interval, and on how many questions it rests. Empty in
            reports of before.
        config: The settings of the run.
        versions: Of the packages that took part.
    """

    path: str
    lm: str
    stream: str
    seed: int
    load: int
    metrics: Mapping[str, Metric]
    matrix: list[list[float | None]]
    cost: Mapping[str, Any]
    parameters: int | None = None
    item_tokens: int | None = None
    ages: Mapping[str, Metric] = field(default_factory=dict)
    churn: Mapping[str, Churn] = field(default_factory=dict)
    misses: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    spread: list[list[Spread | None]] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        return {
            "schema": SCHEMA,
            **vars(self),
            **{
                part: {name: figure.to_json() for name, figure in getattr(self, part).items()}
                for part in ("metrics", "ages", "churn")
            },
        }

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`.

        Raises:
            ValueError: Another schema, or fields that are missing or unknown.
        """
        fields = dict(given)
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"a report must have schema {SCHEMA}, got {schema!r}")
        try:
            for part, kind in (("metrics", Metric), ("ages", Metric), ("churn", Churn)):
                if part in fields or part == "metrics":
                    fields[part] = {name: kind.from_json(figure) for name, figure in fields[part].items()}
            outcomes = {name: [(*each,) for each in found] for name, found in fields.pop("outcomes", {}).items()}
            spread = [[cell and (*cell,) for cell in row] for row in fields.pop("spread", ())]
            return Report(outcomes=outcomes, spread=spread, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a report lacks a field or has one too many: {error}") from error

    def write(self, folder: str | Path) -> Path:
        """Write report.json into the folder, as a whole or not at all."""
        file = Path(folder) / REPORT
        write_file(file, (json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return file

    @staticmethod
    def read(folder: str | Path) -> Report:
        """The report of a run folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged; the file is named.
        """
        file = Path(folder) / REPORT
        try:
            return Report.from_json(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error


def write_lines(reports: Iterable[Report], file: str | Path) -> None:
    """Write reports as JSON lines, as a whole or not at all: a sweep without its records, to be kept or passed on.
    Compressed, and the same bytes for the same reports, where the file's name ends with .gz."""
    lines = [json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False) for report in reports]
    content = "".join(f"{line}\n" for line in lines).encode()
    write_file(Path(file), gzip.compress(content, mtime=0) if Path(file).suffix == ".gz" else content)


def read_lines(file: str | Path) -> list[Report]:
    """The inverse of `write_lines`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no report; the file and the line are named.
    """
    content = Path(file).read_bytes()
    try:
        text = (gzip.decompress(content) if Path(file).suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} holds no reports: {error}") from error
    reports = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            reports.append(Report.from_json(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"line {number} of {file} is no report: {error}") from error
    return reports


def family_name(stream: str, load: int, lm: str) -> str:
    """Stream and model, as a page calls them: without the load that a stream may carry in its name."""
    return f"{stream.removesuffix(f'-{load}')} on {lm}"


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, as far as they are installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
