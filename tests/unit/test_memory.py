"""Memory estimates: upper bounds of what Paddle allocates and of what processes take; what is refused."""

import json
import re

import memory_models
import numpy as np
import paddle
import pytest

from opensora_lite import pipeline
from opensora_lite.errors import CheckpointError, DeviceError
from opensora_lite.io.checkpoints import SDXL_VAE, build_meta, read_config, read_vae_config
from opensora_lite.request import Settings, model_folder
from opensora_lite.runtime import engine, memory
from opensora_lite.runtime.memory import estimate_memory, stdit_parameters, t5_parameters, vae_parameters
from opensora_lite.runtime.offload import Resident
from opensora_lite.samplers import CFG, SAMPLERS, NoiseSource
from opensora_lite.stdit2 import SIZES, Conditions, STDiT2, STDiT2Config
from opensora_lite.text import EMBEDDINGS, new_encoder
from opensora_lite.tools import cli
from opensora_lite.vae import FrameVAE, new_autoencoder
from opensora_lite.video_vae import VideoAutoencoder, VideoVAE

SD_VAE_LAYERS = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)


def parameters(layer) -> int:
    """Number of parameters of a layer, each counted once."""
    return sum(int(np.prod(value.shape)) for value in {id(v): v for v in layer.state_dict().values()}.values())


# ----------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("part", ["stdit", "t5", "vae"])
def test_formulas_count_the_small_models_parameters(part):
    config = read_config(model_folder("tiny") / part)
    count, make = {
        "stdit": (stdit_parameters, lambda: STDiT2(STDiT2Config.from_dict(config))),
        "t5": (t5_parameters, lambda: new_encoder(config)),
        "vae": (vae_parameters, lambda: new_autoencoder(config)),
    }[part]
    assert count(config) == parameters(build_meta(make))


def test_formulas_count_the_released_weights(golden):
    shapes = json.loads((golden / "full_size_tensors.json").read_text())
    t5 = {name: shape for name, shape in shapes["t5-v1_1-xxl (encoder)"].items() if name not in EMBEDDINGS[1:]}
    assert t5_parameters(memory.T5_XXL) == sum(int(np.prod(shape)) for shape in t5.values())
    assert vae_parameters(memory.SD_VAE) == parameters(
        build_meta(lambda: new_autoencoder(memory.SD_VAE | SD_VAE_LAYERS))
    )
    assert stdit_parameters({}) == parameters(build_meta(lambda: STDiT2(SIZES["XL/2"])))


@pytest.mark.parametrize(
    "changes", [dict(qk_norm=False), dict(mlp_ratio=3.0), dict(patch_size=(1, 4, 2)), dict(in_channels=8, depth=2)]
)
def test_the_formula_follows_every_field_of_a_transformer(changes):
    config = dict(hidden_size=72, depth=1, num_heads=6, caption_channels=10, model_max_length=7) | changes
    assert stdit_parameters(config) == parameters(build_meta(lambda: STDiT2(STDiT2Config(**config))))


def test_the_formulas_follow_the_fields_of_t5_and_vae():
    t5 = dict(vocab_size=30, d_model=12, d_kv=3, d_ff=20, num_layers=3, num_heads=4)
    assert t5_parameters(t5) == parameters(build_meta(lambda: new_encoder(t5)))
    vae = dict(memory.SD_VAE, block_out_channels=[32, 96], layers_per_block=3, use_quant_conv=False)
    vae |= dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    assert vae_parameters(vae) == parameters(build_meta(lambda: new_autoencoder(vae)))


def test_the_formula_counts_a_video_vae(golden):
    released = json.loads((golden / "12" / "full_size_tensors12.json").read_text())["OpenSora-VAE-v1.2"]
    assert vae_parameters(SDXL_VAE | {"vae_temporal": {}}) == sum(int(np.prod(shape)) for shape in released.values())
    small = read_vae_config(golden / "12" / "vae")
    others = dict(channel_multipliers=[2, 1], temporal_downsample=[True], in_out_channels=4, latent_embed_dim=3)
    others |= dict(embed_dim=5, filters=9, num_groups=3, num_res_blocks=1)
    for config in (small, small | {"vae_temporal": others}):
        assert vae_parameters(config) == parameters(build_meta(VideoAutoencoder, config))


