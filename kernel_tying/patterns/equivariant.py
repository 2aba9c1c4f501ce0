"""Patterns of kernels that make layers equivariant under a group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns import groups
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.nesting import integers
from kernel_tying.patterns.pattern import TyingPattern, tie
from kernel_tying.patterns.sizes import kernel_size

FieldType = str | Sequence[ArrayLike]


@recorded
def equivariant(
    size: Sequence[int], group: str | Group, in_type: FieldType = "trivial", out_type: FieldType = "regular"
) -> TyingPattern:
    """Returns the pattern of kernels that commute with `group`: `k[u x, u h, u g] == k[x, h, g]` for every element `u`.

    `x` is a position, `h` a channel of an input field, `g` a channel of an output field. A layer with such a kernel is
    equivariant: if the group acts on its input, it acts on its output too. The type of a field says how:

    - `"trivial"`: one channel, which the group only moves along the spatial axes, as in a gray image.
    - `"regular"`: one channel for each element of the group. `u` also moves channel `h` to channel `group.table[u, h]`.
    - a signed permutation of the channels for each generator of the group, a matrix with one entry +1 or -1 in each row
      and column. `[[[0, -1], [1, 0]]]` turns vectors `(y, x)` under `p4`; `[np.eye(4)[::-1]]` complements the letters
      ACGT under `reversal`.

    Source: Cohen and Welling, Group Equivariant Convolutional Networks (arXiv 1602.07576).

    Args:
        size: kernel size: `()` for Dense, `(1, 1)` for 1x1 kernels. The group acts on the first axes, as many as its rank.
        group: a `Group`, or its name, such as "p4m".
        in_type: type of the input fields.
        out_type: type of the output fields.

    Returns:
        A pattern of shape `(*size, in, out)`, the numbers of channels of an input field and of an output field. For a
        transposed convolution, whose kernel is `(*size, out, in)`, swap the types. For a depthwise kernel
        `(*size, in, 1)`, use `in_type="regular", out_type="trivial"`.

    Raises:
        TyingError: the group does not map `size` onto itself, a type is not a representation of the group, or only the
            zero kernel is equivariant.

    Example:

    >>> lifting = equivariant((3, 3), "p4m")
    >>> lifting.shape, lifting.num_free
    ((3, 3, 1, 8), 9)
    >>> equivariant((3, 3), "p4m", "regular", "regular").num_free
    72
    >>> equivariant((), "p4", "regular", "trivial")
    TyingPattern.parse('A/A/A/A')
    """
    group = groups.get(group)
    sizes = () if isinstance(size, (tuple, list)) and not size else kernel_size(size)
    given_types = {"in_type": in_type, "out_type": out_type}
    return commuting(sizes, group, *(channel_moves(group, given, name) for name, given in given_types.items()))


def commuting(size: tuple[int, ...], group: Group, in_moves: np.ndarray, out_moves: np.ndarray) -> TyingPattern:
    """Returns the pattern of kernels of shape `(*size, in, out)` that commute with `group`.

    `in_moves` and `out_moves` are what each generator makes of the channels, as `channel_moves` returns them.
    """
    shape = kernel_size((*size, in_moves.shape[1], out_moves.shape[1]))
    moves = group.moves(size) if size else np.ones((len(group.generators), 1), np.int64)
    joint = np.concatenate([_joint(*of_generator) for of_generator in zip(moves, in_moves, out_moves, strict=True)])
    positions = np.tile(np.arange(np.prod(shape)), len(group.generators))
    return tie(shape, positions, np.abs(joint) - 1, np.sign(joint))


def _joint(*images: np.ndarray) -> np.ndarray:
    """Returns the signed permutation of the positions of a kernel, flat, from those along its axes."""
    sources = np.ix_(*(np.abs(image) - 1 for image in images))
    flat = np.ravel_multi_index(sources, tuple(map(len, images)))
    return ((flat + 1) * reduce(np.multiply.outer, map(np.sign, images))).ravel()


def channel_moves(group: Group, given: FieldType, name: str) -> np.ndarray:
    """Returns what each generator makes of the numbers 1, 2, ... of the channels, with signs, `(generators, channels)`.

    `name` is the argument that gave the type, for messages.
    """
    count = len(group.generators)
    if isinstance(given, str) and given == "trivial":
        return np.ones((count, 1), np.int64)
    if isinstance(given, str) and given == "regular":
        return np.argsort(group.products, axis=1) + 1
    matrices = _matrices(given, count, name)
    images = matrices @ np.arange(1, matrices.shape[-1] + 1)
    if relation := group.broken_relation(images):
        raise TyingError(
            "The matrices of a type satisfy the relations among the generators of the group. "
            f"Received {name}={abbreviate(given)}, which breaks {relation} in {group}. "
            "Matrix i is the action of group.generators[i] on the channels."
        )
    return images


def _matrices(given: FieldType, count: int, name: str) -> np.ndarray:
    """Returns a type as an array of `count` signed permutation matrices."""
    try:
        matrices = integers([_whole(matrix) for matrix in given])
    except (TypeError, ValueError, OverflowError):
        matrices = np.zeros(0, np.int64)
    if not _are_signed_permutations(matrices) or len(matrices) != count:
        raise TyingError(
            "A type is 'trivial', 'regular', or for each generator of the group a matrix of 0, +1 and -1 with one entry other "
            f"than 0 in each row and column. Received {name}={abbreviate(given)} for {count} generator(s). "
            "Example: [np.eye(4)[::-1]]."
        )
    return matrices


def _are_signed_permutations(matrices: np.ndarray) -> bool:
    is_square = matrices.ndim == 3 and matrices.shape[1] == matrices.shape[2]
    if not is_square or not np.isin(matrices, (-1, 0, 1)).all():
        return False
    return all((np.count_nonzero(matrices, axis=axis) == 1).all() for axis in (1, 2))


def _whole(matrix: ArrayLike) -> ArrayLike:
    """Returns an array of floats 0.0, 1.0 and -1.0 as integers, anything else as given."""
    if isinstance(matrix, np.ndarray) and np.isin(matrix, (-1, 0, 1)).all():
        return matrix.astype(np.int64)
    return matrix
