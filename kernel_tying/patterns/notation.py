"""The text notation of patterns: `AABCC/AABCC/DDEFF/GGHII/GGHII`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.nesting import MAX_RANK

PINNED = "."
_PUNCTUATION = frozenset(string.punctuation) - set("-._/") | set("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}")
# First symbol for a column of more than 52 groups. Its rows hold one cell, so no blank distinguishes tokens from characters.
_OUTSIDE_ASCII = 0x10000


def parse(text: str, shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and signs written in `text`. See `TyingPattern.parse`."""
    if not isinstance(text, str):
        raise TyingError(
            f"The notation of a pattern is a string. Received {type(text).__name__}. Pass arrays to `TyingPattern` itself."
        )
    one_line = "/".join(line.strip() for line in text.strip().splitlines())
    one_line = "/".join(row.strip(" \t") for row in one_line.split("/"))
    depth = max((len(run) for run in re.findall("/+", one_line)), default=0)
    if depth >= MAX_RANK:
        raise TyingError(f"A pattern has at most {MAX_RANK} axes. Received {depth} slashes in a row. Leave some out.")
    split = _tokens if re.search(r"[ \t]", one_line) else _characters
    texts, cells_shape = _nest(one_line, depth, split)
    symbols = [cell.removeprefix("-") for cell in texts]
    _check_labels(symbols)
    label_of = {symbol: label for label, symbol in enumerate(dict.fromkeys(symbols))}
    labels = np.array([-1 if symbol == PINNED else label_of[symbol] for symbol in symbols])
    signs = np.array([0 if cell == PINNED else -1 if cell.startswith("-") else 1 for cell in texts])
    shape = cells_shape if shape is None else shape
    return _reshape(labels, shape), _reshape(signs, shape)


def write(labels: np.ndarray, signs: np.ndarray) -> str:
    """Returns the text that `parse` reads as canonical `labels` and `signs`."""
    texts = cells(labels, signs)
    blank = " " if max(len(text.removeprefix("-")) for text in texts.flat) > 1 else ""

    def block(texts: np.ndarray) -> str:
        if texts.ndim == 1:
            return blank.join(texts.tolist())
        return ("/" if texts.ndim == 2 else "\n" * (texts.ndim - 1)).join(map(block, texts))

    # A leading axis of size 1 writes no separator. Trailing slashes restore it.
    has_leading_one = labels.ndim > 1 and labels.shape[0] == 1
    return block(texts) + ("/" * (labels.ndim - 1) if has_leading_one else "")


def cells(labels: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Returns the text of each position of canonical `labels` and `signs`, a string array of their shape."""
    names = symbols(int(labels.max()) + 1, is_column=labels.shape[-1] == 1)

    def cell(label: int, sign: int) -> str:
        return PINNED if sign == 0 else ("-" if sign < 0 else "") + names[label]

    return np.array(list(map(cell, labels.ravel().tolist(), signs.ravel().tolist()))).reshape(labels.shape)


def symbols(count: int, is_column: bool = False) -> list[str]:
    """Returns `count` different symbols, single characters if they suffice."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    if count <= len(letters):
        return list(letters[:count])
    if is_column:
        return [chr(_OUTSIDE_ASCII + index) for index in range(count)]
    return [f"{letters[index % 26]}{index // 26 + 1}" for index in range(count)]


def _nest(text: str, depth: int, split: Callable[[str], Iterator[str]]) -> tuple[list[str], tuple[int, ...]]:
    """Returns the cells of `text` in C order, and their shape: `depth` axes, then the cells of a row."""
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
    return list(chain.from_iterable(cells for cells, _ in blocks)), (len(blocks), *shapes[0])


def _without_trailing(blocks: list[str]) -> list[str]:
    """Returns `blocks` without an empty last one: a trailing separator marks an axis of size 1."""
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


def _check_labels(symbols: list[str]) -> None:
    """Raises a `TyingError` for labels that were meant as something else: separators, operators, and 0 for a pin."""
    labels = set(symbols)
    if "0" in labels:
        raise TyingError("A label is no zero. Received the cell '0'. Write '.' for a position that is pinned to zero.")
    punctuation = sorted(_PUNCTUATION & set("".join(labels)))
    if punctuation:
        raise TyingError(
            f"Labels are letters, digits and words. Received {', '.join(map(repr, punctuation))} in a label. "
            "Write the cells side by side, 'AAB/CCD', or with blanks between, 'A A B/C C D', and '-A' for the negative of A."
        )


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
