"""TaskLab: the whole tool. A form, a mask timeline, Generate; the result plays, and stands there as code.

    lab = TaskLab(OpenSora.from_pretrained("tiny"), ["beach.png", "wave.png"], "a red car", "0;0,1,0,-1")
    lab                                  # in a notebook
    lab.generate(wait=True)              # without one: the Video

Videos are made in a thread, one at a time. The page is a client: it sees the synced traits, which it never sets, and
sends messages, each of which is a call of a method and is answered. Whoever changes something, page, Python or thread,
holds one lock, for JupyterLab handles messages of widgets in a thread of their own.
"""

import atexit
import json
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import ipywidgets
import numpy as np
import traitlets
from opensora_lite.widgets.timeline import MaskTimeline
from opensora_lite.widgets.widget import Widget, encoded, module, still_fonts
from PIL import Image, ImageDraw

from opensora_lite.errors import MaskStrategyError, OpenSoraError, PromptError
from opensora_lite.masks import MaskStrategy
from opensora_lite.pipeline import Progress
from opensora_lite.prompts import split_prompt
from opensora_lite.request import SAMPLER_NAMES, Job, Settings, model_defaults, plan
from opensora_lite.video import Video, _mp4_bytes

KEPT = 12  # results, with their videos
MOST_SYNCED = 150_000  # bytes of a video that the notebook's file keeps; a larger one is fetched when it is shown
PREVIEW_FRAMES = 4
PREVIEW_PAUSE = 0.25  # seconds between two previews
LAST_STEP = 10  # seconds that a run has to end when Python does
PREVIEW_SHARE = 0.1  # of a run's time that previews may take

SETTINGS = tuple(f.name for f in fields(Settings) if f.name not in ("batch_size", "num_sample"))
SHARED = ("num_frames", "image_size", "loops", "condition_frames")  # with the timeline
# Offered where a model does not say what it was trained on: Open-Sora 1.1's resolutions, in multiples of 8 pixels.
SIZES = [(256, 256), (144, 256), (256, 144), (240, 424), (424, 240), (360, 640), (640, 360), (480, 848), (848, 480)]

# ---------------------------------------------------------------------------------------------------------------------
#   What is asked for, and what came of it
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """All that makes a video what it is. A request that a TaskLab holds has been checked."""

    prompt: str
    settings: Settings
    references: tuple  # as the pipeline gets them: those that the strategy uses
    strategy: MaskStrategy
    tray: tuple  # all references of the timeline,
    tray_strategy: MaskStrategy  # and its strategy, which counts those

    def jobs(self) -> list[Job]:
        """What the pipeline is to do, one job. Raises an OpenSoraError for what cannot be done."""
        return plan([self.prompt], [list(self.references)], [self.strategy], self.settings)

    def __str__(self):
        s = self.settings
        height, width = s.image_size
        loops = f" in {s.loops} loops" if s.loops > 1 else ""
        strategy = f" · {self.strategy}" if self.strategy.segments else ""
        return (
            f"{s.total_frames} frame{'s' * (s.total_frames != 1)}{loops} · {height}×{width}"
            f" · {s.sampler}, {s.num_sampling_steps} steps · guidance {s.guidance_scale:g} · seed {s.seed}{strategy}"
        )


@dataclass(frozen=True, eq=False)
class Result:
    """A finished video. number: counted from 1. seconds: how long it took. media: the video as mp4 or PNG."""

    number: int
    request: Request
    video: Video
    seconds: float
    media: bytes


class _Cancelled(Exception):
    """Ends a run at its next step."""


# ---------------------------------------------------------------------------------------------------------------------
#   A request as code
# ---------------------------------------------------------------------------------------------------------------------

