"""The parts of a Markdown text: code, headings, links."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FENCE = re.compile(r"^ *(```+|~~~+)([^\n]*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
HEADING = re.compile(r"^(#{1,6}) +(.+?)(?: +#+)? *$", re.MULTILINE)
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=["']([^"']+)"""
)


@dataclass(frozen=True)
class Markdown:
    """What stands in a Markdown text, one apart from the other: inside of code, `#` is no heading and `](` no link.

    blocks: (language, text) of the fenced ones. spans: of code in a line. text: the rest, without both.
    """

    blocks: list[tuple[str, str]]
    spans: list[str]
    headings: list[tuple[int, str]]
    links: list[str]
    text: str


def parse(markdown: str) -> Markdown:
    blocks = [(match[2].strip(), match[3]) for match in FENCE.finditer(markdown)]
    without_blocks = FENCE.sub("", markdown)
    text = CODE.sub("", without_blocks)
    return Markdown(
        blocks,
        [match[2] for match in CODE.finditer(without_blocks)],
        [(len(match[1]), match[2]) for match in HEADING.finditer(without_blocks)],
        [first or second for first, second in LINK.findall(text)],
        text,
    )


@cache
def markdown_of(path: Path) -> str:
    """A Markdown file, or the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
