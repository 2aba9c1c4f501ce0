"""Fresh copies of Sequential and Functional models in which some layers are replaced; the given model stays as it is."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from kernel_tying import keras_private
from kernel_tying.errors import TyingError
from kernel_tying.guards import guard
from kernel_tying.kernels import get_companion, kernel_names, set_companion
from kernel_tying.parameterization import Tied, parameterize, stock_store, views
from kernel_tying.pattern import TyingPattern
from kernel_tying.sites import is_rebuildable

Copier = Callable[[keras.Layer], keras.Layer]
UNDESCRIBED = (TypeError, ValueError, NotImplementedError)  # what Keras raises where a config does not describe an object
VariablePairs = list[tuple[keras.Variable, keras.Variable]]


def rebuild(model: keras.Layer, copy_layer: Copier) -> keras.Layer:
    """Returns a copy of `model` with all weights and flags, compiled alike if it can be, with layers made by `copy_layer`.

    Args:
        model: a Sequential or Functional model (nested ones are copied likewise), or a single layer.
        copy_layer: returns a fresh layer in the place of a given one.
    """
    copy = _copy(model, copy_layer, {})
    if model.built and not copy.built:
        copy.build_from_config(model.get_build_config())
    copy_state(model, copy)
    if getattr(model, "compiled", False):
        recompile(copy, model, variable_pairs(model, copy))
    return copy


def fresh(operation: Any) -> Any:
    """Returns a new layer or operation of the same configuration.

    Raises:
        TyingError: the config names a function or class that is not registered.
    """
    if isinstance(operation, keras.layers.Lambda):
        return keras_private.copy_lambda(operation)
    with _undescribed_as_tying_error(operation):
        return type(operation).from_config(operation.get_config())


def blank(layer: keras.Layer) -> keras.Layer:
    """Returns a fresh layer, built if `layer` is: with kernels of zeros, since drawing what is then copied takes time."""
    copy = fresh(layer)
    if layer.built and kernel_names(layer):
        _build_blank(copy, layer)
        guard(copy)
    return copy


def blank_tied(layer: keras.Layer, patterns: Mapping[str, TyingPattern], scaling: str, convolution: str) -> Tied:
    """Returns a fresh tied layer, built if `layer` is: with free weights of zeros, since averaging takes time too."""
    tied = Tied(fresh(layer), patterns, scaling, convolution)
    if layer.built:
        _build_blank(tied.layer, layer)
        parameterize(tied.layer, patterns, scaling, convolution, keras.initializers.Zeros())
        tied.build_from_config(layer.get_build_config())
    return tied


def _build_blank(copy: keras.Layer, layer: keras.Layer) -> None:
    """Builds a fresh copy of `layer` with kernels of zeros, under the paths of its variables."""
    initializers = {name: get_companion(copy, name, "initializer") for name in kernel_names(layer)}
    with contextlib.ExitStack() as scopes:
        for scope in keras_private.own_variables(layer)[0].path.split("/")[:-2]:
            scopes.enter_context(keras.name_scope(scope))
        for name in initializers:
            set_companion(copy, name, "initializer", keras.initializers.Zeros())
        copy.build_from_config(layer.get_build_config())
    for name, initializer in initializers.items():
        set_companion(copy, name, "initializer", initializer)


def _wrapped_anew(wrapper: keras.layers.Wrapper, layer: keras.Layer) -> keras.layers.Wrapper:
    """Returns a wrapper of the same configuration around another layer."""
    config = wrapper.get_config()
    del config["layer"]
    with _undescribed_as_tying_error(wrapper):
        return type(wrapper)(layer, **config)


@contextlib.contextmanager
def _undescribed_as_tying_error(operation: Any) -> Iterator[None]:
    try:
        yield
    except UNDESCRIBED as error:
        raise TyingError(
            f"A layer is copied through its config. Received {operation.name!r}, for which that fails: {error} "
            "Register its functions and classes by `keras.saving.register_keras_serializable`, or use mode='constraint'."
        ) from error


def _copy(layer: Any, copy_layer: Copier, copies: dict[int, Any]) -> Any:
    """Returns the copy of `layer`, the same one for each place where a shared layer stands."""
    if id(layer) not in copies:
        copies[id(layer)] = _copied(layer, copy_layer, copies)
    return copies[id(layer)]


def _copied(layer: Any, copy_layer: Copier, copies: dict[int, Any]) -> Any:
    if not is_rebuildable(layer):
        return copy_layer(layer) if isinstance(layer, keras.Layer) else fresh(layer)
    if isinstance(layer, keras.layers.Wrapper):
        return _wrapped_anew(layer, _copy(layer.layer, copy_layer, copies))
    copy = _sequential_anew if isinstance(layer, keras.Sequential) else _functional_anew
    model = copy(layer, copy_layer, copies)
    model.dtype_policy = layer.dtype_policy  # of the time when it was made
    return model


def _sequential_anew(layer: keras.Sequential, copy_layer: Copier, copies: dict[int, Any]) -> keras.Sequential:
    return type(layer)([_copy(one, copy_layer, copies) for one in keras_private.sequential_layers(layer)], name=layer.name)


def _functional_anew(layer: keras.Model, copy_layer: Copier, copies: dict[int, Any]) -> keras.Model:
    input_layers = {id(one.output): one for one in layer.layers if isinstance(one, keras.layers.InputLayer)}
    inputs = keras.tree.map_structure(lambda tensor: _copy(input_layers[id(tensor)], fresh, copies).output, layer.input)
    outputs = keras_private.call_alike(layer, inputs, lambda one: _copy(one, copy_layer, copies))
    return type(layer)(inputs, outputs, name=layer.name)


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Copies weights, seeds and `trainable` flags, layer by layer, averaging or expanding kernels where the tying differs."""
    for old, new in _pairs(source, target):
        _copy_trainable(old, new)
        for old_seed, new_seed in zip(keras_private.seed_generators(old), keras_private.seed_generators(new), strict=True):
            new_seed.state.assign(ops.copy(old_seed.state))
        if old.built and new.built:
            _copy_variables(old, new)
    for old_variable, new_variable in variable_pairs(source, target):
        _copy_trainable(old_variable, new_variable)


