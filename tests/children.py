"""Processes that tests kill, stop or give too little memory.

They are forked from a server that has imported everything, which makes each of them cheap. Their output goes into
said.txt in their folder.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}  # and "open", to write


def context():
    """The fork server, which has imported tests/preloaded.py."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["preloaded"])
    paths = os.environ.get("PYTHONPATH")
    try:  # Python 3.11's server does not look for modules where its parent does
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), paths)))
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({"PYTHONPATH": paths} if paths else {})
    return made


def start(work: Callable, folder: Path, at: int | None = None):
    """Start a process that runs work(folder).

    at: the number of the file operation before which it is killed. Returns the process, and a pipe that receives
    "ready" and, at the end, how many file operations there were.
    """
    server = context()
    told, tell = server.Pipe(duplex=False)
    process = server.Process(target=_in_child, args=(work, folder, at, tell))
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
