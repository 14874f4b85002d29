"""The pipeline: what is refused before a model runs, the five tasks, loops, batches and seeds."""

import json
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from common import psnr

from opensora_lite import MaskStrategy, OpenSora, Settings, Video
from opensora_lite.errors import (
    CheckpointError,
    DeviceError,
    MaskStrategyError,
    Note,
    OpenSoraError,
    PromptError,
    SizeError,
)
from opensora_lite.liteworld import world
from opensora_lite.prompts import PromptRow
from opensora_lite.request import (
    check_size,
    model_defaults,
    model_folder,
    model_spec,
    plan,
    row_settings,
)
from opensora_lite.sizes import PIXELS, size_by_name

FAST = dict(num_sampling_steps=4, num_frames=4)


def clip(num_frames=16, place="ocean", time="sunset", subject="car", seed=0, direction="right"):
    rng = np.random.default_rng(seed)
    scene = world.sample_layout(world.Scene(place, time, subject, "red", direction), rng)
    return world.render(scene, num_frames)


# -------------------------------------------------------------------------------------------- what is refused, and how


@pytest.mark.parametrize(
    "size, word",
    [
        ((4, 64), "at least 8"),
        ((0, 64), "at least 8"),
        ((-8, 64), "at least 8"),
        ((64,), "image_size"),
        (None, "image_size"),
        ("big", "240p"),
        ("240p 16:9 4:3", "480x832"),
        ("240p 100:1", "longer side"),
        ("4x64", "at least 8"),
        ((64.9, 64), "whole number"),
        ((8, 10**9), "megapixels"),
    ],
)
def test_sizes_that_the_model_cannot_make_are_refused(size, word):
    with pytest.raises(SizeError, match=word):
        check_size(size)
    with pytest.raises(SizeError, match=word):
        Settings(image_size=size)


@pytest.mark.parametrize("size", [(280, 280), (224, 400), (400, 224), (256, 256), (240, 240), (8, 8), 64])
def test_sizes_that_8_divides_are_taken(size):
    assert check_size(size) == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize(
    "size, taken, said",
    [
        ((224, 300), (224, 296), "224×300 → 224×296"),  # PaddleMIX's README, 4.2
        ("240p", (240, 424), "240p = 240×426 → 240×424"),
        ("240p 16:9", (240, 424), "240p 16:9 = 240×426 → 240×424"),
        ("9:16 480P", (848, 480), "= 854×480 → 848×480"),
        ("480x832", (480, 832), None),  # height first, as in (480, 832)
        ("480 × 832", (480, 832), None),
        ("512", (512, 512), None),
        ("16:9", (192, 336), "192×341"),  # as many pixels as 256×256
        ("1:1", (256, 256), None),
        ("240p 5:4", (280, 352), "285×357"),  # not in the table: as many pixels
    ],
)
def test_sizes_by_name_are_taken_and_rounded_down_with_a_note(size, taken, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Settings(image_size=size).image_size == taken
    assert [w.category for w in caught] == [Note] * (said is not None)
    assert all(said in str(w.message) and w.filename == __file__ for w in caught)


def test_a_ratio_keeps_the_pixels_of_the_settings():
    with pytest.warns(Note, match="48×85 → 48×80"):
        assert model_defaults("tiny")[0].changed(image_size="16:9").image_size == (48, 80)


def test_sizes_and_lengths_by_name_equal_the_release():
    """Those of Open-Sora 1.2, whose buckets are those of 1.1; a ratio is height to width there."""
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "12" / "sizes12.json").read_text(encoding="utf-8"))
    sizes = recorded["image_size"]
    compared = [(name, ratio) for name in sizes if name in PIXELS for ratio in sizes[name] if sizes[name][ratio]]
    assert len(compared) >= 8 * 17
    for name, ratio in compared:
        assert size_by_name(name, Fraction(ratio.replace(":", "/"))) == tuple(sizes[name][ratio])
        assert PIXELS[name] == recorded["num_pixels"][name]


