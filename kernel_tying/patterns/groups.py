"""Finite groups that act on grids: rotations and mirror images of kernels and feature maps.

=================  =====  =========  =========================================
group              order  grid       generators
=================  =====  =========  =========================================
`p4`               4      square     quarter turn
`p4m`              8      square     quarter turn, left-right mirror
`p2`               2      rectangle  half turn
`flip(axis)`       2      any        reversal of one axis, 0 to 3
`reversal`         2      sequence   `flip(0)`
`octahedral`       24     cube       quarter turns about two axes
`full_octahedral`  48     cube       these turns, and the reversal of all axes
=================  =====  =========  =========================================

Other groups are made by `Group`. A group acts on the first axes of an array, as many as its rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.canonical import frozen
from kernel_tying.patterns.nesting import integers

Generator = Callable[[np.ndarray], np.ndarray]

MAX_ORDER = 1024
_RANKS = range(1, 5)


@dataclass(frozen=True)
class Element:
    """An element of a group: the product of the generators whose indices are in `word`, applied from last to first.

    It is a function on arrays. It moves the entries along the first axes, as many as the rank of the group.
    """

    generators: tuple[Generator, ...] = field(repr=False)
    rank: int = field(repr=False)
    word: tuple[int, ...]

    def __call__(self, array: ArrayLike) -> np.ndarray:
        array = np.asarray(array)
        if array.ndim < self.rank:
            raise TyingError(
                f"An element of a group acts on the first {self.rank} axes of an array. Received shape={array.shape}. "
                "Add the missing axes."
            )
        grid, rest = array.shape[: self.rank], array.shape[self.rank :]
        source = np.arange(math.prod(grid)).reshape(grid)
        for generator in reversed(self.word):
            source = self.generators[generator](source)
        return array.reshape(math.prod(grid), *rest)[source]


class Group:
    """A finite group acting on a grid, made of all products of `generators`.

    Two groups are equal if their generators move the entries of arrays in the same way.
    Source: Cohen and Welling, Group Equivariant Convolutional Networks (arXiv 1602.07576).

    Args:
        generators: functions from arrays to arrays, such as `np.rot90` and `np.fliplr`. They only move entries along the
            first `rank` axes, and map arrays with equal axes onto themselves.
        rank: number of axes of the grid. By default the smallest from 1 to 4 at which all generators move entries.

    Attributes:
        order: number of elements.
        elements: tuple of functions on arrays. Element 0 is the identity.
        table: Cayley table, an integer array of shape `(order, order)`. `table[a, b]` is the index of the product ab:
            element `a` applied after element `b`.
        generators: tuple of the generators.
        rank: number of axes of the grid.

    Raises:
        TyingError: a generator does more than move entries, or the products are no finite group of up to 1,024 elements
            that is the same for every size of the grid.

    Example:

    >>> group = Group([np.rot90])
    >>> group, group.order
    (groups.p4, 4)
    >>> group.table
    array([[0, 1, 2, 3],
           [1, 2, 3, 0],
           [2, 3, 0, 1],
           [3, 0, 1, 2]])
    >>> group.elements[2]([[1, 2], [3, 4]])
    array([[4, 3],
           [2, 1]])
    """

    def __init__(self, generators: Iterable[Generator], rank: int | None = None):
        self.generators = _functions(generators)
        self.rank = _smallest_rank(self.generators) if rank is None else _checked_rank(rank)
        odd, even = self.moves((3,) * self.rank), self.moves((4,) * self.rank)
        self._action = self.rank, odd.tobytes(), even.tobytes()
        self.steps, self.products = _closure(odd)
        words: list[tuple[int, ...]] = [()]
        rows = [np.arange(len(self.steps) + 1)]
        for generator, factor in self.steps:
            words.append((generator, *words[factor]))
            rows.append(self.products[generator][rows[factor]])
        self.elements = tuple(Element(self.generators, self.rank, word) for word in words)
        self.order = len(words)
        self.table = frozen(np.stack(rows))
        if relation := self.broken_relation(even):
            raise TyingError(
                "Generators of a group satisfy the same relations on grids of every size. "
                f"Received {abbreviate(self.generators)}, for which {relation} on side 3, but not on side 4. "
                "Rotations, mirror images and permutations of axes do, shifts do not."
            )

    def moves(self, size: tuple[int, ...]) -> np.ndarray:
        """Returns what each generator makes of a grid of `size` that holds 1, 2, ..., flat: `(generators, positions)`.

        Raises:
            TyingError: `size` has fewer axes than `rank`, or a generator does not map the grid onto itself.
        """
        return _moves(self.generators, self.rank, size)

    def broken_relation(self, images: np.ndarray) -> str:
        """Returns a relation between generators that their signed permutations `images` break, or an empty text.

        Args:
            images: integer array of shape `(generators, members)`: what each generator makes of members 1, 2, ...
        """
        every = self.represented(images)
        for generator, (image, products) in enumerate(zip(images, self.products, strict=True)):
            broken = np.flatnonzero((_composed(image, every) != every[products]).any(axis=1))
            if broken.size:
                factor, product = (self.elements[index].word for index in (broken[0], products[broken[0]]))
                return f"{_written((generator, *factor))} = {_written(product)}"
        return ""

    def represented(self, images: np.ndarray) -> np.ndarray:
        """Returns the signed permutations of all elements, `(order, members)`, from those of the generators."""
        every = [np.arange(1, images.shape[1] + 1)]
        for generator, factor in self.steps:
            every.append(_composed(images[generator], every[factor]))
        return np.stack(every)

    @property
    def name(self) -> str | None:
        """Name by which `groups.get` finds the group, None if it has no name."""
        return _names.get(self)

    def __eq__(self, other: object) -> bool:
        return self._action == other._action if isinstance(other, Group) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._action)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.generators, self.rank)

    def __repr__(self) -> str:
        return f"groups.{self.name}" if self.name else f"<Group order={self.order}, rank={self.rank}>"


def _closure(moves: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Returns how products of the permutations `moves` are found, and a table of products, `(generators, order)`.

    Element n + 1 is the product of a generator and an earlier element, `steps[n]`. `products[g, e]` is the index of generator
    g times element e.
    """
    elements = [np.arange(1, moves.shape[1] + 1)]
    index = {elements[0].tobytes(): 0}
    steps: list[tuple[int, int]] = []
    products: list[list[int]] = []
    for factor, element in enumerate(elements):  # breadth first: `elements` grows in the loop
        images = [_composed(generator, element) for generator in moves]
        for generator, image in enumerate(images):
            if index.setdefault(image.tobytes(), len(elements)) == len(elements):
                elements.append(image)
                steps.append((generator, factor))
        products.append([index[image.tobytes()] for image in images])
        if len(elements) > MAX_ORDER:
            raise TyingError(
                f"A group has at most {MAX_ORDER} elements. Received generators with more products. Use fewer generators."
            )
    return steps, np.array(products).T


