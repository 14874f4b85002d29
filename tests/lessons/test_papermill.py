"""Notebook 13, which is run with parameters from outside: its check of them, each task through papermill, a refusal."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_lite import OpenSoraError, read_video
from opensora_lite.tools.parameters import check_parameters, given_parameters
from opensora_lite.tools.sweep import without_demonstrations

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCE = FOLDER / "13_generate.ipynb"
RESULT = "application/vnd.opensora-lite.result+json"
DECLARED = {
    "prompt": str,
    "references": list[str],
    "image_size": list[int],
    "steps": int,
    "guidance_scale": float,
    "quiet": bool,
    "condition_frames": int | None,
    "options": dict,
}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def papermill(monkeypatch):
    module = pytest.importorskip(
        "papermill", reason="papermill is not installed; pip install -e '.[cpu,notebook,dev]' brings it"
    )
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # "python3" is this Python, not one that a user has registered
    return module


def prepared(out: Path, options: list[str]) -> dict:
    """The parameters that papermill's command line puts into notebook 13, which is not executed."""
    from click.testing import CliRunner
    from papermill.cli import papermill as command

    done = CliRunner().invoke(command, [str(SOURCE), str(out), *options, "--prepare-only"])
    assert done.exit_code == 0, done.output
    (cell,) = [c for c in code_cells(read(out)) if "injected-parameters" in c["metadata"].get("tags", ())]
    injected: dict = {}
    exec("".join(cell["source"]), injected)
    return injected


# ------------------------------------------------------------------------------------------------------- the check


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"prompt": "a car", "steps": 20, "guidance_scale": 4.0, "quiet": True, "options": {}},
        {"guidance_scale": 4, "image_size": (64, 64), "references": []},
        {"condition_frames": None},
        {"condition_frames": 4},
    ],
)
def test_what_is_declared_passes(given):
    check_parameters(DECLARED, given)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"step": 3}, ["step", "steps"]),
        ({"zzz": 3}, ["zzz", *DECLARED]),
        ({"steps": True}, ["steps", "whole number", "True"]),
        ({"steps": 20.0}, ["steps", "20.0"]),
        ({"guidance_scale": False}, ["guidance_scale", "number"]),
        ({"quiet": 1}, ["quiet", "True or False"]),
        ({"prompt": None}, ["prompt", "text"]),
        ({"references": ["a.png", 2]}, ["references[1]", "text"]),
        ({"image_size": [64, True]}, ["image_size[1]", "whole number"]),
        ({"condition_frames": 4.0}, ["condition_frames", "whole number"]),
        ({"options": [1]}, ["options", "dictionary"]),
        ({"steps": "x" * 100}, ["steps", "x" * 59 + "…"]),
        ({"step": 3, "steps": "3"}, ["2 parameters", '"step"', '"steps"', "'3'"]),
    ],
)
def test_what_is_not_declared_is_refused(given, words):
    with pytest.raises(OpenSoraError) as caught:
        check_parameters(DECLARED, given)
    assert not [word for word in words if word not in str(caught.value)]


@pytest.mark.parametrize(
    "name, given, meant",
    [
        ("prompt", 0, "0"),
        ("prompt", True, "True"),
        ("prompt", None, "None"),
        ("prompt", -1.5, "-1.5"),
        ("image_size", "[64, 64]", [64, 64]),
        ("references", "['a.png', 'b.png']", ["a.png", "b.png"]),
        ("references", "it's.png", ["it's.png"]),
        ("steps", "20", 20),
        ("options", "{a: 1}", {"a": 1}),
    ],
)
def test_the_advice_works_when_it_is_pasted(papermill, tmp_path, name, given, meant):
    """papermill's own command line reads it; the notebook is not executed."""
    with pytest.raises(OpenSoraError) as caught:
        check_parameters(DECLARED, {name: given})
    advice = shlex.split(re.search(r"papermill passes \w+ with (.*)", str(caught.value))[1])
    injected = prepared(tmp_path / "out.ipynb", advice)
    assert injected[name] == meant
    check_parameters(DECLARED, {name: injected[name]})


