"""The mask language: which frames of a video are given, which are edited, which are generated.

A strategy is text. Segments are separated by `;`, and each has one to six fields separated by `,`:

    loop, reference, reference_start, target_start, length, edit_ratio        defaults 0,0,0,0,1,0

A segment says: in this loop, put `length` frames of this reference, from `reference_start` on, into the video
from `target_start` on. Negative starts count from the end, and where segments overlap, the later one wins:

    latents[:, target_start : target_start + length] = reference[:, reference_start : reference_start + length]
    frame_mask[target_start : target_start + length] = edit_ratio

The frame mask holds one number a frame: the share of the denoising steps that the frame takes part in.

    0      given: kept as it is (the released sampler denoises it once, at the very last step)
    0.4    edited: noised to 40 % of the diffusion time, and denoised in the last 40 % of the steps
    1      generated: starts from pure noise; so is every frame that no segment names

    "0"                 the picture is the first frame
    "0;0,1,0,-1,1"      one picture is the first frame, another one the last
    "0,0,-4,0,4"        the last 4 frames of the clip come first, and the video goes on from there
    "0,0,0,0,16,0.4"    all 16 frames of the clip, changed a little

`all` in place of the length is ours: as many frames as the reference and the video both still have. Open-Sora
itself needs a number.

T is the number of frames of the video. The VAE works frame by frame, so T counts latents and pictures alike.

Source: Open-Sora 1.1, docs/config.md and `apply_mask_strategy` in scripts/inference-long.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from opensora_lite.errors import MaskStrategyError, printable, shown, underline

# Plain ASCII: int() and float() alone would also take "1_0", "٣", "nan" and "inf".
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
DECIMAL_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

# What nobody asks for on purpose, and what would take memory and time without end.
MAX_FRAMES = 10_000  # of one loop
MAX_LOOPS = 1_000
MAX_SEGMENTS = 1_000  # of a text

FRAMES_PER_LINE = 64  # of the timeline that explain() draws
EXCERPT = 80  # characters of a long strategy that an error shows


# ----------------------------------------------------------------------------------------------------------------
# One segment, and what it makes of one frame
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One piece of a strategy. Raises MaskStrategyError for values that are wrong whatever the video is."""

    loop: int = 0  # the loop of a long video in which the segment counts, from 0
    reference: int = 0  # which reference, from 0; the clips of earlier loops follow the references given
    reference_start: int = 0  # its first frame that is used; negative: from its end
    target_start: int = 0  # the frame of the video where that one goes; negative: from the end
    length: int | None = 1  # how many frames; None ("all"): as many as both have from there
    edit_ratio: float = 0.0  # 0: kept; 0 < r < 1: edited, in the last r of the steps

    def __post_init__(self) -> None:
        for name in WHOLE_FIELDS:
            value = getattr(self, name)
            if name == "length" and value is None:
                continue
            if not isinstance(value, Integral) or abs(int(value)) >= 10**9:  # int: numpy's smallest has no abs
                raise MaskStrategyError(f"{_spoken(name)} must be a whole number of at most nine digits")
            object.__setattr__(self, name, int(value))
        if self.loop < 0:
            raise MaskStrategyError(f"loop {self.loop} is never run; loops are counted from 0")
        if self.reference < 0:
            raise MaskStrategyError(f"reference {self.reference} does not exist; references are counted from 0")
        if self.length is not None and self.length < 1:
            raise MaskStrategyError(f'length {self.length} pins no frame; use 1 or more, or "all"')
        if not isinstance(self.edit_ratio, Real):
            raise MaskStrategyError("edit ratio must be a number from 0 to less than 1, such as 0.4")
        if not 0 <= self.edit_ratio <= 1:
            raise MaskStrategyError(
                f"edit ratio {shown(self.edit_ratio)} is outside 0…1;"
                " 0 keeps frames, 0.4 redraws them in 40 % of the steps"
            )
        # The original would put the clean reference in and then take it for pure noise. As float32, because that
        # is what the frame mask holds: 0.999999999 is 1 there.
        if np.float32(self.edit_ratio) == 1:
            raise MaskStrategyError(
                "edit ratio 1 keeps nothing of the reference; leave the segment out, or use less than 1"
            )
        object.__setattr__(self, "edit_ratio", float(self.edit_ratio) + 0.0)  # + 0.0 turns -0.0 into 0.0

    def format(self) -> str:
        """The shortest text of the segment: fields at the end that hold their default are left out."""
        values = [getattr(self, name) for name in FIELDS]
        while len(values) > 1 and values[-1] == DEFAULTS[len(values) - 1]:
            values.pop()
        return ",".join("all" if value is None else str(value) for value in values)

    __str__ = format

    def resolve(self, num_frames: int, references: Sequence[int]) -> "Segment":
        """The same segment for one video: starts counted from the front, length a number.

        num_frames: T. references: the number of frames of every reference there is in the segment's loop.
        Raises MaskStrategyError if the segment does not fit.
        """
        if not references:
            raise MaskStrategyError("no references were given; give one, or leave the mask strategy out")
        if self.reference >= len(references):
            given = "1 reference was" if len(references) == 1 else f"{len(references)} references were"
            earlier = ", clips of earlier loops included" if self.loop else ""
            raise MaskStrategyError(
                f"reference {self.reference} does not exist; {given} given ({_indices(len(references))}{earlier})"
            )
        available = references[self.reference]
        is_picture = available == 1
        clip = f"reference {self.reference}, a picture" if is_picture else f"reference {self.reference}"
        reference_start = _from_front(self.reference_start, available, "reference start", clip)
        target_start = _from_front(self.target_start, num_frames, "target start", "the video")

        reference_left, target_left = available - reference_start, num_frames - target_start
        fitting = min(reference_left, target_left)
        length = fitting if self.length is None else self.length
        fits = f"`{replace(self, length=fitting).format()}` fits"
        if length > reference_left and is_picture:
            raise MaskStrategyError(f"length is {length}, but {clip}, is 1 frame; {fits}")
        if length > reference_left:
            from_there = f" ({reference_left} from frame {reference_start} on)" if reference_start else ""
            raise MaskStrategyError(f"length is {length}, but {clip} has {_count(available)}{from_there}; {fits}")
        if length > target_left:
            from_there = f" ({target_left} from frame {target_start} on)" if target_start else ""
            raise MaskStrategyError(f"length is {length}, but the video has {_count(num_frames)}{from_there}; {fits}")
        return replace(self, reference_start=reference_start, target_start=target_start, length=length)


