"""A training run: render the clips, train the VAE, encode the clips, train T5 and the transformer.

`train` is the story; `stages` has its chapters, for recipes of Open-Sora 1.1 (Recipe) and 1.2 (VideoRecipe).

out/recipe.json         the recipe; a run is resumed only with an equal one
out/state/              of each stage a checkpoint and the losses (diffusion.safetensors, diffusion_losses.csv); latents
out/sheets/             samples during training
out/vae, t5, stdit      the model for `OpenSora.from_pretrained(out)`, with pipeline.json
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist

from opensora_lite.device import set_device
from opensora_lite.errors import OpenSoraError
from opensora_lite.io.files import write_json
from opensora_lite.pipeline import OpenSora
from opensora_lite.request import Job, ModelSpec, Settings, plan
from opensora_lite.runtime.offload import Resident
from opensora_lite.training.recipe import Recipe, VideoRecipe, read_recipe
from opensora_lite.training.stages import Stages, Stages11, Stages12, count, wait_for
from opensora_lite.training.trainer import Progress, Record, read_records
from opensora_lite.video import Video

HARMLESS = ("save_every", "sheet_every", "sheet_prompts")  # may differ in a resumed run


@dataclass(frozen=True)
class Trained:
    """The result of a run: the model folder and the records of all steps of each stage, [] where there is none."""

    folder: Path
    vae: list[Record]  # the frame VAE (1.1)
    temporal: list[Record]  # the temporal VAE (1.2)
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

    recipe: a Recipe or VideoRecipe, a path, or the name of a recipe of the package ("tiny", "tiny-1.2", "first_steps").
    device: as in `OpenSora.from_pretrained`. prepare: stop before T5 and the transformer are trained; `out` then has
    the VAE, the latents of the clips and initialized models. on_step: called with a Progress after every step. say:
    called with a line of text between stages.
    Raises OpenSoraError, before anything is written, for an impossible recipe or if `out` holds another run.
    """
    recipe = read_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    out = Path(out)
    # 1. check everything before anything is written or rendered
    set_device(device)
    start_processes(recipe)
    stages = (Stages12 if isinstance(recipe, VideoRecipe) else Stages11)(recipe, out, on_step, say)
    settings, spec = Settings(**stages.settings, seed=recipe.seed), ModelSpec(generation=stages.generation)
    draws = recipe.sheet_every and recipe.sheet_prompts
    jobs = plan(recipe.sheet_prompts, settings=settings, spec=spec) if draws else []
    claim(out, stages)

    # 2. the VAE and the latents of the clips
    stages.train_vae()
    latents = stages.encode_clips()

    # 3. T5 and the transformer
    trainer = stages.diffusion_trainer(latents)
    title = f"T5 and {type(stages.stdit).__name__}"
    say(f"{title}: {count(trainer):,} parameters, step {trainer.step} of {recipe.diffusion.steps}")
    while not (trainer.done or prepare):
        every = recipe.sheet_every or recipe.diffusion.steps
        trainer.fit(until=(trainer.step // every + 1) * every)
        if jobs and dist.get_rank() == 0:
            with trainer.averaged():
                pipe = OpenSora(Resident(stages.stdit, stages.text, stages.vae), settings, spec)
                draw_sheet(pipe, jobs, out / "sheets" / f"step_{trainer.step:06d}.png")
                stages.export()
    if dist.get_rank() == 0:
        with trainer.averaged():
            stages.export()
    vae = {name: read_records(out / "state" / f"{name}_losses.csv") for name in ("vae", "temporal", "decoder")}
    return Trained(out, **vae, diffusion=trainer.history)


def start_processes(recipe: Recipe | VideoRecipe):
    """Initialize data parallel training under paddle.distributed.launch.

    Raises OpenSoraError if the batches can't be divided evenly among the processes.
    """
    if dist.ParallelEnv().world_size > 1 and not dist.is_initialized():
        use_plain_store()
        dist.init_parallel_env()
    n, sizes = dist.get_world_size(), sorted(recipe.batch_sizes)
    if any(size % n for size in sizes):
        raise OpenSoraError(f"batches of {sizes} can't be divided among {n} processes; choose multiples of {n}")


def use_plain_store():
    """Let the processes meet through Paddle's older TCP store.

    The one on libuv, Paddle 3's default, aborts at times (SIGABRT, one run in six on a busy machine) when process 0
    ends, and paddle.distributed.launch then reports the run as failed.
    """
    flag = "FLAGS_tcp_store_using_libuv"
    if flag in paddle.base.core.globals():  # Paddle 2.6 has only the older one
        paddle.set_flags({flag: False})


def claim(out: Path, stages: Stages):
    """Make `out` the folder of this run. Raises OpenSoraError if it holds another run or other files."""
    path, recipe = out / "recipe.json", stages.recipe
    if dist.get_rank() > 0:
        return wait_for(path)
    if (out / "state" / "diffusion_torch.pt").exists():
        raise OpenSoraError(f"{out} is a run of tests/peers/{stages.twin}; resume it with that script")
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


def differences(a: dict, b: dict, where: str = "") -> list[str]:
    """The dotted names of the values in which two nested dictionaries differ."""
    names = []
    for key in sorted(set(a) | set(b)):
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            names += differences(a[key], b[key], f"{where}{key}.")
        elif a.get(key) != b.get(key):
            names.append(f"{where}{key}")
    return names


def draw_sheet(pipe: OpenSora, jobs: list[Job], path: Path):
    """Generate the videos of jobs and save them as one image, a row of up to eight frames each."""
    videos = [video for _, video in pipe.generate(jobs, pipe.settings)]
    rows = [np.asarray(video.contact_sheet(frames=video.spread(8), labels=False)) for video in videos]
    Video(np.concatenate(rows)[None]).save(path)
