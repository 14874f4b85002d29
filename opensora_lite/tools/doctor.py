"""`opensora-lite doctor`: what this machine has, what is missing or slow, and what to do about it.

Packages are imported in a process of its own, which prints a line of JSON after each of them. A package that is broken,
or that ends the process (Paddle on a CPU without AVX), is then a finding and not the end of the report.
"""

import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from opensora_lite import machine
from opensora_lite.device import import_paddle, quiet
from opensora_lite.lean_imports import lean_paddlenlp

SECONDS = 3.0  # of matrix products
PRODUCT = (1024, 1152, 4608)  # rows, inner, columns: the first layer of XL/2's MLP for 1024 tokens
USUAL = 15  # GFLOP/s of one core in fp32: a slow laptop
TIMEOUT = 600  # seconds after which the process that imports is considered hung
INSTALL = 'in the checkout, run: pip install -e ".[cpu,notebook]" (or make demo)'

NEEDED = {  # module -> package; without one of these no video can be made
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "av": "av",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "ftfy": "ftfy",
    "bs4": "beautifulsoup4",
    "tqdm": "tqdm",
    "paddle": "paddlepaddle",
    "paddlenlp": "paddlenlp",
    "ppdiffusers": "ppdiffusers",
}
USED_PARTS = {"paddlenlp": "paddlenlp.transformers", "ppdiffusers": "ppdiffusers.models.autoencoder_kl"}
FOR_NOTEBOOKS = ("jupyterlab", "ipywidgets", "anywidget", "matplotlib", "mediapy", "papermill")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    advice: str = ""  # what is wrong, and what to do about it
    blocks: bool = False  # whether no video can be made until then


def examine(seconds: float = SECONDS) -> list[Finding]:
    """All findings, in order. seconds: how long matrix products are measured."""
    probed, end = _run_probe(seconds)
    findings: list[Finding] = []
    for check in (partial(packages, probed, end), partial(compute, probed), memory):
        try:
            findings += check()
        except Exception as error:  # an unusual machine, or psutil is missing: the other checks still help
            findings.append(Finding("doctor", "not examined", f"{type(error).__name__}: {error}"))
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as text: sections, then what to improve and what to repair, then whether videos can be made."""
    lines, section = [], None
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        mark = "x" if finding.blocks else "!" if finding.advice else " "
        lines.append(f"{mark} {finding.name:{width}}{finding.value}".rstrip())
    blocked = any(finding.blocks for finding in findings)
    for title, blocks in (("What could be better", False), ("What has to be repaired", True)):
        names: dict[str, list[str]] = {}  # advice -> the findings that have it
        for finding in findings:
            if finding.advice and finding.blocks == blocks:
                names.setdefault(finding.advice, []).append(finding.name)
        if names:
            lines += ["", title, *(f"- {', '.join(found)}: {advice}" for advice, found in names.items())]
    lines += ["", "No video can be made until then." if blocked else "Videos can be made here."]
    return "\n".join(lines[1:])


# ---------------------------------------------------------------------------------------------------------------------
#   The process that imports
# ---------------------------------------------------------------------------------------------------------------------


def probe(seconds: float) -> Iterator[tuple[str, Any]]:
    """("trying", name) and then (name, result) for each package, for Paddle's devices, compiling and speed."""
    for module in NEEDED:
        yield "trying", module
        try:
            yield module, _import(module)
        except Exception as error:
            yield module, {"error": f"{type(error).__name__}: {error}"}
    paddle = sys.modules.get("paddle")
    if paddle is None:
        return
    yield "trying", "paddle's devices"
    cuda = paddle.device.cuda
    gpus = cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    names = [cuda.get_device_name(i) for i in range(gpus)]
    sizes = [cuda.get_device_properties(i).total_memory for i in range(gpus)]
    yield "devices", {"cuda": paddle.is_compiled_with_cuda(), "names": names, "bytes": sizes}
    if gpus:
        yield "trying", "flash attention"
        yield "flash attention", _flash_attention(paddle)
    paddle.set_device("gpu" if gpus else "cpu")
    yield "trying", "a matrix product"
    yield "GFLOP/s", product_rate(seconds)
    if not gpus:
        yield "trying", "compiling"
        yield "compiling", _step_times()


