"""What the commands of the original programs have and `generate` has not: a config file, and flags without effect.

PaddleMIX's ppdiffusers/examples/Open-Sora (utils/config_utils.py) and hpcaitech's Open-Sora 1.1 and 1.2 (README.md,
docs/commands.md, opensora/utils/config_utils.py) are run as

    python scripts/inference.py --prompt "A beautiful sunset over the city" --num-frames 16 --image-size 256 256
    python scripts/inference.py configs/opensora-v1-1/inference/sample.py --prompt "A beautiful sunset over the city"

The words behind the script's name can be given to `opensora-lite generate` as they are, but for the paths of weights.
"""

import argparse
import ast
import re
from pathlib import Path
from typing import Any

from opensora_lite.errors import CheckpointError, OpenSoraError, note, shown
from opensora_lite.generations import Generation
from opensora_lite.io.checkpoints import on_disk
from opensora_lite.request import ModelSpec
from opensora_lite.sizes import RELEASED_FRAMES

MAX_CONFIG = 1_000_000  # bytes
RELEASED = re.compile(r"configs/opensora-v1-[12]/inference/[\w-]+\.py$")
NAMES = {  # of a config file -> of the command's arguments
    "num_frames": "num_frames",
    "fps": "fps",
    "frame_interval": "frame_interval",
    "image_size": "image_size",
    "loop": "loops",
    "condition_frame_length": "condition_frames",
    "batch_size": "batch_size",
    "seed": "seed",
    "num_sample": "num_sample",
    "save_dir": "save_dir",
    "sample_name": "sample_name",
}
SCHEDULER = {
    "type": "sampler",
    "num_sampling_steps": "num_sampling_steps",
    "cfg_scale": "guidance_scale",
    "cfg_channel": "cfg_channel",
}
PARTS = {"t5": "DeepFloyd/t5-v1_1-xxl", "vae": "stabilityai/sd-vae-ft-ema"}
CONDITIONS = ("prompt", "prompt_path", "reference_path", "mask_strategy", "start_index", "end_index")


def add_original_options(parser: argparse.ArgumentParser) -> None:
    """Add the config file, and the flags that change nothing here."""
    group = parser.add_argument_group("of the original programs")
    add = group.add_argument
    add(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="such as configs/opensora-v1-1/inference/sample.py; not executed",
    )
    add("--multi-resolution", metavar="STDiT2", help="decided by the weights")
    add("--model-max-length", type=int, metavar="N", help="tokens of a caption; decided by the weights")
    for flag in ("--flash-attn", "--layernorm-kernel", "--llm-refine", "--verbose"):
        add(flag, metavar="VALUE", help=argparse.SUPPRESS)


def apply_config(a: argparse.Namespace) -> None:
    """Take from the config file what was not given by a flag. Raises OpenSoraError for a file that can't be read."""
    if a.config is None:
        return
    path = Path(a.config)
    if not path.exists() and RELEASED.search(path.as_posix()):
        note(f"{a.config} is not here; what it sets is taken from the flags and the model's defaults")
        return
    config = read_config(path)
    scheduler = config.get("scheduler")
    given = {NAMES[key]: value for key, value in config.items() if key in NAMES}
    given |= {SCHEDULER[key]: value for key, value in (scheduler or {}).items() if key in SCHEDULER}
    if a.prompt is None and a.prompt_path is None:
        given |= {key: config[key] for key in CONDITIONS if config.get(key) is not None}
        if "prompt" in given:  # as released: it has priority
            given.pop("prompt_path", None)
            given["prompt"] = [given["prompt"]] if isinstance(given["prompt"], str) else given["prompt"]
    for name, value in given.items():
        if getattr(a, name) is not None or (value is None and name != "cfg_channel"):
            continue
        if name in ("save_dir", "prompt_path"):
            value = Path(str(value))
        elif value is None:
            value = "none"
        setattr(a, name, list(value) if isinstance(value, tuple) else value)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a config file: assignments of Python literals and of dict(…). Nothing is executed.

    Raises OpenSoraError for anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG).decode("utf-8-sig")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise OpenSoraError(f"config file {str(path)!r} can't be read ({error})") from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        try:
            if not isinstance(statement, ast.Assign):
                raise ValueError("it is no assignment")
            value = _literal(statement.value)
            values |= {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            line = ast.get_source_segment(text, statement) or ""
            raise OpenSoraError(
                f"line {statement.lineno} of {path} can't be read without executing it: {shown(line)} ({error})"
            ) from None
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _literal(word.value) for word in node.keywords}
    return ast.literal_eval(node)


def use_cached_parts(a: argparse.Namespace) -> None:
    """T5 and the VAE beside --ckpt-path, as the original config names them, if Hugging Face's cache holds them."""
    for name, repository in PARTS.items():
        if name == "t5" and a.text_embeddings:
            continue
        try:
            setattr(a, name, str(on_disk(repository)))
        except CheckpointError:
            return  # the caller says what must be given
        note(f"{name} is {repository} in Hugging Face's cache")


def name_as_released(a: argparse.Namespace, generation: Generation) -> None:
    """Read --aspect-ratio and --num-frames as Open-Sora 1.2 does, where the model is of that generation.

    There, 9:16 is height to width, so that its examples make wide videos, and 4s are 102 frames.
    """
    if not generation.is_flow:
        return
    if a.aspect_ratio:
        a.aspect_ratio = ":".join(reversed(a.aspect_ratio.split(":")))
    a.num_frames = RELEASED_FRAMES.get(a.num_frames, a.num_frames)


def explain_flags(a: argparse.Namespace, spec: ModelSpec) -> None:
    """A Note for each flag that asks for something else than what the weights are, or than what Paddle does."""
    if a.multi_resolution not in (None, "STDiT2"):
        note(f"--multi-resolution {a.multi_resolution} is not used: these weights were trained as STDiT2's")
    tokens = spec.reader.max_length if spec.reader else a.model_max_length
    if a.model_max_length not in (None, tokens):
        note(f"--model-max-length {a.model_max_length} is not used: these weights read {tokens} tokens of a caption")
    for name in ("flash_attn", "layernorm_kernel"):
        if getattr(a, name) is not None:
            note(f"--{name.replace('_', '-')} is not used: Paddle chooses its kernels")
    if a.llm_refine not in (None, "False"):
        note("--llm-refine is not used: no language model is asked, the prompt stays as it is")
