"""The tied convolution on group sums and its gradients in `keras.ops`, chunk by chunk, so that group sums stay in the cache.

    y = sum_g (S_g x) theta_g        z_g = S_g^T dy        dx = sum_g z_g theta_g^T        dtheta_g = x^T z_g

Gradients need nothing but x, theta and dy, and take sums once for both of their products. Inputs are channels-last; free
weights are a tensor `(K, in / groups, out)` here, with one entry along the first axis for each group sum.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kernel_tying.algebra import Tensor, averaging_dtype
from kernel_tying.convolution.geometry import Geometry, Padding, samples_per_chunk, tile_size
from kernel_tying.convolution.products import product_of
from kernel_tying.convolution.sums import GroupSums, Lattice, Offset, Read, Schedule, schedule

_STRIP_BYTES = 2**23  # of what a kernel on a lattice sees

Step = Callable[[Any, tuple[Tensor, ...]], tuple[Any, Tensor]]
# scan(step, carry, xs, shape), with step(carry, x) -> (carry, y) and y of a shape, as `jax.lax.scan`: each backend has its own.
Scan = Callable[[Step, Any, tuple[Tensor, ...], tuple[int, ...]], tuple[Any, Tensor]]


def forward(inputs: Tensor, free: Tensor, geometry: Geometry, scan: Scan, chunk_bytes: int) -> Tensor:
    """Returns `sum_g (S_g x) theta_g`, of shape `(batch, *spatial, out)`, from group sums of so many bytes at a time."""
    product, channels = product_of(_wide(free), geometry.groups), max(inputs.shape[-1], free.shape[-1])
    size = geometry.output_size(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, chunk_bytes)
    samples, padding = tiles(inputs, geometry.padding, tile[0], size[0], geometry.reach[0])
    merged = inputs.shape[-1] if product.merges_rows and geometry.strides[-1] == 1 else 1
    plan, lattice = _schedule(geometry.sums, geometry.dilation, geometry.strides, tile, merged), geometry.lattice

    def step(carry: Any, chunk: tuple[Tensor]) -> tuple[Any, Tensor]:
        images = shared_sums(_in_rows(_padded(_wide(chunk[0]), padding), merged), plan)
        if lattice:
            outputs = _lattice_convolution(images, plan, _wide(free), lattice, geometry.dilation, tile)
        else:
            outputs = ops.reshape(product.convolve(group_sums(images, plan)), (-1, *tile, free.shape[-1]))
        return carry, ops.cast(outputs, inputs.dtype)

    length = samples_per_chunk(samples.shape[0], 4 * math.prod(tile) * channels, chunk_bytes)
    _, outputs = _by_chunks(step, (), (samples,), length, (*tile, free.shape[-1]), scan)
    return untiled(outputs, size)


def backward(
    inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry, scan: Scan, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Returns the gradients in `inputs` and in `free` for a gradient in the output."""
    product, channels = product_of(_wide(free), geometry.groups), max(inputs.shape[-1], free.shape[-1])
    size = tuple(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, chunk_bytes)
    samples, _ = tiles(inputs, ((0, 0),) * len(size), tile[0], size[0], 0)
    upstream = spread(upstream, geometry.strides)
    gradients, padding = tiles(upstream, geometry.adjoint_padding(size), tile[0], size[0], geometry.reach[0])
    merged = free.shape[-1] if product.merges_rows else 1
    plan = _schedule(geometry.adjoint_sums, geometry.dilation, (1,) * len(size), tile, merged)

    def step(carry: Tensor, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        sums = group_sums(shared_sums(_in_rows(_padded(_wide(chunk[1]), padding), merged), plan), plan)
        input_gradient, free_gradient = product.gradients(_wide(chunk[0]), sums)
        outputs = ops.reshape(input_gradient, (-1, *tile, inputs.shape[-1]))
        return carry + free_gradient, ops.cast(outputs, inputs.dtype)

    xs, shape = (samples, gradients), (*tile, inputs.shape[-1])
    length = samples_per_chunk(samples.shape[0], 4 * math.prod(tile) * channels, chunk_bytes)
    total, outputs = _by_chunks(step, product.zeros(), xs, length, shape, scan)
    return untiled(outputs, size), ops.cast(product.as_free(total), free.dtype)


def _schedule(sums: GroupSums, dilation: Offset, strides: Offset, size: Offset, merged: int) -> Schedule:
    """Returns the schedule for images whose last spatial axis is merged with so many channels."""
    return schedule(sums, (*dilation[:-1], dilation[-1] * merged), strides, (*size[:-1], size[-1] * merged))


def _in_rows(tensor: Tensor, merged: int) -> Tensor:
    """Returns the tensor with its last two axes as one if channels are merged, so that XLA's loops run over long rows."""
    return tensor if merged == 1 else ops.reshape(tensor, (-1, *tensor.shape[1:-2], math.prod(tensor.shape[-2:])))


def shared_sums(inputs: Tensor, plan: Schedule) -> list[Tensor]:
    """Returns padded inputs, followed by the sums that groups share."""
    images = [inputs]
    for reads in plan.steps:
        images.append(_sum(images, reads))
    return images


def group_sums(images: list[Tensor], plan: Schedule) -> list[Tensor]:
    """Returns the group sums."""
    return [_sum(images, reads) for reads in plan.groups]


def _lattice_convolution(
    images: list[Tensor], plan: Schedule, free: Tensor, lattice: Lattice, dilation: Offset, size: Offset
) -> Tensor:
    """Returns the output by a dilated convolution of the one image that all groups read: box sums, if they are equal blocks.

    It is taken in strips along the first spatial axis, as XLA copies what the kernel sees at each output side by side.
    """
    (first,), (last,) = plan.groups[0], plan.groups[-1]
    window = (slice(one.start, other.stop) for one, other in zip(first.window, last.window, strict=True))
    rows, channels = images[first.image][(slice(None), *window)], free.shape[1]
    width = math.prod(rows.shape[len(dilation) :]) // channels
    image = ops.reshape(rows, (-1, *rows.shape[1 : len(dilation)], width, channels))
    kernel = ops.reshape(free, (*lattice.counts, *free.shape[1:]))
    steps = tuple(map(operator.mul, lattice.spacing, dilation))
    reach = (lattice.counts[0] - 1) * steps[0]
    height = max(1, _STRIP_BYTES // (4 * math.prod(kernel.shape[:-1]) * math.prod(size[1:])))
    strips = (image[:, start : start + height + reach] for start in range(0, size[0], height))
    outputs = [ops.conv(strip, kernel, dilation_rate=steps, data_format="channels_last") for strip in strips]
    return ops.concatenate(outputs, axis=1)


def _sum(images: list[Tensor], reads: Sequence[Read]) -> Tensor:
    first, *rest = (images[read.image][(slice(None), *read.window)] for read in reads)
    total = first if reads[0].sign > 0 else -first
    for tensor, read in zip(rest, reads[1:], strict=True):
        total = total + tensor if read.sign > 0 else total - tensor
    return total


def _wide(tensor: Tensor) -> Tensor:
    """Returns half-precision tensors in float32, in which sums are taken."""
    dtype = str(tensor.dtype).removeprefix("torch.") if not hasattr(tensor.dtype, "name") else tensor.dtype.name
    return ops.cast(tensor, averaging_dtype(dtype))


def _padded(tensor: Tensor, padding: Padding) -> Tensor:
    return ops.pad(tensor, [(0, 0), *padding, (0, 0)]) if any(map(any, padding)) else tensor


def spread(tensor: Tensor, strides: Offset) -> Tensor:
    """Returns the tensor with zeros between its entries, so that they lie `strides` apart."""
    for axis, stride in enumerate(strides, start=1):
        if stride > 1:
            shape = list(ops.shape(tensor))
            tensor = ops.expand_dims(tensor, axis + 1)
            padding = [(0, 0)] * len(tensor.shape)
            padding[axis + 1] = (0, stride - 1)
            shape[axis] *= stride
            tensor = ops.reshape(ops.pad(tensor, padding), shape)
            keep = [slice(None)] * len(shape)
            keep[axis] = slice(0, shape[axis] - stride + 1)
            tensor = tensor[tuple(keep)]
    return tensor


def tiles(tensor: Tensor, padding: Padding, tile: int, length: int, halo: int) -> tuple[Tensor, Padding]:
    """Returns samples cut into tiles along the first spatial axis, each a sample of its own, and the padding left to do."""
    count = math.ceil(length / tile)
    if count == 1:
        return tensor, padding
    before = padding[0][0]
    after = count * tile + halo - before - tensor.shape[1]
    padded = _padded(tensor, ((before, after), *((0, 0) for _ in padding[1:])))
    tiles = ops.stack([padded[:, start * tile : (start + 1) * tile + halo] for start in range(count)], axis=1)
    return ops.reshape(tiles, (-1, tile + halo, *tensor.shape[2:])), ((0, 0), *padding[1:])


def untiled(tensor: Tensor, size: Offset) -> Tensor:
    """Returns samples of a spatial size that were computed in tiles."""
    tile = tensor.shape[1]
    count = math.ceil(size[0] / tile)
    return tensor if count == 1 else ops.reshape(tensor, (-1, count * tile, *tensor.shape[2:]))[:, : size[0]]


def _by_chunks(
    step: Step, carry: Any, samples: tuple[Tensor, ...], length: int, shape: tuple[int, ...], scan: Scan
) -> tuple[Any, Tensor]:
    """Scans over chunks of so many samples, with outputs of a shape each. Returns the last carry and all outputs."""
    if samples[0].shape[0] in (0, length):
        return step(carry, samples)
    carry, outputs = scan(step, carry, tuple(_chunks(one, length) for one in samples), (length, *shape))
    return carry, ops.reshape(outputs, (-1, *shape))[: ops.shape(samples[0])[0]]


def _chunks(samples: Tensor, length: int) -> Tensor:
    """Returns samples in chunks along a new first axis, one at least, with samples of zeros at the end if need be."""
    if samples.shape[0] is None:
        count = ops.shape(samples)[0]
        padding = [(0, 0)] * len(samples.shape)
        padding[0] = (0, -ops.maximum(count, 1) % length + ops.maximum(1 - count, 0))
        samples = ops.pad(samples, padding)
    return ops.reshape(samples, (-1, length, *samples.shape[1:]))
