"""Images and videos in and out. Every file is made here."""

import base64
import importlib.util
import io
import os
import re
import struct
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opensora_lite import video as video_module
from opensora_lite.errors import MediaError, SizeError
from opensora_lite.io import clips, media, writing
from opensora_lite.video import Video, count_frames, open_reference, read_image, read_reference, read_video

needs_mediapy = pytest.mark.skipif(
    importlib.util.find_spec("mediapy") is None, reason="needs mediapy: pip install -e '.[cpu,notebook]'"
)


def smooth(frames=6, height=64, width=96):
    """A slow gradient in all three colours: uint8 [T, H, W, 3]."""
    t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return np.rint(np.stack([255 * x, 255 * y, 40 + 160 * t], -1)).astype(np.uint8)


def noise(*shape, seed=0):
    """uint8 [*shape, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def message(call, *args, error=MediaError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def encode(path, frames, container_format, codec, pix_fmt, rate=24, **stream_options):
    import av

    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, **stream_options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def leftovers(directory):
    return [name for name in os.listdir(directory) if name.startswith(".")]


# Video ------------------------------------------------------------------------------------------------------


def test_properties():
    video = Video(smooth(12, 64, 96), fps=24)
    assert (len(video), video.height, video.width, video.duration) == (12, 64, 96, 0.5)
    assert (video.path, video.prompt, video.fps) == (None, None, 24.0)
    assert repr(video) == "Video(12 frames, 64×96, 24 fps)"
    assert repr(Video(smooth(1, 8, 8), fps=23.976)) == "Video(1 frame, 8×8, 23.976 fps)"


@pytest.mark.parametrize(
    "frames, fps, text",
    [
        ([[1]], 24, "frames must be a numpy array, uint8 [T, H, W, 3], not list"),
        (np.zeros((4, 4, 3), np.uint8), 24, "frames must have the shape [T, H, W, 3], not [4, 4, 3]"),
        (np.zeros((1, 4, 4, 4), np.uint8), 24, "frames must have the shape [T, H, W, 3], not [1, 4, 4, 4]"),
        (np.zeros((0, 4, 4, 3), np.uint8), 24, "frames must hold at least one frame and one pixel, not [0, 4, 4, 3]"),
        (np.zeros((1, 4, 4, 3)), 24, "frames must be uint8 (0 … 255), not float64"),
        (np.zeros((1, 4, 4, 3), np.uint8), 0, "fps must be at least 0.01, not 0"),
        (np.zeros((1, 4, 4, 3), np.uint8), 2000, "fps must be at most 1000, not 2000"),
        (np.zeros((1, 4, 4, 3), np.uint8), float("nan"), "fps must be a finite number, not nan"),
        (np.zeros((1, 4, 4, 3), np.uint8), "fast", "fps must be a number, not 'fast'"),
    ],
)
def test_invalid_video(frames, fps, text):
    assert message(Video, frames, fps) == text


@needs_mediapy
def test_html_plays_and_is_deterministic(tmp_path):
    video = Video(noise(8, 50, 33), fps=12, prompt='a <b>red</b> "car" & more')
    bundle = video._repr_mimebundle_()
    for again in range(3):
        assert Video(video.frames.copy(), fps=12, prompt=video.prompt)._repr_mimebundle_() == bundle, again
    assert bundle["text/plain"] == "Video(8 frames, 50×33, 12 fps)"
    shown = bundle["text/html"]
    assert all(word in shown for word in ("<video ", "controls", "autoplay", "loop", "muted", "pixelated"))
    assert 'width="272" height="400"' in shown  # (33 padded to 34, 50) × 8
    assert "<b>" not in shown and shown.count("a &lt;b&gt;red&lt;/b&gt; &quot;car&quot; &amp; more") == 2
    (data,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', shown)
    (tmp_path / "x.mp4").write_bytes(base64.b64decode(data))
    assert len(read_video(tmp_path / "x.mp4")) == 8
    assert b"moov" in base64.b64decode(data)[:64]  # the index comes first


def test_html_without_mediapy_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapy", None)
    video = Video(smooth(), prompt="a <b>")
    bundle = video._repr_mimebundle_()
    assert bundle["text/plain"] == repr(video)
    assert "pip install -e &quot;.[cpu,notebook]&quot;" in bundle["text/html"] and "<b>" not in bundle["text/html"]


def test_html_does_not_depend_on_process():
    code = (
        "import hashlib, numpy as np; from opensora_lite.video import Video;"
        "f = np.random.default_rng(1).integers(0, 256, (5, 34, 50, 3), dtype=np.uint8);"
        "print(hashlib.md5(Video(f)._html().encode()).hexdigest())"
    )
    assert len({subprocess.check_output([sys.executable, "-c", code]) for _ in range(3)}) == 1


@needs_mediapy
def test_html_single_frame_is_an_image():
    frame = noise(1, 20, 30)
    shown = Video(frame)._repr_mimebundle_()["text/html"]
    assert "<video" not in shown and 'width="270"' in shown
    (data,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', shown)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), frame[0])


@needs_mediapy
@pytest.mark.parametrize("frames", [12, 1])
@pytest.mark.parametrize("limit", [150_000, 20_000])
def test_html_of_something_big_is_a_small_sheet(monkeypatch, frames, limit):
    monkeypatch.setattr(video_module, "MAX_EMBEDDED_BYTES", limit)
    video = Video(noise(frames, 180, 320), prompt="noise")
    shown = video._repr_mimebundle_()["text/html"]
    assert "<video" not in shown and "data:image/png" in shown and video._html() == shown
    assert len(shown) < 1.34 * limit + 1000  # base64 adds a third
    assert "noise<br>" in shown and "MB is too much for a notebook: save() it to play it" in shown


@needs_mediapy
def test_html_without_an_encoder(monkeypatch):
    def broken(*_):
        raise MediaError("no <h264> here")

    monkeypatch.setattr(writing, "mp4_bytes", broken)
    shown = Video(smooth())._repr_mimebundle_()["text/html"]
    assert "data:image/png" in shown and "no &lt;h264&gt; here" in shown


def test_contact_sheet():
    frames = noise(10, 20, 30)
    video = Video(frames)
    sheet = np.asarray(video.contact_sheet(columns=4, gap=3, labels=False))
    assert sheet.shape == (3 * 100 + 2 * 3, 4 * 150 + 3 * 3, 3)  # scaled by 5, because 4 would give 80 px
    for i in range(10):
        y, x = i // 4 * 103, i % 4 * 153
        assert np.array_equal(sheet[y : y + 100 : 5, x : x + 150 : 5], frames[i])
    assert (sheet[100:103] == 255).all() and (sheet[:, 150:153] == 255).all() and (sheet[206:, 306:] == 255).all()
    assert video.contact_sheet(labels=False, scale=1).size == (8 * 32 - 2, 2 * 22 - 2)
    assert video.contact_sheet(labels=False, scale=0.5, frames=[0, -1]).size == (32, 10)
    assert Video(noise(2, 200, 10)).contact_sheet(labels=False).size == (22, 200)


def test_contact_sheet_labels():
    video = Video(np.zeros((12, 96, 96, 3), np.uint8))
    sheet = np.asarray(video.contact_sheet(frames=[3, 11]))
    assert sheet.shape == (110, 194, 3)
    assert (sheet[:14, :96] < 128).any() and (sheet[:14, 98:] < 128).any()  # ink in the line above
    assert (sheet[14:, :96] == 0).all()  # none on the frame
    assert (sheet == np.asarray(video.contact_sheet(frames=range(3, 12, 8)))).all()


def test_contact_sheet_errors():
    video = Video(smooth(4))
    assert message(video.contact_sheet, frames=[4]) == "frame 4 does not exist; the video has 4 (0 … 3)"
    assert message(video.contact_sheet, frames=[]) == "a contact sheet needs at least one frame"
    assert message(video.contact_sheet, scale=0) == "scale must be more than 0, not 0"
    assert message(video.contact_sheet, columns=0) == "columns must be at least 1, not 0"


# save -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [24, 8, 23.976, 60, 2.5, 30000 / 1001])
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_mp4_round_trip(tmp_path, fps, frames):
    video = Video(smooth(frames), fps=fps)
    path = video.save(tmp_path / "new" / "dir" / "a.mp4")
    assert path == video.path == tmp_path / "new" / "dir" / "a.mp4" and not leftovers(path.parent)
    back = read_video(path)
    assert back.frames.shape == video.frames.shape and back.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(back.frames, video.frames) > 35
    assert all(psnr(a, b) > 30 for a, b in zip(back.frames, video.frames, strict=True))
    assert count_frames(path) == frames


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
def test_mp4_keeps_plain_colours(tmp_path, colour):
    back = read_video(Video(np.full((3, 32, 32, 3), colour, np.uint8)).save(tmp_path / "a.mp4"))
    assert np.abs(back.frames.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (64, 33), (51, 51), (21, 200)])
def test_mp4_odd_sizes_repeat_the_edge(tmp_path, size):
    frames = smooth(4, *size)
    back = read_video(Video(frames).save(tmp_path / "a.mp4")).frames
    padded = np.pad(frames, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
    assert back.shape == padded.shape and psnr(back, padded) > 28


def test_mp4_is_what_browsers_play_and_deterministic(tmp_path):
    import av

    a, b = (Video(noise(6, 34, 50), prompt="x").save(tmp_path / name) for name in ("a.mp4", "b.MP4"))
    assert a.read_bytes() == b.read_bytes()
    with av.open(str(a)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)


def test_gif_round_trip(tmp_path):
    frames = smooth(9, 33, 51)
    frames[4] = frames[3] = frames[2]  # equal neighbours must stay three frames
    path = Video(frames, fps=10).save(tmp_path / "a.gif")
    back = read_video(path)
    assert back.frames.shape == frames.shape and psnr(back.frames, frames) > 25
    assert back.fps == pytest.approx(10) and count_frames(path) == 9
    assert path.read_bytes() == Video(frames, fps=10).save(tmp_path / "b.gif").read_bytes()
    assert read_video(Video(frames, fps=24).save(tmp_path / "c.gif")).fps == pytest.approx(24, rel=0.05)
    with Image.open(path) as image:
        assert image.n_frames == 9 and image.info["loop"] == 0


@pytest.mark.parametrize("frames", [np.zeros((3, 8, 8, 3), np.uint8), noise(3, 8, 8), noise(1, 5, 5)])
def test_gif_with_few_colours_is_exact(tmp_path, frames):
    assert np.array_equal(read_video(Video(frames, fps=10).save(tmp_path / "a.gif")).frames, frames)


def test_png_and_sequence_are_exact(tmp_path):
    frames = noise(11, 33, 51)
    one = Video(frames[:1]).save(tmp_path / "one.png")
    assert np.array_equal(read_image(one), frames[0])
    directory = Video(frames).save(tmp_path / "many")
    assert sorted(os.listdir(directory)) == [f"frame_{i:04d}.png" for i in range(11)]
    assert all(np.array_equal(read_image(directory / f"frame_{i:04d}.png"), frames[i]) for i in range(11))
    Video(frames[::-1][:3]).save(tmp_path / "many")  # an older sequence goes as a whole
    assert sorted(os.listdir(directory)) == [f"frame_{i:04d}.png" for i in range(3)]
    assert np.array_equal(read_image(directory / "frame_0000.png"), frames[10])
    assert sorted(os.listdir(tmp_path)) == ["many", "one.png"]


def test_save_of_a_view_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = Video(smooth(8)[::-2, :, ::-1])
    assert video.save("a b %d ü.mp4").name == "a b %d ü.mp4"
    assert psnr(read_video("a b %d ü.mp4").frames, video.frames) > 35


def test_save_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    Video(smooth()).save(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink() and count_frames(tmp_path / "real" / "a.mp4") == 6


def test_save_errors(tmp_path):
    video = Video(smooth(3))
    for name, suffix in (("a.mkv", ".mkv"), ("a.txt", ".txt"), ("a.", ".")):
        if name == "a." and sys.version_info < (3, 14):
            continue  # no suffix before 3.14
        assert message(video.save, tmp_path / name) == (
            f'{tmp_path / name}: a video cannot be saved as "{suffix}"; what works: .mp4, .webm, .gif, '
            ".webp, .png (one frame), "
            "or a name without a suffix (a directory of PNG frames)"
        )
    assert "a .png holds one frame, and this video has 3; use .mp4, .webm" in message(video.save, tmp_path / "a.png")
    fast = Video(smooth(3), fps=60)
    assert message(fast.save, tmp_path / "a.gif").endswith("at most 50 frames per second, not 60; use .webp or .mp4")
    assert message(video.save, tmp_path / ".mp4").endswith(".mp4 has no file name to save under")
    assert message(video.save, "..") == ".. has no file name to save under"
    assert message(video.save, "") == "a path was expected, not ''"
    assert message(video.save, 3) == "a path was expected, not int: 3"
    assert message(video.save, "https://x.org/a.mp4").startswith("https://x.org/a.mp4 is an address")
    assert os.listdir(tmp_path) == []


def test_save_spares_what_is_there(tmp_path):
    video = Video(smooth(3))
    old = tmp_path / "a.mp4"
    old.write_bytes(b"old")
    assert message(video.save, old, overwrite=False) == f"{old} exists already, and overwrite is False"
    (tmp_path / "dir.mp4").mkdir()
    assert message(video.save, tmp_path / "dir.mp4").endswith("is a directory; a .mp4 file cannot take its place")
    (tmp_path / "file").write_bytes(b"old")
    assert message(video.save, tmp_path / "file").endswith("is a file; a directory of PNG frames cannot take its place")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").write_text("years of work")
    assert message(video.save, tmp_path / "results").endswith(
        "holds thesis.tex; only a directory of nothing but frame_0000.png … is replaced"
    )
    assert (tmp_path / "results" / "thesis.tex").read_text() == "years of work"
    assert "file/b.mp4 cannot be written" in message(video.save, tmp_path / "file" / "b.mp4")
    assert old.read_bytes() == b"old" and not leftovers(tmp_path) and video.path is None
    video.save(old)
    assert count_frames(old) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, name):
    old = Video(noise(2, 16, 16)).save(tmp_path / name)
    before = {p.name: p.read_bytes() for p in ([old] if old.is_file() else old.iterdir())}
    write = writing.WRITERS[old.suffix]

    def full(path, frames, fps, comment):
        write(path, frames, fps, comment)
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writing.WRITERS, old.suffix, full)
    assert message(Video(smooth(3)).save, old) == f"{old} cannot be written: No space left on device"

    def interrupted(path, frames, fps, comment):
        write(path, frames, fps, comment)
        raise KeyboardInterrupt

    monkeypatch.setitem(writing.WRITERS, old.suffix, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Video(smooth(3)).save(old)
    assert {p.name: p.read_bytes() for p in ([old] if old.is_file() else old.iterdir())} == before
    assert os.listdir(tmp_path) == [name]


def test_a_directory_comes_back_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    old = Video(noise(2, 16, 16)).save(tmp_path / "a")
    rename = os.rename

    def fails_for_the_new_one(source, target):
        if target == old and len(os.listdir(source)) == 3:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    assert message(Video(smooth(3)).save, old) == f"{old} cannot be written: Input/output error"
    assert os.listdir(tmp_path) == ["a"] and len(os.listdir(old)) == 2


def test_a_lost_frame_is_noticed(tmp_path, monkeypatch):
    write = writing.WRITERS[".mp4"]
    monkeypatch.setitem(writing.WRITERS, ".mp4", lambda path, frames, *rest: write(path, frames[1:], *rest))
    path = tmp_path / "a.mp4"
    assert message(Video(smooth(5)).save, path) == f"{path} was not saved: 5 frames were written, 4 came back"
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_read_back_is_not_saved(monkeypatch, tmp_path):
    def decoded(*_):
        raise MediaError("cannot be read")

    path = tmp_path / "a.mp4"
    monkeypatch.setattr(writing, "count_decoded", decoded)
    said = "it could not be read back; perhaps there is not enough memory"
    assert message(Video(smooth(5)).save, path) == f"{path} was not saved: {said}"
    assert list(tmp_path.iterdir()) == []


# reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, container_format, codec, pix_fmt",
    [
        ("a.avi", "avi", "mpeg4", "yuv420p"),
        ("a.avi", "avi", "mjpeg", "yuvj420p"),
        ("a.mov", "mov", "libx264", "yuv420p"),
        ("a.MKV", "matroska", "libx264", "yuv444p"),
        ("a.webm", "webm", "libvpx", "yuv420p"),
        ("a.webm", "webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_other_containers(tmp_path, name, container_format, codec, pix_fmt):
    frames = smooth(20)
    path = encode(tmp_path / name, frames, container_format, codec, pix_fmt)
    video = read_video(str(path))
    assert video.frames.shape == frames.shape and video.fps == pytest.approx(24, rel=0.01)
    assert psnr(video.frames, frames) > 25 and video.path is None
    assert count_frames(path) == 20


def test_invisible_packets_are_not_counted(tmp_path):
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "50k"}  # vp8 then adds frames nobody sees
    path = encode(tmp_path / "a.webm", noise(40, 32, 32), "webm", "libvpx", "yuv420p", options=options)
    assert count_frames(path) == len(read_video(path)) == 40


def test_frames_that_refer_to_missing_ones_are_not_counted(tmp_path):
    """A clip that was cut without encoding it anew: it begins with B-frames of a group that is gone (open GOP)."""
    import av

    params = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
    whole = encode(
        tmp_path / "whole.mkv", smooth(48), "matroska", "libx264", "yuv420p", options={"x264-params": params}
    )
    path = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        start = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        new = hasattr(target, "add_stream_from_template")  # PyAV 14
        copy = target.add_stream_from_template(stream) if new else target.add_stream(template=stream)
        for packet in packets[start:]:
            packet.stream = copy
            target.mux(packet)
    frames = read_video(path).frames
    assert count_frames(path) == len(frames) == len(packets) - start - 3
    assert open_reference(path).frames([0, len(frames) - 1], 64, 96).shape == (2, 64, 96, 3)


def test_frames_come_in_display_order(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 12 * i, np.uint8) for i in range(20)])
    path = encode(tmp_path / "a.mp4", frames, "mp4", "libx264", "yuv420p", options={"bf": "4"})
    assert (np.diff(read_video(path).frames.mean((1, 2, 3))) > 5).all()


@pytest.mark.parametrize(
    "matrix, turns",  # of numpy's rot90, counter-clockwise
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_rotation_is_honoured(tmp_path, matrix, turns):
    import av

    if not hasattr(av.VideoFrame, "rotation"):
        pytest.skip("this PyAV does not tell the rotation")
    frames = smooth(3, 64, 96)
    data = Video(frames).save(tmp_path / "a.mp4").read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # the display matrix a, b, u, c, d, v, x, y, w in a track header
    a, b, c, d = (n * 65536 for n in matrix)
    (tmp_path / "b.mp4").write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    assert psnr(read_video(tmp_path / "b.mp4").frames, np.rot90(frames, turns, axes=(1, 2))) > 35


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".tiff", ".PNG", ".webp", ".jpg", ".jpeg"])
def test_image_formats(tmp_path, suffix):
    pixels = smooth(1)[0]
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **options)
    back = read_image(tmp_path / f"a{suffix}")
    assert back.dtype == np.uint8 and back.shape == pixels.shape
    assert psnr(back, pixels) > 30 if suffix.startswith(".jp") else np.array_equal(back, pixels)
    assert count_frames(tmp_path / f"a{suffix}") == 1


def test_image_modes(tmp_path):
    pixels = smooth(1, 40, 50)[0]
    image, path = Image.fromarray(pixels), tmp_path / "a.png"
    grey = np.asarray(image.convert("L"))

    image.convert("RGBA").save(path)
    assert np.array_equal(read_image(path), pixels)
    image.convert("L").save(path)
    assert np.array_equal(read_image(path), np.repeat(grey[..., None], 3, 2))
    image.convert("LA").save(path)
    assert np.array_equal(read_image(path), np.repeat(grey[..., None], 3, 2))
    image.convert("1").save(path)
    assert set(np.unique(read_image(path))) == {0, 255}
    palette = image.quantize(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette.save(path, transparency=bytes(range(64)))
        share = np.asarray(palette)[..., None] / 255  # the i-th colour has an alpha of i
        over_white = 255 + (np.asarray(palette.convert("RGB")) - 255.0) * share
        assert np.abs(read_image(path) - over_white).max() <= 1
    for suffix in (".png", ".tif"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"deep{suffix}")
        assert np.array_equal(read_image(tmp_path / f"deep{suffix}"), np.repeat(grey[..., None], 3, 2))
    image.convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    assert "float.tif holds floating-point pixels" in message(read_image, tmp_path / "float.tif")


def test_exif_orientation(tmp_path):
    pixels = smooth(1, 40, 60)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert psnr(read_image(tmp_path / "a.jpg"), np.rot90(pixels, -1)) > 30
    assert read_reference(tmp_path / "a.jpg", 60, 40).shape == (1, 60, 40, 3)


# references -------------------------------------------------------------------------------------------------


def slow_resize_crop(frame, th, tw):
    """Open-Sora's resize_crop of a video frame, pixel by pixel in double precision, not rounded."""
    h, w, _ = frame.shape
    rh, rw = th / h, tw / w
    if rh > rw:
        sh, sw = th, round(w * rh)
        top, left = 0, int(round(sw - tw) / 2.0)
    else:
        sh, sw = round(h * rw), tw
        top, left = int(round(sh - th) / 2.0), 0
    out = np.zeros((th, tw, 3))
    for i in range(th):
        for j in range(tw):
            y = max((i + top + 0.5) * h / sh - 0.5, 0)
            x = max((j + left + 0.5) * w / sw - 0.5, 0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            for value, weight in (
                (frame[y0, x0], (1 - (y - y0)) * (1 - (x - x0))),
                (frame[y0, x1], (1 - (y - y0)) * (x - x0)),
                (frame[y1, x0], (y - y0) * (1 - (x - x0))),
                (frame[y1, x1], (y - y0) * (x - x0)),
            ):
                out[i, j] += value * weight
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24))
def test_videos_are_resized_as_the_original_does(h, w, th, tw):
    frames = noise(2, h, w, seed=h * 41 + w)
    out = open_reference(frames).frames([0, 1], th, tw)
    assert out.shape == (2, th, tw, 3) and out.dtype == np.float32
    for frame, got in zip(frames, out, strict=True):
        assert np.abs(got - slow_resize_crop(frame, th, tw)).max() <= 0.01  # positions are float32 in the original too


