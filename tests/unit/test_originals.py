"""The commands of the original programs run unchanged behind `opensora-lite generate`, but for the paths of weights.

original_commands.sh has those of PaddleMIX's README and of hpcaitech's Open-Sora 1.1 and 1.2, word for word.
"""

import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from memory_models import write_model12

from opensora_lite import Video, read_video
from opensora_lite.errors import CheckpointError, Note, OpenSoraError
from opensora_lite.generations import OPEN_SORA_12
from opensora_lite.liteworld import world
from opensora_lite.request import ModelSpec, Settings, model_folder
from opensora_lite.tools import cli, generate
from opensora_lite.tools.options import settings_from
from opensora_lite.tools.originals import read_config


def read_commands():
    """{name: the words behind the script} of original_commands.sh."""
    blocks = Path(__file__).with_name("original_commands.sh").read_text(encoding="utf-8").split("\n\n")
    named = [block.split("\n", 1) for block in blocks if "\npython scripts/" in block]
    return {name.removeprefix("# "): shlex.split(command.replace("\\\n", " "))[2:] for name, command in named}


ALL = read_commands()
COMMANDS = {name: words for name, words in ALL.items() if not name.startswith("1.2")}
COMMANDS_12 = {name: words for name, words in ALL.items() if name.startswith("1.2")}
CONFIG = """num_frames = 16
frame_interval = 3
fps = 24
image_size = (240, 426)
multi_resolution = "STDiT2"

# Define model
model = dict(
    type="STDiT2-XL/2",
    from_pretrained=None,
    input_sq_size=512,
    enable_flashattn=True,
)
scheduler = dict(
    type="iddpm",
    num_sampling_steps=100,
    cfg_scale=7.0,
    cfg_channel=3,  # or None
)
dtype = "bf16"
prompt_path = "./assets/texts/t2v_samples.txt"
prompt = None  # prompt has higher priority than prompt_path
batch_size = 1
seed = 42
save_dir = "./samples/samples/"
"""
SIZES = {(256, 256): (256, 256), (224, 300): (224, 296), (240, 240): (240, 240), (480, 854): (480, 848)}
SIZES |= {(1024, 1024): (1024, 1024), (240, 426): (240, 424), (480, 853): (480, 848)}


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """What the commands read, under its names: pictures, clips (those with an address were downloaded) and prompts."""
    folder = tmp_path_factory.mktemp("originals")

    def save(name, seed, frames):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scene = world.sample_scene(np.random.default_rng(seed))
        Video(world.render(scene, frames, 48, 64), 8).save(folder / name)

    for i, name in enumerate(("wave", "sunset1", "sunset2")):
        save(f"assets/images/condition/{name}.png", i, 1)
    save("assets/videos/d0_proc.mp4", 3, 7)
    save("d0.mp4", 4, 16)
    save("91744-636709154_large.mp4", 5, 32)
    (folder / "assets/texts").mkdir()
    (folder / "assets/texts/t2i_samples.txt").write_text("a red car\na blue boat\n")
    (folder / "assets/texts/t2v_samples.txt").write_text("a red car\n")
    return folder


@pytest.fixture(scope="session")
def model12(tmp_path_factory):
    return write_model12(tmp_path_factory.mktemp("model12"))


