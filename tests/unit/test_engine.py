"""The compiled models: equal results in any thread, with and without the cache folder, and a fallback if it fails."""

import os
import threading
import warnings
from dataclasses import replace

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite import OpenSora, Trace, layers, stdit3
from opensora_lite.errors import DeviceError
from opensora_lite.machine import has_instructions
from opensora_lite.runtime import engine
from opensora_lite.runtime.engine import Engine, Programs, Static, _denoise, available, choose_precision, store, stored
from opensora_lite.runtime.offload import Resident
from opensora_lite.samplers import CFG
from opensora_lite.stdit2 import Conditions
from opensora_lite.video_vae import load_video_vae

pytestmark = pytest.mark.skipif(not available(), reason="OpenVINO is not installed: pip install openvino")
needs_bf16 = pytest.mark.skipif(
    not (has_instructions("avx512_bf16") or has_instructions("amx_bf16")),
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


def conditions(y, y_mask, T, H, W):
    numbers = (paddle.full([1], float(n)) for n in (T, 8 * H, 8 * W, H / W, 24))
    return Conditions(y, y_mask, (T, H, W), *numbers)


def predictions(pipe, model, scale=4.0, masked=False, size=(5, 7, 11), caption=PROMPT):
    """Predictions for two videos, of a size that the patch does not divide; the first step is without guidance."""
    cfg = CFG(model, conditions(*pipe.text.encode([caption] * 2), *size).trimmed(), scale, None, (0, 800))
    rng = np.random.default_rng(0)
    x = paddle.to_tensor(rng.standard_normal((2, 4, *size), np.float32))
    x_mask = paddle.to_tensor(rng.random((2, size[0])) < 0.5) if masked else None
    steps = [cfg(x, t, x_mask) for t in (900, 500, 100)]
    return np.concatenate([np.stack([p.epsilon.numpy(), p.variance_logits.numpy()]) for p in steps])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_fp32_equals_the_model(pipe, masked, scale):
    compiled, args = Engine(pipe.stdit, pipe.vae, "fp32"), dict(scale=scale, masked=masked)
    assert relative_error(predictions(pipe, compiled, **args), predictions(pipe, pipe.stdit, **args)) < 3e-6
    assert not compiled.failed


def test_decoding_equals_the_model(pipe):
    compiled, z = Engine(pipe.stdit, pipe.vae, "fp32"), paddle.randn([1, 4, 3, 6, 10])
    assert relative_error(compiled.decode(z).numpy(), pipe.vae.decode(z).numpy()) < 3e-6 and not compiled.failed


@pytest.mark.parametrize("num_frames", [17, 20])
def test_decoding_with_the_video_vae_equals_the_model(golden, pipe, num_frames):
    vae = load_video_vae(golden / "12" / "vae")
    compiled, shape = Engine(pipe.stdit, vae, "fp32"), (2, 4, vae.latent_frames(num_frames), 3, 5)
    z = paddle.to_tensor(np.random.default_rng(0).standard_normal(shape, np.float32))
    expected = vae.decode(z, num_frames).numpy()
    assert relative_error(compiled.decode(z, num_frames).numpy(), expected) < 2e-5 and not compiled.failed
    assert {name: len(programs.loaded) for name, programs in compiled._decoders.items()} == {
        "temporal": 1 + (num_frames > 17),  # a chunk of 5 latent frames, and one of the rest
        "spatial": 2,  # micro-batches of 16, and the rest
    }


@pytest.mark.parametrize("on_cpu", [True, False])
def test_to_static_converts_the_decoders_of_the_video_vae(golden, monkeypatch, on_cpu):
    """As on a GPU, where convolutions in time are Paddle's own."""
    monkeypatch.setattr(layers, "on_cpu", lambda: on_cpu)
    layer, decode = load_video_vae(golden / "12" / "vae").decoders["temporal"]
    z = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 4, 5, 3, 5), np.float32))
    with paddle.no_grad():
        converted = Static(layer, decode)({"z": z}, {})
        assert relative_error(converted.numpy(), decode(layer, z).numpy()) < 1e-5


def test_the_state_without_guidance_and_step_caching_indicator(pipe):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    cond = conditions(*pipe.text.encode([PROMPT]), 2, 4, 4)
    x, t = paddle.randn([1, 4, 2, 4, 4]), paddle.full([1], 300.0)
    with paddle.no_grad():
        pairs = [m.modulated_input(x, t, m.precompute(cond)).numpy() for m in (compiled, pipe.stdit)]
    assert np.array_equal(*pairs)
    assert compiled.config is pipe.stdit.config and compiled.null_caption is pipe.stdit.null_caption


