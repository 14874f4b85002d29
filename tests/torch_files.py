"""Files as torch.save writes them, made without PyTorch."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

KINDS = {"float64": b"Double", "float32": b"Float", "float16": b"Half", "int64": b"Long"}


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _group(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def _numbers(*values: int) -> bytes:
    return _group(*(b"I%d\n" % value for value in values))


def rebuilt(key: str, kind: bytes, offset: int, shape: tuple, strides: tuple) -> bytes:
    """The pickle of a tensor, without its beginning and end."""
    storage = _group(_text("storage"), b"ctorch\n" + kind + b"Storage\n", _text(key), _text("cpu"), b"I1\n") + b"Q"
    view = b"I%d\n" % offset + _numbers(*shape) + _numbers(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _group(storage, view, b"\x89ccollections\nOrderedDict\n)R") + b"R"


def pickled(state: Mapping[str, object], storages: dict[str, bytes]) -> bytes:
    """The pickle of a dict of arrays, of such dicts, and of what is pickled already; fills `storages`."""
    items = b""
    for name, value in state.items():
        if isinstance(value, Mapping):
            value = pickled(value, storages)
        elif isinstance(value, np.ndarray):
            key, steps = str(len(storages)), tuple(step // value.itemsize for step in value.strides)
            storages[key] = value.tobytes()
            value = rebuilt(key, KINDS[value.dtype.name], 0, value.shape, steps)
        items += _text(name) + value
    return b"}(" + items + b"u"


def torch_save(path: Path, state: Mapping[str, object]) -> Path:
    """What `torch.save(state, path)` writes; arrays stand for tensors."""
    storages: dict[str, bytes] = {}
    return torch_zip(path, b"\x80\x02" + pickled(state, storages) + b".", storages)


def torch_zip(path: Path, pickle: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive of torch.save with that pickle and these storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path