def _composed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Returns the signed permutation `after` applied after `before`, whose last axis holds the members."""
    return np.sign(after) * before[..., np.abs(after) - 1]


def _moves(generators: tuple[Generator, ...], rank: int, size: tuple[int, ...]) -> np.ndarray:
    """Returns the grid 1, 2, ... as each generator of `rank` axes moves it, flat: `(generators, positions)`."""
    rest = np.arange(math.prod(size[rank:]))
    images = np.stack([_permutation(generator, rank, size) for generator in generators])
    return (images[..., None] * rest.size + rest).reshape(len(generators), -1) + 1


def _permutation(generator: Generator, rank: int, size: tuple[int, ...]) -> np.ndarray:
    """Returns for each position along the first `rank` axes of `size` the flat position whose entry moves there."""
    grid = size[:rank]
    numbers = np.arange(1, math.prod(grid) + 1)
    try:
        image = integers(generator(numbers.reshape(grid).copy()))
    except (ValueError, IndexError, TypeError) as error:
        raise _no_permutation(generator, rank, size) from error
    if len(grid) < rank or image.shape != grid or not np.array_equal(np.sort(image, axis=None), numbers):
        raise _no_permutation(generator, rank, size)
    return image.ravel().astype(np.int64) - 1


def _no_permutation(generator: Generator, rank: int, size: tuple[int, ...]) -> TyingError:
    return TyingError(
        "A group maps the grid onto itself: each generator only moves entries, and keeps the sizes of the axes. "
        f"Received {getattr(generator, '__name__', generator)!r} for size={size}, which it does not map onto itself. "
        f"The size needs at least {rank} axes, equal where the group exchanges them."
    )


def _functions(generators: Iterable[Generator]) -> tuple[Generator, ...]:
    """Returns `generators` as a tuple of at least one function."""
    functions = tuple(generators) if isinstance(generators, Iterable) else ()
    if not functions or not all(map(callable, functions)):
        raise TyingError(
            "Generators of a group are a list of one or more functions from arrays to arrays. "
            f"Received {abbreviate(generators)}. Example: [np.rot90, np.fliplr]."
        )
    return functions


def _checked_rank(rank: int) -> int:
    if not isinstance(rank, int) or rank not in _RANKS:
        raise TyingError(f"The rank of a group is 1, 2, 3 or 4. Received rank={abbreviate(rank)}. Use one of these.")
    return rank


def _smallest_rank(generators: tuple[Generator, ...]) -> int:
    """Returns the smallest rank at which every generator moves entries."""
    for rank in _RANKS:
        try:
            moves = _moves(generators, rank, (3,) * rank)
        except TyingError:
            continue
        if (moves != np.arange(1, 3**rank + 1)).any(axis=1).all():
            return rank
    raise TyingError(
        "Generators of a group permute the entries of a grid of 1 to 4 equal axes. "
        f"Received {abbreviate(generators)}, for which there is no such grid. "
        "Use functions such as np.rot90 and np.fliplr; pass `rank` if one of them is the identity."
    )


def _written(word: tuple[int, ...]) -> str:
    """Returns a product of generators as text, as in `g1 g0`."""
    return " ".join(f"g{generator}" for generator in word) or "1"


p4 = Group([np.rot90])
p4m = Group([np.rot90, np.fliplr])
p2 = Group([partial(np.rot90, k=2)])
_quarter_turns = (np.rot90, partial(np.rot90, axes=(1, 2)))
octahedral = Group(_quarter_turns)
full_octahedral = Group([*_quarter_turns, np.flip])
_flips = tuple(Group([partial(np.flip, axis=axis)]) for axis in range(4))
reversal = _flips[0]
_groups = {
    "p4": p4,
    "p4m": p4m,
    "p2": p2,
    "reversal": reversal,
    "octahedral": octahedral,
    "full_octahedral": full_octahedral,
    **{f"flip({axis})": group for axis, group in enumerate(_flips)},
}
_names = {group: name for name, group in reversed(_groups.items())}


def flip(axis: int) -> Group:
    """Returns the group of the identity and the reversal of `axis`.

    Args:
        axis: an axis of the grid, 0 to 3.

    Raises:
        TyingError: no such axis.

    >>> flip(1).elements[1]([[1, 2], [3, 4]])
    array([[2, 1],
           [4, 3]])
    """
    if not isinstance(axis, int) or axis not in range(len(_flips)):
        raise TyingError(f"`axis` is an axis of the grid. Received axis={abbreviate(axis)}. Use 0, 1, 2 or 3.")
    return _flips[axis]


def get(identifier: str | Group) -> Group:
    """Returns the group of a name, such as "p4m" or "flip(0)", or the group that is given.

    Raises:
        TyingError: no group has that name.

    >>> get("octahedral").order
    24
    """
    if isinstance(identifier, Group):
        return identifier
    if not isinstance(identifier, str) or identifier not in _groups:
        raise TyingError(
            f"A group is a `Group` or a name: {', '.join(names())}. Received {abbreviate(identifier)}. "
            "Make other groups of functions: Group([np.rot90])."
        )
    return _groups[identifier]


def names() -> list[str]:
    """Returns the names of the groups of this module."""
    return list(_groups)
