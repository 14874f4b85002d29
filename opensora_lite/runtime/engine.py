"""The same models, compiled: on a CPU, the denoiser in half the time and the VAE's decoder in a quarter of it.

Whoever computes one operation after the other goes through memory once for each; a compiler that sees all of them
together goes once for many. Three steps lead there, and the models' own code is all that they need:

    record    a method of the model runs once, on symbols instead of numbers; what it would compute is a program
    load      Paddle Inference hands the program and the model's values to OpenVINO, which Paddle brings along
    run       arrays in, an array out

A program knows sizes but no values, so that one on the disk serves every model of its sizes (`cached`). On a GPU there
is `paddle.jit.to_static` instead. Where compiling fails, the models compute as they always do, and a warning says so.

Sources: Paddle Inference, https://www.paddlepaddle.org.cn/inference/; OpenVINO, https://docs.openvino.ai.
"""

import contextlib
import gc
import hashlib
import inspect
import json
import os
import struct
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import paddle
import paddle.nn.functional as F

from opensora_lite import layers as stdit_module
from opensora_lite.errors import DeviceError, OpenSoraError
from opensora_lite.io.files import atomic_write
from opensora_lite.machine import cache_folder, has_instructions
from opensora_lite.stdit2 import Conditions, STDiT2

if TYPE_CHECKING:
    from opensora_lite.vae import FrameVAE

PRECISIONS = ("auto", "fp32", "bf16")
CACHE_BYTES = 2**26  # of all programs on the disk; one has about 0.3 MB
MOST_LOADED = 16  # predictors of a process: whoever lets go of one gets no memory back, Paddle keeps what it has made

# ---------------------------------------------------------------------------------------------------------------------
#   Record: a method of a model -> a program
# ---------------------------------------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def record(layer: paddle.nn.Layer, function: Callable, shapes: Shapes) -> bytes:
    """The program of `function`, which gets a symbol for each of `shapes` by its name and returns one; all float32.

    layer: whose parameters it uses; in the program they have their names there, and no values.
    OpenVINO reads programs of Paddle 2 (ProgramDesc). Paddle 3 still writes them, within a guard; those of its
    functions that no longer know how stand here anew, as the one operation that each is.
    """
    from paddle.base.framework import Program, program_guard
    from paddle.pir_utils import OldIrGuard

    with OldIrGuard():
        program, start = Program(), Program()
        with program_guard(program, start), contextlib.ExitStack() as stack:
            block = program.global_block()
            kind = dict(dtype="float32", is_data=True, need_check_feed=True, stop_gradient=True)
            symbols = {name: block.create_var(name=name, shape=list(shape), **kind) for name, shape in shapes.items()}
            for target, name, by in STAND_INS:
                stack.enter_context(mock.patch.object(target, name, by))
            stack.enter_context(_symbolic(layer, block))
            output = function(**symbols)
        program = paddle.static.io.normalize_program(program, list(symbols.values()), [output])
        return program._remove_training_info(clip_extra=True).desc.serialize_to_string()


@contextlib.contextmanager
def _symbolic(layer, block) -> Iterator[None]:
    """Within it, the parameters of `layer` are symbols of `block`."""
    held = [
        (part._parameters, name, value, f"{prefix}.{name}" if prefix else name)
        for prefix, part in layer.named_sublayers(include_self=True)
        for name, value in part._parameters.items()
        if value is not None
    ]
    try:
        for parameters, name, value, full_name in held:
            parameters[name] = block.create_parameter(name=full_name, shape=value.shape, dtype="float32")
        yield
    finally:
        for parameters, name, value, _ in held:
            parameters[name] = value


def _operation(kind: str, inputs: dict, **attributes):
    """The symbol of one operation's output."""
    from paddle.base.layer_helper import LayerHelper

    helper = LayerHelper(kind)
    output = helper.create_variable_for_type_inference("float32")
    slots = {slot: [symbol] for slot, symbol in inputs.items()}
    helper.append_op(type=kind, inputs=slots, outputs={"Out": [output]}, attrs=attributes)
    return output


