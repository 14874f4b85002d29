"""`opensora-lite convert`: pickles of PyTorch and Paddle as safetensors. tests/golden/pickles has files of PyTorch."""

import zipfile

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file
from torch_files import rebuilt, torch_save, torch_zip

from opensora_lite.errors import CheckpointError, Note
from opensora_lite.io.checkpoints import open_checkpoint
from opensora_lite.io.convert import convert, read_any
from opensora_lite.tools.cli import main


@pytest.fixture
def pickles(golden):
    return golden / "pickles"


TABLE = np.arange(12, dtype="f4").reshape(3, 4)
KINDS = {  # as make_pickles.py wrote them
    "f32": TABLE,
    "turned": TABLE.T,
    "part": TABLE[1:, 2:],
    "scalar": np.float32(2.5),
    "empty": np.zeros((5, 0), "f4"),
    "parameter": TABLE + 1,
    **{
        kind: np.arange(-2, 4).astype(kind)
        for kind in ("float64", "float16", "int64", "int32", "int16", "int8", "bool")
    },
    "uint8": np.array([254, 255, 0, 1, 2, 3], "u1"),
    "bfloat16": np.arange(-2, 4).astype("f4"),
}


@pytest.mark.parametrize("name", ["kinds.pt", "legacy.pt"])
def test_every_kind_of_tensor_comes_out_as_it_was(pickles, tmp_path, name):
    """Views, scalars, nothing at all, and all types; with the zip archive of today and the format of before 1.6."""
    convert([pickles / name], tmp_path / "out.safetensors")
    found = open_checkpoint(tmp_path / "out.safetensors")
    assert found.keys() == KINDS.keys()
    assert found["bfloat16"].dtype == "BF16" and {tensor.layout for tensor in found.values()} == {"torch"}
    for kind, expected in KINDS.items():
        value = found[kind].read()
        np.testing.assert_array_equal(value, expected, kind)
        assert value.dtype == expected.dtype and value.shape == expected.shape


def test_the_weights_of_a_training_run_are_found(pickles):
    """Beside numbers, an argparse.Namespace, numpy's numbers and arrays: all of that is named, none of it is made."""
    with pytest.warns(Note, match=r"epoch, args, best, history passed over"):
        found = read_any(pickles / "lightning.ckpt")
    assert found.keys() == {"0.weight", "0.bias"}


def test_model_or_ema_is_a_choice(pickles):
    with pytest.raises(CheckpointError, match=r"--table model or --table ema or --table optimizer$"):
        read_any(pickles / "run.pth")
    with pytest.warns(Note, match=r"model, optimizer passed over"):
        ema = read_any(pickles / "run.pth", "ema")
    with pytest.warns(Note, match=r"ema, optimizer passed over"):
        model = read_any(pickles / "run.pth", "model")
    assert ema.keys() == model.keys() == {"0.weight", "0.bias"}
    assert not ema["0.weight"].read().any() and model["0.weight"].read().all()


def test_a_table_is_found_at_any_depth_and_by_the_beginning_of_names(tmp_path):
    one, two = np.ones(2, "f4"), np.zeros(2, "f4")
    nested = torch_save(tmp_path / "a.pt", {"checkpoint": {"module": {"a.b": one}, "ema": {"a.b": two}}})
    with pytest.warns(Note, match="ema passed over"):
        assert read_any(nested, "module")["a.b"].read().all()
    flat = torch_save(tmp_path / "b.pt", {"model.a.b": one, "ema.a.b": two})
    assert read_any(flat).keys() == {"model.a.b", "ema.a.b"}
    assert not read_any(flat, "ema")["a.b"].read().any()
    save_file({"model.a.b": one, "ema.a.b": two}, tmp_path / "c.safetensors")
    assert not read_any(tmp_path / "c.safetensors", "ema")["a.b"].read().any()
    for path in (nested, flat):
        with pytest.raises(CheckpointError, match=r"several tables|no table student"):
            read_any(path, "student")


