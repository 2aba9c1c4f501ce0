"""Arrays from nested sequences, checked in Python.

NumPy 2.4 has crashed on ragged sequences, and it makes huge arrays from lists that repeat a few objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

MAX_RANK = 32
MAX_REPEATED = 2**20  # entries of an array from lists that repeat a row object: the lists themselves take little memory
MAX_POSITIONS = 2**24  # of a pattern made from a size: building it takes about 100 bytes per position


def integers(values: Any) -> np.ndarray:
    """Returns nested sequences of integers or booleans as an array. Other values are passed to `np.asarray`.

    Raises:
        ValueError: rows of different lengths or depths, too many axes, or too many repeated rows.
        TypeError: entries of another type.
        OverflowError: integers beyond 64 bits.
    """
    if not _is_sequence(type(values)):
        return np.asarray(values)
    shape, entries = _flat(values)
    kinds = set(map(type, entries))
    if not all(issubclass(kind, int) for kind in kinds):
        raise TypeError(f"entries of type {', '.join(sorted(kind.__name__ for kind in kinds))}")
    return np.array(entries, bool if kinds == {bool} else np.int64).reshape(shape)


def _flat(values: Any) -> tuple[list[int], list[Any]]:
    """Returns the shape of nested sequences, and their entries in C order, level by level."""
    shape: list[int] = []
    rows = _without_arrays([values])
    while any(map(_is_sequence, set(map(type, rows)))):
        shape.append(_common_length(rows))
        size = math.prod(shape)
        if len(shape) > MAX_RANK:
            raise ValueError(f"more than {MAX_RANK} axes")
        if size > MAX_REPEATED and len(set(map(id, rows))) < len(rows):
            raise ValueError(f"rows that are one object among more than {MAX_REPEATED} entries: pass an array")
        entries = islice(chain.from_iterable(rows), size + 1)  # bounded, as a sequence may yield more than its length
        rows = _without_arrays(list(entries))
    return shape, rows


def _common_length(rows: list[Any]) -> int:
    """Returns the length of all rows, or raises a ValueError if they differ."""
    if not all(map(_is_sequence, set(map(type, rows)))):
        raise ValueError("rows of different depths")
    lengths = set(map(len, rows))
    if len(lengths) != 1:
        raise ValueError("rows of different lengths")
    return lengths.pop()


def _without_arrays(rows: list[Any]) -> list[Any]:
    """Returns `rows` with NumPy arrays and scalars converted to lists and Python numbers."""
    if not any(hasattr(kind, "__array__") for kind in set(map(type, rows))):
        return rows
    return [np.asarray(row).tolist() if hasattr(row, "__array__") else row for row in rows]


def _is_sequence(kind: type) -> bool:
    return issubclass(kind, Sequence) and not issubclass(kind, (str, bytes, bytearray, memoryview))
