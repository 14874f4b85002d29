"""Record timeline.gif, the MaskTimeline widget of README.md, in a real JupyterLab in Chromium.

    python notebooks/assets/make_timeline.py

The browser is driven by the fixtures of tests/browser/conftest.py, so this file is a test that pytest runs.
"""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ASSETS = Path(__file__).parent
CELL = """
from opensora_lite import read_video
from opensora_lite.widgets import MaskTimeline
from PIL import Image

timeline = MaskTimeline(16, [r"{assets}/wave.png", r"{assets}/car.mp4"])
timeline
"""
WIDTH = 1080  # of the window; the widget fills it
STEPS = 7  # pictures of one movement
COLORS = 64


class Recorder:
    """Pictures of the widget with the mouse drawn on them, each with the milliseconds that it stays."""

    def __init__(self, lab):
        self.lab, self.mouse, self.pictures, self.times = lab, (WIDTH * 0.55, 40.0), [], []

    def box(self, key: str) -> dict:
        return self.lab.page.locator(f'[data-key="{key}"]').first.bounding_box()

    def middle(self, key: str) -> tuple[float, float]:
        box = self.box(key)
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def picture(self, milliseconds: int = 80) -> None:
        widget = self.lab.page.locator(".osl-timeline").first
        image = Image.open(io.BytesIO(widget.screenshot(animations="disabled"))).convert("RGB")
        box = widget.bounding_box()
        x, y = self.mouse[0] - box["x"], self.mouse[1] - box["y"]
        arrow = [(0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (13, 12)]
        ImageDraw.Draw(image).polygon([(x + a, y + b) for a, b in arrow], fill="black", outline="white")
        self.pictures.append(image)
        self.times.append(milliseconds)

    def move(self, target: tuple[float, float], milliseconds: int = 60) -> None:
        start = self.mouse
        for i in range(1, STEPS + 1):
            share = i / STEPS
            self.mouse = tuple(a + (b - a) * share for a, b in zip(start, target, strict=True))
            self.lab.page.mouse.move(*self.mouse)
            self.picture(milliseconds)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.move(start)
        self.lab.page.mouse.down()
        self.move(end, 80)
        self.lab.page.mouse.up()
        self.picture(900)


def test_record(lab):
    lab.page.set_viewport_size({"width": WIDTH, "height": 1100})
    lab.open(CELL.format(assets=ASSETS.as_posix()))
    lab.page.locator(".osl-timeline").wait_for()
    lab.command("application:toggle-left-area")
    recorder = Recorder(lab)
    recorder.picture(900)
    # a picture onto the first frame
    recorder.drag(recorder.middle("palette 0 0"), recorder.middle("cell 0 0"))
    # frames 4 to 7 of the clip onto frames 8 to 11
    recorder.move(recorder.middle("palette 1 4"))
    lab.page.mouse.click(*recorder.mouse)
    recorder.move(recorder.middle("palette 1 7"))
    lab.page.keyboard.down("Shift")
    lab.page.mouse.click(*recorder.mouse)
    lab.page.keyboard.up("Shift")
    recorder.picture(400)
    recorder.drag(recorder.middle("palette 1 4"), recorder.middle("cell 0 8"))
    lab.wait_for("timeline.text", "0;0,1,4,8,4")
    # its end to the end of the video
    box = lab.page.locator('[data-key="segment 1"] .osl-end').bounding_box()
    end = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    cell = recorder.box("cell 0 0")["width"]
    recorder.drag(end, (end[0] + 4 * cell, end[1]))
    # its edit ratio
    box = recorder.box("segment 1")
    ratio = lab.page.locator('[data-key="segment 1"] .osl-ratio').bounding_box()
    handle = (ratio["x"] + ratio["width"] / 2, ratio["y"] + ratio["height"] / 2 - 3)  # its lower half is cut off
    recorder.drag(handle, (handle[0], box["y"] + box["height"] * 0.6))
    recorder.picture(1800)
    save(recorder, Path(os.environ["TIMELINE_GIF"]))
    assert "0.4" in lab.python("timeline.text")


def save(recorder: Recorder, path: Path) -> None:
    height = max(picture.height for picture in recorder.pictures)
    pictures = []
    for picture in recorder.pictures:
        page = Image.new("RGB", (picture.width, height), "white")
        page.paste(picture)
        pictures.append(page)
    palette = pictures[-1].quantize(COLORS, dither=Image.Dither.NONE)
    first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pictures)
    first.save(path, save_all=True, append_images=others, duration=recorder.times, loop=0, optimize=True)


if __name__ == "__main__":
    os.environ["TIMELINE_GIF"] = sys.argv[1] if len(sys.argv) > 1 else str(ASSETS / "timeline.gif")
    sys.path.insert(0, str(ASSETS.parents[1] / "tests"))
    sys.exit(pytest.main(["-q", "-p", "browser.conftest", "-p", "no:cacheprovider", __file__]))
