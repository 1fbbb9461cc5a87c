"""Many runs in one view: collected, put together over seeds, told in words, drawn on a page without network."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memory_paths import report as entry
from memory_paths.evaluation import charts
from memory_paths.evaluation.churn import Churn
from memory_paths.evaluation.desiderata import DESIDERATA, Standing
from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report
from memory_paths.evaluation.summary import Summary, amount, collect, score, summarise, verdict
from memory_paths.evaluation.table import render_markdown, render_table

NAMES = ("acquisition", "retention", "paraphrase", "composition", "prior_before", "prior_after", "skill_after")


def _metric(value: float, reach: float = 0.03) -> Metric:
    return Metric(value, max(0.0, value - reach), min(1.0, value + reach), 200)


def make_report(
    path: str, retention: float, *, load: int = 48, seed: int = 0, prior: float = 0.0, **others: Any
) -> Report:
    """A report of a run that retained so much and changed prior knowledge by so much."""
    metrics = {name: _metric(retention) for name in NAMES}
    metrics["prior_change"] = Metric(prior, prior - 0.02, prior + 0.02, 200)
    metrics["forward_transfer"] = Metric(0.01, -0.02, 0.04, 100)
    metrics["reversal"] = undefined("the stream has no reversal questions")
    usage = {"tokens": 4800, "flops": 1e9 if path == "sparse_memory" else 0.0, "seconds": 1.0}
    read = {**usage, "flops": 1e6 if path == "sparse_memory" else 1e8}
    given = {
        "path": path,
        "lm": "embedded",
        "stream": f"biographies-{load}",
        "seed": seed,
        "load": load,
        "metrics": metrics,
        "matrix": [[0.0, 0.0], [retention, None], [retention, retention]],
        "spread": [[(0.0, 0.3, 12)] * 2, [(0.5, 1.0, 12), None], [(0.5, 1.0, 12)] * 2],
        "cost": {
            "write": {"lm": usage},
            "read": {"lm": read},
            "wall_seconds": {"write": 0.48, "read": 12.0},
            "writes": load,
            "reads": 100,
            "stored_bytes": 1_300_000,
        },
        "ages": {"0": _metric(retention), "1": _metric(max(0.0, retention - 0.1))},
        "churn": {"prior": Churn(1, 9, 180, 10), "taught": Churn(0, 4, 30, 6)},
        "misses": {"right": round(40 * retention), "not_retrieved": 40 - round(40 * retention)},
        "outcomes": {"retention": [(f"q{at}", at % 200, float(at < 400 * retention)) for at in range(400)]},
        "config": {"path": {"memory": {"name": path}}, "seed": seed, "stream": {"facts": load}},
        "versions": {"torch": "2.0"},
    }
    return Report(**{**given, **others})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep of three paths and a control at two loads, one job of which failed and one was cut off."""
    number = 0
    for load in (48, 480):
        for path, kept, prior in (
            ("none", 0.03, 0.0),
            ("icl", 0.97, 0.0),
            ("rag", 0.96, 0.0),
            ("sparse_memory", 0.8, -0.2),
        ):
            make_report(path, kept if load == 48 or path != "icl" else 0.4, load=load, prior=prior).write(
                tmp_path / str(number)
            )
            (tmp_path / str(number) / ".hydra").mkdir()
            number += 1
    (tmp_path / "8" / ".hydra").mkdir(parents=True)
    (tmp_path / "8" / "failed.json").write_text(json.dumps({"error": "ValueError: no such <model>"}))
    (tmp_path / "9" / "records").mkdir(parents=True)
    return tmp_path


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    report = make_report("rag", 0.9)
    report.write(tmp_path)
    assert Report.read(tmp_path) == report
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["schema"] == 1
    assert written["metrics"]["reversal"] == {"value": None, "reason": "the stream has no reversal questions"}
    assert set(written["metrics"]["retention"]) == {"value", "low", "high", "n"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1, "path": "rag"}'])
