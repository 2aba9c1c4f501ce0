"""Patterns that repeat values: equal blocks, and tiles of a small kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, positive_integers


def blocks(*lengths: Sequence[int]) -> TyingPattern:
    """Returns the pattern of equal rectangular blocks: a small kernel with its rows and columns repeated.

    Args:
        *lengths: for each axis, the length of each block along it. The kernel size is the sum of the lengths.

    Raises:
        TyingError: no lengths, or lengths that are no positive integers.

    >>> blocks((2, 1, 2), (2, 1, 2))
    TyingPattern.parse('AABCC/AABCC/DDEFF/GGHII/GGHII')
    """
    block_lengths = [positive_integers(along_axis, "lengths") for along_axis in lengths]
    if not block_lengths:
        raise TyingError(
            "`blocks` needs the lengths of the blocks along each axis. Received none. Example: blocks((2, 1, 2), (2, 1, 2))."
        )
    kernel_size([sum(along_axis) for along_axis in block_lengths])
    free_labels = np.arange(np.prod([len(along_axis) for along_axis in block_lengths]))
    block_of = np.ix_(*(np.repeat(np.arange(len(along_axis)), along_axis) for along_axis in block_lengths))
    return TyingPattern(free_labels.reshape([len(along_axis) for along_axis in block_lengths])[block_of])


def tile(size: Sequence[int], repeats: Sequence[int]) -> TyingPattern:
    """Returns the pattern of a kernel of `size` that is repeated `repeats` times along each axis.

    The kernel size is `size * repeats`, axis by axis.

    Raises:
        TyingError: sizes that are no positive integers, or of different lengths.

    >>> tile((1, 5), (5, 1))
    TyingPattern.parse('ABCDE/ABCDE/ABCDE/ABCDE/ABCDE')
    """
    sizes, times = kernel_size(size), positive_integers(repeats, "repeats")
    if len(sizes) != len(times):
        raise TyingError(
            f"`size` and `repeats` have one entry for each axis. Received size={sizes}, repeats={times}. "
            "Repeat an axis once to leave it as it is."
        )
    kernel_size([length * time for length, time in zip(sizes, times, strict=True)], "size * repeats")
    return TyingPattern(np.tile(np.arange(np.prod(sizes)).reshape(sizes), times))
