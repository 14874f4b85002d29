"""STDiT2 in PyTorch, written apart from opensora_lite/stdit2.py: where both agree, an error would have to be in both.

It has the tensor names of the released checkpoint, torch's own attention and norms, and nothing compiled. It runs in
a process without Paddle (see run.py), and imports nothing from opensora_lite.

Axes: B videos · T frames · H, W latent height and width · C latent channels · h, w rows and columns of patches
· S = h·w tokens of a frame · D hidden size · d = D / heads · L caption tokens.

Sources: hpcaitech/Open-Sora v1.1, opensora/models/stdit/stdit2.py (names, arithmetic and quirks, as recorded in
tests/golden); DiT, arXiv:2212.09748 (adaLN-zero); PixArt-α, arXiv:2310.00426 (adaLN-single); RoFormer,
arXiv:2104.09864 (rotary positions).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file


class ScalarEmbedder(nn.Module):
    """Numbers [...] -> 128 cosines and 128 sines of them -> two linear layers [..., D]."""

    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = value.float().unsqueeze(-1) * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, dim_in, dim_hidden, dim_out):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def rotate(x, frequencies):
    """x [B, heads, n, d]: the k-th pair of neighbours of position p turned by the angle p · frequencies[k]."""
    angles = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1) * frequencies  #  (n, d/2)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)  #                  (B, heads, n, d/2)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention among the n tokens of a row."""

    def __init__(self, dim, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x, frequencies=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, n, d) each
        if frequencies is not None:  # as released: positions go on before the norm
            q, k = rotate(q, frequencies), rotate(k, frequencies)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """x [B, n, D] asks y [B, L, D], of which y_mask [B, L] says what may be seen."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, y, y_mask):
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(y).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=y_mask[:, None, None, :])
        return self.proj(out.transpose(1, 2).flatten(2))


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Attention within each frame, attention through time, attention to the caption, MLP."""

    def __init__(self, dim, heads, mlp_ratio, qk_norm):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, dim) / dim**0.5)
        self.attn = SelfAttention(dim, heads, qk_norm)
        self.attn_temp = SelfAttention(dim, heads, qk_norm)
        self.cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x, y, y_mask, space, motion, frequencies):
        """x [B, T, S, D]; y [B, L, D]; y_mask [B, L]; space [B, 1 or T, 6, D] and motion [B, 1 or T, 3, D]."""
        B, T, S, _ = x.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + space).unsqueeze(3).unbind(2)
        shift_t, scale_t, gate_t = (self.scale_shift_table_temporal + motion).unsqueeze(3).unbind(2)

        frames = modulate(x, shift, scale).flatten(0, 1)  #                   (B·T, S, D)
        x = x + gate * self.attn(frames).unflatten(0, (B, T))
        places = modulate(x, shift_t, scale_t).transpose(1, 2).flatten(0, 1)  # (B·S, T, D)
        x = x + gate_t * self.attn_temp(places, frequencies).unflatten(0, (B, S)).transpose(1, 2)
        x = x + self.cross_attn(x.flatten(1, 2), y, y_mask).unflatten(1, (T, S))
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.linear = nn.Linear(dim, out)

    def forward(self, x, time, time_kept, live):
        """x [B, T, S, D]; time, time_kept [B, D]; live [B, T, 1, 1] or None, for all frames."""
        shift, scale = (self.scale_shift_table + time[:, None])[:, :, None, None].unbind(1)
        x = modulate(x, shift, scale)
        if live is not None:  # as released: kept frames are modulated on top of that
            shift, scale = (self.scale_shift_table + time_kept[:, None])[:, :, None, None].unbind(1)
            x = torch.where(live, x, modulate(x, shift, scale))
        return self.linear(x)


