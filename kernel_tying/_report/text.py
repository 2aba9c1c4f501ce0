"""Reports as text: a table as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from kernel_tying._report import grouping
from kernel_tying._report.grouping import Cells
from kernel_tying._report.rows import ReportRow
from kernel_tying._report.tables import plain, text_table
from kernel_tying.patterns.pattern import TyingPattern


def render(name: str, rows: Sequence[ReportRow]) -> Group:
    """Returns a report for rich: totals, a table of tied kernels, and untied layers by reason."""
    parts: list[RenderableType] = [plain(grouping.title(name, rows))]
    parts += [plain(line) for line in [grouping.summary(rows)] if line]
    groups = grouping.tied_groups(rows)
    if groups:
        parts.append(_table(groups, has_both_modes=len(grouping.modes(rows)) > 1))
    for group in grouping.untied_groups(rows):
        parts.append(plain(f"untied: {group[0].reason}"))
        listed = f"{len(group)} {group[0].layer_class}: {', '.join(grouping.some_names(group))}"
        parts.append(Padding(plain(listed), (0, 0, 0, 4)))
    return Group(*parts)


def _table(groups: Sequence[Sequence[ReportRow]], has_both_modes: bool) -> Table:
    """Returns the table of tied kernels."""
    described = [grouping.cells(group, has_both_modes) for group in groups]
    optional = grouping.optional_columns(described)
    titles = ("kernels", "pattern", "free/full", *map(grouping.TITLES.__getitem__, optional))
    rows = [_cells(group, cells, optional) for group, cells in zip(groups, described, strict=True)]
    return text_table(titles, rows)


def _cells(group: Sequence[ReportRow], cells: Cells, optional: Sequence[str]) -> tuple[str, ...]:
    """Returns the row of a group of tied kernels."""
    kernels = "\n  ".join([cells.kernels, *grouping.some_names(group)])
    return (kernels, _drawn(group[0].pattern, cells), cells.weights, *(getattr(cells, column) for column in optional))


def _drawn(pattern: TyingPattern | None, cells: Cells) -> str:
    """Returns the notation of a small pattern, one line for each row, below its description."""
    if pattern is None or not grouping.is_drawn(pattern):
        return cells.pattern
    return f"{cells.pattern}\n{str(pattern).strip('/').replace('/', chr(10))}"
