"""The text notation of patterns: `AABCC/AABCC/DDEFF/GGHII/GGHII`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator

import numpy as np

from kernel_tying.errors import TyingError, abbreviate

PINNED = "."
MAX_RANK = 32
_OUTSIDE_ASCII = 0x10000  # symbols for one column of more than 52 groups, where tokens would read as rows of characters


def parse(text: str, shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and signs that `text` stands for. See `TyingPattern.parse`."""
    if not isinstance(text, str):
        raise TyingError(
            f"The notation of a pattern is a string. Received {type(text).__name__}. Pass arrays to `TyingPattern` itself."
        )
    slashes = "/".join(line.strip() for line in text.strip().splitlines())
    slashes = "/".join(row.strip(" \t") for row in slashes.split("/"))
    depth = max((len(run) for run in re.findall("/+", slashes)), default=0)
    if depth >= MAX_RANK:
        raise TyingError(f"A pattern has at most {MAX_RANK} axes. Received {depth} slashes in a row. Leave some out.")
    split = _tokens if re.search(r"[ \t]", slashes) else _characters
    cells, cells_shape = _nest(slashes, depth, split)
    names = [cell.removeprefix("-") for cell in cells]
    known = {name: label for label, name in enumerate(dict.fromkeys(names))}
    labels = np.array([-1 if name == PINNED else known[name] for name in names])
    signs = np.array([0 if cell == PINNED else -1 if cell.startswith("-") else 1 for cell in cells])
    shape = cells_shape if shape is None else shape
    return _reshape(labels, shape), _reshape(signs, shape)


def write(labels: np.ndarray, signs: np.ndarray) -> str:
    """Returns the notation that parses to canonical `labels` and `signs`."""
    symbols = _symbols(int(labels.max()) + 1, is_column=labels.shape[-1] == 1)
    blank = " " if max(map(len, symbols)) > 1 else ""

    def cell(label: int, sign: int) -> str:
        return PINNED if sign == 0 else ("-" if sign < 0 else "") + symbols[label]

    def block(labels: np.ndarray, signs: np.ndarray) -> str:
        if labels.ndim == 1:
            return blank.join(map(cell, labels.tolist(), signs.tolist()))
        return ("/" if labels.ndim == 2 else "\n" * (labels.ndim - 1)).join(map(block, labels, signs))

    leading = next((axis for axis, size in enumerate(labels.shape[:-1]) if size > 1), labels.ndim - 1)
    return block(labels, signs) + ("/" * (labels.ndim - 1) if leading > 0 else "")


def _symbols(count: int, is_column: bool) -> list[str]:
    """Returns `count` different cells, single characters where they suffice."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    if count <= len(letters):
        return list(letters[:count])
    if is_column:
        return [chr(_OUTSIDE_ASCII + index) for index in range(count)]
    return [f"{letters[index % 26]}{index // 26 + 1}" for index in range(count)]


def _nest(text: str, depth: int, split: Callable[[str], Iterator[str]]) -> tuple[list[str], tuple[int, ...]]:
    """Returns the cells of `text` in C order, and its shape with `depth` axes before that of the cells."""
    if depth == 0:
        cells = list(split(text))
        return cells, (len(cells),)
    blocks = [_nest(block, depth - 1, split) for block in _without_trailing(text.split("/" * depth))]
    shapes = [shape for _, shape in blocks]
    if len(set(shapes)) != 1:
        raise TyingError(
            f"Rows of a pattern must have the same number of cells, and planes the same shape. Received {abbreviate(shapes)}. "
            "Pin the cells that should be empty with '.'."
        )
    return [cell for cells, _ in blocks for cell in cells], (len(blocks), *shapes[0])


def _without_trailing(blocks: list[str]) -> list[str]:
    """Returns `blocks` without the empty one behind a trailing separator, which only stands for the axis."""
    return blocks[:-1] if len(blocks) > 1 and not blocks[-1] else blocks


def _characters(row: str) -> Iterator[str]:
    """Yields the cells of a row of single characters, each with its sign."""
    cells = re.findall(r"-?[^-]", row)
    if not cells or "".join(cells) != row or "-" + PINNED in cells:
        raise _malformed(row)
    yield from cells


def _tokens(row: str) -> Iterator[str]:
    """Yields the cells of a row of blank-separated tokens, each with its sign."""
    cells = row.split()
    if not cells or not all(re.fullmatch(r"-?[^-.]+|\.", cell) for cell in cells):
        raise _malformed(row)
    yield from cells


def _malformed(row: str) -> TyingError:
    return TyingError(
        "A cell is a label, a label behind '-', or '.' for a position pinned to zero. "
        f"Received the row {abbreviate(row)}. Example: 'A -B . B -A' or 'A-B.B-A'."
    )


def _reshape(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return cells.reshape(shape)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise TyingError(
            f"`shape` must hold all cells of the text. Received {cells.size} cells and shape={abbreviate(shape)}. "
            "Write one cell for each position, '.' for those pinned to zero."
        ) from None
