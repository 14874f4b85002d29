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
    assert re.search(r"compiled models +(work|do not work)$", out, re.MULTILINE)
    rate = re.search(r"matrix product +(\d+) GFLOP/s in fp32", out)
    assert rate and int(rate[1]) > 0
    assert "What has to be mended" not in out


def test_where_nothing_is_installed_it_says_what_to_install(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    code, out = diagnose(tmp_path / "bare" / "bin" / "python")
    assert code == 1 and out.rstrip().endswith("No video can be made before that.")
    assert '- paddlepaddle: pip install "opensora-lite[cpu]", or "[gpu]"' in out
    assert "- sentencepiece: pip install sentencepiece" in out
    assert out.count("not installed") == len(NEEDED)


@pytest.mark.parametrize(
    "module, code, said",
    [
        ("numpy", "raise ImportError('multiarray failed to import')", "it cannot be imported (ImportError: multiarray"),
        ("paddle", "import os; os.kill(os.getpid(), 4)", "SIGILL: Paddle's builds need a processor with AVX"),
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
    monkeypatch.setattr(doctor, "_probed", lambda seconds: ({}, ""))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: 1 / 0)
    found = by_name(doctor.examine())
    assert found["not examined"].value == "ZeroDivisionError: division by zero"
    assert "FFmpeg in PyAV" not in found and "memory" in {finding.section for finding in doctor.examine()}


@pytest.fixture
def amd(other_machine, monkeypatch):
    """A machine with four cores of two threads each, of which this process may use all."""
    other_machine.write({"proc/cpuinfo": "vendor_id: AuthenticAMD\nmodel name: AMD EPYC\nflags: avx2 avx512f"})
    other_machine.siblings(["0,4", "1,5", "2,6", "3,7"] * 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return other_machine


NO_GPU = {"cuda": False, "names": [], "bytes": []}


def test_what_is_slow_is_said_and_how_to_mend_it(amd, monkeypatch):
    found = by_name(doctor.compute({"GFLOP/s": 19.0, "devices": NO_GPU}))
    assert found["processor"].value == "AMD EPYC, 4 core(s) to use of 8 processor(s)"
    assert found["instructions"].value == "avx2, avx512f" and found["bf16 on the processor"].value.startswith("no")
    assert "OMP_NUM_THREADS is 1 and 4 core(s) may be used: unset it" in found["threads"].advice
    assert "three times as fast" in found["MKL on AMD"].advice
    assert "a core usually reaches 15 or more" in found["matrix product"].advice
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "5")
    assert not any(finding.advice for finding in doctor.compute({"GFLOP/s": 200.0, "devices": NO_GPU}))
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    found = by_name(doctor.compute({"GFLOP/s": 20.0}))
    assert found["matrix product"].advice.startswith("other programs are computing (load 9.0 on 4 cores)")


def test_compiling_is_tried(amd, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENSORA_CACHE", str(tmp_path))
    works = by_name(doctor.compute({"compiling": "works"}))["compiled models"]
    assert works.value == "work" and not works.advice
    broken = by_name(doctor.compute({"compiling": "RuntimeError: no plugin"}))["compiled models"]
    assert broken.value == "do not work" and broken.advice.endswith("uncompiled: RuntimeError: no plugin")
    assert by_name(doctor.memory())["compiled, kept"].value == "nothing yet"
    (tmp_path / "a.program").write_bytes(bytes(1_500_000))
    assert by_name(doctor.memory())["compiled, kept"].value == f"1 program(s), 1.5 MB, in {tmp_path}"
    found = by_name(doctor.packages({"trying": "compiling"}, "the process was ended by SIGSEGV"))
    assert found["compiling"].advice == "the process was ended by SIGSEGV" and not found["compiling"].blocks


def test_graphics_processors(amd):
    told = {"devices": {"cuda": True, "names": ["A10"], "bytes": [24e9]}, "flash attention": "works", "GFLOP/s": 9000.0}
    found = by_name(doctor.compute(told))
    assert found["GPU"].value == "A10, 24 GB" and found["flash attention"].value == "works"
    assert found["matrix product"].value == "9000 GFLOP/s in fp32"
    found = by_name(doctor.compute(told | {"flash attention": "RuntimeError: sm_70 is too old"}))
    assert "takes more time and memory without it: RuntimeError: sm_70" in found["flash attention"].advice
    found = by_name(doctor.compute({"devices": NO_GPU | {"cuda": True}}))
    assert found["GPU"].advice.startswith("Paddle is built for GPUs and sees none")
    assert not by_name(doctor.compute({"devices": NO_GPU}))["GPU"].advice
    amd.write({"proc/driver/nvidia/version": "NVRM version"})
    found = by_name(doctor.compute({"devices": NO_GPU}))
    assert "there is an NVIDIA GPU, but this Paddle is the CPU build" in found["GPU"].advice


def test_memory_and_disk(other_machine, monkeypatch):
    assert by_name(doctor.memory())["memory"].value == "68.7 GB in all, 51.5 GB free now"
    other_machine.memory(int(4e9), int(3e8))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5}))
    found = by_name(doctor.memory())
    assert "end other programs" in found["memory"].advice and found["disk, here"].advice == "make room"


def test_the_ffmpeg_that_mediapy_cannot_use_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: "0.8.1")
    assert "'imageio-ffmpeg<0.8'" in by_name(doctor.media({"av": {"ffmpeg": "8.1"}}))["ffmpeg for notebooks"].advice
    monkeypatch.setattr(doctor, "version_of", lambda package: "0.7.0")
    assert not any(finding.advice for finding in doctor.media({"av": {"ffmpeg": "8.1"}}))


def test_a_report_says_what_to_mend_and_whether_it_works():
    found = [Finding("packages", "numpy", "2.0"), Finding("compute", "threads", "1", advice="unset it")]
    text = doctor.report(found)
    assert text.startswith(
        "packages\n  numpy    2.0\n\ncompute\n! threads  1\n\nWhat would be better\n- threads: unset it"
    )
    assert text.endswith("Videos can be made here.")
    assert doctor.report([*found, Finding("packages", "paddle", "", "get it", blocks=True)]).endswith(
        "What has to be mended\n- paddle: get it\n\nNo video can be made before that."
    )
