"""Labels and signs as a short text of compressed bits and label differences."""

from __future__ import annotations

import base64
import math
import zlib

import numpy as np

from kernel_tying.patterns.canonical import is_first_member
from kernel_tying.patterns.nesting import MAX_POSITIONS, MAX_RANK

_ZLIB_LEVEL = 6


def pack(labels: np.ndarray, signs: np.ndarray) -> str:
    """Returns the text from which `unpack` restores canonical `labels` and `signs`.

    Before compression it holds

    - a bit per position: is it tied, not pinned?
    - a bit per tied position: is it the first of its group?
    - a bit per later member: is its sign -1?
    - the label of each later member, as the difference from the later member before.

    A mask takes at most two bits per position, since none of its groups has later members.
    """
    is_tied = signs.ravel() != 0
    tied_labels, tied_signs = labels.ravel()[is_tied], signs.ravel()[is_tied]
    is_first = is_first_member(tied_labels)
    differences = np.diff(tied_labels[~is_first], prepend=0).astype(label_dtype(int(is_first.sum())))
    bits = np.packbits(np.concatenate([is_tied, is_first, tied_signs[~is_first] < 0]))
    # Large patterns are not compressed, so that the length of the text bounds the memory needed to read it.
    level = _ZLIB_LEVEL if labels.size <= MAX_POSITIONS else 0
    return base64.b64encode(zlib.compress(bits.tobytes() + differences.tobytes(), level)).decode("ascii")


def unpack(text: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and signs that `pack` wrote, as arrays of `shape`.

    Raises:
        ValueError: `pack` did not write `text` for that shape.
    """
    if not 0 < len(shape) <= MAX_RANK or min(shape) < 1 or math.prod(shape) > max(MAX_POSITIONS, 8 * len(text)):
        raise ValueError("no shape, or more positions than the text can hold")
    size = math.prod(shape)
    # A position takes at most three bits and a label of eight bytes.
    content = _decompress(base64.b64decode(text, validate=True), 9 * size)
    bits = np.unpackbits(np.frombuffer(content, np.uint8), count=3 * size).view(bool)  # padded with zeros
    is_tied, bits_of_tied = bits[:size], bits[size:]
    num_tied = np.count_nonzero(is_tied)
    is_first, bits_of_later = bits_of_tied[:num_tied], bits_of_tied[num_tied:]
    num_free = int(is_first.sum())
    num_later = num_tied - num_free
    bit_bytes = math.ceil((size + num_tied + num_later) / 8)
    differences = np.frombuffer(content[bit_bytes:], label_dtype(num_free))
    if differences.size != num_later:
        raise ValueError("too few or too many labels")
    tied_labels, tied_signs = np.cumsum(is_first) - 1, np.ones(num_tied, np.int64)
    tied_labels[~is_first] = np.cumsum(differences, dtype=np.int64)
    tied_signs[~is_first] -= 2 * bits_of_later[:num_later]
    labels, signs = np.full(size, -1), np.zeros(size, np.int64)
    labels[is_tied], signs[is_tied] = tied_labels, tied_signs
    return labels.reshape(shape), signs.reshape(shape)


def label_dtype(num_free: int) -> str:
    """Returns the smallest integer dtype that holds all labels from 0 to `num_free - 1`, and their differences."""
    return next(dtype for dtype, bits in (("<i2", 15), ("<i4", 31), ("<i8", 63)) if num_free <= 2**bits)


def _decompress(data: bytes, max_length: int) -> bytes:
    """Returns the decompressed `data`, or raises a ValueError if it is longer than `max_length`."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, max_length)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof or stream.unused_data:
        raise ValueError("incomplete, or longer than the labels of that shape")
    return content
