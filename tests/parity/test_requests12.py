"""Prompts, sizes and mask strategies of Open-Sora 1.2: those of the original, except where a fault is mended."""

import doctest
import json
from fractions import Fraction
from pathlib import Path

import pytest

from opensora_lite import sizes
from opensora_lite.errors import MaskStrategyError, PromptError, SizeError
from opensora_lite.masks import MaskStrategy, align_start
from opensora_lite.prompts import captions_per_loop, clean_caption, prompts_per_loop, split_prompt, with_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "12"
PROMPTS, MASKS, SIZES = (
    json.loads((GOLDEN / f"{name}12.json").read_text()) for name in ("prompts", "mask_strategies", "sizes")
)

# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("case", PROMPTS["score"], ids=lambda case: case["result"])
def test_scores(case):
    assert with_scores(case["prompt"], case["aes"], case["flow"], case["camera_motion"]) == case["result"]


def test_captions_are_cleaned_as_in_the_original():
    assert [clean_caption(case["text"]) for case in PROMPTS["clean"]] == [case["clean"] for case in PROMPTS["clean"]]


@pytest.mark.parametrize("case", [case for case in PROMPTS["chain"] if case["prompt"]])
def test_from_a_prompt_to_its_captions(case):
    """JSON suffix, schedule, scores, cleaning: in the order of scripts/inference.py."""
    scores = {name: case[name] for name in ("aes", "flow", "camera_motion")}
    captions = captions_per_loop(split_prompt(case["prompt"])[0], case["loop"])
    assert [clean_caption(with_scores(caption, **scores)) for caption in captions] == case["per_loop"]


@pytest.mark.parametrize("case", PROMPTS["loops"], ids=lambda case: f"{case['prompt']}@{case['loop']}")
def test_schedules(case):
    prompt, loops = case["prompt"], case["loop"]
    starts = [int(part) for part in prompt.split("|")[1::2] if part.isdigit()] if prompt.startswith("|") else [0]
    refused = "error" in case or starts != sorted(set(starts)) or starts[0] != 0 or starts[-1] >= loops
    if refused:  # a caption that no loop has is an error; the original says nothing
        with pytest.raises(PromptError):
            prompts_per_loop(prompt, loops)
    else:
        assert captions_per_loop(prompt, loops) == case["per_loop"]


# --------------------------------------------------------------------------------------------------------------- sizes


def test_examples_in_docstrings():
    assert doctest.testmod(sizes).failed == 0


def test_sizes():
    """The original knows one ratio of "256", and none of "2880"; here all have about as many pixels."""
    assert {name: sizes.PIXELS[name] for name in SIZES["num_pixels"]} == SIZES["num_pixels"] == sizes.PIXELS
    for resolution, by_ratio in SIZES["image_size"].items():
        for name, released in by_ratio.items():
            height, width = sizes.size_by_name(resolution, Fraction(name.replace(":", "/")))
            assert abs(height * width / SIZES["num_pixels"][resolution] - 1) < 0.02
            assert released is None or [height, width] == released


@pytest.mark.parametrize("case", [c for c in SIZES["num_frames"] if isinstance(c["given"], str)], ids=str)
def test_lengths(case):
    if "error" in case or case["num_frames"] < 1:
        with pytest.raises(SizeError):
            sizes.parse_released_frames(case["given"])
    else:
        assert sizes.parse_released_frames(case["given"]) == case["num_frames"]


# --------------------------------------------------------------------------------------------------------------- masks


def test_starts_are_aligned_as_in_the_original():
    """Starts that are counted from the front; the original also aligns negative ones."""
    points = json.loads((GOLDEN / "references12.json").read_text())["nearest_points"]
    tested = [(v, point, most, result) for v, point, most, result in points if v >= 0]
    assert [align_start(*given) for *given, _ in tested] == [result for *_, result in tested] and len(tested) > 50


SHORTENED = [  # by the original, silently; these are errors here
    *[("0,0,0,0,20,0.4", [30]), ("0,0,0,0,15,0.4", [6]), ("0,0,0,0,5,0.7", [2]), ("0,0,4,4,9", [7])],
    *[(text, [5]) for text in ("0,0,0,0,0", "0,0,0,20,5", "0,0,5,0,5")],  # to nothing
    *[("0,0,0,0,5,1", [5]), ("0,-1,0,0,1", [1, 1])],  # no reference is seen; references counted from the end
]
FIT_ALIGNED = [  # too long as they are written
    *[(text, [15]) for text in ("0,0,0,-2,3", "0,0,12,0,5", "0,0,13,0,5", "0,0,14,0,5")],
    *[(text, [5]) for text in ("0,0,0,13,5", "0,0,0,12,5", "0,0,0,17,5", "0,0,0,18,5")],
]
REFUSED = {None: SHORTENED + FIT_ALIGNED, 5: SHORTENED}
MENDED = {  # the segment that would cover another one keeps its start
    ("0;0,1,0,-1,1", 5): [0, -1, -1, -1, 100],
    ("0,0,0,0,5;0,1,0,2,5,0.5", 15): [0, 1, 100, 101, 102, 103, 104, *[-1] * 8],
}


@pytest.mark.parametrize("case", MASKS, ids=lambda c: f"{c['strategy']}@{c['loop']},{c['num_frames']},{c['align']}")
def test_mask_strategies(case):
    """As the original, or an error: where it fails too, and where it silently cuts a segment, or leaves one out."""
    strategy, T, lengths, loop = (case[name] for name in ("strategy", "num_frames", "reference_lengths", "loop"))

    def timeline():
        return MaskStrategy.parse(strategy or None).timeline(T, lengths, loop, case["align"])

    if "error" in case or (strategy, lengths) in REFUSED[case["align"]]:
        with pytest.raises(MaskStrategyError):
            timeline()
        return
    frames = timeline()
    expected = case["latent_source"]
    if case["align"]:
        expected = MENDED.get((strategy, T), expected)
    assert [-1 if f.reference is None else 100 * f.reference + f.frame for f in frames] == expected
    if expected is case["latent_source"]:
        assert [f.edit_ratio for f in frames] == case["edit_ratio"]
