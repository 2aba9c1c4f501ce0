"""The products of group sums with free weights: dense, by channel groups, depthwise.

Free weights have shape `(K, in / channel_groups, out)`. Sums are lists of K tensors `(batch, *spatial, channels)`. If the
product `allows_merged_axes`, their last two axes may be merged into one. A row stands for one sample and spatial position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from keras import ops

from kernel_tying.algebra import Tensor


class Product(ABC):
    """A product of group sums with free weights `theta`, and its gradients."""

    allows_merged_axes = True

    @abstractmethod
    def convolve(self, sums: list[Tensor]) -> Tensor:
        """Returns `sum_g s_g theta_g`, a matrix of rows."""

    @abstractmethod
    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the input gradient, `sum_g z_g theta_g^T`, and the free gradient, all `x^T z_g` in the layout of `zeros`."""

    @abstractmethod
    def zeros(self) -> Tensor:
        """Returns the zero free gradient, to which the gradients of chunks are added."""

    @abstractmethod
    def as_free(self, gradient: Tensor) -> Tensor:
        """Returns the free gradient, given in the layout of `zeros`, in the shape of the free weights."""


@final
class DenseProduct(Product):
    """Every output channel depends on every input channel: matrix products. `zeros` is a matrix `(in, K * out)`."""

    def __init__(self, free: Tensor):
        self.free = free
        self.shape = tuple(free.shape)

    def convolve(self, sums: list[Tensor]) -> Tensor:
        count, channels, filters = self.shape
        return ops.matmul(_side_by_side(sums, channels), ops.reshape(self.free, (count * channels, filters)))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        count, channels, filters = self.shape
        stacked = _side_by_side(sums, filters)
        adjoint = ops.reshape(ops.transpose(self.free, (0, 2, 1)), (count * filters, channels))
        free_gradient = ops.matmul(ops.transpose(_rows(inputs, channels)), stacked)
        return ops.matmul(stacked, adjoint), free_gradient

    def transposed(self, sums: list[Tensor], upstream: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns all `dy theta_g^T`, matrices of rows, and the free gradient `s_g^T dy` as a matrix `(K * in, out)`."""
        _, channels, filters = self.shape
        rows = _rows(upstream, filters)
        free_gradient = ops.matmul(ops.transpose(_side_by_side(sums, channels)), rows)
        parts = ops.matmul(rows, ops.transpose(ops.reshape(self.free, (-1, filters))))
        return ops.split(parts, len(sums), axis=-1), free_gradient

    def zeros(self) -> Tensor:
        count, channels, filters = self.shape
        return ops.zeros((channels, count * filters), dtype=self.free.dtype)

    def as_free(self, gradient: Tensor) -> Tensor:
        count, channels, filters = self.shape
        return ops.transpose(ops.reshape(gradient, (channels, count, filters)), (1, 0, 2))


@final
class GroupedProduct(Product):
    """Channel groups are convolved separately, with weights `(K, in / channel_groups, channel_groups, out / channel_groups)`.

    Axes of the einsums are r: rows, k: tied groups, h: channel groups, c: channels and f: filters of a channel group.
    """

    def __init__(self, free: Tensor, channel_groups: int):
        self.shape = tuple(free.shape)
        self.split = (channel_groups, free.shape[-1] // channel_groups)
        self.free = ops.reshape(free, (*free.shape[:-1], *self.split))

    def convolve(self, sums: list[Tensor]) -> Tensor:
        products = (
            ops.einsum("rhc,chf->rhf", self._by_channel_group(part), self.free[index]) for index, part in enumerate(sums)
        )
        return ops.reshape(total(products), (-1, self.shape[-1]))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        stacked = ops.stack([_rows(part, *self.split) for part in sums])
        input_gradient = ops.einsum("krhf,kchf->rhc", stacked, self.free)
        free_gradient = ops.einsum("rhc,krhf->kchf", self._by_channel_group(inputs), stacked)
        return ops.reshape(input_gradient, (-1, inputs.shape[-1])), free_gradient

    def zeros(self) -> Tensor:
        return ops.zeros_like(self.free)

    def as_free(self, gradient: Tensor) -> Tensor:
        return ops.reshape(gradient, self.shape)

    def _by_channel_group(self, inputs: Tensor) -> Tensor:
        """Returns inputs as rows `(channel_groups, in / channel_groups)`."""
        return _rows(inputs, self.split[0], self.shape[1])


@final
class DepthwiseProduct(Product):
    """Each channel is convolved on its own: elementwise products, tied group by tied group. XLA is slow on an axis of them."""

    allows_merged_axes = False

    def __init__(self, free: Tensor, channel_groups: int):
        self.shape = tuple(free.shape)
        self.split = (channel_groups, free.shape[-1] // channel_groups)
        self.free = ops.reshape(free, (free.shape[0], -1))

    def convolve(self, sums: list[Tensor]) -> Tensor:
        return total(self._repeated(part) * self.free[index] for index, part in enumerate(sums))

    def gradients(self, inputs: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        inputs, parts = self._repeated(inputs), [_rows(part, part.shape[-1]) for part in sums]
        gradient = total(part * self.free[index] for index, part in enumerate(parts))
        free_gradient = ops.stack([ops.sum(inputs * part, axis=0) for part in parts])
        input_gradient = gradient if self.split[1] == 1 else ops.sum(_rows(gradient, *self.split), axis=-1)
        return input_gradient, free_gradient

    def zeros(self) -> Tensor:
        return ops.zeros_like(self.free)

    def as_free(self, gradient: Tensor) -> Tensor:
        return ops.reshape(gradient, self.shape)

    def _repeated(self, inputs: Tensor) -> Tensor:
        """Returns each channel once per filter of that channel, as rows."""
        rows, filters = _rows(inputs, inputs.shape[-1]), self.split[1]
        return rows if filters == 1 else ops.repeat(rows, filters, axis=-1)


def product_of(free: Tensor, channel_groups: int) -> Product:
    """Returns the product with the free weights `free` for a number of channel groups."""
    if channel_groups == 1:
        return DenseProduct(free)
    is_depthwise = free.shape[1] == 1
    return DepthwiseProduct(free, channel_groups) if is_depthwise else GroupedProduct(free, channel_groups)


def _side_by_side(sums: list[Tensor], channels: int) -> Tensor:
    """Returns a matrix of rows, each of which holds all sums at its position."""
    # Slice updates, because XLA fuses them with the sums. It would make a concatenation a loop of small copies.
    parts = [_rows(part, channels) for part in sums]
    matrix = ops.zeros((ops.shape(parts[0])[0], len(parts) * channels), dtype=parts[0].dtype)
    for index, part in enumerate(parts):
        matrix = ops.slice_update(matrix, (0, index * channels), part)
    return matrix


def _rows(tensor: Tensor, *shape: int) -> Tensor:
    return ops.reshape(tensor, (-1, *shape))


def total(tensors: Any) -> Tensor:
    """Returns the sum of tensors, without the addition of 0 with which the builtin `sum` begins."""
    total, *rest = tensors
    for tensor in rest:
        total = total + tensor
    return total
