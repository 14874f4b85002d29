"""A request and its plan, without Paddle: Settings, and `plan`, which turns prompts into checked Jobs.

Everything that a person can get wrong is reported here, before a model is loaded. A Job needs no further parsing: its
captions are cleaned, its references are open, and it says for each loop where every frame comes from.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, Field, InstanceOf, TypeAdapter, model_validator
from pydantic_core import ArgsKwargs

from opensora_lite.errors import (
    CheckpointError,
    MaskStrategyError,
    OpenSoraError,
    PromptError,
    SizeError,
    note,
    printable,
    shown,
)
from opensora_lite.generations import OPEN_SORA_11, Generation, generation_of
from opensora_lite.io.checkpoints import find_part, on_disk, part_of, read_config, read_json
from opensora_lite.masks import MAX_FRAMES, MAX_LOOPS, Frame, MaskStrategy
from opensora_lite.prompts import (
    PromptRow,
    captions_per_loop,
    cleaned_caption,
    locate,
    removed,
    split_prompt,
    with_scores,
)
from opensora_lite.sizes import parse_frames, parse_rate, parse_size
from opensora_lite.tokenizer import CaptionTokenizer, Reader, find_tokenizer, open_tokenizer
from opensora_lite.validation import AsTuple, Count, Items, Place, Texts, Whole, check, validated
from opensora_lite.video import MAX_PIXELS, Reference, ReferenceSource, open_reference

WEIGHTS = Path(__file__).parent / "weights"
PIXELS_PER_LATENT = 8  # along each side; of the VAE that Open-Sora 1.1 was trained with
SHIPPED = sorted(folder.parent.name for folder in WEIGHTS.glob("*/stdit"))  # names of models
MODEL_MAX_LENGTH = 200  # tokens of a caption that the released model reads
IMAGE_FPS = 120  # as released: the frame rate that the model is conditioned on for an image
MIN_FPS = 0.01  # of a Video
MAX_LOADED = 20_000_000  # pixels of references that a plan reads; later ones are read when they are used
MAX_AREA = MAX_PIXELS // 4  # pixels of one frame; `Video.save` could not read a larger one back

SamplerName = Literal["iddpm", "ddim", "dpm-solver", "rectified-flow", "heun"]
SAMPLER_NAMES = get_args(SamplerName)

References = ReferenceSource | Sequence[ReferenceSource] | None  # of one prompt; a str can hold paths joined by ";"

Rate = Annotated[float, Field(ge=1, le=1000)]
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Side = Annotated[Whole, Field(ge=PIXELS_PER_LATENT, multiple_of=PIXELS_PER_LATENT)]

# ---------------------------------------------------------------------------------------------------------------------
#   Settings
# ---------------------------------------------------------------------------------------------------------------------


def check_size(image_size: int | str | Sequence[int], pixels: int = 256 * 256) -> tuple[int, int]:
    """(height, width) in pixels, rounded down to multiples of 8 as released; a Note says so. Raises SizeError.

    image_size: two numbers; one, for a square; or text as in `sizes.parse_size`. pixels: of text such as "16:9".

    >>> check_size(64), check_size([48, 80]), check_size("16:9", pixels=64 * 64)
    ((64, 64), (48, 80), (48, 80))
    """
    sides: Any = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    name = "image_size"
    if isinstance(image_size, str):
        name, sides = f"image_size {image_size.strip()} =", parse_size(image_size, pixels)
    height, width = check(Annotated[tuple[Whole, Whole], AsTuple], sides, "image_size", SizeError)
    if min(height, width) < PIXELS_PER_LATENT:
        raise SizeError(
            f"image_size {shown(height)}×{shown(width)} is too small; height and width are at least 8 pixels"
        )
    if height * width > MAX_AREA:
        raise SizeError(
            f"image_size {shown(height)}×{shown(width)} is more than {MAX_AREA / 1e6:g} megapixels; make it smaller"
        )
    rounded = height - height % PIXELS_PER_LATENT, width - width % PIXELS_PER_LATENT
    if rounded != (height, width):
        note(f"{name} {height}×{width} → {rounded[0]}×{rounded[1]}: sides are multiples of {PIXELS_PER_LATENT} pixels")
    return rounded


def check_rate(fps: float | str | Fraction) -> float:
    """Frames per second, a whole number as int; text as in `sizes.parse_rate`. Raises SizeError.

    >>> check_rate("30000/1001"), check_rate(24.0)
    (29.97002997002997, 24)
    """
    value = parse_rate(fps) if isinstance(fps, str) else fps
    value = float(value) if isinstance(value, Fraction) else value
    rate = check(Rate, value, "fps", SizeError)
    return int(rate) if rate == int(rate) else rate


def check_seeds(seed: int | Sequence[int]) -> int | tuple[int, ...]:
    """A seed, or a tuple of seeds. Raises OpenSoraError."""
    seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
    if isinstance(seed, (list, tuple, range)):
        return check(Seeds, tuple(seed), "seed")
    return check(Seed, seed, "seed")


def _option(help: str, *flags: str, **bounds: Any) -> Any:
    """A setting's bounds, checked by pydantic, and its help and flags (if other than its name) on the command line."""
    return Field(description=help, json_schema_extra={"flags": list(flags)}, **bounds)


