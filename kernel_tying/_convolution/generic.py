"""The tied convolution by group sums, and its gradients, in `keras.ops`.

    y = sum_g (S_g x) theta_g        z_g = S_g^T dy        dx = sum_g z_g theta_g^T        dtheta_g = x^T z_g

Work proceeds in chunks so that group sums stay in the cache. Gradients need only x, theta and dy. They compute the sums z_g
once, for both products. With strides, or with few input channels, other sums are smaller:

    dtheta_g = (S_g x)^T dy        dx = sum_g S_g^T (dy theta_g^T)

Inputs are channels-last. Free weights are a tensor `(K, in / channel_groups, out)`: entry g along the
first axis multiplies group sum g.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kernel_tying._convolution.geometry import FEW_CHANNELS, Geometry, Padding, samples_per_chunk, tile_size
from kernel_tying._convolution.lines import Offset
from kernel_tying._convolution.products import DenseProduct, product_of, total
from kernel_tying._convolution.sums import Grid, GroupSums, Read, Schedule, schedule
from kernel_tying._native import native
from kernel_tying.algebra import Tensor, accumulation_dtype

_STRIP_BYTES = 2**23  # of the im2col matrix of a strip
_NARROW_CHUNKS = 16  # times longer, measured for 3 input channels

ScanStep = Callable[[Any, tuple[Tensor, ...]], tuple[Any, Tensor]]
# scan(step, carry, xs, shape) works like `jax.lax.scan`: step(carry, x) -> (carry, y), each y of `shape`. One per backend.
Scan = Callable[[ScanStep, Any, tuple[Tensor, ...], tuple[int, ...]], tuple[Any, Tensor]]


def forward(inputs: Tensor, free: Tensor, geometry: Geometry, scan: Scan, sum_bytes: int) -> Tensor:
    """Returns `sum_g (S_g x) theta_g`, of shape `(batch, *spatial, out)`, in chunks of about `sum_bytes` per group sum."""
    product = product_of(_upcast(free), geometry.channel_groups)
    is_narrow = _is_narrow(inputs.shape[-1], free.shape[-1])
    channels = inputs.shape[-1] if is_narrow else max(inputs.shape[-1], free.shape[-1])
    sum_bytes *= _NARROW_CHUNKS if is_narrow else 1
    size = geometry.output_size(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, sum_bytes)
    samples, padding = tiles(inputs, geometry.padding, tile[0], size[0], geometry.reach[0])
    # A stride along the last spatial axis skips columns, so that axis cannot be merged with the channels.
    merged_channels = inputs.shape[-1] if product.allows_merged_axes and geometry.strides[-1] == 1 else 1
    additions = _schedule(geometry.sums, geometry.dilation, geometry.strides, tile, merged_channels)
    grid = geometry.grid

    def step(carry: Any, chunk: tuple[Tensor]) -> tuple[Any, Tensor]:
        padded = _padded(_upcast(chunk[0]), padding)
        images = _images(_merge_last_axes(padded, merged_channels), additions)
        if grid:
            outputs = _grid_convolution(images, additions, _upcast(free), grid, geometry.dilation, tile)
        else:
            outputs = ops.reshape(product.convolve(_group_sums(images, additions)), (-1, *tile, free.shape[-1]))
        return carry, ops.cast(outputs, inputs.dtype)

    length = samples_per_chunk(samples.shape[0], 4 * math.prod(tile) * channels, sum_bytes)
    _, outputs = _by_chunks(step, (), (samples,), length, (*tile, free.shape[-1]), scan)
    return untiled(outputs, size)


def backward(
    inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry, scan: Scan, sum_bytes: int
) -> tuple[Tensor, Tensor]:
    """Returns the gradients with respect to `inputs` and `free`, for the output gradient `upstream`."""
    if _has_small_input_sums(geometry, inputs.shape[-1], free.shape[-1]):
        return _backward_by_input_sums(inputs, free, upstream, geometry, scan, sum_bytes)
    product = product_of(_upcast(free), geometry.channel_groups)
    channels = max(inputs.shape[-1], free.shape[-1])
    size = tuple(inputs.shape[1:-1])
    tile = tile_size(geometry, size, channels, sum_bytes)
    samples, _ = tiles(inputs, ((0, 0),) * len(size), tile[0], size[0], 0)
    # S_g^T dy is a group sum of the zero-upsampled dy at stride 1, so the functions for `forward` also compute it.
    upstream = zero_upsample(upstream, geometry.strides)
    gradients, padding = tiles(upstream, geometry.adjoint_padding(size), tile[0], size[0], geometry.reach[0])
    merged_channels = free.shape[-1] if product.allows_merged_axes else 1
    additions = _schedule(geometry.adjoint_sums, geometry.dilation, (1,) * len(size), tile, merged_channels)

    def step(free_gradient: Tensor, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        padded = _padded(_upcast(chunk[1]), padding)
        images = _images(_merge_last_axes(padded, merged_channels), additions)
        input_gradient, more = product.gradients(_upcast(chunk[0]), _group_sums(images, additions))
        outputs = ops.reshape(input_gradient, (-1, *tile, inputs.shape[-1]))
        return free_gradient + more, ops.cast(outputs, inputs.dtype)

    xs, shape = (samples, gradients), (*tile, inputs.shape[-1])
    length = samples_per_chunk(samples.shape[0], 4 * math.prod(tile) * channels, sum_bytes)
    free_gradient, input_gradient = _by_chunks(step, product.zeros(), xs, length, shape, scan)
    return untiled(input_gradient, size), ops.cast(product.as_free(free_gradient), free.dtype)


def _is_narrow(channels: int, filters: int) -> bool:
    """Returns whether a layer has few input channels and many more filters. Copies of the outputs then cost most."""
    # At 32 channels and 128 filters, group sums of the output gradient are faster.
    return channels <= FEW_CHANNELS and filters >= 4 * channels


def _has_small_input_sums(geometry: Geometry, channels: int, filters: int) -> bool:
    """Returns whether group sums of the inputs are much smaller than those of the zero-upsampled output gradient."""
    return geometry.channel_groups == 1 and (max(geometry.strides) > 1 or _is_narrow(channels, filters))


def _backward_by_input_sums(
    inputs: Tensor, free: Tensor, upstream: Tensor, geometry: Geometry, scan: Scan, sum_bytes: int
) -> tuple[Tensor, Tensor]:
    """Returns the gradients by `dtheta_g = (S_g x)^T dy` and `dx = sum_g S_g^T (dy theta_g^T)`."""
    product, channels = DenseProduct(_upcast(free)), inputs.shape[-1]
    size, input_size = geometry.output_size(inputs.shape[1:-1]), tuple(inputs.shape[1:-1])
    merged_channels = channels if geometry.strides[-1] == 1 else 1
    additions = _schedule(geometry.sums, geometry.dilation, geometry.strides, size, merged_channels)
    inside = tuple(slice(before, before + length) for (before, _), length in zip(geometry.padding, input_size, strict=True))

    def step(free_gradient: Tensor, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        padded = _padded(_upcast(chunk[0]), geometry.padding)
        merged = _merge_last_axes(padded, merged_channels)
        sums = _group_sums(_images(merged, additions), additions)
        parts, more = product.transposed(sums, _upcast(chunk[1]))
        image = _transposed_sums([ops.reshape(part, (-1, *sums[0].shape[1:])) for part in parts], additions, merged.shape)
        input_gradient = ops.reshape(image, (-1, *padded.shape[1:]))[(slice(None), *inside)]
        return free_gradient + more, ops.cast(input_gradient, inputs.dtype)

    sum_bytes *= _NARROW_CHUNKS if _is_narrow(channels, free.shape[-1]) else 1
    length = samples_per_chunk(inputs.shape[0], 4 * math.prod(input_size) * channels, sum_bytes)
    zeros = ops.zeros((free.shape[0] * channels, free.shape[-1]), dtype=product.free.dtype)
    free_gradient, input_gradient = _by_chunks(step, zeros, (inputs, upstream), length, (*input_size, channels), scan)
    return input_gradient, ops.cast(ops.reshape(free_gradient, free.shape), free.dtype)


def _transposed_sums(parts: list[Tensor], additions: Schedule, shape: Sequence[int]) -> Tensor:
    """Returns `sum_g S_g^T parts_g`, an image of `shape` as the one that the group sums read."""
    sizes = (shape[1 : 1 + len(additions.groups[0][0].window)], *additions.sizes)
    # Summands of the same strides and phase are added before zeros are put between their entries.
    summands: dict[int, dict[tuple[Offset, Offset], list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def add(part: Tensor, reads: Sequence[Read]) -> None:
        for image, window, sign in reads:
            strides = tuple(axis.step for axis in window)
            starts, phase = zip(*(divmod(axis.start, axis.step) for axis in window), strict=True)
            size = [len(range(*axis)) for axis in zip(phase, sizes[image], strides, strict=True)]
            placed = _placed(part, starts, size)
            summands[image][strides, phase].append(placed if sign > 0 else -placed)

    def summed(image: int) -> Tensor:
        by_phase = summands.pop(image).items()
        return total(_placed(zero_upsample(total(same), strides), phase, sizes[image]) for (strides, phase), same in by_phase)

    for part, reads in zip(parts, additions.groups, strict=True):
        add(part, reads)
    for image in range(len(additions.steps), 0, -1):
        add(summed(image), additions.steps[image - 1])
    return summed(0)


def _placed(part: Tensor, starts: Offset, size: Sequence[int]) -> Tensor:
    """Returns an image of zeros of spatial `size` with `part` at `starts`."""
    counts = part.shape[1 : 1 + len(size)]
    padding = [(start, length - start - count) for start, length, count in zip(starts, size, counts, strict=True)]
    channels = [(0, 0)] * (len(part.shape) - 1 - len(padding))
    return native.pad(part, [(0, 0), *padding, *channels])


def _schedule(sums: GroupSums, dilation: Offset, strides: Offset, size: Offset, merged_channels: int) -> Schedule:
    """Returns the schedule for images whose last spatial axis is merged with `merged_channels` (1: not merged).

    An offset along the merged axis skips all channels of a position.
    """
    merged_dilation = (*dilation[:-1], dilation[-1] * merged_channels)
    return schedule(sums, merged_dilation, strides, (*size[:-1], size[-1] * merged_channels))


def _merge_last_axes(tensor: Tensor, merged_channels: int) -> Tensor:
    """Returns the tensor with its last two axes merged unless `merged_channels` is 1. XLA's loops then run over long rows."""
    if merged_channels == 1:
        return tensor
    return ops.reshape(tensor, (-1, *tensor.shape[1:-2], math.prod(tensor.shape[-2:])))