def _import(module: str) -> dict[str, Any]:
    """Import a package; returns the seconds that it took, and the FFmpeg of PyAV."""
    start = time.perf_counter()
    if module == "paddle":
        import_paddle()
    elif module in USED_PARTS:
        with quiet(), lean_paddlenlp():
            importlib.import_module(USED_PARTS[module])
    else:
        importlib.import_module(module)
    seconds = time.perf_counter() - start
    if module != "av":
        return {"seconds": seconds}
    import av

    av.codec.Codec("h264", "w")  # for `Video.save`; raises if this build has no encoder
    return {
        "seconds": seconds,
        "detail": f" (FFmpeg {getattr(av, 'ffmpeg_version_info', 'of unknown version')}, H.264)",
    }


def _flash_attention(paddle: Any) -> str:
    """Attention in half precision on the GPU: "works", or the error."""
    try:
        with paddle.no_grad():
            x = paddle.ones([1, 128, 4, 64], "float16")
            paddle.nn.functional.scaled_dot_product_attention(x, x, x).astype("float32").sum().item()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
    return "works"


def _step_times() -> dict[str, Any]:
    """Seconds of a denoising step of the small model, "uncompiled" and "compiled"; "error" if compiling failed."""
    from opensora_lite import OpenSora

    found: dict[str, Any] = {}
    try:
        with quiet(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe = OpenSora.from_pretrained("tiny", device="cpu")
            for name in ("uncompiled", "compiled"):
                ends: list[float] = []
                pipe("a car", num_sampling_steps=6, on_step=lambda _: ends.append(time.perf_counter()))  # noqa: B023
                found[name] = min(b - a for a, b in itertools.pairwise(ends))
                pipe.compile("fp32")
        problems = [str(warning.message) for warning in caught if "uncompiled" in str(warning.message)]
        return found | ({"error": problems[0]} if problems else {})
    except Exception as error:
        return found | {"error": f"{type(error).__name__}: {error}"}


def product_rate(seconds: float) -> float:
    """GFLOP/s of a matrix product in fp32 on Paddle's current device: the best within some seconds."""
    import paddle

    rows, inner, columns = PRODUCT
    a, b = paddle.randn([rows, inner]), paddle.randn([inner, columns])
    best, end = 0.0, time.perf_counter() + seconds
    with paddle.no_grad():
        paddle.matmul(a, b)[0, 0].item()
        while time.perf_counter() < end:
            start = time.perf_counter()
            paddle.matmul(a, b)[0, 0].item()  # waits for a GPU
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - start))
    return best