Timestep = Annotated[Whole, Field(ge=0, le=999)]


@validated(errors={"num_frames": SizeError, "image_size": SizeError})
class Settings:
    """Settings shared by all videos of a request; the defaults are those of the released 1.1 weights.

    num_frames may be seconds ("4s"), image_size a name ("240p 16:9"), fps text ("29.97"): see `sizes`. Raises an
    OpenSoraError for invalid values.
    """

    num_frames: Annotated[Whole, _option("frames T of one loop, or seconds such as 4s", ge=1, le=MAX_FRAMES)] = 16
    image_size: Annotated[
        tuple[int, int], BeforeValidator(check_size), _option("height and width in pixels; or 480x832, 240p, 240p 16:9")
    ] = (256, 256)
    fps: Annotated[
        int | Rate,
        BeforeValidator(check_rate),
        _option(
            "frame rate that the model is conditioned on, such as 24 or 29.97; the video plays at fps / frame-interval"
        ),
    ] = 24
    frame_interval: Annotated[
        Whole, _option("the model was trained on every N-th frame of its clips", ge=1, le=1000)
    ] = 3
    sampler: Annotated[SamplerName, _option("iddpm, ddim or dpm-solver; of Open-Sora 1.2: rectified-flow or heun")] = (
        "iddpm"
    )
    num_sampling_steps: Annotated[Whole, _option("denoising steps, 2 to 1000", ge=2, le=1000)] = 100
    guidance_scale: Annotated[
        float,
        _option(
            "scale of classifier-free guidance; 1 turns it off, in half the time", "--cfg-scale", ge=-1000, le=1000
        ),
    ] = 7.0
    guidance_interval: Annotated[
        tuple[Timestep, Timestep] | None,
        AsTuple,
        _option("smallest and largest timestep, 0 to 999, with guidance; other steps take half as long"),
    ] = None
    cache_threshold: Annotated[
        float,
        _option(
            "step caching (TeaCache): reuse the model's output until its input has changed by this fraction, e.g. 0.1",
            "--cache-threshold",
            "--reuse",
            ge=0,
            le=10,
        ),
    ] = 0.0
    cfg_channel: Annotated[
        Annotated[Whole, Field(ge=1, le=4)] | None,
        _option("guide only the first N latent channels; None (0 on the command line) guides all 4"),
    ] = 3
    aes: Annotated[
        Annotated[float, Field(ge=0, le=10)] | None,
        _option("Open-Sora 1.2: aesthetic score that is added to captions, such as 6.5"),
    ] = None
    flow: Annotated[
        Annotated[float, Field(ge=0, le=1000)] | None,
        _option("Open-Sora 1.2: motion score that is added to captions: how much moves"),
    ] = None
    camera_motion: Annotated[
        str | None, _option('Open-Sora 1.2: camera motion that is added to captions, such as "pan right"')
    ] = None
    loops: Annotated[
        Whole, _option("how often the video is continued, the first time included", "--loop", ge=1, le=MAX_LOOPS)
    ] = 1
    condition_frames: Annotated[
        Annotated[Whole, Field(ge=1, le=MAX_FRAMES)] | None,
        _option("frames at the end of a loop that the next loop is conditioned on", "--condition-frame-length"),
    ] = None
    reference_fps: Annotated[
        Literal["video", "native"],
        _option("frames of reference clips are taken at the rate of the video, or native: every frame as it is stored"),
    ] = "video"
    seed: Annotated[
        Seed | Seeds,
        BeforeValidator(check_seeds),
        _option("the i-th video is made with seed + i; several: one for each prompt, or for each video"),
    ] = 42
    same_seed: Annotated[bool, _option("every prompt has the same seed; samples of a prompt differ")] = False
    batch_size: Annotated[
        Whole, _option("videos made at once; changes time and memory, not the videos", ge=1, le=10_000)
    ] = 1
    num_sample: Annotated[Whole, _option("videos for each prompt", ge=1, le=10_000)] = 1

    @model_validator(mode="before")
    @classmethod
    def _frames_of_seconds(cls, given: Any) -> Any:
        """num_frames as a number: how many frames "4s" are depends on the rate of the video."""
        values = given
        if isinstance(given, ArgsKwargs):
            values = dict(zip(cls.__dataclass_fields__, given.args, strict=False)) | (given.kwargs or {})
        if not isinstance(values, dict) or not isinstance(values.get("num_frames"), str):
            return given
        rates = Settings(**{name: values[name] for name in ("fps", "frame_interval") if name in values})
        return ArgsKwargs((), values | {"num_frames": parse_frames(values["num_frames"], rates.video_fps)})

    def __post_init__(self) -> None:
        interval, n, c = self.guidance_interval, self.num_frames, self.condition_frames
        if interval is not None and interval[0] > interval[1]:
            raise OpenSoraError(f"guidance_interval is {interval[0]} to {interval[1]}; give the smaller timestep first")
        if self.loops == 1 and c is not None:
            raise OpenSoraError(f"condition_frames is {c}, but there is one loop; ask for more loops")
        if self.loops > 1 and n == 1:
            raise OpenSoraError(f"{self.loops} loops need at least 2 frames: some to continue from, and some new ones")
        if self.loops > 1 and c is None:
            raise OpenSoraError(
                f"{self.loops} loops need condition_frames, the frames that a loop takes over from the one before;"
                f" condition_frames={max(n // 4, 1)} would be a quarter; in Open-Sora 1.2, a multiple of 17"
            )
        if c is not None and c >= n:
            raise OpenSoraError(f"condition_frames is {c}, but a loop has {n} frames: give 1 to {n - 1}")
        if self.video_fps < MIN_FPS:
            raise OpenSoraError(
                f"the video would play at {self.video_fps:.2g} frames per second, fps / frame_interval; give at least"
                f" {MIN_FPS:g}"
            )
        if self.same_seed and isinstance(self.seed, tuple):
            raise OpenSoraError("same_seed is for one seed, and seed is a list; give one of the two")

    @property
    def video_fps(self) -> float:
        """Frames per second at which a finished video plays; 8 fps with every 3rd frame are 8/3."""
        return self.fps / self.frame_interval

    @property
    def reference_rate(self) -> float | None:
        """Frames of a reference clip per second; None: every frame as it is stored."""
        return self.video_fps if self.reference_fps == "video" else None

    @property
    def scores(self) -> dict[str, Any]:
        """The scores that are added to captions, as `prompts.with_scores` takes them; None: not said."""
        return {"aes": self.aes, "flow": self.flow, "camera_motion": self.camera_motion}

    @property
    def seconds(self) -> float:
        """Playing time of a finished video."""
        return self.total_frames / self.video_fps

    def changed(self, **changes: Any) -> "Settings":
        """These settings with some changes; an image_size such as "16:9" keeps the number of pixels."""
        if isinstance(changes.get("image_size"), str):
            size = check_size(changes["image_size"], math.prod(self.image_size))
            changes = {**changes, "image_size": size}
        return replace(self, **changes)

    @property
    def total_frames(self) -> int:
        """Frames of a finished video: every loop but the first adds those that it does not take over."""
        return self.num_frames + (self.loops - 1) * (self.num_frames - (self.condition_frames or 0))


