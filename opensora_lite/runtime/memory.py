"""How much memory a run takes, told from the sizes of its models before any of them is loaded.

    weights     values × bytes of each; the three formulas below count the values of the configs exactly
    denoising   the widest moment of a block, in units of one token tensor, B·T·S vectors of D numbers
    decoding    the widest moment of the VAE's decoder, in units of its widest feature map
    process     what libraries take when they first compute, and freed pieces that are too small to be given back

Constants of the last three were measured with Paddle 3.3.1 on a processor (`host_memory_stat_peak_value` and the
high-water mark of processes); tests/test_memory.py compares them with what runs take. On a GPU they are a plan: cuDNN
wants room of its own. Models that an `engine.Engine` has compiled are held once more, and work with less.
Axes as in `stdit`: B videos (twice as many with guidance), T frames, S tokens of a frame,
N = T·S, D hidden size, L caption tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora_lite import machine
from opensora_lite.errors import DeviceError
from opensora_lite.io.checkpoints import read_config

if TYPE_CHECKING:
    from opensora_lite.request import Settings

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of one value
GB = 1e9

# In token tensors, the memory of B·N·D values:
IN_MLP = 16.3  # alive at once around the MLP, whose hidden layer has four
IN_ATTENTION = 12.4  # around an attention, and its scores, before and after the softmax, come on top
MAX_SCORES = 2**26  # numbers of one piece of an attention's scores, as in `stdit.attention`
# In feature maps, the widest of the decoder, for all frames of a micro-batch:
IN_DECODER = 3.0  # alive at once; a convolution on a processor unfolds those of one frame, 3×3 times, as well
IN_VAE_ATTENTION = 3.1  # in scores of its attention, of each place to all places of a frame
MICRO_BATCHES = (16, 8, 4, 2, 1)  # frames at once that are tried where nothing else was asked for …
FOR_DECODING = 0.8  # … until what the decoder takes is this much of the free memory
# On a processor, in bytes:
PROCESS = 40e6  # code and buffers of the libraries, from the first caption and the first product on
KEPT = 0.43  # of what STDiT2 and the VAE work with, in freed pieces of less than 32 MB that the C library keeps …
MOST_KEPT = 115e6  # … at most
# Where an Engine compiles for a processor:
ENGINE = 155e6  # bytes of OpenVINO itself, and what its allocator keeps
COMPILING = 3.0  # copies of STDiT2 and the VAE, in float32, that it holds at most while it loads a program …
COMPILED = 1.5  # … and afterwards
IN_ENGINE = 0.85  # what denoising takes, of what it takes otherwise without scores; it stays while frames are decoded
IN_ENGINE_DECODER = {"fp32": 0.96, "bf16": 0.56}  # what decoding takes, of what it takes otherwise

T5_DEFAULTS: dict[str, Any] = dict(  # where a config.json does not say
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
STDIT_DEFAULTS: dict[str, Any] = dict(  # OpenSora-STDiT-v2-stage3, as `stdit.STDiT2Config` (which imports Paddle)
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
SD_VAE: dict[str, Any] = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4)
RELEASED = {"stdit": STDIT_DEFAULTS, "t5": T5_XXL, "vae": SD_VAE}  # "XL/2", for planning

# ---------------------------------------------------------------------------------------------------------------------
#   Values
# ---------------------------------------------------------------------------------------------------------------------


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def count_stdit(config: Mapping[str, Any]) -> int:
    """Values of an STDiT2; config: fields of its config.json."""
    c = STDIT_DEFAULTS | dict(config)
    D, heads, hidden = c["hidden_size"], c["num_heads"], int(c["hidden_size"] * c["mlp_ratio"])
    patch, C, L = math.prod(c["patch_size"]), c["in_channels"], c["model_max_length"]

    def scalar(dim: int) -> int:
        return _linear(256, dim) + _linear(dim, dim)

    embedders = _linear(C * patch, D) + 3 * scalar(D) + 2 * scalar(D // 3)  # patches; time, frames, rate; size, ratio
    embedders += _linear(D, 6 * D) + _linear(D, 3 * D) + D // heads // 2
    caption = _linear(c["caption_channels"], D) + _linear(D, D) + L * c["caption_channels"]
    attention = _linear(D, 3 * D) + _linear(D, D) + (2 * (D // heads) if c["qk_norm"] else 0)
    cross = _linear(D, D) + _linear(D, 2 * D) + _linear(D, D)
    block = 9 * D + 2 * attention + cross + _linear(D, hidden) + _linear(hidden, D)
    return embedders + caption + c["depth"] * block + 2 * D + _linear(D, patch * 2 * C)


def count_t5(config: Mapping[str, Any]) -> int:
    """Values of a T5 encoder; config: fields of its config.json."""
    c = T5_DEFAULTS | dict(config)
    d, inner = c["d_model"], c["num_heads"] * c["d_kv"]
    matrices = 3 if c["feed_forward_proj"].startswith("gated") else 2
    layer = 4 * d * inner + matrices * d * c["d_ff"] + 2 * d
    return c["vocab_size"] * d + c["num_layers"] * layer + c["relative_attention_num_buckets"] * c["num_heads"] + d


def count_vae(config: Mapping[str, Any]) -> int:
    """Values of an AutoencoderKL; config: fields of its config.json."""
    c = VAE_DEFAULTS | dict(config)
    widths, layers, z = list(c["block_out_channels"]), c["layers_per_block"], c["latent_channels"]

    def conv(inputs: int, outputs: int) -> int:
        return _linear(9 * inputs, outputs)

    def resnet(inputs: int, outputs: int) -> int:
        shortcut = _linear(inputs, outputs) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut

    def blocks(widths: list[int], layers: int) -> int:
        before = [widths[0], *widths[:-1]]
        found = sum(resnet(a, b) + (layers - 1) * resnet(b, b) for a, b in zip(before, widths, strict=True))
        return found + sum(conv(b, b) for b in widths[:-1])  # which halve or double the size

    last = widths[-1]
    middle = 2 * resnet(last, last) + 2 * last + 4 * _linear(last, last)
    encoder = conv(3, widths[0]) + blocks(widths, layers) + middle + 2 * last + conv(last, 2 * z)
    decoder = conv(z, last) + middle + blocks(widths[::-1], layers + 1) + 2 * widths[0] + conv(widths[0], 3)
    quant = _linear(2 * z, 2 * z) if c.get("use_quant_conv", True) else 0
    return encoder + decoder + quant + (_linear(z, z) if c.get("use_post_quant_conv", True) else 0)


# ---------------------------------------------------------------------------------------------------------------------
#   Bytes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run takes beyond imported libraries; `str()` is a table of it."""

    weights: dict[str, int]  # of "t5" (0 where its vectors are given), "stdit" and "vae"
    text: float  # that T5 works with
    denoising: float  # that STDiT2 works with
    decoding: float  # that the VAE works with
    process: float  # libraries, and what allocators keep
    sequential: bool  # whether T5 and STDiT2 are never in memory together
    compiling: float = 0  # that an Engine takes beside the weights while it loads a program
    compiled: float = 0  # of that, what stays

    @property
    def work(self) -> float:
        """Bytes that the widest moment takes once the models are loaded, and libraries have computed."""
        return max(self.text, self._making)

    @property
    def _making(self) -> float:
        if self.compiling:
            return max(self.compiling, self.compiled + self.denoising + self.decoding)
        return max(self.denoising, self.decoding)

    @property
    def peak(self) -> float:
        """Bytes of the whole run's widest moment."""
        w = self.weights
        both = w["stdit"] + w["vae"]
        reading = w["t5"] + self.text + w["vae"] if self.sequential else w["t5"] + self.text + both
        making = both + self._making + (0 if self.sequential else w["t5"])
        return max(reading, making) + self.process

    def __str__(self) -> str:
        rows: list[tuple[str, float]] = [(f"weights of {name}", n) for name, n in self.weights.items()]
        rows += [("T5 works with", self.text), ("STDiT2 works with", self.denoising)]
        rows += [("the VAE works with", self.decoding)]
        rows += [("compiling", self.compiling), ("compiled models", self.compiled)] if self.compiling else []
        rows += [("libraries", self.process), ("at most at once", self.peak)]
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
    """The memory of a run, from config.json files alone. It was within 15 % of what processes took, on a processor.

    model: "tiny" (as None is, where no part is given), "XL/2" (the sizes of the released weights), or a folder with
    stdit/, t5/ and vae/. stdit, t5, vae: folders of single parts, or what their config.json holds; they come first.
    num_frames, image_size (height, width in pixels), batch_size, guidance_scale: as in `Settings`. dtype: "fp32",
    "fp16", "bf16" or Paddle's names. micro_batch_size, sequential: as in `OpenSora.from_pretrained`; of frames that
    pass through the VAE at once, None counts the most that it would try. text_encoder: False where text embeddings are
    given, and no T5 is loaded. device: "cpu" or "gpu". compiled: "fp32" or "bf16", the precision that
    `OpenSora.compile` chose, which counts on a CPU; None for models that are not compiled.
    Raises CheckpointError where there is no such model, DeviceError for another dtype.
    """
    from opensora_lite.device import PRECISIONS

    if dtype not in PRECISIONS:
        raise DeviceError(f'dtype "{dtype}" is unknown; give fp32, fp16 or bf16')
    size, on_cpu = BYTES[PRECISIONS[dtype]], device == "cpu"
    parts: dict[str, Mapping[str, Any]] = {}
    for name, part in (("stdit", stdit), ("t5", t5), ("vae", vae)):
        if name == "t5" and not text_encoder:
            continue
        parts[name] = part if isinstance(part, Mapping) else _config(model, name, part)
    weights = {"t5": count_t5(parts["t5"]) * size if text_encoder else 0}
    weights |= {"stdit": count_stdit(parts["stdit"]) * size, "vae": count_vae(parts["vae"]) * size}
    height, width = image_size
    videos = batch_size * (1 if guidance_scale == 1 else 2)
    text = _text_work(parts["t5"], parts["stdit"], size) if text_encoder else 0
    of_step = (parts["stdit"], videos, num_frames, height, width, size)
    denoising = _denoising_work(*of_step, scores=on_cpu or size == 4)
    decoding = _decoding_work(
        parts["vae"], batch_size * num_frames, height, width, size, micro_batch_size or MICRO_BATCHES[0], on_cpu
    )
    process = PROCESS + min(KEPT * (denoising + decoding), MOST_KEPT) if on_cpu else 0
    compiling = left = 0.0
    if compiled and on_cpu:
        values = 4 / size * (weights["stdit"] + weights["vae"])
        compiling, left = ENGINE + COMPILING * values, ENGINE + COMPILED * values
        denoising = IN_ENGINE * _denoising_work(*of_step, scores=False)
        decoding, process = IN_ENGINE_DECODER[compiled] * decoding, PROCESS
    return MemoryEstimate(weights, text, denoising, decoding, process, sequential, compiling, left)


