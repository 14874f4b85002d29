"""LatentPlayer: the tensors of a trace, step by step and frame by frame.

    trace = Trace()
    pipe("a red car driving right on the ocean at sunset", trace=trace)
    player = LatentPlayer(trace, pipe)       # the last line of a cell shows it
    player.step, player.frame = 12, 3        # moves the sliders in the browser
    player.picture                           # the PNG that is shown

Pictures are rendered on demand. Pictures of latents are cheap and not cached; decoded frames are cached, the most
recently used ones, up to `CACHE_BYTES`.
"""

import math
import threading
import time
from collections import OrderedDict
from typing import Annotated, Literal, NamedTuple

import numpy as np
from opensora_lite.widgets.figures import GENERATED, STYLE
from opensora_lite.widgets.widget import Widget, drawn, encoded, index_below, module, plural
from PIL import Image
from pydantic import Field
from traitlets import Bytes, Dict, Int, TraitError, Unicode, validate

from opensora_lite.errors import OpenSoraError
from opensora_lite.latent_time import LatentTime
from opensora_lite.schedule import TRAIN_STEPS, Schedule
from opensora_lite.trace import Trace, TraceStep
from opensora_lite.validation import Whole, check

# Views: value of the trait -> (title, description)
VIEWS = {
    "x_t": ("x_t in", "the noisy latent that went in"),
    "x_0": ("x_0 predicted", "the clean latent that the prediction implies"),
    "epsilon": ("ε", "the noise that the model predicts"),
    "velocity": ("v", "the velocity that the model predicts, from noise to the clean latent: x_0 − ε"),
    "guidance": ("guidance", "what the caption changes: the noise predicted with it − without it"),
    "sample": ("sample out", "the latent that came out"),
}
LATENTS = ("x_t", "x_0", "sample")  # views that the VAE can decode
SHOWS = {"channels": "channels", "false_color": "false colour", "pixels": "pixels"}

CACHE_BYTES = 64 * 2**20  # of decoded frames
THUMBNAIL_BYTES = 16 * 2**20  # of their thumbnails
# A film strip is stored in saved notebooks: limits of all its pixels, and of the longer side of one thumbnail.
STRIP_OF_LATENTS = 30_000, 16
STRIP_OF_FRAMES = 250_000, 48  # JPEG, about as many bytes
BINS = 48  # of the histogram
NORMAL_RANGE = 4.0  # the histogram covers at least -4 … 4, the range of a standard normal

_ALPHAS_CUMPROD = Schedule().alphas_cumprod.astype(np.float64)
LOG_SNR = np.log10(_ALPHAS_CUMPROD / (1 - _ALPHAS_CUMPROD))  # of t = 0 … 999
FLOW_LIMIT = (
    0.001  # of rectified flow's t, 0 … 1, and of 1 - t: its SNR is 0 at t = 1, and log₁₀ of that is drawn as -6
)


class PlayerError(OpenSoraError, TraitError):
    """An invalid state of a LatentPlayer. As a TraitError it makes traitlets keep the previous state."""


class State(NamedTuple):
    """A snapshot of the user's choices: another thread may change the traits while a picture is rendered."""

    step: int
    frame: int
    view: str
    show: str
    scope: str


