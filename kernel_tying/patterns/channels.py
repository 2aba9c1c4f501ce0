"""Patterns along the channel axes of a convolution kernel `(*spatial, in, out)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, positive_integers


def per_filter(filter_patterns: Sequence[TyingPattern]) -> TyingPattern:
    """Returns the pattern that ties each filter (output channel) by its own pattern.

    Args:
        filter_patterns: one pattern for each filter, all of the same spatial shape.

    Returns:
        A pattern of shape `(*spatial, 1, filters)`: input channels stay free.

    Raises:
        TyingError: no patterns, or patterns of different shapes.

    >>> per_filter([TyingPattern.parse("ABA"), TyingPattern.parse("ABC")]).shape
    (3, 1, 2)
    """
    is_valid = isinstance(filter_patterns, Sequence) and all(isinstance(entry, TyingPattern) for entry in filter_patterns)
    if not is_valid or len({pattern.shape for pattern in filter_patterns}) != 1:
        raise TyingError(
            f"`per_filter` needs one pattern for each filter, all of the same shape. Received {abbreviate(filter_patterns)}. "
            "`free(size)` leaves a filter untied."
        )
    signs = np.stack([pattern.signs for pattern in filter_patterns], axis=-1)
    first_label = np.cumsum([0] + [pattern.num_free for pattern in filter_patterns[:-1]])
    labels = np.stack([pattern.labels for pattern in filter_patterns], axis=-1) + first_label
    return TyingPattern(np.where(signs == 0, -1, labels)[..., None, :], signs[..., None, :])


@recorded
def channel_blocks(size: Sequence[int], in_channels: int, filters: int, blocks: int) -> TyingPattern:
    """Returns the pattern of a tied block convolution: `blocks` equal blocks of channels that share their weights.

    Input and output channels are split into `blocks` equal parts. Part i of the inputs connects to part i of the outputs,
    by the same weights for each i. All other weights are zero. Spatial positions stay free.
    Source: Tied Block Convolution (arXiv 2009.12021).

    Args:
        size: kernel size. Only its rank, the number of spatial axes, matters.
        in_channels: size of the kernel's input axis.
        filters: size of the kernel's output axis.
        blocks: number of blocks, a divisor of `in_channels` and `filters`.

    Returns:
        A pattern of shape `(1, ..., 1, in_channels, filters)`.

    Raises:
        TyingError: `blocks` does not divide `in_channels` and `filters`.

    >>> channel_blocks((3,), in_channels=2, filters=4, blocks=2)
    TyingPattern.parse('AB../..AB//')
    """
    channels = positive_integers((in_channels, filters, blocks), "(in_channels, filters, blocks)")[:2]
    shape = kernel_size((1,) * len(positive_integers(size, "size")) + channels)
    if in_channels % blocks or filters % blocks:
        raise TyingError(
            "`blocks` must divide the input channels and the filters. "
            f"Received blocks={abbreviate(blocks)} for {channels} channels. "
            f"The largest number that fits is {math.gcd(*channels)}."
        )
    row, column = np.indices(channels)
    height, width = in_channels // blocks, filters // blocks
    label_in_block = (row % height) * width + column % width
    labels = np.where(row // height == column // width, label_in_block, -1)
    return TyingPattern(labels.reshape(shape))