def test_captions_of_any_length_share_a_program(pipe):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    for caption in ("a boat", PROMPT, "a boat"):
        expected = predictions(pipe, pipe.stdit, 1.0, caption=caption)
        assert relative_error(predictions(pipe, compiled, 1.0, caption=caption), expected) < 3e-6
    assert len(compiled._denoise.loaded) == 1


def test_other_configurations(golden_stdit, pipe):
    """Other patches and sizes, and without the norm of queries and keys."""
    for name in ("qknorm", "plain"):
        model = golden_stdit(name)
        compiled, c, rng = Engine(model, pipe.vae, "fp32"), model.config, np.random.default_rng(1)
        x = paddle.to_tensor(rng.standard_normal((1, c.in_channels, 3, 8, 6), np.float32))
        y = paddle.to_tensor(rng.standard_normal((1, 1, 5, c.caption_channels), np.float32))
        cond = conditions(y, paddle.ones([1, 5], "int64"), 3, 8, 6)
        expected, got = (CFG(m, cond, 3.0)(x, 321).epsilon.numpy() for m in (model, compiled))
        assert relative_error(got, expected) < 1e-5 and not compiled.failed


@pytest.mark.parametrize("masked", [False, True], ids=["all_frames", "frame_mask"])
@pytest.mark.parametrize("name", ["qknorm", "plain"])
def test_the_transformer_of_1_2(golden_stdit3, pipe, name, masked):
    """STDiT3 compiled by OpenVINO, and by `to_static` (as on a GPU), with guidance, on a size that is padded."""
    model, rng = golden_stdit3(name), np.random.default_rng(2)
    x, y = (paddle.to_tensor(rng.standard_normal(n, np.float32)) for n in ((2, 4, 5, 5, 7), (2, 1, 12, 32)))
    x_mask = paddle.to_tensor([[False] + [True] * 4, [True] * 4 + [False]]) if masked else None
    cond = stdit3.Conditions.shared(y, paddle.to_tensor([[1] * 12, [1] * 7 + [0] * 5]), (5, 5, 7), 40, 56, 24)
    compiled = Engine(model, pipe.vae, "fp32")
    for t in (1000.0, 333.3):
        expected, got = (CFG(m, cond, 4.0)(x, t, x_mask).velocity.numpy() for m in (model, compiled))
        assert relative_error(got, expected) < 3e-6 and not compiled.failed
    with paddle.no_grad():
        state, t = model.precompute(cond), paddle.full([1], 333.3)
        model.params_at_zero(t, state)
        inputs = {"x": x, "t": t} | ({"x_mask": x_mask} if masked else {})
        static = Static(model, _denoise)(inputs, state.named(masked))
        assert relative_error(static, model.denoise(x, t, state, x_mask)) < 3e-6


def pipeline(model):
    return OpenSora(Resident(model.stdit, model.text, model.vae), model.settings)


def test_a_video_is_the_same_but_for_rounding(pipe):
    compiled, eager = pipeline(pipe).compile("fp32"), pipeline(pipe)
    seen, expected = [], []
    video = compiled(PROMPT, on_step=lambda p: seen.append(p.step.sample.numpy()), **SHORT)
    again = compiled(PROMPT, **SHORT)
    reference = eager(PROMPT, on_step=lambda p: expected.append(p.step.sample.numpy()), **SHORT)
    assert (video.frames == again.frames).all()
    assert relative_error(seen[-1], expected[-1]) < 1e-4
    assert np.abs(video.frames.astype(int) - reference.frames).max() <= 1
    assert not eager.models.transformer.engines


@needs_bf16
def test_bf16_videos_are_close(pipe):
    compiled = pipeline(pipe).compile("bf16")
    frames = [p(PROMPT, seed=1, num_sampling_steps=10).frames.astype(float) for p in (compiled, pipe)]
    assert 10 * np.log10(255**2 / np.mean((frames[0] - frames[1]) ** 2)) > 35
    assert (frames[0] != frames[1]).any()


def test_it_is_used_where_it_pays_off(pipe, monkeypatch):
    model = pipeline(pipe)
    made = []
    denoise = Engine.denoise
    monkeypatch.setattr(Engine, "denoise", lambda self, *args: made.append(1) or denoise(self, *args))
    model(PROMPT, **SHORT)
    assert not made  # 4 steps of 4 frames take less time than compiling
    model(PROMPT, num_sampling_steps=32)
    assert len(made) == 32
    made.clear()
    model(PROMPT, num_sampling_steps=32, trace=Trace(latents=False, attention=["blocks.0.attn"], steps=[1]))
    assert not made  # attention inside a compiled block can't be traced
    hook = pipe.stdit.blocks[0].register_forward_pre_hook(lambda *_: made.append(0))
    model(PROMPT, num_sampling_steps=32)
    hook.remove()
    assert made == [0] * 32  # hooks are called
    made.clear()
    hook = pipe.vae.model.decoder.register_forward_post_hook(lambda *_: made.append(0))
    model(PROMPT, num_sampling_steps=32)
    hook.remove()
    assert made == [0]  # those of the VAE too; they are not traced into the compiled decoder


