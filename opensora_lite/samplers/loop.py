"""What samplers of Open-Sora 1.1 share: the loop from noise to latents and frame masks; and the source of noise.

A frame mask [B, T] holds one number per frame (`masks`): 1 for generated frames, 0 for conditioning frames, and the
edit ratio r, between 0 and 1, for edited frames. With n steps counted down from n − 1 to 0, a frame of ratio r waits
unchanged until step int(r · n); there noise is added for that timestep, and from there on the frame is denoised. In the
denoiser's x_mask, frames that wait or have just been noised count as conditioning frames (t = 0). Conditioning frames
(r = 0) are noised and denoised once, in the very last step. All of this as released.

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
    """One denoising step; tensors [B, C, T, H, W] unless said otherwise."""

    number: int  # 1 … steps, in the order in which they are taken
    index: int  # steps - 1 … 0: position in the schedule, the number of steps that are left
    timestep: float  # t of the denoiser: a whole number 999 … 0, of rectified flow a number 1000 … 0
    x_t: paddle.Tensor  # the input, with noise added to frames that start here
    prediction: Prediction
    x_0: paddle.Tensor  # the clean latent that the prediction implies
    sample: paddle.Tensor  # the output, x_{t-1}
    active: paddle.Tensor | None  # bool [B, 1, T, 1, 1]: frames that this step changes; None: all


class NoiseSource:
    """Standard normal noise from one numpy generator per video, so that a video doesn't depend on its batch.

    (numpy's numbers are the same on every device.) seeds: one per video. shape: (C, T, H, W).
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]):
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.shape = tuple(shape)

    def __call__(self, rows: Sequence[bool] | None = None) -> paddle.Tensor:
        """float32 [B, C, T, H, W].

        rows: the videos that need noise; the others get zeros, and their generators don't advance.
        """
        rows = [True] * len(self.rngs) if rows is None else rows
        draws = (
            rng.standard_normal(self.shape, np.float32) if needed else np.zeros(self.shape, np.float32)
            for rng, needed in zip(self.rngs, rows, strict=True)
        )
        return paddle.to_tensor(np.stack(list(draws)))


def no_noise(rows: object = None) -> paddle.Tensor:
    """In place of a NoiseSource that is not given: raises OpenSoraError."""
    raise OpenSoraError("this sampler adds noise: give sample(predict, z, frame_mask, noise_fn) a NoiseSource")


def per_frame(mask: paddle.Tensor) -> paddle.Tensor:
    """[B, T] -> [B, 1, T, 1, 1]"""
    return mask[:, None, :, None, None]


class Sampler:
    """A solver of the reverse process. Subclasses implement `step`.

    spacing: a number of steps, or another form that `schedule.space_timesteps` reads.
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
        noise_fn: Callable[..., paddle.Tensor],
        previous: Step | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(x_0, x_{t-1}) of one step, shaped like x_t [B, C, T, H, W].

        index: position in the schedule. noise_fn: draws noise like x_t. previous: the step before this one.
        """
        raise NotImplementedError

    def sample(
        self,
        predict: Callable[..., Prediction],
        z: paddle.Tensor,
        frame_mask: np.ndarray | None = None,
        noise_fn: Callable[..., paddle.Tensor] | None = None,
    ) -> Iterator[Step]:
        """Denoise z; yields every Step, the last of which holds the result in `sample`.

        predict: (x_t, timestep, x_mask) -> Prediction, such as a CFG. z: [B, C, T, H, W], noise, with reference latents
        in conditioning and edited frames. frame_mask: float32 [B, T], see the module, or None. noise_fn: a NoiseSource;
        DDIM and DPM-Solver without a frame mask don't need one. Raises OpenSoraError where it is missing.
        """
        noise_fn = noise_fn or no_noise
        steps, x, step = len(self), z, None
        if frame_mask is not None:
            starts = paddle.to_tensor(start_steps(frame_mask, steps))
            needs_noise = (np.asarray(frame_mask) < 1).any(1)
        for index in reversed(range(steps)):
            x_t, active, x_mask = x, None, None
            if frame_mask is not None:
                # as released: noise is drawn in every step, also where no frame starts
                noised = self.schedule.add_noise(x, noise_fn(needs_noise), index)
                x_t = paddle.where(per_frame(starts == index), noised, x)
                x_mask, active = starts > index, per_frame(starts >= index)
            timestep = int(self.schedule.timesteps[index])
            prediction = predict(x_t, timestep, x_mask)
            x_0, x_next = self.step(x_t, prediction, index, noise_fn, step)
            x = x_next if active is None else paddle.where(active, x_next, x)
            step = Step(steps - index, index, timestep, x_t, prediction, x_0, x, active)
            yield step
