"""MaskTimeline: a graphical editor for mask strategies.

    timeline = MaskTimeline(16, ["beach.png", "wave.png"], "0;0,1,0,-1")
    timeline                        # drag references onto frames, drag edges, set edit ratios; or type
    timeline.strategy               # the MaskStrategy that is shown
    timeline.strategy = "0"         # updates the page
    MaskTimeline(51, [clip], generation=pipe.spec.generation)   # Open-Sora 1.2: cells are latent frames

Every change in the page, dragged or typed, is sent as the text of a strategy and parsed by `MaskStrategy.parse`.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import traitlets
from opensora_lite.widgets.figures import EDITED, GENERATED, GIVEN
from opensora_lite.widgets.widget import Widget, image_url, module, plural, still_fonts
from PIL import Image, ImageDraw

from opensora_lite.errors import MaskStrategyError, OpenSoraError
from opensora_lite.generations import OPEN_SORA_11, Generation
from opensora_lite.masks import Frame, MaskStrategy, Segment
from opensora_lite.request import check_size
from opensora_lite.video import Reference, open_reference

THUMBNAIL = 48  # height of a frame in the page, in pixels
MAX_THUMBNAILS = 64  # of one reference; a longer one shows every n-th frame
MAX_UNDO = 200  # strategies
FIELDS = ("strategy", "num_frames", "references", "loops", "condition_frames", "image_size", "reference_fps")


class Checked(traitlets.Any):
    """A trait that only the widget's own validator checks, also for None (which traitlets wouldn't validate)."""

    allow_none = False


class MaskTimeline(Widget):
    """The frames of a video as cells, a row for each loop, and the references that are put into them.

    num_frames: T, frames of each loop. references: paths, Videos, arrays uint8 [T, H, W, 3] or PIL images.
    strategy: a MaskStrategy or its text; None or "": all frames are generated. loops, condition_frames: as in
    `Settings`; with condition_frames, the frames that later loops take over are shown. image_size: height and width
    of the video in pixels; references are cropped to it, in the page as for the model. reference_fps: frames per second
    that are taken of reference clips, as `Settings.reference_rate`; None: every frame as it is stored.
    generation: of the model; with Open-Sora 1.2 each cell is a latent frame, shown with the frames that it holds, while
    num_frames and condition_frames count frames. It can't be changed later.

    All the others are traits that can be set and observed, one at a time or together with `change()`. Raises
    MaskStrategyError if a strategy doesn't fit, SizeError, and MediaError for an unreadable reference; nothing changes
    then.
    """

    _esm = module("timeline.js")

    strategy = Checked(MaskStrategy())
    num_frames = traitlets.Int(16)
    references = Checked(())
    loops = traitlets.Int(1)
    condition_frames = traitlets.Int(None, allow_none=True)
    image_size = Checked((64, 64))
    reference_fps = traitlets.Float(None, allow_none=True)

    # Set by Python only: derived from the traits above.
    state = traitlets.Dict().tag(sync=True)
    clips = traitlets.List().tag(sync=True)  # references with thumbnails
    error = traitlets.Unicode().tag(sync=True)  # of the draft; "" if it is valid
    # Set by the page.
    draft = traitlets.Unicode().tag(sync=True)  # the text of a strategy
    selected = traitlets.Int(-1).tag(sync=True)  # index of the selected segment; -1: none

    def __init__(
        self,
        num_frames=16,
        references=(),
        strategy=None,
        *,
        loops=1,
        condition_frames=None,
        image_size=(64, 64),
        reference_fps=None,
        generation: Generation = OPEN_SORA_11,
    ):
        super().__init__()
        self.generation = generation
        self._opened: tuple[tuple, float | None, tuple[Reference, ...]] = (), None, ()  # the last that were opened
        self._thumbnails: list[np.ndarray] = []  # of each reference, uint8 [n, THUMBNAIL, width, 3]
        self._past: list[MaskStrategy] = []
        self._future: list[MaskStrategy] = []
        self.change(
            num_frames=num_frames,
            references=references,
            strategy=strategy,
            loops=loops,
            condition_frames=condition_frames,
            image_size=image_size,
            reference_fps=reference_fps,
        )
        self._past.clear()
        self._publish()
        self.on_msg(self._on_message)

    # -- for Python

    def change(self, **values) -> None:
        """Set several of strategy, num_frames, references, loops and the other traits; all or none."""
        unknown = sorted(set(values) - set(FIELDS))
        if unknown:
            raise TypeError(f"MaskTimeline has no {', '.join(unknown)}; it has {', '.join(FIELDS)}")
        checked = self._checked(**values)
        with self.hold_trait_notifications():
            for name in values:
                setattr(self, name, checked[name])

    @property
    def text(self) -> str:
        """The strategy as text, in its shortest form; "" if all frames are generated."""
        return self.strategy.format()

    @text.setter
    def text(self, text: str) -> None:
        self.strategy = text

    @property
    def explanation(self) -> str:
        """The strategy in plain English, including the frames that later loops take over."""
        frames = [reference.num_frames for reference in self._open(self.references, self.reference_fps)]
        return self._continued().explain(self.num_frames, frames, self.loops, self.generation)

    @property
    def request(self) -> dict:
        """Arguments for a pipeline: {"references": […], "mask_strategy": MaskStrategy}.

        References that no segment uses, which a pipeline refuses, are left out, and the others are renumbered.
        """
        count, unused = len(self.references), self._unused()
        # the clips of earlier loops follow the references
        new = [i - sum(u < i for u in unused) for i in range(count + self.loops)]
        return {
            "references": [reference for i, reference in enumerate(self.references) if i not in unused],
            "mask_strategy": MaskStrategy([replace(s, reference=new[s.reference]) for s in self.strategy.segments]),
        }

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone change to redo."""
        return bool(self._future)

    def undo(self) -> None:
        """Restore the strategy before the last change, skipping those that no longer fit the video."""
        self._step_history(self._past, self._future)

    def redo(self) -> None:
        """Revert the last undo()."""
        self._step_history(self._future, self._past)

    def __repr__(self) -> str:
        loops = f", {self.loops} loops" if self.loops > 1 else ""
        references = plural(len(self.references), "reference")
        return f'MaskTimeline("{self.text}": {self.num_frames} frames, {references}{loops})'

    def still(self) -> tuple[np.ndarray, str]:
        rows = self._continued().resolve(self._num_cells, self._lengths, self.loops, self.generation.align)
        title = f'"{self.text}"' if self.text else "no mask strategy"
        held = [f"{first}–{last}" if first < last else f"{first}" for first, last, _ in self._windows(self.num_frames)]
        return _drawn_rows(rows, self._thumbnails, self._lengths, title, held), self.explanation

    # -- validation

    def _checked(self, **values) -> dict:
        """All FIELDS with some new values, normalized. Raises OpenSoraError if they don't fit together."""
        new = {**{name: getattr(self, name) for name in FIELDS}, **values}
        strategy, references = new["strategy"], new["references"]
        if strategy is None or (isinstance(strategy, str) and not strategy.strip()):
            strategy = MaskStrategy()
        new["strategy"] = MaskStrategy.parse(strategy)
        if not isinstance(references, tuple):
            alone = not isinstance(references, Sequence) or isinstance(references, str)
            new["references"] = () if references is None else (references,) if alone else tuple(references)
        new["image_size"] = check_size(new["image_size"])
        in_latents, taken, T = self.generation.latent_frames, new["condition_frames"], new["num_frames"]
        lengths = [
            in_latents(reference.num_frames) for reference in self._open(new["references"], new["reference_fps"])
        ]
        new["strategy"].resolve(in_latents(T), lengths, new["loops"], self.generation.align)
        if taken is not None and new["loops"] > 1:
            if not 1 <= taken < T:
                raise MaskStrategyError(f"condition_frames is {taken}, but a loop has {T} frames: give 1 to {T - 1}")
            self.generation.check_loops(T, taken)
        return new

    @traitlets.validate(*FIELDS)
    def _validate(self, proposal):
        name = proposal["trait"].name
        return self._checked(**{name: proposal["value"]})[name]

    def _open(self, references: tuple, fps: float | None) -> tuple[Reference, ...]:
        if self._opened[0] is not references or self._opened[1] != fps:
            self._opened = references, fps, tuple(open_reference(reference, fps) for reference in references)
        return self._opened[2]

    @property
    def _num_cells(self) -> int:
        """Frames that the strategy counts in a loop; in Open-Sora 1.2, latent frames."""
        return self.generation.latent_frames(self.num_frames)

    @property
    def _lengths(self) -> list[int]:
        """The number of cells of each reference."""
        opened = self._open(self.references, self.reference_fps)
        return [self.generation.latent_frames(reference.num_frames) for reference in opened]

    def _windows(self, num_frames: int) -> list[tuple[int, int, int]]:
        """First and last frame, and chunk, of each latent frame of a clip; empty where latent frames are frames."""
        if self.generation.factor == 1:
            return []
        return [(window.first, window.last, window.chunk) for window in self.generation.windows(num_frames)]

    @property
    def _taken_over(self) -> int:
        """The cells that a loop takes over from the one before."""
        return self.generation.latent_frames(self.condition_frames or 0) if self.loops > 1 else 0

    def _continued(self) -> MaskStrategy:
        """The strategy with the segments that continue loops, as a pipeline runs it."""
        if self.condition_frames is None:
            return self.strategy
        return self.strategy.continued(self.loops, self._taken_over, len(self.references))

    def _unused(self) -> list[int]:
        return sorted(set(range(len(self.references))) - {segment.reference for segment in self.strategy.segments})

    # -- updates

    @traitlets.observe(*FIELDS)
    def _on_change(self, change) -> None:
        if change["name"] == "strategy":
            self._past = [*self._past, change["old"]][-MAX_UNDO:]
            self._future = []
        with self.hold_sync():  # one message with references and segments
            if change["name"] in ("references", "image_size", "reference_fps"):
                self._read_references()
            self._publish()

    def _publish(self) -> None:
        """Update the traits that the page shows."""
        cells, lengths, align = self._num_cells, self._lengths, self.generation.align
        fitted: dict[int, Segment] = {}
        for loop in range(self.loops):
            fitted |= self.strategy.fitted(cells, [*lengths, *[cells] * loop], loop, align)
        segments = [{"text": s.format(), **asdict(fitted[i])} for i, s in enumerate(self.strategy.segments)]
        self.state = {
            "num_frames": cells,
            "windows": self._windows(self.num_frames),
            "step": align or 1,  # by which segments move
            "loops": self.loops,
            "taken_over": self._taken_over,
            "text": self.text,
            "explanation": self.explanation,
            "segments": segments,
            "unused": self._unused(),
            "presets": _presets(cells, lengths, self.generation),
            "can_undo": self.can_undo,
            "can_redo": self.can_redo,
        }
        self.selected = min(self.selected, len(segments) - 1)
        self.draft, self.error = self.text, ""

    def _read_references(self) -> None:
        """Make the thumbnails of the references, cropped as for the model."""
        height, width = self.image_size
        size = THUMBNAIL, max(round(THUMBNAIL * width / height), 8)
        self._thumbnails, clips = [], []
        opened = self._open(self.references, self.reference_fps)
        for index, (source, reference) in enumerate(zip(self.references, opened, strict=True)):
            windows = self.generation.windows(reference.num_frames)
            frames = len(windows)
            chosen = np.linspace(0, frames - 1, min(frames, MAX_THUMBNAILS)).round().astype(int)
            thumbnails = reference.thumbnails([windows[i].last for i in chosen], *size)
            self._thumbnails.append(thumbnails)
            unnamed = "a picture" if reference.num_frames == 1 else "a clip"
            name = Path(source).name if isinstance(source, (str, Path)) else unnamed
            urls = [image_url(thumbnail, "JPEG") for thumbnail in thumbnails]
            held = self._windows(reference.num_frames)
            clips.append({"name": f"{index}: {name}", "frames": frames, "windows": held, "thumbnails": urls})
        self.clips = clips

    @traitlets.observe("draft")
    def _read_draft(self, change) -> None:
        try:
            self.strategy = change["new"]
        except OpenSoraError as error:
            self.error = str(error)
        else:
            self.draft, self.error = self.text, ""

    def _on_message(self, _widget, content: dict, _buffers) -> None:
        """A message from the page: {"do": "undo"}, {"do": "redo"}, or {"do": "check", "text": …} while typing."""
        if content.get("do") == "check":
            try:
                self._checked(strategy=content["text"])
            except OpenSoraError as error:
                self.error = str(error)
            else:
                self.error = ""
        elif content.get("do") in ("undo", "redo"):
            getattr(self, content["do"])()

    def _step_history(self, source: list[MaskStrategy], target: list[MaskStrategy]) -> None:
        """Replace the strategy by the last valid one in `source`, and append the current one to `target`."""
        past, future = self._past, self._future  # `_on_change` replaces them
        while source:
            strategy = source.pop()
            try:
                self._checked(strategy=strategy)
            except OpenSoraError:  # doesn't fit the current video
                continue
            target.append(self.strategy)
            self.strategy = strategy
            self._past, self._future = past, future
            break
        self._publish()


