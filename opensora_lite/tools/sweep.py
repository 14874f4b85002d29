"""A notebook, run with every combination of parameters: papermill executes it, dask shares the runs among workers.

    grid = read_grid("grid.yaml")
    table = sweep(grid, "runs", workers=2)     # a pandas.DataFrame with a row for each run

grid.yaml:

    notebook: ../notebooks/10_generate.ipynb   # relative to this file; left out: the course's 10_generate
    parameters: {num_frames: 8}                # the same in every run
    grid:                                      # every combination is a run
      guidance_scale: [1.0, 4.0, 8.0]
      seed: [0, 1]
    runs:                                      # and single ones
      - {guidance_scale: 20.0, seed: 0}

out/
    results.csv, results.parquet   parameters, recorded values, status, error, seconds, notebook, film of each run
    index.html                     the films side by side: the grid's last axis across, the one before it down
    NAME/                          a finished run: notebook.ipynb, film.mp4, run.json
    NAME.failed/                   what a failed one left; it is tried again when the sweep is started again
    STEM-HASH.ipynb                the notebook that the runs execute, as it was when the sweep began

NAME is a hash of a run's parameters and of the notebook's source, and a folder gets it when the run is complete: a
sweep that was killed goes on where it stopped, and a grid that has grown runs only what is new. What a notebook reads
besides (its references, the package, the weights) is not in the name: when that changes, sweep into another folder.

Notebooks are executed in their own folder, where relative paths such as those of `references` begin. What they show
under the MIME type of `widgets.figures.record` is recorded. If one has a parameter `output`, it is told where its film
goes: film.mp4 in the folder of the run.
"""

import ast
import contextlib
import difflib
import hashlib
import html
import importlib.util
import itertools
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias
from typing import Union
from urllib.parse import quote

from opensora_lite.errors import OpenSoraError, shown
from opensora_lite.io.files import atomic_write, check_writable, write_json
from opensora_lite.machine import usable_cores
from opensora_lite.tools.parameters import check_parameters

RESULT = "application/vnd.opensora-lite.result+json"  # what a notebook records
DEFAULT_NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_generate.ipynb"
FILM = "film.mp4"
OWN_COLUMNS = ("status", "error", "seconds", "notebook", "film")
RETRIES = 2  # of a run whose kernel or worker died; a cell that raises an error would raise it again
ANSWER_WITHIN = 20.0  # seconds, for a scheduler
MAX_RUNS = 10_000  # whose films one page can still show
SAVE_EVERY = 10.0  # seconds between two writings of the table and the gallery while runs go on

# ----------------------------------------------------------------------------------------------------------------------
# What is to be run
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One execution of the notebook, and the name of its folder."""

    name: str
    parameters: dict


@dataclass(frozen=True)
class Grid:
    """A notebook, and the parameters that it is to be run with.

    notebook: the file. parameters: name -> value, the same in every run. axes: name -> values; every combination is a
    run, the last axis changes fastest. singles: further runs, name -> value each. Raises OpenSoraError for whatever the
    notebook would not take.
    """

    notebook: Path
    parameters: dict = field(default_factory=dict)
    axes: dict[str, list] = field(default_factory=dict)
    singles: tuple[dict, ...] = ()
    source: dict = field(init=False, repr=False)  # the notebook without outputs
    known: dict[str, "Parameter"] = field(init=False, repr=False)  # what it can be told

    def __post_init__(self):
        notebook = Path(self.notebook).resolve()
        source = read_source(notebook)
        known = read_parameters(source, notebook)
        if not self.axes and not self.singles:
            raise OpenSoraError('there is nothing to run; give a grid, such as "grid: {seed: [0, 1]}", or runs')
        for name in self.axes:
            if name in self.parameters:
                raise OpenSoraError(f"{name} stands in both parameters and grid; leave it in one of them")
        parameters = check_values(known, self.parameters, "parameters", notebook)
        axes = {name: check_axis(known, name, values, notebook) for name, values in self.axes.items()}
        singles = [check_values(known, values, f"runs[{i}]", notebook) for i, values in enumerate(self.singles)]
        fields = dict(notebook=notebook, source=source, known=known)
        for name, value in (fields | dict(parameters=parameters, axes=axes, singles=tuple(singles))).items():
            object.__setattr__(self, name, value)
        if (number := len(singles) + math.prod(map(len, axes.values())) * bool(axes)) > MAX_RUNS:
            raise OpenSoraError(f"these are {number} runs; a sweep has {MAX_RUNS} at most")
        names = [run.name for run in self.runs]
        for i, name in enumerate(names):
            if name in names[:i]:  # points of a grid always differ
                raise OpenSoraError(f"runs[{i - len(self.points)}] is the same as another run")

    @property
    def takes_film(self) -> bool:
        """Whether the notebook has a parameter `output`, and so makes a film."""
        return "output" in self.known

    @property
    def points(self) -> list[dict]:
        """The combinations of the axes' values, without the other parameters."""
        if not self.axes:
            return []
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def chosen(self, run: Run) -> dict:
        """The parameters in which a run differs from others."""
        return {name: value for name, value in run.parameters.items() if self.parameters.get(name, ...) != value}

    @property
    def runs(self) -> list[Run]:
        """All runs: first the points of the grid, then the single ones."""
        chosen = [values | self.parameters | values for values in (*self.points, *self.singles)]
        # what only some runs choose has the notebook's own value in the others, which the table then shows
        own = {name: parameter.default for name, parameter in self.known.items() if parameter.default is not ...}
        names = list(dict.fromkeys(name for values in chosen for name in values))
        whole = [own | values for values in chosen]
        return [
            Run(run_name(self.source, values), {name: values[name] for name in names if name in values})
            for values in whole
        ]