SomeSettings = Annotated[tuple[InstanceOf[Settings], ...], Items]


def flags_of(setting: str) -> list[str]:
    """The flags of a setting on the command line, the preferred one first: ["--cache-threshold", "--reuse"]."""
    extra = Settings.__pydantic_fields__[setting].json_schema_extra  # type: ignore[attr-defined]
    return extra["flags"] or [f"--{setting.replace('_', '-')}"]


@functools.cache
def bounds_of(setting: str) -> tuple[float | None, float | None]:
    """The smallest and the largest value of a setting that is a number; None where there is none.

    >>> bounds_of("num_sampling_steps"), bounds_of("sampler")
    ((2, 1000), (None, None))
    """
    schema = TypeAdapter(Settings).json_schema()["properties"][setting]
    kinds = [schema, *schema.get("anyOf", ())]  # "ge" where a function reads the value first
    least, most = ([k[n] for k in kinds for n in names if n in k] for names in (("ge", "minimum"), ("le", "maximum")))
    return next(iter(least), None), next(iter(most), None)


def setting_from_text(name: str, text: str) -> Any:
    """The value of a setting from the command line or a table's cell, not checked yet: `Settings` does that.

    >>> setting_from_text("image_size", "48 80"), setting_from_text("seed", "7"), setting_from_text("cfg_channel", "0")
    ([48, 80], 7, None)
    """
    words = text.split()
    if name == "camera_motion":
        return text if text.lower() != "none" else None
    if name in ("image_size", "num_frames") and not all(word.isdigit() for word in words):
        return text  # a name, or seconds
    values = [_value(word) for word in words]
    value = values[0] if len(values) == 1 else values
    return None if name == "cfg_channel" and value == 0 else value


