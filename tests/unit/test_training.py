"""Recipes, batches, the loop and whole runs, on models so small that a step takes a fraction of a second."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite import OpenSora, OpenSoraError
from opensora_lite.errors import CheckpointError, Note
from opensora_lite.io.files import atomic_write
from opensora_lite.latent_time import windows
from opensora_lite.request import model_folder
from opensora_lite.samplers import CFG
from opensora_lite.schedule import alphas_cumprod
from opensora_lite.stdit2 import Conditions
from opensora_lite.tools.cli import main
from opensora_lite.training import models, train
from opensora_lite.training.data import (
    Latents,
    Pictures,
    ShotLatents,
    VideoPairs,
    clip_at,
    flow_mask,
    flow_times,
    frame_mask,
    latent_frames,
    shot_at,
)
from opensora_lite.training.linear_code import best_linear_code
from opensora_lite.training.losses import TrainingSchedule, training_losses, vae_loss
from opensora_lite.training.muon import Muon, orthogonal
from opensora_lite.training.recipe import (
    FRAME_MASKS,
    RECIPES,
    DecoderRecipe,
    Recipe,
    VideoRecipe,
    World,
    read_recipe,
)
from opensora_lite.training.stages import diffusion_losses
from opensora_lite.training.trainer import Trainer
from opensora_lite.vae import FrameVAE, load_vae


@pytest.fixture(scope="module")
def micro(micro_file) -> Recipe:
    return read_recipe(micro_file)


@pytest.fixture(scope="module")
def latents(micro) -> Latents:
    clips = [clip_at(micro.world, i) for i in range(micro.world.clips)]
    rng = np.random.default_rng(0)
    return Latents(clips, [rng.standard_normal((4, 4, c.height // 8, c.width // 8)).astype(np.float16) for c in clips])


@pytest.fixture(scope="module")
def trained(micro, tmp_path_factory):
    return train(micro, tmp_path_factory.mktemp("run") / "out")


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_recipes_that_come_with_the_package(name):
    recipe = read_recipe(name)
    assert recipe.diffusion.steps == sum(stage.steps for stage in recipe.diffusion.stages)
    assert type(recipe).from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    "name, value, named",
    [
        ("diffusion.learnig_rate", "1", "did you mean learning_rate"),
        ("vae.optimizer", "muon", "vae.optimizer is unknown"),
        ("vae.decoder", "{batch: 2}", "vae.decoder.steps"),
        ("vae.decoder", "{steps: 1, kl_weight: 1}", "vae.decoder.kl_weight"),
        ("diffusion.stages", "[{steps: 1, batch: 1}]", r"diffusion\.stages\[0\]\.lengths is missing"),
        ("world", "5", "world"),
        ("seed", "[1", "YAML"),
        ("seed.x", "0", "seed"),
        # types
        ("diffusion.depth", "2.5", "diffusion.depth"),
        ("diffusion.depth", "true", "diffusion.depth"),
        ("diffusion.learning_rate", "fast", "diffusion.learning_rate"),
        ("diffusion.optimizer", "sgd", "diffusion.optimizer"),
        ("world.sizes", "[64]", r"world\.sizes\[0\]"),
        # bounds
        ("diffusion.learning_rate", "0", "diffusion.learning_rate"),
        ("diffusion.learning_rate", ".nan", "diffusion.learning_rate"),
        ("diffusion.betas", "[2, 0.9]", "diffusion.betas"),
        ("diffusion.caption_dropout", "1.5", "diffusion.caption_dropout"),
        ("vae.decoder", "{steps: 1, squared_weight: -1}", "vae.decoder.squared_weight"),
        ("vae.crop", "20", "vae.crop"),
        ("world.sizes", "[64x60]", r"world\.sizes\[0\]"),
        ("world.fps", "[]", "world.fps"),
        ("seed", "3000000000", "seed"),
        ("diffusion.stages", "[]", "diffusion.stages"),
        ("diffusion.stages", "[{steps: 1, batch: 1, lengths: {0: 1}}]", "lengths"),
        ("diffusion.frame_masks", "{none: 0.5}", "sum to 1"),
        ("diffusion.frame_masks", "{none: .nan}", "frame_masks"),
        ("diffusion.frame_masks", "{nothing: 1}", "quarter_random"),
        # fields that do not fit together
        ("diffusion.num_heads", "5", "hidden_size"),
        ("vae.block_out_channels", "[8, 8, 8, 9]", "norm_num_groups"),
        ("world.first_seed", "10000000", "evaluation"),
        ("diffusion.stages", "[{steps: 1, batch: 1, lengths: {1: 1}, times: [500, 500]}]", "times"),
        ("diffusion.stages", "[{steps: 1, batch: 1, lengths: {8: 1}}]", "num_frames"),
    ],
)
def test_a_wrong_field_is_named(micro_file, name, value, named):
    with pytest.raises(OpenSoraError, match=named):
        read_recipe(micro_file, {name: value})


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(OpenSoraError, match="first_steps, tiny"):
        read_recipe(tmp_path / "none.yaml")
    for text in ("a: [1", ""):
        (tmp_path / "broken.yaml").write_text(text)
        with pytest.raises(OpenSoraError, match=r"broken\.yaml"):
            read_recipe(tmp_path / "broken.yaml")


def test_numbers_such_as_1e_3_are_numbers(micro_file):
    assert read_recipe(micro_file, {"diffusion.learning_rate": "1e-3"}).diffusion.learning_rate == 0.001


def test_the_learning_rate_rises_stays_and_falls(micro):
    d = replace(micro.diffusion, warmup=2, decay=0.5, floor=0.1, learning_rate=1.0)
    assert [round(d.rate_at(step), 3) for step in range(6)] == [0.5, 1.0, 1.0, 1.0, 0.667, 0.333]
    assert replace(d, warmup=0, decay=0.0).rate_at(5) == 1.0
    assert d.ema_at(0) < 0.1 < d.ema_at(50) < d.ema_at(10**6) == d.ema


def test_stages_follow_each_other(micro):
    assert [micro.diffusion.stage_at(step).batch for step in range(6)] == [4, 4, 2, 2, 2, 2]
    assert [micro.diffusion.stages[1].batch_of(n) for n in (4, 2)] == [2, 4]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_clip_depends_on_nothing_but_its_number():
    world = World()
    a, b = clip_at(world, 7), clip_at(world, 7)
    assert a == b and a.captions[0] != clip_at(world, 8).captions[0]
    assert (a.render(2) == b.render(2)).all()
    sizes = Counter((clip.height, clip.width) for clip in (clip_at(world, i) for i in range(20)))
    assert sizes == {(64, 64): 12, (48, 80): 4, (80, 48): 4}


def test_a_batch_depends_on_nothing_but_seed_and_step(micro, latents):
    a, b, other = (latents.batch(micro, step) for step in (3, 3, 4))
    for name in ("x_0", "t", "noise", "x_mask", "dropped", "fps"):
        assert (getattr(a, name) == getattr(b, name)).all()
    assert a.captions == b.captions
    assert a.noise.shape != other.noise.shape or (a.noise != other.noise).any()
    again = latents.batch(replace(micro, seed=2), 3)
    assert again.noise.shape != a.noise.shape or (again.noise != a.noise).any()
    firsts = {latents.batch(replace(micro, seed=seed), 3).noise.flat[0] for seed in range(5)}
    assert len(firsts) == 5


def test_processes_share_a_batch(micro, latents):
    whole = latents.batch(micro, 4)
    parts = [whole.part(rank, 2) for rank in (0, 1)]
    assert sorted(parts[0].captions + parts[1].captions) == sorted(whole.captions)
    for name in ("x_0", "t", "noise", "x_mask", "dropped", "fps"):
        both = np.empty_like(getattr(whole, name))
        both[0::2], both[1::2] = (getattr(part, name) for part in parts)
        assert (both == getattr(whole, name)).all()


def test_what_batches_hold(micro, latents):
    d = replace(micro.diffusion, caption_dropout=0.3, full_captions=0.5)
    recipe, batches = replace(micro, diffusion=d), []
    for step in range(2, 400):
        recipe_at = replace(recipe, seed=step)
        batches.append(latents.batch(recipe_at, 2))
    lengths = Counter(batch.x_0.shape[2] for batch in batches)
    assert set(lengths) == {2, 4} and abs(lengths[4] / len(batches) - 0.6) < 0.1
    assert all(len(batch.t) == {4: 2, 2: 4}[batch.x_0.shape[2]] for batch in batches)
    dropped = np.concatenate([batch.dropped for batch in batches])
    assert abs(dropped.mean() - 0.3) < 0.06
    t = np.concatenate([batch.t for batch in batches])
    assert t.min() >= 0 and t.max() <= 999 and abs(t.mean() - 500) < 20
    assert all(np.ptp(batch.t) > 0 for batch in batches)  # one time in each of B parts
    few = replace(micro.diffusion.stages[0], times=(150, 152))
    narrow = replace(micro, diffusion=replace(micro.diffusion, stages=(few, micro.diffusion.stages[1])))
    assert set(np.concatenate([latents.batch(narrow, step).t for step in range(few.steps)])) == {150, 151}
    full = {clip.captions[0] for _, clips in latents.pools.values() for clip in clips}
    partial = {c for _, clips in latents.pools.values() for clip in clips for c in clip.captions[1:]} - full
    seen = [caption for batch in batches for caption in batch.captions]
    assert np.mean([caption in full for caption in seen]) > 0.4 and any(caption in partial for caption in seen)
    image = latents.batch(recipe, 0)
    assert image.x_0.shape[2] == 1 and (image.fps == 120).all() and image.x_mask.all()
    assert set(image.conditions) == {"num_frames", "height", "width", "ar", "fps"}
    for batch in batches:
        assert set(batch.fps) <= {12, 24} and batch.x_mask.any(1).all()
        assert batch.x_0.shape[3:] == (batch.height // 8, batch.width // 8)


@pytest.mark.parametrize("kind", FRAME_MASKS)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 16])
def test_frame_masks(kind, num_frames):
    masks = np.stack([frame_mask(kind, num_frames, np.random.default_rng(seed)) for seed in range(200)])
    assert masks.any(1).all()  # there is always something to do
    given = ~masks
    if kind == "none" or num_frames == 1:
        assert not given.any()
        return
    most = (num_frames // 4 or 1) if "quarter" in kind else 1
    both = "head_tail" in kind
    if not both or num_frames > 2:
        assert set(given.sum(1)) == set(range(1, most + 1)) if not both else set(range(2, 2 * most + 1, 2))
    if "head" in kind:
        assert given[:, 0].all() or num_frames == 2
    if "tail" in kind:
        assert given[:, -1].all() or num_frames == 2
    if "random" in kind:
        assert given.any(0).all()
        assert (np.abs(np.diff(given, axis=1)).sum(1) <= 2).all()  # in one piece


DECODER_ON_CROPS = DecoderRecipe(steps=1, batch=16, crop_share=1.0)


def test_crops_show_the_subject(micro):
    v = replace(micro.vae, crop=32, crop_share=1.0, batch=16)
    clips = [clip_at(micro.world, i) for i in range(10)]
    pictures = Pictures(clips, [clip.render(4) for clip in clips])
    batch, noise = pictures.batch(v, 1, 0)
    assert batch.shape == (16, 3, 32, 32) and batch.dtype == np.float32 and noise.shape == (16, 4, 4, 4)
    assert batch.min() >= -1 and batch.max() <= 1
    again, _ = pictures.batch(v, 1, 0)
    assert (batch == again).all()
    for other in (pictures.batch(v, 1, 1), pictures.batch(v, 2, 0), pictures.batch(DECODER_ON_CROPS, 1, 0)):
        assert (batch != other[0]).any()


def test_whole_frames_come_in_all_sizes_alike(micro):
    """Though the world has three clips of 64×64 to each of the others."""
    clips = [clip_at(micro.world, i) for i in range(10)]
    pictures = Pictures(clips, [clip.render(1) for clip in clips])
    v = DecoderRecipe(steps=1, batch=1)
    sizes = Counter(pictures.batch(v, 0, step)[0].shape[2:] for step in range(300))
    assert set(sizes) == {(64, 64), (48, 80), (80, 48)} and min(sizes.values()) > 75


# --- losses -----------------------------------------------------------------------------------------------------------


def test_a_dropped_caption_is_the_null_caption_of_guidance(micro, latents):
    """At the caption's length and under its mask, as in the unconditional half of CFG."""
    d, rng = micro.diffusion, np.random.default_rng(0)
    text, stdit = models.new_text_encoder(d, rng), models.new_stdit(d, rng)
    stdit.final_layer.linear.weight.set_value(models.normal(rng, stdit.final_layer.linear.weight.shape, 0.1))
    for block in stdit.blocks:
        block.cross_attn.proj.weight.set_value(models.normal(rng, block.cross_attn.proj.weight.shape, 0.5))
    batch = latents.batch(micro, 3)
    B, T = len(batch.t), batch.x_0.shape[2]
    batch = replace(batch, dropped=np.ones(B, bool))
    schedule = TrainingSchedule()
    losses = diffusion_losses(stdit, text, schedule, batch)

    class Recorder:
        null_caption = stdit.null_caption

        def precompute(self, conditions):
            self.conditions = conditions
            return stdit.precompute(conditions)

    numbers = {name: paddle.to_tensor(value) for name, value in batch.conditions.items()}
    recorder, shared = Recorder(), {name: value[:1] for name, value in numbers.items()}
    CFG(recorder, Conditions(*text.encode(batch.captions), (T, *batch.x_0.shape[3:]), **shared), 2.0)
    y, y_mask = recorder.conditions.y[B:], recorder.conditions.y_mask[B:]
    x_0, t, noise, x_mask = (paddle.to_tensor(a) for a in (batch.x_0, batch.t, batch.noise, batch.x_mask))
    expected = training_losses(stdit, schedule, x_0, t, noise, y, y_mask, x_mask, **numbers)
    np.testing.assert_allclose(losses["loss"].numpy(), expected["loss"].numpy(), rtol=1e-5)
    with_captions = diffusion_losses(stdit, text, schedule, replace(batch, dropped=np.zeros(B, bool)))
    assert (with_captions["loss"].numpy() != losses["loss"].numpy()).any()


