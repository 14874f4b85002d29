"""Cores, instruction sets and memory, on machines that are described by the files of /proc and /sys."""

import re
import subprocess
import sys

import psutil
import pytest

from opensora_lite import machine
from opensora_lite.machine import Memory, has_instructions, memory, usable_cores

GB = 2**30


def test_threads_of_one_core_count_once(other_machine):
    other_machine.siblings(["0,4", "1,5", "2,6", "3,7"] * 2)
    assert usable_cores() == 4
    for cpus, cores in (({0, 4}, 1), ({0, 1, 4}, 2), ({0, 1, 8, 9}, 4)):  # of 8 and 9 nothing is known
        other_machine.allow(cpus)
        assert usable_cores() == cores


def test_this_machine_has_at_most_one_core_for_each_logical_cpu():
    assert 1 <= usable_cores() <= len(machine.allowed_processors())


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
def test_quotas_of_containers(other_machine, name):
    cores, files = QUOTAS[name]
    other_machine.write(files)
    assert usable_cores() == cores


def test_memory_of_a_container(other_machine):
    assert memory() == Memory(64 * GB, 48 * GB)
    other_machine.write(
        {
            "proc/self/cgroup": "0::/job",
            "sys/fs/cgroup/job/memory.max": str(16 * GB),
            "sys/fs/cgroup/job/memory.current": str(10 * GB),
            "sys/fs/cgroup/job/memory.stat": f"anon {6 * GB}\ninactive_file {3 * GB}\nactive_file 0",
            "sys/fs/cgroup/memory.max": "max",
        },
    )
    assert memory() == Memory(16 * GB, 9 * GB)  # cached files are given back


def test_memory_of_a_container_of_version_1(other_machine):
    other_machine.write(
        {
            "proc/self/cgroup": "4:memory:/job\n0::/",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(8 * GB),
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(7 * GB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # no limit
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
        }
    )
    assert memory() == Memory(8 * GB, GB)


@pytest.mark.skipif(not psutil.LINUX, reason="psutil reads RLIMIT_AS on Linux only")
def test_a_limit_of_the_address_space():
    program = "import psutil, opensora_lite.machine as m; psutil.Process().rlimit(psutil.RLIMIT_AS, (4 << 30,) * 2)"
    done = subprocess.run([sys.executable, "-c", f"{program}; print(m.memory())"], capture_output=True, text=True)
    total, available = (int(n) for n in re.findall(r"=(\d+)", done.stdout))
    assert total == 4 << 30 > available > 0, done.stderr


def test_instructions(other_machine):
    assert machine.processor() == {}
    machine._cpuinfo.cache_clear()
    other_machine.write({"proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: sse avx512f\n\nflags\t: other"})
    assert machine.processor()["vendor_id"] == "GenuineIntel"
    assert has_instructions("avx512f") and not has_instructions("avx512") and not has_instructions("other")
