"""From pixels to latents and back: a picture autoencoder applied to every frame on its own.

Axes: B videos · T frames · H, W height and width in pixels, h, w in latents (an eighth) · C latent channels (4).
Sources: High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752; the weights that
Open-Sora 1.1 uses are stabilityai/sd-vae-ft-ema, the model is ppdiffusers' AutoencoderKL.
"""

import inspect
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import paddle

from opensora_lite.device import lean_paddlenlp, quiet
from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_fields,
    check_state_dict,
    load,
    open_checkpoint,
    read_config,
    rename_2022,
)
from opensora_lite.runtime.memory import micro_batch

SCALING_FACTOR = 0.18215  # of sd-vae-ft-ema, whose config.json does not name it

RANGES = {  # of the fields of a config: whatever is beyond them was not meant
    "latent_channels": (1, 64),
    "layers_per_block": (1, 16),
    "norm_num_groups": (1, 2**13),
    "scaling_factor": (1e-6, 1e6),
    "use_quant_conv": (False, True),
    "use_post_quant_conv": (False, True),
}
# Whatever else a config may say, this is the autoencoder that FrameVAE is made for.
NEEDED = {
    "_class_name": "AutoencoderKL",
    "mid_block_add_attention": True,
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "shift_factor": None,  # what later models take from their latents before they scale them
    "latents_mean": None,
    "latents_std": None,
    "down_block_out_channels": None,
    "up_block_out_channels": None,
}


class FrameVAE:
    """An image autoencoder that encodes and decodes videos frame by frame.

    model: ppdiffusers' AutoencoderKL. scaling_factor: latents are multiplied by it, so that their standard deviation
    is about 1. micro_batch_size: frames that pass through the model at once; None: up to 16, as many as the memory that
    is free allows. The results are the same.
    """

    def __init__(self, model, scaling_factor: float = SCALING_FACTOR, micro_batch_size: int | None = None):
        self.model, self.scaling_factor, self.micro_batch_size = model, scaling_factor, micro_batch_size
        self.channels = model.config.latent_channels
        self.downsampling = 2 ** (len(model.config.block_out_channels) - 1)

    def encode(self, video, posterior: str = "mean", rng: np.random.Generator | None = None):
        """Scaled latents [B, C, T, h, w] of a video [B, 3, T, H, W] with values -1 … 1.

        posterior: "mean", the best guess, the same every time, or "sample", drawn with `rng` (as released).
        """
        if posterior not in ("mean", "sample") or (posterior == "sample" and rng is None):
            raise ValueError(f'posterior is "mean", or "sample" with an rng; got {posterior!r}, rng={rng!r}')

        def latents(frames):
            distribution = self.model.encode(frames).latent_dist
            if posterior == "mean" or rng is None:
                return distribution.mean
            noise = rng.standard_normal(distribution.mean.shape, np.float32)
            return distribution.mean + distribution.std * paddle.to_tensor(noise).astype(distribution.mean.dtype)

        at_once = self._micro_batch(video.shape, 1)
        return self._by_frames(latents, video, at_once) * self.scaling_factor

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Scaled latents float32 [C, T, h, w] of one clip, uint8 [T, H, W, 3]; the mean of the posterior."""
        pixels = frames.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
        return self.encode(paddle.to_tensor(pixels)).numpy()[0]

    def decode(self, latents, decoder: Callable | None = None):
        """The video [B, 3, T, H, W], values about -1 … 1, of scaled latents [B, C, T, h, w].

        decoder: frames [n, 3, H, W] of unscaled latents [n, C, h, w]; None: the model's own, uncompiled.
        """
        at_once = self._micro_batch(latents.shape, self.downsampling)
        unscaled = latents / self.scaling_factor
        return self._by_frames(decoder or (lambda z: self.model.decode(z).sample), unscaled, at_once)

    def _micro_batch(self, shape: Sequence[int], pixels: int) -> int:
        """Frames at once of a tensor of this shape, [B, c, T, h, w], each number of which has `pixels` × `pixels`."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        B, _, T, h, w = shape
        dtype = str(self.model.encoder.conv_in.weight.dtype).removeprefix("paddle.")
        return micro_batch(self.model.config, B * T, h * pixels, w * pixels, dtype, paddle.get_device())

    def _by_frames(self, function, x, at_once: int):
        """[B, c, T, …] -> frames [B·T, c, …] -> function, so many at once -> [B, c', T, …]"""
        B, c, T, *size = x.shape
        frames = x.transpose([0, 2, 1, 3, 4]).reshape([B * T, c, *size])
        frames = frames.astype(self.model.encoder.conv_in.weight.dtype)
        with paddle.no_grad():
            done = [function(frames[i : i + at_once]) for i in range(0, B * T, at_once)]
        done = paddle.concat(done).astype("float32")
        return done.reshape([B, T, *done.shape[1:]]).transpose([0, 2, 1, 3, 4])


def load_vae(path: str | Path, dtype: str = "float32", micro_batch_size: int | None = None) -> FrameVAE:
    """The VAE of a folder with config.json and weights, in Hugging Face's layout (also under the names of 2022).

    Raises CheckpointError, before anything is allocated, where files are missing, broken or do not fit.
    """
    config, tensors, what = read_config(path), open_checkpoint(path), f"VAE checkpoint {path}"
    rename = rename_2022(tensors)
    check_state_dict(build_meta(new_autoencoder, config), tensors, rename, what=what)
    model = load(build(new_autoencoder, config, dtype=dtype), tensors, rename, what=what)
    return FrameVAE(model, config.get("scaling_factor", SCALING_FACTOR), micro_batch_size)


def new_autoencoder(config: dict):
    """An AutoencoderKL of ppdiffusers for the fields of a config.json that it knows.

    Raises CheckpointError for another model's, and for values that no such model has.
    """
    numpy_bool = vars(np).get("bool")  # numpy 1 has none, and warns when asked for it
    with quiet(), lean_paddlenlp():
        from ppdiffusers.models.autoencoder_kl import AutoencoderKL
    if numpy_bool is not None:  # ppdiffusers sets it to Python's, with which functions of numpy 2 no longer work
        vars(np)["bool"] = numpy_bool

    for field, needed in NEEDED.items():
        if config.get(field, needed) != needed:
            raise CheckpointError(f"the VAE's config has {field} = {reprlib.repr(config[field])}; {needed!r} is needed")
    check_fields(config, RANGES, "the VAE's config")
    channels, groups = config.get("block_out_channels", [64]), config.get("norm_num_groups", 32)
    if not isinstance(channels, (list, tuple)) or not 1 <= len(channels) <= 8:
        raise CheckpointError(
            f"the VAE's config has block_out_channels = {reprlib.repr(channels)}; give 1 to 8 numbers"
        )
    for n in channels:
        if type(n) is not int or not 1 <= n <= 2**13 or n % groups:
            raise CheckpointError(
                f"the VAE's config has {reprlib.repr(n)} among block_out_channels;"
                f" multiples of its norm_num_groups, {groups}, up to {2**13} are needed"
            )
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(field, [kind]) != [kind] * len(channels):
            given = reprlib.repr(config.get(field))
            raise CheckpointError(f"the VAE's config has {field} = {given}; {kind} is needed {len(channels)} times")
    known = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"sample_size"}  # which is for tiling, unused
    return AutoencoderKL(**{name: value for name, value in config.items() if name in known})
