"""AttentionView in a real browser: what is painted is what Python says, by mouse and by keyboard."""

import json

import nbformat
import numpy as np
import pytest
from matplotlib import colormaps

MAKE = """
import numpy as np
from opensora_lite.trace import Trace, TraceLoop, TraceStep
from opensora_lite.widgets.attention import AttentionView, words_of

tokens = ["▁a", "▁", "re", "d", "▁car", "▁d", "ri", "v", "in", "g", "▁at", "▁sunset", "</s>"]
random, heads, T, h, w = np.random.default_rng(0), 3, 8, 4, 4
S, L = h * w, len(tokens)
shapes = {"cross_attn": (heads, T, h, w, L), "attn": (heads, T, S, S), "attn_temp": (heads, S, T, T)}
names = [(b, kind) for b in (1, 3) for kind in shapes if (b, kind) != (3, "attn_temp")]

def attention(kind):
    scores = np.exp(2 * random.normal(size=shapes[kind]))
    return (scores / scores.sum(-1, keepdims=True)).astype("float32")

trace = Trace()
trace.loops.append(TraceLoop("a red car driving at sunset", tokens, np.ones(T, "float32")))
for number in (1, 2, 3):
    recorded = {f"blocks.{b}.{kind}": attention(kind) for b, kind in names}
    y, x = np.mgrid[:8, :8]
    x_0 = np.stack([np.hypot(x - t, y - 4) for t in range(T)])[None].repeat(4, 0).astype("float32")
    trace._steps.append(TraceStep(0, number, 999 - 333 * number, np.ones(T, bool), x_0=x_0, attention=recorded))
"""

SMALL = """
from opensora_lite import OpenSora, Trace
from opensora_lite.widgets.attention import AttentionView

pipe = OpenSora.from_pretrained("tiny")
trace = Trace(attention=["blocks.3.cross_attn", "blocks.3.attn", "blocks.3.attn_temp"], steps=[4, 8, 12])
_ = pipe(
    "a red car driving right on the ocean at sunset", num_frames=16, image_size=(64, 64),
    num_sampling_steps=12, sampler="ddim", guidance_scale=4.0, trace=trace,
)
view = AttentionView(trace, pipe, word="car", head=2, position=(8, 2, 1))
view
"""


def pixels(locator) -> np.ndarray:
    """What stands in a canvas, uint8 [height, width, 4]."""
    values, height, width = locator.evaluate(
        "c => [[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data], c.height, c.width]"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)


def colors(values) -> np.ndarray:
    """Values as the heat shows them, uint8 [..., 4], from 0 to their largest; a quarter opaque, to wholly."""
    values = np.array(values) / np.max(values)
    painted = colormaps["viridis"](values, bytes=True)
    painted[..., 3] = 64 + 191 * values
    return painted


def same_colors(a, b) -> bool:
    """Up to the neighbouring one of the 256 colours, and to what a canvas rounds that multiplies colours by opacity."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 6


class View:
    """What stands on the page."""

    def __init__(self, lab):
        self.lab, self.root = lab, lab.page.locator(".osl-attention")
        self.words = self.root.get_by_role("listbox", name="Words of the caption")
        self.frames = self.root.get_by_role("listbox", name="Frames")
        self.position = self.root.get_by_role("gridcell")

    def word(self, number):
        return self.words.get_by_role("option").nth(number)

    def frame(self, number):
        return self.frames.get_by_role("option").nth(number)

    def click_position(self, frame, row, column):
        screen = self.frame(frame).locator(".osl-attention-screen")
        box = screen.bounding_box()
        screen.click(position={"x": (column + 0.5) * box["width"] / 4, "y": (row + 0.5) * box["height"] / 4})

    def answered(self, **choices):
        """Wait until the page shows the result for these choices."""
        for name, value in choices.items():
            self.lab.wait_for(f"view.result['choices'][{name!r}]", value)
        self.lab.page.wait_for_function("""() => !document.querySelector('.osl-attention').hasAttribute('aria-busy')""")

    def heat(self) -> np.ndarray:
        canvases = self.frames.locator(".osl-attention-heat")
        return np.stack([pixels(canvases.nth(i)) for i in range(canvases.count())])

    def position_heat(self) -> np.ndarray:
        return pixels(self.root.get_by_role("grid").locator(".osl-attention-heat"))

    def bars(self, listbox) -> list[float]:
        """Heights of the bars, as parts of the highest."""
        heights = listbox.locator(".osl-attention-bar").evaluate_all(
            "bars => bars.map(b => b.getBoundingClientRect().height)"
        )
        return list(np.array(heights) / max(heights))

    def agrees_with_python(self):
        """All that is painted is what Python's methods say."""
        python = self.lab.python
        assert same_colors(self.heat(), colors(python("view.word_map().tolist()")))
        assert same_colors(self.position_heat(), colors(python("view.positions_at(*view.position).tolist()")))
        words = python("[float(sum(view.words_at(*view.position)[i] for i in word)) for word in words_of(tokens)]")
        assert self.bars(self.words) == pytest.approx(np.array(words) / max(words), abs=0.04)
        for i, share in enumerate(words):
            assert self.word(i).get_attribute("aria-label").endswith(f", {100 * share:.1f}%")


@pytest.fixture
def view(lab):
    lab.open(
        MAKE,
        "view = AttentionView(trace, block=1, word='car', position=(2, 1, 3))\nview",
    )
    lab.page.locator(".osl-attention").wait_for()
    return View(lab)


