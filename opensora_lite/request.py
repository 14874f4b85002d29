"""A request: Settings, and `plan`, which turns prompts, references and strategies into checked Jobs without a model."""

import math
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from opensora_lite.errors import CheckpointError, MaskStrategyError, OpenSoraError, PromptError, SizeError, shown
from opensora_lite.io.checkpoints import read_json
from opensora_lite.masks import MAX_FRAMES, MAX_LOOPS, MaskStrategy, start_steps
from opensora_lite.prompts import prompts_per_loop, split_prompt
from opensora_lite.video import MAX_PIXELS, ReferenceSource, count_frames

WEIGHTS = Path(__file__).parent / "weights"
PIXELS_PER_LATENT = 8  # along each side; of the VAE that Open-Sora 1.1 was trained with
SAMPLER_NAMES = ("iddpm", "ddim", "dpm-solver")
MAX_AREA = MAX_PIXELS // 4  # pixels of one frame; of a larger one `Video.save` could not read back what it wrote
BOUNDS = {  # of whole numbers in Settings; beyond the upper ones nobody goes on purpose
    "num_frames": (1, MAX_FRAMES),
    "fps": (1, 1000),  # as many as a Video can have
    "frame_interval": (1, 1000),
    "num_sampling_steps": (2, math.inf),
    "loops": (1, MAX_LOOPS),
    "seed": (0, 2**63 - 1),
    "batch_size": (1, 10_000),
    "num_sample": (1, 10_000),
}

References = ReferenceSource | Sequence[ReferenceSource] | None  # those of one prompt; a str can be paths joined by ";"

