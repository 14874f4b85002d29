"""Checks what a person gave: types and bounds are declared once, as annotations, and pydantic checks them.

    @validated()
    class Settings:
        num_frames: Annotated[Whole, Field(ge=1, le=10_000)] = 16

    check(list[Whole], value, "image_size")

Both raise an OpenSoraError of one sentence: which field, what it must be, and what was given. Types are strict: True is
no number and "3" is no whole number, but numpy's numbers are numbers. `AsTuple` accepts a list for a tuple.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

import numpy as np
import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from opensora_lite.errors import OpenSoraError, printable, shown

CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True, extra="forbid")
T = TypeVar("T")


def _index(value: Any) -> Any:
    """numpy's whole numbers as Python's; everything else as it is."""
    if isinstance(value, (bool, int, float, str)) or not hasattr(value, "__index__"):
        return value
    with contextlib.suppress(TypeError):  # an array, which is no number
        return operator.index(value)
    return value


def _items(value: Any) -> Any:
    """What any iterable gives, as a tuple; text and everything else as it is."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        with contextlib.suppress(TypeError):  # an array without axes
            return tuple(value)
    return value


def _texts(value: Any) -> Any:
    texts = (value,) if isinstance(value, str) else _items(value)
    if isinstance(texts, tuple):
        return texts
    raise PydanticCustomError("texts", "Input should be text or a list of texts")


def _path(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return value
    raise PydanticCustomError("path", "Input should be a name or a path")


Whole = Annotated[int, BeforeValidator(_index)]
Index = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # lists, for tuple fields
Items = BeforeValidator(_items)  # any iterable but text, for tuple fields
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]  # one text, or several
Place = Annotated[Any, BeforeValidator(_path)]  # a path, or a name in its place
Array = InstanceOf[np.ndarray]

MUST_BE = {  # pydantic's error types in words; {…} are fields of the error's context
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "True or False",
    "none_required": "None",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a dictionary",
    "dataclass_type": "a group of fields",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "multiple_of": "a multiple of {multiple_of}",
    "invalid-json-value": "text, a number, True, False, None, a list or a dictionary",
}


def check(kind: Any, value: Any, what: str, error: type[OpenSoraError] = OpenSoraError) -> Any:
    """`value`, converted to `kind` where that loses nothing (tuples from lists, Python's numbers from numpy's).

    kind: a type or an annotation. pydantic's validator for it is built once and kept; an Annotated with a Field and
    an InstanceOf are other kinds each time they are written, so they need a name at the top of a module. what: the
    value's name in the message. Raises `error`.
    """
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as found:
        raise _readable(found, value, what, error) from None


def build(cls: type[T], values: Any, what: str, error: type[OpenSoraError] = OpenSoraError) -> T:
    """A validated dataclass from plain values, as YAML and JSON hold them; raises `error`.

    Fields that are dataclasses are given as dictionaries, tuples as lists, whole numbers as keys also as text.
    what: begins the message, as in "the recipe: diffusion.depth must be …".
    """
    try:
        kind: Any = cls
        return _adapter(kind).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as found:
        raise _readable(found, values, what, error, cls) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


@dataclass_transform(frozen_default=True, field_specifiers=(Field, pydantic.dataclasses.Field))
def validated(
    error: type[OpenSoraError] = OpenSoraError, what: str = "", errors: Mapping[str, type[OpenSoraError]] | None = None
) -> Callable[[type[T]], type[T]]:
    """Decorator: a frozen dataclass whose fields are checked when it is made; raises `error`.

    what: begins the message, as in "the STDiT2 config: depth must be …". errors: other error types, by field name. An
    OpenSoraError that __post_init__ or a validator raises is passed on as it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=CONFIG)
        init = made.__init__

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                init(self, *args, **values)
            except ValidationError as found:
                given = dict(zip(made.__dataclass_fields__, args, strict=False)) | values
                place = found.errors(include_url=False)[0]["loc"]
                kind = (errors or {}).get(str(place[0]) if place else "", error)
                raise _readable(found, given, what, kind, made) from None

        made.__init__ = __init__
        return made

    return decorate


def known_fields(
    values: Mapping[str, Any], names: Collection[str], what: str, error: type[OpenSoraError] = OpenSoraError
) -> dict[str, Any]:
    """The entries of `values` with these names; others are ignored, unless one looks like a misspelt absent name."""
    for name in set(names) - set(values):
        for misspelt in difflib.get_close_matches(name, set(values) - set(names), n=1, cutoff=0.85):
            raise error(f'{what} has no "{name}", but "{printable(misspelt):.60}"; is it misspelt?')
    return {name: values[name] for name in names if name in values}


def _readable(
    found: ValidationError, given: Any, what: str, error: type[OpenSoraError], cls: type | None = None
) -> OpenSoraError:
    """The OpenSoraError of a ValidationError: of its first problem.

    given: the value that was checked; of a dataclass `cls`: its fields by name.
    """
    problem = found.errors(include_url=False)[0]
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, OpenSoraError):
        return raised
    loc, missing = problem["loc"], problem["type"] in ("missing", "missing_argument")
    names = tuple(getattr(cls, "__dataclass_fields__", ()))
    place = _place(loc, given, names)
    if missing and loc:  # the last part of `loc` is not in `given`
        place = _place(loc[:-1], given, names) + (f"[{loc[-1]}]" if isinstance(loc[-1], int) else f".{loc[-1]}")
    name = what + place
    if names:
        name = f"{what}: {place[1:]}" if what and place else what or place[1:]
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return error(f"{name} is unknown{_hint(cls, loc)}")
    if missing:
        return error(f"{name} is missing")
    return error(f"{name} must be {_expected(problem)}, not {shown(problem['input'])}")


def _hint(cls: Any, loc: tuple[int | str, ...]) -> str:
    """What may have been meant by the unknown field at `loc`, from the dataclass `cls` on."""
    *parents, name = loc
    for part in parents:
        if isinstance(part, str):
            cls = next((leaf for leaf in _leaves(get_type_hints(cls).get(part)) if dataclasses.is_dataclass(leaf)), cls)
    known = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}" if known else ""


def _leaves(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inner = get_args(hint)
    yield from (leaf for each in inner for leaf in _leaves(each)) if inner else (hint,)


def _place(loc: tuple[int | str, ...], given: Any, names: tuple[str, ...]) -> str:
    """Where in `given` a problem is, as in ".grid.seed[0]". pydantic's `loc` also names the branches of unions."""
    place = ""
    for part in loc:
        if isinstance(part, int) and names and not place:  # a positional argument of a dataclass
            part = names[part]
        if isinstance(part, int):
            place += f"[{part}]"
            given = given[part] if isinstance(given, (list, tuple)) and part < len(given) else None
        elif isinstance(given, dict) and (part in given or part in names):
            place += f".{part}"
            given = given.get(part)
    return place


def _expected(problem: ErrorDetails) -> str:
    phrase = MUST_BE.get(problem["type"])
    if phrase is None:
        return problem["msg"].removeprefix("Input should be ").removesuffix(" type")
    bounds = {name: f"{v:g}" if isinstance(v, float) else v for name, v in problem.get("ctx", {}).items()}
    return phrase.format(**bounds)
