"""Reports as HTML, with pictures of the patterns."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from kernel_tying._report import grouping
from kernel_tying._report.grouping import Cells
from kernel_tying._report.rows import ReportRow
from kernel_tying._report.tables import html_heading, html_lines, html_paragraph, html_table
from kernel_tying.patterns.notation import symbols
from kernel_tying.patterns.pattern import TyingPattern

# Light tints of the colours of Okabe and Ito, which colour-blind people can tell apart, under dark letters.
_COLOURS = ("#a6d8f5", "#f7cf8a", "#8fd6bf", "#f2b8d6", "#f5ec9b", "#b3c6e8", "#f0b08c", "#d0d0d0")
_CELL = 16  # pixels
_MAX_LETTERS = 81  # positions of a picture with letters
_MAX_PICTURED = 1024  # positions of a picture


def render(name: str, rows: Sequence[ReportRow]) -> str:
    """Returns a report as HTML: totals, a table of tied kernels, and untied layers by reason."""
    heading = html_heading(grouping.title(name, rows), grouping.summary(rows))
    untied = "".join(map(_untied, grouping.untied_groups(rows)))
    return f"<div>{heading}{_table(rows)}{untied}</div>"


def _table(rows: Sequence[ReportRow]) -> str:
    """Returns the table of tied kernels; "" if there are none."""
    groups = grouping.tied_groups(rows)
    described = [grouping.cells(group, len(grouping.modes(rows)) > 1) for group in groups]
    optional = grouping.optional_columns(described)
    titles = ("kernels", "pattern", "", "free/full", *map(grouping.TITLES.__getitem__, optional))
    body = [_cells(group, cells, optional) for group, cells in zip(groups, described, strict=True)]
    return html_table(titles, body) if body else ""


def _cells(group: Sequence[ReportRow], cells: Cells, optional: Sequence[str]) -> tuple[str, ...]:
    """Returns the row of a group of tied kernels, as markup."""
    kernels = html.escape(cells.kernels) + _names(group)
    texts = [html_lines(text) for text in (cells.weights, *(getattr(cells, column) for column in optional))]
    return (kernels, html_lines(cells.pattern), "".join(_picture(group[0].pattern)), *texts)


def _untied(group: Sequence[ReportRow]) -> str:
    """Returns the paragraph about a group of untied layers."""
    return html_paragraph(f"untied: {group[0].reason}: {len(group)} {group[0].layer_class}", _names(group))


def _names(group: Sequence[ReportRow]) -> str:
    """Returns the names of all layers, folded if they are many."""
    names, some = grouping.names(group), grouping.some_names(group)
    listed = html.escape(", ".join(names))
    if names == some:
        return f"<div>{listed}</div>"
    return f"<details><summary>{html.escape(', '.join(some))}</summary>{listed}</details>"


def _picture(pattern: TyingPattern | None) -> Iterator[str]:
    """Yields the elements of a picture: a coloured cell for each position, a diagonal on negatives, pins left white."""
    if pattern is None or len(pattern.tied_axes) > 2 or pattern.labels.size > _MAX_PICTURED:
        return
    shape = [size for size in pattern.shape if size > 1]
    labels, signs = (array.reshape([1] * (2 - len(shape)) + shape) for array in (pattern.labels, pattern.signs))
    height, width = labels.shape
    letters = symbols(pattern.num_free) if labels.size <= _MAX_LETTERS else [""] * pattern.num_free
    yield f"<svg width='{width * _CELL + 1}' height='{height * _CELL + 1}' font-family='monospace' font-size='11'>"
    for row in range(height):
        for column in range(width):
            label, sign = int(labels[row, column]), int(signs[row, column])
            yield from _cell(column * _CELL, row * _CELL, label, sign, "" if sign == 0 else letters[label])
    yield "</svg>"


def _cell(x: int, y: int, label: int, sign: int, letter: str) -> Iterator[str]:
    """Yields the elements of one position."""
    colour = _COLOURS[label % len(_COLOURS)] if sign else "#ffffff"
    yield f"<rect x='{x + 0.5}' y='{y + 0.5}' width='{_CELL}' height='{_CELL}' fill='{colour}' stroke='#666666'/>"
    if sign < 0:
        yield f"<line x1='{x}' y1='{y + _CELL}' x2='{x + _CELL}' y2='{y}' stroke='#999999'/>"
    text = letter if sign else "\N{MIDDLE DOT}"
    if text:
        yield (
            f"<text x='{x + _CELL / 2}' y='{y + 0.75 * _CELL}' text-anchor='middle' fill='#000000'>"
            f"{'-' if sign < 0 else ''}{text}</text>"
        )
