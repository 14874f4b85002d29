"""Sweeps: what a grid may hold, and that no run is lost or done twice, whoever is killed."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sweeps import LONG, PARAMETERS, WORK, finished, micro, needs_papermill, row, wait_until, write_grid

from opensora_lite import OpenSoraError
from opensora_lite.io.fingerprints import weights_id
from opensora_lite.request import model_folder
from opensora_lite.tools import cli, results, sweep
from opensora_lite.tools.grid import Grid, declared_parameters, read_grid, read_notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def folder(tmp_path) -> Path:
    micro(tmp_path)
    return tmp_path


def logged(folder: Path) -> Counter:
    path = folder / "log.txt"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


# -------------------------------------------------------------------------------------------------------------- grids


def test_every_combination_is_a_run_and_the_last_axis_changes_fastest(folder):
    grid = read_grid(write_grid(folder, parameters={"prompt": "a boat"}, grid={"scale": [1, 2.5], "seed": [0, 1]}))
    assert [run.parameters for run in grid.runs] == [
        {"scale": scale, "seed": seed, "prompt": "a boat"} for scale in (1.0, 2.5) for seed in (0, 1)
    ]
    assert grid.notebook == folder / "micro.ipynb" and grid.has_output
    assert [grid.chosen(run) for run in grid.runs][1] == {"scale": 1.0, "seed": 1}


def test_single_runs_follow_and_what_a_run_leaves_open_is_the_notebooks_default(folder):
    grid = read_grid(write_grid(folder, grid={"seed": [0, 1]}, runs=[{"scale": 9}, {"prompt": "b", "seed": 5}]))
    assert [run.parameters for run in grid.runs] == [
        {"seed": 0, "scale": 4.0, "prompt": "a car"},
        {"seed": 1, "scale": 4.0, "prompt": "a car"},
        {"seed": 0, "scale": 9.0, "prompt": "a car"},
        {"seed": 5, "scale": 4.0, "prompt": "b"},
    ]


def test_a_name_depends_on_the_values_and_the_notebook_and_on_nothing_else(folder):
    def names(**values):
        return [run.name for run in read_grid(write_grid(folder, **values)).runs]

    first = names(grid={"seed": [0, 1], "scale": [4, 5]})
    assert len(set(first)) == 4
    assert set(names(grid={"scale": [5.0, 4.0], "seed": [1, 0]})) == set(first)
    assert names(grid={"seed": [0]}) == first[:1]  # scale is 4.0 by default
    assert names(grid={"seed": [0, 1], "scale": [4, 5], "prompt": ["a car", "b"]})[::2] == first  # a grid may grow
    notebook = json.loads((folder / "micro.ipynb").read_text())
    notebook["cells"][1] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
    (folder / "micro.ipynb").write_text(json.dumps(notebook))
    assert names(grid={"seed": [0]}) == first[:1]
    micro(folder, work=WORK + "\n# more")
    assert names(grid={"seed": [0]}) != first[:1]


BAD = {  # the text of a grid file -> words of the message
    "grid: {seeds: [0]}": "micro.ipynb has no parameter 'seeds'; did you mean \"seed\"?",
    "parameters: {zebra: 1}\ngrid: {seed: [0]}": "no parameter 'zebra'; it has prompt, scale",
    "runs: [{seed: 1}, {sed: 1}]": "runs[1]",
    "grid: {seed: []}": "grid.seed is an empty list",
    "grid: {seed: 3}": "grid.seed must be a list",
    "grid: {seed: [0, 1, 0]}": "grid.seed has 0 twice",
    "grid: {scale: [4, 4.0]}": "grid.scale has 4.0 twice",
    "grid: {seed: [a]}": "grid.seed[0] must be a whole number",
    "grid: {prompt: [no]}": "grid.prompt[0] must be text",
    "grid: {log: [!!timestamp 2024-01-01]}": "grid.log[0] must be text",
    "grid: {anything: [!!timestamp 2024-01-01]}": "grid.anything[0] must be text, a number",
    "grid: {output: [x]}": "leave out output",
    "grid: {references: [[wave.png]]}": "wave.png does not exist",
    "parameters: {seed: 1}\ngrid: {seed: [1]}": "both parameters and grid",
    "grid: {seed: [1]}\nruns: [{seed: 1, scale: 4}]": "runs[0] is the same as another run",
    "runs: [3]": "runs[0] must be a dictionary",
    "grid: [1]": "grid must be a dictionary",
    "grid: {3: [1]}": "must be text, not 3",
    "parameters: {seed: 1}": "nothing to run",
    "paramters: {}": "paramters is unknown; did you mean parameters",
    "notebook: nowhere.ipynb\ngrid: {seed: [1]}": "nowhere.ipynb cannot be read",
    "notebook: grid.yaml\ngrid: {seed: [1]}": "not a Jupyter notebook",
    "notebook: [a]": "notebook must be text",
    "grid: [1": "column 9",
    "grid: {seed: [1], seed: [2]}": "line 1, column 19: seed stands twice",
    "": "the file must be a dictionary",
}


@pytest.mark.parametrize("text", BAD)
def test_a_grid_that_cannot_be_run_is_refused(tmp_path, text):
    micro(tmp_path, PARAMETERS + "anything = 0")
    path = tmp_path / "grid.yaml"
    path.write_text(text if text.startswith("notebook") or not text else f"{text}\nnotebook: micro.ipynb")
    with pytest.raises(OpenSoraError) as error:
        read_grid(path)
    assert str(error.value).startswith(str(path)) and BAD[text] in str(error.value)


def test_a_file_that_is_none_is_refused(folder):
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    for name, message in (("nowhere.yaml", "cannot be read: No such file"), ("bytes.yaml", "not a text file")):
        with pytest.raises(OpenSoraError, match=message):
            read_grid(folder / name)


def test_runs_leave_out_demonstrations(folder):
    notebook = read_notebook(folder / "micro.ipynb")
    shown = {"cell_type": "code", "metadata": {"tags": ["check", "demonstration"]}, "source": "1 / 0"}
    assert sweep.without_demonstrations(notebook | {"cells": [*notebook["cells"], shown]}) == notebook


def test_a_notebook_without_parameters_is_refused(folder):
    path = micro(folder)
    path.write_text(path.read_text().replace('"parameters"', '"others"'))
    with pytest.raises(OpenSoraError, match='no cell tagged "parameters"'):
        Grid(path, axes={"seed": [0]})


def test_numbers_and_dates_are_read_as_they_are_meant(folder):
    path = folder / "grid.yaml"
    path.write_text("notebook: micro.ipynb\ngrid: {scale: [1e0, 2, 1.5e-3], prompt: [2024-01-01]}")
    assert read_grid(path).axes == {"scale": [1.0, 2.0, 0.0015], "prompt": ["2024-01-01"]}


def test_without_a_name_it_is_the_courses_notebook_10(folder):
    (folder / "grid.yaml").write_text("grid: {seed: [0, 1]}")
    assert read_grid(folder / "grid.yaml").notebook == NOTEBOOKS / "13_generate.ipynb"


@needs_papermill
def test_papermill_sees_no_parameter_that_read_parameters_does_not():
    import papermill

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        source = read_notebook(path)
        if not source["metadata"]:
            continue  # somebody is writing it, and has not run it yet
        found = declared_parameters(source, path)
        assert papermill.inspect_notebook(path).keys() <= found.keys()
        assert ... not in [parameter.default for parameter in found.values()]  # literals, all of them


# ------------------------------------------------------------------------------------------------ tables and gallerie


@needs_papermill
def test_a_table_has_one_type_for_each_column(tmp_path):
    import pandas

    rows = [
        row({"seed": 0, "scale": 1, "size": [8, 8], "error": "e"}, {"a": {"b": 1, "c": None}, "seed": 0, "scale": 2}),
        row({"seed": 1, "scale": 2.5, "size": "8", "error": "e"}, error="ValueError: no"),
    ]
    table = results.tabulate(rows)
    assert list(table.columns) == [
        *("seed", "scale", "size", "parameter.error", "a.b", "a.c", "recorded.scale"),  # the seed only repeats itself
        *("status", "error", "seconds", "notebook", "film"),
    ]
    assert table["size"].tolist() == ["[8, 8]", "8"] and table["scale"].tolist() == [1.0, 2.5]
    assert str(table["a.b"].dtype) == "Int64" and pandas.isna(table["a.b"][1])
    table.to_parquet(tmp_path / "t.parquet")
    assert pandas.read_parquet(tmp_path / "t.parquet")["seed"].tolist() == [0, 1]


def test_a_gallery_escapes_what_comes_from_outside_and_has_a_place_for_every_run(folder):
    attack = '<script>alert("1")</script>'
    grid = Grid(
        folder / "micro.ipynb", {"log": attack}, {"prompt": [attack, "b"], "seed": [0, 1], "scale": [1]}, ({"seed": 7},)
    )
    runs = grid.runs
    rows = {
        runs[0].name: row(runs[0].parameters, {attack: attack}, film='a"b <c>/film.mp4'),
        runs[1].name: row(runs[1].parameters, error=f"ValueError: {attack}"),
        runs[2].name: row(runs[2].parameters, film=None),
        runs[4].name: row(runs[4].parameters),
    }
    page = results.gallery(grid, rows)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'src="a%22b%20%3Cc%3E/film.mp4"' in page
    assert page.count("<video ") == 2 and page.count("no video") == 1 and page.count("not yet") == 1
    assert "3 of 5 runs finished; 1 failed" in page
    assert page.count("<h2>") == 3 and page.count("<table>") == 2  # by prompt, and the single run
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page  # self-contained


def test_the_sweep_of_lesson_14_is_whole_and_of_the_weights_that_are_shipped():
    from opensora_lite import read_video

    folder = NOTEBOOKS / "assets" / "sweep"
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = read_grid(folder / "grid.yaml").points
    easy = [row for row in rows if row["study"] == "easy"]
    assert [{name: float(row[name]) for name in points[0]} for row in easy] == points
    assert [sum(row["study"] == study for row in rows) for study in ("grid", "edit")] == [4 * 100, 7 * 6]
    films = list(folder.glob("films/*.mp4"))
    assert len(films) == 24 + 7 * 6 and {len(read_video(path)) for path in films} == {8}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 600_000
    made_with = {row["weights"] for row in rows}
    shipped = weights_id(model_folder("tiny"))
    assert made_with == {shipped}, "the weights have changed: run notebooks/assets/sweep/make_sweep.py"


def test_the_results_of_lesson_12_are_of_the_weights_that_are_shipped():
    with open(NOTEBOOKS / "assets" / "evaluation" / "results.csv", newline="") as file:
        made_with = [row["weights"] for row in csv.DictReader(file)]
    assert len(made_with) == 300
    shipped = weights_id(model_folder("tiny"))
    assert set(made_with) == {shipped}, "the weights have changed: run notebooks/assets/evaluation/make_evaluation.py"


# ---------------------------------------------------------------------------------------------------------- whole runs


@needs_papermill
def test_a_sweep_of_24_runs_fails_where_it_must_and_goes_on_when_that_is_mended(folder, capsys):
    import pandas

    values = {"log": str(folder / "log.txt"), "needed": str(folder / "needed.txt")}
    axes = {"prompt": ["a car", "<script>alert(1)</script>"], "scale": [1.0, 2.0, 3.0], "seed": [0, 1, 2, 3]}
    path, out = write_grid(folder, parameters=values, grid=axes), folder / "runs {seed}"  # braces mean nothing

    assert cli.main(["sweep", str(path), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "24 runs of micro.ipynb: 0 done before, 24 to do" in said.out
    assert "failed: prompt a car, scale 1.0, seed 3: ValueError: " in said.out and "18 finished, 6 failed" in said.out
    assert said.err == ""
    assert len(logged(folder)) == 24 and set(logged(folder).values()) == {1}
    table = pandas.read_csv(out / "results.csv")
    assert list(table.columns) == [
        *("prompt", "scale", "seed", "log", "needed", "film_at", "psnr.mean", "psnr.of", "recorded.status"),
        *("status", "error", "seconds", "notebook", "film"),
    ]
    bad = table[table["status"] == "failed"]
    assert set(bad["seed"]) == {3} and bad["film"].isna().all()
    assert set(bad["error"]) == {f"ValueError: {folder / 'needed.txt'} <b>is not there</b>"}
    assert all("papermill-error-cell" in (out / name).read_text() for name in bad["notebook"])
    page = (out / "index.html").read_text()
    assert page.count("<video ") == 18 and "<script" not in page and "<b>is" not in page

    (folder / "needed.txt").touch()
    steps = []
    table = sweep.sweep(path, out, on_progress=lambda *numbers: steps.append(numbers))
    assert steps[0] == (18, 0, 24) and steps[-1] == (24, 0, 24)
    assert sorted(logged(folder).values()) == [1] * 18 + [2] * 6
    assert (table["status"] == "finished").all() and table["error"].isna().all()
    assert table["psnr.mean"].tolist() == [scale + seed for _ in (0, 1) for scale in (1, 2, 3) for seed in range(4)]
    assert table.equals(pandas.read_parquet(out / "results.parquet"))
    for name, film, film_at in zip(table["notebook"], table["film"], table["film_at"], strict=True):
        assert (out / film).read_bytes() == b"film" and film_at == film
        assert str(out / film) in (out / name).read_text()  # what it printed leads to where the film is now
    assert not list(out.glob("*.failed")) and not list(out.glob(".*"))

    assert cli.main(["sweep", str(path), "--out", str(out)]) == 0  # nothing is left to do
    said = capsys.readouterr().out
    assert "24 done before, 0 to do" in said and "was edited" not in said
    assert sum(logged(folder).values()) == 30


@needs_papermill
def test_a_sweep_whose_notebook_was_edited_says_that_nothing_is_reused(folder):
    path, out, said = write_grid(folder, grid={"seed": [0]}), folder / "runs", []
    sweep.sweep(path, out, 1, say=said.append)
    sweep.sweep(write_grid(folder, grid={"seed": [0, 1]}), out, 1, say=said.append)  # a grid may grow
    assert not any("was edited" in line for line in said)
    notebook = json.loads((folder / "micro.ipynb").read_text())
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "New."})
    (folder / "micro.ipynb").write_text(json.dumps(notebook))
    sweep.sweep(path, out, 1, say=said.append)
    assert sum("micro.ipynb was edited" in line for line in said) == 1


@needs_papermill
def test_a_killed_sweep_goes_on_where_it_stopped(folder):
    path = write_grid(folder, parameters={"log": str(folder / "log.txt"), "pause": 0.5}, grid={"seed": list(range(8))})
    out = folder / "runs"
    process = subprocess.Popen([sys.executable, "-m", "opensora_lite.tools.cli", "sweep", str(path), "--out", str(out)])
    wait_until(lambda: len(finished(out)) >= 3, "three finished runs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(out)
    assert 3 <= len(before) < 8

    table = sweep.sweep(path, out)
    assert (table["status"] == "finished").all() and len(table) == len(finished(out)) == 8
    names = {run.name: f"a car 4.0 {run.parameters['seed']}" for run in read_grid(path).runs}
    times = logged(folder)
    assert {times[names[name]] for name in before} == {1}
    assert set(times) == set(names.values()) and sum(times.values()) <= 8 + 2  # those in the making, on two workers
    assert not list(out.glob(".????????????-*"))


@pytest.fixture
def cluster(folder, monkeypatch):
    """The address of a scheduler with two workers, processes of their own, and these processes."""
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    dask = [sys.executable, "-m"]
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    processes = [
        subprocess.Popen(
            [*dask, "distributed.cli.dask_scheduler", *options, "--port", "0", "--host", "127.0.0.1"], **quiet
        )
    ]
    try:
        for _ in range(2):
            worker = [
                *dask,
                "distributed.cli.dask_worker",
                *options,
                "--no-nanny",
                "--nthreads",
                "1",
                "--death-timeout",
                "60",
            ]
            processes.append(subprocess.Popen(worker, **quiet))
        wait_until(file.exists, "the scheduler's file")
        yield json.loads(file.read_text())["address"], processes
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


@needs_papermill
def test_a_killed_worker_of_another_cluster_loses_nothing(folder, cluster):
    address, (_, *workers) = cluster
    from dask.distributed import Client

    with Client(address, timeout=LONG) as client:
        client.wait_for_workers(2, timeout=LONG)
    with (
        pytest.raises(OpenSoraError, match=r"worker tcp.* does not see .*nowhere"),
        sweep.connect(2, address, [folder / "nowhere"], print),
    ):
        pass

    path = write_grid(folder, parameters={"log": str(folder / "log.txt"), "pause": 0.5}, grid={"seed": list(range(8))})
    out, heard = folder / "runs", []

    def on_progress(finished, failed, total):
        if finished == 2 and workers[0].poll() is None:
            os.kill(workers[0].pid, signal.SIGKILL)

    table = sweep.sweep(path, out, scheduler=address, say=heard.append, on_progress=on_progress)
    assert workers[0].wait(LONG) == -signal.SIGKILL and heard[-1] == f"2 worker(s) of {address}"
    assert (table["status"] == "finished").all() and len(table) == len(finished(out)) == 8
    assert set(logged(folder)) == {f"a car 4.0 {seed}" for seed in range(8)}
    assert not list(out.glob(".????????????-*"))


# ---------------------------------------------------------------------------------------------------- the command line


def run(capsys, *arguments):
    code = cli.main(["sweep", *(str(argument) for argument in arguments)])
    return code, capsys.readouterr().err


def test_what_cannot_be_run_is_one_message_and_exit_code_2(folder, capsys, monkeypatch):
    path, out = write_grid(folder, grid={"seed": [0]}), folder / "runs"
    code, error = run(capsys, folder / "nowhere.yaml", "--out", out)
    assert code == 2 and "nowhere.yaml cannot be read" in error
    code, error = run(capsys, path, "--out", out, "--notebook", folder / "other.ipynb")
    assert code == 2 and "other.ipynb cannot be read" in error
    code, error = run(capsys, path, "--out", folder / "micro.ipynb" / "runs")
    assert code == 2 and "micro.ipynb is not a folder that may be written to" in error
    if importlib.util.find_spec("papermill"):
        code, error = run(capsys, path, "--out", out, "--workers", "0")
        assert code == 2 and "workers" in error
        monkeypatch.setattr(sweep, "SCHEDULER_TIMEOUT", 0.5)
        code, error = run(capsys, path, "--out", out, "--scheduler", "tcp://127.0.0.1:9")
        assert code == 2 and 'no dask scheduler answers at "tcp://127.0.0.1:9"' in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, error = run(capsys, path, "--out", out)
    assert code == 2 and "papermill" in error
    assert not list(out.glob("*/run.json"))


def test_who_stops_a_sweep_is_told_how_it_goes_on(folder, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep", stopped)
    code, error = run(capsys, write_grid(folder, grid={"seed": [0]}), "--out", folder / "runs")
    assert code == 130
    assert "stopped; 0 of 1 runs" in error