def test_weights_of_the_times(micro):
    abar = alphas_cumprod()
    snr = abar / (1 - abar)
    weights = replace(micro.diffusion, min_snr=5.0, high_noise=0.0).loss_weights()
    assert (weights[snr < 5] == 1).all() and (np.diff(weights) >= 0).all() and weights.dtype == np.float32
    np.testing.assert_allclose(weights[0] * snr[0], 5, rtol=1e-5)
    assert (replace(micro.diffusion, min_snr=None, high_noise=0.0).loss_weights() == 1).all()
    boosted = replace(micro.diffusion, min_snr=5.0, high_noise=0.5).loss_weights()
    assert (boosted[snr > 1] == weights[snr > 1]).all() and boosted[-1] == 50
    at = int(np.argmin(abs(snr - 0.25)))
    np.testing.assert_allclose(boosted[at], 2, rtol=1e-2)


def test_muon_moves_all_directions_alike(micro):
    rng = np.random.default_rng(0)
    for shape in ((12, 30), (30, 12), (16, 16)):
        u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        stretched = u * np.geomspace(1, 0.05, len(vt)) @ vt  # one direction 20 times as large as another
        values = np.linalg.svd(orthogonal(paddle.to_tensor(stretched.astype(np.float32))).numpy(), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3

    weight = paddle.create_parameter([8, 18], "float32")
    before = weight.numpy()
    muon = Muon({"w": weight})
    (weight * paddle.to_tensor(rng.standard_normal((8, 18)).astype(np.float32))).sum().backward()
    muon.step(0.01)
    moved = weight.numpy() - before
    rms = np.sqrt((moved**2).mean())  # as AdamW's steps: about 0.2 of the learning rate
    assert 0.1 * 0.01 < rms < 0.4 * 0.01 and (moved * weight.grad.numpy()).sum() < 0
    d = replace(micro.diffusion, optimizer="muon")
    assert d.takes_muon("stdit.blocks.0.attn.qkv.weight", 2) and d.takes_muon("t5.encoder.block.0.layer.0.x.weight", 2)
    for name in ("stdit.blocks.0.scale_shift_table", "stdit.final_layer.linear.weight", "t5.shared.weight"):
        assert not d.takes_muon(name, 2)
    assert not d.takes_muon("stdit.blocks.0.attn.qkv.bias", 1) and not replace(d, optimizer="adamw").takes_muon(
        "stdit.blocks.0.x", 2
    )


def test_the_parts_of_the_vae_loss(micro):
    """Against the formulas in numpy, on what the model says."""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    noise = rng.standard_normal((2, 4, 2, 2)).astype(np.float32)
    v = replace(micro.vae, init=None, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    model = models.new_vae(v, 0).model
    posterior = model.encode(paddle.to_tensor(pictures)).latent_dist
    again = model.decode(posterior.mean + posterior.std * paddle.to_tensor(noise)).sample.numpy()
    mean, std = posterior.mean.numpy(), posterior.std.numpy()

    e = again - pictures
    edges = np.abs(np.diff(e, axis=2)).mean() + np.abs(np.diff(e, axis=3)).mean()
    kl = 0.5 * (mean**2 + std**2 - 1 - np.log(std**2)).mean()
    for weights in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 3e-4)):
        chosen = replace(v, squared_weight=weights[0], gradient_weight=weights[1], kl_weight=weights[2])
        expected = np.abs(e).mean() + weights[0] * (e**2).mean() + weights[1] * edges + weights[2] * kl
        loss = vae_loss(model, paddle.to_tensor(pictures), paddle.to_tensor(noise), chosen)
        np.testing.assert_allclose(float(loss), expected, rtol=1e-4)


