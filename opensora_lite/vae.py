"""Frame-wise VAE: an image autoencoder applied to every frame independently.

Axes: B videos · T frames · H, W height and width in pixels, h, w in latents (an eighth) · C latent channels (4).
Sources: High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752; the weights that
Open-Sora 1.1 uses are stabilityai/sd-vae-ft-ema, the model is ppdiffusers' AutoencoderKL.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import paddle
from pydantic import Field

from opensora_lite.device import quiet
from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_state_dict,
    find_part,
    load,
    open_checkpoint,
    read_config,
    rename_2022,
    without_prefix,
)
from opensora_lite.lean_imports import lean_paddlenlp
from opensora_lite.validation import AsTuple, Whole, known_fields, validated

SCALING_FACTOR = 0.18215  # of sd-vae-ft-ema, whose config.json does not name it
MICRO_BATCH_SIZE = 16


class FrameVAE:
    """An image autoencoder that encodes and decodes videos frame by frame.

    model: ppdiffusers' AutoencoderKL. scaling_factor: multiplies latents, so that their standard deviation is about 1.
    micro_batch_size: frames that pass through the model at once, or a function that chooses it for each video,
    called with (config, number of frames, height, width, dtype, device). The results don't depend on it.
    """

    def __init__(
        self,
        model,
        scaling_factor: float = SCALING_FACTOR,
        micro_batch_size: int | Callable[..., int] = MICRO_BATCH_SIZE,
    ):
        self.model, self.scaling_factor, self.micro_batch_size = model, scaling_factor, micro_batch_size
        self.channels = model.config.latent_channels
        self.downsampling = 2 ** (len(model.config.block_out_channels) - 1)

    def latent_frames(self, num_frames: int) -> int:
        """Number of latent frames of a video: as many as it has frames."""
        return num_frames

    def encode(self, video, posterior: Literal["mean", "sample"] = "mean", rng: np.random.Generator | None = None):
        """Scaled latents [B, C, T, h, w] of a video [B, 3, T, H, W] with values -1 … 1.

        posterior: "mean", which is deterministic, or "sample", drawn with `rng` (as released).
        """
        if posterior == "sample" and rng is None:
            raise ValueError('posterior="sample" needs an rng')

        def latents(frames):
            distribution = self.model.encode(frames).latent_dist
            if posterior == "mean" or rng is None:
                return distribution.mean
            noise = rng.standard_normal(distribution.mean.shape, np.float32)
            return distribution.mean + distribution.std * paddle.to_tensor(noise).astype(distribution.mean.dtype)

        return self._by_frames(latents, video, pixels=1) * self.scaling_factor

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Scaled latents float32 [C, T, h, w] of one clip [T, H, W, 3], 0 … 255; the mean of the posterior."""
        return self.encode(from_uint8(frames)).numpy()[0]

    @property
    def decoders(self) -> dict[str, tuple[paddle.nn.Layer, Callable]]:
        """What decoding computes, by name, for `runtime.engine`: a layer, and a function of the layer and its input."""
        return {"spatial": (self.model, lambda model, z: model.decode(z).sample)}

    def decode(self, latents, num_frames: int | None = None, compiled: Mapping[str, Callable] = {}):
        """The video [B, 3, T, H, W], values about -1 … 1, of scaled latents [B, C, T, h, w].

        num_frames: T, which the latents tell. compiled: functions of one argument in place of those of `decoders`.
        """
        assert num_frames in (None, latents.shape[2])
        decoder = compiled.get("spatial") or (lambda z: self.model.decode(z).sample)
        return self._by_frames(decoder, latents / self.scaling_factor, pixels=self.downsampling)

    def _by_frames(self, function, x, pixels: int):
        """[B, c, T, …] -> frames [B·T, c, …] -> function, a micro-batch at a time -> [B, c', T, …]

        pixels: along each side, per element of x.
        """
        B, c, T, *size = x.shape
        dtype = self.model.encoder.conv_in.weight.dtype
        at_once = self._micro_batch(B * T, [n * pixels for n in size], dtype)
        frames = x.transpose([0, 2, 1, 3, 4]).reshape([B * T, c, *size]).astype(dtype)
        with paddle.no_grad():
            done = [function(frames[i : i + at_once]) for i in range(0, B * T, at_once)]
        done = paddle.concat(done).astype("float32")
        return done.reshape([B, T, *done.shape[1:]]).transpose([0, 2, 1, 3, 4])

    def _micro_batch(self, frames: int, size: Sequence[int], dtype) -> int:
        if isinstance(self.micro_batch_size, int):
            return self.micro_batch_size
        name = str(dtype).removeprefix("paddle.")
        return self.micro_batch_size(self.model.config, frames, *size, name, paddle.get_device())


