"""`Video`: frames that a notebook plays and that can be saved; `Reference`: an image or clip to condition on.

Frames are uint8 RGB, [T, H, W, 3]: T frames of H rows and W columns. Files are read in io/media.py, and written in
io/writing.py.
"""

import contextlib
import html
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, Union

import numpy as np
from pydantic import Field

from opensora_lite.errors import MediaError, SizeError
from opensora_lite.io import media, writing
from opensora_lite.io.media import MAX_KEPT_PIXELS, MAX_PIXELS, StrPath, check_length
from opensora_lite.io.metadata import read_info
from opensora_lite.io.writing import check_target as check_target
from opensora_lite.validation import Whole, check

if TYPE_CHECKING:
    import PIL.Image

MAX_EMBEDDED_BYTES = 1_500_000  # of media inside one notebook output, before base64
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
        try:
            self.fps = float(self.fps)
        except (TypeError, ValueError):
            raise MediaError(f"fps must be a number of frames per second, not {self.fps!r}") from None
        if not 0.01 <= self.fps <= 1000:
            raise MediaError(f"fps must lie between 0.01 and 1000 frames per second, not {self.fps:g}")

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

        chosen = [self._index(i) for i in (range(len(self)) if frames is None else frames)]
        if not chosen:
            raise MediaError("a contact sheet needs at least one frame")
        if columns < 1 or gap < 0:
            raise MediaError(f"a contact sheet needs columns >= 1 and gap >= 0, not {columns} and {gap}")
        if scale is None:
            scale = max(1, math.ceil(96 / self.height))
        if not 0 < scale < math.inf:
            raise MediaError(f"scale must be a number above 0, not {scale}")
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
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise MediaError(f"frame {i} does not exist; the video has {len(self)} (0 … {len(self) - 1})")
        return i % len(self)


def read_video(path: StrPath) -> Video:
    """All frames of a video file in display order, upright, at the average frame rate of the file (24 if unknown).

    `Video.info` is how it was made, if this library wrote it.
    Raises MediaError, also for more than MAX_KEPT_PIXELS pixels in all.
    """
    file, kind = media.check_source(path)
    if kind == "image":
        raise MediaError(f"{path} is an image: read_image reads it")
    info = media.probe_video(file, path)
    size = info.height, info.width
    check_length(path, info.num_frames, *size, MAX_KEPT_PIXELS - 8 * math.prod(size))  # a decoder holds 16 frames
    frames = np.empty((info.num_frames, *size, 3), np.uint8)
    for index, frame in media.decode_video(file, path, range(info.num_frames)):
        frames[index] = frame
    video = Video(frames, info.fps)
    with contextlib.suppress(MediaError):  # metadata that Pillow refuses
        video.info = read_info(path)
    return video


