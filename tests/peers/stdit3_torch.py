"""STDiT3 in PyTorch, written apart from opensora_lite/stdit3.py: where both agree, an error would have to be in both.

It has the tensor names of the released checkpoint, and takes what did not change since 1.1 from stdit2_torch. It runs
in a process without Paddle (see run.py), and imports nothing from opensora_lite.

    model = STDiT3(**config)                     # the fields of a released config.json, or `load(config, weights)`
    model(x, timestep, y, mask, x_mask, fps=…, height=…, width=…)

Axes: as in stdit2_torch; T counts latent frames.

Sources: hpcaitech/Open-Sora v1.2, opensora/models/stdit/stdit3.py (names, arithmetic and quirks, as recorded in
tests/golden/12); QK-Norm, arXiv:2302.05442; RoFormer, arXiv:2104.09864 (rotary positions).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from stdit2_torch import CrossAttention, FinalLayer, Mlp, ScalarEmbedder, modulate, position_embedding, rotate


class SelfAttention(nn.Module):
    """Attention among the n tokens of a row, at rotary positions if `frequencies` are given."""

    def __init__(self, dim, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x, frequencies=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, n, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        if frequencies is not None:  # behind the norm, unlike in 1.1
            q, k = rotate(q, frequencies), rotate(k, frequencies)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention within each frame (spatial) or through time (temporal), attention to the caption, MLP."""

    def __init__(self, dim, heads, mlp_ratio, qk_norm, temporal):
        super().__init__()
        self.temporal = temporal
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn = SelfAttention(dim, heads, qk_norm)
        self.cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x, y, y_mask, time, frequencies):
        """x [B, T, S, D]; y [B, L, D]; y_mask [B, L]; time [B, 1 or T, 6, D]."""
        B, T, S, _ = x.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + time).unsqueeze(3).unbind(2)
        h = modulate(x, shift, scale)
        if self.temporal:
            h = self.attn(h.transpose(1, 2).flatten(0, 1), frequencies).unflatten(0, (B, S)).transpose(1, 2)
        else:
            h = self.attn(h.flatten(0, 1)).unflatten(0, (B, T))
        x = x + gate * h
        x = x + self.cross_attn(x.flatten(1, 2), y, y_mask).unflatten(1, (T, S))
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))


class STDiT3(nn.Module):
    def __init__(
        self,
        hidden_size,
        depth,
        num_heads,
        caption_channels,
        model_max_length,
        input_sq_size,
        qk_norm,
        in_channels=4,
        patch_size=(1, 2, 2),
        mlp_ratio=4.0,
    ):
        super().__init__()
        D, d = hidden_size, hidden_size // num_heads
        self.dim, self.patch_size, self.input_sq_size = D, tuple(patch_size), input_sq_size
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv3d(in_channels, D, self.patch_size, self.patch_size)})
        self.t_embedder = ScalarEmbedder(D)
        self.fps_embedder = ScalarEmbedder(D)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
        self.y_embedder = nn.ModuleDict({"y_proj": Mlp(caption_channels, D, D)})
        self.y_embedder.register_buffer("y_embedding", torch.randn(model_max_length, caption_channels) / D**0.5)
        self.rope = nn.Module()
        self.rope.register_buffer("freqs", 10000.0 ** (-torch.arange(0, d, 2) / d))

        def blocks(temporal):
            return nn.ModuleList(Block(D, num_heads, mlp_ratio, qk_norm, temporal) for _ in range(depth))

        self.spatial_blocks, self.temporal_blocks = blocks(False), blocks(True)
        self.final_layer = FinalLayer(D, math.prod(patch_size) * 2 * in_channels)

    def forward(self, x, timestep, y, mask, x_mask=None, *, fps, height, width):
        """x [B, C, T, H, W] noisy latents; timestep [B], 0 … 1000; y [B, 1, L, caption_channels]; mask [B or 1, L];
        x_mask [B, T], true where a frame is denoised; fps, height, width [B or 1]. -> [B, 2C, T, H, W]
        """
        H, W = x.shape[3:]
        rows, columns = self.patch_size[1:]
        x = F.pad(x.to(self.x_embedder.proj.weight.dtype), (0, -W % columns, 0, -H % rows))
        x = self.x_embedder.proj(x)  #                                        (B, D, T, h, w)
        h, w = x.shape[3:]
        scale = (height[0] * width[0]).sqrt() / self.input_sq_size  # as released: one size for all rows
        positions = position_embedding(h, w, self.dim, scale.cpu()).to(x)
        x = x.flatten(3).permute(0, 2, 3, 1) + positions  #                   (B, T, S, D)

        rate = self.fps_embedder(fps)

        def at(t):  # the embedding of time t, and what it says to the blocks
            time = self.t_embedder(t) + rate
            return time, self.t_block(time).unflatten(-1, (1, 6, -1))

        live = time_kept = None
        time, params = at(timestep)  #                                        (B, D), (B, 1, 6, D)
        if x_mask is not None:  # kept frames are told that their time is 0
            live = x_mask.bool()[:, :, None, None]
            time_kept, params_kept = at(torch.zeros_like(timestep))
            params = torch.where(live, params, params_kept)

        y, y_mask = self.y_embedder.y_proj(y.squeeze(1).to(x.dtype)), mask.bool()
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, y, y_mask, params, None)
            x = temporal(x, y, y_mask, params, self.rope.freqs)

        x = self.final_layer(x, time, time_kept, live)
        x = x.unflatten(2, (h, w)).unflatten(-1, (rows, columns, -1))  #      (B, T, h, w, rows, columns, 2C)
        x = torch.einsum("bthwpqc->bcthpwq", x).flatten(5, 6).flatten(3, 4)
        return x[..., :H, :W].float()


FIELDS = [
    "hidden_size",
    "depth",
    "num_heads",
    "caption_channels",
    "model_max_length",
    "input_sq_size",
    "qk_norm",
    "in_channels",
]


def load(config: dict, weights: str, dtype=torch.float32) -> STDiT3:
    """The model of a released config.json and a safetensors file; what is computed, not learned, stays in float32."""
    model = STDiT3(**{field: config[field] for field in FIELDS if field in config})
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()
