"""TaskLab: a form with a mask timeline that generates videos, plays them, and shows the same request as code.

    lab = TaskLab(OpenSora.from_pretrained("tiny"), ["beach.png", "wave.png"], "a red car", "0;0,1,0,-1")
    lab                                  # in a notebook
    lab.generate(wait=True)              # without one: returns the Video

Videos are generated in a thread, one at a time. The page never sets a trait: it shows the synced traits and sends
messages; each message calls a method and gets a reply. One lock protects the state from concurrent changes by the
page, Python code and the thread: JupyterLab handles widget messages beside the main thread.
"""

import atexit
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import ipywidgets
import numpy as np
import traitlets
from opensora_lite.widgets.request_code import MODEL_FLAGS, SETTINGS, command_line, python_code
from opensora_lite.widgets.timeline import MaskTimeline
from opensora_lite.widgets.widget import Widget, encoded, module, plural, still_fonts
from PIL import Image, ImageDraw

from opensora_lite.errors import MaskStrategyError, OpenSoraError, PromptError, collected_notes
from opensora_lite.io.metadata import to_comment
from opensora_lite.io.writing import mp4_bytes, png_bytes, to_image
from opensora_lite.masks import MaskStrategy
from opensora_lite.pipeline import Progress
from opensora_lite.prompts import split_prompt
from opensora_lite.request import Job, ModelSpec, Settings, bounds_of, model_defaults, plan, released_settings
from opensora_lite.video import Video

SETTING_FIELDS = Settings.__pydantic_fields__
MAX_RESULTS = 12  # older results are dropped
MAX_SYNCED = 150_000  # bytes of a video stored in the notebook; the page fetches larger ones
PREVIEW_FRAMES = 4
PREVIEW_INTERVAL = 0.25  # least number of seconds between two previews
PREVIEW_SHARE = 0.1  # largest share of a run's time spent on previews
EXIT_TIMEOUT = 10  # seconds that Python's exit waits for a run to end

SHARED = ("num_frames", "image_size", "loops", "condition_frames")  # fields that the timeline has as well
LABELS = {  # of the settings in the form
    "num_frames": "Frames",
    "image_size": "Height×width",
    "fps": "Frames/s",
    "loops": "Loops",
    "condition_frames": "Condition",
    "sampler": "Sampler",
    "num_sampling_steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
}
SCORES = {"aes": "Aesthetics", "flow": "Motion", "camera_motion": "Camera"}  # of Open-Sora 1.2
CHOICES = {"image_size": "sizes", "sampler": "samplers", "camera_motion": "cameras"}  # setting -> trait with its values
CAMERAS = (None, "static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")
# For models that don't list their sizes: Open-Sora 1.1's resolutions as multiples of 8 pixels.
SIZES = [(256, 256), (144, 256), (256, 144), (240, 424), (424, 240), (360, 640), (640, 360), (480, 848), (848, 480)]

