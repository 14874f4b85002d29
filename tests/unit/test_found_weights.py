"""Weights as others lay them out: folders of diffusers, wrappers, whole models, other names, pickles, a cache."""

import json
import os
import re
import shlex
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_files import torch_save

from opensora_lite import OpenSora
from opensora_lite.errors import CheckpointError, Note
from opensora_lite.io.checkpoints import find_part, on_disk, open_checkpoint
from opensora_lite.io.fingerprints import fingerprint
from opensora_lite.request import WEIGHTS
from opensora_lite.runtime.memory import estimate_memory
from opensora_lite.stdit2 import load_stdit
from opensora_lite.text import load_text_encoder
from opensora_lite.tools.cli import main
from opensora_lite.vae import load_vae

TINY = WEIGHTS / "tiny"
LOAD = {
    "stdit": load_stdit,
    "t5": lambda path: load_text_encoder(path, 32).model,
    "vae": lambda path: load_vae(path).model,
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, np.ndarray]]:
    return {part: load_file(next((TINY / part).glob("*.safetensors"))) for part in LOAD}


@pytest.fixture(scope="module")
def expected() -> dict[str, dict]:
    return {part: load(TINY / part).state_dict() for part, load in LOAD.items()}


@pytest.fixture
def same(expected):
    """same("vae", path): what is loaded from there has the values of the small model."""

    def compare(part: str, path) -> None:
        found = LOAD[part](path).state_dict()
        assert found.keys() == expected[part].keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value.numpy(), expected[part][name].numpy(), name)

    return compare


@pytest.fixture
def folder(tmp_path, tensors):
    """folder("stdit", {"ema.safetensors": tensors}) -> a folder with that part's other files, and these."""

    def make(part: str, files: dict[str, dict], name: str = "") -> Path:
        place = tmp_path / (name or part)
        shutil.copytree(TINY / part, place, ignore=shutil.ignore_patterns("*.safetensors", "__*"))
        for file, table in files.items():
            save = save_file if file.endswith(".safetensors") else lambda t, path: torch_save(path, t)
            save(table, place / file)
        return place

    return make


# ------------------------------------------------------------------------------------------------- folders of diffusers


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory) -> Path:
    """vae/, text_encoder/, tokenizer/ and transformer/, as diffusers saves a pipeline."""
    root = tmp_path_factory.mktemp("diffusers")
    for part, name in {"vae": "vae", "t5": "text_encoder", "stdit": "transformer"}.items():
        shutil.copytree(TINY / part, root / name, ignore=shutil.ignore_patterns("spiece.model", "__*"))
    (root / "tokenizer").mkdir()
    shutil.copy(TINY / "t5" / "spiece.model", root / "tokenizer")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "OpenSoraPipeline"}))
    return root


def test_the_parts_of_a_diffusers_folder_are_found(diffusers, same):
    for path in (diffusers, diffusers / "text_encoder", diffusers / "text_encoder" / "model.safetensors"):
        same("t5", path)
    for path in (diffusers, diffusers / "vae"):
        same("vae", path)
    same("stdit", diffusers)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_text_encoder(shutil.copytree(diffusers / "text_encoder", diffusers / "alone" / "t5"), 32)


def test_a_diffusers_folder_is_a_model_and_holds_parts_of_one(diffusers, tmp_path, capsys):
    whole = OpenSora.from_pretrained(diffusers)
    parts = OpenSora.from_pretrained(stdit=TINY / "stdit", t5=diffusers, vae=str(diffusers))
    assert whole.text.pieces("a red car") == parts.text.pieces("a red car")
    assert estimate_memory(model=diffusers).weights == estimate_memory(t5=diffusers, vae=diffusers).weights
    out = tmp_path / "a.safetensors"
    assert main(["encode-text", "--prompt", "a car", "--model", str(diffusers), "--out", str(out)]) == 0
    assert out.exists()


# ------------------------------------------------------------------------------------------------ names in the weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "state_dict.model.module."])
@pytest.mark.parametrize("part", LOAD)
def test_a_prefix_that_all_names_share_is_taken_off(folder, tensors, same, part, prefix):
    same(part, folder(part, {"model.safetensors": {prefix + name: t for name, t in tensors[part].items()}}))


def test_wrappers_of_single_blocks_are_taken_off(folder, tensors, same):
    """torch.compile, or activation checkpointing, of each block."""
    wrapped = {}
    for name, tensor in tensors["stdit"].items():
        name = re.sub(r"^(blocks\.\d+)\.", r"module.\1._orig_mod._checkpoint_wrapped_module.", name)
        wrapped[name if name.startswith("module.") else f"module.{name}"] = tensor
    same("stdit", folder("stdit", {"model.safetensors": wrapped}))
    wrapped["module._orig_mod.final_layer.linear.bias"] = wrapped["module.final_layer.linear.bias"]  # under two names
    with pytest.raises(CheckpointError, match="missing"):
        load_stdit(folder("stdit", {"model.safetensors": wrapped}, "twice"))


