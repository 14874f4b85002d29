"""STDiT2, the denoiser of Open-Sora 1.1: a diffusion transformer with separate spatial and temporal attention.

    x_t [B, C, T, H, W] ──patches──▶ [B, T, S, D] ──depth × Block──▶ [B, T, S, D] ──FinalLayer──▶ [B, 2C, T, H, W]

The output is the predicted noise ε (C channels) and the variance logits (C channels; Improved DDPM, eq. 15).
Axes and sources: see `layers`; S = (H/2)(W/2). Names and arithmetic: hpcaitech/Open-Sora v1.1,
opensora/models/stdit/stdit2.py, reproduced by tests/parity. Read from top to bottom: Block, STDiT2, sizes.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import paddle
import paddle.nn as nn

from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    build,
    build_meta,
    check_state_dict,
    find_part,
    load,
    open_checkpoint,
    read_config,
    without_prefix,
)
from opensora_lite.layers import (
    EAGER,
    CaptionEmbedder,
    CrossAttention,
    FinalLayer,
    Mlp,
    PatchEmbedder,
    RotaryEmbedding,
    SelfAttention,
    SizeEmbedder,
    TimestepEmbedder,
    TransformerConfig,
    TransformerState,
    VideoTransformer,
    add_gated,
    modulate,
    modulation,
    trim_captions,
)
from opensora_lite.validation import validated

# ---------------------------------------------------------------------------------------------------------------------
#   Block
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class TimestepParams:
    """adaLN-single parameters at one timestep; B is 1 where the whole batch shares timestep, size and length."""

    t: paddle.Tensor  # [B, D], the timestep embedding alone
    t_spatial: paddle.Tensor  # [B, 6, D] = t_block(t + size)
    t_temporal: paddle.Tensor  # [B, 3, D] = t_block_temp(t + length)


class Block(nn.Layer):
    """Spatial attention, temporal attention, cross-attention to the caption and an MLP, each with a residual."""

    def __init__(self, dim, num_heads, mlp_ratio, qk_norm, ops=EAGER):
        super().__init__()
        self.ops = ops
        normal = nn.initializer.Normal(std=dim**-0.5)
        self.scale_shift_table = self.create_parameter([6, dim], default_initializer=normal)
        self.scale_shift_table_temporal = self.create_parameter([3, dim], default_initializer=normal)
        self.attn = SelfAttention(dim, num_heads, qk_norm, ops)
        self.attn_temp = SelfAttention(dim, num_heads, qk_norm, ops)
        self.cross_attn = CrossAttention(dim, num_heads, ops)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim, ops)

    def forward(self, x, kv, y_mask, params_t, params_0, x_mask, rotary):
        """x: [B, T, S, D]. kv: cached keys and values of this block. params_t, params_0: TimestepParams at t and 0."""
        B, T, S, D = x.shape
        t0_spatial, t0_temporal = (None, None) if params_0 is None else (params_0.t_spatial, params_0.t_temporal)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation(
            self.scale_shift_table, params_t.t_spatial, t0_spatial, x_mask, self.ops
        )
        shift_t, scale_t, gate_t = modulation(
            self.scale_shift_table_temporal, params_t.t_temporal, t0_temporal, x_mask, self.ops
        )

        h = modulate(x, shift, scale, self.ops).reshape([B * T, S, D])  #                frames as batch
        x = add_gated(x, gate, self.attn(h).reshape([B, T, S, D]), self.ops)
        h = modulate(x, shift_t, scale_t, self.ops).transpose([0, 2, 1, 3]).reshape([B * S, T, D])  # positions as batch
        h = self.attn_temp(h, rotary).reshape([B, S, T, D]).transpose([0, 2, 1, 3])
        x = add_gated(x, gate_t, h, self.ops)
        x = x + self.cross_attn(x.reshape([B, T * S, D]), *kv, y_mask).reshape([B, T, S, D])
        return add_gated(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp, self.ops)), self.ops)


# ---------------------------------------------------------------------------------------------------------------------
#   Model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Conditions:
    """What a video is conditioned on. The numbers are float tensors [B], or [1] for the whole batch."""

    y: paddle.Tensor  # [B, 1, L, caption_channels], T5 vectors
    y_mask: paddle.Tensor  # [B, L], 1 for a token, 0 for padding
    latent_size: tuple[int, int, int]  # T, H, W
    num_frames: paddle.Tensor
    height: paddle.Tensor  # pixels
    width: paddle.Tensor  # pixels
    ar: paddle.Tensor  # height / width
    fps: paddle.Tensor  # frames per second; as released, 120 for an image

    @classmethod
    def shared(
        cls,
        y: paddle.Tensor,
        y_mask: paddle.Tensor,
        latent_size: tuple[int, int, int],
        height: int,
        width: int,
        fps: float,
    ) -> "Conditions":
        """For a batch whose videos share size (in pixels), length and frame rate; without shared padding."""
        numbers = (latent_size[0], height, width, height / width, fps)
        return cls(y, y_mask, latent_size, *(paddle.full([1], float(n)) for n in numbers)).trimmed()

    def trimmed(self) -> "Conditions":
        """Without the padding that all captions share, see `layers.trim_captions`."""
        y, y_mask = trim_captions(self.y, self.y_mask)
        return replace(self, y=y, y_mask=y_mask)


@dataclass(kw_only=True)
class State(TransformerState):
    """The result of `STDiT2.precompute`: everything that stays the same in all steps of a video."""

    params: ClassVar[type] = TimestepParams

    size: paddle.Tensor  # [B or 1, D], embedding of height, width and aspect ratio
    length: paddle.Tensor  # [B or 1, D], embedding of the number of frames and their rate


@validated(CheckpointError, "the STDiT2 config")
class STDiT2Config(TransformerConfig):
    """The sizes of an STDiT2; the defaults are those of OpenSora-STDiT-v2-stage3. Raises CheckpointError."""

    model_type: ClassVar[str] = "STDiT2"
    released: ClassVar[dict] = {"no_temporal_pos_emb": False}


class STDiT2(VideoTransformer):
    """The denoiser ε_θ(x_t, t, caption). ops: see `layers.Ops`."""

    conditions, state = Conditions, State

    def __init__(self, config: STDiT2Config, ops=EAGER):
        super().__init__()
        self.config, self.ops = config, ops
        D = config.hidden_size
        self.x_embedder = PatchEmbedder(config.in_channels, D, config.patch_size, ops)
        self.t_embedder = TimestepEmbedder(D, ops)
        self.t_block = nn.Sequential(nn.Silu(), nn.Linear(D, 6 * D))
        self.t_block_temp = nn.Sequential(nn.Silu(), nn.Linear(D, 3 * D))
        self.y_embedder = CaptionEmbedder(config.caption_channels, D, config.model_max_length, ops)
        self.csize_embedder = SizeEmbedder(D // 3, ops)  # height, width
        self.ar_embedder = SizeEmbedder(D // 3, ops)  # aspect ratio
        self.fl_embedder = SizeEmbedder(D, ops)  # number of frames
        self.fps_embedder = SizeEmbedder(D, ops)
        self.rope = RotaryEmbedding(D // config.num_heads)
        self.blocks = nn.LayerList(
            Block(D, config.num_heads, config.mlp_ratio, config.qk_norm, ops) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(D, math.prod(config.patch_size) * 2 * config.in_channels, ops)

    def forward(self, x, timestep, y, mask, x_mask=None, *, num_frames, height, width, ar, fps):
        """One evaluation without caching, as in training; see `denoise` and `Conditions`. All numbers are [B]."""
        cond = Conditions(y, mask, tuple(x.shape[2:]), num_frames, height, width, ar, fps)
        return self.denoise(x, timestep, self.precompute(cond), x_mask)

    def precompute(self, cond: Conditions) -> State:
        """Once per video: embeddings of caption, size and length, and the cross-attention keys and values."""
        T, H, W = cond.latent_size
        size = [self.csize_embedder(paddle.stack([cond.height, cond.width], 1)), self.ar_embedder(cond.ar[:, None])]
        y = self.embed_caption(cond.y)
        return State(
            kv=[block.cross_attn.kv(y) for block in self.blocks],
            y_mask=cond.y_mask.astype("bool"),
            size=paddle.concat(size, -1),
            length=self.fl_embedder(cond.num_frames[:, None]) + self.fps_embedder(cond.fps[:, None]),
            positions=self.positions(H, W, cond.height[0], cond.width[0]),
            rotary=self.rope(T),
        )

    def denoise(self, x, t, state: State, x_mask=None):
        """The network's output for one step.

        x: [B, C, T, H, W] noisy latents. t: [B], or [1] for the whole batch, 0 … 999. x_mask: [B, T], True for
        denoised frames, False for conditioning frames (t = 0); None: all frames are denoised.
        -> float32 [B, 2C, T, H, W]: ε, then the variance logits (-1 … 1, Improved DDPM eq. 15).
        """
        H, W = x.shape[3:]
        tokens, params_t = self.embed_patches(x, state), self.timestep_params(t, state)
        params_0 = None if x_mask is None else self.params_at_zero(t, state)
        x_mask = None if x_mask is None else x_mask.astype("bool")
        for i, block in enumerate(self.blocks):  # (dy2static knows no zip(strict=True))
            tokens = block(tokens, state.kv[i], state.y_mask, params_t, params_0, x_mask, state.rotary)
        tokens = self.final_layer(tokens, params_t.t, None if params_0 is None else params_0.t, x_mask)
        return self.unpatchify(tokens, H, W).astype("float32")

    def timestep_params(self, t, state: State) -> TimestepParams:
        """adaLN-single parameters at t."""
        t = self.t_embedder(t)
        D = t.shape[1]
        t_spatial, t_temporal = self.t_block(t + state.size), self.t_block_temp(t + state.length)
        return TimestepParams(t, t_spatial.reshape([-1, 6, D]), t_temporal.reshape([-1, 3, D]))

    def params_at_zero(self, t, state: State) -> TimestepParams:
        """adaLN-single parameters of conditioning frames, cached in the state."""
        if state.at_zero is None:
            params_0 = self.timestep_params(paddle.zeros_like(t), state)
            # as released: the size is added here, but not to the embedding of t
            state.at_zero = replace(params_0, t=params_0.t + state.size)
        return state.at_zero

    def modulated_input(self, x, t, state: State):
        """Input of the first spatial attention, [B, T, S, D], as if all frames were denoised.

        TeaCache estimates from its change how much the output would change (`runtime.step_cache`).
        """
        shift, scale, *_ = modulation(self.blocks[0].scale_shift_table, self.timestep_params(t, state).t_spatial)
        return modulate(self.embed_patches(x, state), shift, scale)


# Constants: a file may lack them, and older files hold tables that are computed on the fly here.
COMPUTED = ("rope.freqs", "pos_embed", "pos_embed_temporal")


def load_stdit(path: str | Path, dtype: str = "float32") -> STDiT2:
    """The STDiT2 of a folder with config.json and weights (or of a weights file beside its config.json).

    path: as in `io.checkpoints.find_part`.
    Raises CheckpointError, before anything is allocated, where files are missing, broken or of another model.
    """
    path = find_part(path, "stdit")
    config, what = STDiT2Config.from_dict(read_config(path)), f"STDiT2 checkpoint {path}"
    meta = build_meta(STDiT2, config)
    tensors = without_prefix(meta, open_checkpoint(path), path)
    check_state_dict(meta, tensors, computed=COMPUTED, what=what)
    return load(build(STDiT2, config, dtype=dtype), tensors, computed=COMPUTED, what=what)


# ---------------------------------------------------------------------------------------------------------------------
#   Sizes
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {
    "XL/2": STDiT2Config(),  # 768.27 M parameters: OpenSora-STDiT-v2-stage3
    "tiny": STDiT2Config(144, 6, 6, caption_channels=96, model_max_length=32, input_sq_size=64),  # 2.94 M: ours
}
