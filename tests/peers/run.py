"""The PyTorch side of tests/parity/test_peers.py and of tests/benchmarks: a process of its own that answers requests.

    python run.py < requests > answers

serve.py says what requests and answers look like.
"""

import time

import torch
from losses_torch import training_losses
from safetensors.torch import load_file, save_file
from serve import serve, threads
from speed_torch import flops, memory, product, ready, turn
from stdit2_torch import load

trainers = {}


def forward(config, weights, inputs, outputs):
    """inputs: what STDiT2.forward takes, under "case." -> outputs: "case.out"."""
    model, cases = load(config, weights), {}
    for key, tensor in load_file(inputs).items():
        case, _, name = key.rpartition(".")
        cases.setdefault(case, {})[name] = tensor
    with torch.no_grad():
        save_file({f"{case}.out": model(**tensors).contiguous() for case, tensors in cases.items()}, outputs)
    return {}


def losses(config, weights, inputs, outputs):
    """inputs: what training_losses takes -> outputs: loss, mse, vb and "gradient.…" of loss.mean() by parameter."""
    model = load(config, weights)
    tensors = training_losses(model, **load_file(inputs))
    tensors["loss"].mean().backward()
    gradients = {f"gradient.{name}": p.grad for name, p in model.named_parameters()}
    save_file({name: tensor.detach().contiguous() for name, tensor in {**tensors, **gradients}.items()}, outputs)
    return {}


def trainer(name, config, weights, inputs, learning_rate):
    """Makes ready to train on one batch, under that name."""
    model = load(config, weights)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    trainers[name] = model, optimizer, load_file(inputs)
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def step(name):
    """One step of that trainer: forward, losses, backward, AdamW -> its loss, and the seconds that it took."""
    model, optimizer, batch = trainers[name]
    start = time.perf_counter()
    loss = training_losses(model, **batch)["loss"].mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    torch.set_num_threads(threads())
    serve([forward, losses, trainer, step, ready, turn, memory, product, flops])
