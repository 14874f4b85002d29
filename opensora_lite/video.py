"""Images and videos in and out: `Video`, what a notebook shows of it, and the reading of references.

Everywhere frames are uint8 RGB, [T, H, W, 3]: T frames of H rows and W columns. Files are opened with PyAV
(videos) and Pillow (images), which are imported only where a file is really touched.

In this order: `Video` (show, save, contact sheet), writing, reading, references, and what is checked before a
file is opened. Everything that can go wrong with a file is a `MediaError` that names the file as it was given.
"""

import base64
import html
import io
import math
import operator
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union

import numpy as np

from opensora_lite.errors import MediaError, SizeError
from opensora_lite.io.files import atomic_write

if TYPE_CHECKING:  # imported where they are needed
    import av.container
    import av.video.stream
    import PIL.Image

StrPath = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
# A small file can claim any size. With these limits, reading one takes half a gigabyte at most, or little more.
MAX_PIXELS = 50_000_000  # of one image
MAX_FRAMES = 10_000  # of one video
MAX_VIDEO_PIXELS = 1_000_000_000  # of all its frames, which are decoded one after the other
MAX_KEPT_PIXELS = 140_000_000  # of all frames that are in memory together
MAX_BYTES_PER_FRAME, MAX_SECONDS_PER_FRAME = 128_000_000, 2  # that are spent on finding it
MAX_EMBEDDED_BYTES = 1_500_000  # of media inside one notebook output, before base64
NO_MEMORY = (MemoryError, BlockingIOError)  # the latter where a thread of FFmpeg finds none for itself (EAGAIN)