def test_a_prefix_before_the_names_of_2022_is_taken_off(golden, tmp_path):
    place = Path(shutil.copytree(golden / "vae_2022_names", tmp_path / "vae"))
    (file,) = place.glob("*.safetensors")
    before = load_vae(place).model.state_dict()
    save_file({f"module.{name}": value for name, value in load_file(file).items()}, file)
    after = load_vae(place).model.state_dict()
    assert all((after[name].numpy() == value.numpy()).all() for name, value in before.items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_decoder_of_a_whole_t5_is_passed_over_and_said(folder, tensors, same, prefix):
    t5 = tensors["t5"]
    decoder = {f"decoder.{n.removeprefix('encoder.')}": t for n, t in t5.items() if n.startswith("encoder.")}
    whole = {**t5, **decoder, "lm_head.weight": np.zeros((87, 96), np.float16)}
    place = folder("t5", {"model.safetensors": {prefix + name: tensor for name, tensor in whole.items()}})
    with pytest.warns(Note, match="decoder") as notes:
        same("t5", place)
    assert len(notes) == 1 and f" {len(decoder) + 1} tensors" in str(notes[0].message)


def test_what_is_neither_shared_nor_known_is_still_refused(folder, tensors):
    part = {f"module.{name}": tensor for name, tensor in tensors["stdit"].items()}
    part["extra.weight"] = np.ones(2, "f4")
    with pytest.raises(CheckpointError, match=r"1 tensors are unexpected: extra\.weight"):
        load_stdit(folder("stdit", {"model.safetensors": part}))
    for name in ("decoder.weight", "lm_head.weight"):
        with pytest.raises(CheckpointError, match="unexpected"):
            load_stdit(folder("stdit", {"model.safetensors": {**tensors["stdit"], name: np.ones(2, "f4")}}, name))


def test_a_model_and_its_ema_in_one_file_are_a_choice(folder, tensors, same, pasted):
    model = {f"model.{name}": tensor for name, tensor in tensors["stdit"].items()}
    ema = {f"ema.{name}": np.zeros_like(tensor) for name, tensor in tensors["stdit"].items()}
    place = folder("stdit", {"all.safetensors": model | ema})
    with pytest.raises(CheckpointError, match="2 sets of weights: ema, model") as refused:
        load_stdit(place)
    assert not load_stdit(pasted(refused)).final_layer.linear.weight.numpy().any()
    same("stdit", pasted(refused, "--table ema", "--table model", "ema.safetensors", "model.safetensors"))


# ------------------------------------------------------------------------------------------------------ names of files


@pytest.mark.parametrize("name", ["ema.safetensors", "model.fp16.safetensors", "epoch=3-step=20.safetensors"])
def test_the_only_safetensors_file_is_taken(folder, tensors, same, name):
    place = folder("stdit", {name: tensors["stdit"]})
    (place / "._model.safetensors").write_bytes(b"\0\5\x16\7")  # macOS puts such files beside others
    same("stdit", place)


def test_another_precision_of_the_same_file_does_not_count(folder, tensors, same):
    rounded = {name: np.zeros_like(tensor) for name, tensor in tensors["vae"].items()}
    name = "diffusion_pytorch_model"
    same("vae", folder("vae", {f"{name}.safetensors": tensors["vae"], f"{name}.fp16.safetensors": rounded}))


@pytest.mark.parametrize(
    "files",
    [
        ["ema.safetensors", "model.safetensors"],
        ["model.safetensors", "diffusion_pytorch_model.safetensors"],
        ["model.bf16.safetensors", "model.fp16.safetensors"],
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
    ],
)
def test_several_files_are_named_to_choose_from(folder, tensors, same, files):
    place = folder("stdit", dict.fromkeys(files, tensors["stdit"]))
    with pytest.raises(CheckpointError) as refused:
        load_stdit(place)
    assert not [name for name in files if name not in str(refused.value)]
    same("stdit", place / files[1])


def test_files_of_other_things_beside_the_weights_do_not_count(folder, tensors, same):
    other = {"latents": np.zeros(3, "f4"), "blocks.0.note": np.zeros(3, "f4")}
    place = folder("stdit", {"model.safetensors": tensors["stdit"], "cases.safetensors": other})
    (place / "broken.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    same("stdit", place)
    save_file({f"module.{n}": t for n, t in tensors["stdit"].items()}, place / "step-9000.safetensors")
    with pytest.raises(CheckpointError, match=r"step-9000\.safetensors"):
        load_stdit(place)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_shards_are_found_by_their_index_and_missed_without(folder, tensors, same, index):
    names = sorted(tensors["stdit"])
    variant = ".fp16" if "fp16" in index else ""
    shards = [f"model-0000{i}-of-00002{variant}.safetensors" for i in (1, 2)]
    halves = [{n: tensors["stdit"][n] for n in half} for half in (names[:50], names[50:])]
    place = folder("stdit", dict(zip(shards, halves, strict=True)))
    with pytest.raises(CheckpointError, match="lack their index"):
        load_stdit(place)
    weight_map = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    (place / index).write_text(json.dumps({"weight_map": weight_map}))
    same("stdit", place)
    (place / index).write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, f"sub\\{shards[0]}")}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_stdit(place)


