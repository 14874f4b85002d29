"""Whole runs of the small model, recorded with the original code: latents, frame masks, noise, pixels."""

import json

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite.masks import MaskStrategy
from opensora_lite.pipeline import to_uint8
from opensora_lite.samplers import CFG, IDDPM
from opensora_lite.stdit2 import Conditions


@pytest.mark.parametrize("name", ["text", "image", "connect", "edit"])
def test_whole_runs_reproduce_the_original(golden, recorded, first_pipe, name):
    pipe = first_pipe
    tensors, case = recorded("tiny_cases")[name], json.loads((golden / "tiny_cases.json").read_text())[name]
    height, width = case["size"]
    y, mask = pipe.text.encode([case["caption"]])

    references = [pipe.encode(tensors[key]) for key in sorted(tensors) if key.startswith("reference_")]
    strategy = MaskStrategy.parse(case["strategy"])
    z, frame_mask = strategy.apply(tensors["start_noise"][0], references)
    if references:
        assert relative_error(z, tensors["z"][0]) < 1e-4
        np.testing.assert_allclose(frame_mask, tensors["frame_mask"][0], rtol=1e-6)

    latent_size = (case["num_frames"], height // 8, width // 8)
    conditions = Conditions.shared(y, mask, latent_size, height, width, case["fps"])
    predict = CFG(pipe.stdit, conditions, case["guidance_scale"], case["cfg_channel"])
    draws = iter(tensors["noise"])
    *_, last = IDDPM(case["steps"]).sample(
        predict,
        paddle.to_tensor(z[None]),
        frame_mask[None] if references else None,
        lambda rows=None: paddle.to_tensor(next(draws)[None]),
    )
    error = relative_error(last.sample.numpy(), tensors["latents"])
    frames = to_uint8(pipe.vae.decode(last.sample))[0]
    off = np.abs(frames.astype(int) - tensors["frames"]).max()
    print(f"\nsmall model, {name}: relative error of the latents {error:.1e}, pixels off by at most {off}")
    assert error < 1e-3
    assert off <= 2
