"""Shared checks of kernel sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.nesting import MAX_POSITIONS, MAX_RANK


def kernel_size(size: int | Sequence[int], name: str = "size") -> tuple[int, ...]:
    """Returns `size` as a tuple of positive integers, with at most `MAX_POSITIONS` positions. An integer is one axis."""
    sizes = positive_integers(size, name)
    check_positions(sizes)
    return sizes


def check_positions(shape: tuple[int, ...]) -> None:
    """Raises a `TyingError` if a pattern of `shape` would take gigabytes."""
    if len(shape) > MAX_RANK or math.prod(shape) > MAX_POSITIONS:
        raise TyingError(
            f"A pattern that is made from a size has at most {MAX_RANK} axes and {MAX_POSITIONS} positions. "
            f"Received {abbreviate(shape)}. "
            "Leave axes free, or pass arrays of labels to `TyingPattern` itself."
        )


def positive_integers(values: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns `values` as a tuple of positive integers. An integer makes a tuple of length 1."""
    lengths: Any = [values] if np.isscalar(values) else values
    try:
        sizes = tuple(operator.index(length) for length in lengths)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise TyingError(f"`{name}` is a tuple of positive integers. Received {name}={abbreviate(values)}. Example: (5, 5).")
    return sizes


def square_size(size: Sequence[int], family: str, way_out: str) -> tuple[int, int]:
    """Returns `size` as a pair of equal integers."""
    sizes = kernel_size(size)
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise TyingError(f"A {family} tying needs a square kernel of two axes. Received size={sizes}. {way_out}")
    return sizes


def doubled_offsets(size: tuple[int, ...]) -> np.ndarray:
    """Returns twice the offset of each position from the centre, `(*size, len(size))`. It is an integer for even sizes too."""
    return 2 * np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1)
