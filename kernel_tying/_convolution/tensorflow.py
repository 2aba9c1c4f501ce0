"""Tied convolutions on TensorFlow, compiled by XLA. Without XLA, slicing takes most of the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf
from keras import ops
from tensorflow.python.ops import control_flow_util  # not public; the only way to detect `jit_compile` while tracing
from tensorflow.python.util import _pywrap_util_port  # not public; the only way to ask whether oneDNN is in use

from kernel_tying import _keras
from kernel_tying._convolution import generic
from kernel_tying._convolution.autodiff import differentiable
from kernel_tying._convolution.geometry import Geometry
from kernel_tying._convolution.machine import cpu_threads, sum_bytes
from kernel_tying.algebra import Tensor

_SUM_BYTES = 2**18  # of one group sum of a chunk, on one thread
_MAX_COMPILED = 4096  # functions in the cache
_BreakEven = dict[str, dict[int, dict[int, float]]]
# kind -> threads -> minimum channel count -> break-even reduction k^2/K, benchmarked forward and with gradients
_BREAK_EVEN_XLA: _BreakEven = {
    "dense": {1: {8: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 3.5, 128: 1.7, 256: 1.5}},
    "strided": {1: {16: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 3.5, 128: 1.7, 256: 1.5}},
    "first": {1: {32: 3.0, 64: 2.5}, 2: {32: 3.0, 64: 2.5}},
    "depthwise": {1: {1: 1.0}, 2: {1: 1.0}},  # XLA's own depthwise convolution is several times slower
}
_BREAK_EVEN_ONEDNN: _BreakEven = {"dense": {1: {32: 4.5, 64: 2.5, 256: 1.5}, 2: {128: 3.5, 256: 2.5}}}
_BREAK_EVEN_EIGEN: _BreakEven = {
    "dense": {1: {8: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 2.5, 128: 1.7, 256: 1.5}},
    "strided": {1: {16: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 2.5, 128: 1.7, 256: 1.5}},
    "first": {1: {32: 3.0, 64: 2.5}, 2: {32: 3.0, 64: 2.5}},
    "depthwise": {1: {1: 4.0}},
}


def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    return _forward(geometry, inputs, free)


def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients with respect to inputs and free weights."""
    return _backward(geometry, inputs, free, upstream)


convolve = differentiable(forward, backward)


class _Compiled:
    """A function of a geometry and tensors, compiled by XLA and traced once per geometry and tensor shapes.

    A `tf.function` that takes the geometry as an argument would keep a trace of each geometry for ever. Eager calls get one
    function per shape, because TensorFlow warns of functions that are traced for many shapes.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._traces = 0
        self._compiled = lru_cache(maxsize=_MAX_COMPILED)(self._compile)

    def __call__(self, geometry: Geometry, *tensors: Tensor) -> Any:
        # A gradient tape would otherwise differentiate the loops inside, which XLA cannot compile.
        tensors = tuple(map(tf.stop_gradient, tensors))
        if not tf.executing_eagerly():  # TensorFlow keeps a trace per outer graph
            return self._compiled(geometry)(*tensors)
        return self._compiled(geometry, *((tuple(tensor.shape), tensor.dtype) for tensor in tensors))(*tensors)

    def _compile(self, geometry: Geometry, *signature: Any) -> Callable[..., Any]:
        def traced(*tensors: Tensor) -> Any:
            self._traces += 1
            return self._function(*tensors, geometry, _scan, sum_bytes(threads(), _SUM_BYTES))

        compiled: Any = tf.function(traced, jit_compile=True, autograph=False)
        if not signature:
            return compiled
        return compiled.get_concrete_function(*(tf.TensorSpec(shape, dtype) for shape, dtype in signature))

    def experimental_get_tracing_count(self) -> int:
        """Returns how often the function was traced. The name is that of the method of a `tf.function`."""
        return self._traces

    def forget(self) -> None:
        """Drops all compiled functions."""
        self._compiled.cache_clear()


_forward = _Compiled(generic.forward)
_backward = _Compiled(generic.backward)


def _scan(step: Any, carry: Any, xs: Any, shape: tuple[int, ...]) -> Any:
    count = tf.shape(xs[0])[0]
    reads = [tf.TensorArray(x.dtype, count, element_shape=x.shape[1:]).unstack(x) for x in xs]
    writes = tf.TensorArray(xs[0].dtype, count, element_shape=shape)  # XLA needs the shape before the loop

    def body(index: Tensor, carry: Any, writes: Any) -> Any:
        carry, output = step(carry, tuple(read.read(index) for read in reads))
        return index + 1, carry, writes.write(index, output)

    _, carry, writes = tf.while_loop(lambda index, *_: index < count, body, (0, carry, writes), parallel_iterations=1)
    return carry, writes.stack()


def traced_convolutions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns the stock convolution and the depthwise one, for a graph that is being traced."""
    if _keras.export_format() == "litert":
        return _ungrouped(_litert_conv), _litert_depthwise_conv
    return _ungrouped(ops.conv), ops.depthwise_conv


