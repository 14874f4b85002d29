"""LatentPlayer without a browser: its pictures are those of the trace, and its caches are bounded."""

import io
import itertools
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from opensora_lite.widgets.player import ByteCache, LatentPlayer, histogram
from opensora_lite.widgets.widget import encoded
from PIL import Image
from traces import Decoder, made_trace

from opensora_lite import OpenSoraError, Trace
from opensora_lite.generations import OPEN_SORA_12
from opensora_lite.trace import TraceStep

VIEWS = ["x_t", "x_0", "epsilon", "guidance", "sample"]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def values(step, view):
    return step.eps_cond - step.eps_uncond if view == "guidance" else getattr(step, view)


# ---------------------------------------------------------------------------------------------------------------------
#   Pictures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_the_picture_is_the_traces(view):
    trace = made_trace()
    player = LatentPlayer(trace, view=view)
    largest = [np.abs(values(step, view)).max() for step in trace]
    assert player.scale == pytest.approx(np.median(largest))
    for player.step, player.frame in [(0, 0), (3, 4), (5, 1)]:
        expected = 127.5 + 127.5 * np.clip(values(trace[player.step], view)[:, player.frame] / player.scale, -1, 1)
        player.show = "channels"
        shown = pixels(player.picture)
        assert shown.shape == (4, 4 * 6) and np.abs(shown - np.concatenate(expected, 1)).max() <= 1
        player.show = "false_color"
        shown = pixels(player.picture)
        assert shown.shape == (4, 6, 3) and np.abs(shown - expected[:3].transpose(1, 2, 0)).max() <= 1
        assert player.shown["step"] == player.step and player.shown["frame"] == player.frame


def test_the_strip_shows_the_frame_at_all_steps():
    player = LatentPlayer(made_trace(), show="false_color", frame=2)
    cells = np.split(pixels(player.strip), 6, axis=1)
    for player.step in range(6):
        assert np.array_equal(cells[player.step], pixels(player.picture))
    before, player.frame = player.strip, 3
    assert player.strip != before


def test_the_scale_is_that_of_the_frames_that_change():
    trace = made_trace(frames=4, ratios=[1, 1, 0, 0.5])
    for step in trace:
        step.x_0[:, ~step.active] = 1000  # what the model says of a frame that it is not asked for
    most = [np.abs(step.x_0[:, step.active]).max() for step in trace]
    player = LatentPlayer(trace, frame=2)
    assert player.scale == pytest.approx(np.median(most)) and player.scale < 10
    assert (pixels(player.picture) == 255).all() and player.shown["histograms"][0]["beyond"] == 1


def test_what_is_not_a_number_is_middle_grey_and_counted():
    trace = made_trace()
    trace[2].x_0[:, 0] = [[[np.nan]], [[np.inf]], [[-np.inf]], [[0]]]
    player = LatentPlayer(trace, step=2)
    assert [set(panel.ravel()) for panel in np.split(pixels(player.picture), 4, axis=1)] == [{128}, {255}, {0}, {128}]
    assert player.shown["histograms"][0]["strange"] == 3 * 24
    json.dumps(player.shown, allow_nan=False)


def test_the_histogram_is_of_the_frame_or_of_all():
    trace = made_trace(frames=3, size=(20, 20))
    player = LatentPlayer(trace, frame=1, step=4)
    assert player.shown["histograms"][0]["mean"] == pytest.approx(trace[4].x_0[:, 1].mean(), abs=1e-3)
    player.scope = "all"
    numbers = player.shown["histograms"][0]
    assert numbers["std"] == pytest.approx(trace[4].x_0.std(), abs=1e-3)
    width = 2 * player.shown["limit"] / len(numbers["density"])
    assert sum(numbers["density"]) * width == pytest.approx(1 - numbers["beyond"], abs=1e-3)


def test_densities_follow_the_standard_normal():
    numbers = histogram(np.random.default_rng(0).standard_normal(200_000), 4.0)
    centres = (np.arange(48) + 0.5) / 48 * 8 - 4
    normal = np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi)
    assert np.abs(np.array(numbers["density"]) - normal).max() < 0.01


def test_the_signal_to_noise_ratio_is_the_schedules():
    from opensora_lite.schedule import Schedule

    schedule = Schedule(30)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    (track,) = LatentPlayer(made_trace(steps=30)).plan["tracks"]
    assert [step[2] for step in track["steps"]] == schedule.timesteps[::-1].tolist()
    np.testing.assert_allclose([step[3] for step in track["steps"]], np.log10(snr[::-1]), atol=2e-3)