# --------------------------------------------------------------------------------------------- what Paddle hands out


def allocated(function) -> int:
    """The most bytes that Paddle's allocator holds during a call, beyond those before it."""
    count = paddle.base.core
    if not hasattr(count, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle does not say what it allocates at most: pip install paddlepaddle==3.3.1")
    count.host_memory_stat_reset_peak_value("Allocated", 0)
    before = count.host_memory_stat_current_value("Allocated", 0)
    function()
    return count.host_memory_stat_peak_value("Allocated", 0) - before


@pytest.mark.parametrize(
    "D, heads, videos, num_frames, size, guidance_scale",
    [
        (144, 6, 1, 16, (64, 64), 4.0),  # the MLP is the widest
        (144, 6, 1, 4, (256, 256), 4.0),  # attention in space, with its scores
        (144, 6, 1, 64, (128, 128), 1.0),  # attention in time
        (768, 12, 1, 4, (128, 256), 4.0),
        (768, 12, 2, 8, (64, 64), 4.0),
        (1152, 16, 1, 1, (512, 512), 4.0),  # scores in pieces
    ],
)
def test_denoising(D, heads, videos, num_frames, size, guidance_scale):
    config = dict(hidden_size=D, depth=2, num_heads=heads, caption_channels=96, model_max_length=32)
    model = STDiT2(STDiT2Config(**config))
    y, mask = paddle.randn([videos, 1, 12, 96]), paddle.ones([videos, 12], "int64")
    height, width = size
    conditions = Conditions.shared(y, mask, (num_frames, height // 8, width // 8), height, width, 24)

    def two_steps():
        predict = CFG(model, conditions, guidance_scale)
        noise = NoiseSource(list(range(videos)), (4, num_frames, height // 8, width // 8))
        steps = SAMPLERS["iddpm"](10).sample(predict, noise(), None, noise)
        next(steps), next(steps)

    told = estimate_memory(
        stdit=config, num_frames=num_frames, image_size=size, batch_size=videos, guidance_scale=guidance_scale
    )
    assert told.denoising / 2 < allocated(two_steps) <= told.denoising


@pytest.mark.parametrize(
    "channels, layers, num_frames, size, micro_batch_size",
    [
        ([16, 32, 64, 64], 1, 16, (64, 64), 16),
        ([16, 32, 64, 64], 1, 16, (128, 128), 4),
        ([16, 32, 64, 64], 1, 20, (64, 128), 16),
        ([16, 32, 64, 64], 1, 3, (64, 64), 1),
        ([16, 32, 64, 64], 1, 80, (32, 32), 1),  # the video is larger than the decoder's feature maps
        ([32, 64, 128, 128], 2, 8, (64, 64), 8),
        ([128, 256, 512, 512], 2, 2, (64, 64), 2),
        ([16, 32, 64, 64], 1, 1, (512, 512), 1),  # attention of 4,096 places
    ],
)
def test_decoding(channels, layers, num_frames, size, micro_batch_size):
    config = dict(block_out_channels=channels, layers_per_block=layers, latent_channels=4, norm_num_groups=8)
    config |= dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    vae = FrameVAE(new_autoencoder(config), micro_batch_size=micro_batch_size)
    z = paddle.zeros([1, 4, num_frames, size[0] // 8, size[1] // 8])
    told = estimate_memory(vae=config, num_frames=num_frames, image_size=size, micro_batch_size=micro_batch_size)
    assert told.decoding / 2 < allocated(lambda: pipeline.to_uint8(vae.decode(z))) <= told.decoding


@pytest.mark.parametrize(
    "temporal, num_frames, size",
    [
        (dict(filters=16, num_groups=8, num_res_blocks=1), 17, (64, 64)),  # the weights of the widest level count
        (dict(filters=16, num_groups=8, num_res_blocks=1), 51, (64, 64)),  # the video, too
        (dict(filters=64, num_res_blocks=1), 20, (128, 128)),
        (dict(filters=64, num_res_blocks=1, channel_multipliers=[1, 1], temporal_downsample=[True]), 3, (64, 64)),
    ],
)
def test_decoding_with_a_video_vae(golden, temporal, num_frames, size):
    config = read_vae_config(golden / "12" / "vae") | dict(block_out_channels=[4, 4, 4, 4], vae_temporal=temporal)
    config |= dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    vae = VideoVAE(VideoAutoencoder(config), micro_batch_size=1)
    z = paddle.zeros([1, 4, vae.latent_frames(num_frames), size[0] // 8, size[1] // 8])
    told = estimate_memory(vae=config, num_frames=num_frames, image_size=size, micro_batch_size=1)
    assert told.decoding / 2 < allocated(lambda: pipeline.to_uint8(vae.decode(z, num_frames))) <= told.decoding


def test_latent_frames_are_denoised(golden):
    of = {n: estimate_memory("tiny", n, (64, 64), vae=golden / "12" / "vae").denoising for n in (17, 51)}
    assert of == {n: estimate_memory("tiny", m, (64, 64)).denoising for n, m in ((17, 5), (51, 15))}


# ------------------------------------------------------------------------------------------------- what processes take


@pytest.mark.parametrize(
    "num_frames, size, compiled",
    [
        (16, (64, 64), None),
        (16, (256, 256), None),
        (64, (128, 128), None),
        (16, (64, 64), "fp32"),
        (16, (256, 256), "fp32"),
        (16, (256, 256), "bf16"),
        (64, (128, 128), "fp32"),
    ],
)
def test_the_peak_of_a_process(num_frames, size, compiled):
    if compiled and not engine.available():
        pytest.skip("this Paddle compiles nothing")
    if compiled == "bf16" and engine.choose_precision("auto") != "bf16":
        pytest.skip("this processor does not compute in bf16")
    settings = dict(num_frames=num_frames, image_size=size, num_sampling_steps=2, guidance_scale=4.0)
    told = estimate_memory("tiny", num_frames, size, guidance_scale=4.0, compiled=compiled)
    took = memory_models.measured("tiny", compiled=compiled, **settings)["peak"]
    print(f"\n{num_frames}×{size[0]}×{size[1]} {compiled}: {told.peak / 1e6:.0f} MB estimated, {took / 1e6:.0f} taken")
    assert took <= told.peak


# -------------------------------------------------------------------------------------------------------- what is told


def test_a_part_can_be_given_as_a_folder_or_as_its_config():
    tiny = estimate_memory("tiny", 16, (64, 64))
    assert tiny == estimate_memory(None, 16, (64, 64)) == estimate_memory(model_folder("tiny"), 16, (64, 64))
    config = read_config(model_folder("tiny") / "stdit")
    assert tiny == estimate_memory("tiny", 16, (64, 64), stdit=config)
    assert estimate_memory("tiny", 16, (64, 64), stdit=config | {"depth": 12}).weights["stdit"] > tiny.weights["stdit"]
    with pytest.raises(CheckpointError, match='model "gone" is neither "tiny" nor a folder'):
        estimate_memory("gone")
    with pytest.raises(DeviceError, match='dtype "int8" is unknown'):
        estimate_memory("tiny", dtype="int8")


def test_the_released_weights_can_be_planned():
    half = estimate_memory("XL/2", 16, (256, 256), "fp16", device="gpu")
    assert sum(half.weights.values()) == pytest.approx(11.23e9, rel=1e-3)
    assert half.decoding > half.denoising and half.process == 0
    alone = estimate_memory("XL/2", 16, (256, 256), "fp16", device="gpu", sequential=True)
    assert alone.peak < 9.8e9 < half.peak  # T5 alone sets it …
    given = estimate_memory("XL/2", 16, (256, 256), "fp16", device="gpu", text_encoder=False)
    assert given.peak < 3.5e9 and given.peak == pytest.approx(
        half.peak - half.weights["t5"]
    )  # … unless its vectors are given
    assert estimate_memory("XL/2").weights["t5"] == 2 * half.weights["t5"]
    lines = str(half).splitlines()
    assert lines[0] == "weights of t5           9.52 GB" and lines[-1].startswith("peak")


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def free(monkeypatch):
    """free(bytes): so much memory is there."""
    return lambda n: monkeypatch.setattr(memory, "available_memory", lambda device="cpu": n)


def test_a_run_that_cannot_fit_is_refused_before_a_model_is_loaded(free, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pipeline.OpenSora, "from_pretrained", lambda *a, **k: pytest.fail("it was loaded"))
    free(600e6)
    command = ["generate", "--prompt", "a car", "--image-size", "256", "256", "--save-dir", str(tmp_path / "out")]
    assert cli.main([*command, "--micro-batch-size", "16"]) == 2
    said = capsys.readouterr().err
    assert "16 frames of 256×256, 1 video(s) at once, take 0.8 GB of memory, and 0.6 GB are free; " in said
    assert re.search(r"micro_batch_size=\d would fit", said) and not (tmp_path / "out").exists()
    frames, side = (int(n) for n in re.search(r"; or (\d+) frames would fit; or (\d+)×\2 would fit", said).groups())
    for changes in (dict(num_frames=frames), dict(image_size=(side, side))):
        told = estimate_memory("tiny", **{"num_frames": 16, "image_size": (256, 256), **changes})
        assert 0.8 * 600e6 < told.peak <= 600e6  # the largest, and not just any


def test_several_changes_are_named_where_one_is_not_enough(free):
    settings = Settings(num_frames=64, image_size=(512, 512), batch_size=4)
    free(164e6)
    with pytest.raises(DeviceError, match=r"with micro_batch_size=1 and one video at once, \d+×\d+ would fit"):
        memory.refuse_what_cannot_fit(settings, memory.for_settings(settings, model="tiny"), "cpu")
    free(1e9)
    with pytest.raises(DeviceError, match=r"nothing of this model fits, whose weights take 22.5 GB: half precision"):
        memory.refuse_what_cannot_fit(settings, memory.for_settings(settings, model="XL/2"), "cpu")


def test_videos_that_are_made_at_once_count_and_not_the_batch_size(free, pipe, tmp_path):
    free(1e9)
    pipe("a car", num_sampling_steps=2, num_frames=2, batch_size=10_000)
    small = ["--num-sampling-steps=2", "--num-frames=2", "--prompt", "a car", "--batch-size=10000"]
    assert cli.main(["generate", *small, "--save-dir", str(tmp_path)]) == 0
    with pytest.raises(DeviceError, match=r"500 video\(s\) at once, .*; batch_size=\d+ would fit"):
        pipe(["a car"] * 500, batch_size=10_000)


def test_a_loaded_model_is_refused_what_does_not_fit_beside_it(free, pipe):
    free(100e6)
    with pytest.raises(DeviceError, match=r"16 frames of 256×256, 1 video\(s\) at once, take 0\.. GB of memory"):
        pipe("a car", image_size=(256, 256))
    pipe("a car", num_sampling_steps=2, num_frames=4)


def test_what_an_engine_takes_counts_and_one_that_came_by_itself_gives_way(free, pipe):
    pipe = pipeline.OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings)
    request = dict(num_frames=16, num_sampling_steps=30, seed=1)
    bare, compiled = (
        estimate_memory("tiny", 16, (64, 64), guidance_scale=4.0, micro_batch_size=1, compiled=c).work
        for c in (None, "fp32")
    )
    free((bare + compiled) / 2)
    uncompiled = pipe("a car", **request).frames
    assert not pipe.models.transformer.engines
    free(1.01 * compiled)
    made = pipe("a car", **request).frames
    assert bool(pipe.models.transformer.engines) == engine.available()
    assert abs(made.astype(int) - uncompiled).max() <= 1
    if engine.available():
        free((bare + compiled) / 2)
        with pytest.raises(DeviceError, match=r"frames of 64×64, .* take"):
            pipe.compile("fp32")("a car", **request)  # it was asked for


def test_as_many_frames_pass_through_the_vae_as_the_memory_allows(free, pipe):
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    vae, at_once = FrameVAE(pipe.vae.model, micro_batch_size=memory.micro_batch), []
    handle = pipe.vae.model.encoder.register_forward_pre_hook(lambda layer, given: at_once.append(len(given[0])))
    try:
        for allowed, expected in ((10e9, 16), (25e6, 8), (1, 1)):
            free(allowed)
            at_once.clear()
            vae.encode_frames(frames)
            assert max(at_once) == expected, allowed
    finally:
        handle.remove()
