"""How a tied layer convolves: which way pays, and the methods of stock layers in whose place another way stands."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
from keras import ops

from kernel_tying.algebra import Tensor, expand, free_by_group
from kernel_tying.convolution.geometry import Geometry, padding_of
from kernel_tying.convolution.timing import shortest_times
from kernel_tying.kernels import seam

CONVOLUTIONS = ("auto", "tune", "kernel", "group_sums")
# Imported here, not where it is needed: torch.compile cannot trace an import.
_BACKEND: Any = (
    importlib.import_module(f"kernel_tying.convolution.on_{keras.backend.backend()}")
    if keras.backend.backend() in ("jax", "tensorflow", "torch")
    else None
)
_TIMED_BATCH = 8  # whatever the batches are, so that the report tells what the layer does
Shape = tuple[Any, ...]  # with None for an unknown size


class Way(NamedTuple):
    """How a layer convolves, "kernel" or "group_sums", and why."""

    name: str
    reason: str


_timed_ways: dict[Any, Way] = {}


def way_to_convolve(layer: keras.Layer, kernel: Any, input_shape: Shape, is_compiled: bool | None = None) -> Way:
    """Returns the way of a layer with a tied kernel for inputs of a shape.

    Args:
        layer: a stock layer.
        kernel: its tied kernel, a `KernelView`.
        input_shape: shape with the batch axis, in the layer's data format; None for an unknown size.
        is_compiled: whether XLA compiles the model around the layer; None: as it does just now.
    """
    if kernel.convolution == "kernel":
        return Way("kernel", "as asked for")
    obstacle = _obstacle(layer, kernel, input_shape)
    if obstacle:
        return Way("kernel", obstacle)
    if kernel.convolution == "group_sums":
        return Way("group_sums", "as asked for")
    unmeasured = "several devices" if keras.distribution.distribution() is not None else _BACKEND.unmeasured()
    if unmeasured:
        return Way("kernel", f"not measured on {unmeasured}")
    is_compiled = _BACKEND.compiles(is_compiled)
    if kernel.convolution == "tune":
        return _timed_way(layer, kernel, input_shape, is_compiled)
    return _expected_way(layer, kernel, _geometry(layer, kernel, input_shape), is_compiled)


def _obstacle(layer: keras.Layer, kernel: Any, input_shape: Shape) -> str:
    """Returns why a layer has to expand its kernel, or ""."""
    if not seam(layer):
        return f"{type(layer).__name__} lets no other convolution in"
    if _BACKEND is None:
        return f"backend {keras.backend.backend()!r} has no other convolution"
    if kernel.pattern.tied_axes[-1] >= len(layer.kernel_size):
        return "the pattern ties channels"
    if None in input_shape[1:]:
        return "the size of the inputs is unknown"
    if min(_geometry(layer, kernel, input_shape).output_size(_channels_last(layer, input_shape)[1:-1])) < 1:
        return "the inputs are smaller than the kernel"
    return _BACKEND.obstacle()


def _expected_way(layer: keras.Layer, kernel: Any, geometry: Geometry, is_compiled: bool) -> Way:
    """Returns the way that measurements say is the faster one; where nothing was measured, the stock one."""
    if layer.compute_dtype != "float32":
        return Way("kernel", f"not measured on {layer.compute_dtype}")
    is_depthwise = _is_depthwise(layer)
    if not is_depthwise and (max(geometry.strides) > 1 or geometry.groups > 1):
        return Way("kernel", "does not pay with strides or groups of channels")
    savings = _BACKEND.savings_that_pay(is_depthwise, is_compiled)
    if savings is None:
        return Way("kernel", f"not measured on {_BACKEND.threads()} threads")
    channels = min(kernel.shape[-2:])
    where = "in depthwise layers" if is_depthwise else f"at {channels} channels"
    saving = math.prod(geometry.kernel_size) / len(geometry.sums.groups)
    needed = min((one for least, one in savings.items() if channels >= least), default=math.inf)
    pays = f"{needed:.1f} pay" if needed < math.inf else "no saving pays"
    return Way("group_sums" if saving >= needed else "kernel", f"{saving:.1f} times fewer products, {pays} {where}")


def _timed_way(layer: keras.Layer, kernel: Any, input_shape: Shape, is_compiled: bool) -> Way:
    """Returns the way that is the faster one here, forward and with gradients, timed once for each problem in a process."""
    shapes = (_TIMED_BATCH, *input_shape[1:]), tuple(kernel.source.shape)
    geometry = _geometry(layer, kernel, input_shape)
    key = (geometry, *shapes, layer.data_format, layer.compute_dtype, is_compiled, _BACKEND.threads())

    def times() -> dict[str, float]:
        ways = {
            "kernel": lambda inputs, free: _stock_convolution(layer, inputs, expand(free, kernel.pattern)),
            "group_sums": lambda inputs, free: _tied_convolution(layer, inputs, free, geometry),
        }
        tensors = [ops.ones(shape, dtype=layer.compute_dtype) for shape in shapes]
        return shortest_times({name: _BACKEND.training(way, tensors, is_compiled) for name, way in ways.items()})

    if key not in _timed_ways:
        with ThreadPoolExecutor(1) as thread:  # in which nothing is traced, as it may be in this one
            seconds = thread.submit(times).result()
        faster, slower = sorted(seconds, key=lambda name: seconds[name])
        reason = f"{seconds[slower] / seconds[faster]:.1f} times as fast as {slower!r}, timed here"
        _timed_ways[key] = Way(faster, reason)
    return _timed_ways[key]


def _geometry(layer: keras.Layer, kernel: Any, input_shape: Shape) -> Geometry:
    _, *size, channels = _channels_last(layer, input_shape)
    numbers = tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate)
    groups: Any = channels if _is_depthwise(layer) else layer.groups
    return Geometry(kernel.pattern, *numbers, padding_of(layer.padding, size, *numbers), groups)


def _is_depthwise(layer: keras.Layer) -> bool:
    """Returns whether each channel is a group of its own, so that the layer is not told of groups."""
    return not hasattr(layer, "groups")


def _channels_last(layer: keras.Layer, shape: Shape) -> Shape:
    return shape if layer.data_format == "channels_last" else (shape[0], *shape[2:], shape[1])


def convolving_methods(layer: keras.Layer) -> dict[str, Callable[..., Tensor]]:
    """Returns what stands in the place of the method in which a stock layer convolves, by the method's name."""
    return {name: method for name, method in _METHODS.items() if name == seam(layer)}


