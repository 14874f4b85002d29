"""The command line: `opensora-lite generate`, `encode-text`, `explain`, `evaluate`, `train`, `sweep` and `doctor`.

`generate` takes the flags of PaddleMIX's Open-Sora example, in either spelling (--frame-interval, --frame_interval).
Everything that can be wrong is checked before a model is loaded; errors are one message and exit code 2. What exists is
only replaced where --overwrite is given. Of the paths that are given, `sweep` executes its notebook, and none of the
other commands executes anything.
"""

import argparse
import contextlib
import gc
import io
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from opensora_lite.device import import_paddle
from opensora_lite.errors import CheckpointError, OpenSoraError, PromptError

SUFFIXES = ("mp4", "gif", "png")
MAX_NAME = 200  # bytes of a file name, without numbers and suffix; most file systems take 255 in all
SWEPT = ("results.csv", "results.parquet", "index.html")  # beside the runs of a sweep


def main(argv: list[str] | None = None) -> int:
    """Run a command; argv: its words, None for those of the process.

    Returns the exit code: 0, 1 where runs of a sweep failed or `doctor` found that no video can be made, 2 for what a
    person can mend, 130 after Ctrl-C, 143 after SIGTERM, which job schedulers and containers send, and which stops a
    command as Ctrl-C does.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's have no encoding
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    arguments = parser().parse_args([with_hyphens(argument) for argument in (sys.argv[1:] if argv is None else argv)])
    try:
        with _stoppable():
            return arguments.run(arguments) or 0
    except OpenSoraError as error:
        print(f"opensora-lite: error: {error}", file=sys.stderr)
        return 2
    except (OSError, RecursionError) as error:  # a name that is too long, brackets nested thousands deep …
        print(f"opensora-lite: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"opensora-lite: error: there is not enough memory ({str(error) or 'none is left'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"opensora-lite: stopped; {str(stop) or 'nothing was saved'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        if argv is None:  # the process ends: half a second is saved that Python would search all of Paddle for garbage
            gc.freeze()


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


_stops: list[type[KeyboardInterrupt]] = []  # signals to stop that have come since the command began


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process
    _stops.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
    raise _stops[-1]


def _go_on() -> None:
    """Called after every step: stop all the same where an interrupt fell into a callback, and was only printed."""
    if _stops:
        raise _stops[-1]


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt and Terminated, so that what is half-written is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # which has no signals
        yield
        return
    _stops.clear()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stops.clear()


@contextlib.contextmanager
def _when_stopped(saved: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM inside say what was saved until then; compiled code may make another error of them."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not _stops and not isinstance(error, KeyboardInterrupt):
            raise
        raise (_stops[-1] if _stops else type(error))(saved()) from None


def parser() -> argparse.ArgumentParser:
    """All commands and their flags; `run` of what is parsed is the function of the command."""
    top = argparse.ArgumentParser(prog="opensora-lite", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    brackets = "In brackets: the defaults. README.md shows the five tasks."
    p = commands.add_parser("generate", help="turn prompts into videos", epilog=brackets)
    p.set_defaults(run=generate)
    add = p.add_argument_group("what").add_argument
    several: dict[str, Any] = dict(nargs="+", action="extend")
    add("--prompt", **several, help='prompts, each possibly with a suffix {"reference_path": …, "mask_strategy": …}')
    add("--prompt-path", type=as_path, help="a text file with a prompt on each line")
    add("--start-index", type=int, help="first line of the file that is used, from 0")
    add("--end-index", type=int, help="line of the file before which to stop")
    add("--reference-path", **several, help="references, one argument for each prompt; several paths are joined by ;")
    add("--mask-strategy", **several, help="mask strategies, one for each prompt")
    add = p.add_argument_group("the video").add_argument
    add("--num-frames", type=int, help="frames of one loop [16]")
    add("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels [64 64 with tiny, 256 256 else]")
    add("--fps", type=int, help="what the model is told [24]; the video plays at fps // frame-interval")
    add("--frame-interval", type=int, help="[1 with tiny, 3 else]")
    add("--loop", dest="loops", type=int, help="how often the video is continued, the first time included [1]")
    add(
        "--condition-frame-length",
        dest="condition_frames",
        type=int,
        help="frames a loop takes over from the one before",
    )
    add = p.add_argument_group("how").add_argument
    add("--num-sampling-steps", type=int, help="[30 with tiny, 100 else]")
    add("--sampler", help="iddpm, ddim or dpm-solver [iddpm]")
    add("--cfg-scale", dest="guidance_scale", type=float, help="guidance scale; 1 is without [4.0 with tiny, 7.0 else]")
    add("--cfg-channel", type=int, help="latent channels that are guided; 0 is all [0 with tiny, 3 else]")
    interval: dict[str, Any] = dict(
        metavar=("FIRST", "LAST"), help="times, 0 to 999, with guidance; outside, steps take half as long"
    )
    add("--guidance-interval", type=int, nargs=2, **interval)
    add(
        "--cache-threshold",
        "--reuse",
        type=float,
        help="take the model's last answer again until its input has moved so far, as 0.1 [0: off]",
    )
    add("--seed", type=int, help="the i-th video is made with seed + i [42]")
    add("--batch-size", type=int, help="videos made at once [1]")
    add("--num-sample", type=int, help="videos for each prompt [1]")
    add = p.add_argument_group("where to").add_argument
    add("--save-dir", type=as_path, default=Path("samples"), help="[samples]")
    add("--sample-name", help="files are named NAME_0, NAME_1, … [sample]")
    add("--prompt-as-path", action="store_true", help="name files after their prompts, and skip those that exist")
    add("--overwrite", action="store_true", help="replace files that exist; without it, they are an error")
    add("--skip-existing", action="store_true", help="make only the videos whose files are missing, with their seeds")
    add("--save-format", choices=SUFFIXES, help="[mp4; png for a single frame]")
    add = p.add_argument_group("the model").add_argument
    add("--model", help='"tiny", or a folder with stdit/, t5/ and vae/ [tiny]')
    add("--model-pretrained-path", dest="stdit", help="folder of OpenSora-STDiT-v2-stage3")
    add("--text-encoder-pretrained-path", dest="t5", help="folder of t5-v1_1-xxl")
    add("--vae-pretrained-path", dest="vae", help="folder of sd-vae-ft-ema")
    add("--device", help="cpu, gpu or gpu:1 [a GPU where there is one]")
    add("--dtype", help="fp32, fp16 or bf16 [fp16 on a GPU, fp32 on a CPU]")
    add("--micro-batch-size", type=int, help="frames that pass through the VAE at once [16, or as many as fit]")
    add("--sequential", action="store_true", help="never hold T5 and STDiT2 in memory together")
    add("--text-embeddings", type=as_path, help="what encode-text wrote; T5 is not loaded then")

    p = commands.add_parser("encode-text", help="let T5 read prompts, and keep what it says for generate")
    p.set_defaults(run=encode_text)
    add = p.add_argument
    add("--prompt", **several, help="as in generate, as are the next three")
    add("--prompt-path", type=as_path)
    add("--start-index", type=int)
    add("--end-index", type=int)
    add("--loop", dest="loops", type=int, default=1, help="of the videos, for prompts with a |0| schedule [1]")
    add("--out", type=as_path, required=True, help="the file, NAME.safetensors")
    add("--overwrite", action="store_true", help="replace it where it exists")
    add("--model", help='"tiny", or a folder with stdit/ (whose config.json is read) and t5/ [tiny]')
    add("--text-encoder-pretrained-path", dest="t5", help="folder of t5-v1_1-xxl, instead; 200 tokens are read then")
    add("--device", help="cpu, gpu or gpu:1 [a GPU where there is one]")
    add("--dtype", help="fp32, fp16 or bf16 [fp16 on a GPU, fp32 on a CPU]")

    p = commands.add_parser("explain", help="say in plain English what a mask strategy does")
    p.set_defaults(run=explain)
    p.add_argument("strategy", help='such as "0;0,1,0,-1,1"')
    add = p.add_argument
    add("--num-frames", type=int, default=16, help="frames of the video [16]")
    add("--references", type=int, **several, help="number of frames of each reference; 1 is a picture [1]")
    add("--loop", dest="loops", type=int, default=1, help="[1]")
    add("--condition-frame-length", dest="condition_frames", type=int, help="frames a loop takes over")

    p = commands.add_parser("evaluate", help="measure how well a model obeys, on 100 fixed prompts and the tasks")
    p.set_defaults(run=evaluate)
    add = p.add_argument
    add("--model", help='"tiny", or a folder with stdit/, t5/ and vae/ [tiny]')
    add("--prompts", type=int, default=100, help="how many of the 100 [100]")
    add("--runs", type=int, default=8, help="of each of the four tasks with references; 0 leaves them out [8]")
    add("--out", type=as_path, help="a folder for report.json and sheet.png")
    add("--overwrite", action="store_true", help="replace those of an earlier evaluation")
    add("--compare", type=as_path, nargs=2, metavar=("BEFORE", "AFTER"), help="print two report.json side by side")
    add("--num-frames", type=int, help="this and what follows: those of the model, as in generate")
    add("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    add("--fps", type=int)
    add("--num-sampling-steps", type=int)
    add("--sampler")
    add("--cfg-scale", dest="guidance_scale", type=float)
    add("--seed", type=int, help="prompt i is made with seed + i [42]")
    add("--batch-size", type=int, default=4, help="[4]")
    add("--device", help="cpu, gpu or gpu:1 [a GPU where there is one]")

    gpus = "Several GPUs: python -m paddle.distributed.launch --gpus 0,1 .venv/bin/opensora-lite train …"
    p = commands.add_parser("train", help="train a model, or go on with a run that was stopped", epilog=gpus)
    p.set_defaults(run=train)
    add = p.add_argument
    add("recipe", help='a YAML file, or one that comes with the package: "first_steps" (a minute) or "tiny" (a night)')
    add("--out", type=as_path, required=True, help="the folder of the run, new or of this recipe; at last the model's")
    add("--set", **several, default=[], metavar="NAME=VALUE", help="replace fields, such as diffusion.min_snr=null")
    add("--prepare", action="store_true", help="stop before T5 and STDiT2 are trained")
    add("--device", help="cpu, gpu or gpu:1 [a GPU where there is one]")

    again = "The same command goes on where a sweep was stopped, and tries failed runs again. Exit code 1: runs failed."
    again += " A notebook is a program, and so is what a scheduler sends: give only those that you trust."
    p = commands.add_parser("sweep", help="run a notebook with every combination of parameters", epilog=again)
    p.set_defaults(run=sweep)
    add = p.add_argument
    add("grid", type=as_path, help="a YAML file: notebook, parameters, grid, runs (example: opensora_lite/sweep.py)")
    add("--out", type=as_path, required=True, help=f"a folder for the runs, {', '.join(SWEPT)}")
    add("--overwrite", action="store_true", help="replace the latter three where they are not those of a sweep")
    add("--notebook", type=as_path, help="instead of the one that the file names [the course's 10_generate.ipynb]")
    add("--workers", type=int, default=2, help="notebooks that run at once on this machine [2]")
    where = "its workers run the notebooks, and need the notebook's folder and --out under the same paths"
    add("--scheduler", help=f"tcp://host:port of a dask scheduler instead: {where}")

    p = commands.add_parser("doctor", help="say what this machine has, what of it is slow or lacking, and what to do")
    p.set_defaults(run=doctor)
    return top


def as_path(text: str) -> Path:
    """A path that is given: --save-dir=~/videos is what the shell leaves as it is."""
    return Path(os.path.expanduser(text))


def with_hyphens(argument: str) -> str:
    """--cfg_scale=4 -> --cfg-scale=4: PaddleMIX's example has flags in both spellings."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def explain(a) -> None:
    """`opensora-lite explain`: print what the strategy a.strategy does. Raises OpenSoraError where it does not fit."""
    from opensora_lite.masks import MaskStrategy

    strategy = MaskStrategy.parse(a.strategy)
    references = a.references or [1]
    strategy.check(a.num_frames, references, a.loops)
    if a.loops == 1 and a.condition_frames is not None:
        raise OpenSoraError("--condition-frame-length is for more than one loop: --loop 2")
    if a.loops > 1 and not a.condition_frames:
        raise OpenSoraError("later loops begin with frames of the one before: say how many, --condition-frame-length 4")
    strategy = strategy.continued(a.loops, a.condition_frames or 0, len(references))
    print(strategy.explain(a.num_frames, references, a.loops))


