"""The VAE against diffusers' results, today's names and those of 2022."""

import subprocess
import sys

import numpy as np
import paddle
import pytest
from common import psnr, relative_error

from opensora_lite.errors import CheckpointError
from opensora_lite.liteworld import world
from opensora_lite.vae import SCALING_FACTOR, load_vae, new_autoencoder


@pytest.mark.parametrize("names", ["vae", "vae_2022_names"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_vae_reproduces_the_original(golden, recorded, names, micro_batch_size):
    cases = recorded("vae/cases")
    vae = load_vae(golden / names, micro_batch_size=micro_batch_size)
    assert vae.scaling_factor == SCALING_FACTOR
    video = paddle.to_tensor(cases["x"]).transpose([1, 0, 2, 3])[None]  # two pictures as a video of two frames
    latents = vae.encode(video).numpy()[0].transpose(1, 0, 2, 3) / SCALING_FACTOR
    decoded = vae.decode(paddle.to_tensor(cases["mean"]).transpose([1, 0, 2, 3])[None] * SCALING_FACTOR)
    errors = (
        relative_error(latents, cases["mean"]),
        relative_error(decoded.numpy()[0].transpose(1, 0, 2, 3), cases["decoded"]),
    )
    print(f"\nVAE ({names}): relative error {errors[0]:.1e} encoding, {errors[1]:.1e} decoding")
    assert max(errors) < 1e-4


def test_samples_scatter_around_the_mean_as_the_variance_says(golden, recorded):
    cases = recorded("vae/cases")
    vae = load_vae(golden / "vae")
    video = paddle.to_tensor(cases["x"]).transpose([1, 0, 2, 3])[None]
    draws = [vae.encode(video, "sample", np.random.default_rng(seed)).numpy() for seed in (0, 0, *range(1, 60))]
    np.testing.assert_array_equal(draws[0], draws[1])
    spread = (np.std(draws[1:], 0)[0].transpose(1, 0, 2, 3) / SCALING_FACTOR).mean()
    assert spread == pytest.approx(np.exp(cases["logvar"] / 2).mean(), rel=0.05)


def test_a_posterior_without_a_source_of_noise_is_refused(pipe):
    with pytest.raises(ValueError, match="posterior"):
        pipe.vae.encode(paddle.zeros([1, 3, 1, 8, 8]), "sample")


def test_the_small_vae_keeps_what_the_world_shows(pipe):
    scene = world.sample_scene(np.random.default_rng(7))
    frames = world.render(scene)
    assert psnr(pipe.decode(pipe.encode(frames)), frames) > 30


def test_ppdiffusers_leaves_numpy_as_it_was():
    program = (
        "import numpy as np; before = getattr(np, 'bool', bool)\n"
        "from opensora_lite.vae import new_autoencoder; new_autoencoder({})\n"
        "assert np.bool is before; np.testing.assert_array_equal([1.0, np.nan], [1.0, np.nan])"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_configs_of_other_autoencoders_are_refused():
    with pytest.raises(CheckpointError, match="_class_name"):
        new_autoencoder({"_class_name": "VQModel"})
    with pytest.raises(CheckpointError, match="mid_block_add_attention"):
        new_autoencoder({"mid_block_add_attention": False})
