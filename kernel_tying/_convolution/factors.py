"""A tied kernel as a sum of factored kernels: a fixed kernel of signs, convolved with a small kernel of free weights.

Tied groups with equal members, up to a shift `o_g` and a sign `s_g`, share their kernel of signs `D`. If their shifts lie on a
grid, the groups together are the convolution `D * W` with `W[o_g] = s_g theta_g`. The 5x5 kernel of nine free weights, with
corners of 2x2 equal values, is the sum of four such products: 2x2, 1x2, 2x1 and 1x1 times 2x2, 2x1, 1x2 and 1x1 free weights.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np

from kernel_tying._convolution.lines import Offset, box_of, ends_of, outer_products, reach_of
from kernel_tying._convolution.sums import Grid, grid_of, members
from kernel_tying.patterns.pattern import TyingPattern

_Shape = tuple[tuple[Offset, int], ...]  # offsets and signs of a group's members, from the first


class Signs(NamedTuple):
    """A fixed kernel of signs, whose entries are `spacing` apart along each axis.

    Attributes:
        shape: the number of entries along each axis.
        entries: the signs, in the order of `itertools.product`. Numbers rather than an array, which Dynamo would trace.
        spacing: the distance between entries, per axis.
    """

    shape: Offset
    entries: tuple[int, ...]
    spacing: Offset

    @property
    def reach(self) -> Offset:
        """The distance from the first to the last entry, per axis."""
        return reach_of(self.shape, self.spacing)


class Part(NamedTuple):
    """A summand of `D`, the convolution of `stages` one after the other. Its first entry is at `start` in `D`."""

    start: Offset
    stages: tuple[Signs, ...]

    @property
    def reach(self) -> Offset:
        """The distance from the first to the last entry, per axis."""
        return tuple(map(sum, zip(*(stage.reach for stage in self.stages), (0,) * len(self.start), strict=True)))


class Factor(NamedTuple):
    """Tied groups that one kernel of signs `D` and one kernel of free weights `W` convolve together.

    Attributes:
        parts: the summands of `D`. A single part without stages is the identity.
        groups: the indices of the groups, in the order of their positions on the grid.
        group_signs: the sign of each group.
        start: the offset of the first group.
        grid: the positions of the groups.
    """

    parts: tuple[Part, ...]
    groups: tuple[int, ...]
    group_signs: tuple[int, ...]
    start: Offset
    grid: Grid

    def alone(self) -> Iterator[Factor]:
        """Yields a factor for each group, on a grid of one position."""
        unit = (1,) * len(self.start)
        positions = itertools.product(*map(range, self.grid.counts))
        for group, sign, position in zip(self.groups, self.group_signs, positions, strict=True):
            offset = tuple(map(operator.mul, position, self.grid.spacing))
            start = tuple(map(operator.add, self.start, offset))
            yield Factor(self.parts, (group,), (sign,), start, Grid(unit, unit))

    @property
    def grid_reach(self) -> Offset:
        """The distance from the first to the last position of the grid, per axis."""
        return reach_of(*self.grid)


@lru_cache(maxsize=256)
def factors(pattern: TyingPattern, kernel_size: Offset) -> tuple[Factor, ...]:
    """Returns the factors of a pattern, which ties spatial axes only. Their sum is the tied kernel."""
    similar: dict[_Shape, dict[Offset, tuple[int, int]]] = defaultdict(dict)
    for group, positions in enumerate(members(pattern, kernel_size)):
        start, sign, shape = _normalized(positions)
        similar[shape][start] = group, sign
    found = []
    for shape, by_start in similar.items():
        parts = _parts(box_of(shape))
        for starts, grid in _grids(sorted(by_start)):
            groups, group_signs = zip(*(by_start[start] for start in starts), strict=True)
            found.append(Factor(parts, groups, group_signs, starts[0], grid))
    return tuple(found)


def _normalized(positions: list[tuple[Offset, int]]) -> tuple[Offset, int, _Shape]:
    """Returns the lowest offset of a group's members, the sign of the first, and the members relative to these two."""
    start, _ = ends_of(offset for offset, _ in positions)
    sign = positions[0][1]
    shape = tuple((tuple(map(operator.sub, offset, start)), sign * own) for offset, own in positions)
    return start, sign, shape


def _parts(box: np.ndarray) -> tuple[Part, ...]:
    """Returns a kernel of signs as the cheaper of itself and a sum of outer products of lines."""
    whole = (_part([box]),)
    lines = tuple(map(_part, outer_products(box)))
    return min(whole, lines, key=_cost)


def _cost(parts: tuple[Part, ...]) -> int:
    """Returns the number of entries that are multiplied, plus three for each part, measured in runtimes."""
    return sum(3 + sum(len(stage.entries) for stage in part.stages) for part in parts)


def _part(arrays: list[np.ndarray]) -> Part:
    """Returns the outer product of arrays as a part: one kernel, or one per array if these have less than half the entries."""
    starts, spacings, lines = zip(*map(_without_empty_lines, arrays), strict=True)
    product = reduce(np.multiply, lines)
    stages = [(product, tuple(map(max, zip(*spacings, strict=True))))]
    if product.size > 2 * sum(line.size for line in lines):
        stages = list(zip(lines, spacings, strict=True))
    needed = (Signs(values.shape, tuple(values.ravel().tolist()), spacing) for values, spacing in stages)
    start = tuple(map(sum, zip(*starts, strict=True)))
    return Part(start, tuple(signs for signs in needed if signs.entries != (1,)))


def _without_empty_lines(array: np.ndarray) -> tuple[Offset, Offset, np.ndarray]:
    """Returns offset and spacing of the evenly spaced lines that hold all entries of an array, and these lines."""
    offsets = np.argwhere(array)
    start, end = offsets.min(axis=0), offsets.max(axis=0) + 1
    spacing = np.maximum(np.gcd.reduce(offsets - start, axis=0), 1)
    return tuple(start.tolist()), tuple(spacing.tolist()), array[tuple(map(slice, start, end, spacing))]


def _grids(starts: list[Offset]) -> list[tuple[list[Offset], Grid]]:
    """Returns sorted offsets in parts that lie on grids: all together, else by lines along the last axis, else each alone."""
    grid = grid_of(starts)
    if grid:
        return [(starts, grid)]
    parts = []
    for _, line in itertools.groupby(starts, key=lambda start: start[:-1]):
        on_line = list(line)
        grid = grid_of(on_line)
        unit = (1,) * len(on_line[0])
        parts += [(on_line, grid)] if grid else [([start], Grid(unit, unit)) for start in on_line]
    return parts
