"""What a person gives: checked in one form, `opensora_lite.validation`."""

import numpy as np

from opensora_lite.liteworld.evaluate import check_request
from opensora_lite.liteworld.world import Scene, render, sample_layout
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import Settings, plan
from opensora_lite.validation import _adapter


def test_validators_are_built_once():
    """A validator takes 0.5 ms and 7 kB: a kind that is written anew at each call would add both to each call."""

    def use():
        settings = Settings(num_frames="2s", image_size=(16, 16), fps="24", seed=[1])
        plan("a car", np.zeros((16, 16, 3), np.uint8), "0", settings)
        MaskStrategy.image().explain(4, [1])
        render(sample_layout(Scene("desert", "noon"), np.random.default_rng(0)), 1, 16, 16)
        check_request(Settings(image_size=(64, 64)), 1, 1)

    use()
    before = _adapter.cache_info().misses
    use()
    assert _adapter.cache_info().misses == before
