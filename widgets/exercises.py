"""Checks of the answers to the exercises of the lessons."""

import numpy as np
from numpy.typing import ArrayLike


def check(answer: ArrayLike | None, expected: ArrayLike, tolerance: float = 1e-6) -> None:
    """Print whether an answer, a number or an array, is everywhere within `tolerance` of `expected`.

    None stands for an answer that is still to be written.
    """
    if answer is None:
        print("Still to do: the answer is None.")
        return
    try:
        given, wanted = np.asarray(answer, dtype=float), np.asarray(expected, dtype=float)
    except (TypeError, ValueError):
        print(f"Not yet: a number or an array is expected, not {type(answer).__name__}.")
        return
    if given.shape != wanted.shape:
        print(f"Not yet: the shape is {given.shape} instead of {wanted.shape}.")
        return
    wrong = np.argwhere(~(np.abs(given - wanted) <= tolerance))  # NaN is wrong
    if len(wrong) == 0:
        print(f"Right: within {tolerance:g} of what is expected.")
    else:
        at = tuple(int(i) for i in wrong[0])
        place = f"at {list(at)} " if at else ""
        print(f"Not yet: {place}it is {given[at]:.4g}; {wanted[at]:.4g} ± {tolerance:g} is expected.")
