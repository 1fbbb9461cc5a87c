"""The command line as people use it: runs, sweeps, failures, restarts, and other people's Hydra apps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _program import run_module
from conftest import run

import memory_paths
from memory_paths.build import build_run, compose
from memory_paths.evaluation.records import same_records
from memory_paths.failpoints import VARIABLE

PYTHON = (sys.executable, "-W", "ignore")
SMALL = ("stream.facts=12", "evaluation.samples=4", "progress=false")
FACT = {
    "id": "a",
    "text": "Alma Ashway lives in Alavia.",
    "question": "Where does Alma Ashway live?",
    "answer": "Alavia",
}
README = (Path(__file__).parent.parent / "README.md").read_text()


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_a_sweep_names_the_job_that_fails_and_finishes_the_others(tmp_path: Path) -> None:
    sweep = ("-m", "path=icl", "path.memory.budget=1,200", "hydra.sweep.dir=sweep")
    done = run_module("memory_paths", *sweep, *SMALL, cwd=tmp_path, expect=1)
    assert "no room for notes" in done.stdout
    assert (tmp_path / "sweep" / "0" / "failed.json").exists()
    assert (tmp_path / "sweep" / "1" / "report.json").exists()
    assert (tmp_path / "sweep" / "report.html").exists()
    assert 'href="1/report.html"' in (tmp_path / "sweep" / "report.html").read_text()
    assert "<title>icl, 12 items" in (tmp_path / "sweep" / "1" / "report.html").read_text()
    assert not (tmp_path / "sweep" / "0" / "report.html").exists()
    again = run_module("memory_paths.report", "sweep", cwd=tmp_path, expect=1)
    assert "icl" in again.stdout


def test_a_sweep_of_controls_that_is_started_again_skips_what_is_finished(tmp_path: Path) -> None:
    command = ("-m", "path=oracle,full_context", "hydra.sweep.dir=sweep", *SMALL)
    done = run_module("memory_paths", *command, cwd=tmp_path)
    reports = sorted((tmp_path / "sweep").glob("*/report.json"))
    assert [_report(report.parent)["path"] for report in reports] == ["oracle", "full_context"]
    assert "oracle" in done.stdout
    written = [report.stat().st_mtime_ns for report in reports]
    run_module("memory_paths", *command, cwd=tmp_path)
    assert [report.stat().st_mtime_ns for report in reports] == written


def test_the_same_run_twice_leaves_the_same_records(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_module("memory_paths", "path=icl", f"hydra.run.dir={name}", *SMALL, cwd=tmp_path)
    assert same_records(tmp_path / "one", tmp_path / "two")
    report = _report(tmp_path / "one")
    assert report["schema"] == 1
    assert report["load"] == 12
    assert report["config"]["stream"]["facts"] == 12


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    # A shell's background job ignores SIGINT, and so would a run that is started in one.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listening}; from memory_paths.__main__ import main; main()"
    options = ("path=full", "path.memory.budget.steps=400", "hydra.run.dir=stopped", *SMALL)
    stopped = subprocess.Popen((*PYTHON, "-c", program, *options), cwd=tmp_path, stdout=-1, stderr=-2, text=True)
    try:
        part = tmp_path / "stopped" / "records" / "answers-0000.parquet"
        for _ in range(1200):
            if part.exists() or stopped.poll() is not None:
                break
            time.sleep(0.1)
        stopped.send_signal(signal.SIGINT)
        said, _ = stopped.communicate(timeout=60)
    finally:
        stopped.kill()
    assert stopped.returncode == 130, said
    assert f"the same command with hydra.run.dir={tmp_path / 'stopped'} goes on where it stopped" in said
    assert "Traceback" not in said
    assert not (tmp_path / "stopped" / "report.json").exists()


def test_a_run_that_learns_in_weights_and_is_killed_goes_on_to_the_same_records(tmp_path: Path) -> None:
    background = "path.memory.background=[{_target_:memory_paths.types.Phrasing,completion:Ada lives in Oslo.}]"
    command = ("path=sparse_memory", "path.memory.budget.steps=5", background, *SMALL)
    run_module("memory_paths", *command, "hydra.run.dir=whole", cwd=tmp_path)
    # The fifth file is that of the answers after the first experience.
    failing = {**os.environ, VARIABLE: "records.after_rename:5"}
    run_module("memory_paths", *command, "hydra.run.dir=killed", cwd=tmp_path, env=failing, expect=-signal.SIGKILL)
    assert (tmp_path / "killed" / "checkpoint").exists()
    run_module("memory_paths", *command, "hydra.run.dir=killed", cwd=tmp_path)
    assert same_records(tmp_path / "whole", tmp_path / "killed")


def test_a_users_own_path_and_config_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from memory_paths.context import NoMemory\n\n\nclass Mine(NoMemory):\n    pass\n"
    )
    options = tmp_path / "my_conf" / "path"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("# When to choose it.\nmemory:\n  _target_: mine.Mine\n  name: mine\n")
    done = run_module("memory_paths", "--config-dir", "my_conf", "path=mine", *SMALL, cwd=tmp_path)
    assert "mine" in done.stdout


def test_a_users_own_facts(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    own = ("path=rag", "encoder@path.memory.encoder=hash", "stream=jsonl", "stream.file=facts.jsonl")
    run_module("memory_paths", *own, "hydra.run.dir=out", cwd=tmp_path)
    metrics = _report(tmp_path / "out")["metrics"]
    assert metrics["acquisition"]["value"] == 1.0
    assert metrics["reversal"]["reason"]


def test_a_users_own_facts_and_model(tmp_path: Path, stories_folder: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    own = ("path=rag", "stream=jsonl", "stream.file=facts.jsonl", "lm=hf", f"lm.name={stories_folder}")
    run_module("memory_paths", *own, "evaluation.likelihoods=true", "hydra.run.dir=out", cwd=tmp_path)
    report = _report(tmp_path / "out")
    assert report["lm"] == str(stories_folder)
    assert report["metrics"]["loglikelihood_gain"]["value"] > 0


def test_the_chat_is_a_program_to_teach_and_ask_by_hand(tmp_path: Path) -> None:
    lines = "Alma Ashway lives in Alavia.\nWhere does Alma Ashway live?\n/quit\n"
    said = run_module("memory_paths.chat", "path=icl", cwd=tmp_path, input=lines).stdout
    assert "learnt as " in said
    assert "'Alavia' by path 'icl'" in said
    told = run_module("memory_paths.chat", "path=telepathy", cwd=tmp_path, expect=1).stderr
    assert "Could not find 'path/telepathy'" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readme_says_what_its_python_really_does(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert set(re.findall(r"print\(.*\)  # (\w+)$", block, re.MULTILINE)) <= set(said)


def test_an_agent_works_inside_somebody_elses_hydra_app(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "import memory_paths\n\n\n"
        "@hydra.main(config_path=None, version_base='1.3')\n"
        "def main(cfg):\n"
        "    from hydra.core.hydra_config import HydraConfig\n"
        "    with memory_paths.load('path=icl') as agent:\n"
        "        agent.learn('Alma Ashway lives in Alavia.')\n"
        "        print(agent.answer('Where does Alma Ashway live?')[0].text, HydraConfig.get().job.name)\n\n\n"
        "main()\n"
    )
    assert run(*PYTHON, "app.py", cwd=tmp_path).stdout.strip() == "Alavia app"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream=jsonl", "stream.file=nothing.jsonl"), "no file nothing.jsonl"),
        (("lm=hf", "lm.name=./nothing"), "there is no model folder"),
        (("path.memory.top_k=0",), "top_k must be at least 1"),
        (("++path.memory.rows=8",), "path.memory has no option 'rows'; Bank takes diversity, encoder, "),
        (("+lm.rows=8",), "lm has no option 'rows'; CausalLM takes batch_size, "),
        (("stream.facts=3",), "facts must be at least 12"),
        (("stream.facts=many",), "stream.facts must be a whole number, got 'many'"),
        (("path.memory.threshold=high",), "path.memory.threshold must be a number or null, got 'high'"),
        (("path.memory.diversity=some",), "path.memory.diversity must be a number, got 'some'"),
        (("lm.prefix_cache=1",), "lm.prefix_cache must be true or false, got 1"),
        (("stream=jsonl", "stream.file=7"), "stream.file must be text or a path, got 7"),
        (("max_new_tokens=few",), "max_new_tokens must be a whole number, got 'few'"),
    ],
)
def test_bad_input_is_an_error_at_the_door(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(Exception, match=message):
        build_run(compose("path=rag", "encoder@path.memory.encoder=hash", *arguments))


def test_a_run_that_fails_says_why_and_its_exit_status_too(tmp_path: Path) -> None:
    done = run_module("memory_paths", "path=icl", "stream=jsonl", "stream.file=nothing.jsonl", cwd=tmp_path, expect=1)
    assert re.fullmatch(
        r"failed: FileNotFoundError: no file nothing.jsonl; .* \(traceback: .*failed.json\)\n", done.stderr
    )
    done = run_module("memory_paths", "path=icl", "seed=first", cwd=tmp_path, expect=1)
    assert "seeds.world, which is seed unless it is given, must be a whole number, got 'first'" in done.stderr
    done = run_module("memory_paths", "path=icl", "evaluation.samples=all", cwd=tmp_path, expect=1)
    assert "evaluation.samples must be a whole number, got 'all'" in done.stderr
    env = {name: value for name, value in os.environ.items() if name != "MEMORY_PATHS_DATA"}
    done = run_module("memory_paths", "path=icl", "stream=zsre", cwd=tmp_path, expect=1, env=env)
    assert "set MEMORY_PATHS_DATA to the folder" in done.stderr


def test_a_suite_is_run_in_parts_and_with_any_threads(tmp_path: Path) -> None:
    """The folder of a run is named by what it is, in whatever order and with whatever else a command says."""
    small = ("stream.facts=12", "stream.experiences=2", "evaluation.samples=4")
    suite = ("suite=definition", "seed=0", "stream.shift=none,names", *small, "hydra.sweep.dir=sweep")
    run_module("memory_paths", *suite, "path=none", cwd=tmp_path)
    done = run_module("memory_paths", "path=oracle,none", "threads=1", "progress=false", *suite, cwd=tmp_path)
    assert done.stdout.count("is finished already") == 2
    assert len(list((tmp_path / "sweep").glob("*/report.json"))) == 4
    assert not list((tmp_path / "sweep").glob("*/failed.json"))


@pytest.mark.parametrize("value", ["postgresql://ada:hush@127.0.0.1:1/memory", "postgresql://ada@h/m?password=hush"])
def test_a_password_in_the_ledgers_address_is_refused_and_stands_in_no_file_of_ours(value: str, tmp_path: Path) -> None:
    command = ("path=icl", f"ledger='{value}'", "hydra.run.dir=out", "hydra.sweep.dir=sweep", *SMALL)
    swept = ("-m", "seed=0,1") if "@127" in value else ()
    done = run_module("memory_paths", *swept, *command, cwd=tmp_path, expect=1)
    assert "has a password; give it in PGPASSWORD or ~/.pgpass" in done.stdout + done.stderr
    folders = [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"] if swept else [tmp_path / "out"]
    for folder in folders:
        failed = json.loads((folder / "failed.json").read_text())
        assert str(folder / ".hydra") in failed["error"]
        assert "PGPASSWORD" in failed["traceback"]
        assert any(override.startswith("ledger=postgresql://ada@") for override in failed["overrides"])
    with_it = {
        str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file() and "hush" in file.read_text()
    }
    theirs = {
        f"{folder.relative_to(tmp_path)}/.hydra/{name}.yaml"
        for folder in folders
        for name in ("config", "hydra", "overrides")
    }
    assert with_it == theirs | ({"sweep/multirun.yaml"} if swept else set())


def test_an_agent_that_cannot_be_built_leaves_nothing_open(tmp_path: Path) -> None:
    options = ["path=rag", "encoder@path.memory.encoder=hash"]
    options += [f"ledger={tmp_path}/ledger.sqlite", f"path.memory.folder={tmp_path}/bank"]
    with pytest.raises(Exception, match="two paths are named"):
        memory_paths.load(*options, "+more_paths.second=${path.memory}")
    with pytest.raises(Exception, match="facts must be at least 12"):
        build_run(compose(*options, "stream.facts=3"))
    with memory_paths.load(*options) as agent:
        assert agent.items() == []
