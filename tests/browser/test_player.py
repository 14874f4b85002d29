"""LatentPlayer in JupyterLab: scrubbed, played, compared; and what the page shows is what the trace holds."""

from pathlib import Path

import numpy as np
import pytest

# A car that was made is a boat then: frames 0-1 are given, 2-3 edited, and the others made.
MADE = """
import numpy as np
from opensora_lite import OpenSora, Trace
from opensora_lite.widgets import LatentPlayer

pipe, trace = OpenSora.from_pretrained("tiny"), Trace()
short = dict(num_frames=8, image_size=(64, 64), seed=0)
car = pipe("a red car driving right on the ocean at sunset", num_sampling_steps=4, **short)
given = dict(references=[car.frames[:4]], mask_strategy="0,0,0,0,2;0,0,2,2,2,0.4")
_ = pipe("a blue boat sailing right", trace=trace, num_sampling_steps=12, **given, **short)
player = LatentPlayer(trace, pipe, step=8, frame=3)
player
"""

SYNTHETIC = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from opensora_lite.widgets.player import LatentPlayer
from traces import Decoder, made_trace
"""


@pytest.fixture
def player(lab):
    return Player(lab)


class Player:
    """What a person sees of the widget on the page, and does with it."""

    def __init__(self, lab):
        self.lab, self.page = lab, lab.page

    def wait(self, shown: str) -> None:
        """Until the pictures of a state are drawn: "step frame view show", or its beginning."""
        self.page.locator(f'.osl-player[data-shown^="{shown} "], .osl-player[data-shown="{shown}"]').wait_for()

    def slider(self, name: str):
        return self.page.get_by_role("slider", name=name, exact=True)

    def choose(self, name: str) -> None:
        self.page.locator("label", has=self.page.get_by_role("radio", name=name)).click()

    def slide(self, name: str, value: int) -> None:
        """Drag the thumb by the mouse."""
        slider = self.slider(name)
        slider.evaluate("(slider) => slider.scrollIntoView({ block: 'center' })")  # the status bar may cover it
        box, most, thumb = slider.bounding_box(), int(slider.get_attribute("max")), 16
        places = [
            box["x"] + thumb / 2 + (box["width"] - thumb) * at / most for at in (int(slider.input_value()), value)
        ]
        self.page.mouse.move(places[0], box["y"] + box["height"] / 2)
        self.page.mouse.down()
        self.page.mouse.move(sum(places) / 2, box["y"] + box["height"] / 2)
        self.page.mouse.move(places[1], box["y"] + box["height"] / 2)
        self.page.mouse.up()

    def canvases(self, selector: str) -> np.ndarray:
        """What canvases hold: uint8 [count, height, width, 3], all of one size."""
        data = self.page.evaluate(
            """(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
                const { width, height } = canvas;
                return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
            })""",
            selector,
        )
        return np.stack([np.uint8(numbers).reshape(height, width, 4)[..., :3] for height, width, numbers in data])

    def levels(self, expression: str) -> np.ndarray:
        """What numbers of the kernel should look like, 0 … 255, in the player's scale."""
        numbers = np.array(self.lab.python(f"({expression}).tolist()"))
        return 127.5 + 127.5 * np.clip(numbers / self.lab.python("player.scale"), -1, 1)

    def shows_channels_of(self, expression: str) -> None:
        panels = self.canvases(".osl-player-channels canvas")
        assert (panels == panels[..., :1]).all()  # grey
        assert np.abs(panels[..., 0] - self.levels(expression)).max() <= 1


