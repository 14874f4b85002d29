"""The denoiser and the VAE's decoder, compiled: with OpenVINO on a CPU, with `paddle.jit.to_static` on a GPU.

Eager execution is memory-bound; compilation fuses element-wise operations. On a CPU there are three steps:

    trace      the model's own code runs on `Symbol`s, which build a graph of OpenVINO operations
    compile    OpenVINO compiles the graph for one size of the inputs and one precision
    run        arrays in, array out

Tracing uses a private copy of the layers that shares the parameters (`traced`); nothing of Paddle or of the model is
changed, so it works in any thread while others compute. Small compiled models are kept in a folder (`stored`). If
compiling fails, the models run uncompiled, with a warning.

Source: OpenVINO, https://docs.openvino.ai.
"""

import contextlib
import functools
import gc
import hashlib
import inspect
import io
import json
import math
import os
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from opensora_lite import layers, stdit2, stdit3, video_vae
from opensora_lite.device import give_back_memory
from opensora_lite.errors import DeviceError, OpenSoraError
from opensora_lite.io.files import atomic_write
from opensora_lite.layers import EAGER, Ops
from opensora_lite.machine import cache_folder, has_instructions
from opensora_lite.stdit2 import STDiT2
from opensora_lite.stdit3 import STDiT3

try:
    import openvino as ov
    from openvino import opset13 as op
except ImportError:  # the models run uncompiled
    ov = op = None

if TYPE_CHECKING:
    from opensora_lite.vae import FrameVAE

PRECISIONS = ("auto", "fp32", "bf16")
CACHE_BYTES = 2**28  # of all compiled models in the cache folder; the small denoiser and VAE take 11 and 6 MB per size
MAX_STORED = 2**26  # bytes of parameters up to which a compiled model is stored

# ---------------------------------------------------------------------------------------------------------------------
#   Trace: the model's code -> a graph of OpenVINO operations
# ---------------------------------------------------------------------------------------------------------------------


class Symbol:
    """An output of the graph that is being built, with the methods of a tensor that the models use."""

    def __init__(self, node):
        self.node = node.output(0) if hasattr(node, "output") else node

    dtype = "float32"  # of every Symbol but masks, whose dtype nothing asks for
    shape = property(lambda self: list(self.node.shape))
    ndim = property(lambda self: len(self.node.shape))

    def __add__(self, other):
        return Symbol(op.add(self.node, _node(other)))

    def __sub__(self, other):
        return Symbol(op.subtract(self.node, _node(other)))

    def __mul__(self, other):
        return Symbol(op.multiply(self.node, _node(other)))

    def __truediv__(self, other):
        return self if isinstance(other, (int, float)) and other == 1 else Symbol(op.divide(self.node, _node(other)))

    __radd__, __rmul__ = __add__, __mul__

    def astype(self, dtype):  # OpenVINO chooses the precision of each operation
        return self

    cast = astype

    def reshape(self, shape):
        return Symbol(op.reshape(self.node, np.array(shape, np.int64), special_zero=False))

    def flatten(self, start, stop):
        """As Paddle's flatten; axes from 0."""
        n = self.shape
        return self.reshape([*n[:start], math.prod(n[start : stop + 1]), *n[stop + 1 :]])

    def transpose(self, axes):
        return Symbol(op.transpose(self.node, np.array(axes)))

    def mean(self, axis, keepdim):
        return Symbol(op.reduce_mean(self.node, np.array(axis), keepdim))

    def split(self, n, axis):
        return [Symbol(output) for output in op.split(self.node, np.array(axis), n).outputs()]

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        shape = np.broadcast_to(0, self.shape)[index].shape  # of the result
        if Ellipsis in index:
            at, missing = index.index(Ellipsis), self.ndim - sum(i is not None for i in index) + 1
            index = index[:at] + (slice(None),) * missing + index[at + 1 :]
        node = self.node
        for axis, i in enumerate(i for i in index if i is not None):
            start, stop, _ = (i if isinstance(i, slice) else slice(i, i + 1)).indices(self.shape[axis])
            if (start, stop) != (0, self.shape[axis]):
                node = op.slice(node, *(np.array([n]) for n in (start, stop, 1, axis)))
        return Symbol(node).reshape(shape)


