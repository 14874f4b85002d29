"""Atomic writing: a file or a folder appears complete or not at all.

While it is written it has a temporary name, `.opensora-lite-…`, in the same folder. A process that is killed leaves the
temporary file behind; the next write into that folder removes it once it is older than LEFT_BEHIND.
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

RESULT = "application/vnd.opensora-lite.result+json"  # MIME type of the values that a notebook records
TEMPORARY = ".opensora-lite-"  # prefix of temporary names
LEFT_BEHIND = 3600  # seconds without a change after which a temporary file counts as abandoned


@contextlib.contextmanager
def atomic_write(path: str | Path, error: type[OpenSoraError] = OpenSoraError) -> Iterator[Path]:
    """Yields a temporary path for a new file, or a folder of files, and renames it to `path` when the block ends.

    If the block raises, whatever was at `path` stays. A symbolic link is followed and stays a link. Missing parent
    folders are created. Raises `error` where the system refuses to write.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for written in temporary.iterdir() if temporary.is_dir() else (temporary,):
            with open(written, "rb+") as file:
                os.fsync(file.fileno())  # on the disk before the rename: a power cut leaves the old file or the new one
        _rename(temporary, target)
    except OSError as reason:
        raise error(f"{path} cannot be written: {reason.strerror or reason}") from reason
    finally:
        remove(temporary)
    with contextlib.suppress(OSError):
        remove_left_behind(target.parent, now=target.stat().st_mtime)  # times of one clock, that of the file system


def _rename(temporary: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(temporary, target)
        return
    # A folder that is not empty can't be replaced in one step. The old one gets a visible name first, since the process
    # may be killed between the two steps, and its own name again if the second step fails.
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(2)}")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    os.rename(old, temporary)  # `atomic_write` removes it


def remove(path: Path) -> None:
    """Remove the file at `path`, or the folder with its contents; does nothing if there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_left_behind(folder: Path, now: float) -> None:
    """Remove the temporary files of processes that were killed. now: seconds since the epoch, as in st_mtime."""
    for left in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if now - left.lstat().st_mtime > LEFT_BEHIND:
                remove(left)


def check_writable(folder: Path) -> None:
    """Raise OpenSoraError unless files can be written into `folder`, or into its nearest existing parent."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OpenSoraError(f"{folder} cannot be written: {above} is not a folder that may be written to")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as JSON, UTF-8, indented by one space. Raises OpenSoraError as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays by their names, and `metadata`, to `path`. Raises OpenSoraError as `atomic_write` does."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors creates files that only their owner can read
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(temporary), metadata)
        except SafetensorError as error:  # as which it reports a full disk
            raise OSError(str(error)) from error
        temporary.chmod(mode)