@pytest.mark.parametrize(
    "settings, frames, fps",
    [
        (dict(num_frames="4s"), 32, 8),  # "4s 480×854" of the release has 32 frames
        (dict(num_frames="2s"), 16, 8),
        (dict(num_frames="1.5 S", frame_interval=1), 36, 24),
        (dict(num_frames="0.001s"), 1, 8),
        (dict(num_frames="20"), 20, 8),
        (dict(fps=8), 16, 8 / 3),  # the release plays it at 2 fps, a quarter slower
        (dict(fps="29.97", frame_interval=1, num_frames="1s"), 30, 29.97),
        (dict(fps="30000/1001", frame_interval=1), 16, 30000 / 1001),
        (dict(fps=Fraction(24000, 1001), frame_interval=2), 16, 12000 / 1001),
    ],
)
def test_lengths_in_seconds_and_rates_that_are_fractions(settings, frames, fps):
    made = Settings(**settings)
    assert made.num_frames == frames
    assert made.video_fps == pytest.approx(fps, rel=1e-12)
    assert made.seconds == pytest.approx(frames / fps)
    assert replace(made, seed=1).num_frames == frames


@pytest.mark.parametrize(
    "settings, word",
    [
        (dict(num_frames=0), "num_frames"),
        (dict(num_frames="4 s 2"), "seconds"),
        (dict(num_frames="0s"), "seconds"),
        (dict(num_frames="99999s"), "at most"),
        (dict(fps="fast"), "29.97"),
        (dict(fps="1/0"), "29.97"),
        (dict(fps=float("inf")), "fps"),
        (dict(fps=1, frame_interval=1000), "frames per second"),
        (dict(seed=[]), "seed"),
        (dict(seed=[1, -2]), "seed"),
        (dict(seed=[1, 2], same_seed=True), "same_seed"),
        (dict(num_frames=1.5), "whole number"),
        (dict(num_sampling_steps=1), "at least 2"),
        (dict(num_sampling_steps=1001), "at most 1000"),
        (dict(seed=-1), "seed"),
        (dict(sampler="euler"), "dpm-solver"),
        (dict(guidance_scale=float("nan")), "guidance_scale"),
        (dict(cfg_channel=5), "cfg_channel"),
        (dict(cfg_channel=True), "cfg_channel"),
        (dict(cache_threshold=-0.1), "cache_threshold"),
        (dict(cache_threshold=True), "cache_threshold"),
        (dict(guidance_interval=3), "guidance_interval"),
        (dict(guidance_interval=(0.5, 3)), "guidance_interval"),
        (dict(guidance_interval=(5, 4)), "smaller timestep first"),
        (dict(guidance_interval=(0, 1000)), "at most 999"),
        (dict(loops=3), "condition_frames=4"),
        (dict(loops=2, condition_frames=16), "give 1 to 15"),
        (dict(loops=2, condition_frames=0), "condition_frames"),
        (dict(loops=1, condition_frames=4), "one loop"),
        (dict(loops=3, num_frames=1, condition_frames=1), "at least 2 frames"),
    ],
)
def test_settings_that_no_run_can_use_are_refused(settings, word):
    with pytest.raises(OpenSoraError, match=word):
        Settings(**settings)


def test_numbers_of_numpy_are_numbers():
    settings = Settings(cfg_channel=np.int64(3), num_frames=np.int32(4), guidance_scale=np.float32(2.5))
    assert settings == Settings(cfg_channel=3, num_frames=4, guidance_scale=2.5)


