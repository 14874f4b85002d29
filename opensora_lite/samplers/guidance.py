"""Classifier-free guidance: ask the model with and without the caption, and go further in the difference.

ε = ε_without + s · (ε_with − ε_without)          (arXiv:2207.12598, eq. 6, with s = 1 + w)
"""

from dataclasses import dataclass

import paddle


@dataclass
class Prediction:
    """What the model says of one x_t; every field [B, C, T, H, W]."""

    epsilon: paddle.Tensor  # the noise, guided
    variance: paddle.Tensor  # where log σ² lies between its bounds, -1 … 1 (IDDPM, eq. 15)
    with_caption: paddle.Tensor  # ε of the caption alone
    without_caption: paddle.Tensor | None  # ε of the empty caption; None where it was not asked for


class Guidance:
    """A model, what it is told, and how strongly: called with x_t and a time, gives a Prediction.

    model: an STDiT2. y, mask: T5 vectors [B, 1, L, caption_channels] and their mask [B, L].
    scale: s above; 1 leaves out the unconditional half, and with it half of the work.
    channels: how many of the latent channels are guided, counted from the first (None: all of them).
    sizes: num_frames, height, width, ar, fps of STDiT2.forward, numbers that hold for the whole batch.
    """

    def __init__(self, model, y, mask, scale: float, channels: int | None = None, **sizes: float):
        # no token beyond the longest caption of the batch is ever looked at
        L = int(mask.sum(1).max())
        y, mask = y[:, :, :L], mask[:, :L]
        self.model, self.scale, self.channels = model, scale, channels
        self.guided = scale != 1
        if self.guided:  # as released: "no caption" is as long as the caption, and takes its mask
            empty = model.y_embedder.y_embedding[:L].astype(y.dtype)
            y = paddle.concat([y, empty.expand([*y.shape[:2], *empty.shape])])
            mask = paddle.concat([mask, mask])
        self.conditions = {name: paddle.full([y.shape[0]], float(value)) for name, value in sizes.items()}
        self.y, self.mask = y, mask

    def __call__(self, x, timestep: int, x_mask=None) -> Prediction:
        """x: [B, C, T, H, W]. timestep: 0 … 999. x_mask: [B, T], true where live, or None where all frames are."""
        if self.guided:  # both halves in one batch
            x = paddle.concat([x, x])
            x_mask = None if x_mask is None else paddle.concat([x_mask, x_mask])
        time = paddle.full([x.shape[0]], float(timestep))
        with paddle.no_grad():
            out = self.model(x, time, self.y, self.mask, x_mask, **self.conditions)
        epsilon, variance = out.chunk(2, axis=1)
        if not self.guided:
            return Prediction(epsilon, variance, epsilon, None)
        (epsilon, without), (variance, _) = epsilon.chunk(2), variance.chunk(2)
        guided = without + self.scale * (epsilon - without)
        if self.channels is not None:  # as released: the other channels are those with the caption
            guided = paddle.concat([guided[:, : self.channels], epsilon[:, self.channels :]], 1)
        return Prediction(guided, variance, epsilon, without)