FIELDS = tuple(f.name for f in fields(Segment))
DEFAULTS = tuple(f.default for f in fields(Segment))
WHOLE_FIELDS = FIELDS[:-1]  # all but the edit ratio


@dataclass(frozen=True)
class Frame:
    """Where one frame of the video comes from. `Frame()` is a generated one."""

    reference: int | None = None  # index of the reference it is copied from; None: generated
    frame: int | None = None  # index of the frame in that reference
    segment: int | None = None  # index, from 0, of the segment of the strategy that says so
    edit_ratio: float = 1.0  # its entry of the frame mask: 0 kept, 1 generated, between: edited


def apply_frames(
    latents: np.ndarray, references: Sequence[np.ndarray], frames: Sequence[Frame]
) -> tuple[np.ndarray, np.ndarray]:
    """Put reference latents into the noise of one loop: new latents [C, T, H, W], frame mask [T] float32.

    latents: noise [C, T, H, W], not changed. references: latents [C, T_i, H, W] of every reference in this loop,
    clips of earlier loops after the given ones. frames: one entry of `MaskStrategy.resolve`.
    """
    latents = np.array(latents)
    for target, frame in enumerate(frames):
        if frame.reference is not None:
            latents[:, target] = references[frame.reference][:, frame.frame]
    return latents, np.array([frame.edit_ratio for frame in frames], np.float32)


def start_steps(edit_ratios: ArrayLike, steps: int) -> np.ndarray:
    """The step, counted down from steps - 1, at which frames join the denoising: int(ratio · steps), int32.

    edit_ratios: a number, or an array of any shape, which the result has too.
    As released, the product is taken in float32, where 0.29 · 100 gives 29. A ratio of 1 gives `steps`: from the start.
    """
    return (np.asarray(edit_ratios, np.float32) * np.float32(steps)).astype(np.int32)


