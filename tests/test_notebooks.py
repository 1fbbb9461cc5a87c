"""Every notebook runs from top to bottom, and what it says is true."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def _three_paths(said: str) -> None:
    """The model knows one person throughout, and another one on each of the three paths, until she is forgotten."""
    (new, taught), (known, by_heart) = re.findall(r"^(?:new|known): +(.*) -> (\w+)$", said, re.MULTILINE)
    before, *answers = re.findall(rf"^{re.escape(new)} +(\w+) +confidence", said, re.MULTILINE)
    assert answers == [taught, taught, taught, before]
    assert before != taught
    assert re.findall(rf"^{re.escape(known)} +(\w+) +confidence", said, re.MULTILINE) == [by_heart] * 5
    assert "the lent model is as it was: True" in said


SAYS = {"01_three_paths": _three_paths}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_says_what_is_so_and_is_committed_with_its_outputs(file: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code), "run `make notebooks` and commit the outputs"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    SAYS[file.stem]("".join(output.get("text", "") for cell in code for output in cell.outputs))
