"""How a video was made: `Video.info`, which every saved file carries in its metadata.

    {"opensora_lite": "0.1.0", "prompt": "a red car", "seed": 0, "mask_strategy": "0",
     "references": [{"name": "clip.mp4", "part": "2,4", "bytes": 8123, "sha256": "3b7f…"}],
     "settings": {"num_frames": 16, …},
     "model": {"stdit": {"name": "tiny/stdit", "fingerprint": "7d3b…"}, …}, "changed": false,
     "run": {"device": "cpu", "dtype": "float32", "compiled": "fp32", "batch": [0, 1]},
     "versions": {"numpy": "2.3.5", …}}

It is enough to make the video again, with equal bits on the same machine: `opensora-lite generate --like FILE`. It
holds names of files but no paths, no names of users or machines, and no times: the same request gives the same file.
"""

import functools
import importlib.metadata
import json
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from opensora_lite.errors import MediaError, printable
from opensora_lite.io.checkpoints import PARTS
from opensora_lite.io.fingerprints import file_sha256, fingerprint
from opensora_lite.io.media import StrPath
from opensora_lite.io.metadata import read_info
from opensora_lite.masks import MaskStrategy
from opensora_lite.request import PIXELS_PER_LATENT, Job, Settings
from opensora_lite.validation import AsTuple, Whole, build, validated
from opensora_lite.video import Reference

if TYPE_CHECKING:
    import paddle

OF_REQUEST = ("seed", "same_seed", "batch_size", "num_sample")  # settings of a request, not of one of its videos
PACKAGES = ("opensora-lite", "paddlepaddle", "paddlepaddle-gpu", "openvino", "numpy", "av")
SMALL = 2**24  # parameters up to which a change of them is noticed

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@validated(MediaError)
class UsedReference:
    """A reference: its file's name, the part that was used, as in "2,4" of "clip.mp4#t=2,4", size and SHA-256.

    All are None for frames that were given in memory; `part` also where the whole file was given.
    """

    name: str | None
    part: str | None
    bytes: Whole | None
    sha256: Digest | None


@validated(MediaError)
class UsedPart:
    """A part of a model: the last one or two names of its path, and its `io.fingerprints.fingerprint`."""

    name: str
    fingerprint: Digest


@validated(MediaError)
class Run:
    """What else decides about the bits.

    device, dtype: Paddle's. compiled: "fp32" or "bf16", "auto" on a GPU, None. batch: the video's index in its batch,
    and the size of the batch.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|gpu(:\d+)?)$")]
    dtype: Annotated[str, Field(pattern="^(float32|float16|bfloat16)$")]
    compiled: Annotated[str, Field(pattern="^(fp32|bf16|auto)$")] | None
    batch: Annotated[tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=1, le=10_000)]], AsTuple]


@validated(MediaError)
class Provenance:
    """`Video.info`, checked.

    opensora_lite: the version that made the video. model: its parts by name; None if it was not loaded from files.
    changed: whether the model was changed after it was loaded, by hooks or new parameters.
    """

    opensora_lite: str
    prompt: str
    seed: Annotated[Whole, Field(ge=0)]
    mask_strategy: str
    references: Annotated[tuple[UsedReference, ...], AsTuple]
    settings: dict[str, Any]
    model: dict[str, UsedPart] | None
    changed: bool
    run: Run
    versions: dict[str, str]

    @classmethod
    def read(cls, path: StrPath) -> "Provenance":
        """Of a file that `Video.save` wrote, or of a folder of frames. Raises MediaError where there is none."""
        info = read_info(path)
        if info is None:
            raise MediaError(
                f"{path} does not say how it was made: it is not by opensora_lite, or its metadata was removed, as"
                " many programs and websites do"
            )
        return build(cls, info, f"the metadata of {path}", MediaError)

    @functools.cached_property
    def video_settings(self) -> Settings:
        """The Settings that make this video alone. Raises OpenSoraError."""
        known = Settings.__dataclass_fields__
        unknown = sorted(set(self.settings) - set(known))
        if unknown:
            raise MediaError(
                printable(f"{', '.join(unknown):.200}: settings of another version, {self.opensora_lite:.20}")
            )
        return Settings(**{**self.settings, "seed": self.seed, "batch_size": 1, "num_sample": 1})


def record(
    job: Job, settings: Settings, model: Mapping[str, UsedPart] | None, changed: bool, run: Run
) -> dict[str, Any]:
    """The `Video.info` of a finished job."""
    made = Provenance(
        opensora_lite=versions().get("opensora-lite", "unknown"),
        prompt=job.prompt,
        seed=job.seed,
        mask_strategy=given_strategy(job, settings).format(),
        references=tuple(used_reference(reference) for reference in job.references),
        settings={name: value for name, value in asdict(settings).items() if name not in OF_REQUEST},
        model=None if model is None else dict(model),
        changed=changed,
        run=run,
        versions=versions(),
    )
    return json.loads(json.dumps(asdict(made)))  # lists for tuples, as it will be read


def given_strategy(job: Job, settings: Settings) -> MaskStrategy:
    """The strategy of a job without the segments, at its end, that continue the loops."""
    return MaskStrategy(job.strategy.segments[: len(job.strategy.segments) - (settings.loops - 1)])


def used_reference(reference: Reference) -> UsedReference:
    """A reference as it is recorded."""
    file = reference.file
    if file is None:
        return UsedReference(None, None, None, None)
    part = Path(reference.name).name.removeprefix(file.name).removeprefix("#t=") or None
    return UsedReference(file.name, part, file.stat().st_size, file_sha256(file))


def used_part(path: Path, name: str) -> UsedPart:
    """A part of a model as it is recorded. name: "stdit", "t5" or "vae". Raises CheckpointError."""
    path = path.absolute()
    if path.parent.name == "snapshots":  # of a repository in Hugging Face's cache
        written = path.parent.parent.name.removeprefix("models--").replace("--", "/")
    else:  # in the folder of a model, or a folder or file of its own
        written = "/".join(path.parts[-2:]) if path.name in PARTS[name] else path.name
    return UsedPart(written, fingerprint(path, name))


@functools.cache
def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that compute a video and write its file."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **_installed()}


def checksum(layers: "Iterable[paddle.nn.Layer]") -> int | None:
    """Of the parameters in memory, to notice changes; None for large models."""
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    if sum(parameter.size for parameter in parameters) > SMALL:
        return None
    found = 0
    for parameter in parameters:
        found = zlib.crc32(np.ascontiguousarray(parameter.numpy()).data, found)
    return found


def depends_on_batch(settings: Settings) -> bool:
    """Whether a video's bits depend on its place in a batch: where the patches of all frames are no multiple of four.

    (There, a few numbers are computed outside of full vector registers.)
    """
    height, width = (-(-side // (2 * PIXELS_PER_LATENT)) for side in settings.image_size)
    return settings.num_frames * height * width % 4 != 0
