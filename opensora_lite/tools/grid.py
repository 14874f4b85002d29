"""The runs of a sweep: a notebook, and every combination of values for some of its parameters.

grid.yaml:

    notebook: ../notebooks/13_generate.ipynb   # relative to this file; default: the course's 13_generate
    parameters: {num_frames: 8}                # the same in every run
    grid:                                      # every combination is a run
      guidance_scale: [1.0, 4.0, 8.0]
      seed: [0, 1]
    runs:                                      # additional single runs
      - {guidance_scale: 20.0, seed: 0}

Names and types are checked against the notebook's cell tagged `parameters` before anything runs.
"""

import ast
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias
from typing import Any, Union

import yaml
from pydantic import JsonValue

from opensora_lite.errors import OpenSoraError
from opensora_lite.io.media import split_fragment
from opensora_lite.tools.parameters import check_value, nearest
from opensora_lite.validation import check, validated

DEFAULT_NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "13_generate.ipynb"
MAX_RUNS = 10_000  # the gallery shows them all on one page

# ----------------------------------------------------------------------------------------------------------------------
# Grids
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One execution of the notebook."""

    name: str  # of its folder: a hash of the notebook's source and of all its parameters
    parameters: dict[str, Any]


class Grid:
    """A notebook and the parameters of its runs.

    notebook: its path. parameters: name -> value, the same in every run. axes: name -> values; every combination is a
    run, and the last axis varies fastest. singles: additional runs, name -> value each.
    Raises OpenSoraError for a file that is not a notebook, and for parameters that the notebook would refuse.

    points: the combinations of the axes' values. runs: all runs, first the points, then the singles.
    """

    def __init__(
        self,
        notebook: str | Path,
        parameters: Mapping[str, Any] | None = None,
        axes: Mapping[str, Sequence] | None = None,
        singles: Sequence[Mapping[str, Any]] = (),
    ):
        self.notebook = Path(notebook).resolve()
        self.source = read_notebook(self.notebook)  # without outputs
        self.declared = declared_parameters(self.source, self.notebook)
        if not axes and not singles:
            raise OpenSoraError('there is nothing to run; give a grid, such as "grid: {seed: [0, 1]}", or runs')
        for name in set(axes or {}) & set(parameters or {}):
            raise OpenSoraError(f"{name} is in both parameters and grid; leave it in one of them")
        self.parameters = self._checked(parameters or {}, "parameters")
        self.axes = {name: self._axis(name, values) for name, values in (axes or {}).items()}
        self.singles = [self._checked(values, f"runs[{i}]") for i, values in enumerate(singles)]
        number = len(self.singles) + (math.prod(map(len, self.axes.values())) if axes else 0)
        if number > MAX_RUNS:
            raise OpenSoraError(f"these are {number} runs; a sweep has at most {MAX_RUNS}")
        products = itertools.product(*self.axes.values()) if axes else ()
        self.points = [dict(zip(self.axes, values, strict=True)) for values in products]
        self.runs = self._make_runs()

    @property
    def has_output(self) -> bool:
        """Whether the notebook has a parameter `output`, the path of the video that it saves."""
        return "output" in self.declared

    def chosen(self, run: Run) -> dict[str, Any]:
        """The parameters in which a run differs from the others."""
        return {name: value for name, value in run.parameters.items() if self.parameters.get(name, ...) != value}

    def _make_runs(self) -> list[Run]:
        given = [values | self.parameters | values for values in (*self.points, *self.singles)]
        columns = list(dict.fromkeys(name for values in given for name in values))
        # a parameter that only some runs set has the notebook's default in the others
        defaults = {name: p.default for name, p in self.declared.items() if p.default is not ...}
        runs: dict[str, Run] = {}
        for i, values in enumerate(defaults | values for values in given):
            name = run_name(self.source, values)
            if name in runs:  # points differ, so this is a single run
                raise OpenSoraError(f"runs[{i - len(self.points)}] is the same as another run")
            runs[name] = Run(name, {column: values[column] for column in columns if column in values})
        return list(runs.values())

    def _axis(self, name: str, values: Any) -> list:
        where = f"grid.{name}"
        values = [self._value(name, value, f"{where}[{i}]", "grid") for i, value in enumerate(_list(values, where))]
        if not values:
            raise OpenSoraError(f"{where} is an empty list: there would be no runs")
        texts = [canonical(value) for value in values]
        for i, text in enumerate(texts):
            if text in texts[:i]:
                raise OpenSoraError(f"{where} has {text} twice")
        return values

    def _checked(self, values: Mapping[str, Any], group: str) -> dict[str, Any]:
        return {name: self._value(name, value, f"{group}.{name}", group) for name, value in values.items()}

    def _value(self, name: str, value: Any, where: str, group: str) -> Any:
        """The value as JSON has it, of the declared type: 4 becomes 4.0 for a float, so that both are one run."""
        if name not in self.declared:
            guess = nearest(name, self.declared) or f"it has {', '.join(self.declared)}"
            raise OpenSoraError(f"{group}: {self.notebook.name} has no parameter {name!r}; {guess}")
        if name == "output":
            raise OpenSoraError(f"{group}: leave out output; the sweep gives every run its own path")
        value = check(JsonValue, check_value(self.declared[name].kind, value, where), where)
        try:
            canonical(value).encode()
        except UnicodeEncodeError:  # an emoji that is written as two escapes, as JSON does and YAML does not
            raise OpenSoraError(f"{where} has half a character (a surrogate): {value!a:.60}") from None
        if name == "references":
            for path in value if isinstance(value, list) else []:
                if isinstance(path, str) and not Path(split_fragment(self.notebook.parent / path)[0]).exists():
                    raise OpenSoraError(
                        f"{where}: {path} does not exist; relative paths are relative to the notebook's folder,"
                        f" {self.notebook.parent}"
                    )
        return value


def _list(values: Any, where: str) -> list:
    return check(list, list(values) if isinstance(values, (tuple, range)) else values, where)


def canonical(value: Any) -> str:
    """JSON that is equal for equal values, whatever the order of names; 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def run_name(source: dict, parameters: dict[str, Any]) -> str:
    """Twelve hexadecimal digits for a notebook's source and the values of all its parameters."""
    cells = [[cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])] for cell in source["cells"]]
    return hashlib.sha256(canonical([cells, parameters]).encode()).hexdigest()[:12]


