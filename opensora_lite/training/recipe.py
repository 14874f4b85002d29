"""A training run as one YAML file: data, model sizes, steps and learning rates.

    recipe = read_recipe("tiny")            # a recipe of the package by name, or a path
    recipe = read_recipe("mine.yaml", {"diffusion.learning_rate": "1e-3"})

The fields are those of the dataclasses below; `recipes/tiny.yaml` says why each has its value. A recipe is validated
before anything is rendered: an unknown, missing or impossible field raises OpenSoraError, which names it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from opensora_lite.errors import OpenSoraError
from opensora_lite.latent_time import latent_frames
from opensora_lite.liteworld.world import HELD_OUT
from opensora_lite.schedule import TRAIN_STEPS, alphas_cumprod
from opensora_lite.validation import Share, Whole, build, validated

RECIPES = Path(__file__).parent / "recipes"

# As released (hpcaitech/Open-Sora v1.1, configs/opensora-v1-1/train/stage3.py): shares of the training videos.
FRAME_MASKS = {
    "none": 0.75,  # every frame is denoised
    "quarter_random": 0.025,  # up to a quarter of the frames is given, in one piece: anywhere,
    "quarter_head": 0.025,  # at the start,
    "quarter_tail": 0.025,  # at the end,
    "quarter_head_tail": 0.05,  # the same number at both ends
    "image_random": 0.025,  # one frame is given (head_tail: two)
    "image_head": 0.025,
    "image_tail": 0.025,
    "image_head_tail": 0.05,
}


def _check_size(name: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", name) or any(side % 8 for side in parse_size(name)):
        raise PydanticCustomError("size", 'a size such as "48x80": HEIGHTxWIDTH, multiples of 8')
    return name


def _check_kind(name: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", name) or any(side % 8 for side in parse_kind(name)[1:]):
        raise PydanticCustomError("kind", 'a kind such as "17x48x80": FRAMESxHEIGHTxWIDTH, sides multiples of 8')
    return name


def _check_shares(shares: dict) -> dict:
    if abs(sum(shares.values()) - 1) > 1e-3:
        raise PydanticCustomError("shares", "shares that sum to 1")
    return shares


def _check_masks(shares: dict) -> dict:
    if set(shares) - set(FRAME_MASKS):
        raise PydanticCustomError("masks", f"shares of {', '.join(FRAME_MASKS)}")
    return _check_shares(shares)


Count = Annotated[Whole, Field(ge=1)]
Index = Annotated[Whole, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[str, AfterValidator(_check_size)]
Kinds = Annotated[tuple[Annotated[str, AfterValidator(_check_kind)], ...], Field(min_length=1)]
Lengths = Annotated[dict[Annotated[int, Field(ge=1)], Share], AfterValidator(_check_shares)]
FrameMasks = Annotated[dict[str, Share], AfterValidator(_check_masks)]


def parse_size(name: str) -> tuple[int, int]:
    """(height, width) in pixels of "48x80"."""
    height, width = name.split("x")
    return int(height), int(width)


def parse_kind(name: str) -> tuple[int, int, int]:
    """(frames, height, width) of "17x48x80"."""
    frames, height, width = name.split("x")
    return int(frames), int(height), int(width)


@validated()
class World:
    """The LiteWorld clips of the training set. Their seeds lie below those of the evaluation."""

    clips: Count = 12000
    first_seed: Index = 0  # clip i is drawn with seed first_seed + i
    num_frames: Count = 16
    # HEIGHTxWIDTH in pixels; clip i has size i modulo their number
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = ("64x64", "64x64", "64x64", "48x80", "80x48")
    fps: Annotated[tuple[Count, ...], Field(min_length=1)] = (24, 24, 12)  # frames per second, drawn at random
    captions: Count = 6  # of each clip: the full one and captions - 1 partial ones

    def __post_init__(self):
        if self.first_seed + self.clips > HELD_OUT:
            raise OpenSoraError(f"training clips have seeds below {HELD_OUT:,}; the others belong to the evaluation")


@validated()
class Learning:
    """Optimizer settings of a training stage."""

    steps: Count
    learning_rate: Positive
    warmup: Index = 200  # steps of linear warm-up from 0
    decay: Share = 0.4  # last share of the steps, in which the rate falls linearly to floor · learning_rate
    floor: Share = 0.02
    betas: tuple[Decay, Decay] = (0.9, 0.99)  # of AdamW
    clip: Positive = 1.0  # largest norm of the gradients
    ema: Share = 0.999  # decay of the moving average of the weights, which is what gets exported

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps - 1."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = (self.steps - step) / self.steps
        falling = max(self.floor, left / self.decay) if self.decay and left < self.decay else 1.0
        return self.learning_rate * rising * falling

    def takes_muon(self, name: str, ndim: int) -> bool:
        """Whether Muon trains the parameter `name`; AdamW trains the others."""
        return False

    def ema_at(self, step: int) -> float:
        """EMA decay of step 0 …: it starts small, which removes the random initialization from the average."""
        return min(self.ema, (2 + step) / (21 + step))


@validated()
class PictureLearning(Learning):
    """What both training stages of the frame VAE share: batches of single frames and the reconstruction loss."""

    STREAM: ClassVar[int]  # number of the random stream: the two stages draw different batches

    learning_rate: Positive = 2e-3
    batch: Count = 192  # frames of one step, all of one size; the sizes are equally frequent
    crop: Annotated[Whole, Field(ge=8, multiple_of=8)] = 32  # side in pixels of crops around the subject
    crop_share: Share = 0.8  # share of the steps that use crops; the others use whole frames
    gradient_weight: Weight = 0.5  # of the L1 error of differences between neighbouring pixels, which sharpens edges
    squared_weight: Weight = 1.0  # of the mean squared error


@validated()
class DecoderRecipe(PictureLearning):
    """Further training of the VAE's decoder with the encoder frozen.

    The latents stay the same, and a diffusion model that was trained on them can use the new decoder.
    """

    STREAM = 3
    kl_weight: ClassVar[float] = 0.0  # the encoder is frozen, so the KL term is constant

    learning_rate: Positive = 8e-4
    warmup: Index = 100
    decay: Share = 1.0
    ema: Share = 0.995
    batch: Count = 24
    crop_share: Share = 0.0
    squared_weight: Weight = 20.0  # PSNR depends on the squared error; L1 alone favours pixels that are nearly right


@validated()
class VAERecipe(PictureLearning):
    """The frame VAE."""

    STREAM = 1

    steps: Count = 8250
    clips: Count = 3000  # the first clips of the world; they stay in memory as pixels
    kl_weight: Weight = 3e-4  # of the KL divergence from a standard normal, which keeps latents bounded
    block_out_channels: Annotated[tuple[Count, ...], Field(min_length=4, max_length=4)] = (16, 32, 64, 64)
    layers_per_block: Count = 1
    norm_num_groups: Count = 8
    init: str | None = None  # folder of a trained VAE ("tiny": the shipped one), which replaces this stage
    decoder: DecoderRecipe | None = None  # the decoder's further training, also after `init`; null: none

    def __post_init__(self):
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise OpenSoraError(
                f"block_out_channels {list(self.block_out_channels)} must be multiples of norm_num_groups,"
                f" {self.norm_num_groups}"
            )

    @property
    def stages(self) -> dict[str, PictureLearning]:
        """The stages to train, by the names of their files."""
        stages = {"vae": self if self.init is None else None, "decoder": self.decoder}
        return {name: stage for name, stage in stages.items() if stage is not None}


@validated()
class TransformerLearning(Learning):
    """What the recipes of STDiT2 and STDiT3 share; each is trained together with T5, in stages."""

    BLOCKS: ClassVar[tuple[str, ...]]  # how the names of the transformer's block parameters begin
    steps: Whole = 0  # computed: the sum over the stages
    learning_rate: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    stages: tuple[Any, ...] = ()
    optimizer: Literal["adamw", "muon"] = "muon"  # muon: for the blocks' matrices; AdamW for the rest (muon.py)
    caption_dropout: Share = 0.1  # share of the videos trained without caption, for classifier-free guidance
    frame_masks: FrameMasks = Field(default_factory=FRAME_MASKS.copy)  # kind of mask: share of the videos
    hidden_size: Count = 144  # of the transformer
    num_heads: Count = 6
    input_sq_size: Count = 64
    d_model: Count = 96  # of T5
    d_kv: Count = 24
    d_ff: Count = 256
    num_layers: Count = 2
    t5_heads: Count = 4

    def __post_init__(self):
        object.__setattr__(self, "steps", sum(stage.steps for stage in self.stages))
        if self.hidden_size % 12 or self.hidden_size % (2 * self.num_heads):
            raise OpenSoraError(
                f"hidden_size {self.hidden_size} must be a multiple of 12 and of 2 · num_heads, {2 * self.num_heads}"
            )

    def takes_muon(self, name: str, ndim: int) -> bool:
        """Whether Muon trains the parameter `name`: the matrices in the blocks of the transformer and T5."""
        in_block = name.startswith((*self.BLOCKS, "t5.encoder.block."))
        table = "scale_shift_table" in name or "relative_attention_bias" in name
        return self.optimizer == "muon" and in_block and ndim == 2 and not table

    def stage_at(self, step: int) -> Any:
        """The stage of step 0 … steps - 1."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


