"""Classifier-free guidance: ask the model with and without the caption, and go further in the difference.

ε = ε_without + s · (ε_with − ε_without)          (arXiv:2207.12598, eq. 6, with s = 1 + w)
"""

from dataclasses import dataclass
from typing import Any

import paddle

from opensora_lite.schedule import TRAIN_STEPS


@dataclass
class Prediction:
    """What the model says of one x_t; every field [B, C, T, H, W]."""

    epsilon: paddle.Tensor  # the noise, guided
    variance: paddle.Tensor  # where log σ² lies between its bounds, -1 … 1 (IDDPM, eq. 15)
    eps_cond: paddle.Tensor  # ε of the caption alone
    eps_uncond: paddle.Tensor | None  # ε of the empty caption; None where it was not asked for


class CFG:
    """A model, what it is told, and how strongly: called with x_t and a time, gives a Prediction.

    model: an STDiT2, or one that `engine` has compiled. y, mask: T5 vectors [B, 1, L, caption_channels] and their mask
    [B, L]. scale: s above; 1 leaves out the unconditional half, and with it half of the work.
    channels: how many of the latent channels are guided, counted from the first (None: all of them).
    interval: the first and the last time at which there is guidance (None: always); at others, half of the work is left
    out too. The noisiest times only lose variety by it, the last ones hardly change (arXiv:2404.07724).
    cache_threshold: above 0, the last output is used again until the input has moved so far (TeaCache, 2411.19108).
    sizes: num_frames, height, width, ar, fps of STDiT2.forward, numbers that hold for the whole batch.
    """

    def __init__(
        self,
        model,
        y,
        mask,
        scale: float,
        channels: int | None = None,
        interval: tuple[int, int] | None = None,
        cache_threshold: float = 0.0,
        **sizes: float,
    ):
        # No token beyond the longest caption of the batch is ever looked at. In sixteens: sums over that many, and
        # zeros beyond, have the same last bits in every batch.
        L = min(-(-int(mask.sum(1).max()) // 16) * 16, y.shape[2])
        y, mask = y[:, :, :L], mask[:, :L]
        self.model, self.scale, self.channels, self.videos = model, scale, channels, y.shape[0]
        self.first, self.last = interval or (0, TRAIN_STEPS - 1)
        self.guided = scale != 1
        if self.guided:  # as released: "no caption" is as long as the caption, and takes its mask
            empty = model.y_embedder.y_embedding[:L].astype(y.dtype)
            y = paddle.concat([y, empty.expand([*y.shape[:2], *empty.shape])])
            mask = paddle.concat([mask, mask])
        self.sizes = {name: paddle.full([1], float(value)) for name, value in sizes.items()}
        self.y, self.mask = y, mask
        self.latent_size: list[int] | None = None
        self.cache_threshold, self.asked = cache_threshold, 0  # how often the model was asked
        self._input: Any = None  # of the last time, as are:
        self._answer: Any = None
        self._mask: Any = None
        self._moved = 0.0  # since then

    def __call__(self, x, timestep: int, x_mask=None) -> Prediction:
        """x: [B, C, T, H, W]. timestep: 0 … 999. x_mask: [B, T], true where live, or None where all frames are."""
        guided = self.guided and self.first <= timestep <= self.last
        with paddle.no_grad():
            if self.latent_size != x.shape[2:]:  # what does not change from step to step is computed in the first
                self.latent_size = x.shape[2:]
                self.told = self.model.prepare(self.y, self.mask, self.latent_size, **self.sizes)
                self.told_half = self.told.first(self.videos) if self.guided else self.told
                self._answer = None
            time = paddle.full([1], float(timestep))
            if not self._holds(x, time, x_mask, guided):
                if guided:  # both halves in one batch
                    x = paddle.concat([x, x])
                    x_mask = None if x_mask is None else paddle.concat([x_mask, x_mask])
                self._answer = self.model.denoise(x, time, self.told if guided else self.told_half, x_mask)
                self.asked += 1
        out = self._answer
        epsilon, variance = out.chunk(2, axis=1)
        if not guided:
            return Prediction(epsilon, variance, epsilon, None)
        (epsilon, without), (variance, _) = epsilon.chunk(2), variance.chunk(2)
        mixed = without + self.scale * (epsilon - without)
        if self.channels is not None:  # as released: the other channels are those with the caption
            mixed = paddle.concat([mixed[:, : self.channels], epsilon[:, self.channels :]], 1)
        return Prediction(mixed, variance, epsilon, without)

    def _holds(self, x, time, x_mask, guided: bool) -> bool:
        """Whether the last answer still holds for this input."""
        if not self.cache_threshold:
            return False
        entering = self.model.entering(x, time, self.told)
        same = self._answer is not None and self._answer.shape[0] == (2 if guided else 1) * self.videos
        same = same and (x_mask is None) == (self._mask is None)
        if same and (x_mask is None or bool((x_mask == self._mask).all())):  # a frame that joins makes another question
            self._moved += float((entering - self._input).abs().mean() / self._input.abs().mean())
            holds = self._moved < self.cache_threshold
        else:
            holds = False
        self._input, self._mask = entering, x_mask
        self._moved = self._moved if holds else 0.0
        return holds
