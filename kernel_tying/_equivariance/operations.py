"""Rules of layers and operations of `keras.ops` that join values or act on each value.

Each rule takes a `Call` and returns the `Feature` that it gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kernel_tying._equivariance.activations import ODD, POINTWISE, check_axis, refuse_signs
from kernel_tying._equivariance.draft import Call
from kernel_tying._equivariance.fields import Feature

LINEAR = {"Add", "Subtract", "Average"}


def combine(call: Call) -> Feature:
    """An operation on the values of two or more features at each position, or of one feature and numbers."""
    _check_constants(call)
    full = max(call.features, key=lambda feature: feature.channels)
    for feature in call.features:
        _check_broadcast(call, feature, full)
        is_gate = feature.channels == 1 < full.channels
        feature.kind.join(call.draft.scalar if is_gate else full.kind, f"Layer {call.described}")
    if not _keeps_signs(call):
        refuse_signs(call, type(call.layer).__name__, full.kind)
    return replace(full, sizes=tuple(map(_common_size, *(feature.sizes for feature in call.features))))


def _keeps_signs(call: Call) -> bool:
    """Returns whether the operation commutes with signs: sums of features, products with numbers and trivial gates."""
    name = type(call.layer).__name__
    if name in LINEAR:
        return not call.constants
    full = max(feature.channels for feature in call.features)
    signs = sum(feature.channels == full for feature in call.features)  # an even number of equal signs cancels
    return name in ("Multiply", "Divide", "TrueDivide") and signs % 2 == 1


def _check_constants(call: Call) -> None:
    sizes = [
        np.size(constant) if not hasattr(constant, "shape") else int(np.prod(constant.shape)) for constant in call.constants
    ]
    if any(size != 1 for size in sizes):
        raise call.error(
            "An array differs between positions or channels, which the group exchanges.",
            f"arrays of {sizes} values",
            "Use a number, or a layer.",
        )


def _check_broadcast(call: Call, feature: Feature, full: Feature) -> None:
    """Raises a `TyingError` unless a feature has the axes of the largest one, of equal size or size 1."""
    same_axes = feature.is_flat == full.is_flat and len(feature.sizes) == len(full.sizes)
    if not same_axes or feature.channels not in (1, full.channels) or (feature.is_flat and feature.sizes != full.sizes):
        shapes = [call.draft.shape(feature)[1:] for feature in call.features]
        raise call.error(
            "Values are joined position by position and channel by channel.",
            f"shapes {shapes}",
            "Give all the same axes and channels, or a single channel.",
        )


def _common_size(*sizes: int | None) -> int | None:
    """Returns the size of an axis of features that broadcast."""
    known = [size for size in sizes if size not in (1, None)]
    return known[0] if known else None if None in sizes else 1


def concatenate(call: Call) -> Feature:
    """Channels of features of one type, side by side."""
    for feature in call.features:
        check_axis(call, feature, call.layer.axis)
    types = dict.fromkeys(str(feature.kind.type) for feature in call.features)
    if len(types) > 1 or any(feature.is_flat for feature in call.features):
        raise call.error(
            "Fields that are concatenated are of one type, and not flattened.",
            f"{', '.join(types)} from {', '.join(feature.kind.origin for feature in call.features)}",
            "Put a convolution or Dense layer in front, which changes the type.",
        )
    for feature in call.features:
        feature.kind.join(call.feature.kind, f"Layer {call.described}")
    return replace(call.feature, channels=sum(feature.channels for feature in call.features))


def softmax(call: Call) -> Feature:
    """A softmax over the channels, as a layer or an operation."""
    check_axis(call, call.feature, call.layer.axis)
    refuse_signs(call, type(call.layer).__name__, call.feature.kind)
    return call.feature


def act_on_each(call: Call) -> Feature:
    """A function of each value."""
    if type(call.layer).__name__.lower() not in _ODD:
        refuse_signs(call, type(call.layer).__name__, call.feature.kind)
    return call.feature


_ODD = {name.replace("_", "") for name in ODD} | {
    "negative", "sin", "sinh", "arctan", "arcsin", "arcsinh", "cbrt", "sign",
}  # fmt: skip
_POINTWISE = _ODD | {name.replace("_", "") for name in POINTWISE} | {
    "abs", "absolute", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "cos", "erf", "reciprocal",
}  # fmt: skip
_COMBINING = {"add", "subtract", "multiply", "divide", "truedivide", "maximum", "minimum", "power", "logaddexp"}
_RULES: dict[str, Callable[[Call], Feature]] = {
    **dict.fromkeys(_COMBINING, combine),
    **dict.fromkeys(_POINTWISE, act_on_each),
    **dict.fromkeys(("softmax", "logsoftmax"), softmax),
    "concatenate": concatenate,
}  # by the name of the class in lower case


def rule_of(operation: Any) -> Callable[[Call], Feature] | None:
    """Returns the rule of an operation of Keras that is no layer, or None."""
    cls = type(operation)
    return _RULES.get(cls.__name__.lower()) if cls.__module__.startswith("keras.") else None
