"""Building blocks that the video transformers share: attention, norms, rotary positions, embedders, adaLN."""

import math

import paddle
import paddle.nn as nn
import paddle.nn.functional as F

# ---------------------------------------------------------------------------------------------------------------------
#   Attention
# ---------------------------------------------------------------------------------------------------------------------


def on_cpu() -> bool:
    """Where this computes. A tensor does not know: in a static graph (`paddle.jit.to_static`) it has no place."""
    return paddle.get_device() == "cpu"


def spread(vector, x):
    """`vector` in the shape of x. On a CPU Paddle works 20 times faster on equal shapes than on broadcast ones."""
    return vector.expand(x.shape) if on_cpu() else vector


MAX_SCORES = 2**26  # numbers of one piece of an attention's scores; 256 MB in float32


def attention(q, k, v, mask=None):
    """softmax(q kᵀ / √d) v for q [B, n, heads, d] and k, v [B, m, heads, d]; mask [B, m], true where k may be seen.

    The one place where attention is computed: flash attention where the device has it, two matrix products elsewhere.
    """
    if mask is not None:
        mask = paddle.where(mask, 0.0, -1e4).astype(q.dtype)[:, None, None]  #           (B, 1, 1, m)
    if not on_cpu() and q.dtype in (paddle.float16, paddle.bfloat16):
        if mask is not None:  # the kernel wants a mask for every query
            mask = mask.expand([-1, 1, q.shape[1], -1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Elsewhere two matrix products. On a CPU a product of three axes is 20 times as fast as one of four.
    B, n, heads, d = q.shape
    q, k, v = (z.transpose([0, 2, 1, 3]).reshape([B * heads, -1, d]) for z in (q * d**-0.5, k, v))
    if mask is not None:
        mask = mask.expand([B, heads, n, -1]).reshape([B * heads, n, -1])
    rows, pieces = max(MAX_SCORES // (n * k.shape[1]), 1), []
    for i in range(0, B * heads, rows):  # so many heads at once that the scores stay small
        scores = paddle.bmm(q[i : i + rows], k[i : i + rows].transpose([0, 2, 1]))  #    (rows, n, m)
        weights = F.softmax(scores if mask is None else scores + mask[i : i + rows])
        pieces.append(paddle.bmm(weights, v[i : i + rows]))
    out = paddle.concat(pieces) if len(pieces) > 1 else pieces[0]
    return out.reshape([B, heads, n, d]).transpose([0, 2, 1, 3])  #                      (B, n, heads, d)


def attention_weights(q, k, mask=None):
    """softmax(q kᵀ / √d), float32 [B, heads, n, m]: what `attention` multiplies v with, to be looked at."""
    scores = paddle.einsum("bnhd,bmhd->bhnm", q.astype("float32"), k.astype("float32")) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + paddle.where(mask, 0.0, -1e4).astype("float32")[:, None, None]  # Paddle 2.6 makes float64
    return F.softmax(scores)


class RMSNorm(nn.Layer):
    """x / rms(x) · weight over the last axis, in float32."""

    def __init__(self, dim):
        super().__init__()
        self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x):
        y = x.astype("float32")
        y = y * paddle.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)
        return y.astype(x.dtype) * self.weight


class RotaryEmbedding(nn.Layer):
    """Positions in time as angles; neighbouring channels turn together.

    T -> cos and sin [T, 1, d] of the angles of frames 0 … T - 1, and the matrix [d, d] by which a row of pairs (a, b)
    becomes one of pairs (-b, a). (A product is the fastest way of exchanging neighbours, and exact.)
    """

    def __init__(self, dim):
        super().__init__()
        freqs = 10000.0 ** (-paddle.arange(0, dim, 2, dtype="float32") / dim)
        self.register_buffer("freqs", freqs)  # as released: part of the file, though never trained

    def forward(self, length):
        angles = paddle.arange(length, dtype="float32")[:, None] * self.freqs
        angles = angles.repeat_interleave(2, axis=-1)[:, None]
        turn = paddle.diag(paddle.to_tensor([1.0, 0.0] * (angles.shape[-1] // 2))[:-1], 1)
        return angles.cos(), angles.sin(), turn - turn.T


def rotate(x, tables):
    """x [B, n, heads, d], each pair of channels (2i, 2i + 1) turned by its position's angle (RoFormer, eq. 34)."""
    cos, sin, turn = (table.astype(x.dtype) for table in tables)
    return x * spread(cos, x) + paddle.matmul(x, turn) * spread(sin, x)


class SelfAttention(nn.Layer):
    """Attention among the n tokens of each row: the tokens of one frame, or one place through all frames."""

    def __init__(self, dim, num_heads, qk_norm):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def heads(self, x, rotary=None) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries, keys and values, each [B, n, heads, d]."""
        B, n, _ = x.shape
        qkv = self.qkv(x).reshape([B, n, 3, self.num_heads, -1])
        q, k, v = (qkv[:, :, i] for i in range(3))
        if rotary is not None:  # as released: positions go on before the norm, and only in time
            q, k = rotate(q, rotary), rotate(k, rotary)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x, rotary=None):
        return self.proj(attention(*self.heads(x, rotary)).reshape(x.shape))


class CrossAttention(nn.Layer):
    """Every token of the video asks every token of its caption. What the caption answers is the same in every step."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def answers(self, y) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Keys and values [B, L, heads, d] of a caption [B, L, D]."""
        B, L, _ = y.shape
        k, v = self.kv_linear(y).reshape([B, L, 2, self.num_heads, -1]).unbind(2)
        return k, v

    def queries(self, x) -> paddle.Tensor:
        """[B, N, heads, d] of the tokens x [B, N, D] of a video."""
        B, N, _ = x.shape
        return self.q_linear(x).reshape([B, N, self.num_heads, -1])

    def forward(self, x, keys, values, y_mask):
        return self.proj(attention(self.queries(x), keys, values, y_mask).reshape(x.shape))


# ---------------------------------------------------------------------------------------------------------------------
#   Embedders
# ---------------------------------------------------------------------------------------------------------------------


class Mlp(nn.Layer):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, dim_in, dim_hidden, dim_out):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate=True))


def timestep_embedding(value):
    """A number as the cosines and then the sines of 128 frequencies of it. [...] -> [..., 256]"""
    freqs = paddle.exp(-math.log(10000) * paddle.arange(128, dtype="float32") / 128)
    angles = value.astype("float32")[..., None] * freqs
    return paddle.concat([angles.cos(), angles.sin()], -1)


class TimestepEmbedder(nn.Layer):
    """A number (a time, a size, a rate) -> 128 sinusoids -> two linear layers. [...] -> [..., D]"""

    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.Silu(), nn.Linear(dim, dim))

    def forward(self, value):
        return self.mlp(timestep_embedding(value).astype(self.mlp[0].weight.dtype))


