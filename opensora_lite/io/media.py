"""What a media file is, and reading images with Pillow. Videos and animations are read in clips.py.

Frames are uint8 RGB, [T, H, W, 3]. Every error is a MediaError that names the file as it was given. Pillow and PyAV are
imported on first use.
"""

import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.errors import MediaError, printable
from opensora_lite.io import colour

if TYPE_CHECKING:
    import PIL.Image

StrPath = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".avif")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
# The first bytes of a file -> Pillow's name of the format, or "video" for those that FFmpeg reads. Suffixes only matter
# for files that begin in no known way: they are damaged then.
SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"RIFF.{4}WEBP": "WEBP",
    rb"BM": "BMP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"P[1-6]\s": "PPM",
    rb".{4}ftyp(.{4})*?(avif|avis)": "AVIF",
    rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)": "HEIF",
    rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |GIF8[79]a": "video",
}
NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF: 1 is a preview of another picture in the file; a raw file
ANIMATED = ("PNG", "WEBP", "AVIF")  # images of these formats may be animations, which Pillow reads too
# A small file can claim any size. Within these limits, reading one takes about half a gigabyte at most.
MAX_PIXELS = 50_000_000  # of an image; a quarter of it for a frame of a video, since a decoder holds several
MAX_FRAMES = 10_000  # that are in memory at the same time,
MAX_KEPT_PIXELS = 140_000_000  # and their pixels


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


