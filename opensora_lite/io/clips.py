"""Reading clips: videos with PyAV (FFmpeg), animated WebP, PNG and AVIF with Pillow.

A clip is a file with frames in time. To show one of them, the decoder starts at the key frame before it: what a request
costs depends on the frames that it uses and not on the clip's length. Times are exact fractions of a second.
Every error is a MediaError that names the file as it was given.
"""

import functools
import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.errors import MediaError
from opensora_lite.io import colour
from opensora_lite.io.media import (
    ANIMATED,
    MAX_PIXELS,
    PILLOW_ERRORS,
    check_pixels,
    explained,
    format_of,
    open_image,
    pyav_errors,
    to_rgb,
)

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream
    import PIL.Image

# FFmpeg decodes these in a row, also where few of them are wanted: a minute of 1080p, and a minute of work.
MAX_DECODED_PIXELS, MAX_DECODED_FRAMES = 4_000_000_000, 20_000
MAX_LISTED = 1_000_000  # frames of a file
MAX_BYTES_PER_FRAME, MAX_SECONDS_PER_FRAME = 128_000_000, 2  # read, and computed, until the next frame is found
SEEK = 2  # seconds from which on frames between two that are wanted are skipped


@dataclass(frozen=True)
class Picture:
    """A frame as its decoder gives it.

    samples: [H, W, C], upright. rgb: turns any of the samples [..., C] into pixels float32 [..., 3], 0 … 255: a frame
    that is made smaller is converted only where it is needed.
    """

    samples: np.ndarray
    rgb: Callable[[np.ndarray], np.ndarray]


Frames = Iterator[tuple[Fraction, Callable[[], Picture]]]  # seconds at which each begins; its picture, when needed


@dataclass(frozen=True)
class Clip:
    """What is known of a clip without decoding all of it.

    height, width: pixels of a frame, upright and made square. start, end: seconds at which its first frame begins and
    its last one ends. fps: frames per second on average. usual_fps: of most of its frames, as far as known.
    done: what happens to its frames, in words. seekable: frames can be skipped. frames_from: (seconds) -> the frames
    from the one that is shown then, or an earlier one: the key frame before. listed: () -> the times of all frames.
    """

    height: int
    width: int
    start: Fraction
    end: Fraction
    fps: Fraction
    usual_fps: Fraction
    done: tuple[str, ...]
    seekable: bool
    frames_from: Callable[[Fraction], Frames]
    listed: Callable[[], list[Fraction]]

    @property
    def is_steady(self) -> bool:
        """Whether its frames last equally long, as far as known."""
        return abs(self.usual_fps - self.fps) < self.fps / 50

    def pictures(self, times: Sequence[Fraction], slack: Fraction = Fraction(0)) -> Iterator[tuple[int, Picture]]:
        """Yields (i, the picture that is shown at times[i]) for times in ascending order; slack: see `shown`."""
        start = 0
        for i in range(1, len(times) + 1):
            if i == len(times) or (self.seekable and times[i] - times[i - 1] > SEEK):
                part = times[start:i]
                for j, picture in shown(self.frames_from(part[0]), part, slack):
                    yield start + j, picture()
                start = i


def shown(frames: Iterator[tuple[Fraction, Any]], times: Sequence[Fraction], slack: Fraction) -> Iterator[tuple]:
    """Yields (i, the frame that is shown at times[i]) for times in ascending order: the last one that has begun.

    frames: (seconds at which it begins, frame), the first of them shown at times[0] or earlier. slack: a frame counts
    as begun so many seconds early, but at most a third of the time of the one before. Without it, rounded times would
    give a frame twice: a clip of 23.976 frames per second, its first one at 24.
    """
    i, last, frame = 0, None, None
    for begins, following in frames:
        if last is not None:
            counts_from = begins - min(slack, (begins - last) / 3)
            while i < len(times) and times[i] < counts_from:
                yield i, frame
                i += 1
        if i == len(times):
            return
        last, frame = begins, following
    yield from ((rest, frame) for rest in range(i, len(times)))


def open_clip(file: Path, given: object) -> Clip:
    """A clip, after a look at its first frame and its last packets. Raises MediaError."""
    return _open_animation(file, given) if format_of(file) in ANIMATED else _open_video(file, given)


