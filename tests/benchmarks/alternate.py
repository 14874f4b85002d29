"""Times several ways of doing the same work fairly on a busy machine, and keeps and compares what was found.

A turn of each way, again and again, so that whatever else the machine does hits all alike; medians. What is comparable
between runs and machines is a ratio: to another way, or to the products of matrices that were timed in between.

    python tests/benchmarks/alternate.py BEFORE.json AFTER.json
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAUSE = 0.3  # seconds; after a turn the threads of Intel OpenMP, which Paddle uses, spin for 0.2 s (KMP_BLOCKTIME)
TURNS = max(int(os.environ.get("OPENSORA_BENCH_TURNS", 5)), 5)  # of which the median is taken


@dataclass
class Row:
    """One way of doing some work."""

    seconds: list[float] = field(default_factory=list)  # of each turn
    first: float | None = None  # seconds until the first turn was done: loading and compiling included
    memory: int | None = None  # most bytes that its process held beyond its imports
    error: float | None = None  # ‖out − expected‖ / ‖expected‖, expected: what dynamic fp32 gives
    psnr: float | None = None  # dB, of videos
    unable: str | None = None  # why there is nothing else here

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


def alternate(ways: dict[str, Callable[[int], float]], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each way's turns. A way is called with the number of the turn and says how many seconds it took."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(1, turns + 1):
        for name in names:
            time.sleep(PAUSE)
            seconds[name].append(ways[name](turn))
        names = [*names[1:], names[0]]  # nobody always comes after the same one
    return seconds


def median_of(function: Callable[[], object], turns: int = TURNS) -> float:
    """Seconds of a call, the median after one to warm up."""

    def way(turn):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    way(0)
    return statistics.median(alternate({"": way}, turns)[""])


# ---------------------------------------------------------------------------------------------------------------------
#   Tables
# ---------------------------------------------------------------------------------------------------------------------


def shown(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def milliseconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}"


def table(lines: list[list[str]]) -> str:
    """Columns of a table, right-justified but for the last one."""
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(max(map(len, lines)))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i < len(widths) - 1 else cell for i, (cell, w) in enumerate(zip(line, widths)))  # noqa: B905
        for line in lines
    )


# ---------------------------------------------------------------------------------------------------------------------
#   Results
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """What was found of one piece of work."""

    title: str
    rows: dict[str, Row]
    flops: int | None = None
    peaks: dict[str, float] = field(default_factory=dict)  # FLOP/s of large products of matrices, by precision

    def share(self, name: str) -> float | None:
        """Which part of the peak of its precision a row reaches; its name ends with that."""
        median, peak = self.rows[name].median, self.peaks.get(name.rpartition(" ")[2])
        return self.flops / median / peak if self.flops and median and peak else None

    def ratio(self, name: str, other: str) -> float | None:
        """How many times as fast as another a row is: the median of the turns' ratios is not needed, they alternate."""
        mine, theirs = self.rows[name].median, self.rows[other].median
        return theirs / mine if mine and theirs else None

    def print(self, peers: dict[str, str]):
        """peers: names of rows to compare with, and what stands above their column."""
        peers = {name: label for name, label in peers.items() if name in self.rows and self.rows[name].median}
        videos = any(row.psnr is not None for row in self.rows.values())
        head = ["ms", "±", *(f"× {label}" for label in peers.values()), "of peak", "MB", "first", "error"]
        lines = [[*head, *(["dB"] if videos else []), ""]]
        for name, row in self.rows.items():
            if row.unable:
                lines.append(["—", *[""] * (len(lines[0]) - 2), f"{name}: {row.unable}"])
                continue
            spread = statistics.quantiles(row.seconds, n=4) if len(row.seconds) > 1 else [0, 0, 0]
            lines.append(
                [
                    milliseconds(row.median),
                    f"{(spread[2] - spread[0]) / 2 / row.median:.0%}",
                    *(shown(self.ratio(name, peer), ".2f") for peer in peers),
                    shown(self.share(name), ".2f"),
                    "—" if row.memory is None else f"{row.memory / 1e6:.0f}",
                    "—" if row.first is None else f"{row.first:.1f} s",
                    shown(row.error, ".1e"),
                    *([shown(row.psnr, ".1f")] if videos else []),
                    name,
                ]
            )
        work = f", {self.flops / 1e9:,.1f} GFLOP" if self.flops else ""
        peak = ", ".join(f"{precision} {rate / 1e9:.0f}" for precision, rate in self.peaks.items())
        print(f"\n\n{self.title}{work}{f'; peak {peak} GFLOP/s' if peak else ''}\n{table(lines)}", flush=True)


def machine() -> dict:
    """What a result depends on, apart from the code."""
    names = ("paddlepaddle", "paddlepaddle-gpu", "ppdiffusers", "paddlenlp", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def read(path: Path) -> tuple[dict, dict[str, Table]]:
    """A result file: what is said of the machine, and the tables by name."""
    result = json.loads(path.read_text())
    tables = {}
    for name, values in result["tables"].items():
        rows = {row: Row(**fields) for row, fields in values.pop("rows").items()}
        tables[name] = Table(**values, rows=rows)
    return result["machine"], tables


def write(path: Path, about: dict, tables: dict[str, Table], **more):
    """A result file, which `read` and later versions of this program can read."""
    from opensora_lite.io.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": about, "tables": {name: asdict(t) for name, t in tables.items()}, **more})


def compare(before: Path, after: Path) -> str:
    """The tables of two result files side by side.

    Two runs never meet the same machine: beside the times stand the shares of the peak that was measured along with
    them, and how they changed says more.
    """
    (about_before, tables_before), (about_after, tables_after) = read(before), read(after)
    text = []
    for label in sorted({*about_before, *about_after} - {"load"}):
        a, b = about_before.get(label), about_after.get(label)
        text.append(f"{label}: {a}" if a == b else f"{label}: {a} -> {b}")
    for name in tables_before:
        if name not in tables_after:
            text.append(f"\n{tables_before[name].title}: only before")
            continue
        old, new = tables_before[name], tables_after[name]
        lines = [["ms: before", "after", "faster", "of peak: before", "after", "faster", "MB: before", "after", ""]]
        for row in {**old.rows, **new.rows}:
            a, b = old.rows.get(row, Row()), new.rows.get(row, Row())
            shares = [t.share(row) if row in t.rows else None for t in (old, new)]
            known = a.median and b.median
            lines.append(
                [
                    milliseconds(a.median),
                    milliseconds(b.median),
                    f"{a.median / b.median:.2f}" if known else "—",
                    *(shown(share, ".2f") for share in shares),
                    f"{shares[1] / shares[0]:.2f}" if all(shares) else "—",
                    *("—" if r.memory is None else f"{r.memory / 1e6:.0f}" for r in (a, b)),
                    row,
                ]
            )
        text.append(f"\n{new.title}\n{table(lines)}")
    text += [f"\n{tables_after[name].title}: only after" for name in tables_after if name not in tables_before]
    return "\n".join(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compares two result files of `make bench`.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    a = parser.parse_args()
    print(compare(a.before, a.after))
