"""Patterns of kernels that are invariant under signed permutations of their positions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.calls import recorded
from kernel_tying.patterns.nesting import integers
from kernel_tying.patterns.pattern import TyingPattern, tie
from kernel_tying.patterns.sizes import kernel_size, square_size

Generator = Callable[[np.ndarray], np.ndarray]


def from_symmetry(size: Sequence[int], generators: Iterable[Generator]) -> TyingPattern:
    """Returns the pattern of all kernels `k` of `size` with `g(k) == k` for every generator `g`.

    Args:
        size: kernel size.
        generators: functions from arrays of shape `size` to arrays of the same shape. They may only move entries and
            change signs, as `np.fliplr` and `lambda kernel: -np.rot90(kernel)` do.

    Raises:
        TyingError: a generator is not a signed permutation, or only the zero kernel is invariant.

    >>> from_symmetry((2, 3), [np.flipud, lambda kernel: -np.fliplr(kernel)])
    TyingPattern.parse('A.-A/A.-A')
    """
    sizes = kernel_size(size)
    if not isinstance(generators, Iterable) or not all(map(callable, generators := list(generators))):
        raise TyingError(
            "Generators of a symmetry are a list of functions from arrays to arrays. "
            f"Received {abbreviate(generators)}. Example: [np.fliplr]."
        )
    positions = np.arange(np.prod(sizes))
    identity = positions + 1
    permutations = [_signed_permutation(generator, sizes) for generator in generators] or [identity]
    sources = np.concatenate([np.abs(permutation) - 1 for permutation in permutations])
    signs = np.concatenate([np.sign(permutation) for permutation in permutations])
    return tie(sizes, np.tile(positions, len(permutations)), sources, signs)


@recorded
def mirror(size: Sequence[int], axis: int | Sequence[int] = -1, antisymmetric: bool = False) -> TyingPattern:
    """Returns the pattern of kernels that are mirror-symmetric along `axis`, by default left-right.

    Args:
        size: kernel size, of any rank.
        axis: axis or axes. The kernel equals its reversal along each one.
        antisymmetric: the reversal is the negative kernel. The middle of an odd size is pinned to zero.

    Raises:
        TyingError: no such axis, or a size that is no tuple of positive integers.

    >>> mirror((2, 3)), mirror((1, 3), antisymmetric=True)
    (TyingPattern.parse('ABA/CDC'), TyingPattern.parse('A.-A/'))
    """
    sizes = kernel_size(size)
    given_axes = axis if isinstance(axis, Sequence) else [axis]
    flips = [partial(np.flip, axis=_axis(given, sizes)) for given in given_axes]
    return from_symmetry(sizes, [_signed(flip, antisymmetric) for flip in flips])


@recorded
def point(size: Sequence[int], antisymmetric: bool = False) -> TyingPattern:
    """Returns the pattern of kernels that equal their reversal along all axes at once (antisymmetric: its negative).

    Raises:
        TyingError: a size that is no tuple of positive integers.

    >>> point((2, 3))
    TyingPattern.parse('ABC/CBA')
    """
    return from_symmetry(kernel_size(size), [_signed(np.flip, antisymmetric)])


@recorded
def rotation(size: Sequence[int], order: int = 4, antisymmetric: bool = False) -> TyingPattern:
    """Returns the pattern of kernels that are invariant under a quarter turn (`order=4`) or half turn (`order=2`).

    Args:
        size: kernel size of two axes, square for quarter turns.
        order: 4 or 2.
        antisymmetric: the turn gives the negative kernel.

    Raises:
        TyingError: `order` is not 2 or 4, or the turn does not map `size` onto itself.

    >>> rotation((3, 3))
    TyingPattern.parse('ABA/BCB/ABA')
    """
    if order not in (2, 4):
        raise TyingError(
            f"A rotation that maps a square grid onto itself has order 2 or 4. Received order={abbreviate(order)}. Use 4 or 2."
        )
    if order == 2:
        sizes = kernel_size(size)
        if len(sizes) != 2:
            raise TyingError(f"A rotation turns two axes. Received size={sizes}. `point` fits any rank.")
        return point(sizes, antisymmetric)
    sizes = square_size(size, "quarter-turn", "`rotation(order=2)` also fits rectangles.")
    return from_symmetry(sizes, [_signed(np.rot90, antisymmetric)])


@recorded
def dihedral(size: Sequence[int], antisymmetric: bool = False) -> TyingPattern:
    """Returns the pattern of square kernels that are invariant under the quarter turn and the left-right mirror.

    With `antisymmetric=True`, both turn and mirror give the negative kernel.

    Raises:
        TyingError: the size is not square.

    >>> dihedral((5, 5))
    TyingPattern.parse('ABCBA/BDEDB/CEFEC/BDEDB/ABCBA')
    """
    sizes = square_size(size, "dihedral", "`mirror(axis=(0, 1))` also fits rectangles.")
    return from_symmetry(sizes, [_signed(np.rot90, antisymmetric), _signed(np.fliplr, antisymmetric)])


@recorded
def transpose(size: Sequence[int], antisymmetric: bool = False) -> TyingPattern:
    """Returns the pattern of symmetric square kernels, `k[i, j] == k[j, i]` (antisymmetric: `-k[j, i]`).

    Raises:
        TyingError: the size is not square.

    >>> transpose((2, 2)), transpose((2, 2), antisymmetric=True)
    (TyingPattern.parse('AB/BC'), TyingPattern.parse('.A/-A.'))
    """
    sizes = square_size(size, "transpose", "Pass a square size.")
    return from_symmetry(sizes, [_signed(np.transpose, antisymmetric)])


def _signed(generator: Generator, antisymmetric: bool) -> Generator:
    """Returns `generator`, negated if `antisymmetric`."""
    return (lambda kernel: -generator(kernel)) if antisymmetric else generator


def _axis(axis: int, sizes: tuple[int, ...]) -> int:
    """Returns `axis` as a non-negative index into `sizes`."""
    try:
        return range(len(sizes))[operator.index(axis)]
    except (IndexError, TypeError):
        raise TyingError(
            f"`axis` is an axis of the kernel size. Received axis={abbreviate(axis)} for size={sizes}. "
            f"Use {-len(sizes)} to {len(sizes) - 1}, or a tuple of these."
        ) from None


def _signed_permutation(generator: Generator, sizes: tuple[int, ...]) -> np.ndarray:
    """Returns for each position the number (from 1) of the position that `generator` moves there, with its sign."""
    numbers = np.arange(1, np.prod(sizes) + 1)
    moved = integers(generator(numbers.reshape(sizes).copy()))
    if moved.shape != sizes or not np.array_equal(np.sort(np.abs(moved), axis=None), numbers):
        raise TyingError(
            "A generator of a symmetry moves the entries of a kernel and changes signs, keeping its shape. "
            f"Received {getattr(generator, '__name__', generator)!r} for size={sizes}, which does more. "
            "Examples: np.fliplr, lambda kernel: -np.rot90(kernel)."
        )
    return moved.ravel()
