"""The initializer, constraint and regularizer attributes that a layer has for a kernel."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.initializer import TiedInitializer, untied
from kernel_tying._layers.table import kernel_of
from kernel_tying.patterns.pattern import TyingPattern


def get_companion(layer: keras.Layer, kernel_name: str, kind: str) -> Any:
    """Returns the layer's "initializer", "constraint" or "regularizer" for a kernel."""
    return getattr(layer, f"{kernel_of(layer, kernel_name).role}_{kind}")


def set_companion(layer: keras.Layer, kernel_name: str, kind: str, value: Any) -> None:
    """Sets the layer's "initializer", "constraint" or "regularizer" for a kernel."""
    setattr(layer, f"{kernel_of(layer, kernel_name).role}_{kind}", value)


def tied_constraint(layer: keras.Layer, kernel_name: str) -> TiedConstraint | None:
    """Returns the layer's `TiedConstraint` for a kernel, the one that is saved; or None."""
    constraint = get_companion(layer, kernel_name, "constraint")
    return constraint if isinstance(constraint, TiedConstraint) else None


def effective_constraint(layer: keras.Layer, kernel_name: str) -> Any:
    """Returns the constraint that Keras applies to a kernel: that of the variable, which `build` copies from the layer."""
    if not layer.built:
        return get_companion(layer, kernel_name, "constraint")
    return getattr(getattr(layer, kernel_name), "constraint", None)  # a tensor with LoRA or quantization


def tied_initializer(layer: keras.Layer, kernel_name: str, pattern: TyingPattern) -> TiedInitializer:
    """Returns an initializer of tied kernels with the variance of the layer's own initializer."""
    base = untied(get_companion(layer, kernel_name, "initializer"))
    return TiedInitializer(pattern, kernel_of(layer, kernel_name).initializer(layer, base))
