"""What people bring as references: clips of any length and rate, HDR, transparency, animations, any file name.

Each test stands for a kind of input that once gave a wrong frame or was refused (issue 16). Every file is made here.
"""

import struct
import warnings
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageCms

from opensora_lite import video
from opensora_lite.errors import MaskStrategyError, MediaError, Note
from opensora_lite.io import clips, colour, media
from opensora_lite.request import Settings, plan
from opensora_lite.video import Video, count_frames, open_reference, read_image, read_reference, read_video

WHITE = (255, 255, 255)


def bars(count, height=32, width=64):
    """uint8 [count, height, width, 3]: frame i shows the binary digits of i as black and white bars."""
    digits = (np.arange(count)[:, None] >> np.arange(16)) & 1  # [count, 16]
    return np.broadcast_to(np.repeat(255 * digits, width // 16, 1)[:, None, :, None], (count, height, width, 3)).astype(
        np.uint8
    )


def numbers(frames):
    """The inverse of `bars`, for frames of any size: [count]."""
    width = frames.shape[2]
    middles = frames[:, frames.shape[1] // 2, width // 32 :: width // 16, 1]
    return ((middles > 127) << np.arange(16)).sum(1).tolist()


def encode(path, frames, rate=24, codec="libx264", pix_fmt="yuv420p", times=None, base=None, **stream_options):
    """times: of the frames, in units of `base` seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), **stream_options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        base = base or 1 / Fraction(rate).limit_denominator(1001)
        stream.time_base = stream.codec_context.time_base = base
        for i, picture in enumerate(frames):
            form = "rgba" if picture.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=form).reformat(format=pix_fmt)
            frame.pts, frame.time_base = times[i] if times else i, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def repeated(path, source, times):
    """The packets of a video, so many times one after the other: a long clip at no cost."""
    import av

    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.dts, p.duration, bytes(p), p.is_keyframe) for p in container.demux(stream) if p.size]
        with av.open(str(path), "w") as target:
            new = hasattr(target, "add_stream_from_template")  # PyAV 14
            copy = target.add_stream_from_template(stream) if new else target.add_stream(template=stream)
            for pts, dts, duration, data, is_key in (
                (pts + i * stream.duration, dts + i * stream.duration, *rest)
                for i in range(times)
                for pts, dts, *rest in packets
            ):
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, stream.time_base
                packet.stream, packet.is_keyframe = copy, is_key
                target.mux(packet)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets one entry for every frame that FFmpeg decodes."""
    found, frames = [], clips._Video.frames

    def counting(self):
        for frame in frames(self):
            found.append(frame[0])
            yield frame

    monkeypatch.setattr(clips._Video, "frames", counting)
    return found


# Length (row 2) -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory):
    """10 min at 24 frames per second, a key frame every 2 s; the numbers 0 … 479 again and again."""
    folder = tmp_path_factory.mktemp("long")
    return repeated(
        folder / "long.mp4", encode(folder / "short.mp4", bars(480), options={"g": "48", "sc_threshold": "0"}), 30
    )


@pytest.mark.parametrize("reference_fps", ["video", "native"])
@pytest.mark.parametrize("strategy, shown", [("0,0,0,0,6", range(6)), ("0,0,-4,0,4", range(476, 480))])
def test_a_long_clip_costs_what_is_used_of_it(ten_minutes, decoded, strategy, shown, reference_fps):
    settings = Settings(num_frames=8, image_size=(32, 64), frame_interval=1, reference_fps=reference_fps)
    (job,) = plan("a car", [str(ten_minutes)], [strategy], settings)
    assert job.references[0].num_frames == 14_400
    (used,) = job.used_frames
    assert len(decoded) <= 60
    assert numbers(job.references[0].frames(used, 32, 64)) == list(shown)
    assert len(decoded) <= 60  # a plan has read them
    assert f"({used[0]}–{used[-1]} of 14400 at 24 fps), 64×32" in job.sources[0]


def test_thumbnails_of_a_long_clip_are_its_key_frames(ten_minutes, decoded, monkeypatch):
    monkeypatch.setattr(video, "MAX_THUMBNAIL_PIXELS", 1_000_000)  # of its 29,491,200
    reference = open_reference(ten_minutes, 24)
    decoded.clear()
    shown = numbers(reference.thumbnails([0, 5000, 14_399], 32, 64))
    assert shown == [0, 5000 % 480 // 48 * 48, 432] and len(decoded) <= 12
    assert numbers(reference.thumbnails([3, 5], 32, 64)) == [3, 5]


def test_frames_from_anywhere_are_those_of_the_whole_clip(tmp_path):
    """Also where frames after a key frame refer to some before it (open GOP), for one frame and in any order."""
    params = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
    for name in ("a.mkv", "a.mp4", "a.avi"):
        codec = {"codec": "mpeg4"} if name == "a.avi" else {"options": {"x264-params": params}}
        path = encode(tmp_path / name, bars(150), **codec)
        whole = read_video(path).frames
        assert numbers(whole) == list(range(150))
        for fps in (24, None):
            reference = open_reference(path, fps)
            assert reference.num_frames == 150
            for index in (0, 1, 59, 84, 85, 97, 149):
                assert np.array_equal(reference.frames([index], 32, 64)[0], whole[index]), (name, fps, index)
            assert numbers(reference.frames([149, 0, 75], 32, 64)) == [149, 0, 75]


def test_a_clip_that_cannot_be_skipped_through_is_read_from_its_start(tmp_path):
    path = Video(bars(90), fps=24).save(tmp_path / "a.gif")
    reference = open_reference(path, 24)
    assert reference.num_frames == 90 and numbers(reference.frames([80, 3], 32, 64)) == [80, 3]


# Rate (rows 3 and 21) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, fps, expected",
    [
        (60, 24, [0, 2, 5, 7, 10, 12, 15]),  # every 2.5-th
        (30, 24, [0, 1, 2, 4, 5]),
        (24, 8, [0, 3, 6, 9]),
        (12, 24, [0, 0, 1, 1, 2, 2]),
        (24, 24, [0, 1, 2, 3]),
        (24000 / 1001, 24, [0, 1, 2, 3]),  # not 0, 0, 1, 2
        (24, 60, [0, 0, 0, 1, 1, 2]),
    ],
)
def test_frames_are_taken_at_the_rate_of_the_video(tmp_path, own, fps, expected):
    frames = bars(48)
    sources = [encode(tmp_path / "a.mp4", frames, own), encode(tmp_path / "a.mkv", frames, own), Video(frames, own)]
    for source in sources:  # mkv rounds times to milliseconds
        reference = open_reference(source, fps)
        assert reference.num_frames == round(48 / own * fps)
        shown = numbers(reference.frames(range(reference.num_frames), 32, 64))
        assert shown[: len(expected)] == expected
        assert shown[-1] >= 47 - own / fps
        assert open_reference(source).num_frames == 48


def test_the_plan_says_which_frames_are_used(tmp_path):
    path = encode(tmp_path / "sixty.mp4", bars(60), 60)
    settings = Settings(num_frames=12, image_size=(32, 64), frame_interval=1)
    (job,) = plan("a car", [[path]], ["0,0,-6,0,6"], settings)
    assert job.sources == [f"{path}: frames 0.75–0.96 s (45–57 of 60 at 60 fps), taken at 24 fps, 64×32"]
    (job,) = plan("a car", [[path]], ["0,0,-6,0,6"], Settings(**{**vars(settings), "reference_fps": "native"}))
    assert job.sources == [f"{path}: frames 0.90–0.98 s (54–59 of 60 at 60 fps), 64×32"]
    (job,) = plan("a car", [[path]], ["0;0,0,20,5,2"], Settings(**{**vars(settings), "image_size": (64, 64)}))
    assert "(0, 50–52 of 60 at 60 fps)" in job.sources[0] and "64×32 → 64×64 cropped" in job.sources[0]


def test_a_clip_that_is_too_short_at_the_rate_of_the_video_is_explained(tmp_path):
    path = encode(tmp_path / "a.mp4", bars(16))
    with pytest.raises(MaskStrategyError, match=r"length must be at most 5.*native"):
        plan("a car", [[path]], ["0,0,0,0,6"], Settings(num_frames=12, image_size=(32, 64)))
    plan("a car", [[path]], ["0,0,0,0,6"], Settings(num_frames=12, image_size=(32, 64), reference_fps="native"))
    plan("a car", [[bars(16)]], ["0,0,0,0,6"], Settings(num_frames=12, image_size=(32, 64)))  # an array has no rate


def test_a_pause_stays(tmp_path):
    times = [0, 1000, 2000, 3000, 27000, 28000, 29000, 30000]
    path = encode(tmp_path / "pause.mp4", bars(8), times=times, base=Fraction(1, 24000))
    paused = [0, 1, 2, *[3] * 24, 4, 5, 6, 7]
    reference = open_reference(path, 24)
    assert numbers(reference.frames(range(reference.num_frames), 32, 64)) == paused
    assert "by their times" in reference.describe([0, 30], 32, 64)
    assert numbers(read_video(path, fps=24).frames) == paused
    with pytest.warns(Note, match="variable"):
        video = read_video(path)
    assert numbers(video.frames) == list(range(8)) and video.fps == pytest.approx(8 / (31 / 24))


def test_two_frames_of_one_moment_and_other_odd_times(tmp_path):
    """Bursts: a frame that lasts less than a tick of the video is passed over, and the last one is shown."""
    path = encode(tmp_path / "a.mkv", bars(6), times=[0, 40, 45, 400, 410, 2000], base=Fraction(1, 1000))
    reference = open_reference(path, 25)
    shown = numbers(reference.frames(range(reference.num_frames), 32, 64))
    assert shown[:3] == [0, 1, 2] and shown[9:12] == [2, 3, 4] and shown[49:51] == [4, 5]


# Parts of a clip ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, expected",
    [
        ("#t=2,4", range(48, 96)),
        ("#t=npt:0:02,0:00:04", range(48, 96)),
        ("#t=19.5", range(468, 480)),
        ("#t=,0.25", range(6)),
        ("#t=19.75,100", range(474, 480)),
    ],
)
@pytest.mark.parametrize("fps", [24, None])
def test_a_part_of_a_clip(ten_minutes, decoded, part, expected, fps):
    path = ten_minutes.with_name("short.mp4")
    reference = open_reference(f"{path}{part}", fps)
    frames = reference.frames(range(reference.num_frames), 32, 64)
    assert numbers(frames) == list(expected) and len(decoded) < 160 + 480 * (fps is None)
    assert numbers(read_video(f"{path}{part}").frames) == list(expected)


def test_parts_that_are_none(tmp_path, ten_minutes):
    path = ten_minutes.with_name("short.mp4")
    for part, text in (("#t=4,2", "begin before"), ("#t=x", "seconds"), ("#t=", "seconds"), ("#t=20", "lasts 20 s")):
        with pytest.raises(MediaError, match=text):
            open_reference(f"{path}{part}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="image"):
        open_reference(f"{tmp_path}/a.png#t=1")
    named = encode(tmp_path / "a#t=1,2.mp4", bars(3))
    assert count_frames(named) == 3
    assert media.split_fragment(named) == (named, None)


# Floating-point pixels (row 25) -------------------------------------------------------------------------------


def test_frames_of_a_clip_are_not_rounded():
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), np.uint8)
    out = open_reference(frames).frames([0, 1], 16, 16)
    assert out.dtype == np.float32 and np.abs(out - np.rint(out)).max() > 0.4
    assert np.array_equal(read_reference(frames, 16, 16), np.rint(out))