def from_uint8(frames: np.ndarray):
    """A video tensor [1, 3, T, H, W] with values -1 … 1 of one clip, uint8 [T, H, W, 3]."""
    return paddle.to_tensor(frames.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1)


@validated(CheckpointError, "the VAE's config")
class VAEFields:
    """The fields of a config.json that decide whether an AutoencoderKL is the one that FrameVAE is made for."""

    latent_channels: Annotated[Whole, Field(ge=1, le=64)] = 4
    layers_per_block: Annotated[Whole, Field(ge=1, le=16)] = 1
    norm_num_groups: Annotated[Whole, Field(ge=1, le=2**13)] = 32
    scaling_factor: Annotated[float, Field(ge=1e-6, le=1e6)] = SCALING_FACTOR
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    block_out_channels: Annotated[
        tuple[Annotated[Whole, Field(ge=1, le=2**13)], ...], Field(min_length=1, max_length=8), AsTuple
    ] = (64,)
    _class_name: Literal["AutoencoderKL"] = "AutoencoderKL"
    mid_block_add_attention: Literal[True] = True
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    act_fn: Literal["silu"] = "silu"
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D"], ...], AsTuple] = ()
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], AsTuple] = ()
    shift_factor: None = None  # later models shift and normalize their latents
    latents_mean: None = None
    latents_std: None = None
    down_block_out_channels: None = None
    up_block_out_channels: None = None

    def __post_init__(self):
        channels, groups = self.block_out_channels, self.norm_num_groups
        if any(n % groups for n in channels):
            raise CheckpointError(
                f"the VAE's config: block_out_channels {list(channels)} must be multiples of norm_num_groups, {groups}"
            )
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) not in (0, len(channels)):
                raise CheckpointError(f"the VAE's config: {name} must have {len(channels)} entries")


def load_vae(
    path: str | Path, dtype: str = "float32", micro_batch_size: int | Callable[..., int] = MICRO_BATCH_SIZE
) -> FrameVAE:
    """The VAE of a folder with config.json and weights, in Hugging Face's layout (also with the tensor names of 2022).

    path: as in `io.checkpoints.find_part`.
    Raises CheckpointError, before anything is allocated, where files are missing, broken or of another model.
    """
    path = find_part(path, "vae")
    config, what = read_config(path), f"VAE checkpoint {path}"
    meta = build_meta(new_autoencoder, config)
    tensors = without_prefix(meta, open_checkpoint(path), path)
    rename = rename_2022(tensors)
    check_state_dict(meta, tensors, rename, what=what)
    model = load(build(new_autoencoder, config, dtype=dtype), tensors, rename, what=what)
    return FrameVAE(model, config.get("scaling_factor", SCALING_FACTOR), micro_batch_size)


def new_autoencoder(config: dict):
    """An AutoencoderKL of ppdiffusers for the fields of a config.json.

    Raises CheckpointError for the config of another kind of model, and for values that no such model has.
    """
    numpy_bool = vars(np).get("bool")  # numpy 1 has none, and warns when asked for it
    with quiet(), lean_paddlenlp():
        from ppdiffusers.models.autoencoder_kl import AutoencoderKL
    if numpy_bool is not None:  # ppdiffusers replaces it by Python's, which breaks functions of numpy 2
        vars(np)["bool"] = numpy_bool

    names = [f.name for f in fields(VAEFields)]
    VAEFields(**known_fields(config, names, "the VAE's config", CheckpointError))
    known = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"sample_size"}  # which is for tiling, unused
    return AutoencoderKL(**{name: value for name, value in config.items() if name in known})
