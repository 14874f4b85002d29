"""The mask language: against Open-Sora 1.1 (golden), against a naive interpreter (hypothesis), and its messages."""

import doctest
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import RATIOS, cases

from opensora_lite import masks
from opensora_lite.errors import MaskStrategyError, OpenSoraError
from opensora_lite.masks import Frame, MaskStrategy, Segment

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mask_strategies.json").read_text())
parse = MaskStrategy.parse


def clips(lengths, channels=2, height=2, width=3):
    """References in which every frame holds 100·reference + frame."""
    return [
        np.broadcast_to(100.0 * r + np.arange(length)[None, :, None, None], (channels, length, height, width)).astype(
            np.float32
        )
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


def naive(text, latents, references, loop):
    """apply_mask_strategy from its description, on text, one frame at a time."""
    latents = latents.copy()
    frame_mask = np.ones(latents.shape[1], dtype=np.float32)
    for group in text.split(";") if text else []:
        values = group.split(",")
        values += ["0", "0", "0", "0", "1", "0"][len(values) :]
        if int(values[0]) != loop:
            continue
        reference = references[int(values[1])]
        source, target = int(values[2]), int(values[3])
        if source < 0:
            source = reference.shape[1] + source
        if target < 0:
            target = latents.shape[1] + target
        if values[4] == "all":
            values[4] = min(reference.shape[1] - source, latents.shape[1] - target)
        for i in range(int(values[4])):
            latents[:, target + i] = reference[:, source + i]
            frame_mask[target + i] = float(values[5])
    return latents, frame_mask


@given(cases())
def test_apply_equals_the_naive_interpreter(case):
    strategy, num_frames, references, loops = case
    strategy.check(num_frames, references, loops)
    for loop in range(loops):
        available = clips(references + [num_frames] * loop)
        latents, frame_mask = strategy.apply(noise(num_frames), available, loop)
        expected_latents, expected_mask = naive(strategy.format(), noise(num_frames), available, loop)
        np.testing.assert_array_equal(latents, expected_latents)
        np.testing.assert_array_equal(frame_mask, expected_mask)
        assert ((frame_mask == 1) == (latents[0, :, 0, 0] == -1)).all()


@given(cases())
def test_explain_takes_all_that_check_takes(case):
    strategy, num_frames, references, loops = case
    text = strategy.explain(num_frames, references, loops)
    assert text == strategy.explain(num_frames, references, loops)
    assert sum(f"segment {i + 1} `" in text for i in range(len(strategy.segments))) == len(strategy.segments)
    drawn = "".join(line.split("|")[1] for line in text.splitlines() if "|" in line)
    assert len(drawn) == num_frames * loops


whole = st.integers(-(10**9) + 1, 10**9 - 1)
natural = st.integers(0, 10**9 - 1)
segments = st.builds(Segment, natural, natural, whole, whole, st.none() | st.integers(1, 10**9 - 1), RATIOS)


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
        strategy = parse(text)
        strategy.check(16, [1, 7], loops=2)
    except MaskStrategyError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
    else:
        strategy.explain(16, [1, 7], loops=2)


@given(segments, st.integers(1, 30), st.lists(st.integers(1, 30), max_size=3))
def test_what_a_message_says_fits_does_fit(segment, num_frames, references):
    small = [abs(value) % 40 if value else value for value in astuple(segment)[:5]]
    segment = Segment(0, small[1] % 4, small[2] % 20, small[3] % 20, small[4] or None, segment.edit_ratio)
    try:
        MaskStrategy((segment,)).check(num_frames, references)
    except MaskStrategyError as error:
        if "` fits" in str(error):
            parse(str(error).split("; `")[1].split("`")[0]).check(num_frames, references)


# -- parse, format, presets


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


def test_presets():
    assert MaskStrategy.image() == parse("0")
    assert MaskStrategy.connect() == parse("0;0,1,0,-1,1")
    assert MaskStrategy.extend(4) == parse("0,0,-4,0,4")
    assert MaskStrategy.prepend(6) == parse("0,0,0,-6,6")
    assert MaskStrategy.edit(0.4) == parse("0,0,0,0,all,0.4")
    assert MaskStrategy.loop(4) == parse("1,0,-4,0,4")
    assert MaskStrategy.loop(2, loop=3, reference=2) == parse("3,2,-2,0,2")


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
    with pytest.raises(MaskStrategyError, match="at most nine digits"):
        Segment(target_start=np.int64(-(2**63)))  # which numpy's abs gives back


# -- timeline and apply


def test_timeline_says_where_frames_come_from():
    timeline = parse("0,0,0,0,3,0.4;0,1,-1,2").timeline(4, [5, 2])
    assert timeline == (Frame(0, 0, 0, 0.4), Frame(0, 1, 0, 0.4), Frame(1, 1, 1, 0.0), Frame())
    assert Frame() == Frame(reference=None, frame=None, segment=None, edit_ratio=1.0)


def test_a_loop_looks_at_its_own_segments_only():
    strategy = parse("0,5;1,0,-4,0,4")
    assert [frame.frame for frame in strategy.timeline(6, [6], loop=1)] == [2, 3, 4, 5, None, None]
    assert parse("1,0,-4,0,4").timeline(6, []) == (Frame(),) * 6


def test_all_takes_what_both_have():
    assert sum(frame.segment is not None for frame in MaskStrategy.edit(0.4).timeline(16, [20])) == 16
    assert sum(frame.segment is not None for frame in MaskStrategy.edit(0.4).timeline(16, [7])) == 7
    assert sum(frame.segment is not None for frame in parse("0,0,-3,-2,all").timeline(16, [7])) == 2


def test_apply_leaves_its_input_alone_and_keeps_the_dtype():
    latents = noise(4).astype(np.float16)
    result, _ = MaskStrategy.image().apply(latents, clips([1]))
    assert (latents == -1).all() and result.dtype == np.float16
    empty, frame_mask = MaskStrategy().apply(latents, [])
    assert empty is not latents and (empty == latents).all() and frame_mask.tolist() == [1, 1, 1, 1]


def test_apply_checks_shapes():
    image = MaskStrategy.image()
    assert message(image.apply, noise(4)[0], []) == "latents must be [C, T, H, W], not [4, 2, 3]"
    assert (
        message(image.apply, noise(4), [*clips([1]), *clips([3], height=4)])
        == "reference 1 must be [2, frames, 2, 3] like the latents, not [2, 3, 4, 3]"
    )
    assert message(image.apply, noise(4), [clips([1])[0][:, 0]]).startswith("reference 0 must be [2, frames, 2, 3]")
    assert "no references were given" in message(image.apply, noise(4), [])


# -- check over several loops


def test_clips_of_earlier_loops_are_references_of_later_ones():
    strategy = MaskStrategy.image() + MaskStrategy.loop(4, 1, 1) + MaskStrategy.loop(4, 2, 2)
    strategy.check(16, [1], loops=3)
    MaskStrategy.loop(4).check(16, [], loops=2)
    assert message((strategy + MaskStrategy.loop(4, 2, 3)).check, 16, [1], loops=3) == (
        'segment 4 of "0;1,1,-4,0,4;2,2,-4,0,4;2,3,-4,0,4": reference 3 does not exist; '
        "3 references were given (indices 0-2, clips of earlier loops included)\n"
        "    0;1,1,-4,0,4;2,2,-4,0,4;2,3,-4,0,4\n"
        "                            ^^^^^^^^^^"
    )


# -- messages


WHOLE = "must be a whole number of at most nine digits"
RATIO = "edit ratio must be a number from 0 to less than 1, such as 0.4, not"
EMPTY_SEGMENT = "the segment is empty; leave its `;` out (for no strategy at all, leave that out)"


@pytest.mark.parametrize(
    "text, number, problem, underlined",
    [
        (
            "0;0,0,0,0,1,0,3,4",
            2,
            "it has 8 fields, but a segment has at most 6: "
            "loop, reference, reference_start, target_start, length, edit_ratio",
            "              ^^^",
        ),
        ("0;", 2, EMPTY_SEGMENT, "  ^"),
        ("0;;0", 2, EMPTY_SEGMENT, "  ^"),
        ("; 0", 1, EMPTY_SEGMENT, "^"),
        ("0.5", 1, f'loop {WHOLE}, not "0.5"', "^^^"),
        ("0; a", 2, f'loop {WHOLE}, not "a"', "   ^"),
        ("0,,1", 1, f'reference {WHOLE}, not ""', "  ^"),
        ("0,0,1_0", 1, f'reference start {WHOLE}, not "1_0"', "    ^^^"),
        ("0,0,0,٣", 1, f'target start {WHOLE}, not "٣"', "      ^"),
        ("0,0,0,0,ALL", 1, f'length {WHOLE} or "all", not "ALL"', "        ^^^"),
        ("1234567890", 1, f'loop {WHOLE}, not "1234567890"', "^^^^^^^^^^"),
        ("0\u200b", 1, f'loop {WHOLE}, not "0\ufffd"', "^^"),
        ("0,0,0,0,1,high", 1, f'{RATIO} "high"', "          ^^^^"),
        ("0,0,0,0,1,nan", 1, f'{RATIO} "nan"', "          ^^^"),
        ("0,0,0,0,1,-inf", 1, f'{RATIO} "-inf"', "          ^^^^"),
        ("0,0,0,0,1,0_0.4", 1, f'{RATIO} "0_0.4"', "          ^^^^^"),
        ("0;-1", 2, "loop -1 is never run; loops are counted from 0", "  ^^"),
        ("0,-1", 1, "reference -1 does not exist; references are counted from 0", "^^^^"),
        ("0,0,0,0,0", 1, 'length 0 pins no frame; use 1 or more, or "all"', "^^^^^^^^^"),
        ("0,0,0,0,-2", 1, 'length -2 pins no frame; use 1 or more, or "all"', "^^^^^^^^^^"),
        (
            "0,0,0,0,1,5",
            1,
            "edit ratio 5.0 is outside 0…1; 0 keeps frames, 0.4 redraws them in 40 % of the steps",
            "^^^^^^^^^^^",
        ),
        (
            "0,0,0,0,1,-0.1",
            1,
            "edit ratio -0.1 is outside 0…1; 0 keeps frames, 0.4 redraws them in 40 % of the steps",
            "^^^^^^^^^^^^^^",
        ),
        (
            "0,0,0,0,1,1",
            1,
            "edit ratio 1 keeps nothing of the reference; leave the segment out, or use less than 1",
            "^^^^^^^^^^^",
        ),
        (
            "0,0,0,0,1,0.999999999",
            1,
            "edit ratio 1 keeps nothing of the reference; leave the segment out, or use less than 1",
            "^^^^^^^^^^^^^^^^^^^^^",
        ),
    ],
)
def test_text_that_cannot_be_read(text, number, problem, underlined):
    shown = text.replace("\u200b", "\ufffd")
    assert message(parse, text) == f'segment {number} of "{shown}": {problem}\n    {shown}\n    {underlined}'


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_text(text):
    assert message(parse, text) == (
        'the mask strategy is empty; for no strategy leave it out, for a picture as the first frame write "0"'
    )


def test_not_text():
    assert message(parse, 0) == 'a mask strategy is text such as "0" or "0,0,-4,0,4", not int'


OUTSIDE_16 = "use 0 to 15, or -1 to -16 to count from the end"


@pytest.mark.parametrize(
    "text, references, loops, number, problem, underlined",
    [
        ("0;0,1,0,-1,1", [1], 1, 2, "reference 1 does not exist; 1 reference was given (index 0)", "  ^^^^^^^^^^"),
        ("0,3", [1, 1], 1, 1, "reference 3 does not exist; 2 references were given (indices 0-1)", "^^^"),
        ("0", [], 1, 1, "no references were given; give one, or leave the mask strategy out", "^"),
        (
            "0, 0, 7",
            [7],
            1,
            1,
            "reference start 7 is outside reference 0, which has 7 frames; use 0 to 6, "
            "or -1 to -7 to count from the end",
            "^^^^^^^",
        ),
        (
            "0,0,-8",
            [7],
            1,
            1,
            "reference start -8 is outside reference 0, which has 7 frames; use 0 to 6, "
            "or -1 to -7 to count from the end",
            "^^^^^^",
        ),
        ("0,0,1", [1], 1, 1, "reference start 1 is outside reference 0, a picture, which has 1 frame; use 0", "^^^^^"),
        ("0,0,0,0,16,0.4", [7], 1, 1, "length is 16, but reference 0 has 7 frames; `0,0,0,0,7,0.4` fits", "^" * 14),
        (
            "0,0,-4,0,6",
            [7],
            1,
            1,
            "length is 6, but reference 0 has 7 frames (4 from frame 3 on); `0,0,-4,0,4` fits",
            "^" * 10,
        ),
        ("0,0,0,0,3", [1], 1, 1, "length is 3, but reference 0, a picture, is 1 frame; `0` fits", "^" * 9),
        (
            "0,0,0,16",
            [1],
            1,
            1,
            f"target start 16 is outside the video, which has 16 frames; {OUTSIDE_16}",
            "^" * 8,
        ),
        (
            "0,0,0,-17",
            [1],
            1,
            1,
            f"target start -17 is outside the video, which has 16 frames; {OUTSIDE_16}",
            "^" * 9,
        ),
        (
            "0,0,0,14,4",
            [7],
            1,
            1,
            "length is 4, but the video has 16 frames (2 from frame 14 on); `0,0,0,14,2` fits",
            "^" * 10,
        ),
        ("0,0,0,0,17", [20], 1, 1, "length is 17, but the video has 16 frames; `0,0,0,0,16` fits", "^" * 10),
        # both too short: what is named fits both
        ("0,0,0,10,30", [20], 1, 1, "length is 30, but reference 0 has 20 frames; `0,0,0,10,6` fits", "^" * 11),
        ("0;1", [1], 1, 2, "loop 1 is never run; 1 loop is asked for (index 0)", "  ^"),
        ("3", [1], 3, 1, "loop 3 is never run; 3 loops are asked for (indices 0-2)", "^"),
    ],
)
def test_strategies_that_do_not_fit(text, references, loops, number, problem, underlined):
    expected = f'segment {number} of "{text}": {problem}\n    {text}\n    {underlined}'
    assert message(parse(text).check, 16, references, loops) == expected
    assert message(parse(text).explain, 16, references, loops) == expected
    if "loop" not in problem:
        assert message(parse(text).timeline, 16, references) == expected
        assert message(parse(text).apply, noise(16), clips(references)) == expected


def test_strategies_made_in_python_are_underlined_in_their_format():
    assert message(MaskStrategy.connect().check, 16, [1]) == (
        'segment 2 of "0;0,1,0,-1": reference 1 does not exist; 1 reference was given (index 0)\n'
        "    0;0,1,0,-1\n"
        "      ^^^^^^^^"
    )


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"loop": 0.5}, f"loop {WHOLE}"),
        ({"reference_start": 10**9}, f"reference start {WHOLE}"),
        ({"target_start": "3"}, f"target start {WHOLE}"),
        ({"length": 0}, 'length 0 pins no frame; use 1 or more, or "all"'),
        ({"edit_ratio": "0.4"}, "edit ratio must be a number from 0 to less than 1, such as 0.4"),
        (
            {"edit_ratio": float("nan")},
            "edit ratio nan is outside 0…1; 0 keeps frames, 0.4 redraws them in 40 % of the steps",
        ),
        ({"edit_ratio": 1}, "edit ratio 1 keeps nothing of the reference; leave the segment out, or use less than 1"),
    ],
)
def test_segments_made_in_python(values, problem):
    assert message(Segment, **values) == problem


