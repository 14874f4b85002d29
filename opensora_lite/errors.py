"""The errors that a person can cause. Each says what was wrong, where, and what would be right.

All are `OpenSoraError`, so one `except` catches them; the command line prints the message without a traceback and exits
with 2. All but OutOfMemoryError are raised before a model runs. What is lost or changed without being a mistake is a
`Note`, a warning.
"""

import contextlib
import contextvars
import sys
import warnings
from collections.abc import Iterator
from numbers import Real


class OpenSoraError(ValueError):
    """Input that can't be used."""


class MaskStrategyError(OpenSoraError):
    """A mask strategy that can't be read, or that doesn't fit the video or the references."""


class PromptError(OpenSoraError):
    """A prompt that can't be read or used: its captions, its JSON suffix or its loop schedule."""


class SizeError(OpenSoraError):
    """A number of frames, a height or a width that the model can't generate."""


class MediaError(OpenSoraError):
    """An image or a video that can't be read or written."""


class CheckpointError(OpenSoraError):
    """Weights or a configuration that can't be loaded."""


class DeviceError(OpenSoraError):
    """A device or a precision that this machine doesn't have."""


class OutOfMemoryError(OpenSoraError, MemoryError):
    """Not enough memory for a computation; results from before it are kept."""


class Note(UserWarning):
    """Something that a request loses, or that is changed in it: a caption that is cut, a size that is rounded.

    The command line prints it as "note: …". `warnings.simplefilter("error", Note)` makes it an error.
    """


_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("collected", default=None)


@contextlib.contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Context in which notes of this thread are collected in a list, and are no warnings."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def note(text: str) -> None:
    """Warn with a Note, at the line that called this package; within `collected_notes`, add it to the list."""
    if (notes := _collected.get()) is not None:
        return notes.append(text)
    level, frame = 1, sys._getframe()
    package = __name__.partition(".")[0]
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", ""), package):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, Note, stacklevel=level)


def _is_inside(module: str, package: str) -> bool:
    return module.partition(".")[0] in (package, "pydantic", "dataclasses")


class NeedsMemory(contextlib.AbstractContextManager[None]):
    """A block in which a MemoryError of numpy or Paddle becomes an OutOfMemoryError.

    work: what the memory is for. advice: what would need less. The new error keeps no traceback of the old one, whose
    frames would keep the tensors of the computation alive.
    """

    def __init__(self, work: str, advice: str):
        self.work, self.advice = work, advice

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, MemoryError) or isinstance(error, OpenSoraError):
            return
        reason = str(error).partition("\n")[0].strip() or "none is left"
        message = f"there is not enough memory for {self.work} ({reason}); {self.advice}"
        del traceback
        raise OutOfMemoryError(message) from error.with_traceback(None)


def shown(value: object, most: int = 60) -> str:
    """A value in a message: as Python writes it, cut after `most` characters."""
    text = str(value) if isinstance(value, Real) else repr(value)
    return text if len(text) <= most else text[:most] + "…"


def printable(text: str) -> str:
    """`text` on one line, with a replacement for characters that can't be printed."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
