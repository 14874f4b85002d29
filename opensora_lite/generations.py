"""Generations of Open-Sora, 1.1 and 1.2: what a request must know of its model, without Paddle."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensora_lite import latent_time
from opensora_lite.errors import CheckpointError
from opensora_lite.masks import start_steps
from opensora_lite.schedule import TRAIN_STEPS, flow_timesteps, timestep_shift

FLOW_SAMPLERS = ("rectified-flow", "heun")


@dataclass(frozen=True)
class Generation:
    """How a model counts time, and how it is sampled. The defaults are those of Open-Sora 1.1.

    samplers: their names, the default first. chunk: frames that the VAE encodes on their own; None: all. factor: frames
    per latent frame. base_size: as in `schedule.timestep_shift`, of models that are sampled by rectified flow.
    """

    name: str = "1.1"
    samplers: tuple[str, ...] = ("iddpm", "ddim", "dpm-solver")
    chunk: int | None = 1
    factor: int = 1
    base_size: int | None = None

    @property
    def is_flow(self) -> bool:
        """Whether the model is sampled by rectified flow, on all channels, and reads scores in captions."""
        return self.base_size is not None

    @property
    def align(self) -> int | None:
        """The latent frames of a chunk, to which the starts of mask segments are aligned; None: they are not."""
        return None if self.factor == 1 or self.chunk is None else self.latent_frames(self.chunk)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip."""
        return latent_time.latent_frames(num_frames, self.chunk, self.factor)

    def windows(self, num_frames: int) -> list[latent_time.Window]:
        """The frames of each latent frame of a clip."""
        return latent_time.windows(num_frames, self.chunk, self.factor)

    def shift(self, num_frames: int, image_size: tuple[int, int]) -> float:
        """The timestep shift of a video, for models that are sampled by rectified flow."""
        assert self.base_size is not None
        return float(timestep_shift(*image_size, num_frames, self.base_size))

    def edits(self, ratio: float, steps: int, shift: float = 1.0) -> bool:
        """Whether a frame of that edit ratio, more than 0, is denoised in a run of `steps` steps at all."""
        if not self.is_flow:
            return bool(start_steps(ratio, steps) > 0)
        return bool(np.float32(ratio) * np.float32(TRAIN_STEPS) >= flow_timesteps(steps, shift)[-1])

    def frames_of(self, latents: Iterable[int], num_frames: int) -> tuple[list[int], list[int]]:
        """The frames of a clip that must be encoded for some of its latent frames, and the latent frames they give.

        Whole chunks, since a latent frame depends on all frames of its chunk; both lists ascend.

        >>> OPEN_SORA_12.frames_of([5], num_frames=20), Generation().frames_of([6, 9], num_frames=20)
        (([17, 18, 19], [5]), ([6, 9], [6, 9]))
        """
        windows = self.windows(num_frames)
        chunks = {windows[latent].chunk for latent in latents}
        frames = {i for w in windows if w.chunk in chunks for i in range(w.chunk_first, w.chunk_last + 1)}
        return sorted(frames), [i for i, window in enumerate(windows) if window.chunk in chunks]


OPEN_SORA_11 = Generation()
OPEN_SORA_12 = Generation("1.2", FLOW_SAMPLERS, latent_time.CHUNK, latent_time.FACTOR, base_size=512)


def generation_of(stdit: Mapping[str, Any], vae: Mapping[str, Any]) -> Generation:
    """The generation of a model. stdit, vae: the content of their config.json. Raises CheckpointError for mixtures."""
    is_flow, is_video_vae = stdit.get("model_type") == "STDiT3", "vae_temporal" in vae
    if is_flow != is_video_vae:
        raise CheckpointError(
            "the models do not belong together: STDiT3 and a video VAE make Open-Sora 1.2, STDiT2 and a VAE for single"
            f" frames 1.1; here are {'STDiT3' if is_flow else 'STDiT2'} and a"
            f" {'video VAE' if is_video_vae else 'VAE for single frames'}"
        )
    if not is_flow:
        return OPEN_SORA_11
    halvings = vae["vae_temporal"].get("temporal_downsample", [False, True, True])
    chunk = vae.get("micro_frame_size", latent_time.CHUNK)
    return Generation("1.2", FLOW_SAMPLERS, chunk, 2 ** sum(halvings), stdit.get("base_size", 512))
