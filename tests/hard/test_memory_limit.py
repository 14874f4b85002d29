"""Memory that ends: a message that says what to make smaller, exit code 2, and the pipe is usable as before.

What is refused before it starts is tested in test_memory.py. Here that is off, and memory really ends, by a limit on
the address space (RLIMIT_AS) of a process that has computed something before. Each megabyte more lets a run come
further, and fail at another place: in the weights, the text encoder, the transformer, the VAE.
"""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from children import ended
from common import MICRO

from opensora_lite import OpenSora, OpenSoraError
from opensora_lite.errors import NeedsMemory, OutOfMemoryError
from opensora_lite.runtime import memory
from opensora_lite.tools import cli

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
SMALL = dict(num_frames=2, num_sampling_steps=2, image_size=32)


def mapped() -> int:
    """Bytes of address space that this process has."""
    return int(re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def starve(megabytes: float):
    """Let this process have only so much more, after it has loaded all libraries, and let nothing refuse to start."""
    import resource

    memory.refuse_what_cannot_fit = lambda *_, **__: None
    OpenSora.from_pretrained("tiny")("a car", **SMALL)
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + int(megabytes * 2**20),) * 2)


def generate(megabytes: float, folder: Path):
    starve(megabytes)
    words = ["--num-frames=16", "--image-size", "128", "128", "--num-sampling-steps=2", "--prompt", "a car", "a boat"]
    words += ["--micro-batch-size=16"]  # otherwise as few frames at once as need be
    return cli.main(["generate", *words, "--batch-size=2", "--save-dir", str(folder / "out")])


@pytest.mark.parametrize("megabytes", [0, 0.5, 1, 4, 16, 40, 70, 100])
def test_generate(tmp_path, megabytes):
    code, output = ended(partial(generate, megabytes), tmp_path)
    assert code == 2 and "Traceback" not in output, output
    assert "opensora-lite: error: there is not enough memory" in output
    if "loaded in" in output:
        assert "for 2 video(s) of 16 frames of 128×128 pixels at once" in output
        assert "make batch_size, num_frames, image_size or micro_batch_size smaller" in output
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def call_twice(folder: Path):
    pipe = OpenSora.from_pretrained("tiny")
    before = pipe("a car", **SMALL).frames
    starve(40)
    for _ in range(3):  # an exception that held on to the memory would leave none for the next
        try:
            pipe("a car", num_frames=16, num_sampling_steps=2, image_size=256)
        except OutOfMemoryError as error:
            assert isinstance(error, OpenSoraError) and isinstance(error, MemoryError)
            kept = error
    assert "make num_frames, image_size or micro_batch_size smaller" in str(kept)
    assert (pipe("a car", **SMALL).frames == before).all()
    print("as before")


def test_a_pipe_is_usable_as_before(tmp_path):
    code, output = ended(call_twice, tmp_path)
    assert code == 0 and output.endswith("as before\n"), output


def train(megabytes: float, folder: Path):
    (folder / "micro.yaml").write_text(MICRO.replace("batch: 4", "batch: 512"))
    starve(megabytes)
    return cli.main(["train", str(folder / "micro.yaml"), "--out", str(folder / "run")])


@pytest.mark.parametrize("megabytes", [0, 2, 16])
def test_train(tmp_path, megabytes):
    code, output = ended(partial(train, megabytes), tmp_path)
    assert code == 2 and "Traceback" not in output and "there is not enough memory" in output, output
    if "T5 and STDiT2" in output:
        assert "for a training step" in output and "make batch of diffusion smaller; the last checkpoint" in output


def test_an_error_of_memory_holds_on_to_nothing():
    import gc
    import weakref

    def fails():
        large = np.zeros(10)
        references.append(weakref.ref(large))
        raise MemoryError("Unable to allocate 3. TiB for an array\n[Hint: …]")

    references = []
    with pytest.raises(OutOfMemoryError) as caught, NeedsMemory("a rug", "take a smaller one"):
        fails()
    gc.collect()
    message = "there is not enough memory for a rug (Unable to allocate 3. TiB for an array); take a smaller one"
    assert str(caught.value) == message and references[0]() is None


def first_products(folder: Path):
    """With too little for MKL, which Paddle loads at the first product."""
    import resource

    from opensora_lite.device import import_paddle, set_device
    from opensora_lite.errors import DeviceError

    import_paddle()
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + (40 << 20),) * 2)
    with pytest.raises(DeviceError, match="lack of memory"):
        set_device("cpu")


def test_what_paddle_computes_with_is_loaded_before_anything_else(tmp_path):
    code, output = ended(first_products, tmp_path)
    assert code == 0, output
