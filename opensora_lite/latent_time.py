"""Frames and latent frames: which frames of a video a latent frame of the causal video VAE (Open-Sora 1.2) encodes.

    frames     0 │ 1 2 3 4 │ 5 6 7 8 │ 9 10 11 12 │ 13 14 15 16 │ 17 │ 18 19 20 21 │ …
    latents    0 │    1    │    2    │     3      │      4      │  5 │      6      │ …
               └───────────────── chunk 0 ─────────────────────┘ └── chunk 1 …

The VAE works on chunks of 17 frames, each on its own. Four frames become one latent frame; a chunk whose length is no
multiple of four is padded with zeros in front, so the first latent frame of 17 frames holds one frame and three zeros.
Needs neither Paddle nor a model. The frame-wise VAE (1.1) is the case chunk=None, factor=1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CHUNK = 17  # frames that the released VAE encodes at once
FACTOR = 4  # frames per latent frame


@dataclass(frozen=True)
class Window:
    """The frames of one latent frame, counted from 0, both ends included.

    chunk: its number; chunk_first, chunk_last: its frames. first, last: the frames that the latent frame encodes, after
    zeros_before frames of zeros.
    """

    chunk: int
    first: int
    last: int
    zeros_before: int
    chunk_first: int
    chunk_last: int

    @property
    def reach(self) -> tuple[int, int]:
        """First and last frame that the VAE's convolutions see: they are causal, within the chunk."""
        return self.chunk_first, self.last

    @property
    def depends_on(self) -> tuple[int, int]:
        """First and last frame that the latent frame depends on: group norms average over the whole chunk."""
        return self.chunk_first, self.chunk_last


def latent_frames(num_frames: int, chunk: int | None = CHUNK, factor: int = FACTOR) -> int:
    """Number of latent frames of a video. chunk: frames per chunk; None: the whole video is one chunk."""
    chunk = chunk or num_frames
    whole, rest = divmod(num_frames, chunk)
    return whole * -(-chunk // factor) + -(-rest // factor)


def most_frames(num_latents: int, chunk: int | None = CHUNK, factor: int = FACTOR) -> int:
    """The longest video with that many latent frames. chunk: as in `latent_frames`."""
    if chunk is None:
        return num_latents * factor
    whole, rest = divmod(num_latents, -(-chunk // factor))
    return whole * chunk + rest * factor


def windows(num_frames: int, chunk: int | None = CHUNK, factor: int = FACTOR) -> list[Window]:
    """The frames of every latent frame of a video. chunk: as in `latent_frames`."""
    found, chunk = [], chunk or num_frames
    for number, start in enumerate(range(0, num_frames, chunk)):
        stop = min(start + chunk, num_frames)
        zeros = -(stop - start) % factor
        for first in range(start - zeros, stop, factor):
            seen = max(first, start)
            found.append(Window(number, seen, first + factor - 1, seen - first, start, stop - 1))
    return found


@dataclass(frozen=True)
class LatentTime:
    """How the VAE of a model counts time; the defaults are those of Open-Sora 1.1, whose latent frames are its frames.

    chunk: frames that are encoded on their own; None: all. factor: frames per latent frame.
    """

    chunk: int | None = 1
    factor: int = 1

    @property
    def align(self) -> int | None:
        """The latent frames of a chunk, to which the starts of mask segments are aligned; None: they are not."""
        return None if self.factor == 1 or self.chunk is None else self.latent_frames(self.chunk)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip."""
        return latent_frames(num_frames, self.chunk, self.factor)

    def windows(self, num_frames: int) -> list[Window]:
        """The frames of each latent frame of a clip."""
        return windows(num_frames, self.chunk, self.factor)

    def picture_at(self, latent: int, num_frames: int) -> tuple[int, int]:
        """How a picture is encoded that stands in a latent frame of a video: (length of a still clip of it, which of
        the clip's latent frames).

        Where the latent frame holds one frame, the picture is encoded alone; elsewhere, as a clip as long as the chunk.

        >>> LatentTime(17, 4).picture_at(5, num_frames=34), LatentTime(17, 4).picture_at(9, num_frames=34)
        ((1, 0), (17, 4))
        """
        windows = self.windows(num_frames)
        here = windows[latent]
        if here.first == here.last:
            return 1, 0
        before = sum(window.chunk < here.chunk for window in windows)
        return here.chunk_last - here.chunk_first + 1, latent - before

    def stills(self, num_frames: int) -> dict[int, dict[int, int]]:
        """`picture_at` of every latent frame of a video, by the length of the clip: length -> {latent frame: place}.

        >>> LatentTime(17, 4).stills(17)
        {1: {0: 0}, 17: {1: 1, 2: 2, 3: 3, 4: 4}}
        """
        found: dict[int, dict[int, int]] = {}
        for latent in range(self.latent_frames(num_frames)):
            length, place = self.picture_at(latent, num_frames)
            found.setdefault(length, {})[latent] = place
        return found

    def frames_of(self, latents: Iterable[int], num_frames: int) -> tuple[list[int], list[int]]:
        """The frames of a clip that must be encoded for some of its latent frames, and the latent frames they give.

        Whole chunks, since a latent frame depends on all frames of its chunk; both lists ascend.

        >>> LatentTime(17, 4).frames_of([5], num_frames=20), LatentTime().frames_of([6, 9], num_frames=20)
        (([17, 18, 19], [5]), ([6, 9], [6, 9]))
        """
        windows = self.windows(num_frames)
        chunks = {windows[latent].chunk for latent in latents}
        frames = {i for w in windows if w.chunk in chunks for i in range(w.chunk_first, w.chunk_last + 1)}
        return sorted(frames), [i for i, window in enumerate(windows) if window.chunk in chunks]