def generate(a) -> None:
    """`opensora-lite generate`: make videos, and save each as soon as it is done. Raises OpenSoraError before that."""
    from opensora_lite.request import Settings, model_defaults, plan

    # 1. everything that can be said without a model
    released = any((a.stdit, a.t5, a.vae))
    if released and a.model is None and not all((a.stdit, a.t5 or a.text_embeddings, a.vae)):
        raise CheckpointError(
            "give all of --model-pretrained-path, --text-encoder-pretrained-path and --vae-pretrained-path, or none"
        )
    if a.text_embeddings and (a.t5 or a.sequential):
        raise OpenSoraError("with --text-embeddings no T5 is loaded: leave out its path and --sequential")
    model = "tiny" if a.model is None else a.model
    settings, trained_sizes = (Settings(), []) if released and a.model is None else model_defaults(model)
    chosen = {f.name: getattr(a, f.name) for f in fields(Settings) if getattr(a, f.name, None) is not None}
    if chosen.get("cfg_channel") == 0:
        chosen["cfg_channel"] = None
    settings = replace(settings, **chosen)
    jobs = plan(_prompts(a), a.reference_path, a.mask_strategy, settings)
    paths = _paths(a, jobs, settings)
    if a.overwrite and a.skip_existing:
        raise OpenSoraError("--overwrite replaces files that exist, --skip-existing keeps them; give one of the two")
    if a.skip_existing or (a.prompt_as_path and not a.overwrite):
        for path in filter(_exists, paths):
            print(f"{path} exists and is skipped")
        todo = [(job, path) for job, path in zip(jobs, paths, strict=True) if not _exists(path)]
        jobs, paths = [job for job, _ in todo], [path for _, path in todo]
    elif not a.overwrite:
        _refuse_existing(paths)
    if not jobs:
        return
    height, width = settings.image_size
    loops = ""
    if settings.loops > 1:
        loops = f" in {settings.loops} loops of {settings.num_frames}, each taking over {settings.condition_frames}"
    print(
        f"{len(jobs)} video(s) of {settings.total_frames} frames{loops}, {height}×{width} pixels:"
        f" {settings.sampler}, {settings.num_sampling_steps} steps, guidance {settings.guidance_scale:g}"
    )
    if trained_sizes and settings.image_size not in trained_sizes:
        sizes = ", ".join(f"{h}×{w}" for h, w in trained_sizes)
        print(f"note: this model was trained at {sizes}; at {height}×{width} given frames are kept, the others blurred")

    saved: list[Path] = []
    rest = "the same command with --skip-existing makes the others"
    with _when_stopped(lambda: f"{len(saved)} of {len(jobs)} video(s) are saved; {rest}"):
        _generate(a, jobs, paths, settings, saved)


