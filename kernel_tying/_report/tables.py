"""Tables as text, as wide as the terminal, and as HTML."""

from __future__ import annotations

import html
import io
import shutil
from collections.abc import Iterable, Sequence

from rich import box  # one of Keras' own requirements
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_STYLE = "text-align:left;vertical-align:top"


def text_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table for rich, with a cell of each row for each title."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for cells in rows:
        table.add_row(*map(plain, cells))
    return table


def plain(text: str) -> Text:
    """Returns text in which brackets, as in names, are not read as markup."""
    return Text(text, overflow="fold")


def write(report: RenderableType) -> str:
    """Returns a report as text of the width of the terminal, 80 columns where there is none."""
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size().columns, record=True)
    console.print(report)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    return "\n".join(lines).strip("\n")


def html_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as HTML. Cells are markup."""
    header = "".join(f"<th style='text-align:left'>{title}</th>" for title in titles)
    body = "".join(map(_row, rows))
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td style='{_STYLE}'>{cell}</td>" for cell in cells) + "</tr>"


def html_lines(text: str) -> str:
    """Returns text of several lines as markup."""
    return html.escape(text).replace("\n", "<br/>")


def html_heading(title: str, line: str) -> str:
    """Returns the title of a report, above a line about the whole of it."""
    return f"<div><strong>{html.escape(title)}</strong><br/>{html.escape(line)}</div>"


def html_paragraph(text: str, markup: str = "") -> str:
    """Returns a paragraph of text, with markup behind it."""
    return f"<div style='margin:0.5em 0'>{html.escape(text)}{markup}</div>"
