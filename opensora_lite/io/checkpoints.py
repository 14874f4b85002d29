"""Strict loading of released weights: safetensors in PyTorch's or Paddle's layout, `.pdparams` when named.

A stranger's file is never trusted: nothing in it is executed, memory is taken for what fits only, and whatever is
wrong with it is one sentence (`CheckpointError`).

A checkpoint is opened as a table {name: Tensor} of lazily read tensors. `check_state_dict` compares that table with a
layer's state and raises a `CheckpointError` that names every missing, unexpected or mis-shaped tensor; `load` copies
one tensor at a time (memory-mapped, converted, freed), so that the peak stays near the size of the model itself.

Layouts differ in one thing: a PyTorch Linear's weight is [out, in], a Paddle one's [in, out]. A square weight
loads either way without an error and gives noise, so the layout is decided by the file, never by the shape.

Source of the file format: safetensors, "Format" (8 bytes of header length, a JSON header, the tensors' bytes).
"""

import contextlib
import difflib
import errno
import functools
import json
import math
import os
import pickletools
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from opensora_lite.errors import CheckpointError, printable

# safetensors dtype -> numpy dtype; bf16, which numpy does not know, is read as its 16 bits
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}

# The names under which a directory's weights are looked for: Hugging Face's for diffusers and for transformers models.
SINGLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
MAX_JSON = 10_000_000  # bytes of a header, an index or a config: a hundred times those of the released models

# What a header's "format" says of the layout. paddlenlp writes "np", and means its own.
LAYOUTS = {None: "torch", "pt": "torch", "pd": "paddle", "np": "paddle"}

# How files begin that are saved under the name of a safetensors file by mistake.
IMPOSTORS = {
    b"<": "a web page, not the weights themselves; download the file again, logged in where that is needed",
    b"PK": "a zip archive, such as PyTorch's .pt and .bin files are; only safetensors can be loaded",
    b"\x80": "a pickle, such as .bin and .pdparams files are; only safetensors can be loaded under this name",
}

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
    its shards. A .pdparams file is a pickle: it is only opened when it is itself named, and nothing in it is executed.
    Raises CheckpointError: no such path, nothing to load there, a git-lfs pointer, a truncated or broken file.
    """
    path = Path(path)
    with _explained(path):
        if not path.exists():
            raise CheckpointError(f"no weights at {path}: the path does not exist")
        if path.is_dir():
            for name in SINGLE:
                if (path / name).exists():
                    return read_safetensors(path / name)
                if (path / f"{name}.index.json").exists():
                    return read_shards(path / f"{name}.index.json")
            there = _some(sorted(p.name for p in path.iterdir()), most=8) or "nothing"
            raise CheckpointError(
                f"no weights in {path}: expected {' or '.join(SINGLE)} (or its .index.json); there is {there}."
                " A .pdparams or .bin file is a pickle: a .pdparams file is only read where it is itself named"
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


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """What the system says of `path` (no permission, a name too long, a disk that fails) as a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The open file. Raises CheckpointError for a pointer of git-lfs, and for pipes and devices, which never end."""
    with _explained(path):
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file")
        with open(path, "rb") as file:
            if file.peek(64).startswith(b"version https://git-lfs"):
                raise CheckpointError(
                    f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository"
                )
            yield file


def _parse_json(text: bytes):
    """JSON as its standard has it: UTF-8, every name once, numbers that are numbers. Raises ValueError."""

    def unique(pairs):
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a name stands in it twice")
        return table

    def refuse(constant):
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises CheckpointError for a broken one."""
    path = Path(path)
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else size
        if length > min(size - 8, MAX_JSON):
            for beginning, what in IMPOSTORS.items():
                if start.startswith(beginning):
                    raise CheckpointError(f"{path} is {what}")
            raise CheckpointError(f"{path} is not a whole safetensors file: it has {size} bytes; download it again")
        header = file.read(length)
    try:
        header = _parse_json(header)
        written = header.pop("__metadata__", {}).get("format")
        if written not in LAYOUTS:
            raise ValueError(f"its format is {reprlib.repr(written)}; pt (PyTorch) or pd (Paddle) is needed")
        layout = LAYOUTS[written]
        tensors = {name: _entry(path, 8 + length, layout, **spec) for name, spec in header.items()}
        end = 0
        for begin, after in sorted(spec["data_offsets"] for spec in header.values()):
            if begin != end:
                raise ValueError(f"the bytes of its tensors overlap or leave a gap at {begin}")
            end = after
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # what is not where it belongs
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} has a broken safetensors header ({legible(str(error))}); download it again"
        ) from error
    if size != 8 + length + end:
        how = "is truncated" if size < 8 + length + end else "goes on after its last tensor"
        raise CheckpointError(f"{path} {how}: {8 + length + end} bytes are needed, it has {size}; download it again")
    return tensors


