"""Where the time of an uncompiled guided step goes: `python tests/benchmarks/profile_step.py [a|b|c]`.

Paddle's profiler names the operators; the table has the share of each in all of them, and how often it was called.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import paddle_side  # noqa: E402
from work import WORK  # noqa: E402

STEPS = 5


def main(name):
    """Print the table for one piece of work."""
    from paddle import profiler

    work, folder = WORK[name], HERE.parents[1] / "build" / "bench"
    _, step = paddle_side.step(work.models(folder), None, work.told(), **work.given())
    inputs = work.inputs(0, folder)
    with paddle_side.paddle.no_grad():
        for _ in range(2):
            step(**inputs)
        with tempfile.TemporaryDirectory() as out:
            with profiler.Profiler(
                targets=[profiler.ProfilerTarget.CPU], on_trace_ready=profiler.export_chrome_tracing(out)
            ) as running:
                for _ in range(STEPS):
                    step(**inputs)
                    running.step()
            events = json.loads(next(Path(out).glob("*.json")).read_text())["traceEvents"]
    seconds, calls = defaultdict(float), defaultdict(int)
    for event in events:
        if event.get("cat") == "Operator" and "dur" in event:
            kind = event["name"].split()[0]
            seconds[kind] += event["dur"] / 1e6 / STEPS
            calls[kind] += 1
    whole = sum(seconds.values())
    print(f"{work.title}: {1000 * whole:.1f} ms in operators")
    for kind in sorted(seconds, key=lambda kind: -seconds[kind])[:15]:
        print(f"{seconds[kind] / whole:5.1%} {calls[kind] / STEPS:6.0f} × {kind}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "a")
