"""Loading: strict, in either layout, in as little memory as possible, with a message for every way to fail."""

import json
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import (
    Tensor,
    build,
    check_state_dict,
    load,
    open_checkpoint,
    read_config,
    rename_2022,
)
from opensora_lite.io.files import write_safetensors
from opensora_lite.stdit2 import COMPUTED, SIZES, STDiT2
from opensora_lite.text import new_encoder, with_both_embeddings
from opensora_lite.vae import new_autoencoder


class Toy(paddle.nn.Layer):
    """A square Linear, which loads the wrong way round without complaint, and an embedding, which has no way round."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = paddle.nn.Linear(3, 3), paddle.nn.Embedding(5, 3)


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    shapes = {"linear.weight": (3, 3), "linear.bias": (3,), "table.weight": (5, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def loaded(path):
    return {name: value.numpy() for name, value in load(build(Toy), open_checkpoint(path)).state_dict().items()}


def raw_safetensors(path, header: dict | bytes, data: bytes = b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


# ------------------------------------------------------------------------------------------------------------- layouts


def test_torch_layout_is_transposed_and_paddle_layout_is_not(tmp_path, weights):
    save_file(weights, tmp_path / "torch.safetensors")
    save_file(weights, tmp_path / "paddle.safetensors", metadata={"format": "pd"})
    np.testing.assert_array_equal(loaded(tmp_path / "torch.safetensors")["linear.weight"], weights["linear.weight"].T)
    for name, value in loaded(tmp_path / "paddle.safetensors").items():
        np.testing.assert_array_equal(value, weights[name])
    np.testing.assert_array_equal(loaded(tmp_path / "torch.safetensors")["table.weight"], weights["table.weight"])


@pytest.mark.parametrize("dtype, digits", [(np.float64, 7), (np.float16, 2)])
def test_other_precisions_are_converted(tmp_path, weights, dtype, digits):
    save_file({name: value.astype(dtype) for name, value in weights.items()}, tmp_path / "a.safetensors")
    np.testing.assert_allclose(
        loaded(tmp_path / "a.safetensors")["linear.bias"], weights["linear.bias"], atol=10**-digits
    )


def test_bf16_is_widened(tmp_path, weights):
    bits = {name: (value.view(np.uint32) >> 16).astype("<u2") for name, value in weights.items()}
    data, header = b"", {}
    for name, value in bits.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    path = raw_safetensors(tmp_path / "bf16.safetensors", header, data)
    np.testing.assert_allclose(loaded(path)["linear.bias"], weights["linear.bias"], rtol=2**-7)


@pytest.mark.parametrize("dtype, rounding", [("float16", 2**-11), ("bfloat16", 2**-7)])
def test_half_precision_models_are_filled_with_rounded_values(tmp_path, weights, dtype, rounding):
    """Paddle 2.6 cuts to bf16, Paddle 3 rounds: hence 2^-7 and not 2^-8."""
    save_file(weights, tmp_path / "a.safetensors")
    model = load(build(Toy, dtype=dtype), open_checkpoint(tmp_path / "a.safetensors"))
    assert {str(value.dtype).split(".")[-1] for value in model.parameters()} == {dtype}
    for name, value in model.state_dict().items():
        expected = weights[name].T if name == "linear.weight" else weights[name]
        np.testing.assert_allclose(value.astype("float32").numpy(), expected, rtol=rounding)
    assert paddle.get_default_dtype() == "float32"


def test_shards_are_put_together(tmp_path, weights):
    names = {"linear.weight": "a.safetensors", "linear.bias": "a.safetensors", "table.weight": "b.safetensors"}
    for shard in set(names.values()):
        save_file({name: weights[name] for name in names if names[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    np.testing.assert_array_equal(loaded(tmp_path)["table.weight"], weights["table.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard b.safetensors is missing: .* names 2 shards"):
        open_checkpoint(tmp_path)
    save_file({"other": weights["linear.bias"]}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"promises table.weight, which no shard holds"):
        open_checkpoint(tmp_path)


def test_pdparams_are_only_read_when_named(tmp_path, weights):
    paddle.save(
        {name: paddle.to_tensor(value) for name, value in weights.items()}, str(tmp_path / "model_state.pdparams")
    )
    np.testing.assert_array_equal(loaded(tmp_path / "model_state.pdparams")["linear.weight"], weights["linear.weight"])
    with pytest.raises(CheckpointError, match=r"there is model_state.pdparams. A .pdparams file is only read"):
        open_checkpoint(tmp_path)


def test_names_of_2022_become_those_of_today():
    old = "encoder.mid_block.attentions.0.proj_attn.weight"
    new = "encoder.mid_block.attentions.0.to_out.0.weight"
    assert rename_2022([old, "encoder.key.weight"]) == {old: new}


def test_tensors_under_both_names_are_refused(weights):
    tensors = {name: Tensor(value.shape, lambda: None, "torch", Path()) for name, value in weights.items()}
    tensors["old.weight"] = tensors["linear.weight"]
    with pytest.raises(CheckpointError, match=r"holds the same tensors under old and new names: old.weight"):
        check_state_dict(Toy(), tensors, rename={"old.weight": "linear.weight"})


# ----------------------------------------------------------------------------------------------------- what is refused


def test_every_tensor_that_does_not_fit_is_named(tmp_path, weights):
    wrong = {
        "linear.bias": weights["linear.bias"],
        "table.weight": weights["table.weight"].T.copy(),
        "extra": np.ones(2, "f4"),
    }
    save_file(wrong, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as error:
        loaded(tmp_path / "a.safetensors")
    assert str(error.value) == (
        "the checkpoint does not fit the model\n"
        "    1 tensors are missing: linear.weight\n"
        "    1 tensors are unexpected: extra\n"
        "    1 tensors are of another shape: table.weight: the file has [3, 5], the model [5, 3]"
    )


def test_computed_tensors_may_be_absent_or_left_over(weights):
    tensors = {name: Tensor(value.shape, lambda v=value: v, "torch", Path()) for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"unexpected: pos_embed"):
        check_state_dict(Toy(), {**tensors, "pos_embed": tensors["linear.bias"]})
    assert set(
        check_state_dict(Toy(), {**tensors, "pos_embed": tensors["linear.bias"]}, computed=("pos_embed",))
    ) == set(weights)
    del tensors["linear.bias"]
    assert set(check_state_dict(Toy(), tensors, computed=("linear.bias",))) == set(tensors)


def entry(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "header, data, message",
    [
        (entry(), b"1234", "not a whole safetensors file"),
        (entry(end=12), b"1" * 12, "not a whole safetensors file"),
        (entry(dtype="F8_E4M3", end=2), b"12", "holds tensors of type F8_E4M3|not a whole safetensors file"),
        (b"no json", b"", "not a whole safetensors file"),
        (b"[1, 2]", b"", "not a whole safetensors file"),
        ({"a": {"dtype": "F32"}}, b"", "not a whole safetensors file"),
    ],
)
def test_broken_safetensors_are_named(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(raw_safetensors(tmp_path / "a.safetensors", header, data))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a whole safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "is not a whole safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a git-lfs pointer, .* run `git lfs pull`",
        ),
        (b"<html><body></body></html>", "is a web page"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        # damaged safetensors whose header's length begins like a pickle, a zip archive, a web page
        (struct.pack("<Q", 0x80) + b'{"a": 1' + b" " * 120 + b"}", "is not a whole safetensors file"),
        (struct.pack("<Q", 0x4B50) + b'{"a": 1}', "is not a whole safetensors file"),
        (struct.pack("<Q", 0x3C) + b'{"a": 1}', "is not a whole safetensors file"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_paths_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights at .*nowhere: the path does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no weights in .*: expected a .safetensors file, .* there is nothing"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.bin is a pickle"):
        open_checkpoint(tmp_path / "model.bin")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(CheckpointError, match=r'names the shard "../a.safetensors", which lies outside of its folder'):
        open_checkpoint(tmp_path)
    (tmp_path / "x.pdparams").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"is no Paddle state dict"):
        open_checkpoint(tmp_path / "x.pdparams")


def test_configs_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.json at "):
        read_config(tmp_path)
    for text, message in (("{", "is not valid JSON"), ("[]", "does not hold a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_config(tmp_path)


# ----------------------------------------------------------------------------------------------------------- full size

T5_XXL = dict(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
SD_VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
)


@pytest.mark.parametrize(
    "checkpoint, make, computed",
    [
        ("OpenSora-STDiT-v2-stage3", lambda: STDiT2(SIZES["XL/2"]), COMPUTED),
        ("t5-v1_1-xxl (encoder)", lambda: new_encoder(T5_XXL), ()),
        ("sd-vae-ft-ema", lambda: new_autoencoder(SD_VAE), ()),
    ],
)
def test_released_checkpoints_fit_exactly(golden, checkpoint, make, computed):
    """Names and shapes of the released files against models of that size, which are never allocated."""
    shapes = json.loads((golden / "full_size_tensors.json").read_text())[checkpoint]
    released = {name: Tensor(tuple(shape), lambda: None, "torch", Path()) for name, shape in shapes.items()}
    with paddle.LazyGuard():
        model = make()
    renamed = rename_2022(released)
    assert set(check_state_dict(model, released, renamed, computed)) == {renamed.get(name, name) for name in released}
    if checkpoint.startswith("t5"):  # one table under two names, of which a file may hold either
        one = {name: tensor for name, tensor in released.items() if name != "encoder.embed_tokens.weight"}
        assert check_state_dict(model, with_both_embeddings(one)).keys() == released.keys()
    lacking = dict(list(released.items())[:-1])
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors are missing: " + re.escape(renamed.get(list(released)[-1], list(released)[-1])),
    ):
        check_state_dict(model, lacking, renamed, computed)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc: run it on Linux")
def test_loading_holds_no_second_copy_of_the_model(tmp_path):
    """A child process loads 200 M values; its peak stays well under twice their size."""
    config = dict(hidden_size=768, depth=16, num_heads=12)
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = f"""
        import json, math, resource, struct
        from pathlib import Path
        import opensora_lite, paddle
        from opensora_lite.stdit2 import STDiT2, STDiT2Config, load_stdit

        folder = Path({str(tmp_path)!r})
        with paddle.LazyGuard():
            model = STDiT2(STDiT2Config(**{config}))
        header, end = {{}}, 0
        linears = {{f"{{n}}.weight" for n, l in model.named_sublayers() if isinstance(l, paddle.nn.Linear)}}
        for name, value in model.state_dict().items():
            shape = value.shape[::-1] if name in linears else value.shape
            size = 4 * math.prod(shape)
            header[name], end = {{"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}}, end + size
        header = json.dumps(header).encode()
        with open(folder / "model.safetensors", "wb") as file:  # a file of zeros that takes no room on the disk
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + end)
        del model
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        model = load_stdit(folder)
        status = Path("/proc/self/status").read_text()  # ru_maxrss may be that of the process that started this one
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        print(end // 4, (peak - before) / end)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    values, ratio = child.stdout.split()
    print(f"\nloading {int(values) / 1e6:.0f} M values: peak {float(ratio):.2f} times their size")
    assert 190e6 < int(values) < 230e6
    assert float(ratio) < 1.7


def test_weights_can_be_read_by_whom_other_files_can(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
