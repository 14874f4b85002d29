"""Fingerprints of models: contents count, names and places don't; kept in the cache folder, and found there."""

import hashlib
import os
import shutil

import pytest

from opensora_lite.errors import CheckpointError
from opensora_lite.io import fingerprints
from opensora_lite.io.fingerprints import find, fingerprint
from opensora_lite.request import WEIGHTS

VAE = WEIGHTS / "tiny" / "vae"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints.json"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(VAE, tmp_path / "copy")


def test_it_is_what_sha256sum_says():
    lines = sorted(hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in VAE.iterdir())
    assert fingerprint(VAE, "vae") == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_contents_count_and_names_do_not(copy):
    expected = fingerprint(VAE, "vae")
    assert fingerprint(copy, "vae") == expected == fingerprint(copy / WEIGHTS_FILE, "vae")
    (copy / WEIGHTS_FILE).rename(copy / "model.safetensors")
    assert fingerprint(copy, "vae") == expected
    config = copy / "config.json"
    config.write_text(config.read_text() + "\n")
    assert fingerprint(copy, "vae") != expected


def test_t5s_tokenizer_counts(tmp_path):
    copy = shutil.copytree(WEIGHTS / "tiny" / "t5", tmp_path / "text_encoder")
    before = fingerprint(copy, "t5")
    (tmp_path / "tokenizer").mkdir()
    (copy / "spiece.model").rename(tmp_path / "tokenizer" / "spiece.model")  # as in a diffusers folder
    assert fingerprint(copy, "t5") == before
    with open(tmp_path / "tokenizer" / "spiece.model", "ab") as file:
        file.write(b"\0")
    assert fingerprint(copy, "t5") != before


def test_it_is_computed_once(copy, cache, monkeypatch):
    expected = fingerprint(copy, "vae")
    assert cache.exists()
    monkeypatch.setattr(fingerprints, "sha256", lambda file: pytest.fail("computed again"))
    assert fingerprint(copy, "vae") == expected
    monkeypatch.undo()
    monkeypatch.setenv("OPENSORA_CACHE", str(cache.parent))
    data = bytearray((copy / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1  # the same size
    (copy / WEIGHTS_FILE).write_bytes(data)
    os.utime(copy / WEIGHTS_FILE, (1, 1))
    assert fingerprint(copy, "vae") != expected


def test_a_model_is_found(copy, tmp_path):
    expected = fingerprint(VAE, "vae")
    assert find(expected, "vae", [WEIGHTS / "tiny" / "t5", VAE]) == VAE
    assert find(expected, "vae", []) is None
    fingerprint(copy, "vae")
    assert find(expected, "vae", [tmp_path / "missing"]) == copy
    shutil.rmtree(copy)
    assert find(expected, "vae", []) is None


def test_a_broken_cache_does_no_harm(copy, cache):
    expected = fingerprint(copy, "vae")
    for text in ("", "{", "[]", '{"a": 3}', f'{{"{copy}": {{"stamps": [], "fingerprint": 3}}}}'):
        cache.write_text(text)
        assert fingerprint(copy, "vae") == expected and find("0" * 64, "vae", []) is None
    cache.unlink()
    cache.mkdir()
    assert fingerprint(copy, "vae") == expected


def test_what_is_no_model_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError):
            fingerprint(path, "vae")
