"""What this machine gives to the process: cores, instructions, memory, as Linux tells of them in /proc and /sys.

Containers are often allowed less than the machine has; their limits (control groups, in both of their versions) count
here. `root` stands for / everywhere, so that a test can describe any machine. Elsewhere than on Linux what is not
known is None, or what Python's standard library says.
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


def cache_folder() -> Path:
    """Where `engine` keeps programs: $OPENSORA_CACHE, or the folder opensora-lite in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("OPENSORA_CACHE"):
        return Path(os.environ["OPENSORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensora-lite"


def allowed_processors() -> set[int]:
    """The numbers of the processors that this process may run on; two threads of one core are two of them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable_cores(root: Path = ROOT, processors: set[int] | None = None) -> int:
    """How many threads can compute at once: cores, not their hyperthreads, and no more than a container's quota.

    root: see above. processors: those that may be used, by number; None: those of this process.
    """
    cores = set()
    for number in allowed_processors() if processors is None else processors:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        cores.add(siblings or number)
    return max(min(len(cores), int(_processor_quota(root))), 1)


def _processor_quota(root: Path) -> float:
    """Processors' worth of time that the control groups of this process allow."""
    quotas = [2.0**16]
    for folder in _groups(root, "cpu"):
        both = re.fullmatch(r"(\d+) (\d+)", _read(folder / "cpu.max") or "")  # version 2: "150000 100000", "max 100000"
        if both:
            quotas.append(int(both[1]) / int(both[2]))
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") or 0 for name in ("quota", "period"))  # version 1
        if quota > 0 and period > 0:  # -1 is no limit
            quotas.append(quota / period)
    return min(quotas)


@functools.cache
def processor(root: Path = ROOT) -> dict[str, str]:
    """What /proc/cpuinfo below `root` says of the first processor: "vendor_id", "flags" and so on; {} if nothing."""
    first, _, _ = (_read(root / "proc/cpuinfo") or "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def has_instructions(flag: str, root: Path = ROOT) -> bool:
    """Whether the processor (of the machine at `root`) has the instructions `flag`: "avx512_bf16", "amx_tile"."""
    return flag in processor(root).get("flags", "").split()


@dataclass(frozen=True)
class Memory:
    """Bytes of memory; None where this system does not tell."""

    total: int | None  # that this process could ever have: the machine's, or its container's if that is less
    available: int | None  # that it could have now


def memory(root: Path = ROOT) -> Memory:
    """The memory of the machine at `root`, of the container that this process is in, or up to its limit (ulimit -v)."""
    pairs = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(root / "proc/meminfo") or "", re.MULTILINE))
    totals = [1024 * int(pairs["MemTotal"])] if "MemTotal" in pairs else []
    available = [1024 * int(pairs["MemAvailable"])] if "MemAvailable" in pairs else []
    for folder in _groups(root, "memory"):
        for limit, used, cache in (  # of version 2, of version 1; cached files give way when memory is asked for
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _number(folder / limit), _number(folder / used)
            if most is None or now is None:
                continue
            files = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE)
            totals.append(most)
            available.append(max(most - now + (int(files[1]) if files else 0), 0))
    limits, size = _read(root / "proc/self/limits") or "", _read(root / "proc/self/statm") or ""
    most_addresses = re.search(r"^Max address space +(\d+) ", limits, re.MULTILINE)
    if most_addresses and size:
        totals.append(int(most_addresses[1]))
        available.append(max(totals[-1] - int(size.split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0))
    return Memory(min(totals, default=None), min(available, default=None))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, and of those above them, for one controller."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [controllers, controller] if controllers else ["", "unified"]  # of version 1, of version 2
        place = Path(path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for group in (place, *place.parents):  # in a container, the path may be that outside of it
                yield root / "sys/fs/cgroup" / mount / group


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text and re.fullmatch("-?[0-9]+", text) else None
