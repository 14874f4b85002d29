"""DDIM: the same path without chance, which needs fewer steps.

Source: Denoising Diffusion Implicit Models, arXiv:2010.02502.
"""

import math

from opensora_lite.samplers.loop import Sampler


class DDIM(Sampler):
    """x_{t-1} from x_0 and ε alone.

    spacing: as in `Sampler`. eta: 0, no noise is added; 1, as much as DDPM's β̃ (DDIM, eq. 16).
    """

    def __init__(self, spacing: str | int, eta: float = 0.0):
        super().__init__(spacing)
        self.eta = eta

    def step(self, x_t, prediction, index, draw, before=None):
        abar, abar_prev = self.schedule.alphas_cumprod[index], self.schedule.alphas_cumprod_prev[index]
        # 1. the clean latent: x_0 from ε (DDPM, eq. 15)
        x_0 = self.schedule.predict_x_0(x_t, prediction.epsilon, index)
        # 2. how much of the noise is drawn anew (DDIM, eq. 16)
        sigma = self.eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        # 3. x_0, noised for the time before with the noise that was predicted (DDIM, eq. 12)
        x_prev = math.sqrt(abar_prev) * x_0 + math.sqrt(1 - abar_prev - sigma**2) * prediction.epsilon
        # 4. and with what was drawn; at the end sigma is 0
        return x_0, (x_prev + sigma * draw() if sigma else x_prev)
