"""Device, precision and threads: what must be settled before Paddle is imported, and checked before a model is."""

import contextlib
import ctypes
import gc
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import io
import os
import re
import signal
import sys
import threading
import warnings
import zlib  # noqa: F401  paddlepaddle 2.6's library exports zlib symbols of its own: Python's must be bound first
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
COSTS = {  # of what Paddle was not told in time
    "OMP_NUM_THREADS": "it computes on one of {} cores",
    "MKL_DEBUG_CPU_TYPE": "matrix products take three times as long on this AMD processor",
    "FLAGS_use_stride_kernel": "attention works on strided views, which makes a step take 1.6 times as long",
    "MKL_CBWR": "the last bits of a video depend on its batch",
}


def prepare() -> None:
    """Set what Paddle reads when it is first imported; what the user has set already stays.

    Paddle computes on one thread unless OMP_NUM_THREADS says more, and the MKL that it bundles
    takes a path three times as slow on AMD processors unless MKL_DEBUG_CPU_TYPE is 5. Its strided views make every
    transpose of an attention a slow copy later on: without them a step of the small model takes 0.6 of the time.
    MKL_CBWR makes each row of a product of matrices independent of how many others there are, and of the number of
    threads, to the last bit: a video then does not depend on its batch. It costs nothing that could be measured.
    Where Paddle has been imported before, a RuntimeWarning says what that costs.
    """
    warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)  # of Paddle, at import
    wanted = {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": str(usable_cores()), "MKL_CBWR": "AUTO,STRICT"}
    if processor().get("vendor_id") == "AuthenticAMD":
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    lacking = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(lacking)
    if "paddle" not in sys.modules:
        return
    if os.environ["OMP_NUM_THREADS"] == "1" != wanted["OMP_NUM_THREADS"]:  # Paddle sets it to 1 when it is not set
        lacking["OMP_NUM_THREADS"] = "1"
    costs = [cost.format(wanted[name]) for name, cost in COSTS.items() if name in lacking]
    if costs:
        warnings.warn(
            f"paddle was imported before opensora_lite, too early for its settings: {'; '.join(costs)}."
            " Restart, and import opensora_lite first",
            RuntimeWarning,
            stacklevel=3,  # the line that imports opensora_lite
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For imports: without what libraries say meanwhile (of ccache, of OMP_NUM_THREADS, of setuptools).

    And without the search for garbage, which takes a sixth of the time and finds none: what is imported stays.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if searching:
            gc.enable()


def import_paddle() -> ModuleType:
    """Paddle, imported quietly. Raises DeviceError where it is not installed, or cannot be imported.

    SIGTERM does what it did before: Paddle's own handler would end the process with a traceback of C++.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with quiet():
            import paddle
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise DeviceError(
            "Paddle is not installed, of which there are two builds:"
            ' pip install "opensora-lite[cpu]", or "opensora-lite[gpu]" for an NVIDIA GPU'
        ) from None
    except ImportError as error:  # a library that it needs, or memory, which "failed to map segment" means
        raise DeviceError(f"Paddle is installed, but cannot be imported: {error}") from error
    paddle.disable_signal_handler()  # which would print a stack of C++ where a process is told to stop
    if terminate is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # which went with it
    return paddle


class LeanPackage(importlib.abc.MetaPathFinder):
    """A package whose submodules can be imported without its __init__, which runs when somebody imports the package.

    name: of a package that has not been imported. attributes: what its submodules read of it.
    """

    def __init__(self, name: str, **attributes: object):
        spec = PathFinder.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        self.module = importlib.util.module_from_spec(spec)
        vars(self.module).update(attributes)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """How Python is to import the package `fullname`: into the module that its submodules know already.

        path, target: what Python says of other imports than this one.
        """
        spec = PathFinder.find_spec(fullname) if fullname == self.module.__name__ else None
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["create_module"] = lambda spec: self.module
        return spec

    @contextlib.contextmanager
    def without_init(self) -> Iterator[None]:
        """A block in which its submodules can be imported; to everybody else the package is one not yet imported."""
        sys.modules[self.module.__name__] = self.module
        try:
            yield
        finally:
            del sys.modules[self.module.__name__]


@contextlib.contextmanager
def lean_paddlenlp() -> Iterator[None]:
    """A block in which T5 of paddlenlp, and ppdiffusers, are imported without the __init__ of paddlenlp.

    That also imports a server (fastapi), ready-made applications (scikit-learn) and data sets (pandas): four fifths of
    the time, and nothing that a T5 or ppdiffusers need. A later `import paddlenlp` runs it, and is as ever.
    Raises ModuleNotFoundError where paddlenlp is not installed.
    """
    if "paddlenlp" in sys.modules:  # in full
        yield
        return
    package = next((finder for finder in sys.meta_path if isinstance(finder, LeanPackage)), None)
    if package is None:
        package = LeanPackage("paddlenlp", __version__=importlib.metadata.version("paddlenlp"))
    with package.without_init():
        importlib.import_module("paddlenlp.data")  # the __init__ begins with it: its circles hold in that order only
        yield


def set_device(device: str | None = None) -> str:
    """Make `device` ("cpu", "gpu" or "gpu:1"; None: a GPU where Paddle can use one) Paddle's current device.

    Raises DeviceError where this machine or this build of Paddle does not have it, or cannot compute.
    """
    paddle = import_paddle()
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device is None:
        device = "gpu" if has_gpu else "cpu"
    if not re.fullmatch(r"cpu|gpu(:[0-9]+)?", device):
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
        try:  # this loads MKL, which would otherwise fail in riddles, or try for ever, in the middle of a run
            paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
        except (RuntimeError, MemoryError) as error:
            raise DeviceError(
                f"Paddle cannot load the library that it computes with, perhaps for want of memory: {error}"
            ) from error
    return device


def give_back_memory() -> None:
    """Give memory that has been freed back to the system, which the C library and Paddle would keep for later."""
    import paddle

    with contextlib.suppress(OSError, AttributeError):  # not with every C library
        ctypes.CDLL(None).malloc_trim(0)
    if paddle.get_device() != "cpu":
        paddle.device.cuda.empty_cache()


def resolve_dtype(dtype: str | None, device: str) -> str:
    """The Paddle name of a precision; None is float32 on a CPU and float16 (as in PaddleMIX) on a GPU.

    dtype: "fp32", "float32", "fp16", … device: what `set_device` gave.
    Raises DeviceError for an unknown name, and for half precision on a CPU: Paddle has no kernels for it there.
    """
    if dtype is None:
        return "float32" if device == "cpu" else "float16"
    if dtype not in PRECISIONS:
        raise DeviceError(f'dtype "{dtype}" is unknown; give fp32, fp16 or bf16')
    if device == "cpu" and PRECISIONS[dtype] != "float32":
        raise DeviceError(f"dtype {dtype} needs a GPU: Paddle has no {PRECISIONS[dtype]} kernels for a CPU; use fp32")
    return PRECISIONS[dtype]
