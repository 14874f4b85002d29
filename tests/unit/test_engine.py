"""The compiled models: the same results, from the disk or not, and never a failure of their own."""

import os
import warnings

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite import OpenSora, Trace
from opensora_lite.errors import DeviceError
from opensora_lite.runtime import engine
from opensora_lite.runtime.engine import Engine, Programs, available, cached, choose_precision, parameter_names
from opensora_lite.runtime.offload import Resident
from opensora_lite.samplers import CFG

pytestmark = pytest.mark.skipif(not available(), reason="this Paddle has no OpenVINO: pip install paddlepaddle==3.3.1")
needs_bf16 = pytest.mark.skipif(
    not (engine.has_instructions("avx512_bf16") or engine.has_instructions("amx_bf16")),
    reason="this processor has no bf16: use one with avx512_bf16 or amx_bf16",
)
PROMPT, SHORT = "a red car driving right on the ocean at sunset", dict(num_frames=4, num_sampling_steps=4, seed=3)


@pytest.fixture(scope="module")
def pipe():
    return OpenSora.from_pretrained("tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def predictions(pipe, model, guidance_scale=4.0, masked=False, latent_size=(5, 7, 11), caption=PROMPT):
    """What a model says of two videos; by default of a size that the patch does not divide."""
    y, mask = pipe.text.encode([caption] * 2)
    T, H, W = latent_size
    sizes = dict(num_frames=T, height=8 * H, width=8 * W, ar=H / W, fps=24)
    guide = CFG(model, y, mask, guidance_scale, None, (0, 800), **sizes)
    rng = np.random.default_rng(0)
    x = paddle.to_tensor(rng.standard_normal((2, 4, T, H, W), np.float32))
    x_mask = paddle.to_tensor(rng.random((2, T)) < 0.5) if masked else None
    steps = [guide(x, t, x_mask) for t in (900, 500, 100)]  # the first without guidance, in half of the batch
    return np.concatenate([np.stack([p.epsilon.numpy(), p.variance.numpy()]) for p in steps])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_fp32_is_what_the_model_says(pipe, masked, guidance_scale):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    args = dict(guidance_scale=guidance_scale, masked=masked)
    assert relative_error(predictions(pipe, compiled, **args), predictions(pipe, pipe.stdit, **args)) < 1e-5
    assert not compiled.failed


def test_another_caption_needs_no_other_program(pipe):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    for caption in ("a boat", PROMPT, "a boat"):
        expected = predictions(pipe, pipe.stdit, 1.0, caption=caption)
        assert relative_error(predictions(pipe, compiled, 1.0, caption=caption), expected) < 1e-5
    assert len(compiled._denoise._loaded) == 1


def test_what_was_compiled_once_serves_every_engine_and_there_is_a_bound(pipe, monkeypatch):
    """Paddle gives no memory of a predictor back: 70 MB of the small model's, again at every change of sizes."""
    first, expected = Engine(pipe.stdit, pipe.vae, "fp32"), predictions(pipe, pipe.stdit)
    got = predictions(pipe, first)
    before = len(engine._predictors)
    for _ in range(3):
        again = Engine(pipe.stdit, pipe.vae, "fp32")
        for frames in (2, 3, 2):
            again.decode(paddle.zeros([1, 4, frames, 8, 8]))
        assert np.array_equal(predictions(pipe, again), got)
    assert len(engine._predictors) <= before + 2
    monkeypatch.setattr(engine, "_predictors", {})
    monkeypatch.setattr(engine, "MOST_LOADED", 0)
    with pytest.warns(RuntimeWarning, match="uncompiled at this size: this process has 0 others"):
        assert relative_error(predictions(pipe, Engine(pipe.stdit, pipe.vae, "fp32")), expected) < 1e-6


def test_the_released_kind_of_model_compiles_too(golden_stdit, pipe):
    """With other patches, sizes and without the norm of queries and keys."""
    for name in ("qknorm", "plain"):
        model = golden_stdit(name)
        compiled = Engine(model, pipe.vae, "fp32")
        c, rng = model.config, np.random.default_rng(1)
        x = paddle.to_tensor(rng.standard_normal((1, c.in_channels, 3, 8, 6), np.float32))
        y = paddle.to_tensor(rng.standard_normal((1, 1, 5, c.caption_channels), np.float32))
        guides = [
            CFG(m, y, paddle.ones([1, 5], "int64"), 3.0, num_frames=3, height=64, width=48, ar=1.3, fps=8)
            for m in (model, compiled)
        ]
        expected, got = (guide(x, 321).epsilon.numpy() for guide in guides)
        assert relative_error(got, expected) < 1e-5 and not compiled.failed


def test_a_video_is_the_same_but_for_rounding(pipe):
    compiled = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings).compile("fp32")
    dynamic = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings)
    seen, expected = [], []
    video = compiled(PROMPT, on_step=lambda p: seen.append(p.step.sample.numpy()), **SHORT)
    again = compiled(PROMPT, **SHORT)
    reference = dynamic(PROMPT, on_step=lambda p: expected.append(p.step.sample.numpy()), **SHORT)
    assert (video.frames == again.frames).all()
    assert relative_error(seen[-1], expected[-1]) < 1e-4
    assert np.abs(video.frames.astype(int) - reference.frames).max() <= 1
    assert not compiled.engine.failed and dynamic._own_engine is None


