"""The video VAE against the original's results; the released checkpoint's names and shapes; latent frames."""

import copy
import json
import shutil

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite import latent_time
from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import Tensor, build_meta, check_state_dict, read_vae_config
from opensora_lite.vae import FrameVAE
from opensora_lite.video_vae import ChunkNorm, VideoAutoencoder, VideoVAE, load_any_vae, load_video_vae

LENGTHS = (1, 4, 5, 17, 18, 20, 34, 51)


@pytest.fixture(scope="module")
def vae(golden):
    return load_video_vae(golden / "12" / "vae", micro_batch_size=8)


@pytest.fixture(scope="module")
def cases(recorded):
    return recorded("12/vae/cases")


def errors(**pairs) -> float:
    """The largest of the relative errors, each of which is printed."""
    found = {name: relative_error(got.numpy(), expected) for name, (got, expected) in pairs.items()}
    print("\nvideo VAE:", ", ".join(f"{name} {error:.1e}" for name, error in found.items()))
    return max(found.values())


@pytest.mark.parametrize("length", LENGTHS)
def test_videos_of_any_length(vae, cases, length):
    case, video = cases[f"n{length}"], paddle.to_tensor(cases["video"][:, :, :length])
    latents = vae.encode(video)
    assert vae.latent_frames(length) == latents.shape[2] == case["latents"].shape[2]
    decoded = vae.decode(paddle.to_tensor(case["latents"]), length)
    assert errors(latents=(latents, case["latents"]), decoded=(decoded, case["decoded"])) < 1e-4


@pytest.mark.parametrize("length", LENGTHS)
def test_the_temporal_part_in_one_go(vae, cases, length):
    case, temporal = cases[f"temporal{length}"], vae.model.temporal_vae
    with paddle.no_grad():
        mean, logvar = temporal.encode(paddle.to_tensor(case["x"])).split(2, 1)
        decoded = temporal.decode(paddle.to_tensor(case["mean"]))[:, :, -length:]
    pairs = dict(mean=(mean, case["mean"]), logvar=(logvar, case["logvar"]), decoded=(decoded, case["decoded"]))
    assert errors(**pairs) < 1e-4


def test_several_videos_and_latents_that_no_encoder_made(vae, cases):
    batch, noise = cases["batch"], cases["fromnoise"]
    assert errors(
        latents=(vae.encode(paddle.to_tensor(batch["video"])), batch["latents"]),
        decoded=(vae.decode(paddle.to_tensor(batch["latents"]), 20), batch["decoded"]),
        from_noise=(vae.decode(paddle.to_tensor(noise["latents"])), noise["decoded"]),  # 34 frames: as long as can be
    ) < 1e-4  # fmt: skip


class Recorded:
    """A generator that gives recorded noise, a piece at a time."""

    def __init__(self, *pieces):
        self.left = list(pieces)

    def standard_normal(self, shape, dtype):
        n = shape[0] if len(self.left[0]) > shape[0] else len(self.left[0])
        piece, rest = self.left[0][:n], self.left[0][n:]
        self.left[:1] = [rest] if len(rest) else []
        assert piece.shape == tuple(shape) and piece.dtype == dtype
        return piece


def test_samples_of_both_posteriors(golden, cases):
    vae, case = load_video_vae(golden / "12" / "vae", micro_batch_size=8), cases["sampled"]
    noise = Recorded(case["spatial_noise"], case["temporal_noise"])
    latents = vae.encode(paddle.to_tensor(cases["video"][:, :, :20]), "sample", noise)
    assert errors(sampled=(latents, case["latents"])) < 1e-4 and not noise.left
    with pytest.raises(ValueError, match="rng"):
        vae.encode(paddle.to_tensor(cases["video"]), "sample")