def clip_of(frames: np.ndarray, fps: Fraction) -> Clip:
    """The clip of uint8 frames [T, H, W, 3] in memory."""

    def frames_from(second: Fraction) -> Frames:
        for i in range(max(math.floor(second * fps), 0), len(frames)):
            yield i / fps, functools.partial(Picture, frames[i], as_float)

    def listed() -> list[Fraction]:
        return [i / fps for i in range(len(frames))]

    _, height, width, _ = frames.shape
    return Clip(height, width, Fraction(0), len(frames) / fps, fps, fps, (), True, frames_from, listed)


def all_frames(file: Path, given: object) -> Frames:
    """Yields every frame of a clip. Raises MediaError, also for a file that was cut short."""
    if format_of(file) in ANIMATED:
        yield from _animation_frames(file, given)
    else:
        with _opened(file, given) as video:
            yield from video.pictures()


def count_decoded(file: Path, given: object) -> int:
    """The number of frames that decoding a clip gives. Raises MediaError."""
    return sum(1 for _ in all_frames(file, given))


# ---------------------------------------------------------------------------------------------------------------------
#   Videos
# ---------------------------------------------------------------------------------------------------------------------


def _open_video(file: Path, given: object) -> Clip:
    with _opened(file, given) as video:
        start, frame = next(video.frames())
        height, width, done = video.size_and_notes(frame)
        is_gif = video.container.format.name == "gif"
        sequential = is_gif or frame.pts is None  # a frame of a GIF is drawn over those before it
        fps = video.stream.average_rate or video.stream.guessed_rate or Fraction(24)
        usual = video.stream.guessed_rate or fps
    times: list[Fraction] = []
    end = Fraction(0) if sequential else _end(file, given)
    if not end:  # there is no seeking in it
        times, end = _list_frames(file, given, start)
    if is_gif and len(set(times)) > 1:
        fps = usual = (len(times) - 1) / (times[-1] - times[0])  # the stream's own rate is a coarse guess
    fps = min(max(Fraction(fps), Fraction(1, 100)), Fraction(1000))

    return Clip(
        height=height,
        width=width,
        start=start,
        end=max(end, start + 1 / fps),
        fps=fps,
        usual_fps=Fraction(usual),
        done=done,
        seekable=not sequential,
        frames_from=lambda second: _frames_from(file, given, second, start, sequential),
        listed=lambda: times or _list_frames(file, given, start)[0],
    )


def _frames_from(file: Path, given: object, second: Fraction, start: Fraction, sequential: bool) -> Frames:
    for back in (0, 4, 30, None):  # a frame may be shown after the key frame, but refer to one before it
        with _opened(file, given) as video:
            if sequential or back is None or second - back < start + SEEK:
                yield from video.pictures()
                return
            if video.seek(second - back):
                frames = video.pictures()
                first = next(frames, None)
                if first and first[0] <= second:
                    yield first
                    yield from frames
                    return


def _end(file: Path, given: object) -> Fraction:
    """Seconds at which the last frame ends, by the packets from the last key frame on; 0 where seeking fails."""
    with _opened(file, given) as video:
        stated, first = video.container.duration, video.container.start_time or 0
        if stated and video.seek(Fraction(first + stated, 1_000_000)):
            for _ in video.packets():
                pass
            return video.end
    return Fraction(0)


def _list_frames(file: Path, given: object, start: Fraction) -> tuple[list[Fraction], Fraction]:
    """The times of all frames from `start` on, and the end of the last; decoded where packets don't tell."""
    with _opened(file, given) as video:
        # A packet of VP8 may hold a frame that is not shown, one of a GIF a comment; in AVI they have no time.
        if video.container.format.name not in ("avi", "gif") and video.stream.codec_context.name != "vp8":
            times = [time for time in map(_shown_at, video.packets()) if time is not None and time >= start]
            if video.timed and times and len(set(times)) == len(times):
                return sorted(times), video.end
    with _opened(file, given) as video:
        times = [begins for begins, _ in video.frames()]
        return times, max(video.end, times[-1])


def _shown_at(packet: Any) -> Fraction | None:
    """Seconds at which a packet's frame is shown; None for none, as outside of an edit list."""
    shown = packet.size and packet.pts is not None and not getattr(packet, "is_discard", False)  # PyAV 12
    return packet.pts * Fraction(packet.time_base) if shown else None