# ------------------------------------------------------------------------------------------------------------
# Video
# ------------------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False)
class Video:
    """Frames and their rate; the last line of a notebook cell plays it.

    frames: uint8 [T, H, W, 3], RGB, T >= 1 (not copied). fps: frames per second, 0.01 … 1000.
    path: where it was saved, or None. prompt: shown under the video, or None.
    Raises MediaError if the frames are anything else.
    """

    frames: np.ndarray
    fps: float = 24.0
    path: "Path | None" = None
    prompt: "str | None" = None

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
        """text/plain and text/html; the same frames give the same bytes every time."""
        return {"text/plain": repr(self), "text/html": self._html()}

    def _html(self) -> str:
        label = html.escape(self.prompt or repr(self))
        note = crisp = ""
        if len(self) == 1:
            kind, data, width = "png", _png_bytes(_image(self.frames[0])), self.width
        else:
            width = self.width + self.width % 2  # as the mp4 is padded
            try:
                kind, data = "mp4", _mp4_bytes(self.frames, self.fps)
            except MediaError as error:  # a PyAV without an h264 encoder still gets to see the frames
                kind, data, note = "png", b"", str(error)
        if note or len(data) > MAX_EMBEDDED_BYTES:
            note = note or f"{len(data) / 1e6:.1f} MB is too much for a notebook: save() it to play it"
            kind, (data, width) = "png", self._small_sheet()
        else:
            factor = max(1, math.ceil(256 / width))  # a whole number: every pixel becomes a crisp square
            width, crisp = width * factor, "; image-rendering: pixelated" if factor > 1 else ""
        style = f'width="{width}" style="max-width: 100%{crisp}"'
        encoded = base64.b64encode(data).decode("ascii")
        if kind == "mp4":
            source = f"data:video/mp4;base64,{encoded}"
            shown = (
                f'<video controls autoplay loop muted playsinline aria-label="{label}" {style} src="{source}"></video>'
            )
        else:
            shown = f'<img alt="{label}" {style} src="data:image/png;base64,{encoded}">'
        caption = "<br>".join(html.escape(line) for line in (self.prompt, note) if line)
        return f'<figure style="margin: 0">{shown}<figcaption>{caption}</figcaption></figure>'

    def _small_sheet(self) -> tuple[bytes, int]:
        """A contact sheet of at most 16 frames that fits into a notebook: PNG bytes and their width in pixels."""
        chosen = self.spread(16)
        rows = 512 if len(chosen) == 1 else 160
        while True:
            scale = min(rows / self.height, 4 * rows / self.width, 1.0)
            sheet = self.contact_sheet(columns=4, scale=scale, frames=chosen, labels=len(chosen) > 1)
            data = _png_bytes(sheet)
            if len(data) <= MAX_EMBEDDED_BYTES or rows <= 8:
                return data, sheet.width
            rows //= 2

    def save(self, path: StrPath, overwrite: bool = True) -> Path:
        """Writes the video; the suffix of `path` says how. Returns the path, which is kept in `self.path` too.

        .mp4    h264, plays in browsers
        .gif    at most 50 fps, 256 colours per frame; its clock counts hundredths of a second
        .png    one frame only, bit by bit
        (none)  a directory of frame_0000.png, frame_0001.png …, bit by bit

        Everything is first written under a temporary name next to `path` and put in its place once complete
        (an mp4 or gif is read back before that), so a failure leaves an older file as it was. An existing
        directory is replaced only if it holds nothing but such frames. Missing parent directories are made.
        Raises MediaError, also if `path` exists and `overwrite` is False.
        """
        target = check_target(path, len(self), self.fps, overwrite)
        suffix = target.suffix.lower()
        with _errors_named(path, "cannot be written"), atomic_write(target, MediaError) as temporary:
            _WRITERS[suffix](temporary, self.frames, self.fps)
            if suffix in (".mp4", ".gif"):
                try:
                    found = sum(1 for _ in _decoded(temporary, path))
                except MediaError as error:  # of FFmpeg, which says anything where memory ends
                    reason = "it could not be read back; perhaps there is not enough memory"
                    raise MediaError(f"{path} was not saved: {reason}") from error
                if found != len(self):
                    raise MediaError(f"{path} was not saved: {len(self)} frames were written, {found} came back")
        self.path = target
        return target

    def spread(self, most: int) -> list[int]:
        """The indices of at most `most` frames, from the first to the last, evenly spread."""
        return np.unique(np.linspace(0, len(self) - 1, most).round().astype(int)).tolist()

    def contact_sheet(
        self,
        columns: int = 8,
        scale: float | None = None,
        frames: Sequence[int] | None = None,
        gap: int = 2,
        labels: bool = True,
    ) -> "PIL.Image.Image":
        """The frames side by side on white, left to right and top to bottom: a PIL.Image in mode RGB.

        columns: at most that many in a row. scale: size of a frame in the sheet, 1 = as it is; whole numbers
        repeat pixels, others resample; None enlarges by the smallest whole number that makes a frame at least
        96 pixels high. frames: the indices to show (negative ones count from the end), None = all. gap: white
        pixels between frames. labels: write its index above each frame.
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
            sheet.paste(_image(self.frames[index]).resize((width, height), resample), (x, y + above))
        return sheet

    def _index(self, i: int) -> int:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise MediaError(f"frame {i} does not exist; the video has {len(self)} (0 … {len(self) - 1})")
        return i % len(self)


ReferenceSource = Union[StrPath, Video, np.ndarray, "PIL.Image.Image"]  # arrays: uint8 [T, H, W, 3] or [H, W, 3]


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


# ------------------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------------------


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    # One thread and the bitexact flags: the same frames give the same file. faststart puts the index in front,
    # so that a browser can start before it has everything. 18 is where h264 stops looking compressed.
    # Without mbtree, whose AVX-512 code gives one of several results for narrow videos (5 in 60 at 34×50).
    options = {"crf": "18", "threads": "1", "flags": "+bitexact", "x264-params": "mbtree=0"}
    # h264 in yuv420p is what every browser plays, and it has one colour for 2×2 pixels: sizes must be even.
    # An odd one gets its last row or column a second time.
    padding = ((0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    pictures = (_yuv420(np.pad(frame, padding, mode="edge")) for frame in frames)
    _encode(path, pictures, "yuv420p", fps, "mp4", {"movflags": "+faststart"}, "libx264", options)


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    # Not through Pillow, which merges equal neighbours into one longer frame.
    pictures = (_palette256(frame) for frame in frames)
    _encode(path, pictures, "pal8", fps, "gif", {"loop": "0"}, "gif", {"flags": "+bitexact"})


def _write_png(path: Path, frames: np.ndarray, fps: float) -> None:
    _image(frames[0]).save(path, format="PNG")


def _write_sequence(path: Path, frames: np.ndarray, fps: float) -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        _image(frame).save(path / f"frame_{i:04d}.png", format="PNG")


_WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png, "": _write_sequence}
_FRAME_FILE = re.compile(r"frame_\d{4,}\.png")


def _encode(
    path: Path,
    pictures: Iterable[Any],
    pix_fmt: str,
    fps: float,
    container_format: str,
    container_options: dict[str, str],
    codec: str,
    options: dict[str, str],
) -> None:
    import av

    rate = Fraction(fps).limit_denominator(1001)  # 23.976… is 24000/1001
    container_options = {**container_options, "fflags": "+bitexact"}
    with av.open(os.path.abspath(path), "w", format=container_format, options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=pix_fmt)
            if i == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                if pix_fmt == "yuv420p":  # say how _yuv420 meant its numbers: BT.709, 16 … 235
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _yuv420(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with even sizes -> uint8 [H * 3/2, W]: all of Y, then Cb and Cr at half the size (BT.709).

    In numpy because swscale, which would do it otherwise, does not always give the same bytes twice.
    """
    height, width, _ = rgb.shape
    red, green, blue = np.moveaxis(rgb.astype(np.float32) / 255, 2, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # [H, W]
    planes = [16 + 219 * luma]
    for difference, reach in ((blue - luma, 1.8556), (red - luma, 1.5748)):
        chroma = difference.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))  # [H/2, W/2]
        planes.append(128 + 224 / reach * chroma)
    return np.concatenate([np.rint(p).astype(np.uint8).ravel() for p in planes]).reshape(height * 3 // 2, width)


def _palette256(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] -> indices uint8 [H, W], and the frame's own 256 colours uint8 [256, 4] as A, R, G, B."""
    image = _image(frame).quantize(256)
    colours = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[:, 0] = 255
    palette[: len(colours), 1:] = colours
    return np.array(image), palette


def _image(frame: np.ndarray) -> "PIL.Image.Image":
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(frame))


