"""What a person gives: checked in one form, `opensora_lite.validation`."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from opensora_lite import (
    MaskStrategy,
    OpenSora,
    OpenSoraError,
    Segment,
    Settings,
    Trace,
    Video,
    estimate_memory,
    read_video,
)
from opensora_lite.liteworld.evaluate import check_request
from opensora_lite.liteworld.world import Scene, render, sample_layout
from opensora_lite.request import captions_of, model_defaults, plan
from opensora_lite.validation import _adapter
from opensora_lite.video import open_reference, read_image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


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


VIDEO = Video(np.zeros((2, 8, 8, 3), np.uint8))
IMAGE = MaskStrategy.image()
QUICK = Settings(num_frames=2, image_size=(16, 16), num_sampling_steps=2)


def generate(pipe, **arguments):
    return list(pipe.generate(**{"jobs": plan("a car", settings=QUICK), "settings": QUICK, **arguments}))


PUBLIC = [  # functions, arguments that they need, and the ones that are tried
    (plan, dict(prompts="a car"), "prompts references settings spec"),
    (captions_of, dict(prompts="a car"), "prompts loops"),
    (model_defaults, {}, "model"),
    (Settings, {}, "num_frames image_size fps sampler seed guidance_scale camera_motion loops batch_size same_seed"),
    (MaskStrategy.parse, {}, "text"),
    (MaskStrategy.extend, {}, "n"),
    (MaskStrategy.prepend, {}, "n"),
    (MaskStrategy.loop, {}, "n"),
    (MaskStrategy.edit, {}, "ratio"),
    (Segment, {}, "loop reference reference_start target_start length edit_ratio"),
    (IMAGE.explain, dict(num_frames=4, references=[1]), "num_frames references loops time"),
    (IMAGE.timeline, dict(num_frames=4, references=[1]), "num_frames references loop align"),
    (IMAGE.continued, dict(loops=2, condition_frames=1, references=1), "loops condition_frames references"),
    (IMAGE.apply, dict(references=[]), "latents"),
    (Video, dict(frames=VIDEO.frames), "frames fps prompt info"),
    (VIDEO.contact_sheet, {}, "columns scale frames gap"),
    (VIDEO.spread, {}, "most"),
    (VIDEO.save, {}, "path"),
    (read_video, dict(path=NOTEBOOKS / "assets" / "car.mp4"), "path fps"),
    (read_image, {}, "path"),
    (open_reference, dict(source=VIDEO), "source fps"),
    (Trace, {}, "attention steps"),
    (estimate_memory, {}, "model num_frames image_size dtype stdit t5 vae batch_size micro_batch_size device compiled"),
    (OpenSora.from_pretrained, {}, "model stdit device dtype micro_batch_size sequential text_embeddings"),
    (OpenSora.__call__, dict(prompt="a car"), "prompt references on_step trace seed"),
    (generate, {}, "jobs settings on_step trace"),
    (OpenSora.encode_text, dict(prompts="a car"), "prompts loops"),
    (OpenSora.compile, {}, "precision"),
    (OpenSora.encode, {}, "frames"),
    (OpenSora.decode, dict(latents=np.zeros((4, 1, 2, 2), np.float32)), "latents"),
]
WORDS = {"text": "mask strategy", "ratio": "edit_ratio", "source": "reference|frames", "references": "reference|frames"}
OPTIONAL = {"references", "fps", "prompt", "info", "scale", "device", "dtype", "micro_batch_size", "text_embeddings"}
OPTIONAL |= {"model", "stdit", "t5", "vae", "text", "frames", "steps", "align", "camera_motion", "length", "compiled"}
OPTIONAL |= {"on_step", "trace", "precision"}
MAPPINGS = {"info", "stdit", "t5", "vae"}


@pytest.mark.parametrize("function, needed, names", PUBLIC, ids=lambda value: getattr(value, "__qualname__", ""))
def test_an_argument_of_another_type_is_named(pipe, monkeypatch, function, needed, names):
    monkeypatch.setattr(pipe, "_make", lambda *request: pytest.fail("something was computed"))
    if function is generate or function in vars(OpenSora).values():
        function = partial(function, pipe)
    for name in names.split():
        for wrong in (object(), b"x", 2.5j, {"a": 1}, np.zeros(2), None):
            if name in (OPTIONAL if wrong is None else MAPPINGS if isinstance(wrong, dict) else ()):
                continue
            with pytest.raises(OpenSoraError) as error:
                function(**{**needed, name: wrong})
            assert re.search(WORDS.get(name, name.rstrip("s")), str(error.value))
