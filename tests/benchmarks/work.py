"""The work that the benchmark times: models, inputs, and how many FLOPs it takes.

Models that nobody ships get random weights, the same for both sides: drawn from one seed and written as the released
files are.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from opensora_lite.latent_time import latent_frames
from opensora_lite.request import WEIGHTS
from opensora_lite.schedule import flow_timesteps, space_timesteps, timestep_shift
from opensora_lite.stdit2 import SIZES, STDiT2, STDiT2Config
from opensora_lite.stdit3 import SIZES as SIZES12
from opensora_lite.stdit3 import STDiT3, STDiT3Config

SHIPPED = ["tiny", "tiny-1.2"]
CAPTION = "a red car driving right on the ocean at sunset"
GUIDANCE_SCALE = 4.0
SEED = 0

# ---------------------------------------------------------------------------------------------------------------------
#   Models
# ---------------------------------------------------------------------------------------------------------------------

# Their captions have the 96 channels of the small models' T5, and those of 1.2 the 8 latent channels of tiny-1.2's VAE,
# so that they can stand in a pipeline with these.
STDITS = {
    "S": STDiT2Config(384, 12, 6, caption_channels=96, model_max_length=120, input_sq_size=256),
    "XL/2, 4 blocks": replace(SIZES["XL/2"], depth=4, caption_channels=96),
    "S of 1.2": replace(SIZES12["XL/2"], hidden_size=384, depth=12, num_heads=6, in_channels=8, caption_channels=96),
    "XL/2 of 1.2, 4 pairs": replace(SIZES12["XL/2"], depth=4, in_channels=8, caption_channels=96),
}
VAES = {"SD": (128, 256, 512, 512)}  # channels of its levels: those of sd-vae-ft-ema
T5S = {"T5 small": dict(d_model=512, d_kv=64, d_ff=1024, num_layers=8, t5_heads=6)}  # those of t5-v1_1-small


def random_start(layer, rng: np.random.Generator):
    """Weights with which every part of a network has its say: what a training starts from answers 0 to everything."""
    for name, value in layer.state_dict().items():
        if name.endswith("freqs"):  # computed, not learned
            continue
        if value.ndim == 1:
            start = np.ones(value.shape) if name.endswith("weight") else 0.02 * rng.standard_normal(value.shape)
        else:
            outputs = value.shape[-1] if value.ndim == 2 else value.shape[0]
            start = rng.standard_normal(value.shape, np.float32) * (outputs / value.size) ** 0.5
        value.set_value(start.astype(np.float32))
    return layer


def models(folder: Path, stdit: str = "tiny", vae: str = "tiny", t5: str = "tiny") -> dict[str, str]:
    """Folders of three models by part; those that are not there yet are made in `folder`."""
    from opensora_lite.training.models import export_stdit, export_text_encoder, export_vae, new_text_encoder, new_vae
    from opensora_lite.training.recipe import DiffusionRecipe, Stage, VAERecipe

    chosen = {"stdit": stdit, "vae": vae, "t5": t5}
    made = {part: (WEIGHTS if name in SHIPPED else folder) / name / part for part, name in chosen.items()}
    rng = np.random.default_rng(SEED)
    if not made["stdit"].exists():
        config = STDITS[stdit]
        new = STDiT3(config) if isinstance(config, STDiT3Config) else STDiT2(config)
        export_stdit(made["stdit"].parent, random_start(new, rng))
    if not made["vae"].exists():
        new = new_vae(VAERecipe(block_out_channels=VAES[vae], layers_per_block=2, norm_num_groups=32), SEED)
        random_start(new.model, rng)
        export_vae(made["vae"].parent, new)
    if not made["t5"].exists():
        recipe = DiffusionRecipe(stages=(Stage(1, {1: 1.0}, 1),), **T5S[t5])  # a recipe wants to train something
        export_text_encoder(made["t5"].parent, new_text_encoder(recipe, rng))
    return {part: str(path) for part, path in made.items()}


# ---------------------------------------------------------------------------------------------------------------------
#   FLOPs: two for each multiplication with its addition; norms, softmax and other sums are left out
# ---------------------------------------------------------------------------------------------------------------------


def stdit_flops(c: STDiT2Config | STDiT3Config, T: int, height: int, width: int, L: int) -> int:
    """Of one forward pass without guidance (as in notebook 05).

    T latent frames; height and width in pixels; L caption tokens.
    """
    D, patch = c.hidden_size, prod(c.patch_size) * c.in_channels
    S = -(-height // 16) * -(-width // 16)
    N = T * S
    to_caption, mlp = 4 * N * L * D + 2 * D * D * (2 * N + 2 * L), 4 * N * D * int(D * c.mlp_ratio)
    block = 4 * N * (S + T) * D + 2 * D * D * 2 * 4 * N  # attention within frames and through time
    if isinstance(c, STDiT3Config):  # a pair of blocks
        block += 2 * (to_caption + mlp)
        told = 2 * (6 * D * D + 2 * (256 * D + D * D))  # time and frame rate
    else:
        block += to_caption + mlp
        told = 2 * (9 * D * D + 3 * (256 * D + D * D) + 3 * (256 * (D // 3) + (D // 3) ** 2))  # time, sizes, lengths
    patches = 2 * N * patch * D * 3  # in, and twice as many out
    return c.depth * block + patches + told + 2 * L * D * (c.caption_channels + D)


def residual_flops(convolution: Callable[..., int], before: int, after: int) -> int:
    """Of a residual block: two convolutions, and one that changes the channels."""
    return convolution(before, after) + convolution(after, after) + (before != after) * convolution(before, after, 1)


def temporal_decoder_flops(config: dict, frames: int, height: int, width: int) -> int:
    """Of the temporal VAE's decoder, for a whole chunk: frames and size in pixels of the video."""
    widths = [config["filters"] * m for m in config["channel_multipliers"]]
    T, places = latent_frames(frames), height // 8 * (width // 8)
    channels, latent = widths[-1], config["latent_embed_dim"]

    def convolution(before, after, kernel=3):
        return 2 * T * places * before * after * kernel**3

    blocks = config["num_res_blocks"]
    total = convolution(config["embed_dim"], latent, 1) + convolution(latent, channels)
    total += blocks * residual_flops(convolution, channels, channels)
    for level, wanted in reversed(list(enumerate(widths))):
        for _ in range(blocks):
            total, channels = total + residual_flops(convolution, channels, wanted), wanted
        if level and config["temporal_downsample"][level - 1]:
            total += convolution(channels, 2 * channels)
            T *= 2
    return total + convolution(channels, config["in_out_channels"])


