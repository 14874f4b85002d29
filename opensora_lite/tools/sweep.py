"""Runs a notebook with every combination of parameters: papermill executes it, dask distributes the runs.

    grid = read_grid("grid.yaml")              # see grid.py
    table = sweep(grid, "runs", workers=2)     # a pandas.DataFrame with a row for each run

runs/
    results.csv, results.parquet   parameters, recorded values, status, error, seconds, notebook, film of each run
    index.html                     the videos side by side: the last axis across, the one before it down
    NAME/                          a finished run: notebook.ipynb, film.mp4, run.json
    NAME.failed/                   a failed run; it is tried again when the sweep is started again
    STEM-HASH.ipynb                the notebook that the runs execute, as it was when the sweep began

NAME is a hash of the run's parameters and of the notebook's source. A run is executed in a folder with a temporary name
that is renamed when the run is complete: a sweep that was killed continues where it stopped, and a grid that has grown
runs only what is new. Other files that the notebook reads (references, the package, weights) are not part of the hash:
sweep into another folder when they change.

Cells tagged `demonstration` are left out: they explain something to a reader, and a run doesn't need them.
Notebooks are executed in their own folder, where the relative paths of `references` begin. What they display with the
MIME type RESULT (`widgets.figures.record`) is recorded. A notebook with a parameter `output` gets the path film.mp4 in
the folder of the run.
"""

import contextlib
import glob
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opensora_lite.errors import OpenSoraError
from opensora_lite.io.files import RESULT, check_writable, write_json
from opensora_lite.machine import usable_cores
from opensora_lite.tools.grid import Grid, Run, read_grid, run_name
from opensora_lite.tools.results import FILM, save
from opensora_lite.validation import Count, check

__all__ = ["Grid", "read_grid", "sweep"]

NEEDED = ("papermill", "ipykernel", "distributed", "pandas", "pyarrow", "jinja2")  # of the extra [notebook]
RETRIES = 2  # of a run whose kernel or worker died; an error in a cell would only occur again
SCHEDULER_TIMEOUT = 20.0  # seconds
SAVE_EVERY = 10.0  # seconds between two updates of the table and the gallery

# ----------------------------------------------------------------------------------------------------------------------
# One run, on a worker
# ----------------------------------------------------------------------------------------------------------------------


def execute(run: Run, notebook: Path, cwd: Path, out: Path, has_output: bool) -> dict[str, Any]:
    """Execute the notebook with a run's parameters; returns its row of the table.

    An error in a cell makes a failed row. Raises if the kernel died; dask then tries again. Two workers may do the same
    run, when dask lost the connection to one of them: the first one to finish wins.
    """
    import papermill

    os.environ.setdefault(
        "JUPYTER_PREFER_ENV_PATH", "1"
    )  # "python3" is this Python, not a kernel that a user installed
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that its own parser overlooks
    final = out / run.name
    if done := read_row(final):
        return done
    temporary = out / f".{run.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    target = temporary / "notebook.ipynb"
    start = time.perf_counter()
    try:
        error = None
        try:
            papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, target)),  # it formats paths
                run.parameters | ({"output": str(temporary / FILM)} if has_output else {}),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=300,
                # cwd= would change the folder of the whole worker, whose other threads run other notebooks
                resources={"metadata": {"path": str(cwd)}},
                # no warning that TCP is not encrypted; no error where shutting down interrupts a kernel
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
        except papermill.PapermillExecutionError as failure:
            error = ": ".join([failure.ename, *failure.evalue.strip().splitlines()[:1]])
        seconds = round(time.perf_counter() - start, 2)
        folder = final if error is None else out / f"{run.name}.failed"
        text = target.read_text(encoding="utf-8")
        target.write_text(_with_path(text, temporary, folder), encoding="utf-8")
        row = make_row(
            run,
            error,
            recorded=json.loads(_with_path(json.dumps(recorded(text)), temporary, Path(folder.name))),
            seconds=seconds,
            notebook=f"{folder.name}/{target.name}",
            film=f"{folder.name}/{FILM}" if (temporary / FILM).is_file() else None,
        )
        write_json(temporary / "run.json", row)
        return put_in_place(temporary, folder, row)
    except FileNotFoundError:
        if done := read_row(final):  # another worker finished first and removed the temporary folder
            return done
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_row(run: Run, error: str | None, **values: Any) -> dict[str, Any]:
    """A row of the table, as run.json has it; values: recorded, seconds, notebook, film."""
    row = {"recorded": {}, "seconds": None, "notebook": None, "film": None} | values
    return row | {"parameters": run.parameters, "status": "failed" if error else "finished", "error": error}