def test_lengths_must_be_numbers_of_frames():
    assert message(MaskStrategy().check, 0, []) == "the video must be given as a number of frames, 1 or more, not 0"
    assert message(MaskStrategy().explain, 4, ["a.png"]) == (
        "a reference must be given as a number of frames, 1 or more, not 'a.png'"
    )


def test_long_strategies_are_shown_in_part():
    text = ";".join(["0"] * 100 + ["0,1"] + ["0"] * 100)
    head, shown, carets = message(parse(text).check, 16, [1]).splitlines()
    assert head.startswith('segment 101 of "…') and len(shown) == len("    ") + 82
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "0,1"
    assert shown.strip().startswith("…") and shown.endswith("…")
    head, shown, carets = message(parse, "9" * 5000).splitlines()
    assert head.endswith(f'loop {WHOLE}, not "{"9" * 20}…"') and len(carets) == len(shown) == len("    ") + 81
    head, shown, carets = message(parse, "0;" * 100).splitlines()
    assert shown.endswith("0;0;") and len(carets) == len(shown) + 1


def test_errors_are_opensora_errors():
    assert issubclass(MaskStrategyError, OpenSoraError)


# -- explain


def test_doctests():
    assert doctest.testmod(masks).failed == 0


def test_explain_editing():
    assert MaskStrategy.edit(0.4).explain(num_frames=16, references=[16]) == (
        "16 frames; reference 0 is a clip of 16 frames\n"
        "  a  segment 1 `0,0,0,0,all,0.4`: frames 0-15 are edited in the last 40 % of the steps: "
        "frames 0-15 of reference 0\n"
        "     frame 0 |aaaaaaaaaaaaaaaa| frame 15"
    )


