"""STDiT2, the video transformer of Open-Sora 1.1, to be read from top to bottom.

Axes: B videos · T frames · H, W latent height and width · C latent channels (4) · S spatial tokens of one frame
= (H/2)(W/2) · N = T·S tokens · D hidden size · L caption tokens.

    x [B, C, T, H, W] noisy latents ──patches──▶ [B, T, S, D] ──depth × Block──▶ [B, T, S, D] ──▶ [B, 2C, T, H, W]

Half of the result is the noise ε that the model sees in x, half says how wide the next step may scatter.
A frame is either being denoised ("live", seen at time t) or given ("kept", seen at time 0): `x_mask`.

Sources: hpcaitech/Open-Sora v1.1, opensora/models/stdit/stdit2.py (names and arithmetic, reproduced by
tests/golden); DiT, arXiv:2212.09748 (adaLN-zero); PixArt-α, arXiv:2310.00426 (adaLN-single, cross-attention);
RoFormer, arXiv:2104.09864 (rotary positions). What looks odd and must stay is marked `as released`.
"""

import math
import reprlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_fields,
    check_state_dict,
    load,
    open_checkpoint,
    read_config,
)
from opensora_lite.layers import (
    CaptionEmbedder,
    CrossAttention,
    Mlp,
    PatchEmbedder,
    RotaryEmbedding,
    SelfAttention,
    TimestepEmbedder,
    modulate,
    modulation,
    position_embedding,
    spread,
)

# ---------------------------------------------------------------------------------------------------------------------
#   Block
# ---------------------------------------------------------------------------------------------------------------------


class Block(nn.Layer):
    """Spatial attention, temporal attention, cross-attention to the caption, and an MLP, each added to x."""

    def __init__(self, dim, num_heads, mlp_ratio, qk_norm):
        super().__init__()
        normal = nn.initializer.Normal(std=dim**-0.5)
        self.scale_shift_table = self.create_parameter([6, dim], default_initializer=normal)
        self.scale_shift_table_temporal = self.create_parameter([3, dim], default_initializer=normal)
        self.attn = SelfAttention(dim, num_heads, qk_norm)
        self.attn_temp = SelfAttention(dim, num_heads, qk_norm)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x, keys, values, y_mask, time, x_mask, rotary):
        B, T, S, D = x.shape
        space, motion = self.scale_shift_table, self.scale_shift_table_temporal
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation(space, time.space, time.space_kept, x_mask)
        shift_t, scale_t, gate_t = modulation(motion, time.motion, time.motion_kept, x_mask)

        tokens = modulate(x, shift, scale).reshape([B * T, S, D])  #                     frame by frame
        x = x + spread(gate, x) * self.attn(tokens).reshape([B, T, S, D])
        tokens = modulate(x, shift_t, scale_t).transpose([0, 2, 1, 3]).reshape([B * S, T, D])  # place by place
        x = x + spread(gate_t, x) * self.attn_temp(tokens, rotary).reshape([B, S, T, D]).transpose([0, 2, 1, 3])
        x = x + self.cross_attn(x.reshape([B, T * S, D]), keys, values, y_mask).reshape([B, T, S, D])
        return x + spread(gate_mlp, x) * self.mlp(modulate(x, shift_mlp, scale_mlp))


class FinalLayer(nn.Layer):
    """Tokens -> the patches they stand for. [B, T, S, D] -> [B, T, S, patch values · 2C]"""

    def __init__(self, dim, out):
        super().__init__()
        normal = nn.initializer.Normal(std=dim**-0.5)
        self.scale_shift_table = self.create_parameter([2, dim], default_initializer=normal)
        self.linear = nn.Linear(dim, out)

    def forward(self, x, time, x_mask):
        def at(embedding):
            return modulate(x, *((self.scale_shift_table + embedding[:, None])[:, i, None, None] for i in (0, 1)))

        x = at(time.embedding)
        if x_mask is not None:  # as released: kept frames are modulated once more, on that result, at t = 0
            x = paddle.where(x_mask[:, :, None, None], x, at(time.embedding_kept))
        return self.linear(x)