# What the VAE makes of a reference (row 5) ---------------------------------------------------------------------


def test_a_picture_that_the_vae_does_not_know_gets_a_note(pipe, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).resize((64, 64))
    photo.save(tmp_path / "photo.png")
    frames = np.asarray(photo)[None].astype(np.float32)
    error = np.mean((pipe.decode(pipe.encode(frames)) - frames) ** 2)
    short = dict(mask_strategy="0", num_frames=2, num_sampling_steps=2, image_size=(64, 64))
    with pytest.warns(Note, match=rf"photo.png: .* {10 * np.log10(255**2 / error):.1f} dB"):
        video = pipe("a car", references=[tmp_path / "photo.png"], **short)
    distance = np.mean((video.frames[0] - frames[0]) ** 2)
    assert distance > 0.5 * error  # that is how near the kept frame comes
    known = pipe.decode(pipe.encode(np.full((1, 64, 64, 3), 90, np.float32)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        pipe("a car", references=[known], **short)


# HDR (row 6) --------------------------------------------------------------------------------------------------


def hdr(path, transfer, signal, full_range=False, primaries=9):
    """Two frames of grey, `signal` of 0 … 1, with 10 bits in BT.2020."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        codec = stream.codec_context
        codec.colorspace, codec.color_range, codec.color_primaries = primaries, 1 + full_range, primaries
        codec.color_trc = transfer
        luma = round(1023 * signal if full_range else 4 * (16 + 219 * signal))
        for i in range(2):
            picture = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value, height in zip(picture.planes, (luma, 512, 512), (64, 32, 32), strict=True):
                plane.update(np.full((height, plane.line_size // 2), value, np.uint16).tobytes())
            picture.colorspace, picture.color_range = primaries, 1 + full_range
            picture.pts, picture.time_base = i, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("transfer, white, name", [(18, 0.75, "HLG"), (16, 0.5807, "PQ")])  # ITU-R BT.2408, table 1
def test_hdr_is_tone_mapped(tmp_path, transfer, white, name, full_range):
    levels = []
    for signal in (0, white / 2, white, 1):
        reference = open_reference(hdr(tmp_path / "a.mp4", transfer, signal, full_range), 24)
        frame = reference.frames([0], 32, 32)[0]
        assert np.ptp(frame) < 1  # grey stays grey
        levels.append(frame.mean())
        assert name in reference.describe([0], 32, 32)
    assert levels[0] < 1 and 235 <= levels[2] <= 245 and levels[3] == pytest.approx(255, abs=0.5)
    assert levels == sorted(levels)
    assert abs(read_video(tmp_path / "a.mp4").frames.mean() - levels[3]) < 1


def test_light_of_hlg_and_pq():
    """Against the tables of ITU-R BT.2408 (reference levels) and BT.2100: grey of a signal in cd/m²."""
    pq, hlg = (np.array([signals], np.float32).T.repeat(3, 1) for signals in ((0.38, 0.5807, 0.7518), (0.38, 0.75, 1)))
    assert colour._pq(pq)[:, 0] == pytest.approx([26, 203, 1000], rel=0.03)
    assert colour._hlg(hlg)[:, 0] == pytest.approx([26, 203, 1000], rel=0.03)


def test_colours_of_bt2020_become_those_of_bt709():
    """Light is what counts: the same red in both, and a green that BT.709 does not have is the nearest."""
    red = np.array([0.6274, 0.0691, 0.0164]) ** (1 / 2.4)  # BT.709's red in BT.2020: ITU-R BT.2087
    assert colour.to_bt709(red.astype(np.float32), 9, 14) == pytest.approx([255, 0, 0], abs=3)
    assert colour.to_bt709(np.array([0, 1, 0], np.float32), 9, 14) == pytest.approx([0, 255, 0], abs=3)


def test_wide_colours_without_hdr(tmp_path):
    reference = open_reference(hdr(tmp_path / "a.mp4", 14, 0.5), 24)
    assert np.abs(reference.frames([0], 32, 32) - 127.5).max() < 1
    assert "BT.2020" in reference.describe([0], 32, 32)


def png_with(path, pixels, chunk, data):
    """A PNG of `pixels` with one more chunk behind its header."""
    Image.fromarray(pixels).save(path)
    written = path.read_bytes()
    extra = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
    path.write_bytes(written[:33] + extra + written[33:])
    return path


@pytest.mark.parametrize("transfer, white, name", [(16, 0.5807, "HDR (PQ)"), (18, 0.75, "HDR (HLG)")])
def test_hdr_pictures_are_tone_mapped(tmp_path, transfer, white, name):
    """Reference white becomes 239, as in clips; without the chunk, the samples stay as they are."""
    pixels = np.full((300, 16, 3), round(255 * white), np.uint8)
    path = png_with(tmp_path / "a.png", pixels, b"cICP", bytes([9, transfer, 0, 1]))
    assert np.abs(read_image(path).astype(int) - 239).max() <= 2
    assert name in open_reference(path).describe([0], 16, 16)
    assert (read_image(png_with(path, pixels, b"cICP", bytes([1, 13, 0, 1]))) == pixels).all()
    if ".avif" in Image.registered_extensions():
        Image.fromarray(pixels).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
        written = (tmp_path / "a.avif").read_bytes()
        at = written.index(b"colrnclx") + 8
        (tmp_path / "a.avif").write_bytes(written[:at] + bytes([0, 9, 0, transfer]) + written[at + 4 :])
        assert np.abs(read_image(tmp_path / "a.avif").astype(int) - 239).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_applied(tmp_path, mode):
    """The profile here is sRGB's own with red and green swapped; sRGB's own changes nothing, nor does a damaged one."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    red, path = Image.new("RGB", (8, 300), (255, 0, 0)).convert(mode), tmp_path / "a.png"
    for profile, seen, done in ((srgb, 0, ""), (swapped, 1, "to sRGB"), (b"?", 0, "damaged")):
        red.save(path, icc_profile=profile)
        assert np.abs(read_image(path).astype(int) - np.eye(3)[seen] * 255).max() <= 2
        said = open_reference(path).done
        assert len(said) == bool(done) and done in "".join(said)


# Transparency (row 7) -----------------------------------------------------------------------------------------


def logo(hidden=(255, 0, 255)):
    """uint8 [32, 32, 4]: an opaque yellow square, a half transparent blue one; `hidden` where nothing is seen."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = hidden
    rgba[4:12, 4:12] = (255, 200, 0, 255)
    rgba[16:28, 16:28] = (0, 0, 200, 128)
    return rgba


def assert_over_white(frame, tolerance):
    for place, expected in (
        (np.s_[:3], WHITE),
        (np.s_[6:10, 6:10], (255, 200, 0)),
        (np.s_[18:26, 18:26], (127, 127, 227)),
    ):
        assert np.abs(frame[place].reshape(-1, 3).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 255)])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_images_are_put_over_white(tmp_path, suffix, hidden):
    path = tmp_path / f"logo{suffix}"
    if suffix == ".avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    options = {".webp": {"lossless": True}, ".avif": {"quality": 100, "subsampling": "4:4:4"}}.get(suffix, {})
    Image.fromarray(logo(hidden)).save(path, **options)
    assert_over_white(read_image(path), 4 if suffix == ".avif" else 1)
    reference = open_reference(path)
    assert_over_white(reference.frames([0], 32, 32)[0], 4 if suffix == ".avif" else 1)
    assert "over white" in reference.describe([0], 32, 32)
    Image.fromarray(logo()[..., :3]).save(path)
    assert "over white" not in open_reference(path).describe([0], 32, 32)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_images_in_memory_are_put_over_white(mode):
    image = Image.fromarray(logo())
    if mode in ("LA", "La"):
        image = image.convert("LA")
    image = image.quantize(16).convert("PA") if mode == "PA" else image.convert(mode)
    out = open_reference(image).frames([0], 32, 32)[0]
    assert (out[:3] == 255).all()
    if mode.startswith("RGB"):
        assert_over_white(out, 2)


def test_a_colour_that_means_transparent(tmp_path):
    yellow = Image.new("RGB", (8, 8), (255, 200, 0))
    yellow.paste((1, 2, 3), (0, 0, 4, 8))
    yellow.save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    yellow.convert("L").save(tmp_path / "grey.png", transparency=2)
    yellow.quantize(4).save(tmp_path / "palette.png", transparency=yellow.quantize(4).getpixel((0, 0)))
    deep = np.full((8, 8), 30_000, np.uint16)
    deep[:, :4] = 500
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=500)
    for name in ("rgb", "grey", "palette"):
        pixels = read_image(tmp_path / f"{name}.png")
        assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] != 255).any(), name


@pytest.mark.parametrize(
    "name, codec, pix_fmt", [("a.mov", "qtrle", "argb"), ("a.mov", "png", "rgba"), ("a.mkv", "ffv1", "bgra")]
)
def test_videos_are_put_over_white(tmp_path, name, codec, pix_fmt):
    path = encode(tmp_path / name, np.stack([logo()] * 3), codec=codec, pix_fmt=pix_fmt)
    assert_over_white(read_video(path).frames[1], 2)
    reference = open_reference(path, 24)
    assert_over_white(reference.frames([1], 32, 32)[0], 2)
    assert "over white" in reference.describe([0], 32, 32)


def test_a_video_that_looks_premultiplied_is_named(tmp_path):
    rgba = logo(hidden=(0, 0, 0))
    assert (
        "premultiplied"
        not in open_reference(encode(tmp_path / "a.mov", rgba[None], codec="png", pix_fmt="rgba")).done[0]
    )
    rgba[16:28, 16:28, 2] = 100
    assert (
        "premultiplied" in open_reference(encode(tmp_path / "b.mov", rgba[None], codec="png", pix_fmt="rgba")).done[0]
    )


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm(tmp_path, codec):
    """Its transparency is a second video beside the first, which FFmpeg's own decoders pass over."""
    import av

    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "4", "b": "2M", "auto-alt-ref": "0"})
        stream.height = stream.width = 32
        stream.pix_fmt, stream.metadata["alpha_mode"] = "yuva420p", "1"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(logo(), format="rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = i, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frame = open_reference(path, 24).frames([1], 32, 32)[0]
    assert (frame[:3] > 240).all() and np.abs(frame[6:10, 6:10] - (255, 200, 0)).max() < 40


# Animations (row 16) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif", ".avif"])
def test_animations_are_clips(tmp_path, suffix):
    if suffix == ".avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    frames, path = bars(6), tmp_path / f"anim{suffix}"
    pictures = [Image.fromarray(frame) for frame in frames]
    options = {".webp": {"lossless": True}, ".avif": {"quality": 90}}.get(suffix, {})
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0, **options)
    video = read_video(path)
    assert numbers(video.frames) == list(range(6)) and video.fps == pytest.approx(10)
    assert count_frames(path) == 6
    reference = open_reference(path, 20)
    assert numbers(reference.frames(range(12), 32, 64)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    settings = Settings(num_frames=6, image_size=(32, 64), reference_fps="native")
    (job,) = plan("a car", [[path]], ["0,0,0,0,6"], settings)
    assert [frame.frame for frame in job.frames[0]] == list(range(6))
    with pytest.raises(MediaError, match="is a video"):
        read_image(path)


def test_frames_of_an_animation_last_as_long_as_they_say(tmp_path):
    pictures = [Image.fromarray(frame) for frame in bars(3)]
    path = tmp_path / "a.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 300, 100], lossless=True)
    reference = open_reference(path, 10)
    assert numbers(reference.frames(range(reference.num_frames), 32, 64)) == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_transparent_animations_are_put_over_white(tmp_path, suffix):
    pictures, path = [Image.fromarray(np.roll(logo(), 2 * i, 1)) for i in range(3)], tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, disposal=2, **options)
    frames = read_video(path).frames
    assert len(frames) == 3 and (frames[:, :3] == 255).all()
    assert np.abs(frames[0, 6:10, 6:10].astype(int) - (255, 200, 0)).max() < 20


