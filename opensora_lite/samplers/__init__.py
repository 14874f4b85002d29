"""Samplers: three solvers of the same reverse process, with shared schedule, guidance and frame masks."""

from opensora_lite.samplers.ddim import DDIM
from opensora_lite.samplers.dpm_solver import DPMSolver
from opensora_lite.samplers.guidance import CFG, Prediction
from opensora_lite.samplers.iddpm import IDDPM
from opensora_lite.samplers.loop import NoiseSource, Sampler, Step

SAMPLERS = {"iddpm": IDDPM, "ddim": DDIM, "dpm-solver": DPMSolver}

__all__ = ["CFG", "DDIM", "IDDPM", "SAMPLERS", "DPMSolver", "NoiseSource", "Prediction", "Sampler", "Step"]