# ---------------------------------------------------------------------------------------------------------------------
#   Threads
# ---------------------------------------------------------------------------------------------------------------------


def in_thread(function):
    """The result of `function`, called in a new thread; its exception is raised here."""
    result = []

    def run():
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def test_compiling_in_another_thread(pipe):
    """TaskLab always works in one."""
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        got = in_thread(lambda: predictions(pipe, compiled))
    assert not compiled.failed and len(compiled._denoise.loaded) == 2
    assert relative_error(got, predictions(pipe, pipe.stdit)) < 3e-6
    assert np.array_equal(predictions(pipe, compiled), got)


def test_compiling_while_another_thread_computes(pipe, monkeypatch):
    """Eager inference, training steps and new threads go on as if alone."""
    expected, errors, done = predictions(pipe, pipe.stdit, size=(2, 4, 4)), [], threading.Event()

    def infer():
        assert np.array_equal(predictions(pipe, pipe.stdit, size=(2, 4, 4)), expected)

    def train():
        layer = paddle.nn.Linear(4, 4)
        optimizer = paddle.optimizer.AdamW(parameters=layer.parameters())
        (layer(paddle.ones([2, 4])) ** 2).sum().backward()
        optimizer.step()

    def repeat(work):
        while not done.is_set() and not errors:
            try:
                work()
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=repeat, args=[w]) for w in (infer, train, lambda: in_thread(train))]
    for thread in threads:
        thread.start()
    try:
        monkeypatch.setattr(engine, "MAX_STORED", 0)  # compiled each time
        compiled = [Engine(pipe.stdit, pipe.vae, "fp32") for _ in range(2)]
        got = [predictions(pipe, model, masked=True, size=(3, 6, 4)) for model in compiled]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors and not any(model.failed for model in compiled)
    assert np.array_equal(*got)
    assert relative_error(got[0], predictions(pipe, pipe.stdit, masked=True, size=(3, 6, 4))) < 3e-6


def test_two_threads_share_an_engine(pipe):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    captions = ["a boat", PROMPT] * 2
    expected = [predictions(pipe, compiled, caption=caption) for caption in captions]
    got = [None] * len(captions)

    def run(i):
        got[i] = predictions(pipe, compiled, caption=captions[i])

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(captions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
#   Parameters that change
# ---------------------------------------------------------------------------------------------------------------------


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_changed_parameters_are_seen_and_memory_stays_flat():
    model = OpenSora.from_pretrained("tiny")
    compiled, sizes = Engine(model.stdit, model.vae, "fp32"), []
    weights = model.stdit.final_layer.linear.weight, model.vae.model.decoder.conv_out.weight
    optimizer = paddle.optimizer.SGD(learning_rate=0.01, parameters=[weights[0]])
    z = paddle.randn([1, 4, 2, 4, 4])
    before = predictions(model, compiled, size=(2, 4, 4)), compiled.decode(z).numpy()
    for i in range(20):
        if i % 2:
            weights[0].set_value(weights[0] * 0.9)
            weights[1].set_value(weights[1] * 0.9)
        else:  # an optimizer changes them in place
            (weights[0] ** 2).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
        got = predictions(model, compiled, size=(2, 4, 4)), compiled.decode(z).numpy()
        expected = predictions(model, model.stdit, size=(2, 4, 4)), model.vae.decode(z).numpy()
        assert all(relative_error(a, b) < 3e-6 for a, b in zip(got, expected, strict=True))
        assert not np.array_equal(got[0], before[0])
        before = got
        sizes.append(resident())
    assert not compiled.failed
    if os.path.exists("/proc/self/statm"):
        assert max(sizes) - sizes[2] < 50, sizes


# ---------------------------------------------------------------------------------------------------------------------
#   The cache folder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    return paddle.nn.Linear(3, 200)


def double(layer, x):
    return layer(x) * 2.0


def check(layer):
    """A new `Programs` gives the right result."""
    programs, x = Programs(layer, double, {"test": 1}, "fp32"), paddle.randn([2, 3])
    programs.refresh()
    np.testing.assert_allclose(programs({"x": x}, {}).numpy(), 2 * layer(x).numpy(), rtol=1e-5, atol=1e-6)
    assert not programs.failed


def refuse(*_):
    pytest.fail("it is in the folder")


def test_a_second_engine_does_not_compile(layer, folder, monkeypatch):
    check(layer)
    (file,) = folder.iterdir()
    assert file.suffix == ".blob"
    check(paddle.nn.Linear(3, 200))  # other parameters
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(engine, "traced", refuse)
    check(layer)


def test_compiled_and_loaded_give_equal_bits(pipe, monkeypatch):
    compiled = predictions(pipe, Engine(pipe.stdit, pipe.vae, "fp32"), masked=True)
    monkeypatch.setattr(engine, "traced", refuse)
    assert np.array_equal(predictions(pipe, Engine(pipe.stdit, pipe.vae, "fp32"), masked=True), compiled)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:500] + b"?" + b[501:], bytes.upper])
