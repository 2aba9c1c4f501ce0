"""The products of group sums with free weights: dense, in groups of channels, depthwise.

Free weights are `(K, in / groups, out)`; sums are lists of K tensors `(batch, *spatial, channels)`, whose last two axes
may be one where the product `merges_rows`.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kernel_tying.algebra import Tensor


class DenseProduct:
    """Every output sees every input: matrix products."""

    merges_rows = True

    def __init__(self, free: Tensor, groups: int):
        self.free = free
        self.shape = tuple(free.shape)

    def convolve(self, sums: list[Tensor]) -> Tensor:
        """Returns `sum_g s_g theta_g`, one row for each sample and position."""
        count, channels, filters = self.shape
        return ops.matmul(_side_by_side(sums, channels), ops.reshape(self.free, (count * channels, filters)))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns `sum_g z_g theta_g^T`, and the matrix `(in, K * out)` of all `x^T z_g`."""
        count, channels, filters = self.shape
        stacked = _side_by_side(sums, filters)
        adjoint = ops.reshape(ops.transpose(self.free, (0, 2, 1)), (count * filters, channels))
        return ops.matmul(stacked, adjoint), ops.matmul(ops.transpose(_rows(inputs, channels)), stacked)

    def zeros(self) -> Tensor:
        """Returns the second gradient before any sample is seen."""
        count, channels, filters = self.shape
        return ops.zeros((channels, count * filters), dtype=self.free.dtype)

    def as_free(self, gradient: Tensor) -> Tensor:
        """Returns the second gradient in the shape of the free weights."""
        count, channels, filters = self.shape
        return ops.transpose(ops.reshape(gradient, (channels, count, filters)), (1, 0, 2))


class GroupedProduct(DenseProduct):
    """Channels in groups see each other: a product of tensors with an axis for the groups, g below."""

    def __init__(self, free: Tensor, groups: int):
        super().__init__(free, groups)
        self.split = (groups, free.shape[-1] // groups)
        self.free = ops.reshape(free, (*free.shape[:-1], *self.split))

    def convolve(self, sums: list[Tensor]) -> Tensor:
        products = (ops.einsum("rgc,cgf->rgf", self._inputs(one), self.free[index]) for index, one in enumerate(sums))
        return ops.reshape(_total(products), (-1, self.shape[-1]))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        stacked = ops.stack([_rows(one, *self.split) for one in sums])
        gradient = ops.einsum("krgf,kcgf->rgc", stacked, self.free)
        return ops.reshape(gradient, (-1, inputs.shape[-1])), ops.einsum("rgc,krgf->kcgf", self._inputs(inputs), stacked)

    def zeros(self) -> Tensor:
        return ops.zeros_like(self.free)

    def as_free(self, gradient: Tensor) -> Tensor:
        return ops.reshape(gradient, self.shape)

    def _inputs(self, inputs: Tensor) -> Tensor:
        return _rows(inputs, self.split[0], self.shape[1])


class DepthwiseProduct(GroupedProduct):
    """Each channel is on its own: products entry by entry, without an axis for the groups, on which XLA's loops are slow."""

    merges_rows = False

    def __init__(self, free: Tensor, groups: int):
        super().__init__(free, groups)
        self.free = ops.reshape(free, (free.shape[0], -1))

    def convolve(self, sums: list[Tensor]) -> Tensor:
        return _total(self._spread(one) * self.free[index] for index, one in enumerate(sums))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        inputs, parts = self._spread(inputs), [_rows(one, one.shape[-1]) for one in sums]
        gradient = _total(part * self.free[index] for index, part in enumerate(parts))
        free_gradient = ops.stack([ops.sum(inputs * part, axis=0) for part in parts])
        return gradient if self.split[1] == 1 else ops.sum(_rows(gradient, *self.split), axis=-1), free_gradient

    def _spread(self, inputs: Tensor) -> Tensor:
        """Returns each channel as often as there are filters for it."""
        rows, filters = _rows(inputs, inputs.shape[-1]), self.split[1]
        return rows if filters == 1 else ops.repeat(rows, filters, axis=-1)


def product_of(free: Tensor, groups: int) -> DenseProduct:
    """Returns the product with free weights for a number of groups of channels."""
    if groups == 1:
        return DenseProduct(free, groups)
    return (DepthwiseProduct if free.shape[1] == 1 else GroupedProduct)(free, groups)


def _side_by_side(sums: list[Tensor], channels: int) -> Tensor:
    """Returns a matrix with a row of all sums for each sample and position.

    Updates of a part each fuse with the sums, where XLA would concatenate rows by a loop of small copies.
    """
    parts = [_rows(one, channels) for one in sums]
    matrix = ops.zeros((ops.shape(parts[0])[0], len(parts) * channels), dtype=parts[0].dtype)
    for index, part in enumerate(parts):
        matrix = ops.slice_update(matrix, (0, index * channels), part)
    return matrix


def _rows(tensor: Tensor, *shape: int) -> Tensor:
    return ops.reshape(tensor, (-1, *shape))


def _total(tensors: Any) -> Tensor:
    """Returns the sum of tensors. The builtin `sum` would begin with an addition of 0."""
    first, *rest = tensors
    for one in rest:
        first = first + one
    return first
