"""Trains the video VAE of Open-Sora 1.2 in PyTorch, with the recipe and batches of the package.

    make peers
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_video_vae_torch.py tiny-1.2 RUN

RUN/vae is the VAE in the released form; RUN/state has the checkpoints that an interrupted run resumes from, the losses
and, in vae.log, the PSNR of held-out clips.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from train_torch import Trainer
from video_vae_torch import SPATIAL_FACTOR, TemporalVAE, VideoVAE

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.latent_time import CHUNK
from opensora_lite.liteworld.world import HELD_OUT
from opensora_lite.request import model_folder
from opensora_lite.training.configs import spatial_config, spatial_spread, video_vae_config
from opensora_lite.training.data import VideoPairs, shot_at
from opensora_lite.training.linear_code import temporal_vae_start
from opensora_lite.training.recipe import Shots, VideoRecipe, read_recipe


def new_vae(v) -> VideoVAE:
    """A VideoVAE with a trained spatial part, of which the decoder is trained on."""
    config = spatial_config(v)
    spatial = AutoencoderKL.from_config(config)
    weights = model_folder(v.spatial) / "vae" / "diffusion_pytorch_model.safetensors"
    spatial.load_state_dict(load_file(weights))  # float16 into float32
    spatial = spatial.to(memory_format=torch.channels_last)
    sizes = {name: value for name, value in video_vae_config(v, [], [])["vae_temporal"].items() if name != "type"}
    temporal = TemporalVAE(**sizes)
    vae = VideoVAE(spatial, temporal, [0] * v.channels, [1] * v.channels, micro_batch_size=10**6)
    vae.spatial_vae.module.encoder.requires_grad_(False)
    vae.spatial_vae.module.quant_conv.requires_grad_(False)
    return vae


def start_as_linear_code(vae: VideoVAE, latents: list[np.ndarray], spread: float, seed: int):
    """Initialize the temporal VAE as in Paddle, from spatial latents [C, T, h, w]."""
    shapes = {name: tuple(value.shape) for name, value in vae.temporal_vae.named_parameters()}
    start = temporal_vae_start(shapes, latents, spread, seed)
    vae.temporal_vae.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> float32 [1, 3, T, H, W], -1 … 1."""
    return torch.from_numpy(frames.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1)


def psnr_of(vae: VideoVAE, clips: list) -> dict[str, float]:
    """PSNR in dB of the frames of held-out clips by size: `HxW`, of images: `image HxW`."""
    found: dict[str, list] = {}
    for clip, frames in clips:
        for name, part in (("", frames), ("image ", frames[8:9])):
            with torch.no_grad():
                z = vae.encode_temporal(vae.encode_spatial(to_pixels(part)))
                again = vae.decode_spatial(vae.decode_temporal(z.mean, len(part)))[0]
            again = ((again.clamp(-1, 1) + 1) * 127.5).round().numpy().transpose(1, 2, 3, 0)
            error = ((again - part) ** 2).mean((1, 2, 3))
            found.setdefault(f"{name}{clip.height}x{clip.width}", []).extend(10 * np.log10(255**2 / error))
    return {name: round(float(np.mean(values)), 2) for name, values in found.items()}


def loss_of(vae: VideoVAE, name: str, spread: float, v, x, pixels, noise, still: bool, decoded):
    """Loss of a batch of VideoPairs; of spatial latents in the stage `temporal`, else of pixels."""
    temporal, T = vae.temporal_vae, x.shape[2]
    if name == "decoder":
        with torch.no_grad():
            posterior = temporal.encode(x)
    else:
        posterior = temporal.encode(x)
    z = posterior.sample(noise)
    if still:  # the last latent is that of a clip that shows its last frame only, and so do all of its frames
        with torch.set_grad_enabled(name != "decoder"):
            z = torch.cat([z[:, :, :-1], temporal.encode(x[:, :, -1:].expand_as(x)).sample(noise)[:, :, -1:]], 2)
        x, pixels = (torch.cat([w[:, :, :-4], w[:, :, -1:].expand_as(w[:, :, -4:])], 2) for w in (x, pixels))
    again = temporal.decode(z, T)
    if name == "temporal":
        error = (again - x) / spread
        return error.abs().mean() + error.square().mean() + v.kl_weight * posterior.kl()
    error = vae.decode_spatial(again[:, :, decoded]) - pixels[:, :, decoded]
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    loss = error.abs().mean() + v.squared_weight * error.square().mean() + v.gradient_weight * edges
    return loss + v.kl_weight * posterior.kl() if v.kl_weight else loss


