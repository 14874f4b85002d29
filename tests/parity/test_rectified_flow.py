"""Rectified flow: times, whole loops and losses of the original, and what must hold for both of its samplers."""

import doctest
import json

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite import schedule
from opensora_lite.errors import OpenSoraError
from opensora_lite.samplers import CFG, FLOW_SAMPLERS, Heun, NoiseSource, Prediction, RectifiedFlow
from opensora_lite.schedule import logit_normal, shift_timesteps, timestep_shift
from opensora_lite.stdit3 import Conditions
from opensora_lite.training.losses import flow_losses

# --------------------------------------------------------------------------------------------------------------- times


def test_examples_in_docstrings():
    assert doctest.testmod(schedule).failed == 0


def test_shifted_timesteps_are_those_of_the_original(recorded):
    """Two faults of the original are mended: 2 to 16 frames had t = 0 or NaN, and t = 1000 could become 1000.0001."""
    table = recorded("12/rflow_training_losses")["transform"]
    t = shift_timesteps(
        table["t"], timestep_shift(*(table[n] for n in ("height", "width", "num_frames"))) * table["scale"]
    )
    short, above = (table["num_frames"] > 1) & (table["num_frames"] < 17), table["new_t"] > 1000
    assert short.any() and above.any()
    np.testing.assert_array_equal(t[~short & ~above], table["new_t"][~short & ~above])
    assert (t[above] == 1000).all()
    assert np.isin(table["new_t"][short], [0]).sum() + np.isnan(table["new_t"][short]).sum() == short.sum()
    assert ((t[short] > 0) == (table["t"][short] > 0)).all() and (t[short] <= 1000).all()


def test_shift_grows_with_size_and_length():
    shifts = timestep_shift(64, 64, np.arange(1, 120), base_size=64)
    assert (np.diff(shifts) >= 0).all()
    assert shifts[[0, 15, 16, 33, 50]].tolist() == np.sqrt(np.float32([1, 4, 5, 10, 15])).tolist()
    assert timestep_shift(128, 128, 1, base_size=64) == 2 * timestep_shift(64, 64, 1, base_size=64) == 2


def test_each_video_of_a_batch_has_its_own_shift(recorded):
    """In the original, the first video says for all whether they are images: the two batches mix them."""
    for name in ("mixed_0", "mixed_1"):
        case = recorded("12/rflow_training_losses")[name]
        shifts = timestep_shift(case["height"], case["width"], case["num_frames"])
        t = shift_timesteps(case["t"], shifts)
        alone = [shift_timesteps(case["t"][i : i + 1], shifts[i]).item() for i in range(len(t))]
        np.testing.assert_array_equal(t, alone)
        same = case["num_frames"] == 1 if case["num_frames"][0] == 1 else case["num_frames"] > 1
        np.testing.assert_array_equal(t[same], case["new_t"][same])


@pytest.mark.parametrize("how", ["logit_normal", "uniform", "discrete"])
def test_drawn_timesteps_are_those_of_the_original(recorded, how):
    cases = recorded("12/rflow_training_losses")
    video = [cases["drawn"][name] for name in ("height", "width", "num_frames")]
    drawn = {name: case for name, case in cases.items() if name.startswith(f"drawn_{how}")}
    assert drawn
    for name, case in drawn.items():
        raw = case["raw"].astype(np.float32)
        t = {"logit_normal": logit_normal, "uniform": lambda u: 1000 * u, "discrete": lambda t: t}[how](raw)
        if "transform" in name:
            t = shift_timesteps(t, timestep_shift(*video) * case.get("loc_scale_transform_scale", np.ones(3))[2])
        np.testing.assert_allclose(t, case["t"], rtol=3e-7, err_msg=name)


# --------------------------------------------------------------------------------------------------------------- loops


@pytest.fixture(scope="module")
def settings(golden):
    return json.loads((golden / "12" / "rflow_cases.json").read_text())


def sampler(settings, case):
    """The sampler of a recorded loop."""
    video = [case[name][0] for name in ("height", "width", "num_frames")]
    shift = float(timestep_shift(*video)) if settings["use_timestep_transform"] else 1.0
    return RectifiedFlow(settings["steps"], shift, whole=settings["use_discrete_timesteps"])


