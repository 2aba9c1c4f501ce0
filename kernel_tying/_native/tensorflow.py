"""The operations on TensorFlow. Eager calls also run as a graph, which TensorFlow optimizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from kernel_tying._native.keras_ops import is_faster_by_segments as is_faster_by_segments
from kernel_tying._native.keras_ops import untraced as untraced
from kernel_tying._native.keras_ops import with_indices as with_indices

_MAX_TRACED = 2**12  # positions of a pattern whose operations are traced as one graph
reshape, transpose, stack, unstack = tf.reshape, tf.transpose, tf.stack, tf.unstack
negative, zeros_like, where, pad = tf.negative, tf.zeros_like, tf.where, tf.pad
take = tf.gather


def as_one_operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(tensor, pattern)` in the form that the backend runs fastest in eager code."""

    # Eager operations and their gradients take ten times as long as those of a graph. Each graph has one shape, because
    # TensorFlow warns of functions that are traced for many shapes. The index arrays become constants of the graph, so a
    # large pattern runs eagerly.
    @lru_cache(maxsize=1024)
    def traced(pattern: Any, shape: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
        graph: Any = tf.function(lambda tensor: function(tensor, pattern), autograph=False)
        return graph.get_concrete_function(tf.TensorSpec(shape, dtype))

    def call(tensor: Any, pattern: Any) -> Any:
        if pattern.labels.size > _MAX_TRACED or not tf.executing_eagerly():
            return function(tensor, pattern)
        return traced(pattern, tuple(tensor.shape), tensor.dtype)(tensor)

    return call


def is_faster_by_rows(matrix: Any) -> bool:
    """Returns whether it is fastest to handle the rows of a small pattern one by one."""
    return True


def constant(array: np.ndarray, tensor: Any) -> Any:
    """Returns an array of booleans or numbers as a constant for operations with `tensor`."""
    return tf.constant(array, tf.bool if array.dtype == bool else tensor.dtype)


def concatenate(matrices: list[Any]) -> Any:
    """Returns matrices concatenated along the rows."""
    return tf.concat(matrices, axis=0)


def sum_of_matrices(tensor: Any) -> Any:
    """Returns the sum of the matrices along the first axis."""
    return tf.reduce_sum(tensor, axis=0)