@pytest.mark.parametrize("h, w, th, tw", [(40, 60, 32, 32), (60, 40, 32, 48), (33, 20, 64, 64), (32, 32, 32, 32)])
def test_images_are_resized_as_the_original_does(tmp_path, h, w, th, tw):
    pixels = noise(h, w)
    image = Image.fromarray(pixels)
    if th / h > tw / w:
        sw = round(w * (th / h))
        left = round((sw - tw) / 2)
        expected = np.asarray(image.resize((sw, th), Image.BICUBIC))[:, left : left + tw]
    else:
        sh = round(h * (tw / w))
        top = round((sh - th) / 2)
        expected = np.asarray(image.resize((tw, sh), Image.BICUBIC))[top : top + th]
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels, pixels[None], Video(pixels[None])):
        out = read_reference(source, th, tw)
        assert out.shape == (1, th, tw, 3) and out.dtype == np.uint8 and np.array_equal(out[0], expected)
        assert count_frames(source) == 1


def test_video_reference_from_a_file_and_from_memory(tmp_path):
    path = Video(smooth(5)).save(tmp_path / "a.mp4")
    video = read_video(path)
    for source in (path, video, video.frames):
        out = read_reference(source, 48, 40)
        assert out.shape == (5, 48, 40, 3) and count_frames(source) == 5
        assert np.array_equal(out, read_reference(video.frames, 48, 40))
    assert np.array_equal(read_reference(video, 64, 96), video.frames)  # nothing to do, nothing changed


