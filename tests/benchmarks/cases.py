"""The configurations that are measured: half of them fitted the dispatch rule, the other half did not."""

from typing import NamedTuple

import kernel_tying as kt

QUESTION = "AABCC/AABCC/DDEFF/GGHII/GGHII"


class Case(NamedTuple):
    """A convolution with padding "same" and stride 1.

    Attributes:
        family: name of a family, or "question" for the 5x5 pattern of nine values.
        k: size of the square kernel.
        size: size of the square image.
        channels: number of input and of output channels.
        batch: number of images.
    """

    family: str
    k: int
    size: int
    channels: int
    batch: int

    @property
    def pattern(self):
        """The tying pattern."""
        return pattern_of(self.family, self.k)

    @property
    def saving(self):
        """How many times fewer products a tied convolution takes, k^2 / K."""
        return self.k**2 / self.pattern.num_free

    def __str__(self):
        family = "5x5 of nine" if self.family == "question" else f"{self.family} {self.k}x{self.k}"
        return f"{family}, {self.size}x{self.size}, {self.channels} ch, batch {self.batch}"


def pattern_of(family, k):
    """Returns the pattern of a family for a square kernel."""
    if family == "question":
        return kt.TyingPattern.parse(QUESTION)
    if family == "blocks":
        return kt.patterns.blocks((8,) * (k // 8), (8,) * (k // 8))
    return getattr(kt.patterns, family)((k, k))


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
