"""Private names of variables without storage, and the two patches that Keras needs for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import keras

from kernel_tying._keras.variables import layout_of, value_in_scope
from kernel_tying._keras.versions import private_name
from kernel_tying.algebra import Tensor
from kernel_tying.errors import TyingError

_tracking: Any = private_name("keras.src.utils", "tracking")


class VariableView(keras.Variable):
    """A variable that owns no storage: its value is `decode(source.value)`, and assigning writes `encode(value)` to `source`.

    Every backend reads a Keras variable through `value`. Layers therefore compute with a view as with any variable, and the
    result is differentiable in `source`. Name, path, shape and dtype are those of the variable that it replaces.

    Args:
        replaced: the variable that the view replaces.
        source: the variable that stores the value. It must not autocast, because the view does.
    """

    def __init__(self, replaced: keras.Variable, source: keras.Variable):
        # `keras.Variable.__init__` would allocate storage, so the state of `replaced` is copied instead.
        self.__dict__.update({name: value for name, value in vars(replaced).items() if name != "_value"})
        self.source = source
        self.regularizer, self.constraint = replaced.regularizer, replaced.constraint

    def decode(self, value: Tensor) -> Tensor:
        """Returns the value of the view for a value of `source`."""
        raise NotImplementedError

    def encode(self, value: Tensor) -> Tensor:
        """Returns the value of `source` for a value of the view."""
        raise NotImplementedError

    @property
    def stored(self) -> Tensor:
        """The value of `source`."""
        if value_in_scope(self) is not None:
            self.refuse("in a `StatelessScope`")
        return self.source.value

    @property
    def value(self) -> Tensor:
        value = self.decode(self.stored)
        layout = layout_of(self)
        if layout is not None:  # else XLA picks a layout, and transfers kernels that stock layers leave in place
            value = keras.distribution.distribute_tensor(value, layout)
        return self.in_compute_dtype(value)

    def in_compute_dtype(self, value: Tensor) -> Tensor:
        """Returns `value`, cast to the compute dtype inside an autocast scope. As in stock variables, the cast comes last."""
        return self._maybe_autocast(value)

    def assign(self, value: Tensor) -> Tensor:
        value = self._convert_to_tensor(value, dtype=self._dtype)
        if tuple(value.shape) != tuple(self.shape):
            raise TyingError(
                f"A value has the shape of the kernel it is assigned to. Received shape {tuple(value.shape)} for "
                f"{self.path!r} of shape {tuple(self.shape)}. Free weights are assigned to `free_weights`."
            )
        self.source.assign(self.encode(value))
        return self.value

    @property
    def trainable(self) -> bool:
        return self.source.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.source.trainable = value

    @property
    def regularizer(self) -> Any:
        return self._regularizer

    @regularizer.setter
    def regularizer(self, value: Any) -> None:
        keras.Variable.regularizer.fset(self, value)
        # Bypasses the property of the source, which on Keras 3.12 accepts only Regularizer instances.
        self.source._regularizer = None if value is None else self._penalty

    @property
    def constraint(self) -> Any:
        return self._constraint

    @constraint.setter
    def constraint(self, value: Any) -> None:
        keras.Variable.constraint.fset(self, value)
        self.source._constraint = None if value is None else self._constrained

    @property
    def overwrite_with_gradient(self) -> bool:
        return False

    @overwrite_with_gradient.setter
    def overwrite_with_gradient(self, value: bool) -> None:
        if value:
            self.refuse("with overwrite_with_gradient=True")

    @property
    def handle(self) -> Any:
        """The attribute that a TensorFlow `GradientTape` reads from a variable."""
        self.refuse("in a `GradientTape`")

    def refuse(self, use: str) -> NoReturn:
        """Raises a `TyingError`: nothing can be trained through a view."""
        raise TyingError(
            f"A tied kernel is computed from its free weights, and these are trained. Received the kernel {self.path!r} {use}. "
            "Pass the `free_weights` of its layer, or `model.trainable_variables`."
        )

    # TensorFlow saves every object that a layer holds. A view saves nothing but its source.
    def _trackable_children(self, *_: Any, **__: Any) -> dict[str, keras.Variable]:
        return {"source": self.source}

    def _serialize_to_tensors(self) -> dict[str, Tensor]:
        return {}

    def _export_to_saved_model_graph(self, *_: Any, **__: Any) -> list[Tensor]:
        return []

    def _write_object_proto(self, proto: Any, options: Any) -> None:
        proto.user_object.SetInParent()

    def _penalty(self, value: Tensor) -> Tensor:
        return self._regularizer(self.decode(value))

    def _constrained(self, value: Tensor) -> Tensor:
        return self.encode(self._constraint(self.decode(value)))

    def __repr__(self) -> str:
        shape, source_shape = tuple(self.shape), tuple(self.source.shape)
        return f"<{type(self).__name__} path={self.path}, shape={shape}, dtype={self._dtype}, source_shape={source_shape}>"


def _track_source(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `Tracker.track` or `Tracker.untrack`, wrapped so that it tracks the source of a view instead of the view."""

    @functools.wraps(method)
    def track(tracker: Any, value: Any) -> Any:
        if not isinstance(value, VariableView):
            return method(tracker, value)
        method(tracker, value.source)
        return value

    return track


# A layer that holds a view, as an attribute or in a list, must list the source among its weights. Trackers collect every
# `keras.Variable`, and a view has to be one because torch ops read no other type. So the tracker itself is patched.
_tracking.Tracker.track, _tracking.Tracker.untrack = map(_track_source, (_tracking.Tracker.track, _tracking.Tracker.untrack))


def _refuse_views(var_key: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `Optimizer._var_key`, wrapped so that it raises a `TyingError` for a view."""

    @functools.wraps(var_key)
    def key(optimizer: Any, variable: Any) -> Any:
        if isinstance(variable, VariableView):
            variable.refuse("in an optimizer")
        return var_key(optimizer, variable)

    return key


# On torch, optimizers write to the tensor `value`, and a view would lose the update. Every optimizer calls `_var_key` first.
keras.optimizers.Optimizer._var_key = _refuse_views(keras.optimizers.Optimizer._var_key)