@dataclass(frozen=True)
class Parameter:
    """What the cell tagged `parameters` says of one."""

    name: str
    kind: object  # as annotated; object without an annotation, or with one that is not made of KINDS
    default: object  # ... where it is not a literal


def read_grid(path: str | Path, notebook: str | Path | None = None) -> Grid:
    """The grid of a YAML file. notebook: another one than the file names.

    Raises OpenSoraError for a file that cannot be read, and for whatever the notebook would not take.
    """
    path = Path(path)
    values = read_yaml(path)
    known = ("notebook", "parameters", "grid", "runs")
    kinds = {"notebook": str, "parameters": dict, "grid": dict, "runs": list}
    try:
        for name, value in values.items():
            if name not in known:
                raise OpenSoraError(f"{name!r} is unknown{nearest(name, known)}; known are {', '.join(known)}")
            if not isinstance(value, kinds[name]):
                wanted = {str: "a path", dict: "a group of names and values", list: "a list"}[kinds[name]]
                raise OpenSoraError(f"{name} must be {wanted}, not {value!r}")
        singles = values.get("runs", [])
        for i, single in enumerate(singles):
            if not isinstance(single, dict):
                raise OpenSoraError(f"runs[{i}] must be a group of names and values, not {single!r}")
        if notebook is None:
            notebook = path.parent / values["notebook"] if "notebook" in values else DEFAULT_NOTEBOOK
        return Grid(Path(notebook), values.get("parameters", {}), values.get("grid", {}), tuple(singles))
    except OpenSoraError as error:
        raise OpenSoraError(f"{path}: {error}") from None


def read_yaml(path: Path) -> dict:
    """The names and values of a YAML file. Raises OpenSoraError where it has none, or has a name twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a name that stands twice in a group, where YAML's own would silently take the last."""

        def construct_mapping(self, node, deep=False):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{name} stands twice", node.value[i][0].start_mark
                    )
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise OpenSoraError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise OpenSoraError(f"{path} is no text file; a grid is written in YAML") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:  # a list as a name, a 13th month …
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise OpenSoraError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise OpenSoraError(f"{path} must hold names and values, such as grid: {{seed: [0, 1]}}, not {values!r:.60}")
    return values


