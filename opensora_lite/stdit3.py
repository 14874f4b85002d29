"""STDiT3, the denoiser of Open-Sora 1.2: spatial and temporal transformer blocks in turn, trained by rectified flow.

    x_t [B, C, T, H, W] ──patches──▶ [B, T, S, D] ──depth × (spatial, temporal)──▶ [B, T, S, D] ──FinalLayer──▶ v

The output [B, 2C, T, H, W] is the predicted velocity v = x_0 − ε (C channels, see `samplers.rectified_flow`) and C more
channels that, as released, nothing uses. T counts latent frames: the video VAE makes one from up to four frames.

What differs from STDiT2: a temporal block is a whole block, with cross-attention, MLP and six modulation vectors of its
own; queries and keys are normalized before the rotation; only t and the frame rate modulate, while the size enters
through the positions alone.

Axes and sources: see `layers`; S = (H/2)(W/2). Names and arithmetic: hpcaitech/Open-Sora v1.2,
opensora/models/stdit/stdit3.py, reproduced by tests/parity. Read from top to bottom: Block, STDiT3, sizes.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import paddle
import paddle.nn as nn
from pydantic import Field

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
from opensora_lite.validation import Whole, validated

# ---------------------------------------------------------------------------------------------------------------------
#   Block
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class TimestepParams:
    """adaLN-single parameters at one timestep; B is 1 where the whole batch shares timestep and frame rate."""

    t: paddle.Tensor  # [B, D], embedding of timestep and frame rate
    t_block: paddle.Tensor  # [B, 6, D] = t_block(t)


class Block(nn.Layer):
    """Self-attention within each frame (spatial) or through time (temporal), cross-attention to the caption, MLP."""

    def __init__(self, dim, num_heads, mlp_ratio, qk_norm, temporal, ops=EAGER):
        super().__init__()
        self.temporal, self.ops = temporal, ops
        normal = nn.initializer.Normal(std=dim**-0.5)
        self.scale_shift_table = self.create_parameter([6, dim], default_initializer=normal)
        self.attn = SelfAttention(dim, num_heads, qk_norm, ops, norm_first=True)
        self.cross_attn = CrossAttention(dim, num_heads, ops)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim, ops)

    def forward(self, x, kv, y_mask, params_t, params_0, x_mask, rotary):
        """x: [B, T, S, D]. kv: cached keys and values of this block. params_t, params_0: TimestepParams at t and 0."""
        B, T, S, D = x.shape
        t0 = None if params_0 is None else params_0.t_block
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation(
            self.scale_shift_table, params_t.t_block, t0, x_mask, self.ops
        )
        h = modulate(x, shift, scale, self.ops)
        if self.temporal:  # token positions as batch
            h = self.attn(h.transpose([0, 2, 1, 3]).reshape([B * S, T, D]), rotary)
            h = h.reshape([B, S, T, D]).transpose([0, 2, 1, 3])
        else:  # frames as batch
            h = self.attn(h.reshape([B * T, S, D])).reshape([B, T, S, D])
        x = add_gated(x, gate, h, self.ops)
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
    height: paddle.Tensor  # pixels; as released, positions are those of the first video's size
    width: paddle.Tensor  # pixels
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
        numbers = (height, width, fps)
        return cls(y, y_mask, latent_size, *(paddle.full([1], float(n)) for n in numbers)).trimmed()

    def trimmed(self) -> "Conditions":
        """Without the padding that all captions share, see `layers.trim_captions`."""
        y, y_mask = trim_captions(self.y, self.y_mask)
        return replace(self, y=y, y_mask=y_mask)


@dataclass(kw_only=True)
class State(TransformerState):
    """The result of `STDiT3.precompute`: everything that stays the same in all steps of a video."""

    params: ClassVar[type] = TimestepParams

    fps: paddle.Tensor  # [B or 1, D], embedding of the frame rate


@validated(CheckpointError, "the STDiT3 config")
class STDiT3Config(TransformerConfig):
    """The sizes of an STDiT3; the defaults are those of OpenSora-STDiT-v3. Raises CheckpointError."""

    model_type: ClassVar[str] = "STDiT3"
    released: ClassVar[dict] = {"skip_y_embedder": False}

    model_max_length: Annotated[Whole, Field(ge=1, le=1024)] = 300  # L, at most
    base_size: Annotated[Whole, Field(ge=1, le=2**16)] = (
        512  # pixels: images of this square's area keep their timesteps
    )


class STDiT3(VideoTransformer):
    """The denoiser v_θ(x_t, t, caption). ops: see `layers.Ops`."""

    conditions, state = Conditions, State

    def __init__(self, config: STDiT3Config, ops=EAGER):
        super().__init__()
        self.config, self.ops = config, ops
        D = config.hidden_size
        self.x_embedder = PatchEmbedder(config.in_channels, D, config.patch_size, ops)
        self.t_embedder = TimestepEmbedder(D, ops)
        self.fps_embedder = SizeEmbedder(D, ops)
        self.t_block = nn.Sequential(nn.Silu(), nn.Linear(D, 6 * D))
        self.y_embedder = CaptionEmbedder(config.caption_channels, D, config.model_max_length, ops)
        self.rope = RotaryEmbedding(D // config.num_heads)

        def blocks(temporal):
            sizes = config.num_heads, config.mlp_ratio, config.qk_norm
            return nn.LayerList(Block(D, *sizes, temporal, ops) for _ in range(config.depth))

        self.spatial_blocks, self.temporal_blocks = blocks(False), blocks(True)
        self.final_layer = FinalLayer(D, math.prod(config.patch_size) * 2 * config.in_channels, ops)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in the order in which they are applied: spatial, temporal, spatial, …"""
        return [blocks[i] for i in range(self.config.depth) for blocks in (self.spatial_blocks, self.temporal_blocks)]

    def forward(self, x, timestep, y, mask, x_mask=None, *, height, width, fps):
        """One evaluation without caching, as in training; see `denoise` and `Conditions`. All numbers are [B]."""
        cond = Conditions(y, mask, tuple(x.shape[2:]), height, width, fps)
        return self.denoise(x, timestep, self.precompute(cond), x_mask)

    def precompute(self, cond: Conditions) -> State:
        """Once per video: embeddings of caption and frame rate, and the cross-attention keys and values."""
        T, H, W = cond.latent_size
        y = self.embed_caption(cond.y)
        return State(
            kv=[block.cross_attn.kv(y) for block in self.blocks],
            y_mask=cond.y_mask.astype("bool"),
            fps=self.fps_embedder(cond.fps[:, None]),
            positions=self.positions(H, W, cond.height[0], cond.width[0]),
            rotary=self.rope(T),
        )

    def denoise(self, x, t, state: State, x_mask=None):
        """The network's output for one step.

        x: [B, C, T, H, W] noisy latents. t: [B], or [1] for the whole batch, 0 … 1000. x_mask: [B, T], True for
        denoised frames, False for conditioning frames (t = 0); None: all frames are denoised.
        -> float32 [B, 2C, T, H, W]: v, then C channels without a meaning.
        """
        H, W = x.shape[3:]
        tokens, params_t = self.embed_patches(x, state), self.timestep_params(t, state)
        params_0 = None if x_mask is None else self.params_at_zero(t, state)
        x_mask = None if x_mask is None else x_mask.astype("bool")
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, state.kv[i], state.y_mask, params_t, params_0, x_mask, state.rotary)
        tokens = self.final_layer(tokens, params_t.t, None if params_0 is None else params_0.t, x_mask)
        return self.unpatchify(tokens, H, W).astype("float32")

    def timestep_params(self, t, state: State) -> TimestepParams:
        """adaLN-single parameters at t."""
        t = self.t_embedder(t) + state.fps
        return TimestepParams(t, self.t_block(t).reshape([-1, 6, t.shape[1]]))

    def params_at_zero(self, t, state: State) -> TimestepParams:
        """adaLN-single parameters of conditioning frames, cached in the state."""
        if state.at_zero is None:
            state.at_zero = self.timestep_params(paddle.zeros_like(t), state)
        return state.at_zero

    def modulated_input(self, x, t, state: State):
        """Input of the first spatial attention, [B, T, S, D], as if all frames were denoised.

        TeaCache estimates from its change how much the output would change (`runtime.step_cache`).
        """
        table = self.spatial_blocks[0].scale_shift_table
        shift, scale, *_ = modulation(table, self.timestep_params(t, state).t_block)
        return modulate(self.embed_patches(x, state), shift, scale)


COMPUTED = ("rope.freqs",)  # a constant: a file may lack it


def load_stdit3(path: str | Path, dtype: str = "float32") -> STDiT3:
    """The STDiT3 of a folder with config.json and weights (or of a weights file beside its config.json).

    path: as in `io.checkpoints.find_part`.
    Raises CheckpointError, before anything is allocated, where files are missing, broken or of another model.
    """
    path = find_part(path, "stdit")
    config, what = STDiT3Config.from_dict(read_config(path)), f"STDiT3 checkpoint {path}"
    meta = build_meta(STDiT3, config)
    tensors = without_prefix(meta, open_checkpoint(path), path)
    check_state_dict(meta, tensors, computed=COMPUTED, what=what)
    return load(build(STDiT3, config, dtype=dtype), tensors, computed=COMPUTED, what=what)


# ---------------------------------------------------------------------------------------------------------------------
#   Sizes
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {
    "XL/2": STDiT3Config(),  # 1,207.64 M parameters: OpenSora-STDiT-v3
    "3B/2": STDiT3Config(hidden_size=1872, num_heads=26),  # 3,182.21 M: in the source, never released
}
