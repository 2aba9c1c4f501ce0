"""Convolution arithmetic: sizes, strides, dilation, padding, channel groups, chunks. Nothing here depends on values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kernel_tying._convolution.lines import Offset, reach_of
from kernel_tying._convolution.sums import Grid, GroupSums, adjoint_sums, group_sums
from kernel_tying.patterns.pattern import TyingPattern

Padding = tuple[tuple[int, int], ...]  # zeros before and after, per spatial axis
FEW_CHANNELS = 4  # at most, of the inputs of a first layer: colors


@dataclass(frozen=True)
class Geometry:
    """A convolution with a tied kernel on channels-last inputs `(batch, *spatial, in)`.

    Attributes:
        pattern: the tying pattern, of spatial axes only.
        kernel_size: size of the kernel.
        strides: step between neighbouring outputs, per spatial axis.
        dilation: step between neighbouring kernel positions, per spatial axis.
        padding: zeros before and after the input, per spatial axis.
        channel_groups: the number of channel groups, `groups` in Keras.
    """

    pattern: TyingPattern
    kernel_size: Offset
    strides: Offset
    dilation: Offset
    padding: Padding
    channel_groups: int = 1

    @property
    def reach(self) -> Offset:
        """The distance from the first to the last input of a receptive field."""
        return reach_of(self.kernel_size, self.dilation)

    @property
    def sums(self) -> GroupSums:
        """The group sums of the input."""
        return group_sums(self.pattern, self.kernel_size)

    @property
    def grid(self) -> Grid | None:
        """The grid on which one dilated convolution of one image computes all products, or None if there is none."""
        return self.sums.grid if self.channel_groups == 1 and max(self.strides) == 1 else None

    @property
    def adjoint_sums(self) -> GroupSums:
        """The group sums of the output gradient."""
        return adjoint_sums(self.pattern, self.kernel_size)

    def output_size(self, size: Sequence[int]) -> Offset:
        """Returns the spatial size of the output for inputs of spatial `size`."""
        padded = [length + sum(pad) for length, pad in zip(size, self.padding, strict=True)]
        axes = zip(padded, self.reach, self.strides, strict=True)
        return tuple((length - reach - 1) // stride + 1 for length, reach, stride in axes)

    def adjoint_padding(self, size: Sequence[int]) -> Padding:
        """Returns the padding of the zero-upsampled output gradient so that its sums have the input's `size`."""
        outputs = zip(self.output_size(size), self.strides, strict=True)
        upsampled_size = [(length - 1) * stride + 1 for length, stride in outputs]
        # A full correlation pads by `reach` at both ends. The gradient of the zeros before the input is not needed.
        before = [reach - zeros for reach, (zeros, _) in zip(self.reach, self.padding, strict=True)]
        totals = [length + reach - given for length, reach, given in zip(size, self.reach, upsampled_size, strict=True)]
        return tuple((first, total - first) for first, total in zip(before, totals, strict=True))


def padding_of(padding: str, size: Sequence[int], kernel_size: Offset, strides: Offset, dilation: Offset) -> Padding:
    """Returns the zeros that Keras' padding "valid", "same" or "causal" adds before and after each spatial axis."""
    return tuple(map(_PADDINGS[padding], size, kernel_size, strides, dilation))


def _same(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max(0, (math.ceil(size / stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


_PADDINGS = {
    "valid": lambda size, kernel_size, stride, dilation: (0, 0),
    "same": _same,
    "causal": lambda size, kernel_size, stride, dilation: ((kernel_size - 1) * dilation, 0),
}


def samples_per_chunk(batch: int | None, sample_bytes: int, sum_bytes: int) -> int:
    """Returns the number of samples in a chunk, a divisor of the batch size if that is known, so that all chunks are equal.

    Args:
        batch: the batch size, or None if it is unknown.
        sample_bytes: size of one group sum of a sample.
        sum_bytes: largest size of one group sum of a chunk, unless a single sample exceeds it.
    """
    most = max(1, sum_bytes // sample_bytes)
    if batch is None:
        return most
    samples = max(batch, 1)
    return max(length for length in range(1, min(most, samples) + 1) if samples % length == 0)


def tile_size(geometry: Geometry, size: Offset, channels: int, sum_bytes: int) -> Offset:
    """Returns the spatial size of a tile: `size`, or less along the first axis if samples are large.

    A sample is large if one of its group sums, in float32, exceeds four times `sum_bytes`, the size for which tiles are made.
    With strides samples stay whole, because `generic.tiles` cuts at stride 1.
    """
    row_bytes = 4 * channels * math.prod(size[1:])
    if size[0] * row_bytes <= 4 * sum_bytes or max(geometry.strides) > 1:
        return size
    # A tile has at least `reach` rows, because each one also reads a halo of that many.
    most_rows = max(sum_bytes // row_bytes, geometry.reach[0], 1)
    count = math.ceil(size[0] / most_rows)
    return (math.ceil(size[0] / count), *size[1:])
