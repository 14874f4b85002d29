"""Open-Sora 1.2 through the pipeline: the same calls as for 1.1, with a model of random weights."""

import doctest
import io
import json
import shutil
import warnings

import numpy as np
import paddle
import pytest
from common import relative_error
from memory_models import write_model12
from PIL import Image

from opensora_lite import OpenSora, Trace, Video, estimate_memory, generations, read_video
from opensora_lite.errors import CheckpointError, MaskStrategyError, Note, OpenSoraError, SizeError
from opensora_lite.generations import OPEN_SORA_11, OPEN_SORA_12, generation_of
from opensora_lite.liteworld import evaluate as measure
from opensora_lite.liteworld.describe import Description
from opensora_lite.request import SAMPLER_NAMES, Settings, captions_of, model_defaults, model_spec, plan
from opensora_lite.runtime.memory import stdit_parameters, vae_parameters
from opensora_lite.samplers import FLOW_SAMPLERS, SAMPLERS
from opensora_lite.text import TextEmbeddings
from opensora_lite.tools import cli

RNG = np.random.default_rng(0)
CLIP = Video(RNG.integers(0, 255, (20, 64, 64, 3), np.uint8), 24)
PICTURES = [Video(CLIP.frames[i : i + 1], 24) for i in (0, 1)]
CAR = "a red car"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model12(tmp_path_factory.mktemp("model12"))


@pytest.fixture(scope="module")
def pipe(folder):
    return OpenSora.from_pretrained(folder)


@pytest.fixture(scope="module")
def spec(folder):
    return model_spec(folder)


def settings(folder, **changes):
    return model_defaults(folder)[0].changed(**changes)


# ---------------------------------------------------------------------------------------------------------- generations


def test_examples_in_docstrings():
    assert doctest.testmod(generations).failed == 0


def test_samplers_have_their_names():
    assert OPEN_SORA_11.samplers == tuple(SAMPLERS) and OPEN_SORA_12.samplers == tuple(FLOW_SAMPLERS)
    assert (*SAMPLERS, *FLOW_SAMPLERS) == SAMPLER_NAMES


def test_the_generation_is_read_from_the_configs(golden, folder, spec):
    vae = json.loads((golden / "12" / "vae" / "config.json").read_text())
    assert generation_of({"model_type": "STDiT3"}, vae) == OPEN_SORA_12
    assert spec.generation.base_size == 64 and spec.generation.align == 5
    assert model_spec("tiny").generation == OPEN_SORA_11
    assert model_spec(stdit=folder / "stdit").generation.name == "1.2"
    for mixture in ({"model_type": "STDiT3"}, {}), ({}, vae):
        with pytest.raises(CheckpointError, match="together"):
            generation_of(*mixture)


def test_released_weights_have_the_settings_of_the_release(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "released", ignore=shutil.ignore_patterns("pipeline.json"))
    released = model_defaults(tmp_path / "released")[0]
    assert (released.num_frames, released.sampler, released.cfg_channel) == (51, "rectified-flow", None)
    assert (released.image_size, released.num_sampling_steps, released.guidance_scale) == ((240, 424), 30, 7)


def test_parameters_of_the_released_models_are_counted(golden):
    sizes = json.loads((golden / "12" / "full_size_tensors12.json").read_text())
    counted = {name: sum(int(np.prod(shape)) for shape in tensors.values()) for name, tensors in sizes.items()}
    assert stdit_parameters({"model_type": "STDiT3"}) == counted["OpenSora-STDiT-v3"]
    spatial = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2)
    assert vae_parameters({**spatial, "vae_temporal": {}}) == counted["OpenSora-VAE-v1.2"]


# ------------------------------------------------------------------------------------------------------------- requests


