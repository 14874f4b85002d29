"""Executes the course's notebooks and writes them back with their outputs: python notebooks/refresh.py [notebook …]

Without arguments all of them. What is written depends on the notebook alone, not on the moment or the machine: two
runs give the same bytes. A notebook that fails, warns, or prints a path of this machine is not written; the message
says which cell it was.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from opensora_lite.errors import OpenSoraError
from opensora_lite.io.files import atomic_write

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MEDIA = re.compile(r"data:(image|video)/[a-z0-9+.-]+;base64,[A-Za-z0-9+/=]+")


class RefreshError(Exception):
    """A notebook that must not be written; says why."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="[all in notebooks/]")
    chosen = parser.parse_args(arguments).notebooks or sorted(FOLDER.glob("*.ipynb"))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # "python3" is this Python, not one that a user has registered
    failed = 0
    for path in chosen:
        start = time.perf_counter()
        try:
            changed = refresh(path)
        except (RefreshError, CellExecutionError, OSError, OpenSoraError) as error:
            failed = 1
            print(f"{path.name}: not written: {error}", file=sys.stderr)
        else:
            print(f"{path.name}: {'written' if changed else 'the same as before'}, {time.perf_counter() - start:.0f} s")
    return failed


def refresh(path: Path) -> bool:
    """Execute the notebook and write it if anything has changed; returns whether it has."""
    before = path.read_text(encoding="utf-8")
    after = executed(before, path)
    if after != before:
        with atomic_write(path) as temporary:
            temporary.write_text(after, encoding="utf-8", newline="\n")
    return after != before


def executed(text: str, path: Path) -> str:
    """The text of the notebook with fresh outputs. Raises RefreshError and CellExecutionError."""
    # 1. as if it had never been run
    notebook = nbformat.reads(text, as_version=4)
    notebook.nbformat_minor = 5  # the first with cell ids
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    name_cells(notebook)
    # 2. run, from its own folder
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        record_timing=False,
        store_widget_state=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # else it says at every start that TCP is not encrypted
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    client.execute()
    # 3. without what differs from run to run, or from machine to machine
    notebook.metadata["language_info"].pop("version", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined_streams(cell.outputs)
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/jpeg", None)  # PIL offers every picture twice
    check_outputs(notebook)
    name_widgets(notebook, path.stem)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


# Cells that are folded: tag -> the line that the site shows in their place, "" for the one that conf.py sets.
FOLDED = {"solution": "", "tolerance": "How far these numbers may differ", "record": "The values, recorded for sweeps"}


def name_cells(notebook) -> None:
    """Ids made from the source, so that a new cell changes no other; only tags stay, with what they stand for."""
    seen = {}
    for cell in notebook.cells:
        name = hashlib.md5(f"{cell.cell_type}:{cell.source}".encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        tags = [tag for tag in cell.metadata.get("tags", ()) if tag != "hide-cell"]
        kept = {"tags": tags} if tags else {}
        if folded := [tag for tag in tags if tag in FOLDED]:
            kept = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": [*tags, "hide-cell"]}
            if line := FOLDED[folded[0]]:
                kept["mystnb"] = {"code_prompt_show": line, "code_prompt_hide": line}
        cell.metadata = nbformat.from_dict(kept)


def joined_streams(outputs: list) -> list:
    """What was printed as one output: how the kernel cuts it into messages depends on the moment."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def check_outputs(notebook) -> None:
    """Raise RefreshError for warnings and for paths of this machine in what a reader would see."""
    private = {str(FOLDER.parent), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise RefreshError(f"cell {number} writes to stderr: {output.text.strip()[:500]}")
            pictures = {"image/png", "image/jpeg"} if "data" in output else ()
            shown = {k: v for k, v in output.get("data", {"text": output.get("text")}).items() if k not in pictures}
            text = MEDIA.sub("", json.dumps(shown))
            for path in sorted(private):
                if re.search(rf"{re.escape(path)}\b", text):
                    raise RefreshError(f"cell {number} shows {path}, a path of this machine")


def name_widgets(notebook, name: str) -> None:
    """Widget models are named after the notebook and their order; those that no output leads to are dropped."""
    saved = notebook.metadata.get("widgets", {}).get(WIDGET_STATE)
    if not saved:
        return
    views = [output.get("data", {}).get(WIDGET_VIEW) for cell in notebook.cells for output in cell.get("outputs", ())]
    reached = list(dict.fromkeys(view["model_id"] for view in views if view))
    for model in reached:  # grows on the way
        text = json.dumps(saved["state"][model], sort_keys=True)
        reached += [m for m in dict.fromkeys(re.findall(r"IPY_MODEL_(\w+)", text)) if m not in reached]
    saved["state"] = {model: saved["state"][model] for model in reached}
    text = json.dumps(notebook)
    for index, model in enumerate(reached):
        text = text.replace(model, hashlib.md5(f"{name}:{index}".encode()).hexdigest())
    fresh = nbformat.from_dict(json.loads(text))
    notebook.cells, notebook.metadata = fresh.cells, fresh.metadata


if __name__ == "__main__":
    sys.exit(main())
