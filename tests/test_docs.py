"""What goes with the documentation: the tutorial runs, and its pictures stay small."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOK = DOCS / "tutorials" / "prune_your_own_denoiser.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_keeps_outputs_of_a_whole_run() -> None:
    assert NOTEBOOK.stat().st_size < 2**20
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    # Nothing of the machine on which it ran.
    assert not re.search(r"/(home|root|work|tmp)/", NOTEBOOK.read_text(encoding="utf-8"))


def run(folder: Path, lengths: dict[str, int]) -> str:
    """Run the notebook with these values in its first cell; what the comparison prints."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(folder / NOTEBOOK.name, 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in lengths.items():
        first.source, count = re.subn(
            rf"^{name} = \d+", f"{name} = {value}", first.source, flags=re.M
        )
        assert count == 1, name
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=1000, resources=resources).execute()
    printed = [
        "".join(output.get("text", "") for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]
    return next(text for text in printed if "FID" in text)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    short = {"STEPS": 4, "MASK_STEPS": 3, "RECOVERY_STEPS": 3, "SAMPLES": 20}
    assert "learned, recovered" in run(tmp_path, short)


@pytest.mark.slow
def test_the_tutorial_recovers_what_it_says(tmp_path: Path) -> None:
    table = run(tmp_path, {"SAMPLES": 500})
    figures = {
        name.strip(): [float(text) for text in rest.split()]
        for name, rest in re.findall(r"^(\S.{22})(.*)$", table, re.M)
    }
    whole, cut = figures["whole network"][1], figures["learned, only cut"][1]
    assert whole < 8 and figures["learned, recovered"][1] < cut / 2
