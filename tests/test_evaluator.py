"""The evaluator on a small stream: what it asks, what it records, and how it goes on after an interruption."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _evaluate_slowly import KNOWN, Reader, evaluate, toy_agent, toy_stream

from memory_paths.agent import Agent
from memory_paths.build import restore
from memory_paths.context import InContext, NoMemory
from memory_paths.evaluation import costs, records
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.plan import Plan
from memory_paths.evaluation.records import RecordError, same_records
from memory_paths.evaluation.report import Report
from memory_paths.eviction import Refuse
from memory_paths.ledger import Ledger
from memory_paths.types import Answer, Cost, Experience, Knowledge, Prompt, Query, Question, Usage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted; to be read, not written."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder)
    return folder


def _none(name: str = "none") -> Agent:
    lm, ledger = Reader(), Ledger()
    return Agent(lm, {name: NoMemory(lm, ledger, name=name)}, ledger)


def _run(folder: Path, agent: Agent | None = None, **options: Any) -> Report:
    with agent or toy_agent() as given:
        return Evaluator(toy_stream(), folder=folder, progress=False, **{"samples": 16, **options}).run(given)


def _value(report: Report, name: str) -> float | None:
    return report.metrics[name].value


def test_a_path_that_overflows_learns_and_forgets_and_the_figures_say_both(tmp_path: Path) -> None:
    report = _run(tmp_path)
    assert (report.path, report.lm, report.stream, report.load) == ("icl", "reader", "toy-24", 25)
    assert _value(report, "acquisition") == 1.0
    assert 0.2 < (_value(report, "retention") or 0.0) < 0.9
    assert _value(report, "retention_held") == 1.0
    assert _value(report, "retention_earliest") == 0.0
    assert (_value(report, "updated"), _value(report, "stale")) == (1.0, 0.0)
    assert (_value(report, "prior_before"), _value(report, "prior_after")) == (1.0, 1.0)
    assert _value(report, "unknown") == 0.0
    assert (_value(report, "forgetting") or 0.0) > 0.3
    assert report.matrix[0] == [0.0] * 4
    assert Report.read(tmp_path) == report


def test_the_oracle_answers_all_that_was_taught_and_none_only_what_it_knew(tmp_path: Path) -> None:
    oracle = _run(tmp_path / "oracle", _none(), control="oracle")
    none = _run(tmp_path / "none", _none())
    assert oracle.path == "oracle"
    for name in ("acquisition", "retention", "paraphrase", "prior_after", "skill_after"):
        assert _value(oracle, name) == 1.0, name
    assert oracle.matrix[0] == [0.0] * 4, "before it is taught, the right item is not shown"
    assert _value(none, "retention") == 0.0
    assert (_value(none, "prior_after"), _value(none, "skill_after")) == (1.0, 1.0)


class _Deaf(Reader):
    """Says the same whatever stands in the prompt beside the question."""

    def _say(self, prompt: Prompt) -> str:
        return super()._say(Prompt(prompt.question))


def test_paths_that_say_the_same_are_scored_the_same_to_the_bit(tmp_path: Path) -> None:
    scored, columns = {}, ("key", "kind", "answer", "correct", "token_f1", "stale", "confidence")
    for name in ("keeps nothing", "shows the newest", "shows all"):
        lm, ledger = _Deaf(window=150 if name == "shows the newest" else 4096), Ledger()
        path = NoMemory(lm, ledger, name=name) if name == "keeps nothing" else InContext(lm, ledger, name=name)
        with Agent(lm, {name: path}, ledger) as agent:
            report = Evaluator(toy_stream(), folder=tmp_path / name, samples=16, progress=False).run(agent)
        table = records.read_records(tmp_path / name)
        kinds = set(table["kind"].to_pylist()) - {"with_item"}
        assert kinds == {"direct", "trained", "paraphrase", "prior", "skill", "unknown"}, "every kind is asked"
        asked = [row for row in table.select(["stage", *columns]).to_pylist() if row["kind"] != "with_item"]
        told = (
            "acquisition",
            "retention",
            "paraphrase",
            "prior_after",
            "skill_after",
            "stale",
            "unknown",
            "forgetting",
        )
        scored[name] = (asked, [report.metrics[metric] for metric in told], report.matrix)
    assert scored["keeps nothing"] == scored["shows the newest"] == scored["shows all"]


def test_shuffled_memory_shows_as_much_and_answers_no_better_than_chance(tmp_path: Path) -> None:
    report = _run(tmp_path, _none(), control="shuffled")
    assert report.path == "shuffled"
    assert (_value(report, "retention") or 0.0) <= 0.25, "other items are shown"
    oracle = _run(tmp_path / "oracle", _none(), control="oracle")
    assert _value(oracle, "retention") == 1.0
    spent = [records.read_records(folder)["lm_tokens"].to_pylist() for folder in (tmp_path, tmp_path / "oracle")]
    asked = [(ours, theirs) for ours, theirs in zip(*spent, strict=True) if ours and theirs]
    assert len(asked) > 30
    assert all(ours == theirs for ours, theirs in asked), "as many words stand in the prompt"
    with pytest.raises(ValueError, match="control must be one of"):
        _run(tmp_path / "other", _none(), control="oracel")


def test_what_was_missed_is_asked_with_the_item_itself_and_after_learning_it_again(tmp_path: Path) -> None:
    report = _run(tmp_path, relearn=True)
    rows = [row for row in records.read_records(tmp_path).to_pylist() if row["arm"] == "probe"]
    wrong = sum(count for cause, count in report.misses.items() if cause != "right")
    assert [row["kind"] for row in rows].count("with_item") == wrong > 0
    assert all(row["correct"] == 1.0 for row in rows if row["kind"] == "with_item"), "the reader reads"
    assert set(report.misses) == {"right", "not_written"}, "a window keeps what fits and no more"
    assert _value(report, "relearnt") == 1.0, "in the place of what was kept"
    assert report.cost["reads"] == _run(tmp_path / "without", probes=False).cost["reads"], (
        "probes cost no path anything"
    )


def test_what_lies_on_the_disk_is_counted_where_the_agent_is_saved(whole: Path, tmp_path: Path) -> None:
    report = evaluate(tmp_path / "run", restoring=True)
    with toy_agent() as agent:
        for experience in toy_stream().experiences:
            agent.learn(list(experience.items))
        agent.save(tmp_path / "saved")
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*") if file.is_file())
    assert report.cost["disk_bytes"] == pytest.approx(size, rel=0.01)
    assert report.cost["disk_bytes"] > report.cost["stored_bytes"], "a database has an overhead"
    assert Report.read(whole).cost["disk_bytes"] is None


def test_together_everything_is_one_experience(tmp_path: Path) -> None:
    joint = toy_stream().together()
    assert len(joint.experiences) == 1
    assert joint.prior == toy_stream().prior
    with toy_agent(window=4096) as agent:
        report = Evaluator(joint, folder=tmp_path, progress=False).run(agent)
    assert report.matrix[1] == [1.0]
    assert report.load == 25


def test_one_experience_alone_is_a_stream(tmp_path: Path) -> None:
    stream = toy_stream()
    second = stream.one(2)
    assert second.experiences[0].items == stream.experiences[1].items
    asked = [set(question.ids) for question in second.experiences[0].questions]
    own = {item.id for item in second.experiences[0].items}
    assert asked == [ids for one in stream.experiences[1].questions if (ids := set(one.ids)) <= own]
    with toy_agent() as agent:
        report = Evaluator(second, folder=tmp_path, progress=False).run(agent)
    assert [len(row) for row in report.matrix] == [1, 1]
    with pytest.raises(ValueError, match="between 1 and 4, got 6"):
        stream.one(6)
    for wrong in ("second", 1.5, True):
        with pytest.raises(ValueError, match="alone must be the number of an experience, got"):
            stream.one(wrong)  # type: ignore[arg-type]


def test_answers_are_taken_again_where_nothing_has_changed_and_the_record_says_so(tmp_path: Path) -> None:
    asked: list[str] = []

    class CountingAgent:
        """An agent that notes what it is asked."""

        def __init__(self, agent: Agent) -> None:
            self._agent = agent

        def __getattr__(self, name: str) -> Any:
            return getattr(self._agent, name)

        def answer(self, queries: Sequence[Query], **options: Any) -> list[Answer]:
            asked.extend(query.text for query in queries)
            return self._agent.answer(queries, **options)

    Evaluator(toy_stream(), folder=tmp_path, samples=16, progress=False).run(CountingAgent(_none()))  # type: ignore[arg-type]
    rows = records.read_records(tmp_path).to_pylist()
    reused = [row for row in rows if row["reused"]]
    assert len(asked) == len(rows) - len(reused) == len({(row["arm"], row["key"]) for row in rows})
    assert all(row["stage"] > 0 and row["wall_seconds"] is None and row["lm_tokens"] is None for row in reused)
    assert {row["kind"] for row in reused} >= {"direct", "prior", "skill", "unknown"}


def test_what_does_not_fit_is_null_with_its_reason_and_the_run_completes(tmp_path: Path) -> None:
    report = _run(tmp_path, toy_agent(eviction=Refuse()))
    metric = report.metrics["retention"]
    assert metric.value is None
    assert "150" in metric.reason or "tokens" in metric.reason
    assert _value(report, "skill_after") == 1.0
    assert report.metrics["prior_after"].reason == metric.reason
    assert report.matrix[1][0] == 1.0
    assert report.matrix[4] == [None] * 4
    assert report.cost["writes"] < report.load
    fitting = _run(tmp_path / "large", toy_agent(window=400, eviction=Refuse()))
    assert _value(fitting, "retention") == 1.0


def test_an_item_larger_than_the_window_is_left_out_and_named_and_the_others_are_learnt(tmp_path: Path) -> None:
    stream = toy_stream(people=4, experiences=2)
    first, second = stream.experiences
    long = replace(second, items=(*second.items, Knowledge("long", "Person2 lives " * 200)))

    def run() -> Report:
        with toy_agent() as agent:
            options: dict[str, Any] = {"folder": tmp_path, "samples": 4, "progress": False}
            return Evaluator(replace(stream, experiences=(first, long)), **options).run(agent)

    report = run()
    assert _value(report, "retention") == 1.0
    assert records.read_writes(tmp_path)["skipped"].to_pylist() == [[], [], ["long"]]
    assert report.cost["writes"] == report.load - 1
    records.part(tmp_path, records.ANSWERS, 2).unlink()
    assert run().metrics == report.metrics


def test_an_error_that_is_no_refusal_stops_the_run_before_its_stage_is_recorded(whole: Path, tmp_path: Path) -> None:
    class Broken:
        """A path whose third write fails."""

        def __init__(self, path: InContext) -> None:
            self._path, self._writes = path, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._path, name)

        def write(self, *arguments: Any) -> Any:
            self._writes += 1
            if self._writes == 3:
                raise FloatingPointError("the loss is not finite at step 7")
            return self._path.write(*arguments)

    lm, ledger = Reader(window=150), Ledger()
    agent = Agent(lm, {"icl": Broken(InContext(lm, ledger))}, ledger)  # type: ignore[dict-item]
    with pytest.raises(FloatingPointError, match="step 7"):
        _run(tmp_path, agent)
    assert records.finished_stages(tmp_path) == 3
    assert not (tmp_path / "report.json").exists()
    _run(tmp_path)
    assert same_records(tmp_path, whole)


@pytest.mark.parametrize("restoring", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_an_interrupted_run_goes_on_and_leaves_the_same_records(
    whole: Path, tmp_path: Path, kept: int, restoring: bool
) -> None:
    cut = tmp_path / "cut"
    options: dict[str, Any] = {"restore": restore} if restoring else {}
    if restoring and 0 < kept < 5:
        _interrupted(cut, kept, options)
    else:
        shutil.copytree(whole, cut)
        for stage in range(kept, 5):
            records.part(cut, records.ANSWERS, stage).unlink()
    resumed = _run(cut, **options)
    assert same_records(whole, cut)
    assert resumed.metrics == Report.read(whole).metrics
    assert not (cut / "checkpoint").exists()


def _interrupted(folder: Path, stages: int, options: dict[str, Any]) -> None:
    class Impatient:
        """An agent that is interrupted when it is to learn once too often."""

        def __init__(self, agent: Agent) -> None:
            self._agent, self._learnt = agent, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._agent, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            self._agent.close()

        def learn(self, items: Sequence[Knowledge]) -> Any:
            self._learnt += 1
            if self._learnt == stages:
                raise KeyboardInterrupt
            return self._agent.learn(items)

    with pytest.raises(KeyboardInterrupt):
        _run(folder, Impatient(toy_agent()), **options)  # type: ignore[arg-type]
    assert records.finished_stages(folder) == stages


def test_an_agent_that_holds_something_before_any_learning_is_refused(tmp_path: Path) -> None:
    agent = toy_agent()
    agent.learn([Knowledge("other", "Other lives in Rome.")])
    with pytest.raises(ValueError, match="holds 1 items before any learning; give a fresh one"):
        _run(tmp_path, agent)


def test_an_agent_in_a_state_that_no_stage_left_is_refused(tmp_path: Path) -> None:
    evaluate(tmp_path)
    records.part(tmp_path, records.ANSWERS, 4).unlink()
    agent = toy_agent()
    agent.learn([Knowledge("other", "Other lives in Rome.")])
    with pytest.raises(ValueError, match="give a fresh agent"):
        _run(tmp_path, agent)
    half = toy_agent()
    for experience in toy_stream().experiences[:2]:
        half.learn(experience.items)
    _run(tmp_path, half)


def test_a_folder_that_holds_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    _run(tmp_path, config={"path": {"rate": 0.1}, "progress": True})
    with pytest.raises(ValueError, match="samples was 16, now 8"):
        _run(tmp_path, samples=8, config={"path": {"rate": 0.1}})
    with pytest.raises(ValueError, match=r"config.path.rate was 0.1, now 0.2"):
        _run(tmp_path, config={"path": {"rate": 0.2}})
    with pytest.raises(ValueError, match="path was 'icl', now 'none'"):
        _run(tmp_path, _none(), config={"path": {"rate": 0.1}})
    _run(tmp_path, config={"path": {"rate": 0.1}, "progress": False})


def test_a_damaged_part_is_named_and_never_used(tmp_path: Path) -> None:
    evaluate(tmp_path)
    file = records.part(tmp_path, records.ANSWERS, 2)
    content = bytearray(file.read_bytes())
    for damaged in (content[: len(content) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(RecordError, match=file.name):
            evaluate(tmp_path)
    file.write_bytes(content)
    table = records.read_records(tmp_path)
    noticed = 0
    for place in range(3, len(content), len(content) // 60):
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            assert records.read_records(tmp_path) == table, "a damage that is not noticed changes nothing"
        except RecordError as error:
            noticed += file.name in str(error)
    assert noticed > 30
    file.unlink()
    _run(tmp_path)


def test_at_most_so_many_questions_of_a_kind_and_stage_are_asked_and_spread_over_experiences() -> None:
    stream = toy_stream(people=80, experiences=4)
    plan = Plan(stream, samples=20, seed=0)
    for stage in range(5):
        asks = plan.asks(stage)
        for kind in {ask.kind for ask in asks}:
            # The one update at the end is asked on top of the sample.
            assert sum(ask.kind == kind for ask in asks) <= 20 + (stage == 4 and kind == "direct")
    final = [ask.experience for ask in plan.asks(4) if ask.kind == "direct" and ask.uniform]
    assert max(map(final.count, (1, 2, 3, 4))) - min(map(final.count, (1, 2, 3, 4))) <= 1
    own = [ask for ask in plan.asks(2) if ask.kind == "direct" and ask.experience == 2]
    assert len(own) >= 10
    assert {ask.experience for ask in plan.asks(2) if ask.kind == "direct"} == {1, 2, 3}


def test_the_sample_hangs_on_the_seed_alone() -> None:
    stream = toy_stream(people=80)

    def keys(seed: int, stage: int) -> list[str]:
        return [ask.key for ask in Plan(stream, samples=10, seed=seed).asks(stage)]

    plan = Plan(stream, samples=10, seed=0)
    backwards = {stage: [ask.key for ask in plan.asks(stage)] for stage in reversed(range(5))}
    assert all(backwards[stage] == keys(0, stage) for stage in range(5))
    assert keys(0, 4) != keys(1, 4)


def test_what_was_superseded_is_no_longer_asked() -> None:
    plan = Plan(toy_stream(), samples=200, seed=0)
    asked = {stage: {ask.question.ids for ask in plan.asks(stage) if ask.kind == "direct"} for stage in (1, 3, 4)}
    assert ("Person0",) in asked[1] & asked[3]
    assert ("Person0",) not in asked[4]
    assert ("Person0/2",) in asked[4]


def test_streams_that_cannot_be_evaluated_are_refused_at_the_door(tmp_path: Path) -> None:
    stream = toy_stream()
    clash = Question(Query("Where lives Elder0?"), ("Rome",), "prior")
    stranger = Question(Query("Where?"), ("Rome",), "direct", ("nobody",))
    first = stream.experiences[0]
    for wrong, message in (
        (replace(stream, experiences=()), "has no experiences"),
        (replace(stream, experiences=(Experience("empty", ()),)), "teaches nothing"),
        (replace(stream, experiences=(replace(first, questions=(stranger,)),)), "does not teach"),
        (replace(stream, prior=(*stream.prior, clash)), "different ids or words"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluator(wrong, folder=tmp_path)
    for options in ({"samples": 0}, {"unknown_threshold": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            Evaluator(stream, folder=tmp_path, **options)  # type: ignore[arg-type]


def test_likelihoods_stand_beside_free_answers_where_the_model_scores(tmp_path: Path) -> None:
    report = _run(tmp_path, toy_agent(window=400), likelihoods=True)
    assert (_value(report, "loglikelihood_gain") or 0.0) > 1.0
    assert _value(report, "choice") == 1.0
    without = _run(tmp_path / "without")
    assert without.metrics["loglikelihood_gain"].reason


def test_records_load_as_a_data_frame_and_say_what_stood_in_the_prompt(whole: Path) -> None:
    frame = records.load_records(whole)
    own = frame[(frame.kind == "direct") & (frame.stage == frame.experience)]
    assert own.correct.all()
    assert all(set(ids) <= set(recalls) for ids, recalls in zip(own.ids, own.recalls, strict=True))
    assert set(frame[frame.kind == "prior"].answer) == set(KNOWN.values())
    assert set(frame[frame.arm == "skill"].kind) == {"skill"}


def test_what_was_found_and_what_was_shown_are_recorded_apart_from_the_answer(whole: Path) -> None:
    for row in records.read_records(whole).to_pylist():
        if row["arm"] == "reading" and not row["reason"]:
            assert set(row["shown"]) <= set(row["recalls"])
            if row["kind"] == "direct":  # the toy model knows no more of these than its prompt says
                assert row["answer_offered"] >= row["answer_shown"] >= row["correct"]
            assert (row["answer_shown"] is None) == (not row["targets"])


def test_records_from_before_a_column_was_added_are_read_with_nulls(whole: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    shutil.copytree(whole, tmp_path / "run")
    for file in (tmp_path / "run" / "records").glob("answers-*.parquet"):
        table = pyarrow.parquet.read_table(file).drop_columns(list(records._ADDED_LATER))
        digest = records._digest(table)
        pyarrow.parquet.write_table(table.replace_schema_metadata({records._DIGEST: digest}), file)
    older, newer = (records.read_records(folder) for folder in (tmp_path / "run", whole))
    assert older.schema.equals(newer.schema)
    assert older["shown"].null_count == len(older)
    kept = [name for name in newer.column_names if name not in records._ADDED_LATER]
    assert older.select(kept).equals(newer.select(kept))


def test_a_finished_run_is_compacted_and_reads_the_same_at_whatever_moment_that_stops(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = records.read_records(whole)
    stages = records.finished_stages(whole)
    records.compact(tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run" / "records").iterdir()) == [
        "answers.parquet",
        "settings.json",
        "writes.parquet",
    ]
    assert records.read_records(tmp_path / "run").equals(before)
    assert records.finished_stages(tmp_path / "run") == stages
    assert same_records(tmp_path / "run", whole)
    shutil.copytree(whole, tmp_path / "stopped")
    shutil.copy(tmp_path / "run" / "records" / "answers.parquet", tmp_path / "stopped" / "records")
    assert records.read_records(tmp_path / "stopped").equals(before), "parts and the file made of them count once"
    records.compact(tmp_path / "stopped")
    assert same_records(tmp_path / "stopped", whole)
    damaged = tmp_path / "run" / "records" / "answers.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(RecordError, match="new folder"):
        records.finished_stages(tmp_path / "run")


def test_every_answer_can_be_had_as_json_lines(whole: Path, tmp_path: Path) -> None:
    count = records.export(whole, tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == count == len(records.read_records(whole))
    assert lines[0]["answer"] == records.read_records(whole)["answer"][0].as_py()
    assert {line["path"] for line in lines} == {"icl"}


def test_runs_that_differ_in_an_answer_are_told_apart_and_time_does_not_count(whole: Path, tmp_path: Path) -> None:
    evaluate(tmp_path / "slow", pause=0.01)
    assert same_records(whole, tmp_path / "slow")
    _run(tmp_path / "narrow", toy_agent(window=140))
    assert any("answer" in line for line in records.record_differences(whole, tmp_path / "narrow"))
    with pytest.raises(RecordError, match="no records"):
        same_records(whole, tmp_path / "missing")


def test_costs_are_sums_of_what_was_really_computed(whole: Path) -> None:
    report = Report.read(whole)
    rows = [row for row in records.read_records(whole).to_pylist() if row["arm"] == "reading" and not row["reused"]]
    assert report.cost["reads"] == len(rows)
    assert report.cost["read"]["lm"]["tokens"] == sum(row["lm_tokens"] for row in rows)
    assert report.cost["writes"] == report.load
    assert report.cost["stored_bytes"] > 0
    assert costs.unit(report.cost, "read").flops == pytest.approx(100.0)


def test_a_dear_write_pays_off_after_the_difference_divided_by_what_a_read_saves() -> None:
    def cost(written: float, read: float) -> dict[str, Any]:
        parts = {
            name: {"lm": {"tokens": 1, "flops": flops, "seconds": 0.0}}
            for name, flops in (("write", written), ("read", read * 10))
        }
        return {**parts, "wall_seconds": {"write": 0.0, "read": 0.0}, "writes": 1, "reads": 10, "stored_bytes": 0}

    assert costs.break_even(cost(1000.0, 1.0), cost(0.0, 5.0)) == Metric(250.0)
    assert costs.break_even(cost(1000.0, 5.0), cost(0.0, 5.0)).value is None
    assert costs.break_even(cost(0.0, 1.0), cost(0.0, 5.0)).value == 0.0
    whole = Cost(lm=Usage(3, 4.0, 5.0), index=Usage(1))
    assert costs.as_columns(whole)["lm_flops"] == 4.0
    assert costs.as_columns(whole)["index_tokens"] == 1


def test_a_terminal_is_told_the_stage_the_rate_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        """What looks like a terminal."""

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with toy_agent() as agent:
        Evaluator(toy_stream(), folder=tmp_path, samples=16).run(agent)
    told = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"icl, stage 4 of 4: +\d+% \|.+\| \d+/\d+ questions, +[\d.]+ questions/s, \d\d:\d\d left", told)
