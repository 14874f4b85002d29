"""LatentPlayer: how a video came about, step by step and frame by frame.

    trace = Trace()
    pipe("a red car driving right on the ocean at sunset", trace=trace)
    player = LatentPlayer(trace, pipe)       # the last line of a cell shows it
    player.step, player.frame = 12, 3        # moves the sliders in the browser
    player.picture                           # the PNG that stands there now

Pictures are made when the state asks for them. Those of latents cost less than keeping them would; frames that the VAE
has decoded are kept, the last used ones, up to `CACHE_BYTES`.
"""

import math
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from opensora_lite.widgets.figures import GENERATED, STYLE
from opensora_lite.widgets.widget import Widget, encoded, module
from PIL import Image
from traitlets import Bytes, Dict, Int, TraitError, Unicode, validate

from opensora_lite.errors import OpenSoraError
from opensora_lite.trace import Trace

# What can be looked at: the name of the trait's value -> what it is called, and what it is.
VIEWS = {
    "x_t": ("x_t in", "the noisy latent that went in"),
    "x_0": ("x_0 predicted", "the clean latent that the prediction implies"),
    "epsilon": ("ε", "the noise that the model predicts"),
    "guidance": ("guidance", "what the caption changes: the noise predicted with it − without it"),
    "sample": ("sample out", "the latent that came out"),
}
LATENTS = ("x_t", "x_0", "sample")  # of these the VAE makes pixels; of noise it cannot
SHOWS = {"channels": "channels", "false_color": "false colour", "pixels": "pixels"}
SCOPES = ("frame", "all")

CACHE_BYTES = 64 * 2**20  # of decoded frames
THUMBNAIL_BYTES = 16 * 2**20  # of their thumbnails
# A film strip lies in a saved notebook. The most pixels of its thumbnails together, and of one's longer side:
STRIP_OF_LATENTS = 30_000, 16
STRIP_OF_FRAMES = 250_000, 48  # JPEG makes them as small
BINS = 48  # of the histogram
NORMAL_RANGE = 4.0  # the histogram goes at least from -4 to 4, where a standard normal is

# SNR = ᾱ / (1 − ᾱ) of the times 0 … 999, as in samplers.schedule, which cannot be had without Paddle.
_ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LOG_SNR = np.log10(_ABAR / (1 - _ABAR))


class PlayerError(OpenSoraError, TraitError):
    """A state that a LatentPlayer cannot be in; as a TraitError, so that the state before is kept."""


class State(NamedTuple):
    """What a hand has chosen, at one moment: while a picture is made, another thread may already choose anew."""

    step: int
    frame: int
    view: str
    show: str
    scope: str