def _presets(num_frames: int, lengths: Sequence[int], generation: Generation) -> list[dict]:
    """The five tasks for these references: name, text of the strategy, and what it lacks ("": nothing).

    num_frames: of the video. lengths: of the references, in frames that a strategy counts.
    """
    clip = next((i for i, frames in enumerate(lengths) if frames > 1), None)
    extend = None if clip is None else _extend(num_frames, lengths[clip], generation.align)

    def of_clip(strategy: MaskStrategy) -> MaskStrategy:
        return MaskStrategy([replace(segment, reference=clip or 0) for segment in strategy.segments])

    a_reference = "" if lengths else "needs a reference"
    two = "" if len(lengths) > 1 and num_frames > 1 else "needs two references and two frames"
    a_clip = "" if extend else "needs a clip among the references"
    if a_clip and generation.align:
        a_clip += f", of {generation.chunk} frames, and a longer video"
    presets = [
        ("Text", MaskStrategy(), ""),
        ("Image", MaskStrategy.image(), a_reference),
        ("Connect", MaskStrategy.connect(), two),
        ("Extend", of_clip(extend or MaskStrategy()), a_clip),
        ("Edit", of_clip(MaskStrategy.edit(0.4)), a_reference),
    ]
    return [{"name": name, "text": strategy.format(), "missing": missing} for name, strategy, missing in presets]


