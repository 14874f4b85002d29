"""MaskTimeline in JupyterLab: dragged with the mouse, moved with the keyboard, typed."""

import pytest

OPEN = """
import numpy as np
from opensora_lite.liteworld import world
from opensora_lite.widgets import MaskTimeline

clip = world.render(world.sample_scene(np.random.default_rng(3)), 16, 64, 64, 24)
timeline = MaskTimeline({num_frames}, [clip[0], clip], {strategy!r})
timeline
"""


def open_timeline(lab, strategy=None, num_frames=16):
    lab.open(OPEN.format(num_frames=num_frames, strategy=strategy))
    lab.page.locator(".osl-timeline").wait_for()


def middle(lab, selector):
    locator = lab.page.locator(selector).first
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(lab, start, end, steps=8):
    """From one place to another, each a selector or (x, y)."""
    start, end = (middle(lab, place) if isinstance(place, str) else place for place in (start, end))
    lab.page.mouse.move(*start)
    lab.page.mouse.down()
    lab.page.mouse.move(*end, steps=steps)
    lab.page.mouse.up()


def palette(reference, frame):
    return f'[data-key="palette {reference} {frame}"]'


def cell(frame, loop=0):
    return f'[data-key="cell {loop} {frame}"]'


def segment(index):
    return f'[data-key="segment {index}"]'


def test_mouse(lab):
    open_timeline(lab)
    # a picture onto the first frame, and frames 4-7 of the clip onto frames 10-13
    drag(lab, palette(0, 0), cell(0))
    lab.wait_for("timeline.text", "0")
    lab.page.locator(palette(1, 4)).click()
    lab.page.locator(palette(1, 7)).click(modifiers=["Shift"])
    drag(lab, palette(1, 4), cell(10))
    lab.wait_for("timeline.text", "0;0,1,4,10,4")
    # the whole segment two frames back; then its end as far as it goes: not beyond the video
    x, y = middle(lab, segment(1))
    width = lab.page.locator(cell(0)).bounding_box()["width"]
    drag(lab, (x, y), (x - 2 * width, y))
    lab.wait_for("timeline.text", "0;0,1,4,8,4")
    drag(lab, f"{segment(1)} .osl-end", (x + 30 * width, y))
    lab.wait_for("timeline.text", "0;0,1,4,8,8")
    # its start: not beyond the first frame of the reference
    drag(lab, f"{segment(1)} .osl-start", (x - 30 * width, y))
    lab.wait_for("timeline.text", "0;0,1,0,4,12")
    # how much noise covers it
    box = lab.page.locator(segment(1)).bounding_box()
    drag(lab, f"{segment(1)} .osl-ratio", (box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.6))
    lab.wait_for("timeline.strategy.segments[1].edit_ratio", 0.4)
    cover = lab.page.locator(f"{segment(1)} .osl-noise").bounding_box()
    assert cover["height"] / (box["height"] - 6) == pytest.approx(0.4, abs=0.02)
    # undo, redo, delete
    lab.page.get_by_role("button", name="Undo").click()
    lab.wait_for("timeline.text", "0;0,1,0,4,12")
    lab.page.get_by_role("button", name="Redo").click()
    lab.wait_for("timeline.text", "0;0,1,0,4,12,0.4")
    lab.page.get_by_role("button", name="Delete", exact=True).click()
    lab.wait_for("timeline.text", "0")
    # a drag that is let go elsewhere, or ended with Escape, changes nothing
    drag(lab, palette(0, 0), (5, 500))
    lab.page.mouse.move(*middle(lab, segment(0)))
    lab.page.mouse.down()
    lab.page.mouse.move(700, 300, steps=3)
    lab.page.keyboard.press("Escape")
    lab.page.mouse.up()
    assert lab.python("timeline.text") == "0"
    # what Python sets is seen
    lab.run("timeline.strategy = '0,1,0,0,16,0.6'")
    lab.page.locator(segment(0)).get_by_text("E 60 %").wait_for()
    lab.shots("timeline")


def test_typing_presets_and_reload(lab):
    open_timeline(lab, "0")
    field = lab.page.get_by_label("Mask strategy")
    # an error while typing, beside the field; the strategy stays
    field.fill("0;0,1,0,-1,20")
    lab.page.get_by_text("length must be at most 1, not 20").wait_for()
    field.press("Enter")
    assert lab.python("timeline.text") == "0"
    assert field.get_attribute("aria-invalid") == "true"
    assert field.input_value() == "0;0,1,0,-1,20"
    field.fill("0; 0,1,0,-1,1")
    field.press("Enter")
    lab.wait_for("timeline.text", "0;0,1,0,-1")
    assert field.input_value() == "0;0,1,0,-1"
    assert field.get_attribute("aria-invalid") is None
    lab.page.get_by_text("frame 15: conditioning, frame 0 of reference 1").wait_for()
    for name, text in [
        ("Text", ""),
        ("Image", "0"),
        ("Extend", "0,1,-4,0,4"),
        ("Edit", "0,1,0,0,all,0.4"),
        ("Connect", "0;0,1,0,-1"),
    ]:
        lab.page.get_by_role("button", name=name, exact=True).click()
        lab.wait_for("timeline.text", text)
    assert lab.axe() == []
    # several loops as rows; then the page is loaded anew and finds all of it
    lab.run("timeline.change(loops=2, condition_frames=4)")
    drag(lab, palette(2, 0), cell(12, loop=0))  # the clip of loop 0 cannot be part of loop 0
    drag(lab, palette(2, 0), cell(12, loop=1))
    lab.wait_for("timeline.text", "0;0,1,0,-1;1,2,0,12")
    lab.save()
    lab.load()
    lab.page.locator(segment(2)).wait_for()
    assert lab.page.get_by_label("Mask strategy").input_value() == "0;0,1,0,-1;1,2,0,12"
    drag(lab, segment(2), cell(8, loop=1))
    lab.wait_for("timeline.text", "0;0,1,0,-1;1,2,0,8")
    lab.shots("timeline_loops")


