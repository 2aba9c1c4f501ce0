"""The operations on JAX: each function is compiled as a whole, even if the caller runs eagerly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernel_tying._native.keras_ops import untraced as untraced

_MAX_COMPILED = 2**12  # positions of a pattern whose operations are compiled as one function
reshape, transpose, stack = jnp.reshape, jnp.transpose, jnp.stack
negative, zeros_like, where, concatenate = jnp.negative, jnp.zeros_like, jnp.where, jnp.concatenate


def as_one_operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(tensor, pattern)` in the form that the backend runs fastest in eager code."""
    # Equal patterns share a compiled function, and JAX bounds its cache. The index arrays become constants of that function,
    # so the operations of a large pattern are compiled one by one.
    compiled = jax.jit(function, static_argnums=1)
    return lambda tensor, pattern: (compiled if pattern.labels.size <= _MAX_COMPILED else function)(tensor, pattern)


def with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(matrix, index)`, whose `index` is a `Gathering`, in the form that the backend runs fastest."""
    return jax.jit(function)  # index arrays are arguments, not constants: large patterns of equal size share code


def is_faster_by_rows(matrix: Any) -> bool:
    """Returns whether it is fastest to handle the rows of a small pattern one by one."""
    return True


def unstack(matrix: Any) -> list[Any]:
    """Returns the rows of `matrix`."""
    return list(matrix)


def is_faster_by_segments() -> bool:
    """Returns whether one `segment_sum` is the fastest way to sum the members of all groups."""
    # On CPUs XLA's gather and sum is ten times slower. On GPUs its segment sum is not deterministic.
    return jax.default_backend() == "cpu"


def segment_sum(matrix: Any, labels: Any, count: int) -> Any:
    """Returns, for each label from 0 to `count - 1`, the sum of its rows."""
    return jax.ops.segment_sum(matrix, labels.astype("int32"), count)


def constant(array: np.ndarray, tensor: Any) -> Any:
    """Returns an array of booleans or numbers as a constant for operations with `tensor`."""
    return array


def take(matrix: Any, indices: np.ndarray) -> Any:
    """Returns the rows of `matrix` at non-negative indices."""
    return jnp.take(matrix, indices.astype("int32"), axis=0)


def pad(tensor: Any, widths: Sequence[tuple[int, int]]) -> Any:
    """Returns the tensor with zeros before and after each axis."""
    return jnp.pad(tensor, widths)  # looked up at each call: jax2onnx replaces it while it exports


def sum_of_matrices(tensor: Any) -> Any:
    """Returns the sum of the matrices along the first axis."""
    return jnp.sum(tensor, axis=0)
