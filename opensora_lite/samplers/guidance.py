"""Classifier-free guidance.

    ε = ε_uncond + s · (ε_cond − ε_uncond)          (arXiv:2207.12598, eq. 6, with s = 1 + w)

The same holds for the velocity v of rectified flow, which is linear in ε.
"""

from dataclasses import dataclass, replace

import paddle

from opensora_lite.schedule import TRAIN_STEPS


@dataclass
class Prediction:
    """The denoiser's output for one x_t, every field [B, C, T, H, W]: noise ε (STDiT2) or velocity v (STDiT3)."""

    output: paddle.Tensor  # guided
    variance_logits: paddle.Tensor  # STDiT2: -1 … 1, interpolates log σ² (Improved DDPM, eq. 15); STDiT3: no meaning
    cond: paddle.Tensor  # output with the caption
    uncond: paddle.Tensor | None  # with the null caption; None where guidance is off

    @property
    def epsilon(self) -> paddle.Tensor:
        """The output of a model that predicts the noise."""
        return self.output

    @property
    def velocity(self) -> paddle.Tensor:
        """The output of a model that predicts the velocity."""
        return self.output


class CFG:
    """A denoiser with classifier-free guidance, called as cfg(x_t, t, x_mask) -> Prediction.

    denoiser: STDiT2, STDiT3, or a wrapper with the same methods. conditions: the model's `Conditions` of B videos.
    scale: s above; 1 turns guidance off, which halves the work. channels: guide only the first latent channels (None:
    all of them). interval: the smallest and the largest timestep with guidance, None for all; outside it, a step costs
    half (arXiv:2404.07724: guidance reduces diversity at the noisiest timesteps and changes little at the last ones).
    """

    def __init__(
        self,
        denoiser,
        conditions,
        scale: float,
        channels: int | None = None,
        interval: tuple[float, float] | None = None,
    ):
        self.denoiser, self.scale, self.channels = denoiser, scale, channels
        self.first, self.last = interval or (0.0, float(TRAIN_STEPS))
        B, _, L, _ = conditions.y.shape
        with paddle.no_grad():
            if scale != 1:  # as released: the null caption has the caption's length and mask
                null = denoiser.null_caption[:L].astype(conditions.y.dtype).expand([B, 1, L, -1])
                y, y_mask = paddle.concat([conditions.y, null]), paddle.concat([conditions.y_mask] * 2)
                conditions = replace(conditions, y=y, y_mask=y_mask)
            self.state = denoiser.precompute(conditions)  # with guidance, of both halves of the batch
            self.state_cond = self.state if scale == 1 else self.state.first(B)

    def __call__(self, x, t: float, x_mask=None) -> Prediction:
        """x: [B, C, T, H, W]. t: 0 … 1000. x_mask: [B, T], True for denoised frames, or None for all."""
        guided = self.scale != 1 and self.first <= t <= self.last
        timestep = paddle.full([1], float(t))
        with paddle.no_grad():
            if not guided:
                cond, variance_logits = self.denoiser.denoise(x, timestep, self.state_cond, x_mask).chunk(2, axis=1)
                return Prediction(cond, variance_logits, cond, None)
            both = paddle.concat([x, x])
            x_mask = None if x_mask is None else paddle.concat([x_mask, x_mask])
            output, variance_logits = self.denoiser.denoise(both, timestep, self.state, x_mask).chunk(2, axis=1)
            cond, uncond = output.chunk(2)
            output = uncond + self.scale * (cond - uncond)
            if self.channels is not None:  # as released: the other channels are not guided
                output = paddle.concat([output[:, : self.channels], cond[:, self.channels :]], 1)
        return Prediction(output, variance_logits.chunk(2)[0], cond, uncond)
