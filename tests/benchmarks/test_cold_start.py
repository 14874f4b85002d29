"""From nothing to a file: where the time of `opensora-lite generate` goes, with the small model, 16×64×64, 30 steps.

`make bench` prints the table, medians of five, in turn: as ever; as on the very first run, when no compiled program is
on the disk yet; and with all of paddlenlp imported, not only what is needed. Seconds of the processors (of all threads
together) hardly change when the machine is busy; those of the clock do.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5


def run(folder, cache, *flags) -> dict[str, list[float]]:
    """{part: [seconds of the clock, seconds of the processors]} of one run, with what Python itself takes.

    folder: where the video goes. cache: where compiled programs are.
    """
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("cold_start.py"), folder, *flags],
        env=os.environ | {"OPENSORA_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = json.loads(child.stdout.splitlines()[-1])
    whole = time.perf_counter() - start
    seconds["start and end of Python"] = [whole - sum(clock for clock, _ in seconds.values()), 0.0]
    return seconds


def test_cold_start(tmp_path):
    found = {"as ever": [], "first run": [], "all of paddlenlp": []}
    run(tmp_path / "before", tmp_path / "cache")
    for i in range(RUNS):
        found["as ever"].append(run(tmp_path / f"a{i}", tmp_path / "cache"))
        found["first run"].append(run(tmp_path / f"b{i}", tmp_path / f"cache{i}"))
        found["all of paddlenlp"].append(run(tmp_path / f"c{i}", tmp_path / "cache", "--full"))
    parts = sorted(found["as ever"][0], key=lambda name: -found["as ever"][0][name][0])
    print(f"\n\nFrom nothing to a file, seconds of the clock (of the processors), medians of {RUNS}")
    print(f"{'':36}" + "".join(f"{name:>18}" for name in found))

    def row(name, seconds_of):
        cells = []
        for runs in found.values():
            clock, processors = (statistics.median(seconds_of(run)[i] for run in runs) for i in range(2))
            cells.append(f"{clock:9.2f} ({processors:6.2f})")
        print(f"{name:36}" + "".join(cells))

    for name in parts:
        row(name, lambda run, name=name: run[name])
    row("together", lambda run: [sum(values) for values in zip(*run.values(), strict=True)])