@validated()
class Stage:
    """A part of the diffusion training: clip lengths, batch size and timesteps."""

    steps: Count
    lengths: Lengths  # frames of a clip: share of the steps
    batch: Count  # videos of the longest length; shorter ones come in up to 8 times as many, at equal cost
    times: tuple[Whole, Whole] = (0, TRAIN_STEPS)  # t is uniform from the first to below the second

    def __post_init__(self):
        if not 0 <= self.times[0] < self.times[1] <= TRAIN_STEPS:
            raise OpenSoraError(f"times {list(self.times)} must be two timesteps, 0 ≤ first < second ≤ {TRAIN_STEPS}")

    def batch_of(self, num_frames: int) -> int:
        """Videos of one step, for clips of this length."""
        return self.batch * min(max(self.lengths) // num_frames, 8)


@validated()
class DiffusionRecipe(TransformerLearning):
    """T5 and STDiT2, trained together to predict the noise of latents from noisy latents and captions."""

    BLOCKS = ("stdit.blocks.",)
    learning_rate: Positive = 1.2e-3
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, validate_default=True)] = ()
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices; AdamW for the rest (muon.py)
    min_snr: Positive | None = 5.0  # γ of min-SNR weighting; null: uniform weights, as released
    high_noise: Share = 0.0  # b: timesteps with SNR < 1 are weighted by SNR^-b, at most 50
    full_captions: Share = 0.4  # share of the videos with the full caption; the others get a partial one
    depth: Count = 6
    model_max_length: Count = 32  # tokens of a caption; LiteWorld's have up to 30
    init: str | None = None  # folder with stdit/ and t5/ to start from ("tiny": the shipped model)

    def loss_weights(self) -> np.ndarray:
        """Weights of the mse at timesteps 0 … 999, float32 [1000].

        min-SNR weighting, min(SNR, γ) / SNR (arXiv:2303.09556, sec. 3.4), reduces the weight of timesteps with little
        noise, whose ε cannot be predicted. At the noisy end the error of ε is tiny, but composition is decided there;
        `high_noise` raises its weight. With b = 0.75 the timesteps 150 to 750 contribute about equally to the loss,
        which is also what learned weights converge to (arXiv:2312.02696, app. B.4).
        """
        abar = alphas_cumprod()
        snr = abar / (1 - abar)
        weights = np.ones(TRAIN_STEPS) if self.min_snr is None else snr.clip(max=self.min_snr) / snr
        return (weights * (1 / snr).clip(min=1) ** self.high_noise).clip(max=50).astype(np.float32)


