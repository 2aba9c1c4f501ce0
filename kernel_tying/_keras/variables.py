"""Private names of variables: how to make, replace and find them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kernel_tying._keras.versions import private_name
from kernel_tying.algebra import Tensor

_get_global_attribute: Any = private_name("keras.src.backend.common.global_state", "get_global_attribute")


def variable_like(
    replaced: keras.Variable,
    initializer: Any,
    shape: tuple[int, ...],
    autocast: bool | None = None,
    fields: tuple[int, ...] | None = None,
) -> keras.Variable:
    """Returns a new variable with the name, path, dtype, aggregation and layout of `replaced`.

    Args:
        replaced: the variable that the new one replaces.
        initializer: a function of a shape and a dtype that returns the first value.
        shape: the shape of the new variable, of the same rank.
        autocast: whether the new variable casts its value in mixed precision; None if `replaced` decides.
        fields: the number of equal parts along each axis that correspond to equal parts of `replaced`; None if the shapes
            are equal.
    """
    variable = keras.Variable(
        initializer=_Initializer(initializer),
        shape=shape,
        dtype=replaced._dtype,  # `dtype` reads the compute dtype inside an autocast scope
        autocast=replaced._autocast if autocast is None else autocast,
        aggregation=replaced.aggregation,
        name=replaced.name,
        layout=layout_like(replaced, fields or shape),  # else Keras looks the layout up by path, before the path is set
    )
    variable._path = replaced.path  # else the path depends on the open name scope
    return variable


def copy_variable(variable: keras.Variable) -> keras.Variable:
    """Returns a variable with the same value, name, path and flags."""
    shape, value = tuple(variable.shape), ops.copy(variable.value)
    copy = variable_like(variable, lambda *_, **__: value, shape)
    copy.trainable = variable.trainable
    return copy


class _Initializer:
    """An initializer from a function. For large distributed variables, Keras compiles `__call__` on JAX; a lambda's fails."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        return self.function(shape, dtype=dtype)


def layout_of(variable: keras.Variable) -> Any:
    """Returns the layout of a variable, or None. Until Keras 3.14 only JAX variables have one, as a `NamedSharding`."""
    return getattr(variable, "_layout", None)


def _axes(layout: Any) -> tuple[str | None, ...]:
    return tuple(layout.axes if isinstance(layout, keras.distribution.TensorLayout) else layout.spec)


def _devices_along(layout: Any, axis: str | None) -> int:
    """Returns the number of devices along a mesh axis, 1 for None."""
    if not isinstance(layout, keras.distribution.TensorLayout):
        return layout.mesh.shape.get(axis, 1)
    mesh = layout.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True)).get(axis, 1)


def _with_axes(layout: Any, axes: list[str | None]) -> Any:
    if isinstance(layout, keras.distribution.TensorLayout):
        return keras.distribution.TensorLayout(axes, layout.device_mesh)
    return type(layout)(layout.mesh, type(layout.spec)(*axes))


def layout_like(replaced: keras.Variable, fields: tuple[int, ...]) -> Any:
    """Returns the layout of `replaced` for a variable of as many `fields` along each axis.

    An axis of fields that the devices along it cannot share equally is replicated.

    The active `keras.distribution` assigns the layout by path. Without one, the variable's own layout counts, if it has any.

    Warns:
        UserWarning: the layout shards such an axis.
    """
    distribution = keras.distribution.distribution()
    layout = layout_of(replaced) if distribution is None else distribution.get_variable_layout(replaced)
    if layout is None:
        return None
    old_axes = _axes(layout)
    counts = zip(old_axes, fields, replaced.shape, strict=False)  # trailing axes may be missing
    axes = [name if count == size or count % _devices_along(layout, name) == 0 else None for name, count, size in counts]
    if tuple(axes) != old_axes:
        warnings.warn(
            "Free weights are replicated along an axis if the devices can't share its fields evenly. Received the "
            f"layout {old_axes} for {replaced.path!r} of shape {tuple(replaced.shape)} with {fields} fields; its free "
            f"weights take {tuple(axes)}. Shard free axes, such as the output channels.",
            UserWarning,
            stacklevel=2,
        )
    return _with_axes(layout, axes)


def replace_variable(layer: keras.Layer, old: keras.Variable, new: keras.Variable) -> None:
    """Replaces `old` by `new` in the layer's weights, with the same position and `trainable`. Leaves attributes alone."""
    stores = (layer._trainable_variables, layer._non_trainable_variables)
    tracked, index = next((store, _index(store, old)) for store in stores if _index(store, old) is not None)
    trainable = old.trainable
    layer._untrack_variable(old)  # removes by identity and tells the backend
    was_locked, layer._tracker.locked = layer._tracker.locked, False  # a built layer refuses new variables
    layer._track_variable(new)
    layer._tracker.locked = was_locked
    tracked.insert(index, tracked.pop())  # at the end it would misalign optimizer slots and `set_weights`
    new.trainable = trainable


def attribute_of(layer: keras.Layer, variable: keras.Variable) -> str:
    """Returns the name of the attribute that holds `variable`, such as `_kernel` behind a property `kernel`."""
    return next(name for name, value in vars(layer).items() if value is variable)


def forget_attribute(layer: keras.Layer, name: str) -> None:
    """Removes an attribute, and what the backend tracks under that name."""
    super(keras.Layer, layer).__delattr__(name)  # skips `keras.Layer.__delattr__`, which collects garbage: 0.1 s a layer


def has_nnx_variables() -> bool:
    """Returns whether Keras variables are Flax NNX variables too: on JAX with KERAS_NNX_ENABLED."""
    return any(cls.__module__.startswith("flax.") for cls in keras.Variable.__mro__)


def weight_adder() -> keras.Layer | None:
    """Returns the layer that is adding a weight while an initializer runs, or None."""
    scopes: Any = _get_global_attribute("name_scope_stack")
    caller = scopes[-1].caller if scopes else None
    return caller if isinstance(caller, keras.Layer) else None


def value_in_scope(variable: keras.Variable) -> Tensor | None:
    """Returns the value of a variable in the current `StatelessScope`, or None."""
    scope: Any = _get_global_attribute("stateless_scope")
    return None if scope is None else scope.get_current_value(variable)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the variables that belong to `layer` itself, in the order in which Keras saves them."""
    return layer._trainable_variables + layer._non_trainable_variables


def mutable_storage(variable: keras.Variable) -> list[Any]:
    """Returns, in a list, the backend object that assigning changes in place; an empty list on JAX, which replaces arrays."""
    storage = vars(variable).get("_value")
    return [storage] if hasattr(storage, "assign") or hasattr(storage, "requires_grad_") else []


def _index(variables: list[keras.Variable], variable: keras.Variable) -> int | None:
    """Returns the index of `variable` by identity (`==` compares values), or None."""
    return next((index for index, candidate in enumerate(variables) if candidate is variable), None)
