"""The notebooks of the course, read as files."""

import ast
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RESULT = "application/vnd.opensora-lite.result+json"
EXERCISE = re.compile(r"^### Exercise (\d)\b", re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Exercise (\d)</summary>\n(.*?)</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tagged(notebook: dict, tag: str) -> list[dict]:
    return [cell for cell in code_cells(notebook) if tag in tags(cell)]


def tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def prose(notebook: dict) -> str:
    """Its Markdown, with a line of its own for each code cell."""
    return "\n\n".join(source(c) if c["cell_type"] == "markdown" else "[code]" for c in notebook["cells"])


def results(notebook: dict) -> list[dict]:
    """What the notebook recorded."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [output["data"][RESULT] for output in outputs if RESULT in output.get("data", {})]


def lines_of_code(text: str) -> int:
    """Without imports, closing brackets and blank lines; a figure is one line, its caption and labels included."""
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            first = statement.lineno - 1
        elif ast.unparse(statement).startswith("figures."):
            first = statement.lineno
        else:
            continue
        lines[first : statement.end_lineno] = [""] * (statement.end_lineno - first)
    return sum(not re.fullmatch(r"[\s)\]},]*", line) for line in lines)


def solutions_of(text: str) -> dict[str, str]:
    """number of an exercise -> the code of its solution, of Markdown with <details>."""
    return {number: "".join(PYTHON.findall(solution)) for number, solution in SOLUTION.findall(text)}
