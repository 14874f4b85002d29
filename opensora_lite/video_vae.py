"""Causal video VAE of Open-Sora 1.2: the frame-wise VAE, then a VAE that makes one latent frame of four.

    video [B, 3, T, H, W] ──spatial_vae──▶ x [B, C, T, h, w] ──temporal_vae──▶ z [B, C, T_z, h, w]
    latents = (z - shift) / scale, per channel

The temporal VAE works on chunks of 17 frames (5 latent frames), each on its own; `latent_time` says which frames a
latent frame holds. Axes: B videos · T frames · T_z latent frames · H, W height and width in pixels, h, w in latents
· C latent channels (4) · D channels of a layer.

Names and arithmetic: hpcaitech/Open-Sora v1.2, opensora/models/vae/vae.py and vae_temporal.py, reproduced by
tests/parity. The causal convolutions and the decoder's depth-to-time are those of MAGVIT-v2, arXiv:2310.05737.
Read from top to bottom: layers, Encoder, Decoder, TemporalVAE, VideoVAE, loading.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import paddle
import paddle.nn as nn
from pydantic import Field

from opensora_lite import latent_time
from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_state_dict,
    find_part,
    load,
    open_checkpoint,
    read_vae_config,
    without_prefix,
)
from opensora_lite.layers import EAGER
from opensora_lite.vae import MICRO_BATCH_SIZE, FrameVAE, from_uint8, load_vae, new_autoencoder
from opensora_lite.validation import AsTuple, Whole, known_fields, validated

SPATIAL_FACTOR = 0.18215  # as released: also with the VAE of SDXL, whose config says 0.13025

# ---------------------------------------------------------------------------------------------------------------------
#   Layers
# ---------------------------------------------------------------------------------------------------------------------


class CausalConv3D(nn.Layer):
    """3-D convolution that sees no later frame. [B, D, T, h, w] -> [B, out, T / stride, h, w]

    Padded with zeros: kernel - stride frames in front, none behind; in space evenly.
    """

    def __init__(self, channels, out, kernel=3, stride=1, bias=True, ops=EAGER):
        super().__init__()
        self.ops, self.frames_before = ops, kernel - stride
        self.conv = nn.Conv3D(
            channels, out, kernel, (stride, 1, 1), (0, kernel // 2, kernel // 2), bias_attr=None if bias else False
        )

    def forward(self, x):
        return self.ops.causal_conv(x, self.conv, self.frames_before)


class ChunkNorm(nn.GroupNorm):
    """Group norm whose averages go over time too: every latent frame depends on all frames of its chunk."""

    def forward(self, x):
        return super().forward(x.flatten(2)).reshape(x.shape)


class ResBlock(nn.Layer):
    """[B, channels, T, h, w] -> [B, out, T, h, w]"""

    def __init__(self, channels, out, groups, ops=EAGER):
        super().__init__()
        self.silu = nn.Silu()
        self.norm1 = ChunkNorm(groups, channels)
        self.conv1 = CausalConv3D(channels, out, bias=False, ops=ops)
        self.norm2 = ChunkNorm(groups, out)
        self.conv2 = CausalConv3D(out, out, bias=False, ops=ops)
        if channels != out:
            self.conv3 = CausalConv3D(channels, out, 1, bias=False, ops=ops)
        self.widens = channels != out

    def forward(self, x):
        h = self.conv1(self.silu(self.norm1(x)))
        h = self.conv2(self.silu(self.norm2(h)))
        return h + (self.conv3(x) if self.widens else x)


def res_blocks(count, channels, out, groups, ops) -> nn.LayerList:
    """`count` blocks; the first one changes the number of channels."""
    return nn.LayerList([ResBlock(channels if i == 0 else out, out, groups, ops) for i in range(count)])


# ---------------------------------------------------------------------------------------------------------------------
#   Encoder and decoder
# ---------------------------------------------------------------------------------------------------------------------


@validated(CheckpointError, "the video VAE's config: vae_temporal")
class TemporalVAEConfig:
    """Sizes of a TemporalVAE; the defaults are those of OpenSora-VAE-v1.2."""

    in_out_channels: Annotated[Whole, Field(ge=1, le=64)] = 4  # C of the spatial latents
    latent_embed_dim: Annotated[Whole, Field(ge=1, le=64)] = 4  # inside of the quantization layers, which are 1×1×1
    embed_dim: Annotated[Whole, Field(ge=1, le=64)] = 4  # C of the latents
    filters: Annotated[Whole, Field(ge=1, le=2**13)] = 128  # D of the first level
    num_res_blocks: Annotated[Whole, Field(ge=1, le=16)] = 4  # per level
    channel_multipliers: Annotated[
        tuple[Annotated[Whole, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8), AsTuple
    ] = (1, 2, 2, 4)  # D of each level, in multiples of `filters`
    temporal_downsample: Annotated[tuple[bool, ...], AsTuple] = (False, True, True)  # behind each level but the last
    num_groups: Annotated[Whole, Field(ge=1, le=2**13)] = 32  # of the group norms
    activation_fn: Literal["swish"] = "swish"
    type: Literal["VAE_Temporal", "VAE_Temporal_SD"] = "VAE_Temporal"

    def __post_init__(self):
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise CheckpointError(
                f"the video VAE's config: temporal_downsample must have {len(self.channel_multipliers) - 1} entries,"
                f" one less than channel_multipliers, not {len(self.temporal_downsample)}"
            )
        if any(width % self.num_groups for width in self.widths):
            raise CheckpointError(
                f"the video VAE's config: the widths {self.widths} must be multiples of num_groups, {self.num_groups}"
            )

    @property
    def widths(self) -> list[int]:
        """D of each level."""
        return [self.filters * m for m in self.channel_multipliers]

    @property
    def factor(self) -> int:
        """Frames per latent frame."""
        return 2 ** sum(self.temporal_downsample)


class Encoder(nn.Layer):
    """Moments of the posterior, before quantization. [B, C, T, h, w], T a multiple of 4 -> [B, 2C, T/4, h, w]"""

    def __init__(self, c: TemporalVAEConfig, ops=EAGER):
        super().__init__()
        n, groups, widths = c.num_res_blocks, c.num_groups, c.widths
        before = [c.filters, *widths[:-1]]
        self.silu = nn.Silu()
        self.conv_in = CausalConv3D(c.in_out_channels, c.filters, bias=False, ops=ops)
        self.block_res_blocks = nn.LayerList(
            [res_blocks(n, a, b, groups, ops) for a, b in zip(before, widths, strict=True)]
        )
        self.conv_blocks = nn.LayerList(
            [
                CausalConv3D(D, D, stride=2, ops=ops) if halves else nn.Identity()
                for D, halves in zip(widths[:-1], c.temporal_downsample, strict=True)
            ]
        )
        self.res_blocks = res_blocks(n, widths[-1], widths[-1], groups, ops)
        self.norm1 = ChunkNorm(groups, widths[-1])
        self.conv2 = CausalConv3D(widths[-1], 2 * c.latent_embed_dim, 1, ops=ops)

    def forward(self, x):
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(self.silu(self.norm1(x)))


class Decoder(nn.Layer):
    """The reverse of the Encoder. [B, C, T_z, h, w] -> [B, C, 4·T_z, h, w]"""

    def __init__(self, c: TemporalVAEConfig, ops=EAGER):
        super().__init__()
        n, groups, widths = c.num_res_blocks, c.num_groups, c.widths
        before = [*widths[1:], widths[-1]]
        self.doubles = c.temporal_downsample
        self.silu = nn.Silu()
        self.conv1 = CausalConv3D(c.latent_embed_dim, widths[-1], ops=ops)
        self.res_blocks = res_blocks(n, widths[-1], widths[-1], groups, ops)
        self.block_res_blocks = nn.LayerList(
            [res_blocks(n, a, b, groups, ops) for a, b in zip(before, widths, strict=True)]
        )
        self.conv_blocks = nn.LayerList(
            [
                CausalConv3D(D, 2 * D, ops=ops) if doubles else nn.Identity()
                for D, doubles in zip(widths[1:], c.temporal_downsample, strict=True)
            ]
        )
        self.norm1 = ChunkNorm(groups, widths[0])
        self.conv_out = CausalConv3D(widths[0], c.in_out_channels, ops=ops)

    def forward(self, x):
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:
                x = block(x)
            if level > 0 and self.doubles[level - 1]:
                x = channels_to_time(self.conv_blocks[level - 1](x))
        return self.conv_out(self.silu(self.norm1(x)))


def channels_to_time(x):
    """[B, 2D, T, h, w] -> [B, D, 2T, h, w]: channel 2c + k of frame t becomes channel c of frame 2t + k."""
    B, D, T, h, w = x.shape
    return x.reshape([B, D // 2, 2, T, h, w]).transpose([0, 1, 3, 2, 4, 5]).reshape([B, D // 2, 2 * T, h, w])


class TemporalVAE(nn.Layer):
    """Four frames of spatial latents to one latent frame and back, with C channels on both sides."""

    def __init__(self, config: TemporalVAEConfig, ops=EAGER):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.quant_conv = CausalConv3D(2 * config.latent_embed_dim, 2 * config.embed_dim, 1, ops=ops)
        self.post_quant_conv = CausalConv3D(config.embed_dim, config.latent_embed_dim, 1, ops=ops)
        self.decoder = Decoder(config, ops)

    def encode(self, x):
        """Mean and log variance of the posterior, [B, 2C, T_z, h, w], of one chunk x [B, C, T, h, w]."""
        B, C, T, h, w = x.shape
        zeros = paddle.zeros([B, C, -T % self.config.factor, h, w], x.dtype)
        return self.quant_conv(self.encoder(paddle.concat([zeros, x], 2)))

    def decode(self, z):
        """Spatial latents [B, C, 4·T_z, h, w] of one chunk z [B, C, T_z, h, w]; its last frames are the chunk's."""
        return self.decoder(self.post_quant_conv(z))


