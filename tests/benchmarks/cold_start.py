"""`opensora-lite generate` with the small model, taken apart: `python cold_start.py FOLDER` prints seconds as JSON,
for each part those of the clock and those of the processors.

The command runs as ever; functions of it are wrapped, and what one of them takes is not counted in those around it.
With `--full` paddlenlp runs its whole __init__, as it would without `lean_imports.lean_paddlenlp`.
"""

import time

LAST = (time.perf_counter(), 0.0)  # when the running part was last counted: clock, processors

import contextlib  # noqa: E402  the clock comes first
import functools  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from collections import defaultdict  # noqa: E402

SECONDS: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
STACK = ["everything else"]
FULL = "--full" in sys.argv


def count():
    """Count the time since the last call for the innermost part that is running."""
    global LAST
    now = (time.perf_counter(), time.process_time())
    for i in range(2):
        SECONDS[STACK[-1]][i] += now[i] - LAST[i]
    LAST = now


@contextlib.contextmanager
def part(name):
    """Counts the time of a block for `name`, and no longer for the part around it."""
    count()
    STACK.append(name)
    try:
        yield
    finally:
        count()
        STACK.pop()


def watch(module, path, name):
    """Count every call of `module.path` for `name`."""
    owner = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for step in classes:
        owner = getattr(owner, step)
    function = getattr(owner, attribute)

    @functools.wraps(function)
    def timed(*arguments, **keywords):
        with part(name):
            return function(*arguments, **keywords)

    setattr(owner, attribute, timed)


@functools.cache
def watch_models():
    """What cannot be watched before Paddle is imported, for it imports Paddle."""
    with part("import the model's modules"):
        for module in ("runtime.engine", "samplers", "stdit2", "text", "vae"):
            importlib.import_module(f"opensora_lite.{module}")
    for module in ("text", "vae"):
        block = importlib.import_module("opensora_lite.lean_imports").lean_paddlenlp
        block = contextlib.nullcontext if FULL else block
        importlib.import_module(f"opensora_lite.{module}").lean_paddlenlp = timed_block(block)
    for module, function in (("stdit2", "load_stdit"), ("text", "load_text_encoder"), ("vae", "load_vae")):
        watch(f"opensora_lite.{module}", function, "load the three models")
    watch("opensora_lite.text", "TextEncoder.encode", "encode the caption")
    watch("opensora_lite.runtime.engine", "Programs._load", "compile")
    watch("opensora_lite.samplers", "CFG.__call__", "denoise: the model")
    watch("opensora_lite.vae", "FrameVAE.decode", "decode")


def timed_block(block):
    """The context manager `block`, with its body counted as imports."""

    @contextlib.contextmanager
    def timed():
        with part("import ppdiffusers, paddlenlp"), block():
            yield

    return timed


def main(folder):
    """Run the command into `folder`; print what its parts took."""
    with part("import opensora_lite, numpy, argparse"):
        cli = importlib.import_module("opensora_lite.tools.cli")
        pipeline = importlib.import_module("opensora_lite.pipeline")
        device = importlib.import_module("opensora_lite.device")
    watch("opensora_lite.pipeline", "plan", "check the request (ftfy, bs4)")
    watch("opensora_lite.video", "Video.save", "write the file (PyAV)")
    set_device = device.set_device

    def watched(name):
        with part("import paddle"):
            chosen = set_device(name)
        watch_models()
        return chosen

    device.set_device = pipeline.set_device = watched
    sys.argv[1:] = ["generate", "--prompt", "a red car on the ocean at noon", "--save-dir", folder]
    code = cli.main()
    count()
    print(json.dumps(SECONDS))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