class LatentPlayer(Widget):
    """Scrub through the steps and frames of a trace, look at its tensors, and compare it with another one.

    trace: a Trace with latents. pipe: an OpenSora, or anything with its `decode`; without one there are no pixels.
    compare: a second Trace with as many frames, shown beside the first at the nearest timestep and in the same scale.
    view: "x_t", "x_0", "epsilon", "guidance" or "sample". show: "channels" (grey), "false_color" (the first three
    channels as red, green and blue) or "pixels" (decoded; of x_t, x_0 and sample). step: index into the trace. frame:
    index, as everywhere from 0. Raises OpenSoraError for what cannot be shown.

    All of these but the first three are attributes that can be set at any time; setting one makes new pictures:

    picture, compare_picture: PNG. Channels lie side by side, uint8 grey [h, C·w]: black is -scale, middle grey 0,
    white +scale. `scale` is one for all steps, frames and channels of a view, and for both traces: the median over the
    steps of the largest absolute value in frames that the step changes. Values beyond it are clipped: the first x_0,
    and the x_0 of frames that wait, can be huge.
    strip, compare_strip: the frame at all steps, side by side; PNG, or JPEG where it is decoded.
    """

    _esm = module("player.js")

    # What a hand moves.
    step = Int(0).tag(sync=True)
    frame = Int(0).tag(sync=True)
    view = Unicode("x_0").tag(sync=True)
    show = Unicode("channels").tag(sync=True)
    scope = Unicode("frame").tag(sync=True)  # of the histogram: "frame", the one that is shown, or "all" of the step
    rate = Int(8).tag(sync=True)  # pictures per second while it plays

    # What is shown.
    plan = Dict().tag(sync=True)  # what never changes: steps, frame masks, names
    shown = Dict().tag(sync=True)  # the state that the pictures belong to, and numbers about it
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
            ours, theirs = (track.num_frames for track in self._tracks)
            if ours != theirs:
                raise OpenSoraError(f"traces of {ours} and {theirs} frames cannot be compared frame by frame")
        self._scales: dict[str, float] = {}
        self._decoded, self._thumbnails = ByteCache(CACHE_BYTES), ByteCache(THUMBNAIL_BYTES)
        self._strips: dict[str, tuple] = {}  # of a track: what its strip shows, and the strip
        self._lock = threading.RLock()  # a kernel with subshells hears the browser in a thread of its own
        super().__init__(view=view, show=show, step=step, frame=frame, plan=self._plan())
        self._render()
        self.observe(self._render, list(State._fields))
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        track = self._tracks[0]
        compared = ", two traces" if len(self._tracks) > 1 else ""
        return (
            f"LatentPlayer({_count(len(track.steps), 'step')}, {_count(track.num_frames, 'frame')}{compared};"
            f" step {self.step}, frame {self.frame}, {self.view} as {SHOWS[self.show]})"
        )

    # -----------------------------------------------------------------------------------------------------------------
    #   What the state may be
    # -----------------------------------------------------------------------------------------------------------------

    @validate("step", "frame", "view", "show", "scope", "rate")
    def _checked(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        track = self._tracks[0]
        if name in ("step", "frame"):
            count = len(track.steps) if name == "step" else track.num_frames
            if not 0 <= value < count:
                raise PlayerError(f"{name} {value} does not exist; there are {count}, 0 to {count - 1}")
        elif name == "rate":
            if not 1 <= value <= 60:
                raise PlayerError(f"rate is {value}; give 1 to 60 pictures per second")
        else:
            known = {"view": VIEWS, "show": SHOWS, "scope": SCOPES}[name]
            if value not in known:
                raise PlayerError(f'{name} "{value}" does not exist; there are {", ".join(known)}')
            if reason := self._why_not(value):
                raise PlayerError(f'{name} "{value}" is not possible here: {reason}')
        return value

    def _why_not(self, choice: str) -> str:
        """Why a view or a way of showing it is not possible now; "" where it is."""
        if choice == "guidance":
            for track in self._tracks:
                if any(step.eps_uncond is None for step in track.steps):
                    return f"{track.name} was made without guidance (guidance_scale=1)"
        if choice == "pixels" and self._pipe is None:
            return "pixels need a model: LatentPlayer(trace, pipe)"
        if choice == "pixels" and self.view not in LATENTS:
            return "the VAE makes pixels of latents (x_t, x_0, sample), not of noise"
        return ""

    # -----------------------------------------------------------------------------------------------------------------
    #   What the state looks like
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """The value that is white; -scale is black, or with false colour the least of red, green and blue."""
        return self._scale(self.view)

    def fill_strip(self, seconds: float = math.inf) -> int:
        """Decode what the film strip of the frame still lacks; gives how many steps are left to decode.

        seconds: after which no further one is begun; the steps nearest to the one that is shown come first.
        """
        end = time.monotonic() + seconds
        with self._lock:
            state = self._state()
            missing = [
                (abs(index - at), number, index)
                for number, (track, at) in enumerate(self._positions(state))
                for index, there in enumerate(self._have(state, track))
                if not there
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
        """Make the pictures and numbers of the state. What fails is raised here, and told in the browser."""
        if self.show == "pixels" and self.view not in LATENTS:
            self.show = "channels"  # whose change comes back here
            return
        with self._lock:
            state = self._state()
            try:
                rendered = self._rendered(state)
            except Exception as error:
                where = f"step {state.step}, frame {state.frame}, {state.view}"
                self.error = f"{where}: {type(error).__name__}: {error}"
                raise
            with self.hold_sync():  # one message: the browser never sees half of a change
                for name, value in rendered.items():
                    setattr(self, name, value)

    def _rendered(self, state: State) -> dict:
        """The traits that a state implies."""
        positions, scale = self._positions(state), self._scale(state.view)
        limit = scale if state.view == "guidance" else max(NORMAL_RANGE, scale)
        pictures = [encoded(self._pixels(state, track, index)) for track, index in positions]
        strips = [self._strip(state, track) for track in self._tracks]
        shown = {
            **state._asdict(),
            "at": [index for _, index in positions],
            "scale": round(scale, 4),
            "limit": round(limit, 4),
            "histograms": [histogram(scoped(state, track, index), limit) for track, index in positions],
            "have": ["".join("01"[there] for there in self._have(state, track)) for track in self._tracks],
            "reasons": {name: reason for name in (*VIEWS, *SHOWS) if (reason := self._why_not(name))},
        }
        rendered = {"shown": shown, "error": "", "picture": pictures[0], "strip": strips[0]}
        if len(self._tracks) > 1:
            rendered.update(compare_picture=pictures[1], compare_strip=strips[1])
        return rendered

    def _state(self) -> State:
        return State(*(getattr(self, name) for name in State._fields))

    def _scale(self, view: str) -> float:
        if view not in self._scales:
            most = [track.largest(index, view) for track in self._tracks for index in range(len(track.steps))]
            self._scales[view] = float(np.median(most)) or 1.0
        return self._scales[view]

    def _positions(self, state: State) -> list[tuple["Track", int]]:
        """Each trace and the index of its step that is shown."""
        first, *others = self._tracks
        here = first.steps[state.step]
        return [(first, state.step), *((track, track.nearest(here.loop, here.timestep)) for track in others)]

    def _pixels(self, state: State, track: "Track", index: int) -> np.ndarray:
        """The frame at a step of a trace: uint8 [h, C·w] for channels, otherwise [height, width, 3]."""
        latent = track.values(index, state.view)[:, state.frame]
        if state.show == "pixels":
            key = track.name, state.view, index, state.frame
            return self._decoded.get(key, lambda: self._pipe.decode(latent[:, None])[0])
        levels = grey(latent, self._scale(state.view))
        return np.concatenate(levels, axis=1) if state.show == "channels" else false_color(levels)

    def _strip(self, state: State, track: "Track") -> bytes:
        """The film strip of a trace: all steps of the frame side by side; black where one is not decoded yet."""
        decoded, have = state.show == "pixels", self._have(state, track)
        what = state.view, state.frame, decoded, have
        if self._strips.get(track.name, (None,))[0] != what:
            thumbnails = [self._thumbnail(state, track, index) if there else None for index, there in enumerate(have)]
            empty = np.zeros_like(next(thumbnail for thumbnail in thumbnails if thumbnail is not None))
            film = np.concatenate([empty if thumbnail is None else thumbnail for thumbnail in thumbnails], axis=1)
            self._strips[track.name] = what, encoded(film, "JPEG" if decoded else "PNG")
        return self._strips[track.name][1]

    def _have(self, state: State, track: "Track") -> list[bool]:
        """For which steps the film strip has a thumbnail: for all, but where each must be decoded first."""
        keys = ((track.name, state.view, index, state.frame) for index in range(len(track.steps)))
        return [state.show != "pixels" or key in self._thumbnails or key in self._decoded for key in keys]

    def _thumbnail(self, state: State, track: "Track", index: int) -> np.ndarray:
        """A small picture of the frame at a step, uint8 [height, width, 3]; latents are in false colour."""
        if state.show != "pixels":
            picture = self._pixels(state._replace(show="false_color"), track, index)
            return reduced(picture, thumbnail_side(track, *STRIP_OF_LATENTS))
        key = track.name, state.view, index, state.frame
        side = thumbnail_side(track, *STRIP_OF_FRAMES)
        return self._thumbnails.get(key, lambda: reduced(self._pixels(state, track, index), side))

    def _plan(self) -> dict:
        return {
            "tracks": [track.plan() for track in self._tracks],
            "views": {name: list(texts) for name, texts in VIEWS.items()},
            "shows": SHOWS,
        }

    def _on_message(self, _, content, buffers) -> None:
        """The browser is at rest and asks for more of the film strip."""
        if content.get("fill") and self.show == "pixels":
            self.fill_strip(seconds=0.1)

    # -----------------------------------------------------------------------------------------------------------------
    #   Without a kernel
    # -----------------------------------------------------------------------------------------------------------------

    def still(self) -> tuple[np.ndarray, str]:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
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
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        track = self._tracks[0]
        here = track.steps[state.step]
        text = (
            f"LatentPlayer: {VIEWS[state.view][1]}, as {SHOWS[state.show]}; frame {state.frame}, step {here.number},"
            f" t = {here.timestep}. With a running kernel sliders move through all {_count(len(track.steps), 'step')}"
            f" and {_count(track.num_frames, 'frame')}."
        )
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        few = picture.quantize(128, dither=Image.Dither.NONE).convert("RGB")  # colours: half the bytes in a notebook
        return np.asarray(few), text

    def _still_pictures(self, figure, state: State) -> None:
        figure.suptitle(f"{VIEWS[state.view][0]}, frame {state.frame}", fontsize=10)
        axes = figure.subplots(1, len(self._tracks), squeeze=False)[0]
        for axis, (track, index) in zip(axes, self._positions(state), strict=True):
            picture = self._pixels(state, track, index)
            if state.show == "channels":
                picture = in_two_rows(np.split(picture, track.channels, axis=1))
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            axis.set_title(f"t = {track.steps[index].timestep}", fontsize=9)

    def _still_values(self, axis) -> None:
        limit = self.shown["limit"]
        for number, numbers in enumerate(self.shown["histograms"]):
            edges = np.linspace(-limit, limit, BINS + 1)
            axis.stairs(numbers["density"], edges, fill=not number, color=(GENERATED, "black")[number])
        x = np.linspace(-limit, limit, 200)
        axis.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="#777777", linewidth=0.8)
        axis.set(title="values; line: N(0, 1)", yticks=[], xlim=(-limit, limit))

    def _still_snr(self, axis, state: State) -> None:
        values = [LOG_SNR[step.timestep] for step in self._tracks[0].steps]
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
                axis.set_title(f"t = {track.steps[index].timestep}", fontsize=8)


# ---------------------------------------------------------------------------------------------------------------------
#   A trace as it is played
# ---------------------------------------------------------------------------------------------------------------------


class Track:
    """The steps of a trace as they are now: a trace that records another video later changes nothing here.

    name: of the argument, for messages. Raises OpenSoraError for what is no trace, or one without steps or latents.
    """

    def __init__(self, trace: Trace, name: str):
        if not isinstance(trace, Trace):
            raise OpenSoraError(f"{name} must be a Trace, not {type(trace).__name__}; pipe(prompt, trace=Trace())")
        self.name, self.steps, self.loops = name, list(trace), list(trace.loops)
        if not self.steps:
            raise OpenSoraError(f"{name} is empty; let it follow a video: pipe(prompt, trace=trace)")
        if any(step.x_t is None for step in self.steps):
            raise OpenSoraError(f"{name} was recorded without latents; record it with Trace(latents=True)")
        self.channels, self.num_frames = self.steps[0].x_t.shape[:2]

    def values(self, index: int, view: str) -> np.ndarray:
        """float32 [C, T, h, w] of a step."""
        step = self.steps[index]
        return step.eps_cond - step.eps_uncond if view == "guidance" else getattr(step, view)

    def largest(self, index: int, view: str) -> float:
        """The largest absolute value in the frames that a step changes; infinite ones and nan don't count."""
        values = np.abs(self.values(index, view)[:, self.steps[index].active])
        return float(values.max(initial=0, where=np.isfinite(values)))

    def nearest(self, loop: int, timestep: int) -> int:
        """The index of the step of this loop, or the last one there is, that is nearest to a timestep."""
        loop = min(loop, max(step.loop for step in self.steps))
        return min(
            (index for index, step in enumerate(self.steps) if step.loop == loop),
            key=lambda index: abs(self.steps[index].timestep - timestep),
        )

    def plan(self) -> dict:
        """What the browser needs to know of it, once."""
        return {
            "captions": [loop.caption for loop in self.loops],
            "ratios": [[round(float(ratio), 4) for ratio in loop.edit_ratios] for loop in self.loops],
            "steps": [
                [step.loop, step.number, step.timestep, round(float(LOG_SNR[step.timestep]), 3)] for step in self.steps
            ],
            "active": ["".join("01"[int(active)] for active in step.active) for step in self.steps],
            "shape": list(self.steps[0].x_t.shape),
        }


class ByteCache:
    """Arrays by key: the last used ones, up to a number of bytes; the newest one whatever its size."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def __contains__(self, key) -> bool:
        return key in self._arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key, make) -> np.ndarray:
        """The array of a key; `make` gives it where there is none."""
        if key not in self._arrays:
            array = make()
            self._arrays[key] = array
            self.bytes += array.nbytes
            while self.bytes > self.limit and len(self._arrays) > 1:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes
        self._arrays.move_to_end(key)
        return self._arrays[key]


# ---------------------------------------------------------------------------------------------------------------------
#   From numbers to pictures
# ---------------------------------------------------------------------------------------------------------------------


def grey(values: np.ndarray, scale: float) -> np.ndarray:
    """uint8 like `values`: -scale is 0, 0 is 128 and so is nan, scale is 255; beyond, it is clipped."""
    levels = np.nan_to_num(values / np.float32(scale), nan=0, posinf=1, neginf=-1).clip(-1, 1)
    return np.floor(127.5 * levels + 128).clip(0, 255).astype(np.uint8)


def false_color(latent: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] of uint8 [C, h, w]: the first three channels are red, green and blue."""
    return np.ascontiguousarray(latent[:3].transpose(1, 2, 0))


def thumbnail_side(track: Track, pixels: int, most: int) -> int:
    """The longer side of a thumbnail of `track`, so that those of all steps together have about so many pixels."""
    return min(most, max(math.isqrt(pixels // len(track.steps)), 1))


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [height, width, 3] with a longer side of at most `side`."""
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.asarray(Image.fromarray(picture).resize(size, Image.BOX))


def scoped(state: State, track: Track, index: int) -> np.ndarray:
    """The values that a histogram is made of."""
    values = track.values(index, state.view)
    return values[:, state.frame] if state.scope == "frame" else values


def histogram(values: np.ndarray, limit: float) -> dict:
    """Densities of `BINS` bins from -limit to limit, the mean, the standard deviation, and the share that is beyond.

    strange: how many values are infinite or nan; the other numbers are those of the rest.
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
    """Grey pictures [h, w] in two rows, with white lines between them: [2·h + 1 …, ceil(C / 2)·(w + 1) − 1]."""
    height, width = channels[0].shape
    columns = math.ceil(len(channels) / 2)
    page = np.full((2 * (height + 1) - 1, columns * (width + 1) - 1), 255, np.uint8)
    for number, channel in enumerate(channels):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        page[top : top + height, left : left + width] = channel
    return page


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
