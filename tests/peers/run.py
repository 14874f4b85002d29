"""The PyTorch side of tests/parity/test_peers.py and of tests/benchmarks: a process of its own that answers requests.

    python run.py < requests > answers

serve.py says what requests and answers look like.
"""

import time

import losses_torch
import rflow_torch
import stdit2_torch
import stdit3_torch
import torch
from safetensors.torch import load_file, save_file
from serve import serve, threads
from speed_torch import flops, memory, product, ready, turn

MODELS = {"stdit2": (stdit2_torch.load, losses_torch.training_losses)}
MODELS["stdit3"] = stdit3_torch.load, rflow_torch.training_losses
trainers = {}


def cases_of(inputs):
    """{case: {name: tensor}} of a file with tensors "case.name"."""
    cases = {}
    for key, tensor in load_file(inputs).items():
        case, _, name = key.rpartition(".")
        cases.setdefault(case, {})[name] = tensor
    return cases


def forward(config, weights, inputs, outputs, model="stdit2"):
    """inputs: what the model's forward takes, under "case." -> outputs: "case.out"."""
    model = MODELS[model][0](config, weights)
    with torch.no_grad():
        results = {f"{case}.out": model(**tensors).contiguous() for case, tensors in cases_of(inputs).items()}
    save_file(results, outputs)
    return {}


def losses(config, weights, inputs, outputs, model="stdit2"):
    """inputs: what training_losses takes -> outputs: its tensors and "gradient.…" of loss.mean() by parameter."""
    load, training_losses = MODELS[model]
    model = load(config, weights)
    tensors = training_losses(model, **load_file(inputs))
    tensors["loss"].mean().backward()
    gradients = {f"gradient.{name}": p.grad for name, p in model.named_parameters()}
    save_file({name: tensor.detach().contiguous() for name, tensor in {**tensors, **gradients}.items()}, outputs)
    return {}


def transform(inputs, outputs):
    """inputs: the arguments of timestep_transform, "case.…" -> outputs: "case.out"."""
    save_file({f"{case}.out": rflow_torch.timestep_transform(**a) for case, a in cases_of(inputs).items()}, outputs)
    return {}


def trainer(name, config, weights, inputs, learning_rate, model="stdit2"):
    """Makes ready to train on one batch, under that name."""
    load, training_losses = MODELS[model]
    model = load(config, weights)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    trainers[name] = model, optimizer, load_file(inputs), training_losses
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def step(name):
    """One step of that trainer: forward, losses, backward, AdamW -> its loss, and the seconds that it took."""
    model, optimizer, batch, training_losses = trainers[name]
    start = time.perf_counter()
    loss = training_losses(model, **batch)["loss"].mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    torch.set_num_threads(threads())
    serve([forward, losses, transform, trainer, step, ready, turn, memory, product, flops])
