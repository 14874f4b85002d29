"""`opensora-lite generate --like FILE` makes a video again, and `opensora-lite info FILE` says how it was made."""

import json
import shutil

import numpy as np
import pytest

from opensora_lite import MaskStrategy, OpenSora
from opensora_lite.io.metadata import read_info
from opensora_lite.request import WEIGHTS
from opensora_lite.runtime.engine import available
from opensora_lite.tools import cli
from opensora_lite.video import Video

QUICK = ["--num-frames", "2", "--num-sampling-steps", "2"]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A working folder with a picture and a clip; nothing of this machine's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    Video(pixels[:1]).save("pictures/wave.png")
    Video(pixels).save("pictures/clip.gif")
    return tmp_path


@pytest.fixture
def latents(monkeypatch):
    """The final latents of every loop of every batch that is made, as they come."""
    found, generate = [], OpenSora.generate

    def recording(self, jobs, settings, on_step=None, trace=None):
        def record(progress):
            if progress.step.index == 0:
                found.append(progress.step.sample.numpy().copy())
            if on_step:
                on_step(progress)

        return generate(self, jobs, settings, record, trace)

    monkeypatch.setattr(OpenSora, "generate", recording)
    return found


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def make(capsys, *words):
    code, out, err = run(capsys, "generate", *QUICK, *words)
    assert code == 0, err
    return out


def test_the_same_again_with_references_and_loops(capsys, folder, latents):
    words = [
        "--loop",
        2,
        "--condition-frame-length",
        1,
        "--mask-strategy",
        "0;1,1,1,1,1,0.6",
        "--prompt",
        "|0|a boat|1|a car",
    ]
    make(capsys, *words, "--reference-path", "pictures/wave.png;pictures/clip.gif#t=0.05", "--save-format", "webp")
    there = folder / "there"
    there.mkdir()
    first = shutil.move("samples/sample_0.webp", there / "first.webp")
    shutil.move("pictures/wave.png", there / "renamed.png")
    shutil.move("pictures/clip.gif", there / "clip.gif")
    assert run(capsys, "generate", "--like", first)[0] == 0
    before, after = latents[: len(latents) // 2], latents[len(latents) // 2 :]
    assert len(before) == 2 and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    references = read_info("samples/sample_0.webp")["references"]
    assert [(r["name"], r["part"]) for r in references] == [("renamed.png", None), ("clip.gif", "0.05")]


def test_the_same_again_of_a_batch(capsys, latents):
    """The patches of 3 frames of 48×80 are no multiple of four: the place in the batch decides about a few bits."""
    words = ["--num-frames", 3, "--image-size", 48, 80, "--batch-size", 2, "--sampler", "ddim", "--cfg-channel", 2]
    make(capsys, "--prompt", "a boat", "a car", *words, "--guidance-interval", 300, 999)
    assert run(capsys, "generate", "--like", "samples/sample_1.mp4", "--save-dir", "again")[0] == 0
    assert np.array_equal(latents[0][1], latents[1][1])
    with open("samples/sample_1.mp4", "rb") as first, open("again/sample_0.mp4", "rb") as second:
        assert first.read() == second.read()


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_compiled_as_before(capsys, monkeypatch, latents, compiled):
    if compiled and not available():
        pytest.skip("this Paddle compiles nothing")
    monkeypatch.setattr(OpenSora, "_worth_compiling", lambda *request: compiled)
    make(capsys, "--prompt", "a car")
    monkeypatch.setattr(OpenSora, "_worth_compiling", lambda *request: not compiled)
    assert run(capsys, "generate", "--like", "samples/sample_0.mp4", "--sample-name", "again")[0] == 0
    assert read_info("samples/again_0.mp4") == read_info("samples/sample_0.mp4")
    assert np.array_equal(*latents)


def test_settings_that_are_given_replace_those_of_the_file(capsys):
    make(capsys, "--prompt", "a car", "--save-format", "gif")
    first = read_info("samples/sample_0.gif")
    again = ["generate", "--like", "samples/sample_0.gif", "--sample-name", "other"]
    assert run(capsys, *again, "--seed", 5, 9, "--num-sample", 2)[0] == 0
    made = [read_info(f"samples/other_0-{i}.gif") for i in (0, 1)]  # in the format of FILE
    assert [info["seed"] for info in made] == [5, 9]
    assert all(info | {"seed": first["seed"]} == first for info in made)


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """A video with a reference, and that reference, in a folder of their own."""
    folder = tmp_path_factory.mktemp("made")
    picture = Video(np.full((1, 64, 64, 3), 200, np.uint8)).save(folder / "wave.png")
    settings = dict(num_frames=2, num_sampling_steps=2)
    return pipe("a car", references=[picture], mask_strategy="0", **settings).save(folder / "video.png.mp4"), picture


def test_a_reference_in_memory_is_given_as_a_file(capsys, pipe, latents):
    """Beside one that was a file, which is found by itself."""
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    given = dict(references=[pixels, "pictures/wave.png"], mask_strategy=MaskStrategy.connect())
    pipe("a car", **given, num_frames=2, num_sampling_steps=2).save("pictures/first.mp4")
    refused(capsys, "--reference-path", "pictures/first.mp4")
    saved = Video(pixels[None]).save("elsewhere/mine.png")
    code, out, err = run(capsys, "generate", "--like", "pictures/first.mp4", "--reference-path", saved)
    assert code == 0 and "can't be checked" in out + err
    assert np.array_equal(*latents)


@pytest.fixture
def loads_nothing(monkeypatch):
    monkeypatch.setattr(OpenSora, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))


