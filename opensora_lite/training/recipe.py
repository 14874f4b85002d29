"""A training run in one YAML file: what it sees, how large the models are, how long and how fast they learn.

    recipe = read_recipe("tiny")            # the one that comes with the package, or a path
    recipe = read_recipe("mine.yaml", {"diffusion.batch": "8"})

The fields and their meaning are those of the dataclasses below; `recipes/tiny.yaml` explains each beside its value.
Whatever is misspelt, missing or impossible is an OpenSoraError that names the field, before anything is rendered.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, get_args, get_origin, get_type_hints

import numpy as np

from opensora_lite.errors import OpenSoraError
from opensora_lite.liteworld.world import HELD_OUT

RECIPES = Path(__file__).parent / "recipes"
TIMES = 1000  # of the diffusion; samplers.schedule.TRAIN_STEPS, which cannot be had without Paddle

# As released (hpcaitech/Open-Sora v1.1, configs/opensora-v1-1/train/stage3.py): shares of the videos in training.
FRAME_MASKS = {
    "none": 0.75,  # every frame is made
    "quarter_random": 0.025,  # up to a quarter of the frames is given: anywhere,
    "quarter_head": 0.025,  # at the start,
    "quarter_tail": 0.025,  # at the end,
    "quarter_head_tail": 0.05,  # as many at both
    "image_random": 0.025,  # one frame is given, in the same places
    "image_head": 0.025,
    "image_tail": 0.025,
    "image_head_tail": 0.05,
}


@dataclass(frozen=True)
class World:
    """The clips that are learned from: rendered once, by seeds that the evaluation does not use."""

    clips: int = 12000
    first_seed: int = 0  # clip i is the one of seed first_seed + i
    num_frames: int = 16
    sizes: tuple[str, ...] = ("64x64", "64x64", "64x64", "48x80", "80x48")  # HEIGHTxWIDTH, in turn, clip by clip
    fps: tuple[int, ...] = (24, 24, 12)  # frames per second, one of them at random
    captions: int = 6  # for each clip: the full one, and this many less one partial ones

    def __post_init__(self):
        at_least(self, clips=1, first_seed=0, num_frames=1, captions=1)
        if self.first_seed + self.clips > HELD_OUT:
            raise OpenSoraError(
                f"clips are drawn from seeds below {HELD_OUT:,}; those from there on are the evaluation's"
            )
        for name in self.sizes:
            parse_size(name)
        if not self.sizes or not self.fps or min(self.fps) < 1:
            raise OpenSoraError("the world needs at least one of sizes and one of fps, whole numbers from 1")


@dataclass(frozen=True)
class Learning:
    """What every stage of training has: how many steps, how large, how carefully."""

    steps: int
    learning_rate: float
    warmup: int = 200  # steps in which the learning rate rises from 0
    decay: float = 0.4  # share of the steps, at the end, in which it falls, along a line, to floor · learning_rate
    floor: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    clip: float = 1.0  # gradients of a larger norm are scaled down to it
    ema: float = 0.999  # decay of the moving average of the weights, which is what is kept in the end

    def __post_init__(self):
        at_least(self, steps=1, warmup=0)
        between(self, decay=(0, 1), floor=(0, 1), ema=(0, 1))
        above_zero(self, "learning_rate", "clip")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise OpenSoraError(f"betas are {list(self.betas)}; they must lie between 0 and 1")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps - 1."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = (self.steps - step) / self.steps
        falling = max(self.floor, left / self.decay) if self.decay and left < self.decay else 1.0
        return self.learning_rate * rising * falling

    def takes_muon(self, name: str, ndim: int) -> bool:
        """Whether Muon, not AdamW, trains a parameter."""
        return False

    def ema_at(self, step: int) -> float:
        """The decay of the average at step 0 …: small at first, so that the random start is soon forgotten."""
        return min(self.ema, (2 + step) / (21 + step))


@dataclass(frozen=True)
class PictureLearning(Learning):
    """What both stages of the frame VAE have: pictures in, the same pictures out."""

    STREAM: ClassVar[int]  # of random numbers, so that the stages see other batches

    learning_rate: float = 2e-3
    batch: int = 192  # pictures of a step, all of one size; each size as often as the others
    crop: int = 32  # side of the crops around the subject, pixels: the smallest things fill more of them
    crop_share: float = 0.8  # share of the steps on such crops; the others see whole frames
    gradient_weight: float = 0.5  # of the L1 distance between neighbouring pixels' differences: sharp edges
    squared_weight: float = 1.0  # of the mean squared error

    def __post_init__(self):
        super().__post_init__()
        at_least(self, batch=1, crop=8)
        between(self, crop_share=(0, 1), gradient_weight=(0, math.inf), squared_weight=(0, math.inf))
        if self.crop % 8:
            raise OpenSoraError(f"crop is {self.crop}; a VAE that makes 8 pixels one needs a multiple of 8")


@dataclass(frozen=True)
class DecoderRecipe(PictureLearning):
    """The VAE's decoder alone, afterwards: what latents mean stays, how well they are drawn gets better.

    A model that was trained on these latents can therefore go on with the new decoder.
    """

    STREAM = 3
    kl_weight: ClassVar[float] = 0.0  # the latents' divergence is what it is

    learning_rate: float = 8e-4
    warmup: int = 100
    decay: float = 1.0
    ema: float = 0.995
    batch: int = 24
    crop_share: float = 0.0
    squared_weight: float = 20.0  # dB are measured by it; the absolute error alone gives more to what is nearly right


@dataclass(frozen=True)
class VAERecipe(PictureLearning):
    """The frame VAE."""

    STREAM = 1

    steps: int = 8250
    clips: int = 3000  # it learns from the first so many clips of the world, which stay in memory as pixels
    kl_weight: float = 3e-4  # of the divergence from a standard normal: keeps latents in bounds
    block_out_channels: tuple[int, ...] = (16, 32, 64, 64)
    layers_per_block: int = 1
    norm_num_groups: int = 8
    init: str | None = None  # a folder with a trained VAE, which is then taken as it is; "tiny": the shipped one
    decoder: DecoderRecipe | None = None  # its decoder's further training, that of a VAE from `init`, too; null: none

    def __post_init__(self):
        super().__post_init__()
        at_least(self, clips=1, layers_per_block=1, norm_num_groups=1)
        between(self, kl_weight=(0, math.inf))
        channels, groups = self.block_out_channels, self.norm_num_groups
        if len(channels) != 4 or any(n < 1 or n % groups for n in channels):
            raise OpenSoraError(
                f"block_out_channels are {list(channels)}; give four, for 8 pixels become one in three halvings,"
                f" all multiples of norm_num_groups, {groups}"
            )

    @property
    def stages(self) -> dict[str, PictureLearning]:
        """What is to be trained, by the names that its files have."""
        stages = {"vae": self if self.init is None else None, "decoder": self.decoder}
        return {name: stage for name, stage in stages.items() if stage is not None}


@dataclass(frozen=True)
class Stage:
    """A part of the training of T5 and STDiT2: which lengths are seen."""

    steps: int
    lengths: dict[int, float]  # frames of a clip: share of the steps
    batch: int  # videos of the longest length; of shorter ones more, up to 8 times as many, at the same cost
    times: tuple[int, ...] = (0, TIMES)  # t is drawn from the first to below the second, alike

    def __post_init__(self):
        at_least(self, steps=1, batch=1)
        if len(self.times) != 2 or not 0 <= self.times[0] < self.times[1] <= TIMES:
            raise OpenSoraError(f"times are {list(self.times)}; give two whole numbers, 0 ≤ first < second ≤ {TIMES}")
        check_shares(self, "lengths")
        if min(self.lengths) < 1:
            raise OpenSoraError(f"lengths are numbers of frames from 1, not {min(self.lengths)}")

    def batch_of(self, num_frames: int) -> int:
        """How many videos of this length a step takes."""
        return self.batch * min(max(self.lengths) // num_frames, 8)


@dataclass(frozen=True)
class DiffusionRecipe(Learning):
    """T5 and STDiT2, which learn together: captions and noisy latents in, the noise out."""

    steps: int = 0  # the sum of the stages', filled in
    learning_rate: float = 1.2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    stages: tuple[Stage, ...] = ()
    optimizer: str = "adamw"  # or "muon": Muon (see muon.py) for the matrices of the blocks, AdamW for the rest
    min_snr: float | None = 5.0  # γ of min-SNR weights; null: every time counts the same, as released
    high_noise: float = 0.0  # exponent b: times of SNR below 1 count SNR^-b times as much, up to 50 times
    caption_dropout: float = 0.1  # share of the videos that learn without their caption, for guidance
    full_captions: float = 0.4  # share of the videos that see the full caption, the others a partial one
    frame_masks: dict[str, float] = field(default_factory=lambda: dict(FRAME_MASKS))
    hidden_size: int = 144  # of STDiT2
    depth: int = 6
    num_heads: int = 6
    input_sq_size: int = 64
    model_max_length: int = 32  # tokens of a caption; those of LiteWorld have up to 30
    d_model: int = 96  # of T5
    d_kv: int = 24
    d_ff: int = 256
    num_layers: int = 2
    t5_heads: int = 4
    init: str | None = None  # a folder with stdit/ and t5/ to go on from; "tiny": the shipped ones

    def __post_init__(self):
        object.__setattr__(self, "steps", sum(stage.steps for stage in self.stages))
        if not self.stages:
            raise OpenSoraError("diffusion.stages is empty; give at least one stage with steps, lengths and batch")
        super().__post_init__()
        between(self, caption_dropout=(0, 1), full_captions=(0, 1), high_noise=(0, 1))
        if self.optimizer not in ("adamw", "muon"):
            raise OpenSoraError(f'optimizer is "{self.optimizer}"; give adamw or muon')
        if self.min_snr is not None:
            above_zero(self, "min_snr")
        sizes = ("hidden_size", "depth", "num_heads", "input_sq_size", "model_max_length")
        at_least(self, **dict.fromkeys((*sizes, "d_model", "d_kv", "d_ff", "num_layers", "t5_heads"), 1))
        if self.hidden_size % 12 or self.hidden_size % (2 * self.num_heads):
            raise OpenSoraError(
                f"hidden_size {self.hidden_size} must be a multiple of 12, and an even multiple of num_heads,"
                f" {self.num_heads}"
            )
        check_shares(self, "frame_masks")
        unknown = set(self.frame_masks) - set(FRAME_MASKS)
        if unknown:
            raise OpenSoraError(f"frame_masks has no {', '.join(sorted(unknown))}; it has {', '.join(FRAME_MASKS)}")

    def takes_muon(self, name: str, ndim: int) -> bool:
        """Whether Muon, not AdamW, trains a parameter: the matrices of STDiT2's and T5's blocks."""
        in_block = name.startswith(("stdit.blocks.", "t5.encoder.block."))
        table = "scale_shift_table" in name or "relative_attention_bias" in name
        return self.optimizer == "muon" and in_block and ndim == 2 and not table

    def loss_weights(self) -> np.ndarray:
        """Factors of the mse at the times 0 … 999, float32 [1000].

        min-SNR, min(SNR, γ) / SNR (arXiv:2303.09556, sec. 3.4): times with hardly any noise, whose ε cannot be
        guessed, count less. And at the noisy end, where ε is nearly known and its error tiny, but where is decided
        what a clip shows, times may count more: with b = 0.75 all from 150 to 750 give about the same loss, which is
        what learned weights strive for (arXiv:2312.02696, app. B.4).
        """
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, TIMES))
        snr = abar / (1 - abar)
        weights = np.ones(TIMES) if self.min_snr is None else snr.clip(max=self.min_snr) / snr
        return (weights * (1 / snr).clip(min=1) ** self.high_noise).clip(max=50).astype(np.float32)

    def stage_at(self, step: int) -> Stage:
        """The stage of step 0 … steps - 1."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    diffusion: DiffusionRecipe
    world: World = field(default_factory=World)
    vae: VAERecipe = field(default_factory=VAERecipe)
    seed: int = 0  # of the weights' start, of the batches, of the noise
    save_every: int = 500  # steps between two checkpoints
    sheet_every: int = 1000  # steps between two sheets of samples; 0: none
    sheet_prompts: tuple[str, ...] = (
        "a red car driving right on the ocean at sunset",
        "a white boat sailing left on the ocean at noon",
        "a blue balloon floating right over the meadow at sunrise",
        "a cyberpunk-style yellow bird flying left over the city",
    )

    def __post_init__(self):
        at_least(self, seed=0, save_every=1, sheet_every=0)
        if self.seed >= 2**31:
            raise OpenSoraError(f"seed is {self.seed}; it must be below {2**31:,}")
        longest = max(length for stage in self.diffusion.stages for length in stage.lengths)
        if longest > self.world.num_frames:
            raise OpenSoraError(f"a stage has clips of {longest} frames, the world only {self.world.num_frames}")

    def to_dict(self) -> dict:
        """Plain values, as recipe.json has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# ---------------------------------------------------------------------------------------------------------------------
#   Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_recipe(path: str | Path = "tiny", changes: dict[str, str] | None = None) -> Recipe:
    """The recipe of a YAML file, or one that comes with the package by its name ("tiny", "first_steps").

    changes: fields to be replaced, by their dotted names, values as in YAML: {"diffusion.learning_rate": "1e-3"}.
    Raises OpenSoraError for what cannot be read or done.
    """
    import yaml

    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{path}.yaml" if str(path) in known else Path(path)
    if not path.is_file():
        raise OpenSoraError(f"there is no recipe {path}; give a YAML file, or one of {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise OpenSoraError(f"{path} is no YAML that can be read: {error}") from error
    for name, text in (changes or {}).items():
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OpenSoraError(f"{name}={text} is no YAML: {error}") from error
        *parents, leaf = name.split(".")
        branch = values
        for parent in parents:
            branch = branch.setdefault(parent, {}) if isinstance(branch, dict) else None
        if not isinstance(branch, dict):
            raise OpenSoraError(f"{name} cannot be set: {'.'.join(parents) or path} is no group of fields")
        branch[leaf] = value
    return build(Recipe, values, "")


def build(cls, values, where: str):
    """A dataclass from a tree of plain values; `where` is the dotted name that errors, OpenSoraError, give."""
    if not isinstance(values, dict):
        raise OpenSoraError(f"{where or 'the recipe'} must be a group of fields, not {values!r}")
    known = {f.name: f for f in fields(cls)}
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in known:
            raise OpenSoraError(f"the recipe has an unknown field {prefix}{name}; known are {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise OpenSoraError(f"the recipe lacks {prefix}{name}")
    types = get_type_hints(cls)
    converted = {name: convert(types[name], value, prefix + name) for name, value in values.items()}
    try:
        return cls(**converted)
    except OpenSoraError as error:
        raise OpenSoraError(f"{where or 'the recipe'}: {error}") from None


def convert(wanted, value, where: str):
    """`value`, as YAML gave it, as the type that a field has. Raises OpenSoraError where it is of another."""
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, where)
    origin, inner = get_origin(wanted), get_args(wanted)
    if type(None) in inner:
        return None if value is None else convert(inner[0], value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise OpenSoraError(f"{where} has {len(inner)} values, not {len(value)}")
        return tuple(convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        if inner[0] is int:  # JSON has no other keys than text
            value = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in value.items()}
        return {convert(inner[0], k, where): convert(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if wanted is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text"}
    expected = names.get(wanted, "a list" if origin is tuple else "a group of fields")
    raise OpenSoraError(f"{where} must be {expected}, not {value!r}")


def parse_size(name: str) -> tuple[int, int]:
    """(height, width) in pixels of "48x80". Raises OpenSoraError for other texts, and sides that are not 8, 16, …"""
    try:
        height, width = (int(part) for part in name.split("x"))
    except ValueError:
        raise OpenSoraError(f'a size is written HEIGHTxWIDTH, such as "48x80", not {name!r}') from None
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise OpenSoraError(f"the sides of size {name} must be multiples of 8")
    return height, width


def at_least(recipe, **least):
    """Raise OpenSoraError where a field of the recipe is less than its bound."""
    for name, value in least.items():
        if getattr(recipe, name) < value:
            raise OpenSoraError(f"{name} is {getattr(recipe, name)!r}; it must be at least {value}")


def above_zero(recipe, *names):
    """Raise OpenSoraError where one of the fields is not a finite number above 0."""
    for name in names:
        if not 0 < getattr(recipe, name) < math.inf:
            raise OpenSoraError(f"{name} is {getattr(recipe, name)!r}; it must be a number above 0")


def between(recipe, **bounds):
    """Raise OpenSoraError where a field is outside its bounds (least, most), or infinite."""
    for name, (low, high) in bounds.items():
        if not low <= getattr(recipe, name) <= high or math.isinf(getattr(recipe, name)):
            raise OpenSoraError(f"{name} is {getattr(recipe, name)!r}; it must lie between {low} and {high}")


def check_shares(recipe, name: str):
    """Raise OpenSoraError where the shares in a field are negative or do not sum to 1."""
    shares = getattr(recipe, name)
    if not shares or not all(share >= 0 for share in shares.values()) or not abs(sum(shares.values()) - 1) < 1e-3:
        raise OpenSoraError(f"{name} holds shares that sum to 1, not {shares}")
