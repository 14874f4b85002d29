"""The Makefile's targets: `make -n` of all; those that take seconds are made in an environment borrowed from here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """The output (stdout and stderr) of make, without the variables of the make that runs these tests."""
    ours = ("MAKE", "MFLAGS", "PYTHON")  # `make test PYTHON=python3.11` hands PYTHON on
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [shutil.which("make"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=inherited | environment, stdout=-1, stderr=-2, text=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the Makefile, and a .venv whose Python is the one of this process."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    script(tmp_path / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    script(tmp_path / ".venv/bin/opensora-lite", f'exec "{sys.executable}" -m opensora_lite.tools.cli "$@"')
    for name in ("stamp-venv", "stamp-cpu", "stamp-full"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def script(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target):
    done = make("-n", target)
    assert done.returncode == 0 and "No rule" not in done.stdout, done.stdout


def test_help_is_what_make_says_alone_and_lists_every_target():
    done = make()
    listed = re.findall(r"^make ([\w-]+)  ", done.stdout, re.MULTILINE)
    assert sorted([*listed, "help"]) == sorted(TARGETS)


def test_demo_makes_a_video(folder):
    done = make("demo", "PROMPT=a blue boat", cwd=folder)
    assert done.returncode == 0 and (folder / "out" / "demo_0.mp4").exists(), done.stdout


def test_results_of_benchmarks_are_compared(folder):
    shutil.copytree(ROOT / "tests/benchmarks", folder / "tests/benchmarks")
    (folder / "a.json").write_text('{"machine": {"cpu": "one"}, "tables": {}}')
    done = make("bench-compare", "BEFORE=a.json", "AFTER=a.json", cwd=folder)
    assert done.returncode == 0 and "cpu: one" in done.stdout, done.stdout


def test_clean_leaves_what_it_did_not_make(folder):
    for name in ("build/a", "tests/__pycache__/a.pyc", "out/demo.mp4", "tests/a.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert make("clean", cwd=folder).returncode == 0
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {"Makefile", "pyproject.toml", "out/demo.mp4", "tests/a.py"}


# ------------------------------------------------------------------------------------ both results are reported


@pytest.mark.parametrize("tests, notebooks", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_notebooks_run_even_where_a_test_failed(folder, tests, notebooks):
    script(folder / ".venv/bin/lint-imports", "exit 0")
    script(folder / ".venv/bin/python", f'case "$*" in *--nbval*) exit {notebooks};; *pytest*) exit {tests};; esac')
    done = make("test", cwd=folder)
    results = ["passed", "failed"]
    assert f"tests: {results[tests]}, notebooks: {results[notebooks]}\n" in done.stdout
    assert (done.returncode == 0) is (tests == notebooks == 0)


@pytest.mark.parametrize("fails", ["", "test", "test-hard"])
def test_continuous_integration_fails_with_either(folder, fails):
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    script(folder / "bin/make", f'echo "made $1"; [ "$1" != "{fails}" ]')
    script(folder / "bin/chromium", "echo 1")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run([folder / ".ci/run"], env=os.environ | {"PATH": path}, stdout=-1, stderr=-2, text=True)
    assert re.findall("made (.*)", done.stdout) == ["peers", "test", "test-hard"]
    assert (done.returncode == 0) is (fails == "")


# --------------------------------------------------------------------------- machines with another Python alone


@pytest.fixture
def tools(folder) -> Path:
    """The only folder on PATH: a Python 3.13, and what the recipe calls."""
    shutil.rmtree(folder / ".venv")
    for name in ("sh", "touch", "mkdir", "cat", "chmod"):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).symlink_to(shutil.which(name))
    script(folder / "bin/python3", "exit 1")  # says that it is none of those that were asked for
    return folder / "bin"


def test_without_a_python_that_fits_three_lines_say_what_to_do(folder, tools):
    done = make("demo", cwd=folder, PATH=str(tools))
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make: ")]
    assert done.returncode != 0 and len(lines) == 3
    assert "Python 3.10, 3.11 or 3.12" in lines[0] and "uv" in lines[1] and "environment.yml" in lines[2]


def test_uv_gets_a_python_that_fits(folder, tools):
    python = "mkdir -p .venv/bin; echo '#!/bin/sh' > .venv/bin/python; chmod +x .venv/bin/python"
    script(tools / "uv", f'echo "uv $*"; {python}')
    done = make(".venv/stamp-cpu", cwd=folder, PATH=str(tools))
    assert done.returncode == 0 and "uv venv --quiet --seed --python 3.12 .venv\n" in done.stdout, done.stdout