@contextmanager
def _opened(file: Path, given: object) -> "Iterator[_Video]":
    import av

    max_pixels = {"max_pixels": str(MAX_PIXELS // 4)}  # checked by decoders before they allocate memory
    # A playlist called .mp4 must not open other files or addresses: only containers that hold their own data.
    options = {"format_whitelist": "mov,matroska,avi,gif", **max_pixels}
    with (
        explained(given, "cannot be read as a video", pyav_errors(), file),
        Watched(file) as handle,
        av.open(handle, "r", options=options, metadata_errors="replace") as container,
    ):
        handle.check()
        stream = _video_stream(container, given)
        stream.codec_context.options = max_pixels  # the size may change later on
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 2  # every thread holds frames
        yield _Video(given, handle, container, stream)


class _Video:
    """An open video: one pass over its packets or frames. Its methods raise MediaError or one of `pyav_errors`.

    end: seconds at which the last frame ends, and timed: whether every packet has a time; after all packets.
    """

    def __init__(
        self,
        given: object,
        handle: "Watched",
        container: "av.container.InputContainer",
        stream: "av.video.stream.VideoStream",
    ):
        self.given, self.handle, self.container, self.stream = given, handle, container, stream
        self.interval = 1 / Fraction(stream.average_rate or stream.guessed_rate or 24)
        self.end, self.timed, self.sought = Fraction(0), True, False

    def seek(self, second: Fraction) -> bool:
        """Go to the last key frame at or before `second`; whether that worked."""
        self.handle.found()
        try:
            self.container.seek(int(second / (self.stream.time_base or 1)), stream=self.stream)
            self.handle.check()
        except pyav_errors():
            return False
        self.sought = True
        return True

    def packets(self) -> Iterator[Any]:
        """The packets of the video, and an empty one. Behind the last, the end of the file is checked."""
        times: list[Fraction] = []
        last, other, shown_last = None, Fraction(0), (Fraction(-1), Fraction(0))
        self.handle.found()
        packet: Any
        for packet in self.container.demux():
            if packet.stream.index != self.stream.index:
                if packet.pts is not None:
                    other = max(other, (packet.pts + (packet.duration or 0)) * packet.time_base)
                continue
            if packet.is_corrupt:
                raise ValueError("a packet is incomplete")
            if packet.size:
                last = packet
                if packet.pts is None:
                    self.timed = False
                else:
                    times.append(packet.pts * packet.time_base)
                    if len(times) > MAX_LISTED:
                        raise MediaError(f"{self.given} is too long: more than {MAX_LISTED} frames")
            if (begins := _shown_at(packet)) is not None:
                lasts = (packet.duration or 0) * Fraction(packet.time_base) or self.interval
                shown_last = max(shown_last, (begins, begins + lasts))
            yield packet
            self.handle.found()
        self.handle.check()
        begins, self.end = shown_last
        stated = ((self.stream.start_time or 0) + (self.stream.duration or 0)) * Fraction(self.stream.time_base or 1)
        if begins < stated < self.end:  # a packet of an mp4 may last until the next is decoded, not shown
            self.end = stated
        _check_end(self.given, self.container, times, last, other)

    def frames(self) -> "Iterator[tuple[Fraction, av.VideoFrame]]":
        """Every frame with the seconds at which it begins."""
        decode = self._decoder()
        count, begins = 0, Fraction(0)
        for packet in self.packets():
            for frame in decode(packet):
                if frame.is_corrupt:
                    if self.sought and not count:  # it refers to frames before the key frame
                        continue
                    raise ValueError("a frame is damaged")  # FFmpeg has made up a part of it
                stated = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
                if count and (stated is None or stated <= begins):  # no times, or such that run backwards
                    stated = begins + self.interval
                begins, count = stated or Fraction(0), count + 1
                if count > MAX_DECODED_FRAMES or count * frame.height * frame.width > MAX_DECODED_PIXELS:
                    raise MediaError(
                        f"{self.given} is too long: {count} frames of {frame.width}×{frame.height} in a row;"
                        " cut out the part that is needed, with a key frame every few seconds (ffmpeg -g 48)"
                    )
                yield begins, frame
        if not count and not self.sought:
            raise MediaError(f"{self.given} holds no frames")

    def _decoder(self) -> Callable[[Any], Any]:
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(self.stream.codec_context.name)
        tags = {tag.lower(): value for tag, value in self.stream.metadata.items()}
        if name and tags.get("alpha_mode") == "1":  # a second video, which FFmpeg's own decoders ignore
            import av

            context: Any = av.CodecContext.create(name, "r")
            return lambda packet: context.decode(packet if packet.size else None)
        return lambda packet: packet.decode()

    def pictures(self) -> Frames:
        """As `frames`, with pictures."""
        for begins, frame in self.frames():
            yield begins, functools.partial(self._picture, frame)

    def _picture(self, frame: Any) -> Picture:
        context = self.stream.codec_context
        primaries, transfer = int(context.color_primaries or 0), int(context.color_trc or 0)
        if colour.is_wide(primaries, transfer):
            form = "rgb48le" if frame.format.is_rgb else "yuv444p16le"
            rgb = functools.partial(_wide_rgb, form, frame.color_range == 2, primaries, transfer)
            samples = frame.to_ndarray(format=form) if frame.format.is_rgb else _yuv(frame.reformat(format=form))
            return Picture(_upright(samples, frame, self.stream), rgb)
        how: dict[str, Any] = {}
        if frame.colorspace == 1:  # BT.709, which PyAV before 17 ignores unless another target is named
            how.update(src_colorspace="ITU709", dst_colorspace="ITU601")
        form = "rgba" if _has_alpha(frame) else "rgb24"
        samples = _upright(frame.to_ndarray(format=form, **how), frame, self.stream)
        return Picture(samples, over_white if form == "rgba" else as_float)

    def size_and_notes(self, frame: Any) -> tuple[int, int, tuple[str, ...]]:
        """Height and width of a frame upright and with square pixels, and what has to be done to it, in words."""
        context, done = self.stream.codec_context, []
        height, width = frame.height, frame.width
        aspect = Fraction(self.stream.sample_aspect_ratio or 1)
        if aspect != 1 and Fraction(1, 10) <= aspect <= 10:
            width = max(round(width * aspect), 1)
            done.append(f"pixels of {aspect.numerator}:{aspect.denominator} made square")
        if _orientation(frame, self.stream) != UPRIGHT:
            done.append("turned upright")
            if _orientation(frame, self.stream)[0]:
                height, width = width, height
        transfer = int(context.color_trc or 0)
        if colour.is_wide(int(context.color_primaries or 0), transfer):
            done.append(colour.name(transfer))
        elif _has_alpha(frame):
            samples = frame.to_ndarray(format="rgba").reshape(-1, 4)
            edges = samples[(samples[:, 3] > 0) & (samples[:, 3] < 255)]
            if len(edges) and edges[:, :3].any() and (edges[:, :3] <= edges[:, 3:]).all():  # no container says so
                done.append("transparency over white, taken as straight, but it looks premultiplied: see the guide")
            elif samples[:, 3].min() < 255:
                done.append("transparency over white")
        return height, width, tuple(done)


def as_float(samples: np.ndarray) -> np.ndarray:
    """uint8 RGB [..., 3] -> float32."""
    return samples.astype(np.float32)


def over_white(samples: np.ndarray) -> np.ndarray:
    """uint8 RGBA [..., 4] -> float32 RGB [..., 3]: transparent pixels over white."""
    samples = samples.astype(np.float32)
    return 255 + (samples[..., :3] - 255) * (samples[..., 3:] / 255)


def _wide_rgb(form: str, full_range: bool, primaries: int, transfer: int, samples: np.ndarray) -> np.ndarray:
    if form == "rgb48le":
        return colour.to_bt709(samples.astype(np.float32) / 65535, primaries, transfer)
    return colour.to_bt709(colour.yuv_to_rgb(samples, full_range), primaries, transfer)


def _yuv(frame: Any) -> np.ndarray:
    """A frame in yuv444p16le, which PyAV 12 does not turn into an array: uint16 [H, W, 3]."""
    planes = (np.frombuffer(plane, "<u2").reshape(frame.height, -1)[:, : frame.width] for plane in frame.planes)
    return np.stack(list(planes), -1)


def _has_alpha(frame: Any) -> bool:
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


UPRIGHT = (False, False, False)


def _orientation(frame: Any, stream: Any) -> tuple[bool, bool, bool]:
    """How a frame becomes upright: whether rows and columns swap, then columns and then rows are reversed."""
    for data in getattr(frame, "side_data", ()):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
            return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
    angle = getattr(stream, "side_data", {}).get("DISPLAYMATRIX", 0)  # PyAV 12 and 13; nan where it turns nothing
    turns = round(angle / 90) % 4 if -180 <= angle <= 180 else 0
    return (UPRIGHT, (True, False, True), (False, True, True), (True, True, False))[turns]


def _upright(samples: np.ndarray, frame: Any, stream: Any) -> np.ndarray:
    swap, columns, rows = _orientation(frame, stream)
    samples = samples.swapaxes(0, 1) if swap else samples
    return samples[:: -1 if rows else 1, :: -1 if columns else 1]


def _video_stream(container: "av.container.InputContainer", given: object) -> "av.video.stream.VideoStream":
    if not container.streams.video:
        kinds = ("audio", "subtitles", "data")  # PyAV 14 crashes on the type of an unknown stream
        other = ", ".join(kind for kind in kinds if getattr(container.streams, kind)) or "nothing that is known"
        raise MediaError(f"{given} holds no video stream (only {other})")
    best = getattr(container.streams, "best", lambda kind: None)("video")  # not a cover picture; PyAV 13
    stream = best or container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise ValueError("no decoder for it")
    if not context.width * context.height:  # what some decoders leave behind that have met max_pixels
        raise MediaError(f"{given} has frames of no size, or of more than {MAX_PIXELS / 4e6:.3g} megapixels")
    check_pixels(given, context.width, context.height, 4)
    return stream


class Watched(io.FileIO):
    """A file that ends early if no frame is found for long: FFmpeg would search a broken file for minutes."""

    given_up = False

    def __init__(self, file: Path):
        super().__init__(file)
        self.found()

    def found(self) -> None:
        self.num_bytes, self.since = 0, time.thread_time()  # CPU time: a slow disk is no fault of the file

    def read(self, size: int | None = -1, /) -> bytes:
        """As of FileIO; nothing once too much was read or computed since `found` was called."""
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


# ---------------------------------------------------------------------------------------------------------------------
#   Animations
# ---------------------------------------------------------------------------------------------------------------------


def _open_animation(file: Path, given: object) -> Clip:
    frames = [(begins, end, image.size, done) for begins, end, image, done in _animation(file, given)]
    _, end, (width, height), done = frames[-1]
    times, lengths = [begins for begins, *_ in frames], [end - begins for begins, end, *_ in frames]

    def frames_from(second: Fraction) -> Frames:
        return _animation_frames(file, given)

    usual_fps = 1 / sorted(lengths)[len(lengths) // 2]
    return Clip(height, width, times[0], end, len(times) / end, usual_fps, done, False, frames_from, lambda: times)


def _animation_frames(file: Path, given: object) -> Frames:
    for begins, _, image, _ in _animation(file, given):
        yield begins, functools.partial(Picture, np.asarray(image), as_float)


def _animation(file: Path, given: object) -> "Iterator[tuple[Fraction, Fraction, PIL.Image.Image, tuple[str, ...]]]":
    """When each frame of an animation begins and ends, the frame in mode RGB, and what was done to it."""
    from PIL import Image

    with explained(given, "cannot be read as a video", PILLOW_ERRORS, file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with open_image(file, given) as animation:
            count = getattr(animation, "n_frames", 1)
            if count > MAX_DECODED_FRAMES or count * math.prod(animation.size) > MAX_DECODED_PIXELS:
                raise MediaError(f"{given} is too long: {count} frames; cut out the part that is needed")
            begins = Fraction(0)
            for i in range(count):
                animation.seek(i)
                animation.load()  # which finds the duration
                stated = animation.info.get("duration") or 0  # milliseconds
                length = Fraction(stated if stated > 10 else 100).limit_denominator(1000) / 1000  # as browsers do
                image, done = to_rgb(animation.copy(), given)
                yield begins, begins + length, image, done
                begins += length
