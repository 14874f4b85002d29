"""A training run: render the clips, train the VAE, encode the clips, train T5 and STDiT2.

out/recipe.json         the recipe; a run is resumed only with an equal one
out/state/              checkpoints (vae, decoder, diffusion.safetensors), losses, latents of the clips
out/sheets/             samples during training
out/vae, t5, stdit      the model for `OpenSora.from_pretrained(out)`, with pipeline.json
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist

from opensora_lite.device import set_device
from opensora_lite.errors import OpenSoraError
from opensora_lite.io.checkpoints import read_safetensors
from opensora_lite.io.files import write_json, write_safetensors
from opensora_lite.liteworld import world
from opensora_lite.pipeline import OpenSora
from opensora_lite.request import Settings, plan
from opensora_lite.runtime.offload import Resident
from opensora_lite.training import models
from opensora_lite.training.data import Batch, Latents, Pictures, clip_at
from opensora_lite.training.losses import TrainingSchedule, training_losses, vae_loss
from opensora_lite.training.recipe import PictureLearning, Recipe, VideoRecipe, parse_size, read_recipe
from opensora_lite.training.trainer import Progress, Record, Trainer, read_records
from opensora_lite.vae import FrameVAE, load_vae
from opensora_lite.video import Video

HARMLESS = ("save_every", "sheet_every", "sheet_prompts")  # may differ in a resumed run


@dataclass(frozen=True)
class Trained:
    """The result of a run: the model folder and the records of all steps of each stage."""

    folder: Path
    vae: list[Record]
    decoder: list[Record]
    diffusion: list[Record]


def train(
    recipe: Recipe | VideoRecipe | str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    prepare: bool = False,
    on_step: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train a model by `recipe` in the folder `out`; resumes an interrupted run.

    recipe: a Recipe, a path, or the name of a recipe of the package ("tiny", "first_steps").
    device: as in `OpenSora.from_pretrained`. prepare: stop before T5 and STDiT2 are trained; `out` then has the VAE,
    the latents of the clips and initialized models. on_step: called with a Progress after every step. say: called with
    a line of text between stages.
    Raises OpenSoraError, before anything is written, for an impossible recipe or if `out` holds another run.
    """
    recipe = read_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if not isinstance(recipe, Recipe):
        raise OpenSoraError(
            "Paddle doesn't train recipes of Open-Sora 1.2 yet; tests/peers/train_video_vae_torch.py and"
            " train_flow_torch.py do"
        )
    out = Path(out)
    # 1. check everything before anything is written or rendered
    set_device(device)
    start_processes(recipe)
    rng = np.random.default_rng([recipe.seed, 0])
    text, stdit = models.new_text_encoder(recipe.diffusion, rng), models.new_stdit(recipe.diffusion, rng)
    vae = models.new_vae(recipe.vae, recipe.seed)
    settings = sheet_settings(recipe)
    jobs = plan(recipe.sheet_prompts, settings=settings) if recipe.sheet_every else []
    claim(out, recipe)

    # 2. the VAE and the latents of the clips
    clips = [clip_at(recipe.world, i) for i in range(recipe.world.clips)]
    vae = train_vae(recipe, vae, clips, out, on_step, say)
    latents = Latents(clips, make_latents(recipe, clips, vae, out, say))

    # 3. T5 and STDiT2
    trainer = diffusion_trainer(recipe, text, stdit, latents, out / "state", on_step)
    say(f"T5 and STDiT2: {count(trainer):,} parameters, step {trainer.step} of {recipe.diffusion.steps}")
    while not (trainer.done or prepare):
        every = recipe.sheet_every or recipe.diffusion.steps
        trainer.fit(until=(trainer.step // every + 1) * every)
        if jobs and dist.get_rank() == 0:
            with trainer.averaged():
                path = out / "sheets" / f"step_{trainer.step:06d}.png"
                draw_sheet(OpenSora(Resident(stdit, text, vae)), jobs, settings, path)
                export(recipe, out, text, stdit)
    if dist.get_rank() == 0:
        with trainer.averaged():
            export(recipe, out, text, stdit)
    vae_records, decoder_records = (read_records(out / "state" / f"{stage}_losses.csv") for stage in ("vae", "decoder"))
    return Trained(out, vae_records, decoder_records, trainer.history)


def start_processes(recipe: Recipe):
    """Initialize data parallel training under paddle.distributed.launch.

    Raises OpenSoraError if the batches can't be divided evenly among the processes.
    """
    if dist.ParallelEnv().world_size > 1 and not dist.is_initialized():
        use_plain_store()
        dist.init_parallel_env()
    n = dist.get_world_size()
    batches = {stage.batch_of(length) for stage in recipe.diffusion.stages for length in stage.lengths}
    batches |= {stage.batch for stage in recipe.vae.stages.values()}
    if any(batch % n for batch in batches):
        raise OpenSoraError(
            f"batches of {sorted(batches)} can't be divided among {n} processes; choose multiples of {n}"
        )


def use_plain_store():
    """Let the processes meet through Paddle's older TCP store.

    The one on libuv, Paddle 3's default, aborts at times (SIGABRT, one run in six on a busy machine) when process 0
    ends, and paddle.distributed.launch then reports the run as failed.
    """
    flag = "FLAGS_tcp_store_using_libuv"
    if flag in paddle.base.core.globals():  # Paddle 2.6 has only the older one
        paddle.set_flags({flag: False})


def claim(out: Path, recipe: Recipe):
    """Make `out` the folder of this run. Raises OpenSoraError if it holds another run or other files."""
    path = out / "recipe.json"
    if dist.get_rank() > 0:
        return wait_for(path)
    if (out / "state" / "diffusion_torch.pt").exists():
        raise OpenSoraError(f"{out} is a run of tests/peers/train_torch.py; resume it with that script")
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OpenSoraError(f"{out} exists and is not the folder of a training run; choose a new one")
        write_json(path, recipe.to_dict())
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in differences(before, recipe.to_dict()) if name not in HARMLESS]
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise OpenSoraError(f"{path} can't be read ({error}); choose another folder") from error
    if other:
        raise OpenSoraError(
            f"{out} holds a run of another recipe ({', '.join(other)} differ); choose another folder or remove this"
        )


def wait_for(path: Path):
    """Wait until another process has written a file; a barrier would time out after half an hour."""
    while not path.exists():
        time.sleep(0.5)


def differences(a: dict, b: dict, where: str = "") -> list[str]:
    """The dotted names of the values in which two nested dictionaries differ."""
    names = []
    for key in sorted(set(a) | set(b)):
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            names += differences(a[key], b[key], f"{where}{key}.")
        elif a.get(key) != b.get(key):
            names.append(f"{where}{key}")
    return names


# ---------------------------------------------------------------------------------------------------------------------
#   Stages
# ---------------------------------------------------------------------------------------------------------------------


def train_vae(recipe: Recipe, vae: FrameVAE, clips: list, out: Path, on_step, say) -> FrameVAE:
    """The VAE of out/vae, trained first if it doesn't exist."""
    v, config = recipe.vae, out / "vae" / "config.json"
    if v.stages and not config.exists():
        clips = clips[: v.clips]
        say(f"rendering {len(clips)} clips for the VAE")
        pictures = Pictures(clips, [clip.render(recipe.world.num_frames) for clip in clips])
        for name, stage in v.stages.items():
            if name == "decoder":
                freeze(vae.model.encoder, vae.model.quant_conv)
            trainer = picture_trainer(name, recipe, stage, vae, pictures, out / "state", on_step)
            title = {"vae": "VAE", "decoder": "VAE decoder"}[name]
            say(f"{title}: {count(trainer):,} parameters, step {trainer.step} of {stage.steps}")
            trainer.fit()
            trainer.finish()
        if v.init is None:
            vae.scaling_factor = 1.0
            sample = [vae.encode_frames(clip.render(recipe.world.num_frames)).ravel() for clip in clips[:100]]
            vae.scaling_factor = 1 / float(np.concatenate(sample).std())  # latents of standard deviation 1
    if dist.get_rank() == 0 and not config.exists():
        models.export_vae(out, vae)
    wait_for(config)
    return load_vae(out / "vae")  # in float16 precision, as in a resumed run


def count(trainer: Trainer) -> int:
    """The number of trained parameters."""
    return sum(p.size for p in trainer.parameters.values())


def freeze(*layers):
    """Exclude layers from further training."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.stop_gradient = True


def picture_trainer(name, recipe: Recipe, stage: PictureLearning, vae, pictures, folder: Path, on_step) -> Trainer:
    """The Trainer of a VAE stage, resumed if there is a checkpoint."""
    rank, processes = dist.get_rank(), dist.get_world_size()

    def loss(step):
        batch, noise = (part[rank::processes] for part in pictures.batch(stage, recipe.seed, step))
        size = "x".join(map(str, batch.shape[2:]))
        return vae_loss(vae.model, paddle.to_tensor(batch), paddle.to_tensor(noise), stage), size

    return Trainer(name, {"vae": vae.model}, stage, loss, folder, recipe.save_every, on_step)


def make_latents(recipe: Recipe, clips: list, vae: FrameVAE, out: Path, say) -> list[np.ndarray]:
    """Scaled latents of the clips, float16 [C, T, h, w] each; computed once, then read from out/state."""
    path = out / "state" / "latents.safetensors"
    if dist.get_rank() == 0 and not path.exists():
        say(f"encoding {len(clips)} clips")
        frames = (clip.render(recipe.world.num_frames) for clip in clips)
        write_safetensors(path, {str(i): vae.encode_frames(each).astype(np.float16) for i, each in enumerate(frames)})
    wait_for(path)
    tensors = read_safetensors(path)
    return [np.array(tensors[str(i)].read()) for i in range(len(clips))]


def diffusion_trainer(recipe: Recipe, text, stdit, latents: Latents, folder: Path, on_step=None) -> Trainer:
    """The Trainer of T5 and STDiT2, resumed if there is a checkpoint."""
    schedule, weights = TrainingSchedule(), paddle.to_tensor(recipe.diffusion.loss_weights())
    rank, processes = dist.get_rank(), dist.get_world_size()

    def loss(step):
        batch = latents.batch(recipe, step).part(rank, processes)
        losses = diffusion_losses(stdit, text, schedule, batch, weights)
        return losses["loss"].mean(), f"{batch.x_0.shape[2]}x{batch.height}x{batch.width}"

    both = {"stdit": stdit, "t5": text.model}
    return Trainer("diffusion", both, recipe.diffusion, loss, folder, recipe.save_every, on_step)


def diffusion_losses(stdit, text, schedule: TrainingSchedule, batch: Batch, weights=None) -> dict:
    """`training_losses` of a Batch, with gradients of STDiT2 and T5."""
    ids, mask = (paddle.to_tensor(array) for array in text.tokenize(batch.captions))
    y = text.model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state[:, None]
    # as released: the null caption has the caption's length and mask, as in CFG
    null = stdit.null_caption[: y.shape[2]].expand(y.shape)
    y = paddle.where(paddle.to_tensor(batch.dropped)[:, None, None, None], null, y)
    x_0, t, noise = (paddle.to_tensor(array) for array in (batch.x_0, batch.t, batch.noise))
    conditions = {name: paddle.to_tensor(value) for name, value in batch.conditions.items()}
    x_mask = paddle.to_tensor(batch.x_mask)
    return training_losses(stdit, schedule, x_0, t, noise, y, mask, x_mask, weights, **conditions)


# ---------------------------------------------------------------------------------------------------------------------
#   Export and samples
# ---------------------------------------------------------------------------------------------------------------------


def export(recipe: Recipe, out: Path, text, stdit):
    """Write stdit/, t5/ and pipeline.json."""
    models.export_stdit(out, stdit)
    models.export_text_encoder(out, text)
    write_json(out / "pipeline.json", pipeline_defaults(recipe))


def pipeline_defaults(recipe: Recipe) -> dict:
    """pipeline.json: default Settings of the model, and the sizes and words it was trained on."""
    w = recipe.world
    sizes = [parse_size(size) for size, _ in Counter(w.sizes).most_common()]
    longest = max(length for stage in recipe.diffusion.stages for length in stage.lengths)
    return dict(
        num_frames=longest,
        image_size=list(sizes[0]),
        fps=Counter(w.fps).most_common(1)[0][0],
        frame_interval=1,
        num_sampling_steps=30,
        guidance_scale=4.0,
        cfg_channel=None,
        trained_sizes=[list(size) for size in sizes],
        known_words=world.vocabulary(),
    )


def sheet_settings(recipe: Recipe) -> Settings:
    """Settings of the sample sheets: those of the finished model, with the recipe's seed."""
    values = pipeline_defaults(recipe)
    del values["trained_sizes"], values["known_words"]
    return Settings(**{**values, "seed": recipe.seed})


def draw_sheet(pipe: OpenSora, jobs: list, settings: Settings, path: Path):
    """Generate the videos of jobs and save them as one image, a row of up to eight frames each."""
    rows = [
        np.asarray(video.contact_sheet(frames=video.spread(8), labels=False))
        for _, video in pipe.generate(jobs, settings)
    ]
    Video(np.concatenate(rows)[None]).save(path)
