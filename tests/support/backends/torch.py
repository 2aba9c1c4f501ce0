"""Gradients of torch, how it computes in float64, and how it refuses operations that a machine lacks."""

import contextlib

import keras
import torch

double_precision = contextlib.nullcontext
# Keras 3.12 refuses some paddings of transposed convolutions on torch.
MISSING_OPERATIONS = (ValueError,) if keras.__version__ < "3.13" else ()


def raw_gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as torch gives them."""
    return torch.autograd.grad(loss(), [variable.value for variable in variables], allow_unused=True)