def _entry(path, data_start, layout, *, dtype, shape, data_offsets) -> Tensor:
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path} holds tensors of type {legible(dtype)}; those that can be loaded are {', '.join(DTYPES)}"
        )
    begin, end = data_offsets
    if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):  # 32: numpy's limit
        raise ValueError(f"shape {reprlib.repr(shape)}, offsets {reprlib.repr(data_offsets)}")
    numpy_dtype = np.dtype(DTYPES[dtype])
    if end - begin != math.prod(shape) * numpy_dtype.itemsize:
        raise ValueError(f"offsets {begin}…{end} for {dtype} {shape}")

    def read() -> np.ndarray:
        if begin == end:
            return np.empty(shape, numpy_dtype)
        # mapped for this one tensor only: pages of a file mapped as a whole would count as memory until the end
        try:
            data = np.memmap(path, numpy_dtype, "r", data_start + begin, tuple(shape) or (1,)).reshape(shape)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOMEM:
                raise MemoryError(f"{path} cannot be mapped") from error
            raise CheckpointError(f"{path} has been changed or removed since it was opened ({error})") from error
        return _widened(data) if dtype == "BF16" else data

    return Tensor(tuple(shape), read, layout)


def _widened(bits: np.ndarray) -> np.ndarray:
    """bf16, given as its 16 bits, in float32, of which it is the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that a Hugging Face `*.safetensors.index.json` names.

    Shards lie beside the index. They may be links, of which Hugging Face's cache is made. Raises CheckpointError.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f'{index} is no index of shards: expected a JSON object with a "weight_map"')
    shards = sorted(set(weight_map.values()))
    tensors = {}
    for shard in shards:
        if Path(shard).name != shard or shard in ("", "..") or "\0" in shard:
            raise CheckpointError(f'{index} names the shard "{legible(shard)}", which lies outside of its folder')
        with _explained(f"shard {legible(shard)} of {index}"):
            if not (index.parent / shard).exists():
                raise CheckpointError(
                    f"shard {legible(shard)} is missing: {index} names {len(shards)} shards, all of which are needed"
                )
        for name, tensor in read_safetensors(index.parent / shard).items():
            if weight_map.get(name, shard) != shard:
                raise CheckpointError(
                    f"{index} promises {legible(name)} in {legible(weight_map[name])}, but {legible(shard)} holds it;"
                    " the shards are of different downloads"
                )
            tensors[name] = tensor
    lacking = sorted(set(weight_map) - set(tensors))
    if lacking:
        raise CheckpointError(f"{index} promises {_some(lacking)}, which no shard holds; download the shards again")
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
#   Paddle's pickles
# ---------------------------------------------------------------------------------------------------------------------


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `paddle.save` wrote, of which nothing is executed. Raises CheckpointError."""
    with _opened(path) as file:
        try:
            state = _unpickle(file)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
            arrays = {}
            for name, value in state.items():
                if name == "StructuredToParameterName@@":  # as Paddle 2.0 wrote it, beside the tensors
                    continue
                if isinstance(value, tuple) and len(value) == 2:  # as it writes them now: (Paddle's own name, array)
                    value = value[1]
                if not isinstance(value, _Array) or value.array is None:
                    raise ValueError(f"{name} is no tensor")
                arrays[name] = value.array
        except Exception as error:  # whatever pickletools, or a stack that lacks what is taken from it, raises
            why = legible(str(error) or type(error).__name__)
            raise CheckpointError(
                f"{path} is no Paddle state dict ({why}); give the model's weights as safetensors"
            ) from error

    def read(array):
        return _widened(array) if array.dtype == np.uint16 else array  # which is how Paddle hands bf16 to numpy

    return {name: Tensor(a.shape, functools.partial(read, a), "paddle") for name, a in arrays.items()}


@dataclass(frozen=True)
class _Global:
    """A function or class that a pickle names: a name only, which is never looked up."""

    name: str


class _Array:
    """An array of a pickle; its contents come after it."""

    array: np.ndarray | None = None


class _DType:
    """An element type of a pickle, such as "f4"; its byte order comes after it."""

    def __init__(self, code):
        if code not in ("f8", "f4", "f2", "u2", "i8", "i4", "i2", "i1", "u1", "b1"):
            raise ValueError("its arrays do not hold numbers")
        self.code, self.order = code, "<"