@pytest.fixture
def planned(assets, monkeypatch):
    """planned(*words) -> the jobs and notes of a command, without making a video."""
    monkeypatch.chdir(assets)

    def run(*words):
        made = []
        monkeypatch.setattr(generate, "make_videos", lambda a, groups, *_: made.extend(groups))
        words = ["tiny" if word == "CKPT_PATH" else cli.with_hyphens(word) for word in words]
        arguments = cli.parser().parse_args(["generate", *words, "--overwrite"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Note)
            arguments.run(arguments)
        return [job for _, group in made for job, _ in group], [str(w.message) for w in caught]

    return run


def number(words, flag, default=1):
    return int(words[words.index(flag) + 1]) if flag in words else default


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_planned_as_it_stands(planned, name):
    words = COMMANDS[name]
    jobs, notes = planned(*words)
    settings = jobs[0].settings
    asked = tuple(map(int, words[words.index("--image-size") + 1 :][:2]))
    assert settings.image_size == SIZES[asked]
    assert settings.num_frames == number(words, "--num-frames")
    assert settings.loops == number(words, "--loop")
    assert sum(f"{asked[0]}×{asked[1]} →" in note for note in notes) == (SIZES[asked] != asked)
    assert len(jobs) == (2 if "--prompt-path" in words else 1)
    text, brace, suffix = words[words.index("--prompt") + 1].partition("{") if "--prompt" in words else ("", "", "")
    if brace:
        assert jobs[0].prompt == text
        assert len(jobs[0].references) == suffix.count("assets/") + suffix.count("https:")
        assert any(frame.reference is not None for frame in jobs[0].frames[0])


@pytest.mark.parametrize("name", COMMANDS_12)
def test_every_command_of_1_2_is_planned_as_it_stands(planned, model12, name):
    """They name no prompt where that of a config file, or of a language model, would be taken."""
    words = [*COMMANDS_12[name], "--model-pretrained-path", str(model12)]
    if "--prompt" not in words:
        with pytest.raises(OpenSoraError, match="--prompt"):
            planned(*words)
        words += ["--prompt", "a beautiful waterfall"]
    (job,), notes = planned(*words)
    s = job.settings
    assert s.image_size == ((720, 1280) if "720p" in words else (480, 848))
    assert s.num_frames == (102 if "4s" in words else 17)
    assert job.captions[0].endswith("aesthetic score: 6.5. motion score: 5.0.") == ("--aes" in words)
    assert sum("kernels" in note for note in notes) == 2 * ("--flash-attn" in words)
    assert any("--llm-refine" in note for note in notes) == ("--llm-refine" in words)


@pytest.mark.parametrize("name", ["text", "image-cond", "connect", "video_extend", "edit"])
def test_the_five_tasks_of_paddlemix_make_videos(assets, monkeypatch, tmp_path, capsys, name):
    """Smaller: the later of two flags counts."""
    monkeypatch.chdir(assets)
    words = [*COMMANDS[f"paddlemix: {name}"]]
    words += ["--num-sampling-steps", "3", "--image-size", "48", "50", "--save-dir", str(tmp_path)]
    assert cli.main(["generate", *words]) == 0, capsys.readouterr().err
    made = read_video(tmp_path / ("sample_0.mp4" if name == "text" else f"{name}_0.mp4"))
    assert made.frames.shape == (number(words, "--num-frames"), 48, 48, 3)
    assert "48×50 → 48×48" in capsys.readouterr().out


def test_an_address_that_was_not_downloaded_names_the_command_that_does(planned):
    with pytest.raises(OpenSoraError, match=r"curl -LO https://cdn\.openai\.com/tmp/s/interp/d1\.mp4"):
        planned(*(word.replace("d0.mp4", "d1.mp4") for word in COMMANDS["hpcaitech: extend"]))


def test_flags_that_the_weights_decide(planned):
    """Taken where they agree with the weights, explained where they don't."""
    command = ("--prompt", "a car")
    assert planned(*command, "--multi_resolution", "STDiT2", "--model_max_length", "32")[1] == []
    _, notes = planned(*command, "--multi_resolution", "PixArtMS", "--model_max_length", "200", "--flash-attn", "True")
    assert len(notes) == 3
    assert "PixArtMS" in notes[0] and "32 tokens" in notes[1] and "kernels" in notes[2]


def test_t5_and_vae_of_hugging_faces_cache_stand_beside_a_checkpoint(planned, tmp_path, monkeypatch):
    tiny = model_folder("tiny")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    words = ["--prompt", "a car", "--ckpt-path", str(tiny / "stdit")]
    with pytest.raises(CheckpointError, match="--vae-pretrained-path"):
        planned(*words)
    for repository, part in (("DeepFloyd--t5-v1_1-xxl", "t5"), ("stabilityai--sd-vae-ft-ema", "vae")):
        (tmp_path / "hub" / f"models--{repository}" / "snapshots").mkdir(parents=True)
        (tmp_path / "hub" / f"models--{repository}" / "snapshots" / "0").symlink_to(tiny / part)
    (job,), notes = planned(*words)
    assert job.settings == Settings()  # those of the released weights
    assert ["DeepFloyd" in notes[0], "stabilityai" in notes[1]] == [True, True]


def test_a_config_file_is_read_and_not_executed(planned, tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(CONFIG)
    (job,), notes = planned(str(path))
    assert job.prompt == "a red car"
    released = dict(num_frames=16, frame_interval=3, num_sampling_steps=100, guidance_scale=7.0, cfg_channel=3, seed=42)
    assert job.settings == Settings(**released, image_size=(240, 424))
    assert "240×426 → 240×424" in notes[0]
    (job,), _ = planned(str(path), "--prompt", "a boat", "--cfg-scale", "2", "--image-size", "64", "64")
    assert (job.prompt, job.settings.guidance_scale, job.settings.image_size) == ("a boat", 2, (64, 64))
    path.write_text(CONFIG.replace("cfg_channel=3", "cfg_channel=None").replace("prompt = None", 'prompt = ["a boat"]'))
    (job,), _ = planned(str(path))
    assert job.settings.cfg_channel is None and job.prompt == "a boat"


@pytest.mark.parametrize(
    "text, word",
    [
        ("import os", "line 1"),
        ("seed = 1\nfps = os.system('touch x')", "line 2"),
        ("seed = = 1", "can't be read"),
        ("a = " + "(" * 5000, "can't be read"),
        ("fps = dict(**seed)", "line 1"),
    ],
)
def test_config_files_that_are_programs_are_refused(tmp_path, text, word):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(OpenSoraError, match=word):
        read_config(tmp_path / "config.py")


def test_ratios_and_lengths_of_open_sora_12_are_read_as_it_does(planned, monkeypatch):
    """`--num-frames 4s --resolution 720p --aspect-ratio 9:16` of its README makes 102 frames of 720×1280."""
    words = ["--num-frames", "4s", "--resolution", "720p", "--aspect-ratio", "9:16"]
    arguments = cli.parser().parse_args(["generate", *words])
    monkeypatch.setattr(generate, "model_spec", lambda *_, **__: ModelSpec(generation=OPEN_SORA_12))
    generate.complete(arguments)
    settings = settings_from(arguments, Settings())
    assert (settings.num_frames, settings.image_size) == (102, (720, 1280))
    monkeypatch.undo()
    arguments = cli.parser().parse_args(["generate", *words])
    generate.complete(arguments)
    assert settings_from(arguments, Settings()).image_size == (1280, 720)  # width to height


def test_sizes_by_resolution_and_ratio(planned):
    (job,), notes = planned("--prompt", "a car", "--resolution", "240p", "--aspect-ratio", "16:9")
    assert job.settings.image_size == (240, 424)
    assert "240p 16:9 = 240×426 → 240×424" in notes[0]
    (job,), _ = planned("--prompt", "a car", "--aspect-ratio", "9:16")
    assert job.settings.image_size == (80, 48)
    with pytest.raises(OpenSoraError, match="twice"):
        planned("--prompt", "a car", "--resolution", "240p", "--image-size", "64", "64")
