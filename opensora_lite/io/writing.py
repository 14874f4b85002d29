"""Writing video files: Pillow for images, PyAV (FFmpeg) for videos.

Frames are uint8 RGB, [T, H, W, 3]. Every error is a MediaError that names the file as it was given. The same
frames give the same bytes: notebooks are committed with their films in them, and are compared.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.errors import MediaError
from opensora_lite.io import metadata
from opensora_lite.io.clips import count_decoded
from opensora_lite.io.files import atomic_write
from opensora_lite.io.media import StrPath, as_path, explained, pyav_errors

if TYPE_CHECKING:
    import PIL.Image


def check_target(path: StrPath, num_frames: int, fps: float, overwrite: bool = True) -> Path:
    """The path that `Video.save(path, overwrite)` would write a video of `num_frames` at `fps` to.

    Raises the MediaError that `save` would raise, so that it can be known before the video is made.
    """
    target = as_path(path)
    suffix = target.suffix.lower()
    if not target.name or target.name == ".." or target.name.lower() in WRITERS:
        raise MediaError(f"{path} has no file name to save under")
    if suffix not in WRITERS:
        raise MediaError(
            f'{path}: a video cannot be saved as "{suffix}"; what works: .mp4, .webm, .gif, .webp, .png (one'
            " frame), or a name without a suffix (a directory of PNG frames)"
        )
    if suffix == ".png" and num_frames > 1:
        raise MediaError(
            f"{path}: a .png holds one frame, and this video has {num_frames};"
            " use .mp4, .webm, .gif, .webp, or a name without a suffix (a directory of PNG frames)"
        )
    if suffix == ".gif" and fps > 50:
        raise MediaError(f"{path}: a .gif shows at most 50 frames per second, not {fps:g}; use .webp or .mp4")
    with explained(path, "cannot be written", (OSError,)):
        try:
            os.lstat(target)  # unlike os.path.lexists, it raises if the name is too long
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            _check_replaceable(path, target, suffix, overwrite)
        place = Path(os.path.realpath(target))
        above = next(folder for folder in place.parents if os.path.lexists(folder))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise MediaError(f"{path} cannot be written: {above} is not a folder that may be written to")
    return target


def _check_replaceable(given: StrPath, target: Path, suffix: str, overwrite: bool) -> None:
    if not overwrite:
        raise MediaError(f"{given} exists already, and overwrite is False")
    if suffix and target.is_dir():
        raise MediaError(f"{given} is a directory; a {suffix} file cannot take its place")
    if suffix and target.exists() and not target.is_file():
        raise MediaError(f"{given} is not a regular file; a {suffix} file cannot take its place")
    if not suffix and not target.is_dir():
        raise MediaError(f"{given} is a file; a directory of PNG frames cannot take its place")
    other = [] if suffix else [name for name in os.listdir(target) if not re.fullmatch(r"frame_\d{4,}\.png", name)]
    if other:
        raise MediaError(f"{given} holds {min(other)}; only a directory of nothing but frame_0000.png … is replaced")


def save_video(
    frames: np.ndarray, fps: float, path: StrPath, overwrite: bool = True, info: dict[str, Any] | None = None
) -> Path:
    """`Video.save`, which see: writes uint8 frames [T, H, W, 3]. Returns the path. Raises MediaError."""
    target = check_target(path, len(frames), fps, overwrite)
    comment = metadata.to_comment(info)
    with atomic_write(target, MediaError) as temporary:
        write_video(temporary, frames, fps, path, comment)
        if target.suffix.lower() in (".mp4", ".webm", ".gif", ".webp"):
            try:
                found = count_decoded(temporary, path)
            except MediaError as error:  # FFmpeg gives varying reasons where memory ends
                reason = "it could not be read back; perhaps there is not enough memory"
                raise MediaError(f"{path} was not saved: {reason}") from error
            if found != len(frames):
                raise MediaError(f"{path} was not saved: {len(frames)} frames were written, {found} came back")
    return target


def write_video(path: Path, frames: np.ndarray, fps: float, given: object, comment: str = "") -> None:
    """Writes uint8 frames [T, H, W, 3] in the format of the suffix of `path`: a key of WRITERS. Raises MediaError.

    comment: metadata of the file (io/metadata.py), printable UTF-8.
    """
    with explained(given, "cannot be written", pyav_errors()):
        WRITERS[path.suffix.lower()](path, frames, fps, comment)


def mp4_bytes(frames: np.ndarray, fps: float, comment: str = "") -> bytes:
    """uint8 frames [T, H, W, 3] as the bytes of an mp4. Raises MediaError, as where PyAV has no h264 encoder."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "video.mp4")  # a real file, since faststart reads back what it wrote
        write_video(path, frames, fps, "the mp4", comment)
        return path.read_bytes()