def decoder_flops(config: dict, frames: int, height: int, width: int) -> int:
    """Of decoding latents to frames of that size in pixels."""
    levels, layers = config["block_out_channels"], config["layers_per_block"]
    h, w = (side // 2 ** (len(levels) - 1) for side in (height, width))

    def convolution(before, after, kernel=3):
        return 2 * h * w * before * after * kernel**2

    channels, latent = levels[-1], config["latent_channels"]
    total = (
        convolution(latent, latent, 1)
        + convolution(latent, channels)
        + 2 * residual_flops(convolution, channels, channels)
    )
    total += 4 * convolution(channels, channels, 1) + 2 * 2 * (h * w) ** 2 * channels  # attention among all places
    for level, wanted in enumerate(reversed(levels)):
        for _ in range(layers + 1):
            total, channels = total + residual_flops(convolution, channels, wanted), wanted
        if level < len(levels) - 1:
            h, w = 2 * h, 2 * w
            total += convolution(channels, channels)
    return frames * (total + convolution(channels, 3))


def t5_flops(config: dict, L: int) -> int:
    """Of encoding one caption of L tokens."""
    D, inner = config["d_model"], config["d_kv"] * config["num_heads"]
    up = 2 if config["feed_forward_proj"].startswith("gated") else 1
    return config["num_layers"] * (2 * L * D * (4 * inner + (up + 1) * config["d_ff"]) + 4 * L * L * inner)


# ---------------------------------------------------------------------------------------------------------------------
#   Work
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Something that both sides can do. kind: "step", "decode", "caption" or "video", which the sides know."""

    kind: str
    title: str
    stdit: str = "tiny"
    vae: str = "tiny"
    t5: str = "tiny"
    frames: int = 16
    height: int = 64  # pixels
    width: int = 64
    tokens: int = 24  # of a caption; a video's come from CAPTION
    steps: int = 1  # of a video

    def models(self, folder: Path) -> dict[str, str]:
        return models(folder, self.stdit, self.vae, self.t5)

    @property
    def has_models(self) -> bool:
        """Whether the package has those of the models that are not made here."""
        return all((WEIGHTS / name).exists() for name in SHIPPED if name in (self.stdit, self.vae, self.t5))

    @property
    def stdit_config(self) -> STDiT2Config | STDiT3Config:
        if self.stdit not in SHIPPED:
            return STDITS[self.stdit]
        config = json.loads((WEIGHTS / self.stdit / "stdit" / "config.json").read_text())
        return (STDiT3Config if self.is_flow else STDiT2Config).from_dict(config)

    @property
    def is_flow(self) -> bool:
        """Whether the models are of Open-Sora 1.2: rectified flow on the latents of a video VAE."""
        return "1.2" in self.vae

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.frames) if self.is_flow else self.frames

    def told(self) -> dict:
        """Numbers that stay the same in all turns."""
        sizes = dict(num_frames=self.frames, height=self.height, width=self.width, ar=self.height / self.width, fps=24)
        times = []
        if self.kind == "video" and self.is_flow:
            shift = timestep_shift(self.height, self.width, self.frames, self.stdit_config.base_size)
            times = [float(t) for t in flow_timesteps(self.steps, shift)]
        elif self.kind == "video":
            times = space_timesteps(self.steps)[::-1]
        return {**sizes, "scale": GUIDANCE_SCALE, "channels": None, "timesteps": times}

    def given(self) -> dict[str, np.ndarray]:
        """Arrays that stay the same in all turns: T5 vectors of a step."""
        if self.kind != "step":
            return {}
        rng = np.random.default_rng([SEED, 1])
        y = rng.standard_normal((1, 1, self.tokens, self.stdit_config.caption_channels), np.float32)
        return {"y": y, "mask": np.ones((1, self.tokens), np.int64)}

    def inputs(self, turn: int, folder: Path) -> dict[str, np.ndarray]:
        """Arrays of one turn; no two turns have the same. z of a video is what the pipeline draws for seed `turn`."""
        rng = np.random.default_rng(turn)
        channels = self.stdit_config.in_channels
        z = rng.standard_normal((1, channels, self.latent_frames, self.height // 8, self.width // 8), np.float32)
        if self.kind == "step":
            return {"x": z, "timestep": np.float32(999 - turn % 1000)}
        if self.kind == "decode":
            return {"z": z}
        if self.kind == "caption":
            words = rng.permutation(CAPTION.split() * self.tokens)
            return self.tokenize(" ".join(words), folder)
        return {**self.tokenize(CAPTION, folder), "z": z, "seed": np.int64(turn)}

    def tokenize(self, caption: str, folder: Path) -> dict[str, np.ndarray]:
        import sentencepiece

        path = Path(self.models(folder)["t5"]) / "spiece.model"
        L = self.tokens if self.kind == "caption" else self.stdit_config.model_max_length
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(caption)[: L - 1]
        ids = np.zeros((1, L), np.int64)
        ids[0, : len(pieces) + 1] = [*pieces, 1]
        return {"ids": ids, "mask": np.int64([[1] * (len(pieces) + 1) + [0] * (L - len(pieces) - 1)])}

    def flops(self, folder: Path) -> int:
        """Of one turn, with guidance: both halves of a step."""
        paths = self.models(folder)
        configs = {p: json.loads((Path(at) / "config.json").read_text()) for p, at in paths.items()}
        vae, size = configs["vae"], (self.frames, self.height, self.width)
        if self.is_flow:
            spatial = json.loads((Path(paths["vae"]) / "vae_2d" / "config.json").read_text())
            decode = decoder_flops(spatial, *size) + temporal_decoder_flops(vae["vae_temporal"], *size)
        else:
            decode = decoder_flops(vae, *size)
        if self.kind == "decode":
            return decode
        if self.kind == "caption":
            return t5_flops(configs["t5"], self.tokens)
        tokens = int(self.tokenize(CAPTION, folder)["mask"].sum()) if self.kind == "video" else self.tokens
        step = 2 * stdit_flops(self.stdit_config, self.latent_frames, self.height, self.width, tokens)
        if self.kind == "step":
            return step
        return self.steps * step + decode + t5_flops(configs["t5"], self.stdit_config.model_max_length)


SQUARE = dict(height=256, width=256, tokens=120)
TINY12 = dict(stdit="tiny-1.2", vae="tiny-1.2", t5="tiny-1.2", frames=17)
S12, XL12 = dict(stdit="S of 1.2"), dict(stdit="XL/2 of 1.2, 4 pairs")
WORK = {
    "a": Work("step", "(a) a guided step, tiny, 16×64×64"),
    "b": Work("step", "(b) a guided step, size S, 16×256×256, 120 tokens", "S", **SQUARE),
    "c": Work("step", "(c) a guided step, XL/2's first 4 blocks, 16×256×256, 120 tokens", "XL/2, 4 blocks", **SQUARE),
    "vae": Work("decode", "VAE, decoding 16 frames of 64×64, tiny"),
    "vae-sd": Work("decode", "VAE, decoding 16 frames of 64×64, of Stable Diffusion's size", vae="SD"),
    "t5": Work("caption", "T5, encoding a caption of 120 tokens, size small", t5="T5 small", tokens=120),
    "video": Work("video", "a whole video, tiny, 16×64×64, 30 steps", steps=30),
    "video-s": Work(
        "video", "a whole video, size S, 8×128×128, 4 steps", "S", frames=8, height=128, width=128, steps=4
    ),
    "a12": Work("step", "(a, 1.2) a guided step, tiny-1.2, 17×64×64", **TINY12),
    "b12": Work("step", "(b, 1.2) a guided step, size S, 17×256×256, 120 tokens", **TINY12 | S12 | SQUARE),
    "c12": Work(
        "step", "(c, 1.2) a guided step, XL/2's first 4 pairs, 17×256×256, 120 tokens", **TINY12 | XL12 | SQUARE
    ),
    "vae12": Work("decode", "video VAE, decoding 17 frames of 64×64, tiny-1.2", **TINY12),
    "video12": Work("video", "a whole video, tiny-1.2, 17×64×64, 12 steps", steps=12, **TINY12),
}
