"""The tying pattern: a signed partition of the positions of a kernel."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying import notation
from kernel_tying.errors import TyingError, abbreviate, check_config

MAX_POSITIONS = 2**24  # of patterns that are made from sizes alone: making one takes some 300 bytes a position


class TyingPattern:
    """A signed partition of kernel positions: the 0/+1/-1 matrix `B` of `kernel = B @ free_weights`.

    Positions with the same label form a **tied group** and share one free weight; a position of sign -1 holds its
    negative; a position of sign 0 is pinned to zero. Axes line up with the kernel's axes from the first. An axis that
    the pattern lacks, or along which it has size 1, is **free**: every index along it has free weights of its own. So a
    pattern of shape `(5, 5)` ties a kernel `(5, 5, in, out)` within each pair of channels.

    Patterns are immutable and hashable, and kept in canonical form: labels count from 0 by first appearance in C order,
    pinned positions have label -1 and sign 0, and the first member of each group has sign +1.

    Args:
        labels: integers of any shape, one per position; -1 pins a position to zero.
        signs: +1, -1 or 0 per position, same shape as `labels`; by default +1 wherever the label is not -1.

    Raises:
        TyingError: the arrays are malformed, no free weight is left, or no axis is tied.

    Example:

    >>> pattern = TyingPattern([[0, 1, 0]], signs=[[1, 1, -1]])
    >>> pattern
    TyingPattern.parse('AB-A/')
    >>> pattern.shape, pattern.num_free
    ((1, 3), 2)
    """

    labels: np.ndarray
    signs: np.ndarray

    def __init__(self, labels: ArrayLike, signs: ArrayLike | None = None):
        label_array = _integer_array(labels, "labels")
        sign_array = np.where(label_array < 0, 0, 1) if signs is None else _integer_array(signs, "signs")
        _check_members(label_array, sign_array)
        labels, signs = _canonical(label_array, sign_array)
        self.__dict__.update(labels=labels, signs=signs)
        if self.num_free == 0:
            raise TyingError(
                "A pattern needs at least one free weight. Received only positions that are pinned to zero. "
                "Give at least one position a label with sign +1 or -1."
            )
        if not self.tied_axes:
            raise TyingError(
                f"A pattern needs at least one tied axis, of size 2 or more. Received shape={self.shape}. "
                "Leave kernels of size 1 untied."
            )

    @classmethod
    def parse(cls, text: str, shape: tuple[int, ...] | None = None) -> TyingPattern:
        """Returns the pattern written as `text`.

        A cell is one character, or a blank-separated token if a row contains blanks. `.` pins a position to zero, `-A`
        is minus `A`. Rows are separated by `/` or a newline, planes by `//` or a blank line, and so on for more axes;
        trailing slashes stand for leading axes of size 1.

        Args:
            text: the notation.
            shape: reshapes the cells, in C order, for patterns that are clumsy to write with separators.

        Raises:
            TyingError: rows of different lengths, an empty text, a sign without a label, or cells that do not fill
                `shape`.

        Example:

        >>> TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII").num_free
        9
        >>> TyingPattern.parse("A -B . B -A").signs
        array([ 1,  1,  0, -1, -1])
        """
        return cls(*notation.parse(text, shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis of the pattern."""
        return self.labels.shape

    @cached_property
    def num_free(self) -> int:
        """Number of tied groups, which is the number of free weights for each index along the free axes."""
        return int(self.labels.max()) + 1

    @cached_property
    def group_sizes(self) -> np.ndarray:
        """Number of members of each tied group, an integer array of shape `(num_free,)`; pinned positions count nowhere."""
        return _frozen(np.bincount(self.labels[self.labels >= 0], minlength=self.num_free))

    @cached_property
    def tied_axes(self) -> tuple[int, ...]:
        """The axes along which the pattern has size 2 or more."""
        return tuple(axis for axis, size in enumerate(self.shape) if size > 1)

    @cached_property
    def _anchors(self) -> np.ndarray:
        """Flat position of the first member of each group, an integer array of shape `(num_free,)`."""
        labels, first = np.unique(self.labels, return_index=True)
        return _frozen(first[labels >= 0])

    @cached_property
    def groups_by_size(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each group size n, the labels `(g,)` of its groups and the flat positions `(g, n)` of their members."""
        by_label = np.argsort(self.labels, axis=None, kind="stable")[(self.labels < 0).sum() :]
        first = np.cumsum(self.group_sizes) - self.group_sizes
        labels_of_size = {size: np.flatnonzero(self.group_sizes == size) for size in np.unique(self.group_sizes)}
        return tuple(
            (_frozen(labels), _frozen(by_label[first[labels, None] + np.arange(size)]))
            for size, labels in labels_of_size.items()
        )

    def __and__(self, other: TyingPattern) -> TyingPattern:
        """Returns the pattern of the kernels that both patterns tie. Axes of size 1 broadcast.

        Contradictory signs pin a group to zero.

        Raises:
            TyingError: both patterns tie an axis, of different sizes, or only the zero kernel is tied by both.

        >>> TyingPattern.parse("ABA") & TyingPattern.parse("AAB")
        TyingPattern.parse('AAA')
        >>> TyingPattern.parse("ABA") & TyingPattern.parse("AB-A")
        TyingPattern.parse('.A.')
        """
        if not isinstance(other, TyingPattern):
            return NotImplemented
        shape = _common_shape(self, other)
        both = [_equalities(pattern, shape) for pattern in (self, other)]
        return tie(shape, *(np.concatenate(parts) for parts in zip(*both, strict=True)))

    def refines(self, other: TyingPattern) -> bool:
        """Returns whether every kernel tied by `other` is tied by this pattern too.

        >>> TyingPattern.parse("ABA").refines(TyingPattern.parse("AAA"))
        True
        """
        shape = _common_shape(self, other)
        first, second, relation = _equalities(self, shape)
        lifted = _lift(other, shape)
        labels, signs = lifted.labels.ravel(), lifted.signs.ravel()
        return np.array_equal(labels[first], labels[second]) and np.array_equal(signs[first], relation * signs[second])

    def get_config(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict from which `from_config` makes an equal pattern."""
        config = {"labels": self.labels.tolist()}
        if (self.signs < 0).any():
            config["signs"] = self.signs.tolist()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TyingPattern:
        """Returns the pattern described by `config`, a dict as made by `get_config`.

        Raises:
            TyingError: `config` is no such dict.
        """
        check_config(cls.__name__, config, required=["labels"], optional=["signs"])
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TyingPattern):
            return NotImplemented
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.signs, other.signs)

    @cached_property
    def _hash(self) -> int:
        return hash((self.shape, self.labels.tobytes(), self.signs.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A TyingPattern is immutable: `{name}` cannot be set. Make a new pattern.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A TyingPattern is immutable: `{name}` cannot be deleted. Make a new pattern.")

    def __reduce__(self) -> tuple[type[TyingPattern], tuple[np.ndarray, np.ndarray]]:
        return type(self), (self.labels, self.signs)

    def __str__(self) -> str:
        return notation.write(self.labels, self.signs)

    def __repr__(self) -> str:
        if self.labels.size > 200:
            return f"<TyingPattern shape={self.shape}, num_free={self.num_free}>"
        return f"TyingPattern.parse({str(self)!r})"


def tie(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray, signs: np.ndarray) -> TyingPattern:
    """Returns the finest pattern in which `kernel[first] == signs * kernel[second]`, for flat positions.

    The groups are the connected components of the doubled set of positions (p, +) and (p, -), where `k[p] = s k[q]` joins
    (p, +) to (q, s) and (p, -) to (q, -s). A position that is joined to its own negative is pinned to zero.

    Args:
        shape: shape of the pattern.
        first: integer array of flat positions.
        second: integer array of flat positions, same shape as `first`.
        signs: +1 or -1 for each pair; with `first == second`, -1 pins the position.
    """
    size = int(np.prod(shape))
    flip = np.where(signs < 0, size, 0)
    component = _components(
        2 * size, np.concatenate([first, first + size]), np.concatenate([second + flip, second + size - flip])
    )
    positive, negative = component[:size], component[size:]
    pinned = positive == negative
    labels = np.where(pinned, -1, np.minimum(positive, negative))
    kernel_signs = np.where(pinned, 0, np.where(positive < negative, 1, -1))
    return TyingPattern(labels.reshape(shape), kernel_signs.reshape(shape))


def _components(size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns for each of `size` nodes the smallest node that edges `first` - `second` connect it to."""
    smallest = np.arange(size)
    while True:
        before = smallest.copy()
        lowest = np.minimum(smallest[first], smallest[second])
        for end in (first, second):
            np.minimum.at(smallest, smallest[end], lowest)
            np.minimum.at(smallest, end, lowest)
        smallest = smallest[smallest]
        if np.array_equal(before, smallest):
            return smallest


def _integer_array(values: ArrayLike, name: str) -> np.ndarray:
    """Returns `values` as an int64 array with at least one axis and one entry."""
    try:
        array = _array(values)
    except (ValueError, OverflowError, TypeError) as error:
        raise TyingError(
            f"`{name}` must be an array of integers with rows of equal length. Received {abbreviate(values)} ({error!s:.200}). "
            "Pin the positions that should be empty with -1."
        ) from error
    is_valid = array.dtype.kind in "iu" and array.size > 0 and 0 < array.ndim <= notation.MAX_RANK
    if not is_valid or array.max() > np.iinfo(np.int64).max:
        raise TyingError(
            f"`{name}` must be a non-empty array of integers of at most 64 bits, with rows of equal length and at most "
            f"{notation.MAX_RANK} axes. Received dtype={array.dtype}, shape={array.shape}. Use `TyingPattern.parse` for text."
        )
    return array.astype(np.int64)


def _array(values: ArrayLike) -> np.ndarray:
    """Returns `values` as an array; of objects if there are strings, as NumPy would make all as long as the longest."""
    if isinstance(values, (list, tuple)):
        objects = np.asarray(values, dtype=object)
        if any(issubclass(kind, (str, bytes)) for kind in set(map(type, objects.ravel()))):
            return objects
    return np.asarray(values)


def _check_members(labels: np.ndarray, signs: np.ndarray) -> None:
    """Raises unless every position has a label with a sign of +1 or -1, or is pinned."""
    if signs.shape != labels.shape:
        raise TyingError(
            f"`signs` must have the shape of `labels`. Received shapes {signs.shape} and {labels.shape}. "
            "Leave `signs` out if all are +1."
        )
    if not np.isin(signs, (-1, 0, 1)).all():
        others = sorted(set(signs.ravel().tolist()) - {-1, 0, 1})
        raise TyingError(
            f"A sign is +1, -1 or 0. Received {others[:3]} among the signs. Write -1 for a negative member, 0 for a pinned one."
        )
    if labels.min() < -1:
        raise TyingError(f"A label is -1 (pinned to zero), 0, 1, ... Received label {labels.min()}. Number the groups from 0.")
    if ((labels == -1) & (signs != 0)).any():
        raise TyingError(
            "A position of label -1 is pinned to zero and has sign 0. Received sign +1 or -1 without a label. "
            "Give the position a label, or sign 0."
        )


def _canonical(labels: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels numbered by first appearance, and signs that start each group with +1."""
    is_tied = signs.ravel() != 0
    _, first, group = np.unique(labels.ravel()[is_tied], return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(first.size)
    new_labels = np.full(labels.size, -1)
    new_labels[is_tied] = rank[group]
    new_signs = signs.ravel().copy()
    new_signs[is_tied] *= new_signs[is_tied][first][group]
    return _frozen(new_labels.reshape(labels.shape)), _frozen(new_signs.reshape(labels.shape))


def _frozen(array: np.ndarray) -> np.ndarray:
    """Returns `array`, made read-only."""
    array.setflags(write=False)
    return array


def _common_shape(one: TyingPattern, other: TyingPattern) -> tuple[int, ...]:
    """Returns the shape to which both patterns lift: missing axes are appended, axes of size 1 broadcast."""
    rank = max(len(one.shape), len(other.shape))
    try:
        shape = np.broadcast_shapes(*(_padded(pattern.shape, rank) for pattern in (one, other)))
    except ValueError:
        raise TyingError(
            f"Patterns that are combined or compared must agree along the axes that both tie. "
            f"Received shapes {one.shape} and {other.shape}. Make both for the same kernel size."
        ) from None
    check_positions(shape)
    return shape


def check_positions(shape: tuple[int, ...]) -> None:
    """Raises a `TyingError` if a pattern of `shape`, which a few numbers can ask for, would take gigabytes."""
    if math.prod(shape) > MAX_POSITIONS:
        raise TyingError(
            f"A pattern that is made from a size has at most {MAX_POSITIONS} positions. Received {abbreviate(shape)}. "
            "Leave axes free, or pass arrays of labels to `TyingPattern` itself."
        )


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Returns `shape` with axes of size 1 appended up to `rank`."""
    return shape + (1,) * (rank - len(shape))


def _lift(pattern: TyingPattern, shape: tuple[int, ...]) -> TyingPattern:
    """Returns the pattern of `shape` that ties the same kernels, each index along a free axis in groups of its own."""
    padded = _padded(pattern.shape, len(shape))
    copies = tuple(size if own == 1 else 1 for own, size in zip(padded, shape, strict=True))
    copy_of = np.arange(np.prod(copies)).reshape(copies)
    labels = np.broadcast_to(pattern.labels.reshape(padded), shape)
    signs = np.broadcast_to(pattern.signs.reshape(padded), shape)
    return TyingPattern(np.where(signs == 0, -1, labels + pattern.num_free * copy_of), signs)


def _equalities(pattern: TyingPattern, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns positions, the anchor of each, and the sign between them; a pinned position is its own negative."""
    lifted = _lift(pattern, shape)
    labels, signs = lifted.labels.ravel(), lifted.signs.ravel()
    positions = np.arange(labels.size)
    is_pinned = signs == 0
    return positions, np.where(is_pinned, positions, lifted._anchors[labels]), np.where(is_pinned, -1, signs)
