"""The rows of a report: one for each tied kernel, and one for each untied layer with weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kernel_tying import _keras
from kernel_tying._layers.algorithm import Algorithm, choose_algorithm
from kernel_tying._layers.attachment import attachment
from kernel_tying._layers.companions import effective_constraint, tied_constraint
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.table import kernel_names, kernel_of
from kernel_tying._layers.view import KernelView
from kernel_tying._models.sites import Site, TiedKernel, tied_kernels
from kernel_tying.algebra import project, relative_distance
from kernel_tying.patterns.fields import fields, free_shape
from kernel_tying.patterns.pattern import TyingPattern


@dataclass(frozen=True)
class ReportRow:
    """One kernel, or one untied layer.

    Attributes:
        layer: path of the layer.
        layer_class: name of the stock layer's class.
        kernel: name of the kernel; empty for an untied layer, unless its `TiedConstraint` was replaced.
        mode: "constraint" or "parameterization"; empty for an untied layer.
        pattern: the tying pattern, or None.
        fields: number of fields of the pattern along each axis of the kernel, which is the size of a free axis; None if the
            layer is not built.
        free_weights: number of independent values of the kernel.
        full_weights: number of entries of the kernel.
        error: `||k - P k|| / ||k||` now, or None if the layer is not built.
        init: how the first tied kernel was made: "projected" from the stock kernel, or "redrawn"; empty if unknown.
        lost: `||k - P k|| / ||k||` of the stock kernel that was projected when the layer was tied, or None if unknown.
        convolution: how the layer convolves: "kernel" calls the stock convolution, "group_sums" the tied one; empty for a
            bias, scale or offset.
        convolution_reason: the reason for that algorithm; empty in constraint mode, which always uses the full kernel.
        reason: why the layer is not tied; empty for a tied one.
        key: key of the layer in `TyingReport.plan`.
    """

    layer: str
    layer_class: str
    kernel: str = ""
    mode: str = ""
    pattern: TyingPattern | None = None
    fields: tuple[int, ...] | None = None
    free_weights: int | None = None
    full_weights: int | None = None
    error: float | None = None
    init: str = ""
    lost: float | None = None
    convolution: str = ""
    convolution_reason: str = ""
    reason: str = ""
    key: str = field(default="", repr=False)

    @property
    def fields_along_tied_axes(self) -> tuple[int, ...]:
        """The number of fields along each tied axis of the pattern, empty if the layer is not built."""
        return tuple(self.fields[axis] for axis in self.pattern.tied_axes) if self.fields and self.pattern else ()


def error_of(kernel: TiedKernel) -> float:
    """Returns the tying error `||k - P k|| / ||k||` of a built kernel."""
    return relative_distance(kernel.variable, project(kernel.variable, kernel.pattern))


def rows_of(site: Site, is_compiled: bool | None) -> list[ReportRow]:
    """Returns the rows of a site: its tied kernels, or the layer itself if it has weights."""
    tied = tied_kernels(site)
    rows = [_tied_row(kernel, is_compiled) for kernel in tied]
    rows += _replaced_rows(site, {kernel.name for kernel in tied})
    if rows or not _keras.own_variables(site.layer):
        return rows
    return [ReportRow(site.path, type(site.layer).__name__, reason=attachment(site.layer).notes.reason, key=site.plan_key)]


def _replaced_rows(site: Site, tied: set[str]) -> list[ReportRow]:
    """Returns the rows of kernels whose `TiedConstraint` was replaced after the layer was built."""
    layer = site.layer
    rows = []
    for name in kernel_names(layer):
        if name in tied or tied_constraint(layer, name) is None:
            continue
        constraint = effective_constraint(layer, name)
        if not isinstance(constraint, TiedConstraint):
            reason = f"the constraint of `{name}` was replaced by {_class_name(constraint)}"
            rows.append(ReportRow(site.path, type(layer).__name__, name, reason=reason, key=site.plan_key))
    return rows


def _class_name(constraint: Any) -> str:
    """Returns the name of a constraint's class, or of the constraint itself if it is a function."""
    return "None" if constraint is None else getattr(constraint, "__name__", type(constraint).__name__)


def _tied_row(kernel: TiedKernel, is_compiled: bool | None) -> ReportRow:
    layer, variable = kernel.site.layer, kernel.variable
    algorithm = _algorithm(kernel, is_compiled)
    shape = None if variable is None else tuple(variable.shape)
    return ReportRow(
        layer=kernel.site.path,
        layer_class=type(layer).__name__,
        kernel=kernel.name,
        mode=kernel.mode,
        pattern=kernel.pattern,
        fields=None if shape is None else fields(shape, kernel.pattern),
        free_weights=None if shape is None else math.prod(free_shape(shape, kernel.pattern)),
        full_weights=None if shape is None else math.prod(shape),
        error=None if variable is None else error_of(kernel),
        init=attachment(layer).notes.init.get(kernel.name, ""),
        lost=attachment(layer).notes.lost.get(kernel.name),
        convolution=algorithm.name,
        convolution_reason=algorithm.reason,
        key=kernel.site.plan_key,
    )


def _algorithm(kernel: TiedKernel, is_compiled: bool | None) -> Algorithm:
    """Returns how a layer convolves with a tied kernel, on inputs of the shape that it was built for."""
    layer, variable = kernel.site.layer, kernel.variable
    if not kernel_of(layer, kernel.name).is_default:
        return Algorithm("", "")  # a bias, scale or offset
    if not isinstance(variable, KernelView):
        return Algorithm("kernel", "")
    input_shape = layer.get_build_config().get("input_shape") or (None, None)
    return choose_algorithm(layer, variable, tuple(input_shape), is_compiled)
