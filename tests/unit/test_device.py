"""Device, precision and threads."""

import gc
import os
import subprocess
import sys
import warnings

import paddle
import pytest

from opensora_lite import device, machine
from opensora_lite.errors import DeviceError
from opensora_lite.lean_imports import LeanPackage


def child(program: str, **environment: str) -> str:
    """What a Python process prints, both streams, that has no settings of threads but those that are given."""
    clean = {name: value for name, value in os.environ.items() if name not in device.COSTS}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=clean | environment, stdout=-1, stderr=-2, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_threads_are_set_before_paddle_is_imported_and_a_users_choice_stays():
    program = "import os, opensora_lite; print(os.environ['OMP_NUM_THREADS'])"
    assert int(child(program)) == machine.usable_cores()
    assert int(child(program, OMP_NUM_THREADS="7")) == 7


@pytest.mark.parametrize("module", ["layers", "samplers", "stdit2", "training.models"])
def test_importing_a_module_prints_nothing(module):
    """Not even Paddle's warning about OMP_NUM_THREADS, which is set on purpose."""
    assert child(f"import opensora_lite.{module}") == ""


def test_a_warning_says_once_what_an_early_import_of_paddle_costs():
    program = "import paddle, warnings\nfor _ in range(2):\n    import opensora_lite\nimport opensora_lite.pipeline"
    said = child(program)
    assert said.count("RuntimeWarning: paddle was imported before opensora_lite, too early for its settings: ") == 1
    assert "<string>:3: RuntimeWarning" in said  # where it can be mended
    assert "strided views" in said
    several = machine.usable_cores() > 1
    assert (f"it computes on one of {machine.usable_cores()} cores" in said) is several
    assert ("on this AMD processor" in said) is (machine.processor().get("vendor_id") == "AuthenticAMD")
    assert said.rstrip().endswith("Restart, and import opensora_lite first")
    # who has set them all before has paid nothing
    assert "RuntimeWarning" not in child(program, **dict.fromkeys(device.COSTS, "2"))
    assert "RuntimeWarning" not in child("import opensora_lite, paddle, opensora_lite.stdit2")


def test_importing_paddle_says_nothing():
    program = "from opensora_lite.device import import_paddle; import_paddle()"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout == child.stderr == ""


HEAVY = "{'sklearn', 'fastapi', 'datasets', 'pandas'} & set(sys.modules)"


def test_of_paddlenlp_only_what_is_needed_is_imported_and_a_users_own_import_is_as_ever():
    names = "sorted(dir(paddlenlp)), sorted(dir(paddlenlp.trainer)), sorted(dir(paddlenlp.taskflow))"
    modules = "sorted(name for name in sys.modules if name.startswith('paddlenlp'))"
    # zlib comes before Paddle 2.6, see conftest; a submodule first: the hardest way in which Python comes to a package
    whole = f"import zlib, sys, paddlenlp.trainer\nprint({names}, {modules})"
    before = f"""
import zlib, sys
from opensora_lite import OpenSora
pipe = OpenSora.from_pretrained("tiny")
assert not {HEAVY} and "paddlenlp" not in sys.modules
"""
    after = """
import ppdiffusers
assert paddlenlp.transformers.T5EncoderModel is type(pipe.text.model)
assert ppdiffusers.AutoencoderKL is type(pipe.vae.model)
from paddlenlp import Taskflow
from ppdiffusers import StableDiffusionPipeline
OpenSora.from_pretrained("tiny")
"""
    assert child(before + whole + after).splitlines()[-1] == child(whole).splitlines()[-1]


@pytest.mark.parametrize("first", ["paddlenlp", "ppdiffusers"])
def test_models_are_the_same_where_a_user_has_imported_their_packages_before(first):
    program = f"""
import opensora_lite, {first}, sys
paddlenlp = sys.modules["paddlenlp"]
pipe = opensora_lite.OpenSora.from_pretrained("tiny")
assert sys.modules["paddlenlp"] is paddlenlp and paddlenlp.transformers.T5EncoderModel is type(pipe.text.model)
print("done")
"""
    assert child(program).splitlines()[-1] == "done"


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="No module named 'paddle_nlp'"):
        LeanPackage("paddle_nlp")


def test_imports_are_quiet_and_leave_no_trace(capsys):
    assert gc.isenabled()
    with pytest.raises(KeyError), device.quiet():
        assert not gc.isenabled()
        print("no ccache", file=sys.stderr)
        warnings.warn("no ccache", stacklevel=1)
        raise KeyError
    assert gc.isenabled() and capsys.readouterr().err == ""


def test_without_paddle_it_is_said_how_to_get_it():
    program = (
        "import sys; sys.modules['paddle'] = None; from opensora_lite.tools.cli import main;"
        " sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "generate", "--prompt", "a car"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 2
    assert "error: Paddle is not installed" in child.stderr and 'pip install -e ".[cpu]"' in child.stderr


def test_devices():
    assert device.set_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match=r'device "cuda" is unknown; give "cpu", "gpu" or "gpu:1"'):
        device.set_device("cuda")
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if not has_gpu:
        assert device.set_device() == "cpu"
        with pytest.raises(DeviceError, match=r'device "gpu" was asked for, but the installed Paddle .*; use "cpu"'):
            device.set_device("gpu")


def test_precisions():
    assert device.resolve_dtype(None, "cpu") == device.resolve_dtype("fp32", "gpu") == "float32"
    assert device.resolve_dtype(None, "gpu:1") == "float16"
    assert device.resolve_dtype("bf16", "gpu") == "bfloat16"


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
