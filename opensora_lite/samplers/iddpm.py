"""IDDPM: random steps whose variance the model has learned, as Open-Sora 1.1 was trained and is sampled.

Sources: DDPM, arXiv:2006.11239; Improved DDPM, arXiv:2102.09672.
"""

import math

import numpy as np

from opensora_lite.samplers.loop import Sampler


class IDDPM(Sampler):
    """x_{t-1} ~ N(μ(x_t, x_0), σ²), with log σ² between the least and the most that theory allows."""

    def step(self, x_t, prediction, index, draw, before=None):
        s = self.schedule
        # 1. the clean latent: x_0 from ε (DDPM, eq. 15)
        x_0 = s.predict_x_0(x_t, prediction.epsilon, index)
        # 2. the mean of x_{t-1}, if x_0 were known (DDPM, eq. 7)
        mean = float(s.posterior_mean_x_0[index]) * x_0 + float(s.posterior_mean_x_t[index]) * x_t
        # 3. its variance, between β̃ and β, where the model says (IDDPM, eq. 15)
        least, most = float(s.posterior_log_variance[index]), float(np.log(s.betas[index]))
        share = (prediction.variance + 1) / 2
        log_variance = share * most + (1 - share) * least
        # 4. a draw; the last step takes the mean alone
        noise = draw()
        if index == 0:
            return x_0, mean
        # as a power, since the last bits of paddle.exp depend on where in its batch a number stands
        return x_0, mean + math.e ** (0.5 * log_variance) * noise
