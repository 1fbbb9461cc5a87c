"""The wheel: built, installed in a new environment, and used from another folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "outputs", "multirun", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    _run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


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


def test_an_installed_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # The dependencies are this environment's; the package itself must come from the wheel.
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = _run(python, "-c", "import memory_paths.retrieval as r; print(r.__file__)", cwd=tmp_path)
    assert str(site) in where
    said = _run(
        python,
        "-W",
        "ignore",
        "-m",
        "memory_paths",
        "path=icl",
        "stream.facts=12",
        "evaluation.samples=4",
        cwd=tmp_path,
    )
    assert "acquisition" in said
    assert list(tmp_path.glob("outputs/*/*/report.json"))
