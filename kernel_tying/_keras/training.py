"""Private names of compiled models and optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras import ops


def has_own_compile(model: keras.Layer) -> bool:
    """Returns whether the model's class overrides `compile`, so that its arguments are unknown."""
    return type(model).compile is not keras.Model.compile


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `compile` received. `get_compile_config` would fail on a loss written in a notebook."""
    return dict(model._compile_config.config)


def copy_iterations(source: Any, target: Any) -> None:
    """Copies an optimizer's step count, `_iterations`. With gradient accumulation, `iterations` is a quotient of it."""
    target._iterations.assign(ops.copy(source._iterations))


def copy_weight_decay_exclusions(source: Any, target: Any, pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    """Excludes from weight decay in `target` the variables that `source` excludes. Configs leave them out."""
    excluded: set[int] = getattr(source, "_exclude_from_weight_decay", set())
    pattern = getattr(source, "_exclude_from_weight_decay_pattern", None)
    if excluded or pattern:
        variables = [new for old, new in pairs if source._var_key(old) in excluded]
        target.exclude_from_weight_decay(var_list=variables, var_names=[pattern.pattern] if pattern else None)


def inner_optimizers(optimizer: Any) -> Iterator[Any]:
    """Yields `optimizer` and the optimizers that it wraps."""
    if optimizer is None:
        return
    yield optimizer
    for inner in (getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])):
        yield from inner_optimizers(inner)


def step_counters(optimizer: Any) -> list[keras.Variable]:
    """Returns the step counter of an optimizer, and of those that it wraps."""
    return [inner.iterations for inner in inner_optimizers(optimizer)]


def count_of_steps(counter: keras.Variable) -> int:
    """Returns the value of a step counter. A counter on several devices is read from one of them."""
    return int(ops.copy(counter))


def has_stepped(optimizer: Any) -> bool:
    """Returns whether an optimizer, or one that it wraps, has stepped."""
    return any(count_of_steps(counter) > 0 for counter in step_counters(optimizer))


def moving_averages(optimizer: Any) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yields each trained variable with its moving average, for optimizers built with `use_ema=True`."""
    for inner in inner_optimizers(optimizer):
        averages = getattr(inner, "_model_variables_moving_average", None) or []
        pairs = zip(inner._trainable_variables if averages else [], averages, strict=True)
        yield from ((variable, average) for variable, average in pairs if average is not None)


def drop_pending_state(model: Any) -> None:
    """Drops the state that an interrupted loop on JAX has not written back: its arrays may be deleted."""
    if hasattr(model, "jax_state_sync"):
        model._jax_state = None


def is_better_if_higher(model: Any, name: str) -> bool | None:
    """Returns whether higher values of a metric are better, as Keras' own callbacks find out; None if Keras cannot tell."""
    if name == "loss" or name.endswith("_loss"):
        return False
    for metric in _metrics(model):
        direction = getattr(metric, "_direction", None)
        if direction is not None and name in _logged_names(model, metric):
            return bool(direction == "up")
    return None


def _metrics(model: Any) -> Iterator[Any]:
    """Yields the metrics of a model, and those inside a container of metrics."""
    for metric in model.metrics:
        yield metric
        yield from getattr(metric, "metrics", ())


def _logged_names(model: Any, metric: Any) -> list[str]:
    """Returns the names under which the logs of `fit` may have a metric: its own, or with that of an output before it."""
    outputs = getattr(model, "output_names", None) or []
    return [metric.name, *(f"{output}_{metric.name}" for output in outputs)]
