"""Fingerprints of models, which say whether two files or folders hold the same one.

The fingerprint of a part of a model (stdit, t5, vae) is the SHA-256 of the sorted list of the SHA-256 of its files:
config.json, the weights (every shard) and T5's tokenizer. For the VAE of the small model, this prints the same:

    sha256sum config.json diffusion_pytorch_model.safetensors | cut -c -64 | LC_ALL=C sort | sha256sum

Names and places of files don't matter, contents do. A gigabyte takes about a second; so the fingerprints of models
outside of this package are kept in the cache folder, and hold as long as size and time of the files stay the same.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opensora_lite.errors import CheckpointError, OpenSoraError
from opensora_lite.io.checkpoints import open_checkpoint
from opensora_lite.io.files import write_json
from opensora_lite.machine import cache_folder
from opensora_lite.tokenizer import find_tokenizer

PACKAGE = Path(__file__).parents[1]
MOST = 1000  # parts in the cache


def sha256(file: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits, as `sha256sum` prints it. Raises OSError."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """`sha256` of a file, computed once as long as its size and time stay the same. Raises OSError."""
    status = os.stat(file)
    return _file_sha256(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(1000)
def _file_sha256(file: Path, size: int, time: int) -> str:
    return sha256(file)


def weights_id(model: Path) -> str:
    """8 hexadecimal digits of the weights of a model folder, for what was made with them. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(model.glob("*/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def fingerprint(part: Path, name: str) -> str:
    """The fingerprint of a part of a model. Raises CheckpointError.

    part: its folder, or the file of its weights. name: "stdit", "t5" or "vae".
    """
    part = Path(part)  # a link to a file keeps its name, which says what it is: Hugging Face's cache is made of those
    place = Path(os.path.realpath(part.parent if part.is_file() else part), part.name if part.is_file() else "")
    try:
        files = _files(place, name)
        stamps = [[status.st_size, status.st_mtime_ns] for status in map(os.stat, files)]
        known = _read_cache()
        entry = known.get(str(place))
        if isinstance(entry, dict) and entry.get("stamps") == stamps and isinstance(entry.get("fingerprint"), str):
            return entry["fingerprint"]
        lines = sorted(f"{sha256(file)}\n" for file in files)
    except OSError as error:
        raise CheckpointError(f"{part} cannot be read ({error.strerror or error})") from error
    found = hashlib.sha256("".join(lines).encode()).hexdigest()
    if not place.is_relative_to(PACKAGE):
        known.pop(str(place), None)
        known[str(place)] = {"stamps": stamps, "fingerprint": found}
        with contextlib.suppress(OpenSoraError):  # a folder that can't be written to
            write_json(_cache(), dict(list(known.items())[-MOST:]))
    return found


def find(wanted: str, name: str, candidates: Iterable[Path]) -> Path | None:
    """The part of a model with that fingerprint: among `candidates`, or where this machine has loaded it before.

    name: as of `fingerprint`.
    """
    known = [Path(place) for place, entry in _read_cache().items() if entry.get("fingerprint") == wanted]
    for part in (*candidates, *known):
        with contextlib.suppress(CheckpointError):
            if fingerprint(part, name) == wanted:
                return part
    return None


def _files(part: Path, name: str) -> list[Path]:
    """The files that a part is loaded from."""
    if part.suffix == ".pdparams":
        weights = {part}
    else:
        weights = {tensor.file for tensor in open_checkpoint(part).values()}
    folder = part if part.is_dir() else part.parent
    others = [folder / "config.json", find_tokenizer(folder) if name == "t5" else None]
    return [*sorted(weights), *(file for file in others if file is not None and file.exists())]


def _cache() -> Path:
    return cache_folder() / "fingerprints.json"


def _read_cache() -> dict[str, Any]:
    """{path of a part: its fingerprint, and size and time of its files}, the latest last."""
    try:
        known = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {place: entry for place, entry in known.items() if isinstance(entry, dict)} if isinstance(known, dict) else {}
    )
