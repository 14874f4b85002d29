"""Files that appear whole or not at all.

What is being written has a temporary name, `.opensora-lite-…`, beside the final one. A process that is killed leaves it
there; the next one that writes into that folder removes it, once nobody has touched it for LEFT_BEHIND.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opensora_lite.errors import OpenSoraError

TEMPORARY = ".opensora-lite-"  # how the name of what is being written begins
LEFT_BEHIND = 3600  # seconds; no writer pauses as long


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends well; otherwise what was there stays.

    The block makes a file of it, or a folder of files. Missing folders above are made. Raises OpenSoraError where it
    cannot be written.
    """
    try:
        with in_place(Path(path)) as temporary:
            yield temporary
    except OSError as error:
        raise OpenSoraError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """`replacing` of `path`, with an OSError as it comes."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for written in temporary.iterdir() if temporary.is_dir() else (temporary,):
            with open(written, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before it has its name, so that a power cut leaves the old one
        _rename(temporary, path)
    finally:
        remove(temporary)
    with contextlib.suppress(OSError):
        remove_left_behind(path.parent, now=path.stat().st_mtime)  # by the clock of that disk, as are the others


def _rename(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder that is not empty cannot be replaced in one step: the old one steps aside, under a name that is seen,
    # for a process may be killed right there. It comes back if the new one cannot take its place.
    old = path.with_name(f"{path.name}.old-{secrets.token_hex(2)}")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, temporary)  # where `in_place` removes it


def remove(path: Path) -> None:
    """Remove the file at `path`, or the folder with all that is in it, where there is one and it can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # its folder may never have been made
            path.unlink()


def remove_left_behind(folder: Path, now: float) -> None:
    """Remove what writers that were killed have left in a folder; now: seconds, as in st_mtime."""
    for left in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # somebody else was first
            if now - left.lstat().st_mtime > LEFT_BEHIND:
                remove(left)


def check_writable(folder: Path) -> None:
    """Raise OpenSoraError where a folder, or the first above it that exists, is none that may be written to."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OpenSoraError(f"{folder} cannot be written: {above} is not a folder that may be written to")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as JSON, UTF-8, indented by one space. Raises OpenSoraError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, arrays of any shape by their names, and `metadata` to `path`. Raises OpenSoraError as above."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # that of any file here; safetensors makes one for its owner alone
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(temporary), metadata)
        except SafetensorError as error:  # which a full disk is to it
            raise OSError(str(error)) from error
        temporary.chmod(mode)