def read_source(path: Path) -> dict:
    """A notebook as JSON, without its outputs: what it does does not depend on them.

    Raises OpenSoraError where it cannot be read.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        notebook["metadata"].pop("widgets", None)
        canonical(notebook).encode()  # a ValueError where text holds half a character
    except FileNotFoundError:
        raise OpenSoraError(f"notebook {path} does not exist") from None
    except OSError as error:
        raise OpenSoraError(f"notebook {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OpenSoraError(f"{path} is no Jupyter notebook of format 4") from error
    return notebook


def read_parameters(source: dict, path: Path) -> dict[str, Parameter]:
    """What is assigned in the first cell tagged `parameters`, name -> Parameter.

    papermill.inspect_notebook reads line by line, and drops what has an annotation with | or a second = (in a comment,
    say); Python's own parser drops nothing. Raises OpenSoraError where there is no such cell, or no Python in it.
    """
    tagged = [cell for cell in source["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if not tagged:
        raise OpenSoraError(f'notebook {path} has no cell tagged "parameters", and so nothing can be set from outside')
    try:
        lines = ast.parse(tagged[0]["source"]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
        raise OpenSoraError(f"the parameters of notebook {path} cannot be read: {error}") from None
    found = {}
    for line in lines:
        targets = [line.target] if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [])
        for target in targets:
            if isinstance(target, ast.Name):
                kind = kind_of(line.annotation) if isinstance(line, ast.AnnAssign) else object
                found[target.id] = Parameter(target.id, kind, literal(line.value))
    return found


KINDS = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}


def kind_of(annotation: ast.expr):
    """The type that an annotation names; object where it is not made of KINDS, None, list[…] and |."""
    match annotation:
        case ast.Name(name) if name in KINDS:
            return KINDS[name]
        case ast.Constant(None):
            return None
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[kind_of(left), kind_of(right)]  # noqa: UP007  None | None is no kind
        case ast.Subscript(ast.Name("list"), items):
            return GenericAlias(list, (kind_of(items),))
    return object


def literal(node):
    """The value of a literal as JSON has it, tuples as lists; ... for anything else."""
    try:
        return json.loads(json.dumps(ast.literal_eval(node)))
    except (ValueError, TypeError, RecursionError, MemoryError):
        return ...


def check_values(known: dict[str, Parameter], values: dict, where: str, notebook: Path) -> dict:
    """The values as they are handed over; `where` is how errors call them. Raises OpenSoraError: see check_value."""
    return {
        name: check_value(find(known, name, where, notebook), value, f"{where}.{name}", notebook)
        for name, value in values.items()
    }


def check_axis(known: dict[str, Parameter], name: str, values, notebook: Path) -> list:
    """The values of one axis as they are handed over. Raises OpenSoraError for none, and for one that stands twice."""
    parameter, where = find(known, name, "grid", notebook), f"grid.{name}"
    if not isinstance(values, (list, tuple)):
        raise OpenSoraError(f"{where} must be a list, such as [{text_of(values)}], not {values!r}")
    if not values:
        raise OpenSoraError(f"{where} is an empty list, with which there are no runs; give it values")
    values = [check_value(parameter, value, f"{where}[{i}]", notebook) for i, value in enumerate(values)]
    texts = [canonical(value) for value in values]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise OpenSoraError(f"{where} has {text} twice")
    return values


def find(known: dict[str, Parameter], name, where: str, notebook: Path) -> Parameter:
    """The parameter of a name. Raises OpenSoraError where the notebook has none, or where it is the sweep's to set."""
    if name == "output" and name in known:
        raise OpenSoraError(f"{where}: leave out output; the sweep gives every run a place of its own for its film")
    if name not in known:
        raise OpenSoraError(
            f"{where}: {notebook.name} has no parameter {name!r}{nearest(name, known)}; it has {', '.join(known)}"
        )
    return known[name]


def nearest(name, known) -> str:
    """A question for a misspelt name; empty where none of the known ones is near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def check_value(parameter: Parameter, value, where: str, notebook: Path):
    """The value as it is handed over. Raises OpenSoraError where it is not of the kind that is declared."""
    try:
        value = json.loads(json.dumps(value))  # tuples become lists
        canonical(value).encode()
    except UnicodeEncodeError:
        raise OpenSoraError(f"{where} is {value!a:.60}: text with half a character (a lone surrogate)") from None
    except (TypeError, ValueError, RecursionError):
        raise OpenSoraError(
            f"{where} is {shown(value)}, which is no number, text or list; in YAML, put dates in quotes"
        ) from None
    if parameter.kind is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # 4 and 4.0 are one run
    try:
        check_parameters({parameter.name: parameter.kind}, {parameter.name: value})
    except OpenSoraError as error:
        problem = str(error).partition("; papermill passes")[0]  # the advice is for its command line
        raise OpenSoraError(f"{where}: {problem}") from None
    except TypeError:  # a kind that check_parameters does not know is not checked
        pass
    if parameter.name == "references":
        for path in value if isinstance(value, list) else []:
            if isinstance(path, str) and not (notebook.parent / path).exists():
                raise OpenSoraError(
                    f"{where}: {path} does not exist; relative paths begin at the notebook's folder, {notebook.parent}"
                )
    return value


def canonical(value) -> str:
    """The same text for the same value, whatever the order of names: 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def run_name(source: dict, parameters: dict) -> str:
    """Twelve hexadecimal digits for a notebook and all of its parameters."""
    cells = [[cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])] for cell in source["cells"]]
    return hashlib.sha256(canonical([cells, parameters]).encode()).hexdigest()[:12]


