"""Trains T5 and STDiT2 in PyTorch, with the recipe, batches and losses of the package.

    make peers
    .venv/bin/opensora-lite train RECIPE --out RUN --prepare
    PYTHONPATH=. .venv-peers/bin/python tests/peers/train_torch.py RUN

For machines where PyTorch is faster than Paddle, or whose GPU Paddle doesn't support. The result is that of
`opensora-lite train`, except that the checkpoint is PyTorch's. Batches (numpy, opensora_lite.training.data) and initial
weights are the same, so the losses agree.

The `Trainer` is the loop of the other trainers too: train_vae_torch.py, train_video_vae_torch.py, train_flow_torch.py.
"""

import argparse
import contextlib
import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from stdit2_torch import load
from transformers import T5Config, T5EncoderModel

from opensora_lite.io.files import atomic_write
from opensora_lite.training.data import Latents, clip_at
from opensora_lite.training.recipe import Recipe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOG_EVERY = 50  # steps


def say(text: str):
    print(text, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
#   The loop
# ---------------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Keller Jordan's Muon (github.com/KellerJordan/Muon), scaled to AdamW's steps as in arXiv:2502.16982, eq. 4.

    Kernels [out, in, …] are matrices [out, in · …].
    """

    def __init__(self, parameters, momentum=0.95):
        super().__init__(parameters, dict(lr=0.0, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                moment = self.state[parameter].setdefault("moment", torch.zeros_like(parameter))
                moment.lerp_(parameter.grad, 1 - group["momentum"])
                x = torch.lerp(parameter.grad, moment, group["momentum"]).flatten(1)  # Nesterov's look ahead
                wide = x.shape[0] <= x.shape[1]
                x = x / (x.norm() + 1e-7) if wide else x.T / (x.norm() + 1e-7)
                for _ in range(5):  # Newton-Schulz: all singular values towards 1
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                update = (x if wide else x.T).reshape(parameter.shape)
                parameter.sub_(update, alpha=0.2 * max(x.shape) ** 0.5 * group["lr"])


class Trainer:
    """Gradients, optimizers, moving average (EMA) and checkpoints of a stage, as opensora_lite.training.trainer.

    name: of the files in `folder`, NAME_torch.pt, from which a run is resumed, and NAME_losses.csv. learning: its
    settings. parameters: those that are trained, by name. loss: step -> (scalar tensor, kind of the batch). buffers:
    other tensors that a checkpoint holds, by name. log: called with a line of text now and then.
    """

    def __init__(
        self, name, learning, parameters: dict, loss, folder: Path, save_every: int, buffers: Mapping = {}, log=say
    ):
        self.name, self.learning, self.parameters, self.loss = name, learning, parameters, loss
        self.folder, self.save_every, self.buffers, self.log = folder, save_every, buffers, log
        matrices = [p for n, p in parameters.items() if learning.takes_muon(n, p.ndim)]
        others = [p for n, p in parameters.items() if not learning.takes_muon(n, p.ndim)]
        self.optimizers = [torch.optim.AdamW(others, learning.learning_rate, learning.betas, weight_decay=0)]
        self.optimizers += [Muon(matrices)] if matrices else []
        self.average = {n: p.detach().clone() for n, p in parameters.items()}
        self.step, self.history = 0, []
        if self.checkpoint.exists():
            self.restore()
        self.start, self.first = time.perf_counter(), self.step

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}_torch.pt"

    def fit(self, until=None):
        """Train to the end, or to a step; yields after each step whether a checkpoint was written after it."""
        until = min(until or self.learning.steps, self.learning.steps)
        while self.step < until:
            self.take_step()
            if self.step % LOG_EVERY == 0 or self.step == until:
                self.report(until)
            saves = self.step % self.save_every == 0 or self.step == until
            if saves:
                self.save()
            yield saves

    def take_step(self):
        loss, kind = self.loss(self.step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.learning.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise SystemExit(
                f"{self.name}, step {self.step + 1}: the loss is {loss}, the norm of its gradients {norm}; nothing was"
                " saved"
            )
        rate = self.learning.rate_at(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - self.learning.ema_at(self.step))
        self.step += 1
        self.history.append((self.step, kind, loss.item(), rate))

    def report(self, until: int):
        """Log the mean losses of the last steps by the first number of their kind: the frames of clips."""
        recent = {}
        for _, kind, loss, _ in self.history[-LOG_EVERY:]:
            recent.setdefault(int(kind.split("x")[0]), []).append(loss)
        means = {number: round(sum(losses) / len(losses), 4) for number, losses in sorted(recent.items())}
        speed = (self.step - self.first) / (time.perf_counter() - self.start)
        left = (until - self.step) / speed / 60
        steps = self.learning.steps
        self.log(f"{self.name}: step {self.step} of {steps}, loss {means}, {speed:.2f}/s, {left:.0f} min left")

    @contextlib.contextmanager
    def averaged(self):
        """Context in which the parameters are averaged ones."""
        own = {name: parameter.data.clone() for name, parameter in self.parameters.items()}
        self.finish()
        try:
            yield
        finally:
            self.assign(own)

    def finish(self):
        """Replace the parameters by their moving average."""
        self.assign(self.average)

    def assign(self, values: dict):
        for name, parameter in self.parameters.items():
            parameter.data.copy_(values[name])

    def save(self):
        state = dict(
            weights={name: parameter.data for name, parameter in self.parameters.items()},
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            average=self.average,
            step=self.step,
            history=self.history,
        )
        with atomic_write(self.checkpoint) as temporary:
            torch.save({**state, **self.buffers}, temporary)
        losses = self.folder / f"{self.name}_losses.csv"
        with atomic_write(losses) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([("step", "kind", "loss", "rate"), *self.history])

    def restore(self):
        device = next(iter(self.parameters.values())).device
        state = torch.load(self.checkpoint, map_location=device)
        self.assign(state["weights"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])
        self.average, self.step, self.history = state["average"], state["step"], state["history"]


# ---------------------------------------------------------------------------------------------------------------------
#   T5 and the transformer
# ---------------------------------------------------------------------------------------------------------------------


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


def parameters_of(models: dict) -> dict:
    """{"MODEL.PARAMETER": parameter}"""
    return {f"{m}.{n}": p for m, model in models.items() for n, p in model.named_parameters()}


def export_models(run: Path, models: dict, average: dict):
    """RUN/MODEL/model.safetensors of each model in the released form, with the averaged weights."""
    for folder, model in models.items():
        values = {name: average.get(f"{folder}.{name}", value) for name, value in model.state_dict().items()}
        values.pop("encoder.embed_tokens.weight", None)
        half = {name: value.half().cpu().contiguous().clone() for name, value in values.items()}
        with atomic_write(run / folder / "model.safetensors") as temporary:
            save_file(half, temporary, {"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder that `opensora-lite train --prepare` has filled")
    parser.add_argument("--until", type=int, help="stop after so many steps")
    parser.add_argument("--compile", action="store_true", help="faster steps after minutes of compiling")
    a = parser.parse_args()
    torch.set_default_device(DEVICE)
    from losses_torch import training_losses  # it makes tables on that device

    recipe = Recipe.from_dict(json.loads((a.run / "recipe.json").read_text()))
    d, L = recipe.diffusion, recipe.diffusion.model_max_length
    tensors = load_file(a.run / "state" / "latents.safetensors")
    clips = [clip_at(recipe.world, i) for i in range(recipe.world.clips)]
    latents = Latents(clips, [tensors[str(i)].numpy() for i in range(len(clips))])
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(a.run / "t5" / "spiece.model"))

    stdit = load(json.loads((a.run / "stdit" / "config.json").read_text()), a.run / "stdit" / "model.safetensors")
    models = {"stdit": stdit.to(DEVICE).train(), "t5": load_t5(a.run / "t5").to(DEVICE).train()}
    weights = torch.from_numpy(d.loss_weights()).to(DEVICE)
    longest = max(length for stage in d.stages for length in stage.lengths)
    compiled = torch.compile(stdit, dynamic=False) if a.compile else stdit  # only for the longest: it takes minutes

    def loss(step):
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
        return (weights[t] * terms["mse"] + terms["vb"]).mean(), batch.kind

    trainer = Trainer("diffusion", d, parameters_of(models), loss, a.run / "state", recipe.save_every)
    for saved in trainer.fit(a.until):
        if saved:
            export_models(a.run, models, trainer.average)


if __name__ == "__main__":
    main()