def test_the_plan_tells_masks_and_which_frames_a_step_changes():
    (track,) = LatentPlayer(made_trace(steps=4, frames=3, loops=2, ratios=[0, 0.5, 1])).plan["tracks"]
    assert track["ratios"] == [[0, 0.5, 1]] * 2 and track["captions"] == ["caption 0", "caption 1"]
    assert track["active"] == ["001", "001", "011", "011"] * 2 and track["shape"] == [4, 3, 4, 6]
    assert [step[:2] for step in track["steps"]] == [[loop, number] for loop in (0, 1) for number in (1, 2, 3, 4)]


# ---------------------------------------------------------------------------------------------------------------------
#   Two traces
# ---------------------------------------------------------------------------------------------------------------------


def test_two_traces_stand_at_the_nearest_timestep_in_one_scale():
    ours, theirs = made_trace(steps=6, loops=2), made_trace(steps=3, loops=2, seed=1)
    player = LatentPlayer(ours, compare=theirs)
    for player.step in range(12):
        loop, here = ours[player.step].loop, ours[player.step].timestep
        at = player.shown["at"][1]
        assert theirs[at].loop == loop
        assert abs(theirs[at].timestep - here) == min(abs(step.timestep - here) for step in theirs)
        expected = 127.5 + 127.5 * np.clip(theirs[at].x_0[:, 0] / player.scale, -1, 1)
        assert np.abs(pixels(player.compare_picture) - np.concatenate(expected, 1)).max() <= 1
    both = [np.abs(step.x_0).max() for step in itertools.chain(ours, theirs)]
    assert player.scale == pytest.approx(np.median(both)) and len(player.shown["histograms"]) == 2
    assert pixels(player.compare_strip).shape == (4, 3 * 2 * 6, 3)


def test_a_loop_that_the_second_trace_has_not_is_compared_with_its_last():
    player = LatentPlayer(made_trace(steps=4, loops=3), compare=made_trace(steps=4), step=9)
    assert player.shown["at"] == [9, 1]


# ---------------------------------------------------------------------------------------------------------------------
#   The state, from Python and from the browser
# ---------------------------------------------------------------------------------------------------------------------


def test_the_browser_moves_it():
    trace = made_trace()
    player, expected = LatentPlayer(trace), LatentPlayer(trace, view="guidance", show="false_color", step=4, frame=3)
    player.set_state({"step": 4, "frame": 3, "view": "guidance", "show": "false_color"})
    assert (player.picture, player.strip, player.shown) == (expected.picture, expected.strip, expected.shown)
    assert repr(player) == "LatentPlayer(6 steps, 5 frames; step 4, frame 3, guidance as false colour)"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": 6}, "step must be at most 5"),
        ({"step": -1}, "step"),
        ({"frame": 5}, "frame must be at most 4"),
        ({"view": "noise"}, "view"),
        ({"view": "guidance"}, "guidance_scale=1"),
        ({"show": "video"}, "show"),
        ({"show": "pixels"}, "need a model"),
        ({"scope": "half"}, "scope"),
        ({"rate": 0}, "rate"),
    ],
)
def test_what_is_not_possible_is_refused_and_changes_nothing(state, message):
    player = LatentPlayer(made_trace(guided=False), step=2, frame=1)
    before = {name: getattr(player, name) for name in (*state, "picture", "shown", "step", "frame")}
    with pytest.raises(OpenSoraError, match=message):
        player.set_state(state)
    for name, value in state.items():
        with pytest.raises(OpenSoraError, match=message):
            setattr(player, name, value)
    assert {name: getattr(player, name) for name in before} == before
    player.step = 3  # and it still works
    assert player.shown["step"] == 3


def test_what_cannot_be_played_is_refused():
    trace = made_trace()
    for wrong, message in [
        (dict(trace=[1, 2]), "must be a Trace"),
        (dict(trace=Trace()), "is empty"),
        (dict(trace=trace, compare=3), "compare must be a Trace"),
        (dict(trace=trace, compare=made_trace(frames=4)), "cannot be compared"),
        (dict(trace=trace, pipe="tiny"), "must be an OpenSora"),
        (dict(trace=trace, step=6), "step"),
        (dict(trace=trace, view="guidance", compare=made_trace(guided=False)), "compare was made without guidance"),
        (dict(trace=trace, pipe=Decoder(), view="epsilon", show="pixels"), "not of noise"),
    ]:
        with pytest.raises(OpenSoraError, match=message):
            LatentPlayer(**wrong)
    without = Trace(latents=False)
    without.loops, without._steps = trace.loops, [TraceStep(0, 1, 999, np.ones(5, bool))]
    with pytest.raises(OpenSoraError, match="without latents"):
        LatentPlayer(without)