def _generate(a, jobs: list, paths: list[Path], settings, saved: list[Path]) -> None:
    """Make the videos of jobs; each is saved as soon as it is done, and its path appended to `saved`."""
    from opensora_lite.device import resolve_dtype, set_device
    from opensora_lite.pipeline import OpenSora
    from opensora_lite.runtime.memory import for_settings, refuse_what_cannot_fit

    # 2. the model
    parts = dict(stdit=a.stdit, t5=a.t5, vae=a.vae)
    device = set_device(a.device)
    embeddings = None
    if a.text_embeddings:
        from opensora_lite.text import TextEmbeddings

        embeddings = TextEmbeddings.read(a.text_embeddings)
        embeddings.check(caption for job in jobs for caption in job.captions)
    estimate = for_settings(
        settings,
        model=a.model,
        **parts,
        dtype=resolve_dtype(a.dtype, device),
        device=device,
        micro_batch_size=max(a.micro_batch_size or 1, 1),
        sequential=a.sequential,
        text_encoder=embeddings is None,
    )
    refuse_what_cannot_fit(settings, estimate, device)
    start = time.perf_counter()
    pipe = OpenSora.from_pretrained(
        a.model,
        **parts,
        device=a.device,
        dtype=a.dtype,
        micro_batch_size=a.micro_batch_size,
        sequential=a.sequential,
        text_embeddings=embeddings,
    )
    print(f"loaded in {time.perf_counter() - start:.1f} s")
    for caption in dict.fromkeys(caption for job in jobs for caption in job.captions):
        unread = pipe.text.count_tokens(caption) - pipe.text.max_length
        if unread > 0:
            print(f'note: the model reads {pipe.text.max_length} tokens; the last {unread} of "{caption}" are left out')

    # 3. the videos, each saved as soon as it is done
    from tqdm import tqdm

    batches = -(-len(jobs) // settings.batch_size)
    total = batches * settings.loops * settings.num_sampling_steps
    with tqdm(total=total, unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_step(progress):
            _go_on()
            bar.update()

        made = pipe.generate(jobs, settings, on_step=on_step)
        for (_, video), path in zip(made, paths, strict=True):
            saved.append(video.save(path if a.overwrite else _free(path)))
            bar.write(f"saved {saved[-1].resolve()}: {video!r}", file=sys.stdout)


def encode_text(a) -> None:
    """`opensora-lite encode-text`: keep in a.out what T5 says of prompts. Raises OpenSoraError before T5 is loaded."""
    from opensora_lite.device import resolve_dtype, set_device
    from opensora_lite.io.checkpoints import read_config
    from opensora_lite.io.files import check_writable
    from opensora_lite.request import captions_of, model_folder
    from opensora_lite.runtime.memory import STDIT_DEFAULTS

    if a.t5 and a.model:
        raise CheckpointError("give --model or --text-encoder-pretrained-path, not both")
    if a.out.suffix != ".safetensors":
        raise OpenSoraError(f"--out {a.out} must be a file NAME.safetensors")
    captions = captions_of(_prompts(a), a.loops)
    check_writable(a.out.parent)
    if not a.overwrite:
        _refuse_existing([a.out])
    length = STDIT_DEFAULTS["model_max_length"]
    if not a.t5:
        folder = model_folder("tiny" if a.model is None else a.model)
        length = read_config(folder / "stdit").get("model_max_length", length)
    dtype = resolve_dtype(a.dtype, set_device(a.device))

    from opensora_lite.text import load_text_encoder

    embeddings = load_text_encoder(a.t5 or folder / "t5", length, dtype).embed(captions)
    embeddings.save(a.out)
    print(f"saved {a.out.resolve()}: {embeddings!r}")


def evaluate(a) -> None:
    """`opensora-lite evaluate`: print and save a report, or compare two. Raises OpenSoraError before work starts."""
    from opensora_lite.liteworld.evaluate import Report, check, check_folder, compare, evaluate, save
    from opensora_lite.pipeline import OpenSora
    from opensora_lite.request import Settings, model_defaults

    if a.compare and a.out:
        raise OpenSoraError("--compare prints two reports that exist; it writes nothing to --out")
    if a.compare:
        print(compare(*(Report.read(path) for path in a.compare)))
        return
    model = "tiny" if a.model is None else a.model
    chosen = {f.name: getattr(a, f.name) for f in fields(Settings) if getattr(a, f.name, None) is not None}
    check(replace(model_defaults(model)[0], **chosen), a.prompts, a.runs)
    if a.out:
        check_folder(a.out)
        if not a.overwrite:
            _refuse_existing([a.out / "report.json", a.out / "sheet.png"])

    from tqdm import tqdm

    pipe = OpenSora.from_pretrained(model, device=a.device)
    with tqdm(unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_progress(done, total):
            _go_on()
            bar.total = total
            bar.update(done - bar.n)

        report = replace(evaluate(pipe, a.prompts, a.runs, on_progress=on_progress, **chosen), model=model)
    print(report.table())
    for path in save(report, a.out) if a.out else ():
        print(f"saved {path.resolve()}")


def train(a) -> None:
    """`opensora-lite train`: train as a.recipe says into a.out. Raises OpenSoraError before anything is written."""
    from opensora_lite.training.recipe import read_recipe

    changes = dict(change.split("=", 1) if "=" in change else (change, None) for change in a.set)
    if None in changes.values():
        raise OpenSoraError(f"--set takes NAME=VALUE, such as diffusion.min_snr=null, not {' '.join(a.set)}")
    recipe = read_recipe(a.recipe, changes)

    import_paddle()  # quietly
    from opensora_lite.training import train

    losses, told = [], time.perf_counter()
    last = None

    def on_step(progress):
        nonlocal told, last
        _go_on()
        last = progress
        losses.append(progress.record.loss)
        step = progress.record.step
        if time.perf_counter() - told < 10 and step < progress.steps:
            return
        hours, minutes = divmod(round(progress.seconds_left / 60), 60)
        print(
            f"{progress.stage}: step {step} of {progress.steps}, loss {sum(losses) / len(losses):.4f},"
            f" {progress.steps_per_second:.2f} steps/s, {hours} h {minutes} min left",
            flush=True,
        )
        losses.clear()
        told = time.perf_counter()

    start = time.perf_counter()
    say = lambda text: print(text, flush=True)  # noqa: E731

    def saved():
        if last is None:
            return "no step was taken; the same command goes on"
        stage, step = last.stage, last.record.step
        return f"{step} steps of {stage} were taken; the same command goes on from step {last.saved}, which is saved"

    with _when_stopped(saved):
        done = train(recipe, a.out, device=a.device, prepare=a.prepare, on_step=on_step, say=say)
    seconds = time.perf_counter() - start
    if a.prepare:
        print(f"prepared in {seconds:.0f} s; without --prepare, the same command goes on")
    else:
        print(f"trained in {seconds:.0f} s; try it: opensora-lite generate --model {done.folder} --prompt …")


def sweep(a) -> int:
    """`opensora-lite sweep`: run the grid a.grid; the exit code. Raises OpenSoraError before anything is run."""
    from opensora_lite.tools.grid import describe, read_grid
    from opensora_lite.tools.sweep import sweep

    grid = read_grid(a.grid, a.notebook)
    if not a.overwrite and not any(a.out.glob("*-????????????.ipynb")):  # which a sweep leaves, for it to go on with
        _refuse_existing(a.out / name for name in SWEPT)

    from tqdm import tqdm

    done = 0
    with tqdm(unit="run", disable=not sys.stderr.isatty()) as bar:

        def on_progress(finished, failed, total):
            nonlocal done
            _go_on()
            done = finished + failed
            bar.total = total
            bar.set_postfix(failed=failed)
            bar.update(finished + failed - bar.n)

        say = lambda text: bar.write(text, file=sys.stdout)  # noqa: E731
        rest = "the same command goes on with the others"
        with _when_stopped(lambda: f"{done} of {len(grid.runs)} runs are done and saved; {rest}"):
            table = sweep(grid, a.out, a.workers, a.scheduler, say=say, on_progress=on_progress)
    failed = table["status"] == "failed"
    for run, error, notebook in zip(grid.runs, table["error"], table["notebook"], strict=True):
        if isinstance(error, str):
            where = f" (see {a.out / notebook})" if isinstance(notebook, str) else ""
            print(f"failed: {describe(grid.chosen(run))}: {error}{where}")
    print(f"{(~failed).sum()} finished, {failed.sum()} failed, of {len(table)}: {(a.out / 'index.html').resolve()}")
    return int(failed.any())


def doctor(a) -> int:
    """`opensora-lite doctor`: print what was found; the exit code, 1 where no video can be made."""
    from opensora_lite.tools.doctor import examine, report

    print("Trying the packages, and 3 seconds of matrix products …\n", flush=True)
    found = examine()
    print(report(found))
    return int(any(finding.blocks for finding in found))


def _prompts(a) -> list[str]:
    from opensora_lite.prompts import read_prompts

    if a.prompt and a.prompt_path:
        raise PromptError("give --prompt or --prompt-path, not both")
    if (a.start_index is not None or a.end_index is not None) and not a.prompt_path:
        raise PromptError("--start-index and --end-index choose lines of a prompt file; give --prompt-path")
    if a.prompt:
        return a.prompt
    if not a.prompt_path:
        raise PromptError(
            'no prompt was given; give --prompt "a red car driving right on the ocean at sunset" or --prompt-path FILE'
        )
    prompts = read_prompts(a.prompt_path)
    start, end = a.start_index or 0, len(prompts) if a.end_index is None else a.end_index
    if not 0 <= start < end <= len(prompts):
        raise PromptError(
            f"{a.prompt_path} has {len(prompts)} prompts, and --start-index {start} --end-index {end} lies outside;"
            f" give 0 <= start < end <= {len(prompts)}"
        )
    return prompts[start:end]


def _paths(a, jobs, settings) -> list[Path]:
    """Where each job's video goes. Raises OpenSoraError where it cannot go there, or two would share a file."""
    from opensora_lite.video import check_target

    if a.sample_name is not None and a.prompt_as_path:
        raise OpenSoraError("--sample-name and --prompt-as-path both name the files; give one of them")
    stem = "sample" if a.sample_name is None else a.sample_name
    is_name = Path(stem).name == stem and stem not in ("", ".", "..") and stem.isprintable()
    if not is_name or len(stem.encode()) > MAX_NAME:
        raise OpenSoraError(
            f'--sample-name "{stem}" must be a file name of at most {MAX_NAME} bytes; the folder is --save-dir'
        )
    if _exists(a.save_dir) and not a.save_dir.is_dir():
        raise OpenSoraError(f"--save-dir {a.save_dir} is a file, not a folder")
    folder = a.save_dir.absolute()  # in which a name that begins with ~ is only a name
    suffix = a.save_format or ("png" if settings.total_frames == 1 else "mp4")
    # a PNG sequence is a folder, which `Video.save` takes without a suffix
    suffix = "" if suffix == "png" and settings.total_frames > 1 else f".{suffix}"
    paths = []
    for i, job in enumerate(jobs):
        name = _file_name(job.prompt) if a.prompt_as_path else f"{stem}_{i // settings.num_sample}"
        name = name if suffix else name.replace(".", "_")  # what follows a point would be taken for a suffix
        paths.append(folder / (name + (f"-{job.sample}" if settings.num_sample > 1 else "") + suffix))
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise OpenSoraError(
            f"{times} videos would be saved as {path}: they have one prompt, or nearly; leave out --prompt-as-path"
        )
    for path in paths:
        check_target(path, settings.total_frames, settings.video_fps)
    return paths


def _file_name(prompt: str) -> str:
    """A prompt as a file name: what file systems refuse or nobody sees becomes _, and the end of a long one is cut."""
    seen = "".join(character if character.isprintable() else "\0" for character in prompt)
    name = re.sub(r'[\x00/\\:*?"<>|]+', "_", seen).strip(" .")
    return name.encode()[:MAX_NAME].decode(errors="ignore") or "_"


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OpenSoraError(f"{path} cannot be used: {error.strerror}") from None
    return True


def _refuse_existing(paths: Iterable[Path]) -> None:
    existing = [str(path) for path in paths if _exists(path)]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OpenSoraError(f"{existing[0]}{more} would be overwritten; give --overwrite, or another place")


def _free(path: Path) -> Path:
    """The path, or where something is there by now, the first of NAME~1, NAME~2 … that is free: no work is lost."""
    names = (path.with_name(f"{path.stem}~{i}{path.suffix}") for i in count(1))
    return next(name for name in names if not _exists(name)) if _exists(path) else path


if __name__ == "__main__":
    sys.exit(main())
