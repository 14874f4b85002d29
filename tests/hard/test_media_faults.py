"""Attempts to break the reading and writing of media: each gives the right frames or a MediaError that says why.

What could take long or much memory runs in a process of its own, which reports the seconds of work and the
megabytes that it took: at most 5 and 500.
"""

import contextlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora_lite.errors import MediaError, Note
from opensora_lite.io import media
from opensora_lite.video import Video, check_target, count_frames, read_image, read_reference, read_video

IMAGES = ["a.png", "a.jpg", "progressive.jpg", "a.webp", "lossless.webp", "a.bmp", "a.tif", "deflate.tif", "a.ppm"]
VIDEOS = ["a.mp4", "a.mov", "a.mkv", "a.webm", "vp8.webm", "a.avi", "a.gif"]


def message(call, *args, **kwargs):
    with pytest.raises(MediaError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def smooth(frames=12, height=48, width=64):
    """uint8 [T, H, W, 3]"""
    t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return np.rint(np.stack([255 * x, 255 * y, 40 + 160 * t], -1)).astype(np.uint8)


def encode(path, frames, codec, pix_fmt="yuv420p", times=None):
    """times: of the frames, in milliseconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, Fraction(1, 24))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole file of each name."""
    folder, frames = tmp_path_factory.mktemp("media"), smooth()
    Video(frames).save(folder / "a.mp4")
    Video(frames).save(folder / "a.gif")
    codecs = {"a.mov": "libx264", "a.mkv": "libx264", "a.webm": "libvpx-vp9", "vp8.webm": "libvpx", "a.avi": "mpeg4"}
    for name, codec in codecs.items():
        encode(folder / name, frames, codec)
    options = {
        "progressive.jpg": {"progressive": True},
        "lossless.webp": {"lossless": True},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
    }
    for name in IMAGES:
        Image.fromarray(frames[0]).save(folder / name, **options.get(name, {}))
    return folder


def pixels(path):
    return read_image(path) if path.name in IMAGES or path.suffix in media.IMAGE_SUFFIXES else read_video(path).frames


def jpeg(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def mjpeg_avi(path, pictures, size):
    """An avi whose header says `size` (width, height), whatever the PIL images or JPEG files of its frames are."""
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=24)
        (stream.width, stream.height), stream.pix_fmt = size, "yuvj420p"
        for i, picture in enumerate(pictures):
            packet = av.Packet(picture if isinstance(picture, bytes) else jpeg(picture))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 24)
            container.mux(packet)
    return path


def gif(path, size, frames, piece):
    """`frames` single-coloured pieces, uint16 sizes (width, height), in a canvas of `size`."""
    buffer = io.BytesIO()
    Image.new("P", piece).save(buffer, "GIF")
    data = buffer.getvalue()
    block = data[data.index(b",", 13 + (3 << data[10] % 8 + 1)) : -1]  # behind the header and its colours
    control = b"!\xf9\x04\x04\x04\0\0\0"
    path.write_bytes(b"GIF89a" + struct.pack("<HH", *size) + b"\x80\0\0" + bytes(6) + (control + block) * frames + b";")
    return path


# Pieces and bits ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of a TIFF that is cut short
@pytest.mark.parametrize("name", IMAGES + VIDEOS)
def test_a_file_cut_short_is_refused_or_read_whole(files, tmp_path, name):
    data, whole, path = (files / name).read_bytes(), pixels(files / name), tmp_path / name
    refused = 0
    for part in [*(k / 10 for k in range(1, 10)), 0.97, 0.995]:
        path.write_bytes(data[: int(len(data) * part)])
        try:
            found = pixels(path)
        except MediaError as error:
            assert str(path) in str(error) and re.search("cut short|is empty|no video stream", str(error))
            assert str(path) in message(read_reference, path, 16, 16)
            refused += 1
        else:
            assert np.array_equal(found, whole), part  # as without the last 12 bytes of a PNG, which say nothing
    assert refused >= (8 if name == "a.png" else 10)