@validated()
class Recipe:
    """A whole training run."""

    diffusion: DiffusionRecipe
    world: World = Field(default_factory=World)
    vae: VAERecipe = Field(default_factory=VAERecipe)
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0  # of initialization, batches and noise
    save_every: Count = 500  # steps between two checkpoints
    sheet_every: Index = 1000  # steps between two sheets of samples; 0: none
    sheet_prompts: tuple[str, ...] = (
        "a red car driving right on the ocean at sunset",
        "a white boat sailing left on the ocean at noon",
        "a blue balloon floating right over the meadow at sunrise",
        "a cyberpunk-style yellow bird flying left over the city",
    )

    def __post_init__(self):
        longest = max(length for stage in self.diffusion.stages for length in stage.lengths)
        if longest > self.world.num_frames:
            raise OpenSoraError(f"a stage needs clips of {longest} frames; world.num_frames is {self.world.num_frames}")

    @property
    def batch_sizes(self) -> set[int]:
        """Of all steps that are trained."""
        diffusion = {stage.batch_of(length) for stage in self.diffusion.stages for length in stage.lengths}
        return diffusion | {stage.batch for stage in self.vae.stages.values()}

    def to_dict(self) -> dict:
        """The recipe as JSON values: the content of recipe.json, which `from_dict` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """The recipe of plain values, as YAML and JSON hold them. Raises OpenSoraError."""
        return build(cls, values, "the recipe")


# ---------------------------------------------------------------------------------------------------------------------
#   Open-Sora 1.2
# ---------------------------------------------------------------------------------------------------------------------


@validated()
class Shots:
    """The LiteWorld shots of the training set. Their seeds lie below those of the evaluation."""

    clips: Count = 9000
    first_seed: Index = 0  # clip i is drawn with seed first_seed + i
    kinds: Kinds = ("17x64x64",)  # FRAMESxHEIGHTxWIDTH; clip i has kind i modulo their number
    fps: Annotated[tuple[Count, ...], Field(min_length=1)] = (24, 24, 12)  # of clips of 17 frames; others have 24
    captions: Count = 6  # of each clip: the full one and captions - 1 partial ones

    def __post_init__(self):
        if self.first_seed + self.clips > HELD_OUT:
            raise OpenSoraError(f"training clips have seeds below {HELD_OUT:,}; the others belong to the evaluation")


@validated()
class VideoLearning(Learning):
    """A training stage of the video VAE."""

    batch: Count = 16  # crops of 17 frames; of whole frames as many as cost about the same
    decoded: Count = 5  # random frames of each that are decoded to pixels (not in the first stage): one step costs less
    crop: Annotated[Whole, Field(ge=8, multiple_of=8)] = 32  # side in pixels of crops around the subject
    crop_share: Share = 0.8  # share of the steps that use crops; the others use whole frames
    gradient_weight: Weight = 0.5  # of the L1 error of differences between neighbouring pixels
    squared_weight: Weight = 1.0  # of the mean squared error
    kl_weight: Weight = 1e-4  # of the KL divergence from a standard normal

    def batch_of(self, height: int, width: int) -> int:
        """Clips of one step on whole frames of this size, at about the cost of `batch` crops."""
        return max(1, self.batch * self.crop**2 // (height * width))

    def takes_muon(self, name: str, ndim: int) -> bool:
        """Whether Muon trains the parameter `name`: the kernels of the temporal VAE's residual blocks."""
        return name.startswith("temporal_vae.") and ndim == 5 and "res_blocks." in name


