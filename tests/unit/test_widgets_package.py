"""`opensora_lite.widgets` as a package: installed (editable, wheel), beside a widgets.py, without anywidget."""

import subprocess
import sys
from pathlib import Path

import pytest
from wheels import run

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


def test_the_wheel_brings_the_widgets(wheel, folder):
    """The wheel in an environment of its own, which borrows every other package from that of the tests."""
    python, own = wheel
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
