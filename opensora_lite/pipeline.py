"""OpenSora: from a planned request to videos, in five steps (`OpenSora._make`)."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import InstanceOf

from opensora_lite.device import give_back_memory, resolve_dtype, set_device
from opensora_lite.errors import (
    CheckpointError,
    DeviceError,
    MediaError,
    NeedsMemory,
    OpenSoraError,
    PromptError,
    SizeError,
    note,
)
from opensora_lite.io.checkpoints import find_part, open_checkpoint, part_of, read_config
from opensora_lite.masks import MaskStrategy, apply_frames
from opensora_lite.provenance import Run, UsedPart, checksum, record, used_part
from opensora_lite.request import (
    IMAGE_FPS,
    PIXELS_PER_LATENT,
    Job,
    ModelSpec,
    References,
    Settings,
    captions_of,
    model_defaults,
    model_folder,
    model_spec,
    plan,
    released_settings,
)
from opensora_lite.runtime import memory
from opensora_lite.runtime.offload import LOADING, Offloaded, Resident
from opensora_lite.trace import Trace
from opensora_lite.validation import Array, Count, Items, Place, Texts, check
from opensora_lite.video import Video

if TYPE_CHECKING:  # these import paddle
    import paddle

    from opensora_lite.layers import TransformerConfig
    from opensora_lite.runtime.engine import Engine
    from opensora_lite.samplers import Step
    from opensora_lite.stdit2 import STDiT2
    from opensora_lite.stdit3 import STDiT3
    from opensora_lite.text import TextEmbeddings, TextEncoder
    from opensora_lite.vae import FrameVAE
    from opensora_lite.video_vae import VideoVAE

# tokens × steps from which compiling pays off, even the first time: 10 steps of 16×64×64
COMPILED_TOKENS = 10 * 16 * 16
# A note says where the VAE comes less near to a reference, in dB. The small VAE gives pictures of LiteWorld with 25 dB
# or more and photographs with 20; sd-vae-ft-ema gives photographs (COCO, 256×256) with 23.8 ± 3.9, by its model card.
POOR_RECONSTRUCTION = 21
Jobs = Annotated[tuple[InstanceOf[Job], ...], Items]
AnySettings, AnyTrace = InstanceOf[Settings], InstanceOf[Trace]
COMPILED_PARAMETERS = 200_000_000  # of STDiT2: larger ones are compiled only on request, for memory's sake


@dataclass(frozen=True)
class Progress:
    """Where a run stands; `on_step` gets one after every denoising step."""

    jobs: tuple[Job, ...]  # the videos of this batch
    first: int  # index of the first of them among all jobs
    total: int  # number of all jobs
    loop: int  # 0 … loops - 1
    step: "Step"
    steps: int  # of one loop
    seconds: float  # since the run began


class OpenSora:
    """A T5 text encoder, a video transformer and a VAE: of Open-Sora 1.1 (STDiT2 and a frame-wise VAE) or 1.2 (STDiT3
    and a video VAE).

    models: a `runtime.offload.Resident` or `Offloaded`; `from_pretrained` makes them. settings: defaults of a call.
    spec: their generation, and what notes about captions are based on.
    """

    def __init__(self, models: Resident | Offloaded, settings: Settings = Settings(), spec: ModelSpec = ModelSpec()):
        self.models, self.settings, self.spec = models, settings, spec
        self._precision: str | None = None  # the argument of `compile`, if it was called
        self._may_compile = True
        self._parts: dict[str, UsedPart] | None = None  # the files that the models were loaded from
        self._checksum: int | None = None  # of the parameters as they were loaded

    @property
    def stdit(self) -> "STDiT2 | STDiT3":
        """The transformer; with sequential=True, loaded now if it is not in memory."""
        return self.models.transformer.stdit

    @property
    def text(self) -> "TextEncoder | TextEmbeddings":
        """The text encoder; with sequential=True, loaded now if it is not in memory."""
        return self.models.text

    @property
    def _dtype(self) -> str:
        return str(self.stdit.x_embedder.proj.weight.dtype).removeprefix("paddle.")

    @property
    def vae(self) -> "FrameVAE | VideoVAE":
        """The VAE: frame-wise (Open-Sora 1.1), or of clips (1.2)."""
        return self.models.vae

    def __repr__(self) -> str:
        return f"OpenSora({self.models}; defaults {self.settings})"

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
        folder with config.json and safetensors, a diffusers folder that holds the part, or the name of a repository in
        Hugging Face's cache on this machine ("stabilityai/sd-vae-ft-ema"). Nothing is downloaded.
        device: "cpu", "gpu", "gpu:1"; None: a GPU where there is one. dtype: "fp32", "fp16", "bf16"; None: fp32 on a
        CPU, fp16 on a GPU. micro_batch_size: frames per VAE pass; None: 16, or as many as fit into memory.
        sequential: T5 and STDiT2 are never in memory together (`runtime.offload`). text_embeddings: the result of
        `encode_text`, or the file it was saved to; no T5 is loaded, and only those prompts can be used.
        Raises CheckpointError, DeviceError and OutOfMemoryError.
        """
        check(Count | None, micro_batch_size, "micro_batch_size")
        check(bool, sequential, "sequential")
        if text_embeddings is not None and (t5 is not None or sequential):
            raise OpenSoraError("with text_embeddings no T5 is loaded: leave out t5 and sequential")
        paths, settings = _find_parts(model, {"stdit": stdit, "t5": t5, "vae": vae}, text_embeddings is None)
        spec = model_spec(model, stdit=stdit, t5=t5, vae=vae)
        if model is None and stdit is not None and vae is not None:
            settings = released_settings(spec.generation)
        dtype = resolve_dtype(dtype, set_device(device))
        for path in paths.values():  # check that all parts exist before loading the first
            read_config(path)
            if path.suffix != ".pdparams":  # a pickle is read whole, so only once
                open_checkpoint(path)

        from opensora_lite import stdit2, stdit3  # after `set_device`, which imports Paddle quietly
        from opensora_lite.text import TextEmbeddings, load_text_encoder
        from opensora_lite.video_vae import load_any_vae

        parts = {name: used_part(path, name) for name, path in paths.items()}
        is_flow = spec.generation.is_flow
        kind: Any = stdit3.STDiT3Config if is_flow else stdit2.STDiT2Config
        config = kind.from_dict(read_config(paths["stdit"]))
        load: Any = stdit3.load_stdit3 if is_flow else stdit2.load_stdit
        load_transformer = functools.partial(load, paths["stdit"], dtype)
        with NeedsMemory(*LOADING):
            embeddings = text_embeddings
            if embeddings is not None and not isinstance(embeddings, TextEmbeddings):
                embeddings = TextEmbeddings.read(check(Place, embeddings, "text_embeddings", CheckpointError))
            vae_model = load_any_vae(paths["vae"], dtype, micro_batch_size or memory.micro_batch)
            if embeddings is not None:
                check_compatible(config, embeddings.width, embeddings.max_length, vae_model)
                parts["text_embeddings"] = UsedPart("text embeddings", embeddings.fingerprint)
                spec = replace(spec, reader=embeddings)
                models: Any = Resident(load_transformer(), embeddings, vae_model)
            else:
                width = read_config(paths["t5"]).get("d_model", config.caption_channels)
                check_compatible(config, width, config.model_max_length, vae_model)
                load_text = functools.partial(load_text_encoder, paths["t5"], config.model_max_length, dtype)
                if sequential:
                    models = Offloaded(load_transformer, load_text, vae_model)
                else:
                    models = Resident(load_transformer(), load_text(), vae_model)
            pipe = cls(models, settings, spec)
            pipe._parts, pipe._checksum = parts, pipe._parameters()
            return pipe

    def encode_text(self, prompts: str | Sequence[str], loops: int = 1, **scores: Any) -> "TextEmbeddings":
        """T5's vectors of `prompts`, to be saved and given to `from_pretrained` in place of T5.

        loops: of the videos that they will be used for, as prompts can have a |0| schedule. scores: aes, flow and
        camera_motion of those videos, as in `Settings`: they are part of the captions. Raises PromptError, and
        OpenSoraError for a score that the model doesn't read.
        """
        if unknown := sorted(set(scores) - set(self.settings.scores)):
            raise TypeError(f"unknown score {', '.join(unknown)}; known are {', '.join(self.settings.scores)}")
        settings = self.settings.changed(**scores)
        self.spec.check(settings)
        return self.text.embed(captions_of(prompts, loops, self.spec, settings))

    def compile(self, precision: str | None = "auto") -> "OpenSora":
        """Compile transformer and VAE decoder for each size when it is first used; returns the pipeline itself.

        precision: "fp32", "bf16", or "auto" for bf16 where the processor supports it (`runtime.engine`); None: nothing
        is compiled. Without this call, fp32 is compiled when the saved time exceeds the compile time (from 10 steps of
        16×64×64 on) and memory allows. Traces with attention, and models with hooks, run uncompiled.
        Raises DeviceError for a precision that this machine doesn't have.
        """
        from opensora_lite.runtime.engine import choose_precision

        check(str | None, precision, "precision", DeviceError)
        if precision is not None:
            choose_precision(precision)
        self._precision, self._may_compile = precision, precision is not None
        return self

    @property
    def engine(self) -> "Engine | None":
        """The compiled models, if `compile` was called."""
        return None if self._precision is None else self.models.transformer.engine(self._precision)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        references: References | Sequence[References] = None,
        mask_strategy: str | MaskStrategy | Sequence[str | MaskStrategy | None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        trace: Trace | None = None,
        **settings: Any,
    ) -> Video | list[Video]:
        """A Video for a prompt; a list of Videos for a list of prompts, or where num_sample is more than 1.

        references: of one prompt, a path or a list of paths, Videos or arrays; of several prompts, a list of those.
        mask_strategy: text such as "0;0,1,0,-1,1" or a MaskStrategy; of several prompts, a list.
        on_step: called with a Progress after every denoising step. trace: a Trace, which records the run.
        settings: fields of `Settings`, which replace the model's defaults. Raises OpenSoraError.
        """
        known = [f.name for f in fields(Settings)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise TypeError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
        chosen = self.settings.changed(**settings)
        single = isinstance(prompt, str)
        prompts = check(Texts, prompt, "prompt", PromptError)
        given: Any = [references] if single else references
        strategies: Any = [mask_strategy] if single else mask_strategy
        jobs = plan(prompts, given, strategies, chosen, self.spec)
        videos = [video for _, video in self.generate(jobs, chosen, on_step, trace)]
        return videos[0] if single and chosen.num_sample == 1 else videos

    def generate(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        on_step: Callable[[Progress], None] | None = None,
        trace: Trace | None = None,
    ) -> Iterator[tuple[Job, Video]]:
        """Make the videos of `jobs`, batch by batch, and yield each as soon as it is done.

        on_step: called with a Progress after every denoising step. trace: a Trace; for a single job only.
        Raises OpenSoraError for a trace of several jobs, DeviceError where the work would need more memory than there
        is, OutOfMemoryError where it runs out all the same; the pipeline can be used again afterwards.
        """
        check(Jobs, jobs, "jobs")
        check(AnySettings, settings, "settings")
        check(Callable | None, on_step, "on_step")
        check(AnyTrace | None, trace, "trace")
        if trace is not None and len(jobs) != 1:
            raise OpenSoraError(f"a trace follows one video, and {len(jobs)} were asked for; make them one by one")
        import paddle

        text = self.models.text_for([caption for job in jobs for caption in job.captions])
        at_once = replace(settings, batch_size=max(min(settings.batch_size, len(jobs)), 1))
        engine = self._engine(len(jobs), at_once, trace)
        self._check_memory(at_once, engine)
        if trace is not None:
            trace.modules(self.stdit)  # raises for an unknown name, before anything is computed
            trace.clear()
        changed = self._has_hooks() or (self._parts is not None and self._checksum != self._parameters())
        compiled = None if engine is None else engine.precision or "auto"
        run = Run(paddle.get_device(), self._dtype, compiled, (0, 1))
        self._note_poor_references(jobs, settings)
        start = time.perf_counter()
        for first in range(0, len(jobs), settings.batch_size):
            batch = tuple(jobs[first : first + settings.batch_size])

            def report(loop: int, step: "Step", batch: tuple[Job, ...] = batch, first: int = first) -> None:
                if on_step:
                    seconds = time.perf_counter() - start
                    on_step(Progress(batch, first, len(jobs), loop, step, settings.num_sampling_steps, seconds))

            with NeedsMemory(*_work(len(batch), settings)):
                frames = self._make(batch, settings, text, engine, report, trace)
            for i, (job, pixels) in enumerate(zip(batch, frames, strict=True)):
                info = record(job, settings, self._parts, changed, replace(run, batch=(i, len(batch))))
                yield job, Video(pixels, settings.video_fps, prompt=job.prompt, info=info)

    def _make(
        self,
        batch: tuple[Job, ...],
        settings: Settings,
        text: "TextEncoder | TextEmbeddings",
        engine: "Engine | None",
        report: "Callable[[int, Step], None]",
        trace: Trace | None,
    ) -> np.ndarray:
        """uint8 frames [B, T, height, width, 3] of one batch."""
        import paddle

        from opensora_lite.runtime.step_cache import StepCache
        from opensora_lite.samplers import CFG, FLOW_SAMPLERS, SAMPLERS, NoiseSource

        (height, width), T, steps = settings.image_size, settings.num_frames, settings.num_sampling_steps
        generation = self.spec.generation
        latent_size = (generation.latent_frames(T), height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        sampler: Any
        if generation.is_flow:
            sampler = FLOW_SAMPLERS[settings.sampler](steps, generation.shift(T, settings.image_size))
        else:
            sampler = SAMPLERS[settings.sampler](steps)
        noise = NoiseSource([job.seed for job in batch], (self.vae.channels, *latent_size))
        denoiser: Any = engine or self.stdit
        if settings.cache_threshold:
            denoiser = StepCache(denoiser, settings.cache_threshold)
        references = [self._encode_references(job, height, width) for job in batch]

        clips = []
        for loop in range(settings.loops):
            # 1. captions to vectors
            y, y_mask = text.encode([job.captions[loop] for job in batch])
            # 2. noise, with reference latents in conditioning and edited frames
            z = noise().numpy()
            rows = [apply_frames(z[i], references[i], job.placed(loop)) for i, job in enumerate(batch)]
            z, frame_mask = (np.stack(column) for column in zip(*rows, strict=True))
            # 3. denoise
            fps = IMAGE_FPS if T == 1 else settings.fps
            conditions = self.stdit.conditions.shared(y, y_mask, latent_size, height, width, fps)
            predict = CFG(
                denoiser, conditions, settings.guidance_scale, settings.cfg_channel, settings.guidance_interval
            )
            mask = None if (frame_mask == 1).all() else frame_mask
            context = text, batch[0].captions[loop], frame_mask[0], latent_size, T, denoiser
            with self._recording(trace, *context) as record:
                for step in sampler.sample(predict, paddle.to_tensor(z), mask, noise):
                    record(step)
                    report(loop, step)
            # 4. latents to pixels
            give_back_memory()  # of the transformer's activations
            clip = (engine or self.vae).decode(step.sample, T)
            clips.append(to_uint8(clip))
            # 5. the clip is a reference of later loops
            if loop + 1 < settings.loops:
                latents = self.vae.encode(clip).numpy()
                references = [[*given, latents[i]] for i, given in enumerate(references)]
        return np.concatenate([clips[0], *(clip[:, settings.condition_frames :] for clip in clips[1:])], axis=1)

    def _note_poor_references(self, jobs: Sequence[Job], settings: Settings) -> None:
        """A Note for each reference that the VAE reconstructs poorly: conditioning frames are no better."""
        first = {r: used[0] for job in jobs for r, used in zip(job.references, job.used_frames, strict=True) if used}
        for reference, index in first.items():
            frame = reference.frames([index], *settings.image_size)
            with NeedsMemory(*_work(1, settings)):
                error = np.mean((frame - self.decode(self.encode(frame), 1)) ** 2)
            if (db := 10 * math.log10(255**2 / max(error, 1e-6))) < POOR_RECONSTRUCTION:
                what = "it" if reference.num_frames == 1 else f"its frame {index}"
                note(
                    f"{reference.name}: the VAE gives {what} back with {db:.1f} dB, and frames that are kept come no"
                    " nearer: this model does not know such pictures (notebooks/guide/masks.md)"
                )

    def _encode_references(self, job: Job, height: int, width: int) -> list[Any]:
        """Latents [C, T_i, h, w] of each reference, of which only the frames that a loop uses are there."""
        references = []
        for index, (reference, used) in enumerate(zip(job.references, job.used_latents, strict=True)):
            if reference.num_frames == 1 and job.generation.factor > 1:
                references.append(self._encode_picture(job, index, height, width))
                continue
            frames, latents = job.generation.frames_of(used, reference.num_frames)
            references.append(_SomeFrames(self.encode(reference.frames(frames, height, width)), latents))
        return references

    def _encode_picture(self, job: Job, index: int, height: int, width: int) -> "_SomeFrames":
        """Latents [C, n, h, w] of a picture in 1.2, found by the latent frames of the video, see `Job.placed`."""
        picture = job.references[index].frames([0], height, width)
        still = functools.cache(lambda num_frames: self.encode(picture.repeat(num_frames, axis=0)))
        latents = {}
        for latent in sorted({i for frames in job.frames for i, f in enumerate(frames) if f.reference == index}):
            length, place = job.generation.picture_at(latent, job.settings.num_frames)
            latents[latent] = still(length)[:, place]
        return _SomeFrames(np.stack(list(latents.values()), 1), list(latents))

    def _recording(
        self,
        trace: Trace | None,
        text: "TextEncoder | TextEmbeddings",
        caption: str,
        edit_ratios: np.ndarray,
        latent_size: tuple[int, int, int],
        num_frames: int,
        denoiser: Any,
    ) -> "contextlib.AbstractContextManager[Callable[[Step], None]]":
        """Context that yields a function which records a step in `trace`, or does nothing without a trace."""
        if trace is None:
            return contextlib.nullcontext(lambda step: None)
        from opensora_lite.runtime.step_cache import StepCache
        from opensora_lite.trace import TraceLoop

        patch = self.stdit.config.patch_size
        grid = math.ceil(latent_size[1] / patch[1]), math.ceil(latent_size[2] / patch[2])
        generation = self.spec.generation
        predicts: Any = "velocity" if generation.is_flow else "noise"
        loop = TraceLoop(caption, text.pieces(caption), edit_ratios, predicts, tuple(generation.windows(num_frames)))
        return trace.recording(self.stdit, loop, grid, denoiser if isinstance(denoiser, StepCache) else None)

    def _engine(self, videos: int, settings: Settings, trace: Trace | None) -> "Engine | None":
        """The compiled models, where they should make these videos."""
        if self._has_hooks() or (trace is not None and trace.attention):  # a compiled model would not call the hooks
            return None
        if self._precision is not None or not self._may_compile or not self._worth_compiling(videos, settings):
            return self.engine
        free = memory.available_memory()
        if free is not None and self._memory(settings)(compiled="fp32").work > free:
            return None
        return self.models.transformer.engine("fp32")

    def _has_hooks(self) -> bool:
        parts = self.stdit.sublayers(include_self=True) + self.vae.model.sublayers(include_self=True)
        return any(part._forward_pre_hooks or part._forward_post_hooks for part in parts)

    def _parameters(self) -> int | None:
        """A checksum of the parameters in memory; None where they are loaded anew for each request."""
        if isinstance(self.models, Offloaded):
            return None
        text = [self.text.model] if hasattr(self.text, "model") else []
        return checksum([self.stdit, self.vae.model, *text])

    def _worth_compiling(self, videos: int, settings: Settings) -> bool:
        """Whether compiling saves more time than it takes.

        This depends on the request only: if it depended on what has been compiled already, the same seed could give
        other roundings the second time.
        """
        from opensora_lite.runtime.engine import available

        if sum(parameter.size for parameter in self.stdit.parameters()) > COMPILED_PARAMETERS or not available():
            return False
        tokens = (
            self.spec.generation.latent_frames(settings.num_frames)
            * math.prod(settings.image_size)
            // (2 * PIXELS_PER_LATENT) ** 2
        )
        return tokens * settings.num_sampling_steps * settings.loops * videos >= COMPILED_TOKENS

    def _check_memory(self, settings: Settings, engine: "Engine | None") -> None:
        """Raise DeviceError where free memory is less than the loaded models need for `settings`."""
        import paddle

        estimate = functools.partial(self._memory(settings), compiled=engine and engine.precision)
        memory.refuse_what_cannot_fit(settings, estimate, paddle.get_device(), loaded=True)

    def _memory(self, settings: Settings) -> "Callable[..., memory.MemoryEstimate]":
        """`estimate_memory` for the loaded models, called with changes of `settings`."""
        import paddle

        at_once = self.vae.micro_batch_size
        return memory.for_settings(
            settings,
            stdit={"model_type": self.stdit.config.model_type, **vars(self.stdit.config)},
            vae=self.vae.model.config,
            text_encoder=False,
            dtype=self._dtype,
            device=paddle.get_device(),
            micro_batch_size=at_once if isinstance(at_once, int) else 1,  # else as many as fit
        )

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Latents float32 [C, T, height/8, width/8] of frames [T, height, width, 3], uint8 or float32 0 … 255.

        Open-Sora 1.2 has T_z latent frames, see `latent_time`.

        The mean of the VAE's posterior, where the release draws a sample: the same frames give the same latents.
        """
        check(Array, frames, "frames", MediaError)
        if frames.ndim != 4 or frames.shape[3] != 3:
            raise MediaError(f"frames must have the shape [T, height, width, 3], not {list(frames.shape)}")
        return self.vae.encode_frames(frames)

    def decode(self, latents: np.ndarray, num_frames: int | None = None) -> np.ndarray:
        """Frames uint8 [T, height, width, 3] of latents float32 [C, T, height/8, width/8].

        num_frames: T of Open-Sora 1.2; None: the longest clip with that many latent frames.
        """
        import paddle

        check(Array, latents, "latents", SizeError)
        check(Count | None, num_frames, "num_frames", SizeError)
        if latents.ndim != 4 or len(latents) != self.vae.channels:
            raise SizeError(f"latents must have the shape [{self.vae.channels}, T, h, w], not {list(latents.shape)}")
        if num_frames is not None and self.spec.generation.latent_frames(num_frames) != latents.shape[1]:
            raise SizeError(f"num_frames is {num_frames}, which {latents.shape[1]} latent frames are not")
        return to_uint8(self.vae.decode(paddle.to_tensor(latents[None]), num_frames))[0]


class _SomeFrames:
    """Latents [C, n, h, w] of n frames of a clip, found by their indices in the clip: latents[:, 480]."""

    def __init__(self, latents: np.ndarray, indices: Sequence[int]):
        self.latents, self.place = latents, {index: place for place, index in enumerate(indices)}

    def __getitem__(self, key: tuple[slice, int]) -> np.ndarray:
        return self.latents[key[0], self.place[key[1]]]


def _find_parts(
    model: str | Path | None, given: dict[str, str | Path | None], needs_text: bool
) -> tuple[dict[str, Path], Settings]:
    """The path of each part of a model, and the model's default Settings. Raises CheckpointError."""
    parts = {name: path for name, path in given.items() if needs_text or name != "t5"}
    missing = [name for name, path in parts.items() if path is None]
    if model is not None and not missing:
        raise CheckpointError(f'model "{model}" and all of its parts were given; give one or the other')
    if model is None and 0 < len(missing) < len(parts):
        raise CheckpointError(f"a model has three parts: stdit, t5, vae; {' and '.join(missing)} must be given too")
    paths = {name: find_part(path, name) for name, path in parts.items() if path is not None}
    if not missing:
        return paths, Settings()
    folder = model_folder("tiny" if model is None else model)
    return paths | {name: part_of(folder, name) for name in missing}, model_defaults(folder)[0]


def check_compatible(stdit: "TransformerConfig", width: int, max_length: int, vae: "FrameVAE | VideoVAE") -> None:
    """Raise CheckpointError where models don't belong together.

    width, max_length: channels of the text vectors, and tokens of a caption at most.
    """
    if (stdit.caption_channels, stdit.model_max_length) != (width, max_length):
        raise CheckpointError(
            f"the models do not belong together: {stdit.model_type} reads captions of up to"
            f" {stdit.model_max_length} tokens with {stdit.caption_channels} channels, and the text vectors are for"
            f" {max_length} tokens with {width}"
        )
    if stdit.in_channels != vae.channels or vae.downsampling != PIXELS_PER_LATENT:
        raise CheckpointError(
            f"the models do not belong together: the VAE makes {vae.channels} channels at 1/{vae.downsampling} of the"
            f" size; {stdit.model_type} needs {stdit.in_channels} at 1/{PIXELS_PER_LATENT}"
        )


def _work(videos: int, settings: Settings) -> tuple[str, str]:
    """For the error when memory runs out: a description of the batch, and the settings that would make it smaller."""
    height, width = settings.image_size
    work = f"{videos} video(s) of {settings.num_frames} frames of {height}×{width} pixels at once"
    smaller = ["batch_size"] * (videos > 1) + ["num_frames"] * (settings.num_frames > 1) + ["image_size"]
    return work, f"make {', '.join(smaller)} or micro_batch_size smaller"


def to_uint8(video: "paddle.Tensor") -> np.ndarray:
    """Frames uint8 [B, T, H, W, 3] of a video tensor [B, 3, T, H, W] with values -1 … 1."""
    pixels = (video.clip(-1, 1) + 1) * 127.5 + 0.5
    return pixels.transpose([0, 2, 3, 4, 1]).numpy().clip(0, 255).astype(np.uint8)
