"""Device, precision and threads."""

import os
import subprocess
import sys

import paddle
import pytest

from opensora_lite import runtime
from opensora_lite.errors import DeviceError


def test_threads_are_set_before_paddle_is_imported_and_a_users_choice_stays():
    program = "import os, opensora_lite; print(os.environ['OMP_NUM_THREADS'])"
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for environment, expected in ((clean, runtime.usable_cores()), ({**clean, "OMP_NUM_THREADS": "7"}, 7)):
        child = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert int(child.stdout) == expected


def test_importing_paddle_says_nothing():
    program = "from opensora_lite.runtime import import_paddle; import_paddle()"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout == child.stderr == ""


def test_without_paddle_it_is_said_how_to_get_it():
    program = (
        "import sys; sys.modules['paddle'] = None; from opensora_lite.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "generate", "--prompt", "a car"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 2
    assert (
        'error: Paddle is not installed, of which there are two builds: pip install "opensora-lite[cpu]"'
        in child.stderr
    )


def test_devices():
    assert runtime.set_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match=r'device "cuda" is unknown; give "cpu", "gpu" or "gpu:1"'):
        runtime.set_device("cuda")
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if not has_gpu:
        assert runtime.set_device() == "cpu"
        with pytest.raises(DeviceError, match=r'device "gpu" was asked for, but the installed Paddle .*; use "cpu"'):
            runtime.set_device("gpu")


def test_precisions():
    assert runtime.resolve_dtype(None, "cpu") == runtime.resolve_dtype("fp32", "gpu") == "float32"
    assert runtime.resolve_dtype(None, "gpu:1") == "float16"
    assert runtime.resolve_dtype("bf16", "gpu") == "bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_a_gpu_agrees_with_single(golden_stdit, recorded, dtype):
    if not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        pytest.skip("needs a GPU and a Paddle built for it: install the [gpu] extra on a machine with an NVIDIA GPU")
    paddle.set_device("gpu")
    case = {name: paddle.to_tensor(value) for name, value in recorded("stdit2_qknorm_cases")["masked"].items()}
    expected = case.pop("out").numpy()
    model = golden_stdit("qknorm").to(dtype=dtype)
    with paddle.no_grad():
        got = model(**case).numpy()
    assert abs(got - expected).max() < 0.05 * abs(expected).max()
