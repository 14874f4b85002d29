"""What every test module shares."""

# zlib comes before anything that may import paddle: libpaddle 2.6.2 exports its own zlib symbols, and a zlib module
# that is imported later binds to those and crashes (a segmentation fault in inflateReset2).
import zlib  # noqa: F401, I001

# Then opensora_lite: it settles threads before a test module imports paddle, and says so where it comes too late.
import opensora_lite

import importlib.util
import json
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from common import MICRO, MICRO_12

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")


HAS_WIDGETS = all(importlib.util.find_spec(name) for name in ("anywidget", "ipywidgets"))
collect_ignore_glob = [] if HAS_WIDGETS else ["unit/test_widgets_*.py", "browser/*"]


def pytest_report_header() -> str | None:
    return None if HAS_WIDGETS else "tests of widgets are left out: anywidget or ipywidgets is not installed"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference tensors that the original PyTorch implementations produced."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def recorded(golden):
    """recorded("t5/cases") -> {name: array} of a recorded safetensors file, "a.b" names nested as ["a"]["b"]."""
    from opensora_lite.io.checkpoints import read_safetensors

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
    from opensora_lite.io.checkpoints import build, load, open_checkpoint
    from opensora_lite.stdit2 import COMPUTED, STDiT2, STDiT2Config

    def model(name: str):
        config = json.loads((golden / "stdit2_configs.json").read_text())[name]["config"]
        tensors = open_checkpoint(golden / f"stdit2_{name}_weights.safetensors")
        return load(build(STDiT2, STDiT2Config.from_dict(config)), tensors, computed=COMPUTED)

    return model


@pytest.fixture(scope="session")
def golden_stdit3(golden):
    """golden_stdit3("qknorm") -> one of the two small STDiT3 with recorded weights."""
    from opensora_lite.io.checkpoints import build, load, open_checkpoint
    from opensora_lite.stdit3 import COMPUTED, STDiT3, STDiT3Config

    def model(name: str):
        config = json.loads((golden / "12" / "stdit3_configs.json").read_text())[name]["config"]
        tensors = open_checkpoint(golden / "12" / f"stdit3_{name}_weights.safetensors")
        return load(build(STDiT3, STDiT3Config.from_dict(config)), tensors, computed=COMPUTED)

    return model


@pytest.fixture(scope="session")
def rflow_losses(recorded):
    """rflow_losses("plain" | "masked" | "dropped") -> the arguments of rectified flow's training losses, and the loss.

    In "dropped", the original replaced some captions by the null caption; here it stands in `y`.
    """

    def case(name: str):
        tensors = dict(recorded("12/rflow_training_losses")[name])
        inputs = {key: tensors[key] for key in ("t", "noise", "y", "fps", "height", "width")}
        inputs |= {"x_0": tensors["x_start"], "mask": tensors["text_mask"]}
        if name == "masked":
            inputs["x_mask"] = tensors["frame_mask"].astype(bool)
        if name == "dropped":
            null = recorded("12/stdit3_qknorm_weights")["y_embedder"]["y_embedding"]
            inputs["y"] = np.where(tensors["drop"][:, None, None, None] == 1, null, tensors["y"])
        return inputs, tensors["loss"]

    return case


@pytest.fixture(scope="session")
def pipe():
    """The small model, loaded once."""
    from opensora_lite import OpenSora

    return OpenSora.from_pretrained("tiny")


@pytest.fixture(scope="session")
def first_model(golden, tmp_path_factory) -> Path:
    """The small model as it was first shipped, with which tests/golden/tiny_cases was recorded.

    tests/golden has what has changed since; the tokenizer and two configs are those of the package.
    """
    folder = tmp_path_factory.mktemp("first")
    for source in (Path(opensora_lite.__file__).parent / "weights" / "tiny", golden / "tiny_weights"):
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__*", "pipeline.json"))
    return folder


@pytest.fixture(scope="session")
def first_pipe(first_model):
    """`first_model`, loaded."""
    from opensora_lite import OpenSora

    return OpenSora.from_pretrained(first_model)


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
    """A machine that a test describes (machines.py); psutil, /proc and /sys are read from there."""
    from machines import OtherMachine

    return OtherMachine(tmp_path / "machine", monkeypatch)


@pytest.fixture(scope="session")
def micro_file(tmp_path_factory) -> Path:
    """A recipe of six small steps, two on pictures and four on clips."""
    path = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    path.write_text(MICRO)
    return path


@pytest.fixture(scope="session")
def micro12_file(tmp_path_factory) -> Path:
    """A recipe of seven small steps of a video VAE and six of T5 and STDiT3."""
    path = tmp_path_factory.mktemp("recipe") / "micro12.yaml"
    path.write_text(MICRO_12)
    return path


@pytest.fixture(scope="session")
def peer(tmp_path_factory):
    """The PyTorch process, started once."""
    from peers.client import NOT_INSTALLED, Peer, interpreter

    if interpreter() is None:
        pytest.skip(NOT_INSTALLED)
    peer = Peer(interpreter(), tmp_path_factory.mktemp("peer"))
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> tuple[Path, Path]:
    """The installed wheel, built once: its environment's Python and its site-packages."""
    from wheels import installed_wheel

    return installed_wheel(tmp_path_factory.mktemp("wheel"))