def _matmul(x, y, transpose_x=False, transpose_y=False):
    return _operation("matmul_v2", dict(X=x, Y=y), trans_x=transpose_x, trans_y=transpose_y)


def _attention(q, k, v, mask=None):
    """`stdit.attention` in the form that OpenVINO makes one operation of; mask [B, 1, 1, m] is added to the scores."""
    q, k, v = (z.transpose([0, 2, 1, 3]) for z in (q * q.shape[-1] ** -0.5, k, v))
    scores = _matmul(q, k, transpose_y=True)
    weights = F.softmax(scores if mask is None else scores + mask)
    return _matmul(weights, v).transpose([0, 2, 1, 3])


def _patches(self, x):
    """`PatchEmbedder.forward` as a product: a convolution of three dimensions is not among OpenVINO's."""
    (B, C, T, H, W), (D, _, _, rows, columns) = x.shape, self.proj.weight.shape
    x = x.reshape([B, C, T, H // rows, rows, W // columns, columns]).transpose([0, 2, 3, 5, 1, 4, 6])
    return _matmul(x.flatten(4), self.proj.weight.reshape([D, -1]), transpose_y=True) + self.proj.bias


STAND_INS: tuple[tuple[Any, str, Any], ...] = (
    (stdit_module, "attention", _attention),
    (stdit_module.PatchEmbedder, "forward", _patches),
    (stdit_module, "on_cpu", lambda: False),  # ways around what is slow in dynamic mode alone
    (
        stdit_module,
        "timestep_embedding",
        lambda given: given,
    ),  # a program gets them instead of times, for it has no exp
    (paddle, "matmul", _matmul),
    (paddle, "rsqrt", lambda x: _operation("rsqrt", dict(X=x))),
    (F, "gelu", lambda x, approximate=False: _operation("gelu", dict(X=x), approximate=approximate)),
    (sys.modules["traceback"], "extract_stack", lambda *_, **__: []),  # half of the time, for messages of errors
)

# ---------------------------------------------------------------------------------------------------------------------
#   Programs on the disk
# ---------------------------------------------------------------------------------------------------------------------


def cached(about: dict, make: Callable[[], bytes]) -> bytes:
    """The program that `make` gives, from the disk if it is there.

    about: all that the program depends on, besides Paddle's version and the source of the models and of this module.
    A file holds a program after its SHA-256; one that is damaged is made again. Together the files stay below
    CACHE_BYTES: what has not been used for the longest time goes first.
    """
    sources = [inspect.getsource(module) for module in (stdit_module, sys.modules[__name__])]
    key = json.dumps([about, paddle.__version__, *sources], sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.program"
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        digest, program = content[:32], content[32:]
        if hashlib.sha256(program).digest() == digest:
            os.utime(path)  # used just now
            return program
    program = make()
    gc.collect()  # of the symbols, which hold each other in circles
    with contextlib.suppress(OpenSoraError, OSError):  # of a disk that is full or read-only: it is made again next time
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(program).digest() + program)
        left = CACHE_BYTES
        for file in sorted(path.parent.glob("*.program"), key=os.path.getmtime, reverse=True):
            left -= file.stat().st_size
            if left < 0 and file != path:
                file.unlink(missing_ok=True)
    return program


# ---------------------------------------------------------------------------------------------------------------------
#   Load and run
# ---------------------------------------------------------------------------------------------------------------------


class Predictor:
    """A program with values, loaded by OpenVINO.

    program: what `record` gave. values: tensors of any shape, by the names of its
    parameters. precision: "fp32" or "bf16".
    """

    def __init__(self, program: bytes, values: dict[str, paddle.Tensor], precision: str):
        from paddle.inference import Config, create_predictor

        with tempfile.TemporaryDirectory(prefix="opensora-lite-") as folder:  # OpenVINO reads nothing but files
            model, weights = Path(folder) / "a.pdmodel", Path(folder) / "a.pdiparams"
            model.write_bytes(program)
            write_parameters(weights, [values[name] for name in parameter_names(program)])
            config = Config(str(model), str(weights))
            config.set_optim_cache_dir(folder)  # of OpenVINO's own, which spares no time here; otherwise ./__cache__
            config.disable_gpu()
            config.disable_glog_info()
            config.set_cpu_math_library_num_threads(_threads())
            config.enable_openvino_engine(
                Config.Precision.Bfloat16 if precision == "bf16" else Config.Precision.Float32
            )
            self.predictor = create_predictor(config)
        self.inputs = {name: self.predictor.get_input_handle(name) for name in self.predictor.get_input_names()}
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])
        self.constants: Any = None  # those that it was given last
        self.lock = threading.Lock()

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """The output for these inputs, tensors of their shapes by their names.

        constants: more of them, which are not looked at as long as they are in the same dictionary as the last time.
        """
        with self.lock:
            given = inputs if constants is self.constants else {**inputs, **constants}
            self.constants = None
            for name, value in given.items():
                self.inputs[name].copy_from_cpu(value.numpy())
            self.predictor.run()
            paddle.base.core.set_num_threads(_threads())  # it leaves one: other roundings would come of convolutions
            self.constants = constants
            return paddle.to_tensor(self.output.copy_to_cpu())


