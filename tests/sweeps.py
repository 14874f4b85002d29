"""Small notebooks, grids and rows for tests of sweeps."""

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LONG = 300  # seconds; a free machine takes a tenth
needs_papermill = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("papermill", "distributed", "pandas", "pyarrow")),
    reason="papermill, dask, pandas or pyarrow is not installed; pip install -e '.[cpu,notebook,dev]' brings them",
)

PARAMETERS = """
prompt: str = "a car"  # two = in a line, which papermill's own reading drops
scale: float = 4.0
seed: int = 0
log: str | None = None  # a file that each run appends a line to
needed: str = ""  # a file without which seed 3 fails
pause: float = 0.0
references: list[str] = []
output: str = ""
"""
WORK = """
import time
from pathlib import Path

from IPython.display import display

time.sleep(pause)
if log:
    with open(log, "a") as file:
        file.write(f"{prompt} {scale} {seed}\\n")
if needed and seed == 3 and not Path(needed).exists():
    raise ValueError(f"{needed} <b>is not there</b>\\n    it really is not")
Path(output).write_bytes(b"film")
print(output)
found = {"psnr": {"mean": scale + seed, "of": [1, 2]}, "seed": seed, "status": "good", "film_at": output}
display({"application/vnd.opensora-lite.result+json": found, "text/plain": "found"}, raw=True)
"""


def micro(folder: Path, parameters: str = PARAMETERS, work: str = WORK) -> Path:
    """A notebook of two cells that runs in no time."""
    cells = [
        {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": [], "execution_count": None}
        for tags, source in ((["parameters"], parameters), ([], work))
    ]
    path = folder / "micro.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
    return path


def write_grid(folder: Path, **values) -> Path:
    path = folder / "grid.yaml"
    path.write_text(json.dumps({"notebook": "micro.ipynb"} | values))  # JSON is YAML
    return path


def row(parameters: dict, recorded: dict | None = None, error: str | None = None, film: str | None = "x/film.mp4"):
    values = dict(parameters=parameters, recorded=recorded or {}, seconds=1.0, notebook="x/notebook.ipynb")
    return values | dict(error=error, status="failed" if error else "finished", film=None if error else film)


def finished(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("*/run.json") if not path.parent.name.endswith(".failed")}


def wait_until(condition: Callable[[], bool], what: str):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"not within {LONG} s: {what}"
        time.sleep(0.05)
