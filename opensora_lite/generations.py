"""Generations of Open-Sora, 1.1 and 1.2: what a request must know of its model, without Paddle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensora_lite.errors import CheckpointError, SizeError
from opensora_lite.latent_time import CHUNK, FACTOR, LatentTime
from opensora_lite.masks import start_steps
from opensora_lite.schedule import TRAIN_STEPS, flow_timesteps, timestep_shift

FLOW_SAMPLERS = ("rectified-flow", "heun")


@dataclass(frozen=True)
class Generation(LatentTime):
    """How a model counts time, and how it is sampled. The defaults are those of Open-Sora 1.1.

    chunk, factor: as in `LatentTime`. samplers: their names, the default first. base_size: as in
    `schedule.timestep_shift`, of models that are sampled by rectified flow.
    """

    name: str = "1.1"
    samplers: tuple[str, ...] = ("iddpm", "ddim", "dpm-solver")
    base_size: int | None = None

    @property
    def is_flow(self) -> bool:
        """Whether the model is sampled by rectified flow, on all channels, and reads scores in captions."""
        return self.base_size is not None

    def check_loops(self, num_frames: int, condition_frames: int) -> None:
        """Raise SizeError where loops of these lengths can't be joined: in 1.2, they share whole chunks."""
        for name, frames in (("num_frames", num_frames), ("condition_frames", condition_frames)):
            if self.align is not None and frames % (self.chunk or 1):
                raise SizeError(
                    f"{name} is {frames}, but the VAE of this model encodes {self.chunk} frames at a time, and a loop"
                    f" takes over whole ones: give a multiple of {self.chunk}"
                )

    def usual_condition_frames(self, num_frames: int) -> int:
        """Frames that a loop takes over where nothing is said: a quarter; in 1.2, a chunk."""
        return max(num_frames // 4, 1) if self.align is None else self.chunk or num_frames

    def shift(self, num_frames: int, image_size: tuple[int, int]) -> float:
        """The timestep shift of a video, for models that are sampled by rectified flow."""
        assert self.base_size is not None
        return float(timestep_shift(*image_size, num_frames, self.base_size))

    def edits(self, ratio: float, steps: int, shift: float = 1.0) -> bool:
        """Whether a frame of that edit ratio, more than 0, is denoised in a run of `steps` steps at all."""
        if not self.is_flow:
            return bool(start_steps(ratio, steps) > 0)
        return bool(np.float32(ratio) * np.float32(TRAIN_STEPS) >= flow_timesteps(steps, shift)[-1])


OPEN_SORA_11 = Generation()
OPEN_SORA_12 = Generation(CHUNK, FACTOR, "1.2", FLOW_SAMPLERS, base_size=512)


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
    chunk = vae.get("micro_frame_size", CHUNK)
    return Generation(chunk, 2 ** sum(halvings), "1.2", FLOW_SAMPLERS, stdit.get("base_size", 512))
