"""AttentionView without a browser: its values are those of the trace, and its choices are checked."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from opensora_lite.widgets.attention import AttentionView, words_of
from opensora_lite.widgets.player import LatentPlayer
from PIL import Image
from traitlets import TraitError

from opensora_lite import OpenSoraError, Trace
from opensora_lite.trace import TraceLoop, TraceStep

TOKENS = ["▁a", "▁", "re", "d", "▁car", "▁on", "▁a", "</s>"]
HEADS, T, H, W = 3, 4, 6, 7  # latents of an odd width: the last column of tokens is half outside
h, w, S, L = 3, 4, 12, len(TOKENS)
SHAPES = {"cross_attn": (HEADS, T, h, w, L), "attn": (HEADS, T, S, S), "attn_temp": (HEADS, S, T, T)}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def made_trace(kinds=SHAPES, blocks=(1, 4), steps=3, latents=True, captions=(TOKENS,)):
    """A Trace as a run leaves it, of random attention."""
    random, trace = np.random.default_rng(0), Trace()
    for loop, tokens in enumerate(captions):
        trace.loops.append(TraceLoop("", tokens, np.ones(T, np.float32)))
        for number in range(1, steps + 1):
            attention = {}
            for kind in kinds:
                shape = (*SHAPES[kind][:-1], len(tokens)) if kind == "cross_attn" else SHAPES[kind]
                attention |= {f"blocks.{b}.{kind}": softmax(2 * random.normal(size=shape)) for b in blocks}
            x_0 = random.normal(size=(4, T, H, W)).astype(np.float32) if latents else None
            trace._steps.append(
                TraceStep(loop, number, 1000 - 10 * number, np.ones(T, bool), x_0=x_0, attention=attention)
            )
    return trace


class Decoder:
    """Decodes a latent to a plain colour: as large as the VAE's pictures, and quick."""

    def decode(self, latents):
        return np.full((latents.shape[1], 8 * latents.shape[2], 8 * latents.shape[3], 3), (200, 40, 40), np.uint8)


@pytest.fixture(scope="module")
def trace():
    return made_trace()


@pytest.mark.parametrize("head", [None, 2])
def test_the_numbers_are_those_of_the_trace(trace, head):
    view = AttentionView(trace, step=1, block=4, head=head)
    cross, space, time = (trace[1].attention[f"blocks.4.{kind}"] for kind in SHAPES)
    heads = [0, 1, 2] if head is None else [head]
    position = 2, 1, 3
    for f, r, c in np.ndindex(T, h, w):
        expected = np.mean([cross[i, f, r, c, 1] + cross[i, f, r, c, 2] + cross[i, f, r, c, 3] for i in heads])
        assert view.word_map("red")[f, r, c] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(view.words_at(*position), np.mean([cross[i, 2, 1, 3] for i in heads], 0), rtol=1e-5)
    np.testing.assert_allclose(view.frames_at(*position), np.mean([time[i, 7, 2] for i in heads], 0), rtol=1e-5)
    for r, c in np.ndindex(h, w):
        expected = np.mean([space[i, 2, 7, 4 * r + c] for i in heads])
        assert view.positions_at(*position)[r, c] == pytest.approx(expected, rel=1e-5)
    assert view.word_map().dtype == view.positions_at(*position).dtype == np.float32


def test_words_are_made_of_pieces(trace):
    assert words_of(TOKENS) == [(0,), (1, 2, 3), (4,), (5,), (6,), (7,)]
    view = AttentionView(trace)
    assert view.word == (1, 2, 3)  # the word of the most pieces
    assert view.pieces_of("car") == view.pieces_of(4) == (4,)
    assert view.pieces_of("a") == (0, 6)  # it stands twice
    assert view.pieces_of([3, 2]) == (2, 3)
    total = sum(view.word_map(word) for word in ("a", "red", "car", "on", "</s>"))
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_what_the_browser_chooses_is_computed(trace):
    view = AttentionView(trace)
    view.set_state({"word": [4], "position": [3, 2, 1], "block": 4, "head": 1, "step": 0})
    assert (view.word, view.position, view.block, view.head, view.step) == ((4,), (3, 2, 1), 4, 1, 0)
    result, cross = view.result, trace[0].attention["blocks.4.cross_attn"][1]
    assert result["choices"]["word"] == (4,) and result["choices"]["head"] == 1
    np.testing.assert_array_equal(np.frombuffer(result["heat"], np.float32).reshape(T, h, w), cross[..., 4])
    np.testing.assert_allclose(result["words"], cross[3, 2, 1])
    np.testing.assert_allclose(result["frames"], trace[0].attention["blocks.4.attn_temp"][1, 9, 3])
    positions = trace[0].attention["blocks.4.attn"][1, 3, 9]
    np.testing.assert_array_equal(np.frombuffer(result["positions"], np.float32), positions)
    view.set_state({"head": None})
    assert view.head is None and view.result["choices"]["head"] is None