class LatentPlayer(Widget):
    """Scrub through the steps and frames of a trace, look at its tensors, and compare it with another one.

    trace: a Trace with latents. pipe: an OpenSora, or any object with its `decode`; needed for pixels.
    compare: a second Trace with as many frames, shown beside the first at the nearest timestep and in the same scale.
    view: "x_t", "x_0", "epsilon" (of Open-Sora 1.2 "velocity"), "guidance" (eps_cond - eps_uncond, or v_cond -
    v_uncond) or "sample". show: "channels" (grey), "false_color" (the first three channels as red, green and blue) or
    "pixels" (decoded; of x_t, x_0 and sample). step: index into the trace. frame: index from 0, of a latent frame; its
    pixels are the last frame that it holds. Raises OpenSoraError for an invalid choice.

    view, show, step and frame are attributes that can be set at any time; setting one renders:

    picture, compare_picture: PNG. Channels are side by side, uint8 grey [h, C·w]: black is -scale, middle grey 0,
    white +scale. `scale` is the same for all steps, frames and channels of a view, and for both traces: the median over
    the steps of the largest absolute value in active frames. Larger values are clipped: the first x_0, and the x_0 of
    frames that are not active yet, can be huge. Guidance is middle grey at steps without it (`guidance_interval`).
    strip, compare_strip: the frame at all steps, side by side; PNG, or JPEG if decoded.
    """

    _esm = module("plots.js", "player.js")

    # Set by the page and from Python.
    step = Int(0).tag(sync=True)
    frame = Int(0).tag(sync=True)
    view = Unicode("x_0").tag(sync=True)
    show = Unicode("channels").tag(sync=True)
    scope = Unicode("frame").tag(sync=True)  # of the histogram: "frame" (the one shown) or "all"
    rate = Int(8).tag(sync=True)  # pictures per second while it plays

    # Set by Python only.
    plan = Dict().tag(sync=True)  # constant: steps, frame masks, names
    shown = Dict().tag(sync=True)  # the state that the pictures belong to, and statistics of it
    picture = Bytes().tag(sync=True)
    compare_picture = Bytes().tag(sync=True)
    strip = Bytes().tag(sync=True)
    compare_strip = Bytes().tag(sync=True)
    error = Unicode("").tag(sync=True)

    def __init__(
        self,
        trace: Trace,
        pipe=None,
        compare: Trace | None = None,
        view: str = "x_0",
        show: str = "channels",
        step: int = 0,
        frame: int = 0,
    ):
        if pipe is not None and not callable(getattr(pipe, "decode", None)):
            raise OpenSoraError(f"pipe must be an OpenSora, which decodes latents, not {type(pipe).__name__}")
        self._pipe = pipe
        self._tracks = [Track(trace, "trace")]
        if compare is not None:
            self._tracks.append(Track(compare, "compare"))
            first, second = (track.num_frames for track in self._tracks)
            if first != second:
                raise OpenSoraError(f"traces of {first} and {second} frames cannot be compared frame by frame")
            if self._tracks[0].predicts != self._tracks[1].predicts:
                raise OpenSoraError("a trace of noise predictions (1.1) and one of velocities (1.2) cannot be compared")
        other = {"noise": "velocity", "velocity": "epsilon"}[self._tracks[0].predicts]
        self._views = {name: texts for name, texts in VIEWS.items() if name != other}
        if other == "epsilon":
            title, text = VIEWS["guidance"]
            self._views["guidance"] = title, text.replace("noise", "velocity")
        self._scales: dict[str, float] = {}
        self._decoded, self._thumbnails = ByteCache(CACHE_BYTES), ByteCache(THUMBNAIL_BYTES)
        self._strips: dict[str, tuple] = {}  # by the track's name: (content key, encoded strip)
        self._lock = threading.RLock()  # kernels with subshells handle widget messages in another thread
        super().__init__(view=view, show=show, step=step, frame=frame, plan=self._plan())
        self._render()
        self.observe(self._render, list(State._fields))
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        track = self._tracks[0]
        compared = ", two traces" if len(self._tracks) > 1 else ""
        return (
            f"LatentPlayer({plural(len(track.steps), 'step')}, {plural(track.num_frames, 'frame')}{compared};"
            f" step {self.step}, frame {self.frame}, {self.view} as {SHOWS[self.show]})"
        )

    # -----------------------------------------------------------------------------------------------------------------
    #   Valid states
    # -----------------------------------------------------------------------------------------------------------------

    @validate("step", "frame", "view", "show", "scope", "rate")
    def _validate(self, proposal):
        name = proposal["trait"].name
        kinds = {
            "step": index_below(len(self._tracks[0].steps)),
            "frame": index_below(self._tracks[0].num_frames),
            "view": Literal[tuple(self._views)],
            "show": Literal[tuple(SHOWS)],
            "scope": Literal["frame", "all"],
            "rate": Annotated[Whole, Field(ge=1, le=60)],
        }
        value = check(kinds[name], proposal["value"], name, PlayerError)
        if reason := self._unavailable(value):
            raise PlayerError(f'{name} "{value}" is not possible here: {reason}')
        return value

    def _unavailable(self, choice: str | int) -> str:
        """Why a view or a way of showing it can't be chosen now; "" if it can."""
        if choice == "guidance":
            for track in self._tracks:
                if not any(map(is_guided, track.steps)):
                    return f"{track.name} was made without guidance (guidance_scale=1)"
        if choice == "pixels" and self._pipe is None:
            return "pixels need a model: LatentPlayer(trace, pipe)"
        if choice == "pixels" and self.view not in LATENTS:
            return "the VAE makes pixels of latents (x_t, x_0, sample), not of noise"
        return ""

    # -----------------------------------------------------------------------------------------------------------------
    #   Rendering
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """The value shown as white; -scale is black (in false colour: the extremes of red, green and blue)."""
        return self._scale(self.view)

    def fill_strip(self, seconds: float = math.inf) -> int:
        """Decode the missing thumbnails of the film strip; returns how many are still missing.

        seconds: no further thumbnail is started after this time. The steps nearest to the current one come first.
        """
        end = time.monotonic() + seconds
        with self._lock:
            state = self._state()
            missing = [
                (abs(index - at), number, index)
                for number, (track, at) in enumerate(self._positions(state))
                for index, complete in enumerate(self._have(state, track))
                if not complete
            ]
            done = 0
            for _, number, index in sorted(missing):
                self._thumbnail(state, self._tracks[number], index)
                done += 1
                if time.monotonic() >= end:
                    break
            self._render()
        return len(missing) - done

    def _render(self, change=None) -> None:
        """Render the current state. An exception is raised, and shown in the page as `error`."""
        if self.show == "pixels" and self.view not in LATENTS:
            self.show = "channels"  # which calls this method again
            return
        with self._lock:
            state = self._state()
            try:
                rendered = self._rendered(state)
            except Exception as error:
                where = f"step {state.step}, frame {state.frame}, {state.view}"
                self.error = f"{where}: {type(error).__name__}: {error}"
                raise
            with self.hold_sync():  # one message, so that the page never shows half of a change
                for name, value in rendered.items():
                    setattr(self, name, value)

    def _rendered(self, state: State) -> dict:
        """The values of the traits for a state."""
        positions, scale = self._positions(state), self._scale(state.view)
        limit = scale if state.view == "guidance" else max(NORMAL_RANGE, scale)
        pictures = [encoded(self._pixels(state, track, index)) for track, index in positions]
        strips = [self._strip(state, track) for track in self._tracks]
        shown = {
            **state._asdict(),
            "at": [index for _, index in positions],
            "scale": round(scale, 4),
            "limit": round(limit, 4),
            "histograms": [histogram(track.scoped(index, state), limit) for track, index in positions],
            "have": ["".join("01"[complete] for complete in self._have(state, track)) for track in self._tracks],
            "notes": [note for track, index in positions if (note := self._note(state, track, index))],
            "reasons": {name: reason for name in (*self._views, *SHOWS) if (reason := self._unavailable(name))},
        }
        rendered = {"shown": shown, "error": "", "picture": pictures[0], "strip": strips[0]}
        if len(self._tracks) > 1:
            rendered.update(compare_picture=pictures[1], compare_strip=strips[1])
        return rendered

    def _state(self) -> State:
        return State(*(getattr(self, name) for name in State._fields))

    def _scale(self, view: str) -> float:
        if view not in self._scales:
            largest = [
                track.largest(index, view)
                for track in self._tracks
                for index in range(len(track.steps))
                if track.has(index, view)
            ]
            self._scales[view] = float(np.median(largest)) or 1.0
        return self._scales[view]

    def _note(self, state: State, track: "Track", index: int) -> str:
        """What is particular about a step of a trace; "" if nothing is."""
        step, notes = track.steps[index], []
        if not track.has(index, state.view):
            notes.append("guidance was off (outside guidance_interval)")
        if step.reused:
            notes.append("the model was not evaluated; the previous output was reused (cache_threshold)")
        name = f"{track.name}, " if len(self._tracks) > 1 else ""
        return f"{name}t = {track.times[index]}: {'; '.join(notes)}" if notes else ""

    def _positions(self, state: State) -> list[tuple["Track", int]]:
        """Each trace with the index of the step shown."""
        first, *others = self._tracks
        here = first.steps[state.step]
        return [(first, state.step), *((track, track.nearest(here.loop, here.timestep)) for track in others)]

    def _pixels(self, state: State, track: "Track", index: int) -> np.ndarray:
        """A frame at a step: uint8 [h, C·w] for channels, else [height, width, 3]."""
        latent = track.values(index, state.view)[:, state.frame]
        if state.show == "pixels":
            window = track.windows[state.frame]  # the VAE decodes the latent frames of a chunk together
            key = track.name, state.view, index, window.chunk
            latents = track.values(index, state.view)[:, [w.chunk == window.chunk for w in track.windows]]
            count = () if track.unit == "frame" else (window.chunk_last - window.chunk_first + 1,)
            frames = self._decoded.get(key, lambda: self._pipe.decode(latents, *count))
            return frames[window.last - window.chunk_first]
        levels = grey(latent, self._scale(state.view))
        return np.concatenate(levels, axis=1) if state.show == "channels" else false_color(levels)

    def _strip(self, state: State, track: "Track") -> bytes:
        """The film strip of a trace: the frame at all steps, side by side; black where it is not decoded yet."""
        decoded, have = state.show == "pixels", self._have(state, track)
        key = state.view, state.frame, decoded, have
        if self._strips.get(track.name, (None,))[0] != key:
            thumbnails = [
                self._thumbnail(state, track, index) if complete else None for index, complete in enumerate(have)
            ]
            empty = np.zeros_like(next(thumbnail for thumbnail in thumbnails if thumbnail is not None))
            film = np.concatenate([empty if thumbnail is None else thumbnail for thumbnail in thumbnails], axis=1)
            self._strips[track.name] = key, encoded(film, "JPEG" if decoded else "PNG")
        return self._strips[track.name][1]

    def _have(self, state: State, track: "Track") -> list[bool]:
        """Which steps have a thumbnail in the film strip: not those to be decoded first, nor those without guidance."""
        if state.show != "pixels":
            return [track.has(index, state.view) for index in range(len(track.steps))]
        frame, chunk = state.frame, track.windows[state.frame].chunk
        steps = [(track.name, state.view, index) for index in range(len(track.steps))]
        return [(*step, frame) in self._thumbnails or (*step, chunk) in self._decoded for step in steps]

    def _thumbnail(self, state: State, track: "Track", index: int) -> np.ndarray:
        """A frame at a step, small, uint8 [height, width, 3]; latents in false colour."""
        if state.show != "pixels":
            picture = self._pixels(state._replace(show="false_color"), track, index)
            return reduced(picture, thumbnail_side(track, *STRIP_OF_LATENTS))
        key = track.name, state.view, index, state.frame
        side = thumbnail_side(track, *STRIP_OF_FRAMES)
        return self._thumbnails.get(key, lambda: reduced(self._pixels(state, track, index), side))

    def _plan(self) -> dict:
        return {
            "tracks": [track.plan() for track in self._tracks],
            "views": {name: list(texts) for name, texts in self._views.items()},
            "shows": SHOWS,
        }

    def _on_message(self, _, content, buffers) -> None:
        """{"fill": true}: the page is idle and asks for more of the film strip."""
        if content.get("fill") and self.show == "pixels":
            self.fill_strip(seconds=0.1)

    # -----------------------------------------------------------------------------------------------------------------
    #   Without a kernel
    # -----------------------------------------------------------------------------------------------------------------

    def still(self) -> tuple[np.ndarray, str]:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        state = self._state()
        rows, columns = len(self._tracks), min(8, max(len(track.steps) for track in self._tracks))
        with self._lock, rc_context(STYLE):
            figure = Figure(figsize=(7.2, 2.3 + rows), layout="constrained")
            above, below = figure.subfigures(2, 1, height_ratios=[2.1, rows])
            pictures, *plots = above.subfigures(1, 3, width_ratios=[0.6 + 0.5 * rows, 1, 1])
            self._still_pictures(pictures, state)
            self._still_values(plots[0].subplots())
            self._still_snr(plots[1].subplots(), state)
            self._still_strips(below.subplots(rows, columns, squeeze=False), state)
            picture = drawn(figure, colors=128)
        track = self._tracks[0]
        here = track.steps[state.step]
        text = (
            f"LatentPlayer: {self._views[state.view][1]}, as {SHOWS[state.show]}; {track.name_of(state.frame)},"
            f" step {here.number}, t = {track.times[state.step]}. With a running kernel sliders move through all"
            f" {plural(len(track.steps), 'step')} and {plural(track.num_frames, track.unit)}."
        )
        return picture, " ".join([text, *(f"{note}." for note in self.shown["notes"])])

    def _still_pictures(self, figure, state: State) -> None:
        title = f"{VIEWS[state.view][0]}, {self._tracks[0].name_of(state.frame)}"
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(1, len(self._tracks), squeeze=False)[0]
        for axis, (track, index) in zip(axes, self._positions(state), strict=True):
            picture = self._pixels(state, track, index)
            if state.show == "channels":
                picture = in_two_rows(np.split(picture, track.channels, axis=1))
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            axis.set_title(f"t = {track.times[index]}", fontsize=9)

    def _still_values(self, axis) -> None:
        limit = self.shown["limit"]
        for number, numbers in enumerate(self.shown["histograms"]):
            edges = np.linspace(-limit, limit, BINS + 1)
            axis.stairs(numbers["density"], edges, fill=not number, color=(GENERATED, "black")[number])
        x = np.linspace(-limit, limit, 200)
        axis.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="#777777", linewidth=0.8)
        axis.set(title="values; line: N(0, 1)", yticks=[], xlim=(-limit, limit))

    def _still_snr(self, axis, state: State) -> None:
        values = self._tracks[0].log_snr
        axis.plot(values, color="black")
        axis.plot(state.step, values[state.step], "o", color="black")
        axis.set(title="log₁₀ SNR, by step", xticks=sorted({0, len(values) - 1}))

    def _still_strips(self, axes, state: State) -> None:
        for line, track in zip(axes, self._tracks, strict=True):
            chosen = np.linspace(0, len(track.steps) - 1, min(len(line), len(track.steps))).round().astype(int)
            for axis in line:
                axis.set_axis_off()
            for axis, index in zip(line, chosen, strict=False):
                axis.imshow(self._thumbnail(state, track, int(index)))
                axis.set_title(f"t = {track.times[index]}", fontsize=8)


