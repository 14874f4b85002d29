"""Reading image and video files: Pillow for images, PyAV (FFmpeg) for videos.

Frames are uint8 RGB, [T, H, W, 3]. Every error is a MediaError that names the file as it was given. Pillow and PyAV are
imported on first use.
"""

import io
import itertools
import os
import re
import stat
import struct
import time
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.errors import MediaError

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream
    import PIL.Image

StrPath = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
# A small file can claim any size. Within these limits, reading one takes about half a gigabyte at most.
MAX_PIXELS = 50_000_000  # of an image; a quarter of it for a frame of a video, since a decoder holds several
MAX_FRAMES = 10_000  # of a video
MAX_VIDEO_PIXELS = 1_000_000_000  # of all frames of a video, decoded one after the other
MAX_KEPT_PIXELS = 140_000_000  # of the frames that are in memory at the same time
MAX_BYTES_PER_FRAME, MAX_SECONDS_PER_FRAME = 128_000_000, 2  # read, and computed, until the next frame is found


# ---------------------------------------------------------------------------------------------------------------------
#   Paths and errors
# ---------------------------------------------------------------------------------------------------------------------


def as_path(given: Any) -> Path:
    """`given` as a path, with ~ expanded. Raises MediaError for what is no path of a file on this machine."""
    if not isinstance(given, (str, os.PathLike)):
        raise MediaError(f"a path was expected, not {type(given).__name__}: {given!r:.60}")
    text = os.fsdecode(os.fspath(given))
    if not text.strip() or "\0" in text:
        raise MediaError(f"a path was expected, not {text!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", text):  # one letter and a colon is a Windows drive
        raise MediaError(f"{text:.200} is an address, and nothing is downloaded: download it first, and give the file")
    return Path(os.path.expanduser(text))  # unchanged for names such as ~a.png


def check_source(given: object) -> tuple[Path, str]:
    """The path of a file that can be opened, and "image" or "video". Raises MediaError."""
    file = as_path(given)
    suffix = file.suffix.lower()
    kind = "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None
    with explained(given, "cannot be read", (OSError,)):
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            if file.is_symlink():
                raise MediaError(f"{given} is a link to {os.readlink(file)}, which does not exist") from None
            raise MediaError(f"{given} does not exist (working directory: {os.getcwd()})") from None
        if stat.S_ISDIR(found.st_mode):
            raise MediaError(f"{given} is a directory: give one image or video file")
        if kind is None:
            raise MediaError(
                f'{given}: the extension "{suffix}" is not known;'
                f" images: {' '.join(IMAGE_SUFFIXES)}; videos: {' '.join(VIDEO_SUFFIXES)}"
            )
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{given} is not a regular file")
        if not found.st_size:
            raise MediaError(f"{given} is empty (0 bytes)")
        if _first_bytes(file).startswith(b"version https://git-lfs"):
            raise MediaError(f'{given} is only a pointer of git-lfs: fetch the file itself with "git lfs pull"')
    return file, kind


@contextmanager
def explained(
    given: object, what: str, errors: tuple[type[Exception], ...], file: Path | None = None
) -> Iterator[None]:
    """Turns `errors` raised in the block into a MediaError "{given} {what}: {reason}".

    errors: those of the library that the block calls; anything else is a bug of ours and passes unchanged.
    file: what the library decodes there; unless the system refuses it, the reason is then the content of the file.
    """
    try:
        yield
    except MediaError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, (MemoryError, BlockingIOError)):  # FFmpeg's threads report a lack of memory as EAGAIN
            reason = "there is not enough memory" + (", or it is damaged and asks for too much" if file else "")
        elif file and not isinstance(error, PermissionError):
            reason = (
                f"it is damaged, cut short, or something else by that name (begins with {_first_bytes(file)[:16]!r})"
            )
        raise MediaError(f"{given} {what}: {reason}") from error


def _first_bytes(file: Path) -> bytes:
    with open(file, "rb") as handle:
        return handle.read(64)


