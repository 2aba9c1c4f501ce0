"""Patterns to compare a kernel with: the families that fit its size, in their antisymmetric forms too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.registry import Family, names, registered
from kernel_tying.patterns.symmetry import dihedral, mirror, point, rotation, transpose

_WITH_SIGN: tuple[Callable[..., TyingPattern], ...] = (mirror, point, rotation, dihedral, transpose)


def candidates(size: tuple[int, ...]) -> dict[str, TyingPattern]:
    """Returns the patterns by label that fit a kernel of `size` and leave fewer free weights than positions.

    Labels are the names of families. "anti-" before a name marks the antisymmetric form. Mirrors along other axes than the
    last have the axis behind the name.

    >>> [label for label in candidates((1, 3)) if "mirror" in label]
    ['mirror', 'mirror, all axes', 'anti-mirror']
    """
    found: dict[str, TyingPattern] = {}
    for label, family in _families(len(size)).items():
        try:
            pattern = family(size)
        except TyingError:  # the family is not defined for this size
            continue
        if pattern.num_free < pattern.labels.size:
            found[label] = pattern
    return found


def _families(rank: int) -> dict[str, Family]:
    """Returns all families for kernels of `rank` axes by label, each antisymmetric form behind its family."""
    found: dict[str, Family] = {}
    for family in _WITH_SIGN:
        for prefix, antisymmetric in (("", False), ("anti-", True)):
            name = f"{prefix}{family.__name__}"
            signed = partial(family, antisymmetric=antisymmetric)
            found[name] = signed
            if family is mirror and rank > 1:
                found |= _other_mirrors(name, signed, rank)
    return found | {name: registered(name) for name in names() if name not in found}


def _other_mirrors(name: str, signed_mirror: Callable[..., TyingPattern], rank: int) -> dict[str, Family]:
    """Returns the mirrors along each axis but the last, and along all axes."""
    single: dict[str, Family] = {f"{name}, axis {axis}": partial(signed_mirror, axis=axis) for axis in range(rank - 1)}
    return {**single, f"{name}, all axes": partial(signed_mirror, axis=tuple(range(rank)))}
