"""Trains the video VAE of Open-Sora 1.2 in PyTorch, with the recipe and batches of the package.

    make peers
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_video_vae_torch.py tiny-1.2 RUN

RUN/vae is the VAE in the released form; RUN/state has the checkpoints that an interrupted run resumes from, the losses
and, in vae.log, the PSNR of held-out clips.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from video_vae_torch import SPATIAL_FACTOR, CausalConv, ResBlock, TemporalVAE, VideoVAE

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.latent_time import CHUNK
from opensora_lite.liteworld.world import HELD_OUT
from opensora_lite.request import model_folder
from opensora_lite.training.data import VideoPairs, shot_at
from opensora_lite.training.recipe import Shots, VideoRecipe, read_recipe

SPREAD = 0.244  # standard deviation of the spatial latents, times 0.18215
STREAMS = {"temporal": 11, "joint": 12, "decoder": 13}


def config_of(v) -> dict:
    """vae_temporal of the released config.json."""
    return dict(
        type="VAE_Temporal",
        in_out_channels=4,
        latent_embed_dim=v.channels,
        embed_dim=v.channels,
        filters=v.filters,
        num_res_blocks=v.num_res_blocks,
        channel_multipliers=[1, 2, 2, 4],
        temporal_downsample=[False, True, True],
        num_groups=v.num_groups,
    )


def new_vae(v, seed) -> tuple[VideoVAE, dict]:
    """A VideoVAE with a trained spatial part, and the config.json of the spatial part."""
    torch.manual_seed(seed)
    folder = model_folder(v.spatial) / "vae"
    config = json.loads((folder / "config.json").read_text())
    spatial = AutoencoderKL.from_config(config)
    spatial.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))  # float16 into float32
    temporal = TemporalVAE(**{name: value for name, value in config_of(v).items() if name != "type"})
    begin_simple(temporal)
    with torch.no_grad():  # its input and output have a small spread
        temporal.encoder.conv_in.conv.weight /= SPREAD
        temporal.decoder.conv_out.conv.weight *= SPREAD
    spatial = spatial.to(memory_format=torch.channels_last)
    vae = VideoVAE(spatial, temporal, [0] * v.channels, [1] * v.channels, micro_batch_size=10**6)
    vae.spatial_vae.module.encoder.requires_grad_(False)
    vae.spatial_vae.module.quant_conv.requires_grad_(False)
    return vae, config


@torch.no_grad()
def begin_simple(temporal: TemporalVAE):
    """Initializes for a fast start (four times as fast): residual blocks are identities, and the convolutions between
    them mix frames but not yet places."""
    for name, module in temporal.named_modules():
        if isinstance(module, ResBlock):
            torch.nn.init.zeros_(module.conv2.conv.weight)
        elif isinstance(module, CausalConv) and "res_blocks" not in name and module.conv.kernel_size[-1] == 3:
            centre = 3 * module.conv.weight[..., 1:2, 1:2]
            torch.nn.init.zeros_(module.conv.weight)[..., 1:2, 1:2] = centre


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


def loss_of(vae: VideoVAE, name: str, v, x, pixels, noise, still: bool, decoded):
    """Loss of a batch of VideoPairs; of spatial latents in the stage `temporal`, else of pixels."""
    temporal, T = vae.temporal_vae, x.shape[2]
    if name == "decoder":
        with torch.no_grad():
            posterior = temporal.encode(x)
    else:
        posterior = temporal.encode(x)
    z = posterior.sample(noise)
    if still:  # the last latent is that of an image, and all of its frames are the last one
        with torch.set_grad_enabled(name != "decoder"):
            z = torch.cat([z[:, :, :-1], temporal.encode(x[:, :, -1:]).sample(noise[:, :, -1:])], 2)
        x, pixels = (torch.cat([w[:, :, :-4], w[:, :, -1:].expand_as(w[:, :, -4:])], 2) for w in (x, pixels))
    again = temporal.decode(z, T)
    if name == "temporal":
        error = (again - x) / SPREAD
        return error.abs().mean() + error.square().mean() + v.kl_weight * posterior.kl()
    error = vae.decode_spatial(again[:, :, decoded]) - pixels[:, :, decoded]
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    loss = error.abs().mean() + v.squared_weight * error.square().mean() + v.gradient_weight * edges
    return loss + v.kl_weight * posterior.kl() if v.kl_weight else loss


class Muon(torch.optim.Optimizer):
    """As train_torch.Muon; kernels [out, in, …] are matrices [out, in · …]."""

    def __init__(self, parameters, momentum=0.95):
        super().__init__(parameters, dict(lr=0.0, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                moment = self.state[parameter].setdefault("moment", torch.zeros_like(parameter))
                moment.lerp_(parameter.grad, 1 - group["momentum"])
                x = torch.lerp(parameter.grad, moment, group["momentum"]).flatten(1)
                wide = x.shape[0] <= x.shape[1]
                size = 0.2 * max(x.shape) ** 0.5
                x = x / (x.norm() + 1e-7) if wide else x.T / (x.norm() + 1e-7)
                for _ in range(5):  # Newton-Schulz: all singular values towards 1
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                parameter.sub_((x if wide else x.T).reshape(parameter.shape), alpha=size * group["lr"])


def train(name: str, recipe: VideoRecipe, vae: VideoVAE, pairs: VideoPairs, held_out: list, out: Path, log):
    """One stage; the VAE is left with the moving average of its weights."""
    v = recipe.vae.stages[name]
    trained = dict(vae.named_parameters())
    parts = {
        "temporal": ("temporal_vae.",),
        "joint": ("temporal_vae.", "spatial_vae.module.decoder.", "spatial_vae.module.post_quant_conv."),
        "decoder": (
            "temporal_vae.decoder.",
            "temporal_vae.post_quant_conv.",
            "spatial_vae.module.decoder.",
            "spatial_vae.module.post_quant_conv.",
        ),
    }[name]
    parameters = {n: p for n, p in trained.items() if n.startswith(parts)}
    matrices = [p for n, p in parameters.items() if v.takes_muon(n, p.ndim)]
    others = [p for n, p in parameters.items() if not v.takes_muon(n, p.ndim)]
    optimizers = [torch.optim.AdamW(others, v.learning_rate, v.betas, weight_decay=0), Muon(matrices)]
    average = {n: p.detach().clone() for n, p in parameters.items()}
    step, history, path = 0, [], out / "state" / f"{name}_torch.pt"
    if path.exists():
        state = torch.load(path)
        for n, p in parameters.items():
            p.data.copy_(state["weights"][n])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average, step, history = state["average"], state["step"], state["history"]

    start, first = time.perf_counter(), step
    while step < v.steps:
        x, pixels, noise, still, decoded = pairs.batch(v, recipe.seed, STREAMS[name], step)
        loss = loss_of(vae, name, v, *(torch.from_numpy(part) for part in (x, pixels, noise)), still, decoded)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), v.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise SystemExit(f"{name}, step {step + 1}: the loss is {loss}, the norm {norm}; nothing was saved")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = v.rate_at(step)
            optimizer.step()
        vae.zero_grad()
        with torch.no_grad():
            for n, p in parameters.items():
                average[n].lerp_(p, 1 - v.ema_at(step))
        history.append((step + 1, "x".join(map(str, pixels.shape[2:])), loss.item(), v.rate_at(step)))
        step += 1
        if step % 50 == 0 or step == v.steps:
            speed, mean = (step - first) / (time.perf_counter() - start), np.mean([row[2] for row in history[-50:]])
            left = (v.steps - step) / speed / 60
            log(f"{name}: step {step} of {v.steps}, loss {mean:.4f}, {speed:.2f}/s, {left:.0f} min left")
        if step % recipe.save_every == 0 or step == v.steps:
            own = {n: p.data.clone() for n, p in parameters.items()}
            state = dict(
                weights=own,
                optimizers=[o.state_dict() for o in optimizers],
                average=average,
                step=step,
                history=history,
            )
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
            losses = path.with_name(f"{name}_losses.csv")
            with atomic_write(losses) as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file).writerows([("step", "kind", "loss", "rate"), *history])
            for n, p in parameters.items():
                p.data.copy_(average[n])
            log(f"{name}: step {step}, held-out dB {psnr_of(vae, held_out)}")
            for n, p in parameters.items():
                p.data.copy_(own[n])
    for n, p in parameters.items():
        p.data.copy_(average[n])


def cached(path: Path, make):
    """The arrays of an npz file, made first if it doesn't exist."""
    if not path.exists():
        arrays = make()
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{str(i): array for i, array in enumerate(arrays)})
    with np.load(path) as arrays:
        return [arrays[str(i)] for i in range(len(arrays))]


