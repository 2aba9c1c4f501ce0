"""Chooses the convolution algorithm of a tied layer, and overrides the layer's method with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, get_args

import keras
from keras import ops

from kernel_tying._convolution import plain
from kernel_tying._convolution.backend import BACKEND, HAS_GROUP_SUMS, Kind
from kernel_tying._convolution.geometry import FEW_CHANNELS, Geometry, padding_of
from kernel_tying._convolution.machine import shortest_times
from kernel_tying._layers.attachment import views
from kernel_tying._layers.table import convolution_method
from kernel_tying._layers.view import KernelView
from kernel_tying._native import native
from kernel_tying.algebra import Tensor, expand, free_by_group
from kernel_tying.patterns.fields import free_shape
from kernel_tying.patterns.pattern import TyingPattern

Convolution = Literal["auto", "tune", "kernel", "group_sums"]
CONVOLUTIONS: tuple[str, ...] = get_args(Convolution)
_MAX_PROBLEMS = 4096  # entries of a cache, about a kilobyte each
_TIMED_BATCH = 8  # fixed, so that the report shows the algorithm that the layer runs at any batch size
_WAY_OUT = ": `kt.tune` would measure"
Shape = tuple[Any, ...]  # with None for an unknown size


class Algorithm(NamedTuple):
    """How a layer convolves, and why: "kernel", "group_sums", or "factors", the plain form of group sums that tracers take."""

    name: str
    reason: str


_AS_ASKED = {name: Algorithm(name, "as asked for") for name in ("kernel", "group_sums", "factors")}


class Problem(NamedTuple):
    """Everything that the choice of an algorithm depends on. Layers with equal problems share one decision.

    Attributes:
        pattern: the tying pattern.
        kernel_shape: shape of the kernel.
        kernel_size: its spatial part.
        strides: steps between outputs.
        dilation_rate: steps between the entries of the kernel.
        padding: "valid", "same" or "causal".
        data_format: "channels_last" or "channels_first".
        channel_groups: number of channel groups; None for depthwise layers, in which each channel is one.
        dtype: dtype in which the layer computes.
        input_shape: shape of the inputs without the batch axis, in the layer's data format.
    """

    pattern: TyingPattern
    kernel_shape: Shape
    kernel_size: Shape
    strides: Shape
    dilation_rate: Shape
    padding: str
    data_format: str
    channel_groups: int | None
    dtype: str
    input_shape: Shape

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved on its own."""
        return self.channel_groups is None

    @property
    def kind(self) -> Kind:
        """The benchmarks that decide."""
        if self.is_depthwise:
            return "depthwise"
        if self.kernel_shape[-2] <= FEW_CHANNELS:
            return "first"
        return "strided" if max(self.strides) > 1 else "dense"

    @property
    def products(self) -> int:
        """The number of products per pair of channels, tied groups times positions along free axes."""
        free_sizes = [size for axis, size in enumerate(self.kernel_size) if axis not in self.pattern.tied_axes]
        return self.pattern.num_free * math.prod(free_sizes)


def choose_algorithm(layer: keras.Layer, kernel: KernelView, input_shape: Shape, is_compiled: bool | None = None) -> Algorithm:
    """Returns the convolution algorithm of a layer for inputs of `input_shape`.

    Args:
        layer: a stock layer.
        kernel: its tied kernel.
        input_shape: shape with the batch axis, in the layer's data format; None for an unknown size.
        is_compiled: whether XLA compiles the model around the layer; None asks the backend.
    """
    if kernel.convolution == "kernel":  # first, so that the reason is the option for every layer
        return _AS_ASKED["kernel"]
    if not convolution_method(layer):
        return Algorithm("kernel", f"{type(layer).__name__} does not support group sums")
    return _algorithm(layer, kernel, input_shape, is_compiled)


def _algorithm(layer: keras.Layer, kernel: KernelView, input_shape: Shape, is_compiled: bool | None = None) -> Algorithm:
    """Returns the algorithm of a layer whose class supports group sums. Runs on each eager call."""
    if kernel.convolution == "kernel":
        return _AS_ASKED["kernel"]
    reason = _unsupported(kernel)
    if reason:
        return Algorithm("kernel", reason)
    if BACKEND.is_compiling() or BACKEND.is_exporting():
        return _traceable(layer, kernel, input_shape)
    if None in input_shape[1:]:
        return Algorithm("kernel", "the size of the inputs is unknown")
    return _decide(_problem(layer, kernel, input_shape), kernel.convolution, is_compiled)