def test_it_has_the_attributes_of_a_frame_vae(vae, pipe):
    """`pipe.vae` is a FrameVAE; a pipeline uses either."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    for each, latents, size in ((vae, 2, (4, 6)), (pipe.vae, 5, (2, 3))):
        assert each.latent_frames(5) == latents
        encoded = each.encode_frames(clip)
        assert encoded.dtype == np.float32 and encoded.shape == (each.channels, latents, *size)
        assert [n * each.downsampling for n in size] == [16, 24]
        assert each.decode(paddle.to_tensor(encoded[None]), 5).shape == [1, 3, 5, 16, 24]
        assert set(each.decoders) <= {"spatial", "temporal"} and each.micro_batch_size and each.model.config


# ---------------------------------------------------------------------------------------------------------- loading


def test_the_released_names_and_shapes(golden, tmp_path):
    released = json.loads((golden / "12" / "full_size_tensors12.json").read_text())["OpenSora-VAE-v1.2"]
    assert len(released) == 517 and sum(int(np.prod(shape)) for shape in released.values()) == 393_341_015
    config = {"vae_2d": {"from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", "subfolder": "vae"}}
    config |= {"model_type": "VideoAutoencoderPipeline", "vae_temporal": {"type": "VAE_Temporal_SD"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = build_meta(VideoAutoencoder, read_vae_config(tmp_path))
    tensors = {name: Tensor(tuple(shape), lambda: None, "torch", tmp_path) for name, shape in released.items()}
    assert set(check_state_dict(model, tensors)) == set(released)
    tensors["temporal_vae.encoder.conv_in.conv.bias"] = tensors["scale"]
    del tensors["shift"]
    with pytest.raises(CheckpointError, match=r"shift(.|\n)*conv_in.conv.bias"):
        check_state_dict(model, tensors)


def test_a_folder_says_what_kind_of_vae_it_is(golden):
    assert isinstance(load_any_vae(golden / "12" / "vae"), VideoVAE)
    assert isinstance(load_any_vae(golden / "vae"), FrameVAE)
    with pytest.raises(CheckpointError, match="vae_temporal"):
        load_video_vae(golden / "vae")


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(vae_temporal=dict(num_groups=4)), "num_groups"),
        (dict(vae_temporal=dict(filters=0)), "filters"),
        (dict(vae_temporal=dict(temporal_downsample=[True])), "temporal_downsample"),
        (dict(vae_temporal=dict(in_out_channels=5)), "in_out_channels"),
        (dict(vae_temporal=dict(type="VAE_Other")), "type"),
        (dict(vae_temporal=dict(filter=6)), "filter"),
        (dict(vae_temporal=[]), "vae_temporal"),
        (dict(micro_frame_size=0), "micro_frame_size"),
        (dict(cal_loss=True), "cal_loss"),
        (dict(norm_num_groups=5), "norm_num_groups"),
    ],
)
def test_configs_that_no_such_model_has(golden, tmp_path, changes, word):
    folder = tmp_path / "vae"
    shutil.copytree(golden / "12" / "vae", folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        new = {k: v for k, v in config[name].items() if word not in k} if isinstance(value, dict) else {}
        config[name] = new | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=word):
        load_video_vae(folder)


# ------------------------------------------------------------------------------------------------------ latent frames


def test_the_frames_of_each_latent_frame(golden):
    recorded = json.loads((golden / "12" / "references12.json").read_text())["encoded"]
    for case in recorded:
        found = latent_time.windows(case["frames"])
        assert len(found) == case["latents"] == latent_time.latent_frames(case["frames"])
        for window, expected in zip(found, case["windows"], strict=True):
            assert window.chunk == expected["chunk"] and window.zeros_before == expected["zeros_before"]
            assert [window.first, window.last] == expected["frames"]
            assert list(window.reach) == expected["convolutions_reach"]
            assert list(window.depends_on) == expected["group_norm_reaches"]


def test_latent_sizes(golden):
    for case in json.loads((golden / "12" / "vae" / "latent_sizes.json").read_text()):
        frames, chunk = case["input"][0], case["micro_frame_size"]
        if frames is not None:  # the original passes "unknown" through
            assert latent_time.latent_frames(frames, chunk) == case["latent"][0]


@pytest.mark.parametrize("chunk", [17, 5, None])
def test_the_longest_video_of_a_number_of_latent_frames(chunk):
    for n in range(1, 40):
        longest = latent_time.most_frames(n, chunk)
        assert latent_time.latent_frames(longest, chunk) == n < latent_time.latent_frames(longest + 1, chunk)


def test_windows_of_the_frame_wise_vae():
    assert [(w.first, w.last, w.zeros_before) for w in latent_time.windows(3, None, 1)] == [(i, i, 0) for i in range(3)]


def test_convolutions_see_no_later_frame(vae):
    """With group norms, which average over the chunk, every latent frame depends on all of its frames."""
    temporal, x = copy.deepcopy(vae.model.temporal_vae), paddle.randn([1, 4, 17, 3, 5])

    def changed(window):
        """The latent frames that feel a change of frames behind the window's."""
        other = paddle.concat([x[:, :, : window.last + 1], x[:, :, window.last + 1 :] + 1], 2)
        with paddle.no_grad():
            difference = (temporal.encode(other) - temporal.encode(x)).abs().max(axis=[0, 1, 3, 4])
        return [i for i, n in enumerate(difference.numpy()) if n > 1e-6]

    with_norms = changed(latent_time.windows(17)[1])
    for layer in temporal.sublayers():
        if isinstance(layer, ChunkNorm):
            layer.forward = lambda x: x
    assert with_norms == [0, 1, 2, 3, 4]
    assert [changed(window) for window in latent_time.windows(17)] == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4], []]
