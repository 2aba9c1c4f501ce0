"""Methods that tied layers override on the instance: loading projects kernels; LoRA and quantization are refused."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.attachment import attachment, override_methods
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.statistics import pool_moving_statistics, pooling_methods
from kernel_tying.algebra import project
from kernel_tying.errors import TyingError


def guard(layer: keras.Layer) -> None:
    """Makes a layer with a `TiedConstraint` project the kernels that it loads, and refuse LoRA and quantization.

    A file may hold untied kernels: those of another model, or damaged ones. Loading does not detect damage in weight files,
    nor in `.keras` files where Python reads archives without checking them (3.12 and later).
    """
    is_constrained = any(isinstance(value, TiedConstraint) for value in vars(layer).values())
    if is_constrained and not attachment(layer).stock_methods:
        override_methods(layer, {"load_own_variables": _load_projected, **REFUSED_METHODS, **pooling_methods(layer)})


def refuse(layer: keras.Layer, *_: Any, **__: Any) -> None:
    """Raises a `TyingError`: the layer is tied."""
    raise TyingError(
        "LoRA and quantization change the kernel variable, and tying does too. "
        f"Received a call for layer {layer.name!r}, which is tied. Call `strip_tying` first."
    )


def _load_projected(layer: keras.Layer, store: Any) -> None:
    type(layer).load_own_variables(layer, store)
    for variable in _keras.own_variables(layer):
        if isinstance(variable.constraint, TiedConstraint):
            variable.assign(project(variable, variable.constraint.pattern_for(tuple(variable.shape))))
    pool_moving_statistics(layer)


REFUSED_METHODS = {"enable_lora": refuse, "quantize": refuse}
