"""Evaluation: fixed prompts, references and seeds, scored by `describe`.

    report = evaluate(OpenSora.from_pretrained("tiny"))
    print(report.table())
    save(report, "evaluation")        # report.json, and sheet.png for visual inspection

LiteWorld's captions are exactly true of its clips, so every attribute of a generated clip can be checked:

prompt      The share of clips with the right place, time, subject (none, if the prompt names none), color and
            direction, among the prompts that name it; and the share with all of these right.
motion      The share of sunrises that rise and sunsets that set, and of subjects that move left and right as prompted;
            `steady` is the share of frames in which the subject is there, has the prompted color, and is one piece.
            Open-Sora 1.2: `camera` and `speed` are the shares of clips with the prompted camera motion, and with the
            prompted motion score (of LiteWorld's three the nearest).
image …     For each task with references: PSNR of conditioning frames against the VAE's reconstruction of them, mean
            and minimum, and the share of clips with all attributes right. Edited frames are meant to change; their
            PSNR is called `edited`, and `time` is the share of clips that show the requested other time.
vae         PSNR of reconstructions for the requested image size and two others of about its area.
frechet     Fréchet distance between generated and LiteWorld clips, sensitive to what single clips don't show.

Each score stands beside `rendered`, that of LiteWorld's own clips. For shares these are clips of the same scenes after
a round trip through the VAE, an upper bound for models with this VAE. For the Fréchet distance they are clips of the
same captions with other layouts, an estimate of its noise floor at this sample size.

The features of the Fréchet distance are the means of the VAE's posterior of a frame, averaged over a grid of 4×4 cells:
64 values for 4 channels, at every image size. 100 clips of similar frames determine a 64×64 covariance, but not that of
all 256 values of a frame: there the noise floor is so high that a blur of 1.5 pixels adds 5 % to it, here 41 %.
`motion` uses differences of successive frames; a blur multiplies it by 4, still frames by 30. It does not see the
direction of time, nor do the colors of single subjects matter much. Distances of different VAEs are not comparable.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from opensora_lite.errors import OpenSoraError
from opensora_lite.generations import FLOW_SAMPLERS, OPEN_SORA_11, Generation
from opensora_lite.io.files import check_writable, write_json
from opensora_lite.liteworld.describe import (
    SMALLEST,
    Description,
    camera_motion,
    describe,
    motion_score,
    steady_frames,
    sun_motion,
)
from opensora_lite.liteworld.world import (
    CAMERA_MOTIONS,
    COLORS,
    DIRECTIONS,
    HELD_OUT,
    MOTION_SCORES,
    PLACES,
    SUBJECTS,
    TIMES,
    Scene,
    Time,
    caption,
    possible_scores,
    render,
    sample_layout,
    sample_scene,
    sample_shot,
    sample_shot_layout,
    score_suffix,
)
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import PIXELS_PER_LATENT, Job, ModelSpec, Settings, plan
from opensora_lite.validation import Whole, check, validated
from opensora_lite.video import Video, check_target

PROMPTS = 100
RUNS = 8
TASKS = ("image", "connect", "extend", "prepend", "edit")  # the tasks with references
EDIT_RATIO = 0.4
Prompts, Runs = Annotated[Whole, Field(ge=1, le=PROMPTS)], Annotated[Whole, Field(ge=0, le=PROMPTS)]
ATTRIBUTES = ("place", "time", "subject", "color", "direction")
MOTIONS = ("sun rises", "sun sinks", "goes left", "goes right")
SHOT_MOTIONS = ("camera", "speed")  # of Open-Sora 1.2, whose prompts name them
FLOW_STEPS = 12  # of Open-Sora 1.2
SUN_SPEED = 0.014  # heights per frame at 24 fps; a quarter of it counts as motion
CELLS = 4  # per side of a frame, for the features of the Fréchet distance
VAE_CLIPS = 40

# First seeds; the layouts of the prompts' scenes have seeds from HELD_OUT, which training doesn't use.
OTHER_LAYOUTS = HELD_OUT + 1_000  # the prompts' scenes with other layouts
REFERENCES = HELD_OUT + 2_000  # clips that the tasks take their references from
PICTURES = HELD_OUT + 3_000  # clips that the VAE reconstructs

# ----------------------------------------------------------------------------------------------------------------------
# Prompts and tasks
# ----------------------------------------------------------------------------------------------------------------------


def is_of_shots(settings: Settings) -> bool:
    """Whether these are settings of Open-Sora 1.2, whose prompts also say how the camera and the subject move."""
    return settings.sampler in FLOW_SAMPLERS


def scenes(prompts: int = PROMPTS, settings: Settings = Settings()) -> list[Scene]:
    """The first of 100 different scenes without layouts; their full captions are the prompts.

    Balanced by design: 25 of each place, 20 of each time, 22 of each subject and 12 without one; of those with one,
    44 of each direction and 14 to 16 of each color. Pairs are balanced too, and so is every run of the list. With
    `settings` of Open-Sora 1.2 they are shots: 20 of each camera motion, and motion scores that their length allows.
    """
    found = [_scene(i) for i in range(prompts)]
    if not is_of_shots(settings):
        return found
    scores = possible_scores(settings.num_frames, settings.video_fps)
    return [
        replace(
            scene,
            camera=CAMERA_MOTIONS[(i + i // 20) % 5],  # 20 scenes are all pairs of place and time
            motion_score=scores[(i + i // 9) % len(scores)] if scene.subject else None,
        )
        for i, scene in enumerate(found)
    ]


def prompt_of(scene: Scene, settings: Settings) -> str:
    """The prompt of a scene: its caption, for Open-Sora 1.2 with its motion score and camera motion."""
    return caption(scene) + (score_suffix(scene) if is_of_shots(settings) else "")


def _sampled(seed: int, settings: Settings) -> Scene:
    """A random scene, of Open-Sora 1.2 a shot."""
    rng = np.random.default_rng(seed)
    return sample_shot(rng, settings.num_frames, settings.video_fps) if is_of_shots(settings) else sample_scene(rng)


def _scene(i: int) -> Scene:
    place, time = PLACES[i % len(PLACES)], TIMES[i % len(TIMES)]  # 4 and 5 have no common divisor: all 20 pairs
    if i % 9 == 0:
        return Scene(place, time)
    row, column = divmod(i - i // 9 - 1, len(SUBJECTS))  # in a table of the scenes with subjects
    color = tuple(COLORS)[(row + column) % len(COLORS)]
    direction = DIRECTIONS[(row + row // len(COLORS) + column) % 2]  # swapped when the colors repeat
    return Scene(place, time, SUBJECTS[column], color, direction)


def _drawn(scene: Scene, seed: int, settings: Settings) -> np.ndarray:
    """A rendered clip of a scene, with the layout of a seed: uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    if is_of_shots(settings):
        scene = sample_shot_layout(scene, rng, settings.num_frames, settings.video_fps)
    else:
        scene = sample_layout(scene, rng)
    return render(scene, settings.num_frames, *settings.image_size, fps=settings.video_fps)


