"""LiteWorld: the pixels that the shipped model was trained on, true captions, and the pictures made from it."""

import importlib.util
import json
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from opensora_lite.errors import OpenSoraError
from opensora_lite.liteworld.world import (
    CAMERA_MOTIONS,
    COLORS,
    DIRECTIONS,
    MOTION_SCORES,
    PLACES,
    SUBJECTS,
    TIMES,
    Scene,
    camera_at,
    caption,
    render,
    sample_layout,
    sample_scene,
    sample_shot,
    sample_shot_layout,
    score_suffix,
    subject_position,
    vocabulary,
)
from opensora_lite.validation import build

GOLDEN = Path(__file__).parents[1] / "golden" / "world"
ENTRIES = json.loads((GOLDEN / "scenes.json").read_text())
ASSETS = Path(__file__).parents[2] / "notebooks" / "assets"

# What the original drawing code drew with np.random.default_rng(0).
PINNED_CAPTIONS = [
    "a red balloon floating left over the city at noon",
    "a cyberpunk-style red car driving right on the desert",
    "a purple boat sailing left on the city at sunset",
    "a white boat sailing right on the desert at sunrise",
    "a cyberpunk-style green bird flying left over the ocean",
]
PINNED_HORIZON = 0.5850616191360218
PINNED_BUILDING = (0.812335398111254, 0.08671557622285406, 0.3316827263555904)
PINNED_NEXT = 0.9257145772144187


def rng(seed=0):
    return np.random.default_rng(seed)


def scene_of(entry) -> Scene:
    """The scene of an entry of scenes.json."""
    return build(Scene, {name: entry[name] for name in Scene.__dataclass_fields__ if name in entry}, "the scene")


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(len(ENTRIES)))
def test_frames_are_those_the_model_was_trained_on(k):
    entry = ENTRIES[k]
    expected = np.load(GOLDEN / "frames.npz")[f"clip{k}"]
    frames = render(scene_of(entry), entry["num_frames"], entry["height"], entry["width"], entry["fps"])
    assert frames.shape == expected.shape and frames.dtype == np.uint8
    # Equal on the machine that wrote this; another numpy's sin may round one channel value the other way.
    assert np.abs(frames.astype(int) - expected).max() <= 1


def test_the_defaults_are_the_models():
    assert render(sample_scene(rng())).shape == (16, 64, 64, 3)


def test_a_clip_at_12_fps_is_every_other_frame_of_one_at_24():
    scene = sample_layout(Scene("ocean", "sunrise", "boat"), rng())
    np.testing.assert_array_equal(render(scene, 8, fps=12), render(scene, 16, fps=24)[::2])


def test_a_frame_is_the_same_at_every_length():
    scene = sample_layout(Scene("city", "sunset", "bird"), rng(1))
    np.testing.assert_array_equal(render(scene, 1), render(scene, 4)[:1])


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("direction, sign", [("left", -1), ("right", 1)])
def test_a_subject_moves_where_its_caption_says(subject, direction, sign):
    scene = sample_layout(Scene("desert", "noon", subject, "purple", direction), rng(2))
    with_subject = render(scene).astype(int)
    without = render(replace(scene, subject=None)).astype(int)
    drawn = (with_subject != without).any(-1)  # [T, H, W]
    assert drawn.any((1, 2)).all()
    columns = np.arange(64)
    centres = (drawn * columns).sum((1, 2)) / drawn.sum((1, 2))  # pixels
    steps = np.diff(centres)
    assert (sign * steps > 0).all()
    assert centres[-1] - centres[0] == pytest.approx(sign * scene.layout.speed * 15 * 64, abs=1.5)


@pytest.mark.parametrize("subject", ["balloon", "bird"])
def test_a_subject_moving_left_is_the_mirror_image_of_one_moving_right(subject):
    scene = sample_layout(Scene("city", "noon", subject, direction="right"), rng(3))
    symmetric = replace(scene, layout=replace(scene.layout, sun_x=0.5, buildings=()))
    right, left = render(symmetric), render(replace(symmetric, direction="left"))
    assert np.abs(right[:, :, ::-1].astype(int) - left).max() <= 1


@pytest.mark.parametrize(
    "time, color, heights",  # of the sun; heights that it climbs in 15 frames
    [
        ("sunrise", (1.0, 0.92, 0.55), 0.21),
        ("noon", (1.0, 1.0, 0.82), 0.0),
        ("sunset", (1.0, 0.86, 0.42), -0.21),
        ("night", (0.93, 0.93, 0.84), 0.0),
        ("cyberpunk", (1.0, 0.45, 0.75), 0.0),
    ],
)
def test_only_a_rising_or_setting_sun_moves(time, color, heights):
    frames = render(sample_layout(Scene("ocean", time), rng(4)))
    is_sun = np.abs(frames / 255 - color).max(-1) < 0.01  # [T, H, W]
    first, last = (np.argmax(frame.any(1)) for frame in is_sun[[0, -1]])  # its topmost row
    assert is_sun[0].any() and first - last == pytest.approx(64 * heights, abs=2)