def describe(parameters: dict) -> str:
    """guidance_scale 4.0, seed 0"""
    return ", ".join(f"{name} {text_of(value) or '(empty)'}" for name, value in parameters.items())


def text_of(value) -> str:
    """A value as people read it: texts as they are, others as JSON."""
    return value if isinstance(value, str) else canonical(value)


# ----------------------------------------------------------------------------------------------------------------------
# One run, on a worker
# ----------------------------------------------------------------------------------------------------------------------


def execute(run: Run, notebook: Path, cwd: Path, out: Path, takes_film: bool) -> dict:
    """Execute the notebook as one run says, and return its row. A cell that raises an error makes a failed row.

    Everything is written to a folder under a temporary name, which gets its own when it is complete. Two workers may
    do the same run (dask had lost sight of one): the first to be complete stays. Raises what is not the notebook's
    fault, such as a kernel that was killed: dask then tries again.
    """
    import papermill

    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # "python3" is this Python, not one that a user registered
    quiet_papermill()
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
                *(without_fields(path) for path in (notebook, target)),
                run.parameters | ({"output": str(temporary / FILM)} if takes_film else {}),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=300,
                # not cwd=, which would change that of the whole worker, with threads that run other notebooks
                resources={"metadata": {"path": str(cwd)}},
                extra_arguments=["--IPKernelApp.log_level=40"],  # else it says that TCP is not encrypted
            )
        except papermill.PapermillExecutionError as failure:
            error = ": ".join([failure.ename, *failure.evalue.strip().splitlines()[:1]])
        seconds = round(time.perf_counter() - start, 2)
        folder = final if error is None else out / f"{run.name}.failed"
        recorded = read_recorded(target)
        target.write_text(renamed(target.read_text(encoding="utf-8"), temporary, folder), encoding="utf-8")
        row = {
            "parameters": run.parameters,
            "recorded": json.loads(renamed(json.dumps(recorded), temporary, Path(folder.name))),
            "status": "finished" if error is None else "failed",
            "error": error,
            "seconds": seconds,
            "notebook": f"{folder.name}/{target.name}",
            "film": f"{folder.name}/{FILM}" if (temporary / FILM).is_file() else None,
        }
        write_json(temporary / "run.json", row)
        return put_in_place(temporary, folder, row)
    except FileNotFoundError:
        if done := read_row(final):  # another worker was first, and cleared away
            return done
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def quiet_papermill():
    """Without its remarks on names that it overlooks, which read_parameters does not."""
    import logging

    logging.getLogger("papermill").setLevel(logging.ERROR)