# ---------------------------------------------------------------------------------------------------------------------
#   Requests and results
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A prompt, settings, references and a mask strategy."""

    prompt: str
    settings: Settings
    references: tuple  # those that the strategy uses
    strategy: MaskStrategy
    all_references: tuple  # of the timeline, including unused ones
    timeline_strategy: MaskStrategy  # the same strategy, numbered by `all_references`
    spec: ModelSpec = field(default=ModelSpec(), repr=False)  # the model's generation

    def jobs(self) -> list[Job]:
        """The plan, one job. Raises an OpenSoraError for an impossible request."""
        return plan([self.prompt], [list(self.references)], [self.strategy], self.settings, self.spec)

    def __str__(self):
        s = self.settings
        height, width = s.image_size
        loops = f" in {s.loops} loops" if s.loops > 1 else ""
        strategy = f" · {self.strategy}" if self.strategy.segments else ""
        return (
            f"{plural(s.total_frames, 'frame')}{loops} · {height}×{width}"
            f" · {s.sampler}, {s.num_sampling_steps} steps · guidance {s.guidance_scale:g} · seed {s.seed}{strategy}"
        )


@dataclass(frozen=True, eq=False)
class Result:
    """A finished video. number: from 1. seconds: duration of the run. media: an mp4, of a single frame a PNG."""

    number: int
    request: Request
    video: Video
    seconds: float
    media: bytes


class _Cancelled(Exception):
    """Raised in `on_step` to end a run."""


# ---------------------------------------------------------------------------------------------------------------------
#   The widget
# ---------------------------------------------------------------------------------------------------------------------


class TaskLab(Widget):
    """A form for a request, with a MaskTimeline, and its results.

    pipe: an OpenSora. references: for the timeline: paths, Videos, arrays uint8 [T, H, W, 3] or PIL images.
    strategy: a MaskStrategy or its text. model: how `pipe` was loaded, for the code: the name or folder given to
    `OpenSora.from_pretrained`, or a dict of its arguments. settings: fields of `Settings` other than batch_size and
    num_sample: a run makes one video.

    Raises an OpenSoraError for an impossible request.
    """

    _esm = module("lab.js")

    # Set by Python only.
    timeline = traitlets.Instance(MaskTimeline).tag(sync=True, **ipywidgets.widget_serialization)
    fields = traitlets.List().tag(sync=True)  # constant: the settings that the page shows, with their bounds
    samplers = traitlets.List().tag(sync=True)
    cameras = traitlets.List(CAMERAS).tag(sync=True)
    sizes = traitlets.List().tag(sync=True)  # [height, width] to choose from
    form = traitlets.Dict().tag(sync=True)  # "prompt" and SETTINGS as typed, valid or not
    errors = traitlets.Dict().tag(sync=True)  # field of the form, or "timeline" -> message
    notes = traitlets.List().tag(sync=True)  # what a video would lose of the form, or the last run has lost, in words
    python_code = traitlets.Unicode().tag(sync=True)  # of the form; "" while there are errors
    command_line = traitlets.Unicode().tag(sync=True)
    state = traitlets.Enum(("idle", "running", "cancelling", "done", "cancelled", "failed"), "idle").tag(sync=True)
    failure = traitlets.Unicode().tag(sync=True)  # why the last run failed
    progress = traitlets.Dict().tag(sync=True)  # step, steps, loop, loops, seconds, left (seconds, None if unknown)
    preview = traitlets.Bytes().tag(sync=True)  # during a run: some frames of the predicted x_0, JPEG
    history = traitlets.List().tag(sync=True)  # of each result kept: number, prompt, line, seconds …
    dropped = traitlets.Int(0).tag(sync=True)  # number of older results
    shown = traitlets.Int(0).tag(sync=True)  # number of the result that is played; 0: none
    compared = traitlets.Int(0).tag(sync=True)  # number of the result beside it; 0: none
    video = traitlets.Bytes().tag(sync=True)  # media of the result that is played; b"" if it is large

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
        self._spec = ModelSpec(generation=pipe.spec.generation)
        sizes = _trained_sizes(pipe, self._model)
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise TypeError(f"unknown setting {', '.join(unknown)}; a TaskLab has {', '.join(SETTINGS)}")
        chosen = replace(pipe.settings, **{"batch_size": 1, "num_sample": 1, **settings})
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome: Result | BaseException | None = None  # of the last run
        self._results: list[Result] = []
        self._problems: dict[str, OpenSoraError] = {}  # `errors` as exceptions
        self._request: Request | None = None  # of the form; None while there are errors
        self._ignores_timeline = False  # while this object changes the timeline
        self._preview_seconds = 0.0  # duration of the last preview
        shared = {name: getattr(chosen, name) for name in SHARED}
        super().__init__(
            timeline=MaskTimeline(
                references=references,
                strategy=strategy,
                reference_fps=chosen.reference_rate,
                generation=self._spec.generation,
                **shared,
            ),
            form={"prompt": prompt, **{name: getattr(chosen, name) for name in SETTINGS}},
            sizes=list(dict.fromkeys([*(sizes or SIZES), chosen.image_size])),
            samplers=list(self._spec.generation.samplers),
            fields=_fields(LABELS | (SCORES if self._spec.generation.is_flow else {})),
        )
        self._check()
        for problem in self._problems.values():
            self.close()
            raise problem
        self.timeline.observe(self._on_timeline, [*SHARED, "strategy", "references", "error"])
        self.on_msg(self._on_message)

    # -- the form

    def change(self, **values) -> None:
        """Change `prompt`, `references`, `strategy` and settings: all, or none and raise an OpenSoraError."""
        with self._lock:
            form, timeline, problems = self.form, self._timeline_values(), self._problems
            self._change(values)
            for field, problem in self._problems.items():
                if field in values or str(problem) != str(problems.get(field)):
                    self.form = form
                    self._check(**timeline)
                    raise problem

    def restore(self, number: int) -> None:
        """Fill the form with the prompt, settings, references and strategy of a result."""
        request = self.result(number).request
        settings = {name: getattr(request.settings, name) for name in SETTINGS}
        references, strategy = request.all_references, request.timeline_strategy
        self.change(prompt=request.prompt, references=references, strategy=strategy, **settings)

    def _change(self, values: Mapping) -> None:
        """Set values in the form, valid or not, and update `errors`."""
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
                form["condition_frames"] = self._spec.generation.usual_condition_frames(frames)
        self.form = form
        self._check(**timeline)

    def _check(self, **timeline) -> None:
        """Copy the form to the timeline, check it, and update `errors`, `notes` and the code.

        timeline: new references and a new strategy for the timeline.
        """
        with collected_notes() as notes:
            self._check_all(timeline)
        self.notes = list(dict.fromkeys(notes))

    def _check_all(self, timeline: dict) -> None:
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
            with about(field), self._ignoring_timeline():
                self.timeline.change(**new, reference_fps=settings.reference_rate, **timeline)
        if self.timeline.error:
            problems["timeline"] = MaskStrategyError("The text of the mask strategy has an error: correct or undo it.")
        with about("prompt"):
            self._check_prompt(form["prompt"], settings)
        if settings and not problems:
            request = self.timeline.request
            references, strategy = tuple(request["references"]), request["mask_strategy"]
            unreduced = self.timeline.references, self.timeline.strategy
            self._request = Request(form["prompt"], settings, references, strategy, *unreduced, self._spec)
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

    def _check_prompt(self, prompt, settings: Settings | None) -> None:
        if isinstance(prompt, str) and split_prompt(prompt)[1]:
            raise PromptError("The timeline holds references and the mask strategy: remove the JSON suffix.")
        # invalid settings are reported elsewhere
        plan([prompt], settings=settings or self.pipe.settings, spec=self.pipe.spec)

    def _timeline_values(self) -> dict:
        return {name: getattr(self.timeline, name) for name in ("references", "strategy")}

    @contextmanager
    def _ignoring_timeline(self):
        self._ignores_timeline = True
        try:
            yield
        finally:
            self._ignores_timeline = False

    def _on_timeline(self, change) -> None:
        """Copy a change of the timeline by the page or by Python code to the form."""
        if self._ignores_timeline:
            return
        with self._lock:
            if change["name"] in SHARED:
                self.form = {**self.form, change["name"]: change["new"]}
            self._check()

    # -- runs

    @property
    def results(self) -> list[Result]:
        """The last results, at most MAX_RESULTS, oldest first."""
        return list(self._results)

    def result(self, number: int) -> Result:
        """The result with this number. Raises OpenSoraError if it doesn't exist or was dropped."""
        for result in self._results:
            if result.number == number:
                return result
        kept = (
            f"there are {self._results[0].number} to {self._results[-1].number}" if self._results else "there is none"
        )
        raise OpenSoraError(f"result {number} does not exist; {kept}")

    def generate(self, wait: bool = False) -> Video | None:
        """Start the run that the form describes, in a thread; with `wait`, return its Video.

        Raises an OpenSoraError for an invalid form, and during another run. With `wait` it also raises the error of
        the run, or an OpenSoraError if the run was cancelled.
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
                self.progress = self._progress(self._request.settings, 0, 0.0)
            atexit.register(self._on_exit)
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
        """Stop the current run, if any, at its next step."""
        with self._lock:
            if self.state == "running":
                self._stop.set()
                self.state = "cancelling"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for the run to end; returns whether it has ended."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def close(self) -> None:
        """Cancel a running request and close the widget."""
        if self.trait_has_value("timeline"):  # __init__ may have failed before
            self.cancel()
            self.timeline.close()
        super().close()

    def _on_exit(self) -> None:
        """End the run before Python exits, which would abort a thread that is inside Paddle's code."""
        self.cancel()
        self.wait(EXIT_TIMEOUT)

    def _refuse_while_running(self) -> None:
        if self.state in ("running", "cancelling"):
            raise OpenSoraError("a run is in progress: wait for it, or cancel it first")

    def _run(self, request: Request) -> None:
        """The thread's function. It always ends in a state that allows the next run."""
        start = time.perf_counter()
        on_step = self._on_step(request.settings)
        try:
            with collected_notes() as notes:
                ((_, video),) = self.pipe.generate(request.jobs(), request.settings, on_step)
            if self._stop.is_set():
                raise _Cancelled
            seconds = time.perf_counter() - start
            comment = to_comment(video.info)  # for those who save it from the page
            if len(video) == 1:
                media = png_bytes(to_image(video.frames[0]), comment)
            else:
                media = mp4_bytes(video.frames, video.fps, comment)
            outcome = Result(self.dropped + len(self._results) + 1, request, video, seconds, media)
        except BaseException as error:  # shown in the page
            outcome = error
        atexit.unregister(self._on_exit)
        with self._lock, self.hold_sync():
            self._outcome = outcome
            self.preview = b""
            if isinstance(outcome, Result):
                self._results.append(outcome)
                self.notes = list(dict.fromkeys([*self.notes, *notes]))
                self._publish(outcome.number, self.compared)
                self.state = "done"
            elif isinstance(outcome, _Cancelled):
                self.state = "cancelled"
            else:
                self.failure, self.state = _message(outcome), "failed"

    def _on_step(self, settings: Settings):
        """The callback after every step of a run: cancels it, reports progress, and makes previews."""
        previewed, spent = 0.0, 0.0  # seconds: time of the last preview, and duration of all of them

        def on_step(progress: Progress) -> None:
            nonlocal previewed, spent
            if self._stop.is_set():
                raise _Cancelled
            seconds = progress.seconds
            preview = None
            affordable = spent + self._preview_seconds <= PREVIEW_SHARE * seconds
            if affordable and seconds - previewed >= PREVIEW_INTERVAL and progress.step.number < progress.steps:
                start = time.perf_counter()
                preview = self._make_preview(progress.step)
                self._preview_seconds = time.perf_counter() - start
                previewed, spent = seconds + self._preview_seconds, spent + self._preview_seconds
            with self._lock, self.hold_sync():
                done = progress.loop * progress.steps + progress.step.number
                self.progress = self._progress(settings, done, seconds)
                if preview:
                    self.preview = preview

        return on_step

    @staticmethod
    def _progress(settings: Settings, done: int, seconds: float) -> dict:
        """The value of `progress` after `done` steps of all loops."""
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

    def _make_preview(self, step) -> bytes:
        """A JPEG of some frames of the x_0 that a step predicts, decoded."""
        x_0, sample = (tensor[0].astype("float32").numpy() for tensor in (step.x_0, step.sample))  # [C, T, h, w]
        if step.active is not None:  # the other frames still have their conditioning latents
            x_0 = np.where(step.active[0].numpy(), x_0, sample)

        def some(n: int) -> np.ndarray:
            return np.unique(np.linspace(0, n - 1, PREVIEW_FRAMES).round().astype(int))

        if self._spec.generation.factor == 1:
            frames = self.pipe.decode(np.ascontiguousarray(x_0[:, some(x_0.shape[1])]))
        else:  # the latent frames of a chunk, here the first, are decoded together
            frames = self.pipe.decode(x_0[:, : self._spec.generation.align])
            frames = frames[some(len(frames))]
        return encoded(np.asarray(Video(frames).contact_sheet(2, scale=1, labels=False)), "JPEG")

    # -- results

    def show(self, number: int) -> None:
        """Play a result. Raises OpenSoraError if it doesn't exist or was dropped."""
        with self._lock:
            self.result(number)
            self._publish(number, self.compared)

    def compare(self, number: int | None) -> None:
        """Play a result beside the other one; None: stop comparing. Raises as `show` does."""
        with self._lock:
            if number:
                self.result(number)
            self._publish(self.shown, number or 0)

    def _publish(self, shown: int, compared: int) -> None:
        """Drop the oldest results, and update the history and what is played."""
        with self.hold_sync():
            surplus = max(len(self._results) - MAX_RESULTS, 0)
            del self._results[:surplus]
            self.dropped += surplus
            numbers = [result.number for result in self._results]
            self.compared = compared if compared in numbers else 0
            self.history = [self._entry(result) for result in self._results]
            self.shown = shown if shown in numbers else numbers[-1]
            media = self.result(self.shown).media
            self.video = media if len(media) <= MAX_SYNCED else b""

    def _entry(self, result: Result) -> dict:
        """The card of a result in the history."""
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

    # -- the page, and static pages

    def _on_message(self, _widget, content: dict, _buffers) -> None:
        """{"do": action, "id": id, …}; the reply is {"reply": id}, with a "failure" if the action failed."""
        do, reply, buffers = content.get("do"), {"reply": content.get("id")}, []
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
                    raise OpenSoraError(f"TaskLab has no action {do!r}")
        except Exception as error:  # shown in the page
            reply["failure"] = _message(error)
        self.send(reply, buffers)

    def __repr__(self) -> str:
        request = str(self._request) if self._request else f"errors: {'; '.join(self.errors)}"
        return f'TaskLab("{self.form["prompt"]}": {request}; {plural(len(self._results), "result")})'

    def still(self) -> tuple[np.ndarray, str]:
        small, bold = still_fonts()
        width = 900
        last = self._results[-1] if self._results else None
        lines = [(self.form["prompt"], bold), (str(self._request or "The form has errors."), small)]
        timeline = Image.fromarray(self.timeline.still()[0])
        pictures = [timeline] if timeline.width <= 1.5 * width else []  # a wider one would be illegible
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


