"""What the three samplers share: the loop from noise to latents, frame masks, and where noise comes from.

A frame mask [B, T] holds per frame the share of the path on which it takes part: 1, made from nothing; 0, given;
0.4, joins for the last 40 % of the steps and is so redrawn, but not freely. With n steps counted down from n − 1
to 0, a frame of ratio r waits, unchanged, until step int(r · n); there it gets the noise of that time, and from
there on it is denoised. The model sees waiting and joining frames as given (at t = 0), the others at t.
A given frame (r = 0) is so noised and denoised once, in the very last step. As released, in all of this.

Source: hpcaitech/Open-Sora v1.1, opensora/schedulers/iddpm/gaussian_diffusion.py, p_sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from opensora_lite.errors import OpenSoraError
from opensora_lite.masks import start_steps
from opensora_lite.samplers.guidance import Prediction
from opensora_lite.schedule import Schedule


@dataclass
class Step:
    """What one step did; tensors [B, C, T, H, W] unless said otherwise."""

    number: int  # 1 … steps, in the order in which they are taken
    index: int  # steps - 1 … 0: position in the schedule
    timestep: int  # 999 … 0: the time that the model was told
    x_t: paddle.Tensor  # what went in, with the joining frames noised
    prediction: Prediction  # what the model said
    x_0: paddle.Tensor  # the clean latent that the prediction implies
    sample: paddle.Tensor  # what came out
    active: paddle.Tensor | None  # bool [B, 1, T, 1, 1]: frames that this step changed; None: all


class NoiseSource:
    """Standard normal noise, one numpy generator per video, so that no video's noise depends on its neighbours.

    numpy draws the same numbers on every device and in every batch. seeds: one per video. shape: (C, T, H, W).
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]):
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.shape = tuple(shape)

    def __call__(self, rows: Sequence[bool] | None = None) -> paddle.Tensor:
        """float32 [B, C, T, H, W]. rows: the videos that need it; the others get zeros, and draw nothing."""
        rows = [True] * len(self.rngs) if rows is None else rows
        draws = (
            rng.standard_normal(self.shape, np.float32) if needed else np.zeros(self.shape, np.float32)
            for rng, needed in zip(self.rngs, rows, strict=True)
        )
        return paddle.to_tensor(np.stack(list(draws)))


class Sampler:
    """One way along the schedule. Subclasses say how a step gets from x_t to x_{t-1}.

    spacing: a number of steps, or what `space_timesteps` takes.
    """

    def __init__(self, spacing: str | int):
        self.schedule = Schedule(spacing)
        self.timesteps = self.schedule.timesteps[::-1]  # in the order in which they are visited

    def __len__(self) -> int:
        return len(self.schedule)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} steps)"

    def step(
        self,
        x_t: paddle.Tensor,
        prediction: Prediction,
        index: int,
        draw: Callable[..., paddle.Tensor],
        before: Step | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(x_0, x_{t-1}) of one step, [B, C, T, H, W] as x_t is.

        prediction: what the model says of x_t. index: position in the schedule. draw: gives noise like x_t. before: the
        step before this one.
        """
        raise NotImplementedError

    def sample(
        self,
        predict: Callable[..., Prediction],
        z: paddle.Tensor,
        frame_mask: np.ndarray | None = None,
        draw: Callable[..., paddle.Tensor] | None = None,
    ) -> Iterator[Step]:
        """Go from z to latents, and yield after every step; the last Step's `sample` is the result.

        predict: (x_t, timestep, x_mask) -> Prediction, a Guidance. z: [B, C, T, H, W] noise, with the references in
        the frames that are given. frame_mask: float32 [B, T], see above, or None. draw: a NoiseSource; it may be left
        out where nothing is drawn, by DDIM and DPM-Solver without a mask. Raises OpenSoraError where something is.
        """
        draw = _no_noise if draw is None else draw
        steps, x, step = len(self), z, None
        if frame_mask is None:
            joins_at = masked = None
        else:
            joins_at = paddle.to_tensor(start_steps(frame_mask, steps))
            masked = (np.asarray(frame_mask) < 1).any(1)
        for index in reversed(range(steps)):
            x_t, active, live = x, None, None
            if joins_at is not None:
                joins, live = joins_at == index, joins_at > index
                noised = self.schedule.add_noise(x, draw(masked), index)
                x_t = paddle.where(_spread(joins), noised, x)
                active = _spread(joins_at >= index)
            timestep = int(self.schedule.timesteps[index])
            prediction = predict(x_t, timestep, live)
            x_0, x_next = self.step(x_t, prediction, index, draw, step)
            x = x_next if active is None else paddle.where(active, x_next, x)
            step = Step(steps - index, index, timestep, x_t, prediction, x_0, x, active)
            yield step


def _no_noise(rows: object = None) -> paddle.Tensor:
    raise OpenSoraError("this sampler draws noise, and has no source: sample(predict, z, frame_mask, NoiseSource(…))")


def _spread(mask: paddle.Tensor) -> paddle.Tensor:
    """[B, T] -> [B, 1, T, 1, 1]"""
    return mask[:, None, :, None, None]