def test_with_a_guidance_interval_the_guidance_of_the_guided_steps_is_shown():
    trace = made_trace(guidance=(300, 900))  # of the times 999, 799, 599, 400, 200, 0
    player = LatentPlayer(trace, Decoder(), view="guidance", step=1)
    assert player.shown["reasons"].keys() == {"pixels"} and player.shown["notes"] == []
    assert player.shown["have"] == ["011100"]
    largest = [np.abs(values(step, "guidance")).max() for step in trace if step.eps_uncond is not None]
    assert player.scale == pytest.approx(np.median(largest))
    expected = 127.5 + 127.5 * np.clip(values(trace[1], "guidance")[:, 0] / player.scale, -1, 1)
    assert np.abs(pixels(player.picture) - np.concatenate(expected, 1)).max() <= 1
    for player.step in (0, 4, 5):
        assert (pixels(player.picture) == 128).all()
        (note,) = player.shown["notes"]
        assert note.startswith(f"t = {trace[player.step].timestep}: guidance was off") and "guidance_interval" in note
        (numbers,) = player.shown["histograms"]
        assert not any(numbers["density"]) and numbers["beyond"] == 0
        assert "guidance was off" in player.still()[1]
    player.view = "epsilon"  # exists at all steps
    assert player.shown["notes"] == [] and player.shown["have"] == ["111111"]
    other = made_trace(steps=3, guidance=(0, 600), seed=1)
    player = LatentPlayer(trace, compare=other, view="guidance")
    assert [note.partition(",")[0] for note in player.shown["notes"]] == ["trace", "compare"]


def test_a_real_trace_with_a_guidance_interval(pipe):
    trace = Trace()
    pipe("a car", trace=trace, num_frames=1, num_sampling_steps=4, image_size=(32, 32), guidance_interval=(200, 800))
    player = LatentPlayer(trace, pipe, view="guidance", step=1)
    for player.step in range(4):
        assert bool(player.shown["notes"]) == (not 200 <= trace[player.step].timestep <= 800)


def test_steps_whose_output_was_reused_are_marked():
    trace = made_trace()
    trace._steps[2] = replace(trace[2], reused=True)
    player = LatentPlayer(trace)
    for player.step in range(6):
        assert ["reused" in note for note in player.shown["notes"]] == [True] * (player.step == 2)


def test_the_browser_is_told_why_a_choice_is_none():
    player = LatentPlayer(made_trace(guided=False))
    assert player.shown["reasons"].keys() == {"guidance", "pixels"}
    assert LatentPlayer(made_trace(), Decoder()).shown["reasons"] == {}


def test_a_trace_that_follows_another_video_changes_nothing():
    trace = made_trace()
    player, twin = LatentPlayer(trace), LatentPlayer(made_trace())
    trace.clear()
    for player.step in range(6):
        twin.step = player.step
        assert player.picture == twin.picture


# ---------------------------------------------------------------------------------------------------------------------
#   Pixels
# ---------------------------------------------------------------------------------------------------------------------


def test_a_frame_is_decoded_when_it_is_looked_at_and_once():
    trace, pipe = made_trace(), Decoder()
    player = LatentPlayer(trace, pipe)
    assert pipe.asked == []
    player.show = "pixels"
    assert pixels(player.picture).shape == (32, 48, 3) and len(pipe.asked) == 1
    assert np.array_equal(pipe.asked[0], trace[0].x_0[:, :1])
    player.step, player.frame, player.view = 3, 2, "sample"
    assert len(pipe.asked) == 4 and np.array_equal(pipe.asked[3], trace[3].sample[:, 2:3])
    assert np.array_equal(pixels(player.picture), Decoder().decode(trace[3].sample[:, 2:3])[0])
    player.view, player.frame, player.step, player.scope = "x_0", 0, 0, "all"  # the same way back
    assert len(pipe.asked) == 4


