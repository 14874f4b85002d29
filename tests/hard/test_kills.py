"""Loss of nothing: kill -9 at any moment leaves nothing half-written under its final name, and no work is redone.

Each kind of work runs in a process that is killed: at a random moment, or right before one of its operations on files,
which an audit hook counts. What lies there is checked; then the same work runs again, to its end. `make test-hard`
kills 20 times, always at the same moments, `make fuzz` OPENSORA_KILLS=100 times.
"""

import csv
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from children import said, start
from common import MICRO
from sweeps import needs_papermill

from opensora_lite.io import files
from opensora_lite.io.checkpoints import read_safetensors
from opensora_lite.io.files import LEFT_BEHIND, TEMPORARY, atomic_write, write_json
from opensora_lite.tools import cli
from opensora_lite.video import Video, read_video

KILLS = int(os.environ.get("OPENSORA_KILLS", 20))
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
killed = {}  # kind of work -> kills

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


# ------------------------------------------------------------------------------------------------------ the processes


@dataclass(frozen=True)
class Whole:
    """What a run to the end took."""

    seconds: float
    operations: int


def to_the_end(work: Callable, folder: Path) -> Whole:
    process, told = start(work, folder)
    begin = time.perf_counter()
    process.join(300)
    seconds = time.perf_counter() - begin
    assert process.exitcode == 0, said(folder)[-3000:]
    return Whole(seconds, told.recv())


def kill(work: Callable, folder: Path, whole: Whole, i: int, rng: np.random.Generator) -> bool:
    """Kill a run: at a random moment where i is even, before a random operation where it is odd."""
    process, _ = start(work, folder, int(rng.integers(1, whole.operations + 1)) if i % 2 else None)
    if i % 2 == 0:
        process.join(rng.uniform(0, whole.seconds))
        process.kill()
    process.join(300)
    assert process.exitcode in (-signal.SIGKILL, 0), said(folder)[-3000:]  # 0: it was done before
    return process.exitcode != 0


def kill_again_and_again(name: str, share: float, tmp_path: Path, work: Callable, check: Callable, finished: Callable):
    """check(folder): what must be true of a killed run; returns what must not be done again. finished(folder, that)."""
    (tmp_path / "whole").mkdir()
    whole = to_the_end(work, tmp_path / "whole")
    finished(tmp_path / "whole", check(tmp_path / "whole"))
    rng, aimed, hit = np.random.default_rng(7 if KILLS == 20 else None), max(2, round(share * KILLS)), 0
    for i in range(2 * aimed):
        folder = tmp_path / str(i)
        folder.mkdir()
        hit += kill(work, folder, whole, i, rng)
        done = check(folder)
        to_the_end(work, folder)
        finished(folder, done)
        if hit == aimed:
            break
    killed[name] = hit
    assert hit == aimed, f"{hit} of {2 * aimed} runs were killed before their end"


