"""Patterns that pin positions to zero and leave the others free. `&` combines them with any tying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.nesting import integers
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import doubled_offsets, kernel_size


def mask(array: ArrayLike) -> TyingPattern:
    """Returns the pattern of kernels that are zero wherever `array` is false or 0, and free elsewhere.

    Args:
        array: booleans, or integers 0 and 1. Its shape is the kernel size.

    Raises:
        TyingError: the array holds other values than booleans or the integers 0 and 1, or leaves no position free.

    >>> mask([[1, 0], [1, 1]])
    TyingPattern.parse('A./BC')
    """
    try:
        keep = integers(array)
    except (ValueError, OverflowError, TypeError):
        keep = np.empty(0, object)
    if keep.dtype.kind not in "biu" or (keep.size and (keep.min() < 0 or keep.max() > 1)):
        raise TyingError(
            "A mask is an array of booleans, or of integers 0 and 1. "
            f"Received {abbreviate(array)}. Compare first: `array != 0`."
        )
    numbers = np.cumsum(keep, dtype=np.int64).reshape(keep.shape) - 1
    return TyingPattern(np.where(keep, numbers, -1))


@recorded
def cross(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of kernels that are zero except on the lines through the centre that are parallel to an axis.

    Along an axis of even size, the centre is two positions wide.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> cross((3, 3))
    TyingPattern.parse('.A./BCD/.E.')
    """
    sizes = kernel_size(size)
    is_off_centre = np.abs(doubled_offsets(sizes)) > 1
    return mask(is_off_centre.sum(axis=-1) <= 1)