# Shape --------------------------------------------------------------------------------------------------------


def test_pixels_that_are_not_square(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(bars(3, 48)[i], format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_video(path).frames.shape == (3, 48, 96, 3)
    reference = open_reference(path, 24)
    assert (reference.height, reference.width) == (48, 96) and numbers(reference.frames([2], 48, 96)) == [2]
    assert "96×48 → 48×48 cropped, pixels of 3:2 made square" in reference.describe([0], 48, 48)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_clips_are_turned_and_mirrored_as_their_matrix_says(tmp_path, matrix, mirrored):
    """A point (x, y) is shown at (a x + c y, b x + d y)."""
    import av

    if not hasattr(av.VideoFrame, "rotation"):
        pytest.skip("this PyAV does not tell the matrix")
    a, b, c, d = (-matrix[0], matrix[1], -matrix[2], matrix[3]) if mirrored else matrix
    data = Video(np.stack([corner()] * 2)).save(tmp_path / "a.mp4").read_bytes()
    stored = read_video(tmp_path / "a.mp4").frames[0]
    at = data.index(b"tkhd") + 44
    numbers9 = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data[:at] + numbers9 + data[at + 36 :])
    y, x = np.mgrid[: stored.shape[0], : stored.shape[1]]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.zeros((np.ptp(shown_y) + 1, np.ptp(shown_x) + 1, 3), np.uint8)
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = stored
    assert np.array_equal(read_video(tmp_path / "b.mp4").frames[0], expected)


def corner():
    """uint8 [32, 48, 3]: no turning or mirroring leaves it as it is."""
    frame = np.full((32, 48, 3), 40, np.uint8)
    frame[:8, :16] = (220, 60, 60)
    frame[24:, :8] = (60, 220, 60)
    return frame


def test_a_cover_picture_is_not_the_video(tmp_path):
    import av

    source, path = encode(tmp_path / "a.mp4", bars(30)), tmp_path / "b.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as target:
        if not hasattr(target, "add_stream_from_template") or not hasattr(container.streams, "best"):
            pytest.skip("this PyAV cannot choose a stream")
        cover = target.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        copy = target.add_stream_from_template(container.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24").reformat(
            format="yuvj420p"
        )
        picture.pts, picture.time_base = 0, Fraction(1, 1)
        target.mux([*cover.encode(picture), *cover.encode()])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    assert numbers(read_video(path).frames) == list(range(30)) and count_frames(path) == 30


# Names (row 20) -----------------------------------------------------------------------------------------------


def test_files_are_known_by_content(tmp_path):
    pixels = bars(1)[0]
    for kind, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
    ):
        for name in ("picture.jfif", "picture", "picture.mp4"):
            Image.fromarray(pixels).save(tmp_path / name, kind, **options)
            assert numbers(read_image(tmp_path / name)[None]) == [0] and count_frames(tmp_path / name) == 1
    clip = encode(tmp_path / "a.mp4", bars(3))
    for name in ("a", "a.m4v", "a.jpg", "a.MP4.part"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert numbers(read_video(tmp_path / name).frames) == [0, 1, 2]


def test_heic_photos_are_refused_with_advice(tmp_path):
    path = tmp_path / "IMG_1.jpg"
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"):
        path.write_bytes(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100))
        with pytest.raises(MediaError, match=r"HEIC.*JPEG"):
            read_image(path)


