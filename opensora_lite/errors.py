"""Every error that a person can cause, with what was wrong, where it stands, and what would be right.

All are `OpenSoraError`, so one `except` catches them; the command line prints them without a traceback
and exits with 2. They are raised before any model runs, but for OutOfMemoryError.
"""

import contextlib
from numbers import Real


class OpenSoraError(ValueError):
    """Something a person gave cannot be used."""


class MaskStrategyError(OpenSoraError):
    """A mask strategy that cannot be read, or that does not fit the video or the references."""


class PromptError(OpenSoraError):
    """A prompt, its JSON suffix or its loop schedule that cannot be read or would not be used."""


class SizeError(OpenSoraError):
    """A number of frames, a height or a width that the model cannot make."""


class MediaError(OpenSoraError):
    """An image or a video that cannot be read or written."""


class CheckpointError(OpenSoraError):
    """Weights or a configuration that cannot be loaded."""


class DeviceError(OpenSoraError):
    """A device or a precision that this machine does not have."""


class OutOfMemoryError(OpenSoraError, MemoryError):
    """Work for which the memory did not suffice; what was made before is still there."""


class NeedsMemory(contextlib.AbstractContextManager[None]):
    """A block whose MemoryError, of numpy or of Paddle, becomes an OutOfMemoryError.

    work: what the memory is needed for. advice: what would need less. The error leaves no reference to what was being
    computed, whose memory is so free again.
    """

    def __init__(self, work: str, advice: str):
        self.work, self.advice = work, advice

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, MemoryError) or isinstance(error, OpenSoraError):
            return
        reason = str(error).partition("\n")[0].strip() or "none is left"
        message = f"there is not enough memory for {self.work} ({reason}); {self.advice}"
        del traceback  # whose frames have the variables of what was being computed
        raise OutOfMemoryError(message) from error.with_traceback(None)


def shown(value: object, most: int = 60) -> str:
    """A value in a message: as Python writes it, and no more than `most` characters of that."""
    try:
        text = str(value) if isinstance(value, Real) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else text[:most] + "…"


def printable(text: str) -> str:
    """`text` on one line, as long as before: a message can underline it, and shows what was invisible."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def underline(text: str, start: int, end: int) -> str:
    """Two indented lines: `text`, and carets under its characters start … end - 1 (at least one caret).

    >>> print(underline("0;x", 2, 3))
        0;x
          ^
    """
    return f"    {text}\n    {' ' * start}{'^' * max(end - start, 1)}"
