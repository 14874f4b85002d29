"""Ctrl-C and SIGTERM: a command stops within a step, removes what is half-written and says what was saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM, which job schedulers and containers send."""


_received: list[type[KeyboardInterrupt]] = []  # since the command began


def _on_signal(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    _received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
    raise _received[-1]


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A block in which Ctrl-C and SIGTERM raise KeyboardInterrupt and Terminated."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield
        return
    _received.clear()
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def stop_if_asked() -> None:
    """Called after every step: raises an interrupt again that was lost, as in a destructor, where Python prints it."""
    if _received:
        raise _received[-1]


@contextlib.contextmanager
def reports_when_stopped(saved: Callable[[], str]) -> Iterator[None]:
    """A block whose interrupt has the message `saved()`, also where compiled code turned it into another error."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not _received and not isinstance(error, KeyboardInterrupt):
            raise
        raise (_received[-1] if _received else type(error))(saved()) from None
