"""Figures with a slider (figures.slider): what is stored, and what stays where scripts don't run."""

import base64
import io
import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from lesson_files import NOTEBOOKS, code_cells, read
from PIL import Image

pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[cpu,notebook]'")
from opensora_lite.widgets import figures

LABELS = [f"t = {k}, SNR ≈ {1 / (k + 1):.2f}" for k in range(5)]
VALUES = np.linspace(-3, 3, 12)


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    found: list[dict] = []
    monkeypatch.setattr(figures, "display", lambda data, raw: found.append(data))
    return found


def colored(count: int, height: int, width: int) -> np.ndarray:
    """Pictures of one colour each: red grows with the position, blue with the width."""
    return np.stack([np.full((height, width, 3), (50 * k, 100, width), np.uint8) for k in range(count)])


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


def test_all_positions_are_stored_in_one_picture(shown):
    panels = {"x_t": colored(5, 16, 32), "x̂_0": colored(5, 32, 48)}
    for _ in range(2):
        figures.slider(panels, LABELS, "noise & data", "time", start=2, snr=[(k, 10.0**-k) for k in range(5)])
    assert shown[0] == shown[1]
    assert shown[0]["text/plain"].splitlines() == ["Slider: noise & data", *LABELS]
    stored = data_of(shown[0]["text/html"])
    assert (stored["labels"], stored["start"], stored["name"]) == (LABELS, 2, "time")
    assert stored["snr"] == [[k, -k] for k in range(5)]
    with Image.open(io.BytesIO(base64.b64decode(stored["sheet"].partition(",")[2]))) as picture:
        sheet = np.asarray(picture.convert("RGB"), int)
    for panel, pictures in zip(stored["panels"], panels.values(), strict=True):
        for k in range(5):
            top, left = (
                k // stored["columns"] * stored["cell"][1],
                k % stored["columns"] * stored["cell"][0] + panel["x"],
            )
            tile = sheet[top : top + panel["height"], left : left + panel["width"]]
            assert np.abs(tile[4:-4, 4:-4] - pictures[k][4:-4, 4:-4]).max() < 16  # of lossy WebP


def test_without_scripts_a_picture_and_the_caption_stay(shown):
    figures.slider({"": colored(9, 16, 128)}, list("abcdefghi"), "a < b", states=np.zeros((9, 4), int))
    page = BeautifulSoup(shown[0]["text/html"], "html.parser")
    for removed in page.find_all(["script", "style"]):
        removed.decompose()
    (image,) = page.select("img")
    assert image["alt"] == page.get_text().strip() == "a < b"
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
        assert picture.width > 600


def test_histograms_and_states(shown):
    values = np.stack([VALUES, 2 * VALUES])
    states = np.array([[0, 1], [1, 2]])
    density = np.linspace(-4, 4, 9), np.ones(9)
    figures.slider(
        {"": colored(2, 8, 8)}, ["a", "b"], "c", histogram=("Values", values, *density), states=states, numbers=[3, 7]
    )
    stored = data_of(shown[0]["text/html"])
    assert stored["histogram"]["range"] == [-4, 4] and len(stored["histogram"]["counts"][0]) == 40
    assert sum(stored["histogram"]["counts"][0]) * 8 / 40 == pytest.approx(1, abs=0.01)
    assert stored["states"] == {"names": list(figures.STATES), "frames": [3, 7], "rows": states.tolist()}


def test_each_position_needs_a_picture(shown):
    with pytest.raises(AssertionError, match="each label"):
        figures.slider({"": colored(4, 8, 8)}, LABELS, "c")


def test_stored_sliders_are_small():
    for path in NOTEBOOKS:
        for cell in code_cells(read(path)):
            for output in cell["outputs"]:
                page = "".join(output.get("data", {}).get("text/html", ""))
                assert "osl-slider" not in page or len(page) <= 250_000, f"{path.stem}: {len(page)}"
