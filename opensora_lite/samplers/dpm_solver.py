"""DPM-Solver++ (2M): the same path in straight pieces of the right variable, good in 10 to 20 steps.

Source: DPM-Solver++, arXiv:2211.01095, algorithm 2. λ = log(α/σ) is half the logarithm of the signal-to-noise ratio.
"""

import math

import numpy as np
import paddle

from opensora_lite.samplers.loop import Sampler


class DPMSolver(Sampler):
    """A second-order multistep solver that extrapolates x_0 from this step and the one before."""

    def step(self, x_t, prediction, index, draw=None, before=None):
        s = self.schedule
        # 1. the clean latent: x_0 from ε (DDPM, eq. 15)
        x_0 = s.predict_x_0(x_t, prediction.epsilon, index)
        # 2. the last step ends at λ = ∞, where only x_0 is left
        if index == 0:
            return x_0, x_0
        log_snr = 0.5 * np.log(s.alphas_cumprod / (1 - s.alphas_cumprod))
        h = float(log_snr[index - 1] - log_snr[index])
        # 3. x_0 in the middle of the step, extrapolated from the last two (algorithm 2, line 9). Not on the way to
        #    the last time, which is so long in λ that extrapolating overshoots (`lower_order_final` in the authors'
        #    code), and not for a frame that has just joined, which has no step before
        x_mid = x_0
        if before is not None and index > 1:
            r = float(log_snr[index] - log_snr[index + 1]) / h
            x_mid = x_0 + (x_0 - before.x_0) / (2 * r)
            if before.active is not None:
                x_mid = paddle.where(before.active, x_mid, x_0)
        # 4. along the straight piece (algorithm 2, line 10)
        abar, abar_prev = s.alphas_cumprod[index], s.alphas_cumprod[index - 1]
        shrink = math.sqrt((1 - abar_prev) / (1 - abar))
        return x_0, shrink * x_t - math.sqrt(abar_prev) * math.expm1(-h) * x_mid