# ----------------------------------------------------------------------------------------------------------------
# A strategy: segments, read from text
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskStrategy:
    """A mask strategy; `MaskStrategy()` gives no frame, so that all are generated.

    Two strategies are equal if their segments are, however they were written.
    """

    segments: tuple[Segment, ...] = ()
    # What a person wrote, for messages to point into; None for a strategy made in Python.
    text: str | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not all(isinstance(segment, Segment) for segment in self.segments):
            raise MaskStrategyError('MaskStrategy takes Segments; MaskStrategy.parse("0") reads text')

    # -- reading and writing

    @classmethod
    def parse(cls, text: "str | MaskStrategy | None") -> "MaskStrategy":
        """Read a strategy; spaces around fields don't matter. None is the empty strategy, a strategy is itself.

        Raises MaskStrategyError, and nothing else, for text that is not a strategy.
        """
        if isinstance(text, MaskStrategy):
            return text
        if text is None:
            return cls()
        if not isinstance(text, str):
            raise MaskStrategyError(f'a mask strategy is text such as "0" or "0,0,-4,0,4", not {type(text).__name__}')
        text = printable(text)
        if not text.strip():
            raise MaskStrategyError(
                'the mask strategy is empty; for no strategy leave it out, for a picture as the first frame write "0"'
            )
        if text.count(";") >= MAX_SEGMENTS:
            raise MaskStrategyError(f"the mask strategy has {text.count(';') + 1} segments, of {MAX_SEGMENTS} at most")
        strategy = cls(tuple(_parse_segment(text, index, *piece) for index, piece in enumerate(_pieces(text, ";"))))
        object.__setattr__(strategy, "text", text)
        return strategy

    def format(self) -> str:
        """The shortest text that means the same: parse(s.format()) == s.

        The empty strategy has no text that stands for it; it gives "", which parse() refuses.

        >>> (MaskStrategy.connect() + MaskStrategy.edit(0.4)).format()
        '0;0,1,0,-1;0,0,0,0,all,0.4'
        """
        return ";".join(segment.format() for segment in self.segments)

    __str__ = format

    def __add__(self, other: "MaskStrategy") -> "MaskStrategy":
        """The segments of both; where they overlap, those of `other` win."""
        return MaskStrategy(self.segments + other.segments) if isinstance(other, MaskStrategy) else NotImplemented

    # -- the strategies that have a name

    @classmethod
    def image(cls) -> "MaskStrategy":
        """A picture is the first frame: `0`."""
        return cls((Segment(),))

    @classmethod
    def connect(cls) -> "MaskStrategy":
        """One picture is the first frame, a second one the last: `0;0,1,0,-1`."""
        return cls((Segment(), Segment(reference=1, target_start=-1)))

    @classmethod
    def extend(cls, n: int) -> "MaskStrategy":
        """The last n frames of the reference come first, and the video goes on from there: `0,0,-n,0,n`."""
        return cls((Segment(reference_start=-n, length=n),))

    @classmethod
    def prepend(cls, n: int) -> "MaskStrategy":
        """The first n frames of the reference come last, and the video leads up to them: `0,0,0,-n,n`.

        PaddleMIX's README calls this video extending.
        """
        return cls((Segment(target_start=-n, length=n),))

    @classmethod
    def edit(cls, ratio: float) -> "MaskStrategy":
        """The whole reference, redrawn in the last `ratio` (0 … less than 1) of the steps: `0,0,0,0,all,ratio`."""
        return cls((Segment(length=None, edit_ratio=ratio),))

    @classmethod
    def loop(cls, n: int, loop: int = 1, reference: int = 0) -> "MaskStrategy":
        """A later loop begins with the last n frames of a reference, the clip that came before: `1,0,-n,0,n`.

        The pipeline appends one such segment for every loop after the first.
        """
        return cls((Segment(loop=loop, reference=reference, reference_start=-n, length=n),))

    def continued(self, loops: int, condition_frames: int, references: int) -> "MaskStrategy":
        """The strategy with the segments that the original appends: each later loop begins where the last one ended.

        condition_frames: how many frames each loop takes over from the one before. references: how many were given; the
        clips of the loops are counted on from there.
        """
        later = (self.loop(condition_frames, loop, references + loop - 1) for loop in range(1, loops))
        return sum(later, self)

    # -- what it means for one video

    def resolve(self, num_frames: int, references: Sequence[int], loops: int = 1) -> list[tuple[Frame, ...]]:
        """For each loop, where each of its T frames comes from; a list of `loops` tuples of T Frames.

        num_frames: T, the frames of the clip that each loop makes. references: the number of frames of each
        reference given (1 for a picture). In loop i the clips of the i loops before are references too; they follow
        the given ones and have T frames. Raises MaskStrategyError if a segment does not fit.

        >>> [[frame.edit_ratio for frame in frames] for frames in MaskStrategy.image().resolve(3, [1], loops=2)]
        [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        if not isinstance(loops, Integral) or not 1 <= loops <= MAX_LOOPS:
            raise MaskStrategyError(f"loops must be a whole number from 1 to {MAX_LOOPS}, not {shown(loops)}")
        for index, segment in enumerate(self.segments):
            if segment.loop >= loops:
                runs = "1 loop is" if loops == 1 else f"{loops} loops are"
                raise self._error(index, f"loop {segment.loop} is never run; {runs} asked for ({_indices(loops)})")
        return [self.timeline(num_frames, [*references, *[num_frames] * loop], loop) for loop in range(loops)]

    def check(self, num_frames: int, references: Sequence[int], loops: int = 1) -> None:
        """Raise MaskStrategyError where resolve() does."""
        self.resolve(num_frames, references, loops)

    def timeline(self, num_frames: int, references: Sequence[int], loop: int = 0) -> tuple[Frame, ...]:
        """One Frame for each of the T frames of one loop; segments of other loops are not looked at.

        num_frames: T. references: the number of frames of every reference that there is in this loop, the
        clips of earlier loops among them. Raises MaskStrategyError if a segment of this loop does not fit.

        >>> [frame.edit_ratio for frame in MaskStrategy.image().timeline(num_frames=3, references=[1])]
        [0.0, 1.0, 1.0]
        """
        segments = self._resolve(num_frames, references, loop)
        frames = [Frame()] * num_frames
        for index, segment in segments.items():
            for source, target in zip(*_spans(segment), strict=True):
                frames[target] = Frame(segment.reference, source, index, segment.edit_ratio)
        return tuple(frames)

    def apply(
        self, latents: np.ndarray, references: Sequence[np.ndarray], loop: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put the references into the noise that a video starts from.

        latents: [C, T, H, W]; left as it is. references: one [C, T_i, H, W] for every reference there is in this
        loop. Returns new latents [C, T, H, W] of the same dtype, and the frame mask [T], float32.
        Raises MaskStrategyError if shapes or a segment of this loop do not fit.
        """
        latents = np.array(latents)
        references = [np.asarray(reference) for reference in references]
        if latents.ndim != 4:
            raise MaskStrategyError(f"latents must be [C, T, H, W], not {list(latents.shape)}")
        C, T, H, W = latents.shape
        for index, reference in enumerate(references):
            if reference.ndim != 4 or reference.shape[:1] + reference.shape[2:] != (C, H, W):
                raise MaskStrategyError(
                    f"reference {index} must be [{C}, frames, {H}, {W}] like the latents, not {list(reference.shape)}"
                )

        timeline = self.timeline(T, [reference.shape[1] for reference in references], loop)
        return apply_frames(latents, references, timeline)

    def explain(self, num_frames: int, references: Sequence[int], loops: int = 1) -> str:
        """The strategy in plain English, with a picture of the frames.

        num_frames, references, loops, and what is raised: as in check().

        >>> print(MaskStrategy.parse("0;0,1,0,-1,1").explain(num_frames=16, references=[1, 1]))
        16 frames; reference 0 is a picture, reference 1 is a picture
          A  segment 1 `0`: frame 0 is kept as given: frame 0 of reference 0
          B  segment 2 `0,1,0,-1`: frame 15 is kept as given: frame 0 of reference 1
          .  frames 1-14 are generated from pure noise
             frame 0 |A..............B| frame 15
        """
        self.check(num_frames, references, loops)
        return "\n".join(
            line for loop in range(loops) for line in self._explain_loop(num_frames, references, loop, loops)
        )

    def _explain_loop(self, num_frames: int, references: Sequence[int], loop: int, loops: int) -> Iterator[str]:
        """The lines of explain() for one loop."""
        clips = [("a picture" if length == 1 else f"a clip of {length} frames") for length in references]
        clips += [f"the clip made in loop {earlier} ({_count(num_frames)})" for earlier in range(loop)]
        available = [*references, *[num_frames] * loop]
        timeline = self.timeline(num_frames, available, loop)

        heading = f"loop {loop}: {_count(num_frames)}" if loops > 1 else _count(num_frames)
        known = ", ".join(f"reference {index} is {clip}" for index, clip in enumerate(clips))
        yield f"{heading}; {known or 'no references'}"

        letters: dict[int | None, str] = {None: "."}
        for number, (index, segment) in enumerate(self._resolve(num_frames, available, loop).items()):
            letter = chr(ord("A") + number) if number < 26 else "+"
            letters[index] = letter.lower() if segment.edit_ratio else letter
            name = f"segment {index + 1} `{self.segments[index]}`"
            yield f"  {letters[index]}  {name}: {_explain(index, segment, timeline)}"

        generated = [target for target, frame in enumerate(timeline) if frame.segment is None]
        if generated:
            yield f"  .  {_frames(generated)} {_are(generated)} generated from pure noise"

        drawn = "".join(letters[frame.segment] for frame in timeline)
        width = len(str(num_frames - 1)) if num_frames > FRAMES_PER_LINE else 1
        for start in range(0, num_frames, FRAMES_PER_LINE):
            line = drawn[start : start + FRAMES_PER_LINE]
            yield f"     frame {start:>{width}} |{line}| frame {start + len(line) - 1}"

    # -- the segments of one loop

    def _resolve(self, num_frames: int, references: Sequence[int], loop: int) -> dict[int, Segment]:
        """Index -> resolved segment for the segments of one loop, in their order."""
        for length, what in [(num_frames, "the video"), *((length, "a reference") for length in references)]:
            if not isinstance(length, Integral) or length < 1:
                raise MaskStrategyError(f"{what} must be given as a number of frames, 1 or more, not {shown(length)}")
        if num_frames > MAX_FRAMES:
            raise MaskStrategyError(f"the video has {shown(num_frames)} frames; one loop makes {MAX_FRAMES} at most")
        resolved = {}
        for index, segment in enumerate(self.segments):
            if segment.loop == loop:
                try:
                    resolved[index] = segment.resolve(num_frames, references)
                except MaskStrategyError as error:
                    raise self._error(index, str(error)) from None
        return resolved

    def _error(self, index: int, message: str) -> MaskStrategyError:
        """`message`, pointing at a whole segment of the text, or of format() where there is none."""
        text = self.text or self.format()
        piece, start = list(_pieces(text, ";"))[index]
        return _located(text, index, start, len(piece), message)