def read_image(path: StrPath) -> np.ndarray:
    """An image file as uint8 [H, W, 3], upright according to its EXIF orientation. Raises MediaError.

    16-bit grey is scaled to 8 bits; the first of several pages is read; an alpha channel is dropped.
    """
    file, kind = media.check_source(path)
    if kind == "video":
        raise MediaError(f"{path} is a video: read_video reads it")
    image = media.read_image_file(file, path)
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

    name: for messages: the path as it was given, or the kind of object. num_frames: 1 for an image.
    height, width: pixels of a frame, upright. file: where it was read, or None.
    """

    name: str
    num_frames: int
    height: int
    width: int
    _content: Any  # a clip's file, its frames [T, H, W, 3], or an image
    file: Path | None = None

    def frames(self, indices: Sequence[int], height: int, width: int) -> np.ndarray:
        """The frames of those indices (0 … num_frames - 1, in any order): uint8 [n, height, width, 3].

        A frame is resized to cover the target, keeping its aspect ratio, and cropped around its centre, as by Open-Sora
        1.1's "resize_crop" (opensora/datasets/utils.py, video_transforms.py): images bicubic with antialiasing, frames
        of videos bilinear without. Rounding to uint8, where the original keeps floats, costs half a grey level at most.
        Of a clip, only the requested frames are converted and kept.
        Raises MediaError where the file has become unreadable, for more than MAX_KEPT_PIXELS pixels in all, and where
        the aspect ratios are too far apart; SizeError for a target that is no size.
        """
        pixels = Annotated[Whole, Field(ge=1)]
        size: tuple[int, int] = (
            check(pixels, height, "the height of a reference", SizeError),
            check(pixels, width, "the width of a reference", SizeError),
        )
        check_length(self.name, len(indices), *size, MAX_KEPT_PIXELS)
        covering = _covering_size(self.height, self.width, size, self.name)
        out = np.empty((len(indices), *size, 3), np.uint8)
        if isinstance(self._content, Path):
            missing = set(indices)
            for index, frame in media.decode_video(self._content, self.name, frozenset(indices)):
                out[[i == index for i in indices]] = _resize_crop_frame(frame, covering, size)
                missing.discard(index)
                if not missing:
                    break
            if missing:
                raise MediaError(f"{self.name} has changed: frame {min(missing)} is no longer there")
        elif self.num_frames == 1:
            image = self._content if _is_pil(self._content) else writing.to_image(self._content[0])
            out[:] = _resize_crop_image(image, covering, size)
        else:
            for place, index in enumerate(indices):
                out[place] = _resize_crop_frame(self._content[index], covering, size)
        return out


def open_reference(source: ReferenceSource) -> Reference:
    """Check a reference, and find out its size and its number of frames.

    source: the path of an image or a video, a Video, an array uint8 [T, H, W, 3] or [H, W, 3], or a PIL image.
    Images are read, clips are decoded once without keeping their frames. Raises MediaError.
    """
    if isinstance(source, Video):
        return Reference(repr(source), len(source), source.height, source.width, source.frames)
    if isinstance(source, np.ndarray):
        frames = source[None] if source.ndim == 3 else source
        _check_frames(frames)
        return Reference("the array", frames.shape[0], frames.shape[1], frames.shape[2], frames)
    if _is_pil(source):
        name = "the PIL image"
        media.check_pixels(name, *source.size)
        from PIL import ImageOps

        with media.explained(name, "cannot be used", media.PILLOW_ERRORS):
            image = media.to_rgb(ImageOps.exif_transpose(source), name)  # a copy
        return Reference(name, 1, image.height, image.width, image)
    file, kind = media.check_source(source)
    if kind == "image":
        image = media.read_image_file(file, source)
        return Reference(str(source), 1, image.height, image.width, image, file)
    info = media.probe_video(file, source)
    return Reference(str(source), info.num_frames, info.height, info.width, file, file)


def count_frames(source: ReferenceSource) -> int:
    """The number of frames of a reference: `open_reference(source).num_frames`."""
    return open_reference(source).num_frames


def read_reference(source: ReferenceSource, height: int, width: int) -> np.ndarray:
    """All frames of a reference at that size, uint8 [T, height, width, 3]: see `Reference.frames`."""
    reference = open_reference(source)
    return reference.frames(range(reference.num_frames), height, width)


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
    """PIL image in mode RGB -> uint8 [*target, 3]."""
    from PIL import Image

    top, left = round((covering[0] - target[0]) / 2), round((covering[1] - target[1]) / 2)
    resized = image.resize(covering[::-1], Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + target[1], top + target[0])))


def _resize_crop_frame(frame: np.ndarray, covering: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [*target, 3]."""
    top, left = (int(round(c - t) / 2.0) for c, t in zip(covering, target, strict=True))  # as released: rounds down
    above, below, weight_y = _neighbours(frame.shape[0], covering[0], top, target[0])
    before, after, weight_x = _neighbours(frame.shape[1], covering[1], left, target[1])
    used = slice(before[0], after[-1] + 1)  # columns: a very wide frame is cropped first
    frame, before, after = frame[:, used], before - used.start, after - used.start
    rows = _blend(frame.take(above, 0), frame.take(below, 0), weight_y[:, None, None])  # [target height, used, 3]
    return np.rint(_blend(rows.take(before, 1), rows.take(after, 1), weight_x[None, :, None])).astype(np.uint8)


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