class Replay:
    """CFG and noise of a recorded loop; notes the x_masks."""

    def __init__(self, model, case, scale):
        numbers = (paddle.to_tensor(case[name]) for name in ("height", "width", "fps"))
        conditions = Conditions(*(paddle.to_tensor(case[n]) for n in ("y", "mask")), case["z"].shape[2:], *numbers)
        both = {n: paddle.concat([getattr(conditions, n)] * 2) for n in ("height", "width", "fps")}
        conditions = Conditions(conditions.y, conditions.y_mask, conditions.latent_size, **both)
        self.cfg, self.case, self.x_masks = CFG(model, conditions, scale), case, []

    def predict(self, x, t, x_mask):
        self.x_masks.append(None if x_mask is None else x_mask.numpy())
        return self.cfg(x, t, x_mask)

    def noise(self, rows):
        return paddle.to_tensor(self.case["noise"][len(self.x_masks)])  # the original draws in every step


CASES = "text text51 image batch straight discrete discrete_transform allones image_cond connect edit edit_straight"


@pytest.mark.parametrize("name", CASES.split())
def test_whole_loops_reproduce_the_original(golden_stdit3, recorded, settings, name):
    case, flow = recorded("12/rflow_cases")[name], sampler(settings[name], recorded("12/rflow_cases")[name])
    np.testing.assert_array_equal(flow.timesteps, case["timesteps"][:, 0])
    replay, z = Replay(golden_stdit3("qknorm"), case, settings[name]["cfg_scale"]), paddle.to_tensor(case["z"])
    steps = list(flow.sample(replay.predict, z, case.get("frame_mask"), replay.noise))
    if "frame_mask" in case:
        np.testing.assert_array_equal(replay.x_masks, case["x_masks"] == 1)
        for i in np.argwhere(case["frame_mask"] == 0):  # kept frames come out untouched
            np.testing.assert_array_equal(steps[-1].sample[i[0], :, i[1]], case["z"][i[0], :, i[1]])
    errors = [relative_error(step.sample, x) for step, x in zip(steps, case["steps"], strict=True)]
    print(f"\nrectified flow {name}: largest relative error of {len(steps)} steps {max(errors):.1e}")
    assert max(errors) < 1e-4
    assert relative_error(steps[-1].sample, case["out"]) < 1e-4


def test_the_first_step_of_small_images_is_taken(golden_stdit3, recorded, settings):
    """A fault of the original that is mended: its first t is 1000.0001, where no frame is denoised, so that its first
    step does nothing and its second one adds noise again. Here a mask of ones changes nothing.
    """
    case, flow = (
        recorded("12/rflow_cases")["firststep"],
        sampler(settings["firststep"], recorded("12/rflow_cases")["firststep"]),
    )
    assert (case["frame_mask"] == 1).all() and not case["x_masks"][0].any()
    assert case["timesteps"][0, 0] > 1000 == flow.timesteps[0]
    np.testing.assert_array_equal(flow.timesteps[1:], case["timesteps"][1:, 0])
    z = paddle.to_tensor(case["z"])
    results = []
    for mask in (None, case["frame_mask"]):
        replay = Replay(golden_stdit3("qknorm"), case, settings["firststep"]["cfg_scale"])
        results.append([step.sample.numpy() for step in flow.sample(replay.predict, z, mask)])  # draws no noise
    np.testing.assert_allclose(*results, atol=1e-6)
    assert relative_error(case["steps"][0], case["z"]) == 0 < relative_error(results[1][0], case["z"])


# ------------------------------------------------------------------------------------- what must hold for both samplers

SHAPE = (1, 4, 5, 4, 4)


def towards(x_0):
    """A model that knows x_0: v = x_0 − ε for the ε in x_t."""

    def predict(x_t, t, x_mask=None):
        velocity = (x_0 - x_t) / (t / 1000)
        return Prediction(velocity, None, velocity, None)

    return predict


def curved(x_t, t, x_mask=None):
    """The ideal model for data that is normal with variance 1/4, whose paths are not straight."""
    t = t / 1000
    velocity = x_t * ((1 - t) / 4 - t) / ((1 - t) ** 2 / 4 + t**2)
    return Prediction(velocity, None, velocity, None)


def last(flow, z, frame_mask=None, predict=curved, noise=None):
    *_, step = flow.sample(predict, z, frame_mask, noise)
    return step.sample.numpy()


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straight_paths_need_one_step(name, steps):
    x_0, z = paddle.randn(SHAPE), paddle.randn(SHAPE)
    found = list(FLOW_SAMPLERS[name](steps, shift=3.0).sample(towards(x_0), z))
    assert [(s.number, s.index) for s in found] == [(i + 1, steps - 1 - i) for i in range(steps)]
    for step in found:
        np.testing.assert_allclose(step.x_0.numpy(), x_0.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[-1].sample.numpy(), x_0.numpy(), atol=1e-4)


