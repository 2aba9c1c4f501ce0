"""Fields: how the axes of a kernel and of its free weights align with the axes of a pattern.

The last two axes of a kernel, and the only axis of a bias, are not spatial. Their size may be a multiple of the pattern's.
Such an axis consists of **fields** of the pattern's size, side by side: `channel = field * size + member`. The pattern ties
each field, and each combination of fields has its own free weights. In the free weights `theta` a tied axis holds one entry
for each field, the first tied axis K for each field. A kernel `(3, 3, 16, 24)` under a pattern `(3, 3, 8, 8)` of 72 groups
has free weights `(72, 1, 2, 3)`.
"""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.pattern import TyingPattern


def free_shape(shape: tuple[int, ...], pattern: TyingPattern) -> tuple[int, ...]:
    """Returns the shape of the free weights of a kernel of `shape`.

    Raises:
        TyingError: the pattern does not fit `shape`.
    """
    check_fits(pattern, shape)
    return resized(shape, pattern.shape, pattern.free_shape)


def fields(shape: tuple[int, ...], pattern: TyingPattern) -> tuple[int, ...]:
    """Returns the number of fields along each axis of a kernel of `shape`, which is the size of a free axis.

    Raises:
        TyingError: the pattern does not fit `shape`.
    """
    check_fits(pattern, shape)
    return resized(shape, pattern.shape, (1,) * len(pattern.shape))


def check_fits(pattern: TyingPattern, shape: tuple[int, ...], num_spatial: int | None = None) -> None:
    """Raises a `TyingError` unless `pattern` fits a kernel of `shape`, `(*spatial, in, out)`.

    With `num_spatial` axes that are spatial, `shape` may be the part of a kernel's shape that is known.
    """
    _check_pattern(pattern)
    if not _consists_of_fields(shape, pattern.shape, pattern, len(shape) - 2 if num_spatial is None else num_spatial):
        raise TyingError(
            "A pattern fits a kernel if the spatial axes that it ties have the kernel's sizes, counted from the first axis, "
            f"and its sizes along the last two axes divide the kernel's. Received a pattern of shape {pattern.shape} for a "
            f"kernel of shape {shape}. Make the pattern for that kernel size."
        )


def check_free_shape(shape: tuple[int, ...], pattern: TyingPattern) -> None:
    """Raises a `TyingError` unless free weights of `pattern` can have `shape`."""
    _check_pattern(pattern)
    if not _consists_of_fields(shape, pattern.free_shape, pattern, len(shape) - 2):
        raise TyingError(
            f"Free weights hold the {pattern.num_free} groups along axis {pattern.tied_axes[0]}, and have size 1 along the "
            "other tied axes. Along the last two axes the sizes are multiples of these. "
            f"Received shape {shape} for a pattern of shape {pattern.shape}. `average` makes them from a kernel."
        )


def _check_pattern(pattern: TyingPattern) -> None:
    if not isinstance(pattern, TyingPattern):
        raise TyingError(
            f"A kernel is tied by a TyingPattern. Received {abbreviate(pattern)}. `patterns.named(name, size)` makes one."
        )


def _consists_of_fields(shape: tuple[int, ...], members: tuple[int, ...], pattern: TyingPattern, num_spatial: int) -> bool:
    """Returns whether tied axes have the size of one field, or of several if they are not spatial."""
    if shape[: len(members)] == members:
        return True
    return len(members) <= len(shape) and all(
        shape[axis] == members[axis] or (axis >= num_spatial and shape[axis] and shape[axis] % members[axis] == 0)
        for axis in pattern.tied_axes
    )


def resized(shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in which fields of size `source` along the first axes have size `target`."""
    sizes = zip(shape, source, target, strict=False)
    return tuple(size // old * new for size, old, new in sizes) + shape[len(source) :]


def fields_apart(shape: tuple[int, ...], members: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Returns the shape in which fields and members have axes of their own, and the order with axes of members first."""
    split: list[int] = []
    member_axes, field_axes = [], []
    for size, field_size in zip_longest(shape, members, fillvalue=1):
        field_axes.append(len(split))
        split.append(size // field_size)
        if field_size > 1:
            member_axes.append(len(split))
            split.append(field_size)
    return split, member_axes + field_axes


def root_group_sizes(pattern: TyingPattern, shape: tuple[int, ...]) -> np.ndarray:
    """Returns `sqrt(group size)` of free weights of `shape`, as an array of size 1 along all but the first tied axis."""
    axis = pattern.tied_axes[0]
    sizes = [1] * len(shape)
    sizes[axis] = int(shape[axis])  # a tensor while torch traces an ONNX model
    return np.sqrt(np.resize(pattern.group_sizes, sizes[axis])).reshape(sizes)
