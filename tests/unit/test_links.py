"""Links within the repository: every file and heading that a Markdown file or a notebook links to is there."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_text import markdown_of, parse

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "notebooks").rglob("*.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
    *sorted((ROOT / "opensora_lite").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


@cache
def anchors(path: Path) -> set[str]:
    """What may stand after the # of a link: GitHub's anchors, which Sphinx makes as well."""
    found: dict[str, int] = {}
    names = set()
    for _, heading in parse(markdown_of(path)).headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(name if count == 0 else f"{name}-{count}")
    return names


def broken(path: Path) -> list[str]:
    """The links of a file that lead nowhere in this repository. Links to other hosts are not checked."""
    wrong = []
    for link in parse(markdown_of(path)).links:
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_relative_to(ROOT):
            wrong.append(f"{link} leads out of the repository")
        elif not target.exists():
            wrong.append(f"{link} does not exist")
        elif anchor and target.suffix in {".md", ".ipynb"} and anchor not in anchors(target):
            wrong.append(f"{link}: {target.name} has no such heading")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert not broken(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_with_the_number_of_a_lesson_leads_to_that_lesson(path):
    links = re.findall(r"\[(\d\d)(?: · [^\]]*)?\]\([^)]*?(\d\d)_\w+\.ipynb", markdown_of(path))
    assert not [link for link in links if link[0] != link[1]]


def test_what_is_no_link_and_what_is_broken(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` and *c*\n\n[x](#a-b-and-c) [y](#nowhere) ![z](gone.png) `[code](a.md)`\n\n[web](https://a.example/b)\n\n"
        "```\n# no heading\n[no](link.md)\n```\n\n<img src='lost.png'>\n"
        '[self](page.md#a-b-and-c "title") [up](../out.md)\n'
    )
    monkeypatch.setattr("test_links.ROOT", tmp_path)
    assert broken(page) == [
        "#nowhere: page.md has no such heading",
        "gone.png does not exist",
        "lost.png does not exist",
        "../out.md leads out of the repository",
    ]
