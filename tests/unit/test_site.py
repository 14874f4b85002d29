"""The site: `make site` builds it without a warning, it is complete, and no page loads anything from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LOADED = {"src", "srcset", "data", "poster", "href"}  # attributes with which a page loads something by itself
FOLLOWED = {"a", "area"}  # an href of these is only followed by a reader
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//")
QUOTED = re.compile(r"""["'(]\s*((?:https?:)?//[\w.-]+[^"')\s]*)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for name in ("sphinx", "myst_nb", "furo", "math_core", "ziamath", "anywidget"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install -e '.[cpu,notebook,dev]' installs it")
    out = tmp_path_factory.mktemp("site")
    command = re.search(r"-m (sphinx .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
    command = command.replace("build/doctrees", str(out / "doctrees")).replace("build/site", str(out / "site"))
    child = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-4000:]  # -W: a warning is an error
    return out / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, BeautifulSoup]:
    """path within the site, without .html -> page"""
    found = (path for path in site.rglob("*.html") if "_modules" not in path.parts)
    return {
        path.relative_to(site).with_suffix("").as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in found
    }


def test_lessons_guide_and_modules_have_their_pages(pages):
    links = [link["href"] for link in pages["index"].find("article").select("td a")]
    assert links == [f"{path.stem}.html" for path in NOTEBOOKS]
    assert {f"guide/{path.stem}" for path in (ROOT / "notebooks" / "guide").glob("*.md")} <= pages.keys()
    folders = {"opensora_lite": ROOT / "opensora_lite", "opensora_lite.widgets": ROOT / "widgets"}
    modules = {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts])
        for package, folder in folders.items()
        for path in folder.rglob("[!_]*.py")
    }
    listed = {link["href"].partition(".html")[0] for link in pages["api/index"].find("article").select("td a")}
    assert modules <= listed and {f"api/{module}" for module in modules} <= pages.keys()


def test_the_reference_shows_types_errors_and_sources(pages):
    page = pages["api/opensora_lite.masks"]
    entry = page.find(id="opensora_lite.masks.MaskStrategy.parse")
    assert "MaskStrategy" in entry.get_text() and entry.select_one("a.viewcode-back, a[href*='_modules/']")
    assert "MaskStrategyError" in entry.parent.get_text()


def test_pictures_videos_formulas_and_solutions_are_shown(pages):
    assert pages["index"].select_one('img[src*="tasks"]')
    assert len(pages["00_quickstart"].select("video, img")) > 8
    assert len(pages["11_training"].select("math")) > 10
    for path in NOTEBOOKS:
        page = pages[path.stem]
        assert not re.search(r"\$[^$\n]*\\[a-z]+[^$\n]*\$", page.find("article").get_text()), f"LaTeX in {path.stem}"
        folded = page.select("div.tag_solution, div.tag_tolerance, div.tag_record")
        assert folded and all(cell.select_one("details:not([open]) > summary") for cell in folded)


def test_pictures_of_outputs_have_their_captions(pages):
    for path in NOTEBOOKS:
        pictures = pages[path.stem].select("div.cell_output img[src^=_images]")
        assert all(picture["alt"] and not picture["alt"].startswith("_") for picture in pictures)
    moving = [picture["alt"] for picture in pages["01_noise"].select("div.cell_output img")]
    assert any(alt.startswith("Animation: ") for alt in moving) and any(alt.startswith("Figure: ") for alt in moving)


def test_pages_load_only_files_that_are_there(site, pages):
    foreign, missing = [], []
    for name, page in pages.items():
        for tag in page.find_all(True):
            for key in LOADED & tag.attrs.keys():
                target = re.split("[?#]", tag[key].strip())[0]
                if ELSEWHERE.match(target):
                    if not (key == "href" and tag.name in FOLLOWED):
                        foreign.append(f"{name}: <{tag.name} {key}={target[:80]}>")
                elif target and not re.match(r"[a-z]+:", target):
                    file = os.path.normpath(site / Path(name).parent / target)
                    if not os.path.exists(file):
                        missing.append(f"{name}: {target}")
        for tag in page.find_all(["script", "style"]):
            foreign += [f"{name}: {url}" for url in elsewhere(tag.string or "")]
        for tag in page.select("[style]"):
            foreign += [f"{name}: {url}" for url in elsewhere(tag["style"])]
    for path in (*site.rglob("*.css"), *site.rglob("*.js")):
        if path.name != "searchindex.js":  # the words of the pages
            foreign += [f"{path.name}: {url}" for url in elsewhere(path.read_text(encoding="utf-8"))]
    assert (foreign, missing) == ([], [])


def elsewhere(code: str) -> list[str]:
    """URLs in quotes or in url(…), except namespaces, which are only names."""
    return [url for url in QUOTED.findall(code) if not re.match(r"(https?:)?//www\.w3\.org/", url)]
