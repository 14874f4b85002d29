"""Traces of noise, and a decoder in place of a model."""

import numpy as np

from opensora_lite import Trace
from opensora_lite.trace import TraceLoop, TraceStep


def made_trace(steps=6, frames=5, size=(4, 6), loops=1, guided=True, ratios=None, seed=0, guidance=(0, 999)) -> Trace:
    """A Trace filled with noise. guided: False for guidance_scale=1. guidance: the guidance_interval."""
    trace, rng = Trace(), np.random.default_rng(seed)
    ratios = np.ones(frames, np.float32) if ratios is None else np.float32(ratios)
    for loop in range(loops):
        trace.loops.append(TraceLoop(f"caption {loop}", ["caption", "</s>"], ratios))
        for number, timestep in enumerate(np.linspace(999, 0, steps).round(), 1):
            both = guided and bool(guidance[0] <= timestep <= guidance[1])
            names = ["x_t", "x_0", "epsilon", "eps_cond", *["eps_uncond"] * both, "sample"]
            latents = {name: rng.standard_normal((4, frames, *size), np.float32) for name in names}
            active = ratios > 1 - number / steps
            trace._steps.append(TraceStep(loop, number, int(timestep), active, **latents))
    return trace


class Decoder:
    """Replaces a model: pixels that identify their latents, and a list of the latents decoded."""

    def __init__(self):
        self.asked, self.broken = [], False

    def decode(self, latents):
        if self.broken:
            raise MemoryError("no room")
        self.asked.append(latents)
        grey = np.uint8(np.abs(latents[0]) * 50 % 256)  # [T, h, w]
        return np.repeat(grey.repeat(8, 1).repeat(8, 2)[..., None], 3, -1)
