"""Training steps per second of the small model, in Paddle and in PyTorch: `make bench` prints the table.

A step is forward, losses, backward and AdamW, without T5, Muon and the moving average, which cost all alike, on the
same batch from the same weights, so that after the same number of steps the losses agree too. The rows take turns (a
step of each, again and again), so that whatever else the machine does hits all alike; medians. Nothing is asserted.
PyTorch runs in a process of its own: `make peers` installs it.
"""

import json
import time

import numpy as np
import paddle
import pytest
from alternate import Row, alternate, table
from peers.client import NOT_INSTALLED, Peer, interpreter

from opensora_lite.machine import usable_cores
from opensora_lite.request import WEIGHTS
from opensora_lite.stdit2 import load_stdit
from opensora_lite.training.losses import TrainingSchedule, training_losses

LEARNING_RATE = 1e-4
TINY = WEIGHTS / "tiny" / "stdit"


def make_batch(videos: int, frames: int) -> dict:
    """A random batch of 64×64 pixels, as arrays under the names that training_losses takes."""
    rng = np.random.default_rng(0)
    numbers = {"num_frames": frames, "height": 64, "width": 64, "ar": 1, "fps": 120 if frames == 1 else 24}
    return {
        "x_0": rng.standard_normal((videos, 4, frames, 8, 8)).astype(np.float32),
        "noise": rng.standard_normal((videos, 4, frames, 8, 8)).astype(np.float32),
        "t": rng.integers(0, 1000, videos),
        "y": rng.standard_normal((videos, 1, 24, 96)).astype(np.float32),
        "mask": np.ones((videos, 24), np.int32),
        **{name: np.full(videos, value, np.float32) for name, value in numbers.items()},
    }


class Positional(paddle.nn.Layer):
    """The model with its keywords as plain arguments, which is all that the compiler of static graphs knows."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, timestep, y, mask, num_frames, height, width, ar, fps):
        sizes = dict(num_frames=num_frames, height=height, width=width, ar=ar, fps=fps)
        return self.model(x, timestep, y, mask, **sizes)


def paddle_step(batch: dict, compiled: bool):
    """A function that takes one training step and returns (loss, seconds)."""
    model = load_stdit(TINY)
    model.train()  # in evaluation mode a compiled layer has no backward pass
    optimizer = paddle.optimizer.AdamW(LEARNING_RATE, parameters=model.parameters(), weight_decay=0.01)
    schedule, tensors = TrainingSchedule(), {name: paddle.to_tensor(array) for name, array in batch.items()}
    denoiser = model
    if compiled:
        # full_graph: where it may cut the graph into pieces (the default), Paddle 3.3.1 computes something else
        static = paddle.jit.to_static(Positional(model), full_graph=True)

        def denoiser(x, timestep, y, mask, x_mask, *, num_frames, height, width, ar, fps):
            return static(x, timestep, y, mask, num_frames, height, width, ar, fps)

    def step():
        start = time.perf_counter()
        loss = training_losses(denoiser, schedule, **tensors)["loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss), time.perf_counter() - start

    return step


def torch_step(peer: Peer, batch: dict, name: str):
    config = json.loads((TINY / "config.json").read_text())
    weights = str(TINY / "model.safetensors")
    peer("trainer", batch, name=name, config=config, weights=weights, learning_rate=LEARNING_RATE)

    def step():
        answer = peer("step", name=name)
        return answer["loss"], answer["seconds"]

    return step


@pytest.fixture
def peer(tmp_path):
    """The PyTorch process, or None where it is not installed."""
    peer = Peer(interpreter(), tmp_path) if interpreter() else None
    yield peer
    if peer:
        peer.close()


@pytest.mark.parametrize("videos, frames", [(4, 16), (16, 1)])
def test_training_steps(peer, videos, frames):
    batch = make_batch(videos, frames)
    steps = {"Paddle, dynamic": paddle_step(batch, compiled=False)}
    steps["Paddle, to_static"] = paddle_step(batch, compiled=True)
    if peer:
        steps["PyTorch, eager"] = torch_step(peer, batch, f"{videos}×{frames}")

    rows, losses = {name: Row() for name in steps}, {}
    if not peer:
        rows["PyTorch, eager"] = Row(unable=NOT_INSTALLED)
    for name, step in list(steps.items()):
        try:
            _, rows[name].first = step()
        except Exception as error:  # a model that Paddle cannot compile is a row of the table too
            rows[name].unable = f"{type(error).__name__}: {static_message(error)}"
            del steps[name]

    def way(name, step):
        def turn(number):
            losses[name], seconds = step()
            return seconds

        return turn

    for name, seconds in alternate({name: way(name, step) for name, step in steps.items()}, turns=7).items():
        rows[name].seconds = seconds

    print(
        f"\n\nTraining the small model, {videos} × {frames}×64×64, Paddle {paddle.__version__}, {usable_cores()} cores"
    )
    reference = rows["Paddle, dynamic"].median
    lines = [["steps/s", "ms", "ratio", "first step", "loss after", ""]]
    for name, row in rows.items():
        if row.unable:
            lines.append(["—", "", "", "", "", f"{name}: {row.unable}"])
            continue
        numbers = [f"{1 / row.median:.2f}", f"{1000 * row.median:.0f}", f"{reference / row.median:.2f}"]
        lines.append([*numbers, f"{row.first:.1f} s", f"{losses[name]:.5f}", name])
    print(table(lines))


def static_message(error: Exception) -> str:
    """What an error of the compiler says, without the code that it quotes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(f"{type(error).__name__}:")]
    return (said or lines or [""])[0].removeprefix(f"{type(error).__name__}: ")
