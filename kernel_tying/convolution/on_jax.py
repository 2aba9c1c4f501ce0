"""JAX's own way of computing tied convolutions: compiled once for each shape, also where the caller does not compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from kernel_tying.algebra import Tensor
from kernel_tying.convolution import form
from kernel_tying.convolution.differentiable import differentiable
from kernel_tying.convolution.geometry import Geometry
from kernel_tying.convolution.threads import chunk_bytes, cpu_threads
from kernel_tying.keras_private import is_exporting

_CHUNK_BYTES = 2**18
# channels -> times fewer products from which on the tied convolution was the faster one, forward and with gradients
_PAYS = {1: {8: 4.0, 32: 2.5, 128: 1.5}, 2: {32: 4.5, 64: 2.5, 128: 1.7, 256: 1.5}}
_PAYS_DEPTHWISE = {1: {1: 1.0}, 2: {1: 1.0}}  # XLA's own depthwise convolution takes several times as long


def _scan(step: Any, carry: Any, xs: Any, shape: tuple[int, ...]) -> Any:
    # The barrier keeps XLA from reading each group's inputs anew out of the whole batch, which takes twice the time.
    return jax.lax.scan(lambda carry, x: step(carry, jax.lax.optimization_barrier(x)), carry, xs)


@partial(jax.jit, static_argnums=2)
def forward(inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
    """Returns the output of the tied convolution."""
    return form.forward(inputs, free, geometry, _scan, chunk_bytes(threads(), _CHUNK_BYTES))


@partial(jax.jit, static_argnums=3)
def backward(inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the gradients in inputs and free weights."""
    return form.backward(inputs, free, upstream, geometry, _scan, chunk_bytes(threads(), _CHUNK_BYTES))


convolve = differentiable(forward, backward)


def obstacle() -> str:
    """Returns what keeps layers to the stock convolution just now, or ""."""
    return "exported models keep to the stock convolution" if is_exporting() else ""


def unmeasured() -> str:
    """Returns what there is here that speed was not measured on, or ""."""
    return "" if jax.default_backend() == "cpu" else jax.default_backend()


def threads() -> int:
    """Returns the number of threads that compute."""
    return cpu_threads()


def savings_that_pay(is_depthwise: bool, is_compiled: bool) -> Mapping[int, float] | None:
    """Returns from how many times fewer products on the tied convolution pays, by channels; None if that is not measured."""
    return (_PAYS_DEPTHWISE if is_depthwise else _PAYS).get(threads())


def compiles(given: bool | None) -> bool:
    """Returns whether XLA compiles stock convolutions."""
    return True


def training(function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
    """Returns a function that computes outputs and gradients in tensors, and waits for them."""

    @jax.jit
    def step(*tensors: Tensor) -> Any:
        outputs, pull_back = jax.vjp(function, *tensors)
        return pull_back(outputs)

    return lambda: jax.block_until_ready(step(*tensors))
