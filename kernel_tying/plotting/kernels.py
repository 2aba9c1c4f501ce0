"""Pictures of kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, product
from typing import TYPE_CHECKING

import keras
import numpy as np
from matplotlib import pyplot as plt

from kernel_tying._layers.table import kernel_names, kernel_of
from kernel_tying._models.sites import Site, find_sites
from kernel_tying.algebra import Tensor
from kernel_tying.errors import TyingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4  # of slices, so that their titles are readable at a width of 400 pixels


def plot_kernels(kernel: Tensor | keras.Layer, count: int = 8, *, before: Tensor | keras.Layer | None = None) -> Figure:
    r"""Draws slices of kernels with one or two spatial axes, each for one pair of channels.

    The slices of a kernel share a colour scale around zero.

    Args:
        kernel: a kernel `(*spatial, in, out)`: a tensor, variable or array. Or a layer or model: all its convolution
            kernels with one or two spatial axes are drawn, except pointwise ones.
        count: largest number of slices of each kernel. The first are drawn.
        before: a kernel, layer or model with kernels of the same shapes. Each slice is drawn to the left of that of `kernel`.

    Returns:
        A new Matplotlib figure.

    Raises:
        TyingError: there is no kernel with one or two spatial axes, or the kernels of `before` have other shapes.

    Example:

    >>> import kernel_tying as kt
    >>> kernel = np.random.default_rng(0).normal(size=(5, 5, 1, 4))
    >>> figure = plot_kernels(kt.project(kernel, kt.patterns.mirror((5, 5))), before=kernel)
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['in 0, out 0\nbefore', 'in 0, out 0\nafter', 'in 0, out 1\nbefore', 'in 0, out 1\nafter']
    """
    panels = [_slices(entry, count) for entry in _kernels(kernel)]
    if before is not None:
        panels = _paired([_slices(entry, count) for entry in _kernels(before)], panels)
    columns = min(_COLUMNS, max(len(panel.slices) for panel in panels))
    rows = [math.ceil(len(panel.slices) / columns) for panel in panels]
    size = (columns + 0.9, 1.25 * sum(rows))
    figure, axes = plt.subplots(sum(rows), columns, squeeze=False, figsize=size, layout="constrained")
    for panel, block in zip(panels, np.split(axes, np.cumsum(rows)[:-1]), strict=True):
        _draw_panel(panel, block)
        figure.colorbar(block[0, 0].images[0], ax=block, aspect=10 * len(block), pad=0.02).ax.tick_params(labelsize="small")
    return figure


@dataclass(frozen=True)
class _Kernel:
    """A kernel to be drawn: its values, a name, and the names of its two channel axes."""

    values: np.ndarray
    name: str = ""
    channels: tuple[str, str] = ("in", "out")


@dataclass(frozen=True)
class _Panel:
    """The slices of a kernel that are drawn, `(count, rows, columns)`, their titles, and the limit of the colour scale."""

    slices: np.ndarray
    titles: list[str]
    name: str
    limit: float


def _kernels(given: Tensor | keras.Layer) -> list[_Kernel]:
    """Returns the kernels of a model or layer with one or two spatial axes, or `given` itself."""
    if not isinstance(given, keras.Layer):
        return [_checked(given)]
    found = list(chain.from_iterable(map(_kernels_of, find_sites(given))))
    if not found:
        raise TyingError(
            "A picture shows convolution kernels of built layers, with one or two spatial axes and more than one position. "
            f"Received {given.name!r}, which has none. Build the layer, or pass a kernel."
        )
    return found


def _checked(kernel: Tensor) -> _Kernel:
    values = _numpy(kernel)
    if values.ndim not in (3, 4):
        raise TyingError(
            f"A picture shows kernels (*spatial, in, out) of one or two spatial axes. Received shape {values.shape}. "
            "Pass a slice."
        )
    return _Kernel(values)


def _kernels_of(site: Site) -> list[_Kernel]:
    """Returns the convolution kernels of a layer with one or two spatial axes, except pointwise ones."""
    layer = site.layer
    if not layer.built or not hasattr(layer, "kernel_size"):
        return []
    channels = _channel_axes(layer)
    names = [name for name in kernel_names(layer) if kernel_of(layer, name).is_default]
    kernels = [_Kernel(_numpy(getattr(layer, name)), f"{site.path}.{name}", channels) for name in names]
    return [kernel for kernel in kernels if _is_drawable(kernel.values)]


def _is_drawable(kernel: np.ndarray) -> bool:
    """Returns whether a kernel has one or two spatial axes, and more than one position."""
    return kernel.ndim in (3, 4) and math.prod(kernel.shape[:-2]) > 1


def _channel_axes(layer: keras.Layer) -> tuple[str, str]:
    """Returns the names of the last two axes of the layer's kernel."""
    if isinstance(layer, keras.layers.Conv1DTranspose | keras.layers.Conv2DTranspose):
        return "out", "in"
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
    return ("in", "copy") if is_depthwise else ("in", "out")


def _numpy(kernel: Tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(kernel)), dtype="float64")


def _slices(kernel: _Kernel, count: int) -> _Panel:
    """Returns the first `count` slices of a kernel."""
    first, second = kernel.values.shape[-2:]
    flat = kernel.values.reshape(*([1] * (4 - kernel.values.ndim)), *kernel.values.shape[:-2], -1)
    slices = np.moveaxis(flat, -1, 0)[:count]
    pairs = list(np.ndindex(first, second))[: len(slices)]
    titles = [f"{kernel.channels[0]} {row}, {kernel.channels[1]} {column}" for row, column in pairs]
    return _Panel(slices, titles, kernel.name, np.abs(slices).max() or 1.0)


def _paired(before: list[_Panel], after: list[_Panel]) -> list[_Panel]:
    """Returns panels that alternate between the slices before and after, on a common colour scale."""
    old_shapes = [panel.slices.shape for panel in before]
    new_shapes = [panel.slices.shape for panel in after]
    if old_shapes != new_shapes:
        raise TyingError(
            "Kernels before and after have equal shapes. "
            f"Received (slices, rows, columns) {old_shapes} before, and {new_shapes} after. "
            "Pass the same kernel, layer or model as it was before."
        )
    return [_pair(old, new) for old, new in zip(before, after, strict=True)]


def _pair(before: _Panel, after: _Panel) -> _Panel:
    slices = np.stack([before.slices, after.slices], axis=1).reshape(-1, *after.slices.shape[1:])
    titles = [f"{title}\n{time}" for title, time in product(after.titles, ("before", "after"))]
    return _Panel(slices, titles, after.name, max(before.limit, after.limit))


def _draw_panel(panel: _Panel, axes: np.ndarray) -> None:
    """Draws slices on a colour scale from `-limit` to `limit`, and hides the axes that are left over."""
    for ax, values, title in zip(axes.flat, panel.slices, panel.titles, strict=False):
        ax.imshow(values, cmap="RdBu_r", vmin=-panel.limit, vmax=panel.limit)
        ax.set_title(title, fontsize="x-small", pad=3)
        ax.set(xticks=[], yticks=[])
    for ax in axes.flat[len(panel.slices) :]:
        ax.set_axis_off()
    axes[0, 0].set_ylabel(panel.name, fontsize="small")