# Those that stand for the value beside them, and those that say nothing of the value.
PUSHED = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING"}
PUSHED |= {"SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
FRAMING = {"PROTO", "FRAME"}


def _unpickle(file: BinaryIO):
    """The value of a pickle of dicts, tuples, lists, numbers, texts and arrays.

    Python's own unpickler calls what the pickle names, and one that is told which names are harmless still hands
    the pickle's bytes to numpy. This one interprets the few instructions that `paddle.save` writes (protocols 2 to 4)
    and calls nothing; arrays share the bytes that were read. Raises ValueError and the like for all others.
    """
    encode = functools.cache(lambda text: text.encode("latin1"))  # once: a text may be named a million times
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def named(names: list, values: list) -> dict:
        if not all(isinstance(name, str) for name in names):  # a tuple within a million tuples has no hash, but a crash
            raise ValueError("its names are not texts")
        return dict(zip(names, values, strict=True))

    def call(function: _Global, arguments: tuple):
        match function.name.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins"), arguments:
            case "numpy.core.multiarray _reconstruct", (_Global("numpy ndarray"), _, _):
                return _Array()
            case "numpy dtype", (code, *_):
                return _DType(code)
            case "builtins tuple", (tuple() as value,):
                return value
            case "collections OrderedDict", ():
                return {}
            case "_codecs encode", (str() as text, "latin1"):
                return encode(text)
        raise ValueError(f"it calls {function.name}, which no state dict needs")

    def build(value, state: tuple):
        match value, state:
            case _DType(), (_, "<" | "|" | ">" as order, *_):
                value.order = order
            case _Array(array=None), (
                _,
                tuple() as shape,
                _DType() as dtype,
                bool() as fortran,
                bytes() | str() as data,
            ):
                flat = np.frombuffer(encode(data) if isinstance(data, str) else data, dtype.order + dtype.code)
                value.array = flat.reshape(shape, order="F" if fortran else "C")
            case _:
                raise ValueError(f"it changes a {type(value).__name__}")

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case name if name in PUSHED:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in FRAMING:
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = since_mark()
                stack[-1].extend(values)
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                stack[-1].update(named([key], [value]))
            case "SETITEMS":
                values = since_mark()
                stack[-1].update(named(values[::2], values[1::2]))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(str(argument)))
            case "STACK_GLOBAL":
                stack[-2:] = [_Global(" ".join(part[:100] for part in stack[-2:]))]
            case "REDUCE":
                function, arguments = stack.pop(-2), stack.pop()
                stack.append(call(function, arguments))
            case "BUILD":
                state = stack.pop()
                build(stack[-1], state)
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"its pickle holds {name}, which no state dict needs")


# ---------------------------------------------------------------------------------------------------------------------
#   From tensors to a layer
# ---------------------------------------------------------------------------------------------------------------------


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


def check_state_dict(
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
    """Copy `tensors` into `layer`, in its own dtype, after `check_state_dict`; returns it in eval mode."""
    import paddle

    matched = check_state_dict(layer, tensors, rename, computed, what)
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
            # numpy has no bf16: it goes in as float32
            dtype = "float16" if target.dtype == paddle.float16 else "float32"
            value = _numbers(value, dtype, f"the {what}: tensor {legible(name)}")
            if target.dtype == paddle.bfloat16:
                paddle.assign(paddle.to_tensor(value).astype("bfloat16"), target)
            else:
                target.set_value(value)
    layer.eval()
    return layer


def _numbers(value: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """`value` in that dtype, or a CheckpointError where it is not made of finite floating-point numbers."""
    if value.dtype.kind != "f":
        raise CheckpointError(f"{what} holds {value.dtype} values; those of a model are floating-point numbers")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(value, dtype)
    if np.isfinite(converted).all():
        return converted
    if np.isfinite(value).all():
        raise CheckpointError(f'{what} holds values beyond the range of {dtype}; load the model with dtype="bf16"')
    bad = int(value.size - np.isfinite(value).sum())
    raise CheckpointError(
        f"{what} holds {bad} values of {value.size} that are not finite (nan, inf); every video would be broken:"
        " download the file again, or take a checkpoint from before its training failed"
    )


def build_meta(make: Callable, *args):
    """`make(*args)`, a layer without memory for its values: to be compared with a checkpoint before any is taken."""
    import paddle

    with paddle.LazyGuard():
        return make(*args)


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
    with _explained(folder):
        if not folder.exists():
            raise CheckpointError(f"no model at {folder}: the path does not exist")
        path = (folder if folder.is_dir() else folder.parent) / "config.json"
        if not path.exists():
            where = f"at {path}" if folder.is_dir() else f"beside {folder}"
            raise CheckpointError(f"no config.json {where}: a model's folder holds config.json and its weights")
    return read_json(path)


def read_json(path: Path) -> dict:
    """The JSON object of a file. Raises CheckpointError."""
    with _opened(path) as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{path} has more than {MAX_JSON} bytes, which no config or index has")
    try:
        value = _parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({legible(str(error))})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def check_fields(config: Mapping, ranges: Mapping[str, tuple], what: str) -> None:
    """Raises CheckpointError for a field of `config` outside of its range, or one that is misspelt.

    ranges: {field: (least, most)}, both of the field's type: whole numbers, numbers with a point, or truth values.
    Fields that are absent have defaults; those that are unknown only concern training or speed.
    """
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    for name, (least, most) in ranges.items():
        value = config.get(name, least)
        right_type = type(value) is type(least) or (type(value) is int and type(least) is float)
        if not right_type or not least <= value <= most:  # nan is in no range
            among = "" if type(least) is bool else f" of {least} to {most}"
            raise CheckpointError(f"{what} has {name} = {reprlib.repr(value)}; {kinds[type(least)]}{among} is needed")
        if name not in config:
            for misspelt in difflib.get_close_matches(name, set(config) - set(ranges), n=1, cutoff=0.85):
                raise CheckpointError(f'{what} has no "{name}", but "{legible(misspelt)}"; is it misspelt?')


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(legible, names[:most])) + more


def legible(value: object, most: int = 200) -> str:
    """What a stranger's file says, fit for a terminal: on one line, short, and without what would move its cursor."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return printable(text if len(text) <= most else text[:most] + "…")
