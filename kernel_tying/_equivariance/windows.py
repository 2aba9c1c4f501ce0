"""Exactness of windows: whether a layer sees its input the same way from both ends of an axis."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.patterns.groups import Group


class Window(NamedTuple):
    """A window that slides along one axis.

    Attributes:
        extent: positions from its first to its last, with dilation.
        stride: its step.
        padding: "valid", "same", or another padding, which is not symmetric.
    """

    extent: int
    stride: int
    padding: str

    def is_symmetric(self, size: int | None) -> bool:
        """Returns whether the windows of an axis of `size` are symmetric: equal padding at both ends, no remainder."""
        if self.padding == "same" and self.stride == 1:
            return self.extent % 2 == 1
        if size is None:
            return self.padding == "valid" and self.stride == 1
        if self.padding == "valid":
            return size >= self.extent and (size - self.extent) % self.stride == 0
        padded = (-(-size // self.stride) - 1) * self.stride + self.extent - size
        return self.padding == "same" and padded >= 0 and padded % 2 == 0

    def is_symmetric_transposed(self) -> bool:
        """Returns whether the outputs of a transposed convolution are cut equally at both ends."""
        excess = self.extent - self.stride
        return excess >= 0 and (self.padding == "valid" or excess % 2 == 0)

    def way_out(self, size: int | None) -> str:
        """Returns what makes the windows of an axis symmetric."""
        if size is None and self._fitting(range(1, 65)):
            return "Give the model's Input a fixed size."
        near = [self._fitting(range(size - 1, 0, -1)), self._fitting(range(size + 1, size + 65))] if size else []
        fitting = " or ".join(str(sizes[0]) for sizes in near if sizes)
        if fitting:
            return f"Size {fitting} fits there: change the input's size, or pad or crop symmetrically in front of the layer."
        return "Use padding='valid', or an odd kernel size with padding='same'."

    def _fitting(self, sizes: range) -> list[int]:
        return [size for size in sizes if self.is_symmetric(size)]


def reversed_axes(group: Group) -> list[int]:
    """Returns the axes of the grid that some element reverses: all that it does not map onto an axis in order."""
    axes = np.indices((3,) * group.rank)
    return [
        axis for axis in range(group.rank) if not all(_keeps_order(element(axes[axis]), axes) for element in group.elements)
    ]


def _keeps_order(image: np.ndarray, axes: np.ndarray) -> bool:
    return any(np.array_equal(image, axis) for axis in axes)


def is_symmetry(group: Group) -> bool:
    """Returns whether each generator permutes and reverses axes, and does nothing else."""
    grid = np.arange(5**group.rank).reshape((5,) * group.rank)
    images = [(move - 1).reshape(grid.shape) for move in group.moves(grid.shape)]
    axes = range(group.rank)
    permuted = [np.transpose(grid, order) for order in itertools.permutations(axes)]
    flips = itertools.chain.from_iterable(itertools.combinations(axes, count) for count in range(group.rank + 1))
    symmetries = {np.flip(image, flip).tobytes() for image, flip in itertools.product(permuted, flips)}
    return all(image.tobytes() in symmetries for image in images)


def is_exchangeable(group: Group, values: tuple[object, ...]) -> bool:
    """Returns whether `values`, one for each axis of the grid, are equal where the group exchanges axes."""
    distinct = list(dict.fromkeys(values))
    try:
        group.moves(tuple(3 + distinct.index(value) for value in values))
    except TyingError:
        return False
    return True
