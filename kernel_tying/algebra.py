"""The three operations on kernels: `expand`, `average`, and their composition `project`.

With the free weights `theta` and the 0/+1/-1 matrix `B` of a pattern (one row per position, one column per group),

    expand(theta) = B theta        average(kernel) = pinv(B) kernel        project(kernel) = B pinv(B) kernel.

`theta` keeps the kernel's rank: the first tied axis holds the K groups, the other tied axes have size 1, free axes keep
their size. A kernel `(5, 5, in, out)` under a pattern of nine groups has free weights `(9, 1, in, out)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import backend, ops

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.pattern import TyingPattern

Tensor = Any  # a tensor of the backend, a keras.Variable or an array


def expand(free: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the tied kernel with the given free weights, `B theta`.

    Values are copied by position, so members of a group are bit-equal or exact negatives. Positions of sign 0 are zero
    whatever the free weights hold. The gradient in `free` is dense, `B^T` times the gradient in the kernel.

    Args:
        free: free weights of any float dtype, as `average` returns them.
        pattern: the tying pattern.

    Returns:
        A kernel with the pattern's size along its tied axes and the size of `free` along the others, same dtype.

    Raises:
        TyingError: `free` does not have the shape of the pattern's free weights.

    Example:

    >>> import numpy as np, kernel_tying as kt
    >>> pattern = kt.TyingPattern.parse("A.-A")
    >>> kernel = kt.expand(np.full((1, 2, 2), 3.0, "float32"), pattern)
    >>> kernel.shape[0], np.array(kernel[:, 0, 0]).tolist()
    (3, [3.0, 0.0, -3.0])
    """
    free = ops.convert_to_tensor(free)
    _check_free_shape(tuple(free.shape), pattern)
    shape = kernel_shape(tuple(free.shape), pattern)
    # Two axes before `take`: on TensorFlow the gradient of a bare `take` of a variable is sparse with repeated rows,
    # with which Adam and others take wrong steps; behind a reshape it is dense (pinned by a test).
    rows = _tied_axes_first(free, pattern, (pattern.num_free, -1))
    values = ops.stack(_expand_rows(ops.unstack(rows), pattern)) if _is_small(pattern) else _expand_matrix(rows, pattern)
    return _tied_axes_back(values, pattern, shape)