def _node(value):
    """What OpenVINO's operations take, for a Symbol, a tensor or a number."""
    if isinstance(value, Symbol):
        return value.node
    if isinstance(value, paddle.Tensor):
        return op.constant(_array(value), shared_memory=True)
    return np.float32(value)


def _array(tensor: paddle.Tensor) -> np.ndarray:
    """The values of a tensor, not copied where this Paddle can share them (3.0)."""
    return np.from_dlpack(tensor.detach()) if hasattr(tensor, "__dlpack__") else tensor.numpy()


class SymbolOps(Ops):
    """The operations of `Ops` on Symbols."""

    def attention(self, q, k, v, mask=None):
        q, k, v = (op.transpose(_node(z), np.array([0, 2, 1, 3])) for z in (q * q.shape[-1] ** -0.5, k, v))
        scores = op.matmul(q, k, False, True)  #                                         (B, heads, n, m)
        if mask is not None:
            scores = op.add(scores, op.select(mask[:, None, None].node, np.float32(0), np.float32(-1e4)))
        return Symbol(op.matmul(op.softmax(scores, -1), v, False, False)).transpose([0, 2, 1, 3])

    def timestep_embedding(self, t):
        return t  # computed before: its sines need more precision than bf16

    def gelu(self, x):
        return Symbol(op.gelu(x.node, "tanh"))

    def rsqrt(self, x):
        return Symbol(op.power(x.node, np.float32(-0.5)))

    def matmul(self, x, y):
        return Symbol(op.matmul(x.node, y.node, False, False))

    def where(self, mask, a, b):
        return Symbol(op.select(mask.node, a.node, b.node))

    def pad(self, x, bottom, right):
        before = [0] * x.ndim
        return Symbol(op.pad(x.node, before, [*before[2:], bottom, right], "constant"))

    def layer_norm(self, x, weight=None, bias=None):
        y = Symbol(op.mvn(x.node, np.array([-1]), True, 1e-6, "inside_sqrt"))
        return y if weight is None else y * weight + bias

    def expand_as(self, vector, x):
        return vector

    def causal_conv(self, x, conv, frames_before):
        return _convolution(conv, x, frames_before)


SYMBOLIC = SymbolOps()


def _linear(layer, x, *_):
    y = SYMBOLIC.matmul(x, layer.weight)
    return y if layer.bias is None else y + layer.bias


def _convolution(layer, x, frames_before=0):
    strides, after, dilation = (list(v) for v in (layer._stride, layer._updated_padding, layer._dilation))
    before = [after[0] + frames_before, *after[1:]]
    y = Symbol(op.convolution(x.node, layer.weight.node, strides, before, after, dilation))
    return y if layer.bias is None else y + layer.bias.reshape([1, -1] + [1] * len(strides))


def _group_norm(layer, x):
    return Symbol(op.group_normalization(x.node, layer.weight.node, layer.bias.node, layer._num_groups, layer._epsilon))