def test_a_subject_beyond_the_frame_is_no_error():
    scene = sample_layout(Scene("ocean", "noon", "car"), rng())
    far = replace(scene, layout=replace(scene.layout, start=3.0))
    np.testing.assert_array_equal(render(far, 2), render(replace(far, subject=None), 2))


# --- random draws -----------------------------------------------------------------------------------------------------


def test_random_scenes_are_the_same_for_ever():
    generator = rng(0)
    scenes = [sample_scene(generator) for _ in range(5)]
    assert [caption(scene) for scene in scenes] == PINNED_CAPTIONS
    assert scenes[0].layout.horizon == pytest.approx(PINNED_HORIZON, abs=1e-15)
    assert scenes[4].layout.buildings[-1] == pytest.approx(PINNED_BUILDING, abs=1e-15)
    assert generator.random() == pytest.approx(PINNED_NEXT, abs=1e-15)


def test_a_layout_has_its_own_draws():
    scene = Scene("ocean", "sunset", "car", color="red")
    placed = sample_layout(scene, rng(0))
    assert scene.layout is None and replace(placed, layout=None) == scene
    assert placed == sample_layout(scene, rng(0)) != sample_layout(scene, rng(1))
    assert placed.layout.horizon == pytest.approx(0.52 + 0.08 * rng(0).random())


def test_every_word_is_drawn():
    generator = rng(5)
    scenes = [sample_scene(generator) for _ in range(400)]
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.subject for scene in scenes} == {*SUBJECTS, None}
    assert {scene.color for scene in scenes} == set(COLORS)
    assert {scene.direction for scene in scenes} == set(DIRECTIONS)
    assert 0.08 < np.mean([scene.subject is None for scene in scenes]) < 0.16


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["caption"])
def test_captions_of_the_reference_scenes(entry):
    assert caption(scene_of(entry)) == entry["caption"]


@pytest.mark.parametrize(
    "scene, expected",
    [
        (Scene("ocean", "sunset", "car", "red"), "a red car driving right on the ocean at sunset"),
        (Scene("city", "night", "bird", "yellow", "left"), "a yellow bird flying left over the city at night"),
        (Scene("desert", "cyberpunk", "boat", "blue"), "a cyberpunk-style blue boat sailing right on the desert"),
        (Scene("meadow", "noon", "balloon", "white"), "a white balloon floating right over the meadow at noon"),
        (Scene("ocean", "noon"), "the ocean at noon"),
        (Scene("city", "cyberpunk"), "a cyberpunk-style city"),
    ],
)
def test_full_captions(scene, expected):
    assert caption(scene) == expected


def test_the_vocabulary_is_that_of_the_captions():
    """Of partial captions too: every word of the list is used, and no other one."""
    scenes = [sample_scene(np.random.default_rng(i)) for i in range(300)]
    rng = np.random.default_rng(0)
    used = {word for scene in scenes for _ in range(10) for word in caption(scene, rng).split()}
    assert sorted(used) == vocabulary()


def test_partial_captions_are_true():
    generator = rng(6)
    vocabulary = {*PLACES, *TIMES, *SUBJECTS, *COLORS, *DIRECTIONS, "cyberpunk-style"}
    full, lengths = 0, set()
    for _ in range(1000):
        scene = sample_scene(generator)
        words = caption(scene, generator).split()
        moving = {scene.subject, scene.color, scene.direction} if scene.subject else set()
        true = {scene.place, *moving, "cyberpunk-style" if scene.time == "cyberpunk" else scene.time}
        assert vocabulary.intersection(words) <= true
        assert scene.subject is None or scene.subject in words
        full += true <= set(words)
        lengths.add(len(words))
    assert 300 < full < 800  # neither always complete nor never
    assert len(lengths) > 5


def test_the_prompts_of_the_originals_examples_are_captions():
    generator = rng(7)
    said = {caption(sample_scene(generator), generator) for _ in range(6000)}
    assert "a breathtaking sunrise scene" in said
    assert "a beautiful sunset over the city" in said
    assert any(text.startswith("a car driving on the ocean") for text in said)


# --- what a person can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, known",
    [
        ({"place": "sea"}, "meadow"),
        ({"time": "dawn"}, "sunrise"),
        ({"subject": "ship"}, "boat"),
        ({"color": "pink"}, "purple"),
        ({"direction": "up"}, "left"),
        ({"colour": "red"}, "color"),
    ],
)
def test_an_unknown_word_lists_the_known_ones(words, known):
    with pytest.raises(OpenSoraError, match=known):
        Scene(**{"place": "ocean", "time": "noon", **words})


@pytest.mark.parametrize(
    "name, value",
    [("num_frames", 0), ("height", -64), ("width", 64.0), ("fps", 0), ("fps", "24"), ("fps", float("nan"))],
)
def test_a_size_that_cannot_be_drawn(name, value):
    with pytest.raises(OpenSoraError, match=name):
        render(sample_scene(rng()), **{name: value})


def test_a_scene_without_a_layout():
    with pytest.raises(OpenSoraError, match="sample_layout"):
        render(Scene("ocean", "noon", "boat"))


