"""Public names have docstrings, and the examples in them give what they show.

Public is what has no leading underscore. Docstrings are read from the sources, so that nothing heavy is imported.
"""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import opensora_lite

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"opensora_lite": ROOT / "opensora_lite", "opensora_lite.widgets": ROOT / "widgets"}
SOURCES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path.read_text(
        "utf-8"
    )
    for package, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}


def undocumented(path: str, node: ast.AST, inherited: frozenset = frozenset()) -> Iterator[str]:
    """Public functions and classes in a node without a docstring. A method of one line may do without.

    inherited: names that the class's docstring or its base class documents.
    """
    in_class = isinstance(node, ast.ClassDef)
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef)) or child.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list]
        if not (
            {"overload", "setter"} & {*decorators}
            or ast.get_docstring(child)
            or child.name in inherited
            or (in_class and len(child.body) == 1)
        ):
            yield f"{path}.{child.name}"
        if isinstance(child, ast.ClassDef):
            bases = [base for base in map(ast.unparse, child.bases) if base in CLASSES]
            of_bases = {item.name for base in bases for item in CLASSES[base].body if isinstance(item, ast.FunctionDef)}
            yield from undocumented(f"{path}.{child.name}", child, frozenset({"forward", *of_bases}))


CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("module", SOURCES)
def test_public_names_have_docstrings(module):
    assert ast.get_docstring(TREES[module])
    assert not list(undocumented(module, TREES[module]))


@pytest.mark.parametrize("module", [module for module, source in SOURCES.items() if ">>> " in source])
def test_examples(module):
    if module.startswith("opensora_lite.widgets"):
        pytest.importorskip("anywidget")
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_type_checkers_see_the_names_that_are_imported_lazily():
    block = next(
        n for n in TREES["opensora_lite"].body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname: line.module for line in block.body for alias in line.names}  # only `X as X` is handed on
    assert seen == {name: f"opensora_lite.{home}" for name, home in opensora_lite._HOMES.items()}
    assert (ROOT / "opensora_lite" / "py.typed").exists()
