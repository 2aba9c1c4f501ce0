"""Tied convolutions on JAX, compiled once per shape, even if the caller runs eagerly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from keras import ops

from kernel_tying import _keras
from kernel_tying._convolution import generic
from kernel_tying._convolution.autodiff import differentiable
from kernel_tying._convolution.geometry import Geometry
from kernel_tying._convolution.machine import cpu_threads, sum_bytes
from kernel_tying.algebra import Tensor

_SUM_BYTES = 2**18  # of one group sum of a chunk, on one thread
# kind -> threads -> minimum channel count -> break-even reduction k^2/K, benchmarked forward and with gradients
_BREAK_EVEN: dict[str, dict[int, dict[int, float]]] = {
    "dense": {1: {8: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 2.5, 128: 1.7, 256: 1.5}},
    "strided": {1: {16: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 2.5, 128: 1.7, 256: 1.5}},
    "first": {1: {32: 3.0, 64: 2.5}, 2: {32: 4.0, 64: 2.5}},
    "depthwise": {1: {1: 1.0}, 2: {1: 1.0}},  # XLA's own depthwise convolution is several times slower
}


def _scan(step: Any, carry: Any, xs: Any, shape: tuple[int, ...]) -> Any:
    # Without the barrier XLA reads the inputs of each tied group from the whole batch again, which takes twice as long.
    return jax.lax.scan(lambda carry, x: step(carry, jax.lax.optimization_barrier(x)), carry, xs)


@partial(jax.jit, static_argnums=2)
def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    return generic.forward(inputs, free, geometry, _scan, sum_bytes(threads(), _SUM_BYTES))


@partial(jax.jit, static_argnums=3)
def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients with respect to inputs and free weights."""
    return generic.backward(inputs, free, upstream, geometry, _scan, sum_bytes(threads(), _SUM_BYTES))


# Compiled as a whole: in eager code, JAX would trace the custom gradient at every call.
convolve = jax.jit(differentiable(forward, backward), static_argnums=2)


def traced_convolutions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns the stock convolution and the depthwise one, for a graph that is being traced."""
    return ops.conv, ops.depthwise_conv


def is_compiling() -> bool:
    """Returns whether a compiler is tracing that takes stock operators only."""
    return False


def is_exporting() -> bool:
    """Returns whether a model is being exported."""
    return bool(_keras.export_format())


def hardware_without_benchmarks() -> str:
    """Returns the name of hardware without benchmark data, or ""."""
    return "" if jax.default_backend() == "cpu" else jax.default_backend()


def threads() -> int:
    """Returns the number of compute threads."""
    return cpu_threads()


def break_even_reductions(kind: str, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns the break-even reduction k^2/K by minimum channel count, or None without benchmark data."""
    return _BREAK_EVEN[kind].get(threads())


def is_compiled(given: bool | None) -> bool:
    """Returns whether XLA compiles stock convolutions: always on JAX."""
    return True


def inference_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs, and waits until they are ready."""
    step = jax.jit(function)
    return lambda: jax.block_until_ready(step(*tensors))


def training_step(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients with respect to `tensors`, and waits until they are ready."""

    @jax.jit
    def step(*tensors: Tensor) -> Any:
        outputs, pull_back = jax.vjp(function, *tensors)
        return pull_back(outputs)

    return lambda: jax.block_until_ready(step(*tensors))
