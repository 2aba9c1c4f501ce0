"""Pictures of patterns and kernels. Needs Matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt

from kernel_tying.algebra import Tensor
from kernel_tying.errors import TyingError
from kernel_tying.pattern import TyingPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_pattern(pattern: TyingPattern, ax: Axes | None = None) -> Axes:
    """Draws a pattern of one or two axes: a colour for each tied group, `-` on negatives, white for pinned positions.

    Args:
        pattern: the tying pattern.
        ax: Matplotlib axes to draw on; by default a new figure's.

    Returns:
        The axes.

    Raises:
        TyingError: the pattern has more than two tied axes.
    """
    if len(pattern.tied_axes) > 2:
        raise TyingError(f"A picture shows two tied axes at most. Received shape={pattern.shape}. Plot patterns of its planes.")
    shape = [size for size in pattern.shape if size > 1]
    labels, signs = (array.reshape([1] * (2 - len(shape)) + shape) for array in (pattern.labels, pattern.signs))
    colours = colormaps["tab20"](np.maximum(labels, 0) % 20)
    colours[signs == 0] = 1.0
    ax = ax or plt.figure(layout="constrained").add_subplot()
    ax.imshow(colours)
    for row, column in np.argwhere(signs != 0):
        text = f"{'-' if signs[row, column] < 0 else ''}{labels[row, column]}"
        ax.text(column, row, text, ha="center", va="center", fontsize="small")
    _hide_ticks(ax)
    ax.set_title(f"{pattern.num_free} free weights for {labels.size} positions", fontsize="medium")
    return ax


def plot_kernels(kernel: Tensor, count: int = 8) -> Figure:
    """Draws the first slices of a Conv1D or Conv2D kernel, one for each pair of channels, in one colour scale around zero.

    Args:
        kernel: a kernel `(*spatial, in, out)` with one or two spatial axes: a tensor, variable or array.
        count: largest number of slices.

    Returns:
        A new Matplotlib figure.

    Raises:
        TyingError: the kernel has another number of axes.
    """
    values = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(kernel)), dtype="float64")
    if values.ndim not in (3, 4):
        raise TyingError(
            f"A picture shows kernels (*spatial, in, out) of one or two spatial axes. Received shape {values.shape}. "
            "Pass a slice."
        )
    slices = values.reshape(*([1] * (4 - values.ndim)), *values.shape[:-2], -1)[..., :count]
    columns = min(slices.shape[-1], 8)
    rows = math.ceil(slices.shape[-1] / columns)
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=(1.4 * columns, 1.4 * rows), layout="constrained")
    limit = np.abs(slices).max() or 1.0
    for index, ax in enumerate(grid.flat):
        _draw_slice(ax, slices[..., index] if index < slices.shape[-1] else None, limit)
    return figure


def _draw_slice(ax: Any, values: np.ndarray | None, limit: float) -> None:
    if values is None:
        ax.set_axis_off()
        return
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    _hide_ticks(ax)


def _hide_ticks(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
