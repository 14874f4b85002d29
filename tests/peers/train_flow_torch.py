"""Trains T5 and STDiT3 in PyTorch, with the recipe and batches of the package, on the VAE of train_video_vae_torch.py.

    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_flow_torch.py tiny-1.2 RUN

First the clips are rendered and encoded, in parts (RUN/state/latents_N.npz). RUN/stdit and RUN/t5 are the averaged
weights in the released form; RUN/state has the checkpoint that an interrupted run resumes from, and the losses;
RUN/sheets has samples.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from rflow_torch import timestep_transform, training_losses
from stdit3_torch import FIELDS, STDiT3, load
from train_torch import Trainer, export_models, load_t5, parameters_of, tokenize
from transformers import T5Config, T5EncoderModel
from video_vae_torch import load as load_vae

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.latent_time import CHUNK, FACTOR, LatentTime
from opensora_lite.training.configs import new_tokenizer, stdit3_config, t5_config
from opensora_lite.training.data import ShotLatents, shot_at
from opensora_lite.training.recipe import VideoRecipe, read_recipe

TIME = LatentTime(CHUNK, FACTOR)
PART = 250  # clips of one file of latents
STEPS, GUIDANCE = 12, 4.0  # of the samples
FIXED = dict(dropout_rate=0.0, tie_word_embeddings=False)  # fields of T5's config


def encode_clips(recipe: VideoRecipe, vae, out: Path, log) -> tuple[list, list]:
    """The clips of the world, and of each the latents [3, C, T, h, w] that ShotLatents wants."""
    clips = [shot_at(recipe.world, i) for i in range(recipe.world.clips)]
    latents = []
    for first in range(0, len(clips), PART):
        path, part = out / "state" / f"latents_{first // PART}.npz", clips[first : first + PART]
        if not path.exists():
            arrays = [encode(vae, clip) for clip in part]
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **{str(i): array for i, array in enumerate(arrays)})
            log(f"encoded {first + len(part)} of {len(clips)} clips")
        with np.load(path) as arrays:
            latents += [arrays[str(i)] for i in range(len(part))]
    return clips, latents


@torch.no_grad()
def encode(vae, clip) -> np.ndarray:
    """float16 [3, C, T, h, w]: the latents that ShotLatents wants of a clip."""
    frames = clip.render(clip.num_frames).transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
    x = vae.encode_spatial(torch.from_numpy(frames))
    frames = x[0, :, [window.last for window in TIME.windows(clip.num_frames)]].transpose(0, 1)[:, :, None]
    images = vae.temporal_vae.encode(frames).mean
    references = images.clone()  # right where the length is 1
    for length, places in TIME.stills(clip.num_frames).items():
        if length > 1:
            stills = vae.temporal_vae.encode(frames[list(places)].expand(-1, -1, length, -1, -1)).mean
            for still, (latent, place) in zip(stills, places.items(), strict=True):
                references[latent] = still[:, place : place + 1]
    rows = [vae.encode_temporal(x).mean, *(part[:, :, 0].transpose(0, 1)[None] for part in (images, references))]
    three = torch.cat(rows)
    return ((three - vae.shift[0]) / vae.scale[0]).half().numpy()


def new_models(recipe: VideoRecipe, vocabulary: int):
    """Initialized T5 and STDiT3, whose output is 0."""
    d = recipe.diffusion
    torch.manual_seed(recipe.seed)
    t5 = T5EncoderModel(T5Config(**t5_config(d, vocabulary), **FIXED))
    config = stdit3_config(recipe)
    stdit = STDiT3(**{field: config[field] for field in FIELDS})
    zero = (".bias", "cross_attn.proj.weight", "final_layer.linear.weight", "fps_embedder.mlp.2.weight")
    zero_in_time = ("attn.proj.weight", "mlp.fc2.weight")
    for name, p in stdit.named_parameters():
        if name.endswith(zero) or (name.startswith("temporal_blocks.") and name.endswith(zero_in_time)):
            torch.nn.init.zeros_(p)
        elif name.startswith(("t_embedder.", "fps_embedder.", "t_block.", "y_embedder.")):
            torch.nn.init.normal_(p, std=0.02)
        elif p.ndim >= 2 and "scale_shift_table" not in name:
            torch.nn.init.xavier_uniform_(p.view(len(p), -1))
    stdit.y_embedder.y_embedding.normal_(std=d.d_model**-0.5)
    return t5, stdit


def models_of(recipe: VideoRecipe, run: Path, tokenizer):
    """T5 and STDiT3 of RUN/t5 and RUN/stdit, as `opensora-lite train --prepare` initializes them, or new ones."""
    if not (run / "stdit" / "model.safetensors").exists():
        return new_models(recipe, tokenizer.get_piece_size())
    return load_t5(run / "t5"), load(stdit3_config(recipe), run / "stdit" / "model.safetensors")


@torch.no_grad()
def sample(recipe, t5, stdit, tokenizer, vae, prompts, kind=(17, 64, 64), fps=24, steps=STEPS, seed=0):
    """Videos uint8 [B, T, H, W, 3]: Euler steps of rectified flow with guidance."""
    d, (num_frames, height, width), B = recipe.diffusion, kind, len(prompts)
    rng = np.random.default_rng([recipe.seed, 6, seed])
    shape = (B, recipe.vae.channels, TIME.latent_frames(num_frames), height // 8, width // 8)
    x = torch.from_numpy(rng.standard_normal(shape, np.float32))
    ids, mask = tokenize(tokenizer, prompts, d.model_max_length)
    y = t5(input_ids=ids, attention_mask=mask).last_hidden_state[:, None]
    y = torch.cat([y, stdit.y_embedder.y_embedding.expand_as(y)])
    ones = torch.ones(B)
    sizes = dict(height=ones * height, width=ones * width)
    times = [(1 - i / steps) * 1000 * ones for i in range(steps)]
    times = [timestep_transform(t, num_frames=ones * num_frames, base_size=d.base_size, **sizes) for t in times]
    conditions = {name: value.repeat(2) for name, value in {**sizes, "fps": ones * fps}.items()}
    for i, t in enumerate(times):
        v = stdit(x.repeat(2, 1, 1, 1, 1), t.repeat(2), y, mask.repeat(2, 1), **conditions).chunk(2, 1)[0]
        cond, uncond = v.chunk(2)
        v = uncond + GUIDANCE * (cond - uncond)
        after = times[i + 1] if i + 1 < steps else 0 * t
        x = x + v * ((t - after) / 1000)[:, None, None, None, None]
    video = torch.cat([vae.decode(part[None], num_frames) for part in x])
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="tiny-1.2, or a YAML file")
    parser.add_argument("out", type=Path, help="the folder of train_video_vae_torch.py, or of a run to go on with")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--compile", action="store_true", help="a quarter faster after minutes of compiling; needs g++")
    a = parser.parse_args()
    recipe = read_recipe(a.recipe, dict(change.split("=", 1) for change in a.set))
    d, out = recipe.diffusion, a.out
    (out / "sheets").mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", recipe.to_dict())

    def log(text):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    vae = load_vae(out / "vae")
    vae.micro_batch_size = CHUNK  # twice as fast as 4
    latents = ShotLatents(*encode_clips(recipe, vae, out, log))
    tokens = out / "t5" / "spiece.model"
    if not tokens.exists():
        with atomic_write(tokens) as temporary:
            temporary.write_bytes(new_tokenizer(recipe.seed, d.vocabulary).serialized_model_proto())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokens))
    t5, stdit = models_of(recipe, out, tokenizer)
    models = {"stdit": stdit.train(), "t5": t5.train()}
    log(f"{tokenizer.get_piece_size()} tokens; " + ", ".join(f"{n} {count(m):,}" for n, m in models.items()))
    y_embedding = stdit.y_embedder.y_embedding
    for block in (*stdit.spatial_blocks, *stdit.temporal_blocks) if a.compile else ():
        block.compile(dynamic=True)  # the whole model has a convolution that doesn't compile for all shapes at once

    def loss(step):
        batch = latents.batch(recipe, step)
        ids, mask = tokenize(tokenizer, batch.captions, d.model_max_length)
        arrays = batch.x_0, batch.t, batch.noise, batch.x_mask, batch.dropped
        x_0, t, noise, x_mask, dropped = map(torch.from_numpy, arrays)
        y = t5(input_ids=ids, attention_mask=mask).last_hidden_state[:, None]
        y = torch.where(dropped[:, None, None, None], y_embedding, y)
        conditions = {name: torch.from_numpy(value) for name, value in batch.conditions.items()}
        losses = training_losses(stdit, x_0, t, noise, x_mask, y=y, mask=mask, **conditions)["loss"]
        return losses.mean(), batch.kind

    buffers = {"y_embedding": y_embedding}
    trainer = Trainer("diffusion", d, parameters_of(models), loss, out / "state", recipe.save_every, buffers, log)
    for saved in trainer.fit():
        if saved:
            export(out, recipe, models, trainer.average, tokenizer)
        if recipe.sheet_every and (trainer.step % recipe.sheet_every == 0 or trainer.step == d.steps):
            with trainer.averaged(), torch.compiler.set_stance("force_eager"):
                videos = sample(recipe, t5, stdit, tokenizer, vae, recipe.sheet_prompts)
            sheet = np.concatenate([np.concatenate(list(video[::2]), 1) for video in videos])
            Image.fromarray(sheet).save(out / "sheets" / f"step_{trainer.step:06d}.png")


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def export(out: Path, recipe: VideoRecipe, models: dict, average: dict, tokenizer):
    """stdit/ and t5/ in the released form, with the averaged weights."""
    export_models(out, models, average)
    kind = dict(model_type="t5", architectures=["T5EncoderModel"], is_encoder_decoder=False)
    config = t5_config(recipe.diffusion, tokenizer.get_piece_size())
    write_json(out / "t5" / "config.json", {**kind, **config, **FIXED})
    write_json(out / "stdit" / "config.json", stdit3_config(recipe))


if __name__ == "__main__":
    main()