def check_length(given: object, num_frames: int, height: int, width: int, max_pixels: int) -> None:
    """Raises MediaError for more than MAX_FRAMES frames, or more than `max_pixels` in all of them."""
    most = min(MAX_FRAMES, max_pixels // max(1, height * width))
    if num_frames > most:
        raise MediaError(
            f"{given} is too long: at {width}×{height} pixels, at most {most} frames are read;"
            " cut out the part that is needed"
        )


def check_pixels(given: object, width: int, height: int, divisor: int = 1) -> None:
    """Raises MediaError for a picture of more than MAX_PIXELS / divisor pixels."""
    if width * height > MAX_PIXELS // divisor:
        raise MediaError(
            f"{given} has {width * height / 1e6:.0f} megapixels ({width}×{height});"
            f" at most {MAX_PIXELS // divisor / 1e6:.3g} are read: make it smaller"
        )


# ---------------------------------------------------------------------------------------------------------------------
#   Reading images
# ---------------------------------------------------------------------------------------------------------------------

# Pillow's decoders raise nearly any exception on broken files.
PILLOW_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def read_image_file(file: Path, given: object) -> "PIL.Image.Image":
    """An image file as a PIL image in mode RGB, upright according to EXIF. Raises MediaError."""
    from PIL import Image

    with explained(given, "cannot be read as an image", PILLOW_ERRORS, file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
        try:
            # Other formats of Pillow start programs (EPS) or are rarely tested.
            image = Image.open(file, formats=["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
        except Image.DecompressionBombError:
            raise MediaError(f"{given} has far more than {MAX_PIXELS // 10**6} megapixels; make it smaller") from None
        with image:
            progressive = "progressive" in image.info
            if any(tile[0] in Image.DECODERS for tile in image.tile):  # written in Python: a second a megapixel
                divisor = 16
            else:  # the decoders of progressive JPEG and WebP take as much memory as the image
                divisor = 2 if progressive or image.format == "WEBP" else 1
            check_pixels(given, *image.size, divisor)
            passes = file.read_bytes().count(b"\xff\xda") if progressive else 0
            if passes > 100:  # of a few bytes each; libjpeg itself writes ten
                raise MediaError(f"{given} is a JPEG drawn in {passes} passes, far more than it needs; save it again")
            return to_rgb(image, given)


def to_rgb(image: "PIL.Image.Image", given: object) -> "PIL.Image.Image":
    """A PIL image in any mode -> in mode RGB, upright according to EXIF; an alpha channel is dropped.

    Turns `image` in place, which saves memory. Raises MediaError for modes without a defined conversion.
    """
    from PIL import Image, ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise MediaError(f"{given} holds floating-point pixels, whose white is unknown; save it with 8 bits")
    if image.mode == "LAB":
        raise MediaError(f"{given} holds CIELAB colours, which are not read; save it as RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):  # convert("RGB") would clip nearly all of it to white
        grey = Image.new("L", image.size)
        for top, strip in strips(image):
            values = np.asarray(strip).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise MediaError(f"{given} holds more than 16 bits per pixel; save it with 8 or 16")
            grey.paste(Image.fromarray(((values + 128) // 257).astype(np.uint8)), (0, top))
        image = grey
    image.info.pop("transparency", None)  # Pillow would warn that it is dropped
    return image if image.mode == "RGB" else image.convert("RGB")


def strips(image: "PIL.Image.Image") -> "Iterator[tuple[int, PIL.Image.Image]]":
    """An image in pieces of at most 256 rows, each with the index of its first row; saves memory in conversions."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(top + 256, image.height)))


# ---------------------------------------------------------------------------------------------------------------------
#   Reading videos
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a video gives: number of frames, pixels of a frame (upright), average frames per second."""

    num_frames: int
    height: int
    width: int
    fps: float


def probe_video(file: Path, given: object) -> VideoInfo:
    """Decodes a whole video, without converting its frames to RGB. Raises MediaError.

    Headers are not enough: edit lists hide frames, and the first frames of a clip that was cut without encoding it
    anew may refer to frames that are no longer there.
    """
    times: list[Any] = []
    with explained(given, "cannot be read as a video", pyav_errors(), file):
        for frame, stream in _decoded(file, given):
            if not times:
                height, width = frame.height, frame.width
                turned = _quarter_turns(frame, stream) % 2
            times.append(frame.time)
            check_length(given, len(times), height, width, MAX_VIDEO_PIXELS)
        fps = stream.average_rate or stream.guessed_rate or 24
        if stream.codec_context.name == "gif" and len(times) > 1 and None not in times and times[-1] > times[0]:
            fps = (len(times) - 1) / (times[-1] - times[0])  # the stream's own rate is a coarse guess
    if turned:
        height, width = width, height
    return VideoInfo(len(times), height, width, min(max(float(fps), 0.01), 1000.0))


def decode_video(file: Path, given: object, wanted: Container[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, frame [H, W, 3] as uint8 RGB, upright) for the indices in `wanted`, in display order.

    All frames have the size of the first; others are scaled. Raises MediaError.
    """
    with explained(given, "cannot be read as a video", pyav_errors(), file):
        for index, (frame, stream) in enumerate(_decoded(file, given)):
            if not index:
                how: dict[str, Any] = {"format": "rgb24", "width": frame.width, "height": frame.height}
                if frame.colorspace == 1:  # BT.709, which PyAV before 17 ignores unless another target is named
                    how.update(src_colorspace="ITU709", dst_colorspace="ITU601")
                turns = _quarter_turns(frame, stream)
            check_length(given, index + 1, how["height"], how["width"], MAX_VIDEO_PIXELS)
            if index in wanted:
                yield index, np.rot90(frame.to_ndarray(**how), turns)


def _decoded(file: Path, given: object) -> "Iterator[tuple[av.VideoFrame, av.video.stream.VideoStream]]":
    """Yields every frame of a video with its stream. Raises MediaError or an error of pyav_errors."""
    import av

    max_pixels = {"max_pixels": str(MAX_PIXELS // 4)}  # checked by decoders before they allocate memory
    # A playlist called .mp4 must not open other files or addresses: only containers that hold their own data.
    options = {"format_whitelist": "mov,matroska,avi,gif", **max_pixels}
    handle = _Watched(file)
    handle.found()
    with handle, av.open(handle, "r", options=options, metadata_errors="replace") as container:
        handle.check()
        stream = _video_stream(container, given)
        stream.codec_context.options = max_pixels  # the size may change later on
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 2  # every thread holds frames
        times, last, other, count = [], None, Fraction(0), 0
        handle.found()
        packet: Any
        for packet in container.demux():
            if packet.stream.index != stream.index:
                if packet.pts is not None:
                    other = max(other, (packet.pts + (packet.duration or 0)) * packet.time_base)
                continue
            if packet.is_corrupt:
                raise ValueError("a packet is incomplete")
            if packet.size:
                times += [] if packet.pts is None else [packet.pts * packet.time_base]
                last = packet
            for frame in packet.decode():
                if frame.is_corrupt:  # FFmpeg has made up a part of it
                    raise ValueError("a frame is damaged")
                count += 1
                yield frame, stream
            handle.found()
        handle.check()
        _check_end(given, container, times, last, other)
        if not count:
            raise MediaError(f"{given} holds no frames")


def pyav_errors() -> tuple[type[Exception], ...]:
    import av

    return av.FFmpegError, ArithmeticError, MemoryError, OSError, ValueError


def _video_stream(container: "av.container.InputContainer", given: object) -> "av.video.stream.VideoStream":
    if not container.streams.video:
        kinds = ("audio", "subtitles", "data")  # PyAV 14 crashes on the type of an unknown stream
        other = ", ".join(kind for kind in kinds if getattr(container.streams, kind)) or "nothing that is known"
        raise MediaError(f"{given} holds no video stream (only {other})")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise ValueError("no decoder for it")
    if not context.width * context.height:  # what some decoders leave behind that have met max_pixels
        raise MediaError(f"{given} has frames of no size, or of more than {MAX_PIXELS / 4e6:.3g} megapixels")
    check_pixels(given, context.width, context.height, 4)
    check_length(given, stream.frames, context.height, context.width, MAX_VIDEO_PIXELS)  # 0 where it is not stated
    return stream


def _quarter_turns(frame: Any, stream: Any) -> int:
    """How often np.rot90 must turn a frame to make it upright."""
    if hasattr(frame, "rotation"):
        angle = frame.rotation
    else:  # PyAV 12 and 13
        angle = getattr(stream, "side_data", {}).get("DISPLAYMATRIX", 0)
    return round(angle / 90) % 4 if -180 <= angle <= 180 else 0  # nan where the matrix is no rotation


class _Watched(io.FileIO):
    """A file that ends early if no frame is found for long: FFmpeg would search a broken file for minutes."""

    given_up = False

    def found(self) -> None:
        self.num_bytes, self.since = 0, time.thread_time()  # CPU time: a slow disk is no fault of the file

    def read(self, size: int | None = -1, /) -> bytes:
        if self.num_bytes > MAX_BYTES_PER_FRAME or time.thread_time() - self.since > MAX_SECONDS_PER_FRAME:
            self.given_up = True  # PyAV 13 ignores an exception here
        data = b"" if self.given_up else super().read(size) or b""
        self.num_bytes += len(data)
        return data

    def check(self) -> None:
        if self.given_up:
            raise ValueError("nothing was found")


def _check_end(
    given: object, container: "av.container.InputContainer", times: list, last: Any, other: Fraction
) -> None:
    """Raises MediaError if a file was cut short: FFmpeg reads it as a shorter one.

    times: seconds, of the video's packets. last: the last of them. other: seconds at which the other streams end.
    """
    if container.format.name == "gif":  # its header has no length; a semicolon ends it, perhaps with something after it
        whole = not last or b"\0;" in bytes(last)[-256:]
    elif not container.duration or (last and not times):  # not stated, as in live recordings
        return
    elif not last:
        whole = False
    else:
        times = sorted(times)
        interval = max([(last.duration or 0) * last.time_base, *(b - a for a, b in itertools.pairwise(times))])
        # The edit list of an mp4 may end up to one frame after the last.
        slack = interval * Fraction(3 if "mp4" in container.format.name else 1, 2)
        end = max(times[-1] + interval + slack, other + Fraction(1, 10))
        whole = end >= Fraction(container.duration, 1_000_000)
    if not whole:
        raise MediaError(f"{given} is cut short: it ends before its last frame; fetch or copy it again")
