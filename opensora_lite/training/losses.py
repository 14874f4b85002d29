"""Training losses: L_simple + L_vlb (Improved DDPM, arXiv:2102.09672, eq. 16 with λ = 1).

    L = E ‖ε − ε_θ(x_t, t)‖² + L_vlb

The mse trains the noise prediction ε_θ. L_vlb, the variational bound in bits per latent value, trains the variance
logits only: ε_θ is detached in it. Conditioning frames enter the model at t = 0 and contribute to neither term.

Source: hpcaitech/Open-Sora v1.1, opensora/schedulers/iddpm/gaussian_diffusion.py, training_losses; reproduced by
tests/golden/training_losses.safetensors.
"""

import math

import numpy as np
import paddle

from opensora_lite.schedule import TRAIN_STEPS, Schedule
from opensora_lite.video_vae import SPATIAL_FACTOR


class TrainingSchedule:
    """The tables of `Schedule` for all 1000 timesteps as tensors, indexed by one timestep per video.

    As released, in training too: the betas are rounded to float32, and all tables are computed from those in float32.
    """

    def __init__(self):
        schedule = Schedule()
        abar = schedule.alphas_cumprod
        tables = dict(
            signal=np.sqrt(abar),
            noise=np.sqrt(1 - abar),
            x_0_from_x_t=np.sqrt(1 / abar),
            x_0_from_epsilon=np.sqrt(1 / abar - 1),
            mean_x_0=schedule.posterior_mean_x_0,
            mean_x_t=schedule.posterior_mean_x_t,
            least_log_variance=schedule.posterior_log_variance,
            most_log_variance=np.log(schedule.betas),
        )
        self.tables = {name: paddle.to_tensor(table) for name, table in tables.items()}

    def __call__(self, name: str, t):
        """Table `name` at t int64 [B], broadcastable to [B, C, T, H, W]."""
        return self.tables[name][t][:, None, None, None, None]


def noised(schedule: TrainingSchedule, x_0, t, noise, x_mask=None):
    """x_t [B, C, T, H, W] at t [B]; frames where x_mask [B, T] is false get the noise of t = 0."""
    x_t = schedule("signal", t) * x_0 + schedule("noise", t) * noise
    if x_mask is None:
        return x_t
    zero = paddle.zeros_like(t)
    at_zero = schedule("signal", zero) * x_0 + schedule("noise", zero) * noise
    return paddle.where(x_mask[:, None, :, None, None], x_t, at_zero)


def training_losses(model, schedule, x_0, t, noise, y, mask, x_mask=None, weights=None, **conditions) -> dict:
    """The loss of each video and its two terms: {"loss", "mse", "vb"}, float32 [B] each; loss = mse + vb.

    model: an STDiT2. x_0, noise: [B, C, T, H, W] clean latents and standard normal noise. t: int64 [B], 0 … 999.
    y, mask, conditions: as in STDiT2.forward. x_mask: bool [B, T], true for frames to denoise, at least one per video.
    weights: float32 [1000], factors of the mse, or None.
    """
    x_t = noised(schedule, x_0, t, noise, x_mask)
    out = model(x_t, t.astype("float32"), y, mask, x_mask, **conditions)
    epsilon, variance_logits = out.chunk(2, axis=1)
    error = mean_of_denoised((noise - epsilon).square(), x_mask)
    mse = error if weights is None else weights[t] * error
    vb = variational_bound(schedule, x_0, x_t, t, epsilon.detach(), variance_logits, x_mask)
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def variational_bound(schedule, x_0, x_t, t, epsilon, variance_logits, x_mask=None):
    """L_{t-1} in bits per value, [B]: KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)), at t = 0 −log p_θ(x_0 | x_1).

    variance_logits: −1 … 1, interpolates log σ² between its bounds (Improved DDPM, eq. 15; the bound: eq. 4–7).
    """
    # as released: even at t = 0, where the true mean is x_0 itself
    true_mean = schedule("mean_x_0", t) * x_0 + schedule("mean_x_t", t) * x_t
    x_0_prediction = schedule("x_0_from_x_t", t) * x_t - schedule("x_0_from_epsilon", t) * epsilon
    mean = schedule("mean_x_0", t) * x_0_prediction + schedule("mean_x_t", t) * x_t
    least, most = schedule("least_log_variance", t), schedule("most_log_variance", t)
    share = (variance_logits + 1) / 2
    log_variance = share * most + (1 - share) * least

    ratio = (true_mean - mean).square() * paddle.exp(-log_variance)
    divergence = 0.5 * (log_variance - least - 1 + paddle.exp(least - log_variance) + ratio)
    bound = paddle.where(
        t == 0,
        mean_of_denoised(-discretized_log_likelihood(x_0, mean, log_variance), x_mask),
        mean_of_denoised(divergence, x_mask),
    )
    return bound / math.log(2)


def discretized_log_likelihood(x, mean, log_variance):
    """log of the probability of x ± 1/255 under a Gaussian (DDPM, eq. 13), elementwise.

    As released, on latents too, although these are not pixels quantized to 256 levels in −1 … 1.
    """
    inverse_std = paddle.exp(-0.5 * log_variance)
    above = normal_cdf(inverse_std * (x - mean + 1 / 255))
    below = normal_cdf(inverse_std * (x - mean - 1 / 255))
    probability = paddle.where(x < -0.999, above, paddle.where(x > 0.999, 1 - below, above - below))
    return paddle.log(probability.clip(min=1e-12))


