"""Patterns that reach the channel axes of a convolution kernel `(*spatial, in, out)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size, positive_integers


def per_filter(filter_patterns: Sequence[TyingPattern]) -> TyingPattern:
    """Returns the pattern that gives each filter (output channel) a tying of its own.

    Args:
        filter_patterns: one pattern for each filter, all of the same spatial shape.

    Returns:
        A pattern of shape `(*spatial, 1, filters)`: input channels stay free.

    Raises:
        TyingError: no patterns, or patterns of different shapes.

    >>> per_filter([TyingPattern.parse("ABA"), TyingPattern.parse("ABC")]).shape
    (3, 1, 2)
    """
    is_sequence = isinstance(filter_patterns, Sequence) and all(isinstance(one, TyingPattern) for one in filter_patterns)
    if not is_sequence or len({pattern.shape for pattern in filter_patterns}) != 1:
        raise TyingError(
            f"`per_filter` needs one pattern for each filter, all of the same shape. Received {filter_patterns!r:.200}. "
            "`free(size)` leaves a filter untied."
        )
    signs = np.stack([pattern.signs for pattern in filter_patterns], axis=-1)
    first_label = np.cumsum([0] + [pattern.num_free for pattern in filter_patterns[:-1]])
    labels = np.stack([pattern.labels for pattern in filter_patterns], axis=-1) + first_label
    return TyingPattern(np.where(signs == 0, -1, labels)[..., None, :], signs[..., None, :])


def channel_blocks(size: Sequence[int], in_channels: int, filters: int, blocks: int) -> TyingPattern:
    """Returns the pattern of a tied block convolution: `blocks` equal blocks of channels that share their weights.

    Input and output channels are split into `blocks` equal parts. Part by part, the kernel is the same; between parts
    it is zero. Spatial positions stay free. Source: Tied Block Convolution (arXiv 2009.12021).

    Args:
        size: kernel size, whose rank is the number of spatial axes.
        in_channels: size of the kernel's input axis.
        filters: size of the kernel's output axis.
        blocks: number of blocks, a divisor of both.

    Returns:
        A pattern of shape `(1, ..., 1, in_channels, filters)`.

    Raises:
        TyingError: `blocks` does not divide both numbers of channels.

    >>> channel_blocks((3,), in_channels=2, filters=4, blocks=2)
    TyingPattern.parse('AB../..AB//')
    """
    spatial_rank = len(positive_integers(size, "size"))
    channels = kernel_size(positive_integers((in_channels, filters, blocks), "(in_channels, filters, blocks)")[:2])
    if in_channels % blocks or filters % blocks:
        raise TyingError(
            f"`blocks` must divide the input channels and the filters. Received blocks={blocks} for {channels} channels. "
            f"The largest number that fits is {math.gcd(*channels)}."
        )
    (row, column), part = np.indices(channels), np.array(channels) // blocks
    label = (row % part[0]) * part[1] + column % part[1]
    labels = np.where(row // part[0] == column // part[1], label, -1)
    return TyingPattern(labels.reshape((1,) * spatial_rank + channels))
