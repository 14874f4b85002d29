"""What a video transformer is trained to make small: the noise that it missed, and the range of the next step.

    L = E ‖ε − ε_θ(x_t, t)‖² + L_vb          (IDDPM, arXiv:2102.09672, eq. 16, with λ = 1 and learned variances)

The first term teaches ε. The second, a bound on the likelihood in bits per value, teaches log σ² alone: in it ε_θ is
held fixed. Frames that are given to the model are shown as they are at t = 0, and count in neither term.

Source: hpcaitech/Open-Sora v1.1, opensora/schedulers/iddpm/gaussian_diffusion.py, training_losses; reproduced by
tests/golden/training_losses.safetensors.
"""

import math

import numpy as np
import paddle

from opensora_lite.schedule import TRAIN_STEPS


class TrainingSchedule:
    """The tables of samplers.Schedule at all 1000 times, as tensors that are read at one time per video.

    Computed in float64 and rounded once, as the original does in training.
    """

    def __init__(self):
        betas = np.linspace(1e-4, 0.02, TRAIN_STEPS)
        abar = np.cumprod(1 - betas)
        before = np.append(1.0, abar[:-1])
        variance = betas * (1 - before) / (1 - abar)  #          of q(x_{t-1} | x_t, x_0): DDPM, eq. 7
        self.tables = {
            name: paddle.to_tensor(table.astype(np.float32))
            for name, table in dict(
                signal=np.sqrt(abar),
                noise=np.sqrt(1 - abar),
                x_0_from_x_t=np.sqrt(1 / abar),
                x_0_from_epsilon=np.sqrt(1 / abar - 1),
                mean_x_0=betas * np.sqrt(before) / (1 - abar),
                mean_x_t=(1 - before) * np.sqrt(1 - betas) / (1 - abar),
                least_log_variance=np.log(np.append(variance[1], variance[1:])),  # that of t = 0 would be log 0
                most_log_variance=np.log(betas),
            ).items()
        }

    def __call__(self, name: str, t):
        """The table `name` at t int64 [B], to be multiplied with [B, C, T, H, W]."""
        return self.tables[name][t][:, None, None, None, None]


def noised(schedule: TrainingSchedule, x_0, t, noise, x_mask=None):
    """x_t [B, C, T, H, W] at t [B]; frames that x_mask [B, T] keeps are as they are at t = 0."""
    x_t = schedule("signal", t) * x_0 + schedule("noise", t) * noise
    if x_mask is None:
        return x_t
    zero = paddle.zeros_like(t)
    kept = schedule("signal", zero) * x_0 + schedule("noise", zero) * noise
    return paddle.where(x_mask[:, None, :, None, None], x_t, kept)


def training_losses(model, schedule, x_0, t, noise, y, mask, x_mask=None, weights=None, **conditions) -> dict:
    """The loss of each video, and its two parts: {"loss", "mse", "vb"}, float32 [B] each; loss = mse + vb.

    model: an STDiT2. x_0, noise: [B, C, T, H, W] clean latents and standard normal noise. t: int64 [B], 0 … 999.
    y, mask, conditions: as in STDiT2.forward. x_mask: bool [B, T], true where a frame is to be denoised; each video
    needs one such frame. weights: float32 [1000], factors of the mse, or None.
    """
    x_t = noised(schedule, x_0, t, noise, x_mask)
    out = model(x_t, t.astype("float32"), y, mask, x_mask, **conditions)
    epsilon, variance = out.chunk(2, axis=1)
    error = mean_of_live((noise - epsilon).square(), x_mask)
    mse = error if weights is None else weights[t] * error
    vb = variational_bound(schedule, x_0, x_t, t, epsilon.detach(), variance, x_mask)
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def variational_bound(schedule, x_0, x_t, t, epsilon, variance, x_mask=None):
    """L_{t-1} of the bound in bits per value, [B]: a divergence of Gaussians, at t = 0 −log p(x_0|x_1): IDDPM, eq. 4–7.

    variance: the model's say, −1 … 1, on where log σ² lies between its bounds (IDDPM, eq. 15).
    """
    # as released: even at t = 0, where the true mean is x_0 itself
    true_mean = schedule("mean_x_0", t) * x_0 + schedule("mean_x_t", t) * x_t
    guess = schedule("x_0_from_x_t", t) * x_t - schedule("x_0_from_epsilon", t) * epsilon
    mean = schedule("mean_x_0", t) * guess + schedule("mean_x_t", t) * x_t
    least, most = schedule("least_log_variance", t), schedule("most_log_variance", t)
    share = (variance + 1) / 2
    log_variance = share * most + (1 - share) * least

    ratio = (true_mean - mean).square() * paddle.exp(-log_variance)
    divergence = 0.5 * (log_variance - least - 1 + paddle.exp(least - log_variance) + ratio)
    bound = paddle.where(
        t == 0,
        mean_of_live(-discretized_log_likelihood(x_0, mean, log_variance), x_mask),
        mean_of_live(divergence, x_mask),
    )
    return bound / math.log(2)


def discretized_log_likelihood(x, mean, log_variance):
    """log of the probability that a Gaussian gives to x rounded to 1/255 (DDPM, eq. 13), elementwise.

    As released, on latents too, though those are no pixels with 255 steps between −1 and 1.
    """
    inverse_std = paddle.exp(-0.5 * log_variance)
    above = normal_cdf(inverse_std * (x - mean + 1 / 255))
    below = normal_cdf(inverse_std * (x - mean - 1 / 255))
    probability = paddle.where(x < -0.999, above, paddle.where(x > 0.999, 1 - below, above - below))
    return paddle.log(probability.clip(min=1e-12))


def normal_cdf(x):
    """An approximation of the standard normal distribution's Φ (the tanh form, as released)."""
    return 0.5 * (1 + paddle.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def mean_of_live(x, x_mask=None):
    """The mean of x [B, C, T, H, W] over all axes but the first, without the frames that x_mask [B, T] keeps: [B]."""
    frames = x.mean([1, 3, 4])
    if x_mask is None:
        return frames.mean(1)
    live = x_mask.astype(x.dtype)
    return (frames * live).sum(1) / live.sum(1)


# ---------------------------------------------------------------------------------------------------------------------
#   The frame VAE
# ---------------------------------------------------------------------------------------------------------------------


def vae_loss(model, pictures, noise, v):
    """The loss of ppdiffusers' AutoencoderKL `model` on pictures [B, 3, h, w], −1 … 1, of a stage `v`.

    noise: standard normal [B, C, h/8, w/8], which draws the latents (arXiv:1312.6114, sec. 2.4). The mean of the
    absolute and of the squared error, the absolute error of the differences between neighbouring pixels, for sharp
    edges, and the divergence of the latents from a standard normal (appendix B there), per latent value.
    """
    posterior = model.encode(pictures).latent_dist
    again = model.decode(posterior.mean + posterior.std * noise).sample
    error = again - pictures
    edges = error.diff(axis=2).abs().mean() + error.diff(axis=3).abs().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return (
        error.abs().mean()
        + v.squared_weight * error.square().mean()
        + v.gradient_weight * edges
        + v.kl_weight * divergence
    )
