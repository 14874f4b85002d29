"""STDiT3 against the tensors of the original, and against itself."""

import json
import math

import numpy as np
import paddle
import pytest
from common import layers_with_other_outputs, relative_error

from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import Tensor, build_meta, check_state_dict
from opensora_lite.stdit3 import COMPUTED, SIZES, Conditions, STDiT3, STDiT3Config, load_stdit3

CASES = ["text", "masked", "odd", "image", "allkept", "lengths", "times", "maskedtimes", "long", "guidance"]


def tensors(case):
    return {name: paddle.to_tensor(value) for name, value in case.items() if name != "out"}


def forward(model, case):
    with paddle.no_grad():
        return model(**tensors(case)).numpy()


@pytest.mark.parametrize("model", ["qknorm", "plain"])
def test_forward_reproduces_the_original(golden_stdit3, recorded, model):
    cases, net = recorded(f"12/stdit3_{model}_cases"), golden_stdit3(model)
    assert sorted(cases) == sorted(CASES)
    errors = {case: relative_error(forward(net, cases[case]), cases[case]["out"]) for case in CASES}
    print(f"\nSTDiT3 {model}: largest relative error of {len(errors)} cases {max(errors.values()):.1e}")
    assert max(errors.values()) < 2e-5, errors


def test_steps_that_share_a_state_are_as_one_evaluation(golden_stdit3, recorded):
    """As in sampling: t of shape [1], numbers shared by the batch, and the state of the first half without guidance."""
    case, model = recorded("12/stdit3_qknorm_cases")["masked"], golden_stdit3("qknorm")
    x, y, mask, x_mask = (paddle.to_tensor(case[name]) for name in ("x", "y", "mask", "x_mask"))
    numbers = {name: float(case[name][0]) for name in ("height", "width", "fps")}
    with paddle.no_grad():
        state = model.precompute(Conditions.shared(y, mask, tuple(x.shape[2:]), **numbers))
        for t in (800.5, 20.0):
            whole = {**case, "timestep": np.full(2, t, np.float32)}
            whole |= {name: np.full(2, value, np.float32) for name, value in numbers.items()}
            out = model.denoise(x, paddle.full([1], t), state, x_mask)
            assert relative_error(out, forward(model, whole)) < 1e-5
            first = model.denoise(x[:1], paddle.full([1], t), state.first(1), x_mask[:1])
            assert relative_error(first, out[:1]) < 1e-5


def test_every_layer_keeps_the_precision_of_the_weights(golden_stdit3, recorded):
    """No float32 slips in between. Run in float64, since half precision, which needs it, has no CPU kernels."""
    case = recorded("12/stdit3_qknorm_cases")["masked"]
    model = golden_stdit3("qknorm").to(dtype="float64")
    strays = layers_with_other_outputs(model, paddle.float64)
    assert relative_error(forward(model, case), case["out"]) < 2e-5
    assert not strays


def test_a_mask_of_denoised_frames_changes_nothing(golden_stdit3, recorded):
    case, model = recorded("12/stdit3_qknorm_cases")["text"], golden_stdit3("qknorm")
    denoised = np.ones((case["x"].shape[0], case["x"].shape[2]), bool)
    assert relative_error(forward(model, {**case, "x_mask": denoised}), forward(model, case)) < 1e-6


def test_the_first_attention_reads_the_modulated_input(golden_stdit3, recorded):
    """The step cache watches this tensor."""
    case, model, seen = tensors(recorded("12/stdit3_plain_cases")["times"]), golden_stdit3("plain"), []
    model.spatial_blocks[0].attn.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with paddle.no_grad():
        state = model.precompute(
            Conditions(case["y"], case["mask"], tuple(case["x"].shape[2:]), case["height"], case["width"], case["fps"])
        )
        model.denoise(case["x"], case["timestep"], state)
        watched = model.modulated_input(case["x"], case["timestep"], state)
    assert relative_error(watched.flatten(0, 1), seen[0]) < 1e-6


# --------------------------------------------------------------------------------------------------- sizes, checkpoints


@pytest.mark.parametrize("size, millions", [("XL/2", 1208.87), ("3B/2", 3183.44)])
def test_sizes_have_their_numbers_of_values(size, millions):
    values = sum(math.prod(tensor.shape) for tensor in build_meta(STDiT3, SIZES[size]).state_dict().values())
    assert round(values / 1e6, 2) == millions


def test_the_released_checkpoint_fits_xl(golden):
    """Names and shapes of all tensors; one that is missing, or has another shape, is named."""
    shapes = json.loads((golden / "12" / "full_size_tensors12.json").read_text())["OpenSora-STDiT-v3"]

    def entry(shape):
        return Tensor(tuple(shape), lambda: pytest.fail("values are not read"), "torch", golden)

    model, released = build_meta(STDiT3, SIZES["XL/2"]), {name: entry(shape) for name, shape in shapes.items()}
    assert len(check_state_dict(model, released, computed=COMPUTED)) >= len(released) - 1
    name = "temporal_blocks.27.attn.q_norm.weight"
    others = {k: v for k, v in released.items() if k != name}
    for wrong in (others, {**others, name: entry([71])}):
        with pytest.raises(CheckpointError, match=name):
            check_state_dict(model, wrong, computed=COMPUTED)


def test_a_folder_is_loaded_by_its_config(golden, recorded, tmp_path):
    config = json.loads((golden / "12" / "stdit3_configs.json").read_text())["plain"]["config"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "STDiT3", "base_size": 64}))
    (tmp_path / "model.safetensors").symlink_to(golden / "12" / "stdit3_plain_weights.safetensors")
    model, case = load_stdit3(tmp_path), recorded("12/stdit3_plain_cases")["text"]
    assert relative_error(forward(model, case), case["out"]) < 2e-5
    assert model.config.base_size == 64 and STDiT3Config().base_size == 512


@pytest.mark.parametrize(
    "config, message",
    [
        ({"hidden_size": 24, "num_heads": 8}, "hidden_size 24"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"skip_y_embedder": True}, "skip_y_embedder"),
        ({"model_type": "STDiT2"}, "model_type"),
        ({"base_sizes": 64}, "misspelt"),
    ],
)
def test_configs_of_other_models_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        STDiT3Config.from_dict(config)
