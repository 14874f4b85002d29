"""The same seed gives the same bits, fp32 on one machine: in every batch, every process, on any number of threads.

What makes it so: noise is drawn by numpy, one generator for each video; MKL computes each row of a product of matrices
as if it were alone (MKL_CBWR, set in opensora_lite/device.py). A Paddle without MKL, or on a GPU, has no such mode.
"""

import hashlib
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest

from opensora_lite import OpenSora
from opensora_lite.runtime.engine import available
from opensora_lite.runtime.offload import Resident
from opensora_lite.vae import FrameVAE

needs_mkl = pytest.mark.skipif(
    paddle.version.mkl() != "ON" or os.environ.get("MKL_CBWR") != "AUTO,STRICT",
    reason="bits depend on the batch where Paddle computes without MKL, or MKL_CBWR is set to something else",
)
PROMPTS = [  # of 6 to 28 tokens
    "a red car driving right",
    "a blue boat",
    "a green bird flying left over the desert at noon, and a yellow balloon, and a white boat, and much more",
    "the city at night",
]


def final_latents(pipe, batch_size: int, **settings) -> list[np.ndarray]:
    """float32 [C, T, h, w] of each prompt; some with references, in part kept, in part redrawn."""
    rng = np.random.default_rng(0)
    picture, clip = (rng.integers(0, 256, (frames, 64, 64, 3), np.uint8) for frames in (1, 5))
    found = {}

    def on_step(progress):
        if progress.step.index == 0:
            for i, latent in enumerate(progress.step.sample.numpy()):
                found[progress.loop, progress.first + i] = latent

    given, strategies = [None, [picture], [clip], None], [None, "0", "0,0,0,0,5,0.5", None]
    pipe(PROMPTS, references=given, mask_strategy=strategies, batch_size=batch_size, on_step=on_step, **settings)
    return [found[key] for key in sorted(found)]


@needs_mkl
@pytest.mark.parametrize(
    "settings",
    [
        dict(num_frames=16, num_sampling_steps=3),
        dict(num_frames=5, num_sampling_steps=6),
        dict(num_frames=5, num_sampling_steps=6, sampler="ddim", guidance_scale=1.0),
        dict(num_frames=8, num_sampling_steps=6, sampler="dpm-solver", image_size=(48, 80), cfg_channel=3),
        dict(num_frames=6, num_sampling_steps=4, image_size=(40, 56), loops=2, condition_frames=2),
    ],
    ids=["64x64", "5 frames", "ddim", "dpm-solver", "loops"],
)
def test_in_every_batch(pipe, settings):
    """Where the patches of all frames are a multiple of four."""
    alone = final_latents(pipe, 1, **settings)
    for batch_size in (2, 3, 4):
        for i, (a, b) in enumerate(zip(alone, final_latents(pipe, batch_size, **settings), strict=True)):
            assert np.array_equal(a, b), f"video {i}, batches of {batch_size}: up to {np.abs(a - b).max():.1e} apart"


@needs_mkl
def test_in_every_batch_of_the_compiled_model(pipe, monkeypatch):
    if not available():
        pytest.skip("this Paddle compiles nothing")
    compiled = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings).compile("fp32")
    settings = dict(num_frames=8, num_sampling_steps=6)
    alone, together = (final_latents(compiled, batch_size, **settings) for batch_size in (1, 4))
    monkeypatch.setattr(pipe, "_worth_compiling", lambda *request: False)
    for a, b, dynamic in zip(alone, together, final_latents(pipe, 1, **settings), strict=True):
        assert np.array_equal(a, b) and 0 < np.abs(a - dynamic).max() < 1e-4


@pytest.mark.parametrize(
    "settings", [dict(num_frames=7, image_size=(48, 80)), dict(num_frames=5, image_size=(72, 104))]
)
def test_in_every_batch_up_to_rounding(pipe, settings):
    """Elsewhere a few numbers are computed outside of full vector registers, by Paddle's rsqrt for example."""
    alone, together = (final_latents(pipe, batch_size, num_sampling_steps=6, **settings) for batch_size in (1, 4))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)


@needs_mkl
def test_in_every_micro_batch_of_the_vae(pipe):
    frames = np.random.default_rng(0).integers(0, 256, (7, 48, 80, 3), np.uint8)
    latents = pipe.encode(frames)
    for size in (1, 3, 7):
        vae = FrameVAE(pipe.vae.model, pipe.vae.scaling_factor, size)
        assert np.array_equal(vae.encode_frames(frames), latents)
        decoded = vae.decode(paddle.to_tensor(latents[None]))
        assert bool((decoded == pipe.vae.decode(paddle.to_tensor(latents[None]))).all())


PROGRAM = """
import hashlib
from opensora_lite import OpenSora
from opensora_lite.runtime.engine import available
video = OpenSora.from_pretrained("tiny")("a red car driving right", seed=4, num_frames=8, num_sampling_steps=5)
print(hashlib.sha256(video.frames.tobytes() + video.save("a.mp4").read_bytes()).hexdigest())
"""


@needs_mkl
def test_in_every_process_on_any_number_of_threads(pipe, tmp_path):
    video = pipe("a red car driving right", seed=4, num_frames=8, num_sampling_steps=5)
    again = pipe("a red car driving right", seed=4, num_frames=8, num_sampling_steps=5)
    assert np.array_equal(video.frames, again.frames)
    expected = hashlib.sha256(video.frames.tobytes() + video.save(tmp_path / "b.mp4").read_bytes()).hexdigest()
    for threads in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected, f"{threads} threads"