def whole_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file under its final name, with what would change if it were written again."""
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(folder).parts)  # noqa: E731
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file() and not hidden(path) and path.name != "said.txt"
    }


# ----------------------------------------------------------------------------------------------------------- the work


PROMPTS = ["a red car", "a blue boat"]


def generate(folder: Path):
    small = ["--num-frames=3", "--num-sampling-steps=2", "--image-size", "32", "32", "--skip-existing"]
    for suffix in ("mp4", "gif", "png"):
        to = ["--save-dir", str(folder / "out"), "--sample-name", suffix, "--save-format", suffix]
        assert cli.main(["generate", "--prompt", *PROMPTS, *small, *to]) == 0


def test_generate(tmp_path):
    first = {}

    def check(folder):
        there = whole_files(folder)
        for path in there:
            if path.suffix in (".mp4", ".gif"):
                assert len(read_video(path)) == 3
        for sequence in (path for path in (folder / "out").glob("png_*")):
            assert sorted(os.listdir(sequence)) == ["frame_0000.png", "frame_0001.png", "frame_0002.png"]
        return there

    def finished(folder, done):
        there = whole_files(folder)
        assert {path: there[path] for path in done} == done  # nothing was made twice
        made = {path.relative_to(folder): path.read_bytes() for path in there}
        first.update(first or made)
        assert made == first and len(made) == len(PROMPTS) * (1 + 1 + 3)

    kill_again_and_again("generate", 0.2, tmp_path, generate, check, finished)


def noise(seed: int, frames: int) -> Video:
    return Video(np.random.default_rng(seed).integers(0, 256, (frames, 96, 96, 3), np.uint8))


def replace_videos(folder: Path):
    for name in ("a.mp4", "a.gif", "a"):
        if not (folder / name).exists() or len(seen(folder / name)) == 12:
            noise(0, 6).save(folder / name)
        noise(1, 12).save(folder / name)


def seen(path: Path) -> list:
    return sorted(path.glob("frame_*.png")) if path.is_dir() else read_video(path).frames


def test_videos_that_take_the_place_of_others(tmp_path):
    """At every moment the old one or the new one is there, whole; a folder perhaps under the name *.old-*."""

    def check(folder):
        for path in folder.glob("a*"):
            assert len(seen(path)) in (6, 12)
        for aside in folder.glob("a.old-*"):
            assert len(list(aside.iterdir())) == 6 and not (folder / "a").exists()
            aside.rename(folder / "a")

    def finished(folder, done):
        assert [len(seen(folder / name)) for name in ("a.mp4", "a.gif", "a")] == [12, 12, 12]

    kill_again_and_again("a video replaced", 0.25, tmp_path, replace_videos, check, finished)


def train(folder: Path):
    recipe = folder / "micro.yaml"
    recipe.write_text(MICRO.replace("save_every: 2", "save_every: 1"))
    assert cli.main(["train", str(recipe), "--out", str(folder / "run")]) == 0


def losses(folder: Path) -> list[dict]:
    path = folder / "run" / "state" / "diffusion_losses.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def test_training(tmp_path):
    first = []

    def check(folder):
        for path in whole_files(folder):
            if path.suffix == ".json":
                json.loads(path.read_text())
            if path.suffix == ".safetensors":
                [tensor.read() for tensor in read_safetensors(path).values()]
        checkpoint = folder / "run" / "state" / "diffusion.safetensors"
        step = 0
        if checkpoint.exists():
            from safetensors import safe_open

            with safe_open(checkpoint, "numpy") as file:
                step = int(file.metadata()["step"])
        assert len(losses(folder)) in (step, step + 1)
        (folder / "said.txt").rename(folder / "said_before.txt")
        return step

    def finished(folder, step):
        assert not said(folder) or f"step {step} of 6" in said(folder)  # it goes on from there
        first.extend(first or losses(folder))
        assert losses(folder) == first[:6] and len(losses(folder)) == 6
        check_model(folder / "run")

    kill_again_and_again("training", 0.15, tmp_path, train, check, finished)


def check_model(folder: Path):
    from opensora_lite.io.checkpoints import open_checkpoint, read_config

    for part in ("vae", "t5", "stdit"):
        assert open_checkpoint(folder / part) and read_config(folder / part)


def one_run(folder: Path):
    from sweeps import micro

    from opensora_lite.tools.grid import Grid
    from opensora_lite.tools.sweep import execute

    grid = Grid(micro(folder), {"log": str(folder / "log.txt")}, {"seed": [0, 1]})
    (folder / "out").mkdir(exist_ok=True)
    write_json(folder / "out" / "micro.ipynb", grid.source)
    for run in grid.runs:
        execute(run, folder / "out" / "micro.ipynb", folder, folder / "out", grid.has_output)


@needs_papermill
def test_runs_of_a_sweep(tmp_path):
    """A worker that is killed; tests/unit/test_sweep.py kills whole sweeps, and workers under a scheduler."""

    def check(folder):
        runs = [path for path in (folder / "out").glob("*") if path.is_dir() and not path.name.startswith(".")]
        for run in runs:
            assert json.loads((run / "run.json").read_text())["status"] == "finished"
            assert (run / "film.mp4").read_bytes() == b"film" and json.loads((run / "notebook.ipynb").read_text())
        log = (folder / "log.txt").read_text().splitlines() if (folder / "log.txt").exists() else []
        return len(runs), len(log)

    def finished(folder, before):
        (runs, logged), (now, log) = before, check(folder)
        assert now == 2 and log - logged == 2 - runs  # those that were finished did not run again
        assert not list((folder / "out").glob(".????????????-*"))

    kill_again_and_again("a run of a sweep", 0.15, tmp_path, one_run, check, finished)


def refresh(folder: Path):
    sys.path.insert(0, str(NOTEBOOKS))
    import refresh as module

    for name in ("a", "b"):
        path = folder / f"{name}.ipynb"
        if not path.exists():
            cell = dict(cell_type="code", metadata={}, source=f"'{name}' * 3", outputs=[], execution_count=None)
            path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=4)))
    assert module.main([str(folder / f"{name}.ipynb") for name in ("a", "b")]) == 0


def test_refresh_of_notebooks(tmp_path):
    def check(folder):
        for path in folder.glob("*.ipynb"):
            (cell,) = json.loads(path.read_text())["cells"]
            assert cell["execution_count"] in (None, 1) and len(cell["outputs"]) == (cell["execution_count"] or 0)

    def finished(folder, done):
        for name in ("a", "b"):
            (cell,) = json.loads((folder / f"{name}.ipynb").read_text())["cells"]
            assert cell["outputs"][0]["data"]["text/plain"] in (f"'{name * 3}'", [f"'{name * 3}'"])

    pytest.importorskip("nbclient")
    kill_again_and_again("a refresh of notebooks", 0.15, tmp_path, refresh, check, finished)


def store_compiled_models(folder: Path):
    """Compiled models of half a megabyte into the engine's cache folder; each that is made is logged."""
    from opensora_lite.runtime import engine

    os.environ["OPENSORA_CACHE"] = str(folder / "cache")
    for i in range(6):
        key, blob = {"number": i}, bytes([i]) * 500_000
        if engine.stored(key) is None:
            with open(folder / "log.txt", "a") as file:
                file.write(f"{i}\n")
            engine.store(key, blob)
        assert engine.stored(key) == blob


