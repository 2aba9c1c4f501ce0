"""What a report says once for many layers: rows with equal patterns and options, and untied layers with the same reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from kernel_tying._report.rows import ReportRow
from kernel_tying.patterns.pattern import TyingPattern

MAX_DRAWN = 81  # positions of a pattern that is drawn, as many as a 9x9 kernel has
_MAX_NAMED = 4  # layers that are all named
_MAX_FAMILY = 120  # characters of a family with options
TITLES = {"start": "start", "convolution": "convolves", "error": "error"}  # of optional columns
_IN_WORDS = {"kernel": "stock convolutions", "group_sums": "convolved by group sums"}


class Cells(NamedTuple):
    """What a report says of a group of rows with equal patterns and options.

    Attributes:
        kernels: number and class of the layers, and the mode if the model has kernels in both.
        pattern: the pattern in words.
        weights: free and full weights.
        start: how the first tied kernels were made, and what they lost.
        convolution: how the layers convolve.
        error: the largest tying error, empty if all are tied to the bit.
    """

    kernels: str
    pattern: str
    weights: str
    start: str
    convolution: str
    error: str


def tied_groups(rows: Sequence[ReportRow]) -> list[list[ReportRow]]:
    """Returns the rows of tied kernels, grouped by class, kernel name, mode, pattern, and what a group says once."""
    return _grouped(
        [row for row in rows if row.pattern is not None],
        lambda row: (row.layer_class, row.kernel, row.mode, row.pattern, row.fields_along_tied_axes, row.init, row.convolution),
    )


def untied_groups(rows: Sequence[ReportRow]) -> list[list[ReportRow]]:
    """Returns the rows of untied layers, grouped by reason and class."""
    return _grouped([row for row in rows if row.pattern is None], lambda row: (row.reason, row.layer_class))


def _grouped(rows: Iterable[ReportRow], key: Callable[[ReportRow], Hashable]) -> list[list[ReportRow]]:
    """Returns lists of rows with equal keys, in the order of their first rows."""
    groups: dict[Hashable, list[ReportRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def title(name: str, rows: Sequence[ReportRow]) -> str:
    """Returns the first line of a report."""
    tied = [row for row in rows if row.pattern is not None]
    free, full = _weights(tied)
    share = f" ({free / full:.0%})" if full else ""
    return f"Tying of {name}: {count(len(tied), 'tied kernel')}, {free:,} free of {full:,} weights{share}"


def summary(rows: Sequence[ReportRow]) -> str:
    """Returns the second line of a report: the mode, and whether the kernels are tied to the bit."""
    tied = [row for row in rows if row.pattern is not None]
    unbuilt = [row for row in tied if row.full_weights is None]
    errors = {row.error: f"{row.layer}.{row.kernel}" for row in reversed(tied) if row.error is not None}
    largest = max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=0.0)
    parts = [f"{' and '.join(modes(rows))} mode"] if tied else []
    if unbuilt:
        parts.append(f"{count(len(unbuilt), 'kernel')} not built")
    if errors:
        parts.append("all tied to the bit" if largest == 0 else f"largest tying error {largest:.2g}, of {errors[largest]}")
    if len(convolutions(rows)) == 1:
        parts += [_IN_WORDS[name] for name in convolutions(rows)]
    return "; ".join(parts)


def convolutions(rows: Sequence[ReportRow]) -> list[str]:
    """Returns how the tied kernels of a report convolve."""
    return sorted({row.convolution for row in rows} - {""})


def modes(rows: Sequence[ReportRow]) -> list[str]:
    """Returns the modes of tied kernels."""
    return sorted({row.mode for row in rows} - {""})


def cells(group: Sequence[ReportRow], has_both_modes: bool) -> Cells:
    """Returns what a report says of a group of tied kernels."""
    first = group[0]
    free, full = _weights(group)
    is_built = all(row.full_weights is not None for row in group)
    largest = max((row.error or 0.0 for row in group), default=0.0)
    return Cells(
        kernels=f"{len(group)} {first.layer_class}{f', {first.mode}' if has_both_modes else ''}",
        pattern=describe(first),
        weights=f"{free:,}/{full:,}" if is_built else "not built",
        start="\n".join(filter(None, [first.init, _range([row.lost for row in group if row.lost is not None])])),
        convolution=first.convolution,
        error=f"{largest:.2g}" if largest else "",
    )


def optional_columns(described: Sequence[Cells]) -> list[str]:
    """Returns the fields of `Cells` that a report needs a column for: what the second line does not say for all rows."""
    columns = {name: {getattr(cells, name) for cells in described} - {""} for name in ("start", "convolution", "error")}
    return [name for name, values in columns.items() if len(values) > (name == "convolution")]


def describe(row: ReportRow) -> str:
    """Returns a pattern in words: its family if it has one, its size, its number of groups, and its fields."""
    pattern = row.pattern
    if pattern is None:
        return ""
    size = "x".join(map(str, pattern.shape))
    several = " x ".join(str(count) for count in row.fields_along_tied_axes if count > 1)
    return "\n".join(
        filter(None, [pattern.family, f"{size}, {count(pattern.num_free, 'group')}", several and f"{several} fields"])
    )


def is_drawn(pattern: TyingPattern) -> bool:
    """Returns whether reports draw a pattern: it is small, and has rows and columns only."""
    return pattern.labels.size <= MAX_DRAWN and len(pattern.tied_axes) <= 2


def names(group: Sequence[ReportRow]) -> list[str]:
    """Returns the names of all kernels and layers of a group."""
    return [row.layer if row.kernel in ("", "kernel") else f"{row.layer}.{row.kernel}" for row in group]


def some_names(group: Sequence[ReportRow]) -> list[str]:
    """Returns the names of a small group, or the first two and the last with an ellipsis between."""
    listed = names(group)
    return listed if len(listed) <= _MAX_NAMED else [*listed[:2], "...", listed[-1]]


def _weights(rows: Iterable[ReportRow]) -> tuple[int, int]:
    """Returns the numbers of free and full weights of tied kernels."""
    built = [(row.free_weights or 0, row.full_weights or 0) for row in rows]
    return sum(free for free, _ in built), sum(full for _, full in built)


def _range(shares: Sequence[float]) -> str:
    """Returns the range of shares in percent."""
    percent = sorted({f"{share:.0%}" for share in shares}, key=lambda text: int(text[:-1]))
    if len(percent) > 1:
        return f"lost {percent[0][:-1]}-{percent[-1]}"
    return f"lost {percent[0]}" if percent else ""


def count(number: int, noun: str) -> str:
    """Returns a number with its noun, in the plural unless it is 1.

    >>> count(2, "group")
    '2 groups'
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