def test_keyboard(lab):
    open_timeline(lab)
    press = lab.page.keyboard.press
    status = lab.page.locator(".osl-timeline [role=status]")
    # "connect": the picture is the first frame, the clip's last frame the last
    lab.page.get_by_role("button", name="Edit", exact=True).focus()
    press("Tab")
    assert lab.page.evaluate("document.activeElement.dataset.key") == "palette 0 0"
    press("Enter")
    assert "Picked frame 0 of reference 0" in status.inner_text()
    press("Enter")
    lab.wait_for("timeline.text", "0")
    lab.page.locator(palette(1, 0)).focus()
    press("End")
    press("Enter")
    press("End")
    assert lab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "frame 15: generated"
    press("Enter")
    lab.wait_for("timeline.text", "0;0,1,15,15")
    # the new segment has the focus: move, lengthen at both ends, edit, undo, delete
    lab.page.wait_for_function("document.activeElement.dataset.key === 'segment 1'")
    for key, text in [
        ("ArrowLeft", "0;0,1,15,14"),
        ("Alt+ArrowLeft", "0;0,1,14,13,2"),
        ("Shift+ArrowLeft", "0;0,1,14,13"),
        ("Shift+ArrowRight", "0;0,1,14,13,2"),
        ("ArrowUp", "0;0,1,14,13,2,0.05"),
        ("Control+z", "0;0,1,14,13,2"),
        ("Control+Shift+z", "0;0,1,14,13,2,0.05"),
        ("Delete", "0"),
    ]:
        press(key)
        lab.wait_for("timeline.text", text)
    assert status.inner_text() == "Segment 2 is deleted"
    # exact numbers
    lab.page.locator(segment(0)).focus()
    number = lab.page.get_by_role("spinbutton", name="from frame", exact=True)
    number.fill("7")
    number.press("Enter")
    lab.wait_for("timeline.text", "0,0,0,7")
    number.fill("99")
    number.press("Enter")
    lab.wait_for("timeline.text", "0,0,0,15")


def test_a_drag_over_64_frames(lab):
    open_timeline(lab, "0,1,0,0,8", num_frames=64)
    x, y = middle(lab, segment(0))
    width = lab.page.locator(cell(0)).bounding_box()["width"]
    lab.page.mouse.move(x, y)
    lab.page.mouse.down()
    for i in range(60):
        lab.page.mouse.move(x + width * i * 0.7, y)
    lab.page.mouse.up()
    lab.wait_for("timeline.strategy.segments[0].target_start", 41)


OPEN_12 = """
from opensora_lite.generations import OPEN_SORA_12
timeline = MaskTimeline(51, [clip[0], clip], "0", generation=OPEN_SORA_12)
timeline
"""


def test_latent_frames_and_their_frames(lab):
    """Open-Sora 1.2: a cell is a latent frame, its frames stand above it, and segments snap to chunks."""
    lab.open(OPEN.format(num_frames=16, strategy=None).replace("timeline\n", "") + OPEN_12)
    lab.page.locator(".osl-timeline").wait_for()
    ruler = lab.page.locator(".osl-ruler span")
    assert [ruler.nth(i).inner_text() for i in (0, 1, 5, 14)] == ["0", "1–4", "17", "47–50"]
    # above its cell, in the same column; a chunk of 17 frames begins with a line
    above, below = ruler.nth(14).bounding_box(), lab.page.locator(cell(14)).bounding_box()
    assert above["x"] == pytest.approx(below["x"], abs=1) and above["y"] < below["y"]
    chunks = lab.page.locator(".osl-cell.osl-chunk")
    assert [chunks.nth(i).get_attribute("data-frame") for i in range(chunks.count())] == ["5", "10"]
    assert lab.page.locator(cell(3)).get_attribute("aria-label") == "latent 3 (frames 9–12): generated"
    assert lab.page.locator(palette(1, 2)).get_attribute("aria-label") == "latent 2 (frames 8–11)"
    # dropped in the middle of a chunk, it is where the model puts it; the keyboard moves it by chunks
    drag(lab, palette(1, 0), cell(12))
    lab.wait_for("timeline.text", "0;0,1,0,12")
    lab.page.locator(f'{segment(1)}[aria-label^="Segment 2: latent 10 (frame 34)"]').wait_for()
    lab.page.get_by_text("begins at latent 10 (frame 34) of the video, not at latent 12").wait_for()
    lab.page.locator(segment(1)).focus()
    lab.page.keyboard.press("ArrowLeft")
    lab.wait_for("timeline.text", "0;0,1,0,5")
    # a drag that changes nothing leaves the segment where it is
    start = lab.page.locator(segment(1)).bounding_box()["x"]
    width = lab.page.locator(cell(0)).bounding_box()["width"]
    for _ in range(2):
        x, y = middle(lab, segment(1))
        drag(lab, (x, y), (x + width, y))
        lab.wait_for("timeline.text", "0;0,1,0,6")
        lab.page.wait_for_function(
            "([key, x]) => Math.abs(document.querySelector(key).getBoundingClientRect().x - x) < 3",
            arg=[segment(1), start],
        )
    assert lab.axe() == []
    lab.shots("timeline_latents")
