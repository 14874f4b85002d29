"""Memory of a run, estimated from the config.json files of its models before any model is loaded.

    weights     parameters × bytes per parameter; the formulas below count them exactly
    denoising   the widest moment of a transformer block, in tensors of all tokens, [B·T·S, D]
    decoding    the widest moment of the VAE decoder, in its widest feature maps
    process     memory that libraries take at their first computation, and freed blocks that the C library keeps

The estimate is an upper bound, because it decides whether a run is refused. Its constants were measured with Paddle
3.3.1 on two CPUs: it is 5-50 % above what processes took (94-691 MB), and 2-14 % above what Paddle allocates for
denoising and decoding. On a GPU, cuDNN takes workspace that is not counted. A compiled model (`runtime.engine`) is in
memory a second time. Axes as in `stdit2`: B videos (2·B with guidance), T frames, S tokens per frame, N = T·S, D hidden
size, L caption tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from opensora_lite import machine
from opensora_lite.device import import_paddle, paddle_dtype
from opensora_lite.errors import DeviceError, SizeError
from opensora_lite.io.checkpoints import find_part, part_of, read_config, read_vae_config
from opensora_lite.latent_time import CHUNK, latent_frames
from opensora_lite.request import Settings, model_folder
from opensora_lite.validation import AsTuple, Count, check

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # per value
GB = 1e9

# Denoising, in tensors of all tokens [B·T·S, D]:
MLP_TENSORS = 16.3  # alive in the MLP, whose hidden layer has four times D
ATTENTION_TENSORS = 12.4  # alive in attention, and in addition its scores before and after the softmax
MAX_SCORES = 2**26  # attention scores that are computed at once, as in `layers.attention`
# Decoding, in the decoder's widest feature maps, of all frames of a micro-batch:
DECODER_MAPS = 3.2  # alive at once; on a CPU, a 3×3 convolution also unfolds 9 maps of one frame
VIDEO_COPIES = 4.1  # of all frames, when the micro-batches are joined and become uint8
TEMPORAL_MAPS = 4.5  # input maps of a convolution in time that are alive, with the block's residual
VAE_SCORES = 3.2  # tensors of attention scores alive at once, [pixels, pixels] of each latent frame
MICRO_BATCHES = (16, 8, 4, 2, 1)  # frames per VAE call that are tried, largest first …
DECODING_SHARE = 0.8  # … until decoding takes at most this share of the free memory
# The process, on a CPU, in bytes:
LIBRARIES = 65e6  # code and buffers from the first caption and the first matrix product on; 50 MB were too few once
KEPT_SHARE = 0.7  # freed blocks below 32 MB that the C library keeps, as a share of denoising + decoding …
MOST_KEPT = 220e6  # … at most
# A compiled model, on a CPU:
ENGINE = 130e6  # bytes of OpenVINO itself
COMPILED_COPIES = 1.2  # float32 copies of the weights of STDiT2 and the VAE …
STORED = 64e6  # … and two more while a program is stored in the cache folder, which happens up to this size
COMPILED_DENOISING = 0.95  # denoising, as a share of the uncompiled estimate without scores; kept while decoding
COMPILED_DECODING = {"fp32": 1.05, "bf16": 0.65}  # decoding, as a share of the uncompiled estimate

T5_DEFAULTS: dict[str, Any] = dict(  # for fields that a config.json omits
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_heads=8,
    relative_attention_num_buckets=32,
    feed_forward_proj="relu",
)
T5_XXL: dict[str, Any] = T5_DEFAULTS | dict(
    d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
STDIT_DEFAULTS: dict[str, Any] = dict(  # OpenSora-STDiT-v2-stage3, as in `stdit2.STDiT2Config`
    hidden_size=1152,
    depth=28,
    num_heads=16,
    caption_channels=4096,
    model_max_length=200,
    in_channels=4,
    patch_size=(1, 2, 2),
    mlp_ratio=4.0,
    qk_norm=True,
)
VAE_DEFAULTS: dict[str, Any] = dict(block_out_channels=[64], layers_per_block=1, latent_channels=4)
TEMPORAL_DEFAULTS: dict[str, Any] = dict(  # as in `video_vae.TemporalVAEConfig`
    in_out_channels=4,
    latent_embed_dim=4,
    embed_dim=4,
    filters=128,
    num_res_blocks=4,
    channel_multipliers=[1, 2, 2, 4],
    temporal_downsample=[False, True, True],
)
SD_VAE: dict[str, Any] = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4)
RELEASED = {"stdit": STDIT_DEFAULTS, "t5": T5_XXL, "vae": SD_VAE}  # "XL/2", for planning

# ---------------------------------------------------------------------------------------------------------------------
#   Parameters
# ---------------------------------------------------------------------------------------------------------------------


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def stdit_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of an STDiT2, or of an STDiT3, by its model_type. config: the content of its config.json."""
    c = STDIT_DEFAULTS | dict(config)
    D, heads, hidden = c["hidden_size"], c["num_heads"], int(c["hidden_size"] * c["mlp_ratio"])
    patch, C, L = math.prod(c["patch_size"]), c["in_channels"], c["model_max_length"]

    def scalar(dim: int) -> int:
        return _linear(256, dim) + _linear(dim, dim)

    embedders = _linear(C * patch, D) + 3 * scalar(D) + 2 * scalar(D // 3)  # patches; time, frames, rate; size, ratio
    embedders += _linear(D, 6 * D) + _linear(D, 3 * D) + D // heads // 2
    if c.get("model_type") == "STDiT3":
        embedders = _linear(C * patch, D) + 2 * scalar(D) + _linear(D, 6 * D) + D // heads // 2  # patches; time, rate
        L = config.get("model_max_length", 300)
    caption = _linear(c["caption_channels"], D) + _linear(D, D) + L * c["caption_channels"]
    attention = _linear(D, 3 * D) + _linear(D, D) + (2 * (D // heads) if c["qk_norm"] else 0)
    cross = _linear(D, D) + _linear(D, 2 * D) + _linear(D, D)
    mlp = _linear(D, hidden) + _linear(hidden, D)
    block = 9 * D + 2 * attention + cross + mlp
    if c.get("model_type") == "STDiT3":
        block = 2 * (6 * D + attention + cross + mlp)  # a spatial and a temporal one
    return embedders + caption + c["depth"] * block + 2 * D + _linear(D, patch * 2 * C)


def t5_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of a T5 encoder. config: the content of its config.json."""
    c = T5_DEFAULTS | dict(config)
    d, inner = c["d_model"], c["num_heads"] * c["d_kv"]
    matrices = 3 if c["feed_forward_proj"].startswith("gated") else 2
    layer = 4 * d * inner + matrices * d * c["d_ff"] + 2 * d
    return c["vocab_size"] * d + c["num_layers"] * layer + c["relative_attention_num_buckets"] * c["num_heads"] + d


def vae_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of an AutoencoderKL, or of a video VAE. config: as from `read_vae_config`."""
    temporal = temporal_parameters(config["vae_temporal"]) if "vae_temporal" in config else 0
    c = VAE_DEFAULTS | dict(config)
    widths, layers, z = list(c["block_out_channels"]), c["layers_per_block"], c["latent_channels"]

    def conv(inputs: int, outputs: int) -> int:
        return _linear(9 * inputs, outputs)

    def resnet(inputs: int, outputs: int) -> int:
        shortcut = _linear(inputs, outputs) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut

    def blocks(widths: list[int], layers: int) -> int:
        before = [widths[0], *widths[:-1]]
        resnets = sum(resnet(a, b) + (layers - 1) * resnet(b, b) for a, b in zip(before, widths, strict=True))
        return resnets + sum(conv(b, b) for b in widths[:-1])  # convolutions that halve or double the size

    last = widths[-1]
    middle = 2 * resnet(last, last) + 2 * last + 4 * _linear(last, last)
    encoder = conv(3, widths[0]) + blocks(widths, layers) + middle + 2 * last + conv(last, 2 * z)
    decoder = conv(z, last) + middle + blocks(widths[::-1], layers + 1) + 2 * widths[0] + conv(widths[0], 3)
    quant = _linear(2 * z, 2 * z) if c.get("use_quant_conv", True) else 0
    return encoder + decoder + quant + (_linear(z, z) if c.get("use_post_quant_conv", True) else 0) + temporal


def temporal_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of a TemporalVAE, shift and scale. config: `vae_temporal` of the config.json."""
    c = TEMPORAL_DEFAULTS | dict(config)
    widths, layers = [c["filters"] * m for m in c["channel_multipliers"]], c["num_res_blocks"]
    C, L, z, last = c["in_out_channels"], c["latent_embed_dim"], c["embed_dim"], widths[-1]

    def resnet(inputs: int, outputs: int) -> int:
        shortcut = inputs * outputs if inputs != outputs else 0
        return 2 * inputs + 27 * inputs * outputs + 2 * outputs + 27 * outputs * outputs + shortcut

    def blocks(before: list[int]) -> int:
        return sum(resnet(a, b) + (layers - 1) * resnet(b, b) for a, b in zip(before, widths, strict=True))

    def convs(widths: list[int], wider: int) -> int:
        return sum(
            _linear(27 * n, wider * n) for n, halved in zip(widths, c["temporal_downsample"], strict=True) if halved
        )

    middle = layers * resnet(last, last)
    encoder = 27 * C * c["filters"] + blocks([c["filters"], *widths[:-1]]) + convs(widths[:-1], 1) + middle
    encoder += 2 * last + _linear(last, 2 * L)
    decoder = _linear(27 * L, last) + middle + blocks([*widths[1:], last]) + convs(widths[1:], 2)
    decoder += 2 * widths[0] + _linear(27 * widths[0], C)
    return encoder + decoder + _linear(2 * L, 2 * z) + _linear(z, L) + 2 * z


# ---------------------------------------------------------------------------------------------------------------------
#   The estimate
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryEstimate:
    """Upper bounds, in bytes, of what a run takes in addition to the imported libraries; `str()` gives a table."""

    weights: dict[str, int]  # of "t5" (0 where text embeddings are given), "stdit" and "vae"
    text: float  # working memory of T5
    denoising: float  # working memory of STDiT2
    decoding: float  # working memory of the VAE
    process: float  # libraries, and freed memory that allocators keep
    sequential: bool  # whether T5 and STDiT2 are never in memory together
    compiling: float = 0  # of an engine, in addition to the weights, while it compiles
    compiled: float = 0  # of an engine, afterwards

    @property
    def work(self) -> float:
        """Peak beyond the loaded models, once the libraries have computed something."""
        return max(self.text, self._making)

    @property
    def _making(self) -> float:
        if self.compiling:
            return max(self.compiling, self.compiled + self.denoising + self.decoding)
        return max(self.denoising, self.decoding)

    @property
    def peak(self) -> float:
        """Peak of the whole run."""
        w = self.weights
        encoding = w["t5"] + self.text + w["vae"] + (0 if self.sequential else w["stdit"])
        making = w["stdit"] + w["vae"] + self._making + (0 if self.sequential else w["t5"])
        return max(encoding, making) + self.process

    def __str__(self) -> str:
        rows: list[tuple[str, float]] = [(f"weights of {name}", n) for name, n in self.weights.items()]
        rows += [("text encoding", self.text), ("denoising", self.denoising), ("decoding", self.decoding)]
        rows += [("compiling", self.compiling), ("compiled models", self.compiled)] if self.compiling else []
        rows += [("process", self.process), ("peak", self.peak)]
        return "\n".join(f"{name:20}{n / GB:8.2f} GB" for name, n in rows)


def estimate_memory(
    model: str | Path | None = None,
    num_frames: int = 16,
    image_size: tuple[int, int] = (256, 256),
    dtype: str = "float32",
    *,
    stdit: str | Path | Mapping[str, Any] | None = None,
    t5: str | Path | Mapping[str, Any] | None = None,
    vae: str | Path | Mapping[str, Any] | None = None,
    batch_size: int = 1,
    guidance_scale: float = 7.0,
    micro_batch_size: int | None = None,
    sequential: bool = False,
    text_encoder: bool = True,
    device: str = "cpu",
    compiled: str | None = None,
) -> MemoryEstimate:
    """An upper bound of the memory of a run, from config.json files alone; 5-50 % above what processes took on CPUs.

    model: "tiny" (also None, without parts), "XL/2" (the sizes of the released weights), or a folder with stdit/, t5/
    and vae/. stdit, t5, vae: folders of parts, or the content of their config.json; they replace those of `model`.
    num_frames, image_size (height, width in pixels), batch_size (videos at once), guidance_scale: as in `Settings`.
    dtype: "fp32", "fp16", "bf16" or Paddle's names. micro_batch_size, sequential: as in `OpenSora.from_pretrained`;
    None counts the largest micro-batch that would be tried. text_encoder: False where text embeddings are given and no
    T5 is loaded. device: "cpu" or "gpu". compiled: the precision of compiled models, "fp32" or "bf16", which matters on
    a CPU; None: not compiled.
    Raises CheckpointError for a model that does not exist, DeviceError for an unknown dtype.
    """
    check(Count, num_frames, "num_frames", SizeError)
    height, width = check(Annotated[tuple[Count, Count], AsTuple], image_size, "image_size", SizeError)
    check(Count, batch_size, "batch_size")
    check(float, guidance_scale, "guidance_scale")
    check(Count | None, micro_batch_size, "micro_batch_size")
    check(bool, text_encoder, "text_encoder")
    check(str, device, "device", DeviceError)
    check(Literal["fp32", "bf16"] | None, compiled, "compiled", DeviceError)
    size, on_cpu = BYTES[paddle_dtype(dtype)], device == "cpu"
    parts: dict[str, Mapping[str, Any]] = {}
    for name, part in (("stdit", stdit), ("t5", t5), ("vae", vae)):
        if name == "t5" and not text_encoder:
            continue
        parts[name] = part if isinstance(part, Mapping) else _config(model, name, part)
    weights = {"t5": t5_parameters(parts["t5"]) * size if text_encoder else 0}
    weights |= {"stdit": stdit_parameters(parts["stdit"]) * size, "vae": vae_parameters(parts["vae"]) * size}
    videos = batch_size * (1 if guidance_scale == 1 else 2)
    text = _text_work(parts["t5"], parts["stdit"], size) if text_encoder else 0
    of_step = (parts["stdit"], videos, _latent_frames(parts["vae"], num_frames), height, width, size)
    denoising = _denoising_work(*of_step, scores=on_cpu or size == 4)
    decoding = _decoding_work(
        parts["vae"], batch_size * num_frames, height, width, size, micro_batch_size or MICRO_BATCHES[0], on_cpu
    )
    process = LIBRARIES + min(KEPT_SHARE * (denoising + decoding), MOST_KEPT) if on_cpu else 0
    compiling = left = 0.0
    if compiled and on_cpu:
        copy = 4 / size * (weights["stdit"] + weights["vae"])
        left = ENGINE + COMPILED_COPIES * copy
        compiling = left + 2 * min(copy, STORED)
        denoising = COMPILED_DENOISING * _denoising_work(*of_step, scores=False)
        decoding, process = COMPILED_DECODING[compiled] * decoding, LIBRARIES
    return MemoryEstimate(weights, text, denoising, decoding, process, sequential, compiling, left)


def _config(model: str | Path | None, name: str, part: str | Path | None) -> Mapping[str, Any]:
    read = read_vae_config if name == "vae" else read_config
    if part is not None:
        return read(find_part(part, name))
    if isinstance(model, str) and model == "XL/2":
        return RELEASED[name]
    return read(part_of(model_folder("tiny" if model is None else model), name))


def _latent_frames(vae: Mapping[str, Any], num_frames: int) -> int:
    if "vae_temporal" not in vae:
        return num_frames
    halvings = (TEMPORAL_DEFAULTS | dict(vae["vae_temporal"]))["temporal_downsample"]
    return latent_frames(num_frames, vae.get("micro_frame_size", CHUNK), 2 ** sum(halvings))


def _text_work(t5: Mapping[str, Any], stdit: Mapping[str, Any], size: int) -> float:
    c, L = T5_DEFAULTS | dict(t5), {**STDIT_DEFAULTS, **stdit}["model_max_length"]
    return size * L * (4 * c["d_model"] + 3 * c["d_ff"] + 3 * c["num_heads"] * L)


def _denoising_work(
    config: Mapping[str, Any], videos: int, T: int, height: int, width: int, size: int, scores: bool
) -> float:
    """Bytes. scores: whether attention scores are materialized, unlike in flash attention."""
    c = STDIT_DEFAULTS | dict(config)
    D, heads, (_, rows, columns) = c["hidden_size"], c["num_heads"], c["patch_size"]
    S = math.ceil(height / 8 / rows) * math.ceil(width / 8 / columns)
    tokens = videos * T * S * D * size

    def score_bytes(sequences: int, n: int) -> int:  # of sequences × heads of n tokens, as many at once as MAX_SCORES
        return size * min(sequences, max(MAX_SCORES // n**2, 1)) * n**2

    most = max(score_bytes(videos * T * heads, S), score_bytes(videos * S * heads, T)) if scores else 0
    latents = 12 * videos * c["in_channels"] * T * (height // 8) * (width // 8) * 4  # the sampler's, in float32
    return max(MLP_TENSORS * tokens, ATTENTION_TENSORS * tokens + 2 * most) + latents


def _decoding_work(
    config: Mapping[str, Any], frames: int, height: int, width: int, size: int, micro_batch_size: int, on_cpu: bool
) -> float:
    c = VAE_DEFAULTS | dict(config)
    widths, at_once = list(c["block_out_channels"]), min(micro_batch_size, frames)
    inputs = [*widths[1:], widths[-1]]  # channels that enter the blocks of a level, where they are widest
    widest = max(n * height * width / 4**level for level, n in enumerate(inputs)) * size
    pixels = height * width / 4 ** (len(widths) - 1)
    maps = widest * (DECODER_MAPS * at_once + (9 if on_cpu else 0))
    video = frames * 3 * height * width * 4
    spatial = max(max(maps, VAE_SCORES * at_once * pixels**2 * size) + video, VIDEO_COPIES * video)
    if "vae_temporal" not in config:
        return spatial
    latents = 3 * frames * c["latent_channels"] * pixels * 4  # of all frames: of each chunk, joined, and converted
    return latents + max(spatial, _temporal_work(config, frames, pixels, size))


def _temporal_work(config: Mapping[str, Any], frames: int, pixels: float, size: int) -> float:
    """Bytes that the TemporalVAE takes for decoding one chunk, of `pixels` latents per frame."""
    c = TEMPORAL_DEFAULTS | dict(config["vae_temporal"])
    widths = [c["filters"] * m for m in c["channel_multipliers"]]
    T = _latent_frames(config, min(frames, config.get("micro_frame_size", CHUNK) or frames))
    work = 0.0
    for level in reversed(range(len(widths))):
        convs = [(widths[min(level + 1, len(widths) - 1)], widths[level]), (widths[level], widths[level])]
        doubles = level > 0 and c["temporal_downsample"][level - 1]
        convs += [(widths[level], 2 * widths[level])] if doubles else []
        for D, out in convs:  # `layers.Ops.causal_conv` makes 3 maps, a padded copy of them, and a copy of the weights
            work = max(work, size * (pixels * ((TEMPORAL_MAPS * T + 9) * D + 3 * out * (2 * T + 2)) + 27 * D * out))
        T *= 2 if doubles else 1
    return work


# ---------------------------------------------------------------------------------------------------------------------
#   What fits
# ---------------------------------------------------------------------------------------------------------------------


def available_memory(device: str = "cpu") -> int:
    """Bytes that could be allocated now on `device`: "cpu", "gpu" or "gpu:1"."""
    if device == "cpu":
        return machine.memory().available
    cuda, number = import_paddle().device.cuda, int(device.partition(":")[2] or 0)
    return cuda.get_device_properties(number).total_memory - cuda.memory_allocated(number)


def micro_batch(
    vae: Mapping[str, Any], frames: int, height: int, width: int, dtype: str = "float32", device: str = "cpu"
) -> int:
    """The largest of MICRO_BATCHES with which a VAE can decode `frames` of height × width pixels in the free memory.

    vae: the content of its config.json. dtype: of its weights, in Paddle's names. device: as in `available_memory`.
    """
    free = available_memory(device)
    for n in MICRO_BATCHES:
        if _decoding_work(vae, frames, height, width, BYTES[dtype], n, device == "cpu") <= DECODING_SHARE * free:
            return n
    return 1


def for_settings(settings: Settings, **fixed: Any) -> Callable[..., MemoryEstimate]:
    """`estimate_memory` for `settings`, as a function of changes to them. fixed: its other arguments."""
    chosen = dict(
        num_frames=settings.num_frames,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        guidance_scale=settings.guidance_scale,
    )
    return lambda **changes: estimate_memory(**{**chosen, **fixed, **changes})


def refuse_what_cannot_fit(
    settings: Settings, estimate: Callable[..., MemoryEstimate], device: str, loaded: bool = False
) -> None:
    """Raise DeviceError where a run takes more memory than is free; the message gives the largest run that would fit.

    settings: of the run; batch_size is the number of videos that are made at once. estimate: `for_settings` of them.
    device: as `device.set_device` returns it. loaded: whether the models are in memory already.
    """
    free = available_memory(device)

    def needed(**changes: Any) -> float:
        found = estimate(**changes)
        return found.work if loaded else found.peak

    def fits(**changes: Any) -> bool:
        return needed(**changes) <= free

    if fits():
        return
    height, width = settings.image_size
    where = "memory" if device == "cpu" else f"memory of {device}"
    weights = sum(estimate().weights.values())
    advice = "; or ".join(_what_fits(settings, fits)) or (
        f"nothing of this model fits, whose weights take {weights / GB:.1f} GB: half precision (on a GPU),"
        " sequential=True or text embeddings that are given take less"
    )
    raise DeviceError(
        f"{settings.num_frames} frames of {height}×{width}, {settings.batch_size} video(s) at once, take"
        f" {needed() / GB:.1f} GB of {where}, and {free / GB:.1f} GB are free; {advice}"
    )


def _what_fits(settings: Settings, fits: Callable[..., bool]) -> Iterator[str]:
    """The largest value of each setting that fits alone; if none does, of frames and size with the least of the rest.

    fits: whether a run with these changes fits.
    """

    def smaller(**others: int) -> Iterator[str]:
        for frames in range(settings.num_frames - 1, 0, -1):
            if fits(num_frames=frames, **others):
                yield f"{frames} frame{'s' if frames > 1 else ''} would fit"
                break
        height, width = settings.image_size
        for tall in range(height - 8, 63, -8):  # smaller videos show nothing
            size = (tall, max(round(tall * width / height / 8) * 8, 8))
            if fits(image_size=size, **others):
                yield f"{size[0]}×{size[1]} would fit"
                break

    found = [f"micro_batch_size={m} would fit" for m in (8, 4, 2, 1) if fits(micro_batch_size=m)][:1]
    found += [f"batch_size={b} would fit" for b in range(settings.batch_size - 1, 0, -1) if fits(batch_size=b)][:1]
    found += smaller()
    least = "with micro_batch_size=1" + (" and one video at once" if settings.batch_size > 1 else "")
    yield from found or [f"{least}, {text}" for text in smaller(micro_batch_size=1, batch_size=1)]
