"""AttentionView: the attention weights of a trace. Choose a word, or a position in the video.

    trace = Trace(attention=["blocks.3.cross_attn", "blocks.3.attn", "blocks.3.attn_temp"])
    pipe("a red car driving right on the ocean at sunset", trace=trace)
    view = AttentionView(trace, pipe)
    view                                  # click a word or a position
    view.word_map("car")                  # float32 [T, h, w]: attention of each position to the word
    view.words_at(7, 2, 1)                # float32 [L]: attention of a position to each piece of the caption

All values are attention weights: those of one query sum to 1. A position is (frame, row, column) in the grid of video
tokens [T, h, w], counted from 0. The L pieces of a caption are the tokens of T5. Of Open-Sora 1.2, frames are latent
frames, shown as the last frame that each holds; block 3 is spatial_blocks.3 (cross_attn and attn) and temporal_blocks.3
(attn).
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated, Literal

import matplotlib
import numpy as np
from ipywidgets import TypedTuple
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from opensora_lite.widgets import figures
from opensora_lite.widgets.widget import Widget, drawn, encoded, index_below, module
from PIL import Image
from pydantic import Field
from traitlets import Bool, Bytes, Dict, Float, Int, TraitError, Tuple, Unicode, observe, validate

from opensora_lite.errors import OpenSoraError
from opensora_lite.trace import Trace
from opensora_lite.validation import AsTuple, Share, check

HEAT = colormaps["viridis"]  # perceptually uniform, and safe for the colour-blind
MODULES = {  # what a model predicts -> names of the modules of block {}
    "noise": {kind: f"blocks.{{}}.{kind}" for kind in ("cross_attn", "attn", "attn_temp")},
    "velocity": {
        "cross_attn": "spatial_blocks.{}.cross_attn",
        "attn": "spatial_blocks.{}.attn",
        "attn_temp": "temporal_blocks.{}.attn",
    },
}
PATCH = 2  # latents along each side of a token
MAX_PIXELS = 2**18  # of all pictures of a film together: saved notebooks contain it
CHOICES = ("step", "block", "head", "word", "position", "whole_words", "picture")


class AttentionError(OpenSoraError, TraitError):
    """An invalid choice. As a TraitError it makes traitlets keep the previous value."""


class AttentionView(Widget):
    """The attention weights that a trace has recorded.

    trace: a Trace with attention. pipe: an OpenSora, which decodes the pictures under the heat; without it they show
    the first latent channel in grey. The choices are attributes that can be set at any time:

    step: index into the trace. block: a recorded one. head: index, or None for the mean of all heads. word: a word of
    the caption or indices of its pieces (the attribute holds the indices). position: (frame, row, column).
    whole_words: whether pieces are joined into words. picture: "last" (x_0 of the last recorded step of the loop) or
    "step" (x_0 of the chosen step). opacity: of the heat, 0 … 1.

    Raises OpenSoraError for a trace without attention and for invalid choices.
    """

    _esm = module("attention.js")

    step = Int().tag(sync=True)
    block = Int().tag(sync=True)
    head = Int(None, allow_none=True).tag(sync=True)
    word = TypedTuple(Int()).tag(sync=True)
    position = Tuple(Int(), Int(), Int()).tag(sync=True)
    whole_words = Bool(True).tag(sync=True)
    picture = Unicode("last").tag(sync=True)
    opacity = Float(0.7).tag(sync=True)

    # Set by Python only.
    plan = Dict().tag(sync=True)  # constant: steps, captions, blocks, heads, grid, colours
    film = Bytes().tag(sync=True)  # the T pictures, one below the other, PNG or JPEG
    result = Dict().tag(sync=True)  # the values for result["choices"], and their summary in words

    def __init__(self, trace: Trace, pipe=None, **choices):
        if not isinstance(trace, Trace):
            raise OpenSoraError(f"trace must be a Trace, not {trace!r}")
        if pipe is not None and not hasattr(pipe, "decode"):
            raise OpenSoraError(f"pipe must be an OpenSora, which decodes the pictures, not {pipe!r}")
        names = {name for step in trace for name in step.attention}
        self._modules = MODULES[trace.loops[0].predicts if trace.loops else "noise"]
        known = [re.escape(module).replace(r"\{\}", r"(\d+)") for module in self._modules.values()]
        blocks = sorted({int(number) for name in names for part in known for number in re.findall(f"^{part}$", name)})
        if not blocks:
            listed = ", ".join(f'"{module.format(3)}"' for module in self._modules.values())
            raise OpenSoraError(
                f"{trace!r} has no attention; record it with a run: trace = Trace(attention=[{listed}]);"
                " pipe(prompt, trace=trace)"
            )
        unknown = sorted(set(choices) - {*CHOICES, "opacity"})
        if unknown:
            raise OpenSoraError(f"AttentionView has no {unknown[0]}; give {', '.join(CHOICES)} or opacity")
        self.trace, self.pipe = trace, pipe
        self.grid, extent = _grid(trace)
        self.blocks, self.heads = blocks, next(len(w) for step in trace for w in step.attention.values())
        self._film = lru_cache(maxsize=8)(self._make_film)
        plan = {
            "steps": [
                {"loop": s.loop, "number": s.number, "timestep": round(s.timestep, 1), "reused": s.reused}
                for s in trace
            ],
            "captions": [{"pieces": loop.tokens, "words": words_of(loop.tokens)} for loop in trace.loops],
            "blocks": blocks,
            "heads": self.heads,
            "grid": self.grid,  # T, h, w
            "extent": extent,  # rows and columns of tokens that the picture covers; padding may lie outside
            "colors": HEAT(range(256), bytes=True)[:, :3].tobytes(),
        }
        T, h, w = self.grid
        first = {
            "step": len(trace) - 1,
            "block": max(blocks, key=lambda b: sum(module.format(b) in names for module in self._modules.values())),
            "position": (T // 2, h // 2, w // 2),
            **choices,
        }
        first["step"] = self._checked("step", first["step"])
        first["word"] = self.pieces_of(first.get("word", _longest(self._tokens(first["step"]))), first["step"])
        first = {name: self._checked(name, value, first["step"]) for name, value in first.items()}
        super().__init__(plan=plan, **first)

    # -----------------------------------------------------------------------------------------------------------------
    #   The weights of the chosen step, block and head
    # -----------------------------------------------------------------------------------------------------------------

    def word_map(self, word=None) -> np.ndarray:
        """The attention of each position to a word: the sum over its pieces, float32 [T, h, w].

        word: as in `pieces_of`; None: the chosen one. Raises OpenSoraError if the block's cross_attn isn't recorded.
        """
        pieces = self.word if word is None else self.pieces_of(word)
        return self._weights("cross_attn")[..., list(pieces)].sum(-1)

    def words_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """Cross-attention of a position: to each of the L pieces of the caption, float32 [L]."""
        frame, row, column = self._checked("position", (frame, row, column))
        return self._weights("cross_attn")[frame, row, column]

    def frames_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """Temporal attention of a position: to the same row and column in each of the T frames, float32 [T]."""
        frame, row, column = self._checked("position", (frame, row, column))
        return self._weights("attn_temp")[row * self.grid[2] + column, frame]

    def positions_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """Spatial attention of a position: to each position of its frame, float32 [h, w]."""
        frame, row, column = self._checked("position", (frame, row, column))
        return self._weights("attn")[frame, row * self.grid[2] + column].reshape(self.grid[1:])

    def pieces_of(self, word, step: int | None = None) -> tuple[int, ...]:
        """Indices of the pieces of a word of the caption, of all its occurrences.

        word: a word, the index of a piece, or several indices. step: whose caption; None: that of the chosen step.
        Raises OpenSoraError if the caption doesn't contain the word.
        """
        tokens = self._tokens(self.step if step is None else step)
        if not isinstance(word, str):
            return self._checked("word", tuple(word) if isinstance(word, Iterable) else (word,), step)
        words = {}
        for indices in words_of(tokens):
            words.setdefault(_text(tokens, indices), []).extend(indices)
        if word not in words:
            raise OpenSoraError(f'"{word}" is not a word of the caption; its words are {", ".join(words)}')
        return tuple(words[word])

    def _weights(self, kind: str) -> np.ndarray:
        """The weights of a module without the axis of heads; for the shapes see `Trace`."""
        name = self._modules[kind].format(self.block)
        weights = self.trace[self.step].attention.get(name)
        if weights is None:
            raise OpenSoraError(f'not recorded: Trace(attention=["{name}"])')
        return weights.mean(0) if self.head is None else weights[self.head]

    def _tokens(self, step: int) -> list[str]:
        return self.trace.loops[self.trace[step].loop].tokens

    # -----------------------------------------------------------------------------------------------------------------
    #   Choices
    # -----------------------------------------------------------------------------------------------------------------

    def _checked(self, name: str, value, step: int | None = None):
        """A valid value of a choice, or AttentionError. step: whose caption a word belongs to."""
        pieces = len(self._tokens(self.step if step is None else step)) if name == "word" else 1
        kinds = {
            "step": index_below(len(self.trace)),
            "block": Literal[tuple(self.blocks)],
            "head": index_below(self.heads) | None,
            "word": Annotated[tuple[index_below(pieces), ...], Field(min_length=1), AsTuple],
            "position": Annotated[tuple[tuple(map(index_below, self.grid))], AsTuple],
            "whole_words": bool,
            "picture": Literal["last", "step"],
            "opacity": Share,
        }
        value = check(kinds[name], value, name, AttentionError)
        return tuple(sorted(set(value))) if name == "word" else value

    @validate(*CHOICES, "opacity")
    def _validate(self, proposal):
        return self._checked(proposal.trait.name, proposal.value)

    @observe(*CHOICES)
    def _update(self, change):
        before, now = self.result.get("choices"), self._choices()
        if before == now:  # several traits were set at once: the first notification has updated everything
            return
        with self.hold_sync():
            if before and before["word"] == self.word and self._tokens(before["step"]) != self._tokens(self.step):
                self.word = _longest(self._tokens(self.step))  # the indices belong to another caption
            _, self.film = self._film(self._picture_step())
            self.result = self._computed()

    def _choices(self) -> dict:
        return {name: getattr(self, name) for name in CHOICES}

    def _computed(self) -> dict:
        """What the page shows for the current choices; None for weights that were not recorded."""
        result, summary = {"choices": self._choices()}, {}
        for name, (weights, describe) in {
            "heat": (self.word_map, self._describe_heat),
            "words": (lambda: self.words_at(*self.position), self._describe_words),
            "frames": (lambda: self.frames_at(*self.position), self._describe_frames),
            "positions": (lambda: self.positions_at(*self.position), self._describe_positions),
        }.items():
            try:
                values = weights()
            except OpenSoraError as error:  # not recorded
                result[name], summary[name] = None, str(error)
            else:
                result[name] = values.tolist() if values.ndim == 1 else values.tobytes()
                summary[name] = describe(values)
        return {**result, "summary": summary}

    def _describe_heat(self, values: np.ndarray) -> str:
        uniform = len(self.word) / len(self._tokens(self.step))
        largest = _position_text(np.unravel_index(values.argmax(), values.shape))
        return (
            f"Attention to “{self._word_text()}”: {_percent(values.min())} to {_percent(values.max())},"
            f" largest at {largest} (uniform: {_percent(uniform)})"
        )

    def _describe_words(self, values: np.ndarray) -> str:
        tokens = self._tokens(self.step)
        words = words_of(tokens) if self.whole_words else [(i,) for i in range(len(tokens))]
        best = max(words, key=lambda word: float(values[list(word)].sum()))
        total, uniform = float(values[list(best)].sum()), len(best) / len(tokens)
        return f"most to “{_text(tokens, best)}”, {_percent(total)} (uniform: {_percent(uniform)})"

    def _describe_frames(self, values: np.ndarray) -> str:
        own, uniform = _percent(values[self.position[0]]), _percent(1 / len(values))
        return f"most to frame {values.argmax()}, {_percent(values.max())}; its own {own} (uniform: {uniform})"

    def _describe_positions(self, values: np.ndarray) -> str:
        row, column = np.unravel_index(values.argmax(), values.shape)
        own, uniform = _percent(values[self.position[1:]]), _percent(1 / values.size)
        return f"most to row {row}, column {column}, {_percent(values.max())}; itself {own} (uniform: {uniform})"

    # -----------------------------------------------------------------------------------------------------------------
    #   Pictures
    # -----------------------------------------------------------------------------------------------------------------

    def _picture_step(self) -> int:
        """Index of the step whose x_0 is shown."""
        if self.picture == "step":
            return self.step
        return max(i for i, step in enumerate(self.trace) if step.loop == self.trace[self.step].loop)

    def _make_film(self, step: int) -> tuple[np.ndarray | None, bytes]:
        """x_0 of a step as pictures uint8 [T, height, width, 3], and as a file with one below the other.

        Scaled down to MAX_PIXELS. (None, b"") for a trace without latents.
        """
        latents = self.trace[step].x_0
        if latents is None:
            return None, b""
        loop = self.trace.loops[self.trace[step].loop]
        if self.pipe is None:
            pictures = _grey(latents[0])
        elif not loop.has_latent_frames:
            pictures = _reduced(self.pipe.decode(latents))
        else:  # the last frame of each
            last = [window.last for window in loop.windows]
            pictures = _reduced(self.pipe.decode(latents, last[-1] + 1)[last])
        film = pictures.reshape(-1, *pictures.shape[2:])
        return pictures, encoded(film, "PNG" if self.pipe is None else "JPEG")

    def still(self) -> tuple[np.ndarray, str]:
        T = self.grid[0]
        shown = np.unique(np.linspace(0, T - 1, min(T, 8)).round().astype(int))
        shown[np.abs(shown - self.position[0]).argmin()] = self.position[0]
        with matplotlib.rc_context(figures.STYLE):
            figure = Figure(figsize=(9.6, 4.0), layout="constrained")
            grid = figure.add_gridspec(2, 1, height_ratios=[1, 1.3])
            self._still_frames(grid[0].subgridspec(1, len(shown)).subplots(squeeze=False)[0], shown)
            self._still_position(grid[1].subgridspec(1, 3, width_ratios=[2.2, 1.4, 1]).subplots())
            recorded = self.result["heat"] is not None
            heat = f"Attention to “{self._word_text()}”" if recorded else "Attention to words: not recorded"
            figure.suptitle(f"{heat}, and attention of the marked position; {self._source_text()}", fontsize=9)
            picture = drawn(figure, colors=256)
        summary, position = self.result["summary"], _position_text(self.position).capitalize()
        return picture, (
            f"Attention, {self._source_text()}. {summary['heat']}. {position} attends:"
            f" words, {summary['words']}; frames, {summary['frames']}; positions, {summary['positions']}."
        )

    def _still_frames(self, axes, shown: np.ndarray) -> None:
        """Frames with the heat of the word."""
        heat = self._array("heat", self.grid)
        for axis, frame in zip(axes, shown, strict=True):
            values = None if heat is None else heat[frame]
            self._paint(axis, frame, values, heat.max() if heat is not None else 1, frame == self.position[0])
            axis.set_title(f"frame {frame}", fontsize=8)

    def _still_position(self, axes) -> None:
        """The attention of the position: to words and frames as bars, to positions as heat."""
        heat = self._array("positions", self.grid[1:])
        self._paint(axes[2], self.position[0], heat, heat.max() if heat is not None else 1, True)
        tokens = self._tokens(self.step)
        words, pieces = words_of(tokens), self.result["words"]
        sums = pieces and [sum(pieces[i] for i in word) for word in words]
        names = [_text(tokens, word) for word in words]
        for axis, values, labels in ((axes[0], sums, names), (axes[1], self.result["frames"], range(self.grid[0]))):
            if values:
                axis.bar(range(len(values)), np.array(values) * 100, color="#666666", width=0.7)
            every = math.ceil(len(labels) / (24 if axis is axes[0] else 8))
            turned = dict(rotation=45, ha="right", rotation_mode="anchor") if axis is axes[0] else {}
            axis.set_xticks(range(0, len(labels), every), labels[::every], fontsize=8, **turned)
        titles = {"words": "attention to words, %", "frames": "to frames, %", "positions": "to positions of the frame"}
        for axis, (name, title) in zip(axes, titles.items(), strict=True):
            axis.set_title(title, fontsize=9)
            if self.result[name] is None:
                axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", fontsize=9)

    def _paint(self, axis, frame: int, values: np.ndarray | None, largest: float, marked: bool) -> None:
        """A frame in grey under the heat of values [h, w], as attention.js paints it."""
        (_, h, w), (tall, wide), (pictures, _) = self.grid, self.plan["extent"], self._film(self._picture_step())
        axis.set(xticks=[], yticks=[], xlim=(0, wide), ylim=(tall, 0), aspect="equal")
        axis.spines[:].set_visible(False)
        if pictures is not None:
            grey = np.asarray(Image.fromarray(pictures[frame]).convert("L"))
            axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, wide, tall, 0))
        if values is not None:
            opacity = 1 if pictures is None else self.opacity * (0.25 + 0.75 * values / largest)
            axis.imshow(values, cmap=HEAT, vmin=0, vmax=largest, extent=(0, w, h, 0), alpha=opacity)
        if marked:
            _, row, column = self.position
            for color, width in (("black", 3.5), ("white", 1.5)):
                axis.add_patch(Rectangle((column, row), 1, 1, fill=False, color=color, linewidth=width))

    def _array(self, name: str, shape) -> np.ndarray | None:
        values = self.result[name]
        return None if values is None else np.frombuffer(values, np.float32).reshape(shape)

    # -----------------------------------------------------------------------------------------------------------------
    #   In words
    # -----------------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"AttentionView({self._source_text()}, “{self._word_text()}”, {_position_text(self.position)})"

    def _word_text(self) -> str:
        return _text(self._tokens(self.step), self.word)

    def _source_text(self) -> str:
        step = self.trace[self.step]
        loop = f"loop {step.loop + 1}, " if len(self.trace.loops) > 1 else ""
        reused = " (reused the previous output)" if step.reused else ""
        head = f"mean of {self.heads} heads" if self.head is None else f"head {self.head}"
        return f"{loop}step {step.number}{reused}, block {self.block}, {head}"


def words_of(pieces: Sequence[str]) -> list[tuple[int, ...]]:
    """The words of a caption in order, each as the indices of its pieces; a piece starting with ▁ starts a word."""
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece.startswith("▁") or piece == "</s>"]
    return [tuple(range(start, end)) for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True)]


def _longest(pieces: Sequence[str]) -> tuple[int, ...]:
    """The word with the most pieces, the initial choice: it is rarely an article."""
    return max(words_of(pieces), key=len)


def _text(pieces: Sequence[str], indices: Sequence[int]) -> str:
    """The text of some pieces: ("▁", "re", "d") is "red"; "▁" alone stays "▁"."""
    return "".join(pieces[i] for i in indices).replace("▁", " ").strip() or "▁"


def _grid(trace: Trace) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """T, h, w of the tokens, and the rows and columns that the picture covers: odd latent sizes are padded."""
    latents = next((step.x_0.shape for step in trace if step.x_0 is not None), None)
    extent = latents and (latents[2] / PATCH, latents[3] / PATCH)
    for step in trace:
        for name, weights in step.attention.items():
            if name.endswith("cross_attn"):
                return weights.shape[1:4], extent or weights.shape[2:4]
    if latents is None:
        raise OpenSoraError(
            "the number of rows and columns of tokens is unknown; record latents, Trace(latents=True, …),"
            ' or cross-attention, Trace(attention=[…, "blocks.3.cross_attn"])'
        )
    return (latents[1], *map(math.ceil, extent)), extent


def _grey(channel: np.ndarray) -> np.ndarray:
    """A latent channel [T, H, W] as pictures uint8 [T, H, W, 3]: its smallest value is black, its largest white."""
    grey = (channel - channel.min()) / max(float(np.ptp(channel)), 1e-6)
    return np.repeat((255 * grey + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _reduced(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, height, width, 3], scaled down to MAX_PIXELS in all."""
    T, height, width, _ = frames.shape
    scale = math.sqrt(MAX_PIXELS / (T * height * width))
    if scale >= 1:
        return frames
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def _position_text(position) -> str:
    return "frame {}, row {}, column {}".format(*map(int, position))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