def _copy_trainable(old: Any, new: Any) -> None:
    if new.trainable != old.trainable:
        new.trainable = old.trainable


def _copy_variables(old: keras.Layer, new: keras.Layer) -> None:
    """Copies the variables of a layer itself, by its own way of saving and loading, so that it can follow them up."""
    store: dict[str, Any] = stock_store(old) if views(old) and not views(new) else {}
    if not store:
        old.save_own_variables(store)
    # On JAX, assigning shares the buffer, and training one model would donate the other's weights.
    new.load_own_variables({key: ops.copy(value) for key, value in store.items()})
    if hasattr(old, "save_assets"):  # lookup tables
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def variable_pairs(source: keras.Layer, target: keras.Layer) -> VariablePairs:
    """Returns the variables of two copies of a model, paired by position; free weights pair with kernels."""
    if len(source.variables) != len(target.variables):
        raise TyingError(
            f"A copy of a model has the variables of the model. Received {source.name!r} of {len(source.variables)} variables "
            f"and a config that describes {len(target.variables)}. Use mode='constraint', which changes layers in place."
        )
    return list(zip(source.variables, target.variables, strict=True))


def _pairs(source: keras.Layer, target: keras.Layer) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yields the layers of two copies of a model in parallel, outer before inner, stock layers without their wrappers."""
    source, target = (layer.layer if isinstance(layer, Tied) else layer for layer in (source, target))
    yield source, target
    for old, new in zip(keras_private.sublayers(source), keras_private.sublayers(target), strict=True):
        yield from _pairs(old, new)


def recompile(model: keras.Model, template: keras.Model, pairs: VariablePairs) -> None:
    """Compiles `model` like `template`, with a fresh optimizer at the same iteration.

    A model with its own `compile`, or with an optimizer or metric that its config does not describe, is left as it is.

    Args:
        model: the model to compile.
        template: a compiled model, perhaps the same.
        pairs: the variables that the template's optimizer knows, each with the variable in its place.
    """
    if keras_private.has_own_compile(model):
        return
    arguments = keras_private.compile_arguments(template)
    try:
        optimizer = template.optimizer and _fresh_optimizer(template.optimizer, pairs)
        if model is not template:
            arguments = keras.tree.map_structure(_fresh_metric, arguments)
    except UNDESCRIBED:
        return
    # The template's optimizer scales the loss already where it is to be scaled, and so does its copy.
    model.compile(**{**arguments, "optimizer": optimizer, "auto_scale_loss": False})


def _fresh_optimizer(optimizer: Any, pairs: VariablePairs) -> Any:
    """Returns an optimizer of the same configuration and iteration count, without slots."""
    for one in keras_private.inner_optimizers(optimizer):
        _check_config(type(one))
    copy = type(optimizer).from_config(optimizer.get_config())
    for old, new in zip(keras_private.inner_optimizers(optimizer), keras_private.inner_optimizers(copy), strict=True):
        keras_private.copy_iterations(old, new)
        keras_private.copy_weight_decay_exclusions(old, new, pairs)
    return copy


def _fresh_metric(argument: Any) -> Any:
    """Returns a metric without the state of the given one; whatever else `compile` takes holds no state."""
    if not isinstance(argument, keras.metrics.Metric):
        return argument
    _check_config(type(argument))
    return type(argument).from_config(argument.get_config())


def _check_config(cls: type) -> None:
    """Raises a NotImplementedError if a class has a constructor of its own, but not the config to go with it."""
    constructor, config = (next(base for base in cls.__mro__ if name in vars(base)) for name in ("__init__", "get_config"))
    if not constructor.__module__.startswith("keras.") and not issubclass(config, constructor):
        raise NotImplementedError(f"{cls.__name__} has no `get_config` of its own.")
