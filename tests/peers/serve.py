"""The child's side of client.py: answers requests for as long as there are any. Imports neither torch nor paddle.

A request is one line of JSON, {"do": …}, and so is its answer. Tensors travel in safetensors files, whose paths a
request gives as "inputs" and "outputs". {"error": traceback} answers a request that failed.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

AT_LEAST = 0.3  # seconds that a turn lasts: short work is done again and again, as the steps of a video are


def serve(functions):
    """functions: called by their names with the fields of a request; what they return is the answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    functions = {function.__name__: function for function in functions}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = functions[request.pop("do")](**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def threads() -> int:
    """How many threads to compute with: $OMP_NUM_THREADS, or the processors that this process may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal():
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clock() -> float:
    """Seconds. With one thread those of the processor, on which what else the machine does tells little."""
    return time.process_time() if threads() == 1 else time.perf_counter()


def timed(function):
    """What `function()` gives, and seconds of a call: the mean of as many, one after the other, as take AT_LEAST."""
    start, calls = clock(), 0
    while calls == 0 or clock() - start < AT_LEAST:
        out, calls = function(), calls + 1
    return out, (clock() - start) / calls


def forget_peak():
    """Let `peak_memory` begin anew with what is held now (Linux: proc(5), clear_refs)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Most bytes of memory that this process has held (VmHWM); None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
