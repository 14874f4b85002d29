"""Training data: LiteWorld clips and batches of them.

A batch is a function of seed and step. A resumed run therefore gets the batches of an uninterrupted one, and parallel
processes take their parts of the same batch without communication.

numpy only: the PyTorch twins (tests/peers) train on equal batches.

Axes: B videos · T frames · C latent channels · H, W latent height and width; `height` and `width` are in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from opensora_lite.latent_time import CHUNK, latent_frames
from opensora_lite.liteworld import world
from opensora_lite.request import IMAGE_FPS
from opensora_lite.training.recipe import (
    DiffusionRecipe,
    FlowRecipe,
    PictureLearning,
    Recipe,
    Shots,
    VideoLearning,
    VideoRecipe,
    World,
    parse_kind,
    parse_size,
)

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Clip:
    """A LiteWorld clip and its captions, the full one first."""

    scene: world.Scene
    height: int
    width: int
    fps: int
    captions: tuple[str, ...]

    def render(self, num_frames: int) -> np.ndarray:
        """uint8 [T, height, width, 3]"""
        return world.render(self.scene, num_frames, self.height, self.width, self.fps)


def clip_at(w: World, index: int) -> Clip:
    """Clip `index` of a world, with a random stream of its own."""
    rng = np.random.default_rng(w.first_seed + index)
    height, width = parse_size(w.sizes[index % len(w.sizes)])
    scene, fps = world.sample_scene(rng), w.fps[rng.integers(len(w.fps))]
    captions = (world.caption(scene), *(world.caption(scene, rng) for _ in range(w.captions - 1)))
    return Clip(scene, height, width, fps, captions)


def pick(rng: np.random.Generator, shares: dict):
    """A random key; the values are the probabilities, up to a factor."""
    keys, weights = list(shares), np.array(list(shares.values()), float)
    return keys[rng.choice(len(keys), p=weights / weights.sum())]


# ---------------------------------------------------------------------------------------------------------------------
#   Frame masks
# ---------------------------------------------------------------------------------------------------------------------


def frame_mask(kind: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """bool [T]: true for denoised frames, false for conditioning frames. kind: one of recipe.FRAME_MASKS.

    All true for kind "none" and for videos too short for their kind.
    Source: hpcaitech/Open-Sora v1.1, opensora/utils/train_utils.py, MaskGenerator.
    """
    mask = np.ones(num_frames, bool)
    if kind == "none" or num_frames == 1:
        return mask
    most = max(num_frames // 4, 1) if kind.startswith("quarter") else 1
    n = int(rng.integers(1, most + 1))
    where = kind.split("_", 1)[1]
    if where == "random":
        at = int(rng.integers(0, num_frames - n + 1))
        mask[at : at + n] = False
    if where in ("head", "head_tail"):
        mask[:n] = False
    if where in ("tail", "head_tail"):
        mask[-n:] = False
    return mask if mask.any() else np.ones(num_frames, bool)


# ---------------------------------------------------------------------------------------------------------------------
#   Batches
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """The batch of one training step of T5 and STDiT2 (FlowBatch: and STDiT3)."""

    x_0: np.ndarray  # float32 [B, C, T, H, W] scaled latents
    captions: list[str]
    dropped: np.ndarray  # bool [B]: trained with the null caption
    t: np.ndarray  # [B]: int64, 0 … 999; of a FlowBatch float32, 0 … 1000
    noise: np.ndarray  # float32, like x_0
    x_mask: np.ndarray  # bool [B, T], true for denoised frames
    fps: np.ndarray  # float32 [B]
    height: int  # pixels
    width: int

    @property
    def kind(self) -> str:
        """Latent frames and size, such as "16x48x80"."""
        return f"{self.x_0.shape[2]}x{self.height}x{self.width}"

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """num_frames, height, width, ar and fps of stdit2.Conditions, float32 [B] each."""
        B, _, T, _, _ = self.x_0.shape
        values = dict(num_frames=T, height=self.height, width=self.width, ar=self.height / self.width)
        return {**{name: np.full(B, value, np.float32) for name, value in values.items()}, "fps": self.fps}

    def part(self, rank: int, of: int) -> Batch:
        """The part of process `rank` of `of`: every `of`-th video."""
        rows = slice(rank, None, of)
        return replace(self, **{name: getattr(self, name)[rows] for name in BY_VIDEO})


BY_VIDEO = ("x_0", "captions", "dropped", "t", "noise", "x_mask", "fps")  # fields with one entry per video


def by_size(clips: Sequence[Clip], arrays: list[np.ndarray]) -> dict[tuple[int, int], tuple[np.ndarray, list[Clip]]]:
    """(height, width) -> arrays of the clips of that size, stacked to [clips, ...], and the clips."""
    pools = {}
    for size in dict.fromkeys((clip.height, clip.width) for clip in clips):
        rows = [i for i, clip in enumerate(clips) if (clip.height, clip.width) == size]
        pools[size] = np.stack([arrays[i] for i in rows]), [clips[i] for i in rows]
    return pools


def pick_size(rng: np.random.Generator, pools: dict) -> tuple[int, int]:
    """A size with the frequency of its clips; all videos of a batch have one size."""
    return pick(rng, {size: len(clips) for size, (_, clips) in pools.items()})


class Latents:
    """The training set of T5 and STDiT2: latents by size.

    latents: of each clip, float16 [C, T, H, W], scaled.
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
        # stratified timesteps, one in each of B equal intervals: less variance than B independent ones
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
    """The training set of the VAE: frames by size.

    frames: of each clip, uint8 [T, height, width, 3].
    """

    def __init__(self, clips: list[Clip], frames: list[np.ndarray]):
        self.pools = by_size(clips, frames)

    def batch(self, v: PictureLearning, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures float32 [B, 3, h, w], −1 … 1, and noise float32 [B, C, h/8, w/8] of one training step.

        Whole frames or crops around the subject, whose details are hardest to reconstruct. Sizes are equally frequent,
        because details have other sizes in pixels at each frame height.
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
        """(top, left) of a random crop of `side` pixels that contains the subject, if there is one."""
        largest = np.array([clip.height - side, clip.width - side])
        if clip.scene.subject is None:
            return tuple(rng.integers(0, largest + 1))
        x, y = world.subject_position(clip.scene, time * 24 / clip.fps, clip.width / clip.height)
        centre = np.array([y, x]) * clip.height
        corner = centre - side / 2 + rng.uniform(-side / 4, side / 4, size=2)
        return tuple(corner.round().astype(int).clip(0, largest))


# ---------------------------------------------------------------------------------------------------------------------
#   Open-Sora 1.2
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot(Clip):
    """A LiteWorld clip of Open-Sora 1.2's training set; its captions are without scores."""

    num_frames: int = 17

    @property
    def kind(self) -> tuple[int, int, int]:
        """(frames, height, width)"""
        return self.num_frames, self.height, self.width


def shot_at(w: Shots, index: int, kinds: tuple[str, ...] | None = None) -> Shot:
    """Clip `index` of a world, with a random stream of its own. kinds: in place of the world's."""
    rng = np.random.default_rng(w.first_seed + index)
    kinds = kinds or w.kinds
    num_frames, height, width = parse_kind(kinds[index % len(kinds)])
    fps = w.fps[rng.integers(len(w.fps))] if num_frames <= CHUNK else 24
    scene = world.sample_shot(rng, num_frames, fps)
    captions = (world.caption(scene), *(world.caption(scene, rng) for _ in range(w.captions - 1)))
    return Shot(scene, height, width, fps, captions, num_frames)


class VideoPairs:
    """The training set of the video VAE: clips of 17 frames and their spatial latents, by size.

    frames: of each clip, uint8 [T, height, width, 3]. latents: of each clip, float16 [C, T, h, w]. channels: of the
    latents of the temporal VAE, K.
    """

    def __init__(self, clips: list[Shot], frames: list[np.ndarray], latents: list[np.ndarray], channels: int):
        self.frames, self.latents, self.channels = by_size(clips, frames), by_size(clips, latents), channels

    def batch(self, v: VideoLearning, seed: int, stream: int, step: int):
        """A training step's spatial latents float32 [B, C, T, h, w], pixels [B, 3, T, 8h, 8w] in −1 … 1, noise like the
        latents of the clip [B, K, ceil(T / 4), h, w], and `still`: whether the last latent is that of a still clip.

        T is 17 in four steps of five. In the others it is shorter, mostly an image, of which there are 8 times as many.
        `still` prepares the decoder for videos that must end with a given image: its latent stands for four frames
        there too, and all of these show the image. Also the frames that are to be decoded to pixels, in order.
        """
        rng = np.random.default_rng([seed, stream, step])
        size = list(self.frames)[rng.choice(len(self.frames), p=self._shares())]
        frames, clips = self.frames[size]
        latents = self.latents[size][0]
        crops = rng.random() < v.crop_share
        side = min(v.crop, *size) if crops else None
        B = v.batch if crops else v.batch_of(*size)
        which, still, T = rng.random(), False, CHUNK
        if which < 0.12:
            T, B = 1, 8 * B
        elif which < 0.2:
            T = int(rng.integers(2, CHUNK))
        else:
            still = which < 0.3
        rows = rng.integers(len(clips), size=B)
        starts = rng.integers(CHUNK - T + 1, size=B)
        x, pixels = [], []
        for row, start in zip(rows, starts, strict=True):
            top, left, height, width = 0, 0, *(n // 8 for n in size)
            if side:
                time = int(start + rng.integers(T))
                top, left = (n // 8 for n in Pictures._corner(clips[row], time, side, rng))
                height = width = side // 8
            x.append(latents[row][:, start : start + T, top : top + height, left : left + width])
            area = frames[row][start : start + T, 8 * top : 8 * (top + height), 8 * left : 8 * (left + width)]
            pixels.append(area.transpose(3, 0, 1, 2))
        x_0 = np.stack(x).astype(np.float32)
        noise = rng.standard_normal((B, self.channels, -(-T // 4), *x_0.shape[3:]), np.float32)
        decoded = np.sort(rng.permutation(T)[: v.decoded])
        return x_0, np.stack(pixels).astype(np.float32) / 127.5 - 1, noise, still, decoded

    def _shares(self) -> np.ndarray:
        counts = np.array([len(clips) for _, clips in self.frames.values()], float)
        return counts / counts.sum()


class FlowBatch(Batch):
    """The batch of one training step of T5 and STDiT3."""

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """height, width and fps of stdit3.Conditions, float32 [B] each."""
        return {name: value for name, value in super().conditions.items() if name in ("height", "width", "fps")}


class ShotLatents:
    """The training set of T5 and STDiT3: latents by kind of clip.

    latents: of each clip, float16 [3, C, T, h, w]: the clip's; and of the last frame that each of them holds, as an
    image, and as a picture in that place (`LatentTime.picture_at`).
    """

    def __init__(self, clips: list[Shot], latents: list[np.ndarray]):
        self.pools = {}
        for kind in dict.fromkeys(clip.kind for clip in clips):
            rows = [i for i, clip in enumerate(clips) if clip.kind == kind]
            self.pools[kind] = np.stack([latents[i] for i in rows]), [clips[i] for i in rows]

    def batch(self, recipe: VideoRecipe, step: int) -> FlowBatch:
        """The batch of a step."""
        rng = np.random.default_rng([recipe.seed, 2, step])
        stage = recipe.diffusion.stage_at(step)
        d = recipe.diffusion.during(stage)
        T = pick(rng, stage.lengths)
        fitting = {kind: len(clips) for kind, (_, clips) in self.pools.items() if latent_frames(kind[0]) >= T}
        kind = pick(rng, fitting)
        latents, clips = self.pools[kind]
        _, height, width = kind
        B = stage.batch_of(T, height, width)

        rows = rng.integers(len(clips), size=B)
        if T == 1:  # an image, of any frame
            starts, which = rng.integers(latents.shape[3], size=B), 1
        else:  # a whole number of chunks
            starts, which = 5 * rng.integers((latents.shape[3] - T) // 5 + 1, size=B), 0
        chosen, masks = [], []
        for row, at in zip(rows, starts, strict=True):
            x = latents[row, which, :, at : at + T]
            name = pick(rng, d.frame_masks)
            mask = flow_mask(name, T, rng)
            if name.startswith("image"):  # references are encoded by themselves
                x = np.where(mask[:, None, None], x, latents[row, 2, :, at : at + T])
            chosen.append(x)
            masks.append(mask)
        x_0 = np.stack(chosen).astype(np.float32)
        return FlowBatch(
            x_0=x_0,
            captions=[shot_caption(clips[row], d, rng) for row in rows],
            dropped=rng.random(B) < d.caption_dropout,
            t=flow_times(d, rng, B, T, height, width, stage.times),
            noise=rng.standard_normal(x_0.shape, np.float32),
            x_mask=np.stack(masks),
            fps=np.array([IMAGE_FPS if T == 1 else clips[row].fps for row in rows], np.float32),
            height=height,
            width=width,
        )


def flow_mask(kind: str, T: int, rng: np.random.Generator) -> np.ndarray:
    """`frame_mask` in latent frames; half of the long clips are continued from a whole chunk, as loops are."""
    mask = frame_mask(kind, T, rng)
    if T > 5 and kind in ("quarter_head", "quarter_tail") and rng.random() < 0.5:
        mask[:] = True
        mask[slice(5) if kind == "quarter_head" else slice(-5, None)] = False
    return mask


def shot_caption(clip: Shot, d: FlowRecipe, rng: np.random.Generator) -> str:
    """The full caption of a shot or a partial one, with some of the scores."""
    full = rng.random() < d.full_captions or len(clip.captions) == 1
    text = clip.captions[0 if full else int(rng.integers(1, len(clip.captions)))]
    aes, flow, camera = rng.random(3) < (d.aesthetic_scores, d.scores, d.scores)
    return text + world.score_suffix(clip.scene, aes, flow, camera)


def flow_times(
    d: FlowRecipe,
    rng: np.random.Generator,
    B: int,
    T: int,
    height: int,
    width: int,
    between: tuple[int, int] | None = None,
) -> np.ndarray:
    """Stratified times [B], 0 … 1000: logit-normal or uniform, transformed for the size and length; or uniform between
    two times.
    """
    even = ((rng.permutation(B) + rng.random(B)) / B).clip(1e-4, 1 - 1e-4)
    if between is not None:
        return (between[0] + (between[1] - between[0]) * even).astype(np.float32)
    normal = np.array([NormalDist().inv_cdf(value) for value in even])
    t = np.where(rng.random(B) < d.uniform_times, even, 1 / (1 + np.exp(-normal)))
    r = math.sqrt(height * width) / d.base_size * (math.sqrt(T) if T > 1 else 1)
    return (1000 * r * t / (1 + (r - 1) * t)).astype(np.float32)