def recorded(notebook: str) -> dict[str, Any]:
    """The values that an executed notebook recorded; later outputs replace earlier ones."""
    values: dict[str, Any] = {}
    for cell in json.loads(notebook)["cells"]:
        for output in cell.get("outputs", ()):
            values |= output.get("data", {}).get(RESULT, {})
    return values


def _with_path(text: str, temporary: Path, folder: Path) -> str:
    """JSON with the path of a folder in place of that of the temporary one."""
    return text.replace(json.dumps(str(temporary))[1:-1], json.dumps(str(folder))[1:-1])


def put_in_place(temporary: Path, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Rename the folder of a complete run; returns its row, or that of another worker which was first."""
    finished = row["status"] == "finished"
    try:
        os.rename(temporary, folder)
    except OSError:  # there is a folder already
        if finished and (done := read_row(folder)):
            return done
        shutil.rmtree(folder)  # an earlier failure, or a run of which somebody removed parts
        os.rename(temporary, folder)
    if finished:
        for other in folder.parent.glob(f".{folder.name}-*"):  # of workers that were killed
            shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(folder.with_name(f"{folder.name}.failed"), ignore_errors=True)
    return row


def read_row(folder: Path) -> dict[str, Any] | None:
    """The row of a complete run; None if there is none."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ----------------------------------------------------------------------------------------------------------------------
# All runs
# ----------------------------------------------------------------------------------------------------------------------


def sweep(
    grid: Grid | str | Path,
    out: str | Path,
    workers: int = 2,
    scheduler: str | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int, int], None] = lambda finished, failed, total: None,
):
    """Execute all runs of a grid into the folder `out`, or continue where an earlier call stopped.

    workers: processes on this machine, one notebook at a time each; they share its cores. scheduler: the address of a
    dask scheduler instead, "tcp://host:port"; its workers run one notebook per thread. They need this package, and the
    notebook's folder and `out` under the same paths.
    say: called with lines of text. on_progress: called with the numbers of finished, failed and all runs.
    Returns a pandas.DataFrame, one row per run in the order of the grid, as in results.parquet; failed runs have rows
    too. Raises OpenSoraError before anything runs. In a script, call it below `if __name__ == "__main__":`, because the
    worker processes import the script.
    """
    # 1. checks
    check_installed()
    check(Count, workers, "workers")
    grid = grid if isinstance(grid, Grid) else read_grid(grid)
    check_writable(Path(out))
    out = Path(out).resolve()
    rows = {run.name: row for run in grid.runs if (row := read_row(out / run.name))}
    todo = [run for run in grid.runs if run.name not in rows]
    if todo and not rows and set(out.glob(f"{glob.escape(grid.notebook.stem)}-*.ipynb")) - {copy_of(grid, out)}:
        say(f"{grid.notebook.name} was edited since the last sweep into {out.name}: all runs are new, none is reused")
    number = f"{len(grid.runs)} run" + ("s" if len(grid.runs) > 1 else "")
    say(f"{number} of {grid.notebook.name}: {len(rows)} done before, {len(todo)} to do")

    def progress() -> None:
        failed = sum(row["status"] == "failed" for row in rows.values())
        on_progress(len(rows) - failed, failed, len(grid.runs))

    progress()
    out.mkdir(parents=True, exist_ok=True)
    import pandas  # noqa: F401  here, not in `save`: Ctrl-C during its import would leave it half imported

    if not todo:
        return save(grid, rows, out)

    # 2. runs
    with connect(min(workers, len(todo)), scheduler, [grid.notebook, out], say) as client:
        saved = time.monotonic()
        try:
            for run, row in completed(client, todo, grid, out):
                rows[run.name] = row
                progress()
                if time.monotonic() - saved > SAVE_EVERY:
                    save(grid, rows, out)
                    saved = time.monotonic()
        finally:
            table = save(grid, rows, out)
    return table


