"""Every error that a person can cause, with what was wrong, where it stands, and what would be right.

All are `OpenSoraError`, so one `except` catches them; the command line prints them without a traceback
and exits with 2. They are raised before any model runs.
"""


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


def underline(text: str, start: int, end: int) -> str:
    """Two indented lines: `text`, and carets under its characters start … end - 1 (at least one caret)."""
    return f"    {text}\n    {' ' * start}{'^' * max(end - start, 1)}"