def test_it_says_in_words_what_is_looked_at(trace):
    view = AttentionView(trace, head=0, word="car", position=(1, 0, 2))
    summary, heat = view.result["summary"], view.word_map("car")
    frame, row, column = np.argwhere(heat == heat.max())[0]
    assert summary["heat"] == (
        f"Attention to “car”: {100 * heat.min():.1f}% to {100 * heat.max():.1f}%,"
        f" largest at frame {frame}, row {row}, column {column} (uniform: 12.5%)"
    )
    frames = view.frames_at(1, 0, 2)
    assert summary["frames"] == (
        f"most to frame {frames.argmax()}, {100 * frames.max():.1f}%; its own {100 * frames[1]:.1f}% (uniform: 25.0%)"
    )
    words = view.words_at(1, 0, 2)
    sums = {"red": words[1:4].sum(), "car": words[4], "on": words[5], "a": max(words[0], words[6]), "</s>": words[7]}
    best = max(sums, key=sums.get)
    assert summary["words"].startswith(f"most to “{best}”, {100 * sums[best]:.1f}%")
    view.whole_words = False
    piece = TOKENS[int(words.argmax())].replace("▁", "") or "▁"
    assert view.result["summary"]["words"] == f"most to “{piece}”, {100 * words.max():.1f}% (uniform: 12.5%)"


@pytest.mark.parametrize("kind", SHAPES)
def test_what_was_not_recorded_says_how_to_record_it(kind):
    """One kind of attention is enough for a view."""
    view = AttentionView(made_trace([kind]))
    summary, result, (picture, alt) = view.result["summary"], view.result, view.still()
    assert picture.shape[2] == 3
    for name, needed in dict(heat="cross_attn", words="cross_attn", frames="attn_temp", positions="attn").items():
        text = f'not recorded: Trace(attention=["blocks.1.{needed}"])'
        assert (result[name] is None) == (summary[name] == text) == (text in alt) == (needed != kind)
    ask = {"cross_attn": view.frames_at, "attn": view.words_at, "attn_temp": view.positions_at}[kind]
    with pytest.raises(OpenSoraError, match=r"not recorded: Trace\(attention=\["):
        ask(0, 0, 0)


@pytest.mark.parametrize(
    "name, value",
    [
        ("step", 3),
        ("step", "last"),
        ("block", 2),
        ("head", 3),
        ("word", (8,)),
        ("word", ()),
        ("word", 1.5),
        ("position", (4, 0, 0)),
        ("position", (0, 0)),
        ("position", 5),
        ("picture", "first"),
        ("opacity", 2.0),
        ("opacity", "half"),
    ],
)
def test_invalid_choices_are_refused_and_change_nothing(trace, name, value):
    with pytest.raises(OpenSoraError, match=name):
        AttentionView(trace, **{name: value})
    view = AttentionView(trace)
    before = view.get_state()
    with pytest.raises(TraitError, match=name):
        setattr(view, name, value)
    assert view.get_state() == before


def test_words_and_choices_that_do_not_exist(trace):
    with pytest.raises(OpenSoraError) as error:
        AttentionView(trace, word="bus")
    assert '"bus" is not a word' in str(error.value) and "a, red, car, on, </s>" in str(error.value)
    with pytest.raises(OpenSoraError, match="no layer"):
        AttentionView(trace, layer=2)
    with pytest.raises(OpenSoraError, match="position"):
        AttentionView(trace).words_at(0, 3, 0)


def test_numbers_of_numpy_are_numbers(trace):
    heat = AttentionView(trace, word="car").word_map()
    position = np.unravel_index(heat.argmax(), heat.shape)
    view = AttentionView(
        trace, step=np.int64(2), block=np.int32(4), head=np.int64(0), word=np.arange(2), position=position
    )
    assert (view.word, view.position, view.block) == ((0, 1), tuple(int(i) for i in position), 4)
    assert view.words_at(*position).shape == (L,)


def test_traces_that_cannot_be_shown():
    with pytest.raises(OpenSoraError, match=r'has no attention; .*Trace\(attention=\["blocks'):
        AttentionView(Trace())
    with pytest.raises(OpenSoraError, match="has no attention"):
        AttentionView(made_trace([]))
    with pytest.raises(OpenSoraError, match="must be a Trace"):
        AttentionView("trace")
    with pytest.raises(OpenSoraError, match="must be an OpenSora"):
        AttentionView(made_trace(), "tiny")
    with pytest.raises(OpenSoraError, match=r"rows and columns.*Trace\(latents=True"):
        AttentionView(made_trace(["attn_temp"], latents=False))