@validated()
class VideoVAERecipe:
    """The video VAE: the frame VAE of another model, whose encoder is kept, and a temporal VAE."""

    # modules of a `video_vae.VideoAutoencoder` that each stage trains
    TRAINED: ClassVar[dict[str, tuple[str, ...]]] = {
        "temporal": ("temporal_vae",),
        "decoder": (
            "temporal_vae.decoder",
            "temporal_vae.post_quant_conv",
            "spatial_vae.module.decoder",
            "spatial_vae.module.post_quant_conv",
        ),
    }
    STREAMS: ClassVar[dict[str, int]] = {"temporal": 11, "decoder": 13}  # of random numbers

    temporal: VideoLearning
    decoder: VideoLearning
    spatial: str = "tiny"  # folder of a model with vae/
    clips: Count = 1200
    kinds: Kinds = ("17x64x64", "17x64x64", "17x48x80", "17x80x48", "17x128x128")
    channels: Count = 4  # of the latents, as released; with more of them fast motion stays sharp
    filters: Annotated[Whole, Field(ge=10)] = 16  # so many carry the code from which training starts (linear_code.py)
    num_res_blocks: Count = 1

    @property
    def stages(self) -> dict[str, VideoLearning]:
        """The stages to train, by the names of their files."""
        return {"temporal": self.temporal, "decoder": self.decoder}


@validated()
class FlowStage:
    """A part of the diffusion training: clip lengths and batch size, and what differs from the rest of the recipe."""

    steps: Count
    lengths: Lengths  # latent frames of a clip: share of the steps
    batch: Count  # clips of 5 latent frames of 64×64 pixels; of others as many as cost about the same
    times: tuple[Whole, Whole] | None = None  # t is uniform from the first to the second; null: as in sampling
    full_captions: Share | None = None  # this and the next two: as in FlowRecipe, whose values null stands for
    scores: Share | None = None
    frame_masks: FrameMasks | None = None

    def __post_init__(self):
        if self.times is not None and not 0 <= self.times[0] < self.times[1] <= TRAIN_STEPS:
            raise OpenSoraError(f"times {list(self.times)} must be two timesteps, 0 ≤ first < second ≤ {TRAIN_STEPS}")

    def batch_of(self, num_latents: int, height: int, width: int) -> int:
        """Clips of one step, of that many latent frames of height × width pixels."""
        return max(1, round(self.batch * min(8, 5 * 64 * 64 / (num_latents * height * width))))