def _config(model: str | Path | None, name: str, part: str | Path | None) -> Mapping[str, Any]:
    from opensora_lite.request import model_folder

    if part is not None:
        return read_config(part)
    return RELEASED[name] if model == "XL/2" else read_config(model_folder("tiny" if model is None else model) / name)


def _text_work(t5: Mapping[str, Any], stdit: Mapping[str, Any], size: int) -> float:
    c, L = T5_DEFAULTS | dict(t5), {**STDIT_DEFAULTS, **stdit}["model_max_length"]
    return size * L * (4 * c["d_model"] + 3 * c["d_ff"] + 3 * c["num_heads"] * L)


def _denoising_work(
    config: Mapping[str, Any], videos: int, T: int, height: int, width: int, size: int, scores: bool
) -> float:
    """Bytes; scores: whether those of an attention are ever in memory."""
    c = STDIT_DEFAULTS | dict(config)
    D, heads, (_, rows, columns) = c["hidden_size"], c["num_heads"], c["patch_size"]
    S = math.ceil(height / 8 / rows) * math.ceil(width / 8 / columns)
    tokens = videos * T * S * D * size

    def piece(sets: int, n: int) -> float:  # of `sets` attentions among n tokens, as many at once as fit a piece
        at_once = sets * n * n
        return size * min(at_once, max(MAX_SCORES // n**2, 1) * n * n)

    most = max(piece(videos * T * heads, S), piece(videos * S * heads, T)) if scores else 0.0
    latents = 12 * videos * c["in_channels"] * T * (height // 8) * (width // 8) * 4  # of the sampler, in float32
    return max(IN_MLP * tokens, IN_ATTENTION * tokens + 2 * most) + latents


def _decoding_work(
    config: Mapping[str, Any], frames: int, height: int, width: int, size: int, micro_batch_size: int, on_cpu: bool
) -> float:
    c = VAE_DEFAULTS | dict(config)
    widths, at_once = list(c["block_out_channels"]), min(micro_batch_size, frames)
    following = [*widths[1:], widths[-1]]  # what comes into the blocks of a level, which is what they are widest at
    widest = max(n * height * width / 4**level for level, n in enumerate(following)) * size
    places = height * width / 4 ** (len(widths) - 1)
    maps = widest * (IN_DECODER * at_once + (9 if on_cpu else 0))
    return max(maps, IN_VAE_ATTENTION * at_once * places**2 * size) + frames * 3 * height * width * 4


# ---------------------------------------------------------------------------------------------------------------------
#   What fits
# ---------------------------------------------------------------------------------------------------------------------


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that a run could take now on `device`, "cpu", "gpu" or "gpu:1"; None where that is not known."""
    if device == "cpu":
        return machine.memory().available
    from opensora_lite.device import import_paddle

    cuda, number = import_paddle().device.cuda, int(device.partition(":")[2] or 0)
    return cuda.get_device_properties(number).total_memory - cuda.memory_allocated(number)


def micro_batch(
    vae: Mapping[str, Any], frames: int, height: int, width: int, dtype: str = "float32", device: str = "cpu"
) -> int:
    """How many of `frames` of height × width pixels should pass through a VAE at once, with the memory there is now.

    vae: what its config.json holds. dtype: of its weights, in Paddle's names. device: as `available_memory`.
    """
    free = available_memory(device)
    size, on_cpu = BYTES[dtype], device == "cpu"
    for n in MICRO_BATCHES:
        if free is None or _decoding_work(vae, frames, height, width, size, n, on_cpu) <= FOR_DECODING * free:
            return n
    return 1


def refuse_what_cannot_fit(
    settings: "Settings", estimate: Callable[..., MemoryEstimate], device: str, loaded: bool = False
) -> None:
    """Raise DeviceError where a run takes more memory than there is, with the largest that would fit.

    settings: of the run. estimate: called with `num_frames`, `image_size`, `batch_size` and `micro_batch_size`, gives
    the run's MemoryEstimate. device: as `runtime.set_device` gives it. loaded: whether the models are in memory.
    """
    free = available_memory(device)
    if free is None:
        return

    def takes(**changes: Any) -> float:
        found = estimate(**changes)
        return found.work if loaded else found.peak

    needed = takes()
    if needed <= free:
        return
    where = "memory" if device == "cpu" else f"memory of {device}"
    height, width = settings.image_size
    raise DeviceError(
        f"{settings.num_frames} frames of {height}×{width}, {settings.batch_size} video(s) at once, take"
        f" {needed / GB:.1f} GB of {where}, and {free / GB:.1f} GB are free;"
        f" {'; or '.join(_what_fits(settings, lambda **changes: takes(**changes) <= free)) or _too_large(estimate())}"
    )


def _what_fits(settings: "Settings", fits: Callable[..., bool]) -> Iterator[str]:
    """The largest changes of one setting that are enough; where none is, of frames and size with the least of the rest.

    fits: whether a run with these changes fits.
    """
    n, (height, width) = settings.num_frames, settings.image_size

    def smaller(**others: int) -> Iterator[str]:
        for frames in range(n - 1, 0, -1):
            if fits(num_frames=frames, **others):
                yield f"{frames} frame{'s' if frames > 1 else ''} would fit"
                break
        for tall in range(height - 8, 63, -8):  # smaller ones show nothing
            size = (tall, max(round(tall * width / height / 8) * 8, 8))
            if fits(image_size=size, **others):
                yield f"{size[0]}×{size[1]} would fit"
                break

    found = [f"micro_batch_size={m} would fit" for m in (8, 4, 2, 1) if fits(micro_batch_size=m)][:1]
    found += [f"batch_size={b} would fit" for b in range(settings.batch_size - 1, 0, -1) if fits(batch_size=b)][:1]
    found += smaller()
    least = "with micro_batch_size=1" + (" and one video at once" if settings.batch_size > 1 else "")
    yield from found or [f"{least}, {text}" for text in smaller(micro_batch_size=1, batch_size=1)]


def _too_large(estimate: MemoryEstimate) -> str:
    weights = sum(estimate.weights.values())
    return (
        f"nothing of this model fits, whose weights take {weights / GB:.1f} GB: half precision (on a GPU),"
        " sequential=True or text embeddings that are given take less"
    )


def for_settings(settings: "Settings", **fixed: Any) -> Callable[..., MemoryEstimate]:
    """`estimate_memory` for `settings`, called with what is to be changed of them; fixed: its other arguments."""
    chosen = dict(
        num_frames=settings.num_frames,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        guidance_scale=settings.guidance_scale,
    )
    return lambda **changes: estimate_memory(**{**chosen, **fixed, **changes})
