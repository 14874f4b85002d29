"""Loading of checkpoints: safetensors in PyTorch's or Paddle's layout, and Paddle's `.pdparams`.

`find_part` gives the folder of a model's part, `open_checkpoint` a table {name: Tensor} without reading values.
`without_prefix` takes off what a wrapper put before the names, `check_state_dict` compares names and shapes with a
model, and `load` copies one tensor at a time: the peak of memory stays near the size of the model.

The layouts differ in one thing: a Linear's weight is [out, in] in PyTorch and [in, out] in Paddle. A square weight
would load either way, and give noise, so the file decides (`Tensor.layout`), never the shape.

Files are not trusted: nothing in them is executed, and whatever is wrong is a CheckpointError.
"""

import contextlib
import functools
import json
import os
import re
import reprlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from opensora_lite.errors import CheckpointError, printable
from opensora_lite.io.pickles import NUMPY, read_paddle
from opensora_lite.validation import Place, check

# safetensors' names of the types that can be read; `load` takes the floating-point ones
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
PARTS = {"stdit": ("stdit", "transformer"), "t5": ("t5", "text_encoder"), "vae": ("vae",)}  # ours, and diffusers'
INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")  # of shards; the group is diffusers' variant
SHARD = re.compile(r"-\d{5}-of-\d{5}(\.\w+)?\.(safetensors|bin)$")
USUAL = ("model", "diffusion_pytorch_model")  # names of files of transformers and diffusers
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile, FSDP, checkpointing
PRECISION = re.compile(r"\.(fp32|fp16|bf16)$")  # diffusers' variants: the same weights, rounded
PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # of PyTorch
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # of Hugging Face
MAX_JSON = 10_000_000  # bytes of an index or a config: a hundred times those of the released models
# A file's metadata "format" -> its layout. paddlenlp writes "np" for its own.
LAYOUTS = {None: "torch", "pt": "torch", "pd": "paddle", "np": "paddle"}
# First bytes of files that are saved as .safetensors by mistake.
IMPOSTORS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; run `git lfs pull` in its repository",
    b"<": "a web page, not the weights themselves; download the file again, logged in where that is needed",
    b"PK": "a zip archive, such as PyTorch's .pt and .bin files are, and no safetensors file",
    b"\x80": "a pickle, such as .bin and .pdparams files are, and no safetensors file",
}
# The attention names of diffusers in 2022, as in sd-vae-ft-ema's file -> today's.
NAMES_2022 = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
# The config.json of SDXL's VAE, which OpenSora-VAE-v1.2 does not bring along.
SDXL_VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=32,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # as stored; bf16 as float32
    layout: str  # "torch" or "paddle": the orientation of a Linear's weight
    file: Path  # which holds it
    dtype: str = "F32"  # as stored, one of DTYPES


# ---------------------------------------------------------------------------------------------------------------------
#   Files
# ---------------------------------------------------------------------------------------------------------------------


def find_part(path: str | Path, part: str) -> Path:
    """The folder, or the weights file, of the part "stdit", "t5" or "vae" of a model.

    path: the part itself, a folder that holds it under our name or diffusers' ("vae", "text_encoder"), or the name of a
    repository in the cache of Hugging Face. Raises CheckpointError for a name that is neither; reads no weights.
    """
    path = on_disk(check(Place, path, part, CheckpointError))
    with _explained(path):
        return path if not path.is_dir() or (path / "config.json").exists() else part_of(path, part, path)


def part_of(model: Path, part: str, default: Path | None = None) -> Path:
    """The folder of a part in a model's folder: under our name, diffusers', or `default`, which is ours."""
    folders = (model / name for name in PARTS[part])
    return next((folder for folder in folders if folder.exists()), default or model / part)


