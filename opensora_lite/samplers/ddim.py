"""DDIM: deterministic sampling (for η = 0), usable with fewer steps than DDPM.

Source: Denoising Diffusion Implicit Models, arXiv:2010.02502.
"""

import math

from opensora_lite.errors import OpenSoraError
from opensora_lite.samplers.loop import Sampler


class DDIM(Sampler):
    """x_{t-1} from the predicted x_0 and ε.

    spacing: as in `Sampler`. eta: 0 adds no noise, 1 as much as DDPM (DDIM, eq. 16).
    Raises OpenSoraError for other values: above 1, the noise of a step can exceed the variance that it must have.
    """

    def __init__(self, spacing: str | int, eta: float = 0.0):
        super().__init__(spacing)
        if not 0 <= eta <= 1:
            raise OpenSoraError(f"eta is {eta!r}, but DDIM takes 0 (no noise) to 1 (as much as DDPM)")
        self.eta = eta

    def step(self, x_t, prediction, index, noise_fn=None, previous=None):
        abar, abar_prev = self.schedule.alphas_cumprod[index], self.schedule.alphas_cumprod_prev[index]
        # 1. x_0 from ε (DDPM, eq. 15)
        x_0 = self.schedule.predict_x_0(x_t, prediction.epsilon, index)
        # 2. the standard deviation of fresh noise (DDIM, eq. 16); 0 in the last step
        sigma = self.eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        # 3. x_0 noised to the next timestep with the predicted ε (DDIM, eq. 12)
        x_prev = math.sqrt(abar_prev) * x_0 + math.sqrt(1 - abar_prev - sigma**2) * prediction.epsilon
        # 4. plus the fresh noise
        return x_0, (x_prev + sigma * noise_fn() if sigma else x_prev)