def position_embedding(h, w, dim, scale):
    """[S, D]: sines and cosines of the column, then (as released, in this order) of the row."""
    middle = round(math.sqrt(h * w))
    frequencies = 10000.0 ** (-torch.arange(0, dim // 2, 2) / (dim // 2))
    rows, columns = torch.meshgrid(
        torch.arange(h) * middle / (h * scale), torch.arange(w) * middle / (w * scale), indexing="ij"
    )
    column, row = columns.reshape(-1, 1) * frequencies, rows.reshape(-1, 1) * frequencies
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], -1)


class STDiT2(nn.Module):
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
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(D, 3 * D))
        self.csize_embedder = ScalarEmbedder(D // 3)
        self.ar_embedder = ScalarEmbedder(D // 3)
        self.fl_embedder = ScalarEmbedder(D)
        self.fps_embedder = ScalarEmbedder(D)
        self.y_embedder = nn.ModuleDict({"y_proj": Mlp(caption_channels, D, D)})
        self.y_embedder.register_buffer("y_embedding", torch.zeros(model_max_length, caption_channels))
        self.rope = nn.Module()
        self.rope.register_buffer("freqs", 10000.0 ** (-torch.arange(0, d, 2) / d))
        self.blocks = nn.ModuleList(Block(D, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(D, math.prod(patch_size) * 2 * in_channels)

    def forward(self, x, timestep, y, mask, x_mask=None, *, num_frames, height, width, ar, fps):
        """x [B, C, T, H, W] noisy latents; timestep [B]; y [B, 1, L, caption_channels]; mask [B, L];
        x_mask [B, T], true where a frame is denoised; the rest [B] each. -> [B, 2C, T, H, W]
        """
        H, W = x.shape[3:]
        rows, columns = self.patch_size[1:]
        x = F.pad(x.to(self.x_embedder.proj.weight.dtype), (0, -W % columns, 0, -H % rows))
        x = self.x_embedder.proj(x)  #                                        (B, D, T, h, w)
        h, w = x.shape[3:]
        scale = (height[0] * width[0]).sqrt() / self.input_sq_size
        positions = position_embedding(h, w, self.dim, scale).to(x.dtype)
        x = x.flatten(3).permute(0, 2, 3, 1) + positions  #                   (B, T, S, D)

        size = torch.cat([self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(ar)], -1)
        length = self.fl_embedder(num_frames) + self.fps_embedder(fps)

        def at(t):  # what time t says: alone, to the layers of space, to those of motion
            time = self.t_embedder(t)
            space, motion = self.t_block(time + size), self.t_block_temp(time + length)
            return time, space.unflatten(-1, (1, 6, -1)), motion.unflatten(-1, (1, 3, -1))

        live = time_kept = None
        time, space, motion = at(timestep)  #                                 (B, D), (B, 1, 6, D), (B, 1, 3, D)
        if x_mask is not None:  # kept frames are told that their time is 0
            live = x_mask.bool()[:, :, None, None]
            time_kept, space_kept, motion_kept = at(torch.zeros_like(timestep))
            space, motion = torch.where(live, space, space_kept), torch.where(live, motion, motion_kept)
            time_kept = time_kept + size  # as released: the last layer sees the size here, but not in `time`

        y, y_mask = self.y_embedder.y_proj(y.squeeze(1).to(x.dtype)), mask.bool()
        for block in self.blocks:
            x = block(x, y, y_mask, space, motion, self.rope.freqs)

        x = self.final_layer(x, time, time_kept, live)
        x = x.unflatten(2, (h, w)).unflatten(-1, (rows, columns, -1))  #      (B, T, h, w, rows, columns, 2C)
        x = torch.einsum("bthwpqc->bcthpwq", x).flatten(5, 6).flatten(3, 4)
        return x[..., :H, :W].float()


FIELDS = ["hidden_size", "depth", "num_heads", "caption_channels", "model_max_length", "input_sq_size", "qk_norm"]


def load(config: dict, weights: str, dtype=torch.float32) -> STDiT2:
    """The model of a released config.json and a safetensors file; what is computed, not learned, stays in float32."""
    model = STDiT2(**{field: config[field] for field in FIELDS})
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()
