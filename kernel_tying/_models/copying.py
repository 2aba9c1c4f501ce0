"""Copies of models and layers with some layers replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras

from kernel_tying import _keras
from kernel_tying._layers.algorithm import Convolution
from kernel_tying._layers.companions import get_companion, set_companion
from kernel_tying._layers.freshness import copy_seeds
from kernel_tying._layers.overrides import guard
from kernel_tying._layers.table import kernel_names
from kernel_tying._layers.tied import Tied, parameterize
from kernel_tying._layers.view import Scaling
from kernel_tying._models import references
from kernel_tying._models.attributes import matches
from kernel_tying._models.compiling import recompile
from kernel_tying._models.sites import is_rebuildable
from kernel_tying._models.state import (
    LayerPairs,
    check_independence,
    copy_nested_attributes,
    copy_paths,
    copy_state,
    layer_pairs,
    paired_so_far,
    variable_counterparts,
    variable_pairs,
)
from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern

Copier = Callable[[keras.Layer], keras.Layer]


class Rebuilt(NamedTuple):
    """A copy of a model, and pairs of layer and copy: outer before inner, stock layers without their wrappers."""

    root: keras.Layer
    pairs: LayerPairs


def rebuild(model: keras.Layer, copy_layer: Copier) -> Rebuilt:
    """Returns a copy of `model` with all weights and flags. `copy_layer` makes its layers. It is compiled if `model` is.

    Args:
        model: a Sequential or Functional model (nested ones are copied likewise), or a single layer.
        copy_layer: returns the fresh layer that replaces a given one.
    """
    copies = _Copies(model, copy_layer)
    copy = copies.of(model)
    if model.built and not copy.built:
        copy.build_from_config(model.get_build_config())
    pairs = layer_pairs(model, copy)
    variables = variable_pairs(model, copy)
    copy_state(pairs, variables, copies.counterpart)
    copy_paths(pairs)
    _keras.refresh_parameters(copy)
    check_independence(model, copy)
    if getattr(model, "compiled", False):
        recompile(copy, model, variables)
    return Rebuilt(copy, pairs)


def fresh(operation: Any) -> Any:
    """Returns a new layer or operation of the same configuration.

    Raises:
        TyingError: the config names a function or class that is not registered.
    """
    if isinstance(operation, keras.layers.Lambda):
        return _keras.copy_lambda(operation)
    with _undescribed_as_tying_error(operation):
        copy = type(operation).from_config(operation.get_config())
    _copy_undescribed(operation, copy)
    return copy


def _copy_undescribed(layer: keras.Layer, copy: keras.Layer) -> None:
    """Copies what configs may leave out: names, seeds, dtype policies and RematScopes, also of inner layers."""
    for old, new in paired_so_far(layer, copy):
        new.name = old.name
        copy_seeds(old, new)
        _keras.copy_remat(old, new)
        # Compared by config: Keras' `==` fails between a policy and a map of policies.
        if keras.dtype_policies.serialize(new.dtype_policy) != keras.dtype_policies.serialize(old.dtype_policy):
            new.dtype_policy = old.dtype_policy


def zeroed_copy(layer: keras.Layer) -> keras.Layer:
    """Returns a fresh layer, built if `layer` is. Kernels are zeros: drawing values that are then overwritten takes time."""
    copy = fresh(layer)
    if layer.built and not copy.built and type(layer).build is not keras.Layer.build:
        _build_zeroed(copy, layer)
        guard(copy)
    return copy


def zeroed_tied_copy(
    layer: keras.Layer, patterns: Mapping[str, TyingPattern], scaling: Scaling, convolution: Convolution
) -> Tied:
    """Returns a fresh tied layer, built if `layer` is. Free weights are zeros, because averaging takes time too."""
    tied = Tied(fresh(layer), patterns, scaling, convolution)
    if layer.built:
        _build_zeroed(tied.layer, layer)
        parameterize(tied.layer, patterns, scaling, convolution, keras.initializers.Zeros())
        tied.build_from_config(layer.get_build_config())
    return tied


def _build_zeroed(copy: keras.Layer, layer: keras.Layer) -> None:
    """Builds a fresh copy of `layer` with kernels of zeros and the variable paths of `layer`."""
    initializers = {name: get_companion(copy, name, "initializer") for name in kernel_names(layer)}
    with contextlib.ExitStack() as scopes:
        for scope in _scopes(layer):
            scopes.enter_context(keras.name_scope(scope))
        for name in initializers:
            set_companion(copy, name, "initializer", keras.initializers.Zeros())
        copy.build_from_config(layer.get_build_config())
    for name, initializer in initializers.items():
        set_companion(copy, name, "initializer", initializer)
    for old, new in variable_counterparts(layer, copy):
        _copy_companions(old, new)


def _scopes(layer: keras.Layer) -> list[str]:
    """Returns the name scopes in which a built layer was built."""
    variables = _keras.own_variables(layer)
    return variables[0].path.split("/")[:-2] if variables else (layer.path or "").split("/")[:-1]


def _copy_companions(old: keras.Variable, new: keras.Variable) -> None:
    """Copies regularizer and constraint of a variable, which may have been set on the variable alone."""
    for companion in ("regularizer", "constraint"):
        if not matches(getattr(old, companion), getattr(new, companion)):
            setattr(new, companion, getattr(old, companion))


def _wrapped_like(wrapper: keras.layers.Wrapper, layer: keras.Layer) -> keras.layers.Wrapper:
    """Returns a wrapper of the configuration of `wrapper` around another layer."""
    config = wrapper.get_config()
    del config["layer"]
    with _undescribed_as_tying_error(wrapper):
        return type(wrapper)(layer, **config)


@contextlib.contextmanager
def _undescribed_as_tying_error(operation: Any) -> Iterator[None]:
    try:
        yield
    except _keras.UNDESCRIBED as error:
        raise TyingError(
            f"A layer is copied through its config. Received {operation.name!r}, for which that fails: {error} "
            "Register its functions and classes by `keras.saving.register_keras_serializable`, or use mode='constraint'."
        ) from error


class _Copies:
    """Copies of the layers of a model, each made once, so that shared layers stay shared.

    Args:
        root: the given model or layer.
        copy_layer: returns the fresh layer that replaces a given one.
    """

    def __init__(self, root: keras.Layer, copy_layer: Copier):
        self._copy_layer = copy_layer
        self._made: dict[int, Any] = {}
        self._copied_layers = {id(layer): layer for layer in _copied_layers(root)}
        self._unit_of: dict[int, keras.Layer] = {}  # by the id of a part: the layer that is copied as a unit
        self._attached: set[int] = set()  # ids of the variables that models have as attributes
        for layer in self._copied_layers.values():
            if is_rebuildable(layer):
                self._attached.update(map(id, _keras.own_variables(layer)))
            else:
                self._unit_of.update(dict.fromkeys(references.objects_of(layer), layer))

    def of(self, layer: Any) -> Any:
        """Returns the copy of a layer or operation, the same copy each time."""
        if id(layer) not in self._made:
            self._made[id(layer)] = self._make(layer)
            copy_nested_attributes(layer, self._made[id(layer)], self.counterpart)
        return self._made[id(layer)]

    def counterpart(self, value: Any) -> Any:
        """Returns the counterpart in the copy of a layer or variable of the model, and any other value unchanged."""
        if id(value) in self._copied_layers:
            return self.of(value)
        if id(value) in self._attached:
            return self._made.setdefault(id(value), _keras.copy_variable(value))
        unit = self._unit_of.get(id(value))
        if unit is None:
            _check_constant(value)
            return value
        copy = self.of(unit)
        if not copy.built:
            _build_zeroed(copy, unit)
        pairs = (*paired_so_far(unit, copy), *variable_counterparts(unit, copy))
        return next((new for old, new in reversed(pairs) if old is value), value)

    def _make(self, layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return _keras.copy_operation(layer, self.counterpart)
        if not is_rebuildable(layer):
            return fresh(layer) if isinstance(layer, keras.layers.InputLayer) else self._copy_layer(layer)
        if isinstance(layer, keras.layers.Wrapper):
            return _wrapped_like(layer, self.of(layer.layer))
        model = self._sequential(layer) if isinstance(layer, keras.Sequential) else self._functional(layer)
        model.dtype_policy = layer.dtype_policy  # else it has the current global policy
        return model

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        return type(model)([self.of(layer) for layer in _keras.sequential_layers(model)], name=model.name)

    def _functional(self, model: keras.Model) -> keras.Model:
        input_layers = {id(layer.output): layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer)}
        inputs = keras.tree.map_structure(lambda tensor: self.of(input_layers[id(tensor)]).output, model.input)
        outputs = _keras.replay_calls(model, inputs, self.of, self.counterpart)
        return type(model)(inputs, outputs, name=model.name)


def _copied_layers(root: keras.Layer) -> Iterator[keras.Layer]:
    """Yields the models and wrappers that are rebuilt from layers, and the layers in them that are copied as a unit."""
    yield root
    if is_rebuildable(root):
        for layer in (*_keras.sublayers(root), *_keras.attached_layers(root)):
            yield from _copied_layers(layer)


def _check_constant(value: Any) -> None:
    """Raises a `TyingError` if `value` is a torch tensor that passes gradients to a variable of the given model."""
    if getattr(value, "requires_grad", False) is True:
        raise TyingError(
            "A copy of a model has variables of its own, and tensors that were computed before stay with the given ones. "
            f"Received a tensor of shape {tuple(value.shape)} as argument of an operation, through which gradients flow. "
            "Pass the variable itself, as in `keras.ops.einsum('bh,ih->bi', outputs, layer.kernel)`, or use mode='constraint'."
        )
