"""MaskTimeline: a mask strategy that a hand can move.

    timeline = MaskTimeline(16, ["beach.png", "wave.png"], "0;0,1,0,-1")
    timeline                        # drag references onto frames, pull at edges, set edit ratios; or type
    timeline.strategy               # the MaskStrategy of what is seen
    timeline.strategy = "0"         # and back: the page follows

Whatever the page wants changed arrives as the text of a strategy, be it typed or dragged, and is read by
`MaskStrategy.parse` as everywhere else: the page cannot do what the language cannot say.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import traitlets
from opensora_lite.widgets.figures import EDITED, GENERATED, GIVEN
from opensora_lite.widgets.widget import Widget, image_url, module, still_fonts
from PIL import Image, ImageDraw

from opensora_lite.errors import MaskStrategyError, OpenSoraError
from opensora_lite.masks import Frame, MaskStrategy
from opensora_lite.request import check_size
from opensora_lite.video import count_frames, read_reference

THUMBNAIL = 48  # pixels, height of a frame in the page
MOST_THUMBNAILS = 64  # of one reference; a longer one shows its frames in groups
MOST_UNDONE = 200  # strategies that are remembered
FACTS = ("strategy", "num_frames", "references", "loops", "condition_frames", "image_size")


class Given(traitlets.Any):
    """A trait of whatever the widget's own check takes, also None, for which traitlets would leave the check out."""

    allow_none = False


