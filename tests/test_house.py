"""The house itself: which way arrows run, what importing costs, and whether configuration and code agree."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from conftest import run
from hydra.utils import get_object
from omegaconf import OmegaConf

import memory_paths.conf
from memory_paths.build import compose, plain

CONF = Path(memory_paths.conf.__file__).parent
HEAVY = {"torch", "faiss", "transformers", "sentence_transformers"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, memory_paths, memory_paths.agent, memory_paths.build, memory_paths.context, memory_paths.lm\n"
        "import memory_paths.ledger, memory_paths.router, memory_paths.streams.world, memory_paths.streams.files\n"
        "import memory_paths.report\n"
        "print(*sys.modules)"
    )
    loaded = set(run(sys.executable, "-c", program).stdout.split())
    assert not loaded & (HEAVY | {"memory_paths.retrieval", "memory_paths.parametric"})


def _imported(source: str, package: str) -> set[str]:
    """Every name that some import in a file of that package may load, whole: also what follows `from ... import`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def _forbidden(source: str, package: str, *folders: str) -> list[str]:
    names = tuple(f"memory_paths.{folder}" for folder in folders)
    return sorted(name for name in _imported(source, package) if f"{name}.".startswith(tuple(f"{n}." for n in names)))


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import memory_paths.parametric.path as p", "memory_paths"),
        ("from memory_paths.parametric import path", "memory_paths"),
        ("from memory_paths import agent, parametric", "memory_paths"),
        ("def late():\n    from . import parametric", "memory_paths"),
        ("from .parametric.path import Budget", "memory_paths"),
        ("from .. import parametric", "memory_paths.evaluation"),
        ("from ..parametric import path", "memory_paths.evaluation"),
    ],
)
def test_every_way_to_import_a_folder_is_seen(source: str, package: str) -> None:
    assert _forbidden(source, package, "parametric")
    assert not _forbidden(source.replace("parametric", "parametrics"), package, "parametric")


@pytest.mark.parametrize(
    ("folder", "closed"),
    [("", ("retrieval", "parametric")), ("retrieval", ("parametric",)), ("parametric", ("retrieval",))],
)
def test_the_core_imports_neither_plugin_folder_and_they_do_not_import_one_another(
    folder: str, closed: tuple[str, ...]
) -> None:
    home = f"memory_paths.{folder}".rstrip(".")
    root = Path(str(importlib.import_module(home).__file__)).parent
    files = sorted(root.rglob("*.py"))
    assert files
    for file in files:
        package = ".".join([home, *file.relative_to(root).parts[:-1]])
        assert _forbidden(file.read_text(), package, *closed) == [], file


def _option_files() -> list[Path]:
    return sorted(file for file in CONF.rglob("*.yaml") if file.name != "config.yaml")


