"""Rectified flow as Open-Sora 1.2 trains it, in PyTorch, independent of opensora_lite.

    x_t = (1 − t) x_0 + t ε,   v = x_0 − ε   (as released: v points to the data; t is given as 0 … 1000)

Sources: Rectified Flow, arXiv:2209.03003; Stable Diffusion 3, arXiv:2403.03206 (logit-normal times, timestep shift);
hpcaitech/Open-Sora v1.2, opensora/schedulers/rf/rectified_flow.py. Axes as in stdit2_torch.py.
"""

import torch


def timestep_transform(t, height, width, num_frames, base_size=512.0, scale=1.0):
    """t, 0 … 1000, moved towards the noise, the more so the larger the video: r t / (1 + (r − 1) t).

    All [B]. r = √(height · width) / base_size · √latent frames, without the second root where the batch's first video
    is an image. num_frames counts pictures, of which the original makes (frames // 17) · 5 latents.
    """
    share = t / 1000
    ratio = (height * width / base_size**2).sqrt()
    length = torch.ones_like(num_frames) if num_frames[0] == 1 else num_frames.div(17, rounding_mode="floor") * 5
    ratio = ratio * length.sqrt() * scale
    return 1000 * (ratio * share / (1 + (ratio - 1) * share))


def logit_normal(normal):
    """Times 0 … 1000 of normally distributed numbers."""
    return 1000 * torch.sigmoid(normal)


def noised(x_0, t, noise):
    """x_t of t [B], 0 … 1000."""
    share = (t / 1000)[:, None, None, None, None]
    return (1 - share) * x_0 + share * noise


def training_losses(model, x_0, t, noise, x_mask=None, **conditions):
    """{"loss": [B]} of x_0 and noise [B, C, T, H, W], t [B], 0 … 1000, x_mask [B, T] (true where denoised).

    conditions: the other arguments of STDiT3.forward. The mean of (v − (x_0 − noise))² over the denoised frames; the
    others stay clean.
    """
    x_t = noised(x_0, t, noise)
    if x_mask is not None:
        x_t = torch.where(x_mask[:, None, :, None, None], x_t, x_0)
    velocity = model(x_t, t, x_mask=x_mask, **conditions).chunk(2, 1)[0]  # as released: the other half is unused
    error = ((velocity - (x_0 - noise)) ** 2).mean((1, 3, 4))  #              (B, T)
    if x_mask is None:
        return {"loss": error.mean(1)}
    return {"loss": (error * x_mask).sum(1) / x_mask.sum(1)}