def test_a_plan_counts_latent_frames(folder, spec):
    moved = r"`0,1,0,-1`, begins at latent 10 \(frame 34\) of the video, not at latent 14 \(frames 47-50\)"
    with pytest.warns(Note, match=moved):  # aligned, as released
        (job,) = plan(CAR, [PICTURES], ["0;0,1,0,-1"], settings(folder, num_frames=51), spec)
    assert [i for i, frame in enumerate(job.frames[0]) if frame.reference is not None] == [0, 10]
    (job,) = plan(CAR, [PICTURES], ["0;0,1,0,-1"], settings(folder), spec)
    assert [frame.reference for frame in job.frames[0]] == [0, None, None, None, 1]  # mended: not moved onto the first
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        (job,) = plan(CAR, [[CLIP]], ["0,0,-1,0,1"], settings(folder), spec)
    assert job.frames[0][0].frame == 5  # 20 frames are 6 latent frames; the last chunk has one
    long = settings(folder, num_frames=34, loops=2, condition_frames=17)
    (job,) = plan(CAR, None, None, long, spec)
    assert len(job.frames[1]) == 10 and [frame.frame for frame in job.frames[1]][:6] == [5, 6, 7, 8, 9, None]


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"sampler": "ddim"}, OpenSoraError, "rectified-flow"),
        ({"cfg_channel": 3}, OpenSoraError, "cfg_channel"),
        ({"num_frames": 34, "loops": 2, "condition_frames": 4}, SizeError, "multiple of 17"),
        ({"num_frames": 20, "loops": 2, "condition_frames": 17}, SizeError, "num_frames is 20"),
    ],
)
def test_settings_that_it_does_not_have(folder, spec, changes, error, message):
    with pytest.raises(error, match=message):
        plan(CAR, None, None, settings(folder, **changes), spec)


def test_settings_that_1_1_does_not_have():
    for changes in ({"sampler": "heun"}, {"aes": 6.5}, {"flow": 2}, {"camera_motion": "pan right"}):
        with pytest.raises(OpenSoraError, match=r"1\.2|not for"):
            plan(CAR, None, None, Settings(**changes))


def test_edit_ratios_that_never_join_are_refused(folder, spec):
    """Ratios below the last t; the message names one that joins."""
    given = settings(folder, num_sampling_steps=10)
    with pytest.raises(MaskStrategyError, match="would edit nothing") as caught:
        plan(CAR, [[CLIP]], ["0,0,0,0,5,0.1"], given, spec)
    least = float(str(caught.value).rpartition(" ")[2])
    assert plan(CAR, [[CLIP]], [f"0,0,0,0,5,{least}"], given, spec)
    with pytest.raises(MaskStrategyError, match="would edit nothing"):
        plan(CAR, [[CLIP]], [f"0,0,0,0,5,{least - 0.001:.3f}"], given, spec)


def test_scores_are_part_of_the_captions(folder, spec):
    scored = settings(folder, aes=6.5, flow=12, camera_motion="Pan Right", loops=2, num_frames=34, condition_frames=17)
    (job,) = plan("|0|A car.|1|A boat", None, None, scored, spec)
    suffix = "aesthetic score: 6.5. motion score: 12.0. camera motion: pan right."
    assert job.captions == (f"a car. {suffix}", f"a boat {suffix}")
    assert captions_of(["A car."], settings=scored) == [f"a car. {suffix}"]


def test_text_is_encoded_with_its_scores(folder, pipe, tmp_path, capsys):
    suffix = "motion score: 2.0. camera motion: pan left."
    assert list(pipe.encode_text(CAR, flow=2, camera_motion="pan left").captions) == [f"{CAR} {suffix}"]
    with pytest.raises(TypeError, match="unknown score fps"):
        pipe.encode_text(CAR, fps=8)
    (tmp_path / "prompts.csv").write_text(f"prompt,flow\n{CAR},\na boat,5\n")
    words = ["--prompt-path", str(tmp_path / "prompts.csv"), "--flow", "2", "--camera-motion", "pan left"]
    out = ["--out", str(tmp_path / "text.safetensors")]
    assert cli.main(["encode-text", "--model", str(folder), *words, *out]) == 0
    found = TextEmbeddings.read(tmp_path / "text.safetensors")
    assert list(found.captions) == [f"{CAR} {suffix}", "a boat motion score: 5.0. camera motion: pan left."]
    assert found.max_length == 32  # of the transformer's config
    assert cli.main(["encode-text", *words, *out, "--overwrite"]) == 2  # 1.1 reads no scores
    assert "flow is for Open-Sora 1.2" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("num_frames, T", [(1, 1), (17, 5), (20, 6)])