def test_noise_has_no_pixels():
    player = LatentPlayer(made_trace(), Decoder(), show="pixels")
    player.view = "epsilon"
    assert player.show == "channels" and player.shown["show"] == "channels" and "pixels" in player.shown["reasons"]
    player.view = "x_0"
    assert "pixels" not in player.shown["reasons"]


def test_the_strip_is_decoded_bit_by_bit_from_here_on():
    pipe = Decoder()
    player = LatentPlayer(made_trace(), pipe, show="pixels", step=2)
    assert player.shown["have"] == ["001000"]
    player._handle_custom_msg({"fill": True}, [])
    assert player.shown["have"] == ["111111"]  # in far less than 0.1 s
    player.frame = 1
    assert player.fill_strip(seconds=0) == 4 and player.shown["have"] == ["011000"]
    assert player.fill_strip() == 0 and player.shown["have"] == ["111111"]
    asked = len(pipe.asked)
    assert player.fill_strip() == 0 and asked == 12 == len(pipe.asked)
    player.frame = 2
    player.still()  # decodes for itself; the strip is asked for again all the same
    assert player.shown["have"] == ["001000"]
    player._handle_custom_msg({"fill": True}, [])
    assert player.shown["have"] == ["111111"]
    player.frame = 1
    cells = np.split(pixels(player.strip).astype(float), 6, axis=1)
    for cell, latents in zip(cells, [step.x_0[:, 1:2] for step in made_trace()], strict=True):
        assert np.abs(cell - Decoder().decode(latents)[0]).mean() < 8  # JPEG


def test_what_fails_is_raised_and_told_and_can_be_tried_again():
    pipe = Decoder()
    player = LatentPlayer(made_trace(), pipe, show="pixels")
    pipe.broken = True
    with pytest.raises(MemoryError):
        player.set_state({"step": 2})
    assert player.error == "step 2, frame 0, x_0: MemoryError: no room" and player.shown["step"] == 0
    pipe.broken = False
    player.step = 3
    assert player.error == "" and player.shown["step"] == 3


def test_a_hand_and_a_cell_may_move_it_at_once():
    """JupyterLab's messages arrive in a thread of the kernel's, while a cell runs in another one."""
    trace, pipe = made_trace(), Decoder()
    player, expected = LatentPlayer(trace, pipe, show="pixels"), LatentPlayer(trace, pipe, show="pixels")

    def browser():
        for i in range(60):
            player.set_state({"frame": i % 5})
            player._handle_custom_msg({"fill": True}, [])

    thread = threading.Thread(target=browser)
    thread.start()
    for i in range(60):
        player.step = i % 6
    thread.join()
    expected.step, expected.frame = player.step, player.frame = 4, 3
    assert (player.picture, player.shown["step"]) == (expected.picture, 4) and player.shown["frame"] == 3


def test_the_cache_counts_bytes_and_forgets_what_was_used_longest_ago():
    cache = ByteCache(limit=300)
    for key in "abc":
        cache.get(key, lambda: np.zeros(100, np.uint8))
    cache.get("a", lambda: pytest.fail("it is there"))
    cache.get("d", lambda: np.zeros(150, np.uint8))
    assert (cache.bytes, [key in cache for key in "abcd"]) == (250, [True, False, False, True])
    cache.get("e", lambda: np.zeros(1000, np.uint8))
    assert (cache.bytes, len(cache)) == (1000, 1)


# ---------------------------------------------------------------------------------------------------------------------
#   What it costs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_saved_notebook_stays_small():
    """The longest trace of the largest size: what lies in the notebook's file, base64 and all."""

    class Noise:
        def decode(self, latents):
            return np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)

    player = LatentPlayer(made_trace(steps=100, frames=2, size=(32, 32)), Noise())
    for player.show in ("channels", "pixels"):
        player.fill_strip()
        state = player.get_state(["plan", "shown"])
        size = len(json.dumps(state)) + 4 / 3 * len(player.strip)
        assert size < 200_000, (player.show, size)  # and the picture: here noise, which no PNG makes smaller


