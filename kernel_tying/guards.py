"""Methods that tied layers have in the place of those of their class: loading ties, and changes of the kernel are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from kernel_tying import keras_private
from kernel_tying.algebra import project
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.identifiers import pattern_for

_STOCK_METHODS = "_stock_methods"


def guard(layer: keras.Layer) -> None:
    """Lets a layer with a `TiedConstraint` project the kernels that it loads, and refuse LoRA and quantization.

    A file may hold untied kernels: those of another model, or damaged ones, which a weights file does not show, and a
    `.keras` file does not either where Python reads archives without checking them (3.12 and later).
    """
    if any(isinstance(value, TiedConstraint) for value in vars(layer).values()):
        override_methods(layer, {"load_own_variables": _load_projected, **REFUSED_METHODS})


def override_methods(layer: keras.Layer, methods: Mapping[str, Callable[..., None]]) -> None:
    """Gives `layer` methods of its own, functions of the layer and the arguments, unless it has been given some."""
    if _STOCK_METHODS in vars(layer):
        return
    # Keras sets some methods on the instance itself, so what was there is kept.
    vars(layer)[_STOCK_METHODS] = {name: vars(layer).get(name) for name in methods}
    vars(layer).update({name: partial(method, layer) for name, method in methods.items()})


def restore_methods(layer: keras.Layer) -> None:
    """Undoes `override_methods`, if it was called."""
    for name, method in vars(layer).pop(_STOCK_METHODS, {}).items():
        del vars(layer)[name]
        vars(layer).update({name: method} if method else {})


def refuse(layer: keras.Layer, *_: Any, **__: Any) -> None:
    """Raises a `TyingError`: the layer is tied."""
    raise TyingError(
        "LoRA and quantization change the kernel variable, and tying does too. "
        f"Received a call for layer {layer.name!r}, which is tied. Call `strip_tying` first."
    )


def _load_projected(layer: keras.Layer, store: Any) -> None:
    type(layer).load_own_variables(layer, store)
    for variable in keras_private.own_variables(layer):
        if isinstance(variable.constraint, TiedConstraint):
            variable.assign(project(variable, pattern_for(variable.constraint.pattern, tuple(variable.shape))))


REFUSED_METHODS = {"enable_lora": refuse, "quantize": refuse}