def _upsample(layer, x, *_):
    sizes = np.array([2 * n for n in x.shape[2:]])
    doubled = op.interpolate(
        x.node, sizes, "nearest", "sizes", axes=np.array([2, 3]),
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    return layer.conv(Symbol(doubled))


def _vae_attention(layer, x, **_):
    B, C, H, W = x.shape
    tokens = layer.group_norm(x.reshape([B, C, H * W])).transpose([0, 2, 1])
    q, k, v = (f(tokens).reshape([B, H * W, layer.heads, -1]) for f in (layer.to_q, layer.to_k, layer.to_v))
    out = layer.to_out[0](SYMBOLIC.attention(q, k, v).reshape([B, H * W, C]))
    return x + out.transpose([0, 2, 1]).reshape([B, C, H, W])


FORWARD = {  # of layers of Paddle and ppdiffusers, by the name of their class
    "Linear": _linear,
    "Conv2D": lambda layer, x, *_: _convolution(layer, x),
    "Conv3D": lambda layer, x, *_: _convolution(layer, x),
    "Silu": lambda layer, x: Symbol(op.swish(x.node)),
    "GroupNorm": _group_norm,
    "Dropout": lambda layer, x: x,
    "Upsample2D": _upsample,
    "Attention": _vae_attention,
}


def traced(layer: paddle.nn.Layer) -> paddle.nn.Layer:
    """A copy of `layer` that computes with Symbols; its parameters are constants that share the values of `layer`."""
    copy = object.__new__(type(layer))
    parts = vars(copy)
    parts.update(vars(layer))
    parts["_parameters"] = {name: None if p is None else Symbol(_node(p)) for name, p in layer._parameters.items()}
    parts["_sub_layers"] = {name: traced(part) for name, part in layer._sub_layers.items()}
    if "ops" in parts:
        parts["ops"] = SYMBOLIC
    for base in type(layer).__mro__:
        if base.__name__ in FORWARD:
            parts["forward"] = functools.partial(FORWARD[base.__name__], copy)
            break
    return copy


# ---------------------------------------------------------------------------------------------------------------------
#   Compile and run
# ---------------------------------------------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


@functools.cache
def _core():
    return ov.Core()


def _options(precision: str) -> dict:
    return {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"]),  # `device.prepare` sets it if the user has not
        "PERFORMANCE_HINT": "LATENCY",
    }


class Compiled:
    """A function of a model, compiled by OpenVINO for inputs of certain shapes. compiled: openvino's CompiledModel."""

    def __init__(self, compiled):
        self.request = compiled.create_infer_request()
        self.constants: Any = None  # of the last call
        self.lock = threading.Lock()

    @classmethod
    def load(cls, layer: paddle.nn.Layer, function: Callable, examples: Arrays, precision: str, key: dict | None):
        """`function(layer, **inputs)` for inputs with the shapes and dtypes of `examples`.

        key: what identifies the compiled model in the cache folder; None: it is not stored.
        """
        blob = None if key is None else stored(key)
        if blob is not None:
            with contextlib.suppress(RuntimeError):  # of another build of OpenVINO, for example
                return cls(_core().import_model(io.BytesIO(blob), "CPU", _options(precision)))
        nodes = {name: op.parameter(a.shape, a.dtype, name) for name, a in examples.items()}
        for name, node in nodes.items():
            node.output(0).set_names({name})
        out = function(traced(layer), **{name: Symbol(node) for name, node in nodes.items()})
        compiled = _core().compile_model(ov.Model([out.node], list(nodes.values())), "CPU", _options(precision))
        if key is not None:
            exported = compiled.export_model()
            store(key, exported if isinstance(exported, bytes) else exported.getvalue())
        return cls(compiled)

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """constants: more inputs; they are copied again only if it is another dictionary than in the last call."""
        with self.lock:
            new = inputs if constants is self.constants else {**inputs, **constants}
            self.constants = None
            for name, value in new.items():
                self.request.set_tensor(name, ov.Tensor(value.numpy(), shared_memory=False))
            self.request.infer()
            self.constants = constants
            return paddle.to_tensor(self.request.get_output_tensor(0).data)


class ByName(paddle.nn.Layer):
    """`function(layer, **tensors)` as a layer: to_static of Paddle 2.6 knows no variables of an enclosing function."""

    def __init__(self, layer: paddle.nn.Layer, function: Callable):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, tensors):
        return self.function(self.layer, **tensors)


class Static:
    """The same by `paddle.jit.to_static`, for a GPU."""

    def __init__(self, layer: paddle.nn.Layer, function: Callable):
        # full_graph: with graph breaks (the default), Paddle 3.3.1 gives wrong results
        self.function = paddle.jit.to_static(ByName(layer, function), full_graph=True)

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """As of `Compiled`."""
        return self.function({**inputs, **constants})


