"""The mask language of Open-Sora 1.1: which frames of a video come from references, and which the model makes.

A mask strategy is text: segments separated by `;`, each with up to six fields separated by `,`:

    loop, reference, reference_start, target_start, length, edit_ratio        defaults 0,0,0,0,1,0

In loop `loop`, a segment copies `length` frames of a reference into the latents of the video and sets their entries of
the frame mask. Negative starts count from the end; where segments overlap, the later one wins.

    latents[:, target_start : target_start + length] = reference[:, reference_start : reference_start + length]
    frame_mask[target_start : target_start + length] = edit_ratio

The frame mask [T] holds the share of the denoising steps in which a frame is denoised:

    0      conditioning frame: clean, at t = 0 for the model; as released, the very last step denoises it too
    0.4    edited frame: a conditioning frame at first; noised and denoised in the last 40 % of the steps
    1      generated frame: starts as pure noise; this is every frame that no segment names

Examples, for T = 16:

    "0"                 image to video: the picture is the first frame
    "0;0,1,0,-1,1"      connecting: one picture is the first frame, another one the last
    "0,0,-4,0,4"        extending: the video begins with the last 4 frames of the clip
    "0,0,0,0,16,0.4"    editing: all frames of the clip, changed a little

The length `all` is an addition of this library: as many frames as the reference and the video both have left. The VAE
encodes frames one by one, so T counts both latents and pictures. In Open-Sora 1.2 it does not: there a strategy counts
latent frames, each of up to four frames (`latent_time`), and segments begin with a chunk of the video VAE (`fitted`).

Source: Open-Sora 1.1, docs/config.md and `apply_mask_strategy` in scripts/inference-long.py.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, InstanceOf

from opensora_lite.errors import MaskStrategyError, shown
from opensora_lite.latent_time import LatentTime, Window
from opensora_lite.validation import Array, AsTuple, Count, Index, Items, Whole, check, validated

MAX_FRAMES = 10_000  # of one loop
MAX_LOOPS = 1_000
FRAMES_PER_LINE = 64  # of the drawing in explain(), rounded down to whole chunks

NumFrames = Annotated[Count, Field(le=MAX_FRAMES)]
Loops = Annotated[Count, Field(le=MAX_LOOPS)]
AnyTime = InstanceOf[LatentTime]


@validated(MaskStrategyError)
class Segment:
    """One segment of a mask strategy. Raises MaskStrategyError for values that no video can have."""

    loop: Index = 0  # the loop of a long video in which the segment applies
    reference: Index = 0  # the clips of earlier loops follow the given references
    reference_start: Whole = 0  # first frame of the reference; negative: from its end
    target_start: Whole = 0  # first frame of the video; negative: from its end
    length: Count | None = 1  # number of frames; None: "all"
    edit_ratio: Annotated[float, Field(ge=0, le=0.999)] = 0.0  # 0: conditioning frames; otherwise edited frames

    def format(self) -> str:
        """The segment as text, without trailing fields that have their default."""
        values = [getattr(self, field.name) for field in fields(self)]
        while len(values) > 1 and values[-1] == fields(self)[len(values) - 1].default:
            values.pop()
        return ",".join("all" if value is None else str(value) for value in values)

    __str__ = format

    def resolve(
        self, num_frames: int, references: Sequence[int], align: int | None = None, move_target: bool = True
    ) -> "Segment":
        """The segment for one video: starts counted from the front, and a number as length.

        num_frames: T. references: the number of frames of every reference in the segment's loop. align: starts move to
        the nearest multiple, and the segment keeps what fits there; move_target: the start in the video, too.
        Raises MaskStrategyError if the segment doesn't fit.
        """
        if self.reference >= len(references):
            known = f"there are {len(references)}, counted from 0" if references else "no references were given"
            raise MaskStrategyError(f"reference {self.reference} does not exist; {known}")
        available = references[self.reference]
        unit = "frames" if align is None else "latent frames"
        reference_start = _from_front("reference_start", self.reference_start, available, unit)
        target_start = _from_front("target_start", self.target_start, num_frames, unit)
        left = available - reference_start, num_frames - target_start
        if align is not None:
            reference_start = align_start(reference_start, align, available)
            target_start = align_start(target_start, align, num_frames) if move_target else target_start
        fitting = min(available - reference_start, num_frames - target_start)
        if self.length is not None and self.length > max(min(left), fitting):
            raise MaskStrategyError(
                f"length must be at most {min(left)}, not {self.length}"
                f" ({unit} from the starts on: {left[0]} of reference {self.reference}, {left[1]} of the video)"
            )
        length = min(self.length or fitting, fitting)
        return replace(self, reference_start=reference_start, target_start=target_start, length=length)

    @property
    def target(self) -> range:
        """The frames of the video that a resolved segment covers."""
        return range(self.target_start, self.target_start + (self.length or 0))


@dataclass(frozen=True)
class Frame:
    """Where one frame of the video comes from. `Frame()` is a generated frame."""

    reference: int | None = None  # index of the reference it is copied from; None: generated
    frame: int | None = None  # index of the frame in that reference
    segment: int | None = None  # index of the segment that copies it
    edit_ratio: float = 1.0  # its entry of the frame mask


@validated(MaskStrategyError)
class MaskStrategy:
    """A mask strategy: segments in the order in which they are applied. `MaskStrategy()` generates all frames."""

    segments: Annotated[tuple[Segment, ...], AsTuple] = ()

    # -- text

    @classmethod
    def parse(cls, text: "str | MaskStrategy | None") -> "MaskStrategy":
        """Read a strategy. Spaces around fields don't matter; None is the empty strategy.

        Raises MaskStrategyError for text that is not a strategy.
        """
        if isinstance(text, MaskStrategy):
            return text
        if text is None:
            return cls()
        check(str, text, "mask strategy", MaskStrategyError)
        segments = []
        for index, written in enumerate(text.split(";")):
            with _located(index, written):
                segments.append(_parse_segment(written))
        return cls(tuple(segments))

    def format(self) -> str:
        """The shortest text of the strategy; "" for the empty one, which parse() takes as None only.

        >>> (MaskStrategy.connect() + MaskStrategy.edit(0.4)).format()
        '0;0,1,0,-1;0,0,0,0,all,0.4'
        """
        return ";".join(segment.format() for segment in self.segments)

    __str__ = format

    def __add__(self, other: "MaskStrategy") -> "MaskStrategy":
        """The segments of both; where they overlap, those of `other` win."""
        return MaskStrategy(self.segments + other.segments) if isinstance(other, MaskStrategy) else NotImplemented

    # -- the usual strategies by name

    @classmethod
    def image(cls) -> "MaskStrategy":
        """Image to video: the picture is the first frame. `0`"""
        return cls((Segment(),))

    @classmethod
    def connect(cls) -> "MaskStrategy":
        """One picture is the first frame, a second one the last. `0;0,1,0,-1`"""
        return cls((Segment(), Segment(reference=1, target_start=-1)))

    @classmethod
    def extend(cls, n: int) -> "MaskStrategy":
        """Continue a clip forward: the video begins with its last n frames. `0,0,-n,0,n`"""
        n = check(Count, n, "n", MaskStrategyError)
        return cls((Segment(reference_start=-n, length=n),))

    @classmethod
    def prepend(cls, n: int) -> "MaskStrategy":
        """Lead up to a clip: the video ends with its first n frames. `0,0,0,-n,n`

        This is the example that PaddleMIX's README calls video extending.
        """
        n = check(Count, n, "n", MaskStrategyError)
        return cls((Segment(target_start=-n, length=n),))

    @classmethod
    def edit(cls, ratio: float) -> "MaskStrategy":
        """Edit a whole clip in the last `ratio` of the steps; in Open-Sora 1.2, at timesteps up to 1000 · `ratio`.

        `0,0,0,0,all,ratio`"""
        return cls((Segment(length=None, edit_ratio=ratio),))

    @classmethod
    def loop(cls, n: int, loop: int = 1, reference: int = 0) -> "MaskStrategy":
        """Loop `loop` begins with the last n frames of the clip `reference`. `1,0,-n,0,n`"""
        n = check(Count, n, "n", MaskStrategyError)
        return cls((Segment(loop=loop, reference=reference, reference_start=-n, length=n),))

    def continued(self, loops: int, condition_frames: int, references: int) -> "MaskStrategy":
        """The strategy of a long video: each later loop begins with the last frames of the loop before it.

        condition_frames: how many frames each loop takes over. references: the number of given references; the clip
        of loop i is reference `references + i`. Source: the loop over `loop_i` in inference-long.py.
        """
        check(Loops, loops, "loops", MaskStrategyError)
        check(Index, condition_frames, "condition_frames", MaskStrategyError)
        check(Index, references, "references", MaskStrategyError)
        later = (self.loop(condition_frames, loop, references + loop - 1) for loop in range(1, loops))
        return sum(later, self)

    # -- the strategy for one video

    def resolve(
        self, num_frames: int, references: Sequence[int], loops: int = 1, align: int | None = None
    ) -> list[tuple[Frame, ...]]:
        """For each loop, where each of its T frames comes from; a list of `loops` tuples of T Frames.

        num_frames: T, the frames of the clip that each loop makes. references: the number of frames of each
        reference given (1 for a picture). In loop i the clips of the i loops before are references too; they follow
        the given ones and have T frames. align: as in `timeline`. Raises MaskStrategyError if a segment doesn't fit.

        >>> [[frame.edit_ratio for frame in frames] for frames in MaskStrategy.image().resolve(3, [1], loops=2)]
        [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        _check_video(num_frames, references, loops, align)
        for index, segment in enumerate(self.segments):
            with _located(index, segment):
                if segment.loop >= loops:
                    raise MaskStrategyError(f"loop {segment.loop} does not exist; loops={loops}, counted from 0")
        return [self._frames(num_frames, [*references, *[num_frames] * loop], loop, align) for loop in range(loops)]

    def check(self, num_frames: int, references: Sequence[int], loops: int = 1) -> None:
        """Raise MaskStrategyError where resolve() does."""
        self.resolve(num_frames, references, loops)

    def timeline(
        self, num_frames: int, references: Sequence[int], loop: int = 0, align: int | None = None
    ) -> tuple[Frame, ...]:
        """The T Frames of one loop.

        references: the number of frames of every reference in this loop, the clips of earlier loops included.
        align: 5 for Open-Sora 1.2, where frames are latent frames; see `fitted`.
        Raises MaskStrategyError if a segment of this loop doesn't fit.

        >>> [frame.edit_ratio for frame in MaskStrategy.image().timeline(num_frames=3, references=[1])]
        [0.0, 1.0, 1.0]
        """
        _check_video(num_frames, references, align=align)
        check(Index, loop, "loop", MaskStrategyError)
        return self._frames(num_frames, references, loop, align)

    def _frames(self, num_frames: int, references: Sequence[int], loop: int, align: int | None) -> tuple[Frame, ...]:
        """`timeline` of checked arguments."""
        frames = [Frame()] * num_frames
        for index, segment in self.fitted(num_frames, references, loop, align).items():
            for i, target in enumerate(segment.target):
                frames[target] = Frame(segment.reference, segment.reference_start + i, index, segment.edit_ratio)
        return tuple(frames)

    def fitted(
        self, num_frames: int, references: Sequence[int], loop: int = 0, align: int | None = None
    ) -> dict[int, Segment]:
        """The resolved segments of one loop, by their index; arguments and errors as in `timeline`.

        align: starts move to the nearest multiple, of the reference and of the video, and segments keep only what fits
        there. In Open-Sora 1.2, five latent frames are a chunk that the video VAE encodes on its own. A segment that
        would move onto frames of earlier segments keeps its start in the video. (The original moves it, so that of two
        pictures for 5 latent frames, "0;0,1,0,-1", only the second one is left.)
        """
        segments: dict[int, Segment] = {}
        covered: set[int] = set()
        for index, segment in enumerate(self.segments):
            if segment.loop != loop:
                continue
            with _located(index, segment):
                fitted = segment.resolve(num_frames, references, align)
                start = segment.target_start % num_frames
                if covered & set(fitted.target).difference(range(start, start + (fitted.length or 0))):
                    fitted = segment.resolve(num_frames, references, align, move_target=False)
            segments[index] = fitted
            covered |= set(fitted.target)
        return segments

    def apply(
        self, latents: np.ndarray, references: Sequence[np.ndarray], loop: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """`apply_frames` with the timeline of one loop. Raises MaskStrategyError if a segment doesn't fit."""
        check(Array, latents, "latents", MaskStrategyError)
        if latents.ndim != 4:
            raise MaskStrategyError(f"latents must have the shape [C, T, H, W], not {list(latents.shape)}")
        frames = self.timeline(latents.shape[1], [reference.shape[1] for reference in references], loop)
        return apply_frames(latents, references, frames)

    def explain(
        self, num_frames: int, references: Sequence[int], loops: int = 1, time: LatentTime = LatentTime()
    ) -> str:
        """The frames of each loop in words and as a drawing; arguments and errors as in resolve().

        In the drawing, capitals are conditioning frames, small letters edited frames, dots generated frames.
        time: of the model, such as `generations.OPEN_SORA_12`, for which the strategy counts latent frames; num_frames
        and references count frames all the same, and the words give both.

        >>> print(MaskStrategy.parse("0;0,1,0,-1,1").explain(num_frames=16, references=[1, 1]))
        16 frames; reference 0 is a picture, reference 1 is a picture
          A  frame 0: conditioning, frame 0 of reference 0 (segment 1, `0`)
          .  frames 1-14: generated
          B  frame 15: conditioning, frame 0 of reference 1 (segment 2, `0,1,0,-1`)
             |A..............B| frames 0-15
        """
        _check_video(num_frames, references, loops)
        check(AnyTime, time, "time", MaskStrategyError)
        T, lengths = time.latent_frames(num_frames), [time.latent_frames(n) for n in references]
        per_line = FRAMES_PER_LINE // (time.align or 1) * (time.align or 1)
        lines = []
        for loop, frames in enumerate(self.resolve(T, lengths, loops, time.align)):
            clips = [*references, *[num_frames] * loop]
            known = ["a picture" if n == 1 else f"a clip of {_length(n, time)}" for n in references]
            known += [f"the clip of loop {earlier}" for earlier in range(loop)]
            listed = ", ".join(f"reference {i} is {clip}" for i, clip in enumerate(known))
            lines.append(f"loop {loop}: " * (loops > 1) + f"{_length(num_frames, time)}; {listed or 'no references'}")
            windows = [] if time.factor == 1 else [time.windows(n) for n in (num_frames, *clips)]
            for index, run in groupby(range(T), key=lambda i: frames[i].segment):
                lines.append(self._explain_run(frames, index, list(run), windows))
            left = {frame.segment for frame in frames}
            for index, segment in enumerate(self.segments):
                if segment.loop == loop and index not in left:
                    lines.append(f"     segment {index + 1}, `{segment}`, is overwritten by later segments")
            reason = f": segments begin with a chunk of {time.chunk} frames"
            lines += [f"     {moved}{reason}" for moved in self.moves(num_frames, clips, loop, time)]
            for first in range(0, T, per_line):
                letters = "".join(_letter(frame) for frame in frames[first : first + per_line])
                chunks = [letters[i : i + (time.align or T)] for i in range(0, len(letters), time.align or T)]
                lines.append(f"     |{' '.join(chunks)}| {_place(first, first + len(letters) - 1, *windows[:1])}")
        return "\n".join(lines)

    def _explain_run(
        self, frames: Sequence[Frame], index: int | None, run: Sequence[int], windows: Sequence[list[Window]]
    ) -> str:
        """One line of explain(): the neighbouring frames `run`, which segment `index` copies.

        windows: of latent frames, those of the video and of each reference; otherwise empty.
        """
        first, last = frames[run[0]], frames[run[-1]]
        if index is None:
            effect = "generated"
        else:
            if not first.edit_ratio:
                kind = "conditioning"
            elif windows:  # Open-Sora 1.2; how many steps these are depends on the video's size and length
                kind = f"edited at timesteps up to {1000 * first.edit_ratio:g}"
            else:
                kind = f"edited in the last {100 * first.edit_ratio:g} % of the steps"
            reference = first.reference or 0
            source = _place(first.frame or 0, last.frame or 0, *windows[1 + reference :][:1])
            if windows and windows[1 + reference][-1].last == 0 and windows[0][run[0]].first < windows[0][run[0]].last:
                source = "a still clip"  # of a picture
            effect = f"{kind}, {source} of reference {reference} (segment {index + 1}, `{self.segments[index]}`)"
        return f"  {_letter(first)}  {_place(run[0], run[-1], *windows[:1])}: {effect}"

    def moves(
        self, num_frames: int, references: Sequence[int], loop: int = 0, time: LatentTime = LatentTime()
    ) -> list[str]:
        """What aligning changes of the segments of one loop: a sentence for each that is not as it was given.

        Arguments as in explain(); references: those of this loop. Raises MaskStrategyError if a segment doesn't fit.

        >>> print(*MaskStrategy.connect().moves(51, [1, 1], time=LatentTime(17, 4)))
        segment 2, `0,1,0,-1`, begins at latent 10 (frame 34) of the video, not at latent 14 (frames 47-50)
        """
        T, lengths, sentences = time.latent_frames(num_frames), [time.latent_frames(n) for n in references], []
        for index, fitted in self.fitted(T, lengths, loop, time.align).items():
            given, changes = self.segments[index], []
            clip = references[given.reference]
            starts = (
                (num_frames, given.target_start % T, fitted.target_start, "of the video"),
                (clip, given.reference_start % time.latent_frames(clip), fitted.reference_start, "of its reference"),
            )
            for frames, start, moved, of_what in starts:
                if start != moved:
                    meant, found = (_place(i, i, time.windows(frames)) for i in (start, moved))
                    changes.append(f"begins at {found} {of_what}, not at {meant}")
            if given.length not in (None, fitted.length):
                changes.append(f"keeps {fitted.length} of its {given.length} latents")
            if changes:
                sentences.append(f"segment {index + 1}, `{given}`, {', '.join(changes)}")
        return sentences


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


def align_start(start: int, step: int, frames: int) -> int:
    """The multiple of `step` nearest to `start`, 0 or more, that is not after the last complete `step` of `frames`.

    A tie goes down. Source: `find_nearest_point` in Open-Sora 1.2's inference_utils.py.

    >>> [align_start(start, 5, 15) for start in (2, 3, 14)]
    [0, 5, 10]
    """
    steps = start // step
    if start % step > step / 2 and steps < frames // step - 1:
        steps += 1
    return steps * step


def start_steps(edit_ratios: ArrayLike, steps: int) -> np.ndarray:
    """The step, counted down from steps - 1 to 0, at which frames begin to be denoised: int(ratio · steps), int32.

    edit_ratios: a number or an array of any shape, which is the shape of the result. Ratio 1 gives `steps`: denoised
    from the start. As released, the product is taken in float32, where 0.29 · 100 gives 29.
    """
    return (np.asarray(edit_ratios, np.float32) * np.float32(steps)).astype(np.int32)


# -- helpers


def _parse_segment(text: str) -> Segment:
    if not text.strip():
        raise MaskStrategyError('it is empty; leave out its ";", or the whole strategy')
    written, names = text.split(","), [field.name for field in fields(Segment)]
    if len(written) > len(names):
        raise MaskStrategyError(f"it has {len(written)} fields; give at most {len(names)}: {', '.join(names)}")
    return Segment(**{name: _parse_field(name, value.strip()) for name, value in zip(names, written, strict=False)})


def _parse_field(name: str, text: str) -> Any:
    try:
        if name == "edit_ratio":
            return float(text)
        return None if name == "length" and text == "all" else int(text)
    except ValueError:
        kind = {"edit_ratio": "a number", "length": 'a whole number or "all"'}.get(name, "a whole number")
        raise MaskStrategyError(f"{name} must be {kind}, not {shown(text)}") from None


def _check_video(num_frames: int, references: Sequence[int], loops: int = 1, align: int | None = None) -> None:
    check(NumFrames, num_frames, "num_frames", MaskStrategyError)
    check(Loops, loops, "loops", MaskStrategyError)
    check(Annotated[tuple[Count, ...], Items], references, "references", MaskStrategyError)
    check(Count | None, align, "align", MaskStrategyError)


@contextlib.contextmanager
def _located(index: int, segment: str | Segment) -> Iterator[None]:
    """Adds to an error of one segment which one it is."""
    try:
        yield
    except MaskStrategyError as error:
        raise MaskStrategyError(f"segment {index + 1} ({shown(str(segment).strip())}): {error}") from None


def _from_front(name: str, start: int, frames: int, unit: str) -> int:
    """`start` counted from the front of `frames` frames."""
    if not -frames <= start < frames:
        counted = "" if unit == "frames" else f"; it counts {unit}"
        raise MaskStrategyError(f"{name} must be from {-frames} to {frames - 1}, not {start}{counted}")
    return start % frames


def _letter(frame: Frame) -> str:
    """The frame in the drawing of explain()."""
    if frame.segment is None:
        return "."
    letter = chr(ord("A") + frame.segment) if frame.segment < 26 else "+"
    return letter.lower() if frame.edit_ratio else letter


def _span(first: int, last: int, noun: str = "frame") -> str:
    return f"{noun} {first}" if first == last else f"{noun}s {first}-{last}"


def _place(first: int, last: int, windows: Sequence[Window] = ()) -> str:
    """Frames in words; of latent frames, of which `windows` are given, also the frames that they encode."""
    if not windows:
        return _span(first, last)
    return f"{_span(first, last, 'latent')} ({_span(windows[first].first, windows[last].last)})"


def _length(num_frames: int, time: LatentTime) -> str:
    latents = time.latent_frames(num_frames)
    in_latents = "" if time.factor == 1 else f" ({latents} latent{'s' * (latents != 1)})"
    return f"{num_frames} frames{in_latents}"
