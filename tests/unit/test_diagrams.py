"""The diagrams of the README and the lessons: the committed files are what is drawn, and lessons show their maps."""

import re
import sys
from xml.etree import ElementTree

import pytest
from lesson_files import FOLDER, NOTEBOOKS, read, source

ASSETS = FOLDER / "assets"
sys.path.insert(0, str(ASSETS))  # make_diagrams.py imports svg.py, which lies beside it
import make_diagrams  # noqa: E402
from svg import Drawing  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
FILES = make_diagrams.files()


def test_the_committed_diagrams_are_those_that_are_drawn():
    assert {path.name for path in ASSETS.glob("*.svg")} == FILES.keys()
    assert [name for name, text in FILES.items() if (ASSETS / name).read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("name", FILES)
def test_everything_is_within_the_picture_and_no_text_is_wider_than_its_box(name):
    root = ElementTree.fromstring(FILES[name])
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.find(f"{SVG}title").text
    boxes = [{key: float(rect.get(key)) for key in ("x", "y", "width", "height")} for rect in root.iter(f"{SVG}rect")]
    assert all(b["x"] + b["width"] <= width and b["y"] + b["height"] <= height for b in boxes)
    for text in root.iter(f"{SVG}text"):
        x, y, size = (float(text.get(key)) for key in ("x", "y", "font-size"))
        written = "".join(text.itertext())
        half = len(written) * size * (0.6 if "mono" in text.get("class") else 0.56) / 2  # of the widest usual fonts
        assert x - half > 0 and x + half < width and size < y < height, written
        around = [b for b in boxes if b["x"] < x < b["x"] + b["width"] and b["y"] < y < b["y"] + b["height"]]
        smallest = min(around, key=lambda b: b["width"], default={"width": width})
        assert 2 * half <= smallest["width"] + 1, written


@pytest.mark.parametrize("part", make_diagrams.PARTS)
def test_each_part_of_the_map_can_be_lit(part):
    lit = [rect for rect in re.findall("<rect[^>]*>", make_diagrams.pipeline_map(part).svg()) if 'class="lit"' in rect]
    assert len(lit) == (4 if part == "frames" else 1)
    assert part in make_diagrams.map_alt(part)


def test_colours_follow_the_system_or_are_fixed():
    drawing = Drawing(100, 60, "a < b")
    drawing.box(1, 1, 90, "A & B")
    both, light, dark = (drawing.svg(theme) for theme in ("", "light", "dark"))
    assert "prefers-color-scheme: dark" in both and both.count('class="card"') == 1
    assert "prefers-color-scheme" not in light + dark and 'class="card"' not in light + dark
    assert light != dark and "#ffffff" not in dark
    assert "a &lt; b" in both and "A &amp; B" in both


def test_every_lesson_shows_its_own_map():
    for path in NOTEBOOKS:
        assert make_diagrams.map_markdown(path.stem) in source(read(path)["cells"][0])
