"""The mask language: against Open-Sora 1.1 (golden), against a naive interpreter (hypothesis), and its errors."""

import doctest
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from naive_masks import RATIOS, fitting_strategies, naive_frames, naive_segments

from opensora_lite import masks
from opensora_lite.errors import MaskStrategyError
from opensora_lite.generations import OPEN_SORA_12
from opensora_lite.masks import Frame, MaskStrategy, Segment

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mask_strategies.json").read_text())
parse = MaskStrategy.parse


def clips(lengths):
    """References [2, frames, 2, 3] in which every frame holds 100·reference + frame."""
    return [
        np.broadcast_to(100.0 * r + np.arange(length)[None, :, None, None], (2, length, 2, 3)).astype(np.float32)
        for r, length in enumerate(lengths)
    ]


def noise(num_frames):
    return np.full([2, num_frames, 2, 3], -1, dtype=np.float32)


def message(call, *args, **kwargs):
    with pytest.raises(MaskStrategyError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# -- against the original


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['strategy']}@{case['loop']}")
def test_as_the_original(case):
    strategy = parse(case["strategy"])
    groups = [(*map(int, group[:5]), float(group[5])) for group in case["groups"]]
    assert [astuple(segment) for segment in strategy.segments] == groups

    latents, frame_mask = strategy.apply(noise(case["num_frames"]), clips(case["reference_lengths"]), case["loop"])
    expected = np.broadcast_to(np.array(case["latent_source"])[None, :, None, None], latents.shape)
    np.testing.assert_array_equal(latents, expected)
    np.testing.assert_array_equal(frame_mask, np.array(case["edit_ratio"], dtype=np.float32))
    assert frame_mask.dtype == np.float32

    timeline = strategy.timeline(case["num_frames"], case["reference_lengths"], case["loop"])
    assert [-1 if f.reference is None else 100 * f.reference + f.frame for f in timeline] == case["latent_source"]
    assert [f.edit_ratio for f in timeline] == case["edit_ratio"]


# -- against a naive interpreter


@given(fitting_strategies())
def test_frames_are_those_of_the_naive_interpreter(case):
    strategy, num_frames, references, loops = case
    resolved = strategy.resolve(num_frames, references, loops)
    segments = naive_segments(strategy.format()) if strategy.segments else []
    for loop, expected in enumerate(naive_frames(segments, num_frames, references, loops)):
        found = [(f.reference, f.frame, f.edit_ratio) for f in resolved[loop]]
        assert found == [frame or (None, None, 1.0) for frame in expected]

        available = references + [num_frames] * loop
        assert strategy.timeline(num_frames, available, loop) == resolved[loop]
        latents, frame_mask = strategy.apply(noise(num_frames), clips(available), loop)
        assert ((frame_mask == 1) == (latents[0, :, 0, 0] == -1)).all()


@given(fitting_strategies())
def test_explain_names_every_frame_and_every_segment(case):
    strategy, num_frames, references, loops = case
    text = strategy.explain(num_frames, references, loops)
    assert all(f"segment {i + 1}, `" in text for i in range(len(strategy.segments)))
    drawn = "".join(line.split("|")[1] for line in text.splitlines() if "|" in line)
    assert len(drawn) == num_frames * loops


whole = st.integers(-(10**9), 10**9)
natural = st.integers(0, 10**9)
segments = st.builds(Segment, natural, natural, whole, whole, st.none() | st.integers(1, 10**9), RATIOS)


@given(st.lists(segments, min_size=1, max_size=4).map(MaskStrategy))
def test_parse_reads_what_format_writes(strategy):
    text = strategy.format()
    assert parse(text) == strategy == parse(text.replace(",", " ,\t").replace(";", "\n; "))
    assert parse(text).format() == text == str(strategy)


@given(st.one_of(st.text(), st.text("01234567890123456789,,,,;;-+. eall_"), st.from_regex(r"[-0-9.,; a]*\Z")))
@example("9" * 5000)
@example("0,0,0,0,1," + "9" * 5000)
@example("0,0,0,0,1,1e999")
@example("\ud800")
def test_any_text_is_a_strategy_or_a_mask_strategy_error(text):
    try:
        parse(text).explain(16, [1, 7], loops=2)
    except MaskStrategyError as error:
        assert str(error).isprintable()