FLIP = """
    import random, sys
    import numpy as np
    from opensora_lite.errors import MediaError, Note
    from opensora_lite.io.media import IMAGE_SUFFIXES
    from opensora_lite.video import count_frames, open_reference, read_image, read_reference, read_video

    def last(path):  # found by seeking
        reference = open_reference(path, 12)
        return reference.frames([reference.num_frames - 1], 16, 16)

    folder, names, times = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])
    for name in names:
        data = open(f"{folder}/{name}", "rb").read()
        is_image = name.endswith(IMAGE_SUFFIXES)
        read = read_image if is_image else lambda path: read_video(path).frames
        whole, chosen, path = read(f"{folder}/{name}"), random.Random(name), f"{folder}/flipped_{name}"
        results = {"same": 0, "refused": 0, "wrong": 0}
        for _ in range(times):
            changed = bytearray(data)
            for _ in range(chosen.choice((1, 1, 3, 20))):
                end = len(data) if chosen.random() < 0.5 else min(400, len(data))  # the headers are the weak spot
                changed[chosen.randrange(end)] ^= 1 << chosen.randrange(8)
            open(path, "wb").write(changed)
            for call in (read, count_frames, last, lambda path: read_reference(path, 16, 16)):
                try:
                    found = call(path)
                except MediaError:
                    found = None
                if call is read:
                    same = found is not None and np.array_equal(found, whole)
                    results["refused" if found is None else "same" if same else "wrong"] += 1
        print(name, *results.values())
"""


def test_flipped_bits(files):
    names = IMAGES + VIDEOS  # in a process, because a decoder that crashes would take the tests along
    command = [sys.executable, "-c", textwrap.dedent(FLIP), str(files), " ".join(names), "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    results = {name: list(map(int, numbers)) for name, *numbers in map(str.split, done.stdout.splitlines())}
    assert list(results) == names and all(sum(numbers) == 40 for numbers in results.values())
    assert all(results[name][1] > 0 for name in names), results  # even formats without check sums notice some


def test_what_is_damaged_is_not_made_up(files, tmp_path):
    data, whole, path = (files / "a.mp4").read_bytes(), pixels(files / "a.mp4"), tmp_path / "a.mp4"
    wrong = 0
    for at in np.linspace(data.index(b"mdat") + 4, len(data) - 1, 60).astype(int):  # h264 hides such gaps if it is let
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with contextlib.suppress(MediaError):
            wrong += not np.array_equal(read_video(path).frames, whole)
    assert wrong <= 6


@pytest.mark.parametrize("box", [b"stts", b"stsc", b"stsz", b"stco", b"stsd", b"elst", b"avcC", b"tkhd", b"mdhd"])
def test_a_box_that_claims_too_much(files, tmp_path, box):
    data = (files / "a.mp4").read_bytes()
    at, path = data.index(box), tmp_path / "a.mp4"
    for offset in (4, 8, 12, 16):
        for claim in (0x7FFFFFFF, 0x0FFFFFFF, 0x01000000, 0xFFFFFFFF):
            path.write_bytes(data[: at + offset] + struct.pack(">I", claim) + data[at + offset + 4 :])
            for call in (read_video, count_frames):
                try:
                    call(path)
                except MediaError as error:
                    assert str(path) in str(error)


def test_the_end_of_a_file_need_not_be_known(files, tmp_path):
    live = bytearray((files / "a.webm").read_bytes())
    at = live.index(b"\x18\x53\x80\x67") + 4
    live[at : at + 8] = b"\x01" + b"\xff" * 7  # as browsers record it
    comment = (files / "a.gif").read_bytes()[:-1] + b"!\xfe\x05hello\0;"
    for name, data in (("live.webm", live), ("comment.gif", comment), ("more.gif", comment + b"\0garbage")):
        (tmp_path / name).write_bytes(data)
        assert count_frames(tmp_path / name) == len(read_video(tmp_path / name)) == 12


# Pictures that are unusual, but right --------------------------------------------------------------------------


def png16(path, colour_type, samples):
    """A 16-bit PNG, which Pillow writes in grey only. samples: uint16 [H, W, C]."""
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits(tmp_path, colour_type, channels):
    eight = smooth(1, 40, 50)[0]
    samples = np.concatenate([eight, np.full((40, 50, 1), 200, np.uint8)], -1)[..., [0, 1, 2, 3]]
    used = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    path = png16(tmp_path / "a.png", colour_type, samples[..., used].astype(np.uint16) * 257)
    expected = eight if channels > 2 else np.repeat(eight[..., :1], 3, -1)
    if channels in (2, 4):  # over white
        expected = np.rint(255 + (expected - 255.0) * (200 / 255))
    assert np.abs(read_image(path) - expected.astype(float)).max() <= (channels in (2, 4))


def test_sixteen_bits_of_a_large_picture(tmp_path):  # which is converted in strips
    grey = np.random.default_rng(0).integers(0, 65536, (700, 33), dtype=np.uint16)
    expected = np.repeat(np.rint(grey / 257)[..., None], 3, -1)
    Image.fromarray(grey).save(tmp_path / "a.png")
    (tmp_path / "big.tif").write_bytes(big_endian_tiff(grey))
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    assert np.array_equal(read_image(tmp_path / "big.tif"), expected)


def big_endian_tiff(grey):
    """uint16 [H, W] -> the bytes of a TIFF."""
    tags = [(256, grey.shape[1]), (257, grey.shape[0]), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, grey.shape[0]), (279, grey.nbytes)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + grey.astype(">u2").tobytes()


def test_more_than_sixteen_bits_and_lab_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "a.tif")
    assert message(read_image, tmp_path / "a.tif") == (
        f"{tmp_path / 'a.tif'} holds more than 16 bits per pixel; save it with 8 or 16"
    )
    Image.new("LAB", (4, 4)).save(tmp_path / "b.tif")
    assert message(read_image, tmp_path / "b.tif") == (
        f"{tmp_path / 'b.tif'} holds CIELAB colours, which are not read; save it as RGB"
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_pil_image_of_any_mode_is_read_and_left_alone(mode):
    image = Image.fromarray(smooth(1)[0]).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.info["transparency"] = 3
    exif = image.getexif()
    exif[0x0112] = 6
    before = (image.size, image.mode, image.tobytes(), dict(image.info))
    turned = read_reference(image, 64, 48)
    assert turned.shape == (1, 64, 48, 3)
    assert (image.size, image.mode, image.tobytes(), dict(image.info)) == before
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(turned[0], np.rot90(smooth(1)[0], -1))


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(smooth(1)[0]).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth(1)[0]).max() < 24