def test_a_scene_is_immutable_and_variations_are_checked():
    scene = Scene("ocean", "noon")
    with pytest.raises(FrozenInstanceError):
        scene.place = "city"
    with pytest.raises(OpenSoraError, match="place"):
        replace(scene, place="sea")


def test_a_scene_survives_json():
    scene = sample_scene(rng(8))
    assert build(Scene, json.loads(json.dumps(asdict(scene))), "the scene") == scene


# --- the example references -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_assets():
    spec = importlib.util.spec_from_file_location("make_assets", ASSETS / "make_assets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_clip(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


@pytest.mark.parametrize("name", ["wave.png", "sunset1.png", "sunset2.png"])
def test_pictures_can_be_rendered_again(make_assets, name):
    committed = np.asarray(Image.open(ASSETS / name))
    assert committed.shape == (256, 256, 3)
    assert np.abs(committed.astype(int) - make_assets.PICTURES[name]()).max() <= 1


def test_the_car_clip_shows_what_was_rendered(make_assets):
    stream, frames = read_clip(ASSETS / "car.mp4")
    assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    assert stream.average_rate == 24 and frames.shape == (16, 256, 256, 3)
    error = frames.astype(float) - make_assets.car()
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 33  # dB; yuv420p halves the resolution of colours


def test_all_assets_are_made_and_described(make_assets, tmp_path):
    make_assets.main(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    committed = {path.name for path in ASSETS.iterdir() if path.suffix in (".png", ".mp4")}
    assert made == committed
    readme = (ASSETS / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in committed)
    assert read_clip(tmp_path / "car.mp4")[1].shape == (16, 256, 256, 3)


# --- shots ------------------------------------------------------------------------------------------------------------


def test_a_shot_without_moving_camera_is_drawn_as_any_scene():
    scene = sample_layout(Scene("city", "noon", "car"), rng(8))
    pinned = replace(
        scene, layout=replace(scene.layout, camera_speed=0.5), motion_score=5
    )  # static: a speed of nothing
    np.testing.assert_array_equal(render(pinned, 4), render(scene, 4))


@pytest.mark.parametrize("num_frames, fps", [(17, 24), (17, 12), (34, 24), (51, 24)])
def test_subjects_and_suns_of_shots_stay_in_the_picture(num_frames, fps):
    generator = rng(9)
    for _ in range(200):
        shot = sample_shot(generator, num_frames, fps)
        times = np.arange(num_frames) * 24 / fps
        suns = [camera_at(shot, t).to_picture(shot.layout.sun_x, 0.3, 1.0)[0] for t in times]
        assert min(suns) > 0.14 and max(suns) < 0.86
        if shot.subject:
            xs = [subject_position(shot, t, 1.0)[0] for t in times]
            assert min(xs) > 0.04 and max(xs) < 0.96


@pytest.mark.parametrize("camera, sign", [("pan left", 1), ("pan right", -1)])
def test_a_pan_to_the_left_moves_the_content_to_the_right(camera, sign):
    shot = sample_shot_layout(Scene("ocean", "noon", camera=camera), rng(10))
    is_sun = (np.abs(render(shot, 17) / 255 - (1.0, 1.0, 0.82)).max(-1) < 0.01).any(1)  # [T, W]
    centres = (is_sun * np.arange(64)).sum(1) / is_sun.sum(1)
    assert (sign * np.diff(centres) >= -0.5).all() and sign * (centres[-1] - centres[0]) > 0.19 * 64


@pytest.mark.parametrize("camera, grows", [("zoom in", True), ("zoom out", False)])
def test_a_zoom_scales_the_picture(camera, grows):
    shot = sample_shot_layout(Scene("ocean", "noon", camera=camera), rng(11))
    is_sun = np.abs(render(shot, 17) / 255 - (1.0, 1.0, 0.82)).max(-1) < 0.01
    first, last = is_sun.sum((1, 2))[[0, -1]]
    assert (last > 1.3 * first) if grows else (first > 1.3 * last)


@pytest.mark.parametrize("time, sign", [("sunrise", 1), ("sunset", -1)])
def test_suns_of_shots_cross_a_quarter_of_the_picture_in_clips_of_every_length(time, sign):
    for num_frames in (17, 34, 51):
        layout = sample_shot_layout(Scene("ocean", time), rng(12), num_frames).layout
        assert 0.25 < layout.sun_speed * (num_frames - 1) < 0.35


def test_motion_scores_are_speeds_in_the_picture_whatever_the_camera_does():
    for camera in CAMERA_MOTIONS:
        speeds = [
            sample_shot_layout(Scene("desert", "noon", "car", camera=camera, motion_score=score), rng(13)).layout.speed
            for score in MOTION_SCORES
        ]
        assert np.allclose(np.array(speeds) * 200, MOTION_SCORES, rtol=0.06)


def test_scores_are_appended_as_open_sora_does():
    shot = Scene("ocean", "noon", "car", camera="pan left", motion_score=5)
    assert score_suffix(shot) == " motion score: 5.0. camera motion: pan left."
    assert score_suffix(shot, aes=True, flow=False, camera=False) == " aesthetic score: 6.5."
    assert score_suffix(replace(shot, subject=None, motion_score=None)) == " camera motion: pan left."