class PatchEmbedder(nn.Layer):
    """Latents -> one token per patch. [B, C, T, H, W] -> [B, T, h, w, D]"""

    def __init__(self, channels, dim, patch_size):
        super().__init__()
        self.proj = nn.Conv3D(channels, dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).transpose([0, 2, 3, 4, 1])


class CaptionEmbedder(nn.Layer):
    """T5's vectors -> vectors of the transformer; holds the caption that stands for "no caption"."""

    def __init__(self, caption_channels, dim, max_length):
        super().__init__()
        self.y_proj = Mlp(caption_channels, dim, dim)
        self.register_buffer("y_embedding", paddle.zeros([max_length, caption_channels]))

    def forward(self, y):
        return self.y_proj(y)


def position_embedding(h, w, dim, scale):
    """Sin-cos positions [h·w, D] of a grid of tokens, stretched so that frames of any size span the same range.

    scale: √(height·width in pixels) / the size that positions are named after (`input_sq_size`).
    """
    base = round(math.sqrt(h * w))
    omega = 10000.0 ** (-paddle.arange(0, dim // 2, 2, dtype="float32") / (dim // 2))

    def waves(n):
        place = paddle.arange(n, dtype="float32") / scale * (base / n)
        angles = place[:, None] * omega
        return paddle.concat([angles.sin(), angles.cos()], -1)  #                        (n, D/2)

    rows = waves(h)[:, None].expand([h, w, dim // 2])
    columns = waves(w)[None].expand([h, w, dim // 2])
    return paddle.concat([columns, rows], -1).reshape([h * w, dim])  # as released: the column comes first


# ---------------------------------------------------------------------------------------------------------------------
#   Block
# ---------------------------------------------------------------------------------------------------------------------


def modulate(x, shift, scale):
    """adaLN: a norm without weights of its own, then the scale and shift that the time asks for."""
    D = x.shape[-1]
    if math.prod(shift.shape) == D:  # one for all tokens: then they can be the norm's weights, which spares two passes
        return F.layer_norm(x, [D], (1 + scale).reshape([D]), shift.reshape([D]), epsilon=1e-6)
    return F.layer_norm(x, [D], epsilon=1e-6) * spread(1 + scale, x) + spread(shift, x)


def modulation(table, live, kept, x_mask):
    """The vectors that modulate one layer: its own table [k, D] plus what the time says.

    live, kept: [B, k, D] for the times t and 0; x_mask [B, T], true where live, or None. -> k × [B, 1 or T, 1, D]
    """
    vectors = (table + live)[:, None]  #                                                 (B, 1, k, D)
    if x_mask is not None:
        vectors = paddle.where(x_mask[:, :, None, None], vectors, (table + kept)[:, None])  # (B, T, k, D)
    return vectors.split(table.shape[0], 2)
