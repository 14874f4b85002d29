"""Strict loading of released weights: safetensors in PyTorch's or Paddle's layout, `.pdparams` when named.

A checkpoint is opened as a table {name: Tensor} of lazily read tensors. `match` compares that table with a layer's
state and raises a `CheckpointError` that names every missing, unexpected or mis-shaped tensor; `load` then copies
one tensor at a time (memory-mapped, converted, freed), so that the peak stays near the size of the model itself.

Layouts differ in one thing: a PyTorch Linear's weight is [out, in], a Paddle one's [in, out]. A square weight
loads either way without an error and gives noise, so the layout is decided by the file, never by the shape.

Source of the file format: safetensors, "Format" (8 bytes of header length, a JSON header, the tensors' bytes).
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opensora_lite.errors import CheckpointError

# safetensors dtype -> numpy dtype; bf16, which numpy does not know, is read as its 16 bits
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}

# The names under which a directory's weights are looked for: Hugging Face's for diffusers and for transformers models.
SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself

# The attention names of diffusers in 2022, which sd-vae-ft-ema's file still has -> today's.
NAMES_2022 = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # float32 or as stored; bf16 is widened to float32
    layout: str  # "torch" or "paddle": which way round a Linear's weight lies


def open_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `path`: a .safetensors file, an index of shards, a .pdparams file, or a directory.

    A directory holds model.safetensors or diffusion_pytorch_model.safetensors, or the `.index.json` of either with
    its shards. A .pdparams file is a pickle, which can run code: it is only opened when it is itself named.
    Raises CheckpointError: no such path, nothing to load there, a git-lfs pointer, a truncated or broken file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no weights at {path}: the path does not exist")
    if path.is_dir():
        for name in SINGLE:
            if (path / name).exists():
                return read_safetensors(path / name)
            if (path / f"{name}.index.json").exists():
                return read_shards(path / f"{name}.index.json")
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"no weights in {path}: expected {' or '.join(SINGLE)} (or its .index.json); there is {there}."
            " A .pdparams or .bin file is a pickle: name a .pdparams file itself if you trust it"
        )
    if path.name.endswith(".index.json"):
        return read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".pdparams":
        return read_pdparams(path)
    raise CheckpointError(
        f"{path} is no checkpoint that can be loaded; give a .safetensors file, its folder, or a .pdparams file"
    )


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises CheckpointError for a broken one."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the weights themselves; run `git lfs pull` in its repository"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise CheckpointError(f"{path} is not a whole safetensors file: it has {size} bytes; download it again")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            layout = "paddle" if metadata.get("format") == "pd" else "torch"
            tensors = {name: _entry(path, 8 + length, size, layout, **spec) for name, spec in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} has a broken safetensors header ({error}); download it again") from error
    return tensors


def _entry(path, data_start, file_size, layout, dtype, shape, data_offsets) -> Tensor:
    begin, end = data_offsets
    if dtype not in DTYPES:
        raise CheckpointError(f"{path} holds tensors of type {dtype}; those that can be loaded are {', '.join(DTYPES)}")
    numpy_dtype = np.dtype(DTYPES[dtype])
    if end - begin != math.prod(shape) * numpy_dtype.itemsize or begin < 0:
        raise CheckpointError(
            f"{path} has a broken safetensors header (offsets {begin}…{end} for {dtype} {shape}); download it again"
        )
    if data_start + end > file_size:
        raise CheckpointError(
            f"{path} is truncated: {data_start + end} bytes are needed, it has {file_size}; download it again"
        )

    def read() -> np.ndarray:
        if begin == end:
            return np.empty(shape, numpy_dtype)
        # mapped for this one tensor only: pages of a file mapped as a whole would count as memory until the end
        data = np.memmap(path, numpy_dtype, "r", data_start + begin, tuple(shape) or (1,)).reshape(shape)
        if dtype != "BF16":
            return data
        return (data.astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of a float32

    return Tensor(tuple(shape), read, layout)


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that a Hugging Face `*.safetensors.index.json` names."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{index} is no index of shards: expected a JSON object with a "weight_map" ({error})'
        ) from error
    tensors = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f'{index} names the shard "{shard}", which lies outside of its folder')
        if not (index.parent / shard).exists():
            raise CheckpointError(
                f"shard {shard} is missing: {index} names {len(shards)} shards, all of which are needed"
            )
        tensors.update(read_safetensors(index.parent / shard))
    lacking = sorted(set(weight_map) - set(tensors))
    if lacking:
        raise CheckpointError(f"{index} promises {_some(lacking)}, which no shard holds; download the shards again")
    return tensors


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a Paddle pickle. Only for files that are trusted: unpickling can run code."""
    import paddle

    try:
        state = paddle.load(str(path), return_numpy=True)
        arrays = {name: np.asarray(value) for name, value in state.items() if name != "StructuredToParameterName@@"}
    except Exception as error:  # whatever a broken or a foreign pickle raises
        raise CheckpointError(f"{path} is no Paddle state dict ({type(error).__name__}: {error})") from error
    return {name: Tensor(a.shape, lambda a=a: a, "paddle") for name, a in arrays.items()}