def row_settings(row: PromptRow, defaults: Settings) -> Settings:
    """`defaults` with the settings of a table's row; columns have a setting's name or flag. A Note names other columns.

    A row's seed is that of its first video. Raises OpenSoraError where no video can be made with them.
    """
    fields = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    names = {flag.lstrip("-").replace("-", "_"): name for name in fields for flag in (name, *flags_of(name))}
    if unknown := [column for column in row.columns if column not in names]:
        note(f"{'columns' if len(unknown) > 1 else 'column'} {_quoted(unknown)} of the table: no setting, and not used")
    changes = {names[c]: setting_from_text(names[c], text) for c, text in row.columns.items() if c in names}
    if "seed" in changes:
        changes["same_seed"] = not isinstance(changes["seed"], list)
    try:
        return defaults.changed(**changes) if changes else defaults
    except OpenSoraError as error:
        raise type(error)(f"the row of the prompt {shown(row.prompt)}: {error}") from None


def _value(word: str) -> Any:
    if word.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[word.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def model_folder(model: str | Path) -> Path:
    """The folder of a model: "tiny", which ships with the package, or a folder with stdit/, t5/ and vae/.

    Folders may have diffusers' names; model may be the name of a repository in Hugging Face's cache.
    Raises CheckpointError where there is none.
    """
    check(Place, model, "model", CheckpointError)
    folder = WEIGHTS / str(model) if model in SHIPPED else on_disk(model)
    if not str(model) or not os.path.isdir(folder):  # Path.is_dir() fails where a name is too long
        raise CheckpointError(
            f'model "{model}" is neither "tiny" nor a folder with stdit/, t5/ and vae/;'
            " nothing is downloaded: fetch the weights first and give their folders"
        )
    return folder


def model_defaults(model: str | Path = "tiny") -> tuple[Settings, list[tuple[int, int]]]:
    """The Settings that a model was made for, and the image sizes it was trained on (empty: any).

    model: as in `model_folder`. Read from `pipeline.json` there; without one, the defaults of the released weights.
    Raises CheckpointError.
    """
    settings, sizes, _ = _read_pipeline(model_folder(model))
    return settings, sizes


def released_settings(generation: Generation) -> Settings:
    """The Settings that the released weights of a generation were made for."""
    if not generation.is_flow:
        return Settings()
    return Settings(
        num_frames=51,
        image_size=(240, 424),
        frame_interval=1,
        sampler="rectified-flow",
        num_sampling_steps=30,
        cfg_channel=None,
    )


def _generation(stdit: str | Path | None, vae: str | Path | None) -> Generation:
    """The generation of a transformer and a VAE; of the released VAE where none is given. Raises CheckpointError."""
    config = {} if stdit is None else read_config(find_part(stdit, "stdit"))
    if vae is not None:
        return generation_of(config, read_config(find_part(vae, "vae")))
    return generation_of(config, {"vae_temporal": {}} if config.get("model_type") == "STDiT3" else {})


def _read_pipeline(folder: Path) -> tuple[Settings, list[tuple[int, int]], list[str]]:
    """A model's Settings, the sizes and the words that it was trained on (empty: any). Raises CheckpointError."""
    path = folder / "pipeline.json"
    if not os.path.lexists(path):
        return released_settings(_generation(part_of(folder, "stdit"), part_of(folder, "vae"))), [], []
    values = read_json(path)
    try:
        sizes = check(list[Annotated[tuple[Side, Side], AsTuple]], values.pop("trained_sizes", []), "trained_sizes")
        words = check(list[str], values.pop("known_words", []), "known_words")
        return Settings(**values), sizes, words
    except OpenSoraError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class ModelSpec:
    """What a plan must know of the models; the default knows nothing, so that nothing is said about captions.

    reader: of captions. known_words: of the captions that a small model was trained on; empty: any. generation: how
    the model counts time, and how it is sampled.
    """

    reader: Reader | None = None
    known_words: frozenset[str] = frozenset()
    generation: Generation = OPEN_SORA_11

    def check(self, settings: Settings) -> None:
        """Raise OpenSoraError for settings that a model of this generation doesn't have."""
        g, s = self.generation, settings
        if s.sampler not in g.samplers:
            raise OpenSoraError(
                f"sampler {s.sampler} is not for Open-Sora {g.name}, the generation of this model; its samplers are"
                f" {', '.join(g.samplers)}"
            )
        given = [name for name, value in s.scores.items() if value is not None]
        if given and not g.is_flow:
            raise OpenSoraError(f"{given[0]} is for Open-Sora 1.2; captions of this model, 1.1, have no scores")
        if g.is_flow and s.cfg_channel is not None:
            raise OpenSoraError("cfg_channel is for Open-Sora 1.1; this model, 1.2, guides all channels: give None")
        if s.loops > 1:
            g.check_loops(s.num_frames, s.condition_frames or 0)

    def losses(self, caption: str, cleaned: str) -> list[str]:
        """What the model doesn't read or know of a caption, in words. Raises PromptError where nothing is left."""
        losses = []
        if parts := removed(caption, cleaned):
            losses.append(f"cleaning removes {_quoted(parts)}")
        unknown = self.reader.unknown(cleaned) if self.reader else []
        if unknown:
            losses.append(f"the tokenizer does not know {_quoted(unknown)}")
        read = cleaned
        for part in sorted(unknown, key=len, reverse=True):
            read = read.replace(part, " ")
        if unknown and not any(character.isalnum() for character in read):
            raise PromptError(
                f"nothing is left of the caption {shown(caption)}: {'; '.join(losses)}; describe the video in English"
            )
        if self.known_words:
            words = dict.fromkeys(re.findall(r"[^\W_]+(?:-[^\W_]+)*", read))
            if strange := [word for word in words if not self._knows(word)]:
                losses.append(f"this small model was trained without {_quoted(strange)}")
        unread = self.reader.count_tokens(cleaned) - self.reader.max_length if self.reader else 0
        if self.reader and unread > 0:
            losses.append(f"the model reads {self.reader.max_length} tokens, the last {unread} are left out")
        return losses

    def _knows(self, word: str) -> bool:
        return word in self.known_words or all(part in self.known_words for part in word.split("-"))


AnySpec = InstanceOf[ModelSpec]


def _quoted(parts: Sequence[str], most: int = 5) -> str:
    shown_parts = ", ".join(f'"{printable(part):.60}"' for part in parts[:most])
    return shown_parts + (f" and {len(parts) - most} more" if len(parts) > most else "")


def model_spec(
    model: str | Path | None = None,
    *,
    stdit: str | Path | None = None,
    t5: str | Path | None = None,
    vae: str | Path | None = None,
) -> ModelSpec:
    """The ModelSpec of a model, read from its files without Paddle; arguments as of `OpenSora.from_pretrained`.

    t5 alone: of the released model. Without a tokenizer, nothing is said about tokens; loading T5 says what is missing.
    Raises CheckpointError.
    """
    words: list[str] = []
    if model is not None or (stdit is None and t5 is None):
        folder = model_folder("tiny" if model is None else model)
        words = _read_pipeline(folder)[2]
        stdit, t5 = stdit or part_of(folder, "stdit"), t5 or part_of(folder, "t5")
        vae = vae or part_of(folder, "vae")
    spec = ModelSpec(None, frozenset(words), _generation(stdit, vae))
    if t5 is None:
        return spec
    t5 = find_part(t5, "t5")
    texts = t5 if os.path.isdir(t5) else t5.parent
    if find_tokenizer(texts) is None:
        return spec
    config = read_config(find_part(stdit, "stdit")) if stdit is not None else {}
    max_length = config.get("model_max_length", 300 if spec.generation.is_flow else MODEL_MAX_LENGTH)
    check(Count, max_length, "the STDiT2 config: model_max_length", CheckpointError)
    return replace(spec, reader=CaptionTokenizer(open_tokenizer(texts), max_length))


# ---------------------------------------------------------------------------------------------------------------------
#   Plan
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One video to be made, checked."""

    prompt: str  # as given, without its JSON suffix
    captions: tuple[str, ...]  # cleaned, one for each loop
    references: tuple[Reference, ...]
    frames: tuple[tuple[Frame, ...], ...]  # for each loop, where each of its T frames (1.2: latent frames) comes from
    strategy: MaskStrategy  # with the segments that continue the loops
    seed: int
    sample: int  # 0 … num_sample - 1: which of the videos of its prompt
    settings: Settings = Settings()
    generation: Generation = OPEN_SORA_11  # of the model that it was planned for

    @property
    def used_latents(self) -> list[list[int]]:
        """The latent frames of each reference that the loops use, in ascending order; of 1.1, its frames."""
        used: list[set[int]] = [set() for _ in self.references]
        for frame in (frame for loop in self.frames for frame in loop):
            if frame.reference is not None and frame.reference < len(used):
                used[frame.reference].add(frame.frame or 0)
        return [sorted(indices) for indices in used]

    def placed(self, loop: int) -> tuple[Frame, ...]:
        """`frames[loop]`, in which the frame of a picture is the latent frame of the video that it becomes, in 1.2.

        Where that holds one frame, the picture is encoded alone, as released. Where it holds several, a still clip of
        the picture is encoded, as long as the chunk. (The original puts pictures at the start of a chunk only, and has
        none that is shorter than one; of `0;0,1,0,-1` on 17 frames, only the second picture is left.)
        """
        if self.generation.factor == 1:
            return self.frames[loop]
        pictures = {i for i, reference in enumerate(self.references) if reference.num_frames == 1}
        frames = enumerate(self.frames[loop])
        return tuple(replace(f, frame=latent) if f.reference in pictures else f for latent, f in frames)

    @property
    def used_frames(self) -> list[list[int]]:
        """The frames of each reference that must be read, in ascending order; of 1.2, all frames of a chunk."""
        pairs = zip(self.references, self.used_latents, strict=True)
        return [self.generation.frames_of(used, reference.num_frames)[0] for reference, used in pairs]

    @property
    def sources(self) -> list[str]:
        """A line for each reference: which of its frames are used, and what is done to them."""
        size = self.settings.image_size
        return [r.describe(used, *size) for r, used in zip(self.references, self.used_frames, strict=True)]

    def explain(self) -> str:
        """The frames of each loop in words and as a drawing, see `MaskStrategy.explain`."""
        lengths, s = [reference.num_frames for reference in self.references], self.settings
        return self.strategy.explain(s.num_frames, lengths, s.loops, self.generation)

    def load(self, room: int) -> int:
        """Read the references, if they have at most `room` pixels; what is left of it. Raises MediaError."""
        size = self.settings.image_size
        room -= sum(map(len, self.used_frames)) * math.prod(size)
        if room >= 0:
            for reference, used in zip(self.references, self.used_frames, strict=True):
                reference.load(used, *size)
        return room


def plan(
    prompts: str | Iterable[str],
    references: Sequence[References] | None = None,
    mask_strategies: str | MaskStrategy | Sequence[str | MaskStrategy | None] | None = None,
    settings: Settings | Sequence[Settings] = Settings(),
    spec: ModelSpec = ModelSpec(),
) -> list[Job]:
    """The jobs of a request, in order: for each prompt `settings.num_sample` videos.

    Notes say what is lost of captions: what cleaning removes, and with `spec` what the model doesn't read or know.

    prompts: a prompt or a list of them, each possibly with a JSON suffix and a |0| schedule.
    references, mask_strategies: None, or one entry per prompt: the references of that prompt (None, a path, several
    paths joined by ";", or a list of paths, Videos or arrays) and its mask strategy (None, text or MaskStrategy).
    A prompt's JSON suffix takes precedence. settings: of all prompts, or a list with those of each. Raises an
    OpenSoraError for whatever cannot be done.
    """
    texts: tuple[str, ...] = check(Texts, prompts, "prompts", PromptError)
    if not texts:
        raise PromptError("no prompt was given")
    check(AnySpec, spec, "spec")
    chosen: Sequence[Settings] = [settings] * len(texts) if isinstance(settings, Settings) else settings
    chosen = check(SomeSettings, chosen, "settings")
    if len(chosen) != len(texts):
        raise OpenSoraError(f"{len(chosen)} settings for {len(texts)} prompts; give one, or a list with one for each")
    opened: dict[Any, Reference] = {}

    def open_once(source: ReferenceSource, fps: float | None) -> Reference:
        key = (str(source) if isinstance(source, (str, Path)) else id(source), fps)
        if key not in opened:
            opened[key] = open_reference(source, fps)
        return opened[key]

    jobs: list[Job] = []
    room = MAX_LOADED
    seeds = iter(_seeds(chosen))
    rows = (
        texts,
        _per_prompt(references, len(texts), "references"),
        _per_prompt(mask_strategies, len(texts), "strategies"),
        chosen,
    )
    for prompt, given, strategy, own in zip(*rows, strict=True):
        spec.check(own)
        text, suffix = split_prompt(prompt)
        captions = _read_captions(text, own.loops, spec, own)
        sources = _sources(suffix.get("reference_path", given))
        found = tuple(open_once(source, own.reference_rate) for source in sources)
        strategy = MaskStrategy.parse(suffix.get("mask_strategy", strategy))
        strategy, frames = _resolve(strategy, found, own, spec.generation)
        for sample in range(own.num_sample):
            jobs.append(Job(text, captions, found, frames, strategy, next(seeds), sample, own, spec.generation))
        room = jobs[-1].load(room)
    return jobs


def _read_captions(prompt: str, loops: int, spec: ModelSpec, settings: Settings) -> tuple[str, ...]:
    """Cleaned captions, one for each loop, with the scores of `settings`; Notes say what is lost.

    Raises PromptError.
    """
    captions = [with_scores(caption, **settings.scores) for caption in captions_per_loop(prompt, loops)]
    cleaned = {caption: cleaned_caption(caption) for caption in captions}
    for caption, clean in cleaned.items():
        if losses := spec.losses(caption, clean):
            note(f"caption {shown(caption)}: {'; '.join(losses)}")
    return tuple(cleaned[caption] for caption in captions)


def _seeds(settings: Sequence[Settings]) -> list[int]:
    """The seed of every video, in order; settings: of each prompt. Raises OpenSoraError for too few or many seeds."""
    videos, seeds = sum(s.num_sample for s in settings), list[int]()
    for i, s in enumerate(settings):
        first = len(seeds)
        for k in range(s.num_sample):
            if not isinstance(s.seed, tuple):
                seeds.append(s.seed + (k if s.same_seed else first + k))
            elif len(s.seed) == videos:
                seeds.append(s.seed[first + k])
            elif len(s.seed) == len(settings):
                seeds.append(s.seed[i] + k)
            else:
                raise OpenSoraError(
                    f"{len(s.seed)} seeds for {len(settings)} prompts with {videos} videos; give one seed, or a list"
                    " with one for each"
                )
    return seeds


def _per_prompt(values: Any, prompts: int, what: str) -> list:
    """One entry per prompt."""
    if values is None:
        return [None] * prompts
    values = values if isinstance(values, (list, tuple)) else [values]
    if len(values) != prompts:
        raise OpenSoraError(
            f"{len(values)} {what} for {prompts} prompts; give a list with one entry for each prompt, in the same"
            " order (several references of one prompt are a list, or paths joined by ;)"
        )
    return values


def _sources(given: Any) -> list[ReferenceSource]:
    """The references of one prompt."""
    if given is None:
        return []
    if isinstance(given, str):
        given = [path.strip() for path in given.split(";")]
    elif not isinstance(given, (list, tuple)):
        given = [given]
    if any(isinstance(source, str) and not source for source in given):
        raise OpenSoraError(f'a reference path is empty in "{";".join(map(str, given))}"; separate paths by one ; each')
    return [locate(source) if isinstance(source, str) else source for source in given]


def _resolve(
    strategy: MaskStrategy, references: Sequence[Reference], settings: Settings, generation: Generation
) -> tuple[MaskStrategy, tuple[tuple[Frame, ...], ...]]:
    """The strategy with the segments that continue loops, and its frames per loop.

    Raises MaskStrategyError where it does not fit, and for input that has no effect: a reference that no segment uses,
    a segment that later ones cover completely, an edit ratio below one step. A Note says what aligning moves in 1.2.
    """
    T, lengths = (
        generation.latent_frames(settings.num_frames),
        [generation.latent_frames(r.num_frames) for r in references],
    )
    steps, align = settings.num_sampling_steps, generation.align
    if references and not strategy.segments:
        raise MaskStrategyError(
            f"{len(references)} reference(s) were given, but no mask strategy says where they go;"
            ' "0" puts the first one on the first frame'
        )
    try:
        strategy.resolve(T, lengths, settings.loops, align)  # before the loops' own segments, for clearer errors
    except MaskStrategyError as error:
        hints = [
            f"; at {settings.video_fps:.4g} fps, the rate of the video, {r.name} has {r.num_frames} frames:"
            ' reference_fps="native" takes all of its own'
            for r in references
            if r.is_resampled
        ]
        raise MaskStrategyError("".join([str(error), *hints[:1]])) from None
    used = {segment.reference for segment in strategy.segments}
    for i, reference in enumerate(references):
        if i not in used:
            raise MaskStrategyError(
                f'no segment of "{strategy}" uses reference {i} ({reference.name}); leave it out, or add "0,{i},…"'
            )
    shift = generation.shift(settings.num_frames, settings.image_size) if generation.is_flow else 1.0
    for segment in strategy.segments:
        if segment.edit_ratio and not generation.edits(segment.edit_ratio, steps, shift):
            least = next(ratio for ratio in range(1, 1001) if generation.edits(ratio / 1000, steps, shift)) / 1000
            step = "the last" if generation.is_flow else "one"
            raise MaskStrategyError(
                f'edit ratio {segment.edit_ratio:g} in "{strategy}" is less than {step} of {steps} steps'
                f" and would edit nothing: use 0, or at least {least:g}"
            )
    taken_over = generation.latent_frames(settings.condition_frames or 0)
    continued = strategy.continued(settings.loops, taken_over, len(references))
    frames = tuple(continued.resolve(T, lengths, settings.loops, align))
    for index, segment in enumerate(strategy.segments):
        if index not in {frame.segment for frame in frames[segment.loop]}:
            raise MaskStrategyError(
                f'nothing is left of segment {index + 1} of "{strategy}": later segments, or the frames that a loop'
                " takes over, cover all of it; leave it out, or move it"
            )
    pictures = [reference.num_frames for reference in references]
    for loop in range(settings.loops):
        clips = [*pictures, *[settings.num_frames] * loop]
        for moved in strategy.moves(settings.num_frames, clips, loop, generation):
            note(f"mask strategy: {moved}; the VAE of this model encodes chunks of {generation.chunk} frames")
    return continued, frames


def captions_of(
    prompts: Sequence[str], loops: int = 1, spec: ModelSpec = ModelSpec(), settings: Settings = Settings()
) -> list[str]:
    """The cleaned captions of `prompts` for videos with `loops` loops, without repetitions; Notes as in `plan`.

    settings: for their scores (aes, flow, camera_motion).

    Raises PromptError.

    >>> captions_of(["|0|A car|1|A boat", 'A car.{"mask_strategy": "0", "reference_path": "a.png"}'], loops=2)
    ['a car', 'a boat', 'a car.']
    """
    prompts = check(Texts, prompts, "prompts", PromptError)
    if not prompts:
        raise PromptError("no prompt was given")
    return list(
        dict.fromkeys(c for prompt in prompts for c in _read_captions(split_prompt(prompt)[0], loops, spec, settings))
    )
