"""Trains T5 and STDiT3 in PyTorch, with the recipe and batches of the package, on the VAE of train_video_vae_torch.py.

    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_flow_torch.py tiny-1.2 RUN

First the clips are rendered and encoded, in parts (RUN/state/latents_N.npz). RUN/stdit and RUN/t5 are the averaged
weights in the released form; RUN/state has the checkpoint that an interrupted run resumes from, and the losses;
RUN/sheets has samples.
"""

import argparse
import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from rflow_torch import timestep_transform, training_losses
from safetensors.torch import load_file, save_file
from stdit3_torch import STDiT3
from train_torch import Muon, tokenize
from transformers import T5Config, T5EncoderModel
from video_vae_torch import load as load_vae

from opensora_lite.io.files import atomic_write, write_json
from opensora_lite.latent_time import latent_frames
from opensora_lite.liteworld import world
from opensora_lite.training.data import ShotLatents, shot_at, shown_by
from opensora_lite.training.recipe import VideoRecipe, read_recipe

PART = 250  # clips of one file of latents
STEPS, GUIDANCE = 12, 4.0  # of the samples


def encode_clips(recipe: VideoRecipe, vae, out: Path, log) -> tuple[list, list]:
    """The clips of the world, and of each the latents [2, C, T, h, w] that ShotLatents wants."""
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
    """float16 [2, C, T, h, w]: latents of a clip, and of images of its frames."""
    frames = clip.render(clip.num_frames).transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
    x = vae.encode_spatial(torch.from_numpy(frames))
    video = vae.encode_temporal(x).mean
    shown = [shown_by(k) for k in range(latent_frames(clip.num_frames))]
    images = vae.temporal_vae.encode(x[0, :, shown].transpose(0, 1)[:, :, None]).mean  # [T, C, 1, h, w]
    both = torch.stack([video[0], images[:, :, 0].transpose(0, 1)])
    return ((both - vae.shift[0]) / vae.scale[0]).half().numpy()


def new_tokenizer(recipe: VideoRecipe) -> sentencepiece.SentencePieceProcessor:
    """A tokenizer for LiteWorld's captions and scores; it knows all of ASCII."""
    texts = []
    for i in range(6000):
        rng = np.random.default_rng([recipe.seed, 5, i])
        shot = world.sample_shot(rng)
        score = f" aesthetic score: {rng.uniform(4, 7):.1f}. motion score: {rng.uniform(0, 10):.1f}."
        texts.append(world.caption(shot, rng) + (score if i % 4 == 0 else "") + world.score_suffix(shot))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",  # words become single tokens
        vocab_size=recipe.diffusion.vocabulary,
        hard_vocab_limit=False,
        required_chars="".join(map(chr, range(33, 65))) + "".join(map(chr, range(91, 127))),
        split_digits=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def new_models(recipe: VideoRecipe, vocabulary: int):
    """Initialized T5 and STDiT3, whose output is 0."""
    d = recipe.diffusion
    torch.manual_seed(recipe.seed)
    t5 = T5EncoderModel(T5Config(**t5_config_of(d, vocabulary)))
    stdit = STDiT3(**stdit_fields(recipe))
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


def stdit_fields(recipe: VideoRecipe) -> dict:
    d = recipe.diffusion
    return dict(
        in_channels=recipe.vae.channels,
        hidden_size=d.hidden_size,
        depth=d.depth,
        num_heads=d.num_heads,
        caption_channels=d.d_model,
        model_max_length=d.model_max_length,
        input_sq_size=d.input_sq_size,
        qk_norm=d.qk_norm,
    )


