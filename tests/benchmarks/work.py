"""The work that the benchmark times: models, inputs, and how many FLOPs it takes.

Models that nobody ships get random weights, the same for both sides: drawn from one seed and written as the released
files are.
"""

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from opensora_lite.request import WEIGHTS
from opensora_lite.schedule import space_timesteps
from opensora_lite.stdit2 import SIZES, STDiT2, STDiT2Config

TINY = WEIGHTS / "tiny"
CAPTION = "a red car driving right on the ocean at sunset"
GUIDANCE_SCALE = 4.0
SEED = 0

# ---------------------------------------------------------------------------------------------------------------------
#   Models
# ---------------------------------------------------------------------------------------------------------------------

# Their captions have the 96 channels of the small model's T5, so that they can stand in a pipeline with it.
STDITS = {
    "S": STDiT2Config(384, 12, 6, caption_channels=96, model_max_length=120, input_sq_size=256),
    "XL/2, 4 blocks": replace(SIZES["XL/2"], depth=4, caption_channels=96),
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

    made = {part: folder / name / part for part, name in {"stdit": stdit, "vae": vae, "t5": t5}.items()}
    rng = np.random.default_rng(SEED)
    if stdit != "tiny" and not made["stdit"].exists():
        export_stdit(made["stdit"].parent, random_start(STDiT2(STDITS[stdit]), rng))
    if vae != "tiny" and not made["vae"].exists():
        new = new_vae(VAERecipe(block_out_channels=VAES[vae], layers_per_block=2, norm_num_groups=32), SEED)
        random_start(new.model, rng)
        export_vae(made["vae"].parent, new)
    if t5 != "tiny" and not made["t5"].exists():
        recipe = DiffusionRecipe(stages=(Stage(1, {1: 1.0}, 1),), **T5S[t5])  # a recipe wants to train something
        export_text_encoder(made["t5"].parent, new_text_encoder(recipe, rng))
    chosen = {"stdit": stdit, "vae": vae, "t5": t5}
    return {part: str(TINY / part if chosen[part] == "tiny" else made[part]) for part in made}


# ---------------------------------------------------------------------------------------------------------------------
#   FLOPs: two for each multiplication with its addition; norms, softmax and other sums are left out
# ---------------------------------------------------------------------------------------------------------------------


def stdit_flops(c: STDiT2Config, T: int, height: int, width: int, L: int) -> int:
    """Of one forward pass without guidance (as in notebook 05); height and width in pixels, L caption tokens."""
    D, patch = c.hidden_size, prod(c.patch_size) * c.in_channels
    S = -(-height // 16) * -(-width // 16)
    N = T * S
    block = 4 * N * (S + T + L) * D  # attention within frames, through time, to the caption
    block += 2 * D * D * (2 * 4 * N + 2 * N + 2 * L)  # its projections
    block += 4 * N * D * int(D * c.mlp_ratio)
    patches = 2 * N * patch * D * 3  # in, and twice as many out
    told = 2 * (9 * D * D + 3 * (256 * D + D * D) + 3 * (256 * (D // 3) + (D // 3) ** 2))  # time, sizes, lengths
    return c.depth * block + patches + told + 2 * L * D * (c.caption_channels + D)


def decoder_flops(config: dict, frames: int, height: int, width: int) -> int:
    """Of decoding latents to frames of that size in pixels."""
    levels, layers = config["block_out_channels"], config["layers_per_block"]
    h, w = (side // 2 ** (len(levels) - 1) for side in (height, width))

    def convolution(before, after, kernel=3):
        return 2 * h * w * before * after * kernel**2

    def residual(before, after):  # two convolutions, and one that changes the channels
        return (
            convolution(before, after) + convolution(after, after) + (before != after) * convolution(before, after, 1)
        )

    channels, latent = levels[-1], config["latent_channels"]
    total = convolution(latent, latent, 1) + convolution(latent, channels) + 2 * residual(channels, channels)
    total += 4 * convolution(channels, channels, 1) + 2 * 2 * (h * w) ** 2 * channels  # attention among all places
    for level, wanted in enumerate(reversed(levels)):
        for _ in range(layers + 1):
            total, channels = total + residual(channels, wanted), wanted
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
    def stdit_config(self) -> STDiT2Config:
        return {**SIZES, **STDITS}[self.stdit]

    def told(self) -> dict:
        """Numbers that stay the same in all turns."""
        sizes = dict(num_frames=self.frames, height=self.height, width=self.width, ar=self.height / self.width, fps=24)
        times = space_timesteps(self.steps)[::-1] if self.kind == "video" else []
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
        z = rng.standard_normal((1, 4, self.frames, self.height // 8, self.width // 8), np.float32)
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
        configs = {p: json.loads((Path(at) / "config.json").read_text()) for p, at in self.models(folder).items()}
        decode = decoder_flops(configs["vae"], self.frames, self.height, self.width)
        if self.kind == "decode":
            return decode
        if self.kind == "caption":
            return t5_flops(configs["t5"], self.tokens)
        tokens = int(self.tokenize(CAPTION, folder)["mask"].sum()) if self.kind == "video" else self.tokens
        step = 2 * stdit_flops(self.stdit_config, self.frames, self.height, self.width, tokens)
        if self.kind == "step":
            return step
        return self.steps * step + decode + t5_flops(configs["t5"], self.stdit_config.model_max_length)


SQUARE = dict(height=256, width=256, tokens=120)
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
}