# --- the loop ---------------------------------------------------------------------------------------------------------


def line_trainer(folder, micro, steps=6, on_step=None) -> Trainer:
    """Fits a line to points, different ones at every step."""
    paddle.seed(0)
    line = paddle.nn.Linear(2, 1)

    def loss(step):
        x = paddle.to_tensor(np.random.default_rng(step).standard_normal((4, 2), np.float32))
        return (line(x)[:, 0] - x[:, 0] - 2 * x[:, 1]).square().mean(), "points"

    learning = replace(micro.vae, init=None, steps=steps, learning_rate=0.05, warmup=0)
    return Trainer("line", {"line": line}, learning, loss, folder, save_every=2, on_step=on_step)


def test_a_run_that_was_stopped_has_the_losses_that_it_would_have_had(tmp_path, micro):
    whole = line_trainer(tmp_path / "whole", micro).fit()
    line_trainer(tmp_path / "parts", micro).fit(until=3)
    second = line_trainer(tmp_path / "parts", micro)
    assert second.step == 3 and second.history == whole[:3]
    assert second.fit() == whole  # to the last bit: weights, moments and times of AdamW are kept
    third = line_trainer(tmp_path / "parts", micro)
    assert third.done and third.fit() == whole
    for a, b in zip(second.average.values(), third.average.values(), strict=True):
        assert (a.numpy() == b.numpy()).all()


