"""`opensora-lite doctor`: what was found on this machine, what of it is slow or lacking, and how to mend that.

Packages are imported in a process of their own, which tells of each as soon as it is through with it. So one that is
broken, or that ends the process (Paddle on a processor without AVX), is a finding and not the end of the examination.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from opensora_lite import machine
from opensora_lite.device import import_paddle, lean_paddlenlp, quiet

SECONDS = 3.0  # for which matrix products are measured
PRODUCT = (1024, 1152, 4608)  # rows, inner, columns: the first layer of XL/2's MLP, for 1024 tokens
USUAL = 15  # GFLOP/s of one core, in fp32: what a slow laptop reaches
TIMEOUT = 600  # seconds after which the process that imports has hung

NEEDED = {  # {module: package}; without one of these no video is made
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "av": "av",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "psutil": "psutil",
    "ftfy": "ftfy",
    "bs4": "beautifulsoup4",
    "tqdm": "tqdm",
    "paddle": "paddlepaddle",
    "paddlenlp": "paddlenlp",
    "ppdiffusers": "ppdiffusers",
}
FOR_NOTEBOOKS = ("jupyterlab", "ipywidgets", "anywidget", "matplotlib", "mediapy", "imageio-ffmpeg", "papermill")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str  # under which it stands
    name: str
    value: str
    advice: str = ""  # what is wrong, and how to mend it
    blocks: bool = False  # whether no video can be made before


def examine(seconds: float = SECONDS) -> list[Finding]:
    """All findings, in order. seconds: how long matrix products are measured."""
    told, end = _probed(seconds)
    found: list[Finding] = []
    for check in (
        lambda: packages(told, end),
        lambda: compute(told),
        memory,
        lambda: media(told),
    ):
        try:
            found += check()
        except Exception as error:  # a machine unlike all that were thought of
            found.append(Finding("doctor", "not examined", f"{type(error).__name__}: {error}"))
    return found


def report(found: list[Finding]) -> str:
    """The findings as text: sections, then what is to be mended, then whether videos can be made."""
    lines, section = [], None
    width = max(len(finding.name) for finding in found) + 2
    for finding in found:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        mark = "x" if finding.blocks else "!" if finding.advice else " "
        lines.append(f"{mark} {finding.name:{width}}{finding.value}".rstrip())
    slow = [finding for finding in found if finding.advice and not finding.blocks]
    broken = [finding for finding in found if finding.blocks]
    for title, some in (("What would be better", slow), ("What has to be mended", broken)):
        if some:
            lines += ["", title, *(f"- {finding.name}: {finding.advice}" for finding in some)]
    lines += ["", "No video can be made before that." if broken else "Videos can be made here."]
    return "\n".join(lines[1:])


# ---------------------------------------------------------------------------------------------------------------------
#   The process that imports
# ---------------------------------------------------------------------------------------------------------------------


def probe(seconds: float) -> Iterator[tuple[str, Any]]:
    """("what is being tried", None), then ("what came of it", value) for every package, for Paddle and its speed."""
    for module in NEEDED:
        yield "trying", module
        try:
            yield module, _try(module)
        except Exception as error:
            yield module, {"error": f"{type(error).__name__}: {error}"}
    paddle = sys.modules.get("paddle")
    if paddle is None:
        return
    yield "trying", "paddle's devices"
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    names = [paddle.device.cuda.get_device_name(i) for i in range(gpus)]
    sizes = [paddle.device.cuda.get_device_properties(i).total_memory for i in range(gpus)]
    yield "devices", {"cuda": paddle.is_compiled_with_cuda(), "names": names, "bytes": sizes}
    if gpus:
        yield "trying", "flash attention"
        yield "flash attention", _flash_attention(paddle)
    paddle.set_device("gpu" if gpus else "cpu")
    if not gpus:
        yield "trying", "compiling"
        yield "compiling", _compiling()
    yield "trying", "a matrix product"
    yield "GFLOP/s", product_rate(seconds)


def _try(module: str) -> dict:
    """Import a package, and say how it went."""
    start = time.perf_counter()
    if module == "paddle":
        import_paddle()
    elif module in ("paddlenlp", "ppdiffusers"):
        part = {"paddlenlp": "paddlenlp.transformers", "ppdiffusers": "ppdiffusers.models.autoencoder_kl"}[module]
        with quiet(), lean_paddlenlp():
            importlib.import_module(part)
    else:
        importlib.import_module(module)
    told: dict[str, Any] = {"seconds": time.perf_counter() - start}
    if module == "av":
        import av

        av.codec.Codec("h264", "w")  # which `Video.save` writes; raises where this build has none
        told["ffmpeg"] = getattr(av, "ffmpeg_version_info", "")
    return told


def _flash_attention(paddle) -> str:
    """ "works", or why not: half-precision attention on the GPU."""
    try:
        with paddle.no_grad():
            x = paddle.ones([1, 128, 4, 64], "float16")
            paddle.nn.functional.scaled_dot_product_attention(x, x, x).astype("float32").sum().item()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
    return "works"


def _compiling() -> str:
    """ "works", or why not: `engine`, of one layer."""
    import paddle

    try:
        from opensora_lite.runtime.engine import Predictor, available, record

        if not available():
            return f"paddlepaddle {paddle.__version__} brings no OpenVINO along"
        layer, x = paddle.nn.Linear(8, 8), paddle.ones([4, 8])
        with paddle.no_grad():
            program = record(layer, lambda x: layer(x), {"x": (4, 8)})
            found = Predictor(program, dict(layer.named_parameters()), "fp32")({"x": x}, {})
            return "works" if bool(paddle.allclose(found, layer(x), atol=1e-5)) else "its results are wrong"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def product_rate(seconds: float) -> float:
    """Multiplications and additions of a matrix product in fp32, 10⁹ a second, the best of `seconds` seconds.

    Through Paddle, on its current device, and of a size that the model has.
    """
    import paddle

    rows, inner, columns = PRODUCT
    a, b = paddle.randn([rows, inner]), paddle.randn([inner, columns])
    best, end = 0.0, time.perf_counter() + seconds
    with paddle.no_grad():
        paddle.matmul(a, b)[0, 0].item()
        while time.perf_counter() < end:
            start = time.perf_counter()
            paddle.matmul(a, b)[0, 0].item()  # which waits for a GPU
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - start))
    return best


def _probed(seconds: float) -> tuple[dict[str, Any], str]:
    """What `probe` told in a process of its own, and how that ended: "" if well."""
    command = [sys.executable, "-m", "opensora_lite.tools.doctor", str(seconds)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        output, code, said = child.stdout, child.returncode, child.stderr.strip()
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        code, said = 0, f"it hung for {TIMEOUT} s"
    told = dict(json.loads(line[1:]) for line in output.splitlines() if line.startswith("\0"))
    if "GFLOP/s" in told or (code == 0 and not said):
        return told, ""
    if code < 0:
        return told, f"the process was ended by {signal.Signals(-code).name}"
    return told, said.splitlines()[-1] if said else f"exit code {code}"


# ---------------------------------------------------------------------------------------------------------------------
#   What that means
# ---------------------------------------------------------------------------------------------------------------------


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    names = ("paddlepaddle", "paddlepaddle-gpu") if package == "paddlepaddle" else (package,)
    for name in names:
        try:
            return importlib.metadata.version(name) + (" (GPU build)" if name.endswith("-gpu") else "")
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def packages(told: dict[str, Any], end: str) -> Iterator[Finding]:
    """Python and the packages. told, end: what `probe` told, and how its process ended."""
    place = Finding("packages", "", "")
    python = platform.python_version()
    right = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield replace(place, name="Python", value=python, advice="" if right else "3.10, 3.11 or 3.12 is needed")
    for module, package in NEEDED.items():
        version, result = version_of(package), told.get(module)
        finding = replace(place, name=package, value=version or "installed, of no known version")
        if result is not None and "error" not in result:
            took = f", imported in {result['seconds']:.1f} s" if result["seconds"] > 0.5 else ""
            yield replace(finding, value=finding.value + took)
        elif version is None:
            how = 'pip install "opensora-lite[cpu]", or "[gpu]"' if module == "paddle" else f"pip install {package}"
            yield replace(finding, value="not installed", advice=how, blocks=True)
        elif result is not None:
            mend = f"pip install --force-reinstall {package}, as pyproject.toml asks for it"
            yield replace(finding, advice=f"it cannot be imported ({result['error']}): {mend}", blocks=True)
        elif told.get("trying") == module:
            avx = ""
            if module == "paddle" and "SIGILL" in end:
                avx = ": Paddle's builds need a processor with AVX"
            yield replace(finding, advice=f"importing it fails, {end}{avx}", blocks=True)
        else:
            yield replace(finding, value=f"{finding.value}, not tried")
    if end and told.get("trying") not in NEEDED:
        what = told.get("trying", "the process")
        yield replace(place, name=what, value="failed", advice=end, blocks=what == "the process")
    lacking = [name for name in FOR_NOTEBOOKS if version_of(name) is None]
    value = f"without {', '.join(lacking)}" if lacking else "all are here"
    advice = 'for the course: pip install "opensora-lite[cpu,notebook]"' if lacking else ""
    yield replace(place, name="for notebooks", value=value, advice=advice)


def compute(told: dict[str, Any]) -> Iterator[Finding]:
    """Devices, cores, instructions, threads and speed. told: what `probe` told."""
    place = Finding("compute", "", "")
    model = machine.processor().get("model name", platform.processor() or platform.machine())
    cores, threads = machine.usable_cores(), len(machine.allowed_processors())
    yield replace(place, name="processor", value=f"{model}, {cores} core(s) to use of {threads} processor(s)")
    flags = [flag for flag in INSTRUCTIONS if machine.has_instructions(flag)]
    bf16 = any("bf16" in flag for flag in flags)
    yield replace(place, name="instructions", value=", ".join(flags) or "none that are known of")
    yield replace(place, name="bf16 on the processor", value="yes" if bf16 else "no: fp32 is the fastest here")

    set_threads, amd = os.environ.get("OMP_NUM_THREADS", ""), machine.processor().get("vendor_id") == "AuthenticAMD"
    advice = ""
    if set_threads.isdigit() and int(set_threads) != cores:
        advice = f"OMP_NUM_THREADS is {set_threads} and {cores} core(s) may be used: unset it, and it is chosen"
    yield replace(place, name="threads", value=set_threads or "Paddle's choice", advice=advice)
    if amd:
        kind = os.environ.get("MKL_DEBUG_CPU_TYPE", "")
        advice = "" if kind == "5" else "unset MKL_DEBUG_CPU_TYPE: with 5, products are three times as fast on AMD"
        yield replace(
            place, name="MKL on AMD", value="the fast path" if kind == "5" else "the slow path", advice=advice
        )

    devices = told.get("devices")
    if devices:
        names = [f"{name}, {size / 1e9:.0f} GB" for name, size in zip(devices["names"], devices["bytes"], strict=True)]
        advice = ""
        if not names and devices["cuda"]:
            advice = "Paddle is built for GPUs and sees none: does nvidia-smi, and is it new enough?"
        elif not names and (machine.ROOT / "proc/driver/nvidia/version").exists():
            advice = "there is an NVIDIA GPU, but this Paddle is the CPU build: README.md says which one to install"
        yield replace(place, name="GPU", value="; ".join(names) or "none that Paddle can use", advice=advice)
    if "flash attention" in told:
        works = told["flash attention"] == "works"
        advice = "" if works else f"attention takes more time and memory without it: {told['flash attention']}"
        yield replace(place, name="flash attention", value="works" if works else "does not work", advice=advice)
    if "compiling" in told:
        works = told["compiling"] == "works"
        advice = "" if works else f"a video takes two to three times as long uncompiled: {told['compiling']}"
        yield replace(place, name="compiled models", value="work" if works else "do not work", advice=advice)
    if "GFLOP/s" in told:
        rate, on_gpu = told["GFLOP/s"], bool(devices and devices["names"])
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        value = f"{rate:.0f} GFLOP/s in fp32" + ("" if on_gpu else f", {rate / cores:.0f} a core; load {load:.1f}")
        advice = ""
        if not on_gpu and load > cores + 0.5:
            advice = f"other programs are computing (load {load:.1f} on {cores} cores): everything takes longer"
        elif not on_gpu and rate < USUAL * cores:
            advice = f"a core usually reaches {USUAL} or more: see threads, or a laptop may be saving energy"
        yield replace(place, name="matrix product", value=value, advice=advice)


def memory() -> Iterator[Finding]:
    """Memory and disk."""
    place = Finding("memory", "", "")
    found = machine.memory()
    few = found.available < 1e9
    advice = "the small model takes about 0.7 GB with Paddle: end other programs" if few else ""
    value = f"{found.total / 1e9:.1f} GB in all, {found.available / 1e9:.1f} GB free now"
    yield replace(place, name="memory", value=value, advice=advice)
    free = shutil.disk_usage(os.curdir).free
    few = free < 1e8
    yield replace(place, name="disk, here", value=f"{free / 1e9:.1f} GB free", advice="make room" if few else "")
    programs = [path.stat().st_size for path in machine.cache_folder().glob("*.program")]
    value = f"{len(programs)} program(s), {sum(programs) / 1e6:.1f} MB, in {machine.cache_folder()}"
    yield replace(place, name="compiled, kept", value=value if programs else "nothing yet")


def media(told: dict[str, Any]) -> Iterator[Finding]:
    """What reads and writes videos. told: what `probe` told."""
    place = Finding("videos", "", "")
    ffmpeg = (told.get("av") or {}).get("ffmpeg")
    if ffmpeg is not None:
        yield replace(place, name="FFmpeg in PyAV", value=f"{ffmpeg or 'of no known version'}, with H.264")
    version = version_of("imageio-ffmpeg")
    if version:
        numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
        advice = "mediapy does not work with it: pip install 'imageio-ffmpeg<0.8'" if numbers >= [0, 8] else ""
        yield replace(place, name="ffmpeg for notebooks", value=f"imageio-ffmpeg {version}", advice=advice)


def main(seconds: float) -> None:
    """Print what `probe` tells, as it tells it: lines that begin with a zero byte, for packages print as well."""
    for told in probe(seconds):
        print(f"\n\0{json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
