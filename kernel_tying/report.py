"""Reports: how well a model is tied, and what is tied how."""

from __future__ import annotations

import html
import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
from rich import box  # one of Keras' own requirements
from rich.console import Console, Group
from rich.table import Table

from kernel_tying import keras_private, notes
from kernel_tying.algebra import free_shape, project, relative_distance
from kernel_tying.dispatch import Way, way_to_convolve
from kernel_tying.errors import TyingError
from kernel_tying.identifiers import serialize_pattern
from kernel_tying.parameterization import KernelView
from kernel_tying.pattern import TyingPattern
from kernel_tying.sites import Site, TiedKernel, find_sites, some_tied_kernels, tied_kernels


def tying_error(model_or_layer: keras.Layer) -> float:
    """Returns the largest `||k - P k|| / ||k||` over all tied kernels `k`: 0.0 if and only if all are tied to the bit.

    NaN and infinities in a kernel give NaN.

    Raises:
        TyingError: nothing is tied, or a tied layer is not built.
    """
    kernels = some_tied_kernels(model_or_layer)
    unbuilt = [kernel.site.path for kernel in kernels if kernel.variable is None]
    if unbuilt:
        raise TyingError(
            f"A kernel has a tying error once its layer is built. Received unbuilt layers {unbuilt}. Build the model first."
        )
    return float(np.max([_error(kernel) for kernel in kernels]))


def _error(kernel: TiedKernel) -> float:
    """Returns `||k - P k|| / ||k||` of a built kernel."""
    return relative_distance(kernel.variable, project(kernel.variable, kernel.pattern))


def tying_report(model_or_layer: keras.Layer) -> TyingReport:
    """Returns what is tied how: a table in a terminal, HTML in a notebook, `to_dict()` for programs.

    Layers with weights that are not tied are listed with the reason.

    Raises:
        TyingError: no model or layer.
    """
    is_compiled = getattr(model_or_layer, "jit_compile", None)
    rows = [row for site in find_sites(model_or_layer) for row in _rows(site, is_compiled)]
    return TyingReport(model_or_layer.name, rows)