def _png_bytes(image: "PIL.Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _mp4_bytes(frames: np.ndarray, fps: float) -> bytes:
    with _errors_named("the mp4", "cannot be made"), tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "video.mp4")  # a real file, because faststart reads back what it wrote
        _write_mp4(path, frames, fps)
        return path.read_bytes()


def check_target(path: StrPath, num_frames: int, fps: float, overwrite: bool = True) -> Path:
    """The path that `Video.save` would write a video of num_frames and fps to, without a video yet.

    Raises the MediaError that it would raise for `path` and `overwrite`.
    """
    target = _as_path(path)
    suffix = target.suffix.lower()
    if not target.name or target.name == ".." or target.name.lower() in _WRITERS:
        raise MediaError(f"{path} has no file name to save under")
    if suffix not in _WRITERS:
        raise MediaError(
            f'{path}: a video cannot be saved as "{suffix}"; what works: .mp4, .gif, .png (one frame), '
            "or a name without a suffix (a directory of PNG frames)"
        )
    if suffix == ".png" and num_frames > 1:
        raise MediaError(
            f"{path}: a .png holds one frame, and this video has {num_frames}; "
            "use .mp4, .gif, or a name without a suffix (a directory of PNG frames)"
        )
    if suffix == ".gif" and fps > 50:
        raise MediaError(f"{path}: a .gif shows at most 50 frames per second, not {fps:g}; use .mp4")
    with _errors_named(path, "cannot be written"):
        try:
            os.lstat(target)  # which says so if a name is too long; lexists does not
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            _check_replaceable(path, target, suffix, overwrite)
        place = Path(os.path.realpath(target))
        above = next(folder for folder in place.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise MediaError(f"{path} cannot be written: {above} is a file, not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise MediaError(f"{path} cannot be written: {above} is not a folder that may be written to")
    return target


def _check_replaceable(given: StrPath, target: Path, suffix: str, overwrite: bool) -> None:
    if not overwrite:
        raise MediaError(f"{given} exists already, and overwrite is False")
    if suffix and target.is_dir():
        raise MediaError(f"{given} is a directory; a {suffix} file cannot take its place")
    if suffix and target.exists() and not target.is_file():
        raise MediaError(f"{given} is not a regular file; a {suffix} file cannot take its place")
    if not suffix:
        if not target.is_dir():
            raise MediaError(f"{given} is a file; a directory of PNG frames cannot take its place")
        other = next((name for name in sorted(os.listdir(target)) if not _FRAME_FILE.fullmatch(name)), None)
        if other is not None:
            raise MediaError(
                f"{given} holds {other}; only a directory of nothing but frame_0000.png, frame_0001.png … is replaced"
            )


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def read_video(path: StrPath) -> Video:
    """All frames of the video file at `path` in display order, upright, with the average frame rate of its stream.

    A rate that the file does not state counts as 24. Raises MediaError, also where the frames have more than
    MAX_KEPT_PIXELS pixels in all.
    """
    file, kind = _checked_file(path)
    if kind == "image":
        raise MediaError(f"{path} is an image: read_image reads it")
    rates: list[float] = []
    frames = _stacked((frame for _, frame in _decoded(file, path, rates)), path)
    return Video(frames, rates[0])


def read_image(path: StrPath) -> np.ndarray:
    """The image file at `path` as uint8 [H, W, 3], turned as its EXIF orientation says. Raises MediaError.

    16-bit grey is scaled to 8 bits; of an image with several pages, the first is read; an alpha channel is
    dropped, as Pillow's convert("RGB") does.
    """
    file, kind = _checked_file(path)
    if kind == "video":
        raise MediaError(f"{path} is a video: read_video reads it")
    image = _read_rgb(file, path)
    with _errors_named(path, "cannot be read"):
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top, strip in _strips(image):  # np.asarray(image) would hold everything three times
            pixels[top : top + strip.height] = np.asarray(strip)
        return pixels


def count_frames(source: ReferenceSource) -> int:
    """How many frames `read_reference` would give, without decoding them wherever the file allows it.

    source: whatever `read_reference` takes. Raises MediaError as that does for a file that is missing or
    unreadable, so that a mask strategy can be checked before anything is loaded.
    """
    if isinstance(source, Video):
        return len(source)
    if isinstance(source, np.ndarray):
        return len(_frames_of_array(source))
    if _is_pil(source):
        return 1
    file, kind = _checked_file(source)
    if kind == "image":
        with _opened_image(file, source) as image:
            image.load()  # or a picture that is cut short would only be found out when it is needed
            return 1
    count = 0
    with _opened_video(file, source) as (stream, packets):
        height, width = stream.codec_context.height, stream.codec_context.width
        for packet in packets:
            if stream.codec_context.name not in _ONE_PACKET_PER_FRAME:
                count += len(packet.decode())
            else:  # Not stream.frames: it also counts what an edit list cuts away, and what a cut-off file has lost.
                count += bool(packet.size and not packet.is_discard)
            _check_length(source, count, height, width, MAX_VIDEO_PIXELS)
    if not count:
        raise MediaError(f"{source} holds no frames")
    return count


# Others, like vp8, gif with its comments and mpeg4 with its packed pictures, put no or several frames into a packet.
_ONE_PACKET_PER_FRAME = {"h264", "hevc", "vp9", "libdav1d", "av1", "mjpeg", "png", "ffv1", "rawvideo"}


def _decoded(
    file: Path, given: object, rates: list[float] | None = None, wanted: Container[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, frame as uint8 [H, W, 3]) of a video; at the end puts the frames per second into `rates`.

    wanted: the indices of the frames to convert and yield; None: all of them, to be kept in memory together.
    """
    times: list[Any] = []
    with _opened_video(file, given) as (stream, packets):
        for frame in (frame for packet in packets for frame in packet.decode()):
            if frame.is_corrupt:  # FFmpeg has filled a gap with what might have been there
                raise ValueError("a frame is damaged")
            if not times:
                # The first frame decides: should others have another size, they are scaled to its.
                how: dict[str, Any] = {"format": "rgb24", "width": frame.width, "height": frame.height}
                if frame.colorspace == 1:  # BT.709. PyAV before 17 only looks at it if told another one to go to.
                    how.update(src_colorspace="ITU709", dst_colorspace="ITU601")
                turns = round(_rotation(frame, stream) / 90) % 4
            times.append(frame.time)
            height, width = how["height"], how["width"]
            _check_length(given, len(times), height, width, MAX_VIDEO_PIXELS)
            if wanted is None:  # A decoder may hold 16 frames, with half the bytes of those that are kept.
                _check_length(given, len(times), height, width, MAX_KEPT_PIXELS - 8 * height * width)
            if wanted is None or len(times) - 1 in wanted:
                yield len(times) - 1, np.rot90(frame.to_ndarray(**how), turns)
        if not times:
            raise MediaError(f"{given} holds no frames")
        if rates is not None:
            rate = stream.average_rate or stream.guessed_rate or 24
            if stream.codec_context.name == "gif" and len(times) > 1 and None not in times and times[-1] > times[0]:
                rate = (len(times) - 1) / (times[-1] - times[0])  # what the stream says is a coarse guess
            rates.append(min(max(float(rate), 0.01), 1000.0))


def _rotation(frame: Any, stream: Any) -> float:
    """The degrees by which the frames have to be turned, counter-clockwise as numpy does it."""
    if hasattr(frame, "rotation"):
        angle = frame.rotation
    else:  # before PyAV 14, of which the first says nothing about it
        angle = getattr(stream, "side_data", {}).get("DISPLAYMATRIX", 0)
    return angle if -180 <= angle <= 180 else 0  # not a number, where the file holds no matrix that turns


def _stacked(pictures: Iterable[np.ndarray], given: object) -> np.ndarray:
    """uint8 [H, W, 3] of one size -> uint8 [T, H, W, 3], without holding them twice as np.stack does."""
    data, shape = bytearray(), (1, 1, 3)
    with _errors_named(given, "cannot be read"):
        for picture in pictures:
            shape = picture.shape
            data += np.ascontiguousarray(picture).data
    return np.frombuffer(data, np.uint8).reshape(-1, *shape)


def _check_length(given: object, frames: int, height: int, width: int, most_pixels: int) -> None:
    most = min(MAX_FRAMES, most_pixels // max(1, height * width))
    if frames > most:
        raise MediaError(
            f"{given} is too long: at {width}×{height} pixels, at most {most} frames are read;"
            " cut out the part that is needed"
        )


class _Watched(io.FileIO):
    """A file that ends early where the next frame is not found, for FFmpeg would go on for minutes in a broken one."""

    given_up = False

    def found(self) -> None:
        self.bytes, self.since = 0, time.thread_time()  # of work, so that a slow disk is no fault

    def read(self, size: int | None = -1, /) -> bytes:
        if self.bytes > MAX_BYTES_PER_FRAME or time.thread_time() - self.since > MAX_SECONDS_PER_FRAME:
            self.given_up = True  # and not an exception, on which PyAV 13 goes on
        data = b"" if self.given_up else super().read(size) or b""
        self.bytes += len(data)
        return data

    def check(self) -> None:
        if self.given_up:
            raise ValueError("nothing was found")


@contextmanager
def _opened_video(file: Path, given: object) -> "Iterator[tuple[av.video.stream.VideoStream, Iterator[av.Packet]]]":
    """The first video stream and its packets; everything that PyAV raises inside becomes a MediaError."""
    import av

    with _errors_named(given, "cannot be read as a video", file), _Watched(file) as handle:
        _check_complete(given, file)
        handle.found()
        most = {"max_pixels": str(MAX_PIXELS // 4)}  # a decoder holds several frames; looked at before it takes memory
        # Only containers that hold their own data: a playlist called .mp4 must not open other files or addresses.
        options = {"format_whitelist": "mov,matroska,avi,gif", **most}
        with av.open(handle, "r", options=options, metadata_errors="replace") as container:
            handle.check()
            if not container.streams.video:
                kinds = ("audio", "subtitles", "data")  # not stream.type, which crashes on what PyAV 14 does not know
                other = ", ".join(kind for kind in kinds if getattr(container.streams, kind)) or "nothing that is known"
                raise MediaError(f"{given} holds no video stream (only {other})")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not width * height:  # what some decoders leave behind that have met max_pixels
                raise MediaError(f"{given} has frames of no size, or of more than {MAX_PIXELS / 4e6:.3g} megapixels")
            _check_pixels(given, width, height, 4)
            stream.codec_context.options = most  # the size may change later on
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = 2  # each may hold frames of its own, and a machine has many cores

            def packets() -> "Iterator[av.Packet]":
                handle.found()
                for packet in container.demux(stream):
                    yield packet
                    handle.found()  # what was done with it took time, too
                handle.check()

            yield stream, packets()


def _check_complete(given: object, file: Path) -> None:
    """Refuses a video that says it is longer than it is: FFmpeg would quietly give the frames left."""
    with open(file, "rb") as handle:
        total = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        head = handle.read(8)
        if head[:4] == b"RIFF":
            end = 8 + int.from_bytes(head[4:], "little")
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            end = _matroska_end(handle)
        elif head[:4] == b"GIF8":
            end = _gif_end(handle)
        else:
            end = _mp4_end(handle, total)
    if end > total:
        raise MediaError(f"{given} is cut short: it should have {end} bytes and has {total}; fetch or copy it again")


def _mp4_end(handle: BinaryIO, total: int) -> int:
    """Where the last box of an mp4 or mov ends that begins before `total`; less where it is something else."""
    start = 0
    for _ in range(100_000):  # what has more boxes is left to FFmpeg
        handle.seek(start)
        head = handle.read(16)
        if start == 0 and head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            break
        size = int.from_bytes(head[:4], "big")  # of this box, with its 8 bytes of size and name
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0 stands for "to the end"; anything else is for FFmpeg to judge
            break
        start += size
        if start >= total:
            break
    return start


def _matroska_end(handle: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 where it does not say so, as live recordings do not."""

    def number() -> int:  # the zeros that its first byte begins with say how many bytes follow
        first = handle.read(1)[0]
        following = 8 - first.bit_length()
        value = (first & (0x7F >> following)) << 8 * following | int.from_bytes(handle.read(following), "big")
        return value if value + 1 < 1 << 7 * (following + 1) else -1  # all ones: not known

    handle.seek(4)
    handle.seek(number(), os.SEEK_CUR)
    if handle.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = number()
    return 0 if size < 0 else handle.tell() + size


def _gif_end(handle: BinaryIO) -> int:
    """Where a GIF ends, or, if its end is missing, where it would have to go on at least."""

    def colours(flags: int) -> int:  # the bytes of the table that follows
        return 3 << flags % 8 + 1 if flags & 0x80 else 0

    handle.seek(0)
    handle.seek(colours(handle.read(13)[10]), os.SEEK_CUR)
    inside = False
    for _ in range(1_000_000):  # a quarter of a gigabyte; what has more blocks is left to FFmpeg
        head = handle.read(1)
        if not head:
            return handle.tell() + 1
        if inside:  # a block of that many bytes; one of 0 is the last
            handle.seek(head[0], os.SEEK_CUR)
            inside = head[0] > 0
        elif head == b"!":
            handle.seek(1, os.SEEK_CUR)
            inside = True
        elif head == b",":
            handle.seek(colours(handle.read(9)[8]) + 1, os.SEEK_CUR)
            inside = True
        else:  # ";", or what is for FFmpeg to judge
            break
    return handle.tell()


@contextmanager
def _opened_image(file: Path, given: object) -> "Iterator[PIL.Image.Image]":
    """The image with its size checked, its pixels not yet decoded."""
    from PIL import Image

    with _errors_named(given, "cannot be read as an image", file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and an error
        try:
            # Named, because some of Pillow's other formats start programs (EPS) or are rarely tested.
            image = Image.open(file, formats=["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
        except Image.DecompressionBombError:
            raise MediaError(f"{given} has far more than {MAX_PIXELS // 10**6} megapixels; make it smaller") from None
        progressive = "progressive" in image.info
        if any(tile[0] in Image.DECODERS for tile in image.tile):  # written in Python: a megapixel takes a second
            part = 16
        else:
            part = 2 if progressive or image.format == "WEBP" else 1  # whose decoders take as much as the picture
        with image:
            _check_pixels(given, *image.size, part)
            if progressive:
                _check_passes(given, file)
            yield image


def _check_passes(given: object, file: Path) -> None:
    """Refuses a progressive JPEG that goes over its pixels again and again; libjpeg itself makes ten passes."""
    with open(file, "rb") as handle:
        passes = sum(part.count(b"\xff\xda") for part in iter(lambda: handle.read(1 << 20), b""))
    if passes > 100:
        raise MediaError(f"{given} is a JPEG that is drawn in {passes} passes, far more than it needs; save it again")


def _read_rgb(file: Path, given: object) -> "PIL.Image.Image":
    with _opened_image(file, given) as image:
        return _rgb(image, given)


def _rgb(image: "PIL.Image.Image", given: object) -> "PIL.Image.Image":
    """A PIL image in any mode -> upright, in mode RGB. `image` itself is turned, which takes less memory."""
    from PIL import Image, ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise MediaError(f"{given} holds floating-point pixels, whose white is unknown; save it with 8 bits")
    if image.mode == "LAB":
        raise MediaError(f"{given} holds CIELAB colours, which are not read; save it as RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):  # convert("RGB") would clip nearly all of it to white
        grey = Image.new("L", image.size)
        for top, strip in _strips(image):
            values = np.asarray(strip).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise MediaError(f"{given} holds more than 16 bits per pixel; save it with 8 or 16")
            grey.paste(Image.fromarray(((values + 128) // 257).astype(np.uint8)), (0, top))
        image = grey
    image.info.pop("transparency", None)  # it is dropped, and Pillow would warn that it does so
    return image if image.mode == "RGB" else image.convert("RGB")


def _strips(image: "PIL.Image.Image") -> "Iterator[tuple[int, PIL.Image.Image]]":
    """All of an image in pieces of at most 256 rows, each with the number of its first row."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(top + 256, image.height)))


def _check_pixels(given: object, width: int, height: int, part: int = 1) -> None:
    """Refuses more than that part of MAX_PIXELS."""
    if width * height > MAX_PIXELS // part:
        raise MediaError(
            f"{given} has {width * height / 1e6:.0f} megapixels ({width}×{height}); "
            f"at most {MAX_PIXELS // part / 1e6:.3g} are read: make it smaller"
        )


# ------------------------------------------------------------------------------------------------------------
# References
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image or clip after `open_reference`: its size and length are known, its frames are not decoded yet.

    name: how messages call it: the path as it was given, or the kind of object. num_frames: 1 for an image.
    height, width: pixels of a frame, after the rotation that the file asks for.
    """

    name: str
    num_frames: int
    height: int
    width: int
    _content: "Path | np.ndarray | PIL.Image.Image"  # a clip's file, its frames [T, H, W, 3], or an image

    def frames(self, indices: Sequence[int], height: int, width: int) -> np.ndarray:
        """The frames of those indices (0 … num_frames - 1, in any order): uint8 [n, height, width, 3].

        A frame is resized to cover the target, keeping its aspect ratio, and cropped around its centre: Open-Sora
        1.1's transform "resize_crop" (opensora/datasets/utils.py and video_transforms.py), which differs between the
        two: single images bicubic with antialiasing, videos bilinear without. Rounding to uint8, where the original
        keeps floats, costs at most half a grey level.
        A clip is decoded up to the last of the indices; only frames that are asked for are converted and kept.
        Raises MediaError for a file that has become unreadable, for more than MAX_KEPT_PIXELS pixels in all, and for
        a size that the reference cannot be cropped to; SizeError for a target that is not a size.
        """
        for name, value in (("height", height), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise SizeError(f"the {name} of a reference must be a whole number of pixels above 0, not {value!r}")
        size = int(height), int(width)
        _check_length(self.name, len(indices), *size, MAX_KEPT_PIXELS)
        _covering_size(self.height, self.width, size, self.name)
        out = np.empty((len(indices), *size, 3), np.uint8)
        if isinstance(self._content, Path):
            places: dict[int, list[int]] = {}
            for place, index in enumerate(indices):
                places.setdefault(index, []).append(place)
            for index, frame in _decoded(self._content, self.name, wanted=places):
                out[places.pop(index)] = _resize_crop_frame(frame, size, self.name)
                if not places:
                    break
            if places:
                raise MediaError(f"{self.name} has changed: frame {min(places)} is no longer there")
        elif self.num_frames == 1:
            image = self._content if _is_pil(self._content) else _image(self._content[0])
            out[:] = _resize_crop_image(image, size, self.name)
        else:
            for place, index in enumerate(indices):
                out[place] = _resize_crop_frame(self._content[index], size, self.name)
        return out


def open_reference(source: ReferenceSource) -> Reference:
    """Check a reference and find out its size and its number of frames.

    source: the path of an image or a video, a Video, an array uint8 [T, H, W, 3] or [H, W, 3], or a PIL image.
    Images are read completely; of a clip, the first frame is decoded and the others are counted. Raises MediaError.
    """
    if isinstance(source, Video):
        return Reference(repr(source), len(source), source.height, source.width, source.frames)
    if isinstance(source, np.ndarray):
        frames = _frames_of_array(source)
        return Reference("the array", *frames.shape[:3], frames)
    if _is_pil(source):
        from PIL import ImageOps

        with _errors_named("the PIL image", "cannot be used"):
            _check_pixels("the PIL image", *source.size)
            image = _rgb(ImageOps.exif_transpose(source), "the PIL image")
        return Reference("the PIL image", 1, image.height, image.width, image)
    file, kind = _checked_file(source)
    if kind == "image":
        image = _read_rgb(file, source)
        return Reference(str(source), 1, image.height, image.width, image)
    num_frames = count_frames(source)
    _, first = next(_decoded(file, source))
    return Reference(str(source), num_frames, *first.shape[:2], file)


def read_reference(source: ReferenceSource, height: int, width: int) -> np.ndarray:
    """All frames of a reference at the size of the video to be made: `open_reference(source).frames(…)`."""
    reference = open_reference(source)
    return reference.frames(range(reference.num_frames), height, width)


def _covering_size(height: int, width: int, target: tuple[int, int], given: object) -> tuple[int, int]:
    """The size that (height, width) is resized to, so that it covers `target` with one side exact."""
    ratio_h, ratio_w = target[0] / height, target[1] / width
    covering = (target[0], round(width * ratio_h)) if ratio_h > ratio_w else (round(height * ratio_w), target[1])
    if covering[0] * covering[1] > MAX_PIXELS // 2:  # it is in memory beside what it is made of
        raise MediaError(
            f"{given} is {width}×{height}, too far from {target[1]}×{target[0]} to be resized and cropped to it"
        )
    return covering


def _resize_crop_image(image: "PIL.Image.Image", target: tuple[int, int], given: object) -> np.ndarray:
    """PIL image in mode RGB -> uint8 [*target, 3]."""
    from PIL import Image

    height, width = _covering_size(image.height, image.width, target, given)
    top, left = round((height - target[0]) / 2), round((width - target[1]) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + target[1], top + target[0])))


def _resize_crop_frame(frame: np.ndarray, target: tuple[int, int], given: object) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [*target, 3]."""
    height, width = _covering_size(frame.shape[0], frame.shape[1], target, given)
    top, left = int(round(height - target[0]) / 2.0), int(round(width - target[1]) / 2.0)  # as released: rounds down
    above, below, weight_y = _neighbours(frame.shape[0], height, top, target[0])
    before, after, weight_x = _neighbours(frame.shape[1], width, left, target[1])
    used = slice(before[0], after[-1] + 1)  # of the columns: a very wide frame is cropped first
    frame, before, after = frame[:, used], before - used.start, after - used.start
    rows = _blend(frame.take(above, 0), frame.take(below, 0), weight_y[:, None, None])  # [target height, used, 3]
    return np.rint(_blend(rows.take(before, 1), rows.take(after, 1), weight_x[None, :, None])).astype(np.uint8)


def _neighbours(old: int, new: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the lines start … start + count - 1 of `new`: the two of `old` they lie between, and how near the second.

    The rule of torch.nn.functional.interpolate(mode="bilinear", align_corners=False): centres of pixels lie at
    halves, and nothing lies before the first centre.
    """
    lines = np.arange(start, start + count, dtype=np.float32)
    position = np.maximum((lines + 0.5) * np.float32(old / new) - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (position - first).astype(np.float32)


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """first * (1 - weight) + second * weight in float32, in the memory of the two where they are that already."""
    first, second = first.astype(np.float32, copy=False), second.astype(np.float32, copy=False)
    first *= 1 - weight
    second *= weight
    first += second
    return first


def _frames_of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[None]
    _check_frames(array)
    return array


# ------------------------------------------------------------------------------------------------------------
# What is checked before a file is opened
# ------------------------------------------------------------------------------------------------------------


def _is_pil(source: object) -> "TypeGuard[PIL.Image.Image]":
    if isinstance(source, (str, os.PathLike)):
        return False  # without importing PIL
    from PIL import Image

    return isinstance(source, Image.Image)


def _as_path(given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise MediaError(f"a path was expected, not {type(given).__name__}: {given!r:.60}")
    text = os.fsdecode(os.fspath(given))
    if not text.strip() or "\0" in text:
        raise MediaError(f"a path was expected, not {text!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", text):  # one letter and a colon is a Windows drive
        raise MediaError(
            f"{text:.200} is an address, and nothing is downloaded here: download it first, and give the file"
        )
    return Path(os.path.expanduser(text))  # which leaves a name such as ~a.png, where nobody is called that, as it is


def _checked_file(given: object) -> tuple[Path, str]:
    """The path of an existing, readable, non-empty file, and "image" or "video"."""
    file = _as_path(given)
    with _errors_named(given, "cannot be read"):
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            if file.is_symlink():
                raise MediaError(f"{given} is a link to {os.readlink(file)}, which does not exist") from None
            raise MediaError(f"{given} does not exist (working directory: {os.getcwd()})") from None
        if stat.S_ISDIR(found.st_mode):
            raise MediaError(f"{given} is a directory: give one image or video file")
        suffix = file.suffix.lower()
        kind = "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None
        if kind is None:
            what = f'the extension "{suffix}" is not known' if suffix else "there is no extension"
            raise MediaError(f"{given}: {what}; images: {' '.join(IMAGE_SUFFIXES)}; videos: {' '.join(VIDEO_SUFFIXES)}")
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{given} is not a regular file")
        if not found.st_size:
            raise MediaError(f"{given} is empty (0 bytes)")
        if _first_bytes(file).startswith(b"version https://git-lfs"):
            raise MediaError(f'{given} is only a pointer of git-lfs: fetch the file itself with "git lfs pull"')
    return file, kind


def _first_bytes(file: Path) -> bytes:
    with open(file, "rb") as handle:
        return handle.read(64)


@contextmanager
def _errors_named(given: object, what: str, file: Path | None = None) -> Iterator[None]:
    """Turns whatever a library raises inside into a MediaError: `given` `what`: the reason."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # the decoders of PyAV and Pillow raise nearly everything on broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, NO_MEMORY):
            reason = "there is not enough memory" + ("" if file is None else ", or it is damaged and asks for too much")
        elif file is not None and not isinstance(error, PermissionError):
            reason = (
                f"it is damaged, cut short, or something else by that name (begins with {_first_bytes(file)[:16]!r})"
            )
        raise MediaError(f"{given} {what}: {reason}") from error
