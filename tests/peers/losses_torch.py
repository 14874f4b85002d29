"""The training losses of Open-Sora 1.1 in PyTorch, independent of opensora_lite/training/losses.py.

The model predicts the noise ε and the variance logits v. The mean squared error trains ε; the variational bound, with ε
detached, trains v.

Sources: DDPM, arXiv:2006.11239; IDDPM, arXiv:2102.09672; hpcaitech/Open-Sora v1.1, opensora/schedulers/iddpm
(for the tanh form of the normal distribution and the frame mask). Axes as in stdit2_torch.py.
"""

import math

import torch

# As released: betas are rounded to float32, and the tables are computed from those in float32.
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).float()
ABAR = (1 - BETAS).cumprod(0)  # ᾱ_t
ABAR_BEFORE = torch.cat([torch.ones(1), ABAR[:-1]])  # ᾱ_{t-1}
VARIANCE = BETAS * (1 - ABAR_BEFORE) / (1 - ABAR)  # β̃_t, of q(x_{t-1} | x_t, x_0): DDPM, eq. 7
LOG_VARIANCE = torch.cat([VARIANCE[1:2], VARIANCE[1:]]).log()  # log 0 at t = 0 is replaced by its neighbour


def pick(table, t):
    """table[t] in the shape [B, 1, 1, 1, 1]."""
    return table[t][:, None, None, None, None]


def noised(x_0, t, noise):
    """x_t: DDPM, eq. 4."""
    return pick(ABAR.sqrt(), t) * x_0 + pick((1 - ABAR).sqrt(), t) * noise


def posterior_mean(x_0, x_t, t):
    """The mean of q(x_{t-1} | x_t, x_0): DDPM, eq. 7."""
    of_x_0 = BETAS * ABAR_BEFORE.sqrt() / (1 - ABAR)
    of_x_t = (1 - ABAR_BEFORE) * (1 - BETAS).sqrt() / (1 - ABAR)
    return pick(of_x_0, t) * x_0 + pick(of_x_t, t) * x_t


def divergence(mean_p, log_var_p, mean_q, log_var_q):
    """KL(p ‖ q) of two normal distributions, in nats."""
    return 0.5 * (log_var_q - log_var_p - 1 + (log_var_p - log_var_q).exp() + (mean_p - mean_q) ** 2 / log_var_q.exp())


def surprise(x_0, mean, log_variance):
    """-log of the probability of x_0 ± 1/255 under a normal distribution, in nats: DDPM, eq. 13."""

    def below(x):  # the distribution function, in its tanh approximation
        z = (x - mean) * (-0.5 * log_variance).exp()
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = torch.where(x_0 > 0.999, torch.ones_like(x_0), below(x_0 + 1 / 255))
    lower = torch.where(x_0 < -0.999, torch.zeros_like(x_0), below(x_0 - 1 / 255))
    return -(upper - lower).clamp(min=1e-12).log()


def training_losses(model, x_0, t, noise, x_mask=None, **conditions):
    """loss = mse + vb, each [B], of x_0 and noise [B, C, T, H, W], t [B], x_mask [B, T] (true where denoised).

    conditions: the other arguments of STDiT2.forward. mse: of ε. vb: the bound in bits. Both are means over the latent
    values of the denoised frames.
    """
    x_t = noised(x_0, t, noise)
    if x_mask is not None:  # conditioning frames: t = 0
        x_t = torch.where(x_mask[:, None, :, None, None], x_t, noised(x_0, torch.zeros_like(t), noise))
    epsilon, v = model(x_t, t, x_mask=x_mask, **conditions).chunk(2, 1)

    guess = pick((1 / ABAR).sqrt(), t) * x_t - pick((1 / ABAR - 1).sqrt(), t) * epsilon.detach()
    mean = posterior_mean(guess, x_t, t)
    share = (v + 1) / 2
    log_variance = share * pick(BETAS.log(), t) + (1 - share) * pick(LOG_VARIANCE, t)  # IDDPM, eq. 15
    step = divergence(posterior_mean(x_0, x_t, t), pick(LOG_VARIANCE, t), mean, log_variance)
    bound = torch.where((t == 0)[:, None, None, None, None], surprise(x_0, mean, log_variance), step) / math.log(2)

    def average(values):
        if x_mask is None:
            return values.mean((1, 2, 3, 4))
        return (values.mean((1, 3, 4)) * x_mask).sum(1) / x_mask.sum(1)

    mse, vb = average((noise - epsilon) ** 2), average(bound)
    return {"loss": mse + vb, "mse": mse, "vb": vb}
