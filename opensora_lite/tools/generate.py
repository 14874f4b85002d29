"""`opensora-lite generate` and `opensora-lite encode-text`."""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, groupby, islice
from os.path import lexists
from pathlib import Path

from opensora_lite.errors import CheckpointError, OpenSoraError, note, shown
from opensora_lite.generations import Generation
from opensora_lite.request import (
    Job,
    ModelSpec,
    Settings,
    captions_of,
    model_defaults,
    model_folder,
    model_spec,
    plan,
    released_settings,
    row_settings,
)
from opensora_lite.sizes import RELEASED_FRAMES
from opensora_lite.tools.like import Like, read_like, set_precision
from opensora_lite.tools.options import (
    FIELDS,
    SEVERAL,
    add_device,
    add_prompts,
    add_settings,
    as_path,
    chosen_settings,
    read_given_prompts,
    settings_from,
)
from opensora_lite.tools.originals import (
    add_original_options,
    apply_config,
    explain_flags,
    name_as_released,
    use_cached_parts,
)
from opensora_lite.tools.stopping import reports_when_stopped, stop_if_asked
from opensora_lite.video import check_target

VIDEO = ("num_frames", "image_size", "fps", "frame_interval", "loops", "condition_frames", "reference_fps")
MAX_NAME = 200  # bytes of a file name without numbers and suffix; most file systems allow 255 in all