@pytest.mark.parametrize("file", _option_files(), ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_opens_with_a_line_that_says_when_to_choose_it(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 30


# Axes are mounted under a path that has them; the other groups stand at the top.
AXES = ("weights", "study", "objective", "rehearsal", "penalty", "projection", "schedule", "merging")
MOUNTED = {axis: ("sparse_memory", f"path.memory.{axis}") for axis in AXES} | {
    "parallel": ("sparse_memory", "path.memory.parallel"),
    "selector": ("sparse_memory", "path.memory.weights.selector"),
    "encoder": ("rag", "path.memory.encoder"),
    "reranker": ("rag", "path.memory.reranker"),
    "eviction": ("icl", "path.memory.eviction"),
}


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_composes_where_it_belongs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_PATHS_DATA", "data")
    group = file.parent.name
    path, place = MOUNTED.get(group, ("none", f"sinks.{file.stem}" if group == "sink" else group))
    option = f"{group}@{place}={file.stem}" if group in MOUNTED else f"{group}={file.stem}"
    cfg = compose(option) if group == "path" else compose(f"path={path}", option)
    assert plain(cfg)
    if target := OmegaConf.load(file).get("_target_"):
        assert OmegaConf.select(cfg, place)._target_ == target


def _targets(node: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if isinstance(node, dict):
        if "_target_" in node:
            found.append(node)
        for value in node.values():
            found += _targets(value)
    return found


def _options_of_targets(file: Path) -> list[tuple[str, dict[str, object]]]:
    """Each `_target_` of a file with what stands beside it, and what its list of defaults puts there."""
    loaded = OmegaConf.load(file)
    for entry in loaded.pop("defaults", []):
        mounted = [str(key).partition("@")[2] for key in entry] if OmegaConf.is_config(entry) else []
        for place in filter(None, mounted):
            OmegaConf.update(loaded, place, {})
    content = OmegaConf.to_container(loaded, resolve=False)
    # The background of a model is for the paths, see memory_paths.build.
    beside = {"_target_"} | ({"background"} if file.parent.name == "lm" else set())
    return [
        (str(node["_target_"]), {name: value for name, value in node.items() if name not in beside})
        for node in _targets(content)
    ]


WITH_TARGETS = [file for file in sorted(CONF.rglob("*.yaml")) if _options_of_targets(file)]


@pytest.mark.parametrize("file", WITH_TARGETS, ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_names_parameters_that_its_class_has(file: Path) -> None:
    for target, options in _options_of_targets(file):
        parameters = inspect.signature(get_object(target)).parameters
        assert set(options) <= set(parameters), f"{target} lacks {set(options) - set(parameters)}"


# Where a choice is a preset, with a value of its own for these options.
PRESETS = {
    "path": {"name", "method", "steps", "batch", "passes"},
    "stream": {"name", "limit", "untaught"}
    # what one set of examples is like
    | {"text", "step", "label", "tokens", "tags", "scoring", "experiences", "labels", "each", "asked"},
    "objective": {"source", "teacher", "on_policy", "beta"},
    "parallel": {"pool"},
    "weights": {"rate", "form"},
    "quarantine": {"trusted_from"},
}


@pytest.mark.parametrize("file", WITH_TARGETS, ids=lambda file: str(file.relative_to(CONF)))
def test_a_value_that_is_no_preset_is_the_default_of_its_class(file: Path) -> None:
    for target, options in _options_of_targets(file):
        if not target.startswith("memory_paths."):
            continue  # the defaults of others are theirs
        parameters = inspect.signature(get_object(target)).parameters
        for name, value in options.items():
            default = parameters[name].default
            literal = not isinstance(value, dict | list) and not str(value).startswith(("${", "???"))
            if literal and default is not inspect.Parameter.empty and name not in PRESETS.get(file.parent.name, ()):
                assert value == default, f"{name} is {value!r} here and {default!r} in {target}"


AXES = "objective penalty projection rehearsal study weights selector schedule merging parallel".split()
SOURCE = re.compile(r"[A-Z][^()]*(19|20)\d\d|arXiv \d{4}\.\d{5}")
OURS = {"none", "random"}  # controls, which have no source


@pytest.mark.parametrize("axis", AXES)
def test_every_choice_of_an_axis_says_when_to_take_it_and_whose_it_is(axis: str) -> None:
    for file in (CONF / axis).glob("*.yaml"):
        first = file.read_text().splitlines()[0]
        assert first.startswith("# "), file
        assert ": " in first, f"{file} does not say when to choose it"
        assert file.stem in OURS or SOURCE.search(first), f"{file}: whose is it?"


def test_help_shows_how_to_begin_and_loads_nothing_heavy() -> None:
    done = run(sys.executable, "-X", "importtime", "-m", "memory_paths", "--help")
    assert "experiment=compare" in done.stdout
    assert "path: " in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "memory_paths.report" in loaded
    assert not loaded & HEAVY


def test_an_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    program = (sys.executable, "-m", "memory_paths")
    assert "sparse_memory" in run(*program, "path=telepathy", expect=1).stderr
    assert "topk" in run(*program, "path=rag", "path.memory.topk=3", expect=1).stderr
