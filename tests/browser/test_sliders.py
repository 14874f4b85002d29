"""Figures with a slider: on the pages of the site, which have no kernel, and in JupyterLab."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
SLIDER = "osl osl-slider"
WITH_SLIDERS = [path for path in sorted(FOLDER.glob("*.ipynb")) if SLIDER in path.read_text(encoding="utf-8")]
MADE = """
import numpy as np
from opensora_lite.widgets import figures

pictures = np.stack([np.full((32, 96, 3), (25 * k, 80, 200), np.uint8) for k in range(10)])
states = np.array([[0 if k < t else 1 if k == t else 2 for t in range(6)] for k in range(10)])
figures.slider({"": pictures}, [f"step {k} of 9" for k in range(10)], "Redder and redder.", states=states)
"""
PIXELS = """(figure) => [...figure.querySelectorAll("canvas")].map((canvas) =>
    [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].join())"""


class Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # which browsers ask for, and the site has none
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the lessons with sliders, built as `make site` does from a copy without guide and reference."""
    for name in ("sphinx", "myst_nb", "furo", "math_core", "ziamath"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install -e '.[cpu,notebook,dev]' installs it")
    root = tmp_path_factory.mktemp("slider_site")
    notebooks = root / "notebooks"
    shutil.copytree(FOLDER / "site", notebooks / "site")
    shutil.copytree(FOLDER / "assets", notebooks / "assets")
    (notebooks / "api").mkdir()
    for path in WITH_SLIDERS:
        shutil.copy(path, notebooks)
    command = [sys.executable, "-m", "sphinx", "-q", "-c", notebooks / "site"]
    command += ["-D", f"root_doc={WITH_SLIDERS[0].stem}", notebooks, root / "out"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-4000:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root / "out"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", WITH_SLIDERS, ids=lambda path: path.stem)
def test_sliders_move_on_the_site(lab, site, path):
    page = lab.page
    page.goto(f"{site}/{path.stem}.html")
    figures = page.locator("figure.osl-slider")
    assert figures.count() == path.read_text(encoding="utf-8").count(SLIDER)
    for number in range(figures.count()):
        figure = figures.nth(number)
        figure.scroll_into_view_if_needed()
        slider, label = figure.get_by_role("slider"), figure.locator(".osl-slider-label")
        slider.wait_for()
        last = int(slider.get_attribute("max"))
        assert figure.locator("img").count() == 0  # the slider stands in the place of the static picture
        assert figure.locator("> figcaption").is_visible()

        # by keyboard: to both ends, another number and another picture
        slider.press("Home")
        first, picture = label.inner_text(), figure.evaluate(PIXELS)
        slider.press("End")
        assert figure.get_attribute("data-at") == str(last)
        assert label.inner_text() != first and slider.get_attribute("aria-valuetext") == label.inner_text()
        assert all(a != b for a, b in zip(picture, figure.evaluate(PIXELS), strict=True))
        # by mouse: to the middle
        box = slider.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert abs(int(figure.get_attribute("data-at")) - last / 2) <= 1
        # played to the end
        slider.press("End")
        slider.press("ArrowLeft")
        figure.get_by_role("button", name="Play").press("Enter")
        page.wait_for_function("([f, at]) => f.dataset.at === at", arg=[figure.element_handle(), str(last)])
        figure.get_by_role("button", name="Play").wait_for()
        slider.press("Home")
    assert lab.axe("figure.osl-slider") == []
    shots(page, path.stem)


def shots(page, name: str) -> None:
    """Pictures of the sliders, in the middle, light and dark, where OPENSORA_SHOTS names a folder for them."""
    if not (folder := os.environ.get("OPENSORA_SHOTS")):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.body.dataset.theme = theme; }", theme)
        for number, figure in enumerate(page.locator("figure.osl-slider").all()):
            slider = figure.get_by_role("slider")
            slider.fill(str(int(slider.get_attribute("max")) // 3))
            time.sleep(0.3)
            path = Path(folder) / f"slider_{name}_{number}_{theme}.png"
            figure.screenshot(path=path, animations="disabled")
            with Image.open(path) as picture:
                smaller = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            smaller.save(path, optimize=True)


def test_without_scripts_the_site_shows_a_picture(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{WITH_SLIDERS[0].stem}.html")
    figure = page.locator("figure.osl-slider").first
    assert figure.locator("img").is_visible() and figure.locator("figcaption").is_visible()
    assert figure.get_by_role("slider").count() == 0 and "{" not in figure.inner_text()
    context.close()


def test_a_slider_in_jupyterlab(lab):
    lab.open(MADE)
    page = lab.page
    figure = page.locator("figure.osl-slider")
    slider = figure.get_by_role("slider")
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    figure.get_by_text("step 2 of 9", exact=True).wait_for()
    assert figure.locator(".osl-slider-states span").evaluate_all(
        "(all) => all.map((s) => s.dataset.state).join('')"
    ) == ("221000")
    assert page.locator(".jp-mod-active .jp-InputArea").count() == 1  # the keys have not reached the notebook
    assert lab.axe("figure.osl-slider") == []

    # the notebook is opened again, and nothing is run: its outputs are those of this user, so scripts run
    lab.save()
    lab.load()
    slider.press("End")
    figure.get_by_text("step 9 of 9", exact=True).wait_for()

    # a notebook from elsewhere is not trusted: the static picture
    saved = nbformat.read(lab.folder / f"{lab.name}.ipynb", 4)
    (output,) = saved.cells[0].outputs
    output.data["text/html"] = output.data["text/html"].replace("Redder", "Not signed: redder")
    lab.name = f"{lab.name}_foreign"
    (lab.folder / f"{lab.name}.ipynb").write_text(json.dumps(saved), encoding="utf-8")
    lab.load()
    figure.locator("img").wait_for()
    figure.get_by_text("Not signed: redder and redder.", exact=True).wait_for()
    assert slider.count() == 0 and figure.locator("img").evaluate("(image) => image.naturalWidth") > 300