def _unsupported(kernel: KernelView) -> str:
    """Returns why a layer cannot use group sums at any input size, or ""."""
    if not HAS_GROUP_SUMS:
        return f"backend {keras.backend.backend()!r} has no group sums"
    return "the pattern ties channels" if kernel.pattern.tied_axes[-1] >= len(kernel.shape) - 2 else ""


def _traceable(layer: keras.Layer, kernel: KernelView, input_shape: Shape) -> Algorithm:
    """Returns the algorithm of a layer that a compiler or an exporter traces. Sizes may be symbolic."""
    if not _has_fixed_padding(layer) and not all(isinstance(size, int) for size in input_shape[1:]):
        return Algorithm("kernel", "the padding depends on the size of the inputs, which is unknown")
    if kernel.convolution == "group_sums":
        return _AS_ASKED["factors"]
    if kernel.convolution == "tune" or BACKEND.is_exporting():
        return Algorithm("kernel", "exported and compiled models keep to the stock convolution")
    if BACKEND.hardware_without_benchmarks():
        return Algorithm("kernel", f"not measured on {BACKEND.hardware_without_benchmarks()}{_WAY_OUT}")
    name, reason = _fastest_by_benchmarks(_problem(layer, kernel, input_shape), True, BACKEND.threads())
    return Algorithm("kernel" if name == "kernel" else "factors", reason)


def _has_fixed_padding(layer: keras.Layer) -> bool:
    return max(layer.strides) == 1 or layer.padding != "same"


def _problem(layer: keras.Layer, kernel: KernelView, input_shape: Shape) -> Problem:
    return Problem(
        kernel.pattern,
        tuple(kernel.shape),
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(layer.dilation_rate),
        layer.padding,
        layer.data_format,
        getattr(layer, "groups", None),
        layer.compute_dtype,
        tuple(input_shape[1:]),
    )


def _decide(problem: Problem, convolution: str, is_compiled: bool | None) -> Algorithm:
    """Returns the algorithm for a problem under the present settings of the backend."""
    is_distributed = keras.distribution.distribution() is not None
    unmeasured = "several devices" if is_distributed else BACKEND.hardware_without_benchmarks()
    return _cached_decision(problem, convolution, unmeasured, BACKEND.is_compiled(is_compiled), BACKEND.threads())


@lru_cache(maxsize=_MAX_PROBLEMS)
def _cached_decision(problem: Problem, convolution: str, unmeasured: str, is_compiled: bool, threads: int) -> Algorithm:
    """Returns the algorithm for a problem. Everything it depends on is an argument, so no cached entry becomes stale."""
    if not _has_outputs(problem):
        return Algorithm("kernel", "the inputs are smaller than the kernel")
    if convolution == "group_sums":
        return _AS_ASKED["group_sums"]
    if unmeasured:
        return Algorithm("kernel", f"not measured on {unmeasured}{_WAY_OUT}")
    if convolution == "tune":
        return _fastest_timed(problem, is_compiled)
    return _fastest_by_benchmarks(problem, is_compiled, threads)


def _has_outputs(problem: Problem) -> bool:
    return min(_cached_geometry(problem).output_size(_spatial_size(problem))) >= 1


def _fastest_by_benchmarks(problem: Problem, is_compiled: bool, threads: int) -> Algorithm:
    """Returns the faster algorithm by benchmark data. Without data, that is the stock convolution."""
    if problem.dtype != "float32":
        return Algorithm("kernel", f"not measured on {problem.dtype}{_WAY_OUT}")
    if not problem.is_depthwise and problem.channel_groups != 1:
        return Algorithm("kernel", "does not pay with groups of channels")
    break_evens = BACKEND.break_even_reductions(problem.kind, is_compiled)
    if break_evens is None:
        return Algorithm("kernel", f"not measured on {threads} threads{_WAY_OUT}")
    channels = problem.kernel_shape[-1] if problem.kind == "first" else min(problem.kernel_shape[-2:])
    where = _WHERE[problem.kind].format(channels)
    reduction = math.prod(problem.kernel_size) / problem.products
    break_even = min([math.inf, *(value for min_channels, value in break_evens.items() if channels >= min_channels)])
    pays = f"{break_even:.1f} pay" if break_even < math.inf else "no saving pays"
    faster = "group_sums" if reduction >= break_even else "kernel"
    return Algorithm(faster, f"{reduction:.1f} times fewer products, {pays} {where}")


