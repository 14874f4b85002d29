"""How long the parts of a video take with the small model: `make bench` prints the table. Nothing is asserted.

Medians of five. Machines differ and are busy with other things: compare rows of one run, not of two.
"""

import statistics
import subprocess
import sys
import time

import paddle

from opensora_lite import OpenSora
from opensora_lite.machine import usable_cores
from opensora_lite.samplers import Guidance

RUNS = 5


def median(function) -> float:
    """Milliseconds of a call, the median of five after one to warm up."""
    function()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def child(program: str) -> float:
    """Milliseconds of a whole Python process."""
    return median(lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True))


def test_the_small_model(tmp_path):
    rows = [("python -c pass", child("pass"))]
    rows.append(("import opensora_lite", child("import opensora_lite")))
    rows.append(("import paddle", child("import opensora_lite, paddle")))
    rows.append(
        ("load the small model, imports included", child("import opensora_lite as o; o.OpenSora.from_pretrained()"))
    )
    program = (
        f"from opensora_lite.cli import main; main({['generate', '--prompt', 'a car', '--save-dir', str(tmp_path)]})"
    )
    rows.append(("opensora-lite generate, 16×64×64, 30 steps", child(program)))

    pipe = OpenSora.from_pretrained("tiny")
    y, mask = pipe.text.encode(["a red car driving right on the ocean at sunset"])
    z = paddle.randn([1, 4, 16, 8, 8])
    sizes = dict(num_frames=16, height=64, width=64, ar=1, fps=24)
    guided, plain = (Guidance(pipe.stdit, y, mask, scale, **sizes) for scale in (4.0, 1.0))
    rows.append(("text encoder, 1 caption", median(lambda: pipe.text.encode(["a red car"]))))
    rows.append(("a denoising step, guided", median(lambda: guided(z, 500).epsilon.numpy())))
    rows.append(("a denoising step, guidance 1", median(lambda: plain(z, 500).epsilon.numpy())))
    rows.append(("VAE, decoding 16 frames", median(lambda: pipe.vae.decode(z).numpy())))
    rows.append(("a whole video, 30 steps, loaded", median(lambda: pipe("a car"))))
    a, b = paddle.randn([1024, 1152]), paddle.randn([1152, 4608])
    rate = 2 * 1024 * 1152 * 4608 / 1e6 / median(lambda: paddle.matmul(a, b).numpy())

    print(
        f"\n\nPaddle {paddle.__version__}, {usable_cores()} cores, matrix product of 1024×1152×4608: {rate:.0f} GFLOP/s"
    )
    for name, milliseconds in rows:
        print(f"{milliseconds:10.1f} ms  {name}")