# ----------------------------------------------------------------------------------------------------------------
# From text to segments
# ----------------------------------------------------------------------------------------------------------------


def _parse_segment(text: str, index: int, written: str, start: int) -> Segment:
    """Segment `index` of `text`, which is `written` there from position `start` on."""
    if not written:
        raise _located(
            text, index, start, 0, "the segment is empty; leave its `;` out (for no strategy at all, leave that out)"
        )
    written_fields = list(_pieces(written, ",", start))
    if len(written_fields) > len(FIELDS):
        surplus = written_fields[len(FIELDS)][1]
        message = f"it has {len(written_fields)} fields, but a segment has at most {len(FIELDS)}: {', '.join(FIELDS)}"
        raise _located(text, index, surplus, start + len(written) - surplus, message)
    values: dict[str, Any] = {}
    for name, (value, position) in zip(FIELDS, written_fields, strict=False):
        try:
            values[name] = _parse_field(name, value)
        except MaskStrategyError as error:
            raise _located(text, index, position, len(value), str(error)) from None
    try:
        return Segment(**values)
    except MaskStrategyError as error:
        raise _located(text, index, start, len(written), str(error)) from None


def _parse_field(name: str, value: str) -> int | float | None:
    shown = value if len(value) <= 20 else value[:20] + "…"
    if name == "edit_ratio":
        if not DECIMAL_NUMBER.fullmatch(value):
            raise MaskStrategyError(f'edit ratio must be a number from 0 to less than 1, such as 0.4, not "{shown}"')
        return float(value)
    if name == "length" and value == "all":
        return None
    if not WHOLE_NUMBER.fullmatch(value):
        kind = "a whole number of at most nine digits" + (' or "all"' if name == "length" else "")
        raise MaskStrategyError(f'{_spoken(name)} must be {kind}, not "{shown}"')
    return int(value)