FLAGS = {  # of `opensora-lite generate`
    "num_frames": "--num-frames",
    "image_size": "--image-size",
    "fps": "--fps",
    "frame_interval": "--frame-interval",
    "sampler": "--sampler",
    "num_sampling_steps": "--num-sampling-steps",
    "guidance_scale": "--cfg-scale",
    "guidance_interval": "--guidance-interval",
    "cache_threshold": "--cache-threshold",
    "cfg_channel": "--cfg-channel",
    "loops": "--loop",
    "condition_frames": "--condition-frame-length",
    "seed": "--seed",
}
MODEL_FLAGS = {
    "model": "--model",
    "stdit": "--model-pretrained-path",
    "t5": "--text-encoder-pretrained-path",
    "vae": "--vae-pretrained-path",
    "device": "--device",
    "dtype": "--dtype",
    "micro_batch_size": "--micro-batch-size",
}


def python_code(request: Request, defaults: Settings, model: Mapping) -> str:
    """Python that makes the same video. defaults: the model's. model: the arguments of `OpenSora.from_pretrained`.

    References that are not files become names, and a comment says what each must hold.
    """
    names, comments = [], []
    for index, reference in enumerate(request.references):
        names.append(_text(str(reference)) if _is_file(reference) else f"reference_{index}")
        if not _is_file(reference):
            comments.append(f"# reference_{index} must hold what TaskLab was given: {_described(reference)}")
    arguments = [_text(request.prompt)]
    if names:
        arguments += [f"references=[{', '.join(names)}]", f"mask_strategy={_text(request.strategy.format())}"]
    arguments += [f"{name}={value!r}" for name, value in _chosen(request, defaults).items()]
    model = [_text(str(v)) if n == "model" else f"{n}={_plain(v)!r}" for n, v in model.items()]
    lines = [
        "from opensora_lite import OpenSora",
        "",
        *comments,
        f"pipe = OpenSora.from_pretrained({', '.join(model)})",
        "video = pipe(",
        *(f"    {argument}," for argument in arguments),
        ")",
        "video",
    ]
    return "\n".join(lines)


def command_line(request: Request, defaults: Settings, model: Mapping) -> str:
    """The shell command that makes the same video.

    References that are not files must be saved first; comments above the command say how, and under which names.
    """
    comments, paths = [], []
    for index, reference in enumerate(request.references):
        path, how = (str(reference), None) if _is_file(reference) else _saved(f"reference_{index}", reference)
        paths.append(path)
        if how:
            comments.append(f"#   {how}")
    prompt = request.prompt
    options = []
    if any(";" in path for path in paths):  # which separates paths, but not in the prompt's JSON suffix
        prompt += json.dumps({"reference_path": paths}, ensure_ascii=False)
    elif paths:
        options.append(_option("--reference-path", ";".join(paths)))
    if paths:
        options.append(_option("--mask-strategy", request.strategy.format()))
    for name, value in _chosen(request, defaults).items():
        values = value if isinstance(value, tuple) else (0 if value is None else value,)  # --cfg-channel 0: all
        options.append(_option(FLAGS[name], *values))
    options += [
        _option(MODEL_FLAGS[name], value) for name, value in model.items() if (name, value) != ("model", "tiny")
    ]
    if comments:
        comments.insert(0, "# Save what is not a file yet, in Python:")
    command = " ".join(["opensora-lite generate", _option("--prompt", prompt), *options])
    return "\n".join([*comments, command])


