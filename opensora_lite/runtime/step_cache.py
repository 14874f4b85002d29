"""Step caching: skip the denoiser while its input hardly changes.

Source: TeaCache, arXiv:2411.19108. The indicator is the relative L1 change of the modulated input of the first block.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class CachedState:
    """A denoiser's state, and its last output with the input that it belongs to."""

    inner: Any
    output: Any = None
    x_mask: Any = None
    indicator: Any = None  # of the last step
    change: float = 0.0  # summed over the steps since `output` was computed

    def first(self, B: int) -> "CachedState":
        """As in `stdit2.State`; with a cache of its own."""
        return CachedState(self.inner.first(B))


class StepCache:
    """A denoiser that returns its previous output until the accumulated change of its input exceeds `threshold`.

    denoiser: STDiT2, or a wrapper with the same methods. threshold: 0 computes every step; 0.1 to 0.3 skips many. The
    video differs from the one without a cache. A step in which a frame joins the denoising is always computed.
    """

    def __init__(self, denoiser, threshold: float):
        self.denoiser, self.threshold = denoiser, threshold
        self.num_model_calls = 0

    @property
    def config(self):
        """The configuration of the wrapped denoiser."""
        return self.denoiser.config

    @property
    def null_caption(self):
        """The wrapped denoiser's embedding of the empty caption, [L_max, caption_channels]."""
        return self.denoiser.null_caption

    def precompute(self, cond) -> CachedState:
        """As in STDiT2."""
        return CachedState(self.denoiser.precompute(cond))

    def modulated_input(self, x, t, state: CachedState):
        """As in STDiT2."""
        return self.denoiser.modulated_input(x, t, state.inner)

    def denoise(self, x, t, state: CachedState, x_mask=None):
        """As in STDiT2, or the previous output."""
        indicator = self.modulated_input(x, t, state)
        if not self.can_reuse(state, indicator, x_mask):
            state.output, state.change = self.denoiser.denoise(x, t, state.inner, x_mask), 0.0
            self.num_model_calls += 1
        state.indicator, state.x_mask = indicator, x_mask
        return state.output

    def can_reuse(self, state: CachedState, indicator, x_mask) -> bool:
        """Whether the output in `state` still serves; adds this step's change to `state.change`."""
        if state.output is None or (x_mask is None) != (state.x_mask is None):
            return False
        if x_mask is not None and not bool((x_mask == state.x_mask).all()):
            return False
        state.change += float((indicator - state.indicator).abs().mean() / state.indicator.abs().mean())
        return state.change < self.threshold
