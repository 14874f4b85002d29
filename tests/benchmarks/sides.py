"""The processes that do the work, and the names of the ways in which they do it."""

import sys
from pathlib import Path

import numpy as np
from peers.client import NOT_INSTALLED, Peer, interpreter
from work import CAPTION, Work

HERE = Path(__file__).resolve().parent

OURS = {
    "Paddle, dynamic fp32": {"engine": None},
    "Paddle, engine fp32": {"engine": "fp32"},
    "Paddle, engine bf16": {"engine": "bf16"},
}
PEERS = {
    "PyTorch, eager fp32": {"precision": "fp32", "compiled": False},
    "PyTorch, compiled fp32": {"precision": "fp32", "compiled": True},
    "PyTorch, eager bf16": {"precision": "bf16", "compiled": False},
    "PyTorch, compiled bf16": {"precision": "bf16", "compiled": True},
}
SIZE = 2048  # of the square matrices whose product is the peak


class Side:
    """A process that does work in one way. name: one of OURS or PEERS. folder: of models, and of what was compiled."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.ours = name, folder, name in OURS
        self.about: dict = {}  # versions and threads, once something is ready
        exchange = folder / "exchange" / name.replace(",", "").replace(" ", "_")
        exchange.mkdir(parents=True, exist_ok=True)
        if self.ours:
            self.process = Peer(sys.executable, exchange, HERE / "paddle_side.py")
        elif interpreter():
            self.process = Peer(interpreter(), exchange, TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"))
        else:
            raise RuntimeError(NOT_INSTALLED)

    def ready(self, key: str, work: Work) -> float:
        """Loads what the work needs; seconds."""
        more = {"caption": CAPTION} if self.ours and work.kind == "video" else {}
        how = {**OURS, **PEERS}[self.name]
        request = dict(name=key, kind=work.kind, models=work.models(self.folder), told=work.told())
        answer = self.process("ready", work.given() or None, **request, **how, **more)
        self.about = {"versions": answer["versions"], "threads": answer["threads"]}
        return answer["seconds"]

    def turn(self, key: str, work: Work, number: int) -> float:
        """Seconds of a turn."""
        return self.process("turn", self.inputs(work, number), name=key)["seconds"]

    def out(self, key: str, work: Work, number: int) -> tuple[float, np.ndarray]:
        """Seconds of a turn, and what came out of it."""
        answer = self.process("turn", self.inputs(work, number), wants=True, name=key)
        return answer["seconds"], answer["out"]

    def inputs(self, work: Work, number: int) -> dict[str, np.ndarray]:
        arrays = work.inputs(number, self.folder)
        if not self.ours:  # PyTorch has no pipeline that draws noise
            arrays.pop("seed", None)
        return arrays

    def memory(self) -> int | None:
        return self.process("memory")["peak"]

    def product(self, precision: str) -> float:
        """Seconds of a product of two matrices of SIZE × SIZE."""
        return self.process("product", size=SIZE, precision=precision)["seconds"]

    def close(self):
        self.process.close()


def reason(error: Exception) -> str:
    """The last line of what a process or a library says of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