def test_with_the_mouse(lab, view):
    python = lab.python
    view.answered(word=[4])
    view.agrees_with_python()
    assert view.word(2).get_attribute("aria-selected") == "true"

    view.word(1).click()  # "red", three pieces
    view.answered(word=[1, 2, 3])
    view.agrees_with_python()
    view.word(4).click(modifiers=["Shift"])
    view.answered(word=[1, 2, 3, 10])
    view.word(4).click(modifiers=["Shift"])
    view.answered(word=[1, 2, 3])

    view.click_position(5, 3, 1)
    view.answered(position=[5, 3, 1])
    view.agrees_with_python()
    frames = python("view.frames_at(5, 3, 1).tolist()")
    assert view.bars(view.frames) == pytest.approx(np.array(frames) / max(frames), abs=0.04)
    assert view.frame(5).get_attribute("aria-selected") == "true"
    assert view.frame(2).get_attribute("aria-label") == f"frame 2, {100 * frames[2]:.1f}%"
    box = view.root.get_by_role("grid").bounding_box()
    view.root.get_by_role("grid").click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.1})
    view.answered(position=[5, 0, 2])
    view.agrees_with_python()

    # every source of the numbers changes them
    before = view.heat()
    for label, value, choice in (("Head", "2", {"head": 2}), ("Block", "3", {"block": 3})):
        view.root.get_by_label(label, exact=True).select_option(value)
        view.answered(**choice)
        assert not np.array_equal(before, before := view.heat())
        view.agrees_with_python()
    missing = view.root.get_by_text('not recorded: Trace(attention=["blocks.3.attn_temp"])', exact=True)
    assert missing.count() == 2 and missing.first.is_visible()  # beside the frames, and with the position
    view.root.get_by_label("Step").fill("0")
    view.answered(step=0)
    assert not np.array_equal(before, view.heat())

    # the picture under the heat: the first latent channel, a moving dark spot
    picture = pixels(view.frame(3).locator(".osl-attention-picture"))
    latents = np.array(python("trace[0].x_0[0].tolist()"))
    grey = np.round(255 * (latents - latents.min()) / np.ptp(latents))
    assert np.abs(picture[..., 0] - grey[3]).max() <= 2

    # pieces alone
    view.root.get_by_label("whole words").uncheck()
    view.answered(whole_words=False)
    assert view.words.get_by_role("option").count() == 13
    view.word(3).click()
    view.answered(word=[3])
    assert same_colors(view.heat(), colors(python("view.word_map(3).tolist()")))

    lab.save()
    lab.load()
    view.root.wait_for()
    view.answered(word=[3])
    assert view.words.get_by_role("option").count() == 13
    assert view.word(3).get_attribute("aria-selected") == "true"
    assert view.root.get_by_label("Head").input_value() == "2"
    assert same_colors(view.heat(), colors(python("view.word_map().tolist()")))
    lab.run("view.set_trait('whole_words', True); view.block = 1; view.head = None; view.word = (4,)")
    view.answered(word=[4])
    view.agrees_with_python()
    assert lab.axe() == []


def test_with_the_keyboard(lab, view):
    press = lab.page.keyboard.press
    view.word(2).focus()
    press("ArrowRight")
    view.answered(word=[5, 6, 7, 8, 9])
    view.agrees_with_python()
    status = view.root.get_by_role("status")
    assert status.inner_text().startswith("Attention to “driving”: ")
    press("Shift+ArrowRight")
    view.answered(word=[5, 6, 7, 8, 9, 10])
    press("Home")
    view.answered(word=[0])
    press("ArrowLeft")
    view.answered(word=[0])

    press("Tab")  # to the picture, the opacity and the frames
    press("Tab")
    press("Tab")
    press("ArrowRight")
    view.answered(position=[3, 1, 3])
    assert lab.page.evaluate("document.activeElement.dataset.frame") == "3"
    press("Tab")
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "PageDown"):
        press(key)
    view.answered(position=[4, 2, 1])
    view.agrees_with_python()
    assert view.position.get_attribute("aria-label").startswith("row 2, column 1")
    assert "Frame 4, row 2, column 1: words most to" in status.inner_text()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp"):  # no farther than the edge
        press(key)
    view.answered(position=[4, 0, 1])

    view.root.get_by_label("Head").focus()
    press("ArrowDown")
    view.answered(head=0)
    view.root.get_by_label("Step").focus()
    press("ArrowLeft")
    view.answered(step=1)
    view.agrees_with_python()
    assert lab.python("trace is view.trace")
    assert lab.axe() == []


def test_a_notebook_without_its_kernel_shows_the_last_state(lab, view):
    lab.run("from ipywidgets.embed import dependency_state; state = dependency_state([view], drop_defaults=False)")
    before = view.heat()
    path = lab.folder / f"{lab.name}.ipynb"
    lab.save()
    notebook = nbformat.read(path, 4)
    state = {"version_major": 2, "version_minor": 0, "state": lab.python("state")}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    assert len(json.dumps(notebook.metadata)) < 200_000
    lab.close()
    nbformat.write(notebook, path)
    lab.load()
    lab.page.evaluate(
        "() => { for (const cell of jupyterapp.shell.currentWidget.content.model.cells) cell.trusted = true }"
    )
    view.root.wait_for()
    assert np.array_equal(view.heat(), before)
    view.word(0).click()
    lab.page.get_by_text("No answer from Python:").wait_for()


def test_with_the_small_model(lab):
    lab.open(SMALL)
    lab.page.locator(".osl-attention").wait_for()
    view = View(lab)
    view.answered(word=[4])
    assert same_colors(view.heat(), colors(lab.python("view.word_map().tolist()")))
    picture = pixels(view.frame(8).locator(".osl-attention-picture"))
    frames = lab.python("pipe.decode(trace[-1].x_0)[8].tolist()")
    assert np.abs(picture[..., :3].astype(int) - frames).mean() < 5  # it travelled as JPEG
    lab.shots("attention")
