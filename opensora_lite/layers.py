"""Building blocks of the video transformers: attention, RMSNorm, positions, embedders, adaLN.

Axes: B videos · T frames · H, W latent height and width · C latent channels · S spatial tokens of one frame · N = T·S
tokens · D hidden size · d = D/heads · L caption tokens. x_mask [B, T] is True for denoised frames, False for
conditioning frames, which the model sees at t = 0.

Sources: hpcaitech/Open-Sora v1.1 and v1.2, opensora/models/layers/blocks.py (names and arithmetic); DiT,
arXiv:2212.09748 (adaLN-zero); PixArt-α, arXiv:2310.00426 (adaLN-single, cross-attention); RoFormer, arXiv:2104.09864
(rotary positions).
Behaviour that looks wrong but that released weights depend on is marked `as released`.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from pydantic import Field

from opensora_lite.errors import CheckpointError
from opensora_lite.validation import AsTuple, Whole, known_fields

MAX_SCORES = 2**26  # attention scores that are in memory at once; 256 MB in float32

# ---------------------------------------------------------------------------------------------------------------------
#   Operations
# ---------------------------------------------------------------------------------------------------------------------


def on_cpu() -> bool:
    """Whether Paddle's current device is a CPU. (A tensor of a static graph does not know its device.)"""
    return paddle.get_device() == "cpu"


class Ops:
    """Tensor operations whose best form depends on the backend; layers get them as a constructor argument.

    This class holds the forms for Paddle's dynamic mode. `runtime.engine` injects others, from which it records a
    program for OpenVINO.
    """

    gelu = staticmethod(lambda x: F.gelu(x, approximate=True))
    rsqrt = staticmethod(paddle.rsqrt)
    matmul = staticmethod(paddle.matmul)

    def attention(self, q, k, v, mask=None):
        """softmax(q kᵀ / √d) v for q [B, n, heads, d] and k, v [B, m, heads, d]; mask [B, m], True for visible keys."""
        if mask is not None:
            mask = paddle.where(mask, 0.0, -1e4).astype(q.dtype)[:, None, None]  #       (B, 1, 1, m)
        if not on_cpu() and q.dtype in (paddle.float16, paddle.bfloat16):  # flash attention
            if mask is not None:  # the kernel needs one mask row per query
                mask = mask.expand([-1, 1, q.shape[1], -1])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        # Two matrix products. On a CPU, Paddle multiplies tensors of three axes 20 times as fast as those of four.
        B, n, heads, d = q.shape
        q, k, v = (z.transpose([0, 2, 1, 3]).reshape([B * heads, -1, d]) for z in (q * d**-0.5, k, v))
        if mask is not None:
            mask = mask.expand([B, heads, n, -1]).reshape([B * heads, n, -1])
        rows, out = max(MAX_SCORES // (n * k.shape[1]), 1), []
        for i in range(0, B * heads, rows):  # a few heads at a time, to bound the memory of the scores
            scores = paddle.bmm(q[i : i + rows], k[i : i + rows].transpose([0, 2, 1]))  # (rows, n, m)
            weights = F.softmax(scores if mask is None else scores + mask[i : i + rows])
            out.append(paddle.bmm(weights, v[i : i + rows]))
        out = paddle.concat(out) if len(out) > 1 else out[0]
        return out.reshape([B, heads, n, d]).transpose([0, 2, 1, 3])  #                  (B, n, heads, d)

    def patch_embed(self, x, conv):
        """Non-overlapping patches [B, D, T, h, w] of x [B, C, T, H, W]; conv: an nn.Conv3D with stride = kernel."""
        return conv(x)

    def causal_conv(self, x, conv, frames_before):
        """`conv`, an nn.Conv3D without padding in time, of x [B, C, T, h, w] after `frames_before` frames of zeros."""
        B, C, T, h, w = x.shape
        if not on_cpu():
            return conv(paddle.concat([paddle.zeros([B, C, frames_before, h, w], x.dtype), x], 2))
        # A sum of 2-D convolutions over the kernel's k positions in time; one call computes all k of each frame. On a
        # CPU, Paddle's 3-D convolution takes three times the memory, because it unfolds all frames at once.
        k, stride, D = conv.weight.shape[2], conv._stride[0], conv.weight.shape[0]
        taps = conv.weight.transpose([2, 0, 1, 3, 4]).flatten(0, 1)  #                   (k·D, C, rows, columns)
        y = F.conv2d(x.transpose([0, 2, 1, 3, 4]).flatten(0, 1), taps, padding=conv._updated_padding[1:])
        y = y.reshape([B, T, k, D, h, w])
        y = paddle.concat([paddle.zeros([B, frames_before, k, D, h, w], y.dtype), y], 1)
        last = T + frames_before - k  #                                                  where the last window starts
        y = sum(y[:, i : i + last + 1 : stride, i] for i in range(k)).transpose([0, 2, 1, 3, 4])
        return y if conv.bias is None else y + conv.bias.reshape([D, 1, 1, 1])

    def timestep_embedding(self, t):
        """Cosines, then sines, of t at 128 frequencies. [...] -> float32 [..., 256]"""
        freqs = paddle.exp(-math.log(10000) * paddle.arange(128, dtype="float32") / 128)
        angles = t.astype("float32")[..., None] * freqs
        return paddle.concat([angles.cos(), angles.sin()], -1)

    def layer_norm(self, x, weight=None, bias=None):
        """LayerNorm over the last axis, with ε = 1e-6."""
        return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon=1e-6)

    def where(self, mask, a, b):
        """a where `mask` is True, b elsewhere."""
        return paddle.where(mask, a, b)

    def pad(self, x, bottom, right):
        """Zeros below and to the right of x [B, C, T, H, W]."""
        return F.pad(x, [0, right, 0, bottom, 0, 0], data_format="NCDHW")

    def expand_as(self, vector, x):
        """`vector` broadcast to the shape of x. On a CPU, Paddle is 20 times as fast on equal shapes."""
        return vector.expand(x.shape) if on_cpu() else vector


