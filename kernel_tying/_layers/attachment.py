"""What tying attaches to a stock layer: tied kernels, overridden methods, and notes for the report.

It is all kept in one record under one attribute. The free weights are attributes of the layer itself, because backends look
for them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras

from kernel_tying._layers.view import KernelView
from kernel_tying.errors import TyingError

UNTIED = "not tied"  # the reason if no call of `apply_tying` gave another
_ATTRIBUTE = "_kernel_tying"


@dataclass(eq=False)
class Notes:
    """What `apply_tying` notes for later reports.

    Attributes:
        lost: the relative norm that each kernel lost when it was tied, by kernel name.
        init: how each kernel was made when it was tied, "projected" or "redrawn", by kernel name.
        reason: why the layer is untied.
    """

    lost: dict[str, float] = field(default_factory=dict)
    init: dict[str, str] = field(default_factory=dict)
    reason: str = UNTIED


@dataclass(eq=False)
class Attachment:
    """The record of one layer.

    Attributes:
        views: the tied kernels in parameterization mode, by kernel name.
        stock_methods: each overridden method by name, as the instance had it before; None if only the class has it.
        notes: what reports tell later.
        tied_copy: for a model, a weak reference to the tied copy that was made of it; or None.
        copy_steps: the step counters of that copy's optimizers, which tell whether it was trained when it is gone.
    """

    views: dict[str, KernelView] = field(default_factory=dict)
    stock_methods: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    tied_copy: Callable[[], Any] | None = None
    copy_steps: tuple[keras.Variable, ...] = ()


def attachment(layer: keras.Layer) -> Attachment:
    """Returns the record of a layer to read; an empty one if nothing is attached."""
    return vars(layer).get(_ATTRIBUTE) or Attachment()


def attach(layer: keras.Layer) -> Attachment:
    """Returns the record of a layer to change. It is made if there is none."""
    # Bypasses `setattr`, because Keras and backends would track what the record holds.
    return vars(layer).setdefault(_ATTRIBUTE, Attachment())


def detach(layer: keras.Layer) -> None:
    """Removes the record, and restores the methods of the layer."""
    restore_methods(layer)
    vars(layer).pop(_ATTRIBUTE, None)


def restore_methods(layer: keras.Layer) -> None:
    """Restores the methods of the layer."""
    record = attachment(layer)
    for name, method in record.stock_methods.items():
        del vars(layer)[name]
        vars(layer).update({name: method} if method else {})
    record.stock_methods = {}


def views(layer: keras.Layer) -> dict[str, KernelView]:
    """Returns the tied kernels of a stock layer in parameterization mode, by kernel name."""
    return attachment(layer).views


def attached_names(layer: Any) -> set[str]:
    """Returns the names of the instance attributes that tying set: the record's, and those of overridden methods."""
    return {_ATTRIBUTE, *attachment(layer).stock_methods}


def override_methods(layer: keras.Layer, methods: Mapping[str, Callable[..., None]]) -> None:
    """Overrides methods on the instance `layer` by functions of the layer and the arguments.

    Raises:
        TyingError: methods of the layer are overridden already.
    """
    if attachment(layer).stock_methods:
        raise TyingError(
            "The methods of a layer are overridden once. "
            f"Received layer {layer.name!r}, which is tied. Call `strip_tying` first."
        )
    # Keras sets some methods on the instance too. These are kept for `detach`.
    attach(layer).stock_methods = {name: vars(layer).get(name) for name in methods}
    vars(layer).update({name: partial(method, layer) for name, method in methods.items()})