def test_orders_of_convergence():
    """Twice the steps: half the error with Euler's method, a quarter with Heun's."""
    z = paddle.randn(SHAPE)
    exact = z.numpy() / 2  # the flow maps N(0, 1) to N(0, 1/4)
    ratios = {}
    for flow in (RectifiedFlow, Heun):
        coarse, fine = (relative_error(last(flow(n), z), exact) for n in (50, 100))
        ratios[flow] = coarse / fine
    assert 1.8 < ratios[RectifiedFlow] < 2.2 and 3.4 < ratios[Heun] < 4.6


def test_heun_evaluates_the_model_twice_in_all_but_the_last_step():
    seen = []

    def predict(x_t, t, x_mask):
        seen.append((t, x_mask.numpy().tolist()))
        return curved(x_t, t)

    last(Heun(3), paddle.randn(SHAPE), np.float32([[0, 1, 1, 1, 1]]), predict)
    assert [t for t, _ in seen] == pytest.approx([1000, 2000 / 3, 2000 / 3, 1000 / 3, 1000 / 3])
    assert {str(mask) for _, mask in seen} == {"[[False, True, True, True, True]]"}


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_frames_wait_and_join_as_their_ratio_says(name):
    """A frame of ratio r is left alone until t <= 1000 r; ratios below the last t, 100 here, never join."""
    flow, ratios = FLOW_SAMPLERS[name](10), np.float32([[0, 0.05, 0.3, 0.75, 1]])
    seen, draws, z = [], [], paddle.randn(SHAPE)

    def predict(x_t, t, x_mask):
        seen.append(x_mask.numpy()[0])
        return Prediction(0.5 * x_t, None, 0.5 * x_t, None)

    def noise(rows):
        draws.append(len(seen))
        return paddle.zeros(SHAPE)

    before = z.numpy()
    for step in flow.sample(predict, z, ratios, noise):
        after, taken = step.sample.numpy(), step.x_t.numpy()
        for frame, joins in enumerate([None, None, 8, 4, 1]):
            active = joins is not None and step.number >= joins
            assert (not np.array_equal(after[:, :, frame], before[:, :, frame])) == active == seen[-1][frame]
            assert bool(step.active[0, 0, frame]) == active
            noised = not np.array_equal(taken[:, :, frame], before[:, :, frame])
            assert noised == (step.number == joins and joins > 1)
            if noised:  # with zeros for noise
                share = 1 - step.timestep / 1000
                np.testing.assert_allclose(taken[:, :, frame], share * before[:, :, frame], atol=1e-6)
        before = after
    assert len(draws) == 2  # in the steps in which frames join; the original draws in every step, and never uses most


def test_a_video_does_not_depend_on_its_neighbours():
    """Its noise is drawn for itself alone, when it needs some."""
    z, ratios = paddle.randn([2, *SHAPE[1:]]), np.float32([[0.9, 0.6, 0, 1, 1], [0.6, 0.3, 1, 1, 1]])
    together = last(RectifiedFlow(10), z, ratios, noise=NoiseSource([3, 7], SHAPE[1:]))
    alone = last(RectifiedFlow(10), z[1:], ratios[1:], noise=NoiseSource([7], SHAPE[1:]))
    np.testing.assert_allclose(together[1:], alone, atol=1e-6)


def test_noise_that_cannot_be_drawn():
    z = paddle.randn(SHAPE)
    for ratios in (None, np.float32([[0, 0, 1, 1, 1]])):  # which draw none
        assert np.isfinite(last(RectifiedFlow(4), z, ratios)).all()
    with pytest.raises(OpenSoraError, match="NoiseSource"):
        last(RectifiedFlow(4), z, np.float32([[0.5, 0, 1, 1, 1]]))


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", ["plain", "masked", "dropped"])
def test_losses_are_those_of_the_original(golden_stdit3, rflow_losses, name):
    inputs, expected = rflow_losses(name)
    losses = flow_losses(golden_stdit3("qknorm"), **{key: paddle.to_tensor(value) for key, value in inputs.items()})
    error = np.abs(losses["loss"].numpy() / expected - 1).max()
    print(f"\nrectified flow, {name} losses: relative error {error:.1e}")
    assert error < 1e-5


def test_half_of_the_output_is_not_trained(golden_stdit3, rflow_losses):
    """As released, no loss reaches the channels of the variance."""
    inputs, _ = rflow_losses("plain")
    model = golden_stdit3("qknorm")
    flow_losses(model, **{key: paddle.to_tensor(value) for key, value in inputs.items()})["loss"].mean().backward()
    gradient = model.final_layer.linear.bias.grad.numpy().reshape([2, 2, 8])  # rows, columns, channels
    assert (gradient[..., :4] != 0).all() and (gradient[..., 4:] == 0).all()
