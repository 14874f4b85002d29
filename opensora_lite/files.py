"""Files that appear whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opensora_lite.errors import OpenSoraError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends well; otherwise what was there stays.

    Missing folders are made. Raises OpenSoraError where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".opensora-lite-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # on the disk before it has its name, so that a power cut leaves the old one
        os.replace(temporary, path)
    except OSError as error:
        raise OpenSoraError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # where its folder could not be made, there is none
            temporary.unlink(missing_ok=True)


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
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(temporary), metadata)
