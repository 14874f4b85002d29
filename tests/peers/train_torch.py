"""Trains T5 and STDiT2 in PyTorch, with the recipe, batches and losses of the package.

    make peers
    .venv/bin/opensora-lite train RECIPE --out RUN --prepare
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_torch.py RUN

For machines where PyTorch is faster than Paddle, or whose GPU Paddle doesn't support. The result is that of
`opensora-lite train`, except that the checkpoint is PyTorch's. Batches (numpy, opensora_lite.training.data) and initial
weights are the same, so the losses agree.
"""

import argparse
import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(DEVICE)  # before the tables of losses_torch are made

from losses_torch import training_losses  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from stdit2_torch import load  # noqa: E402
from transformers import T5Config, T5EncoderModel  # noqa: E402

from opensora_lite.training.data import Latents, clip_at  # noqa: E402
from opensora_lite.training.recipe import Recipe  # noqa: E402


def load_t5(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    model = T5EncoderModel(T5Config(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")}))
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)
    model.encoder.embed_tokens.weight = model.shared.weight
    return model


def tokenize(tokenizer, captions, length):
    ids = np.zeros((len(captions), length), np.int64)
    mask = np.zeros_like(ids)
    for row, caption in enumerate(captions):
        tokens = [*tokenizer.encode(caption)[: length - 1], 1]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class Muon(torch.optim.Optimizer):
    """Keller Jordan's Muon (github.com/KellerJordan/Muon), scaled to AdamW's steps as in arXiv:2502.16982, eq. 4."""

    def __init__(self, parameters, momentum=0.95):
        super().__init__(parameters, dict(lr=0.0, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                moment = self.state[parameter].setdefault("moment", torch.zeros_like(parameter))
                moment.lerp_(parameter.grad, 1 - group["momentum"])
                x = torch.lerp(parameter.grad, moment, group["momentum"])  # Nesterov's look ahead
                wide = x.shape[0] <= x.shape[1]
                x = x / (x.norm() + 1e-7) if wide else x.T / (x.norm() + 1e-7)
                for _ in range(5):  # Newton-Schulz: all singular values towards 1
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                parameter.sub_((x if wide else x.T), alpha=0.2 * max(x.shape) ** 0.5 * group["lr"])


def replace(path: Path, write):
    """write(temporary path), then give it its name."""
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder that `opensora-lite train --prepare` has filled")
    parser.add_argument("--until", type=int, help="stop after so many steps")
    parser.add_argument("--compile", action="store_true", help="faster steps after minutes of compiling")
    a = parser.parse_args()

    recipe = Recipe.from_dict(json.loads((a.run / "recipe.json").read_text()))
    d, L = recipe.diffusion, recipe.diffusion.model_max_length
    tensors = load_file(a.run / "state" / "latents.safetensors")
    clips = [clip_at(recipe.world, i) for i in range(recipe.world.clips)]
    latents = Latents(clips, [tensors[str(i)].numpy() for i in range(len(clips))])
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(a.run / "t5" / "spiece.model"))

    stdit = load(json.loads((a.run / "stdit" / "config.json").read_text()), a.run / "stdit" / "model.safetensors")
    models = {"stdit": stdit.to(DEVICE).train(), "t5": load_t5(a.run / "t5").to(DEVICE).train()}
    parameters = {f"{m}.{n}": p for m, model in models.items() for n, p in model.named_parameters()}
    matrices = [p for name, p in parameters.items() if d.takes_muon(name, p.ndim)]
    others = [p for name, p in parameters.items() if not d.takes_muon(name, p.ndim)]
    optimizers = [torch.optim.AdamW(others, d.learning_rate, d.betas, weight_decay=0)]
    optimizers += [Muon(matrices)] if matrices else []
    average = {name: p.detach().clone() for name, p in parameters.items()}
    weights = torch.from_numpy(d.loss_weights()).to(DEVICE)
    longest = max(length for stage in d.stages for length in stage.lengths)
    compiled = torch.compile(stdit, dynamic=False) if a.compile else stdit  # only for the longest: it takes minutes
    step, history, path = 0, [], a.run / "state" / "diffusion_torch.pt"
    if path.exists():
        state = torch.load(path, map_location=DEVICE)
        for name, parameter in parameters.items():
            parameter.data.copy_(state["weights"][name])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average, step, history = state["average"], state["step"], state["history"]

    def save():
        state = dict(
            weights={n: p.data for n, p in parameters.items()}, optimizers=[o.state_dict() for o in optimizers]
        )
        replace(path, lambda to: torch.save(dict(**state, average=average, step=step, history=history), to))
        for folder, model in models.items():
            values = {name: average.get(f"{folder}.{name}", value) for name, value in model.state_dict().items()}
            values.pop("encoder.embed_tokens.weight", None)
            half = {name: value.half().cpu().contiguous().clone() for name, value in values.items()}
            target = a.run / folder / "model.safetensors"
            replace(target, lambda to, half=half: save_file(half, to, {"format": "pt"}))

        def losses(to):
            with open(to, "w", newline="") as file:
                csv.writer(file).writerows([("step", "kind", "loss", "rate"), *history])

        replace(a.run / "state" / "diffusion_losses.csv", losses)

    start, first, recent = time.perf_counter(), step, {}
    until = min(a.until or d.steps, d.steps)
    while step < until:
        batch = latents.batch(recipe, step)
        ids, mask = (array.to(DEVICE) for array in tokenize(tokenizer, batch.captions, L))
        x_0, t, noise, x_mask, dropped = (
            torch.from_numpy(array).to(DEVICE)
            for array in (batch.x_0, batch.t, batch.noise, batch.x_mask, batch.dropped)
        )
        conditions = {name: torch.from_numpy(value).to(DEVICE) for name, value in batch.conditions.items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            y = models["t5"](input_ids=ids, attention_mask=mask).last_hidden_state[:, None]
            y = torch.where(dropped[:, None, None, None], stdit.y_embedder.y_embedding[:L], y)
            forward = compiled if x_0.shape[2] == longest else stdit
            terms = training_losses(forward, x_0, t, noise, x_mask, y=y, mask=mask, **conditions)
        loss = (weights[t] * terms["mse"] + terms["vb"]).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), d.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise SystemExit(
                f"step {step + 1}: the loss is {loss}, the norm of its gradients {norm}; nothing was saved"
            )
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
        if step % 100 == 0 or step == until:
            speed = (step - first) / (time.perf_counter() - start)
            means = {T: round(sum(values) / len(values), 4) for T, values in sorted(recent.items())}
            print(
                f"step {step} of {d.steps}, loss {means}, {speed:.2f}/s, {(until - step) / speed / 60:.0f} min left",
                flush=True,
            )
            recent = {}
        if step % recipe.save_every == 0 or step == until:
            save()


if __name__ == "__main__":
    main()
