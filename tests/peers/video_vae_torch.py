"""The video VAE of Open-Sora 1.2 in PyTorch: for training, and for comparison with opensora_lite/video_vae.py.

It has the tensor names of the released checkpoint, is differentiable, and imports nothing from opensora_lite.

    vae = load("tests/golden/12/vae")  # or VideoVAE(spatial, TemporalVAE(filters=16, …), shift, scale)
    posterior = vae.encode(video)  # mean, logvar [B, C, T_z, h, w]
    video = vae.decode(posterior.mean, num_frames)  # [B, 3, T, H, W]

    temporal = TemporalVAE(filters=16, num_groups=8, num_res_blocks=1)  # to train on chunks of 17 frames
    posterior = temporal.encode(x)    # x [B, 4, 17, h, w] -> mean, logvar [B, 4, 5, h, w]
    x = temporal.decode(posterior.sample(), 17)

Axes: B videos · T frames · H, W height and width in pixels, h, w in latents · C latent channels · T_z latent frames.

Source: hpcaitech/Open-Sora v1.2, opensora/models/vae/vae_temporal.py and vae.py (names, arithmetic and quirks, as
recorded in tests/golden/12).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

SPATIAL_FACTOR = 0.18215  # as released: whatever the config of the spatial VAE says


@dataclass
class Posterior:
    """A normal distribution for every latent: mean, logvar [B, C, T_z, h, w]."""

    mean: torch.Tensor
    logvar: torch.Tensor

    def sample(self, noise=None):
        """noise: standard normal, of the shape of the mean; None: drawn with torch's generator."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + (self.logvar / 2).exp() * noise

    def kl(self):
        """KL divergence from the standard normal, the mean over all latents."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).mean()


class CausalConv(nn.Module):
    """A 3-D convolution, padded with zeros: kernel - stride frames in front, none behind, and evenly in space."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, bias=True):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, (stride, 1, 1), (0, kernel // 2, kernel // 2), bias=bias)
        self.before = kernel - stride

    def forward(self, x):
        if self.before:
            x = F.pad(x, (0, 0, 0, 0, self.before, 0))
        return self.conv(x.contiguous(memory_format=torch.channels_last_3d))  # up to twice as fast on a CPU


class ResBlock(nn.Module):
    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = CausalConv(inputs, outputs, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = CausalConv(outputs, outputs, bias=False)
        if inputs != outputs:
            self.conv3 = CausalConv(inputs, outputs, 1, bias=False)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv3(x) if hasattr(self, "conv3") else x)


def chain(count, inputs, outputs, groups):
    return nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(count))


