"""What training sees: LiteWorld clips, and batches of them that depend on nothing but the seed and the step.

Because a batch is a function of (seed, step), a run that was stopped goes on with the batches that it would have had,
and processes that share the work agree on every batch without a word: each takes its part of the same one.

numpy only, so that the PyTorch peer (tests/peers) can train on the very same batches.

Axes: B videos · T frames · C latent channels · H, W in latents, height, width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opensora_lite.liteworld import world
from opensora_lite.request import IMAGE_FPS
from opensora_lite.training.recipe import DiffusionRecipe, PictureLearning, Recipe, World, parse_size

LATENT_CHANNELS = 4  # of the VAE, as STDiT2 reads them


@dataclass(frozen=True)
class Clip:
    """One clip of LiteWorld: what it shows, how fast, and captions that are true of it, the full one first."""

    scene: world.Scene
    height: int
    width: int
    fps: int
    captions: tuple[str, ...]

    def render(self, num_frames: int) -> np.ndarray:
        """uint8 [T, height, width, 3]"""
        return world.render(self.scene, num_frames, self.height, self.width, self.fps)


def clip_at(w: World, index: int) -> Clip:
    """Clip `index` of a world; the same at every call, whatever else was drawn."""
    rng = np.random.default_rng(w.first_seed + index)
    height, width = parse_size(w.sizes[index % len(w.sizes)])
    scene, fps = world.sample_scene(rng), w.fps[rng.integers(len(w.fps))]
    captions = (world.caption(scene), *(world.caption(scene, rng) for _ in range(w.captions - 1)))
    return Clip(scene, height, width, fps, captions)


def pick(rng: np.random.Generator, shares: dict):
    """One of the keys, each as often as its share says."""
    keys, weights = list(shares), np.array(list(shares.values()), float)
    return keys[rng.choice(len(keys), p=weights / weights.sum())]


# ---------------------------------------------------------------------------------------------------------------------
#   Frame masks
# ---------------------------------------------------------------------------------------------------------------------


def frame_mask(kind: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """bool [T], true where a frame is to be made; `kind` is one of recipe.FRAME_MASKS, and names what is given.

    At least one frame is given, unless the video is too short for its kind: then none is.
    Source: hpcaitech/Open-Sora v1.1, opensora/utils/train_utils.py, MaskGenerator.
    """
    mask = np.ones(num_frames, bool)
    if kind == "none" or num_frames == 1:
        return mask
    most = max(num_frames // 4, 1) if kind.startswith("quarter") else 1
    n = int(rng.integers(1, most + 1))
    place = kind.split("_", 1)[1]
    if place == "random":
        at = int(rng.integers(0, num_frames - n + 1))
        mask[at : at + n] = False
    if place in ("head", "head_tail"):
        mask[:n] = False
    if place in ("tail", "head_tail"):
        mask[-n:] = False
    return mask if mask.any() else np.ones(num_frames, bool)


# ---------------------------------------------------------------------------------------------------------------------
#   Batches
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """What one step of T5 and STDiT2 sees; arrays with B first."""

    x_0: np.ndarray  # float32 [B, C, T, H, W] scaled latents
    captions: list[str]
    dropped: np.ndarray  # bool [B]: videos that learn without their caption
    t: np.ndarray  # int64 [B], 0 … 999
    noise: np.ndarray  # float32, like x_0
    x_mask: np.ndarray  # bool [B, T], true where a frame is to be made
    fps: np.ndarray  # float32 [B]
    height: int  # pixels
    width: int

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """num_frames, height, width, ar, fps of STDiT2.forward, float32 [B] each."""
        B, _, T, _, _ = self.x_0.shape
        values = dict(num_frames=T, height=self.height, width=self.width, ar=self.height / self.width)
        return {**{name: np.full(B, value, np.float32) for name, value in values.items()}, "fps": self.fps}

    def part(self, rank: int, of: int) -> Batch:
        """Every `of`-th video, from `rank` on: the share of one of `of` processes."""
        rows = slice(rank, None, of)
        arrays = {name: getattr(self, name)[rows] for name in ("x_0", "dropped", "t", "noise", "x_mask", "fps")}
        return Batch(captions=self.captions[rows], height=self.height, width=self.width, **arrays)


def by_size(clips: list[Clip], arrays: list[np.ndarray]) -> dict[tuple[int, int], tuple[np.ndarray, list[Clip]]]:
    """(height, width) -> the arrays of all clips of that size, stacked to [clips, ...], and the clips."""
    pools = {}
    for size in dict.fromkeys((clip.height, clip.width) for clip in clips):
        rows = [i for i, clip in enumerate(clips) if (clip.height, clip.width) == size]
        pools[size] = np.stack([arrays[i] for i in rows]), [clips[i] for i in rows]
    return pools


def pick_size(rng: np.random.Generator, pools: dict) -> tuple[int, int]:
    """A size, as often as its clips come: all videos of a batch have one."""
    return pick(rng, {size: len(clips) for size, (_, clips) in pools.items()})


class Latents:
    """The clips of a world as latents, sorted by size: what T5 and STDiT2 learn from.

    clips: the clips. latents: for each, float16 [C, T, H, W], scaled.
    """

    def __init__(self, clips: list[Clip], latents: list[np.ndarray]):
        self.pools = by_size(clips, latents)

    def batch(self, recipe: Recipe, step: int) -> Batch:
        """The batch of a step."""
        d: DiffusionRecipe = recipe.diffusion
        rng = np.random.default_rng([recipe.seed, 2, step])
        stage = d.stage_at(step)
        T = pick(rng, stage.lengths)
        height, width = size = pick_size(rng, self.pools)
        latents, clips = self.pools[size]
        B = stage.batch_of(T)

        rows = rng.integers(len(clips), size=B)
        starts = rng.integers(0, latents.shape[2] - T + 1, size=B)
        x_0 = np.stack([latents[row, :, at : at + T] for row, at in zip(rows, starts, strict=True)])
        captions = [clips[row].captions for row in rows]
        full = rng.random(B) < d.full_captions
        which = [
            0 if whole or len(c) == 1 else int(rng.integers(1, len(c))) for whole, c in zip(full, captions, strict=True)
        ]
        # one time in each of B equal parts of all: less scatter from step to step than B independent ones
        first, end = stage.times
        t = (first + (rng.permutation(B) + rng.random(B)) * ((end - first) / B)).astype(np.int64).clip(first, end - 1)
        masks = [frame_mask(pick(rng, d.frame_masks), T, rng) for _ in range(B)]
        return Batch(
            x_0=x_0.astype(np.float32),
            captions=[c[i] for c, i in zip(captions, which, strict=True)],
            dropped=rng.random(B) < d.caption_dropout,
            t=t,
            noise=rng.standard_normal(x_0.shape, np.float32),
            x_mask=np.stack(masks),
            fps=np.array([IMAGE_FPS if T == 1 else clips[row].fps for row in rows], np.float32),
            height=height,
            width=width,
        )


class Pictures:
    """The frames of a world's clips, sorted by size: what the VAE learns from.

    clips: the clips. frames: for each, uint8 [T, height, width, 3].
    """

    def __init__(self, clips: list[Clip], frames: list[np.ndarray]):
        self.pools = by_size(clips, frames)

    def batch(self, v: PictureLearning, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures float32 [B, 3, h, w], −1 … 1, and noise float32 [B, C, h/8, w/8], of a step of a stage of the VAE.

        Whole frames, or crops around the subject, where the small things are that are hardest to keep. All sizes come
        alike: what is drawn to the same rules has other details in pixels at each height.
        """
        rng = np.random.default_rng([seed, v.STREAM, step])
        size = list(self.pools)[rng.integers(len(self.pools))]
        frames, clips = self.pools[size]
        rows, times = rng.integers(len(clips), size=v.batch), rng.integers(frames.shape[1], size=v.batch)
        pictures = frames[rows, times]
        if rng.random() < v.crop_share:
            side = min(v.crop, *size)
            corners = [self._corner(clips[row], time, side, rng) for row, time in zip(rows, times, strict=True)]
            pictures = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)])
        pictures = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        B, _, h, w = pictures.shape
        return pictures, rng.standard_normal((B, LATENT_CHANNELS, h // 8, w // 8), np.float32)

    @staticmethod
    def _corner(clip: Clip, time: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """(top, left) of a crop of `side` pixels that shows the subject, somewhere in it; without one, anywhere."""
        room = np.array([clip.height - side, clip.width - side])
        if clip.scene.subject is None:
            return tuple(rng.integers(0, room + 1))
        x, y = world.subject_position(clip.scene, time * 24 / clip.fps, clip.width / clip.height)
        middle = np.array([y, x]) * clip.height
        corner = middle - side / 2 + rng.uniform(-side / 4, side / 4, size=2)
        return tuple(corner.round().astype(int).clip(0, room))