@dataclass(frozen=True, eq=False)
class Request:
    """The input of one generated video."""

    scene: Scene  # its caption is the prompt
    references: tuple[np.ndarray, ...] = ()
    strategy: MaskStrategy | None = None


def tasks_of(generation: Generation) -> tuple[str, ...]:
    """The tasks with references; in Open-Sora 1.2, segments begin with a chunk, and none stands at the end of one."""
    return TASKS if generation.align is None else tuple(task for task in TASKS if task != "prepend")


def _request(task: str, i: int, settings: Settings, generation: Generation = OPEN_SORA_11) -> Request:
    """Run i of a task; the references of all tasks are parts of the same clip."""
    scene = _sampled(REFERENCES + i, settings)
    clip = render(scene, settings.num_frames, *settings.image_size, fps=settings.video_fps)
    if task == "image":
        return Request(scene, (clip[:1],), MaskStrategy.image())
    if task == "connect":
        return Request(scene, (clip[:1], clip[-1:]), MaskStrategy.connect())
    if task in ("extend", "prepend"):  # the clip goes on, or what came before it is generated
        windows = generation.windows(settings.num_frames)
        count = max(1, round(len(windows) * 6 / 16))  # of the frames that a strategy counts
        given = windows[count - 1].last + 1
        strategy = MaskStrategy.extend if task == "extend" else MaskStrategy.prepend
        return Request(scene, (clip[:given],), strategy(count))
    other_time: Time = "noon" if scene.time == "cyberpunk" else "cyberpunk"
    return Request(replace(scene, time=other_time), (clip,), MaskStrategy.edit(EDIT_RATIO))