def test_the_loss_falls(tmp_path, micro):
    records = line_trainer(tmp_path, micro, steps=200).fit()
    assert np.mean([r.loss for r in records[-20:]]) < 0.02 * np.mean([r.loss for r in records[:20]])


def test_the_average_lags_behind_and_is_given_back(tmp_path, micro):
    trainer = line_trainer(tmp_path, micro, steps=30)
    trainer.fit()
    (name, parameter), own = next(iter(trainer.parameters.items())), None
    own = parameter.numpy().copy()
    with trainer.averaged() as averaged:
        assert (parameter.numpy() == trainer.average[name].numpy()).all() and (parameter.numpy() != own).any()
        assert not averaged["line"].training
    assert (parameter.numpy() == own).all()


def test_progress_and_the_file_of_losses(tmp_path, micro):
    seen = []
    trainer = line_trainer(tmp_path, micro, on_step=seen.append)
    records = trainer.fit()
    assert [progress.record for progress in seen] == records
    assert seen[-1].seconds_left == 0 and seen[0].steps_per_second > 0 and seen[0].steps == 6
    lines = (tmp_path / "line_losses.csv").read_text().splitlines()
    assert lines[0] == "step,kind,loss,rate" and len(lines) == 7 and lines[3].startswith("3,points,")


def test_a_checkpoint_is_whole_or_not_there(tmp_path, micro, monkeypatch):
    trainer = line_trainer(tmp_path, micro)
    trainer.fit(until=2)
    before = trainer.checkpoint.read_bytes()

    def broken(tensors, path, metadata):
        Path(path).write_bytes(b"half of a")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", broken)
        with pytest.raises(OpenSoraError, match=r"line.safetensors cannot be written: .*no space left"):
            trainer.fit()
    assert trainer.checkpoint.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.safetensors", "line_losses.csv"]
    assert line_trainer(tmp_path, micro).step == 2


def test_checkpoints_of_other_models_are_refused(tmp_path, micro):
    line_trainer(tmp_path, micro).fit(until=1)
    learning, loss = replace(micro.vae, init=None), None
    with pytest.raises(CheckpointError, match=r"adamw\.curve"):
        Trainer("line", {"curve": paddle.nn.Linear(2, 1)}, learning, loss, tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"has line.weight \[2, 1\], the model \[3, 1\]"):
        Trainer("line", {"line": paddle.nn.Linear(3, 1)}, learning, loss, tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"line\.bias"):
        Trainer("line", {"line": paddle.nn.Linear(2, 1, bias_attr=False)}, learning, loss, tmp_path, 1)
    (tmp_path / "line_losses.csv").unlink()
    with pytest.raises(CheckpointError, match="line_losses"):
        line_trainer(tmp_path, micro)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_no_number_stops_the_run_before_it_spreads(tmp_path, micro, what):
    trainer = line_trainer(tmp_path, micro)
    trainer.fit(until=2)
    weight = trainer.models["line"].weight
    before = weight.numpy()
    if what == "loss":
        trainer.loss = lambda step: (weight.sum() * float("nan"), "points")
    else:  # √ of 0 is 0, its slope is not finite
        trainer.loss = lambda step: ((weight.sum() * 0).sqrt(), "points")
    with pytest.raises(CheckpointError, match="step 3 of line"):
        trainer.fit()
    assert (weight.numpy() == before).all() and line_trainer(tmp_path, micro).step == 2


def test_replacing_keeps_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as path:
        Path(path).write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with atomic_write(tmp_path / "b" / "c") as path:
        Path(path).write_text("new")
    assert (tmp_path / "b" / "c").read_text() == "new"
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "b" / "c").stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(OpenSoraError, match="c/d cannot be written"), atomic_write(tmp_path / "b" / "c" / "d"):
        pass


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model(trained):
    pipe = OpenSora.from_pretrained(trained.folder)
    assert pipe.stdit.config.hidden_size == 24 and pipe.settings.num_frames == 4
    assert pipe("a car", num_sampling_steps=2).frames.shape == (4, 64, 64, 3)
    assert len(trained.diffusion) == 6 and trained.vae == []
    kinds = [record.kind.split("x")[0] for record in trained.diffusion]
    assert kinds[:2] == ["1", "1"] and set(kinds[2:]) <= {"2", "4"}
    written = json.loads((trained.folder / "pipeline.json").read_text())
    assert written["trained_sizes"] == [[64, 64], [48, 80], [80, 48]]
    assert written["known_words"] == json.loads((model_folder("tiny") / "pipeline.json").read_text())["known_words"]


