"""The tying pattern: a signed partition of the positions of a kernel."""

from __future__ import annotations

import math
import operator
import zlib
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError, abbreviate, check_config
from kernel_tying.patterns import calls, equalities, notation, packing
from kernel_tying.patterns.canonical import canonical, frozen, is_first_member
from kernel_tying.patterns.gathering import Gathering, gathering

_MAX_ENTRIES = 128  # operations on more rows, such as those of a matrix, would take too long to compile
_MAX_LISTED = 200  # positions up to which configs and `repr` list the labels, for readability
# Loaded patterns that are in use, by packed labels. A constraint and an initializer with equal configs share one pattern.
_loaded: WeakValueDictionary[Any, TyingPattern] = WeakValueDictionary()


class TyingPattern:
    """A signed partition of kernel positions: the 0/+1/-1 matrix `B` of `kernel = B @ free_weights`.

    Positions with the same label form a **tied group** and share one free weight. A position of sign -1 holds the negative
    of that weight. A position of sign 0 is pinned to zero. The axes of a pattern are the first axes of the kernel. An axis
    that the pattern lacks, or along which it has size 1, is **free**: every index along it has its own free weights. A
    pattern of shape `(5, 5)` therefore ties a kernel `(5, 5, in, out)` within each pair of channels. Along axes that are
    not spatial the kernel may have several **fields** of the pattern's size: a pattern of shape `(3, 3, 8, 8)` ties a
    kernel `(3, 3, 16, 24)`, each combination of fields with its own free weights.

    Patterns are immutable and hashable, and have a canonical form: labels count from 0 by first appearance in C order,
    pinned positions have label -1 and sign 0, and the first member of each group has sign +1.

    Args:
        labels: integers of any shape, one per position. -1 pins a position to zero.
        signs: +1, -1 or 0 per position, in the shape of `labels`. By default +1 wherever the label is not -1.

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
    entries: tuple[tuple[int, int], ...] | None  # label and sign of each position of a small pattern: numbers, for tracers
    _call: tuple[str, dict[str, Any]] | None = None  # the family and the arguments that made the pattern, for configs only

    def __init__(self, labels: ArrayLike, signs: ArrayLike | None = None):
        labels, signs = canonical(labels, signs)
        self.__dict__.update(labels=frozen(labels), signs=frozen(signs), entries=_entries(labels, signs))
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

        A cell is one letter or digit other than 0, or a blank-separated word if a row contains blanks. `.` pins a position to
        zero. `-A` is the negative of `A`. Rows are separated by `/` or a newline, planes by `//` or a blank line, and so on for
        more axes. Trailing slashes add leading axes of size 1.

        Args:
            text: the notation.
            shape: reshapes the cells, in C order. Use it for patterns that are hard to write with separators.

        Raises:
            TyingError: rows of different lengths, an empty text, a sign without a label, a label 0 or with punctuation, or
                cells that do not fill `shape`.

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
        """Number of tied groups, which is the number of free weights at each index along the free axes."""
        return int(self.labels.max()) + 1

    @cached_property
    def group_sizes(self) -> np.ndarray:
        """Number of members of each tied group, an integer array of shape `(num_free,)`, without pinned positions."""
        return frozen(np.bincount(self.labels[self.labels >= 0], minlength=self.num_free))

    @cached_property
    def tied_axes(self) -> tuple[int, ...]:
        """The axes along which the pattern has size 2 or more."""
        return tuple(axis for axis, size in enumerate(self.shape) if size > 1)

    @cached_property
    def free_shape(self) -> tuple[int, ...]:
        """Shape of the free weights of a kernel of the pattern's shape, `num_free` along the first tied axis, else 1."""
        return tuple(self.num_free if axis == self.tied_axes[0] else 1 for axis in range(len(self.shape)))

    @cached_property
    def anchors(self) -> np.ndarray:
        """Flat position of the first member of each group, an integer array of shape `(num_free,)`."""
        return frozen(np.flatnonzero(is_first_member(self.labels.ravel())))

    @cached_property
    def gathering(self) -> Gathering:
        """Index arrays for `expand` and `average`, cached with the pattern and never saved."""
        return gathering(self.labels, self.signs)

    @property
    def family(self) -> str:
        """The family that made the pattern, with its options, such as "mirror(axis=0)"; "" for other patterns."""
        return calls.written(*self._call) if self._call is not None else ""

    def __and__(self, other: TyingPattern) -> TyingPattern:
        """Returns the pattern of the kernels that are tied by both patterns. Axes of size 1 broadcast.

        Groups with contradictory signs are pinned to zero.

        Raises:
            TyingError: both patterns tie an axis but with different sizes, or only the zero kernel is tied by both.

        >>> TyingPattern.parse("ABA") & TyingPattern.parse("AAB")
        TyingPattern.parse('AAA')
        >>> TyingPattern.parse("ABA") & TyingPattern.parse("AB-A")
        TyingPattern.parse('.A.')
        """
        if not isinstance(other, TyingPattern):
            return NotImplemented
        shape = equalities.common_shape(self.shape, other.shape)
        both = [equalities.implied(pattern.labels, pattern.signs, shape) for pattern in (self, other)]
        return tie(shape, *(np.concatenate(parts) for parts in zip(*both, strict=True)))

    def refines(self, other: TyingPattern) -> bool:
        """Returns whether every kernel tied by `other` is also tied by this pattern.

        >>> TyingPattern.parse("ABA").refines(TyingPattern.parse("AAA"))
        True
        """
        shape = equalities.common_shape(self.shape, other.shape)
        first, second, equality_signs = equalities.implied(self.labels, self.signs, shape)
        labels, signs = equalities.lifted(other.labels, other.signs, shape)
        has_equal_labels = np.array_equal(labels[first], labels[second])
        return has_equal_labels and np.array_equal(signs[first], equality_signs * signs[second])

    def get_config(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict from which `from_config` makes an equal pattern.

        If a family of `patterns` made the pattern from numbers, the dict holds that call and a checksum of labels and
        signs. Otherwise it holds labels and signs, packed as text for large patterns.
        """
        if self._call is not None:
            family, arguments = self._call
            return {"family": family, "arguments": calls.listed(arguments), "checksum": self._checksum}
        if self.labels.size > _MAX_LISTED:
            return {"packed": self._packed, "shape": list(self.shape)}
        config = {"labels": self.labels.tolist()}
        if (self.signs < 0).any():
            config["signs"] = self.signs.tolist()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TyingPattern:
        """Returns the pattern described by `config`, a dict as made by `get_config`.

        Raises:
            TyingError: `config` is no such dict, or its family makes a different pattern in this version.
        """
        if isinstance(config, dict) and "family" in config:
            check_config(cls.__name__, config, required=["family", "arguments", "checksum"])
            return _repeated(**config)
        if isinstance(config, dict) and "packed" in config:
            check_config(cls.__name__, config, required=["packed", "shape"])
            return _unpacked(**config)
        check_config(cls.__name__, config, required=["labels"], optional=["signs"])
        return cls(**config)

    @cached_property
    def _packed(self) -> str:
        return packing.pack(self.labels, self.signs)

    @cached_property
    def _checksum(self) -> int:
        """CRC-32 of labels and signs in their smallest integer dtypes."""
        labels = self.labels.astype(packing.label_dtype(self.num_free))
        return zlib.crc32(self.signs.astype(np.int8).data, zlib.crc32(labels.data))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TyingPattern):
            return NotImplemented
        return self is other or (np.array_equal(self.labels, other.labels) and np.array_equal(self.signs, other.signs))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # each eager call of a layer hashes its pattern
        return hash((self.shape, self._checksum))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A TyingPattern is immutable: `{name}` cannot be set. Make a new pattern.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A TyingPattern is immutable: `{name}` cannot be deleted. Make a new pattern.")

    def __copy__(self) -> TyingPattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TyingPattern:
        return self

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        return type(self).from_config, (self.get_config(),)

    def __str__(self) -> str:
        return notation.write(self.labels, self.signs)

    def __repr__(self) -> str:
        if self.labels.size > _MAX_LISTED and self._call is not None:
            family, arguments = self._call
            return f"patterns.{family}({', '.join(map(repr, arguments.values()))})"
        if self.labels.size > _MAX_LISTED:
            return f"<TyingPattern shape={self.shape}, num_free={self.num_free}>"
        return f"TyingPattern.parse({str(self)!r})"


def tie(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray, signs: np.ndarray) -> TyingPattern:
    """Returns the finest pattern of `shape` in which `kernel[first] == signs * kernel[second]`, for flat positions.

    A sign of -1 pins a position that is paired with itself.
    """
    labels, kernel_signs = equalities.solved(math.prod(shape), first, second, signs)
    return TyingPattern(labels.reshape(shape), kernel_signs.reshape(shape))


def _repeated(family: str, arguments: dict[str, Any], checksum: int) -> TyingPattern:
    """Returns the pattern of a recorded call, or raises a `TyingError` if its checksum differs."""
    pattern = calls.repeat(family, arguments)
    if pattern._checksum != checksum:
        raise TyingError(
            f"A config names a family whose pattern has not changed since it was written. Received {abbreviate(family)} with "
            f"{abbreviate(arguments)} and the checksum {abbreviate(checksum)}, which is {pattern._checksum} here. "
            "Install the version of kernel_tying that wrote it."
        )
    return pattern


def _unpacked(packed: str, shape: list[int]) -> TyingPattern:
    """Returns the pattern whose labels and signs a config holds as text."""
    try:
        key = packed, tuple(map(operator.index, shape))
        pattern = _loaded.get(key)
        if pattern is None:
            pattern = _loaded[key] = TyingPattern(*packing.unpack(*key))
        return pattern
    except TyingError:
        raise
    except (ValueError, TypeError) as error:
        raise TyingError(
            f"Packed labels are a text and a shape as `get_config` writes them. Received {abbreviate(packed)} and "
            f"{abbreviate(shape)} ({error!s:.200}). Save the pattern again."
        ) from error


def _entries(labels: np.ndarray, signs: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    if labels.size > _MAX_ENTRIES:
        return None
    return tuple(zip(labels.ravel().tolist(), signs.ravel().tolist(), strict=True))
