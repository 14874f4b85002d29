"""The Paddle STDiT2 and its training losses against a PyTorch implementation of our own (tests/peers).

The peer is held to the recorded tensors as well: they say that it is right, it says that Paddle agrees where nothing
was recorded (the trained small model, other sizes, other times, gradients).
"""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from common import relative_error
from peers.client import HERE, NOT_INSTALLED, interpreter

from opensora_lite.request import WEIGHTS
from opensora_lite.stdit2 import load_stdit
from opensora_lite.stdit3 import load_stdit3
from opensora_lite.training import train
from opensora_lite.training.losses import TrainingSchedule, training_losses
from opensora_lite.training.recipe import read_recipe
from opensora_lite.vae import load_vae
from opensora_lite.video_vae import load_video_vae

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = WEIGHTS / "tiny" / "stdit"


@pytest.fixture(scope="session")
def in_paddle(golden_stdit):
    """in_paddle("tiny" | "qknorm" | "plain") -> the model in Paddle."""
    tiny = load_stdit(TINY)
    return lambda model: tiny if model == "tiny" else golden_stdit(model)


def in_torch(model: str) -> dict:
    """The same model, as a request to the peer names it."""
    if model == "tiny":
        return {"config": json.loads((TINY / "config.json").read_text()), "weights": str(TINY / "model.safetensors")}
    config = json.loads((GOLDEN / "stdit2_configs.json").read_text())[model]["config"]
    return {"config": config, "weights": str(GOLDEN / f"stdit2_{model}_weights.safetensors")}