_predictors: dict[tuple, Predictor] = {}  # all of this process, by what makes them differ; none ever goes


def predictor(program: bytes, values: dict[str, paddle.Tensor], checksum: int, precision: str) -> Predictor | None:
    """The Predictor of these, made where there is none yet; None where there are MOST_LOADED of others.

    program, values, precision: as of Predictor. checksum: of the values, tensors of any shape.
    """
    key = hashlib.sha256(program).digest(), checksum, precision
    if key not in _predictors and len(_predictors) < MOST_LOADED:
        _predictors[key] = Predictor(program, values, precision)
    return _predictors.get(key)


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])  # which `runtime.prepare` sets where a person has not


def parameter_names(program: bytes) -> list[str]:
    """The names of a program's parameters, in the order in which OpenVINO reads their values."""
    from paddle.base.framework import Program
    from paddle.pir_utils import OldIrGuard

    with OldIrGuard():
        variables = Program.parse_from_string(program).global_block().vars.values()
        return sorted(v.name for v in variables if v.persistable and v.name not in ("feed", "fetch"))


def write_parameters(path: Path, values: list[paddle.Tensor]) -> None:
    """Write the tensors `values`, of any shapes, to `path`: as float32, as Paddle's `save_combine` does."""
    with open(path, "wb") as file:
        for value in values:
            array = value.astype("float32").numpy()
            sizes = b"".join(b"\x10" + _varint(n) for n in array.shape)
            about = b"\x08\x05" + sizes  # protobuf: field 1, the type, 5 for float32; field 2, each size
            file.write(struct.pack("<IQIi", 0, 0, 0, len(about)) + about)  # versions and a level, all 0
            array.tofile(file)


