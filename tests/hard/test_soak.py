"""Many videos in one process: the memory stays flat, and the same seed gives the same bytes at the first and the last.

`make test-hard` makes 40; `make soak` makes 200 (OPENSORA_SOAK=200) and draws the memory into build/soak.png, and that
of compiled models, for alternating sizes, into build/soak-compiled.png.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_lite.runtime.engine import available

VIDEOS = int(os.environ.get("OPENSORA_SOAK", 40))
WARM = 20  # videos, after which all caches are filled
GROWTH = 1.15  # the most memory later, as a multiple of that after WARM videos
PICTURES = Path(__file__).parents[2] / "build"

PROGRAM = """
import hashlib, json, re, sys
from pathlib import Path

import numpy as np

from opensora_lite import OpenSora, Trace

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

pipe = OpenSora.from_pretrained("tiny")
if sys.argv[2] == "compiled":
    pipe.compile("fp32")
picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
requests = [
    dict(),
    dict(references=[picture], mask_strategy="0"),
    dict(loops=2, condition_frames=1),
    dict(sampler="ddim", guidance_scale=1.0),
    dict(sampler="dpm-solver", image_size=(48, 80)),
    dict(trace=Trace(latents=True, attention=["blocks.0.cross_attn"])),
]
memory, bytes_of = [], {}
for i in range(int(sys.argv[1])):
    request = dict(requests[i % len(requests)])
    video = pipe("a red car driving right", seed=i % len(requests), num_frames=4, num_sampling_steps=4, **request)
    video._repr_mimebundle_()
    path = video.save("a.mp4" if i % 2 else "a.gif")
    bytes_of.setdefault((i % len(requests), path.name), []).append(hashlib.sha256(path.read_bytes()).hexdigest())
    memory.append(resident())
print(json.dumps({"memory": memory, "different": sum(len(set(found)) > 1 for found in bytes_of.values())}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("way", ["uncompiled", "compiled"])
def test_many_videos_in_one_process(tmp_path, way):
    if way == "compiled" and not available():
        pytest.skip("this Paddle compiles nothing")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(VIDEOS), way]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    memory = found["memory"]
    if "OPENSORA_SOAK" in os.environ:
        draw(memory, PICTURES / ("soak.png" if way == "uncompiled" else "soak-compiled.png"))
    before, after = memory[WARM - 1], memory[-1]
    most = max(memory[WARM:])
    print(f"\n{VIDEOS} videos, {way}: {before:.0f} MB after {WARM}, {most:.0f} MB at most later, {after:.0f} MB last")
    assert found["different"] == 0
    assert most < GROWTH * before


def draw(memory: list[float], path: Path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(range(1, len(memory) + 1), memory)
    axes.axhline(GROWTH * memory[WARM - 1], linestyle=":", color="grey", label=f"{GROWTH - 1:.0%} above video {WARM}")
    axes.set(xlabel="videos made in one process", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\n{path}")
