"""The training loop of all stages: gradients, optimizers, moving average (EMA), checkpoints.

Data parallel over processes (`python -m paddle.distributed.launch`): each computes its part of every batch, gradients
are averaged, and weights stay bit-identical in all processes. The loss is a function of the step alone, so a resumed
run has the losses of an uninterrupted one.
"""

import contextlib
import csv
import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from safetensors import safe_open

from opensora_lite.errors import CheckpointError, NeedsMemory
from opensora_lite.io.checkpoints import read_safetensors
from opensora_lite.io.files import atomic_write, write_safetensors
from opensora_lite.training.muon import Muon
from opensora_lite.training.recipe import Learning


@dataclass(frozen=True)
class Record:
    """One step: a row of the losses file."""

    step: int  # from 1
    kind: str  # shape of the batch: "16x64x64"
    loss: float  # mean over all processes
    rate: float  # learning rate


@dataclass(frozen=True)
class Progress:
    """Progress of a stage, passed to `on_step` after every step."""

    stage: str  # "vae", "decoder" or "diffusion"
    record: Record
    steps: int  # of the whole stage
    steps_per_second: float  # since `fit` was called
    seconds_left: float
    saved: int  # step of the last checkpoint; 0: none


class Trainer:
    """Trains models jointly on one loss; resumes from the checkpoint, if there is one.

    stage: name in file names and progress. models: name -> Layer; parameters with stop_gradient are not trained.
    learning: steps and optimizer settings. loss: step -> (scalar tensor, kind), the mean over this process's part of
    the batch. folder: of STAGE.safetensors, the checkpoint, and STAGE_losses.csv.
    """

    def __init__(
        self,
        stage: str,
        models: dict[str, paddle.nn.Layer],
        learning: Learning,
        loss: Callable,
        folder: Path,
        save_every: int,
        on_step: Callable[[Progress], None] | None = None,
    ):
        self.stage, self.models, self.learning, self.loss = stage, models, learning, loss
        self.folder, self.save_every, self.on_step = Path(folder), save_every, on_step
        self.parameters = {
            f"{model}.{name}": parameter
            for model, layer in models.items()
            for name, parameter in layer.named_parameters()
            if not parameter.stop_gradient
        }
        matrices = {name: p for name, p in self.parameters.items() if learning.takes_muon(name, p.ndim)}
        others = [p for name, p in self.parameters.items() if name not in matrices]
        self.muon = Muon(matrices)
        self.adamw = paddle.optimizer.AdamW(
            learning.learning_rate, *learning.betas, parameters=others, weight_decay=0.0
        )
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.step = self.saved = 0  # completed steps; of them in the checkpoint
        self.history: list[Record] = []
        if self.checkpoint.exists():
            self.restore()
        check_equal_everywhere(self.step, self.parameters)

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / f"{self.stage}.safetensors"

    @property
    def done(self) -> bool:
        """Whether all steps are completed."""
        return self.step >= self.learning.steps

    def fit(self, until: int | None = None) -> list[Record]:
        """Train until a step (None: to the end) and return the records of all steps so far."""
        until = self.learning.steps if until is None else min(until, self.learning.steps)
        start, first = time.perf_counter(), self.step
        while self.step < until:
            with NeedsMemory("a training step", f"make batch of {self.stage} smaller; the last checkpoint is kept"):
                record = self.take_step()
            if self.step % self.save_every == 0 or self.step == until:
                self.save()
            if self.on_step:
                speed = (self.step - first) / (time.perf_counter() - start)
                left = (self.learning.steps - self.step) / speed
                self.on_step(Progress(self.stage, record, self.learning.steps, speed, left, self.saved))
        return self.history

    def take_step(self) -> Record:
        """One optimizer step. Raises CheckpointError, with unchanged weights, if loss or gradients are not finite."""
        for layer in self.models.values():
            layer.train()
        rate = self.learning.rate_at(self.step)
        loss, kind = self.loss(self.step)
        loss.backward()
        loss = average_over_processes(loss, [p for p in self.parameters.values() if p.grad is not None])
        norm = float(paddle.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.learning.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckpointError(
                f"step {self.step + 1} of {self.stage}: the loss is {loss}, the gradient norm {norm};"
                " the last checkpoint is kept. A lower learning_rate or clip may help"
            )
        self.muon.step(rate)
        self.adamw.set_lr(rate)
        with paddle.utils.unique_name.guard():  # else names of its state depend on earlier optimizers
            self.adamw.step()
        for parameter in self.parameters.values():
            parameter.clear_gradient(set_to_zero=False)
        decay = self.learning.ema_at(self.step)
        with paddle.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name] += (1 - decay) * (parameter - self.average[name])
        self.step += 1
        self.history.append(Record(self.step, kind, loss, rate))
        return self.history[-1]

    @contextlib.contextmanager
    def averaged(self):
        """Context in which the models have the averaged weights and are in evaluation mode."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.finish()
        try:
            yield self.models
        finally:
            assign(self.parameters, own)

    def finish(self):
        """Replace the weights by their moving average; evaluation mode."""
        assign(self.parameters, self.average)
        for layer in self.models.values():
            layer.eval()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save(self):
        """Write checkpoint and losses, each atomically."""
        if dist.get_rank() > 0:
            return
        tensors = {f"weights.{name}": parameter.numpy() for name, parameter in self.parameters.items()}
        tensors |= {f"average.{name}": value.numpy() for name, value in self.average.items()}
        # Paddle names optimizer state after "linear_17.w_0", which counts the layers of the process
        names = sorted(((p.name, name) for name, p in self.parameters.items()), key=lambda pair: -len(pair[0]))
        for key, value in self.adamw.state_dict().items():
            own = next(((internal, name) for internal, name in names if key.startswith(f"{internal}_")), None)
            if own:
                tensors[f"adamw.{own[1]}:{key[len(own[0]) + 1 :]}"] = value.numpy()
        tensors |= {f"muon.{name}": moment.numpy() for name, moment in self.muon.moments.items()}
        # losses first: `restore` ignores those beyond the checkpoint's step
        with atomic_write(self.losses_file) as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(f.name for f in fields(Record))
            writer.writerows(astuple(record) for record in self.history)
        write_safetensors(self.checkpoint, tensors, {"step": str(self.step)})
        self.saved = self.step

    def restore(self):
        """Load the checkpoint. Raises CheckpointError if it belongs to other models."""
        tensors = read_safetensors(self.checkpoint)
        kept = {"weights": self.parameters, "average": self.average, "muon": self.muon.moments}
        wanted = {f"{kind}.{name}" for kind, values in kept.items() for name in values}
        leaves = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")
        others = set(self.parameters) - set(self.muon.moments)
        wanted |= {f"adamw.{name}:{leaf}" for name in others for leaf in leaves}
        differing = sorted(wanted ^ set(tensors))
        if differing:
            raise CheckpointError(f"{self.checkpoint} belongs to other models than this recipe: see {differing[0]}")
        state = {}
        for key, tensor in tensors.items():
            kind, name = key.split(".", 1)
            value = np.array(tensor.read())
            if kind == "adamw":
                name, leaf = name.split(":")
                state[f"{self.parameters[name].name}_{leaf}"] = paddle.to_tensor(value)
                continue
            target = kept[kind][name]
            if tuple(target.shape) != value.shape:
                raise CheckpointError(
                    f"{self.checkpoint} has {name} {list(value.shape)}, the model {list(target.shape)}"
                )
            target.set_value(value)
        self.adamw.set_state_dict(state)
        with safe_open(self.checkpoint, "numpy") as file:
            self.step = self.saved = int(file.metadata()["step"])
        self.history = read_records(self.losses_file)[: self.step]
        if len(self.history) < self.step:
            raise CheckpointError(f"{self.losses_file} has {len(self.history)} steps, the checkpoint {self.step}")

    @property
    def losses_file(self) -> Path:
        """CSV file with one Record per step."""
        return self.folder / f"{self.stage}_losses.csv"


def read_records(path: Path) -> list[Record]:
    """The records of a losses file; [] if it doesn't exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [Record(int(r["step"]), r["kind"], float(r["loss"]), float(r["rate"])) for r in rows]


def assign(targets: dict, values: dict):
    """Set each parameter to the value of the same name."""
    with paddle.no_grad():
        for name, target in targets.items():
            target.set_value(values[name])


def check_equal_everywhere(step: int, parameters: dict):
    """Raise CheckpointError if processes start from different steps or weights, as on disks that are not shared."""
    if dist.get_world_size() == 1:
        return
    mine = paddle.to_tensor([float(step), sum(float(p.detach().abs().sum()) for p in parameters.values())], "float64")
    all_of_them: list[paddle.Tensor] = []
    dist.all_gather(all_of_them, mine)
    if any((other != mine).any() for other in all_of_them):
        raise CheckpointError("the processes start from different weights or steps; they need one shared folder")


def average_over_processes(loss, parameters) -> float:
    """The mean of a loss over all processes; gradients are averaged in place, in the same message."""
    n = dist.get_world_size()
    if n == 1:
        return float(loss)
    with paddle.no_grad():
        flat = paddle.concat([loss.detach().flatten(), *(p.grad.flatten() for p in parameters)]) / n
        dist.all_reduce(flat)
        mean, *gradients = flat.split([1, *(p.size for p in parameters)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.set_value(gradient.reshape(parameter.shape))
    return mean.item()
