"""MaskTimeline without a browser: `set_state` and messages play its part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_masks import fitting_strategies
from opensora_lite.widgets import MaskTimeline, figures
from opensora_lite.widgets.widget import STYLE

from opensora_lite import MaskStrategy
from opensora_lite.errors import MaskStrategyError, MediaError, SizeError
from opensora_lite.generations import OPEN_SORA_12

PICTURE = np.zeros((8, 8, 3), np.uint8)


def clip(frames: int) -> np.ndarray:
    return np.arange(frames, dtype=np.uint8).repeat(8 * 8 * 3).reshape(frames, 8, 8, 3)


@pytest.fixture
def timeline():
    return MaskTimeline(16, [PICTURE, clip(20)])


def page(timeline, **traits):
    """What the page sees after it has set traits."""
    timeline.set_state(traits)
    return timeline.state


# ------------------------------------------------------------------------------------------------ in step


@given(fitting_strategies())
def test_every_strategy_survives_text_timeline_text(case):
    strategy, num_frames, references, loops = case
    timeline = MaskTimeline(num_frames, [clip(n) for n in references], strategy, loops=loops)
    shown = timeline.state
    # as the page would write it, from the numbers that it draws
    drawn = ";".join(",".join(str(s[name]) for name in FIELDS) for s in shown["segments"])
    again = MaskTimeline(num_frames, [clip(n) for n in references], loops=loops)
    page(again, draft=drawn)
    assert again.error == ""
    for loop in range(loops):
        available = [*references, *[num_frames] * loop]
        assert again.strategy.timeline(num_frames, available, loop) == strategy.timeline(num_frames, available, loop)
    # untouched segments keep the text that they were written in
    assert ";".join(s["text"] for s in shown["segments"]) == timeline.text == strategy.format()
    page(again, draft=timeline.text)
    assert again.strategy == strategy


FIELDS = ("loop", "reference", "reference_start", "target_start", "length", "edit_ratio")


@given(st.text("01234,,,;;-. eall_") | st.text())
def test_whatever_is_typed_is_read_or_answered(text):
    timeline = MaskTimeline(16, [PICTURE, clip(20)], "0,0,0,5")
    page(timeline, draft=text)
    try:
        expected = MaskStrategy.parse(text if text.strip() else None)
        expected.check(16, [1, 20])
    except MaskStrategyError as error:
        assert timeline.error == str(error)
        assert timeline.text == timeline.state["text"] == "0,0,0,5"
        assert timeline.draft == text
    else:
        assert timeline.strategy == expected
        assert timeline.draft == timeline.text
        assert timeline.error == ""


def test_python_sets_and_the_page_follows(timeline):
    seen = []
    timeline.observe(lambda change: seen.append(change["new"].format()), "strategy")
    timeline.strategy = "0; 0,1,4,10,4,0.4"
    timeline.text = "0"
    timeline.strategy = MaskStrategy.connect()
    timeline.strategy = None
    assert seen == ["0;0,1,4,10,4,0.4", "0", "0;0,1,0,-1", ""]
    assert timeline.state["segments"] == []
    assert timeline.draft == timeline.text == ""


def test_what_does_not_fit_changes_nothing(timeline):
    timeline.strategy = "0,1,0,0,16"
    before = dict(timeline.state)
    for name, value, error in [
        ("strategy", "0,2", MaskStrategyError),
        ("strategy", 3, MaskStrategyError),
        ("num_frames", 8, MaskStrategyError),
        ("num_frames", 0, MaskStrategyError),
        ("loops", 0, MaskStrategyError),
        ("references", [PICTURE], MaskStrategyError),
        ("references", ["no such file.png"], MediaError),
        ("image_size", (4, 64), SizeError),
    ]:
        with pytest.raises(error):
            setattr(timeline, name, value)
    with pytest.raises(MaskStrategyError, match="condition_frames is 16"):
        timeline.change(loops=2, condition_frames=16)
    with pytest.raises(TypeError, match="no frames"):
        timeline.change(frames=3)
    assert timeline.state == before
    timeline.change(num_frames=8, strategy="0,1,0,0,8")  # together they fit
    assert timeline.text == "0,1,0,0,8"


def test_an_error_while_typing_goes_when_the_text_is_mended(timeline):
    timeline._handle_custom_msg({"do": "check", "text": "0,1,99"}, [])
    assert "reference_start" in timeline.error
    timeline._handle_custom_msg({"do": "check", "text": "0,1,9"}, [])
    assert timeline.error == ""
    assert timeline.text == ""  # only looked at


# ------------------------------------------------------------------------------------------------ undo, presets


def test_undo_and_redo(timeline):
    for text in ("0", "0,0,0,1", "0,0,0,15"):
        page(timeline, draft=text)
    timeline.undo()
    timeline._handle_custom_msg({"do": "undo"}, [])
    assert (timeline.text, timeline.can_undo, timeline.can_redo) == ("0", True, True)
    timeline._handle_custom_msg({"do": "redo"}, [])
    assert timeline.text == timeline.draft == "0,0,0,1"
    timeline.text = "0,0,0,2"  # a new change: what was undone is gone
    assert not timeline.can_redo
    timeline.redo()
    assert timeline.text == "0,0,0,2"
    for _ in range(9):
        timeline.undo()
    assert (timeline.text, timeline.can_undo) == ("", False)


def test_undo_passes_over_what_no_longer_fits(timeline):
    timeline.text = "0,0,0,15"
    timeline.text = "0"
    timeline.num_frames = 8
    timeline.undo()
    assert timeline.text == ""


@pytest.mark.parametrize(
    ("references", "possible"),
    [
        ([], "Text"),
        ([PICTURE], "Text Image Edit"),
        ([PICTURE, PICTURE], "Text Image Connect Edit"),
        ([clip(3)], "Text Image Extend Edit"),
        ([PICTURE, clip(20)], "Text Image Connect Extend Edit"),
    ],
)
def test_presets_fit_their_references(references, possible):
    timeline = MaskTimeline(16, references)
    presets = timeline.state["presets"]
    assert [p["name"] for p in presets] == ["Text", "Image", "Connect", "Extend", "Edit"]
    assert [p["name"] for p in presets if not p["missing"]] == possible.split()
    for preset in presets:
        if not preset["missing"]:
            page(timeline, draft=preset["text"])
            assert (timeline.error, timeline.text) == ("", preset["text"])


# ------------------------------------------------------------------------------------------------ references


def test_references_are_shown_as_the_model_sees_them():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255  # all that is left when it is cropped to a square
    timeline = MaskTimeline(16, [wide, clip(200)], "0", image_size=(64, 64))
    picture, frames = timeline._thumbnails
    assert picture.shape == (1, 48, 48, 3)
    assert picture[:, 4:-4, 4:-4].min() > 250
    assert len(frames) == len(timeline.clips[1]["thumbnails"]) == 64  # of 200
    assert timeline.clips[1]["frames"] == 200
    timeline.image_size = (48, 80)
    assert timeline._thumbnails[0].shape == (1, 48, 80, 3)


def test_the_request_leaves_out_what_is_not_used():
    timeline = MaskTimeline(8, [PICTURE, clip(4), clip(5)], "0,2,0,0,5;1,3,0,4,2;1,0", loops=2, condition_frames=2)
    request = timeline.request
    assert [len(r) for r in request["references"]] == [8, 5]  # the picture's 8 rows, the clip's 5 frames
    assert request["mask_strategy"].format() == "0,1,0,0,5;1,2,0,4,2;1"
    for loop, of in [(0, [1, 5]), (1, [1, 5, 8])]:
        ours = timeline.strategy.timeline(8, [1, 4, 5, *[8] * loop], loop)
        theirs = request["mask_strategy"].timeline(8, of, loop)
        assert [(f.frame, f.edit_ratio) for f in ours] == [(f.frame, f.edit_ratio) for f in theirs]


def test_frames_that_loops_take_over_are_explained():
    timeline = MaskTimeline(8, [PICTURE], "0", loops=2, condition_frames=3)
    assert "frames 0-2: conditioning, frames 5-7 of reference 1" in timeline.explanation
    assert timeline.state["taken_over"] == 3
    assert timeline.text == "0"  # which is the pipeline's business


# ------------------------------------------------------------------------------------------------ Open-Sora 1.2


def test_cells_are_latent_frames_with_the_frames_that_they_hold():
    timeline = MaskTimeline(
        51, [PICTURE, clip(40)], "0;0,0,0,-1", loops=2, condition_frames=17, generation=OPEN_SORA_12
    )
    state, references = timeline.state, timeline.clips
    assert (state["num_frames"], state["step"], state["taken_over"], len(state["windows"])) == (15, 5, 5, 15)
    assert state["windows"][:2] == [(0, 0, 0), (1, 4, 0)] and state["windows"][5] == (17, 17, 1)
    assert [c["frames"] for c in references] == [1, 12] and references[1]["windows"][-1] == (36, 39, 2)
    assert timeline._thumbnails[1][:3].mean((1, 2, 3)) == pytest.approx([0, 4, 8])  # the last frame of each
    assert [s["target_start"] for s in state["segments"]] == [0, 10]  # where the model puts them
    assert state["segments"][1]["text"] == "0,0,0,-1"  # as it was written
    assert (
        "latents 0-4 (frames 0-16): conditioning, latents 10-14 (frames 34-50) of reference 2" in state["explanation"]
    )
    frame = MaskTimeline(51, [PICTURE]).still()[0]
    assert timeline.still()[0].shape[1] < frame.shape[1]
    with pytest.raises(SizeError, match="multiple of 17"):
        timeline.condition_frames = 16
    with pytest.raises(MaskStrategyError, match="latent frames"):
        timeline.strategy = "0,1,0,0,17"


@pytest.mark.parametrize(("num_frames", "frames", "extend"), [(51, 40, "0,0,5,0,5"), (51, 16, None), (17, 40, None)])
def test_only_whole_chunks_are_continued(num_frames, frames, extend):
    presets = MaskTimeline(num_frames, [clip(frames)], generation=OPEN_SORA_12).state["presets"]
    found = next(preset for preset in presets if preset["name"] == "Extend")
    assert (found["text"] or None) == extend and ("17 frames" in found["missing"]) == (extend is None)


# ------------------------------------------------------------------------------------------------ without a page


def test_repr_and_html_depend_on_the_state_alone():
    bundles = [MaskTimeline(16, [PICTURE], "0", loops=2)._repr_mimebundle_()[0] for _ in range(2)]
    for bundle in bundles:
        bundle.pop("application/vnd.jupyter.widget-view+json")
    assert bundles[0] == bundles[1]
    assert bundles[0]["text/plain"] == 'MaskTimeline("0": 16 frames, 1 reference, 2 loops)'
    assert "frame 0: conditioning" in bundles[0]["text/html"]


def test_the_still_picture_shows_given_edited_and_generated():
    white = np.full((3, 8, 8, 3), 255, np.uint8)
    timeline = MaskTimeline(3, [white], "0,0;0,0,1,1,1,0.5", image_size=(64, 64))
    picture, text = timeline.still()
    given, edited, generated = (picture[44:92, 60 + 52 * i : 108 + 52 * i] for i in range(3))
    assert (given == 255).all()
    assert (edited[:24] == 255).all()
    assert edited[24:].max() < 230
    assert generated.max() < 230
    assert text == timeline.explanation


def test_colours_mean_the_same_as_in_the_figures():
    meanings = {"given": figures.GIVEN, "edited": figures.EDITED, "generated": figures.GENERATED}
    for name, color in meanings.items():
        assert f"--osl-{name}: {color.lower()};" in STYLE


def test_64_frames_are_drawn_quickly_and_stay_small():
    timeline = MaskTimeline(64, [clip(64)], "0,0,0,0,64,0.5")
    assert sum(len(url) for c in timeline.clips for url in c["thumbnails"]) < 200_000
    assert len(timeline._repr_mimebundle_()[0]["text/html"]) < 200_000
