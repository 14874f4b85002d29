"""Schedules and samplers: whole loops of the original, and what must hold for all three samplers."""

import json
from dataclasses import dataclass

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite.errors import OpenSoraError
from opensora_lite.runtime.step_cache import StepCache
from opensora_lite.samplers import CFG, DDIM, IDDPM, SAMPLERS, DPMSolver, NoiseSource, Prediction
from opensora_lite.schedule import Schedule, space_timesteps
from opensora_lite.stdit2 import Conditions

CASES = ["text", "allchannels", "image_cond", "connect", "edit"]


def replay(recording):
    """A source of noise that gives what was recorded, in its order."""
    draws = iter(recording)
    return lambda rows=None: paddle.to_tensor(next(draws))


def conditions(y, y_mask, T=1, H=2, W=2):
    numbers = (paddle.full([1], float(n)) for n in (T, 8 * H, 8 * W, H / W, 24))
    return Conditions(paddle.to_tensor(y), paddle.to_tensor(y_mask), (T, H, W), *numbers)


def guidance(model, case, scale, channels):
    return CFG(model, conditions(case["y"], case["mask"], *case["z"].shape[2:]), scale, channels)


@pytest.mark.parametrize("name", CASES)
def test_whole_loops_reproduce_the_original(golden, golden_stdit, recorded, name):
    case, settings = recorded("iddpm_cases")[name], json.loads((golden / "iddpm_cases.json").read_text())[name]
    sampler = IDDPM(settings["steps"])
    assert sampler.timesteps.tolist() == case["timesteps"][::-1].tolist()
    np.testing.assert_allclose(sampler.schedule.betas, case["betas"], rtol=1e-7)
    predict = guidance(golden_stdit("qknorm"), case, settings["cfg_scale"], settings["cfg_channel"])
    draw = replay(case["noise"])
    steps = list(sampler.sample(predict, paddle.to_tensor(case["z"]), case.get("frame_mask"), draw))
    errors = [relative_error(step.sample.numpy(), x) for step, x in zip(steps, case["steps"], strict=True)]
    print(f"\nIDDPM loop {name}: largest relative error of {len(steps)} steps {max(errors):.1e}")
    assert max(errors) < 1e-4
    assert relative_error(steps[-1].sample.numpy(), case["out"]) < 1e-4


def test_spacings_keep_the_times_of_the_original(golden):
    for spacing, times in json.loads((golden / "timesteps.json").read_text()).items():
        assert space_timesteps(spacing) == times


@pytest.mark.parametrize(
    "spacing, message",
    [
        ("many", 'steps "many" cannot be read; give a number such as 30, "10,15,20" or "ddim25"'),
        (0, "0 steps cannot be taken"),
        (1001, "1001 steps cannot be taken"),
        ("ddim999", "no whole-number stride"),
    ],
)
def test_spacings_that_cannot_be_are_refused(spacing, message):
    with pytest.raises(OpenSoraError, match=message):
        space_timesteps(spacing)


def test_respacing_keeps_the_share_of_noise():
    full, short = Schedule(1000), Schedule(20)
    np.testing.assert_allclose(short.alphas_cumprod, full.alphas_cumprod[short.timesteps], rtol=1e-4)


# ------------------------------------------------------------------------------------ what must hold for every sampler

SHAPE = (1, 4, 5, 4, 4)


