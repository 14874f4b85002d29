"""`opensora-lite generate --like FILE`: makes a saved video again from its metadata.

Prompt, strategy and settings come from the file; settings that are given replace them. References are found by their
SHA-256 and the model by its fingerprint, so names and places may have changed. On the machine that made the video, the
latents have equal bits.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_lite.errors import CheckpointError, OpenSoraError, note, printable
from opensora_lite.io.checkpoints import find_part, part_of
from opensora_lite.io.fingerprints import file_sha256, find, fingerprint
from opensora_lite.io.media import as_path, split_fragment
from opensora_lite.provenance import Provenance, UsedPart, UsedReference, depends_on_batch, versions
from opensora_lite.request import WEIGHTS, Job, ModelSpec, Settings, model_folder, plan

PARTS = {"stdit": "--model-pretrained-path", "t5": "--text-encoder-pretrained-path", "vae": "--vae-pretrained-path"}
GIVEN_BY_FILE = ("prompt", "prompt_path", "start_index", "end_index", "mask_strategy")  # options that FILE replaces
FORMATS = ("mp4", "webm", "gif", "webp", "png")


@dataclass(frozen=True)
class Like:
    """A video that is to be made again: its file, its metadata, and the paths of its references."""

    file: Path
    made: Provenance
    references: tuple[str, ...]

    def jobs(self, settings: Settings, spec: ModelSpec) -> list[Job]:
        """Its job, planned anew. Raises an OpenSoraError for whatever cannot be done."""
        return plan([self.made.prompt], [list(self.references)], [self.made.mask_strategy or None], settings, spec)

    def place(self, settings: Settings) -> tuple[int, int]:
        """The place in a batch at which the video gets the same bits: index and size."""
        index, size = self.made.run.batch
        if replace(settings, seed=0) != replace(self.made.video_settings, seed=0):  # another video anyway
            return 0, 1
        if size > 1 and settings.cache_threshold:
            note(f"{self.file} was made in a batch of {size} with step caching, which looks at all: its bits differ")
        return (index, size) if depends_on_batch(settings) else (0, 1)


def read_like(a: argparse.Namespace) -> Like:
    """What --like names; sets the options of the model, of precision and format where they were not given.

    Raises an OpenSoraError where a reference or the model is not found, or is another one.
    """
    for option in GIVEN_BY_FILE:
        if getattr(a, option) is not None:
            raise OpenSoraError(f"--like takes prompt and mask strategy from {a.like}: leave out {_flag(option)}")
    made = Provenance.read(a.like)
    if made.changed or made.model is None:
        raise CheckpointError(
            f"{a.like} was made by a model that was changed in memory or not loaded from files; no file holds it"
        )
    settings = made.video_settings  # raises for what no version makes
    references = tuple(_find_references(made.references, a.like, a.reference_path or []))
    _find_model(a, made)
    suffix = "png" if a.like.is_dir() else a.like.suffix.lower()[1:]
    if (
        a.save_format is None
        and suffix in FORMATS
        and (suffix != "png" or settings.total_frames == 1 or a.like.is_dir())
    ):
        a.save_format = suffix
    if a.device is None and made.run.device == "cpu":
        a.device = "cpu"
    here = versions()
    other = [f"{name} {version}" for name, version in made.versions.items() if here.get(name, version) != version]
    if other:
        note(printable(f"{a.like} was made with {', '.join(other):.200}; with today's versions, a few bits may differ"))
    return Like(a.like, made, references)


def set_precision(a: argparse.Namespace, like: Like, device: str) -> None:
    """The dtype that the video was made with, on the same kind of device; a note where the device is of another."""
    run = like.made.run
    if run.device[:3] != device[:3]:
        note(f"{like.file} was made on {run.device}, and is made on {device} now: its bits differ")
    elif a.dtype is None:
        a.dtype = run.dtype


def _find_references(wanted: Iterable[UsedReference], made: Path, given: list[str]) -> Iterator[str]:
    """The path of each reference: one that was given, or a file beside `made`.

    Of frames that were given in memory, no digest is known: they are what is left of `given`, in order.
    """
    paths = [as_path(split_fragment(path.strip())[0]) for word in given for path in word.split(";")]
    for path in paths:
        if not path.is_file():
            raise OpenSoraError(f"--reference-path {path} does not exist or is not a file")
    wanted = list(wanted)
    left = iter([path for path in paths if not any(_is_file(path, reference) for reference in wanted)])
    for index, reference in enumerate(wanted):
        if reference.name is None or reference.sha256 is None:
            saved = next(left, None)
            if saved is None:
                raise OpenSoraError(
                    f"reference {index} of {made} was given in memory, not as a file: save it (a picture as PNG, which"
                    " loses nothing) and give its path by --reference-path"
                )
            note(f"reference {index} of {made} was given in memory; whether {saved} is the same can't be checked")
            yield str(saved)
            continue
        beside = (made.parent / Path(reference.name).name, *sorted(made.parent.iterdir()))
        found = next((path for path in (*paths, *beside) if _is_file(path, reference)), None)
        if found is None:
            what = f"{reference.name!r:.100} (SHA-256 {reference.sha256[:12]}…)"
            raise OpenSoraError(
                f"reference {index} of {made}, {what}, is neither beside it in {made.parent} nor among what"
                " --reference-path gives; give its path there"
            )
        yield f"{found}#t={reference.part}" if reference.part else str(found)


def _is_file(path: Path, wanted: UsedReference) -> bool:
    try:
        return path.is_file() and path.stat().st_size == wanted.bytes and file_sha256(path) == wanted.sha256
    except OSError:
        return False


def _find_model(a: argparse.Namespace, made: Provenance) -> None:
    """Set the options of the model to the parts that made the video."""
    assert made.model is not None
    _check_embeddings(a, made.model.get("text_embeddings"))
    bundled = [folder for folder in sorted(WEIGHTS.iterdir()) if folder.is_dir()]
    chosen: dict[str, Path | None] = dict.fromkeys(PARTS)
    for name in set(PARTS) & set(made.model):
        wanted = made.model[name]
        what = f"the {name} of {a.like}, {wanted.name!r:.100} (fingerprint {wanted.fingerprint[:12]}…)"
        if getattr(a, name) is not None:
            part = find_part(getattr(a, name), name)
        elif a.model is not None:
            part = part_of(model_folder(a.model), name)
        elif found := find(wanted.fingerprint, name, [folder / name for folder in bundled]):
            part = found
        else:
            raise CheckpointError(f"{what}, was not found on this machine; give --model or {PARTS[name]}")
        if (other := fingerprint(part, name)) != wanted.fingerprint:
            raise CheckpointError(f"{part} is not {what}, but another one ({other[:12]}…)")
        chosen[name] = part
    a.model, a.stdit, a.t5, a.vae = None, chosen["stdit"], chosen["t5"], chosen["vae"]


def _check_embeddings(a: argparse.Namespace, wanted: UsedPart | None) -> None:
    """Raise CheckpointError unless --text-embeddings is what the video was made with."""
    if wanted is None and a.text_embeddings is None:
        return
    if wanted is None:
        raise CheckpointError(f"{a.like} was made with T5; leave out --text-embeddings")
    if a.text_embeddings is None:
        raise CheckpointError(f"{a.like} was made with text embeddings; give their file as --text-embeddings")
    from opensora_lite.device import import_paddle

    import_paddle()
    from opensora_lite.text import TextEmbeddings

    if TextEmbeddings.read(a.text_embeddings).fingerprint != wanted.fingerprint:
        raise CheckpointError(f"{a.text_embeddings} holds other text embeddings than those that made {a.like}")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
