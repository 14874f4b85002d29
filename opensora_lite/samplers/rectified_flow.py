"""Rectified flow: the sampler of Open-Sora 1.2, and one of second order.

    x_t = (1 − t) x_0 + t ε,    v = x_0 − ε,    dx/dt = −v          (here t is 0 … 1, elsewhere 0 … 1000)

The model predicts v, which points to the data, and the sampler solves the differential equation from t = 1 to t = 0.
The paths are nearly straight, so few steps are enough (arXiv:2209.03003).

A frame mask [B, T] holds one number per latent frame (`masks`): 1 for generated frames, 0 for conditioning frames, and
the edit ratio r, between 0 and 1, for edited frames. As released, a frame joins in the first step whose t <= r: there
noise is added for that t, and from there on it is denoised. Until then it is a conditioning frame (t = 0 for the model)
and stays as it was. So frames of ratio 0, and of any ratio below the last t, come out untouched; the samplers of
Open-Sora 1.1 noise and denoise those once.

Source: hpcaitech/Open-Sora v1.2, opensora/schedulers/rf (reproduced by tests/parity). Two things differ, on which no
weight depends: noise is drawn in the steps in which a frame joins, not in all; and no t is above 1 by rounding.
"""

from collections.abc import Callable, Iterator

import numpy as np
import paddle

from opensora_lite.samplers.guidance import Prediction
from opensora_lite.samplers.loop import Step, no_noise, per_frame
from opensora_lite.schedule import TRAIN_STEPS, flow_timesteps


class RectifiedFlow:
    """Euler's method. steps, shift, whole: as in `schedule.flow_timesteps`."""

    def __init__(self, steps: int, shift: float = 1.0, whole: bool = False):
        self.timesteps = flow_timesteps(steps, shift, whole)  # in the order in which they are visited

    def __len__(self) -> int:
        return len(self.timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} steps)"

    def step(
        self,
        x_t: paddle.Tensor,
        velocity: paddle.Tensor,
        t: np.float32,
        t_next: np.float32,
        predict: Callable[..., Prediction],
        x_mask: paddle.Tensor | None,
    ) -> paddle.Tensor:
        """x at t_next, shaped like x_t [B, C, T, H, W].

        velocity: the model's, at x_t and t. predict, x_mask: to evaluate it elsewhere.
        """
        return x_t + float((t - t_next) / TRAIN_STEPS) * velocity

    def sample(
        self,
        predict: Callable[..., Prediction],
        z: paddle.Tensor,
        frame_mask: np.ndarray | None = None,
        noise_fn: Callable[..., paddle.Tensor] | None = None,
    ) -> Iterator[Step]:
        """Denoise z; yields every Step, the last of which holds the result in `sample`.

        predict: (x_t, timestep, x_mask) -> Prediction, such as a CFG. z: [B, C, T, H, W], noise, with reference latents
        in conditioning and edited frames. frame_mask: float32 [B, T], see the module, or None. noise_fn: a NoiseSource,
        needed for edited frames only. Raises OpenSoraError where it is missing.
        """
        noise_fn = noise_fn or no_noise
        steps, x, x_mask = len(self), z, None
        if frame_mask is not None:
            joins_at = np.asarray(frame_mask, np.float32) * np.float32(TRAIN_STEPS)
            denoised = joins_at == TRAIN_STEPS  # generated frames are noise from the start
        for i, (t, t_next) in enumerate(zip(self.timesteps, [*self.timesteps[1:], np.float32(0)], strict=True)):
            timestep, active = float(t), None
            # 1. noise for the frames that join
            if frame_mask is not None:
                joining, denoised = (joins_at >= t) & ~denoised, joins_at >= t
                if joining.any():
                    noised = (1 - timestep / TRAIN_STEPS) * x + timestep / TRAIN_STEPS * noise_fn(joining.any(1))
                    x = paddle.where(per_frame(paddle.to_tensor(joining)), noised, x)
                x_mask = paddle.to_tensor(denoised)
                active = per_frame(x_mask)
            # 2. the velocity, and the x_0 that it implies
            prediction = predict(x, timestep, x_mask)
            x_0 = x + timestep / TRAIN_STEPS * prediction.velocity
            # 3. a step along it, in the frames that are denoised
            x_next = self.step(x, prediction.velocity, t, t_next, predict, x_mask)
            if active is not None:
                x_next = paddle.where(active, x_next, x)
            yield Step(i + 1, steps - 1 - i, timestep, x, prediction, x_0, x_next, active)
            x = x_next


class Heun(RectifiedFlow):
    """Heun's method: the mean of the velocities at both ends of a step; two evaluations of the model in each but the
    last step. The error falls with the square of the number of steps (arXiv:2206.00364, algorithm 1).
    """

    def step(self, x_t, velocity, t, t_next, predict, x_mask):
        x_next = super().step(x_t, velocity, t, t_next, predict, x_mask)
        if t_next == 0:  # Euler: at t = 0, all frames would be conditioning frames for the model
            return x_next
        velocity_next = predict(x_next, float(t_next), x_mask).velocity
        return super().step(x_t, (velocity + velocity_next) / 2, t, t_next, predict, x_mask)