def test_an_opened_reference_gives_the_frames_that_are_asked_for(tmp_path):
    video = Video(smooth(7))
    path = video.save(tmp_path / "a.gif")
    back = read_video(path).frames
    for source, frames in ((path, back), (video, video.frames), (video.frames, video.frames)):
        reference = open_reference(source)
        assert (reference.num_frames, reference.height, reference.width) == (7, 64, 96)
        assert np.array_equal(reference.frames([5, 0, 5], 64, 96), frames[[5, 0, 5]])
        assert reference.frames([], 8, 8).shape == (0, 8, 8, 3)
    assert open_reference(path).name == str(path)
    reference = open_reference(path)
    Video(smooth(3)).save(path)
    assert "changed" in message(reference.frames, [0, 5], 64, 96)


def test_a_bug_while_reading_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = Video(smooth(3)).save(tmp_path / "a.mp4")

    def broken(*_):
        raise NameError("name 'x' is not defined")

    monkeypatch.setattr(clips, "_upright", broken)
    for reader in (read_video, lambda path: read_reference(path, 8, 8)):
        with pytest.raises(NameError):
            reader(path)


def test_reference_errors(tmp_path):
    pixels = noise(8, 8)
    for bad in (0, -8, 8.0, True, None):
        text = message(read_reference, pixels, bad, 8, error=SizeError)
        assert "the height of a reference" in text
    assert "the width of" in message(read_reference, pixels, 8, 0, error=SizeError)
    assert message(read_reference, pixels / 255, 8, 8) == "frames must be uint8 (0 … 255), not float64"
    assert message(count_frames, pixels[..., 0]) == "frames must have the shape [T, H, W, 3], not [8, 8]"
    assert "a reference must be a path" in message(read_reference, ["a.png"], 8, 8)
    assert message(read_reference, noise(1, 20000), 512, 512) == (
        "the array is 20000×1, too far from 512×512 to be resized and cropped to it"
    )
    assert "floating-point" in message(read_reference, Image.new("F", (4, 4)), 8, 8)


