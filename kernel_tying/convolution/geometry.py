"""The numbers of a convolution that do not depend on its values: sizes, strides, dilation, padding, groups, chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kernel_tying.convolution.sums import GroupSums, Lattice, Offset, adjoint_sums, group_sums
from kernel_tying.pattern import TyingPattern

Padding = tuple[tuple[int, int], ...]  # zeros before and behind each spatial axis


@dataclass(frozen=True)
class Geometry:
    """A convolution with a tied kernel on channels-last inputs `(batch, *spatial, in)`.

    Attributes:
        pattern: the tying pattern, of the spatial axes alone.
        kernel_size: size of the kernel.
        strides: steps between outputs.
        dilation: steps between the members of the kernel.
        padding: zeros before and behind the input, per spatial axis.
        groups: the number of groups into which the channels are divided.
    """

    pattern: TyingPattern
    kernel_size: Offset
    strides: Offset
    dilation: Offset
    padding: Padding
    groups: int = 1

    @property
    def reach(self) -> Offset:
        """The distance between the first and the last input that an output sees."""
        return tuple((size - 1) * dilation for size, dilation in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def sums(self) -> GroupSums:
        """The group sums of the input."""
        return group_sums(self.pattern, self.kernel_size)

    @property
    def lattice(self) -> Lattice | None:
        """The lattice on which a dilated convolution of one image does all products, if there is one."""
        return self.sums.lattice if self.groups == 1 and max(self.strides) == 1 else None

    @property
    def adjoint_sums(self) -> GroupSums:
        """The group sums of the gradient in the output."""
        return adjoint_sums(self.pattern, self.kernel_size)

    def output_size(self, size: Sequence[int]) -> Offset:
        """Returns the spatial size of the output for inputs of a spatial size."""
        padded = (one + sum(pad) for one, pad in zip(size, self.padding, strict=True))
        return tuple((one - reach - 1) // step + 1 for one, reach, step in zip(padded, self.reach, self.strides, strict=True))

    def adjoint_padding(self, size: Sequence[int]) -> Padding:
        """Returns the zeros around the gradient in the output, spread out to the strides, of which sums have a spatial size."""
        spread = ((one - 1) * step + 1 for one, step in zip(self.output_size(size), self.strides, strict=True))
        before = [reach - low for reach, (low, _) in zip(self.reach, self.padding, strict=True)]
        total = (one + reach - have for one, reach, have in zip(size, self.reach, spread, strict=True))
        return tuple((low, all_ - low) for low, all_ in zip(before, total, strict=True))


def padding_of(padding: str, size: Sequence[int], kernel_size: Offset, strides: Offset, dilation: Offset) -> Padding:
    """Returns the zeros before and behind each spatial axis that Keras' padding "valid", "same" or "causal" means."""
    return tuple(map(_PADDINGS[padding], size, kernel_size, strides, dilation))


def _same(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max(0, (math.ceil(size / stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


_PADDINGS = {
    "valid": lambda size, kernel_size, stride, dilation: (0, 0),
    "same": _same,
    "causal": lambda size, kernel_size, stride, dilation: ((kernel_size - 1) * dilation, 0),
}


def samples_per_chunk(batch: int | None, sample_bytes: int, chunk_bytes: int) -> int:
    """Returns how many samples make up a chunk: a divisor of the batch size, as far as that is known."""
    most = max(1, chunk_bytes // sample_bytes)
    if batch is None:
        return most
    return max(number for number in range(1, min(most, max(batch, 1)) + 1) if max(batch, 1) % number == 0)


def tile_size(geometry: Geometry, size: Offset, channels: int, chunk_bytes: int) -> Offset:
    """Returns the spatial size of the tiles into which samples are cut along the first spatial axis, if they are large."""
    row_bytes = 4 * channels * math.prod(size[1:])
    if size[0] * row_bytes <= 4 * chunk_bytes or max(geometry.strides) > 1:
        return size
    rows = max(chunk_bytes // row_bytes, geometry.reach[0], 1)
    return (math.ceil(size[0] / math.ceil(size[0] / rows)), *size[1:])
