"""IDDPM: ancestral sampling with a learned variance, the sampler that Open-Sora 1.1 was released with.

Sources: DDPM, arXiv:2006.11239; Improved DDPM, arXiv:2102.09672.
"""

import math

import numpy as np

from opensora_lite.samplers.loop import Sampler


class IDDPM(Sampler):
    """x_{t-1} ~ N(μ(x_t, x_0), σ²), with log σ² interpolated between log β̃ and log β."""

    def step(self, x_t, prediction, index, noise_fn, previous=None):
        s = self.schedule
        # 1. x_0 from ε (DDPM, eq. 15)
        x_0 = s.predict_x_0(x_t, prediction.epsilon, index)
        # 2. the mean of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7)
        mean = float(s.posterior_mean_x_0[index]) * x_0 + float(s.posterior_mean_x_t[index]) * x_t
        # 3. the variance (Improved DDPM, eq. 15)
        log_min, log_max = float(s.posterior_log_variance[index]), float(np.log(s.betas[index]))
        fraction = (prediction.variance_logits + 1) / 2
        log_variance = fraction * log_max + (1 - fraction) * log_min
        # 4. a draw; the last step returns the mean (as released: noise is drawn all the same)
        noise = noise_fn()
        if index == 0:
            return x_0, mean
        # a power and not paddle.exp, whose last bits depend on an element's position in the batch
        return x_0, mean + math.e ** (0.5 * log_variance) * noise
