"""What a kernel would lose by tying, computed in NumPy and float64: nothing is compiled for the many patterns of a report."""

from __future__ import annotations

import math

import numpy as np

from kernel_tying.patterns.fields import fields_apart
from kernel_tying.patterns.pattern import TyingPattern


def residual(kernel: np.ndarray, pattern: TyingPattern) -> np.ndarray:
    """Returns `kernel - B pinv(B) kernel` in float64: exactly zero in groups whose members are bit-equal up to sign."""
    split, order = fields_apart(kernel.shape, pattern.shape)
    apart = kernel.astype("float64").reshape(split).transpose(order)
    rows = apart.reshape(pattern.labels.size, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = rows - _projected(rows, pattern)
    return rows.reshape(apart.shape).transpose(np.argsort(order)).reshape(kernel.shape)


def _projected(rows: np.ndarray, pattern: TyingPattern) -> np.ndarray:
    """Returns the tied rows nearest to `rows`, which holds one row for each position of the pattern."""
    labels, signs = pattern.labels.ravel(), pattern.signs.ravel()[:, None]
    positions = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]  # of each group in turn
    first = np.cumsum(pattern.group_sizes) - pattern.group_sizes
    means = np.add.reduceat((signs * rows)[positions], first, axis=0) / pattern.group_sizes[:, None]
    return np.where(signs == 0, 0.0, signs * means[labels])


def lost_share(kernel: np.ndarray, pattern: TyingPattern) -> float:
    """Returns the share of the norm that tying takes away, `||k - P k|| / ||k||`; 0.0 for a kernel of zeros."""
    return float(lost_by_filter(kernel.reshape(*kernel.shape, 1), pattern)[0])


def lost_by_filter(kernel: np.ndarray, pattern: TyingPattern) -> np.ndarray:
    """Returns `||k - P k|| / ||k||` of each filter, which is an index along the last axis: `(filters,)`."""
    parts, wholes = _norms_by_filter(residual(kernel, pattern)), _norms_by_filter(kernel.astype("float64"))
    return np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes != 0)


def _norms_by_filter(array: np.ndarray) -> np.ndarray:
    return np.linalg.norm(array.reshape(-1, array.shape[-1]), axis=0)


def expected_share(pattern: TyingPattern) -> float:
    """Returns the share that a kernel of independent normal entries loses, `sqrt(1 - K/n)`: K groups, n positions."""
    return math.sqrt(1 - pattern.num_free / pattern.labels.size)


def mean_kernel(kernel: np.ndarray, num_spatial: int) -> np.ndarray:
    """Returns the mean of a kernel's slices over all channels, in the rank of the kernel.

    Its symmetry is studied in "On Symmetries in Convolutional Weights" (arXiv 2503.19215).
    """
    return kernel.astype("float64").mean(axis=tuple(range(num_spatial, kernel.ndim)), keepdims=True)
