"""Cores, instructions and memory of machines that are described in folders."""

import os

import pytest

from opensora_lite import machine
from opensora_lite.machine import Memory, has_instructions, memory, usable_cores

GB = 2**30


def describe(root, files: dict[str, str]):
    """Write `files`, {path below root: text}."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def topology(root, siblings: list[str]):
    """The threads of each core, as each of its processors names them: "0,4" or "0-1"."""
    paths = (f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list" for i in range(len(siblings)))
    describe(root, dict(zip(paths, siblings, strict=True)))


def test_threads_of_one_core_count_once(tmp_path):
    topology(tmp_path, ["0,4", "1,5", "2,6", "3,7"] * 2)
    assert usable_cores(tmp_path, set(range(8))) == 4
    assert usable_cores(tmp_path, {0, 4}) == 1  # both threads of one core, which is all that taskset allows
    assert usable_cores(tmp_path, {0, 1, 4}) == 2
    assert usable_cores(tmp_path, {0, 1, 8, 9}) == 4  # of 8 and 9 nothing is known: cores of their own


def test_this_machine_has_a_core_for_every_processor_or_every_other():
    assert len(machine.allowed_processors()) / 8 <= usable_cores() <= len(machine.allowed_processors())


QUOTAS = {  # of a container: what it may use, and the files that say so
    "version 2": (3, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}),
    "version 2, a part of a core": (1, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}),
    "version 2, one and a half": (1, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}),
    "version 2, no limit": (8, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}),
    "version 2, the limit of a group above": (
        2,
        {
            "proc/self/cgroup": "0::/user/job",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000",
            "sys/fs/cgroup/user/cpu.max": "200000 100000",
        },
    ),
    "version 1": (
        4,
        {
            "proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/docker/0123",  # a path outside of the container
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    ),
    "version 1, no limit": (
        8,
        {
            "proc/self/cgroup": "3:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    ),
    "nothing": (8, {}),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_quotas_of_containers(tmp_path, name):
    cores, files = QUOTAS[name]
    describe(tmp_path, files)
    assert usable_cores(tmp_path, set(range(8))) == cores


MEMINFO = f"MemTotal:       {64 * 2**20} kB\nMemFree:         {2**20} kB\nMemAvailable:   {48 * 2**20} kB"


def test_memory_of_a_machine(tmp_path):
    assert memory(tmp_path) == Memory(None, None)
    describe(tmp_path, {"proc/meminfo": MEMINFO})
    assert memory(tmp_path) == Memory(64 * GB, 48 * GB)


def test_memory_of_a_container(tmp_path):
    describe(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/job",
            "sys/fs/cgroup/job/memory.max": str(16 * GB),
            "sys/fs/cgroup/job/memory.current": str(10 * GB),
            "sys/fs/cgroup/job/memory.stat": f"anon {6 * GB}\ninactive_file {3 * GB}\nactive_file 0",
            "sys/fs/cgroup/memory.max": "max",
        },
    )
    assert memory(tmp_path) == Memory(16 * GB, 9 * GB)  # files that were read once give way


def test_memory_of_a_container_of_version_1(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/job\n0::/",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(8 * GB),
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(7 * GB),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # none
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
    }
    describe(tmp_path, files)
    assert memory(tmp_path) == Memory(8 * GB, GB)


def test_a_limit_of_the_process(tmp_path):
    limits = "Limit                     Soft Limit           Hard Limit           Units\n"
    limits += f"Max address space         {4 * GB}           unlimited            bytes"
    pages = GB // os.sysconf("SC_PAGE_SIZE")
    describe(
        tmp_path, {"proc/meminfo": MEMINFO, "proc/self/limits": limits, "proc/self/statm": f"{pages} 300 200 1 0 0 0"}
    )
    assert memory(tmp_path) == Memory(4 * GB, 3 * GB)
    describe(tmp_path, {"proc/self/limits": limits.replace(str(4 * GB), "unlimited")})
    assert memory(tmp_path) == Memory(64 * GB, 48 * GB)


def test_instructions(tmp_path):
    describe(tmp_path, {"proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: sse avx512f\n\nflags\t: other"})
    assert has_instructions("avx512f", tmp_path)
    assert not has_instructions("avx512", tmp_path) and not has_instructions("other", tmp_path)
    assert machine.processor(tmp_path)["vendor_id"] == "GenuineIntel"
    assert machine.processor(tmp_path / "nothing") == {}
