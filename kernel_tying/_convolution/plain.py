"""The tied convolution in plain operators of static shapes: fixed depthwise convolutions, then small stock convolutions.

Exporters and graph compilers trace this form. It has no loops and no custom gradients, and the batch size may be unknown.
Runtimes compute a sum of shifted inputs fastest as a depthwise convolution, because each slice would be a copy.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from kernel_tying._convolution.backend import BACKEND
from kernel_tying._convolution.factors import Factor, Part, Signs
from kernel_tying._convolution.geometry import Geometry, Padding
from kernel_tying._convolution.lines import Offset, reach_of
from kernel_tying._native import native
from kernel_tying.algebra import Tensor

# A runtime transposes images around each convolution whose data format is not the backend's own.
DATA_FORMAT = "channels_first" if keras.backend.backend() == "torch" else "channels_last"


def convolve(inputs: Tensor, free: Tensor, factors: Iterable[Factor], geometry: Geometry, channels: int) -> Tensor:
    """Returns `sum_f W_f * (D_f * x)` over the factors of the tied kernel.

    Args:
        inputs: a tensor in `DATA_FORMAT`, as are the outputs.
        free: the free weights of each tied group, a tensor `(K, in / channel_groups, out)`.
        factors: the factors of the tied kernel.
        geometry: strides, dilation, padding and the other numbers that do not depend on values.
        channels: the number of input channels. Some tracers make the sizes of tensors symbolic, but kernels need a number.
    """
    if max(geometry.strides) > 1:  # no backend dilates a convolution with strides, as a grid may need
        factors = itertools.chain(*(factor.alone() for factor in factors))
    return _total(_convolve_factor(inputs, free, factor, geometry, channels) for factor in factors)


def _convolve_factor(inputs: Tensor, free: Tensor, factor: Factor, geometry: Geometry, channels: int) -> Tensor:
    """Returns `W * (D * x)` for one factor, with the strides and the padding of the tied convolution."""
    margins = [_margins(part, factor, geometry) for part in factor.parts]
    is_same = all(_is_same_padding(*pair, factor, geometry) for pair in zip(margins, factor.parts, strict=True))
    padding = "same" if is_same else "valid"
    images = []
    for part, own_margins in zip(factor.parts, margins, strict=True):
        image = inputs if is_same else _padded_or_cropped(inputs, own_margins)
        for stage in part.stages:
            image = _convolve_signs(image, stage, geometry.dilation, padding, channels)
        images.append(image)
    return _convolve_free(_total(images), free, factor, geometry, padding)


def _margins(part: Part, factor: Factor, geometry: Geometry) -> Padding:
    """Returns how far a part reads beyond the inputs, before and after each axis. Negative numbers are inputs not read."""
    starts = map(operator.add, factor.start, part.start)
    reaches = map(operator.add, factor.grid_reach, part.reach)
    axes = zip(geometry.padding, geometry.kernel_size, starts, reaches, geometry.dilation, strict=True)
    return tuple(
        (before - start * rate, after - (size - 1 - start - reach) * rate) for (before, after), size, start, reach, rate in axes
    )


def _is_same_padding(margins: Padding, part: Part, factor: Factor, geometry: Geometry) -> bool:
    """Returns whether each convolution of a part can pad its own inputs with "same".

    This holds at stride 1 if the part reads equally far in both directions, along each axis in one convolution only.
    """
    reaches = zip(factor.grid_reach, *(stage.reach for stage in part.stages), strict=True)
    is_single = all(sum(map(bool, own)) <= 1 for own in reaches)
    reach = _times(tuple(map(operator.add, factor.grid_reach, part.reach)), geometry.dilation)
    is_centred = all(before == after == distance / 2 for (before, after), distance in zip(margins, reach, strict=True))
    return is_single and is_centred and max(geometry.strides) == 1


def _padded_or_cropped(inputs: Tensor, margins: Padding) -> Tensor:
    """Returns the inputs with zeros added at positive margins, and without the inputs at negative ones."""
    inside = [slice(max(-before, 0), min(after, 0) or None) for before, after in margins]
    if any(part != slice(0, None) for part in inside):
        inputs = inputs[_with_channels(inside, slice(None))]
    padding = [(max(before, 0), max(after, 0)) for before, after in margins]
    return _pad(inputs, padding) if any(map(any, padding)) else inputs


def _convolve_signs(image: Tensor, signs: Signs, dilation: Offset, padding: str, channels: int) -> Tensor:
    """Returns the convolution of each channel with a kernel of signs."""
    rate = _times(signs.spacing, dilation)
    if len(signs.shape) > 2:  # Keras has no depthwise convolution of volumes
        return _sum_of_slices(image, signs, rate, padding)
    entries = ops.convert_to_tensor(signs.entries, dtype=keras.backend.standardize_dtype(image.dtype))
    kernel = ops.broadcast_to(ops.reshape(entries, (*signs.shape, 1, 1)), (*signs.shape, channels, 1))
    _, depthwise_conv = BACKEND.traced_convolutions()
    return depthwise_conv(image, kernel, (1,) * len(rate), padding, DATA_FORMAT, rate)


def _sum_of_slices(image: Tensor, signs: Signs, rate: Offset, padding: str) -> Tensor:
    """Returns the convolution of each channel with a kernel of signs, computed without a kernel."""
    reach = reach_of(signs.shape, rate)
    if padding == "same":
        image = _pad(image, [(distance // 2, distance // 2) for distance in reach])
    images = []
    for sign, position in zip(signs.entries, itertools.product(*map(range, signs.shape)), strict=True):
        if sign:
            starts = _times(position, rate)
            window = [slice(start, start - last or None) for start, last in zip(starts, reach, strict=True)]
            part = image[_with_channels(window, slice(None))]
            images.append(part if sign > 0 else -part)
    return _total(images)


def _convolve_free(image: Tensor, free: Tensor, factor: Factor, geometry: Geometry, padding: str) -> Tensor:
    """Returns the convolution with `W`, the signed free weights of a factor at their positions on the grid."""
    # Slices, because some exporters lack the integers of `ops.take`.
    weights = [free[group : group + 1] * sign for group, sign in zip(factor.groups, factor.group_signs, strict=True)]
    kernel = ops.reshape(ops.concatenate(weights), (*factor.grid.counts, *free.shape[1:]))
    dilation = _times(factor.grid.spacing, geometry.dilation) if max(factor.grid.counts) > 1 else (1,) * len(geometry.dilation)
    convolve, convolve_depthwise = BACKEND.traced_convolutions()
    has_depthwise = len(geometry.kernel_size) <= 2
    if has_depthwise and kernel.shape[-2] == 1 and geometry.channel_groups > 1:
        kernel = ops.reshape(kernel, (*factor.grid.counts, geometry.channel_groups, -1))
        convolve = convolve_depthwise
    return convolve(image, kernel, geometry.strides, padding, DATA_FORMAT, dilation)


def _pad(image: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    return native.pad(image, _with_channels(padding, (0, 0)))


def _with_channels(axes: Sequence[Any], whole: Any) -> tuple[Any, ...]:
    """Returns one entry per axis of a batch, given those of the spatial axes and the entry of the others."""
    return (whole, *axes, whole) if DATA_FORMAT == "channels_last" else (whole, whole, *axes)


def _times(first: Offset, second: Offset) -> Offset:
    return tuple(map(operator.mul, first, second))


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, tensors)
