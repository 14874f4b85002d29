"""The wheel of this repository, installed in an environment of its own."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def installed_wheel(folder: Path) -> tuple[Path, Path]:
    """Builds the wheel and installs it below `folder`; returns that environment's Python and its site-packages."""
    # Build from a copy: setuptools writes build/ and *.egg-info beside the sources, and would pack what an older
    # build left there.
    source = folder / "source"
    source.mkdir()
    for package in ("opensora_lite", "widgets"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source], cwd=folder)
    (wheel,) = folder.glob("opensora_lite-*.whl")

    # Paddle and the rest are hundreds of megabytes, so the environment borrows them from the one the tests run in: a
    # .pth file puts those site-packages at the end of its path. Python reads no .pth files in a folder that was
    # added so, hence an editable install of this repository over there does not come along.
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], cwd=folder)
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=folder).strip())
    borrowed = [folder for folder in sys.path if Path(folder).name in {"site-packages", "dist-packages"}]
    (own / "borrowed.pth").write_text("\n".join(borrowed))
    return python, own


def run(command: list, cwd: Path) -> str:
    """stdout of a command that has to succeed, without this process's PYTHON… variables; its stderr if it fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    child = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert child.returncode == 0, f"{command}\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
    return child.stdout
