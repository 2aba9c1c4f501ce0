"""The canonical form of labels and signs, and the checks of the arrays given for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns import nesting


def canonical(labels: ArrayLike, signs: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels numbered by first appearance (-1: pinned) and signs whose first member of each group is +1.

    Raises:
        TyingError: the arrays are malformed.
    """
    label_array = _integer_array(labels, "labels")
    if label_array.min() < -1:
        raise TyingError(
            f"A label is -1 (pinned to zero), 0, 1, ... Received label {label_array.min()}. Number the groups from 0."
        )
    if signs is None:
        return _renumbered(label_array, np.where(label_array < 0, 0, 1))
    sign_array = _integer_array(signs, "signs")
    _check_signs(label_array, sign_array)
    return _renumbered(np.where(sign_array == 0, -1, label_array), sign_array)


def frozen(array: np.ndarray) -> np.ndarray:
    """Returns `array`, made read-only."""
    array.setflags(write=False)
    return array


def _integer_array(values: ArrayLike, name: str) -> np.ndarray:
    """Returns `values` as an int64 array with at least one axis and one entry."""
    try:
        array = nesting.integers(values)
    except (ValueError, OverflowError, TypeError) as error:
        raise TyingError(
            f"`{name}` must be an array of integers with rows of equal length. Received {abbreviate(values)} ({error!s:.200}). "
            "Pin the positions that should be empty with -1."
        ) from error
    is_valid = array.dtype.kind in "iu" and array.size > 0 and 0 < array.ndim <= nesting.MAX_RANK
    if not is_valid or array.max() > np.iinfo(np.int64).max:
        raise TyingError(
            f"`{name}` must be a non-empty array of integers of at most 64 bits, with rows of equal length and at most "
            f"{nesting.MAX_RANK} axes. Received dtype={array.dtype}, shape={array.shape}. Use `TyingPattern.parse` for text."
        )
    return array.astype(np.int64)


def _check_signs(labels: np.ndarray, signs: np.ndarray) -> None:
    """Raises unless every position has a label with a sign of +1 or -1, or sign 0."""
    if signs.shape != labels.shape:
        raise TyingError(
            f"`signs` must have the shape of `labels`. Received shapes {signs.shape} and {labels.shape}. "
            "Leave `signs` out if all are +1."
        )
    if signs.min() < -1 or signs.max() > 1:
        others = sorted(set(signs.ravel().tolist()) - {-1, 0, 1})
        raise TyingError(
            f"A sign is +1, -1 or 0. Received {others[:3]} among the signs. Write -1 for a negative member, 0 for a pinned one."
        )
    if ((labels == -1) & (signs != 0)).any():
        raise TyingError(
            "A position of label -1 is pinned to zero and has sign 0. Received sign +1 or -1 without a label. "
            "Give the position a label, or sign 0."
        )


def _renumbered(labels: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels numbered by first appearance, and signs whose first member of each group is +1. Pins stay as is."""
    flat_labels, flat_signs = labels.ravel(), signs.ravel()
    if not _is_canonical(flat_labels, flat_signs):
        is_pinned = flat_labels < 0
        anchor = first_with_label(flat_labels)
        is_anchor = (anchor == np.arange(anchor.size)) & ~is_pinned
        group_number = np.cumsum(is_anchor) - 1
        flat_labels = np.where(is_pinned, -1, group_number[anchor])
        flat_signs = flat_signs * flat_signs[anchor]
    return flat_labels.reshape(labels.shape), flat_signs.reshape(signs.shape)


def _is_canonical(labels: np.ndarray, signs: np.ndarray) -> bool:
    """Returns whether flat labels count from 0 by first appearance and the first member of each group has sign +1."""
    is_first = is_first_member(labels)
    return np.array_equal(labels[is_first], np.arange(np.count_nonzero(is_first))) and (signs[is_first] > 0).all()


def is_first_member(labels: np.ndarray) -> np.ndarray:
    """Returns a mask of the positions whose label exceeds all labels before. In canonical labels, these begin the groups."""
    return np.concatenate([labels[:1] >= 0, labels[1:] > np.maximum.accumulate(labels)[:-1]])


def first_with_label(labels: np.ndarray) -> np.ndarray:
    """Returns for each position the first position with the same label, for flat labels of at least -1."""
    # `first` is a table by label. Large labels are renumbered first, to keep the table small.
    if labels.max() > 2 * labels.size:
        labels = np.unique(labels, return_inverse=True)[1]
    first = np.empty(labels.max() + 2, np.int64)
    first[labels[::-1]] = np.arange(labels.size)[::-1]  # for a repeated index NumPy stores the last value
    return first[labels]