# -------------------------------------------------------------------------------------------------------------- pickles


@pytest.fixture
def pasted(capsys):
    """pasted(error, old, new, …) runs the command of an error's message, with replacements; returns its file."""

    def run(error, *changes: str) -> str:
        (line,) = re.findall(r"^ +(opensora-lite .*)$", str(error.value), re.MULTILINE)
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            line = line.replace(old, new)
        program, *words = shlex.split(line)
        assert program == "opensora-lite" and main(words) == 0, capsys.readouterr().err
        return words[words.index("--out") + 1]

    return run


@pytest.mark.parametrize("name", ["ema.pt", "a b's.pth", "last.ckpt", "pytorch_model.bin"])
def test_the_command_that_a_pickle_needs_works_when_it_is_pasted(folder, tensors, same, pasted, name):
    place = folder("stdit", {name: {"state_dict": {f"module.{n}": t for n, t in tensors["stdit"].items()}}})
    for path in (place / name, place):
        with pytest.raises(CheckpointError, match="pickle") as refused:
            load_stdit(path)
    assert Path(pasted(refused)).parent == place
    same("stdit", place)


def test_shards_of_pickles_become_one_file(folder, tensors, same, pasted):
    names = sorted(tensors["t5"])
    halves = {f"pytorch_model-0000{i}-of-00002.bin": names[i - 1 :: 2] for i in (1, 2)}
    place = folder("t5", {file: {n: tensors["t5"][n] for n in half} for file, half in halves.items()})
    (place / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(CheckpointError) as refused:
        load_text_encoder(place, 32)
    pasted(refused)
    same("t5", place)


def test_a_pickle_under_the_name_of_safetensors_is_converted_too(folder, tensors, same, pasted):
    place = folder("stdit", {"model.pt": tensors["stdit"]})
    (place / "model.pt").rename(place / "model.safetensors")
    with pytest.raises(CheckpointError, match="zip archive") as refused:
        load_stdit(place)
    (place / "model.safetensors").rename(place / "model.pt")  # as the message says
    pasted(refused)
    same("stdit", place)


# ------------------------------------------------------------------------------------------------ Hugging Face's cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """cache("vae", "owner/name", "abc") puts a part into the cache as huggingface_hub does: snapshots of links."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)

    def fill(part: str, name: str, revision: str, main: bool = True, hub: Path = tmp_path / "hf" / "hub") -> Path:
        repository = hub / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in (file for file in (TINY / part).iterdir() if file.suffix != ".py" and file.is_file()):
            blob = repository / "blobs" / f"{revision}{file.stat().st_size}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        if main:
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(revision)
        return snapshot

    return fill


def test_a_repository_in_the_cache_is_found_by_its_name(cache, same, tmp_path, monkeypatch):
    cache("stdit", "hpcai-tech/OpenSora-STDiT-v2-stage3", "0" * 40, main=False)  # fetched by its revision
    cache("vae", "stabilityai/sd-vae-ft-ema", "1" * 40, main=False)
    snapshot = cache("vae", "stabilityai/sd-vae-ft-ema", "2" * 40)
    cache("t5", "DeepFloyd/t5-v1_1-xxl", "3" * 40)
    names = {"stdit": "hpcai-tech/OpenSora-STDiT-v2-stage3", "t5": "DeepFloyd/t5-v1_1-xxl"}
    names["vae"] = "stabilityai/sd-vae-ft-ema"
    for part, name in names.items():
        same(part, name)
    assert find_part(names["vae"], "vae") == find_part(snapshot.parents[1], "vae") == snapshot
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path / "fingerprints"))
    link = snapshot / "diffusion_pytorch_model.safetensors"
    assert fingerprint(link, "vae") == fingerprint(TINY / "vae", "vae")
    assert OpenSora.from_pretrained(**names).stdit.config == load_stdit(TINY / "stdit").config
    assert estimate_memory(**names).weights == estimate_memory(model="tiny").weights

    cache("vae", "a/b", "4" * 40, hub=tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert on_disk("a/b").name == "4" * 40


def test_a_path_goes_before_a_repository_of_that_name(cache, tmp_path):
    cache("vae", "a/b", "0" * 40)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert on_disk("a/b") == Path("a/b")


def test_what_the_cache_does_not_hold_is_not_downloaded(cache, capsys):
    for name in ("stabilityai/sd-vae-ft-ema", "weights/vae"):
        with pytest.raises(CheckpointError, match="nothing is downloaded"):
            load_vae(name)
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        OpenSora.from_pretrained("owner/name")
    for i in (0, 1):
        cache("vae", "a/b", str(i) * 40, main=False)
    with pytest.raises(CheckpointError, match="no main revision"):
        load_vae("a/b")
    incomplete = cache("stdit", "c/d", "0" * 40)
    (incomplete / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_stdit("c/d")
    for name in ("../a/b", "a/b/c", "a\\b", "/a/b", "a/.."):
        assert on_disk(name) == Path(name)
    assert open_checkpoint(TINY / "vae")