def test_a_damaged_report_is_named_and_counts_as_a_failure(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is damaged"):
        Report.read(tmp_path / "a")
    assert [failure.folder for failure in collect(tmp_path).failures] == ["a"]


def test_runs_are_collected_in_order_and_failures_are_named_with_their_reason(sweep: Path) -> None:
    summary = collect(sweep)
    assert [(line.load, line.path) for line in summary.lines] == [
        (load, path) for load in (48, 480) for path in ("none", "icl", "rag", "sparse_memory")
    ]
    assert [(failure.folder, failure.reason) for failure in summary.failures] == [
        ("8", "ValueError: no such <model>"),
        ("9", "it left no report: interrupted, or still running"),
    ]
    assert {line.variant for line in summary.lines} == {""}


def test_runs_that_differ_in_ignored_settings_alone_are_one_line(tmp_path: Path) -> None:
    for seed, budget in enumerate(({"passes": 2}, {"passes": 2, "effort": 1.0}, {"passes": 3, "effort": 1.0})):
        report = make_report("sparse_memory", 0.9, seed=seed)
        config = {**report.config, "path": {"memory": {"budget": budget}}}
        replace(report, config=config).write(tmp_path / str(seed))
    assert [len(line.seeds) for line in collect(tmp_path).lines] == [1, 1, 1]
    lines = collect(tmp_path, ["path.memory.budget.effort"]).lines
    assert [(line.variant, len(line.seeds)) for line in lines] == [("budget.passes=2", 2), ("budget.passes=3", 1)]


PLAIN, STRONG = {"_target_": "a.NoPenalty"}, {"_target_": "a.L2", "strength": 0.1}
NOTHING, REHEARSED = {"_target_": "a.NoRehearsal"}, {"_target_": "a.Experience", "per_step": 4}
ROWS = {"_target_": "a.Rows", "rows": 8, "rate": 7.0}
LOW_RANK = {"_target_": "a.Adapter", "rate": 0.1, "config": {"_target_": "b.LowRank", "rank": 4}}
SCALED = {"_target_": "a.Adapter", "rate": 0.3, "config": {"_target_": "b.Scaled"}}
BESIDE = {"_target_": "a.Inserted", "rate": 0.3, "insertion": {"_target_": "b.Bottleneck"}}


@pytest.mark.parametrize(
    ("memories", "variants"),
    [
        ([{"penalty": PLAIN}, {"penalty": STRONG}], ["penalty=L2", "penalty=NoPenalty"]),
        (
            [
                {"penalty": PLAIN},
                {"penalty": STRONG},
                {"penalty": {"_target_": "a.KL"}},
                {"penalty": PLAIN, "steps": 3},
            ],
            ["penalty=KL", "penalty=L2", "penalty=NoPenalty", "penalty=NoPenalty steps=3"],
        ),
        (
            [{"penalty": PLAIN, "steps": steps} for steps in (1, 2, 3)] + [{"penalty": STRONG, "steps": 1}],
            ["penalty=L2 steps=1", "steps=1", "steps=2", "steps=3"],
        ),
        (
            [{"penalty": STRONG}, {"penalty": {**STRONG, "strength": 0.2}}, {"penalty": PLAIN}],
            ["penalty.strength=0.1", "penalty.strength=0.2", "penalty=NoPenalty"],
        ),
        (
            [{"penalty": PLAIN, "rehearsal": NOTHING}, {"penalty": STRONG, "rehearsal": REHEARSED}],
            ["penalty=L2 rehearsal=Experience", "penalty=NoPenalty rehearsal=NoRehearsal"],
        ),
        (
            [{"weights": one} for one in (ROWS, LOW_RANK, SCALED, BESIDE)],
            ["weights.config=LowRank", "weights.config=Scaled", "weights.insertion=Bottleneck", "weights=Rows"],
        ),
        (
            [{"weights": ROWS}, {"weights": {**ROWS, "rows": 9, "rate": 8.0}}, {"weights": LOW_RANK}],
            ["weights.config=LowRank", "weights.rate=7.0 weights.rows=8", "weights.rate=8.0 weights.rows=9"],
        ),
        (
            [
                {"weights": LOW_RANK, "penalty": PLAIN},
                {"weights": {**LOW_RANK, "rate": 1.0}, "penalty": STRONG},
                {"weights": BESIDE, "penalty": PLAIN},
            ],
            [
                "penalty=L2 weights.config=LowRank weights.rate=1.0",
                "weights.config=LowRank weights.rate=0.1",
                "weights.insertion=Bottleneck",
            ],
        ),
        (
            [{"penalty": STRONG}, {"penalty": {"_target_": "mine.L2", "strength": 0.2}}],
            ["penalty.strength=0.1", "penalty.strength=0.2"],
        ),
    ],
    ids="two no-usual usual options two-axes within zipped overridden namesakes".split(),
)
def test_variants_are_told_by_their_choices(memories: list[dict[str, Any]], variants: list[str]) -> None:
    reports = [replace(make_report("lora", 0.9), config={"path": {"memory": memory}}) for memory in memories]
    assert [line.variant for line in summarise(reports)] == variants


def test_seeds_become_one_line_with_an_interval_over_seeds() -> None:
    (line,) = summarise([make_report("rag", kept, seed=seed) for seed, kept in enumerate((0.8, 0.9, 1.0))])
    metric = line.metric("retention")
    assert line.seeds == (0, 1, 2)
    assert (metric.value, metric.n) == (pytest.approx(0.9), 600)
    assert metric.low == pytest.approx(0.9 - 4.302652730 * 0.1 / math.sqrt(3))
    assert metric.high == 1.0
    cell, none = line.matrix[1]
    assert cell is not None
    assert none is None
    assert (cell.value, cell.n) == (pytest.approx(0.9), 36)
    assert cell.low == metric.low, "over the seeds, as every other figure"
    assert line.metric("reversal").value is None
    (same,) = summarise([make_report("rag", 1.0, seed=seed) for seed in (0, 1)])
    assert same.metric("retention").low == 0.97, "seeds that agree still rest on a finite number of items"


def test_a_figure_that_one_seed_lacks_is_null_with_that_reason() -> None:
    lacking = make_report("rag", 0.9, seed=1)
    lacking = replace(lacking, metrics={**lacking.metrics, "retention": undefined("does not fit")})
    (line,) = summarise([make_report("rag", 0.9), lacking])
    assert line.metric("retention") == undefined("does not fit")


def test_what_learning_in_steps_costs_is_measured_against_learning_at_once() -> None:
    steps = make_report("full", 0.4, seed=1)
    learning = {**steps.metrics, "learning_accuracy": Metric(0.7, n=10)}
    in_steps = replace(
        steps,
        metrics=learning,
        matrix=[[0.0, 0.0], [0.8, 0.0], [0.4, 0.6]],
        spread=[],
        config={**steps.config, "joint": False},
    )
    joint_metrics = {**steps.metrics, "average_accuracy": Metric(0.9, n=10)}
    at_once = replace(
        steps, metrics=joint_metrics, matrix=[[0.0], [0.9]], spread=[], config={**steps.config, "joint": True}
    )
    lines = {bool(line.config["joint"]): line for line in summarise([in_steps, at_once])}
    assert lines[False].metric("intransigence").value == pytest.approx(0.9 - 0.7)
    assert lines[True].metric("intransigence").reason
    assert [line.is_control for line in lines.values()].count(True) == 1
    other = replace(at_once, config={**at_once.config, "stream": {"facts": 9}})
    (alone, _) = summarise([in_steps, other])
    assert alone.metric("intransigence").value is None, "it learnt something else"


def test_what_was_learnt_before_helps_by_what_each_experience_reaches_alone() -> None:
    matrix = [[0.0, 0.0, 0.0], [0.8, 0.0, 0.1], [0.4, 0.6, 0.2], [0.3, 0.5, 0.9]]
    spread = [[(0.0, 1.0, 12)] * 3] * 4
    whole = make_report("full", 0.4, seed=1, matrix=matrix, spread=spread)
    steps = replace(whole, metrics={**whole.metrics, "learning_accuracy": Metric(0.7, n=10)})
    second, third = (
        replace(steps, matrix=[[0.0], [score]], spread=[[cell] for cell in spread[0][:2]], load=3, config=config)
        for score, config in ((0.9, {**steps.config, "alone": 2}), (0.7, {**steps.config, "alone": 3}))
    )
    (line,) = summarise([steps, second, third])
    transfer = line.metric("learning_transfer")
    assert transfer.value == pytest.approx(((0.6 - 0.9) + (0.9 - 0.7)) / 2)
    assert transfer.n == 24, "the first experience is in no difference"
    for other in ((0.0, 1.0, 9), None):
        (unlike,) = summarise([steps, second, replace(third, spread=[[other], [other]])])
        alone = other[2] if other else 0
        reason = f"of experience 3 {alone} questions were asked alone and 12 in steps"
        assert reason in unlike.metric("learning_transfer").reason
    (old,) = summarise([replace(steps, spread=[]), second, third])
    assert "evaluate anew" in old.metric("learning_transfer").reason
    (lacking,) = summarise([steps, second])
    assert "alone=2,3" in lacking.metric("learning_transfer").reason
    assert [one.is_control for one in summarise([second, third])] == [True, True], "lines of their own without a whole"


def test_runs_of_one_path_with_other_settings_are_lines_of_their_own() -> None:
    reports = [
        make_report(
            "lora", 0.5, seed=seed, config={"path": {"rate": rate}, "seeds": {"world": seed}, "ledger": str(seed)}
        )
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    lines = summarise(reports)
    assert [(line.label, line.seeds) for line in lines] == [("lora rate=0.1", (0, 1)), ("lora rate=0.2", (0, 1))]


def test_the_table_is_aligned_and_fits_the_width_it_is_given(sweep: Path) -> None:
    summary = collect(sweep)
    wide = render_table(summary, 400).splitlines()
    assert any(re.search(r"^icl +48 .*\.97 \[\.94 1\.0\]", line) for line in wide)
    for width in (80, 120, 160):
        lines = render_table(summary, width).splitlines()
        body = [line for line in lines if not line.startswith(("a:", "One seed"))]
        assert max(map(len, body)) <= width
        assert any("[.94 1.0]" in line for line in body)
    assert "a: the stream has no reversal questions" in wide
    assert wide[-1].startswith("One seed")


def test_the_markdown_table_shows_the_metrics_that_are_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = render_markdown(collect(sweep), ["retention", "reversal"]).splitlines()
    assert lines[0] == "| path | items | seeds | retention | reversal |"
    assert "| icl | 48 | 1 | .97 [.94 1.0] | - a |" in lines
    assert "a: the stream has no reversal questions" in lines[-2]
    costly = render_markdown(collect(sweep), ["write_flops", "stored_bytes"]).splitlines()
    assert costly[0] == "| path | items | seeds | FLOPs /write | stored |"
    assert all(cell.strip() for cell in costly[2].strip("|").split("|"))
    assert entry.main([str(sweep), "--markdown"]) == 1, "a run of it failed"
    told = capsys.readouterr()
    assert "| acquisition | retention |" in told.out
    assert "failed: " in told.err
    assert entry.main([str(sweep), "--markdown", "retentoin"]) == 2
    told = capsys.readouterr()
    assert "no run has a metric named retentoin" in told.err
    assert "retention" in told.err.replace("retentoin", "")


def test_one_figure_is_shown_streams_by_paths(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([str(sweep), "--pivot", "retention"]) == 0
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head == "| retention | items | none | icl | rag | sparse_memory |"
    assert rows[0].startswith("| biographies on embedded | 48 | .03 [.00 .06] | .97 [")
    assert len(rows) == 2, "one for each load"
    assert entry.main([str(sweep), "--pivot", "reversal"]) == 0
    assert "a: the stream has no reversal questions" in capsys.readouterr().out
    assert entry.main([str(sweep), "--pivot", "retentoin"]) == 2
    assert "there are acquisition" in capsys.readouterr().err


def test_figures_and_amounts_are_short() -> None:
    assert score(Metric(0.94, 0.91, 0.96, 9)) == (".94", "[.91 .96]")
    assert score(Metric(-0.031, -0.1, 0.0, 9), signed=True) == ("-.03", "[-.10 .00]")
    assert score(Metric(1.0, 0.996, 1.0, 9)) == ("1.0", "[1.0 1.0]")
    assert score(undefined("no")) == ("-", "")
    assert [amount(value) for value in (0, 12.34, 999.6, 1_234, None)] == ["0", "12", "1k", "1.2k", "-"]
    assert (amount(0.0123, "seconds"), amount(75.0, "seconds"), amount(5_600_000, "bytes")) == ("12ms", "75s", "5.6MB")


def test_the_verdict_names_winners_and_calls_ties_ties(sweep: Path) -> None:
    told = collect(sweep).verdict
    assert "with 48 items icl .97 [.94 1.0] and rag .96 [.93 .99] tie, ahead of sparse_memory .80 [.77 .83]" in told
    assert (
        "with 480 items rag .96 [.93 .99] keeps most, ahead of sparse_memory .80 [.77 .83], icl .40 [.37 .43]" in told
    )
    assert "prior knowledge fell with sparse_memory by .20" in told
    assert "one seed" in told
    assert "none" not in told
    assert told.count(". ") == 0, "one sentence"
    assert "nothing to compare it with" in verdict(summarise([make_report("rag", 0.9)]))
    assert verdict([]).startswith("No run was finished")


def test_where_the_oracle_does_no_better_than_none_free_answers_are_null_and_gains_stand_in(tmp_path: Path) -> None:
    for path, kept in (("none", 0.04), ("oracle", 0.05), ("rag", 0.06)):
        report = make_report(path, kept)
        scored = {"loglikelihood_gain": Metric(0.5, 0.3, 0.7, 200), "choice": _metric(0.6)}
        replace(report, metrics={**report.metrics, **scored}).write(tmp_path / path)
    summary = collect(tmp_path)
    line = next(line for line in summary.lines if line.path == "rag")
    assert line.metric("retention").reason.startswith("the model does not read")
    assert line.metric("choice").value == 0.6
    assert "+.50 [.30 .70]" in render_table(summary, 400)
    assert "log-likelihood per token gained rag +.50" in summary.verdict
    assert Report.read(tmp_path / "rag").metrics["retention"].value == 0.06, "the run's own report is left as it is"


def test_summary_files_hold_what_was_collected(sweep: Path) -> None:
    collect(sweep).write(sweep)
    stored = json.loads((sweep / "summary.json").read_text())
    assert len(stored["lines"]) == 8
    assert stored["failures"][0]["folder"] == "8"
    assert stored["break_even"][0] == {
        "family": "biographies on embedded",
        "load": 48,
        "path": "sparse_memory",
        "against": "icl",
        "reads": {"value": 1011.0, "low": None, "high": None, "n": 0},
    }
    with (sweep / "summary.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[2]["retention"]) == 0.96
    assert float(rows[2]["tokens_per_write"]) == 100.0
    assert rows[2]["reversal"] == ""
    assert rows[2]["reversal_reason"] == "the stream has no reversal questions"
    assert len(collect(sweep).lines) == 8, "its own files are no runs"


def test_the_page_is_one_small_valid_file_that_asks_no_network(sweep: Path) -> None:
    page = collect(sweep).write(sweep).read_text()
    _WellFormed().check(page)
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"https?://|<script |<link|@import|url\(", page)
    assert "no such &lt;model&gt;" in page
    assert page.count(", percent</caption>") == 8
    headings = [re.sub("<.*?>", "", title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", page)]
    assert headings == [
        *("Verdict", "Runs that failed", "Learning against forgetting", "All paths", "Load", "Accuracy matrices"),
        *("Retention by age", "Cost", "Gained and lost", "Why answers were wrong", "Which differences are real"),
        *("When a dear write pays off", "Runs", "Settings"),
    ]
    assert re.search(r">\.97<i class=.track.*?</i><small>\[\.94 1\.0\]</small><small>n 200</small>", page)
    assert "reversal: the stream has no reversal questions (everywhere)" in page
    assert "McNemar" in page


def test_the_page_says_how_each_path_stands_by_the_definition(tmp_path: Path) -> None:
    desiderata = {**dict.fromkeys(DESIDERATA, _metric(0.75)), "composes": undefined("no such questions")}
    standing = Standing("rag", "embedded", "world-48", 48, "answers", desiderata, undefined("no such questions"))
    page = Summary(summarise([make_report("rag", 0.9)]), (), standings=(standing,)).write(tmp_path).read_text()
    _WellFormed().check(page)
    part = page.partition(">By the definition of continual learning</h2>")[2].partition("</section>")[0]
    assert re.findall(r">(\.75|-)<", part) == ["-", ".75", ".75", ".75", ".75", "-"], "the score, and what it is of"
    assert "composes: no such questions (rag)" in part
    assert "against the same model with the right items in its prompt" in part


def test_a_model_in_a_folder_is_called_by_the_folder_where_no_other_is(tmp_path: Path) -> None:
    for number, lm in enumerate(("/one/small", "someone/small_model")):
        make_report("rag", 0.5, lm=lm).write(tmp_path / str(number))
    assert {line.family for line in collect(tmp_path).lines} == {
        "biographies on small",
        "biographies on someone/small_model",
    }
    make_report("rag", 0.9, lm="/two/small").write(tmp_path / "2")
    both = {line.family: line.metric("retention").value for line in collect(tmp_path).lines}
    assert both["biographies on /one/small"] == 0.5
    assert both["biographies on /two/small"] == 0.9


def test_several_streams_are_shown_side_by_side_and_each_by_itself(tmp_path: Path) -> None:
    """One table of all before the parts of each, to which one link leads; and one more stream changes no verdict on
    another."""
    of_paths = {"full": 14, "rag": 24}
    reports = {
        stream: [
            make_report(
                path,
                right / 24,
                stream=stream,
                outcomes={"retention": [(f"{at}", at, float(at < right)) for at in range(24)]},
            )
            for path, right in of_paths.items()
        ]
        for stream in ("first", "second")
    }
    for number, report in enumerate([*reports["first"], *reports["second"]]):
        report.write(tmp_path / str(number))
    both = collect(tmp_path)
    page = both.write(tmp_path).read_text()
    assert page.index("Stream by stream</h2>") < page.index("All paths: first on embedded</h2>")
    assert page.count(">first on embedded</a>") == page.count(">second on embedded</a>") == 1
    assert "All paths: first on embedded</a>" not in page
    for number in (2, 3):
        shutil.rmtree(tmp_path / str(number))
    (first,) = {one for one in both.contrasts if one.family == "first on embedded"}
    assert collect(tmp_path).contrasts == (first,)


def test_parts_that_old_reports_lack_are_left_out(tmp_path: Path) -> None:
    for path in ("icl", "rag"):
        report = replace(make_report(path, 0.9), ages={}, churn={}, misses={}, outcomes={}, matrix=[[None]], spread=[])
        stored = {name: value for name, value in report.to_json().items() if name not in ("ages", "churn", "misses")}
        (tmp_path / path).mkdir()
        (tmp_path / path / "report.json").write_text(json.dumps(stored))
    page = collect(tmp_path).write(tmp_path).read_text()
    assert ">All paths</h2>" in page
    for title in ("Accuracy matrices", "Retention by age", "Gained", "Why answers", "Which differences"):
        assert title not in page


def test_the_page_leads_to_the_pages_of_runs_that_have_one(sweep: Path) -> None:
    assert "<a href" not in collect(sweep).write(sweep).read_text().partition("<main")[2]
    for run in ("1", "3"):
        collect(sweep / run).write_page(sweep / run)
    page = collect(sweep).write(sweep).read_text()
    assert re.findall(r'<a href="([^"#]*)"', page) == ["1/report.html", "3/report.html"]
    own = (sweep / "1" / "report.html").read_text()
    assert "<title>icl, 48 items" in own
    assert "Runs</h2>" not in own


def test_a_large_matrix_and_a_large_sweep_keep_the_page_small(tmp_path: Path) -> None:
    drawing = charts.heat_map([[Metric(0.5)] * 200 for _ in range(201)], "large")
    assert drawing.count("<td") <= 25 * 25
    assert re.findall(r'row">(\d+)<', drawing)[:2] == ["0", "9"], "rows are named by the stage that they begin with"
    reports = [
        make_report("rag", 0.9, load=load, matrix=[[0.9] * 24] * 25, spread=[[(0.8, 1.0, 20)] * 24] * 25)
        for load in range(10, 70)
    ]
    page = Summary(summarise(reports), ()).write(tmp_path)
    assert page.stat().st_size < 1_000_000


def test_a_page_of_eight_stages_three_paths_and_five_seeds_is_below_five_megabytes(tmp_path: Path) -> None:
    questions = [(f"question-{at}", at // 4, float(at % 7 > 0)) for at in range(1000)]
    for path in ("icl", "rag", "sparse_memory"):
        for seed in range(5):
            report = make_report(
                path, 0.8, seed=seed, load=480, matrix=[[0.8] * 8] * 9, spread=[[(0.7, 0.9, 60)] * 8] * 9
            )
            ages = {str(age): _metric(0.9 - age / 20) for age in range(8)}
            outcomes = {"retention": questions[seed * 9 :], "prior": questions[:400]}
            replace(report, ages=ages, outcomes=outcomes).write(tmp_path / path / str(seed))
    assert collect(tmp_path).write(tmp_path).stat().st_size < 5_000_000


def test_the_front_holds_the_points_that_none_beats() -> None:
    def point(x: float, y: float) -> charts.Point:
        return charts.Point(Metric(x), Metric(y))

    points = {"a": point(-0.2, 0.9), "b": point(0.0, 0.5), "c": point(-0.1, 0.4), "d": point(-0.2, 0.8)}
    assert charts.front(points) == ["a", "b"]
    assert charts.front({**points, "e": point(0.0, 0.9)}) == ["e"]


def test_paths_differ_in_colour_or_mark_however_many_they_are() -> None:
    numbers = charts.colours(["none", *(f"lora rank={rank}" for rank in range(30)), "oracle"])
    marks = {charts.mark(number) for number in numbers.values()}
    assert len(marks) == 32


def test_names_of_paths_do_not_cover_one_another() -> None:
    series = {f"lora rank={at}": [charts.Point(Metric(0.0), Metric(0.84 + at / 50))] for at in range(8)}
    x = charts.changes([Metric(0.0)])
    drawing = charts.chart("close by", series, charts.colours(list(series)), x, "retention")
    rows = sorted(map(float, re.findall(r'class="name[^"]*" x="[\d.]+" y="([\d.]+)"', drawing)))
    assert len(rows) == 16
    assert min(after - before for before, after in itertools.pairwise(rows)) >= 12.9


def test_a_page_of_failures_only_still_says_so(tmp_path: Path) -> None:
    (tmp_path / "0" / "records").mkdir(parents=True)
    assert "it left no report" in collect(tmp_path).write(tmp_path).read_text()


def test_the_command_prints_table_verdict_and_page_and_its_status_says_whether_a_run_failed(sweep: Path) -> None:
    command = [sys.executable, "-m", "memory_paths.report", str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 1, done.stderr
    assert "with 48 items icl" in done.stdout
    assert "failed: 8: ValueError" in done.stdout
    assert str(sweep / "report.html") in done.stdout
    assert done.stderr == ""


def test_a_sweep_is_kept_as_one_file_that_says_the_same(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = sweep / "kept.jsonl"
    assert entry.main([str(sweep), "--keep", str(kept)]) == 1, "a run of it failed"
    assert "8 reports in" in capsys.readouterr().out
    assert collect(kept).lines == collect(sweep).lines
    assert entry.main([str(kept)]) == 0
    assert "The page" not in capsys.readouterr().out
    packed = sweep / "kept.jsonl.gz"
    assert entry.main([str(sweep), "--keep", str(packed)]) == 1
    assert packed.stat().st_size < kept.stat().st_size / 5
    assert collect(packed).lines == collect(sweep).lines
    kept.write_text(kept.read_text() + '{"schema": 1}\n')
    assert entry.main([str(kept)]) == 2
    assert "line 9 of" in capsys.readouterr().err
    kept.write_text("")
    assert entry.main([str(kept)]) == 2
    assert "holds no run" in capsys.readouterr().err
    whole = packed.read_bytes()
    for damaged in (whole[:-9], whole[:400] + bytes(40) + whole[440:], b"none"):
        packed.write_bytes(damaged)
        assert entry.main([str(packed)]) == 2
        assert "holds no reports" in capsys.readouterr().err


def test_the_command_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([str(tmp_path)]) == 2
    assert entry.main([str(tmp_path / "missing")]) == 2
    make_report("rag", 0.9).write(tmp_path / "0")
    assert entry.main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "no run in" in shown.err
    assert "is not a folder" in shown.err
    assert "nothing to compare it with" in shown.out


class _WellFormed(HTMLParser):
    """Raises where an element is closed that is not the one last opened."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def check(self, page: str) -> None:
        self.stack: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return
