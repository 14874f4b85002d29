"""README.zh-CN.md says in Chinese what README.md says: the same headings, commands, links, names and numbers."""

import ast
import json
import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest
from markdown_text import Markdown, markdown_of, parse

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = (markdown_of(ROOT / name) for name in ("README.md", "README.zh-CN.md"))


def sections(text: str) -> list[Markdown]:
    """The lead and one for each heading; a heading is a line with # outside of code."""
    starts = [0]
    fenced = False
    position = 0
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match("##+ ", line):
            starts.append(position)
        position += len(line)
    return [parse(text[start:end]) for start, end in zip_longest(starts, starts[1:])]


PAIRS = list(zip_longest(sections(ENGLISH), sections(CHINESE), fillvalue=parse("")))
NAMES = [english.headings[0][1] if english.headings else "?" for english, _ in PAIRS]


@pytest.fixture(params=PAIRS, ids=NAMES)
def pair(request) -> tuple[Markdown, Markdown]:
    """A section and its translation."""
    return request.param


def test_each_links_to_the_other_at_the_top():
    assert "[中文](README.zh-CN.md)" in ENGLISH.splitlines()[:4]
    assert "[English](README.md)" in CHINESE.splitlines()[:4]


def test_headings_have_the_same_levels():
    levels = [[level for level, _ in parse(text).headings] for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_code_is_the_same_but_for_its_comments(pair):
    english, chinese = ([(language, code(text)) for language, text in part.blocks] for part in pair)
    assert english == chinese


def code(block: str) -> list[str]:
    """Its lines without comments; of the drawing of the repository, which has words beside its names, the names."""
    if block.startswith("opensora_lite/ "):
        return re.findall(r"[\w/]*[/.][\w/]+|\w+/", block)
    return [re.sub(r"(^|\s+)#( .*)?$", "", line) for line in block.splitlines()]


def test_links_lead_to_the_same_places(pair):
    english, chinese = ({link for link in part.links if not link.startswith("README")} for part in pair)
    assert english == chinese


def test_code_within_lines_is_the_same(pair):
    english, chinese = (Counter(part.spans) for part in pair)
    assert english == chinese


def test_numbers_are_the_same(pair):
    """So a number that changes in one file cannot be forgotten in the other."""
    english, chinese = (Counter(re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", part.text)) for part in pair)
    assert english == chinese


def test_papermill_gets_parameters_that_the_notebook_has():
    lines = re.findall(r"^papermill .*?(notebooks/\S+\.ipynb) (.*)$", ENGLISH, re.MULTILINE)
    assert lines
    for name, arguments in lines:
        cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
        (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        declared = {statement.target.id for statement in ast.parse("".join(cell["source"])).body}
        given = re.findall(r"-p (\w+) ", arguments)
        assert given and set(given) <= declared


def test_tables_have_the_same_shape(pair):
    english, chinese = ([line.count("|") for line in part.text.splitlines() if line.startswith("|")] for part in pair)
    assert english == chinese
