import contextlib

import tensorflow as tf

double_precision = contextlib.nullcontext


def raw_gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as TensorFlow gives them: a sparse one stays sparse."""
    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, [variable.value for variable in variables])
