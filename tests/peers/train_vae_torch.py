"""Trains the frame VAE in PyTorch, with the recipe, batches and loss of the package.

    make peers
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_vae_torch.py tiny OUT --set vae.init=tiny --bf16
    .venv/bin/opensora-lite train tiny --out RUN --set vae.init=OUT --set vae.decoder=null

For machines where PyTorch is faster than Paddle. OUT/vae is the VAE of a model folder; OUT/state has the checkpoint
that an interrupted run resumes from. With `vae.init` only the decoder is trained, from the same weights as in Paddle;
otherwise first the whole VAE, from PyTorch's random initialization.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from train_torch import DEVICE, Trainer

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.request import model_folder
from opensora_lite.training.configs import vae_config
from opensora_lite.training.data import Pictures, clip_at
from opensora_lite.training.recipe import read_recipe


def start(v, seed):
    """An AutoencoderKL and its config.json: that of `init`, or a randomly initialized one."""
    torch.manual_seed(seed)
    if v.init is not None:
        folder = model_folder(v.init) / "vae"
        config = json.loads((folder / "config.json").read_text())
        model = AutoencoderKL.from_config(config)
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))  # float16 into float32
        return model.to(DEVICE), config
    config = vae_config(v)
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

    def loss(step):
        batch, noise = (torch.from_numpy(part).to(DEVICE) for part in pictures.batch(v, recipe.seed, step))
        return loss_of(model, batch, noise, v, a.bf16), "x".join(map(str, batch.shape[2:]))

    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    trainer = Trainer(name, v, parameters, loss, a.out / "state", recipe.save_every)
    for _ in trainer.fit():
        pass
    trainer.finish()


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
