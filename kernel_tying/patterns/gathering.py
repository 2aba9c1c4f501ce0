"""Index arrays with which `expand` and `average` take a few operations, whatever the number of positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernel_tying.patterns.canonical import is_first_member

Array = np.ndarray


class Members(NamedTuple):
    """A table of the members of g tied groups, one per column. Short columns are padded with the anchor, the first member.

    Attributes:
        labels: labels of the groups, `(g,)`.
        positions: flat positions of the members, `(n, g)`, the anchor first.
        is_negative: whether a member has sign -1, `(n, g, 1)`; None if none has.
        sizes: the number of members of each group, `(g, 1)`.
        is_single: whether a group has only one member, `(g, 1)`; None if this holds for none or all.
    """

    labels: Array
    positions: Array
    is_negative: Array | None
    sizes: Array
    is_single: Array | None


class Gathering(NamedTuple):
    """Index arrays between the rows of a kernel, one per position, and the rows of its free weights, one per group.

    Attributes:
        labels: the row of free weights at each position, `(p,)`; 0 if pinned.
        is_negative: whether a position has sign -1, `(p, 1)`; None if none has.
        is_pinned: whether a position has sign 0, `(p, 1)`; None if none has.
        anchors: flat position of the first member of each group, `(K,)`.
        sizes: the number of members of each group, `(K, 1)`.
        is_single: whether a group has only one member, `(K, 1)`; None if none has.
        members: tables that together hold all groups.
        order: for each group, its index in the concatenated tables, `(K,)`; None if there is only one table.
    """

    labels: Array
    is_negative: Array | None
    is_pinned: Array | None
    anchors: Array
    sizes: Array
    is_single: Array | None
    members: tuple[Members, ...]
    order: Array | None


def gathering(labels: Array, signs: Array) -> Gathering:
    """Returns the index arrays of a pattern in canonical form."""
    labels, signs = labels.ravel(), signs.ravel()
    tables = _tables(labels, signs)
    order = np.argsort(np.concatenate([table.labels for table in tables])) if len(tables) > 1 else None
    anchors = np.flatnonzero(is_first_member(labels)).astype("int32")
    sizes = np.bincount(labels[labels >= 0])[:, None]
    return Gathering(
        labels=np.maximum(labels, 0).astype("int32"),
        is_negative=_if_any(signs[:, None] < 0),
        is_pinned=_if_any(signs[:, None] == 0),
        anchors=anchors,
        sizes=sizes.astype("float32"),
        is_single=_if_any(sizes == 1),
        members=tables,
        order=order,
    )


def _tables(labels: Array, signs: Array) -> tuple[Members, ...]:
    """Returns one table of all groups, or one per size class if padding would more than double the number of entries."""
    sizes = np.bincount(labels[labels >= 0])
    by_label = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    starts = np.cumsum(sizes) - sizes
    # Classes are powers of two, so that less than half of each table is padding.
    fits_one_table = sizes.size * sizes.max() <= 2 * sizes.sum()
    classes = np.zeros_like(sizes) if fits_one_table else np.ceil(np.log2(sizes))
    groups_of_class = (np.flatnonzero(classes == size_class) for size_class in np.unique(classes))
    return tuple(_members(groups, sizes[groups], starts[groups], by_label, signs) for groups in groups_of_class)


def _members(groups: Array, sizes: Array, starts: Array, by_label: Array, signs: Array) -> Members:
    """Returns the table of `groups`. `by_label` lists all tied positions by label, those of each group from its start."""
    rows = np.arange(sizes.max())[:, None]
    positions = by_label[starts + np.where(rows < sizes, rows, 0)]
    return Members(
        labels=groups,
        positions=positions,
        is_negative=_if_any(signs[positions][..., None] < 0),
        sizes=sizes[:, None].astype("float32"),
        is_single=None if (sizes == 1).all() else _if_any(sizes[:, None] == 1),
    )


def _if_any(mask: Array) -> Array | None:
    """Returns `mask`, or None if it is all false: the operation that it selects can then be skipped."""
    return mask if mask.any() else None
