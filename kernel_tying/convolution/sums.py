"""Group sums: which shifted inputs are added up for each tied group. What several groups share is added up once.

With `S_g x`, the signed sum of the inputs that the members of group g see, a tied convolution is `y = sum_g (S_g x) theta_g`:
one product for each group instead of one for each position of the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from kernel_tying.pattern import TyingPattern

Offset = tuple[int, ...]  # along the spatial axes, in positions of the kernel


class Term(NamedTuple):
    """`sign` times an image that is read at `offset`. Image 0 is the input."""

    image: int
    offset: Offset
    sign: int


class Step(NamedTuple):
    """The image `first + sign * second`, with `second` read at `offset`."""

    first: int
    second: int
    offset: Offset
    sign: int


@dataclass(frozen=True)
class GroupSums:
    """How the group sums of an input are computed.

    Attributes:
        steps: the shared sums, images that are numbered from 1 in this order.
        groups: for each group the terms of its sum.
    """

    steps: tuple[Step, ...]
    groups: tuple[tuple[Term, ...], ...]

    @cached_property
    def ranges(self) -> tuple[tuple[Offset, Offset], ...]:
        """The lowest and the highest offset at which each image is read."""
        reads: dict[int, list[Offset]] = defaultdict(list)
        for term in itertools.chain(*self.groups):
            reads[term.image].append(term.offset)
        for image in range(len(self.steps), 0, -1):
            step, ends = self.steps[image - 1], _ends(reads[image])
            reads[step.first] += ends
            reads[step.second] += [_moved(end, step.offset) for end in ends]
        return tuple(_ends(reads[image]) for image in range(len(self.steps) + 1))

    @cached_property
    def lattice(self) -> Lattice | None:
        """The lattice of all reads if every group is one read of the same image, as equal blocks are; else None."""
        terms = [term for terms in self.groups for term in terms]
        if len(terms) > len(self.groups) or {(term.image, term.sign) for term in terms} != {(terms[0].image, 1)}:
            return None
        axes = [sorted(set(axis)) for axis in zip(*(term.offset for term in terms), strict=True)]
        spacings = [set(np.diff(axis).tolist()) or {1} for axis in axes]
        if list(itertools.product(*axes)) != [term.offset for term in terms] or any(len(one) > 1 for one in spacings):
            return None
        return Lattice(tuple(map(len, axes)), tuple(map(min, spacings)))

    @cached_property
    def additions(self) -> int:
        """The number of additions for each entry of the output."""
        return len(self.steps) + sum(len(terms) - 1 for terms in self.groups)


class Lattice(NamedTuple):
    """Offsets at equal distances along each axis, in the order of `itertools.product`."""

    counts: Offset
    spacing: Offset


class Read(NamedTuple):
    """`sign` times a window of an image, one slice for each spatial axis."""

    image: int
    window: tuple[slice, ...]
    sign: int


@dataclass(frozen=True)
class Schedule:
    """Group sums at outputs of one size.

    Attributes:
        sizes: spatial sizes of the images that the steps make.
        steps: for each of these images the reads whose sum it is.
        groups: for each group the reads whose sum it is; positive ones come first.
    """

    sizes: tuple[Offset, ...]
    steps: tuple[tuple[Read, ...], ...]
    groups: tuple[tuple[Read, ...], ...]


@lru_cache(maxsize=1024)
def schedule(sums: GroupSums, dilation: Offset, strides: Offset, size: Offset) -> Schedule:
    """Returns where to read what, for outputs of a spatial size that lie `strides` apart."""
    lows = [(0,) * len(size), *(low for low, _ in sums.ranges[1:])]
    spans = [_moved(high, low, -1) for low, high in sums.ranges[1:]]
    sizes = tuple(
        tuple(
            (one - 1) * stride + reach * step + 1
            for one, stride, reach, step in zip(size, strides, span, dilation, strict=True)
        )
        for span in spans
    )

    def read(term: Term, length: Offset, strides: Offset) -> Read:
        starts = [one * step for one, step in zip(_moved(term.offset, lows[term.image], -1), dilation, strict=True)]
        ends = [start + (one - 1) * stride + 1 for start, one, stride in zip(starts, length, strides, strict=True)]
        return Read(term.image, tuple(map(slice, starts, ends, strides)), term.sign)

    ones = (1,) * len(size)
    steps = [
        (Term(step.first, low, 1), Term(step.second, _moved(low, step.offset), step.sign))
        for step, low in zip(sums.steps, lows[1:], strict=True)
    ]
    return Schedule(
        sizes,
        tuple(tuple(read(term, one, ones) for term in terms) for terms, one in zip(steps, sizes, strict=True)),
        tuple(tuple(read(term, size, strides) for term in sorted(terms, key=lambda term: -term.sign)) for terms in sums.groups),
    )


@lru_cache(maxsize=256)
def group_sums(pattern: TyingPattern, kernel_size: Offset) -> GroupSums:
    """Returns the group sums of a pattern on a kernel, one for each free weight of a pair of channels."""
    return _shared([[Term(0, offset, sign) for offset, sign in group] for group in members(pattern, kernel_size)])


@lru_cache(maxsize=256)
def adjoint_sums(pattern: TyingPattern, kernel_size: Offset) -> GroupSums:
    """Returns the sums of the adjoint `S_g^T`, in which every offset is seen from the other end of the kernel."""
    last = tuple(size - 1 for size in kernel_size)
    return _shared(
        [[Term(0, _moved(last, offset, -1), sign) for offset, sign in group] for group in members(pattern, kernel_size)]
    )


def members(pattern: TyingPattern, kernel_size: Offset) -> list[list[tuple[Offset, int]]]:
    """Returns offset and sign of the members of each group. Axes that the pattern leaves free multiply its groups.

    The order is that of free weights with the tied axes first, then the free spatial axes.
    """
    padded = pattern.shape[: len(kernel_size)] + (1,) * (len(kernel_size) - len(pattern.shape))
    labels, signs = (np.broadcast_to(one.reshape(padded), kernel_size) for one in (pattern.labels, pattern.signs))
    copies = tuple(1 if own > 1 else size for own, size in zip(padded, kernel_size, strict=True))
    copy_of = np.broadcast_to(np.arange(math.prod(copies)).reshape(copies), kernel_size)
    groups: list[list[tuple[Offset, int]]] = [[] for _ in range(pattern.num_free * math.prod(copies))]
    for offset in np.ndindex(kernel_size):
        if signs[offset]:
            groups[labels[offset] * math.prod(copies) + copy_of[offset]].append((offset, int(signs[offset])))
    return groups


class _Pair(NamedTuple):
    """Two terms up to a common shift and sign."""

    first: int
    second: int
    offset: Offset
    sign: int


def _shared(groups: list[list[Term]]) -> GroupSums:
    """Returns the sums of `groups` with pairs of terms that occur again, wherever and with whatever sign, taken once.

    The pair with the most occurrences goes first, as in Hartley's elimination of common subexpressions (1996).
    """
    steps: list[Step] = []
    while True:
        pair, count = _most_frequent(groups)
        if pair is None or count < 2:
            return GroupSums(tuple(steps), tuple(tuple(terms) for terms in groups))
        steps.append(Step(*pair))
        groups = [_replaced(terms, pair, len(steps)) for terms in groups]


def _most_frequent(groups: list[list[Term]]) -> tuple[_Pair | None, int]:
    """Returns the pair with the most disjoint occurrences, and their number; of several the one of the smallest shift."""
    seen: Counter[_Pair] = Counter()
    for terms in groups:
        seen.update(_pair(*two) for two in itertools.combinations(sorted(terms), 2))
    best, most = None, 0
    for pair, upper_bound in sorted(seen.items(), key=lambda item: (-item[1], np.abs(item[0].offset).sum(), item[0])):
        if upper_bound <= most:
            break
        count = sum(len(_occurrences(terms, pair)) for terms in groups)
        best, most = (pair, count) if count > most else (best, most)
    return best, most


def _pair(first: Term, second: Term) -> _Pair:
    return _Pair(first.image, second.image, _moved(second.offset, first.offset, -1), first.sign * second.sign)


def _occurrences(terms: list[Term], pair: _Pair) -> list[tuple[Term, Term]]:
    """Returns disjoint occurrences of a pair among terms."""
    free = set(terms)
    found = []
    for first in sorted(terms):
        second = Term(pair.second, _moved(first.offset, pair.offset), first.sign * pair.sign)
        if first.image == pair.first and first in free and second in free:
            found.append((first, second))
            free -= {first, second}
    return found


def _replaced(terms: list[Term], pair: _Pair, image: int) -> list[Term]:
    """Returns terms in which each occurrence of a pair is one term of a new image."""
    found = _occurrences(terms, pair)
    rest = set(terms).difference(*found)
    return sorted(rest) + [Term(image, first.offset, first.sign) for first, _ in found]


def _moved(offset: Offset, by: Offset, times: int = 1) -> Offset:
    return tuple(one + times * other for one, other in zip(offset, by, strict=True))


def _ends(offsets: list[Offset]) -> tuple[Offset, Offset]:
    """Returns the lowest and the highest offset along each axis."""
    axes = list(zip(*offsets, strict=True))
    return tuple(map(min, axes)), tuple(map(max, axes))
