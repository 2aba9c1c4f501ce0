"""Checks of kernel sizes that the families share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.pattern import check_positions


def kernel_size(size: int | Sequence[int], name: str = "size") -> tuple[int, ...]:
    """Returns `size` as a tuple of positive integers, with not too many positions; a bare integer is one axis."""
    sizes = positive_integers(size, name)
    check_positions(sizes)
    return sizes


def positive_integers(values: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns `values` as a tuple of positive integers; a bare integer makes one of length 1."""
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


def offsets(size: tuple[int, ...]) -> np.ndarray:
    """Returns twice the offset of each position from the centre, integers of shape `(*size, len(size))`."""
    return 2 * np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1)
