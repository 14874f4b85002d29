"""Noise schedules, in numpy.

    x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε          (DDPM, arXiv:2006.11239, eq. 4)

ᾱ_t (`alphas_cumprod`) falls from almost 1 at t = 0 to almost 0 at t = 999. A run of n steps visits n of the 1000
timesteps ("respacing", Improved DDPM, arXiv:2102.09672, section 4), with betas such that ᾱ at those stays the same.

Rectified flow (Open-Sora 1.2) needs no tables: t runs along a straight line from the data, t = 0, to noise, t = 1000.

    x_t = (1 − t/1000) · x_0 + t/1000 · ε       v = x_0 − ε          (arXiv:2209.03003; v points to the data)

What is chosen is at which t: see `shift_timesteps`, `flow_timesteps` and `logit_normal`.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from opensora_lite.errors import OpenSoraError, printable, shown

TRAIN_STEPS = 1000


def linear_betas(train_steps: int = TRAIN_STEPS) -> np.ndarray:
    """β_t of the linear schedule, float64 [train_steps]: 1e-4 … 0.02 for 1000 steps (DDPM, section 4)."""
    scale = 1000 / train_steps
    return np.linspace(scale * 1e-4, scale * 0.02, train_steps)


def alphas_cumprod(train_steps: int = TRAIN_STEPS) -> np.ndarray:
    """ᾱ_t of the linear schedule, float64 [train_steps]."""
    return np.cumprod(1 - linear_betas(train_steps))


def space_timesteps(spacing: str | int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """The timesteps of a run, ascending, out of 0 … train_steps - 1.

    spacing: a number of steps ("30"); numbers of steps for equal sections ("10,15,20", the first for the least
    noise); or "ddim25", a whole-number stride that gives 25 steps. Raises OpenSoraError if that is not possible.

    >>> space_timesteps(5), space_timesteps("3,2", train_steps=10), space_timesteps("ddim4")
    ([0, 250, 500, 749, 999], [0, 2, 4, 5, 9], [0, 250, 500, 750])
    """
    spacing = spacing if isinstance(spacing, str) else shown(spacing)
    try:
        if spacing.startswith("ddim"):
            strides = (range(0, train_steps, stride) for stride in range(1, train_steps))
            return list(next(times for times in strides if len(times) == int(spacing[4:])))
        counts = [int(count) for count in spacing.split(",")]
    except ValueError:
        raise OpenSoraError(
            f'steps "{printable(spacing):.60}" cannot be read; give a number such as 30, "10,15,20" or "ddim25"'
        ) from None
    except StopIteration:
        raise OpenSoraError(f"no whole-number stride over {train_steps} timesteps gives {spacing[4:]} steps") from None
    times, start = [], 0
    for i, count in enumerate(counts):
        size = train_steps // len(counts) + (i < train_steps % len(counts))
        if not 1 <= count <= size:
            raise OpenSoraError(f"{count} steps cannot be taken from {size} timesteps; give 1 to {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1
        # as released: the stride is accumulated, with its rounding, and not multiplied
        times += [start + round(at) for at in itertools.accumulate([stride] * (count - 1), initial=0.0)]
        start += size
    return times


class Schedule:
    """The linear schedule at the timesteps of a run; all tables [steps], index 0 the least noise.

    spacing, train_steps: as in `space_timesteps`. Tables are float32, in sampling and in training.
    timesteps: those that are visited. betas: of one step of the run.
    alphas_cumprod: ᾱ; alphas_cumprod_prev: ᾱ one step closer to the data, 1 at index 0.
    posterior_*: of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7).
    """

    def __init__(self, spacing: str | int = TRAIN_STEPS, train_steps: int = TRAIN_STEPS):
        self.timesteps = np.array(space_timesteps(spacing, train_steps))
        kept = alphas_cumprod(train_steps)[self.timesteps]
        # as released: float32 from here on, which changes the very last step, and the training loss at t = 0, by 2e-4
        self.betas = (1 - kept / np.append(1.0, kept[:-1])).astype(np.float32)
        # PyTorch's cumprod accumulates float32 in float64
        self.alphas_cumprod = np.cumprod(1 - self.betas, dtype=np.float64).astype(np.float32)
        self.alphas_cumprod_prev = np.append(np.float32(1), self.alphas_cumprod[:-1])
        noise = 1 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / noise
        self.posterior_mean_x_0 = self.betas * np.sqrt(self.alphas_cumprod_prev) / noise
        self.posterior_mean_x_t = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / noise
        # the variance is 0 at index 0; its logarithm is replaced by that of index 1
        floor = self.posterior_variance[1:2] if len(self.timesteps) > 1 else self.betas
        self.posterior_log_variance = np.log(np.append(floor, self.posterior_variance[1:]))

    def __len__(self) -> int:
        return len(self.timesteps)

    def add_noise(self, x_0: Any, noise: Any, index: int) -> Any:
        """x_t at timestep `index` of the run (DDPM, eq. 4); x_0, noise: arrays or tensors of one shape."""
        abar = self.alphas_cumprod[index]
        return float(np.sqrt(abar)) * x_0 + float(np.sqrt(1 - abar)) * noise

    def predict_x_0(self, x_t: Any, epsilon: Any, index: int) -> Any:
        """The x_0 that x_t and its noise imply (DDPM, eq. 15); arrays or tensors of one shape."""
        abar = self.alphas_cumprod[index]
        return float(np.sqrt(1 / abar)) * x_t - float(np.sqrt(1 / abar - 1)) * epsilon


# ---------------------------------------------------------------------------------------------------------------------
#   Rectified flow
# ---------------------------------------------------------------------------------------------------------------------


def timestep_shift(height: ArrayLike, width: ArrayLike, num_frames: ArrayLike, base_size: float = 512) -> np.ndarray:
    """How far `shift_timesteps` moves the timesteps of a video, float32: √(height · width) / base_size · √latents.

    The more values a video has, the more noise it takes to hide it (Stable Diffusion 3, arXiv:2403.03206, section
    5.3.2). height, width: pixels. num_frames: pictures, not latents. base_size: a field of the model's config; an
    image of base_size × base_size pixels has shift 1. Numbers, or arrays of one shape, which is the result's.

    >>> timestep_shift([512, 256], [512, 256], [1, 51])
    array([1.       , 1.9364917], dtype=float32)
    """
    height, width, frames = (np.asarray(n, np.float32) for n in (height, width, num_frames))
    # as released: 17 pictures are 5 latents, and 18 to 33 pictures count as 17. (Of 2 to 16 pictures the original makes
    # 0 latents, and so t = 0; here they have the number that the VAE makes of them.)
    latents = np.where(frames < 17, np.ceil(frames / 4), frames // 17 * 5).astype(np.float32)
    return np.sqrt(height * width / np.float32(base_size**2)) * np.sqrt(latents)


def shift_timesteps(t: ArrayLike, shift: ArrayLike) -> np.ndarray:
    """Timesteps 0 … 1000 moved towards noise, s·t / (1 + (s − 1)·t) for t in 0 … 1, float32 (arXiv:2403.03206, eq. 23).

    >>> shift_timesteps([0, 500, 1000], 3)
    array([   0.,  750., 1000.], dtype=float32)
    """
    share, shift = np.asarray(t, np.float32) / np.float32(TRAIN_STEPS), np.asarray(shift, np.float32)
    shifted = shift * share / (1 + (shift - 1) * share) * np.float32(TRAIN_STEPS)
    # The original may round t = 1000 to 1000.0001; nothing is denoised there, since frames join when t <= 1000 · ratio.
    return np.minimum(shifted, np.float32(TRAIN_STEPS))


def flow_timesteps(steps: int, shift: float = 1.0, whole: bool = False) -> np.ndarray:
    """The timesteps of a run in the order in which they are visited, float32 [steps]: 1000 … ; the last step ends at 0.

    shift: of `shift_timesteps`. whole: round to whole numbers, before shifting, as some models are trained with.

    >>> flow_timesteps(4), flow_timesteps(4, shift=3)
    (array([1000.,  750.,  500.,  250.], dtype=float32), array([1000.,  900.,  750.,  500.], dtype=float32))
    """
    t = np.array([(1.0 - i / steps) * TRAIN_STEPS for i in range(steps)])
    return shift_timesteps(np.round(t) if whole else t, shift)


def logit_normal(normal: ArrayLike) -> np.ndarray:
    """Timesteps 0 … 1000 for training, of normally distributed numbers, float32 (arXiv:2403.03206, eq. 19).

    Most are near the middle, where the velocity is hardest to predict.

    >>> logit_normal([-2, 0, 2]).round(1)
    array([119.2, 500. , 880.8], dtype=float32)
    """
    normal = np.asarray(normal, np.float32)
    return np.float32(TRAIN_STEPS) / (1 + np.exp(-normal))
