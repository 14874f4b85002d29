"""From noise to a video: three ways along the same path, with the same schedule, guidance and frame masks."""

from opensora_lite.samplers.ddim import DDIM
from opensora_lite.samplers.dpm_solver import DPMSolver
from opensora_lite.samplers.guidance import CFG, Prediction
from opensora_lite.samplers.iddpm import IDDPM
from opensora_lite.samplers.loop import NoiseSource, Sampler, Step
from opensora_lite.schedule import Schedule, space_timesteps

SAMPLERS = {"iddpm": IDDPM, "ddim": DDIM, "dpm-solver": DPMSolver}

__all__ = [
    "CFG",
    "DDIM",
    "IDDPM",
    "SAMPLERS",
    "DPMSolver",
    "NoiseSource",
    "Prediction",
    "Sampler",
    "Schedule",
    "Step",
    "space_timesteps",
]
