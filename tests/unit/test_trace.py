"""A trace records what the sampler and the model really did, and changes nothing."""

import itertools

import numpy as np
import pytest

from opensora_lite import OpenSoraError, Trace
from opensora_lite.trace import ablated_heads

PROMPT = "a red car driving right on the ocean at sunset"
SHORT = dict(num_frames=4, image_size=(64, 64), num_sampling_steps=3, guidance_scale=4.0, cfg_channel=None, seed=3)
WATCHED = ["blocks.1.attn", "blocks.1.attn_temp", "blocks.1.cross_attn"]


@pytest.fixture(scope="module")
def plain(first_pipe):
    return first_pipe(PROMPT, **SHORT)


@pytest.fixture(scope="module")
def trace(first_pipe, plain):
    trace = Trace(attention=WATCHED)
    assert np.array_equal(first_pipe(PROMPT, trace=trace, **SHORT).frames, plain.frames)
    return trace


def test_the_last_latents_are_the_video(first_pipe, plain, trace):
    assert np.array_equal(first_pipe.decode(trace[-1].sample), plain.frames)


def test_steps_follow_each_other(trace):
    assert [step.number for step in trace] == [1, 2, 3] and repr(trace) == "Trace(3 steps of 1 loop)"
    assert trace[0].timestep == 999 and trace[-1].timestep == 0
    for before, after in itertools.pairwise(trace):
        assert np.array_equal(before.sample, after.x_t)


def test_epsilon_is_guided_and_implies_x_0(trace):
    from opensora_lite.schedule import Schedule

    schedule = Schedule(3)
    for step in trace:
        guided = step.eps_uncond + 4 * (step.eps_cond - step.eps_uncond)
        np.testing.assert_allclose(step.epsilon, guided, atol=1e-4)
        abar = schedule.alphas_cumprod[3 - step.number]
        x_0 = (step.x_t - np.sqrt(1 - abar) * step.epsilon) / np.sqrt(abar)
        np.testing.assert_allclose(step.x_0, x_0, rtol=1e-3, atol=1e-3 / np.sqrt(abar))


def test_attention_has_the_shapes_that_are_promised_and_sums_to_1(trace):
    (loop,) = trace.loops
    heads, T, h, w, L = 6, 4, 4, 4, len(loop.tokens)
    shapes = [(heads, T, h * w, h * w), (heads, h * w, T, T), (heads, T, h, w, L)]
    for name, shape in zip(WATCHED, shapes, strict=True):
        for step in trace:
            assert step.attention[name].shape == shape and step.attention[name].dtype == np.float32
            np.testing.assert_allclose(step.attention[name].sum(-1), 1, atol=1e-5)
    assert loop.caption == PROMPT and "".join(loop.tokens[:-1]).replace("▁", " ").strip() == PROMPT


@pytest.mark.parametrize("temporal", [False, True])
def test_weights_times_values_is_what_the_layer_computes(golden_stdit, temporal):
    import paddle

    from opensora_lite.layers import attention_weights

    model = golden_stdit("qknorm")
    layer = model.blocks[0].attn_temp if temporal else model.blocks[0].attn
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 5, layer.proj.weight.shape[0]), np.float32))
    rotary = model.rope(5) if temporal else None
    q, k, v = layer.heads(x, rotary)
    out = paddle.einsum("bhnm,bmhd->bnhd", attention_weights(q, k), v).reshape(x.shape)
    np.testing.assert_allclose(layer.proj(out).numpy(), layer(x, rotary).numpy(), atol=1e-5)


def test_attention_is_that_of_the_conditional_half(first_pipe, trace):
    unguided = Trace(attention=WATCHED, steps=[1])
    first_pipe(PROMPT, trace=unguided, **{**SHORT, "guidance_scale": 1})
    assert unguided[0].eps_uncond is None
    for name in WATCHED:  # the first step begins with the same noise
        np.testing.assert_allclose(unguided[0].attention[name], trace[0].attention[name], atol=1e-5)


def test_loops_masks_and_chosen_steps(first_pipe):
    trace = Trace(latents=False, attention="blocks.0.attn", steps=[2])
    still = np.full((1, 64, 64, 3), 128, np.uint8)
    given = dict(references=[still], mask_strategy="0", loops=2, condition_frames=2)
    first_pipe("a boat", trace=trace, **given, **SHORT)
    assert [(step.loop, step.number) for step in trace] == [(0, 2), (1, 2)]
    assert [loop.edit_ratios.tolist() for loop in trace.loops] == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert trace[1].active.tolist() == [False, False, True, True]
    assert trace[0].x_t is None and trace[0].attention.keys() == {"blocks.0.attn"}
    first_pipe("a boat", trace=trace, **SHORT)
    assert repr(trace) == "Trace(1 step of 1 loop)"  # a new video begins anew


def test_steps_that_the_step_cache_skips_hold_the_attention_of_the_step_they_reuse(first_pipe):
    trace = Trace(attention=WATCHED)
    first_pipe(PROMPT, trace=trace, **{**SHORT, "num_sampling_steps": 8, "cache_threshold": 4.0})
    reused = [step.reused for step in trace]
    assert any(reused) and not reused[0]
    for before, step in itertools.pairwise(trace):
        same = all(np.array_equal(before.attention[name], step.attention[name]) for name in WATCHED)
        assert same == step.reused and np.array_equal(before.eps_cond, step.eps_cond) == step.reused
    chosen = Trace(attention=WATCHED, steps=[reused.index(True) + 1])
    first_pipe(PROMPT, trace=chosen, **{**SHORT, "num_sampling_steps": 8, "cache_threshold": 4.0})
    assert chosen[0].reused and chosen[0].attention.keys() == set(WATCHED)


def test_requests_that_a_trace_cannot_follow_are_refused_before_anything_runs(first_pipe):
    with pytest.raises(OpenSoraError, match=r"no attention blocks\.9\.attn; it has blocks\.0\.attn, "):
        first_pipe(PROMPT, trace=Trace(attention=["blocks.9.attn"]), **SHORT)
    with pytest.raises(OpenSoraError, match="follows one video, and 2 were asked for"):
        first_pipe(PROMPT, trace=Trace(), num_sample=2, **SHORT)


def test_nothing_stays_behind_when_a_run_fails(first_pipe):
    def stop(progress):
        raise KeyboardInterrupt

    trace = Trace(attention=WATCHED)
    with pytest.raises(KeyboardInterrupt):
        first_pipe(PROMPT, trace=trace, on_step=stop, **SHORT)
    assert len(trace) == 1
    first_pipe(PROMPT, **SHORT)
    assert len(trace) == 1


def test_ablated_heads_contribute_nothing_and_come_back(first_pipe, plain):
    import paddle

    layer = first_pipe.stdit.blocks[0].attn
    x = paddle.randn([2, 16, layer.proj.weight.shape[0]])
    whole = layer(x).numpy()
    with ablated_heads(first_pipe.stdit, "blocks.0.attn", range(6)):
        np.testing.assert_allclose(layer(x).numpy(), layer.proj.bias.expand(x.shape).numpy(), atol=1e-6)
        assert not np.array_equal(first_pipe(PROMPT, **SHORT).frames, plain.frames)
    assert np.array_equal(layer(x).numpy(), whole)
    with ablated_heads(first_pipe.stdit, "blocks.0.attn", [4]):
        some = layer(x).numpy()
    assert abs(some - whole).max() > 0
    with (
        pytest.raises(OpenSoraError, match="has 6 heads, 0 to 5, and no 6"),
        ablated_heads(first_pipe.stdit, "blocks.0.attn", [6]),
    ):
        pass
