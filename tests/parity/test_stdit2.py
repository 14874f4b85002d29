"""STDiT2 against the tensors of the original, and against itself."""

import json
import math

import numpy as np
import paddle
import pytest
from common import layers_with_other_outputs, relative_error

from opensora_lite.errors import CheckpointError
from opensora_lite.layers import EAGER, rotate
from opensora_lite.request import WEIGHTS
from opensora_lite.stdit2 import SIZES, STDiT2, STDiT2Config


def forward(model, case):
    inputs = {name: paddle.to_tensor(value) for name, value in case.items() if name != "out"}
    with paddle.no_grad():
        return model(**inputs).numpy()


@pytest.mark.parametrize("case", ["text", "masked", "odd", "image", "allkept"])
@pytest.mark.parametrize("model", ["qknorm", "plain"])
def test_forward_reproduces_the_original(golden_stdit, recorded, model, case):
    tensors = recorded(f"stdit2_{model}_cases")[case]
    error = relative_error(forward(golden_stdit(model), tensors), tensors["out"])
    print(f"\nSTDiT2 {model} {case}: relative error {error:.1e}")
    assert error < 2e-5


def test_every_layer_keeps_the_precision_of_the_weights(golden_stdit, recorded):
    """No float32 slips in between. Run in float64, since half precision, which needs it, has no CPU kernels."""
    case = recorded("stdit2_qknorm_cases")["masked"]
    model = golden_stdit("qknorm").to(dtype="float64")
    strays = layers_with_other_outputs(model, paddle.float64)
    assert relative_error(forward(model, case), case["out"]) < 2e-5
    assert not strays


def test_a_video_does_not_depend_on_its_neighbours(golden_stdit, recorded):
    case = recorded("stdit2_qknorm_cases")["masked"]
    model = golden_stdit("qknorm")
    both = forward(model, case)
    alone = forward(model, {name: value[1:] for name, value in case.items()})
    assert relative_error(alone[0], both[1]) < 1e-5


def test_a_mask_of_denoised_frames_changes_nothing(golden_stdit, recorded):
    case = recorded("stdit2_qknorm_cases")["text"]
    live = np.ones((case["x"].shape[0], case["x"].shape[2]), bool)
    model = golden_stdit("qknorm")
    assert relative_error(forward(model, {**case, "x_mask": live}), forward(model, case)) < 1e-6


def test_tokens_that_the_mask_hides_change_nothing(golden_stdit, recorded):
    case = recorded("stdit2_qknorm_cases")["text"]
    assert (case["mask"] == 0).any()
    y = np.where(case["mask"][:, None, :, None] == 1, case["y"], 100.0).astype(np.float32)
    model = golden_stdit("qknorm")
    np.testing.assert_allclose(forward(model, {**case, "y": y}), forward(model, case), atol=1e-6)


def test_attention_is_the_formula():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 4)).astype(np.float32) for n in (5, 7, 7))
    mask = np.arange(7) < np.array([[4], [7]])
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(4)
    weights = np.exp(np.where(mask[:, None, None], scores, -np.inf))
    expected = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    got = EAGER.attention(*(paddle.to_tensor(x) for x in (q, k, v)), paddle.to_tensor(mask)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_attention_in_pieces_is_the_same(monkeypatch):
    q, k, v = (paddle.randn([2, n, 3, 4]) for n in (5, 7, 7))
    mask = paddle.to_tensor(np.arange(7) < np.array([[4], [7]]))
    whole = [EAGER.attention(q, k, v, m).numpy() for m in (None, mask)]
    monkeypatch.setattr("opensora_lite.layers.MAX_SCORES", 4 * 5 * 7)  # four and two of the six heads
    for m, expected in zip((None, mask), whole, strict=True):
        np.testing.assert_allclose(EAGER.attention(q, k, v, m).numpy(), expected, atol=1e-7)


def test_rotation_keeps_lengths_and_only_sees_distances(golden_stdit):
    tables = golden_stdit("qknorm").rope(6)
    q, k = (paddle.randn([1, 1, 2, 24]).expand([1, 6, 2, 24]) for _ in range(2))
    turned_q, turned_k = rotate(q, tables), rotate(k, tables)
    np.testing.assert_allclose(turned_q.norm(axis=-1).numpy(), q.norm(axis=-1).numpy(), rtol=1e-5)
    products = (turned_q[:, :, None] * turned_k[:, None]).sum(-1).numpy()[0, :, :, 0]
    for distance in range(-5, 6):  # the same along every diagonal
        assert np.ptp(np.diagonal(products, distance)) < 1e-4


def test_sizes_that_the_patch_does_not_divide_are_padded_and_cropped(golden_stdit):
    numbers = {name: paddle.full([1], value) for name, value in dict(num_frames=2.0, height=40.0, width=56.0).items()}
    x, y = paddle.randn([1, 4, 2, 5, 7]), paddle.randn([1, 1, 3, 32])
    with paddle.no_grad():
        out = golden_stdit("plain")(
            x,
            paddle.full([1], 5.0),
            y,
            paddle.ones([1, 3]),
            ar=paddle.full([1], 5 / 7),
            fps=paddle.full([1], 24.0),
            **numbers,
        )
    assert out.shape == [1, 8, 2, 5, 7]
    assert out.dtype == paddle.float32


# --------------------------------------------------------------------------------------------------------------- sizes


def test_xl_has_as_many_parameters_as_the_released_checkpoint(golden):
    with paddle.LazyGuard():
        model = STDiT2(SIZES["XL/2"])
    values = sum(math.prod(tensor.shape) for tensor in model.state_dict().values())
    released = json.loads((golden / "full_size_tensors.json").read_text())["OpenSora-STDiT-v2-stage3"]
    assert values == sum(math.prod(shape) for shape in released.values())
    assert round(values / 1e6, 2) == 768.27


def test_tiny_is_what_ships():
    shipped = STDiT2Config.from_dict(json.loads((WEIGHTS / "tiny" / "stdit" / "config.json").read_text()))
    assert SIZES["tiny"] == shipped


@pytest.mark.parametrize(
    "config, message",
    [
        ({"hidden_size": 100}, "hidden_size must be a multiple of 12"),
        ({"hidden_size": 24, "num_heads": 8}, "hidden_size 24 must be an even multiple of num_heads"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"pred_sigma": False}, "pred_sigma must be True"),
        ({"model_type": "STDiT3"}, "model_type"),
        ({"dept": 2}, "misspelt"),
    ],
)
def test_configs_of_other_models_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        STDiT2Config.from_dict(config)