def test_scrub_by_mouse_and_keyboard_and_find_it_again(lab, player):
    lab.open(MADE)
    player.wait("8 3 x_0 channels")
    player.shows_channels_of("trace[8].x_0[:, 3]")

    # by mouse: both sliders, the views, the film strip
    player.slide("Step", 5)
    player.wait("5 3")
    player.slide("Frame", 6)
    player.wait("5 6 x_0")
    assert lab.python("[player.step, player.frame]") == [5, 6]
    player.shows_channels_of("trace[5].x_0[:, 6]")
    player.choose("guidance")
    player.wait("5 6 guidance")
    player.shows_channels_of("trace[5].eps_cond[:, 6] - trace[5].eps_uncond[:, 6]")
    player.choose("all frames")
    lab.wait_for("player.scope", "all")
    player.page.get_by_role("option", name="step 9, t = 272").click()
    player.wait("8 6 guidance channels")

    # by keyboard: the same
    player.slider("Step").press("Home")
    player.wait("0 6")
    player.slider("Frame").press("ArrowLeft")
    player.wait("0 5 guidance")
    player.page.get_by_role("radio", name="guidance").press("ArrowLeft")
    player.wait("0 5 epsilon channels")
    player.shows_channels_of("trace[0].epsilon[:, 5]")
    player.page.get_by_role("listbox", name="Film strip").press("End")
    player.wait("11 5")
    player.page.get_by_role("radio", name="channels").press("ArrowRight")
    player.wait("11 5 epsilon false_color")
    (shown,) = player.canvases(".osl-player-panels > div:last-child canvas")
    assert np.abs(shown.transpose(2, 0, 1) - player.levels("trace[11].epsilon[:3, 5]")).max() <= 1
    assert player.slider("Step").get_attribute("aria-valuetext").startswith("12 · t = 0 · SNR 10,")

    # from Python; and the mask says what it should
    lab.run("player.step, player.frame, player.view = 2, 1, 'sample'")
    player.wait("2 1 sample")
    mask = player.page.get_by_role("img", name="frame mask")
    words = "frames 0 to 1 given, waiting; frames 2 to 3 edited 40 %, waiting; frames 4 to 7 generated"
    assert mask.get_attribute("aria-label") == f"frame mask: {words}"

    # pixels: what the model decodes, and the film strip fills itself
    player.choose("pixels")
    player.wait("2 1 sample pixels")
    (shown,) = player.canvases(".osl-player-panels > div:last-child canvas")
    assert shown.tolist() == lab.python("pipe.decode(trace[2].sample[:, 1:2])[0].tolist()")
    lab.wait_for("player.shown['have'][0].count('0')", 0)
    player.page.wait_for_function("!document.querySelector('.osl-player [data-empty]')")
    thumbnails = player.canvases(".osl-player-film canvas").astype(float)
    expected = np.array(lab.python("pipe.decode(np.stack([s.sample[:, 1] for s in trace], 1)).mean((1, 2)).tolist()"))
    assert np.abs(thumbnails.mean((1, 2)) - expected).max() < 8  # JPEG, and smaller

    # what fails is said, and can be tried again; so is a model that takes its time
    lab.run("import time; decode, pipe.decode = pipe.decode, lambda latents: [][0]")
    note = player.page.locator(".osl-player-note")
    player.slide("Frame", 2)
    note.get_by_text("step 2, frame 2, sample: IndexError: list index out of range").wait_for()
    lab.run("pipe.decode = lambda latents: (time.sleep(2.5), decode(latents))[1]")
    player.slide("Frame", 3)
    note.get_by_text("Waiting for the kernel").wait_for()
    player.wait("2 3 sample pixels")
    assert note.inner_text() == "The latent that came out."
    lab.run("pipe.decode, player.frame = decode, 1")

    player.choose("guidance")  # has none: the player goes back to channels
    player.wait("2 1 guidance channels")
    assert player.page.get_by_role("radio", name="pixels").is_disabled()
    assert "makes pixels of latents" in note.inner_text()

    # a reload finds the state, and it goes on from there
    lab.save()
    lab.load()
    player.wait("2 1 guidance channels")
    player.shows_channels_of("trace[2].eps_cond[:, 1] - trace[2].eps_uncond[:, 1]")
    player.slider("Step").press("End")
    player.wait("11 1 guidance channels")

    assert lab.axe() == []
    lab.run("player.step, player.frame, player.view = 8, 3, 'x_0'")
    player.wait("8 3 x_0 channels")
    lab.shots("player")


def test_two_traces_play_side_by_side(lab, player):
    lab.open(
        SYNTHETIC + "trace, other = made_trace(30, 16, (32, 32), loops=2), made_trace(10, 16, (32, 32), guided=False)\n"
        "player = LatentPlayer(trace, compare=other)\nplayer"
    )
    player.wait("0 0 x_0 channels")
    page = player.page

    # what is not possible says why
    assert page.get_by_role("radio", name="guidance").is_disabled()
    note = page.locator(".osl-player-note").inner_text()
    assert "Compare was made without guidance (guidance_scale=1)." in note and "LatentPlayer(trace, pipe)" in note

    # the second trace stands at the nearest timestep
    player.slide("Step", 13)
    player.wait("13 0")
    at = lab.python("player.shown['at'][1]")
    assert at == lab.python("min(range(10), key=lambda i: abs(other[i].timestep - trace[13].timestep))")
    page.get_by_role("listbox", name="second trace").press("ArrowRight")  # and leads, where it is moved
    lab.wait_for("player.shown['at'][1]", at + 1)
    player.wait(str(lab.python("player.step")))
    panels = player.canvases(".osl-player-stage:nth-child(2) .osl-player-channels canvas")
    assert np.abs(panels[..., 0] - player.levels(f"other[{at + 1}].x_0[:, 0]")).max() <= 1

    # frames play in a circle until paused; steps play to the end
    lab.run("player.step, player.frame, player.rate = 50, 14, 24")
    player.wait("50 14")
    page.get_by_role("button", name="Play frames").click()
    for frame in (15, 0, 1):
        player.wait(f"50 {frame}")
    page.get_by_role("button", name="Pause").press("Space")
    page.get_by_role("button", name="Play steps").press("Space")
    player.wait("59")
    page.get_by_role("button", name="Play steps").wait_for()
    assert page.get_by_role("button", name="Pause").count() == 0
    stopped = lab.python("[player.step, player.frame]")
    page.wait_for_timeout(200)
    assert lab.python("[player.step, player.frame]") == stopped and stopped[0] == 59

    # a fast hand: the newest step is the one that is drawn in the end
    page.evaluate(
        """() => {
            const slider = document.querySelector(".osl-player input[type=range]");
            for (slider.value = 0; slider.value < 30; slider.value++) slider.dispatchEvent(new Event("input"));
        }"""
    )
    player.wait("29")

    assert lab.axe() == []
    lab.shots("player_compare")
