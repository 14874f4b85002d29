"""Small things that many tests use."""

import numpy as np

# A training run that takes seconds: six steps of a transformer with one block, on clips of up to four frames.
MICRO = """
seed: 1
save_every: 2
sheet_every: 0
world: {clips: 10, num_frames: 4, captions: 3}
vae: {init: tiny}
diffusion:
  optimizer: muon
  warmup: 2
  hidden_size: 24
  depth: 1
  num_heads: 2
  d_model: 24
  d_kv: 12
  d_ff: 24
  num_layers: 1
  t5_heads: 2
  frame_masks: {none: 0.5, image_head: 0.25, quarter_tail: 0.25}
  stages:
    - {steps: 2, lengths: {1: 1.0}, batch: 4}
    - {steps: 4, lengths: {4: 0.6, 2: 0.4}, batch: 2}
"""

# The same for Open-Sora 1.2: two stages of the VAE, then images and clips of one and two chunks.
MICRO_12 = """
seed: 1
save_every: 2
sheet_every: 0
world: {clips: 3, kinds: [17x32x32, 34x32x32, 17x24x32], captions: 3}
vae:
  clips: 3
  kinds: [17x16x24]
  channels: 6
  filters: 10
  temporal: {steps: 3, batch: 2, crop: 16, warmup: 2, learning_rate: 2.0e-3}
  decoder: {steps: 2, batch: 8, crop: 16, crop_share: 0.0, decoded: 1, warmup: 1, kl_weight: 0.0, learning_rate: 1.0e-3}
diffusion:
  warmup: 2
  hidden_size: 24
  depth: 1
  num_heads: 2
  d_model: 24
  d_kv: 12
  d_ff: 24
  num_layers: 1
  t5_heads: 2
  frame_masks: {none: 0.5, image_head: 0.25, quarter_tail: 0.25}
  stages:
    - {steps: 2, lengths: {1: 1.0}, batch: 1}
    - {steps: 4, lengths: {5: 0.6, 10: 0.4}, batch: 1}
"""


def relative_error(a, b) -> float:
    """‖a − b‖ / ‖b‖"""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2), 1e-9)))


def layers_with_other_outputs(model, dtype) -> list[str]:
    """A list that grows, whenever the model is called, by the layers whose output has another dtype."""
    found = []

    def check(layer, _, output):
        if hasattr(output, "dtype") and output.dtype != dtype:
            found.append(type(layer).__name__)

    for layer in model.sublayers():
        layer.register_forward_post_hook(check)
    return found
