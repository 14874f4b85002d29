"""TaskLab in JupyterLab: videos are made by pressing a button, and what is in the way is said."""

import re

LAB = """
import numpy as np
from opensora_lite import OpenSora, Video
from opensora_lite.liteworld import world
from opensora_lite.widgets import TaskLab

pipe = OpenSora.from_pretrained("tiny")
clip = Video(world.render(world.sample_scene(np.random.default_rng(5)), 8, 64, 64))
lab = TaskLab(pipe, [clip, clip.frames[3]], num_frames=8, num_sampling_steps=8)
lab
"""
PLAYS = "(v) => !v.paused && v.readyState >= 2 && v.videoWidth === 64 && v.currentTime > 0.05"


def open_lab(lab, cell: str = LAB):
    """The page with a TaskLab in it, once its timeline is there too."""
    lab.open(cell)
    lab.page.get_by_label("Mask strategy").wait_for()
    return lab.page


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def code(page, name: str = "Python") -> str:
    return page.get_by_role("region", name=name).text_content()


def generated(lab, number: int) -> None:
    lab.page.locator(".osl-lab-progress", has_text=f"Done: result {number} in").wait_for()


def plays(lab, number: int, pane: int = 0) -> None:
    """Wait until a result plays in one of the two panes: its clock moves."""
    video = lab.page.locator(".osl-lab-pane").nth(pane).locator(f'video[aria-label^="Result {number}:"]')
    video.scroll_into_view_if_needed()  # a browser plays what is seen
    lab.page.wait_for_function(f"(v) => ({PLAYS})(v)", arg=video.element_handle())


def test_generate_compare_restore_and_reload(lab):
    page = open_lab(lab)
    first = code(page)
    button(page, "Generate").click()
    generated(lab, 1)
    plays(lab, 1)
    assert lab.python("(len(lab.results), len(lab.results[0].video), lab.state)") == [1, 8, "done"]

    # another one, with what the timeline and the form were changed to
    prompt = page.get_by_label("Prompt")
    prompt.fill("a green ball bouncing on sand")
    page.get_by_role("status", name="Notes").get_by_text("bouncing").wait_for()  # the small model doesn't know it
    page.get_by_label("Frames", exact=True).fill("6")
    button(page, "Another seed").click()
    button(page, "Image").click()
    page.get_by_label("Sampler").select_option("ddim")
    button(page, "Generate").click()
    generated(lab, 2)
    plays(lab, 2)
    asked = "lab.results[1].request"
    assert lab.python(
        f"[{asked}.prompt, {asked}.settings.num_frames, {asked}.settings.sampler, str({asked}.strategy)]"
    ) == [
        "a green ball bouncing on sand",
        6,
        "ddim",
        "0",
    ]
    assert lab.python(f"{asked}.settings.seed != 42 and {asked}.settings.seed == lab.form['seed']")

    # the two side by side, and the first one's settings back
    button(page, "Compare result 1").click()
    plays(lab, 1, pane=1)
    button(page, "Show result 1").click()
    plays(lab, 1)
    button(page, "Restore result 1").click()
    page.wait_for_function("(text) => document.querySelector('.osl-lab-pre').textContent === text", arg=first)
    assert prompt.input_value() == "a red car driving right on the ocean at sunset"
    assert lab.python("lab.timeline.text") == ""
    assert lab.axe() == []

    # the page is opened again
    prompt.fill("a blue boat")
    lab.wait_for("lab.form['prompt']", "a blue boat")
    lab.save()
    lab.load()
    plays(lab, 1)
    plays(lab, 1, pane=1)
    assert page.get_by_label("Prompt").input_value() == "a blue boat"
    assert page.get_by_role("button", name=re.compile("^Show result")).count() == 2
    assert '"a blue boat"' in code(page)
    button(page, "Generate").click()
    generated(lab, 3)
    plays(lab, 3)
    lab.shots("lab")


