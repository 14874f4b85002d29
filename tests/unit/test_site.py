"""The course as pages: built as `make site` builds them, without a warning, and asking no other host for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LOADED = {"src", "srcset", "data", "poster", "href"}  # attributes with which a page fetches something by itself
FOLLOWED = {"a", "area"}  # where an href is only followed by a reader
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//")
QUOTED = re.compile(r"""["'(]\s*((?:https?:)?//[\w.-]+[^"')\s]*)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for name in ("sphinx", "myst_nb", "furo", "math_core", "ziamath"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install -e '.[cpu,notebook,dev]' brings it")
    out = tmp_path_factory.mktemp("site")
    command = re.search(r"-m (sphinx .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
    command = command.replace("build/doctrees", str(out / "doctrees")).replace("build/site", str(out / "site"))
    child = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, ""), child.stderr[-4000:]
    return out / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, BeautifulSoup]:
    """name -> page"""
    return {path.stem: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.glob("*.html")}


def test_each_notebook_has_its_page_and_its_line_on_the_front_page(pages):
    links = [link["href"] for link in pages["index"].find("article").select("td a")]
    assert links == [f"{path.stem}.html" for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        assert pages[path.stem].find("h1").get_text().startswith(path.stem[:2])


def test_pictures_videos_and_formulas_are_shown(pages):
    assert pages["index"].select_one('img[src*="contact_sheet"]')
    assert len(pages["00_quickstart"].select("video, img")) > 10
    assert len(pages["13_train_tiny"].select("math")) > 10
    for name, page in pages.items():
        assert not re.search(r"\$[^$\n]*\\[a-z]+[^$\n]*\$", page.find("article").get_text()), f"LaTeX in {name}"


def test_solutions_are_folded(pages):
    for path in NOTEBOOKS:
        solutions = pages[path.stem].select("div.tag_solution")
        assert solutions
        assert all(cell.select_one("details:not([open]) > summary") for cell in solutions)


def test_no_page_asks_another_host_for_anything(site, pages):
    found = []
    for name, page in pages.items():
        for tag in page.find_all(True):
            for key in LOADED & tag.attrs.keys():
                if not (key == "href" and tag.name in FOLLOWED) and ELSEWHERE.match(tag[key].strip()):
                    found.append(f"{name}: <{tag.name} {key}={tag[key][:80]}>")
        for tag in page.find_all(["script", "style"]):
            found += [f"{name}: {url}" for url in elsewhere(tag.string or "")]
        for tag in page.select("[style]"):
            found += [f"{name}: {url}" for url in elsewhere(tag["style"])]
    for path in (*site.rglob("*.css"), *site.rglob("*.js")):
        if path.name != "searchindex.js":  # the words of the pages
            found += [f"{path.name}: {url}" for url in elsewhere(path.read_text(encoding="utf-8"))]
    assert not found


def elsewhere(code: str) -> list[str]:
    """URLs in quotes or in url(…); a namespace is a name, which nothing fetches."""
    return [url for url in QUOTED.findall(code) if not re.match(r"(https?:)?//www\.w3\.org/", url)]


def test_every_file_that_a_page_names_is_there(site, pages):
    missing = []
    for name, page in pages.items():
        for tag in page.find_all(True):
            for key in LOADED & tag.attrs.keys():
                target = re.split("[?#]", tag[key])[0]
                if target and not re.match(r"[a-z]+:|//", target) and not (site / target).exists():
                    missing.append(f"{name}: {tag[key]}")
    assert not missing
