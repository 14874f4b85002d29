"""The parent's side of run.py: starts the PyTorch process and asks it things. Imports neither torch nor paddle."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
NOT_INSTALLED = "the PyTorch peer is not installed: make peers"


def interpreter() -> str | None:
    """The Python that has PyTorch: $OPENSORA_PEERS_PYTHON, or that of `make peers`, or None."""
    made = HERE.parent.parent / ".venv-peers" / "bin" / "python"
    return os.environ.get("OPENSORA_PEERS_PYTHON") or (str(made) if made.exists() else None)


class Peer:
    """A running PyTorch process. `folder` is where the tensors of requests and answers are written."""

    def __init__(self, python: str, folder: Path):
        self.folder, self.requests = folder, 0
        # without PYTHONPATH, so that the peer could not import the package even if it wanted to
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, HERE / "run.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, do: str, inputs: dict | None = None, **request) -> dict:
        """The answer to one request, with the tensors that came back. inputs: {name: array}."""
        self.requests += 1
        request, outputs = {"do": do, **request}, self.folder / f"{self.requests}_outputs.safetensors"
        if inputs is not None:
            request["inputs"] = str(self.folder / f"{self.requests}_inputs.safetensors")
            save_file({name: np.ascontiguousarray(array) for name, array in inputs.items()}, request["inputs"])
        if do in ("forward", "losses"):
            request["outputs"] = str(outputs)
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended: it gives no line below
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch peer ended with exit code {self.process.wait()}; see its messages above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the PyTorch peer failed:\n{answer['error']}")
        return {**answer, **(load_file(outputs) if outputs.exists() else {})}

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