MEMORY = """
import itertools, json, sys
import numpy as np
sys.path.insert(0, {tests!r})
from opensora_lite.widgets.player import LatentPlayer
from traces import made_trace

def mebibytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

before = mebibytes("VmRSS")
class Pipe:
    def decode(self, latents):
        return np.zeros((1, 256, 256, 3), np.uint8)

player = LatentPlayer(made_trace(steps=100, frames=16, size=(32, 32)), Pipe())
with_trace = mebibytes("VmRSS")
for player.show in ["channels", "false_color"]:
    for player.frame, player.step in itertools.product(range(16), range(100)):
        assert player.shown["step"] == player.step
player.show = "pixels"
for player.frame in range(16):  # 300 MiB of decoded frames
    assert player.fill_strip() == 0
assert player._decoded.bytes <= 64 * 2**20
print(json.dumps([with_trace - before, mebibytes("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_memory_is_bounded_while_everything_is_scrubbed_through():
    code = MEMORY.format(tests=str(Path(__file__).parents[1]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    trace, peak = json.loads(run.stdout)
    print(f"\nMiB more than before: {trace:.0f} with the trace and a player, {peak:.0f} at most")
    assert peak - trace < 200  # the caches have 80; 300 MiB of frames were decoded


# ---------------------------------------------------------------------------------------------------------------------
#   Without a kernel
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", ["channels", "false_color", "pixels"])
def test_the_still_depends_on_the_state_alone(show):
    def player(step):
        return LatentPlayer(made_trace(size=(8, 8)), Decoder(), made_trace(size=(8, 8), seed=1), show=show, step=step)

    picture, text = player(2).still()
    assert picture.dtype == np.uint8 and picture.shape[1] >= 700 and picture.shape[2] == 3
    assert len(encoded(picture)) < 60_000
    again = player(2).still()
    assert np.array_equal(picture, again[0]) and text == again[1]
    assert not np.array_equal(picture, player(3).still()[0])
    assert "step 3, t = 599" in text and "all 6 steps and 5 frames" in text


def test_notebooks_get_the_still_and_one_line():
    player = LatentPlayer(made_trace(steps=1, frames=1))
    data, _ = player._repr_mimebundle_()
    assert data["text/plain"] == "LatentPlayer(1 step, 1 frame; step 0, frame 0, x_0 as channels)"
    assert "data:image/png;base64," in data["text/html"] and "application/vnd.jupyter.widget-view+json" in data


# ------------------------------------------------------------------------------------------------ Open-Sora 1.2


class ChunkDecoder:
    """Replaces a video VAE: frame i of a chunk is as bright as i, and the latents decoded are kept."""

    def __init__(self):
        self.asked = []

    def decode(self, latents, num_frames):
        self.asked.append((latents.shape[1], num_frames))
        return np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 48, 3), np.uint8)


def test_a_trace_of_velocities_says_so():
    """Its t is a number, its frames are latent frames, and pixels are those of whole chunks."""
    noise, decoder = made_trace(frames=6), ChunkDecoder()
    trace = Trace()
    trace.loops = [replace(noise.loops[0], predicts="velocity", windows=tuple(OPEN_SORA_12.windows(20)))]
    names = {"epsilon": "velocity", "eps_cond": "v_cond", "eps_uncond": "v_uncond"}
    for step, t in zip(noise, np.linspace(1000, 12.34, len(noise)), strict=True):
        moved = {new: getattr(step, old) for old, new in names.items()}
        trace._steps.append(replace(step, timestep=float(t), **moved, **dict.fromkeys(names)))
    player = LatentPlayer(trace, decoder, view="velocity", frame=2)
    assert list(player.plan["views"]) == ["x_t", "x_0", "velocity", "guidance", "sample"]
    assert "velocity" in player.plan["views"]["guidance"][1]
    track = player.plan["tracks"][0]
    assert track["unit"] == "latent frame" and track["held"][:2] == [" (frame 0)", " (frames 1–4)"]
    assert [step[2] for step in track["steps"]][:2] == [1000, 802.5] and track["steps"][-1][2] == 12.3
    snr = [step[3] for step in track["steps"]]
    assert snr == sorted(snr) and snr[1] == pytest.approx(2 * np.log10(0.1975 / 0.8025), abs=0.01)
    np.testing.assert_allclose(player._tracks[0].values(1, "guidance"), trace[1].v_cond - trace[1].v_uncond)
    assert "latent frame 2 (frames 5–8)" in player.still()[1]
    player.view, player.show = "sample", "pixels"
    assert pixels(player.picture).max() == 8  # the last frame that it holds
    player.frame = 5
    assert decoder.asked == [(5, 17), (1, 3)] and pixels(player.picture).max() == 2
    with pytest.raises(OpenSoraError, match="velocities"):
        LatentPlayer(trace, compare=noise)
    with pytest.raises(OpenSoraError, match="view"):
        player.view = "epsilon"
