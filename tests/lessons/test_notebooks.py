"""The notebooks as they are committed, their form and what they recorded; the quickstart run with other parameters.

That their outputs are what the code gives today is what `pytest --nbval` compares (`make test`); it compares nothing
in a cell that was never run, which is why the execution counts are asserted here.
"""

import ast
import re
from pathlib import Path

import pytest
from lesson_files import FOLDER, NOTEBOOKS, code_cells, read, results, source, tagged

COURSE = [path.stem for path in NOTEBOOKS]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


# ------------------------------------------------------------------------------------------- as they were executed


def test_these_are_the_notebooks_of_the_course():
    assert COURSE and all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in COURSE)


def test_every_code_cell_was_run_in_order(path):
    counts = [cell["execution_count"] for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1)), f"python notebooks/refresh.py notebooks/{path.name} mends it"


def test_no_output_is_an_error_or_a_warning(path):
    outputs = [output for cell in code_cells(read(path)) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


def test_it_is_under_1_5_mb(path):
    assert path.stat().st_size < 1_500_000


def test_all_together_are_under_14_mb():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 14_000_000


def test_it_records_one_result(path):
    (result,) = results(read(path))
    assert result


def test_cell_ids_are_unique(path):
    ids = [cell["id"] for cell in read(path)["cells"]]
    assert len(set(ids)) == len(ids)


def test_one_cell_holds_the_parameters_as_commented_literals(path):
    (cell,) = tagged(read(path), "parameters")
    lines, end = source(cell).splitlines(), 0
    for statement in ast.parse(source(cell)).body:
        assert isinstance(statement, ast.AnnAssign), "name: kind = value"
        ast.literal_eval(statement.value)
        own, end = "\n".join(lines[end : statement.end_lineno]), statement.end_lineno
        assert "# " in own, f"{own} says nothing of what it is for"


def test_it_ends_with_links_to_the_lessons_before_and_after(path):
    end = source(read(path)["cells"][-1])
    position = COURSE.index(path.stem)
    for neighbour in COURSE[max(position - 1, 0) : position] + COURSE[position + 1 : position + 2]:
        assert f"]({neighbour}.ipynb)" in end


def test_cells_hold_no_plumbing(path):
    for cell in code_cells(read(path)):
        found = re.search(r"sys\.path|get_ipython|filterwarnings|^\s*[%!]", source(cell), re.MULTILINE)
        assert not found, f"{found[0]} belongs elsewhere:\n{source(cell)}"


# -------------------------------------------------------------------------------------------------- what they found


def test_the_quickstart_keeps_the_frames_it_is_given():
    result = results(read(FOLDER / "00_quickstart.ipynb"))[0]
    kept = result["kept_frames_psnr_db"]
    assert kept.keys() == {"image", "connect", "extend"}
    assert min(kept.values()) >= 50 > 20 > result["edited_frames_psnr_db"]
    assert result["colored_pixels"]["prompt"]["red"] > 10 * result["colored_pixels"]["prompt"]["blue"]
    assert result["colored_pixels"]["other_prompt"]["blue"] > 10 * result["colored_pixels"]["other_prompt"]["red"]


def found(name: str) -> dict:
    (result,) = results(read(FOLDER / f"{name}.ipynb"))
    return result


def test_by_hand_and_by_the_library_is_the_same():
    words = found("04_words")
    assert words["attention_by_hand_agrees"] and words["padding_changes_nothing"]
    assert words["shuffled_words_change_nothing"] and words["words_right"]["2"] > words["words_right"]["8"]
    assert found("06_masks")["largest_difference_of_strategies"] < 1e-6
    transformer = found("05_stdit")
    assert transformer["largest_distance_from_the_modules"] < 1e-3 and transformer["blocks_by_hand"] == 6
    denoising = found("03_denoising")
    assert denoising["steps_by_hand"] >= 10
    assert denoising["by_hand_differs_by_less_than"].keys() == {"DDIM", "IDDPM", "DPM-Solver++"}


def test_latents_are_48_times_fewer_numbers_and_keep_the_picture():
    result = found("02_latents")
    assert result["numbers_in_one"] == 48
    assert min(result["psnr_db_at_least"].values()) >= 25


def test_more_steps_bring_the_samplers_without_chance_together():
    distance = found("03_denoising")["distance_to_the_long_run"]
    for name in ("DDIM", "DPM-Solver++"):
        assert distance[name][0] > distance[name][-1] and distance[name][-1] < 0.5 * distance["IDDPM"][-1]


def test_given_frames_stay_and_edited_ones_go_further_the_freer_they_are():
    result = found("06_masks")
    moved = [result["car_moved_pixels"][ratio] for ratio in sorted(result["car_moved_pixels"])]
    assert result["kept_frames_psnr_db"] >= 40 and moved[0] < moved[-1]


def test_a_model_that_is_told_which_frames_are_clean_guesses_better():
    result = found("06_masks")
    strays = result["strays"]
    assert strays["clean, own time"] < 0.05 < min(strays["noised"], strays["clean, one time"])
    assert max(result["error_with_own_time"].values()) <= 1


def test_the_attention_to_words_follows_the_subject_and_its_first_block_is_needed():
    result = found("07_attention")
    assert result["preference"]["red"] > 1.3 * result["reversed"]["red"] > 1
    assert result["without_block_0"] >= 20


def test_frames_agree_by_temporal_attention_and_move_by_their_positions():
    result = found("05_stdit")
    flicker, way = result["flicker"], result["way"]
    assert flicker["no temporal attention"] > flicker["complete model"] > flicker["no frame positions"]
    assert way["complete model"] > 15 > abs(way["no frame positions"])
    assert result["error_with_mask"] < 0.95 * result["error_without_mask"]


def test_long_videos_have_the_length_that_was_computed_lose_the_sun_and_can_be_closed():
    result = found("08_long_videos")
    assert result["frames"] == 16 + 5 * 12
    trips = result["rms_after_trips"]
    assert trips == sorted(trips) and trips[0] == 0 < trips[1] < trips[-1]
    assert result["sun_pixels"][0] > 4 * max(result["sun_pixels"][2:])
    closed, still_open = result["gap_of_closed_and_open"]
    assert closed < still_open and result["seam_against_usual_step"] < 2


def test_the_released_weights_are_as_large_as_they_are():
    result = found("15_full_size")
    assert result["parameters_millions"] == {"T5 encoder": 4762.31, "STDiT2": 768.27, "VAE": 83.65}
    assert result["block"] == 26_572_320 and result["error_of_the_trap"] > 0
    shapes = [result["shapes"][name] for name in ("attn.qkv", "attn_temp.qkv")]
    assert shapes == [[2, 256, 3 * 1152], [256, 2, 3 * 1152]]


def test_the_default_film_is_what_its_prompt_asks_for():
    result = found("13_generate")
    shows = {"place": "ocean", "time": "sunrise", "subject": "boat", "color": "red", "direction": "right"}
    assert result["shows"] == shows
    assert all(word in result["prompt"] for word in result["shows"].values())


def test_a_sweep_says_how_sure_it_is():
    result = found("14_sweep")
    right, (low, mean, high) = result["right_of_100"], result["gain"]["guidance 1 → 4, with 12 steps"]
    assert right["guidance 4, 12 steps"] == found("12_evaluation")["right_of_100"]["guidance 4"]
    assert 0 < low < mean == right["guidance 4, 12 steps"] - right["guidance 1, 12 steps"] < high
    edits = [result["psnr_of_edits"][ratio] for ratio in sorted(result["psnr_of_edits"])]
    assert len(edits) == 7 and edits == sorted(edits, reverse=True)


def test_the_visible_training_loop_is_the_librarys_and_learns():
    result = found("11_training")
    assert result["losses_apart"] < 1e-3
    assert 4 * result["shipped_loss"] < result["test_loss"] < 0.1 < result["one_parameter"] == 0.35
    right, outliers, change = (result[name] for name in ("right_of_12", "outlier_frames", "change_of_a_pixel"))
    assert right["3 small, 9 shipped"] == right["6 shipped, 6 small"] == right["0 small, 12 shipped"] == 12
    assert max(right[name] for name in ("12 small, 0 shipped", "9 small, 3 shipped", "3 shipped, 9 small")) <= 5
    assert not any(outliers[f"{n} shipped, {12 - n} small"] for n in (3, 6, 9))  # the first steps
    assert outliers["12 small, 0 shipped"] >= outliers["6 small, 6 shipped"] > outliers["3 small, 9 shipped"]
    flecks = [change[f"{n} shipped, {12 - n} small"] for n in (9, 6, 3)]  # the last steps
    assert 3 * change["0 small, 12 shipped"] < flecks[0] < flecks[1] < flecks[2]
    exams = result["losses_of_exams"]
    assert exams["the city at sunrise"][0] > 1.1 * exams["the city at sunset"][0]


def test_an_evaluation_says_how_sure_it_is():
    result = found("12_evaluation")
    assert result["interval_of_91"] == [83.8, 95.2]
    right, distance = result["right_of_100"], result["frechet"]
    assert right["guidance 4"] > right["guidance 1"] > right["4 steps"]
    assert distance["real clips at noon only"] > 100 * distance["real clips, other layouts"]


def test_papermill_runs_the_quickstart_with_other_parameters(tmp_path, monkeypatch):
    papermill = pytest.importorskip(
        "papermill", reason="papermill is not installed; pip install -e '.[cpu,notebook,dev]' brings it"
    )
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # "python3" is this Python, not one that a user has registered
    source, out = FOLDER / "00_quickstart.ipynb", tmp_path / "out.ipynb"
    chosen = {"steps": 2, "seed": 7, "edit_ratio": 0.5}
    assert papermill.inspect_notebook(source).keys() >= chosen.keys()  # papermill only warns of unknown ones
    papermill.execute_notebook(source, out, chosen, cwd=FOLDER, kernel_name="python3", progress_bar=False)
    notebook = read(out)
    injected = [cell for cell in code_cells(notebook) if "injected-parameters" in cell["metadata"].get("tags", ())]
    assert len(injected) == 1
    (result,) = results(notebook)
    assert (result["steps"], result["seed"]) == (2, 7)
    assert min(result["kept_frames_psnr_db"].values()) >= 40  # given frames are kept however few the steps are