def _varint(n: int) -> bytes:
    """A whole number as protobuf has it: seven bits in a byte, the lowest first, the eighth set where more follow."""
    return bytes([n]) if n < 128 else bytes([n % 128 | 128]) + _varint(n // 128)


def available() -> bool:
    """Whether this Paddle can hand programs to OpenVINO, on a CPU."""
    from paddle.inference import Config

    return stdit_module.on_cpu() and hasattr(Config, "enable_openvino_engine")


def choose_precision(precision: str) -> str | None:
    """ "fp32" or "bf16" for what was asked; "auto" is bf16 where the processor computes with it. On a GPU None.

    Raises DeviceError for a name that is unknown, and for bf16 on a processor without it.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f'precision "{precision}" is unknown; give one of {", ".join(PRECISIONS)}')
    if not stdit_module.on_cpu():
        if precision != "auto":
            raise DeviceError(f'precision "{precision}" is for a CPU; on a GPU give dtype="{precision}" when loading')
        return None
    has_bf16 = has_instructions("avx512_bf16") or has_instructions("amx_bf16")
    if precision == "bf16" and not has_bf16:
        raise DeviceError('precision "bf16" needs a processor with avx512_bf16 or amx_bf16; use "fp32"')
    return precision if precision != "auto" else "bf16" if has_bf16 else "fp32"


class Static:
    """A `function` of tensors by their names, compiled by `paddle.jit.to_static`; called as a Predictor is."""

    def __init__(self, function: Callable):
        def by_name(tensors):
            return function(**tensors)

        # full_graph: where it may cut the graph into pieces (the default), Paddle 3.3.1 computes something else
        self.function = paddle.jit.to_static(by_name, full_graph=True)

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """The output for these inputs and constants, tensors of their shapes by their names."""
        return self.function({**inputs, **constants})


class Programs:
    """The compiled forms of one function of one model, for one size after the other, as they are needed.

    layer, function: as of `record`. about: what tells the model's sizes from those of others. precision: "fp32" or
    "bf16" for OpenVINO; None for `paddle.jit.to_static`, which takes that of the model.
    """

    def __init__(self, layer: paddle.nn.Layer, function: Callable, about: dict, precision: str | None):
        self.layer, self.function, self.about, self.precision = layer, function, about, precision
        self.failed = False
        self._loaded: dict[str, Any] = {}  # by sizes; None where there are too many
        self._checksum: int | None = None

    def refresh(self) -> None:
        """Forget what was loaded if the model's values have changed since then."""
        checksum = 0
        for parameter in self.layer.parameters():
            checksum = zlib.crc32(parameter.numpy(), checksum)
        if checksum != self._checksum:
            self._loaded.clear()
            self._checksum = checksum

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor] | None = None):
        """The function's output, or None (and, the first time, a warning) where it cannot be compiled.

        inputs: tensors of any shape, by their names. constants: more of them, which are not looked at again as long as
        they are in the same dictionary.
        """
        constants = {} if constants is None else constants
        if self.failed:
            return None
        shapes = {name: tuple(value.shape) for name, value in {**inputs, **constants}.items()}
        key = json.dumps(shapes)
        try:
            if key not in self._loaded:
                self._loaded[key] = self._load(shapes)
            compiled = self._loaded[key]
            return None if compiled is None else compiled(inputs, constants)
        except Exception as error:  # of any kind: this is Paddle's and OpenVINO's inside
            self.failed = True
            reason = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"the model runs uncompiled: {reason[0]}", RuntimeWarning, stacklevel=4)
            return None

    def _load(self, shapes: Shapes) -> "Predictor | Static | None":
        if self.precision is None:
            return Static(self.function)
        if self._checksum is None:
            self.refresh()
        program = cached({**self.about, "shapes": shapes}, lambda: record(self.layer, self.function, shapes))
        values = dict(self.layer.named_parameters())
        found = predictor(program, values, self._checksum or 0, self.precision)
        if found is None:
            reason = f"this process has {MOST_LOADED} others, which stay in memory until it ends"
            warnings.warn(f"the model runs uncompiled at this size: {reason}", RuntimeWarning, stacklevel=5)
        return found


# ---------------------------------------------------------------------------------------------------------------------
#   The models
# ---------------------------------------------------------------------------------------------------------------------


KEPT = ("embedding_kept", "space_kept", "motion_kept")  # of `Conditions.kept`, as inputs of a program


@dataclass
class CompiledConditions(Conditions):
    """Conditions, and the same as inputs of a program."""

    constants: dict[str, paddle.Tensor] = field(default_factory=dict)
    constants_kept: dict[str, paddle.Tensor] = field(default_factory=dict)  # those, and what holds for given frames

    def with_kept(self, vectors: tuple[paddle.Tensor, ...]) -> dict[str, paddle.Tensor]:
        """The constants with the `vectors` [B, …] of given frames (`KEPT`), the same dictionary every time."""
        self.constants_kept = self.constants_kept or self.constants | dict(zip(KEPT, vectors, strict=True))
        return self.constants_kept

    def first(self, B: int) -> "CompiledConditions":
        """As of `Conditions`."""
        told = replace(self, **vars(super().first(B)))
        keys, values, y_mask = (self.constants[name] for name in ("keys", "values", "y_mask"))
        told.constants = {**self.constants, "keys": keys[:, :B], "values": values[:, :B], "y_mask": y_mask[:B]}
        told.constants_kept = {}
        return told