def without_fields(path: Path) -> str:
    """papermill fills in {names} in paths; here braces are braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def read_recorded(notebook: Path) -> dict:
    """What an executed notebook recorded: all its outputs of the MIME type, the later ones above the earlier."""
    values: dict = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            values |= output.get("data", {}).get(RESULT, {})
    return values


def renamed(text: str, temporary: Path, folder: Path) -> str:
    """JSON in which paths into the temporary folder lead to the one that takes its place."""
    return text.replace(json.dumps(str(temporary))[1:-1], json.dumps(str(folder))[1:-1])


def put_in_place(temporary: Path, folder: Path, row: dict) -> dict:
    """Give a complete run its name; returns its row, or that of another worker which was first."""
    if row["status"] == "failed":
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return row
    try:
        os.rename(temporary, folder)
    except OSError:
        if done := read_row(folder):
            return done
        shutil.rmtree(folder)  # somebody has taken parts of it away
        os.rename(temporary, folder)
    # what earlier attempts left, those of killed workers too
    for other in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(folder.with_name(f"{folder.name}.failed"), ignore_errors=True)
    return row


def read_row(folder: Path) -> dict | None:
    """The row of a complete run; None where there is none."""
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
    """Run the whole grid into the folder `out`, or go on where an earlier call was stopped.

    workers: processes on this machine that run one notebook at a time each, and share its processors. scheduler: the
    address of a dask scheduler instead, "tcp://host:port": its workers run the notebooks, as many at a time as they
    have threads. They need this package and the same files as this process: the notebook's folder, and `out`.
    say: called with lines of text. on_progress: called with the numbers of finished, failed and all runs.
    Returns a pandas.DataFrame, one row per run in the order of the grid, as in results.parquet. Failed runs have rows
    too. Raises OpenSoraError for what cannot be run, before anything is. In a script, call it below
    `if __name__ == "__main__":`, because the worker processes import the script.
    """
    grid = grid if isinstance(grid, Grid) else read_grid(grid)
    # 1. what can be said before anything runs
    check_installed()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise OpenSoraError(f"workers must be a whole number of at least 1, not {workers!r}")
    check_writable(Path(out))
    out = Path(out).resolve()
    runs = grid.runs
    rows = {run.name: row for run in runs if (row := read_row(out / run.name))}
    todo = [run for run in runs if run.name not in rows]
    number = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    say(f"{number} of {grid.notebook.name}: {len(rows)} done before, {len(todo)} to do")

    # 2. the runs
    def progress():
        failed = sum(row["status"] == "failed" for row in rows.values())
        on_progress(len(rows) - failed, failed, len(runs))

    progress()
    out.mkdir(parents=True, exist_ok=True)
    import pandas  # noqa: F401  now: one of its modules in which Ctrl-C falls while it is imported is lost for good

    if not todo:
        return save(grid, runs, rows, out)
    with connect(min(workers, len(todo)), scheduler, [grid.notebook, out], say) as client:
        saved = time.monotonic()
        try:
            for run, row in executed(client, todo, grid, out):
                rows[run.name] = row
                progress()
                if time.monotonic() - saved > SAVE_EVERY:
                    save(grid, runs, rows, out)
                    saved = time.monotonic()
        finally:
            table = save(grid, runs, rows, out)
    return table


def executed(client, todo: list[Run], grid: Grid, out: Path) -> Iterator[tuple[Run, dict]]:
    """Runs and their rows, as they are completed."""
    from dask.distributed import as_completed

    stem = f"{grid.notebook.stem}-{run_name(grid.source, {})}"
    notebook = out / f"{stem}.ipynb"
    write_json(notebook, grid.source)  # so that who edits the notebook now does not change the runs to come
    futures = {}
    for run in todo:
        key = f"{stem}-{run.name}-{secrets.token_hex(4)}"  # nobody else's: results of other clients are not ours
        arguments = (run, notebook, grid.notebook.parent, out, grid.takes_film)
        futures[client.submit(execute, *arguments, key=key, retries=RETRIES, pure=False)] = run
    for future in as_completed(list(futures)):
        run = futures.pop(future)
        try:
            row = future.result()
        except Exception as error:  # workers or kernels that died again and again, a full disk …
            lines = str(error).strip().splitlines()
            row = {
                "parameters": run.parameters,
                "recorded": {},
                "status": "failed",
                "error": ": ".join([type(error).__name__, *lines[-1:]]),
                "seconds": None,
                "notebook": None,
                "film": None,
            }
        future.release()
        yield run, row


@contextlib.contextmanager
def connect(workers: int, scheduler: str | None, paths: list[Path], say: Callable[[str], None]):
    """A dask client, of the scheduler at an address or of a cluster on this machine that ends with the block.

    Raises OpenSoraError where no scheduler answers, or its workers do not see the paths.
    """
    import logging

    from dask.distributed import Client, LocalCluster

    # what other packages want to have logged, paddlenlp everything, is no reason for dask to talk
    logging.getLogger("distributed").propagate = False
    if scheduler is None:
        environment = {
            "OMP_NUM_THREADS": str(max(1, usable_cores() // workers)),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else every kernel says that frozen modules cannot be debugged
        }
        options = dict(n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, env=environment)
        options["preload"] = [__name__]  # which runs dask_setup in every worker
        # its HTTP server on a free port of this machine alone, and no dashboard, which takes seconds to import
        options |= dict(dashboard_address="127.0.0.1:0", scheduler_kwargs=dict(dashboard=False))
        say(f"{workers} worker(s) on this machine, {environment['OMP_NUM_THREADS']} thread(s) for each")
        with LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=ANSWER_WITHIN)
    except (OSError, ValueError, TypeError) as error:
        raise OpenSoraError(f'no dask scheduler answers at "{scheduler}" (such as tcp://host:8786): {error}') from error
    with client:
        seen = client.run(missing, paths, on_error="return")
        say(f"{len(seen)} worker(s) of {scheduler}" + ("" if seen else "; waiting for one"))
        for worker, absent in seen.items():
            if isinstance(absent, Exception):
                raise OpenSoraError(f"worker {worker} cannot run notebooks: {type(absent).__name__}: {absent}")
            if absent:
                raise OpenSoraError(
                    f"worker {worker} does not see {', '.join(absent)}; workers need the same folders as this process"
                )
        yield client


def dask_setup(worker):
    """Called by dask in a worker process of our own: Ctrl-C, which reaches it too, is for who started the sweep."""
    import signal

    signal.signal(signal.SIGINT, lambda *_: None)  # a notebook's kernel begins with the usual handler again


def missing(paths: list[Path]) -> list[str]:
    """Which of the paths this worker does not see. Raises ImportError where it lacks what a run needs."""
    import ipykernel  # noqa: F401
    import papermill  # noqa: F401

    return [str(path) for path in paths if not path.exists()]


def check_installed():
    """Raise OpenSoraError where what only sweeps need is not installed."""
    for name in ("papermill", "ipykernel", "distributed", "pandas", "pyarrow"):
        if importlib.util.find_spec(name) is None:  # an import would take seconds
            raise OpenSoraError(
                f"a sweep needs {name}, which is not installed: pip install 'opensora-lite[notebook]' brings it"
            )


# ----------------------------------------------------------------------------------------------------------------------
# What came out
# ----------------------------------------------------------------------------------------------------------------------


def save(grid: Grid, runs: list[Run], rows: dict[str, dict], out: Path):
    """Write results.csv, results.parquet and index.html; returns the table."""
    table = tabulate([rows[run.name] for run in runs if run.name in rows])
    with atomic_write(out / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    with atomic_write(out / "results.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_write(out / "index.html") as temporary:
        temporary.write_text(gallery(grid, runs, rows), encoding="utf-8")
    return table


def tabulate(rows: list[dict]):
    """A pandas.DataFrame of rows: parameters, recorded values, status, error, seconds, notebook, film.

    Nested values have dotted names, lists are JSON. What is recorded under the name of a parameter is left out where it
    only repeats it, and called recorded.NAME where it does not.
    """
    import pandas

    columns = {}

    def add(name: str, values: list):
        columns[name] = column(values)

    for name in dict.fromkeys(name for row in rows for name in row["parameters"]):
        add(f"parameter.{name}" if name in OWN_COLUMNS else name, [row["parameters"].get(name) for row in rows])
    flat = [flattened(row["recorded"]) for row in rows]
    for name in dict.fromkeys(name for values in flat for name in values):
        if all(name in row["parameters"] and values.get(name, ...) in (..., row["parameters"][name])
               for row, values in zip(rows, flat, strict=True)):  # fmt: skip
            continue
        taken = name in OWN_COLUMNS or name in columns
        add(f"recorded.{name}" if taken else name, [values.get(name) for values in flat])
    for name in OWN_COLUMNS:
        add(name, [row[name] for row in rows])
    return pandas.DataFrame(columns)


def flattened(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def column(values: list):
    """A pandas.Series of one type, which CSV and parquet need: truth values, whole numbers, numbers or text."""
    import pandas

    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    gaps = len(present) < len(values)
    if present and kinds == {bool}:
        return pandas.Series(values, dtype="boolean" if gaps else "bool")
    if present and kinds == {int} and all(abs(value) < 2**63 for value in present):
        return pandas.Series(values, dtype="Int64" if gaps else "int64")
    if kinds <= {int, float} and present:
        return pandas.Series([math.nan if value is None else float(value) for value in values], dtype="float64")
    return pandas.Series([None if value is None else text_of(value) for value in values], dtype="string")


PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark }}
  :root {{ --text: #1a1a1a; --soft: #5f6368; --page: #ffffff; --box: #f1f3f4; --bad: #b3261e }}
  @media (prefers-color-scheme: dark) {{
    :root {{ --text: #e8eaed; --soft: #9aa0a6; --page: #16181b; --box: #23262a; --bad: #f2b8b5 }}
  }}
  body {{ margin: 2rem; font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page) }}
  h1 {{ font-size: 1.4rem; margin: 0 }}
  h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem }}
  p, summary, figcaption, th {{ color: var(--soft); font-size: .85rem; font-weight: normal }}
  .wide {{ overflow-x: auto }}
  th, td {{ padding: .25rem; vertical-align: top; text-align: left }}
  .single {{ display: flex; flex-wrap: wrap; gap: 1rem }}
  figure {{ margin: 0; width: 10rem }}
  video, .empty {{ display: block; width: 10rem; min-height: 4rem; border-radius: 4px; background: var(--box) }}
  video {{ image-rendering: pixelated }}
  .empty {{ box-sizing: border-box; padding: .5rem; overflow-wrap: anywhere; font-size: .85rem; color: var(--soft) }}
  .failed {{ color: var(--bad) }}
  dl {{ display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: .25rem 0; font-size: .8rem }}
  dt {{ color: var(--soft) }}
  dd {{ margin: 0; overflow-wrap: anywhere }}
  a {{ color: inherit }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""


def gallery(grid: Grid, runs: list[Run], rows: dict[str, dict]) -> str:
    """An HTML page with the films, grouped by the axes of the grid; whatever comes from outside is escaped."""
    failed = sum(row["status"] == "failed" for row in rows.values())
    parts = [f"{len(rows) - failed} of {len(runs)} runs finished"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"in all: {describe(grid.parameters)}"] if grid.parameters else []
    body = []
    if grid.axes:
        *outer, across = grid.axes
        down = outer.pop() if outer else None
        figures = iter(figure(grid.chosen(run), rows.get(run.name)) for run in runs)
        for values in itertools.product(*(grid.axes[name] for name in outer)):
            if values:
                body.append(f"<h2>{html.escape(describe(dict(zip(outer, values, strict=True))))}</h2>")
            head = "".join(heading(across, value, "col") for value in grid.axes[across])
            lines = [f"<tr><td></td>{head}</tr>"]
            for value in grid.axes[down] if down else [None]:
                cells = "".join(f"<td>{next(figures)}</td>" for _ in grid.axes[across])
                lines.append(f"<tr>{heading(down, value, 'row') if down else '<td></td>'}{cells}</tr>")
            body.append('<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>")
    if grid.singles:
        body.append("<h2>single runs</h2>" if grid.axes else "")
        chosen = zip(runs[len(grid.points) :], grid.singles, strict=True)
        shown = [figure(grid.chosen(run), rows.get(run.name), describe(single)) for run, single in chosen]
        body.append('<div class="single">\n' + "\n".join(shown) + "\n</div>")
    title = html.escape(f"Sweep of {grid.notebook.name}")
    return PAGE.format(title=title, summary=html.escape("; ".join(parts)), body="\n".join(body))


def heading(name: str, value, scope: str) -> str:
    """A <th> for one value of an axis; scope: "row" or "col"."""
    return f'<th scope="{scope}">{html.escape(describe({name: value}))}</th>'


def figure(parameters: dict, row: dict | None, caption: str = "") -> str:
    """A run's film, or why there is none, with its recorded values folded below."""
    caption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    if row is None:
        return f'<figure><div class="empty">not yet</div>{caption}</figure>'
    link = f' <a href="{html.escape(quote(row["notebook"]))}">notebook</a>' if row["notebook"] else ""
    if row["status"] == "failed":
        shown = f'<div class="empty failed">{html.escape(row["error"])}</div>'
    elif row["film"]:
        label, source = html.escape(describe(parameters)), html.escape(quote(row["film"]))
        shown = f'<video src="{source}" aria-label="{label}" title="{label}" autoplay loop muted playsinline></video>'
    else:
        shown = '<div class="empty">no film</div>'
    values = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(number_of(value))}</dd>"
        for name, value in flattened(row["recorded"]).items()
    )
    folded = f"<details><summary>values{link}</summary><dl>{values}</dl></details>" if values else f"<p>{link}</p>"
    return f"<figure>{shown}{caption}{folded}</figure>"


def number_of(value) -> str:
    """A recorded value, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)