def _chosen(request: Request, defaults: Settings) -> dict:
    """The settings that differ from the model's defaults."""
    values = {name: getattr(request.settings, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _text(text: str) -> str:
    """A Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def _option(flag: str, *values) -> str:
    values = [str(value) for value in values]
    if values[0].startswith("-"):  # which argparse would take for the next flag
        return f"{flag}={shlex.quote(values[0])}"
    return " ".join([flag, *map(shlex.quote, values)])


def _is_file(reference) -> bool:
    return isinstance(reference, (str, Path))


def _described(reference) -> str:
    if isinstance(reference, np.ndarray):
        return f"an array {reference.dtype} {list(reference.shape)}"
    if isinstance(reference, Video):
        return repr(reference)
    return "a PIL image {}×{}".format(*reference.size[::-1])


def _saved(name: str, reference) -> tuple[str, str]:
    """(the file, the Python that saves a reference of this name there)."""
    if isinstance(reference, Image.Image):
        return f"{name}.png", f'{name}.save("{name}.png")'
    frames = reference.frames if isinstance(reference, Video) else reference
    video = name if isinstance(reference, Video) else f"Video({name})"
    if frames.ndim == 3:
        video, frames = f"Video({name}[None])", frames[None]
    if len(frames) == 1:
        return f"{name}.png", f'{video}.save("{name}.png")'
    return f"{name}.mp4", f'{video}.save("{name}.mp4")  # which loses a little: the result will differ by as much'


# ---------------------------------------------------------------------------------------------------------------------
#   The widget
# ---------------------------------------------------------------------------------------------------------------------


class TaskLab(Widget):
    """Everything that a request consists of as a form, with a MaskTimeline in it, and the videos that it gives.

    pipe: an OpenSora. references: what can be put onto the timeline: paths, Videos, arrays uint8 [T, H, W, 3] or PIL
    images. strategy: a MaskStrategy or its text. model: how `pipe` was loaded, for the code: the name or folder given
    to `OpenSora.from_pretrained`, or a dict of its arguments. settings: fields of `Settings` other than batch_size and
    num_sample, for one video is made at a time.

    Raises an OpenSoraError for what cannot be done together, as `change` does.
    """

    _esm = module("lab.js")

    # What the page shows, and never sets.
    timeline = traitlets.Instance(MaskTimeline).tag(sync=True, **ipywidgets.widget_serialization)
    samplers = traitlets.List(SAMPLER_NAMES).tag(sync=True)
    sizes = traitlets.List().tag(sync=True)  # [height, width] that are offered
    form = traitlets.Dict().tag(sync=True)  # "prompt" and SETTINGS, as they were typed: right or not
    errors = traitlets.Dict().tag(sync=True)  # a field of the form, or "timeline": what is wrong with it
    python_code = traitlets.Unicode().tag(sync=True)  # of what stands in the form; "" while there are errors
    command_line = traitlets.Unicode().tag(sync=True)
    state = traitlets.Enum(("idle", "running", "cancelling", "done", "cancelled", "failed"), "idle").tag(sync=True)
    failure = traitlets.Unicode().tag(sync=True)  # why the last run could not start, or did not end
    progress = traitlets.Dict().tag(sync=True)  # step, steps, loop, loops, seconds, left (None: not known yet)
    preview = traitlets.Bytes().tag(sync=True)  # while a video is made: a few frames of the predicted x_0, a JPEG
    history = traitlets.List().tag(sync=True)  # of each result that is kept: number, prompt, line, seconds …
    dropped = traitlets.Int(0).tag(sync=True)  # how many older ones are not
    shown = traitlets.Int(0).tag(sync=True)  # number of the result that plays; 0: none
    compared = traitlets.Int(0).tag(sync=True)  # number of the one beside it; 0: none
    video = traitlets.Bytes().tag(sync=True)  # media of the one shown, unless it is large

    def __init__(
        self,
        pipe,
        references: Sequence = (),
        prompt: str = "a red car driving right on the ocean at sunset",
        strategy: MaskStrategy | str | None = None,
        *,
        model: str | Path | Mapping = "tiny",
        **settings,
    ):
        self.pipe, self._model = pipe, dict(model) if isinstance(model, Mapping) else {"model": model}
        sizes = _trained_sizes(pipe, self._model)
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise TypeError(f"unknown setting {', '.join(unknown)}; a TaskLab has {', '.join(SETTINGS)}")
        asked = replace(pipe.settings, **{"batch_size": 1, "num_sample": 1, **settings})
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome: Result | BaseException | None = None  # of the last run
        self._results: list[Result] = []
        self._problems: dict[str, OpenSoraError] = {}  # `errors`, as exceptions
        self._request: Request | None = None  # what stands in the form; None while there are errors
        self._deaf = False  # to the timeline, while it is this object that changes it
        self._preview_seconds = 0.0  # what the last preview took
        shared = {name: getattr(asked, name) for name in SHARED}
        super().__init__(
            timeline=MaskTimeline(references=references, strategy=strategy, **shared),
            form={"prompt": prompt, **{name: getattr(asked, name) for name in SETTINGS}},
            sizes=list(dict.fromkeys([*(sizes or SIZES), asked.image_size])),
        )
        self._check()
        for problem in self._problems.values():
            self.close()
            raise problem
        self.timeline.observe(self._on_timeline, [*SHARED, "strategy", "references", "error"])
        self.on_msg(self._on_message)

    # -- the form

    def change(self, **values) -> None:
        """Change `prompt`, `references`, `strategy` and settings: all of them, or, with an OpenSoraError, none."""
        with self._lock:
            form, timeline, problems = self.form, self._timeline_values(), self._problems
            self._change(values)
            for field, problem in self._problems.items():
                if field in values or str(problem) != str(problems.get(field)):
                    self.form = form
                    self._check(**timeline)
                    raise problem

    def restore(self, number: int) -> None:
        """Put the prompt, the settings, the references and the strategy of a result back into the form."""
        request = self.result(number).request
        settings = {name: getattr(request.settings, name) for name in SETTINGS}
        self.change(prompt=request.prompt, references=request.tray, strategy=request.tray_strategy, **settings)

    def _change(self, values: Mapping) -> None:
        """Take values as they are, and say in `errors` what is wrong with them."""
        timeline = {name: values[name] for name in ("references", "strategy") if name in values}
        typed = {name: value for name, value in values.items() if name not in timeline}
        unknown = sorted(set(typed) - set(self.form))
        if unknown:
            raise TypeError(f"TaskLab has no {', '.join(unknown)}; it has {', '.join(self.form)}, references, strategy")
        form = {**self.form, **{n: v.item() if isinstance(v, np.generic) else v for n, v in typed.items()}}
        if "condition_frames" not in typed:
            loops, frames = form["loops"], form["num_frames"]
            if loops == 1:
                form["condition_frames"] = None
            elif form["condition_frames"] is None and isinstance(loops, int) and isinstance(frames, int) and loops > 1:
                form["condition_frames"] = max(frames // 4, 1)
        self.form = form
        self._check(**timeline)

    def _check(self, **timeline) -> None:
        """Bring the form to the timeline, and tell what is wrong, or what the request is as code.

        timeline: new references and a new strategy for it.
        """
        problems: dict[str, OpenSoraError] = {}

        @contextmanager
        def about(field):
            try:
                yield
            except OpenSoraError as error:
                problems[field] = error

        form, settings = self.form, None
        chosen = {name: form[name] for name in SETTINGS}
        one = replace(self.pipe.settings, loops=1, condition_frames=None)
        for name in chosen.keys() - {"loops", "condition_frames"}:
            with about(name):
                replace(one, **{name: form[name]})
        if not problems:
            try:
                settings = replace(self.pipe.settings, **chosen, batch_size=1, num_sample=1)
            except OpenSoraError as error:
                problems["condition_frames" if str(error).startswith("condition_frames") else "loops"] = error
        if settings:
            new = {name: getattr(settings, name) for name in SHARED}
            field = next((n for n in SHARED if new[n] != getattr(self.timeline, n) and not timeline), "timeline")
            with about(field), self._deafened():
                self.timeline.change(**new, **timeline)
        if self.timeline.error:
            problems["timeline"] = MaskStrategyError(
                "The text of the mask strategy has a mistake: mend it, or undo it."
            )
        with about("prompt"):
            self._check_prompt(form["prompt"], settings)
        if settings and not problems:
            request = self.timeline.request
            references, strategy = tuple(request["references"]), request["mask_strategy"]
            tray = self.timeline.references, self.timeline.strategy
            self._request = Request(form["prompt"], settings, references, strategy, *tray)
            with about("timeline"):
                self._request.jobs()
        self._problems = problems
        self._request = None if problems else self._request
        with self.hold_sync():
            self.errors = {field: str(error) for field, error in problems.items()}
            code = (self._request, self.pipe.settings, self._model)
            self.python_code = "" if problems else python_code(*code)
            self.command_line = "" if problems else command_line(*code)
            if settings and settings.image_size not in map(tuple, self.sizes):
                self.sizes = [*self.sizes, settings.image_size]

    @staticmethod
    def _check_prompt(prompt, settings: Settings | None) -> None:
        if isinstance(prompt, str) and split_prompt(prompt)[1]:
            raise PromptError("References and the mask strategy stand on the timeline: leave the JSON suffix out.")
        plan([prompt], settings=settings or Settings())  # what is wrong with settings is said elsewhere

    def _timeline_values(self) -> dict:
        return {name: getattr(self.timeline, name) for name in ("references", "strategy")}

    @contextmanager
    def _deafened(self):
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def _on_timeline(self, change) -> None:
        """Somebody has changed the timeline: what it shares with the form follows."""
        if self._deaf:
            return
        with self._lock:
            if change["name"] in SHARED:
                self.form = {**self.form, change["name"]: change["new"]}
            self._check()

    # -- making videos

    @property
    def results(self) -> list[Result]:
        """The results that are kept, at most KEPT, oldest first."""
        return list(self._results)

    def result(self, number: int) -> Result:
        """The result with this number. Raises OpenSoraError where it is not kept."""
        for result in self._results:
            if result.number == number:
                return result
        kept = f"kept are {self._results[0].number} to {self._results[-1].number}" if self._results else "there is none"
        raise OpenSoraError(f"result {number} does not exist, or not any more; {kept}")

    def generate(self, wait: bool = False) -> Video | None:
        """Make the video that the form describes, in a thread; with `wait`, the Video.

        Raises an OpenSoraError, before anything runs, for what is wrong in the form, and while another video is made.
        With `wait` it also raises what went wrong in the run, and an OpenSoraError where the run was cancelled.
        """
        with self._lock:
            self._refuse_while_running()
            self._check()
            for problem in self._problems.values():
                raise problem
            self._stop.clear()
            self._outcome = None
            thread = threading.Thread(target=self._run, args=(self._request,), name="TaskLab", daemon=True)
            self._thread = thread
            with self.hold_sync():
                self.failure, self.preview, self.state = "", b"", "running"
                self.progress = self._stands(self._request.settings, 0, 0.0)
            atexit.register(self._leave)
            thread.start()
        if not wait:
            return None
        try:
            thread.join()
        except KeyboardInterrupt:
            self.cancel()
            raise
        if isinstance(self._outcome, _Cancelled):
            raise OpenSoraError("the video was cancelled")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome.video

    def cancel(self) -> None:
        """Stop the run at its next step; without one, nothing happens."""
        with self._lock:
            if self.state == "running":
                self._stop.set()
                self.state = "cancelling"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run to end, at most `timeout` seconds; whether it has."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def close(self) -> None:
        if self.trait_has_value("timeline"):  # else it was never finished
            self.cancel()
            self.timeline.close()
        super().close()

    def _leave(self) -> None:
        """Python ends. It would abort where it takes a thread away in the middle of Paddle's code, so the step ends."""
        self.cancel()
        self.wait(LAST_STEP)

    def _refuse_while_running(self) -> None:
        if self.state in ("running", "cancelling"):
            raise OpenSoraError("a video is being made already: wait for it, or cancel it first")

    def _run(self, request: Request) -> None:
        """The thread. Whatever happens in it, it ends with a state that allows the next run."""
        start = time.perf_counter()
        follow = self._follower(request.settings)
        try:
            ((_, video),) = self.pipe.generate(request.jobs(), request.settings, follow)
            if self._stop.is_set():
                raise _Cancelled
            seconds = time.perf_counter() - start
            media = _png(video) if len(video) == 1 else _mp4_bytes(video.frames, video.fps)
            outcome = Result(self.dropped + len(self._results) + 1, request, video, seconds, media)
        except BaseException as error:  # a message for people, whatever it was
            outcome = error
        atexit.unregister(self._leave)
        with self._lock, self.hold_sync():
            self._outcome = outcome
            self.preview = b""
            if isinstance(outcome, Result):
                self._results.append(outcome)
                self._publish(outcome.number, self.compared)
                self.state = "done"
            elif isinstance(outcome, _Cancelled):
                self.state = "cancelled"
            else:
                self.failure, self.state = _message(outcome), "failed"

    def _follower(self, settings: Settings):
        """What the pipeline calls after every step."""
        previewed, spent = 0.0, 0.0  # seconds: when the last preview was ready, and what all took

        def follow(progress: Progress) -> None:
            nonlocal previewed, spent
            if self._stop.is_set():
                raise _Cancelled
            seconds = progress.seconds
            preview = None
            in_time = spent + self._preview_seconds <= PREVIEW_SHARE * seconds
            if in_time and seconds - previewed >= PREVIEW_PAUSE and progress.step.number < progress.steps:
                start = time.perf_counter()
                preview = self._previewed(progress.step)
                self._preview_seconds = time.perf_counter() - start
                previewed, spent = seconds + self._preview_seconds, spent + self._preview_seconds
            with self._lock, self.hold_sync():
                done = progress.loop * progress.steps + progress.step.number
                self.progress = self._stands(settings, done, seconds)
                if preview:
                    self.preview = preview

        return follow

    @staticmethod
    def _stands(settings: Settings, done: int, seconds: float) -> dict:
        """`progress` after `done` steps of all loops."""
        steps, total = settings.num_sampling_steps, settings.num_sampling_steps * settings.loops
        loop = max(done - 1, 0) // steps
        left = round(seconds / done * (total - done), 1) if done else None
        return {
            "step": done - loop * steps,
            "steps": steps,
            "loop": loop + 1,
            "loops": settings.loops,
            "done": done / total,
            "seconds": round(seconds, 1),
            "left": left,
        }

    def _previewed(self, step) -> bytes:
        """A few frames as a step believes them to be, side by side: a JPEG."""
        x_0, sample = (tensor[0].astype("float32").numpy() for tensor in (step.x_0, step.sample))  # [C, T, h, w]
        if step.active is not None:  # of frames that are not denoised yet, what is given
            x_0 = np.where(step.active[0].numpy(), x_0, sample)
        T = x_0.shape[1]
        chosen = np.unique(np.linspace(0, T - 1, PREVIEW_FRAMES).round().astype(int))
        frames = Video(self.pipe.decode(np.ascontiguousarray(x_0[:, chosen])))
        return encoded(np.asarray(frames.contact_sheet(2, scale=1, labels=False)), "JPEG")

    # -- results

    def show(self, number: int) -> None:
        """Play a result. Raises OpenSoraError where it is not kept."""
        with self._lock:
            self.result(number)
            self._publish(number, self.compared)

    def compare(self, number: int | None) -> None:
        """Play a result beside the one that is shown; None: no more. Raises OpenSoraError where it is not kept."""
        with self._lock:
            if number:
                self.result(number)
            self._publish(self.shown, number or 0)

    def _publish(self, shown: int, compared: int) -> None:
        """Keep the newest results, and tell the page which there are and which play."""
        with self.hold_sync():
            surplus = max(len(self._results) - KEPT, 0)
            del self._results[:surplus]
            self.dropped += surplus
            numbers = [result.number for result in self._results]
            self.compared = compared if compared in numbers else 0
            self.history = [self._entry(result) for result in self._results]
            self.shown = shown if shown in numbers else numbers[-1]
            media = self.result(self.shown).media
            self.video = media if len(media) <= MOST_SYNCED else b""

    def _entry(self, result: Result) -> dict:
        """What a card of the history shows."""
        for entry in self.history:
            if entry["number"] == result.number:
                return entry
        video = result.video
        strip = video.contact_sheet(3, scale=min(64 / video.height, 1), frames=video.spread(3), labels=False)
        return {
            "number": result.number,
            "prompt": result.request.prompt,
            "line": str(result.request),
            "seconds": round(result.seconds, 1),
            "type": "image/png" if len(video) == 1 else "video/mp4",
            "picture": encoded(np.asarray(strip), "JPEG"),
        }

    # -- the page, and pages without a kernel

    def _on_message(self, _widget, content: dict, _buffers) -> None:
        """{"do": what, "id": …, …}; the answer is {"answer": id}, with a "failure" where it could not be done."""
        do, answer, buffers = content.get("do"), {"answer": content.get("id")}, []
        try:
            with self._lock:
                if do == "change":
                    self._change(content["values"])
                elif do == "video":
                    buffers = [self.result(content["number"]).media]
                elif do in ("show", "compare", "restore"):
                    getattr(self, do)(content["number"])
                elif do in ("generate", "cancel"):
                    getattr(self, do)()
                else:
                    raise OpenSoraError(f"TaskLab cannot do {do!r}")
        except Exception as error:  # whatever it was, the page says so
            answer["failure"] = _message(error)
        self.send(answer, buffers)

    def __repr__(self) -> str:
        asked = str(self._request) if self._request else f"not ready: {'; '.join(self.errors)}"
        count = len(self._results)
        return f'TaskLab("{self.form["prompt"]}": {asked}; {count} result{"s" * (count != 1)})'

    def still(self) -> tuple[np.ndarray, str]:
        small, bold = still_fonts()
        width = 900
        last = self._results[-1] if self._results else None
        lines = [(self.form["prompt"], bold), (str(self._request or "The form has errors."), small)]
        timeline = Image.fromarray(self.timeline.still()[0])
        pictures = [timeline] if timeline.width <= 1.5 * width else []  # a wider one could not be read
        if last:
            size = min(64 / last.video.height, 110 / last.video.width)
            pictures.append(last.video.contact_sheet(6, scale=size, frames=last.video.spread(6)))
        width = max([width, *(p.width for p in pictures)])
        canvas = Image.new("RGB", (width + 16, 56 + sum(p.height + 8 for p in pictures) + 22 * bool(last)), "white")
        draw = ImageDraw.Draw(canvas)
        for i, (line, font) in enumerate(lines):
            draw.text((8, 8 + 20 * i), line, "black", font)
        y = 52
        for picture in pictures:
            if last and picture is pictures[-1]:
                draw.text((8, y), f"Result {last.number}: {last.request}", "black", small)
                y += 22
            canvas.paste(picture, (8, y))
            y += picture.height + 8
        return np.asarray(canvas), f"{self!r}"


def _trained_sizes(pipe, model: Mapping) -> list[tuple[int, int]]:
    """The image sizes that a model was trained on; empty: not known. Raises OpenSoraError where `pipe` is another."""
    unknown = sorted(set(model) - set(MODEL_FLAGS))
    if unknown:
        raise TypeError(f"OpenSora.from_pretrained takes no {', '.join(unknown)}; it takes {', '.join(MODEL_FLAGS)}")
    in_parts = all(model.get(part) for part in ("stdit", "t5", "vae"))
    defaults, sizes = (Settings(), []) if in_parts else model_defaults(model.get("model", "tiny"))
    if defaults != pipe.settings:
        raise OpenSoraError(
            "the pipeline has other defaults than the model that the code would name:"
            ' say how it was loaded, model="FOLDER" or model={"stdit": …, "t5": …, "vae": …}'
        )
    return sizes


def _png(video: Video) -> bytes:
    return encoded(video.frames[0])


def _message(error: BaseException) -> str:
    """What a person reads of an error; those that nobody thought of with their type."""
    return str(error) if isinstance(error, OpenSoraError) else f"{type(error).__name__}: {error}"
