"""Checks the parameters of a notebook that papermill runs: are they declared, and do they have the declared types?

papermill inserts a cell with the given values after the cell tagged `parameters`. It only warns about a name that this
cell doesn't have: the value then goes into an unused variable, and the notebook runs with its default. It doesn't check
types either: `-p mask_strategy 0` passes a number. A notebook refuses both, before any slow cell, with the three lines
below. `-p` knows no lists: `-p image_size "[64, 64]"` passes text, which these lines replace by the list.

    before = dict(globals())  #      at the end of the imports; names that appear later are parameters
    steps: int = 20  #               in the cell tagged `parameters`: name, type and default
    check_parameters(__annotations__, given_parameters(globals(), before))  #   in the cell after that
"""

import contextlib
import difflib
import json
import shlex
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import yaml
from pydantic import JsonValue

from opensora_lite.errors import OpenSoraError, shown
from opensora_lite.validation import check

INJECTED = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # by `papermill --inject-paths`
MAX_ADVICE = 200  # characters of a text that the advice repeats


def check_parameters(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise one OpenSoraError for all parameters that are not declared or have another type than declared.

    declared: name -> type, as in `__annotations__`: str, int, float, bool, list, dict, list[T] or T | None.
    given: name -> value; declared names may be missing. An int is accepted for float, a tuple for list; 20.0 is no int,
    and True is only a bool.

    >>> check_parameters({"seed": int}, {"sed": 1})
    Traceback (most recent call last):
    opensora_lite.errors.OpenSoraError: "sed" is not a parameter of this notebook; did you mean "seed"?
    """
    problems = []
    for name, value in given.items():
        if name not in declared:
            guess = nearest(name, declared) or f"there are {', '.join(declared) or 'none'}"
            problems.append(f'"{name}" is not a parameter of this notebook; {guess}')
            continue
        try:
            check_value(declared[name], value, name)
        except OpenSoraError as error:
            problems.append(f"{error}{_advice(declared[name], name, value)}")
    if len(problems) > 1:
        problems = [f"{len(problems)} parameters cannot be used:", *(f"    {problem}" for problem in problems)]
    if problems:
        raise OpenSoraError("\n".join(problems))


def check_value(kind: Any, value: Any, name: str) -> Any:
    """`value` as a parameter of type `kind`; `name` is what the message of the OpenSoraError calls it."""
    return check(kind, list(value) if isinstance(value, tuple) else value, name)


def given_parameters(namespace: MutableMapping[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of a notebook's parameters: the declared ones, and all names that appeared since `before`.

    Texts that stand for a list, a dictionary, a truth value or None of the declared type are replaced by it, in
    `namespace` too (`from_text`).

    namespace: the notebook's `globals()`. before: a copy made ahead of the parameters cell; a name in it counts as
    given if its value is another object now. Names that begin with `_`, such as IPython's, are left out. `before` is
    emptied, so that only declared names count when somebody runs the parameters cell again by hand: by then the
    variables of later cells exist too.
    """
    kinds = namespace.get("__annotations__", {})
    declared = {name: from_text(kind, namespace[name]) for name, kind in kinds.items() if name in namespace}
    namespace.update(declared)
    appeared = {
        name: value
        for name, value in namespace.items()
        if before and not name.startswith("_") and name not in INJECTED and value is not before
        if name not in before or value is not before[name]
    }
    before.clear()
    return declared | appeared


def from_text(kind: Any, value: Any) -> Any:
    """The list, dictionary, truth value or None of type `kind` that the text `value` is in YAML; else `value` itself.

    >>> from_text(list[int], "[64, 64]"), from_text(str, "[64, 64]")
    ([64, 64], '[64, 64]')
    """
    if not isinstance(value, str) or _fits(kind, value):
        return value
    read = _read_yaml(value)  # no number: papermill has read those, except where text was asked for
    return read if isinstance(read, (list, dict, bool, type(None))) and _fits(kind, read) else value


def _read_yaml(text: str) -> object:
    """What `text` is in YAML; `text` itself if it is none, or not such as JSON can hold."""
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        read = yaml.safe_load(text)
        return read if _fits(JsonValue, read) else text
    return text


def nearest(name: object, known: Iterable[str]) -> str:
    """For a message about an unknown name: 'did you mean "seed"?', or "" if no known name is similar."""
    similar = difflib.get_close_matches(str(name), known, n=1)
    return f'did you mean "{similar[0]}"?' if similar else ""


def _advice(kind: Any, name: str, value: object) -> str:
    """The papermill option that passes the value that was probably meant; "" if unknown."""
    if isinstance(value, (bool, int, float, type(None))) and _fits(kind, ""):
        return f"; papermill passes text with -r {name} {shown(value)}"
    if not isinstance(value, str) or len(value) > MAX_ADVICE:
        return ""
    for guess in (_read_yaml(value), [value]):
        if _fits(kind, guess):
            return f"; papermill passes YAML with -y {shlex.quote(json.dumps({name: guess}, ensure_ascii=False))}"
    return ""


def _fits(kind: Any, value: object) -> bool:
    try:
        check(kind, value, "")
    except OpenSoraError:
        return False
    return True
