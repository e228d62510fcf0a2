"""The notebook runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
FEW = {"SEQUENCES": 1, "STEPS": 1, "TRAINING_SEQUENCES": 2}


def test_the_notebook_runs_and_ends_with_an_image(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", ())]
    few = {**FEW, "FOLDER": str(tmp_path)}
    assert all(f"{name} = " in parameters.source for name in few)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in few.items())
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    printed = "".join(out.get("text", "") for cell in code for out in cell.outputs)
    assert "trainable params" in printed and "+GMMT" in printed
    assert any("image/png" in out.get("data", {}) for out in code[-1].outputs)
    assert (tmp_path / "fusion" / "README.md").is_file()
