"""The commands of `opensora-lite`: for each a function that adds its options, and one that runs it.

A command that returns a number returns the exit code. Mistakes are an OpenSoraError before any work starts. Paddle,
dask and tqdm are imported where they are used, since they take seconds.
"""

import argparse
import math
import sys
import time
from dataclasses import replace

from opensora_lite.errors import OpenSoraError
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import Settings, model_defaults, model_spec
from opensora_lite.tools.generate import (
    add_encode_options,
    add_generate_options,
    encode_text,
    generate,
    refuse_existing,
)
from opensora_lite.tools.info import add_info_options, info
from opensora_lite.tools.options import SEVERAL, add_device, add_settings, as_path, chosen_settings, settings_from
from opensora_lite.tools.stopping import reports_when_stopped, stop_if_asked


def add_explain_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite explain`."""
    parser.add_argument("strategy", help='such as "0;0,1,0,-1,1"')
    parser.add_argument(
        "--references", type=int, metavar="N", **SEVERAL, help="number of frames of each reference; 1 is a picture [1]"
    )
    parser.add_argument("--model", default="tiny", help="for 1.2, strategies count latent frames [tiny]")
    add_settings(parser, "num_frames", "loops", "condition_frames", num_frames=16, loops=1)


def explain(a: argparse.Namespace) -> None:
    """Print what a mask strategy does."""
    strategy, references = MaskStrategy.parse(a.strategy), a.references or [1]
    s, generation = settings_from(a, Settings()), model_spec(a.model).generation
    taken_over = s.condition_frames or 0
    if s.loops > 1:
        generation.check_loops(s.num_frames, taken_over)
    strategy.explain(s.num_frames, references, s.loops, generation)  # raises for what the user has written
    latents = generation.latent_frames(taken_over)
    if latents != taken_over:
        print(f"each loop takes over {taken_over} frames, which are {latents} latents")
    strategy = strategy.continued(s.loops, latents, len(references))
    print(strategy.explain(s.num_frames, references, s.loops, generation))


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite evaluate`."""
    parser.epilog = "Defaults are in brackets; those of Open-Sora 1.2 are its model's, with 12 denoising steps."
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny", or a folder with stdit/, t5/ and vae/ [tiny]')
    add("--prompts", type=int, default=100, metavar="N", help="how many of the 100 prompts [100]")
    add("--runs", type=int, default=8, metavar="N", help="runs of each of the five tasks with references; may be 0 [8]")
    add("--out", type=as_path, metavar="FOLDER", help="where report.json and sheet.png are saved")
    add("--overwrite", action="store_true", help="replace those of an earlier evaluation")
    add("--compare", type=as_path, nargs=2, metavar=("BEFORE", "AFTER"), help="print two report.json side by side")
    settings = ("num_frames", "image_size", "fps", "num_sampling_steps", "sampler", "guidance_scale", "seed")
    add_settings(parser, *settings, "batch_size", batch_size=4)
    add_device(parser)


def evaluate(a: argparse.Namespace) -> None:
    """Print and save a report about a model, or compare two."""
    from opensora_lite.liteworld.evaluate import Report, check_folder, check_request, compare, evaluate, save

    if a.compare and a.out:
        raise OpenSoraError("--compare prints two existing reports; leave out --out")
    if a.compare:
        print(compare(*(Report.read(path) for path in a.compare)))
        return
    check_request(settings_from(a, model_defaults(a.model)[0]), a.prompts, a.runs)
    if a.out:
        check_folder(a.out)
        if not a.overwrite:
            refuse_existing([a.out / "report.json", a.out / "sheet.png"])

    from tqdm import tqdm

    from opensora_lite.pipeline import OpenSora

    pipe = OpenSora.from_pretrained(a.model, device=a.device)
    with tqdm(unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_progress(done: int, total: int) -> None:
            stop_if_asked()
            bar.total = total
            bar.update(done - bar.n)

        report = evaluate(pipe, a.prompts, a.runs, on_progress=on_progress, **chosen_settings(a))
    report = replace(report, model=a.model)
    print(report.table())
    for path in save(report, a.out) if a.out else ():
        print(f"saved {path.resolve()}")


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite train`."""
    parser.epilog = (
        "Several GPUs: python -m paddle.distributed.launch --gpus 0,1 .venv/bin/opensora-lite train RECIPE --out FOLDER"
    )
    add = parser.add_argument
    add(
        "recipe", help='a YAML file, or one of the package\'s: "first_steps" (a minute), "tiny" or "tiny-1.2" (a night)'
    )
    add("--out", type=as_path, required=True, metavar="FOLDER", help="of the run, new or of this recipe")
    add("--set", **SEVERAL, default=[], metavar="NAME=VALUE", help="replace fields, such as diffusion.min_snr=null")
    add("--prepare", action="store_true", help="stop before T5 and the transformer are trained")
    add_device(parser)