def perfect(x_0, steps):
    """A model that knows x_0: its ε is exactly the noise in x_t."""
    schedule = Schedule(steps)
    indices = {int(t): i for i, t in enumerate(schedule.timesteps)}

    def predict(x_t, timestep, x_mask=None):
        abar = float(schedule.alphas_cumprod[indices[timestep]])
        epsilon = (x_t - abar**0.5 * x_0) / (1 - abar) ** 0.5
        return Prediction(epsilon, paddle.zeros_like(x_t), epsilon, None)

    return predict


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_a_perfect_model_is_led_to_its_x_0(name, steps):
    x_0, z = paddle.randn(SHAPE), paddle.randn(SHAPE)
    sampler = SAMPLERS[name](steps)
    *_, last = sampler.sample(perfect(x_0, steps), z, None, NoiseSource([0], SHAPE[1:]))
    assert last.number == steps and last.index == 0
    np.testing.assert_allclose(last.sample.numpy(), x_0.numpy(), atol=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_frames_wait_join_and_move_as_their_ratio_says(name):
    """A frame of ratio r is left alone until step int(r · n), and is live for the model from the next one on."""
    steps, ratios = 10, np.array([[0.0, 0.3, 0.75, 1.0, 1.0]], np.float32)
    seen = []

    def predict(x_t, timestep, x_mask):
        seen.append(x_mask.numpy()[0])
        return Prediction(0.5 * x_t, paddle.zeros_like(x_t), 0.5 * x_t, None)

    z = paddle.randn(SHAPE)
    before = z.numpy()
    for step in SAMPLERS[name](steps).sample(predict, z, ratios, NoiseSource([0], SHAPE[1:])):
        after, taken = step.sample.numpy(), step.x_t.numpy()
        for frame, joins in enumerate([0, 3, 7, 10, 10]):
            changed = not np.array_equal(after[:, :, frame], before[:, :, frame])
            noised = not np.array_equal(taken[:, :, frame], before[:, :, frame])
            assert changed == (step.index <= joins)
            assert noised == (step.index == joins)
            assert seen[-1][frame] == (joins > step.index)
        before = after
    assert len(seen) == steps


def test_kept_frames_come_out_as_they_went_in():
    """All three samplers noise and denoise a given frame once, at the lowest noise level."""
    x_0 = paddle.randn(SHAPE)
    for name, sampler in SAMPLERS.items():
        *_, last = sampler(8).sample(perfect(x_0, 8), x_0, np.zeros((1, 5), np.float32), NoiseSource([0], SHAPE[1:]))
        np.testing.assert_allclose(last.sample.numpy(), x_0.numpy(), atol=2e-3, err_msg=name)


def test_noise_that_cannot_be_drawn():
    z, mask = paddle.randn(SHAPE), np.zeros((1, 5), np.float32)
    for sampler, frame_mask in ((IDDPM, None), (IDDPM, mask), (DDIM, mask), (DPMSolver, mask)):
        with pytest.raises(OpenSoraError, match="NoiseSource"):
            list(sampler(4).sample(perfect(z, 4), z, frame_mask))
    for sampler in (DDIM, DPMSolver):  # which draw none
        assert len(list(sampler(4).sample(perfect(z, 4), z))) == 4


def smooth(x_t, timestep, x_mask=None):
    """A model of the ideal kind for data that is normal with variance 0.25: ε = √(1 − ᾱ) x_t / (1 − 0.75 ᾱ)."""
    abar = float(Schedule(1000).alphas_cumprod[timestep])
    epsilon = (1 - abar) ** 0.5 / (1 - 0.75 * abar) * x_t
    return Prediction(epsilon, paddle.zeros_like(x_t), epsilon, None)


def run(sampler, z, frame_mask=None, predict=smooth):
    *_, last = sampler.sample(predict, z, frame_mask, NoiseSource([0] * z.shape[0], z.shape[1:]))
    return last.sample.numpy()


def test_more_steps_come_closer_and_the_second_order_is_faster():
    z = paddle.randn(SHAPE)
    exact = run(DDIM(1000), z)
    errors = {
        name: [relative_error(run(SAMPLERS[name](n), z), exact) for n in (10, 20, 40)]
        for name in ("ddim", "dpm-solver")
    }
    for found in errors.values():
        assert found[0] > found[1] > found[2]
    assert errors["dpm-solver"][1] < 0.4 * errors["ddim"][1]


def test_a_frame_that_joins_takes_a_first_order_step():
    """DPM-Solver++ has no x_0 of the step before for it, and is DDIM in that step."""
    z, ratios = paddle.randn(SHAPE), np.full((1, 5), 0.7, np.float32)

    def by_index(sampler):  # frames join at index 7 of 10; what they are after that step
        steps = sampler.sample(smooth, z, ratios, NoiseSource([0], SHAPE[1:]))
        return {step.index: step.sample.numpy() for step in steps}

    ddim, solver = by_index(DDIM(10)), by_index(DPMSolver(10))
    np.testing.assert_allclose(solver[7], ddim[7], atol=1e-5)
    assert relative_error(solver[6], ddim[6]) > 1e-4


def test_ddim_with_eta_draws_noise_and_without_does_not():
    z = paddle.randn(SHAPE)
    assert np.array_equal(run(DDIM(5), z), run(DDIM(5), z))
    assert relative_error(run(DDIM(5, eta=1.0), z), run(DDIM(5), z)) > 0.1
    with pytest.raises(OpenSoraError, match="eta"):
        DDIM(5, eta=2.0)


# ----------------------------------------------------------------------------------------------------- noise, guidance


def test_noise_does_not_depend_on_its_neighbours():
    shape = (4, 2, 3, 3)
    alone, pair = NoiseSource([7], shape), NoiseSource([3, 7], shape)
    for rows in (None, [True, False], None):  # a neighbour's frame mask draws more, and changes nothing
        together = pair(rows).numpy()
        if rows is None:
            np.testing.assert_array_equal(alone().numpy()[0], together[1])
    assert together.dtype == np.float32


def test_an_unmasked_video_is_the_same_beside_a_masked_one():
    z = paddle.randn([2, *SHAPE[1:]])

    def predict(x_t, timestep, x_mask=None):
        return Prediction(0.3 * x_t, paddle.zeros_like(x_t), 0.3 * x_t, None)

    def last(z, mask, seeds):
        *_, step = IDDPM(6).sample(predict, z, mask, NoiseSource(seeds, SHAPE[1:]))
        return step.sample.numpy()

    mask = np.ones((2, 5), np.float32)
    mask[0, 0] = 0
    np.testing.assert_allclose(last(z, mask, [1, 2])[1], last(z[1:], None, [2])[0], atol=1e-6)


@dataclass
class EchoState:
    y: paddle.Tensor

    def first(self, B):
        return EchoState(self.y[:B])


class Echo:
    """A denoiser that returns the mean of the caption in every channel."""

    config, null_caption = None, paddle.full([12, 3], -1.0)

    def __init__(self):
        self.calls = []

    def precompute(self, cond):
        return EchoState(cond.y)

    def modulated_input(self, x, t, state):
        return x + 1.0

    def denoise(self, x, t, state, x_mask=None):
        self.calls.append((x.shape[0], state.y.shape[2], None if x_mask is None else x_mask.shape[0]))
        value = state.y.mean([1, 2, 3])[:, None, None, None, None]
        return paddle.concat([value * paddle.ones_like(x)] * 2, 1)


@pytest.fixture
def two_captions():
    return conditions(paddle.full([2, 1, 12, 3], 2.0), paddle.ones([2, 12], "int64"))


X = paddle.zeros([2, 4, 1, 2, 2])
DENOISED = paddle.ones([2, 1], "bool")


def test_guidance_extrapolates_from_the_null_caption(two_captions):
    model = Echo()
    all_channels = CFG(model, two_captions, 3.0)(X, 10)
    assert model.calls == [(4, 12, None)]  # both halves in one batch
    assert np.allclose(all_channels.epsilon.numpy(), -1 + 3 * (2 + 1))
    three = CFG(model, two_captions, 3.0, 3)(X, 10, DENOISED)
    assert np.allclose(three.epsilon.numpy()[:, :3], 8) and np.allclose(three.epsilon.numpy()[:, 3], 2)
    assert np.allclose(three.variance_logits.numpy(), 2)  # as released: of the conditional half
    assert model.calls[-1] == (4, 12, 4)


def test_guidance_outside_its_interval_halves_the_work(two_captions):
    model = Echo()
    predict = CFG(model, two_captions, 3.0, None, (200, 800))
    predictions = [predict(X, t, DENOISED) for t in (801, 800, 200, 199)]
    assert [call[::2] for call in model.calls] == [(2, 2), (4, 4), (4, 4), (2, 2)]
    assert [p.uncond is None for p in predictions] == [True, False, False, True]
    assert [float(p.epsilon.mean()) for p in predictions] == [2, 8, 8, 2]
    assert CFG(model, two_captions, 3.0)(X, 999).uncond is not None


def test_a_scale_of_1_halves_the_work(two_captions):
    model = Echo()
    prediction = CFG(model, two_captions, 1.0, 3)(X, 0)
    assert model.calls == [(2, 12, None)] and prediction.uncond is None
    assert np.allclose(prediction.epsilon.numpy(), 2)


def test_padding_shared_by_all_captions_is_cut_in_sixteens():
    mask = paddle.to_tensor([[1] * 4 + [0] * 36, [1] * 17 + [0] * 23])
    trimmed = conditions(paddle.ones([2, 1, 40, 3]), mask).trimmed()
    assert trimmed.y.shape == [2, 1, 32, 3] and trimmed.y_mask.shape == [2, 32]


def test_the_step_cache_reuses_an_output_until_the_input_has_changed(two_captions):
    other = paddle.to_tensor([[True], [False]])
    cache = StepCache(Echo(), 0.1)
    predict = CFG(cache, two_captions, 3.0, None, (0, 800))
    calls = []
    for change, t, x_mask in [
        (0.0, 700, None),  # the first step is computed
        (0.04, 600, None),
        (0.08, 500, None),
        (0.12, 400, None),  # changes add up to 0.12, though each is smaller
        (0.12, 300, DENOISED),
        (0.12, 300, DENOISED),
        (0.12, 300, other),  # a frame joins
        (0.12, 900, other),  # without guidance
        (0.12, 900, other),
    ]:
        prediction = predict(X + change, t, x_mask)
        assert np.allclose(prediction.epsilon.numpy(), 8 if t <= 800 else 2)
        calls.append(cache.num_model_calls)
    assert calls == [1, 1, 1, 2, 3, 3, 4, 5, 5]