@validated()
class FlowRecipe(TransformerLearning):
    """T5 and STDiT3, trained together to predict the velocity of latents from noisy latents and captions."""

    BLOCKS = ("stdit.spatial_blocks.", "stdit.temporal_blocks.")
    stages: Annotated[tuple[FlowStage, ...], Field(min_length=1, validate_default=True)] = ()
    uniform_times: Share = 0.2  # share of the videos with uniform times; the others have logit-normal ones, as released
    base_size: Count = 64  # of the timestep transform, pixels
    full_captions: Share = 0.5  # share of the videos with the full caption; the others get a partial one
    scores: Share = 0.7  # share of the captions with a motion score, and of those with a camera motion
    aesthetic_scores: Share = 0.15  # share of the captions with an aesthetic score, which is always the same
    depth: Count = 4
    qk_norm: bool = True
    model_max_length: Count = 48  # tokens of a caption
    vocabulary: Annotated[Whole, Field(ge=72)] = 256  # tokens: all of ASCII, and words of LiteWorld's captions

    def during(self, stage: FlowStage) -> FlowRecipe:
        """The recipe with the values of a stage in place of its own."""
        own = {name: getattr(stage, name) for name in ("full_captions", "scores", "frame_masks")}
        return dataclasses.replace(self, **{name: value for name, value in own.items() if value is not None})


@validated()
class VideoRecipe:
    """A whole training run of Open-Sora 1.2's models."""

    diffusion: FlowRecipe
    vae: VideoVAERecipe
    world: Shots = Field(default_factory=Shots)
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0  # of initialization, batches and noise
    save_every: Count = 250  # steps between two checkpoints
    sheet_every: Index = 1000  # steps between two sheets of samples; 0: none
    sheet_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        longest = max(length for stage in self.diffusion.stages for length in stage.lengths)
        most = max(latent_frames(parse_kind(kind)[0]) for kind in self.world.kinds)
        if longest > most:
            raise OpenSoraError(f"a stage needs clips of {longest} latent frames; world.kinds have up to {most}")

    @property
    def batch_sizes(self) -> set[int]:
        """Of all steps that are trained."""
        kinds = [parse_kind(kind) for kind in self.world.kinds]
        lengths = [(stage, T) for stage in self.diffusion.stages for T in stage.lengths]
        sizes = {s.batch_of(T, *size) for s, T in lengths for n, *size in kinds if latent_frames(n) >= T}
        for stage in self.vae.stages.values():  # images come in 8 times as many
            sizes |= {stage.batch} | {stage.batch_of(*parse_kind(kind)[1:]) for kind in self.vae.kinds}
        return sizes

    def to_dict(self) -> dict:
        """The recipe as JSON values: the content of recipe.json, which `from_dict` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> VideoRecipe:
        """The recipe of plain values, as YAML and JSON hold them. Raises OpenSoraError."""
        return build(cls, values, "the recipe")


# ---------------------------------------------------------------------------------------------------------------------
#   Reading
# ---------------------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, as in YAML 1.2."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])


def read_recipe(path: str | Path = "tiny", changes: dict[str, str] | None = None) -> Recipe | VideoRecipe:
    """The recipe of a YAML file, or a recipe of the package by its name ("tiny", "first_steps").

    changes: fields to replace, by dotted name, values in YAML: {"diffusion.learning_rate": "1e-3"}.
    Raises OpenSoraError.
    """
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{path}.yaml" if str(path) in known else Path(path)
    if not path.is_file():
        raise OpenSoraError(f"there is no recipe {path}; give a YAML file, or one of {', '.join(known)}")
    values = _parse(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise OpenSoraError(f"{path} must hold the fields of a recipe, not {values!r}")
    for name, text in (changes or {}).items():
        *parents, leaf = name.split(".")
        group = values
        for parent in parents:
            if not isinstance(group.get(parent), dict):
                group[parent] = {}
            group = group[parent]
        group[leaf] = _parse(text, f"{name}={text}")
    kind = VideoRecipe if isinstance(values.get("world"), dict) and "kinds" in values["world"] else Recipe
    return kind.from_dict(values)


def _parse(text: str | bytes, what: str):
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OpenSoraError(f"{what} is not valid YAML: {error}") from error