# ---------------------------------------------------------------------------------------------------------------------
#   What is asked for
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What holds for all videos of a request; the defaults are those of the released 1.1 weights.

    Raises an OpenSoraError for values that no run can use.
    """

    num_frames: int = 16  # T, of one loop
    image_size: tuple[int, int] = (256, 256)  # height, width in pixels
    fps: int = 24  # what the model is told; the video plays at fps // frame_interval
    frame_interval: int = 3  # the model was trained on every third frame
    sampler: str = "iddpm"  # or "ddim", "dpm-solver"
    num_sampling_steps: int = 100
    guidance_scale: float = 7.0  # 1: without guidance, in half the time
    guidance_interval: tuple[int, int] | None = None  # first and last time (0 … 999) with guidance; None: always
    cache_threshold: float = (
        0.0  # how far the model's input may move before it is asked again (`Guidance`); 0: every step
    )
    cfg_channel: int | None = 3  # latent channels that are guided, counted from the first; None: all
    loops: int = 1  # how often the video is continued, the first time included
    condition_frames: int | None = None  # frames that a loop takes over from the one before
    seed: int = 42  # the i-th video is made with seed + i
    batch_size: int = 1  # videos that are made at once; changes time and memory, not the videos
    num_sample: int = 1  # videos for each prompt

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            error = SizeError if name == "num_frames" else OpenSoraError
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise error(f"{name} must be a whole number of at least {least}, not {shown(value)}")
            if int(value) > most:
                raise error(f"{name} must be at most {most}, not {shown(value)}")
        object.__setattr__(self, "image_size", check_size(self.image_size))
        if self.num_sampling_steps > 1000:
            raise OpenSoraError(
                f"num_sampling_steps is {shown(self.num_sampling_steps)}; the model knows 1000 times, give 2 to 1000"
            )
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLER_NAMES:
            raise OpenSoraError(f'sampler "{self.sampler}" is unknown; give one of {", ".join(SAMPLER_NAMES)}')
        scale = self.guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, Real) or not abs(scale) <= 1000:  # also where it is nan
            raise OpenSoraError(f"guidance_scale must be a number such as 4.0, not {shown(scale)}")
        if (
            isinstance(self.cache_threshold, bool)
            or not isinstance(self.cache_threshold, Real)
            or not 0 <= self.cache_threshold <= 10
        ):
            raise OpenSoraError(
                f"cache_threshold must be a number from 0 (off) on, such as 0.1, not {shown(self.cache_threshold)}"
            )
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        if self.cfg_channel is not None and (type(self.cfg_channel) is not int or not 1 <= self.cfg_channel <= 4):
            raise OpenSoraError(
                f"cfg_channel is {shown(self.cfg_channel)}; latents have 4 channels: give 1 to 4, or None for all"
            )
        n, c = self.num_frames, self.condition_frames
        if self.loops == 1 and c is not None:
            raise OpenSoraError(
                f"condition_frames is {shown(c)}, but with one loop nothing is taken over; ask for more loops"
            )
        if self.loops > 1 and n == 1:
            raise OpenSoraError(f"{self.loops} loops need at least 2 frames: some to take over, and some to add")
        if self.loops > 1 and c is None:
            raise OpenSoraError(
                f"{self.loops} loops need condition_frames: how many frames each loop takes over from the one before;"
                f" condition_frames={max(n // 4, 1)} would be a quarter of them"
            )
        if self.loops > 1 and (isinstance(c, bool) or not isinstance(c, Integral) or not 1 <= c < n):
            raise OpenSoraError(f"condition_frames is {shown(c)}, but a loop has {n} frames: give 1 to {n - 1}")

    @property
    def video_fps(self) -> int:
        """Frames per second at which a finished video plays."""
        return max(self.fps // self.frame_interval, 1)

    @property
    def total_frames(self) -> int:
        """Frames of a finished video: every loop but the first adds those that it does not take over."""
        return self.num_frames + (self.loops - 1) * (self.num_frames - (self.condition_frames or 0))


def _interval(given: Any) -> tuple[int, int]:
    try:
        first, last = (operator.index(t) for t in given)
    except (TypeError, ValueError):
        raise OpenSoraError(f"guidance_interval must be two whole numbers, not {shown(given)}") from None
    if not 0 <= first <= last <= 999:
        raise OpenSoraError(
            f"guidance_interval is {shown(first)} to {shown(last)}; give the first and the last time with guidance,"
            " between 0 (the video) and 999 (noise)"
        )
    return first, last


def check_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of `image_size`, pixels; one number is a square.

    Raises a SizeError that names the nearest sizes that work.

    >>> check_size(64), check_size([48, 80])
    ((64, 64), (48, 80))
    """
    sides: Any = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    try:
        height, width = (operator.index(n) for n in sides)
    except (TypeError, ValueError):
        raise SizeError(f"image_size must be two whole numbers, height and width, not {shown(image_size)}") from None
    above = [max(-(-side // PIXELS_PER_LATENT), 1) * PIXELS_PER_LATENT for side in (height, width)]
    if math.prod(above) > MAX_AREA:
        raise SizeError(
            f"image_size {shown(height)}×{shown(width)} is more than {MAX_AREA / 1e6:g} megapixels; make it smaller"
        )
    for name, size in (("height", height), ("width", width)):
        if size % PIXELS_PER_LATENT or size < PIXELS_PER_LATENT:
            below = size // PIXELS_PER_LATENT * PIXELS_PER_LATENT
            nearest = [n for n in (below, below + PIXELS_PER_LATENT) if n >= PIXELS_PER_LATENT] or [PIXELS_PER_LATENT]
            raise SizeError(
                f"{name} {shown(size)} is not a multiple of {PIXELS_PER_LATENT}, the pixels that one latent stands for;"
                f" the nearest that work: {' and '.join(map(shown, nearest))}"
            )
    return height, width


@dataclass(frozen=True)
class Job:
    """One video to be made, checked."""

    prompt: str  # as given, without its JSON suffix
    captions: tuple[str, ...]  # cleaned, one for each loop
    references: tuple[ReferenceSource, ...]  # paths, Videos or arrays
    strategy: MaskStrategy  # with the frames that loops take over
    seed: int
    sample: int  # 0 … num_sample - 1: which of the videos of its prompt


def plan(
    prompts: str | Iterable[str],
    references: Sequence[References] | None = None,
    mask_strategies: str | MaskStrategy | Sequence[str | MaskStrategy | None] | None = None,
    settings: Settings = Settings(),
) -> list[Job]:
    """The jobs of a request, in order: for each prompt `settings.num_sample` videos.

    prompts: a prompt or a list of them, each possibly with a JSON suffix and a |0| schedule.
    references, mask_strategies: None, or one entry a prompt: the references of that prompt (None, a path, several
    paths joined by ";", or a list of paths, Videos or arrays) and its mask strategy (None, text or MaskStrategy).
    What the JSON suffix of a prompt says comes first. Raises an OpenSoraError for whatever cannot be done.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise PromptError("no prompt was given")
    given_references = _one_each(references, prompts, "references")
    strategies = _one_each(mask_strategies, prompts, "mask strategies")
    jobs: list[Job] = []
    for prompt, given, strategy in zip(prompts, given_references, strategies, strict=True):
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is text, not {type(prompt).__name__}")
        text, info = split_prompt(prompt)
        captions = tuple(prompts_per_loop(text, settings.loops))
        given = _as_references(info.get("reference_path", given))
        strategy = _checked_strategy(MaskStrategy.parse(info.get("mask_strategy", strategy)), given, settings)
        for sample in range(settings.num_sample):
            jobs.append(Job(text, captions, given, strategy, settings.seed + len(jobs), sample))
    return jobs


def _one_each(values: Any, prompts: list[str], what: str) -> list:
    if values is None:
        return [None] * len(prompts)
    values = [values] if isinstance(values, (str, MaskStrategy)) else list(values)
    if len(values) != len(prompts):
        raise OpenSoraError(
            f"{len(values)} {what} were given for {len(prompts)} prompts; give one for each prompt,"
            " in the same order (several references of one prompt are joined by ;)"
        )
    return values


def _as_references(given: Any) -> tuple[ReferenceSource, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        given = given.split(";")
    elif not isinstance(given, (list, tuple)):
        given = [given]
    references = tuple(r.strip() if isinstance(r, str) else r for r in given)
    if any(isinstance(r, str) and not r for r in references):
        raise OpenSoraError(
            f'a reference path is empty in "{";".join(map(str, references))}"; paths are joined by single ;'
        )
    return references


def _checked_strategy(
    strategy: MaskStrategy, references: tuple[ReferenceSource, ...], settings: Settings
) -> MaskStrategy:
    """The strategy with the segments that continue loops, or an error where it does not fit its references."""
    lengths = [count_frames(reference) for reference in references]
    if references and not strategy.segments:
        raise MaskStrategyError(
            f"{len(references)} reference(s) were given, but no mask strategy says where they go;"
            ' "0" puts the first one on the first frame'
        )
    strategy.check(settings.num_frames, lengths, settings.loops)
    unused = set(range(len(references))) - {segment.reference for segment in strategy.segments}
    if unused:
        names = ", ".join(
            f"{i} ({r if isinstance(r, (str, Path)) else type(r).__name__})"
            for i, r in enumerate(references)
            if i in unused
        )
        raise MaskStrategyError(
            f'no segment of "{strategy}" uses reference {names}; leave it out, or add a segment "0,{min(unused)},…"'
        )
    steps = settings.num_sampling_steps
    for segment in strategy.segments:
        if segment.edit_ratio and start_steps(segment.edit_ratio, steps) == 0:  # where a kept frame joins
            least = math.ceil(1000 / steps) / 1000
            raise MaskStrategyError(
                f'edit ratio {segment.edit_ratio:g} in "{strategy}" is less than one of {steps} steps'
                f" and would keep the frames: use 0 to keep them, or at least {least:g}"
            )
    continued = strategy.continued(settings.loops, settings.condition_frames or 0, len(references))
    for loop in {segment.loop for segment in strategy.segments}:
        timeline = continued.timeline(settings.num_frames, [*lengths, *[settings.num_frames] * loop], loop)
        left = {frame.segment for frame in timeline}
        for index, segment in enumerate(strategy.segments):
            if segment.loop == loop and index not in left:
                raise MaskStrategyError(
                    f'nothing is left of segment {index + 1} of "{strategy}": segments after it win,'
                    " and so do the frames that a loop takes over; leave it out, or move it"
                )
    return continued


def model_defaults(model: str | Path = "tiny") -> tuple[Settings, list[tuple[int, int]]]:
    """The Settings that a model was made for, and the image sizes it was trained on (empty: any).

    model: as in `model_folder`. Read from `pipeline.json` there; without one, the defaults of the released weights.
    Raises CheckpointError.
    """
    path = model_folder(model) / "pipeline.json"
    if not os.path.lexists(path):
        return Settings(), []
    values = read_json(path)
    try:
        sizes = [check_size(size) for size in values.pop("trained_sizes", [])]
        return Settings(**values), sizes
    except (ValueError, TypeError) as error:  # OpenSoraErrors are ValueErrors
        raise CheckpointError(
            f"{path} cannot be read ({error}); its fields are {', '.join(f.name for f in fields(Settings))}"
        ) from error


def model_folder(model: str | Path) -> Path:
    """The folder of a model: "tiny", which ships with the package, or a folder with stdit/, t5/ and vae/.

    Raises CheckpointError where there is none.
    """
    folder = WEIGHTS / "tiny" if model == "tiny" else Path(model)
    if not str(model) or not os.path.isdir(folder):  # Path.is_dir() fails where a name is too long
        raise CheckpointError(
            f'model "{model}" is neither "tiny" nor a folder with stdit/, t5/ and vae/;'
            " nothing is downloaded: fetch the weights first and give their folders"
        )
    return folder


def captions_of(prompts: Sequence[str], loops: int = 1) -> list[str]:
    """The cleaned captions of `prompts` for videos of so many `loops`, each once. Raises PromptError.

    >>> captions_of(["|0|A car|1|A boat", 'A car.{"mask_strategy": "0", "reference_path": "a.png"}'], loops=2)
    ['a car', 'a boat', 'a car.']
    """
    if not prompts:
        raise PromptError("no prompt was given")
    return list(dict.fromkeys(c for prompt in prompts for c in prompts_per_loop(split_prompt(prompt)[0], loops)))
