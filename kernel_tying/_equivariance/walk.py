"""The walk through the graph of a model, call by call, on types in place of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._equivariance.draft import Call, Draft
from kernel_tying._equivariance.fields import Feature
from kernel_tying._equivariance.table import reason_against, rule_of, takes_several
from kernel_tying._layers.tied import Tied
from kernel_tying.errors import TyingError


def trace(draft: Draft, model: keras.Layer, inputs: Any) -> Any:
    """Returns the outputs of a Functional or Sequential model for `inputs`, in its structure.

    Raises:
        TyingError: a layer breaks equivariance, or its effect is not known.
    """
    if not _keras.runs_graph(model):
        raise TyingError(
            f"A plan follows the calls of Functional and Sequential models. Received {model.name!r} of class "
            f"{type(model).__name__}, whose `call` is code. Build the model from keras.Input, or tie its layers by name."
        )
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = _call(draft, layer, inputs)
        return inputs
    return _keras.replay_calls(model, inputs, partial(_caller, draft), lambda constant: constant)


def _caller(draft: Draft, operation: Any) -> Callable[..., Any]:
    return partial(_call, draft, operation)


def _call(draft: Draft, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what an operation, layer or inner model makes of features."""
    if isinstance(operation, keras.Model):
        return trace(draft, operation, args[0] if args else kwargs["inputs"])
    leaves = keras.tree.flatten((args, kwargs))
    features = [leaf for leaf in leaves if isinstance(leaf, Feature)]
    constants = [leaf for leaf in leaves if not isinstance(leaf, Feature) and leaf is not None]
    call = Call(draft, operation, features, constants)
    rule = rule_of(operation)
    if rule is None:
        raise _unruled(call)
    if not takes_several(rule):
        _check_single(call)
    return rule(call)


def _check_single(call: Call) -> None:
    """Raises a `TyingError` if a layer is called on more than one value, such as a mask."""
    arrays = [constant for constant in call.constants if not isinstance(constant, (bool, int, float, str))]
    if len(call.features) > 1 or arrays:
        raise call.error(
            "A layer is called on one value, and treats all positions the same way.",
            f"a call with {len(call.features) + len(arrays)} values",
            "Leave out the mask, or tie the layers around it by name.",
        )


def _unruled(call: Call) -> TyingError:
    if isinstance(call.layer, Tied):
        return call.error("A plan is made for stock layers.", "a tied layer", "Call `strip_tying` first.")
    return call.error(
        "A plan knows of each layer what it does to positions and channels.",
        f"a layer that is not equivariant, or not known to be ({reason_against(call.layer)}),",
        "Replace it by stock layers, or tie the layers around it by name.",
    )