def png_bytes(image: "PIL.Image.Image", comment: str = "") -> bytes:
    """A picture as the bytes of a PNG file."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if comment:
        text.add_itxt("Comment", comment)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def to_image(frame: np.ndarray) -> "PIL.Image.Image":
    """uint8 [H, W, 3] -> PIL image in mode RGB."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(frame))


# ---------------------------------------------------------------------------------------------------------------------
#   One function for each format
# ---------------------------------------------------------------------------------------------------------------------


def _write_mp4(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    # One thread and the bitexact flags: the same frames give the same file. mbtree is off, since its AVX-512 code gives
    # one of several results for narrow videos (5 in 60 at 34×50). At crf 18 h264 looks uncompressed. faststart puts
    # the index in front: a browser can start before it has everything.
    options = {"crf": "18", "threads": "1", "flags": "+bitexact", "x264-params": "mbtree=0"}
    _encode(path, _even(frames), "yuv420p", fps, "libx264", options, {"movflags": "+faststart"}, comment)


def _write_webm(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    # VP9, for which PyAV's packages have an encoder and every browser a decoder. b=0: crf alone sets the quality.
    options = {"crf": "18", "b": "0", "threads": "1", "flags": "+bitexact"}
    _encode(path, _even(frames), "yuv420p", fps, "libvpx-vp9", options, {}, comment)


def _write_gif(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    # Not by Pillow, which merges equal neighbours into one longer frame.
    pictures = (_palette256(frame) for frame in frames)
    _encode(path, pictures, "pal8", fps, "gif", {"flags": "+bitexact"}, {"loop": "0"})
    if comment:  # which FFmpeg reads, but doesn't write; source: GIF89a, section 24
        data, text = path.read_bytes(), comment.encode()
        start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)  # header, global colours
        start += 19 if data.startswith(b"!\xff\x0bNETSCAPE2.0", start) else 0  # how often it is repeated
        pieces = (text[i : i + 255] for i in range(0, len(text), 255))
        block = b"".join([b"!\xfe", *(bytes([len(piece)]) + piece for piece in pieces), b"\0"])
        path.write_bytes(data[:start] + block + data[start:])


def _write_webp(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    # Pillow and FFmpeg write animations with libwebp's WebPAnimEncoder, which merges equal neighbours; so each frame is
    # a picture of its own, in the container of https://developers.google.com/speed/webp/docs/riff_container.
    def chunk(name: bytes, data: bytes) -> bytes:
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    def numbers(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    size = numbers(frames.shape[2] - 1, frames.shape[1] - 1)
    times = [round(1000 * i / fps) for i in range(len(frames) + 1)]  # milliseconds
    exif = metadata.exif(comment) if comment else b""
    flags = bytes([0b10 | 0b1000 * bool(exif), 0, 0, 0])  # an animation, with EXIF data
    parts = [b"WEBP", chunk(b"VP8X", flags + size), chunk(b"ANIM", b"\xff\xff\xff\xff\0\0")]  # white; repeated for ever
    for frame, begin, end in zip(frames, times, times[1:], strict=False):
        picture = io.BytesIO()
        to_image(frame).save(picture, format="WEBP", quality=90)
        no_blending = b"\2"
        parts.append(
            chunk(b"ANMF", numbers(0, 0) + size + numbers(end - begin) + no_blending + picture.getvalue()[12:])
        )
    parts += [chunk(b"EXIF", exif)] if exif else []
    path.write_bytes(chunk(b"RIFF", b"".join(parts)))


def _write_png(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    path.write_bytes(png_bytes(to_image(frames[0]), comment))


def _write_sequence(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        (path / f"frame_{i:04d}.png").write_bytes(png_bytes(to_image(frame), comment))


WRITERS = {
    ".mp4": _write_mp4,
    ".webm": _write_webm,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": _write_png,
    "": _write_sequence,
}


def _even(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Frames for `_encode` in yuv420p, which has one colour for 2×2 pixels: odd sizes repeat the last row or column."""
    padding = ((0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    return (_yuv420(np.pad(frame, padding, mode="edge")) for frame in frames)


def _encode(
    path: Path,
    pictures: Iterable[Any],
    pix_fmt: str,
    fps: float,
    codec: str,
    options: dict,
    muxer_options: dict,
    comment: str = "",
) -> None:
    import av

    rate = Fraction(fps).limit_denominator(1001)  # 23.976… is 24000/1001
    muxer_options = {**muxer_options, "fflags": "+bitexact"}
    with av.open(os.path.abspath(path), "w", options=muxer_options) as container:
        container.metadata.update({"comment": comment} if comment else {})
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=pix_fmt)
            if i == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                if pix_fmt == "yuv420p":  # the colours of _yuv420: BT.709, 16 … 235
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _yuv420(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with even sizes -> uint8 [H * 3/2, W]: all of Y, then Cb and Cr at half the size (BT.709).

    In numpy, since FFmpeg's swscale does not always give the same bytes twice.
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
    image = to_image(frame).quantize(256)
    colours = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[:, 0] = 255
    palette[: len(colours), 1:] = colours
    return np.array(image), palette
