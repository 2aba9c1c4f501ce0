"""Patterns of kernels whose values depend on the distance from the centre alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, offsets


def radial(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern that ties positions at the same Euclidean distance from the centre.

    For square kernels of odd size it equals `dihedral` up to 9x9; from 11x11 on it is coarser, since 3^2 + 4^2 = 0^2 + 5^2.
    For even sizes it is coarser from 8x8 on, since 0.5^2 + 3.5^2 = 2.5^2 + 2.5^2.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> radial((3, 3))
    TyingPattern.parse('ABA/BCB/ABA')
    """
    return TyingPattern((offsets(kernel_size(size)) ** 2).sum(axis=-1))


def rings(size: Sequence[int]) -> TyingPattern:
    """Returns the pattern of square rings: positions at the same Chebyshev distance from the centre are tied.

    This is what the `RadialConstraint` of tf.keras meant, for any kernel size.

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> rings((3, 3))
    TyingPattern.parse('AAA/ABA/AAA')
    """
    return TyingPattern(np.abs(offsets(kernel_size(size))).max(axis=-1))