def average(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the free weights nearest to `kernel`, `pinv(B) kernel`: the signed mean of each tied group.

    The mean is taken as `anchor + mean(member - anchor)`, with the first member as anchor, so that the average of a
    tied kernel returns its free weights bit for bit. float16 and bfloat16 are averaged in float32. NaN and infinities
    stay in their own group.

    Args:
        kernel: a kernel of any float dtype whose leading axes the pattern fits.
        pattern: the tying pattern.

    Returns:
        Free weights of the kernel's rank and dtype, see the module's docstring.

    Raises:
        TyingError: the pattern does not fit the kernel's shape.

    Example:

    >>> import numpy as np, kernel_tying as kt
    >>> pattern = kt.TyingPattern.parse("AB-A")
    >>> np.array(kt.average(np.array([1.0, 5.0, -3.0], "float32"), pattern)).tolist()
    [2.0, 5.0]
    """
    kernel = ops.convert_to_tensor(kernel)
    rows = _rows_to_average(kernel, pattern)
    means = ops.stack(_average_rows(ops.unstack(rows), pattern)) if _is_small(pattern) else _average_matrix(rows, pattern)
    return _tied_axes_back(ops.cast(means, kernel.dtype), pattern, free_shape(tuple(kernel.shape), pattern))


def project(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the tied kernel nearest to `kernel` in the Frobenius norm, `B pinv(B) kernel`.

    Args, errors and dtypes as for `average`. Projecting twice equals projecting once, bit for bit.

    Example:

    >>> import numpy as np, kernel_tying as kt
    >>> np.array(kt.project(np.array([1.0, 5.0, 3.0], "float32"), kt.TyingPattern.parse("ABA"))).tolist()
    [2.0, 5.0, 2.0]
    """
    kernel = ops.convert_to_tensor(kernel)
    rows = _rows_to_average(kernel, pattern)
    if not _is_small(pattern):
        return expand(average(kernel, pattern), pattern)
    tied = ops.stack(_expand_rows(_average_rows(ops.unstack(rows), pattern), pattern))
    return _tied_axes_back(ops.cast(tied, kernel.dtype), pattern, tuple(kernel.shape))


def relative_distance(kernel: Tensor, tied: Tensor) -> float:
    """Returns `||kernel - tied|| / ||kernel||` in the Frobenius norm: exactly 0.0 if and only if both are equal to the bit.

    NaN and infinities give NaN. The norms are taken of values scaled to at most 1, so that none underflows.
    """
    dtype = averaging_dtype(backend.standardize_dtype(kernel.dtype))
    values, projected = (ops.convert_to_numpy(ops.cast(tensor, dtype)) for tensor in (kernel, tied))
    with np.errstate(invalid="ignore", over="ignore"):
        residual = values - projected
    distance, scale = _largest(residual), _largest(values)
    if distance == 0:
        return 0.0
    if not np.isfinite(distance):
        return float("nan")
    # In place, since kernels may be large. Only the residual is ours to write to.
    lost = np.linalg.norm(np.divide(residual, distance, out=residual))
    return float(distance / scale * lost / np.linalg.norm(np.divide(values, scale, out=residual)))


def _largest(array: np.ndarray) -> float:
    """Returns the largest absolute value."""
    return float(max(array.max(), -array.min()))


def free_shape(shape: tuple[int, ...], pattern: TyingPattern) -> tuple[int, ...]:
    """Returns the shape of the free weights of a kernel of `shape`.

    Raises:
        TyingError: the pattern does not fit `shape`.
    """
    check_fits(pattern, shape)
    free = [1 if axis in pattern.tied_axes else size for axis, size in enumerate(shape)]
    free[pattern.tied_axes[0]] = pattern.num_free
    return tuple(free)


def kernel_shape(shape: tuple[int, ...], pattern: TyingPattern) -> tuple[int, ...]:
    """Returns the shape of the kernel that free weights of `shape` expand to."""
    return tuple(pattern.shape[axis] if axis in pattern.tied_axes else size for axis, size in enumerate(shape))


def check_fits(pattern: TyingPattern, shape: tuple[int, ...]) -> None:
    """Raises a `TyingError` unless every tied axis of `pattern` has its size in `shape`."""
    _check_pattern(pattern)
    if len(pattern.shape) > len(shape) or any(pattern.shape[axis] != shape[axis] for axis in pattern.tied_axes):
        raise TyingError(
            "A pattern fits a kernel if the axes that it ties have the kernel's sizes, counted from the first axis. "
            f"Received a pattern of shape {pattern.shape} for a kernel of shape {shape}. Make the pattern for that kernel size."
        )


def root_group_sizes(pattern: TyingPattern, rank: int) -> np.ndarray:
    """Returns `sqrt(group size)` in the shape of free weights of `rank` axes whose free axes have size 1."""
    shape = [1] * rank
    shape[pattern.tied_axes[0]] = pattern.num_free
    return np.sqrt(pattern.group_sizes).reshape(shape)


def free_by_group(free: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns free weights of shape `(K, *channels)`, with K groups for each index along free spatial axes."""
    matrix = _tied_axes_first(ops.convert_to_tensor(free), pattern, (pattern.num_free, -1))
    return ops.reshape(matrix, (-1, *free.shape[-2:]))


def averaging_dtype(dtype: str) -> str:
    """Returns the dtype in which kernels of `dtype` are averaged."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _check_pattern(pattern: TyingPattern) -> None:
    if not isinstance(pattern, TyingPattern):
        raise TyingError(
            f"A kernel is tied by a TyingPattern. Received {abbreviate(pattern)}. `patterns.named(name, size)` makes one."
        )


def _check_free_shape(shape: tuple[int, ...], pattern: TyingPattern) -> None:
    _check_pattern(pattern)
    expected = [pattern.num_free] + [1] * (len(pattern.tied_axes) - 1)
    if len(shape) < len(pattern.shape) or [shape[axis] for axis in pattern.tied_axes] != expected:
        raise TyingError(
            f"Free weights hold the {pattern.num_free} groups along axis {pattern.tied_axes[0]} and have size 1 along the "
            f"other tied axes {pattern.tied_axes[1:]}. Received shape {shape}. `average` makes them from a kernel."
        )


def _axis_order(pattern: TyingPattern, rank: int) -> list[int]:
    """Returns the axes of a kernel, the tied ones first."""
    return list(pattern.tied_axes) + [axis for axis in range(rank) if axis not in pattern.tied_axes]


def _tied_axes_first(tensor: Tensor, pattern: TyingPattern, shape: tuple[int, int]) -> Tensor:
    """Returns `tensor` as a matrix, tied axes along the rows and free axes along the columns."""
    order = _axis_order(pattern, len(tensor.shape))
    return ops.reshape(tensor if order == sorted(order) else ops.transpose(tensor, order), shape)


def _tied_axes_back(matrix: Tensor, pattern: TyingPattern, shape: tuple[int, ...]) -> Tensor:
    """Returns the tensor of `shape` of which `_tied_axes_first` makes `matrix`."""
    order = _axis_order(pattern, len(shape))
    tensor = ops.reshape(matrix, [shape[axis] for axis in order])
    return tensor if order == sorted(order) else ops.transpose(tensor, np.argsort(order).tolist())


def _rows_to_average(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns a kernel as a matrix with one row for each position, in the dtype in which it is averaged."""
    check_fits(pattern, tuple(kernel.shape))
    dtype = backend.standardize_dtype(kernel.dtype)
    if not backend.is_float_dtype(dtype):
        raise TyingError(f"Kernels of a float dtype are averaged. Received dtype={dtype!r}. Cast the kernel first.")
    return ops.cast(_tied_axes_first(kernel, pattern, (pattern.labels.size, -1)), averaging_dtype(dtype))


def _is_small(pattern: TyingPattern) -> bool:
    """Returns whether rows are taken one by one: compiled into one pass, that takes a tenth of the time of gathering them."""
    return pattern.labels.size <= 128  # beyond, as for matrices, there are too many operations to compile


def _expand_rows(free: list[Tensor], pattern: TyingPattern) -> list[Tensor]:
    """Returns the row of each position for the row of each group."""
    positions = zip(pattern.labels.ravel(), pattern.signs.ravel(), strict=True)
    by_sign = {1: lambda row: row, -1: ops.negative, 0: ops.zeros_like}
    return [by_sign[int(sign)](free[label]) for label, sign in positions]


def _average_rows(kernel: list[Tensor], pattern: TyingPattern) -> list[Tensor]:
    """Returns the row of each group for the row of each position."""
    labels, signs = pattern.labels.ravel(), pattern.signs.ravel()
    groups = (np.flatnonzero(labels == group) for group in range(pattern.num_free))
    return [_mean([kernel[one] if signs[one] > 0 else ops.negative(kernel[one]) for one in members]) for members in groups]


def _mean(rows: list[Tensor]) -> Tensor:
    anchor, *others = rows
    if not others:
        return anchor
    total = others[0] - anchor
    for row in others[1:]:
        total = total + (row - anchor)
    return anchor + total / len(rows)


def _expand_matrix(free: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the matrix with a row for each position for one with a row for each group."""
    values = _take(free, np.maximum(pattern.labels, 0).ravel())
    signs = pattern.signs.reshape(-1, 1)
    if (signs < 0).any():
        values = ops.where(signs < 0, ops.negative(values), values)
    if (signs == 0).any():
        values = ops.where(signs == 0, ops.zeros_like(values), values)
    return values


def _average_matrix(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the matrix with a row for each group for one with a row for each position."""
    labels, members = zip(*pattern.groups_by_size, strict=True)
    means = [_mean_of_equal_groups(kernel, positions, pattern.signs.ravel()[positions]) for positions in members]
    return means[0] if len(means) == 1 else _take(ops.concatenate(means), np.argsort(np.concatenate(labels)))


def _take(matrix: Tensor, indices: np.ndarray) -> Tensor:
    """Returns rows of `matrix`."""
    # The dtype is given because Keras makes floats of NumPy's integers on JAX where `keras.config.floatx()` is bfloat16.
    return ops.take(matrix, ops.convert_to_tensor(indices, dtype="int32"), axis=0)


def _mean_of_equal_groups(rows: Tensor, members: np.ndarray, signs: np.ndarray) -> Tensor:
    """Returns the signed mean over each group of rows, for `(g, n)` members a matrix of `g` rows."""
    groups = ops.reshape(_take(rows, members.ravel()), (*members.shape, -1))
    if (signs < 0).any():
        groups = ops.where(signs[..., None] < 0, ops.negative(groups), groups)
    anchor = groups[:, 0]
    if members.shape[1] == 1:
        return anchor
    # No `ops.mean`: on JAX and torch it takes means of float64 in float32.
    return anchor + ops.sum(groups - anchor[:, None], axis=1) / members.shape[1]
