"""The command line: PaddleMIX's example commands, what is refused, and what is written where."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from opensora_lite import Video, read_video
from opensora_lite.device import import_paddle
from opensora_lite.liteworld import world
from opensora_lite.request import Settings, flags_of, model_defaults
from opensora_lite.tools import cli
from opensora_lite.tools.options import settings_from

STEPS = ["--num-sampling-steps", "2"]
TINY = [*STEPS, "--num-frames", "4"]


@pytest.fixture
def media(tmp_path, monkeypatch):
    """A working folder with a picture, another one, and a clip of 7 frames, as PaddleMIX's example has them."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("wave.png", "sunset1.png", "sunset2.png")):
        Video(world.render(world.sample_scene(np.random.default_rng(i)), 1, 96, 128)).save(tmp_path / name)
    Video(world.render(world.sample_scene(np.random.default_rng(5)), 7, 96, 128), 10).save(tmp_path / "d0_proc.mp4")
    return tmp_path


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_16_frames_of_a_clip_of_7_name_the_strategy_that_fits(media, capsys):
    """The command of PaddleMIX's README as it was at first."""
    prompt = (
        'A cyberpunk-style car at New York city.{"reference_path": "d0_proc.mp4","mask_strategy": "0,0,0,0,16,0.4"}'
    )
    code, _, err = run(capsys, "generate", "--num-frames", 16, "--reference-fps", "native", "--prompt", prompt, *STEPS)
    assert code == 2
    assert "length must be at most 7, not 16" in err
    assert not (media / "samples").exists()


