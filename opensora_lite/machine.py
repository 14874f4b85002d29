"""CPU cores, instruction sets and memory that this process may use.

psutil reports the whole machine. Containers, batch systems and `taskset` give a process less, so CPU affinity, the
limits of control groups (cgroup v1 and v2) and `ulimit -v` are applied to what psutil reports.
"""

import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")  # where /proc and /sys are; tests replace it by a folder that describes another machine


def cache_folder() -> Path:
    """The folder of compiled programs: $OPENSORA_CACHE, or opensora-lite in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("OPENSORA_CACHE"):
        return Path(os.environ["OPENSORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensora-lite"


# ---------------------------------------------------------------------------------------------------------------- CPU


def allowed_processors() -> set[int]:
    """Numbers of the logical CPUs that this process may run on; the two threads of one core are two of them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Number of threads that compute at full speed: physical cores among the allowed CPUs, at most the cgroup quota."""
    siblings = (
        _read(ROOT / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") or number
        for number in allowed_processors()
    )
    return max(int(min(len(set(siblings)), _cpu_quota())), 1)


def _cpu_quota() -> float:
    """CPUs' worth of time that the control groups of this process allow; infinity without a limit."""
    quotas = [math.inf]
    for folder in _cgroups("cpu"):
        limit = (_read(folder / "cpu.max") or "").split()  # v2: "150000 100000" or "max 100000"
        limit = limit or [
            _read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")
        ]  # v1; -1: no limit
        if len(limit) == 2 and all(map(str.isdecimal, limit)):
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas)


@functools.cache
def _cpuinfo(root: Path) -> dict[str, str]:
    first, _, _ = (_read(root / "proc/cpuinfo") or "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor() -> dict[str, str]:
    """The entry of the first CPU in /proc/cpuinfo: "vendor_id", "model name", "flags", …; {} except on Linux."""
    return _cpuinfo(ROOT)


def has_instructions(flag: str) -> bool:
    """Whether the CPU has an instruction set, named as in /proc/cpuinfo: "avx512_bf16", "amx_tile"."""
    return flag in processor().get("flags", "").split()


# ------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory."""

    total: int  # the machine's, or less where a limit applies to this process
    available: int  # what this process could allocate now


def memory() -> Memory:
    """Main memory, with the limits of this process's control groups and of its address space (ulimit -v)."""
    import psutil  # here, so that `opensora-lite doctor` runs, and says so, where it is missing

    machine = psutil.virtual_memory()
    total, available = [machine.total], [machine.available]
    for folder in _cgroups("memory"):
        for limit, usage, cache in (  # v2, v1; the kernel drops cached files when memory is needed
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _read(folder / limit) or "", _read(folder / usage) or ""
            if most.isdecimal() and used.isdecimal():
                files = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE)
                total.append(int(most))
                available.append(max(int(most) - int(used) + (int(files[1]) if files else 0), 0))
    if psutil.LINUX:
        address_space, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if address_space != psutil.RLIM_INFINITY:
            total.append(address_space)
            available.append(max(address_space - psutil.Process().memory_info().vms, 0))
    return Memory(min(total), min(available))


def _cgroups(controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process and of their ancestors, for "cpu" or "memory"."""
    for line in (_read(ROOT / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for mount in {controllers, controller} if controllers else ("", "unified"):  # v1; v2
            for folder in (group, *group.parents):  # a container may see the path that the host uses
                yield ROOT / "sys/fs/cgroup" / mount / folder


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
