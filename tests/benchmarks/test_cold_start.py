"""From nothing to a file: where the time of `opensora-lite generate` goes, with the small model, 16×64×64, 30 steps.

`make bench` prints the table, medians of five, in turn with a run in which paddlenlp is imported in full. Seconds of
the processors (of all threads together) hardly change when the machine is busy; those of the clock do.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5


def run(folder, *flags) -> dict[str, list[float]]:
    """{part: [seconds of the clock, seconds of the processors]} of one run, with what Python itself takes."""
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("cold_start.py"), folder, *flags],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = json.loads(child.stdout.splitlines()[-1])
    whole = time.perf_counter() - start
    seconds["start and end of Python"] = [whole - sum(clock for clock, _ in seconds.values()), 0.0]
    return seconds


def test_cold_start(tmp_path):
    found = {"all of it": [], "needed": []}
    for i in range(RUNS):
        found["all of it"].append(run(tmp_path / f"full{i}", "--full"))
        found["needed"].append(run(tmp_path / f"lean{i}"))
    parts = sorted(found["needed"][0], key=lambda name: -found["needed"][0][name][0])
    print(f"\n\nFrom nothing to a file, seconds of the clock (of the processors), medians of {RUNS}")
    print(f"{'of paddlenlp is imported:':36}{'all of it':>18}{'what is needed':>18}")

    def row(name, seconds_of):
        cells = []
        for runs in found.values():
            clock, processors = (statistics.median(seconds_of(run)[i] for run in runs) for i in range(2))
            cells.append(f"{clock:9.2f} ({processors:6.2f})")
        print(f"{name:36}" + "".join(cells))

    for name in parts:
        row(name, lambda run, name=name: run[name])
    row("together", lambda run: [sum(values) for values in zip(*run.values(), strict=True)])