def completed(client: Any, todo: list[Run], grid: Grid, out: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Execute runs with a dask client; yields them and their rows as they are completed."""
    from dask.distributed import as_completed

    notebook = copy_of(grid, out)
    write_json(notebook, without_demonstrations(grid.source))  # a copy: later edits don't change the runs of this sweep
    arguments = dict(notebook=notebook, cwd=grid.notebook.parent, out=out, has_output=grid.has_output)
    futures = client.map(execute, todo, **arguments, retries=RETRIES, pure=False)
    run_of = dict(zip(futures, todo, strict=True))
    for future in as_completed(futures):
        try:
            row = future.result()
        except Exception as error:  # a kernel or worker that died every time, a full disk …
            last_line = str(error).strip().splitlines()[-1:]
            row = make_row(run_of[future], ": ".join([type(error).__name__, *last_line]))
        yield run_of[future], row


def copy_of(grid: Grid, out: Path) -> Path:
    """The copy of the notebook that the runs execute; another source has another name."""
    return out / f"{grid.notebook.stem}-{run_name(grid.source, {})}.ipynb"


def without_demonstrations(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without its cells tagged `demonstration`."""
    cells = [cell for cell in notebook["cells"] if "demonstration" not in cell["metadata"].get("tags", ())]
    return notebook | {"cells": cells}


@contextlib.contextmanager
def connect(workers: int, scheduler: str | None, paths: list[Path], say: Callable[[str], None]):
    """A dask client of the scheduler at an address, or of a cluster on this machine that ends with the block.

    Raises OpenSoraError if no scheduler answers, or if its workers don't see the paths.
    """
    from dask.distributed import Client, LocalCluster

    logging.getLogger("distributed").propagate = False  # paddlenlp makes the root logger print everything
    if scheduler is None:
        environment = {
            "OMP_NUM_THREADS": str(max(1, usable_cores() // workers)),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning of every kernel that frozen modules are not debugged
        }
        say(f"{workers} worker(s) on this machine, {environment['OMP_NUM_THREADS']} thread(s) each")
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            env=environment,
            preload=[__name__],  # calls dask_setup in every worker
            dashboard_address="127.0.0.1:0",  # a free port of this machine only,
            scheduler_kwargs=dict(dashboard=False),  # without the dashboard, whose import takes seconds
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError, TypeError) as error:
        raise OpenSoraError(f'no dask scheduler answers at "{scheduler}" (such as tcp://host:8786): {error}') from error
    with client:
        found = client.run(missing, paths, on_error="return")
        say(f"{len(found)} worker(s) of {scheduler}" + ("" if found else "; waiting for one"))
        for worker, absent in found.items():
            if isinstance(absent, Exception):
                raise OpenSoraError(f"worker {worker} cannot run notebooks: {type(absent).__name__}: {absent}")
            if absent:
                raise OpenSoraError(
                    f"worker {worker} does not see {', '.join(absent)}; workers need the same folders as this process"
                )
        yield client


def dask_setup(worker: object) -> None:
    """Called by dask in our own worker processes: Ctrl-C in a terminal reaches them too, and is the main process's."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which kernels would inherit


def missing(paths: list[Path]) -> list[str]:
    """The paths that this worker doesn't see. Raises ImportError if it lacks what a run needs."""
    import ipykernel  # noqa: F401
    import papermill  # noqa: F401

    return [str(path) for path in paths if not path.exists()]


def check_installed() -> None:
    """Raise OpenSoraError if a package that only sweeps need is not installed."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:  # importing them takes seconds
            raise OpenSoraError(
                f'a sweep needs {name}, which is not installed; run pip install -e ".[cpu,notebook]" in the checkout'
            )
