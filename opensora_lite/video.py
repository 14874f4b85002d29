"""`Video`: frames that a notebook plays and that can be saved; `Reference`: an image or clip to condition on.

Frames are uint8 RGB, [T, H, W, 3]: T frames of H rows and W columns. Files are read in io/media.py, and written in
io/writing.py.
"""

import contextlib
import html
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, Union

import numpy as np
from pydantic import Field

from opensora_lite.errors import MediaError, SizeError, note, shown
from opensora_lite.io import clips, media, writing
from opensora_lite.io.media import MAX_KEPT_PIXELS, MAX_PIXELS, StrPath, check_length
from opensora_lite.io.metadata import read_info
from opensora_lite.io.writing import check_target as check_target
from opensora_lite.validation import Count, Index, Items, Whole, check

if TYPE_CHECKING:
    import PIL.Image

Rate = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]  # frames per second
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_EMBEDDED_BYTES = 1_500_000  # of media inside one notebook output, before base64
MAX_THUMBNAIL_PIXELS = 500_000_000  # that are decoded for the thumbnails of a clip, a few seconds of work
INSTALL = 'pip install -e ".[cpu,notebook]"'  # as in README.md


# ---------------------------------------------------------------------------------------------------------------------
#   Video
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False)
class Video:
    """Frames and their rate; as the last line of a notebook cell it plays.

    frames: uint8 [T, H, W, 3], RGB, T >= 1 (not copied). fps: frames per second, 0.01 … 1000.
    path: where it was saved, or None. prompt: shown with the video, or None. info: how it was made, which `save` writes
    into the file's metadata (`provenance`), or None.
    Raises MediaError for anything else.
    """

    frames: np.ndarray
    fps: float = 24.0
    path: "Path | None" = None
    prompt: "str | None" = None
    info: "dict[str, Any] | None" = None

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        self.fps = _rate(self.fps)
        check(str | None, self.prompt, "prompt", MediaError)
        check(dict[str, Any] | None, self.info, "info", MediaError)

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Rows of a frame, in pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Columns of a frame, in pixels."""
        return self.frames.shape[2]

    @property
    def duration(self) -> float:
        """Seconds that one playing takes."""
        return len(self) / self.fps

    def __repr__(self) -> str:
        frames = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        return f"Video({frames}, {self.height}×{self.width}, {self.fps:g} fps)"  # height first, as in image_size

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """text/plain and text/html; equal frames give equal bytes."""
        return {"text/plain": repr(self), "text/html": self._html()}

    def _html(self) -> str:
        """By mediapy: an mp4; a still image for one frame and where a video is too large or can't be made."""
        label, note, data = html.escape(self.prompt or repr(self)), "", b""
        try:
            import mediapy
        except ImportError:
            return f"<p>{label}</p><p>To play it here: <code>{html.escape(INSTALL)}</code></p>"
        if len(self) > 1:
            try:
                data = writing.mp4_bytes(self.frames, self.fps)
            except MediaError as error:  # a PyAV without an h264 encoder
                note = str(error)
        else:
            data = writing.png_bytes(writing.to_image(self.frames[0]))
        if len(data) > MAX_EMBEDDED_BYTES:
            note = f"{len(data) / 1e6:.1f} MB is too much for a notebook: save() it to play it"
        height, width = self.height, self.width
        if note:
            data, height, width = self._small_sheet()
        elif len(self) > 1:
            height, width = height + height % 2, width + width % 2  # as the mp4 is padded
        factor = 1 if note else max(1, math.ceil(256 / width))  # a whole number: every pixel becomes a sharp square
        size = (width * factor, height * factor)
        title = "<br>".join(html.escape(line) for line in (self.prompt, note) if line) or None
        style = "max-width:100%; height:auto" + ("; image-rendering:pixelated" if factor > 1 else "")
        if len(self) > 1 and not note:  # mediapy puts `border` into the style as it is, and has no text for a reader
            shown = mediapy.html_from_compressed_video(data, *size, title=title, border=style)
            return shown.replace("<video ", f'<video aria-label="{label}" ', 1)
        shown = mediapy.html_from_compressed_image(data, *size, title=title, border=style, pixelated=factor > 1)
        return shown.replace("<img ", f'<img alt="{label}" ', 1)

    def _small_sheet(self) -> tuple[bytes, int, int]:
        """A contact sheet of at most 16 frames that fits into a notebook: PNG bytes, height, width."""
        chosen = self.spread(16)
        rows = 512 if len(chosen) == 1 else 160
        while True:
            scale = min(rows / self.height, 4 * rows / self.width, 1.0)
            sheet = self.contact_sheet(columns=4, scale=scale, frames=chosen, labels=len(chosen) > 1)
            data = writing.png_bytes(sheet)
            if len(data) <= MAX_EMBEDDED_BYTES or rows <= 8:
                return data, sheet.height, sheet.width
            rows //= 2

    def save(self, path: StrPath, overwrite: bool = True) -> Path:
        """Write the video in the format of the suffix of `path`. Returns the path, which becomes `self.path` too.

        .mp4    h264, plays in browsers
        .webm   VP9, plays in browsers
        .gif    at most 50 fps, 256 colours per frame; its clock counts hundredths of a second
        .webp   shown like a picture, as a .gif is, with all colours; its clock counts milliseconds
        .png    one frame only, lossless
        (none)  a directory of frame_0000.png, frame_0001.png …, lossless

        The file appears at `path` when it is complete (a video or gif is decoded before); after a failure, whatever was
        there is unchanged. A directory is only replaced if it holds nothing but such frames. Missing parent
        directories are created. Raises MediaError, also if `path` exists and `overwrite` is False.
        """
        self.path = writing.save_video(self.frames, self.fps, path, overwrite, self.info)
        return self.path

    def spread(self, most: int) -> list[int]:
        """The indices of at most `most` frames, evenly spaced from the first to the last."""
        check(Index, most, "most", MediaError)
        return np.unique(np.linspace(0, len(self) - 1, most).round().astype(int)).tolist()

    def contact_sheet(
        self,
        columns: int = 8,
        scale: float | None = None,
        frames: Sequence[int] | None = None,
        gap: int = 2,
        labels: bool = True,
    ) -> "PIL.Image.Image":
        """The frames side by side on white, from left to right and top to bottom: a PIL image in mode RGB.

        columns: frames in a row, at most. scale: enlarges every frame; whole numbers repeat pixels, others resample;
        None: the smallest whole number that makes a frame at least 96 pixels high. frames: the indices to show
        (negative ones count from the end), None: all. gap: white pixels between frames. labels: write the index above
        each frame. Raises MediaError.
        """
        from PIL import Image, ImageDraw, ImageFont

        check(Count, columns, "columns", MediaError)
        check(Index, gap, "gap", MediaError)
        check(Scale | None, scale, "scale", MediaError)
        wanted = range(len(self)) if frames is None else frames
        chosen = [self._index(i) for i in check(Annotated[tuple[Whole, ...], Items], wanted, "frames", MediaError)]
        if not chosen:
            raise MediaError("a contact sheet needs at least one frame")
        if scale is None:
            scale = max(1, math.ceil(96 / self.height))
        width, height = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        resample = Image.Resampling.NEAREST if scale == int(scale) else Image.Resampling.BICUBIC
        above = 14 if labels else 0  # the default font is 10 or 11 pixels high
        columns = min(columns, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        step_x, step_y = width + gap, height + above + gap
        sheet = Image.new("RGB", (columns * step_x - gap, rows * step_y - gap), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
        for place, index in enumerate(chosen):
            x, y = place % columns * step_x, place // columns * step_y
            if labels:
                draw.text((x + 1, y + 1), str(index), fill="black", font=font)
            sheet.paste(writing.to_image(self.frames[index]).resize((width, height), resample), (x, y + above))
        return sheet

    def _index(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise MediaError(f"frame {i} does not exist; the video has {len(self)} (0 … {len(self) - 1})")
        return i % len(self)


def read_video(path: StrPath, fps: float | None = None) -> Video:
    """The frames of a video or an animation, upright, with square pixels, what is transparent over white.

    `Video.info` is how it was made, if this library wrote it.
    fps: None: every frame, in display order, at the average rate of the file; a warning says where frames last
    unequally long, since a Video's do not. A number: the frames that are shown at so many moments a second.
    path: may end in "#t=2,4", the seconds that are meant. Raises MediaError, also for more than MAX_KEPT_PIXELS pixels
    in all.
    """
    file, trim = media.split_fragment(path)
    file, kind = media.check_source(file)
    if kind == "image":
        raise MediaError(f"{path} is an image: read_image reads it")
    if fps is not None or trim is not None:
        reference = open_reference(path, fps)
        size = reference.height, reference.width
        check_length(path, reference.num_frames, *size, MAX_KEPT_PIXELS - 8 * math.prod(size))
        frames, rate = np.empty((reference.num_frames, *size, 3), np.uint8), reference.fps
        for i, picture in reference.pictures(range(reference.num_frames)):
            frames[i] = _whole(picture, size)
    else:
        clip, times = clips.open_clip(file, path), []
        size, rate = (clip.height, clip.width), clip.fps
        for begins, _ in clips.all_frames(file, path):
            times.append(float(begins))
            check_length(path, len(times), *size, MAX_KEPT_PIXELS - 8 * math.prod(size))  # a decoder holds 16 frames
        frames, lengths = np.empty((len(times), *size, 3), np.uint8), np.diff(times)
        for i, (_, picture_of) in zip(range(len(times)), clips.all_frames(file, path), strict=False):
            frames[i] = _whole(picture_of(), size)
        if len(times) > 2 and np.ptp(lengths) > 0.6 * lengths.mean():
            usual = f"{float(clip.usual_fps):.5g}"
            note(
                f"{path} has a variable frame rate, and all frames of a Video last equally long;"
                f" read_video(path, fps={usual}) keeps its time"
            )
    video = Video(frames, float(rate or 24))
    with contextlib.suppress(MediaError):  # metadata that Pillow refuses
        video.info = read_info(file)
    return video


def read_image(path: StrPath) -> np.ndarray:
    """An image file as uint8 [H, W, 3], upright according to its EXIF orientation. Raises MediaError.

    16-bit grey is scaled to 8 bits; the first of several pages is read; what is transparent is put over white.
    """
    file, kind = media.check_source(path)
    if kind == "video":
        raise MediaError(f"{path} is a video: read_video reads it")
    image, _ = media.read_image_file(file, path)
    with media.explained(path, "cannot be read", (MemoryError,)):
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top, strip in media.strips(image):  # np.asarray(image) would take three times the memory
            pixels[top : top + strip.height] = np.asarray(strip)
        return pixels


# ---------------------------------------------------------------------------------------------------------------------
#   References
# ---------------------------------------------------------------------------------------------------------------------

ReferenceSource = Union[StrPath, Video, np.ndarray, "PIL.Image.Image"]  # arrays: uint8 [T, H, W, 3] or [H, W, 3]


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image or clip after `open_reference`: size and length are known, frames are decoded on request.

    name: for messages: the path as it was given, or the kind of object. num_frames: 1 for an image. height, width:
    pixels of a frame, upright and made square. fps: frames per second; None for an image or an array. file: where it
    was read, or None. done: what was done to its pixels, in words.
    """

    name: str
    num_frames: int
    height: int
    width: int
    fps: Fraction | None = None
    file: Path | None = None
    done: tuple[str, ...] = ()
    image: "PIL.Image.Image | None" = field(default=None, repr=False)  # in mode RGB; None: it is a clip
    clip: clips.Clip | None = field(default=None, repr=False)
    seconds: Callable[[int], Fraction] = field(default=Fraction, repr=False)  # of its file at which frame i is shown
    slack: Fraction = Fraction(0)  # see clips.shown
    state: tuple[int, int] | None = None  # size and time of its file
    loaded: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict, repr=False)  # (frame, height, width)

    @property
    def is_resampled(self) -> bool:
        """Whether frames of a clip are taken at another rate than its own."""
        return self.clip is not None and self.slack > 0 and abs(self.clip.fps * 4 * self.slack - 1) > Fraction(1, 100)

    def frames(self, indices: Sequence[int], height: int, width: int) -> np.ndarray:
        """The frames of those indices (0 … num_frames - 1, in any order): float32 [n, height, width, 3], 0 … 255.

        A frame is resized to cover the target, keeping its aspect ratio, and cropped around its centre, as by Open-Sora
        1.1's "resize_crop" (opensora/datasets/utils.py, video_transforms.py): images bicubic with antialiasing and
        rounded, frames of videos bilinear without antialiasing and not rounded.
        Of a clip, only the requested frames are converted and kept.
        Raises MediaError where the file has become unreadable, for more than MAX_KEPT_PIXELS pixels in all, and where
        the aspect ratios are too far apart; SizeError for a target that is no size.
        """
        size: tuple[int, int] = (
            check(Count, height, "the height of a reference", SizeError),
            check(Count, width, "the width of a reference", SizeError),
        )
        check_length(self.name, len(indices), *size, MAX_KEPT_PIXELS)
        covering = _covering_size(self.height, self.width, size, self.name)
        out = np.empty((len(indices), *size, 3), np.float32)
        if self.image is not None:
            out[:] = _resize_crop_image(self.image, covering, size)
            return out
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if (index, *size) in self.loaded:
                out[place] = self.loaded[(index, *size)]
            else:
                places.setdefault(index, []).append(place)
        for index, picture in self.pictures(sorted(places)):
            out[places[index]] = _resize_crop_frame(picture, covering, size)
        return out

    def load(self, indices: Sequence[int], height: int, width: int) -> None:
        """Decode frames now and keep them for `frames`: whether a file is readable shows before a model runs."""
        for index, frame in zip(indices, self.frames(indices, height, width), strict=True):
            if self.clip is not None:
                self.loaded[index, height, width] = frame

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, clips.Picture]]:
        """Yields (index, decoded frame of a clip), indices in ascending order."""
        assert self.clip is not None
        if self.file and self.state != _state(self.file):
            raise MediaError(f"{self.name} has changed since it was opened: give it again")
        for i, picture in self.clip.pictures([self.seconds(index) for index in indices], self.slack):
            yield indices[i], picture

    def thumbnails(self, indices: Sequence[int], height: int, width: int) -> np.ndarray:
        """About those frames, uint8 [n, height, width, 3]: of a long clip the key frames before them, decoded alone."""
        clip, seconds = self.clip, [self.seconds(index) for index in indices]
        pixels = 0 if clip is None else (seconds[-1] - seconds[0]) * clip.fps * clip.height * clip.width
        if clip is None or not clip.seekable or pixels < MAX_THUMBNAIL_PIXELS:
            return np.rint(self.frames(indices, height, width)).astype(np.uint8)
        covering = _covering_size(self.height, self.width, (height, width), self.name)
        near = [next(clip.frames_from(second))[1]() for second in seconds]
        frames = [_resize_crop_frame(picture, covering, (height, width)) for picture in near]
        return np.rint(np.stack(frames)).astype(np.uint8)

    def describe(self, indices: Sequence[int], height: int, width: int) -> str:
        """What is done to the reference for frames of that size, in one line.

        As in "clip.mp4: frames 20.0–20.2 s (480–485 of 600 at 24 fps), 1920×1080 → 64×64 cropped".
        """
        parts, clip, runs = [], self.clip, _runs(sorted(set(indices)))
        if clip is not None and self.fps is None:
            parts.append(f"frames {', '.join(_span(*map(str, run)) for run in runs)} of {self.num_frames}")
        elif clip is not None:
            at = [[self.seconds(i) - clip.start for i in run] for run in runs]
            own = [_span(*(str(math.floor(t * clip.fps + Fraction(1, 3))) for t in run)) for run in at]
            rate = f"{round((clip.end - clip.start) * clip.fps)} at {float(clip.fps):.5g} fps"
            which = f"{', '.join(own)} of {rate}" if clip.is_steady else f"of {rate} on average, taken by their times"
            parts.append(f"frames {', '.join(_span(*(f'{float(t):.2f}' for t in run)) for run in at)} s ({which})")
            if self.is_resampled and clip.is_steady:
                parts.append(f"taken at {float(self.fps or 0):.5g} fps")
        size, target = f"{self.width}×{self.height}", f"{width}×{height}"
        cropped = " cropped" * (_covering_size(self.height, self.width, (height, width), self.name) != (height, width))
        parts += [size if size == target else f"{size} → {target}{cropped}", *self.done]
        return f"{self.name}: {', '.join(parts)}"


def open_reference(source: ReferenceSource, fps: float | Fraction | None = None) -> Reference:
    """Check a reference, and find out its size and its number of frames.

    source: the path of an image or a video (its part by "#t=2,4": see `media.split_fragment`), a Video, an array uint8
    [T, H, W, 3] or [H, W, 3], or a PIL image.
    fps: the rate at which the frames of a clip are taken, by their times; None: every frame as it is stored. An array
    has no times. Images are read; of a clip, only its first frame and its end are looked at. Raises MediaError.
    """
    rate = None if fps is None else Fraction(_rate(fps)).limit_denominator(1001)
    if isinstance(source, (Video, np.ndarray)):
        name, frames = (repr(source), source.frames) if isinstance(source, Video) else ("the array", source)
        frames = frames[None] if frames.ndim == 3 else frames
        _check_frames(frames)
        if len(frames) == 1:
            image = writing.to_image(frames[0])
            return Reference(name, 1, image.height, image.width, image=image)
        if isinstance(source, Video):
            return _reference_of(clips.clip_of(frames, Fraction(source.fps).limit_denominator(1001)), name, rate)
        return replace(_reference_of(clips.clip_of(frames, Fraction(24)), name, None), fps=None)
    if _is_pil(source):
        name = "the PIL image"
        media.check_pixels(name, *source.size)
        from PIL import ImageOps

        with media.explained(name, "cannot be used", media.PILLOW_ERRORS):
            image, done = media.to_rgb(ImageOps.exif_transpose(source), name)  # a copy
        return Reference(name, 1, image.height, image.width, done=done, image=image)
    if not isinstance(source, (str, os.PathLike)):
        raise MediaError(f"a reference must be a path, a Video, an array or a PIL image, not {shown(source)}")
    given, trim = media.split_fragment(source)
    file, kind = media.check_source(given)
    if kind == "image":
        if trim:
            raise MediaError(f"{source} is an image, which has no part by time: leave out #t=…")
        image, done = media.read_image_file(file, source)
        return Reference(str(source), 1, image.height, image.width, file=file, done=done, image=image)
    state = _state(file)
    return replace(_reference_of(clips.open_clip(file, source), str(source), rate, trim), file=file, state=state)


def _rate(fps: float | Fraction) -> float:
    """Frames per second as a float. Raises MediaError."""
    return check(Rate, float(fps) if isinstance(fps, Fraction) else fps, "fps", MediaError)


def _state(file: Path) -> tuple[int, int] | None:
    """Changes when a file is written; None where it is gone."""
    with contextlib.suppress(OSError):
        return file.stat().st_size, file.stat().st_mtime_ns
    return None


def _reference_of(
    clip: clips.Clip, name: str, fps: Fraction | None, trim: tuple[float, float] | None = None
) -> Reference:
    """The reference of a clip, or of the seconds `trim` of it; its frames are taken at `fps`, or all of them."""
    begin, end = clip.start, clip.end
    if trim is not None:
        start, stop = trim
        if start >= end - begin:
            raise MediaError(f"{name}: the clip lasts {float(end - begin):.4g} s, and nothing is left of it")
        end = end if stop == math.inf else min(end, begin + Fraction(stop).limit_denominator(10**6))
        begin += Fraction(start).limit_denominator(10**6)
    size = clip.height, clip.width
    if fps is None:
        times = [time for time in clip.listed() if begin <= time < end] or [begin]
        return Reference(name, len(times), *size, clip.fps, None, clip.done, None, clip, times.__getitem__)
    number = max(round((end - begin) * fps), 1)
    return Reference(
        name, number, *size, fps, None, clip.done, None, clip, lambda i: begin + i / fps, slack=1 / (4 * fps)
    )


def count_frames(source: ReferenceSource) -> int:
    """The number of frames of a reference, all of a clip's: `open_reference(source).num_frames`."""
    return open_reference(source).num_frames


def read_reference(source: ReferenceSource, height: int, width: int) -> np.ndarray:
    """All frames of a reference at that size, rounded to uint8 [T, height, width, 3]: see `Reference.frames`."""
    reference = open_reference(source)
    return np.rint(reference.frames(range(reference.num_frames), height, width)).astype(np.uint8)


def _is_pil(source: object) -> "TypeGuard[PIL.Image.Image]":
    if isinstance(source, (str, Path)):
        return False  # without importing PIL
    from PIL import Image

    return isinstance(source, Image.Image)


def _check_frames(frames: object) -> None:
    if not isinstance(frames, np.ndarray):
        raise MediaError(f"frames must be a numpy array, uint8 [T, H, W, 3], not {type(frames).__name__}")
    shape = list(frames.shape)
    if frames.ndim != 4 or shape[3] != 3:
        raise MediaError(f"frames must have the shape [T, H, W, 3], not {shape}")
    if 0 in shape:
        raise MediaError(f"frames must hold at least one frame and one pixel, not {shape}")
    if frames.dtype != np.uint8:
        raise MediaError(f"frames must be uint8 (0 … 255), not {frames.dtype}")


def _covering_size(height: int, width: int, target: tuple[int, int], name: str) -> tuple[int, int]:
    """The size to which (height, width) is resized: it covers `target`, and one of its sides is that of `target`."""
    ratio_h, ratio_w = target[0] / height, target[1] / width
    covering = (target[0], round(width * ratio_h)) if ratio_h > ratio_w else (round(height * ratio_w), target[1])
    if math.prod(covering) > MAX_PIXELS // 2:  # in memory beside the original
        raise MediaError(
            f"{name} is {width}×{height}, too far from {target[1]}×{target[0]} to be resized and cropped to it"
        )
    return covering


def _resize_crop_image(image: "PIL.Image.Image", covering: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """PIL image in mode RGB -> uint8 [*target, 3]: as released, images are rounded."""
    from PIL import Image

    top, left = round((covering[0] - target[0]) / 2), round((covering[1] - target[1]) / 2)
    resized = image.resize(covering[::-1], Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + target[1], top + target[0])))


def _resize_crop_frame(picture: clips.Picture, covering: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """A picture of any size -> float32 [*target, 3]."""
    top, left = (int(round(c - t) / 2.0) for c, t in zip(covering, target, strict=True))  # as released: rounds down
    height, width = picture.samples.shape[:2]
    above, below, weight_y = _neighbours(height, covering[0], top, target[0])
    before, after, weight_x = _neighbours(width, covering[1], left, target[1])

    def row(lines: np.ndarray) -> np.ndarray:  # only samples that are needed become RGB
        first, second = (picture.rgb(picture.samples[lines[:, None], columns[None]]) for columns in (before, after))
        return _blend(first, second, weight_x[None, :, None])

    return _blend(row(above), row(below), weight_y[:, None, None])


def _whole(picture: clips.Picture, size: tuple[int, int]) -> np.ndarray:
    """A picture -> uint8 [*size, 3]."""
    samples = picture.samples
    if samples.shape[:2] != size:
        return np.rint(_resize_crop_frame(picture, size, size)).astype(np.uint8)
    if picture.rgb is clips.as_float:
        return samples
    strips = [np.rint(picture.rgb(samples[top : top + 64])).astype(np.uint8) for top in range(0, size[0], 64)]
    return np.concatenate(strips)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last of each run of consecutive numbers: [0, 1, 2, 7] -> [(0, 2), (7, 7)]."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    return [(run[0][1], run[-1][1]) for run in runs]


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}–{last}"


def _neighbours(old: int, new: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the lines start … start + count - 1 of `new`: the two lines of `old` around each, and the second's weight.

    As torch.nn.functional.interpolate(mode="bilinear", align_corners=False): pixel centres lie at halves, and lines
    before the first centre equal the first.
    """
    lines = np.arange(start, start + count, dtype=np.float32)
    position = np.maximum((lines + 0.5) * np.float32(old / new) - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (position - first).astype(np.float32)


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """first * (1 - weight) + second * weight in float32, in place where they are float32."""
    first, second = first.astype(np.float32, copy=False), second.astype(np.float32, copy=False)
    first *= 1 - weight
    second *= weight
    first += second
    return first
