"""The notebooks as they are committed, and the quickstart run with other parameters.

That their outputs are what the code gives today is what `pytest --nbval` compares (`make test`); it compares nothing
in a cell that was never run, which is why the execution counts are asserted here.
"""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RESULT = "application/vnd.opensora-lite.result+json"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def results(notebook: dict) -> list[dict]:
    """What the notebook recorded."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [output["data"][RESULT] for output in outputs if RESULT in output.get("data", {})]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_there_is_a_first_notebook():
    assert [path.name for path in NOTEBOOKS][:1] == ["00_quickstart.ipynb"]


def test_every_code_cell_was_run_in_order(path):
    counts = [cell["execution_count"] for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1)), f"python notebooks/refresh.py notebooks/{path.name} mends it"


def test_no_output_is_an_error_or_a_warning(path):
    outputs = [output for cell in code_cells(read(path)) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


def test_it_is_under_2_mb(path):
    assert path.stat().st_size < 2_000_000


def test_one_cell_holds_the_parameters(path):
    tagged = [cell for cell in code_cells(read(path)) if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1


def test_it_records_one_result(path):
    assert len(results(read(path))) == 1


def test_cell_ids_are_unique(path):
    ids = [cell["id"] for cell in read(path)["cells"]]
    assert len(set(ids)) == len(ids)


def test_the_quickstart_keeps_the_frames_it_is_given():
    result = results(read(FOLDER / "00_quickstart.ipynb"))[0]
    kept = result["kept_frames_psnr_db"]
    assert kept.keys() == {"image", "connect", "extend"}
    assert min(kept.values()) >= 50 > 20 > result["edited_frames_psnr_db"]
    assert result["colored_pixels"]["prompt"]["red"] > 10 * result["colored_pixels"]["prompt"]["blue"]
    assert result["colored_pixels"]["other_prompt"]["blue"] > 10 * result["colored_pixels"]["other_prompt"]["red"]


def test_papermill_runs_the_quickstart_with_other_parameters(tmp_path, monkeypatch):
    papermill = pytest.importorskip(
        "papermill", reason="papermill is not installed; pip install -e '.[cpu,notebook,dev]' brings it"
    )
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # "python3" is this Python, not one that a user has registered
    source, out = FOLDER / "00_quickstart.ipynb", tmp_path / "out.ipynb"
    chosen = {"steps": 2, "seed": 7, "edit_ratio": 0.5}
    assert papermill.inspect_notebook(source).keys() >= chosen.keys()  # papermill only warns of unknown ones
    papermill.execute_notebook(source, out, chosen, cwd=FOLDER, kernel_name="python3", progress_bar=False)
    notebook = read(out)
    injected = [cell for cell in code_cells(notebook) if "injected-parameters" in cell["metadata"].get("tags", ())]
    assert len(injected) == 1
    (result,) = results(notebook)
    assert (result["steps"], result["seed"]) == (2, 7)
    assert min(result["kept_frames_psnr_db"].values()) >= 40  # given frames are kept however few the steps are