def check_request(settings: Settings, prompts: int = PROMPTS, runs: int = RUNS) -> None:
    """Raise OpenSoraError for arguments that can't be evaluated; needs no model."""
    check(Prompts, prompts, "prompts")
    check(Runs, runs, "runs")
    if settings.loops > 1 or settings.num_sample > 1:
        raise OpenSoraError("an evaluation makes one video of one loop per prompt; leave out loops and num_sample")
    if min(settings.image_size) < SMALLEST:
        raise OpenSoraError(f"subjects can't be recognized: both sides of image_size must be at least {SMALLEST}")
    if settings.num_frames < 2:
        raise OpenSoraError("an evaluation measures motion: num_frames must be at least 2")
    if runs and settings.num_sampling_steps < 3:
        raise OpenSoraError(
            f"edits use {EDIT_RATIO:.0%} of the steps: num_sampling_steps must be at least 3, or runs 0"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Measurements
# ----------------------------------------------------------------------------------------------------------------------


def verdict(
    scene: Scene, frames: np.ndarray, fps: float = 24, is_shot: bool = False
) -> tuple[Description, dict[str, bool]]:
    """The description of frames uint8 [T, H, W, 3], and whether each of ATTRIBUTES, "together" and MOTIONS is right.

    Only what the scene's caption names has an entry. is_shot: whether the caption has scores; then also SHOT_MOTIONS.
    """
    seen = describe(frames)
    named = ATTRIBUTES if scene.subject else ATTRIBUTES[:3]
    right = {name: getattr(seen, name) == getattr(scene, name) for name in named}
    right["together"] = all(right.values())
    if scene.subject:
        right[f"goes {scene.direction}"] = right["direction"]
    if scene.time in ("sunrise", "sunset"):
        name, sign = ("sun rises", 1) if scene.time == "sunrise" else ("sun sinks", -1)
        motion = sun_motion(frames)
        right[name] = motion is not None and sign * motion > SUN_SPEED * 24 / fps / 4
    if is_shot:
        right["camera"] = camera_motion(frames) == scene.camera
        if scene.motion_score:
            score = motion_score(frames, fps)
            speeds = [] if score is None else sorted(MOTION_SCORES, key=lambda known: abs(known - score))
            right["speed"] = speeds[:1] == [scene.motion_score]
    return seen, right


def steadiness(scene: Scene, frames: np.ndarray) -> float | None:
    """The share of frames without flicker (`steady_frames`) in a clip of a scene; None without a subject."""
    if scene.subject is None:
        return None
    steady = steady_frames(frames, scene.color)
    return 0.0 if steady is None else float(steady.mean())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of one shape; at most 100."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(min(10 * np.log10(255**2 / error), 100)) if error else 100.0


def features(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, D] and their differences [T - 1, D] of latents [C, T, h, w], averaged over cells; D = 16 C."""
    for axis in (2, 3):
        cells = np.array_split(latents, min(CELLS, latents.shape[axis]), axis)
        latents = np.concatenate([cell.mean(axis, keepdims=True) for cell in cells], axis)
    frames = latents.transpose(1, 0, 2, 3).reshape(latents.shape[1], -1).astype(np.float64)
    return frames, np.diff(frames, axis=0)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features [N, D] and [M, D] (arXiv:1706.08500), in their squared units.

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½)
    """
    covariances = [np.cov(values, rowvar=False, bias=True).reshape(values.shape[1], -1) for values in (x, y)]
    variances, axes = np.linalg.eigh(covariances[0])
    root = axes * np.sqrt(variances.clip(0)) @ axes.T
    # C₁C₂ has the eigenvalues of the symmetric C₁^½ C₂ C₁^½, which are real also after rounding
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    means = np.sum((x.mean(0) - y.mean(0)) ** 2)
    return float(max(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared, 0))


# ----------------------------------------------------------------------------------------------------------------------
# The report
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clip:
    """A generated video and its measurements."""

    task: str  # "text", or one of TASKS
    scene: Scene  # its caption was the prompt
    frames: np.ndarray  # uint8 [T, H, W, 3]
    seen: Description
    right: dict[str, bool]
    steady: float | None  # share of the frames without flicker; None where no subject was prompted
    given_db: tuple[float, ...]  # PSNR of each conditioning or edited frame against the VAE's reconstruction


@validated()
class Score:
    """One score of a report."""

    value: float | None  # None where no prompt names what it measures
    rendered: float | None  # of LiteWorld's own clips
    count: Whole  # clips (dB: frames) that it is the mean of
    unit: Literal["share", "dB", "distance"]  # a share is 0 … 1

    def format(self, value: float | None) -> str:
        """A value in this score's unit as text: "93 %", "31.4 dB", "0.125", or "–" for None."""
        if value is None:
            return "–"
        return {"share": f"{100 * value:.0f} %", "dB": f"{value:.1f} dB", "distance": f"{value:.3f}"}[self.unit]


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`."""

    model: str
    settings: dict  # fields of request.Settings
    prompts: int
    runs: int
    scores: dict[str, Score]  # by name, such as "prompt.color"
    clips: tuple[Clip, ...] = field(default=(), compare=False, repr=False)  # not in report.json

    def to_dict(self) -> dict:
        """The report as JSON values: the content of report.json."""
        return {**asdict(replace(self, clips=())), "clips": len(self.clips)}

    @classmethod
    def read(cls, path: str | Path) -> "Report":
        """The report of a report.json; it has no clips. Raises OpenSoraError."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            scores = {name: Score(**score) for name, score in values["scores"].items()}
            report = cls(values["model"], values["settings"], values["prompts"], values["runs"], scores)
            report.table()  # needs some of the settings
            return report
        except OSError as error:
            raise OpenSoraError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OpenSoraError(f"{path} is not a report of `opensora-lite evaluate --out FOLDER`") from error

    @property
    def heading(self) -> str:
        """Model, number of prompts and settings in one line."""
        s = self.settings
        height, width = s["image_size"]
        return (
            f"{self.model}: {self.prompts} prompts, each task {self.runs} times; {s['num_frames']}×{height}×{width}"
            f" at {s['fps']} fps, {s['sampler']}, {s['num_sampling_steps']} steps, guidance {s['guidance_scale']:g},"
            f" seed {s['seed']}"
        )

    def table(self) -> str:
        """All scores as text; `rendered` is the upper bound of shares and the lower bound of distances."""
        rows = [
            (name, score.format(score.value), score.format(score.rendered), str(score.count))
            for name, score in self.scores.items()
        ]
        return "\n".join([self.heading, *_columns(("", "model", "rendered", "of"), rows)])


def compare(before: Report, after: Report) -> str:
    """Two reports side by side, as text."""
    rows = []
    for name, score in {**before.scores, **after.scores}.items():
        old, new = (report.scores[name].value if name in report.scores else None for report in (before, after))
        change = "–" if old is None or new is None else ("+" if new >= old else "-") + score.format(abs(new - old))
        rows.append((name, score.format(old), score.format(new), change))
    heading = [f"before  {before.heading}", f"after   {after.heading}"]
    return "\n".join([*heading, *_columns(("", "before", "after", "change"), rows)])


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; names "part.name" of the first column become two columns, and a part is written once."""
    lines, above = ["{:25}{:>11}{:>11}{:>9}".format(*head)], None
    for name, *cells in rows:
        part, _, name = name.partition(".")
        lines.append("{:9}{:16}{:>11}{:>11}{:>9}".format("" if part == above else part, name, *cells))
        above = part
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation
# ----------------------------------------------------------------------------------------------------------------------


def evaluate(
    pipe, prompts: int = PROMPTS, runs: int = RUNS, *, on_progress: Callable[[int, int], None] | None = None, **settings
) -> Report:
    """Evaluate a model. Deterministic: a model has one report.

    pipe: an OpenSora. prompts: the first so many of the 100. runs: of each of the five tasks with references; 0: none.
    on_progress: called with the work done and the total, in denoising steps of a batch and clips through the VAE,
    which take about equally long. settings: fields of `Settings`, which replace the model's defaults; batch_size is 4
    by default, and num_sampling_steps of Open-Sora 1.2 is 12. Prompt i, and run i of a task, use seed + i.
    Raises OpenSoraError before work starts. The small model takes about ten minutes on one core.
    """
    steps = {"num_sampling_steps": FLOW_STEPS} if is_of_shots(pipe.settings) else {}
    chosen = replace(pipe.settings, **{"batch_size": 4, **steps, **settings})
    check_request(chosen, prompts, runs)
    generation, motions = pipe.spec.generation, MOTIONS + SHOT_MOTIONS * is_of_shots(chosen)
    wanted, names, tried = scenes(prompts, chosen), tasks_of(generation) if runs else (), min(prompts, VAE_CLIPS)
    batches = -(-prompts // chosen.batch_size) + len(names) * -(-runs // chosen.batch_size)
    total = batches * chosen.num_sampling_steps + 3 * prompts + tried * len(_vae_sizes(chosen))
    done = count(1)

    def tick(_=None):
        if on_progress:
            on_progress(next(done), total)

    text = _make(pipe, "text", [Request(scene) for scene in wanted], chosen, tick)
    tasks = {
        task: _make(pipe, task, [_request(task, i, chosen, generation) for i in range(runs)], chosen, tick)
        for task in names
    }

    # rendered clips: after a round trip through the VAE for the shares, as rendered for the distances
    ideal, ideal_steady, drawn, other, made = [], [], [], [], []
    for i, (scene, clip) in enumerate(zip(wanted, text, strict=True)):
        latents = pipe.encode(_drawn(scene, HELD_OUT + i, chosen))
        again = pipe.decode(latents, chosen.num_frames)
        ideal.append(verdict(scene, again, chosen.video_fps, is_of_shots(chosen))[1])
        ideal_steady.append(steadiness(scene, again))
        drawn.append(features(latents))
        tick()
        other.append(features(pipe.encode(_drawn(scene, OTHER_LAYOUTS + i, chosen))))
        tick()
        made.append(features(pipe.encode(clip.frames)))
        tick()

    right = [clip.right for clip in text]
    scores = {f"prompt.{name}": _share(name, right, ideal) for name in (*ATTRIBUTES, "together")}
    scores |= {f"motion.{name}": _share(name, right, ideal) for name in motions}
    scores["motion.steady"] = _mean_share([clip.steady for clip in text], ideal_steady)
    scores["text.kept"] = Score(None, None, 0, "dB")
    for task, clips in tasks.items():
        scores |= _task_scores(task, clips)
    scores |= _reconstructions(pipe, tried, chosen, tick)
    scores |= _distances(made, drawn, other)
    used = json.loads(json.dumps(asdict(chosen)))
    everything = (*text, *(clip for clips in tasks.values() for clip in clips))
    return Report("", used, int(prompts), int(runs), scores, everything)


def _make(pipe, task: str, requests: list[Request], settings: Settings, on_step: Callable) -> list[Clip]:
    jobs = plan(
        [prompt_of(request.scene, settings) for request in requests],
        [list(request.references) or None for request in requests],
        [request.strategy for request in requests],
        settings,
        ModelSpec(generation=pipe.spec.generation),
    )
    clips = []
    for request, (job, video) in zip(requests, pipe.generate(jobs, settings, on_step), strict=True):
        seen, right = verdict(request.scene, video.frames, settings.video_fps, is_of_shots(settings))
        best = [pipe.decode(pipe.encode(reference), len(reference)) for reference in request.references]
        given = [psnr(video.frames[t], best[r][i]) for t, r, i in _given_frames(job, len(video.frames), best)]
        steady = steadiness(request.scene, video.frames)
        clips.append(Clip(task, request.scene, video.frames, seen, right, steady, tuple(given)))
    return clips


def _share(name: str, right: Sequence[dict], ideal: Sequence[dict] = ()) -> Score:
    return _mean_share([found.get(name) for found in right], [found.get(name) for found in ideal])


def _mean_share(right: Sequence[float | None], ideal: Sequence[float | None]) -> Score:
    values, best = ([value for value in side if value is not None] for side in (right, ideal))
    value, rendered = (float(np.mean(side)) if side else None for side in (values, best))
    return Score(value, rendered, len(values), "share")


def _decibels(values: list[float]) -> Score:
    return Score(float(np.mean(values)), None, len(values), "dB")


def _task_scores(task: str, clips: list[Clip]) -> dict[str, Score]:
    given, right = [db for clip in clips for db in clip.given_db], [clip.right for clip in clips]
    if task == "edit":
        scores = {"edited": _decibels(given), "time": _share("time", right)}
    else:
        scores = {"kept": _decibels(given), "worst": Score(min(given), None, len(given), "dB")}
    scores["together"] = _share("together", right)
    return {f"{task}.{name}": score for name, score in scores.items()}


def _vae_sizes(settings: Settings) -> list[tuple[int, int]]:
    """The image size and a wide and a tall one of about its area, as in 64×64, 48×80 and 80×48.

    Of Open-Sora 1.2 also the one with twice the sides.
    """

    def scaled(n, ratio):
        return max(1, round(n * ratio / PIXELS_PER_LATENT)) * PIXELS_PER_LATENT

    height, width = settings.image_size
    ratios = ((1, 1), (0.75, 1.25), (1.25, 0.75), *[(2, 2)] * is_of_shots(settings))
    return list(dict.fromkeys((scaled(height, down), scaled(width, across)) for down, across in ratios))


def _given_frames(job: Job, num_frames: int, references: list) -> Iterator[tuple[int, int, int]]:
    """(frame of the video, reference, frame of the reference) for all that a video of one loop is given."""
    windows = job.generation.windows(num_frames)
    for latent, source in enumerate(job.frames[0]):
        if source.reference is not None:
            here, there = windows[latent], job.generation.windows(len(references[source.reference]))[source.frame or 0]
            # both end together; a latent frame of 1.2 holds one to four frames
            for back in range(min(here.last - here.first, there.last - there.first) + 1):
                yield here.last - back, source.reference, there.last - back


def _reconstructions(pipe, clips: int, settings: Settings, tick: Callable) -> dict[str, Score]:
    scores = {}
    for size in _vae_sizes(settings):
        db = []
        for i in range(clips):
            scene = _sampled(PICTURES + i, settings)
            if is_of_shots(settings):  # a video VAE needs all frames of a chunk
                frames = render(scene, pipe.spec.generation.chunk or 17, *size)
            else:
                frames = render(scene, 16, *size)[::4]  # skips nearly identical frames
            db += [psnr(a, b) for a, b in zip(pipe.decode(pipe.encode(frames), len(frames)), frames, strict=True)]
            tick()
        scores["vae.{}×{}".format(*size)] = _decibels(db)
    return scores


def _distances(made: list, drawn: list, other: list) -> dict[str, Score]:
    """Fréchet distances of `made` and of `other` to `drawn`: lists of `features`, one entry per clip."""
    scores = {}
    for k, name in enumerate(("frames", "motion")):
        m, d, o = (np.concatenate([pair[k] for pair in clips]) for clips in (made, drawn, other))
        scores[f"frechet.{name}"] = Score(frechet(m, d), frechet(o, d), len(made), "distance")
    return scores


# ----------------------------------------------------------------------------------------------------------------------
# Contact sheet and files
# ----------------------------------------------------------------------------------------------------------------------


def picture(report: Report, prompts: int = 12, columns: int = 8):
    """A PIL.Image with `columns` frames of the first prompts and of each task's first run, and what is right in them.

    Raises OpenSoraError for a report read from a file, which has no clips.
    """
    from PIL import Image, ImageDraw, ImageFont

    text = [clip for clip in report.clips if clip.task == "text"][:prompts]  # every run of the list is balanced
    firsts = {clip.task: clip for clip in reversed(report.clips) if clip.task != "text"}
    rows = [*text, *(firsts[task] for task in TASKS if task in firsts)]
    if not rows:
        raise OpenSoraError("this report has no clips: it was read from a file")

    strips = []
    for clip in rows:
        video = Video(clip.frames)
        strips.append(video.contact_sheet(columns, scale=96 / video.height, frames=video.spread(columns), labels=False))
    left, step = strips[0].width + 10, strips[0].height + 6
    sheet = Image.new("RGB", (left + 330, step * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for row, (clip, strip) in enumerate(zip(rows, strips, strict=True)):
        sheet.paste(strip, (0, row * step))
        for line, (words, color) in enumerate(_beside(clip)):
            draw.text((left, row * step + 4 + 17 * line), words, fill=color, font=font)
    return sheet


def _beside(clip: Clip) -> list[tuple[str, str]]:
    """The lines beside a row of the sheet, and their colors; ASCII only, for Pillow's built-in font."""
    right = [name for name in ATTRIBUTES if clip.right.get(name)]
    wrong = [
        f"{name} ({getattr(clip.seen, name) or 'none'})" for name in ATTRIBUTES if not clip.right.get(name, True)
    ] + [name for name in (*MOTIONS[:2], *SHOT_MOTIONS) if not clip.right.get(name, True)]
    lines = [(("" if clip.task == "text" else f"{clip.task}: ") + caption(clip.scene), "black")]
    if "camera" in clip.right:
        lines.append((score_suffix(clip.scene).strip(), "black"))
    if right:
        lines.append(("right: " + ", ".join(right), "green"))
    if wrong:
        lines.append(("wrong: " + ", ".join(wrong), "red"))
    if clip.given_db:
        state = "edited" if clip.task == "edit" else "kept"
        lines.append((f"{state} frames: {np.mean(clip.given_db):.1f} dB, worst {min(clip.given_db):.1f} dB", "black"))
    return lines


def check_folder(folder: str | Path) -> Path:
    """The folder as a Path. Raises OpenSoraError if `save` can't write into it."""
    folder = check_target(Path(folder) / "sheet.png", 1, 1).parent
    if (folder / "report.json").is_dir():
        raise OpenSoraError(f"{folder / 'report.json'} is a directory; the report cannot take its place")
    check_writable(folder)
    return folder


def save(report: Report, folder: str | Path) -> list[Path]:
    """Write report.json and sheet.png into a folder, which is created if needed; returns their paths.

    Each replaces an older file atomically. Raises OpenSoraError.
    """
    folder = check_folder(folder)
    path = folder / "report.json"
    write_json(path, report.to_dict())
    return [path, Video(np.asarray(picture(report))[None]).save(folder / "sheet.png")]