def split_fragment(given: Any) -> tuple[Any, tuple[float, float] | None]:
    """("clip.mp4", (2.0, 4.0)) for "clip.mp4#t=2,4": the seconds of a clip that are meant; (given, None) without "#t=".

    As in the W3C's Media Fragments URI: "#t=2,4", "#t=2" (to the end), "#t=,4", each time also as 0:02 or 0:00:02. A
    file that has such a name is that file. Raises MediaError for times that are none.
    """
    text = os.fsdecode(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else ""
    path, mark, times = text.rpartition("#t=")
    if not mark or os.path.lexists(as_path(text)):
        return given, None
    clock = r"(?:(?:\d+:)?\d+:)?\d+(?:\.\d*)?"
    found = re.fullmatch(rf"(?:npt:)?({clock})?(?:,({clock}))?", times)
    if not found or not any(found.groups()):
        raise MediaError(f'{text:.200}: "#t={times:.40}" is no part of a clip; give seconds, as in #t=2,4 or #t=2')
    start, end = (
        sum(float(part) * 60**i for i, part in enumerate(reversed(time.split(":")))) if time else default
        for time, default in zip(found.groups(), (0.0, float("inf")), strict=True)
    )
    if start >= end:
        raise MediaError(f"{text:.200}: the part of a clip must begin before it ends, not at {start:g} s of {end:g} s")
    return path, (start, end)


def check_source(given: object) -> tuple[Path, str]:
    """The path of a file that can be opened, and "image" or "video" (also for animations). Raises MediaError."""
    file = as_path(given)
    with explained(given, "cannot be read", (OSError,)):
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            if file.is_symlink():
                raise MediaError(f"{given} is a link to {os.readlink(file)}, which does not exist") from None
            raise MediaError(f"{given} does not exist (working directory: {os.getcwd()})") from None
        if stat.S_ISDIR(found.st_mode):
            raise MediaError(f"{given} is a directory: give one image or video file")
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{given} is not a regular file")
        if not found.st_size:
            raise MediaError(f"{given} is empty (0 bytes)")
        if _first_bytes(file).startswith(b"version https://git-lfs"):
            raise MediaError(f'{given} is only a pointer of git-lfs: fetch the file itself with "git lfs pull"')
        kind, suffix = format_of(file), file.suffix.lower()
        if kind is None and suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            raise MediaError(
                f"{given} is not known as an image or a video (it begins with {_first_bytes(file)[:16]!r});"
                f" images: {' '.join(IMAGE_SUFFIXES)}; videos: {' '.join(VIDEO_SUFFIXES)}; the name doesn't matter"
            )
        is_video = suffix in VIDEO_SUFFIXES if kind is None else kind == "video" or _is_animation(file, kind)
    return file, "video" if is_video else "image"


def format_of(file: Path) -> str | None:
    """What a file is by its first bytes: one of the values of SIGNATURES, or None."""
    head = _first_bytes(file)
    return next((kind for signature, kind in SIGNATURES.items() if re.match(signature, head, re.DOTALL)), None)


def _is_animation(file: Path, kind: str) -> bool:
    """Whether a PNG, WebP or AVIF file says that it is an animation, in the header of each."""
    head = _first_bytes(file)
    if kind == "WEBP":
        return head[12:16] == b"VP8X" and bool(head[20] & 2)
    if kind == "AVIF":
        return b"avis" in head[8 : int.from_bytes(head[:4], "big")]
    with open(file, "rb") as handle:  # PNG: chunks of length, name, data and a checksum; pixels begin with IDAT
        handle.seek(8)
        for _ in range(100):
            length, name = struct.unpack(">I4s", handle.read(8).ljust(8, b"\0"))
            if kind != "PNG" or name in (b"acTL", b"IDAT", bytes(4)):
                return name == b"acTL"
            handle.seek(length + 4, os.SEEK_CUR)
    return False


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
        return handle.read(256)


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


def pyav_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for files that can't be read or written."""
    import av

    return av.FFmpegError, ArithmeticError, MemoryError, OSError, ValueError


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


def open_image(file: Path, given: object) -> "PIL.Image.Image":
    """An image file, opened by Pillow and not decoded yet; its size is one that is read. Raises MediaError."""
    from PIL import Image, features

    Image.init()
    kind = format_of(file)
    if kind == "HEIF" and "HEIF" not in Image.OPEN:
        raise MediaError(
            f"{given} is a HEIC photo, which Pillow does not read: save it as JPEG (a phone does so when it shares it),"
            " or install pillow-heif and call pillow_heif.register_heif_opener() first"
        )
    if kind == "AVIF" and not ("AVIF" in Image.OPEN and features.check("avif")):
        raise MediaError(f"{given} is an AVIF image, which this Pillow does not read: install Pillow 11.3 or newer")
    # Other formats of Pillow start programs (EPS) or are rarely tested.
    formats = [name for name in (*SIGNATURES.values(), "GIF") if name in Image.OPEN]
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise MediaError(f"{given} has far more than {MAX_PIXELS // 10**6} megapixels; make it smaller") from None
    if any(tile[0] in Image.DECODERS for tile in image.tile):  # written in Python: a second a megapixel
        divisor = 16
    else:  # the decoders of progressive JPEG, WebP and AVIF take as much memory as the image
        divisor = 2 if "progressive" in image.info or image.format in ("WEBP", "AVIF", "HEIF") else 1
    check_pixels(given, *image.size, divisor)
    return image


def read_image_file(file: Path, given: object) -> "tuple[PIL.Image.Image, tuple[str, ...]]":
    """An image file as a PIL image in mode RGB, and what was done to it: see `to_rgb`. Raises MediaError."""
    from PIL import Image

    with explained(given, "cannot be read as an image", PILLOW_ERRORS, file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
        with open_image(file, given) as image:
            passes = file.read_bytes().count(b"\xff\xda") if "progressive" in image.info else 0
            if passes > 100:  # of a few bytes each; libjpeg itself writes ten
                raise MediaError(f"{given} is a JPEG drawn in {passes} passes, far more than it needs; save it again")
            pages, tags = 1, getattr(image, "tag_v2", {})
            if image.format == "TIFF":
                pages = getattr(image, "n_frames", 1)
            if tags.get(NEW_SUBFILE_TYPE, 0) & 1 or DNG_VERSION in tags or _first_bytes(file)[8:10] == b"CR":
                raise MediaError(
                    f"{given} is a camera's raw file, of which only a preview can be read: save it as JPEG"
                )
            coding = _coding(file, image.format)
            if colour.is_wide(*coding):
                image.info.pop("icc_profile", None)  # the coding says more
            rgb, done = to_rgb(image, given)
            if colour.is_wide(*coding):
                done = (*done, colour.name(coding[1]))
                for top, strip in strips(rgb):
                    pixels = colour.to_bt709(np.asarray(strip, np.float32) / 255, *coding)
                    rgb.paste(Image.fromarray(np.rint(pixels).astype(np.uint8)), (0, top))
            return rgb, (*done, *([f"the first of {pages} pages"] if pages > 1 else []))


def _coding(file: Path, kind: str | None) -> tuple[int, int]:
    """Colour primaries and transfer function that a PNG (cICP) or an AVIF or HEIF (nclx) states, as numbered in H.273.

    (0, 0) where it states none.
    """
    if kind not in ("PNG", "AVIF", "HEIF"):
        return 0, 0
    with open(file, "rb") as opened:
        head = opened.read(100_000)
    if kind == "PNG":
        found = re.search(rb"\0\0\0\x04cICP(.)(.)", head.partition(b"IDAT")[0], re.DOTALL)
    else:
        found = re.search(rb"colrnclx\0(.)\0(.)", head, re.DOTALL)
    return (found[1][0], found[2][0]) if found else (0, 0)


def _to_srgb(
    image: "PIL.Image.Image", profile: bytes | None, is_grey: bool
) -> "tuple[PIL.Image.Image, tuple[str, ...]]":
    """An image in mode RGB or CMYK and in the colours of an ICC profile -> in sRGB, and what was done to it.

    Nothing is done with sRGB's own profile, in any of its writings, nor with one of another kind of image.
    """
    from PIL import Image, ImageCms

    if not profile:
        return image, ()
    kind = "L" if is_grey else image.mode
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != {"L": "GRAY"}.get(kind, kind):
            return image, ()
        to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), kind, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image, ("its colour profile is damaged, and not applied",)
    samples = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 4), -1).reshape(1, -1, 4)
    probe = Image.fromarray(samples, "CMYK" if kind == "CMYK" else "RGBA").convert(kind)
    change = np.asarray(ImageCms.applyTransform(probe, to_srgb), np.int64) - np.asarray(probe.convert("RGB"))
    if np.abs(change).max() <= 2:
        return image, ()
    out = image if image.mode == "RGB" else Image.new("RGB", image.size)
    for top, strip in strips(image):
        converted = ImageCms.applyTransform(strip.convert(kind), to_srgb)
        assert converted is not None  # as only with inPlace
        out.paste(converted, (0, top))
    return out, (f"{printable(ImageCms.getProfileDescription(source).strip()):.40} converted to sRGB",)


