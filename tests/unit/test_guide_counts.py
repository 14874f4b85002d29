"""The parameters that the guide counts are those of the classes."""

import re
from math import prod
from pathlib import Path

import pytest

from opensora_lite.io.checkpoints import build_meta
from opensora_lite.stdit2 import SIZES, STDiT2

GUIDE = Path(__file__).parents[2] / "notebooks" / "guide" / "full_size.md"
PARTS = {
    "spatial attention": r"blocks\.\d+\.attn\.",
    "temporal attention": r"blocks\.\d+\.attn_temp\.",
    "cross-attention": r"blocks\.\d+\.cross_attn\.",
    "MLP": r"blocks\.\d+\.mlp\.",
    "caption embedder": r"y_embedder\.",
    "patches and final layer": r"x_embedder\.|final_layer\.",
    "all parameters": "",
}


@pytest.mark.parametrize(("size", "column"), [("tiny", 2), ("XL/2", 3)])
def test_parameters(size, column):
    sizes = {name: prod(p.shape) for name, p in build_meta(STDiT2, SIZES[size]).named_parameters()}
    text = GUIDE.read_text(encoding="utf-8").partition("## Counting parameters and work")[2]
    rows = {row[0]: row for row in (re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines())}
    counted = {part: int(rows[part][column].replace(",", "")) for part in PARTS}
    assert counted == {
        part: sum(n for name, n in sizes.items() if re.match(pattern, name)) for part, pattern in PARTS.items()
    }
