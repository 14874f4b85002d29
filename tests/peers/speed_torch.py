"""The work that tests/benchmarks times, in PyTorch, in the ways in which its users run it.

A guided denoising step, the VAE's decoder (diffusers' AutoencoderKL), the T5 encoder (transformers') and all of them
in turn, which is a video; eager or by torch.compile; in float32, or with weights and activations in bfloat16.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path

import stdit2_torch
import stdit3_torch
import torch
import video_vae_torch
from losses_torch import ABAR
from safetensors.torch import load_file, save_file
from serve import clock, forget_peak, peak_memory, timed

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
works = {}  # what has been made ready: functions, by the names that requests use
before = 0  # bytes that the process held before it loaded its first model


def config_of(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def denoiser(folder, dtype, compiled, told):
    """A caption (y [1, 1, L, caption_channels], mask [1, L]) -> a guided step (x [1, C, T, H, W], t) -> ε or v, like x.

    told: scale, channels, and the sizes that the model's forward takes.
    """
    config, sizes = config_of(folder), ["height", "width", "fps"]
    if config["model_type"] == "STDiT3":
        load = stdit3_torch.load
    else:
        load, sizes = stdit2_torch.load, [*sizes, "num_frames", "ar"]
    model = load(config, Path(folder) / "model.safetensors", dtype)
    if compiled:
        model.compile(dynamic=False)
    sizes = {name: torch.full((2,), float(told[name])) for name in sizes}
    scale, channels = told["scale"], told["channels"]

    def for_caption(y, mask):
        L = int(mask.sum())  # what lies behind the caption is never looked at
        y = torch.cat([y[:, :, :L], model.y_embedder.y_embedding[None, None, :L]])
        mask = mask[:, :L].repeat(2, 1)

        def step(x, t):
            epsilon = model(x.repeat(2, 1, 1, 1, 1), torch.full((2,), float(t)), y, mask, **sizes).chunk(2, 1)[0]
            caption, without = epsilon.chunk(2)
            guided = without + scale * (caption - without)
            return guided if channels is None else torch.cat([guided[:, :channels], caption[:, channels:]], 1)

        return step

    return for_caption


def decoder(folder, dtype, compiled, num_frames):
    """Latents [1, C, T, h, w] -> pixels [1, 3, num_frames, H, W], values about -1 … 1."""
    from diffusers import AutoencoderKL

    if "vae_temporal" in config_of(folder):
        video_vae = video_vae_torch.load(folder).to(dtype)
        video_vae.micro_batch_size = num_frames
        if compiled:
            video_vae.temporal_vae.decoder.compile(dynamic=False)
            video_vae.spatial_vae.module.decoder.compile(dynamic=False)
        return lambda z: video_vae.decode(z.to(dtype), num_frames).float()

    model = AutoencoderKL.from_config(config_of(folder))
    model.load_state_dict(load_file(Path(folder) / "diffusion_pytorch_model.safetensors"))
    model = model.to(dtype).eval()
    if compiled:
        model.decoder.compile(dynamic=False)

    def decode(z):
        frames = (z[0] / model.config.scaling_factor).transpose(0, 1).to(dtype)
        return model.decode(frames).sample.float().transpose(0, 1)[None]

    return decode


def encoder(folder, dtype, compiled):
    """(ids, mask [1, L]) -> T5 vectors [1, L, d_model]."""
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(**config_of(folder)))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
    model.encoder.embed_tokens.weight = model.shared.weight
    model = model.to(dtype).eval()
    if compiled:
        model.compile(dynamic=False)
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state.float()


def step(models, told, y, mask, **how):
    denoise = denoiser(models["stdit"], told=told, **how)(y, mask)
    return lambda x, timestep: denoise(x, timestep.item())


def decode(models, told, **how):
    return decoder(models["vae"], num_frames=told["num_frames"], **how)


def caption(models, told, **how):
    return encoder(models["t5"], **how)


def video(models, told, **how):
    """DDIM (arXiv:2010.02502, eq. 12 with σ = 0) from z, or Euler's method for rectified flow, between the encoder and
    the decoder -> 0 … 255, as uint8."""
    encode, denoise = encoder(models["t5"], **how), denoiser(models["stdit"], told=told, **how)
    to_pixels = decoder(models["vae"], num_frames=told["num_frames"], **how)
    times = told["timesteps"]  # in the order in which they are visited
    is_flow = config_of(models["stdit"])["model_type"] == "STDiT3"

    def make(ids, mask, z):
        predict = denoise(encode(ids, mask)[:, None], mask)
        for t, later in zip(times, [*times[1:], None], strict=True):
            if is_flow:
                z = z + (t - (later or 0)) / 1000 * predict(z, t)
                continue
            epsilon = predict(z, t)
            now, then = ABAR[t].item(), 1.0 if later is None else ABAR[later].item()
            clean = (z - (1 - now) ** 0.5 * epsilon) / now**0.5
            z = then**0.5 * clean + (1 - then) ** 0.5 * epsilon
        return ((to_pixels(z).clip(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)

    return make


KINDS = {function.__name__: function for function in (step, decode, caption, video)}


def ready(name, kind, models, told, precision="fp32", compiled=False, inputs=None):
    """Loads what a piece of work needs. models: folders by part; told: numbers that do not change between turns."""
    global before
    if kind in ("decode", "video"):
        import diffusers  # noqa: F401  imports are no part of what a model needs
    if kind in ("caption", "video"):
        import transformers  # noqa: F401
    if not works:
        forget_peak()
        before = peak_memory()
    start = time.perf_counter()
    how = {"dtype": PRECISIONS[precision], "compiled": compiled}
    works[name] = KINDS[kind](models, told, **how, **(load_file(inputs) if inputs else {}))
    seconds, versions = time.perf_counter() - start, {n: version(n) for n in ("torch", "transformers", "diffusers")}
    return {"seconds": seconds, "versions": versions, "threads": torch.get_num_threads()}


def turn(name, inputs, outputs=None):
    """Does that work, and says how long it took. outputs: "out"."""
    tensors = load_file(inputs)
    with torch.no_grad():
        out, seconds = timed(lambda: works[name](**tensors))
    if outputs:
        save_file({"out": out.contiguous()}, outputs)
    return {"seconds": seconds}


def memory():
    """The most that the process has held beyond its imports, in bytes."""
    return {"peak": None if before is None else peak_memory() - before}


def product(size, precision):
    """Seconds of a product of two square matrices."""
    a, b = (torch.randn(size, size).to(PRECISIONS[precision]) for _ in range(2))
    start = clock()
    torch.mm(a, b)
    return {"seconds": clock() - start}


def flops(name, inputs):
    """FLOPs of the matrix products and convolutions of that work, as PyTorch counts them while it runs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the counter does not know the fused attention of CPUs, but the two products that stand for it
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        works[name](**load_file(inputs))
    return {"flops": counter.get_total_flops()}