# ----------------------------------------------------------------------------------------------------------------------
# generate
# ----------------------------------------------------------------------------------------------------------------------


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite generate`."""
    parser.epilog = "Defaults are in brackets. notebooks/guide/masks.md shows the five tasks."
    group = parser.add_argument_group("prompts")
    add_prompts(group)
    add = group.add_argument
    add("--like", type=as_path, metavar="FILE", help="a video made here: prompt, settings and model are those of FILE")
    add("--reference-path", **SEVERAL, help="references, one argument per prompt; several paths are joined by ;")
    add("--mask-strategy", **SEVERAL, help="mask strategies, one per prompt")
    group = parser.add_argument_group("the video")
    add_settings(group, *VIDEO)
    group.add_argument("--resolution", metavar="NAME", help="144p … 1080p, 2k, 4k, 256, 512 or 1024, for --image-size")
    group.add_argument("--aspect-ratio", metavar="W:H", help="such as 16:9; alone, with as many pixels as the default")
    add_settings(parser.add_argument_group("sampling"), *(name for name in FIELDS if name not in VIDEO))
    add = parser.add_argument_group("files").add_argument
    add("--save-dir", type=as_path, metavar="FOLDER", help="[samples]")
    add("--sample-name", metavar="NAME", help="files are named NAME_0, NAME_1, … [sample]")
    add("--prompt-as-path", action="store_true", help="name files after their prompts, and skip those that exist")
    add("--overwrite", action="store_true", help="replace files that exist; otherwise they are an error")
    add("--skip-existing", action="store_true", help="make only the videos whose files are missing, with their seeds")
    add("--save-format", choices=("mp4", "webm", "gif", "webp", "png"), help="[mp4; png for a single frame]")
    where = "Folders, weights files, or names of repositories that lie in Hugging Face's cache; nothing is downloaded."
    group = parser.add_argument_group("the model", where)
    add = group.add_argument
    add("--model", help='"tiny", or a folder with stdit/, t5/ and vae/ [tiny]')
    whole = "OpenSora-STDiT-v2-stage3; or a folder as for --model"
    add("--model-pretrained-path", "--ckpt-path", dest="stdit", metavar="FOLDER", help=whole)
    add("--text-encoder-pretrained-path", dest="t5", metavar="FOLDER", help="t5-v1_1-xxl")
    add("--vae-pretrained-path", dest="vae", metavar="FOLDER", help="sd-vae-ft-ema")
    add_device(group, dtype=True)
    add("--micro-batch-size", type=int, metavar="N", help="frames per call of the VAE [16, or as many as fit]")
    add("--sequential", action="store_true", help="never hold T5 and STDiT2 in memory at the same time")
    add("--text-embeddings", type=as_path, metavar="FILE", help="written by encode-text; T5 is then not loaded")
    add_original_options(parser)


def generate(a: argparse.Namespace) -> None:
    """Make videos and save each when it is done. Mistakes are reported before a model is loaded."""
    complete(a)
    like = read_like(a) if a.like is not None else None
    released = any((a.stdit, a.t5, a.vae))
    if released and a.model is None and not all((a.stdit, a.t5 or a.text_embeddings, a.vae)):
        raise CheckpointError(
            "give all of --model-pretrained-path, --text-encoder-pretrained-path and --vae-pretrained-path, or none"
        )
    if a.text_embeddings and (a.t5 or a.sequential):
        raise OpenSoraError("with --text-embeddings no T5 is loaded: leave out its path and --sequential")
    if a.overwrite and a.skip_existing:
        raise OpenSoraError("--overwrite replaces files that exist, --skip-existing keeps them; give one of the two")
    defaults, trained_sizes = model_defaults("tiny" if a.model is None else a.model)
    spec = model_spec(a.model, stdit=a.stdit, t5=a.t5, vae=a.vae)
    if released and a.model is None:
        defaults, trained_sizes = released_settings(spec.generation), []
    settings = settings_from(a, like.made.video_settings if like else defaults)
    explain_flags(a, spec)
    jobs = like.jobs(settings, spec) if like else planned(a, settings, spec)
    todo = list(zip(jobs, target_paths(a, jobs), strict=True))
    if a.skip_existing or (a.prompt_as_path and not a.overwrite):
        for path in (path for _, path in todo if lexists(path)):
            print(f"{path} exists and is skipped")
        todo = [(job, path) for job, path in todo if not lexists(path)]
    elif not a.overwrite:
        refuse_existing(path for _, path in todo)
    if not todo:
        return
    groups = alike(todo)
    for settings, group in groups:
        print(f"{len(group)} video(s) of {described(settings, spec.generation)}")
        for line in dict.fromkeys(line for job, _ in group for line in job.sources):
            print(line)
        if trained_sizes and settings.image_size not in trained_sizes:
            sizes = ", ".join(f"{h}×{w}" for h, w in trained_sizes)
            height, width = settings.image_size
            note(f"this model was trained at {sizes}; at {height}×{width}, generated frames are blurred")

    saved: list[Path] = []
    rest = "the same command with --skip-existing makes the others"
    with reports_when_stopped(lambda: f"{len(saved)} of {len(todo)} video(s) are saved; {rest}"):
        make_videos(a, groups, saved, like)


def complete(a: argparse.Namespace) -> None:
    """Settle what can be given in several ways: the config file, the size by name, a model's folder as --ckpt-path."""
    apply_config(a)
    a.save_dir = a.save_dir or Path("samples")
    if a.stdit and a.model is None and not a.t5 and not a.vae:
        if a.stdit == "tiny" or os.path.isdir(os.path.join(a.stdit, "stdit")):
            a.model, a.stdit = a.stdit, None
        else:
            use_cached_parts(a)
    if a.aspect_ratio or a.num_frames in RELEASED_FRAMES:
        name_as_released(a, model_spec(a.model, stdit=a.stdit, t5=a.t5, vae=a.vae).generation)
    named = [word for word in (a.resolution, a.aspect_ratio) if word]
    if named and a.image_size:
        raise OpenSoraError("--image-size and --resolution or --aspect-ratio give the size twice; give it once")
    a.image_size = named or a.image_size


def planned(a: argparse.Namespace, settings: Settings, spec: ModelSpec) -> list[Job]:
    """The jobs of the prompts that were given; what stands with a prompt comes before the flags."""
    rows = read_given_prompts(a)
    references = _first_given([row.references for row in rows], a.reference_path)
    strategies = _first_given([row.mask_strategy for row in rows], a.mask_strategy)
    chosen = [row_settings(row, settings) for row in rows]
    return plan([row.prompt for row in rows], references, strategies, chosen, spec)


def _first_given(of_rows: list, flags: list | None) -> list:
    """One entry for each prompt. Where there are not as many flags as prompts, `plan` says so."""
    if flags is not None and len(flags) != len(of_rows):
        return flags
    return [flag if own is None else own for own, flag in zip(of_rows, flags or of_rows, strict=True)]


Todo = list[tuple[Job, Path]]  # videos and their files


def alike(todo: Todo) -> list[tuple[Settings, Todo]]:
    """Neighbours that differ in nothing but their seeds, and can be made in one batch."""
    groups = groupby(todo, key=lambda item: replace(item[0].settings, seed=0, same_seed=False))
    return [(settings, list(group)) for settings, group in groups]


def described(settings: Settings, generation: Generation) -> str:
    """One line: frames, seconds, pixels, and how they are sampled."""
    frames = "1 frame" if settings.total_frames == 1 else f"{settings.total_frames} frames"
    if settings.loops > 1:
        frames += f" in {settings.loops} loops of {settings.num_frames}, each taking over {settings.condition_frames}"
        if generation.factor > 1:
            frames += f" ({generation.latent_frames(settings.condition_frames or 0)} latents)"
    if settings.total_frames > 1:
        frames += f", {settings.seconds:.3g} s at {settings.video_fps:.4g} fps"
    height, width = settings.image_size
    return (
        f"{frames}, {height}×{width} pixels: {settings.sampler}, {settings.num_sampling_steps} steps,"
        f" guidance {settings.guidance_scale:g}"
    )


def make_videos(
    a: argparse.Namespace, groups: list[tuple[Settings, Todo]], saved: list[Path], like: Like | None = None
) -> None:
    """Load the model and make the videos; each is saved when it is done, and its path appended to `saved`."""
    from tqdm import tqdm

    from opensora_lite.device import resolve_dtype, set_device
    from opensora_lite.pipeline import OpenSora
    from opensora_lite.runtime.memory import for_settings, refuse_what_cannot_fit

    captions = list(dict.fromkeys(c for _, group in groups for job, _ in group for c in job.captions))
    parts = dict(stdit=a.stdit, t5=a.t5, vae=a.vae, sequential=a.sequential)
    device = set_device(a.device)
    if like:
        set_precision(a, like, device)
    embeddings = None
    if a.text_embeddings:
        from opensora_lite.text import TextEmbeddings

        embeddings = TextEmbeddings.read(a.text_embeddings)
        embeddings.check(captions)
        for caption in captions:
            for loss in ModelSpec(embeddings).losses(caption, caption):
                note(f"caption {shown(caption)}: {loss}")
    for settings, group in groups:
        at_once = replace(settings, batch_size=min(settings.batch_size, len(group)))
        estimate = for_settings(
            at_once,
            model=a.model,
            **parts,
            dtype=resolve_dtype(a.dtype, device),
            device=device,
            micro_batch_size=max(a.micro_batch_size or 1, 1),
            text_encoder=embeddings is None,
        )
        refuse_what_cannot_fit(at_once, estimate, device)
    start = time.perf_counter()
    pipe = OpenSora.from_pretrained(
        a.model,
        **parts,
        device=a.device,
        dtype=a.dtype,
        micro_batch_size=a.micro_batch_size,
        text_embeddings=embeddings,
    )
    print(f"loaded in {time.perf_counter() - start:.1f} s")
    if like:
        pipe.compile(like.made.run.compiled)

    total = sum(-(-len(group) // s.batch_size) * s.loops * s.num_sampling_steps for s, group in groups)
    with tqdm(total=total, unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_step(progress: object) -> None:
            stop_if_asked()
            bar.update()

        for settings, group in groups:
            index, copies = like.place(settings) if like else (0, 1)  # of each job in a batch of its own
            jobs = [job for job, _ in group for _ in range(copies)]
            settings = replace(settings, batch_size=copies) if copies > 1 else settings
            videos = islice(pipe.generate(jobs, settings, on_step=on_step), index, None, copies)
            for (_, video), (_, path) in zip(videos, group, strict=True):
                saved.append(video.save(path if a.overwrite else free_path(path)))
                bar.write(f"saved {saved[-1].resolve()}: {video!r}", file=sys.stdout)


# ----------------------------------------------------------------------------------------------------------------------
# File names
# ----------------------------------------------------------------------------------------------------------------------


def target_paths(a: argparse.Namespace, jobs: list[Job]) -> list[Path]:
    """The file of each job's video. Raises OpenSoraError if it cannot be written, or if two would share it."""
    if a.sample_name is not None and a.prompt_as_path:
        raise OpenSoraError("--sample-name and --prompt-as-path both name the files; give one of them")
    stem = "sample" if a.sample_name is None else a.sample_name
    is_name = Path(stem).name == stem and stem not in ("", ".", "..") and stem.isprintable()
    if not is_name or len(stem.encode()) > MAX_NAME:
        raise OpenSoraError(
            f'--sample-name "{stem}" must be a file name of at most {MAX_NAME} bytes; the folder is --save-dir'
        )
    if lexists(a.save_dir) and not a.save_dir.is_dir():
        raise OpenSoraError(f"--save-dir {a.save_dir} is a file, not a folder")
    folder = a.save_dir.absolute()  # so that a name that begins with ~ is only a name
    paths, index = [], -1
    for job in jobs:
        frames, index = job.settings.total_frames, index + (job.sample == 0)
        suffix = "." + (a.save_format or ("png" if frames == 1 else "mp4"))
        if suffix == ".png" and frames > 1:  # a folder of pictures: `Video.save` to a name without suffix
            suffix = ""
        name = file_name(job.prompt) if a.prompt_as_path else f"{stem}_{index}"
        name = name if suffix else name.replace(".", "_")  # otherwise "a car. at night" would have a suffix
        paths.append(folder / (name + (f"-{job.sample}" if job.settings.num_sample > 1 else "") + suffix))
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise OpenSoraError(
            f"{times} videos would be saved as {path}: they have one prompt, or nearly; leave out --prompt-as-path"
        )
    for job, path in zip(jobs, paths, strict=True):
        check_target(path, job.settings.total_frames, job.settings.video_fps)
    return paths


def file_name(prompt: str) -> str:
    """A prompt as a file name: characters that file systems refuse, or that are invisible, become _."""
    visible = "".join(character if character.isprintable() else "\0" for character in prompt)
    name = re.sub(r'[\x00/\\:*?"<>|]+', "_", visible).strip(" .")
    return name.encode()[:MAX_NAME].decode(errors="ignore") or "_"


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise OpenSoraError if any of the paths exists."""
    existing = [str(path) for path in paths if lexists(path)]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OpenSoraError(f"{existing[0]}{more} would be overwritten; give --overwrite, or another path")


def free_path(path: Path) -> Path:
    """The path, or NAME~1, NAME~2 … if another process has written it since `refuse_existing`: both videos are kept."""
    if not lexists(path):
        return path
    names = (path.with_name(f"{path.stem}~{i}{path.suffix}") for i in count(1))
    return next(name for name in names if not lexists(name))


# ----------------------------------------------------------------------------------------------------------------------
# encode-text
# ----------------------------------------------------------------------------------------------------------------------


def add_encode_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite encode-text`."""
    add_prompts(parser)
    add_settings(parser, "loops", "aes", "flow", "camera_motion", loops=1)
    add = parser.add_argument
    add("--out", type=as_path, required=True, metavar="FILE", help="NAME.safetensors")
    add("--overwrite", action="store_true", help="replace the file if it exists")
    add("--model", help='"tiny", or a folder with stdit/ (its config.json is read) and t5/ [tiny]')
    add("--text-encoder-pretrained-path", dest="t5", metavar="FOLDER", help="t5-v1_1-xxl instead")
    add("--model-pretrained-path", dest="stdit", metavar="FOLDER", help="with it, the transformer [of 1.1: 200 tokens]")
    add_device(parser, dtype=True)


def encode_text(a: argparse.Namespace) -> None:
    """Save T5's embeddings of prompts. Mistakes are reported before T5 is loaded."""
    from opensora_lite.device import resolve_dtype, set_device
    from opensora_lite.io.checkpoints import part_of
    from opensora_lite.io.files import check_writable
    from opensora_lite.runtime.memory import STDIT_DEFAULTS

    if (a.t5 or a.stdit) and a.model:
        raise CheckpointError("give --model or --text-encoder-pretrained-path, not both")
    if a.stdit and not a.t5:
        raise CheckpointError("--model-pretrained-path goes with --text-encoder-pretrained-path; give both, or --model")
    if a.out.suffix != ".safetensors":
        raise OpenSoraError(f"--out {a.out} must be a file NAME.safetensors")
    spec = model_spec(a.model, stdit=a.stdit, t5=a.t5)
    defaults = released_settings(spec.generation) if a.t5 else model_defaults("tiny" if a.model is None else a.model)[0]
    settings = settings_from(argparse.Namespace(**{**vars(a), "loops": None}), defaults)  # loops of any length
    captions = []
    for row in read_given_prompts(a):
        of_row = row_settings(row, settings)
        spec.check(of_row)
        captions += captions_of([row.prompt], max(of_row.loops, chosen_settings(a)["loops"]), spec, of_row)
    captions = list(dict.fromkeys(captions))
    check_writable(a.out.parent)
    if not a.overwrite:
        refuse_existing([a.out])
    # without a tokenizer, loading T5 says what is missing
    length = spec.reader.max_length if spec.reader else STDIT_DEFAULTS["model_max_length"]
    dtype = resolve_dtype(a.dtype, set_device(a.device))

    from opensora_lite.text import load_text_encoder

    folder = a.t5 or part_of(model_folder("tiny" if a.model is None else a.model), "t5")
    embeddings = load_text_encoder(folder, length, dtype).embed(captions)
    embeddings.save(a.out)
    print(f"saved {a.out.resolve()}: {embeddings!r}")
