"""The operations on torch, called one by one unless torch traces or compiles them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from kernel_tying._native.keras_ops import is_faster_by_segments as is_faster_by_segments
from kernel_tying._native.keras_ops import with_indices as with_indices

# torch 2.9 cannot compile these operations for layers of several sizes ("cannot determine truth value of Relational").
TRACES_ALL_SIZES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_LONG_ROW = 2**13  # break-even: with longer rows, the memory of gathered rows costs more than one call per row
reshape, transpose, stack, unstack = torch.reshape, torch.permute, torch.stack, torch.unbind
negative, zeros_like, where, concatenate = torch.neg, torch.zeros_like, torch.where, torch.cat
untraced = torch.compiler.disable  # Dynamo would take NumPy's work on labels for torch's


def as_one_operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(tensor, pattern)` in the form that the backend runs fastest in eager code."""
    return function if TRACES_ALL_SIZES else untraced(function)


def is_faster_by_rows(matrix: Any) -> bool:
    """Returns whether it is fastest to handle the rows of a small pattern one by one."""
    jit: Any = torch.jit  # `is_tracing` is missing from torch's type stubs
    # Rows also keep index constants out of exported models. A tensor subclass means a trace or a sharded tensor.
    is_traced = torch.compiler.is_compiling() or jit.is_tracing() or type(matrix) is not torch.Tensor
    return is_traced or matrix.shape[1] >= _LONG_ROW


def constant(array: np.ndarray, tensor: Any) -> Any:
    """Returns an array of booleans or numbers as a constant for operations with `tensor`."""
    # Not cached: sharing the array's memory is free, and a cached tensor would belong to an inference mode or a trace.
    shared = torch.from_numpy(array)
    return shared if tensor.is_cpu else shared.to(tensor.device)


def take(matrix: Any, indices: Any) -> Any:
    """Returns the rows of `matrix` at non-negative indices."""
    indices = constant(indices, matrix)
    if matrix.shape[1] == 1:  # four times as fast as an embedding of rows of length 1
        return matrix[:, 0].index_select(0, indices)[:, None]
    return torch.embedding(matrix, indices)  # its gradient is deterministic on GPUs too


def pad(tensor: Any, widths: Sequence[tuple[int, int]]) -> Any:
    """Returns the tensor with zeros before and after each axis."""
    # `keras.ops.pad` counts its calls, so Dynamo would compile each call again.
    return torch.nn.functional.pad(tensor, list(itertools.chain(*reversed(widths))))


def sum_of_matrices(tensor: Any) -> Any:
    """Returns the sum of the matrices along the first axis."""
    return torch.sum(tensor, dim=0)