def test_what_is_written_is_what_was_trained(micro, trained, tmp_path):
    """Exported, read again: the same up to float16, and names and layout of the shipped files."""
    d, rng = micro.diffusion, np.random.default_rng(0)
    stdit, text, vae = models.new_stdit(d, rng), models.new_text_encoder(d, rng), models.new_vae(micro.vae, 0)
    models.export_stdit(tmp_path, stdit)
    models.export_text_encoder(tmp_path, text)
    models.export_vae(tmp_path, vae)
    again = OpenSora.from_pretrained(tmp_path)
    for a, b in ((stdit, again.stdit), (text.model, again.text.model), (vae.model, again.vae.model)):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            np.testing.assert_allclose(x.numpy(), y.numpy(), atol=1e-3, rtol=1e-3, err_msg=name)
    assert abs(again.vae.scaling_factor - vae.scaling_factor) < 1e-6


def test_starts(micro):
    d = micro.diffusion
    a, b, other = (models.new_stdit(d, np.random.default_rng(seed)) for seed in (0, 0, 1))
    states = [model.state_dict() for model in (a, b, other)]
    assert all((states[0][name].numpy() == states[1][name].numpy()).all() for name in states[0])
    assert (a.x_embedder.proj.weight.numpy() != other.x_embedder.proj.weight.numpy()).any()
    assert not a.final_layer.linear.weight.numpy().any() and not a.blocks[0].cross_attn.proj.weight.numpy().any()
    assert a.blocks[0].attn.qkv.weight.numpy().std() > 0.1 and (a.blocks[0].attn.q_norm.weight.numpy() == 1).all()


def test_going_on_from_a_model(micro):
    shipped = replace(read_recipe("tiny").diffusion, init="tiny")
    assert models.new_stdit(shipped, None).config.hidden_size == 144
    assert models.new_text_encoder(shipped, None).model.config.d_model == 96
    with pytest.raises(OpenSoraError, match="hidden_size"):
        models.new_stdit(replace(micro.diffusion, init="tiny"), None)
    with pytest.raises(OpenSoraError, match="d_model"):
        models.new_text_encoder(replace(micro.diffusion, init="tiny"), None)
    with pytest.raises(OpenSoraError, match="block_out_channels"):
        models.new_vae(replace(micro.vae, block_out_channels=(8, 8, 8, 8)), 0)


def test_stopped_and_continued(micro, trained, tmp_path):
    """A whole run that is stopped after three steps and called again has the same losses."""

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.record.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(micro, tmp_path / "out", on_step=stop)
    lines = []
    again = train(micro, tmp_path / "out", say=lines.append)
    assert any("step 2 of 6" in line for line in lines)  # save_every: 2
    assert again.diffusion == trained.diffusion
    assert train(micro, tmp_path / "out").diffusion == trained.diffusion  # a finished run is not run again


def test_stopped_after_the_last_step(micro, trained, tmp_path):
    """The last checkpoint is there, the model is not yet written: the next call writes it."""

    def stop(progress):
        if progress.record.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(micro, tmp_path / "out", on_step=stop)
    train(micro, tmp_path / "out")
    a, b = (OpenSora.from_pretrained(folder).stdit.state_dict() for folder in (tmp_path / "out", trained.folder))
    assert all((a[name].numpy() == b[name].numpy()).all() for name in a)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sheet_every": 2, "sheet_prompts": ("|5|x",)}, "schedule"),
        ({"vae": {"init": "nowhere"}}, "nowhere"),
        ({"diffusion": {"init": "tiny"}}, "d_model"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(micro, tmp_path, changes, message):
    groups = {name: replace(getattr(micro, name), **v) if isinstance(v, dict) else v for name, v in changes.items()}
    with pytest.raises(OpenSoraError, match=re.escape(message)):
        train(replace(micro, **groups), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepared_and_then_trained(micro, trained, tmp_path):
    prepared = train(micro, tmp_path / "out", prepare=True)
    assert prepared.diffusion == [] and OpenSora.from_pretrained(tmp_path / "out").settings.num_frames == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "recipe.json",
        "pipeline.json",
        "vae",
        "t5",
        "stdit",
    }
    assert train(micro, tmp_path / "out").diffusion == trained.diffusion


def test_folders_that_are_no_place_for_a_run(micro, trained, tmp_path):
    other = replace(micro, diffusion=replace(micro.diffusion, learning_rate=0.5, depth=2))
    with pytest.raises(OpenSoraError, match=r"diffusion\.depth, diffusion\.learning_rate"):
        train(other, trained.folder)
    assert train(replace(micro, save_every=5, sheet_every=3), trained.folder).diffusion == trained.diffusion
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OpenSoraError, match="training run"):
        train(micro, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(OpenSoraError, match=r"recipe\.json"):
        train(micro, tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(micro.to_dict()))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "diffusion_torch.pt").touch()
    with pytest.raises(OpenSoraError, match="train_torch"):
        train(micro, tmp_path)


def test_the_vae_is_trained_too(micro, tmp_path):
    """Twenty steps make a VAE better than at its start; latents come out with standard deviation 1."""
    v = replace(
        micro.vae, init=None, steps=20, clips=4, batch=8, warmup=2, learning_rate=5e-3, ema=0.5,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
    )  # fmt: skip
    recipe = replace(micro, vae=v, sheet_every=6, sheet_prompts=("a car",))
    done = train(recipe, tmp_path / "out")
    losses = [record.loss for record in done.vae]
    assert len(losses) == 20 and np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    pipe = OpenSora.from_pretrained(done.folder)
    assert isinstance(pipe.vae, FrameVAE)
    stds = [pipe.encode(clip_at(recipe.world, i).render(4)).std() for i in range(4)]
    assert abs(np.mean(stds) - 1) < 0.25
    from PIL import Image

    assert Image.open(done.folder / "sheets" / "step_000006.png").size == (
        4 * 128 + 3 * 2,
        128,
    )  # four frames and the gaps between them


