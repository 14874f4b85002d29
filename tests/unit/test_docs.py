"""What the code says of itself: every public name has a docstring, which tells of arguments, shapes and errors, and
what the examples show is what happens. That the annotations are true is mypy's part; `make test` runs it before these.

Public is what has no leading underscore. The rules read sources, not objects, so that nothing heavy is imported.
"""

import ast
import builtins
import doctest
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import opensora_lite
from opensora_lite import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "opensora_lite").rglob("*.py"))
}
# Modules that people call: here a docstring names every argument. Elsewhere a good signature can be enough.
FACE = (
    "errors",
    "files",
    "machine",
    "masks",
    "memory",
    "parameters",
    "pipeline",
    "prompts",
    "runtime",
    "samplers",
    "trace",
)
FACE += ("video",)
ERRORS = {name for name in vars(errors) if name.endswith("Error")}


@dataclass(frozen=True)
class Name:
    """A module, or a public class or function in it."""

    path: str  # "opensora_lite.masks.MaskStrategy.parse"
    node: ast.Module | ast.ClassDef | ast.FunctionDef
    owner: ast.ClassDef | None = None

    @property
    def own_doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def class_doc(self) -> str:
        return ast.get_docstring(self.owner) or "" if self.owner else ""

    @property
    def overridden_doc(self) -> str:
        """Of the method of this name in the classes that its class names as bases."""
        bases = self.owner.bases if self.owner else ()
        methods = tuple(f".{ast.unparse(base)}.{self.node.name}" for base in bases)
        return "".join(other.own_doc for other in FUNCTIONS if methods and other.path.endswith(methods))

    @property
    def doc(self) -> str:
        """All that a reader of it has before their eyes."""
        return "\n".join((self.own_doc, self.class_doc, self.overridden_doc))

    @property
    def in_face(self) -> bool:
        return self.path.split(".")[1] in FACE

    @property
    def arguments(self) -> list[ast.arg]:
        a = self.node.args
        found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        return [argument for argument in found if argument.arg not in ("self", "cls")]

    @property
    def annotations(self) -> str:
        return " ".join(ast.unparse(a) for a in (self.node.returns, *(a.annotation for a in self.arguments)) if a)

    @property
    def raised(self) -> set[str]:
        """Which of our errors stand behind a `raise` in it."""
        calls = [node.exc for node in ast.walk(self.node) if isinstance(node, ast.Raise)]
        return {
            call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        } & ERRORS


def public_names(prefix: str, node: ast.AST) -> Iterator[Name]:
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
            is_overload = any(ast.unparse(decorator) == "overload" for decorator in child.decorator_list)
            if is_overload or (child.name.startswith("_") and child.name not in ("__init__", "__call__")):
                continue
            yield Name(f"{prefix}.{child.name}", child, node if isinstance(node, ast.ClassDef) else None)
            if isinstance(child, ast.ClassDef):
                yield from public_names(f"{prefix}.{child.name}", child)


TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
NAMES = [name for module, tree in TREES.items() for name in (Name(module, tree), *public_names(module, tree))]
FUNCTIONS = [name for name in NAMES if isinstance(name.node, ast.FunctionDef)]


# ---------------------------------------------------------------------------------------------------- docstrings


def test_every_public_name_has_a_docstring():
    in_class_doc = ("__init__", "forward")  # how a class is made, and what a Layer turns into what
    bare = [
        name.path
        for name in NAMES
        if not (name.own_doc or name.overridden_doc or (name.class_doc and name.node.name in in_class_doc))
    ]
    assert not bare
    assert len(NAMES) > 400  # the rules have something to look at


def test_what_raises_one_of_our_errors_says_so():
    silent = {n.path: n.raised for n in FUNCTIONS if n.raised and "Error" not in n.doc}
    assert not silent
    assert sum(bool(n.raised) for n in FUNCTIONS) > 60


def test_errors_that_a_docstring_names_exist():
    known = ERRORS | {"PapermillExecutionError"} | set(dir(builtins))
    unknown = {n.path: set(re.findall(r"\b[A-Z]\w*Error\b", n.own_doc)) - known for n in NAMES}
    assert not {path: found for path, found in unknown.items() if found}


def test_arguments_of_what_people_call_are_named():
    unnamed = {
        n.path: [a.arg for a in n.arguments if not re.search(rf"\b{a.arg}\b", n.doc)] for n in FUNCTIONS if n.in_face
    }
    assert not {path: found for path, found in unnamed.items() if found}


def test_what_takes_or_gives_arrays_tells_their_shape():
    arrays = [n for n in FUNCTIONS if re.search(r"np\.ndarray|paddle\.Tensor|ArrayLike", n.annotations)]
    assert not [n.path for n in arrays if not re.search(r"\[.+?\]|shape", n.doc)]
    assert len(arrays) > 60


# ------------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize("module", [module for module, source in SOURCES.items() if ">>> " in source])
def test_examples(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_the_languages_of_the_package_have_examples():
    modules = ("masks", "prompts", "parameters", "pipeline", "world", "samplers.schedule")
    assert all(">>> " in SOURCES[f"opensora_lite.{module}"] for module in modules)


# --------------------------------------------------------------------------------------------------------- types


def test_type_checkers_see_the_names_that_are_imported_lazily():
    block = next(
        n for n in TREES["opensora_lite"].body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname: line.module for line in block.body for alias in line.names}  # only `X as X` is handed on
    assert seen == {name: f"opensora_lite.{home}" for name, home in opensora_lite._HOMES.items()}
    assert (ROOT / "opensora_lite" / "py.typed").exists()  # which tells them to look at all
