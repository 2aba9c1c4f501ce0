"""The configurations that are measured: half of them fitted the dispatch rule, the other half did not."""

from functools import partial
from typing import NamedTuple

import numpy as np

import kernel_tying as kt
from kernel_tying._convolution.geometry import FEW_CHANNELS

QUESTION = "AABCC/AABCC/DDEFF/GGHII/GGHII"


class Case(NamedTuple):
    """A convolution with padding "same".

    Attributes:
        family: name of a family, or "question" for the 5x5 pattern of nine values.
        k: size of the kernel, along each axis.
        size: size of the image, along each axis.
        channels: number of input channels.
        batch: number of images.
        rank: number of spatial axes.
        stride: step between outputs.
        filters: number of output channels; 0 for as many as input channels.
    """

    family: str
    k: int
    size: int
    channels: int
    batch: int
    rank: int = 2
    stride: int = 1
    filters: int = 0

    @property
    def outputs(self):
        """The number of output channels."""
        return self.filters or self.channels

    @property
    def is_first(self):
        """Whether this is the first layer of a network, which needs no gradient of its inputs."""
        return self.channels <= FEW_CHANNELS

    @property
    def kind(self):
        """The kind of benchmarks that decides."""
        return "first" if self.is_first else "strided" if self.stride > 1 else "dense"

    @property
    def pattern(self):
        """The tying pattern."""
        return pattern_of(self.family, self.k, self.rank)

    @property
    def saving(self):
        """How many times fewer products a tied convolution takes, k^2 / K."""
        return self.k**self.rank / self.pattern.num_free

    def __str__(self):
        kernel, image = ("x".join([str(length)] * self.rank) for length in (self.k, self.size))
        family = "5x5 of nine" if self.family == "question" else f"{self.family} {kernel}"
        channels = f"{self.channels} to {self.filters}" if self.filters else self.channels
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{family}, {image}, {channels} ch, batch {self.batch}{stride}"


def pattern_of(family, k, rank=2):
    """Returns the pattern of a family for a kernel that is as long along each axis."""
    if family == "octahedral":
        turns = [partial(np.rot90, axes=axes) for axes in ((0, 1), (1, 2))]
        return kt.patterns.from_symmetry((k,) * rank, [*turns, partial(np.flip, axis=0)])
    if family == "question":
        return kt.TyingPattern.parse(QUESTION)
    if family == "blocks":
        return kt.patterns.blocks((8,) * (k // 8), (8,) * (k // 8))
    return getattr(kt.patterns, family)((k,) * rank)


FITTED = [
    Case("rotation", 3, 14, 256, 1),
    Case("rotation", 3, 32, 32, 32),
    Case("question", 5, 16, 64, 32),
    Case("dihedral", 5, 28, 128, 1),
    Case("radial", 7, 16, 64, 32),
    Case("radial", 7, 14, 512, 1),
    Case("mirror", 3, 28, 256, 1),
    Case("mirror", 3, 32, 32, 32),
    Case("question", 5, 32, 32, 32),
    Case("question", 5, 8, 128, 32),
    Case("radial", 7, 32, 32, 32),
    Case("rotation", 3, 16, 64, 32),
    Case("dihedral", 3, 28, 128, 4),
    Case("point", 3, 8, 128, 32),
    Case("dihedral", 5, 64, 64, 2),
    Case("mirror", 5, 56, 64, 1),
    Case("rotation", 5, 24, 96, 8),
    Case("radial", 7, 28, 16, 16),
]
HELD_OUT = [
    Case("question", 5, 40, 32, 4),
    Case("radial", 7, 20, 48, 8),
    Case("rotation", 3, 48, 64, 4),
    Case("dihedral", 5, 12, 96, 16),
    Case("dihedral", 7, 12, 160, 16),
    Case("mirror", 3, 16, 192, 8),
    Case("point", 5, 10, 256, 2),
    Case("rotation", 5, 7, 384, 4),
    Case("radial", 5, 24, 32, 16),
]

HUGE = [Case("blocks", 32, 56, 32, 1), Case("blocks", 64, 64, 32, 1)]
DEPTHWISE = [
    Case("dihedral", 3, 56, 64, 4),
    Case("question", 5, 28, 128, 4),
    Case("radial", 7, 28, 128, 4),
    Case("dihedral", 13, 28, 64, 4),
]
DIMENSIONS = [
    Case("mirror", 9, 1024, 64, 8, rank=1),
    Case("mirror", 31, 1024, 64, 8, rank=1),
    Case("mirror", 15, 4096, 32, 4, rank=1),
    Case("constant", 9, 1024, 64, 8, rank=1),
    Case("constant", 31, 4096, 32, 4, rank=1),
    Case("mirror", 3, 16, 32, 2, rank=3),
    Case("radial", 3, 16, 64, 1, rank=3),
    Case("octahedral", 3, 8, 64, 4, rank=3),
    Case("octahedral", 5, 12, 32, 2, rank=3),
    Case("radial", 5, 16, 32, 1, rank=3),
]
STRIDES = [
    Case("rotation", 3, 32, 32, 32, stride=2),
    Case("radial", 7, 32, 32, 8, stride=2),
    Case("question", 5, 32, 64, 16, stride=2),
    Case("mirror", 3, 28, 128, 4, stride=2),
    Case("rotation", 3, 56, 64, 1, stride=2, filters=128),
    Case("rotation", 3, 8, 256, 4, stride=2),
    Case("rotation", 3, 32, 3, 32, filters=32),
    Case("dihedral", 3, 112, 3, 4, stride=2, filters=32),
    Case("dihedral", 5, 112, 3, 2, filters=64),
    Case("radial", 7, 224, 3, 2, stride=2, filters=64),
]
COMPILED = [
    Case("question", 5, 16, 64, 8),
    Case("question", 5, 16, 64, 32),
    Case("rotation", 3, 16, 64, 8),
    Case("rotation", 3, 16, 64, 32),
    Case("dihedral", 5, 28, 128, 1),
    Case("dihedral", 5, 28, 128, 8),
    Case("radial", 7, 16, 64, 8),
    Case("radial", 7, 16, 64, 32),
    Case("radial", 7, 32, 32, 1),
    Case("radial", 7, 32, 32, 8),
    Case("mirror", 3, 28, 256, 1),
    Case("mirror", 3, 28, 256, 8),
]
