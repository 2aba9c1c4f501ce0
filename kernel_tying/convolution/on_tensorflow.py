"""TensorFlow's own way of computing tied convolutions: in an XLA cluster, as slices take most of the time outside of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # not exported; nothing else knows of `jit_compile` while tracing

from kernel_tying.algebra import Tensor
from kernel_tying.convolution import form
from kernel_tying.convolution.differentiable import differentiable
from kernel_tying.convolution.geometry import Geometry
from kernel_tying.convolution.threads import chunk_bytes, cpu_threads
from kernel_tying.keras_private import is_exporting

_CHUNK_BYTES = 2**18
# channels -> times fewer products from which on the tied convolution was the faster one, forward and with gradients
_PAYS_BESIDE_XLA = {1: {8: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 3.5, 128: 1.7, 256: 1.5}}
_PAYS_BESIDE_XLA_DEPTHWISE = {1: {1: 1.0}, 2: {1: 1.0}}  # XLA's own depthwise convolution takes several times as long
_PAYS_BESIDE_ONEDNN = {1: {32: 4.5, 64: 2.5, 256: 1.5}, 2: {128: 3.5, 256: 2.5}}


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
    return form.forward(inputs, free, geometry, _scan, chunk_bytes(threads(), _CHUNK_BYTES))


@tf.function(jit_compile=True, autograph=False)
def _backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    return form.backward(inputs, free, upstream, geometry, _scan, chunk_bytes(threads(), _CHUNK_BYTES))


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


def threads() -> int:
    """Returns the number of threads that compute."""
    return tf.config.threading.get_intra_op_parallelism_threads() or cpu_threads()


def savings_that_pay(is_depthwise: bool, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns from how many times fewer products on the tied convolution pays, by channels; None if that is not measured.

    Args:
        is_depthwise: whether each channel is convolved on its own.
        is_compiled: whether XLA compiles the stock convolution too; oneDNN's is faster.
    """
    if is_depthwise:
        return _PAYS_BESIDE_XLA_DEPTHWISE.get(threads()) if is_compiled else {}
    return (_PAYS_BESIDE_XLA if is_compiled else _PAYS_BESIDE_ONEDNN).get(threads())


def compiles(given: bool | None) -> bool:
    """Returns what is given; if that is None, whether XLA compiles what is traced just now."""
    if given is None:
        return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
    return given


def training(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients in tensors."""

    @tf.function(jit_compile=is_compiled, autograph=False)
    def step(*tensors: Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return tape.gradient(outputs, tensors, outputs)

    return lambda: step(*tensors)
