"""Ctrl-C and SIGTERM stop within a step, leave nothing half-written, and say what was saved."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from children import said, start
from common import MICRO
from sweeps import finished, micro, needs_papermill, wait_until, write_grid

from opensora_lite.io.files import TEMPORARY
from opensora_lite.tools import cli
from opensora_lite.training.trainer import Progress, Record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are others")
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def stop(work, folder: Path, number: int, when, what: str) -> tuple[int, str]:
    """The exit code and the last line of a process that gets the signal when that is true."""
    process, _ = start(work, folder)
    try:
        wait_until(lambda: when() or process.exitcode is not None, what)
        os.kill(process.pid, number)
        process.join(60)
        assert "Traceback" not in said(folder) and "C++" not in said(folder)
        return process.exitcode, said(folder).strip().splitlines()[-1]
    finally:
        process.kill()


def generate(folder: Path, *more: str):
    words = ["--prompt", "a red car", "a blue boat", "a bird", "--num-frames=2", "--image-size", "32", "32"]
    return cli.main(["generate", *words, "--num-sampling-steps=150", "--save-dir", str(folder / "out"), *more])


@pytest.mark.parametrize("number, code", SIGNALS)
def test_generate(tmp_path, number, code):
    first, second = tmp_path / "out" / "sample_0.mp4", tmp_path / "out" / "sample_1.mp4"
    exited, last = stop(generate, tmp_path, number, first.exists, "a first video")
    assert exited == code
    found = re.fullmatch(r"opensora-lite: stopped; (\d) of 3 video\(s\) are saved; the same command with (.*)", last)
    assert found and found[2] == "--skip-existing makes the others", last
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        f"sample_{i}.mp4" for i in range(int(found[1]))
    ]
    if second.exists():
        return  # a machine so fast that it had finished two
    before = first.stat().st_mtime_ns
    process, _ = start(partial(skipping, 2), tmp_path)
    process.join(300)
    assert process.exitcode == 0 and first.stat().st_mtime_ns == before and len(list((tmp_path / "out").iterdir())) == 3


def skipping(steps: int, folder: Path):
    return generate(folder, f"--num-sampling-steps={steps}", "--skip-existing")


def test_before_anything_was_saved_it_says_so(tmp_path):
    exited, last = stop(generate, tmp_path, signal.SIGINT, lambda: "loaded in" in said(tmp_path), "a model")
    assert exited == 130 and last.startswith("opensora-lite: stopped; 0 of 3 video(s) are saved")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def train(folder: Path):
    recipe = MICRO.replace("steps: 4,", "steps: 4000,").replace("save_every: 2", "save_every: 3")
    (folder / "long.yaml").write_text(recipe)
    return cli.main(["train", str(folder / "long.yaml"), "--out", str(folder / "run")])


@pytest.mark.parametrize("number, code", SIGNALS)
def test_train(tmp_path, number, code):
    from safetensors import safe_open

    checkpoint = tmp_path / "run" / "state" / "diffusion.safetensors"
    exited, last = stop(train, tmp_path, number, checkpoint.exists, "a checkpoint")
    assert exited == code
    found = re.search(
        r"stopped; (\d+) steps of diffusion were taken; .* continues from step (\d+), which is saved", last
    )
    with safe_open(checkpoint, "numpy") as file:
        step = int(file.metadata()["step"])
    assert found and int(found[2]) in (step, step - 3), last  # -3: stopped while this one was being written
    assert 0 <= int(found[1]) - int(found[2]) <= 3
    assert not list((tmp_path / "run").rglob(f"{TEMPORARY}*"))


def evaluate(folder: Path):
    return cli.main(["evaluate", "--out", str(folder / "out"), "--num-sampling-steps=30"])


def test_evaluate(tmp_path):
    started = time.time()
    exited, last = stop(evaluate, tmp_path, signal.SIGINT, lambda: time.time() > started + 3, "some time")
    assert (exited, last) == (130, "opensora-lite: stopped; nothing was saved")
    assert not (tmp_path / "out").exists()


@needs_papermill
def test_sweep(tmp_path):
    """Ctrl-C in a terminal reaches every process of the sweep; SIGTERM here too."""
    micro(tmp_path)
    path, out = write_grid(tmp_path, parameters={"pause": 0.5}, grid={"seed": list(range(8))}), tmp_path / "runs"
    command = [sys.executable, "-m", "opensora_lite.tools.cli", "sweep", str(path), "--out", str(out)]
    with open(tmp_path / "said.txt", "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: len(finished(out)) >= 2, "two finished runs")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        process.kill()
    last = said(tmp_path).strip().splitlines()[-1]
    found = re.search(r"stopped; (\d) of 8 runs are done and saved; the same command continues with the others", last)
    assert found and len(finished(out)) >= int(found[1]) >= 1, said(tmp_path)
    assert len((out / "results.csv").read_text().splitlines()) == 1 + int(found[1])
    assert not list(out.glob("*.failed"))


def test_in_python_it_stops_within_a_step_and_the_pipe_is_as_before(pipe):
    """As the button of a notebook does: the signal comes at any moment, from another thread."""
    small = dict(num_frames=2, image_size=32, num_sampling_steps=20, seed=3)
    before = pipe("a car", **small).frames
    steps: list = []

    def interrupt():
        steps.append("interrupted")
        os.kill(os.getpid(), signal.SIGINT)

    for after in (0.02, 0.1, 0.2):
        steps.clear()
        timer = threading.Timer(after, interrupt)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            pipe("a car", on_step=steps.append, **{**small, "num_sampling_steps": 500})
        timer.join()
        assert len(steps) - steps.index("interrupted") <= 2  # itself, and the end of the step that it fell into
        assert (pipe("a car", **small).frames == before).all()


def test_an_interrupt_that_a_callback_swallows_stops_at_the_next_step(capsys, monkeypatch, tmp_path):
    """As one that falls into the collection of garbage: Python prints it, and goes on."""
    steps = []

    def train(*_, on_step, **__):
        for _ in range(3):
            if steps:
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            steps.append(1)
            on_step(Progress("diffusion", Record(len(steps), "", 0.5, 0.1), 3, 1.0, 1.0, 0))

    monkeypatch.setattr("opensora_lite.training.train", train)
    assert cli.main(["train", "first_steps", "--out", str(tmp_path / "run")]) == 130
    assert len(steps) == 2 and "1 steps of diffusion were taken" in capsys.readouterr().err


def test_sigterm_is_as_before_when_a_command_has_ended(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["explain", "0"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["explain", "0"])))  # has no signals
    thread.start()
    thread.join()
    assert codes == [0]
