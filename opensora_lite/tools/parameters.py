"""The parameters of a notebook: are they those that it declares, and of the kind that it declares?

papermill writes the values that it is given into a cell of their own, behind the cell that is tagged `parameters`. It
only warns of a name that this cell does not have: the value then goes into a variable that nobody reads, and the
notebook runs with its default. Nor does it look at the kind of a value: `-p mask_strategy 0` is a number. A notebook
that wants to refuse both, before it does anything that takes time, has three lines for it:

    before = dict(globals())  #      at the end of its imports; whatever appears after this is a parameter
    steps: int = 20  #               in the cell tagged `parameters`: a name, its kind and its default
    check_parameters(__annotations__, given_parameters(globals(), before))  #   in the cell after that
"""

import difflib
import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin

from opensora_lite.errors import OpenSoraError, printable, shown

# kind -> its name in a message, for one and for several
WORDS = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False each"),
    list: ("a list", "lists"),
    dict: ("a dictionary", "dictionaries"),
    type(None): ("None", "None each"),
}
OF_PAPERMILL = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # what `papermill --inject-paths` adds


def check_parameters(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise an OpenSoraError that names every parameter that is unknown or of another kind than declared.

    declared: name -> kind, such as a notebook's `__annotations__`: str, int, float, bool, list, dict, list[T] and
    T | None. given: name -> value; declared names may be missing. A whole number will do for a float and a tuple for a
    list; 20.0 is no int, and True and False are nothing but bool.

    >>> check_parameters({"seed": int}, {"sed": 1})
    Traceback (most recent call last):
    opensora_lite.errors.OpenSoraError: "sed" is no parameter of this notebook; did you mean "seed"?
    """
    problems = [_problem(name, value, declared) for name, value in given.items()]
    problems = [problem for problem in problems if problem]
    if len(problems) > 1:
        problems = [f"{len(problems)} parameters cannot be used:", *(f"    {problem}" for problem in problems)]
    if problems:
        raise OpenSoraError("\n".join(problems))


def given_parameters(namespace: Mapping[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of what a notebook was given: what it declares, and all that has appeared since `before`.

    namespace: the notebook's `globals()`. before: a copy of it, made ahead of the parameters; a name that it holds
    counts as given where its value is another one since. Names that begin with `_`, such as IPython's own, are left
    out. `before` is emptied, so that only declared names are found the next time: whoever goes back and runs the
    parameters again by hand has variables of the cells below, which are no parameters.
    """
    declared = {name: namespace[name] for name in namespace.get("__annotations__", ()) if name in namespace}
    appeared = {
        name: value
        for name, value in namespace.items()
        if before and not name.startswith("_") and name not in OF_PAPERMILL and value is not before
        if name not in before or value is not before[name]
    }
    before.clear()
    return declared | appeared


def _problem(name: str, value: object, declared: Mapping[str, Any]) -> str:
    """What is wrong with one parameter; empty if nothing is."""
    if name not in declared:
        nearest = difflib.get_close_matches(name, declared, n=1)
        guess = f'did you mean "{nearest[0]}"?' if nearest else f"there are {', '.join(declared) or 'none'}"
        return f'"{name}" is no parameter of this notebook; {guess}'
    kind = declared[name]
    if _fits(value, kind):
        return ""
    return f"{name} must be {_words(kind)}, not {shown(value)} ({type(value).__name__}){_spelling(name, value, kind)}"


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is None:
        return value is None
    return isinstance(value, (list, tuple) if kind is list else kind)


def _words(kind: Any, several: bool = False) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(one, several) for one in get_args(kind))
    if get_origin(kind) is list:
        return f"{WORDS[list][several]} of {_words(get_args(kind)[0], several=True)}"
    return WORDS[kind][several] if kind in WORDS else getattr(kind, "__name__", str(kind))


def _spelling(name: str, value: object, kind: Any) -> str:
    """How papermill's command line says what was probably meant."""
    if kind is str and isinstance(value, (bool, int, float)):
        return f"; papermill hands over text with -r: -r {name} {shown(value)}"
    if (kind is list or get_origin(kind) is list) and isinstance(value, str):
        return f'; papermill hands over lists with -y: -y "{name}: [{printable(value):.60}]"'
    return ""
