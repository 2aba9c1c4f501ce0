"""Kernels of signs as sums of outer products of lines, one line per axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Offset = tuple[int, ...]  # along the spatial axes, in kernel positions


def reach_of(sizes: Sequence[int], steps: Sequence[int]) -> Offset:
    """Returns the distance from the first to the last of `sizes` positions that are `steps` apart, per axis."""
    return tuple((size - 1) * step for size, step in zip(sizes, steps, strict=True))


def ends_of(offsets: Iterable[Offset]) -> tuple[Offset, Offset]:
    """Returns the lowest and the highest offset along each axis."""
    axes = list(zip(*offsets, strict=True))
    return tuple(map(min, axes)), tuple(map(max, axes))


def box_of(members: Sequence[tuple[Offset, int]]) -> np.ndarray:
    """Returns an array of signs from offsets, counted from 0 along each axis, and signs."""
    box = np.zeros(np.max([offset for offset, _ in members], axis=0) + 1, dtype=int)
    for offset, sign in members:
        box[offset] = sign
    return box


def outer_products(box: np.ndarray) -> list[list[np.ndarray]]:
    """Returns arrays with one axis longer than 1 each. The sum of their outer products is `box`."""
    if box.ndim == 1:
        return [[box]]
    lines: dict[bytes, np.ndarray] = {}  # by the slab, up to a sign, that they multiply
    for index, slab in enumerate(box):
        if slab.any():
            sign = slab[slab != 0][0]
            lines.setdefault((slab * sign).tobytes(), np.zeros(len(box), dtype=int))[index] = sign
    products = []
    for slab, line in lines.items():
        own = line.reshape(-1, *(1 for _ in box.shape[1:]))
        for rest in outer_products(np.frombuffer(slab, dtype=int).reshape(box.shape[1:])):
            products.append([own, *(other[np.newaxis] for other in rest)])
    return products