def test_cancel_errors_and_a_kernel_that_ends(lab):
    page = open_lab(lab)
    steps = page.get_by_label("Steps")
    steps.fill("300")
    button(page, "Generate").click()
    page.locator(".osl-lab-preview:not([hidden])").wait_for()
    assert re.match(r"Step \d+ of 300, [\d.]+ s, [\d.]+ s left", page.locator(".osl-lab-progress").text_content())
    assert button(page, "Generate").get_attribute("aria-disabled") == "true"
    button(page, "Cancel").click()
    page.locator(".osl-lab-progress", has_text=re.compile("^Cancelled$")).wait_for()
    assert lab.python("(lab.state, len(lab.results))") == ["cancelled", 0]
    assert page.locator(".osl-lab-preview").is_hidden()
    steps.fill("4")
    button(page, "Generate").click()
    generated(lab, 1)
    plays(lab, 1)

    # errors are shown, and Generate moves the focus to them
    place = "document.querySelector('.osl-lab-stage').offsetTop"
    before = page.evaluate(place)
    page.get_by_label("Prompt").fill("")
    page.get_by_role("alert").filter(has_text="the prompt is empty: say what the video shows").first.wait_for()
    assert page.evaluate(place) == before  # nothing has jumped
    assert "Correct the errors" in code(page) and button(page, "Copy Python").is_disabled()
    button(page, "Generate").click()
    page.wait_for_function("document.activeElement.matches('textarea[aria-invalid]')")
    page.get_by_label("Prompt").fill("a yellow sun")
    page.get_by_label("Guidance").fill("")
    page.get_by_label("Guidance").blur()
    page.get_by_role("alert").filter(has_text="Guidance: guidance_scale must be a number").wait_for()
    assert page.evaluate(place) == before
    page.get_by_label("Guidance").fill("3.5")
    page.get_by_label("Guidance").blur()
    lab.wait_for("lab.errors", {})
    page.get_by_label("Mask strategy").fill("0,9")
    page.get_by_label("Mask strategy").press("Enter")
    lab.wait_for("list(lab.errors)", ["timeline"])
    button(page, "Generate").click()
    page.get_by_role("alert").filter(has_text="correct or undo it").first.wait_for()
    page.get_by_label("Mask strategy").fill("0")
    page.get_by_label("Mask strategy").press("Enter")
    lab.wait_for("lab.errors", {})

    # unexpected exceptions
    lab.run("pipe.decode, decode = None, pipe.decode; pipe.generate, generate = None, pipe.generate")
    button(page, "Generate").click()
    page.get_by_role("alert").filter(has_text="TypeError: 'NoneType' object is not callable").wait_for()
    lab.run("pipe.decode, pipe.generate = decode, generate")
    button(page, "Generate").click()
    generated(lab, 2)

    # no kernel
    lab.close()
    button(page, "Generate").click()
    page.get_by_role("alert").filter(has_text="it has ended: then run the cell again").wait_for()


def test_keyboard_and_copies(lab):
    page = open_lab(lab)
    prompt = page.get_by_label("Prompt")
    prompt.focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a dd boat")  # in a notebook, two d delete the cell
    page.keyboard.press("Tab")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("4")  # frames
    reach(page, "Steps")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("300")
    reach(page, "Generate")
    page.keyboard.press("Enter")
    lab.wait_for("lab.state", "running")
    reach(page, "Cancel")
    page.keyboard.press("Space")
    lab.wait_for("[lab.state, lab.failure]", ["cancelled", ""])
    reach(page, "Steps", back=True)
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("3")
    reach(page, "Prompt", back=True)
    page.keyboard.press("ControlOrMeta+Enter")
    generated(lab, 1)
    plays(lab, 1)
    assert page.get_by_role("status").filter(has_text="Done: result 1 in").count() == 1
    assert lab.python("[lab.form[n] for n in ('prompt', 'num_frames', 'num_sampling_steps')]") == ["a dd boat", 4, 3]
    for name in ("Compare result 1", "Restore result 1"):
        reach(page, name)
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="The form has the request of result 1").wait_for()

    # Copy: into the clipboard, or, where the browser forbids it, selected
    reach(page, "Copy Python", back=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.keyboard.press("Enter")
    page.get_by_text("Copied", exact=True).wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == lab.python("lab.python_code") and "num_sampling_steps=3" in text
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    button(page, "Copy Command line").click()
    page.get_by_text("Selected: press Ctrl+C").wait_for()
    assert page.evaluate("getSelection().toString()") == lab.python("lab.command_line")


def reach(page, name: str, back: bool = False) -> None:
    """Press Tab until the focus is on the control of this name."""
    for _ in range(80):
        focused = page.evaluate(
            "(e => e.getAttribute('aria-label') ?? e.labels?.[0]?.textContent ?? e.textContent)(document.activeElement)"
        )
        if focused == name:
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"Tab does not reach {name}")
