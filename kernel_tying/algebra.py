"""The three operations on kernels: `expand`, `average`, and their composition `project`.

With the free weights `theta` and the 0/+1/-1 matrix `B` of a pattern (one row per position, one column per group),

    expand(theta) = B theta        average(kernel) = pinv(B) kernel        project(kernel) = B pinv(B) kernel.

`theta` keeps the kernel's rank. A kernel `(5, 5, in, out)` under a pattern of nine groups has free weights `(9, 1, in, out)`:
the first tied axis holds the K groups, the other tied axes have size 1, free axes keep their size.

Axes of channels may consist of several fields of the pattern's size. `patterns/fields.py` gives the shapes.

Inside, a kernel is a matrix with one row for each position of the pattern, and free weights are a matrix with one row for
each group. "Rows" are rows of these matrices, never rows of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import backend, ops

from kernel_tying._native import native
from kernel_tying.errors import TyingError
from kernel_tying.patterns.fields import check_fits, check_free_shape, fields_apart, free_shape, resized
from kernel_tying.patterns.gathering import Gathering, Members
from kernel_tying.patterns.pattern import TyingPattern

Tensor = Any  # a tensor of the backend, a keras.Variable or an array
Entries = tuple[tuple[int, int], ...]  # label and sign of each position


def expand(free: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the tied kernel with the given free weights, `B theta`.

    Values are copied by position, so members of a group are bit-equal or exact negatives. Positions of sign 0 are always
    zero, even if free weights are NaN. The gradient of `free` is dense: `B^T` times the gradient of the kernel.

    Args:
        free: free weights of any float dtype, in the shape that `average` returns.
        pattern: the tying pattern.

    Returns:
        A kernel of the dtype of `free`: along each axis the pattern's size times the number of fields.

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
    check_free_shape(tuple(free.shape), pattern)
    return _expanded(free, pattern)


def average(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the free weights nearest to `kernel`, `pinv(B) kernel`: the signed mean of each tied group.

    The mean is taken as `anchor + mean(member - anchor)`, with the first member as anchor, so that the average of a
    tied kernel returns its free weights bit for bit. float16 and bfloat16 are averaged in float32. NaN and infinities
    stay in their own group.

    Args:
        kernel: a kernel of any float dtype whose leading axes the pattern fits.
        pattern: the tying pattern.

    Returns:
        Free weights of the kernel's rank and dtype. The module's docstring gives their shape.

    Raises:
        TyingError: the pattern does not fit the kernel's shape.

    Example:

    >>> import numpy as np, kernel_tying as kt
    >>> pattern = kt.TyingPattern.parse("AB-A")
    >>> np.array(kt.average(np.array([1.0, 5.0, -3.0], "float32"), pattern)).tolist()
    [2.0, 5.0]
    """
    kernel = ops.convert_to_tensor(kernel)
    _check_kernel(kernel, pattern)
    return _averaged(kernel, pattern)