def test_a_damaged_file_is_made_again(layer, folder, damage, monkeypatch):
    check(layer)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(layer)
    monkeypatch.setattr(engine, "traced", refuse)
    check(layer)


def test_a_file_that_openvino_refuses_is_made_again(layer, monkeypatch):
    monkeypatch.setattr(engine, "stored", lambda key: b"of another version")
    check(layer)


def test_a_folder_that_cannot_be_written(layer, folder):
    folder.write_text("a file, not a folder")
    check(layer)
    assert folder.read_text() == "a file, not a folder"


def test_the_oldest_files_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(engine, "CACHE_BYTES", 2 * 132)
    paths = []
    for i in range(3):
        store({"i": i}, b"x" * 100)
        (path,) = set(folder.iterdir()) - set(paths)
        os.utime(path, (i + 1, i + 1))
        paths.append(path)
        if i == 1:
            assert stored({"i": 0}) == b"x" * 100  # used now: the other one is older
    assert [path.exists() for path in paths] == [True, False, True]


def test_large_models_are_not_stored(layer, folder, monkeypatch):
    monkeypatch.setattr(engine, "MAX_STORED", 100)
    check(layer)
    assert not folder.exists()


# ---------------------------------------------------------------------------------------------------------------------
#   Fallback, precision, GPU
# ---------------------------------------------------------------------------------------------------------------------


def test_if_compiling_fails_the_model_runs_uncompiled_with_one_warning(pipe, monkeypatch):
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    expected = predictions(pipe, pipe.stdit)

    def broken(*_):
        raise RuntimeError("no such thing\nwith more lines")

    monkeypatch.setattr(engine, "traced", broken)
    with pytest.warns(RuntimeWarning, match="uncompiled: no such thing$") as caught:
        assert relative_error(predictions(pipe, compiled), expected) < 1e-5
    assert len(caught) == 1 and compiled.failed
    z = paddle.randn([1, 4, 2, 8, 8])
    with pytest.warns(RuntimeWarning):
        np.testing.assert_allclose(compiled.decode(z).numpy(), pipe.vae.decode(z).numpy(), atol=1e-5)


def test_precisions(pipe, monkeypatch):
    monkeypatch.setattr(engine, "has_instructions", lambda flag: flag == "amx_bf16")
    assert choose_precision("auto") == "bf16" == choose_precision("bf16") and choose_precision("fp32") == "fp32"
    monkeypatch.setattr(engine, "has_instructions", lambda flag: False)
    assert choose_precision("auto") == "fp32"
    compiled = Engine(pipe.stdit, pipe.vae)
    assert (compiled.requested, compiled.precision) == ("auto", "fp32")
    with pytest.raises(DeviceError, match="bf16"):
        choose_precision("bf16")
    with pytest.raises(DeviceError, match="int8"):
        choose_precision("int8")
    monkeypatch.setattr(engine.layers, "on_cpu", lambda: False)
    assert choose_precision("auto") is None and not available()
    with pytest.raises(DeviceError, match="dtype"):
        choose_precision("bf16")


@pytest.mark.parametrize("masked", [False, True])
def test_to_static_as_on_a_gpu(pipe, masked, monkeypatch):
    monkeypatch.setattr(engine, "choose_precision", lambda _: None)
    compiled = Engine(pipe.stdit, pipe.vae)
    assert repr(compiled) == "Engine(to_static)"
    got = predictions(pipe, compiled, masked=masked)
    assert relative_error(got, predictions(pipe, pipe.stdit, masked=masked)) < 1e-5 and not compiled.failed
    z = paddle.randn([1, 4, 2, 8, 8])
    np.testing.assert_allclose(compiled.decode(z).numpy(), pipe.vae.decode(z).numpy(), atol=1e-5)
    assert not compiled.failed


def test_states_are_not_shared_between_engines(pipe):
    """The two halves of guidance hold tensors of their own."""
    compiled = Engine(pipe.stdit, pipe.vae, "fp32")
    cond = conditions(*pipe.text.encode([PROMPT] * 2), 2, 4, 4)
    with paddle.no_grad():
        state = compiled.precompute(replace(cond))
    half = state.first(1)
    assert half.named(False)["k0"].shape[0] == 1 and state.named(False)["k0"].shape[0] == 2
    assert state.named(False) is state.named(False)
