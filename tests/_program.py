"""Processes that have the heavy libraries from the start, for loading them takes a short program most of its time: they
are forked from a server that has loaded these, and nothing of this repository.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

HEAVY = ["torch", "transformers.models.llama.modeling_llama", "pyarrow.parquet", "pandas", "hydra", "faiss"]
SECONDS = 240


def forking() -> ForkServerContext:
    """Where processes are forked from that server: `forking().Process(...)`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def run_module(
    name: str,
    *arguments: str | Path,
    cwd: Path,
    expect: int = 0,
    env: Mapping[str, str] | None = None,
    input: str = "",
) -> subprocess.CompletedProcess[str]:
    """A module, run to its end as by `python -W ignore -m`; its exit status is to be `expect`."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, stream) for stream in ("stdin", "stdout", "stderr")]
        files[0].write_text(input)
        process = forking().Process(target=_run, args=(name, arguments, cwd, dict(env or os.environ), files))
        process.start()
        process.join(SECONDS)
        process.kill()
        process.join()
        said, complained = (file.read_text() for file in files[1:])
    assert process.exitcode == expect, said[-1500:] + complained[-1500:]
    return subprocess.CompletedProcess([name, *map(str, arguments)], expect, said, complained)


def _run(name: str, arguments: tuple[str | Path, ...], cwd: Path, env: dict[str, str], files: list[Path]) -> None:
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_CREAT | (os.O_WRONLY if number else os.O_RDONLY)), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (it stays open)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    warnings.simplefilter("ignore")
    sys.argv = [name, *map(str, arguments)]
    sys.path[0] = str(cwd)  # as -m has it
    runpy.run_module(name, run_name="__main__", alter_sys=True)
