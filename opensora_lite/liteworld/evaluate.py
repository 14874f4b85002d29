"""How well a model obeys, in numbers: the same prompts, references and seeds for every model, looked at by `describe`.

    report = evaluate(OpenSora.from_pretrained("tiny"))
    print(report.table())
    save(report, "evaluation")        # report.json, and sheet.png to check the numbers by eye

LiteWorld's captions are exactly true of its clips, so that a clip that was made can be checked word by word:

prompt      Of the prompts that name it, the share of clips that show the right place, time, subject (none where none is
            named), color and direction, and the share where all of these are right together.
motion      The share of sunrises that rise and of sunsets that sink, and of subjects that go left and right as told.
image …     For each task with references, frames that are given against the VAE's own reconstruction of them, in dB:
            their mean and the worst of them; how often all that the prompt says is right. Edited frames are not kept,
            so theirs has another name; `time` is how often the other time of day that was asked for is there.
vae         Reconstructions against the originals, in dB, for the image size in use and two others of about its area.
frechet     How far clips are from LiteWorld's in distribution, where a look at each one by itself sees nothing wrong.

Every share and distance stands beside what LiteWorld's own clips get. For shares these are clips of the same scenes
sent through the VAE: what its blur and `describe` let through, and so the most that a model with this VAE can reach.
For the Fréchet distance it is another set of clips of the same captions with other layouts: what 100 clips differ by
chance, and so the least.

The features of the Fréchet distance are those of the VAE, whose encoder is the only network at hand that has learned to
see: the mean of the posterior of one frame, averaged over a grid of 4×4 cells, 64 values for a VAE of 4 channels at
every image size. The frames of one clip are much alike, and so 100 clips determine a covariance of 64×64 well, but not
one of all 256 values of a frame: there chance is so large that blurring by 1.5 pixels adds 5 % to the floor, here 41 %.
`motion` is the same on differences of successive frames: blurring makes it 4 times the floor, frames that stand still
30 times. Forwards and backwards look alike to it, which is what the directions are for, and colors of single subjects
hardly show in either. Distances of models with different VAEs don't compare.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from numbers import Integral
from pathlib import Path

import numpy as np

from opensora_lite.errors import OpenSoraError
from opensora_lite.io.files import check_writable, write_json
from opensora_lite.liteworld.describe import SMALLEST, Description, describe, sun_motion
from opensora_lite.liteworld.world import (
    COLORS,
    DIRECTIONS,
    HELD_OUT,
    PLACES,
    SUBJECTS,
    TIMES,
    Scene,
    Time,
    caption,
    render,
    sample_layout,
    sample_scene,
)
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import PIXELS_PER_LATENT, Settings, plan
from opensora_lite.video import Video, check_target

PROMPTS = 100
RUNS = 8
TASKS = ("image", "connect", "extend", "edit")  # those with references
EDIT_RATIO = 0.4
ATTRIBUTES = ("place", "time", "subject", "color", "direction")
MOTIONS = ("sun rises", "sun sinks", "goes left", "goes right")
SUN_PACE = 0.014  # heights per time unit, at 24 fps per frame; a sun that keeps a quarter of it counts as moving
CELLS = 4  # of a frame along each side, for the Fréchet distance
VAE_CLIPS = 40

# Seeds of layouts: those of the prompts' scenes begin at HELD_OUT, where no training gets to.
OTHER_LAYOUTS = HELD_OUT + 1_000  # the same scenes, otherwise arranged
REFERENCES = HELD_OUT + 2_000  # what the tasks are given
PICTURES = HELD_OUT + 3_000  # what the VAE is tried on

# ----------------------------------------------------------------------------------------------------------------------
# What is asked for
# ----------------------------------------------------------------------------------------------------------------------


def scenes(prompts: int = PROMPTS) -> list[Scene]:
    """The first of the 100 scenes, all different, whose full captions are the prompts; they have no layouts.

    Balanced by design: 25 of each place, 20 of each time, 22 of each subject and 12 without one; of those with one,
    44 of each direction and 14 to 16 of each color. Pairs are balanced too, and so is any stretch of the list.
    """
    return [_scene(i) for i in range(prompts)]


def _scene(i: int) -> Scene:
    place, time = PLACES[i % len(PLACES)], TIMES[i % len(TIMES)]  # 4 and 5 have no common divisor: all 20 pairs
    if i % 9 == 0:
        return Scene(place, time)
    row, column = divmod(i - i // 9 - 1, len(SUBJECTS))  # of a table of the scenes with subjects
    color = tuple(COLORS)[(row + column) % len(COLORS)]
    direction = DIRECTIONS[(row + row // len(COLORS) + column) % 2]  # the other one when the colors come around
    return Scene(place, time, SUBJECTS[column], color, direction)


def _drawn(scene: Scene, seed: int, settings: Settings) -> np.ndarray:
    """A LiteWorld clip of a scene with the layout of a seed: uint8 [T, H, W, 3]."""
    scene = sample_layout(scene, np.random.default_rng(seed))
    return render(scene, settings.num_frames, *settings.image_size, fps=settings.video_fps)


@dataclass(frozen=True, eq=False)
class Request:
    """What one video is made from."""

    scene: Scene  # what its caption asks for
    references: tuple[np.ndarray, ...] = ()
    strategy: MaskStrategy | None = None


def _request(task: str, i: int, settings: Settings) -> Request:
    """Run i of a task. All tasks are given parts of the same clip."""
    scene = sample_scene(np.random.default_rng(REFERENCES + i))
    clip = render(scene, settings.num_frames, *settings.image_size, fps=settings.video_fps)
    if task == "image":
        return Request(scene, (clip[:1],), MaskStrategy.image())
    if task == "connect":
        return Request(scene, (clip[:1], clip[-1:]), MaskStrategy.connect())
    if task == "extend":
        given = max(1, settings.num_frames * 6 // 16)
        return Request(scene, (clip[:given],), MaskStrategy.prepend(given))
    other_time: Time = "noon" if scene.time == "cyberpunk" else "cyberpunk"
    return Request(replace(scene, time=other_time), (clip,), MaskStrategy.edit(EDIT_RATIO))


def check(settings: Settings, prompts: int = PROMPTS, runs: int = RUNS) -> None:
    """Raise OpenSoraError for what cannot be evaluated, without a model."""
    for name, value, least, most in (("prompts", prompts, 1, PROMPTS), ("runs", runs, 0, PROMPTS)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
            raise OpenSoraError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    if settings.loops > 1 or settings.num_sample > 1:
        raise OpenSoraError("an evaluation makes one video of one loop for each prompt; leave out loops and num_sample")
    if min(settings.image_size) < SMALLEST:
        raise OpenSoraError(f"an evaluation looks for subjects: both sides of image_size must be at least {SMALLEST}")
    if settings.num_frames < 2:
        raise OpenSoraError("an evaluation looks at motion: num_frames must be at least 2, not 1")
    if runs and settings.num_sampling_steps < 3:
        raise OpenSoraError(
            f"the edits are made in the last {EDIT_RATIO:.0%} of the steps: num_sampling_steps must be at least 3, not"
            f" {settings.num_sampling_steps}, or runs 0"
        )


# ----------------------------------------------------------------------------------------------------------------------
# What is found
# ----------------------------------------------------------------------------------------------------------------------


def verdict(scene: Scene, frames: np.ndarray, fps: float = 24) -> tuple[Description, dict[str, bool]]:
    """What frames uint8 [T, H, W, 3] show, and for each of ATTRIBUTES, "together" and MOTIONS whether it is right.

    What the caption of the scene does not say has no entry.
    """
    seen = describe(frames)
    named = ATTRIBUTES if scene.subject else ATTRIBUTES[:3]
    right = {name: getattr(seen, name) == getattr(scene, name) for name in named}
    right["together"] = all(right.values())
    if scene.subject:
        right[f"goes {scene.direction}"] = right["direction"]
    if scene.time in ("sunrise", "sunset"):
        name, way = ("sun rises", 1) if scene.time == "sunrise" else ("sun sinks", -1)
        motion = sun_motion(frames)
        right[name] = motion is not None and way * motion > SUN_PACE * 24 / fps / 4
    return seen, right


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; 100 for equal ones."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(min(10 * np.log10(255**2 / error), 100)) if error else 100.0


def features(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, D] and their differences [T - 1, D], averaged over cells, of latents [C, T, h, w]; D = 16 C."""
    for axis in (2, 3):
        cells = np.array_split(latents, min(CELLS, latents.shape[axis]), axis)
        latents = np.concatenate([cell.mean(axis, keepdims=True) for cell in cells], axis)
    frames = latents.transpose(1, 0, 2, 3).reshape(latents.shape[1], -1).astype(np.float64)
    return frames, np.diff(frames, axis=0)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance of two sets of features [N, D] and [M, D], each taken for a Gaussian (arXiv:1706.08500).

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½), in squared units of the features.
    """
    covariances = [np.cov(values, rowvar=False, bias=True).reshape(values.shape[1], -1) for values in (x, y)]
    variances, axes = np.linalg.eigh(covariances[0])
    root = axes * np.sqrt(variances.clip(0)) @ axes.T
    # C₁C₂ has the eigenvalues of the symmetric C₁^½ C₂ C₁^½, whose rounding errors stay small and real
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    apart = np.sum((x.mean(0) - y.mean(0)) ** 2)
    return float(max(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared, 0))


# ----------------------------------------------------------------------------------------------------------------------
# Clips and the report
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clip:
    """A video that was made, and what was found in it."""

    task: str  # "text", or one of TASKS
    scene: Scene  # what its prompt, the caption, asks for
    frames: np.ndarray  # uint8 [T, H, W, 3]
    seen: Description
    right: dict[str, bool]
    given_db: tuple[float, ...]  # PSNR of each frame that was given, against its reconstruction


@dataclass(frozen=True)
class Score:
    """One number of a report."""

    value: float | None  # None where nothing was asked for that it could be measured on
    rendered: float | None  # what LiteWorld's own clips get
    count: int  # clips, or frames for dB, that it is a mean over
    unit: str  # "share" (0 … 1), "dB" or "distance"

    def format(self, value: float | None) -> str:
        """A value of this score's kind as text: "93 %", "31.4 dB", "0.125", or "–" for None."""
        if value is None:
            return "–"
        return {"share": f"{100 * value:.0f} %", "dB": f"{value:.1f} dB", "distance": f"{value:.3f}"}[self.unit]