def _extend(num_frames: int, length: int, align: int | None) -> MaskStrategy | None:
    """Continue a clip of `length` frames by a quarter of a video, or by a chunk; None where no frame would be new."""
    if align is None:
        return MaskStrategy.extend(min(max(num_frames // 4, 1), length)) if num_frames > 1 else None
    start = (length // align - 1) * align  # of its last whole chunk
    return MaskStrategy([Segment(reference_start=start, length=align)]) if start >= 0 and num_frames > align else None


def _drawn_rows(
    rows: Sequence[Sequence[Frame]], thumbnails: Sequence[np.ndarray], lengths, title: str, held: Sequence[str] = ()
) -> np.ndarray:
    """Timelines as a picture, uint8 [height, width, 3]: frames, under noise as far as they are generated.

    rows: the frames of each loop. thumbnails, lengths: of each reference its thumbnails and its number of frames.
    held: of latent frames, the frames that each holds.
    """
    width = max([THUMBNAIL, *(pictures.shape[2] for pictures in thumbnails)])
    cell, left, top, bar = width + 4, 60, 44, 6
    height = THUMBNAIL + bar + 20 + (16 if held else 0)
    font, bold = still_fonts()
    canvas = Image.new("RGB", (left + cell * max(map(len, rows)) + 8, top + height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 4), title, "black", bold)
    x = 8
    for name, color in (("G given", GIVEN), ("E edited", EDITED), ("· generated", GENERATED)):
        draw.rectangle((x, 25, x + 11, 36), color)
        draw.text((x + 16, 23), name, "black", font)
        x += 32 + round(draw.textlength(name, font))
    noise = np.random.default_rng(0).integers(96, 224, (THUMBNAIL, width, 1), np.uint8).repeat(3, axis=2)
    for loop, frames in enumerate(rows):
        y = top + loop * height
        draw.text((8, y + THUMBNAIL // 2 - 7), f"loop {loop}", "black", font)
        for i, frame in enumerate(frames):
            letter, color = (" E", EDITED) if frame.edit_ratio else (" G", GIVEN)
            if frame.reference is None:
                picture, letter, color = noise, "", GENERATED
            elif frame.reference < len(thumbnails):
                pictures = thumbnails[frame.reference]
                picture = pictures[frame.frame * len(pictures) // lengths[frame.reference]].copy()
                covered = round(frame.edit_ratio * THUMBNAIL)
                picture[THUMBNAIL - covered :] = noise[THUMBNAIL - covered :, : picture.shape[1]]
            else:  # of a clip that an earlier loop will make
                picture = np.full_like(noise, 205)
            x = left + i * cell
            canvas.paste(Image.fromarray(picture), (x, y))
            draw.rectangle((x, y + THUMBNAIL, x + width - 1, y + THUMBNAIL + bar - 1), color)
            draw.text((x, y + THUMBNAIL + bar), f"{i}{letter}", "black", font)
            if held:
                draw.text((x, y + THUMBNAIL + bar + 16), held[i], "dimgray", font)
    return np.asarray(canvas)