def _ungrouped(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a convolution that runs once per channel group. Most exporters lack the grouped operator that Keras takes."""

    def conv(images: Tensor, kernel: Tensor, *options: Any) -> Tensor:
        channel_groups = images.shape[-1] // kernel.shape[-2]
        if channel_groups == 1:
            return convolve(images, kernel, *options)
        pairs = zip(tf.split(images, channel_groups, -1), tf.split(kernel, channel_groups, -1), strict=True)
        return tf.concat([convolve(*pair, *options) for pair in pairs], -1)

    return conv


def _litert_conv(images: Tensor, kernel: Tensor, strides: Any, padding: str, data_format: str, dilation: Any) -> Tensor:
    """Returns a convolution whose dilation is an attribute of the operator.

    Keras' convolutions move dilated inputs to the batch axis and back. The converter removes that only if the batch size is
    known. TensorFlow itself cannot run the depthwise operator with a dilation, LiteRT can.
    """
    if len(images.shape) != 4:
        return ops.conv(images, kernel, strides, padding, data_format, dilation)
    return tf.nn.conv2d(images, kernel, strides, padding.upper(), dilations=dilation)


def _litert_depthwise_conv(
    images: Tensor, kernel: Tensor, strides: Any, padding: str, data_format: str, dilation: Any
) -> Tensor:
    """Returns a depthwise convolution whose dilation is an attribute of the operator."""
    if len(images.shape) != 4:
        return ops.depthwise_conv(images, kernel, strides, padding, data_format, dilation)
    return tf.raw_ops.DepthwiseConv2dNative(
        input=images, filter=kernel, strides=(1, *strides, 1), padding=padding.upper(), dilations=(1, *dilation, 1)
    )


def is_compiling() -> bool:
    """Returns whether a compiler is tracing that takes stock operators only."""
    return False


def is_exporting() -> bool:
    """Returns whether a model is being exported."""
    return bool(_keras.export_format())


def hardware_without_benchmarks() -> str:
    """Returns the name of hardware without benchmark data, or ""."""
    return "several devices" if tf.distribute.has_strategy() else _accelerators()


@lru_cache(maxsize=1)
def _accelerators() -> str:
    has_only_cpus = len(tf.config.list_logical_devices()) == len(tf.config.list_logical_devices("CPU"))
    return "" if has_only_cpus else "accelerators"


def threads() -> int:
    """Returns the number of compute threads."""
    return tf.config.threading.get_intra_op_parallelism_threads() or cpu_threads()


def break_even_reductions(kind: str, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns the break-even reduction k^2/K by minimum channel count, or None without benchmark data.

    Args:
        kind: that of the convolution.
        is_compiled: whether XLA compiles the stock convolution. If not, oneDNN runs it, or Eigen, which is slower. By
            default, TensorFlow chooses oneDNN on CPUs with AVX-512.
    """
    uncompiled = _BREAK_EVEN_ONEDNN if _pywrap_util_port.IsMklEnabled() else _BREAK_EVEN_EIGEN
    by_kind = _BREAK_EVEN_XLA if is_compiled else uncompiled
    return by_kind[kind].get(threads()) if kind in by_kind else {}


def is_compiled(given: bool | None) -> bool:
    """Returns `given`, or if that is None, whether XLA compiles the graph being traced."""
    if given is not None:
        return given
    if tf.executing_eagerly():
        return False
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def inference_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs, and waits until they are ready."""
    step = tf.function(function, jit_compile=is_compiled, autograph=False)
    return lambda: _ready(step(*tensors))


def training_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients with respect to `tensors`, and waits until they are ready."""

    @tf.function(jit_compile=is_compiled, autograph=False)
    def step(*tensors: Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return tape.gradient(outputs, tensors, outputs)

    return lambda: _ready(step(*tensors))


def _ready(results: Any) -> Any:
    """Waits for accelerators, which still compute when a call returns."""
    if _accelerators():
        tf.test.experimental.sync_devices()
    return results