def normal_cdf(x):
    """The standard normal distribution function in its tanh approximation, as released."""
    return 0.5 * (1 + paddle.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def mean_of_denoised(x, x_mask=None):
    """The mean of x [B, C, T, H, W] over the frames where x_mask [B, T] is true (None: all frames): [B]."""
    frames = x.mean([1, 3, 4])
    if x_mask is None:
        return frames.mean(1)
    denoised = x_mask.astype(x.dtype)
    return (frames * denoised).sum(1) / denoised.sum(1)


# ---------------------------------------------------------------------------------------------------------------------
#   Rectified flow (Open-Sora 1.2)
# ---------------------------------------------------------------------------------------------------------------------


def flow_losses(model, x_0, t, noise, y, mask, x_mask=None, **conditions) -> dict:
    """{"loss"}: float32 [B], the mean of ‖v_θ(x_t, t) − (x_0 − ε)‖² (arXiv:2209.03003, eq. 1) over denoised frames.

    model: an STDiT3. x_0, noise: [B, C, T, H, W] clean latents and standard normal noise. t: float32 [B], 0 … 1000, see
    `schedule.logit_normal` and `shift_timesteps`; all have the same weight. y, mask, conditions: as in STDiT3.forward.
    x_mask: bool [B, T], true for frames to denoise, at least one per video; the others stay clean, at t = 0.

    Source: hpcaitech/Open-Sora v1.2, opensora/schedulers/rf; reproduced by tests/golden/12/rflow_training_losses.
    """
    share = (t / TRAIN_STEPS)[:, None, None, None, None]
    x_t = (1 - share) * x_0 + share * noise
    if x_mask is not None:
        x_t = paddle.where(x_mask[:, None, :, None, None], x_t, x_0)
    velocity, _ = model(x_t, t, y, mask, x_mask, **conditions).chunk(2, axis=1)
    return {"loss": mean_of_denoised((velocity - (x_0 - noise)).square(), x_mask)}


# ---------------------------------------------------------------------------------------------------------------------
#   VAEs
# ---------------------------------------------------------------------------------------------------------------------


def vae_loss(model, pictures, noise, v):
    """Loss of ppdiffusers' AutoencoderKL `model` on pictures [B, 3, h, w], −1 … 1; v: a PictureLearning, its weights.

    L1 + squared error + L1 of the differences between neighbouring pixels + KL divergence of the posterior from a
    standard normal (arXiv:1312.6114, app. B), per latent value. noise: standard normal [B, C, h/8, w/8], for the
    reparameterized latents (sec. 2.4).
    """
    posterior = model.encode(pictures).latent_dist
    reconstruction = model.decode(posterior.mean + posterior.std * noise).sample
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return pixel_loss(reconstruction - pictures, v) + v.kl_weight * divergence


def pixel_loss(error, v):
    """L1 + squared error + L1 of the differences between neighbouring pixels, weighted by v. error: [..., h, w]"""
    edges = error.diff(axis=-2).abs().mean() + error.diff(axis=-1).abs().mean()
    return error.abs().mean() + v.squared_weight * error.square().mean() + v.gradient_weight * edges


def video_vae_loss(model, stage: str, spread: float, v, x, pixels, noise, still: bool, decoded):
    """Loss of a VideoAutoencoder `model` in a stage of VideoVAERecipe; v: the VideoLearning of that stage.

    x, pixels, noise, still, decoded: as from VideoPairs.batch, all but `still` as tensors. In the stage "temporal" the
    loss is L1 + squared error of the spatial latents, in units of their standard deviation `spread`, in the stage
    "decoder" `pixel_loss` of the frames `decoded`. The KL divergence is added, as in `vae_loss`; in the stage "decoder"
    the encoder gets no gradient.
    """
    temporal, T = model.temporal_vae, x.shape[2]

    def encode(x, noise):
        with paddle.set_grad_enabled(stage != "decoder"):
            mean, logvar = temporal.encode(x).chunk(2, axis=1)
            logvar = logvar.clip(-30, 20)
        return mean + (logvar / 2).exp() * noise, mean, logvar

    z, mean, logvar = encode(x, noise)
    if still:  # the last latent is that of a clip that shows its last frame only, and so do all of its frames
        image, _, _ = encode(x[:, :, -1:].expand_as(x), noise)
        z = paddle.concat([z[:, :, :-1], image[:, :, -1:]], 2)
        x, pixels = (paddle.concat([w[:, :, :-4], *[w[:, :, -1:]] * 4], 2) for w in (x, pixels))
    reconstruction = temporal.decode(z)[:, :, -T:]
    if stage == "temporal":
        error = (reconstruction - x) / spread
        loss = error.abs().mean() + error.square().mean()
    else:
        frames = reconstruction.index_select(decoded, 2).transpose([0, 2, 1, 3, 4]).flatten(0, 1) / SPATIAL_FACTOR
        shown = pixels.index_select(decoded, 2).transpose([0, 2, 1, 3, 4]).flatten(0, 1)
        loss = pixel_loss(model.spatial_vae.module.decode(frames).sample - shown, v)
    return loss + v.kl_weight * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
