"""Copies state to a copied model: values, paths, flags and attributes, layer by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from kernel_tying import _keras
from kernel_tying._layers.attachment import views
from kernel_tying._layers.files import stock_store
from kernel_tying._layers.table import kernel_names
from kernel_tying._layers.tied import Tied
from kernel_tying._models import references
from kernel_tying._models.attributes import copy_attributes, differences, untracked_variables
from kernel_tying._models.sites import is_rebuildable
from kernel_tying.errors import TyingError

LayerPairs = list[tuple[keras.Layer, keras.Layer]]
VariablePairs = list[tuple[keras.Variable, keras.Variable]]


def copy_nested_attributes(layer: Any, copy: Any, counterpart: Callable[[Any], Any]) -> None:
    """Copies the attributes of a layer and its inner layers to the copy, except those that cannot be copied."""
    if not isinstance(layer, keras.Layer):
        copy_attributes(layer, copy, counterpart)
        return
    pairs = [(layer, copy)] if is_rebuildable(layer) else paired_so_far(layer, copy)
    for old, new in pairs:
        copy_attributes(old, new, counterpart)
    _keras.copy_remat(layer, copy)


def dropped_attributes(pairs: LayerPairs) -> list[str]:
    """Returns the attributes, as "layer.attribute", that copies lack or that differ."""
    dropped: list[str] = []
    for old, new in pairs:
        dropped += [f"{old.name}.{name}" for name in differences(old, new)]
    return dropped


def check_independence(model: keras.Layer, copy: keras.Layer) -> None:
    """Raises a `TyingError` if the copy refers to layers or variables of the model, which training would then change."""
    holder, found = references.find_holder(copy, references.objects_of(model))
    if holder is not None:
        raise TyingError(
            "A copy of a model shares no layer or variable with the model. "
            f"Received {model.name!r}, in which a function, an argument or an attribute of {holder.name!r} holds "
            f"{references.describe(found)}, where it can't be replaced. Pass variables as arguments of operations or "
            "layers as inputs of the Functional API, or use mode='constraint', which changes layers in place."
        )


def copy_state(pairs: LayerPairs, variables: VariablePairs, counterpart: Callable[[Any], Any]) -> None:
    """Copies weights, seeds, flags and attributes. Averages or expands kernels where the tying differs."""
    for old, new in pairs:
        _copy_trainable(old, new)
        copy_attributes(old, new, counterpart)
        for old_seed, new_seed in zip(_keras.seed_generators(old), _keras.seed_generators(new), strict=True):
            new_seed.state.assign(ops.copy(old_seed.state))
        if old.built and new.built:
            _copy_variables(old, new)
        for old_variable, new_variable in untracked_variables(old, new):
            new_variable.assign(ops.copy(old_variable.value))
    for old_variable, new_variable in variables:
        _copy_trainable(old_variable, new_variable)


def copy_paths(pairs: LayerPairs) -> None:
    """Copies variable paths, which depend on where a layer was built."""
    for layer, copy in pairs:
        for old, new in zip(_keras.own_variables(layer), _keras.own_variables(copy), strict=True):
            if new.path != old.path:
                _keras.copy_path(old, new)


def _copy_trainable(old: Any, new: Any) -> None:
    if new.trainable != old.trainable:
        new.trainable = old.trainable


def _copy_variables(old: keras.Layer, new: keras.Layer) -> None:
    """Copies the variables of a layer itself by its save and load methods, so that overridden methods run."""
    store: dict[str, Any] = stock_store(old) if views(old) and not views(new) else {}
    if not store:
        old.save_own_variables(store)
    # On JAX, assigning shares the buffer. Training one model would then donate the other's weights.
    new.load_own_variables({key: ops.copy(value) for key, value in store.items()})
    if hasattr(old, "save_assets"):  # lookup tables
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def variable_pairs(source: keras.Layer, target: keras.Layer) -> VariablePairs:
    """Returns the variables of a model and its copy, paired by position. Free weights are paired with kernels."""
    if len(source.variables) != len(target.variables):
        raise TyingError(
            f"A copy of a model has the variables of the model. Received {source.name!r} of {len(source.variables)} variables "
            f"and a config that describes {len(target.variables)}. Use mode='constraint', which changes layers in place."
        )
    return list(zip(source.variables, target.variables, strict=True))


def layer_pairs(source: keras.Layer, target: keras.Layer) -> LayerPairs:
    """Returns pairs of layers of a model and its copy, outer before inner, stock layers without their wrappers."""
    source, target = _unwrapped(source), _unwrapped(target)
    pairs = [(source, target)]
    for inside in (_keras.sublayers, _keras.attached_layers):
        for old, new in zip(inside(source), inside(target), strict=True):
            pairs += layer_pairs(old, new)
    return pairs


def _unwrapped(layer: keras.Layer) -> keras.Layer:
    return layer.layer if isinstance(layer, Tied) else layer


def paired_so_far(layer: keras.Layer, copy: keras.Layer) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yields pairs like `layer_pairs`, but stops at a layer whose copy has not made all its inner layers yet."""
    layer, copy = _unwrapped(layer), _unwrapped(copy)
    yield layer, copy
    inner, inner_copies = _keras.sublayers(layer), _keras.sublayers(copy)
    if len(inner) == len(inner_copies):
        for pair in zip(inner, inner_copies, strict=True):
            yield from paired_so_far(*pair)


def variable_counterparts(source: keras.Layer, target: keras.Layer) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yields pairs of variables of a built layer and its copy. Kernels are paired with kernels, whether tied or not."""
    for old, new in paired_so_far(source, target):
        free = {id(view.theta) for view in (*views(old).values(), *views(new).values())}
        for pair in zip(_keras.own_variables(old), _keras.own_variables(new), strict=False):
            if (id(pair[0]) in free) == (id(pair[1]) in free):
                yield pair
        if old.built and new.built:
            yield from ((getattr(old, name), getattr(new, name)) for name in kernel_names(old))