def test_a_video_has_its_frames(pipe, num_frames, T):
    trace = Trace()
    video = pipe(CAR, num_frames=num_frames, trace=trace)
    assert video.frames.shape == (num_frames, 64, 64, 3) and len(trace) == 4
    step = trace[1]
    assert trace[0].timestep == 1000 and step.x_t.shape == (4, T, 8, 8)
    assert step.epsilon is None and trace.loops[0].predicts == "velocity" and len(trace.loops[0].windows) == T
    np.testing.assert_allclose(step.x_0, step.x_t + step.timestep / 1000 * step.velocity, atol=1e-5)
    pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[cpu,notebook]'")
    from opensora_lite.widgets import LatentPlayer

    player = LatentPlayer(trace, pipe, view="sample", show="pixels", step=3, frame=T - 1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(player.picture))), video.frames[-1])


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_given_frames_are_kept_and_edited_ones_change(pipe, sampler):
    """Chunks of the clip are encoded whole, wherever its latent frames go."""
    trace = Trace()
    pipe(CAR, references=[CLIP, PICTURES[0]], mask_strategy="0,0,0,0,2;0,0,0,2,3,0.8;0,1,0,5", num_frames=20,
         sampler=sampler, trace=trace)  # fmt: skip
    result, encoded = trace[-1].sample, pipe.encode(CLIP.frames)
    still = pipe.encode(PICTURES[0].frames.repeat(3, axis=0))  # the last latent frame holds three
    np.testing.assert_array_equal(result[:, 5:], still)
    np.testing.assert_array_equal(result[:, :2], encoded[:, :2])
    assert relative_error(result[:, 2:5], encoded[:, :3]) > 0.01
    assert trace[0].active.tolist() == [False] * 6 and trace[-1].active.tolist() == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_picture_is_a_still_where_a_latent_frame_holds_several(pipe):
    """Connecting on 17 frames: the first latent frame holds one frame, the last one four."""
    trace = Trace()
    pipe(CAR, references=PICTURES, mask_strategy="0;0,1,0,-1", trace=trace)
    result, still = trace[-1].sample, pipe.encode(PICTURES[1].frames.repeat(17, axis=0))
    np.testing.assert_array_equal(result[:, :1], pipe.encode(PICTURES[0].frames))
    np.testing.assert_array_equal(result[:, 4], still[:, 4])


def test_a_loop_takes_over_whole_chunks(pipe):
    trace = Trace()
    video = pipe(CAR, num_frames=34, loops=2, condition_frames=17, num_sampling_steps=2, trace=trace)
    assert len(video.frames) == 51
    again = pipe.vae.encode(pipe.vae.decode(paddle.to_tensor(trace[1].sample[None]), 34))
    np.testing.assert_allclose(trace[2].x_t[:, :5], again[0, :, 5:], atol=1e-5)


def test_attention_is_recorded(pipe):
    trace = Trace(attention=["spatial_blocks.0.attn", "temporal_blocks.0.attn", "temporal_blocks.0.cross_attn"])
    pipe(CAR, trace=trace)
    shapes = {name: weights.shape for name, weights in trace[0].attention.items()}
    assert shapes["spatial_blocks.0.attn"] == (2, 5, 16, 16) and shapes["temporal_blocks.0.attn"] == (2, 16, 5, 5)
    assert shapes["temporal_blocks.0.cross_attn"][:4] == (2, 5, 4, 4)
    pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[cpu,notebook]'")
    from opensora_lite.widgets import AttentionView

    with pytest.raises(OpenSoraError, match="spatial_blocks"):
        AttentionView(trace, pipe, position=(0, 0, 0)).word_map("red")  # cross-attention is that of spatial blocks
    view = AttentionView(trace, pipe, step=0, position=(4, 1, 2))
    np.testing.assert_array_equal(view.frames_at(4, 1, 2), trace[0].attention["temporal_blocks.0.attn"].mean(0)[6, 4])
    assert view.still()[0].ndim == 3 and view.plan["steps"][0]["timestep"] == 1000
    frames = pipe.decode(trace[0].x_0, 17)[[0, 4, 8, 12, 16]]
    np.testing.assert_array_equal(view._film(0)[0], frames)


