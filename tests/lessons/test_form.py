"""The form of the rewritten lessons: the rules of CONTRIBUTING.md, "Writing a lesson"."""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lesson_files import (
    EXERCISE,
    FOLDER,
    NOTEBOOKS,
    code_cells,
    lines_of_code,
    prose,
    read,
    solutions_of,
    source,
    tagged,
    tags,
)

MOST_BYTES = 400_000  # of one picture or animation


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_keeps_the_rules(path):
    assert not list(faults(path.stem, read(path)))
    assert path.stat().st_size < 1_500_000


def faults(name: str, notebook: dict) -> Iterator[str]:
    """What is wrong with the form of a lesson."""
    cells, sections = notebook["cells"], split(notebook)
    if not 25 <= len(cells) <= 45:
        yield f"{len(cells)} cells instead of 25 to 45"
    yield from faults_of_the_top(name, source(cells[0]))
    for cell in code_cells(notebook):
        if lines_of_code(source(cell)) > 12 and "parameters" not in tags(cell):
            yield f"more than 12 lines: {source(cell)[:60]}"
        yield from faults_of_outputs(cell)
    for alt, file in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", prose(notebook)):
        if len(alt) < 20:
            yield f"{file} has no alternative text that says what it shows"
    if len(re.findall(r"\]\(assets/[^)]*\.svg\)", prose(notebook))) < 2:
        yield "no diagram but the map"
    for heading, within in sections.items():
        approximate = any("≈" in text for cell in within for text in texts(cell))
        if approximate != any("tolerance" in tags(cell) and "assert" in source(cell) for cell in within):
            yield f"{heading}: approximate numbers without a cell tagged tolerance that asserts, or one without them"
    yield from faults_of_exercises(sections)
    if (n := len(tagged(notebook, "record"))) != 1:
        yield f"{n} cells are tagged record instead of 1"
    if (n := len(re.findall("^- ", text_of(sections, "In five lines"), re.MULTILINE))) != 5:
        yield f"In five lines: {n} lines instead of 5"
    links = re.findall(r"^- .*\]\(https?://[^)]*\).*\b(?:19|20)\d\d\b", text_of(sections, "Read further"), re.MULTILINE)
    if not 3 <= len(links) <= 5:
        yield f"Read further: {len(links)} links with a year instead of 3 to 5"


def faults_of_the_top(name: str, first: str) -> Iterator[str]:
    if not re.match(rf"# {name[:2]} · \S.*: \S", first):
        yield "the title is not of the form # number · subject: question"
    if not re.search(r"!\[Map of the pipeline[^\]]*\]\(assets/map_\w+\.svg\)", first):
        yield "no map"
    if not 3 <= (n := len(re.findall("^- ", first.partition("**After this you can**")[2], re.MULTILINE))) <= 5:
        yield f"After this you can: {n} goals instead of 3 to 5"
    if not re.search(r"^\*\*Time:\*\* about \d+ minutes", first, re.MULTILINE) or "**Before:**" not in first:
        yield "no time, or nothing on what to know before"


def faults_of_outputs(cell: dict) -> Iterator[str]:
    for text in texts(cell):
        if re.search(r"\b(True|False)\b", text):
            yield f"prints a verdict, not a value: {text[:60]}"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            if re.match(r"<|$", "".join(data.get("text/plain", ""))):
                yield f"a picture without a caption: {source(cell)[:60]}"
            if len("".join(data["image/png"])) * 3 / 4 > MOST_BYTES:
                yield f"a picture of more than {MOST_BYTES} bytes: {source(cell)[:60]}"