def test_explain_overlaps():
    assert parse("0,0,0,4,4,0.7;0,0,0,2,4,0.2;0,0,0,5,1;0,1;0").explain(num_frames=10, references=[8, 1]) == (
        "10 frames; reference 0 is a clip of 8 frames, reference 1 is a picture\n"
        "  a  segment 1 `0,0,0,4,4,0.7`: frames 4-7 are edited in the last 70 % of the steps: "
        "frames 0-3 of reference 0; segment 2 takes over frame 4; segment 3 takes over frame 5\n"
        "  b  segment 2 `0,0,0,2,4,0.2`: frames 2-5 are edited in the last 20 % of the steps: "
        "frames 0-3 of reference 0; segment 3 takes over frame 5\n"
        "  C  segment 3 `0,0,0,5`: frame 5 is kept as given: frame 0 of reference 0\n"
        "  D  segment 4 `0,1`: frame 0 is kept as given: frame 0 of reference 1; "
        "segment 5 takes over frame 0; nothing of this segment is left\n"
        "  E  segment 5 `0`: frame 0 is kept as given: frame 0 of reference 0\n"
        "  .  frames 1, 8-9 are generated from pure noise\n"
        "     frame 0 |E.bbbCaa..| frame 9"
    )


def test_explain_loops():
    assert (MaskStrategy.image() + MaskStrategy.loop(2, 2, 2)).explain(num_frames=4, references=[1], loops=3) == (
        "loop 0: 4 frames; reference 0 is a picture\n"
        "  A  segment 1 `0`: frame 0 is kept as given: frame 0 of reference 0\n"
        "  .  frames 1-3 are generated from pure noise\n"
        "     frame 0 |A...| frame 3\n"
        "loop 1: 4 frames; reference 0 is a picture, reference 1 is the clip made in loop 0 (4 frames)\n"
        "  .  frames 0-3 are generated from pure noise\n"
        "     frame 0 |....| frame 3\n"
        "loop 2: 4 frames; reference 0 is a picture, reference 1 is the clip made in loop 0 (4 frames), "
        "reference 2 is the clip made in loop 1 (4 frames)\n"
        "  A  segment 2 `2,2,-2,0,2`: frames 0-1 are kept as given: frames 2-3 of reference 2\n"
        "  .  frames 2-3 are generated from pure noise\n"
        "     frame 0 |AA..| frame 3"
    )


def test_explain_without_a_strategy():
    assert MaskStrategy().explain(num_frames=1, references=[]) == (
        "1 frame; no references\n  .  frame 0 is generated from pure noise\n     frame 0 |.| frame 0"
    )


def test_explain_draws_long_videos_in_lines_and_many_segments_with_plus():
    text = ";".join(f"0,0,0,{i}" for i in range(28))
    lines = parse(text).explain(num_frames=100, references=[1]).splitlines()
    assert lines[-2] == f"     frame  0 |ABCDEFGHIJKLMNOPQRSTUVWXYZ++{'.' * 36}| frame 63"
    assert lines[-1] == f"     frame 64 |{'.' * 36}| frame 99"
    assert lines[28].startswith("  +  segment 28 ")


# -- the module itself


def test_importing_it_needs_numpy_only():
    code = "import sys, opensora_lite.masks; print([m for m in ('paddle', 'ppdiffusers', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