@given(segments, st.integers(1, 30), st.lists(st.integers(1, 30), max_size=3))
def test_the_length_that_an_error_names_fits(segment, num_frames, references):
    small = [abs(value) % 40 if value else value for value in astuple(segment)[:5]]
    segment = Segment(0, small[1] % 4, small[2] % 20, small[3] % 20, small[4] or None, segment.edit_ratio)
    try:
        MaskStrategy([segment]).check(num_frames, references)
    except MaskStrategyError as error:
        if "length must be at most" in str(error):
            fitting = int(str(error).split("at most ")[1].split(",")[0])
            MaskStrategy([replace(segment, length=fitting)]).check(num_frames, references)


# -- parse, format, constructors


def test_parse_takes_strategies_and_none():
    strategy = MaskStrategy.image()
    assert parse(strategy) is strategy
    assert parse(None) == MaskStrategy() and MaskStrategy().format() == ""
    assert parse(" 0 ;\n0 , 1,0 ,\t-1,1 ") == MaskStrategy.connect()


@pytest.mark.parametrize(
    "text, shortest",
    [
        ("0,0,0,0,1,0", "0"),
        ("0,0,0,0,1,0.50", "0,0,0,0,1,0.5"),
        ("0,0,0,0,1,.5", "0,0,0,0,1,0.5"),
        ("+0,01,-0,-1,1,-0.0", "0,1,0,-1"),
        ("0,0,0,0,all,4e-1", "0,0,0,0,all,0.4"),
        ("0;1,0,-4,0,4,0", "0;1,0,-4,0,4"),
        ("0,0,0,0,1,1e-7", "0,0,0,0,1,1e-07"),
    ],
)
def test_format_is_the_shortest_text(text, shortest):
    assert parse(text).format() == str(parse(text)) == shortest
    assert parse(shortest) == parse(text)


def test_constructors():
    assert MaskStrategy.image() == parse("0")
    assert MaskStrategy.connect() == parse("0;0,1,0,-1,1")
    assert MaskStrategy.extend(4) == parse("0,0,-4,0,4")
    assert MaskStrategy.prepend(6) == parse("0,0,0,-6,6")
    assert MaskStrategy.edit(0.4) == parse("0,0,0,0,all,0.4")
    assert MaskStrategy.loop(4) == parse("1,0,-4,0,4")
    assert MaskStrategy.loop(2, loop=3, reference=2) == parse("3,2,-2,0,2")
    assert MaskStrategy.image().continued(3, 4, references=1) == parse("0;1,1,-4,0,4;2,2,-4,0,4")


def test_strategies_add_up():
    assert MaskStrategy.image() + MaskStrategy.loop(4) == parse("0;1,0,-4,0,4")
    assert MaskStrategy() + MaskStrategy.image() == MaskStrategy.image()
    with pytest.raises(TypeError):
        MaskStrategy.image() + "0"


def test_strategies_are_values():
    strategy = MaskStrategy([Segment(np.int64(0), edit_ratio=np.float64(0.4))])
    assert strategy == parse("0,0,0,0,1,0.4") and hash(strategy) == hash(parse(" 0,0,0,0,1,0.40"))
    assert strategy.format() == "0,0,0,0,1,0.4"
    with pytest.raises(FrozenInstanceError):
        strategy.segments = ()


# -- the frames of a video


def test_timeline_says_where_frames_come_from():
    timeline = parse("0,0,0,0,3,0.4;0,1,-1,2").timeline(4, [5, 2])
    assert timeline == (Frame(0, 0, 0, 0.4), Frame(0, 1, 0, 0.4), Frame(1, 1, 1, 0.0), Frame())
    assert Frame() == Frame(reference=None, frame=None, segment=None, edit_ratio=1.0)


def test_a_loop_uses_its_own_segments_only():
    strategy = parse("0,5;1,0,-4,0,4")
    assert [frame.frame for frame in strategy.timeline(6, [6], loop=1)] == [2, 3, 4, 5, None, None]
    assert parse("1,0,-4,0,4").timeline(6, []) == (Frame(),) * 6


def test_all_takes_what_both_have():
    for text, length, frames in [("0,0,0,0,all", 20, 16), ("0,0,0,0,all", 7, 7), ("0,0,-3,-2,all", 7, 2)]:
        assert sum(frame.segment is not None for frame in parse(text).timeline(16, [length])) == frames


