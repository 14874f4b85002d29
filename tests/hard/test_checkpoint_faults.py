"""Checkpoints that are broken, or made to break something: each is refused with a CheckpointError, and nothing else.

Where a fault leaves a file whole (a flipped bit in a name), the file must still mean what the safetensors library,
or the pickle's own bytes, say. Every test says how many cases it tried.
"""

import collections
import contextlib
import functools
import importlib
import io
import json
import math
import operator
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file
from torch_files import torch_zip

from opensora_lite import OpenSora
from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import MAX_JSON, build, build_meta, load, open_checkpoint, read_config
from opensora_lite.io.convert import read_any
from opensora_lite.io.pickles import LEGACY
from opensora_lite.request import WEIGHTS, model_defaults
from opensora_lite.stdit2 import STDiT2Config, load_stdit
from opensora_lite.text import load_text_encoder, new_encoder
from opensora_lite.tools.cli import main
from opensora_lite.vae import load_vae, new_autoencoder

TINY = WEIGHTS / "tiny"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3072000000\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Access to this model is restricted</title></head></html>\n"


def refusal(function, *arguments) -> str:
    """The sentence of the CheckpointError that the call must raise, fit for a terminal and for a person."""
    with pytest.raises(CheckpointError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.replace("\n", "").isprintable() and len(text) < 3000
    return text


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def packed(header, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with that header, given as an object, or as bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.read()) for name, tensor in open_checkpoint(path).items()}


@pytest.fixture
def small() -> bytes:
    """A whole safetensors file of three tensors."""
    return save(
        {"a": np.arange(6, dtype="f4").reshape(2, 3), "b.c": np.ones(3, "f2"), "d": np.array(2, "i8")},
        {"format": "pd"},
    )


# ----------------------------------------------------------------------------------------------- bytes of safetensors


def test_a_truncated_file_is_refused_at_every_length(tmp_path, small):
    path = tmp_path / "a.safetensors"
    assert len(values(written(path, small))) == 3
    for length in range(len(small)):
        assert "a.safetensors" in refusal(open_checkpoint, written(path, small[:length]))
    refusal(open_checkpoint, written(path, small + b"\0"))
    print(f"\n{len(small) + 1} lengths")


def agrees_with_the_library(path: Path, content: bytes) -> bool:
    """Whether the file is taken. Then safetensors' own library takes it, too, and reads the same from it."""
    path.write_bytes(content)
    try:
        found = values(path)
    except CheckpointError as error:
        assert "a.safetensors" in str(error) and str(error).isprintable()
        return False
    theirs = dict(safetensors.deserialize(content))
    assert found.keys() == theirs.keys()
    for name, value in found.items():
        assert list(value.shape) == theirs[name]["shape"]
        assert theirs[name]["dtype"] == "BF16" or value.tobytes() == bytes(theirs[name]["data"])
    return True


def test_every_flipped_bit_is_refused_or_harmless(tmp_path, small):
    """Each bit of the length, the header and the data: what is still taken is what the library reads."""
    taken = 0
    for bit in range(8 * len(small)):
        flipped = bytearray(small)
        flipped[bit // 8] ^= 1 << bit % 8
        taken += agrees_with_the_library(tmp_path / "a.safetensors", bytes(flipped))
    header = 8 * (8 + struct.unpack("<Q", small[:8])[0])
    print(f"\n{8 * len(small)} bits, {header} of them in the header; {taken} files are still whole")
    assert 8 * len(small) - header <= taken < 8 * len(small) - header / 2


def test_a_flipped_layout_is_not_taken_for_the_other_one(tmp_path):
    """ "pd" with a flipped bit used to be read as PyTorch's layout, in which a square weight is turned over."""
    weights = {"w": np.ones((2, 2), "f4")}
    for written_format, layout in ((None, "torch"), ("pt", "torch"), ("pd", "paddle"), ("np", "paddle")):
        save_file(weights, tmp_path / "a.safetensors", written_format and {"format": written_format})
        assert open_checkpoint(tmp_path / "a.safetensors")["w"].layout == layout
    for other in ("pe", "PD", "mlx", "tf", ""):
        save_file(weights, tmp_path / "a.safetensors", {"format": other})
        assert "pt (PyTorch) or pd (Paddle)" in refusal(open_checkpoint, tmp_path / "a.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
offsets = st.lists(st.integers(-8, 40) | json_values, max_size=3) | st.tuples(st.integers(0, 16), st.integers(0, 32))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "f32", ""]) | json_values,
        "shape": st.lists(st.integers(0, 8) | json_values, max_size=3) | json_values,
        "data_offsets": offsets | json_values,
    },
    optional={"path": json_values},
)


@settings(max_examples=200, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3), st.integers(0, 40))
def test_made_up_headers_are_refused_or_whole(tmp_path, header, length):
    agrees_with_the_library(tmp_path / "a.safetensors", packed(header, bytes(range(length))))


