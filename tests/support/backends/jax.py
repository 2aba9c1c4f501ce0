"""Gradients of JAX, how it computes in float64, and how it refuses operations that a machine lacks."""

import functools

import jax
import keras

double_precision = functools.partial(jax.enable_x64, True)
MISSING_OPERATIONS = ()


def raw_gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as JAX gives them. What `loss` assigns is forgotten."""

    def loss_at(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True)), collect_losses=True):
            return loss()

    return jax.grad(loss_at)([variable.value for variable in variables])
