"""Oracles in NumPy: the dense matrix `B` of a pattern in float64, and what is computed with it."""

import numpy as np

from kernel_tying.testing import dense_basis


def dense_expand(free, pattern):
    """Returns `B theta` in float64."""
    return _by_fields(dense_basis(pattern), free, pattern.free_shape, pattern.shape)


def dense_average(kernel, pattern):
    """Returns `pinv(B) kernel` in float64."""
    return _by_fields(np.linalg.pinv(dense_basis(pattern)), kernel, pattern.shape, pattern.free_shape)


def copied_first_members(kernel, pattern):
    """Returns the kernel in which each member of a group is plus or minus the group's first member, pinned entries zero."""
    copies = np.zeros((pattern.labels.size,) * 2)
    for position, (label, sign) in enumerate(zip(pattern.labels.flat, pattern.signs.flat, strict=True)):
        copies[position, list(pattern.labels.flat).index(label)] = sign
    return _by_fields(copies, kernel, pattern.shape, pattern.shape)


def dense_project(kernel, pattern):
    """Returns `B pinv(B) kernel` in float64."""
    return dense_expand(dense_average(kernel, pattern), pattern)


def dense_adjoint(kernel, pattern):
    """Returns `B^T kernel` in float64."""
    return _by_fields(dense_basis(pattern).T, kernel, pattern.shape, pattern.free_shape)


def _by_fields(matrix, array, source, target):
    """Returns `matrix` times each field of `array`: fields of shape `source` become fields of shape `target`."""
    array = np.asarray(array, "float64")
    source, target = (shape + (1,) * (array.ndim - len(shape)) for shape in (source, target))
    counts = [size // members for size, members in zip(array.shape, source, strict=True)]
    result = np.zeros([count * members for count, members in zip(counts, target, strict=True)])
    for field in np.ndindex(*counts):
        result[_of_field(field, target)] = (matrix @ array[_of_field(field, source)].ravel()).reshape(target)
    return result


def _of_field(field, members):
    return tuple(slice(index * size, (index + 1) * size) for index, size in zip(field, members, strict=True))


def root_sizes(pattern, free):
    """Returns the square root of the group size of each free weight, in the shape of `free`."""
    sizes = np.linalg.norm(dense_basis(pattern), axis=0)
    return _by_fields(np.diag(sizes), np.ones(free.shape), pattern.free_shape, pattern.free_shape)
