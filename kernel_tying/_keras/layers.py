"""Private names of layers: inner layers, attributes, and the state that Keras stores on a layer."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras

from kernel_tying._keras.versions import private_name

# The exceptions that Keras raises if a config does not describe an object.
UNDESCRIBED = (TypeError, ValueError, NotImplementedError)


# Keras does not export the cell of ConvLSTM1D/2D/3D. It is defined in the module of their base class.
ConvLSTMCell: type[keras.Layer] = private_name(keras.layers.ConvLSTM2D.__base__.__module__, "ConvLSTMCell")


def refresh_parameters(root: keras.Layer) -> None:
    """Refreshes torch's parameter lists after variables were replaced: layers fill them only when they are built."""
    for layer in all_layers(root):
        modules = list(layer.modules()) if hasattr(layer, "modules") else []  # none except on torch
        for module in modules:
            if hasattr(module, "_torch_params"):
                module._track_variables()


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers directly inside `layer`."""
    return list(layer.layers) if isinstance(layer, keras.Model) else list(layer._layers)


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns `layer` and all layers inside it, each once."""
    found = {id(layer): layer}
    for child in sublayers(layer):
        found |= {id(inner): inner for inner in all_layers(child)}
    return list(found.values())


def seed_generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Returns the seed generators of `layer` itself. Weight files leave them out."""
    return [generator for generator in layer._seed_generators if not isinstance(generator, _State)]


class _State:
    """A variable among the states of a model that are neither weights nor saved, where Keras expects seed generators."""

    def __init__(self, variable: keras.Variable):
        self.state = variable


def track_state(model: keras.Layer, variable: keras.Variable) -> None:
    """Makes a variable part of the model's state, so that compiled steps on JAX read it. No file holds it."""
    untrack_states(model)
    model._seed_generators.append(_State(variable))


def untrack_states(model: keras.Layer) -> None:
    """Removes the variables that `track_state` added."""
    model._seed_generators[:] = seed_generators(model)


def copy_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Returns a new Lambda layer with the same function. A config would store unsafe code, without the globals."""
    base_config = keras.Layer.get_config(layer)
    return type(layer)(layer.function, layer._output_shape, layer.mask, layer.arguments, **base_config)


class TransparentWrapper(keras.layers.Wrapper):
    """A wrapper that adds nothing to the paths of variables: the inner layer is named as if it were not wrapped.

    Path and dtype policy are always those of the inner layer.
    """

    def _open_name_scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    @property
    def path(self) -> str | None:
        return self.layer.path  # the key for a DTypePolicyMap; stock layers set it when they open the name scope

    @property
    def dtype_policy(self) -> Any:
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        keras.Layer.dtype_policy.fset(self, value)
        self.layer.dtype_policy = value


def is_called_plainly(layer: keras.Layer) -> bool:
    """Returns whether calling `layer` needs nothing but `call`: no torch hook, no activity loss, no rematerialization."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    has_hooks = any(getattr(layer, name, None) for name in hooks)
    return not has_hooks and layer.activity_regularizer is None and layer._remat_mode is None


MOMENTS = "_moments"  # the method in which BatchNormalization computes mean and variance of a batch


def moments(layer: keras.layers.BatchNormalization, inputs: Any, mask: Any) -> tuple[Any, Any]:
    """Returns mean and variance of a batch as the class of `layer` computes them, each of shape `(channels,)`."""
    return type(layer)._moments(layer, inputs, mask)


def attributes(instance: Any) -> dict[str, Any]:
    """Returns the attributes of an object by name, without the state that Keras stores. torch stores layers in `_modules`."""
    found = {**vars(instance), **vars(instance).get("_modules", {})}
    return {name: value for name, value in found.items() if name not in _state_names()}


def held_values(operation: Any) -> list[Any]:
    """Returns the arguments of all symbolic calls of an operation or layer, and its attributes except Keras' own."""
    values: list[Any] = []
    for node in operation._inbound_nodes:
        values += [node.arguments.args, node.arguments.kwargs]
    # Private attributes of models are skipped: Keras stores the graph in some of them.
    is_model = isinstance(operation, keras.Model)
    return values + [value for name, value in attributes(operation).items() if not (is_model and name.startswith("_"))]


def attached_layers(model: keras.Layer) -> list[keras.Layer]:
    """Returns the layers that a Functional or Sequential model holds only as attributes: no output depends on them."""
    if not isinstance(model, keras.Model):
        return []
    inside = {id(layer) for layer in (*model.layers, *getattr(model, "operations", ()))}
    tracked = model._tracker.config["layers"][1]  # `_layers` of a Functional model lacks attributes on Keras 3.12
    return [layer for layer in tracked if id(layer) not in inside and not _is_in_graph(layer, inside)]


def _is_in_graph(layer: keras.Layer, inside: set[int]) -> bool:
    """Returns whether a tracked layer is an input, or the Functional model that Sequential builds from its layers."""
    if isinstance(layer, keras.layers.InputLayer):
        return True
    return type(layer).__name__ == "Functional" and all(
        id(part) in inside or isinstance(part, keras.layers.InputLayer) for part in layer.layers
    )


@functools.lru_cache(maxsize=1)
def _state_names() -> frozenset[str]:
    """Returns the names of the attributes in which Keras and its backends store the state of a layer or model.

    A fresh copy has its own state, or other functions copy it.
    """
    layer = keras.layers.Layer(name="layer")  # an automatic name would count, and change the name of the user's next layer
    return frozenset({*vars(layer), *_MODEL_STATE} - {"name", "autocast", "supports_jit", "activity_regularizer"})


# `compile` and `fit` write these. TensorFlow writes the `_self_` names, but only on objects that it has tracked.
# fmt: off
_MODEL_STATE = (
    "compiled", "optimizer", "loss", "output_names", "steps_per_execution", "unrolled_steps_per_execution", "history",
    "stop_training", "stop_evaluating", "stop_predicting", "train_function", "test_function", "predict_function",
    "_initial_epoch", "_jit_compile", "_run_eagerly", "_jax_state_synced", "_compute_loss_has_training_arg",
    "_eval_epoch_iterator", "_jax_state", "_self_update_uid", "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_deferred_dependencies", "_self_unconditional_dependency_names", "_self_name_based_restores",
    "_self_saveable_object_factories", "_torch_params",
)


def copy_remat(source: Any, target: Any) -> None:
    """Copies the rematerialization mode of `source`, which configs leave out."""
    if hasattr(source, "_remat_mode"):  # on Keras 3.12 operations have none
        target._remat_mode = source._remat_mode


def copy_path(source: Any, target: Any) -> None:
    """Gives a layer or variable the path of another one."""
    target._path = source._path


def is_plain_wrapper(layer: keras.Layer) -> bool:
    """Returns whether `layer` is a wrapper with the config of `Wrapper` itself, such as TimeDistributed: an inner layer."""
    cls: Any = type(layer)
    wrapper: Any = keras.layers.Wrapper
    return (
        issubclass(cls, wrapper)
        and cls.get_config is wrapper.get_config
        and cls.from_config.__func__ is wrapper.from_config.__func__
    )


def describes_constraints(layer: keras.Layer) -> bool:
    """Returns whether `layer` is a stock container whose config describes the kernel constraints of its inner layers."""
    containers = (keras.layers.Wrapper, keras.layers.RNN, keras.layers.StackedRNNCells, keras.layers.Bidirectional)
    return isinstance(layer, containers) and type(layer).__module__.startswith("keras.")
