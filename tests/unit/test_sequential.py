"""T5 and STDiT2 one after the other, and T5's vectors kept in a file: the same videos in less memory."""

import json

import memory_models
import numpy as np
import pytest

from opensora_lite import OpenSora
from opensora_lite.errors import CheckpointError, OpenSoraError, OutOfMemoryError, PromptError
from opensora_lite.io.files import write_safetensors
from opensora_lite.request import captions_of, model_folder
from opensora_lite.runtime.memory import estimate_memory
from opensora_lite.runtime.offload import Offloaded
from opensora_lite.text import TextEmbeddings
from opensora_lite.tools import cli
from opensora_lite.video import read_video

FAST = dict(num_sampling_steps=2, num_frames=4)


@pytest.fixture(scope="module")
def sequential():
    """The small model, one part after the other."""
    return OpenSora.from_pretrained("tiny", sequential=True)


def test_videos_are_equal_bit_for_bit_and_never_are_both_in_memory(pipe, sequential):
    settings = dict(FAST, loops=2, condition_frames=2, batch_size=2, num_sample=2)
    prompts = ["|0|a red car|1|a blue car", "a boat"]
    seen = []
    for _ in range(2):  # the second request finds STDiT2 in memory
        videos = sequential(prompts, **settings, on_step=lambda progress: seen.append(list(sequential.models._loaded)))
        for a, b in zip(videos, pipe(prompts, **settings), strict=True):
            np.testing.assert_array_equal(a.frames, b.frames)
    assert seen and all(names == ["transformer"] for names in seen)
    assert sequential.text.count_tokens("a car") == pipe.text.count_tokens("a car")
    assert list(sequential.models._loaded) == ["text"] and "in memory: text, vae" in repr(sequential)


def test_memory_that_ends_while_a_part_is_loaded_is_our_error(pipe):
    def load():
        raise MemoryError("there is none")

    sequential = OpenSora(Offloaded(load, load, pipe.vae))
    for part in ("stdit", "text"):
        with pytest.raises(OutOfMemoryError, match=r"not enough memory for the weights \(there is none\)"):
            getattr(sequential, part)


def test_what_was_compiled_is_compiled_again(pipe):
    sequential = OpenSora.from_pretrained("tiny", sequential=True).compile("fp32")
    expected = pipe("a red car", **FAST).frames.astype(int)
    engines = []
    for _ in range(2):
        video = sequential("a red car", **FAST)
        engines.append(sequential.models.transformer.engines["fp32"])
        assert np.abs(video.frames.astype(int) - expected).max() <= 2
        assert sequential.text.count_tokens("a car") == 3  # frees STDiT2, and with it the engine
    assert engines[0] is not engines[1] and not any(engine.failed for engine in engines)


def test_parts_that_do_not_belong_together_are_refused_before_they_are_loaded(golden):
    with pytest.raises(CheckpointError, match="do not belong together"):
        OpenSora.from_pretrained("tiny", t5=golden / "t5", sequential=True)