class Engine:
    """An STDiT2 and the decoder of a FrameVAE, compiled; it takes the place of the STDiT2 in `Guidance`.

    precision: "fp32", whose results are those of the models up to rounding; "bf16", faster still where the processor
    has it, see README.md for what it costs; "auto", bf16 where it can be. On a GPU it is that of the models, and only
    "auto" can be asked for. Each size is compiled when it first comes.
    Raises DeviceError for a precision that there is not.
    """

    def __init__(self, stdit: STDiT2, vae: "FrameVAE", precision: str = "auto"):
        self.stdit, self.vae = stdit, vae
        self.y_embedder, self.entering = stdit.y_embedder, stdit.entering
        self.precision = choose_precision(precision)  # None on a GPU
        self._denoise = Programs(stdit, self._denoise_symbols, {"stdit": asdict(stdit.config)}, self.precision)
        config = {name: value for name, value in vae.model.config.items() if not name.startswith("_")}
        self._decode = Programs(vae.model, lambda z: vae.model.decode(z).sample, {"vae": config}, self.precision)

    def __repr__(self) -> str:
        return f"Engine({self.precision or 'to_static'})"

    @property
    def failed(self) -> bool:
        """Whether a model could not be compiled, and runs as it always does."""
        return self._denoise.failed or self._decode.failed

    def refresh(self) -> None:
        """To be called before a video: values of the models may have been changed, by training or by hand."""
        self._denoise.refresh()
        self._decode.refresh()

    def prepare(self, y, mask, latent_size, **sizes) -> Conditions:
        """As of STDiT2."""
        (B, _, L, channels), longest = y.shape, self.stdit.config.model_max_length
        y = paddle.concat([y, paddle.zeros([B, 1, longest - L, channels], y.dtype)], 2)  # one program does for all
        mask = paddle.concat([mask, paddle.zeros([B, longest - L], mask.dtype)], 1)
        told = self.stdit.prepare(y, mask, latent_size, **sizes)
        keys, values = (paddle.stack(part) for part in zip(*told.answers, strict=True))
        blocked = told.y_mask if self.precision is None else paddle.where(told.y_mask, 0.0, -1e4)[:, None, None]
        constants = {name: getattr(told, name) for name in ("size", "length", "positions")}
        constants |= dict(zip(("cos", "sin", "turn"), told.rotary, strict=True))
        return CompiledConditions(**vars(told), constants=constants | dict(keys=keys, values=values, y_mask=blocked))

    def denoise(self, x, timestep, told: CompiledConditions, x_mask=None):
        """As of STDiT2."""
        time = timestep if self.precision is None else stdit_module.timestep_embedding(timestep)
        inputs, constants = {"x": x, "timestep": time}, told.constants
        if x_mask is not None:
            inputs["x_mask"] = x_mask.astype("float32")
            constants = told.with_kept(self.stdit.kept(timestep, told))
        out = self._denoise(inputs, constants)
        return self.stdit.denoise(x, timestep, told, x_mask) if out is None else out

    def _denoise_symbols(
        self, x, timestep, size, length, positions, keys, values, y_mask, cos, sin, turn, x_mask=None, **kept
    ):
        answers = [(keys[i], values[i]) for i in range(self.stdit.config.depth)]
        rotary, of_kept = (cos, sin, turn), tuple(kept[name] for name in KEPT) if kept else None
        told = Conditions(answers, y_mask, size, length, positions, rotary, of_kept)
        return self.stdit.denoise(x, timestep, told, x_mask)

    def decode(self, latents):
        """As of FrameVAE."""

        def frames(z):
            out = self._decode({"z": z})
            return self.vae.model.decode(z).sample if out is None else out

        return self.vae.decode(latents, frames)
