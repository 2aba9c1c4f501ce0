"""Private names of Functional and Sequential models: their operations and calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras


def is_functional(model: keras.Layer) -> bool:
    """Returns whether `model` is Functional, and its class can be constructed from inputs and outputs alone."""
    functional: Any = next((cls for cls in type(model).__mro__ if cls.__name__ == "Functional"), None)
    if functional is None or type(model).get_config is not functional.get_config:
        return False
    # Keras inspects the constructor to decide whether the config describes layers. It has no public predicate.
    arguments = inspect.getfullargspec(type(model).__init__)
    takes_anything = bool(arguments.varargs and arguments.varkw and not arguments.kwonlyargs)
    return takes_anything or arguments.args == inspect.getfullargspec(functional.__init__).args


def replay_calls(model: keras.Model, inputs: Any, copy: Callable[[Any], Any], counterpart: Callable[[Any], Any]) -> Any:
    """Returns the outputs for `inputs` of copied operations, called in the order of the Functional model's own calls.

    `keras.models.clone_model` does not preserve the order of repeated calls of an operation, which the config records.

    Args:
        model: a Functional model.
        inputs: symbolic tensors in the structure of `model.input`.
        copy: returns the copy of an operation, the same copy each time.
        counterpart: returns the replacement of any other call argument, such as a variable.
    """
    tensors = dict(zip(map(id, keras.tree.flatten(model.input)), keras.tree.flatten(inputs), strict=True))
    pending: list[Any] = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        pending += [node for node in model._nodes_by_depth[depth] if not node.is_input]
    while pending:
        node = next(node for node in pending if _is_next_call(node, tensors, pending))
        pending.remove(node)
        args, kwargs = node.arguments.convert(lambda leaf: tensors[id(leaf)] if id(leaf) in tensors else counterpart(leaf))
        outputs = keras.tree.flatten(copy(node.operation)(*args, **kwargs))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return keras.tree.map_structure(lambda tensor: tensors[id(tensor)], model.output)


def operations(model: keras.Layer) -> list[Any]:
    """Returns the operations of a Functional model that are not layers."""
    return [operation for operation in getattr(model, "operations", ()) if not isinstance(operation, keras.Layer)]


def copy_operation(operation: Any, counterpart: Callable[[Any], Any]) -> Any:
    """Returns a copy, without calls, of an operation that is not a layer. Its config would leave out tensors."""
    copy = object.__new__(type(operation))
    attributes = {**vars(operation), "_inbound_nodes": [], "_outbound_nodes": []}
    vars(copy).update(keras.tree.map_structure(counterpart, attributes))
    return copy


def _is_next_call(node: Any, tensors: dict[int, Any], pending: list[Any]) -> bool:
    """Returns whether the inputs of a call are known, and no earlier call of its operation is pending."""
    if not all(id(tensor) in tensors for tensor in node.input_tensors):
        return False
    calls = node.operation._inbound_nodes
    return not any(call in pending for call in calls[: calls.index(node)])


def is_sequential(model: keras.Layer) -> bool:
    """Returns whether `model` is Sequential, and its class can be constructed from layers alone."""
    cls: Any = type(model)
    return (
        issubclass(cls, keras.Sequential)
        and cls.get_config is keras.Sequential.get_config
        and cls.__init__ is keras.Sequential.__init__
    )


def sequential_layers(model: keras.Sequential) -> list[keras.Layer]:
    """Returns the layers of a Sequential model, including the InputLayer, which `layers` omits."""
    return list(model._layers)


def runs_graph(model: keras.Layer) -> bool:
    """Returns whether a call of `model` runs the graph or the layers that Keras stores, not code of a subclass."""
    stock: Any = next((cls for cls in type(model).__mro__ if cls.__name__ in ("Sequential", "Functional")), None)
    return stock is not None and type(model).call is stock.call


def output_names(model: keras.Model) -> list[str]:
    """Returns the name of the layer or operation that gives each output. Sequential has no `output_names`."""
    return [tensor._keras_history.operation.name for tensor in model.outputs]