def train(name: str, recipe: VideoRecipe, vae: VideoVAE, spread: float, pairs: VideoPairs, held_out, out: Path, log):
    """One stage; the VAE is left with the moving average of its weights."""
    v = recipe.vae.stages[name]

    def loss(step):
        *arrays, still, decoded = pairs.batch(v, recipe.seed, recipe.vae.STREAMS[name], step)
        x, pixels, noise = map(torch.from_numpy, arrays)
        kind = "x".join(map(str, pixels.shape[2:]))
        return loss_of(vae, name, spread, v, x, pixels, noise, still, decoded), kind

    parameters = {n: p for n, p in vae.named_parameters() if n.startswith(recipe.vae.TRAINED[name])}
    trainer = Trainer(name, v, parameters, loss, out / "state", recipe.save_every, log=log)
    for saved in trainer.fit():
        if saved:
            with trainer.averaged():
                log(f"{name}: step {trainer.step}, held-out dB {psnr_of(vae, held_out)}")
    trainer.finish()


def cached(path: Path, make):
    """The arrays of an npz file, made first if it doesn't exist."""
    if not path.exists():
        arrays = make()
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{str(i): array for i, array in enumerate(arrays)})
    with np.load(path) as arrays:
        return [arrays[str(i)] for i in range(len(arrays))]


def export(out: Path, v, vae: VideoVAE, latents: list):
    """RUN/vae in the released form, with the shift and scale of the latents."""
    with torch.no_grad():
        z = [vae.temporal_vae.encode(torch.from_numpy(x[None].astype(np.float32))).mean for x in latents]
        z = torch.cat([part.transpose(0, 1).flatten(1) for part in z], 1)
        vae.shift.copy_(z.mean(1).reshape(vae.shift.shape))
        vae.scale.copy_(z.std(1).reshape(vae.scale.shape))
    tensors = {n: value.half().contiguous() for n, value in vae.state_dict().items()}
    with atomic_write(out / "vae" / "model.safetensors") as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_json(out / "vae" / "vae_2d" / "config.json", {**spatial_config(v), "scaling_factor": SPATIAL_FACTOR})
    shift, scale = ([round(x, 6) for x in value.flatten().tolist()] for value in (vae.shift, vae.scale))
    write_json(out / "vae" / "config.json", video_vae_config(v, shift, scale))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="tiny-1.2, or a YAML file")
    parser.add_argument("out", type=Path, help="a new folder, or that of a run to go on with")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--held-out", type=int, default=12, help="clips whose PSNR is logged with every checkpoint")
    a = parser.parse_args()
    recipe = read_recipe(a.recipe, dict(change.split("=", 1) for change in a.set))
    v = recipe.vae
    if (a.out / "vae" / "config.json").exists():
        return
    (a.out / "state").mkdir(parents=True, exist_ok=True)

    def log(text):
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(line, flush=True)
        with open(a.out / "vae.log", "a") as file:
            file.write(line + "\n")

    vae, spread = new_vae(v), spatial_spread(spatial_config(v), SPATIAL_FACTOR)
    clips = [shot_at(recipe.world, i, v.kinds) for i in range(v.clips)]
    log(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(clips)} clips")
    frames = cached(a.out / "state" / "vae_frames.npz", lambda: [clip.render(CHUNK) for clip in clips])

    def spatial_latents():
        with torch.no_grad():
            return [vae.encode_spatial(to_pixels(each))[0].half().numpy() for each in frames]

    latents = cached(a.out / "state" / "vae_latents.npz", spatial_latents)
    measured = np.std(np.concatenate([z.ravel() for z in latents[:200]]), dtype=np.float64)
    log(f"standard deviation of the spatial latents: {measured:.4f}, by the recipe {spread}")
    start_as_linear_code(vae, latents, spread, recipe.seed)
    others = Shots(clips=10**5, first_seed=HELD_OUT - 10**5, fps=recipe.world.fps)  # beyond those of the training
    held_out = [shot_at(others, i, ("17x64x64", "17x128x128", "17x64x64")) for i in range(a.held_out)]
    held_out = [(clip, clip.render(CHUNK)) for clip in held_out]
    pairs = VideoPairs(clips, frames, latents, v.channels)
    for name in v.stages:
        train(name, recipe, vae, spread, pairs, held_out, a.out, log)
    export(a.out, v, vae, latents)
    log(f"done: held-out dB {psnr_of(vae, held_out)}")


if __name__ == "__main__":
    main()
