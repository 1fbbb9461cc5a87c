"""The wheel: built, installed in a new environment, and used from another folder."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import run

ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "outputs", "multirun", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the package from the wheel, and the dependencies from this one."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    run(*PIP, "--python", python, "install", "--quiet", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import memory_paths.retrieval as r; print(r.__file__)", cwd=environment).stdout
    assert str(site) in where
    return environment


def test_the_wheel_holds_every_module_option_and_asset(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        ("memory_paths", "memory_paths"),
        ("retrieval", "memory_paths/retrieval"),
        ("parametric", "memory_paths/parametric"),
        ("conf", "memory_paths/conf"),
    ):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".safetensors", ".json", ".typed") and "__pycache__" not in file.parts:
                assert f"{package}/{file.relative_to(ROOT / folder)}" in inside
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"memory_paths"}


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("memory_paths", ["path=icl"]),
        ("python -W ignore -m memory_paths", ["path=rag", "encoder@path.memory.encoder=hash"]),
        (
            "python -W ignore -m memory_paths",
            ["path=sparse_memory", "path.memory.background=null", "path.memory.budget.steps=3"],
        ),
    ],
)
def test_an_installed_wheel_runs_each_path_from_another_folder(
    program: str, options: list[str], environment: Path, tmp_path: Path
) -> None:
    command, *arguments = program.split()
    small = ("stream.facts=12", "evaluation.samples=4", "progress=false")
    done = run(environment / "bin" / command, *arguments, *options, *small, cwd=tmp_path)
    assert "acquisition" in done.stdout
    assert list(tmp_path.glob("outputs/*/*/report.json"))