@dataclass
class TimeConditions:
    """What the time, the size and the length say to the layers: at t for live frames, at 0 for kept ones.

    B is 1 where the whole batch has one time and one size.
    """

    embedding: paddle.Tensor  # [B, D], of t alone
    space: paddle.Tensor  # [B, 6, D], t and the size
    motion: paddle.Tensor  # [B, 3, D], t and the length
    embedding_kept: paddle.Tensor | None = None  # [B, D], of 0 and (as released, unlike `embedding`) the size
    space_kept: paddle.Tensor | None = None
    motion_kept: paddle.Tensor | None = None


@dataclass
class Conditions:
    """What the model is told of a video and what holds in every step: computed once, by `STDiT2.prepare`."""

    answers: list[tuple[paddle.Tensor, paddle.Tensor]]  # of each block: the caption's keys and values [B, L, heads, d]
    y_mask: paddle.Tensor  # bool [B, L], true where a token stands
    size: paddle.Tensor  # [B, D] (or [1, D], as in `TimeConditions`), of height, width and their ratio
    length: paddle.Tensor  # [B, D], of the number of frames and their rate
    positions: paddle.Tensor  # [S, D], of the places in a frame
    rotary: tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]  # of the frames, as of `RotaryEmbedding`
    kept: tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor] | None = None  # what the time 0 says, once it was asked

    def first(self, B: int) -> "Conditions":
        """Those of the first B videos of a batch whose size and length are one for all."""
        answers = [(keys[:B], values[:B]) for keys, values in self.answers]
        return replace(self, answers=answers, y_mask=self.y_mask[:B])


# ---------------------------------------------------------------------------------------------------------------------
#   Model
# ---------------------------------------------------------------------------------------------------------------------


RANGES = {  # of the fields of a config: whatever is beyond them was not meant
    "hidden_size": (12, 2**14),
    "depth": (1, 128),
    "num_heads": (1, 1024),
    "caption_channels": (1, 2**14),
    "model_max_length": (1, 1024),
    "input_sq_size": (1, 2**16),
    "in_channels": (1, 64),
    "mlp_ratio": (0.01, 64.0),
    "qk_norm": (False, True),
}