VALUES = {
    "prompt": "[close up] a red car, 16:9",
    "references": ["a b.png", "it's.mp4", "C:\\clips\\new.mp4"],
    "image_size": [48, 80],
    "steps": 30,
    "guidance_scale": 7.5,
    "quiet": True,
    "condition_frames": None,
    "options": {"a": [1, "b"], "c": None},
}


@pytest.mark.parametrize("option", ["-p", "-y", "-f"])
def test_values_of_every_kind_can_be_passed(papermill, tmp_path, option):
    """`-p` takes the text of one value, `-y` YAML, `-f` a YAML file; papermill's own command line reads them."""
    (tmp_path / "values.yaml").write_text(json.dumps(VALUES))
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in VALUES.items()}
    options = {
        "-p": [word for name, text in texts.items() for word in ("-p", name, text)],
        "-y": ["-y", json.dumps(VALUES)],
        "-f": ["-f", str(tmp_path / "values.yaml")],
    }
    namespace = {**prepared(tmp_path / "out.ipynb", options[option]), "__annotations__": DECLARED}
    check_parameters(DECLARED, given_parameters(namespace, {}))
    assert {name: namespace[name] for name in VALUES} == VALUES


@pytest.mark.parametrize(
    "name, text, meant",
    [
        ("references", "['a.png', 'b.png']", ["a.png", "b.png"]),  # as Python writes it
        ("references", "[a.png, b.png]", ["a.png", "b.png"]),
        ("references", "- a.png\n- b.png", ["a.png", "b.png"]),
        ("references", "[]", []),
        ("quiet", "false", False),
        ("condition_frames", "null", None),
        ("references", "a.png", "a.png"),  # no list, which the check refuses
        ("references", "[1, 2]", "[1, 2]"),
        ("references", "['a.png'", "['a.png'"),
        ("image_size", "[64, wide]", "[64, wide]"),
        ("steps", "20", "20"),  # text was asked for, with -r
        ("steps", "1:30", "1:30"),  # 90 in YAML
        ("options", "{a: 2020-01-01}", "{a: 2020-01-01}"),  # which JSON has not
        ("prompt", "[64, 64]", "[64, 64]"),
        ("prompt", "null", "null"),
    ],
)
def test_a_text_that_is_a_list_of_the_declared_kind_is_that_list(name, text, meant):
    namespace = {name: text, "__annotations__": DECLARED}
    assert given_parameters(namespace, {}) == {name: meant}
    assert namespace[name] == meant


def test_a_notebook_without_parameters_says_so():
    with pytest.raises(OpenSoraError, match="there are none"):
        check_parameters({}, {"steps": 3})


def notebook(**variables) -> dict:
    """globals() of a notebook whose parameters cell has run; `display` is one of its imports."""
    return {"display": print, "_i1": "import …", "steps": 20, "__annotations__": {"steps": int}, **variables}


def test_names_that_have_appeared_are_given():
    before = {"display": print}
    namespace = notebook(step=3, _private=1, PAPERMILL_INPUT_PATH="in.ipynb", before=before)
    assert given_parameters(namespace, before) == {"steps": 20, "step": 3}


def test_a_parameter_may_not_take_the_name_of_an_import():
    assert given_parameters(notebook(display=1), {"display": print}) == {"steps": 20, "display": 1}


def test_a_declared_name_counts_though_its_value_is_the_one_it_had():
    """Run All once more, in the same kernel."""
    namespace = notebook(video="made by a cell below")
    assert given_parameters(namespace, dict(namespace)) == {"steps": 20}


def test_the_second_time_only_declared_names_are_given():
    """Somebody goes back to the parameters, and the variables of the cells below are there already."""
    before = {"display": print}
    given_parameters(notebook(before=before), before)
    assert given_parameters(notebook(before=before, video="made by a cell below"), before) == {"steps": 20}


# --------------------------------------------------------------------------------------------------- through papermill


@pytest.fixture
def run(papermill, tmp_path):
    """run(steps=2, …) -> what the notebook recorded; meant: what stands for the parameters that are given as text."""

    def execute(meant: dict | None = None, **parameters) -> dict:
        out, program = tmp_path / "out.ipynb", tmp_path / "program.ipynb"  # as sweeps run it
        program.write_text(json.dumps(without_demonstrations(read(SOURCE))), encoding="utf-8")
        papermill.execute_notebook(program, out, parameters, cwd=FOLDER, kernel_name="python3", progress_bar=False)
        (result,) = [
            output["data"][RESULT]
            for cell in code_cells(read(out))
            for output in cell["outputs"]
            if RESULT in output.get("data", {})
        ]
        assert result.items() >= (parameters | (meant or {})).items()
        return result

    return execute