def _fields(labels: Mapping[str, str]) -> list[dict]:
    """What the page must know of settings: label, description, the trait with their values, or their bounds."""
    return [
        {
            "name": name,
            "text": text,
            "title": SETTING_FIELDS[name].description,
            "choices": CHOICES.get(name),
            "least": bounds_of(name)[0],
            "most": bounds_of(name)[1],
            "step": "any" if "float" in str(SETTING_FIELDS[name].annotation) else 1,
            "required": SETTING_FIELDS[name].default is not None,
        }
        for name, text in labels.items()
    ]


def _trained_sizes(pipe, model: Mapping) -> list[tuple[int, int]]:
    """The image sizes that a model was trained on; empty if unknown. Raises OpenSoraError if `pipe` is another."""
    unknown = sorted(set(model) - set(MODEL_FLAGS))
    if unknown:
        raise TypeError(f"OpenSora.from_pretrained takes no {', '.join(unknown)}; it takes {', '.join(MODEL_FLAGS)}")
    in_parts = all(model.get(part) for part in ("stdit", "t5", "vae"))
    released = released_settings(pipe.spec.generation), []
    defaults, sizes = released if in_parts else model_defaults(model.get("model", "tiny"))
    if defaults != pipe.settings:
        raise OpenSoraError(
            "the pipeline's defaults differ from those of the model that the code would load:"
            ' say how it was loaded, model="FOLDER" or model={"stdit": …, "t5": …, "vae": …}'
        )
    return sizes


def _message(error: BaseException) -> str:
    """The message of an error; of unexpected errors with their type."""
    return str(error) if isinstance(error, OpenSoraError) else f"{type(error).__name__}: {error}"