def test_a_module_that_was_saved_whole_is_refused(pickles):
    with pytest.raises(CheckpointError, match="saved whole"):
        read_any(pickles / "whole_module.pt")


def test_shards_become_one_file_and_paddles_layout_is_kept(tmp_path):
    arrays = {"a.weight": np.ones((2, 3), "f2"), "b": np.arange(3.0)}
    shards = [torch_save(tmp_path / f"{name[0]}.bin", {name: value}) for name, value in arrays.items()]
    convert(shards, tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(CheckpointError, match="another of the files"):
        convert([shards[0], shards[0]], tmp_path / "twice.safetensors")
    tensor = paddle.to_tensor(arrays["b"]).astype("bfloat16")
    paddle.save({"a.weight": arrays["a.weight"], "b": tensor}, str(tmp_path / "a.pdparams"))
    convert([tmp_path / "a.pdparams"], tmp_path / "paddle.safetensors")
    found = open_checkpoint(tmp_path / "paddle.safetensors")
    assert found["a.weight"].layout == "paddle" and found["b"].dtype == "BF16"
    np.testing.assert_array_equal(found["b"].read(), arrays["b"])
    with pytest.raises(CheckpointError, match="PyTorch and of Paddle"):
        other = torch_save(tmp_path / "c.bin", {"c": arrays["b"]})
        convert([other, tmp_path / "paddle.safetensors"], tmp_path / "mixed.safetensors")
    assert not (tmp_path / "twice.safetensors").exists() and not (tmp_path / "mixed.safetensors").exists()


def view(offset=0, shape=(2,), strides=(1,), key="0", kind=b"Float"):
    return b"\x80\x02}(X\x01\x00\x00\x00a" + rebuilt(key, kind, offset, shape, strides) + b"u."


@pytest.mark.parametrize(
    "pickle",
    [
        view(offset=3),
        view(offset=-1),
        view(shape=(5,)),
        view(strides=(4,)),
        view(strides=(-1,)),
        view(shape=(-2,)),
        view(shape=(2**62,), strides=(0,)),
        view(shape=(2, 2)),
        view(kind=b"Double", shape=(4,)),
        view(kind=b"QInt8"),
        view(key="1"),
        view(key="../byteorder"),
        view().replace(b"Q", b"0N"),
        view().replace(b"I0\n(", b"F0.5\n(", 1),
        b"\x80\x02}(X\x01\x00\x00\x00a" + rebuilt("0", b"Float", 0, (2,), (1,)) + b"}X\x03\x00\x00\x00keyNsbu.",
        b"\x80\x02(" + b")" + b"\x85" * 200_000 + b"Q.",
        b"\x80\x02N.",
        b"",
    ],
)
def test_tensors_that_leave_their_storage_are_refused(tmp_path, pickle):
    path = torch_zip(tmp_path / "a.pt", view(), {"0": bytes(16)})
    assert read_any(path)["a"].read().shape == (2,)
    torch_zip(path, pickle, {"0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        convert([path], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_compressed_archive_and_other_zip_files_are_refused(tmp_path):
    """A kilobyte could unpack to gigabytes; PyTorch never compresses."""
    with pytest.raises(CheckpointError, match="compressed"):
        read_any(torch_zip(tmp_path / "a.pt", view(), {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match=r"b\.pt holds no weights"):
        read_any(tmp_path / "b.pt")


def test_the_command_line(tmp_path, capsys):
    source, out = torch_save(tmp_path / "a.pt", {"a": np.ones((2, 3), "f4")}), tmp_path / "a.safetensors"
    assert main(["convert", str(source), "--out", str(out)]) == 0
    assert "1 tensors" in capsys.readouterr().out and load_file(out)["a"].shape == (2, 3)
    assert main(["convert", str(source), "--out", str(out)]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(source), "--out", str(out), "--overwrite"]) == 0
    assert main(["convert", str(source), "--out", str(tmp_path / "a.bin")]) == 2
    assert main(["convert", str(tmp_path / "b.pt"), "--out", str(tmp_path / "b.safetensors")]) == 2
    capsys.readouterr()