@dataclass(frozen=True)
class Report:
    """What `evaluate` found."""

    model: str
    settings: dict  # fields of pipeline.Settings
    prompts: int
    runs: int
    scores: dict[str, Score]  # by name, such as "prompt.color"
    clips: tuple[Clip, ...] = field(default=(), compare=False, repr=False)  # not in the JSON

    def to_dict(self) -> dict:
        """Plain numbers, as report.json has them."""
        return {**asdict(replace(self, clips=())), "clips": len(self.clips)}

    @classmethod
    def read(cls, path: str | Path) -> "Report":
        """A report.json, without its clips. Raises OpenSoraError for anything else."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            scores = {name: Score(**score) for name, score in values["scores"].items()}
            report = cls(values["model"], values["settings"], values["prompts"], values["runs"], scores)
            report.table()  # what cannot be shown was not written here
            return report
        except OSError as error:
            raise OpenSoraError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OpenSoraError(f"{path} is not a report that `opensora-lite evaluate --out FOLDER` wrote") from error

    @property
    def heading(self) -> str:
        """A line that says what was evaluated, and how."""
        s = self.settings
        height, width = s["image_size"]
        return (
            f"{self.model}: {self.prompts} prompts, each task {self.runs} times; {s['num_frames']}×{height}×{width}"
            f" at {s['fps']} fps, {s['sampler']}, {s['num_sampling_steps']} steps, guidance {s['guidance_scale']:g},"
            f" seed {s['seed']}"
        )

    def table(self) -> str:
        """All scores as text; `rendered` is the most that shares can reach, and the least for distances."""
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
    """Lines of a table whose first column holds names "part.name"; a part is written once."""
    lines, above = ["{:25}{:>11}{:>11}{:>9}".format(*head)], None
    for name, *cells in rows:
        part, _, name = name.partition(".")
        lines.append("{:9}{:16}{:>11}{:>11}{:>9}".format("" if part == above else part, name, *cells))
        above = part
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# The evaluation
# ----------------------------------------------------------------------------------------------------------------------


def evaluate(
    pipe, prompts: int = PROMPTS, runs: int = RUNS, *, on_progress: Callable[[int, int], None] | None = None, **settings
) -> Report:
    """Measure how well a model obeys; the same model gives the same report.

    pipe: an OpenSora. prompts: how many of the 100. runs: of each of the four tasks with references; 0 leaves them out.
    on_progress: called with how much is done and how much there is, counted in denoising steps of a batch and in clips
    that pass through the VAE, which take about as long. settings: fields of `Settings`, which replace the defaults of
    the model; batch_size is 4 here. Prompt i is made with seed + i, and so is run i of a task.
    Raises OpenSoraError before work starts. With the small model it takes about ten minutes on one core.
    """
    chosen = replace(pipe.settings, **{"batch_size": 4, **settings})
    check(chosen, prompts, runs)
    wanted, tried = scenes(prompts), min(prompts, VAE_CLIPS)
    batches = -(-prompts // chosen.batch_size) + len(TASKS) * -(-runs // chosen.batch_size)
    total = batches * chosen.num_sampling_steps + 3 * prompts + tried * len(_vae_sizes(chosen))
    done = count(1)

    def tick(_=None):
        if on_progress:
            on_progress(next(done), total)

    text = _make(pipe, "text", [Request(scene) for scene in wanted], chosen, tick)
    tasks = {
        task: _make(pipe, task, [_request(task, i, chosen) for i in range(runs)], chosen, tick)
        for task in (TASKS if runs else ())
    }

    # LiteWorld's own clips: through the VAE to be judged, and as they are for the distances
    ideal, drawn, other, made = [], [], [], []
    for i, (scene, clip) in enumerate(zip(wanted, text, strict=True)):
        latents = pipe.encode(_drawn(scene, HELD_OUT + i, chosen))
        ideal.append(verdict(scene, pipe.decode(latents), chosen.video_fps)[1])
        drawn.append(features(latents))
        tick()
        other.append(features(pipe.encode(_drawn(scene, OTHER_LAYOUTS + i, chosen))))
        tick()
        made.append(features(pipe.encode(clip.frames)))
        tick()

    right = [clip.right for clip in text]
    scores = {f"prompt.{name}": _share(name, right, ideal) for name in (*ATTRIBUTES, "together")}
    scores |= {f"motion.{name}": _share(name, right, ideal) for name in MOTIONS}
    scores["text.kept"] = Score(None, None, 0, "dB")
    for task, clips in tasks.items():
        scores |= _task_scores(task, clips)
    scores |= _reconstructions(pipe, tried, chosen, tick)
    scores |= _distances(made, drawn, other)
    used = {**asdict(chosen), "image_size": list(chosen.image_size)}  # as JSON gives it back
    everything = (*text, *(clip for clips in tasks.values() for clip in clips))
    return Report("", used, int(prompts), int(runs), scores, everything)


def _make(pipe, task: str, requests: list[Request], settings: Settings, on_step: Callable) -> list[Clip]:
    jobs = plan(
        [caption(request.scene) for request in requests],
        [list(request.references) or None for request in requests],
        [request.strategy for request in requests],
        settings,
    )
    clips = []
    for request, (job, video) in zip(requests, pipe.generate(jobs, settings, on_step), strict=True):
        seen, right = verdict(request.scene, video.frames, settings.video_fps)
        best = [pipe.decode(pipe.encode(reference)) for reference in request.references]
        timeline = job.strategy.timeline(settings.num_frames, [len(reference) for reference in best])
        given = [
            psnr(frame, best[source.reference][source.frame])
            for frame, source in zip(video.frames, timeline, strict=True)
            if source.reference is not None
        ]
        clips.append(Clip(task, request.scene, video.frames, seen, right, tuple(given)))
    return clips


def _share(name: str, right: Sequence[dict], ideal: Sequence[dict] = ()) -> Score:
    values, best = ([found[name] for found in side if name in found] for side in (right, ideal))
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
    """The image size in use, a wide and a tall one of about its area: 64×64, 48×80 and 80×48."""

    def scaled(n, ratio):
        return max(1, round(n * ratio / PIXELS_PER_LATENT)) * PIXELS_PER_LATENT

    height, width = settings.image_size
    ratios = ((1, 1), (0.75, 1.25), (1.25, 0.75))
    return list(dict.fromkeys((scaled(height, down), scaled(width, across)) for down, across in ratios))


def _reconstructions(pipe, clips: int, settings: Settings, tick: Callable) -> dict[str, Score]:
    scores = {}
    for size in _vae_sizes(settings):
        db = []
        for i in range(clips):
            scene = sample_scene(np.random.default_rng(PICTURES + i))
            frames = render(scene, 16, *size)[::4]  # the frames between are much like these
            db += [psnr(a, b) for a, b in zip(pipe.decode(pipe.encode(frames)), frames, strict=True)]
            tick()
        scores["vae.{}×{}".format(*size)] = _decibels(db)
    return scores


def _distances(made: list, drawn: list, other: list) -> dict[str, Score]:
    """Of clips that were made, and of other drawn ones, from those that were drawn; lists of what `features` gives."""
    scores = {}
    for k, name in enumerate(("frames", "motion")):
        m, d, o = (np.concatenate([pair[k] for pair in clips]) for clips in (made, drawn, other))
        scores[f"frechet.{name}"] = Score(frechet(m, d), frechet(o, d), len(made), "distance")
    return scores


# ----------------------------------------------------------------------------------------------------------------------
# To look at, and to keep
# ----------------------------------------------------------------------------------------------------------------------


def picture(report: Report, prompts: int = 12, columns: int = 8):
    """A PIL.Image: `columns` frames of each of the first prompts and of the first run of each task, and its verdict.

    Raises OpenSoraError for a report that was read from a file, which has no clips.
    """
    from PIL import Image, ImageDraw, ImageFont

    text = [clip for clip in report.clips if clip.task == "text"][:prompts]  # any stretch of the list is balanced
    firsts = {clip.task: clip for clip in reversed(report.clips) if clip.task != "text"}
    rows = [*text, *(firsts[task] for task in TASKS if task in firsts)]
    if not rows:
        raise OpenSoraError("this report has no clips to show; a report that was read from a file never has")

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
    """The lines beside a row of the picture, and their colors. Plain ASCII, which is all that Pillow's own font has."""
    right = [name for name in ATTRIBUTES if clip.right.get(name)]
    wrong = [
        f"{name} ({getattr(clip.seen, name) or 'none'})" for name in ATTRIBUTES if not clip.right.get(name, True)
    ] + [name for name in MOTIONS[:2] if not clip.right.get(name, True)]
    lines = [(("" if clip.task == "text" else f"{clip.task}: ") + caption(clip.scene), "black")]
    if right:
        lines.append(("right: " + ", ".join(right), "green"))
    if wrong:
        lines.append(("wrong: " + ", ".join(wrong), "red"))
    if clip.given_db:
        state = "edited" if clip.task == "edit" else "kept"
        lines.append((f"{state} frames: {np.mean(clip.given_db):.1f} dB, worst {min(clip.given_db):.1f} dB", "black"))
    return lines


def check_folder(folder: str | Path) -> Path:
    """The folder as a Path. Raises OpenSoraError where `save` could not write into it."""
    folder = check_target(Path(folder) / "sheet.png", 1, 1).parent
    if (folder / "report.json").is_dir():
        raise OpenSoraError(f"{folder / 'report.json'} is a directory; the report cannot take its place")
    check_writable(folder)
    return folder


def save(report: Report, folder: str | Path) -> list[Path]:
    """Write report.json and sheet.png into a folder, which is made; each replaces an older one once it is complete.

    Returns the two paths. Raises OpenSoraError.
    """
    folder = check_folder(folder)
    path = folder / "report.json"
    write_json(path, report.to_dict())
    return [path, Video(np.asarray(picture(report))[None]).save(folder / "sheet.png")]