def test_the_decoder_alone_is_trained(micro, tmp_path):
    """Reconstructions get better, from a trained VAE and after an untrained one; of the encoder not a bit changes."""
    decoder = DecoderRecipe(steps=12, batch=4, warmup=2, learning_rate=2e-4, ema=0.5)
    recipe = replace(micro, vae=replace(micro.vae, clips=6, decoder=decoder))
    done = train(recipe, tmp_path / "out", prepare=True)
    assert done.vae == [] and len(done.decoder) == 12

    before, after = models.new_vae(micro.vae, 0), load_vae(done.folder / "vae")
    assert after.scaling_factor == before.scaling_factor
    a, b = before.model.state_dict(), after.model.state_dict()
    moved = {name for name, value in a.items() if (value.numpy() != b[name].numpy()).any()}
    assert moved >= {"post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"}
    assert not [name for name in moved if name.startswith(("encoder.", "quant_conv."))]

    clips = [clip_at(recipe.world, i) for i in range(6)]
    pictures = Pictures(clips, [clip.render(4) for clip in clips])

    def loss(vae, step):
        parts = (paddle.to_tensor(part) for part in pictures.batch(decoder, recipe.seed, step))
        with paddle.no_grad():
            return float(vae_loss(vae.model, *parts, decoder))

    old, new = (np.mean([loss(vae, step) for step in range(12)]) for vae in (before, after))
    print(f"\nthe decoder alone: loss {old:.4f} before, {new:.4f} after 12 steps")
    assert new < 0.97 * old


