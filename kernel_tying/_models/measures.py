"""What tying would take from the kernels of a layer, pattern by pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from kernel_tying._layers.fitting import find_obstruction, resolve, spatial_size
from kernel_tying._layers.identifiers import Identifier
from kernel_tying._layers.shares import expected_share, lost_by_filter, lost_share, mean_kernel
from kernel_tying._layers.table import default_kernel, kernels_of
from kernel_tying._models.budget import Option
from kernel_tying._models.sites import Site, tied_kernels
from kernel_tying.errors import TyingError
from kernel_tying.patterns.candidates import candidates
from kernel_tying.patterns.fields import free_shape
from kernel_tying.patterns.pattern import TyingPattern


@dataclass(frozen=True)
class SymmetryRow:
    """One kernel under one pattern.

    Attributes:
        layer: path of the layer.
        kernel: name of the kernel.
        pattern: label of the pattern, such as "mirror" or "anti-point".
        tying: the pattern itself.
        lost: share of the kernel's norm that tying would take away, `||k - P k|| / ||k||`.
        expected: the share that a random kernel of that shape loses, `sqrt(1 - K/n)`: K groups, n positions.
        mean_lost: the same share for the mean of the kernel over all channels, or None if the pattern ties channels.
        filters: the same share for each filter, which is an index along the kernel's last axis.
        saved: number of free weights that tying saves.
        metrics: loss and metrics with this kernel alone tied; None without data.
        key: key of the layer in a plan.
        is_default: whether a pattern without a kernel's name ties this kernel.
        is_mixable: whether `per_filter` can mix the pattern with others.
    """

    layer: str
    kernel: str
    pattern: str
    tying: TyingPattern = field(repr=False)
    lost: float
    expected: float
    mean_lost: float | None
    filters: tuple[float, ...] = field(repr=False)
    saved: int
    metrics: dict[str, float] | None = None
    key: str = field(default="", repr=False)
    is_default: bool = field(default=True, repr=False)
    is_mixable: bool = field(default=True, repr=False)


def reason_against(site: Site) -> str:
    """Returns why the kernels of a layer are not measured, or an empty text."""
    obstruction = find_obstruction(site.layer)
    if obstruction is not None:
        return obstruction.reason
    if tied_kernels(site):
        return "tied already"
    return "" if site.layer.built else "not built"


def measure(site: Site, labelled: Mapping[str, Identifier] | None, is_alone: bool) -> list[tuple[SymmetryRow, keras.Variable]]:
    """Returns the rows of a layer, each with its kernel. A layer that `is_alone` needs no spatial axes."""
    found: list[tuple[SymmetryRow, keras.Variable]] = []
    for name in (kernel.name for kernel in kernels_of(site.layer) if kernel.is_default):
        size = spatial_size(site.layer, name)
        if not size and not is_alone:
            continue
        variable = getattr(site.layer, name)
        values = ops.convert_to_numpy(variable)
        patterns = _fitting(site.layer, name, candidates(size or values.shape) if labelled is None else labelled)
        found += [(_row(site, name, values, label, pattern), variable) for label, pattern in patterns.items()]
    return found


def _fitting(layer: keras.Layer, kernel_name: str, labelled: Mapping[str, Identifier]) -> dict[str, TyingPattern]:
    """Returns the patterns by label that fit a kernel and tie some of it."""
    found: dict[str, TyingPattern] = {}
    for label, identifier in labelled.items():
        with suppress(TyingError):
            found[label] = resolve(layer, {kernel_name: identifier})[kernel_name]
    return {label: pattern for label, pattern in found.items() if pattern.num_free < pattern.labels.size}


def _row(site: Site, kernel_name: str, values: np.ndarray, label: str, pattern: TyingPattern) -> SymmetryRow:
    num_spatial = len(spatial_size(site.layer, kernel_name)) or values.ndim
    ties_channels = any(axis >= num_spatial for axis in pattern.tied_axes)
    return SymmetryRow(
        layer=site.path,
        kernel=kernel_name,
        pattern=label,
        tying=pattern,
        lost=lost_share(values, pattern),
        expected=expected_share(pattern),
        mean_lost=None if ties_channels else lost_share(mean_kernel(values, num_spatial), pattern),
        filters=tuple(lost_by_filter(values, pattern).tolist()),
        saved=values.size - math.prod(free_shape(values.shape, pattern)),
        key=site.plan_key,
        is_default=kernel_name == default_kernel(site.layer),
        is_mixable=len(pattern.shape) == num_spatial == values.ndim - 2,
    )


def option_of(row: SymmetryRow) -> Option:
    """Returns the pattern of a row with what it saves and loses."""
    return Option(row.tying, row.saved, row.lost, np.array(row.filters))
