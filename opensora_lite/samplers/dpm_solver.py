"""DPM-Solver++ (2M): a second-order multistep solver; 10 to 20 steps are enough.

Source: DPM-Solver++, arXiv:2211.01095, algorithm 2. λ = log(α/σ) is half the log signal-to-noise ratio.
"""

import math

import numpy as np
import paddle

from opensora_lite.samplers.loop import Sampler


class DPMSolver(Sampler):
    """x_{t-1} by a step of length h in λ, with x_0 extrapolated from this step and the previous one."""

    def step(self, x_t, prediction, index, noise_fn=None, previous=None):
        s = self.schedule
        # 1. x_0 from ε (DDPM, eq. 15)
        x_0 = s.predict_x_0(x_t, prediction.epsilon, index)
        # 2. the last step ends at λ = ∞, where only x_0 is left
        if index == 0:
            return x_0, x_0
        log_snr = 0.5 * np.log(s.alphas_cumprod / (1 - s.alphas_cumprod))
        h = float(log_snr[index - 1] - log_snr[index])
        # 3. x_0 at the middle of the step, extrapolated from the last two (algorithm 2, line 9). First order in the
        #    step to the last timestep, whose h is so large that extrapolating overshoots (`lower_order_final` in the
        #    authors' code), and for frames that have just started, which have no previous step
        x_mid = x_0
        if previous is not None and index > 1:
            r = float(log_snr[index] - log_snr[index + 1]) / h
            x_mid = x_0 + (x_0 - previous.x_0) / (2 * r)
            if previous.active is not None:
                x_mid = paddle.where(previous.active, x_mid, x_0)
        # 4. the exact solution of the linear part (algorithm 2, line 10)
        abar, abar_prev = s.alphas_cumprod[index], s.alphas_cumprod[index - 1]
        decay = math.sqrt((1 - abar_prev) / (1 - abar))
        return x_0, decay * x_t - math.sqrt(abar_prev) * math.expm1(-h) * x_mid
