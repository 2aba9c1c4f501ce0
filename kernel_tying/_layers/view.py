"""The tied kernel as a variable: its value is expanded from the free weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
from keras import ops

from kernel_tying import _keras
from kernel_tying._convolution.factors import factors
from kernel_tying._keras.views import VariableView
from kernel_tying.algebra import Tensor, accumulation_dtype, average, expand
from kernel_tying.patterns.fields import fields, free_shape, root_group_sizes
from kernel_tying.patterns.pattern import TyingPattern

Scaling = Literal["values", "orthonormal"]
SCALINGS: tuple[str, ...] = get_args(Scaling)


class KernelView(VariableView):
    """The tied kernel as a layer sees it: a variable with the value `expand(theta)` and without storage.

    With scaling "values", `theta` holds the values of the kernel. With "orthonormal" it holds `sqrt(group size) * value`.
    Then `theta -> kernel` preserves the Frobenius norm, and a plain SGD step on `theta` is the projected step on the kernel.

    Args:
        stock: the kernel variable that the view replaces.
        pattern: the tying pattern.
        scaling: "values" or "orthonormal".
        convolution: "auto", "tune", "kernel" or "group_sums".
        initializer: draws the free weights; None averages them from `stock`.
    """

    def __init__(self, stock: keras.Variable, pattern: TyingPattern, scaling: str, convolution: str, initializer: Any = None):
        self.pattern = pattern
        self.scaling = scaling
        self.convolution = convolution
        # Found here, because torch.compile would trace the search.
        ties_channels = pattern.tied_axes[-1] >= len(stock.shape) - 2
        self.factors = () if ties_channels else factors(pattern, tuple(stock.shape[:-2]))
        shape = free_shape(tuple(stock.shape), pattern)
        initializer = initializer or (lambda *_, **__: self.encode(stock.value))
        theta = _keras.variable_like(stock, initializer, shape, autocast=False, fields=fields(tuple(stock.shape), pattern))
        super().__init__(stock, theta)

    @property
    def theta(self) -> keras.Variable:
        """The free weights, the only variable that is trained and stored."""
        return self.source

    @property
    def free_values(self) -> Tensor:
        """The values of the groups, in the layer's compute dtype."""
        return self.in_compute_dtype(rescale(self.stored, self.pattern, self.scaling, "values"))

    def decode(self, free: Tensor) -> Tensor:
        """Returns the kernel for the free weights `free`."""
        return expand(rescale(free, self.pattern, self.scaling, "values"), self.pattern)

    def encode(self, kernel: Tensor) -> Tensor:
        """Returns the free weights nearest to `kernel`."""
        return rescale(average(kernel, self.pattern), self.pattern, "values", self.scaling)


def rescale(free: Tensor, pattern: TyingPattern, from_scaling: str, to_scaling: str) -> Tensor:
    """Returns free weights of one scaling in the other: `sqrt(group size) * value` in "orthonormal", `value` in "values"."""
    if from_scaling == to_scaling:
        return free
    root = root_group_sizes(pattern, tuple(free.shape))
    dtype = keras.backend.standardize_dtype(free.dtype)
    upcast = ops.cast(free, accumulation_dtype(dtype))
    root = ops.cast(root, upcast.dtype)
    return ops.cast(upcast * root if to_scaling == "orthonormal" else upcast / root, dtype)