class MaskTimeline(Widget):
    """The frames of a video as cells, a row for each loop, and the references that are put into them.

    num_frames: T, frames of each loop. references: what `OpenSora` takes: paths, Videos, arrays uint8 [T, H, W, 3] or
    PIL images. strategy: a MaskStrategy or its text; None or "": no frame is given. loops, condition_frames: as in
    `Settings`; with condition_frames, the frames that later loops take over are shown. image_size: height and width
    in pixels of the video that is to be made, to which references are cropped, in the page as by the model.

    All of these are traits that can be set and observed, one by one or, where new values only fit together, by
    `change()`. Raises MaskStrategyError where a strategy does not fit, SizeError, and MediaError for a reference that
    cannot be read; then nothing has changed.
    """

    _esm = module("timeline.js")

    strategy = Given(MaskStrategy())
    num_frames = traitlets.Int(16)
    references = Given(())
    loops = traitlets.Int(1)
    condition_frames = traitlets.Int(None, allow_none=True)
    image_size = Given((64, 64))

    # What the page sees: `state` and `clips` follow from the traits above. What the page says: `draft`.
    state = traitlets.Dict().tag(sync=True)
    clips = traitlets.List().tag(sync=True)
    draft = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)  # what is wrong with the draft; "": nothing
    selected = traitlets.Int(-1).tag(sync=True)  # index of the segment that is selected in the page; -1: none

    def __init__(
        self, num_frames=16, references=(), strategy=None, *, loops=1, condition_frames=None, image_size=(64, 64)
    ):
        super().__init__()
        self._counted: tuple = ((), ())  # references, and how many frames each has
        self._pictures: list[np.ndarray] = []  # of each reference, uint8 [n, THUMBNAIL, width, 3]
        self._past: list[MaskStrategy] = []
        self._future: list[MaskStrategy] = []
        self.change(
            num_frames=num_frames,
            references=references,
            strategy=strategy,
            loops=loops,
            condition_frames=condition_frames,
            image_size=image_size,
        )
        self._past.clear()
        self._publish()
        self.on_msg(self._on_message)

    # -- what Python has

    def change(self, **values) -> None:
        """Set several of strategy, num_frames, references, loops, condition_frames and image_size: all, or none."""
        unknown = sorted(set(values) - set(FACTS))
        if unknown:
            raise TypeError(f"MaskTimeline has no {', '.join(unknown)}; it has {', '.join(FACTS)}")
        checked = self._checked(**values)
        with self.hold_trait_notifications():
            for name in values:
                setattr(self, name, checked[name])

    @property
    def text(self) -> str:
        """The strategy as text, in its shortest form; "" where no frame is given."""
        return self.strategy.format()

    @text.setter
    def text(self, text: str) -> None:
        self.strategy = text

    @property
    def explanation(self) -> str:
        """The strategy in plain English, with the frames that later loops take over."""
        return self._whole().explain(self.num_frames, self._lengths, self.loops)

    @property
    def request(self) -> dict:
        """What to call a pipeline with: {"references": […], "mask_strategy": MaskStrategy}.

        References that no segment uses, which a pipeline would refuse, are left out, and the others are counted anew.
        """
        count, unused = len(self.references), self._unused()
        new = [i - sum(u < i for u in unused) for i in range(count + self.loops)]  # clips of loops follow references
        return {
            "references": [reference for i, reference in enumerate(self.references) if i not in unused],
            "mask_strategy": MaskStrategy([replace(s, reference=new[s.reference]) for s in self.strategy.segments]),
        }

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    def undo(self) -> None:
        """Back to the strategy before the last change; those that no longer fit the video are passed over."""
        self._travel(back=True)

    def redo(self) -> None:
        """Take the last undo() back."""
        self._travel(back=False)

    def __repr__(self) -> str:
        loops = f", {self.loops} loops" if self.loops > 1 else ""
        references = f"{len(self.references)} reference{'s' * (len(self.references) != 1)}"
        return f'MaskTimeline("{self.text}": {self.num_frames} frames, {references}{loops})'

    def still(self) -> tuple[np.ndarray, str]:
        whole, rows = self._whole(), []
        for loop in range(self.loops):
            rows.append(whole.timeline(self.num_frames, self._available(loop), loop))
        title = f'"{self.text}"' if self.text else "no mask strategy"
        return _drawn(rows, self._pictures, self._lengths, title), self.explanation

    # -- what may be

    def _checked(self, **values) -> dict:
        """All FACTS, some of them new, as the traits hold them. Raises OpenSoraErrors where they do not go together."""
        new = {**{name: getattr(self, name) for name in FACTS}, **values}
        strategy, references = new["strategy"], new["references"]
        if strategy is None or (isinstance(strategy, str) and not strategy.strip()):
            strategy = MaskStrategy()
        new["strategy"] = MaskStrategy.parse(strategy)
        if not isinstance(references, tuple):
            alone = not isinstance(references, Sequence) or isinstance(references, str)
            new["references"] = () if references is None else (references,) if alone else tuple(references)
        new["image_size"] = check_size(new["image_size"])
        new["strategy"].check(new["num_frames"], self._count(new["references"]), new["loops"])
        taken, T = new["condition_frames"], new["num_frames"]
        if taken is not None and new["loops"] > 1 and not 1 <= taken < T:
            raise MaskStrategyError(f"condition_frames is {taken}, but a loop has {T} frames: give 1 to {T - 1}")
        return new

    @traitlets.validate(*FACTS)
    def _validate(self, proposal):
        name = proposal["trait"].name
        return self._checked(**{name: proposal["value"]})[name]

    def _count(self, references: tuple) -> tuple[int, ...]:
        if self._counted[0] is not references:  # files are opened once
            self._counted = references, tuple(count_frames(reference) for reference in references)
        return self._counted[1]

    @property
    def _lengths(self) -> tuple[int, ...]:
        """How many frames each reference has."""
        return self._count(self.references)

    def _available(self, loop: int) -> list[int]:
        """How many frames each reference of a loop has, clips of the loops before among them."""
        return [*self._lengths, *[self.num_frames] * loop]

    def _whole(self) -> MaskStrategy:
        """The strategy as a pipeline runs it."""
        if self.condition_frames is None:
            return self.strategy
        return self.strategy.continued(self.loops, self.condition_frames, len(self.references))

    def _unused(self) -> list[int]:
        return sorted(set(range(len(self.references))) - {segment.reference for segment in self.strategy.segments})

    # -- what happens

    @traitlets.observe(*FACTS)
    def _follow(self, change) -> None:
        if change["name"] == "strategy":
            self._past = [*self._past, change["old"]][-MOST_UNDONE:]
            self._future = []
        with self.hold_sync():  # the page gets references and segments in one piece
            if change["name"] in ("references", "image_size"):
                self._read_references()
            self._publish()

    def _publish(self) -> None:
        """Tell the page."""
        segments = [
            {"text": segment.format(), **asdict(segment.resolve(self.num_frames, self._available(segment.loop)))}
            for segment in self.strategy.segments
        ]
        self.state = {
            "num_frames": self.num_frames,
            "loops": self.loops,
            "taken_over": (self.condition_frames or 0) if self.loops > 1 else 0,
            "text": self.text,
            "explanation": self.explanation,
            "segments": segments,
            "unused": self._unused(),
            "presets": _presets(self.num_frames, self._lengths),
            "can_undo": self.can_undo,
            "can_redo": self.can_redo,
        }
        self.selected = min(self.selected, len(segments) - 1)
        self.draft, self.error = self.text, ""

    def _read_references(self) -> None:
        """Thumbnails of the references, as the model will see them."""
        height, width = self.image_size
        size = THUMBNAIL, max(round(THUMBNAIL * width / height), 8)
        self._pictures, clips = [], []
        for index, (reference, frames) in enumerate(zip(self.references, self._lengths, strict=True)):
            pictures = read_reference(reference, *size)
            pictures = pictures[np.linspace(0, frames - 1, min(frames, MOST_THUMBNAILS)).round().astype(int)]
            self._pictures.append(pictures)
            name = (
                Path(reference).name if isinstance(reference, (str, Path)) else "a picture" if frames == 1 else "a clip"
            )
            clips.append(
                {"name": f"{index}: {name}", "frames": frames, "thumbnails": [image_url(p, "JPEG") for p in pictures]}
            )
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
        """What the page asks for: {"do": "undo"}, {"do": "redo"}, or {"do": "check", "text": …} of a draft."""
        if content.get("do") == "check":  # while somebody is still typing
            try:
                self._checked(strategy=content["text"])
            except OpenSoraError as error:
                self.error = str(error)
            else:
                self.error = ""
        elif content.get("do") in ("undo", "redo"):
            getattr(self, content["do"])()

    def _travel(self, back: bool) -> None:
        source, target = (self._past, self._future) if back else (self._future, self._past)
        while source:
            strategy = source.pop()
            try:
                self._checked(strategy=strategy)
            except OpenSoraError:  # the video has changed since
                continue
            target.append(self.strategy)
            past, future = self._past, self._future  # which a change of the strategy rewrites
            self.strategy = strategy
            self._past, self._future = past, future
            break
        self._publish()