def test_a_request_is_checked_without_a_model():
    picture, video = clip(1)[0], Video(clip(7), 8)
    for prompts, references, strategies, kind, message in [
        ([], None, None, PromptError, "no prompt was given"),
        ([7], None, None, PromptError, r"prompts\[0\] must be text, not 7"),
        (
            ["a car", "a boat"],
            [picture],
            ["0"],
            OpenSoraError,
            "1 references for 2 prompts",
        ),
        (["a car"], None, ["0", "0"], OpenSoraError, "2 strategies for 1 prompts"),
        (
            ["a car"],
            [[picture]],
            None,
            MaskStrategyError,
            'no mask strategy says where they go; "0" puts the first one',
        ),
        (["a car", "a boat"], video, ["0", "0"], OpenSoraError, "one entry for each prompt"),
        (["a car", "a boat"], Path("a.png"), ["0", "0"], OpenSoraError, "one entry for each prompt"),
        (["a car", "a boat"], clip(2), ["0", "0"], OpenSoraError, "one entry for each prompt"),
        (["a car"], None, ["0"], MaskStrategyError, "no references were given"),
        (["a car"], ["a.png;;b.png"], ["0"], OpenSoraError, "a reference path is empty"),
        (["a car"], ["nowhere.png"], ["0"], OpenSoraError, "nowhere.png"),
        (["a car"], [[picture, picture]], ["0"], MaskStrategyError, 'no segment of "0" uses reference 1'),
        (["a car"], [[video]], ["0,0,0,0,16,0.4"], MaskStrategyError, "length must be at most 7"),
        (["一只猫"], None, None, PromptError, "English"),
    ]:
        with pytest.raises(kind, match=message):
            plan(prompts, references, strategies)


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("a red car driving right on the ocean at sunset", []),
        ("A beautiful, cyberpunk-style CITY.", []),  # the tokenizer has no full stop; that is no loss
        ("红色 car on the 海洋 at sunset", ['cleaning removes "红色", "海洋"']),
        ("красная car", ['tokenizer does not know "красная"']),
        ("a car 🚗", ['tokenizer does not know "🚗"']),
        ("a dragon over the castle", ['without "dragon", "castle"']),
        ("a red car, " + "very " * 300, ["reads 32 tokens", 'without "very"']),
    ],
)
def test_what_is_lost_of_a_prompt_is_one_note_in_python(pipe, prompt, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe(prompt, num_frames=1, num_sampling_steps=2)
    notes = [str(w.message) for w in caught if w.category is Note]
    assert len(notes) == bool(said)
    assert all(text in notes[0] for text in said)
    assert all(w.filename == __file__ for w in caught if w.category is Note)


def test_a_caption_of_which_nothing_is_left_is_an_error(pipe):
    for prompt in ("красная машина", "|0|a car|1|🚗"):
        with pytest.raises(PromptError, match="English"):
            pipe(prompt, loops=2, condition_frames=1, **FAST)
    with pytest.raises(PromptError, match="English"):
        pipe.encode_text("красная")


def test_what_a_plan_knows_of_the_models():
    tiny = model_folder("tiny")
    assert model_spec("tiny").known_words == set(world.vocabulary())
    by_name = model_spec(stdit=tiny / "stdit" / "model.safetensors", t5=tiny / "t5" / "model.safetensors")
    assert by_name.known_words == set() and by_name.reader.max_length == 32  # weights by name may be of any model
    assert model_spec(stdit=tiny / "stdit").reader is None  # with text embeddings
    assert plan("a dragon 红")[0].captions == ("a dragon",)  # without a model


def test_notes_with_text_embeddings(pipe):
    with pytest.warns(Note, match="reads 32 tokens"):
        embeddings = pipe.encode_text("a red car, " + "very " * 30)
    other = OpenSora.from_pretrained("tiny", text_embeddings=embeddings)
    with pytest.warns(Note, match="reads 32 tokens"):
        other("a red car, " + "very " * 30, num_frames=1, num_sampling_steps=2)
    with pytest.raises(PromptError, match="do not hold"):
        other("a boat", num_frames=1, num_sampling_steps=2)


def test_one_prompt_is_not_its_letters():
    assert [job.prompt for job in plan("car")] == ["car"]


def test_a_plan_lists_every_video_with_its_seed():
    picture = clip(1)[0]
    settings = Settings(num_sample=2, seed=5, loops=3, condition_frames=4)
    jobs = plan(["|0|a car|2|a boat", "a bird"], [[picture], None], ["0", None], settings)
    assert [(job.prompt, job.seed, job.sample) for job in jobs] == [
        ("|0|a car|2|a boat", 5, 0),
        ("|0|a car|2|a boat", 6, 1),
        ("a bird", 7, 0),
        ("a bird", 8, 1),
    ]
    assert jobs[0].captions == ("a car", "a car", "a boat")
    # what the original appends: loop, index of the clip before, its last 4 frames, to the front
    assert str(jobs[0].strategy) == "0;1,1,-4,0,4;2,2,-4,0,4"
    assert str(jobs[2].strategy) == "1,0,-4,0,4;2,1,-4,0,4"


def test_the_json_suffix_comes_before_the_arguments(tmp_path):
    Video(clip(1)).save(tmp_path / "a.png")
    Video(clip(4), 8).save(tmp_path / "b.mp4")  # the rate of the video
    prompt = f'a car{{"reference_path": "{tmp_path}/a.png;{tmp_path}/b.mp4", "mask_strategy": "0;0,1,0,-2,2"}}'
    (job,) = plan([prompt], [None], ["0,0,0,3"])
    assert [(r.name, r.num_frames) for r in job.references] == [(f"{tmp_path}/a.png", 1), (f"{tmp_path}/b.mp4", 4)]
    assert str(job.strategy) == "0;0,1,0,-2,2"
    assert job.prompt == "a car"


def test_a_reference_is_opened_once(tmp_path, monkeypatch):
    from opensora_lite import request

    Video(clip(4), 8).save(tmp_path / "a.mp4")
    opened, original = [], request.open_reference

    def open_reference(source, fps):
        opened.append(source)
        return original(source, fps)

    monkeypatch.setattr(request, "open_reference", open_reference)
    jobs = plan(["a car", "a boat"], [tmp_path / "a.mp4", str(tmp_path / "a.mp4")], ["0", "0,0,1,0,2"], Settings())
    assert len(opened) == 1 and jobs[0].references[0] is jobs[1].references[0]
    assert [frame.frame for frame in jobs[1].frames[0][:3]] == [1, 2, None]


def test_models_that_cannot_be_loaded_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r'model "big" is neither "tiny" nor a folder .* nothing is downloaded'):
        OpenSora.from_pretrained("big")
    with pytest.raises(CheckpointError, match="t5 and vae must be given too"):
        OpenSora.from_pretrained(stdit="a")
    (tmp_path / "pipeline.json").write_text('{"frames": 3}')
    with pytest.raises(CheckpointError, match="frames is unknown"):
        model_defaults(tmp_path)
    (tmp_path / "pipeline.json").write_text('{"known_words": "car"}')
    with pytest.raises(CheckpointError, match="known_words must be a list"):
        model_defaults(tmp_path)
    with pytest.raises(DeviceError, match=r'device "tpu" is unknown'):
        OpenSora.from_pretrained(device="tpu")
    with pytest.raises(CheckpointError, match=r'model "tiny" and all of its parts were given; give one or the other'):
        OpenSora.from_pretrained("tiny", stdit="a", t5="b", vae="c")
    with pytest.raises(OpenSoraError, match="micro_batch_size must be at least 1"):
        OpenSora.from_pretrained(micro_batch_size=0)


