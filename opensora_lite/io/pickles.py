"""Reading of pickles, the files that `paddle.save` and `torch.save` write, without executing anything in them.

A pickle is a program that calls functions by name. Here each name stands for a function of this module, or for nothing.
"""

import functools
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
#   What a pickle gets in place of the classes and functions that it names
# ---------------------------------------------------------------------------------------------------------------------


class _Table(dict):
    """A dict of a pickle. Its keys are text: the hash of a tuple within a million tuples would crash the process."""

    def __setitem__(self, name: object, value: object) -> None:
        if not isinstance(name, str):
            raise ValueError("its names are not texts")
        super().__setitem__(name, value)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes a dict")


class _DType:
    """An element type of a pickle, such as "f4"."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f8", "f4", "f2", "u2", "i8", "i4", "i2", "i1", "u1", "b1"):
            raise ValueError("its arrays do not hold numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|", ">"):
            raise ValueError("its arrays have no byte order")
        self.order = state[1]


class _Array:
    """An array of a pickle; its contents follow as its state."""

    array: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if self.array is not None or not isinstance(dtype, _DType) or not isinstance(data, (bytes, str)):
            raise ValueError("it holds an array of something else than numbers")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, dtype.order + dtype.code).reshape(shape, order="F" if fortran else "C")


class _Function:
    """What a pickle gets in place of a function or class that it names: it calls `stand_in`, and can't be changed."""

    def __init__(self, stand_in: Callable) -> None:
        self.stand_in = stand_in

    def __call__(self, *arguments: Any) -> Any:
        return self.stand_in(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes a function")


@functools.lru_cache(maxsize=8)
def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("it encodes a text in another way")
    return text.encode("latin1")  # cached: a pickle may ask for the same text a million times


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with an allow-list. (The one written in C takes memory for any memo index.)

    allowed: {"module name": what the pickle gets}. table: the class of its dicts.
    """

    allowed: ClassVar[Mapping[str, object]]
    table: ClassVar[type[_Table]] = _Table

    dispatch = pickle._Unpickler.dispatch.copy()
    for code in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):  # hash before we see the elements
        del dispatch[code[0]]

    def load_empty_dictionary(self: Any) -> None:
        self.append(self.table())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def find_class(self, module: str, name: str) -> Any:
        key = f"{module[:100]} {name[:100]}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        return self.allowed[key] if key in self.allowed else self.unknown(key)

    def unknown(self, key: str) -> Any:
        """What stands for a name that is not allowed."""
        raise ValueError(f"it calls {key}, which no state dict needs")


# ---------------------------------------------------------------------------------------------------------------------
#   Paddle
# ---------------------------------------------------------------------------------------------------------------------


class _PaddleUnpickler(_Unpickler):
    allowed: ClassVar = {
        "numpy.core.multiarray _reconstruct": _Function(_Array),
        "numpy ndarray": _Function(_Array),
        "numpy dtype": _Function(_DType),
        "collections OrderedDict": _Function(_Table),
        "builtins tuple": _Function(tuple),
        "_codecs encode": _Function(_encode),
    }


def read_paddle(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict as stored; bf16 as its 16 bits. Raises nearly any exception for a broken file."""
    with open(path, "rb") as file:
        state = _PaddleUnpickler(file, encoding="latin1").load()
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    arrays = {}
    for name, value in state.items():
        if name == "StructuredToParameterName@@":  # written by Paddle 2.0 beside the tensors
            continue
        if isinstance(value, tuple) and len(value) == 2:  # written by Paddle today: (Paddle's own name, array)
            value = value[1]
        if not isinstance(value, _Array) or value.array is None:
            raise ValueError(f"{name} is no tensor")
        arrays[name] = value.array
    return arrays


# ---------------------------------------------------------------------------------------------------------------------
#   PyTorch
# ---------------------------------------------------------------------------------------------------------------------

# PyTorch's storage types -> safetensors' dtypes
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
# How numpy reads safetensors' dtypes; of bf16, which it lacks, the 16 bits
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of PyTorch before 1.6 begin


@dataclass(frozen=True)
class TorchTensor:
    """A tensor of a file: a view of one of its storages."""

    dtype: str  # of safetensors
    key: str  # of its storage
    offset: int  # in elements, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storage: bytes) -> np.ndarray:
        """The values, bf16 as its 16 bits. Raises ValueError for a view of something else than the storage."""
        values = np.frombuffer(storage, NUMPY[self.dtype])
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.strides, *self.shape, 0) < 0 or max(last + 1, math.prod(self.shape)) > len(values):
            raise ValueError("a tensor leaves its storage")
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes a tensor")