def _convolution_op(layer: keras.Layer, inputs: Tensor, kernel: Any) -> Tensor:
    if way_to_convolve(layer, kernel, tuple(inputs.shape)).name == "kernel":
        return type(layer).convolution_op(layer, inputs, kernel)
    return _convolve(layer, inputs, kernel)


def _call(layer: keras.Layer, inputs: Tensor) -> Tensor:
    if way_to_convolve(layer, layer.kernel, tuple(inputs.shape)).name == "kernel":
        return type(layer).call(layer, inputs)
    outputs = _convolve(layer, inputs, layer.kernel)
    if layer.use_bias:
        shape = [1] * len(outputs.shape)
        shape[-1 if layer.data_format == "channels_last" else 1] = -1
        outputs = ops.add(outputs, ops.reshape(layer.bias, shape))
    return outputs if layer.activation is None else layer.activation(outputs)


_METHODS: dict[str, Callable[..., Tensor]] = {"convolution_op": _convolution_op, "call": _call}


def _convolve(layer: keras.Layer, inputs: Tensor, kernel: Any) -> Tensor:
    return _tied_convolution(layer, inputs, kernel.free_values, _geometry(layer, kernel, tuple(inputs.shape)))


def _tied_convolution(layer: keras.Layer, inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the convolution with tied free values, both sides in the layer's data format."""
    free = free_by_group(free, geometry.pattern)
    channels = _channels_last(layer, tuple(inputs.shape))[-1]
    free = ops.reshape(free, (free.shape[0], -1, math.prod(free.shape[1:]) * geometry.groups // channels))
    if layer.data_format == "channels_last":
        return _BACKEND.convolve(inputs, free, geometry)
    return ops.moveaxis(_BACKEND.convolve(ops.moveaxis(inputs, 1, -1), free, geometry), -1, 1)


def _stock_convolution(layer: keras.Layer, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Returns the convolution with a kernel, as the stock layer computes it."""
    padding = layer.padding
    if padding == "causal":
        _, *size, _ = _channels_last(layer, tuple(inputs.shape))
        zeros = padding_of(padding, size, layer.kernel_size, layer.strides, layer.dilation_rate)
        is_last = layer.data_format == "channels_last"
        inputs = ops.pad(inputs, [(0, 0), *zeros, (0, 0)] if is_last else [(0, 0), (0, 0), *zeros])
        padding = "valid"
    convolve = ops.depthwise_conv if _is_depthwise(layer) else ops.conv
    return convolve(inputs, kernel, layer.strides, padding, layer.data_format, layer.dilation_rate)