def test_recorded_captions_give_the_same_videos(pipe, tmp_path):
    prompts = ["|0|A red car|1|a blue car", "a boat"]
    embeddings = pipe.encode_text(prompts, loops=2)
    assert list(embeddings.captions) == captions_of(prompts, 2) == ["a red car", "a blue car", "a boat"]
    embeddings.save(tmp_path / "embeddings.safetensors")
    tiny = model_folder("tiny")
    without_t5 = OpenSora.from_pretrained(
        stdit=tiny / "stdit", vae=tiny / "vae", text_embeddings=tmp_path / "embeddings.safetensors"
    )
    settings = dict(FAST, loops=2, condition_frames=2, batch_size=2, image_size=(64, 64))
    settings |= dict(fps=24, frame_interval=1, guidance_scale=4.0, cfg_channel=None)
    for a, b in zip(without_t5(prompts, **settings), pipe(prompts, **settings), strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert without_t5.text.pieces("a boat") == pipe.text.pieces("a boat")
    assert without_t5.text.count_tokens("a boat") == pipe.text.count_tokens("a boat")
    assert repr(embeddings) == "TextEmbeddings(3 captions, 96 channels)"
    with pytest.raises(PromptError, match=r'the caption "a bot" \(the nearest of its 3 captions is "a boat"'):
        without_t5("a bot", **FAST)
    assert list(without_t5.encode_text("a boat").captions) == ["a boat"]


def test_a_caption_is_read_alike_in_every_company(pipe):
    both, _ = pipe.text.encode(["a red car", "a much longer caption of a boat on the ocean at noon"])
    alone, _ = pipe.text.encode(["a red car"])
    np.testing.assert_array_equal(both[:1].numpy(), alone.numpy())


def test_a_long_caption_is_recorded_as_far_as_it_is_read(pipe):
    caption = "a red car " * 30
    embeddings = pipe.text.embed([caption.strip()])
    assert embeddings.captions[caption.strip()].vectors.shape == (pipe.text.max_length, 96)
    assert embeddings.count_tokens(caption.strip()) == pipe.text.count_tokens(caption.strip()) > pipe.text.max_length


def test_what_cannot_be_asked_for(pipe, tmp_path):
    embeddings = pipe.encode_text("a boat")
    with pytest.raises(OpenSoraError, match="with text_embeddings no T5 is loaded"):
        OpenSora.from_pretrained("tiny", text_embeddings=embeddings, sequential=True)
    with pytest.raises(CheckpointError, match="do not belong together"):
        OpenSora.from_pretrained("tiny", text_embeddings=TextEmbeddings(embeddings.captions, 200))
    with pytest.raises(PromptError, match="no prompt was given"):
        pipe.encode_text([])
    with pytest.raises(CheckpointError, match="three parts"):
        OpenSora.from_pretrained(stdit=model_folder("tiny") / "stdit", text_embeddings=embeddings)


def about(captions, max_length=32) -> np.ndarray:
    """What a file says of its captions."""
    return np.frombuffer(json.dumps({"max_length": max_length, "captions": captions}).encode(), np.uint8)


ONE = [["a boat", ["▁a", "</s>"], 2]]
VECTORS = np.zeros([2, 96], np.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": VECTORS},
        {"captions": about([])},
        {"captions": about(ONE)},
        {"captions": about(ONE), "vectors.0": VECTORS[:1]},
        {"captions": about(ONE), "vectors.0": VECTORS.astype(np.float16)},
        {"captions": about(ONE), "vectors.0": VECTORS * np.nan},
        {"captions": about(ONE, 1), "vectors.0": VECTORS},
        {"captions": about(ONE, "32"), "vectors.0": VECTORS},
        {"captions": about([[1, ["a", "b"], 2]]), "vectors.0": VECTORS},
        {"captions": about([["a boat", [1, 2], 2]]), "vectors.0": VECTORS},
        {"captions": about(["a boat"]), "vectors.0": VECTORS},
        {"captions": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"captions": about([*ONE, ["a", ["a"], 1]]), "vectors.0": VECTORS, "vectors.1": np.zeros([1, 4], np.float32)},
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, tensors):
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"x\.safetensors does not hold text embeddings"):
        TextEmbeddings.read(tmp_path / "x.safetensors")


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "encode-text", "--prompt", "a red car", "a boat", "--out", "embeddings.safetensors")
    assert code == 0, err
    assert f"saved {tmp_path / 'embeddings.safetensors'}: TextEmbeddings(2 captions, 96 channels)" in out
    command = ["generate", "--prompt", "a boat", "--num-sampling-steps", "2", "--num-frames", "2"]
    ways = {"plain": [], "embeddings": ["--text-embeddings", "embeddings.safetensors"], "one_by_one": ["--sequential"]}
    for name, flags in ways.items():
        code, _, err = run(capsys, *command, *flags, "--sample-name", name)
        assert code == 0, err
    plain, embedded, one_by_one = (tmp_path / "samples" / f"{name}_0.mp4" for name in ways)
    assert plain.read_bytes() == one_by_one.read_bytes()
    assert np.array_equal(read_video(plain).frames, read_video(embedded).frames)
    assert set(read_video(embedded).info["model"]) == {"stdit", "vae", "text_embeddings"}
    # what is wrong is said before a model is loaded
    monkeypatch.setattr(OpenSora, "from_pretrained", lambda *a, **k: pytest.fail("it was loaded"))
    monkeypatch.setattr("opensora_lite.text.load_text_encoder", lambda *a, **k: pytest.fail("T5 was loaded"))
    refused = {
        "do not hold the caption": [*command[:2], "a cat", "--text-embeddings", "embeddings.safetensors"],
        "leave out its path and --sequential": [
            *command,
            "--text-embeddings",
            "embeddings.safetensors",
            "--sequential",
        ],
        "would be overwritten": ["encode-text", "--prompt", "a boat", "--out", "embeddings.safetensors"],
        "must be a file NAME.safetensors": ["encode-text", "--prompt", "a boat", "--out", "embeddings.npz"],
        "not both": [
            "encode-text",
            "--prompt",
            "a",
            "--model",
            "tiny",
            "--text-encoder-pretrained-path",
            "t5",
            "--out",
            "a",
        ],
    }
    for message, words in refused.items():
        code, _, err = run(capsys, *words)
        assert code == 2 and message in err


def test_peaks_of_processes_fall(tmp_path):
    stdit = dict(hidden_size=432, depth=8, num_heads=6, input_sq_size=64)
    t5 = dict(d_model=512, d_kv=64, d_ff=1024, num_layers=12, num_heads=8)
    folder = memory_models.write_model(tmp_path / "model", stdit, t5, {})
    OpenSora.from_pretrained(folder).encode_text(memory_models.PROMPT).save(tmp_path / "embeddings.safetensors")
    settings = dict(num_frames=4, image_size=(64, 64), num_sampling_steps=2)
    ways = {
        "plain": ({}, {}),
        "sequential": (dict(sequential=True), dict(sequential=True)),
        "embeddings": (dict(text_embeddings=str(tmp_path / "embeddings.safetensors")), dict(text_encoder=False)),
    }
    took = {name: memory_models.measured(folder, **settings, **loading) for name, (loading, _) in ways.items()}
    estimated = {name: estimate_memory(folder, 4, (64, 64), **planning) for name, (_, planning) in ways.items()}
    for name in ways:
        print(
            f"\n{name}: {estimated[name].peak / 1e6:.0f} MB estimated, {took[name]['peak'] / 1e6:.0f} MB taken", end=""
        )
    assert len({each["digest"] for each in took.values()}) == 1
    weights = estimated["plain"].weights
    assert took["plain"]["peak"] - took["sequential"]["peak"] > 0.8 * min(weights["t5"], weights["stdit"])
    assert took["plain"]["peak"] - took["embeddings"]["peak"] > 0.8 * weights["t5"]
    for name in ways:
        assert took[name]["peak"] <= estimated[name].peak
