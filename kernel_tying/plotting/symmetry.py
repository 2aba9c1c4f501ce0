"""Pictures of what tying would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kernel_tying.symmetry import SymmetryReport


def plot_symmetry(report: SymmetryReport, ax: Axes | None = None) -> Axes:
    """Draws what tying would cost: a heat map of kernels and patterns.

    A cell has the share of the kernel's norm that is lost, in percent. Its colour compares that with a random kernel: purple
    where the kernel is closer to the pattern, white where it is as far, and orange where it is further away.

    Args:
        report: a report by `symmetry_report`.
        ax: Matplotlib axes to draw on; by default those of a new figure.

    Returns:
        The axes.
    """
    kernels = list(dict.fromkeys((row.layer, row.kernel) for row in report.rows))
    labels = list(dict.fromkeys(row.pattern for row in report.rows))
    ratios = np.full((len(kernels), len(labels)), np.nan)
    ax = ax or plt.figure(figsize=(2 + 0.5 * len(labels), 1.5 + 0.4 * len(kernels)), layout="constrained").add_subplot()
    for row in report.rows:
        place = kernels.index((row.layer, row.kernel)), labels.index(row.pattern)
        ratios[place] = row.lost / row.expected
        colour = "white" if abs(ratios[place] - 1) > 0.35 else "black"
        ax.text(*place[::-1], f"{100 * row.lost:.0f}", ha="center", va="center", fontsize="small", color=colour)
    image = ax.imshow(ratios, cmap="PuOr_r", vmin=0.5, vmax=1.5, aspect="auto")
    ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(kernels)), [_kernel_label(*kernel) for kernel in kernels])
    ax.set_title(f"{report.name}: % of the norm that tying loses", fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, ticks=[0.5, 1, 1.5], extend="both", label="lost / expected")
    bar.ax.set_yticklabels(["0.5, closer", "1, random", "1.5, further"])
    return ax


def _kernel_label(layer: str, kernel: str) -> str:
    """Returns the name of the layer, and that of the kernel unless it is the usual one."""
    return layer if kernel == "kernel" else f"{layer}.{kernel}"