def test_apply_leaves_its_input_alone_and_keeps_the_dtype():
    latents = noise(4).astype(np.float16)
    result, _ = MaskStrategy.image().apply(latents, clips([1]))
    assert (latents == -1).all() and result.dtype == np.float16
    empty, frame_mask = MaskStrategy().apply(latents, [])
    assert empty is not latents and (empty == latents).all() and frame_mask.tolist() == [1, 1, 1, 1]


def test_clips_of_earlier_loops_are_references_of_later_ones():
    strategy = MaskStrategy.image().continued(3, 4, references=1)
    strategy.check(16, [1], loops=3)
    MaskStrategy.loop(4).check(16, [], loops=2)
    assert "reference 3 does not exist" in message((strategy + MaskStrategy.loop(4, 2, 3)).check, 16, [1], loops=3)


def test_explain():
    assert parse("0,0,0,4,4,.7;0,0,0,2,4,.2;0,0,0,5,1;0,1;0").explain(num_frames=10, references=[8, 1]) == (
        "10 frames; reference 0 is a clip of 8 frames, reference 1 is a picture\n"
        "  E  frame 0: conditioning, frame 0 of reference 0 (segment 5, `0`)\n"
        "  .  frame 1: generated\n"
        "  b  frames 2-4: edited in the last 20 % of the steps, "
        "frames 0-2 of reference 0 (segment 2, `0,0,0,2,4,0.2`)\n"
        "  C  frame 5: conditioning, frame 0 of reference 0 (segment 3, `0,0,0,5`)\n"
        "  a  frames 6-7: edited in the last 70 % of the steps, "
        "frames 2-3 of reference 0 (segment 1, `0,0,0,4,4,0.7`)\n"
        "  .  frames 8-9: generated\n"
        "     segment 4, `0,1`, is overwritten by later segments\n"
        "     |E.bbbCaa..| frames 0-9"
    )
    assert (MaskStrategy.image() + MaskStrategy.loop(2, 1, 1)).explain(num_frames=4, references=[1], loops=2) == (
        "loop 0: 4 frames; reference 0 is a picture\n"
        "  A  frame 0: conditioning, frame 0 of reference 0 (segment 1, `0`)\n"
        "  .  frames 1-3: generated\n"
        "     |A...| frames 0-3\n"
        "loop 1: 4 frames; reference 0 is a picture, reference 1 is the clip of loop 0\n"
        "  B  frames 0-1: conditioning, frames 2-3 of reference 1 (segment 2, `1,1,-2,0,2`)\n"
        "  .  frames 2-3: generated\n"
        "     |BB..| frames 0-3"
    )


def test_explain_draws_long_videos_in_lines_and_many_segments_with_plus():
    text = ";".join(f"0,0,0,{i}" for i in range(28))
    lines = parse(text).explain(num_frames=100, references=[1]).splitlines()
    assert lines[-2] == f"     |ABCDEFGHIJKLMNOPQRSTUVWXYZ++{'.' * 36}| frames 0-63"
    assert lines[-1] == f"     |{'.' * 36}| frames 64-99"


def test_explain_says_frames_and_latent_frames():
    """Open-Sora 1.2: what a latent frame holds, and where aligning has moved a segment."""
    text = parse("0;0,1,0,-1;0,2,3,5,7,0.4").explain(51, [1, 1, 40], time=OPEN_SORA_12)
    assert text.splitlines()[1:] == [
        "  A  latent 0 (frame 0): conditioning, latent 0 (frame 0) of reference 0 (segment 1, `0`)",
        "  .  latents 1-4 (frames 1-16): generated",
        "  c  latents 5-11 (frames 17-38): edited at timesteps up to 400,"
        " latents 5-11 (frames 17-39) of reference 2 (segment 3, `0,2,3,5,7,0.4`)",
        "  .  latents 12-14 (frames 39-50): generated",
        "     segment 2, `0,1,0,-1`, is overwritten by later segments",
        "     segment 2, `0,1,0,-1`, begins at latent 10 (frame 34) of the video, not at latent 14 (frames 47-50):"
        " segments begin with a chunk of 17 frames",
        "     segment 3, `0,2,3,5,7,0.4`, begins at latent 5 (frame 17) of its reference,"
        " not at latent 3 (frames 9-12): segments begin with a chunk of 17 frames",
        "     |A.... ccccc cc...| latents 0-14 (frames 0-50)",
    ]
    assert "reference 2 is a clip of 40 frames (12 latents)" in text
    connected = parse("0;0,1,0,-1").explain(17, [1, 1], time=OPEN_SORA_12)
    assert "latent 4 (frames 13-16): conditioning, a still clip of reference 1" in connected
    error = message(parse("0,0,0,0,17").explain, 17, [17], time=OPEN_SORA_12)
    assert "at most 5" in error and "latent frames" in error


