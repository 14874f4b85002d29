"""The checks of the lessons' exercises, and the animations that show in every viewer."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[cpu,notebook]'")
from opensora_lite.widgets import figures
from opensora_lite.widgets.exercises import check


@pytest.mark.parametrize(
    "answer, expected, tolerance, begins",
    [
        (None, 1.0, 0.1, "Still to do"),
        (1.05, 1.0, 0.1, "Right"),
        (np.array([1.0, 2.0]), [1, 2], 1e-6, "Right"),
        (1.2, 1.0, 0.1, "Not yet: it is 1.2; 1 ± 0.1"),
        (np.array([1.0, 3.0]), [1, 2], 1e-6, "Not yet: at [1] it is 3"),
        (np.zeros((2, 3)), np.zeros((3, 2)), 1.0, "Not yet: the shape is (2, 3) instead of (3, 2)"),
        (float("nan"), 1.0, 10.0, "Not yet"),
        ("one", 1.0, 0.1, "Not yet: a number or an array is expected, not str"),
        ([1, [2, 3]], [1, 2], 0.1, "Not yet: a number or an array is expected, not list"),
    ],
)
def test_check_says_what_is_wrong(answer, expected, tolerance, begins, capsys):
    check(answer, expected, tolerance)
    assert capsys.readouterr().out.startswith(begins)


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    found: list[dict] = []
    monkeypatch.setattr(figures, "display", lambda data, raw: found.append(data))
    return found


def test_an_animation_is_a_png_that_moves_and_repeats(shown):
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    for k in range(5):
        frames[k, :, 6 * k : 6 * k + 6] = (255, 40 * k, 0)
    for _ in range(2):
        figures.animation(frames, "a bar moves to the right", milliseconds=50, hold=700)
    assert shown[0] == shown[1] and shown[0]["text/plain"] == "Animation: a bar moves to the right"
    with Image.open(io.BytesIO(shown[0]["image/png"])) as picture:
        assert (picture.format, picture.n_frames, picture.info["loop"]) == ("PNG", 5, 0)
        times = []
        for k in range(5):
            picture.seek(k)
            page = np.asarray(picture.convert("RGB"), int)
            assert np.abs(page[:20, :30] - frames[k]).max() <= 8  # of a palette
            assert page[:, 300:].min() == 255 and 0.01 < (page[20:, :200] < 128).mean() < 0.3  # the caption
            times.append(picture.info["duration"])
    assert times == [50, 50, 50, 50, 700]


def test_a_small_area_keeps_its_colour():
    sky = np.stack(np.meshgrid(np.arange(256), np.arange(64), [90]), axis=-1).reshape(64, 256, 3)
    picture = np.minimum(sky + np.arange(64)[:, None, None], 255).astype(np.uint8)
    picture[40:44, 100:108] = 250, 220, 20  # a car in the distance
    images = [figures.reduced(Image.fromarray(picture), 64) for _ in range(2)]
    assert images[0].tobytes() == images[1].tobytes() and images[0].getpalette() == images[1].getpalette()
    error = np.abs(np.asarray(images[0].convert("RGB"), int) - picture).max(axis=-1)
    assert error[40:44, 100:108].max() <= 16 and error.max() <= 32


def test_moving_clouds_draw_every_frame(shown):
    path = np.linspace(-1, 1, 4)[:, None, None] * np.ones((4, 7, 2))
    figures.moving_clouds({"out": path, "back": path[::-1]}, "points", [f"t = {k}" for k in range(4)], np.arange(7))
    with Image.open(io.BytesIO(shown[0]["image/png"])) as picture:
        assert picture.n_frames == 4 and picture.size == (600, 356)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # as white as the page


def test_recorded_values_are_not_shown(shown):
    figures.record(losses=np.array([1.0, 0.5]), steps=np.int64(3))
    assert shown == [{figures.RESULT: {"losses": [1.0, 0.5], "steps": 3}, "text/plain": ""}]