def test_the_cache_of_compiled_models(tmp_path):
    def check(folder):
        blobs = list((folder / "cache").glob("[!.]*.blob"))
        for path in blobs:
            content = path.read_bytes()
            assert len(content) == 500_032 and hashlib.sha256(content[32:]).digest() == content[:32]
        made = (folder / "log.txt").read_text().splitlines() if (folder / "log.txt").exists() else []
        return len(blobs), len(made)

    def finished(folder, before):
        (there, made), (now, log) = before, check(folder)
        assert now == 6 and log - made == 6 - there  # those that were there were not made again

    kill_again_and_again("the engine's cache", 0.1, tmp_path, store_compiled_models, check, finished)


def test_there_were_as_many_kills_as_were_asked_for():
    if len(killed) < 6:
        pytest.skip("not all tests above have run")
    print(f"\n{sum(killed.values())} kills: {killed}")
    assert sum(killed.values()) >= KILLS


# ------------------------------------------------------------------------------------------------- what is left behind


def test_what_dead_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    old, fresh, folder = (tmp_path / f"{TEMPORARY}{name}" for name in ("0.mp4", "1.mp4", "2"))
    folder.mkdir()
    (folder / "frame_0000.png").write_bytes(b"")
    other = tmp_path / ".other"
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, folder, other):
        os.utime(path, (time.time() - LEFT_BEHIND - 60,) * 2)
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([fresh.name, ".other", "a.json"])


def test_a_folder_takes_the_place_of_another_whole(tmp_path, monkeypatch):
    for number in range(2):
        with atomic_write(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / str(number)).write_text("x")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["1"]
    moved = []
    rename = os.rename

    def dies(source, target):
        if moved:
            raise SystemExit  # as a kill, but for what `finally` and `except` do
        moved.append(target)
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", dies)
    monkeypatch.setattr(files, "remove", lambda path: None)
    with pytest.raises(SystemExit), atomic_write(tmp_path / "a") as temporary:
        temporary.mkdir()
    assert moved[0].name.startswith("a.old-") and os.listdir(moved[0]) == ["1"]
