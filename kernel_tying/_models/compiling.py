"""Compiling a copy as the given model was compiled."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._models import references
from kernel_tying._models.attributes import check_config
from kernel_tying._models.state import VariablePairs


def recompile(model: keras.Model, template: keras.Model, pairs: VariablePairs) -> None:
    """Compiles `model` like `template`, with a fresh optimizer at the same iteration.

    It does nothing if the model has its own `compile`, an optimizer or metric that its config does not describe, or a
    loss or metric that holds layers or variables of the template.

    Args:
        model: the model to compile.
        template: a compiled model, which may be `model` itself.
        pairs: the variables that the template's optimizer knows, each with its replacement.
    """
    if _keras.has_own_compile(model):
        return
    arguments = _keras.compile_arguments(template)
    try:
        optimizer = template.optimizer and _fresh_optimizer(template.optimizer, pairs)
        if model is not template:
            arguments = keras.tree.map_structure(_fresh_metric, arguments)
    except _keras.UNDESCRIBED:
        return
    arguments["optimizer"] = optimizer
    if model is not template and references.find([arguments], references.objects_of(template)) is not None:
        return
    # If the loss is scaled, the template's optimizer already does it, and so does its copy.
    model.compile(**{**arguments, "auto_scale_loss": False})
    for name in ("run_eagerly", "jit_compile", "steps_per_execution"):  # may have been set after `compile`
        if getattr(model, name) != getattr(template, name):
            setattr(model, name, getattr(template, name))


def _fresh_optimizer(optimizer: Any, pairs: VariablePairs) -> Any:
    """Returns an optimizer of the same configuration and iteration count, without slots."""
    for inner in _keras.inner_optimizers(optimizer):
        check_config(type(inner))
    copy = type(optimizer).from_config(optimizer.get_config())
    for old, new in zip(_keras.inner_optimizers(optimizer), _keras.inner_optimizers(copy), strict=True):
        _keras.copy_iterations(old, new)
        _keras.copy_weight_decay_exclusions(old, new, pairs)
    return copy


def _fresh_metric(argument: Any) -> Any:
    """Returns a fresh metric without state. Other arguments of `compile` have no state, and are returned unchanged."""
    if not isinstance(argument, keras.metrics.Metric):
        return argument
    check_config(type(argument))
    return type(argument).from_config(argument.get_config())