def test_a_part_that_is_missing_is_found_before_another_is_loaded(monkeypatch):
    monkeypatch.setattr("opensora_lite.stdit2.load_stdit", lambda *_: pytest.fail("a part was loaded"))
    tiny = model_folder("tiny")
    with pytest.raises(CheckpointError, match=r"no model at nowhere: the path does not exist"):
        OpenSora.from_pretrained(stdit=tiny / "stdit", t5=tiny / "t5", vae="nowhere")


def test_edit_ratios_of_less_than_one_step_are_refused():
    """As released they would do what 0 does."""
    with pytest.raises(MaskStrategyError, match=r"at least 0\.1"):
        plan(["a car"], [[clip(4)]], ["0,0,0,0,4,0.05"], Settings(num_sampling_steps=10))
    plan(["a car"], [[clip(4)]], ["0,0,0,0,4,0.1"], Settings(num_sampling_steps=10))


def test_captions_that_overflow_are_not_used(pipe, monkeypatch):
    def overflow(*_, **__):
        return SimpleNamespace(last_hidden_state=paddle.full([1, 24, 96], float("nan")))

    monkeypatch.setattr(pipe.text.model, "forward", overflow)
    with pytest.raises(
        DeviceError, match=r'the text encoder overflows in .*; load the model with dtype="bf16" or "fp32"'
    ):
        pipe("a car", **FAST)


def test_half_precision_on_a_cpu_is_refused_before_loading():
    with pytest.raises(DeviceError, match=r"dtype fp16 needs a GPU: Paddle has no float16 kernels for a CPU; use fp32"):
        OpenSora.from_pretrained(device="cpu", dtype="fp16")
    with pytest.raises(DeviceError, match=r'dtype "int8" is unknown; give fp32, fp16 or bf16'):
        OpenSora.from_pretrained(device="cpu", dtype="int8")


def test_parts_that_do_not_belong_together_are_refused(golden):
    with pytest.raises(CheckpointError, match="do not belong together: STDiT2 reads captions"):
        OpenSora.from_pretrained("tiny", t5=golden / "t5")
    with pytest.raises(CheckpointError, match="do not belong together: the VAE makes 4 channels at 1/4"):
        OpenSora.from_pretrained("tiny", vae=golden / "vae")


def test_misspelt_settings_are_refused(pipe):
    with pytest.raises(TypeError, match=r"unknown setting step; known are num_frames"):
        pipe("a car", step=3)
    with pytest.raises(PromptError, match="prompt must be text or a list of texts, not None"):
        pipe(None)