def test_a_compiled_model_leaves_the_others_their_threads(pipe):
    """Otherwise the second video has other roundings than the first."""
    compiled = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings).compile("fp32")
    first, second = ([], [])
    for seen in (first, second):
        compiled(PROMPT, on_step=lambda p, seen=seen: seen.append(p.step.sample.numpy()), **SHORT)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    x = paddle.randn([2, 4, 8, 8, 8])
    before = pipe.stdit.x_embedder(x).numpy()
    compiled.engine.decode(paddle.randn([1, 4, 2, 8, 8]))
    assert (pipe.stdit.x_embedder(x).numpy() == before).all()


@needs_bf16
def test_bf16_videos_are_close(pipe):
    compiled = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings).compile("bf16")
    frames = [p(PROMPT, seed=1, num_sampling_steps=10).frames.astype(float) for p in (compiled, pipe)]
    assert 10 * np.log10(255**2 / np.mean((frames[0] - frames[1]) ** 2)) > 35
    assert (frames[0] != frames[1]).any() and not compiled.engine.failed


def test_values_that_change_are_seen(pipe):
    model = OpenSora.from_pretrained("tiny")
    compiled = OpenSora(Resident(model.stdit, model.text, model.vae), model.settings).compile("fp32")
    before = compiled(PROMPT, **SHORT).frames
    for layer in (model.stdit.final_layer.linear, model.vae.model.decoder.conv_out):
        layer.weight.set_value(layer.weight * 0.5)
        after, expected = compiled(PROMPT, **SHORT).frames, model(PROMPT, **SHORT).frames
        assert np.abs(after.astype(int) - expected).max() <= 1 and np.abs(after.astype(int) - before).max() > 20
        before = after


def test_it_is_used_where_it_pays_and_by_what_is_asked_alone(pipe, monkeypatch):
    model = OpenSora(Resident(pipe.stdit, pipe.text, pipe.vae), pipe.settings)
    made = []
    denoise = Engine.denoise
    monkeypatch.setattr(Engine, "denoise", lambda self, *args: made.append(1) or denoise(self, *args))
    model(PROMPT, **SHORT)
    assert not made  # 4 steps of 4 frames are done before anything is compiled
    model(PROMPT, num_sampling_steps=32)
    assert len(made) == 32
    made.clear()
    model(PROMPT, num_sampling_steps=32, trace=Trace(latents=False, attention=["blocks.0.attn"], steps=[1]))
    assert not made  # a compiled block has no attention that could be seen
    hook = pipe.stdit.blocks[0].register_forward_pre_hook(lambda *_: made.append(0))
    model(PROMPT, num_sampling_steps=32)
    hook.remove()
    assert made == [0] * 32  # and calls no hooks
    model(PROMPT, **SHORT)
    assert made == [0] * 32


# ---------------------------------------------------------------------------------------------------------------------
#   Programs on the disk
# ---------------------------------------------------------------------------------------------------------------------


def double(layer):
    return lambda x: layer(x) * 2.0


@pytest.fixture
def layer():
    return paddle.nn.Linear(3, 200)


def programs(layer):
    return Programs(layer, double(layer), {"test": 1}, "fp32")