def spec(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


EIGHT = b"12345678"
BROKEN = {
    "claims 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "claims 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}" + bytes(99),
    "claims more than any header has": packed(b" " * (MAX_JSON + 1)),
    "negative offsets": packed({"a": spec(-8, 0)}, EIGHT),
    "end before begin": packed({"a": spec(8, 0, shape=(-2,))}, EIGHT),
    "both overlap": packed({"a": spec(), "b": spec()}, EIGHT),
    "half overlaps": packed({"a": spec(), "b": spec(4, 12)}, EIGHT + b"1234"),
    "a gap": packed({"a": spec(), "b": spec(16, 24)}, 3 * EIGHT),
    "does not begin at 0": packed({"a": spec(8, 16)}, 2 * EIGHT),
    "bytes after the last": packed({"a": spec()}, 2 * EIGHT),
    "beyond the file": packed({"a": spec(2**50, 2**50 + 8)}, EIGHT),
    "shape does not match bytes": packed({"a": spec(shape=(3,))}, EIGHT),
    "huge shape": packed({"a": spec(0, 2**62, shape=(2**60,))}, EIGHT),
    "huge shape of no bytes": packed({"a": spec(shape=(2**62, 2**62, 2))}, EIGHT),
    "a million dimensions": packed({"a": spec(shape=(2**62,) * 400_000)}, EIGHT),
    "negative dimensions": packed({"a": spec(shape=(-1, -2))}, EIGHT),
    "a dimension that is true": packed({"a": spec(0, 4, shape=(True,))}, b"1234"),
    "a dimension that is 2.0": packed({"a": spec(shape=(2.0,))}, EIGHT),
    "offsets that are 0.0 and 8.0": packed({"a": spec(0.0, 8.0)}, EIGHT),
    "shape is a text": packed({"a": spec(shape="22")}, EIGHT),
    "shape is null": packed({"a": spec(shape=None)}, EIGHT),
    "three offsets": packed({"a": {**spec(), "data_offsets": [0, 4, 8]}}, EIGHT),
    "unknown type": packed({"a": spec(dtype="F33")}, EIGHT),
    "type is a list": packed({"a": spec(dtype=["F32"])}, EIGHT),
    "type is a megabyte": packed({"a": spec(dtype="\x1b[2J" * 10**6)}, EIGHT),
    "no fields": packed({"a": {}}, EIGHT),
    "null for a tensor": packed({"a": None}, EIGHT),
    "metadata is a list": packed({"__metadata__": [], "a": spec()}, EIGHT),
    "a field twice": packed(b'{"a": {"dtype": "F16", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT),
    "not UTF-8": packed(b'{"\xff": ' + json.dumps(spec()).encode() + b"}", EIGHT),
    "UTF-16": packed(json.dumps({"a": spec()}).encode("utf-16"), EIGHT),
    "nan for an offset": packed(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [NaN, 8]}}', EIGHT),
    "infinity for a dimension": packed(b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', EIGHT),
    "100,000 lists in each other": packed(b"[" * 100_000 + b"]" * 100_000),
    "100,000 objects in each other": packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of 10,000 digits": packed(b'{"a": {"shape": [1' + b"0" * 10_000 + b'], "data_offsets": [0, 8]}}'),
    "a list": packed([spec()], EIGHT),
    "an empty header": packed(b"", EIGHT),
    "no header": b"",
    "seven bytes": bytes(7),
    "zeros": bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_headers_are_refused(tmp_path, fault):
    assert "model.safetensors" in refusal(
        open_checkpoint, written(tmp_path / "model.safetensors", BROKEN[fault]).parent
    )


def test_files_of_other_kinds_are_named(tmp_path):
    torch = io.BytesIO()
    np.savez(torch, a=np.ones(3))  # a zip archive, as torch.save writes them
    kinds = {
        "git-lfs pointer": LFS,
        "a web page": HTML,
        "a zip archive, such as PyTorch's": torch.getvalue(),
        "a pickle": pickle.dumps({"a": np.ones(3)}),
    }
    for kind, content in kinds.items():
        assert kind in refusal(open_checkpoint, written(tmp_path / "model.safetensors", content))
    for name in ("model.onnx", "model"):
        assert "is no checkpoint that can be loaded" in refusal(open_checkpoint, written(tmp_path / name, EIGHT))
    for name in ("model.pt", "model.bin", "model.ckpt", "model.pth"):
        assert f"{name} is a pickle" in refusal(open_checkpoint, written(tmp_path / name, EIGHT))


# --------------------------------------------------------------------------------------------- what is not even a file


def odd_places(folder: Path, name: str) -> dict[str, Path]:
    """Folders of which `name` is no regular file."""
    places = {}
    for kind in ("folder", "pipe", "device", "dangling link", "link to itself"):
        path = places[kind] = folder / kind / name
        path.parent.mkdir()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)  # whoever opens it waits forever
        else:
            path.symlink_to({"device": "/dev/zero", "dangling link": "nowhere"}.get(kind, name))
    return places


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "a.pdparams", "config.json"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    """A pipe would be waited for, a device read without end."""
    door = read_config if name == "config.json" else open_checkpoint
    for place in odd_places(tmp_path, name).values():
        assert name in refusal(door, place)
        if name != "a.pdparams":
            refusal(door, place.parent)
    for door in (read_config, open_checkpoint, load_stdit):
        assert "File name too long" in refusal(door, tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path, small):
    path = written(tmp_path / "model.safetensors", small)
    path.chmod(0)
    assert "Permission denied" in refusal(open_checkpoint, path)


def test_a_file_that_shrinks_after_it_was_opened_is_named(tmp_path, small):
    path = written(tmp_path / "a.safetensors", small)
    opened = open_checkpoint(path)["a"]
    os.truncate(path, len(small) // 2)
    assert "has been changed or removed since it was opened" in refusal(opened.read)
    path.unlink()
    assert "has been changed or removed since it was opened" in refusal(opened.read)


# -------------------------------------------------------------------------------------------------------------- shards


INDEX = "model.safetensors.index.json"


def shards(folder: Path, weight_map, files=("a", "b")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        save_file({name: np.ones(2, "f4")}, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_an_index_never_leaves_its_folder(tmp_path):
    outside = tmp_path / "secret.safetensors"
    save_file({"b": np.ones(2, "f4")}, outside)
    names = ["../secret.safetensors", str(outside), "..", ".", "", "/", "x/../../secret.safetensors", "./a.safetensors"]
    names += [
        "a.safetensors/",
        "..\\secret.safetensors",
        "x\\b.safetensors",
        "C:b.safetensors",
        "//secret.safetensors",
        "a\0.safetensors",
        "\x1b[2J/../a",
    ]
    for i, name in enumerate(names):
        folder = shards(tmp_path / str(i), {"a": "a.safetensors", "b": name})
        assert "which lies outside of its folder" in refusal(open_checkpoint, folder / INDEX)


def test_shards_may_be_links_as_in_the_cache_of_hugging_face(tmp_path):
    save_file({"b": np.ones(2, "f4")}, tmp_path / "blob")
    folder = shards(tmp_path / "snapshot", {"a": "a.safetensors", "b": "b.safetensors"}, files=("a",))
    (folder / "b.safetensors").symlink_to("../blob")
    assert set(values(folder)) == {"a", "b"}


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"a": "a.safetensors", "b": "c.safetensors"}, "shard c.safetensors is missing"),
        ({"a": "a.safetensors", "b": "x" * 5000}, "File name too long"),
        ({"a": "a.safetensors", "c": "b.safetensors"}, "promises c, which no shard holds"),
        ({"a": "b.safetensors", "b": "a.safetensors"}, "promises a in b.safetensors, but a.safetensors holds it"),
        ({"a": 1}, 'expected a JSON object with a "weight_map"'),
        ({"a": ["a.safetensors"]}, 'expected a JSON object with a "weight_map"'),
        ([["a", "a.safetensors"]], 'expected a JSON object with a "weight_map"'),
        (None, 'expected a JSON object with a "weight_map"'),
        ("a.safetensors", 'expected a JSON object with a "weight_map"'),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, weight_map, message):
    assert message in refusal(open_checkpoint, shards(tmp_path, weight_map) / INDEX)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = shards(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
    save_file({"a": np.zeros(2, "f4"), "b": np.ones(2, "f4")}, folder / "b.safetensors")
    assert "promises a in a.safetensors, but b.safetensors holds it" in refusal(open_checkpoint, folder)


# ------------------------------------------------------------------------------------------------------------- pickles


def state_dict():
    rng = np.random.default_rng(0)
    return {"a.weight": rng.standard_normal((2, 3)).astype("f4"), "b": rng.standard_normal(5).astype("f4")}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_state_dicts_of_paddle_are_read(tmp_path, protocol):
    """As tensors, parameters and arrays; in each precision; whichever way round an array lies."""
    path = str(tmp_path / "a.pdparams")
    arrays = state_dict()
    for table in (arrays, collections.OrderedDict(arrays), {n: paddle.to_tensor(a) for n, a in arrays.items()}):
        paddle.save(table, path, protocol=protocol)
        for name, value in values(Path(path)).items():
            np.testing.assert_array_equal(value, arrays[name])
    layer = paddle.nn.Linear(3, 2)
    paddle.save({**layer.state_dict(), "StructuredToParameterName@@": {"weight": "linear_0.w_0"}}, path)
    np.testing.assert_array_equal(values(Path(path))["weight"], layer.weight.numpy())
    for dtype in ("float64", "float16", "bfloat16"):
        tensor = paddle.to_tensor(arrays["b"]).astype(dtype)
        paddle.save({"b": tensor}, path, protocol=protocol)
        np.testing.assert_array_equal(values(Path(path))["b"].astype("f8"), tensor.astype("float64").numpy())
    for array in (arrays["a.weight"].T, np.array(3.0, "f4"), arrays["b"].astype(">f4"), np.ones((1, 1, 1), "f2")):
        (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"x": array}, protocol))
        np.testing.assert_array_equal(values(Path(path))["x"], array)