def faults_of_exercises(sections: dict[str, list[dict]]) -> Iterator[str]:
    cells = sections.get("Exercises", [])
    numbers = EXERCISE.findall(text_of(sections, "Exercises"))
    solutions = solutions_of(text_of(sections, "Solutions"))
    if numbers != [str(i + 1) for i in range(len(numbers))] or len(numbers) < 2 or list(solutions) != numbers:
        yield f"exercises {numbers} with solutions {list(solutions)}"
    coding, number = 0, ""
    for cell, after in zip(cells, [*cells[1:], {}], strict=True):
        number = (EXERCISE.findall(source(cell)) or [number])[-1]
        if "exercise" in tags(cell):
            coding += 1
            if "# TODO" not in source(cell):
                yield f"exercise {number}: nothing to do in the starter cell"
            if "check" not in tags(after) or not any(text.startswith("Still to do") for text in texts(after)):
                yield f"exercise {number}: the next cell is no check that says Still to do"
            asked, written = names(source(cell)), names(solutions.get(number, ""))
            if not asked or not asked <= written:
                yield f"exercise {number}: the solution does not define {asked - written}"
    if coding < 2:
        yield f"{coding} exercises ask for code instead of at least 2"


def split(notebook: dict) -> dict[str, list[dict]]:
    """heading of the second level -> its cells; Markdown with headings inside is cut there."""
    found: dict[str, list[dict]] = {"": []}
    heading = ""
    for cell in notebook["cells"]:
        pieces = re.split(r"^(?=## )", source(cell), flags=re.MULTILINE) if cell["cell_type"] == "markdown" else [None]
        for piece in pieces:
            if piece and (match := re.match(r"## (.+)", piece)):
                heading = match[1]
            found.setdefault(heading, []).append(cell if piece is None else {**cell, "source": piece})
    return found


def text_of(sections: dict[str, list[dict]], heading: str) -> str:
    return "\n".join(source(cell) for cell in sections.get(heading, []) if cell["cell_type"] == "markdown")


def texts(cell: dict) -> list[str]:
    """What a reader reads in the outputs."""
    outputs = cell.get("outputs", [])
    return ["".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")) for output in outputs]


def names(code: str) -> set[str]:
    """What the code defines."""
    found = set()
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.FunctionDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Assign):
            found |= {
                node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)
            }
    return found


# ----------------------------------------------------------------------------------- the rules find what is wrong


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text: str, printed: str = "", tag: str = "", **data) -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    outputs += [{"output_type": "display_data", "data": data, "metadata": {}}] if data else []
    return {"cell_type": "code", "metadata": {"tags": [tag] if tag else []}, "source": text, "outputs": outputs}


TOP = """# 01 · Noise: what is it?

![Map of the pipeline: noise.](assets/map_noise.svg)

**Time:** about 20 minutes. **Before:** nothing.

**After this you can**

- add noise
- guess it
- take it away"""
ENDING = """## In five lines

- a
- b
- c
- d
- e"""
READ = "## Read further\n\n" + "- [A title](https://a.example/b), 2020\n" * 3
SOLUTIONS = "## Solutions\n\n" + "\n\n".join(
    f"<details><summary>Exercise {i}</summary>\n\n```python\ndef f_{i}(x):\n    return x\n```\n\nWhy.\n</details>"
    for i in (1, 2)
)
GOOD = [
    markdown(TOP),
    markdown("## An idea\n\n![A diagram that shows how noise is added](assets/x.svg)"),
    code("print(1)", "the error is ≈ 0.31"),
    code("assert abs(error - 0.31) < 0.1", tag="tolerance"),
    code("figures.x()", **{"image/png": "abcd", "text/plain": "Figure: points"}),
    *[markdown("More.")] * 14,
    markdown("## Exercises\n\n### Exercise 1 · Write it"),
    code("def f_1(x):\n    return None  # TODO", tag="exercise"),
    code("check(f_1(2), 2)", "Still to do", "check"),
    markdown("### Exercise 2 · Write it, too"),
    code("def f_2(x):\n    return None  # TODO", tag="exercise"),
    code("check(f_2(2), 2)", "Still to do", "check"),
    markdown(SOLUTIONS),
    markdown(ENDING),
    code("record(a=1)", tag="record"),
    markdown(READ),
]
WRONG = {
    "no title": (0, "# 01 ·", "#"),
    "no map": (0, "map_", "other_"),
    "no alternative text": (1, "A diagram that shows how noise is added", "a diagram"),
    "no diagram": (1, ".svg", ".png"),
    "two goals": (0, "- guess it\n", ""),
    "no time": (0, "**Time:** about 20 minutes", "Soon"),
    "no asserted tolerance": (3, "assert ", ""),
    "nothing to do": (20, "# TODO", ""),
    "no exercise 2": (22, "Exercise 2", "Exercise 3"),
    "another name in the solution": (25, "f_2", "g_2"),
    "four lines": (26, "- e", ""),
    "two links": (28, "- [A title](https://a.example/b), 2020\n", "", 1),
    "a long cell": (2, "print(1)", "print(1)\n" * 13),
}


