"""The same models, compiled: on a CPU the denoiser runs about twice as fast as operation by operation.

Whoever computes one operation after the other goes through memory once for each; a compiler that sees all of them
together goes once for many. Three steps lead there, and the models' own code is all that they need:

    record    the model's method runs once, on symbols instead of numbers; what it would compute becomes a program
    load      Paddle Inference hands the program and the weights to OpenVINO, which Paddle brings along (from 3.0 on)
    run       arrays in, an array out

A program holds sizes but no weights, so one on the disk serves every model of its sizes; see `program`.
On a GPU there is `paddle.jit.to_static` instead, and where nothing of this works the model computes as it always does.
"""

import contextlib
import hashlib
import inspect
import json
import os
import struct
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F

from opensora_lite import stdit as stdit_module
from opensora_lite.errors import DeviceError, OpenSoraError
from opensora_lite.files import replacing
from opensora_lite.runtime import cpu_flags, usable_cores
from opensora_lite.stdit import Conditions, STDiT2, TimeConditions

PRECISIONS = ("auto", "fp32", "bf16")
CACHE_BYTES = 2**26  # of all programs in the cache; one has about 0.4 MB
PREDICTORS = 2  # shapes that stay loaded, each with its own copy of the weights

# ---------------------------------------------------------------------------------------------------------------------
#   Record: a method of a model -> a program
# ---------------------------------------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def record(layer, function: Callable, shapes: Shapes) -> bytes:
    """The program of `function`, which gets a symbol for each name of `shapes` and returns one, all float32.

    layer: whose parameters it uses; they become the program's, under their names, without their values.
    OpenVINO reads the programs of Paddle 2 (ProgramDesc), which Paddle 3 still writes under a guard; some of its
    functions no longer know them, and stand here anew as the one operation that they are.
    """
    from paddle.base.framework import Program, program_guard
    from paddle.pir_utils import OldIrGuard

    with OldIrGuard():
        program, start = Program(), Program()
        with program_guard(program, start), contextlib.ExitStack() as stack:
            block = program.global_block()
            symbol = dict(dtype="float32", is_data=True, need_check_feed=True, stop_gradient=True)
            inputs = {name: block.create_var(name=name, shape=list(shape), **symbol) for name, shape in shapes.items()}
            for target, name, by in STAND_INS:
                stack.enter_context(mock.patch.object(target, name, by))
            stack.enter_context(symbolic(layer, block))
            output = function(**inputs)
        program = paddle.static.io.normalize_program(program, list(inputs.values()), [output])
        return program._remove_training_info(clip_extra=True).desc.serialize_to_string()


@contextlib.contextmanager
def symbolic(layer, block) -> Iterator[None]:
    """Within it, all parameters of `layer` are symbols of `block`, under their own names."""
    values = []
    for prefix, part in layer.named_sublayers(include_self=True):
        values += [(part, f"{prefix}.{name}", name, value) for name, value in part._parameters.items()]
    try:
        for part, full_name, name, value in values:
            if value is not None:
                part._parameters[name] = block.create_parameter(name=full_name, shape=value.shape, dtype="float32")
        yield
    finally:
        for part, _, name, value in values:
            part._parameters[name] = value


def operation(kind: str, inputs: dict, **attributes):
    """The symbol of one operation's output."""
    from paddle.base.layer_helper import LayerHelper

    helper = LayerHelper(kind)
    out = helper.create_variable_for_type_inference("float32")
    slots = {slot: [symbol] for slot, symbol in inputs.items()}
    helper.append_op(type=kind, inputs=slots, outputs={"Out": [out]}, attrs=attributes)
    return out


def matmul(x, y, transpose_x=False, transpose_y=False):
    return operation("matmul_v2", dict(X=x, Y=y), trans_x=transpose_x, trans_y=transpose_y)


def attention(q, k, v, mask=None):
    """`stdit.attention` in the form that OpenVINO fuses into one operation; mask [B, 1, 1, m] is added to the scores."""
    q, k, v = (z.transpose([0, 2, 1, 3]) for z in (q * q.shape[-1] ** -0.5, k, v))
    scores = matmul(q, k, transpose_y=True)
    weights = F.softmax(scores if mask is None else scores + mask)
    return matmul(weights, v).transpose([0, 2, 1, 3])


STAND_INS = [
    (stdit_module, "attention", attention),
    (stdit_module, "on_cpu", lambda: False),  # its way around slow broadcasts would be one around fast ones here
    (paddle, "matmul", matmul),
    (paddle, "rsqrt", lambda x: operation("rsqrt", dict(X=x))),
    (F, "gelu", lambda x, approximate=False: operation("gelu", dict(X=x), approximate=approximate)),
]