def _pieces(text: str, separator: str, offset: int = 0) -> Iterator[tuple[str, int]]:
    """The pieces of `text` without the spaces around them, each with its position, counted from `offset`."""
    for piece in text.split(separator):
        yield piece.strip(), offset + len(piece) - len(piece.lstrip())
        offset += len(piece) + 1


def _located(text: str, index: int, start: int, length: int, message: str) -> MaskStrategyError:
    """An error that says which segment it is about, and underlines `length` characters of `text` from `start` on."""
    end = start + length
    if len(text) > EXCERPT:  # a screenful of text would hide what is underlined
        first = max(min(start - 10, len(text) - EXCERPT), 0)
        cut_before, cut_after = "…" * (first > 0), "…" * (first + EXCERPT < len(text))
        text = cut_before + text[first : first + EXCERPT] + cut_after
        shift = first - len(cut_before)
        start, end = start - shift, min(end - shift, len(text))
    return MaskStrategyError(f'segment {index + 1} of "{text}": {message}\n{underline(text, start, end)}')


# ----------------------------------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------------------------------


def _explain(index: int, segment: Segment, timeline: Sequence[Frame]) -> str:
    """What a resolved segment does, and what is left of it in the end."""
    source, target = _spans(segment)
    given = f"{_frames(source)} of reference {segment.reference}"
    if segment.edit_ratio:
        share = f"{100 * segment.edit_ratio:g} %"
        text = f"{_frames(target)} {_are(target)} edited in the last {share} of the steps: {given}"
    else:
        text = f"{_frames(target)} {_are(target)} kept as given: {given}"

    taken: dict[int, list[int]] = {}  # later segment -> the frames of this one that it ends up with
    for i in target:
        owner = timeline[i].segment
        if owner is not None and owner != index:
            taken.setdefault(owner, []).append(i)
    for later, lost in sorted(taken.items()):
        text += f"; segment {later + 1} takes over {_frames(lost)}"
    if sum(map(len, taken.values())) == len(target):
        text += "; nothing of this segment is left"
    return text


def _frames(indices: Sequence[int]) -> str:
    """Ascending indices in words, ends included: "frame 3", "frames 0-5", "frames 0-2, 7"."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"frame {text}" if len(indices) == 1 else f"frames {text}"


def _are(indices: Sequence[int]) -> str:
    return "is" if len(indices) == 1 else "are"


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _indices(count: int) -> str:
    return "index 0" if count == 1 else f"indices 0-{count - 1}"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _spans(segment: Segment) -> tuple[range, range]:
    """The frames of its reference, and those of the video, that a resolved segment joins."""
    assert segment.length is not None  # resolve() has put a number in its place
    source, target, length = segment.reference_start, segment.target_start, segment.length
    return range(source, source + length), range(target, target + length)


def _from_front(start: int, frames: int, name: str, where: str) -> int:
    """`start` counted from the front of `frames` frames."""
    if not -frames <= start < frames:
        raise MaskStrategyError(
            f"{name} {start} is outside {where}, which has {_count(frames)}; "
            + ("use 0" if frames == 1 else f"use 0 to {frames - 1}, or -1 to -{frames} to count from the end")
        )
    return start + frames if start < 0 else start
