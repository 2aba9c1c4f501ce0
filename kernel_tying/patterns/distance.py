"""Patterns of kernels whose values depend only on the distance from the centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import doubled_offsets, kernel_size


@recorded
def radial(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern that ties positions at the same Euclidean distance from the centre.

    For square kernels of odd size it equals `dihedral` up to 9x9 and is coarser from 11x11, because 3^2 + 4^2 = 0^2 + 5^2.
    For even sizes it is coarser from 8x8, because 0.5^2 + 3.5^2 = 2.5^2 + 2.5^2.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> radial((3, 3))
    TyingPattern.parse('ABA/BCB/ABA')
    """
    return TyingPattern((doubled_offsets(kernel_size(size)) ** 2).sum(axis=-1))


@recorded
def rings(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern that ties positions at the same Chebyshev distance from the centre: square rings.

    This is the tying that the `RadialConstraint` of tf.keras intended, for any kernel size.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> rings((3, 3))
    TyingPattern.parse('AAA/ABA/AAA')
    """
    return TyingPattern(np.abs(doubled_offsets(kernel_size(size))).max(axis=-1))