# ---------------------------------------------------------------------------------------------------------------------
#   Programs on the disk
# ---------------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where programs are kept: $OPENSORA_CACHE, or opensora-lite in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("OPENSORA_CACHE"):
        return Path(os.environ["OPENSORA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensora-lite"


def cached(what: dict, make: Callable[[], bytes]) -> tuple[Path | None, bytes]:
    """The program that `make` gives, from the disk where it was made before: its path there, and the program.

    what: all that it depends on, besides Paddle's version and the source of the models. The path is None where nothing
    can be kept. Together the files stay below CACHE_BYTES: what was not used for the longest time goes first.
    """
    sources = "".join(map(inspect.getsource, (stdit_module, inspect.getmodule(cached))))
    key = json.dumps([what, paddle.__version__, sources], sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pdmodel"
    try:
        program = path.read_bytes()
        os.utime(path)
        if program:
            return path, program
    except OSError:
        pass
    program = make()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(program)
        files = sorted(path.parent.glob("*.pdmodel"), key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > CACHE_BYTES and file != path:
                file.unlink(missing_ok=True)
    except (OpenSoraError, OSError):  # a full or a read-only disk: next time it is made again
        return None, program
    return path, program


# ---------------------------------------------------------------------------------------------------------------------
#   Load and run: Paddle Inference
# ---------------------------------------------------------------------------------------------------------------------


class Predictor:
    """A program with weights, loaded by OpenVINO. Raises whatever Paddle raises where it cannot be.

    values: arrays by the names of the program's parameters. precision: "fp32" or "bf16".
    """

    def __init__(self, program: bytes, values: dict, precision: str):
        from paddle.inference import Config, create_predictor

        with tempfile.TemporaryDirectory(prefix="opensora-lite-") as folder:  # OpenVINO reads files alone
            model, weights = Path(folder) / "a.pdmodel", Path(folder) / "a.pdiparams"
            model.write_bytes(program)
            write_parameters(weights, {name: values[name] for name in parameter_names(program)})
            config = Config(str(model), str(weights))
            config.disable_gpu()
            config.disable_glog_info()
            config.set_cpu_math_library_num_threads(usable_cores())
            config.enable_openvino_engine(Config.Precision.Bfloat16 if precision == "bf16" else Config.Precision.Float32)
            self.predictor = create_predictor(config)
        self.inputs = {name: self.predictor.get_input_handle(name) for name in self.predictor.get_input_names()}
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """What the program computes; an input that is left out stays what it was."""
        for name, value in inputs.items():
            self.inputs[name].copy_from_cpu(np.ascontiguousarray(value))
        self.predictor.run()
        return self.output.copy_to_cpu()


def parameter_names(program: bytes) -> list[str]:
    """The parameters of a program, in the order in which it reads them."""
    from paddle.base.framework import Program
    from paddle.pir_utils import OldIrGuard

    with OldIrGuard():
        variables = Program.parse_from_string(program).global_block().vars.values()
        return sorted(v.name for v in variables if v.persistable and v.name not in ("feed", "fetch"))


def write_parameters(path: Path, values: dict) -> None:
    """Write tensors, float32, as Paddle's `save_combine` does (paddle/phi/core/framework/dense_tensor_serialize.cc)."""
    with open(path, "wb") as file:
        for value in values.values():
            array = value.astype("float32").numpy()
            sizes = b"".join(b"\x10" + varint(n) for n in array.shape)
            about = b"\x08\x05" + sizes  # a protobuf: field 1, the type float32; field 2, each size
            file.write(struct.pack("<IQIi", 0, 0, 0, len(about)) + about)  # versions and a level that are all 0
            array.tofile(file)


def varint(n: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    return bytes([n]) if n < 128 else bytes([n % 128 | 128]) + varint(n // 128)


# ---------------------------------------------------------------------------------------------------------------------
#   The denoiser
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Compiled(Conditions):
    """Conditions with the arrays that a program takes once per video."""

    arrays: dict[str, np.ndarray] | None = None

    def first(self, B: int) -> "Compiled":
        """As of `Conditions`."""
        told, arrays = super().first(B), dict(self.arrays)
        for name, axis in (("keys", 1), ("values", 1), ("y_mask", 0)):
            arrays[name] = arrays[name].take(range(B), axis)
        return replace(told, arrays=arrays)


class Engine:
    """A compiled STDiT2, for `Guidance` in its place: 16 frames of 64×64 pixels take half as long, larger ones too.

    stdit: the STDiT2. precision: "fp32"; "bf16", faster where the processor computes with it and less exact; "auto":
    bf16 where it does. On a GPU the model's own holds. Each number of videos, frames and tokens is compiled when it
    first comes, and so are the steps in which frames are given. What cannot be compiled runs uncompiled, with a warning.
    Raises DeviceError for a precision that there is not.
    """

    def __init__(self, stdit: STDiT2, precision: str = "auto"):
        if precision not in PRECISIONS:
            raise DeviceError(f'precision "{precision}" is unknown; give one of {", ".join(PRECISIONS)}')
        has_bf16 = {"avx512_bf16", "amx_bf16"} & cpu_flags()
        if precision == "bf16" and not has_bf16 and stdit_module.on_cpu():
            raise DeviceError('precision "bf16" needs a processor with avx512_bf16 or amx_bf16; use "fp32"')
        if precision == "auto":
            precision = "bf16" if has_bf16 else "fp32"
        self.stdit, self.precision, self.failed = stdit, precision, False
        self.y_embedder = stdit.y_embedder
        self._predictors: OrderedDict[tuple, Predictor] = OrderedDict()
        self._told: dict[tuple, Conditions] = {}  # what each of them was told last

    def __repr__(self) -> str:
        return f"Engine({self.precision}{', failed' * self.failed})"

    def prepare(self, y, mask, latent_size, **sizes) -> Conditions:
        """As of STDiT2."""
        if self.failed or not stdit_module.on_cpu():
            return self.stdit.prepare(y, mask, latent_size, **sizes)
        # captions of one length, so that one program does for all
        missing = self.stdit.config.model_max_length - y.shape[2]
        y, mask = F.pad(y, [0, 0, 0, missing], data_format="NCHW"), F.pad(mask, [0, missing], data_format="NCL")
        told = self.stdit.prepare(y, mask, latent_size, **sizes)
        keys, values = (np.stack([answer[i].numpy() for answer in told.answers]) for i in (0, 1))
        cos, sin, turn = (table.numpy() for table in told.rotary)
        blocked = np.where(told.y_mask.numpy(), 0, -1e4).astype(np.float32)[:, None, None]
        arrays = dict(keys=keys, values=values, y_mask=blocked, cos=cos, sin=sin, turn=turn)
        return Compiled(**vars(told), arrays=arrays)

    def denoise(self, x, timestep, told, x_mask=None):
        """As of STDiT2."""
        return self.stdit.denoise(x, timestep, told, x_mask, self.transform)

    def transform(self, x, time: TimeConditions, told: Conditions, x_mask=None):
        """As of STDiT2."""
        if isinstance(told, Compiled) and not self.failed:
            try:
                return paddle.to_tensor(self._predict(x, time, told, x_mask))
            except Exception as error:
                self.failed = True
                warnings.warn(f"the model cannot be compiled, and runs uncompiled: {error}", stacklevel=2)
        return self.stdit.transform(x, time, told, x_mask)

    def _predict(self, x, time: TimeConditions, told: Compiled, x_mask) -> np.ndarray:
        inputs = {"x": x, **{name: value for name, value in vars(time).items() if value is not None}}
        if x_mask is not None:
            inputs["x_mask"] = x_mask.astype("float32")
        inputs = {name: value.numpy() for name, value in inputs.items()}
        key = (*x.shape, x_mask is not None)
        if key not in self._predictors:
            self._load(key, {name: value.shape for name, value in {**inputs, **told.arrays}.items()})
        self._predictors.move_to_end(key)
        if self._told.get(key) is not told:
            inputs |= told.arrays
        result = self._predictors[key](inputs)
        self._told[key] = told
        return result

    def _load(self, key: tuple, shapes: Shapes) -> None:
        what = dict(config=asdict(self.stdit.config), shapes=shapes)
        path, program = cached(what, lambda: record(self.stdit, self._symbolic, shapes))
        while len(self._predictors) >= PREDICTORS:
            oldest, _ = self._predictors.popitem(last=False)
            self._told.pop(oldest, None)
        values = dict(self.stdit.named_parameters())
        try:
            self._predictors[key] = Predictor(program, values, self.precision)
        except Exception:  # perhaps of a file that was damaged: once more from the start
            if path is None:
                raise
            path.unlink(missing_ok=True)
            self._predictors[key] = Predictor(cached(what, lambda: record(self.stdit, self._symbolic, shapes))[1], values, self.precision)

    def _symbolic(self, x, embedding, space, motion, keys, values, y_mask, cos, sin, turn, x_mask=None, **kept):
        """`STDiT2.transform` of symbols."""
        told = Conditions(
            answers=[(keys[i], values[i]) for i in range(self.stdit.config.depth)],
            y_mask=y_mask,
            size=None,
            length=None,
            positions=None,
            rotary=(cos, sin, turn),
        )
        x_mask = None if x_mask is None else x_mask.astype("bool")
        return self.stdit.transform(x, TimeConditions(embedding, space, motion, **kept), told, x_mask)