def rename_2022(names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name today} for the attention names that diffusers used in 2022."""

    def today(name: str) -> str:
        for old, new in NAMES_2022:
            name = name.replace(old, new)
        return name

    return {name: today(name) for name in names if ".attentions." in name}


def linear_weights(layer) -> set[str]:
    """The state names of all weights that Paddle keeps as [in, out]."""
    import paddle

    return {f"{name}.weight" for name, sub in layer.named_sublayers() if isinstance(sub, paddle.nn.Linear)}


def match(
    layer,
    tensors: Mapping[str, Tensor],
    rename: Mapping[str, str] = {},
    computed: tuple[str, ...] = (),
    what: str = "checkpoint",
) -> dict[str, Tensor]:
    """{state name of `layer`: its tensor}, or a CheckpointError that names all that does not fit.

    rename: {name in the file: state name}. computed: names that may be absent, since the layer computes them, and
    may be left over. A shape of the file is compared in the layer's layout: the layer need not be in memory.
    """
    linears = linear_weights(layer)
    wanted = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    found = {rename.get(name, name): tensor for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        twice = sorted(name for name in rename if rename[name] in tensors and rename[name] != name)
        raise CheckpointError(f"the {what} holds the same tensors under old and new names: {_some(twice)}")
    missing = sorted(set(wanted) - set(found) - set(computed))
    unexpected = sorted(set(found) - set(wanted) - set(computed))
    shapes = {name: found[name].shape for name in wanted if name in found}
    for name in linears & set(shapes):
        # the 2022 files hold some attention weights as 1 x 1 convolutions: [out, in, 1, 1]
        if len(shapes[name]) == 4 and shapes[name][2:] == (1, 1):
            shapes[name] = shapes[name][:2]
        if found[name].layout == "torch":
            shapes[name] = shapes[name][::-1]
    wrong = [
        f"{n}: the file has {list(shapes[n])}, the model {list(wanted[n])}" for n in shapes if shapes[n] != wanted[n]
    ]
    problems = [
        f"{len(names)} tensors are {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"the {what} does not fit the model\n    " + "\n    ".join(problems))
    return {name: found[name] for name in wanted if name in found}


def load(
    layer,
    tensors: Mapping[str, Tensor],
    rename: Mapping[str, str] = {},
    computed: tuple[str, ...] = (),
    what: str = "checkpoint",
):
    """Copy `tensors` into `layer` (in its own dtype) after `match`; returns the layer, in evaluation mode."""
    import paddle

    matched = match(layer, tensors, rename, computed, what)
    linears = linear_weights(layer)
    with paddle.no_grad():
        state = layer.state_dict()
        for name, tensor in matched.items():
            target = state[name]
            value = tensor.read()
            if name in linears:
                value = value.reshape(value.shape[:2])
                if tensor.layout == "torch":
                    value = value.T
            if target.dtype == paddle.bfloat16:  # numpy has no bf16: convert on the way in
                paddle.assign(paddle.to_tensor(np.ascontiguousarray(value, np.float32)).astype("bfloat16"), target)
            else:
                target.set_value(
                    np.ascontiguousarray(value, "float16" if target.dtype == paddle.float16 else "float32")
                )
    layer.eval()
    return layer


def build(make: Callable, *args, dtype: str = "float32"):
    """`make(*args)`, a layer of that dtype, without the random initial values: they are about to be replaced."""
    import paddle

    zero = paddle.nn.initializer.Constant(0.0)
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    paddle.nn.initializer.set_global_initializer(zero, zero)
    try:
        return make(*args)
    finally:
        paddle.nn.initializer.set_global_initializer(None, None)
        paddle.set_default_dtype(before)


def read_config(folder: str | Path) -> dict:
    """The config.json of a model's folder (or beside its weights file). Raises CheckpointError."""
    folder = Path(folder)
    if not folder.exists():
        raise CheckpointError(f"no model at {folder}: the path does not exist")
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    if not path.exists():
        raise CheckpointError(f"no config.json at {path}: a model's folder holds config.json and its weights")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return config


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
