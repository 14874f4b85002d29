"""`opensora_lite.widgets` as a package: installed (editable, wheel), beside a widgets.py, without anywidget."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("anywidget", reason="needs the widgets: pip install -e '.[cpu,notebook]'")

ROOT = Path(__file__).resolve().parents[2]
USE = "from opensora_lite.widgets import TaskLab, figures; print(TaskLab.__module__)"


@pytest.fixture
def folder(tmp_path):
    """A folder in which `import widgets` fails."""
    folder = tmp_path / "course"
    folder.mkdir()
    (folder / "widgets.py").write_text("raise RuntimeError('the widgets.py beside the notebook was imported')")
    return folder


def test_a_widgets_module_beside_the_notebook_does_not_matter(folder):
    assert run([sys.executable, "-c", USE], cwd=folder).strip() == "opensora_lite.widgets.lab"


def test_the_wheel_brings_the_widgets(folder, tmp_path):
    """The wheel in an environment of its own, which borrows every other package from that of the tests."""
    source = tmp_path / "source"
    for package in ("opensora_lite", "widgets"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source], cwd=tmp_path)
    (wheel,) = tmp_path.glob("opensora_lite-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], cwd=tmp_path)
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=tmp_path).strip())
    borrowed = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (own / "borrowed.pth").write_text("\n".join(borrowed))  # the .pth of an editable install is not read there
    assert run([python, "-c", f"{USE}; print(figures.__file__)"], cwd=folder).split() == [
        "opensora_lite.widgets.lab",
        str(own / "opensora_lite" / "widgets" / "figures.py"),
    ]


def test_without_the_notebook_extra_the_install_command_is_given(folder):
    hide = (
        "import importlib.util; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *a: None if name == 'anywidget' else find(name, *a);"
    )
    child = subprocess.run([sys.executable, "-c", hide + USE], cwd=folder, capture_output=True, text=True)
    assert child.returncode == 1
    assert "ModuleNotFoundError" in child.stderr and 'pip install -e ".[cpu,notebook]"' in child.stderr


def run(command: list, cwd: Path) -> str:
    """stdout of a command that has to succeed, without this process's PYTHON… variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    child = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert child.returncode == 0, f"{command}\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
    return child.stdout