def test_a_program_is_recorded_once(layer, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = paddle.randn([2, 3])
    np.testing.assert_allclose(programs(layer)({"x": x}).numpy(), 2 * layer(x).numpy(), rtol=1e-5, atol=1e-6)
    (file,) = folder.iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # nothing of OpenVINO's where one happens to be
    assert file.suffix == ".program" and parameter_names(file.read_bytes()[32:]) == ["bias", "weight"]
    assert layer.weight.shape == [3, 200] and layer.parameters()[0] is layer.weight  # the symbols are gone
    monkeypatch.setattr(engine, "record", lambda *_: pytest.fail("it is on the disk"))
    other = paddle.nn.Linear(3, 200)  # other values
    np.testing.assert_allclose(programs(other)({"x": x}).numpy(), 2 * other(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:2000] + b"?" + b[2001:], bytes.upper])
def test_a_damaged_program_is_made_again(layer, folder, damage, monkeypatch):
    x = paddle.randn([2, 3])
    programs(layer)({"x": x})
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(programs(layer)({"x": x}).numpy(), 2 * layer(x).numpy(), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(engine, "record", lambda *_: pytest.fail("a whole one is on the disk"))
    assert programs(layer)({"x": x}) is not None


def test_a_place_that_cannot_be_written_is_no_failure(layer, folder):
    folder.write_text("a file, not a folder")
    x = paddle.randn([2, 3])
    np.testing.assert_allclose(programs(layer)({"x": x}).numpy(), 2 * layer(x).numpy(), rtol=1e-5, atol=1e-6)
    assert folder.read_text() == "a file, not a folder"


def test_the_cache_forgets_what_was_not_used_for_longest(folder, monkeypatch):
    monkeypatch.setattr(engine, "CACHE_BYTES", 2 * 132)
    paths = []
    for i in range(3):
        assert cached({"i": i}, lambda: b"x" * 100) == b"x" * 100
        (path,) = set(folder.iterdir()) - set(paths)
        os.utime(path, (i + 1, i + 1))
        paths.append(path)
        if i == 1:
            cached({"i": 0}, lambda: pytest.fail("it is on the disk"))  # used now: the other one is older
    assert [path.exists() for path in paths] == [True, False, True]


def test_what_cannot_be_compiled_runs_uncompiled_and_says_so_once(pipe, monkeypatch):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    expected = predictions(pipe, pipe.stdit)

    def broken(*_):
        raise RuntimeError("no such thing\nwith more lines")

    monkeypatch.setattr(engine, "record", broken)
    with pytest.warns(RuntimeWarning, match="the model runs uncompiled: no such thing$") as caught:
        assert relative_error(predictions(pipe, compiled), expected) < 1e-5
    assert len(caught) == 1 and compiled.failed
    z = paddle.randn([1, 4, 2, 8, 8])
    with pytest.warns(RuntimeWarning):
        np.testing.assert_allclose(compiled.decode(z).numpy(), pipe.vae.decode(z).numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
#   Precision, GPU
# ---------------------------------------------------------------------------------------------------------------------


def test_precisions(monkeypatch):
    monkeypatch.setattr(engine, "has_instructions", lambda flag: flag == "amx_bf16")
    assert choose_precision("auto") == "bf16" == choose_precision("bf16") and choose_precision("fp32") == "fp32"
    monkeypatch.setattr(engine, "has_instructions", lambda flag: False)
    assert choose_precision("auto") == "fp32"
    with pytest.raises(DeviceError, match='"bf16" needs a processor with avx512_bf16 or amx_bf16; use "fp32"'):
        choose_precision("bf16")
    with pytest.raises(DeviceError, match='precision "int8" is unknown; give one of auto, fp32, bf16'):
        choose_precision("int8")
    monkeypatch.setattr(engine.stdit_module, "on_cpu", lambda: False)
    assert choose_precision("auto") is None
    with pytest.raises(DeviceError, match='on a GPU give dtype="bf16" when loading'):
        choose_precision("bf16")


@pytest.mark.parametrize("masked", [False, True])
def test_the_way_of_a_gpu(pipe, masked, monkeypatch):
    """`to_static`, here on the CPU."""
    monkeypatch.setattr(engine, "choose_precision", lambda _: None)
    compiled = Engine(pipe.stdit, pipe.vae)
    assert repr(compiled) == "Engine(to_static)"
    got = predictions(pipe, compiled, masked=masked)
    assert relative_error(got, predictions(pipe, pipe.stdit, masked=masked)) < 1e-5 and not compiled.failed
    z = paddle.randn([1, 4, 2, 8, 8])
    np.testing.assert_allclose(compiled.decode(z).numpy(), pipe.vae.decode(z).numpy(), atol=1e-5)
    assert not compiled.failed
