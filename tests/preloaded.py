"""Imports that take long, done once for the processes that tests/hard forks (children.py).

Nothing is computed here, because threads that compute do not survive a fork.
"""

import importlib
import importlib.util
import os

os.environ["OMP_NUM_THREADS"] = "1"  # several of these processes at once would wait for each other's threads

import numpy as np

from opensora_lite.device import import_paddle, quiet
from opensora_lite.lean_imports import lean_paddlenlp


def load(*names: str):
    for name in names:
        if importlib.util.find_spec(name.split(".")[0]):
            importlib.import_module(name)


import_paddle()
numpy_bool = vars(np).get("bool")  # as in opensora_lite/vae.py
with quiet(), lean_paddlenlp():
    load("paddlenlp.transformers.t5.modeling", "ppdiffusers.models.autoencoder_kl")
if numpy_bool is not None:
    vars(np)["bool"] = numpy_bool
load(*(f"opensora_lite.{name}" for name in ("tools.cli", "liteworld.evaluate", "samplers", "trace", "training")))
load("av", "PIL.Image", "papermill", "nbclient", "pandas", "pyarrow.parquet")