def random_batch(model: str, height: int, width: int, frames: int, kept: tuple = (), videos: int = 2) -> dict:
    """What STDiT2.forward takes but the time, for videos whose frames `kept` are given (the second one's alone)."""
    rng = np.random.default_rng([height, width, frames])
    config = in_torch(model)["config"]
    L = config["model_max_length"]

    def numbers(value):
        return np.full(videos, value, np.float32)

    batch = {
        "x": rng.standard_normal((videos, 4, frames, height // 8, width // 8)).astype(np.float32),
        "y": rng.standard_normal((videos, 1, L, config["caption_channels"])).astype(np.float32),
        "mask": (np.arange(L) < rng.integers(1, L + 1, (videos, 1))).astype(np.int32),
        "num_frames": numbers(frames),
        "height": numbers(height),
        "width": numbers(width),
        "ar": numbers(height / width),
        "fps": numbers(120 if frames == 1 else 24),
    }
    if kept:
        batch["x_mask"] = np.ones((videos, frames), bool)
        batch["x_mask"][1:, list(kept)] = False
    return batch


TORCH = ["stdit2_torch", "losses_torch", "stdit3_torch", "rflow_torch", "video_vae_torch", "speed_torch"]


@pytest.mark.parametrize("module", [*TORCH, "serve", "run", "client"])
def test_the_peer_imports_nothing_of_ours(module):
    """Parity is of independent code. And client.py, which runs in a process with Paddle, must not bring torch there."""
    names = set()
    for node in ast.walk(ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    allowed = {"numpy", "safetensors", *sys.stdlib_module_names}
    if module not in ("client", "serve"):
        allowed |= {"torch", "transformers", "diffusers", "serve", *TORCH}
    assert names <= allowed


# -------------------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("model", ["qknorm", "plain"])
def test_the_peer_reproduces_the_original(peer, recorded, model):
    cases = recorded(f"stdit2_{model}_cases")
    inputs = {f"{case}.{name}": a for case, arrays in cases.items() for name, a in arrays.items() if name != "out"}
    outputs = peer("forward", inputs, **in_torch(model))
    for case, arrays in cases.items():
        assert relative_error(outputs[f"{case}.out"], arrays["out"]) < 1e-5, case


SHAPES = [(size, frames) for size in [(64, 64), (48, 80), (56, 72)] for frames in (1, 8, 16)]  # (56, 72): 7×9 latents


@pytest.mark.parametrize("model", ["tiny", "qknorm", "plain"])
def test_forward_agrees(peer, in_paddle, model):
    cases = {}
    for (height, width), frames in SHAPES if model == "tiny" else [((56, 72), 5)]:
        for kept in ((), (0, frames - 1)):
            batch = random_batch(model, height, width, frames, kept)
            times = np.float32([999, 7] if kept else [480, 0])
            cases[f"{frames}×{height}×{width}{' masked' if kept else ''}"] = {**batch, "timestep": times}
    inputs = {f"{case}.{name}": array for case, arrays in cases.items() for name, array in arrays.items()}
    outputs = peer("forward", inputs, **in_torch(model))

    errors, net = {}, in_paddle(model)
    for case, arrays in cases.items():
        with paddle.no_grad():
            out = net(**{name: paddle.to_tensor(array) for name, array in arrays.items()})
        errors[case] = relative_error(out.numpy(), outputs[f"{case}.out"])
    print(
        f"\nSTDiT2 {model}, Paddle and PyTorch, {len(errors)} cases: largest relative error {max(errors.values()):.1e}"
    )
    assert max(errors.values()) < 2e-5, errors


# --------------------------------------------------------------------------------------------------- losses, gradients

# Where the answers of a Linear, a convolution, an embedder and a table of each kind of layer come together.
NAMED = [
    "x_embedder.proj.weight",
    "t_block.1.weight",
    "y_embedder.y_proj.fc1.weight",
    "fps_embedder.mlp.2.weight",
    "blocks.0.scale_shift_table_temporal",
    "blocks.0.attn.qkv.weight",
    "blocks.0.attn_temp.q_norm.weight",
    "blocks.0.cross_attn.kv_linear.weight",
    "final_layer.linear.weight",
]


def loss_batch(model: str, times: list, masked: bool, frames: int = 4) -> dict:
    """What training_losses takes: one video for each time."""
    batch = random_batch(model, 56, 72, frames, kept=(0, 3) if masked else (), videos=len(times))
    rng = np.random.default_rng(sum(times))
    batch["x_0"] = batch.pop("x")
    batch["noise"] = rng.standard_normal(batch["x_0"].shape).astype(np.float32)
    return {**batch, "t": np.int64(times)}


def losses_in_paddle(model, batch: dict) -> dict:
    """The losses, and the gradients of their mean by name, a Linear's as [out, in]."""
    model.clear_gradients()
    tensors = training_losses(model, TrainingSchedule(), **{k: paddle.to_tensor(v) for k, v in batch.items()})
    tensors["loss"].mean().backward()
    linears = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)}
    gradients = {
        f"gradient.{name}": p.grad.numpy().T if name in linears else p.grad.numpy()
        for name, p in model.named_parameters()
    }
    return {**{name: tensor.detach().numpy() for name, tensor in tensors.items()}, **gradients}


def compare_losses(ours: dict, theirs: dict, times, at_zero: float = 3e-2) -> None:
    """mse within 1e-5 per video, vb within 1e-4, or `at_zero` where t = 0.

    There it is the logarithm of the difference of two tanh: beyond five standard deviations they are 1 but for the
    last bit or two, which libraries round each in their own way.
    """
    last = np.asarray(times) == 0
    errors = {part: np.abs(ours[part] / theirs[part] - 1) for part in ("loss", "mse", "vb")}
    assert errors["mse"].max() < 1e-5
    for part in ("loss", "vb"):
        assert (errors[part] < np.where(last, at_zero, 1e-4)).all(), part
    np.testing.assert_allclose(ours["loss"], ours["mse"] + ours["vb"], rtol=1e-6)
    later = errors["vb"][~last].max(initial=0)
    print(
        f"\nlosses: relative errors {errors['mse'].max():.1e} in mse, {later:.1e} in vb, {errors['vb'][0]:.1e} at t = 0"
    )


@pytest.mark.parametrize("case", ["plain", "masked"])
def test_the_peer_reproduces_the_recorded_losses(peer, recorded, case):
    arrays = dict(recorded("training_losses")[case])
    expected = {part: arrays.pop(part) for part in ("loss", "mse", "vb")}
    arrays["t"] = arrays["t"].astype(np.int64)
    for ours, theirs in {"x_0": "x_start", "mask": "text_mask", "x_mask": "frame_mask"}.items():
        if theirs in arrays:
            arrays[ours] = arrays.pop(theirs)
    if "x_mask" in arrays:
        arrays["x_mask"] = arrays["x_mask"].astype(bool)
    compare_losses(peer("losses", arrays, **in_torch("qknorm")), expected, arrays["t"], at_zero=1e-4)


@pytest.mark.parametrize("masked", [False, True], ids=["all_frames", "frame_mask"])
@pytest.mark.parametrize("model", ["tiny", "qknorm", "plain"])
def test_losses_agree(peer, in_paddle, model, masked):
    times = [0, 1, 250, 750, 999]
    batch = loss_batch(model, times, masked)
    compare_losses(losses_in_paddle(in_paddle(model), batch), peer("losses", batch, **in_torch(model)), times)


@pytest.mark.parametrize("masked", [False, True], ids=["all_frames", "frame_mask"])
def test_the_bound_at_time_0_agrees_in_float64(peer, in_paddle, masked):
    """With float64 around the model's float32, the tails are no rounding noise, and 3 % shrink to 1e-4."""
    batch = loss_batch("qknorm", [0, 0], masked)
    batch |= {name: batch[name].astype(np.float64) for name in ("x_0", "noise")}
    theirs = peer("losses", batch, **in_torch("qknorm"))
    model, schedule = in_paddle("qknorm"), TrainingSchedule()
    schedule.tables = {name: table.astype("float64") for name, table in schedule.tables.items()}
    ours = training_losses(
        lambda *args, **conditions: model(*args, **conditions).astype("float64"),
        schedule,
        **{name: paddle.to_tensor(array) for name, array in batch.items()},
    )
    error = np.abs(ours["vb"].numpy() / theirs["vb"] - 1).max()
    print(f"\nvb at t = 0 in float64: relative error {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("masked", [False, True], ids=["all_frames", "frame_mask"])
@pytest.mark.parametrize("model", ["tiny", "qknorm"])
def test_gradients_agree(peer, in_paddle, model, masked):
    """Of the named parameters one by one, and of all of them as one long vector."""
    batch = loss_batch(model, [20, 500, 980], masked)
    ours, theirs = losses_in_paddle(in_paddle(model), batch), peer("losses", batch, **in_torch(model))
    names = sorted(name for name in theirs if name.startswith("gradient."))
    assert names == sorted(name for name in ours if name.startswith("gradient."))
    errors = {name: relative_error(ours[f"gradient.{name}"], theirs[f"gradient.{name}"]) for name in NAMED}
    errors["all"] = relative_error(*(np.concatenate([side[name].ravel() for name in names]) for side in (ours, theirs)))
    print(f"\ngradients, {model}: largest relative error {max(errors.values()):.1e}, of all {errors['all']:.1e}")
    assert max(errors.values()) < 1e-4, errors


# --- whole trainings --------------------------------------------------------------------------------------------------


def run_twin(script: str, *arguments):
    """Run one of the PyTorch trainers."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}  # fast on a busy machine too
    done = subprocess.run([interpreter(), HERE / script, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_equal_losses(ours: list, losses_file: Path, what: str):
    """Equal steps, kinds and rates, and losses within 1e-3. ours: Records."""
    with open(losses_file, newline="") as file:
        theirs = list(csv.DictReader(file))
    assert [(r.step, r.kind) for r in ours] == [(int(r["step"]), r["kind"]) for r in theirs] and ours
    np.testing.assert_allclose([r.rate for r in ours], [float(r["rate"]) for r in theirs], rtol=1e-6)
    errors = [abs(float(b["loss"]) / a.loss - 1) for a, b in zip(ours, theirs, strict=True)]
    print(f"\n{what}, Paddle against PyTorch, {len(errors)} losses: " + ", ".join(f"{error:.1e}" for error in errors))
    assert max(errors) < 1e-3


needs_torch = pytest.mark.skipif(interpreter() is None, reason=NOT_INSTALLED)


def largest_error(a: dict, b: dict, part: str) -> float:
    """Of the tensors of two state dicts whose names contain `part`."""
    return max(relative_error(a[name].numpy(), b[name].numpy()) for name in a if part in name)


@needs_torch
def test_training_agrees(micro_file, tmp_path):
    """Six steps by one recipe: Paddle and tests/peers/train_torch.py begin alike, and see equal batches and losses."""
    recipe = read_recipe(micro_file)
    train(recipe, tmp_path / "run", prepare=True)
    shutil.copytree(tmp_path / "run", tmp_path / "torch")
    ours = train(recipe, tmp_path / "run").diffusion
    run_twin("train_torch.py", tmp_path / "torch")
    # the start is handed over in float16
    assert_equal_losses(ours, tmp_path / "torch" / "state" / "diffusion_losses.csv", "training")
    a, b = (load_stdit(tmp_path / name / "stdit").state_dict() for name in ("run", "torch"))
    assert largest_error(a, b, "qkv.weight") < 1e-2


@needs_torch
def test_training_of_the_vae_agrees(micro_file, tmp_path):
    """The decoder's training, Paddle's and that of tests/peers/train_vae_torch.py: equal losses, equal weights."""
    stage = "vae.decoder={steps: 4, batch: 4, warmup: 2, learning_rate: 1e-3, ema: 0.5, crop_share: 0.5}"
    ours = train(read_recipe(micro_file, dict([stage.split("=")])), tmp_path / "paddle", prepare=True).decoder
    run_twin("train_vae_torch.py", micro_file, tmp_path / "torch", "--set", stage)
    assert_equal_losses(ours, tmp_path / "torch" / "state" / "decoder_losses.csv", "the decoder")
    a, b = (load_vae(tmp_path / name / "vae") for name in ("paddle", "torch"))
    assert a.scaling_factor == b.scaling_factor
    assert largest_error(a.model.state_dict(), b.model.state_dict(), "conv1.weight") < 1e-2


@needs_torch
def test_trainings_of_1_2_agree(micro12_file, tmp_path):
    """The stages of the video VAE, then T5 and STDiT3: Paddle, train_video_vae_torch.py, train_flow_torch.py."""
    recipe = read_recipe(micro12_file)
    train(recipe, tmp_path / "run", prepare=True)
    shutil.copytree(tmp_path / "run", tmp_path / "torch")
    ours = train(recipe, tmp_path / "run")
    run_twin("train_video_vae_torch.py", micro12_file, tmp_path / "vae", "--held-out", "0")
    for stage in recipe.vae.stages:
        assert_equal_losses(getattr(ours, stage), tmp_path / "vae" / "state" / f"{stage}_losses.csv", stage)
    a, b = (load_video_vae(tmp_path / name / "vae").model.state_dict() for name in ("run", "vae"))
    assert largest_error(a, b, "conv1") < 1e-2 and largest_error(a, b, "scale") < 1e-2

    run_twin("train_flow_torch.py", micro12_file, tmp_path / "torch")
    assert_equal_losses(ours.diffusion, tmp_path / "torch" / "state" / "diffusion_losses.csv", "T5 and STDiT3")
    a, b = (load_stdit3(tmp_path / name / "stdit").state_dict() for name in ("run", "torch"))
    assert largest_error(a, b, "qkv.weight") < 1e-2