# ---------------------------------------------------------------------------------------------------------------------
#   The whole VAE
# ---------------------------------------------------------------------------------------------------------------------


@validated(CheckpointError, "the video VAE's config")
class VideoVAEFields:
    """Fields of the config.json, beside those of the spatial and the temporal VAE."""

    micro_frame_size: Annotated[Whole, Field(ge=1, le=10_000)] | None = latent_time.CHUNK  # frames of a chunk
    model_type: Literal["VideoAutoencoderPipeline"] = "VideoAutoencoderPipeline"
    cal_loss: Literal[False] = False  # the release shifts and scales without it only


class VideoAutoencoder(nn.Layer):
    """The tensors of a checkpoint: spatial_vae.module, temporal_vae, shift and scale [1, C, 1, 1, 1].

    config: as from `io.checkpoints.read_vae_config`. Raises CheckpointError for values that no such model has.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = config
        names, what = [f.name for f in fields(VideoVAEFields)], "the video VAE's config"
        self.chunk = VideoVAEFields(**known_fields(config, names, what, CheckpointError)).micro_frame_size
        names, what = [f.name for f in fields(TemporalVAEConfig)], f"{what}: vae_temporal"
        temporal = TemporalVAEConfig(**known_fields(config["vae_temporal"], names, what, CheckpointError))
        self.spatial_vae = nn.Layer()
        self.spatial_vae.module = new_autoencoder(dict(config))
        channels = self.spatial_vae.module.config.latent_channels
        if channels != temporal.in_out_channels:
            raise CheckpointError(
                f"the video VAE's config: in_out_channels is {temporal.in_out_channels}, but the spatial VAE has"
                f" {channels} latent channels"
            )
        self.temporal_vae = TemporalVAE(temporal)
        for name in ("shift", "scale"):
            self.register_buffer(name, paddle.zeros([1, temporal.embed_dim, 1, 1, 1], "float32"))


class VideoVAE:
    """The video VAE, with the attributes and methods of a FrameVAE.

    model: a VideoAutoencoder. micro_batch_size: frames that pass through the spatial VAE at once, as in FrameVAE.
    """

    def __init__(self, model: VideoAutoencoder, micro_batch_size: int | Callable[..., int] = MICRO_BATCH_SIZE):
        self.model = model
        self.frames = FrameVAE(model.spatial_vae.module, SPATIAL_FACTOR, micro_batch_size)
        self.channels, self.downsampling = model.temporal_vae.config.embed_dim, self.frames.downsampling
        self.time: dict[str, Any] = dict(chunk=model.chunk, factor=model.temporal_vae.config.factor)

    @property
    def micro_batch_size(self) -> int | Callable[..., int]:
        """Of the spatial VAE."""
        return self.frames.micro_batch_size

    def latent_frames(self, num_frames: int) -> int:
        """Number of latent frames of a video: 5 for 17 frames, 15 for 51."""
        return latent_time.latent_frames(num_frames, **self.time)

    def encode(self, video, posterior: Literal["mean", "sample"] = "mean", rng: np.random.Generator | None = None):
        """Latents [B, C, T_z, h, w] of a video [B, 3, T, H, W] with values -1 … 1.

        posterior: "mean", which is deterministic, of both VAEs; or "sample" (as released), drawn with `rng`, first for
        the spatial VAE, then for the temporal one.
        """
        return self.encode_temporal(self.frames.encode(video, posterior, rng), posterior, rng)

    def encode_temporal(self, x, posterior: Literal["mean", "sample"] = "mean", rng: np.random.Generator | None = None):
        """The latents [B, C, T_z, h, w] of spatial latents [B, c, T, h, w], which a FrameVAE makes; as in `encode`."""
        vae = self.model.temporal_vae
        moments = self._by_chunks(lambda chunk, _: vae.encode(chunk), x, self.time["chunk"])
        z, logvar = moments.split(2, 1)
        if posterior == "sample" and rng is not None:
            noise = paddle.to_tensor(rng.standard_normal(z.shape, np.float32))
            z = z + (logvar.clip(-30, 20) / 2).exp() * noise
        return (z - self.model.shift) / self.model.scale

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Latents float32 [C, T_z, h, w] of one clip, uint8 [T, H, W, 3]; the mean of the posterior."""
        return self.encode(from_uint8(frames)).numpy()[0]

    @property
    def decoders(self) -> dict[str, tuple[nn.Layer, Callable]]:
        """As in FrameVAE."""
        return {"temporal": (self.model.temporal_vae, lambda vae, z: vae.decode(z)), **self.frames.decoders}

    def decode(self, latents, num_frames: int | None = None, compiled: Mapping[str, Callable] = {}):
        """The video [B, 3, T, H, W], values about -1 … 1, of latents [B, C, T_z, h, w].

        num_frames: T; None: the longest video with T_z latent frames. compiled: as in FrameVAE.
        """
        T = num_frames or latent_time.most_frames(latents.shape[2], **self.time)
        assert self.latent_frames(T) == latents.shape[2], f"{T} frames don't have {latents.shape[2]} latent frames"
        most = self.time["chunk"] or T
        decoder = compiled.get("temporal") or self.model.temporal_vae.decode

        def frames(z, number):
            first = number * most
            return decoder(z)[:, :, -min(most, T - first) :]

        z = latents * self.model.scale + self.model.shift
        x = self._by_chunks(frames, z, self.time["chunk"] and latent_time.latent_frames(most, **self.time))
        return self.frames.decode(x, compiled=compiled)

    def _by_chunks(self, function, x, size: int | None):
        """[B, c, T, h, w] -> function(chunk, its number), `size` frames of one video at a time -> [B, c', T', h, w]

        size: None for all frames. Videos go one by one, to bound memory.
        """
        dtype, size = self.model.temporal_vae.encoder.conv_in.conv.weight.dtype, size or x.shape[2]
        starts = range(0, x.shape[2], size)
        with paddle.no_grad():
            videos = [
                [function(video[:, :, start : start + size].astype(dtype), start // size) for start in starts]
                for video in x.split(x.shape[0])
            ]
        return paddle.concat([paddle.concat(chunks, 2) for chunks in videos]).astype("float32")


# ---------------------------------------------------------------------------------------------------------------------
#   Loading
# ---------------------------------------------------------------------------------------------------------------------


def load_video_vae(
    path: str | Path, dtype: str = "float32", micro_batch_size: int | Callable[..., int] = MICRO_BATCH_SIZE
) -> VideoVAE:
    """The video VAE of a folder in the released form (OpenSora-VAE-v1.2): config.json, model.safetensors and, where the
    spatial VAE is not that of SDXL, vae_2d/config.json.

    Raises CheckpointError, before anything is allocated, where files are missing, broken or of another model.
    """
    path = find_part(path, "vae")
    config, what = read_vae_config(path), f"video VAE checkpoint {path}"
    if "vae_temporal" not in config:
        raise CheckpointError(f'{path} is no video VAE: its config.json has no "vae_temporal"')
    meta = build_meta(VideoAutoencoder, config)
    tensors = without_prefix(meta, open_checkpoint(path), path)
    check_state_dict(meta, tensors, what=what)
    return VideoVAE(load(build(VideoAutoencoder, config, dtype=dtype), tensors, what=what), micro_batch_size)


def load_any_vae(
    path: str | Path, dtype: str = "float32", micro_batch_size: int | Callable[..., int] = MICRO_BATCH_SIZE
) -> FrameVAE | VideoVAE:
    """The VAE of a folder: a VideoVAE where its config.json describes one, else a FrameVAE. Raises CheckpointError."""
    path = find_part(path, "vae")
    load = load_video_vae if "vae_temporal" in read_vae_config(path) else load_vae
    return load(path, dtype, micro_batch_size)