_WHERE: dict[Kind, str] = {
    "first": "at {} filters of few channels",
    "strided": "at {} channels with strides",
    "depthwise": "in depthwise layers",
    "dense": "at {} channels",
}


def _fastest_timed(problem: Problem, is_compiled: bool) -> Algorithm:
    """Returns the algorithm whose forward and backward pass is faster on this machine. Times each problem once per process."""
    with ThreadPoolExecutor(1) as thread:  # the calling thread may be tracing
        seconds = thread.submit(time_algorithms, problem, _TIMED_BATCH, BACKEND.training_step, is_compiled).result()
    faster, slower = sorted(seconds, key=lambda name: seconds[name])
    return Algorithm(faster, f"{seconds[slower] / seconds[faster]:.1f} times as fast as {slower!r}, timed here")


def time_algorithms(
    problem: Problem, batch_size: int, make_step: Callable[..., Callable[[], Any]], is_compiled: bool
) -> dict[str, float]:
    """Returns the seconds that each algorithm takes on this machine, by name.

    Args:
        problem: the convolution to time.
        batch_size: number of samples.
        make_step: `training_step` or `inference_step` of the backend.
        is_compiled: whether XLA compiles the stock convolution.
    """
    algorithms: dict[str, Callable[..., Tensor]] = {
        "kernel": lambda inputs, free: _stock_convolution(problem, inputs, expand(free, problem.pattern)),
        "group_sums": partial(_tied_convolution, problem, partial(BACKEND.convolve, geometry=_cached_geometry(problem))),
    }
    shapes = (batch_size, *problem.input_shape), free_shape(problem.kernel_shape, problem.pattern)
    tensors = [ops.ones(shape, dtype=problem.dtype) for shape in shapes]
    return shortest_times({name: make_step(run, tensors, is_compiled) for name, run in algorithms.items()})


def problem_to_time(layer: keras.Layer, kernel: KernelView, input_shape: Shape) -> tuple[Problem | None, str]:
    """Returns the convolution of a layer for `time_algorithms`, or None and why only the stock convolution is possible."""
    if not convolution_method(layer):
        return None, f"{type(layer).__name__} does not support group sums"
    reason = _unsupported(kernel) or ("the size of the inputs is unknown" if None in input_shape[1:] else "")
    if reason:
        return None, reason
    problem = _problem(layer, kernel, input_shape)
    return (problem, "") if _has_outputs(problem) else (None, "the inputs are smaller than the kernel")


def _geometry(problem: Problem) -> Geometry:
    """Returns the geometry of a problem."""
    numbers = problem.kernel_size, problem.strides, problem.dilation_rate
    padding = padding_of(problem.padding, _spatial_size(problem), *numbers)
    return Geometry(problem.pattern, *numbers, padding, problem.channel_groups or problem.kernel_shape[-2])


_cached_geometry = lru_cache(maxsize=_MAX_PROBLEMS)(_geometry)  # torch.compile warns of functions with a cache


def _input_channels(problem: Problem) -> int:
    return problem.kernel_shape[-2] * (problem.channel_groups or 1)


def _spatial_size(problem: Problem) -> Shape:
    return problem.input_shape[:-1] if problem.data_format == "channels_last" else problem.input_shape[1:]


def convolving_methods(layer: keras.Layer) -> dict[str, Callable[..., Tensor]]:
    """Returns the override of the method in which a stock layer convolves with a tied kernel, by name; empty if none does."""
    replaced = convolution_method(layer) if "kernel" in views(layer) else ""
    return {name: method for name, method in _METHODS.items() if name == replaced}


