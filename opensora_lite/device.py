"""Device, precision and threads: environment variables that Paddle reads at import, and the choice of a device."""

import contextlib
import ctypes
import gc
import importlib.abc
import io
import os
import re
import signal
import sys
import threading
import warnings
import zlib  # noqa: F401  paddlepaddle 2.6 exports zlib symbols of its own; Python's must be bound first
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from opensora_lite.errors import DeviceError
from opensora_lite.machine import processor, usable_cores

PRECISIONS = {
    "fp32": "float32",
    "float32": "float32",
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}
COSTS = {  # of variables that were not set when Paddle was imported
    "OMP_NUM_THREADS": "it computes on one of {} cores",
    "MKL_DEBUG_CPU_TYPE": "matrix products take three times as long on this AMD processor",
    "FLAGS_use_stride_kernel": "strided views make a denoising step take 1.6 times as long",
    "MKL_CBWR": "the last bits of a video depend on its batch",
}


def set_environment() -> None:
    """Set the variables that Paddle reads when it is imported, unless the user has set them.

    OMP_NUM_THREADS: without it, Paddle computes on one thread. MKL_DEBUG_CPU_TYPE=5: without it, the MKL that Paddle
    bundles is three times slower on AMD processors. FLAGS_use_stride_kernel=0: strided views make the transposes of
    attention slow; without them a step of the small model takes 0.6 of the time. MKL_CBWR: the bits of a row of a
    matrix product depend neither on the number of rows nor on that of threads, so a video doesn't depend on its batch.
    If Paddle has been imported before, a RuntimeWarning says what that costs.
    """
    warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)  # of Paddle, at import
    wanted = {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": str(usable_cores()), "MKL_CBWR": "AUTO,STRICT"}
    if processor().get("vendor_id") == "AuthenticAMD":
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    if "paddle" not in sys.modules:
        sys.meta_path.insert(0, _QuietPaddle())
        return
    if os.environ["OMP_NUM_THREADS"] == "1" != wanted["OMP_NUM_THREADS"]:  # Paddle sets it to 1 when it is not set
        missing["OMP_NUM_THREADS"] = "1"
    costs = [cost.format(wanted[name]) for name, cost in COSTS.items() if name in missing]
    if costs:
        warnings.warn(
            f"paddle was imported before opensora_lite, too early for its settings: {'; '.join(costs)}."
            " Restart, and import opensora_lite first",
            RuntimeWarning,
            stacklevel=3,  # the line that imports opensora_lite
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context for imports: without warnings and stderr of libraries, and without garbage collection, which only costs
    time while modules are created."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


class _QuietPaddle(importlib.abc.MetaPathFinder):
    """importlib's hook: the first `import paddle` is quiet, wherever it stands.

    Otherwise Paddle writes a warning about OMP_NUM_THREADS, which is set on purpose, to stderr.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != "paddle":
            return None
        spec = PathFinder.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_quietly(module: ModuleType) -> None:
                with quiet():
                    run(module)
                sys.meta_path.remove(self)

            vars(spec.loader)["exec_module"] = run_quietly
        return spec


def import_paddle() -> ModuleType:
    """Paddle without its signal handlers. Raises DeviceError if it can't be imported."""
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        import paddle
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise DeviceError(
            'Paddle is not installed; in a checkout of this project, run pip install -e ".[cpu]",'
            ' or ".[gpu]" for an NVIDIA GPU'
        ) from None
    except ImportError as error:  # a missing library, or memory ("failed to map segment")
        raise DeviceError(f"Paddle is installed, but cannot be imported: {error}") from error
    paddle.disable_signal_handler()  # it prints a C++ traceback when a process is told to stop
    if terminate is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # which the line above has reset
    return paddle


def set_device(device: str | None = None) -> str:
    """Make "cpu", "gpu" or "gpu:1" Paddle's current device (None: a GPU where Paddle can use one), and return it.

    Raises DeviceError where this machine or this build of Paddle does not have it, or cannot compute.
    """
    paddle = import_paddle()
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device is None:
        device = "gpu" if has_gpu else "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cpu|gpu(:[0-9]+)?", device):
        raise DeviceError(f'device "{device}" is unknown; give "cpu", "gpu" or "gpu:1"')
    if device != "cpu" and not has_gpu:
        built = "sees no GPU" if paddle.is_compiled_with_cuda() else "is the CPU build"
        raise DeviceError(
            f'device "{device}" was asked for, but the installed Paddle {paddle.__version__} {built}; use "cpu"'
        )
    if ":" in device and int(device[4:]) >= paddle.device.cuda.device_count():
        raise DeviceError(
            f'device "{device}" does not exist; this machine has {paddle.device.cuda.device_count()} GPU(s)'
        )
    paddle.set_device(device)
    if device == "cpu":
        try:  # loads MKL now; if memory is short, it would otherwise fail or hang in the middle of a run
            paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
        except (RuntimeError, MemoryError) as error:
            raise DeviceError(f"Paddle cannot load its math library, perhaps for lack of memory: {error}") from error
    return device


def resolve_dtype(dtype: str | None, device: str) -> str:
    """Paddle's name of a precision; None is float32 on a CPU and float16 (as in PaddleMIX) on a GPU.

    dtype: "fp32", "float32", "fp16", … device: as `set_device` returns it.
    Raises DeviceError for an unknown name, and for half precision on a CPU, which has no kernels for it.
    """
    if dtype is None:
        return "float32" if device == "cpu" else "float16"
    name = paddle_dtype(dtype)
    if device == "cpu" and name != "float32":
        raise DeviceError(f"dtype {dtype} needs a GPU: Paddle has no {name} kernels for a CPU; use fp32")
    return name


def paddle_dtype(dtype: str) -> str:
    """Paddle's name of a precision, such as "float16" for "fp16". Raises DeviceError for an unknown one."""
    if not isinstance(dtype, str) or dtype not in PRECISIONS:
        raise DeviceError(f'dtype "{dtype}" is unknown; give fp32, fp16 or bf16')
    return PRECISIONS[dtype]


def give_back_memory() -> None:
    """Return freed memory, which the C library and Paddle would keep for later, to the system."""
    import paddle

    with contextlib.suppress(OSError, AttributeError):  # not every C library has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    if paddle.get_device() != "cpu":
        paddle.device.cuda.empty_cache()