# -- errors: which segment, which field, what was given


@pytest.mark.parametrize(
    "text, segment, field, given",
    [
        ("0;0,0,0,0,1,0,3", 2, "edit_ratio", "7 fields"),
        ("", 1, "empty", ""),
        ("0;", 2, "empty", ""),
        ("0.5", 1, "loop", "0.5"),
        ("0; a", 2, "loop", "a"),
        ("0,,1", 1, "reference", "''"),
        ("0,0,x", 1, "reference_start", "x"),
        ("0,0,0,1.0", 1, "target_start", "1.0"),
        ("0,0,0,0,ALL", 1, "length", "ALL"),
        ("0,0,0,0,1,high", 1, "edit_ratio", "high"),
        ("0,0,0,0,1,nan", 1, "edit_ratio", "nan"),
        ("0;-1", 2, "loop", "-1"),
        ("0,-1", 1, "reference", "-1"),
        ("0,0,0,0,0", 1, "length", "0"),
        ("0,0,0,0,1,5", 1, "edit_ratio", "5.0"),
        ("0,0,0,0,1,0.999999999", 1, "edit_ratio", "0.999999999"),
        ("9" * 5000, 1, "loop", "999"),
    ],
)
def test_text_that_cannot_be_read(text, segment, field, given):
    found = message(parse, text)
    assert found.startswith(f"segment {segment} (") and field in found and given in found and len(found) < 250


@pytest.mark.parametrize(
    "text, references, loops, segment, problem",
    [
        ("0;0,1,0,-1,1", [1], 1, 2, "reference 1 does not exist; there are 1, counted from 0"),
        ("0,3", [1, 1], 1, 1, "reference 3 does not exist; there are 2, counted from 0"),
        ("0", [], 1, 1, "reference 0 does not exist; no references were given"),
        ("0,0,7", [7], 1, 1, "reference_start must be from -7 to 6, not 7"),
        ("0,0,-8", [7], 1, 1, "reference_start must be from -7 to 6, not -8"),
        ("0,0,0,16", [1], 1, 1, "target_start must be from -16 to 15, not 16"),
        ("0,0,0,0,16,0.4", [7], 1, 1, "length must be at most 7, not 16"),
        ("0,0,-4,0,6", [7], 1, 1, "length must be at most 4, not 6"),
        ("0,0,0,14,4", [7], 1, 1, "length must be at most 2, not 4"),
        ("0;3", [1], 3, 2, "loop 3 does not exist"),
    ],
)
def test_strategies_that_do_not_fit(text, references, loops, segment, problem):
    for call in (parse(text).check, parse(text).resolve, parse(text).explain):
        found = message(call, 16, references, loops)
        assert found.startswith(f"segment {segment} (") and problem in found


def test_values_given_in_python():
    for values in ({"loop": 0.5}, {"target_start": "3"}, {"length": 0}, {"edit_ratio": "0.4"}, {"edit_ratio": 1}):
        assert next(iter(values)) in message(Segment, **values)
    assert "segments" in message(MaskStrategy, "0")
    assert "text" in message(parse, 0)
    assert "num_frames" in message(MaskStrategy().check, 0, [])
    assert "loops" in message(MaskStrategy().check, 16, [], loops=1001)
    assert "references" in message(MaskStrategy().explain, 4, ["a.png"])


def test_doctests():
    assert doctest.testmod(masks).failed == 0


def test_importing_masks_loads_neither_paddle_nor_pillow():
    code = "import sys, opensora_lite.masks; print([m for m in ('paddle', 'ppdiffusers', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