@pytest.mark.parametrize("orientation", range(10))  # 1 … 8 mean something
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_every_exif_orientation(tmp_path, orientation, mode):
    picture = smooth(1, 32, 48)[0] // 64 * 64  # few colours, so that a palette holds them
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.png", exif=exif)
    stored = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    flipped = stored[:, ::-1]
    upright = {2: flipped, 3: np.rot90(stored, 2), 4: stored[::-1], 5: np.rot90(flipped), 6: np.rot90(stored, -1)}
    upright |= {7: np.rot90(flipped, -1), 8: np.rot90(stored)}
    assert np.array_equal(read_image(tmp_path / "a.png"), upright.get(orientation, stored))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".ppm", ".gif", ".mp4"])
def test_one_pixel(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix in (".gif", ".mp4"):
        Video(np.full((3, 1, 1, 3), 90, np.uint8)).save(path)
    else:
        Image.new("RGB", (1, 1), (90, 90, 90)).save(path)
    assert np.abs(pixels(path).astype(int) - 90).max() <= 3
    assert read_reference(path, 8, 8).shape[1:] == (8, 8, 3)
    assert count_frames(path) == (3 if suffix in (".gif", ".mp4") else 1)


@pytest.mark.parametrize("height, width", [(33, 51), (2, 51), (51, 16), (17, 1000)])
def test_odd_sizes(tmp_path, height, width):
    path = encode(tmp_path / "a.mkv", smooth(3, height, width), "libx264", "yuv444p")
    assert read_video(path).frames.shape == (3, height, width, 3)


def test_variable_frame_rate(tmp_path):
    times = [0, 40, 50, 400, 410, 2000]
    path = encode(tmp_path / "a.mp4", smooth(6), "libx264", times=times)
    with pytest.warns(Note, match="variable"):
        video = read_video(path)
    assert len(video) == count_frames(path) == 6 and 1 < video.fps < 30  # every frame once, at an average rate
    assert np.abs(video.frames.astype(int) - smooth(6)).mean() < 6


@pytest.mark.parametrize(
    "matrix, turns",  # counter-clockwise, as numpy's rot90; the last two turn nothing
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0), ((0, 0, 0, 0), 0)],
)
def test_the_display_matrix(files, tmp_path, matrix, turns):
    data, path = (files / "a.mp4").read_bytes(), tmp_path / "a.mp4"
    at = data.index(b"tkhd") + 44  # a, b, u, c, d, v, x, y, w
    a, b, c, d = (number * 65536 for number in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    assert np.array_equal(read_video(path).frames, np.rot90(read_video(files / "a.mp4").frames, turns, (1, 2)))


def test_frames_that_change_their_size_are_scaled_to_the_first(tmp_path):
    pictures = [Image.new("RGB", size, "red") for size in ((64, 48), (96, 80), (33, 17))]
    path = mjpeg_avi(tmp_path / "a.avi", pictures, (64, 48))
    frames = read_video(path).frames
    assert frames.shape == (3, 48, 64, 3) and count_frames(path) == 3
    assert np.abs(frames.astype(int) - (254, 0, 0)).max() < 8


def test_no_frames(tmp_path):
    for name, data in (
        ("a.gif", b"GIF89a\1\0\1\0\0\0\0;"),
        ("b.gif", b"GIF89a\1\0\1\0\0\0\0!\xfe\x05hello\0;"),
        ("a.mkv", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x80"),
        ("a.mp4", struct.pack(">I4s4s4x4s", 20, b"ftyp", b"isom", b"mp42") + struct.pack(">I4s", 8, b"moov")),
        ("a.avi", b"RIFF\x04\0\0\0AVI "),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17)),
        ("a.ppm", b"P6 0 0 255\n"),
        ("a.bmp", b"BM" + bytes(60)),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        for call in (pixels, count_frames, lambda path: read_reference(path, 8, 8)):
            assert str(path) in message(call, path), name


# Names -------------------------------------------------------------------------------------------------------


def test_names_that_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    frames = smooth(1)
    assert Video(frames).save("~draft.png") == Path("~draft.png") and np.array_equal(
        read_image("~draft.png"), frames[0]
    )
    assert Video(frames).save("~/a.png") == tmp_path / "home" / "a.png"
    assert message(read_video, "~nobody-by-that-name/a.mp4").startswith("~nobody-by-that-name/a.mp4 does not exist")


def test_links_that_lead_nowhere_or_to_no_file(tmp_path):
    for name, target, text in (
        ("a.mp4", tmp_path / "gone", f"is a link to {tmp_path / 'gone'}, which does not exist"),
        ("b.mp4", "b.mp4", "cannot be read: Too many levels of symbolic links"),
        ("zero.mp4", "/dev/zero", "is not a regular file"),
        ("zero.png", "/dev/zero", "is not a regular file"),
        ("null.png", "/dev/null", "is not a regular file"),
    ):
        path = tmp_path / name
        path.symlink_to(target)
        for call in (pixels, count_frames, lambda path: read_reference(path, 8, 8)):
            assert message(call, path) == f"{path} {text}"


def test_names_that_are_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    for name in ("a.mp4", "a.gif", "a.png"):
        frames = smooth(1 if name == "a.png" else 3)
        path = Video(frames).save(folder / (os.fsdecode(b"\xfd") + name))
        assert count_frames(path) == len(frames) and len(pixels(path)) in (3, 48)


def test_addresses_are_not_repeated_at_length():
    text = message(read_image, "data:image/png;base64," + "A" * 10_000)
    assert "is an address" in text and len(text) < 400


# Much from little ----------------------------------------------------------------------------------------------


MEASURE = """
    import json, sys, time
    from opensora_lite.errors import OpenSoraError
    from opensora_lite.io.media import IMAGE_SUFFIXES
    from opensora_lite.video import count_frames, read_image, read_reference, read_video

    path = sys.argv[1]
    read = read_image if path.endswith(IMAGE_SUFFIXES) else read_video
    results, seconds = [], []
    for call in (read, count_frames, lambda path: read_reference(path, 240, 426)):
        start = time.process_time()
        try:
            found = call(path)
            results.append(list(getattr(getattr(found, "frames", found), "shape", [found])))
        except OpenSoraError as error:
            results.append(str(error).removeprefix(path))
        seconds.append(time.process_time() - start)
        found = None
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([results, max(seconds), peak / 1000]))
"""


def measured(path):
    """What reading, counting and using a file give: a shape, or the message without the path."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is measured in /proc")
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    results, seconds, megabytes = json.loads(done.stdout)
    assert seconds < 60 and megabytes < 1000, (results, seconds, megabytes)  # of processor time: what protects a user
    return results


def all_say(results, text):
    assert all(isinstance(result, str) and re.search(text, result) for result in results), results


def test_a_gif_of_thousands_of_frames(tmp_path):
    small = measured(gif(tmp_path / "small.gif", (64, 64), 5000, (64, 64)))
    assert small[:2] == [[5000, 64, 64, 3], [5000]] and "at 426×240 pixels, at most 1369 frames are read" in small[2]
    large = measured(gif(tmp_path / "large.gif", (1000, 1000), 2000, (1000, 1000)))
    assert large[1] == [2000] and "at 1000×1000 pixels, at most 132 frames are read" in large[0]
    all_say(measured(gif(tmp_path / "many.gif", (1, 1), 100_000, (1, 1))), "is too long")


def test_a_long_video_is_refused(tmp_path):
    frame = jpeg(Image.new("L", (16, 16)))
    assert measured(mjpeg_avi(tmp_path / "a.avi", [frame] * 300, (16, 16)))[1:] == [[300], [300, 240, 426, 3]]
    path = mjpeg_avi(tmp_path / "a.avi", [frame] * 10_001, (16, 16))
    results = measured(path)
    assert results[1] == [10_001]  # of which a request may use some
    all_say(results[::2], "is too long")


def test_ten_thousand_pixels_wide(tmp_path):
    Image.new("RGB", (10_000, 300)).save(tmp_path / "a.png")
    assert measured(tmp_path / "a.png") == [[300, 10_000, 3], [1], [1, 240, 426, 3]]
    Image.new("RGB", (10_000, 1)).save(tmp_path / "b.png")
    results = measured(tmp_path / "b.png")
    assert results[:2] == [[1, 10_000, 3], [1]] and "is 10000×1, too far from 426×240 to be resized" in results[2]
    wide = encode(tmp_path / "a.mp4", np.zeros((12, 1000, 10_000, 3), np.uint8), "libx264")
    results = measured(wide)
    assert "at 10000×1000 pixels, at most 6 frames are read" in results[0]
    assert results[1:] == [[12], [12, 240, 426, 3]]


@pytest.mark.parametrize(
    "name, mode, side, options",
    [
        ("a.png", "RGBA", 7071, {"compress_level": 1}),
        ("a.tif", "CMYK", 7071, {}),
        ("turned.jpg", "CMYK", 7071, {"quality": 50}),
        ("progressive.jpg", "RGB", 5000, {"progressive": True, "subsampling": 0}),
        ("a.webp", "RGB", 5000, {"quality": 1, "method": 0}),
    ],
)
def test_the_largest_pictures_that_are_read(tmp_path, name, mode, side, options):
    if name == "turned.jpg":
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = 6
    Image.new(mode, (side, side)).save(tmp_path / name, **options)
    assert measured(tmp_path / name) == [[side, side, 3], [1], [1, 240, 426, 3]]


def test_bombs(tmp_path):
    Image.new("1", (7072, 7072)).save(tmp_path / "a.png")
    all_say(measured(tmp_path / "a.png"), "50 megapixels .7072×7072.; at most 50 are read: make it smaller")
    all_say(measured(gif(tmp_path / "canvas.gif", (16_000, 16_000), 2, (8, 8))), "megapixels")
    for side, text in ((7000, "at most 25 are read"), (40_000, "far more than 50 megapixels")):
        (tmp_path / "a.webp").write_bytes(webp_canvas(side))
        all_say(measured(tmp_path / "a.webp")[1:], text)
    # small frames, and then large ones; small in the header only
    large = Image.new("L", (8000, 8000))
    results = measured(mjpeg_avi(tmp_path / "grows.avi", [Image.new("L", (64, 48)), large, large], (64, 48)))
    all_say(results, "cannot be read as a video")
    all_say(measured(mjpeg_avi(tmp_path / "lies.avi", [large], (64, 48))), "megapixels|cannot be read as a video")


def webp_canvas(side):
    """An animation of two frames of 16×16 pixels on a canvas of side×side."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP")

    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def three(number):
        return struct.pack("<I", number)[:3]

    frame = three(0) * 2 + three(15) * 2 + three(100) + b"\0" + buffer.getvalue()[12:]
    head = chunk(b"VP8X", b"\2\0\0\0" + three(side - 1) * 2) + chunk(b"ANIM", bytes(6))
    body = b"WEBP" + head + chunk(b"ANMF", frame) * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_jpeg_of_thousands_of_passes(tmp_path):
    data = jpeg(Image.new("L", (4000, 4000)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + last * 10_000 + data[-2:])  # 370 KB, and a minute of work
    all_say(measured(tmp_path / "a.jpg"), "drawn in 100.. passes")


@pytest.mark.parametrize("head", [b"P5 8000 6000 100\n", b"P1 8000 6000\n", b"P3 8000 6000 255\n"])
def test_pictures_that_pillow_decodes_slowly(tmp_path, head):
    sparse(tmp_path / "a.ppm", head, 50_000_000)
    all_say(measured(tmp_path / "a.ppm"), "has 48 megapixels .8000×6000.; at most 3.12 are read: make it smaller")


def sparse(path, head, size):
    """A file of zeros behind `head`: what is left of a download that did not come to its end."""
    with open(path, "wb") as file:
        file.write(head)
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("this file system has no sparse files")
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "behind.mkv", "a.gif", "a.avi", "a.png"])
def test_a_file_of_zeros(files, tmp_path, name):
    matroska = (files / "a.mkv").read_bytes()
    at = matroska.index(b"\x18\x53\x80\x67") + 4
    endless = matroska[:at] + b"\x01" + b"\xff" * 7
    heads = {
        "a.mkv": endless,
        "behind.mkv": endless + matroska[at + 8 :],
        "a.gif": b"GIF89a\x40\0\x40\0\0\0\0",
        "a.avi": (files / "a.avi").read_bytes()[:4000],
    }
    path = sparse(tmp_path / name, heads.get(name, b""), 8 << 30)
    all_say(measured(path), "cannot be read as an? (video|image)")