def test_compiled_videos_are_equal_up_to_rounding(folder, pipe):
    compiled = OpenSora.from_pretrained(folder).compile("fp32")
    difference = compiled(CAR, num_frames=20).frames.astype(int) - pipe(CAR, num_frames=20).frames
    assert np.abs(difference).max() <= 1 and not compiled.engine.failed


def test_videos_do_not_depend_on_their_batch(pipe):
    together = pipe([CAR, "a boat"], batch_size=2)
    alone = pipe("a boat", seed=43)
    assert np.abs(together[1].frames.astype(int) - alone.frames).max() <= 1


def test_given_frames_are_found_for_evaluation(folder, spec):
    """Latent frames of one, four and three frames; each pair is of frames that the VAE holds in one latent frame."""
    given = settings(folder, num_frames=20)
    (job,) = plan(CAR, [[CLIP, PICTURES[0]]], ["0,0,0,0,2;0,1,0,5"], given, spec)
    pairs = sorted(measure._given_frames(job, 20, [CLIP.frames, PICTURES[0].frames]))
    assert pairs == [*((i, 0, i) for i in range(5)), (19, 1, 0)]


def test_evaluation(pipe, monkeypatch):
    """All that 1.1 has but `prepend`, and the camera, whose prompts are named; what is seen is not looked at here."""
    monkeypatch.setattr(measure, "VAE_CLIPS", 1)
    for name, seen in (("camera_motion", "static"), ("motion_score", 5.2), ("sun_motion", 0.01)):
        monkeypatch.setattr(measure, name, lambda *_, seen=seen: seen)
    monkeypatch.setattr(measure, "describe", lambda frames: Description("ocean", "sunrise"))
    monkeypatch.setattr(measure, "steady_frames", lambda frames, color: None)
    progress = []
    sizes = dict(num_frames=9, image_size=(32, 32))
    report = measure.evaluate(pipe, 3, 1, **sizes, on_progress=lambda *now: progress.append(now))
    assert report.settings["num_sampling_steps"] == 12 and progress[-1][0] == progress[-1][1] == len(progress)
    found = {name: (score.value, score.count) for name, score in report.scores.items()}
    assert found["motion.camera"] == (1 / 3, 3) and found["motion.speed"] == (0.5, 2)
    assert found["motion.sun rises"] == (1, 1) and found["motion.steady"] == (0, 2)
    assert found["extend.kept"][1] == 1 and found["vae.64×64"][1] == 17 and "prepend.kept" not in found


def test_the_command_line(folder, tmp_path):
    """A folder, and its three parts by the flags of the releases, whose defaults are then those of the released 1.2."""
    short = [
        "--prompt",
        CAR,
        "--num-sampling-steps",
        "2",
        "--num-frames",
        "5",
        "--image-size",
        "64",
        "64",
        "--save-dir",
    ]
    assert (
        cli.main(["generate", "--model", str(folder), "--sampler", "heun", "--flow", "2", *short, f"{tmp_path}/a"]) == 0
    )
    flags = {"model": "stdit", "text-encoder": "t5", "vae": "vae"}
    parts = [word for flag, name in flags.items() for word in (f"--{flag}-pretrained-path", str(folder / name))]
    assert cli.main(["generate", *parts, *short, f"{tmp_path}/b"]) == 0
    assert [len(read_video(tmp_path / name / "sample_0.mp4").frames) for name in "ab"] == [5, 5]


def test_memory_is_estimated(folder):
    short, long = (estimate_memory(folder, num_frames=n, image_size=(64, 64)) for n in (17, 51))
    assert long.denoising == 3 * short.denoising and long.decoding > short.decoding
