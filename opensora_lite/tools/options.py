"""Command-line options that several commands share; those of settings are made from the fields of `Settings`.

A setting is declared once, in request.py: its type, bounds, help and flags. argparse only collects words; `Settings`
checks them.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from opensora_lite.errors import OpenSoraError, PromptError
from opensora_lite.prompts import PromptRow, read_prompts
from opensora_lite.request import Settings, flags_of, model_defaults, setting_from_text

FIELDS = Settings.__pydantic_fields__  # type: ignore[attr-defined]
SEVERAL_WORDS = ("image_size", "guidance_interval", "seed")
SEVERAL: dict[str, Any] = dict(nargs="+", action="extend")  # one or more words, and the flag may be repeated


def add_settings(group: argparse._ActionsContainer, *settings: str, **defaults: Any) -> None:
    """Add the options of some settings. defaults: of this command, where they are not those of the model."""
    tiny, released = model_defaults("tiny")[0], Settings()
    for name in settings:
        field = FIELDS[name]
        if name in defaults:
            default = _shown(name, defaults[name])
        else:
            default, other = (_shown(name, getattr(source, name)) for source in (tiny, released))
            default = default if default == other else f"{default} with tiny, {other} otherwise"
        group.add_argument(
            *flags_of(name),
            **_words(name),
            dest=name,
            default=defaults.get(name),
            help=f"{field.description} [{default}]".removesuffix(" []").replace("%", "%%"),
        )


def chosen_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by name."""
    given = {name: value for name, value in vars(arguments).items() if name in FIELDS and value is not None}
    texts = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in given.items()
    }
    return {name: setting_from_text(name, text) for name, text in texts.items()}


def settings_from(arguments: argparse.Namespace, defaults: Settings) -> Settings:
    """`defaults`, with the settings that were given. Raises OpenSoraError where no video can be made with them."""
    try:
        return defaults.changed(**chosen_settings(arguments))
    except OpenSoraError as error:
        named = [(name, flags_of(name)[0]) for name in FIELDS if "_" in name and name in str(error)]
        hints = [f" ({name} is {flag})" for name, flag in named if flag != f"--{name.replace('_', '-')}"]
        raise type(error)("".join([str(error), *hints])) from None


def _shown(name: str, value: Any) -> str:
    """A default as it would be given on the command line."""
    if value is None:
        return "0" if name == "cfg_channel" else ""
    if value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _words(name: str) -> dict[str, Any]:
    """argparse's arguments for a setting: a switch, several words, or one."""
    if FIELDS[name].annotation is bool:
        return {"action": "store_const", "const": "true"}
    if name in SEVERAL_WORDS:
        return {"nargs": "+", "metavar": "N"}
    return {"metavar": "N"}


def as_path(text: str) -> Path:
    """A path, with ~ for the home folder: the shell leaves --save-dir=~/videos as it is."""
    return Path(os.path.expanduser(text))


def add_prompts(group: argparse._ActionsContainer) -> None:
    """Add the options that `read_given_prompts` reads."""
    add = group.add_argument
    add("--prompt", **SEVERAL, help='prompts, each may end in {"reference_path": …, "mask_strategy": …}')
    add("--prompt-path", type=as_path, metavar="FILE", help="a text file with a prompt on each line, or a .csv")
    add("--start-index", type=int, metavar="N", help="first prompt of the file, counted from 0")
    add("--end-index", type=int, metavar="N", help="prompt of the file before which to stop")


def read_given_prompts(a: argparse.Namespace) -> list[PromptRow]:
    """The prompts of --prompt, or of the chosen lines of --prompt-path. Raises PromptError."""
    if a.prompt and a.prompt_path:
        raise PromptError("give --prompt or --prompt-path, not both")
    if (a.start_index is not None or a.end_index is not None) and not a.prompt_path:
        raise PromptError("--start-index and --end-index select lines of a prompt file; give --prompt-path")
    if a.prompt:
        return [PromptRow.parse(text) for text in a.prompt]
    if not a.prompt_path:
        raise PromptError(
            'no prompt was given; give --prompt "a red car driving right on the ocean at sunset" or --prompt-path FILE'
        )
    prompts = read_prompts(a.prompt_path)
    start, end = a.start_index or 0, len(prompts) if a.end_index is None else a.end_index
    if not 0 <= start < end <= len(prompts):
        raise PromptError(
            f"{a.prompt_path} has {len(prompts)} prompts, but --start-index is {start} and --end-index is {end};"
            f" give 0 <= start < end <= {len(prompts)}"
        )
    return prompts[start:end]


def add_device(group: argparse._ActionsContainer, dtype: bool = False) -> None:
    """Add --device and, where the command has it, --dtype."""
    group.add_argument("--device", help="cpu, gpu or gpu:1 [gpu if there is one]")
    if dtype:
        group.add_argument("--dtype", help="fp32, fp16 or bf16 [fp16 on a GPU, fp32 on a CPU]")