def export(out: Path, recipe: VideoRecipe, vae: VideoVAE, spatial_config: dict, clips: list, latents: list):
    """RUN/vae in the released form, with the shift and scale of the latents."""
    with torch.no_grad():
        z = [vae.temporal_vae.encode(torch.from_numpy(x[None].astype(np.float32))).mean for x in latents]
        z = torch.cat([part.transpose(0, 1).flatten(1) for part in z], 1)
        vae.shift.copy_(z.mean(1).reshape(vae.shift.shape))
        vae.scale.copy_(z.std(1).reshape(vae.scale.shape))
    tensors = {n: value.half().contiguous() for n, value in vae.state_dict().items()}
    with atomic_write(out / "vae" / "model.safetensors") as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_json(out / "vae" / "vae_2d" / "config.json", {**spatial_config, "scaling_factor": SPATIAL_FACTOR})
    config = dict(
        architectures=["VideoAutoencoderPipeline"],
        model_type="VideoAutoencoderPipeline",
        vae_2d=dict(type="VideoAutoencoderKL", from_pretrained="vae_2d", micro_batch_size=4, local_files_only=True),
        vae_temporal=config_of(recipe.vae),
        freeze_vae_2d=False,
        cal_loss=False,
        micro_frame_size=CHUNK,
        shift=[round(value, 6) for value in vae.shift.flatten().tolist()],
        scale=[round(value, 6) for value in vae.scale.flatten().tolist()],
        from_pretrained=None,
    )
    write_json(out / "vae" / "config.json", config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="tiny-1.2, or a YAML file")
    parser.add_argument("out", type=Path, help="a new folder, or that of a run to go on with")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a field of the recipe")
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

    vae, spatial_config = new_vae(v, recipe.seed)
    clips = [shot_at(recipe.world, i, v.kinds) for i in range(v.clips)]
    log(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(clips)} clips")
    frames = cached(a.out / "state" / "vae_frames.npz", lambda: [clip.render(CHUNK) for clip in clips])

    def spatial_latents():
        with torch.no_grad():
            return [vae.encode_spatial(to_pixels(each))[0].half().numpy() for each in frames]

    latents = cached(a.out / "state" / "vae_latents.npz", spatial_latents)
    spread = np.std(np.concatenate([z.ravel() for z in latents[:200]]), dtype=np.float64)
    log(f"standard deviation of the spatial latents: {spread:.4f}")
    others = Shots(clips=10**5, first_seed=HELD_OUT - 10**5, fps=recipe.world.fps)  # beyond those of the training
    held_out = [shot_at(others, i, ("17x64x64", "17x128x128", "17x64x64")) for i in range(12)]
    held_out = [(clip, clip.render(CHUNK)) for clip in held_out]
    pairs = VideoPairs(clips, frames, latents, v.channels)
    for name in v.stages:
        train(name, recipe, vae, pairs, held_out, a.out, log)
    export(a.out, recipe, vae, spatial_config, clips, latents)
    log(f"done: held-out dB {psnr_of(vae, held_out)}")


if __name__ == "__main__":
    main()
