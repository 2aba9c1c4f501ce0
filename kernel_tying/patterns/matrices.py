"""Patterns for matrices and sequences, and the two extremes: all positions tied, all free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, square_size


def toeplitz(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of matrices with constant diagonals, `k[i, j] == k[i + 1, j + 1]`.

    Raises:
        TyingError: the size has not two axes.

    >>> toeplitz((2, 3))
    TyingPattern.parse('ABC/DAB')
    """
    sizes = kernel_size(size)
    if len(sizes) != 2:
        raise TyingError(f"A Toeplitz tying needs a kernel of two axes. Received size={sizes}. Pass the size of a matrix.")
    row, column = np.indices(sizes)
    return TyingPattern(column - row + sizes[0])


def circulant(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of square matrices whose rows are the first row, shifted cyclically.

    Raises:
        TyingError: the size is not square.

    >>> circulant((3, 3))
    TyingPattern.parse('ABC/CAB/BCA')
    """
    sizes = square_size(size, "circulant", "`toeplitz` also fits rectangles.")
    row, column = np.indices(sizes)
    return TyingPattern((column - row) % sizes[0])


def constant(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern with one free weight: all positions are tied.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> constant((2, 2))
    TyingPattern.parse('AA/AA')
    """
    return TyingPattern(np.zeros(kernel_size(size), dtype=int))


def free(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern in which every position is a group of its own. It ties nothing; `&` and `per_filter` use it.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> free((2, 2))
    TyingPattern.parse('AB/CD')
    """
    sizes = kernel_size(size)
    return TyingPattern(np.arange(np.prod(sizes)).reshape(sizes))