def _images(inputs: Tensor, additions: Schedule) -> list[Tensor]:
    """Returns the images that the schedule reads: the padded inputs, then the sums that several tied groups share."""
    images = [inputs]
    for reads in additions.steps:
        images.append(_sum(images, reads))
    return images


def _group_sums(images: list[Tensor], additions: Schedule) -> list[Tensor]:
    """Returns the group sums, one tensor per tied group."""
    return [_sum(images, reads) for reads in additions.groups]


def _grid_convolution(
    images: list[Tensor], additions: Schedule, free: Tensor, grid: Grid, dilation: Offset, size: Offset
) -> Tensor:
    """Returns the output as a dilated convolution of the single image that all tied groups read.

    With equal blocks this image holds box sums, and the free weights are its kernel. Requires one read per tied group, at
    offsets on `grid`.
    """
    (first,), (last,) = additions.groups[0], additions.groups[-1]
    window = (slice(low.start, high.stop) for low, high in zip(first.window, last.window, strict=True))
    merged, channels = images[first.image][(slice(None), *window)], free.shape[1]
    # `ops.conv` needs the last spatial axis and the channels apart again, if they are merged.
    width = math.prod(merged.shape[len(dilation) :]) // channels
    image = ops.reshape(merged, (-1, *merged.shape[1 : len(dilation)], width, channels))
    kernel = ops.reshape(free, (*grid.counts, *free.shape[1:]))
    dilation_rate = tuple(map(operator.mul, grid.spacing, dilation))
    reach = (grid.counts[0] - 1) * dilation_rate[0]
    # In strips along the first spatial axis, because XLA's im2col materializes every receptive field.
    receptive_field_bytes = 4 * math.prod(kernel.shape[:-1])
    height = max(1, _STRIP_BYTES // (receptive_field_bytes * math.prod(size[1:])))
    strips = (image[:, start : start + height + reach] for start in range(0, size[0], height))
    outputs = [ops.conv(strip, kernel, dilation_rate=dilation_rate, data_format="channels_last") for strip in strips]
    return ops.concatenate(outputs, axis=1)


def _sum(images: list[Tensor], reads: Sequence[Read]) -> Tensor:
    """Returns the signed sum of the windows of `images` that `reads` select."""
    first, *rest = (images[read.image][(slice(None), *read.window)] for read in reads)
    total = first if reads[0].sign > 0 else -first
    for tensor, read in zip(rest, reads[1:], strict=True):
        total = total + tensor if read.sign > 0 else total - tensor
    return total


def _upcast(tensor: Tensor) -> Tensor:
    """Returns the tensor in the dtype in which sums are computed: float32 for half precision."""
    dtype = str(tensor.dtype).removeprefix("torch.") if not hasattr(tensor.dtype, "name") else tensor.dtype.name
    return ops.cast(tensor, accumulation_dtype(dtype))


def _padded(tensor: Tensor, padding: Padding) -> Tensor:
    return native.pad(tensor, [(0, 0), *padding, (0, 0)]) if any(map(any, padding)) else tensor


def zero_upsample(tensor: Tensor, strides: Offset) -> Tensor:
    """Returns the tensor with `stride - 1` zeros between its entries along each spatial axis."""
    for axis, stride in enumerate(strides, start=1):
        if stride > 1:
            shape = list(ops.shape(tensor))
            # Pad a new axis after `axis` and merge both: zeros follow every entry. Those after the last are cut off.
            tensor = ops.expand_dims(tensor, axis + 1)
            padding = [(0, 0)] * len(tensor.shape)
            padding[axis + 1] = (0, stride - 1)
            shape[axis] *= stride
            tensor = ops.reshape(native.pad(tensor, padding), shape)
            keep = [slice(None)] * len(shape)
            keep[axis] = slice(0, shape[axis] - stride + 1)
            tensor = tensor[tuple(keep)]
    return tensor


def tiles(tensor: Tensor, padding: Padding, tile: int, length: int, halo: int) -> tuple[Tensor, Padding]:
    """Returns samples cut into tiles along the first spatial axis, and the padding that is still to be applied.

    Each tile becomes a sample of its own, so that few rows of all its group sums are in the cache at once.

    Args:
        tensor: samples `(batch, *spatial, channels)`.
        padding: zeros before and after each spatial axis. Those of the first axis are applied before it is cut.
        tile: rows of output per tile.
        length: rows of output per sample.
        halo: rows of input that a tile reads beyond `tile`. Neighbouring tiles overlap by that many.
    """
    count = math.ceil(length / tile)
    if count == 1:
        return tensor, padding
    before = padding[0][0]
    after = count * tile + halo - before - tensor.shape[1]
    padded = _padded(tensor, ((before, after), *((0, 0) for _ in padding[1:])))
    cut = ops.stack([padded[:, index * tile : (index + 1) * tile + halo] for index in range(count)], axis=1)
    return ops.reshape(cut, (-1, tile + halo, *tensor.shape[2:])), ((0, 0), *padding[1:])


def untiled(tensor: Tensor, size: Offset) -> Tensor:
    """Returns outputs that were computed in tiles as whole samples of spatial `size`."""
    tile = tensor.shape[1]
    count = math.ceil(size[0] / tile)
    return tensor if count == 1 else ops.reshape(tensor, (-1, count * tile, *tensor.shape[2:]))[:, : size[0]]


def _by_chunks(
    step: ScanStep, carry: Any, samples: tuple[Tensor, ...], length: int, shape: tuple[int, ...], scan: Scan
) -> tuple[Any, Tensor]:
    """Scans over chunks of `length` samples. Returns the last carry and all outputs, each sample's of `shape`."""
    if samples[0].shape[0] in (0, length):
        return step(carry, samples)
    carry, outputs = scan(step, carry, tuple(_chunks(tensor, length) for tensor in samples), (length, *shape))
    return carry, ops.reshape(outputs, (-1, *shape))[: ops.shape(samples[0])[0]]


def _chunks(samples: Tensor, length: int) -> Tensor:
    """Returns samples in chunks of `length` along a new first axis. There is at least one chunk."""
    if samples.shape[0] is None:  # `length` may not divide an unknown batch size: samples of zeros fill the last chunk
        count = ops.shape(samples)[0]
        missing_sample = ops.maximum(1 - count, 0)  # 1 for an empty batch
        padding = [(0, 0)] * len(samples.shape)
        padding[0] = (0, missing_sample + -ops.maximum(count, 1) % length)
        samples = native.pad(samples, padding)
    return ops.reshape(samples, (-1, length, *samples.shape[1:]))
