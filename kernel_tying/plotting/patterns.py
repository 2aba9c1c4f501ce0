"""Pictures of patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import color_sequences, colormaps
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from kernel_tying._layers.identifiers import PatternLike, pattern_for, validate
from kernel_tying.errors import TyingError
from kernel_tying.patterns import notation
from kernel_tying.patterns.pattern import TyingPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ten colours that stay apart for colour-blind readers (Petroff, arXiv 2107.02270), then tints of them.
_PALETTE = np.array([to_rgb(colour) for colour in color_sequences["petroff10"]])
_PALETTE = np.concatenate([_PALETTE, 0.45 * _PALETTE + 0.55])
_PREFERRED = len(_PALETTE) // 2
_MAX_WITH_TEXT = 12  # cells along an axis: letters of more are too small at a width of 400 pixels
_MAX_WITH_BORDERS = 48
_LINEWIDTH = 0.8


def plot_pattern(pattern: PatternLike, ax: Axes | None = None, *, size: Sequence[int] | None = None) -> Axes:
    """Draws a pattern of one or two tied axes: one colour and letter per tied group, as in the notation.

    Groups that touch have different colours, and all groups have if there are ten or fewer. Negative members are hatched
    `///`, pinned positions are white and hatched `xxx`. Patterns of more than 12 positions along an axis get no letters.

    Args:
        pattern: the tying pattern, or the name of a family.
        ax: Matplotlib axes to draw on; by default those of a new figure.
        size: kernel size, if `pattern` is a name.

    Returns:
        The axes.

    Raises:
        TyingError: the pattern has more than two tied axes, or a name is given without a size.

    Example:

    >>> ax = plot_pattern("mirror", size=(2, 3))
    >>> [text.get_text() for text in ax.texts]
    ['A', 'B', 'A', 'C', 'D', 'C']
    """
    pattern = _resolved(pattern, size)
    shape = _plane_shape(pattern)
    labels, signs = pattern.labels.reshape(shape), pattern.signs.reshape(shape)
    colours = np.concatenate([_group_colours(labels), np.ones((1, 3))])[labels]  # label -1 is the last colour, white
    ax = ax or _new_axes(shape)
    ax.imshow(colours)
    if max(shape) <= _MAX_WITH_BORDERS:
        _draw_borders(ax, shape)
    _hatch(ax, signs < 0, "///", "#000000a0")
    _hatch(ax, signs == 0, "xxx", "#b0b0b0")
    if max(shape) <= _MAX_WITH_TEXT:
        _write_cells(ax, notation.cells(pattern.labels, pattern.signs).reshape(shape), colours)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{pattern.num_free} free of {labels.size} weights", fontsize="medium" if ax.bbox.width > 160 else "small")
    return ax


def _resolved(pattern: PatternLike, size: Sequence[int] | None) -> TyingPattern:
    """Returns the pattern that is drawn."""
    checked = validate(pattern)
    if isinstance(checked, TyingPattern):
        return checked
    if size is None:
        raise TyingError(
            f"The picture of a family needs a kernel size. Received {pattern!r} without one. "
            f"Example: plot_pattern({pattern!r}, size=(5, 5))."
        )
    return pattern_for(checked, (*size, 1, 1))


def _plane_shape(pattern: TyingPattern) -> tuple[int, int]:
    """Returns rows and columns of the picture of `pattern`."""
    if len(pattern.tied_axes) > 2:
        raise TyingError(f"A picture shows two tied axes at most. Received shape={pattern.shape}. Plot patterns of its planes.")
    if len(pattern.shape) == 2:
        return pattern.shape[0], pattern.shape[1]
    sizes = [1, 1] + [pattern.shape[axis] for axis in pattern.tied_axes]
    return sizes[-2], sizes[-1]


def _group_colours(labels: np.ndarray) -> np.ndarray:
    """Returns a colour for each group, `(groups, 3)`. Groups with positions next to each other have different colours."""
    numbers: list[int] = []
    uses = np.zeros(len(_PALETTE), int)
    for neighbours in _neighbours(labels):
        taken = {numbers[group] for group in neighbours if group < len(numbers)}
        number = _least_used(uses, taken)
        if number is None:  # more groups touch each other than the palette has colours
            return colormaps["viridis"](np.linspace(0, 1, int(labels.max()) + 1))[:, :3]
        uses[number] += 1
        numbers.append(number)
    return _PALETTE[numbers]


def _least_used(uses: np.ndarray, taken: set[int]) -> int | None:
    """Returns the number of the least used colour that is not taken, of the tints only if all others are taken."""
    for choices in (range(_PREFERRED), range(_PREFERRED, len(_PALETTE))):
        if free := [number for number in choices if number not in taken]:
            return min(free, key=uses.__getitem__)
    return None


def _neighbours(labels: np.ndarray) -> list[set[int]]:
    """Returns for each group the groups that touch it, at an edge or a corner of a position."""
    sides = [
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    ]
    pairs = np.concatenate([np.stack([first.ravel(), second.ravel()], axis=1) for first, second in sides])
    neighbours: list[set[int]] = [set() for _ in range(int(labels.max()) + 1)]
    for first, second in np.unique(pairs[(pairs >= 0).all(axis=1)], axis=0).tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    return [touching - {group} for group, touching in enumerate(neighbours)]


def _new_axes(shape: tuple[int, int]) -> Axes:
    """Returns axes of a new figure, 4 inches wide unless the pattern is very tall or flat."""
    rows, columns = shape
    width, height = np.clip(4 * columns / max(shape), 1.2, 4), np.clip(4 * rows / max(shape), 0.5, 4)
    return plt.figure(figsize=(max(width, 2.8), height + 0.4), layout="constrained").add_subplot()


def _draw_borders(ax: Axes, shape: tuple[int, int]) -> None:
    """Draws the edges of all cells."""
    rows, columns = shape
    ax.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, colors="black", linewidths=_LINEWIDTH)
    ax.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, colors="black", linewidths=_LINEWIDTH)


def _hatch(ax: Axes, is_hatched: np.ndarray, hatch: str, colour: str) -> None:
    """Hatches the cells where `is_hatched`, by one artist."""
    cells = np.argwhere(is_hatched)
    if not len(cells):
        return
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)])
    vertices = (cells[:, None, ::-1] + corners).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(cells))
    ax.add_patch(PathPatch(Path(vertices, codes), fill=False, hatch=hatch, edgecolor=colour, linewidth=0))


def _write_cells(ax: Axes, cells: np.ndarray, colours: np.ndarray) -> None:
    """Writes the labels of tied positions, in black or white on a ground of the cell's colour."""
    ax.apply_aspect()
    cell_points = ax.bbox.width / cells.shape[1] * 72 / ax.figure.dpi
    fontsize = min(cell_points * 0.9 / max(map(len, cells.flat)), cell_points * 0.45)
    for (row, column), text in np.ndenumerate(cells):
        if text == notation.PINNED:
            continue
        colour = colours[row, column]
        ground = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
        text_colour = "black" if _luminance(colour) > 0.179 else "white"  # where both have equal contrast
        ax.text(column, row, text, ha="center", va="center", color=text_colour, fontsize=fontsize, bbox=ground)


def _luminance(colour: np.ndarray) -> float:
    """Returns the relative luminance of an sRGB colour, as WCAG defines it."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
