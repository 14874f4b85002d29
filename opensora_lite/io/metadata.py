"""How a video was made, as JSON in the metadata of its file, where FFmpeg and ExifTool find it too.

    .mp4, .webm    comment of the container
    .gif           comment extension
    .png           text "Comment" (iTXt)
    .webp          UserComment of the EXIF data

Files are not trusted: of a picture's file at most MAX_BYTES are read, of a container no more than a decoder may read.
"""

import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from opensora_lite.errors import MediaError
from opensora_lite.io import clips, media

MARK = "opensora_lite"  # the first name of our JSON: the version that wrote it
MAX_BYTES = 4_000_000  # of a picture's metadata, of which ours are a few thousand
EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"  # Exif 2.32, sections 4.6.3 and 4.6.5


def to_comment(info: dict[str, Any] | None) -> str:
    """The text that a file carries: JSON in UTF-8, "" for None. Raises MediaError for what JSON cannot hold."""
    if info is None:
        return ""
    try:
        text = json.dumps({MARK: None} | info, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MediaError(f"info must hold text, numbers, lists and dictionaries only ({error})") from None
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate as JSON escapes it


def from_comment(text: str | None) -> dict[str, Any] | None:
    """The dictionary that `to_comment` wrote; None for text of other programs, or of more than MAX_BYTES characters."""
    try:
        info = json.loads((text or "")[: MAX_BYTES + 1])  # cut, it is no JSON
    except (ValueError, RecursionError):
        return None
    return info if isinstance(info, dict) and MARK in info else None


def read_info(path: media.StrPath) -> dict[str, Any] | None:
    """What `Video.info` was when the file was saved; None if it holds nothing of this library.

    path: a file that `Video.save` wrote, or its folder of frames; found out by content, not by extension. Nothing is
    decoded. Raises MediaError for what cannot be read.
    """
    file = media.as_path(path)
    if file.is_dir():
        file = min(file.glob("frame_*.png"), default=file / "frame_0000.png")
    return from_comment(read_comment(file, path))


def read_comment(file: Path, given: object) -> str | None:
    """The comment in a file's metadata, of whatever program; None if there is none. Raises MediaError."""
    with media.explained(given, "cannot be read", (OSError,)):
        if not file.is_file():
            raise MediaError(f"{given} is not a file" if os.path.lexists(file) else f"{given} does not exist")
        with open(file, "rb") as handle:
            start = handle.read(16)
            handle.seek(0)
            if start.startswith((b"\x89PNG", b"GIF8")):  # their comments precede the pixels
                return _of_picture(handle.read(MAX_BYTES), given)
            if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                with media.explained(given, "cannot be read as an image", media.PILLOW_ERRORS):
                    return _of_exif(_riff_chunk(handle, b"EXIF"))
    return _of_container(file, given)


def exif(comment: str) -> bytes:
    """EXIF data whose UserComment is that text."""
    from PIL import Image

    data = Image.Exif()
    data.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + comment.encode("utf-16-be")
    return data.tobytes().removeprefix(b"Exif\0\0")


def _of_picture(start: bytes, given: object) -> str | None:
    """The comment of a PNG or GIF, given the first bytes of its file."""
    from PIL import Image

    errors = (*media.PILLOW_ERRORS, Image.DecompressionBombError)
    with media.explained(given, "cannot be read as an image", errors), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixels are read
        found = Image.open(io.BytesIO(start), formats=["PNG", "GIF"]).info
    comment = found.get("Comment", found.get("comment"))
    return comment.decode(errors="replace") if isinstance(comment, bytes) else comment


def _of_exif(data: bytes) -> str | None:
    from PIL import Image

    exif = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of broken tags
        exif.load(data)
        comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(UNICODE):
        return None
    return comment.removeprefix(UNICODE).decode("utf-16-be", "replace")


def _riff_chunk(handle: BinaryIO, wanted: bytes) -> bytes:
    """The contents of the first chunk of that name, up to MAX_BYTES of it; b"" if there is none."""
    handle.seek(12)
    for _ in range(2 * media.MAX_FRAMES):
        head = handle.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == wanted:
            return handle.read(min(length, MAX_BYTES))
        handle.seek(length + length % 2, os.SEEK_CUR)
    return b""


def _of_container(file: Path, given: object) -> str | None:
    import av

    options = {"format_whitelist": "mov,matroska,avi"}  # as in clips.py: no playlist, which could open other files
    with (
        media.explained(given, "cannot be read as a video", media.pyav_errors(), file),
        clips.Watched(file) as handle,
        av.open(handle, "r", options=options, metadata_errors="replace") as container,
    ):
        handle.check()
        return next((text for name, text in container.metadata.items() if name.lower() == "comment"), None)
