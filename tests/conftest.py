"""What every test module shares."""

# zlib comes before anything that may import paddle: libpaddle 2.6.2 exports its own zlib symbols, and a zlib module
# that is imported later binds to those and crashes (a segmentation fault in inflateReset2).
import zlib  # noqa: F401, I001

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference tensors that the original PyTorch implementations produced."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def recorded(golden):
    """recorded("t5/cases") -> {name: array} of a recorded safetensors file, "a.b" names nested as ["a"]["b"]."""
    from opensora_lite.checkpoints import read_safetensors

    def read(name: str) -> dict:
        tree = {}
        for key, tensor in read_safetensors(golden / f"{name}.safetensors").items():
            *cases, leaf = key.split(".")
            branch = tree
            for case in cases:
                branch = branch.setdefault(case, {})
            branch[leaf] = np.array(tensor.read())
        return tree

    return read


@pytest.fixture(scope="session")
def golden_stdit(golden):
    """golden_stdit("qknorm") -> one of the two small STDiT2 with recorded weights."""
    from opensora_lite.checkpoints import build, load, open_checkpoint
    from opensora_lite.stdit import COMPUTED, STDiT2, STDiT2Config

    def model(name: str):
        config = json.loads((golden / "stdit2_configs.json").read_text())[name]["config"]
        tensors = open_checkpoint(golden / f"stdit2_{name}_weights.safetensors")
        return load(build(STDiT2, STDiT2Config.from_dict(config)), tensors, computed=COMPUTED)

    return model


@pytest.fixture(scope="session")
def pipe():
    """The small model, loaded once."""
    from opensora_lite import OpenSora

    return OpenSora.from_pretrained("tiny")


def relative_error(a, b) -> float:
    """‖a − b‖ / ‖b‖"""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2), 1e-9)))