def on_disk(name: str | Path) -> Path:
    """A path as it is, or the folder of a repository such as "owner/name" in the cache of Hugging Face.

    The cache is $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub; a repository's own folder there
    ("models--owner--name") can be given too. The revision is the one that was fetched as "main". Nothing is downloaded.
    Raises CheckpointError for a name that is neither a path nor in the cache.
    """
    path = Path(name)
    with _explained(path):
        if path.name.startswith("models--") and (path / "snapshots").is_dir():
            return _snapshot(path)
        if not REPOSITORY.fullmatch(str(name)) or os.path.lexists(path):
            return path
    given = os.environ.get
    home = given("HF_HOME") or os.path.join(given("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(given("HF_HUB_CACHE") or given("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = cache / f"models--{str(name).replace('/', '--')}"
    with _explained(repository):
        if (repository / "snapshots").is_dir():
            return _snapshot(repository)
    raise CheckpointError(
        f"no model at {name}: the path does not exist, and Hugging Face's cache, {cache}, holds no such repository;"
        f" nothing is downloaded: `huggingface-cli download {name}` fetches it"
    )


def _snapshot(repository: Path) -> Path:
    """The folder of a repository's main revision in the cache of Hugging Face, or of the only one."""
    snapshots = {folder.name: folder for folder in sorted(repository.glob("snapshots/*"))}
    main = repository / "refs" / "main"
    revision = read_start(main).decode(errors="replace").strip() if main.exists() else None
    if revision not in snapshots and len(snapshots) != 1:
        there = named([str(folder) for folder in snapshots.values()]) or "none"
        raise CheckpointError(
            f"{repository} holds no main revision; give the folder of another one, of which it has {there}"
        )
    return snapshots[revision if revision in snapshots else next(iter(snapshots))]


def open_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `path`: a .safetensors file, an index of shards, a .pdparams file, or a directory.

    A directory holds one .safetensors file, or one index with its shards, by any name. A .pdparams file is a pickle: it
    is read only if it is itself named, and nothing in it is executed. Other pickles are refused, with the command that
    converts them.
    Raises CheckpointError: no such path, nothing to load there or several files to choose from, a git-lfs pointer, a
    truncated or broken file.
    """
    path = Path(path)
    with _explained(path):
        if not path.exists():
            raise CheckpointError(f"no weights at {path}: the path does not exist")
        if path.is_dir():
            path = weights_in(path)
    if INDEX.search(path.name):
        return read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".pdparams":
        return read_pdparams(path)
    if path.suffix in PICKLES:
        read_start(path)
        raise CheckpointError(f"{path} is a pickle, which is not loaded; {how_to_convert(path)}")
    raise CheckpointError(
        f"{path} is no checkpoint that can be loaded; give a .safetensors file, its folder, or a .pdparams file"
    )


def weights_in(folder: Path) -> Path:
    """The .safetensors file of a folder, or the index of its shards. Raises CheckpointError unless there is one.

    Files that differ from another one in their precision only, as model.fp16.safetensors does, don't count, nor do
    those beside a file with a usual name that hold tensors of other names.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    indices = {
        INDEX.sub(lambda match: match[1] or "", name): path for name, path in files.items() if INDEX.search(name)
    }
    singles = {p.stem: p for p in files.values() if p.suffix == ".safetensors" and not SHARD.search(p.name)}
    if len(indices | singles) > 1:
        parts = {shard for path in indices.values() for shard in read_weight_map(path).values()}
        singles = {stem: path for stem, path in singles.items() if path.name not in parts}
    found = indices | singles
    chosen = [path for stem, path in found.items() if (whole := PRECISION.sub("", stem)) == stem or whole not in found]
    if len(chosen) > 1 and (usual := [found[stem] for stem in USUAL if found.get(stem) in chosen]):
        chosen = [path for path in chosen if path in usual or _same_names(path, usual[0])]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise CheckpointError(
            f"{folder} holds several checkpoints: {named([path.name for path in chosen], most=8)}; give the path of the"
            f" one that is meant, such as {chosen[0]}"
        )
    there = named(list(files), most=8) or "nothing"
    problem = f"no weights in {folder}: expected a .safetensors file, or several with their index; there is {there}"
    if any(SHARD.search(name) and name.endswith(".safetensors") for name in files):
        raise CheckpointError(f"{problem}. The shards lack their index, a file NAME.safetensors.index.json")
    pickles = [path for path in files.values() if path.suffix in PICKLES]
    shards = [path for path in pickles if SHARD.search(path.name)]
    if pickles:
        advice = how_to_convert(*(shards or pickles[:1]))
        raise CheckpointError(f"{problem}. A {pickles[0].suffix} file is a pickle, which is not loaded; {advice}")
    raise CheckpointError(f"{problem}. A .pdparams file is only read where it is itself named")


def _same_names(path: Path, other: Path) -> bool:
    """Whether two checkpoints hold mostly the same names, apart from a prefix: a model and its EMA, for example."""
    try:
        a, b = (set(open_checkpoint(file)) for file in (path, other))
    except CheckpointError:
        return False  # nothing to choose
    return bool(_prefixes(a, b) or _prefixes(b, a))


def how_to_convert(*files: Path, **options: str) -> str:
    """Advice: the command that writes the weights of `files` as one safetensors file beside them.

    options: of the command, with their values.
    """
    stem = SHARD.sub("", files[0].name) if len(files) > 1 else files[0].stem
    out = files[0].with_name(f"{options.get('table', stem)}.safetensors")
    words = [*map(str, files), *(word for name, value in options.items() for word in (f"--{name}", value))]
    command = printable(shlex.join(["opensora-lite", "convert", *words, "--out", str(out)]))
    return f"convert it once (nothing in it is executed, and PyTorch is not needed):\n    {command}"


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """An OSError in the block (no permission, a name that is too long) becomes a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error


def read_start(path: Path, length: int = 64) -> bytes:
    """The first bytes of a regular file that is no git-lfs pointer. Raises CheckpointError (a pipe would never end)."""
    with _explained(path):
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file")
        with open(path, "rb") as file:
            start = file.read(min(length, os.fstat(file.fileno()).st_size))  # read(n) allocates n bytes at once
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is {IMPOSTORS[b'version https://git-lfs']}")
    return start


def is_safetensors(start: bytes) -> bool:
    """Whether a file is meant as safetensors, by its first bytes: 8 of the header's length, then its brace."""
    return start[8:9] == b"{"


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises CheckpointError for a broken one."""
    from safetensors import safe_open

    path = Path(path)
    start = read_start(path)
    with _safetensors_errors(path, start), safe_open(str(path), framework="numpy") as file:
        written = (file.metadata() or {}).get("format")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        shapes = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    if written not in LAYOUTS:
        raise CheckpointError(f"{path}: its format is {legible(written)!r}; pt (PyTorch) or pd (Paddle) is needed")
    other = sorted({dtype for _, dtype in shapes.values()} - set(DTYPES))
    if other:
        raise CheckpointError(
            f"{path} holds tensors of type {named(other)}; those that can be loaded are {', '.join(DTYPES)}"
        )
    tensors = {}
    for name, (shape, dtype) in shapes.items():
        read = functools.partial(_read_bf16 if dtype == "BF16" else _read_tensor, path, name)
        tensors[name] = Tensor(shape, read, LAYOUTS[written], path, dtype)
    return tensors


@contextlib.contextmanager
def _safetensors_errors(path: Path, start: bytes | None = None) -> Iterator[None]:
    """Errors of safetensors become CheckpointErrors. start: the file's first bytes; None: it was opened before."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if "os error 12" in str(error):  # ENOMEM
            raise MemoryError(f"{path} cannot be mapped") from error
        if start is None:
            raise CheckpointError(f"{path} has been changed or removed since it was opened ({error})") from error
        impostor = b"" if is_safetensors(start) else next((i for i in IMPOSTORS if start.startswith(i)), b"")
        what = IMPOSTORS.get(impostor, f"not a whole safetensors file ({legible(str(error))}); download it again")
        if impostor in (b"PK", b"\x80"):
            what += f"; rename it to {path.stem}.pt, and {how_to_convert(path.with_suffix('.pt'))}"
        raise CheckpointError(f"{path} is {what}") from error


def _read_tensor(path: Path, name: str) -> np.ndarray:
    """Opens the file for this tensor only: the pages of a file that stays mapped would count as memory."""
    from safetensors import safe_open

    with _safetensors_errors(path), safe_open(str(path), framework="numpy") as file:
        return file.get_tensor(name)


def _read_bf16(path: Path, name: str) -> np.ndarray:
    """A bf16 tensor as float32. numpy has no bf16, so its 16 bits are read at the offset that the header gives."""
    with _safetensors_errors(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2")
        return widened(bits.reshape(entry["shape"]))


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16, given as its 16 bits, as float32: they are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that a Hugging Face `*.safetensors.index.json` names.

    Shards lie beside the index, as files or as links (Hugging Face's cache). Raises CheckpointError.
    """
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    tensors = {}
    for shard in shards:
        if {Path(shard).name, PureWindowsPath(shard).name} != {shard} or shard in ("", "..") or "\0" in shard:
            raise CheckpointError(f'{index} names the shard "{legible(shard)}", which lies outside of its folder')
        with _explained(f"shard {legible(shard)} of {index}"):
            if not (index.parent / shard).exists():
                raise CheckpointError(
                    f"shard {legible(shard)} is missing: {index} names {len(shards)} shards, all of which are needed"
                )
        for name, tensor in read_safetensors(index.parent / shard).items():
            if weight_map.get(name, shard) != shard:
                raise CheckpointError(
                    f"{index} promises {legible(name)} in {legible(weight_map[name])}, but {legible(shard)} holds it;"
                    " the shards are of different downloads"
                )
            tensors[name] = tensor
    lacking = sorted(set(weight_map) - set(tensors))
    if lacking:
        raise CheckpointError(f"{index} promises {named(lacking)}, which no shard holds; download the shards again")
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """{name of a tensor: name of its shard} of an index. Raises CheckpointError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f'{index} is no index of shards: expected a JSON object with a "weight_map"')
    return weight_map


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `paddle.save` wrote; nothing in it is executed. Raises CheckpointError."""
    read_start(path)
    try:
        arrays = read_paddle(path)
    except Exception as error:
        why = legible(str(error) or type(error).__name__)
        raise CheckpointError(f"{path} is no Paddle state dict ({why}); give the weights as safetensors") from error

    def read(array: np.ndarray) -> np.ndarray:
        return widened(array) if array.dtype == np.uint16 else array  # Paddle gives bf16 to numpy as its 16 bits

    kinds = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}  # uint16: bf16
    return {
        name: Tensor(a.shape, functools.partial(read, a), "paddle", path, kinds[a.dtype.newbyteorder("<")])
        for name, a in arrays.items()
    }


def read_config(folder: str | Path) -> dict:
    """The config.json of a model's folder (or beside its weights file). Raises CheckpointError."""
    folder = Path(folder)
    with _explained(folder):
        if not folder.exists():
            raise CheckpointError(f"no model at {folder}: the path does not exist")
        path = (folder if folder.is_dir() else folder.parent) / "config.json"
        if not path.exists():
            where = f"at {path}" if folder.is_dir() else f"beside {folder}"
            raise CheckpointError(f"no config.json {where}: a model's folder holds config.json and its weights")
    return read_json(path)


def read_vae_config(folder: str | Path) -> dict:
    """The config of a VAE's folder. Raises CheckpointError.

    Of a frame-wise VAE it is the content of its config.json; of a video VAE (Open-Sora 1.2), that and the fields of
    its spatial part side by side, the latter from vae_2d/config.json, or those of SDXL's VAE, which the release names.
    """
    folder = Path(folder)
    config = read_config(folder)
    if "vae_temporal" not in config:
        return config
    spatial = (folder if folder.is_dir() else folder.parent) / "vae_2d"
    for name in ("vae_2d", "vae_temporal"):
        if not isinstance(config.get(name, {}), dict):
            raise CheckpointError(f"{folder}: {name} of its config.json is no JSON object")
    return {**(read_config(spatial) if spatial.exists() else SDXL_VAE), **config}


def read_json(path: Path) -> dict:
    """The JSON object of a file: UTF-8, no name twice, no NaN. Raises CheckpointError."""

    def unique(pairs: list) -> dict:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a name stands in it twice")
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    text = read_start(path, MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{path} has more than {MAX_JSON} bytes, which no config or index has")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({legible(str(error))})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


# ---------------------------------------------------------------------------------------------------------------------
#   From tensors to a layer
# ---------------------------------------------------------------------------------------------------------------------


def rename_2022(names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name today} for the attention names that diffusers used in 2022."""

    def today(name: str) -> str:
        for old, new in NAMES_2022:
            name = name.replace(old, new)
        return name

    return {name: today(name) for name in names if ".attentions." in name}


def without_prefix(layer, tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """`tensors` under the names of `layer`: without prefixes of wrappers ("module.", "_orig_mod.module."), and without
    WRAPPERS within the names, as where single blocks are wrapped.

    layer: may be the result of `build_meta`. path: the tensors' file, or its folder. The prefix is the one under which
    more than half of the layer's names stand. Raises CheckpointError where there are several, as in a file with a model
    and its EMA.
    """
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): t for name, t in tensors.items()}
    tensors = bare if len(bare) == len(tensors) else tensors
    prefixes = _prefixes(tensors, set(layer.state_dict()))
    if len(prefixes) > 1:
        sets = sorted(prefix.removesuffix(".") for prefix in prefixes if prefix)
        file = weights_in(Path(path)) if Path(path).is_dir() else Path(path)
        raise CheckpointError(
            f"{file} holds {len(prefixes)} sets of weights: {named(sets)}{' and one more' if '' in prefixes else ''}."
            f" Choose one, and give its own file; {how_to_convert(file, table=sets[0])}"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _prefixes(names: Iterable[str], wanted: set[str]) -> list[str]:
    """The prefixes, such as "module." and "", under which more than half of the `wanted` names are among `names`."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts[".".join([*parts[:i], ""])] += 1
    return [prefix for prefix, count in counts.items() if 2 * count > len(wanted)]


def linear_weights(layer) -> set[str]:
    """The state dict's names of all Linear weights: [in, out] in Paddle."""
    import paddle

    return {f"{name}.weight" for name, sub in layer.named_sublayers() if isinstance(sub, paddle.nn.Linear)}


def check_state_dict(
    layer,
    tensors: Mapping[str, Tensor],
    rename: Mapping[str, str] = {},
    computed: tuple[str, ...] = (),
    what: str = "checkpoint",
) -> dict[str, Tensor]:
    """{name in the state dict of `layer`: its tensor}. Raises a CheckpointError that names everything that differs.

    rename: {name in the file: name in the state dict}. computed: names that the file may hold or lack, since the layer
    computes them. what: the checkpoint, in messages. `layer` may be the result of `build_meta`.
    """
    linears = linear_weights(layer)
    wanted = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    found = {rename.get(name, name): tensor for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        twice = sorted(name for name in rename if rename[name] in tensors and rename[name] != name)
        raise CheckpointError(f"the {what} holds the same tensors under old and new names: {named(twice)}")
    missing = sorted(set(wanted) - set(found) - set(computed))
    unexpected = sorted(set(found) - set(wanted) - set(computed))
    shapes = {name: found[name].shape for name in wanted if name in found}
    for name in linears & set(shapes):
        # the 2022 files hold some attention weights as 1 x 1 convolutions: [out, in, 1, 1]
        if len(shapes[name]) == 4 and shapes[name][2:] == (1, 1):
            shapes[name] = shapes[name][:2]
        if found[name].layout == "torch":
            shapes[name] = shapes[name][::-1]
    wrong = [
        f"{n}: the file has {list(shapes[n])}, the model {list(wanted[n])}" for n in shapes if shapes[n] != wanted[n]
    ]
    problems = [
        f"{len(names)} tensors are {kind}: {named(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"the {what} does not fit the model\n    " + "\n    ".join(problems))
    return {name: found[name] for name in wanted if name in found}


def load(
    layer,
    tensors: Mapping[str, Tensor],
    rename: Mapping[str, str] = {},
    computed: tuple[str, ...] = (),
    what: str = "checkpoint",
):
    """Copies `tensors` into `layer`, in its dtype, after `check_state_dict`; returns it in eval mode."""
    import paddle

    matched = check_state_dict(layer, tensors, rename, computed, what)
    linears = linear_weights(layer)
    with paddle.no_grad():
        state = layer.state_dict()
        for name, tensor in matched.items():
            target = state[name]
            value = tensor.read()
            if name in linears:
                value = value.reshape(value.shape[:2])
                if tensor.layout == "torch":
                    value = value.T
            dtype = "float16" if target.dtype == paddle.float16 else "float32"  # numpy has no bf16
            value = _numbers(value, dtype, f"the {what}: tensor {legible(name)}")
            if target.dtype == paddle.bfloat16:
                paddle.assign(paddle.to_tensor(value).astype("bfloat16"), target)
            else:
                target.set_value(value)
    layer.eval()
    return layer


def _numbers(value: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """`value` in that dtype. Raises CheckpointError unless all of it is finite floating-point numbers."""
    if value.dtype.kind != "f":
        raise CheckpointError(f"{what} holds {value.dtype} values; those of a model are floating-point numbers")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(value, dtype)
    if np.isfinite(converted).all():
        return converted
    if np.isfinite(value).all():
        raise CheckpointError(f'{what} holds values beyond the range of {dtype}; load the model with dtype="bf16"')
    bad = int(value.size - np.isfinite(value).sum())
    raise CheckpointError(
        f"{what} holds {bad} values of {value.size} that are not finite (nan, inf); every video would be broken:"
        " download the file again, or take a checkpoint from before its training failed"
    )


def build_meta(make: Callable, *args):
    """`make(*args)` without memory for its parameters (torch's "meta" device): only names and shapes."""
    import paddle

    with paddle.LazyGuard():
        return make(*args)


def build(make: Callable, *args, dtype: str = "float32"):
    """`make(*args)` with parameters of that dtype, filled with zeros: random values would be replaced anyway."""
    import paddle

    zero = paddle.nn.initializer.Constant(0.0)
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    paddle.nn.initializer.set_global_initializer(zero, zero)
    try:
        return make(*args)
    finally:
        paddle.nn.initializer.set_global_initializer(None, None)
        paddle.set_default_dtype(before)


def named(names: list[str], most: int = 4) -> str:
    """The first `most` of the names, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(legible, names[:most])) + more


def legible(value: object, most: int = 200) -> str:
    """Text from a file, for a message: on one line, short, without control characters."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return printable(text if len(text) <= most else text[:most] + "…")
