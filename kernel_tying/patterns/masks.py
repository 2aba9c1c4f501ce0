"""Patterns that pin positions to zero and leave the others free. `&` joins them with any tying."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, offsets


def mask(array: ArrayLike) -> TyingPattern:
    """Returns the pattern of kernels that are zero wherever `array` is false or 0, and free elsewhere.

    Args:
        array: booleans, or integers 0 and 1, in the shape of the kernel size.

    Raises:
        TyingError: the array holds anything but booleans, or integers 0 and 1, or keeps no position.

    >>> mask([[1, 0], [1, 1]])
    TyingPattern.parse('A./BC')
    """
    try:
        keep = np.asarray(array)
    except ValueError:
        keep = np.empty(0, object)
    if keep.dtype.kind not in "biu" or not np.isin(keep, (0, 1)).all():
        raise TyingError(
            f"A mask is an array of booleans, or of integers 0 and 1. Received {array!r:.200}. Compare first: `array != 0`."
        )
    return TyingPattern(np.where(keep, np.arange(keep.size).reshape(keep.shape), -1))


def cross(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of kernels that are zero off the lines through the centre along the axes.

    Along an axis of even size the centre is two positions wide.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> cross((3, 3))
    TyingPattern.parse('.A./BCD/.E.')
    """
    sizes = kernel_size(size)
    off_centre = (np.abs(offsets(sizes)) > 1).sum(axis=-1)
    return mask(off_centre <= 1)
