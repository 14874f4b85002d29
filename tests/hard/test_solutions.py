"""The solutions of the rewritten lessons: with all of them in place of the starters, every check says "Right"."""

import nbformat
import pytest
from lesson_files import EXERCISE, FOLDER, NOTEBOOKS, prose, solutions_of, tags

nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install -e '.[cpu,notebook]'")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_solution_is_right(path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # "python3" is this Python, not one that a user has registered
    notebook, number = nbformat.read(path, as_version=4), ""
    solutions = solutions_of(prose(notebook))
    for cell in notebook.cells:
        number = (EXERCISE.findall(cell.source) or [number])[-1]
        if "exercise" in tags(cell):
            cell.source = solutions[number]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    checks = [cell for cell in notebook.cells if "check" in tags(cell)]
    said = ["".join(output.get("text", "") for output in cell.outputs).splitlines() for cell in checks]
    assert checks and all(lines and all(line.startswith("Right") for line in lines) for lines in said), said
