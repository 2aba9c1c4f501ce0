"""The action of a group on the inputs and outputs of a model: which type each has, and what an element makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from kernel_tying._equivariance.fields import Action, action
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.equivariant import FieldType
from kernel_tying.patterns.groups import Group

FieldTypes = FieldType | Mapping[str, FieldType] | Sequence[FieldType]


def actions(group: Group, given: FieldTypes, argument: str, names: list[str]) -> list[Action]:
    """Returns the action on each input or output of a model, of these names. `argument` gave the types.

    Raises:
        TyingError: there is not one type for each name, or something is no type of the group.
    """
    by_name: Mapping[str, Any]
    if isinstance(given, Mapping):
        by_name = given
    elif _are_types(given):
        by_name = dict(zip(names, given, strict=False)) if len(given) == len(names) else {}
    else:
        by_name = dict.fromkeys(names, given)
    if set(by_name) != set(names):
        raise TyingError(
            f"`{argument}` is a type, a dict with a type for each name, or a list in their order. "
            f"Received {argument}={abbreviate(given)} for {names}. Give one type for each."
        )
    return [action(group, by_name[name], argument) for name in names]


def _are_types(given: object) -> TypeGuard[Sequence[Any]]:
    """Returns whether `given` is a list of types, not the list of matrices that is one type."""
    if isinstance(given, str) or not isinstance(given, Iterable) or (isinstance(given, np.ndarray) and given.ndim == 0):
        return False
    return any(isinstance(entry, str) or _is_nested(entry) for entry in given)


def _is_nested(entry: Any) -> bool:
    """Returns whether `entry` is a list of matrices."""
    try:
        return np.ndim(entry) == 3
    except ValueError:  # matrices of unequal shapes
        return True


def orbit(array: np.ndarray, of_type: Action, data_format: str = "channels_last") -> Iterator[np.ndarray]:
    """Yields what each element of the group makes of a batch of values: it moves positions and channels.

    Args:
        array: array of shape `(batch, *spatial, channels)`, or as the data format says. Without the spatial axes that the
            group moves, only channels move.
        of_type: type of the channels.
        data_format: "channels_last" or "channels_first".
    """
    group = of_type.group
    is_grid = array.ndim >= group.rank + 2
    axis = channel_axis(array.ndim, data_format)
    images = np.moveaxis(array, axis, -1)
    images = np.moveaxis(images, 0, -2)  # elements of a group act on the first axes
    for element, rows in zip(group.elements, group.represented(of_type.on_channels(array.shape[axis])), strict=True):
        moved = element(images) if is_grid else images
        moved = moved[..., np.abs(rows) - 1] * np.sign(rows).astype(array.dtype)
        yield np.moveaxis(np.moveaxis(moved, -2, 0), -1, axis)


def channel_axis(rank: int, data_format: str) -> int:
    """Returns the axis of the channels of a batch of `rank` axes."""
    return 1 if data_format == "channels_first" and rank > 2 else rank - 1
