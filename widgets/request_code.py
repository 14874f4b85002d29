"""The Python code and the shell command that make the same video as a request of a TaskLab."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from opensora_lite.request import Settings, flags_of
from opensora_lite.video import Video

if TYPE_CHECKING:
    from opensora_lite.widgets.lab import Request

SETTINGS = tuple(f.name for f in fields(Settings) if f.name not in ("batch_size", "num_sample"))
MODEL_FLAGS = {
    "model": "--model",
    "stdit": "--model-pretrained-path",
    "t5": "--text-encoder-pretrained-path",
    "vae": "--vae-pretrained-path",
    "device": "--device",
    "dtype": "--dtype",
    "micro_batch_size": "--micro-batch-size",
}


def python_code(request: "Request", defaults: Settings, model: Mapping) -> str:
    """Python code that makes the same video. model: arguments of `OpenSora.from_pretrained`. defaults: its Settings.

    References other than files become variables, described in comments.
    """
    names, comments = [], []
    for index, reference in enumerate(request.references):
        names.append(_text(str(reference)) if _is_file(reference) else f"reference_{index}")
        if not _is_file(reference):
            comments.append(f"# reference_{index} is {_description(reference)}, as given to TaskLab")
    arguments = [_text(request.prompt)]
    if names:
        arguments += [f"references=[{', '.join(names)}]", f"mask_strategy={_text(request.strategy.format())}"]
    arguments += [f"{name}={value!r}" for name, value in _chosen(request, defaults).items()]
    model = [
        _text(str(v)) if n == "model" else f"{n}={str(v) if isinstance(v, Path) else v!r}" for n, v in model.items()
    ]
    lines = [
        "from opensora_lite import OpenSora",
        "",
        *comments,
        f"pipe = OpenSora.from_pretrained({', '.join(model)})",
        "video = pipe(",
        *(f"    {argument}," for argument in arguments),
        ")",
        "video",
    ]
    return "\n".join(lines)


def command_line(request: "Request", defaults: Settings, model: Mapping) -> str:
    """The shell command that makes the same video, with comments that say how to save references other than files."""
    comments, paths = [], []
    for index, reference in enumerate(request.references):
        path, code = (str(reference), None) if _is_file(reference) else _saving_code(f"reference_{index}", reference)
        paths.append(path)
        if code:
            comments.append(f"#   {code}")
    prompt = request.prompt
    options = []
    if any(";" in path for path in paths):  # a separator in --reference-path, but not in the prompt's JSON suffix
        prompt += json.dumps({"reference_path": paths}, ensure_ascii=False)
    elif paths:
        options.append(_option("--reference-path", ";".join(paths)))
    if paths:
        options.append(_option("--mask-strategy", request.strategy.format()))
    for name, value in _chosen(request, defaults).items():
        values = value if isinstance(value, tuple) else (0 if value is None else value,)  # --cfg-channel 0: all
        options.append(_option(flags_of(name)[0], *values))
    options += [
        _option(MODEL_FLAGS[name], value) for name, value in model.items() if (name, value) != ("model", "tiny")
    ]
    if comments:
        comments.insert(0, "# First save these references, in Python:")
    command = " ".join(["opensora-lite generate", _option("--prompt", prompt), *options])
    return "\n".join([*comments, command])


def _chosen(request: "Request", defaults: Settings) -> dict:
    """The settings that differ from the defaults."""
    values = {name: getattr(request.settings, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _text(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _option(flag: str, *values) -> str:
    values = [str(value) for value in values]
    if values[0].startswith("-"):  # argparse takes a separate -… for a flag
        return f"{flag}={shlex.quote(values[0])}"
    return " ".join([flag, *map(shlex.quote, values)])


def _is_file(reference) -> bool:
    return isinstance(reference, (str, Path))


def _description(reference) -> str:
    if isinstance(reference, np.ndarray):
        return f"an array {reference.dtype} {list(reference.shape)}"
    if isinstance(reference, Video):
        return repr(reference)
    return "a PIL image {}×{}".format(*reference.size[::-1])


def _saving_code(name: str, reference) -> tuple[str, str]:
    """(file name, Python code that saves the variable `name` there)."""
    if isinstance(reference, Image.Image):
        return f"{name}.png", f'{name}.save("{name}.png")'
    frames = reference.frames if isinstance(reference, Video) else reference
    video = name if isinstance(reference, Video) else f"Video({name})"
    if frames.ndim == 3:
        video, frames = f"Video({name}[None])", frames[None]
    if len(frames) == 1:
        return f"{name}.png", f'{video}.save("{name}.png")'
    return f"{name}.mp4", f'{video}.save("{name}.mp4")  # lossy: the result will differ slightly'
