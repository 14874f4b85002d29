"""A disk that is full, and files that may not grow: a clear message, exit code 2, and nothing lost.

Each kind of work runs in a process of its own, on a disk of four megabytes with next to nothing free (which only root
can mount), and with a limit on the size of files, which anybody can set. When there is room again, the same command
does what is left.
"""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from children import ended
from common import MICRO
from sweeps import needs_papermill

from opensora_lite.io.checkpoints import read_safetensors
from opensora_lite.io.files import write_safetensors
from opensora_lite.tools import cli
from opensora_lite.video import read_video

PAGE = 4096
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")


class Disk:
    """A folder with little room."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, work, room: int | None = None) -> tuple[int, str]:
        """The exit code and the output of work(folder); room: bytes, None: plenty."""
        (self.folder / "said.txt").unlink(missing_ok=True)
        return ended(partial(self.limited, work, room), self.folder)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != "said.txt"
        }


class FullDisk(Disk):
    why = "No space left on device"

    @staticmethod
    def limited(work, room: int | None, folder: Path):
        if room is None:
            return work(folder)
        filler = folder / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError:
                file.truncate(max(0, file.tell() - room))
        try:
            return work(folder)
        finally:
            filler.unlink()


class LimitedFiles(Disk):
    why = "File too large"

    @staticmethod
    def limited(work, room: int | None, folder: Path):
        import resource

        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        return work(folder)


@pytest.fixture(params=[FullDisk, LimitedFiles])
def disk(request, tmp_path):
    if request.param is LimitedFiles:
        yield LimitedFiles(tmp_path)
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root on Linux; without root: unshare -rm make test")
    try:
        yield FullDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def clean(files: dict[str, bytes]) -> bool:
    """Nothing that is half-written."""
    return not [name for name in files if any(part.startswith(".") for part in Path(name).parts)]


SMALL = ["--num-frames=8", "--num-sampling-steps=2", "--prompt", "a red car", "a blue boat"]


def generate(folder: Path, *more: str):
    return cli.main(["generate", *SMALL, "--save-dir", str(folder / "out"), *more])


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_generate(disk, suffix):
    work = partial(generate_as, suffix=suffix)
    code, output = disk.run(work, PAGE)
    name = {"mp4": "sample_0.mp4", "gif": "sample_0.gif", "png": "sample_0"}[suffix]
    assert code == 2 and "Traceback" not in output
    assert f"opensora-lite: error: {disk.folder / 'out' / name} cannot be written: {disk.why}" in output
    assert disk.files() == {}

    assert disk.run(work)[0] == 0
    before = disk.files()
    assert len(before) == {"mp4": 2, "gif": 2, "png": 16}[suffix]
    code, output = disk.run(partial(generate_as, suffix=suffix, seed="7", more="--overwrite"), PAGE)
    assert code == 2 and disk.why in output and disk.files() == before  # the old ones are still there
    if suffix == "mp4":
        assert len(read_video(disk.folder / "out" / name)) == 8


def generate_as(folder: Path, suffix: str, seed: str = "0", more: str = "--skip-existing"):
    return generate(folder, "--save-format", suffix, "--seed", seed, more)


def test_what_was_saved_before_the_disk_was_full_stays(disk):
    if isinstance(disk, LimitedFiles):
        pytest.skip("files that may not grow do not fill a disk")
    assert disk.run(generate_frames, 4 * PAGE)[0] == 2  # the picture of the first prompt, and no room for the second
    first = disk.files()
    code, output = disk.run(generate_frames)
    assert code == 0 and len(first) == 1 and f"{disk.folder}/out/sample_0.png exists and is skipped" in output
    assert disk.files().items() > first.items() and len(disk.files()) == 2


def generate_frames(folder: Path):
    more = ["--num-frames", "1", "--image-size", "64", "64", "--sample-name", "sample", "--skip-existing"]
    return generate(folder, *more)


def train(folder: Path, *more: str):
    (folder / "micro.yaml").write_text(MICRO.replace("save_every: 2", "save_every: 1"))
    return cli.main(["train", str(folder / "micro.yaml"), "--out", str(folder / "run"), *more])


def prepare(folder: Path):
    return train(folder, "--prepare")


def losses(disk: Disk) -> list[dict]:
    return list(csv.DictReader((disk.folder / "run" / "state" / "diffusion_losses.csv").read_text().splitlines()))


def test_training(disk, tmp_path_factory):
    other = LimitedFiles(tmp_path_factory.mktemp("other"))
    assert other.run(train)[0] == 0 == disk.run(prepare)[0]
    checkpoint = disk.folder / "run" / "state" / "diffusion.safetensors"
    size = (other.folder / "run" / "state" / "diffusion.safetensors").stat().st_size
    # on a disk, the first checkpoint has room, and the second, which is written beside it, has not
    code, output = disk.run(train, int(1.5 * size) // PAGE * PAGE if isinstance(disk, FullDisk) else size // 2)
    assert code == 2 and "Traceback" not in output
    assert f"opensora-lite: error: {checkpoint} cannot be written: " in output and disk.why in output
    assert clean(disk.files()) and checkpoint.exists() == isinstance(disk, FullDisk)
    if checkpoint.exists():
        assert all(np.isfinite(tensor.read()).all() for tensor in read_safetensors(checkpoint).values())
    code, output = disk.run(train)
    assert code == 0 and f"step {int(isinstance(disk, FullDisk))} of 6" in output
    assert losses(disk) == losses(other)


def evaluate(folder: Path):
    few = ["--prompts=2", "--runs=0", "--num-sampling-steps=2", "--num-frames=2"]
    return cli.main(["evaluate", *few, "--out", str(folder / "out"), "--overwrite"])


def test_evaluate(disk):
    (disk.folder / "out").mkdir()
    for name in ("report.json", "sheet.png"):
        (disk.folder / "out" / name).write_text("old")
    code, output = disk.run(evaluate, PAGE)
    assert code == 2 and "Traceback" not in output and disk.why in output
    assert "2 prompts, each task 0 times" in output  # the table was shown before
    files = disk.files()
    assert clean(files) and len(files) == 2 and b"old" in files.values()
    assert all(content == b"old" or content.startswith((b"{", b"\x89PNG")) for content in files.values())


def sweep(folder: Path):
    from sweeps import micro, write_grid

    work = "from pathlib import Path\nPath(output).write_bytes(bytes(8))\nprint('x' * 30000)"
    micro(folder, work=work)
    write_grid(folder, grid={"seed": [0, 1]})
    return cli.main(["sweep", str(folder / "grid.yaml"), "--out", str(folder / "out"), "--workers=1"])


@needs_papermill
def test_sweep(disk):
    code, output = disk.run(sweep, 5 * PAGE)
    assert code in (1, 2) and "Traceback" not in output and disk.why in output
    runs = [path for path in (disk.folder / "out").iterdir() if path.is_dir()]
    assert not [path for path in runs if not path.name.endswith(".failed") and not (path / "run.json").exists()]
    code, output = disk.run(sweep)
    assert code == 0 and "2 finished, 0 failed" in output, output
    assert clean(disk.files()) and len(list((disk.folder / "out").glob("*/run.json"))) == 2


def refresh(folder: Path):
    sys.path.insert(0, str(NOTEBOOKS))
    import refresh as module

    return module.main([str(folder / "a.ipynb")])


def test_refresh(disk):
    pytest.importorskip("nbclient")
    cell = dict(cell_type="code", metadata={}, source="'a' * 30000", outputs=[], execution_count=None)
    path = disk.folder / "a.ipynb"
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=4)))
    before = disk.files()
    code, output = disk.run(refresh, 5 * PAGE)
    assert code == 1 and disk.files() == before, output  # as for any notebook that could not be written
    assert f"a.ipynb: not written: {path} cannot be written: {disk.why}" in output
    assert disk.run(refresh)[0] == 0 and len(path.read_bytes()) > 30_000


def store_compiled_model(folder: Path):
    from opensora_lite.runtime import engine

    os.environ["OPENSORA_CACHE"] = str(folder / "cache")
    engine.store({}, bytes(20_000))


def test_the_cache_of_compiled_models(disk):
    """A cache that cannot be written is none, and no reason to stop."""
    assert disk.run(store_compiled_model, PAGE) == (0, "") and disk.files() == {}
    assert disk.run(store_compiled_model) == (0, "") and len(disk.files()) == 1


def test_safetensors_and_their_own_error(disk):
    """safetensors raises neither OSError nor anything that is ours."""
    path = disk.folder / "a.safetensors"
    assert disk.run(write_zeros)[0] == 0
    before = path.read_bytes()
    code, output = disk.run(write_zeros, PAGE)
    assert code == 3 and f"{path} cannot be written: " in output and disk.why in output
    assert path.read_bytes() == before and os.listdir(disk.folder) in (["said.txt", path.name], [path.name, "said.txt"])


def write_zeros(folder: Path):
    from opensora_lite.errors import OpenSoraError

    try:
        write_safetensors(folder / "a.safetensors", {"a": np.zeros(PAGE, np.float32)})
    except OpenSoraError as error:
        print(error)
        return 3
