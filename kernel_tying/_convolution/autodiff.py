"""The tied convolution as a custom gradient, differentiable any number of times.

Let `y(x, theta)` be the convolution and `(dx, dtheta) = G(x, theta, dy)` its gradients. For cotangents (u, v) of the results
(dx, dtheta) of G, the gradients of G are

    x, theta: G(u, v, dy)        dy: y(u, theta) + y(x, v).

Two functions, y and G, therefore give derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kernel_tying._convolution.geometry import Geometry
from kernel_tying.algebra import Tensor


def differentiable(forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Returns `convolve(inputs, free, geometry)`, with `forward` as its value and `backward` as its gradients."""

    def convolve(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
        @ops.custom_gradient
        def function(inputs: Tensor, free: Tensor) -> Any:
            return forward(inputs, free, geometry), lambda upstream: gradients(inputs, free, upstream, geometry)

        return function(ops.convert_to_tensor(inputs), ops.convert_to_tensor(free))

    def gradients(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        @ops.custom_gradient
        def function(inputs: Tensor, free: Tensor, upstream: Tensor) -> Any:
            # Each result of `backward` is bilinear, so its gradients are again made of `convolve` and `gradients`.
            def pull_back(*cotangents: Any) -> tuple[Tensor, Tensor, Tensor]:
                u, v = keras.tree.flatten(cotangents)
                upstream_gradient = convolve(u, free, geometry) + convolve(inputs, v, geometry)
                return *gradients(u, v, upstream, geometry), upstream_gradient

            return backward(inputs, free, upstream, geometry), pull_back

        return function(inputs, free, upstream)

    return convolve