def test_the_three_parts_can_be_given_by_path(pipe):
    from opensora_lite.request import WEIGHTS

    tiny = WEIGHTS / "tiny"
    parts = OpenSora.from_pretrained(stdit=tiny / "stdit" / "model.safetensors", t5=tiny / "t5", vae=tiny / "vae")
    assert parts.settings == Settings()  # those of the released weights
    again = parts("a car", **FAST, image_size=(64, 64), fps=24, frame_interval=1, guidance_scale=4.0, cfg_channel=None)
    np.testing.assert_array_equal(again.frames, pipe("a car", **FAST).frames)


# ------------------------------------------------------------------------------------------------------ the five tasks


def reconstruction(pipe, frames):
    return pipe.decode(pipe.encode(frames))


TASKS = {
    "image as condition": ("a breathtaking sunrise scene", [clip(1, time="sunrise")], "0"),
    "connecting": ("the ocean at sunset", [clip(1, seed=1), clip(1, seed=2)], "0;0,1,0,-1,1"),
    "extending, as PaddleMIX does": ("a car driving on the ocean", [clip(20)], "0,0,0,-6,6"),
    "extending": ("a car driving on the ocean", [clip(20)], "0,0,-6,0,6"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sampler", ["iddpm", "dpm-solver"])
def test_kept_frames_come_out_as_the_reference_went_in(pipe, task, sampler):
    prompt, references, text = TASKS[task]
    video = pipe(prompt, references=references, mask_strategy=text, num_sampling_steps=10, sampler=sampler, seed=1)
    assert video.frames.shape == (16, 64, 64, 3)
    timeline = MaskStrategy.parse(text).timeline(16, [len(r) for r in references])
    kept = [i for i, frame in enumerate(timeline) if frame.reference is not None]
    expected = np.concatenate(
        [
            reconstruction(pipe, r[[timeline[i].frame]])
            for i, r in ((i, references[timeline[i].reference]) for i in kept)
        ]
    )
    quality = psnr(video.frames[kept], expected)
    print(f"\n{task}, {sampler}: kept frames at {quality:.1f} dB of the VAE's own reconstruction")
    assert quality > 35
    # and the frames beside them are not simply copies
    assert psnr(video.frames[[i for i in range(16) if i not in kept]][[0]], expected[[0]]) < quality - 5


def test_editing_changes_more_the_higher_the_ratio(pipe):
    reference = clip()
    changes = []
    for ratio in (0.1, 0.4, 0.8):
        video = pipe(
            "a cyberpunk-style car",
            references=[reference],
            mask_strategy=MaskStrategy.edit(ratio),
            num_sampling_steps=10,
        )
        changes.append(-psnr(video.frames, reconstruction(pipe, reference)))
    assert changes[0] < changes[1] < changes[2]
    assert changes[0] < -20  # a ratio of 0.1 leaves the clip what it was


def test_text_alone_makes_the_place_and_the_time(pipe):
    """The upper half of a noon sky is blue, that of a sunset is not."""
    noon, sunset = (
        pipe(f"the ocean at {time}", num_sampling_steps=10, seed=3).frames[:, :24].mean((0, 1, 2))
        for time in ("noon", "sunset")
    )
    assert noon[2] > noon[0] + 40
    assert sunset[0] > sunset[2] - 10


# ----------------------------------------------------------------------------------- loops, batches, samples and seeds


def test_loops_continue_where_the_clip_before_ended(pipe):
    seen = []
    video = pipe("a boat sailing right", loops=3, condition_frames=2, on_step=seen.append, **FAST)
    assert len(video) == 3 * (4 - 2) + 2 == Settings(loops=3, condition_frames=2, num_frames=4).total_frames
    assert [(p.loop, p.step.number) for p in seen] == [(loop, n) for loop in range(3) for n in (1, 2, 3, 4)]
    # the first two frames of loop 1 are conditioning frames
    assert seen[5].step.active.numpy()[0, 0, :, 0, 0].tolist() == [False, False, True, True]
    first = pipe("a boat sailing right", **FAST)
    np.testing.assert_array_equal(video.frames[:4], first.frames)


def test_a_schedule_of_prompts_reaches_the_loops(pipe):
    seen = []
    pipe("|0|the ocean at noon|1|the city at night", loops=2, condition_frames=1, on_step=seen.append, **FAST)
    assert seen[0].jobs[0].captions == ("the ocean at noon", "the city at night")


def test_videos_do_not_depend_on_their_batch(pipe):
    prompts = ["a red car", "a blue boat", "a bird flying left"]
    references, strategies = [None, [clip(1)], None], [None, "0", None]
    alone = pipe(prompts, references=references, mask_strategy=strategies, seed=3, **FAST)
    together = pipe(prompts, references=references, mask_strategy=strategies, seed=3, batch_size=3, **FAST)
    for a, b in zip(alone, together, strict=True):  # to the last bit with MKL: tests/unit/test_determinism.py
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 2
    second = pipe(prompts[2], seed=5, **FAST)  # the i-th video is made with seed + i
    np.testing.assert_array_equal(second.frames, alone[2].frames)


def test_seeds_and_samples(pipe):
    a, b = pipe("a car", num_sample=2, seed=9, **FAST)
    assert not np.array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(b.frames, pipe("a car", seed=10, **FAST).frames)


def test_a_seed_for_each_prompt_or_one_for_all():
    def seeds(prompts, **settings):
        return [job.seed for job in plan(["a car", "a boat", "a bird"][:prompts], settings=Settings(**settings))]

    assert seeds(3, seed=5, num_sample=2) == [5, 6, 7, 8, 9, 10]
    assert seeds(3, seed=5, same_seed=True) == [5, 5, 5]
    assert seeds(3, seed=5, same_seed=True, num_sample=2) == [5, 6] * 3  # samples of a prompt differ
    assert seeds(2, seed=[7, 1]) == [7, 1]
    assert seeds(2, seed=[7, 1], num_sample=2) == [7, 8, 1, 2]
    assert seeds(1, seed=[4, 8, 9], num_sample=3) == [4, 8, 9]
    for prompts, seed in ((3, [1, 2]), (1, [1, 2])):
        with pytest.raises(OpenSoraError, match="2 seeds for"):
            seeds(prompts, seed=seed)


def test_a_plan_takes_settings_of_each_prompt():
    one, two = Settings(num_frames=4, num_sample=2, seed=5), Settings(num_frames=8, seed=5)
    jobs = plan(["a car", "a boat"], settings=[one, two])
    assert [(len(job.frames[0]), job.seed) for job in jobs] == [(4, 5), (4, 6), (8, 7)]
    assert [job.settings for job in jobs] == [one, one, two]
    row = PromptRow("a bird", columns={"seed": "9", "cfg_channel": "0", "guidance": "4"})
    with pytest.warns(Note, match="guidance"):
        chosen = row_settings(row, one)
    assert [job.seed for job in plan(["a car", "a bird"], settings=[one, chosen])] == [5, 6, 9, 10]
    assert chosen.cfg_channel is None


def test_a_list_of_seeds_gives_the_videos_of_these_seeds(pipe):
    a, b = pipe(["a car", "a boat"], seed=[3, 1], **FAST)
    np.testing.assert_array_equal(b.frames, pipe("a boat", seed=1, **FAST).frames)
    np.testing.assert_array_equal(a.frames, pipe("a car", seed=3, **FAST).frames)


def test_what_a_single_prompt_and_a_list_give(pipe):
    assert isinstance(pipe("a car", **FAST), Video)
    videos = pipe(["a car"], **FAST)
    assert isinstance(videos, list) and videos[0].prompt == "a car" and videos[0].fps == 24


def test_an_image_is_conditioned_on_the_frame_rate_of_images(pipe, monkeypatch):
    rates = []
    precompute = type(pipe.stdit).precompute

    def spy(self, cond):
        rates.append(cond.fps.numpy().tolist())
        return precompute(self, cond)

    monkeypatch.setattr(type(pipe.stdit), "precompute", spy)
    video = pipe("a car", num_frames=1, num_sampling_steps=2)
    assert video.frames.shape == (1, 64, 64, 3)
    assert rates == [[120.0]]  # once for all steps


def test_more_videos_at_once_than_there_are_need_no_memory(pipe):
    """Memory is checked for the videos that are made at once, not for the batch size."""
    assert len(pipe("a car", batch_size=10_000, **FAST)) == 4


@pytest.mark.parametrize(
    "frames, size", [(4, (56, 88)), (2, (280, 280)), (12, (240, 240)), (2, (224, 400)), (2, (400, 224))]
)
def test_other_sizes_run(pipe, frames, size):
    """35 x 35 latents and 7 x 11: the patch does not divide them."""
    video = pipe("a car", num_frames=frames, image_size=size, num_sampling_steps=2, guidance_scale=1.0)
    assert video.frames.shape == (frames, *size, 3)


def test_guidance_off_takes_half_the_batch(pipe):
    seen = []
    pipe("a car", guidance_scale=1.0, on_step=lambda progress: seen.append(progress.step.prediction), **FAST)
    assert all(prediction.uncond is None for prediction in seen)
