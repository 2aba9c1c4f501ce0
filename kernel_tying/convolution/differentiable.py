"""The tied convolution with its own gradient, differentiable any number of times.

With `y(x, theta)` and its gradients `(dx, dtheta) = G(x, theta, dy)`, the gradient of G for gradients (u, v) in its results is

    x, theta: G(u, v, dy)        dy: y(u, theta) + y(x, v)

so that two functions serve for derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kernel_tying.algebra import Tensor
from kernel_tying.convolution.geometry import Geometry


def differentiable(forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Returns `convolve(inputs, free, geometry)`, which computes with `forward` and has the gradients `backward`."""

    def convolve(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
        @ops.custom_gradient
        def function(inputs: Tensor, free: Tensor) -> Any:
            return forward(inputs, free, geometry), lambda upstream: gradients(inputs, free, upstream, geometry)

        return function(ops.convert_to_tensor(inputs), ops.convert_to_tensor(free))

    def gradients(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        @ops.custom_gradient
        def function(inputs: Tensor, free: Tensor, upstream: Tensor) -> Any:
            def pull_back(*results: Any) -> tuple[Tensor, Tensor, Tensor]:
                to_inputs, to_free = keras.tree.flatten(results)
                to_upstream = convolve(to_inputs, free, geometry) + convolve(inputs, to_free, geometry)
                return *gradients(to_inputs, to_free, upstream, geometry), to_upstream

            return backward(inputs, free, upstream, geometry), pull_back

        return function(inputs, free, upstream)

    return convolve
