"""The command line as people use it: runs, sweeps, failures, restarts, and other people's Hydra apps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import memory_paths

SMALL = ("stream.facts=12", "evaluation.samples=4", "progress=false")


def _run(*arguments: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == expect, done.stdout[-1500:] + done.stderr[-1500:]
    return done


def test_a_sweep_names_the_job_that_fails_and_finishes_the_others(tmp_path: Path) -> None:
    done = _run(
        "-m",
        "memory_paths",
        "-m",
        "path=icl",
        "path.memory.budget=1,200",
        "hydra.sweep.dir=sweep",
        *SMALL,
        cwd=tmp_path,
        expect=1,
    )
    assert "no room for notes" in done.stdout
    assert (tmp_path / "sweep" / "0" / "failed.json").exists()
    assert (tmp_path / "sweep" / "1" / "report.json").exists()
    assert (tmp_path / "sweep" / "report.html").exists()
    again = _run("-m", "memory_paths.report", "sweep", cwd=tmp_path, expect=1)
    assert "icl" in again.stdout


def test_a_sweep_that_is_started_again_skips_what_is_finished(tmp_path: Path) -> None:
    command = ("-m", "memory_paths", "-m", "path=none,icl", "seed=0", "hydra.sweep.dir=sweep", *SMALL)
    _run(*command, cwd=tmp_path)
    reports = sorted((tmp_path / "sweep").glob("*/report.json"))
    assert len(reports) == 2
    written = [report.stat().st_mtime_ns for report in reports]
    _run(*command, cwd=tmp_path)
    assert [report.stat().st_mtime_ns for report in reports] == written


def test_the_same_run_twice_leaves_the_same_records(tmp_path: Path) -> None:
    from memory_paths.evaluation.records import same_records

    for name in ("one", "two"):
        _run("-m", "memory_paths", "path=icl", f"hydra.run.dir={name}", *SMALL, cwd=tmp_path)
    assert same_records(tmp_path / "one", tmp_path / "two")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["schema"] == 1
    assert report["load"] == 12
    assert report["config"]["stream"]["facts"] == 12


def test_a_users_own_path_and_config_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from memory_paths.context import NoMemory\n\n\nclass Mine(NoMemory):\n    pass\n"
    )
    options = tmp_path / "my_conf" / "path"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("# When to choose it.\nmemory:\n  _target_: mine.Mine\n  name: mine\n")
    done = _run("-m", "memory_paths", "--config-dir", "my_conf", "path=mine", *SMALL, cwd=tmp_path)
    assert "mine" in done.stdout


def test_a_users_own_facts(tmp_path: Path) -> None:
    fact = {
        "id": "a",
        "text": "Alma Ashway lives in Alavia.",
        "question": "Where does Alma Ashway live?",
        "answer": "Alavia",
    }
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact) + "\n")
    _run(
        "-m",
        "memory_paths",
        "path=rag",
        "encoder@path.memory.encoder=hash",
        "stream=jsonl",
        "stream.file=facts.jsonl",
        "hydra.run.dir=out",
        cwd=tmp_path,
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metrics"]["acquisition"]["value"] == 1.0
    assert report["metrics"]["reversal"]["reason"]


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
    assert _run("app.py", cwd=tmp_path).stdout.strip() == "Alavia app"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream=jsonl", "stream.file=nothing.jsonl"), "no file nothing.jsonl"),
        (("lm=hf", "lm.name=./nothing"), "there is no model folder"),
        (("path.memory.top_k=0",), "top_k must be at least 1"),
        (("stream.facts=3",), "facts must be at least 12"),
    ],
)
def test_bad_input_is_an_error_at_the_door(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = _run(
        "-m", "memory_paths", "path=rag", "encoder@path.memory.encoder=hash", *arguments, cwd=tmp_path, expect=1
    )
    assert message in done.stderr


def test_an_agent_that_cannot_be_built_leaves_nothing_open(tmp_path: Path) -> None:
    options = ["path=rag", f"path.memory.folder={tmp_path}", "encoder@path.memory.encoder=hash"]
    with pytest.raises(Exception, match="in use"):
        memory_paths.load(*options, "+more_paths.second=${path.memory}")
    with memory_paths.load(*options) as agent:
        assert agent.items() == []
