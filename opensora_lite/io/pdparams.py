"""Reading of `.pdparams`, the pickles that `paddle.save` writes, without executing anything in them."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict as stored; bf16 as its 16 bits. Raises nearly any exception for a broken file."""
    with open(path, "rb") as file:
        state = _StateDictUnpickler(file, encoding="latin1").load()
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


# The names that a state dict contains, and what is called instead.
ALLOWED = {
    "numpy.core.multiarray _reconstruct": _Function(_Array),
    "numpy ndarray": _Function(_Array),
    "numpy dtype": _Function(_DType),
    "collections OrderedDict": _Function(_Table),
    "builtins tuple": _Function(tuple),
    "_codecs encode": _Function(_encode),
}


class _StateDictUnpickler(pickle._Unpickler):
    """Python's unpickler with an allow-list. (The one written in C takes memory for any memo index.)"""

    dispatch = pickle._Unpickler.dispatch.copy()
    for code in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):  # hash before we see the elements
        del dispatch[code[0]]

    def load_empty_dictionary(self: Any) -> None:
        self.append(_Table())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def find_class(self, module: str, name: str) -> _Function:
        key = f"{module[:100]} {name[:100]}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if key not in ALLOWED:
            raise ValueError(f"it calls {key}, which no state dict needs")
        return ALLOWED[key]
