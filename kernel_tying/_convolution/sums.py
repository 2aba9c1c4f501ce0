"""Group sums: which shifted inputs are added for each tied group. Partial sums that several groups share are computed once.

`S_g x` is the signed sum of the inputs at the members of group g. A tied convolution is then `y = sum_g (S_g x) theta_g`:
one product per tied group instead of one per kernel position.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from kernel_tying._convolution.lines import Offset, box_of, ends_of, outer_products
from kernel_tying.patterns.pattern import TyingPattern

_MAX_PAIRS = 2000  # of terms, up to which the most frequent pair is searched: in well under a second


class Term(NamedTuple):
    """`sign` times an image, read at `offset`. Image 0 is the padded input, the others are shared sums."""

    image: int
    offset: Offset
    sign: int


class SharedSum(NamedTuple):
    """The image `first + sign * second`, with image `second` read at `offset` from image `first`."""

    first: int
    second: int
    offset: Offset
    sign: int


@dataclass(frozen=True)
class GroupSums:
    """How the group sums of an input are computed, for any output size.

    Attributes:
        steps: the shared sums, in the order of their image numbers from 1.
        groups: the terms of each group sum.
    """

    steps: tuple[SharedSum, ...]
    groups: tuple[tuple[Term, ...], ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # each call looks up a schedule
        return hash((self.steps, self.groups))

    @cached_property
    def ranges(self) -> tuple[tuple[Offset, Offset], ...]:
        """The lowest and the highest offset at which each image is read."""
        # From the last image to the first, because groups and later images alone read an image.
        reads: dict[int, list[Offset]] = defaultdict(list)
        for term in itertools.chain(*self.groups):
            reads[term.image].append(term.offset)
        for image in range(len(self.steps), 0, -1):
            shared, ends = self.steps[image - 1], ends_of(reads[image])
            reads[shared.first] += ends
            reads[shared.second] += [_plus(end, shared.offset) for end in ends]
        return tuple(ends_of(reads[image]) for image in range(len(self.steps) + 1))

    @cached_property
    def grid(self) -> Grid | None:
        """The grid of all offsets if each group sum is one term of the same image, as with equal blocks; else None."""
        terms = list(itertools.chain(*self.groups))
        has_single_terms = len(terms) == len(self.groups)
        if not has_single_terms or {(term.image, term.sign) for term in terms} != {(terms[0].image, 1)}:
            return None
        return grid_of([term.offset for term in terms])

    @cached_property
    def num_additions(self) -> int:
        """The number of additions per input channel and output position."""
        return len(self.steps) + sum(len(terms) - 1 for terms in self.groups)


class Grid(NamedTuple):
    """Evenly spaced offsets, `counts` along each axis, in the order of `itertools.product`."""

    counts: Offset
    spacing: Offset


def grid_of(offsets: Sequence[Offset]) -> Grid | None:
    """Returns the grid of offsets that are given in its order, or None if they are not all positions of a grid."""
    axes = [sorted(set(axis)) for axis in zip(*offsets, strict=True)]
    spacings = [set(np.diff(axis).tolist()) or {1} for axis in axes]
    is_evenly_spaced = all(len(distances) == 1 for distances in spacings)
    if not is_evenly_spaced or list(itertools.product(*axes)) != list(offsets):
        return None
    return Grid(tuple(map(len, axes)), tuple(map(min, spacings)))


class Read(NamedTuple):
    """`sign` times a window of an image, one slice for each spatial axis."""

    image: int
    window: tuple[slice, ...]
    sign: int


@dataclass(frozen=True)
class Schedule:
    """The reads that compute group sums for one output size.

    Attributes:
        sizes: spatial sizes of the shared sums.
        steps: the reads of each shared sum.
        groups: the reads of each group sum, positive ones first.
    """

    sizes: tuple[Offset, ...]
    steps: tuple[tuple[Read, ...], ...]
    groups: tuple[tuple[Read, ...], ...]


@lru_cache(maxsize=4096)
def schedule(sums: GroupSums, dilation: Offset, strides: Offset, size: Offset) -> Schedule:
    """Returns the reads for outputs of spatial `size` that are `strides` apart."""
    # A shared sum covers only the positions that are read later. Its first entry belongs to its lowest offset.
    lows = [(0,) * len(size), *(low for low, _ in sums.ranges[1:])]
    sizes = tuple(_image_size(size, strides, _minus(high, low), dilation) for low, high in sums.ranges[1:])

    def read(term: Term, length: Offset, strides: Offset) -> Read:
        offset = _minus(term.offset, lows[term.image])
        starts = [position * rate for position, rate in zip(offset, dilation, strict=True)]
        ends = [start + (count - 1) * stride + 1 for start, count, stride in zip(starts, length, strides, strict=True)]
        return Read(term.image, tuple(map(slice, starts, ends, strides)), term.sign)

    unit = (1,) * len(size)
    steps = []
    for shared, low, length in zip(sums.steps, lows[1:], sizes, strict=True):
        terms = (Term(shared.first, low, 1), Term(shared.second, _plus(low, shared.offset), shared.sign))
        steps.append(tuple(read(term, length, unit) for term in terms))
    groups = []
    for group in sums.groups:
        positive_first = sorted(group, key=lambda term: -term.sign)
        groups.append(tuple(read(term, size, strides) for term in positive_first))
    return Schedule(sizes, tuple(steps), tuple(groups))


def _image_size(size: Offset, strides: Offset, span: Offset, dilation: Offset) -> Offset:
    """Returns the size of an image that is read at every output, at offsets up to `span` apart."""
    axes = zip(size, strides, span, dilation, strict=True)
    return tuple((count - 1) * stride + distance * rate + 1 for count, stride, distance, rate in axes)


@lru_cache(maxsize=256)
def group_sums(pattern: TyingPattern, kernel_size: Offset) -> GroupSums:
    """Returns the group sums of a pattern, one for each free weight of a pair of channels."""
    return _sums_of(members(pattern, kernel_size))


@lru_cache(maxsize=256)
def adjoint_sums(pattern: TyingPattern, kernel_size: Offset) -> GroupSums:
    """Returns the group sums of the adjoint `S_g^T`: those of the kernel reversed along all axes."""
    last = tuple(size - 1 for size in kernel_size)
    groups = members(pattern, kernel_size)
    return _sums_of([[(_minus(last, offset), sign) for offset, sign in group] for group in groups])


def members(pattern: TyingPattern, kernel_size: Offset) -> list[list[tuple[Offset, int]]]:
    """Returns offset and sign of the members of each tied group. Each index along free spatial axes has groups of its own.

    Groups are in the order of `algebra.free_by_group`: free weights whose tied axes come first, then the free spatial axes.
    """
    padded = pattern.shape[: len(kernel_size)] + (1,) * (len(kernel_size) - len(pattern.shape))
    labels = np.broadcast_to(pattern.labels.reshape(padded), kernel_size)
    signs = np.broadcast_to(pattern.signs.reshape(padded), kernel_size)
    free_sizes = tuple(1 if own_size > 1 else size for own_size, size in zip(padded, kernel_size, strict=True))
    free_positions = math.prod(free_sizes)
    free_index = np.broadcast_to(np.arange(free_positions).reshape(free_sizes), kernel_size)
    groups: list[list[tuple[Offset, int]]] = [[] for _ in range(pattern.num_free * free_positions)]
    for offset in np.ndindex(kernel_size):
        if signs[offset]:
            group = labels[offset] * free_positions + free_index[offset]
            groups[group].append((offset, int(signs[offset])))
    return groups


def _sums_of(groups: list[list[tuple[Offset, int]]]) -> GroupSums:
    """Returns the sums of groups with the offsets and signs of their members."""
    pairs = sum(math.comb(len(group), 2) for group in groups)
    if pairs > _MAX_PAIRS:
        return _LineSums().of(groups)
    return _shared([[Term(0, offset, sign) for offset, sign in group] for group in groups])


class _LineSums:
    """Sums along lines, axis by axis: evenly spaced terms by doubling, others one by one. Equal sums are computed once.

    The time to find them grows with the number of members, where a search for frequent pairs takes its square or more.
    """

    def __init__(self) -> None:
        self._images: dict[SharedSum, int] = {}

    def of(self, groups: list[list[tuple[Offset, int]]]) -> GroupSums:
        """Returns the sums of groups with the offsets and signs of their members."""
        terms = tuple(tuple(self._terms(group)) for group in groups)
        return GroupSums(tuple(self._images), terms)

    def _terms(self, group: list[tuple[Offset, int]]) -> Iterator[Term]:
        """Yields a term for each outer product of lines that the group is a sum of."""
        low, _ = ends_of(offset for offset, _ in group)
        for lines in outer_products(box_of([(_minus(offset, low), sign) for offset, sign in group])):
            image, start, sign = 0, low, 1
            for line in lines:
                image, first, own_sign = self._along(image, line)
                start, sign = _plus(start, first), sign * own_sign
            yield Term(image, start, sign)

    def _along(self, image: int, line: np.ndarray) -> tuple[int, Offset, int]:
        """Returns the sum of an image along a line of signs, as an image with the offset and the sign of its first entry."""
        entries = [(tuple(offset), int(line[tuple(offset)])) for offset in np.argwhere(line).tolist()]
        (first, sign), *rest = entries
        steps = {_minus(after, before) for (before, _), (after, _) in itertools.pairwise(entries)}
        if len(steps) == 1 and {entry for _, entry in entries} == {sign}:
            return self._run(image, len(entries), steps.pop()), first, sign
        total = image
        for offset, entry in rest:
            total = self._add(total, image, _minus(offset, first), entry * sign)
        return total, first, sign

    def _run(self, image: int, count: int, step: Offset) -> int:
        """Returns the sum of `count` copies of an image, `step` apart."""
        if count == 1:
            return image
        half = count // 2
        total = self._run(image, half, step)
        total = self._add(total, total, tuple(half * distance for distance in step), 1)
        last = tuple((count - 1) * distance for distance in step)
        return self._add(total, image, last, 1) if count % 2 else total

    def _add(self, first: int, second: int, offset: Offset, sign: int) -> int:
        return self._images.setdefault(SharedSum(first, second, offset, sign), len(self._images) + 1)


def _shared(groups: list[list[Term]]) -> GroupSums:
    """Returns the sums of `groups` in which pairs of terms that repeat, up to a shift and sign, are computed once.

    This is Hartley's common subexpression elimination (1996): the most frequent pair goes first.
    """
    steps: list[SharedSum] = []
    while True:
        pair, count = _most_frequent(groups)
        if pair is None or count < 2:
            return GroupSums(tuple(steps), tuple(tuple(terms) for terms in groups))
        steps.append(pair)
        groups = [_replaced(terms, pair, len(steps)) for terms in groups]


def _most_frequent(groups: list[list[Term]]) -> tuple[SharedSum | None, int]:
    """Returns the pair with the most disjoint occurrences, and their number. The smallest shift wins ties."""
    # All occurrences are cheap to count, and bound the disjoint ones from above. The search ends once no bound is higher.
    upper_bounds: Counter[SharedSum] = Counter()
    for terms in groups:
        upper_bounds.update(itertools.starmap(_pair, itertools.combinations(sorted(terms), 2)))
    best, most = None, 0
    for pair, upper_bound in sorted(upper_bounds.items(), key=lambda item: (-item[1], np.abs(item[0].offset).sum(), item[0])):
        if upper_bound <= most:
            break
        count = sum(len(_occurrences(terms, pair)) for terms in groups)
        if count > most:
            best, most = pair, count
    return best, most


def _pair(first: Term, second: Term) -> SharedSum:
    """Returns the sum of two terms, up to a common shift and sign."""
    return SharedSum(first.image, second.image, _minus(second.offset, first.offset), first.sign * second.sign)


def _occurrences(terms: list[Term], pair: SharedSum) -> list[tuple[Term, Term]]:
    """Returns the disjoint occurrences of `pair` among `terms`, found greedily in sorted order."""
    unused = set(terms)
    found = []
    for first in sorted(terms):
        second = Term(pair.second, _plus(first.offset, pair.offset), first.sign * pair.sign)
        if first.image == pair.first and first in unused and second in unused:
            found.append((first, second))
            unused -= {first, second}
    return found


def _replaced(terms: list[Term], pair: SharedSum, image: int) -> list[Term]:
    """Returns `terms` with each occurrence of `pair` replaced by one term of the new image `image`."""
    found = _occurrences(terms, pair)
    rest = set(terms).difference(*found)
    return sorted(rest) + [Term(image, first.offset, first.sign) for first, _ in found]


def _plus(first: Offset, second: Offset) -> Offset:
    return tuple(map(operator.add, first, second))


def _minus(first: Offset, second: Offset) -> Offset:
    return tuple(map(operator.sub, first, second))
