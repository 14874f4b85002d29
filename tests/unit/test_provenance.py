"""Video.info: what is recorded, that it survives saving, that it names no path, user or machine."""

import getpass
import json
import os
import socket

import numpy as np
import pytest

from opensora_lite import OpenSora
from opensora_lite.errors import MediaError
from opensora_lite.io.fingerprints import fingerprint, sha256
from opensora_lite.io.metadata import read_info
from opensora_lite.provenance import Provenance
from opensora_lite.request import WEIGHTS
from opensora_lite.runtime.engine import available
from opensora_lite.runtime.offload import Resident
from opensora_lite.video import Video

QUICK = dict(num_frames=2, num_sampling_steps=2)


@pytest.fixture(scope="module")
def plain(pipe):
    """The info of a video without references."""
    return pipe("a car", **QUICK).info


@pytest.fixture
def wave(tmp_path):
    """A reference, in a folder of its own."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    return Video(picture).save(tmp_path / "private" / "wave.png")


def test_what_made_a_video_is_in_its_file(pipe, tmp_path, wave):
    settings = QUICK | dict(num_frames=4, loops=2, condition_frames=2, guidance_scale=3.5, seed=7)
    video = pipe("|0|a car|1|a boat at noon", references=[wave], mask_strategy="0;1,0,0,-1", **settings)
    for name in ("a.mp4", "a.webp"):
        assert read_info(video.save(tmp_path / name)) == video.info
    made = Provenance.read(tmp_path / "a.mp4")
    assert (made.prompt, made.seed, made.mask_strategy) == ("|0|a car|1|a boat at noon", 7, "0;1,0,0,-1")
    assert [(r.name, r.sha256) for r in made.references] == [("wave.png", sha256(wave))]
    assert made.model is not None and made.model["vae"].name == "tiny/vae" and not made.changed
    assert {name: part.fingerprint for name, part in made.model.items()} == {
        name: fingerprint(WEIGHTS / "tiny" / name, name) for name in ("stdit", "t5", "vae")
    }
    again = made.video_settings
    assert (again.loops, again.condition_frames, again.guidance_scale, again.seed) == (2, 2, 3.5, 7)
    assert again == pipe.settings.changed(**settings)


def test_every_video_of_a_request_has_its_own(pipe):
    videos = pipe(["a car", "a boat"], seed=3, num_sample=2, batch_size=3, **QUICK)
    assert [(video.info["prompt"], video.info["seed"]) for video in videos] == [
        ("a car", 3), ("a car", 4), ("a boat", 5), ("a boat", 6),
    ]  # fmt: skip
    assert [video.info["run"]["batch"] for video in videos] == [[0, 3], [1, 3], [2, 3], [0, 1]]


def test_nothing_private_and_no_time(pipe, wave):
    first, second = (pipe("a car", references=[wave], mask_strategy="0", **QUICK).info for _ in range(2))
    assert first == second
    text = json.dumps(first)
    assert "private" not in text and os.sep + "wave" not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text and f"/{name}" not in text


def test_frames_in_memory_have_no_name(pipe):
    picture = np.zeros((64, 64, 3), np.uint8)
    (reference,) = pipe("a car", references=[picture], mask_strategy="0", **QUICK).info["references"]
    assert reference == {"name": None, "part": None, "bytes": None, "sha256": None}


def test_a_changed_model_is_noticed():
    pipe = OpenSora.from_pretrained("tiny")
    hook = pipe.stdit.blocks[0].register_forward_post_hook(lambda *_: None)
    assert pipe("a car", **QUICK).info["changed"]
    hook.remove()
    assert not pipe("a car", **QUICK).info["changed"]
    weight = pipe.stdit.blocks[0].attn.qkv.weight
    values = weight.numpy()
    values[0, 0] += 1e-3
    weight.set_value(values)
    assert pipe("a car", **QUICK).info["changed"]


def test_a_model_from_memory_has_no_fingerprint(pipe):
    info = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings)("a car", **QUICK).info
    assert info["model"] is None


def test_how_it_was_compiled(pipe, monkeypatch):
    other = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings)
    monkeypatch.setattr(other, "_worth_compiling", lambda *request: available())
    assert other("a car", **QUICK).info["run"]["compiled"] == ("fp32" if available() else None)
    assert other.compile(None)("a car", **QUICK).info["run"]["compiled"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "7"},
        {"seed": -1},
        {"prompt": None},
        {"settings": []},
        {"references": [{"name": "a"}]},
        {"model": {"vae": {"name": "a", "fingerprint": "../x"}}},
        {"run": {}},
        {"other": 1},
    ],
    ids=str,
)
def test_broken_metadata_is_refused(plain, tmp_path, change):
    info = plain | change
    path = Video(np.zeros((1, 8, 8, 3), np.uint8), info=info).save(tmp_path / "a.png")
    assert read_info(path) == info
    with pytest.raises(MediaError, match="metadata"):
        Provenance.read(path)


def test_settings_of_others_are_refused(plain, tmp_path):
    for settings, word in (({"shine": 3}, "shine"), ({"num_frames": -1}, "num_frames")):
        changed = plain | {"settings": plain["settings"] | settings}
        path = Video(np.zeros((1, 8, 8, 3), np.uint8), info=changed).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=word):
            Provenance.read(path).video_settings  # noqa: B018
    path = Video(np.zeros((1, 8, 8, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(MediaError, match="how it was made"):
        Provenance.read(path)