# bad files --------------------------------------------------------------------------------------------------


def every_reader(path):
    """The message of all readers that fit, which must be the same."""
    kind = read_image if str(path).endswith((".png", ".jpg", ".tif")) else read_video
    texts = {message(kind, path), message(count_frames, path), message(read_reference, path, 8, 8)}
    assert len(texts) == 1, texts
    return texts.pop()


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert every_reader("no/a.png") == f"no/a.png does not exist (working directory: {tmp_path})"
    assert every_reader("a.mp4") == f"a.mp4 does not exist (working directory: {tmp_path})"
    assert every_reader("") == "a path was expected, not ''"
    assert every_reader("a\0.mp4") == "a path was expected, not 'a\\x00.mp4'"
    assert message(read_video, None) == "a path was expected, not NoneType: None"
    assert every_reader("x" * 300 + ".mp4").endswith("cannot be read: File name too long")
    (tmp_path / "file").write_bytes(b"x")
    assert every_reader("file/a.mp4") == f"file/a.mp4 does not exist (working directory: {tmp_path})"


@pytest.mark.parametrize("url", ["http://x.org/a.png", "https://x.org/a.mp4", "ftp://x.org/a.mp4", "s3://b/a.mp4"])
def test_addresses(url):
    assert "is an address" in every_reader(url)