def test_another_loop_may_have_another_caption():
    other = ["▁", "s", "n", "o", "w", "</s>"]
    trace = made_trace(captions=(TOKENS, other), steps=2)
    view = AttentionView(trace, step=0, word="car")
    view.step = 1
    assert view.word == (4,)
    view.step = 2
    assert view.word == (0, 1, 2, 3, 4) and view.result["choices"]["word"] == view.word
    assert "“snow”" in repr(view) and "loop 2, step 1" in repr(view)
    view.set_state({"step": 0, "word": [7]})  # a word of the new caption, chosen together with it
    assert view.word == (7,)


def film(view):
    return np.asarray(Image.open(io.BytesIO(view.film)).convert("RGB"))


def test_pictures_without_a_pipe_are_the_first_latent_channel(trace):
    view = AttentionView(trace)
    latents = trace[2].x_0[0]
    shade = np.round(255 * (latents - latents.min()) / np.ptp(latents)).reshape(T * H, W)
    np.testing.assert_allclose(film(view), np.repeat(shade[..., None], 3, -1), atol=1)
    view.set_state({"step": 0})
    np.testing.assert_allclose(film(view)[..., 0], shade, atol=1)
    view.set_state({"picture": "step"})
    assert np.abs(film(view)[..., 0] - shade).mean() > 10


def test_pictures_are_decoded_once_and_stay_small(trace):
    class Counting(Decoder):
        calls = 0

        def decode(self, latents):
            self.calls += 1
            return np.random.default_rng(0).integers(0, 256, (64, 256, 320, 3), np.uint8)

    pipe = Counting()
    view = AttentionView(trace, pipe)
    for head in range(HEADS):
        view.head = head
    assert pipe.calls == 1
    pixels = film(view)
    assert pixels.shape[0] % 64 == 0 and pixels.size / 3 <= 2**18
    assert len(view.film) < 250_000  # noise, which no film is


def test_without_latents_there_is_heat_and_no_picture():
    view = AttentionView(made_trace(latents=False), Decoder())
    assert view.film == b"" and view.result["heat"] is not None
    assert view.plan["extent"] == (3, 4)
    assert view.still()[0].shape[2] == 3


def test_what_is_shown_depends_on_the_state_alone(trace):
    views = [AttentionView(trace, Decoder(), word="car", position=(1, 2, 3)) for _ in range(2)]
    assert repr(views[0]) == "AttentionView(step 3, block 1, mean of 3 heads, “car”, frame 1, row 2, column 3)"
    bundles = [view._repr_mimebundle_()[0] for view in views]
    assert bundles[0]["text/html"] == bundles[1]["text/html"] and bundles[0]["text/plain"] == repr(views[0])
    picture, text = views[0].still()
    assert picture.dtype == np.uint8 and picture.shape[1] >= 800
    assert "Attention to “car”:" in text and "Frame 1, row 2, column 3 attends: words, most to" in text
    views[0].head = 1
    assert not np.array_equal(views[0].still()[0], picture)


def test_colors_are_those_of_the_figures(trace):
    colors = np.frombuffer(AttentionView(trace).plan["colors"], np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(colors, colormaps["viridis"](np.arange(256), bytes=True)[:, :3])


def test_steps_whose_output_was_reused_show_its_attention():
    trace = made_trace()
    trace._steps[1] = replace(trace[1], reused=True, attention=trace[0].attention)
    view = AttentionView(trace, step=1)
    assert "step 2 (reused the previous output)" in repr(view) and "(reused the previous output)" in view.still()[1]
    assert [step["reused"] for step in view.plan["steps"]] == [False, True, False]
    before = view.word_map()
    view.step = 0
    np.testing.assert_array_equal(view.word_map(), before)


def test_a_real_trace_with_a_step_cache(pipe):
    trace = Trace(attention=["blocks.2.cross_attn"])
    settings = dict(num_frames=2, num_sampling_steps=8, image_size=(32, 32), cache_threshold=2.0)
    pipe("a red car", trace=trace, **settings)
    reused = [step.reused for step in trace]
    assert any(reused) and not reused[0]
    view, player = AttentionView(trace), LatentPlayer(trace, pipe)
    for view.step in range(8):
        player.step = view.step
        assert ("reused" in repr(view)) == reused[view.step] == any("reused" in note for note in player.shown["notes"])
        assert view.word_map("car").shape == (2, 2, 2)


def test_a_real_trace(pipe):
    """The names and the shapes are those that a run records."""
    trace = Trace(attention=["blocks.2.cross_attn", "blocks.2.attn", "blocks.2.attn_temp"], steps=[4])
    pipe("a red car driving right on the ocean", num_frames=4, num_sampling_steps=4, image_size=(64, 48), trace=trace)
    view = AttentionView(trace, pipe, word="car", position=(3, 3, 2))
    assert view.grid == (4, 4, 3) and film(view).shape == (4 * 64, 48, 3)
    for shares in (view.words_at(3, 3, 2), view.frames_at(3, 3, 2), view.positions_at(3, 3, 2)):
        assert shares.sum() == pytest.approx(1, abs=1e-3)
    state = view.get_state()
    assert len(state["film"]) + len(view.result["heat"]) < 100_000
