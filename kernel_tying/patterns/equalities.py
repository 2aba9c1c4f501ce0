"""A pattern as equalities between flat positions of a kernel, `kernel[first] == sign * kernel[second]`."""

from __future__ import annotations

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.patterns.canonical import first_with_label
from kernel_tying.patterns.sizes import check_positions


def solved(size: int, first: np.ndarray, second: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns label and sign of each of `size` positions, in the finest partition with the given equalities.

    The groups are the connected components of a graph with two nodes, (p, +) and (p, -), per position p. An equality
    `k[p] = s k[q]` connects (p, +) to (q, s), and (p, -) to (q, -s). A position connected to its own negative is pinned.

    Args:
        size: number of positions.
        first: integer array of flat positions.
        second: integer array of flat positions, same shape as `first`.
        signs: +1 or -1 for each pair. -1 pins a position that is paired with itself.
    """
    dtype = np.int32 if 2 * size < 2**31 else np.int64  # memory limits the size of patterns
    first, second = first.astype(dtype), second.astype(dtype)
    # Node p is (p, +), and node size + p is (p, -).
    flip = np.where(signs < 0, dtype(size), dtype(0))
    equalities = (first, second + flip)
    negated_equalities = (first + dtype(size), second + dtype(size) - flip)
    component = _components(2 * size, [equalities, negated_equalities])
    positive, negative = component[:size], component[size:]
    is_pinned = positive == negative
    labels = np.where(is_pinned, -1, np.minimum(positive, negative))
    return labels, np.where(is_pinned, 0, np.where(positive < negative, 1, -1))


def _components(size: int, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns for each of `size` nodes the smallest node of its connected component; `edges` are pairs of node arrays."""
    # Union-find on whole arrays: hook both ends of each edge, and their roots, to the lower root. Then halve all paths.
    smallest = np.arange(size, dtype=edges[0][0].dtype)
    while True:
        before = smallest.copy()
        for first, second in edges:
            lowest = np.minimum(smallest[first], smallest[second])
            for end in (first, second):
                np.minimum.at(smallest, smallest[end], lowest)
                np.minimum.at(smallest, end, lowest)
        smallest = smallest[smallest]
        if np.array_equal(before, smallest):
            return smallest


def implied(labels: np.ndarray, signs: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the equalities of a canonical pattern, lifted to `shape`: positions, the anchor of each, and the sign.

    A pin is `k[p] = -k[p]`.
    """
    labels, signs = lifted(labels, signs, shape)
    positions = np.arange(labels.size)
    is_pinned = signs == 0
    return positions, np.where(is_pinned, positions, first_with_label(labels)), np.where(is_pinned, -1, signs)


def lifted(labels: np.ndarray, signs: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns flat labels and signs of the pattern of `shape` that ties the same kernels.

    Each index along a free axis gets its own groups. Labels need not be canonical.
    """
    padded = _padded(labels.shape, len(shape))
    free_sizes = tuple(size if own_size == 1 else 1 for own_size, size in zip(padded, shape, strict=True))
    free_index = np.arange(np.prod(free_sizes)).reshape(free_sizes)
    own_labels = labels.reshape(padded) + (labels.max() + 1) * free_index
    signs = np.broadcast_to(signs.reshape(padded), shape).ravel()
    return np.where(signs == 0, -1, np.broadcast_to(own_labels, shape).ravel()), signs


def common_shape(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape to which patterns of both shapes lift: missing axes are appended, axes of size 1 broadcast.

    Raises:
        TyingError: both patterns tie an axis but with different sizes.
    """
    rank = max(len(first), len(second))
    try:
        shape = np.broadcast_shapes(_padded(first, rank), _padded(second, rank))
    except ValueError:
        raise TyingError(
            f"Patterns that are combined or compared must agree along the axes that both tie. "
            f"Received shapes {first} and {second}. Make both for the same kernel size."
        ) from None
    check_positions(shape)
    return shape


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Returns `shape` with axes of size 1 appended up to `rank`."""
    return shape + (1,) * (rank - len(shape))
