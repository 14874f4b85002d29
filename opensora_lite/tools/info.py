"""`opensora-lite info`: how a saved video was made, from its metadata."""

import argparse
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from opensora_lite.errors import printable
from opensora_lite.provenance import Provenance
from opensora_lite.tools.options import as_path


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `opensora-lite info`."""
    add = parser.add_argument
    add("files", type=as_path, nargs="+", metavar="FILE", help="mp4, webm, gif, webp or png, or a folder of frames")
    add("--json", action="store_true", help="print the metadata as they are, a line for each file")


def info(a: argparse.Namespace) -> None:
    """Print how files were made. Raises MediaError for a file that doesn't say so."""
    for file in a.files:
        made = Provenance.read(file)
        if a.json:
            print(json.dumps(asdict(made)))
        else:
            print("\n".join(report(file, made)))


def report(file: Path, made: Provenance) -> Iterator[str]:
    """The lines for one file."""
    yield str(file)
    for name, value in described(made):
        yield printable(f"  {name:14} {value}")
    yield f"  {'again':14} opensora-lite generate --like {shlex.quote(str(file))}"


def described(made: Provenance) -> Iterator[tuple[str, str]]:
    """What is known about a video: names and values."""
    yield "prompt", made.prompt
    yield "seed", str(made.seed)
    yield "mask strategy", made.mask_strategy or "none"
    for i, reference in enumerate(made.references):
        span = f"#t={reference.part}" if reference.part else ""
        known = f"{reference.name}{span} (SHA-256 {reference.sha256})" if reference.sha256 else "given in memory"
        yield f"reference {i}", known
    yield "settings", ", ".join(f"{name} {_shown(value)}" for name, value in made.settings.items())
    for name, part in (made.model or {}).items():
        yield name.replace("_", " "), f"{part.name} (fingerprint {part.fingerprint})"
    if made.model is None:
        yield "model", "was not loaded from files"
    if made.changed:
        yield "changed", "the model was changed after it was loaded, by hooks or new parameters"
    compiled = f"compiled {made.run.compiled}" if made.run.compiled else "uncompiled"
    yield "made on", f"{made.run.device}, {made.run.dtype}, {compiled}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