@dataclass(frozen=True)
class ReportRow:
    """One kernel, or one untied layer.

    Attributes:
        layer: path of the layer.
        layer_class: name of the stock layer's class.
        kernel: name of the kernel; empty for an untied layer.
        mode: "constraint" or "parameterization"; empty for an untied layer.
        pattern: the tying pattern, or None.
        free_weights: number of independent values of the kernel.
        full_weights: number of entries of the kernel.
        error: `||k - P k|| / ||k||` now, or None if the layer is not built.
        lost: `||k - P k|| / ||k||` when it was tied by projection, as far as known.
        convolution: how the layer convolves: "kernel" calls the stock convolution, "group_sums" the tied one.
        convolution_reason: why it convolves so; empty in constraint mode, in which the full kernel is there.
        reason: why the layer is not tied; empty for a tied one.
        key: what names the layer in `TyingReport.plan`.
    """

    layer: str
    layer_class: str
    kernel: str = ""
    mode: str = ""
    pattern: TyingPattern | None = None
    free_weights: int | None = None
    full_weights: int | None = None
    error: float | None = None
    lost: float | None = None
    convolution: str = ""
    convolution_reason: str = ""
    reason: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class TyingReport:
    """What is tied how in a model, row by row.

    Attributes:
        name: name of the model or layer.
        rows: one `ReportRow` for each tied kernel and each untied layer with weights, in the order of the model.
    """

    name: str
    rows: list[ReportRow]

    @property
    def plan(self) -> dict[str, dict[str, TyingPattern]]:
        """What to pass to `apply_tying` to tie an equal model with the same patterns; mode and scaling are given again.

        Keys are paths of layers, or positions like "#3" inside subclassed models, where automatic names differ from
        one instance to the next.
        """
        plan: dict[str, dict[str, TyingPattern]] = {}
        for row in self.rows:
            if row.pattern is not None:
                plan.setdefault(row.key, {})[row.kernel] = row.pattern
        return plan

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-serializable values, patterns as their configs."""
        return {
            "name": self.name,
            "rows": [{**asdict(row), "pattern": row.pattern and serialize_pattern(row.pattern)} for row in self.rows],
        }

    def __rich__(self) -> Group:
        table = Table(title=_title(self), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in COLUMNS:
            table.add_column(name, overflow="fold")
        for cells in _cells(self):
            table.add_row(*cells)
        return Group(table, *_untied(self))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, record=True)
        console.print(self)
        return console.export_text()

    def _repr_html_(self) -> str:
        header = "".join(f"<th>{name}</th>" for name in COLUMNS)
        rows = "".join(f"<tr>{''.join(map(_html_cell, cells))}</tr>" for cells in _cells(self))
        untied = "".join(f"<li>{html.escape(line)}</li>" for line in _untied(self))
        return f"<table><caption>{html.escape(_title(self))}</caption><tr>{header}</tr>{rows}</table><ul>{untied}</ul>"


COLUMNS = ("kernel", "mode", "pattern", "free/full", "error", "lost", "convolves")


def _rows(site: Site, is_compiled: bool | None) -> list[ReportRow]:
    """Returns the rows of a site: its tied kernels, or the layer itself if it has weights that could be asked for."""
    rows = [_tied_row(kernel, is_compiled) for kernel in tied_kernels(site)]
    if rows or not keras_private.own_variables(site.layer):
        return rows
    return [ReportRow(site.path, type(site.layer).__name__, reason=notes.reason(site.layer), key=site.key)]


def _tied_row(kernel: TiedKernel, is_compiled: bool | None) -> ReportRow:
    layer, variable = kernel.site.layer, kernel.variable
    way = _way(layer, variable, is_compiled)
    shape = None if variable is None else tuple(variable.shape)
    return ReportRow(
        layer=kernel.site.path,
        layer_class=type(layer).__name__,
        kernel=kernel.name,
        mode=kernel.mode,
        pattern=kernel.pattern,
        free_weights=None if shape is None else math.prod(free_shape(shape, kernel.pattern)),
        full_weights=None if shape is None else math.prod(shape),
        error=None if variable is None else _error(kernel),
        lost=notes.lost(layer, kernel.name),
        convolution=way.name,
        convolution_reason=way.reason,
        key=kernel.site.key,
    )


def _way(layer: keras.Layer, variable: Any, is_compiled: bool | None) -> Way:
    """Returns how a layer convolves with a tied kernel, on inputs of the shape for which it was built."""
    if not isinstance(variable, KernelView):
        return Way("kernel", "")
    return way_to_convolve(layer, variable, tuple(layer.get_build_config().get("input_shape") or (None, None)), is_compiled)


def _title(report: TyingReport) -> str:
    tied = [row for row in report.rows if row.pattern is not None]
    free, full = (sum(getattr(row, name) or 0 for row in tied) for name in ("free_weights", "full_weights"))
    return f"Tying of {report.name}: {len(tied)} tied kernels, {free:,} free of {full:,} weights"


def _cells(report: TyingReport) -> list[tuple[str, ...]]:
    """Returns the cells of the table, for each tied kernel one for each of COLUMNS."""
    return [
        (
            f"{row.layer}.{row.kernel}",
            row.mode,
            _grid(row.pattern),
            "not built" if row.full_weights is None else f"{row.free_weights:,}/{row.full_weights:,}",
            "" if row.error is None else f"{row.error:.2g}",
            "" if row.lost is None else f"{row.lost:.0%}",
            row.convolution,
        )
        for row in report.rows
        if row.pattern is not None
    ]


def _grid(pattern: TyingPattern) -> str:
    """Returns the notation of a small pattern, row below row, or a summary of a large one."""
    return str(pattern).strip("/").replace("/", "\n") if pattern.labels.size <= 121 else repr(pattern)


def _untied(report: TyingReport) -> list[str]:
    """Returns a line for each untied layer."""
    return [f"untied: {row.layer} ({row.reason})" for row in report.rows if row.pattern is None]


def _html_cell(text: str) -> str:
    return f"<td><pre>{html.escape(text)}</pre></td>"