def test_the_decoder_goes_on_where_it_stopped(micro, tmp_path, monkeypatch):
    """Killed in the decoder's training, after the VAE's: the losses that one go would have had."""
    small = dict(clips=4, batch=4, warmup=1, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    decoder = DecoderRecipe(steps=5, batch=4, warmup=1)
    recipe = replace(micro, vae=replace(micro.vae, init=None, steps=3, decoder=decoder, **small))
    whole = train(recipe, tmp_path / "whole", prepare=True)

    def stop(progress):
        if progress.stage == "decoder" and progress.record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", prepare=True, on_step=stop)
    assert not (tmp_path / "parts" / "vae").exists()
    parts = train(recipe, tmp_path / "parts", prepare=True)
    assert parts.vae == whole.vae and len(parts.vae) == 3
    assert [record.loss for record in parts.decoder] == [record.loss for record in whole.decoder]
    assert len(parts.decoder) == 5


def test_the_command_line(micro_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(
            [
                "train",
                str(micro_file),
                "--out",
                str(out),
                "--set",
                "diffusion.stages=[{steps: 2, lengths: {2: 1}, batch: 2}]",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "diffusion: step 2 of 2, loss " in printed and f"--model {out}" in printed
    assert main(["train", str(micro_file), "--out", str(out)]) == 2
    assert "another recipe (diffusion.stages, diffusion.steps differ)" in capsys.readouterr().err
    assert main(["train", str(micro_file), "--out", str(out), "--set", "seed"]) == 2
    assert "--set takes NAME=VALUE" in capsys.readouterr().err
    assert main(["train", "nowhere.yaml", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_learn_as_one(micro_file, tmp_path):
    """paddle.distributed.launch with two processes and gloo: the losses, and the weights, of one process."""
    small = "{steps: 2, clips: 4, batch: 8, warmup: 1, block_out_channels: [8, 8, 8, 8], norm_num_groups: 4}"
    recipe = read_recipe(micro_file, {"vae": small})
    one = train(recipe, tmp_path / "one")
    out = tmp_path / "two"
    script = tmp_path / "opensora-lite"  # what pip installs under this name
    script.write_text("import sys\nfrom opensora_lite.tools.cli import main\nsys.exit(main())\n")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    command += ["--log_dir", str(tmp_path / "log"), str(script), "train", str(micro_file), "--out", str(out)]
    command += ["--device", "cpu", "--set", f"vae={small}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    logs = "\n".join(path.read_text()[-2000:] for path in (tmp_path / "log").glob("workerlog.*"))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:] + logs
    two = train(recipe, out)
    for stage in ("vae", "diffusion"):
        a, b = getattr(two, stage), getattr(one, stage)
        assert [(record.step, record.kind) for record in a] == [(record.step, record.kind) for record in b]
        np.testing.assert_allclose([record.loss for record in a], [record.loss for record in b], rtol=1e-3)
        print(f"\ntwo processes, {stage}: {[round(x.loss, 5) for x in a]}; one: {[round(x.loss, 5) for x in b]}")
    a, b = (OpenSora.from_pretrained(folder).stdit.state_dict() for folder in (out, one.folder))
    moved = [name for name in a if "qkv" in name or "fc" in name]
    errors = {name: relative_error(a[name].numpy(), b[name].numpy()) for name in moved if b[name].numpy().any()}
    worst = max(errors, key=errors.get)
    print(f"two processes against one, worst weight: {worst} {errors[worst]:.1e}")
    assert errors[worst] < 2e-3  # Muon and AdamW divide by what they average: rounding grows where gradients are small


def test_processes_that_cannot_share(micro, monkeypatch, tmp_path):
    monkeypatch.setattr("opensora_lite.training.run.dist.get_world_size", lambda: 3)
    with pytest.raises(OpenSoraError, match="multiples of 3"):
        train(micro, tmp_path / "out")


# --- Open-Sora 1.2 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shots() -> tuple[VideoRecipe, ShotLatents]:
    """The recipe of tiny-1.2 with two clips of each kind, and latents that are no one's."""
    recipe = read_recipe("tiny-1.2")
    clips = [shot_at(recipe.world, i) for i in range(2 * len(recipe.world.kinds))]
    rng = np.random.default_rng(0)
    shapes = [(3, 4, latent_frames(c.num_frames), c.height // 8, c.width // 8) for c in clips]
    return recipe, ShotLatents(clips, [rng.standard_normal(shape).astype(np.float16) for shape in shapes])


@pytest.fixture(scope="module")
def micro12(micro12_file) -> VideoRecipe:
    return read_recipe(micro12_file)


@pytest.fixture(scope="module")
def trained12(micro12, tmp_path_factory):
    recipe = replace(micro12, sheet_every=6, sheet_prompts=("a car camera motion: pan left.",))
    return train(recipe, tmp_path_factory.mktemp("run12") / "out")


def test_a_run_of_1_2_leaves_a_model(micro12, trained12):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)  # every word of a caption with scores is known
        pipe = OpenSora.from_pretrained(trained12.folder)
        video = pipe("a red car driving right on the ocean at noon", flow=5, camera_motion="zoom in", aes=6.5)
    assert video.frames.shape == (17, 32, 32, 3) and pipe.settings.sampler == "rectified-flow"
    assert pipe.vae.channels == pipe.stdit.config.in_channels == micro12.vae.channels == 6
    lengths = {stage: len(getattr(trained12, stage)) for stage in ("vae", "temporal", "decoder", "diffusion")}
    assert lengths == {"vae": 0, "temporal": 3, "decoder": 2, "diffusion": 6}
    assert {record.kind.split("x")[0] for record in trained12.diffusion} <= {"1", "5", "10"}
    assert [path.name for path in (trained12.folder / "sheets").iterdir()] == ["step_000006.png"]
    written = json.loads((trained12.folder / "pipeline.json").read_text())
    assert written["trained_sizes"] == [[32, 32], [24, 32]] and "zoom" in written["known_words"]


def test_latents_of_1_2_have_mean_0_and_deviation_1(micro12, trained12):
    pipe = OpenSora.from_pretrained(trained12.folder)
    clips = [shot_at(micro12.world, i, micro12.vae.kinds) for i in range(micro12.vae.clips)]
    z = np.concatenate([pipe.vae.encode_frames(clip.render(17)).reshape(6, -1) for clip in clips], 1)
    np.testing.assert_allclose(z.mean(1), 0, atol=0.05)
    np.testing.assert_allclose(z.std(1), 1, atol=0.05)


def test_the_encoder_of_frames_stays_as_it_was(trained12):
    before = load_vae(model_folder("tiny") / "vae").model.state_dict()
    after = OpenSora.from_pretrained(trained12.folder).vae.frames.model.state_dict()
    moved = {name for name, value in before.items() if (value.numpy() != after[name].numpy()).any()}
    assert moved >= {"post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"}
    assert not [name for name in moved if name.startswith(("encoder.", "quant_conv."))]


def test_the_temporal_vae_starts_as_the_best_linear_code_of_its_latents(micro12):
    """All that is random in its weights changes nothing at first."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((4, 4)) * [1, 1, 0.5, 0.1]
    latents = [np.cumsum(rng.standard_normal((4, 17, 3, 5)), 1) * 0.05 for _ in range(6)]
    latents = [np.einsum("cd,dthw->cthw", mixed, x).astype(np.float32) for x in latents]
    vae, spread = models.new_video_vae(micro12.vae), 0.12
    models.start_as_linear_code(vae, latents, spread, seed=0)
    temporal, x = vae.model.temporal_vae, latents[0]
    E, D = best_linear_code([each / spread for each in latents], vae.channels)

    fours = np.concatenate([np.zeros_like(x[:, :3]), x], 1) / spread  # the first latent frame holds one frame
    fours = fours.reshape(4, 5, 4, 3, 5).transpose(2, 0, 1, 3, 4).reshape(16, -1)
    z = E[:, :-1] @ fours + E[:, -1:]
    again = spread * (D[:, :-1] @ z + D[:, -1:])
    again = again.reshape(4, 4, 5, 3, 5).transpose(1, 2, 0, 3, 4).reshape(4, 20, 3, 5)[:, 3:]
    with paddle.no_grad():
        moments = temporal.encode(paddle.to_tensor(x[None]))[0].numpy()
        decoded = temporal.decode(paddle.to_tensor(moments[None, : vae.channels]))[0, :, -17:].numpy()
    assert np.abs(moments[: vae.channels].reshape(vae.channels, -1) - z).max() < 0.05 * z.std()
    assert np.abs(decoded - again).max() < 0.05 * x.std()

    # and no worse than principal components, for the whole fours
    whole = np.concatenate(
        [each[:, 1:].reshape(4, 4, 4, 15).transpose(2, 0, 1, 3).reshape(16, -1) for each in latents], 1
    )
    whole = whole / spread
    left = whole - D @ np.r_[E @ np.r_[whole, np.ones_like(whole[:1])], np.ones_like(whole[:1])]
    variances = np.linalg.eigvalsh(np.cov(whole))
    assert variances[: -vae.channels].sum() < (left**2).mean(1).sum() < 1.5 * variances[: -vae.channels].sum()


def test_a_run_of_1_2_that_was_stopped_has_the_same_weights(micro12, trained12, tmp_path):
    """Stopped before the first checkpoint of a run and of a stage, and between two checkpoints."""
    stops = [("temporal", 1), ("decoder", 1), ("diffusion", 3)]

    def stop(progress):
        if stops and (progress.stage, progress.record.step) == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    while stops:
        with pytest.raises(KeyboardInterrupt):
            train(micro12, tmp_path, on_step=stop)
    again = train(micro12, tmp_path)
    assert replace(again, folder=trained12.folder) == trained12
    for name in ("vae/model.safetensors", "stdit/model.safetensors", "t5/model.safetensors", "t5/spiece.model"):
        assert (tmp_path / name).read_bytes() == (trained12.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"diffusion.vocabulary": "20"}, "vocabulary"),
        ({"vae.spatial": "nowhere"}, "nowhere"),
        ({"vae.filters": "6"}, "filters"),
        ({"sheet_every": "2", "sheet_prompts": "['|5|x']"}, "schedule"),
        ({"diffusion.stages": "[{steps: 1, lengths: {15: 1.0}, batch: 1}]"}, "15 latent frames"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(micro12_file, tmp_path, changes, message):
    with pytest.raises(OpenSoraError, match=re.escape(message)):
        train(read_recipe(micro12_file, changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batch_sizes_are_those_of_the_batches(shots):
    """They decide how many processes can share a run; images come in eight times as many."""
    recipe, data = shots
    sizes = recipe.batch_sizes
    assert {len(data.batch(recipe, step).captions) for step in (0, *range(9000, 9040))} <= sizes
    clips = [shot_at(recipe.world, i, recipe.vae.kinds) for i in range(len(recipe.vae.kinds))]
    frames = [np.zeros((17, c.height, c.width, 3), np.uint8) for c in clips]
    latents = [np.zeros((4, 17, c.height // 8, c.width // 8), np.float16) for c in clips]
    pairs = VideoPairs(clips, frames, latents, 2)
    for name, stage in recipe.vae.stages.items():
        for step in range(12):
            x, *_ = pairs.batch(stage, 0, recipe.vae.STREAMS[name], step)
            assert len(x) // (8 if x.shape[2] == 1 else 1) in sizes


@pytest.mark.parametrize("num_frames, latents", [(1, 1), (4, 1), (17, 5), (18, 6), (34, 10), (51, 15)])
def test_latent_frames(num_frames, latents):
    assert latent_frames(num_frames) == latents
    assert windows(num_frames)[-1].last == num_frames - 1


@pytest.mark.parametrize(
    "name, value", [("world.kinds", "[64x64]"), ("vae.decoder.crop", "20"), ("diffusion.depth", "0")]
)
def test_a_wrong_field_of_a_recipe_of_1_2_is_named(name, value):
    with pytest.raises(OpenSoraError, match=name.replace(".", r"\.")):
        read_recipe("tiny-1.2", {name: value})


def test_batches_of_shots_are_functions_of_the_step(shots):
    recipe, data = shots
    seen = set()
    for step in (0, 2000, 2001, *range(9000, 9040)):
        batch, again = data.batch(recipe, step), data.batch(recipe, step)
        assert batch.captions == again.captions and (batch.noise == again.noise).all()
        B, _, T, H, W = batch.x_0.shape
        assert (batch.height, batch.width) == (H * 8, W * 8) and batch.x_mask.shape == (B, T)
        assert batch.x_mask.any(1).all() and (batch.t > 0).all() and (batch.t < 1000).all()
        assert (batch.fps == 120).all() == (T == 1)
        seen.add(T)
    assert seen == {1, 5, 10, 15}


def test_conditioning_images_of_shots_are_encoded_as_references(shots):
    recipe, _ = shots
    clips = [shot_at(recipe.world, i) for i in range(4)]
    rows = np.arange(3, dtype=np.float16)[:, None, None, None, None]  # of the clip, of images, of references
    latents = [np.broadcast_to(rows, (3, 4, 5, 8, 8))] * 4
    clips = [replace(clip, num_frames=17, height=64, width=64) for clip in clips]
    only = replace(recipe.diffusion, frame_masks={"image_head_tail": 1.0})
    batch = ShotLatents(clips, latents).batch(replace(recipe, diffusion=only), 2000)
    kept = ~batch.x_mask
    assert (kept == [True, False, False, False, True]).all()
    assert (batch.x_0[kept.nonzero()[0], :, kept.nonzero()[1]] == 2).all()
    assert batch.x_0.sum() == 2 * kept.sum() * 4 * 64


def test_long_shots_are_continued_from_a_chunk():
    masks = [flow_mask("quarter_head", 15, np.random.default_rng(i)) for i in range(40)]
    assert {(~mask).sum() for mask in masks} >= {1, 2, 3, 5} and all(mask[5:].all() for mask in masks)


@pytest.mark.parametrize("T, r", [(1, 1.0), (5, 5**0.5)])
def test_times_are_logit_normal_and_transformed(shots, T, r):
    d = replace(shots[0].diffusion, uniform_times=0.0)
    t = flow_times(d, np.random.default_rng(0), 4000, T, 64, 64) / 1000
    before = t / (r - (r - 1) * t)
    normal = np.log(before / (1 - before))
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01


def test_a_stage_has_values_of_its_own(shots):
    """Of times, captions and masks; the other stages keep those of the recipe."""
    recipe, data = shots
    usual, last = recipe.diffusion.stages[0], recipe.diffusion.stages[-1]
    own = replace(last, lengths={5: 1.0}, times=(600, 980), full_captions=1.0, scores=1.0, frame_masks={"none": 1.0})
    changed = replace(recipe, diffusion=replace(recipe.diffusion, stages=(usual, own)))
    for step in range(usual.steps, usual.steps + 10):
        batch = data.batch(changed, step)
        assert (batch.t >= 600).all() and (batch.t <= 980).all() and batch.x_mask.all()
        assert all("camera motion: " in caption for caption in batch.captions)
    assert sum((data.batch(changed, step).t < 600).any() for step in range(10)) == 10
    with pytest.raises(OpenSoraError, match="times"):
        replace(last, times=(900, 600))


@pytest.mark.parametrize("kind", range(12))
def test_batches_of_the_video_vae(kind):
    recipe = read_recipe("tiny-1.2")
    clips = [shot_at(recipe.world, i, ("17x64x64", "17x48x80")) for i in range(4)]
    counted = np.arange(17, dtype=np.uint8)[:, None, None, None]
    frames = [np.broadcast_to(counted, (17, c.height, c.width, 3)) for c in clips]
    latents = [np.zeros((4, 17, c.height // 8, c.width // 8), np.float16) for c in clips]
    x, pixels, noise, still, decoded = VideoPairs(clips, frames, latents, 6).batch(recipe.vae.decoder, 0, 1, kind)
    B, _, T, h, w = x.shape
    assert pixels.shape == (B, 3, T, 8 * h, 8 * w) and noise.shape == (B, 6, -(-T // 4), h, w)
    assert (np.diff(pixels[:, 0, :, 0, 0], axis=1) > 0).all() and not (still and T < 17)
    assert len(set(decoded)) == min(T, recipe.vae.decoder.decoded) and decoded.max() < T