def project(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the tied kernel nearest to `kernel` in the Frobenius norm, `B pinv(B) kernel`.

    Arguments, errors and dtypes are those of `average`. Projecting twice equals projecting once, bit for bit.

    Example:

    >>> import numpy as np, kernel_tying as kt
    >>> np.array(kt.project(np.array([1.0, 5.0, 3.0], "float32"), kt.TyingPattern.parse("ABA"))).tolist()
    [2.0, 5.0, 2.0]
    """
    kernel = ops.convert_to_tensor(kernel)
    _check_kernel(kernel, pattern)
    return _projected(kernel, pattern)


def first_members(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns the entries at the first member of each tied group, in the shape of free weights."""
    kernel = ops.convert_to_tensor(kernel)
    shape = free_shape(tuple(kernel.shape), pattern)
    rows = native.take(_members_first(kernel, pattern.shape), pattern.anchors.copy())
    return _members_back(rows, pattern.free_shape, shape)


def relative_distance(kernel: Tensor, tied: Tensor) -> float:
    """Returns `||kernel - tied|| / ||kernel||` in the Frobenius norm: exactly 0.0 if and only if both are bit-equal.

    NaN and infinities give NaN. Values are scaled to at most 1 first, so that no norm underflows.
    """
    dtype = accumulation_dtype(backend.standardize_dtype(kernel.dtype))
    values, projected = (ops.convert_to_numpy(ops.cast(tensor, dtype)) for tensor in (kernel, tied))
    with np.errstate(invalid="ignore", over="ignore"):
        residual = values - projected
    distance, scale = _largest(residual), _largest(values)
    if distance == 0:
        return 0.0
    if not np.isfinite(distance):
        return float("nan")
    # In place, because kernels may be large. The residual is the only array that no caller owns.
    residual_norm = np.linalg.norm(np.divide(residual, distance, out=residual))
    return float(distance / scale * residual_norm / np.linalg.norm(np.divide(values, scale, out=residual)))


def _largest(array: np.ndarray) -> float:
    """Returns the largest absolute value."""
    return float(max(array.max(), -array.min()))


def free_by_group(free: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns free weights as `(groups, in, out)`. Each index along free spatial axes has K groups of its own."""
    matrix = _members_first(ops.convert_to_tensor(free), pattern.free_shape)
    return native.reshape(matrix, (-1, *free.shape[-2:]))


def accumulation_dtype(dtype: str) -> str:
    """Returns the dtype in which values of `dtype` are summed, averaged and scaled: float32 for half precision."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


@native.as_one_operation
def _expanded(free: Tensor, pattern: TyingPattern) -> Tensor:
    # Reshape to a matrix before `take`. On TensorFlow the gradient of `take` on a bare variable is sparse with repeated
    # rows, which optimizers such as Adam apply wrongly. After a reshape the gradient is dense (pinned by a test).
    values = _apply(_expand_rows, _expand_matrix, _members_first(free, pattern.free_shape), pattern)
    return _members_back(values, pattern.shape, resized(tuple(free.shape), pattern.free_shape, pattern.shape))


@native.as_one_operation
def _averaged(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    means = _apply(_average_rows, _average_matrix, _rows_to_average(kernel, pattern), pattern)
    shape = resized(tuple(kernel.shape), pattern.shape, pattern.free_shape)
    return _members_back(_cast_like(means, kernel), pattern.free_shape, shape)


@native.as_one_operation
def _projected(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    tied = _apply(_project_rows, _project_matrix, _rows_to_average(kernel, pattern), pattern)
    return _members_back(_cast_like(tied, kernel), pattern.shape, tuple(kernel.shape))


def _members_first(tensor: Tensor, members: tuple[int, ...]) -> Tensor:
    """Returns `tensor` as a matrix with one row for each member of a field, and one column for each combination of fields.

    Args:
        tensor: a tensor whose axes consist of fields side by side.
        members: the size of a field along the first axes. Other axes are free.
    """
    shape = tuple(tensor.shape)
    if shape[: len(members)] != members:
        split, order = fields_apart(shape, members)
        tensor = native.transpose(native.reshape(tensor, split), order)
    return native.reshape(tensor, (math.prod(members), -1))


def _members_back(matrix: Tensor, members: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Inverts `_members_first`: returns `matrix` as a tensor of `shape`."""
    if shape[: len(members)] != members:
        split, order = fields_apart(shape, members)
        permuted = native.reshape(matrix, [split[axis] for axis in order])
        matrix = native.transpose(permuted, np.argsort(order).tolist())
    return native.reshape(matrix, shape)


def _check_kernel(kernel: Tensor, pattern: TyingPattern) -> None:
    """Raises a `TyingError` unless `pattern` fits `kernel` and its dtype is a float."""
    check_fits(pattern, tuple(kernel.shape))
    dtype = backend.standardize_dtype(kernel.dtype)
    if not backend.is_float_dtype(dtype):
        raise TyingError(f"Kernels of a float dtype are averaged. Received dtype={dtype!r}. Cast the kernel first.")


def _rows_to_average(kernel: Tensor, pattern: TyingPattern) -> Tensor:
    """Returns `kernel` as a matrix with one row per position, in the dtype in which rows are averaged."""
    rows = _members_first(kernel, pattern.shape)
    dtype = backend.standardize_dtype(kernel.dtype)
    return rows if accumulation_dtype(dtype) == dtype else ops.cast(rows, accumulation_dtype(dtype))


def _cast_like(matrix: Tensor, kernel: Tensor) -> Tensor:
    return matrix if matrix.dtype == kernel.dtype else ops.cast(matrix, kernel.dtype)


def _apply(
    by_rows: Callable[..., list[Tensor]], by_matrix: Callable[..., Tensor], matrix: Tensor, pattern: TyingPattern
) -> Tensor:
    """Returns the result of `by_rows` or `by_matrix`, which are equal, by the faster of both."""
    # A compiler fuses rows into one pass, ten times as fast as gathering.
    if pattern.entries is not None and native.is_faster_by_rows(matrix):
        return native.stack(by_rows(native.unstack(matrix), pattern.entries))
    return by_matrix(matrix, pattern.gathering)


def _expand_rows(free: list[Tensor], entries: Entries) -> list[Tensor]:
    """Returns one row per position, from one row per group."""
    by_sign = {1: lambda row: row, -1: native.negative, 0: native.zeros_like}
    return [by_sign[sign](free[label]) for label, sign in entries]


def _average_rows(kernel: list[Tensor], entries: Entries) -> list[Tensor]:
    """Returns one row per group, from one row per position."""
    members: dict[int, list[Tensor]] = {}
    for (label, sign), row in zip(entries, kernel, strict=True):
        if sign:
            members.setdefault(label, []).append(native.negative(row) if sign < 0 else row)
    return [_mean(rows) for rows in members.values()]  # labels count by first appearance


def _project_rows(kernel: list[Tensor], entries: Entries) -> list[Tensor]:
    """Returns one tied row per position, from one row per position."""
    return _expand_rows(_average_rows(kernel, entries), entries)


def _mean(rows: list[Tensor]) -> Tensor:
    """Returns `anchor + mean(row - anchor)`, with the first row as anchor: exact if all rows are equal."""
    anchor, *others = rows
    if not others:
        return anchor
    total = others[0] - anchor
    for row in others[1:]:
        total = total + (row - anchor)
    return anchor + total / len(rows)


@native.with_indices
def _expand_matrix(free: Tensor, index: Gathering) -> Tensor:
    """Returns the matrix of one row per position, from one row per group."""
    values = native.take(free, index.labels)
    if index.is_negative is not None:
        values = native.where(native.constant(index.is_negative, values), native.negative(values), values)
    if index.is_pinned is not None:
        values = native.where(native.constant(index.is_pinned, values), native.zeros_like(values), values)
    return values


@native.with_indices
def _average_matrix(kernel: Tensor, index: Gathering) -> Tensor:
    """Returns the matrix of one row per group, from one row per position."""
    if native.is_faster_by_segments():
        return _segment_means(kernel, index)
    means = [_means(kernel, members) for members in index.members]
    return means[0] if index.order is None else native.take(native.concatenate(means), index.order)


@native.with_indices
def _project_matrix(kernel: Tensor, index: Gathering) -> Tensor:
    """Returns the tied matrix of one row per position, from one row per position."""
    return _expand_matrix(_average_matrix(kernel, index), index)


def _segment_means(rows: Tensor, index: Gathering) -> Tensor:
    """Returns the signed mean of each group, `anchor + B^T (kernel - B anchor) / size`."""
    # Without `native.constant`: only JAX sums by segments, and it accepts NumPy arrays.
    anchors = native.take(rows, index.anchors)
    members = rows if index.is_negative is None else native.where(index.is_negative, native.negative(rows), rows)
    differences = members - native.take(anchors, index.labels)
    if index.is_pinned is not None:
        differences = native.where(index.is_pinned, native.zeros_like(differences), differences)
    means = anchors + native.segment_sum(differences, index.labels, len(index.anchors)) / index.sizes
    if index.is_single is None:
        return means
    return native.where(index.is_single, anchors, means)  # keeps -0.0 and infinities


def _means(rows: Tensor, members: Members) -> Tensor:
    """Returns the signed mean of each group in `members`, one row per group."""
    groups = native.reshape(native.take(rows, members.positions.ravel()), (*members.positions.shape, rows.shape[1]))
    if members.is_negative is not None:
        groups = native.where(native.constant(members.is_negative, groups), native.negative(groups), groups)
    anchors = groups[0]
    if len(members.positions) == 1:
        return anchors
    total = native.sum_of_matrices(groups - anchors)  # repeated anchors add 0
    means = anchors + total / native.constant(members.sizes, total)
    if members.is_single is None:
        return means
    return native.where(native.constant(members.is_single, means), anchors, means)  # keeps -0.0 and infinities
