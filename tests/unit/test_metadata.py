"""Metadata of saved files, read by Pillow and PyAV as other programs would, and by `read_info`."""

import contextlib

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from opensora_lite.errors import MediaError
from opensora_lite.io import metadata
from opensora_lite.io.metadata import read_info
from opensora_lite.video import Video, read_video

INFO = {"opensora_lite": "1", "prompt": 'a "red" car, 红色 <b>\n\0' + "long " * 100, "seed": 2**63 - 1, "scale": 4.5}
NAMES = ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "a"]


def frames(num_frames=4, height=20, width=30) -> np.ndarray:
    """uint8 [T, H, W, 3]; the last two frames are equal."""
    video = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    video[-1] = video[-2:][0]
    return video


def save(path, info=INFO):
    return Video(frames(1 if path.suffix == ".png" else 4), 12, info=info).save(path)


def comment(path) -> str:
    """The comment of a file as other programs read it."""
    if path.suffix in (".mp4", ".webm"):
        with av.open(str(path)) as container:
            return {name.lower(): value for name, value in container.metadata.items()}["comment"]
    with Image.open(path / "frame_0003.png" if path.is_dir() else path) as image:
        if path.suffix == ".webp":
            return image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
        found = image.info.get("Comment", image.info.get("comment"))
        return found.decode() if isinstance(found, bytes) else found


@pytest.mark.parametrize("name", NAMES)
def test_every_format_carries_it(tmp_path, name):
    path = save(tmp_path / name)
    assert read_info(path) == INFO
    text = comment(path)
    assert "红色" in text and metadata.from_comment(text) == INFO
    if path.suffix in (".mp4", ".webm", ".gif"):
        assert read_video(path).info == INFO


@pytest.mark.parametrize("name", NAMES)
def test_the_same_video_gives_the_same_bytes(tmp_path, name):
    first, second = (save(tmp_path / folder / name) for folder in ("a", "b"))
    for one in [first] if first.is_file() else first.iterdir():
        assert one.read_bytes() == (second / one.name if second.is_dir() else second).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_invented(tmp_path, name):
    assert read_info(save(tmp_path / name, info=None)) is None


def test_webp_and_webm_keep_every_frame(tmp_path):
    given = frames()
    smooth = np.repeat(np.linspace(0, 255, 30).astype(np.uint8)[None, None, :, None], 3, 3).repeat(20, 1).repeat(4, 0)
    with Image.open(Video(smooth, 24).save(tmp_path / "a.webp")) as image:
        assert image.n_frames == 4 and image.size == (30, 20)  # equal neighbours are not merged
        durations = []
        for i in range(4):
            image.seek(i)
            pixels = np.array(image.convert("RGB")).astype(int)
            assert np.abs(pixels - smooth[i]).mean() < 4
            durations.append(image.info["duration"])
        assert durations == [42, 41, 42, 42]  # 4 frames at 24 fps: 167 ms
    back = read_video(Video(given, 12).save(tmp_path / "a.webm"))
    assert back.frames.shape == given.shape and back.fps == 12
    assert np.abs(read_video(Video(smooth, 24).save(tmp_path / "b.webm")).frames.astype(int) - smooth).mean() < 4


def test_files_of_others_have_none(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", comment="hello")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", comment=b"\xff {")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    for suffix in ("png", "gif", "webp"):
        assert read_info(tmp_path / f"a.{suffix}") is None
    assert metadata.from_comment("[" * 100_000) is None and metadata.from_comment('{"seed": 3}') is None


@pytest.mark.parametrize("name", NAMES[:5])
def test_a_file_is_known_by_content_and_damage_is_said(tmp_path, name):
    path = save(tmp_path / name)
    data = path.read_bytes()
    (tmp_path / "other.bin").write_bytes(data)
    assert read_info(tmp_path / "other.bin") == INFO
    for length in range(0, len(data), 1 + len(data) // 60):
        path.write_bytes(data[:length])
        with contextlib.suppress(MediaError):
            assert read_info(path) in (INFO, None)


def test_large_metadata_is_not_read_whole(tmp_path):
    path = tmp_path / "a.webp"
    save(path)
    data = path.read_bytes()
    with open(path, "wb") as file:  # a chunk of 4 GB in front, most of it a hole
        file.write(data[:30] + b"JUNK" + (2**32 - 2).to_bytes(4, "little"))
        file.seek(2**32 - 2, 1)
        file.write(data[30:])
    assert read_info(path) == INFO
    text = PngInfo()
    text.add_text("Comment", metadata.to_comment(INFO | {"x": "y" * 5_000_000}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(MediaError):
        read_info(tmp_path / "a.png")


def test_a_comment_that_is_too_long_is_none_of_ours(tmp_path):
    path = save(tmp_path / "a.webm", INFO | {"x": "y" * 5_000_000})
    assert read_info(path) is None and read_info(save(path, INFO | {"x": "y" * 100_000})) is not None


def test_what_cannot_be_written_or_read(tmp_path):
    for info in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(MediaError, match="info"):
            Video(frames(), info=info).save(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    for path in ("a.txt", "missing.mp4", "folder"):
        with pytest.raises(MediaError, match=path):
            read_info(tmp_path / path)
    surrogate = {"opensora_lite": "1", "prompt": "a\ud800"}
    assert read_info(save(tmp_path / "a.gif", surrogate)) == surrogate
