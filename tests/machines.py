"""Other machines, described by the files of /proc and /sys in a folder; fixture `other_machine` in conftest.py."""

from types import SimpleNamespace

import psutil
import pytest

from opensora_lite import machine


class OtherMachine:
    """A machine with 64 GiB of memory, 48 free, on which this process may run on CPUs 0 … 7."""

    def __init__(self, root, monkeypatch: pytest.MonkeyPatch):
        self.root, self.monkeypatch = root, monkeypatch
        monkeypatch.setattr(machine, "ROOT", root)
        self.memory(64 * 2**30, 48 * 2**30)
        self.allow(range(8))

    def write(self, files: dict[str, str]):
        """files: {path below /: content}."""
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")

    def siblings(self, lists: list[str]):
        """For each CPU, the threads of its core: "0,4" or "0-1"."""
        self.write(
            {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in enumerate(lists)}
        )

    def allow(self, cpus):
        self.monkeypatch.setattr(machine, "allowed_processors", lambda: set(cpus))

    def memory(self, total: int, available: int):
        found = SimpleNamespace(total=total, available=available)
        self.monkeypatch.setattr(psutil, "virtual_memory", lambda: found)
