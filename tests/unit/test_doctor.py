"""What the doctor finds on machines that are whole, broken, empty, or described in folders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_lite.tools import doctor
from opensora_lite.tools.doctor import NEEDED, Finding

ROOT = Path(__file__).parents[2]


def diagnose(python=sys.executable, *folders) -> tuple[int, str]:
    """Exit code and output of the command in a process whose imports look into `folders` first."""
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    command = [python, "-m", "opensora_lite.tools.cli", "doctor"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=-1, stderr=-2, text=True)
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def by_name(findings) -> dict[str, Finding]:
    """{name: finding}"""
    return {finding.name: finding for finding in findings}


def test_here_all_is_well():
    code, out = diagnose()
    assert code == 0 and out.rstrip().endswith("Videos can be made here.")
    for package in NEEDED.values():
        assert re.search(rf"^  {package} +\d", out, re.MULTILINE), package
    assert re.search(r"denoising step +\d+ ms uncompiled", out)
    assert re.search(r"matrix product +[1-9]\d* GFLOP/s in fp32", out)
    assert re.search(r"^  av +.*FFmpeg .*H.264", out, re.MULTILINE) and "repaired" not in out


def test_where_nothing_is_installed_it_says_what_to_install(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    code, out = diagnose(python)
    assert code == 1 and out.count("not installed") == len(NEEDED)
    assert re.search(r"^- numpy, .*, ppdiffusers: .*pip install -e", out, re.MULTILINE)


@pytest.mark.parametrize(
    "module, code, said",
    [
        ("numpy", "raise ImportError('multiarray failed to import')", "it cannot be imported (ImportError: multiarray"),
        ("paddle", "import os; os.kill(os.getpid(), 4)", "SIGILL: Paddle needs a CPU with AVX"),
        ("paddle", "import sys; sys.exit('no space')", "importing it fails, no space"),
        ("ftfy", "print('hello'); 1 / 0", "it cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_broken_package_is_a_finding(tmp_path, module, code, said):
    (tmp_path / f"{module}.py").write_text(code)
    exit_code, out = diagnose(sys.executable, tmp_path)
    assert exit_code == 1
    line = next(line for line in out.splitlines() if line.startswith(f"- {NEEDED[module]}"))
    assert said in line


def test_an_examination_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_run_probe", lambda seconds: ({}, ""))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: 1 / 0)
    found = by_name(doctor.examine())
    assert found["not examined"].value == "ZeroDivisionError: division by zero"
    assert {"packages", "compute"} <= {finding.section for finding in doctor.examine()}


@pytest.fixture
def amd(other_machine, monkeypatch):
    """A machine with four cores of two threads each, of which this process may use all."""
    other_machine.write({"proc/cpuinfo": "vendor_id: AuthenticAMD\nmodel name: AMD EPYC\nflags: avx2 avx512f"})
    other_machine.siblings(["0,4", "1,5", "2,6", "3,7"] * 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return other_machine


NO_GPU = {"cuda": False, "names": [], "bytes": []}


def test_what_is_slow_is_said_and_how_to_mend_it(amd, monkeypatch):
    found = by_name(doctor.compute({"GFLOP/s": 19.0, "devices": NO_GPU}))
    assert "AMD EPYC, 4 core(s)" in found["processor"].value and "8 thread(s)" in found["processor"].value
    assert found["instructions"].value.startswith("avx2, avx512f") and "no bf16" in found["instructions"].value
    assert "OMP_NUM_THREADS" in found["threads"].advice
    assert "15 or more" in found["matrix product"].advice
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not any(finding.advice for finding in doctor.compute({"GFLOP/s": 200.0, "devices": NO_GPU}))
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    found = by_name(doctor.compute({"GFLOP/s": 20.0}))
    assert "load 9.0 on 4 core(s)" in found["matrix product"].advice


def test_compiling_is_tried(amd, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path / "cache"))
    works = by_name(doctor.compute({"compiling": {"uncompiled": 0.0871, "compiled": 0.031}}))["denoising step"]
    assert works.value.startswith("87 ms uncompiled, 31 ms compiled") and not works.advice
    broken = by_name(doctor.compute({"compiling": {"error": "RuntimeError: no plugin"}}))["denoising step"]
    assert "RuntimeError: no plugin" in broken.advice and not broken.blocks
    assert "none" in by_name(doctor.memory())["compiled models"].value
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.blob").write_bytes(bytes(1_500_000))
    assert by_name(doctor.memory())["compiled models"].value == f"1 file(s), 1.5 MB, in {tmp_path / 'cache'}"
    found = by_name(doctor.packages({"trying": "compiling"}, "the process was ended by SIGSEGV"))
    assert "SIGSEGV" in found["compiling"].advice and not found["compiling"].blocks


def test_graphics_processors(amd):
    told = {"devices": {"cuda": True, "names": ["A10"], "bytes": [24e9]}, "flash attention": "works", "GFLOP/s": 9000.0}
    found = by_name(doctor.compute(told))
    assert found["GPU"].value == "A10, 24 GB" and found["flash attention"].value == "works"
    assert found["matrix product"].value == "9000 GFLOP/s in fp32"
    found = by_name(doctor.compute(told | {"flash attention": "RuntimeError: sm_70 is too old"}))
    assert "RuntimeError: sm_70" in found["flash attention"].advice
    found = by_name(doctor.compute({"devices": NO_GPU | {"cuda": True}}))
    assert "nvidia-smi" in found["GPU"].advice
    assert not by_name(doctor.compute({"devices": NO_GPU}))["GPU"].advice
    amd.write({"proc/driver/nvidia/version": "NVRM version"})
    found = by_name(doctor.compute({"devices": NO_GPU}))
    assert "CPU build" in found["GPU"].advice


def test_memory_and_disk(other_machine, monkeypatch):
    assert by_name(doctor.memory())["memory"].value == "68.7 GB, 51.5 GB available"
    other_machine.memory(int(4e9), int(3e8))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5}))
    found = by_name(doctor.memory())
    assert "other programs" in found["memory"].advice and "space" in found["disk"].advice


def test_a_report_says_what_to_mend_and_whether_it_works():
    findings = [Finding("packages", "numpy", "2.0"), Finding("compute", "threads", "1", advice="unset it")]
    text = doctor.report(findings)
    assert (
        text.startswith("packages\n  numpy    2.0\n\ncompute\n! threads  1\n\n") and "\n- threads: unset it\n" in text
    )
    assert text.endswith("Videos can be made here.")
    broken = [Finding("packages", name, "", "get it", blocks=True) for name in ("av", "paddle")]
    text = doctor.report([*findings, *broken])
    assert "\n- av, paddle: get it\n" in text and not text.endswith("Videos can be made here.")