def test_references_that_are_given(capsys, made, folder):
    video = shutil.copy(made[0], folder)
    moved = shutil.copy(made[1], folder / "pictures" / "other.png")
    command = ["generate", "--like", video, "--reference-path"]
    assert run(capsys, *command, "pictures/wave.png;pictures/other.png")[0] == 0
    assert read_info("samples/sample_0.mp4")["references"][0]["name"] == moved.name


def refused(capsys, word, *words):
    code, _, err = run(capsys, "generate", "--like", *words)
    assert code == 2 and word in err and "\x1b" not in err, err


def test_what_is_not_found_or_differs(capsys, made, folder, loads_nothing):
    video = shutil.copy(made[0], folder)
    refused(capsys, "--reference-path", video)
    refused(capsys, "wave.png", video, "--reference-path", "pictures/wave.png")  # the same name, another picture
    refused(capsys, "missing.png", video, "--reference-path", "missing.png")
    refused(capsys, "how it was made", "pictures/wave.png")
    refused(capsys, "does not exist", "missing.mp4")
    for words in (["--prompt", "a boat"], ["--mask-strategy", "0"], ["--prompt-path", "x.txt"]):
        refused(capsys, f"leave out {words[0]}", made[0], *words)
    other = shutil.copytree(WEIGHTS / "tiny", folder / "other")
    (other / "vae" / "config.json").write_text((other / "vae" / "config.json").read_text() + " ")
    refused(capsys, "vae", made[0], "--model", other)
    refused(capsys, "vae", made[0], "--vae-pretrained-path", other / "vae")
    refused(capsys, "leave out --text-embeddings", made[0], "--text-embeddings", "x.safetensors")


@pytest.mark.parametrize(
    "word, change",
    [
        ("changed", {"changed": True}),
        ("not loaded from files", {"model": None}),
        ("in memory", {"references": [{"name": None, "part": None, "bytes": None, "sha256": None}]}),
        ("--model", {"model": {"vae": {"name": "tiny/vae", "fingerprint": "0" * 64}}}),
        ("beside", {"references": [{"name": "../../etc/hostname", "part": None, "bytes": 5, "sha256": "0" * 64}]}),
        ("num_frames", {"settings": {"num_frames": 10**9}}),
        ("device", {"run": {"device": "\x1b[31m", "dtype": "float32", "compiled": None, "batch": [0, 1]}}),
        ("compiled", {"run": {"device": "cpu", "dtype": "float32", "compiled": "fast", "batch": [0, 1]}}),
        ("text embeddings", {"model": {"text_embeddings": {"name": "x", "fingerprint": "0" * 64}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metadata_that_cannot_be_followed(capsys, made, loads_nothing, word, change):
    video = Video(np.zeros((2, 64, 64, 3), np.uint8), info=read_info(made[0]) | change).save("a.gif")
    shutil.copy(made[1], "wave.png")
    refused(capsys, word, video)


def test_a_model_is_found_where_it_was_loaded_before(capsys, folder):
    other = shutil.copytree(WEIGHTS / "tiny", folder / "models" / "mine")
    (other / "vae" / "config.json").write_text((other / "vae" / "config.json").read_text() + " ")
    make(capsys, "--prompt", "a car", "--model", other)
    assert read_info("samples/sample_0.mp4")["model"]["vae"]["name"] == "mine/vae"
    assert run(capsys, "generate", "--like", "samples/sample_0.mp4", "--sample-name", "again")[0] == 0
    assert read_info("samples/again_0.mp4")["model"]["vae"] == read_info("samples/sample_0.mp4")["model"]["vae"]


def test_other_versions_are_a_note(capsys, made):
    info = read_info(made[0])
    video = Video(np.zeros((2, 64, 64, 3), np.uint8), info=info | {"versions": {"numpy": "0.1"}}).save("a.gif")
    shutil.copy(made[1], "wave.png")
    code, out, _ = run(capsys, "generate", "--like", video)
    assert code == 0 and "numpy 0.1" in out


# ---------------------------------------------------------------------------------------------------------------------
#   info
# ---------------------------------------------------------------------------------------------------------------------


def test_info_says_everything(capsys, made):
    code, out, err = run(capsys, "info", made[0])
    assert code == 0 and not err
    info = read_info(made[0])
    parts = [part["fingerprint"] for part in info["model"].values()]
    for word in ("a car", "wave.png", info["references"][0]["sha256"], "num_sampling_steps 2", "tiny/vae", *parts):
        assert word in out
    assert f"generate --like {made[0]}" in out
    code, out, _ = run(capsys, "info", "--json", made[0], made[0])
    assert code == 0 and [json.loads(line) for line in out.splitlines()] == [info, info]


def test_info_of_files_that_say_nothing(capsys):
    for path in ("pictures/wave.png", "missing.mp4", "."):
        code, out, err = run(capsys, "info", path)
        assert code == 2 and not out and path in err


def test_a_prompt_does_not_steer_the_terminal(capsys, made):
    info = read_info(made[0]) | {"prompt": "a\x1b[31m car\x07", "versions": {"\x1b[31m": "\x9b31m"}}
    for words in ([], ["--json"]):
        code, out, _ = run(capsys, "info", Video(np.zeros((1, 8, 8, 3), np.uint8), info=info).save("a.png"), *words)
        assert code == 0 and not {"\x1b", "\x07", "\x9b"} & set(out)