@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "no prompt"),
        (["--prompt", "a", "--prompt-path", "b.txt"], "not both"),
        (["--prompt", "a", "--start-index", "1"], "--prompt-path"),
        (["--prompt-path", "nowhere.txt"], "nowhere.txt"),
        (["--prompt-path", "three.txt", "--start-index", "3"], "--start-index"),
        (["--prompt-path", "three.txt", "--end-index", "-1"], "--end-index"),
        (["--prompt", "a car", "--image-size", "240", "4"], "at least 8"),
        (["--prompt", "a car", "--image-size", "300p"], "240p"),
        (["--prompt", "a car", "--image-size", "64", "64", "64"], "image_size"),
        (["--prompt", "a car", "--num-frames", "x"], "4s"),
        (["--prompt", "a car", "--seed", "1", "2"], "2 seeds for 1 prompts"),
        (["--prompt", "a car", "--loop", "2"], "--condition-frame-length"),
        (["--prompt", "a car", "--cfg-scale", "nan"], "--cfg-scale"),
        (["--prompt", "a car", "--cfg-channel", "5"], "cfg_channel"),
        (["--prompt", "a car", "--reuse", "-1"], "cache_threshold"),
        (["--prompt", "a car", "--guidance-interval", "5", "3"], "guidance_interval"),
        (["--prompt", "A cat [close up]"], "brackets"),
        (["--prompt", "a car", "--mask-strategy", "0"], "reference"),
        (["--prompt", "a car", "--reference-path", "wave.png"], "mask strategy"),
        (["--prompt", "a car", "--reference-path", "nowhere.png", "--mask-strategy", "0"], "nowhere.png"),
        (["--prompt", "a car", "--reference-path", "half.png", "--mask-strategy", "0"], "half.png"),
        (["--prompt", "a car", "--save-dir", "wave.png/x"], "wave.png"),
        (["--prompt", "a car", "--fps", "60", "--save-format", "gif"], "50"),
        (["--prompt", "a car", "--sample-name", "folder"], "folder_0.mp4"),
        (["--prompt", "a car", "--micro-batch-size", "0"], "micro_batch_size"),
        (["--prompt", "a car", "--mask-strategy", "0.5", "--reference-path", "wave.png"], "loop"),
        (["--prompt", "a car", "--sample-name", "a/b"], "--sample-name"),
        (["--prompt", "a", "--sample-name", "b", "--prompt-as-path"], "--sample-name"),
        (["--prompt", "a", "a", "--prompt-as-path"], "one prompt"),
        (["--prompt", "a car", "--save-dir", "wave.png"], "--save-dir"),
        (["--prompt", "a car", "--model", "nowhere"], "nowhere"),
        (["--prompt", "a car", "--model-pretrained-path", "x"], "--model-pretrained-path"),
        (["--prompt", "a car", "--dtype", "fp16", "--device", "cpu"], "fp16"),
        (["--prompt", "a car", "--sampler", "euler"], "sampler"),
        (["--prompt", "a car", "--overwrite", "--skip-existing"], "--skip-existing"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_2(media, capsys, monkeypatch, arguments, word):
    def loading(*_, **__):
        raise AssertionError("a model was loaded")

    import_paddle()  # as the command imports it: Paddle 2.6 prints a warning about OMP_NUM_THREADS to stderr
    monkeypatch.setattr("opensora_lite.stdit2.load_stdit", loading)
    (media / "three.txt").write_text("a\nb\nc")
    (media / "half.png").write_bytes((media / "wave.png").read_bytes()[:500])
    if "folder" in arguments:
        (media / "samples" / "folder_0.mp4").mkdir(parents=True)
    code, out, err = run(capsys, "generate", *arguments)
    assert code == 2
    assert err.startswith("opensora-lite: error: ") and word in err
    assert "Traceback" not in err and "saved" not in out
    assert not list(media.glob("samples/*")) or "folder" in arguments


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_is_an_option(name):
    """Its flags, its type and what it does are read from the field."""
    others = {"image_size": (48, 80), "guidance_interval": (100, 900), "sampler": "ddim", "same_seed": True}
    others |= {"camera_motion": "pan right", "reference_fps": "native"}
    given = others.get(name, 3)
    words = given if isinstance(given, tuple) else () if given is True else (given,)
    for flag in flags_of(name):
        more = ["--loop", "2", "--num-frames", "8"] if name == "condition_frames" else []
        more += ["--condition-frame-length", "2"] if name == "loops" else []
        parsed = cli.parser().parse_args(["generate", *more, flag, *map(str, words)])
        assert getattr(settings_from(parsed, Settings()), name) == given


def test_without_options_the_settings_are_those_of_the_model():
    parsed = cli.parser().parse_args(["generate"])
    assert settings_from(parsed, model_defaults("tiny")[0]) == model_defaults("tiny")[0]
    parsed = cli.parser().parse_args(["generate", "--cfg-channel", "0", "--reuse", "0.1"])
    settings = settings_from(parsed, Settings())
    assert settings.cfg_channel is None and settings.cache_threshold == 0.1


def test_help_says_the_defaults_of_the_small_and_of_the_released_model(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "[64 64 with tiny, 256 256 otherwise]" in said and "--cache-threshold N, --reuse N" in said


def test_errors_of_a_child_process_have_no_traceback_and_load_no_paddle(media):
    program = (
        "import sys; from opensora_lite.tools.cli import main; code = main(sys.argv[1:]);"
        "assert 'paddle' not in sys.modules; sys.exit(code)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, "generate", "--prompt", "a car", "--num-frames", "0"],
        capture_output=True,
        text=True,
    )
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("opensora-lite: error: num_frames") and child.stderr.count("\n") == 1


def test_flags_in_both_spellings(media, capsys):
    code, out, err = run(
        capsys, "generate", "--prompt", "a car", "--num_sampling_steps", 2, "--num-frames", 2, "--frame_interval", 3,
        "--cfg_scale", 2, "--cfg_channel", 3, "--micro_batch_size", 1,
    )  # fmt: skip
    assert code == 0, err
    assert "iddpm, 2 steps, guidance 2" in out
    assert read_video(media / "samples" / "sample_0.mp4").fps == 8


def test_prompt_files_samples_and_names(media, capsys):
    (media / "prompts.txt").write_text("a car\n\na boat\na bird\n")
    code, _, _ = run(
        capsys,
        "generate",
        "--prompt-path",
        "prompts.txt",
        "--start-index",
        1,
        "--num-sample",
        2,
        "--save-dir",
        "out",
        *TINY,
    )
    assert code == 0
    assert sorted(p.name for p in (media / "out").iterdir()) == [f"sample_{i}-{k}.mp4" for i in (0, 1) for k in (0, 1)]


def test_rows_of_a_table_have_their_own_settings(media, capsys):
    (media / "sub").mkdir()
    (media / "wave.png").rename(media / "sub" / "wave.png")
    (media / "sub" / "prompts.csv").write_text(
        "path,text,num-frames,image_size,seed,reference_path,mask_strategy,cfg_scale\n"
        "a.mp4,a red car,3,,7,,,\n"
        "b.mp4,a blue boat,0.25s,48x80,,wave.png,0,1\n"
        "c.mp4,a bird,,,,,,\n"
    )
    code, out, err = run(capsys, "generate", "--prompt-path", "sub/prompts.csv", "--seed", 5, *TINY)
    assert code == 0, err
    assert 'column "path" of the table' in out
    sizes = [read_video(media / "samples" / f"sample_{i}.mp4").frames.shape[:3] for i in range(3)]
    assert sizes == [(3, 64, 64), (6, 48, 80), (4, 64, 64)]
    before, _, _ = out.partition("loaded")
    assert before.count("1 video(s) of") == 3 and "6 frames, 0.25 s at 24 fps, 48×80 pixels" in before
    (media / "sub" / "prompts.csv").write_text("text,num_frames\na car,0\n")
    code, _, err = run(capsys, "generate", "--prompt-path", "sub/prompts.csv")
    assert code == 2 and "'a car'" in err and "num_frames" in err


def test_prompts_as_paths_skip_what_exists(media, capsys):
    arguments = ["generate", "--prompt", "a car", 'a "boat"/ship: left', "--prompt-as-path", "--save-dir", "out", *TINY]
    (media / "out").mkdir()
    (media / "out" / "a car.mp4").write_bytes(b"made before")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "a car.mp4 exists and is skipped" in out
    assert (media / "out" / "a car.mp4").read_bytes() == b"made before"
    assert len(read_video(media / "out" / "a _boat_ship_ left.mp4")) == 4
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "loaded" not in out


def test_loops_are_announced_before_the_run(media, capsys):
    code, out, _ = run(
        capsys,
        "generate",
        "--prompt",
        "|0|a car|1|a boat",
        "--loop",
        2,
        "--condition-frame-length",
        1,
        "--save-format",
        "gif",
        *TINY,
    )
    assert code == 0
    said = "1 video(s) of 7 frames in 2 loops of 4, each taking over 1, 0.292 s at 24 fps, 64×64 pixels"
    assert out.startswith(said)
    assert len(read_video(media / "samples" / "sample_0.gif")) == 7


def test_a_single_frame_becomes_a_picture_and_png_a_sequence(media, capsys):
    assert run(capsys, "generate", "--prompt", "a car", "--num-frames", 1, "--num-sampling-steps", 2)[0] == 0
    assert (media / "samples" / "sample_0.png").is_file()
    assert run(capsys, "generate", "--prompt", "a car", "--save-format", "png", *TINY)[0] == 0
    assert len(list((media / "samples" / "sample_0").glob("*.png"))) == 4


def test_sizes_the_model_was_not_trained_at_and_words_it_does_not_read_are_said(media, capsys):
    long = "a red car driving right on the ocean at sunset " * 4
    code, out, _ = run(
        capsys, "generate", "--prompt", long, "--image-size", 32, 32, "--num-sampling-steps", 2, "--num-frames", 1
    )
    assert code == 0
    assert "trained at 64×64, 48×80, 80×48; at 32×32" in out and "reads 32 tokens" in out


def test_sizes_lengths_and_rates_by_name(media, capsys):
    """What is taken is said before a model is loaded."""
    arguments = ["--num-frames", "1.5s", "--image-size", "16:9", "--fps", "8", "--frame-interval", "3"]
    code, out, err = run(capsys, "generate", "--prompt", "a car", "--num-sampling-steps", 2, *arguments)
    assert code == 0, err
    before, _, _ = out.partition("loaded")
    assert before.startswith("note: image_size 16:9 = 48×85 → 48×80")
    assert "4 frames, 1.5 s at 2.667 fps, 48×80 pixels" in before
    made = read_video(media / "samples" / "sample_0.mp4")
    assert made.frames.shape == (4, 48, 80, 3) and made.fps == pytest.approx(8 / 3)


def test_seeds_on_the_command_line():
    def chosen(*words):
        return settings_from(cli.parser().parse_args(["generate", *words]), Settings())

    assert chosen("--seed", "7").seed == 7
    assert chosen("--seed", "7", "1").seed == (7, 1)
    assert chosen("--same-seed").same_seed and not chosen().same_seed


def test_explain_and_generate_agree_on_loops(capsys):
    code, out, _ = run(capsys, "explain", "0", "--loop", 2, "--condition-frame-length", 4)
    assert code == 0
    assert "frames 0-3: conditioning, frames 12-15 of reference 1 (segment 2, `1,1,-4,0,4`)" in out
    for arguments, message in (
        (["--loop", 2], "--condition-frame-length"),
        (["--condition-frame-length", 4], "--condition-frame-length"),
        (["--loop", 0], "loops"),
    ):
        code, _, err = run(capsys, "explain", "0", *arguments)
        assert code == 2 and message in err


def test_explain(capsys):
    code, out, _ = run(capsys, "explain", "0;0,1,0,-1,1", "--references", 1, 1)
    assert code == 0
    assert "|A..............B| frames 0-15" in out
    code, _, err = run(capsys, "explain", "0;0,1,0,-1,1")
    assert code == 2 and "reference 1 does not exist" in err


def test_without_the_packages_it_names_the_doctor(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    command = [tmp_path / "bare" / "bin" / "python", "-m", "opensora_lite.tools.cli", "generate", "--prompt", "a car"]
    root = str(Path(__file__).parents[2])
    child = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert child.returncode == 2 and "opensora-lite doctor" in child.stderr and "Traceback" not in child.stderr