def test_only_the_first_page_of_a_document_is_read_and_that_is_said(tmp_path):
    pages = [Image.fromarray(frame) for frame in bars(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert "first of 3 pages" in open_reference(tmp_path / "a.tif").describe([0], 32, 64)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_raw_files_of_cameras_are_not_read_as_their_previews(tmp_path, tags):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    info.update(tags)
    Image.new("RGB", (16, 16)).save(tmp_path / "IMG_1.dng", "TIFF", tiffinfo=info)
    with pytest.raises(MediaError, match="raw"):
        read_image(tmp_path / "IMG_1.dng")


def test_a_png_with_much_before_its_animation(tmp_path):
    pictures = [Image.fromarray(frame) for frame in bars(2)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    data = (tmp_path / "a.png").read_bytes()
    text = b"tEXtComment\0" + b"x" * 100_000
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "b.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    assert count_frames(tmp_path / "b.png") == 2


# When errors are found ----------------------------------------------------------------------------------------


def test_damage_is_found_by_the_plan(tmp_path):
    """Before a model is loaded, also where it lies in the middle of a clip; not where nobody looks."""
    path = encode(
        tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (96, 32, 64, 3), np.uint8), options={"g": "8"}
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    settings = Settings(num_frames=8, image_size=(32, 64), frame_interval=1)
    plan("a car", [[path]], ["0,0,0,0,4"], settings)
    with pytest.raises(MediaError, match="damaged"):
        plan("a car", [[path]], ["0,0,44,0,8"], settings)


def test_a_reference_of_another_shape_is_refused_by_the_plan():
    with pytest.raises(MediaError, match="too far"):
        plan("a car", [[np.zeros((1, 1, 20_000, 3), np.uint8)]], ["0"], Settings(image_size=(512, 512)))