def test_a_good_lesson_has_no_fault():
    assert not list(faults("01_noise", {"cells": GOOD}))


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_rule_finds_its_fault(change):
    index, before, *after = change
    cells = copy.deepcopy(GOOD)
    assert before in cells[index]["source"]
    cells[index]["source"] = cells[index]["source"].replace(before, *after)
    assert list(faults("01_noise", {"cells": cells}))


def test_rules_for_outputs_and_for_the_number_of_cells():
    def faults_with(cell: dict) -> list[str]:
        return list(faults("01_noise", {"cells": [*GOOD[:2], cell, *GOOD[2:]]}))

    assert "verdict" in faults_with(code("print(a == b)", "equal: True"))[0]
    assert "caption" in faults_with(code("plt.show()", **{"image/png": "abcd", "text/plain": "<Figure size 8x2>"}))[0]
    assert "bytes" in faults_with(code("x()", **{"image/png": "a" * 600_000, "text/plain": "Figure: a"}))[0]
    assert "tagged record" in faults_with(code("record(b=2)", tag="record"))[0]
    assert "cells" in next(faults("01_noise", {"cells": [*GOOD[:9], *GOOD[19:]]}))
    unchecked = [cell for cell in GOOD if tags(cell) != ["check"]]
    assert len([fault for fault in faults("01_noise", {"cells": unchecked}) if "check" in fault]) == 2


# ------------------------------------------------------------------------------------------------- approximate numbers


def sanitized(text: str) -> str:
    """As nbval sees it."""
    rules = (Path(__file__).parents[1] / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for pattern, replacement in re.findall("^regex: (.*)$\n^replace: (.*)$", rules, re.MULTILINE):
        text = re.sub(pattern, replacement, text)
    return text


def test_only_a_number_marked_as_approximate_may_differ():
    same = [("loss ≈ 0.31", "loss ≈ 0.298"), ("≈ -2e-05, ≈ 3", "≈ 1.5e-06, ≈ 12"), ("≈ −1.5 dB", "≈ 2.25 dB")]
    assert all(sanitized(one) == sanitized(other) for one, other in same)
    different = [("loss 0.31", "loss 0.30"), ("≈ 3 dB", "≈ 3 %"), ("≈ 0.3 of 10", "≈ 0.3 of 11"), ("≈ nan", "≈ 1.0")]
    assert not any(sanitized(one) == sanitized(other) for one, other in different)


# ------------------------------------------------------------------------------------------------------- folded cells


def test_tags_say_what_is_folded(monkeypatch):
    nbformat, _ = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(FOLDER)
    import refresh

    cells = [
        nbformat.v4.new_code_cell("1", metadata={"tags": [tag], "scrolled": True}) for tag in ("tolerance", "check")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for _ in range(2):
        refresh.name_cells(notebook)
        folded, shown = (cell.metadata for cell in notebook.cells)
        assert folded.tags == ["tolerance", "hide-cell"] and folded.mystnb.code_prompt_show
        assert folded.jupyter == {"source_hidden": True, "outputs_hidden": True}
        assert shown == {"tags": ["check"]}
