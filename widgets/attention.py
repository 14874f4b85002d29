"""What each token of the transformer looks at: choose a word, and see who looks at it, or a place, and see where to.

    trace = Trace(attention=["blocks.3.cross_attn", "blocks.3.attn", "blocks.3.attn_temp"])
    pipe("a red car driving right on the ocean at sunset", trace=trace)
    view = AttentionView(trace, pipe)
    view                                  # click a word, click a place
    view.word_map("car")                  # float32 [T, h, w]: how much each place looks at it
    view.words_at(7, 2, 1)                # float32 [L]: how much each piece of the caption gets from that place

All numbers are shares: what one token gives to all that it can look at sums to 1. A place is (frame, row, column) on
the grid of tokens, h rows and w columns, each counted from 0.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from numbers import Integral, Real

import matplotlib
import numpy as np
from ipywidgets import TypedTuple
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from opensora_lite.widgets import figures
from opensora_lite.widgets.widget import Widget, encoded, module
from PIL import Image
from traitlets import Bool, Bytes, Dict, Float, Int, TraitError, Tuple, Unicode, observe, validate

from opensora_lite.errors import OpenSoraError
from opensora_lite.trace import Trace

HEAT = colormaps["viridis"]  # even to the eye, and safe for the colour-blind
PATCH = 2  # latents along each side of a token
MOST_PIXELS = 2**18  # of all pictures of a film together, so that a notebook that stores them stays small
CHOICES = ("step", "block", "head", "word", "place", "joined", "picture")


class AttentionView(Widget):
    """The attention that a trace has recorded.

    trace: with attention of one loop or several. pipe: decodes the pictures under the heat; without it they are the
    first latent channel in grey. The rest is what is chosen at first, and can be set at any time:

    step: index into the trace. block: one that was recorded. head: number of a head, None for the mean of all.
    word: a word of the caption, or numbers of its pieces (the attribute holds the numbers). place: (frame, row,
    column). joined: whether pieces are shown as whole words. picture: "last", what the last recorded step predicts
    (x_0), or "step", what the chosen one does. opacity: of the heat on the pictures, 0 … 1.

    Raises OpenSoraError for a trace without attention and for a choice that there is not; an attribute that is set to
    such a choice raises traitlets' TraitError, with the same text.
    """

    _esm = module("attention.js")

    step = Int().tag(sync=True)
    block = Int().tag(sync=True)
    head = Int(None, allow_none=True).tag(sync=True)
    word = TypedTuple(Int()).tag(sync=True)
    place = Tuple(Int(), Int(), Int()).tag(sync=True)
    joined = Bool(True).tag(sync=True)
    picture = Unicode("last").tag(sync=True)
    opacity = Float(0.7).tag(sync=True)

    # What the browser paints; it never sets these.
    about = Dict().tag(sync=True)  # what was recorded: steps, captions, blocks, heads, grid; the colours of the heat
    film = Bytes().tag(sync=True)  # the pictures, one below the other, as PNG or JPEG
    answer = Dict().tag(sync=True)  # the numbers for the choices in answer["of"]

    def __init__(self, trace: Trace, pipe=None, **choices):
        if not isinstance(trace, Trace):
            raise OpenSoraError(f"AttentionView shows a Trace, not {trace!r}")
        if pipe is not None and not hasattr(pipe, "decode"):
            raise OpenSoraError(f"pipe decodes the pictures and must be an OpenSora, not {pipe!r}")
        names = {name for step in trace for name in step.attention}
        blocks = sorted({int(number) for name in names for number in re.findall(r"^blocks\.(\d+)\.", name)})
        if not blocks:
            raise OpenSoraError(
                f"{trace!r} has no attention; record it with a run:"
                ' trace = Trace(attention=["blocks.3.cross_attn", "blocks.3.attn", "blocks.3.attn_temp"]);'
                " pipe(prompt, trace=trace)"
            )
        self.trace, self.pipe = trace, pipe
        self.grid, extent = _grid(trace)
        self.blocks, self.heads = blocks, next(len(w) for step in trace for w in step.attention.values())
        self._film = lru_cache(maxsize=8)(self._make_film)
        about = {
            "steps": [{"loop": s.loop, "number": s.number, "timestep": s.timestep} for s in trace],
            "captions": [{"pieces": loop.tokens, "words": words_of(loop.tokens)} for loop in trace.loops],
            "blocks": blocks,
            "heads": self.heads,
            "grid": self.grid,  # T, h, w
            "extent": extent,  # rows and columns of tokens that the picture covers; the last one may be half outside
            "colors": HEAT(range(256), bytes=True)[:, :3].tobytes(),
        }
        T, h, w = self.grid
        first = {
            "step": len(trace) - 1,
            "block": max(blocks, key=lambda b: sum(name.startswith(f"blocks.{b}.") for name in names)),
            "place": (T // 2, h // 2, w // 2),
            **choices,
        }
        self._check("step", first["step"])
        first["word"] = self.pieces_of(first.get("word", _longest(self._tokens(first["step"]))), first["step"])
        for name, value in first.items():
            self._check(name, value, first["step"])
        super().__init__(about=about, **{name: _plain(value) for name, value in first.items()})

    # -----------------------------------------------------------------------------------------------------------------
    #   The numbers, of the chosen step, block and head
    # -----------------------------------------------------------------------------------------------------------------

    def word_map(self, word=None) -> np.ndarray:
        """How much of its attention to the caption each place gives to a word, float32 [T, h, w].

        word: as in `pieces_of`; None, the chosen one. A word gets the sum of what its pieces get. Raises OpenSoraError
        where the block's cross_attn was not recorded.
        """
        pieces = self.word if word is None else self.pieces_of(word)
        return self._weights("cross_attn")[..., list(pieces)].sum(-1)

    def words_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """How much a place looks at each of the L pieces of the caption, float32 [L]; they sum to 1."""
        self._check("place", (frame, row, column))
        return self._weights("cross_attn")[frame, row, column]

    def frames_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """How much a place looks at itself in each of the T frames, float32 [T]; they sum to 1."""
        self._check("place", (frame, row, column))
        return self._weights("attn_temp")[row * self.grid[2] + column, frame]

    def places_at(self, frame: int, row: int, column: int) -> np.ndarray:
        """How much a place looks at each place of its frame, float32 [h, w]; they sum to 1."""
        self._check("place", (frame, row, column))
        return self._weights("attn")[frame, row * self.grid[2] + column].reshape(self.grid[1:])

    def pieces_of(self, word, step: int | None = None) -> tuple[int, ...]:
        """Numbers of the pieces that a word of the caption is cut into; of all its places, if it stands there twice.

        word: a word, or the number of a piece, or several numbers. step: whose caption; None, that of the chosen step.
        Raises OpenSoraError for what is not in the caption.
        """
        tokens = self._tokens(self.step if step is None else step)
        if not isinstance(word, str):
            pieces = tuple(word) if isinstance(word, Iterable) else (word,)
            self._check("word", pieces, step)
            return tuple(sorted({int(piece) for piece in pieces}))
        words = {}
        for numbers in words_of(tokens):
            words.setdefault(_text(tokens, numbers), []).extend(numbers)
        if word not in words:
            raise OpenSoraError(f'"{word}" is not a word of the caption; its words are {", ".join(words)}')
        return tuple(words[word])

    def _weights(self, kind: str) -> np.ndarray:
        """The weights of one module, without the axis of heads; shapes in `Trace`."""
        name = f"blocks.{self.block}.{kind}"
        weights = self.trace[self.step].attention.get(name)
        if weights is None:
            raise OpenSoraError(f'not recorded: Trace(attention=["{name}"])')
        return weights.mean(0) if self.head is None else weights[self.head]

    def _tokens(self, step: int) -> list[str]:
        return self.trace.loops[self.trace[step].loop].tokens

    # -----------------------------------------------------------------------------------------------------------------
    #   What can be chosen
    # -----------------------------------------------------------------------------------------------------------------

    def _check(self, name: str, value, step: int | None = None) -> None:
        """Raises OpenSoraError for a choice that there is not. step: whose caption a word belongs to."""
        match name:
            case "step":
                good, give = _is_index(value, len(self.trace)), f"an index into the trace, 0 to {len(self.trace) - 1}"
            case "block":
                good = isinstance(value, Integral) and value in self.blocks
                give = f"one that was recorded: {', '.join(map(str, self.blocks))}"
            case "head":
                good = value is None or _is_index(value, self.heads)
                give = f"0 to {self.heads - 1}, or None for the mean of all heads"
            case "word":
                count = len(self._tokens(self.step if step is None else step))
                good = len(value) > 0 and all(_is_index(piece, count) for piece in value)
                give = f"numbers of pieces of the caption, 0 to {count - 1}"
            case "place":
                good = isinstance(value, (tuple, list)) and len(value) == 3 and all(map(_is_index, value, self.grid))
                give = f"(frame, row, column), from (0, 0, 0) to {tuple(n - 1 for n in self.grid)}"
            case "picture":
                good, give = value in ("last", "step"), '"last" or "step": the step whose x_0 is shown'
            case "opacity":
                good, give = isinstance(value, Real) and 0 <= value <= 1, "0 to 1"
            case "joined":
                good, give = isinstance(value, bool), "True or False"
            case _:
                raise OpenSoraError(f"AttentionView has no {name}; give {', '.join(CHOICES)} or opacity")
        if not good:
            raise OpenSoraError(f"{name} is {value!r}; give {give}")

    @validate(*CHOICES, "opacity")
    def _validate(self, proposal):
        name, value = proposal.trait.name, proposal.value
        try:
            self._check(name, value)
        except OpenSoraError as error:
            raise TraitError(str(error)) from None
        return tuple(sorted(set(value))) if name == "word" else value

    @observe(*CHOICES)
    def _update(self, change):
        before, now = self.answer.get("of"), self._choices()
        if before == now:  # several choices were changed at once, and the first has brought all up to date
            return
        with self.hold_sync():
            if before and before["word"] == self.word and self._tokens(before["step"]) != self._tokens(self.step):
                self.word = _longest(self._tokens(self.step))  # in another caption the numbers mean other pieces
            _, self.film = self._film(self._pictured())
            self.answer = self._numbers()

    def _choices(self) -> dict:
        return {name: getattr(self, name) for name in CHOICES}

    def _numbers(self) -> dict:
        """What the browser paints and says, for the present choices; None where something was not recorded."""
        numbers, said = {}, {}
        tokens, (_, row, column) = self._tokens(self.step), self.place
        words = words_of(tokens) if self.joined else [(i,) for i in range(len(tokens))]

        def tell(name, get, sentence):
            try:
                values = get()
            except OpenSoraError as error:  # only what was not recorded: the choices have been checked
                numbers[name], said[name] = None, str(error)
                return
            numbers[name] = values.tolist() if values.ndim == 1 else values.tobytes()
            said[name] = sentence(values)

        def heat(values):
            even = len(self.word) / len(tokens)
            return (
                f"Places look at “{self._said_word()}” from {_percent(values.min())} to {_percent(values.max())},"
                f" most at {_said_place(np.unravel_index(values.argmax(), values.shape))}; even: {_percent(even)}"
            )

        def looks_at_words(values):
            sums = [float(values[list(word)].sum()) for word in words]
            best = int(np.argmax(sums))
            even = len(words[best]) / len(tokens)
            return f"most at “{_text(tokens, words[best])}”, {_percent(sums[best])} (even: {_percent(even)})"

        def looks_at_frames(values):
            own, even = _percent(values[self.place[0]]), _percent(1 / len(values))
            return f"most at frame {values.argmax()}, {_percent(values.max())}; its own {own} (even: {even})"

        def looks_at_places(values):
            best = np.unravel_index(values.argmax(), values.shape)
            own = _percent(values[row, column])
            return (
                f"most at row {best[0]}, column {best[1]}, {_percent(values.max())};"
                f" itself {own} (even: {_percent(1 / values.size)})"
            )

        tell("heat", self.word_map, heat)
        tell("words", lambda: self.words_at(*self.place), looks_at_words)
        tell("frames", lambda: self.frames_at(*self.place), looks_at_frames)
        tell("places", lambda: self.places_at(*self.place), looks_at_places)
        return {"of": self._choices(), **numbers, "said": said}

    # -----------------------------------------------------------------------------------------------------------------
    #   Pictures
    # -----------------------------------------------------------------------------------------------------------------

    def _pictured(self) -> int:
        """Index of the step whose x_0 is shown."""
        if self.picture == "step":
            return self.step
        return max(i for i, step in enumerate(self.trace) if step.loop == self.trace[self.step].loop)

    def _make_film(self, step: int) -> tuple[np.ndarray | None, bytes]:
        """What a step predicts, uint8 [T, height, width, 3], and one below the other in a file.

        Scaled down as far as a film must be. Without latents there are no pictures: None and nothing.
        """
        latents = self.trace[step].x_0
        if latents is None:
            return None, b""
        pictures = _grey(latents[0]) if self.pipe is None else _small(self.pipe.decode(latents))
        film = pictures.reshape(-1, *pictures.shape[2:])
        return pictures, encoded(film, "PNG" if self.pipe is None else "JPEG")

    def still(self) -> tuple[np.ndarray, str]:
        T, h, w = self.grid
        tall, wide = self.about["extent"]
        frame, row, column = self.place
        shown = np.unique(np.linspace(0, T - 1, min(T, 8)).round().astype(int))
        shown[np.abs(shown - frame).argmin()] = frame  # the frame of the place is among them
        (pictures, _), numbers = self._film(self._pictured()), self.answer
        tokens, words = self._tokens(self.step), words_of(self._tokens(self.step))

        with matplotlib.rc_context(figures.STYLE):
            figure = Figure(figsize=(9.6, 4.0), layout="constrained")
            grid = figure.add_gridspec(2, 1, height_ratios=[1, 1.3])
            films = grid[0].subgridspec(1, len(shown)).subplots(squeeze=False)[0]
            below = grid[1].subgridspec(1, 3, width_ratios=[2.2, 1.4, 1]).subplots()

        def paint(axis, number, heat, marked):
            axis.set(xticks=[], yticks=[], xlim=(0, wide), ylim=(tall, 0), aspect="equal")
            axis.spines[:].set_visible(False)
            if pictures is not None:
                grey = np.asarray(Image.fromarray(pictures[number]).convert("L"))
                axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, wide, tall, 0))
            if heat is not None:
                values, top = heat
                opacity = (
                    1 if pictures is None else self.opacity * (0.25 + 0.75 * values / top)
                )  # as attention.js paints
                axis.imshow(values, cmap=HEAT, vmin=0, vmax=top, extent=(0, w, h, 0), alpha=opacity)
            if marked:
                for color, width in (("black", 3.5), ("white", 1.5)):
                    axis.add_patch(Rectangle((column, row), 1, 1, fill=False, color=color, linewidth=width))

        heat = self._array("heat", self.grid)
        for axis, number in zip(films, shown, strict=True):
            paint(axis, number, None if heat is None else (heat[number], heat.max()), number == frame)
            axis.set_title(f"frame {number}", fontsize=8)

        places = self._array("places", self.grid[1:])
        paint(below[2], frame, None if places is None else (places, places.max()), True)
        sums = numbers["words"] and [sum(numbers["words"][i] for i in word) for word in words]
        names = [_text(tokens, word) for word in words]
        for axis, values, labels in ((below[0], sums, names), (below[1], numbers["frames"], range(T))):
            if values:
                axis.bar(range(len(values)), np.array(values) * 100, color="#666666", width=0.7)
            every = math.ceil(len(labels) / (24 if axis is below[0] else 8))
            turned = dict(rotation=45, ha="right", rotation_mode="anchor") if axis is below[0] else {}
            axis.set_xticks(range(0, len(labels), every), labels[::every], fontsize=8, **turned)
        for axis, name in zip(below, ("words", "frames", "places"), strict=True):
            axis.set_title(f"{name} it looks at, %" if name != "places" else "places it looks at", fontsize=9)
            if numbers[name] is None:
                axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", fontsize=9)

        looks = f"Places that look at “{self._said_word()}”" if heat is not None else "Attention to words: not recorded"
        figure.suptitle(
            f"{looks} (bright: much), and what the marked place looks at; {self._said_source()}", fontsize=9
        )
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        picture = np.asarray(picture.quantize(256, dither=Image.Dither.NONE).convert("RGB"))  # a smaller file
        said = numbers["said"]
        return picture, (
            f"Attention, {self._said_source()}. {said['heat']}. {_said_place(self.place).capitalize()} looks:"
            f" words, {said['words']}; frames, {said['frames']}; places, {said['places']}."
        )

    def _array(self, name: str, shape) -> np.ndarray | None:
        values = self.answer[name]
        return None if values is None else np.frombuffer(values, np.float32).reshape(shape)

    # -----------------------------------------------------------------------------------------------------------------
    #   In words
    # -----------------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"AttentionView({self._said_source()}, “{self._said_word()}”, {_said_place(self.place)})"

    def _said_word(self) -> str:
        return _text(self._tokens(self.step), self.word)

    def _said_source(self) -> str:
        step = self.trace[self.step]
        loop = f"loop {step.loop + 1}, " if len(self.trace.loops) > 1 else ""
        head = f"mean of {self.heads} heads" if self.head is None else f"head {self.head}"
        return f"{loop}step {step.number}, block {self.block}, {head}"


def words_of(pieces: Sequence[str]) -> list[tuple[int, ...]]:
    """The words of a caption, in order, each as the numbers of its pieces; a piece that begins with ▁ begins a word."""
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece.startswith("▁") or piece == "</s>"]
    return [tuple(range(start, end)) for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True)]


def _longest(pieces: Sequence[str]) -> tuple[int, ...]:
    """The word of the most pieces: what a view begins with, since articles are short."""
    return max(words_of(pieces), key=len)


def _text(pieces: Sequence[str], numbers: Sequence[int]) -> str:
    """Pieces as they are read: ("▁", "re", "d") is red, and "▁" alone stays itself."""
    return "".join(pieces[i] for i in numbers).replace("▁", " ").strip() or "▁"


def _grid(trace: Trace) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """T, h, w of the tokens, and how many rows and columns the picture covers: odd sizes are padded."""
    latents = next((step.x_0.shape for step in trace if step.x_0 is not None), None)
    extent = latents and (latents[2] / PATCH, latents[3] / PATCH)
    for step in trace:
        for name, weights in step.attention.items():
            if name.endswith("cross_attn"):
                return weights.shape[1:4], extent or weights.shape[2:4]
    if latents is None:
        raise OpenSoraError(
            "the trace does not tell how many rows and columns its tokens have; record latents, Trace(latents=True, …),"
            ' or the attention to words, Trace(attention=[…, "blocks.3.cross_attn"])'
        )
    return (latents[1], *map(math.ceil, extent)), extent


def _grey(channel: np.ndarray) -> np.ndarray:
    """A latent channel [T, H, W] as pictures uint8 [T, H, W, 3], from its smallest value, black, to its largest."""
    grey = (channel - channel.min()) / max(float(np.ptp(channel)), 1e-6)
    return np.repeat((255 * grey + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _small(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, height, width, 3], scaled down where they have more than MOST_PIXELS in all."""
    T, height, width, _ = frames.shape
    scale = math.sqrt(MOST_PIXELS / (T * height * width))
    if scale >= 1:
        return frames
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def _is_index(value, count: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < count


def _plain(value):
    """numpy's whole numbers as Python's, also in tuples: traits take no others."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return int(value) if isinstance(value, np.integer) else value


def _said_place(place) -> str:
    return "frame {}, row {}, column {}".format(*map(int, place))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