# ---------------------------------------------------------------------------------------------------------------------
#   The steps of a trace
# ---------------------------------------------------------------------------------------------------------------------


def is_guided(step: TraceStep) -> bool:
    """Whether the step was made with classifier-free guidance."""
    return step.eps_uncond is not None or step.v_uncond is not None


class Track:
    """The steps of a trace, copied: recording another video with the same Trace doesn't change them.

    name: of the argument, for messages. Raises OpenSoraError if `trace` isn't a Trace, or has no steps or no latents.
    """

    def __init__(self, trace: Trace, name: str):
        if not isinstance(trace, Trace):
            raise OpenSoraError(f"{name} must be a Trace, not {type(trace).__name__}; pipe(prompt, trace=Trace())")
        self.name, self.steps, self.loops = name, list(trace), list(trace.loops)
        if not self.steps:
            raise OpenSoraError(f"{name} is empty; record a video: pipe(prompt, trace=trace)")
        if any(step.x_t is None for step in self.steps):
            raise OpenSoraError(f"{name} was recorded without latents; record it with Trace(latents=True)")
        self.channels, self.num_frames = self.steps[0].x_t.shape[:2]
        self.predicts = self.loops[0].predicts
        self.windows = self.loops[0].windows or LatentTime().windows(self.num_frames)
        self.unit = "latent frame" if self.loops[0].has_latent_frames else "frame"
        self.times = [round(step.timestep, 1) for step in self.steps]  # of 1.1 whole, of 1.2 any
        self.times = [int(t) if t == int(t) else t for t in self.times]
        if self.predicts == "noise":
            self.log_snr = [float(LOG_SNR[step.timestep]) for step in self.steps]
        else:
            t = np.clip([step.timestep / TRAIN_STEPS for step in self.steps], FLOW_LIMIT, 1 - FLOW_LIMIT)
            self.log_snr = (2 * np.log10((1 - t) / t)).tolist()

    def name_of(self, frame: int) -> str:
        """For example "frame 3", "latent frame 3 (frames 9–12)"."""
        return f"{self.unit} {frame}{self.held(frame)}"

    def held(self, frame: int) -> str:
        """The frames that a latent frame holds, in words: " (frames 9–12)"; "" for a frame."""
        first, last = self.windows[frame].first, self.windows[frame].last
        return "" if self.unit == "frame" else f" (frame {first})" if first == last else f" (frames {first}–{last})"

    def has(self, index: int, view: str) -> bool:
        """Whether a step has this view: guidance is missing outside the guidance interval."""
        return view != "guidance" or is_guided(self.steps[index])

    def values(self, index: int, view: str) -> np.ndarray:
        """float32 [C, T, h, w] of a step; zeros if it doesn't have this view."""
        step = self.steps[index]
        if view != "guidance":
            return getattr(step, view)
        cond, uncond = (step.eps_cond, step.eps_uncond) if self.predicts == "noise" else (step.v_cond, step.v_uncond)
        return cond - (cond if uncond is None else uncond)

    def scoped(self, index: int, state: State) -> np.ndarray:
        """The values that the histogram covers; empty if the step doesn't have this view."""
        if not self.has(index, state.view):
            return np.empty(0, np.float32)
        values = self.values(index, state.view)
        return values[:, state.frame] if state.scope == "frame" else values

    def largest(self, index: int, view: str) -> float:
        """The largest absolute finite value in the active frames of a step."""
        values = np.abs(self.values(index, view)[:, self.steps[index].active])
        return float(values.max(initial=0, where=np.isfinite(values)))

    def nearest(self, loop: int, timestep: float) -> int:
        """The index of the step with the nearest timestep in this loop (in the last loop, if there are fewer)."""
        loop = min(loop, max(step.loop for step in self.steps))
        return min(
            (index for index, step in enumerate(self.steps) if step.loop == loop),
            key=lambda index: abs(self.steps[index].timestep - timestep),
        )

    def plan(self) -> dict:
        """The constant data of the page."""
        return {
            "captions": [loop.caption for loop in self.loops],
            "ratios": [[round(float(ratio), 4) for ratio in loop.edit_ratios] for loop in self.loops],
            "steps": [
                [step.loop, step.number, t, round(snr, 3)]
                for step, t, snr in zip(self.steps, self.times, self.log_snr, strict=True)
            ],
            "unit": self.unit,
            "held": [self.held(frame) for frame in range(self.num_frames)],
            "active": ["".join("01"[int(active)] for active in step.active) for step in self.steps],
            "shape": list(self.steps[0].x_t.shape),
        }


