"""Reports as a figure: the patterns of a model. Needs Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernel_tying._report import grouping
from kernel_tying._report.rows import ReportRow
from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_INCHES = 2.6  # width and height of a picture


def draw(name: str, rows: Sequence[ReportRow], plot_pattern: Any) -> Figure:
    """Returns a figure of the different patterns with up to two tied axes, each drawn by `plot_pattern(pattern, ax=ax)`."""
    from matplotlib import pyplot as plt

    counts: dict[TyingPattern, list[ReportRow]] = {}
    for row in rows:
        if row.pattern is not None and len(row.pattern.tied_axes) <= 2:
            counts.setdefault(row.pattern, []).append(row)
    if not counts:
        raise TyingError(
            "A picture shows patterns of up to two tied axes. "
            f"Received the report of {name!r}, which has none. Print the report instead."
        )
    columns = min(len(counts), _COLUMNS)
    lines = math.ceil(len(counts) / columns)
    size = (_INCHES * columns, _INCHES * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, layout="constrained")
    for ax in axes.flat[len(counts) :]:
        ax.set_axis_off()
    for ax, (pattern, group) in zip(axes.flat, counts.items(), strict=False):
        plot_pattern(pattern, ax=ax)
        ax.set_title(_caption(group), fontsize="small")
    figure.suptitle(grouping.title(name, rows), fontsize="medium", wrap=True)
    return figure


def _caption(group: Sequence[ReportRow]) -> str:
    pattern = grouping.describe(group[0]).replace("\n", ", ")
    return f"{pattern}\n{grouping.count(len(group), 'kernel')}"
