"""Patterns that repeat values: constant blocks, and tiles of a small kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, positive_integers


@recorded
def blocks(*lengths: Sequence[int]) -> TyingPattern:
    """Returns the pattern of constant rectangular blocks: a small kernel whose rows and columns are repeated.

    Args:
        *lengths: for each axis, the lengths of the blocks along it. Their sum is the kernel size.

    Raises:
        TyingError: no lengths, or lengths that are not positive integers.

    >>> blocks((2, 1, 2), (2, 1, 2))
    TyingPattern.parse('AABCC/AABCC/DDEFF/GGHII/GGHII')
    """
    block_lengths = [positive_integers(along_axis, "lengths") for along_axis in lengths]
    if not block_lengths:
        raise TyingError(
            "`blocks` needs the lengths of the blocks along each axis. Received none. Example: blocks((2, 1, 2), (2, 1, 2))."
        )
    kernel_size([sum(along_axis) for along_axis in block_lengths])
    counts = [len(along_axis) for along_axis in block_lengths]
    small_kernel = np.arange(np.prod(counts)).reshape(counts)
    block_at = [np.repeat(np.arange(len(along_axis)), along_axis) for along_axis in block_lengths]
    return TyingPattern(small_kernel[np.ix_(*block_at)])


@recorded
def tile(size: Sequence[int], repeats: Sequence[int]) -> TyingPattern:
    """Returns the pattern of a small kernel of `size`, repeated `repeats` times along each axis.

    The kernel size is `size * repeats`, axis by axis.

    Raises:
        TyingError: sizes or repeats that are not positive integers, or differ in number.

    >>> tile((1, 5), (5, 1))
    TyingPattern.parse('ABCDE/ABCDE/ABCDE/ABCDE/ABCDE')
    """
    sizes, counts = kernel_size(size), positive_integers(repeats, "repeats")
    if len(sizes) != len(counts):
        raise TyingError(
            f"`size` and `repeats` have one entry for each axis. Received size={sizes}, repeats={counts}. "
            "Repeat an axis once to leave it as it is."
        )
    kernel_size([length * count for length, count in zip(sizes, counts, strict=True)], "size * repeats")
    small_kernel = np.arange(np.prod(sizes)).reshape(sizes)
    return TyingPattern(np.tile(small_kernel, counts))