def test_directory_empty_and_unknown(tmp_path):
    assert every_reader(tmp_path) == f"{tmp_path} is a directory: give one image or video file"
    (tmp_path / "d.mp4").mkdir()
    assert every_reader(tmp_path / "d.mp4").endswith("d.mp4 is a directory: give one image or video file")
    for name in ("a.mp4", "a.png"):
        (tmp_path / name).write_bytes(b"")
        assert every_reader(tmp_path / name) == f"{tmp_path / name} is empty (0 bytes)"
    (tmp_path / "a.pdf").write_bytes(b"x")
    assert "a.pdf is not known as an image or a video" in every_reader(tmp_path / "a.pdf")
    (tmp_path / "a").write_bytes(b"x")
    assert "images: .png" in every_reader(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert every_reader(tmp_path / "pipe.mp4").endswith("pipe.mp4 is not a regular file")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "lfs.png").write_bytes(pointer)
    assert every_reader(tmp_path / "lfs.png").endswith(
        'lfs.png is only a pointer of git-lfs: fetch the file itself with "git lfs pull"'
    )


def test_no_permission(tmp_path, monkeypatch):
    path = Video(smooth()).save(tmp_path / "a.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refused(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(media, "_first_bytes", refused)
    assert every_reader(path) == f"{path} cannot be read: Permission denied"


@pytest.mark.parametrize(
    "content",
    [
        b"just some text, not a video at all\n" * 50,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
        b"\0" * 5000,
        bytes(noise(5000)),
    ],
)
def test_something_else_by_that_name(tmp_path, content):
    for name, what in (("a.mp4", "a video"), ("a.gif", "a video"), ("a.png", "an image"), ("a.jpg", "an image")):
        (tmp_path / name).write_bytes(content)
        assert every_reader(tmp_path / name) == (
            f"{tmp_path / name} cannot be read as {what}: it is damaged, cut short, or something else by that name "
            f"(begins with {content[:16]!r})"
        )


def test_image_and_video_mixed_up(tmp_path):
    image, clip = Video(smooth(1)).save(tmp_path / "a.png"), Video(smooth()).save(tmp_path / "a.mp4")
    assert message(read_video, image) == f"{image} is an image: read_image reads it"
    assert message(read_image, clip) == f"{clip} is a video: read_video reads it"
    (tmp_path / "b.png").write_bytes(clip.read_bytes())
    assert len(read_video(tmp_path / "b.png")) == count_frames(tmp_path / "b.png") == 6


def test_audio_only(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert every_reader(path) == f"{path} holds no video stream (only audio)"


def test_no_frames(tmp_path):
    import av

    path = tmp_path / "a.avi"
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("rawvideo", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    assert every_reader(path) == f"{path} holds no frames"


@pytest.mark.parametrize("part", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mp4", "a.mov", "a.avi"])
def test_cut_off_files(tmp_path, name, part):
    path = tmp_path / name
    if name == "a.mp4":
        Video(noise(12, 64, 64)).save(path)
    elif name == "a.mov":  # with its index at the end
        encode(path, noise(12, 64, 64), "mov", "libx264", "yuv420p")
    elif name == "a.avi":
        encode(path, noise(12, 64, 64), "avi", "mpeg4", "yuv420p")
    else:
        Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    kept = int(len(data) * part)
    path.write_bytes(data[:kept])
    if name in ("a.png", "a.jpg"):
        for reader in (read_image, lambda p: read_reference(p, 8, 8)):
            assert "it is damaged, cut short, or something else" in message(reader, path)
    else:
        text = every_reader(path)
        assert re.search("cut short|no video stream", text)


def test_a_damaged_video_is_not_read_in_part(tmp_path):
    path = Video(noise(12, 64, 64)).save(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    for reader in (read_video, lambda p: read_reference(p, 8, 8)):
        assert f"{path} cannot be read as a video: it is damaged, cut short" in message(reader, path)


def test_decompression_bombs(tmp_path):
    # 1 bit per pixel: 100 megapixels in a few kilobytes
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    text = f"{tmp_path / 'a.png'} has 100 megapixels (10000×10000); at most 50 are read: make it smaller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert every_reader(tmp_path / "a.png") == text
    Image.new("1", (20_000, 20_000)).save(tmp_path / "b.png")
    assert every_reader(tmp_path / "b.png").endswith("b.png has far more than 50 megapixels; make it smaller")
    assert message(read_reference, Image.new("1", (10_000, 10_000)), 8, 8).startswith("the PIL image has 100 mega")


def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
    clip = Video(smooth()).save(tmp_path / "a.mp4")
    image = Video(smooth(1)).save(tmp_path / "a.png")
    monkeypatch.setattr(media, "MAX_PIXELS", 6000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for path in (clip, image):
        assert "megapixels (96×64); at most" in every_reader(path)


def test_import_is_cheap():
    code = "import sys, opensora_lite.video; print(sorted({'av', 'PIL', 'paddle'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
