"""Oracles in plain NumPy and gradients, shared by the tests."""

import importlib
import re

import keras
import numpy as np
import pytest
from keras import ops

import kernel_tying as kt
from kernel_tying.testing import dense_basis

raw_gradients = importlib.import_module(f"backends.{keras.backend.backend()}").raw_gradients


def dense_expand(free, pattern):
    """Returns `B theta` in float64."""
    return _matrix_along_tied_axes(dense_basis(pattern), free, pattern, [size for size in pattern.shape if size > 1])


def dense_average(kernel, pattern):
    """Returns `pinv(B) kernel` in float64."""
    ones = [1] * (sum(size > 1 for size in pattern.shape) - 1)
    return _matrix_along_tied_axes(np.linalg.pinv(dense_basis(pattern)), kernel, pattern, [pattern.num_free, *ones])


def dense_project(kernel, pattern):
    """Returns `B pinv(B) kernel` in float64."""
    return dense_expand(dense_average(kernel, pattern), pattern)


def dense_adjoint(kernel, pattern):
    """Returns `B^T kernel` in float64."""
    ones = [1] * (sum(size > 1 for size in pattern.shape) - 1)
    return _matrix_along_tied_axes(dense_basis(pattern).T, kernel, pattern, [pattern.num_free, *ones])


def _matrix_along_tied_axes(matrix, array, pattern, sizes):
    tied = [axis for axis, size in enumerate(pattern.shape) if size > 1]
    moved = np.moveaxis(np.asarray(array, "float64"), tied, range(len(tied)))
    product = matrix @ moved.reshape(matrix.shape[1], -1)
    return np.moveaxis(product.reshape(*sizes, *moved.shape[len(tied) :]), range(len(tied)), tied)


def gradient(function, value, upstream=None):
    """Returns `upstream` times the Jacobian of `function` at the array `value`, as the backend gives it, not converted."""
    variable = keras.Variable(value)

    def loss():
        output = function(variable)
        return ops.sum(output if upstream is None else output * ops.convert_to_tensor(upstream, dtype=output.dtype))

    return raw_gradients(loss, [variable])[0]


def array(tensor):
    """Returns a tensor of the backend as a NumPy array."""
    return ops.convert_to_numpy(tensor)


def raises_tying_error(received):
    """Expects a TyingError of three parts: a rule, `received` behind the word Received, a way out."""
    return pytest.raises(kt.TyingError, match=rf"(?s)^.+[.!?] Received.*{re.escape(received)}.*[.!?] .+\.$")


def gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as arrays."""
    return [array(one) for one in raw_gradients(loss, variables)]


def train_step(loss, variables, optimizer):
    """Takes a step by hand, with gradients as the backend gives them: a sparse one must reach the optimizer as it is."""
    optimizer.apply(raw_gradients(lambda: optimizer.scale_loss(loss()), variables), variables)


def root_sizes(pattern, rank):
    """Returns the square roots of the group sizes in the shape of free weights of `rank` axes."""
    shape = np.ones(rank, int)
    shape[np.flatnonzero(np.array(pattern.shape) > 1)[0]] = -1
    return np.linalg.norm(dense_basis(pattern), axis=0).reshape(shape)