def _presets(num_frames: int, lengths: Sequence[int]) -> list[dict]:
    """The five tasks for these references: name, text of the strategy, and what is missing for it ("": nothing)."""
    clip = next((i for i, frames in enumerate(lengths) if frames > 1), None)
    some = min(max(num_frames // 4, 1), lengths[clip]) if clip is not None else 1

    def of_clip(strategy: MaskStrategy) -> MaskStrategy:
        return MaskStrategy([replace(segment, reference=clip or 0) for segment in strategy.segments])

    a_reference = "" if lengths else "needs a reference"
    two = "" if len(lengths) > 1 and num_frames > 1 else "needs two references and two frames"
    a_clip = "" if clip is not None and num_frames > 1 else "needs a clip among the references"
    presets = [
        ("Text", MaskStrategy(), ""),
        ("Image", MaskStrategy.image(), a_reference),
        ("Connect", MaskStrategy.connect(), two),
        ("Extend", of_clip(MaskStrategy.extend(some)), a_clip),
        ("Edit", of_clip(MaskStrategy.edit(0.4)), a_reference),
    ]
    return [{"name": name, "text": strategy.format(), "missing": missing} for name, strategy, missing in presets]


def _drawn(rows: Sequence[Sequence[Frame]], pictures: Sequence[np.ndarray], lengths, title: str) -> np.ndarray:
    """The rows of a timeline as a picture, uint8 [height, width, 3]: the frames given, and under noise what is not.

    rows: for each loop its frames. pictures, lengths: of each reference its thumbnails and its number of frames.
    """
    width = max([THUMBNAIL, *(p.shape[2] for p in pictures)])
    cell, left, top, bar = width + 4, 60, 44, 6
    height = THUMBNAIL + bar + 20
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
            picture = noise.copy()
            if frame.reference is not None and frame.reference < len(pictures):
                known = pictures[frame.reference]
                picture = known[frame.frame * len(known) // lengths[frame.reference]].copy()
                covered = round(frame.edit_ratio * THUMBNAIL)
                picture[THUMBNAIL - covered :] = noise[THUMBNAIL - covered :, : picture.shape[1]]
            elif frame.reference is not None:
                picture[:] = 205  # of a clip that is not there yet
            x = left + i * cell
            canvas.paste(Image.fromarray(picture), (x, y))
            letter, color = (
                (".", GENERATED) if frame.reference is None else ("E", EDITED) if frame.edit_ratio else ("G", GIVEN)
            )
            draw.rectangle((x, y + THUMBNAIL, x + width - 1, y + THUMBNAIL + bar - 1), color)
            draw.text((x, y + THUMBNAIL + bar), f"{i}{'' if letter == '.' else ' ' + letter}", "black", font)
    return np.asarray(canvas)
