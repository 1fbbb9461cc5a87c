"""The house itself: which way arrows run, what importing costs, and whether configuration and code agree."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import memory_paths.conf

CONF = Path(memory_paths.conf.__file__).parent
CORE = Path(memory_paths.__file__).parent


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, memory_paths, memory_paths.agent, memory_paths.build, memory_paths.context, memory_paths.lm\n"
        "import memory_paths.ledger, memory_paths.router, memory_paths.streams.world, memory_paths.streams.files\n"
        "import memory_paths.report\n"
        "heavy = {'torch', 'faiss', 'transformers', 'sentence_transformers'}\n"
        "heavy |= {'memory_paths.retrieval', 'memory_paths.parametric'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_imports_neither_plugin_folder() -> None:
    for file in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("memory_paths.retrieval", "memory_paths.parametric")), (
                    f"{file.name}: {name}"
                )


def _option_files() -> list[Path]:
    return sorted(file for file in CONF.rglob("*.yaml") if file.name != "config.yaml")


@pytest.mark.parametrize("file", _option_files(), ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_opens_with_a_line_that_says_when_to_choose_it(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 30


def _targets(node: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if isinstance(node, dict):
        if "_target_" in node:
            found.append(node)
        for value in node.values():
            found += _targets(value)
    return found


@pytest.mark.parametrize("file", _option_files(), ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_names_parameters_that_its_class_has(file: Path) -> None:
    from hydra.utils import get_object

    for node in _targets(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
        target = get_object(str(node["_target_"]))
        parameters = inspect.signature(target).parameters
        beside = {"_target_", "defaults"} | ({"background"} if file.parent.name == "lm" else set())
        assert set(node) - beside <= set(parameters), f"{node['_target_']} lacks {set(node) - beside - set(parameters)}"


def test_help_answers_quickly_and_shows_how_to_begin() -> None:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "memory_paths", "--help"], capture_output=True, text=True, check=True)
    assert "experiment=compare" in done.stdout
    assert "path: " in done.stdout
    assert time.perf_counter() - began < 20, "a hang, not a matter of speed"


def test_an_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    def run(*overrides: str) -> str:
        done = subprocess.run([sys.executable, "-m", "memory_paths", *overrides], capture_output=True, text=True)
        assert done.returncode != 0
        return done.stderr

    assert "sparse_memory" in run("path=telepathy")
    assert "topk" in run("path=rag", "path.memory.topk=3")