class Encoder(nn.Module):
    def __init__(self, channels, out, filters, multipliers, downsample, blocks, groups):
        super().__init__()
        widths = [filters * m for m in multipliers]
        self.conv_in = CausalConv(channels, filters, bias=False)
        self.block_res_blocks = nn.ModuleList(
            chain(blocks, a, b, groups) for a, b in zip([filters, *widths], widths, strict=False)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv(n, n, stride=2) if halves else nn.Identity()
            for n, halves in zip(widths, downsample, strict=False)
        )
        self.res_blocks = chain(blocks, widths[-1], widths[-1], groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv(widths[-1], out, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for level, res_blocks in enumerate(self.block_res_blocks):
            for block in res_blocks:
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class Decoder(nn.Module):
    def __init__(self, channels, latent, filters, multipliers, downsample, blocks, groups):
        super().__init__()
        widths = [filters * m for m in multipliers]
        self.conv1 = CausalConv(latent, widths[-1])
        self.res_blocks = chain(blocks, widths[-1], widths[-1], groups)
        self.block_res_blocks = nn.ModuleList(
            chain(blocks, a, b, groups) for a, b in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv(n, 2 * n) if halves else nn.Identity() for n, halves in zip(widths[1:], downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv(widths[0], channels)

    def forward(self, x):
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:
                x = block(x)
            if level > 0:
                doubles = isinstance(self.conv_blocks[level - 1], CausalConv)
                x = self.conv_blocks[level - 1](x)
                x = interleave(x) if doubles else x
        return self.conv_out(F.silu(self.norm1(x)))


def interleave(x):
    """[B, 2C, T, h, w] -> [B, C, 2T, h, w]: channel 2c + k of frame t becomes channel c of frame 2t + k."""
    return x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2, 3)


class TemporalVAE(nn.Module):
    """The temporal VAE (VAE_Temporal as released): 4 frames of spatial latents become one, with C channels again."""

    def __init__(
        self,
        in_out_channels=4,
        latent_embed_dim=4,
        embed_dim=4,
        filters=128,
        num_res_blocks=4,
        channel_multipliers=(1, 2, 2, 4),
        temporal_downsample=(False, True, True),
        num_groups=32,
    ):
        super().__init__()
        sizes = filters, channel_multipliers, temporal_downsample, num_res_blocks, num_groups
        self.factor = 2 ** sum(temporal_downsample)
        self.encoder = Encoder(in_out_channels, 2 * latent_embed_dim, *sizes)
        self.quant_conv = CausalConv(2 * latent_embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = CausalConv(embed_dim, latent_embed_dim, 1)
        self.decoder = Decoder(in_out_channels, latent_embed_dim, *sizes)

    def encode(self, x):
        """x [B, C, T, h, w], spatial latents of any T, in one go -> Posterior with ceil(T / 4) frames."""
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor, 0))
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z, num_frames):
        """z [B, C, ceil(num_frames / 4), h, w] -> spatial latents [B, C, num_frames, h, w]."""
        return self.decoder(self.post_quant_conv(z))[:, :, -num_frames % self.factor :]


class VideoVAE(nn.Module):
    """An AutoencoderKL of diffusers for every frame, and a TemporalVAE for every chunk of 17 frames.

    shift, scale: of the latents of each channel, latents = (z - shift) / scale.
    micro_batch_size: frames that pass through the spatial VAE at once.
    """

    def __init__(self, spatial, temporal, shift=(0,) * 4, scale=(1,) * 4, micro_frame_size=17, micro_batch_size=4):
        super().__init__()
        self.spatial_vae = nn.Module()
        self.spatial_vae.module = spatial
        self.temporal_vae = temporal
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).reshape(1, -1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).reshape(1, -1, 1, 1, 1))
        self.chunk, self.micro_batch_size = micro_frame_size, micro_batch_size
        self.latent_chunk = -(-micro_frame_size // temporal.factor)

    def encode_spatial(self, video, noise=None):
        """video [B, 3, T, H, W], -1 … 1 -> spatial latents [B, C, T, h, w] times 0.18215.

        noise [B·T, C, h, w]: samples are taken with it; None: the mean.
        """
        B = video.shape[0]
        frames, latents = video.transpose(1, 2).flatten(0, 1), []
        for i in range(0, len(frames), self.micro_batch_size):
            posterior = self.spatial_vae.module.encode(frames[i : i + self.micro_batch_size]).latent_dist
            z = posterior.mean
            latents.append(z if noise is None else z + posterior.std * noise[i : i + self.micro_batch_size])
        return torch.cat(latents).unflatten(0, (B, -1)).transpose(1, 2) * SPATIAL_FACTOR

    def decode_spatial(self, x):
        """Spatial latents [B, C, T, h, w] times 0.18215 -> video [B, 3, T, H, W]."""
        B = x.shape[0]
        frames = x.transpose(1, 2).flatten(0, 1) / SPATIAL_FACTOR
        frames = [self.spatial_vae.module.decode(z).sample for z in frames.split(self.micro_batch_size)]
        return torch.cat(frames).unflatten(0, (B, -1)).transpose(1, 2)

    def encode_temporal(self, x):
        """Spatial latents [B, C, T, h, w] -> Posterior before shift and scale, 17 frames at a time."""
        chunks = [self.temporal_vae.encode(chunk) for chunk in x.split(self.chunk, 2)]
        return Posterior(torch.cat([c.mean for c in chunks], 2), torch.cat([c.logvar for c in chunks], 2))

    def decode_temporal(self, z, num_frames):
        """z [B, C, T_z, h, w] before shift and scale -> spatial latents [B, C, num_frames, h, w]."""
        chunks = [
            self.temporal_vae.decode(chunk, min(self.chunk, num_frames - i * self.chunk))
            for i, chunk in enumerate(z.split(self.latent_chunk, 2))
        ]
        return torch.cat(chunks, 2)

    def encode(self, video):
        """video [B, 3, T, H, W], -1 … 1 -> Posterior of the latents, shifted and scaled [B, C, T_z, h, w]."""
        z = self.encode_temporal(self.encode_spatial(video))
        return Posterior((z.mean - self.shift) / self.scale, z.logvar - 2 * self.scale.log())

    def decode(self, latents, num_frames):
        """Latents [B, C, T_z, h, w] -> video [B, 3, num_frames, H, W]."""
        return self.decode_spatial(self.decode_temporal(latents * self.scale + self.shift, num_frames))


def load(folder) -> VideoVAE:
    """The VAE of a folder in the released form: config.json, model.safetensors, vae_2d/config.json."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    spatial = AutoencoderKL.from_config(json.loads((folder / "vae_2d" / "config.json").read_text()))
    temporal = TemporalVAE(**{name: value for name, value in config["vae_temporal"].items() if name != "type"})
    vae = VideoVAE(
        spatial,
        temporal,
        config["shift"],
        config["scale"],
        config["micro_frame_size"],
        config["vae_2d"].get("micro_batch_size", 4),
    )
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return vae.eval()
