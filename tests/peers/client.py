"""The parent's side of serve.py: starts a process and asks it things. Imports neither torch nor paddle."""

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
    """A running process, by default the PyTorch one. Tensors of requests and answers are written into `folder`.

    script: what it runs. environment: variables that it gets beside those of this process.
    """

    def __init__(self, python: str, folder: Path, script: Path = HERE / "run.py", **environment: str):
        self.folder, self.requests = folder, 0
        # without PYTHONPATH, so that the peer could not import the package even if it wanted to
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**inherited, **environment}
        )

    def __call__(self, do: str, inputs: dict | None = None, *, wants: bool | None = None, **request) -> dict:
        """The answer to one request, with the tensors that came back. inputs: {name: array}.

        wants: whether tensors are to come back; None: as that request always does.
        """
        self.requests += 1
        request, outputs = {"do": do, **request}, self.folder / f"{self.requests}_outputs.safetensors"
        if inputs is not None:
            request["inputs"] = str(self.folder / f"{self.requests}_inputs.safetensors")
            save_file({name: np.ascontiguousarray(array) for name, array in inputs.items()}, request["inputs"])
        if do in ("forward", "losses", "transform") if wants is None else wants:
            request["outputs"] = str(outputs)
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended: it gives no line below
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with exit code {self.process.wait()}; see its messages above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the process failed:\n{answer['error']}")
        tensors = load_file(outputs) if outputs.exists() else {}
        for file in (request.get("inputs"), request.get("outputs")):
            if file:
                Path(file).unlink(missing_ok=True)
        return {**answer, **tensors}

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
