"""How much noise there is at which time, and which of the 1000 times a shorter run visits.

    x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε          (DDPM, arXiv:2006.11239, eq. 4)

ᾱ_t (`alphas_cumprod`) falls from almost 1 at t = 0 to almost 0 at t = 999. A run of n steps keeps n of the times
("respacing", IDDPM, arXiv:2102.09672, section 4) with betas chosen so that ᾱ at the kept times stays what it was.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from opensora_lite.errors import OpenSoraError, printable, shown

if TYPE_CHECKING:
    import paddle

TRAIN_STEPS = 1000


def space_timesteps(spacing: str | int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """The times that are kept of 0 … train_steps - 1, rising.

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
        raise OpenSoraError(f"no whole-number stride over {train_steps} times gives {spacing[4:]} steps") from None
    times, start = [], 0
    for i, count in enumerate(counts):
        size = train_steps // len(counts) + (i < train_steps % len(counts))
        if not 1 <= count <= size:
            raise OpenSoraError(f"{count} steps cannot be taken from {size} times; give 1 to {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1
        # as released: the stride is summed up, with its rounding, and not multiplied
        times += [start + round(at) for at in itertools.accumulate([stride] * (count - 1), initial=0.0)]
        start += size
    return times


class Schedule:
    """The linear schedule (β from 1e-4 to 0.02) at the kept times; all tables float32 [steps], index 0 the least noise.

    spacing, train_steps: as in `space_timesteps`.
    timesteps: the kept times. betas: noise added by one kept step. alphas_cumprod: ᾱ at the kept times;
    alphas_cumprod_prev: ᾱ one kept step closer to the video, 1 at the end. The others are named where they are used.
    """

    def __init__(self, spacing: str | int = TRAIN_STEPS, train_steps: int = TRAIN_STEPS):
        scale = 1000 / train_steps
        full = np.cumprod(1 - np.linspace(scale * 1e-4, scale * 0.02, train_steps))
        self.timesteps = np.array(space_timesteps(spacing, train_steps))
        kept = full[self.timesteps]
        # as released: float32 from here on, which moves the very last step by about 2e-4
        self.betas = (1 - kept / np.append(1.0, kept[:-1])).astype(np.float32)
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        self.alphas_cumprod_prev = np.append(np.float32(1), self.alphas_cumprod[:-1])
        # of the posterior q(x_{t-1} | x_t, x_0): DDPM, eq. 7; its variance is 0 at the end, whose logarithm
        # is replaced by that of the step before
        unknown = 1 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / unknown
        self.posterior_mean_x_0 = self.betas * np.sqrt(self.alphas_cumprod_prev) / unknown
        self.posterior_mean_x_t = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / unknown
        floor = self.posterior_variance[1:2] if len(self.timesteps) > 1 else self.betas
        self.posterior_log_variance = np.log(np.append(floor, self.posterior_variance[1:]))

    def __len__(self) -> int:
        return len(self.timesteps)

    def add_noise(self, x_0: "paddle.Tensor", noise: "paddle.Tensor", index: int) -> "paddle.Tensor":
        """x_t of the kept time `index`, of x_0 and noise of one shape: DDPM, eq. 4."""
        abar = self.alphas_cumprod[index]
        return float(np.sqrt(abar)) * x_0 + float(np.sqrt(1 - abar)) * noise

    def predict_x_0(self, x_t: "paddle.Tensor", epsilon: "paddle.Tensor", index: int) -> "paddle.Tensor":
        """The clean latent that x_t and its noise `epsilon`, of one shape, imply: DDPM, eq. 15."""
        abar = self.alphas_cumprod[index]
        return float(np.sqrt(1 / abar)) * x_t - float(np.sqrt(1 / abar - 1)) * epsilon
