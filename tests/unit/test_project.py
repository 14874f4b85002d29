"""The project around the package: its pins, its import time, what is committed, the wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from wheels import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(lines: list[str]) -> dict[tuple[str, str], SpecifierSet]:
    """(name, marker) -> versions; a name that stands on several lines has the versions that all of them allow."""
    found: dict[tuple[str, str], SpecifierSet] = {}
    for line in lines:
        requirement = Requirement(line)
        key = (canonicalize_name(requirement.name), str(requirement.marker or ""))
        found[key] = found.get(key, SpecifierSet()) & requirement.specifier
    return found


# ------------------------------------------------------------------------------------------- environment.yml


def test_environment_yml_has_the_pins_of_pyproject():
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]

    assert pins(conda) == {("python", ""): SpecifierSet(project["requires-python"]), ("pip", ""): SpecifierSet()}
    assert pip[-1] == "-e ."
    wanted = pins(project["dependencies"] + extras["gpu"] + extras["notebook"] + extras["dev"])
    assert pins(pip[:-1]) == wanted


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "notebooks/guide/usage.md"])
def test_the_pins_that_ask_for_an_environment_of_its_own_are_those_of_pyproject(page):
    """The pages name pins as the reason; each must be one that pip really gets."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = pins(re.findall(r"`([a-z_]+<[\d.]+)`", text))
    declared = pins([line.partition(";")[0] for line in PYPROJECT["project"]["dependencies"]])
    assert named and all(set(pin) <= set(declared[name]) for name, pin in named.items())


def test_environment_yml_has_the_packages_of_the_design_card():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    names = {name for name, _ in pins(environment["dependencies"][-1]["pip"][:-1])}
    assert {"paddlepaddle-gpu", "ppdiffusers", "jupyterlab", "ipywidgets"} <= names
    assert {"matplotlib", "mediapy", "nbval", "papermill"} <= names


# --------------------------------------------------------------------------------------------------- imports


HEAVY = {"av", "dask", "matplotlib", "paddle", "paddlenlp", "pandas", "ppdiffusers", "psutil", "torch"}


def test_importing_the_package_imports_nothing_heavy():
    """`make bench` prints how long the import takes (cold_start.py)."""
    program = "import sys, opensora_lite; print(*{name.partition('.')[0] for name in sys.modules})"
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(child.stdout.split())


# --------------------------------------------------------------------------------------------------- layers


def test_every_module_has_its_layer():
    """`lint-imports` checks the modules that its contract names, and no others."""
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]
    named = set(re.findall(r"opensora_lite\.(\w+)", str(contract["layers"])))
    library = ROOT / "opensora_lite"
    modules = {path.stem for path in [*library.glob("*.py"), *(path.parent for path in library.glob("*/__init__.py"))]}
    assert modules - {"__init__", "weights"} == named


def test_the_library_does_not_import_widgets():
    """import-linter knows them as the package `widgets`."""
    sources = (ROOT / "opensora_lite").rglob("*.py")
    imports = re.compile(r"(?:from|import) +(?:opensora_lite\.)?widgets\b|from opensora_lite import .*\bwidgets\b")
    assert not [path for path in sources if imports.search(path.read_text(encoding="utf-8"))]


# -------------------------------------------------------------------------------------------- committed files

# Hosts of package registries and their mirrors: an install must follow the settings of the machine it runs on.
REGISTRY = re.compile(
    rb"pypi\.org|pythonhosted\.org|registry\.npmjs\.org|registry\.yarnpkg\.com|conda\.anaconda\.org"
    rb"|repo\.anaconda\.com|pypi\.tuna\.|mirrors?\.(?:aliyun|baidu|cloud\.tencent)\.com|paddlepaddle\.org\.cn/packages"
)
# A path of one machine (a home or temporary folder, a drive's users); not the end of a URL or of a relative path.
MACHINE_PATH = re.compile(rb"(?<![\w.~/:-])/(?:home|root|Users|work|opt|mnt|tmp|var/folders)/[\w.]|[A-Z]:\\+Users\\")


def committed_files() -> list[Path]:
    """Every file that git tracks and that stands in the working tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registry", "machine_path"])
def test_no_committed_file_names_a_registry_or_a_path_of_one_machine(pattern):
    found = []
    for path in committed_files():
        if path.suffix in {".safetensors", ".png", ".gif", ".mp4"}:  # compressed bytes can spell anything
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group().decode()}")
    assert not found


def test_no_committed_file_is_large():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in committed_files()}
    weights = ("opensora_lite/weights/", "tests/golden/tiny_weights/")
    large = [name for name, size in sizes.items() if size > 4e6 and not name.startswith(weights)]
    assert not large
    assert sum(sizes.values()) < 60e6


# ------------------------------------------------------------------------------------------------- the wheel


def test_the_wheel_generates_a_video_from_another_folder(wheel, tmp_path):
    """A wheel, in an environment of its own, with none of the repository on its path."""
    python, own = wheel
    installed = own / "opensora_lite" / "weights" / "tiny"
    shipped = ROOT / "opensora_lite" / "weights" / "tiny"
    wanted = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
    assert wanted == {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert Path("stdit/model.safetensors") in wanted and Path("t5/spiece.model") in wanted

    scripts = {path.name for path in (ROOT / "widgets").iterdir() if path.is_file()}  # JavaScript and CSS, too
    assert scripts <= {path.name for path in (own / "opensora_lite" / "widgets").iterdir()}
    assert "dom.js" in scripts

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    imported = run([python, "-c", "import opensora_lite; print(opensora_lite.__file__)"], cwd=elsewhere).strip()
    assert Path(imported) == own / "opensora_lite" / "__init__.py"
    generate = [python.parent / "opensora-lite", "generate", "--prompt", "a boat sailing left"]
    run([*generate, "--num-sampling-steps", "2", "--save-dir", ".", "--sample-name", "wheel"], cwd=elsewhere)
    (video,) = elsewhere.glob("wheel*.mp4")
    assert video.stat().st_size > 0