class Call:
    """A pickle of this calls `function` when it is loaded."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def malicious(marker: Path) -> dict[str, bytes]:
    """Pickles that would create the file `marker`, or hurt in other ways, by the doors that are known of."""
    path, shell, code = str(marker), f"touch '{marker}'", f"open({str(marker)!r}, 'w').close()"
    calls = {
        "os.system": Call(os.system, shell),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.open": Call(open, path, "w"),
        "functools.partial": Call(functools.partial, os.system, shell),
        "a partial that is called": Call(Call(functools.partial, os.system, shell)),
        "operator.attrgetter": Call(Call(operator.attrgetter, "system"), os),
        "operator.methodcaller": Call(operator.methodcaller("system", shell), Call(importlib.import_module, "os")),
        "builtins.getattr": Call(Call(getattr, Call(importlib.import_module, "os"), "system"), shell),
        "builtins.map": Call(list, Call(map, eval, [code])),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", path]),
        "shutil.copy": Call(shutil.copy, __file__, path),
        "types.FunctionType": Call(types.FunctionType, Call(compile, code, "x", "exec"), {}),
        "numpy.load": Call(np.load, path),
        "numpy.save": Call(np.save, path, [1]),
        "numpy.memmap": Call(np.memmap, path, "u1", "w+", 0, (8,)),
        "numpy.frombuffer": Call(np.frombuffer, EIGHT, "u1"),
        "an array of objects": np.array([Call(eval, code)], object),
        "paddle.load": Call(paddle.load, path),
        "eval, as Paddle writes a DenseTensor": Call(eval, "data", {"data": [1]}),
        "a state for what is none": Call(collections.OrderedDict, state={"__reduce__": 1}),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(eval, code))),
    }
    pickles = {}
    for name, call in calls.items():
        for protocol in range(6):
            for where, value in (("value", {"a": call}), ("array", {"a": ("a", call)}), ("all", call)):
                with contextlib.suppress(TypeError, pickle.PicklingError):  # not each can be written in each protocol
                    pickles[f"{name}, protocol {protocol}, as {where}"] = pickle.dumps(value, protocol)
    quoted = repr(code).encode()
    by_hand = {
        "GLOBAL and REDUCE": b"cos\nsystem\n(V" + shell.encode() + b"\ntR.",
        "INST": b"(V" + shell.encode() + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + shell.encode() + b"\no.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n(V" + shell.encode() + b"\nt\x81.",
        "a dotted name": b"\x80\x04c__main__\nos.system\n(V" + shell.encode() + b"\ntR.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(V" + shell.encode() + b"\ntR.",
        "of numpy, dotted": b"\x80\x04cnumpy\nf2py.os.system\n(V" + shell.encode() + b"\ntR.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"Pfile:///etc/passwd\n.",
        "a string that is evaluated": b"S" + quoted + b"\n.",
        "a changed function": b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
        "a changed dtype": b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",
        "nothing on the stack": b"\x80\x02R.",
        "no mark": b"\x80\x02t.",
        "a memo that is empty": b"\x80\x02h\x00.",
        "a STOP alone": b".",
        "no STOP": b"\x80\x04}",
        "nothing": b"",
        "a number": b"\x80\x02K\x01.",
        "names that are numbers": pickle.dumps({1: np.ones(2)}),
        "an array for a name": b"\x80\x02}cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btRNs.",
        "tuples in tuples, as a name": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.",
        "tuples in tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
        "a list of itself": b"\x80\x02]q\x00h\x00a.",
        "a tensor that is a list": pickle.dumps({"a": [1.0, 2.0]}),
        "a wrong shape": pickle.dumps({"a": np.ones((2, 3), "f4")}, 4).replace(b"K\x02K\x03", b"K\x09K\x09"),
        "the number 2^31 of the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"1.",
        "2^31 bytes": b"\x80\x03B\xff\xff\xff\x7f1.",
        "a frame of 2^62 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "a long name that is joined again and again": b"\x80\x04X" + struct.pack("<I", 10**6) + b"x" * 10**6
        + b"\x94h\x00" + b"h\x00\x93h\x00" * 100_000 + b".",
        "a long text that is encoded again and again": b"\x80\x02X" + struct.pack("<I", 10**6) + b"x" * 10**6
        + b"q\x00c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02" + b"h\x01h\x00h\x02\x86R" * 20_000 + b".",
    }  # fmt: skip
    return pickles | {f"by hand: {name}": content for name, content in by_hand.items()}


def test_nothing_in_a_pickle_is_executed(tmp_path):
    """Neither where it is asked for by name, nor under any other name."""
    marker = tmp_path / "executed"
    pickles = malicious(marker)
    with pytest.raises(OSError, match="nowhere"):  # the pickles do what they say, where they are loaded
        pickle.loads(pickle.dumps(Call(open, str(tmp_path / "nowhere" / "x"), "w")))
    pickle.loads(pickles["builtins.eval, protocol 2, as value"])
    assert marker.exists()
    marker.unlink()
    for name, content in pickles.items():
        message = refusal(open_checkpoint, written(tmp_path / "a.pdparams", content))
        assert message.startswith(f"{tmp_path / 'a.pdparams'} is no Paddle state dict"), name
        assert not marker.exists(), name
    for name in ("model.safetensors", "model.bin", "model.safetensors.index.json", "config.json"):
        for content in list(pickles.values())[::7]:
            refusal(read_config if name == "config.json" else open_checkpoint, written(tmp_path / name, content))
            assert not marker.exists()
    for content in pickles.values():  # for `opensora-lite convert`, as PyTorch writes them today and before 1.6
        torch_zip(tmp_path / "a.pt", content, {})
        refusal(read_any, tmp_path / "a.pt")
        refusal(read_any, written(tmp_path / "a.pt", LEGACY + content * 4))
        assert not marker.exists()
    print(f"\n{len(pickles)} pickles")
    assert len(pickles) > 300


def test_a_pickle_is_told_apart_by_what_it_calls(tmp_path):
    path = written(tmp_path / "a.pdparams", pickle.dumps({"a": Call(os.system, "true")}))
    assert "it calls posix system, which no state dict needs" in refusal(open_checkpoint, path)
    assert "is a git-lfs pointer" in refusal(open_checkpoint, written(path, LFS))


def test_flipped_bits_and_every_length_of_a_pickle(tmp_path):
    paddle.save({n: paddle.to_tensor(a) for n, a in state_dict().items()}, str(tmp_path / "a.pdparams"))
    whole = (tmp_path / "a.pdparams").read_bytes()
    taken = 0
    bits = range(0, 8 * len(whole), 3)  # 3 does not divide 8: every byte, and every place in a byte
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = values(written(tmp_path / "a.pdparams", flipped))
        except CheckpointError:
            continue
        taken += 1
        assert all(value.dtype.kind in "fiub" for value in found.values())
    for length in range(len(whole)):
        refusal(open_checkpoint, written(tmp_path / "a.pdparams", whole[:length]))
    print(f"\n{len(bits)} bits and {len(whole)} lengths; {taken} files are still whole")


@pytest.mark.parametrize("name", ["kinds.pt", "legacy.pt"])
@pytest.mark.filterwarnings("ignore::opensora_lite.errors.Note")  # what is passed over
def test_flipped_bits_and_lengths_of_a_file_of_pytorch(golden, tmp_path, name):
    """What `opensora-lite convert` still takes has values; views never leave their storage."""
    whole = (golden / "pickles" / name).read_bytes()
    taken = 0
    contents = [whole[:length] for length in range(0, len(whole), 23)]
    for bit in range(0, 8 * len(whole), 29):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        contents.append(bytes(flipped))
    for content in contents:
        try:
            found = {n: t.read() for n, t in read_any(written(tmp_path / "a.pt", content)).items()}
        except CheckpointError as error:
            assert "a.pt" in str(error) and str(error).isprintable()
            continue
        taken += 1
        assert all(value.dtype.kind in "fiub" for value in found.values())
    print(f"\n{len(contents)} files; {taken} are still whole")


# -------------------------------------------------------------------------------------------------------------- values


class Pair(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = paddle.nn.Linear(3, 3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "pdparams"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, dtype, suffix):
    path = tmp_path / f"a.{suffix}"
    good = {"linear.weight": np.ones((3, 3), "f4"), "linear.bias": np.zeros(3, "f4")}

    def outcome(bias):
        table = {**good, "linear.bias": bias}
        save_file(table, path) if suffix == "safetensors" else paddle.save(table, str(path))
        return load(build(Pair, dtype=dtype), open_checkpoint(path))

    outcome(good["linear.bias"])
    for bad in (np.nan, np.inf, -np.inf):
        for kind in ("f2", "f4", "f8"):
            message = refusal(outcome, np.array([0, bad, 1], kind))
            assert "tensor linear.bias holds 1 values of 3 that are not finite (nan, inf)" in message
    for kind in ("i8", "i4", "u1", "?"):
        assert "those of a model are floating-point numbers" in refusal(outcome, np.zeros(3, kind))
    if dtype == "float16":
        assert 'beyond the range of float16; load the model with dtype="bf16"' in refusal(
            outcome, np.full(3, 1e6, "f4")
        )
    if dtype == "float32":
        assert "beyond the range of float32" in refusal(outcome, np.full(3, 1e300))


def test_names_that_would_move_the_cursor_are_not_printed(tmp_path):
    for name in (
        "\x1b[2J\x1b[H",
        "a\nb",
        "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        "\u202e",
    ):
        save_file({name: np.ones(2, "f4")}, tmp_path / "a.safetensors")
        refusal(load, build(Pair), open_checkpoint(tmp_path / "a.safetensors"))
    save_file({"x" * 100_000: np.ones(2, "f4")}, tmp_path / "a.safetensors")
    refusal(load, build(Pair), open_checkpoint(tmp_path / "a.safetensors"))


# ------------------------------------------------------------------------------------------------------------- configs

PARTS = {"stdit": load_stdit, "t5": lambda path: load_text_encoder(path, 32), "vae": load_vae}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the small model, to be broken."""
    return Path(shutil.copytree(TINY, tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def broken(copy):
    """broken("vae", field=value) -> the copy's folder with that config; the config is mended afterwards."""

    def change(part: str, **fields) -> Path:
        config = json.loads((TINY / part / "config.json").read_text())
        (copy / part / "config.json").write_text(json.dumps({**config, **fields}))
        return copy / part

    yield change
    for part in PARTS:
        shutil.copy(TINY / part / "config.json", copy / part)


ABSURD = [
    None,
    True,
    False,
    "",
    "4",
    [],
    [4],
    {},
    0,
    -1,
    1.5,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    10**9,
    2**63,
    10**400,
]
SIZES_OF = {
    "stdit": "hidden_size depth num_heads caption_channels model_max_length in_channels patch_size mlp_ratio qk_norm",
    "t5": "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets feed_forward_proj"
    " model_type",
    "vae": "block_out_channels latent_channels layers_per_block norm_num_groups in_channels out_channels act_fn"
    " down_block_types up_block_types _class_name",
}
# Numbers that no tensor shows; those of ABSURD that are possible follow.
HIDDEN = {
    "stdit": {"input_sq_size": []},
    "t5": {
        "relative_attention_max_distance": [],
        "layer_norm_epsilon": [],
        "pad_token_id": [0],
        "eos_token_id": [0],
    },
    "vae": {"scaling_factor": [1.5], "use_quant_conv": [True], "use_post_quant_conv": [True]},
}


@pytest.mark.parametrize("part", PARTS)
def test_absurd_configs_are_refused(broken, part):
    """Every size set to every absurd value. None of them takes memory (see below)."""
    PARTS[part](broken(part))
    tried = 0
    for field in (*SIZES_OF[part].split(), *HIDDEN[part]):
        possible = HIDDEN[part].get(field, [])
        if field == "qk_norm":
            possible = [True]
        for value in ABSURD:
            if any(value is p or (type(value) is type(p) and value == p) for p in possible):
                continue
            message = refusal(PARTS[part], broken(part, **{field: value}))
            told = field, "does not fit the model", "hidden_size", "is not valid JSON"
            assert any(part in message for part in told), (field, value)
            tried += 1
    print(f"\n{part}: {tried} configs")


@pytest.mark.parametrize(
    "part, field, value",
    [
        ("stdit", "depth", 10**9),
        ("stdit", "qk_norm", "yes"),
        ("stdit", "mlp_ratio", "4"),
        ("stdit", "patch_size", 2),
        ("t5", "num_layers", 2.0),
        ("t5", "feed_forward_proj", "gated-silu"),
        ("vae", "shift_factor", 0.1159),
        ("vae", "block_out_channels", [16, 32, 64, 65]),
        ("vae", "down_block_types", ["A"]),
    ],
)
def test_the_field_that_is_wrong_in_a_config_is_named(broken, part, field, value):
    assert field in refusal(PARTS[part], broken(part, **{field: value}))


def test_misspelt_fields_are_refused_and_others_passed_over(broken, copy):
    misspelt = {
        "stdit": {"hidden_size": "hiden_size", "input_sq_size": "input_sq_sizes", "qk_norm": "qknorm"},
        "t5": {"relative_attention_max_distance": "relative_attention_max_dist", "num_layers": "num_layer"},
        "vae": {"scaling_factor": "scaling_facter", "norm_num_groups": "norm_num_group"},
    }  # fmt: skip
    for part, names in misspelt.items():
        for right, wrong in names.items():
            config = json.loads((TINY / part / "config.json").read_text())
            config[wrong] = config.pop(right)
            (copy / part / "config.json").write_text(json.dumps(config))
            assert f'has no "{right}", but "{wrong}"; is it misspelt?' in refusal(PARTS[part], copy / part)
        PARTS[part](broken(part, enable_flash_attn=True, torch_dtype="float16", anything={"else": [1]}))


def test_the_released_configs_are_taken():
    """Fields as the three repositories on Hugging Face have them, those included that are not looked at."""
    STDiT2Config.from_dict(
        dict(architectures=["STDiT2"], caption_channels=4096, class_dropout_prob=0.1, depth=28, drop_path=0.0,
             enable_flash_attn=True, enable_layernorm_kernel=True, enable_sequence_parallelism=False, freeze=None,
             hidden_size=1152, in_channels=4, input_size=[None] * 3, input_sq_size=512, mlp_ratio=4.0,
             model_max_length=200, model_type="STDiT2", no_temporal_pos_emb=False, num_heads=16,
             only_train_temporal=False, patch_size=[1, 2, 2], pred_sigma=True, qk_norm=True, skip_y_embedder=False,
             space_scale=0.5, time_scale=1.0, torch_dtype="float32", transformers_version="4.38.2")
    )  # fmt: skip
    t5 = dict(architectures=["T5ForConditionalGeneration"], d_ff=10240, d_kv=64, d_model=4096, dropout_rate=0.1,
              decoder_start_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu", initializer_factor=1.0,
              is_encoder_decoder=True, layer_norm_epsilon=1e-06, model_type="t5", num_decoder_layers=24, num_heads=64,
              num_layers=24, output_past=True, pad_token_id=0, relative_attention_num_buckets=32,
              tie_word_embeddings=False, transformers_version="4.6.0", use_cache=True, vocab_size=32128)  # fmt: skip
    vae = dict(_class_name="AutoencoderKL", _diffusers_version="0.4.2", act_fn="silu", sample_size=256,
               block_out_channels=[128, 256, 512, 512], in_channels=3, latent_channels=4, layers_per_block=2,
               down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
               norm_num_groups=32, out_channels=3)  # fmt: skip
    assert build_meta(new_encoder, t5).config.d_ff == 10240
    assert build_meta(new_autoencoder, vae).config.latent_channels == 4


NO_CONFIGS = {
    "empty": b"",
    "a list": b"[1]",
    "a number": b"1",
    "null": b"null",
    "half": b'{"depth": 6',
    "single quotes": b"{'depth': 6}",
    "nan": b'{"mlp_ratio": NaN}',
    "-infinity": b'{"mlp_ratio": -Infinity}',
    "a name twice": b'{"depth": 6, "depth": 7}',
    "a byte order mark": b'\xef\xbb\xbf{"depth": 6}',
    "UTF-16": '{"depth": 6}'.encode("utf-16"),
    "not UTF-8": b'{"depth": "\xff"}',
    "10,000 digits": b'{"depth": 1' + b"0" * 10_000 + b"}",
    "100,000 lists": b'{"depth": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a text after it": b'{"depth": 6} {}',
    "too long": b'{"a": "' + b"a" * MAX_JSON + b'"}',
    "git-lfs pointer": LFS,
    "a web page": HTML,
    "a pickle": pickle.dumps({"depth": 6}),
    "zeros": bytes(100),
}


@pytest.mark.parametrize("fault", NO_CONFIGS)
def test_files_that_are_no_config_are_refused(tmp_path, fault):
    assert "config.json" in refusal(read_config, written(tmp_path / "config.json", NO_CONFIGS[fault]).parent)


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tmp_path, broken, copy):
    whole = (TINY / "t5" / "spiece.model").read_bytes()
    folder = Path(shutil.copytree(TINY / "t5", tmp_path / "t5"))
    for content in (
        b"",
        LFS,
        HTML,
        bytes(1000),
        pickle.dumps([1]),
        *(whole[: len(whole) * i // 10] for i in range(10)),
    ):
        refusal(load_text_encoder, written(folder / "spiece.model", content), 32)
    for token in ("pad_token_id", "eos_token_id"):
        message = refusal(PARTS["t5"], broken("t5", **{token: 87}))
        assert "ids up to 87" in message


# ----------------------------------------------------------------------------------------------- through the front door


FAULTS = {
    "truncated": lambda part: os.truncate(weights_of(part), 1000),
    "claims 2^60 bytes": lambda part: weights_of(part).write_bytes(BROKEN["claims 2^60 bytes"]),
    "git-lfs pointer": lambda part: weights_of(part).write_bytes(LFS),
    "a web page": lambda part: weights_of(part).write_bytes(HTML),
    "a pickle": lambda part: weights_of(part).write_bytes(pickle.dumps({"a": Call(os.system, "true")})),
    "empty": lambda part: weights_of(part).write_bytes(b""),
    "a folder": lambda part: (weights_of(part).unlink(), (part / weights_of(TINY / part.name).name).mkdir()),
    "gone": lambda part: weights_of(part).unlink(),
    "nan": lambda part: changed(part, lambda name, value: np.full_like(value, np.nan)),
    "turned over": lambda part: changed(part, lambda name, value: value.T.copy()),
    "missing": lambda part: changed(part, lambda name, value: None if name.endswith("weight") else value),
    "renamed": lambda part: changed(part, lambda name, value: value, rename=lambda name: f"{name}.old"),
    "integers": lambda part: changed(part, lambda name, value: value.astype("i4")),
    "config is a list": lambda part: (part / "config.json").write_text("[]"),
    "config is gone": lambda part: (part / "config.json").unlink(),
    "config is a pipe": lambda part: ((part / "config.json").unlink(), os.mkfifo(part / "config.json")),
    "no folder": lambda part: shutil.rmtree(part),
    "a file for a folder": lambda part: (shutil.rmtree(part), part.write_bytes(b"x")),
}


def weights_of(part: Path) -> Path:
    (path,) = part.glob("*.safetensors")
    return path


def changed(part: Path, change, rename=lambda name: name):
    path = weights_of(part)
    table = {name: change(name, value) for name, value in values(path).items()}
    save_file({rename(name): value for name, value in table.items() if value is not None}, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", PARTS)
def test_the_library_and_the_command_line_refuse_broken_models(tmp_path, capsys, part, fault):
    """`OpenSora.from_pretrained` says what is wrong; the command says the same, exits with 2 and writes nothing."""
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    FAULTS[fault](folder / part)
    message = refusal(OpenSora.from_pretrained, folder)
    assert part in message
    if fault not in ("nan", "integers", "turned over", "missing", "renamed"):  # these name the tensors
        assert str(folder / part) in message
    out = tmp_path / "out"
    assert main(["generate", "--prompt", "a car", "--model", str(folder), "--save-dir", str(out)]) == 2
    assert capsys.readouterr().err == f"opensora-lite: error: {message}\n"
    assert not out.exists()


def test_parts_given_by_name_are_refused_likewise(tmp_path):
    parts = {part: TINY / part for part in PARTS}
    for part in PARTS:
        for name in ("a.pdparams", "model.bin", "model.pt", "model.safetensors", "model.safetensors.index.json"):
            folder = tmp_path / part
            folder.mkdir(exist_ok=True)
            shutil.copy(TINY / part / "config.json", folder)
            path = written(folder / name, pickle.dumps({"a": Call(os.system, f"touch {tmp_path / 'executed'}")}, 2))
            with pytest.raises(CheckpointError, match=name):
                OpenSora.from_pretrained(**{**parts, part: path})
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux")
def test_what_is_refused_takes_no_memory(tmp_path, copy):
    """Files and configs that ask for terabytes, in a process of their own."""
    for name in (
        "claims 2^60 bytes",
        "huge shape",
        "huge shape of no bytes",
        "a million dimensions",
        "100,000 lists in each other",
    ):
        written(tmp_path / f"{name}.safetensors", BROKEN[name])
    for name, content in malicious(tmp_path / "executed").items():
        if name.startswith("by hand"):
            written(tmp_path / f"{name.replace('/', ' ')}.pdparams", content)
    largest = {
        "stdit": dict(hidden_size=16368, depth=128, num_heads=1, mlp_ratio=64, caption_channels=2**14),
        "t5": dict(vocab_size=2**20, d_model=2**14, d_kv=2**12, d_ff=2**17, num_layers=128, num_heads=1024),
        "vae": dict(block_out_channels=[2**13] * 8, layers_per_block=16, latent_channels=64,
                    down_block_types=["DownEncoderBlock2D"] * 8, up_block_types=["UpDecoderBlock2D"] * 8),
    }  # fmt: skip
    for part, config in largest.items():
        folder = Path(shutil.copytree(TINY / part, tmp_path / part))
        (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **config}))
    program = f"""
        import json, re
        from pathlib import Path
        from opensora_lite import OpenSora
        from opensora_lite.io.checkpoints import open_checkpoint
        from opensora_lite.errors import CheckpointError
        from opensora_lite.stdit2 import load_stdit
        from opensora_lite.text import load_text_encoder
        from opensora_lite.vae import load_vae

        OpenSora.from_pretrained("tiny")
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on; that of the imports would hide it
        before, count = peak(), 0
        folder = Path({str(tmp_path)!r})
        cases = [(open_checkpoint, path) for path in sorted(folder.iterdir()) if path.is_file()]
        doors = {{"stdit": load_stdit, "t5": lambda path: load_text_encoder(path, 32), "vae": load_vae}}
        for door, path in cases + [(door, folder / part) for part, door in doors.items()]:
            try:
                door(path)
            except CheckpointError:
                count += 1
        print(json.dumps([count, len(cases) + 3, peak() - before]))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    refused, tried, megabytes = json.loads(child.stdout.splitlines()[-1])
    print(f"\n{tried} cases: {megabytes:.0f} MB at most")
    assert refused == tried
    assert megabytes < 1000  # of terabytes


@pytest.mark.parametrize(
    "sizes", ["4", "ab", 5, None, [[64]], [[64, 64, 64]], [["a", "b"]], [[True, 1.5]], ["ab"], [[7, 64]], {"a": 1}]
)
def test_sizes_of_a_pipeline_are_sizes(tmp_path, sizes):
    (tmp_path / "pipeline.json").write_text(json.dumps({"trained_sizes": sizes}))
    with pytest.raises(CheckpointError, match=r"pipeline\.json cannot be read"):
        model_defaults(tmp_path)


def test_a_pipeline_whose_settings_cannot_be_read_is_not_taken_for_one_without(tmp_path):
    (tmp_path / "pipeline.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a file"):
        model_defaults(tmp_path)