def _convolution_op(layer: keras.Layer, inputs: Tensor, kernel: KernelView) -> Tensor:
    algorithm = _algorithm_for(layer, inputs, kernel)
    if algorithm == "kernel":
        return type(layer).convolution_op(layer, inputs, kernel)
    return _CONVOLVE[algorithm](layer, inputs, kernel)


def _call(layer: keras.Layer, inputs: Tensor) -> Tensor:
    algorithm = _algorithm_for(layer, inputs, layer.kernel)
    if algorithm == "kernel":
        return type(layer).call(layer, inputs)
    outputs = _CONVOLVE[algorithm](layer, inputs, layer.kernel)
    if layer.use_bias:
        shape = [1] * len(outputs.shape)
        shape[-1 if layer.data_format == "channels_last" else 1] = -1
        outputs = ops.add(outputs, ops.reshape(layer.bias, shape))
    return outputs if layer.activation is None else layer.activation(outputs)


_METHODS: dict[str, Callable[..., Tensor]] = {"convolution_op": _convolution_op, "call": _call}


def _algorithm_for(layer: keras.Layer, inputs: Tensor, kernel: KernelView) -> str:
    """Returns the name of the algorithm by which a layer convolves `inputs`.

    Inputs in a dtype other than the compute dtype go to the stock convolution. Each backend converts or refuses them in its
    own way, and group sums of integers would overflow.
    """
    algorithm = _algorithm(layer, kernel, tuple(inputs.shape)).name
    has_compute_dtype = algorithm == "kernel" or keras.backend.standardize_dtype(inputs.dtype) == layer.compute_dtype
    return algorithm if has_compute_dtype else "kernel"


def _convolve_by_group_sums(layer: keras.Layer, inputs: Tensor, kernel: KernelView) -> Tensor:
    problem = _problem(layer, kernel, tuple(inputs.shape))
    convolve = partial(BACKEND.convolve, geometry=_cached_geometry(problem))
    return _tied_convolution(problem, convolve, inputs, kernel.free_values)


def _convolve_by_factors(layer: keras.Layer, inputs: Tensor, kernel: KernelView) -> Tensor:
    # A fixed padding needs no sizes, which may be symbolic here.
    sizes = (0 for _ in inputs.shape[1:]) if _has_fixed_padding(layer) else map(int, inputs.shape[1:])
    problem = _problem(layer, kernel, (0, *sizes))
    convolve = partial(plain.convolve, factors=kernel.factors, geometry=_geometry(problem), channels=_input_channels(problem))
    return _tied_convolution(problem, convolve, inputs, kernel.free_values, plain.DATA_FORMAT)


_CONVOLVE: dict[str, Callable[..., Tensor]] = {"group_sums": _convolve_by_group_sums, "factors": _convolve_by_factors}


def _tied_convolution(
    problem: Problem,
    convolve: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    free: Tensor,
    data_format: str = "channels_last",
) -> Tensor:
    """Returns the convolution with tied free values, by a function that takes inputs in `data_format`.

    Inputs and outputs have the layer's own data format.
    """
    free = free_by_group(free, problem.pattern)
    filters = math.prod(problem.kernel_shape[-2:]) if problem.is_depthwise else problem.kernel_shape[-1]
    free = ops.reshape(free, (free.shape[0], -1, filters))
    if problem.data_format == data_format:
        return convolve(inputs, free)
    # Transpositions, because the exporters of torch lack `moveaxis`.
    *spatial, last = range(1, len(inputs.shape))
    to_first, to_last = (0, last, *spatial), (0, *spatial[1:], last, 1)
    there, back = (to_first, to_last) if data_format == "channels_first" else (to_last, to_first)
    return ops.transpose(convolve(ops.transpose(inputs, there), free), back)


def _stock_convolution(problem: Problem, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Returns the convolution with a kernel, as the stock layer computes it."""
    padding = problem.padding
    if padding == "causal":
        zeros = _cached_geometry(problem).padding
        is_last = problem.data_format == "channels_last"
        inputs = native.pad(inputs, [(0, 0), *zeros, (0, 0)] if is_last else [(0, 0), (0, 0), *zeros])
        padding = "valid"
    convolve = ops.depthwise_conv if problem.is_depthwise else ops.conv
    return convolve(inputs, kernel, problem.strides, padding, problem.data_format, problem.dilation_rate)