@dataclass(frozen=True)
class STDiT2Config:
    """The sizes of an STDiT2; the defaults are those of OpenSora-STDiT-v2-stage3."""

    hidden_size: int = 1152  # D
    depth: int = 28  # blocks
    num_heads: int = 16
    caption_channels: int = 4096  # width of the T5 vectors
    model_max_length: int = 200  # most tokens of a caption
    input_sq_size: int = 512  # pixels: positions are scaled relative to a square of this side
    in_channels: int = 4  # C
    patch_size: tuple[int, int, int] = (1, 2, 2)  # frames, rows, columns of one token
    mlp_ratio: float = 4.0
    qk_norm: bool = True  # RMS norm on queries and keys

    def __post_init__(self):
        config = {f.name: getattr(self, f.name) for f in fields(self)}
        check_fields(config, RANGES, "the STDiT2 config")
        D, heads = self.hidden_size, self.num_heads
        if D % 12 or D % heads or (D // heads) % 2:
            raise CheckpointError(f"hidden_size {D} must be a multiple of 12 and an even multiple of num_heads {heads}")
        patch = self.patch_size
        whole = isinstance(patch, tuple) and all(type(n) is int and 1 <= n <= 64 for n in patch)
        if not whole or len(patch) != 3 or patch[0] != 1:
            given = reprlib.repr(list(patch) if isinstance(patch, tuple) else patch)
            raise CheckpointError(f"patch_size {given} is not supported; STDiT2 takes [1, rows, columns]")

    @classmethod
    def from_dict(cls, config: dict) -> "STDiT2Config":
        """From a released config.json. Fields that only concern training or speed are passed over.

        Raises CheckpointError where the file describes a model that STDiT2 of Open-Sora 1.1 is not.
        """
        for field, needed in {"model_type": "STDiT2", "pred_sigma": True, "no_temporal_pos_emb": False}.items():
            if config.get(field, needed) != needed:
                raise CheckpointError(
                    f"the config has {field} = {reprlib.repr(config[field])}; STDiT2 of Open-Sora 1.1 has {needed!r}"
                )
        check_fields(config, RANGES, "the STDiT2 config")
        known = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        if isinstance(known.get("patch_size"), list):
            known["patch_size"] = tuple(known["patch_size"])
        return cls(**known)


class STDiT2(nn.Layer):
    """The denoiser: noisy latents, a time and a caption -> the noise in them and the range of the next step."""

    def __init__(self, config: STDiT2Config):
        super().__init__()
        self.config = config
        D = config.hidden_size
        self.x_embedder = PatchEmbedder(config.in_channels, D, config.patch_size)
        self.t_embedder = TimestepEmbedder(D)
        self.t_block = nn.Sequential(nn.Silu(), nn.Linear(D, 6 * D))
        self.t_block_temp = nn.Sequential(nn.Silu(), nn.Linear(D, 3 * D))
        self.y_embedder = CaptionEmbedder(config.caption_channels, D, config.model_max_length)
        self.csize_embedder = TimestepEmbedder(D // 3)  # height, width
        self.ar_embedder = TimestepEmbedder(D // 3)  # height / width
        self.fl_embedder = TimestepEmbedder(D)  # number of frames
        self.fps_embedder = TimestepEmbedder(D)  # frames per second
        self.rope = RotaryEmbedding(D // config.num_heads)
        self.blocks = nn.LayerList(
            Block(D, config.num_heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(D, math.prod(config.patch_size) * 2 * config.in_channels)

    def forward(self, x, timestep, y, mask, x_mask=None, *, num_frames, height, width, ar, fps):
        """The noise in x and the range of the next step's variance.

        x: [B, C, T, H, W] noisy latents. timestep: [B], 0 … 999. y: [B, 1, L, caption_channels] T5 vectors.
        mask: [B, L], 1 where y holds a token. x_mask: [B, T], true where a frame is live (None: all are).
        num_frames, height, width (pixels), ar (height / width), fps: [B] each; an image is told fps 120.
        -> [B, 2C, T, H, W]: ε, then the place of log σ² between its bounds (-1 … 1), in float32.
        """
        told = self.prepare(y, mask, x.shape[2:], num_frames=num_frames, height=height, width=width, ar=ar, fps=fps)
        return self.denoise(x, timestep, told, x_mask)

    def prepare(self, y, mask, latent_size, *, num_frames, height, width, ar, fps):
        """The Conditions of a video, all that does not change from step to step.

        latent_size: T, H, W. The others are those of `forward`; numbers of the whole batch may be [1] instead of [B].
        """
        T, H, W = latent_size
        rows, columns = self.config.patch_size[1:]
        dtype = self.x_embedder.proj.weight.dtype
        scale = (height[0] * width[0]).sqrt() / self.config.input_sq_size
        size = self.csize_embedder(paddle.stack([height, width], 1)).reshape([height.shape[0], -1])
        words = self.y_embedder(y.squeeze(1).astype(dtype))  #                           (B, L, D)
        return Conditions(
            answers=[block.cross_attn.answers(words) for block in self.blocks],
            y_mask=mask.astype("bool"),
            size=paddle.concat([size, self.ar_embedder(ar)], -1),
            length=self.fl_embedder(num_frames) + self.fps_embedder(fps),
            positions=position_embedding(-(-H // rows), -(-W // columns), self.config.hidden_size, scale).astype(dtype),
            rotary=self.rope(T),
        )

    def denoise(self, x, timestep, told, x_mask=None):
        """`forward` of one step: x, timestep ([B], or [1] for all) and x_mask as there; told: the Conditions."""
        B, _, T, H, W = x.shape
        rows, columns = self.config.patch_size[1:]
        h, w = -(-H // rows), -(-W // columns)
        x, time = self.tokens(x, told), self.times(timestep, told, x_mask is not None)
        x_mask = None if x_mask is None else x_mask.astype("bool")
        for i, block in enumerate(self.blocks):
            x = block(x, *told.answers[i], told.y_mask, time, x_mask, told.rotary)
        x = self.final_layer(x, time, x_mask)  #                                         (B, T, S, patch values · 2C)
        x = x.reshape([B, T, h, w, rows, columns, -1]).transpose([0, 6, 1, 2, 4, 3, 5])
        return x.reshape([B, -1, T, h * rows, w * columns])[..., :H, :W].astype("float32")

    def tokens(self, x, told):
        """Tokens [B, T, S, D] of latents x [B, C, T, H, W], with their places."""
        H, W = x.shape[3:]
        rows, columns = self.config.patch_size[1:]
        x = x.astype(told.positions.dtype)
        if H % rows or W % columns:
            x = F.pad(x, [0, -W % columns, 0, -H % rows, 0, 0], data_format="NCDHW")
        return self.x_embedder(x).flatten(2, 3) + told.positions

    def entering(self, x, timestep, told):
        """What enters the first attention, [B, T, S, D], x, timestep and told as of `denoise`; no frame is kept."""
        shift, scale, *_ = modulation(
            self.blocks[0].scale_shift_table, self.times(timestep, told, False).space, None, None
        )
        return modulate(self.tokens(x, told), shift, scale)

    def times(self, timestep, told, kept):
        """The TimeConditions of a step. kept: whether there are frames that are given."""
        live = self.time_vectors(timestep, told.size, told.length)
        return TimeConditions(*live, *self.kept(timestep, told)) if kept else TimeConditions(*live)

    def kept(self, timestep, told):
        """The vectors of given frames in TimeConditions, which are at time 0 whatever timestep is."""
        if told.kept is None:
            embedding, space, motion = self.time_vectors(paddle.zeros_like(timestep), told.size, told.length)
            told.kept = embedding + told.size, space, motion
        return told.kept

    def time_vectors(self, timestep, size, length):
        """The time's embedding [B, D], and what time, size and length say to all layers, [B, 6, D] and [B, 3, D]."""
        embedding = self.t_embedder(timestep)  #                                         (B, D)
        space, motion = self.t_block(embedding + size), self.t_block_temp(embedding + length)
        D = embedding.shape[1]
        return embedding, space.reshape([-1, 6, D]), motion.reshape([-1, 3, D])


# Computed, not learned: a file may lack them, and older ones hold tables that are computed on the fly here.
COMPUTED = ("rope.freqs", "pos_embed", "pos_embed_temporal")


def load_stdit(path: str | Path, dtype: str = "float32") -> STDiT2:
    """The STDiT2 of a folder with config.json and weights (or of a weights file beside its config.json).

    Raises CheckpointError, before anything is allocated, where files are missing or broken.
    """
    config = STDiT2Config.from_dict(read_config(path))
    tensors, what = open_checkpoint(path), f"STDiT2 checkpoint {path}"
    check_state_dict(build_meta(STDiT2, config), tensors, computed=COMPUTED, what=what)
    return load(build(STDiT2, config, dtype=dtype), tensors, computed=COMPUTED, what=what)


# ---------------------------------------------------------------------------------------------------------------------
#   Sizes
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {
    "XL/2": STDiT2Config(),  # 768.27 M values: OpenSora-STDiT-v2-stage3
    "tiny": STDiT2Config(144, 6, 6, caption_channels=96, model_max_length=32, input_sq_size=64),  # 2.94 M: ours
}
