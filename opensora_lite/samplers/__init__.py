"""Samplers: three solvers of the reverse process of Open-Sora 1.1, two of the rectified flow of 1.2."""

from opensora_lite.samplers.ddim import DDIM
from opensora_lite.samplers.dpm_solver import DPMSolver
from opensora_lite.samplers.guidance import CFG, Prediction
from opensora_lite.samplers.iddpm import IDDPM
from opensora_lite.samplers.loop import NoiseSource, Sampler, Step
from opensora_lite.samplers.rectified_flow import Heun, RectifiedFlow

SAMPLERS = {"iddpm": IDDPM, "ddim": DDIM, "dpm-solver": DPMSolver}
FLOW_SAMPLERS = {"rectified-flow": RectifiedFlow, "heun": Heun}

__all__ = [
    "CFG",
    "DDIM",
    "FLOW_SAMPLERS",
    "IDDPM",
    "SAMPLERS",
    "DPMSolver",
    "Heun",
    "NoiseSource",
    "Prediction",
    "RectifiedFlow",
    "Sampler",
    "Step",
]
