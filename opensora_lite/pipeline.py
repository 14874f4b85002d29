"""The whole way: a prompt, references and a mask strategy -> a Video.

Two halves, so that nothing is loaded for a request that cannot be met: `plan` turns what a person asked for into
checked `Job`s without a model; `OpenSora.generate` makes them.
"""

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora_lite.device import give_back_memory, resolve_dtype, set_device
from opensora_lite.errors import (
    CheckpointError,
    NeedsMemory,
    OpenSoraError,
    PromptError,
)
from opensora_lite.io.checkpoints import open_checkpoint, read_config
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import (
    PIXELS_PER_LATENT,
    Job,
    References,
    Settings,
    captions_of,
    model_defaults,
    model_folder,
    plan,
)
from opensora_lite.video import Video, read_reference

if TYPE_CHECKING:  # these import paddle
    import paddle

    from opensora_lite.runtime.engine import Engine
    from opensora_lite.runtime.memory import MemoryEstimate
    from opensora_lite.samplers import Step
    from opensora_lite.stdit2 import STDiT2, STDiT2Config
    from opensora_lite.text import TextEmbeddings, TextEncoder
    from opensora_lite.trace import Trace
    from opensora_lite.vae import FrameVAE

IMAGE_FPS = 120  # as released: what the model is told of a video of one frame
COMPILED_TOKENS = 30 * 16 * 16  # tokens, of all steps and videos, from which compiling pays: the small model's 30 steps
COMPILED_VALUES = 200_000_000  # of STDiT2, up to which it happens by itself: what that takes was measured up to there
LOADING = ("the weights", "close other programs, or load them where there is more")  # where memory ends