def describe(parameters: Mapping[str, Any]) -> str:
    """ "guidance_scale 4.0, seed 0" """
    return ", ".join(f"{name} {text_of(value) or '(empty)'}" for name, value in parameters.items())


def text_of(value: Any) -> str:
    """A value for people: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else canonical(value)


# ----------------------------------------------------------------------------------------------------------------------
# Grid files
# ----------------------------------------------------------------------------------------------------------------------


@validated()
class GridFile:
    """The contents of grid.yaml."""

    notebook: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)


def read_grid(path: str | Path, notebook: str | Path | None = None) -> Grid:
    """The grid of a YAML file. notebook: replaces the one that the file names.

    Raises OpenSoraError for a file that cannot be read, and for parameters that the notebook would refuse.
    """
    path = Path(path)
    values = read_yaml(path)
    try:
        file = GridFile(**check(dict[str, Any], values, "the file"))
        named = path.parent / file.notebook if file.notebook else DEFAULT_NOTEBOOK
        return Grid(notebook or named, file.parameters, file.grid, file.runs)
    except OpenSoraError as error:
        raise OpenSoraError(f"{path}: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML, but a name that stands twice is an error, 1e-3 is a number (as in YAML 1.2) and a date is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"+-0123456789"]
)


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file. Raises OpenSoraError with the line of a mistake."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise OpenSoraError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise OpenSoraError(f"{path} is not a text file; a grid is written in YAML") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:  # TypeError: a list as a name
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise OpenSoraError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# Notebooks
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """What the cell tagged `parameters` says about a parameter."""

    kind: Any  # the annotated type; object without an annotation, or with one that is not made of KINDS
    default: object  # ... if it is not a literal


def read_notebook(path: Path) -> dict:
    """A notebook as JSON, without its outputs. Raises OpenSoraError if it cannot be read."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        notebook["metadata"].pop("widgets", None)
        canonical(notebook).encode()  # a ValueError for half a character
    except OSError as error:
        raise OpenSoraError(f"notebook {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OpenSoraError(f"{path} is not a Jupyter notebook of format 4") from error
    return notebook


def declared_parameters(source: dict, path: Path) -> dict[str, Parameter]:
    """The assignments in the first cell tagged `parameters`, name -> Parameter; nothing is executed.

    papermill.inspect_notebook parses each line with a regular expression and skips annotations with | and comments with
    =, so this uses Python's parser. Raises OpenSoraError without such a cell, or for a cell that is not Python.
    """
    tagged = [cell for cell in source["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if not tagged:
        raise OpenSoraError(f'notebook {path} has no cell tagged "parameters", so nothing in it can be varied')
    try:
        statements = ast.parse(tagged[0]["source"]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
        raise OpenSoraError(f"the parameters of notebook {path} cannot be read: {error}") from None
    declared = {}
    for statement in statements:
        targets, kind = getattr(statement, "targets", []), object
        if isinstance(statement, ast.AnnAssign):
            targets, kind = [statement.target], type_of(statement.annotation)
        for target in targets:
            if isinstance(target, ast.Name):
                declared[target.id] = Parameter(kind, literal(statement.value))
    return declared


KINDS = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}


def type_of(annotation: ast.expr) -> Any:
    """The type that an annotation names, without evaluating it; object for all but KINDS, None, list[…] and |."""
    match annotation:
        case ast.Name(name) if name in KINDS:
            return KINDS[name]
        case ast.Constant(None):
            return None
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[type_of(left), type_of(right)]  # noqa: UP007  None | None is not a type
        case ast.Subscript(ast.Name("list"), items):
            return GenericAlias(list, (type_of(items),))
    return object


def literal(node: ast.expr | None) -> object:
    """The value of a literal as JSON has it, tuples as lists; ... for any other expression."""
    try:
        return json.loads(json.dumps(ast.literal_eval(node)))  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError, MemoryError):
        return ...