def test_text_in_two_loops_and_saved(run, tmp_path):
    result = run(
        {"references": [], "image_size": [48, 80]},
        prompt="a red car driving right on the ocean at noon",
        references="[]",  # as -p gives lists
        mask_strategy="",
        num_frames=8,
        image_size="[48, 80]",
        loops=2,
        condition_frames=2,
        sampler="ddim",
        steps=2,
        guidance_scale=3,  # a whole number will do
        seed=7,
        output=str(tmp_path / "text.mp4"),
    )
    assert (result["kept_frames"], result["edited_frames"], result["kept_frames_psnr_db"]) == (0, 0, None)
    assert result["frames"] == 14
    assert result["shows"].keys() == {"place", "time", "subject", "color", "direction"}
    assert read_video(tmp_path / "text.mp4").frames.shape == (14, 48, 80, 3)


@pytest.mark.parametrize(
    "references, mask_strategy, kept",
    [
        (["assets/wave.png"], "0", 1),
        (["assets/sunset1.png", "assets/sunset2.png"], "0;0,1,0,-1,1", 2),
        (["assets/car.mp4"], "0,0,-8,0,8", 8),
    ],
    ids=["image", "connect", "extend"],
)
def test_given_frames_are_kept(run, references, mask_strategy, kept):
    result = run(references=references, mask_strategy=mask_strategy, steps=2)
    assert (result["frames"], result["kept_frames"], result["edited_frames"]) == (16, kept, 0)
    assert result["kept_frames_psnr_db"] >= 40


def test_edit(run):
    result = run(
        prompt="a cyberpunk-style car", references=["assets/car.mp4"], mask_strategy="0,0,0,0,all,0.5", steps=4
    )
    assert (result["frames"], result["kept_frames"], result["edited_frames"]) == (16, 0, 16)
    assert result["edited_frames_psnr_db"] < 40


def test_a_refusal_is_exit_code_1_before_a_model_is_loaded(papermill, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", SOURCE, out, "--cwd", FOLDER, "-k", "python3", "--no-progress-bar"]
    child = subprocess.run(
        [*map(str, command), "-p", "step", "3", "-p", "mask_strategy", "0"], capture_output=True, text=True
    )
    assert child.returncode == 1
    assert '"steps"' in child.stderr and "-r mask_strategy 0" in child.stderr
    cells = read(out)["cells"]
    assert "papermill-error-cell-tag" in cells[0]["metadata"]["tags"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    (injected,) = [i for i, tag in enumerate(tags) if "injected-parameters" in tag]
    failed = [cell for cell in code_cells(read(out)) if any(o["output_type"] == "error" for o in cell["outputs"])]
    assert [cell["source"] for cell in failed] == [
        next(cell["source"] for cell in cells[injected + 1 :] if cell["cell_type"] == "code")
    ]
    assert all(cell["execution_count"] is None for cell in cells[cells.index(failed[0]) + 1 :] if "outputs" in cell)


def test_the_lines_for_a_terminal_hand_over_what_they_say(papermill, tmp_path):
    """Those that the notebook prints, read by papermill itself; nothing is executed."""
    texts = [
        "".join(output.get("text", "")) for cell in code_cells(read(SOURCE)) for output in cell["outputs"]
    ]  # what was printed
    (printed,) = [text for text in texts if text.startswith("papermill ../out/program.ipynb")]
    lines = [shlex.split(line.replace("\\\n", "")) for line in printed.strip().split("\n\n")]
    assert [Path(line[2]).stem for line in lines] == ["text", "image", "connect", "extend", "edit"]
    for line in lines:
        assert line[:2] == ["papermill", "../out/program.ipynb"] and line[3] == "-y"
        injected = prepared(tmp_path / Path(line[2]).name, line[3:])
        assert injected.items() >= json.loads(line[4]).items()
