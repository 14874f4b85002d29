"""Processes that may be killed, starved or stopped: forked from one that has imported everything, so that each costs
little. Their output goes into said.txt in their folder."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}  # and "open", to write
if sys.platform != "win32":
    CONTEXT = multiprocessing.get_context("forkserver")
    CONTEXT.set_forkserver_preload(["preloaded"])


def start(work: Callable, folder: Path, at: int | None = None):
    """A process that does work(folder), a function of a module; at: the operation on files before which it is killed.

    Returns the process, and a pipe that tells "ready", and at last how many operations there were.
    """
    told, tell = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_in_child, args=(work, folder, at, tell))
    process.start()
    tell.close()
    assert told.recv() == "ready"
    return process, told


def ended(work: Callable, folder: Path) -> tuple[int, str]:
    """The exit code and the output of a process that does work(folder)."""
    process, _ = start(work, folder)
    process.join(300)
    return process.exitcode, said(folder)


def said(folder: Path) -> str:
    path = folder / "said.txt"
    return path.read_text(errors="replace") if path.exists() else ""


def _in_child(work: Callable, folder: Path, at: int | None, tell):
    output = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a fork server's processes leave to their parent
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in OPERATIONS or (event == "open" and arguments[2] & WRITING and str(folder) in str(arguments[0])):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    tell.send("ready")
    code = work(folder)
    tell.send(count)
    sys.exit(code)
