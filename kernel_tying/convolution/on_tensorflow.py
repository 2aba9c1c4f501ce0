"""TensorFlow's own way of computing tied convolutions: in an XLA cluster, as slices take most of the time outside of one."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from kernel_tying.algebra import Tensor
from kernel_tying.convolution import form
from kernel_tying.convolution.differentiable import differentiable
from kernel_tying.convolution.geometry import Geometry
from kernel_tying.keras_private import is_exporting


def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    return _forward(tf.stop_gradient(inputs), tf.stop_gradient(free), geometry)


def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients in inputs and free weights."""
    return _backward(tf.stop_gradient(inputs), tf.stop_gradient(free), tf.stop_gradient(upstream), geometry)


convolve = differentiable(forward, backward)


# A tape that sees these functions would make gradients of their loops, which XLA cannot compile: hence `stop_gradient`.
@tf.function(jit_compile=True, autograph=False)
def _forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    return form.forward(inputs, free, geometry, _scan)


@tf.function(jit_compile=True, autograph=False)
def _backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    return form.backward(inputs, free, upstream, geometry, _scan)


def _scan(step: Any, carry: Any, xs: Any, shape: tuple[int, ...]) -> Any:
    count = tf.shape(xs[0])[0]
    reads = [tf.TensorArray(x.dtype, count, element_shape=x.shape[1:]).unstack(x) for x in xs]
    writes = tf.TensorArray(xs[0].dtype, count, element_shape=shape)  # XLA has to know the shape before the loop begins

    def body(index: Tensor, carry: Any, writes: Any) -> Any:
        carry, output = step(carry, tuple(read.read(index) for read in reads))
        return index + 1, carry, writes.write(index, output)

    _, carry, writes = tf.while_loop(lambda index, *_: index < count, body, (0, carry, writes), parallel_iterations=1)
    return carry, writes.stack()


def obstacle() -> str:
    """Returns what keeps layers to the stock convolution just now, or ""."""
    return "exported models keep to the stock convolution" if is_exporting() else ""


def unmeasured() -> str:
    """Returns what there is here that speed was not measured on, or ""."""
    if tf.distribute.has_strategy():
        return "several devices"
    return "" if len(tf.config.list_logical_devices()) == len(tf.config.list_logical_devices("CPU")) else "accelerators"


def saving_that_pays(channels: int, is_compiled: bool | None = None) -> float:
    """Returns how many times fewer products make the tied convolution the faster one, forward and backward."""
    return math.inf if channels < 64 else 2.5