class Programs:
    """The compiled forms of `function(layer, **inputs)`, one per set of input shapes.

    config: the sizes of the model. precision: "fp32" or "bf16" for OpenVINO, None for `to_static`.
    """

    def __init__(self, layer: paddle.nn.Layer, function: Callable, config: dict, precision: str | None):
        self.layer, self.function, self.config, self.precision = layer, function, config, precision
        self.failed = self.changed = False
        self.checksum: int | None = None  # of the parameters
        self.loaded: dict[str, Compiled | Static] = {}
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Drop what was compiled if parameters have changed since; to be called once per video.

        (`Tensor.inplace_version` does not tell: optimizers and `set_value` leave it as it is.)
        """
        if self.precision is None:  # `to_static` reads the parameters at each call
            return
        checksum = 0
        for parameter in self.layer.parameters():
            checksum = zlib.crc32(_array(parameter).data, checksum)
        with self.lock:
            if self.checksum is not None and checksum != self.checksum:
                self.loaded.clear()
                self.changed = True
                gc.collect()
                give_back_memory()
            self.checksum = checksum

    def __call__(self, inputs: dict[str, paddle.Tensor], constants: dict[str, paddle.Tensor]) -> paddle.Tensor | None:
        """The output, or None (with a warning, the first time) if compiling failed."""
        if self.failed:
            return None
        try:
            return self._load({**inputs, **constants})(inputs, constants)
        except Exception as error:  # of any kind: it comes from OpenVINO or Paddle
            self.failed = True
            reason = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"the model runs uncompiled: {reason[0]}", RuntimeWarning, stacklevel=4)
            return None

    def _load(self, tensors: dict[str, paddle.Tensor]) -> "Compiled | Static":
        shapes = json.dumps({name: tensor.shape for name, tensor in tensors.items()})
        with self.lock:
            if shapes not in self.loaded:
                self.loaded[shapes] = self._compile(shapes, tensors)
            return self.loaded[shapes]

    def _compile(self, shapes: str, tensors: dict[str, paddle.Tensor]) -> "Compiled | Static":
        if self.precision is None:
            return Static(self.layer, self.function)
        key = None  # parameters that change are not stored: there may be many
        if not self.changed and 4 * sum(p.size for p in self.layer.parameters()) <= MAX_STORED:
            key = {"config": self.config, "shapes": shapes, "precision": self.precision, "parameters": self.checksum}
        examples = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Compiled.load(self.layer, self.function, examples, self.precision, key)


# ---------------------------------------------------------------------------------------------------------------------
#   Compiled models in the cache folder
# ---------------------------------------------------------------------------------------------------------------------


def _path(key: dict) -> Path:
    """Of the file for `key` on this machine, with this version of OpenVINO and of the models' source."""
    sources = [inspect.getsource(module) for module in (layers, stdit2, stdit3, video_vae, sys.modules[__name__])]
    machine = [str(_core().get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    text = json.dumps([key, ov.__version__, os.environ["OMP_NUM_THREADS"], machine, sources], sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.blob"


def stored(key: dict) -> bytes | None:
    """The compiled model of `key`, or None. A file holds it after its SHA-256; a damaged file is None."""
    with contextlib.suppress(OSError):
        path = _path(key)
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            os.utime(path)  # used now
            return content[32:]
    return None


def store(key: dict, blob: bytes) -> None:
    """Write a compiled model; the files unused for longest are deleted beyond CACHE_BYTES.

    A disk that is full or read-only is no error.
    """
    with contextlib.suppress(OpenSoraError, OSError):
        path = _path(key)
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
        left = CACHE_BYTES
        for file in sorted(path.parent.glob("*.blob"), key=os.path.getmtime, reverse=True):
            left -= file.stat().st_size
            if left < 0 and file != path:
                file.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
#   The models
# ---------------------------------------------------------------------------------------------------------------------


def available() -> bool:
    """Whether OpenVINO is installed, and Paddle's device is a CPU."""
    return ov is not None and layers.on_cpu()


def choose_precision(precision: str) -> str | None:
    """ "fp32" or "bf16" for what was asked; "auto" is bf16 where the processor supports it. None on a GPU.

    Raises DeviceError for an unknown name, and for bf16 on a processor without it.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f'precision "{precision}" is unknown; give one of {", ".join(PRECISIONS)}')
    if not layers.on_cpu():
        if precision != "auto":
            raise DeviceError(f'precision "{precision}" is for a CPU; on a GPU give dtype="{precision}" when loading')
        return None
    has_bf16 = has_instructions("avx512_bf16") or has_instructions("amx_bf16")
    if precision == "bf16" and not has_bf16:
        raise DeviceError('precision "bf16" needs a processor with avx512_bf16 or amx_bf16; use "fp32"')
    return precision if precision != "auto" else "bf16" if has_bf16 else "fp32"


@dataclass
class EngineState:
    """A transformer's state, and its tensors by name: without and with those of conditioning frames."""

    inner: Any  # a `layers.TransformerState`
    tensors: dict[bool, dict[str, paddle.Tensor]] = field(default_factory=dict)

    def first(self, B: int) -> "EngineState":
        """As in `layers.TransformerState`."""
        return EngineState(self.inner.first(B))

    def named(self, masked: bool) -> dict[str, paddle.Tensor]:
        """The same dictionary at each call. masked: whether there are conditioning frames."""
        if masked not in self.tensors:
            self.tensors[masked] = self.inner.named(masked)
        return self.tensors[masked]


def _denoise(stdit: STDiT2 | STDiT3, x, t, x_mask=None, **named):
    """The transformer's `denoise` with the tensors of a state by name."""
    return stdit.denoise(x, t, stdit.state.from_named(named), x_mask)


class Engine:
    """A compiled STDiT2 or STDiT3 with the same methods, and the compiled decoder of a FrameVAE or a VideoVAE.

    precision: "fp32", whose results are those of the models up to rounding; "bf16", faster on processors that support
    it, see the guide for the error; "auto", bf16 where supported. On a GPU the precision is that of the models, and
    only "auto" is allowed. Each size is compiled when it is first used.
    Raises DeviceError for a precision that is not available.
    """

    def __init__(self, stdit: STDiT2 | STDiT3, vae: "FrameVAE | video_vae.VideoVAE", precision: str = "auto"):
        self.stdit, self.vae = stdit, vae
        self.requested, self.precision = precision, choose_precision(precision)  # the latter None on a GPU
        config = {name: value for name, value in vae.model.config.items() if not name.startswith("_")}
        self._denoise = Programs(stdit, _denoise, {"stdit": asdict(stdit.config)}, self.precision)
        self._decoders = {
            name: Programs(layer, decode, {f"vae, {name}": config}, self.precision)
            for name, (layer, decode) in vae.decoders.items()
        }

    def __repr__(self) -> str:
        return f"Engine({self.precision or 'to_static'})"

    @property
    def failed(self) -> bool:
        """Whether compiling failed; the models then run uncompiled."""
        return self._denoise.failed or any(decoder.failed for decoder in self._decoders.values())

    @property
    def config(self):
        return self.stdit.config

    @property
    def null_caption(self):
        return self.stdit.null_caption

    def precompute(self, cond) -> EngineState:
        """As in STDiT2; captions are padded to the longest that the model takes, so that one program serves all."""
        self._denoise.refresh()
        B, _, L, channels = cond.y.shape
        more = self.config.model_max_length - L
        y = paddle.concat([cond.y, paddle.zeros([B, 1, more, channels], cond.y.dtype)], 2)
        y_mask = paddle.concat([cond.y_mask, paddle.zeros([B, more], cond.y_mask.dtype)], 1)
        return EngineState(self.stdit.precompute(replace(cond, y=y, y_mask=y_mask)))

    def modulated_input(self, x, t, state: EngineState):
        """As in STDiT2."""
        return self.stdit.modulated_input(x, t, state.inner)

    def denoise(self, x, t, state: EngineState, x_mask=None):
        """As in STDiT2."""
        inputs = {"x": x, "t": t if self.precision is None else EAGER.timestep_embedding(t)}
        if x_mask is not None:
            inputs["x_mask"] = x_mask
            self.stdit.params_at_zero(t, state.inner)
        out = self._denoise(inputs, state.named(x_mask is not None))
        return self.stdit.denoise(x, t, state.inner, x_mask) if out is None else out

    def decode(self, latents, num_frames: int | None = None):
        """As in FrameVAE and VideoVAE."""

        def compiled(name):
            (layer, decode), program = self.vae.decoders[name], self._decoders[name]

            def decoder(z):
                out = program({"z": z}, {})
                return decode(layer, z) if out is None else out

            program.refresh()
            return decoder

        return self.vae.decode(latents, num_frames, {name: compiled(name) for name in self._decoders})