# ---------------------------------------------------------------------------------------------------------------------
#   The pipeline
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where a run stands; `on_step` gets one after every denoising step."""

    jobs: tuple[Job, ...]  # the videos of this batch
    first: int  # index of the first of them among all jobs
    total: int  # number of all jobs
    loop: int  # 0 … loops - 1
    step: "Step"  # latents, predicted x_0, ε
    steps: int  # steps of one loop
    seconds: float  # since the run began


class OpenSora:
    """Open-Sora 1.1: a text encoder, a video transformer and a VAE.

    stdit: STDiT2. text: TextEncoder, or TextEmbeddings in its place. vae: FrameVAE. settings: the defaults of a call.
    Raises CheckpointError where the three do not belong together.
    """

    def __init__(
        self,
        stdit: "STDiT2",
        text: "TextEncoder | TextEmbeddings",
        vae: "FrameVAE",
        settings: Settings = Settings(),
    ):
        check_together(stdit.config, text.width, vae)
        self.stdit, self.text, self.vae, self.settings = stdit, text, vae, settings
        self.engine: Engine | None = None  # what `compile` made
        self._own_engine: Engine | None = None  # what a long request made by itself

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        stdit: str | Path | None = None,
        t5: str | Path | None = None,
        vae: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        micro_batch_size: int | None = None,
        sequential: bool = False,
        text_embeddings: "str | Path | TextEmbeddings | None" = None,
    ) -> "OpenSora":
        """Load a model: "tiny" (the default), a folder with stdit/, t5/ and vae/, or three folders or files by name.

        stdit, t5, vae: paths of the released weights (OpenSora-STDiT-v2-stage3, t5-v1_1-xxl, sd-vae-ft-ema), each a
        folder with config.json and safetensors. device: "cpu", "gpu", "gpu:1"; None: a GPU where there is one.
        dtype: "fp32", "fp16", "bf16"; None: fp32 on a CPU, fp16 on a GPU. micro_batch_size: frames per VAE
        pass; None: 16, or as many as fit into the memory. sequential: T5 and STDiT2 are never in memory together
        (`SequentialOpenSora`). text_embeddings: what `encode_text` gave, or the file it was saved to; T5 is not needed
        then, and only these prompts can be asked for.
        Raises CheckpointError, DeviceError and OutOfMemoryError.
        """
        parts = {"stdit": stdit, "t5": t5, "vae": vae}
        if text_embeddings is not None:
            del parts["t5"]
            if t5 is not None or sequential:
                raise OpenSoraError("with text_embeddings no T5 is loaded: leave out t5 and sequential")
        lacking = [name for name, path in parts.items() if path is None]
        if model is not None and not lacking:
            raise CheckpointError(f'model "{model}" and all of its parts were given; give one or the other')
        if model is None and 0 < len(lacking) < len(parts):
            raise CheckpointError(
                f"a model has three parts; {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not given"
            )
        paths = {name: path for name, path in parts.items() if path is not None}
        settings = Settings()
        if lacking:
            folder = model_folder("tiny" if model is None else model)
            paths |= {name: folder / name for name in lacking}
            settings = model_defaults(folder)[0]
        whole = isinstance(micro_batch_size, Integral) and not isinstance(micro_batch_size, bool)
        if micro_batch_size is not None and not (whole and micro_batch_size >= 1):
            raise OpenSoraError(f"micro_batch_size must be a whole number of at least 1, not {micro_batch_size!r}")
        dtype = resolve_dtype(dtype, set_device(device))
        for path in paths.values():  # what is missing in the last one is better known before the first is loaded
            read_config(path)
            if Path(path).suffix != ".pdparams":  # a pickle is only opened once
                open_checkpoint(path)

        from opensora_lite.stdit2 import STDiT2Config, load_stdit
        from opensora_lite.text import TextEmbeddings, load_text_encoder
        from opensora_lite.vae import load_vae

        config = STDiT2Config.from_dict(read_config(paths["stdit"]))
        make_stdit = functools.partial(load_stdit, paths["stdit"], dtype)
        make_text = functools.partial(load_text_encoder, paths.get("t5", ""), config.model_max_length, dtype)
        make_vae = functools.partial(load_vae, paths["vae"], dtype, micro_batch_size)
        with NeedsMemory(*LOADING):
            if text_embeddings is not None:
                given = text_embeddings
                text = given if isinstance(given, TextEmbeddings) else TextEmbeddings.read(given)
                if text.max_length != config.model_max_length:
                    raise CheckpointError(
                        f"the text embeddings are of captions of up to {text.max_length} tokens,"
                        f" and this STDiT2 reads {config.model_max_length}: encode them for this model"
                    )
                return cls(make_stdit(), text, make_vae(), settings)
            if sequential:
                frame_vae = make_vae()
                check_together(config, read_config(paths["t5"]).get("d_model", config.caption_channels), frame_vae)
                return SequentialOpenSora(make_stdit, make_text, frame_vae, settings)
            return cls(make_stdit(), make_text(), make_vae(), settings)

    def encode_text(self, prompts: str | Sequence[str], loops: int = 1) -> "TextEmbeddings":
        """What T5 says of `prompts`: to be saved (`save`), and given to `from_pretrained` in place of T5.

        loops: of the videos that will be made of them, for prompts with a |0| schedule. Raises PromptError.
        """
        return self.text.record(captions_of([prompts] if isinstance(prompts, str) else prompts, loops))

    def compile(self, precision: str = "auto") -> "OpenSora":
        """Compile the denoiser and the VAE's decoder, for each size when it first comes; gives the pipeline itself.

        precision: "fp32", "bf16", or "auto" for bf16 where the processor computes with it (`engine.Engine`). Without
        this call, fp32 is compiled where that pays for a single request: on a CPU, from COMPILED_TOKENS on, up to
        COMPILED_VALUES, and where the free memory suffices. Where a trace records attention, or layers have hooks,
        nothing is compiled.
        Raises DeviceError for a precision that there is not.
        """
        from opensora_lite.runtime.engine import Engine

        self.engine = Engine(self.stdit, self.vae, precision)
        return self

    def _engine(self, jobs: Sequence[Job], settings: Settings, trace: "Trace | None") -> "Engine | None":
        """The compiled models, where they should make these jobs."""
        hooks = (part._forward_pre_hooks or part._forward_post_hooks for part in self.stdit.sublayers(True))
        if (trace is not None and trace.attention) or any(hooks):  # which a compiled model would not call
            return None
        engine = self.engine
        if engine is None and self._pays(jobs, settings):
            from opensora_lite.runtime.engine import Engine
            from opensora_lite.runtime.memory import available_memory

            free = available_memory()
            if free is None or self._memory(settings)(compiled="fp32").work <= free:
                engine = self._own_engine = self._own_engine or Engine(self.stdit, self.vae, "fp32")
        if engine is not None:
            engine.refresh()
        return engine

    def _pays(self, jobs: Sequence[Job], settings: Settings) -> bool:
        """Whether compiling takes no more time than it spares.

        It only rests on what is asked for: otherwise a seed would give other roundings the second time.
        """
        from opensora_lite.runtime.engine import available

        tokens = settings.num_frames * math.prod(settings.image_size) // (2 * PIXELS_PER_LATENT) ** 2
        if sum(parameter.size for parameter in self.stdit.parameters()) > COMPILED_VALUES:
            return False
        return available() and tokens * settings.num_sampling_steps * settings.loops * len(jobs) >= COMPILED_TOKENS

    def __repr__(self) -> str:
        c = self.stdit.config
        return f"OpenSora(STDiT2 with hidden size {c.hidden_size}, depth {c.depth}; defaults {self.settings})"

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        references: References | Sequence[References] = None,
        mask_strategy: str | MaskStrategy | Sequence[str | MaskStrategy | None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        trace: "Trace | None" = None,
        **settings: Any,
    ) -> Video | list[Video]:
        """A Video for a prompt; a list of Videos for a list of prompts, or where num_sample is more than 1.

        references: of one prompt, a path or a list of paths, Videos or arrays; of several prompts, a list of those.
        mask_strategy: text such as "0;0,1,0,-1,1" or a MaskStrategy; of several prompts, a list.
        on_step: called with a Progress after every denoising step. trace: a Trace, which then holds what happened.
        settings: fields of `Settings`, which replace the defaults of the model. Raises OpenSoraError.
        """
        unknown = sorted(set(settings) - {f.name for f in fields(Settings)})
        if unknown:
            raise TypeError(
                f"unknown setting {', '.join(unknown)}; known are {', '.join(f.name for f in fields(Settings))}"
            )
        chosen = replace(self.settings, **settings)
        single = isinstance(prompt, str)
        if not single and not isinstance(prompt, Sequence):
            raise PromptError(f"a prompt is text, or a list of texts, not {type(prompt).__name__}")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        given: Any = [references] if single else references
        strategies: Any = [mask_strategy] if single else mask_strategy
        jobs = plan(prompts, given, strategies, chosen)
        videos = [video for _, video in self.generate(jobs, chosen, on_step, trace)]
        return videos[0] if single and chosen.num_sample == 1 else videos

    def generate(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        on_step: Callable[[Progress], None] | None = None,
        trace: "Trace | None" = None,
    ) -> Iterator[tuple[Job, Video]]:
        """Make the videos of `jobs`, batch by batch, and yield each as soon as it is done.

        on_step: called with a Progress after every denoising step. trace: a Trace of the one video that is made.
        Raises OpenSoraError where it cannot follow, DeviceError where the work would take more memory than there is,
        OutOfMemoryError where the memory ends all the same; the pipeline is then as before.
        """
        self._check_captions(jobs)
        engine = self._engine(jobs, settings, trace)
        self._check_memory(settings, engine)
        if trace is not None:
            if len(jobs) != 1:
                raise OpenSoraError(f"a trace follows one video, and {len(jobs)} were asked for; make them one by one")
            trace.modules(self.stdit)
            trace.clear()
        start = time.perf_counter()
        for first in range(0, len(jobs), settings.batch_size):
            batch = tuple(jobs[first : first + settings.batch_size])

            def report(loop: int, step: "Step", batch: tuple[Job, ...] = batch, first: int = first) -> None:
                if on_step:
                    seconds = time.perf_counter() - start
                    on_step(Progress(batch, first, len(jobs), loop, step, settings.num_sampling_steps, seconds))

            with NeedsMemory(*_work(len(batch), settings)):
                frames = self._make(batch, settings, report, trace, engine)
            for job, pixels in zip(batch, frames, strict=True):
                yield job, Video(pixels, settings.video_fps, prompt=job.prompt)

    def _check_captions(self, jobs: Sequence[Job]) -> None:
        """Raise PromptError where text embeddings were given, and not those of these jobs."""
        from opensora_lite.text import TextEmbeddings

        if isinstance(self.text, TextEmbeddings):
            self.text.check(caption for job in jobs for caption in job.captions)

    def _check_memory(self, settings: Settings, engine: "Engine | None") -> None:
        """Raise DeviceError where the memory that is left does not suffice for what the models work with."""
        import paddle

        from opensora_lite.runtime.memory import refuse_what_cannot_fit

        precision = engine and engine.precision
        estimate = functools.partial(self._memory(settings), compiled=precision)
        refuse_what_cannot_fit(settings, estimate, paddle.get_device(), loaded=True)

    def _memory(self, settings: Settings) -> "Callable[..., MemoryEstimate]":
        """`estimate_memory` for the loaded models, called with what is to be changed of `settings`."""
        import paddle

        from opensora_lite.runtime.memory import for_settings

        dtype = str(self.stdit.x_embedder.proj.weight.dtype).removeprefix("paddle.")
        return for_settings(
            settings,
            stdit=vars(self.stdit.config),
            vae=self.vae.model.config,
            text_encoder=False,
            dtype=dtype,
            device=paddle.get_device(),
            micro_batch_size=self.vae.micro_batch_size or 1,  # or as many as fit
        )

    def _make(
        self,
        batch: tuple[Job, ...],
        settings: Settings,
        report: "Callable[[int, Step], None]",
        trace: "Trace | None",
        engine: "Engine | None",
    ) -> np.ndarray:
        """uint8 frames [B, T, height, width, 3] of one batch."""
        import paddle

        from opensora_lite.samplers import CFG, SAMPLERS, NoiseSource

        (height, width), T = settings.image_size, settings.num_frames
        latent_shape = (self.vae.channels, T, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        sizes = dict(num_frames=T, height=height, width=width, ar=height / width)
        sampler = SAMPLERS[settings.sampler](settings.num_sampling_steps)
        noise = NoiseSource([job.seed for job in batch], latent_shape)
        references = [[self.encode(read_reference(r, height, width)) for r in job.references] for job in batch]

        clips = []
        for loop in range(settings.loops):
            # 1. the caption of this loop
            y, y_mask = self.text.encode([job.captions[loop] for job in batch])
            # 2. noise, with the references in their frames
            z = noise().numpy()
            pairs = [job.strategy.apply(z[i], references[i], loop) for i, job in enumerate(batch)]
            z, frame_mask = (np.stack(column) for column in zip(*pairs, strict=True))
            # 3. from noise to latents
            fps = IMAGE_FPS if T == 1 else settings.fps
            predict = CFG(
                engine or self.stdit,
                y,
                y_mask,
                settings.guidance_scale,
                settings.cfg_channel,
                settings.guidance_interval,
                settings.cache_threshold,
                fps=fps,
                **sizes,
            )
            mask = None if (frame_mask == 1).all() else frame_mask
            with self._watched(trace, batch[0].captions[loop], frame_mask[0], z.shape) as record:
                for step in sampler.sample(predict, paddle.to_tensor(z), mask, noise):
                    record(step)
                    report(loop, step)
            # 4. from latents to pixels
            give_back_memory()  # that the transformer has worked with
            clip = (engine or self.vae).decode(step.sample)
            clips.append(to_uint8(clip))
            # 5. what the next loop may take over
            if loop + 1 < settings.loops:
                latents = self.vae.encode(clip).numpy()
                references = [[*given, latents[i]] for i, given in enumerate(references)]
        return np.concatenate([clips[0], *(clip[:, settings.condition_frames :] for clip in clips[1:])], axis=1)

    def _watched(
        self, trace: "Trace | None", caption: str, edit_ratios: np.ndarray, latent_shape: tuple[int, ...]
    ) -> "contextlib.AbstractContextManager[Callable[[Step], None]]":
        """A context in which `trace`, if there is one, is told of every step."""
        if trace is None:
            return contextlib.nullcontext(lambda step: None)
        from opensora_lite.trace import TraceLoop

        patches = zip(latent_shape[3:], self.stdit.config.patch_size[1:], strict=True)
        rows, columns = (math.ceil(n / p) for n, p in patches)
        loop = TraceLoop(caption, self.text.pieces(caption), edit_ratios)
        return trace.watching(self.stdit, loop, (rows, columns))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Latents float32 [C, T, height/8, width/8] of frames uint8 [T, height, width, 3].

        The mean of the VAE's posterior: a given frame is then the same every time. (The release draws a sample.)
        """
        return self.vae.encode_frames(frames)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Frames uint8 [T, height, width, 3] of latents float32 [C, T, height/8, width/8]."""
        import paddle

        return to_uint8(self.vae.decode(paddle.to_tensor(latents[None])))[0]


def _work(videos: int, settings: Settings) -> tuple[str, str]:
    """What a batch is, and what would make it smaller."""
    height, width = settings.image_size
    work = f"{videos} video(s) of {settings.num_frames} frames of {height}×{width} pixels at once"
    smaller = ["batch_size"] * (videos > 1) + ["num_frames"] * (settings.num_frames > 1) + ["image_size"]
    return work, f"make {', '.join(smaller)} or micro_batch_size smaller"


class SequentialOpenSora(OpenSora):
    """An OpenSora whose T5 and STDiT2 are never in memory together: each frees the other when it is asked for.

    For a request, T5 reads all captions and is freed before STDiT2 is loaded; for the next one, STDiT2 is freed first.
    The VAE stays: it is small, and every batch needs it. So does STDiT2 while the VAE decodes, because the next loop or
    batch needs it again; what decoding takes is set by `micro_batch_size`. load_stdit, load_text: load the two.
    vae, settings: as of OpenSora.
    """

    def __init__(
        self,
        load_stdit: "Callable[[], STDiT2]",
        load_text: "Callable[[], TextEncoder]",
        vae: "FrameVAE",
        settings: Settings = Settings(),
    ):
        self._loaders: dict[str, Callable[[], Any]] = {"stdit": load_stdit, "text": load_text}
        self._loaded: dict[str, Any] = {}  # at most one of them
        self._embeddings: TextEmbeddings | None = None  # of the request that is being met
        self.vae, self.settings = vae, settings
        self.engine = self._own_engine = None

    def _only(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded.clear()
            self.engine = self._own_engine = None  # which hold STDiT2 as well
            gc.collect()  # a model is full of circles
            give_back_memory()
            with NeedsMemory(*LOADING):
                self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    @property
    def stdit(self) -> "STDiT2":  # type: ignore[override]  # computed here, and set there
        """STDiT2, loaded if need be."""
        return self._only("stdit")

    @property
    def text(self) -> "TextEncoder | TextEmbeddings":  # type: ignore[override]
        """T5, loaded if need be; while a request is met, what it said of its captions."""
        return self._embeddings or self._only("text")

    def __repr__(self) -> str:
        return f"SequentialOpenSora(in memory: {', '.join([*self._loaded, 'vae'])}; defaults {self.settings})"

    def generate(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        on_step: Callable[[Progress], None] | None = None,
        trace: "Trace | None" = None,
    ) -> Iterator[tuple[Job, Video]]:
        """As `OpenSora.generate` with `jobs`, `settings`, `on_step` and `trace`, once T5 has read all captions."""
        precision = self.engine and self.engine.precision
        self._embeddings = self.text.record(caption for job in jobs for caption in job.captions)
        try:
            if precision:  # what `compile` made has gone with STDiT2
                self.compile(precision)
            yield from super().generate(jobs, settings, on_step, trace)
        finally:
            self._embeddings = None


def check_together(stdit: "STDiT2Config", width: int, vae: "FrameVAE") -> None:
    """Raise CheckpointError where `stdit`, captions of vectors of `width` numbers and `vae` do not fit together."""
    if stdit.caption_channels != width:
        raise CheckpointError(
            f"the models do not belong together: STDiT2 reads captions of {stdit.caption_channels} channels,"
            f" the T5 encoder writes {width}"
        )
    if stdit.in_channels != vae.channels or vae.downsampling != PIXELS_PER_LATENT:
        raise CheckpointError(
            f"the VAE makes {vae.channels} channels at 1/{vae.downsampling} of the size;"
            f" STDiT2 needs {stdit.in_channels} at 1/{PIXELS_PER_LATENT}"
        )


def to_uint8(video: "paddle.Tensor") -> np.ndarray:
    """Frames uint8 [B, T, H, W, 3] of a video tensor [B, 3, T, H, W] with values -1 … 1."""
    pixels = (video.clip(-1, 1) + 1) * 127.5 + 0.5
    return pixels.transpose([0, 2, 3, 4, 1]).numpy().clip(0, 255).astype(np.uint8)
