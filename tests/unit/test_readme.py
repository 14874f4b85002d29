"""README.md and the guide: their commands and code run, and README.zh-CN.md says the same as README.md.

A block of bash or Python is run unless a comment `<!-- not run: why -->` stands above it.
"""

import re
import shlex
import shutil
from itertools import zip_longest
from pathlib import Path

import pytest
from common import psnr
from markdown_text import Markdown, markdown_of, parse

from opensora_lite.tools import cli
from opensora_lite.video import read_reference, read_video

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "notebooks" / "guide"
PAGES = [ROOT / "README.md", ROOT / "notebooks" / "index.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDE.glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    """The blocks that are run, as parameters of a test."""
    found = []
    for page in PAGES:
        for number, (skipped, kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            if kind == language and not skipped:
                found.append(pytest.param(text, id=f"{page.stem}-{number}"))
    return found


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """A copy of notebooks/assets as the working directory; `cd notebooks/assets` leads to it."""
    folder = tmp_path / "notebooks" / "assets"
    shutil.copytree(ROOT / "notebooks" / "assets", folder, ignore=shutil.ignore_patterns("sweep"))
    monkeypatch.chdir(folder)
    return folder


# ----------------------------------------------------------------------------------------------------- what is run


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text, assets):
    if "opensora_lite.widgets" in text:
        pytest.importorskip("anywidget")
    exec(compile(text, "README", "exec"), {})


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_run(text, assets):
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "opensora-lite":
            steps = ["--num-sampling-steps", "3"] if arguments[0] == "generate" else []
            assert cli.main([*arguments, *steps]) == 0, line
        else:
            assert program in ("", "cd", "make"), f"nothing runs this line: {line}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [parse(markdown_of(page)) for page in PAGES]
    code = "\n".join(text for page in pages for text in [*page.spans, *(text for _, text in page.blocks)])
    named = set(re.findall(r"^\s*make ([a-z][\w-]*)", code, re.MULTILINE))
    assert {"demo", "lab", "test"} <= named <= targets


def test_the_five_tasks_keep_what_is_given(assets):
    (text,) = (parameter.values[0] for parameter in blocks("bash") if "connect" in parameter.values[0])
    test_commands_run(text, assets)
    made = {path.stem: read_video(path).frames for path in (assets / "samples").iterdir()}
    lengths = {"sample_0": 16, "image-cond_0": 16, "connect_0": 16, "video_extend_0": 12, "edit_0": 16}
    assert {name: len(frames) for name, frames in made.items()} == lengths
    # through the small VAE, the crop to 64 pixels and the mp4
    last, first = read_reference("sunset2.png", 64, 64)[0], read_reference("car.mp4", 64, 64)[:6]
    assert psnr(made["connect_0"][-1], last) > 25 > psnr(made["sample_0"][-1], last)
    assert psnr(made["video_extend_0"][6:], first) > 25


# -------------------------------------------------------------------------------------------------- README.zh-CN.md


def sections(text: str) -> list[Markdown]:
    """The lead and one for each heading; a heading is a line with # outside of code."""
    starts, fenced, position = [0], False, 0
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match("##+ ", line):
            starts.append(position)
        position += len(line)
    return [parse(text[start:end]) for start, end in zip_longest(starts, starts[1:])]


ENGLISH, CHINESE = (markdown_of(ROOT / name) for name in ("README.md", "README.zh-CN.md"))
PAIRS = list(zip_longest(sections(ENGLISH), sections(CHINESE), fillvalue=parse("")))


def facts(section: Markdown) -> dict:
    """What a translation does not change."""
    return {
        "heading": [level for level, _ in section.headings],
        "code": [[re.sub(r"(^|\s+)#( .*)?$", "", line) for line in text.splitlines()] for _, text in section.blocks],
        "links": {link for link in section.links if not link.startswith("README")},
        "names": sorted(section.spans),
        "numbers": sorted(re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", section.text)),
        "tables": [line.count("|") for line in section.text.splitlines() if line.startswith("|")],
    }


@pytest.mark.parametrize("english, chinese", PAIRS, ids=[e.headings[0][1] if e.headings else "-" for e, _ in PAIRS])
def test_the_translation_has_the_same_facts(english, chinese):
    assert facts(english) == facts(chinese)


def test_the_readme_is_short():
    text = re.sub(
        r"<picture>.*?</picture>|<[^>]*>|!?\[([^\]]*)\]\([^)]*\)", r"\1", parse(ENGLISH).text, flags=re.DOTALL
    )
    assert 600 <= len(re.findall(r"\w[\w.,'-]*", text)) <= 900