def to_rgb(image: "PIL.Image.Image", given: object) -> "tuple[PIL.Image.Image, tuple[str, ...]]":
    """A PIL image in any mode -> sRGB in mode RGB, upright according to EXIF, what is transparent over white.

    Also returns what was done, in words. Turns `image` in place, which saves memory. Raises MediaError for modes
    without a defined conversion.
    """
    from PIL import Image, ImageOps

    image.load()
    turned = image.getexif().get(0x0112, 1) in range(2, 9)
    ImageOps.exif_transpose(image, in_place=True)
    done = ["turned upright"] if turned else []
    if image.mode == "F":
        raise MediaError(f"{given} holds floating-point pixels, whose white is unknown; save it with 8 bits")
    if image.mode == "LAB":
        raise MediaError(f"{given} holds CIELAB colours, which are not read; save it as RGB")
    clear, profile = image.info.get("transparency"), image.info.get("icc_profile")
    is_grey, is_clear = image.mode[:2] in ("1", "L", "LA", "La", "I", "I;"), False
    kinds = {"P": (int, bytes), "1": (int,), "L": (int,), "RGB": (tuple,)}  # of "transparency", by mode
    if image.mode == "I" or image.mode.startswith("I;16"):  # convert("RGB") would clip nearly all of it to white
        grey = Image.new("L", image.size)
        for top, strip in strips(image):
            values = np.asarray(strip).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise MediaError(f"{given} holds more than 16 bits per pixel; save it with 8 or 16")
            pixels = ((values + 128) // 257).astype(np.uint8)
            if is_clear := isinstance(clear, int):
                pixels[values == clear] = 255
            grey.paste(Image.fromarray(pixels), (0, top))
        image = grey.convert("RGB")
    elif "A" in image.mode or "a" in image.mode or isinstance(clear, kinds.get(image.mode, ())):
        image, is_clear = _over_white(image)
    else:
        image.info.pop("transparency", None)
        image = image if image.mode in ("RGB", "CMYK") else image.convert("RGB")
    image, converted = _to_srgb(image, profile, is_grey)
    done = [*done, *(["transparency over white"] if is_clear else []), *converted]
    return image if image.mode == "RGB" else image.convert("RGB"), tuple(done)


def _over_white(image: "PIL.Image.Image") -> "tuple[PIL.Image.Image, bool]":
    """An image in mode RGB, over white, and whether any of it is transparent. Modes RGBa and La are premultiplied."""
    from PIL import Image

    out, least = Image.new("RGB", image.size, "white"), 255
    for top, strip in strips(image):
        strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        out.paste(strip, (0, top), strip)
        least = min(least, int(np.asarray(strip.getchannel("A")).min()))
    return out, least < 255


def strips(image: "PIL.Image.Image") -> "Iterator[tuple[int, PIL.Image.Image]]":
    """An image in pieces of at most 256 rows, each with the index of its first row; saves memory in conversions."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(top + 256, image.height)))