def t5_config_of(d, vocabulary: int) -> dict:
    """config.json of the T5 encoder, as opensora_lite.training.models has it."""
    return dict(
        vocab_size=vocabulary,
        d_model=d.d_model,
        d_kv=d.d_kv,
        d_ff=d.d_ff,
        num_layers=d.num_layers,
        num_heads=d.t5_heads,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def sample(recipe, t5, stdit, tokenizer, vae, prompts, kind=(17, 64, 64), fps=24, steps=STEPS, seed=0):
    """Videos uint8 [B, T, H, W, 3]: Euler steps of rectified flow with guidance."""
    d, (num_frames, height, width), B = recipe.diffusion, kind, len(prompts)
    rng = np.random.default_rng([recipe.seed, 6, seed])
    shape = (B, recipe.vae.channels, latent_frames(num_frames), height // 8, width // 8)
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
    a = parser.parse_args()
    recipe = read_recipe(a.recipe, dict(change.split("=", 1) for change in a.set))
    d, out = recipe.diffusion, a.out
    (out / "sheets").mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", recipe.to_dict())

    def log(text):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    vae = load_vae(out / "vae")
    latents = ShotLatents(*encode_clips(recipe, vae, out, log))
    tokens = out / "t5" / "spiece.model"
    if not tokens.exists():
        with atomic_write(tokens) as temporary:
            temporary.write_bytes(new_tokenizer(recipe).serialized_model_proto())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokens))
    t5, stdit = new_models(recipe, tokenizer.get_piece_size())
    models = {"stdit": stdit.train(), "t5": t5.train()}
    parameters = {f"{m}.{n}": p for m, model in models.items() for n, p in model.named_parameters()}
    log(f"{tokenizer.get_piece_size()} tokens; " + ", ".join(f"{n} {count(m):,}" for n, m in models.items()))
    matrices = [p for name, p in parameters.items() if d.takes_muon(name, p.ndim)]
    others = [p for name, p in parameters.items() if not d.takes_muon(name, p.ndim)]
    optimizers = [torch.optim.AdamW(others, d.learning_rate, d.betas, weight_decay=0)]
    optimizers += [Muon(matrices)] if matrices else []
    average = {name: p.detach().clone() for name, p in parameters.items()}
    step, history, path = 0, [], out / "state" / "diffusion_torch.pt"
    if path.exists():
        state = torch.load(path)
        for name, parameter in parameters.items():
            parameter.data.copy_(state["weights"][name])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average, step, history = state["average"], state["step"], state["history"]
        stdit.y_embedder.y_embedding.copy_(state["y_embedding"])

    def save():
        state = dict(
            weights={n: p.data for n, p in parameters.items()},
            optimizers=[o.state_dict() for o in optimizers],
            average=average,
            step=step,
            history=history,
            y_embedding=stdit.y_embedder.y_embedding,
        )
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
        export(out, recipe, models, average, tokenizer)
        losses = path.with_name("diffusion_losses.csv")
        with atomic_write(losses) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([("step", "kind", "loss", "rate"), *history])

    start, first, recent = time.perf_counter(), step, {}
    while step < d.steps:
        batch = latents.batch(recipe, step)
        ids, mask = tokenize(tokenizer, batch.captions, d.model_max_length)
        x_0, t, noise, x_mask, dropped, fps = map(
            torch.from_numpy, (batch.x_0, batch.t, batch.noise, batch.x_mask, batch.dropped, batch.fps)
        )
        y = t5(input_ids=ids, attention_mask=mask).last_hidden_state[:, None]
        y = torch.where(dropped[:, None, None, None], stdit.y_embedder.y_embedding, y)
        sizes = dict(height=torch.full_like(t, batch.height), width=torch.full_like(t, batch.width))
        losses = training_losses(stdit, x_0, t, noise, x_mask, y=y, mask=mask, fps=fps, **sizes)["loss"]
        loss = losses.mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), d.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise SystemExit(f"step {step + 1}: the loss is {loss}, the norm {norm}; nothing was saved")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = d.rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in parameters.items():
                average[name].lerp_(parameter, 1 - d.ema_at(step))
        kind = f"{batch.x_0.shape[2]}x{batch.height}x{batch.width}"
        history.append((step + 1, kind, loss.item(), d.rate_at(step)))
        recent.setdefault(batch.x_0.shape[2], []).append(loss.item())
        step += 1
        if step % 100 == 0 or step == d.steps:
            speed = (step - first) / (time.perf_counter() - start)
            means = {T: round(sum(values) / len(values), 4) for T, values in sorted(recent.items())}
            log(f"step {step} of {d.steps}, loss {means}, {speed:.2f}/s, {(d.steps - step) / speed / 60:.0f} min left")
            recent = {}
        if step % recipe.save_every == 0 or step == d.steps:
            save()
        if recipe.sheet_every and (step % recipe.sheet_every == 0 or step == d.steps):
            own = {name: p.data.clone() for name, p in parameters.items()}
            for name, p in parameters.items():
                p.data.copy_(average[name])
            videos = sample(recipe, t5, stdit, tokenizer, vae, recipe.sheet_prompts)
            for name, p in parameters.items():
                p.data.copy_(own[name])
            sheet = np.concatenate([np.concatenate(list(video[::2]), 1) for video in videos])
            Image.fromarray(sheet).save(out / "sheets" / f"step_{step:06d}.png")


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def export(out: Path, recipe: VideoRecipe, models: dict, average: dict, tokenizer):
    """stdit/ and t5/ in the released form, with the averaged weights."""
    d = recipe.diffusion
    for folder, model in models.items():
        values = {name: average.get(f"{folder}.{name}", value) for name, value in model.state_dict().items()}
        values.pop("encoder.embed_tokens.weight", None)
        half = {name: value.half().contiguous().clone() for name, value in values.items()}
        with atomic_write(out / folder / "model.safetensors") as temporary:
            save_file(half, temporary, {"format": "pt"})
    kind = dict(model_type="t5", architectures=["T5EncoderModel"], is_encoder_decoder=False)
    write_json(out / "t5" / "config.json", {**kind, **t5_config_of(d, tokenizer.get_piece_size())})
    config = dict(
        model_type="STDiT3",
        input_size=[None, None, None],
        patch_size=[1, 2, 2],
        mlp_ratio=4.0,
        pred_sigma=True,
        base_size=d.base_size,
    )
    write_json(out / "stdit" / "config.json", {**config, **stdit_fields(recipe)})


def load_models(run: Path):
    """(recipe, t5, stdit, tokenizer, vae) of a run, with the averaged weights."""
    recipe = VideoRecipe.from_dict(json.loads((run / "recipe.json").read_text()))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(run / "t5" / "spiece.model"))
    t5, stdit = new_models(recipe, tokenizer.get_piece_size())
    for model, folder in ((t5, "t5"), (stdit, "stdit")):
        weights = {name: value.float() for name, value in load_file(run / folder / "model.safetensors").items()}
        model.load_state_dict(weights, strict=folder == "stdit")
    t5.encoder.embed_tokens.weight = t5.shared.weight
    return recipe, t5.eval(), stdit.eval(), tokenizer, load_vae(run / "vae")


if __name__ == "__main__":
    main()