class ByteCache:
    """A least-recently-used cache of arrays with a limit in bytes; the newest array is kept whatever its size."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def __contains__(self, key) -> bool:
        return key in self._arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key, make) -> np.ndarray:
        """The array of a key; `make()` computes a missing one."""
        if key not in self._arrays:
            array = make()
            self._arrays[key] = array
            self.bytes += array.nbytes
            while self.bytes > self.limit and len(self._arrays) > 1:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes
        self._arrays.move_to_end(key)
        return self._arrays[key]


# ---------------------------------------------------------------------------------------------------------------------
#   Values to pictures
# ---------------------------------------------------------------------------------------------------------------------


def grey(values: np.ndarray, scale: float) -> np.ndarray:
    """uint8 like `values`: -scale -> 0, 0 and nan -> 128, scale -> 255, clipped beyond."""
    levels = np.nan_to_num(values / np.float32(scale), nan=0, posinf=1, neginf=-1).clip(-1, 1)
    return np.floor(127.5 * levels + 128).clip(0, 255).astype(np.uint8)


def false_color(latent: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] of uint8 [C, h, w]: the first three channels are red, green and blue."""
    return np.ascontiguousarray(latent[:3].transpose(1, 2, 0))


def thumbnail_side(track: Track, pixels: int, most: int) -> int:
    """The longer side of a thumbnail: at most `most`, and about `pixels` pixels in the thumbnails of all steps."""
    return min(most, max(math.isqrt(pixels // len(track.steps)), 1))


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 [height, width, 3], scaled down to a longer side of at most `side`."""
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.asarray(Image.fromarray(picture).resize(size, Image.BOX))


def histogram(values: np.ndarray, limit: float) -> dict:
    """Densities of `BINS` bins in -limit … limit, mean, standard deviation, and the share beyond the limits.

    strange: the number of infinite and nan values, which the statistics exclude.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    count = max(finite.size, 1)
    counts, _ = np.histogram(finite, BINS, (-limit, limit))
    return {
        "density": [round(n / count * BINS / (2 * limit), 4) for n in counts.tolist()],
        "mean": round(float(finite.mean()), 3) if finite.size else 0.0,
        "std": round(float(finite.std()), 3) if finite.size else 0.0,
        "beyond": round(1 - int(counts.sum()) / count, 4) if finite.size else 0.0,
        "strange": int(values.size - finite.size),
    }


def in_two_rows(channels: list[np.ndarray]) -> np.ndarray:
    """C grey pictures [h, w] in two rows with white lines between them, [2·h + 1, ceil(C / 2)·(w + 1) - 1]."""
    height, width = channels[0].shape
    columns = math.ceil(len(channels) / 2)
    page = np.full((2 * (height + 1) - 1, columns * (width + 1) - 1), 255, np.uint8)
    for number, channel in enumerate(channels):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        page[top : top + height, left : left + width] = channel
    return page
