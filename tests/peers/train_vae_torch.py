"""Trains the frame VAE in PyTorch, with the recipe, batches and loss of the package.

    make peers
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_vae_torch.py tiny OUT --set vae.init=tiny --bf16
    .venv/bin/opensora-lite train tiny --out RUN --set vae.init=OUT --set vae.decoder=null

For machines where PyTorch is faster than Paddle. OUT/vae is the VAE of a model folder; OUT/state has the checkpoint
that an interrupted run resumes from. With `vae.init` only the decoder is trained, from the same weights as in Paddle;
otherwise first the whole VAE, from PyTorch's random initialization.
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

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.request import model_folder
from opensora_lite.training.data import LATENT_CHANNELS, Pictures, clip_at
from opensora_lite.training.recipe import read_recipe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def start(v, seed):
    """An AutoencoderKL and its config.json: that of `init`, or a randomly initialized one."""
    torch.manual_seed(seed)
    if v.init is not None:
        folder = model_folder(v.init) / "vae"
        config = json.loads((folder / "config.json").read_text())
        model = AutoencoderKL.from_config(config)
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))  # float16 into float32
        return model.to(DEVICE), config
    config = dict(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(v.block_out_channels),
        layers_per_block=v.layers_per_block,
        act_fn="silu",
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=v.norm_num_groups,
    )
    return AutoencoderKL(**config).to(DEVICE), {**config, "_class_name": "AutoencoderKL"}


def loss_of(model, pictures, noise, v, bf16):
    """As opensora_lite.training.losses.vae_loss."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        posterior = model.encode(pictures).latent_dist
        again = model.decode(posterior.mean + posterior.std * noise).sample
    mean, logvar, error = posterior.mean.float(), posterior.logvar.float(), again.float() - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    squared = error.square().mean()
    return error.abs().mean() + v.squared_weight * squared + v.gradient_weight * edges + v.kl_weight * divergence


def train(name, recipe, v, model, pictures, a):
    """One stage; the model is left with the moving average of its weights."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), v.learning_rate, v.betas, weight_decay=0)
    average = {n: p.detach().clone() for n, p in parameters.items()}
    step, history, path = 0, [], a.out / "state" / f"{name}_torch.pt"
    if path.exists():
        state = torch.load(path, map_location=DEVICE)
        for n, p in parameters.items():
            p.data.copy_(state["weights"][n])
        optimizer.load_state_dict(state["optimizer"])
        average, step, history = state["average"], state["step"], state["history"]

    start, first = time.perf_counter(), step
    while step < v.steps:
        batch, noise = (torch.from_numpy(part).to(DEVICE) for part in pictures.batch(v, recipe.seed, step))
        loss = loss_of(model, batch, noise, v, a.bf16)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), v.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise SystemExit(
                f"step {step + 1}: the loss is {loss}, the norm of its gradients {norm}; nothing was saved"
            )
        for group in optimizer.param_groups:
            group["lr"] = v.rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for n, p in parameters.items():
                average[n].lerp_(p, 1 - v.ema_at(step))
        history.append((step + 1, "x".join(map(str, batch.shape[2:])), loss.item(), v.rate_at(step)))
        step += 1
        if step % 50 == 0 or step == v.steps:
            speed, mean = (step - first) / (time.perf_counter() - start), np.mean([row[2] for row in history[-50:]])
            left = (v.steps - step) / speed / 60
            print(f"{name}: step {step} of {v.steps}, loss {mean:.4f}, {speed:.2f}/s, {left:.0f} min left", flush=True)
        if step % recipe.save_every == 0 or step == v.steps:
            weights = {n: p.data for n, p in parameters.items()}
            state = dict(weights=weights, optimizer=optimizer.state_dict(), average=average, step=step, history=history)
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
            with (
                atomic_write(path.with_name(f"{name}_losses.csv")) as temporary,
                open(temporary, "w", newline="") as file,
            ):
                csv.writer(file).writerows([("step", "kind", "loss", "rate"), *history])
    for n, p in parameters.items():
        p.data.copy_(average[n])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="tiny, or a YAML file")
    parser.add_argument("out", type=Path, help="a new folder, or that of a run to go on with")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--bf16", action="store_true", help="about twice as fast, where the processor can do it")
    a = parser.parse_args()
    recipe = read_recipe(a.recipe, dict(change.split("=", 1) for change in a.set))
    v = recipe.vae

    model, config = start(v, recipe.seed)
    clips = [clip_at(recipe.world, i) for i in range(min(v.clips, recipe.world.clips))]
    pictures = Pictures(clips, [clip.render(recipe.world.num_frames) for clip in clips])
    for name, stage in v.stages.items():
        if name == "decoder":
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
        train(name, recipe, stage, model, pictures, a)

    if "scaling_factor" not in config:  # latents of standard deviation 1
        frames = [clip.render(1).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1 for clip in clips[:200]]
        with torch.no_grad():
            latents = [model.encode(torch.from_numpy(each).to(DEVICE)).latent_dist.mean.flatten() for each in frames]
        config["scaling_factor"] = round(1 / torch.cat(latents).std().item(), 6)
    half = {n: value.half().cpu().contiguous() for n, value in model.state_dict().items()}
    with atomic_write(a.out / "vae" / "diffusion_pytorch_model.safetensors") as temporary:
        save_file(half, temporary, {"format": "pt"})
    write_json(a.out / "vae" / "config.json", config)


if __name__ == "__main__":
    main()
