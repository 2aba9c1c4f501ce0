"""Families of patterns: functions that take a kernel size and return a `TyingPattern`."""

from kernel_tying.patterns.channels import channel_blocks, per_filter
from kernel_tying.patterns.distance import radial, rings
from kernel_tying.patterns.equivariant import equivariant
from kernel_tying.patterns.masks import cross, mask
from kernel_tying.patterns.matrices import circulant, constant, free, toeplitz
from kernel_tying.patterns.registry import named, names, register, ship
from kernel_tying.patterns.repetition import blocks, tile
from kernel_tying.patterns.symmetry import dihedral, from_symmetry, mirror, point, rotation, transpose

__all__ = [
    "blocks",
    "channel_blocks",
    "circulant",
    "constant",
    "cross",
    "dihedral",
    "equivariant",
    "free",
    "from_symmetry",
    "mask",
    "mirror",
    "named",
    "names",
    "per_filter",
    "point",
    "radial",
    "register",
    "rings",
    "rotation",
    "tile",
    "toeplitz",
    "transpose",
]

for _family in (mirror, point, rotation, dihedral, transpose, radial, rings, cross, toeplitz, circulant, constant, free):
    ship(_family)