EAGER = Ops()  # (not a default of functions: `paddle.jit.to_static` fails on such)

# ---------------------------------------------------------------------------------------------------------------------
#   Attention
# ---------------------------------------------------------------------------------------------------------------------


def attention_weights(q, k, mask=None):
    """softmax(q kᵀ / √d), float32 [B, heads, n, m], for traces. Arguments as in `Ops.attention`."""
    scores = paddle.einsum("bnhd,bmhd->bhnm", q.astype("float32"), k.astype("float32")) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + paddle.where(mask, 0.0, -1e4).astype("float32")[:, None, None]  # Paddle 2.6 makes float64
    return F.softmax(scores)


class RMSNorm(nn.Layer):
    """x / rms(x) · weight over the last axis, computed in float32."""

    def __init__(self, dim, ops=EAGER):
        super().__init__()
        self.ops = ops
        self.weight = self.create_parameter([dim], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x):
        y = x.astype("float32")
        y = y * self.ops.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)
        return y.astype(x.dtype) * self.weight


class RotaryEmbedding(nn.Layer):
    """Rotary position tables for T positions.

    forward(T) -> cos, sin [T, 1, d] of the angles of positions 0 … T - 1, and the matrix [d, d] that maps each channel
    pair (a, b) to (-b, a). As a matrix product this permutation is exact, and faster than slicing.
    """

    def __init__(self, dim):
        super().__init__()
        freqs = 10000.0 ** (-paddle.arange(0, dim, 2, dtype="float32") / dim)
        self.register_buffer("freqs", freqs)  # as released: stored in the checkpoint, though it is a constant

    def forward(self, length):
        angles = paddle.arange(length, dtype="float32")[:, None] * self.freqs
        angles = angles.repeat_interleave(2, axis=-1)[:, None]  #                        (T, 1, d)
        upper = paddle.diag(paddle.to_tensor([1.0, 0.0] * (angles.shape[-1] // 2))[:-1], 1)
        return angles.cos(), angles.sin(), upper - upper.T  #                            blocks [[0, 1], [-1, 0]]


def rotate(x, rotary, ops=None):
    """Rotates each channel pair (2i, 2i + 1) of x [B, n, heads, d] by the angle of its position (RoFormer, eq. 34)."""
    ops = ops or EAGER
    cos, sin, rotate_pairs = (table.astype(x.dtype) for table in rotary)
    return x * ops.expand_as(cos, x) + ops.matmul(x, rotate_pairs) * ops.expand_as(sin, x)


class SelfAttention(nn.Layer):
    """Self-attention over n tokens: those of one frame (spatial), or one token position in all frames (temporal).

    qk_norm: RMSNorm on queries and keys. norm_first: it comes before the rotation (STDiT3), not after it (STDiT2).
    """

    def __init__(self, dim, num_heads, qk_norm, ops=EAGER, norm_first=False):
        super().__init__()
        self.num_heads, self.norm_first, self.ops = num_heads, norm_first, ops
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // num_heads, ops) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // num_heads, ops) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def heads(self, x, rotary=None) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries, keys and values of x [B, n, D], each [B, n, heads, d]."""
        B, n, _ = x.shape
        qkv = self.qkv(x).reshape([B, n, 3, self.num_heads, -1])
        q, k, v = (qkv[:, :, i] for i in range(3))
        if self.norm_first:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:  # in temporal attention only
            q, k = rotate(q, rotary, self.ops), rotate(k, rotary, self.ops)
        if not self.norm_first:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def forward(self, x, rotary=None):
        return self.proj(self.ops.attention(*self.heads(x, rotary)).reshape(x.shape))


class CrossAttention(nn.Layer):
    """Cross-attention from video tokens to caption tokens. K and V don't depend on t and are cached."""

    def __init__(self, dim, num_heads, ops=EAGER):
        super().__init__()
        self.num_heads, self.ops = num_heads, ops
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def kv(self, y) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Keys and values, each [B, L, heads, d], of caption tokens y [B, L, D]."""
        B, L, _ = y.shape
        k, v = self.kv_linear(y).reshape([B, L, 2, self.num_heads, -1]).unbind(2)
        return k, v

    def queries(self, x) -> paddle.Tensor:
        """[B, N, heads, d] of video tokens x [B, N, D]."""
        B, N, _ = x.shape
        return self.q_linear(x).reshape([B, N, self.num_heads, -1])

    def forward(self, x, keys, values, y_mask):
        return self.proj(self.ops.attention(self.queries(x), keys, values, y_mask).reshape(x.shape))


# ---------------------------------------------------------------------------------------------------------------------
#   Embedders
# ---------------------------------------------------------------------------------------------------------------------


class Mlp(nn.Layer):
    """Linear, GELU (tanh approximation), linear."""

    def __init__(self, dim_in, dim_hidden, dim_out, ops=EAGER):
        super().__init__()
        self.ops = ops
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x):
        return self.fc2(self.ops.gelu(self.fc1(x)))


class TimestepEmbedder(nn.Layer):
    """Sinusoidal embedding of a number, then an MLP. [B] -> [B, D]"""

    def __init__(self, dim, ops=EAGER):
        super().__init__()
        self.ops = ops
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.Silu(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(self.ops.timestep_embedding(t).astype(self.mlp[0].weight.dtype))


class SizeEmbedder(TimestepEmbedder):
    """The same for n numbers per video (height and width, say), concatenated. [B, n] -> [B, n·D]"""

    def forward(self, sizes):
        return super().forward(sizes).flatten(1)


class PatchEmbedder(nn.Layer):
    """One token per patch. [B, C, T, H, W] -> [B, T, h, w, D]"""

    def __init__(self, channels, dim, patch_size, ops=EAGER):
        super().__init__()
        self.ops = ops
        self.proj = nn.Conv3D(channels, dim, patch_size, patch_size)

    def forward(self, x):
        return self.ops.patch_embed(x, self.proj).transpose([0, 2, 3, 4, 1])


class CaptionEmbedder(nn.Layer):
    """Projects T5 vectors to the hidden size; holds the null caption of classifier-free guidance."""

    def __init__(self, caption_channels, dim, max_length, ops=EAGER):
        super().__init__()
        self.y_proj = Mlp(caption_channels, dim, dim, ops)
        self.register_buffer("y_embedding", paddle.zeros([max_length, caption_channels]))

    def forward(self, y):
        return self.y_proj(y)


def position_embedding(h, w, dim, scale):
    """2-D sin-cos positions [h·w, D] of a grid of tokens, normalized so that grids of any shape span the same range.

    scale: √(height · width in pixels) / input_sq_size, the side of the square that positions are relative to.
    """
    base = round(math.sqrt(h * w))
    omega = 10000.0 ** (-paddle.arange(0, dim // 2, 2, dtype="float32") / (dim // 2))

    def sin_cos(n):
        position = paddle.arange(n, dtype="float32") / scale * (base / n)
        angles = position[:, None] * omega
        return paddle.concat([angles.sin(), angles.cos()], -1)  #                        (n, D/2)

    rows = sin_cos(h)[:, None].expand([h, w, dim // 2])
    columns = sin_cos(w)[None].expand([h, w, dim // 2])
    return paddle.concat([columns, rows], -1).reshape([h * w, dim])  # as released: the column comes first


# ---------------------------------------------------------------------------------------------------------------------
#   adaLN
# ---------------------------------------------------------------------------------------------------------------------


def modulate(x, shift, scale, ops=None):
    """adaLN: LayerNorm(x) · (1 + scale) + shift, the norm without parameters of its own."""
    D, ops = x.shape[-1], ops or EAGER
    if math.prod(shift.shape) == D:  # one vector for all tokens: passed as the norm's weights, two passes fewer
        return ops.layer_norm(x, (1 + scale).reshape([D]), shift.reshape([D]))
    return ops.layer_norm(x) * ops.expand_as(1 + scale, x) + ops.expand_as(shift, x)


def modulation(table, t, t0=None, x_mask=None, ops=None):
    """The k modulation vectors of a layer: its learned table [k, D] plus adaLN-single parameters.

    t, t0: [B, k, D], at the timestep and at 0. x_mask [B, T] selects t for denoised frames, t0 for conditioning frames;
    None: t for all frames. -> k × [B, 1 or T, 1, D]
    """
    vectors = (table + t)[:, None]  #                                                    (B, 1, k, D)
    if x_mask is not None:
        ops = ops or EAGER
        vectors = ops.where(x_mask[:, :, None, None], vectors, (table + t0)[:, None])  #  (B, T, k, D)
    return vectors.split(table.shape[0], 2)


def add_gated(x, gate, h, ops=None):
    """The gated residual x + gate · h."""
    return x + (ops or EAGER).expand_as(gate, x) * h


class FinalLayer(nn.Layer):
    """adaLN and a projection to patches. [B, T, S, D] -> [B, T, S, rows · columns · 2C]"""

    def __init__(self, dim, out, ops=EAGER):
        super().__init__()
        self.ops = ops
        normal = nn.initializer.Normal(std=dim**-0.5)
        self.scale_shift_table = self.create_parameter([2, dim], default_initializer=normal)
        self.linear = nn.Linear(dim, out)

    def forward(self, x, t, t0=None, x_mask=None):
        """t, t0: [B, D], embeddings of the timestep and of 0. x_mask: as in `modulation`."""

        def modulated(x, t):
            shift, scale = ((self.scale_shift_table + t[:, None])[:, i, None, None] for i in (0, 1))
            return modulate(x, shift, scale, self.ops)

        x = modulated(x, t)
        if x_mask is not None:  # as released: conditioning frames are modulated again, on top of that, at t = 0
            x = self.ops.where(x_mask[:, :, None, None], x, modulated(x, t0))
        return self.linear(x)


# ---------------------------------------------------------------------------------------------------------------------
#   What STDiT2 and STDiT3 share
# ---------------------------------------------------------------------------------------------------------------------


Size = Annotated[Whole, Field(ge=1, le=2**14)]


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer; the defaults are those that both released models have.

    Subclasses are `validated`: they check the annotations, and raise CheckpointError.
    """

    model_type: ClassVar[str]  # as config.json names it
    released: ClassVar[dict]  # fields of config.json of which only this value is implemented

    hidden_size: Annotated[Whole, Field(ge=12, le=2**14, multiple_of=12)] = 1152  # D
    depth: Annotated[Whole, Field(ge=1, le=128)] = 28  # blocks
    num_heads: Annotated[Whole, Field(ge=1, le=1024)] = 16
    caption_channels: Size = 4096  # width of the T5 vectors
    model_max_length: Annotated[Whole, Field(ge=1, le=1024)] = 200  # L, at most
    input_sq_size: Annotated[Whole, Field(ge=1, le=2**16)] = 512  # pixels: positions are relative to this square's side
    in_channels: Annotated[Whole, Field(ge=1, le=64)] = 4  # C
    patch_size: Annotated[tuple[Size, Size, Size], AsTuple] = (1, 2, 2)  # frames, rows, columns of one token
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    qk_norm: bool = True  # RMSNorm on queries and keys

    def __post_init__(self):
        D, heads, what = self.hidden_size, self.num_heads, f"the {self.model_type} config"
        if D % heads or (D // heads) % 2:
            raise CheckpointError(f"{what}: hidden_size {D} must be an even multiple of num_heads {heads}")
        if self.patch_size[0] != 1 or max(self.patch_size) > 64:
            raise CheckpointError(f"{what}: patch_size {list(self.patch_size)} must be [1, rows, columns]")

    @classmethod
    def from_dict(cls, config: dict):
        """From a released config.json; fields that concern training or speed only are ignored.

        Raises CheckpointError for the config of another model, and for misspelt fields.
        """
        what = f"the {cls.model_type} config"
        for name, needed in {"model_type": cls.model_type, "pred_sigma": True, **cls.released}.items():
            if config.get(name, needed) != needed:
                raise CheckpointError(f"{what}: {name} must be {needed!r}, not {config[name]!r:.60}")
        return cls(**known_fields(config, [f.name for f in fields(cls)], what, CheckpointError))


@dataclass(kw_only=True)
class TransformerState:
    """The result of `precompute`: everything that stays the same in all steps of a video. Subclasses add tensors."""

    params: ClassVar[type]  # of at_zero

    kv: list[tuple[paddle.Tensor, paddle.Tensor]]  # per block: keys and values [B, L, heads, d] of the caption
    y_mask: paddle.Tensor  # bool [B, L]
    positions: paddle.Tensor  # [S, D]
    rotary: tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]  # see `RotaryEmbedding`
    at_zero: Any = None  # TimestepParams of conditioning frames; computed when first needed

    def first(self, B: int):
        """The state of the first B videos of the batch; what it does not cut must be shared by all."""
        return replace(self, kv=[(k[:B], v[:B]) for k, v in self.kv], y_mask=self.y_mask[:B])

    def named(self, masked: bool) -> dict[str, paddle.Tensor]:
        """The tensors by name. masked: with those of conditioning frames, which must have been computed."""
        named = dict(vars(self))
        kv, rotary, at_zero = (named.pop(name) for name in ("kv", "rotary", "at_zero"))
        named |= dict(zip(("cos", "sin", "pairs"), rotary, strict=True))
        named |= {f"{name}{i}": tensor for i, pair in enumerate(kv) for name, tensor in zip("kv", pair, strict=True)}
        return named | ({f"zero_{name}": tensor for name, tensor in vars(at_zero).items()} if masked else {})

    @classmethod
    def from_named(cls, named):
        """The state with tensors from `named`."""
        own = {field.name: named[field.name] for field in fields(cls) if field.name in named}
        kv = [(named[f"k{i}"], named[f"v{i}"]) for i in range(sum(name[1:].isdigit() for name in named) // 2)]
        zero = {name[5:]: tensor for name, tensor in named.items() if name.startswith("zero_")}
        rotary = named["cos"], named["sin"], named["pairs"]
        return cls(kv=kv, rotary=rotary, at_zero=cls.params(**zero) if zero else None, **own)


class VideoTransformer(nn.Layer):
    """Base class: latents to tokens and back. Subclasses have `config`, `ops`, `x_embedder` and `y_embedder`."""

    conditions: ClassVar[type]  # the dataclass that `precompute` takes
    state: ClassVar[type[TransformerState]]  # the one that it returns

    @property
    def null_caption(self) -> paddle.Tensor:
        """[L_max, caption_channels]: replaces the T5 vectors in the unconditional half of classifier-free guidance."""
        return self.y_embedder.y_embedding

    def embed_caption(self, y):
        """Caption tokens [B, L, D] of T5 vectors y [B, 1, L, caption_channels]."""
        return self.y_embedder(y.squeeze(1).astype(self.x_embedder.proj.weight.dtype))

    def positions(self, H, W, height, width):
        """`position_embedding` [S, D] of latents of H × W, for a video of height × width pixels (tensors)."""
        rows, columns = self.config.patch_size[1:]
        scale = (height * width).sqrt() / self.config.input_sq_size
        positions = position_embedding(-(-H // rows), -(-W // columns), self.config.hidden_size, scale)
        return positions.astype(self.x_embedder.proj.weight.dtype)

    def embed_patches(self, x, state):
        """Tokens with positions [B, T, S, D] of x [B, C, T, H, W]; odd sizes are padded with zeros."""
        H, W = x.shape[3:]
        rows, columns = self.config.patch_size[1:]
        x = x.astype(state.positions.dtype)
        if H % rows or W % columns:
            x = self.ops.pad(x, -H % rows, -W % columns)
        return self.x_embedder(x).flatten(2, 3) + state.positions

    def unpatchify(self, tokens, H, W):
        """[B, T, S, rows · columns · 2C] -> [B, 2C, T, H, W], without padding."""
        B, T = tokens.shape[:2]
        rows, columns = self.config.patch_size[1:]
        h, w = -(-H // rows), -(-W // columns)
        x = tokens.reshape([B, T, h, w, rows, columns, -1]).transpose([0, 6, 1, 2, 4, 3, 5])
        return x.reshape([B, -1, T, h * rows, w * columns])[..., :H, :W]


def trim_captions(y, y_mask):
    """y [B, 1, L, caption_channels] and y_mask [B, L] without the padding that all captions share.

    L becomes a multiple of 16. (Sums over a multiple of 16 terms have the same rounding whatever zeros follow, so a
    caption gives equal bits in every batch.)
    """
    L = min(-(-int(y_mask.sum(1).max()) // 16) * 16, y.shape[2])
    return y[:, :, :L], y_mask[:, :L]