def test_a_file_of_tiny_blocks(files, tmp_path):
    data = (files / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[:32] + struct.pack(">I4s", 8, b"free") * 3_000_000)
    all_say(measured(tmp_path / "a.mp4"), "cannot be read as a video")
    (tmp_path / "a.gif").write_bytes(b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1\1" * 10_000_000 + b"\0;")
    all_say(measured(tmp_path / "a.gif"), "holds no frames")


def test_too_little_memory(tmp_path):
    pytest.importorskip("resource")
    Image.new("RGB", (7000, 7000)).save(tmp_path / "a.png", compress_level=1)
    code = """
        import resource, sys
        import av, numpy, PIL.Image
        from opensora_lite.video import *
        from opensora_lite.errors import OpenSoraError
        held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
        resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 1_000_000,) * 2)
        try:
            read_image(sys.argv[1])
        except OpenSoraError as error:
            print(error)
    """
    for room in (100, 300):  # for none of its pixels, and for those of Pillow only
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.png"), str(room)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "there is not enough memory" in done.stdout, (room, done.stdout, done.stderr)


# Writing -----------------------------------------------------------------------------------------------------


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "a"])
@pytest.mark.parametrize("most", [0, 100, 5000])
def test_files_that_may_not_grow(tmp_path, name, most):
    resource = pytest.importorskip("resource")
    old = Video(smooth(1)).save(tmp_path / name)
    before = {path.name: path.read_bytes() for path in ([old] if old.is_file() else old.iterdir())}
    video, limits = Video(noise(1 if name == "a.png" else 20, 96, 96)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        text = message(video.save, old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text == f"{old} cannot be written: File too large" and video.path is None
    assert {path.name: path.read_bytes() for path in ([old] if old.is_file() else old.iterdir())} == before
    assert os.listdir(tmp_path) == [name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(place)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_and_a_read_only_one(small_disk):
    old = Video(smooth(3)).save(small_disk / "old.mp4")
    before = old.read_bytes()
    for name in ("old.mp4", "new.mp4", "new.gif", "new", "one.png"):
        video = Video(noise(1, 400, 400) if name == "one.png" else noise(40, 128, 128))
        assert (
            message(video.save, small_disk / name) == f"{small_disk / name} cannot be written: No space left on device"
        )
        assert os.listdir(small_disk) == ["old.mp4"] and old.read_bytes() == before and video.path is None
    assert count_frames(Video(smooth(3)).save(small_disk / "new.mp4")) == 3  # what fits is still written
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("old.mp4", "new.gif", "deep/er/new.mp4"):  # before a model has worked for it
        assert message(check_target, small_disk / name, 1, 24) == (
            f"{small_disk / name} cannot be written: {small_disk} is not a folder that may be written to"
        )
    assert old.read_bytes() == before


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o500)
    access = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    for name in ("a.mp4", "sub/a.mp4", "sequence"):
        path = tmp_path / "closed" / name
        for call in (lambda path: check_target(path, 3, 24), Video(smooth(3)).save):
            assert message(call, path) == (
                f"{path} cannot be written: {tmp_path / 'closed'} is not a folder that may be written to"
            )
    (tmp_path / "link.mp4").symlink_to(tmp_path / "closed" / "a.mp4")  # the video goes where it leads
    assert "closed is not a folder that may be written to" in message(check_target, tmp_path / "link.mp4", 3, 24)


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")  # were it /dev/null, root would replace that
    for name in ("pipe.mp4", "link.mp4"):
        for call in (lambda path: check_target(path, 3, 24), Video(smooth(3)).save):
            assert message(call, tmp_path / name) == (
                f"{tmp_path / name} is not a regular file; a .mp4 file cannot take its place"
            )
    assert (tmp_path / "pipe.mp4").is_fifo() and sorted(os.listdir(tmp_path)) == ["link.mp4", "pipe.mp4"]


def test_a_name_that_is_too_long_is_said_beforehand(tmp_path):
    path = tmp_path / ("x" * 252 + ".mp4")
    assert message(check_target, path, 3, 24) == f"{path} cannot be written: File name too long"
    assert count_frames(Video(smooth(3)).save(tmp_path / ("x" * 251 + ".mp4"))) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "a"])
def test_what_exists_is_kept_where_that_was_asked_for(tmp_path, name):
    frames = smooth(1 if name == "a.png" else 3)
    old = Video(frames).save(tmp_path / name, overwrite=False)
    before = {path.name: path.read_bytes() for path in ([old] if old.is_file() else old.iterdir())}
    for call in (lambda: Video(255 - frames).save(old, overwrite=False), lambda: check_target(old, 1, 24, False)):
        assert message(call) == f"{old} exists already, and overwrite is False"
    assert {path.name: path.read_bytes() for path in ([old] if old.is_file() else old.iterdir())} == before
    Video(255 - frames).save(old)
    assert {path.name: path.read_bytes() for path in ([old] if old.is_file() else old.iterdir())} != before
