"""Records what happens while a video is generated: latents, predictions, guidance and attention weights.

    trace = Trace(attention=["blocks.3.cross_attn"])
    pipe("a red car driving right on the ocean at sunset", trace=trace)
    trace[0].x_0                                  # the clean latents that the first step predicts
    trace[-1].attention["blocks.3.cross_attn"]    # [heads, T, rows, columns, L]

Everything is float32 numpy, without the axis B: a trace follows one video. For the meaning of a step's tensors see
`samplers.Step`; attention is that of the conditional half of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import numpy as np

from opensora_lite.errors import OpenSoraError
from opensora_lite.latent_time import Window
from opensora_lite.validation import Items, Texts, Whole, check

if TYPE_CHECKING:  # these import paddle
    from opensora_lite.layers import CrossAttention, SelfAttention
    from opensora_lite.runtime.step_cache import StepCache
    from opensora_lite.samplers import Step
    from opensora_lite.stdit2 import STDiT2


@dataclass(frozen=True)
class TraceStep:
    """One denoising step of one video; latents float32 [C, T, H, W], None if the trace was made without latents.

    T counts latent frames. Of Open-Sora 1.1, whose model predicts noise, the fields epsilon and eps_… are set; of 1.2,
    whose model predicts the velocity v = x_0 − ε, velocity and v_….
    """

    loop: int  # 0 …
    number: int  # 1 … steps
    timestep: float  # as in `samplers.Step`
    active: np.ndarray  # bool [T], frames that this step changed
    reused: bool = False  # whether the step cache returned the output (and so the attention) of an earlier step
    x_t: np.ndarray | None = None  # input
    x_0: np.ndarray | None = None  # x̂_0, the clean latent that the prediction implies
    epsilon: np.ndarray | None = None  # predicted noise, guided
    eps_cond: np.ndarray | None = None  # predicted noise with the caption
    eps_uncond: np.ndarray | None = None  # predicted noise with the null caption; None without guidance
    velocity: np.ndarray | None = None  # predicted velocity, guided
    v_cond: np.ndarray | None = None  # predicted velocity with the caption
    v_uncond: np.ndarray | None = None  # predicted velocity with the null caption; None without guidance
    sample: np.ndarray | None = None  # output
    attention: dict[str, np.ndarray] = field(default_factory=dict)  # module name -> weights; shapes in `Trace`


@dataclass(frozen=True)
class TraceLoop:
    """The conditions of one loop."""

    caption: str
    tokens: list[str]  # L pieces, the end mark last
    edit_ratios: np.ndarray  # float32 [T]: 1 generated, 0 conditioning, between: edited
    predicts: Literal["noise", "velocity"] = "noise"  # what the model predicts
    windows: tuple[Window, ...] = ()  # the frames that each latent frame holds; empty: one each

    @property
    def has_latent_frames(self) -> bool:
        """Whether the T frames are latent frames of a video VAE."""
        return any(window.first < window.last or window.zeros_before for window in self.windows)


class Trace(Sequence[TraceStep]):
    """The steps of one video, in order, all loops one after the other.

    latents: whether x_t, x_0, ε … are recorded. attention: names of attention modules to record, of STDiT2
    "blocks.0.attn" (spatial: [heads, T, S, S]), "blocks.0.attn_temp" (temporal: [heads, S, T, T]) or
    "blocks.0.cross_attn" (to the caption: [heads, T, h, w, L], h and w the rows and columns of tokens); of STDiT3
    "spatial_blocks.0.attn", "temporal_blocks.0.attn", and the cross_attn of both. The last axis
    is that of the keys and sums to 1. steps: numbers of the steps to record, from 1; None: all.
    """

    def __init__(self, latents: bool = True, attention: Sequence[str] = (), steps: Sequence[int] | None = None):
        self.latents, self.attention = latents, check(Texts, attention, "attention")
        self.chosen = None if steps is None else set(check(Annotated[tuple[Whole, ...], Items], steps, "steps"))
        self.loops: list[TraceLoop] = []
        self._steps: list[TraceStep] = []

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> TraceStep: ...
    @overload
    def __getitem__(self, index: slice) -> list[TraceStep]: ...
    def __getitem__(self, index: int | slice) -> TraceStep | list[TraceStep]:
        return self._steps[index]

    def __repr__(self) -> str:
        steps, loops = len(self), len(self.loops)
        return f"Trace({steps} step{'s' * (steps != 1)} of {loops} loop{'s' * (loops != 1)})"

    def modules(self, stdit: "STDiT2") -> "dict[str, SelfAttention | CrossAttention]":
        """The modules of `stdit` whose attention is recorded, by name. Raises OpenSoraError for an unknown name."""
        from opensora_lite.layers import CrossAttention, SelfAttention

        known = {n: m for n, m in stdit.named_sublayers() if isinstance(m, (SelfAttention, CrossAttention))}
        unknown = [name for name in self.attention if name not in known]
        if unknown:
            raise OpenSoraError(f"the model has no attention {unknown[0]}; it has {', '.join(known)}")
        return {name: known[name] for name in self.attention}

    def clear(self) -> None:
        """Delete what was recorded; every new video does so."""
        self.loops, self._steps = [], []

    @contextmanager
    def recording(
        self, stdit: "STDiT2", loop: TraceLoop, grid: tuple[int, int], cache: "StepCache | None" = None
    ) -> "Iterator[Callable[[Step], None]]":
        """Context in which one loop is sampled; yields a function to call with every Step.

        grid: h, w, rows and columns of tokens. cache: the step cache around `stdit`, if there is one. A step that it
        skips gets the attention of the step whose output it reuses.
        """
        from opensora_lite.layers import CrossAttention, attention_weights

        self.loops.append(loop)
        rows = {"attn": len(loop.edit_ratios), "attn_temp": grid[0] * grid[1], "cross_attn": 1}  # of one video

        def kind(name: str) -> str:  # in STDiT3, all attention of temporal_blocks.0.attn is temporal
            last = name.rpartition(".")[2]
            return "attn_temp" if last == "attn" and name.startswith("temporal") else last

        seen: dict[str, np.ndarray] = {}  # of the last evaluation of the model
        number = 1  # of the step that is being computed
        calls = 0 if cache is None else cache.num_model_calls

        def observe(name: str) -> Callable:
            def hook(module: "SelfAttention | CrossAttention", inputs: tuple) -> None:
                if cache is None and not self._is_recorded(number):
                    return
                if isinstance(module, CrossAttention):
                    x, keys, _, y_mask = inputs
                    weights = attention_weights(module.queries(x), keys, y_mask)
                    weights = weights[..., : len(loop.tokens)]  # without padding
                else:
                    weights = attention_weights(*module.heads(*inputs)[:2])
                weights = weights[: rows[kind(name)]].numpy()  # the conditional half
                if name.endswith("cross_attn"):  # [1, heads, T·h·w, L]
                    seen[name] = weights[0].reshape(module.num_heads, -1, *grid, weights.shape[-1])
                else:  # [T or S, heads, n, n]
                    seen[name] = weights.swapaxes(0, 1)

            return hook

        def record(step: "Step") -> None:
            nonlocal number, calls
            reused = cache is not None and cache.num_model_calls == calls
            number, calls = step.number + 1, 0 if cache is None else cache.num_model_calls
            if self._is_recorded(step.number):
                self._steps.append(self._recorded(step, len(self.loops) - 1, reused, dict(seen)))

        handles = [module.register_forward_pre_hook(observe(name)) for name, module in self.modules(stdit).items()]
        try:
            yield record
        finally:
            for handle in handles:
                handle.remove()

    def _is_recorded(self, number: int) -> bool:
        return self.chosen is None or number in self.chosen

    def _recorded(self, step: "Step", loop: int, reused: bool, attention: dict[str, np.ndarray]) -> TraceStep:
        def array(tensor: Any) -> Any:
            return None if tensor is None else tensor[0].astype("float32").numpy()

        frames = step.x_t.shape[2]
        active = np.ones(frames, bool) if step.active is None else array(step.active).reshape(frames) > 0
        prediction, latents = step.prediction, {}
        if self.latents:
            latents = dict(x_t=array(step.x_t), x_0=array(step.x_0), sample=array(step.sample))
            is_noise = self.loops[loop].predicts == "noise"
            names = ("epsilon", "eps_cond", "eps_uncond") if is_noise else ("velocity", "v_cond", "v_uncond")
            outputs = prediction.output, prediction.cond, prediction.uncond
            latents |= {name: array(output) for name, output in zip(names, outputs, strict=True)}
        return TraceStep(loop, step.number, step.timestep, active, reused, attention=attention, **latents)


@contextmanager
def ablated_heads(stdit: "STDiT2", name: str, heads: Sequence[int]) -> Iterator[None]:
    """Context in which the output of some heads of one attention module is zero.

    name: as in `Trace`. heads: numbers from 0. Raises OpenSoraError for a module or a head that doesn't exist.
    """
    import paddle

    module = Trace(attention=[name]).modules(stdit)[name]
    missing = [head for head in heads if not 0 <= head < module.num_heads]
    if missing:
        raise OpenSoraError(f"{name} has {module.num_heads} heads, 0 to {module.num_heads - 1}, and no {missing[0]}")
    weight = module.proj.weight  # [D in, D out]; the rows of a head are its contribution
    before, size = weight.clone(), weight.shape[0] // module.num_heads
    mask = np.ones(weight.shape[0], np.float32)
    for head in heads:
        mask[head * size : (head + 1) * size] = 0
    try:
        weight.set_value(before * paddle.to_tensor(mask).astype(weight.dtype)[:, None])
        yield
    finally:
        weight.set_value(before)
