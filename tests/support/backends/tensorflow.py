"""Gradients of TensorFlow, how it computes in float64, and how it refuses operations that a machine lacks."""

import contextlib

import tensorflow as tf

double_precision = contextlib.nullcontext
# CPUs on which TensorFlow runs without oneDNN have no convolutions with channels first, and no dilated transposed ones.
MISSING_OPERATIONS = (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError)


def raw_gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as TensorFlow gives them: a sparse one stays sparse."""
    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, [variable.value for variable in variables])
