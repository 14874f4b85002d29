"""What a clip shows, measured from its pixels: right on renders, on what the VAE makes of them, and on rougher ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from renders import accuracies, clips, truth
from shots import shot_verdicts

from opensora_lite.errors import OpenSoraError
from opensora_lite.liteworld.describe import (
    Description,
    camera_motion,
    describe,
    motion_score,
    steady_frames,
    subject_track,
    sun_motion,
)
from opensora_lite.liteworld.world import (
    CAMERA_MOTIONS,
    COLORS,
    DIRECTIONS,
    PLACES,
    SUBJECTS,
    Scene,
    render,
    sample_layout,
    sample_shot_layout,
)
from opensora_lite.video import Video


def rng(seed=0):
    return np.random.default_rng(seed)


def roughened(frames: np.ndarray, generator) -> np.ndarray:
    """Noise, brightness that flickers by 4 %, a tint, and outlines that wobble by a pixel."""
    count, height, width, _ = frames.shape
    rows, columns = np.mgrid[:height, :width]
    phases = generator.uniform(0, 2 * np.pi, 2)
    wobbled = np.empty(frames.shape)
    for k in range(count):
        down = np.rint(rows + 1.2 * np.sin(0.3 * columns + phases[0] - 0.7 * k)).astype(int).clip(0, height - 1)
        across = np.rint(columns + 1.2 * np.sin(0.35 * rows + phases[1] + 0.9 * k)).astype(int).clip(0, width - 1)
        wobbled[k] = frames[k, down, across]
    wobbled *= 1 + generator.uniform(-0.04, 0.04, (count, 1, 1, 1))
    wobbled += generator.uniform(-6, 6, 3) + generator.normal(0, 6, frames.shape)
    return np.rint(wobbled).clip(0, 255).astype(np.uint8)


# --- how often it is right --------------------------------------------------------------------------------------------


def test_renders_are_described_rightly():
    shares = accuracies((truth(scene, len(frames)), describe(frames)) for scene, frames in clips(150, seed=1))
    assert min(shares.values()) >= 0.97, shares


def test_what_the_vae_makes_of_renders_is_described_rightly(pipe):
    pairs = [
        (truth(scene, len(frames)), describe(pipe.decode(pipe.encode(frames))))
        for scene, frames in clips(40, seed=77, lengths=(8,))
    ]
    shares = accuracies(pairs)
    assert min(shares["place"], shares["time"]) >= 0.98, shares
    assert min(shares["subject"], shares["color"], shares["direction"]) >= 0.93, shares


def test_rough_clips_are_described_rightly():
    generator = rng(2)
    pairs = [
        (truth(scene, len(frames)), describe(roughened(frames, generator)))
        for scene, frames in clips(60, seed=3, lengths=(8,))
    ]
    shares = accuracies(pairs)
    assert min(shares.values()) >= 0.93, shares


# --- each attribute on its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("time", ["sunrise", "noon", "sunset", "night", "cyberpunk"])
def test_a_clip_without_a_subject(place, time):
    frames = render(sample_layout(Scene(place, time), rng(4)), 4)
    assert describe(frames) == Description(place, time, None, None, None)
    assert subject_track(frames) is None


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_single_frame_has_no_direction(subject):
    scene = sample_layout(Scene("desert", "noon", subject, "red"), rng(5))
    assert describe(render(scene, 1)) == Description("desert", "noon", subject, "red", None)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    subject=st.sampled_from(SUBJECTS),
    color=st.sampled_from(tuple(COLORS)),
    direction=st.sampled_from(DIRECTIONS),
    seed=st.integers(0, 99),
)
def test_direction_is_that_of_the_movement_and_not_of_the_heading(subject, color, direction, seed):
    scene = sample_layout(Scene("meadow", "sunset", subject, color, direction), rng(seed))
    frames = render(scene, 6, fps=12)
    there, back = describe(frames), describe(frames[::-1])
    other = "left" if direction == "right" else "right"
    assert there == truth(scene, 6)
    assert (back.subject, back.color, back.direction) == (subject, color, other)


def test_a_subject_that_stands_still_goes_where_it_heads():
    scene = sample_layout(Scene("desert", "noon", "car", "blue", "left"), rng(6))
    frames = np.repeat(render(scene, 1), 5, axis=0)
    assert describe(frames).direction == "left"


def test_a_subject_that_leaves_is_judged_by_where_it_was_seen():
    scene = sample_layout(Scene("ocean", "night", "balloon", "yellow", "right"), rng(7))
    scene = replace(scene, layout=replace(scene.layout, start=0.5, speed=0.04))
    frames = render(scene, 16, fps=12)  # its centre leaves in frame 6
    assert describe(frames) == truth(scene, 16)
    x = subject_track(frames)
    assert np.isfinite(x[:5]).all() and np.isnan(x[9:]).all()


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("direction, sign", [("left", -1), ("right", 1)])
def test_a_track_is_where_the_subject_was_drawn(subject, direction, sign):
    scene = sample_layout(Scene("city", "sunset", subject, "blue", direction), rng(8))
    start, speed = scene.layout.start, scene.layout.speed
    x = (start if direction == "right" else 1 - start) + sign * speed * np.arange(8)
    np.testing.assert_allclose(subject_track(render(scene, 8)), x, atol=0.03)  # two pixels


def test_larger_frames_are_described_too():
    scene = sample_layout(Scene("ocean", "sunset", "car", "red"), rng(9))
    assert describe(render(scene, 4, 200, 256)) == truth(scene, 4)


# --- the sun ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fps", [24, 12])
@pytest.mark.parametrize(
    "time, speed",  # heights per time unit
    [("sunrise", 0.014), ("sunset", -0.014), ("noon", 0), ("night", 0), ("cyberpunk", 0)],
)
def test_the_sun_rises_and_sets(place, fps, time, speed):
    scene = sample_layout(Scene(place, time, "car", "green"), rng(10))
    scene = replace(scene, layout=replace(scene.layout, sun_x=0.5, buildings=scene.layout.buildings[:2]))
    assert sun_motion(render(scene, 192 // fps, fps=fps)) == pytest.approx(speed * 24 / fps, abs=0.006 * 24 / fps)


def test_a_sun_that_cannot_be_seen_does_not_move():
    scene = sample_layout(Scene("ocean", "sunset"), rng(11))
    frames = render(scene, 40)[30:]  # it has set
    assert sun_motion(frames) is None
    assert sun_motion(render(scene, 1)) is None


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_a_video_is_described_like_its_frames():
    frames = render(sample_layout(Scene("city", "night", "bird", "white"), rng(12)), 4)
    assert describe(Video(frames)) == describe(frames)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(32, 90), st.integers(32, 90)),
    color=st.tuples(*[st.integers(0, 255)] * 3),
    noise=st.sampled_from([0, 20, 255]),
    seed=st.integers(0, 9),
)
def test_anything_is_described_in_liteworlds_words(shape, color, noise, seed):
    frames = (np.array(color) + rng(seed).uniform(-noise, noise, (*shape, 3))).clip(0, 255).astype(np.uint8)
    said = describe(frames)
    Scene(said.place, said.time, said.subject)  # raises for a word that LiteWorld does not have
    assert (said.color is None) == (said.subject is None)
    assert (said.direction is None) == (said.subject is None or len(frames) == 1)
    motion = sun_motion(frames)
    assert motion is None or np.isfinite(motion)


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((2, 64, 64, 3)),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 4), np.uint8),
        np.zeros((1, 16, 64, 3), np.uint8),
        "clip.mp4",
        None,
    ],
)
@pytest.mark.parametrize("measure", [describe, sun_motion, subject_track])
def test_what_is_no_clip(measure, video):
    with pytest.raises(OpenSoraError, match="uint8"):
        measure(video)


# --- shots ------------------------------------------------------------------------------------------------------------


def test_shots_are_measured_rightly():
    shares = {name: np.mean(values) for name, values in shot_verdicts(24, seed=21).items()}
    assert min(shares.values()) >= 0.95, shares


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
def test_the_camera_of_a_clip_without_a_subject(camera):
    shot = sample_shot_layout(Scene("meadow", "sunset", camera=camera), rng(22))
    frames = render(shot, 17)
    assert camera_motion(frames) == camera
    assert motion_score(frames) is None and steady_frames(frames) is None


def test_a_single_frame_has_a_static_camera_and_no_motion_score():
    frames = render(sample_shot_layout(Scene("meadow", "noon", "car", camera="zoom in"), rng(23)), 1)
    assert camera_motion(frames) == "static" and motion_score(frames) is None


def test_flicker_is_a_frame_without_the_subject_or_in_another_color_or_in_pieces():
    scene = sample_layout(Scene("desert", "noon", "car", "red", "right"), rng(24))
    frames = render(scene, 8)
    assert steady_frames(frames, "red").all() and not steady_frames(frames, "blue").any()
    broken = frames.copy()
    broken[2] = render(replace(scene, subject=None), 8)[2]
    broken[3] = render(replace(scene, color="green"), 8)[3]
    broken[5, :, 32:] = frames[5, :, :32]  # a second car
    assert list(np.flatnonzero(~steady_frames(broken, "red"))) == [2, 3, 5]