class _TorchTable(_Table):
    """A dict of a training run: optimizers number their parameters, and state dicts carry versions as attributes."""

    def __setitem__(self, name: object, value: object) -> None:
        super().__setitem__(str(name) if type(name) is int else name, value)

    def __setstate__(self, state: object) -> None:
        pass


class _Nothing:
    """Stands for whatever else a training run saves beside its weights; nothing comes of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, name: object, value: object) -> None:
        pass

    append = extend = __init__


def _text(key: object) -> str:
    if not isinstance(key, str):  # nor is it hashed: see _Table
        raise ValueError("its keys are not texts")
    return key


def _rebuild(storage: tuple, offset: int, shape: tuple, strides: tuple, *_: object) -> TorchTensor:
    kind, dtype, key = storage
    whole = (offset, *shape, *strides)
    if kind != "storage" or dtype not in NUMPY or {type(n) for n in whole} != {int}:
        raise ValueError("it holds a tensor of something else than numbers")
    return TorchTensor(dtype, _text(key), offset, tuple(shape), tuple(strides))


class _TorchUnpickler(_Unpickler):
    table = _TorchTable
    allowed: ClassVar = {
        **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
        "torch._utils _rebuild_tensor_v2": _Function(_rebuild),
        "torch._utils _rebuild_parameter": _Function(lambda tensor, *_: tensor),
        "collections OrderedDict": _Function(_TorchTable),
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")
        self.dtypes: dict[str, str] = {}  # of storages, by key

    def unknown(self, key: str) -> Any:
        return _Nothing

    def persistent_load(self, pid: Any) -> tuple:
        """A storage: its type and its key."""
        kind, dtype, key = pid[:3]
        self.dtypes[_text(key)] = dtype
        return kind, dtype, key


def read_torch(path: Path) -> tuple[object, Callable[[TorchTensor], np.ndarray]]:
    """What `torch.save` wrote, with a TorchTensor for each tensor, and a function that reads its values.

    Dicts have text as keys. Raises nearly any exception for a broken file.
    """
    with open(path, "rb") as file:
        if file.read(len(LEGACY)) == LEGACY:
            return _read_legacy(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("torch.save has not written it, or it is cut off")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = name.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and _stored(archive, f"{root}byteorder") != b"little":
            raise ValueError("it was written on a machine with another byte order")
        state = _TorchUnpickler(io.BytesIO(_stored(archive, name))).load()

    @functools.lru_cache(maxsize=1)  # several tensors may be views of one storage
    def storage(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return _stored(archive, f"{root}data/{key}")

    return state, lambda tensor: tensor.of(storage(tensor.key))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member, which PyTorch never compresses: so it can't be larger than its file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    return archive.read(name)


def _read_legacy(path: Path) -> tuple[object, Callable[[TorchTensor], np.ndarray]]:
    """A file of before PyTorch 1.6: four pickles, the keys of the storages, and these, each behind its length."""
    size = path.stat().st_size
    places = {}
    with open(path, "rb") as file:
        for _ in range(3):
            _TorchUnpickler(file).load()  # a number, a version, and the sizes of C's types
        unpickler = _TorchUnpickler(file)
        state, keys = unpickler.load(), _TorchUnpickler(file).load()
        for key in keys:
            (length,) = struct.unpack("<q", file.read(8))
            length *= np.dtype(NUMPY[unpickler.dtypes[_text(key)]]).itemsize
            places[key] = file.tell(), length
            if not 0 <= length <= size - file.tell():
                raise ValueError("it is truncated")
            file.seek(length, io.SEEK_CUR)

    @functools.lru_cache(maxsize=1)
    def storage(key: str) -> bytes:
        with open(path, "rb") as file:
            file.seek(places[key][0])
            return file.read(places[key][1])

    return state, lambda tensor: tensor.of(storage(tensor.key))