def train(a: argparse.Namespace) -> None:
    """Train a model, or continue a run."""
    from opensora_lite.training.recipe import read_recipe

    changes = dict(change.split("=", 1) if "=" in change else (change, None) for change in a.set)
    if None in changes.values():
        raise OpenSoraError(f"--set takes NAME=VALUE, such as diffusion.min_snr=null, not {' '.join(a.set)}")
    recipe = read_recipe(a.recipe, changes)

    from opensora_lite.device import import_paddle

    import_paddle()
    from opensora_lite.training import train

    last, losses, start = None, [], time.perf_counter()
    printed = start

    def on_step(progress) -> None:
        nonlocal last, printed
        stop_if_asked()
        last, step = progress, progress.record.step
        losses.append(progress.record.loss)
        if time.perf_counter() - printed < 10 and step < progress.steps:
            return
        hours, minutes = divmod(round(progress.seconds_left / 60), 60)
        say(
            f"{progress.stage}: step {step} of {progress.steps}, loss {sum(losses) / len(losses):.4f},"
            f" {progress.steps_per_second:.2f} steps/s, {hours} h {minutes} min left"
        )
        losses.clear()
        printed = time.perf_counter()

    def say(text: str) -> None:
        print(text, flush=True)

    def saved() -> str:
        if last is None:
            return "no step was taken; the same command continues"
        stage, step = last.stage, last.record.step
        return f"{step} steps of {stage} were taken; the same command continues from step {last.saved}, which is saved"

    with reports_when_stopped(saved):
        done = train(recipe, a.out, device=a.device, prepare=a.prepare, on_step=on_step, say=say)
    seconds = time.perf_counter() - start
    if a.prepare:
        say(f"prepared in {seconds:.0f} s; without --prepare, the same command continues")
    else:
        say(f"trained in {seconds:.0f} s; try it: opensora-lite generate --model {done.folder} --prompt …")


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite convert`."""
    parser.epilog = "Nothing in the files is executed. PyTorch is not needed, and memory for one tensor only."
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help=".pt, .pth, .ckpt or .bin of PyTorch, or .pdparams; all shards")
    add("--out", type=as_path, required=True, metavar="FILE", help="NAME.safetensors, beside the model's config.json")
    add("--table", metavar="NAME", help="which of several, such as model or ema, in files that hold more than one")
    add("--overwrite", action="store_true", help="replace the file if it exists")


def convert(a: argparse.Namespace) -> None:
    """Write the tensors of pickles as one safetensors file."""
    from opensora_lite.io.convert import convert

    if a.out.suffix != ".safetensors":
        raise OpenSoraError(f"--out {a.out} must be a file NAME.safetensors")
    if not a.overwrite:
        refuse_existing([a.out])
    tensors = convert(a.files, a.out, a.table)
    values = sum(math.prod(tensor.shape) for tensor in tensors.values())
    print(f"saved {a.out.resolve()}: {len(tensors)} tensors, {values / 1e6:.2f} M values")


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite sweep`."""
    parser.epilog = (
        "The same command continues a sweep that was stopped, and tries failed runs again. Exit code 1: runs failed."
        " A notebook is a program, and so is what a scheduler sends: give only those that you trust."
    )
    add = parser.add_argument
    add("grid", type=as_path, help="a YAML file with notebook, parameters, grid, runs (example: tools/grid.py)")
    add("--out", type=as_path, required=True, metavar="FOLDER", help="for the runs, their table and a page of videos")
    add("--overwrite", action="store_true", help="replace tables and a page that are not a sweep's")
    add("--notebook", type=as_path, metavar="FILE", help="instead of the grid's [the course's 13_generate.ipynb]")
    add("--workers", type=int, default=2, metavar="N", help="notebooks that run at once on this machine [2]")
    paths = "its workers run the notebooks, and need the notebook's folder and --out under the same paths"
    add("--scheduler", metavar="ADDRESS", help=f"tcp://host:port of a dask scheduler instead; {paths}")


def sweep(a: argparse.Namespace) -> int:
    """Run a notebook with every combination of parameters."""
    from opensora_lite.tools.grid import describe, read_grid
    from opensora_lite.tools.results import FILES
    from opensora_lite.tools.sweep import sweep

    grid = read_grid(a.grid, a.notebook)
    if not a.overwrite and not any(a.out.glob("*-????????????.ipynb")):  # the notebook of an earlier sweep
        refuse_existing(a.out / name for name in FILES)

    from tqdm import tqdm

    done = 0
    with tqdm(unit="run", disable=not sys.stderr.isatty()) as bar:

        def on_progress(finished: int, failed: int, total: int) -> None:
            nonlocal done
            stop_if_asked()
            done = finished + failed
            bar.total = total
            bar.set_postfix(failed=failed)
            bar.update(done - bar.n)

        def say(text: str) -> None:
            bar.write(text, file=sys.stdout)

        rest = "the same command continues with the others"
        with reports_when_stopped(lambda: f"{done} of {len(grid.runs)} runs are done and saved; {rest}"):
            table = sweep(grid, a.out, a.workers, a.scheduler, say=say, on_progress=on_progress)
    failed = table["status"] == "failed"
    for run, error, notebook in zip(grid.runs, table["error"], table["notebook"], strict=True):
        if isinstance(error, str):
            where = f" (see {a.out / notebook})" if isinstance(notebook, str) else ""
            print(f"failed: {describe(grid.chosen(run))}: {error}{where}")
    print(f"{(~failed).sum()} finished, {failed.sum()} failed, of {len(table)}: {(a.out / 'index.html').resolve()}")
    return int(failed.any())


COMMANDS = {  # all but doctor, which must run without the packages that this module imports
    "generate": (add_generate_options, generate),
    "encode-text": (add_encode_options, encode_text),
    "explain": (add_explain_options, explain),
    "info": (add_info_options, info),
    "evaluate": (add_evaluate_options, evaluate),
    "train": (add_train_options, train),
    "convert": (add_convert_options, convert),
    "sweep": (add_sweep_options, sweep),
}
