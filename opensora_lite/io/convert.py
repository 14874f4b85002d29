"""Pickles as safetensors, without PyTorch and without executing anything in them.

A training run saves more than weights, in dicts within dicts: `choose_table` finds the dict of the weights, or asks
which is meant.
"""

import json
import math
import shlex
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opensora_lite.errors import CheckpointError, note
from opensora_lite.io.checkpoints import (
    PICKLES,
    Tensor,
    is_safetensors,
    legible,
    named,
    open_checkpoint,
    read_pdparams,
    read_start,
    widened,
)
from opensora_lite.io.files import atomic_write
from opensora_lite.io.pickles import NUMPY, TorchTensor, read_torch


def convert(sources: Sequence[str | Path], out: str | Path, table: str | None = None) -> dict[str, Tensor]:
    """Write the tensors of all `sources` to the safetensors file `out`, one at a time; returns their table.

    sources: files of torch.save and paddle.save, safetensors files, or indices of shards. table: which dict of a file
    that holds several, such as "ema", or the first part of the names that are meant. What is passed over is a Note.
    Raises CheckpointError; `out` is written whole or not at all.
    """
    tensors: dict[str, Tensor] = {}
    for source in map(Path, sources):
        found = read_any(source, table)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise CheckpointError(f"{source} holds {named(twice)}, which another of the files holds too")
        tensors |= found
    layouts = {tensor.layout for tensor in tensors.values()}
    if len(layouts) > 1:
        raise CheckpointError("the files are of PyTorch and of Paddle: convert them to a file each")
    _write(Path(out), tensors, {"torch": "pt", "paddle": "pd"}[layouts.pop()])
    return tensors


def read_any(path: Path, table: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of torch.save or paddle.save, of a safetensors file, or of an index of shards.

    table: as in `convert`. Raises CheckpointError.
    """
    start = read_start(path)
    if path.suffix == ".pdparams":
        tensors = read_pdparams(path)
    elif path.suffix in PICKLES or (start.startswith((b"PK", b"\x80")) and not is_safetensors(start)):
        tensors, table = _read_torch(path, table)
    else:
        tensors = open_checkpoint(path)
    if table is not None:
        chosen = {name.removeprefix(f"{table}."): t for name, t in tensors.items() if name.startswith(f"{table}.")}
        if not chosen:
            raise CheckpointError(f"{path} holds no table {legible(table)}; its names are {named(sorted(tensors))}")
        tensors = chosen
    if not tensors:
        raise CheckpointError(
            f"{path} holds no table of tensors, such as a state_dict; a model that was saved whole needs its own code"
        )
    return tensors


def _read_torch(path: Path, table: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file of torch.save, and `table` unless it was the name of a dict."""
    try:
        state, values = read_torch(path)
        found, table = choose_table(state, table, path)
    except CheckpointError:
        raise
    except Exception as error:
        why = legible(str(error) or type(error).__name__)
        raise CheckpointError(f"{path} holds no weights of PyTorch that can be read ({why})") from error

    def read(tensor: TorchTensor) -> np.ndarray:
        try:
            array = values(tensor)
        except Exception as error:
            why = legible(str(error) or type(error).__name__)
            raise CheckpointError(f"{path} is damaged or has been changed ({why})") from error
        return widened(np.ascontiguousarray(array)) if tensor.dtype == "BF16" else array

    def lazy(tensor: TorchTensor) -> Tensor:
        return Tensor(tensor.shape, lambda: read(tensor), "torch", path, tensor.dtype)

    return {name: lazy(tensor) for name, tensor in found.items()}, table


def choose_table(state: Any, wanted: str | None, path: Path) -> tuple[dict[str, TorchTensor], str | None]:
    """The dict of tensors within the dicts of a file, and `wanted` unless it was the name of one of them.

    Raises CheckpointError where there are several and `wanted` is none of them.
    """
    while isinstance(state, dict):
        tables = [name for name, value in state.items() if _holds_tensors(value)]
        tensors = {name: value for name, value in state.items() if isinstance(value, TorchTensor)}
        if wanted in tables:
            passed_over, state, wanted = [name for name in state if name != wanted], state[wanted], None
        elif not tables:
            passed_over, state = [name for name in state if name not in tensors], None
        elif len(tables) == 1 and not tensors:
            passed_over, state = [name for name in state if name != tables[0]], state[tables[0]]
        else:
            raise CheckpointError(
                f"{path} holds several tables of tensors, of which one is converted: choose --table "
                + " or --table ".join(legible(shlex.quote(name)) for name in tables[:8])
            )
        if passed_over:
            note(f"{path}: {named(passed_over, most=8)} passed over")
        if state is None:
            return tensors, wanted
    return {}, wanted


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(v, TorchTensor) or _holds_tensors(v) for v in value.values())


def _write(path: Path, tensors: Mapping[str, Tensor], written: str) -> None:
    """Write a safetensors file, one tensor at a time (its own library wants all of them in memory)."""
    header: dict[str, Any] = {"__metadata__": {"format": written}}
    names, end = sorted(tensors, key=lambda name: (-_size(tensors[name]), name)), 0  # wide types first: aligned
    for name in names:
        begin, end = end, end + _size(tensors[name]) * math.prod(tensors[name].shape)
        header[name] = {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path, CheckpointError) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            value = tensors[name].read()
            if tensors[name].dtype == "BF16":  # read as float32, of which it is the upper half
                value = np.ascontiguousarray(value).view(np.uint32) >> 16
            file.write(np.ascontiguousarray(value, NUMPY[tensors[name].dtype]).data)


def _size(tensor: Tensor) -> int:
    return np.dtype(NUMPY[tensor.dtype]).itemsize
