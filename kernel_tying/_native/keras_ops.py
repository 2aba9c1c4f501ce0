"""The operations in `keras.ops`, for backends without a module of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

reshape, transpose, stack, unstack = ops.reshape, ops.transpose, ops.stack, ops.unstack
negative, zeros_like, where, concatenate, pad = ops.negative, ops.zeros_like, ops.where, ops.concatenate, ops.pad


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` in a form that a compiler of Python code calls but does not trace."""
    return function


def as_one_operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(tensor, pattern)` in the form that the backend runs fastest in eager code."""
    return function


def with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(matrix, index)`, whose `index` is a `Gathering`, in the form that the backend runs fastest."""
    return function


def is_faster_by_rows(matrix: Any) -> bool:
    """Returns whether it is fastest to handle the rows of a small pattern one by one, as with a compiler that fuses them."""
    return False


def is_faster_by_segments() -> bool:
    """Returns whether one `segment_sum` is the fastest way to sum the members of all groups: not on this backend.

    A module that returns true here also defines `segment_sum`, as `jax` does.
    """
    return False


def constant(array: np.ndarray, tensor: Any) -> Any:
    """Returns an array of booleans or numbers as a constant for operations with `tensor`."""
    return array if array.dtype == bool else ops.cast(array, tensor.dtype)


def take(matrix: Any, indices: np.ndarray) -> Any:
    """Returns the rows of `matrix` at non-negative indices."""
    # Without the dtype, Keras on JAX turns NumPy integers into floats if `keras.config.floatx()` is bfloat16.
    return ops.take(matrix, ops.convert_to_tensor(indices, dtype="int32"), axis=0)


def sum_of_matrices(tensor: Any) -> Any:
    """Returns the sum of the matrices along the first axis."""
    return ops.sum(tensor, axis=0)
