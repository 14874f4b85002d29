"""The training losses against those that the original code computed."""

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite.training.losses import TrainingSchedule, training_losses


@pytest.mark.parametrize("case", ["plain", "masked"])
def test_the_losses_of_the_original(recorded, golden_stdit, case):
    tensors = recorded("training_losses")[case]
    model = golden_stdit("qknorm")
    x_mask = paddle.to_tensor(tensors["frame_mask"].astype(bool)) if "frame_mask" in tensors else None
    given = {
        k: paddle.to_tensor(tensors[k]) for k in ("num_frames", "height", "width", "ar", "fps", "x_start", "noise", "y")
    }
    losses = training_losses(
        model,
        TrainingSchedule(),
        given.pop("x_start"),
        paddle.to_tensor(tensors["t"].astype(np.int64)),
        given.pop("noise"),
        given.pop("y"),
        paddle.to_tensor(tensors["text_mask"].astype(np.int64)),
        x_mask,
        **given,
    )
    errors = {name: np.abs(value.numpy() / tensors[name] - 1) for name, value in losses.items()}
    print(f"\ntraining losses, {case}: " + ", ".join(f"{name} {error.max():.1e}" for name, error in errors.items()))
    assert relative_error(losses["mse"].numpy(), tensors["mse"]) < 1e-5
    np.testing.assert_allclose(losses["vb"].numpy(), tensors["vb"], rtol=1e-4)
    np.testing.assert_allclose(losses["loss"].numpy(), losses["mse"].numpy() + losses["vb"].numpy(), rtol=1e-6)
