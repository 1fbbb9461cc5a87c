"""`python -m memory_paths.report FOLDER`: any number of runs as one table, summary.json, summary.csv and report.html.

A thin entry: collecting, comparing and drawing are in `memory_paths.evaluation`. Also what a sweep calls when it ends.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode

from memory_paths.evaluation.records import export
from memory_paths.evaluation.report import REPORT, Report, write_lines
from memory_paths.evaluation.summary import Failure, Line, Summary, collect, matched_in_words, reports_of
from memory_paths.evaluation.table import render_markdown, render_pivot, render_standings, render_table

_failed_folders: list[str] = []


def show(folder: str | Path, ignore: Sequence[str] = ()) -> Summary:
    """Collect the runs of a folder, print table and verdict, write the three files, and remember the failures. For runs
    that are kept in one file nothing is written.

    Raises:
        FileNotFoundError: There is no run in it.
    """
    summary = collect(folder, ignore)
    page = summary.write(folder) if Path(folder).is_dir() else None
    print(render_table(summary, shutil.get_terminal_size((200, 24)).columns))
    print()
    print(summary.verdict)
    for words in matched_in_words(summary.curves):
        print(words)
    for failure in summary.failures:
        print(f"failed: {failure.folder}: {failure.reason}")
    if summary.standings:
        print(render_standings(summary.standings))
    if page is not None:
        print(f"The page: {page}")
    _failed_folders.extend(failure.folder for failure in summary.failures)
    return summary


def exit_status() -> int:
    """1 if a run that was shown in this process had failed, else 0."""
    return 1 if _failed_folders else 0


class SweepTable(Callback):
    """Hydra calls it when a run or a sweep has ended; it shows what that left."""

    def on_run_end(self, config: Any, **kwargs: Any) -> None:
        """Show a single run, if it left a report."""
        folder = Path(str(config.hydra.runtime.output_dir))
        if (folder / REPORT).exists():
            self._show(folder)

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Leave a page beside the report of each run of a sweep, for the sweep's page to lead to."""
        folder = Path(str(config.hydra.runtime.output_dir))
        if config.hydra.mode == RunMode.MULTIRUN and (folder / REPORT).exists():
            collect(folder).write_page(folder)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Show every run of a sweep."""
        self._show(Path(str(config.hydra.sweep.dir)))

    def _show(self, folder: Path) -> None:
        try:
            show(folder)
        except Exception as error:
            # Hydra turns an error of a callback into a warning, which may be switched off.
            print(f"failed: {folder}: {type(error).__name__}: {error}", file=sys.stderr)
            _failed_folders.append(str(folder))
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 1 where a run failed, 2 where there is none or no such metric."""
    parser = argparse.ArgumentParser(prog="python -m memory_paths.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folder",
        help="folder of a run, or of a sweep, searched however deep; or a file of --keep, for which no page is written",
    )
    parser.add_argument(
        "--markdown",
        nargs="*",
        metavar="METRIC",
        help="print a Markdown table of these metrics and costs, and write nothing",
    )
    parser.add_argument(
        "--pivot",
        metavar="METRIC",
        help="print a Markdown table of one metric, streams by paths, as for suite=survey12, and write nothing",
    )
    parser.add_argument(
        "--definition",
        action="store_true",
        help="print a Markdown table of the five desiderata of runs of suite=definition, and write nothing",
    )
    parser.add_argument(
        "--ignore",
        nargs="*",
        default=[],
        metavar="SETTING",
        help="settings in which runs may differ and are told of as one, such as weights.counted; for runs of versions "
        "that did not all know them",
    )
    parser.add_argument(
        "--keep", metavar="FILE", help="write the reports of all runs as one file of JSON lines, and nothing else"
    )
    parser.add_argument(
        "--records", metavar="FILE", help="write every answer of all runs as one file of JSON lines, and nothing else"
    )
    given = parser.parse_args(arguments)
    try:
        if given.records is not None:
            print(f"{export(given.folder, given.records)} answers in {given.records}")
            return 0
        if given.keep is not None:
            reports, failures = reports_of(given.folder)
            write_lines(reports, given.keep)
            print(f"{len(reports)} reports in {given.keep}; without one: {len(failures)}")
            return 1 if failures else 0
        if given.definition:
            print(render_standings(collect(given.folder, given.ignore).standings))
            return 0
        if given.pivot is not None:
            print(render_pivot(collect(given.folder, given.ignore), given.pivot))
            return 0
        if given.markdown is not None:
            summary = collect(given.folder, given.ignore)
            print(render_markdown(summary, given.markdown))
            for failure in summary.failures:
                print(f"failed: {failure.folder}: {failure.reason}", file=sys.stderr)
        else:
            summary = show(given.folder, given.ignore)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not (summary.lines or summary.failures):
        print(f"{given.folder} holds no run; give the folder of a run or of a sweep", file=sys.stderr)
        return 2
    return 1 if summary.failures else 0


__all__ = ["Failure", "Line", "Report", "Summary", "SweepTable", "collect", "exit_status", "main", "show"]

if __name__ == "__main__":
    sys.exit(main())
