"""Patterns of structured matrices, and the two extremes: all positions tied, and all free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, square_size


@recorded
def toeplitz(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of matrices with constant diagonals, `k[i, j] == k[i + 1, j + 1]`.

    Raises:
        TyingError: the size does not have two axes.

    >>> toeplitz((2, 3))
    TyingPattern.parse('ABC/DAB')
    """
    sizes = kernel_size(size)
    if len(sizes) != 2:
        raise TyingError(f"A Toeplitz tying needs a kernel of two axes. Received size={sizes}. Pass the size of a matrix.")
    row, column = np.ogrid[: sizes[0], : sizes[1]]
    diagonal = column - row
    # Diagonals below the main one come last: this is the canonical order, by first appearance.
    return TyingPattern(np.where(diagonal >= 0, diagonal, sizes[1] - 1 - diagonal))


@recorded
def circulant(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of square matrices in which each row is the row above, shifted cyclically by one.

    Raises:
        TyingError: the size is not square.

    >>> circulant((3, 3))
    TyingPattern.parse('ABC/CAB/BCA')
    """
    sizes = square_size(size, "circulant", "`toeplitz` also fits rectangles.")
    row, column = np.ogrid[: sizes[0], : sizes[1]]
    return TyingPattern((column - row) % sizes[0])


@recorded
def constant(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern with one free weight: all positions are tied.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> constant((2, 2))
    TyingPattern.parse('AA/AA')
    """
    return TyingPattern(np.zeros(kernel_size(size), dtype=int))


@recorded
def free(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern in which every position is a group of its own. It ties nothing. Use it in `&` and `per_filter`.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> free((2, 2))
    TyingPattern.parse('AB/CD')
    """
    sizes = kernel_size(size)
    return TyingPattern(np.arange(np.prod(sizes)).reshape(sizes))