def _run_probe(seconds: float) -> tuple[dict[str, Any], str]:
    """The results of `probe` in another process, and how that process failed ("" if it didn't)."""
    command = [sys.executable, "-m", "opensora_lite.tools.doctor", str(seconds)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        output, code, stderr = child.stdout, child.returncode, child.stderr.strip()
    except subprocess.TimeoutExpired as error:
        output, code, stderr = (error.stdout or b"").decode(errors="replace"), 0, f"it hung for {TIMEOUT} s"
    probed = dict(json.loads(line[1:]) for line in output.splitlines() if line.startswith("\0"))
    if "done" in probed:
        return probed, ""
    if code < 0:
        return probed, f"the process was ended by {signal.Signals(-code).name}"
    return probed, stderr.splitlines()[-1] if stderr else f"exit code {code}"


def main(seconds: float) -> None:
    """Print the results of `probe` one by one. Their lines begin with a zero byte, since packages print as well."""
    for found in itertools.chain(probe(seconds), [("done", True)]):
        print(f"\n\0{json.dumps(found)}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
#   Findings
# ---------------------------------------------------------------------------------------------------------------------


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name) + (" (GPU build)" if name != package else "")
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def packages(probed: dict[str, Any], end: str) -> Iterator[Finding]:
    """Python and the packages. probed, end: see `_run_probe`."""
    finding = partial(Finding, "packages")
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield finding("Python", platform.python_version(), "" if supported else "Python 3.10, 3.11 or 3.12 is needed")
    for module, package in NEEDED.items():
        version, result = version_of(package), probed.get(module)
        shown = version or "of unknown version"
        if result and "error" not in result:
            slow = f", imported in {result['seconds']:.1f} s" if result["seconds"] > 0.5 else ""
            yield finding(package, shown + result.get("detail", "") + slow)
        elif version is None:
            yield finding(package, "not installed", INSTALL, blocks=True)
        elif result:
            yield finding(package, shown, f"it cannot be imported ({result['error']}); {INSTALL}", blocks=True)
        elif probed.get("trying") == module:
            avx = ": Paddle needs a CPU with AVX" if module == "paddle" and "SIGILL" in end else ""
            yield finding(package, shown, f"importing it fails, {end}{avx}", blocks=True)
        else:
            yield finding(package, f"{shown}, not tried")
    if end and probed.get("trying") not in NEEDED:
        what = probed.get("trying", "the process")
        yield finding(what, "failed", end, blocks=what == "the process")
    missing = [name for name in FOR_NOTEBOOKS if version_of(name) is None]
    advice = f"for the course, {INSTALL}" if missing else ""
    yield finding("for notebooks", f"without {', '.join(missing)}" if missing else "all installed", advice)


def compute(probed: dict[str, Any]) -> Iterator[Finding]:
    """Devices, cores, instruction sets, threads and speed. probed: see `_run_probe`."""
    finding = partial(Finding, "compute")
    cores = machine.usable_cores()
    model = machine.processor().get("model name", platform.processor() or platform.machine())
    yield finding("processor", f"{model}, {cores} core(s) usable, {len(machine.allowed_processors())} thread(s)")
    flags = [flag for flag in INSTRUCTIONS if machine.has_instructions(flag)]
    bf16 = "" if any("bf16" in flag for flag in flags) else "; no bf16, so fp32 is the fastest here"
    yield finding("instructions", (", ".join(flags) or "unknown") + bf16)

    threads = os.environ.get("OMP_NUM_THREADS", "")
    wrong = threads.isdigit() and int(threads) != cores
    advice = f"OMP_NUM_THREADS is {threads}, but there are {cores} core(s): unset it, and it is chosen" if wrong else ""
    yield finding("threads", threads or "Paddle's choice", advice)
    devices = probed.get("devices", {"names": [], "bytes": [], "cuda": False})
    if "devices" in probed:
        names = [f"{name}, {size / 1e9:.0f} GB" for name, size in zip(devices["names"], devices["bytes"], strict=True)]
        advice = ""
        if not names and devices["cuda"]:
            advice = "Paddle's GPU build finds no GPU: does nvidia-smi, and is the driver new enough?"
        elif not names and (machine.ROOT / "proc/driver/nvidia/version").exists():
            advice = "there is an NVIDIA GPU, but this is Paddle's CPU build: README.md says which one to install"
        yield finding("GPU", "; ".join(names) or "none that Paddle can use", advice)
    if "flash attention" in probed:
        works = probed["flash attention"] == "works"
        advice = "" if works else f"attention needs more time and memory without it: {probed['flash attention']}"
        yield finding("flash attention", "works" if works else "does not work", advice)
    if "GFLOP/s" in probed:
        rate = probed["GFLOP/s"]
        if devices["names"]:
            yield finding("matrix product", f"{rate:.0f} GFLOP/s in fp32")
        else:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            advice = ""
            if load > cores + 0.5:
                advice = f"other programs are computing (load {load:.1f} on {cores} core(s)): everything takes longer"
            elif rate < USUAL * cores:
                advice = f"a core usually reaches {USUAL} or more: see threads, or the laptop may be saving energy"
            value = f"{rate:.0f} GFLOP/s in fp32, {rate / cores:.0f} per core; load {load:.1f}"
            yield finding("matrix product", value, advice)
    if "compiling" in probed:
        times = probed["compiling"]
        steps = ", ".join(f"{1000 * times[name]:.0f} ms {name}" for name in ("uncompiled", "compiled") if name in times)
        advice = ""
        if "error" in times:
            advice = f"the model cannot be compiled, and a video takes two to three times as long: {times['error']}"
        yield finding("denoising step", f"{steps or 'failed'} (small model, 16×64×64)", advice)


def memory() -> Iterator[Finding]:
    """Memory, disk and the cache of compiled models."""
    finding = partial(Finding, "memory")
    found = machine.memory()
    advice = "" if found.available > 1e9 else "the small model needs about 0.7 GB with Paddle: end other programs"
    yield finding("memory", f"{found.total / 1e9:.1f} GB, {found.available / 1e9:.1f} GB available", advice)
    free = shutil.disk_usage(os.curdir).free
    yield finding("disk", f"{free / 1e9:.1f} GB free in this folder", "" if free > 1e8 else "free some space")
    sizes = [path.stat().st_size for path in machine.cache_folder().rglob("*") if path.is_file()]
    cached = f"{len(sizes)} file(s), {sum(sizes) / 1e6:.1f} MB, in {machine.cache_folder()}"
    yield finding("compiled models", cached if sizes else "none cached yet")


if __name__ == "__main__":
    main(float(sys.argv[1]))
